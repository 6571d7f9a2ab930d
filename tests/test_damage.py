"""Damage: cut and edited files, lost checkpoints, a full disk, a read-only folder, a clock set
back, an older store.

Each is detected and named, only what is needed is made again, and what comes out is what an
undamaged run gives.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_gguf
import torch
from conftest import tiny
from studies import make_spec, make_study

from cotdistill import cli, students
from cotdistill.arms import Arm
from cotdistill.attribution.score_files import read_scores
from cotdistill.checkpoints import (
    checkpoint_problem,
    last_good_checkpoint,
    list_checkpoints,
    seal_checkpoint,
    trainable_parameters,
)
from cotdistill.elicit.local import elicit_transformers
from cotdistill.elicit.prompts import Demonstration
from cotdistill.elicit.records import prefixes_path, read_records, rebuild_prompt
from cotdistill.elicit.settings import Sampling, TeacherSettings
from cotdistill.encode import encode_all
from cotdistill.errors import DataError
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example, Rationale
from cotdistill.files import sha256
from cotdistill.hyperparameters import TrainConfig
from cotdistill.paths import artifacts, study_dir
from cotdistill.runs import one
from cotdistill.runs import store as store_module
from cotdistill.runs.grid import plan_rows, run_grid
from cotdistill.runs.one import STORE_VERSION
from cotdistill.runs.results import load_predictions, load_stage
from cotdistill.runs.scores import load_or_make_scores, load_or_make_table
from cotdistill.runs.store import load_metrics, load_or_make_run, report_old_runs
from cotdistill.sources import write_rationales
from cotdistill.study import Study, read_data
from cotdistill.train import fine_tune

ROOT = Path(__file__).resolve().parents[1]
SPEC = make_spec(validation_size=4)
STUDY = make_study(data=SPEC, train=dict(lr=1e-2, epochs=2, batch_size=4, select="last"))
ARMS = [Arm("zero_shot"), Arm("label_only")]


def quiet(*args, **kwargs):
    pass


def grid(**more):
    """A trained run that keeps its weights, and the undistilled student."""
    return run_grid(STUDY, ARMS, "train", keep_weights=[("label_only", 0)], **more)


def folder_of(label: str) -> Path:
    row = next(r for r in plan_rows(STUDY, ARMS) if r["label"] == label)
    return artifacts() / "runs" / row["key"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The two runs, made once; tests work on copies."""
    path = tmp_path_factory.mktemp("made") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTDISTILL_ARTIFACTS", str(path))
        grid(say=quiet)
        STUDY.save()
    return path


@pytest.fixture
def copy(made, store):
    shutil.copytree(made, store)
    return store


def truth(made) -> dict[str, bytes]:
    """What undamaged runs answer, by run."""
    return {path.parent.name: path.read_bytes() for path in made.glob("runs/*/predictions.jsonl")}


def spoil(path: Path, how: str) -> None:
    """cut: half of it.

    edited: another byte in the middle, the same size. emptied, gone, or a folder in its place.
    """
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "edited":
        middle = len(content) // 2
        middle = (
            next((i for i in range(middle, len(content)) if chr(content[i]).isdigit()), middle)
            if path.suffix in (".json", ".jsonl", ".csv")
            else middle
        )
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()


# ---------------------------------------------------------------- runs

RUN_FILES = (
    "metrics.json",
    "predictions.jsonl",
    "history.csv",
    "config.json",
    "provenance.json",
    "weights.safetensors",
)


@pytest.mark.parametrize(
    "file, how",
    [
        *((file, how) for file in RUN_FILES for how in ("cut", "edited")),
        ("metrics.json", "emptied"),
        ("history.csv", "gone"),
        ("predictions.jsonl", "a folder"),
    ],
)
def test_a_damaged_run_is_named_and_it_alone_is_made_again(made, copy, file, how, capsys):
    spoil(folder_of("label_only") / file, how)
    with pytest.raises(
        DataError, match="label_only, seed 0.* is not complete; run `make train STUDY=t`"
    ):
        load_stage("t", "train")
    capsys.readouterr()
    grid()
    out = capsys.readouterr().out
    assert (
        out.count("made again") == 1
        and file in out.split("made again")[0]
        and out.count("from the store") == 1
    )
    assert truth(copy) == truth(made) and all(row["metrics"] for row in load_stage("t", "train"))


def test_metrics_edited_with_care_are_not_believed(copy):
    """A number changed in valid JSON, and a run that sits in another's place."""
    path = folder_of("label_only") / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 1.0}))
    assert load_metrics(path.parent.name) is None
    shutil.rmtree(path.parent)
    shutil.copytree(folder_of("zero_shot"), path.parent)
    assert load_metrics(path.parent.name) is None and load_metrics(folder_of("zero_shot").name)


def test_an_older_store_is_left_alone_and_named(made, copy, monkeypatch, capsys):
    old = {path.name for path in copy.glob("runs/*/")}
    for module in (one, store_module):
        monkeypatch.setattr(module, "STORE_VERSION", STORE_VERSION + 1)
    report_old_runs.cache_clear()
    grid()
    out = capsys.readouterr().out
    assert (
        f"2 run(s) of another store version than {one.STORE_VERSION} are left there and not used"
        in out
        and "from the store" not in out
    )
    new = {path.name for path in copy.glob("runs/*/")} - old
    assert len(new) == 2 and old <= {path.name for path in copy.glob("runs/*/")}
    assert {
        json.loads((copy / "runs" / key / "config.json").read_text())["store"] for key in new
    } == {one.STORE_VERSION}
    report_old_runs.cache_clear()


def test_what_killed_runs_leave_is_not_taken_over(made, copy):
    path = folder_of("label_only")
    shutil.rmtree(path)
    work = path.with_name(f"{path.name}.work")
    (work / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    for name in (
        "metrics.json",
        "metrics.json.77.part",
        "weights.safetensors",
        "predictions.jsonl",
        "notes.txt",
    ):
        (work / name).write_text("{}")
    (study_dir("t") / "base.json.77.part").write_text("{")
    grid(say=quiet)
    assert {p.name for p in path.iterdir()} == set(RUN_FILES) and not work.exists()
    assert truth(copy) == truth(made) and Study.load("t").setting == STUDY.setting


def test_the_clock_decides_nothing(made, copy, monkeypatch, capsys):
    """A clock set back by thirty years, and files of the future.

    What is whole is still used, nothing else.
    """
    for path in copy.rglob("*"):
        os.utime(path, (4e9, 4e9))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 1e9)
    grid()
    assert capsys.readouterr().out.count("from the store") == 2
    shutil.rmtree(folder_of("label_only"))
    grid()
    assert truth(copy) == truth(made)


# ---------------------------------------------------------------- checkpoints


class Killed(Exception):
    pass


def killed_at(epoch: int):
    def say(text, **kwargs):
        if f", epoch {epoch}/" in text:
            raise Killed

    return say


def half_made(epoch: int = 2) -> Path:
    """label_only, killed in an epoch: the folder of its checkpoints."""
    shutil.rmtree(folder_of("label_only"))
    with pytest.raises(Killed):
        grid(say=killed_at(epoch))
    path = folder_of("label_only")
    return path.with_name(f"{path.name}.work") / "checkpoints"


CHECKPOINT_FILES = (
    "trainable.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "rng_state.pth",
    "seal.json",
)


@pytest.mark.parametrize(
    "file, how",
    [
        *((file, "cut") for file in CHECKPOINT_FILES),
        *((file, "edited") for file in CHECKPOINT_FILES[:4]),
        ("seal.json", "gone"),
        ("optimizer.pt", "a folder"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_not_used(made, copy, file, how, capsys):
    ((_, checkpoint),) = list_checkpoints(half_made())
    assert checkpoint_problem(checkpoint) == ""
    spoil(checkpoint / file, how)
    capsys.readouterr()
    grid()
    out = capsys.readouterr().out
    assert (
        f"{checkpoint.name} of a killed run: " in out
        and file in out.split(checkpoint.name)[1]
        and out.count("epoch 1/2") == 1
    )
    assert truth(copy) == truth(made)


def test_a_whole_checkpoint_is_used(made, copy, capsys):
    half_made()
    capsys.readouterr()
    grid()
    out = capsys.readouterr().out
    assert "epoch 1/2" not in out and "epoch 2/2" in out and truth(copy) == truth(made)


def test_a_clock_set_back_keeps_the_newest_checkpoint(made, copy):
    """Checkpoints are ordered by step.

    The library's own rotation goes by file times, and would delete the one just made.
    """
    folder = half_made()
    for path in folder.rglob("*"):
        os.utime(path, (4e9, 4e9))

    def dies_later(text, **kwargs):
        if "forced choice" in text and text.startswith("[2/2]"):
            raise AssertionError("not reached")

    real = evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one, "evaluate", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            grid(say=dies_later)
    assert evaluate is real and [step for step, _ in list_checkpoints(folder)] == [6]
    grid(say=quiet)
    assert truth(copy) == truth(made)


def trained(folder, epochs=4, dies=0, best=2):
    """fine_tune on four questions with a validation that finds epoch `best` the best."""
    student, seen = tiny("tiny-llama"), []
    examples = STUDY.data.train[:4]
    passes = encode_all(
        student, examples, STUDY.data.rationales, Arm("post_cot"), "text", 0, epochs
    )

    def validate():
        seen.append(1)
        return {"accuracy": 0.0, "label_nll": 1.0}

    def progress(row):
        row["validation_accuracy"] = 0.9 if row["epoch"] == best else 0.1 * row["epoch"]
        if row["epoch"] == dies:
            raise Killed

    history, summary = fine_tune(
        student,
        passes,
        Arm("post_cot"),
        TrainConfig(lr=1e-2, epochs=epochs, batch_size=4),
        0,
        folder,
        validate,
        progress=progress,
    )
    return {
        name: value.clone() for name, value in trainable_parameters(student.model).items()
    }, summary


def test_the_last_whole_checkpoint_is_gone_back_to_and_the_best_is_kept(tmp_path, capsys):
    whole, summary = trained(tmp_path / "whole", best=2)
    assert summary["best_epoch"] == 2
    with pytest.raises(Killed):
        trained(tmp_path / "cut", dies=4)
    assert [step for step, _ in list_checkpoints(tmp_path / "cut")] == [
        2,
        3,
    ]  # the best and the last
    spoil(tmp_path / "cut" / "checkpoint-3" / "optimizer.pt", "edited")
    assert last_good_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-2")
    assert "checkpoint-3 of a killed run: optimizer.pt damaged" in capsys.readouterr().out
    again, summary = trained(tmp_path / "cut")
    assert summary["best_epoch"] == 2 and all(
        torch.equal(again[name], whole[name]) for name in whole
    )


@pytest.mark.parametrize("how", ["edited", "gone"])
def test_without_its_best_epoch_a_run_starts_again(tmp_path, how, capsys):
    """The library would silently go on and end with the last epoch instead of the best one."""
    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "cut", dies=4)
    spoil(tmp_path / "cut" / "checkpoint-2" / "trainable.safetensors", how)
    again, summary = trained(tmp_path / "cut")
    assert (
        "checkpoint-3 of a killed run: its best epoch, checkpoint-2: trainable.safetensors"
        in capsys.readouterr().out
    )
    assert summary["best_epoch"] == 2 and all(
        torch.equal(again[name], whole[name]) for name in whole
    )


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_never_run(made, copy, file, tmp_path, capsys):
    folder = half_made()
    ((_, checkpoint),) = list_checkpoints(folder)
    torch.save({"state": Malicious(tmp_path / "run"), "param_groups": []}, checkpoint / file)
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    grid()  # its checksum gives it away
    assert (
        f"{file} damaged" in capsys.readouterr().out
        and not (tmp_path / "run").exists()
        and truth(copy) == truth(made)
    )
    shutil.rmtree(folder_of("label_only"))
    shutil.copytree(kept, folder)
    seal_checkpoint(folder / checkpoint.name)  # whoever can write there can seal it too
    with pytest.raises(
        DataError,
        match=f"{folder}: a checkpoint holds objects beside "
        "tensors.*delete that folder and run again",
    ) as error:
        grid(say=quiet)
    assert str(error.value).isprintable() and not (tmp_path / "run").exists()
    shutil.rmtree(folder)
    grid(say=quiet)
    assert truth(copy) == truth(made)
    with pytest.raises(FileExistsError):  # the trap itself works
        (tmp_path / "run").mkdir()
        torch.load(kept / checkpoint.name / file, weights_only=False)


# ---------------------------------------------------------------- converted weights


@pytest.mark.parametrize(
    "file, how",
    [
        ("model.safetensors", "cut"),
        ("model.safetensors", "edited"),
        ("model.safetensors", "gone"),
        ("config.json", "edited"),
        ("tokenizer.json", "cut"),
        ("cotdistill.json", "cut"),
        ("cotdistill.json", "emptied"),
        ("cotdistill.json", "older"),
    ],
)
def test_a_damaged_cache_of_weights_is_converted_again(tmp_path, monkeypatch, file, how, capsys):
    tiny_gguf.install(tmp_path, monkeypatch)
    first = students.load_student("tiny-wheel")
    # Loaded weights are a view of the file that is spoilt below
    wanted = [p.detach().clone() for p in first.model.parameters()]
    cache = tmp_path / "cache" / "students" / "tiny-wheel"
    assert "converting tiny.gguf" in capsys.readouterr().out
    again = students.load_student("tiny-wheel")
    assert "converting" not in capsys.readouterr().out and again.fingerprint == first.fingerprint
    if how == "older":  # written before there were checksums: its size is all that is known
        record = json.loads((cache / file).read_text())
        (cache / file).write_text(
            json.dumps({key: record[key] for key in ("sha256", "source", "bytes")})
        )
    else:
        spoil(cache / file, how)
    (cache.parent / "tiny-wheel.123.part").mkdir()  # a conversion that was killed
    again, out = students.load_student("tiny-wheel"), capsys.readouterr().out
    assert (
        file in out
        and "the weights are converted again" in out
        and again.fingerprint == first.fingerprint
    )
    assert all(torch.equal(a, b) for a, b in zip(wanted, again.model.parameters(), strict=True))
    assert {p.name for p in cache.parent.iterdir()} == {"tiny-wheel", "tiny-wheel.lock"}


# ---------------------------------------------------------------- what notebooks hand on


def test_damaged_base_and_plan_are_named_with_the_stage_to_run(copy):
    folder, plan = study_dir("t"), study_dir("t") / "train.json"
    good = plan.read_text()
    rows = json.loads(good)
    assert Study.load("t").setting == STUDY.setting and len(load_stage("t", "train")) == 2
    for bad in (
        good[: len(good) // 2],
        "",
        "[]",
        json.dumps(rows[:1]),
        json.dumps([rows[0], rows[1] | {"label": "zero_shot"}]),
        json.dumps([rows[0], rows[1] | {"seed": 5}]),
        json.dumps([rows[0] | {"key": rows[1]["key"]}, rows[1]]),
        json.dumps([{k: v for k, v in row.items() if k != "plan"} | {"seed": 7} for row in rows]),
    ):
        plan.write_text(bad)
        with pytest.raises(
            DataError, match=r"train.json: .*run (`make train STUDY=t`|that again)"
        ) as error:
            load_predictions(STUDY, ["train"])
        assert str(error.value).isprintable()
        grid(say=quiet)
        assert plan.read_text() == good
    base = json.loads((folder / "base.json").read_text())
    for bad in (json.dumps(base | {"test_size": 3}), json.dumps(base | {"label_format": "letter"})):
        (folder / "base.json").write_text(bad)
        with pytest.raises(
            DataError,
            match="base.json: changed after it was written; expected "
            "what `make train STUDY=t` wrote",
        ):
            Study.load("t")


def test_status_of_a_damaged_plan(copy, capsys, tmp_path):
    (tmp_path / "t.yaml").write_text("")
    for bad in ("[", "7", '[{"key": 3}]'):
        (study_dir("t") / "train.json").write_text(bad)
        assert cli.main(["status", str(tmp_path / "t.yaml")]) == 0
        assert (
            f"train.json is damaged: run `make train STUDY={tmp_path / 't.yaml'}` again"
            in " ".join(capsys.readouterr().out.split())
        )


@pytest.mark.parametrize("how", ["cut", "edited", "gone"])
def test_rationales_are_those_that_were_written(store, tmp_path, how):
    for split in ("train", "test"):
        rows = [
            {"id": f"{split}{i}", "question": f"{split} {i}?", "choices": ["a", "b"], "answer": "A"}
            for i in range(6)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = study_dir("t") / "rationales.jsonl"
    write_rationales({f"train{i}": Rationale(f"train{i}", "It is so.", 0) for i in range(6)}, path)
    spec = SPEC | {
        "dataset": str(tmp_path),
        "microworld": None,
        "validation_size": 2,
        "rationales": "studies/t/rationales.jsonl",
        "rationales_print": sha256(path)[:16],
    }
    assert len(read_data(spec).rationales) == 6
    if how == "edited":
        path.write_text(path.read_text().replace(" is ", " was ", 1))
    else:
        spoil(path, how)
    with pytest.raises(
        DataError,
        match="rationales.jsonl: (not the file that data.json was "
        "written with|no such file).*make elicit",
    ):
        read_data(spec)


def test_damaged_scores_are_made_again(copy, capsys):
    examples = STUDY.train_questions(0)[:3]
    ask = lambda: load_or_make_scores(STUDY, STUDY.student, "weights", "saliency", examples)
    first, scores_fingerprint = ask()
    (path,) = (study_dir("t") / "scores").glob("*.jsonl")
    good = path.read_bytes()
    for how in ("cut", "edited", "emptied"):
        spoil(path, how)
        capsys.readouterr()
        again, same = ask()
        assert (
            same == scores_fingerprint
            and "the scores are made again" in capsys.readouterr().out
            and path.read_bytes() == good
        )
        assert all(np.array_equal(first[name], again[name]) for name in first)
    assert read_scores(path)[1] == scores_fingerprint


def test_a_damaged_table_of_a_notebook_is_named(store):
    make = lambda: load_or_make_table(
        "t", "faith", ["about"], lambda: pd.DataFrame({"a": [1.0, float("nan")], "b": ["x", "y"]})
    )
    first = make()
    (path,) = (study_dir("t") / "tables").glob("*.json")
    pd.testing.assert_frame_equal(first, make())
    for how in ("cut", "edited"):
        good = path.read_bytes()
        spoil(path, how)
        with pytest.raises(
            DataError,
            match="faith-.*json: (not JSON|changed after it was "
            "written).*notebook 05.*delete it and run that again",
        ):
            make()
        path.write_bytes(good)


QUESTIONS = [Example(f"q{i}", f"What comes after {i}?", ("more", "less"), 0) for i in range(24)]
SHOWN = [Demonstration(Example("d", "What is snow?", ("white", "red"), 0), "It is frozen.")]


def ask(path, count=24):
    return elicit_transformers(
        QUESTIONS[:count],
        tiny("tiny-llama"),
        path,
        demonstrations=SHOWN,
        batch_size=1,
        settings=TeacherSettings(sampling=Sampling(max_new_tokens=4)),
    )


def test_teacher_records_that_were_changed_are_named(tmp_path):
    path = tmp_path / "r.jsonl"
    wanted = ask(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join([lines[0], lines[1].replace('"raw": "', '"raw": "Surely. '), *lines[2:]])
    )
    with pytest.raises(
        DataError,
        match=r"r.jsonl:2 \(id q\d\): changed after it was "
        r"written.*delete the line, the question is asked again",
    ):
        ask(path)
    path.write_text("".join([lines[0], *lines[2:]]))
    assert [r["raw"] for r in ask(path)] == [r["raw"] for r in wanted]
    prefixes_path(path).write_text("{")
    ask(path)
    assert rebuild_prompt(wanted[0], path)


# ---------------------------------------------------------------- disks


@contextlib.contextmanager
def mounted(folder: Path, *words: str):
    """`mount` on a folder for the length of a block; skips where that is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    done = (
        subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("mount is refused here" + (f" ({done.stderr.strip()})" if done else ""))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, free: int):
    """A tmpfs of 4 MiB with `free` bytes left (in pages of 4 KiB)."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        with (folder / "ballast").open("wb") as file:
            file.truncate(0)
            left = shutil.disk_usage(folder).free - free
            file.write(b"\0" * (left - left % 4096))
        yield folder


@contextlib.contextmanager
def read_only(folder: Path):
    with mounted(folder, "--bind", str(folder)):
        done = subprocess.run(
            ["mount", "-o", "remount,ro,bind", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a read-only mount is refused here ({done.stderr.strip()})")
        yield folder


def one_line_about(error, folder, *words) -> None:
    message = str(error.value)
    assert (
        message.isprintable() and str(folder) in message and "run the same command again" in message
    ), message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("free", [0, 12, 60, 110, 300, 420, 560])
def test_a_full_disk_is_one_line_and_a_rerun_completes(made, tmp_path, monkeypatch, free):
    """Kilobytes free, so that another write fails each time.

    The plan, a lock, weights, the optimizer, the second checkpoint, the answers.
    """
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "disk"))
    with small_disk(tmp_path / "disk", free << 10) as disk:
        try:
            grid(say=quiet)
        except DataError as error:
            one_line_about(
                pytest.ExceptionInfo.from_exception(error),
                disk,
                "the folder is full",
                "free some space",
            )
            for path in disk.glob("runs/*/"):
                assert path.suffix == ".work" or load_metrics(path.name), (
                    "a half run was taken for a whole one"
                )
        else:
            assert free > 400, "all of it fitted"
        (disk / "ballast").unlink()
        grid(say=quiet)
        assert truth(disk) == truth(made) and not list(disk.glob("runs/*.work"))


def test_a_full_disk_tears_no_record(tmp_path):
    wanted = [r["raw"] for r in ask(tmp_path / "whole.jsonl")]
    with small_disk(tmp_path / "disk", 16 << 10) as disk:
        path = disk / "r.jsonl"
        ask(path, 1)
        with (disk / "more").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 512):
                pass
        with pytest.raises(DataError) as error:
            ask(path)
        one_line_about(error, disk, "the folder is full")
        recorded = path.read_bytes()
        assert recorded.endswith(b"\n") and 1 <= len(read_records(path)) < 24
        (disk / "more").unlink()
        (disk / "ballast").unlink()
        assert [r["raw"] for r in ask(path)] == wanted and path.read_bytes().startswith(recorded)


def test_weights_that_do_not_fit_are_not_half_there(tmp_path, monkeypatch):
    tiny_gguf.install(tmp_path, monkeypatch)
    with small_disk(tmp_path / "cache", 64 << 10) as disk:
        with pytest.raises(DataError) as error:
            students.load_student("tiny-wheel")
        one_line_about(error, disk, "the folder is full")
        assert (
            not (disk / "students" / "tiny-wheel").exists()
            and not (disk / "students" / "tiny-wheel.part").exists()
        )
        (disk / "ballast").unlink()
        assert students.load_student("tiny-wheel").fingerprint


def test_a_read_only_store_is_read_and_a_write_says_so(copy, tmp_path, capsys):
    with read_only(copy):
        assert len(load_predictions(STUDY, ["train"])) == 16
        with pytest.raises(DataError) as error:
            grid()
        one_line_about(
            error, copy, "the folder is read-only", "make it writable, or set COTDISTILL_ARTIFACTS"
        )
        row = plan_rows(STUDY.replace(test_size=4), ARMS)[0]
        with pytest.raises(DataError) as error:
            load_or_make_run(STUDY.replace(test_size=4), row["arm"], row["seed"], row["config"])
        one_line_about(error, copy, "the folder is read-only")
        with pytest.raises(DataError) as error:
            ask(copy / "studies" / "t" / "teacher.jsonl")
        one_line_about(error, copy, "the folder is read-only")
    with read_only(tmp_path / "out"):
        assert cli.main(["run", "smoke", "--executed", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert (
        err.startswith("error: ")
        and err.count("\n") == 1
        and (f"{tmp_path / 'out' / 'smoke'}: the folder is read-only") in err
    )


def test_a_full_disk_on_the_command_line(tmp_path):
    """Through papermill and a kernel: one `error:` line names the folder and the way out."""
    with small_disk(tmp_path / "disk", 4 << 10) as disk:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "cotdistill.cli",
                "run",
                "smoke",
                "--stages",
                "elicit",
                "--executed",
                str(tmp_path / "out"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ
            | {"COTDISTILL_ARTIFACTS": str(disk), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert (
            done.returncode == 1
            and len(errors) == 1
            and errors[0] == done.stderr.strip().splitlines()[-1]
        ), done.stderr
        assert (
            "01_elicit: " in errors[0]
            and str(disk) in errors[0]
            and "the folder is full" in errors[0]
            and "free some space" in errors[0]
        )
        assert not list((tmp_path / "out").rglob("[0-9]*.ipynb")) and not list(
            disk.rglob("data.json")
        )
