"""Predictions and the rules that judge them; trainings that are watched without being changed."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from studies import make_study

from cotdistill import hypotheses
from cotdistill.arms import Arm
from cotdistill.files import read_json
from cotdistill.hypotheses import COSINE, COSINE_SWAPPED, FOLLOWS, LENS, judge
from cotdistill.inference import estimate_contrasts
from cotdistill.plots import interval_lines
from cotdistill.readings import mechanism as texts
from cotdistill.runs import measured
from cotdistill.runs.grid import run_grid
from cotdistill.runs.measured import Measurement, watch_students

ASKED = Measurement(alignment_batches=2, lens_questions=6, forced_questions=4)
QUIET = lambda *text, **_: None


def number(low, high, seeds=5, narrow=0.7):
    middle, half = (low + high) / 2, (high - low) / 2
    ends = {"low": low, "high": high, "low90": middle - narrow * half}
    return ends | {"high90": middle + narrow * half, "estimate": middle, "seeds": seeds}


@pytest.mark.parametrize(
    "sign, low, high, outcome",
    [
        ("+", 0.01, 0.05, "met"),
        ("+", -0.01, 0.05, "open"),
        ("+", -0.05, -0.01, "contradicted"),
        ("-", -0.05, -0.01, "met"),
        ("-", 0.01, 0.05, "contradicted"),
        ("-", -0.01, 0.05, "open"),
        ("0", -0.01, 0.01, "met"),
        ("0", 0.001, 0.02, "met"),
        ("0", -0.025, 0.025, "met"),
        ("0", -0.05, 0.05, "open"),
        ("0", 0.01, 0.06, "open"),
        ("0", 0.03, 0.06, "contradicted"),
        ("0", -0.06, -0.03, "contradicted"),
    ],
)
def test_a_prediction_is_judged_by_its_interval(sign, low, high, outcome):
    assert judge(sign, number(low, high)) == outcome
    assert judge(sign, number(low, high, seeds=2)) == "too few seeds"


def test_what_was_not_measured_is_said_to_be():
    assert judge("+", None) == judge("0", number(np.nan, np.nan)) == "not measured"
    judged = hypotheses.judge_predictions({})
    assert set(judged["outcome"]) == {"not measured"}
    assert set(hypotheses.survivors(judged)["outcome"]) == {"undecided"}


def test_every_prediction_has_a_number_and_every_hypothesis_a_prediction():
    names = {p.number for p in hypotheses.PREDICTIONS}
    assert names <= {*hypotheses.CONTRASTS, COSINE, COSINE_SWAPPED, LENS, FOLLOWS}
    assert {p.hypothesis for p in hypotheses.PREDICTIONS} == set(hypotheses.HYPOTHESES)
    assert {p.sign for p in hypotheses.PREDICTIONS} == {"+", "-", "0"}
    assert len(hypotheses.prediction_table()) == len(hypotheses.PREDICTIONS)


def test_one_contradiction_fells_an_explanation():
    numbers = {
        "own − swapped": number(0.03, 0.06),
        COSINE: number(0.1, 0.2),
        COSINE_SWAPPED: number(-0.2, -0.1),
        "own − filler": number(-0.5, 0.5),
    }
    left = hypotheses.survivors(hypotheses.judge_predictions(numbers)).set_index("hypothesis")
    assert left["outcome"].to_dict() == {
        "regularisation": "falls",
        "facts taught": "survives",
        "label weight": "undecided",
        "auxiliary task": "falls",
    }
    assert left.loc["auxiliary task", ["met", "contradicted", "predictions"]].tolist() == [1, 1, 3]


def predictions(lifts, seeds=4, questions=50):
    """Answers whose p(gold) differs between arms by their lift."""
    rng, rows = np.random.default_rng(0), []
    easy = rng.normal(0, 0.5, questions)
    for arm, lift in lifts.items():
        for seed in range(seeds):
            logits = easy + lift + rng.normal(0, 0.3, questions)
            rows += [
                dict(arm=arm, seed=seed, id=f"q{i}", gold=0, scores=[z, 0.0], cut_off=False)
                for i, z in enumerate(logits)
            ]
    return pd.DataFrame(rows)


def test_contrasts_are_those_of_inference():
    table = predictions(
        {"label_only": 0.0, "post_cot": 0.8, "post_cot_swapped": 0.1, "low": 0.0, "high": 1.0}
    )
    facts = {f"q{i}": "rationale" if i % 2 else "label" for i in range(50)}
    found = hypotheses.contrast_numbers(table, ["low", "high"], facts)
    assert set(found) == {
        "own − label_only",
        "own − swapped",
        "swapped − label_only",
        "own − label_only, facts in rationales only",
        "highest − lowest label share",
    }
    pairs = {
        "own − label_only": {"post_cot": 1, "label_only": -1},
        "highest − lowest label share": {"high": 1, "low": -1},
    }
    wanted = estimate_contrasts(table, pairs).set_index("contrast")
    for name, row in wanted.iterrows():
        for column in ("estimate", "low", "high"):
            assert found[name][column] == pytest.approx(row[column])
        assert (found[name]["seeds"], found[name]["units"]) == (4, 50)
    half = found["own − label_only, facts in rationales only"]
    assert half["units"] == 25 and half["low"] > 0
    assert "facts" not in " ".join(hypotheses.contrast_numbers(table, [], {}))


def measured_rows(seeds=3):
    """Rows as a watched training leaves them, with known means."""
    rows, rng = [], np.random.default_rng(1)
    for seed in range(seeds):
        for arm, cosine, gap in (
            ("label_only", None, 0.5),
            ("post_cot", 0.4, 2.0),
            ("post_cot_swapped", 0.1, 0.6),
        ):
            about = dict(arm=arm, seed=seed)
            for epoch in (0, 1):
                for batch in range(8 if cosine else 0):
                    for block in (-1, 0, 1):
                        value = cosine + rng.normal(0, 0.01)
                        row = dict(kind="alignment", epoch=epoch, batch=batch, block=block)
                        rows.append(about | row | {"cosine": value})
                for i in range(20):
                    lens = dict(kind="lens", epoch=epoch, id=f"t{i}", other=-3.0)
                    for block in (0, 1):
                        own = -3 + epoch * block * gap + rng.normal(0, 0.01)
                        rows.append(about | lens | {"block": block, "own": own})
        for i in range(20):
            forced = dict(agrees=1, strays=0, follows=int(i % 4 > 0), sticks=0, changed=1)
            row = dict(arm="post_cot", seed=seed, kind="forced", epoch=1, id=f"q{i}")
            rows.append(row | forced)
    return pd.DataFrame(rows)


def test_numbers_of_watched_trainings():
    rows = measured_rows()
    found = hypotheses.measured_numbers(rows)
    expected = {COSINE: 0.4, COSINE_SWAPPED: 0.3, LENS: 1.5, FOLLOWS: 0.75}
    assert {k: v["estimate"] for k, v in found.items()} == pytest.approx(expected, abs=0.01)
    assert all(v["seeds"] == 3 and v["low"] > 0 for v in found.values())
    outcomes = hypotheses.judge_predictions(found).set_index("number")["outcome"]
    assert set(outcomes[list(expected)]) == {"met"}
    lines = hypotheses.block_lines(hypotheses.last_lens(rows), "own", "id", "other")
    top = lines[lines["x"] == 2].set_index("line")["value"]
    assert top.to_dict() == pytest.approx(
        {"label_only": 0.5, "post_cot": 2.0, "post_cot_swapped": 0.6}, abs=0.01
    )
    cosines = hypotheses.cosine_table(rows)
    assert list(cosines.columns) == ["before training", "epoch 1"]
    assert cosines.loc["post_cot"].tolist() == pytest.approx([0.4, 0.4], abs=0.02)
    assert hypotheses.written_table(rows).loc["post_cot"].tolist() == [100, 0, 75, 0, 100]


@pytest.fixture
def study(store):
    made = make_study(train=dict(lr=1e-2, epochs=2, batch_size=4, select="best"))
    made.folder.mkdir(parents=True)
    return made


def test_watching_does_not_change_the_training(study):
    arms = [Arm("label_only"), Arm("post_cot"), Arm("post_cot", "swapped")]
    run_grid(study, arms, "mechanism", say=QUIET)
    rows = watch_students(study, arms, [0], ASKED, say=QUIET)
    own = {row["label"]: row["key"] for row in read_json(study.folder / "mechanism.json", "")}
    seen = {row["label"]: row["key"] for row in read_json(study.folder / "measured.json", "")}
    for arm in arms:
        histories = [
            (measured.artifacts() / "runs" / keys[arm.label] / "history.csv").read_text()
            for keys in (own, seen)
        ]
        assert histories[0] == histories[1]
    assert rows.groupby("kind").size()["answer"] == 3 * 3 * 8
    aligned = rows[rows["kind"] == "alignment"]
    assert set(aligned["arm"]) == {"post_cot", "post_cot_swapped"}
    assert len(aligned) == 2 * 3 * 2 * 3 and aligned["cosine"].between(-1, 1).all()
    assert len(rows[rows["kind"] == "forced"]) == 2 * 4
    start = rows[(rows["kind"] == "answer") & (rows["epoch"] == 0)].groupby("id")["scores"]
    assert start.apply(lambda s: len({json.dumps(x) for x in s})).eq(1).all()
    said = []
    again = watch_students(study, arms, [0], ASKED, say=lambda text, **_: said.append(text))
    assert len(said) == 3 and all("from the store" in text for text in said)
    pd.testing.assert_frame_equal(rows, again)


def test_a_killed_watch_goes_on_from_its_checkpoint(study, monkeypatch):
    whole = watch_students(study, [Arm("post_cot")], [0], ASKED, say=QUIET)
    key = read_json(study.folder / "measured.json", "")[0]["key"]
    folder = measured.artifacts() / "runs" / key
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write, seen = measured.write_rows, []

    def stop(path, rows, **about):
        write(path, rows, **about)
        seen.append(path.name)
        if seen == ["epoch-0.jsonl", "epoch-1.jsonl", "epoch-2.jsonl"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(measured, "write_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        watch_students(study, [Arm("post_cot")], [0], ASKED, say=QUIET)
    again = watch_students(study, [Arm("post_cot")], [0], ASKED, say=QUIET)
    assert seen[3:] == ["epoch-2.jsonl", "written.jsonl"]
    pd.testing.assert_frame_equal(whole, again)


def test_the_figures_draw_every_line_with_its_interval():
    rows = pd.DataFrame(
        [
            dict(line=name, x=x, value=x + shift, low=x + shift - 1, high=x + shift + 1)
            for name, shift in (("a", 0), ("b", 5))
            for x in (2, 1, 3)
        ]
    )
    ax = interval_lines(rows, "steps", "points", reference=0)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert drawn["a"] == [[1, 1], [2, 2], [3, 3]] and drawn["b"] == [[1, 6], [2, 7], [3, 8]]
    assert len(ax.collections) == 2 and ax.get_xlabel() == "steps"
    assert all(float(tick).is_integer() for tick in ax.get_xticks())
    plt.close(ax.figure)


def test_readings_of_the_mechanism():
    numbers = {"own − swapped": number(0.03, 0.06), "own − filler": number(-0.02, 0.03)}
    table = hypotheses.number_table({k: v | {"units": 40} for k, v in numbers.items()})
    said = texts.contrasts(table, 5)
    assert said.startswith("1 of 2 intervals exclude zero: own − swapped (+4.5)")
    assert "fewer than 3 seeds" in texts.contrasts(table, 2)
    judged = hypotheses.judge_predictions(numbers)
    left = hypotheses.survivors(judged)
    assert texts.outcomes(left) == (
        "Of 4 explanations, these survive: facts taught; these fall: regularisation; these are "
        "undecided: label weight, auxiliary task."
    )
    found = texts.findings(left, judged, "x")
    assert "Predictions contradicted: regularisation: own − swapped." in found
    shown = texts.show_outcomes(judged).set_index("number")["found"]
    assert shown["own − filler"] == "+0.5 [-2.0, +3.0] points" and shown[COSINE] == "–"
    cosine = hypotheses.judge_predictions({COSINE: number(0.1, 0.3)})
    shown = texts.show_outcomes(cosine).set_index("number")["found"]
    assert shown[COSINE] == "+0.200 [+0.100, +0.300] (cosine)"
    rows = measured_rows()
    said = texts.alignment(hypotheses.cosine_table(rows))
    assert "**post_cot** +0.40 → +0.40, **post_cot_swapped** +0.10 → +0.10" in said
    written = texts.written(hypotheses.written_table(rows))
    assert "100 % name the answer given; behind another option 75 % name that (unasked: 0 %)" in (
        written
    )
    lines = hypotheses.block_lines(hypotheses.last_lens(rows), "own", "id", "other")
    assert "**post_cot** +2.00 [" in texts.lens(lines, 20, 30) and "20 of 30 questions" in (
        texts.lens(lines, 20, 30)
    )
    for empty in (texts.lens(lines[:0], 0, 3), texts.written(pd.DataFrame())):
        assert empty.startswith("Not measured")
    assert texts.contrasts(table[:0], 3).startswith("Nothing to compare")
    dial = hypotheses.arm_lines(
        predictions({"post_cot": 0.0, "label_only": 1.0}), {"post_cot": 0.1, "label_only": 1.0}
    )
    assert texts.dial(dial).endswith("It is highest at 100 % (label_only).")
