"""Where a training step spends its time."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.clock import Clock, _with_rest, interleaved_medians, kernel_share, profile
from benchmarks.inputs import PLACEMENTS
from benchmarks.limits import vocabulary_of
from benchmarks.trainers import train_side
from cotdistill.attribution.methods import attribute_rationale
from cotdistill.encode import Encoded, pack_batch
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.loss import weighted_loss
from cotdistill.students import Student
from cotdistill.train import fast_training

WARM = 3  # steps of one length until its time no longer falls


def training_kernels(
    student: Student, batches: dict[bool, list[tuple[str, list[Encoded]]]], steps: int = 4
) -> pd.Series:
    """By placement: `kernel_share` of our optimiser steps on the middle batch of each."""
    parts = {p: [batch for placement, batch in batches[True] if placement == p] for p in PLACEMENTS}
    return pd.Series(
        {
            p: kernel_share(
                profile_training(
                    "ours", student, part[len(part) // 2], vocabulary_of(student), steps
                )
            )
            for p, part in parts.items()
        }
    )


def profile_training(
    side: str, student: Student, batch: list[Encoded], vocabulary: int, steps: int = 2
) -> pd.Series:
    """Wall seconds of an optimiser step of a trainer by kind of operation.

    After WARM steps that are not looked at, the medians of `steps` with the clock, each right after
    one without it, whose wall time counts. The student stays as it was.
    """
    clocks, times = [], []
    with ExitStack() as stack:

        def stepped(seconds, _):
            stack.close()
            times.append(seconds)
            if len(times) > WARM and (len(times) - WARM) % 2:
                clocks.append(Clock(vocabulary))
                stack.enter_context(clocks[-1])

        train_side(
            side,
            replace(student, model=copy.deepcopy(student.model)),
            [batch] * (WARM + 2 * steps),
            TrainConfig(batch_size=len(batch)),
            stepped=stepped,
        )
    return _with_rest(
        pd.DataFrame([clock.spent for clock in clocks]).median().to_dict(),
        float(np.median(times[WARM::2])),
    )


def profiles(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    batch: list[Encoded],
    n_steps: int = 8,
    generator: Student | None = None,
    max_new_tokens: int = 32,
) -> pd.DataFrame:
    """Training (an optimiser step.

    Ours and the Trainer's), scoring, pre_cot generation and integrated gradients, side by side as
    shares of each stage's time by kind of operation; the last row holds its seconds. n_steps: of
    the integral; generator: a student that ends its texts.
    """
    vocabulary, writer, first = vocabulary_of(student), generator or student, examples[0]
    stages = {
        "scoring": lambda: evaluate(student, examples, "label_only", generate=False),
        "pre_cot generation": lambda: evaluate(
            writer, examples, "pre_cot", max_new_tokens=max_new_tokens
        ),
        "integrated gradients": lambda: attribute_rationale(
            student, first, rationales[first.id].text, "integrated_gradients", n_steps=n_steps
        ),
    }
    columns = {
        f"training: {side}": profile_training(side, student, batch, vocabulary)
        for side in ("ours", "Trainer at its best")
    }
    for stage, call in stages.items():
        call()
        columns[stage] = profile(call, vocabulary)
    table = pd.DataFrame(columns).fillna(0.0)
    totals, shares = table.sum(), table / table.sum()
    shown = shares.loc[shares.sum(axis=1).sort_values(ascending=False).index].map(
        lambda share: f"{100 * share:.1f} %"
    )
    shown.loc["seconds"] = [f"{totals[c]:.2f}" for c in shown.columns]
    return shown


def at_threads(
    student: Student,
    batch: list[Encoded],
    examples: list[Example],
    threads: list[int],
    repeats: int,
) -> pd.DataFrame:
    """Seconds of one training step (forward and backward) and of scoring, by number of torch
    threads, turn about.
    """
    before, pupil = (
        torch.get_num_threads(),
        replace(student, model=copy.deepcopy(student.model).requires_grad_(True)),
    )
    works = {
        "training step": lambda: backward_step(pupil, batch),
        "scoring": lambda: evaluate(student, examples, "label_only", generate=False),
    }

    def at(n, call):
        torch.set_num_threads(n)
        call()

    try:
        seconds = interleaved_medians(
            {(name, n): partial(at, n, call) for n in threads for name, call in works.items()},
            repeats,
        )
    finally:
        torch.set_num_threads(before)
    return pd.Series(seconds).rename_axis(["work", "threads"]).unstack(sort=False)


def backward_step(student: Student, batch: list[Encoded]) -> float:
    """Forward and backward of one padding-free batch, gradients thrown away.

    The loss in nats per token.
    """
    found = pack_batch(batch)
    with fast_training(student.model):
        loss, _ = weighted_loss(student.model, found, found["weights"] / len(found["weights"]))
        loss.backward()
    student.model.zero_grad(set_to_none=True)
    return loss.item()
