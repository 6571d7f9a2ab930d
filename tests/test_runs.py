"""The run store: keys, atomicity, damage, sharing between processes.

And studies checked before the first run.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import tiny
from studies import make_study

from cotdistill.arms import Arm, arm_from_name, prompt_text
from cotdistill.corrupt import dots_id
from cotdistill.errors import DataError
from cotdistill.paths import artifacts, study_dir
from cotdistill.runs.attributors import attributing_student
from cotdistill.runs.grid import run_grid
from cotdistill.runs.one import make_config, run_key
from cotdistill.runs.provenance import git_state, provenance
from cotdistill.runs.results import load_history, load_predictions, unchanged_shares
from cotdistill.runs.scores import attribution_file, attributions, load_or_make_table
from cotdistill.runs.store import load_metrics, load_or_make_run
from cotdistill.study import Study, shared_student

ROOT = Path(__file__).resolve().parents[1]
ARMS = [Arm("zero_shot"), Arm("label_only"), Arm("pre_cot"), Arm("post_cot")]


@pytest.fixture
def study(store):
    return make_study(seeds=[0, 1])


def test_key_depends_on_values_not_on_order_and_differs_for_every_change(study):
    config = make_config(study, Arm("post_cot"), 0)
    assert run_key(config) == run_key(dict(reversed(config.items())))
    changes = [
        dict(seeds=[1]),
        dict(train_size=6),
        dict(test_size=4),
        dict(label_format="letter"),
        dict(max_label_tokens=30),
        dict(train={"lr": 2e-2}),
        dict(student="tiny-gpt2"),
        dict(data=study.setting.data | {"data_seed": 2}),
    ]
    keys = [
        run_key(make_config(study.replace(**c), Arm("post_cot"), (c.get("seeds") or [0])[0]))
        for c in changes
    ]
    assert len({*keys, run_key(config)}) == len(changes) + 1


def test_key_ignores_what_a_run_does_not_depend_on(study):
    key = lambda b, arm, seed=0: run_key(make_config(b, arm, seed))
    assert key(study, Arm("zero_shot"), 0) == key(
        study.replace(train={"lr": 5.0}), Arm("zero_shot"), 1
    )
    assert key(study, Arm("label_only")) == key(
        study.replace(eval_batch_size=99, max_new_tokens=50, study="other"), Arm("label_only")
    )
    assert key(study, Arm("pre_cot")) != key(study.replace(max_new_tokens=50), Arm("pre_cot"))


def test_a_grid_is_made_once_and_read_back(study, capsys):
    table = run_grid(study, ARMS, "train", keep_weights=[("pre_cot", 0)])
    assert len(table) == 7 and (table["n"] == 8).all() and set(table["seed"]) == {-1, 0, 1}
    first = capsys.readouterr().out
    assert first.count("left") == 6 and "from the store" not in first
    again = run_grid(study, ARMS, "train", keep_weights=[("pre_cot", 0)])
    assert capsys.readouterr().out.count("from the store") == 7
    pd.testing.assert_frame_equal(table, again)
    predictions = load_predictions(study, ["train"])
    assert (
        len(predictions) == 7 * 8
        and predictions.groupby(["arm", "seed"])["id"].nunique().eq(8).all()
    )
    stored = next((artifacts() / "runs").glob("*/metrics.json")).parent
    assert {p.name for p in stored.iterdir()} >= {
        "config.json",
        "history.csv",
        "predictions.jsonl",
        "provenance.json",
        "metrics.json",
    }
    assert not list((artifacts() / "runs").glob("*.work"))
    attributor, key = attributing_student(study, "pre_cot", 0)
    assert attributor.name == "tiny-llama" and len(key) == 64
    original = dict(study.student.model.named_parameters())
    assert any(not p.equal(original[name]) for name, p in attributor.model.named_parameters())
    fresh = dict(tiny("tiny-llama").model.named_parameters())
    assert all(p.equal(fresh[name]) for name, p in original.items())


def test_weights_are_put_back_between_runs(study):
    """The second run of a grid equals the same run made alone: nothing leaks between runs."""
    run_grid(study, [Arm("post_cot"), Arm("label_only")], "train", seeds=[0])
    together = load_predictions(study, ["train"]).query("arm == 'label_only'")["scores"].tolist()
    import shutil

    shutil.rmtree(artifacts() / "runs")
    shared_student.cache_clear()
    study = make_study(seeds=[0, 1])
    run_grid(study, [Arm("label_only")], "train", seeds=[0])
    assert load_predictions(study, ["train"])["scores"].tolist() == together


@pytest.mark.parametrize(
    "file", ["metrics.json", "predictions.jsonl", "history.csv", "config.json"]
)
@pytest.mark.parametrize("how", ["cut", "edited", "gone"])
def test_damage_is_named_and_repaired(study, file, how, capsys):
    run_grid(study, [Arm("zero_shot")], "train")
    folder = next((artifacts() / "runs").glob("*/metrics.json")).parent
    whole = (folder / "predictions.jsonl").read_bytes()
    path = folder / file
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[: len(content) // 2]
            if how == "cut"
            else content.replace(b"0", b"1", 1)
            if b"0" in content
            else content + b" "
        )
    capsys.readouterr()
    if path.is_file() and path.read_bytes() == content:
        pytest.skip("an empty history cannot be cut")
    run_grid(study, [Arm("zero_shot")], "train")
    out = capsys.readouterr().out
    assert file in out and "made again" in out and "from the store" not in out
    assert (folder / "predictions.jsonl").read_bytes() == whole


def test_stages_of_different_settings_are_not_compared(study):
    other = study.replace(train={"lr": 0.5})
    run_grid(other, [Arm("post_cot", "shuffled", unit="token")], "shuffle")
    run_grid(study, [Arm("zero_shot"), Arm("label_only")], "train")
    assert len(load_predictions(study, ["train"])) and len(load_predictions(study, ["shuffle"]))
    with pytest.raises(
        DataError,
        match=r"post_cot_shuffled\[token\], seed 0 of stage shuffle "
        r"was made with other training than .* run `make shuffle "
        r"STUDY=t`",
    ):
        load_predictions(study, ["train", "shuffle"])


def test_a_stage_has_arms_and_each_once(study):
    with pytest.raises(DataError, match="stage shuffle has no arm to run"):
        run_grid(study, [], "shuffle")
    with pytest.raises(DataError, match="arm label_only is named twice in stage train"):
        run_grid(study, [Arm("label_only"), Arm("post_cot"), Arm("label_only")], "train")
    with pytest.raises(
        DataError,
        match=r"arms: post_cot_shuffled\[token\] is trained by `make "
        r"shuffle`",
    ):
        study.check([Arm("label_only"), Arm("post_cot", "shuffled", unit="token")])
    assert not (artifacts() / "runs").exists()


def test_half_made_runs_are_not_runs(study):
    config = make_config(study, Arm("zero_shot"), 0)
    work = artifacts() / "runs" / f"{run_key(config)}.work"
    work.mkdir(parents=True)
    (work / "metrics.json").write_text("{}")
    assert load_metrics(run_key(config)) is None
    assert load_or_make_run(study, Arm("zero_shot"), 0, config)[1]


def test_two_processes_make_each_run_once(study, store):
    code = (
        "import sys; sys.path[:0] = [{root!r}, {root!r} + '/tests']\n"
        "import torch; torch.set_num_threads(1)\n"
        "from cotdistill.runs.grid import run_grid; from cotdistill.arms import Arm\n"
        "from studies import make_study\n"
        "run_grid(make_study(), [Arm('zero_shot'), Arm('label_only')], 'train')\n"
    )
    command = [sys.executable, "-c", code.format(root=str(ROOT))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    # Two runs, each made by one and read by the other
    assert sum(out.count("from the store") for out, _ in outs) == 2


def test_kept_arms_need_their_scores(study):
    arm = arm_from_name("post_cot_kept", amount=3, selector="saliency")
    ids = {e.id: [0.0] for e in study.train_questions(0)[:3]}
    with pytest.raises(DataError, match="no attribution scores for 9 questions, first"):
        run_grid(study, [arm], "attribute", seeds=[0], scores={("saliency", 0): (ids, "x")})


def test_what_a_student_has_no_positions_for_stops_before_the_first_run(study, monkeypatch):
    student, room = study.student, study.student.model.config
    asked = [*study.test_questions(), *study.data.validation]
    fits, cue = (
        24 + max(len(student.encode(prompt_text(e, "post_cot"))) for e in asked),
        len(student.encode("\nAnswer:")),
    )
    monkeypatch.setattr(room, "max_position_embeddings", fits)
    study.check_positions([Arm("post_cot")])
    with pytest.raises(
        DataError,
        match=r"question 'everyday-test-\d+': its prompt is \d+ "
        rf"tokens long and {424 + cue} may follow .*; expected "
        rf"at most {fits} in all",
    ):
        study.replace(max_new_tokens=400).check_positions([Arm("post_cot"), Arm("pre_cot")])
    monkeypatch.setattr(room, "sliding_window", 30, raising=False)
    with pytest.raises(
        DataError, match="expected at most 30 in all, the student's positions or attention window"
    ):
        run_grid(study, [Arm("label_only")], "train")


def test_scores_are_made_again_for_another_label_and_not_for_another_click(study, monkeypatch):
    """A corrected answer changes what tokens are attributed to.

    What a human selects changes the human scores only.
    """
    from cotdistill.attribution.score_files import read_scores

    asked, student = study.train_questions(0)[:2], study.student
    clicks = [{e.id: [n] for e in asked} for n in (0, 1)]
    first, again = (
        attribution_file(study, student, "j", "input_x_gradient", asked, selections=s, seed=0)
        for s in clicks
    )
    assert first == again
    assert (
        len(
            {
                attribution_file(study, student, "j", "human", asked, selections=s, seed=0)
                for s in clicks
            }
        )
        == 2
    )
    other = [replace(e, answer=(e.answer + 1) % len(e.choices)) for e in asked]
    assert attribution_file(study, student, "j", "input_x_gradient", other, seed=0) != first
    assert [
        x.id
        for x in attributions(study, student, "j", "human", asked, selections=clicks[0], seed=0)
    ] == [e.id for e in asked]
    assert read_scores(first)[0].keys() == {e.id for e in asked}


def test_a_corrupted_run_says_how_much_it_left_as_it_was(study):
    run_grid(
        study,
        [arm_from_name("post_cot_kept", amount=200, selector="random"), Arm("post_cot", "filler")],
        "attribute",
        seeds=[0],
    )
    assert unchanged_shares("t", ["attribute"]) == {
        "post_cot_kept[200,random]": 1.0,
        "post_cot_filler": 0.0,
    }


def test_a_full_mask_and_dots_are_trained_once_and_stand_twice(study):
    """One key, one run, said in one line.

    Both labels are in the tables, and their answers are the same.
    """
    arms, lines, student = (
        [Arm("post_cot", "filler"), arm_from_name("post_cot_masked", amount=1)],
        [],
        study.student,
    )
    assert dots_id(student) == student.filler_id
    table = run_grid(study, arms, "attribute", seeds=[0], say=lambda line, **_: lines.append(line))
    assert table["key"].nunique() == 1 and table["arm"].tolist() == [
        "post_cot_filler",
        "post_cot_masked[100%,random]",
    ]
    assert len(
        [line for line in lines if "are one training for this student" in line]
    ) == 1 and lines[-1].endswith("from the store")
    both = load_predictions(study, ["attribute"])
    assert both.groupby("arm")["id"].nunique().tolist() == [both["id"].nunique()] * 2
    assert load_history("t", ["attribute"])["arm"].nunique() == 2
    assert make_config(
        study, arm_from_name("post_cot_masked", amount=1, order="most", selector="tfidf"), 0, "x"
    ) == make_config(study, arms[0], 0)
    assert make_config(study, arm_from_name("post_cot_masked", amount=0.5), 0) != make_config(
        study, arms[0], 0
    )


def test_two_losses_stand_side_by_side_and_a_changed_one_is_found(study):
    balanced = study.replace(train={"loss": "balanced", "loss_lambda": 2.0})
    arms = [Arm("label_only"), Arm("label_only", loss="token_mean")]
    balanced.check(arms)
    # Stage shuffle ran when the study had its old loss
    run_grid(study, [Arm("label_only", "")], "shuffle", seeds=[0], say=lambda *_, **__: None)
    table = run_grid(balanced, arms, "train", seeds=[0], say=lambda *_, **__: None)
    assert table["key"].nunique() == 2 and table["arm"].tolist() == [
        "label_only",
        "label_only[loss=token_mean]",
    ]
    assert set(load_predictions(study, ["train"])["arm"]) == set(table["arm"])
    assert make_config(balanced, arms[1], 0) == make_config(study, Arm("label_only"), 0)
    assert "loss" not in make_config(study, Arm("label_only"), 0)["training"]
    with pytest.raises(DataError, match="was made with other loss than the runs of stage train"):
        load_predictions(study, ["train", "shuffle"])
    with pytest.raises(
        DataError,
        match=r"arm label_only\[loss=balanced\]: balanced is the "
        r"study's own loss; expected another one beside it",
    ):
        balanced.check([Arm("label_only", loss="balanced")])
    # A later stage goes on beside an arm that has a loss of its own
    shuffled = [arm_from_name("post_cot_shuffled")]
    run_grid(balanced, shuffled, "shuffle", seeds=[0], say=lambda *_, **__: None)
    assert set(load_predictions(balanced, ["train", "shuffle"])["arm"]) > set(table["arm"])


def test_scores_of_words_are_one_for_every_attributor(study):
    asked, student = study.train_questions(0)[:2], study.student
    files = {
        attribution_file(study, student, weights, "tfidf", asked, n_steps=n, seed=0)
        for weights, n in (("a", 4), ("b", 8))
    }
    assert len(files) == 1


BAD_BASE = {
    "no seeds": (dict(seeds=[]), "seeds is empty; expected at least one number"),
    "a seed twice": (dict(seeds=[1, 1]), "a seed is named twice"),
    "label format": (
        dict(label_format="word"),
        "label_format 'word'; expected one of text, letter, both",
    ),
    "train too large": (dict(train_size=13), "train_size 13 is larger than the data: 12"),
    "test too large": (dict(test_size=9), "test_size 9 is larger than the data: there are 8"),
    "label too long": (
        dict(max_label_tokens=1),
        r"question 'everyday-train-\d+': option \d is "
        r"\d+ tokens long; expected at most "
        r"max_label_tokens = 1",
    ),
    "unknown student": (
        dict(student="./nowhere"),
        r"student './nowhere': no config.json in that "
        r"folder",
    ),
    "unknown dtype": (dict(dtype="int4"), "dtype 'int4'"),
    "nothing fits": (
        dict(max_length=5, train_size=1),
        r"none of \d+ training questions can be "
        r"used: 0 \(no rationale\), \d+ \(over 5 "
        r"tokens\); expected rationales, and a "
        r"max_length above 5",
    ),
    "missing folder": (
        dict(
            data=dict(
                dataset="no/folder",
                data_dir="",
                validation_size=1,
                data_seed=0,
                microworld=None,
                rationales="",
            )
        ),
        "no such folder",
    ),
    "microworld part": (
        dict(
            data=dict(
                dataset="microworld/space",
                data_dir="",
                validation_size=1,
                data_seed=0,
                microworld=None,
                rationales="",
            )
        ),
        "microworld part 'space'",
    ),
}


@pytest.mark.parametrize("change, message", BAD_BASE.values(), ids=BAD_BASE)
def test_bad_studies_stop_before_anything_is_written(study, store, change, message):
    with pytest.raises(DataError, match=message) as error:
        study.replace(**change).check()
    assert "\n" not in str(error.value) and not (store / "runs").exists()


def test_names_cannot_leave_the_artifacts(store):
    for name in ("../x", "a/b", "", ".hidden", "a\\b"):
        with pytest.raises(DataError, match="expected a plain name"):
            study_dir(name)


def test_missing_stage_says_what_to_run(store):
    with pytest.raises(DataError, match="expected it from `make train STUDY=t`"):
        Study.load("t")
    with pytest.raises(DataError, match="run that first"):
        load_predictions("t", ["train"])


def test_seeds_draw_their_own_questions_only_when_asked(study):
    same = [[e.id for e in study.replace(train_size=6).train_questions(s)] for s in (0, 1)]
    new = [
        [e.id for e in study.replace(train_size=6, resample_train=True).train_questions(s)]
        for s in (0, 1)
    ]
    assert same[0] == same[1] and new[0] != new[1]


def test_without_git_the_commit_is_none(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() == ("none", False)


def test_provenance_names_versions_and_no_paths():
    record = provenance()
    assert (
        record["torch"].startswith("2.13")
        and record["threads"] >= 1
        and "/" not in json.dumps(record).replace("\\/", "")
    )
    assert tiny("tiny-llama").note.endswith("for tests only")


def test_a_table_is_computed_once_for_what_it_depends_on(store):
    calls = []

    def table(n, scale):
        calls.append(n)
        return pd.DataFrame({"id": ["a", "b"][:n], "value": [scale * 0.5, float("nan")][:n]})

    first, again = (
        load_or_make_table("s", "t", ["judge", 1], table, 2, scale=3.0) for _ in range(2)
    )
    assert (
        calls == [2]
        and first["id"].tolist() == ["a", "b"]
        and first["value"][0] == 1.5
        and np.isnan(first["value"][1])
    )
    pd.testing.assert_frame_equal(first, again)
    assert len(load_or_make_table("s", "t", ["judge", 2], table, 1, scale=1.0)) == 1 and calls == [
        2,
        1,
    ]
