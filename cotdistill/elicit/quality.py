"""Judge recorded rationales: choose one per question, filter them, fill in the quality card."""

import json
import re
from collections import Counter

import numpy as np

from cotdistill.elicit.completions import (
    contains_run,
    drop_article,
    split_words,
    stated_options,
)
from cotdistill.elicit.patterns import ORDINARY_WORDS
from cotdistill.elicit.prompts import Demonstration
from cotdistill.elicit.thoughts import clean_text
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, Rationale, answer_index

# The measures of a quality card, in its order; those of SHARES are means over the rationales
MEASURES = (
    "n",
    "questions",
    "covered",
    "agrees",
    "agrees_if_answered",
    "chance",
    "top_answer",
    "abstains",
    "contradicts",
    "names_letter",
    "names_text",
    "leaks",
    "words_mean",
    "words_median",
    "loops",
    "copies",
    "duplicates",
    "unfinished",
    "cut_off",
    "malformed",
    "seconds_mean",
)
SHARES = (
    "agrees",
    "abstains",
    "chance",
    "contradicts",
    "names_letter",
    "names_text",
    "loops",
    "copies",
    "unfinished",
    "cut_off",
    "malformed",
)


def _group_by_question(records: list[dict], examples: list[Example]) -> dict[str, list[dict]]:
    """Group the records of each question, by sample.

    Raises DataError for records of several settings, and for an unknown id.
    """
    by_id, answers = {example.id: example for example in examples}, {}
    # A file may hold answers under several max_new_tokens: what was cut off is asked again
    kinds = {
        (
            r["teacher"],
            r["revision"],
            r["mode"],
            r["prefix"],
            json.dumps({**r["decoding"], "max_new_tokens": 0}, sort_keys=True),
        )
        for r in records
    }
    if len(kinds) > 1:
        raise DataError(
            f"records of {len(kinds)} settings, e.g. {sorted(kinds)[0][:3]} and "
            f"{sorted(kinds)[1][:3]}; expected those of one teacher, mode, prompt and decoding"
        )
    for record in records:
        if record["id"] not in by_id:
            raise DataError(
                f"record for an unknown id '{record['id']}'; expected the id of one of the "
                f"{len(by_id)} questions"
            )
        # Of a question that was asked again the last answer counts
        answers.setdefault(record["id"], {})[record["sample"]] = record
    return {key: [rows[sample] for sample in sorted(rows)] for key, rows in answers.items()}


def choose_rationales(
    records: list[dict], examples: list[Example], prefer: str = "agreeing"
) -> dict[str, Rationale]:
    """Choose one rationale per question out of its samples.

    prefer="agreeing": the first sample that concludes the gold answer and has a rationale, else the
    first sample (with one sample per question this is that sample). prefer="first": the first
    sample, whatever it concludes. Raises DataError.
    """
    if prefer not in ("agreeing", "first"):
        raise DataError(f"prefer is '{prefer}'; expected agreeing or first")
    gold, chosen = {example.id: example for example in examples}, {}
    for key, rows in _group_by_question(records, examples).items():
        good = [r for r in rows if r["answer"] == LETTERS[gold[key].answer] and r["rationale"]]
        best = (good or rows)[0] if prefer == "agreeing" else rows[0]
        answer = (
            None
            if best["answer"] is None
            else answer_index(best["answer"], len(gold[key].choices), f"record {key}")
        )
        chosen[key] = Rationale(key, clean_text(best["rationale"]), answer)
    return {example.id: chosen[example.id] for example in examples if example.id in chosen}


def names_letter(text: str, option: int) -> bool:
    """Tell whether a rationale names an option by its letter.

    It may say "(B)", "option B", "answer B" or "the answer is B".
    """
    letter = LETTERS[option]
    return bool(
        re.search(
            rf"\({letter}\)|\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+{letter}\b", text
        )
    )


def names_text(text: str, choice: str) -> bool:
    """Tell whether the words of an option appear in a rationale, next to each other.

    Case and an article at the start do not count.
    """
    return contains_run(split_words(text), drop_article(choice))


def repeats_itself(text: str) -> bool:
    """Tell whether a text repeats itself.

    Four words in a row appear at least three times, or a sentence of four or more words twice.
    """
    words = split_words(text)
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    sentences = Counter(tuple(split_words(s)) for s in re.split(r"(?<=[.!?])\s+", text))
    return any(count >= 3 for count in runs.values()) or any(
        count > 1 and len(s) >= 4 for s, count in sentences.items()
    )


def copies_demonstration(text: str, reasons: list[str], size: int = 5) -> bool:
    """Tell whether a text copies a demonstration.

    At least half of its runs of `size` words then appear in that demonstration's reason.
    """
    runs = lambda s: {
        tuple(w[i : i + size]) for w in [split_words(s)] for i in range(max(1, len(w) - size + 1))
    }
    own = runs(text)
    return bool(split_words(text)) and any(
        len(own & runs(reason)) >= len(own) / 2 for reason in reasons
    )


def quality_card(
    rationales: dict[str, Rationale] | list[dict],
    examples: list[Example],
    demonstrations: list[Demonstration] | None = None,
):
    """Measure what a set of rationales is worth, as a pandas Series (`.to_json()` is the file).

    Counts are `n`, `questions` (asked about) and `covered`; shares from 0 to 1 are of the n
    rationales. rationales: records of `elicit_*` (every sample counts) or a recorded set. A share
    that cannot be known is NaN: the shares cut off and malformed and the seconds of a recorded set,
    and copies without demonstrations.

    agrees, abstains   the concluded answer is the gold one; no answer could be read.
                       Both are NaN where no rationale states an answer: a gold set is not asked.
    agrees_if_answered   agreement of those that state an answer
    chance             agreement of a uniform guess
    top_answer         share of the most frequent concluded position; near 1, the teacher
                       answers everything with one letter
    contradicts        different options are stated to be the answer
    names_letter, names_text, leaks   the rationale names the gold option by letter, by text,
                       by either
    words_mean, words_median   length in words, of covered rationales
    loops, copies      see `repeats_itself` and `copies_demonstration`
    duplicates         share of texts that are equal to an earlier one
    unfinished         does not end in . ! or ? (a sign of a cut-off that recorded sets also show)
    cut_off, malformed, seconds_mean   from the records
    """
    import pandas as pd

    by_id = {example.id: example for example in examples}
    reasons = [d.reason for d in demonstrations] if demonstrations else []
    items = rationales.values() if isinstance(rationales, dict) else rationales
    rows = [_judge_rationale(item, by_id, reasons) for item in items]
    if not rows:
        raise DataError("no rationale to judge; expected at least one")
    table = pd.DataFrame(rows)
    texts, words = table.text[table.text != ""], table.words[table.words > 0]
    answered = table[~table.abstains]
    share = {name: float(table[name].astype(float).mean()) for name in SHARES}
    if isinstance(rationales, dict) and not len(answered):
        share["agrees"] = share["abstains"] = np.nan
    top = answered.answer.value_counts(normalize=True).iloc[0] if len(answered) else np.nan
    more = {
        "n": float(len(table)),
        "questions": float(table.id.nunique()),
        "covered": float(table.id[table.text != ""].nunique()),
        "agrees_if_answered": float(answered.agrees.mean()) if len(answered) else np.nan,
        "top_answer": float(top),
        "leaks": float((table.names_letter | table.names_text).mean()),
        "words_mean": float(words.mean()),
        "words_median": float(words.median()),
        "duplicates": (len(texts) - texts.nunique()) / len(table),
        "seconds_mean": float(table.seconds.astype(float).mean()),
    }
    return pd.Series({name: (share | more)[name] for name in MEASURES})


def _judge_rationale(item, by_id: dict[str, Example], reasons: list[str]) -> dict:
    """Compute one rationale's row of the quality card.

    item: a record or a Rationale; by_id: the questions; reasons: those of the demonstrations.
    Raises DataError for an unknown id or an answer outside the choices.
    """
    record = isinstance(item, dict)
    key, text = (item["id"], item["rationale"]) if record else (item.id, item.text)
    example = _get_question(by_id, key)
    answer = item["answer"] if record else item.answer
    if answer is not None:
        answer = answer_index(answer, len(example.choices), f"rationale {key}")
    free = example.is_free
    stated = (
        set() if free else {i for options in stated_options(text, example.choices) for i in options}
    )
    stated |= {answer} - {None}
    return {
        "agrees": answer == example.answer,
        "answer": answer,
        "abstains": answer is None,
        "chance": example.chance,
        "contradicts": item["contradicts"] if record else len(stated) > 1,
        "names_letter": not free and names_letter(text, example.answer),
        "names_text": names_text(text, example.label),
        "loops": repeats_itself(text),
        "copies": copies_demonstration(text, reasons) if reasons else np.nan,
        "unfinished": bool(text) and text.rstrip("\"')*")[-1:] not in (".", "!", "?"),
        "cut_off": item["cut_off"] if record else np.nan,
        "malformed": bool(item["malformed"]) if record else np.nan,
        "seconds": item["seconds"] if record else np.nan,
        "words": len(text.split()),
        "text": " ".join(split_words(text)),
        "id": key,
    }


def _get_question(by_id: dict[str, Example], key: str) -> Example:
    """Return the question of a rationale; raise DataError where there is none."""
    if key not in by_id:
        raise DataError(
            f"rationale for an unknown id '{key}'; expected the id of one of the {len(by_id)} "
            "questions"
        )
    return by_id[key]


def compare_teachers(cards: dict):
    """Put quality cards (name -> card) side by side: a column per teacher, a row per measure."""
    import pandas as pd

    return pd.DataFrame(cards)


def _scrub_ordinary(text: str, word: str, neutral: str) -> str:
    """Replace an ordinary word where it is an answer, as `remove_label` says."""
    word = rf"(?<!\w){re.escape(word)}(?![\w'’])"
    ends = r"(?=\s*(?:[.,;:!?)\"”*—–]|$)|\s+(?:because|since|as)\b)"
    stated = (
        r"((?:\b(?:answer|choice|option)\s+(?:is|must be|should be|would be)\s*:?|\banswer\s*[:=]|"
        rf"\([A-Z]\)|{neutral}[,:])\s*){word}{ends}"
    )
    text = re.sub(stated, rf"\g<1>{neutral}", text, flags=re.I)
    text = re.sub(rf"([\"“‘'])({word})(?=[.,]?[\"”’'])", rf"\g<1>{neutral}", text, flags=re.I)
    return re.sub(
        rf"((?:^|(?<=[.!?;:])\s+)){word}(?=\s*(?:[.,;:!—–]|$))",
        rf"\g<1>{neutral}",
        text,
        flags=re.I,
    )


def remove_label(text: str, example: Example) -> str:
    """Replace the gold option in a rationale, named by text or letter, by a neutral phrase.

    A label that is an ordinary word (yes, no, true, it, a, …: `ORDINARY_WORDS`) is replaced only
    where it is an answer: after "the answer is" or "Answer:", after its letter, in quotation marks,
    or as a clause of its own at the start of a sentence ("No, it sinks."). In "There is no water"
    it stays.
    """
    label = drop_article(example.label)
    ordinary = len(label) == 1 and label[0] in ORDINARY_WORDS
    neutral = next(
        p for p in ("this one", "that", "it", "such") if not set(split_words(p)) & set(label)
    )
    letter = LETTERS[example.answer]
    text = re.sub(
        r"(?:\b(?i:the)\s+)?(?:\b(?i:option|answer|choice|letter)"
        rf"(?i:\s+is)?\s*:?\s+)?\({letter}\)|(?:\b(?i:the)\s+)?\b(?i:option|answer|choice|letter)"
        rf"(?i:\s+is)?\s*:?\s+{letter}\b",
        neutral,
        text,
    )
    if label:
        pattern = re.compile(
            r"(?:\b(?:the|an?)\s+)?(?<!\w)" + r"\W+".join(map(re.escape, label)) + r"(?!\w)", re.I
        )
        text = _scrub_ordinary(text, label[0], neutral) if ordinary else pattern.sub(neutral, text)
    return text[:1].upper() + text[1:]


def filter_rationales(
    rationales: dict[str, Rationale],
    examples: list[Example],
    *,
    keep_agreeing: bool = False,
    scrub_label: bool = False,
    max_tokens: int | None = None,
    count=lambda text: len(text.split()),
):
    """Filter rationales as asked, and count what each filter does: (kept, counts).

    The filters run in this order:

    with_text       always: a rationale without text is no rationale
    keep_agreeing   keep only those that conclude the gold answer (abstentions go)
    scrub_label     `remove_label` each: changes texts, removes none that still says something
    max_tokens      keep only those of at most so many, as `count` counts (words; pass
                    lambda t: len(student.encode(t)) for tokens)

    counts is a DataFrame by filter: before, removed, changed, after. The caller trains every arm,
    label_only too, on the questions whose rationale is kept. Character spans do not survive
    scrubbing: key_spans of changed texts are emptied. Raises DataError.
    """
    import pandas as pd

    by_id = {example.id: example for example in examples}
    for key in rationales:
        _get_question(by_id, key)
    if max_tokens is not None and max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}; expected None or a number of at least 1")

    def scrub(r):
        text = remove_label(r.text, by_id[r.id])
        return r if text == r.text else Rationale(r.id, text, r.answer)

    agrees = lambda r: r if r.answer == by_id[r.id].answer else None
    fits = lambda r: r if count(r.text) <= max_tokens else None
    steps = [
        ("with_text", True, lambda r: r if r.text.strip() else None),
        ("keep_agreeing", keep_agreeing, agrees),
        ("scrub_label", scrub_label, scrub),
        ("max_tokens", max_tokens is not None, fits),
    ]
    kept, rows = dict(rationales), []
    for name, wanted, step in steps:
        if not wanted:
            continue
        after = {key: new for key, old in kept.items() if (new := step(old)) is not None}
        rows.append(
            {
                "filter": name,
                "before": len(kept),
                "removed": len(kept) - len(after),
                "changed": sum(after[key] != kept[key] for key in after),
                "after": len(after),
            }
        )
        kept = after
    return kept, pd.DataFrame(rows).set_index("filter")
