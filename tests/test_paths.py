"""Paths of a study, and the warning of a max_length that drops too many questions."""

import json
from pathlib import Path

import pytest
from conftest import tiny
from studies import make_study

from cotdistill.encode import length_to_keep, training_length
from cotdistill.errors import DataError
from cotdistill.examples import Dataset, Example, Rationale
from cotdistill.new_study import portable_path
from cotdistill.paths import FOLDER, data_places, enter_study
from cotdistill.sources import load_examples
from cotdistill.study import (
    find_data_dir,
    named_student,
    read_data,
    resolve,
    shared_student,
    teacher_student,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def two_places(tmp_path, monkeypatch):
    """A study's folder and a repository, each with a file of the same name and one of its own."""
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path / "repo"))
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(FOLDER, "")
    for path in (
        "mine/both",
        "mine/own",
        "repo/both",
        "repo/shared",
        "repo/params",
        "home/data",
        "repo/openbookqa",
    ):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "mine" / "s.yaml").write_text("dataset: own\n")
    (tmp_path / "repo" / "params" / "named.yaml").write_text("dataset: both\n")
    return tmp_path


def test_the_folder_of_the_yaml_comes_first_then_the_repository(two_places):
    enter_study(str(two_places / "mine" / "s.yaml"))
    found = {
        path: resolve(path)
        for path in (
            "both",
            "own",
            "shared",
            "~/data",
            "../repo/shared",
            "hub/name",
            "",
            str(two_places),
        )
    }
    assert found == {
        "both": str(two_places / "mine/both"),
        "own": str(two_places / "mine/own"),
        "shared": str(two_places / "repo/shared"),
        "~/data": str(two_places / "home/data"),
        "../repo/shared": str(two_places / "mine/../repo/shared"),
        "hub/name": "hub/name",
        "": "",
        str(two_places): str(two_places),
    }
    enter_study("named")  # a study in params/: its folder, then the repository
    assert resolve("both") == str(two_places / "repo/both") and resolve("own") == "own"


def test_names_of_datasets_and_students_are_never_folders(two_places):
    for name in ("openbookqa", "microworld/everyday", "tiny-llama", "smollm2-135m"):
        (two_places / "repo" / name).mkdir(parents=True, exist_ok=True)
        assert resolve(name) == name


def test_a_path_that_is_nowhere_names_both_places(two_places, monkeypatch):
    enter_study(str(two_places / "mine" / "s.yaml"))
    both = (
        rf"beside the study's YAML \({two_places}/mine\) or in the repository "
        rf"\({two_places}/repo\); expected"
    )
    for path in ("./none", "none.jsonl", "../none/r.jsonl"):
        with pytest.raises(
            DataError, match=f"^{path}: no such file or folder {both} a path that exists"
        ):
            resolve(path)
    spec = dict(
        dataset="none",
        data_dir="",
        validation_size=0,
        data_seed=0,
        microworld=None,
        rationales="",
        rationales_print="",
    )
    with pytest.raises(
        DataError,
        match=rf"^none: no such folder {both} a dataset \(commonsense_qa, .* or a folder with",
    ):
        read_data(spec)
    with pytest.raises(
        DataError,
        match=r"student './none': no config.json in that folder, no such folder beside .*/mine\)",
    ):
        named_student("./none")
    monkeypatch.setenv(FOLDER, "")
    with pytest.raises(
        DataError,
        match=rf"^./none: no such file or folder in the repository \({two_places}/repo\); expected",
    ):
        resolve("./none")


def test_fetched_data_are_found_in_either_place(two_places):
    """`make data` fills data/ of the repository; a developer's copy is ../shared/data."""
    ours, shared = two_places / "repo/data", two_places / "shared/data"
    rationales = "rationales/openbookqa/llama.jsonl"
    for name in ("data", "../shared/data"):
        assert find_data_dir("", "openbookqa") is None
        with pytest.raises(DataError, match="expected a path that exists, or `make data`"):
            resolve(f"{name}/{rationales}")
    (shared / "openbookqa").mkdir(parents=True)
    (shared / rationales).parent.mkdir(parents=True)
    (shared / rationales).touch()
    for name in ("data", "../shared/data"):
        assert Path(find_data_dir(name, "openbookqa")).resolve() == shared
        assert Path(resolve(f"{name}/{rationales}")).resolve() == shared / rationales
    # data/ with another dataset only: each is found where it is
    (ours / "quarel").mkdir(parents=True)
    assert find_data_dir("data", "quarel") == find_data_dir("../shared/data", "quarel") == str(ours)
    assert Path(find_data_dir("data", "openbookqa")).resolve() == shared
    (ours / "openbookqa").mkdir()
    assert find_data_dir("data", "openbookqa") == str(ours)
    assert Path(find_data_dir("../shared/data", "openbookqa")).resolve() == shared
    # Other paths have one name, and a folder beside the study's YAML comes first
    assert data_places("database") == ["database"]
    (two_places / "mine/data/quarel").mkdir(parents=True)
    enter_study(str(two_places / "mine" / "s.yaml"))
    assert find_data_dir("data", "quarel") == str(two_places / "mine/data")
    with pytest.raises(DataError, match="data/commonsense_qa: no such folder; .*`make data ONLY="):
        load_examples("commonsense_qa", "train", find_data_dir("data", "commonsense_qa"))


def test_the_folder_is_found_again_by_the_name_alone(two_places, monkeypatch):
    """What is asked later by name (the lab, the report) finds the folder in the artifacts."""
    note = two_places / "artifacts" / "studies" / "s" / "folder.txt"
    note.parent.mkdir(parents=True)
    note.write_text(f"{two_places / 'mine'}\n")
    enter_study("s")
    assert resolve("own") == str(two_places / "mine/own")
    enter_study("named", again=False)
    assert resolve("both") == str(two_places / "mine/both"), "a study that was entered stays"


def test_a_local_student_keeps_the_name_that_the_study_gives_it(two_places):
    """No absolute path in tables and files; the weights, and so the run keys, are the same."""
    llama = tiny("tiny-llama")
    folder = two_places / "mine" / "own" / "model"
    llama.model.save_pretrained(folder)
    llama.tokenizer.save_pretrained(folder)
    enter_study(str(two_places / "mine" / "s.yaml"))
    study = make_study(student="own/model")
    named, absolute = study.student, study.replace(student=str(folder)).student
    assert (named.name, named.note) == ("own/model", "own/model") and absolute.name == str(folder)
    assert (
        named.fingerprint == absolute.fingerprint
        and teacher_student("own/model").name == "own/model"
    )
    assert study.note == "own/model"
    shared_student.cache_clear()


def test_a_new_study_names_data_so_that_they_are_found(two_places):
    places = {
        "repo/shared": "shared",
        "home/data": "~/data",
        "mine/own": str(two_places / "mine/own"),
        "repo/openbookqa": str(two_places / "repo/openbookqa"),
    }
    for place, wanted in places.items():
        assert portable_path(two_places / place) == wanted
        enter_study("named")
        assert resolve(wanted) == str((two_places / place).resolve())


# ---------------------------------------------------------------- max_length

LENGTHS = {
    "one": ([7], 7),
    "two": ([7, 9], 9),
    "a hundred": (list(range(1, 101)), 99),
    "a thousand": (list(range(1000, 0, -1)), 990),
    "equal": ([5] * 50, 5),
    "one long": ([5] * 199 + [900], 5),
}


@pytest.mark.parametrize("lengths, wanted", LENGTHS.values(), ids=LENGTHS)
def test_the_length_that_keeps_99_percent(lengths, wanted):
    assert length_to_keep(lengths) == wanted
    assert (
        sum(n <= wanted for n in lengths) >= 0.99 * len(lengths) > sum(n < wanted for n in lengths)
    )


def test_more_than_a_tenth_left_out_is_said_with_the_length_that_keeps_them(
    two_places, monkeypatch
):
    train = [
        Example(f"e{i}", "Why " + "so " * (10 * i) + "?", ("ice", "fire"), 0) for i in range(20)
    ]
    rationales = {
        e.id: Rationale(e.id, "It is cold.") for e in train[:-1]
    }  # one has no rationale: not a matter of length
    llama = tiny("tiny-llama")
    lengths = sorted(training_length(llama, e, "It is cold.", "text") for e in train[:-1])
    data = Dataset("d", train, [], [], rationales)
    study = make_study(data)
    said = []
    for n_kept, wanted in ((19, 0), (18, 0), (17, 1), (1, 1)):  # of 19; a tenth is 1.9
        said.clear()
        study.replace(max_length=lengths[n_kept - 1]).warn_of_length(
            say=lambda line, **_: said.append(line)
        )
        assert len(said) == wanted, n_kept
        if said:
            assert said[0] == (
                f"max_length {lengths[n_kept - 1]} leaves out {19 - n_kept} of 19 training "
                f"questions; max_length {lengths[-1]} would keep 99 % of them (the student has "
                "1024 positions)"
            )


def test_notebook_2_says_it():
    cells = json.loads((ROOT / "notebooks" / "02_train.ipynb").read_text())["cells"]
    assert any(".warn_of_length()" in "".join(cell["source"]) for cell in cells)
