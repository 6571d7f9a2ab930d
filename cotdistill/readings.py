"""The sentences that stand under tables and figures, made from the numbers."""

import numpy as np


def read_card(card) -> str:
    """A quality card in two sentences; what can't be known is said in words, never as nan."""
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
        f"themselves, "
        f"{100 * card['duplicates']:.1f} % are duplicates; {words:.0f} words on average."
    )
