"""A study's YAML, checked against the notebooks' `parameters` cells before anything runs."""

import ast
import json
import math
import os
import reprlib
import subprocess
import sys
from pathlib import Path

import yaml

from cotdistill.errors import DataError
from cotdistill.files import read_text
from cotdistill.paths import NOTEBOOKS, artifacts, check_name, root, study_path

# Of a study that names none: the notebooks' own default is a random one, for `make smoke`.
DEFAULT_STUDENT = "smollm2-135m"
# students.BUNDLED and TINY
BUILT_IN = ("smollm2-135m", "gemma-3-270m", "tiny-llama", "tiny-gpt2", "tiny-phi", "tiny-gemma")
# Parameter -> lowest and highest value, found before anything runs; for all other numbers 0 and
# none
LIMITS = {
    **dict.fromkeys(
        (
            "n_train",
            "n_test",
            "samples",
            "max_teacher_tokens",
            "teacher_batch_size",
            "concurrency",
            "max_length",
            "max_new_tokens",
            "max_label_tokens",
            "eval_batch_size",
            "epochs",
            "batch_size",
            "grad_accum",
            "check_questions",
            "n_steps",
            "bootstrap",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(
        (
            "rationale_only",
            "label_seen",
            "two_step",
            "top_p",
            "max_failed",
            "warmup",
            "alpha",
            "mask_amounts: an item",
        ),
        (0, 1),
    ),
    "request_timeout": (1, math.inf),
    "n_options": (2, 5),
    "seeds: an item": (0, 2**32 - 1),
}


def notebook_parameters(path: Path) -> dict:
    """Name -> default of a notebook's `parameters` cell.

    papermill only warns when the cell or a parameter is missing; here both are errors. Raises
    DataError.
    """
    try:
        cells = json.loads(read_text(path, "a notebook"))["cells"]
        cells = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        source = "".join(cells[0]["source"]) if len(cells) == 1 else ""
    except DataError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not a notebook ({type(error).__name__}: {error}); expected JSON with cells"
        ) from None
    if len(cells) != 1:
        raise DataError(f"{path}: {len(cells)} cells tagged 'parameters'; expected exactly one")
    found, expected = {}, "expected only `name = value`"
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: parameters cell, line {getattr(error, 'lineno', 1)}: not Python; {expected}"
        ) from None
    for node in body:
        if not (
            isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
        ):
            raise DataError(f"{path}: parameters cell, line {node.lineno}: {expected}")
        name = node.targets[0].id
        if name in found:
            raise DataError(
                f"{path}: parameters cell, line {node.lineno}: '{name}' stands there twice; "
                "expected each name once"
            )
        try:
            found[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise DataError(
                f"{path}: parameters cell, line {node.lineno}: the value of '{name}' is no "
                f"literal; {expected}"
            ) from None
    return found


def all_parameters() -> dict[str, dict]:
    """Stage -> parameters with defaults, of every notebook that is there."""
    folder = root() / "notebooks"
    return {
        stage: notebook_parameters(folder / f"{name}.ipynb")
        for stage, name in NOTEBOOKS.items()
        if (folder / f"{name}.ipynb").is_file()
    }


def check_value(key: str, value, default, where: str) -> None:
    """A study's value must have the type of the notebook's default.

    Raises DataError: one line, with the way out.
    """
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    wanted = type(default)
    fits = type(value) is wanted or wanted is float and type(value) is int
    if not fits:
        hint = ""
        if wanted in (float, int) and isinstance(value, str):
            hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else ""
        raise DataError(
            f"{where}: {key} is {reprlib.repr(value)} ({type(value).__name__}); expected "
            f"{kinds[wanted]}, as in {default!r}{hint}"
        )
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
            raise DataError(
                f"{where}: {key} is {reprlib.repr(value)}; expected a number from {low:g}{upper}"
            )


def check_own_name(path: Path) -> None:
    """An own study file must not have the name of one in params/.

    Results and evidence are filed under that name and would replace the shipped study's. Upper and
    lower case count as equal: on some disks they are. Raises DataError naming both files.
    """
    for shipped in sorted((root() / "params").glob("*.yaml")):
        same_name = shipped.stem.casefold() == path.stem.casefold()
        if same_name and not shipped.samefile(path):
            raise DataError(
                f"{path}: the study '{shipped.stem}' is already {shipped}, and results are filed "
                "under the file's name; expected another file name"
            )


def load_study(study: str) -> dict:
    """A study by name (params/<name>.yaml) or path -> its parameters, checked.

    Its own name is under "study".

    A study that names no student gets `DEFAULT_STUDENT`. Raises DataError, as `read_study`.
    """
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

    Raises DataError for a missing file, broken YAML, an unknown key, a nested key, or a wrong type.
    """
    if not study.endswith((".yaml", ".yml")):
        check_name(study)
    path = study_path(study)
    known = ", ".join(
        sorted(p.stem for p in (root() / "params").glob("*.yaml") if p.stem != "claims")
    )
    if not path.is_file():
        raise DataError(f"{path}: no such study; expected a path to a YAML file or one of {known}")
    check_name(path.stem)
    check_own_name(path)
    text = read_text(path, "a YAML file of `key: value` lines")
    try:
        tree, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    # Besides YAMLError: ValueError for 2024-13-45, KeyError for `!!bool x`, RecursionError for
    # [[[[…
    except Exception as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise DataError(
            f"{path}:{line}: not YAML ({getattr(error, 'problem', None) or error}); expected `key: "
            "value` lines"
        ) from None
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
            raise DataError(
                f"{path}: unknown key '{key}'"
                + (
                    f"; did you mean '{close[0]}'?"
                    if close
                    else "; expected a parameter of one of the notebooks"
                )
            )
        check_value(key, value, defaults[key], str(path))
    return values


def stage_parameters(stage: str, values: dict) -> dict:
    """All parameters of a stage's notebook: its defaults, and the study's values in their places."""
    defaults = notebook_parameters(root() / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb")
    return defaults | {key: value for key, value in values.items() if key in defaults}


def _parameters_file(study: str, stage: str) -> Path:
    return artifacts() / "studies" / study / f"{stage}.parameters.json"


def check_made_with(values: dict, stages: list[str], where: str) -> None:
    """Notebooks 1 and 2 fix the data, the student and the training for all that follow.

    Where they are not among `stages`, their last run must have been with the parameters that the
    study has now. Raises DataError naming the first that was changed since.
    """
    order = list(NOTEBOOKS)
    for stage in ("elicit", "train"):
        if stage in stages or stage not in order[: max(map(order.index, stages))]:
            continue
        try:
            made = json.loads(_parameters_file(values["study"], stage).read_text(encoding="utf-8"))
        # Not run yet, or by an older version: the notebooks say what they lack
        except (OSError, ValueError):
            continue
        for key, now in sorted(stage_parameters(stage, values).items()):
            if made.get(key, now) != now:
                raise DataError(
                    f"{where}: {key} is {reprlib.repr(now)}, but stage {stage} was last run with "
                    f"{reprlib.repr(made[key])}; expected one setting in all stages: run `make "
                    f"{stage} STUDY={where}` again, and the stages after it"
                )


def check_training_dtype(dtype: str) -> None:
    """float16 weights can't be trained here.

    Without loss scaling their updates vanish or overflow (losses of 6.8 to 124 were seen). Raises
    DataError.
    """
    if dtype == "float16":
        raise DataError(
            "dtype is 'float16', in which training diverges; expected auto (float32 weights), "
            "float32 or bfloat16"
        )


def all_values(values: dict) -> dict:
    """Every parameter of a study: the notebooks' defaults, and the study's values in their places."""
    return {
        key: value for stage in all_parameters().values() for key, value in stage.items()
    } | values


def check_demands(values: dict, stages: list[str]) -> None:
    """What each of the stages asks of a study's settings, found before the first one runs.

    Needs neither data nor student; what does is checked by `check_student`, and where each notebook
    begins. Raises DataError naming the key, the stage that needs it and the way out.
    """
    v = all_values(values)
    later = [stage for stage in NOTEBOOKS if stage != "elicit" and stage in stages]
    if "train" in later:
        check_training_dtype(v["dtype"])
    world = v["dataset"].partition("/")[0] == "microworld"
    tested = v["test_size"] or (v["n_test"] if world else 2)
    if later and tested < 2:
        key = "test_size" if v["test_size"] else "n_test"
        raise DataError(
            f"{key} is {tested}; expected at least 2 test questions: an interval needs them (stage "
            f"{later[0]})"
        )
    units = v["shuffle_units"] and v["shuffle_placements"]
    if "shuffle" in later and not units and not (any(v["controls"]) and v["control_placements"]):
        raise DataError(
            "shuffle_units and controls are empty (or their placements), so stage shuffle has no "
            "arm to run; expected one of them, or --stages without shuffle"
        )
    if "attribute" in later:
        check_attribution(v)


def check_attribution(v: dict) -> None:
    """What notebook 5 asks of all values of a study (`all_values`).

    Raises DataError.
    """
    if v["attribution_model"] not in ("pre_cot", "undistilled"):
        raise DataError(
            f"attribution_model '{v['attribution_model']}'; expected pre_cot or undistilled"
        )
    if v["attribution_model"] == "pre_cot":
        fault = (
            "arms has no pre_cot"
            if "pre_cot" not in v["arms"]
            else "keep_weights is false"
            if not v["keep_weights"]
            else ""
        )
        if fault:
            raise DataError(
                f"{fault}, but attribution_model is pre_cot: stage attribute needs that student's "
                "weights; expected pre_cot among the arms and keep_weights true, or "
                "attribution_model: undistilled"
            )
    if not v["check_methods"]:
        raise DataError("check_methods is empty; expected at least one method (stage attribute)")
    keeps, masks = (
        v["keep_amounts"] and v["selectors"],
        v["mask_amounts"] and v["mask_orders"] and v["mask_placements"],
    )
    if not keeps and not masks:
        raise DataError(
            "keep_amounts and mask_amounts are empty (or selectors, mask_orders, "
            "mask_placements), so stage attribute has no arm to run; expected one of them, or "
            "--stages without attribute"
        )


def check_student(values: dict, stages: list[str]) -> None:
    """Load the study's student in a process of its own, so that its memory is free again, and try
    it, before rationales are asked for: only where stage elicit is followed by others (else the
    first notebook does it), and not for the students that come with this package.

    Raises DataError: what is wrong with it, in one line.
    """
    v = all_values(values)
    if "elicit" not in stages or len(stages) == 1 or v["student"] in BUILT_IN:
        return
    needs_offsets = bool({"shuffle", "attribute"} & set(stages))
    code = (
        "import json, sys; from cotdistill.study import try_student; "
        "sys.exit(try_student(**json.loads(sys.argv[1])))"
    )
    asked = {
        "name": v["student"],
        "device": v["device"],
        "dtype": v["dtype"],
        "needs_offsets": needs_offsets,
    }
    print(f"student {v['student']}: loaded and tried before the first stage runs", flush=True)
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        cwd=root(),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root()), *filter(None, sys.path)])},
    )
    if done.returncode:
        said = (
            done.stderr.strip()
            or f"the check of student '{v['student']}' was killed (out of memory?)"
        ).splitlines()[-1]
        raise DataError(said.removeprefix("error: "))
