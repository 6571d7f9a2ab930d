"""Inference against scipy, statsmodels, matrices and by hand; calibration on known truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import special
from scipy import stats as sps
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from cotdistill import calibration
from cotdistill import inference as inf
from cotdistill.calibration import Design, calibrate, calibration_designs, simulate_study
from cotdistill.errors import DataError
from cotdistill.measures import MEASURES, add_measure, choose_normalized, gold_probability

SIX = tuple(np.geomspace(0.01, 0.06, 8))


@pytest.fixture
def rng():
    return np.random.default_rng(26)


def make_predictions(rng, arms, seeds=3, questions=60, worlds="shared"):
    """Predictions as the run store gives them: `arms` maps a label to what its gold gains."""
    hard, frames = rng.normal(size=(seeds, questions)), []
    for arm, gain in arms.items():
        for seed in [inf.SHARED_SEED] if arm == "zero_shot" else range(seeds):
            scores = rng.normal(size=(questions, 4)) - 3
            scores[:, 1] += gain + hard[seed if worlds == "per_seed" else 0]
            name = f"w{seed}-" if worlds == "per_seed" else ""
            choice = scores.argmax(1)
            frames.append(
                pd.DataFrame(
                    dict(
                        study="s",
                        dataset="d",
                        student="tiny",
                        arm=arm,
                        seed=seed,
                        gold=1,
                        choice=choice,
                        id=[f"{name}q{i:03}" for i in range(questions)],
                        scores=scores.tolist(),
                        correct_choice=choice == 1,
                        correct_generated=choice == 1,
                        cut_off=False,
                        fact=[f"{name}f{i // 3}" for i in range(questions)],
                    )
                )
            )
    return pd.concat(frames, ignore_index=True)


ARMS = {"label_only": 0.0, "pre_cot": 0.3, "post_cot": 0.8, "post_cot_filler": 0.1}


# --- measures -----------------------------------------------------------------------------------


def test_gold_probability_by_hand():
    scores = np.log([0.2, 0.1, 0.1])  # sums to .4, so 1/2, 1/4, 1/4
    assert gold_probability(scores, 0) == pytest.approx(0.5)
    assert gold_probability(scores, 2, ["a", "b", "c"]) == pytest.approx(0.25)
    twice = np.log([0.2, 0.1, 0.1, 0.1])  # the last two options read the same
    assert gold_probability(twice, 1, ["a", "b", "c", "c"]) == pytest.approx(0.25)
    with pytest.raises(DataError, match="expected the first of its text"):
        gold_probability(twice, 3, ["a", "b", "c", "c"])
    assert gold_probability([-900.0, -901.0], 0) == pytest.approx(special.expit(1.0))


@pytest.mark.parametrize(
    "scores, options, choice",
    [
        ([-4.0, -6.0], ["ab", "abcd"], 1),  # -2 and -1.5 per byte
        ([-4.0, -6.0], ["abcd", "ab"], 0),
        ([-4.0, -6.1], ["ab", "äb"], 0),  # ä is two bytes: -2 and -2.03
        ([-4.0, -4.0], ["ab", "ab"], 0),
    ],
)
def test_choice_per_byte(scores, options, choice):
    assert choose_normalized(scores, options) == choice


def test_a_rationale_cut_off_is_wrong_but_keeps_its_probability(rng):
    data = make_predictions(rng, {"pre_cot_shuffled[token]": 9.0, "post_cot": 9.0}, seeds=1)
    data["cut_off"] = data["id"].isin(["q000", "q001"])
    pre = data["arm"].str.startswith("pre").to_numpy()
    options = {name: ["a", "b", "c", "d"] for name in data["id"]}
    for measure in MEASURES:
        as_scored = add_measure(data, measure, options=options, cut_off="as_scored")
        primary = add_measure(data, measure, options=options)
        flagged = pre & data["cut_off"].to_numpy()
        assert primary["flagged"].tolist() == flagged.tolist() and flagged.sum() == 2
        if measure == "p_gold":
            assert primary["value"].tolist() == as_scored["value"].tolist()
        else:
            assert (primary.loc[flagged, "value"] == 0).all()
            assert as_scored["value"].mean() > primary["value"].mean()
        assert primary.loc[~flagged, "value"].tolist() == as_scored.loc[~flagged, "value"].tolist()
    chance = add_measure(data, "p_gold", cut_off="chance")
    assert (chance.loc[chance["flagged"], "value"] == 0.25).all()
    own = data.assign(rationale_cut_off=False)  # a column of its own comes first
    assert not add_measure(own, "p_gold")["flagged"].any()


# --- tables -------------------------------------------------------------------------------------


def test_contrasts_pair_by_question_and_seed(rng):
    data = add_measure(make_predictions(rng, ARMS | {"zero_shot": -1.0}), "p_gold")
    table = inf.contrast_table(data, {"post_cot": 1.0, "label_only": -1.0})
    cells = data.set_index(["arm", "seed", "id"])["value"]
    assert table.shape == (3, 60)
    assert table.loc[2, "q017"] == pytest.approx(
        cells["post_cot", 2, "q017"] - cells["label_only", 2, "q017"]
    )
    base = inf.contrast_table(data, {"post_cot": 1.0, "zero_shot": -1.0})
    assert base.loc[1, "q004"] == pytest.approx(
        cells["post_cot", 1, "q004"] - cells["zero_shot", -1, "q004"]
    )
    mixed = inf.contrast_table(
        data.sample(frac=1, random_state=2), {"post_cot": 1.0, "label_only": -1.0}
    )
    pd.testing.assert_frame_equal(table, mixed)


def test_bad_predictions_end_in_one_line(rng):
    data = add_measure(make_predictions(rng, ARMS), "p_gold")
    pair = {"post_cot": 1.0, "label_only": -1.0}
    post, first = data["arm"] == "post_cot", data["id"] == "q003"
    cases = [
        (data[~(post & first)], "do not share their test questions: 1 ids"),
        (data[~(post & first & (data["seed"] == 1))], "seed 1: question q003 is not answered"),
        (pd.concat([data, data[post & first]]), "question q003 is predicted more than once"),
        (data.assign(seed=data["seed"] + 10 * post), "no seed in common"),
        (data[~post], "no predictions of arm 'post_cot'; measured are label_only"),
        (pd.concat([data, data.assign(study="t")]), "several values of study"),
        (data.assign(value=data["value"].mask(first)), "no value for question q003"),
    ]
    for frame, words in cases:
        with pytest.raises(DataError, match=words):
            inf.contrast_table(frame, pair)
    measures = [
        ("speed", {}, "measure is 'speed'"),
        ("p_gold", dict(cut_off="x"), "cut_off is"),
        ("acc_norm", {}, "needs the options' texts"),
        ("acc_norm", dict(options={}), "question q000: no texts"),
        (
            "p_gold",
            dict(options={f"q{i:03}": ["a"] for i in range(60)}),
            "question q000: 4 scores for 1 options",
        ),
        (
            "acc_norm",
            dict(options={f"q{i:03}": ["a", "b", "c", ""] for i in range(60)}),
            "question q000: .* one is empty",
        ),
    ]
    for measure, given, words in measures:
        with pytest.raises(DataError, match=words):
            add_measure(data, measure, **given)
    broken = data.assign(scores=[[0.0, float("nan")]] * len(data))
    with pytest.raises(DataError, match="question q000: scores are"):
        add_measure(broken, "p_gold")
    with pytest.raises(DataError, match="gold is 7 of 4 options"):
        add_measure(data.assign(gold=7), "p_gold")


def test_worlds_of_their_own_need_the_same_questions_in_all_arms(rng):
    data = add_measure(make_predictions(rng, ARMS, worlds="per_seed"), "p_gold")
    pair = {"post_cot": 1.0, "label_only": -1.0}
    table = inf.contrast_table(data, pair, worlds="per_seed")
    assert table.shape == (3, 180) and (table.notna().sum(axis=1) == 60).all()
    with pytest.raises(DataError, match="expected all seeds on the same questions, or worlds"):
        inf.contrast_table(data, pair)
    swapped = data.copy()
    post = swapped["arm"] == "post_cot"
    swapped.loc[post, "seed"] = (swapped.loc[post, "seed"] + 1) % 3
    with pytest.raises(DataError, match="other questions than the other arms"):
        inf.contrast_table(swapped, pair, worlds="per_seed")


# --- the two parts ------------------------------------------------------------------------------


def test_parts_are_the_mean_squares_of_anova(rng):
    values = rng.normal(size=(4, 30)) + rng.normal(size=(4, 1)) + rng.normal(size=(1, 30))
    long = pd.DataFrame([dict(y=values[s, q], s=s, q=q) for s in range(4) for q in range(30)])
    table = anova_lm(smf.ols("y ~ C(s) + C(q)", long).fit())
    of_seeds, of_questions, noise = (table["sum_sq"] / table["df"]).to_numpy()
    parts = inf.split_variance(values)
    np.testing.assert_allclose(parts.seed_variance, of_seeds / 30)
    np.testing.assert_allclose(parts.question_variance, of_questions / 120)
    np.testing.assert_allclose(parts.noise, noise / 120)
    effect = inf.join_variances(parts)
    np.testing.assert_allclose(effect.se**2, (of_seeds + of_questions - noise) / 120)


def test_one_seed_is_the_paired_t_test(rng):
    a, b = rng.normal(0.5, 1, (1, 80)), rng.normal(0.2, 1, (1, 80))
    effect = inf.join_variances(inf.split_variance(a - b))
    theirs = sps.ttest_rel(a[0], b[0])
    assert float(inf.two_sided_p(effect)) == pytest.approx(theirs.pvalue)
    ends = theirs.confidence_interval()
    assert inf.confidence_interval(effect) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert float(inf.equivalence_p(effect, 0.4)) == pytest.approx(
        ttost_paired(a[0], b[0], -0.4, 0.4)[0]
    )
    assert effect.covers == "questions"


@pytest.mark.parametrize("sizes", [[4] * 10, [1, 2, 3, 4, 5] * 6, [1] * 20, [30, 2, 2, 1]])
def test_clusters_are_statsmodels_and_the_matrices_of_bell_and_mccaffrey(rng, sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    y = rng.normal(size=len(labels)) + rng.normal(size=len(sizes))[labels]
    total, count = len(y), len(sizes)
    variance, freedom = inf.cluster_variance(y, labels)
    fit = sm.OLS(y, np.ones(total)).fit(cov_type="cluster", cov_kwds=dict(groups=labels))
    if len(set(sizes)) == 1:  # there CR1, which they have, is CR2
        assert variance == pytest.approx(fit.bse[0] ** 2) and freedom == pytest.approx(count - 1)
    hat = np.eye(total) - 1 / total
    rows = []  # V = sum over clusters of (row @ y)^2
    for one in range(count):
        mine = labels == one
        block = hat[np.ix_(mine, mine)]
        size, vectors = np.linalg.eigh(block)
        inverse_root = vectors @ np.diag(size**-0.5) @ vectors.T
        rows.append(np.ones(mine.sum()) @ inverse_root @ hat[mine] / total)
    rows = np.array(rows)
    gram = np.linalg.eigvalsh(rows @ rows.T)
    assert variance == pytest.approx(((rows @ y) ** 2).sum())
    assert freedom == pytest.approx(gram.sum() ** 2 / (gram**2).sum())
    order = rng.permutation(total)
    assert inf.cluster_variance(y[order], labels[order]) == pytest.approx((variance, freedom))


def test_clustered_noise_is_counted_once(rng):
    """Where seeds disagree by cluster, that is noise and no property of the questions."""
    labels = np.repeat(np.arange(40), 5)
    values = rng.normal(size=(2000, 4, 40))[..., labels]
    parts = inf.split_variance(values, labels)
    assert parts.question_variance.mean() == pytest.approx(1 / 160, rel=0.05)
    assert parts.noise.mean() == pytest.approx(1 / 160, rel=0.05)
    assert parts.design_effect.mean() == pytest.approx(5, rel=0.05)
    assert parts.clusters == 40 and parts.questions == 200


def test_worlds_are_the_unit(rng):
    values = rng.normal(size=(5, 40)) + rng.normal(size=(5, 1))
    effect = inf.join_variances(inf.split_variance(values, nested=True))
    theirs = sps.ttest_1samp(values.mean(1), 0)
    assert float(inf.two_sided_p(effect)) == pytest.approx(theirs.pvalue)
    lucky = values - values.mean(1, keepdims=True) + 0.1  # worlds that agree by luck
    floor = inf.join_variances(inf.split_variance(lucky, nested=True))
    assert float(floor.se) == pytest.approx(np.sqrt((values.var(1, ddof=1) / 40).sum() / 25))
    wide = np.full((5, 200), np.nan)
    for seed in range(5):
        wide[seed, 40 * seed : 40 * seed + 40] = values[seed]
    apart = inf.join_variances(inf.split_variance(wide, nested=True))
    assert (apart.estimate, apart.se, apart.df) == pytest.approx((effect.estimate, effect.se, 4))


def test_bad_tables_are_refused():
    for values, given, words in (
        (np.zeros((2, 1)), {}, "1 test question"),
        (np.zeros((2, 4)), dict(clusters=np.zeros(4)), "1 cluster"),
        (np.array([[1.0, np.nan], [1.0, 2.0]]), {}, "not answered by every seed"),
        (np.zeros((2, 1)), dict(nested=True), "seed number 0: 1 test question"),
    ):
        with pytest.raises(DataError, match=words):
            inf.split_variance(values, **given)


# --- shrinking ----------------------------------------------------------------------------------


def test_the_prior_is_limmas_by_hand():
    """Variances 1, 2, 4, 20 with 4 df: Smyth's section 6.2, step by step, to five digits."""
    logs = np.array([0, 0.693147, 1.386294, 2.995732])
    digamma_2, trigamma_2 = 0.422784, 0.644934  # 1 - Euler's constant, pi^2 / 6 - 1
    mean = logs.mean() - digamma_2 + np.log(2)
    excess = ((logs - logs.mean()) ** 2).sum() / 3 - trigamma_2
    assert (mean, excess) == (pytest.approx(1.539156, abs=1e-5), pytest.approx(1.000841, abs=1e-5))
    d0, common = inf.fit_variance_prior(np.array([1.0, 2.0, 4.0, 20.0]), 4)
    assert special.polygamma(1, d0 / 2) == pytest.approx(excess, abs=1e-5)
    assert common == pytest.approx(np.exp(mean + special.digamma(d0 / 2)) / (d0 / 2), rel=1e-5)
    np.testing.assert_allclose(
        special.polygamma(1, inf.invert_trigamma([1e-3, 0.1, 1, 50])), [1e-3, 0.1, 1, 50], rtol=1e-8
    )


def test_the_prior_finds_what_variances_were_drawn_from(rng):
    true = 0.3 * 6 / rng.chisquare(6, 100_000)  # scaled inverse chi-square, d0 = 6
    sample = true * rng.chisquare(3, 100_000) / 3
    d0, common = inf.fit_variance_prior(sample, 3)
    assert d0 == pytest.approx(6, rel=0.05) and common == pytest.approx(0.3, rel=0.02)
    equal = inf.fit_variance_prior(np.array([1.0, 1.1, 0.9, 1.0]), 3)
    assert np.isinf(equal[0]) and equal[1] == pytest.approx(1.0)
    assert inf.fit_variance_prior(np.array([2.0]), 3) == (0, 2.0)
    mixed = inf.fit_variance_prior(np.array([1.0, np.nan, 5.0, 30.0, 2.0]), [3, 3, 2, 4, 0])
    assert np.isfinite(mixed).all()


def test_shrinking_by_hand():
    parts = inf.split_variance(np.array([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0]]))
    assert float(parts.seed_variance) == pytest.approx(0.16) and parts.seed_df == 2
    prior = inf.SeedPrior(variance=0.01, d0=4.0, pooled_df=14)
    variance, df = inf.shrink_seed_variance(parts, prior, 2.0)
    assert (variance, df) == (pytest.approx((4 * 0.02 + 2 * 0.16) / 6), 6)
    capped = inf.shrink_seed_variance(parts, replace(prior, pooled_df=5), 2.0)
    assert capped[1] == 5
    alone = inf.shrink_seed_variance(parts, inf.SeedPrior(), 2.0)
    assert (alone[0], alone[1]) == (pytest.approx(0.16), 2)
    single = inf.split_variance(np.array([[0.0, 0.2, 0.1]]))
    variance, df = inf.shrink_seed_variance(single, prior, 2.0)
    assert (variance, df) == (pytest.approx(0.02), 4)  # its seed's spread is that of the others
    assert inf.join_variances(single, prior).covers == "questions and seeds"
    assert np.isnan(inf.shrink_seed_variance(single, inf.SeedPrior(), 2.0)[0])


def test_the_seed_prior_leaves_out_what_a_seed_does_to_all_arms(rng):
    means = 0.02 * rng.normal(size=(4000, 8, 5))
    moved = means + 0.5 * rng.normal(size=(4000, 1, 5))
    priors = inf.fit_seed_prior(means), inf.fit_seed_prior(moved)
    np.testing.assert_allclose(priors[0].variance, priors[1].variance)
    assert priors[1].variance.mean() == pytest.approx(0.0004, rel=0.02)
    assert (
        priors[0].pooled_df == 28
        and priors[0].d0.max() == 14
        and np.isinf(priors[0].limma_d0).mean() > 0.4
    )
    assert inf.fit_seed_prior(means[0, :3]).d0 == 0 and inf.fit_seed_prior(means[0, :, :1]).d0 == 0


# --- effects ------------------------------------------------------------------------------------


def test_joined_degrees_of_freedom_are_satterthwaites():
    parts = inf.VarianceParts(
        np.array(0.1),
        np.array(0.0012),
        2,
        np.array(0.0003),
        np.array(0.0001),
        np.array(99.0),
        np.array(1.0),
        3,
        100,
        100,
        False,
    )
    effect = inf.join_variances(
        parts, inf.SeedPrior(0.0006, 4.0, 14)
    )  # what the contrast has itself
    rest = 0.0003**2 / 99 + 0.0001**2 / 198
    assert effect.se**2 == pytest.approx(0.0004 + 0.0002)
    assert effect.df == pytest.approx(0.0006**2 / (0.0004**2 / 6 + rest))
    alone = inf.join_variances(parts)  # not shrunk: at the seeds' upper limit
    limit = 0.0004 * 2 / sps.chi2.ppf(0.1, 2)
    assert alone.se == effect.se
    assert alone.df == pytest.approx((limit + 0.0002) ** 2 / (limit**2 / 2 + rest))
    low = inf.join_variances(replace(parts, seed_variance=np.array(0.0)))
    assert low.se**2 == pytest.approx(0.0003) and low.df == 99  # never below the questions


@pytest.mark.parametrize("seeds, seed_sd", [(3, 0.01), (3, 0.03), (3, 0.1), (5, 0.03), (5, 0.1)])
def test_what_is_not_shrunk_errs_no_more_than_nominal(rng, seeds, seed_sd):
    """A contrast by itself, as in a study of two arms: seeds' luck must not make it bold."""
    values = (
        rng.normal(size=(4000, seeds, 60)) * 0.3
        + rng.normal(size=(4000, 1, 60)) * 0.2
        + rng.normal(size=(4000, seeds, 1)) * seed_sd
    )
    effect = inf.join_variances(inf.split_variance(values))
    for alpha in (0.05, 0.005):
        found = (inf.two_sided_p(effect) < alpha).mean()
        assert found <= sps.binom.ppf(0.999, 4000, alpha) / 4000


def test_nothing_varies():
    same = inf.join_variances(inf.split_variance(np.zeros((3, 20))))
    assert float(inf.two_sided_p(same)) == 1 and inf.detectable_effect(same) == 0
    assert float(inf.equivalence_p(same, 0.02)) == 0
    guarded = inf.join_variances(inf.split_variance(np.zeros((3, 20)), guard=(1.0, -1.0)))
    assert float(inf.equivalence_p(guarded, 0.02)) > 0.05  # 20 equal answers do not show equality
    certain = inf.Effect(0.1, 0.0, 5.0)
    assert float(inf.two_sided_p(certain)) == 0
    with pytest.raises(DataError, match="margin is 0; expected"):
        inf.equivalence_p(same, 0)


def test_intervals_and_p_agree():
    effect = inf.Effect(np.array([0.03, -0.01]), np.array([0.012, 0.02]), np.array([6.0, 40.0]))
    for alpha in (0.05, 0.2):
        low, high = inf.confidence_interval(effect, alpha)
        np.testing.assert_allclose(inf.two_sided_p(effect, low), alpha)
        np.testing.assert_allclose(inf.two_sided_p(effect, high), alpha)
    low, high = inf.confidence_interval(effect, 0.10)
    inside = np.maximum(np.abs(low), np.abs(high))
    for i, margin in enumerate(inside):
        assert inf.equivalence_p(effect, margin)[i] == pytest.approx(0.05)


@pytest.mark.parametrize("n, alpha", [(4, 0.05), (8, 0.05 / 6), (200, 0.05), (4000, 0.01)])
def test_the_detectable_effect_is_that_of_statsmodels(n, alpha):
    wanted = TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8)
    effect = inf.Effect(0.0, 0.03 / np.sqrt(n), n - 1.0)
    assert inf.detectable_effect(effect, alpha) == pytest.approx(0.03 * wanted, rel=1e-3)


@pytest.mark.parametrize("df, alpha", [(2.0, 0.05 / 8), (5.5, 0.01), (60.0, 0.05)])
def test_the_detectable_effect_is_found_as_often_as_said(df, alpha):
    """Power by integration over the chi-square of the variance, without the noncentral t."""
    shift, limit = inf.detectable_effect(inf.Effect(0.0, 1.0, df), alpha), sps.t.isf(alpha / 2, df)
    share = (np.arange(200_000) + 0.5) / 200_000
    power = sps.norm.sf(limit * np.sqrt(sps.chi2.ppf(share, df) / df) - shift).mean()
    assert power == pytest.approx(0.8, abs=2e-4)


# --- shares -------------------------------------------------------------------------------------


def test_fieller_covers_the_ratio(rng):
    covariance = np.array([[0.0009, 0.0004], [0.0004, 0.0008]])
    found = rng.multivariate_normal([0.06, 0.15], covariance, 4000)
    shares = [inf.fieller_interval(x, y, covariance, 1e6) for x, y in found]
    kept = [s for s in shares if np.isfinite(s.low)]
    assert len(kept) > 3900
    assert np.mean([s.low <= 0.4 <= s.high for s in kept]) == pytest.approx(0.95, abs=0.012)
    exact = inf.fieller_interval(0.06, 0.15, 1e-12 * np.eye(2), 50)
    assert (exact.estimate, exact.low, exact.high) == pytest.approx((0.4, 0.4, 0.4), abs=1e-4)
    none = inf.fieller_interval(0.01, 0.02, covariance, 20)
    assert np.isnan(none.low) and "no gain to retain" in none.reason


def test_the_retained_share_of_a_study(rng):
    seeds, found = (0.01 * rng.normal(size=(150, 8, 5, 1))), []
    luck = 0.3 * rng.normal(size=(150, 8, 1, 200)) + 0.2 * rng.normal(size=(150, 8, 5, 200))
    arms = seeds + luck + np.array([0.0, 0.12, 0.2, 0, 0, 0, 0, 0])[:, None, None]
    for study in arms:
        prior = inf.fit_seed_prior(study.mean(-1))
        found.append(inf.retained_share(study[1] - study[0], study[2] - study[0], prior=prior))
    assert np.mean([s.low <= 0.6 <= s.high for s in found]) >= sps.binom.ppf(0.001, 150, 0.95) / 150
    assert np.median([s.estimate for s in found]) == pytest.approx(0.6, abs=0.04)
    gone = inf.retained_share(arms[0, 1] - arms[0, 0], arms[0, 3] - arms[0, 0])
    lost = inf.retained_share(arms[0, 1] - arms[0, 0], arms[0, 0] - arms[0, 2])
    assert "its interval holds 0" in gone.reason and "it is a loss" in lost.reason
    same = inf.retained_share(arms[0, 2] - arms[0, 0], arms[0, 2] - arms[0, 0])
    assert (same.estimate, same.low, same.high) == pytest.approx((1, 1, 1), abs=1e-6)


# --- a study ------------------------------------------------------------------------------------


@pytest.mark.parametrize("worlds", inf.WORLDS)
@pytest.mark.parametrize("measure", ["p_gold", "correct_choice"])
def test_a_study_in_one_table(rng, worlds, measure):
    data = make_predictions(rng, ARMS | {"post_cot_swapped": 0.0}, 4, 90, worlds)
    contrasts = {
        "gain": {"post_cot": 1, "label_only": -1},
        "none": {"post_cot_swapped": 1, "label_only": -1},
        "level": {"post_cot": 1},
        "more": {"post_cot": 1, "label_only": -1, "pre_cot": -1, "post_cot_filler": 1},
    }
    table = inf.estimate_contrasts(data, contrasts, measure, worlds=worlds, cluster="fact")
    rows = table.set_index("contrast")
    assert list(table["contrast"]) == list(contrasts)
    assert rows.loc["gain", "p"] < 0.01 < rows.loc["none", "p"]
    assert (rows["low"] < rows["estimate"]).all() and (rows["estimate"] < rows["high"]).all()
    assert (rows["clusters"] == rows["questions"] / 3).all() and (rows["seeds"] == 4).all()
    assert rows.loc["level", "prior_df"] == 0 < rows.loc["gain", "prior_df"]
    assert (rows["detectable"] > 2.8 * rows["se"]).all() and (rows["flagged"] == 0).all()
    valued = add_measure(data, measure)
    pair = inf.contrast_table(valued, contrasts["gain"], worlds=worlds)
    assert rows.loc["gain", "estimate"] == pytest.approx(pair.mean(axis=1).mean())
    share = inf.estimate_share(
        data, "pre_cot", "post_cot", "label_only", measure, worlds=worlds, cluster="fact"
    )
    assert share.low < share.estimate < share.high
    mixed = inf.estimate_contrasts(
        data.sample(frac=1, random_state=3), contrasts, measure, worlds=worlds, cluster="fact"
    )
    pd.testing.assert_frame_equal(table, mixed)


def test_worlds_that_use_the_same_ids_are_still_apart(rng):
    data = make_predictions(rng, ARMS, 4, 50, "per_seed")
    renamed = data.assign(id=data["id"].str[3:])  # w2-q007 and w3-q007 are both q007
    pair = {"gain": {"post_cot": 1, "label_only": -1}}
    ours = inf.estimate_contrasts(renamed, pair, worlds="per_seed", cluster="fact")
    pd.testing.assert_frame_equal(
        ours, inf.estimate_contrasts(data, pair, worlds="per_seed", cluster="fact")
    )


def test_a_question_has_one_cluster(rng):
    data = make_predictions(rng, ARMS)
    pair = {"gain": {"post_cot": 1, "label_only": -1}}
    two = data.assign(fact=data["fact"].where(data.index != 5, "f19"))
    with pytest.raises(DataError, match="question q005: fact is twofold"):
        inf.estimate_contrasts(two, pair, cluster="fact")
    with pytest.raises(DataError, match="question q000: fact is missing"):
        inf.estimate_contrasts(data.assign(fact=None), pair, cluster="fact")


def test_holm_within_each_family():
    p = np.array([0.01, 0.04, np.nan, 0.012, 0.02, 0.03, 0.2])
    family = ["paper", "paper", "paper", "mechanism", "mechanism", "mechanism", "cost"]
    adjusted = inf.adjust_families(p, family)
    assert adjusted[:2] == pytest.approx(multipletests(p[:2], method="holm")[1])
    assert adjusted[3:6] == pytest.approx([0.036, 0.04, 0.04]) and adjusted[6] == 0.2
    assert np.isnan(adjusted[2])
    with pytest.raises(DataError, match="family is 'ours'; expected one of paper, mechanism, cost"):
        inf.adjust_families([0.1], ["ours"])


# --- calibration --------------------------------------------------------------------------------


def test_simulated_studies_have_the_truth_they_say(rng):
    design = Design(
        seeds=4,
        questions=300,
        seed_sd=SIX,
        random_spread=False,
        effects=(0.0, 0.08, *[0.0] * 6),
        seed_correlation=0.5,
    )
    for measure in ("accuracy", "p_gold"):
        values = simulate_study(rng, replace(design, measure=measure), 300)
        assert values.shape == (300, 8, 4, 300)
        means = values.mean((0, 2, 3)) - design.base
        np.testing.assert_allclose(means, design.effects, atol=0.012)
    apart = values.mean(-1)[:, 7] - values.mean(-1)[:, 6]
    truth = 0.5 * (SIX[6] ** 2 + SIX[7] ** 2) + 0.5 * (SIX[7] - SIX[6]) ** 2 + 2 * 0.08**2 / 300
    assert apart.var(1, ddof=1).mean() == pytest.approx(truth, rel=0.15)


def test_holm_by_hand():
    p = np.array([[0.01, 0.04, 0.03], [0.02, 0.5, 0.6], [0.001, 0.02, 0.06]])
    theirs = [multipletests(row, 0.05, "holm")[0].tolist() for row in p]
    assert calibration._apply_holm(p, 0.05).tolist() == theirs


STUDIES = 400


@pytest.mark.parametrize(
    "design",
    [
        Design(seeds=3, questions=100),
        Design(seeds=3, questions=150, seed_sd=SIX, measure="p_gold"),
        Design(
            seeds=5, questions=200, seed_sd=SIX, cluster_sizes=(1, 2, 3, 4, 5), cluster_share=1.0
        ),
        Design(seeds=10, questions=100, seed_sd=SIX, measure="p_gold", seed_correlation=0.7),
        Design(seeds=5, questions=100, seed_sd=SIX, worlds="per_seed"),
    ],
    ids=str,
)
def test_errors_are_what_they_are_said_to_be(rng, design):
    """Family-wise error between .01 and .08, coverage .93 or more, but for chance (1 in 1,000).

    A difference as large as the margin is called negligible no more often.
    """
    row = calibrate(rng, [design], studies=STUDIES).iloc[0]
    low, high = sps.binom.ppf([0.001], STUDIES, 0.01), sps.binom.ppf([0.999], STUDIES, 0.08)
    assert low[0] / STUDIES <= row["fwer"] <= high[0] / STUDIES
    assert row["false_negligible"] <= high[0] / STUDIES
    assert row["coverage"] >= 0.93 and row["per_claim"] <= 0.07


def test_the_designs_span_what_studies_look_like():
    designs = [d for measure in ("accuracy", "p_gold") for d in calibration_designs(measure)]
    assert len(designs) == 72 and {d.seeds for d in designs} == {3, 5, 10}
    assert {d.questions for d in designs} == {100, 400, 1200}
    assert {round(max(d.seed_sd) / min(d.seed_sd)) for d in designs} == {1, 6}


def test_shrinking_pays_and_clusters_count(rng):
    design = Design(seeds=3, questions=400, measure="p_gold")
    with_prior, without = (
        calibrate(rng, [design], studies=200, shrink=on).iloc[0] for on in (True, False)
    )
    assert with_prior["half_width"] < 0.8 * without["half_width"]
    assert with_prior["power"] > without["power"] + 0.2
    facts = Design(
        seeds=10,
        questions=150,
        seed_sd=(0.002,) * 8,
        measure="p_gold",
        cluster_sizes=(1, 2, 3, 4, 5),
        cluster_share=0.5,
    )
    clustered, ignored = (
        calibrate(rng, [facts], studies=200, use_clusters=on).iloc[0] for on in (True, False)
    )
    assert ignored["per_claim"] > 0.08 > clustered["per_claim"] and clustered["design_effect"] > 1.5


def test_the_calibration_is_saved_as_table_and_figure(tmp_path):
    table = calibration.save_calibration(tmp_path, studies=4, most_questions=100)
    assert len(table) == 12 and {"fwer", "coverage", "power", "clusters"} <= set(table)
    assert (tmp_path / "calibration.png").stat().st_size > 1000
    saved = pd.read_csv(tmp_path / "calibration.csv")
    assert saved["power"].tolist() == table["power"].round(4).tolist()


def test_arms_that_are_not_trained_say_nothing_of_seeds(rng):
    data = make_predictions(rng, ARMS | {"word_frequency": 0.0}, worlds="per_seed", seeds=4)
    valued = add_measure(data, "p_gold")
    without = valued[valued["arm"] != "word_frequency"]
    prior, ours = (inf.study_prior(v, worlds="per_seed") for v in (valued, without))
    assert (prior.variance, prior.pooled_df) == (ours.variance, ours.pooled_df)
