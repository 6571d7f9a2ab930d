"""Studies: one flat YAML each, checked against the notebooks before anything runs, then executed in sequence by papermill.

    python -m cotdistill.study run quick [--stages train evaluate] [--executed DIR]
    python -m cotdistill.study status quick
"""

import argparse
import ast
import json
import math
import os
import re
import reprlib
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import yaml

from cotdistill.data import DataError, disk_error, one_line, read_text
from cotdistill.files import part_of, sweep, whole

NOTEBOOKS = {"elicit": "01_elicit", "train": "02_train", "evaluate": "03_evaluate", "shuffle": "04_shuffle",
             "attribute": "05_attribute_and_mask", "figures": "06_figures"}
QUIET = "--IPKernelApp.log_level=50"  # for a kernel: its own notes are not the notebook's
RUN_STAGES = ("train", "shuffle", "attribute")  # the stages that make runs
RUN_KEY = re.compile("[0-9a-f]{64}")  # a run's folder is named by a SHA-256 and nothing else
LIMITS = {  # parameter -> lowest and highest value, found before anything runs; for all other numbers 0 and none
    **dict.fromkeys(("n_train", "n_test", "samples", "max_teacher_tokens", "teacher_batch_size", "concurrency", "max_length", "max_new_tokens",
                     "max_label_tokens", "eval_batch_size", "epochs", "batch_size", "grad_accum", "check_questions", "n_steps", "bootstrap"),
                    (1, math.inf)),
    **dict.fromkeys(("rationale_only", "label_seen", "two_step", "top_p", "max_failed", "warmup", "alpha", "mask_amounts: an item"), (0, 1)),
    "request_timeout": (1, math.inf), "n_options": (2, 5), "seeds: an item": (0, 2**32 - 1)}


def root() -> Path:
    """The repository, wherever a notebook or command was started from. $COTDISTILL_ROOT overrides it."""
    return Path(os.environ.get("COTDISTILL_ROOT") or Path(__file__).resolve().parents[1])


def notebook_parameters(path: Path) -> dict:
    """Name -> default of a notebook's `parameters` cell.

    papermill only warns when the cell or a parameter is missing; here both are errors. Raises DataError."""
    try:
        cells = json.loads(read_text(path, "a notebook"))["cells"]
        cells = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        source = "".join(cells[0]["source"]) if len(cells) == 1 else ""
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a notebook ({type(error).__name__}: {error}); expected JSON with cells") from None
    if len(cells) != 1:
        raise DataError(f"{path}: {len(cells)} cells tagged 'parameters'; expected exactly one")
    found, expected = {}, "expected only `name = value`"
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{path}: parameters cell, line {getattr(error, 'lineno', 1)}: not Python; {expected}") from None
    for node in body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise DataError(f"{path}: parameters cell, line {node.lineno}: {expected}")
        name = node.targets[0].id
        if name in found:
            raise DataError(f"{path}: parameters cell, line {node.lineno}: '{name}' stands there twice; expected each name once")
        try:
            found[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise DataError(f"{path}: parameters cell, line {node.lineno}: the value of '{name}' is no literal; {expected}") from None
    return found


def all_parameters() -> dict[str, dict]:
    """Stage -> parameters with defaults, of every notebook that is there."""
    folder = root() / "notebooks"
    return {stage: notebook_parameters(folder / f"{name}.ipynb") for stage, name in NOTEBOOKS.items()
            if (folder / f"{name}.ipynb").is_file()}


def check_value(key: str, value, default, where: str) -> None:
    """A study's value must have the type of the notebook's default. Raises DataError: one line, with the way out."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    wanted = type(default)
    fits = type(value) is wanted or wanted is float and type(value) is int
    if not fits:
        hint = ""
        if wanted in (float, int) and isinstance(value, str):
            hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else ""
        raise DataError(f"{where}: {key} is {reprlib.repr(value)} ({type(value).__name__}); expected {kinds[wanted]}, as in {default!r}{hint}")
    if wanted is list and default:
        for item in value:
            check_value(f"{key}: an item", item, default[0], where)
        twice = next((item for number, item in enumerate(value) if item in value[:number]), None)
        if twice is not None:
            raise DataError(f"{where}: {key} holds {twice!r} twice; expected each item once")
    if wanted in (int, float):
        low, high = LIMITS.get(key, (0, math.inf))
        if not (math.isfinite(value) and low <= value <= high):
            upper = f" to {high:g}" if high < math.inf else " on"
            raise DataError(f"{where}: {key} is {reprlib.repr(value)}; expected a number from {low:g}{upper}")


def check_name(name: str) -> str:
    """A study's name is part of file names: letters, digits, and . _ + - within; it can't lead out of the artifacts. Raises DataError."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name) or name == "claims":
        raise DataError(f"study name {reprlib.repr(name)}; expected a plain name, as in params/<name>.yaml: letters, digits, . _ + -")
    return name


def load_study(study: str) -> dict:
    """A study by name (params/<name>.yaml) or path -> its parameters, checked. Its own name is under "study".

    Raises DataError for a missing file, broken YAML, an unknown key, a nested key, or a wrong type."""
    if not study.endswith((".yaml", ".yml")):
        check_name(study)
    path = Path(study) if study.endswith((".yaml", ".yml")) else root() / "params" / f"{study}.yaml"
    known = ", ".join(sorted(p.stem for p in (root() / "params").glob("*.yaml") if p.stem != "claims"))
    if not path.is_file():
        raise DataError(f"{path}: no such study; expected a path to a YAML file or one of {known}")
    check_name(path.stem)
    text = read_text(path, "a YAML file of `key: value` lines")
    try:
        tree, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except Exception as error:  # besides YAMLError: ValueError for 2024-13-45, KeyError for `!!bool x`, RecursionError for [[[[…
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise DataError(f"{path}:{line}: not YAML ({getattr(error, 'problem', None) or error}); expected `key: value` lines") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise DataError(f"{path}: found {type(values).__name__}; expected `key: value` lines")
    written = [key.value for key, _ in tree.value] if tree else []
    if len(written) > len(values):
        twice = next((key for key in written if written.count(key) > 1), written[0])
        raise DataError(f"{path}: the key '{twice}' stands there twice; expected each key once")
    parameters = all_parameters()
    defaults = {key: value for stage in parameters.values() for key, value in stage.items()}
    for key, value in values.items():
        if key == "study":
            raise DataError(f"{path}: study is named by its file; expected no key 'study'")
        if key not in defaults:
            import difflib

            close = difflib.get_close_matches(str(key), defaults, 1)
            raise DataError(f"{path}: unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else
                            "; expected a parameter of one of the notebooks"))
        check_value(key, value, defaults[key], str(path))
    return {"study": path.stem, **values}


def start_kernel(imports: str = "cotdistill.attribute, cotdistill.runs, cotdistill.plots"):
    """A Jupyter kernel for a notebook that comes next: while another one computes, it starts and imports what takes seconds (torch,
    transformers). Its namespace stays empty, and it ends with this process at the latest."""
    from jupyter_client import AsyncKernelManager
    from jupyter_core.utils import run_sync

    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)(cwd=str(root()), extra_arguments=[
        QUIET, "--HistoryManager.hist_file=:memory:", f"--IPKernelApp.exec_lines=exec('import {imports}', {{}})"])
    return kernel


def stop_kernel(kernel) -> None:
    """End a kernel of `start_kernel`, whatever it is doing."""
    from jupyter_core.utils import run_sync

    run_sync(kernel.shutdown_kernel)(now=True)


def alive(kernel) -> bool:
    """Whether a kernel of `start_kernel` still runs: it may have been killed before its turn came."""
    from jupyter_core.utils import run_sync

    return run_sync(kernel.is_alive)()


def run_stages(stages: list[str], values: dict, executed: Path) -> None:
    """Execute notebook after notebook, each in a kernel of its own; the next one's starts meanwhile. Raises DataError, as `run_stage`."""
    ahead = None
    try:
        for number, stage in enumerate(stages, 1):
            mine, ahead = ahead, None
            try:
                with suppress(Exception):  # where none can be started, papermill says why when it comes to it
                    ahead = start_kernel() if number < len(stages) else None
                run_stage(stage, values, executed, mine)
            finally:
                if mine:
                    stop_kernel(mine)
    finally:
        if ahead:
            stop_kernel(ahead)


def run_stage(stage: str, values: dict, executed: Path, kernel=None) -> None:
    """Execute one notebook with the study's values; the result replaces the old one only when it is whole. kernel: one of
    `start_kernel`; None, or one that died meanwhile: papermill starts its own.

    Raises DataError: what the notebook ended with, in one line; a failed write (OSError) names the folder and the way out."""
    import papermill

    name, folder = NOTEBOOKS[stage], executed / values["study"]
    source, part = root() / "notebooks" / f"{name}.ipynb", part_of(folder / f".{name}", ".ipynb")
    broken = folder / f".{name}.part.ipynb"  # of a run that ended in an error, to be looked at
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, artifacts() / "studies" / values["study"], artifacts() / "runs"):
        sweep(place)
    mine = {key: value for key, value in values.items() if key in notebook_parameters(source)}
    failed = artifacts() / "studies" / values["study"] / f"{stage}.failed"
    failed.unlink(missing_ok=True)
    print(f"== {name} ({values['study']})", flush=True)
    started = time.time()
    given = {"km": kernel} if kernel and alive(kernel) else {"extra_arguments": [QUIET]}
    try:
        papermill.execute_notebook(str(source), str(part), parameters=mine, kernel_name="python3", progress_bar=False,
                                   cwd=str(root()), stdout_file=sys.stdout, stderr_file=sys.stderr, start_timeout=600,
                                   iopub_timeout=120, **given)  # a busy machine is no dead kernel: the defaults are 60 s and 4 s
    except Exception as error:
        kind, said = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
        if kind == "DeadKernelError" or "Kernel died" in said:
            kind, said = "DeadKernelError", "the kernel was killed (out of memory?); run the same command again: what is whole is kept"
        full = None if kind in ("DataError", "TeacherError") else disk_error(said, artifacts())
        reason = f"{kind}: {one_line(said.strip().splitlines()[0] if said.strip() else '')}" if full is None else f"DataError: {full}"
        try:
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(reason + "\n", encoding="utf-8")
        except OSError:  # the disk that stopped the notebook: the message below says it
            pass
        if part.is_file():
            os.replace(part, broken)
        raise DataError(f"{name}: {reason} (the notebook up to the error: {broken})") from None
    tidy(part, seconds=time.time() - started)
    os.replace(part, folder / f"{name}.ipynb")
    with whole(_parameters_file(values["study"], stage)) as made:
        made.write_text(json.dumps(stage_parameters(stage, values), indent=1, sort_keys=True), encoding="utf-8")
    broken.unlink(missing_ok=True)
    if stage == "figures":  # what the README's findings are rendered from stands beside the notebooks
        made = artifacts() / "studies" / values["study"]
        for file in (made / "verdicts.json", made / "figures" / "forest.png", made / "figures" / "placement.png"):
            with whole(folder / file.name) as copy:
                shutil.copy(file, copy)


def stage_parameters(stage: str, values: dict) -> dict:
    """All parameters of a stage's notebook: its defaults, and the study's values in their places."""
    defaults = notebook_parameters(root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
    return defaults | {key: value for key, value in values.items() if key in defaults}


def _parameters_file(study: str, stage: str) -> Path:
    return artifacts() / "studies" / study / f"{stage}.parameters.json"


def check_made_with(values: dict, stages: list[str], where: str) -> None:
    """Notebooks 1 and 2 fix the data, the student and the training for all that follow. Where they are not among `stages`, their last
    run must have been with the parameters that the study has now. Raises DataError naming the first that was changed since."""
    order = list(NOTEBOOKS)
    for stage in ("elicit", "train"):
        if stage in stages or stage not in order[:max(map(order.index, stages))]:
            continue
        try:
            made = json.loads(_parameters_file(values["study"], stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not run yet, or by an older version: the notebooks say what they lack
            continue
        for key, now in sorted(stage_parameters(stage, values).items()):
            if made.get(key, now) != now:
                raise DataError(f"{where}: {key} is {reprlib.repr(now)}, but stage {stage} was last run with {reprlib.repr(made[key])}; expected "
                                f"one setting in all stages: run `make {stage} STUDY={where}` again, and the stages after it")


def tidy(path: Path, seconds: float) -> None:
    """Make an executed notebook fit to commit: no widget state, no absolute paths, stream output in one piece, no times
    per cell; the wall time of the whole stays."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    about = notebook["metadata"].pop("papermill", {})
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"]["cotdistill"] = {"parameters": about.get("parameters", {}), "seconds": round(seconds, 1)}
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        merged = []
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":  # a warning names the file it comes from
                text = "".join(output["text"]).replace(f"{root()}/", "")
                output["text"] = re.sub(r"/\S*/(?=site-packages/)", "", text)
            if output.get("metadata"):
                output["metadata"] = {}
            if merged and output["output_type"] == "stream" == merged[-1]["output_type"] and output["name"] == merged[-1]["name"]:
                merged[-1]["text"] = "".join(merged[-1]["text"]) + "".join(output["text"])
            else:
                merged.append(output)
        if "outputs" in cell:
            cell["outputs"] = merged
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def artifacts() -> Path:
    """Where everything computed goes: $COTDISTILL_ARTIFACTS, else artifacts/ in the repository."""
    return Path(os.environ.get("COTDISTILL_ARTIFACTS") or root() / "artifacts")


def status(study: str) -> list[dict]:
    """A row per stage: notebook done, failed or not yet; runs done, running and still to do; seconds left, where known."""
    from filelock import FileLock, Timeout

    values, rows = load_study(study), []
    folder, runs = artifacts() / "studies" / values["study"], artifacts() / "runs"
    for stage, name in NOTEBOOKS.items():
        if not (root() / "notebooks" / f"{name}.ipynb").is_file():
            continue
        executed = [e / values["study"] / f"{name}.ipynb" for e in (root() / "notebooks" / "executed", artifacts() / "executed")]
        row = {"stage": stage, "notebook": "executed" if any(map(Path.is_file, executed)) else "not yet",
               "runs": 0, "done": 0, "running": 0, "seconds_left": None}
        if (folder / f"{stage}.failed").is_file():
            row["notebook"] = "failed: " + (folder / f"{stage}.failed").read_text().strip()
        if stage in RUN_STAGES and (folder / f"{stage}.json").is_file():
            try:
                keys = {r["key"] for r in json.loads(read_text(folder / f"{stage}.json", "a plan")) if RUN_KEY.fullmatch(r["key"])}
            except (ValueError, TypeError, KeyError):
                rows.append(row | {"notebook": f"{stage}.json is damaged: run `make {stage} STUDY={study}` again"})
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


def main(arguments: list[str] | None = None) -> int:
    """Run stages or show their status; 0, or 1 after one line that says what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m cotdistill.study", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("study")
    run.add_argument("--stages", nargs="+", choices=list(NOTEBOOKS), default=None)
    run.add_argument("--executed", default=None)
    commands.add_parser("status").add_argument("study")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "status":
            for row in status(chosen.study):
                left = "" if row["seconds_left"] is None else f", {row['seconds_left'] / 60:.1f} min left"
                runs = f"  runs {row['done']}/{row['runs']} done, {row['running']} running{left}" if row["runs"] else ""
                print(f"{row['stage']:10} {row['notebook']}{runs}")
            return 0
        values, started = load_study(chosen.study), time.time()
        there = all_parameters()
        executed = root() / (chosen.executed or "notebooks/executed")
        for stage in chosen.stages or there:
            notebook_parameters(root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
        check_made_with(values, list(chosen.stages or there), chosen.study)
        run_stages(list(chosen.stages or there), values, executed)
        print(f"study {values['study']}: done in {(time.time() - started) / 60:.1f} minutes; notebooks in "
              f"{os.path.relpath(executed / values['study'])}", flush=True)
        return 0
    except (DataError, OSError) as error:
        print(f"error: {disk_error(error, artifacts()) or one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
