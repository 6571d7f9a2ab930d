"""TRL and the transformers Trainer, set up to train on the same tokens as our trainer."""

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
from contextlib import ExitStack, suppress
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
        "the same, the blocks' activations computed again in the backward pass",
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
    """Ends a training loop after the last measured step.

    No checkpoint is written, no epoch ends.
    """


def train_side(
    side: str,
    student: Student,
    batches: list[list[Encoded]],
    config: TrainConfig,
    seed: int = 0,
    after_step=lambda seconds, loss: None,
) -> None:
    """Train the student by one side of TRAINERS on the batches in their order.

    The student's weights change. after_step is called after every optimiser step, outside its time,
    with its wall seconds (the first step's include all preparations) and its loss in nats per
    supervised token. Raises DataError unless there were as many steps as batches.
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

    def on_step(*_):
        seconds.append(time.perf_counter() - since[0])
        after_step(seconds[-1], losses[-1])
        if len(seconds) >= len(batches):
            raise StopTraining
        since[0] = time.perf_counter()

    hook, Trainer.training_step = register_optimizer_step_post_hook(on_step), training_step
    keep_memory(not is_peer(side))
    try:
        with (
            suppress(StopTraining),
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory() as folder,
        ):
            warnings.simplefilter("ignore")
            if is_peer(side):
                _make_peer(side, student, batches, config, seed, folder).train()
            else:
                _train_ours(student, batches, config, seed, folder)
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
    """Run `train_side` of each side in a process of its own, one optimiser step at a time.

    A step of one side is followed by the same step of the next. A machine's speed changes from
    minute to minute; this way every side gets the same speed, with no other model in its memory.

    student: a name or path for `load_student`. between: called after every step, while all sides
    wait.

    Returns for each side: "seconds" of the steps, nan for the first; "losses" of all in nats per
    supervised token; "between", what that returned; and memory in GB, "loaded_gb" with imports and
    all weights, "peak_gb" at its highest. Raises DataError with the last line of a process that
    failed.
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
        for child in children:
            child.write(json.dumps(asked | {"side": child.side}))
        results = [child.read() | {"seconds": [], "losses": []} for child in children]
        measured_between = []
        for step in range(len(batches)):
            for child, result in zip(children, results, strict=True):
                child.write("go")
                answer = child.read()
                result["seconds"].append(answer["seconds"] if step else np.nan)
                result["losses"].append(answer["loss"])
                result["peak_gb"] = answer["peak_gb"]
            measured_between.append(between())
    return [result | {"between": measured_between} for result in results]


class Process:
    """Holds one side's child process, which is asked and answers a line at a time.

    It is killed when the context ends.
    """

    def __init__(self, side: str):
        """Start the child; its first line must be its settings (`serve_trainer`)."""
        self.side = side
        # Open as long as the child is
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.run", "--side"],
            cwd=root(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=os.environ | {"PYTHONPATH": str(root())},
        )

    def __enter__(self):
        """Return the process."""
        return self

    def __exit__(self, *_):
        """Kill the child."""
        self.child.kill()
        self.child.communicate()
        self.errors.close()

    def write(self, line: str) -> None:
        """Send a line; where the child has ended, the next `read` says why."""
        with suppress(BrokenPipeError):
            print(line, file=self.child.stdin, flush=True)

    def read(self) -> dict:
        """Read the child's next answer; raise DataError with its last line if it has ended."""
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise DataError(f"{self.side}: its process ended with {code}: {last}")
        return json.loads(line)


def serve_trainer() -> None:
    """Serve as a child process of `train_interleaved`.

    Standard input: the settings on the first line, then a line for every step to make. Standard
    output: a line once the student is loaded and one per step. What libraries print goes to
    standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)
        if not sys.stdin.readline():  # the parent is gone
            sys.exit(1)

    asked = json.loads(sys.stdin.readline())
    torch.set_num_threads(asked["threads"])
    student = load_student(asked["student"])
    if asked["side"].startswith("TRL"):
        import trl  # noqa: F401  its imports count as loaded memory
    batches = [
        [Encoded(name, tuple(ids), tuple(kinds)) for name, ids, kinds in batch]
        for batch in asked["batches"]
    ]
    for weights in student.model.parameters():
        # A weight comes from its file when it is first read; before, it takes no memory
        weights.detach().sum()
    answer(loaded_gb=_memory_kb("VmRSS") / 1e6)
    train_side(
        asked["side"],
        student,
        batches,
        TrainConfig(**asked["config"]),
        asked["seed"],
        lambda seconds, loss: answer(seconds=seconds, loss=loss, peak_gb=_memory_kb("VmHWM") / 1e6),
    )


def is_peer(side: str) -> bool:
    """Say whether a side of TRAINERS is somebody else's trainer."""
    return not side.startswith(("ours", "itself"))


def _train_ours(student, batches, config, seed, folder):
    """Run `fine_tune` on sequences placed so that its own order yields the batches in turn."""
    flat = [e for batch in batches for e in batch]
    data = [None] * len(flat)
    for e, place in zip(flat, OrderSampler(len(flat), seed, 1), strict=True):
        data[place] = e
    config = replace(config, epochs=1)
    fine_tune(student, [data], Arm("label_only"), config, seed, Path(folder) / "run")


def _make_peer(side, student, batches, config, seed, folder):
    """Set up a peer's Trainer on tokenised sequences in a fixed order.

    Every setting that is not named here is the peer's default.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tokenizer = padding_tokenizer(student)
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
    data = Dataset.from_list([peer_features(e) for batch in batches for e in batch])
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
            data_collator=padding_collator(tokenizer),
        )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def peer_features(e: Encoded) -> dict[str, list[int]]:
    """Convert a sequence to a peer's format, in which the label -100 is not supervised."""
    return {
        "input_ids": list(e.ids),
        "labels": [i if kind != PROMPT else -100 for i, kind in zip(e.ids, e.kinds, strict=True)],
    }


def padding_tokenizer(student: Student):
    """Copy the student's tokenizer; where it has no padding token, use the end token."""
    tokenizer = copy.deepcopy(student.tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def padding_collator(tokenizer):
    """Make the collator that pads a batch to its longest sequence."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)


def _memory_kb(name: str) -> float:
    """Read this process's memory in kB: VmRSS now, VmHWM at its highest."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[1])
    except (OSError, StopIteration):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
