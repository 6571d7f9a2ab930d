"""Where a training step spends its time."""

import copy
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.clock import Clock, add_rest, interleaved_medians, kernel_share, profile
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

WARM_UP_STEPS = 3  # of one length, until its time no longer falls


def training_kernels(
    student: Student, batches: dict[bool, list[tuple[str, list[Encoded]]]], steps: int = 4
) -> pd.Series:
    """Measure `kernel_share` of our optimiser steps on the middle batch of each placement."""
    shares = {}
    for p in PLACEMENTS:
        part = [batch for placement, batch in batches[True] if placement == p]
        middle, vocabulary = part[len(part) // 2], vocabulary_of(student)
        shares[p] = kernel_share(profile_training("ours", student, middle, vocabulary, steps))
    return pd.Series(shares)


def profile_training(
    side: str, student: Student, batch: list[Encoded], vocabulary: int, steps: int = 2
) -> pd.Series:
    """Measure the wall seconds of a trainer's optimiser step by kind of operation.

    WARM_UP_STEPS are not measured. Then come `steps` pairs of a step without the clock, which gives
    the wall time, and one with it; the result holds their medians. The student stays as it was.
    """
    clocks, times = [], []
    with ExitStack() as stack:

        def after_step(seconds, _):
            stack.close()
            times.append(seconds)
            if len(times) > WARM_UP_STEPS and (len(times) - WARM_UP_STEPS) % 2:
                clocks.append(Clock(vocabulary))
                stack.enter_context(clocks[-1])

        train_side(
            side,
            replace(student, model=copy.deepcopy(student.model)),
            [batch] * (WARM_UP_STEPS + 2 * steps),
            TrainConfig(batch_size=len(batch)),
            after_step=after_step,
        )
    spent = pd.DataFrame([clock.spent for clock in clocks]).median().to_dict()
    return add_rest(spent, float(np.median(times[WARM_UP_STEPS::2])))


def profile_stages(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    batch: list[Encoded],
    n_steps: int = 8,
    generator: Student | None = None,
    max_new_tokens: int = 32,
) -> pd.DataFrame:
    """Profile each stage of a study: the share of its time by kind of operation.

    Columns: an optimiser step (ours and the Trainer's), scoring, pre_cot generation, integrated
    gradients. The last row holds seconds. n_steps: integration steps; generator: a student that
    ends its texts.
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
    order = shares.sum(axis=1).sort_values(ascending=False).index
    shown = shares.loc[order].map(lambda share: f"{100 * share:.1f} %")
    shown.loc["seconds"] = [f"{totals[c]:.2f}" for c in shown.columns]
    return shown


def time_threads(
    student: Student,
    batch: list[Encoded],
    examples: list[Example],
    threads: list[int],
    repeats: int,
) -> pd.DataFrame:
    """Measure seconds of a training step and of scoring by the number of torch threads.

    The step is forward and backward. Medians of interleaved calls.
    """
    before = torch.get_num_threads()
    pupil = replace(student, model=copy.deepcopy(student.model).requires_grad_(True))
    works = {
        "training step": lambda: backward_step(pupil, batch),
        "scoring": lambda: evaluate(student, examples, "label_only", generate=False),
    }

    def call_with(n, call):
        torch.set_num_threads(n)
        call()

    try:
        calls = {
            (name, n): partial(call_with, n, call) for n in threads for name, call in works.items()
        }
        seconds = interleaved_medians(calls, repeats)
    finally:
        torch.set_num_threads(before)
    return pd.Series(seconds).rename_axis(["work", "threads"]).unstack(sort=False)


def backward_step(student: Student, batch: list[Encoded]) -> float:
    """Run forward and backward on one padding-free batch and drop the gradients.

    Returns the loss in nats per token.
    """
    packed = pack_batch(batch)
    with fast_training(student.model):
        loss, _ = weighted_loss(student.model, packed, packed["weights"] / len(packed["weights"]))
        loss.backward()
    student.model.zero_grad(set_to_none=True)
    return loss.item()
