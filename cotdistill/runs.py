"""The run store: a training run is a pure function of its config, kept under the SHA-256 of that config.

    artifacts/runs/<key>/   config.json  history.csv  predictions.jsonl  provenance.json  [weights.safetensors]  metrics.json
    artifacts/runs/<key>.work/   the same, still being made, with the Trainer's checkpoints: what a killed run resumes from
    artifacts/studies/<study>/   what the notebooks of one study hand to each other: base.json, <stage>.json, rationales.jsonl

metrics.json is written last and carries the checksums of its neighbours; a folder without it, or whose files do not match
it, is not a run. What the notebooks hand on carries a seal: a file that was cut or changed afterwards is named, not used. Two processes that want the same run wait for each other on a file lock that the system frees when its
holder dies.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cotdistill import corrupt
from cotdistill.corrupt import offsets
from cotdistill.data import DataError, Dataset, disk_error, fingerprint, load_dataset, load_rationales
from cotdistill.evaluate import accuracy, evaluate, validation_scores
from cotdistill.files import held, whole
from cotdistill.format import CORRUPTIONS, LABEL_FORMATS, Arm, prompt_text
from cotdistill.students import BUNDLED, Student, best_device, best_dtype, changed, load_student, local_print, sha256 as checksum
from cotdistill.study import RUN_KEY, RUN_STAGES, artifacts, check_name, check_training_dtype, load_study, notebook_parameters, root
from cotdistill.train import HISTORY, RATIONALE, TrainConfig, check_labels, choose_train, encode_all, fine_tune, fitting, ranks, restore, share_as_intact, told, trainable, training_key
from cotdistill.data import SOURCES, expected_data
from cotdistill.students import TINY
from cotdistill.study import enter_study, places
from cotdistill.train import length_to_keep, training_length


STORE_VERSION = 2
FILES = ("config.json", "history.csv", "predictions.jsonl", "provenance.json")


def study_dir(study: str) -> Path:
    """What the notebooks of a study hand to each other. A study's name can't lead out of the artifacts."""
    return artifacts() / "studies" / check_name(study)


def resolve(path: str) -> str:
    """A path of a study as an absolute one.

    Looked for beside the study's YAML first, then in the repository; ~ is the user's home.
    Names stay as they are: of datasets, of bundled students, of the hub; so does the empty text.
    Raises DataError for what can only be a path (it begins with a dot, or ends as a file does) and
    is in neither place."""
    if (
        not path
        or path in SOURCES
        or path in BUNDLED
        or path in TINY
        or path.partition("/")[0] == "microworld"
    ):
        return path
    path = os.path.expanduser(path)
    if Path(path).is_absolute():
        return path
    found = next((place / path for place in places() if (place / path).exists()), None)
    if found is None and (path.startswith(".") or Path(path).suffix in (".jsonl", ".json", ".txt")):
        raise DataError(f"{path}: {not_there('file or folder')}; expected a path that exists")
    return path if found is None else str(found)


def not_there(kind: str) -> str:
    """That a relative path of a study is in neither place where it is looked for, for an error."""
    beside, repository = [None, *places()][-2:]
    return (
        f"no such {kind} "
        + (f"beside the study's YAML ({beside}) or " if beside else "")
        + f"in the repository ({repository})"
    )


def write_json(path: Path, value) -> None:
    """Write whole or not at all; an object under studies/ gets a seal. Raises DataError where the disk takes no more."""
    if isinstance(value, dict) and artifacts() / "studies" in path.parents:
        value = value | {"seal": fingerprint(json.loads(json.dumps(value)))}
    try:
        with whole(path) as part:
            part.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(error, path.parent) or error from None


def read_json(path: Path, made_by: str):
    """A file that an earlier notebook wrote. Raises DataError that says which one to run where it is missing, broken or changed."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected it from {made_by}: run that first") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON ({error}); expected what {made_by} wrote: delete it and run that again") from None
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is not None and seal != fingerprint(value):
        raise DataError(f"{path}: changed after it was written; expected what {made_by} wrote: delete it and run that again")
    return value


# ---------------------------------------------------------------- what a study is

@functools.lru_cache(maxsize=4)
def _data(canonical: str) -> Dataset:
    spec = json.loads(canonical)
    where = resolve(spec["dataset"])
    if (
        where == spec["dataset"]
        and where not in SOURCES
        and not Path(where).is_absolute()
        and where.partition("/")[0] != "microworld"
    ):
        raise DataError(f"{where}: {not_there('folder')}; {expected_data()}")
    data = load_dataset(
        where,
        resolve(spec["data_dir"]) or None,
        validation_size=spec["validation_size"],
        data_seed=spec["data_seed"],
        microworld=spec["microworld"],
    )
    check_content(spec, data)
    if spec["rationales"]:
        path = artifacts() / spec["rationales"]
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected it from `make elicit`: run that first")
        if spec["rationales_print"] and checksum(path)[:16] != spec["rationales_print"]:
            raise DataError(f"{path}: not the file that data.json was written with; expected SHA-256 {spec['rationales_print']}…: run `make elicit` again")
        everything = [*data.train, *data.validation]  # a recorded set may cover the validation part carved out of train
        rationales = load_rationales(path, everything)
        if not any(e.id in rationales for e in data.train):
            raise DataError(f"{path}: covers none of the {len(data.train)} training questions")
        data = replace(data, rationales=rationales)
    return data


def content_prints(data: Dataset, files: list[str] = ()) -> dict:
    """What notebook 01 read, by content: the fingerprints of the questions of each split and of the data's own rationales, and the
    SHA-256 of other files that rationales came from (paths as the study names them; empty ones are left out)."""
    return {"train": fingerprint(data.train), "validation": fingerprint(data.validation), "test": fingerprint(data.test),
            "rationales": fingerprint(data.rationales), "files": {name: checksum(Path(resolve(name))) for name in files if name}}


def check_content(spec: dict, data: Dataset) -> None:
    """The data must be what notebook 01 read: what it made of them, and all that follows, would be of other questions.

    spec: data.json; one without "content" (of an older version, or still being made) can't be compared. A file that is no longer there
    was not edited: what was read from it is kept. Raises DataError naming what was changed and the stage to run again."""
    known = spec.get("content")
    if not known:
        return
    files = {name: checksum(Path(resolve(name))) for name in known["files"] if Path(resolve(name)).is_file()}
    now = content_prints(data)
    names = {"train": "training questions", "validation": "validation questions", "test": "test questions",
             "rationales": "own rationales"}
    different = [f"{spec['dataset']}: its {names[part]}" for part in names if now[part] != known[part]]
    different += [f"{name}: its content" for name, print_of in files.items() if print_of != known["files"][name]]
    if different:
        study = f" STUDY={Path(spec['rationales']).parent.name}" if spec["rationales"] else ""
        raise DataError(f"{different[0]} changed after stage elicit read it; expected the same data in all stages: run "
                        f"`make elicit{study}` again, and the stages after it")


_given: dict[str, Dataset] = {}  # data that came to a cluster's worker with its task: no folder of the study is needed there


def study_data(base: dict) -> Dataset:
    """Questions and rationales of a study, read once per process."""
    canonical = json.dumps(base["data"], sort_keys=True)
    return _given[canonical] if canonical in _given else _data(canonical)


def give_data(base: dict, data: Dataset) -> None:
    """From here on this process takes the study's questions and rationales from `data`, not from files."""
    _given[json.dumps(base["data"], sort_keys=True)] = data


@functools.lru_cache(maxsize=2)
def _student(name: str, device: str, dtype: str) -> Student:
    where = best_device(device)  # "auto" trains float32 weights: in bfloat16 an update of 5e-5 is rounded away (the Trainer autocasts)
    return _by_name(name, torch.float32 if dtype == "auto" else best_dtype(dtype, where), where)


def _by_name(name: str, dtype: torch.dtype, where: torch.device) -> Student:
    """A student under the name that the study gives it.

    A relative path stays one, so that no output names the machine."""
    try:
        path = resolve(name)
    except DataError:
        raise DataError(
            f"student '{name}': no config.json in that folder, {not_there('folder')}; expected a "
            f"model saved "
            "by save_pretrained"
        ) from None
    student = load_student(path, dtype, where)
    return (
        student
        if student.name == name
        else replace(student, name=name, note=student.note.replace(student.name, name))
    )


@functools.lru_cache(maxsize=1)
def _trunks(fingerprint: str) -> dict:
    """What the frozen blocks of one student make of training sequences, prompts and options, shared by the runs of this process."""
    return {}


def study_student(base: dict) -> Student:
    """The study's student with its original weights, loaded once per process (runs put the weights back in place)."""
    return _student(base["student"], base["device"], base["dtype"])


def named_student(name: str) -> Student:
    """A student by name or path, in float32 on the CPU: to count tokens before there is a study."""
    return _by_name(name, torch.float32, torch.device("cpu"))


def try_student(name: str, device: str, dtype: str, needs_offsets: bool) -> int:
    """Load a student as a study would and try it (`students.check_attention`): 0, or 1 after one line that says what is wrong. For a
    process of its own (`study.check_student`)."""
    try:
        student = _student(name, device, dtype)
        if needs_offsets:
            offsets(student, "a cup")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def teacher_student(name: str) -> Student:
    """A local teacher as `elicit.elicit_transformers` loads it."""
    where = best_device("auto")
    return _by_name(name, best_dtype("auto", where), where)


@functools.lru_cache(maxsize=4)
def _fitting(canonical: str):
    base = json.loads(canonical)
    data = study_data(base)
    return fitting(study_student(base), data.train, data.rationales, base["label_format"], base["max_length"])


def usable(base: dict):
    """The training questions that every arm of the study can use, and the count of what is left out and why."""
    keys = ("data", "student", "device", "dtype", "label_format", "max_length")
    return _fitting(json.dumps({k: base[k] for k in keys}, sort_keys=True))


def warn_of_length(base: dict, say=print) -> None:
    """Say when `max_length` leaves out more than a tenth, and which length would keep 99 %."""
    kept, left_out = usable(base)
    over = left_out.get(f"over {base['max_length']} tokens", 0)
    if 10 * over <= len(kept) + over:
        return
    data, student = study_data(base), study_student(base)
    lengths = [
        training_length(student, e, data.rationales[e.id].text, base["label_format"])
        for e in data.train
        if e.id in data.rationales and data.rationales[e.id].text
    ]
    room = getattr(student.model.config, "max_position_embeddings", None)
    say(
        f"max_length {base['max_length']} leaves out {over:,} of {len(lengths):,} training "
        f"questions; "
        f"max_length {length_to_keep(lengths)} would keep 99 % of them"
        + (f" (the student has {room} positions)" if room else ""),
        flush=True,
    )


def train_questions(base: dict, seed: int) -> list:
    """The training questions of one seed: drawn anew for each seed (`resample_train`), so that the spread between seeds
    holds the luck of the training sample too; or the same for all."""
    kept, _ = usable(base)
    return choose_train(kept, base["train_size"], base["data"]["data_seed"] * 1000 + (seed + 1 if base["resample_train"] else 0))


def test_questions(base: dict) -> list:
    """The first `test_size` test questions (0: all)."""
    test = study_data(base).test
    if base["test_size"] > len(test):
        raise DataError(f"test_size {base['test_size']} is larger than the data: there are {len(test)} test questions")
    return test[:base["test_size"] or len(test)]


def load_base(study: str) -> dict:
    """The study's setting as notebook 02 wrote it."""
    path = study_dir(study) / "base.json"
    enter_study(study, again=False)
    base, needed = read_json(path, f"`make train STUDY={study}`"), {"study", "data", "student", "seeds", "train", "label_format", "test_size"}
    if not isinstance(base, dict) or not needed <= set(base):
        found = f"no {', '.join(sorted(needed - set(base)))}" if isinstance(base, dict) else f"a {type(base).__name__}"
        raise DataError(f"{path}: found {found}; expected what `make train STUDY={study}` wrote: run that again")
    check_base_is_current(base)
    return base


def write_base(base: dict) -> None:
    """Hand the study's setting on to the later notebooks, with the fingerprint of a student that lies in a local folder: its weights
    can be changed where they lie."""
    local = local_print(resolve(base["student"]))
    write_json(study_dir(base["study"]) / "base.json", base | ({"student_print": local} if local else {}))


def check_base_is_current(base: dict) -> None:
    """base.json was written from data.json and from the student: neither may have changed since, nor the data that data.json was
    made from. Raises DataError naming the stage that comes first of those to run again: obeyed, it goes on from there."""
    study, path = base["study"], study_dir(base["study"]) / "data.json"
    data = read_json(path, f"`make elicit STUDY={study}`") if path.is_file() else base["data"]
    if data.get("content"):
        study_data(base | {"data": data})
    if data != base["data"]:
        raise DataError(f"{path}: stage elicit was run again with other data or rationales after stage train; expected one set in all "
                        f"stages: run `make train STUDY={study}` again, and the stages after it")
    known, now = base.get("student_print"), local_print(resolve(base["student"]))
    if known and now and known != now:
        raise DataError(f"student '{base['student']}': its files changed after stage train; expected one student in all stages: run "
                        f"`make train STUDY={study}` again, and the stages after it")


def study_base(study: str) -> dict:
    """The setting that notebook 02 writes, from the study's YAML and notebook 01's data.json: for making a run without it."""
    enter_study(study)
    values = {"study": study} | notebook_parameters(root() / "notebooks" / "02_train.ipynb") | load_study(study)
    kept = ("study", "student", "device", "dtype", "seeds", "train_size", "test_size", "resample_train", "label_format", "max_length",
            "max_new_tokens", "max_label_tokens", "eval_batch_size", "keep_weights")
    train = vars(TrainConfig(**{field.name: values[field.name] for field in fields(TrainConfig)}))
    data = read_json(study_dir(values["study"]) / "data.json", f"`make elicit STUDY={study}`")
    return {key: values[key] for key in kept} | {"data": data, "train": train}


def student_note(base: dict) -> str:
    """What every table says of the student: its name, and that its weights were 4-bit where they were."""
    return BUNDLED[base["student"]]["note"] if base["student"] in BUNDLED else base["student"]


def check_arms(arms: list[Arm], stage: str) -> None:
    """A stage's arms: at least one, and none twice. Raises DataError."""
    if not arms:
        raise DataError(f"stage {stage} has no arm to run; expected at least one")
    labels = [arm.label for arm in arms]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise DataError(f"arm {twice} stands there twice in stage {stage}; expected each arm once")


def check_base(base: dict, arms: list[Arm] | None = None) -> None:
    """Everything about a study that can be wrong, found before the first run starts. arms: of stage train. Raises DataError."""
    if arms is not None:
        check_arms(arms, "train")
        other = next((arm for arm in arms if arm.corruption), None)
        if other:
            place = CORRUPTIONS[other.corruption].stage
            raise DataError(f"arms: {other.label} is trained by `make {place}`; expected arms without a corruption here")
        main = base["train"].get("loss", "token_mean")
        twice = next((arm for arm in arms if arm.loss == main), None)
        if twice:
            raise DataError(f"arm {twice.label}: {main} is the study's own loss; expected another one beside it")
    if not base["seeds"]:
        raise DataError("seeds is empty; expected at least one number")
    if len(set(base["seeds"])) < len(base["seeds"]):
        raise DataError(f"seeds {base['seeds']}: a seed stands there twice; expected different numbers")
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in base["seeds"]):
        raise DataError(f"seeds {base['seeds']}; expected whole numbers from 0 to {2**32 - 1}")
    for key, low in (("train_size", 0), ("test_size", 0), ("max_length", 1), ("max_new_tokens", 1), ("max_label_tokens", 1), ("eval_batch_size", 1)):
        if base[key] < low:
            raise DataError(f"{key} is {base[key]}; expected a number from {low} on")
    if base["label_format"] not in LABEL_FORMATS:
        raise DataError(f"label_format '{base['label_format']}'; expected one of {', '.join(LABEL_FORMATS)}")
    config = TrainConfig(**base["train"])
    check_training_dtype(base["dtype"])
    data, student = study_data(base), study_student(base)
    shape = student.model.config
    if config.frozen_layers >= shape.num_hidden_layers:
        raise DataError(f"frozen_layers is {config.frozen_layers}; expected 0 to {shape.num_hidden_layers - 1} for this student")
    room = getattr(shape, "max_position_embeddings", None)
    if room and base["max_length"] > room:
        raise DataError(f"max_length is {base['max_length']}; expected at most {room}, the student's number of positions")
    check_labels(student, [*data.train, *data.validation, *data.test], base["label_format"], base["max_label_tokens"])
    kept, left_out = usable(base)
    if not kept:
        raise DataError(f"none of {len(data.train)} training questions can be used: " + ", ".join(f"{n} ({why})" for why, n in left_out.items())
                        + f"; expected rationales, and a max_length above {base['max_length']}")
    for seed in base["seeds"]:
        train_questions(base, seed)
    if len(test_questions(base)) < 2:
        raise DataError(f"test_size is {base['test_size']}, of {len(data.test)} test questions: 1 is left; expected at least 2: an "
                        "interval needs them")


def check_offsets(base: dict) -> None:
    """Notebooks 4 and 5 cut rationales into words and sentences by the characters of their tokens. Raises DataError for a tokenizer that
    does not tell these."""
    offsets(study_student(base), "a cup")


def check_trained_with(base: dict, rows: list[dict], stage: str) -> None:
    """Before a later stage trains: the runs of stage train must have been made with the data, student and training that its own will
    be. rows: of `plan_rows`. Raises DataError naming what differs. (Where stage train has not run, the notebooks say so.)"""
    path = study_dir(base["study"]) / "train.json"
    if stage == "train" or not path.is_file():
        return
    now = {}
    for row in rows:
        for name in (name for name in SHARED + SHARED_BY_SEED if name in row["config"]):
            now.setdefault((name, row["seed"] if name in SHARED_BY_SEED else None), row["config"][name])
    for made in read_json(path, f"`make train STUDY={base['study']}`"):
        try:
            config = json.loads((artifacts() / "runs" / made["key"] / "config.json").read_text(encoding="utf-8"))
            pairs = [(name, made["seed"] if name in SHARED_BY_SEED else None) for name in SHARED + SHARED_BY_SEED if name in config]
        except (OSError, ValueError, TypeError, KeyError):  # `load_stage` names it when it is needed
            continue
        other = next((name for name, seed in pairs if now.get((name, seed), config[name]) != config[name]), None)
        if other:
            raise DataError(f"study '{base['study']}': {made['label']}, seed {made['seed']} of stage train was made with other {other} than stage "
                            f"{stage} would be; expected one setting in all stages: run `make train STUDY={base['study']}` again, then {stage}")


def check_positions(base: dict, arms: list[Arm]) -> None:
    """Every test and validation prompt, with what the arms' students may write after it, must fit into the student's positions, and into its
    attention window where it has one (options are scored with a mask that knows none). Raises DataError naming the first that doesn't."""
    student = study_student(base)
    room = min((n for n in (getattr(student.model.config, name, None) for name in ("max_position_embeddings", "sliding_window")) if n), default=None)
    if room is None:
        return
    for placement in dict.fromkeys(arm.placement for arm in arms):
        after = base["max_label_tokens"] + (base["max_new_tokens"] + len(student.encode("\nAnswer:")) if placement == "pre_cot" else 0)
        for example in [*test_questions(base), *study_data(base).validation]:
            n = len(student.bos_ids) + len(student.encode(prompt_text(example, placement, base["label_format"])))
            if n + after > room:
                raise DataError(f"question '{example.id}': its prompt is {n} tokens long and {after} may follow (max_label_tokens, max_new_tokens); "
                                f"expected at most {room} in all, the student's positions or attention window")


# ---------------------------------------------------------------- one run

def make_config(base: dict, arm: Arm, seed: int, scores_print: str = "") -> dict:
    """All that a run's result depends on, and nothing else: its SHA-256 is the run's key.

    Data, student and rationales enter as fingerprints; paths and machine don't. An arm without a rationale does not
    depend on one; the undistilled student depends on neither seed nor training (its seed is -1). An arm that repeats another
    one's training token for token has that one's config (`corrupt.equal_training`): it is made once."""
    student = study_student(base)
    arm = corrupt.equal_training(student, arm)
    scores_print = scores_print if arm.needs_scores else ""
    config = {"store": STORE_VERSION, "student": student.fingerprint, "dtype": str(student.model.dtype), "arm": arm.config,
              "label_format": base["label_format"], "test": fingerprint(test_questions(base)), "seed": -1,
              "max_label_tokens": base["max_label_tokens"]}
    if arm.placement == "pre_cot":
        config["max_new_tokens"] = base["max_new_tokens"]
    if arm.placement == "zero_shot":
        return config
    train = train_questions(base, seed)
    data = study_data(base)
    config |= {"seed": seed, "training": training_key(base["train"], arm), "train": fingerprint(train)}
    if base["train"]["select"] == "best":
        config["validation"] = fingerprint(data.validation)
        config["max_new_tokens"] = base["max_new_tokens"]
    if arm.uses_rationale:
        config["rationales"] = fingerprint([data.rationales[e.id].text for e in train])
    if scores_print:
        config["scores"] = scores_print
    return config


def run_key(config: dict) -> str:
    """SHA-256 (hex) of the canonical JSON of a config: key order and white space do not matter, values do."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def train_arm(base: dict, arm: Arm, seed: int, folder: Path, *, scores: dict | None = None, say=print) -> tuple[pd.DataFrame, dict]:
    """Train the study's student in place on one arm with one seed, checkpoints in folder/checkpoints: (history, summary)."""
    data, student, config, started = study_data(base), study_student(base), TrainConfig(**base["train"]), time.time()
    limits = dict(max_new_tokens=base["max_new_tokens"], max_label_tokens=base["max_label_tokens"], batch_size=base["eval_batch_size"])

    def validate():
        return validation_scores(evaluate(student, data.validation, arm.placement, base["label_format"], **limits, generate=False,
                                          trunk=(config.frozen_layers, _trunks(student.fingerprint))))

    def progress(row):
        checked = "" if pd.isna(row["validation_accuracy"]) else f"validation accuracy {100 * row['validation_accuracy']:.1f} %, "
        say(f"    {arm.label} seed {seed}, epoch {row['epoch']}/{config.epochs}: label loss {row['label_loss']:.3f}, {checked}{time.time() - started:.0f} s",
            flush=True)

    questions = train_questions(base, seed)
    passes = encode_all(student, questions, data.rationales, arm, base["label_format"], seed, config.epochs, scores)
    alike = {"as_intact": share_as_intact(passes, student, questions, data.rationales, arm, base["label_format"], seed)} if arm.corruption else {}
    if "partner" in CORRUPTIONS[arm.corruption].needs and alike["as_intact"]:
        say(f"    {arm.label} seed {seed}: {100 * alike['as_intact']:.0f} % of {len(questions)} questions keep their own rationale, or get one that "
            "reads the same: no other question suits the arm", flush=True)
    history, summary = fine_tune(student, passes, arm, config, seed, folder / "checkpoints",
                                 validate if config.select == "best" and data.validation else None, progress, _trunks(student.fingerprint))
    return history, summary | alike


def distil(base: dict, arm: Arm, seed: int, folder: Path, *, scores: dict | None = None, keep_weights: bool = False,
           say=print) -> dict:
    """Train one arm with one seed and answer all test questions; files into `folder`. Returns the metrics.

    The student's weights are put back afterwards: a grid loads it once."""
    student, started = study_student(base), time.time()
    train, test = ([] if arm.placement == "zero_shot" else train_questions(base, seed)), test_questions(base)
    limits = dict(max_new_tokens=base["max_new_tokens"], max_label_tokens=base["max_label_tokens"],
                  batch_size=base["eval_batch_size"])
    history, summary = pd.DataFrame(), {"best_epoch": 0, "train_tokens": 0}
    student.model.requires_grad_(True)
    before = {name: value.clone() for name, value in student.model.named_parameters()} if train else {}
    try:
        if train:
            told(str(folder))  # the other processes of a torchrun wait for it in `cluster.one_run`
            history, summary = train_arm(base, arm, seed, folder, scores=scores, say=say)
        trained = time.time()
        trunk = (TrainConfig(**base["train"]).frozen_layers, _trunks(student.fingerprint)) if train else None
        predictions = evaluate(student, test, arm.placement, base["label_format"], **limits, trunk=trunk)
        if keep_weights:
            save_file(trainable(student.model), folder / "weights.safetensors")
    finally:
        restore(student.model, before)
        student.model.requires_grad_(True)
    history.to_csv(folder / "history.csv", index=False)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    return {**summary, "n": len(test), "accuracy": accuracy(predictions), "accuracy_generated": accuracy(predictions, "generated"),
            "parse_failures": sum(p["generated"] is None for p in predictions), "cut_off": sum(p["cut_off"] for p in predictions),
            "tokens_per_question": sum(p["tokens"] for p in predictions) / len(predictions),
            "train_questions": len(train), "train_seconds": round(trained - started, 2),
            "evaluate_seconds": round(time.time() - trained, 2)}


def provenance() -> dict:
    """Where a result came from: versions, machine, threads, git state, time. No paths, no names of people."""
    packages = ("torch", "transformers", "datasets", "captum", "papermill", "accelerate", "numpy", "pandas", "scipy")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"

    commit, changed = git_state()
    return {"python": platform.python_version(), **found, "system": platform.system(), "machine": platform.machine(),
            "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(), "blas": "mkl" if torch.backends.mkl.is_available() else "other",
            **({"processes": ranks()[1]} if ranks()[1] > 1 else {}),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "git": commit, "git_changes": changed,
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def git_state() -> tuple[str, bool]:
    """The commit ("none" outside git) and whether files differ from it.

    The published notebooks don't count: no result depends on them. In a cluster's worker, whose code
    came from the driver, both are the driver's ($COTDISTILL_GIT)."""
    told = os.environ.get("COTDISTILL_GIT", "").split()
    if told:
        return told[0], told[1:] == ["changed"]

    def git(*words):
        try:
            out = subprocess.run(["git", *words], cwd=root(), capture_output=True, text=True)
        except OSError:  # no git on this machine
            return ""
        return out.stdout.strip() if out.returncode == 0 else ""

    return git("rev-parse", "--short", "HEAD") or "none", bool(git("status", "--porcelain", "--", ".", ":!notebooks/executed"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


# ---------------------------------------------------------------- the store

def load_metrics(key: str, folder: Path | None = None) -> dict | None:
    """The metrics of a whole run; None where there is none, or where a file does not match its checksum (then it says so).

    folder: where else than in its place in the store."""
    folder = folder or artifacts() / "runs" / key
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        bad = changed(folder, metrics["files"])
        body = {k: v for k, v in metrics.items() if k != "seal"}
        if metrics["seal"] != fingerprint(body) or not set(FILES) <= set(metrics["files"]):
            bad.append("metrics.json")
        if not bad and run_key(json.loads((folder / "config.json").read_text(encoding="utf-8"))) != key:
            bad.append("config.json (of another run)")
    except FileNotFoundError as error:
        if folder.is_dir():
            print(f"{folder.name[:12]}: {Path(error.filename).name} is missing; the run will be made again", flush=True)
        return None
    except OSError as error:
        bad = [f"{Path(error.filename or '').name} ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        bad = ["metrics.json"]
    if bad:
        print(f"{folder.name[:12]}: {', '.join(bad)} damaged; the run will be made again", flush=True)
        return None
    return metrics


def run_one(base: dict, arm: Arm, seed: int, config: dict, *, scores: dict | None = None, keep_weights: bool = False,
            say=print) -> tuple[dict, bool]:
    """The run of a config, from the store or made now. Returns (metrics, whether it was made now).

    A lock per key lets two processes share a store: the second waits and then finds the run complete. Raises DataError where
    the store can't be written (full, read-only): what was whole before stays, and the same call goes on from there."""
    key, store = run_key(config), artifacts() / "runs"
    try:
        return _run_one(base, arm, seed, config, key, store, scores, keep_weights, say)
    except DataError:
        raise
    except Exception as error:  # OSError, safetensors' own error, torch's RuntimeError: each says a full disk in its way
        raise disk_error(error, store) or error


def _run_one(base, arm, seed, config, key, store, scores, keep_weights, say) -> tuple[dict, bool]:
    store.mkdir(parents=True, exist_ok=True)
    def serves(metrics):
        return metrics and (not keep_weights or "weights.safetensors" in metrics["files"])

    with held(store / f"{key}.lock", f"run {key[:12]} ({arm.label}, seed {seed})", say):
        metrics = load_metrics(key)
        if serves(metrics):
            return metrics, False
        work, final = store / f"{key}.work", store / key
        metrics = load_metrics(key, work) if (work / "metrics.json").is_file() else None
        fresh = not serves(metrics)  # else it was killed between its last file and its move into place
        if fresh:
            work.mkdir(exist_ok=True)
            write_json(work / "config.json", config)
            metrics = distil(base, arm, seed, work, scores=scores, keep_weights=keep_weights, say=say)
            write_json(work / "provenance.json", provenance())
            names = [*FILES, *(["weights.safetensors"] if keep_weights else [])]
            metrics |= {"files": {name: checksum(work / name) for name in names}}
            write_json(work / "metrics.json", metrics | {"seal": fingerprint(metrics)})
        for left in work.iterdir():  # checkpoints, needed until here, and what killed attempts left
            if left.name not in {*metrics["files"], "metrics.json"}:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        if final.is_dir():
            shutil.rmtree(final)
        else:
            final.unlink(missing_ok=True)
        os.replace(work, final)
        return load_metrics(key), fresh


@functools.lru_cache(maxsize=1)
def report_old_runs() -> int:
    """Say, once per process, how many runs in the store are of another store version: they stay where they are, and are never used."""
    old = 0
    for path in (artifacts() / "runs").glob("*/config.json"):
        try:
            old += RUN_KEY.fullmatch(path.parent.name) is not None and json.loads(path.read_text(encoding="utf-8"))["store"] != STORE_VERSION
        except (OSError, ValueError, KeyError, TypeError):
            pass
    if old:
        print(f"{artifacts() / 'runs'}: {old} run(s) of another store version than {STORE_VERSION} are left there and not used", flush=True)
    return old


def plan_rows(base: dict, arms: list[Arm], seeds: list[int] | None = None, scores: dict | None = None) -> list[dict]:
    """The grid arms x seeds as rows: arm, label, seed, key, config. zero_shot stands there once.

    scores: (selector, seed) -> (scores by id, their fingerprint), for arms that keep or mask by a selector."""
    rows = []
    for seed in seeds or base["seeds"]:
        for arm in arms:
            if arm.placement == "zero_shot" and any(row["label"] == "zero_shot" for row in rows):
                continue
            print_of = scores[arm.selector, seed][1] if arm.needs_scores else ""
            config = make_config(base, arm, seed, print_of)
            rows.append({"arm": arm, "label": arm.label, "seed": config["seed"], "key": run_key(config), "config": config})
    return rows


def report_equal_arms(base: dict, arms: list[Arm], say=print) -> None:
    """Say in one line which arms repeat another one's training token for token: they share its runs."""
    for arm in arms:
        other = corrupt.equal_training(study_student(base), arm)
        if other != arm:
            say(f"{arm.label} and {other.label} are one training for this student, whose filler token is the dots: it is made once", flush=True)


def run_grid(base: dict, arms: list[Arm], stage: str, *, seeds: list[int] | None = None, scores: dict | None = None,
             keep_weights: tuple = (), backend: str | None = None, say=print) -> pd.DataFrame:
    """Make every missing run of arms x seeds, show progress and the time left; return a table with one row per run.

    The plan goes to artifacts/studies/<study>/<stage>.json first: `make status` and later notebooks read it.
    keep_weights: (label, seed) pairs whose weights a later notebook needs. backend: "local" makes one run after the other
    here, "ray" one task per run on a cluster (`cluster.on_ray`); None takes $COTDISTILL_BACKEND, so that a notebook need
    not know. Raises DataError for an unknown backend."""
    check_arms(arms, stage)
    check_positions(base, arms)
    backend = backend or os.environ.get("COTDISTILL_BACKEND") or "local"
    if backend not in ("local", "ray"):
        raise DataError(f"backend '{backend}'; expected local or ray")
    rows = plan_rows(base, arms, seeds, scores)
    check_trained_with(base, rows, stage)
    plan = [{"label": r["label"], "seed": r["seed"], "key": r["key"], "arm": asdict(r["arm"])} for r in rows]
    plan_print = fingerprint([[row["label"], row["seed"], row["key"]] for row in plan])
    write_json(study_dir(base["study"]) / f"{stage}.json", [row | {"plan": plan_print} for row in plan])
    report_old_runs()
    report_equal_arms(base, arms, say)
    for row in rows:
        row["keep"] = (row["label"], row["seed"]) in keep_weights
        row["scores"] = scores[row["arm"].selector, row["seed"]] if row["arm"].needs_scores else (None, "")
    if backend == "ray":
        from cotdistill.cluster import on_ray as make
    else:
        make = _one_by_one
    spent = []
    for number, (row, metrics, fresh, seconds, at_once) in enumerate(make(base, rows, stage, say), 1):
        spent += [seconds] if fresh else []
        rounds = -(-(len(rows) - number) // at_once)
        left = f", about {_minutes(sum(spent) / len(spent) * rounds)} left" if spent and rounds else ""
        who = row["label"] + ("" if row["arm"].placement == "zero_shot" else f" seed {row['seed']}")
        say(f"[{number}/{len(rows)}] {who}: forced choice {100 * metrics['accuracy']:.1f} %, "
            f"generated {100 * metrics['accuracy_generated']:.1f} % of {metrics['n']}, "
            + (f"{seconds:.0f} s" if fresh else "from the store") + left, flush=True)
        row["made"] = {"arm": row["label"], "seed": row["seed"], "key": row["key"][:12],
                       **{k: v for k, v in metrics.items() if k not in ("files", "seal")}}
    return pd.DataFrame([row["made"] for row in rows])


def _one_by_one(base: dict, rows: list[dict], stage: str, say):
    """The local backend: (row, metrics, whether made now, its seconds, runs at a time), in the order of the plan."""
    for row in rows:
        started = time.time()
        metrics, fresh = run_one(base, row["arm"], row["seed"], row["config"], scores=row["scores"][0], keep_weights=row["keep"], say=say)
        yield row, metrics, fresh, time.time() - started, 1


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def load_stage(study: str, stage: str) -> list[dict]:
    """The plan of a stage with each run's metrics and config. Raises DataError where a run is missing: run the stage first."""
    path = study_dir(study) / f"{stage}.json"
    plan, damaged = read_json(path, f"`make {stage} STUDY={study}`"), f"{path}: damaged; expected the plan of stage {stage}: run `make {stage} STUDY={study}`"
    try:
        keys = fingerprint([[row["label"], row["seed"], row["key"]] for row in plan])
        fits = plan and all(RUN_KEY.fullmatch(row["key"]) and Arm(**row["arm"]).label == row["label"] and row.get("plan", keys) == keys for row in plan)
    except (TypeError, KeyError, AttributeError, ValueError):
        fits = False
    if not fits:
        raise DataError(damaged)
    for row in plan:
        row["metrics"] = load_metrics(row["key"])
        if row["metrics"] is None:
            raise DataError(f"study '{study}': run {row['key'][:12]} ({row['label']}, seed {row['seed']}) is not complete; "
                            f"run `make {stage} STUDY={study}`")
        row["config"] = config = read_json(artifacts() / "runs" / row["key"] / "config.json", f"`make {stage} STUDY={study}`")
        own = Arm(**row["arm"])
        if config["arm"] not in (own.config, corrupt.full_mask_as_filler(own).config) or config["seed"] != row["seed"]:
            raise DataError(damaged)
    return plan


def as_intact(study: str, stages: list[str]) -> dict[str, float]:
    """Corrupted arm -> the share of its training sequences that are those of the intact arm (`train.share_as_intact`), mean over seeds; arms
    whose runs do not say are left out."""
    shares = {}
    for row in (row for stage in stages for row in load_stage(study, stage)):
        if "as_intact" in row["metrics"]:
            shares.setdefault(row["label"], []).append(row["metrics"]["as_intact"])
    return {label: sum(found) / len(found) for label, found in shares.items()}


SHARED = ("student", "dtype", "label_format", "test", "max_label_tokens", "max_new_tokens", "training", "loss", "validation")  # by all runs of a study
SHARED_BY_SEED = ("train", "rationales")  # by the runs of a seed


def split_loss(row: dict) -> None:
    """Take the loss out of the hyperparameters of a plan's row, into "loss" where it is the study's: an arm that names a loss
    of its own stands beside the others on purpose."""
    training = row["config"].get("training")
    if training is not None:
        loss = [training.get("loss", "token_mean"), training.get("loss_lambda")]
        row["config"]["training"] = {name: value for name, value in training.items() if name not in ("loss", "loss_lambda")}
        if not row["arm"].get("loss"):
            row["config"]["loss"] = loss


def load_predictions(study: str, stages: list[str], *, dataset: str = "", student: str = "") -> pd.DataFrame:
    """All predictions of the stages' runs, a row per run and question: study, dataset, student, arm, seed, id, gold,
    generated (NA: parse failure), choice, correct_generated, correct_choice, tokens_generated, cut_off. A run that two
    stages share stands there once.

    Raises DataError where the runs of two stages differ in more than their arm and seed: a setting was changed, and one stage not run again."""
    frames, seen, setting = [], set(), {}
    for stage in stages:
        for row in load_stage(study, stage):
            if (row["label"], row["key"]) in seen:  # under another label it is another arm, whose training is the same
                continue
            seen.add((row["label"], row["key"]))
            split_loss(row)
            for name in (name for name in SHARED + SHARED_BY_SEED if name in row["config"]):
                first, value = setting.setdefault((name, row["seed"] if name in SHARED_BY_SEED else None), (stage, row["config"][name]))
                if value != row["config"][name]:
                    raise DataError(f"study '{study}': {row['label']}, seed {row['seed']} of stage {stage} was made with other {name} than the runs of stage "
                                    f"{first}; expected one setting in all stages: run `make {stage} STUDY={study}`")
            frame = pd.read_json(artifacts() / "runs" / row["key"] / "predictions.jsonl", lines=True, dtype={"id": str})
            frame = frame.assign(arm=row["label"], seed=row["seed"], key=row["key"][:12])
            frames.append(frame)
    table = pd.concat(frames, ignore_index=True)
    table["generated"] = table["generated"].astype("Int64")
    table["correct_generated"] = (table["generated"] == table["gold"]).fillna(False).astype(bool)
    table["correct_choice"] = table["choice"] == table["gold"]
    return table.rename(columns={"tokens": "tokens_generated"}).assign(study=study, dataset=dataset, student=student)


def load_history(study: str, stages: list[str]) -> pd.DataFrame:
    """Learning curves of the stages' runs: study, arm, seed, epoch, step, loss, label_loss, rationale_loss,
    validation_accuracy, validation_label_nll."""
    frames, seen = [], set()
    for stage in stages:
        for row in load_stage(study, stage):
            if (row["label"], row["key"]) in seen or row["label"] == "zero_shot":
                continue
            seen.add((row["label"], row["key"]))
            frame = pd.read_csv(artifacts() / "runs" / row["key"] / "history.csv")
            frames.append(frame.assign(study=study, arm=row["label"], seed=row["seed"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["study", "arm", "seed", *HISTORY])


def stages_done(study: str) -> list[str]:
    """The stages of a study that have made runs, in order."""
    return [stage for stage in RUN_STAGES if (study_dir(study) / f"{stage}.json").is_file()]


def attributing_student(base: dict, model: str, seed: int) -> tuple[Student, str]:
    """The student that judges rationale tokens, and the fingerprint of its weights: "pre_cot" (that arm's run of `seed`, in
    a copy of its own, so that nothing trained later starts from them) or "undistilled"."""
    if model == "undistilled":
        student = study_student(base)
        return student, student.fingerprint
    if model != "pre_cot":
        raise DataError(f"attribution_model '{model}'; expected pre_cot or undistilled")
    plan = load_stage(base["study"], "train")
    key = next((row["key"] for row in plan if (row["label"], row["seed"]) == ("pre_cot", seed)), None)
    path = artifacts() / "runs" / (key or "none") / "weights.safetensors"
    if key is None or not path.is_file():
        raise DataError(f"study '{base['study']}': no weights of pre_cot, seed {seed}; expected them from `make train` with "
                        "pre_cot among the arms and keep_weights true (or attribution_model: undistilled)")
    student = _student.__wrapped__(base["student"], base["device"], base["dtype"])
    restore(student.model, load_file(path))
    return student, key


def attribution_file(base: dict, judge: Student, judge_print: str, method: str, examples: list, *, selections=None, **options) -> Path:
    """The file with the attributions of these questions' rationales by one method: found, where it was made from the same
    rationales, judge and options; made, with progress lines, where not."""
    from cotdistill import attribute

    data = study_data(base)
    texts = fingerprint([[e, data.rationales[e.id].text] for e in examples])  # the question too: its label is what tokens are attributed to
    selections = selections if method == "human" else None
    if method in attribute.METHODS and attribute.METHODS[method].reads == "words":  # no weight and no step is part of it
        judge_print, options = judge.fingerprint, {}
    made_from = {"method": method, "judge": judge_print, "rationales": texts, "dtype": str(judge.model.dtype), "options": options,
                 "selections": fingerprint(selections or {})}
    path = study_dir(base["study"]) / "scores" / f"{method}-{fingerprint(made_from)}.jsonl"

    def whole_one(say=lambda *a, **k: None):
        try:
            return path.is_file() and bool(attribute.read_scores(path))
        except DataError as error:
            say(f"{error}; the scores are made again", flush=True)
            return False

    if whole_one(print):
        return path

    def progress(done):
        if done % 25 == 0 or done == len(examples):
            print(f"    {method}: {done}/{len(examples)} rationales scored", flush=True)

    with held(path.with_name(f"{path.name}.lock"), f"the scores of {method}"):
        if not whole_one():  # else another process made them meanwhile
            found = attribute.attribute_all(judge, examples, data.rationales, method, selections=selections, progress=progress, **options)
            attribute.write_scores(path, found, made_from)
    return path


def score_file(base: dict, judge: Student, judge_print: str, method: str, examples: list, *, selections=None, **options):
    """Scores of every training rationale by one method: (scores by id, their fingerprint), from `attribution_file`.

    `human` scores cover the selected questions only: the arms need all, and say which are missing."""
    from cotdistill import attribute

    return attribute.read_scores(attribution_file(base, judge, judge_print, method, examples, selections=selections, **options))


def attributions(base: dict, judge: Student, judge_print: str, method: str, examples: list, *, selections=None, **options) -> list:
    """The attributions of these questions' rationales by one method, in their order, from `attribution_file`."""
    from cotdistill import attribute

    return attribute.read_attributions(attribution_file(base, judge, judge_print, method, examples, selections=selections, **options))[0]


def kept_table(study: str, name: str, about: list, function, *given, **named) -> pd.DataFrame:
    """function(*given, **named), a table, computed once for all that it depends on (`about`, what `fingerprint` takes) and then read."""
    path = study_dir(study) / "tables" / f"{name}-{fingerprint(about)}.json"
    if not path.is_file():
        write_json(path, function(*given, **named).to_dict("list"))
    return pd.DataFrame(read_json(path, "notebook 05"))


def save_verdicts(study: str, base: dict, verdicts: pd.DataFrame, accuracies: pd.DataFrame, written: pd.DataFrame) -> None:
    """verdicts.json (with what they rest on, accuracies by forced choice and by the written answer) and verdicts.csv, for the report, the
    README and pooling."""
    folder = study_dir(study)
    write_json(folder / "verdicts.json", {
        "study": study, "dataset": base["data"]["dataset"], "student": student_note(base), "provenance": provenance(),
        "verdicts": json.loads(verdicts.to_json(orient="records")), "accuracy": json.loads(accuracies.to_json(orient="records")),
        "accuracy_written": json.loads(written.to_json(orient="records"))})
    with whole(folder / "verdicts.csv") as part:
        verdicts.to_csv(part, index=False)


def fingerprints(base: dict) -> dict[str, str]:
    """What the study's data and student hash to: equal fingerprints, equal inputs."""
    seed = base["seeds"][0]
    return {"student fingerprint": study_student(base).fingerprint, "test questions": fingerprint(test_questions(base)),
            "training questions (first seed)": fingerprint(train_questions(base, seed)),
            "rationales": base["data"]["rationales_print"]}


def load_verdicts(study: str) -> pd.DataFrame:
    """The verdict table of a study that has run."""
    return pd.DataFrame(read_json(study_dir(study) / "verdicts.json", f"`make figures STUDY={study}`")["verdicts"])


def target_text(base: dict, example, arm: Arm, seed: int) -> str:
    """The rationale of one training question as an arm's student sees it, decoded from its very tokens."""
    data, student = study_data(base), study_student(base)
    passes = encode_all(student, train_questions(base, seed), data.rationales, arm, base["label_format"], seed)
    one = next(e for e in passes[0] if e.id == example.id)
    return student.decode([i for i, kind in zip(one.ids, one.kinds) if kind == RATIONALE]).strip()
