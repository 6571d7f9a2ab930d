"""More than one machine, more than one device.

*A grid on many machines*: one Ray task per run. `runs.run_grid(..., backend="ray")` comes here, so
no notebook knows of it; `make reproduce BACKEND=ray RAY_ADDRESS=auto` sets the environment that
this module reads:

    RAY_ADDRESS              of the cluster ("auto": the one that this machine belongs to);
                             empty: one is started here, for this process
    COTDISTILL_GPUS_PER_RUN  GPUs that a run gets, 0.5 puts two runs on one (0)
    COTDISTILL_CPUS_PER_RUN  cores that a run gets, and the threads it computes with
                             (without GPUs as many as here, else 1)
    COTDISTILL_SHARED        1: the workers write into this store, on a file system that all see;
                             0: they write into one of their own, and a run's files travel back;
                             empty: each worker looks whether it sees this store

A worker needs the environment and the student's weights, nothing else: code, questions, rationales
and scores come with the task. It makes a run by the same `store.load_or_make_run`, after it has
computed the run's config from what it has and found it equal to the driver's. On a CPU the number
of threads decides a sum's last bits, so the workers use the driver's.

*One run on many devices*, where it takes too long on one or its batch does not fit: data parallel
through the Trainer, into the store where `make train` then finds the run.

    torchrun --nproc_per_node 4 -m cotdistill.cli run-one STUDY --arm post_cot --seed 0
"""

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cotdistill.errors import DataError
from cotdistill.examples import Dataset
from cotdistill.files import file_lock, temporary_path
from cotdistill.paths import artifacts, cache_dir
from cotdistill.runs.one import make_config
from cotdistill.runs.provenance import git_state
from cotdistill.runs.store import add_elsewhere, load_metrics, load_or_make_run
from cotdistill.study import Setting, Study, resolve

RETRIES = 10  # a run whose worker or node is lost so often has another problem than bad luck
PINNED = ("torch", "transformers", "accelerate", "numpy")


def _versions() -> dict[str, str]:
    return {package: version(package).split("+")[0] for package in PINNED}


def settings() -> dict:
    """Read what the environment asks for: gpus, cpus, shared ("", "0", "1").

    Raises DataError for what is not a number.
    """
    found = {}
    for name, default in (("gpus", 0), ("cpus", 0)):
        text = os.environ.get(f"COTDISTILL_{name.upper()}_PER_RUN") or str(default)
        try:
            found[name] = float(text) if name == "gpus" else int(text)
        except ValueError:
            found[name] = -1
        if found[name] < 0:
            raise DataError(
                f"COTDISTILL_{name.upper()}_PER_RUN is '{text}'; expected a number"
                + (" such as 0, 0.5 or 1" if name == "gpus" else " of cores")
            )
    found["cpus"] = found["cpus"] or (1 if found["gpus"] else torch.get_num_threads())
    found["shared"] = os.environ.get("COTDISTILL_SHARED", "")
    if found["shared"] not in ("", "0", "1"):
        raise DataError(f"COTDISTILL_SHARED is '{found['shared']}'; expected 0, 1 or nothing")
    return found


def connect(cpus: int):
    """Connect ray to $RAY_ADDRESS, or to a cluster of this machine alone; return the module.

    This package goes to the workers as it is here, and each computes with `cpus` threads. Raises
    DataError, in one line.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").is_file():
        # As `ray start --head` decides; a driver would not, and be turned away
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise DataError(
            "backend ray: the package ray is not installed; run: pip install -e '.[cluster]'"
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        commit, changed = git_state()
        variables = {
            "OMP_NUM_THREADS": str(cpus),
            "MKL_NUM_THREADS": str(cpus),
            "TOKENIZERS_PARALLELISM": "false",
            "COTDISTILL_GIT": f"{commit} {'changed' if changed else ''}",
        }
        host, _, port = address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:
                # Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=20).close()
            ray.init(
                address,
                log_to_driver=False,
                logging_level="ERROR",
                **({"include_dashboard": False} if address == "local" else {}),
                runtime_env={"py_modules": [str(Path(__file__).parents[1])], "env_vars": variables},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(
                f"RAY_ADDRESS '{address}': no cluster "
                f"({str(error).splitlines()[0][:120]}); expected auto, or host:port of its head "
                "(and, where it asks for a token, RAY_AUTH_MODE=token and the token)"
            ) from None
    return ray


def count_run_places(ray, gpus: float, cpus: int) -> int:
    """Count the runs that the living nodes can hold at once."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(n.get("CPU", 0) / cpus, n.get("GPU", 0) / gpus if gpus else float("inf")))
        for n in nodes
    )


def on_ray(study: Study, rows: list[dict], stage: str, say):
    """Make the runs on a Ray cluster, as `grid.make_in_turn` does here: the Ray backend.

    Yields (row, metrics, whether made now, its seconds, runs at a time) as runs end, those of the
    store first.

    A run whose worker or node is lost is asked for again, elsewhere; one that raises is not. What a
    killed driver had collected is in its store; what its workers had finished, or a checkpoint of,
    is in theirs. Raises DataError where a run ends in one, where a run is lost `RETRIES` times, or
    where what came back does not match its checksums.
    """
    wanted, device = settings(), study.setting.device
    if not wanted["gpus"] and device not in ("auto", "cpu"):
        raise DataError(
            f"device '{device}' with GPUS_PER_RUN 0; expected a GPUS_PER_RUN "
            "above 0, or device auto or cpu"
        )
    if not wanted["gpus"] and torch.cuda.is_available():
        say("    GPUS_PER_RUN is 0: runs use the CPU only", flush=True)
    ray = connect(wanted["cpus"])
    # A second driver of this stage waits, then finds the runs
    lock = study.folder / f"{stage}.ray.lock"
    with file_lock(lock, f"stage {stage} of {study.name}", say):
        mark, token = study.folder / f"{stage}.ray", uuid.uuid4().hex
        mark.write_text(token)
        place = wanted | {
            "artifacts": str(artifacts().resolve()),
            "mark": str(mark.resolve()),
            "token": token,
        }
        stored, missing = _split_by_store(rows)
        pending = _ask_workers(ray, study, missing, place)
        for row, metrics in stored:  # their weights are here, so they answer other datasets here
            metrics = add_elsewhere(study, row["arm"], row["seed"], row["key"], metrics, say)
            yield row, metrics, False, 0.0, 1
        try:
            yield from _collect(ray, pending, wanted, say)
        finally:
            mark.unlink(missing_ok=True)
            for ref in pending:
                ray.cancel(ref, force=True)


def _split_by_store(rows: list[dict]) -> tuple[list[tuple[dict, dict]], list[dict]]:
    """Separate rows whose runs are whole in the store, with their metrics, from the others."""
    stored, missing = [], []
    for row in rows:
        metrics = load_metrics(row["key"])
        if metrics and (not row["keep"] or "weights.safetensors" in metrics["files"]):
            stored.append((row, metrics))
        else:
            missing.append(row)
    return stored, missing


def _ask_workers(ray, study: Study, rows: list[dict], place: dict) -> dict:
    """Ask the cluster for a run per row: task -> row.

    The study's setting and data, and each table of scores, are sent once.
    """
    task = ray.remote(
        num_cpus=place["cpus"],
        num_gpus=place["gpus"],
        max_retries=RETRIES,
        retry_exceptions=False,
        scheduling_strategy="SPREAD",
    )(work)
    setting = replace(study.setting, student=resolve(study.setting.student))
    if not place["gpus"]:  # Ray hides no GPU from a task that asks for none
        setting = replace(setting, device="cpu")
    given = ray.put((setting, study.data, study.elsewhere, _versions()))
    put, pending = {"": None}, {}
    for row in rows:
        scores, name = row["scores"]
        if name not in put:
            put[name] = ray.put(scores)
        asked = {name: row[name] for name in ("arm", "seed", "config", "key", "keep")}
        pending[task.remote(given, asked, put[name], place)] = row
    return pending


def _collect(ray, pending: dict, wanted: dict, say):
    """Yield runs as their tasks end, and take these out of `pending`; say what is waited for."""
    started = time.time()
    while pending:
        done, _ = ray.wait(list(pending), num_returns=1, timeout=60)
        at_once = count_run_places(ray, wanted["gpus"], wanted["cpus"])
        if not done:
            say(
                f"    {len(pending)} runs asked for, {min(at_once, len(pending))} at a "
                f"time, {time.time() - started:.0f} s"
                + (
                    ""
                    if at_once
                    else f"; waiting for a node with {wanted['cpus']} CPUs "
                    f"and {wanted['gpus']:g} GPUs"
                ),
                flush=True,
            )
        for ref in done:
            row = pending.pop(ref)
            yield row, *_receive(ray, ref, row, say), max(1, at_once)


def _receive(ray, ref, row: dict, say) -> tuple[dict, bool, float]:
    """Take a finished task: show its lines, store the files that came with it.

    Returns (metrics, made now, seconds).
    """
    name = f"{row['label']} seed {row['seed']}"
    try:
        answer = ray.get(ref)
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    ) as error:
        raise DataError(
            f"{name}: its worker was lost {RETRIES + 1} times, last by "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        ) from None
    if "error" in answer:
        raise DataError(f"{name}, on {answer['node']}: {answer['error']}")
    for line in answer["said"]:
        say(line, flush=True)
    if answer["files"]:
        store_files(row["key"], answer["files"])
    metrics = load_metrics(row["key"])
    if metrics is None:
        raise DataError(
            f"{name}, on {answer['node']}: the run is not in {artifacts() / 'runs'}; "
            "expected it there (COTDISTILL_SHARED=0 brings the files back)"
        )
    return metrics, answer["fresh"], answer["seconds"]


def store_files(key: str, files: dict[str, np.ndarray]) -> None:
    """Put a run's files, given as bytes, into the store: checksums first, then all at once.

    Raises DataError where one does not match.
    """
    metrics = json.loads(files["metrics.json"].tobytes())
    wrong = [
        name
        for name in metrics["files"]
        if hashlib.sha256(files.get(name, b"")).hexdigest() != metrics["files"][name]
    ]
    if wrong or not set(files) <= {*metrics["files"], "metrics.json"}:
        raise DataError(
            f"run {key[:12]}: {', '.join(wrong) or 'a file too many'} came back damaged; run again"
        )
    final = artifacts() / "runs" / key
    part = temporary_path(final)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        content.tofile(part / name)
    with file_lock(final.with_name(f"{key}.lock"), f"run {key[:12]}"):
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)


_latest: list[Study] = []


def _worker_study(setting: Setting, data: Dataset, elsewhere: dict) -> Study:
    """Return the study of a task, whose data came with it: no folder of it is needed here.

    A worker keeps its latest study, so that the next task finds its questions encoded and its
    frozen blocks' states.
    """
    if not _latest or _latest[0].setting != setting:
        _latest[:] = [Study(setting, data)]
        _latest[0].elsewhere = elsewhere
    return _latest[0]


def work(given: tuple, row: dict, scores: dict | None, place: dict) -> dict:
    """Make one run in a worker and say how it went.

    Returns node, fresh, seconds, said (progress lines), files (empty where the store is shared); or
    node and error, for what no other worker would do better.
    """
    setting, data, elsewhere, pinned = given
    node, said, started = socket.gethostname(), [], time.time()
    torch.set_num_threads(place["cpus"])
    try:
        if _versions() != pinned:
            other = {k: v for k, v in _versions().items() if v != pinned[k]}
            raise DataError(
                f"found {other}; expected the driver's { {k: pinned[k] for k in other} }"
            )
        shared = _sees(place)
        os.environ["COTDISTILL_ARTIFACTS"] = (
            place["artifacts"] if shared else str(cache_dir() / "worker")
        )
        study = _worker_study(setting, data, elsewhere)
        config = make_config(study, row["arm"], row["seed"], row["config"].get("scores", ""))
        if config != row["config"]:
            raise DataError(
                f"{', '.join(k for k in row['config'] if config.get(k) != row['config'][k])} "
                "differ from the driver's; expected the same student and code"
            )
        metrics, fresh = load_or_make_run(
            study,
            row["arm"],
            row["seed"],
            config,
            scores=scores,
            keep_weights=row["keep"],
            say=lambda line, **_: said.append(line),
        )
    except DataError as error:
        return {"node": node, "error": str(error)}
    folder = artifacts() / "runs" / row["key"]
    files = (
        {}
        if shared
        else {n: np.fromfile(folder / n, np.uint8) for n in [*metrics["files"], "metrics.json"]}
    )
    return {
        "node": node,
        "fresh": fresh,
        "seconds": time.time() - started,
        "said": said,
        "files": files,
    }


def _sees(place: dict) -> bool:
    """Say whether this worker writes into the driver's store.

    It does where it finds the mark that only this driver made.
    """
    if place["shared"] == "0":
        return False
    try:
        there = Path(place["mark"]).read_text() == place["token"]
    except OSError:
        there = False
    if place["shared"] == "1" and not there:
        raise DataError(
            f"{place['mark']} is not seen here; COTDISTILL_SHARED=1 expects the "
            "driver's artifacts on a shared file system"
        )
    return there
