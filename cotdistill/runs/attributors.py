"""The students that attribute, and which questions each may attribute."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors.torch import load_file

from cotdistill.arms import Arm
from cotdistill.checkpoints import restore_parameters
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.files import fingerprint
from cotdistill.paths import artifacts
from cotdistill.runs.one import make_config, run_key
from cotdistill.runs.results import load_stage
from cotdistill.runs.store import load_or_make_run
from cotdistill.students import Student
from cotdistill.study import Study, load_fresh_student

TESTED = 32  # test questions that a cross-fitted student answers: enough to see that it learnt


@dataclass(frozen=True)
class Attributor:
    """Hold a student that attributes, and what it may say something about.

    student      its model; several attributors may share it and differ in `weights`
    fingerprint  of its weights: a run's key, or the undistilled student's own
    weights      the file of its trained parameters; None: as the student is
    trained_on   ids of the questions that it was trained on
    covers       ids of the questions that it attributes; None: all
    """

    student: Student
    fingerprint: str
    weights: Path | None = None
    trained_on: frozenset[str] = field(default=frozenset(), repr=False)
    covers: frozenset[str] | None = field(default=None, repr=False)

    def load(self) -> Student:
        """Return the student with this attributor's weights in it.

        They stay until another attributor of the same student is loaded: finish with one first.
        """
        if self.weights:
            restore_parameters(self.student.model, load_file(self.weights))
        return self.student

    def choose(self, examples: list[Example]) -> list[Example]:
        """Choose the questions that it attributes, in their order."""
        return [e for e in examples if self.covers is None or e.id in self.covers]


def load_attributors(study: Study, model: str, seed: int, say=print) -> list[Attributor]:
    """Load the students that attribute their answer to rationale tokens.

    model: "pre_cot" (that arm's run of `seed`, which has seen the questions that it attributes),
    "undistilled", or "cross_fitted": two pre_cot students, each trained here on one half of the
    training questions, where the store has none, and each attributing the other half. Raises
    DataError for another name, and where weights of pre_cot are missing.
    """
    if model == "cross_fitted":
        return _cross_fit(study, seed, say)
    student, print_of = attributing_student(study, model, seed)
    seen = study.train_questions(seed) if model == "pre_cot" else []
    return [Attributor(student, print_of, trained_on=frozenset(e.id for e in seen))]


def attributing_student(study: Study, model: str, seed: int) -> tuple[Student, str]:
    """Load one student that attributes, with the fingerprint of its weights.

    model: "pre_cot" (that arm's run of `seed`, in a copy of its own, so that nothing trained later
    starts from them) or "undistilled". Raises DataError where that run or its weights are missing.
    """
    if model == "undistilled":
        return study.student, study.student.fingerprint
    if model != "pre_cot":
        raise DataError(
            f"attribution_model '{model}'; expected pre_cot, cross_fitted or undistilled"
        )
    plan = load_stage(study.name, "train")
    key = next(
        (row["key"] for row in plan if (row["label"], row["seed"]) == ("pre_cot", seed)), None
    )
    path = artifacts() / "runs" / (key or "none") / "weights.safetensors"
    if key is None or not path.is_file():
        raise DataError(
            f"study '{study.name}': no weights of pre_cot, seed {seed}; expected them from "
            "`make train` with pre_cot among the arms and keep_weights true "
            "(or attribution_model: undistilled)"
        )
    setting = study.setting
    student = load_fresh_student(setting.student, setting.device, setting.dtype)
    restore_parameters(student.model, load_file(path))
    return student, key


def split_halves(examples: list[Example]) -> list[list[Example]]:
    """Split questions into two halves by a hash of their ids, each in the given order.

    Two questions that are worded alike come into one half: a student that saw the one would know
    the other. So the halves are equal up to such groups. Raises DataError where a half is empty.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(" ".join(example.question.lower().split()), []).append(example)
    halves: list[list[Example]] = [[], []]
    for question in sorted(groups, key=fingerprint):
        min(halves, key=len).extend(groups[question])
    if not all(halves):
        raise DataError(
            f"{len(examples)} training questions cannot be split into two halves; expected at "
            "least two different ones (or attribution_model: pre_cot)"
        )
    chosen = {e.id for e in halves[0]}
    return [[e for e in examples if (e.id in chosen) == first] for first in (True, False)]


def _cross_fit(study: Study, seed: int, say) -> list[Attributor]:
    """Train a pre_cot student on each half of a seed's questions; each covers what it has not seen.

    All seeds' questions are split, where they differ, and those of `seed` are trained on.
    """
    setting, train = study.setting, study.train_questions(seed)
    every = {e.id: e for s in setting.seeds for e in study.train_questions(s)}
    halves = [frozenset(e.id for e in half) for half in split_halves(list(every.values()))]
    student = load_fresh_student(setting.student, setting.device, setting.dtype)
    found = []
    for number, ids in enumerate(halves):
        part = [e for e in train if e.id in ids]
        key = _train_half(study, part, number, seed, say)
        weights = artifacts() / "runs" / key / "weights.safetensors"
        seen = frozenset(e.id for e in part)
        found.append(Attributor(student, key, weights, seen, halves[1 - number]))
    return found


def _train_half(study: Study, part: list[Example], number: int, seed: int, say) -> str:
    """Load or make the pre_cot run on one half of the questions, with weights; return its key.

    It is a run of the store like any other: it resumes, and its key holds its own questions. It
    stands in no plan, and answers a few test questions only: nothing is concluded from it.
    """
    setting, arm = study.setting, Arm("pre_cot")
    tested = min(TESTED, len(study.test_questions(seed)))
    alone = replace(setting, seeds=[seed], train_size=0, test_size=tested, also_answer=[])
    half = Study(alone, replace(study.data, train=part))
    config = make_config(half, arm, seed)
    metrics, fresh = load_or_make_run(half, arm, seed, config, keep_weights=True, say=say)
    say(
        f"[{number + 1}/2] pre_cot seed {seed} on half of the training questions "
        f"({len(part)}): forced choice {100 * metrics['accuracy']:.1f} % of {metrics['n']}, "
        + ("trained here" if fresh else "from the store"),
        flush=True,
    )
    return run_key(config)
