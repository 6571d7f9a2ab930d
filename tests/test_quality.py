"""Sets of rationales: facts made wrong, what is measured of a set, and what p(gold) follows."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from studies import make_spec, make_study

from cotdistill import hypotheses, rationale_quality
from cotdistill.arms import prompt_text
from cotdistill.errors import DataError
from cotdistill.examples import Rationale
from cotdistill.microworld.damage import (
    damage_rationales,
    fact_sentences,
    stated_sentences,
    wrong_sentences,
)
from cotdistill.microworld.generate import generate
from cotdistill.microworld.knowledge import (
    WORLDS,
    facts_of,
    invent_knowledge,
    knowledge,
    state,
)
from cotdistill.plots import draw_figure
from cotdistill.rationale_quality import RationaleSet
from cotdistill.readings import quality as texts
from cotdistill.runs.set_runs import plan_sets, with_rationales

SIZES = dict(n_train=60, n_validation=8, n_test=24, seed=3)


@pytest.fixture(scope="module", params=["everyday", "invented", "strata"])
def world(request):
    return generate(
        request.param, **SIZES, **({"concepts": 12} if request.param == "strata" else {})
    )


def changed(before, after):
    """Count the rationales whose text differs."""
    return sum(before[key].text != after[key].text for key in before)


def test_a_share_of_the_facts_becomes_wrong_everywhere(world):
    gold, meta = world["rationales"], world["meta"]
    true = stated_sentences(gold, meta)
    wrong = {}
    for share in (0.0, 0.25, 0.5, 1.0):
        damaged = damage_rationales(gold, meta, share, 5)
        said = stated_sentences(damaged, meta)
        wrong[share] = {fact: said[fact] for fact in true if said[fact] != true[fact]}
        for key, rationale in damaged.items():
            pairs = fact_sentences(rationale.text, meta[key]["states"])
            assert all(said[(None, *fact)] == sentence for fact, sentence in pairs)
            right = (None, *meta[key]["fact"]) not in wrong[share]
            assert rationale.answer == (gold[key].answer if right else None)
            assert not rationale.key_spans
    assert not wrong[0.0] and len(wrong[1.0]) > 0.8 * len(true)
    for fewer, more in ((0.25, 0.5), (0.5, 1.0)):
        assert len(wrong[fewer]) == pytest.approx(len(wrong[1.0]) * fewer, abs=1)
        assert wrong[fewer].items() <= wrong[more].items(), "what is wrong stays wrong alike"
    assert changed(gold, damage_rationales(gold, meta, 0.5, 5)) < len(gold)
    assert damage_rationales(gold, meta, 0.5, 5) != damage_rationales(gold, meta, 0.5, 6)


def test_wrong_facts_are_fluent_and_of_the_same_kind(world):
    gold, meta = world["rationales"], world["meta"]
    damaged = damage_rationales(gold, meta, 1.0, 5)
    true = set(stated_sentences(gold, meta).values())
    words = {word for rationale in gold.values() for word in rationale.text.split()}
    for key, rationale in damaged.items():
        assert rationale.text[0].isupper() and rationale.text.endswith(".")
        assert set(rationale.text.split()) <= words, "a wrong value is another thing's value"
        sentences = [s for _, s in fact_sentences(rationale.text, meta[key]["states"])]
        assert any(sentence not in true for sentence in sentences)


@pytest.mark.parametrize("part", ["everyday", "invented"])
def test_no_wrong_fact_is_true(part):
    """Compared with the knowledge base that the world was made from, over three worlds."""
    for seed in range(3):
        made = generate(part, **SIZES | {"n_train": 240, "seed": seed})
        rng = np.random.default_rng([seed, WORLDS.index(part)])
        base = knowledge() if part == "everyday" else invent_knowledge(knowledge(), rng)
        truth = facts_of(base)
        wrong = wrong_sentences(stated_sentences(made["rationales"], made["meta"]), seed)
        assert len(wrong) > 60
        for (_, concept, relation), sentence in wrong.items():
            via = base["relations"][relation].get("via")
            middles = truth[concept, via] if via else [""]
            said = [state(base, relation, concept, v, m)
                    for v in truth[concept, relation] for m in middles]  # fmt: skip
            assert sentence not in said


def test_other_rationales_cannot_be_damaged():
    relations = generate("relations", **SIZES)
    with pytest.raises(DataError, match=r"has \d sentences and states \d facts; expected the gold"):
        damage_rationales(relations["rationales"], relations["meta"], 0.5, 0)
    everyday = generate("everyday", **SIZES)
    key = everyday["train"][0].id
    count = len(everyday["meta"][key]["states"])
    other = {key: Rationale(key, " ".join(["It is so."] * count))}
    with pytest.raises(DataError, match="'It is so.' does not state .* in the world's words"):
        damage_rationales(other, everyday["meta"], 0.5, 0)


@pytest.fixture
def study(store):
    """A study of twelve everyday questions whose gold rationales are its own."""
    found = make_study()
    found.folder.mkdir(parents=True)
    return found


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_sets_are_collected_and_named(study, tmp_path):
    ids = [e.id for e in study.data.train]
    rows = [{"id": key, "rationale": "It is.", "answer": "A"} for key in ids[:9]]
    path = put(tmp_path / "other.jsonl", rows)
    sets = rationale_quality.collect_sets(study, [0.5, 1.0], ["", path])
    assert [one.name for one in sets] == ["own", "50 % wrong", "100 % wrong", "other"]
    assert [one.wrong for one in sets] == [0.0, 0.5, 1.0, None]
    questions = rationale_quality.common_questions(study, sets)
    assert [e.id for e in questions] == ids[:9]
    quality = rationale_quality.measure_sets(study, sets, questions, 4).set_index("set")
    assert list(quality["agreement"][:1]) == [1.0] and quality["agreement"]["100 % wrong"] == 0
    share = np.mean([e.answer == 0 for e in questions])
    assert quality["agreement"]["other"] == pytest.approx(share)
    assert quality["names_label"]["own"] == 1 and quality["names_label"]["other"] == 0
    assert quality["tokens"]["other"] == len(study.student.encode(" It is."))
    assert (
        quality["facts"]["own"] > quality["facts"]["50 % wrong"] >= quality["facts"]["other"] == 0
    )
    told = texts.sets(quality.reset_index(), 12)
    assert told.startswith("4 sets: own, 50 % wrong, 100 % wrong, other.") and "9 of 12" in told
    shown = texts.show_quality(quality.reset_index())
    assert shown.columns[0] == "facts made wrong (%)" and len(shown.columns) == 6


def test_the_perplexity_is_that_of_a_plain_pass(study):
    example = study.data.train[0]
    one = RationaleSet("own", study.data.rationales)
    student = study.student
    prompt = student.bos_ids + student.encode(prompt_text(example, "pre_cot"))
    reason = student.encode(f" {one.rationales[example.id].text}")
    with torch.no_grad():
        logs = student.model(torch.tensor([prompt + reason])).logits[0].log_softmax(-1)
    rows = logs[len(prompt) - 1 : -1]
    expected = np.exp(-np.mean([row[i].item() for row, i in zip(rows, reason, strict=True)]))
    found = rationale_quality.measure_perplexity(study, one, [example])
    assert found == pytest.approx(expected, rel=1e-4)


def test_bad_sets_are_one_line(study, tmp_path):
    ids = [e.id for e in study.data.train]
    row = lambda key: {"id": key, "rationale": "It is.", "answer": None}
    collect = lambda *paths: rationale_quality.collect_sets(study, [], list(paths))
    with pytest.raises(DataError, match="one set of rationales; expected rationale_sets, or wrong"):
        collect("")
    with pytest.raises(DataError, match="unknown id 'x'; expected the id of a training question"):
        collect(put(tmp_path / "a.jsonl", [row("x")]))
    with pytest.raises(DataError, match="two sets are named 'own'; expected different names"):
        collect(put(tmp_path / "own.jsonl", [row(ids[0])]))
    with pytest.raises(DataError, match="none.jsonl: no such file or folder beside|no such file"):
        collect("none.jsonl")
    one, other = ([RationaleSet(k, {k: Rationale(k, "It is.")})] for k in ids[:2])
    with pytest.raises(DataError, match="none of 12 training questions is covered by all of"):
        rationale_quality.common_questions(study, one + other)


def test_a_mode_that_was_asked_beside_is_a_set(study):
    card = dict(teacher="t", revision="r", mode="blind", prefix="p", decoding={}, sample=0)
    rows = [
        card | {"id": e.id, "rationale": "I think so.", "answer": "A"} for e in study.data.train
    ]
    put(study.folder / "teacher-blind.jsonl", rows)
    sets = rationale_quality.collect_sets(study, [], [])
    assert [one.name for one in sets] == ["own", "blind"] and sets[0].wrong is None
    assert rationale_quality.quality_numbers(pd.DataFrame(), sets) == {}


def test_only_the_rationales_differ_between_sets(study):
    gold = RationaleSet("own", study.data.rationales, 0.0)
    wrong = rationale_quality.collect_sets(study, [1.0], [])[1]
    questions = study.data.train[:8]
    rows = plan_sets(study, [gold, wrong], questions, ["pre_cot", "post_cot"])
    labels = [row["label"] for row in rows]
    assert labels[0] == "label_only" and len(set(labels)) == len(labels) == 5
    one, other = (next(r["config"] for r in rows if r["label"] == f"post_cot: {name}")
                  for name in ("own", "100 % wrong"))  # fmt: skip
    assert {k for k in one if one[k] != other[k]} == {"rationales"}
    whole = with_rationales(study, study.data.train, gold)
    assert plan_sets(whole, [gold], study.data.train, ["post_cot"])[1]["key"]


def simulate(means, *, arms=("pre_cot", "post_cot"), seeds=3, questions=40) -> pd.DataFrame:
    """Make predictions whose log odds have these means: (arm, set) -> mean; label_only has 0."""
    rng, rows = np.random.default_rng(0), []
    labels = {"label_only": 0.0}
    labels |= {f"{arm}: {name}": mean for (arm, name), mean in means.items()}
    hard = rng.normal(0, 1, questions)
    for label, mean in labels.items():
        for seed in range(seeds):
            for question in range(questions):
                odds = mean + hard[question] + rng.normal(0, 0.3)
                right = {"correct_choice": odds > 0, "correct_generated": odds > 0}
                rows.append(
                    dict(arm=label, seed=seed, id=f"q{question}", gold=0, scores=[odds, 0.0])
                    | right
                    | dict(cut_off=False, rationale_cut_off=False)
                )
    return pd.DataFrame(rows)


SETS = [RationaleSet(f"s{i}", {}, share) for i, share in enumerate((0.0, 0.25, 0.5, 1.0))]
ARMS = ["pre_cot", "post_cot"]


@pytest.fixture(scope="module")
def predictions():
    """pre_cot loses much by wrong facts, post_cot some."""
    means = {("pre_cot", s.name): 2 - 4 * s.wrong for s in SETS}
    return simulate(means | {("post_cot", s.name): 1.5 - 1.5 * s.wrong for s in SETS})


@pytest.fixture(scope="module")
def quality():
    return pd.DataFrame(
        {
            "set": [s.name for s in SETS],
            "wrong": [s.wrong for s in SETS],
            "questions": 40,
            "agreement": [1.0, 0.75, 0.5, 0.0],
            "names_label": [1.0, 1.0, 1.0, 1.0],
            "tokens": [20.0, 24.0, 22.0, 21.0],
            "perplexity": [5.0, 6.0, 7.0, 8.0],
            "facts": np.nan,
        }
    )


def test_what_wrong_facts_cost_is_found_and_judged(predictions):
    numbers = rationale_quality.quality_numbers(predictions, SETS)
    judged = hypotheses.judge_predictions(numbers, rationale_quality.QUALITY_PREDICTIONS)
    outcomes = judged.groupby("hypothesis", sort=False)["outcome"].agg(list).to_dict()
    assert outcomes == {
        "facts taught": ["met"] * 3,
        "form": ["contradicted"] * 2,
        "crutch": ["met"],
    }
    left = hypotheses.survivors(judged)
    levels = rationale_quality.set_levels(predictions, SETS, ARMS)
    told = texts.findings(levels, left, judged, "x")
    assert told.startswith("**Findings.** Right facts minus all facts wrong: post_cot +")
    assert " points of p(gold); *facts taught* survives, *form* falls, *crutch* survives (" in told
    assert "Student: x." in told and "nan" not in told
    none = rationale_quality.quality_numbers(predictions, [RationaleSet("s0", {})])
    unjudged = hypotheses.judge_predictions(none, rationale_quality.QUALITY_PREDICTIONS)
    told = texts.findings(levels, hypotheses.survivors(unjudged), unjudged, "x")
    assert "no prediction is judged" in told


def test_levels_stand_beside_label_only(predictions):
    levels = rationale_quality.set_levels(predictions, SETS, ARMS)
    assert list(levels["set"]) == [s.name for s in SETS for _ in ARMS]
    one = levels[(levels["set"] == "s0") & (levels["arm"] == "pre_cot")].iloc[0]
    base = levels["estimate"] - levels["gain"]
    assert np.allclose(base, base.iloc[0]) and one["gain_low"] < one["gain"] < one["gain_high"]
    shown = texts.show_levels(levels)
    assert len(shown) == 8 and shown["− label_only (points)"].iloc[0].startswith("+")
    told = texts.levels(levels)
    assert "**pre_cot** is highest on *s0*" in told and "lowest on *s3*" in told
    assert "pre_cot on s0" in told.partition("above label_only")[2].partition("below it")[0]


def test_rank_correlations_need_four_sets(predictions, quality):
    rng = np.random.default_rng(0)
    found = rationale_quality.rank_correlations(predictions, quality, ARMS, rng, 200)
    by = found.set_index(["arm", "quality"])
    assert set(found["quality"]) == {"agreement", "tokens", "perplexity"}, "others are constant"
    assert by.loc[("pre_cot", "agreement"), "rho"] == pytest.approx(1)
    assert by.loc[("pre_cot", "perplexity"), "rho"] == pytest.approx(-1)
    assert by.loc[("pre_cot", "agreement"), "p"] == pytest.approx(2 / 24)
    assert (found["low"] <= found["rho"] + 1e-9).all() and (found["sets"] == 4).all()
    assert "pre_cot and agree with gold (%) (+1.00, 4 sets)" in texts.correlations(found, 4)
    assert texts.show_correlations(found)["p over orders of sets"].iloc[0] == "0.083"
    alone = found[found["arm"] == "pre_cot"]
    for rho, one in (([1.0, -1.0], True), ([1.0, 0.8], False), ([0.8, -0.8], False)):
        pair = pd.concat([alone[:1]] * 2).assign(rho=rho)
        assert ("this is one comparison per arm" in texts.correlations(pair, 4)) == one
    alike = quality.assign(tokens=20 + quality["tokens"] / quality["tokens"].max() / 2)
    found = rationale_quality.rank_correlations(predictions, alike, ARMS, rng, 20)
    assert set(found["quality"]) == {"agreement", "perplexity"}, "half a token is no difference"
    head = texts.correlations_head(found, alike)
    assert "differ by less than 5 % of the mean: name the label (%), length (tokens)." in head
    few = rationale_quality.rank_correlations(predictions, quality[:3], ARMS, rng, 20)
    assert few.empty and texts.correlations_head(few, quality[:3]) == ""
    assert texts.correlations(few, 3) == "3 sets: a rank correlation is given from 4 sets on."


def test_means_are_drawn_by_whole_clusters():
    """Against plain resampling of rows: clusters of one, clusters of four, and unasked cells."""
    rng = np.random.default_rng(4)
    fact = np.repeat(np.arange(10), 4)
    values = rng.normal(size=(2, 3, 10)).repeat(4, axis=2)
    plainly = []
    for _ in range(3000):
        chosen = values[:, rng.integers(3, size=3)]
        facts = rng.integers(10, size=10)
        plainly.append(np.mean([chosen[:, :, fact == f].mean((1, 2)) for f in facts], 0))
    drawn = rationale_quality.bootstrap_means(values, fact, np.random.default_rng(0), 3000)
    assert drawn.std(0) == pytest.approx(np.std(plainly, axis=0), rel=0.06)
    alone = rationale_quality.bootstrap_means(values, np.arange(40), np.random.default_rng(0), 3000)
    assert (alone.std(0) < 0.9 * drawn.std(0)).all()
    values[:, 0, 20:] = np.nan
    gaps = rationale_quality.bootstrap_means(values, fact, np.random.default_rng(0), 3000)
    assert gaps.mean(0) == pytest.approx(np.nanmean(values, (1, 2)), abs=0.05)


def test_the_figure_has_a_panel_for_each_quality_that_varies(predictions, quality):
    levels = rationale_quality.set_levels(predictions, SETS, ARMS)
    rows = rationale_quality.quality_points(levels, quality)
    for narrow in (False, True):
        figure = draw_figure("quality", rows, narrow=narrow)
        shown = [axis.get_xlabel() for axis in figure.axes if axis.get_visible()]
        names = rationale_quality.QUALITIES
        assert shown == [names[n] for n in ("agreement", "tokens", "perplexity")]
    assert rationale_quality.quality_points(levels, quality[:1]).empty


def test_settings_of_worlds_that_cannot_be_damaged_make_no_set(store):
    spec = make_spec(dataset="microworld/relations")
    study = make_study(data=spec)
    with pytest.raises(DataError, match="one set of rationales"):
        rationale_quality.collect_sets(study, [0.5], [])
