"""How far an effect reaches: strata of questions, and other datasets."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from studies import make_spec, make_study

from cotdistill import breadth, plots, readings
from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.paths import artifacts
from cotdistill.runs.grid import plan_rows, run_grid
from cotdistill.runs.one import read_elsewhere_answers
from cotdistill.runs.published import publish_runs
from cotdistill.runs.record import record_questions
from cotdistill.runs.results import load_stage
from cotdistill.runs.store import load_metrics
from cotdistill.stats import estimate_measure
from cotdistill.study import Setting, load_elsewhere_data


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_a_question_is_described_by_numbers_alone():
    student = tiny("tiny-llama")
    example = Example("a", "Which melts, the ice or a rock?", ("the ice", "a blue rock"), 0)
    numbers = breadth.describe_question(student, example, "Warm ice melts. The ice is warm.")
    assert numbers["tokens"] == len(student.encode(example.question))
    assert numbers["overlap"] == pytest.approx(2 / 3, abs=1e-4)  # ice and rock, not blue
    assert numbers["names_label"] is True
    assert "names_label" not in breadth.describe_question(student, example)
    assert breadth.describe_question(student, example, "It is cold.")["names_label"] is False


def test_thirds_keep_equal_values_together():
    parts = breadth.split_in_thirds({str(i): i for i in range(9)})
    assert [parts[str(i)] for i in (0, 2, 3, 8)] == ["0 to 2", "0 to 2", "3 to 5", "6 to 8"]
    zeros = breadth.split_in_thirds({"a": 0, "b": 0, "c": 0, "d": 0, "e": 0.25, "f": 0.5})
    assert set(zeros.values()) == {"0", "0.25 to 0.5"}
    assert set(breadth.split_in_thirds({"a": 1, "b": 1}).values()) == {"1"}


def answers(rng, gains, questions=120, seeds=(0, 1, 2)):
    """Predictions in which an arm's share of right answers is .5, and more on long questions."""
    rows = []
    for arm, gain in gains.items():
        for seed in [-1] if arm == "zero_shot" else seeds:
            for i in range(questions):
                right = rng.random() < 0.5 + gain * (i >= 80)
                about = dict(arm=arm, seed=seed, id=f"q{i}", gold=0, correct_choice=right)
                rows.append(
                    about | dict(scores=[-1.0, -2.0], cut_off=False, correct_generated=right)
                )
    return pd.DataFrame(rows)


def test_effects_within_strata(rng):
    study = make_study()
    study.mentioned = {}  # re-read from what was published
    study.numbers = {f"q{i}": {"tokens": i, "overlap": 0.0} for i in range(120)}
    gains = dict(zero_shot=0.0, label_only=0.0, post_cot=0.4, pre_cot=0.0)
    found = breadth.strata_effects(study, answers(rng, gains))
    assert set(found["split"]) == {breadth.SPLITS["tokens"], breadth.SPLITS["zero_shot"]}
    assert len(found) == 2 * (3 + 2) and set(found["contrast"]) == set(breadth.CONTRASTS)
    gain = found.set_index(["stratum", "contrast"])["estimate"]
    assert gain["80 to 119", "post_cot − label_only"] > 0.25
    assert abs(gain["0 to 39", "post_cot − label_only"]) < 0.2
    table = breadth.strata_table(found)
    assert list(table.columns)[:2] == ["stratum", "n"] and len(table) == 5
    said = readings.figures.strata(found)
    assert "of 10 intervals exclude zero" in said and "80 to 119" in said
    assert "hardly differs: options' words in the question; rationale names the label" in said
    assert "Exploratory" in readings.figures.strata_head(found)
    for narrow in (False, True):
        fig = plots.draw_figure("strata", found, narrow=narrow)
        assert len(fig.axes[0].get_yticklabels()) == 5


def test_nothing_is_shown_where_nothing_is_known(rng):
    study = make_study()
    study.mentioned = {}
    few = breadth.strata_effects(study, answers(rng, dict(label_only=0.0, post_cot=0.1)))
    alone = breadth.strata_effects(study, answers(rng, dict(label_only=0.0)))
    for empty in (few, alone):
        assert empty.empty and breadth.strata_table(empty).empty
        assert readings.figures.strata(empty) == readings.figures.strata_head(empty) == ""


def test_the_numbers_are_published_without_texts():
    study = make_study()
    rows = record_questions(study)
    wanted = breadth.question_numbers(study)
    assert [r["numbers"] for r in rows] == [wanted[r["id"]] for r in rows]
    kinds = {type(v) for r in rows for v in r["numbers"].values()}
    assert kinds <= {int, float, bool} and np.isfinite([r["numbers"]["tokens"] for r in rows]).all()


# --- other datasets ---


ARMS = [Arm("zero_shot"), Arm("label_only"), Arm("post_cot")]


def test_students_answer_other_datasets_and_keys_stay(store, monkeypatch, tmp_path):
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path / "root"))
    plain = make_study()
    asks = make_study(also_answer=["microworld/invented"], also_answer_size=6)
    assert [r["key"] for r in plan_rows(plain, ARMS)] == [r["key"] for r in plan_rows(asks, ARMS)]
    assert "also_answer" not in plain.setting.to_json()
    again = Setting.from_json(asks.setting.to_json(), "base.json", "t")
    assert again == asks.setting and again.also_answer_size == 6

    run_grid(plain, ARMS, "train", keep_weights=[("label_only", 0)])
    assert breadth.load_elsewhere(plain).empty
    said = []
    run_grid(asks, ARMS, "train", say=lambda line, **_: said.append(line))
    kept = {row["label"]: row["metrics"] for row in load_stage("t", "train")}
    # post_cot kept no weights when it was trained
    assert set(breadth.load_elsewhere(asks)["arm"]) == {"zero_shot", "label_only"}
    assert sum("kept no weights" in line for line in said) == 1
    assert "weights.safetensors" in kept["label_only"]["files"]
    weights = load_metrics(plan_rows(asks, ARMS)[1]["key"])
    assert weights["accuracy"] == kept["label_only"]["accuracy"]

    # directly after training, the same answers as by the weights that were kept
    later = breadth.load_elsewhere(asks)
    shutil.rmtree(artifacts() / "runs")
    run_grid(asks, ARMS, "train")
    now = breadth.load_elsewhere(asks)
    assert set(now["arm"]) == {"zero_shot", "label_only", "post_cot"}
    assert now.groupby("arm")["id"].nunique().eq(6).all() and "text" not in now
    both = [t[t["arm"] == "label_only"].reset_index(drop=True) for t in (later, now)]
    pd.testing.assert_frame_equal(*both)

    # they travel with the published runs
    published = publish_runs("t")
    assert b"Question" not in published.read_bytes()
    shutil.rmtree(artifacts() / "runs")
    run_grid(asks, ARMS, "train")
    pd.testing.assert_frame_equal(breadth.load_elsewhere(asks), now)
    metrics = load_metrics(plan_rows(asks, ARMS)[2]["key"])
    assert set(metrics["elsewhere"]) == {"microworld/invented"}

    effects = breadth.elsewhere_effects(now)
    assert list(effects["contrast"]) == ["zero_shot", "label_only", "post_cot",
                                         "post_cot − label_only"]  # fmt: skip
    table = breadth.elsewhere_table(effects)
    assert list(table.columns) == ["microworld/invented (n = 6)"]
    assert " %" in table.loc["label_only"].iloc[0] and "[" in table.iloc[-1, 0]
    assert "On other datasets" in readings.evaluate.elsewhere_head(effects)
    assert "post_cot − label_only" in readings.evaluate.elsewhere(effects)
    nothing = breadth.elsewhere_effects(pd.DataFrame())
    assert readings.evaluate.elsewhere(nothing) == "" and breadth.elsewhere_table(nothing).empty


def test_two_studies_add_to_the_answers_of_one_run(store):
    """Another study's datasets stay, and one that asks the same again finds them."""
    plain = make_study()
    first = make_study(also_answer=["microworld/invented"], also_answer_size=6)
    second = make_study(also_answer=["microworld/relations"], also_answer_size=4)
    keep = [("label_only", 0)]
    run_grid(plain, ARMS[:2], "train", keep_weights=keep)
    key = plan_rows(plain, ARMS)[1]["key"]
    for study in (first, second):
        run_grid(study, ARMS[:2], "train", keep_weights=keep)
    metrics = load_metrics(key)
    assert set(metrics["elsewhere"]) == {"microworld/invented", "microworld/relations"}
    assert metrics["accuracy"] == load_stage("t", "train")[1]["metrics"]["accuracy"]
    names = [a["dataset"] for a in read_elsewhere_answers(artifacts() / "runs" / key)]
    assert names == ["microworld/invented"] * 6 + ["microworld/relations"] * 4
    written = (artifacts() / "runs" / key / "metrics.json").stat().st_mtime_ns
    run_grid(first, ARMS[:2], "train", keep_weights=keep)
    assert (artifacts() / "runs" / key / "metrics.json").stat().st_mtime_ns == written
    assert set(breadth.load_elsewhere(second)["dataset"]) == {"microworld/relations"}


def test_questions_about_one_fact_of_another_world_are_one_cluster():
    """The interval is that of answers whose facts are given, and facts are the world's own."""
    large = make_spec(microworld=dict(n_train=12, n_test=160))
    study = make_study(also_answer=["microworld/invented"], data=large)
    world = load_elsewhere_data("microworld/invented", study.setting)
    rng = np.random.default_rng(0)
    rows = [
        dict(dataset="microworld/invented", arm=arm, seed=seed, id=e.id, gold=e.answer,
             choice=int(rng.integers(4)), correct_choice=bool(rng.integers(2)),
             cut_off=False, rationale_cut_off=False)
        for arm in ("label_only", "post_cot") for seed in range(3) for e in world.test
    ]  # fmt: skip
    answers = breadth.describe_elsewhere(pd.DataFrame(rows), study)
    given = {e.id: tuple(world.meta[e.id]["fact"]) for e in world.test}
    assert 1 < answers["fact"].nunique() == len(set(given.values())) < len(given)
    pairs = answers[["id", "fact"]].drop_duplicates()
    assert pairs.groupby("fact")["id"].apply(lambda ids: len({given[i] for i in ids})).eq(1).all()
    contrast = {"post_cot − label_only": {"post_cot": 1.0, "label_only": -1.0}}
    wanted = estimate_measure(answers.drop(columns="dataset"), contrast, "correct_choice")
    found = breadth.elsewhere_effects(answers).set_index("contrast").loc["post_cot − label_only"]
    assert (found["low"], found["high"]) == (wanted["low"].iloc[0], wanted["high"].iloc[0])
    other = breadth.describe_elsewhere(pd.DataFrame(rows), make_study())
    assert "fact" not in other


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("microworld/everyday", "is the study's own dataset"),
        ("no_such", "also_answer: no_such: no such folder"),
        ("microworld/moon", "moon"),
    ],
)
def test_a_dataset_that_cannot_be_asked_is_one_line(name, words):
    with pytest.raises(DataError, match=words) as error:
        make_study(also_answer=[name]).check()
    assert "\n" not in str(error.value)


def test_free_answers_cannot_be_chosen_from(tmp_path):
    for split in ("train", "test"):
        row = {"id": f"{split}-1", "question": f"How many in {split}?", "answer": "3"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="has a free answer"):
        _ = make_study(also_answer=[str(tmp_path)]).elsewhere
