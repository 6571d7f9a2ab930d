"""What a study is: its data, student and questions, and the checks of its setting."""

import functools
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch

from cotdistill.arms import CORRUPTIONS, LABEL_FORMATS, Arm, prompt_text
from cotdistill.corrupt import offsets
from cotdistill.encode import (
    RATIONALE,
    check_labels,
    choose_train,
    encode_all,
    length_to_keep,
    training_length,
    usable_questions,
)
from cotdistill.errors import DataError
from cotdistill.examples import Dataset
from cotdistill.files import fingerprint, read_json, write_json
from cotdistill.files import sha256 as checksum
from cotdistill.hyperparameters import TrainConfig
from cotdistill.parameters import check_training_dtype, load_study, notebook_parameters
from cotdistill.paths import artifacts, enter_study, places, root, study_dir
from cotdistill.sources import SOURCES, expected_data, load_dataset, load_rationales
from cotdistill.students import BUNDLED, Student, best_device, best_dtype, load_student, local_print
from cotdistill.tiny import TINY


def resolve(path: str) -> str:
    """A path of a study as an absolute one.

    Looked for beside the study's YAML first, then in the repository; ~ is the user's home. Names
    stay as they are: of datasets, of bundled students, of the hub; so does the empty text. Raises
    DataError for what can only be a path (it begins with a dot, or ends as a file does) and is in
    neither place.
    """
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
            raise DataError(
                f"{path}: not the file that data.json was written with; expected "
                f"SHA-256 {spec['rationales_print']}…: run `make elicit` again"
            )
        # A recorded set may cover the validation part carved out of train
        everything = [*data.train, *data.validation]
        rationales = load_rationales(path, everything)
        if not any(e.id in rationales for e in data.train):
            raise DataError(f"{path}: covers none of the {len(data.train)} training questions")
        data = replace(data, rationales=rationales)
    return data


def content_prints(data: Dataset, files: list[str] = ()) -> dict:
    """What notebook 01 read, by content.

    The fingerprints of the questions of each split and of the data's own rationales, and the
    SHA-256 of other files that rationales came from (paths as the study names them; empty ones are
    left out).
    """
    return {
        "train": fingerprint(data.train),
        "validation": fingerprint(data.validation),
        "test": fingerprint(data.test),
        "rationales": fingerprint(data.rationales),
        "files": {name: checksum(Path(resolve(name))) for name in files if name},
    }


def check_content(spec: dict, data: Dataset) -> None:
    """The data must be what notebook 01 read.

    What it made of them, and all that follows, would be of other questions.

    spec: data.json; one without "content" (of an older version, or still being made) can't be
    compared. A file that is no longer there was not edited: what was read from it is kept. Raises
    DataError naming what was changed and the stage to run again.
    """
    known = spec.get("content")
    if not known:
        return
    files = {
        name: checksum(Path(resolve(name)))
        for name in known["files"]
        if Path(resolve(name)).is_file()
    }
    now = content_prints(data)
    names = {
        "train": "training questions",
        "validation": "validation questions",
        "test": "test questions",
        "rationales": "own rationales",
    }
    different = [
        f"{spec['dataset']}: its {names[part]}" for part in names if now[part] != known[part]
    ]
    different += [
        f"{name}: its content"
        for name, print_of in files.items()
        if print_of != known["files"][name]
    ]
    if different:
        study = f" STUDY={Path(spec['rationales']).parent.name}" if spec["rationales"] else ""
        raise DataError(
            f"{different[0]} changed after stage elicit read it; expected the same "
            "data in all stages: run "
            f"`make elicit{study}` again, and the stages after it"
        )


# Data that came to a cluster's worker with its task: no folder of the study is needed there
_given: dict[str, Dataset] = {}


def study_data(base: dict) -> Dataset:
    """Questions and rationales of a study, read once per process."""
    canonical = json.dumps(base["data"], sort_keys=True)
    return _given[canonical] if canonical in _given else _data(canonical)


def give_data(base: dict, data: Dataset) -> None:
    """From here on this process takes the study's questions and rationales from `data`, not from
    files.
    """
    _given[json.dumps(base["data"], sort_keys=True)] = data


@functools.lru_cache(maxsize=2)
def _student(name: str, device: str, dtype: str) -> Student:
    # "auto" trains float32 weights: in bfloat16 an update of 5e-5 is rounded away (the Trainer
    # autocasts)
    where = best_device(device)
    return _by_name(name, torch.float32 if dtype == "auto" else best_dtype(dtype, where), where)


def _by_name(name: str, dtype: torch.dtype, where: torch.device) -> Student:
    """A student under the name that the study gives it.

    A relative path stays one, so that no output names the machine.
    """
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
    """What the frozen blocks of one student make of training sequences, prompts and options, shared
    by the runs of this process.
    """
    return {}


def study_student(base: dict) -> Student:
    """The study's student with its original weights, loaded once per process (runs put the weights
    back in place).
    """
    return _student(base["student"], base["device"], base["dtype"])


def named_student(name: str) -> Student:
    """A student by name or path, in float32 on the CPU: to count tokens before there is a study."""
    return _by_name(name, torch.float32, torch.device("cpu"))


def try_student(name: str, device: str, dtype: str, needs_offsets: bool) -> int:
    """Load a student as a study would and try it (`students.check_attention`).

    0, or 1 after one line that says what is wrong. For a process of its own
    (`study.check_student`).
    """
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
    return usable_questions(
        study_student(base), data.train, data.rationales, base["label_format"], base["max_length"]
    )


def usable(base: dict):
    """The training questions that every arm of the study can use, and the count of what is left out
    and why.
    """
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
    """The training questions of one seed.

    Drawn anew for each seed (`resample_train`), so that the spread between seeds holds the luck of
    the training sample too; or the same for all.
    """
    kept, _ = usable(base)
    return choose_train(
        kept,
        base["train_size"],
        base["data"]["data_seed"] * 1000 + (seed + 1 if base["resample_train"] else 0),
    )


def test_questions(base: dict) -> list:
    """The first `test_size` test questions (0: all)."""
    test = study_data(base).test
    if base["test_size"] > len(test):
        raise DataError(
            f"test_size {base['test_size']} is larger than the data: there are "
            f"{len(test)} test questions"
        )
    return test[: base["test_size"] or len(test)]


def load_base(study: str) -> dict:
    """The study's setting as notebook 02 wrote it."""
    path = study_dir(study) / "base.json"
    enter_study(study, again=False)
    base, needed = (
        read_json(path, f"`make train STUDY={study}`"),
        {"study", "data", "student", "seeds", "train", "label_format", "test_size"},
    )
    if not isinstance(base, dict) or not needed <= set(base):
        found = (
            f"no {', '.join(sorted(needed - set(base)))}"
            if isinstance(base, dict)
            else f"a {type(base).__name__}"
        )
        raise DataError(
            f"{path}: found {found}; expected what `make train STUDY={study}` wrote: run that again"
        )
    check_base_is_current(base)
    return base


def write_base(base: dict) -> None:
    """Hand the study's setting on to the later notebooks, with the fingerprint of a student that
    lies in a local folder: its weights can be changed where they lie.
    """
    local = local_print(resolve(base["student"]))
    write_json(
        study_dir(base["study"]) / "base.json", base | ({"student_print": local} if local else {})
    )


def check_base_is_current(base: dict) -> None:
    """base.json was written from data.json and from the student.

    Neither may have changed since, nor the data that data.json was made from. Raises DataError
    naming the stage that comes first of those to run again: obeyed, it goes on from there.
    """
    study, path = base["study"], study_dir(base["study"]) / "data.json"
    data = read_json(path, f"`make elicit STUDY={study}`") if path.is_file() else base["data"]
    if data.get("content"):
        study_data(base | {"data": data})
    if data != base["data"]:
        raise DataError(
            f"{path}: stage elicit was run again with other data or rationales after "
            "stage train; expected one set in all "
            f"stages: run `make train STUDY={study}` again, and the stages after it"
        )
    known, now = base.get("student_print"), local_print(resolve(base["student"]))
    if known and now and known != now:
        raise DataError(
            f"student '{base['student']}': its files changed after stage train; "
            "expected one student in all stages: run "
            f"`make train STUDY={study}` again, and the stages after it"
        )


def study_base(study: str) -> dict:
    """The setting that notebook 02 writes, from the study's YAML and notebook 01's data.json.

    For making a run without it.
    """
    enter_study(study)
    values = (
        {"study": study}
        | notebook_parameters(root() / "notebooks" / "02_train.ipynb")
        | load_study(study)
    )
    kept = (
        "study",
        "student",
        "device",
        "dtype",
        "seeds",
        "train_size",
        "test_size",
        "resample_train",
        "label_format",
        "max_length",
        "max_new_tokens",
        "max_label_tokens",
        "eval_batch_size",
        "keep_weights",
    )
    train = vars(TrainConfig(**{field.name: values[field.name] for field in fields(TrainConfig)}))
    data = read_json(study_dir(values["study"]) / "data.json", f"`make elicit STUDY={study}`")
    return {key: values[key] for key in kept} | {"data": data, "train": train}


def student_note(base: dict) -> str:
    """What every table says of the student.

    Its name, and that its weights were 4-bit where they were.
    """
    return BUNDLED[base["student"]]["note"] if base["student"] in BUNDLED else base["student"]


def check_arms(arms: list[Arm], stage: str) -> None:
    """A stage's arms: at least one, and none twice.

    Raises DataError.
    """
    if not arms:
        raise DataError(f"stage {stage} has no arm to run; expected at least one")
    labels = [arm.label for arm in arms]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise DataError(f"arm {twice} stands there twice in stage {stage}; expected each arm once")


def check_base(base: dict, arms: list[Arm] | None = None) -> None:
    """Everything about a study that can be wrong, found before the first run starts.

    arms: of stage train. Raises DataError.
    """
    if arms is not None:
        check_arms(arms, "train")
        other = next((arm for arm in arms if arm.corruption), None)
        if other:
            place = CORRUPTIONS[other.corruption].stage
            raise DataError(
                f"arms: {other.label} is trained by `make {place}`; expected arms "
                "without a corruption here"
            )
        main = base["train"].get("loss", "token_mean")
        twice = next((arm for arm in arms if arm.loss == main), None)
        if twice:
            raise DataError(
                f"arm {twice.label}: {main} is the study's own loss; expected another one beside it"
            )
    if not base["seeds"]:
        raise DataError("seeds is empty; expected at least one number")
    if len(set(base["seeds"])) < len(base["seeds"]):
        raise DataError(
            f"seeds {base['seeds']}: a seed stands there twice; expected different numbers"
        )
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in base["seeds"]):
        raise DataError(f"seeds {base['seeds']}; expected whole numbers from 0 to {2**32 - 1}")
    for key, low in (
        ("train_size", 0),
        ("test_size", 0),
        ("max_length", 1),
        ("max_new_tokens", 1),
        ("max_label_tokens", 1),
        ("eval_batch_size", 1),
    ):
        if base[key] < low:
            raise DataError(f"{key} is {base[key]}; expected a number from {low} on")
    if base["label_format"] not in LABEL_FORMATS:
        raise DataError(
            f"label_format '{base['label_format']}'; expected one of {', '.join(LABEL_FORMATS)}"
        )
    config = TrainConfig(**base["train"])
    check_training_dtype(base["dtype"])
    data, student = study_data(base), study_student(base)
    shape = student.model.config
    if config.frozen_layers >= shape.num_hidden_layers:
        raise DataError(
            f"frozen_layers is {config.frozen_layers}; expected 0 to "
            f"{shape.num_hidden_layers - 1} for this student"
        )
    room = getattr(shape, "max_position_embeddings", None)
    if room and base["max_length"] > room:
        raise DataError(
            f"max_length is {base['max_length']}; expected at most {room}, the "
            "student's number of positions"
        )
    check_labels(
        student,
        [*data.train, *data.validation, *data.test],
        base["label_format"],
        base["max_label_tokens"],
    )
    kept, left_out = usable(base)
    if not kept:
        raise DataError(
            f"none of {len(data.train)} training questions can be used: "
            + ", ".join(f"{n} ({why})" for why, n in left_out.items())
            + f"; expected rationales, and a max_length above {base['max_length']}"
        )
    for seed in base["seeds"]:
        train_questions(base, seed)
    if len(test_questions(base)) < 2:
        raise DataError(
            f"test_size is {base['test_size']}, of {len(data.test)} test questions: "
            "1 is left; expected at least 2: an "
            "interval needs them"
        )


def check_offsets(base: dict) -> None:
    """Notebooks 4 and 5 cut rationales into words and sentences by the characters of their tokens.

    Raises DataError for a tokenizer that does not tell these.
    """
    offsets(study_student(base), "a cup")


def check_positions(base: dict, arms: list[Arm]) -> None:
    """Every test and validation prompt, with what the arms' students may write after it, must fit
    into the student's positions, and into its attention window where it has one (options are
    scored with a mask that knows none).

    Raises DataError naming the first that doesn't.
    """
    student = study_student(base)
    room = min(
        (
            n
            for n in (
                getattr(student.model.config, name, None)
                for name in ("max_position_embeddings", "sliding_window")
            )
            if n
        ),
        default=None,
    )
    if room is None:
        return
    for placement in dict.fromkeys(arm.placement for arm in arms):
        after = base["max_label_tokens"] + (
            base["max_new_tokens"] + len(student.encode("\nAnswer:"))
            if placement == "pre_cot"
            else 0
        )
        for example in [*test_questions(base), *study_data(base).validation]:
            n = len(student.bos_ids) + len(
                student.encode(prompt_text(example, placement, base["label_format"]))
            )
            if n + after > room:
                raise DataError(
                    f"question '{example.id}': its prompt is {n} tokens long and "
                    f"{after} may follow (max_label_tokens, max_new_tokens); "
                    f"expected at most {room} in all, the student's positions or "
                    "attention window"
                )


def fingerprints(base: dict) -> dict[str, str]:
    """What the study's data and student hash to: equal fingerprints, equal inputs."""
    seed = base["seeds"][0]
    return {
        "student fingerprint": study_student(base).fingerprint,
        "test questions": fingerprint(test_questions(base)),
        "training questions (first seed)": fingerprint(train_questions(base, seed)),
        "rationales": base["data"]["rationales_print"],
    }


def target_text(base: dict, example, arm: Arm, seed: int) -> str:
    """The rationale of one training question as an arm's student sees it, decoded from its very
    tokens.
    """
    data, student = study_data(base), study_student(base)
    passes = encode_all(
        student, train_questions(base, seed), data.rationales, arm, base["label_format"], seed
    )
    one = next(e for e in passes[0] if e.id == example.id)
    return student.decode([i for i, kind in zip(one.ids, one.kinds) if kind == RATIONALE]).strip()
