"""Four explanations of what a rationale does, the pattern that each predicts, and which survive.

The predictions are written down here, before any number is seen; the rules that judge them are
those of `judge`. Each is about one number of `mechanism`'s measurements or one contrast of arms:
its sign, or that it is 0 within MARGIN.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotdistill.inference import (
    Effect,
    arm_table,
    confidence_interval,
    contrast_table,
    join_variances,
    split_variance,
    study_prior,
)
from cotdistill.measures import add_measure
from cotdistill.mechanism import ALL_BLOCKS
from cotdistill.stats import MIN_SEEDS

MARGIN = 0.02  # what counts as no difference of p(gold): two points
OUTCOMES = ("met", "contradicted", "open", "too few seeds", "not measured")


@dataclass(frozen=True)
class Prediction:
    """One thing that a hypothesis predicts: the number, and its sign ("+", "-", "0")."""

    hypothesis: str
    number: str
    sign: str


@dataclass(frozen=True)
class Contrast:
    """A difference of two arms' p(gold). facts: on the questions whose facts training states so."""

    better: str
    worse: str
    facts: str = ""


HYPOTHESES = {
    "regularisation": "More tokens to write keep a student from fitting labels; any text will do",
    "facts taught": "Rationales state facts that labels do not, and the student learns them",
    "label weight": "Arms differ through the label's share of the loss, and through nothing else",
    "auxiliary task": "Learning to explain moves the weights as learning to answer does",
}
LENS = "lens: own − other key tokens, beyond label_only"
COSINE, COSINE_SWAPPED = "cosine, own", "cosine, own − swapped"
FOLLOWS = "written rationale follows a forced answer"
LOW, HIGH = "lowest share", "highest share"  # the ends of the dial, filled in by a study
CONTRASTS = {
    "own − label_only": Contrast("post_cot", "label_only"),
    "own − swapped": Contrast("post_cot", "post_cot_swapped"),
    "own − filler": Contrast("post_cot", "post_cot_filler"),
    "own − shuffled": Contrast("post_cot", "post_cot_shuffled[token]"),
    "own − bag": Contrast("post_cot", "post_cot_bag"),
    "swapped − label_only": Contrast("post_cot_swapped", "label_only"),
    "filler − label_only": Contrast("post_cot_filler", "label_only"),
    "own − label_only, facts in rationales only": Contrast("post_cot", "label_only", "rationale"),
    "highest − lowest label share": Contrast(HIGH, LOW),
}
PREDICTIONS = (
    Prediction("regularisation", "swapped − label_only", "+"),
    Prediction("regularisation", "filler − label_only", "+"),
    Prediction("regularisation", "own − swapped", "0"),
    Prediction("facts taught", "own − label_only, facts in rationales only", "+"),
    Prediction("facts taught", "own − swapped", "+"),
    Prediction("facts taught", LENS, "+"),
    Prediction("label weight", "highest − lowest label share", "+"),
    Prediction("label weight", "own − filler", "0"),
    Prediction("label weight", "own − label_only", "-"),
    Prediction("auxiliary task", COSINE, "+"),
    Prediction("auxiliary task", COSINE_SWAPPED, "+"),
    Prediction("auxiliary task", FOLLOWS, "+"),
)


def prediction_table(
    predictions: tuple[Prediction, ...] = PREDICTIONS, said: dict[str, str] = HYPOTHESES
) -> pd.DataFrame:
    """Show what each hypothesis says and predicts, before any number.

    said: hypothesis -> what it says.
    """
    words = {"+": "above 0", "-": "below 0", "0": f"0, give or take {100 * MARGIN:g} points"}
    rows = [
        {
            "hypothesis": f"{p.hypothesis}: {said[p.hypothesis]}",
            "number": p.number,
            "predicted": words[p.sign],
        }
        for p in predictions
    ]
    return pd.DataFrame(rows)


def measure_mean(values: np.ndarray) -> dict[str, float]:
    """Describe the mean of values [seeds, units] with 95 and 90 % intervals over both.

    Returns estimate, low, high, low90, high90, seeds and units.
    """
    effect = join_variances(split_variance(values))
    return describe(effect, *values.shape)


def describe(effect: Effect, seeds: int, units: int) -> dict[str, float]:
    """Return an effect's columns in a table of numbers."""
    (low, high), (low90, high90) = (confidence_interval(effect, a) for a in (0.05, 0.1))
    ends = {"low": low, "high": high, "low90": low90, "high90": high90}
    found = {name: float(value) for name, value in ends.items()}
    return {"estimate": float(effect.estimate), **found, "seeds": seeds, "units": units}


def judge(sign: str, number: dict | None, margin: float = MARGIN) -> str:
    """Judge a prediction by its number: one of OUTCOMES.

    "+" and "-" are met where the 95 % interval lies on that side of 0, contradicted where it lies
    on the other. "0" is met where the 90 % interval lies within the margin (two one-sided tests at
    5 %), contradicted where the 95 % interval lies outside of it. Fewer than MIN_SEEDS seeds decide
    nothing.
    """
    if number is None or not np.isfinite(number["estimate"]):
        return "not measured"
    if number["seeds"] < MIN_SEEDS:
        return "too few seeds"
    low, high = number["low"], number["high"]
    if sign == "0":
        if -margin < number["low90"] and number["high90"] < margin:
            return "met"
        return "contradicted" if low > margin or high < -margin else "open"
    if sign == "-":
        low, high = -high, -low
    return "met" if low > 0 else "contradicted" if high < 0 else "open"


def judge_predictions(
    numbers: dict[str, dict], predictions: tuple[Prediction, ...] = PREDICTIONS
) -> pd.DataFrame:
    """Judge all predictions. Columns: hypothesis, number, sign, outcome, and the number's own."""
    names = ("estimate", "low", "high", "seeds", "units")
    rows = []
    for p in predictions:
        number = numbers.get(p.number)
        known = {name: (number or {}).get(name, float("nan")) for name in names}
        rows.append(vars(p) | known | {"outcome": judge(p.sign, number)})
    return pd.DataFrame(rows)


def survivors(judged: pd.DataFrame) -> pd.DataFrame:
    """Say of each hypothesis whether it survives.

    It falls with one prediction contradicted, survives with one met and none contradicted, and is
    undecided otherwise. Columns: hypothesis, met, contradicted, predictions, outcome.
    """
    rows = []
    for name, part in judged.groupby("hypothesis", sort=False):
        met, against = ((part["outcome"] == word).sum() for word in ("met", "contradicted"))
        outcome = "falls" if against else "survives" if met else "undecided"
        counts = {"met": int(met), "contradicted": int(against), "predictions": len(part)}
        rows.append({"hypothesis": name, **counts, "outcome": outcome})
    return pd.DataFrame(rows)


def contrast_numbers(
    predictions: pd.DataFrame, dial: list[str], fact_of: dict[str, str]
) -> dict[str, dict]:
    """Estimate CONTRASTS of p(gold): name -> number, for those whose arms were run.

    dial: the labels of the arms with the label's lowest and highest share. fact_of: id -> where
    training states the question's facts; empty where the data do not say.
    """
    valued, found = add_measure(predictions, "p_gold"), {}
    ends = dict(zip((LOW, HIGH), dial, strict=False))
    for name, contrast in CONTRASTS.items():
        better, worse = (ends.get(arm, arm) for arm in (contrast.better, contrast.worse))
        rows = valued
        if contrast.facts:
            rows = valued[valued["id"].map(fact_of) == contrast.facts]
        if better == worse or not {better, worse} <= set(rows["arm"]) or rows["id"].nunique() < 2:
            continue
        table = contrast_table(rows, {better: 1.0, worse: -1.0})
        effect = join_variances(split_variance(table.to_numpy()), study_prior(rows))
        found[name] = describe(effect, *table.shape)
    return found


def arm_lines(predictions: pd.DataFrame, shares: dict[str, float]) -> pd.DataFrame:
    """Return p(gold) in percent by the label's share of the loss, for `plots.interval_lines`.

    shares: arm -> the label's share (0..1).
    """
    valued, rows = add_measure(predictions, "p_gold"), []
    for arm, share in shares.items():
        number = measure_mean(arm_table(valued, arm).to_numpy())
        values = {name: 100 * number[name] for name in ("estimate", "low", "high")}
        rows.append({"line": "p(gold)", "arm": arm, "x": 100 * share} | values)
    return pd.DataFrame(rows).rename(columns={"estimate": "value"})


def paired_units(rows: pd.DataFrame, column: str, unit: str, minus: str = "") -> np.ndarray:
    """Average a column of measured rows into a table [seeds, units]; units that all seeds have.

    minus: a column whose values are taken away first. Shape [0, 0] where nothing is left.
    """
    values = rows[column] - rows[minus] if minus else rows[column]
    table = rows.assign(value=values).pivot_table(index="seed", columns=unit, values="value")
    table = table.dropna(axis=1)
    return table.to_numpy(float) if table.shape[1] > 1 else np.empty((0, 0))


def difference_of_arms(
    rows: pd.DataFrame, arms: tuple[str, str], column: str, unit: str, minus: str = ""
) -> np.ndarray:
    """Return `paired_units` of one arm minus another's, on the seeds and units of both."""
    keys, tables = ["seed", unit], []
    for arm in arms:
        part = rows[rows["arm"] == arm]
        values = part[column] - part[minus] if minus else part[column]
        tables.append(part.assign(value=values).groupby(keys)["value"].mean())
    both = (tables[0] - tables[1]).dropna().rename("value").reset_index()
    return paired_units(both, "value", unit) if len(both) else np.empty((0, 0))


def measured_numbers(rows: pd.DataFrame) -> dict[str, dict]:
    """Take the numbers of PREDICTIONS from what was measured during training.

    rows: of `runs.measured.watch_students`. Cosines are means over all epochs, of all trained
    blocks together; the lens is that of the last block after the last epoch.
    """
    aligned = rows[(rows["kind"] == "alignment") & (rows["block"] == ALL_BLOCKS)]
    lens = last_lens(rows)
    top = lens[lens["block"] == lens["block"].max()]
    forced = rows[(rows["kind"] == "forced") & (rows["arm"] == "post_cot")]
    own = ("post_cot", "post_cot_swapped")
    tables = {
        COSINE: paired_units(aligned[aligned["arm"] == "post_cot"], "cosine", "batch"),
        COSINE_SWAPPED: difference_of_arms(aligned, own, "cosine", "batch"),
        LENS: difference_of_arms(top, ("post_cot", "label_only"), "own", "id", "other"),
    }
    if len(forced):
        tables[FOLLOWS] = paired_units(forced, "follows", "id", "strays")
    return {name: measure_mean(table) for name, table in tables.items() if table.size}


def last_lens(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the lens's rows after each arm's last epoch."""
    lens = rows[rows["kind"] == "lens"]
    return lens[lens["epoch"] == lens.groupby(["arm", "seed"])["epoch"].transform("max")]


def block_lines(rows: pd.DataFrame, column: str, unit: str, minus: str = "") -> pd.DataFrame:
    """Return a measured column's mean by arm and block, for `plots.interval_lines`."""
    lines = []
    for (arm, block), part in rows[rows["block"] >= 0].groupby(["arm", "block"], sort=False):
        table = paired_units(part, column, unit, minus)
        if table.size:
            number = measure_mean(table)
            ends = {"value": number["estimate"], "low": number["low"], "high": number["high"]}
            lines.append({"line": arm, "x": block + 1} | ends)
    return pd.DataFrame(lines, columns=["line", "x", "value", "low", "high"])


def cosine_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the cosine of all trained blocks together, by arm and epoch."""
    aligned = rows[(rows["kind"] == "alignment") & (rows["block"] == ALL_BLOCKS)]
    table = aligned.pivot_table(index="arm", columns="epoch", values="cosine", sort=False)
    return table.rename(columns=lambda epoch: f"epoch {epoch}" if epoch else "before training")


def written_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Average what the written rationales say, in percent, by arm."""
    forced = rows[rows["kind"] == "forced"]
    names = {
        "agrees": "names its answer",
        "strays": "names the other option unasked",
        "follows": "names the option it was given",
        "sticks": "still names its own answer",
        "changed": "is another text",
    }
    means = 100 * forced.groupby("arm", sort=False)[list(names)].mean()
    return means.rename(columns=names)


def number_table(numbers: dict[str, dict]) -> pd.DataFrame:
    """List numbers as rows: number, estimate, low, high, seeds, units."""
    rows = [{"number": name} | number for name, number in numbers.items()]
    return pd.DataFrame(rows, columns=["number", "estimate", "low", "high", "seeds", "units"])
