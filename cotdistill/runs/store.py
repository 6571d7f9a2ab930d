"""The store of runs: each under the key of its config, sealed with checksums."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from cotdistill.arms import Arm
from cotdistill.checkpoints import restore_parameters
from cotdistill.errors import DataError, disk_error
from cotdistill.files import damaged_files, file_lock, fingerprint, write_json
from cotdistill.files import sha256 as checksum
from cotdistill.paths import RUN_KEY, artifacts
from cotdistill.runs.one import (
    ELSEWHERE,
    STORE_VERSION,
    answer_elsewhere,
    read_elsewhere_answers,
    run_key,
    train_and_answer,
    write_elsewhere,
)
from cotdistill.runs.provenance import provenance
from cotdistill.study import Study

WEIGHTS = "weights.safetensors"
FILES = ("config.json", "history.csv", "predictions.jsonl", "provenance.json")


def load_metrics(key: str, folder: Path | None = None) -> dict | None:
    """Load the metrics of a whole run.

    None where there is no such run, or where a file does not match its checksum (then a line says
    so). folder: where the run is, if not in its place in the store.
    """
    folder = folder or artifacts() / "runs" / key
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        bad = damaged_files(folder, metrics["files"])
        body = {k: v for k, v in metrics.items() if k != "seal"}
        if metrics["seal"] != fingerprint(body) or not set(FILES) <= set(metrics["files"]):
            bad.append("metrics.json")
        if (
            not bad
            and run_key(json.loads((folder / "config.json").read_text(encoding="utf-8"))) != key
        ):
            bad.append("config.json (of another run)")
    except FileNotFoundError as error:
        if folder.is_dir():
            print(
                f"{folder.name[:12]}: {Path(error.filename).name} is missing; the run will be "
                "made again",
                flush=True,
            )
        return None
    except OSError as error:
        bad = [f"{Path(error.filename or '').name} ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad = ["metrics.json"]
    if bad:
        print(
            f"{folder.name[:12]}: {', '.join(bad)} damaged; the run will be made again", flush=True
        )
        return None
    return metrics


def load_or_make_run(
    study: Study,
    arm: Arm,
    seed: int,
    config: dict,
    *,
    scores: dict | None = None,
    keep_weights: bool = False,
    say=print,
) -> tuple[dict, bool]:
    """Load the run of a config from the store, or make it.

    Returns (metrics, whether it was made now). A lock per key lets two processes share a store: the
    second waits and then finds the run complete. Raises DataError where the store can't be written
    (full, read-only): what was whole before stays, and the same call goes on from there.
    """

    def make(work: Path) -> dict:
        return train_and_answer(
            study, arm, seed, work, scores=scores, keep_weights=keep_weights, say=say
        )

    metrics, fresh = load_or_make(config, make, f"{arm.label}, seed {seed}", keep_weights, say)
    return add_elsewhere(study, arm, seed, run_key(config), metrics, say), fresh


def lacks_elsewhere(study: Study, metrics: dict) -> bool:
    """Tell whether a run has not answered the questions of all datasets of `also_answer`."""
    known = {name: about["questions"] for name, about in metrics.get("elsewhere", {}).items()}
    return any(known.get(name) != fingerprint(rows) for name, rows in study.elsewhere.items())


def add_elsewhere(study: Study, arm: Arm, seed: int, key: str, metrics: dict, say=print) -> dict:
    """Let the student of a stored run answer the other datasets that its study asks for.

    Returns the run's metrics. Where the run has answered, nothing is done; nor where its weights
    were not kept, which is said: only training it again would help. The run is copied, completed,
    sealed and moved into place, so that a kill leaves it as it was.
    """
    if not study.setting.also_answer or not lacks_elsewhere(study, metrics):
        return metrics
    store = artifacts() / "runs"
    if arm.is_trained and WEIGHTS not in metrics["files"]:
        say(f"    {arm.label}: run {key[:12]} kept no weights to answer also_answer by", flush=True)
        return metrics
    work, student = store / f"{key}.work", study.student
    with file_lock(store / f"{key}.lock", f"run {key[:12]}", say):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(store / key, work)
        before = {name: value.clone() for name, value in student.model.named_parameters()}
        try:
            if arm.is_trained:
                restore_parameters(student.model, load_file(work / WEIGHTS))
            answers, elsewhere = answer_elsewhere(study, arm, seed)
        finally:
            restore_parameters(student.model, before)
        # Another study's datasets stay: a run of two studies holds what either asked
        earlier = [a for a in read_elsewhere_answers(work) if a["dataset"] not in elsewhere]
        write_elsewhere(work, [*earlier, *answers])
        known = {name: value for name, value in metrics.items() if name not in ("files", "seal")}
        kept = [WEIGHTS] if WEIGHTS in metrics["files"] else []
        known |= {"elsewhere": metrics.get("elsewhere", {}) | elsewhere}
        put_in_place(work, store / key, seal_run(work, known, kept))
        return load_metrics(key)


def load_or_make(
    config: dict, make: Callable[[Path], dict], name: str, keep_weights: bool = False, say=print
) -> tuple[dict, bool]:
    """Load what the store holds under a config, or make it with `make`: folder -> metrics.

    `make` writes history.csv and predictions.jsonl (and weights.safetensors where they are kept)
    into the folder, where a killed attempt left what it had. name: for messages. Returns and raises
    as `load_or_make_run`.
    """
    key, store = run_key(config), artifacts() / "runs"

    def start(work: Path) -> dict:
        write_json(work / "config.json", config)
        return make(work)

    try:
        store.mkdir(parents=True, exist_ok=True)
        with file_lock(store / f"{key}.lock", f"run {key[:12]} ({name})", say):
            return _load_or_make(key, store, keep_weights, start)
    except DataError:
        raise
    # OSError, safetensors' own error, torch's RuntimeError: each says a full disk in its way
    except Exception as error:
        full = disk_error(error, store)
        if full is None:
            raise
        raise full from error


def _load_or_make(key: str, store: Path, keep_weights: bool, make) -> tuple[dict, bool]:
    """Read the run `key`, or make it by make(folder), seal it and move it into its place.

    Its lock is held.
    """

    def serves(metrics):
        return metrics and (not keep_weights or WEIGHTS in metrics["files"])

    metrics = load_metrics(key)
    if serves(metrics):
        return metrics, False
    work, final = store / f"{key}.work", store / key
    metrics = load_metrics(key, work) if (work / "metrics.json").is_file() else None
    # Else it was killed between its last file and its move into place
    fresh = not serves(metrics)
    if fresh:
        work.mkdir(exist_ok=True)
        metrics = make(work)
        write_json(work / "provenance.json", provenance())
        metrics = seal_run(work, metrics, [WEIGHTS] if keep_weights else [])
    put_in_place(work, final, metrics)
    return load_metrics(key), fresh


def seal_run(work: Path, metrics: dict, more: list[str] = ()) -> dict:
    """Write metrics.json, the last file of a run: with the checksums of the others, and a seal.

    more: files beside those that every run has; `elsewhere.jsonl` is one where it was written.
    Returns the metrics with the checksums.
    """
    names = [*FILES, *more, *([ELSEWHERE] if (work / ELSEWHERE).is_file() else [])]
    metrics = metrics | {"files": {name: checksum(work / name) for name in names}}
    write_json(work / "metrics.json", metrics | {"seal": fingerprint(metrics)})
    return metrics


def put_in_place(work: Path, final: Path, metrics: dict) -> None:
    """Move a sealed run from its work folder into its place in the store, whose lock is held."""
    for left in work.iterdir():  # checkpoints, needed until here, and what killed attempts left
        if left.name not in {*metrics["files"], "metrics.json"}:
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    if final.is_dir():
        shutil.rmtree(final)
    else:
        final.unlink(missing_ok=True)
    os.replace(work, final)


@functools.lru_cache(maxsize=1)
def report_old_runs() -> int:
    """Say, once per process, how many runs in the store are of another store version.

    They stay where they are, and are never used.
    """
    old = 0
    for path in (artifacts() / "runs").glob("*/config.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            old += (
                RUN_KEY.fullmatch(path.parent.name) is not None
                and json.loads(path.read_text(encoding="utf-8"))["store"] != STORE_VERSION
            )
    if old:
        print(
            f"{artifacts() / 'runs'}: {old} run(s) of another store version than "
            f"{STORE_VERSION} are left there and not used",
            flush=True,
        )
    return old
