"""Execute a study's notebooks in sequence by papermill, each in a kernel of its own.

Tidy what they leave; status.
"""

import json
import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from cotdistill.errors import DataError, disk_error, one_line
from cotdistill.files import atomic_write, read_text, remove_stale_parts, temporary_path
from cotdistill.kernel import QUIET, kernel_is_alive, make_kernel, start_kernel, stop_kernel
from cotdistill.parameters import (
    _parameters_file,
    all_parameters,
    check_demands,
    check_made_with,
    check_student,
    default_note,
    load_study,
    notebook_parameters,
    stage_parameters,
)
from cotdistill.paths import FOLDER, NOTEBOOKS, RUN_KEY, RUN_STAGES, artifacts, enter_study, root
from cotdistill.publish import FIGURES, evidence_folder, notebook_folder
from cotdistill.tidy import tidy_notebook


def run_stages(stages: list[str], values: dict, executed: Path) -> None:
    """Execute notebook after notebook, each in a kernel of its own.

    The next one's starts meanwhile. Raises DataError, as `run_stage`.
    """
    ahead = None
    try:
        for number, stage in enumerate(stages, 1):
            mine, ahead = ahead, None
            try:
                with suppress(
                    Exception
                ):  # where none can be started, the stage itself says why when it comes to it
                    ahead = start_kernel() if number < len(stages) else None
                run_stage(stage, values, executed, mine)
            finally:
                if mine:
                    stop_kernel(mine)
    finally:
        if ahead:
            stop_kernel(ahead)


def execute_notebook(source: Path, part: Path, values: dict, kernel=None) -> None:
    """Execute a notebook with these parameters into `part`, its prints going to the terminal too.

    kernel: one of `start_kernel`, which stays; None, or one that died meanwhile: a new one is
    started and stopped. After Ctrl-C no part is left. Raises what papermill raises.
    """
    import papermill

    own = kernel if kernel and kernel_is_alive(kernel) else make_kernel()
    try:
        papermill.execute_notebook(
            str(source),
            str(part),
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(root()),
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            start_timeout=600,  # a busy machine is no dead kernel: the defaults are 60 s and 4 s
            iopub_timeout=120,
            km=own,
            extra_arguments=[QUIET],
        )
    except KeyboardInterrupt:
        part.unlink(missing_ok=True)
        raise
    finally:
        if own is not kernel:
            stop_kernel(own)


def describe_failure(error: Exception) -> str:
    """What a notebook ended with, in one line: "DataError: …".

    A killed kernel and a full disk say the way out.
    """
    kind, said = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
    if kind == "DeadKernelError" or "Kernel died" in said:
        return (
            "DeadKernelError: the kernel was killed (out of memory?); run the same command again: "
            "what is whole is kept"
        )
    full = None if kind in ("DataError", "TeacherError") else disk_error(said, artifacts())
    if full is not None:
        return f"DataError: {full}"
    return f"{kind}: {one_line(said.strip().splitlines()[0] if said.strip() else '')}"


def run_stage(stage: str, values: dict, executed: Path, kernel=None) -> None:
    """Execute one notebook with the study's values; a whole result replaces the old one.

    kernel: as `execute_notebook` takes it. Raises DataError: what the notebook ended with, in one
    line; a failed write (OSError) names the folder and the way out.
    """
    name, folder = NOTEBOOKS[stage], executed / values["study"]
    source = root() / "notebooks" / f"{name}.ipynb"
    part = temporary_path(folder / f".{name}", ".ipynb")
    broken = folder / f".{name}.part.ipynb"  # of a run that ended in an error, to be looked at
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, artifacts() / "studies" / values["study"], artifacts() / "runs"):
        remove_stale_parts(place)
    mine = {key: value for key, value in values.items() if key in notebook_parameters(source)}
    failed = artifacts() / "studies" / values["study"] / f"{stage}.failed"
    failed.unlink(missing_ok=True)
    print(f"== {name} ({values['study']})", flush=True)
    started = time.time()
    try:
        execute_notebook(source, part, mine, kernel)
    except Exception as error:
        reason = describe_failure(error)
        with suppress(OSError):  # the disk that stopped the notebook: the message below says it
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason + "\n", encoding="utf-8")
        if part.is_file():
            with suppress(OSError, ValueError, KeyError):  # as far as it got is better than nothing
                tidy_notebook(part, seconds=time.time() - started)
            os.replace(part, broken)
        raise DataError(f"{name}: {reason} (the notebook up to the error: {broken})") from None
    tidy_notebook(part, seconds=time.time() - started)
    os.replace(part, folder / f"{name}.ipynb")
    if os.environ.get(FOLDER):  # of this machine, and so not in what the notebooks hand on
        with atomic_write(_parameters_file(values["study"], stage).with_name("folder.txt")) as made:
            made.write_text(os.environ[FOLDER] + "\n", encoding="utf-8")
    with atomic_write(_parameters_file(values["study"], stage)) as made:
        made.write_text(
            json.dumps(stage_parameters(stage, values), indent=1, sort_keys=True), encoding="utf-8"
        )
    broken.unlink(missing_ok=True)
    # What the README's findings are rendered from stands beside the notebooks
    if stage == "figures":
        made = artifacts() / "studies" / values["study"]
        for file in (made / "verdicts.json", *(made / "figures" / figure for figure in FIGURES)):
            with atomic_write(folder / file.name) as copy:
                shutil.copy(file, copy)


def status(study: str) -> list[dict]:
    """A row per stage: its notebook, its runs done, running and in all, the seconds left.

    The notebook is executed, published (by others, not on this machine), failed, or not yet
    executed. The seconds are None where no run has ended yet.
    """
    from filelock import FileLock, Timeout

    values, rows = load_study(study), []
    folder, runs = artifacts() / "studies" / values["study"], artifacts() / "runs"
    for stage, name in NOTEBOOKS.items():
        if not (root() / "notebooks" / f"{name}.ipynb").is_file():
            continue
        executed = notebook_folder(values["study"])
        found = "executed" if executed != evidence_folder(values["study"]) else "published"
        there = (executed / f"{name}.ipynb").is_file()
        row = {
            "stage": stage,
            "notebook": found if there else "not yet",
            "runs": 0,
            "done": 0,
            "running": 0,
            "seconds_left": None,
        }
        if (folder / f"{stage}.failed").is_file():
            row["notebook"] = "failed: " + (folder / f"{stage}.failed").read_text().strip()
        if stage in RUN_STAGES and (folder / f"{stage}.json").is_file():
            try:
                keys = {
                    r["key"]
                    for r in json.loads(read_text(folder / f"{stage}.json", "a plan"))
                    if RUN_KEY.fullmatch(r["key"])
                }
            except (ValueError, TypeError, KeyError):
                rows.append(
                    row
                    | {
                        "notebook": f"{stage}.json is damaged: run `make {stage} "
                        f"STUDY={study}` again"
                    }
                )
                continue
            times = []
            for key in keys:
                row["runs"] += 1
                try:
                    metrics = json.loads((runs / key / "metrics.json").read_text())
                    row["done"] += 1
                    times.append(metrics["train_seconds"] + metrics["evaluate_seconds"])
                    continue
                except (OSError, ValueError, KeyError, TypeError):
                    pass
                try:
                    if (runs / f"{key}.lock").is_file():
                        FileLock(runs / f"{key}.lock").acquire(timeout=0).lock.release()
                except Timeout:
                    row["running"] += 1
            if times:
                row["seconds_left"] = sum(times) / len(times) * (row["runs"] - row["done"])
        rows.append(row)
    return rows


def run_study(study: str, stages: list[str] | None, executed: Path) -> None:
    """Check a study, then run its stages, None being all of them.

    Raises DataError before anything runs, or with what a notebook ended with.
    """
    values, started = load_study(study), time.time()
    stages = list(stages or all_parameters())
    for stage in stages:
        notebook_parameters(root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
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
    """Print `status`, a line per stage."""
    for row in status(study):
        left = "" if row["seconds_left"] is None else f", {row['seconds_left'] / 60:.1f} min left"
        runs = (
            f"  runs {row['done']}/{row['runs']} done, {row['running']} running{left}"
            if row["runs"]
            else ""
        )
        print(f"{row['stage']:10} {row['notebook']}{runs}")
