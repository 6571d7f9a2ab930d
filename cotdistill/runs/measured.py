"""Training, watched: an arm is trained once more, and measured before it and after each epoch.

The training is the arm's own, from the same config and to the same weights: what is measured does
not change it. What was measured is a run of the store, whose key holds the arm's run and what was
asked, so it is found again, and a killed one goes on from its last checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from cotdistill.arms import Arm
from cotdistill.encode import Encoded, encode_all
from cotdistill.files import atomic_write, fingerprint, write_json
from cotdistill.mechanism import forced_rows, gradient_cosines, lens_rows
from cotdistill.paths import artifacts
from cotdistill.runs.continued import ask_at_once, keep_base_weights
from cotdistill.runs.one import (
    STORE_VERSION,
    encode_training,
    make_config,
    make_validation,
    run_key,
)
from cotdistill.runs.store import load_or_make
from cotdistill.study import Study
from cotdistill.train import fine_tune, freeze


@dataclass(frozen=True)
class Measurement:
    """Hold what is measured of an arm while it trains.

    alignment_batches: batches of training questions whose gradients are compared. lens_questions:
    training questions whose rationales the lens looks for. forced_questions: test questions to
    which a trained post_cot student explains its own answer and another one.
    """

    alignment_batches: int
    lens_questions: int
    forced_questions: int


def measured_config(study: Study, arm: Arm, seed: int, measurement: Measurement) -> dict:
    """Collect what a watched training's result depends on."""
    first, data = make_config(study, arm, seed), study.data
    watched = study.train_questions(seed)[: measurement.lens_questions]
    return {
        "store": STORE_VERSION,
        "first": run_key(first),
        "seed": seed,
        "measure": asdict(measurement)
        | {
            "max_new_tokens": study.setting.max_new_tokens,
            "rationales": fingerprint([data.rationales[e.id] for e in watched]),
        },
    }


def measure_epoch(
    study: Study, arm: Arm, seed: int, measurement: Measurement, sequences: list[Encoded]
) -> list[dict]:
    """Measure the student as it is now. Returns rows, each with its `kind`.

    alignment: of `mechanism.gradient_cosines`; lens: of `lens_rows`; answer: id, gold, scores.
    """
    setting, student = study.setting, study.student
    rows = []
    if arm.uses_rationale:
        size = setting.train.batch_size
        part = sequences[: size * measurement.alignment_batches]
        cosines = gradient_cosines(student, part, size)
        rows += [{"kind": "alignment", **row} for row in cosines]
    watched = study.train_questions(seed)[: measurement.lens_questions]
    known = lens_rows(student, watched, study.data.rationales, setting.label_format)
    rows += [{"kind": "lens", **row} for row in known]
    answers = ask_at_once(study, seed)
    kept = ("id", "gold", "scores", "choice")
    return rows + [{"kind": "answer"} | {name: row[name] for name in kept} for row in answers]


def measure_written(study: Study, seed: int, measurement: Measurement) -> list[dict]:
    """Let the trained student explain its own answers and others. Rows of `forced_rows`."""
    setting, student = study.setting, study.student
    questions = study.test_questions(seed)[: measurement.forced_questions]
    choices = [row["choice"] for row in ask_at_once(study, seed)[: len(questions)]]
    found = forced_rows(student, questions, choices, setting.max_new_tokens, setting.label_format)
    return [{"kind": "forced", **row} for row in found]


def write_rows(path: Path, rows: list[dict], **about) -> None:
    """Write rows as JSON lines, each with what it is about; completely or not at all."""
    with atomic_write(path) as part, part.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(about | row) + "\n" for row in rows)


def watch_training(
    study: Study, arm: Arm, seed: int, measurement: Measurement, folder: Path, say: Callable
) -> dict:
    """Train an arm as its run was trained, and measure it. Files into `folder`; returns metrics."""
    student, config = study.student, study.setting.train
    started, latest = pd.Timestamp.now(), []
    passes, _ = encode_training(study, arm, seed, None, say)
    freeze(student.model, config.frozen_layers)
    validation = make_validation(study, arm, seed)
    measure = lambda: measure_epoch(study, arm, seed, measurement, passes[0])
    if not (folder / "checkpoints").is_dir():
        write_rows(folder / "epoch-0.jsonl", measure(), epoch=0, step=0)

    def validate() -> dict:
        latest[:] = measure()
        return validation() if validation else {}

    def progress(row: dict) -> None:
        number = row["epoch"]
        write_rows(folder / f"epoch-{number}.jsonl", latest, epoch=number, step=row["step"])
        loss = row["label_loss"]
        say(f"    {arm.label} seed {seed}, epoch {number}: label loss {loss:.3f}", flush=True)

    history, summary = fine_tune(
        student,
        passes,
        arm,
        config,
        seed,
        folder / "checkpoints",
        validate=validate,
        progress=progress,
        trunks=study.trunks,
    )
    history.to_csv(folder / "history.csv", index=False)
    epochs = len(history)
    if arm.placement == "post_cot":
        about = {"epoch": summary["best_epoch"], "step": int(history["step"].iloc[-1])}
        write_rows(folder / "written.jsonl", measure_written(study, seed, measurement), **about)
    files = [folder / f"epoch-{number}.jsonl" for number in range(epochs + 1)]
    files += [path for path in [folder / "written.jsonl"] if path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in files]
    (folder / "predictions.jsonl").write_text("".join(texts), encoding="utf-8")
    seconds = (pd.Timestamp.now() - started).total_seconds()
    return {
        "n": len(study.test_questions(seed)),
        "tokens_per_pass": summary["train_tokens"] / max(epochs, 1),
        "train_seconds": round(seconds, 2),
        "evaluate_seconds": 0.0,
    }


def watch_students(
    study: Study,
    arms: list[Arm],
    seeds: list[int],
    measurement: Measurement,
    say: Callable = print,
) -> pd.DataFrame:
    """Watch the training of every arm and seed, where the store does not hold it yet.

    Returns all rows that were measured, with arm, seed, epoch, step and tokens_per_pass. The plan
    goes to measured.json.
    """
    plan, frames = [], []
    for arm in arms:
        for seed in seeds:
            config = measured_config(study, arm, seed, measurement)
            plan.append(dict(label=arm.label, seed=seed, key=run_key(config)))
            metrics, fresh = load_or_make(
                config,
                lambda work, arm=arm, seed=seed: _watch(study, arm, seed, measurement, work, say),
                f"{arm.label}, seed {seed}, measured",
                say=say,
            )
            came = f"{metrics['train_seconds']:.0f} s" if fresh else "from the store"
            say(f"{arm.label} seed {seed}, measured: {came}", flush=True)
            path = artifacts() / "runs" / run_key(config) / "predictions.jsonl"
            rows = pd.read_json(path, lines=True, dtype={"id": str})
            about = {"arm": arm.label, "seed": seed}
            frames.append(rows.assign(**about, tokens_per_pass=metrics["tokens_per_pass"]))
    write_json(study.folder / "measured.json", plan)
    return pd.concat(frames, ignore_index=True)


def _watch(
    study: Study, arm: Arm, seed: int, measurement: Measurement, work: Path, say: Callable
) -> dict:
    """Watch one training, and put the student's weights back."""
    with keep_base_weights(study.student), torch.enable_grad():
        return watch_training(study, arm, seed, measurement, work, say)


def dial_sequences(study: Study) -> list[Encoded]:
    """Encode the first seed's post_cot sequences, whose tokens `mechanism.count_kinds` counts."""
    seed, form = study.setting.seeds[0], study.setting.label_format
    questions, rationales = study.train_questions(seed), study.data.rationales
    return encode_all(study.student, questions, rationales, Arm("post_cot"), form, seed)[0]
