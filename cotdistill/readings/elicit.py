"""What notebook 01 says of the data, the teacher and its rationales."""

import numpy as np
import pandas as pd

from cotdistill.examples import Example


def read_card(card) -> str:
    """Read a quality card in two sentences; what is unknown is said in words, never as nan."""
    if np.isnan(card["abstains"]):
        answers = (
            "they state no answer of their own, so agreement with the gold answer is not applicable"
        )
    elif card["abstains"] == 1:
        answers = "no answer was recorded, none could be read"
    else:
        answers = (
            f"{100 * card['agrees']:.1f} % conclude the gold answer "
            f"(chance {100 * card['chance']:.1f} %), {100 * card['abstains']:.1f} % conclude "
            "nothing that can be read, the commonest letter makes up "
            f"{100 * card['top_answer']:.0f} %"
        )
    words = 0 if np.isnan(card["words_mean"]) else card["words_mean"]
    return (
        f"{card['covered']:.0f} of {card['questions']:.0f} questions are covered; {answers}. "
        f"{100 * card['leaks']:.1f} % name the label, {100 * card['loops']:.1f} % repeat "
        f"themselves, {100 * card['duplicates']:.1f} % are duplicates; "
        f"{words:.0f} words on average."
    )


def data_card(card: pd.DataFrame) -> str:
    """Give the sizes of the splits, what guessing reaches, and which questions repeat.

    card: of `sources.data_card`, a row per split.
    """
    test = card.loc["test"]
    return (
        f"**{int(card.loc['train', 'questions'])}** training, "
        f"**{int(card.loc['validation', 'questions'])}** validation and "
        f"**{int(test['questions'])}** test questions with {test['options']} options. A uniform "
        f"guess is right **{100 * test['chance']:.1f} %** of the time; always choosing the same "
        f"position, {100 * test['top_position']:.1f} %. Left out because they also appear in a "
        f"later split: {int(card['left_out'].sum())}. Of the test questions, "
        f"{int(test['seen_in_train'])} also appear in train, {int(test['duplicates'])} are "
        f"duplicates, and {int(test['equal_options'])} have two equal options."
    )


def example(question: Example, rationale: str) -> str:
    """Quote one question: its options, its answer, its rationale."""
    lines = [f"**{question.question}**", "", *(f"- {choice}" for choice in question.choices)]
    lines += ["", f"answer: **{question.label}**", "", f"rationale: *{rationale}*"]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def quality(cards: dict[str, pd.Series]) -> str:
    """List the teachers, each with its quality card in two sentences."""
    return "\n".join(f"- **{name}**: {read_card(card)}" for name, card in cards.items())


def prefix_timing(timing: dict | None) -> str:
    """Say what the shared prefix saves, or that it was not timed."""
    if not timing:
        return "Not timed in this study: `time_questions` is 0, or no local model was asked."
    return (
        f"{timing['whole_seconds']:.2f} s per rationale with whole prompts, "
        f"{timing['shared_seconds']:.2f} s with the shared prefix: {timing['ratio']:.1f} times as "
        f"fast. The tokens are the same in {timing['same']} of {timing['rationales']} rationales."
    )


def filters(removed: pd.DataFrame) -> str:
    """Say how many rationales the filters kept."""
    if removed.empty:
        return ""
    return (
        f"{removed['before'].iloc[0]} rationales of training and validation questions went in; "
        f"{removed['after'].iloc[-1]} are left."
    )


def findings(teacher: str, card: pd.Series, kept: int, total: int) -> str:
    """Say what goes on to notebook 2: questions with a rationale, and whose they are."""
    words = 0 if np.isnan(card["words_mean"]) else card["words_mean"]
    return (
        f"**Findings.** {kept} of {total} training questions go on with a rationale by "
        f"**{teacher}**, {words:.0f} words long on average. Next: [2 · Train](02_train.ipynb)."
    )
