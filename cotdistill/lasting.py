"""Does the gain last? Gaps between continued students as a function of steps, and their half-life.

The students of several arms go on to learn from labels alone, each with a fresh optimiser, on the
same questions in the same order. After each epoch the test questions are asked again. The gap of
an arm at a step is its mean value minus that of label_only, which went on for as many steps.

A gap that fades is described by its half-life: the least-squares fit of g(t) = g0 exp(-k t) has
half-life ln 2 / k. It is unbounded where the gap does not fall (k is 0 or below), and can't be
estimated where there is no gap to begin with: where the first gap's 95 % interval holds 0.

Gaps are taken over all questions, and again over those whose facts training states in rationales
only, where these are known: there the labels that a student goes on with teach nothing of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotdistill.errors import DataError
from cotdistill.inference import (
    VarianceParts,
    confidence_interval,
    contrast_table,
    join_variances,
    split_variance,
)
from cotdistill.measures import gold_probability
from cotdistill.verdicts import MIN_QUESTIONS

BASE = "label_only"
EVERY, TAUGHT = "all questions", "facts in rationales only"  # the parts of the test questions
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

    answers: of one continuation, with arm, seed, id, step, worlds and the measure. With a world per
    seed, the gaps of other worlds' questions are NaN. Raises DataError where the two arms were not
    asked after the same steps, or not the same questions.
    """
    own, base = (answers[answers["arm"] == name] for name in (arm, BASE))
    steps, others = sorted(set(own["step"])), sorted(set(base["step"]))
    if steps != others or not steps:
        raise DataError(
            f"arms {arm} and {BASE}: asked after steps {steps} and {others}; expected the same"
        )
    both = pd.concat([own, base])
    weights, about = {arm: 1.0, BASE: -1.0}, {"worlds": both["worlds"].iloc[0], "column": measure}
    tables = [contrast_table(both[both["step"] == step], weights, **about) for step in steps]
    return np.array(steps, float), np.array([table.to_numpy() for table in tables])


def split_parts(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split answers into the parts that gaps are taken over: EVERY, and TAUGHT where it is known.

    A part of fewer than `MIN_QUESTIONS` questions is left out.
    """
    parts = {EVERY: answers}
    if "stratum" in answers:
        taught = answers[answers["stratum"] == "rationale"]
        if taught["id"].nunique() >= MIN_QUESTIONS:
            parts[TAUGHT] = taught
    return parts


def list_gaps(
    answers: pd.DataFrame, measure: str
) -> Iterator[tuple[dict[str, str], np.ndarray, np.ndarray]]:
    """List what gaps are of (continuation, arm, part), and what `stack_gaps` gives for it.

    There is one for each arm but label_only and each of `split_parts`.
    """
    for part, asked in split_parts(answers).items():
        for (continuation, arm), _ in asked.groupby(["continuation", "arm"], sort=False):
            if arm != BASE:
                rows = asked[asked["continuation"] == continuation]
                about = {"continuation": continuation, "arm": arm, "part": part}
                yield about, *stack_gaps(rows, arm, measure)


def split_gaps(gaps: np.ndarray) -> VarianceParts:
    """Split the variance of gaps [..., seeds, questions], NaN where a question is not the seed's.

    Then each seed has a world of its own, and is the unit.
    """
    return split_variance(gaps, nested=bool(np.isnan(gaps).any()))


def estimate_gaps(answers: pd.DataFrame, measure: str = "p_gold") -> pd.DataFrame:
    """Estimate each arm's gap to label_only after each epoch of each continuation.

    Columns: continuation, arm, part, step, estimate, low, high (95 %, over seeds and questions;
    over worlds with one per seed; over questions alone with one seed), seeds, questions. Gaps are
    fractions: 0.02 is two points.
    """
    rows = []
    for about, steps, gaps in list_gaps(answers, measure):
        parts = split_gaps(gaps)
        effect = join_variances(parts)
        low, high = confidence_interval(effect)
        for number, step in enumerate(steps):
            found = {
                "step": int(step),
                "estimate": float(effect.estimate[number]),
                "low": float(low[number]),
                "high": float(high[number]),
                "seeds": gaps.shape[1],
                "questions": parts.questions,
            }
            rows.append(about | found)
    ends = ["step", "estimate", "low", "high", "seeds", "questions"]
    return pd.DataFrame(rows, columns=["continuation", "arm", "part", *ends])


def gap_lines(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `estimate_gaps` as `plots.interval_lines` draws them, in points."""
    values = {
        name: 100 * gaps[column]
        for name, column in (("value", "estimate"), ("low", "low"), ("high", "high"))
    }
    part = gaps["part"].map({EVERY: "", TAUGHT: f", {TAUGHT}"})
    lines = gaps["arm"] + " → " + gaps["continuation"] + part
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
    Gaps are NaN where a question is of another seed's world: each seed then draws among its own.
    """
    first = join_variances(split_gaps(gaps[0]))
    low, high = (float(end) for end in confidence_interval(first))
    start = (float(first.estimate), low, high)
    if low <= 0 <= high:
        return HalfLife("no gap", np.nan, np.nan, np.nan, *start, first.covers)
    rate = float(fit_decay(steps, np.nanmean(gaps, 2).mean(1)))
    own = own_gaps(gaps)
    drawn = np.stack([draw_means(gaps, own, rng) for _ in range(n_boot)])
    slow, fast = np.percentile(fit_decay(steps, drawn), [2.5, 97.5])
    least = 1e-6 / steps[-1]  # a gap that stays as it is has a rate of 0 but for rounding
    times = [np.log(2) / k if k > least else np.inf for k in (rate, fast, slow)]
    state = "fades" if rate > least else "does not fall"
    return HalfLife(state, *map(float, times), *start, first.covers)


def own_gaps(gaps: np.ndarray) -> list[np.ndarray]:
    """List each seed's gaps [T, questions] to its own questions; empty where seeds share them."""
    if not np.isnan(gaps).any():
        return []
    return [seed[:, ~np.isnan(seed[0])] for seed in gaps.swapaxes(0, 1)]


def draw_means(gaps: np.ndarray, own: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw seeds and questions with replacement from gaps [T, seeds, questions]; return means [T].

    own: of `own_gaps`. Where seeds have questions of their own, each drawn seed draws among them,
    and the mean is that of the seeds' means.
    """
    _, seeds, questions = gaps.shape
    chosen = rng.integers(seeds, size=seeds)
    if not own:
        return gaps[:, chosen].mean(1)[:, rng.integers(questions, size=questions)].mean(1)
    tables = [own[seed] for seed in chosen]
    drawn = [table[:, rng.integers(table.shape[1], size=table.shape[1])] for table in tables]
    return np.mean([table.mean(1) for table in drawn], axis=0)


def half_life_table(
    answers: pd.DataFrame, measure: str, rng: np.random.Generator, n_boot: int = 1000
) -> pd.DataFrame:
    """Estimate the half-life of each arm's gap in each continuation.

    Columns: continuation, arm, part, the fields of `HalfLife`, reach (the last step) and seeds.
    """
    rows = []
    for about, steps, gaps in list_gaps(answers, measure):
        found = half_life(steps, gaps, rng, n_boot)
        rows.append(about | vars(found) | {"reach": int(steps[-1]), "seeds": gaps.shape[1]})
    columns = ["continuation", "arm", "part", *HalfLife.__dataclass_fields__, "reach", "seeds"]
    return pd.DataFrame(rows, columns=columns)
