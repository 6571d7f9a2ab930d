"""Execute a study's notebooks one after the other, each in a kernel of its own; show its status."""

import json
import os
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cotdistill.errors import DataError, disk_error, one_line
from cotdistill.files import atomic_write, read_text, remove_stale_parts, temporary_path
from cotdistill.gallery import save_gallery
from cotdistill.kernel import QUIET, make_kernel, stop_kernel, use_kernel_parent
from cotdistill.kernel_parent import KernelParent
from cotdistill.parameters import (
    check_demands,
    check_made_with,
    check_student,
    default_note,
    load_study,
    notebook_parameters,
    parameters_path,
    stage_parameters,
    study_stages,
)
from cotdistill.paths import (
    ALL_NOTEBOOKS,
    FOLDER,
    OPEN_NOTEBOOKS,
    PLANNING_STAGES,
    RUN_KEY,
    artifacts,
    enter_study,
    evidence_folder,
    plan_path,
    root,
)
from cotdistill.publish import FIGURES, notebook_folder
from cotdistill.terminal import UpdatingLine, wrap, write_duration, write_table
from cotdistill.tidy import tidy_notebook


def run_stages(stages: list[str], values: dict, executed: Path) -> None:
    """Execute the notebooks of these stages in order, each in a kernel of its own.

    Raises DataError, as `run_stage` does.
    """
    with use_kernel_parent() if len(stages) > 1 else nullcontext() as parent:
        for stage in stages:
            run_stage(stage, values, executed, parent)


def execute_notebook(
    source: Path, part: Path, values: dict, parent: KernelParent | None = None
) -> None:
    """Execute a notebook with these parameters into `part`, and print what it prints.

    parent: the process to fork its kernel from. After Ctrl-C no part is left. Raises what papermill
    raises.
    """
    import papermill

    kernel = make_kernel(parent)
    shown = UpdatingLine(sys.stdout)
    try:
        papermill.execute_notebook(
            str(source),
            str(part),
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(root()),
            stdout_file=shown,
            stderr_file=sys.stderr,
            start_timeout=600,  # a busy machine is not a dead kernel; defaults: 60 s and 4 s
            iopub_timeout=120,
            km=kernel,
            extra_arguments=[QUIET],
        )
    except KeyboardInterrupt:
        part.unlink(missing_ok=True)
        raise
    finally:
        shown.close_line()
        stop_kernel(kernel)


def describe_failure(error: Exception) -> str:
    """Say in one line what a notebook ended with, such as "DataError: …".

    For a killed kernel and a full disk the line says how to go on.
    """
    kind, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
    if kind == "DeadKernelError" or "Kernel died" in text:
        return (
            "DeadKernelError: the kernel was killed (out of memory?); run the same command again: "
            "what is complete is kept"
        )
    full = None if kind in ("DataError", "TeacherError") else disk_error(text, artifacts())
    if full is not None:
        return f"DataError: {full}"
    return f"{kind}: {one_line(text.strip().splitlines()[0] if text.strip() else '')}"


def run_stage(stage: str, values: dict, executed: Path, parent: KernelParent | None = None) -> None:
    """Execute one notebook with the study's values; only a complete result replaces the old one.

    parent: as for `execute_notebook`. Raises DataError with what the notebook ended with, in one
    line; after a failed write it names the folder and how to go on.
    """
    name, folder = ALL_NOTEBOOKS[stage], executed / values["study"]
    source = root() / "notebooks" / f"{name}.ipynb"
    part = temporary_path(folder / f".{name}", ".ipynb")
    broken = folder / f".{name}.part.ipynb"  # ended in an error: kept to be looked at
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, artifacts() / "studies" / values["study"], artifacts() / "runs"):
        remove_stale_parts(place)
    known = {key: value for key, value in values.items() if key in notebook_parameters(source)}
    failed = artifacts() / "studies" / values["study"] / f"{stage}.failed"
    failed.unlink(missing_ok=True)
    print(f"== {name} ({values['study']})", flush=True)
    started = time.time()
    try:
        execute_notebook(source, part, known, parent)
    except Exception as error:
        reason = describe_failure(error)
        with suppress(OSError):  # a full disk stopped the notebook: the message below says so
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason + "\n", encoding="utf-8")
        if part.is_file():
            with suppress(OSError, ValueError, KeyError):  # as far as it got is better than nothing
                tidy_notebook(part, seconds=time.time() - started)
            os.replace(part, broken)
        raise DataError(f"{name}: {reason} (the notebook up to the error: {broken})") from None
    tidy_notebook(part, seconds=time.time() - started)
    os.replace(part, folder / f"{name}.ipynb")
    # The folder is a path of this machine, so it stays out of what the notebooks pass on
    if os.environ.get(FOLDER):
        with atomic_write(parameters_path(values["study"], stage).with_name("folder.txt")) as copy:
            copy.write_text(os.environ[FOLDER] + "\n", encoding="utf-8")
    with atomic_write(parameters_path(values["study"], stage)) as copy:
        copy.write_text(
            json.dumps(stage_parameters(stage, values), indent=1, sort_keys=True), encoding="utf-8"
        )
    broken.unlink(missing_ok=True)
    # The README's findings are rendered from these files beside the notebooks
    if stage == "figures":
        results = artifacts() / "studies" / values["study"]
        for file in (
            results / "verdicts.json",
            *(results / "figures" / figure for figure in FIGURES),
        ):
            with atomic_write(folder / file.name) as copy:
                shutil.copy(file, copy)
        save_gallery(values["study"], folder)


def status(study: str) -> list[dict]:
    """Return one row per stage: its notebook, its runs, and the seconds left."""
    values = load_study(study)
    listed, name = study_stages(values), values["study"]
    rows = [stage_status(study, name, stage) for stage in ALL_NOTEBOOKS]
    # An open question's notebook is shown where the study lists it, or where it was begun
    begun = lambda row: row["notebook"] != "not yet" or row["runs"]
    return [
        row
        for row in rows
        if (root() / "notebooks" / f"{ALL_NOTEBOOKS[row['stage']]}.ipynb").is_file()
        and (row["stage"] not in OPEN_NOTEBOOKS or row["stage"] in listed or begun(row))
    ]


def stage_status(study: str, name: str, stage: str) -> dict:
    """Return a stage's row of `status`.

    `study` is the name or path that the user gave, `name` the study's own. The notebook is
    executed, published (by others, not on this machine), failed, or not yet executed. The seconds
    left are None where no run has ended yet.
    """
    folder, executed = artifacts() / "studies" / name, notebook_folder(name)
    row = dict(stage=stage, notebook="not yet", runs=0, done=0, running=0, seconds_left=None)
    if (executed / f"{ALL_NOTEBOOKS[stage]}.ipynb").is_file():
        row["notebook"] = "executed" if executed != evidence_folder(name) else "published"
    if (folder / f"{stage}.failed").is_file():
        row["notebook"] = "failed: " + (folder / f"{stage}.failed").read_text().strip()
    plan = plan_path(name, stage)
    if stage not in PLANNING_STAGES or not plan.is_file():
        return row
    try:
        rows = json.loads(read_text(plan, "a plan"))
        keys = {r["key"] for r in rows if RUN_KEY.fullmatch(r["key"])}
    except (ValueError, TypeError, KeyError):
        row["notebook"] = f"{plan.name} is damaged: run `make {stage} STUDY={study}` again"
        return row
    return row | count_runs(keys)


def count_runs(keys: set[str]) -> dict:
    """Count the runs under these keys: all, done, running, and the seconds left for the rest."""
    runs, times, done, running = artifacts() / "runs", [], 0, 0
    for key in keys:
        try:
            metrics = json.loads((runs / key / "metrics.json").read_text())
            done += 1
            times.append(metrics["train_seconds"] + metrics["evaluate_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            running += is_locked(runs / f"{key}.lock")
    left = sum(times) / len(times) * (len(keys) - done) if times else None
    return dict(runs=len(keys), done=done, running=running, seconds_left=left)


def is_locked(path: Path) -> bool:
    """Tell whether another process holds a lock file."""
    try:
        if path.is_file():
            FileLock(path).acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def run_study(study: str, stages: list[str] | None, executed: Path) -> None:
    """Check a study, then run its stages (None: those of the study).

    Raises DataError before anything runs, or with what a notebook ended with.
    """
    values, started = load_study(study), time.time()
    stages = list(stages or study_stages(values))
    for stage in stages:
        notebook_parameters(root() / "notebooks" / f"{ALL_NOTEBOOKS[stage]}.ipynb")
    check_made_with(values, stages, study)
    enter_study(study)
    check_demands(values, stages)
    check_student(values, stages)
    if set(stages) != {"elicit"} and default_note(study):
        print(default_note(study), flush=True)
    run_stages(stages, values, executed)
    print(
        f"study {values['study']}: done in {(time.time() - started) / 60:.1f} minutes; notebooks "
        f"in {os.path.relpath(executed / values['study'])}",
        flush=True,
    )


def show_status(study: str) -> None:
    """Print the study's name, how far it is and the time left, then `status` as a table."""
    rows = status(study)
    print(wrap(f"study {load_study(study)['study']}: {describe_progress(rows)}"))
    table = [
        {
            "stage": row["stage"],
            "notebook": row["notebook"].partition(":")[0],
            "runs": f"{row['done']}/{row['runs']}" if row["runs"] else "–",
            "running": row["running"] if row["runs"] else "–",
            "time left": write_duration(row["seconds_left"] or None),
        }
        for row in rows
    ]
    print(write_table(table, ["stage", "notebook", "runs", "running", "time left"]))
    for row in rows:
        if ":" in row["notebook"]:
            print(wrap(f"{row['stage']}: {row['notebook']}"))


def describe_progress(rows: list[dict]) -> str:
    """Say how many notebooks and runs of a study are done, and how long the runs left will take.

    rows: of `status`. A stage plans its runs when it begins, so later stages are not in the sum.
    """
    total, done = (sum(row[name] for row in rows) for name in ("runs", "done"))
    ended = sum(row["notebook"] in ("executed", "published") for row in rows)
    text = f"{ended} of {len(rows)} notebooks done, {done} of {total} planned runs done"
    if done < total:
        known = [row["seconds_left"] for row in rows if row["seconds_left"] is not None]
        left = write_duration(sum(known)) if known else "unknown until a run has ended"
        text += f"; time left: {left}"
    return text
