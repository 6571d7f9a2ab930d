"""Studies: every key known, every type right, every error one line that says the way out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cotdistill import cli, execute
from cotdistill.errors import DataError
from cotdistill.parameters import (
    DEFAULT_STUDENT,
    all_parameters,
    check_made_with,
    default_note,
    load_study,
    notebook_parameters,
    read_study,
)
from cotdistill.paths import FOLDER, NOTEBOOKS, places

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted(p.stem for p in (ROOT / "params").glob("*.yaml") if p.stem != "claims")
PAPER = [
    f"{d}-{s}"
    for d in ("commonsenseqa", "openbookqa", "quarel")
    for s in ("gpt2", "phi-1.5", "gemma-2b")
]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_valid(name):
    assert load_study(name)["study"] == name


def test_the_nine_paper_studies_are_pinned_and_complete():
    for name in PAPER:
        values = load_study(name)
        assert re.fullmatch(
            r"mistralai/Mistral-7B-Instruct-v0.2@[0-9a-f]{40}", values["teacher_model"]
        )
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", values["student"])
        assert (
            len(values["seeds"]) >= 5
            and values.get("frozen_layers", 0) == 0
            and {"grad_accum", "gradient_checkpointing"} <= set(values)
        )


BAD = {
    "unknown key": ("epoch: 3", "unknown key 'epoch'; did you mean 'epochs'?"),
    "no near key": ("zzzz: 3", "unknown key 'zzzz'; expected a parameter"),
    "number as text": (
        "lr: 1e-4",
        r"lr is '1e-4' \(str\); expected a number, as in 0.001 \(YAML "
        r"reads 1e-4 as text: write 1.0e-4\)",
    ),
    "fraction for whole": ("epochs: 2.5", r"epochs is 2.5 \(float\); expected a whole number"),
    "truth for number": ("epochs: true", r"epochs is True \(bool\); expected a whole number"),
    "number for truth": ("keep_weights: 1", r"keep_weights is 1 \(int\); expected true or false"),
    "text for list": ("arms: label_only", r"arms is 'label_only' \(str\); expected a list"),
    "item given twice": (
        "arms: [label_only, post_cot, label_only]",
        r"arms holds 'label_only' twice; "
        r"expected each item once",
    ),
    "item of another type": (
        "seeds: [0, x]",
        r"seeds: an item is 'x' \(str\); expected a whole "
        r"number",
    ),
    "number for text": ("student: 7", r"student is 7 \(int\); expected a text"),
    "nothing for text": ("student:", r"student is None \(NoneType\); expected a text"),
    "nested": ("train: {lr: 1}", "unknown key 'train'"),
    "nested value": ("student: {name: x}", r"student is \{'name': 'x'\} \(dict\); expected a text"),
    "a block in another form": (
        "registered: [post_beats_pre]",
        r"registered is \['post_beats_pre'\] \(list\); expected a block",
    ),
    "a block without its date": (
        "registered: {commit: abc, claims: [post_beats_pre]}",
        "registered has the keys commit, claims; expected commit, date, claims",
    ),
    "a commit that YAML reads as a number": (
        "registered: {commit: 1234567, date: 2026-11-28, claims: [post_beats_pre]}",
        "registered: commit is 1234567; expected a text, in quotes",
    ),
    "claims that are no list": (
        "registered: {commit: abc, date: 2026-11-28, claims: post_beats_pre}",
        "registered: claims is 'post_beats_pre'; expected a list of texts",
    ),
    "own name": ("study: x", "study is named by its file"),
    "not a mapping": ("- a\n- b", "found list; expected `key: value` lines"),
    "broken YAML": ("a: [1,\nb: 2", r"own.yaml:\d+: not YAML"),
    "an object tag": ("student: !!python/object/apply:os.system [ls]", "not YAML"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_bad_studies(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text + "\n")
    with pytest.raises(DataError, match=message) as error:
        load_study(str(tmp_path / "own.yaml"))
    assert "\n" not in str(error.value) and "own.yaml" in str(error.value)


def test_a_whole_number_is_a_number_and_a_study_without_student_takes_the_bundled_one(tmp_path):
    (tmp_path / "own.yaml").write_text("lr: 1\n")
    assert load_study(str(tmp_path / "own.yaml")) == {
        "study": "own",
        "lr": 1,
        "student": "smollm2-135m",
    }
    (tmp_path / "own.yaml").write_text("# nothing\n")
    assert load_study(str(tmp_path / "own.yaml")) == {
        "study": "own",
        "student": "smollm2-135m",
    }
    note = default_note(str(tmp_path / "own.yaml"))
    assert (
        "names no student: the bundled smollm2-135m is trained" in note
        and "no seeds either" in note
        and "\n" not in note
    )
    (tmp_path / "own.yaml").write_text("student: tiny-llama\n")
    assert load_study(str(tmp_path / "own.yaml")) == {"study": "own", "student": "tiny-llama"}
    assert default_note(str(tmp_path / "own.yaml")) == ""


def test_what_was_registered_reaches_notebook_06_alone(tmp_path):
    block = "registered: {commit: abc, date: 2026-11-28, claims: [post_beats_pre]}"
    (tmp_path / "own.yaml").write_text(block + "\n")
    values = load_study(str(tmp_path / "own.yaml"))
    assert values["registered"] == dict(commit="abc", date="2026-11-28", claims=["post_beats_pre"])
    assert [s for s, known in all_parameters().items() if "registered" in known] == ["figures"]


def test_the_terminal_says_which_student_is_taken(tmp_path, monkeypatch, capsys):
    """Once, in one line, before the first notebook runs; not where no student is needed."""
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv(FOLDER, "")
    asked = []
    monkeypatch.setattr(
        execute, "run_stages", lambda stages, values, executed: asked.append(values)
    )
    path = tmp_path / "own.yaml"
    path.write_text("dataset: mine\n")
    assert cli.main(["run", str(path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert "names no student: the bundled smollm2-135m" in first and last.startswith("study own")
    assert asked[0]["student"] == "smollm2-135m" and places()[0] == tmp_path
    assert cli.main(["run", str(path), "--stages", "elicit"]) == 0
    assert "no student" not in capsys.readouterr().out
    path.write_text("student: tiny-llama\n")
    assert cli.main(["run", str(path)]) == 0
    assert "no student" not in capsys.readouterr().out


def test_shipped_studies_are_what_their_files_say():
    """The default student is for users: every shipped study that trains names its own."""
    for name in STUDIES:
        assert load_study(name) == {
            "study": name,
            "student": DEFAULT_STUDENT,
            **read_study(name),
        }
        assert "student" in read_study(name) or name.endswith("-elicit")
    defaults = {key: value for stage in all_parameters().values() for key, value in stage.items()}
    # Its results are compared with stored ones, so they may not depend on the processor
    assert defaults | load_study("smoke") == defaults | {"precision": "float32"}


def test_a_stage_alone_needs_the_setting_that_the_earlier_ones_ran_with(tmp_path, monkeypatch):
    """What notebooks 1 and 2 ran with is kept beside what they made.

    Shuffle alone must not go on from other values.
    """
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path))
    (tmp_path / "studies" / "own").mkdir(parents=True)
    values = {"study": "own", "epochs": 1, "controls": ["filler"]}
    check_made_with(values, ["shuffle"], "own.yaml")  # nothing has run: the notebook will say so
    for stage in ("elicit", "train"):
        made = notebook_parameters(ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb") | {
            "study": "own"
        }
        (tmp_path / "studies" / "own" / f"{stage}.parameters.json").write_text(
            json.dumps(made | ({"epochs": 1} if stage == "train" else {}))
        )
    check_made_with(values, ["shuffle"], "own.yaml")
    for changed, stage in ({"epochs": 7}, "train"), ({"dataset": "openbookqa"}, "elicit"):
        check_made_with(values | changed, ["elicit", "train", "shuffle"], "own.yaml")
        with pytest.raises(
            DataError,
            match=f"own.yaml: {[*changed][0]} is .* but stage {stage} "
            f"was last run with .* run `make {stage} STUDY=own.yaml` again",
        ):
            check_made_with(values | changed, ["figures"], "own.yaml")
    check_made_with(values | {"epochs": 7}, ["elicit"], "own.yaml")  # an earlier stage than train


def test_unknown_study_lists_the_known_ones():
    with pytest.raises(
        DataError, match="no such study; expected a path to a YAML file or one of .*quick"
    ):
        load_study("nothing")


def test_command_line_ends_with_one_line_and_status_1(tmp_path):
    (tmp_path / "own.yaml").write_text("epoch: 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "cotdistill.cli", "run", str(tmp_path / "own.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and done.stdout == ""
        and done.stderr.count("\n") == 1
        and done.stderr.startswith("error: ")
    )


def notebook(tmp_path, source, tags):
    path = tmp_path / "n.ipynb"
    path.write_text(
        json.dumps(
            {
                "cells": [
                    {"cell_type": "code", "metadata": {"tags": t}, "source": source} for t in tags
                ]
            }
        )
    )
    return path


def test_notebooks_without_or_with_odd_parameters_are_refused(tmp_path):
    assert notebook_parameters(notebook(tmp_path, "a = 1\nb = [0.5]  # x", [["parameters"]])) == {
        "a": 1,
        "b": [0.5],
    }
    with pytest.raises(DataError, match="0 cells tagged 'parameters'; expected exactly one"):
        notebook_parameters(notebook(tmp_path, "a = 1", [[]]))
    with pytest.raises(DataError, match="2 cells tagged"):
        notebook_parameters(notebook(tmp_path, "a = 1", [["parameters"], ["parameters"]]))
    with pytest.raises(DataError, match="line 2: expected only `name = value`"):
        notebook_parameters(notebook(tmp_path, "a = 1\nprint(a)", [["parameters"]]))
