"""The sentences under the notebooks' tables and figures, on small tables made by hand."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cotdistill import grids, readings, summaries
from cotdistill.arms import arm_from_name
from cotdistill.examples import Example
from cotdistill.hyperparameters import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = Example("q1", "What holds tea?", ("a cup", "a hat"), 0)


def accuracy(*rows, seeds=3):
    """Accuracies as `stats.accuracy_table` gives them: (arm, accuracy, parse failures, cut off)."""
    return pd.DataFrame(
        [
            dict(
                arm=arm,
                n=40,
                seeds=seeds,
                accuracy=value,
                low=value - 0.1,
                high=value + 0.1,
                covers="questions and seeds" if seeds > 1 else "questions",
                parse_failures=failures,
                cut_off=cut,
                answers=40 * seeds,
                tokens_per_question=tokens,
            )
            for arm, value, failures, cut, tokens in rows
        ]
    )


FORCED = accuracy(
    ("zero_shot", 0.3, 120, 0, 5.0),
    ("label_only", 0.5, 0, 0, 3.0),
    ("pre_cot", 0.4, 12, 24, 30.0),
    ("post_cot", 0.6, 0, 0, 3.0),
)
NO_PRE_COT = FORCED[FORCED["arm"] != "pre_cot"].reset_index(drop=True)


def paired(*rows):
    columns = ["arm_a", "arm_b", "by", "estimate", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


CLEAR = ("post_cot", "label_only", "forced choice", 0.1, 0.02, 0.18, 0.01)
OPEN = ("pre_cot", "label_only", "written answer", -0.1, -0.25, 0.05, 0.2)


# --- what several notebooks say


def test_bars_go_from_high_to_low_and_none_say_nothing():
    said = readings.common.bars(FORCED)
    assert said.startswith("From high to low: **post_cot** 60.0 % [50.0, 70.0], **label_only**")
    assert readings.common.bars(FORCED[:0]) == ""


@pytest.mark.parametrize(("seeds", "warns"), [(1, True), (2, True), (3, False)])
def test_few_seeds_are_said(seeds, warns):
    assert ("fewer than 3 seeds" in readings.common.few_seeds(seeds)) == warns


def test_questions_to_explore():
    said = readings.common.questions_to_explore(40, "tiny-llama", "random weights")
    assert said.startswith("40 questions with a rationale") and "**tiny-llama** (random" in said


def test_texts_that_a_corruption_leaves_unchanged():
    said = readings.common.unchanged({"post_cot_kept": 0.254}, "the full rationale")
    assert (
        "**post_cot_kept** 25 %" in said and "Above 20 %" in said and "the full rationale" in said
    )
    assert "not recorded" in readings.common.unchanged({}, "its intact arm")


def history(accuracies):
    rows = [
        dict(arm=arm, seed=seed, epoch=epoch, label_loss=3.0 - epoch, validation_accuracy=value)
        for arm, value in accuracies.items()
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    columns = ["arm", "seed", "epoch", "label_loss", "validation_accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_last_epochs():
    last = summaries.last_epochs(history({"label_only": 0.5, "pre_cot": np.nan}))
    assert last.loc["label_only"].tolist() == [2.0, 1.0, 0.5]
    assert "**label_only** 50 %." in readings.common.last_accuracies(last)
    assert readings.train.losses(last).endswith(
        "**label_only** 2.00 → 1.00; **pre_cot** 2.00 → 1.00."
    )
    nothing = summaries.last_epochs(history({}))
    assert "not measured" in readings.common.last_accuracies(nothing)
    assert "nothing was trained" in readings.train.losses(nothing)


# --- 01


def test_data_card():
    card = pd.DataFrame(
        dict(
            questions=[48, 0, 40],
            options=["4", "", "2 to 4"],
            chance=[0.25, np.nan, 0.3],
            top_position=[0.3, np.nan, 0.325],
            left_out=[2, 1, 0],
            seen_in_train=[0, 0, 0],
            duplicates=[0, 0, 3],
            equal_options=[0, 0, 1],
        ),
        index=["train", "validation", "test"],
    )
    said = readings.elicit.data_card(card)
    for text in (
        "**48** training, **0** validation and **40** test questions with 2 to 4 options",
        "right **30.0 %** of the time",
        "32.5 %. Left out because they also appear in a later split: 3.",
        "0 also appear in train, 3 are duplicates, and 1 have two equal options",
    ):
        assert text in said


def test_example_is_a_quotation():
    lines = readings.elicit.example(EXAMPLE, "A cup holds tea.").splitlines()
    assert (
        all(line.startswith(">") for line in lines)
        and lines[-1] == "> rationale: *A cup holds tea.*"
    )
    assert "> - a hat" in lines and "> answer: **a cup**" in lines


def test_timing_filters_and_findings():
    timing = dict(whole_seconds=2.0, shared_seconds=0.5, ratio=4.0, same=7, rationales=8)
    assert "4.0 times as fast" in readings.elicit.prefix_timing(timing)
    assert "7 of 8 rationales" in readings.elicit.prefix_timing(timing)
    assert readings.elicit.prefix_timing({}).startswith("Not timed")
    removed = pd.DataFrame(dict(before=[50, 45], after=[45, 40]))
    assert readings.elicit.filters(removed).endswith(
        "50 rationales of training and validation questions went in; 40 are left."
    )
    assert readings.elicit.filters(removed[:0]) == ""
    card = pd.Series(dict(words_mean=np.nan))
    assert "nan" not in readings.elicit.findings("gold", card, 40, 48)


# --- 02


def test_setting_and_questions():
    arms = [arm_from_name("label_only"), arm_from_name("post_cot")]
    said = readings.train.setting(arms, [0], 2, TrainConfig(frozen_layers=1, batch_size=8))
    assert said.startswith("2 arms, 1 seed(s). 1 of the student's 2 blocks are frozen, and so are")
    assert "embeddings" not in readings.train.setting(arms, [0], 2, TrainConfig(frozen_layers=0))
    said = readings.train.questions(46, 48, {"over 192 tokens": 2}, 46, 40)
    assert "46 of 48" in said and "left out: 2 (over 192 tokens)." in said
    assert "left out: none." in readings.train.questions(48, 48, {}, 48, 40)


def test_targets_show_the_end_of_the_prompt():
    arms = [arm_from_name(name) for name in ("zero_shot", "label_only", "post_cot")]
    zero, label, post = readings.train.targets(EXAMPLE, "It holds tea.", arms, "text").split(
        "--- "
    )[1:]
    assert zero.rstrip().endswith("▮") and "▮ a cup" in label and "It holds tea." not in label
    assert "It holds tea." in post.partition("▮")[2]


def test_lengths():
    table = pd.DataFrame({"mean": [30.4], "share (%)": [12.6]}, index=["post_cot"])
    assert readings.train.lengths(table).endswith("loss: **post_cot** 30 and 13 %.")


def test_costs_and_findings():
    results = pd.DataFrame(
        [
            dict(arm="zero_shot", seed=-1, train_tokens=0, train_seconds=0.0, best_epoch=0),
            dict(arm="post_cot", seed=0, train_tokens=100, train_seconds=90.0, best_epoch=2),
            dict(arm="post_cot", seed=1, train_tokens=100, train_seconds=60.0, best_epoch=1),
        ]
    ).assign(evaluate_seconds=30.0)
    cost = summaries.cost_table(results)
    assert list(cost.index) == ["post_cot"] and cost.loc["post_cot", "runs"] == 2
    assert readings.train.cost(cost).endswith("**post_cot** 60 and 30.")
    assert readings.train.cost(cost[:0]) == "" and readings.train.lengths(pd.DataFrame()) == ""
    said = readings.train.findings(results, summaries.last_epochs(history({})), "tiny")
    assert "2 students trained: 2.5 minutes of training, 1.5 of evaluation" in said
    assert "nothing was trained" in said and "Student: tiny." in said


# --- 03


def test_accuracy_names_the_baselines_that_were_run():
    said = readings.evaluate.accuracy(FORCED, 0.25, "tiny")
    assert (
        "the undistilled student: 30.0 %" in said and "highest is **post_cot** with 60.0 %" in said
    )
    said = readings.evaluate.accuracy(FORCED[3:], 0.25, "tiny")
    assert "undistilled" not in said and "By forced choice" not in said


def test_failures():
    said = readings.evaluate.failures(FORCED)
    assert "**pre_cot** fails most often to name an option, in 10.0 %" in said
    assert "**pre_cot** 30.0" in said and said.endswith("price of reasoning at test time.")
    said = readings.evaluate.failures(NO_PRE_COT)
    assert said.startswith("Every trained arm names an option") and "price" not in said
    assert readings.evaluate.failures(FORCED[:1]) == "No arm was trained."


def test_differences():
    said = readings.evaluate.differences(paired(CLEAR, OPEN), 3)
    assert "post_cot − label_only by forced choice: +10.0 points, the interval excludes" in said
    assert "label_only by written answer: -10.0 points, the interval includes zero" in said
    assert "fewer than" not in said
    assert "fewer than 3 seeds" in readings.evaluate.differences(paired(CLEAR), 1)
    assert readings.evaluate.differences(paired(), 3).startswith("Not part of this study")


def test_findings_of_the_answers():
    sure = CLEAR[:2] + ("p(gold)", 0.05, 0.01, 0.09, 0.01)
    say = lambda *rows: readings.evaluate.findings(paired(*rows), FORCED, 0.25, "tiny")
    said = say(CLEAR, sure)
    assert said.startswith("**Findings.** A rationale after the label helps here: post_cot")
    assert "+10.0 [+2.0, +18.0] points by forced choice, +5.0 [+1.0, +9.0] points by p" in said
    assert "post_cot 60.0 %" in said and "n = 40 questions, chance 25.0 %, tiny" in said
    worse = CLEAR[:3] + (-0.1, -0.18, -0.02, 0.01)
    assert "The opposite of the claim: a rationale after the label does harm" in say(worse)
    assert "The measures disagree on post_cot against label_only" in say(worse, sure)
    unsure = CLEAR[:2] + ("p(gold)", 0.01, -0.02, 0.04, 0.5)
    assert "helps here (shown by forced choice, not by p(gold)): post_cot" in say(CLEAR, unsure)
    third = CLEAR[:2] + ("written answer", 0.01, -0.02, 0.04, 0.5)
    assert "(shown by forced choice, not by p(gold) or written answer): post_cot" in say(
        CLEAR, unsure, third
    )
    assert "helps here: post_cot" in say(CLEAR, sure)
    few = FORCED.assign(seeds=2)
    said = readings.evaluate.findings(paired(worse), few, 0.25, "tiny")
    assert "Nothing is claimed: post_cot" in said and "The opposite" not in said
    drops = paired(("post_cot_shuffled[token]", "post_cot", "p(gold)", -0.1, -0.18, -0.02, 0.01))
    said = readings.shuffle.findings(drops, few, ["x"], "tiny")
    assert "nothing is claimed of post_cot_sh" in said and "The opposite" not in said
    assert "No effect of a rationale before the label is shown" in say(OPEN)


def test_heads_of_sections_that_only_some_studies_have():
    shown, empty = pd.DataFrame({"a": [1]}), pd.DataFrame()
    assert readings.common.section("Words", "Text.", shown) == "## Words\n\nText."
    assert readings.common.section("Words", "Text.", empty) == ""
    assert "the one that most arms get right" in readings.common.answers_head(shown)
    assert readings.common.answers_head(empty) == readings.evaluate.facts_head(empty) == ""
    assert readings.evaluate.facts_head(shown).startswith("## Where a rationale can teach")
    assert readings.common.weigh(paired(CLEAR, OPEN)) == 1
    assert (
        readings.common.by_measures(paired(CLEAR)) == "+10.0 [+2.0, +18.0] points by forced choice"
    )


def test_answers_that_were_cut_off_are_counted():
    assert readings.evaluate.flagged(FORCED) == ""
    said = readings.evaluate.flagged(FORCED.assign(flagged=[0, 0, 24, 0]))
    assert "count as wrong: **pre_cot** 20.0 %." in said


def test_what_students_wrote_stands_side_by_side():
    rows = [
        dict(
            arm=arm,
            seed=seed,
            id=f"q{i}",
            question=f"What {i}?",
            options=("a cup", "a hat"),
            gold=0,
            choice=choice,
            correct_choice=choice == 0,
            rationale="It holds." if arm == "pre_cot" else "",
            text="cup",
        )
        for arm, seed, choices in (
            ("zero_shot", -1, (0, 1, 1)),
            ("pre_cot", 0, (0, 1, 0)),
            ("pre_cot", 1, (1, 1, 1)),
        )
        for i, choice in enumerate(choices)
    ]
    study = SimpleNamespace(data=SimpleNamespace(meta={"q0": {}}))
    shown = summaries.answers_side_by_side(study, pd.DataFrame(rows))
    assert list(shown["arm"]) == ["zero_shot", "pre_cot"] * 3  # one seed
    assert list(shown.index) == [
        "What 0? (a cup | a hat)",
        "",
        "What 1? (a cup | a hat)",
        "",
        "What 2? (a cup | a hat)",
        "",
    ]
    assert list(shown["right"]) == ["yes", "yes"] + ["no: a cup"] * 3 + ["yes"]
    assert list(shown["rationale written"])[:2] == ["–", "It holds."]
    official = SimpleNamespace(data=SimpleNamespace(meta={}))
    assert summaries.answers_side_by_side(official, pd.DataFrame(rows)).empty


def test_cost_leaves_out_arms_that_wrote_nothing():
    silent = FORCED.assign(tokens_per_question=[0.0, 3.0, 30.0, 3.0])
    said = readings.evaluate.cost(silent)
    assert "zero_shot" not in said and "**label_only** 16.7" in said
    assert "nothing was generated" in readings.evaluate.cost(silent[:1])


def test_facts_without_microworld():
    assert readings.evaluate.facts(None, float("nan")) == ""
    difference = dict(estimate=0.05, low=-0.01, high=0.11)
    assert "+5.0 [-1.0, +11.0] points" in readings.evaluate.facts(difference, 0.4)
    study = SimpleNamespace(data=SimpleNamespace(meta={}))
    assert summaries.accuracy_by_fact(study, pd.DataFrame()).table.empty


# --- 04


def test_shuffle_without_pre_cot_or_intact_arms():
    empty = NO_PRE_COT[NO_PRE_COT["arm"].str.startswith("pre_cot")].set_index("arm")
    assert readings.shuffle.written_rationales(empty, 48, 24) == ""
    assert readings.shuffle.costs(paired(), 3).startswith("Nothing to compare")
    assert readings.shuffle.measures_apart(FORCED[:1], FORCED[:1]) == ""
    said = readings.shuffle.findings(paired(), FORCED, [""], "tiny")
    assert "Nothing to compare." in said and "`controls` is empty" in said


def test_shuffle():
    arms = [arm_from_name("post_cot_filler")]
    said = readings.shuffle.arms(arms, [0, 1])
    assert said == "1 corrupted arms x 2 seed(s): **post_cot_filler**."
    drop = ("post_cot_filler", "post_cot", "forced choice", -0.1, -0.18, -0.02, 0.01)
    said = readings.shuffle.costs(paired(drop, OPEN), 1)
    assert "1 of 2 intervals exclude zero: post_cot_filler by forced choice (-10.0)." in said
    assert "fewer than 3 seeds" in said
    assert "0 of 1 intervals exclude zero. " in readings.shuffle.costs(paired(OPEN), 3)
    said = readings.shuffle.findings(paired(drop), FORCED, ["filler"], "tiny")
    assert "post_cot_filler does worse than post_cot: -10.0 [-18.0, -2.0] points by" in said
    assert "n = 40 questions, 3 seed(s)" in said
    shuffled = lambda arm, *numbers: readings.shuffle.findings(
        paired((f"{arm}_shuffled[token]", arm, "p(gold)", *numbers, 0.01)), FORCED, ["x"], "tiny"
    )
    assert "The opposite of the claim: post_cot_s" in shuffled("post_cot", -0.1, -0.18, -0.02)
    assert "The opposite of the claim: pre_cot_sh" in shuffled("pre_cot", 0.1, 0.02, 0.18)
    assert "The opposite" not in shuffled("pre_cot", -0.1, -0.18, -0.02)
    # Written answers alone do not turn a claim of p(gold) round
    rows = [("post_cot_shuffled[token]", "post_cot", by) for by in ("p(gold)", "written answer")]
    numbers = [(-0.01, -0.02, 0.01, 0.1), (-0.02, -0.04, -0.01, 0.01)]
    both = paired(*(row + some for row, some in zip(rows, numbers, strict=True)))
    said = readings.shuffle.findings(both, FORCED, ["x"], "tiny")
    assert "does worse than post_cot" in said and "The opposite" not in said
    assert "is not told apart from post_cot" in shuffled("post_cot", 0.0, -0.1, 0.1)
    pre = FORCED[FORCED["arm"] == "pre_cot"].set_index("arm")
    said = readings.shuffle.written_rationales(pre, 48, 24)
    assert "20 % of the answers were cut off" in said and "10 % name no option" in said
    written = FORCED.assign(accuracy=[0.0, 0.5, 0.1, 0.55])
    assert "furthest below it for **pre_cot**" in readings.shuffle.measures_apart(FORCED, written)


# --- 05


def means(rows, measures):
    columns = ["method", "measure", "value", "low", "high"]
    return pd.DataFrame(
        [
            (m, name, v, v - w, v + w)
            for m, *vs, w in rows
            for name, v in zip(measures, vs, strict=True)
        ],
        columns=columns,
    )


def test_faithfulness():
    measures = ("comprehensiveness", "sufficiency")
    rows = [("gradient", 1.0, 0.1, 0.2), ("attention", 0.6, 0.4, 0.3), ("random", 0.5, 0.5, 0.1)]
    said = readings.attribute.faithfulness(means(rows, measures), 6)
    assert "over 6 questions: attention, gradient;" in said and said.endswith("means: gradient.")
    assert "none" in readings.attribute.faithfulness(means(rows[2:], measures), 6)
    assert "not one of" in readings.attribute.faithfulness(means(rows[:2], measures), 6)


def test_ranking_is_decided_by_the_area_beside_random():
    rows = [("good", 0.5, 0.2), ("even", 0.1, 0.2), ("bad", -0.5, 0.2), ("random", np.nan, 0)]
    said = readings.attribute.ranking(means(rows, ["below_random"]).assign(n=100))
    assert said.startswith("Better than random: good (0.50 [0.30, 0.70] nats); no better than")
    assert "no better than random: even (" in said and "worse than random: bad (-0.50" in said
    assert said.endswith("curves of 100 questions.") and "random (" not in said
    weak = means(rows[1:2], ["below_random"]).assign(n=100)
    assert readings.attribute.ranking(weak).startswith("No better than random: even")
    assert readings.attribute.ranking(means(rows[3:], ["below_random"]).assign(n=0)) == ""


def test_label_words_and_arms_without_them():
    shares = means([("a", 0.2, 0.05, 0.1), ("b", 0.6, 0.05, 0.1)], ["label_share", "all_share"])
    said = readings.attribute.label_words(shares, 5.0)
    assert said == (
        "Words of the label are 5 % of all tokens; among the top 5 tokens they are: b 60 %, a 20 %."
    )
    assert readings.attribute.label_words(pd.DataFrame(), 5.0) == ""
    assert "the label is among them" in readings.attribute.without_label(paired(CLEAR))
    assert readings.attribute.without_label(paired()) == ""


def test_what_is_known_by_heart():
    def known(low, high, trained=False):
        names = ["attributed", "held out"] + ["trained on"] * trained
        columns = dict(n=100, difference=(low + high) / 2, low=low, high=high, before=-3.0)
        return pd.DataFrame([dict(questions=name) | columns for name in names])

    assert readings.attribute.by_heart(known(1.0, 2.0)).startswith(
        "The attributing student knows its questions by heart"
    )
    assert "+1.50 [+1.00, +2.00] nats" in readings.attribute.by_heart(known(1.0, 2.0))
    assert readings.attribute.by_heart(known(-0.2, 0.3)).startswith("No sign")
    assert "cannot be told from 100 of them" in readings.attribute.by_heart(known(-2.0, 2.0))
    assert "avoids" not in readings.attribute.by_heart(known(-0.2, 0.3, True))
    both = pd.concat([known(-0.2, 0.3), known(1.0, 2.0, True).iloc[2:]])
    said = readings.attribute.by_heart(both)
    assert said.startswith("No sign") and "+1.50 [+1.00, +2.00] nats: what cross-fitting" in said
    assert readings.attribute.by_heart(known(1.0, 2.0).iloc[:1]) == ""
    untrained = readings.attribute.by_heart(known(-0.2, 0.3).assign(before=0.0))
    assert untrained.startswith("The undistilled student was trained on none")


def test_what_rationales_move():
    table = pd.DataFrame(dict(moved=[0.05, 0.15, 0.4, -0.01], share=[0.01, 0.02, 0.2, -0.001]))
    gaps = pd.DataFrame(dict(delta=[-0.1, 0.3], relative=[0.5, 0.7]))
    said = readings.attribute.moved(table, gaps)
    assert "median of +0.10 nats (quartiles +0.04 and +0.21)" in said and "50 % of the 4" in said
    assert "miss a median of 0.20 nats, 60 % of the change" in said
    assert "-0 %" not in readings.attribute.moved(table.assign(share=-0.001), gaps)
    assert readings.attribute.moved(table.iloc[:0], gaps) == ""
    worth = readings.attribute.worth(
        pd.DataFrame(columns=["questions"]), table, gaps, gaps.iloc[:0]
    )
    assert worth.startswith("**What attribution found.** The whole rationale moves")


def test_sections_without_data_are_left_out():
    assert readings.attribute.section("masking", False) == ""
    assert readings.attribute.section("randomised", pd.DataFrame()) == ""
    assert readings.attribute.section("right", pd.DataFrame(dict(a=[1]))).startswith("## Is the")


def test_completeness_and_gaps():
    small = pd.DataFrame(dict(relative=[0.02, 0.05, 0.2]))
    assert "5.0 % of the change" in readings.attribute.completeness(small, 8)
    assert "Below 10 %" in readings.attribute.completeness(small, 8)
    assert "raise `n_steps`" in readings.attribute.completeness(small * 10, 8)
    assert readings.attribute.completeness(pd.DataFrame(), 8) == ""
    assert "33 % of them" in readings.attribute.selecting_gaps(small)
    assert readings.attribute.selecting_gaps(pd.DataFrame()) == ""


def test_short_readings_of_attributions():
    said = readings.attribute.attributor("pre_cot", ["0123456789abcdef"], 48)
    assert "Attribution by pre_cot (0123456789ab) on 48 training questions" in said
    assert "trained on the questions that it attributes" in said
    two = readings.attribute.attributor("cross_fitted", ["a" * 16, "b" * 16], 48)
    assert f"({'a' * 12}, {'b' * 12}) on 48" in two and "attributes the other" in two
    said = readings.attribute.top_tokens({"saliency": "cup", "random": "a"})
    assert said.endswith("by each method: saliency “cup”.")
    assert readings.attribute.top_tokens({"random": "a"}) == ""
    curves = means([("a", -1.5, 0.5), ("b", -3.0, 0.25)], ["area"])
    assert readings.attribute.deletion(curves).endswith(
        "lowest first: b -3.00 [-3.25, -2.75], a -1.50 [-2.00, -1.00]."
    )
    assert readings.attribute.deletion(pd.DataFrame()) == ""
    said = readings.attribute.randomised(pd.DataFrame(dict(rho=[0.1, -0.1, 0.3])))
    assert "Mean ρ 0.10 over 3 rationales, from -0.10 to 0.30" in said
    said = readings.attribute.order(FORCED, 0.25)
    assert said == "From high to low: post_cot, label_only, pre_cot; chance is 25.0 %."


def test_agreement():
    columns = ["method_a", "method_b", "measure", "value", "low", "high"]
    rows = [("a", "b", "tau", 0.6, 0.4, 0.8), ("a", "random", "tau", 0.1, 0.05, 0.2)]
    rows += [("b", "random", "tau", 0.0, -0.1, 0.1), ("a", "b", "overlap", 0.9, 0.8, 1.0)]
    said = readings.attribute.agreement(pd.DataFrame(rows, columns=columns), 6)
    assert said.startswith("a and b agree most (τ 0.60); 2 of 3 pairs") and "1 of them with" in said
    assert readings.attribute.agreement(pd.DataFrame(columns=columns), 6) == ""


def test_key_tokens_and_words():
    row = dict(id="q1", tokens=10, key_tokens=3, chance=0.3, chance_average_precision=0.4)
    hits = pd.DataFrame(
        [row | dict(method=m, average_precision=v) for m, v in (("a", 0.5), ("b", 0.9))]
    )
    assert "average precision: b, 0.90" in readings.attribute.key_tokens(hits, 6)
    assert readings.attribute.key_tokens(pd.DataFrame(), 6) == ""
    shares = pd.DataFrame({"a": [0.8, 0.4], "all words": [0.5, 0.2]}, index=["content", "in_label"])
    said = readings.attribute.words(shares, "a")
    assert "random" not in said and "80 % of those that a selects." in said
    assert "and 60 % of random's." in readings.attribute.words(shares.assign(random=0.6), "a")


def test_findings_of_key_tokens():
    kept = ("post_cot_kept", "post_cot", "forced choice", -0.1, -0.18, -0.02, 0.01)
    said = readings.attribute.findings(paired(kept, CLEAR), FORCED, pd.DataFrame(), False, "tiny")
    assert "post_cot_kept -10.0 [-18.0, -2.0] (n = 40" in said and "post_cot +10.0" not in said
    assert "approximate" not in said and "`mask_amounts` is empty" in said
    assert "zero for post_cot_kept (-10.0" in readings.attribute.against_full(paired(kept, CLEAR))
    assert "none of these arms" in readings.attribute.against_full(paired(CLEAR))
    assert readings.attribute.rivals(paired()).startswith("Not part of this study")
    assert "random tokens: +10.0" in readings.attribute.rivals(paired(CLEAR))


# --- 06


def claims(*rows):
    columns = ["claim", "verdict", "p_holm", "seeds", "detectable", "estimate", "low", "high"]
    table = pd.DataFrame(rows, columns=columns).astype({"seeds": "Int64"})
    return table.assign(
        words=table["claim"] + " holds.",
        reason="It is so.",
        contrast=table["claim"],
        measure="correct_choice",
        family="paper",
        rule="difference",
        margin=0.0,
        study="s",
        p=table["p_holm"],
        retained="",
        registered="",
    )


SUPPORTED = ("one", "supported", 0.01, 3, 0.05, 0.1, 0.02, 0.18)
UNDECIDED = ("two", "inconclusive", 0.3, 3, 0.12, 0.0, -0.1, 0.1)
MISSING = ("three", "not measured", np.nan, pd.NA, np.nan, np.nan, np.nan, np.nan)
HELD_BACK = ("four", "inconclusive", 0.01, 3, 0.06, 0.1, 0.02, 0.18)


def test_verdicts():
    table = claims(SUPPORTED, UNDECIDED, MISSING)
    said = readings.figures.verdicts(table, FORCED, "tiny")
    assert "Of 3 claims: " in said and "**1 supported**" in said and "3 seed(s)" in said
    assert "fewer than" not in said and said.endswith("Not measured: three (It is so).")
    one_seed = claims(SUPPORTED[:3] + (1,) + SUPPORTED[4:])
    assert "1 of them rest on fewer than 3 seeds" in readings.figures.verdicts(
        one_seed, FORCED, "t"
    )
    assert readings.figures.in_spite_of_p(table, 0.05) == ""
    held = readings.figures.in_spite_of_p(claims(HELD_BACK, MISSING), 0.05)
    assert held.endswith("- *four holds.* It is so.")


def test_what_the_study_could_find():
    said = readings.figures.detectable(claims(SUPPORTED, UNDECIDED, HELD_BACK))
    assert (
        said.startswith("2 claims that arms differ are open. The study")
        and "6.0 to 12.0 points" in said
    )
    assert readings.figures.detectable(claims(SUPPORTED, MISSING)) == ""
    alike = claims(UNDECIDED, HELD_BACK)
    alike.loc[1, "rule"] = "equivalence"
    one = readings.figures.detectable(alike)
    assert one.startswith("1 claim that arms differ is open.") and "effect of 12.0 points" in one
    assert readings.figures.detectable(alike[1:]) == ""


def test_the_positive_control_passes_or_fails_in_its_first_sentence():
    table = claims(SUPPORTED, HELD_BACK).assign(p=[0.001, 0.002])
    assert readings.figures.control(table) == ""
    table["claim"] = ["rationale_teaches", "rationale_beats_word_frequency"]
    said = readings.figures.control(table)
    assert said.startswith("The positive control passed. ") and "one: +10.0 [+2.0, +18.0]" in said
    for spoilt in (table.assign(p=[0.001, 0.02]), table.assign(estimate=[0.1, -0.1])):
        assert readings.figures.control(spoilt).startswith("The positive control **failed**. ")
    assert readings.figures.control(table.assign(registered="registered")) == said
    assert readings.figures.control(table.assign(registered="exploratory")) == ""


def test_registration_and_shares():
    block = dict(commit="abc123", date="2026-11-28", claims=["one"], arms=["post_cot"])
    table = claims(SUPPORTED, UNDECIDED).assign(registered=["registered", "exploratory"])
    said = readings.figures.registered(table, block)
    assert "on 2026-11-28 in commit abc123: the claims one and the arms post_cot." in said
    assert said.endswith(" Not registered, and so exploratory: two.")
    assert readings.figures.registered(table, {}) == ""
    kept = claims(SUPPORTED).assign(retained="87 % [60, 112] of the gain over label_only")
    shown = summaries.share_table(kept)
    assert shown.loc["one", "retained"].startswith("87 %")
    assert "Fieller" in readings.figures.shares(shown)
    assert readings.figures.shares(summaries.share_table(claims(SUPPORTED))) == ""


def test_forest_pooling_and_findings():
    table = claims(SUPPORTED, UNDECIDED, MISSING)
    assert readings.figures.forest(table).startswith(
        "1 of 2 intervals of this study exclude zero: one (+10.0)."
    )
    said = readings.figures.findings(table)
    assert "**Findings: supported, 1 of 3 claims.**\n\n- *one holds.* It is so." in said
    assert "contradicted, 0 of 3 claims.**\n\n**Findings: negligible, 0 of 3 claims.**" in said
    assert "\n\n**Left open: 1.**\n\n- *two holds.* It is" in said
    assert "Not measured: 1." in said
    assert "Widest interval" in readings.figures.accuracy(FORCED, 0.25)


# --- the small tables


def test_results_table_has_the_columns_asked_for():
    table = summaries.results_table(FORCED, FORCED, ("interval over", "cut off (%)"))
    assert list(table) == [
        "n",
        "seeds",
        "forced choice",
        "written answer",
        "interval over",
        "cut off (%)",
    ]
    assert table.loc["pre_cot", "cut off (%)"] == pytest.approx(20)
    assert list(summaries.results_table(FORCED)) == ["n", "seeds", "forced choice"]
    assert summaries.failure_table(FORCED).loc["pre_cot", "parse failures"] == "10.0 %"


def test_margins_in_the_table_of_verdicts():
    rules = claims(SUPPORTED, UNDECIDED, HELD_BACK)
    rules["rule"], rules["margin"] = (
        ["difference", "equivalence", "noninferiority"],
        [0.0, 0.02, 0.02],
    )
    table = summaries.verdict_table(rules)
    assert list(table["margin (points)"]) == ["–", "±2", "-2"]
    assert list(table["p after Holm"]) == ["0.01", "0.3", "0.01"]


def test_arms_of_the_stages():
    labels = lambda arms: [arm.label for arm in arms]
    grid = grids.training_arms(["zero_shot", "post_cot"], [1.0, 4.0], ["balanced"], ["post_cot"])
    assert labels(grid)[:2] == ["zero_shot", "post_cot"] and len(grid) == 4
    assert grid[2].label_weight == 4.0 and grid[3].loss == "balanced"
    assert len(grids.shuffled_arms(["pre_cot", "post_cot"], ["token", "word"], False)) == 4
    assert labels(grids.control_arms(["post_cot"], ["filler", ""])) == ["post_cot_filler"]
    kept = grids.key_token_arms([5, 15], ["saliency", "random"])
    pairs = summaries.rival_pairs(kept)
    assert pairs == [(kept[0].label, kept[1].label), (kept[2].label, kept[3].label)]
    masked = grids.masked_arms(["post_cot"], ["random", "most"], [0.5], "filler", "saliency")
    assert [arm.selector for arm in masked] == ["random", "saliency"]


# --- all of them


def test_how_predictions_are_judged_names_their_number_and_the_margin():
    text = readings.common.how_judged(3)
    assert text.startswith("3 explanations. ") and "within 2 points" in text


def test_every_reading_is_documented_and_named_here():
    """No sentence without a test: each public function is named in one of these files."""
    files = ("test_readings", "test_elicit", "test_pooling", "test_breadth")
    text = "".join((ROOT / "tests" / f"{name}.py").read_text() for name in files)
    modules = ("attribute", "common", "elicit", "evaluate", "figures", "shuffle", "train")
    indirect = {"quality", "label_losses", "list_arms", "select_nonzero", "read_card"}
    for name in modules:
        module = getattr(readings, name)
        for function, value in inspect.getmembers(module, inspect.isfunction):
            if value.__module__ == module.__name__ and not function.startswith("_"):
                assert value.__doc__, function
                assert f"readings.{name}.{function}(" in text or function in indirect, function


def test_import_alone_loads_no_torch():
    """`import cotdistill` is cheap; each exported name is found where it is said to be."""
    code = (
        "import sys, cotdistill; assert not {'torch', 'pandas'} & set(sys.modules);"
        "[getattr(cotdistill, name) for name in cotdistill.__all__]; print(len(cotdistill.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) >= 20, done.stderr
    tree = ast.parse((ROOT / "cotdistill" / "__init__.py").read_text())
    modules = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert modules == ["importlib"]
    import cotdistill

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cotdistill.no_such_name
