"""What is measured of an answer: accuracy, p(gold), accuracy by log p per byte."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cotdistill.errors import DataError

MEASURES = ("correct_choice", "p_gold", "acc_norm", "correct_generated")
BINARY = ("correct_choice", "acc_norm", "correct_generated")
CUT_OFF = ("wrong", "chance", "as_scored")


def _list_options(scores: Sequence[float], gold: int, options: Sequence[str] | None) -> list[int]:
    """List the options that count: the first of each text (equal texts are one answer)."""
    if not 0 <= gold < len(scores):
        raise DataError(f"gold is {gold} of {len(scores)} options; expected 0 to {len(scores) - 1}")
    if options is None:
        return list(range(len(scores)))
    if len(options) != len(scores):
        raise DataError(f"{len(scores)} scores for {len(options)} options; expected one score each")
    return [i for i, text in enumerate(options) if list(options).index(text) == i]


def gold_probability(
    scores: Sequence[float], gold: int, options: Sequence[str] | None = None
) -> float:
    """Return p(gold): the softmax of the options' log p (nats) at the right option.

    It asks how sure the student is, where accuracy asks only which option comes first; 1 / (number
    of options) is chance. A single score is that of a free answer, whose p is that of its tokens:
    exp(log p). `options`: the texts, so that a text given twice counts once (`gold` is
    then the first of its text, as `examples.first_equal` has it). Raises DataError where scores,
    texts and gold do not fit together.
    """
    kept = _list_options(scores, gold, options)
    if len(scores) == 1:
        return float(np.exp(scores[0]))
    if gold not in kept:
        raise DataError(
            f"gold is {gold}, whose text is also an earlier option's; expected the "
            "first of its text"
        )
    logs = np.asarray(scores, float)[kept]
    odds = np.exp(logs - logs.max())  # 20 times as fast as scipy's softmax, per row
    return float(odds[kept.index(gold)] / odds.sum())


def choose_normalized(scores: Sequence[float], options: Sequence[str]) -> int:
    """Return the option with the highest log p per byte of its text (UTF-8), the first of equals.

    The sum of log p favours short options. This is lm-evaluation-harness's `acc_bytes`, and its
    `acc_norm` (per character) wherever the texts are ASCII. Raises DataError for an empty option.
    """
    kept = _list_options(scores, 0, options)
    lengths = np.array([len(options[i].encode("utf-8")) for i in kept], float)
    if (lengths == 0).any():
        raise DataError(
            f"options {list(options)!r}: one is empty; expected texts of 1 byte or more"
        )
    return kept[int(np.argmax(np.asarray(scores, float)[kept] / lengths))]


def rationale_cut_off(predictions: pd.DataFrame) -> np.ndarray:
    """Say per row whether the answer followed a rationale that a limit ended.

    Arms pre_cot… and few_shot_cot write one.

    Read from the column `rationale_cut_off` where there is one, else from `cut_off`, which also
    holds labels that did not end (their written answer is wrong anyway).
    """
    ended = predictions["cut_off"]
    if "rationale_cut_off" in predictions:  # missing in runs that were made before it was written
        own = predictions["rationale_cut_off"]
        ended = own.astype(object).where(own.notna(), ended)
    before = predictions["arm"].astype(str).str.startswith(("pre_cot", "few_shot_cot")).to_numpy()
    return before & ended.astype(bool).to_numpy()


def add_measure(
    predictions: pd.DataFrame,
    measure: str,
    *,
    options: Mapping[str, Sequence[str]] | None = None,
    cut_off: str = "wrong",
) -> pd.DataFrame:
    """Return the predictions with two more columns: `value` (the measure) and `flagged`.

    Args:
        predictions: rows with arm, seed, id, gold, and what the measure reads: correct_choice,
            correct_generated or scores (a list of log p, in nats, one per option).
        measure: one of MEASURES. Accuracies are 0 or 1, p_gold lies between.
        options: id -> texts; acc_norm needs them, p_gold uses them to count equal texts once.
        cut_off: what a pre_cot answer is worth whose rationale a limit cut off. "wrong" (primary):
            accuracies are 0, because the student never came to an answer; p_gold stays as scored,
            because no probability was put on a wrong option, but is flagged. "chance": 1 / (number
            of options) for every measure of the options. "as_scored": nothing is changed.

    `flagged` marks those rows under each rule, so that a table can show how many there are.
    Raises DataError for an unknown measure or rule, for missing texts and for bad scores.

    """
    for name, value, known in (("measure", measure, MEASURES), ("cut_off", cut_off, CUT_OFF)):
        if value not in known:
            raise DataError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if measure == "acc_norm" and options is None:
        raise DataError("measure acc_norm needs the options' texts; expected options: id -> texts")
    if measure == "correct_choice" and predictions[measure].isna().any():
        raise DataError(
            "measure correct_choice needs multiple choice, and these answers are free; expected "
            "correct_generated or p_gold"
        )
    if measure.startswith("correct_"):
        values = predictions[measure].astype(float).to_numpy()
    else:
        values = np.array(
            [
                _score_value(row, measure, options)
                for row in zip(
                    predictions["id"], predictions["scores"], predictions["gold"], strict=True
                )
            ]
        )
    flagged = rationale_cut_off(predictions)
    if cut_off == "chance" and measure != "correct_generated":
        counts = predictions["scores"].map(len).to_numpy(float)
        values = np.where(flagged, np.where(counts == 1, 0.0, 1 / counts), values)
    elif cut_off != "as_scored" and measure in BINARY:
        values = np.where(flagged, 0.0, values)
    return predictions.assign(value=values, flagged=flagged)


def _score_value(row: tuple, measure: str, options: Mapping[str, Sequence[str]] | None) -> float:
    question, scores, gold = row
    if options is not None and question not in options:
        raise DataError(f"question {question}: no texts of its options; expected them for every id")
    texts = None if options is None else options[question]
    try:
        free = len(scores) == 1
        if not np.isfinite(np.asarray(scores, float)).all() or not len(scores):
            raise DataError(f"scores are {scores!r}; expected finite log p")
        if free and measure != "p_gold":
            raise DataError(f"measure {measure} needs multiple choice; expected p_gold")
        if measure == "p_gold":
            return gold_probability(scores, int(gold), texts)
        return float(choose_normalized(scores, texts) == int(gold))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"question {question}: {error}") from error
