"""The commented YAML of `make new`, and the table of all keys."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from studies import make_spec, make_study

from cotdistill import cli
from cotdistill.new_study import (
    TITLES,
    new_study,
    parameter_comments,
    render_keys_table,
    study_keys,
)
from cotdistill.parameters import all_parameters, load_study
from cotdistill.paths import FOLDER
from cotdistill.study import resolve

ROOT = Path(__file__).resolve().parents[1]


def put_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(question_id: str, question: str, **more) -> dict:
    return {
        "id": question_id,
        "question": question,
        "choices": ["ice", "fire"],
        "answer": 0,
        **more,
    }


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own with the real notebooks, so that params/ can be written to."""
    shutil.copytree(
        ROOT / "notebooks",
        tmp_path / "repo" / "notebooks",
        ignore=shutil.ignore_patterns("executed"),
    )
    (tmp_path / "repo" / "params").mkdir()
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path / "repo"))
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv(FOLDER, "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "repo"


def put_data(
    folder: Path, n: int = 40, rationale: str | None = "It is cold, so it is ice."
) -> None:
    more = {} if rationale is None else {"rationale": rationale}
    put_rows(
        folder / "train.jsonl",
        [ask(f"a{i}", f"what is cold {'so ' * i}?", **more) for i in range(n)],
    )
    put_rows(folder / "test.jsonl", [ask("t", "what melts?"), ask("u", "what is cold ?")])


def test_the_written_study_is_valid_and_holds_every_key(repository, capsys):
    put_data(repository / "mine")
    assert (
        cli.main(["new", "my", "--data", str(repository / "mine"), "--student", "tiny-llama"]) == 0
    )
    assert "params/my.yaml: written" in capsys.readouterr().out
    values, text = load_study("my"), (repository / "params" / "my.yaml").read_text()
    assert (
        values["dataset"] == "mine"
        and values["seeds"] == [0, 1, 2, 3, 4]
        and values["teacher"] == "gold"
    )
    assert (
        values["student"] == "tiny-llama"
        and values["validation_size"] == 3
        and values["test_size"] == 0
    )
    assert (
        "39 training, 0 validation and 2 test questions" in text
        and "# left out of training, as they also stand in the validation or test split: 1" in text
    )
    every = {key.name for rows in study_keys().values() for key in rows}
    written = re.findall(r"(?m)^(?:# )?([a-z_]+): ", text)
    assert sorted(set(written) - {"my"}) == sorted(every) and all(
        len(line) <= 200 for line in text.splitlines()
    )
    bare = "\n".join(
        re.sub(r"^# (?=[a-z_]+: )", "", line)
        for line in text.splitlines()[1:]
        if "Run it" not in line
    )
    again = yaml.safe_load(bare)
    assert set(again) == every and {k: again[k] for k in values if k != "study"} == {
        k: v for k, v in values.items() if k != "study"
    }
    (repository / "params" / "full.yaml").write_text(bare)
    assert load_study("full")["max_length"] == values["max_length"]


def test_its_lengths_keep_ninety_nine_percent(repository):
    put_data(repository / "mine", n=120)
    new_study("my", str(repository / "mine"), "tiny-llama")
    values = load_study("my")
    study = make_study(
        max_length=values["max_length"],
        data=make_spec(
            dataset=str(repository / "mine"), validation_size=0, data_seed=0, microworld=None
        ),
    )
    kept, _ = study.usable_questions()
    assert (
        len(kept) >= 0.99 * 119
        and values["max_length"] % 16 == 0
        and values["max_label_tokens"] == 24
    )


def test_data_without_rationales_get_a_teacher_that_is_asked(repository, tmp_path):
    put_data(tmp_path / "home" / "own", rationale=None)
    new_study("my", str(tmp_path / "home" / "own"), "tiny-llama")
    values = load_study("my")
    assert (
        values["dataset"] == "~/own"
        and values["teacher"] == "transformers"
        and values["teacher_model"] == "smollm2-135m"
    )
    assert values["max_length"] > 128 and values["max_new_tokens"] == 128
    assert resolve(values["dataset"]) == str(tmp_path / "home" / "own")


REFUSED = {
    "a name that is taken": (
        "quick",
        "mine",
        "params/quick.yaml: a study of this name is there; expected a new name",
    ),
    "a name that was executed": ("old", "mine", "params/old.yaml: a study of this name is there"),
    "a name that climbs": ("../x", "mine", "expected a plain name"),
    "no data": ("my", " ", "no data named; expected DATA=folder"),
    "no folder": ("my", "nowhere", "nowhere: no such folder; expected a dataset"),
    "bad data": ("my", "bad", r"train.jsonl:1 \(id a\): answer 'C' is outside"),
    "no such student": ("my", "mine", "student './none': no config.json"),
}


@pytest.mark.parametrize("name, folder, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_writes_nothing(repository, capsys, name, folder, message):
    put_data(repository / "mine", n=2)
    put_rows(repository / "bad" / "train.jsonl", [ask("a", "q?", answer="C")])
    put_rows(repository / "bad" / "test.jsonl", [ask("t", "r?")])
    (repository / "params" / "quick.yaml").write_text("lr: 1\n")
    (repository / "notebooks" / "executed" / "old").mkdir(parents=True)
    student = "./none" if "student" in message else "tiny-llama"
    place = folder if not folder.strip() else str(repository / folder)
    assert cli.main(["new", name, "--data", place, "--student", student]) == 1
    out, err = capsys.readouterr()
    assert (
        out == "" and err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err)
    ), err
    assert [p.name for p in (repository / "params").iterdir()] == ["quick.yaml"]
    assert (repository / "params" / "quick.yaml").read_text() == "lr: 1\n"


def test_the_table_of_keys_is_complete_and_is_markdown():
    text = render_keys_table()
    for stage, parameters in all_parameters().items():
        for name in parameters.keys() - {"study"}:
            assert text.count(f"| `{name}` | ") == 1, name
        assert TITLES[stage] in text or set(parameters) <= {"study", "bootstrap"}
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert not re.search(r"(?<!\\)<", text), "no tags"
    assert all(line.count(" | ") == 2 and not line.endswith("|  |") for line in rows)
    assert "| `lr` | `0.001` | peak learning rate of AdamW |" in text


def test_a_comment_stands_behind_its_key_or_above_it():
    cell = 'a = 1  # one\n# two lines\n# above\nb = "x"\nc = [1.0]\n# last\nd = 4\n'
    assert parameter_comments(cell) == {"a": "one", "b": "two lines above", "d": "last"}


def test_makefile_has_the_target():
    text = (ROOT / "Makefile").read_text()
    assert re.search(r'(?m)^new: .*\n\t@\$\(RUN\) new "\$\(STUDY\)" --data "\$\(DATA\)"', text)
