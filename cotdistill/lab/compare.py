"""Compare two stored runs: the paired difference, and the questions where they disagree."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.inference import estimate_contrasts
from cotdistill.lab.edit import softmax
from cotdistill.paths import artifacts
from cotdistill.runs.results import add_correct, read_row_predictions

MEASURES = {"p_gold": "p(gold)", "correct_choice": "forced choice", "correct_generated": "written"}


def read_predictions(key: str, label: str, seed: int) -> pd.DataFrame:
    """Read a stored run's predictions as rows of one arm, with what was right.

    Raises DataError where the run is not in the store.
    """
    path = artifacts() / "runs" / key / "predictions.jsonl"
    if not path.is_file():
        raise DataError(f"{path}: no such run; expected one that was trained: press Train")
    return add_correct(read_row_predictions({"key": key, "label": label, "seed": seed}))


def paired_effects(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Estimate a - b on the same questions, a row per measure of MEASURES (fractions).

    One seed each: intervals say what other questions would change, not what other seeds would.
    Raises DataError where the two runs answered different questions.
    """
    first, second = a["arm"].iloc[0], b["arm"].iloc[0]
    weights = {f"{first} - {second}": {first: 1.0, second: -1.0}}
    both = pd.concat([a, b], ignore_index=True)
    return pd.concat(
        [estimate_contrasts(both, weights, measure) for measure in MEASURES], ignore_index=True
    )


@dataclass(frozen=True)
class Disagreement:
    """One question that one of two students gets right and the other wrong; two rows of answers."""

    example: Example
    right: str
    answers: dict[str, dict]


def describe_answer(row: dict, example: Example) -> dict:
    """Return what a student wrote and chose, and its probability of the right option."""
    return {
        "rationale": row["rationale"],
        "text": row["text"],
        "choice": example.choices[int(row["choice"])],
        "p_gold": softmax(row["scores"])[int(row["gold"])],
        "cut_off": bool(row["cut_off"]),
    }


def list_disagreements(
    a: pd.DataFrame, b: pd.DataFrame, examples: list[Example]
) -> list[Disagreement]:
    """List the questions that exactly one of two students gets right, by forced choice.

    Those where the two are furthest apart in p(gold) come first.
    """
    by_id, found = {e.id: e for e in examples}, []
    others = b.set_index("id").to_dict("index")
    for row in a.to_dict("records"):
        other = others.get(row["id"])
        if other is None or row["correct_choice"] == other["correct_choice"]:
            continue
        example = by_id[row["id"]]
        names = a["arm"].iloc[0], b["arm"].iloc[0]
        rows = (describe_answer(row, example), describe_answer(other, example))
        right = names[0] if row["correct_choice"] else names[1]
        found.append(Disagreement(example, right, dict(zip(names, rows, strict=True))))
    gap = lambda one: -np.ptp([answer["p_gold"] for answer in one.answers.values()])
    return sorted(found, key=gap)
