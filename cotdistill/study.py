"""Studies: one flat YAML each, checked against the notebooks before anything runs, then executed in sequence by papermill.

    python -m cotdistill.study run quick [--stages train evaluate] [--executed DIR]
    python -m cotdistill.study status quick
    python -m cotdistill.study publish quick [--stages elicit]
    python -m cotdistill.study new my --data path/to/folder

What is executed goes to artifacts/executed/<study>/. The committed evidence in
notebooks/executed/<study>/ changes by `publish` only.
"""

import argparse
import ast
import html
import json
import math
import os
import re
import reprlib
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import yaml

from cotdistill.data import DataError, disk_error, one_line, read_text
from cotdistill.files import part_of, sweep, whole

NOTEBOOKS = {"elicit": "01_elicit", "train": "02_train", "evaluate": "03_evaluate", "shuffle": "04_shuffle",
             "attribute": "05_attribute_and_mask", "figures": "06_figures"}
QUIET = "--IPKernelApp.log_level=50"  # for a kernel: its own notes are not the notebook's
INJECTED = "injected-parameters"  # papermill's tag of the cell with a study's values; its id too
FIGURES = ("forest.png", "placement.png")  # of stage figures, shown beside the notebooks
# Of a study that names none: the notebooks' own default is a random one, for `make smoke`.
DEFAULT_STUDENT = "smollm2-135m"
# The folder of the study's YAML, for the kernels: paths are looked for there first.
FOLDER = "COTDISTILL_STUDY_FOLDER"
RUN_STAGES = ("train", "shuffle", "attribute")  # the stages that make runs
BUILT_IN = ("smollm2-135m", "gemma-3-270m", "tiny-llama", "tiny-gpt2", "tiny-phi", "tiny-gemma")  # students.BUNDLED and TINY
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


def places() -> list[Path]:
    """Where a relative path of a study is looked for: beside its YAML, then in the repository."""
    return [*map(Path, filter(None, [os.environ.get(FOLDER)])), root()]


def study_path(study: str) -> Path:
    """The YAML of a study given by name or by path."""
    return Path(study) if study.endswith((".yaml", ".yml")) else root() / "params" / f"{study}.yaml"


def enter_study(study: str, again: bool = True) -> None:
    """Look for relative paths beside this study's YAML first, in this process and its kernels.

    The folder is kept in the artifacts, so that what is asked later by the study's name alone finds
    its data. again=False: only where no study was entered before."""
    path = study_path(study)
    note = artifacts() / "studies" / path.stem / "folder.txt"
    if not again and os.environ.get(FOLDER):
        return
    if not path.is_file() and note.is_file():
        os.environ[FOLDER] = note.read_text(encoding="utf-8").strip()
    elif path.is_file():
        os.environ[FOLDER] = str(path.resolve().parent)


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
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name) or name in ("claims", "benchmark"):
        raise DataError(f"study name {reprlib.repr(name)}; expected a plain name, as in params/<name>.yaml: letters, digits, . _ + -")
    return name


def check_own_name(path: Path) -> None:
    """An own study file must not have the name of one in params/.

    Results and evidence are filed under that name and would replace the shipped study's. Upper and
    lower case count as equal: on some disks they are. Raises DataError naming both files."""
    for shipped in sorted((root() / "params").glob("*.yaml")):
        same_name = shipped.stem.casefold() == path.stem.casefold()
        if same_name and not shipped.samefile(path):
            raise DataError(
                f"{path}: the study '{shipped.stem}' is already {shipped}, and results are "
                "filed under the file's name; expected another file name"
            )


def load_study(study: str) -> dict:
    """A study by name (params/<name>.yaml) or path -> its parameters, checked. Its own name is under "study".

    A study that names no student gets `DEFAULT_STUDENT`. Raises DataError, as `read_study`."""
    values = read_study(study)
    return {"study": study_path(study).stem, "student": DEFAULT_STUDENT, **values}


def default_note(study: str) -> str:
    """One line on what a study takes because it names no student; empty where it names one."""
    values = read_study(study)
    if "student" in values:
        return ""
    seeds = (
        ""
        if "seeds" in values
        else "; it names no seeds either: one run per arm, which decides nothing"
    )
    return (
        f"{study} names no student: the bundled {DEFAULT_STUDENT} is trained (`student: ...` names "
        f"another){seeds}"
    )


def read_study(study: str) -> dict:
    """What stands in a study's YAML, checked against the notebooks' parameters.

    Raises DataError for a missing file, broken YAML, an unknown key, a nested key, or a wrong type."""
    if not study.endswith((".yaml", ".yml")):
        check_name(study)
    path = study_path(study)
    known = ", ".join(sorted(p.stem for p in (root() / "params").glob("*.yaml") if p.stem != "claims"))
    if not path.is_file():
        raise DataError(f"{path}: no such study; expected a path to a YAML file or one of {known}")
    check_name(path.stem)
    check_own_name(path)
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
    return values


def make_kernel():
    """A Jupyter kernel that is not started yet: this Python, and nothing of the user's.

    A kernelspec that somebody installed under the name python3 is not looked at. The kernel's
    IPython folder is a new and empty one, so no start-up file and no profile of the user runs in
    it; packages in ~/.local stay out; progress bars are off, for in an executed notebook they would
    be widgets. `stop_kernel` ends the kernel and deletes that folder."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    isolated = {
        "IPYTHONDIR": tempfile.mkdtemp(prefix="cotdistill-ipython-"),
        "PYTHONSTARTUP": "",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env=isolated,
    )

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return spec

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())


def start_kernel(imports: str = "cotdistill.attribute, cotdistill.runs, cotdistill.plots"):
    """A Jupyter kernel for a notebook that comes next: while another one computes, it starts and imports what takes seconds (torch,
    transformers). Its namespace stays empty, and it ends with this process at the latest."""
    from jupyter_core.utils import run_sync

    kernel = make_kernel()
    try:
        run_sync(kernel.start_kernel)(
            cwd=str(root()),
            extra_arguments=[
                QUIET,
                "--HistoryManager.hist_file=:memory:",
                f"--IPKernelApp.exec_lines=exec('import {imports}', {{}})",
            ],
        )
    except BaseException:
        stop_kernel(kernel)
        raise
    return kernel


def stop_kernel(kernel) -> None:
    """End a kernel of `start_kernel` or `make_kernel`, and delete its IPython folder.

    Whatever it is doing, it is killed; one that was never started or has ended is no error."""
    from jupyter_core.utils import run_sync

    if kernel.has_kernel:
        run_sync(kernel.shutdown_kernel)(now=True)
    shutil.rmtree(kernel.kernel_spec.env["IPYTHONDIR"], ignore_errors=True)


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
    started and stopped. After Ctrl-C no part is left. Raises what papermill raises."""
    import papermill

    own = kernel if kernel and alive(kernel) else make_kernel()
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

    A killed kernel and a full disk say the way out."""
    kind, said = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
    if kind == "DeadKernelError" or "Kernel died" in said:
        return ("DeadKernelError: the kernel was killed (out of memory?); run the same command again: "
                "what is whole is kept")
    full = None if kind in ("DataError", "TeacherError") else disk_error(said, artifacts())
    if full is not None:
        return f"DataError: {full}"
    return f"{kind}: {one_line(said.strip().splitlines()[0] if said.strip() else '')}"


def run_stage(stage: str, values: dict, executed: Path, kernel=None) -> None:
    """Execute one notebook with the study's values; a whole result replaces the old one.

    kernel: as `execute_notebook` takes it. Raises DataError: what the notebook ended with, in one
    line; a failed write (OSError) names the folder and the way out."""
    name, folder = NOTEBOOKS[stage], executed / values["study"]
    source = root() / "notebooks" / f"{name}.ipynb"
    part = part_of(folder / f".{name}", ".ipynb")
    broken = folder / f".{name}.part.ipynb"  # of a run that ended in an error, to be looked at
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, artifacts() / "studies" / values["study"], artifacts() / "runs"):
        sweep(place)
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
                tidy(part, seconds=time.time() - started)
            os.replace(part, broken)
        raise DataError(f"{name}: {reason} (the notebook up to the error: {broken})") from None
    tidy(part, seconds=time.time() - started)
    os.replace(part, folder / f"{name}.ipynb")
    if os.environ.get(FOLDER):  # of this machine, and so not in what the notebooks hand on
        with whole(_parameters_file(values["study"], stage).with_name("folder.txt")) as made:
            made.write_text(os.environ[FOLDER] + "\n", encoding="utf-8")
    with whole(_parameters_file(values["study"], stage)) as made:
        made.write_text(
            json.dumps(stage_parameters(stage, values), indent=1, sort_keys=True), encoding="utf-8"
        )
    broken.unlink(missing_ok=True)
    if stage == "figures":  # what the README's findings are rendered from stands beside the notebooks
        made = artifacts() / "studies" / values["study"]
        for file in (made / "verdicts.json", *(made / "figures" / figure for figure in FIGURES)):
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


def check_training_dtype(dtype: str) -> None:
    """float16 weights can't be trained here: without loss scaling their updates vanish or overflow (losses of 6.8 to 124 were seen).
    Raises DataError."""
    if dtype == "float16":
        raise DataError("dtype is 'float16', in which training diverges; expected auto (float32 weights), float32 or bfloat16")


def all_values(values: dict) -> dict:
    """Every parameter of a study: the notebooks' defaults, and the study's values in their places."""
    return {key: value for stage in all_parameters().values() for key, value in stage.items()} | values


def check_demands(values: dict, stages: list[str]) -> None:
    """What each of the stages asks of a study's settings, found before the first one runs. Needs neither data nor student; what does
    is checked by `check_student`, and where each notebook begins. Raises DataError naming the key, the stage that needs it and the way out."""
    v = all_values(values)
    later = [stage for stage in NOTEBOOKS if stage != "elicit" and stage in stages]
    if "train" in later:
        check_training_dtype(v["dtype"])
    world = v["dataset"].partition("/")[0] == "microworld"
    tested = v["test_size"] or (v["n_test"] if world else 2)
    if later and tested < 2:
        key = "test_size" if v["test_size"] else "n_test"
        raise DataError(f"{key} is {tested}; expected at least 2 test questions: an interval needs them (stage {later[0]})")
    units = v["shuffle_units"] and v["shuffle_placements"]
    if "shuffle" in later and not units and not (any(v["controls"]) and v["control_placements"]):
        raise DataError("shuffle_units and controls are empty (or their placements), so stage shuffle has no arm to run; expected one "
                        "of them, or --stages without shuffle")
    if "attribute" in later:
        check_attribution(v)


def check_attribution(v: dict) -> None:
    """What notebook 5 asks of all values of a study (`all_values`). Raises DataError."""
    if v["attribution_model"] not in ("pre_cot", "undistilled"):
        raise DataError(f"attribution_model '{v['attribution_model']}'; expected pre_cot or undistilled")
    if v["attribution_model"] == "pre_cot":
        fault = "arms has no pre_cot" if "pre_cot" not in v["arms"] else "keep_weights is false" if not v["keep_weights"] else ""
        if fault:
            raise DataError(f"{fault}, but attribution_model is pre_cot: stage attribute needs that student's weights; expected pre_cot "
                            "among the arms and keep_weights true, or attribution_model: undistilled")
    if not v["check_methods"]:
        raise DataError("check_methods is empty; expected at least one method (stage attribute)")
    keeps, masks = v["keep_amounts"] and v["selectors"], v["mask_amounts"] and v["mask_orders"] and v["mask_placements"]
    if not keeps and not masks:
        raise DataError("keep_amounts and mask_amounts are empty (or selectors, mask_orders, mask_placements), so stage attribute has "
                        "no arm to run; expected one of them, or --stages without attribute")


def check_student(values: dict, stages: list[str]) -> None:
    """Load the study's student in a process of its own, so that its memory is free again, and try it, before rationales are asked for:
    only where stage elicit is followed by others (else the first notebook does it), and not for the students that come with this
    package. Raises DataError: what is wrong with it, in one line."""
    v = all_values(values)
    if "elicit" not in stages or len(stages) == 1 or v["student"] in BUILT_IN:
        return
    needs_offsets = bool({"shuffle", "attribute"} & set(stages))
    code = ("import json, sys; from cotdistill.runs import try_student; "
            "sys.exit(try_student(**json.loads(sys.argv[1])))")
    asked = {"name": v["student"], "device": v["device"], "dtype": v["dtype"], "needs_offsets": needs_offsets}
    print(f"student {v['student']}: loaded and tried before the first stage runs", flush=True)
    done = subprocess.run([sys.executable, "-c", code, json.dumps(asked)], cwd=root(), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root()), *filter(None, sys.path)])})
    if done.returncode:
        said = (done.stderr.strip() or f"the check of student '{v['student']}' was killed (out of memory?)").splitlines()[-1]
        raise DataError(said.removeprefix("error: "))


def tidy(path: Path, seconds: float) -> None:
    """Make an executed notebook fit to publish; two executions that say the same are then equal.

    No widgets, no paths of this machine, stream output in one piece, one id for the cell that
    papermill puts in (its own is random), no times per cell. Only the wall time of the whole stays,
    in seconds. Raises ValueError for what is no JSON."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    about = notebook["metadata"].pop("papermill", {})
    notebook["metadata"].pop("widgets", None)
    notebook["metadata"]["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook["metadata"]["cotdistill"] = {
        "parameters": about.get("parameters", {}),
        "seconds": round(seconds, 1),
    }
    places = find_places()
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k == "tags"}
        if INJECTED in cell["metadata"].get("tags", []):
            cell["id"] = INJECTED
        if "outputs" in cell:
            cell["outputs"] = [
                clean_output(output, places) for output in merge_streams(cell["outputs"])
            ]
    with whole(path) as made:
        made.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge_streams(outputs: list[dict]) -> list[dict]:
    """A cell's outputs without widgets, neighbours of one stream joined.

    A line that was printed once may come in several messages, and a path cut in two is not found.
    """
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if any(
            kind.startswith("application/vnd.jupyter.widget") for kind in output.get("data", {})
        ):
            continue
        if (
            output["output_type"] == "stream" == last.get("output_type")
            and output["name"] == last["name"]
        ):
            last["text"] += "".join(output["text"])
        else:
            merged.append(
                output
                | ({"text": "".join(output["text"])} if output["output_type"] == "stream" else {})
            )
    return merged


def clean_output(output: dict, places: list[tuple[re.Pattern, str]]) -> dict:
    """An output without the machine's paths: stream, display, result or error.

    Images stay as they are."""
    cleaned = dict(output)
    for field in ("text", "ename", "evalue", "traceback"):
        if field in cleaned:
            cleaned[field] = clean_paths(cleaned[field], places)
    if "data" in cleaned:
        cleaned["data"] = {
            kind: value
            if kind.startswith("image/") and kind != "image/svg+xml"
            else clean_paths(value, places)
            for kind, value in cleaned["data"].items()
        }
    if cleaned.get("metadata"):
        cleaned["metadata"] = {}
    return cleaned


def clean_paths(value, places: list[tuple[re.Pattern, str]]):
    """A text, or the texts of a list or mapping, with paths named as `find_places` says."""
    if isinstance(value, list):
        return [clean_paths(item, places) for item in value]
    if isinstance(value, dict):
        return {key: clean_paths(item, places) for key, item in value.items()}
    if isinstance(value, str):
        for pattern, name in places:
            value = pattern.sub(name, value)
    return value


def find_places() -> list[tuple[re.Pattern, str]]:
    """What an executed notebook calls the places of this machine: (pattern, name) in their order.

    The repository is where its paths start, the artifacts are `artifacts` and the cache is
    ~/.cache/cotdistill wherever they lie, the home folder is ~; of the environment's own files the
    part from site-packages or lib on is kept. A path is found as it is, resolved, and as HTML, JSON
    and URLs write it, the longest first."""
    home, paths = Path.home(), sysconfig.get_paths()
    named = {
        paths["purelib"]: "site-packages",
        paths["stdlib"]: f"lib/{Path(paths['stdlib']).name}",
        artifacts(): "artifacts",
        os.environ.get("COTDISTILL_CACHE") or home / ".cache" / "cotdistill": "~/.cache/cotdistill",
        root(): "",
        os.environ.get("HF_HOME") or home / ".cache" / "huggingface": "~/.cache/huggingface",
        home: "~",
        tempfile.gettempdir(): "tmp",
        "/tmp": "tmp",
        "/var/tmp": "tmp",
    }
    if sys.prefix != sys.base_prefix:  # without an environment it is /usr
        named[sys.prefix] = ".venv"
    spelled = {}
    for place, name in named.items():
        absolute = Path(os.path.abspath(place))
        for path in (str(absolute), str(absolute.resolve())):
            if len(path) > 1:  # a home folder that is "/" has no name of its own
                for form in (path, html.escape(path), json.dumps(path)[1:-1], quote(path)):
                    spelled.setdefault(form, name)
    before = r"(?:(?<![\w.~/-])|(?<=file://)|(?<=\dm))"  # the last: a colour of a traceback
    places = [
        (re.compile(r"[^\s\"'<>]*/ipykernel_\d+/(?=\d+\.py)"), "cell ")
    ]  # a cell's source, under the kernel's number
    for path, name in sorted(spelled.items(), key=lambda item: -len(item[0])):
        whole_path = before + re.escape(path)
        if not name:
            places.append((re.compile(whole_path + r"/(?=[\w.-])"), ""))
        places.append((re.compile(whole_path + r"(?![\w-])"), name or "."))
    places.append(
        (re.compile(r"(?<![\w.])~?/[^\s\"'<>]*/(?=site-packages/)"), "")
    )  # of another environment
    return places


def artifacts() -> Path:
    """Where everything computed goes: $COTDISTILL_ARTIFACTS, else artifacts/ in the repository."""
    return Path(os.environ.get("COTDISTILL_ARTIFACTS") or root() / "artifacts")


def notebook_folder(study: str) -> Path:
    """Where a study's executed notebooks are read: the user's own, else the published ones."""
    own = artifacts() / "executed" / study
    return own if any(own.glob("[0-9]*.ipynb")) else evidence_folder(study)


def evidence_folder(study: str) -> Path:
    """A study's committed evidence; only `publish` writes there."""
    return root() / "notebooks" / "executed" / study


def check_copy(path: Path, source: Path, values: dict, again: str) -> None:
    """An executed notebook must be whole, and of the source and the values as they are now.

    again: the command that makes it so. Raises DataError: one line that says what differs."""
    if not path.is_file():
        raise DataError(f"{path}: not executed yet; run {again}")
    try:
        ran, now = (json.loads(read_text(file, "a notebook")) for file in (path, source))
        cells = [cell for cell in ran["cells"] if INJECTED not in cell["metadata"].get("tags", [])]
        texts = [["".join(cell["source"]) for cell in some] for some in (cells, now["cells"])]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
        failed = any(
            output["output_type"] == "error" for cell in code for output in cell["outputs"]
        )
        ended = all(cell["execution_count"] for cell in code) and not failed
        made = ran["metadata"]["cotdistill"]["parameters"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not an executed notebook ({type(error).__name__}: {error}); run {again}"
        ) from None
    if texts[0] != texts[1]:
        raise DataError(
            f"{path}: executed with other cells than {os.path.relpath(source, root())} has now; "
            f"run {again}"
        )
    if not ended:
        raise DataError(f"{path}: it was not executed to its end; run {again}")
    for key in sorted(made.keys() | values.keys()):
        if key not in made or key not in values or made[key] != values[key]:
            was, now = (
                reprlib.repr(some[key]) if key in some else "the default" for some in (made, values)
            )
            raise DataError(f"{path}: executed with {key} {was}, which is {now} now; run {again}")


def find_evidence(study: str, stages: list[str] | None) -> list[Path]:
    """The files that `publish` copies: executed notebooks of these stages, None being all of them.

    With stage figures, its verdicts and two figures go along; costs.json does where it is there.
    Raises DataError where a stage is missing, failed, or was executed with other values or code
    than now."""
    values = load_study(study)
    name = values["study"]
    folder, there = artifacts() / "executed" / name, stages or list(NOTEBOOKS)
    files = []
    for stage in there:
        source, again = (
            root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb",
            f"`make {stage} STUDY={study}`",
        )
        failed = artifacts() / "studies" / name / f"{stage}.failed"
        if failed.is_file():
            raise DataError(f"{failed}: stage {stage} failed when it was last run; run {again}")
        known = notebook_parameters(source)
        files.append(folder / source.name)
        if not files[-1].is_file() and not stages:
            again += f', or publish a part: `make publish STUDY="{study} --stages elicit …"`'
        check_copy(
            files[-1], source, {key: value for key, value in values.items() if key in known}, again
        )
    if "figures" in there:
        files += [folder / file for file in ("verdicts.json", *FIGURES)]
        missing = next((file for file in files if not file.is_file()), None)
        if missing:
            raise DataError(f"{missing}: no such file; run `make figures STUDY={study}`")
    return files + [file for file in (folder / "costs.json",) if file.is_file()]


def find_benchmark() -> list[Path]:
    """The executed benchmark, alone. Raises DataError where it is not as it would be now."""
    source, path = (
        root() / "notebooks" / "benchmark.ipynb",
        artifacts() / "executed" / "benchmark" / "benchmark.ipynb",
    )
    check_copy(
        path,
        source,
        yaml.safe_load(read_text(source.with_suffix(".yaml"), "a YAML file")),
        "`make bench`",
    )
    return [path]


def publish(study: str, stages: list[str] | None = None) -> Path:
    """Make a study's executed notebooks its committed evidence, whole or not at all.

    notebooks/executed/<study>/ then holds these files and nothing older, but for costs.json, which
    few studies make. study: a name or a path, or "benchmark". Raises DataError as `find_evidence`
    does, and where a published notebook would be lost. Returns that folder."""
    files = find_benchmark() if study == "benchmark" else find_evidence(study, stages)
    target = evidence_folder(files[0].parent.name)
    lost = sorted({path.name for path in target.glob("*.ipynb")} - {path.name for path in files})
    if lost:
        raise DataError(
            f"{target}: {lost[0]} is published too; expected all of its stages at once, "
            "so that they go together"
        )
    part, old = part_of(target), part_of(target.with_name(f"{target.name}.old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    try:
        part.mkdir()
        for file in files:
            shutil.copyfile(file, part / file.name)
        if (target / "costs.json").is_file() and not (part / "costs.json").is_file():
            shutil.copyfile(target / "costs.json", part / "costs.json")
        if target.is_dir():
            os.rename(target, old)
        try:
            os.rename(part, target)
        except BaseException:
            if old.is_dir():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target


def status(study: str) -> list[dict]:
    """A row per stage: its notebook, its runs done, running and in all, the seconds left.

    The notebook is executed, published (by others, not on this machine), failed, or not yet
    executed. The seconds are None where no run has ended yet."""
    from filelock import FileLock, Timeout

    values, rows = load_study(study), []
    folder, runs = artifacts() / "studies" / values["study"], artifacts() / "runs"
    for stage, name in NOTEBOOKS.items():
        if not (root() / "notebooks" / f"{name}.ipynb").is_file():
            continue
        executed = notebook_folder(values["study"])
        found = "executed" if executed != evidence_folder(values["study"]) else "published"
        there = (executed / f"{name}.ipynb").is_file()
        row = {"stage": stage, "notebook": found if there else "not yet",
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


@contextmanager
def interrupt_once():
    """While open, the first Ctrl-C interrupts and further ones are ignored.

    A kernel is stopped in a moment; one that isn't stopped is an orphan. Outside the main thread,
    and where Ctrl-C is ignored already, nothing changes."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_study(study: str, stages: list[str] | None, executed: Path) -> None:
    """Check a study, then run its stages, None being all of them.

    Raises DataError before anything runs, or with what a notebook ended with."""
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
        f"study {values['study']}: done in {(time.time() - started) / 60:.1f} minutes; notebooks in "
        f"{os.path.relpath(executed / values['study'])}",
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


def main(arguments: list[str] | None = None) -> int:
    """Run a study's stages, show their status, or publish them.

    Returns 0; 1 after one line that says what went wrong; 130 after Ctrl-C and one line."""
    parser = argparse.ArgumentParser(
        prog="python -m cotdistill.study", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run, asked = commands.add_parser("run"), commands.add_parser("publish")
    for command in (run, asked):
        command.add_argument("study")
        command.add_argument("--stages", nargs="+", choices=list(NOTEBOOKS), default=None)
    run.add_argument(
        "--executed",
        default=None,
        help="folder of the executed notebooks, from the repository's root on",
    )
    commands.add_parser("status").add_argument("study")
    new = commands.add_parser("new")
    new.add_argument("study")
    new.add_argument("--data", required=True)
    new.add_argument("--student", default=DEFAULT_STUDENT)
    chosen = parser.parse_args(arguments)
    try:
        with interrupt_once():
            if chosen.command == "status":
                show_status(chosen.study)
            elif chosen.command == "publish":
                made = os.path.relpath(publish(chosen.study, chosen.stages))
                print(f"published in {made}; `git status` shows what changed")
            elif chosen.command == "new":
                from cotdistill.keys import new_study  # which imports this module, and torch

                path = os.path.relpath(new_study(chosen.study, chosen.data, chosen.student))
                print(f"{path}: written; read it, then run `make reproduce STUDY={chosen.study}`")
            else:
                run_study(
                    chosen.study,
                    chosen.stages,
                    root() / chosen.executed if chosen.executed else artifacts() / "executed",
                )
        return 0
    except KeyboardInterrupt:
        print(
            "stopped: finished notebooks, runs and answers are kept, "
            "and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except (DataError, OSError) as error:
        print(f"error: {disk_error(error, artifacts()) or one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
