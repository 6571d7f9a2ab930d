"""Statistics against scipy, statsmodels and brute force.

Calibration on simulated data whose truth is known.
"""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats as sps
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from cotdistill import stats as st
from cotdistill.errors import DataError
from cotdistill.verdicts import (
    RULES,
    estimate_text,
    load_claims,
    pool,
    resolve_contrast,
    verdicts,
)

CLAIMS = "params/claims.yaml"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def contrast(data, rng, a, b, n_boot=2000):
    """The estimate of a - b by forced choice, and its two levels."""
    table = st.contrast_table(data, {a: 1.0, b: -1.0}, "correct_choice")
    return st.estimate_contrast(table, "correct_choice", rng, n_boot)


def answers(rng, shape, accuracy, seed_sd=0.0, question_sd=0.25, hard=None):
    """Right/wrong tables (..., S, N).

    The chance of an answer varies by seed and by question (`hard`, if shared).
    """
    *batch, seeds, questions = shape
    hard = rng.normal(0, question_sd, (*batch, 1, questions)) if hard is None else hard
    chance = accuracy + hard + rng.normal(0, seed_sd, (*batch, seeds, 1))
    return (rng.random(shape) < chance).astype(float)


def predictions(rng, accuracies, seeds=3, questions=200, study="s", seed_sd=0.0):
    """A predictions table as the run store gives it, all arms on the same questions."""
    hard, frames = rng.normal(0, 0.2, (1, questions)), []
    for arm, accuracy in accuracies.items():
        numbers = [st.SHARED_SEED] if arm == "zero_shot" else range(seeds)
        table = answers(rng, (len(numbers), questions), accuracy, seed_sd, hard=hard).astype(bool)
        for seed, right in zip(numbers, table, strict=False):
            frames.append(
                pd.DataFrame(
                    dict(
                        study=study,
                        dataset="d",
                        student="tiny",
                        arm=arm,
                        seed=seed,
                        id=[f"q{i}" for i in range(questions)],
                        gold=0,
                        generated=pd.array(np.where(right, 0, 1), dtype="Int64"),
                        choice=np.where(right, 0, 1),
                        correct_generated=right,
                        correct_choice=right,
                        cut_off=False,
                        tokens_generated=rng.poisson(40 if arm.startswith("pre") else 3, questions)
                        + 1,
                    )
                )
            )
    return pd.concat(frames, ignore_index=True)


def claim(**changes):
    return (
        dict(
            id="x",
            words="post beats label",
            section="ours",
            contrast=dict(a=["post_cot"], b=["label_only"]),
            measure="correct_choice",
            direction="greater",
            margin=0,
            rule="difference",
        )
        | changes
    )


# --- the estimates
# ----------------------------------------------------------------------


def test_mean_squares_are_those_of_anova(rng):
    values = rng.normal(size=(4, 9)) + rng.normal(size=(4, 1)) + rng.normal(size=(1, 9))
    long = pd.DataFrame([dict(y=values[s, q], s=s, q=q) for s, q in product(range(4), range(9))])
    table = anova_lm(smf.ols("y ~ C(s) + C(q)", long).fit())
    np.testing.assert_allclose(st.mean_squares(values), (table["sum_sq"] / table["df"]).to_numpy())


def test_one_seed_is_the_paired_t_test_and_scipys_bootstrap(rng):
    a, b = answers(rng, (1, 400), 0.5), answers(rng, (1, 400), 0.42)
    level = st.two_level_bootstrap(a - b, rng, n_boot=20_000, guard=())
    assert float(st.p_value(level)) == pytest.approx(sps.ttest_rel(a[0], b[0]).pvalue, rel=0.1)
    theirs = sps.bootstrap(((a - b)[0],), np.mean, n_resamples=5000, rng=rng)
    assert float(level.se_questions) == pytest.approx(theirs.standard_error, rel=0.05)
    half = float(st.half_width(level))
    assert (level.estimate - half, level.estimate + half) == pytest.approx(
        theirs.confidence_interval, abs=0.006
    )


def test_seeds_alone_give_the_t_test_over_seeds(rng):
    # Questions agree: only seeds vary
    values = np.repeat(rng.normal(0.05, 0.04, (4, 1)), 50, axis=1)
    level = st.two_level_bootstrap(values, rng, n_boot=20_000, guard=())
    assert float(st.p_value(level)) == pytest.approx(
        sps.ttest_1samp(values[:, 0], 0).pvalue, rel=0.1
    )
    assert float(level.se_questions) == pytest.approx(0, abs=1e-12)


def test_p_value_is_where_the_interval_reaches_zero(rng):
    level = st.two_level_bootstrap(answers(rng, (3, 100), 0.6) - answers(rng, (3, 100), 0.5), rng)
    p = float(st.p_value(level))
    assert float(st.half_width(level, p)) == pytest.approx(abs(float(level.estimate)), rel=1e-6)
    assert st.one_sided(level, 0, True) + st.one_sided(level, 0, False) == pytest.approx(1)


def test_accuracy_table(rng):
    data = predictions(rng, {"zero_shot": 0.3, "post_cot": 0.5})
    data.loc[data.index[:5], "generated"] = pd.NA
    data.loc[data.index[-2:], "cut_off"] = True
    table = st.accuracy_table(data, rng=rng).set_index("arm")
    assert list(table.index) == ["zero_shot", "post_cot"]
    assert table["accuracy"].to_dict() == pytest.approx(
        data.groupby("arm")["correct_choice"].mean().to_dict()
    )
    assert list(table["covers"]) == ["questions", "questions and seeds"] and list(
        table["seeds"]
    ) == [1, 3]
    assert list(table["parse_failures"]) == [5, 0] and list(table["cut_off"]) == [0, 2]
    assert table.loc["zero_shot", "tokens_per_question"] == pytest.approx(
        data.loc[data["arm"] == "zero_shot", "tokens_generated"].mean()
    )


def test_all_right_does_not_mean_certain(rng):
    low = st.accuracy_table(predictions(rng, {"post_cot": 5.0}, seeds=1, questions=100), rng=rng)[
        "low"
    ].iloc[0]
    exact = proportion_confint(100, 100, method="beta")[0]
    assert exact - 0.03 < low < 0.995
    same = predictions(rng, {"post_cot": 5.0, "label_only": 5.0}, questions=20)
    p, _ = RULES["equivalence"].judge(
        contrast(same, rng, "post_cot", "label_only")[1], 0.02, "equal"
    )
    assert p >= 0.05


def test_seeds_that_agree_by_luck_do_not_narrow_an_interval(rng):
    """Two seeds with the same mean difference and other answers.

    The interval is that of the questions with the seeds as given.
    """
    data = answers(rng, (2, 160), 0.5) - answers(rng, (2, 160), 0.4)
    data[1] = rng.permutation(data[0])
    level = st.two_level_bootstrap(data, rng, 20_000)
    questions = np.concatenate([data.mean(0), [1, -1]])
    assert level.se_seeds == 0 and level.se_questions < level.se_alone == pytest.approx(
        questions.std() / np.sqrt(162), rel=0.02
    )
    assert st.half_width(level) == pytest.approx(sps.t.ppf(0.975, 159) * level.se_alone)


def test_a_claim_without_its_gain_is_open(rng):
    """Rationales that do nothing, and shuffled ones that do nothing.

    Equal, but there was nothing to keep.
    """
    gain = claim(id="gain")
    same = claim(
        id="same",
        contrast=dict(a=["post_cot_shuffled[token]"], b=["post_cot"]),
        rule="equivalence",
        direction="equal",
        margin=0.05,
        requires="gain",
    )
    for accuracy, verdict in ((0.4, "inconclusive"), (0.6, "supported")):
        arms = {"label_only": 0.4, "post_cot": accuracy, "post_cot_shuffled[token]": accuracy}
        table = verdicts(
            predictions(rng, arms, seeds=5, questions=4000), [gain, same], rng
        ).set_index("claim")
        assert table["p_holm"]["same"] < 0.05 and table["verdict"]["same"] == verdict
        assert ("no gain to keep" in table["reason"]["same"]) == (
            verdict == "inconclusive"
        ) and "within ±5 points" in table["reason"]["same"]


def test_arms_that_trained_on_the_same_texts_are_not_shown_to_be_equivalent(rng):
    """Fifteen tokens kept of rationales of twelve: equal by construction."""
    same = claim(
        id="same",
        contrast=dict(a=["post_cot_kept[15,random]"], b=["post_cot"]),
        rule="equivalence",
        direction="equal",
        margin=0.05,
    )
    data = predictions(
        rng, {"post_cot": 0.6, "post_cot_kept[15,random]": 0.6}, seeds=5, questions=4000
    )
    for share, verdict in ((None, "supported"), (0.2, "supported"), (0.58, "inconclusive")):
        row = verdicts(
            data,
            [same],
            rng,
            as_intact={} if share is None else {"post_cot_kept[15,random]": share},
        ).iloc[0]
        assert row["verdict"] == verdict and ("58 % of the training texts" in row["reason"]) == (
            share == 0.58
        )


def test_an_interval_is_the_same_whatever_was_computed_before(rng):
    data, fresh = predictions(rng, ARMS), np.random.default_rng(1)
    alone = st.paired_difference(data, "post_cot", "pre_cot", rng=np.random.default_rng(1))
    (
        st.accuracy_table(data, rng=fresh),
        st.paired_difference(data, "pre_cot", "label_only", rng=fresh),
    )
    after = st.paired_difference(data, "post_cot", "pre_cot", rng=fresh)
    assert [after[k] for k in ("low", "high", "p")] == [alone[k] for k in ("low", "high", "p")]
    assert (
        st.paired_difference(data, "post_cot", "pre_cot", rng=np.random.default_rng(2))["low"]
        != alone["low"]
    )


def test_where_nothing_differs_nothing_is_claimed(rng):
    """No answer is right in either arm.

    Every per-token value is 0, the interval has no width, and p is 1.
    """
    none = predictions(rng, {"post_cot": 0.5, "pre_cot": 0.5}, questions=40).assign(
        correct_generated=False
    )
    rates = claim(contrast=dict(a=["post_cot"], b=["pre_cot"]), measure="correct_per_100_tokens")
    row = verdicts(none, [rates], rng).iloc[0]
    assert (row["verdict"], row["p"], row["low"], row["high"]) == ("inconclusive", 1.0, 0.0, 0.0)
    some = [
        verdicts(predictions(rng, {"post_cot": 0.5, "pre_cot": 0.5}, questions=40), [rates], rng)
        for _ in range(2)
    ]
    pooled = pool([verdicts(none, [rates], rng), *some]).iloc[0]
    assert pooled["studies"] == 2 and pooled["low"] < pooled["estimate"] < pooled["high"]


def test_a_number_says_what_it_measures(rng):
    rows = [
        claim(id=m, contrast=dict(a=["post_cot"], b=["pre_cot"]), measure=m) for m in st.MEASURES
    ]
    table = verdicts(predictions(rng, ARMS), rows, rng).set_index("claim")
    assert table["contrast"].tolist() == [
        "post_cot − pre_cot",
        "post_cot − pre_cot (answers as written)",
        "post_cot − pre_cot (right answers per 100 tokens)",
    ]
    assert (
        "points (answers as written)" in table["reason"]["correct_generated"]
        and "written" not in table["reason"]["correct_choice"]
    )
    row = table.loc["correct_choice"]
    assert estimate_text(row) == (
        f"{100 * row['estimate']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    )


def test_accuracy_per_token_is_a_ratio_with_its_spread(rng):
    data = predictions(rng, {"pre_cot": 0.6}, seeds=1, questions=300)
    table = st.seed_table(data, "pre_cot", "correct_per_100_tokens").to_numpy()
    correct, tokens = (
        data["correct_generated"].to_numpy(float),
        data["tokens_generated"].to_numpy(float),
    )
    ratio = 100 * correct.sum() / tokens.sum()
    assert table.mean() == pytest.approx(ratio)
    without = np.array(
        [
            100 * (correct.sum() - c) / (tokens.sum() - t)
            for c, t in zip(correct, tokens, strict=False)
        ]
    )
    jackknife = np.sqrt(299 / 300 * ((without - without.mean()) ** 2).sum())
    assert float(st.two_level_bootstrap(table, rng, guard=()).se_questions) == pytest.approx(
        jackknife, rel=0.06
    )


def test_mcnemar_is_scipys_binomial_test(rng):
    data = predictions(rng, {"post_cot": 0.6, "label_only": 0.5})
    for row in st.paired_difference(data, "post_cot", "label_only", rng=rng)[
        "mcnemar"
    ].itertuples():
        right = data[data["seed"] == row.seed].pivot(
            index="id", columns="arm", values="correct_choice"
        )
        only_a = (right["post_cot"] & ~right["label_only"]).sum()
        only_b = (right["label_only"] & ~right["post_cot"]).sum()
        assert (row.only_a, row.only_b) == (only_a, only_b)
        assert row.p == pytest.approx(sps.binomtest(int(only_a), int(only_a + only_b)).pvalue)


def test_gee_is_logistic_regression_clustered_on_the_question(rng):
    data = predictions(rng, {"post_cot": 0.55, "label_only": 0.5}, questions=150)
    long = data.assign(y=data["correct_choice"].astype(int), group=data["id"].str[1:].astype(int))
    fit = smf.logit("y ~ C(arm, Treatment('label_only')) + C(seed)", long).fit(
        disp=0, cov_type="cluster", cov_kwds=dict(groups=long["group"], use_correction=False)
    )
    p = st.paired_difference(data, "post_cot", "label_only", rng=rng)["p_gee"]
    assert p == pytest.approx(fit.pvalues.iloc[1], rel=1e-3)


def test_tost_with_one_seed_is_statsmodels(rng):
    data = predictions(rng, {"a": 0.5, "b": 0.5}, seeds=1, questions=1500)
    a, b = (st.seed_table(data, arm).to_numpy()[0] for arm in "ab")
    _, level = contrast(data, rng, "a", "b", n_boot=5000)
    p, verdict = RULES["equivalence"].judge(level, 0.05, "equal")
    assert verdict == "supported"
    assert p == pytest.approx(ttost_paired(a, b, -0.05, 0.05)[0], rel=0.1)
    half = st.half_width(level, 0.10)  # TOST at 5 %: the 90 % interval lies within the margin
    assert (p < 0.05) == (level.estimate - half > -0.05 and level.estimate + half < 0.05)


def test_interaction_is_the_difference_of_differences(rng):
    data = predictions(rng, {"a": 0.7, "b": 0.4, "c": 0.6, "d": 0.5})
    four = claim(contrast=dict(a=["a"], b=["b"], c=["c"], d=["d"]), rule="interaction")
    found = verdicts(data, [four], rng).iloc[0]
    assert found["contrast"] == "(a − b) − (c − d)"
    parts = [st.paired_difference(data, *pair, rng=rng)["estimate"] for pair in ("ab", "cd")]
    assert found["estimate"] == pytest.approx(parts[0] - parts[1]) and found["p"] < 0.05


def test_holm_by_hand():
    assert st.holm([0.01, np.nan, 0.04, 0.03]) == pytest.approx(
        [0.03, np.nan, 0.06, 0.06], nan_ok=True
    )


def test_untrained_arm_is_compared_with_every_seed(rng):
    data = predictions(rng, {"zero_shot": 0.3, "post_cot": 0.5})
    found = st.paired_difference(data, "post_cot", "zero_shot", rng=rng)
    means = data.groupby("arm")["correct_choice"].mean()
    assert found["seeds"] == 3 and found["estimate"] == pytest.approx(
        means["post_cot"] - means["zero_shot"]
    )


# --- calibration
# ----------------------------------------------------------------------


def at_most(rate, times):
    """The largest share of `times` that chance allows (1 in 1,000) if the true rate is `rate`."""
    return sps.binom.ppf(0.999, times, rate) / times


@pytest.mark.parametrize(
    "seeds, seed_sd", [(1, 0.0), (3, 0.0), (3, 0.03), (3, 0.1), (5, 0.03), (5, 0.1)]
)
def test_false_positives_at_most_nominal(rng, seeds, seed_sd):
    shape = (3000, seeds, 200)
    hard = rng.normal(0, 0.25, (3000, 1, 200))
    tables = answers(rng, shape, 0.45, seed_sd, hard=hard) - answers(
        rng, shape, 0.45, seed_sd, hard=hard
    )
    level = st.two_level_bootstrap(tables, rng, n_boot=500)
    for alpha in (0.05, 0.005):
        assert (np.abs(level.estimate) > st.half_width(level, alpha)).mean() <= at_most(alpha, 3000)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_accuracy_intervals_cover(rng, seeds):
    level = st.two_level_bootstrap(
        answers(rng, (2000, seeds, 100), 0.5, 0.04 * (seeds > 1)), rng, 500, (1.0, 1.0, 0.0, 0.0)
    )
    assert (np.abs(level.estimate - 0.5) > st.half_width(level)).mean() <= at_most(0.05, 2000)


def test_equivalence_is_not_found_at_the_margin(rng):
    shape, hard = (3000, 3, 300), rng.normal(0, 0.15, (3000, 1, 300))
    tables = answers(rng, shape, 0.56, 0.02, hard=hard) - answers(rng, shape, 0.5, 0.02, hard=hard)
    level, truth = st.two_level_bootstrap(tables, rng, 500), 0.06
    assert (np.abs(level.estimate) + st.half_width(level, 0.10) < truth).mean() <= at_most(
        0.05, 3000
    )


def test_holm_keeps_the_error_of_a_whole_study(rng):
    """Where nothing differs, Holm errs exactly where its first step does.

    The smallest p below alpha / claims.
    """
    shape = (1000, 8, 3, 150)
    level = st.two_level_bootstrap(
        answers(rng, shape, 0.5, 0.03) - answers(rng, shape, 0.5, 0.03), rng, 300
    )
    p = st.p_value(
        st.TwoLevel(
            level.estimate[:5],
            level.se_seeds[:5],
            level.se_questions[:5],
            level.se_alone[:5],
            *level[4:],
        )
    )
    first_step = (np.abs(level.estimate) > st.half_width(level, 0.05 / 8)).any(-1)
    assert first_step[:5].tolist() == [bool((st.holm(row) < 0.05).any()) for row in p]
    assert first_step.mean() <= at_most(0.05, 1000)


@pytest.mark.parametrize("seeds, seed_sd", [(3, 0.0), (5, 0.02), (10, 0.03)])
def test_power_keeps_its_promise(rng, seeds, seed_sd):
    shape, hard = (1500, seeds, 300), rng.normal(0, 0.25, (1500, 1, 300))
    tables = answers(rng, shape, 0.52, seed_sd, hard=hard) - answers(
        rng, shape, 0.45, seed_sd, hard=hard
    )
    parts = [st.variance_parts(table) for table in tables[:300]]
    # The true variances, nearly
    squares = [m.mean() for m in st.mean_squares(tables)]
    variances = dict(
        seed=max(squares[0] - squares[2], 0) / 300,
        question=(squares[1] - squares[2]) / seeds,
        noise=squares[2],
    )
    assert np.mean([v["noise"] for v in parts]) == pytest.approx(variances["noise"], rel=0.05)
    promised = st.power(variances, seeds, 300, tables.mean(), rng=rng, n_sim=20_000)
    level = st.two_level_bootstrap(tables, rng, n_boot=500)
    assert (level.estimate - st.half_width(level) > 0).mean() == pytest.approx(promised, abs=0.05)


@pytest.mark.parametrize("rule", ["equivalence", "noninferiority"])
def test_power_of_the_bounded_rules(rng, rule):
    variances, margin = dict(seed=0.0002, question=0.05, noise=0.2), 0.05
    tables = (
        rng.normal(0, variances["seed"] ** 0.5, (1500, 5, 1))
        + rng.normal(0, 0.2**0.5, (1500, 5, 300))
        + rng.normal(0, 0.05**0.5, (1500, 1, 300))
    )
    level = st.two_level_bootstrap(tables, rng, n_boot=500, guard=())
    shown = (
        np.abs(level.estimate) + st.half_width(level, 0.10) < margin
        if rule == "equivalence"
        else level.estimate - st.half_width(level) > -margin
    )
    promised = st.power(variances, 5, 300, 0.0, rng=rng, rule=rule, margin=margin, n_sim=20_000)
    assert 0.3 < promised < 0.95 and shown.mean() == pytest.approx(promised, abs=0.04)


def test_needed_is_enough_and_not_too_much(rng):
    variances = dict(seed=0.0004, question=0.05, noise=0.2)
    size = st.required_size(variances, 10, 500, 0.03, rng=rng)
    by = lambda seeds, questions: st.power(variances, seeds, questions, 0.03, rng=rng, n_sim=20_000)
    assert (
        by(size["seeds"], 500) == pytest.approx(0.8, abs=0.04) and by(size["seeds"] - 2, 500) < 0.8
    )
    assert by(10, size["questions"]) == pytest.approx(0.8, abs=0.04)
    stuck = st.required_size(dict(seed=0.01, question=0.05, noise=0.2), 3, 500, 0.02, rng=rng)
    # Questions never make up for seeds
    assert stuck["questions"] is None


# --- verdicts
# ----------------------------------------------------------------------

ARMS = {"label_only": 0.3, "pre_cot": 0.3, "post_cot": 0.6}


def test_one_seed_claims_nothing(rng):
    table = verdicts(predictions(rng, ARMS, seeds=1), load_claims(CLAIMS), rng)
    assert set(table["verdict"]) == {"inconclusive", "not measured"}
    first = table.iloc[0]
    assert (
        first["p"] < 1e-4
        and "One seed" in first["reason"]
        and first["needed"].startswith("at least 3 seeds")
    )
    assert table[table["verdict"] == "inconclusive"]["needed"].str.len().gt(0).all()


def test_each_verdict(rng):
    data = predictions(rng, ARMS | {"post_cot_shuffled[token]": 0.6}, seeds=6, questions=400)
    claims = [
        claim(id="yes"),
        claim(id="no", direction="less"),
        claim(id="no_arm", contrast=dict(a=["nix"], b=["pre_cot"])),
        claim(id="flat", contrast=dict(a=["pre_cot"], b=["label_only"])),
        claim(
            id="same",
            contrast=dict(a=["pre_cot"], b=["label_only"]),
            rule="equivalence",
            direction="equal",
            margin=0.2,
        ),
        claim(id="differs", rule="equivalence", direction="equal", margin=0.02),
        claim(id="not_worse", rule="noninferiority", direction="not_less", margin=0.02),
        claim(
            id="worse",
            contrast=dict(a=["label_only"], b=["post_cot"]),
            rule="noninferiority",
            direction="not_less",
            margin=0.02,
        ),
    ]
    table = verdicts(data, claims, rng).set_index("claim")
    assert table["verdict"].to_dict() == dict(
        yes="supported",
        no="contradicted",
        no_arm="not measured",
        flat="inconclusive",
        same="supported",
        differs="contradicted",
        not_worse="supported",
        worse="contradicted",
    )
    assert table.loc["no_arm", "reason"] == "No run of nix." and pd.isna(
        table.loc["no_arm", "estimate"]
    )
    assert "80 % power" in table.loc["flat", "needed"] and table.loc["yes", "needed"] == ""
    measured = table.drop(index="no_arm")
    assert measured["p_holm"].to_numpy() == pytest.approx(st.holm(measured["p"].to_numpy()))
    assert (table["n"].dropna() == 400).all() and (table["seeds"].dropna() == 6).all()


def test_what_is_missing_is_named(rng):
    data = predictions(rng, ARMS, questions=30)
    reasons = verdicts(data, load_claims(CLAIMS), rng).set_index("claim")["reason"]
    assert reasons["shuffle_hurts_pre_more"] == (
        "No run of pre_cot_shuffled[token] and post_cot_shuffled[*]."
    )
    assert reasons["key_tokens_suffice"] == "No run of post_cot_kept[15,integrated_gradients]."
    apart = data.assign(seed=data["seed"] + 10 * (data["arm"] == "label_only"))
    row = verdicts(apart, [claim()], rng).iloc[0]
    assert row["verdict"] == "not measured" and row["reason"] == (
        "No seed was run for all of post_cot, label_only."
    )


def test_same_seed_same_verdicts(rng):
    data, claims = predictions(rng, ARMS), load_claims(CLAIMS)
    tables = [verdicts(data, claims, np.random.default_rng(3)) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)
    shuffled = verdicts(data.sample(frac=1, random_state=1), claims, np.random.default_rng(3))
    # The order of rows does not matter
    pd.testing.assert_frame_equal(tables[0], shuffled)


def test_like_is_compared_with_like():
    contrast = dict(a=["kept[(15),ig]", "kept[*,ig]"], b=["kept[$1,random]"])
    resolve = lambda *arms: resolve_contrast(contrast, list(arms))
    assert resolve("kept[5,ig]", "kept[15,ig]", "kept[5,random]", "kept[15,random]") == dict(
        a="kept[15,ig]", b="kept[15,random]"
    )
    assert resolve("kept[5,ig]", "kept[15,ig]", "kept[5,random]") == dict(
        a="kept[5,ig]", b="kept[5,random]"
    )
    assert resolve("kept[5,ig]", "kept[15,random]") is None
    assert (
        resolve_contrast(
            dict(a=["post_cot[label_weight=*]"], b=["post_cot"]), ["post_cot", "post_cot_x"]
        )
        is None
    )
    assert resolve_contrast(
        dict(a=["kept[*,ig]"]), ["kept[0.5,ig]", "kept[10,ig]", "kept[5,ig]"]
    ) == {"a": "kept[5,ig]"}


def test_the_claims_cover_the_issue_and_name_no_unknown_arm():
    claims = {c["id"]: c for c in load_claims(CLAIMS)}
    rules = {
        "post_beats_label_only": "difference",
        "post_beats_pre": "difference",
        "shuffle_spares_post": "equivalence",
        "shuffle_hurts_pre": "difference",
        "shuffle_hurts_pre_more": "interaction",
        "key_tokens_suffice": "equivalence",
        "key_tokens_beat_random": "difference",
        "full_mask_is_label_only": "equivalence",
        "no_reasoning_costs_nothing": "noninferiority",
        "right_answers_per_token": "difference",
        "own_rationale_beats_swapped": "difference",
        "rationale_beats_filler": "difference",
        "label_weight_helps": "difference",
        "shuffled_beats_label_only": "difference",
        "shuffle_hurts_pre_written": "difference",
        "key_tokens_beat_label_only": "difference",
    }
    assert {k: c["rule"] for k, c in claims.items()} == rules
    from cotdistill.arms import arm_from_name

    assert {k for k, c in claims.items() if c.get("requires") == "post_beats_label_only"} == {
        k for k, rule in rules.items() if rule == "equivalence"
    }
    for c in claims.values():
        for pattern in sum(c["contrast"].values(), []):
            arm_from_name(pattern.split("[")[0])


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "- {id: x, words: w, section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: less, margin: 0, rule: difference, requires: y}",
            "requires 'y'; expected the id of a claim that requires none",
        ),
        (
            "- {id: x, words: w, section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: less, margin: 0, rule: difference, requires: x}",
            "requires 'x'; expected the id of a claim that requires none",
        ),
        ("- [", "not YAML"),
        ("a: 1", "expected a list"),
        ("- {id: x}", "claim x: fields are"),
        (
            "- {id: x, words: w, section: s, contrast: {a: [p], b: [q]}, measure: m, direction: "
            "greater, margin: 0, "
            "rule: difference}",
            "measure is 'm'",
        ),
        (
            "- {id: x, words: w, section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: equal, "
            "margin: 0, rule: equivalence}",
            "margin is 0; expected a fraction above 0",
        ),
        (
            "- {id: x, words: w, section: s, contrast: {a: [p]}, measure: correct_choice, "
            "direction: "
            "less, margin: 0, "
            "rule: difference}",
            "contrast is",
        ),
        (
            "- {id: x, words: w, section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: up, margin: 0, "
            "rule: difference}",
            "rule 'difference' with direction 'up'",
        ),
    ],
)
def test_bad_claims_name_the_file_and_the_claim(tmp_path, text, words):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match="claims.yaml") as error:
        load_claims(path)
    assert words in str(error.value)


def test_bad_predictions(rng):
    data = predictions(rng, ARMS, questions=20)
    less = data.drop(data.index[(data["arm"] == "post_cot") & data["id"].isin(["q3", "q4"])])
    with pytest.raises(
        DataError,
        match=r"2 ids only in 'label_only'|only in 'post_cot', 2 only "
        r"in 'label_only'",
    ):
        st.paired_difference(less, "post_cot", "label_only", rng=rng)
    with pytest.raises(DataError, match="predicted more than once"):
        st.seed_table(pd.concat([data, data.iloc[:1]]), "label_only")
    with pytest.raises(DataError, match="no correct_choice for 1 of 60"):
        st.seed_table(data.drop(data.index[0]), "label_only")
    with pytest.raises(DataError, match="no predictions of arm 'nix'"):
        st.paired_difference(data, "nix", "label_only", rng=rng)
    with pytest.raises(DataError, match="no seed in common"):
        apart = data.assign(seed=data["seed"] + 10 * (data["arm"] == "pre_cot"))
        st.paired_difference(apart, "pre_cot", "post_cot", rng=rng)
    with pytest.raises(DataError, match="several values of study"):
        verdicts(pd.concat([data, data.assign(study="t")]), [claim()], rng)
    with pytest.raises(DataError, match="measure is 'speed'"):
        st.seed_table(data, "post_cot", "speed")


# --- across studies
# ----------------------------------------------------------------------


def test_pool_is_dersimonian_laird_by_hand():
    effect, se = np.array([0.10, 0.02, 0.05, -0.01]), np.array([0.02, 0.01, 0.03, 0.02])
    z = sps.norm.ppf(0.975)
    tables = [
        pd.DataFrame(
            [
                dict(
                    claim="x",
                    words="w",
                    measure="m",
                    estimate=e,
                    low=e - z * s,
                    high=e + z * s,
                    p=0.5,
                    seeds=3,
                )
            ]
        )
        for e, s in zip(effect, se, strict=False)
    ]
    row = pool(tables).iloc[0]
    w = 1 / se**2
    q = (w * (effect - (w * effect).sum() / w.sum()) ** 2).sum()
    tau2 = (q - 3) / (w.sum() - (w**2).sum() / w.sum())
    v = 1 / (se**2 + tau2)
    mean = (v * effect).sum() / v.sum()
    knapp = np.sqrt((v * (effect - mean) ** 2).sum() / v.sum() / 3)
    half = max(z / np.sqrt(v.sum()), sps.t.ppf(0.975, 3) * knapp)
    assert (row["estimate"], row["tau2"], row["i2"]) == pytest.approx((mean, tau2, 1 - 3 / q))
    assert (row["low"], row["high"]) == pytest.approx((mean - half, mean + half)) and row[
        "studies"
    ] == 4
    # No spread: tau2 is not below 0
    same = pool([tables[0], tables[0]]).iloc[0]
    assert same["tau2"] == 0 and same["high"] - same["estimate"] == pytest.approx(
        z * 0.02 / np.sqrt(2)
    )
    alone = pool(tables[:1]).iloc[0]
    assert (alone["low"], alone["high"]) == pytest.approx((0.10 - z * 0.02, 0.10 + z * 0.02))


def test_pool_leaves_out_what_was_not_measured(rng):
    claims = load_claims(CLAIMS)
    tables = [
        verdicts(predictions(rng, ARMS, seeds=s, study=f"s{s}", questions=60), claims, rng)
        for s in (1, 3)
    ]
    pooled = pool(tables).set_index("claim")
    assert set(pooled.index) == set(tables[0].loc[tables[0]["estimate"].notna(), "claim"])
    assert pooled.loc["post_beats_pre", ["studies", "one_seed_studies"]].tolist() == [2, 1]
