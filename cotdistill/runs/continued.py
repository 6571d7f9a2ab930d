"""Continued fine-tuning: a trained student goes on with labels alone, asked after each epoch.

Two phases. The first is a run of the study (an arm, a seed); where the store does not have its
weights it is trained again from its config. The second starts from those weights with a fresh
optimiser and learns the labels of some questions. All students of a seed then see the same
questions in the same order, and all are asked for the answer at once (the prompt of label_only),
the pre_cot student too: what is compared is what they know, not how they were taught to speak.

A continuation is a run of the store. Its key holds the first run's key and the second phase's
setting, so it is found again, and a killed one goes on from its last checkpoint.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file

from cotdistill.arms import Arm, arm_from_name, prompt_text
from cotdistill.checkpoints import restore_parameters, trainable_parameters
from cotdistill.encode import encode, encode_all
from cotdistill.errors import DataError
from cotdistill.evaluate import accuracy, evaluate, validation_scores
from cotdistill.examples import Example
from cotdistill.files import atomic_write, fingerprint, write_json
from cotdistill.hyperparameters import TrainConfig, training_key
from cotdistill.lasting import BASE
from cotdistill.paths import artifacts
from cotdistill.runs.one import STORE_VERSION, answer_limits, make_config, run_key, train_arm
from cotdistill.runs.store import load_metrics, load_or_make
from cotdistill.sources import load_dataset
from cotdistill.stats import describe_questions
from cotdistill.students import Student
from cotdistill.study import Study, check_arms, resolve
from cotdistill.train import fine_tune

SAME = "same"  # the continuation on the study's own training questions
LABELS = Arm("label_only")


@dataclass(frozen=True)
class Continuation:
    """Hold a second phase: on what it learns labels, for how many epochs, at what rate.

    on: "same" (the study's training questions) or a dataset. lr 0: the study's own.
    """

    on: str
    epochs: int
    lr: float = 0.0

    def train_config(self, first: TrainConfig) -> TrainConfig:
        """Return the second phase's hyperparameters: the first one's, for its own epochs."""
        chosen = {"epochs": self.epochs, "lr": self.lr or first.lr}
        return replace(first, **chosen, select="last", patience=0, loss="token_mean")


@contextmanager
def keep_base_weights(student: Student):
    """Put the student's weights back as they were, when closed."""
    student.model.requires_grad_(True)
    before = {name: value.clone() for name, value in student.model.named_parameters()}
    try:
        yield
    finally:
        restore_parameters(student.model, before)
        student.model.requires_grad_(True)


def continued_questions(study: Study, continuation: Continuation, seed: int) -> list[Example]:
    """Return the questions whose labels the second phase learns.

    Those of the study's own run of the seed; of another dataset the first ones that fit, at most as
    many. Raises DataError where none fits, or where a test question of the study is among them.
    """
    own = study.train_questions(seed)
    if continuation.on == SAME:
        return own
    setting = study.setting
    sizes = {"n_train": len(own), "n_test": 2}
    data = load_dataset(
        resolve(continuation.on),
        resolve(setting.data["data_dir"]) or None,
        validation_size=2,
        data_seed=setting.data["data_seed"],
        microworld=sizes,
    )
    tested = {(e.question, e.choices) for e in study.test_questions()}
    repeated = next((e for e in data.train if (e.question, e.choices) in tested), None)
    if repeated:
        raise DataError(
            f"continue_on {continuation.on}: its training question '{repeated.id}' is a test "
            f"question of study '{study.name}'; expected another dataset"
        )
    form, limit = setting.label_format, setting.max_length
    fits = [e for e in data.train if len(encode(study.student, e, "", LABELS, form).ids) <= limit]
    if not fits:
        raise DataError(
            f"continue_on {continuation.on}: none of its {len(data.train)} questions fits into "
            f"max_length {limit}; expected a dataset of shorter questions"
        )
    return fits[: len(own)]


def continuation_config(
    study: Study, first: dict, continuation: Continuation, questions: list[Example]
) -> dict:
    """Collect what a continuation's result depends on: the first run's config, and the second."""
    training = continuation.train_config(study.setting.train)
    return {
        "store": STORE_VERSION,
        "first": run_key(first),
        "seed": first["seed"],
        "test": fingerprint(study.test_questions(first["seed"])),
        "continuation": {
            "train": fingerprint(questions),
            "training": training_key(vars(training), LABELS),
        },
    }


def first_phase_weights(study: Study, arm: Arm, seed: int, config: dict, say=print) -> dict:
    """Return the trained weights of a run: from the store, else by training it again.

    The student is left with other weights than before. Checkpoints lie beside the run's place in
    the store (`first_phase_folder`), so that a killed training goes on.
    """
    key = run_key(config)
    kept = artifacts() / "runs" / key / "weights.safetensors"
    if kept.is_file() and "weights.safetensors" in (load_metrics(key) or {"files": ()})["files"]:
        return load_file(kept)
    train_arm(study, arm, seed, first_phase_folder(key), say=say)
    return {name: p.clone() for name, p in trainable_parameters(study.student.model).items()}


def first_phase_folder(key: str) -> Path:
    """Return where the first phase is trained again, beside its run."""
    return artifacts() / "runs" / f"{key}.first"


def ask_at_once(study: Study, seed: int) -> list[dict]:
    """Ask the student, as it is now, all test questions of a seed by the prompt of label_only."""
    setting = study.setting
    return evaluate(
        study.student,
        study.test_questions(seed),
        "label_only",
        setting.label_format,
        **answer_limits(study),
        generate=False,
        trunk=(setting.train.frozen_layers, study.trunks),
    )


def write_answers(path: Path, answers: list[dict], **about) -> None:
    """Write answers as JSON lines, each with what it is about; completely or not at all."""
    with atomic_write(path) as part, part.open("w", encoding="utf-8") as out:
        for row in answers:
            kept = {name: row[name] for name in ("id", "gold", "scores", "choice")}
            out.write(json.dumps(about | kept, ensure_ascii=False) + "\n")


def continue_student(
    study: Study,
    continuation: Continuation,
    questions: list[Example],
    seed: int,
    folder: Path,
    say: Callable = print,
) -> dict:
    """Train the student, as it is now, on labels, and ask it before and after each epoch.

    Writes history.csv and predictions.jsonl into `folder`. An epoch's answers are written when it
    ends, so a killed continuation has those of the epochs before its checkpoint. Returns metrics.
    """
    config = continuation.train_config(study.setting.train)
    latest, started = [], pd.Timestamp.now()
    if not (folder / "checkpoints").is_dir():
        write_answers(folder / "epoch-0.jsonl", ask_at_once(study, seed), epoch=0, step=0)

    def ask() -> dict:
        latest[:] = ask_at_once(study, seed)
        return validation_scores(latest)

    def progress(row: dict) -> None:
        number, step = row["epoch"], row["step"]
        write_answers(folder / f"epoch-{number}.jsonl", latest, epoch=number, step=step)
        say(f"    epoch {number}/{config.epochs}: {describe_answers(row)}", flush=True)

    form = study.setting.label_format
    passes = encode_all(study.student, questions, {}, LABELS, form, seed, config.epochs)
    history, summary = fine_tune(
        study.student,
        passes,
        LABELS,
        config,
        seed,
        folder / "checkpoints",
        validate=ask,
        progress=progress,
        trunks=study.trunks,
    )
    history.rename(
        columns={
            "validation_accuracy": "test_accuracy",
            "validation_label_nll": "test_label_nll",
        }
    ).to_csv(folder / "history.csv", index=False)
    last = join_epochs(folder, config.epochs)
    seconds = (pd.Timestamp.now() - started).total_seconds()
    return {
        "n": len(last),
        "accuracy": accuracy(last),
        "train_questions": len(questions),
        "train_tokens": summary["train_tokens"],
        "train_seconds": round(seconds, 2),
        "evaluate_seconds": 0.0,
    }


def join_epochs(folder: Path, epochs: int) -> list[dict]:
    """Write predictions.jsonl from the files of all epochs; returns the last epoch's answers."""
    texts = [
        (folder / f"epoch-{number}.jsonl").read_text(encoding="utf-8")
        for number in range(epochs + 1)
    ]
    (folder / "predictions.jsonl").write_text("".join(texts), encoding="utf-8")
    return [json.loads(line) for line in texts[-1].splitlines()]


def describe_answers(row: dict) -> str:
    """Say how the test questions went after an epoch, from its row of the history."""
    return (
        f"forced choice {100 * row['validation_accuracy']:.1f} %, "
        f"-log p(label) {row['validation_label_nll']:.3f}"
    )


def plan_continuations(
    study: Study, arms: list[Arm], continuations: list[Continuation]
) -> list[dict]:
    """List arms x seeds x continuations as rows: label, seed, key, and what makes them.

    Raises DataError for an arm that can't be continued, or where label_only is missing.
    """
    check_arms(arms, "lasting")
    for arm in arms:
        if not arm.is_trained or arm.needs_scores:
            raise DataError(
                f"lasting_arms: {arm.label} can't go on learning; expected trained arms that need "
                "no scores"
            )
    if LABELS not in arms:
        raise DataError(f"lasting_arms has no {BASE}; expected it: gaps are taken to it")
    rows = []
    for seed in study.setting.seeds:
        for continuation in continuations:
            questions = continued_questions(study, continuation, seed)
            check_room(study, questions)
            for arm in arms:
                first = make_config(study, arm, seed)
                config = continuation_config(study, first, continuation, questions)
                rows.append(
                    dict(
                        arm=arm,
                        label=f"{arm.label} → {continuation.on}",
                        seed=seed,
                        key=run_key(config),
                        config=config,
                        first=first,
                        continuation=continuation,
                        questions=questions,
                    )
                )
    return rows


def check_room(study: Study, questions: list[Example]) -> None:
    """Raise DataError for a question that leaves no room in the student's positions."""
    room = getattr(study.student.model.config, "max_position_embeddings", None)
    for example in questions if room else []:
        n = len(study.student.encode(prompt_text(example, "label_only")))
        if n + study.setting.max_label_tokens > room:
            raise DataError(
                f"question '{example.id}': its prompt is {n} tokens long; expected room for "
                f"{study.setting.max_label_tokens} more in the student's {room} positions"
            )


def continue_students(
    study: Study,
    arms: list[str],
    datasets: list[str],
    epochs: int,
    lr: float = 0.0,
    say: Callable = print,
) -> pd.DataFrame:
    """Make every missing continuation of a study's students, and return all their answers.

    arms: names, label_only among them; datasets: "same" or names; epochs, lr: of the second phase.
    Columns of the table: continuation, arm, seed, epoch, step, id, gold, scores, choice. The plan
    goes to lasting.json, and what is known of the questions is added (worlds, stratum). Raises
    DataError, see `plan_continuations` and `continued_questions`.
    """
    if not datasets:
        raise DataError("continue_on is empty; expected 'same' or datasets")
    wanted = [Continuation(on, epochs, lr) for on in datasets]
    rows = plan_continuations(study, [arm_from_name(name) for name in arms], wanted)
    plan = [{name: row[name] for name in ("label", "seed", "key")} for row in rows]
    write_json(study.folder / "lasting.json", plan)
    groups = {}
    for row in rows:
        groups.setdefault(run_key(row["first"]), []).append(row)
    for key, group in groups.items():
        make_group(study, group, say)
        shutil.rmtree(first_phase_folder(key), ignore_errors=True)
    answers = pd.concat([load_continuation(row) for row in rows], ignore_index=True)
    data = study.data
    known = describe_questions(answers, data.test, data.meta, study.setting.worlds)
    return known[[*answers, *(name for name in ("worlds", "stratum") if name in known)]]


def make_group(study: Study, rows: list[dict], say: Callable) -> None:
    """Make the missing continuations of one trained student, which is trained at most once."""
    weights = {}

    def make(work: Path, row: dict) -> dict:
        with keep_base_weights(study.student):
            if not weights:
                weights.update(
                    first_phase_weights(study, row["arm"], row["seed"], row["first"], say)
                )
            restore_parameters(study.student.model, weights)
            say(f"  {row['label']}, seed {row['seed']}", flush=True)
            return continue_student(
                study, row["continuation"], row["questions"], row["seed"], work, say
            )

    for row in rows:
        metrics, fresh = load_or_make(
            row["config"],
            lambda work, row=row: make(work, row),
            f"{row['label']}, seed {row['seed']}",
            say=say,
        )
        came = f"{metrics['train_seconds']:.0f} s" if fresh else "from the store"
        say(
            f"{row['label']}, seed {row['seed']}: forced choice "
            f"{100 * metrics['accuracy']:.1f} % after {row['continuation'].epochs} epochs, {came}",
            flush=True,
        )


def load_continuation(row: dict) -> pd.DataFrame:
    """Load the answers of one continuation from the store."""
    path = artifacts() / "runs" / row["key"] / "predictions.jsonl"
    found = pd.read_json(path, lines=True, dtype={"id": str})
    return found.assign(continuation=row["continuation"].on, arm=row["arm"].label, seed=row["seed"])
