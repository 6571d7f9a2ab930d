"""From predictions to verdicts: what the data say about each claim, and no more than they say.

A run answers the same test questions with one seed, so a measure is a table of seeds x questions, and two things would
differ in a repetition: the seeds and the questions. Every estimate here is a mean over that table, with both resampled
(`two_level`): the questions once for all seeds, because seeds share them. How the two are joined decides whether the
answer can be trusted with three seeds; the choice made, and its measured false-positive rates, are in `two_level`.

Effects are fractions (0.02 is two points) of accuracy; `correct_per_100_tokens` is in right answers per 100 tokens.
"""

import re
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats as sps
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from cotdistill.data import DataError

MEASURES = ("correct_choice", "correct_generated", "correct_per_100_tokens")
RULES = {"difference": ("greater", "less"), "interaction": ("greater", "less"),
         "equivalence": ("equal",), "noninferiority": ("not_less",)}
MIN_SEEDS = 3          # fewer seeds give no verdict: their spread is unknown (1) or hardly known (2)
MAX_AS_INTACT = 0.2  # above this share of equal training texts, two arms are not shown to be equivalent: they could hardly differ
SHARED_SEED = -1       # the seed of an arm that is not trained (zero_shot): one run, compared with every seed
MEASURED_BY = {"correct_choice": "", "correct_generated": " (answers as written)", "correct_per_100_tokens": " (right answers per 100 tokens)"}


# --- tables of seeds x questions --------------------------------------------------------------------------------------

def seed_table(predictions: pd.DataFrame, arm: str, measure: str = "correct_choice") -> pd.DataFrame:
    """One arm's measure as a table: a row per seed, a column per question id (both sorted), values as float.

    `correct_per_100_tokens` is a ratio of two means, R = 100 sum(correct) / sum(tokens); it enters as its linearised
    values R + (100 correct - R tokens) / mean(tokens), whose mean is R and whose spread is R's (delta method).
    Raises DataError for an unknown arm or measure, a repeated or missing (seed, id), and a missing value.
    """
    if measure not in MEASURES:
        raise DataError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}")
    rows = predictions[predictions["arm"] == arm]
    if rows.empty:
        raise DataError(f"no predictions of arm '{arm}'; measured are {', '.join(sorted(set(predictions['arm'])))}")
    for column in ("study", "dataset", "student"):
        if column in rows and rows[column].nunique() > 1:
            raise DataError(f"arm '{arm}': predictions of several values of {column} "
                            f"({', '.join(map(str, rows[column].unique()))}); expected one study at a time")
    twice = rows[rows.duplicated(["seed", "id"])]
    if len(twice):
        raise DataError(f"arm '{arm}', seed {twice['seed'].iloc[0]}: question {twice['id'].iloc[0]} is predicted "
                        f"more than once ({len(twice)} such rows); expected one row per seed and question")

    def table(column):
        wide = rows.pivot(index="seed", columns="id", values=column).sort_index().sort_index(axis=1)
        holes = wide.isna().to_numpy()
        if holes.any():
            seed, question = np.argwhere(holes)[0]
            raise DataError(f"arm '{arm}', seed {wide.index[seed]}: no {column} for {holes.sum()} of {holes.size} "
                            f"questions (first: {wide.columns[question]}); expected all seeds on the same questions")
        return wide.astype(float)

    if measure != "correct_per_100_tokens":
        return table(measure)
    correct, tokens = table("correct_generated"), table("tokens_generated")
    mean_tokens = tokens.to_numpy().mean()
    if mean_tokens == 0:
        raise DataError(f"arm '{arm}': tokens_generated is 0 everywhere; expected the number of generated tokens")
    ratio = 100 * correct.to_numpy().mean() / mean_tokens
    return ratio + (100 * correct - ratio * tokens) / mean_tokens


def contrast_table(predictions: pd.DataFrame, weights: dict[str, float], measure: str) -> pd.DataFrame:
    """A weighted sum of arms, per seed and question: {"a": 1, "b": -1} is the paired difference a - b.

    Seeds that all arms have are used; an untrained arm (its only seed is -1) is compared with every seed.
    Raises DataError where the arms do not share their questions, with how many ids differ, or share no seed.
    """
    tables = {arm: seed_table(predictions, arm, measure) for arm in weights}
    (first, base), *others = tables.items()
    for arm, table in others:
        only_first, only_arm = base.columns.difference(table.columns), table.columns.difference(base.columns)
        if len(only_first) or len(only_arm):
            raise DataError(f"arms '{first}' and '{arm}' do not share their test questions: {len(only_first)} ids only "
                            f"in '{first}', {len(only_arm)} only in '{arm}' "
                            f"(first: {[*only_first, *only_arm][0]}); expected the same ids in both")
    trained = [set(table.index) for table in tables.values() if list(table.index) != [SHARED_SEED]]
    seeds = sorted(set.intersection(*trained)) if trained else [SHARED_SEED]
    if not seeds:
        raise DataError(f"arms {', '.join(weights)} have no seed in common; expected runs with the same seeds")
    return sum(weights[arm] * (table.loc[seeds] if list(table.index) != [SHARED_SEED] else
                               pd.DataFrame(np.repeat(table.to_numpy(), len(seeds), axis=0), seeds, table.columns))
               for arm, table in tables.items())


# --- the two-level bootstrap ------------------------------------------------------------------------------------------

class TwoLevel(NamedTuple):
    """A mean over seeds x questions and the two bootstrap standard errors of it (arrays where tables were batched)."""
    estimate: np.ndarray
    se_seeds: np.ndarray
    se_questions: np.ndarray      # beyond noise, which the seeds' part holds
    se_alone: np.ndarray          # of the questions with their noise, as if the seeds were given
    seeds: int
    questions: int


def mean_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squares of seeds, questions and what is left, of tables (..., S, N): the two-way ANOVA without repetition.

    Their expectations are N vs + ve, S vq + ve and ve for variances of seeds vs, questions vq and noise ve. With one
    seed the first and the last are NaN and the second is the variance of the questions.
    """
    seeds, questions = values.shape[-2:]
    by_seed, by_question = values.mean(-1), values.mean(-2)
    of_questions = seeds * by_question.var(-1, ddof=1)
    if seeds == 1:
        return np.full(of_questions.shape, np.nan), of_questions, np.full(of_questions.shape, np.nan)
    of_seeds = questions * by_seed.var(-1, ddof=1)
    total = ((values - values.mean((-2, -1), keepdims=True)) ** 2).sum((-2, -1))
    rest = total - (seeds - 1) * of_seeds - (questions - 1) * of_questions
    return of_seeds, of_questions, np.maximum(rest, 0) / ((seeds - 1) * (questions - 1))


def two_level(values: np.ndarray, rng: np.random.Generator, n_boot: int = 2000,
              guard: tuple[float, ...] = (1.0, -1.0)) -> TwoLevel:
    """Bootstrap tables (..., S seeds, N questions) over seeds and over questions.

    Resampling rows and columns at once (the pigeonhole bootstrap, Owen 2007, doi:10.1214/07-AOAS122) counts the noise
    of single answers three times, and its percentiles are far too narrow for 3 seeds. So the levels are resampled
    separately: seed means (they hold the noise once; spread scaled by S/(S-1)), and question means shrunk to what they
    vary beyond noise (Davison and Hinkley 1997, 3.8). `half_width` joins the two, each with its own t quantile.
    Measured on 10,000 null tables each of 3, 5 and 10 seeds, 500 questions, six mixes of variances, n_boot 500: false
    positives 0.014 to 0.054 at alpha 0.05 (each known to 0.002); a Satterthwaite t reached 0.073 with 3 seeds, hence not used.

    `guard`: made-up questions added to the question means, so that no interval has zero width because nothing happened
    to differ: one win and one loss for differences (Bonett and Price 2012, doi:10.3102/1076998611411915), two of each
    for accuracies (Agresti and Coull 1998). With one seed only questions are resampled: the seeds' part is 0, unknown.

    `rng` is read, not advanced: tables of one size meet the same resamples, so an arm or a contrast has the same interval
    in every notebook, whatever was computed before it.
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
        return TwoLevel(values.mean((-2, -1)), np.zeros_like(se_alone), se_alone, se_alone, 1, questions)
    noise = mean_squares(values)[2]
    spread = seeds * by_question.var(-1, ddof=1)
    se_questions = se_alone * np.sqrt(np.maximum(1 - noise / np.where(spread > 0, spread, np.inf), 0))
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n_boot).astype(float)
    se_seeds = (by_seed @ counts.T / seeds).std(-1) * np.sqrt(seeds / (seeds - 1))
    return TwoLevel(values.mean((-2, -1)), se_seeds, se_questions, se_alone, seeds, questions)


def half_width(level: TwoLevel, alpha: float = 0.05) -> np.ndarray:
    """Half the width of the 1 - alpha interval: the seeds' and the questions' half widths, each with its own t
    quantile (S - 1 and N - 1 degrees of freedom), added as squares; never less than that of the questions alone, with the seeds
    taken as given: a few seeds can agree by luck, and would then hold neither their spread nor the noise."""
    t_seeds = sps.t.ppf(1 - np.asarray(alpha) / 2, level.seeds - 1) if level.seeds > 1 else 0.0
    t_questions = sps.t.ppf(1 - np.asarray(alpha) / 2, level.questions - 1)
    return np.maximum(np.hypot(t_seeds * level.se_seeds, t_questions * level.se_questions), t_questions * level.se_alone)


def p_value(level: TwoLevel, null: float = 0.0) -> np.ndarray:
    """Two-sided p: the alpha at which the interval of `half_width` just reaches `null` (found by halving; >= 1e-15). An estimate
    that is `null` has p = 1, also where nothing varies and the interval has no width."""
    distance = np.abs(level.estimate - null)
    low, high = np.full(np.shape(distance), -15.0), np.zeros(np.shape(distance))    # log10 of alpha
    for _ in range(40):
        middle = (low + high) / 2
        wide = half_width(level, 10.0 ** middle) >= distance
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return 10.0 ** high


def one_sided(level: TwoLevel, null: float, above: bool) -> float:
    """p of "the effect is above (below) null" against its opposite."""
    p = float(p_value(level, null))
    return p / 2 if (level.estimate > null) == above else 1 - p / 2


# --- what is asked of the tables --------------------------------------------------------------------------------------

def accuracy_table(predictions: pd.DataFrame, measure: str = "correct_choice", *, rng: np.random.Generator,
                   n_boot: int = 2000) -> pd.DataFrame:
    """Accuracy per arm (and study, dataset, student where given) with its 95 % interval, in the order of the input.

    Columns: [study, dataset, student,] arm, n (questions), seeds, accuracy, low, high, covers ("questions and seeds",
    or "questions" with a single run), parse_failures and cut_off (numbers of answers over all seeds), answers (n x
    seeds), tokens_per_question.
    """
    keys = [k for k in ("study", "dataset", "student") if k in predictions] + ["arm"]
    rows = []
    for key, group in predictions.groupby(keys, sort=False, observed=True, dropna=False):
        table = seed_table(group, key[-1], measure)
        guard = () if measure == "correct_per_100_tokens" else (1.0, 1.0, 0.0, 0.0)
        level = two_level(table.to_numpy(), rng, n_boot, guard)
        half, top = half_width(level), np.inf if measure == "correct_per_100_tokens" else 1.0
        rows.append(dict(zip(keys, key)) | dict(
            n=level.questions, seeds=level.seeds, accuracy=float(level.estimate),
            low=float(max(level.estimate - half, 0)), high=float(min(level.estimate + half, top)),
            covers="questions and seeds" if level.seeds > 1 else "questions",
            parse_failures=int(group["generated"].isna().sum()), cut_off=int(group["cut_off"].astype(bool).sum()),
            answers=len(group), tokens_per_question=float(group["tokens_generated"].astype(float).mean())))
    return pd.DataFrame(rows)


def _result(table: pd.DataFrame, measure: str, rng: np.random.Generator, n_boot: int) -> tuple[dict, TwoLevel]:
    """Estimate, 95 % interval and p of a contrast table, and the two-level estimate behind them."""
    level = two_level(table.to_numpy(), rng, n_boot, () if measure == "correct_per_100_tokens" else (1.0, -1.0))
    half = half_width(level)
    return dict(measure=measure, estimate=float(level.estimate), low=float(level.estimate - half),
                high=float(level.estimate + half), p=float(p_value(level)), n=level.questions, seeds=level.seeds,
                covers="questions and seeds" if level.seeds > 1 else "questions"), level


def paired_difference(predictions: pd.DataFrame, arm_a: str, arm_b: str, measure: str = "correct_choice", *,
                      rng: np.random.Generator, n_boot: int = 2000) -> dict:
    """How much better arm_a is than arm_b on the same questions and seeds.

    Returns a dict: arm_a, arm_b, measure, estimate, low, high (95 %), p (two-sided, bootstrap), n, seeds, covers, and
    second opinions: mcnemar (a DataFrame: seed, only_a, only_b = discordant questions, exact p) and p_gee (three or
    more seeds; else NaN): logistic GEE `correct ~ arm + seed` clustered on the question, which takes the seeds as
    given and so is narrower than p where seeds matter. Raises DataError where the arms' questions differ.
    """
    table = contrast_table(predictions, {arm_a: 1.0, arm_b: -1.0}, measure)
    result, _ = _result(table, measure, rng, n_boot)
    binary = measure != "correct_per_100_tokens"
    rows = []
    for seed, row in table.iterrows() if binary else ():
        only_a, only_b = int((row > 0).sum()), int((row < 0).sum())
        p = float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue) if only_a + only_b else 1.0
        rows.append(dict(seed=seed, only_a=only_a, only_b=only_b, p=p))
    return dict(arm_a=arm_a, arm_b=arm_b, **result,
                mcnemar=pd.DataFrame(rows, columns=["seed", "only_a", "only_b", "p"]),
                p_gee=gee_p(predictions, arm_a, arm_b, measure) if binary and len(table) >= 3 else float("nan"))


def gee_p(predictions: pd.DataFrame, arm_a: str, arm_b: str, measure: str) -> float:
    """p of the arm in a logistic GEE over single answers, clustered on the question, with a term per seed.

    Liang and Zeger 1986; NaN where the model cannot be fitted (an arm always right, always wrong, or never differing).
    """
    parts = []
    seeds = contrast_table(predictions, {arm_a: 1.0, arm_b: -1.0}, measure).index
    for is_a, arm in ((1.0, arm_a), (0.0, arm_b)):
        table = seed_table(predictions, arm, measure)
        if list(table.index) == [SHARED_SEED] != list(seeds):
            table = pd.DataFrame(np.repeat(table.to_numpy(), len(seeds), axis=0), seeds, table.columns)
        long = table.loc[seeds].rename_axis(index="seed", columns="id").stack().rename("y").reset_index()
        parts.append(long.assign(is_a=is_a))
    long = pd.concat(parts).sort_values("id", kind="stable")
    if (long.groupby("is_a")["y"].nunique() < 2).any():
        return float("nan")
    design = np.column_stack([np.ones(len(long)), long["is_a"], *(long["seed"] == s for s in seeds[1:])]).astype(float)
    try:
        fit = GEE(long["y"].to_numpy(), design, long["id"].to_numpy(), family=Binomial(),
                  cov_struct=Independence()).fit()
        return float(fit.pvalues[1])
    except (ValueError, np.linalg.LinAlgError):
        return float("nan")


def equivalence_test(predictions: pd.DataFrame, arm_a: str, arm_b: str, measure: str = "correct_choice", *,
                     margin: float = 0.02, rng: np.random.Generator, n_boot: int = 2000) -> dict:
    """Two one-sided tests (TOST, Schuirmann 1987): is the difference shown to be smaller than the margin?

    The same two-level standard errors and t quantiles as `paired_difference`, at -margin and +margin. Returns its
    entries with p the larger of the two one-sided p, margin, and low_90, high_90: equivalence at 5 % is the 90 %
    interval lying inside the margin.
    """
    result, level = _result(contrast_table(predictions, {arm_a: 1.0, arm_b: -1.0}, measure), measure, rng, n_boot)
    p = max(one_sided(level, -margin, True), one_sided(level, margin, False))
    half = half_width(level, 0.10)
    return dict(arm_a=arm_a, arm_b=arm_b, **result | dict(p=p), margin=margin,
                low_90=float(level.estimate - half), high_90=float(level.estimate + half))


def interaction(predictions: pd.DataFrame, arm_a: str, arm_b: str, arm_c: str, arm_d: str,
                measure: str = "correct_choice", *, rng: np.random.Generator, n_boot: int = 2000) -> dict:
    """Difference of differences (a - b) - (c - d) on the same questions and seeds: estimate, low, high, p, n, seeds."""
    weights = {arm_a: 1.0, arm_b: -1.0, arm_c: -1.0, arm_d: 1.0}
    if len(weights) < 4:
        raise DataError(f"interaction of {arm_a}, {arm_b}, {arm_c}, {arm_d}: expected four different arms")
    result, _ = _result(contrast_table(predictions, weights, measure), measure, rng, n_boot)
    return dict(contrast=f"({arm_a} − {arm_b}) − ({arm_c} − {arm_d})", **result)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p (1979), so that the chance of any false verdict in a study stays below alpha. NaN stay NaN."""
    p = np.asarray(p, float)
    adjusted, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        adjusted[known] = multipletests(p[known], method="holm")[1]
    return adjusted


# --- power ------------------------------------------------------------------------------------------------------------

def variance_parts(values: np.ndarray) -> dict[str, float]:
    """Variances of a contrast table (S, N): `seed`, `question`, `noise`, by the mean squares, none below 0.

    With one seed the three cannot be told apart: seed and noise are 0 and `question` holds it all, which is what they
    would be if every seed gave the same answers: a lower bound for the runs that are needed.
    """
    of_seeds, of_questions, noise = (float(x) for x in mean_squares(np.asarray(values, float)))
    seeds, questions = values.shape
    if seeds == 1:
        return dict(seed=0.0, question=of_questions, noise=0.0)
    return dict(seed=max(of_seeds - noise, 0) / questions, question=max(of_questions - noise, 0) / seeds, noise=noise)


def power(variances: dict[str, float], seeds: int, questions: int, effect: float = 0.02, *,
          rng: np.random.Generator, rule: str = "difference", margin: float = 0.0, alpha: float = 0.05,
          n_sim: int = 2000) -> float:
    """Chance that a study of this size supports the claim, if the true contrast is `effect`: by simulation.

    The mean and the three mean squares are drawn for normal seeds, questions and noise of the given variances (they
    are independent: a normal and three chi-squares), and judged by the same intervals as the real ones.
    """
    vs, vq, ve = variances["seed"], variances["question"], variances["noise"]
    estimate = rng.normal(effect, np.sqrt(vs / seeds + vq / questions + ve / (seeds * questions)), n_sim)
    ms_question = (seeds * vq + ve) * rng.chisquare(questions - 1, n_sim) / (questions - 1)
    ms_seed, noise = np.zeros(n_sim), np.zeros(n_sim)
    if seeds > 1:
        ms_seed = (questions * vs + ve) * rng.chisquare(seeds - 1, n_sim) / (seeds - 1)
        noise = ve * rng.chisquare((seeds - 1) * (questions - 1), n_sim) / ((seeds - 1) * (questions - 1))
    level = TwoLevel(estimate, np.sqrt(ms_seed / (seeds * questions)),
                     np.sqrt(np.maximum(ms_question - noise, 0) / (seeds * questions)), np.sqrt(ms_question / (seeds * questions)),
                     seeds, questions)
    if rule == "equivalence":
        return float((np.abs(estimate) + half_width(level, 2 * alpha) < margin).mean())
    return float((estimate - half_width(level, alpha) > (-margin if rule == "noninferiority" else 0)).mean())


def needed(variances: dict[str, float], seeds: int, questions: int, effect: float = 0.02, *,
           rng: np.random.Generator, rule: str = "difference", margin: float = 0.0, alpha: float = 0.05,
           target: float = 0.8, max_seeds: int = 100, max_questions: int = 100_000) -> dict:
    """The smallest study with the wanted power: `seeds` wanted at the given questions, and `questions` wanted at the
    given seeds. None where the maximum is not enough (more questions never make up for seeds that disagree)."""
    start = int(rng.integers(2**32))       # the same draws for every size: power then grows with it

    def smallest(low, high, size):
        enough = lambda x: power(variances, *size(x), effect, rng=np.random.default_rng(start), rule=rule,
                                 margin=margin, alpha=alpha) >= target
        if not enough(high):
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle + 1, high)
        return low

    return dict(seeds=smallest(MIN_SEEDS, max_seeds, lambda s: (s, questions)),
                questions=smallest(10, max_questions, lambda n: (seeds, n)))


# --- claims -----------------------------------------------------------------------------------------------------------

def load_claims(path: str | Path) -> list[dict]:
    """Read params/claims.yaml. Raises DataError naming the file, the claim and what is wrong with it.

    A claim: id, words, section, contrast, measure, direction, margin, rule, and perhaps `requires`, the id of a claim without whose
    support this one says nothing (that shuffling costs nothing means little where there was nothing to lose). `contrast` maps a and b (for an
    interaction also c and d: (a - b) - (c - d)) to lists of arm labels, best first. In a label `*` stands for anything
    but "," and "]"; $1, $2 repeat in a later arm what the first, second `*` (or text in parentheses) stood for.
    """
    try:
        claims = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(claims, list):
        raise DataError(f"{path}: found a {type(claims).__name__}; expected a list of claims")
    for number, claim in enumerate(claims, 1):
        name = claim.get("id", f"number {number}") if isinstance(claim, dict) else f"number {number}"
        fail = lambda found: DataError(f"{path}: claim {name}: {found}")
        fields = ("id", "words", "section", "contrast", "measure", "direction", "margin", "rule")
        if not isinstance(claim, dict) or set(claim) - {"requires"} != set(fields):
            found = sorted(claim) if isinstance(claim, dict) else claim
            raise fail(f"fields are {found!r}; expected {', '.join(fields)} (and perhaps requires)")
        if claim["rule"] not in RULES or claim["direction"] not in RULES[claim["rule"]]:
            raise fail(f"rule {claim['rule']!r} with direction {claim['direction']!r}; expected one of " +
                       ", ".join(f"{r}: {' or '.join(d)}" for r, d in RULES.items()))
        if claim["measure"] not in MEASURES:
            raise fail(f"measure is {claim['measure']!r}; expected one of {', '.join(MEASURES)}")
        arms = "abcd" if claim["rule"] == "interaction" else "ab"
        contrast = claim["contrast"]
        if not isinstance(contrast, dict) or "".join(sorted(contrast)) != arms or \
                not all(isinstance(v, list) and v for v in contrast.values()):
            raise fail(f"contrast is {contrast!r}; expected a list of arm labels for each of {', '.join(arms)}")
        bounded = claim["rule"] in ("equivalence", "noninferiority")
        if not isinstance(claim["margin"], (int, float)) or (claim["margin"] <= 0) == bounded or claim["margin"] < 0:
            wanted = "a fraction above 0, such as 0.02 for two points" if bounded else f"0 for rule {claim['rule']}"
            raise fail(f"margin is {claim['margin']!r}; expected {wanted}")
    repeated = [name for name, times in Counter(claim["id"] for claim in claims).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: claim {repeated[0]} appears more than once; expected unique ids")
    standing = [claim["id"] for claim in claims if "requires" not in claim]
    for claim in claims:
        if "requires" in claim and claim["requires"] not in standing:
            raise DataError(f"{path}: claim {claim['id']}: requires {claim['requires']!r}; expected the id of a claim that requires none")
    return claims


def _by_number(label: str) -> list:
    """A sort key of arm labels: text as text, numbers by size, those below 1 last."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(part) < 1, float(part)) if i % 2 else part for i, part in enumerate(parts)]


def resolve_contrast(contrast: dict[str, list[str]], arms: list[str]) -> dict[str, str] | None:
    """The first combination of measured arms that fits a claim's patterns: {"a": label, "b": label, ...} or None.

    Patterns are tried in their order, the labels that fit a pattern by their numbers, counts (1 and above) before fractions; see
    `load_claims` for `*`, `$1`.
    """
    def fill(places, stars):
        if not places:
            return {}
        place, *rest = places
        for pattern in contrast[place]:
            pattern = re.sub(r"\$(\d)", lambda m: stars[int(m[1]) - 1] if int(m[1]) <= len(stars) else m[0], pattern)
            regex = re.escape(pattern).replace(r"\*", r"([^,\]]*)").replace(r"\(", "(").replace(r"\)", ")")
            for arm in sorted(set(arms), key=_by_number):
                match = re.fullmatch(regex, arm)
                below = fill(rest, stars + list(match.groups())) if match else None
                if below is not None and arm not in below.values():
                    return {place: arm} | below
        return None

    return fill(sorted(contrast), [])


def _judge(claim: dict, level: TwoLevel) -> tuple[float, str]:
    """A claim's p, and the verdict it would bring if small enough ("supported" or "contradicted").

    Difference, interaction, noninferiority: two-sided p at 0 or -margin, the side decides. Equivalence: TOST for
    support; twice the one-sided p beyond the nearer margin for contradiction; the smaller of them counts (at most one
    of the two null hypotheses is true, so each keeps its level)."""
    margin = claim["margin"]
    if claim["rule"] == "equivalence":
        inside = max(one_sided(level, -margin, True), one_sided(level, margin, False))
        beyond = min(1.0, 2 * min(one_sided(level, margin, True), one_sided(level, -margin, False)))
        return (inside, "supported") if inside <= beyond else (beyond, "contradicted")
    null = -margin if claim["rule"] == "noninferiority" else 0.0
    above = bool(level.estimate > null)
    return float(p_value(level, null)), "supported" if above != (claim["direction"] == "less") else "contradicted"


def _number(x: float, measure: str) -> str:
    return f"{x:+.2f}" if measure == "correct_per_100_tokens" else f"{100 * x:+.1f}"


def estimate_text(row: pd.Series) -> str:
    """A verdict's estimate with its 95 % interval: "-0.3 [-8.0, +7.4]", in points or, as its contrast says, right answers per 100 tokens."""
    value, low, high = (_number(row[name], row["measure"]) for name in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}]"


def _reason(claim: dict, row: dict, alpha: float, empty: str) -> str:
    """One sentence for the verdict, with the numbers it rests on; empty: why support says nothing here."""
    value, low, high = (_number(row[k], claim["measure"]) for k in ("estimate", "low", "high"))
    number = value + ("" if claim["measure"] == "correct_per_100_tokens" else " points") + MEASURED_BY[claim["measure"]]
    if row["seeds"] == 1:
        return (f"One seed: how much seeds vary is unknown, so nothing is claimed. In this one run {number} "
                f"({low} to {high}, questions only).")
    found = f"{number}, 95 % interval {low} to {high}"
    if row["seeds"] < MIN_SEEDS:
        return f"{row['seeds']} seeds: at least {MIN_SEEDS} are needed to judge how much they vary. {found}."
    margin = f"{100 * claim['margin']:g} points"
    side = "above" if row["estimate"] > (-claim["margin"] if claim["rule"] == "noninferiority" else 0) else "below"
    yes, no = {"equivalence": (f"shown to lie {'within' if abs(row['estimate']) <= claim['margin'] else 'beyond'} ±{margin}",
                               f"shown to lie neither within nor beyond ±{margin}"),
               "noninferiority": (f"{side} -{margin}", f"not told apart from -{margin}")}.get(
                   claim["rule"], (f"{side} 0", "not told apart from 0"))
    if row["verdict"] != "inconclusive" or row["p_holm"] < alpha:
        return f"{found}: {yes} (p = {row['p_holm']:.2g} after Holm)" + (f", but {empty}." if empty else ".")
    late = " once all claims are counted" if row["p"] < alpha else ""
    return f"{found}: {no}{late} (p = {row['p_holm']:.2g} after Holm)."


def _needed_text(claim: dict, values: np.ndarray, effect: float, alpha: float, rng: np.random.Generator) -> str:
    """How many seeds and questions would decide the claim, in words."""
    if claim["measure"] == "correct_per_100_tokens":
        return f"at least {MIN_SEEDS} seeds" if len(values) < MIN_SEEDS else "more seeds or questions"
    bounded = claim["rule"] in ("equivalence", "noninferiority")
    seeds, questions = values.shape
    some = MIN_SEEDS if seeds == 1 else max(seeds, 10)
    size = needed(variance_parts(values), some, questions, 0.0 if bounded else effect, rng=rng, rule=claim["rule"],
                  margin=claim["margin"], alpha=alpha)
    aim = (f"to show it within {100 * claim['margin']:g} points if there is no difference" if bounded else
           f"to see a {100 * effect:g}-point difference")
    count = f"{size['questions']:,}" if size["questions"] else "over 100,000"
    by_questions = f"{some} seeds of {count} questions"
    if seeds == 1:
        return f"at least {by_questions} {aim}, even if seeds agreed perfectly"
    return f"{size['seeds'] or 'over 100'} seeds of {questions:,} questions, or {by_questions}, {aim} (80 % power)"


def verdicts(predictions: pd.DataFrame, claims: list[dict], rng: np.random.Generator, *, alpha: float = 0.05,
             effect: float = 0.02, n_boot: int = 2000, as_intact: dict[str, float] | None = None) -> pd.DataFrame:
    """What one study's predictions say about each claim.

    Columns: study, claim, words, section, contrast (the arms compared, and by what, unless by forced choice), measure, rule, margin, estimate, low, high
    (95 %, not adjusted), p, p_holm (over the study's measured claims), verdict, reason, n, seeds, covers, needed.

    verdict: "not measured" (an arm is missing, or the arms share no seed); "inconclusive" with fewer than MIN_SEEDS
    seeds whatever p is, because the interval then leaves out, or hardly knows, how much seeds vary, and where support would
    say nothing: the claim that this one `requires` is not supported, or an equivalence is of two arms of which more than MAX_AS_INTACT of
    the training texts are the same (as_intact: arm -> that share, `runs.as_intact`); else "supported"
    or "contradicted" where p_holm < alpha, on the side that `_judge` says, and "inconclusive" otherwise. `needed` is
    filled where inconclusive: the size for 80 % power of a verdict, at alpha / (number of measured claims), so that
    Holm is paid for.
    Raises DataError on predictions of several studies and on arms that do not share their questions.
    """
    study = "; ".join(map(str, predictions["study"].unique())) if "study" in predictions else ""
    arms, rows, tables = sorted(set(predictions["arm"])), [], []
    for column in ("study", "dataset", "student"):
        if column in predictions and predictions[column].nunique() > 1:
            raise DataError(f"predictions hold several values of {column} "
                            f"({', '.join(map(str, predictions[column].unique()))}); expected one study at a time")
    for claim in claims:
        row = dict(study=study, claim=claim["id"], words=" ".join(claim["words"].split()), section=claim["section"])
        row |= {k: claim[k] for k in ("measure", "rule", "margin")}
        found, table = resolve_contrast(claim["contrast"], arms), None
        seeds = [set(predictions.loc[predictions["arm"] == arm, "seed"]) for arm in (found or {}).values()]
        if found is None:
            plain = {p: [re.sub(r"\$\d", "*", x) for x in patterns] for p, patterns in claim["contrast"].items()}
            missing = [x[0] for x in plain.values() if resolve_contrast({"a": x}, arms) is None]
            wanted = re.sub(r"[()]", "", " and ".join(missing)) or "arms that belong together"
            row |= dict(verdict="not measured", contrast="", reason=f"No run of {wanted}.")
        elif not set.intersection(*[s for s in seeds if s != {SHARED_SEED}] or [{SHARED_SEED}]):
            row |= dict(verdict="not measured", contrast="",
                        reason=f"No seed was run for all of {', '.join(found.values())}.")
        else:
            weights = {found[p]: w for p, w in zip("abcd", (1.0, -1.0, -1.0, 1.0)) if p in found}
            row["contrast"] = " − ".join(found[p] for p in "ab") if "c" not in found else \
                f"({found['a']} − {found['b']}) − ({found['c']} − {found['d']})"
            row["contrast"] += MEASURED_BY[claim["measure"]]
            table = contrast_table(predictions, weights, claim["measure"])
            result, level = _result(table, claim["measure"], rng, n_boot)
            p, side = _judge(claim, level)
            row |= result | dict(p=p, verdict=side, arm=found["a"])
        rows.append(row)
        tables.append(table)
    columns = ["study", "claim", "words", "section", "contrast", "measure", "rule", "margin", "estimate", "low", "high",
               "p", "p_holm", "verdict", "reason", "n", "seeds", "covers", "needed"]
    adjusted = holm(np.array([row.get("p", np.nan) for row in rows]))
    measured = int((~np.isnan(adjusted)).sum())
    for claim, row, table, p_holm in zip(claims, rows, tables, adjusted):
        row |= dict(p_holm=p_holm, needed="")
        if table is None:
            continue
        if row["seeds"] < MIN_SEEDS or p_holm >= alpha:
            row["verdict"] = "inconclusive"
            row["needed"] = _needed_text(claim, table.to_numpy(), effect, alpha / measured, rng)
    supported = {row["claim"] for row in rows if row["verdict"] == "supported"}
    for claim, row, table in zip(claims, rows, tables):
        alike, empty = (as_intact or {}).get(row.get("arm"), 0.0), ""
        if row["verdict"] == "supported" and claim.get("requires", row["claim"]) not in supported:
            empty = f"{claim['requires']} is not supported, so there was no gain to keep"
        elif row["verdict"] == "supported" and claim["rule"] == "equivalence" and alike > MAX_AS_INTACT:
            empty = f"{100 * alike:.0f} % of the training texts of {row['arm']} are the intact ones, so the two could hardly differ"
        row["verdict"] = "inconclusive" if empty else row["verdict"]
        if table is not None:
            row["reason"] = _reason(claim, row, alpha, empty)
    return pd.DataFrame(rows, columns=columns).astype({"n": "Int64", "seeds": "Int64"})


# --- across studies ---------------------------------------------------------------------------------------------------

def pool(tables: list[pd.DataFrame], alpha: float = 0.05) -> pd.DataFrame:
    """Random-effects mean of each claim's estimate over studies (DerSimonian and Laird 1986).

    `tables`: verdict tables, one a study. A study's variance is that of its interval, (high - low)^2 / (2 z)^2, which
    keeps the few-seeds t quantile. The interval is the wider of DerSimonian-Laird's and Hartung-Knapp's (t with k - 1
    degrees of freedom); one study alone is returned as it is. A study in which nothing varied, whose interval has no width, says
    nothing of its error and is left out (`studies` counts the others). Studies on the same test set are not independent.
    Columns: claim, words, measure, studies, one_seed_studies (their intervals leave seeds out), estimate, low, high,
    p, tau2, i2 (share of the spread that is between studies).
    """
    joined = pd.concat(tables, ignore_index=True)
    joined = joined[joined["estimate"].notna() & (joined["high"] > joined["low"])]
    rows, z = [], sps.norm.ppf(0.975)
    for (claim, words, measure), group in joined.groupby(["claim", "words", "measure"], sort=False):
        estimate = group["estimate"].to_numpy(float)
        variance = ((group["high"] - group["low"]) / (2 * z)).to_numpy(float) ** 2
        row = dict(claim=claim, words=words, measure=measure, studies=len(group),
                   one_seed_studies=int((group["seeds"] == 1).sum()))
        if len(group) == 1:
            one = group.iloc[0]
            rows.append(row | dict(estimate=one.estimate, low=one.low, high=one.high, p=one.p, tau2=np.nan, i2=np.nan))
            continue
        with np.errstate(invalid="ignore"):         # statsmodels leaves a negative tau2 as it is
            fit = combine_effects(estimate, variance, method_re="dl", use_t=False, alpha=alpha)
        tau2 = max(float(fit.tau2), 0.0)
        weights = 1 / (variance + tau2)
        mean, se = float(np.average(estimate, weights=weights)), float(np.sqrt(1 / weights.sum()))
        knapp = float(np.sqrt(np.average((estimate - mean) ** 2, weights=weights) / (len(group) - 1)))
        half = max(sps.norm.ppf(1 - alpha / 2) * se, sps.t.ppf(1 - alpha / 2, len(group) - 1) * knapp)
        p = max(2 * sps.norm.sf(abs(mean) / se), 2 * sps.t.sf(abs(mean) / knapp, len(group) - 1) if knapp > 0 else 0.0)
        rows.append(row | dict(estimate=mean, low=mean - half, high=mean + half, p=float(p), tau2=tau2,
                               i2=max(float(fit.i2), 0.0)))
    return pd.DataFrame(rows, columns=["claim", "words", "measure", "studies", "one_seed_studies", "estimate", "low",
                                       "high", "p", "tau2", "i2"])


def paper_table(accuracy: pd.DataFrame, paper: pd.DataFrame | None = None) -> pd.DataFrame:
    """Our accuracies beside the paper's (arXiv 2406.14511), in percent, as text; "not known" where we have no number.

    `accuracy`: from accuracy_table. `paper`: columns dataset, student, arm, accuracy (a fraction); None, the default,
    because no number of the paper is known to us, and none is made up.
    """
    keys = [k for k in ("dataset", "student", "arm") if k in accuracy]
    table = accuracy[keys].copy()
    table["ours"] = [f"{100 * r.accuracy:.1f} ({100 * r.low:.1f} to {100 * r.high:.1f})" for r in accuracy.itertuples()]
    known = {} if paper is None else {tuple(row[k] for k in keys): row["accuracy"] for row in paper.to_dict("records")}
    numbers = [known.get(tuple(row)) for row in accuracy[keys].itertuples(index=False)]
    table["paper"] = ["not known" if x is None else f"{100 * x:.1f}" for x in numbers]
    table["difference"] = ["not known" if x is None else f"{100 * (a - x):+.1f}"
                           for a, x in zip(accuracy["accuracy"], numbers)]
    return table.reset_index(drop=True)
