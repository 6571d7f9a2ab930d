"""One training run: its config, its key, and how it is made."""

import hashlib
import json
import time
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from cotdistill import corrupt
from cotdistill.arms import CORRUPTIONS, Arm
from cotdistill.checkpoints import restore_parameters, trainable_parameters
from cotdistill.encode import encode_all, unchanged_share
from cotdistill.evaluate import accuracy, evaluate, validation_scores
from cotdistill.files import fingerprint, read_jsonl
from cotdistill.hyperparameters import training_key
from cotdistill.measures import gold_probability
from cotdistill.processes import broadcast_from_first
from cotdistill.study import Study
from cotdistill.train import fine_tune

STORE_VERSION = 2
ELSEWHERE = "elsewhere.jsonl"  # a run's answers to the questions of other datasets


def make_config(study: Study, arm: Arm, seed: int, scores_fingerprint: str = "") -> dict:
    """Collect all that a run's result depends on, and nothing else.

    Its SHA-256 is the run's key.

    Data, student and rationales enter as fingerprints; paths and machine don't. An arm without a
    rationale does not depend on one; the undistilled student depends on neither seed nor training
    (its seed is -1). An arm that repeats another one's training token for token has that one's
    config (`corrupt.equal_training`): it is made once. Where each seed has a world of its own,
    questions are those of the seed's world, for the undistilled student too.
    """
    student, setting = study.student, study.setting
    arm = corrupt.equal_training(student, arm)
    config = {
        "store": STORE_VERSION,
        "student": student.fingerprint,
        "dtype": str(student.model.dtype),
        "arm": arm.config,
        "label_format": setting.label_format,
        "test": fingerprint(study.test_questions(seed)),
        "seed": -1,
        "max_label_tokens": setting.max_label_tokens,
    }
    if arm.asked_as == "pre_cot":
        config["max_new_tokens"] = setting.max_new_tokens
    if not arm.is_trained:
        shots = study.write_shots(arm, seed)
        return config | ({"shots": fingerprint([shots])} if shots else {})
    train, data = study.train_questions(seed), study.data
    config |= {
        "seed": seed,
        "training": training_key(vars(setting.train), arm),
        "train": fingerprint(train),
    }
    if setting.train.select == "best":
        config["validation"] = fingerprint(study.validation_questions(seed))
        config["max_new_tokens"] = setting.max_new_tokens
    if arm.uses_rationale:
        config["rationales"] = fingerprint([data.rationales[e.id].text for e in train])
    if study.rationales_for(arm) is not data.rationales:
        config["donors"] = fingerprint([data.donors[e.id].text for e in train])
    if arm.needs_scores and scores_fingerprint:
        config["scores"] = scores_fingerprint
    return config


def run_key(config: dict) -> str:
    """Hash a config: SHA-256 (hex) of its canonical JSON.

    Key order and white space do not matter, values do.
    """
    return hashlib.sha256(
        json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def answer_limits(study: Study) -> dict:
    """Return the limits of an answer in tokens, and the number of questions at a time."""
    return dict(
        max_new_tokens=study.setting.max_new_tokens,
        max_label_tokens=study.setting.max_label_tokens,
        batch_size=study.setting.eval_batch_size,
    )


def make_validation(study: Study, arm: Arm, seed: int):
    """Make the function that scores the study's student on a seed's validation questions.

    It scores the student as it is when called. None where no epoch is chosen by these questions.
    """
    setting, questions = study.setting, study.validation_questions(seed)
    if setting.train.select != "best" or not questions:
        return None

    def validate():
        answers = evaluate(
            study.student,
            questions,
            arm.placement,
            setting.label_format,
            **answer_limits(study),
            generate=any(e.is_free for e in questions),  # only written answers count there
            trunk=(setting.train.frozen_layers, study.trunks),
        )
        p_gold = sum(gold_probability(a["scores"], a["gold"]) for a in answers) / len(answers)
        scores = validation_scores(answers)
        study.watch({"kind": "validation", "arm": arm.label, "p_gold": p_gold} | scores)
        return scores

    return validate


def encode_training(
    study: Study, arm: Arm, seed: int, scores: dict | None, say
) -> tuple[list, dict]:
    """Encode the training sequences of each pass.

    Returns (passes, {}), for a corrupted arm (passes, {"as_intact": share}): the share of the
    sequences that the corruption left as they were.
    """
    student, rationales = study.student, study.data.rationales
    questions, label_format = study.train_questions(seed), study.setting.label_format
    passes = encode_all(
        student,
        questions,
        study.rationales_for(arm),
        arm,
        label_format,
        seed,
        study.setting.train.epochs,
        scores,
    )
    if not arm.corruption:
        return passes, {}
    share = unchanged_share(passes, student, questions, rationales, arm, label_format, seed)
    if "partner" in CORRUPTIONS[arm.corruption].needs and share:
        say(
            f"    {arm.label} seed {seed}: {100 * share:.0f} % of {len(questions)} "
            "questions keep their own rationale, or get one that reads the same: "
            "no other question suits the arm",
            flush=True,
        )
    return passes, {"as_intact": share}


def train_arm(
    study: Study, arm: Arm, seed: int, folder: Path, *, scores: dict | None = None, say=print
) -> tuple[pd.DataFrame, dict]:
    """Train the study's student in place on one arm with one seed.

    Checkpoints go to folder/checkpoints. Returns (history, summary).
    """
    config, started = study.setting.train, time.time()

    def batch_done(row):
        study.watch({"kind": "batch", "arm": arm.label} | row)

    def progress(row):
        study.watch({"kind": "epoch", "arm": arm.label} | row)
        checked = (
            ""
            if pd.isna(row["validation_accuracy"])
            else f"validation accuracy {100 * row['validation_accuracy']:.1f} %, "
        )
        say(
            f"    {arm.label} seed {seed}, epoch {row['epoch']}/{config.epochs}: label loss "
            f"{row['label_loss']:.3f}, {checked}{time.time() - started:.0f} s",
            flush=True,
        )

    passes, unchanged = encode_training(study, arm, seed, scores, say)
    history, summary = fine_tune(
        study.student,
        passes,
        arm,
        config,
        seed,
        folder / "checkpoints",
        validate=make_validation(study, arm, seed),
        progress=progress,
        batch_done=batch_done,
        trunks=study.trunks,
    )
    return history, summary | unchanged


def answer_elsewhere(study: Study, arm: Arm, seed: int) -> tuple[list[dict], dict]:
    """Let the study's student, as it is, answer the questions of other datasets by forced choice.

    Returns (answers, what the metrics say of them): an answer has dataset, id, gold, choice, scores
    (nats), cut_off and rationale_cut_off, and no text; the metrics say dataset -> accuracy and the
    questions' fingerprint. A pre_cot student writes its own rationale first.
    """
    names = ("id", "gold", "choice", "scores", "cut_off", "rationale_cut_off")
    answers, about = [], {}
    for dataset, questions in study.elsewhere.items():
        found = evaluate(
            study.student,
            questions,
            arm.asked_as,
            study.setting.label_format,
            **answer_limits(study),
            shots=study.write_shots(arm, seed),
            generate=False,
        )
        answers += [{"dataset": dataset} | {name: a[name] for name in names} for a in found]
        about[dataset] = {"accuracy": accuracy(found), "questions": fingerprint(questions)}
    return answers, about


def read_elsewhere_answers(folder: Path) -> list[dict]:
    """Read what `write_elsewhere` wrote into a run's folder; empty where it wrote nothing."""
    path = folder / ELSEWHERE
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def write_elsewhere(folder: Path, answers: list[dict]) -> None:
    """Write a run's answers to other datasets; none leaves no file, nor one of a killed attempt."""
    path = folder / ELSEWHERE
    if answers:
        path.write_text("".join(json.dumps(a) + "\n" for a in answers), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def train_and_answer(
    study: Study,
    arm: Arm,
    seed: int,
    folder: Path,
    *,
    scores: dict | None = None,
    keep_weights: bool = False,
    say=print,
) -> dict:
    """Train one arm with one seed and answer all test questions; files into `folder`.

    Returns the metrics. The student's weights are put back afterwards: a grid loads it once.
    """
    student, started = study.student, time.time()
    trains, test = arm.is_trained, study.test_questions(seed)
    train = study.train_questions(seed) if trains else []
    history, summary = pd.DataFrame(), {"best_epoch": 0, "train_tokens": 0}
    student.model.requires_grad_(True)
    before = (
        {name: value.clone() for name, value in student.model.named_parameters()} if train else {}
    )
    try:
        if train:
            # The other processes of a torchrun wait for it in `torchrun.make_shared_run`
            broadcast_from_first(str(folder))
            history, summary = train_arm(study, arm, seed, folder, scores=scores, say=say)
        trained = time.time()
        predictions = evaluate(
            student,
            test,
            arm.asked_as,
            study.setting.label_format,
            **answer_limits(study),
            shots=study.write_shots(arm, seed),
            trunk=(study.setting.train.frozen_layers, study.trunks) if train else None,
        )
        answers, elsewhere = answer_elsewhere(study, arm, seed)
        if keep_weights:
            save_file(trainable_parameters(student.model), folder / "weights.safetensors")
    finally:
        restore_parameters(student.model, before)
        student.model.requires_grad_(True)
    history.to_csv(folder / "history.csv", index=False)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    write_elsewhere(folder, answers)
    return {
        **summary,
        **answer_metrics(predictions),
        "train_questions": len(train),
        "train_seconds": round(trained - started, 2),
        "evaluate_seconds": round(time.time() - trained, 2),
        **({"elsewhere": elsewhere} if elsewhere else {}),
    }


def answer_metrics(predictions: list[dict]) -> dict:
    """Summarise a run's answers: accuracies as shares, counts, mean tokens."""
    return {
        "n": len(predictions),
        **({"free_answers": True} if predictions[0]["choice"] is None else {}),
        "accuracy": accuracy(predictions),
        "accuracy_generated": accuracy(predictions, "generated"),
        "parse_failures": sum(p["generated"] is None for p in predictions),
        "cut_off": sum(p["cut_off"] for p in predictions),
        "tokens_per_question": sum(p["tokens"] for p in predictions) / len(predictions),
    }
