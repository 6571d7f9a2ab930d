"""Effects, intervals and p values that a small study can decide with.

A run answers test questions with one seed, so an arm is a table of seeds x questions. A contrast of
arms is formed per seed and question (paired), and its mean would differ in a repetition for two
reasons: other seeds (training luck) and other questions. So,

    variance of the mean = (variance of the seed means) / S + (variance of the question means
                           beyond noise) / N,

and never less than that of the questions with the seeds taken as given. What is new here:

- the variance of the seed means, of which 3 to 5 seeds say little, is shrunk to the common value of
  the study's arms (empirical Bayes; Smyth 2004, doi:10.2202/1544-6115.1027, "limma");
- the two parts share one t quantile, with degrees of freedom by Satterthwaite (1946);
- questions about one fact are one cluster (CR2; Bell and McCaffrey 2002);
- where each seed has a world of its own (`worlds="per_seed"`), the world is the unit;
- p(gold) stands beside accuracy: another estimand, with less noise per question.

Effects are fractions (0.02 is two points) of accuracy or of p(gold). Nothing is resampled: only
`simulate_study` and `calibrate` take a random generator. `calibrate` measures what is promised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special
from scipy import stats as sps
from scipy.optimize import brentq
from statsmodels.stats.multitest import multipletests

from cotdistill.arms import PROMPTED
from cotdistill.errors import DataError
from cotdistill.measures import BINARY, add_measure

WORLDS = ("shared", "per_seed")
FAMILIES = ("paper", "mechanism", "cost")
SHARED_SEED = -1  # the seed of an arm that is not trained: one run, compared with every seed
UNTRAINED = (*PROMPTED, "word_frequency")  # no training luck: they say nothing of seeds
MIN_ARMS = 4  # fewer arms hardly say how alike their seed variances are
POWER = 0.8
CAUTION = 0.1  # how often a seed variance that is not shrunk may exceed its upper limit


def arm_table(
    predictions: pd.DataFrame, arm: str, *, worlds: str = "shared", column: str = "value"
) -> pd.DataFrame:
    """Return one arm as a table: a row per seed, a column per question id, both sorted.

    With worlds="per_seed" a seed has its own questions: cells of other worlds are NaN. Ids may
    repeat between worlds (a row is read by itself). Raises DataError for an unknown arm, several
    studies at once, a repeated (seed, id), a missing value, or seeds with other questions.
    """
    if worlds not in WORLDS:
        raise DataError(f"worlds is {worlds!r}; expected one of {', '.join(WORLDS)}")
    rows = predictions[predictions["arm"] == arm]
    if rows.empty:
        known = ", ".join(sorted(set(predictions["arm"])))
        raise DataError(f"no predictions of arm '{arm}'; measured are {known}")
    for name in ("study", "dataset", "student"):
        if name in rows and rows[name].nunique() > 1:
            values = ", ".join(map(str, rows[name].unique()))
            raise DataError(f"arm '{arm}': several values of {name} ({values}); expected one")
    again = rows[rows.duplicated(["seed", "id"])]
    if len(again):
        raise DataError(
            f"arm '{arm}', seed {again['seed'].iloc[0]}: question "
            f"{again['id'].iloc[0]} is predicted more than once ({len(again)} such "
            "rows); expected one row per seed and question"
        )
    if rows[column].isna().any():
        first = rows[rows[column].isna()].iloc[0]
        raise DataError(
            f"arm '{arm}', seed {first['seed']}: no {column} for question "
            f"{first['id']} ({rows[column].isna().sum()} such rows); expected a number"
        )
    wide = rows.pivot(index="seed", columns="id", values=column).astype(float)
    wide = wide.sort_index().sort_index(axis=1)
    if worlds == "shared" and wide.isna().to_numpy().any():
        seed, question = np.argwhere(wide.isna().to_numpy())[0]
        raise DataError(
            f"arm '{arm}', seed {wide.index[seed]}: question {wide.columns[question]} "
            "is not answered but is by other seeds; expected all seeds on the same "
            "questions, or worlds='per_seed'"
        )
    return wide


def contrast_table(
    predictions: pd.DataFrame,
    weights: Mapping[str, float],
    *,
    worlds: str = "shared",
    column: str = "value",
) -> pd.DataFrame:
    """Return a weighted sum of arms per seed and question: {"a": 1, "b": -1} is the pair a - b.

    Seeds that all arms have are used; an arm that is not trained (its only seed is -1) is compared
    with every seed. Raises DataError where arms share no seed or differ in a seed's questions.
    """
    tables = {arm: arm_table(predictions, arm, worlds=worlds, column=column) for arm in weights}
    trained = {arm: table for arm, table in tables.items() if list(table.index) != [SHARED_SEED]}
    seeds = [SHARED_SEED]
    if trained:
        seeds = sorted(set.intersection(*(set(table.index) for table in trained.values())))
    if not seeds:
        raise DataError(
            f"arms {', '.join(weights)} have no seed in common; expected runs with the same seeds"
        )
    columns = next(iter(tables.values())).columns
    total = 0.0
    for arm, table in tables.items():
        rows = table.loc[seeds] if arm in trained else table.loc[[SHARED_SEED] * len(seeds)]
        rows = rows.set_axis(pd.Index(seeds, name="seed"), axis=0)
        if list(rows.columns) != list(columns):
            apart = sorted(set(rows.columns) ^ set(columns), key=str)
            raise DataError(
                f"arms '{next(iter(tables))}' and '{arm}' do not share their test "
                f"questions: {len(apart)} ids are only in one of them (first: "
                f"{apart[0]}); expected the same ids in both"
            )
        total = total + weights[arm] * rows
    answered = [tables[arm].loc[seeds].notna().to_numpy() for arm in trained]
    for arm, known in zip(trained, answered, strict=True):
        if (known != answered[0]).any():
            seed = seeds[np.argwhere((known != answered[0]).any(1))[0][0]]
            raise DataError(
                f"arm '{arm}', seed {seed}: other questions than the other arms of "
                "this seed; expected one world per seed, the same for all arms"
            )
    return total


def cluster_labels(
    predictions: pd.DataFrame, table: pd.DataFrame, column: str, worlds: str = "shared"
) -> np.ndarray:
    """Return the cluster of each question of `table`, from a column of the predictions.

    Shape (N,), or (S, N) with worlds="per_seed". Raises DataError where a question has two clusters
    or none.
    """
    keys = ["id"] if worlds == "shared" else ["seed", "id"]
    known = predictions[[*keys, column]].drop_duplicates()
    two = known[known.duplicated(keys)]
    if len(two) or known[column].isna().any():
        bad = two.iloc[0] if len(two) else known[known[column].isna()].iloc[0]
        raise DataError(
            f"question {bad['id']}: {column} is {'twofold' if len(two) else 'missing'};"
            f" expected one {column} per question"
        )
    if worlds == "shared":
        return known.set_index("id")[column].reindex(table.columns).to_numpy()
    wide = known.pivot(index="seed", columns="id", values=column)
    return wide.reindex(index=table.index, columns=table.columns).to_numpy()


@dataclass(frozen=True)
class VarianceParts:
    """A mean over seeds x questions and the parts of its variance (arrays where batched).

    seed_variance is that of the seed means, of one seed (NaN with one seed), with `seed_df`;
    question_variance is the questions' part of the variance of the mean with the seeds taken as
    given, `noise` the part of it that is noise (0 where worlds are the unit). design_effect is
    question_variance over what it were if the questions were independent.
    """

    estimate: np.ndarray
    seed_variance: np.ndarray
    seed_df: int
    question_variance: np.ndarray
    noise: np.ndarray
    question_df: np.ndarray
    design_effect: np.ndarray
    seeds: int
    questions: int
    clusters: int
    nested: bool


def _sum_clusters(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum values (..., N) by cluster: sums (..., G) and the sizes (G,)."""
    if clusters is None:
        return values, np.ones(values.shape[-1])
    codes = np.unique(clusters, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(values[..., order], starts, axis=-1), np.bincount(codes).astype(float)


def cluster_variance(
    values: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return the variance of a mean over clustered questions, and its degrees of freedom.

    values: (..., N); clusters: N labels (None: each question by itself, which gives the usual
    variance / N with N - 1). The bias-reduced estimator CR2 with Satterthwaite's degrees of freedom
    under independent errors (Bell and McCaffrey 2002, Survey Methodology 28(2); Imbens and Kolesár
    2016, doi:10.1162/REST_a_00552), in closed form for a mean: with cluster sizes n and residual
    sums u, V = sum(w u^2), w = 1 / ((1 - n/N) N^2). Raises DataError for fewer than two clusters.
    """
    centred = values - values.mean(-1, keepdims=True)
    sums, sizes = _sum_clusters(centred, clusters)
    if len(sizes) < 2:
        raise DataError(f"{len(sizes)} cluster(s) of questions; expected at least 2")
    weights, freedom = _cluster_weights(sizes)
    return (weights * sums**2).sum(-1), freedom


def _cluster_weights(sizes: np.ndarray) -> tuple[np.ndarray, float]:
    """Return CR2's weight of each cluster's squared sum, and the degrees of freedom of them all."""
    total = sizes.sum()
    weights = 1 / ((1 - sizes / total) * total**2)
    diagonal = weights * sizes * (1 - sizes / total)
    cross = weights * sizes**2 / total
    off = cross.sum() ** 2 - (cross**2).sum()
    return weights, float(diagonal.sum() ** 2 / ((diagonal**2).sum() + off))


def split_variance(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    nested: bool = False,
    guard: Sequence[float] = (),
) -> VarianceParts:
    """Split the variance of the mean of contrast tables (..., S seeds, N questions).

    Args:
        values: the tables; NaN only where `nested` and a question is not of that seed's world.
        clusters: labels of the questions, (N,), or (S, N) where nested.
        nested: each seed has questions of its own. The seed's mean is then the unit, and the
            spread of the seed means holds training, world and questions alike.
        guard: made-up question means added to the questions' sum of squares, so that a variance is
            never 0 because nothing happened to differ: (1, -1), one win and one loss, for
            differences of accuracies (Bonett and Price 2012, doi:10.3102/1076998611411915).

    The mean squares of the two-way ANOVA without repetition where clusters are single
    questions. Raises DataError for fewer than two questions or clusters.

    """
    values = np.asarray(values, float)
    seeds, questions = values.shape[-2:]
    if nested:
        return _split_nested(values, clusters, guard)
    if np.isnan(values).any():
        raise DataError("a question is not answered by every seed; expected complete tables")
    if questions < 2:
        raise DataError(f"{questions} test question(s); expected at least 2")
    by_seed, by_question = values.mean(-1), values.mean(-2)
    plain, _ = cluster_variance(by_question)
    alone, freedom = cluster_variance(by_question, clusters)
    added = float(np.square(guard).sum()) / questions**2
    noise, spread = np.zeros_like(alone), np.full(alone.shape, np.nan)
    if seeds > 1:
        rest = values - by_seed[..., None]
        rest -= (by_question - by_question.mean(-1, keepdims=True))[..., None, :]
        sums, sizes = _sum_clusters(rest, clusters)
        weights, _ = _cluster_weights(sizes)
        noise = np.einsum("...sg,...sg,g->...", sums, sums, weights) / (seeds * (seeds - 1))
        spread = by_seed.var(-1, ddof=1)
    effect = np.divide(alone, plain, out=np.ones_like(alone), where=plain > 0)
    groups = questions if clusters is None else len(np.unique(clusters))
    return VarianceParts(
        values.mean((-2, -1)),
        spread,
        seeds - 1,
        alone + added,
        noise,
        np.full(alone.shape, freedom),
        effect,
        seeds,
        questions,
        groups,
        False,
    )


def _split_nested(
    values: np.ndarray, clusters: np.ndarray | None, guard: Sequence[float]
) -> VarianceParts:
    """`split_variance` where each seed has its own questions; NaN pattern equal over the batch."""
    seeds = values.shape[-2]
    known = ~np.isnan(values.reshape(-1, *values.shape[-2:])[0])
    means, variances, plain, freedoms, groups = [], [], [], [], 0
    for seed in range(seeds):
        own = values[..., seed, known[seed]]
        if own.shape[-1] < 2:
            raise DataError(f"seed number {seed}: {own.shape[-1]} test question(s); expected 2")
        labels = None
        if clusters is not None:
            row = clusters if np.ndim(clusters) == 1 else clusters[seed]
            labels = np.asarray(row)[known[seed]]
        variance, freedom = cluster_variance(own, labels)
        means.append(own.mean(-1))
        variances.append(variance + float(np.square(guard).sum()) / own.shape[-1] ** 2 / seeds)
        plain.append(cluster_variance(own)[0])
        freedoms.append(freedom)
        groups += own.shape[-1] if labels is None else len(np.unique(labels))
    means, variances, plain = (np.stack(x, -1) for x in (means, variances, plain))
    squares = (variances**2 / np.array(freedoms)).sum(-1)
    freedom = np.divide(
        variances.sum(-1) ** 2, squares, out=np.full(squares.shape, np.inf), where=squares > 0
    )
    spread = means.var(-1, ddof=1) if seeds > 1 else np.full(squares.shape, np.nan)
    effect = np.divide(
        variances.sum(-1), plain.sum(-1), out=np.ones_like(squares), where=plain.sum(-1) > 0
    )
    return VarianceParts(
        means.mean(-1),
        spread,
        seeds - 1,
        variances.sum(-1) / seeds**2,
        np.zeros_like(squares),
        freedom,
        effect,
        seeds,
        int(known.sum()),
        groups,
        True,
    )


def invert_trigamma(x: np.ndarray) -> np.ndarray:
    """Return y > 0 with trigamma(y) = x > 0, by Newton's method (Smyth 2004, appendix)."""
    x = np.asarray(x, float)
    y = 0.5 + 1 / x
    for _ in range(50):
        value = special.polygamma(1, y)
        step = value * (1 - value / x) / special.polygamma(2, y)
        y = y + step
        if np.all(np.abs(step) < 1e-10 * y):
            break
    return np.where(x > 1e7, 1 / np.sqrt(x), np.where(x < 1e-6, 1 / x, y))


def fit_variance_prior(
    variances: np.ndarray, freedom: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit s^2 ~ s0^2 F(d, d0) to sample variances by moments of log s^2: return d0 and s0^2.

    variances: (..., n) with d degrees of freedom, a number or (n,). As limma's `fitFDist` (Smyth
    2004, section 6.2): variances below 1e-5 of the median are raised to it; where they differ no
    more than chance would have it, d0 is infinite and s0^2 their mean. One variance has nothing in
    common with others: d0 is 0. NaN variances and d = 0 are left out, for a single row.
    """
    variances = np.asarray(variances, float)
    freedom = np.broadcast_to(np.asarray(freedom, float), variances.shape)
    if variances.ndim == 1:
        usable = np.isfinite(variances) & (freedom > 0)
        variances, freedom = variances[usable], freedom[usable]
    if variances.shape[-1] < 2:
        mean = variances.mean(-1) if variances.shape[-1] else np.full(variances.shape[:-1], np.nan)
        return np.zeros(variances.shape[:-1]), mean
    middle = np.median(variances, -1, keepdims=True)
    raised = np.maximum(variances, 1e-5 * np.where(middle > 0, middle, 1.0))
    logs = np.log(raised) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(-1, ddof=1) - special.polygamma(1, freedom / 2).mean(-1)
    differ = excess > 0
    half = invert_trigamma(np.where(differ, excess, 1.0))
    common = np.exp(logs.mean(-1) + special.digamma(half) - np.log(half))
    return np.where(differ, 2 * half, np.inf), np.where(differ, common, raised.mean(-1))


@dataclass(frozen=True)
class SeedPrior:
    """What a study's arms say of a seed variance before a contrast is looked at.

    variance: of one arm's seed means, beside what the seed does to all arms alike; d0: how many
    degrees of freedom that is worth; pooled_df: of all arms together, the most a contrast can have.
    d0 = 0: nothing to shrink to.
    """

    variance: np.ndarray | float = float("nan")
    d0: np.ndarray | float = 0.0
    pooled_df: int = 0
    limma_d0: np.ndarray | float = 0.0


def fit_seed_prior(seed_means: np.ndarray) -> SeedPrior:
    """Fit the common seed variance of a study's arms from their seed means (..., A arms, S seeds).

    What a seed does to all arms alike is taken out first (contrasts do not see it; arms that share
    it would look too much alike). d0 is limma's. Two guards, because a study has 4 to 10 arms where
    limma has thousands of genes: the common value is the mean of the variances, not the smaller
    value of the F fit, and d0 is at most half of the arms' degrees of freedom. Simulated (8 arms, 8
    claims, 3 to 10 seeds, only seeds vary), family-wise error at a nominal .05 with equal spreads,
    with spreads that differ sixfold, and with six times the spread in one arm of eight: .02 to .04,
    .03 to .05, .02 to .09; plain pooling .05 to .06, .11 to .13, .22 to .27; the F fit of the
    contrasts themselves, which share arms, .05 to .07, .06 to .11, .05 to .15. Fewer than MIN_ARMS
    arms (with three, sixfold spreads gave .09) or 2 seeds: nothing is shrunk.
    """
    arms, seeds = seed_means.shape[-2:]
    if arms < MIN_ARMS or seeds < 2:
        return SeedPrior()
    rest = seed_means - seed_means.mean(-2, keepdims=True)
    variances = rest.var(-1, ddof=1)
    pooled = (arms - 1) * (seeds - 1)
    limma = fit_variance_prior(variances, seeds - 1)[0]
    return SeedPrior(variances.sum(-1) / (arms - 1), np.minimum(limma, pooled / 2), pooled, limma)


def shrink_seed_variance(
    parts: VarianceParts, prior: SeedPrior, squared_weights: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the contrast's seed variance after shrinking, and its degrees of freedom.

    (d0 s0^2 + d s^2) / (d0 + d) with d0 + d degrees of freedom, at most the arms' pooled ones
    (Smyth 2004, eq. 9). squared_weights: the sum of the contrast's squared weights (2 for a - b),
    for s0^2 is one arm's. A contrast of one seed takes s0^2 where other arms have more seeds.
    """
    d, d0 = parts.seed_df, np.asarray(prior.d0, float)
    own = np.where(d > 0, parts.seed_variance, 0.0)
    common = np.where(d0 > 0, prior.variance, 0.0) * squared_weights
    total = d0 + d
    with np.errstate(invalid="ignore", divide="ignore"):
        shrunk = np.where(total > 0, (d0 * common + d * own) / total, np.nan)
    return shrunk, np.where(d0 > 0, np.minimum(total, max(prior.pooled_df, d)), total)


@dataclass(frozen=True)
class Effect:
    """An estimate with its standard error and degrees of freedom (arrays where batched).

    covers: what a repetition may change, "questions and seeds" or "questions" (a single seed).
    """

    estimate: np.ndarray | float
    se: np.ndarray | float
    df: np.ndarray | float
    covers: str = "questions and seeds"


def join_variances(
    parts: VarianceParts, prior: SeedPrior | None = None, squared_weights: float = 2.0
) -> Effect:
    """Join the seeds' and the questions' variance to one standard error.

    V = s~^2 / S + questions - noise, at least the questions' alone; degrees of freedom by
    Satterthwaite (1946, doi:10.2307/3002019).
    With worlds as units V = s~^2 / S, with the same floor.

    A seed variance that is not shrunk is often far too small by luck, and Satterthwaite's formula
    then counts the questions' many degrees of freedom: with 3 seeds a nominal .05 is .078, a
    nominal .006 is .029. There the degrees of freedom are those at the upper 90 % limit of the seed
    variance, which keeps both below nominal (.035, .006); the standard error stays as it is.
    """
    prior = prior or SeedPrior()
    shrunk, seed_df = shrink_seed_variance(parts, prior, squared_weights)
    alone, question_df = parts.question_variance, parts.question_df
    unknown = np.isnan(shrunk)
    of_seeds = np.where(unknown, 0.0, shrunk) / parts.seeds
    beyond, squares = np.zeros_like(alone), np.zeros_like(alone)
    if not parts.nested:
        beyond = np.maximum(alone - parts.noise, 0.0)
        squares = alone**2 / question_df
        if parts.seeds > 1:
            squares = squares + parts.noise**2 / (question_df * (parts.seeds - 1))
        squares = np.where(beyond > 0, squares, 0.0)
    joined = of_seeds + beyond
    limit = of_seeds
    if parts.seed_df > 0:
        inflation = parts.seed_df / sps.chi2.ppf(CAUTION, parts.seed_df)
        limit = np.where(np.asarray(prior.d0) > 0, of_seeds, of_seeds * inflation)
    floor = unknown | (joined < alone)
    beyond = np.where(floor, alone, beyond)
    squares = np.where(floor, alone**2 / question_df, squares)
    squares = squares + np.where(seed_df > 0, limit**2 / np.maximum(seed_df, 1e-9), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(squares > 0, (limit + beyond) ** 2 / squares, question_df)
    covers = "questions" if np.all(unknown) else "questions and seeds"
    return Effect(parts.estimate, np.sqrt(np.where(floor, alone, joined)), freedom, covers)


def confidence_interval(effect: Effect, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return the two ends of the 1 - alpha t interval."""
    half = sps.t.ppf(1 - alpha / 2, effect.df) * effect.se
    return effect.estimate - half, effect.estimate + half


def one_sided_p(effect: Effect, null: float = 0.0, *, above: bool = True) -> np.ndarray:
    """Return p of "the effect lies above (below) null" against its opposite.

    Where nothing varies (se 0) it is 0, 1, or .5 where the estimate is the null.
    """
    distance = np.asarray(effect.estimate - null, float) * (1 if above else -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.where(distance == 0, 0.0, distance / effect.se)
    return sps.t.sf(t, effect.df)


def two_sided_p(effect: Effect, null: float = 0.0) -> np.ndarray:
    """Return the two-sided p of "the effect is null"."""
    p = one_sided_p(effect, null)
    return 2 * np.minimum(p, one_sided_p(effect, null, above=False))


def equivalence_p(effect: Effect, margin: float) -> np.ndarray:
    """Return p of "the effect lies within ±margin" against its opposite (TOST, Schuirmann 1987).

    The larger of the two one-sided p; below .05 exactly where the 90 % interval lies inside. Raises
    DataError for a margin that is not above 0.
    """
    if not margin > 0:
        raise DataError(f"margin is {margin}; expected a fraction above 0, such as 0.02")
    return np.maximum(one_sided_p(effect, -margin), one_sided_p(effect, margin, above=False))


def detectable_effect(effect: Effect, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest true effect that a study with this se and df finds with this power.

    Solves the noncentral t for a two-sided test at alpha (Cohen 1988, chapter 2); for one of k
    claims of a family pass alpha / k, Holm's first step. It says what the study could see, not how
    likely what it saw was. 0 where nothing varies.
    """
    se, df = float(effect.se), float(effect.df)
    if se == 0:
        return 0.0
    limit = sps.t.ppf(1 - alpha / 2, df)

    def excess_power(shift: float) -> float:
        # the far tail is below 1e-9 where the library cannot compute it
        beyond = np.nan_to_num(special.nctdtr(df, shift, -limit))
        return 1 - special.nctdtr(df, shift, limit) + beyond - power

    high = 2.0
    while excess_power(high) < 0:
        high *= 2
    shift = brentq(excess_power, 0.0, high)
    return float(shift * se)


@dataclass(frozen=True)
class Share:
    """A ratio of two effects with its Fieller interval; NaN and a reason where there is none."""

    estimate: float
    low: float
    high: float
    reason: str = ""


def fieller_interval(
    x: float, y: float, covariance: np.ndarray, df: float, alpha: float = 0.05
) -> Share:
    """Return x / y with its Fieller interval (Fieller 1954; Franz 2007, arXiv:0710.2024).

    covariance: that of (x, y), 2 x 2. The interval holds every ratio r at which x - r y is not told
    apart from 0. Where y itself is not told apart from 0 no bounded interval exists: all NaN, with
    the reason "no gain to retain".
    """
    t = sps.t.ppf(1 - alpha / 2, df)
    (vx, vxy), (_, vy) = np.asarray(covariance, float)
    a, b, c = y * y - t * t * vy, x * y - t * t * vxy, x * x - t * t * vx
    if not a > 0:
        return Share(np.nan, np.nan, np.nan, "no gain to retain: its interval holds 0")
    half = np.sqrt(max(b * b - a * c, 0.0))
    return Share(float(x / y), float((b - half) / a), float((b + half) / a))


def retained_share(
    values_x: np.ndarray,
    values_y: np.ndarray,
    *,
    prior: SeedPrior | None = None,
    squared_weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    nested: bool = False,
    alpha: float = 0.05,
) -> Share:
    """Return the share of the gain y = b - base that x = a - base retains, with its interval.

    values_x, values_y: the two contrast tables (S, N). Their covariance has the same two parts as
    any variance here, by var(x + y) - var(x - y) = 4 cov(x, y); squared_weights (2, 2) holds the
    products of the arms' weights ([[2, 1], [1, 2]], the default, for one base). The degrees of
    freedom are the fewest of those of x, y and x - (x/y) y. A loss (y < 0 for sure) is no gain.
    """
    gram = np.array([[2.0, 1.0], [1.0, 2.0]]) if squared_weights is None else squared_weights

    def join(a: float, b: float) -> Effect:
        weight = float(np.array([a, b]) @ gram @ np.array([a, b]))
        return join_variances(
            split_variance(a * values_x + b * values_y, clusters, nested=nested), prior, weight
        )

    x, y, both, apart = join(1, 0), join(0, 1), join(1, 1), join(1, -1)
    cross = (float(both.se) ** 2 - float(apart.se) ** 2) / 4
    bound = float(x.se * y.se)
    cross = float(np.clip(cross, -bound, bound))
    covariance = np.array([[float(x.se) ** 2, cross], [cross, float(y.se) ** 2]])
    low, high = (float(end) for end in confidence_interval(y, alpha))
    if low <= 0 <= high or high < 0:
        found = "its interval holds 0" if high >= 0 else "it is a loss"
        return Share(
            np.nan,
            np.nan,
            np.nan,
            f"no gain to retain: {found} ({100 * low:+.1f} to {100 * high:+.1f} points)",
        )
    ratio = float(x.estimate / y.estimate)
    df = min(float(x.df), float(y.df), float(join(1, -ratio).df))
    return fieller_interval(float(x.estimate), float(y.estimate), covariance, df, alpha)


def study_prior(
    predictions: pd.DataFrame, *, worlds: str = "shared", column: str = "value"
) -> SeedPrior:
    """Fit the seed prior of one study from the trained arms that have all of its seeds.

    The seeds are those that most arms have; an arm with others does not help to fit the prior but
    is shrunk all the same.
    """
    means = {
        arm: arm_table(predictions, arm, worlds=worlds, column=column).mean(axis=1)
        for arm in sorted(set(predictions["arm"]) - set(UNTRAINED))
    }
    sets = [frozenset(m.index) for m in means.values() if list(m.index) != [SHARED_SEED]]
    if not sets:
        return SeedPrior()
    common = max(sets, key=lambda seeds: (sets.count(seeds), len(seeds), sorted(seeds)))
    rows = [m.loc[sorted(common)] for m in means.values() if common <= set(m.index)]
    return fit_seed_prior(np.array(rows))


def _describe_effect(effect: Effect, margin: float) -> dict[str, float]:
    """Return an effect's columns: estimate, se, df, low, high, p, p_equivalent, detectable."""
    low, high = confidence_interval(effect)
    return dict(
        estimate=float(effect.estimate),
        se=float(effect.se),
        df=float(effect.df),
        low=float(low),
        high=float(high),
        p=float(two_sided_p(effect)),
        p_equivalent=float(equivalence_p(effect, margin)),
        detectable=detectable_effect(effect),
    )


def estimate_contrasts(
    predictions: pd.DataFrame,
    contrasts: Mapping[str, Mapping[str, float]],
    measure: str = "p_gold",
    *,
    worlds: str = "shared",
    cluster: str | None = None,
    margin: float = 0.02,
    **measuring,
) -> pd.DataFrame:
    """Estimate the contrasts of one study: a row each, in their order.

    Args:
        predictions: all arms of one study (the prior is fitted on all, not only those compared).
        contrasts: name -> weights of arms, {"post - label": {"post_cot": 1, "label_only": -1}}.
        measure: one of MEASURES.
        worlds: "shared" questions, or "per_seed".
        cluster: the column that says which questions share a fact; None: each is by itself.
        margin: of the equivalence test, a fraction.
        **measuring: options and cut_off, for `add_measure`.

    Columns: contrast, measure, estimate, se, df, low, high (95 %), p, p_equivalent, detectable
    (with 80 % power, as the only claim), seeds, questions, clusters, design_effect, seed_sd (of the
    contrast's seed means), seed_sd_shrunk, prior_df, flagged (share of its answers that followed a
    rationale cut off), by_seed (each seed's estimate), covers.

    """
    valued = add_measure(predictions, measure, **measuring)
    prior, rows = study_prior(valued, worlds=worlds), []
    for name, weights in contrasts.items():
        table = contrast_table(valued, weights, worlds=worlds)
        labels = cluster_labels(predictions, table, cluster, worlds) if cluster else None
        guard = (1.0, -1.0) if measure in BINARY else ()
        parts = split_variance(table.to_numpy(), labels, nested=worlds == "per_seed", guard=guard)
        # the prior is of what differs between arms: it says nothing of an arm by itself
        own = prior if abs(sum(weights.values())) < 1e-9 else SeedPrior()
        squared = float(sum(w * w for w in weights.values()))
        effect = join_variances(parts, own, squared)
        rows.append(
            dict(
                contrast=name,
                measure=measure,
                **_describe_effect(effect, margin),
                seeds=parts.seeds,
                questions=parts.questions,
                clusters=parts.clusters,
                design_effect=float(parts.design_effect),
                seed_sd=float(np.sqrt(parts.seed_variance)),
                seed_sd_shrunk=float(np.sqrt(shrink_seed_variance(parts, own, squared)[0])),
                prior_df=float(own.d0),
                covers=effect.covers,
                flagged=float(valued.loc[valued["arm"].isin(list(weights)), "flagged"].mean()),
                by_seed=[float(mean) for mean in table.mean(axis=1)],
            )
        )
    return pd.DataFrame(rows)


def estimate_share(
    predictions: pd.DataFrame,
    arm: str,
    full: str,
    base: str,
    measure: str = "p_gold",
    *,
    worlds: str = "shared",
    cluster: str | None = None,
    **measuring,
) -> Share:
    """Return the share of full's gain over base that `arm` retains, (arm - base) / (full - base).

    For shuffled against intact and kept against full, in place of a margin. See `retained_share`.
    """
    valued = add_measure(predictions, measure, **measuring)
    x, y = (contrast_table(valued, {one: 1.0, base: -1.0}, worlds=worlds) for one in (arm, full))
    if list(x.index) != list(y.index):
        seeds = sorted(set(x.index) & set(y.index))
        if not seeds:
            raise DataError(f"arms {arm}, {full}, {base} have no seed in common; expected one")
        x, y = x.loc[seeds], y.loc[seeds]
    labels = cluster_labels(predictions, x, cluster, worlds) if cluster else None
    return retained_share(
        x.to_numpy(),
        y.to_numpy(),
        prior=study_prior(valued, worlds=worlds),
        clusters=labels,
        nested=worlds == "per_seed",
    )


def adjust_families(p: Sequence[float], family: Sequence[str]) -> np.ndarray:
    """Return Holm's adjusted p (1979), within each family of claims by itself.

    The chance of any false finding is kept below alpha in each family; a paper's few claims do not
    pay for ours. NaN (not measured) stays NaN and is not counted. Raises DataError for a family
    that is not one of FAMILIES.
    """
    p, family = np.asarray(p, float), np.asarray(family, object)
    unknown = sorted(set(map(str, family)) - set(FAMILIES))
    if unknown:
        raise DataError(f"family is '{unknown[0]}'; expected one of {', '.join(FAMILIES)}")
    adjusted = np.full(p.shape, np.nan)
    for name in FAMILIES:
        rows = (family == name) & ~np.isnan(p)
        if rows.any():
            adjusted[rows] = multipletests(p[rows], method="holm")[1]
    return adjusted
