"""Turn predictions into estimates: how large an effect is, and how surely it is known.

A run answers the same test questions with one seed, so a measure is a table of seeds x questions,
and two things would differ in a repetition: the seeds and the questions. Every estimate here is a
mean over that table, with both resampled (`two_level_bootstrap`): the questions once for all
seeds, because seeds share them. How the two are joined decides whether the answer can be trusted
with three seeds; the choice made, and its measured false-positive rates, are in
`two_level_bootstrap`.

Effects are fractions (0.02 is two points) of accuracy; `correct_per_100_tokens` is in right
answers per 100 tokens.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as sps
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from cotdistill.errors import DataError

MEASURES = ("correct_choice", "correct_generated", "correct_per_100_tokens")
# Fewer seeds give no verdict: their spread is unknown (1) or hardly known (2)
MIN_SEEDS = 3
# The seed of an arm that is not trained (zero_shot): one run, compared with every seed
SHARED_SEED = -1
MEASURED_BY = {
    "correct_choice": "",
    "correct_generated": " (answers as written)",
    "correct_per_100_tokens": " (right answers per 100 tokens)",
}


def seed_table(
    predictions: pd.DataFrame, arm: str, measure: str = "correct_choice"
) -> pd.DataFrame:
    """Return one arm's measure as a table of seeds x questions.

    A row per seed, a column per question id (both sorted), values as float.

    `correct_per_100_tokens` is a ratio of two means, R = 100 sum(correct) / sum(tokens); it enters
    as its linearised values R + (100 correct - R tokens) / mean(tokens), whose mean is R and whose
    spread is R's (delta method). Raises DataError for an unknown arm or measure, a repeated or
    missing (seed, id), and a missing value.
    """
    if measure not in MEASURES:
        raise DataError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}")
    rows = predictions[predictions["arm"] == arm]
    if rows.empty:
        raise DataError(
            f"no predictions of arm '{arm}'; measured are "
            f"{', '.join(sorted(set(predictions['arm'])))}"
        )
    for column in ("study", "dataset", "student"):
        if column in rows and rows[column].nunique() > 1:
            raise DataError(
                f"arm '{arm}': predictions of several values of {column} "
                f"({', '.join(map(str, rows[column].unique()))}); expected one study at a time"
            )
    twice = rows[rows.duplicated(["seed", "id"])]
    if len(twice):
        raise DataError(
            f"arm '{arm}', seed {twice['seed'].iloc[0]}: question {twice['id'].iloc[0]} is "
            f"predicted more than once ({len(twice)} such rows); expected one row per seed and "
            "question"
        )

    def table(column):
        wide = rows.pivot(index="seed", columns="id", values=column).sort_index().sort_index(axis=1)
        holes = wide.isna().to_numpy()
        if holes.any():
            seed, question = np.argwhere(holes)[0]
            raise DataError(
                f"arm '{arm}', seed {wide.index[seed]}: no {column} for {holes.sum()} of "
                f"{holes.size} questions (first: {wide.columns[question]}); expected all seeds on "
                "the same questions"
            )
        return wide.astype(float)

    if measure != "correct_per_100_tokens":
        return table(measure)
    correct, tokens = table("correct_generated"), table("tokens_generated")
    mean_tokens = tokens.to_numpy().mean()
    if mean_tokens == 0:
        raise DataError(
            f"arm '{arm}': tokens_generated is 0 everywhere; expected the number of "
            "generated tokens"
        )
    ratio = 100 * correct.to_numpy().mean() / mean_tokens
    return ratio + (100 * correct - ratio * tokens) / mean_tokens


def contrast_table(
    predictions: pd.DataFrame, weights: dict[str, float], measure: str
) -> pd.DataFrame:
    """Return a weighted sum of arms, per seed and question.

    {"a": 1, "b": -1} is the paired difference a - b. Seeds that all arms have are used; an
    untrained arm (its only seed is -1) is compared with every seed. Raises DataError where the arms
    do not share their questions, with how many ids differ, or share no seed.
    """
    tables = {arm: seed_table(predictions, arm, measure) for arm in weights}
    (first, base), *others = tables.items()
    for arm, table in others:
        only_first, only_arm = (
            base.columns.difference(table.columns),
            table.columns.difference(base.columns),
        )
        if len(only_first) or len(only_arm):
            raise DataError(
                f"arms '{first}' and '{arm}' do not share their test questions: {len(only_first)} "
                f"ids only in '{first}', {len(only_arm)} only in '{arm}' (first: "
                f"{[*only_first, *only_arm][0]}); expected the same ids in both"
            )
    trained = [set(table.index) for table in tables.values() if list(table.index) != [SHARED_SEED]]
    seeds = sorted(set.intersection(*trained)) if trained else [SHARED_SEED]
    if not seeds:
        raise DataError(
            f"arms {', '.join(weights)} have no seed in common; expected runs with the same seeds"
        )
    return sum(
        weights[arm]
        * (
            table.loc[seeds]
            if list(table.index) != [SHARED_SEED]
            else pd.DataFrame(np.repeat(table.to_numpy(), len(seeds), axis=0), seeds, table.columns)
        )
        for arm, table in tables.items()
    )


class TwoLevel(NamedTuple):
    """Hold a mean over seeds x questions and its two bootstrap standard errors.

    They are arrays where tables were batched.
    """

    estimate: np.ndarray
    se_seeds: np.ndarray
    se_questions: np.ndarray  # beyond noise, which the seeds' part holds
    se_alone: np.ndarray  # of the questions with their noise, as if the seeds were given
    seeds: int
    questions: int


def mean_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean squares of seeds, of questions and of the rest, of tables (..., S, N).

    The two-way ANOVA without repetition. Their expectations are N vs + ve, S vq + ve and ve for
    variances of seeds vs, questions vq and noise ve. With one seed the first and the last are NaN
    and the second is the variance of the questions.
    """
    seeds, questions = values.shape[-2:]
    by_seed, by_question = values.mean(-1), values.mean(-2)
    of_questions = seeds * by_question.var(-1, ddof=1)
    if seeds == 1:
        return (
            np.full(of_questions.shape, np.nan),
            of_questions,
            np.full(of_questions.shape, np.nan),
        )
    of_seeds = questions * by_seed.var(-1, ddof=1)
    total = ((values - values.mean((-2, -1), keepdims=True)) ** 2).sum((-2, -1))
    rest = total - (seeds - 1) * of_seeds - (questions - 1) * of_questions
    return of_seeds, of_questions, np.maximum(rest, 0) / ((seeds - 1) * (questions - 1))


def two_level_bootstrap(
    values: np.ndarray,
    rng: np.random.Generator,
    n_boot: int = 2000,
    guard: tuple[float, ...] = (1.0, -1.0),
) -> TwoLevel:
    """Bootstrap tables (..., S seeds, N questions) over seeds and over questions.

    Resampling rows and columns at once (the pigeonhole bootstrap, Owen 2007,
    doi:10.1214/07-AOAS122) counts the noise of single answers three times, and its percentiles are
    far too narrow for 3 seeds. So the levels are resampled separately: seed means (they hold the
    noise once; spread scaled by S/(S-1)), and question means shrunk to what they vary beyond noise
    (Davison and Hinkley 1997, 3.8). `half_width` joins the two, each with its own t quantile.
    Measured on 10,000 null tables each of 3, 5 and 10 seeds, 500 questions, six mixes of variances,
    n_boot 500: false positives 0.014 to 0.054 at alpha 0.05 (each known to 0.002); a Satterthwaite
    t reached 0.073 with 3 seeds, hence not used.

    `guard`: made-up questions added to the question means, so that no interval has zero width
    because nothing happened to differ: one win and one loss for differences (Bonett and Price 2012,
    doi:10.3102/1076998611411915), two of each for accuracies (Agresti and Coull 1998). With one
    seed only questions are resampled: the seeds' part is 0, unknown.

    `rng` is read, not advanced: tables of one size meet the same resamples, so an arm or a contrast
    has the same interval in every notebook, whatever was computed before it.
    """
    values, rng = np.asarray(values, float), deepcopy(rng)
    seeds, questions = values.shape[-2:]
    if questions < 2:
        raise DataError(f"{questions} test question(s); expected at least 2")
    by_seed, by_question = values.mean(-1), values.mean(-2)
    added = np.broadcast_to(np.asarray(guard, float), (*by_question.shape[:-1], len(guard)))
    by_question = np.concatenate([by_question, added], -1)
    size = by_question.shape[-1]
    counts = rng.multinomial(size, np.full(size, 1 / size), size=n_boot).astype(float)
    se_alone = (by_question @ counts.T / size).std(-1)
    if seeds == 1:
        return TwoLevel(
            values.mean((-2, -1)), np.zeros_like(se_alone), se_alone, se_alone, 1, questions
        )
    noise = mean_squares(values)[2]
    spread = seeds * by_question.var(-1, ddof=1)
    se_questions = se_alone * np.sqrt(
        np.maximum(1 - noise / np.where(spread > 0, spread, np.inf), 0)
    )
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n_boot).astype(float)
    se_seeds = (by_seed @ counts.T / seeds).std(-1) * np.sqrt(seeds / (seeds - 1))
    return TwoLevel(values.mean((-2, -1)), se_seeds, se_questions, se_alone, seeds, questions)


def half_width(level: TwoLevel, alpha: float = 0.05) -> np.ndarray:
    """Return half the width of the 1 - alpha interval.

    The seeds' and the questions' half widths, each with its own t quantile (S - 1 and N - 1 degrees
    of freedom), added as squares; never less than that of the questions alone, with the seeds taken
    as given: a few seeds can agree by luck, and would then hold neither their spread nor the noise.
    """
    t_seeds = sps.t.ppf(1 - np.asarray(alpha) / 2, level.seeds - 1) if level.seeds > 1 else 0.0
    t_questions = sps.t.ppf(1 - np.asarray(alpha) / 2, level.questions - 1)
    return np.maximum(
        np.hypot(t_seeds * level.se_seeds, t_questions * level.se_questions),
        t_questions * level.se_alone,
    )


def p_value(level: TwoLevel, null: float = 0.0) -> np.ndarray:
    """Return the two-sided p: the alpha at which the interval of `half_width` just reaches `null`.

    Found by halving; >= 1e-15. An estimate that is `null` has p = 1, also where nothing varies and
    the interval has no width.
    """
    distance = np.abs(level.estimate - null)
    low, high = np.full(np.shape(distance), -15.0), np.zeros(np.shape(distance))  # log10 of alpha
    for _ in range(40):
        middle = (low + high) / 2
        wide = half_width(level, 10.0**middle) >= distance
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return 10.0**high


def one_sided(level: TwoLevel, null: float, above: bool) -> float:
    """Return the p of "the effect is above (below) null" against its opposite."""
    p = float(p_value(level, null))
    return p / 2 if (level.estimate > null) == above else 1 - p / 2


def accuracy_table(
    predictions: pd.DataFrame,
    measure: str = "correct_choice",
    *,
    rng: np.random.Generator,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Return the accuracy per arm with its 95 % interval, in the order of the input.

    Per study, dataset and student too, where given. Columns: [study, dataset, student,] arm, n
    (questions), seeds, accuracy, low, high, by_seed (each seed's accuracy, for figures), covers
    ("questions and seeds", or "questions" with a single run), parse_failures and cut_off (numbers
    of answers over all seeds), answers (n x seeds), tokens_per_question.
    """
    keys = [k for k in ("study", "dataset", "student") if k in predictions] + ["arm"]
    rows = []
    for key, group in predictions.groupby(keys, sort=False, observed=True, dropna=False):
        table = seed_table(group, key[-1], measure)
        guard = () if measure == "correct_per_100_tokens" else (1.0, 1.0, 0.0, 0.0)
        level = two_level_bootstrap(table.to_numpy(), rng, n_boot, guard)
        half, top = half_width(level), np.inf if measure == "correct_per_100_tokens" else 1.0
        rows.append(
            dict(zip(keys, key, strict=False))
            | dict(
                n=level.questions,
                seeds=level.seeds,
                accuracy=float(level.estimate),
                low=float(max(level.estimate - half, 0)),
                high=float(min(level.estimate + half, top)),
                by_seed=table.mean(axis=1).tolist(),
                covers="questions and seeds" if level.seeds > 1 else "questions",
                parse_failures=int(group["generated"].isna().sum()),
                cut_off=int(group["cut_off"].astype(bool).sum()),
                answers=len(group),
                tokens_per_question=float(group["tokens_generated"].astype(float).mean()),
            )
        )
    return pd.DataFrame(rows)


def accuracy_tables(
    predictions: pd.DataFrame, rng: np.random.Generator, bootstrap: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give accuracies by forced choice and by the written answer, both of `accuracy_table`."""
    forced = accuracy_table(predictions, "correct_choice", rng=rng, n_boot=bootstrap)
    written = accuracy_table(predictions, "correct_generated", rng=rng, n_boot=bootstrap)
    return forced, written


def estimate_contrast(
    table: pd.DataFrame, measure: str, rng: np.random.Generator, n_boot: int
) -> tuple[dict, TwoLevel]:
    """Return the estimate, 95 % interval and p of a contrast table, and the `TwoLevel` behind."""
    level = two_level_bootstrap(
        table.to_numpy(), rng, n_boot, () if measure == "correct_per_100_tokens" else (1.0, -1.0)
    )
    half = half_width(level)
    return dict(
        measure=measure,
        estimate=float(level.estimate),
        low=float(level.estimate - half),
        high=float(level.estimate + half),
        p=float(p_value(level)),
        n=level.questions,
        seeds=level.seeds,
        covers="questions and seeds" if level.seeds > 1 else "questions",
    ), level


def paired_difference(
    predictions: pd.DataFrame,
    arm_a: str,
    arm_b: str,
    measure: str = "correct_choice",
    *,
    rng: np.random.Generator,
    n_boot: int = 2000,
) -> dict:
    """Estimate how much better arm_a is than arm_b on the same questions and seeds.

    Returns a dict: arm_a, arm_b, measure, estimate, low, high (95 %), p (two-sided, bootstrap), n,
    seeds, covers, and second opinions: mcnemar (a DataFrame: seed, only_a, only_b = discordant
    questions, exact p) and p_gee (three or more seeds; else NaN): logistic GEE `correct ~ arm +
    seed` clustered on the question, which takes the seeds as given and so is narrower than p where
    seeds matter. Raises DataError where the arms' questions differ.
    """
    table = contrast_table(predictions, {arm_a: 1.0, arm_b: -1.0}, measure)
    result, _ = estimate_contrast(table, measure, rng, n_boot)
    binary = measure != "correct_per_100_tokens"
    rows = []
    for seed, row in table.iterrows() if binary else ():
        only_a, only_b = int((row > 0).sum()), int((row < 0).sum())
        p = (
            float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
            if only_a + only_b
            else 1.0
        )
        rows.append(dict(seed=seed, only_a=only_a, only_b=only_b, p=p))
    return dict(
        arm_a=arm_a,
        arm_b=arm_b,
        **result,
        mcnemar=pd.DataFrame(rows, columns=["seed", "only_a", "only_b", "p"]),
        p_gee=gee_p(predictions, arm_a, arm_b, measure)
        if binary and len(table) >= 3
        else float("nan"),
    )


def gee_p(predictions: pd.DataFrame, arm_a: str, arm_b: str, measure: str) -> float:
    """Return the p of the arm in a logistic GEE over single answers.

    Clustered on the question, with a term per seed (Liang and Zeger 1986). NaN where the model
    cannot be fitted (an arm always right, always wrong, or never differing).
    """
    parts = []
    seeds = contrast_table(predictions, {arm_a: 1.0, arm_b: -1.0}, measure).index
    for is_a, arm in ((1.0, arm_a), (0.0, arm_b)):
        table = seed_table(predictions, arm, measure)
        if list(table.index) == [SHARED_SEED] != list(seeds):
            table = pd.DataFrame(
                np.repeat(table.to_numpy(), len(seeds), axis=0), seeds, table.columns
            )
        long = (
            table.loc[seeds]
            .rename_axis(index="seed", columns="id")
            .stack()
            .rename("y")
            .reset_index()
        )
        parts.append(long.assign(is_a=is_a))
    long = pd.concat(parts).sort_values("id", kind="stable")
    if (long.groupby("is_a")["y"].nunique() < 2).any():
        return float("nan")
    design = np.column_stack(
        [np.ones(len(long)), long["is_a"], *(long["seed"] == s for s in seeds[1:])]
    ).astype(float)
    try:
        fit = GEE(
            long["y"].to_numpy(),
            design,
            long["id"].to_numpy(),
            family=Binomial(),
            cov_struct=Independence(),
        ).fit()
        return float(fit.pvalues[1])
    except (ValueError, np.linalg.LinAlgError):
        return float("nan")


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p (1979).

    It keeps the chance of any false verdict in a study below alpha. NaN stay NaN.
    """
    p = np.asarray(p, float)
    adjusted, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted


def variance_parts(values: np.ndarray) -> dict[str, float]:
    """Estimate the variances of a contrast table (S, N): `seed`, `question` and `noise`.

    By the mean squares, none below 0. With one seed the three cannot be told apart: seed and noise
    are 0 and `question` holds it all, which is what they would be if every seed gave the same
    answers: a lower bound for the runs that are needed.
    """
    of_seeds, of_questions, noise = (float(x) for x in mean_squares(np.asarray(values, float)))
    seeds, questions = values.shape
    if seeds == 1:
        return dict(seed=0.0, question=of_questions, noise=0.0)
    return dict(
        seed=max(of_seeds - noise, 0) / questions,
        question=max(of_questions - noise, 0) / seeds,
        noise=noise,
    )


@dataclass(frozen=True)
class PowerRule:
    """Hold the rule by which a planned study would be judged.

    rule: "difference", "equivalence" or "noninferiority"; margin: of the last two, a fraction;
    alpha: of the two-sided interval.
    """

    rule: str = "difference"
    margin: float = 0.0
    alpha: float = 0.05


def power(
    variances: dict[str, float],
    seeds: int,
    questions: int,
    effect: float = 0.02,
    *,
    rng: np.random.Generator,
    n_sim: int = 2000,
    **judging,
) -> float:
    """Simulate the chance that a study of this size supports the claim.

    effect: the true contrast; judging: the fields of `PowerRule`. The mean and the three mean
    squares are drawn for normal seeds, questions and noise of the given variances (they are
    independent: a normal and three chi-squares), and judged by the same intervals as the real ones.
    """
    judging = PowerRule(**judging)
    vs, vq, ve = variances["seed"], variances["question"], variances["noise"]
    estimate = rng.normal(
        effect, np.sqrt(vs / seeds + vq / questions + ve / (seeds * questions)), n_sim
    )
    ms_question = (seeds * vq + ve) * rng.chisquare(questions - 1, n_sim) / (questions - 1)
    ms_seed, noise = np.zeros(n_sim), np.zeros(n_sim)
    if seeds > 1:
        ms_seed = (questions * vs + ve) * rng.chisquare(seeds - 1, n_sim) / (seeds - 1)
        free = (seeds - 1) * (questions - 1)
        noise = ve * rng.chisquare(free, n_sim) / free
    level = TwoLevel(
        estimate,
        np.sqrt(ms_seed / (seeds * questions)),
        np.sqrt(np.maximum(ms_question - noise, 0) / (seeds * questions)),
        np.sqrt(ms_question / (seeds * questions)),
        seeds,
        questions,
    )
    if judging.rule == "equivalence":
        reach = np.abs(estimate) + half_width(level, 2 * judging.alpha)
        return float((reach < judging.margin).mean())
    least = -judging.margin if judging.rule == "noninferiority" else 0
    return float((estimate - half_width(level, judging.alpha) > least).mean())


def required_size(
    variances: dict[str, float],
    seeds: int,
    questions: int,
    effect: float = 0.02,
    *,
    rng: np.random.Generator,
    target: float = 0.8,
    most: tuple[int, int] = (100, 100_000),
    **judging,
) -> dict:
    """Find the smallest study with the wanted power.

    Returns `seeds` wanted at the given questions, and `questions` wanted at the given seeds; None
    where `most` (seeds, questions) is not enough (more questions never make up for seeds that
    disagree). target: the power; judging: the fields of `PowerRule`.
    """
    start = int(rng.integers(2**32))  # the same draws for every size: power then grows with it

    def is_enough(size: tuple[int, int]) -> bool:
        draws = np.random.default_rng(start)
        return power(variances, *size, effect, rng=draws, **judging) >= target

    def find_smallest(low: int, high: int, size) -> int | None:
        if not is_enough(size(high)):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if is_enough(size(middle)) else (middle + 1, high)
        return low

    return dict(
        seeds=find_smallest(MIN_SEEDS, most[0], lambda s: (s, questions)),
        questions=find_smallest(10, most[1], lambda n: (seeds, n)),
    )
