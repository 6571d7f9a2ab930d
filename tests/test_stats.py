"""Tables of arms and verdicts, on made-up predictions whose effects are known."""

import numpy as np
import pandas as pd
import pytest
from scipy import special
from scipy import stats as sps
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from cotdistill import inference, readings
from cotdistill import stats as st
from cotdistill.arms import arm_from_name
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.inference import FAMILIES
from cotdistill.measures import MEASURES
from cotdistill.summaries import paired_table, share_table, verdict_table
from cotdistill.verdicts import (
    RULES,
    estimate_text,
    load_claims,
    resolve_contrast,
    verdicts,
)

CLAIMS = "params/claims.yaml"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def predictions(rng, accuracies, seeds=3, questions=200, study="s", seed_sd=0.0):
    """A predictions table as the run store gives it, all arms on the same questions."""
    hard, frames = rng.normal(0, 0.2, questions), []
    for arm, accuracy in accuracies.items():
        for seed in [inference.SHARED_SEED] if arm == "zero_shot" else range(seeds):
            chance = accuracy + hard + rng.normal(0, seed_sd)
            right = rng.random(questions) < chance
            sure = np.clip(
                0.25 + (accuracy + hard) / 2 + rng.normal(0, 0.03, questions), 0.02, 0.98
            )
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
                        scores=[[float(x), 0.0] for x in special.logit(sure)],
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
            family="paper",
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


SAME = dict(rule="equivalence", direction="equal", margin=0.05, measure="p_gold")
ARMS = {"label_only": 0.3, "pre_cot": 0.3, "post_cot": 0.6}


def judge(data, *claims, **how):
    return verdicts(data, list(claims), **how).set_index("claim")


# --- tables of arms
# ----------------------------------------------------------------------


def test_accuracy_table(rng):
    data = predictions(rng, {"zero_shot": 0.3, "post_cot": 0.5})
    data.loc[data.index[:5], "generated"] = pd.NA
    data.loc[data.index[-2:], "cut_off"] = True
    table = st.accuracy_table(data).set_index("arm")
    assert list(table.index) == ["zero_shot", "post_cot"]
    assert table["accuracy"].to_dict() == pytest.approx(
        data.groupby("arm")["correct_choice"].mean().to_dict()
    )
    assert list(table["covers"]) == ["questions", "questions and seeds"]
    assert list(table["seeds"]) == [1, 3]
    assert list(table["parse_failures"]) == [5, 0] and list(table["cut_off"]) == [0, 2]
    assert table.loc["zero_shot", "tokens_per_question"] == pytest.approx(
        data.loc[data["arm"] == "zero_shot", "tokens_generated"].mean()
    )
    sure = special.expit([scores[0] for scores in data["scores"]])
    assert table["p_gold"].to_dict() == pytest.approx(
        pd.Series(sure).groupby(data["arm"]).mean().to_dict()
    )
    # one seed: the t interval over questions
    one = pd.Series(sure)[data["arm"] == "zero_shot"]
    low, _ = sps.t.interval(0.95, 199, one.mean(), sps.sem(one))
    assert table.loc["zero_shot", "p_gold_low"] == pytest.approx(low)
    assert "acc_norm" not in table and "direct" not in table
    both = st.accuracy_table(pd.concat([data, data.assign(study="t")]))
    assert list(both["study"]) == ["s", "s", "t", "t"] and list(both)[:4] == [
        "study",
        "dataset",
        "student",
        "arm",
    ]


def test_all_right_does_not_mean_certain(rng):
    low = st.accuracy_table(predictions(rng, {"post_cot": 5.0}, seeds=1, questions=100))["low"][0]
    assert proportion_confint(100, 100, method="beta")[0] - 0.03 < low < 0.995
    same = predictions(rng, {"post_cot": 5.0, "label_only": 5.0}, questions=20)
    row = judge(same, claim(**SAME | dict(measure="correct_choice", margin=0.02))).iloc[0]
    assert row["p"] >= 0.05


def test_a_rationale_that_was_cut_off_counts_as_wrong_and_is_counted(rng):
    data = predictions(rng, {"pre_cot": 5.0, "post_cot": 5.0}, questions=40)
    cut = (data["arm"] == "pre_cot") & (data["id"].isin([f"q{i}" for i in range(10)]))
    # one run was made before the column was written: its cut_off counts
    known = cut.astype(object).where(data["seed"] != 2)
    data = data.assign(cut_off=data["cut_off"] | cut, rationale_cut_off=known)
    table = st.accuracy_table(data).set_index("arm")
    assert table.loc["pre_cot", ["accuracy", "flagged"]].tolist() == [0.75, 30]
    assert table.loc["post_cot", ["accuracy", "flagged"]].tolist() == [1.0, 0]
    row = judge(data, claim(contrast=dict(a=["pre_cot"], b=["post_cot"]))).iloc[0]
    assert row["estimate"] == pytest.approx(-0.25) and row["flagged"] == pytest.approx(0.125)


def test_options_scored_with_no_rationale_stand_beside(rng):
    data = predictions(rng, ARMS, questions=50)
    pre = data["arm"] == "pre_cot"
    data["scores_direct"] = [[1.0, 0.0] if yes else None for yes in pre]
    table = st.accuracy_table(data).set_index("arm")
    assert table.loc["pre_cot", "direct"] == 1 and np.isnan(table.loc["post_cot", "direct"])
    row = judge(data, claim(contrast=dict(a=["pre_cot"], b=["pre_cot[direct]"]))).iloc[0]
    assert row["verdict"] == "contradicted" and row["estimate"] < -0.4
    assert "pre_cot[direct]" in set(st.add_direct_arms(data)["arm"])
    assert st.direct_label("pre_cot_shuffled[token]") == "pre_cot_shuffled[token,direct]"


def test_questions_bring_their_texts_facts_and_strata(rng):
    data = predictions(rng, {"post_cot": 0.5}, seeds=1, questions=3)
    examples = [Example(f"q{i}", "What?", ("cup", "a long hat"), 0) for i in range(3)]
    meta = {"q0": dict(fact=("cup", "use"), fact_in="label"), "q1": dict(fact=("cup", "use"))}
    found = st.describe_questions(data, examples, meta, "shared")
    assert list(found["fact"]) == ["cup: use", "cup: use", "q2"]
    assert found["stratum"][0] == "label" and found["worlds"].eq("shared").all()
    assert "acc_norm" in st.accuracy_table(found)
    own = st.describe_questions(data.assign(fact="f"), examples, meta, "shared")
    assert own["fact"].eq("f").all()
    assert "fact" not in st.describe_questions(data, examples, {}, "shared")


def test_questions_about_one_fact_count_as_one(rng):
    """Each question five times: the interval is that of the single questions."""
    data = predictions(rng, {"post_cot": 0.6, "label_only": 0.5}, questions=60)
    five = [data.assign(id=data["id"] + f"-{i}", fact=data["id"]) for i in range(5)]
    post = claim(measure="p_gold")
    one, many = (judge(part, post).iloc[0] for part in (data, pd.concat(five)))
    assert many["estimate"] == pytest.approx(one["estimate"])
    assert many["se"] == pytest.approx(one["se"], rel=0.02) and many["design_effect"] > 4


def test_word_frequency_is_an_arm_without_scores(rng):
    data = predictions(rng, {"post_cot": 0.6, "label_only": 0.5}, questions=60)
    rows = data[(data["arm"] == "post_cot") & (data["seed"] == 0)]
    nothing = dict(scores=None, correct_generated=np.nan, tokens_generated=np.nan)
    frequent = rows.assign(arm="word_frequency", seed=-1, correct_choice=0.5, **nothing)
    both = pd.concat([data, frequent])
    table = st.accuracy_table(both).set_index("arm")
    assert table.loc["word_frequency", "accuracy"] == 0.5
    assert np.isnan(table.loc["word_frequency", "p_gold"])
    assert "word_frequency" not in set(st.accuracy_tables(both)[1]["arm"])
    with pytest.raises(DataError, match="no arm has the measure acc_norm"):
        st.accuracy_table(both, "acc_norm")
    against = claim(contrast=dict(a=["post_cot"], b=["word_frequency"]))
    assert judge(both, against).loc["x", "seeds"] == 3
    assert judge(both, against | dict(measure="p_gold")).loc["x", "verdict"] == "not measured"


def test_paired_table(rng):
    data = predictions(rng, ARMS | {"zero_shot": 0.2})
    pairs = [("post_cot", "label_only"), ("post_cot", "zero_shot"), ("post_cot", "nix")]
    found = paired_table(data, pairs, ("correct_choice", "p_gold"))
    assert list(found["by"]) == ["forced choice", "p(gold)"] * 2
    means = data.groupby("arm")["correct_choice"].mean()
    assert found["estimate"][0] == pytest.approx(means["post_cot"] - means["label_only"])
    assert found["estimate"][2] == pytest.approx(means["post_cot"] - means["zero_shot"])
    # as the verdict of the same contrast says
    row = judge(data, claim()).iloc[0]
    assert found.loc[0, ["low", "high", "p"]].tolist() == row[["low", "high", "p"]].tolist()
    assert paired_table(data, [("nix", "post_cot")]).empty


# --- verdicts
# ----------------------------------------------------------------------


def test_tost_with_one_seed_is_statsmodels(rng):
    data = predictions(rng, {"a": 0.5, "b": 0.5}, seeds=1, questions=1500)
    a, b = (data.loc[data["arm"] == arm, "scores"].str[0].map(special.expit) for arm in "ab")
    row = judge(data, claim(**SAME, contrast=dict(a=["a"], b=["b"]))).iloc[0]
    assert row["p"] == pytest.approx(ttost_paired(a.to_numpy(), b.to_numpy(), -0.05, 0.05)[0])
    assert row["verdict"] == "inconclusive" and "One seed" in row["reason"]


def test_every_rule_is_judged_by_its_t(rng):
    effect = inference.Effect(0.04, 0.02, 30.0)
    t = lambda null: 2 * sps.t.sf(abs(0.04 - null) / 0.02, 30)
    assert RULES["difference"].judge(effect, 0, "greater") == (pytest.approx(t(0)), "supported")
    assert RULES["difference"].judge(effect, 0, "less") == (pytest.approx(t(0)), "contradicted")
    found = RULES["noninferiority"].judge(effect, 0.02, "not_less")
    assert found == (pytest.approx(t(-0.02)), "supported")
    inside = RULES["equivalence"].judge(effect, 0.1, "equal")
    assert inside == (pytest.approx(sps.t.sf(3, 30)), "supported")
    beyond = RULES["equivalence"].judge(effect, 0.01, "equal")
    assert beyond == (pytest.approx(2 * sps.t.sf(1.5, 30)), "contradicted")


GATE = claim(id="gate", family="mechanism", contrast=dict(a=["post_cot"], b=["post_cot_filler"]))
SPARES = claim(
    id="same",
    contrast=dict(a=["post_cot_shuffled[token]"], b=["post_cot"]),
    requires=["swapped", "gate"],
    **SAME,
)


@pytest.mark.parametrize("gain, verdict", [(0.0, "inconclusive"), (0.3, "supported")])
def test_a_claim_without_its_gain_is_open(rng, gain, verdict):
    """Rationales that do nothing, and shuffled ones that do nothing: nothing was there to keep."""
    arms = {"label_only": 0.6, "post_cot_filler": 0.6, "post_cot": 0.6 + gain}
    data = predictions(rng, arms | {"post_cot_shuffled[token]": 0.6 + gain}, questions=400)
    table = judge(data, GATE, SPARES)
    assert table["p_holm"]["same"] < 0.05 and table["verdict"]["same"] == verdict
    lost = "no gain is shown that could be lost" in table["reason"]["same"]
    assert lost == (verdict == "inconclusive")
    assert "within ±5 points" in table["reason"]["same"]


def test_the_first_gate_that_was_measured_counts_and_a_missing_one_is_said(rng):
    arms = {"post_cot": 0.6, "post_cot_shuffled[token]": 0.6, "post_cot_filler": 0.3}
    swapped = GATE | dict(id="swapped", contrast=dict(a=["post_cot"], b=["post_cot_swapped"]))
    data = predictions(rng, arms | {"post_cot_swapped": 0.6}, questions=400)
    table = judge(data, GATE, swapped, SPARES)
    assert table["verdict"][["gate", "same"]].tolist() == ["supported", "inconclusive"]
    assert "swapped is not supported" in table["reason"]["same"]
    some = judge(data[data["arm"] != "post_cot_swapped"], GATE, swapped, SPARES)
    assert some["verdict"]["same"] == "supported" and "No gate" not in some["reason"]["same"]
    none = judge(data[~data["arm"].isin(["post_cot_swapped", "post_cot_filler"])], GATE, SPARES)
    assert none["verdict"]["same"] == "supported"
    assert none["reason"]["same"].endswith(
        "No gate: swapped or gate was not measured, so a gain is not shown."
    )


def test_arms_that_trained_on_the_same_texts_are_not_shown_to_be_equivalent(rng):
    """Fifteen tokens kept of rationales of twelve: equal by construction."""
    kept = "post_cot_kept[15,random]"
    same = claim(id="same", contrast=dict(a=[kept], b=["post_cot"]), **SAME)
    data = predictions(rng, {"post_cot": 0.6, kept: 0.6}, questions=400)
    for share, verdict in ((None, "supported"), (0.2, "supported"), (0.58, "inconclusive")):
        row = judge(data, same, as_intact={} if share is None else {kept: share}).iloc[0]
        assert row["verdict"] == verdict
        assert ("58 % of the training texts" in row["reason"]) == (share == 0.58)


def test_a_difference_shown_to_be_small_is_negligible(rng):
    """By TOST of its own, adjusted on its own; never instead of a side, nor for the same texts."""
    name = "post_cot"
    small = dict(negligible=0.05, measure="p_gold", contrast=dict(a=["b"], b=[name]))
    claims = [claim(id="small", **small), claim(id="narrow", **small | dict(negligible=0.001))]
    data = predictions(rng, {name: 0.7, "b": 0.7}, seeds=6, questions=600)
    table = judge(data, *claims)
    assert table["verdict"].tolist() == ["negligible", "inconclusive"]
    row = table.loc["small"]
    effect = inference.Effect(row["estimate"], row["se"], row["df"])
    alone = inference.equivalence_p(effect, 0.05)
    assert row["p_negligible"] == pytest.approx(min(1.0, 2 * alone))
    assert "shown to lie within ±5 points (TOST, p < 0.001 after Holm)" in row["reason"]
    assert row["reason"].endswith(f"not told apart from 0 (p = {row['p_holm']:.2g} after Holm).")
    # Apart by itself, but not beside another claim: p between alpha / 2 and alpha
    for shift in np.linspace(0, 0.05, 101):
        moved = [[x + shift * (arm == "b"), y] for arm, (x, y) in zip(
            data["arm"], data["scores"], strict=True)]  # fmt: skip
        row = judge(data.assign(scores=moved), *claims).loc["small"]
        if 0.025 < row["p"] < 0.05:
            break
    assert row["p"] < 0.05 < row["p_holm"] and row["verdict"] == "negligible"
    assert "not told apart from 0 once all claims of its family are counted (p =" in row["reason"]
    same = judge(data, *claims, as_intact={"b": 0.5}).loc["small"]
    assert same["verdict"] == "inconclusive"
    assert same["reason"].endswith(
        "Not judged negligible: 50 % of the training texts of b are the intact ones."
    )
    base = data.assign(arm=data["arm"].replace({name: "label_only"}))
    against = claim(**small | dict(contrast=dict(a=["b"], b=["label_only"])))
    assert judge(base, against, as_intact={"b": 0.5})["verdict"]["x"] == "negligible"
    few = judge(data[data["seed"] < 2], *claims)
    assert few["verdict"].tolist() == ["inconclusive"] * 2
    apart = judge(predictions(rng, {name: 0.3, "b": 0.6}, seeds=6, questions=600), *claims)
    assert apart["verdict"].tolist() == ["supported"] * 2


def test_arms_at_chance_have_nothing_to_lose(rng):
    """The gate was not run, as in a study without fillers: a shuffled arm at chance spares none."""
    data = predictions(rng, {"post_cot": 0.5, "post_cot_shuffled[token]": 0.5}, questions=400)
    row = judge(data, SPARES).loc["same"]
    assert row["p_holm"] < 0.05 and row["verdict"] == "inconclusive"
    assert "but none of these arms is shown to be above chance (50 %)" in row["reason"]
    four = data.assign(scores=[[*row, -50.0, -50.0] for row in data["scores"]])
    assert judge(four, SPARES)["verdict"]["same"] == "supported"


def test_arms_at_chance_are_not_negligibly_different(rng):
    """Alike in having learnt nothing: with two options p(gold) is .5 there, with four .25."""
    small = claim(negligible=0.05, measure="p_gold", contrast=dict(a=["b"], b=["a"]))
    data = predictions(rng, {"a": 0.5, "b": 0.5}, seeds=6, questions=600)
    row = judge(data, small).loc["x"]
    assert row["verdict"] == "inconclusive" and row["p_negligible"] < 0.05
    assert row["reason"].endswith(
        "Not judged negligible: none of these arms is shown to be above chance (50 %)."
    )
    four = data.assign(scores=[[*row, -50.0, -50.0] for row in data["scores"]])
    assert judge(four, small)["verdict"]["x"] == "negligible"


@pytest.mark.parametrize("day, said", [(28, "exploratory"), (29, "registered")])
def test_a_margin_set_after_registration_makes_a_verdict_exploratory(rng, day, said):
    small = claim(negligible=0.05, measure="p_gold", contrast=dict(a=["b"], b=["a"]))
    data = predictions(rng, {"a": 0.7, "b": 0.7}, seeds=6, questions=600)
    block = dict(date=f"2026-11-{day}", commit="abc", claims=["x"], arms=["a", "b"])
    row = judge(data, small, registered=block).loc["x"]
    assert (row["verdict"], row["registered"]) == ("negligible", said)
    assert ("The margin was set on 2026-11-29" in row["reason"]) == (said == "exploratory")
    text = readings.figures.registered(judge(data, small, registered=block).reset_index(), block)
    assert ("by a margin that was set later" in text) == (said == "exploratory")


def test_one_seed_claims_nothing(rng):
    table = verdicts(predictions(rng, ARMS, seeds=1), load_claims(CLAIMS))
    assert set(table["verdict"]) == {"inconclusive", "not measured"}
    first = table.iloc[0]
    assert first["p"] < 1e-4 and "One seed" in first["reason"]
    measured = table[table["verdict"] == "inconclusive"]
    assert measured["detectable"].gt(0).all()


def test_each_verdict(rng):
    data = predictions(rng, ARMS | {"post_cot_shuffled[token]": 0.6}, seeds=6, questions=400)
    pre_label = dict(contrast=dict(a=["pre_cot"], b=["label_only"]))
    not_less = dict(rule="noninferiority", direction="not_less", margin=0.02)
    claims = [
        claim(id="yes"),
        claim(id="no", direction="less"),
        claim(id="no_arm", contrast=dict(a=["nix"], b=["pre_cot"])),
        claim(id="flat", **pre_label),
        claim(id="same", **pre_label, **SAME | dict(margin=0.2)),
        claim(id="differs", **SAME | dict(margin=0.02)),
        claim(id="not_worse", **not_less),
        claim(id="worse", contrast=dict(a=["label_only"], b=["post_cot"]), **not_less),
    ]
    table = judge(data, *claims)
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
    assert table.loc["no_arm", "reason"] == "No run of nix."
    assert pd.isna(table.loc["no_arm", "estimate"])
    assert table.loc["no", "reason"].startswith("The opposite of the claim: ")
    measured = table.drop(index="no_arm")
    holm = multipletests(measured["p"], method="holm")[1]
    assert measured["p_holm"].to_numpy() == pytest.approx(holm)
    assert (measured["n"] == 400).all() and (measured["seeds"] == 6).all()
    # what the study could find: at alpha over the seven measured claims
    row = table.loc["flat"]
    effect = inference.Effect(row["estimate"], row["se"], row["df"])
    assert row["detectable"] == pytest.approx(inference.detectable_effect(effect, 0.05 / 7))
    low, high = inference.confidence_interval(effect)
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_holm_is_within_families(rng):
    """A family of one claim pays for itself alone."""
    data = predictions(rng, ARMS)
    ours = [claim(id=f"m{i}", family="mechanism") for i in range(9)]
    table = judge(data, claim(id="alone"), *ours)
    assert table.loc["alone", "p_holm"] == pytest.approx(table.loc["alone", "p"])
    assert table.loc["m0", "p_holm"] == pytest.approx(min(1, 9 * table.loc["m0", "p"]))
    assert table.loc["alone", "detectable"] < table.loc["m0", "detectable"]


def test_a_stratum_has_its_own_questions(rng):
    """Facts in rationales only gain, facts behind labels lose, the others stay."""
    parts = []
    for stratum, post in (("rationale", 0.7), ("label", 0.1), ("none", 0.4)):
        part = predictions(rng, {"label_only": 0.4, "post_cot": post}, questions=200)
        parts.append(part.assign(id=stratum + part["id"], stratum=stratum))
    data = pd.concat(parts)
    table = verdicts(data, load_claims(CLAIMS)).set_index("claim")
    wanted = ["rationale_teaches", "rationale_costs", "rationale_gives_nothing_elsewhere"]
    assert table.loc[wanted, "verdict"].eq("supported").all()
    assert table.loc[wanted, "n"].eq(200).all() and table.loc["post_beats_label_only", "n"] == 600
    assert table.loc["rationale_teaches", "contrast"].endswith("(p(gold)), facts: rationale")
    few = data[(data["stratum"] != "none") | data["id"].isin([f"noneq{i}" for i in range(5)])]
    row = judge(few, *load_claims(CLAIMS)).loc["rationale_gives_nothing_elsewhere"]
    assert row["verdict"] == "not measured" and row["reason"].startswith("5 test questions")
    row = judge(parts[0].drop(columns="stratum"), *load_claims(CLAIMS)).loc["rationale_teaches"]
    assert row["verdict"] == "not measured"


def test_worlds_per_seed(rng):
    parts = [
        predictions(rng, {"label_only": 0.4, "post_cot": 0.6}, seeds=1).assign(
            seed=seed, worlds="per_seed"
        )
        for seed in range(4)
    ]
    data = pd.concat([part.assign(id=f"w{i}" + part["id"]) for i, part in enumerate(parts)])
    row = judge(data, claim(measure="p_gold")).iloc[0]
    means = [
        part.assign(sure=special.expit(part["scores"].str[0])).groupby("arm")["sure"].mean()
        for part in parts
    ]
    apart = [m["post_cot"] - m["label_only"] for m in means]
    assert row["estimate"] == pytest.approx(np.mean(apart))
    assert row["se"] >= sps.sem(apart) - 1e-12 and row["n"] == 800
    assert st.accuracy_table(data)["seeds"].tolist() == [4, 4]


def test_the_share_that_is_retained(rng):
    arms = {"label_only": 0.2, "post_cot": 0.6, "post_cot_shuffled[token]": 0.4}
    shuffled = claim(
        contrast=dict(a=["post_cot_shuffled[token]"], b=["post_cot"]), measure="p_gold"
    )
    data = predictions(rng, arms, questions=400)
    table = judge(data, shuffled)
    share = table.loc["x", "retained"]
    assert share.endswith("of the gain over label_only") and 40 < float(share.split(" %")[0]) < 60
    filler = predictions(rng, arms | {"post_cot_filler": 0.3}, questions=400)
    assert judge(filler, shuffled).loc["x", "retained"].endswith("over post_cot_filler")
    flat = predictions(rng, arms | {"post_cot": 0.2}, questions=400)
    assert judge(flat, shuffled).loc["x", "retained"].startswith("no gain to retain")
    assert judge(data, claim()).loc["x", "retained"] == ""
    assert len(share_table(judge(data, claim(id="y"), shuffled).reset_index())) == 1


def test_what_was_not_registered_is_exploratory(rng):
    data, block = predictions(rng, ARMS), dict(commit="abc", date="2026-11-28", claims=["x"])
    both = [claim(), claim(id="y")]
    assert set(judge(data, *both)["registered"]) == {""}
    assert judge(data, *both, registered=block)["registered"].to_dict() == {
        "x": "registered",
        "y": "exploratory",
    }
    arms = judge(data, *both, registered=block | dict(arms=["post_cot"]))
    assert set(arms["registered"]) == {"exploratory"}
    with pytest.raises(DataError, match="no claim 'z'"):
        judge(data, *both, registered=block | dict(claims=["z"]))
    table = judge(data, *both, registered=block).reset_index()
    assert list(verdict_table(table)["registered"]) == ["registered", "exploratory"]
    assert "registered" not in verdict_table(judge(data, *both).reset_index())


def test_interaction_is_the_difference_of_differences(rng):
    data = predictions(rng, {"a": 0.7, "b": 0.4, "c": 0.6, "d": 0.5})
    four = claim(contrast=dict(a=["a"], b=["b"], c=["c"], d=["d"]), rule="interaction")
    found = judge(data, four).iloc[0]
    assert found["contrast"] == "(a − b) − (c − d)"
    parts = paired_table(data, [("a", "b"), ("c", "d")])["estimate"]
    assert found["estimate"] == pytest.approx(parts[0] - parts[1]) and found["p"] < 0.05


def test_a_number_says_what_it_measures(rng):
    data = predictions(rng, ARMS, questions=40).assign(options=[("cup", "hat")] * 360)
    rows = [claim(id=m, contrast=dict(a=["post_cot"], b=["pre_cot"]), measure=m) for m in MEASURES]
    table = judge(data, *rows)
    assert table["contrast"].tolist() == [
        "post_cot − pre_cot",
        "post_cot − pre_cot (p(gold))",
        "post_cot − pre_cot (log p per byte)",
        "post_cot − pre_cot (answers as written)",
    ]
    assert "points (answers as written)" in table["reason"]["correct_generated"]
    assert "written" not in table["reason"]["correct_choice"]
    row = table.loc["correct_choice"]
    assert estimate_text(row) == (
        f"{100 * row['estimate']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    )
    old = dict(measure="correct_per_100_tokens", estimate=17.75, low=9.3, high=26.2)
    assert estimate_text(pd.Series(old)) == "+17.75 [+9.30, +26.20]"


def test_what_is_missing_is_named(rng):
    data = predictions(rng, ARMS, questions=30)
    reasons = verdicts(data, load_claims(CLAIMS)).set_index("claim")["reason"]
    assert reasons["shuffle_hurts_pre_more"] == (
        "No run of pre_cot_shuffled[token] and post_cot_shuffled[*]."
    )
    assert reasons["key_tokens_suffice"] == "No run of post_cot_kept[15,integrated_gradients]."
    apart = data.assign(seed=data["seed"] + 10 * (data["arm"] == "label_only"))
    row = verdicts(apart, [claim()]).iloc[0]
    assert row["verdict"] == "not measured" and row["reason"] == (
        "No seed was run for all of post_cot, label_only."
    )


def test_the_order_of_rows_does_not_matter(rng):
    data, claims = predictions(rng, ARMS), load_claims(CLAIMS)
    table = verdicts(data, claims)
    pd.testing.assert_frame_equal(table, verdicts(data.sample(frac=1, random_state=1), claims))


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
    claims = load_claims(CLAIMS)
    families = {name: [c["id"] for c in claims if c["family"] == name] for name in FAMILIES}
    assert families["paper"] == [
        "post_beats_label_only",
        "post_beats_pre",
        "shuffle_spares_post",
        "key_tokens_suffice",
    ]
    assert families["cost"] == ["no_reasoning_costs_nothing", "pre_needs_its_rationale"]
    assert len(families["mechanism"]) == 15
    by_id = {c["id"]: c for c in claims}
    assert {c["measure"] for c in claims if c["family"] == "paper"} == {"correct_choice", "p_gold"}
    for c in claims:
        # equivalences and the mechanism are of p(gold), except against an arm without scores
        if c["rule"] == "equivalence" or c["family"] == "mechanism":
            assert c["measure"] == "p_gold" or c["id"] == "rationale_beats_word_frequency"
        if c["rule"] == "equivalence":
            assert c["margin"] == 0.03
        for pattern in sum(c["contrast"].values(), []):
            if pattern != "word_frequency":
                arm_from_name(pattern.split("[")[0])
    gates = {c["id"]: c["requires"] for c in claims if "requires" in c}
    own = ["own_rationale_beats_swapped", "rationale_beats_filler"]
    assert gates == {"shuffle_spares_post": own, "key_tokens_suffice": own}
    strata = {k: c["stratum"] for k, c in by_id.items() if "stratum" in c}
    assert strata == {
        "rationale_teaches": "rationale",
        "rationale_beats_word_frequency": "rationale",
        "rationale_costs": "label",
        "rationale_gives_nothing_elsewhere": "none",
        "swapped_teaches_nothing": "rationale",
    }
    loss = by_id["balanced_beats_token_mean"]["contrast"]
    for arms, found in (
        (["post_cot", "post_cot[loss=token_mean]"], ["post_cot", "post_cot[loss=token_mean]"]),
        (["post_cot", "post_cot[loss=balanced]"], ["post_cot[loss=balanced]", "post_cot"]),
        (["post_cot"], None),
    ):
        resolved = resolve_contrast(loss, arms)
        assert (resolved and list(resolved.values())) == found


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: less, margin: 0, rule: difference, requires: y}",
            "requires 'y'; expected the id of a claim that requires none",
        ),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: less, margin: 0, rule: difference, requires: x}",
            "requires 'x'; expected the id of a claim that requires none",
        ),
        (
            "- {id: x, family: ours, words: w, section: s, contrast: {a: [p], b: [q]}, "
            "measure: p_gold, direction: less, margin: 0, rule: difference}",
            "family is 'ours'; expected one of paper, mechanism, cost",
        ),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, "
            "measure: p_gold, stratum: here, direction: less, margin: 0, rule: difference}",
            "stratum is 'here'; expected one of label, rationale, none",
        ),
        (
            "- {id: x, family: paper, words: w, section: s, contrast: {a: [p], b: [q]}, measure: "
            "p_gold, direction: equal, margin: 0.03, rule: equivalence, negligible: 0.03}",
            "negligible with rule equivalence; expected it with difference or interaction",
        ),
        (
            "- {id: x, family: paper, words: w, section: s, contrast: {a: [p], b: [q]}, measure: "
            "p_gold, direction: less, margin: 0, rule: difference, negligible: 0}",
            "negligible is 0; expected a fraction above 0",
        ),
        ("- [", "not YAML"),
        ("a: 1", "expected a list"),
        ("- {id: x}", "claim x: fields are"),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, measure: m, direction: "
            "greater, margin: 0, "
            "rule: difference}",
            "measure is 'm'",
        ),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
            "direction: equal, "
            "margin: 0, rule: equivalence}",
            "margin is 0; expected a fraction above 0",
        ),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p]}, measure: correct_choice, "
            "direction: "
            "less, margin: 0, "
            "rule: difference}",
            "contrast is",
        ),
        (
            "- {id: x, family: paper, words: w, "
            "section: s, contrast: {a: [p], b: [q]}, measure: correct_choice, "
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
    with pytest.raises(DataError, match="do not share their test questions: 2 ids"):
        verdicts(less, [claim()])
    with pytest.raises(DataError, match="predicted more than once"):
        st.accuracy_table(pd.concat([data, data.iloc[:1]]))
    with pytest.raises(DataError, match="question q0 is not answered but is by other seeds"):
        st.accuracy_table(data.drop(data.index[0]))
    with pytest.raises(DataError, match="several values of study"):
        verdicts(pd.concat([data, data.assign(study="t")]), [claim()])
