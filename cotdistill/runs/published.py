"""Finished runs that travel with the repository: notebooks/executed/<study>/runs.parquet.

A row is a run: its key and config, which stages use it under which label and seed, metrics,
learning curve, provenance, and per question ids and numbers. No text is kept, of any dataset,
teacher or student. Option scores are whole millionths of a nat, to which `evaluate` rounds them, so
that a run comes back with the very numbers it was stored with. Each row is sealed.
"""

import functools
import json
import math
import os
from pathlib import Path

from cotdistill.errors import DataError
from cotdistill.files import atomic_write, file_lock, fingerprint, write_json
from cotdistill.paths import artifacts, evidence_folder, plan_path, root, study_dir
from cotdistill.runs.one import ELSEWHERE, read_elsewhere_answers, run_key, write_elsewhere
from cotdistill.runs.results import completed_stages, read_plan
from cotdistill.runs.store import load_metrics, put_in_place, seal_run

FILE = "runs.parquet"
TEXTS = ("text", "rationale")  # fields of a prediction that are never published
NUMBERS = ("gold", "generated", "choice", "tokens", "cut_off")
LATER = ("rationale_cut_off",)  # fields that runs of older versions lack
SCORES = ("scores", "scores_direct")
AWAY = "elsewhere"  # the column of answers to other datasets; only where a run has some
MICRO = 1_000_000  # a score in nats is stored as a whole number of millionths


def pack_run(key: str, uses: list[dict]) -> dict:
    """Read a whole run of the store as a row of the published file.

    uses: its rows in the study's plans, as {stage, label, seed}. Raises DataError for a prediction
    with a field that this file does not know, or a score that is no finite number.
    """
    folder = artifacts() / "runs" / key
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    predictions = [json.loads(line) for line in lines]
    row = {
        "key": key,
        "rows": uses,
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "metrics": {k: v for k, v in metrics.items() if k not in ("files", "seal")},
        "provenance": json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
        "history": (folder / "history.csv").read_text(encoding="utf-8"),
    }
    row |= pack_predictions(predictions, folder / "predictions.jsonl")
    if ELSEWHERE in metrics["files"]:
        row[AWAY] = pack_elsewhere(folder / ELSEWHERE)
    return seal_row(row)


def pack_elsewhere(path: Path) -> list[dict]:
    """Read a run's answers to other datasets, with scores in whole millionths of a nat."""
    answers = read_elsewhere_answers(path.parent)
    return [a | {"scores": _to_micro(a["scores"], path)} for a in answers]


def seal_row(row: dict) -> dict:
    """Give a row the fingerprint of its content, which `read_published` compares."""
    body = {name: value for name, value in row.items() if name != "seal"}
    return body | {"seal": fingerprint(body)}


def pack_predictions(predictions: list[dict], where: Path) -> dict:
    """Turn predictions into a list per field, without their texts.

    A field that no prediction has is None. where: their file, for errors. Raises DataError as
    `pack_run` does.
    """
    fields = {name for p in predictions for name in p} - set(TEXTS)
    unknown = sorted(fields - {"id", *NUMBERS, *LATER, *SCORES})
    if unknown:
        raise DataError(
            f"{where}: a prediction has the field '{unknown[0]}'; expected fields that "
            f"{FILE} knows (cotdistill/runs/published.py)"
        )
    known = {
        name: [p.get(name) for p in predictions] if name in fields else None
        for name in ("id", *NUMBERS, *LATER, *SCORES)
    }
    for name in SCORES:
        if known[name] is not None:
            known[name] = [_to_micro(scores, where) for scores in known[name]]
    return known


def _to_micro(scores: list[float] | None, where: Path) -> list[int] | None:
    if scores is None:
        return None
    if not all(math.isfinite(score) for score in scores):
        raise DataError(f"{where}: an option's score is no finite number; expected log p in nats")
    return [round(score * MICRO) for score in scores]


def unpack_predictions(row: dict) -> list[dict]:
    """Turn a row's lists into predictions, as `evaluate` returns them but without texts."""
    columns = {}
    for name in ("id", *NUMBERS, *SCORES, *LATER):
        values = row[name]
        if values is None:
            continue
        if name in SCORES:
            values = [s if s is None else [score / MICRO for score in s] for s in values]
        columns[name] = values
    return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]


def _schema(away: bool):
    """Return the columns of the file; away: those of answers to other datasets too."""
    import pyarrow as pa

    whole, flags = pa.list_(pa.int32()), pa.list_(pa.bool_())
    scores = pa.list_(pa.list_(pa.int64()))
    use = pa.struct([("stage", pa.string()), ("label", pa.string()), ("seed", pa.int64())])
    texts = ("config", "metrics", "provenance", "history", "seal")
    answer = pa.struct(
        [("dataset", pa.string()), ("id", pa.string()), ("gold", pa.int32())]
        + [("choice", pa.int32()), ("scores", pa.list_(pa.int64()))]
        + [(name, pa.bool_()) for name in ("cut_off", "rationale_cut_off")]
    )
    return pa.schema(
        [("key", pa.string()), ("rows", pa.list_(use)), ("id", pa.list_(pa.string()))]
        + [(name, pa.string()) for name in texts]
        + [(name, flags if name == "cut_off" else whole) for name in NUMBERS]
        + [(name, flags) for name in LATER]
        + [(name, scores) for name in SCORES]
        + ([(AWAY, pa.list_(answer))] if away else [])
    )


JSON = ("config", "metrics", "provenance")  # columns that hold JSON text


def write_published(path: Path, rows: list[dict]) -> None:
    """Write rows of `pack_run` into a file, in the order of their keys; whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = [
        row | {name: json.dumps(row[name], sort_keys=True) for name in JSON}
        for row in sorted(rows, key=lambda row: row["key"])
    ]
    table = pa.Table.from_pylist(packed, schema=_schema(any(AWAY in row for row in packed)))
    options = dict(compression="zstd", compression_level=9, write_page_checksum=True)
    options["write_statistics"] = False  # they lie outside of the checksums, and nothing reads them
    with atomic_write(path) as part:
        pq.write_table(table, part, **options)


def read_published(path: Path, keys: list[str] | None = None) -> list[dict]:
    """Read the rows of a published file (keys: only these), as `pack_run` made them.

    Raises DataError naming the file where it is damaged, or a row is not what was sealed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = None if keys is None else [("key", "in", keys)]
    try:
        table = pq.read_table(path, filters=wanted, page_checksum_verification=True)
        rows = [row | {name: json.loads(row[name]) for name in JSON} for row in table.to_pylist()]
        for row in rows:
            if row.get(AWAY, 0) is None:  # of a run that answered its own questions alone
                del row[AWAY]
        bad = next((row["key"] for row in rows if seal_row(row)["seal"] != row["seal"]), None)
        bad = bad or next((r["key"] for r in rows if run_key(r["config"]) != r["key"]), None)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:120]}") from None
    if bad:
        raise _damaged(path, f"run {bad[:12]} is not what was written")
    return rows


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: damaged ({problem}); expected what `make publish` wrote: restore the file "
        f"(git checkout {os.path.relpath(path, root())}), or train without it: FROM_SCRATCH=1"
    )


@functools.lru_cache(maxsize=64)
def _keys_of(path: Path, _changed: tuple) -> frozenset[str]:
    """Return the keys in a published file; `_changed`: its time and size, when it was read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return frozenset(pq.read_table(path, columns=["key"])["key"].to_pylist())
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:120]}") from None


def published_files() -> list[Path]:
    """List the published files of runs, of all studies."""
    return sorted(evidence_folder("x").parent.glob(f"*/{FILE}"))


def ignores_published() -> bool:
    """Tell whether published runs are left aside: $COTDISTILL_FROM_SCRATCH is 1.

    Raises DataError for a value that is neither 1, 0 nor nothing.
    """
    text = os.environ.get("COTDISTILL_FROM_SCRATCH", "")
    if text not in ("", "0", "1"):
        raise DataError(f"FROM_SCRATCH is '{text}'; expected 0, 1 or nothing")
    return text == "1"


def fetch_runs(keys: list[str], say=print) -> int:
    """Take runs that the store lacks from the published files, where these hold them.

    Says in one line how many came from which file, and returns their number. A run's key is the
    hash of all that it depends on, so a changed setting finds none. Raises DataError for a damaged
    file.
    """
    if ignores_published():
        return 0
    store, fetched = artifacts() / "runs", 0
    missing = {key for key in keys if not (store / key / "metrics.json").is_file()}
    for path in published_files() if missing else []:
        stat = path.stat()
        found = sorted(missing & _keys_of(path, (stat.st_mtime_ns, stat.st_size)))
        if not found:
            continue
        for row in read_published(path, found):
            _put_into_store(row, say)
        missing -= set(found)
        fetched += len(found)
        say(
            f"{len(found)} of {len(set(keys))} runs come from the published file "
            f"{path.parent.name}/{FILE} (FROM_SCRATCH=1 trains them here)",
            flush=True,
        )
    return fetched


def _put_into_store(row: dict, say) -> None:
    """Write a published run into the store, sealed as any run; one that came meanwhile stays."""
    key, store = row["key"], artifacts() / "runs"
    store.mkdir(parents=True, exist_ok=True)
    with file_lock(store / f"{key}.lock", f"run {key[:12]}", say):
        if load_metrics(key):
            return
        work = store / f"{key}.work"
        work.mkdir(exist_ok=True)
        write_json(work / "config.json", row["config"])
        (work / "history.csv").write_text(row["history"], encoding="utf-8")
        with (work / "predictions.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(p) + "\n" for p in unpack_predictions(row))
        write_json(work / "provenance.json", row["provenance"])
        answers = [
            a | {"scores": [score / MICRO for score in a["scores"]]} for a in row.get(AWAY, [])
        ]
        write_elsewhere(work, answers)
        put_in_place(work, store / key, seal_run(work, row["metrics"]))


# Stages of the open questions whose runs answer each test question once, as those of the paper's do
OPEN_STAGES = ("tasks", "mechanism", "quality")


def planned_uses(study: str) -> dict[str, list[dict]]:
    """Return key -> the rows {stage, label, seed} of the study's plans that use the run."""
    asked = [stage for stage in OPEN_STAGES if plan_path(study, stage).is_file()]
    uses = {}
    for stage in [*completed_stages(study), *asked]:
        for row in read_plan(study, stage):
            use = {"stage": stage, "label": row["label"], "seed": row["seed"]}
            uses.setdefault(row["key"], []).append(use)
    return uses


def collect_runs(study: str, before: list[dict]) -> tuple[list[dict], int]:
    """Collect what a study's published file shall hold.

    Every planned run that is whole in the store, and whatever the file held before (`before`):
    nothing that is published is lost. Returns (rows, planned runs that are in neither).
    """
    rows, missing = {row["key"]: row for row in before}, 0
    for key, uses in planned_uses(study).items():
        if (artifacts() / "runs" / key).is_dir() and load_metrics(key):
            rows[key] = pack_run(key, uses)
        elif key in rows:
            rows[key] = seal_row(rows[key] | {"rows": uses})
        else:
            missing += 1
    return list(rows.values()), missing


def write_runs(study: str, target: Path, say=print) -> None:
    """Bring `target`/runs.parquet up to date with the store, while runs may be in work.

    Says how many runs it holds and how many are still missing. Where nothing changed the file stays
    as it is. Raises DataError for a damaged file: what it held is not thrown away.
    """
    path = target / FILE
    with file_lock(study_dir(study) / "publish.lock", f"{FILE} of {study}", say):
        before = read_published(path) if path.is_file() else []
        rows, missing = collect_runs(study, before)
        if not rows:
            return
        if {row["seal"] for row in rows} != {row["seal"] for row in before}:
            write_published(path, rows)
    new = len(rows) - len(before)
    size = path.stat().st_size / 1e6
    say(
        f"{study}/{FILE}: {len(rows)} runs, {new} of them new, {size:.2f} MB"
        + (f"; {missing} planned runs are not whole yet and left out" if missing else ""),
        flush=True,
    )


def publish_runs(study: str, say=print) -> Path:
    """Publish whatever runs of a study are whole, also while its grid is being trained.

    Returns the file. Raises DataError where there is none yet.
    """
    target = evidence_folder(study)
    write_runs(study, target, say)
    if not (target / FILE).is_file():
        raise DataError(
            f"study '{study}': no run is whole yet in {artifacts() / 'runs'}; expected at least one"
        )
    return target / FILE


def fetch_study(study: str, say=print) -> int:
    """Take all published runs of one study into the store; returns how many are there.

    Raises DataError where the study has no published runs.
    """
    path = evidence_folder(study) / FILE
    if not path.is_file():
        raise no_published(study)
    rows = read_published(path)
    here = [row for row in rows if not (artifacts() / "runs" / row["key"]).is_dir()]
    for row in here:
        _put_into_store(row, say)
    say(
        f"{len(here)} of {len(rows)} published runs of {study} came into the store; "
        "the others were there",
        flush=True,
    )
    return len(here)


def no_published(study: str) -> DataError:
    """Say that a study has no published runs."""
    found = ", ".join(path.parent.name for path in published_files()) or "none yet"
    return DataError(
        f"study '{study}': no published runs ({evidence_folder(study) / FILE}); expected a study "
        f"with some: {found}; `make publish-runs STUDY={study}` publishes your own"
    )
