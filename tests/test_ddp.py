"""One run on two processes (torchrun, gloo): the losses, weights and answers of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ddp_worker
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from studies import make_spec

from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.files import write_json
from cotdistill.paths import study_dir
from cotdistill.runs.grid import run_grid
from cotdistill.runs.results import load_predictions
from cotdistill.runs.torchrun import make_shared_run
from cotdistill.study import Study
from cotdistill.train import OrderSampler, SlicedBatches

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def start(command, **more):
    environment = (
        os.environ
        | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        | more
    )
    process = psutil.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, said = process.communicate(timeout=600)
    finally:
        # Torchrun's workers outlive it
        for left in [*process.children(recursive=True), process] if process.is_running() else []:
            left.kill()
    assert process.returncode == 0, out[-2000:] + said[-3000:]
    return out


@pytest.mark.parametrize("n, size, ranks", [(13, 4, 2), (8, 4, 2), (7, 8, 3), (5, 2, 4)])
def test_slices_of_all_processes_are_the_batches_of_one(n, size, ranks):
    batches, order = SlicedBatches(OrderSampler(n, 3, 1), size, ranks), OrderSampler(n, 3, 1)
    for epoch in range(2):
        batches.set_epoch(epoch)
        order.set_epoch(epoch)
        whole, slices = list(order), list(batches)
        assert len(slices) == len(batches) and len(slices) % ranks == 0
        for b in range(len(slices) // ranks):
            parts = slices[b * ranks : (b + 1) * ranks]
            assert (
                sum(parts, []) == whole[b * size : (b + 1) * size]
                and max(map(len, parts)) - min(map(len, parts)) <= 1
            )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Equal global batches: label_only, pre_cot (targets many times longer), accumulation with a
    weighted label and under the balanced loss (label and other tokens counted over both), fresh
    shuffles with frozen layers and a best epoch.

    Curves agree to 1e-5 in nats per token, weights as closely as float32 sums do.
    """
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    ddp_worker.main(tmp_path / "one")
    start([*TORCHRUN, "tests/ddp_worker.py", str(tmp_path / "two")])
    one, two, other = (
        json.loads((tmp_path / p).read_text())
        for p in ("one/curves0.json", "two/curves0.json", "two/curves1.json")
    )
    assert len(one) == 5
    for name, alone in one.items():
        both, second = two[name], other[name]
        for column, values in alone["history"].items():
            np.testing.assert_allclose(
                both["history"][column], values, rtol=0, atol=1e-5, err_msg=f"{name}: {column}"
            )
        # Its rationale loss is not a number
        assert second["history"] == both["history"] or name == "label_only"
        assert both["summary"] == alone["summary"] == second["summary"] and (
            both["shown"],
            second["shown"],
        ) == (3, 0)
        assert alone["history"]["loss"][0] - alone["history"]["loss"][-1] > 0.1, (
            "nothing was learnt: equal curves would say little"
        )
        weights, wanted = (
            load_file(tmp_path / "two" / f"{name}.safetensors"),
            load_file(tmp_path / "one" / f"{name}.safetensors"),
        )
        assert weights.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(weights[key], wanted[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torchrun_makes_one_run_in_the_store(store, tmp_path):
    """The command of the README.

    Two processes, one run, which the grid then finds; a second call reads it.
    """
    study = tmp_path / "own.yaml"
    study.write_text(
        "student: tiny-llama\nmax_new_tokens: 6\nepochs: 2\nbatch_size: 4\nkeep_weights: true\n"
    )
    write_json(study_dir("own") / "data.json", make_spec())
    command = [
        *TORCHRUN,
        "-m",
        "cotdistill.cli",
        "run-one",
        str(study),
        "--arm",
        "pre_cot",
        "--seed",
        "0",
    ]
    first = start(command, COTDISTILL_ARTIFACTS=str(store))
    assert (
        first.count("pre_cot seed 0, 2 processes: forced choice") == 1
        and first.count("epoch 2/2") == 1
        and "from the store" not in first
    )
    assert (
        "pre_cot seed 0, 2 processes" in (second := start(command, COTDISTILL_ARTIFACTS=str(store)))
        and "from the store" in second
    )
    loaded, lines = Study.from_yaml(str(study)), []
    run_grid(
        loaded,
        [Arm("pre_cot")],
        "train",
        keep_weights=[("pre_cot", 0)],
        backend="local",
        say=lambda line, **_: lines.append(line),
    )
    assert lines[-1].endswith("from the store")
    folder = next((store / "runs").glob("*/metrics.json")).parent
    assert (
        json.loads((folder / "provenance.json").read_text())["processes"] == 2
        and (folder / "weights.safetensors").is_file()
    )
    both = load_predictions(loaded, ["train"])
    for path in sorted(folder.iterdir(), reverse=True):
        path.unlink()
    run_grid(loaded, [Arm("pre_cot")], "train", backend="local", say=lambda *_, **__: None)
    alone = load_predictions(loaded, ["train"])
    assert alone["id"].tolist() == both["id"].tolist()
    np.testing.assert_allclose(
        np.concatenate(alone["scores"].tolist()), np.concatenate(both["scores"].tolist()), atol=1e-3
    )


def test_a_run_without_its_notebook_has_the_notebooks_setting(smoke, monkeypatch):
    """`Study.from_yaml` builds what notebook 02 writes.

    Equal but for what base.json does not hold.
    """
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(smoke[0] / "artifacts"))
    mine = Study.from_yaml("smoke").setting
    assert mine.keep_weights is True and mine.to_json() == Study.load("smoke").setting.to_json()


def test_what_cannot_be_made_is_one_line(store, tmp_path):
    study = tmp_path / "own.yaml"
    study.write_text("student: tiny-llama\nepochs: 1\n")
    write_json(study_dir("own") / "data.json", make_spec())
    with pytest.raises(DataError, match="unknown arm 'cot'"):
        make_shared_run(str(study), "cot", 0)
    with pytest.raises(DataError, match=r"run that first"):
        make_shared_run("smoke", "pre_cot", 0)
