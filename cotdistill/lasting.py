"""Does the gain last? Gaps between continued students as a function of steps, and their half-life.

The students of several arms go on to learn from labels alone, each with a fresh optimiser, on the
same questions in the same order. After each epoch the test questions are asked again. The gap of
an arm at a step is its mean value minus that of label_only, which went on for as many steps.

A gap that fades is described by its half-life: the least-squares fit of g(t) = g0 exp(-k t) has
half-life ln 2 / k. It is unbounded where the gap does not fall (k is 0 or below), and can't be
estimated where there is no gap to begin with: where the first gap's 95 % interval holds 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotdistill.errors import DataError
from cotdistill.inference import (
    confidence_interval,
    contrast_table,
    join_variances,
    split_variance,
)
from cotdistill.measures import gold_probability

BASE = "label_only"
# Rates times the last step that the fit looks at. 40: the gap is gone before the first epoch ends
RATES = np.concatenate([np.linspace(-2, 6, 801), np.geomspace(6, 40, 201)[1:]])
STATES = ("fades", "does not fall", "no gap")


def read_answers(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the answers of continued students with the columns p_gold and correct_choice added.

    predictions: rows with scores (log p of each option, nats), gold and choice.
    """
    pairs = zip(predictions["scores"], predictions["gold"], strict=True)
    return predictions.assign(
        p_gold=[gold_probability(scores, int(gold)) for scores, gold in pairs],
        correct_choice=(predictions["choice"] == predictions["gold"]).astype(float),
    )


def stack_gaps(answers: pd.DataFrame, arm: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps [T] and the gaps [T, seeds, questions] of an arm to label_only.

    answers: of one continuation, with arm, seed, id, step and the measure. Raises DataError where
    the two arms were not asked after the same steps, or not the same questions.
    """
    own, base = (answers[answers["arm"] == name] for name in (arm, BASE))
    steps, others = sorted(set(own["step"])), sorted(set(base["step"]))
    if steps != others or not steps:
        raise DataError(
            f"arms {arm} and {BASE}: asked after steps {steps} and {others}; expected the same"
        )
    both = pd.concat([own, base])
    tables = [
        contrast_table(both[both["step"] == step], {arm: 1.0, BASE: -1.0}, column=measure)
        for step in steps
    ]
    return np.array(steps, float), np.array([table.to_numpy() for table in tables])


def list_gaps(
    answers: pd.DataFrame, measure: str
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """List continuation, arm, and what `stack_gaps` gives, for each arm but label_only."""
    for (continuation, arm), _ in answers.groupby(["continuation", "arm"], sort=False):
        if arm != BASE:
            part = answers[answers["continuation"] == continuation]
            yield continuation, arm, *stack_gaps(part, arm, measure)


def estimate_gaps(answers: pd.DataFrame, measure: str = "p_gold") -> pd.DataFrame:
    """Estimate each arm's gap to label_only after each epoch of each continuation.

    Columns: continuation, arm, step, estimate, low, high (95 %, over seeds and questions; over
    questions alone with one seed), seeds, questions. Gaps are fractions: 0.02 is two points.
    """
    rows = []
    for continuation, arm, steps, gaps in list_gaps(answers, measure):
        effect = join_variances(split_variance(gaps))
        low, high = confidence_interval(effect)
        for number, step in enumerate(steps):
            rows.append(
                {
                    "continuation": continuation,
                    "arm": arm,
                    "step": int(step),
                    "estimate": float(effect.estimate[number]),
                    "low": float(low[number]),
                    "high": float(high[number]),
                    "seeds": gaps.shape[1],
                    "questions": gaps.shape[2],
                }
            )
    columns = ["continuation", "arm", "step", "estimate", "low", "high", "seeds", "questions"]
    return pd.DataFrame(rows, columns=columns)


def gap_lines(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `estimate_gaps` as `plots.interval_lines` draws them, in points."""
    values = {
        name: 100 * gaps[column]
        for name, column in (("value", "estimate"), ("low", "low"), ("high", "high"))
    }
    lines = gaps["arm"] + " → " + gaps["continuation"]
    return pd.DataFrame({"line": lines, "x": gaps["step"], **values})


def level_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Average p(gold) and accuracy over seeds and questions, by continuation, arm and step."""
    by = answers.groupby(["continuation", "arm", "step"], sort=False)
    return by[["p_gold", "correct_choice"]].mean().reset_index()


def fit_decay(steps: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Fit g(t) = g0 exp(-k t) by least squares; returns the rates k per step [...].

    steps [T] from 0 on, gaps [..., T]. For a given k the best g0 has a closed form, so k alone is
    searched: on RATES, then by a parabola through the best of them and its neighbours. Rates are
    held between -2 and 40 over the last step. Raises DataError for fewer than two steps.
    """
    if len(steps) < 2:
        raise DataError(f"{len(steps)} step(s); expected at least 2, to see a gap change")
    reach = float(steps[-1])
    curves = np.exp(-np.outer(RATES, steps / reach))
    norms = (curves**2).sum(1)
    explained = (gaps @ curves.T) ** 2 / norms
    best = explained.argmax(-1)
    inside = best.clip(1, len(RATES) - 2)
    left, middle, right = (
        np.take_along_axis(explained, (inside + shift)[..., None], -1)[..., 0]
        for shift in (-1, 0, 1)
    )
    x0, x1, x2 = (RATES[inside + shift] for shift in (-1, 0, 1))
    over = (x1 - x0) ** 2 * (middle - right) - (x1 - x2) ** 2 * (middle - left)
    under = (x1 - x0) * (middle - right) - (x1 - x2) * (middle - left)
    with np.errstate(invalid="ignore", divide="ignore"):
        peak = x1 - over / (2 * under)
    peak = np.where(np.isfinite(peak), np.clip(peak, x0, x2), x1)
    return np.where(best == inside, peak, RATES[best]) / reach


@dataclass(frozen=True)
class HalfLife:
    """Hold how long a gap lasts, in steps.

    state: one of STATES. estimate, low, high: half-life with its 95 % interval; inf: unbounded,
    NaN: not estimable. start, start_low, start_high: the gap before the continuation, a fraction.
    covers: what a repetition may change.
    """

    state: str
    estimate: float
    low: float
    high: float
    start: float
    start_low: float
    start_high: float
    covers: str


def half_life(
    steps: np.ndarray, gaps: np.ndarray, rng: np.random.Generator, n_boot: int = 1000
) -> HalfLife:
    """Estimate the half-life of gaps [T, seeds, questions], in steps.

    The interval is that of the rate k over draws of seeds and of questions (percentiles); a draw
    whose gap does not fall has an unbounded half-life. With one seed questions alone are drawn.
    """
    count, seeds, questions = gaps.shape
    first = join_variances(split_variance(gaps[0]))
    low, high = (float(end) for end in confidence_interval(first))
    start = (float(first.estimate), low, high)
    if low <= 0 <= high:
        return HalfLife("no gap", np.nan, np.nan, np.nan, *start, first.covers)
    rate = float(fit_decay(steps, gaps.mean((1, 2))))
    drawn = np.empty((n_boot, count))
    for draw in range(n_boot):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(questions, size=questions)
        drawn[draw] = gaps[:, rows].mean(1)[:, columns].mean(1)
    slow, fast = np.percentile(fit_decay(steps, drawn), [2.5, 97.5])
    least = 1e-6 / steps[-1]  # a gap that stays as it is has a rate of 0 but for rounding
    times = [np.log(2) / k if k > least else np.inf for k in (rate, fast, slow)]
    state = "fades" if rate > least else "does not fall"
    return HalfLife(state, *map(float, times), *start, first.covers)


def half_life_table(
    answers: pd.DataFrame, measure: str, rng: np.random.Generator, n_boot: int = 1000
) -> pd.DataFrame:
    """Estimate the half-life of each arm's gap in each continuation.

    Columns: continuation, arm, the fields of `HalfLife`, reach (the last step) and seeds.
    """
    rows = []
    for continuation, arm, steps, gaps in list_gaps(answers, measure):
        found = half_life(steps, gaps, rng, n_boot)
        about = {"continuation": continuation, "arm": arm}
        rows.append(about | vars(found) | {"reach": int(steps[-1]), "seeds": gaps.shape[1]})
    columns = ["continuation", "arm", *HalfLife.__dataclass_fields__, "reach", "seeds"]
    return pd.DataFrame(rows, columns=columns)
