"""A study: its setting, its data and student, and the checks before anything is trained.

Notebook 02 decides a `Setting` and writes it down as base.json; every later notebook loads it again
as a `Study`, which reads its questions and its student once, when they are first asked for.

    study = Study.from_parameters(globals())    # notebook 02: the parameters of its cell
    study.check(arms); study.save()
    study = Study.load("quick")                 # the notebooks after it
    study.data, study.student, study.train_questions(seed), study.test_questions()
"""

import functools
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch

from cotdistill.arms import CORRUPTIONS, LABEL_FORMATS, SHOTS, Arm, prompt_text, write_shots
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
from cotdistill.examples import Dataset, Example, Rationale, is_embedded
from cotdistill.files import fingerprint, read_json, write_json
from cotdistill.files import sha256 as checksum
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.mixed import choose_precision
from cotdistill.parameters import (
    check_training_dtype,
    check_worlds,
    load_study,
    notebook_parameters,
)
from cotdistill.paths import (
    artifacts,
    candidate_paths,
    data_places,
    enter_study,
    places,
    root,
    study_dir,
)
from cotdistill.sources import SOURCES, expected_data, load_dataset, load_rationales
from cotdistill.students import BUNDLED, Student, best_device, best_dtype, load_student, local_print
from cotdistill.tiny import TINY


def resolve(path: str) -> str:
    """Return a path of a study as an absolute one.

    It is looked for beside the study's YAML first, then in the repository; ~ is the user's home.
    What `make data` fetches is looked for in both of its places (`paths.data_places`).
    Names stay as they are: of datasets, of bundled students, of the hub; so does the empty text.
    Raises DataError for what can only be a path (it begins with a dot, or ends as a file does) and
    is in neither place.
    """
    if not path or path in SOURCES or path in BUNDLED or path in TINY or is_embedded(path):
        return path
    path = os.path.expanduser(path)
    if Path(path).is_absolute():
        return path
    found = next((place for place in candidate_paths(path) if place.exists()), None)
    if found is None and (path.startswith(".") or Path(path).suffix in (".jsonl", ".json", ".txt")):
        fetch = ", or `make data`" if len(data_places(path)) > 1 else ""
        raise DataError(
            f"{path}: {not_there('file or folder')}; expected a path that exists{fetch}"
        )
    return path if found is None else str(found)


def find_data_dir(data_dir: str, dataset: str) -> str | None:
    """Return the folder that holds a known dataset's own folder; None where data_dir is empty.

    data/ may hold some datasets only; the others are then found in its other place. Raises
    DataError where the path exists in no place (`resolve`).
    """
    if not data_dir:
        return None
    if not Path(data_dir).expanduser().is_absolute():
        for place in candidate_paths(os.path.expanduser(data_dir)):
            if (place / dataset).is_dir():
                return str(place)
    return resolve(data_dir)


def not_there(kind: str) -> str:
    """Say, for an error, that a relative path of a study is in neither place that is searched."""
    beside, repository = [None, *places()][-2:]
    return (
        f"no such {kind} "
        + (f"beside the study's YAML ({beside}) or " if beside else "")
        + f"in the repository ({repository})"
    )


def read_data(spec: dict) -> Dataset:
    """Read the questions and rationales that a data.json names, and check that they are the same.

    spec: what notebook 01 writes; it also reads its questions here, with "rationales" still empty.
    Raises DataError for data that are missing, damaged, or not what notebook 01 read.
    """
    where = resolve(spec["dataset"])
    if (
        where == spec["dataset"]
        and where not in SOURCES
        and not Path(where).is_absolute()
        and not is_embedded(where)
    ):
        raise DataError(f"{where}: {not_there('folder')}; {expected_data()}")
    data = load_dataset(
        where,
        find_data_dir(spec["data_dir"], spec["dataset"]),
        validation_size=spec["validation_size"],
        data_seed=spec["data_seed"],
        microworld=spec["microworld"],
        worlds=spec.get("worlds"),
    )
    check_content(spec, data)
    if not spec["rationales"]:
        return data
    path = artifacts() / spec["rationales"]
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected it from `make elicit`: run that first")
    if spec["rationales_print"] and checksum(path)[:16] != spec["rationales_print"]:
        raise DataError(
            f"{path}: not the file that data.json was written with; expected "
            f"SHA-256 {spec['rationales_print']}…: run `make elicit` again"
        )
    # A recorded set may cover the validation part carved out of train
    rationales = load_rationales(path, [*data.train, *data.validation])
    if not any(e.id in rationales for e in data.train):
        raise DataError(f"{path}: covers none of the {len(data.train)} training questions")
    return replace(data, rationales=rationales)


def load_elsewhere_data(name: str, setting: "Setting") -> Dataset:
    """Load another dataset whose test questions a study's students answer too.

    name: one of `also_answer`, from the study's data_dir or, where that is empty, from the hub; of
    an embedded world with the study's own sizes.
    Raises DataError for the study's own dataset and one that is not there.
    """
    own = setting.data["dataset"]
    if name == own:
        raise DataError(f"also_answer: {name} is the study's own dataset; expected other ones")
    where, embedded = resolve(name), is_embedded(name)
    if where == name and name not in SOURCES and not embedded and not Path(where).is_absolute():
        raise DataError(f"also_answer: {name}: {not_there('folder')}; {expected_data()}")
    folder = None if embedded else find_data_dir(setting.data["data_dir"], name)
    world = dict(data_seed=setting.data["data_seed"], microworld=setting.data["microworld"])
    return load_dataset(where, folder, validation_size=0, **(world if embedded else {}))


def read_elsewhere(name: str, setting: "Setting") -> list[Example]:
    """Read the test questions of another dataset, the first also_answer_size (0: all) of them.

    Raises DataError as `load_elsewhere_data` does, and for free answers.
    """
    questions = load_elsewhere_data(name, setting).test
    free = next((e.id for e in questions if e.is_free), None)
    if free is not None:
        raise DataError(
            f"also_answer: {name}: question '{free}' has a free answer; expected questions with "
            "`choices`, which forced choice needs"
        )
    return questions[: setting.also_answer_size or len(questions)]


def content_fingerprints(data: Dataset, files: list[str] = ()) -> dict:
    """Record by content what notebook 01 read.

    That is: the fingerprints of the questions of each split and of the data's own rationales, and
    the SHA-256 of other files that rationales came from (paths as the study names them; empty ones
    are left out).
    """
    return {
        "train": fingerprint(data.train),
        "validation": fingerprint(data.validation),
        "test": fingerprint(data.test),
        "rationales": fingerprint(data.rationales),
        "files": {name: checksum(Path(resolve(name))) for name in files if name},
    }


def check_content(spec: dict, data: Dataset) -> None:
    """Check that the data are what notebook 01 read.

    Else what it made of them, and all that follows, would be of other questions.

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
    now = content_fingerprints(data)
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
        for name, checksum_now in files.items()
        if checksum_now != known["files"][name]
    ]
    if different:
        study = f" STUDY={Path(spec['rationales']).parent.name}" if spec["rationales"] else ""
        raise DataError(
            f"{different[0]} changed after stage elicit read it; expected the same data in all "
            f"stages: run `make elicit{study}` again, and the stages after it"
        )


def training_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the weights that a study trains.

    "auto" is float32: in bfloat16 an update of 5e-5 is rounded away. What is multiplied in
    bfloat16 is `precision`'s to say.
    """
    return torch.float32 if dtype == "auto" else best_dtype(dtype, device)


def load_fresh_student(name: str, device: str, dtype: str) -> Student:
    """Load a study's student in a copy of its own, whose weights may stay changed."""
    where = best_device(device)
    return _by_name(name, training_dtype(dtype, where), where)


@functools.lru_cache(maxsize=2)
def shared_student(name: str, device: str, dtype: str) -> Student:
    """Load a student with its original weights, once for all studies of this process.

    Runs put its weights back in place.
    """
    return load_fresh_student(name, device, dtype)


def _by_name(name: str, dtype: torch.dtype, where: torch.device) -> Student:
    """Load a student under the name that the study gives it.

    A relative path stays one, so that no output names the machine.
    """
    try:
        path = resolve(name)
    except DataError:
        raise DataError(
            f"student '{name}': no config.json in that folder, {not_there('folder')}; expected a "
            "model saved by save_pretrained"
        ) from None
    student = load_student(path, dtype, where)
    return (
        student
        if student.name == name
        else replace(student, name=name, note=student.note.replace(student.name, name))
    )


def named_student(name: str) -> Student:
    """Load a student by name or path, in float32 on the CPU.

    For counting tokens before there is a study.
    """
    return _by_name(name, torch.float32, torch.device("cpu"))


def try_student(name: str, device: str, dtype: str, needs_offsets: bool) -> int:
    """Load a student as a study would and try it (`students.check_attention`).

    Returns 0, or 1 after one line that says what is wrong. For a process of its own
    (`parameters.check_student`).
    """
    try:
        student = load_fresh_student(name, device, dtype)
        if needs_offsets:
            offsets(student, "a cup")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def teacher_student(name: str) -> Student:
    """Load a local teacher as `elicit.local.elicit_transformers` does."""
    where = best_device("auto")
    return _by_name(name, best_dtype("auto", where), where)


def check_arms(arms: list[Arm], stage: str) -> None:
    """Raise DataError for a stage without an arm, or with the same arm twice."""
    if not arms:
        raise DataError(f"stage {stage} has no arm to run; expected at least one")
    labels = [arm.label for arm in arms]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise DataError(f"arm {twice} is named twice in stage {stage}; expected each arm once")


@dataclass(frozen=True)
class Setting:
    """What notebook 02 decides about a study; its JSON is base.json.

    data: what notebook 01 wrote into data.json. train_size, test_size: questions (0: all).
    max_length, max_new_tokens, max_label_tokens: in tokens. keep_weights (of the first pre_cot
    student, for notebook 05) is no part of base.json. student_print: fingerprint of a student that
    lies in a local folder, "" for others and before the setting is saved. worlds: "shared", or
    "per_seed" where each seed has a microworld of its own. also_answer: further datasets whose test
    questions each student answers by forced choice, the first also_answer_size (0: all); no part of
    a run's key, for they change no run. shots: how many solved questions stand above those of an
    arm few_shot or few_shot_cot; no parameter of notebook 02.
    """

    study: str
    data: dict
    student: str
    device: str
    dtype: str
    seeds: list[int]
    train_size: int
    test_size: int
    resample_train: bool
    label_format: str
    max_length: int
    max_new_tokens: int
    max_label_tokens: int
    eval_batch_size: int
    train: TrainConfig
    keep_weights: bool = False
    student_print: str = ""
    worlds: str = "shared"
    also_answer: list[str] = field(default_factory=list)
    also_answer_size: int = 0
    shots: int = SHOTS

    def to_json(self) -> dict:
        """Return the setting as base.json holds it."""
        values = asdict(self)
        del values["keep_weights"]
        if not values["student_print"]:
            del values["student_print"]
        if values["worlds"] == "shared":
            del values["worlds"]
        if not values["also_answer"]:
            del values["also_answer"], values["also_answer_size"]
        if values["shots"] == SHOTS:
            del values["shots"]
        return values

    @classmethod
    def from_json(cls, values: dict, where: Path | str, study: str) -> "Setting":
        """Read the setting that a base.json holds.

        `where` and `study` are for the error's text.
        Raises DataError for one that `make train` did not write.
        """
        added = ("student_print", "worlds", "also_answer", "also_answer_size", "shots")
        later = ("keep_weights", *added)
        wanted = [f.name for f in fields(cls) if f.name not in later]
        if not isinstance(values, dict):
            problem = f"a {type(values).__name__}"
        elif not set(wanted) <= set(values):
            problem = f"no {', '.join(sorted(set(wanted) - set(values)))}"
        elif not isinstance(values["train"], dict):
            problem = f"a {type(values['train']).__name__} as train"
        else:
            known = {one.name for one in fields(TrainConfig)}
            problem = ", ".join(f"train's {name}" for name in values["train"] if name not in known)
        if problem:
            raise DataError(
                f"{where}: found {problem}; expected what `make train STUDY={study}` wrote: "
                "run that again"
            )
        kept = {name: values[name] for name in wanted} | {"train": TrainConfig(**values["train"])}
        return cls(**kept, **{name: values[name] for name in added if name in values})


# The parameters of notebook 02 that are part of a study's setting under their own names
PARAMETERS = [
    one.name
    for one in fields(Setting)
    if one.name not in ("data", "train", "student_print", "shots")
]


class Study:
    """A setting, and the questions and the student that belong to it, each loaded once."""

    def __init__(
        self, setting: Setting, data: Dataset | None = None, mentioned: dict | None = None
    ):
        """Take a setting, and its data where they are at hand, as on a cluster's worker.

        mentioned: of a study re-read from its published runs (`from_record`), else None.
        """
        self.setting, self.mentioned = setting, mentioned
        self.numbers = {}  # of the test questions, where the study is re-read (`breadth`)
        # Called with what its runs learn as they train: batches, validations, epochs (`train_arm`)
        self.watch = lambda row: None
        if data is not None:
            self.data = data

    @classmethod
    def from_parameters(cls, values: dict) -> "Study":
        """Make the study that notebook 02's parameters describe, with notebook 01's data.json.

        values: parameters by name; other names, as in a notebook's globals(), are not looked at.
        Raises DataError for a hyperparameter out of range or where data.json is missing.
        """
        where = best_device(values["device"])
        weights = training_dtype(values["dtype"], where)
        precision = choose_precision(values["precision"], where, weights)
        train = TrainConfig.from_values(values, precision)
        path = study_dir(values["study"]) / "data.json"
        data = read_json(path, f"`make elicit STUDY={values['study']}`")
        chosen = {name: values[name] for name in PARAMETERS}
        return cls(Setting(**chosen, data=data, train=train))

    @classmethod
    def from_yaml(cls, name: str) -> "Study":
        """Make the study that notebook 02 would write for this YAML, without running it.

        name: of a study in params/, or the path of its YAML.
        """
        enter_study(name)
        defaults = notebook_parameters(root() / "notebooks" / "02_train.ipynb")
        return cls.from_parameters({"study": name} | defaults | load_study(name))

    @classmethod
    def load(cls, name: str) -> "Study":
        """Load the study as notebook 02 saved it.

        Raises DataError where base.json is missing or damaged, or where data or student changed
        since.
        """
        path = study_dir(name) / "base.json"
        if path.with_name("published.json").is_file():
            return cls.from_record(read_json(path.with_name("published.json"), "`make reread`"))
        enter_study(name, again=False)
        values = read_json(path, f"`make train STUDY={name}`")
        study = cls(Setting.from_json(values, path, name))
        study.check_is_current()
        return study

    @classmethod
    def from_record(cls, record: dict) -> "Study":
        """Make a study of what `make publish` recorded of it (`runs.record`).

        Its test questions have ids, options' lengths and answers, and no texts. There is no
        student, and no training question.
        """
        base, rows = record["base"], record["questions"]
        setting = Setting.from_json(base, "study.json", base["study"])
        # Different options of the right length in bytes, by which one measure divides their log p
        stand_ins = [tuple(chr(97 + i) * n for i, n in enumerate(r["bytes"])) for r in rows]
        test = [Example(r["id"], "", o, r["answer"]) for r, o in zip(rows, stand_ins, strict=True)]
        names = ("fact", "fact_in", "world")
        meta = {r["id"]: {n: r[n] for n in names if n in r} for r in rows if "fact" in r}
        data = Dataset(setting.data["dataset"], [], [], test, {}, meta)
        study = cls(setting, data, record["mentioned"])
        study.numbers = {r["id"]: r["numbers"] for r in rows if "numbers" in r}
        return study

    @property
    def is_record(self) -> bool:
        """Whether this study is re-read from its published runs: no texts, no student."""
        return self.mentioned is not None

    def save(self) -> None:
        """Write base.json for the later notebooks.

        It holds the fingerprint of a student in a local folder, where its weights can be changed.
        """
        local = local_print(resolve(self.setting.student)) or ""
        setting = replace(self.setting, student_print=local)
        write_json(self.folder / "base.json", setting.to_json())

    def replace(self, **changes) -> "Study":
        """Return a study with some of this one's setting changed.

        What does not depend on the changes is not read again.
        train: a TrainConfig, or a dict of the hyperparameters that change.
        """
        if isinstance(changes.get("train"), dict):
            changes["train"] = replace(self.setting.train, **changes["train"])
        setting = replace(self.setting, **changes)
        known = self.__dict__.get("data") if setting.data == self.setting.data else None
        return Study(setting, known)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.setting.study

    @property
    def folder(self) -> Path:
        """Where its notebooks hand results to each other."""
        return study_dir(self.name)

    @functools.cached_property
    def data(self) -> Dataset:
        """Questions and rationales."""
        return read_data(self.setting.data)

    @functools.cached_property
    def elsewhere(self) -> dict[str, list[Example]]:
        """The test questions of `also_answer`: dataset -> its questions, in their order."""
        setting = self.setting
        return {name: read_elsewhere(name, setting) for name in setting.also_answer}

    @functools.cached_property
    def student(self) -> Student:
        """The student with its original weights (runs put them back in place)."""
        return shared_student(self.setting.student, self.setting.device, self.setting.dtype)

    @functools.cached_property
    def trunks(self) -> dict:
        """What the student's frozen blocks make of training sequences, prompts and options.

        Shared by the study's runs in this process.
        """
        return {}

    @property
    def note(self) -> str:
        """What every table says of the student.

        Its name; where its weights were 4-bit, that they were; and where it is trained with
        bfloat16 matrix products, that it is.
        """
        student, precision = self.setting.student, self.setting.train.precision
        name = BUNDLED[student]["note"] if student in BUNDLED else student
        if precision == "float32":
            return name
        return f"{name}, trained with {precision} matrix products"

    @property
    def chance(self) -> float:
        """The accuracy of a uniform guess: the mean of 1 / options over all test questions."""
        return float(np.mean([e.chance for e in self.test_questions()]))

    @functools.cached_property
    def _usable(self) -> tuple[list[Example], dict[str, int]]:
        data, setting = self.data, self.setting
        return usable_questions(
            self.student, data.train, data.rationales, setting.label_format, setting.max_length
        )

    def usable_questions(self) -> tuple[list[Example], dict[str, int]]:
        """Return the training questions that every arm can use, and counts of the others.

        The others are counted by the reason why they are left out.
        """
        return self._usable

    @property
    def has_own_worlds(self) -> bool:
        """Whether each seed has a microworld of its own."""
        return self.setting.worlds == "per_seed"

    @functools.cached_property
    def _usable_by_world(self) -> dict[int, list[Example]]:
        """The usable training questions of each seed's world.

        `max_length` may leave out more in one world than in another; each keeps its first ones, as
        many as the smallest has, so that all seeds train on equally many.
        """
        kept, _ = self.usable_questions()
        worlds = {seed: self.data.in_world(kept, seed) for seed in self.setting.seeds}
        fewest = min(map(len, worlds.values()))
        return {seed: questions[:fewest] for seed, questions in worlds.items()}

    def say_of_worlds(self, say=print) -> None:
        """Say how many usable questions are not trained on, as another world has fewer."""
        if self.has_own_worlds:
            usable, _ = self.usable_questions()
            kept = {seed: len(self.data.in_world(usable, seed)) for seed in self.setting.seeds}
            left_out = sum(kept.values()) - len(kept) * min(kept.values())
            if left_out:
                say(
                    f"worlds have {min(kept.values()):,} to {max(kept.values()):,} usable training "
                    f"questions; {left_out:,} are left out, so that all have as many",
                    flush=True,
                )

    def train_questions(self, seed: int) -> list[Example]:
        """Choose the training questions of one seed.

        Of its own world, where it has one. Drawn again for each seed (`resample_train`), so that
        the spread between seeds holds the luck of the training sample too; or the same for all.
        """
        kept = self._usable_by_world[seed] if self.has_own_worlds else self.usable_questions()[0]
        offset = seed + 1 if self.setting.resample_train else 0
        return choose_train(
            kept, self.setting.train_size, self.setting.data["data_seed"] * 1000 + offset
        )

    def write_shots(self, arm: Arm, seed: int) -> str:
        """Write the solved questions that stand above an arm's; empty for all but few_shot arms.

        They are the first of the first seed's training questions (of the seed's own world, where it
        has one), so that one run serves all seeds.
        """
        if arm.placement not in ("few_shot", "few_shot_cot"):
            return ""
        seed = seed if self.has_own_worlds else self.setting.seeds[0]
        examples = self.train_questions(seed)[: self.setting.shots]
        form = self.setting.label_format
        return write_shots(examples, self.data.rationales, arm.asked_as, form)

    def test_questions(self, seed: int | None = None) -> list[Example]:
        """Return the first `test_size` test questions (0: all) of one seed.

        Where all seeds share a world, the seed does not matter. Where each has its own, None means
        those of all worlds. Raises DataError where there are fewer.
        """
        if self.has_own_worlds and seed is None:
            return [e for each in self.setting.seeds for e in self.test_questions(each)]
        test, size = self.data.test, self.setting.test_size
        if self.has_own_worlds:
            test = self.data.in_world(test, seed)
        if size > len(test):
            raise DataError(
                f"test_size {size} is larger than the data: there are {len(test)} test questions"
            )
        return test[: size or len(test)]

    def validation_questions(self, seed: int) -> list[Example]:
        """Return the questions by which the epoch of a seed's runs is chosen, of its world."""
        data = self.data
        return data.in_world(data.validation, seed) if self.has_own_worlds else data.validation

    def rationales_for(self, arm: Arm) -> dict[str, Rationale]:
        """Return the rationales, by the question's id, that an arm's training texts are made of.

        A `swapped` arm gets those of another world where the data have them (`Dataset.donors`):
        then it reads no fact of its own world. What it swaps are these.
        """
        donors = self.data.donors
        return donors if arm.corruption == "swapped" and donors else self.data.rationales

    def fingerprints(self) -> dict[str, str]:
        """Hash the study's data and student: equal fingerprints, equal inputs."""
        return {
            "student fingerprint": self.student.fingerprint,
            "test questions": fingerprint(self.test_questions()),
            "training questions (first seed)": fingerprint(
                self.train_questions(self.setting.seeds[0])
            ),
            "rationales": self.setting.data["rationales_print"],
        }

    def target_text(self, example: Example, arm: Arm, seed: int) -> str:
        """Show the rationale of one training question as an arm's student sees it.

        Decoded from the very tokens that are trained on.
        """
        questions, student = self.train_questions(seed), self.student
        passes = encode_all(
            student, questions, self.rationales_for(arm), arm, self.setting.label_format, seed
        )
        encoded = next(e for e in passes[0] if e.id == example.id)
        ids = [i for i, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == RATIONALE]
        return student.decode(ids).strip()

    def warn_of_length(self, say=print) -> None:
        """Say when `max_length` leaves out more than a tenth, and which length would keep 99 %."""
        kept, left_out = self.usable_questions()
        limit = self.setting.max_length
        over = left_out.get(f"over {limit} tokens", 0)
        if 10 * over <= len(kept) + over:
            return
        data, student = self.data, self.student
        lengths = [
            training_length(student, e, data.rationales[e.id].text, self.setting.label_format)
            for e in data.train
            if e.id in data.rationales and data.rationales[e.id].text
        ]
        room = getattr(student.model.config, "max_position_embeddings", None)
        say(
            f"max_length {limit} leaves out {over:,} of {len(lengths):,} training questions; "
            f"max_length {length_to_keep(lengths)} would keep 99 % of them"
            + (f" (the student has {room} positions)" if room else ""),
            flush=True,
        )

    def check(self, arms: list[Arm] | None = None) -> None:
        """Find everything that can be wrong about a study before the first run starts.

        arms: of stage train. Raises DataError.
        """
        if arms is not None:
            check_train_arms(arms, self.setting.train.loss)
        check_setting(self.setting)
        self._check_worlds()
        if self.setting.label_format != "text" and any(e.is_free for e in self.data.test):
            raise DataError(
                f"label_format is '{self.setting.label_format}', and the questions have free "
                "answers; expected label_format: text, or questions with `choices`"
            )
        self._check_student()
        self._check_questions()
        _ = self.elsewhere  # reads and checks them

    def _check_worlds(self) -> None:
        """Check that notebook 01 drew the worlds that the seeds need."""
        setting, drawn = self.setting, self.setting.data.get("worlds")
        seeds, data = setting.seeds, setting.data
        check_worlds(setting.worlds, data["dataset"], seeds, data["data_seed"])
        needed = seeds if self.has_own_worlds else None
        if self.has_own_worlds != bool(drawn) or not set(needed or []) <= set(drawn or []):
            has = f"a world for each of the seeds {drawn}" if drawn else "one world for all seeds"
            raise DataError(
                f"worlds is {setting.worlds}, seeds {seeds}, but stage elicit drew {has}; expected "
                f"the same worlds and seeds in both: run `make elicit STUDY={self.name}` again"
            )

    def _check_student(self) -> None:
        """Check that the student has the blocks and positions that the setting asks for.

        It must have room for every label too.
        """
        setting, data, shape = self.setting, self.data, self.student.model.config
        if setting.train.frozen_layers >= shape.num_hidden_layers:
            raise DataError(
                f"frozen_layers is {setting.train.frozen_layers}; expected 0 to "
                f"{shape.num_hidden_layers - 1} for this student"
            )
        room = getattr(shape, "max_position_embeddings", None)
        if room and setting.max_length > room:
            raise DataError(
                f"max_length is {setting.max_length}; expected at most {room}, the "
                "student's number of positions"
            )
        questions = [*data.train, *data.validation, *data.test]
        check_labels(self.student, questions, setting.label_format, setting.max_label_tokens)

    def _check_questions(self) -> None:
        """Check that enough questions are left, to train on with every seed and to test on."""
        data = self.data
        kept, left_out = self.usable_questions()
        if not kept:
            raise DataError(
                f"none of {len(data.train)} training questions can be used: "
                + ", ".join(f"{n} ({why})" for why, n in left_out.items())
                + f"; expected rationales, and a max_length above {self.setting.max_length}"
            )
        for seed in self.setting.seeds:
            self.train_questions(seed)
        if len(self.test_questions(self.setting.seeds[0])) < 2:
            raise DataError(
                f"test_size is {self.setting.test_size}, of {len(data.test)} test questions: "
                "1 is left; expected at least 2: an interval needs them"
            )

    def check_offsets(self) -> None:
        """Raise DataError for a tokenizer that does not tell the characters of its tokens.

        Notebooks 4 and 5 cut rationales into words and sentences by them.
        """
        if self.is_record:
            return
        offsets(self.student, "a cup")

    def check_positions(self, arms: list[Arm]) -> None:
        """Check that every test and validation prompt leaves room for an answer.

        With what the arms' students may write after it, it must fit into the student's positions,
        and into its attention window where it has one (options are scored with a mask that knows
        none). Raises DataError naming the first prompt that doesn't.
        """
        student, setting = self.student, self.setting
        names = ("max_position_embeddings", "sliding_window")
        limits = [getattr(student.model.config, name, None) for name in names]
        room = min(filter(None, limits), default=None)
        if room is None:
            return
        asked = [*self.test_questions(), *self.data.validation, *sum(self.elsewhere.values(), [])]
        for arm in {arm.placement: arm for arm in arms}.values():
            after, placement = setting.max_label_tokens, arm.asked_as
            above = student.bos_ids + student.encode(self.write_shots(arm, setting.seeds[0]))
            if placement == "pre_cot":
                after += setting.max_new_tokens + len(student.encode("\nAnswer:"))
            for example in asked:
                prompt = prompt_text(example, placement, setting.label_format)
                n = len(above) + len(student.encode(prompt))
                if n + after > room:
                    raise DataError(
                        f"question '{example.id}': its prompt is {n} tokens long and "
                        f"{after} may follow (max_label_tokens, max_new_tokens); "
                        f"expected at most {room} in all, the student's positions or "
                        "attention window"
                    )

    def check_is_current(self) -> None:
        """Check that nothing changed since base.json was written.

        It was written from data.json and from the student. Neither may have changed, nor the data
        that data.json was made from. Raises DataError
        naming the stage that comes first of those to run again: obeyed, it goes on from there.
        """
        path, setting = self.folder / "data.json", self.setting
        spec = setting.data
        if path.is_file():
            spec = read_json(path, f"`make elicit STUDY={self.name}`")
        if spec.get("content"):
            # Raises where the data are not what notebook 01 read
            _ = self.data if spec == setting.data else read_data(spec)
        if spec != setting.data:
            raise DataError(
                f"{path}: stage elicit was run again with other data or rationales after "
                f"stage train; expected one set in all stages: run `make train STUDY={self.name}` "
                "again, and the stages after it"
            )
        now = local_print(resolve(setting.student))
        if setting.student_print and now and setting.student_print != now:
            raise DataError(
                f"student '{setting.student}': its files changed after stage train; expected one "
                f"student in all stages: run `make train STUDY={self.name}` again, and the stages "
                "after it"
            )


def study_name(study: Study | str) -> str:
    """Return the name of a study that is given as itself or by its name."""
    return study if isinstance(study, str) else study.name


def check_train_arms(arms: list[Arm], main_loss: str) -> None:
    """Check the arms of stage train: intact ones, each once.

    A loss of their own must be another one than the study's. Raises DataError.
    """
    check_arms(arms, "train")
    other = next((arm for arm in arms if arm.corruption), None)
    if other:
        stage = CORRUPTIONS[other.corruption].stage
        raise DataError(
            f"arms: {other.label} is trained by `make {stage}`; expected arms "
            "without a corruption here"
        )
    same = next((arm for arm in arms if arm.loss == main_loss), None)
    if same:
        raise DataError(
            f"arm {same.label}: {main_loss} is the study's own loss; expected another one beside it"
        )


def check_setting(setting: Setting) -> None:
    """Check seeds, sizes, label format and dtype, each by itself.

    Raises DataError.
    """
    seeds = setting.seeds
    if not seeds:
        raise DataError("seeds is empty; expected at least one number")
    if len(set(seeds)) < len(seeds):
        raise DataError(f"seeds {seeds}: a seed is named twice; expected different numbers")
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise DataError(f"seeds {seeds}; expected whole numbers from 0 to {2**32 - 1}")
    at_least = {"train_size": 0, "test_size": 0, "max_length": 1, "max_new_tokens": 1}
    for name, low in (at_least | {"max_label_tokens": 1, "eval_batch_size": 1}).items():
        if getattr(setting, name) < low:
            raise DataError(f"{name} is {getattr(setting, name)}; expected a number from {low} on")
    if setting.label_format not in LABEL_FORMATS:
        raise DataError(
            f"label_format '{setting.label_format}'; expected one of {', '.join(LABEL_FORMATS)}"
        )
    check_training_dtype(setting.dtype)
