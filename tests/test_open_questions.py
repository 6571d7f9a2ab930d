"""The notebooks of the open questions, executed; and a study's own list of stages."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from test_notebooks import check_executed

from cotdistill import paths
from cotdistill.errors import DataError
from cotdistill.execute import status
from cotdistill.parameters import check_demands, load_study, study_stages
from cotdistill.paths import NOTEBOOKS, OPEN_NOTEBOOKS

ROOT = Path(__file__).resolve().parents[1]
STUDY = """
stages: [mechanism, tasks, elicit, quality, train, lasting]
student: tiny-llama
data_seed: 3
n_train: 24
n_test: 16
validation_size: 8
epochs: 1
batch_size: 8
max_new_tokens: 12
arms: [label_only, post_cot]
tasks_arms: [label_only, post_cot]
quality_arms: [post_cot]
wrong_facts: [1.0]
lasting_arms: [label_only, post_cot]
lasting_epochs: 2
bootstrap: 100
"""
# What this study runs: methods reads what stage attribute made, and is run on the smoke study
RUN_HERE = {stage: name for stage, name in OPEN_NOTEBOOKS.items() if stage != "methods"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The study, run twice in a store of its own: (folder, what the runs printed, seconds)."""
    folder, said = tmp_path_factory.mktemp("open"), []
    (folder / "own.yaml").write_text(STUDY)
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(folder / "artifacts"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "cotdistill.cli", "run", str(folder / "own.yaml")]
    started = time.process_time()
    for name, stages in (("first", []), ("second", ["--stages", *RUN_HERE])):
        done = subprocess.run(
            [*command, "--executed", str(folder / name), *stages],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        said.append(done.stdout)
    return folder, said, time.process_time() - started


def texts_of(path, kind):
    """All outputs of a kind that a notebook shows, in order."""
    return [
        o.data[kind]
        for c in nbformat.read(path, 4).cells
        for o in c.get("outputs", [])
        if kind in o.get("data", {})
    ]


def test_a_study_lists_its_stages_and_they_run_in_order(executed):
    folder, said, _ = executed
    heads = [line.split()[1] for line in said[0].splitlines() if line.startswith("== ")]
    assert heads == ["01_elicit", "02_train", *RUN_HERE.values()]


@pytest.mark.parametrize("name", RUN_HERE.values())
def test_open_questions_execute_and_are_fit_to_commit(executed, name):
    path = executed[0] / "first" / "own" / f"{name}.ipynb"
    check_executed(path)
    shown = texts_of(path, "text/markdown")
    assert shown[-1].startswith("**Findings.**") and not any("nan" in t for t in shown)


@pytest.mark.parametrize("name", RUN_HERE.values())
def test_a_second_run_trains_nothing_and_says_the_same(executed, name):
    folder, said, _ = executed
    assert "epoch 1" not in said[1] and said[1].count("from the store") >= 9
    first, second = (folder / run / "own" / f"{name}.ipynb" for run in ("first", "second"))
    for kind in ("text/html", "text/markdown"):
        assert texts_of(first, kind) == texts_of(second, kind) != []


def test_methods_are_compared_where_stage_attribute_has_run(smoke):
    store, _ = smoke
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(store / "artifacts"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "cotdistill.cli", "run", "smoke", "--stages", "methods"]
    done = subprocess.run(
        [*command, "--executed", str(store / "methods")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    path = store / "methods" / "smoke" / "11_methods.ipynb"
    check_executed(path)
    shown = texts_of(path, "text/markdown")
    retrained = r"(Use \*\*|In retraining, no method's tokens beat random ones).*\. "
    assert re.match(rf"\*\*Findings\.\*\* {retrained}The most faithful method is \*\*", shown[-1])
    assert any("retrained on 15: p(gold)" in text for text in texts_of(path, "text/plain"))


def test_predictions_stand_before_the_numbers(executed):
    shown = texts_of(executed[0] / "first" / "own" / "09_mechanism.ipynb", "text/plain")
    assert shown[0].startswith("hypothesis | number | predicted")
    assert any(text.startswith("hypothesis | met | contradicted") for text in shown[1:])


def test_status_shows_what_was_begun(executed, monkeypatch):
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(executed[0] / "artifacts"))
    rows = {row["stage"]: row for row in status(str(executed[0] / "own.yaml"))}
    assert list(rows) == [*NOTEBOOKS, *RUN_HERE]
    assert rows["tasks"]["runs"] == rows["tasks"]["done"] == 2
    assert rows["quality"]["runs"] == rows["quality"]["done"] == 3
    assert (rows["lasting"]["runs"], rows["lasting"]["done"]) == (4, 4)
    assert rows["mechanism"]["runs"] == rows["mechanism"]["done"] == 6


def test_without_a_list_a_study_has_the_papers_six_stages():
    for path in (ROOT / "params").glob("*.yaml"):
        if path.stem != "claims" and "stages" not in load_study(path.stem):
            assert study_stages(load_study(path.stem)) == list(NOTEBOOKS)


@pytest.mark.parametrize(
    "stages, text",
    [
        ("lasting", "stages is 'lasting' .*expected a list"),
        ("[]", "stages is empty; expected some of elicit, train"),
        ("[train, lastin]", "stages holds 'lastin'; expected some of elicit, train"),
        ("[train, train]", "stages holds 'train' twice"),
        ("[1]", "stages: an item is 1"),
    ],
)
def test_a_bad_list_of_stages_is_one_line(tmp_path, stages, text):
    (tmp_path / "own.yaml").write_text(f"stages: {stages}\n")
    with pytest.raises(DataError, match=text) as found:
        load_study(str(tmp_path / "own.yaml"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"lasting_arms": ["post_cot"]}, "lasting_arms has no label_only"),
        ({"lasting_arms": ["label_only", "zero_shot"]}, "lasting_arms has zero_shot"),
        ({"lasting_arms": ["label_only", "post"]}, "unknown arm 'post'; expected one of"),
        ({"tasks_arms": []}, "tasks_arms is empty; expected the arms that stage tasks compares"),
        ({"tasks_arms": ["post"]}, "unknown arm 'post'; expected one of"),
        ({"tasks_arms": ["post_cot_kept"]}, "tasks_arms has post_cot_kept, which needs an amount"),
        ({"quality_arms": []}, "quality_arms is empty; expected pre_cot, post_cot or both"),
        ({"quality_arms": ["label_only"]}, "quality_arms holds 'label_only'; expected pre_cot"),
        ({"wrong_facts": [0, 0.5]}, "wrong_facts holds 0; expected shares above 0"),
        ({"wrong_facts": []}, "stage quality has one set of rationales; expected rationale_sets"),
        ({"dataset": "microworld/relations"}, "stage quality has one set of rationales"),
        ({"continue_on": []}, "continue_on is empty; expected 'same' or datasets"),
        ({"label_shares": [0.5, 1.0]}, "label_shares holds 1; expected shares between 0 and 1"),
        ({"worlds": "per_seed"}, "worlds is per_seed; expected shared: stage mechanism compares"),
        ({"label_shares": [0]}, "label_shares holds 0; expected shares between 0 and 1"),
        ({"mechanism_controls": ["swap"]}, "mechanism_controls holds 'swap'; expected some of"),
        ({"watched_controls": ["dots"]}, "watched_controls holds 'dots'; expected some of"),
    ],
)
def test_bad_settings_end_before_anything_runs(change, text):
    check_demands({"study": "own"}, list(paths.ALL_NOTEBOOKS))
    with pytest.raises(DataError, match=text) as found:
        check_demands({"study": "own", **change}, list(paths.ALL_NOTEBOOKS))
    assert "\n" not in str(found.value)
    check_demands({"study": "own", **change}, list(NOTEBOOKS))


def test_the_open_notebooks_are_no_part_of_the_papers():
    assert not set(paths.NOTEBOOKS) & set(paths.OPEN_NOTEBOOKS)
    assert paths.RUN_STAGES == ("train", "shuffle", "attribute")
