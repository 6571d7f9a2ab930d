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
from cotdistill.files import fingerprint
from cotdistill.hyperparameters import TrainConfig, training_key
from cotdistill.processes import broadcast_from_first
from cotdistill.study import _trunks, study_data, study_student, test_questions, train_questions
from cotdistill.train import fine_tune

STORE_VERSION = 2


def make_config(base: dict, arm: Arm, seed: int, scores_print: str = "") -> dict:
    """All that a run's result depends on, and nothing else: its SHA-256 is the run's key.

    Data, student and rationales enter as fingerprints; paths and machine don't. An arm without a
    rationale does not depend on one; the undistilled student depends on neither seed nor training
    (its seed is -1). An arm that repeats another one's training token for token has that one's
    config (`corrupt.equal_training`): it is made once.
    """
    student = study_student(base)
    arm = corrupt.equal_training(student, arm)
    scores_print = scores_print if arm.needs_scores else ""
    config = {
        "store": STORE_VERSION,
        "student": student.fingerprint,
        "dtype": str(student.model.dtype),
        "arm": arm.config,
        "label_format": base["label_format"],
        "test": fingerprint(test_questions(base)),
        "seed": -1,
        "max_label_tokens": base["max_label_tokens"],
    }
    if arm.placement == "pre_cot":
        config["max_new_tokens"] = base["max_new_tokens"]
    if arm.placement == "zero_shot":
        return config
    train = train_questions(base, seed)
    data = study_data(base)
    config |= {
        "seed": seed,
        "training": training_key(base["train"], arm),
        "train": fingerprint(train),
    }
    if base["train"]["select"] == "best":
        config["validation"] = fingerprint(data.validation)
        config["max_new_tokens"] = base["max_new_tokens"]
    if arm.uses_rationale:
        config["rationales"] = fingerprint([data.rationales[e.id].text for e in train])
    if scores_print:
        config["scores"] = scores_print
    return config


def run_key(config: dict) -> str:
    """SHA-256 (hex) of the canonical JSON of a config.

    Key order and white space do not matter, values do.
    """
    return hashlib.sha256(
        json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def train_arm(
    base: dict, arm: Arm, seed: int, folder: Path, *, scores: dict | None = None, say=print
) -> tuple[pd.DataFrame, dict]:
    """Train the study's student in place on one arm with one seed, checkpoints in
    folder/checkpoints: (history, summary).
    """
    data, student, config, started = (
        study_data(base),
        study_student(base),
        TrainConfig(**base["train"]),
        time.time(),
    )
    limits = dict(
        max_new_tokens=base["max_new_tokens"],
        max_label_tokens=base["max_label_tokens"],
        batch_size=base["eval_batch_size"],
    )

    def validate():
        return validation_scores(
            evaluate(
                student,
                data.validation,
                arm.placement,
                base["label_format"],
                **limits,
                generate=False,
                trunk=(config.frozen_layers, _trunks(student.fingerprint)),
            )
        )

    def progress(row):
        checked = (
            ""
            if pd.isna(row["validation_accuracy"])
            else (f"validation accuracy {100 * row['validation_accuracy']:.1f} %, ")
        )
        say(
            f"    {arm.label} seed {seed}, epoch {row['epoch']}/{config.epochs}: label loss "
            f"{row['label_loss']:.3f}, {checked}{time.time() - started:.0f} s",
            flush=True,
        )

    questions = train_questions(base, seed)
    passes = encode_all(
        student, questions, data.rationales, arm, base["label_format"], seed, config.epochs, scores
    )
    alike = (
        {
            "as_intact": unchanged_share(
                passes, student, questions, data.rationales, arm, base["label_format"], seed
            )
        }
        if arm.corruption
        else {}
    )
    if "partner" in CORRUPTIONS[arm.corruption].needs and alike["as_intact"]:
        say(
            f"    {arm.label} seed {seed}: {100 * alike['as_intact']:.0f} % of {len(questions)} "
            "questions keep their own rationale, or get one that "
            "reads the same: no other question suits the arm",
            flush=True,
        )
    history, summary = fine_tune(
        student,
        passes,
        arm,
        config,
        seed,
        folder / "checkpoints",
        validate=validate if config.select == "best" and data.validation else None,
        progress=progress,
        trunks=_trunks(student.fingerprint),
    )
    return history, summary | alike


def train_and_answer(
    base: dict,
    arm: Arm,
    seed: int,
    folder: Path,
    *,
    scores: dict | None = None,
    keep_weights: bool = False,
    say=print,
) -> dict:
    """Train one arm with one seed and answer all test questions; files into `folder`.

    Returns the metrics.

    The student's weights are put back afterwards: a grid loads it once.
    """
    student, started = study_student(base), time.time()
    train, test = (
        ([] if arm.placement == "zero_shot" else train_questions(base, seed)),
        test_questions(base),
    )
    limits = dict(
        max_new_tokens=base["max_new_tokens"],
        max_label_tokens=base["max_label_tokens"],
        batch_size=base["eval_batch_size"],
    )
    history, summary = pd.DataFrame(), {"best_epoch": 0, "train_tokens": 0}
    student.model.requires_grad_(True)
    before = (
        {name: value.clone() for name, value in student.model.named_parameters()} if train else {}
    )
    try:
        if train:
            broadcast_from_first(
                str(folder)
            )  # the other processes of a torchrun wait for it in `torchrun.make_shared_run`
            history, summary = train_arm(base, arm, seed, folder, scores=scores, say=say)
        trained = time.time()
        trunk = (
            (TrainConfig(**base["train"]).frozen_layers, _trunks(student.fingerprint))
            if train
            else None
        )
        predictions = evaluate(
            student, test, arm.placement, base["label_format"], **limits, trunk=trunk
        )
        if keep_weights:
            save_file(trainable_parameters(student.model), folder / "weights.safetensors")
    finally:
        restore_parameters(student.model, before)
        student.model.requires_grad_(True)
    history.to_csv(folder / "history.csv", index=False)
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    return {
        **summary,
        "n": len(test),
        "accuracy": accuracy(predictions),
        "accuracy_generated": accuracy(predictions, "generated"),
        "parse_failures": sum(p["generated"] is None for p in predictions),
        "cut_off": sum(p["cut_off"] for p in predictions),
        "tokens_per_question": sum(p["tokens"] for p in predictions) / len(predictions),
        "train_questions": len(train),
        "train_seconds": round(trained - started, 2),
        "evaluate_seconds": round(time.time() - trained, 2),
    }
