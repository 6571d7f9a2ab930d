"""Killed anywhere, and two at once.

Nothing lost, nothing made twice, no half file taken for a whole one. The whole of it: `make kill`.
"""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import kill_harness as harness
import pytest

from cotdistill import files, paths
from cotdistill import kernel as kernel_module
from cotdistill.errors import DataError
from cotdistill.execute import run_stage
from cotdistill.files import sha256
from cotdistill.kernel import QUIET, make_kernel, stop_kernel, use_kernel_parent
from cotdistill.runs.provenance import provenance


def test_a_run_killed_before_its_writes_ends_as_if_it_had_not_been(tmp_path):
    """One store through ten SIGKILLs, each a few changes further on.

    Between plan, checkpoints, weights, answers, metrics, moves.
    """
    context, whole, store = harness.nursery(), tmp_path / "whole", tmp_path / "killed"
    process, said = harness.child_of(context, str(whole))
    changes = harness.lines_of(said)[-1]
    process.join()
    assert process.exitcode == 0 and changes > 50
    done, kills, lines = {}, 0, []
    for at in range(5, 400, 6):
        process, said = harness.child_of(context, str(store), die_at=at)
        lines += harness.lines_of(said)
        process.join()
        now = harness.finished(store)
        assert {key: now[key] for key in done} == done and harness.half_files(
            store, tmp_path / "none"
        ) == []
        done |= now
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 8 and len(done) == 2 and harness.differences(whole, store) == []
    fresh = [
        line
        for line in lines
        if re.search(r"seed \d+: .*, \d+ s", str(line)) and "from the store" not in str(line)
    ]
    assert len(fresh) <= 2 and not list((store / "runs").glob("*.work"))


def test_a_run_killed_just_before_its_move_into_place_is_not_trained_again(tmp_path):
    """metrics.json is the last file; from then on a kill costs nothing."""
    context = harness.nursery()
    process, said = harness.child_of(context, str(tmp_path), runs_at_once=("label_only",))
    changes = harness.lines_of(said)[-1]
    process.join()
    (done,) = harness.finished(tmp_path).items()
    folder = tmp_path / "runs" / done[0]
    folder.rename(folder.with_name(f"{folder.name}.work"))
    (folder.with_name(f"{folder.name}.work") / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    process, said = harness.child_of(context, str(tmp_path), runs_at_once=("label_only",))
    *lines, again = harness.lines_of(said)
    process.join()
    assert len(lines) == 1 and "from the store" in lines[0] and again < changes / 2
    assert (
        harness.finished(tmp_path) == {done[0]: done[1]} and not (folder / "checkpoints").exists()
    )


def test_training_killed_in_an_epoch_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path):
    """SIGKILL in the third epoch of five, from outside."""
    context, only = harness.nursery(), dict(epochs=5, runs_at_once=("pre_cot",))
    process, said = harness.child_of(context, str(tmp_path / "whole"), **only)
    whole = harness.lines_of(said)
    process, said = harness.child_of(context, str(tmp_path / "killed"), **only)
    while "epoch 3/5" not in said.recv():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and harness.finished(tmp_path / "killed") == {}
    process, said = harness.child_of(context, str(tmp_path / "killed"), **only)
    epochs = [
        int(line.split("/")[0].split()[-1])
        for line in harness.lines_of(said)
        if "epoch" in str(line)
    ]
    process.join()
    assert process.exitcode == 0 and epochs[0] >= 3 and epochs[-1] == 5, epochs
    assert [line for line in whole if "epoch 5/5" in str(line)] and harness.differences(
        tmp_path / "whole", tmp_path / "killed"
    ) == []
    assert len(list((tmp_path / "killed").glob("runs/*/weights.safetensors"))) == 1


# ---------------------------------------------------------------- through notebooks


def test_two_at_once_make_each_run_once_and_a_second_fresh_run_gives_the_same(smoke, tmp_path):
    """Two `study run` on one new store, then kills of kernel and papermill.

    Against the store of the session's first run.
    """
    store, executed = tmp_path / "store", tmp_path / "executed"
    command = harness.by_python("smoke", executed, "elicit", "train")
    both = [harness.start(command, store, tmp_path / f"log{i}") for i in range(2)]
    assert [child.wait(600) for child in both] == [0, 0], [
        (tmp_path / f"log{i}.err").read_text() for i in range(2)
    ]
    counts = harness.made([tmp_path / "log0.out", tmp_path / "log1.out"])
    assert len(counts) == 4 and set(counts.values()) == {1}, counts
    wanted, found = harness.contents(smoke[0] / "artifacts"), harness.contents(store)
    mine = {name for name in found if name.startswith("runs/")}
    assert len(mine) >= 16 and {name: found[name] for name in mine} == {
        name: wanted[name] for name in mine
    }
    assert harness.half_files(store, executed) == harness.left_behind(store, executed) == []

    done, notebook = harness.finished(store), (executed / "smoke" / "01_elicit.ipynb").read_bytes()
    command = harness.by_python("smoke", executed, "elicit")
    child = harness.start(command, store, tmp_path / "kernel")
    assert harness.killed(child, "kernel") and child.wait(60) == 1
    errors = (tmp_path / "kernel.err").read_text().strip().splitlines()
    assert (
        errors[-1].startswith("error: 01_elicit: DeadKernelError: the kernel was killed")
        and "run the same command again" in errors[-1]
    )
    assert (executed / "smoke" / "01_elicit.ipynb").read_bytes() == notebook and (
        store / "studies" / "smoke" / "elicit.failed"
    ).is_file()
    child = harness.start(command, store, tmp_path / "papermill")
    kill = harness.killed(child, "papermill", appears=f"{executed}/smoke/.01_elicit*")
    assert (
        kill
        and child.wait(60) == -signal.SIGKILL
        and (executed / "smoke" / "01_elicit.ipynb").read_bytes() == notebook
    )
    harness.wait_gone(kill["kernels"], 30)  # a kernel without its papermill ends by itself
    assert harness.start(command, store, tmp_path / "again").wait(600) == 0
    assert (
        harness.finished(store) == done
        and harness.half_files(store, executed) == harness.left_behind(store, executed) == []
    )


def test_a_notebook_that_fails_leaves_the_whole_one_and_shows_itself(store, tmp_path, monkeypatch):
    """The part of an error can be looked at; that of a killed process goes with the next run.

    A success clears both.
    """
    import papermill

    folder = tmp_path / "executed" / "smoke"
    folder.mkdir(parents=True)
    (folder / "03_evaluate.ipynb").write_text("whole")
    (folder / f".03_evaluate.{socket.gethostname()}-{_dead_pid()}.part.ipynb").write_text(
        "of a killed process"
    )

    def fails(source, part, **how):
        Path(part).write_text("up to the error")
        raise RuntimeError("no luck")

    monkeypatch.setattr(papermill, "execute_notebook", fails)
    with pytest.raises(
        DataError, match="03_evaluate: RuntimeError: no luck .*03_evaluate.part.ipynb"
    ):
        run_stage("evaluate", {"study": "smoke"}, tmp_path / "executed")
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "03_evaluate.ipynb": "whole",
        ".03_evaluate.part.ipynb": "up to the error",
    }

    def works(source, part, **how):
        Path(part).write_text(json.dumps({"cells": [], "metadata": {}}))

    monkeypatch.setattr(papermill, "execute_notebook", works)
    run_stage("evaluate", {"study": "smoke"}, tmp_path / "executed")
    assert [p.name for p in folder.iterdir()] == ["03_evaluate.ipynb"]


def ask_kernel(kernel, code: str) -> str:
    """Start a kernel, and return what it prints for some code."""
    from jupyter_core.utils import run_sync

    run_sync(kernel.start_kernel)(cwd=str(paths.root()), extra_arguments=[QUIET])
    client, said = kernel.blocking_client(), []
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        client.execute_interactive(
            code,
            timeout=60,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
    return "".join(said)


def test_a_forked_kernel_has_its_imports_and_an_empty_namespace_and_ends_with_its_parent():
    """Two kernels of one parent know nothing of each other; a dead one is no zombie."""
    code = "import sys; print('cotdistill.plots' in sys.modules, [n for n in dir() if n[0] == 'c'])"
    with use_kernel_parent() as parent:
        first, second = make_kernel(parent), make_kernel(parent)
        assert ask_kernel(first, "cotdistill = 1") == ""
        assert ask_kernel(second, code) == "True []\n"
        processes = [kernel.provisioner.process for kernel in (first, second)]
        stop_kernel(first)
        assert processes[0].poll() == 0 and processes[1].poll() is None
        assert not Path(first.kernel_spec.env["IPYTHONDIR"]).exists()
        assert harness.gone(processes[0].pid)
    harness.wait_gone([processes[1].pid], 30)
    stop_kernel(second)
    stop_kernel(second)  # a second time: nothing happens


def test_where_the_parent_has_died_or_cannot_be_a_plain_kernel_starts(monkeypatch):
    with use_kernel_parent() as parent:
        parent.stop()
        kernel = make_kernel(parent)
        try:
            assert ask_kernel(kernel, "print(1 + 1)") == "2\n"
        finally:
            stop_kernel(kernel)
    monkeypatch.setattr(kernel_module, "can_fork", lambda: False)
    with use_kernel_parent() as parent:
        assert parent is None


# ---------------------------------------------------------------- locks and parts


def _dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


HOLD = """import sys, time
from pathlib import Path
{patch}
from cotdistill.files import file_lock
with file_lock(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""
NO_FLOCK = """import errno, fcntl, warnings
warnings.simplefilter("ignore")
def no_flock(*_):
    raise OSError(errno.ENOSYS, "no flock here")
fcntl.flock = no_flock"""


def holder(path: Path, patch: str = "") -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(patch=patch), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(harness.ROOT)},
    )
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "a file system without flock"])
def test_who_waits_says_for_whom_and_a_dead_owner_blocks_nobody(tmp_path, monkeypatch, flock):
    if not flock:

        def no_flock(*_):
            raise OSError(errno.ENOSYS, "no flock here")

        monkeypatch.setattr(fcntl, "flock", no_flock)
        warnings.simplefilter("ignore")
    path, said, got = tmp_path / "x.lock", [], threading.Event()
    child = holder(path, "" if flock else NO_FLOCK)

    def wait():
        with files.file_lock(path, "run abc", lambda line, **_: said.append(line)):
            got.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(said) == 1 and not got.is_set()
    since = r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d" if flock else ""
    assert re.fullmatch(
        rf"waiting for run abc: held by pid {child.pid} on host "
        rf"{re.escape(socket.gethostname())}{since}",
        said[0],
    ), said
    child.kill()
    child.wait()
    assert got.wait(20), "the lock of a dead process still blocks"
    waiter.join(10)
    with files.file_lock(path, "run abc", said.append):
        pass
    assert len(said) == 1


STUB = """#!/bin/sh
case "$1 $2" in
  "-c "*) exec {python} "$@";;
  "-m venv") echo venv >> {log}; mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;
  "-m pip") sleep 0.3;;
esac
"""


def test_two_makes_create_one_environment(tmp_path):
    """With a stand-in for python that only notes that a venv was asked for."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, log=tmp_path / "log"))
    stub.chmod(0o755)
    command = ["make", "-s", "env", f"PYTHON={stub}", f"VENV={tmp_path / 'venv'}"]
    both = [
        subprocess.Popen(command, cwd=harness.ROOT, env=os.environ | {"PATH": "/usr/bin:/bin"})
        for _ in range(2)
    ]
    assert [child.wait(60) for child in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "venv\n" and len(
        list((tmp_path / "venv").glob(".ready-*"))
    ) == 1


def test_files_appear_whole_and_parts_of_the_dead_are_swept(tmp_path):
    path, here = tmp_path / "x.json", socket.gethostname()
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    with files.atomic_write(path) as part:
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    dead, stays = (
        _dead_pid(),
        {f"a.{here}-{os.getpid()}.part", f"b.other-{os.getpid()}.part", "c.part", "x.json"},
    )
    (tmp_path / "scores").mkdir()
    for name in (
        *stays - {"x.json"},
        f"d.{here}-{dead}.part",
        f"scores/e.{here}-{dead}.part",
        f".f.{here}-{dead}.part.ipynb",
    ):
        (tmp_path / name).write_text("")
    (tmp_path / f"g.{here}-{dead}.part").mkdir()
    files.remove_stale_parts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == stays | {"scores"} and not list(
        (tmp_path / "scores").iterdir()
    )


def test_a_run_card_says_what_may_differ_between_machines():
    card = provenance()
    assert (
        card["threads"] == 1
        and card["instructions"]
        and card["blas"] in ("mkl", "other")
        and card["processor"]
        and card["torch"]
    )


def test_the_harness_sees_damage(tmp_path):
    """What `make kill` looks for, it finds.

    A half run, a cut hand-on, a changed prediction, a run made twice.
    """
    folder = tmp_path / "a" / "runs" / ("0" * 64)
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text('{"id": 1}\n')
    assert len(harness.half_files(tmp_path / "a", tmp_path)) == 1
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "accuracy": 1,
                "train_seconds": 1,
                "files": {"predictions.jsonl": sha256(folder / "predictions.jsonl")},
            }
        )
    )
    assert harness.half_files(tmp_path / "a", tmp_path) == []
    other = tmp_path / "b" / "runs" / ("0" * 64)
    other.mkdir(parents=True)
    (other / "predictions.jsonl").write_text('{"id": 1}\n')
    (other / "metrics.json").write_text(
        json.dumps({"accuracy": 1, "train_seconds": 2, "files": {}})
    )
    assert harness.differences(tmp_path / "a", tmp_path / "b") == []
    (other / "predictions.jsonl").write_text('{"id": 2}\n')
    assert harness.differences(tmp_path / "a", tmp_path / "b") == [
        f"runs/{'0' * 64}/predictions.jsonl"
    ]
    before = harness.finished(tmp_path / "b")
    os.replace(other / "metrics.json", other / "x")
    (other / "metrics.json").write_text((other / "x").read_text())
    assert harness.finished(tmp_path / "b") != before
    (tmp_path / "b" / "studies" / "t").mkdir(parents=True)
    (tmp_path / "b" / "studies" / "t" / "base.json").write_text("{")
    assert any("base.json" in name for name in harness.half_files(tmp_path / "b", tmp_path))
    (tmp_path / "log").write_text(
        "[1/2] label_only seed 0: forced choice 25.0 %, generated 0.0 "
        "% of 12, 3 s, about 4 s left\n"
        "[2/2] pre_cot seed 0: forced choice 25.0 %, generated 0.0 % "
        "of 12, from the store\n"
        "[1/2] label_only seed 0: forced choice 25.0 %, generated 0.0 "
        "% of 12, 2 s\n"
    )
    assert harness.made([tmp_path / "log"]) == {("label_only", "0"): 2, ("pre_cot", "0"): 0}
