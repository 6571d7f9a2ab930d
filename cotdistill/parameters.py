"""Check a study's YAML against the notebooks' `parameters` cells before anything runs."""

import ast
import datetime
import difflib
import json
import math
import os
import reprlib
import subprocess
import sys
from pathlib import Path

import yaml

from cotdistill.arms import ARMS, CORRUPTIONS, Arm, arm_from_name
from cotdistill.errors import DataError
from cotdistill.examples import is_embedded
from cotdistill.files import read_text
from cotdistill.hyperparameters import TrainConfig
from cotdistill.paths import ALL_NOTEBOOKS, NOTEBOOKS, artifacts, check_name, root, study_path

# For a study that names no student: the notebooks' own default is a random one, for `make smoke`.
DEFAULT_STUDENT = "smollm2-135m"
# The names in students.BUNDLED and TINY, repeated here so that this module does without torch
BUILT_IN = ("smollm2-135m", "gemma-3-270m", "tiny-llama", "tiny-gpt2", "tiny-phi", "tiny-gemma")
# Under `worlds: per_seed` a seed is below the first, a study's data_seed at most the second: then
# no two worlds are drawn by one number, and none by one of 2**31 or above, which draw donors
SEEDS_PER_WORLD, MOST_DATA_SEED = 1000, 2_146_000
# The worlds whose gold rationales can be made wrong (`microworld.damage`)
DAMAGEABLE = ("microworld/everyday", "microworld/invented", "microworld/strata")
# Parameter -> lowest and highest value, checked before anything runs; any other number may be 0 or
# above
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
            "lasting_epochs",
            "alignment_batches",
            "lens_questions",
            "forced_questions",
            "quality_questions",
            "shots",
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
            "label_shares: an item",
            "wrong_facts: an item",
        ),
        (0, 1),
    ),
    "request_timeout": (1, math.inf),
    "n_options": (2, 5),
    "seeds: an item": (0, 2**32 - 1),
}


def notebook_parameters(path: Path) -> dict:
    """Read a notebook's `parameters` cell as name -> default.

    papermill only warns when the cell or a parameter is missing; here both raise DataError.
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
    parameters, expected = {}, "expected only `name = value`"
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
        if name in parameters:
            raise DataError(
                f"{path}: parameters cell, line {node.lineno}: '{name}' appears twice; "
                "expected each name once"
            )
        try:
            parameters[name] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            raise DataError(
                f"{path}: parameters cell, line {node.lineno}: the value of '{name}' is no "
                f"literal; {expected}"
            ) from None
    return parameters


def all_parameters() -> dict[str, dict]:
    """Map each stage to its parameters and their defaults, for the notebooks that exist."""
    folder = root() / "notebooks"
    return {
        stage: notebook_parameters(folder / f"{name}.ipynb")
        for stage, name in ALL_NOTEBOOKS.items()
        if (folder / f"{name}.ipynb").is_file()
    }


def check_value(key: str, value, default, where: str) -> None:
    """Check that a study's value has the type of the notebook's default and is in its range.

    Raises DataError: one line that ends in what is expected.
    """
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a block of `key: value` lines",
    }
    kind = type(default)
    fits = type(value) is kind or kind is float and type(value) is int
    if not fits:
        hint = ""
        if kind in (float, int) and isinstance(value, str):
            hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else ""
        raise DataError(
            f"{where}: {key} is {reprlib.repr(value)} ({type(value).__name__}); expected "
            f"{kinds[kind]}, as in {default!r}{hint}"
        )
    if kind is list:
        for item in value:  # of an empty default, names are meant
            check_value(f"{key}: an item", item, default[0] if default else "", where)
        twice = next((item for number, item in enumerate(value) if item in value[:number]), None)
        if twice is not None:
            raise DataError(f"{where}: {key} holds {twice!r} twice; expected each item once")
    if kind in (int, float):
        low, high = LIMITS.get(key, (0, math.inf))
        if not (math.isfinite(value) and low <= value <= high):
            upper = f" to {high:g}" if high < math.inf else " on"
            raise DataError(
                f"{where}: {key} is {reprlib.repr(value)}; expected a number from {low:g}{upper}"
            )


def check_own_name(path: Path) -> None:
    """Check that an own study file does not have the name of one in params/.

    Results and evidence are filed under that name and would replace those of the shipped study.
    Upper and lower case count as equal: on some disks they are. Raises DataError naming both files.
    """
    for shipped in sorted((root() / "params").glob("*.yaml")):
        same_name = shipped.stem.casefold() == path.stem.casefold()
        if same_name and not shipped.samefile(path):
            raise DataError(
                f"{path}: the study '{shipped.stem}' is already {shipped}, and results are filed "
                "under the file's name; expected another file name"
            )


def load_study(study: str) -> dict:
    """Load a study's checked parameters, given its name (params/<name>.yaml) or a path.

    The name itself is under "study". A study that names no student gets `DEFAULT_STUDENT`. Raises
    DataError, as `read_study` does.
    """
    values = read_study(study)
    return {"study": study_path(study).stem, "student": DEFAULT_STUDENT, **values}


def default_note(study: str) -> str:
    """Say in one line what a study uses because it names no student; "" where it names one."""
    values = read_study(study)
    if "student" in values:
        return ""
    seeds = "; it names no seeds either: one run per arm, which decides nothing"
    if "seeds" in values:
        seeds = ""
    return (
        f"{study} names no student: the bundled {DEFAULT_STUDENT} is trained (`student: ...` names "
        f"another){seeds}"
    )


def read_study(study: str) -> dict:
    """Read the keys of a study's YAML and check them against the notebooks' parameters.

    Raises DataError for a missing file, broken YAML, an unknown or repeated key, and a wrong type.
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
        raise DataError(f"{path}: the key '{twice}' appears twice; expected each key once")
    parameters = all_parameters()
    defaults = {key: value for stage in parameters.values() for key, value in stage.items()}
    for key, value in values.items():
        if key == "study":
            raise DataError(f"{path}: study is named by its file; expected no key 'study'")
        if key == "stages":
            check_stages(value, str(path))
            continue
        if key not in defaults:
            close = difflib.get_close_matches(str(key), defaults, 1)
            hint = (
                f"did you mean '{close[0]}'?"
                if close
                else "expected a parameter of one of the notebooks"
            )
            raise DataError(f"{path}: unknown key '{key}'; {hint}")
        check_value(key, value, defaults[key], str(path))
    if values.get("registered"):
        values["registered"] = read_registered(values["registered"], str(path))
    return values


def read_registered(block: dict, where: str) -> dict:
    """Read what a study wrote down before its first run: commit, date, claims, perhaps arms.

    YAML reads an unquoted date as a date: it becomes text. Raises DataError for other keys and for
    values that are not texts or lists of texts; `verdicts.verdicts` checks the claims' ids.
    """
    block = {
        key: value.isoformat() if isinstance(value, datetime.date) else value
        for key, value in block.items()
    }
    if set(block) - {"arms"} != {"commit", "date", "claims"}:
        raise DataError(
            f"{where}: registered has the keys {', '.join(map(str, block)) or 'none'}; expected "
            "commit, date, claims (and perhaps arms)"
        )
    for key, value in block.items():
        listed = key in ("claims", "arms")
        items = value if listed and isinstance(value, list) else [None] if listed else [value]
        if not items or not all(isinstance(item, str) for item in items):
            wanted = "a list of texts" if listed else "a text, in quotes"
            raise DataError(f"{where}: registered: {key} is {value!r}; expected {wanted}")
    return block


def check_stages(value, where: str) -> None:
    """Check a study's `stages`: names of notebooks, each once. Raises DataError."""
    check_value("stages", value, ["elicit"], where)
    unknown = next((stage for stage in value if stage not in ALL_NOTEBOOKS), None)
    if unknown is not None or not value:
        found = "is empty" if unknown is None else f"holds {unknown!r}"
        raise DataError(f"{where}: stages {found}; expected some of {', '.join(ALL_NOTEBOOKS)}")


def study_stages(values: dict) -> list[str]:
    """List the stages of a study in order: its `stages`, or else the paper's six."""
    chosen = values.get("stages") or list(NOTEBOOKS)
    return [stage for stage in ALL_NOTEBOOKS if stage in chosen]


def stage_parameters(stage: str, values: dict) -> dict:
    """Merge the defaults of a stage's notebook with the study's values; the study's win."""
    defaults = notebook_parameters(root() / "notebooks" / f"{ALL_NOTEBOOKS[stage]}.ipynb")
    return defaults | {key: value for key, value in values.items() if key in defaults}


def parameters_path(study: str, stage: str) -> Path:
    """Return the file that holds the parameters with which a stage was last run."""
    return artifacts() / "studies" / study / f"{stage}.parameters.json"


def check_made_with(values: dict, stages: list[str], where: str) -> None:
    """Check that notebooks 1 and 2 were last run with the study's present parameters.

    They fix the data, the student and the training for all that follow. Only those that are not
    among `stages` are checked. Raises DataError naming the first parameter that was changed since.
    """
    order = list(ALL_NOTEBOOKS)
    for stage in ("elicit", "train"):
        if stage in stages or stage not in order[: max(map(order.index, stages))]:
            continue
        try:
            used = json.loads(parameters_path(values["study"], stage).read_text(encoding="utf-8"))
        # Not run yet, or run by an older version: the notebooks themselves say what is missing
        except (OSError, ValueError):
            continue
        for key, now in sorted(stage_parameters(stage, values).items()):
            # Notebook 1 draws something for each seed only where each has its own world
            if key == "seeds" and stage == "elicit" and values.get("worlds") != "per_seed":
                continue
            if used.get(key, now) != now:
                raise DataError(
                    f"{where}: {key} is {reprlib.repr(now)}, but stage {stage} was last run with "
                    f"{reprlib.repr(used[key])}; expected one setting in all stages: run `make "
                    f"{stage} STUDY={where}` again, and the stages after it"
                )


def check_training_dtype(dtype: str) -> None:
    """Refuse to train in float16.

    Without loss scaling, updates vanish or overflow (losses of 6.8 to 124 were seen). Raises
    DataError.
    """
    if dtype == "float16":
        raise DataError(
            "dtype is 'float16', in which training diverges; expected auto (float32 weights), "
            "float32 or bfloat16"
        )


def all_values(values: dict) -> dict:
    """Merge the defaults of all notebooks with the study's values; the study's win."""
    return {
        key: value for stage in all_parameters().values() for key, value in stage.items()
    } | values


def check_worlds(worlds: str, dataset: str, seeds: list[int], data_seed: int) -> None:
    """Check that each seed of a study can have a world of its own, where `worlds` asks for that.

    Only a microworld can be drawn again. The numbers that draw worlds have room for a thousand
    seeds of a study (`microworld.worlds.world_seed`). Raises DataError.
    """
    if worlds not in ("shared", "per_seed"):
        raise DataError(f"worlds is '{worlds}'; expected shared or per_seed")
    if worlds == "shared":
        return
    if not is_embedded(dataset):
        raise DataError(
            f"worlds is per_seed, dataset '{dataset}'; expected worlds: shared, or a microworld, "
            "which alone can be drawn anew for each seed"
        )
    if not seeds or max(seeds) >= SEEDS_PER_WORLD or data_seed > MOST_DATA_SEED:
        raise DataError(
            f"worlds is per_seed, seeds {seeds}, data_seed {data_seed}; expected seeds below "
            f"{SEEDS_PER_WORLD:,} and a data_seed up to {MOST_DATA_SEED:,}"
        )


def check_demands(values: dict, stages: list[str]) -> None:
    """Check what each stage requires of a study's settings, before the first one runs.

    This needs neither data nor student. What does is checked by `check_student`, and at the start
    of each notebook. Raises DataError naming the key, the stage that needs it and how to go on.
    """
    v = all_values(values)
    later = [stage for stage in ALL_NOTEBOOKS if stage != "elicit" and stage in stages]
    if "train" in later:
        check_training_dtype(v["dtype"])
        precision = v["precision"]  # "auto" is chosen where the device is known
        TrainConfig.from_values(v, "float32" if precision == "auto" else precision)
    check_worlds(v["worlds"], v["dataset"], v["seeds"], v["data_seed"])
    world = is_embedded(v["dataset"])
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
    if "tasks" in later:
        check_tasks(v)
    if "lasting" in later:
        check_lasting(v)
    if "mechanism" in later:
        check_mechanism(v)
    if "quality" in later:
        check_quality(v)


def check_attribution(v: dict) -> None:
    """Check what notebook 5 requires of all values of a study (`all_values`).

    Raises DataError.
    """
    if v["attribution_model"] not in ("pre_cot", "cross_fitted", "undistilled"):
        raise DataError(
            f"attribution_model '{v['attribution_model']}'; expected pre_cot, cross_fitted or "
            "undistilled"
        )
    if v["attribution_model"] == "pre_cot":
        fault = ""
        if "pre_cot" not in v["arms"]:
            fault = "arms has no pre_cot"
        elif not v["keep_weights"]:
            fault = "keep_weights is false"
        if fault:
            raise DataError(
                f"{fault}, but attribution_model is pre_cot: stage attribute needs that student's "
                "weights; expected pre_cot among the arms and keep_weights true, or "
                "attribution_model: undistilled"
            )
    keeps = v["keep_amounts"] and v["selectors"]
    masks = v["mask_amounts"] and v["mask_orders"] and v["mask_placements"]
    if not keeps and not masks:
        raise DataError(
            "keep_amounts and mask_amounts are empty (or selectors, mask_orders, "
            "mask_placements), so stage attribute has no arm to run; expected one of them, or "
            "--stages without attribute"
        )


def check_tasks(v: dict) -> None:
    """Check what notebook 7 requires of all values of a study. Raises DataError."""
    if not v["tasks_arms"]:
        raise DataError("tasks_arms is empty; expected the arms that stage tasks compares")
    for name in v["tasks_arms"]:
        corruption = arm_from_name(name).corruption
        if "amount" in CORRUPTIONS[corruption].fields:
            raise DataError(
                f"tasks_arms has {name}, which needs an amount; expected arms of stages train and "
                "shuffle"
            )


def check_lasting(v: dict) -> None:
    """Check what notebook 8 requires of all values of a study. Raises DataError."""
    arms = [arm_from_name(name) for name in v["lasting_arms"]]
    if Arm("label_only") not in arms:
        raise DataError(
            "lasting_arms has no label_only; expected it: stage lasting takes gaps to it"
        )
    prompted = next((arm.label for arm in arms if not arm.is_trained), None)
    if prompted:
        raise DataError(
            f"lasting_arms has {prompted}, which is not trained; expected arms that stage lasting "
            "can let go on"
        )
    if not v["continue_on"]:
        raise DataError(
            "continue_on is empty; expected 'same' or datasets whose labels stage lasting learns"
        )


def check_mechanism(v: dict) -> None:
    """Check what notebook 9 requires of all values of a study. Raises DataError."""
    if v["worlds"] == "per_seed":
        raise DataError(
            "worlds is per_seed; expected shared: stage mechanism compares students on the same "
            "questions"
        )
    bad = next((share for share in v["label_shares"] if not 0 < share < 1), None)
    if bad is not None:
        raise DataError(
            f"label_shares holds {bad:g}; expected shares between 0 and 1 (label_only is 1)"
        )
    for key in ("mechanism_controls", "watched_controls"):
        for name in v[key]:
            if f"post_cot_{name}" not in ARMS:
                known = ", ".join(filter(None, CORRUPTIONS))
                raise DataError(f"{key} holds '{name}'; expected some of {known}")


def check_quality(v: dict) -> None:
    """Check what notebook 10 requires of all values of a study. Raises DataError."""
    bad = next((arm for arm in v["quality_arms"] if arm not in ("pre_cot", "post_cot")), None)
    if bad is not None or not v["quality_arms"]:
        found = "is empty" if bad is None else f"holds '{bad}'"
        raise DataError(f"quality_arms {found}; expected pre_cot, post_cot or both")
    if 0 in v["wrong_facts"]:
        raise DataError(
            "wrong_facts holds 0; expected shares above 0: the study's own set has none"
        )
    damaged = v["wrong_facts"] and v["dataset"] in DAMAGEABLE
    if not damaged and not any(v["rationale_sets"]) and not any(v["also_modes"]):
        raise DataError(
            "stage quality has one set of rationales; expected rationale_sets, also_modes, or "
            f"wrong_facts and one of {', '.join(DAMAGEABLE)}"
        )


def check_student(values: dict, stages: list[str]) -> None:
    """Load and try the study's student before a teacher is asked for rationales.

    A separate process does it, so that its memory is free again. Only where stage elicit is
    followed by others, for else the first notebook does it; and not for the students that come with
    this package. Raises DataError: what is wrong with the student, in one line.
    """
    v = all_values(values)
    if "elicit" not in stages or len(stages) == 1 or v["student"] in BUILT_IN:
        return
    needs_offsets = bool({"shuffle", "attribute"} & set(stages))
    code = (
        "import json, sys; from cotdistill.study import try_student; "
        "sys.exit(try_student(**json.loads(sys.argv[1])))"
    )
    arguments = {
        "name": v["student"],
        "device": v["device"],
        "dtype": v["dtype"],
        "needs_offsets": needs_offsets,
    }
    print(f"student {v['student']}: loaded and tried before the first stage runs", flush=True)
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=root(),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root()), *filter(None, sys.path)])},
    )
    if process.returncode:
        reason = (
            process.stderr.strip()
            or f"the check of student '{v['student']}' was killed (out of memory?)"
        ).splitlines()[-1]
        raise DataError(reason.removeprefix("error: "))
