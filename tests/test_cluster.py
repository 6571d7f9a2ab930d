"""Grids on a Ray cluster.

Real nodes on this machine, one of them lost, a driver killed; always the local results, bit for
bit.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from studies import make_study

from cotdistill.arms import Arm, arm_from_name
from cotdistill.errors import DataError
from cotdistill.runs import on_ray as on_ray_module
from cotdistill.runs.grid import run_grid
from cotdistill.runs.on_ray import store_files
from cotdistill.runs.store import load_metrics

ROOT = Path(__file__).resolve().parents[1]
# Ray's own 15 starves its workers beside other tests
os.environ.setdefault("RAY_worker_niceness", "0")
pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time on a machine
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install -e '.[cluster]'",
)
SMALL = dict(num_cpus=1, object_store_memory=80 * 2**20)


@pytest.fixture(scope="module", autouse=True)
def token():
    """Every cluster of this file asks for a token of its own, whatever this account has set up for
    Ray.
    """
    mine = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "240",
        "RAY_NUM_REDIS_GET_RETRIES": "120",  # how often, every 2 s, a worker asks for its head
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    yield
    for name, value in before.items():
        os.environ.pop(name)
        os.environ.update({name: value} if value is not None else {})


@pytest.fixture
def study(store):
    return make_study(seeds=[0, 1])


def results(store) -> dict:
    """Key -> the bytes of what a run found: predictions, curves, weights."""
    kept = ("predictions.jsonl", "history.csv", "weights.safetensors")
    return {
        m.parent.name: {n: (m.parent / n).read_bytes() for n in kept if (m.parent / n).is_file()}
        for m in (store / "runs").glob("*/metrics.json")
    }


def local(study, arms, store, monkeypatch, **more) -> dict:
    """The same grid in a store of its own, made here."""
    here = store.with_name("local")
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(here))
    run_grid(study, arms, "train", backend="local", say=lambda *_, **__: None, **more)
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(store))
    return results(here)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes of one core, each with a disk of its own for what its workers keep."""
    import ray
    from ray.cluster_utils import Cluster

    class PatientCluster(Cluster):
        """Ray gives a node 30 seconds to start, which a slow machine exceeds."""

        def _wait_for_node(self, node, timeout=240):
            super()._wait_for_node(node, timeout)

    disks = [tmp_path_factory.mktemp(f"node{i}") for i in range(2)]
    both = PatientCluster(
        initialize_head=True,
        head_node_args=SMALL
        | dict(include_dashboard=False, env_vars={"COTDISTILL_CACHE": str(disks[0])}),
    )
    second = both.add_node(**SMALL, env_vars={"COTDISTILL_CACHE": str(disks[1])})
    os.environ["RAY_ADDRESS"] = both.address
    yield both, second, disks
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()
    both.shutdown()


@needs_ray
@pytest.mark.slow
def test_two_nodes_make_what_one_machine_makes(study, store, nodes, monkeypatch, capsys):
    """Collected and shared: the same files as locally, the runs spread over both nodes, weights and
    scores carried along.
    """
    student, rationales = study.student, study.data.rationales
    ranks = {
        e.id: [float(-i) for i in range(len(student.encode(f" {rationales[e.id].text}")))]
        for e in study.train_questions(0)
    }
    scores = {("saliency", seed): (ranks, "print") for seed in study.setting.seeds}
    arms, keep = (
        [
            Arm("zero_shot"),
            Arm("pre_cot"),
            arm_from_name("post_cot_kept", amount=3, selector="saliency"),
        ],
        [("pre_cot", 0)],
    )
    wanted = local(study, arms, store, monkeypatch, scores=scores, keep_weights=keep)
    monkeypatch.setenv("COTDISTILL_SHARED", "0")
    capsys.readouterr()
    table = run_grid(study, arms, "train", scores=scores, keep_weights=keep, backend="ray")
    out = capsys.readouterr().out
    assert (
        results(store) == wanted
        and len(wanted) == 5
        and sum("weights.safetensors" in f for f in wanted.values()) == 1
    )
    assert (
        [f"[{n}/5]" in out for n in range(1, 6)] == [True] * 5
        and out.count("epoch 1/1") == 4
        and "from the store" not in out
    )
    assert table["arm"].tolist() == [
        "zero_shot",
        *["pre_cot", "post_cot_kept[3,saliency]"] * 2,
    ] and table["seed"].tolist() == [-1, 0, 0, 1, 1]
    made_by = [
        {p.parent.name for p in disk.glob("worker/runs/*/metrics.json")} for disk in nodes[2]
    ]
    assert all(made_by) and made_by[0] | made_by[1] == set(wanted)
    run_grid(study, arms, "train", scores=scores, keep_weights=keep, backend="ray")
    assert capsys.readouterr().out.count("from the store") == 5
    monkeypatch.delenv("COTDISTILL_SHARED")
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(store.with_name("shared")))
    # On one machine every worker sees the driver's store
    run_grid(study, arms[:2], "train", keep_weights=keep, backend="ray")
    shared = results(store.with_name("shared"))
    assert len(shared) == 3 and all(shared[key] == wanted[key] for key in shared)


@needs_ray
@pytest.mark.slow
def test_bad_input_in_a_worker_is_one_line_and_not_tried_again(study, store, nodes):
    scores = {("saliency", 0): ({e.id: [0.0] for e in study.train_questions(0)[:3]}, "x")}
    arm = arm_from_name("post_cot_kept", amount=3, selector="saliency")
    with pytest.raises(
        DataError,
        match=r"post_cot_kept\[3,saliency\] seed 0, on \S+: arm .* no "
        r"attribution scores for 9 questions",
    ) as error:
        run_grid(study, [arm], "attribute", seeds=[0], scores=scores, backend="ray")
    assert "\n" not in str(error.value)


@needs_ray
@pytest.mark.slow
def test_a_lost_nodes_runs_are_made_elsewhere(study, store, nodes, monkeypatch):
    both, second, disks = nodes
    study = study.replace(train={"epochs": 80})  # 240 steps: long enough to be lost in
    arms = [Arm("label_only"), Arm("post_cot")]
    wanted = local(study, arms, store, monkeypatch)
    monkeypatch.setenv("COTDISTILL_SHARED", "0")
    lines, lost = [], []

    def say(line, **_):
        lines.append(line)
        # Runs are going on both nodes: the second one goes away in the first half of one
        if line.startswith("[1/"):
            started = time.time()
            while not lost and time.time() - started < 120:
                steps = {
                    p.parent.parent.name: int(p.name.split("-")[1])
                    for p in sorted(disks[1].glob("worker/runs/*.work/checkpoints/checkpoint-*"))
                    if p.name.split("-")[1].isdigit()
                }
                lost.extend(
                    name.removesuffix(".work") for name, step in steps.items() if step <= 120
                )
                time.sleep(0.02)
            both.remove_node(second, allow_graceful=False)

    table = run_grid(study, arms, "train", backend="ray", say=say)
    assert len(lost) == 1 and not (disks[1] / "worker" / "runs" / lost[0]).exists(), (
        "the node was not lost in the middle of a run"
    )
    assert (disks[0] / "worker" / "runs" / lost[0] / "metrics.json").is_file()
    assert results(store) == wanted and len(table) == 4
    assert [line.split("]")[0] for line in lines if line.startswith("[")] == [
        f"[{n}/4" for n in range(1, 5)
    ]


def _free_port() -> int:
    """Find a free port below the range that the system, and so the other cluster, takes from."""
    for port in np.random.default_rng().permutation(np.arange(20000, 32000)).tolist():
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                return port


def ray_commands(folder: str, address: str) -> tuple[list[str], list[str]]:
    """`ray start` of a head at an address on loopback, and of a worker that joins it."""
    common = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        "--disable-usage-stats",
        "--num-cpus=1",
        "--node-ip-address=127.0.0.1",
        f"--object-store-memory={80 * 2**20}",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    head = [
        "--head",
        f"--port={address.split(':')[1]}",
        f"--temp-dir={folder}",
        "--include-dashboard=false",
    ]
    return [*common, *head], [*common, f"--address={address}"]


def end_cluster(started: list[subprocess.Popen], folder: str) -> None:
    """Kill the started processes, their children and every process that names their folder."""
    import psutil

    tops = [psutil.Process(p.pid) for p in started if p.poll() is None]
    mine = [child for top in tops for child in top.children(recursive=True)] + tops
    others = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(folder in word for word in process.info["cmdline"] or [])
    ]
    for process in [*mine, *others]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def ray_start():
    """A head and a worker as `ray start` makes them, on loopback.

    Afterwards every process that names their folder is killed.
    """
    folder = tempfile.mkdtemp(prefix="cd-", dir="/tmp")  # a socket's path may have 107 characters
    address = f"127.0.0.1:{_free_port()}"
    head, worker = ray_commands(folder, address)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT)
    }
    with open(f"{folder}/said", "w") as said:

        def launch(command, disk):
            return subprocess.Popen(
                command,
                env=environment | {"COTDISTILL_CACHE": f"{folder}/{disk}"},
                stdout=said,
                stderr=said,
            )

        started, waited = [launch(head, "disk0")], time.time()
        while (  # a port that listens is not enough: a worker gives up on a head not yet registered
            "Ray runtime started" not in Path(said.name).read_text()
            and time.time() - waited < 240
            and started[0].poll() is None
        ):
            time.sleep(0.2)
        started.append(launch(worker, "disk1"))
        yield address, environment, Path(folder)
        end_cluster(started, folder)
    shutil.rmtree(folder, ignore_errors=True)


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from cotdistill.arms import Arm
from cotdistill.runs.grid import run_grid
from studies import make_study
study = make_study(seeds=[0, 1]).replace(train={"epochs": 5})
run_grid(study, [Arm("zero_shot"), Arm("label_only"), Arm("post_cot"), Arm("pre_cot")], "train")
"""


@needs_ray
@pytest.mark.slow
def test_a_killed_driver_picks_up_where_it_was(study, store, ray_start, monkeypatch):
    address, environment, folder = ray_start
    study = study.replace(train={"epochs": 5})
    environment |= {
        "RAY_ADDRESS": address,
        "COTDISTILL_BACKEND": "ray",
        "COTDISTILL_SHARED": "0",
        "COTDISTILL_ARTIFACTS": str(store),
    }
    command = [sys.executable, "-c", DRIVER, str(ROOT / "tests")]
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen = []
    for line in first.stdout:
        seen.append(line)
        if line.startswith("[2/7]"):
            break
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert any(line.startswith("[2/7]") for line in seen), (
        "".join(seen) + (folder / "said").read_text()
    )
    there = {p: p.stat().st_mtime_ns for p in (store / "runs").glob("*/metrics.json")}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert 2 <= len(there) < 7 and {p: p.stat().st_mtime_ns for p in there} == there, (
        "a finished run was made again"
    )
    lines = [line for line in second.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 7 and sum("from the store" in line for line in lines) >= len(there)
    assert {
        p.parent.name
        for disk in ("disk0", "disk1")
        for p in (folder / disk).glob("worker/runs/*/metrics.json")
    } == set(results(store))
    assert results(store) == local(
        study,
        [Arm("zero_shot"), Arm("label_only"), Arm("post_cot"), Arm("pre_cot")],
        store,
        monkeypatch,
    )


def test_files_that_came_back_damaged_are_refused(study, store):
    run_grid(study, [Arm("zero_shot")], "train", backend="local", say=lambda *_, **__: None)
    folder = next((store / "runs").glob("*/metrics.json")).parent
    files = {p.name: np.fromfile(p, np.uint8) for p in folder.iterdir()}
    whole, metrics = results(store), load_metrics(folder.name)
    store_files(folder.name, files)
    assert (
        results(store) == whole
        and load_metrics(folder.name) == metrics
        and not list((store / "runs").glob("*.part"))
    )
    bad = {
        "cut": {"predictions.jsonl": files["predictions.jsonl"][:-9]},
        "edited": {"config.json": files["config.json"] ^ 1},
    }
    for change in bad.values():
        with pytest.raises(
            DataError, match=f"run {folder.name[:12]}: {next(iter(change))} came back damaged"
        ):
            store_files(folder.name, files | change)
    with pytest.raises(DataError, match="history.csv came back damaged"):
        store_files(folder.name, {n: f for n, f in files.items() if n != "history.csv"})
    with pytest.raises(DataError, match="a file too many came back damaged"):
        store_files(folder.name, files | {"../escape": files["config.json"]})
    assert results(store) == whole


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("COTDISTILL_BACKEND", "dask", "backend 'dask'; expected local or ray"),
        (
            "COTDISTILL_GPUS_PER_RUN",
            "one",
            "COTDISTILL_GPUS_PER_RUN is 'one'; expected a number such as 0, 0.5 or 1",
        ),
        (
            "COTDISTILL_CPUS_PER_RUN",
            "0.5",
            "COTDISTILL_CPUS_PER_RUN is '0.5'; expected a number of cores",
        ),
        ("COTDISTILL_SHARED", "yes", "COTDISTILL_SHARED is 'yes'; expected 0, 1 or nothing"),
    ],
)
def test_bad_settings_are_one_line(study, monkeypatch, name, value, message):
    monkeypatch.setenv("COTDISTILL_BACKEND", "ray")
    monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message):
        run_grid(study, [Arm("zero_shot")], "train")


def test_without_ray_the_way_to_it_is_named(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        DataError, match=r"ray is not installed; run: pip install -e '.\[cluster\]'"
    ):
        run_grid(study, [Arm("zero_shot")], "train", backend="ray")


@needs_ray
def test_an_address_where_no_cluster_is_fails_at_once_in_one_line(study, monkeypatch):
    import ray

    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{_free_port()}")
    started = time.time()
    with pytest.raises(
        DataError,
        match=r"RAY_ADDRESS '127.0.0.1:\d+': no cluster \(.*refused\); "
        r"expected auto, or host:port of its head \(",
    ):
        run_grid(study, [Arm("zero_shot")], "train", backend="ray")
    assert time.time() - started < 20


def test_a_worker_that_must_share_and_does_not_see_the_store_says_so(tmp_path):
    (tmp_path / "mark").write_text("token")
    place = dict(shared="", mark=str(tmp_path / "mark"), token="token")
    assert (
        on_ray_module._sees(place)
        and not on_ray_module._sees(place | {"token": "other"})
        and not on_ray_module._sees(place | {"shared": "0"})
    )
    with pytest.raises(DataError, match="is not seen here; COTDISTILL_SHARED=1 expects"):
        on_ray_module._sees(place | {"shared": "1", "token": "other"})


def test_the_documented_kubernetes_recipe_is_yaml_with_the_pinned_ray():
    import re
    import tomllib

    import yaml

    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    job = yaml.safe_load(re.search(r"```yaml\n(apiVersion: ray.io.*?)```", text, re.S)[1])
    pin = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "cluster"
    ][0]
    assert (
        pin == f"ray=={job['spec']['rayClusterSpec']['rayVersion']}"
        and f"rayproject/ray:{job['spec']['rayClusterSpec']['rayVersion']}-" in text
    )
    told = {
        e["name"]
        for e in job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][
            0
        ]["env"]
    }
    code = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "cotdistill").rglob("*.py"))
    names = code + "".join(f"COTDISTILL_{kind}_PER_RUN" for kind in ("GPUS", "CPUS"))
    assert told - {"PYTHONPATH"} <= set(re.findall(r"COTDISTILL_\w+", names))
