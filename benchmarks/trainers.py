"""TRL and the transformers Trainer, set up to train on the very tokens of ours."""

import copy
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from cotdistill.arms import Arm
from cotdistill.encode import PROMPT, Encoded
from cotdistill.errors import DataError
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.memory import keep_memory
from cotdistill.paths import root
from cotdistill.students import Student, load_student
from cotdistill.train import OrderSampler, fine_tune

# side -> (package it needs, batches grouped by length, settings in words)
TRAINERS = {
    "ours": (None, False, "no padding, the head at supervised positions"),
    "ours, grouped": (None, True, "the same on the grouped batches"),
    "itself, compiled": (None, False, "ours with torch.compile of the blocks' MLPs and norms"),
    "ours, checkpointing": (
        None,
        False,
        "the same, the blocks' activations made again in the backward pass",
    ),
    "TRL as it comes": (
        "trl",
        False,
        "SFTTrainer, completion-only loss; activation checkpointing, padding, random order",
    ),
    "TRL at its best": (
        "trl",
        True,
        "SFTTrainer, completion-only loss; no checkpointing, grouped by length",
    ),
    "Trainer as it comes": (None, False, "Trainer, padding collator, random order"),
    "Trainer at its best": (None, True, "Trainer, padding collator, grouped by length"),
}


class StopTraining(Exception):
    """Raised inside a training loop after the last measured step.

    No checkpoint is written, no epoch ends.
    """


def train_side(
    side: str,
    student: Student,
    batches: list[list[Encoded]],
    config: TrainConfig,
    seed: int = 0,
    stepped=lambda seconds, loss: None,
) -> None:
    """Train the student, which changes, the way of one side of TRAINERS on the batches in their
    order.

    stepped is called after every optimiser step, outside its time, with its wall seconds (the first
    one's hold all preparations) and its loss in nats per supervised token. Raises DataError where
    there were fewer or more steps than batches.
    """
    config = replace(
        config,
        gradient_checkpointing="checkpointing" in side,
        compile="inductor" if side == "itself, compiled" else "",
    )
    own, losses, seconds, since = Trainer.training_step, [], [], [time.perf_counter()]

    def training_step(self, *args, **kwargs):
        loss = own(self, *args, **kwargs)
        losses.append(float(loss.detach()))
        return loss

    def after_step(*_):
        seconds.append(time.perf_counter() - since[0])
        stepped(seconds[-1], losses[-1])
        if len(seconds) >= len(batches):
            raise StopTraining
        since[0] = time.perf_counter()

    hook, Trainer.training_step = register_optimizer_step_post_hook(after_step), training_step
    keep_memory(not is_peer(side))
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            if is_peer(side):
                _peer_trainer(side, student, batches, config, seed, folder).train()
            else:
                _ours(student, batches, config, seed, folder)
    except StopTraining:
        pass
    finally:
        Trainer.training_step = own
        hook.remove()
        keep_memory()
        gc.collect()
    if not len(seconds) == len(losses) == len(batches):
        raise DataError(
            f"{side}: {len(seconds)} optimiser steps and {len(losses)} losses; "
            f"expected {len(batches)} of each"
        )


def train_interleaved(
    sides: list[str],
    student: str,
    batches: list[list[Encoded]],
    config: TrainConfig,
    seed: int = 0,
    between=lambda: None,
) -> list[dict]:
    """`train_side` of each side in a fresh process of its own, an optimiser step of one, then the
    same step of the next: a machine's speed changes from minute to minute, and this way every
    side meets the same, with no other model in its memory.

    student: a name or path for `load_student`; between is called after every step, while all sides
    wait. For each side: "seconds" of the steps, nan for the first, "losses" of all in nats per
    supervised token, "between", what that returned, and GB of memory: "loaded_gb" with imports and
    all weights, "peak_gb" ever held. Raises DataError with what a process ended with.
    """
    asked = {
        "student": student,
        "threads": torch.get_num_threads(),
        "config": asdict(config),
        "seed": seed,
        "batches": [[[e.id, e.ids, e.kinds] for e in batch] for batch in batches],
    }
    with ExitStack() as stack:
        children = [stack.enter_context(Process(side)) for side in sides]
        for child, side in zip(children, sides):
            child.write(json.dumps(asked | {"side": side}))
        found, told_between = (
            [child.read() | {"seconds": [], "losses": []} for child in children],
            [],
        )
        for step in range(len(batches)):
            for child, made in zip(children, found):
                child.write("go")
                told = child.read()
                made["seconds"].append(told["seconds"] if step else np.nan)
                made["losses"].append(told["loss"])
                made["peak_gb"] = told["peak_gb"]
            told_between.append(between())
    return [made | {"between": told_between} for made in found]


class Process:
    """One side's child process, a line to it and a line from it at a time; killed on leaving."""

    def __init__(self, side: str):
        self.side, self.errors = side, tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.run", "side"],
            cwd=root(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | {"PYTHONPATH": str(root())},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.communicate()
        self.errors.close()

    def write(self, line: str) -> None:
        try:
            print(line, file=self.child.stdin, flush=True)
        except BrokenPipeError:
            pass  # the next reading says what it ended with

    def read(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            self.errors.seek(0)
            raise DataError(
                f"{self.side}: its process ended with {code}: "
                f"{(self.errors.read().strip().splitlines() or ['nothing said'])[-1]}"
            )
        return json.loads(line)


def serve_trainer() -> None:
    """The child of `train_interleaved`.

    Its settings on the first line of standard input, then a line for every step to make; on
    standard output a line once it is ready and one per step. What libraries print goes to standard
    error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**found):
        print(json.dumps(found), file=answers, flush=True)
        if not sys.stdin.readline():  # the parent is gone
            sys.exit(1)

    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    student = load_student(asked["student"])
    if asked["side"].startswith("TRL"):
        import trl  # noqa: F401  its imports belong to what is loaded
    batches = [
        [Encoded(id, tuple(ids), tuple(kinds)) for id, ids, kinds in batch]
        for batch in asked["batches"]
    ]
    for weights in student.model.parameters():
        # A weight comes from its file when it is first read; until then it is not among what is
        # held
        weights.detach().sum()
    tell(loaded_gb=_held("VmRSS") / 1e6)
    train_side(
        asked["side"],
        student,
        batches,
        TrainConfig(**asked["config"]),
        asked["seed"],
        lambda seconds, loss: tell(seconds=seconds, loss=loss, peak_gb=_held("VmHWM") / 1e6),
    )


def is_peer(side: str) -> bool:
    """Whether a side of TRAINERS is somebody else's trainer."""
    return not side.startswith(("ours", "itself"))


def _ours(student, batches, config, seed, folder):
    """`fine_tune`, given the sequences so that its own order brings the batches one after the
    other.
    """
    flat = [e for batch in batches for e in batch]
    data = [None] * len(flat)
    for e, place in zip(flat, OrderSampler(len(flat), seed, 1)):
        data[place] = e
    fine_tune(
        student, [data], Arm("label_only"), replace(config, epochs=1), seed, Path(folder) / "run"
    )


def _peer_trainer(side, student, batches, config, seed, folder):
    """A peer's Trainer on already tokenised sequences in a fixed order.

    Everything not named here is its default.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = _padding_tokenizer(student)
    common = dict(
        output_dir=folder,
        use_cpu=student.model.device.type == "cpu",
        bf16=False,
        seed=seed,
        num_train_epochs=1,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
    )
    data = Dataset.from_list([_features(e) for batch in batches for e in batch])
    if side.startswith("TRL"):
        from trl import SFTConfig, SFTTrainer

        if side == "TRL at its best":
            common["activation_checkpointing"] = False
        trainer = SFTTrainer(
            student.model, args=SFTConfig(**common), train_dataset=data, processing_class=tokenizer
        )
    else:
        trainer = Trainer(
            student.model,
            args=TrainingArguments(**common),
            train_dataset=data,
            data_collator=_padding_collator(tokenizer),
        )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def _features(e: Encoded) -> dict[str, list[int]]:
    """A sequence as a peer takes it; -100 is what it learns nothing from."""
    return {
        "input_ids": list(e.ids),
        "labels": [i if kind != PROMPT else -100 for i, kind in zip(e.ids, e.kinds)],
    }


def _padding_tokenizer(student: Student):
    """The student's tokenizer, with a token to pad with where it has none."""
    tokenizer = copy.deepcopy(student.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _padding_collator(tokenizer):
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)


def _held(name: str) -> float:
    """kB of this process: VmRSS now, VmHWM at its highest."""
    try:
        line = next(
            x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name)
        )
        return float(line.split()[1])
    except (OSError, StopIteration):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
