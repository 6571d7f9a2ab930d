"""Fine-tune a student on label and rationale, with the transformers Trainer.

Three decisions that the comparison of arms rests on:

- The order of questions is a function of the seed alone. Every arm of a seed sees the same
  questions in the same batches, so a difference between two arms is never one of data order.
- Sequences of a batch are laid end to end in one row (`packed_attention`): no padding, whatever
  the lengths, so that no arm pays for another's. The head runs at supervised positions only, and
  never holds all their logits.
- Two losses (`loss_shares`). "token_mean" is the mean over the batch's supervised tokens, HF's
  own default and the paper's recipe: a longer target leaves the label a smaller share of it, so
  arms of unequal length differ in that too. "balanced" is the mean over label tokens plus lambda
  times the mean over the others: the label's term is the same in every arm. Label tokens can
  weigh more.

Where the lower blocks are frozen (`frozen_layers`), what they make of a sequence never changes.
It is computed once; every epoch, and every run of the grid on the same sequences, starts there.
"""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from cotdistill.arms import Arm
from cotdistill.checkpoints import (
    last_good_checkpoint,
    list_checkpoints,
    restore_parameters,
    seal_checkpoint,
    trainable_parameters,
)
from cotdistill.encode import LABEL, PROMPT, Encoded, loss_shares, other_weight, pack_batch
from cotdistill.errors import DataError
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.blocks import (
    blocks_of,
    has_trunk,
    last_block_at_places,
    replace_forward,
    start_from_trunk,
)
from cotdistill.kernels.cache import TRUNK_CACHE_BYTES, stored_bytes
from cotdistill.kernels.linear import use_prepacked_linears, use_trainable_onednn_linears
from cotdistill.kernels.loss import sparse_embedding, weighted_loss
from cotdistill.kernels.memory import release_memory
from cotdistill.kernels.mixed import use_precision
from cotdistill.processes import broadcast_from_first, rank_and_world_size
from cotdistill.students import Student


class OrderSampler(torch.utils.data.Sampler):
    """Order the questions as a function of (seed, epoch): the same for every arm.

    Epoch e of a fresh arm has its own encodings, kept at e * n in the concatenated data.
    """

    def __init__(self, n: int, seed: int, copies: int):
        self.n, self.seed, self.copies, self.epoch = n, seed, copies, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        order = np.random.default_rng([self.seed, 2, self.epoch]).permutation(self.n)
        return iter((order + self.n * (self.epoch % self.copies)).tolist())


class SlicedBatches(torch.utils.data.Sampler):
    """Cut each batch of a torchrun into one slice per process.

    Slice r of batch b stands at b * ranks + r, where accelerate looks for it. A last batch that is
    smaller than the number of processes leaves slices empty; nothing is repeated to fill it, as
    accelerate's own sharding would.
    """

    def __init__(self, order: OrderSampler, batch_size: int, ranks: int):
        self.order, self.size, self.ranks = order, batch_size, ranks
        self.batch_size, self.drop_last = None, False  # accelerate reads them

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size) * self.ranks

    def __iter__(self):
        order = list(self.order)
        for at in range(0, len(order), self.size):
            yield from (
                part.tolist()
                for part in np.array_split(np.array(order[at : at + self.size]), self.ranks)
            )


class DistilTrainer(Trainer):
    """Run the Trainer with our order, our loss, and checkpoints of trainable weights only.

    `validate` maps the student to {"accuracy", "label_nll"} on validation questions; epochs are
    compared by it.
    """

    def __init__(
        self,
        *args,
        sampler: OrderSampler,
        batch_size: int,
        validate,
        hooks: "Hooks",
        patience: int = 0,
        loss: tuple[str, float] = ("token_mean", 0.0),
        precision: str = "float32",
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        # (name, weight of the other tokens' mean); supervised tokens of an update, by kind
        self.loss, self.counts, self.precision = loss, None, precision
        self.sampler, self.batch_size, self.patience = sampler, batch_size, patience
        self.validate, self.progress, self.batch_done = validate, hooks.progress, hooks.batch_done
        # We divide by the number of supervised tokens of the whole optimiser step
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False  # `pack_batch` has
        # [label | other][sum of losses, tokens] since the epoch began
        self.sums = torch.zeros(2, 2, dtype=torch.float64)

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def get_train_dataloader(self):
        """Return the batches; under torchrun each process takes its slice of them."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        batches = SlicedBatches(self.sampler, self.batch_size, self.args.world_size)
        return self.accelerator.prepare(
            torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator
            )
        )

    def _get_num_items_in_batch(self, batch_samples, device):
        """Count an update's supervised tokens as the library does, and ours by kind.

        By kind is (label, other), over all its batches and processes.
        """
        if self.loss[0] != "token_mean" and batch_samples:
            labels = sum((batch["kinds"] == LABEL).sum() for batch in batch_samples)
            counts = torch.stack(
                [labels, sum(len(batch["kinds"]) for batch in batch_samples) - labels]
            ).to(device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(counts)
            self.counts = counts
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the batch's part of the update's loss, and add its losses to the epoch's sums."""
        is_label = inputs["kinds"] == LABEL
        if self.loss[0] == "token_mean":
            share = inputs["weights"] / (
                len(inputs["weights"]) if num_items_in_batch is None else num_items_in_batch
            )
        else:
            share = loss_shares(inputs["weights"], is_label, self.counts, *self.loss)
        if self.args.world_size > 1 and num_items_in_batch is not None:
            # Gradients are averaged over processes, items were counted over all
            share = share * self.args.world_size
        with use_precision(self.precision, self.model.device):
            loss, losses = weighted_loss(model, inputs, share)
        masks = (is_label, ~is_label)
        sums = torch.tensor([[losses[m].sum().item(), m.sum().item()] for m in masks])
        self.sums += sums
        self.batch_done(self.describe_batch(sums))
        self.check_loss(self.sums.sum().item())
        return (loss, None) if return_outputs else loss

    def describe_batch(self, sums: torch.Tensor) -> dict:
        """Return one batch's step and losses; sums: [label | other][sum of losses, tokens]."""
        label, other = (sums[:, 0] / sums[:, 1]).tolist()
        return {
            "step": self.state.global_step + 1,
            "steps": self.state.max_steps,
            "loss": (sums[:, 0].sum() / sums[:, 1].sum()).item(),
            "label_loss": label,
            "rationale_loss": other,
        }

    def check_loss(self, loss: float) -> None:
        """End a run that diverged; it is not stored.

        Raises DataError where the loss is no finite number.
        """
        if not math.isfinite(loss):
            raise DataError(
                f"training diverged: the loss is {loss:g} at step {self.state.global_step + 1}, "
                f"with lr {self.args.learning_rate:g} and weights in "
                f"{str(self.model.dtype).removeprefix('torch.')}, matrix products in "
                f"{self.precision}; expected a finite loss: lower lr, or dtype and precision "
                "float32"
            )

    def evaluate(self, *args, **kwargs):
        """Log one epoch: its training losses by kind and the validation label accuracy.

        Of a torchrun's processes, which hold equal weights, the first validates and the others take
        its result.
        """
        if self.args.world_size > 1:
            total = self.sums.to(self.args.device)
            torch.distributed.all_reduce(total)
            self.sums = total.cpu()
        means = (self.sums[:, 0] / self.sums[:, 1].clamp(min=1)).tolist()
        total = (self.sums[:, 0].sum() / self.sums[:, 1].sum().clamp(min=1)).item()
        found = (
            broadcast_from_first(self.validate() if rank_and_world_size()[0] == 0 else {})
            if self.validate
            else {}
        )
        # Nobody has checked the weights that the epoch's last update made
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            self.check_loss(math.nan)
        row = {
            "epoch": round(self.state.epoch),
            "step": self.state.global_step,
            "loss": total,
            "label_loss": means[0],
            "rationale_loss": means[1] if self.sums[1, 1] > len(self.sampler) else float("nan"),
            "validation_accuracy": found.get("accuracy", float("nan")),
            "validation_label_nll": found.get("label_nll", float("nan")),
        }
        self.sums.zero_()
        self.state.log_history.append({"distil": row})
        if rank_and_world_size()[0] == 0:
            self.progress(row)
        # Without validation the last epoch is the best one
        metrics = {"eval_selection": selection_score(row) if found else row["epoch"]}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if found and 0 < self.patience <= epochs_since_best(self.state.log_history):
            self.control.should_training_stop = True
        return metrics

    def _save_checkpoint(self, model, trial):
        """Write the library's checkpoint, seal it, and only then delete the older ones.

        Their step says which are older (the library's own rotation goes by file times, and would
        delete the newest after the clock was set back).
        """
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            seal_checkpoint(folder / f"checkpoint-{self.state.global_step}")
            best = {
                self.state.global_step,
                self.state.best_global_step if self.args.load_best_model_at_end else None,
            }
            for step, old in list_checkpoints(folder):
                if step not in best:
                    shutil.rmtree(old, ignore_errors=True)

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable_parameters(self.model), folder / "trainable.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        restore_parameters(
            self.model, load_file(Path(resume_from_checkpoint) / "trainable.safetensors")
        )

    def _load_best_model(self):
        self.accelerator.wait_for_everyone()  # the first process may still be writing it
        restore_parameters(
            self.model, load_file(Path(self.state.best_model_checkpoint) / "trainable.safetensors")
        )


def selection_score(row: dict) -> float:
    """Return what epochs are compared by: validation label accuracy.

    Ties go to the lower label loss.
    """
    return row["validation_accuracy"] - 1e-6 * min(row["validation_label_nll"], 1e5)


def epochs_since_best(log: list[dict]) -> int:
    """Count the epochs of a Trainer's log after the best one (0 where none is logged).

    It is all that `patience` depends on, so a killed run that goes on from its checkpoint stops
    where an unbroken one does; the library's own callback would start counting from 0.
    """
    found = [selection_score(row["distil"]) for row in log if "distil" in row]
    return len(found) - 1 - int(np.argmax(found)) if found else 0


# Columns in this order: a checkpoint sorts them by name
HISTORY = [
    "epoch",
    "step",
    "loss",
    "label_loss",
    "rationale_loss",
    "validation_accuracy",
    "validation_label_nll",
]


@torch.no_grad()
def trunk_states(
    student: Student, data: list[Encoded], layers: int, store: dict
) -> list[torch.Tensor] | None:
    """Compute the outputs of the lowest `layers` blocks for each sequence but its last token.

    Returns [tokens - 1, width] each (as in `pack_batch`); None where there is nothing to gain (no
    frozen block), where dropout makes each pass another one, or where it would take more than
    TRUNK_CACHE_BYTES.

    store: (layers, sequences of a group) -> states, for later runs on the same sequences. Groups go
    by the questions' ids, so the same data give the same numbers to the last bit, whatever was
    computed before, and seeds, which only order the questions differently, share them.
    """
    model = student.model
    size = (
        sum(len(e.ids) - 1 for e in data)
        * model.config.hidden_size
        * next(model.parameters()).element_size()
    )
    if not has_trunk(model, layers) or size > TRUNK_CACHE_BYTES:
        return None
    blocks, seen, found = blocks_of(model), [], [None] * len(data)
    order = sorted(range(len(data)), key=lambda i: data[i].id)
    parts = [order[a : a + 16] for a in range(0, len(order), 16)]
    keys = [(layers, tuple(data[i].ids for i in part)) for part in parts]
    if (
        stored_bytes(store) + size - stored_bytes({key: store[key] for key in keys if key in store})
        > TRUNK_CACHE_BYTES
    ):
        store.clear()
    hook = blocks[layers].register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    try:
        with (
            use_attention(model, "packed"),
            use_prepacked_linears(model),
            replace_forward(dict.fromkeys(blocks[layers:], _skip_block)),
        ):
            for part, key in zip(parts, keys, strict=True):
                if key not in store:
                    group = [data[i] for i in part]
                    batch, lengths = pack_batch(group), [len(e.ids) - 1 for e in group]
                    model.base_model(
                        use_cache=False,
                        input_ids=batch["input_ids"].to(model.device),
                        position_ids=batch["position_ids"].to(model.device),
                        cu_seq_lens_q=batch["cu_seq_lens_q"],  # stays on the CPU
                    )
                    rows = seen.pop()[: sum(lengths)].split(lengths)
                    store[key] = [states.clone() for states in rows]
                for i, states in zip(part, store[key], strict=True):
                    found[i] = states
    finally:
        hook.remove()
    return found


def _skip_block(hidden_states, *args, **kwargs):
    """Return the states unchanged: a block that is left out."""
    return hidden_states


@contextmanager
def use_compiled_blocks(model: nn.Module, backend: str):
    """Run the blocks' MLPs and RMS norms through torch.compile, while open.

    They are compiled once for all lengths: a few fused loops instead of a dozen passes over memory.
    backend "": nothing is compiled.
    """
    parts = (
        [
            m
            for block in blocks_of(model)
            for m in block.modules()
            if m is block.mlp or "RMSNorm" in type(m).__name__
        ]
        if backend
        else []
    )
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


@contextmanager
def fast_training(
    model: nn.Module, backend: str = "", frozen_layers: int = 0, precision: str = "float32"
):
    """Let the model take `pack_batch`'s batches and train as fast as it can, while open.

    Sequences attend apart from each other, linear layers run on the faster float32 products (a
    compiler can't look into these), and what nothing is learnt from is left out.
    """
    own_products = precision == "float32" and not backend
    with (
        use_attention(model, "packed"),
        use_trainable_onednn_linears(model) if own_products else nullcontext(),
        use_compiled_blocks(model, backend),
        start_from_trunk(model, frozen_layers),
        last_block_at_places(model),
        sparse_embedding(model),
    ):
        yield


def freeze(model: nn.Module, layers: int) -> None:
    """Make everything trainable except the lowest `layers` blocks and, with them, the embeddings.

    A tied head is frozen with its embeddings. layers = 0: everything is trainable. Raises DataError
    for as many layers as the student has, or more.
    """
    model.requires_grad_(True)
    if not layers:
        return
    depth = model.config.num_hidden_layers
    if not 0 < layers < depth:
        raise DataError(
            f"frozen_layers is {layers}; expected 0 to {depth - 1} for this student "
            f"of {depth} layers"
        )
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    for module in [*embeddings, *blocks_of(model)[:layers]]:
        module.requires_grad_(False)


@dataclass(frozen=True)
class Hooks:
    """Hold what a run calls and shares beside its training.

    progress: called with each epoch's row of the history. batch_done: called with each batch's
    step and losses, in nats per token (`describe_batch`). trunks: a `trunk_states` store that runs
    of one student (with these weights) share; None: this run's own.
    """

    progress: Callable[[dict], None] = lambda row: None
    batch_done: Callable[[dict], None] = lambda row: None
    trunks: dict | None = None


def _training_arguments(
    student: Student, config: TrainConfig, seed: int, folder: Path, select_best: bool
) -> TrainingArguments:
    """Return the library's arguments for one run."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=student.model.device.type == "cpu",
        seed=seed,
        data_seed=seed,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=min(config.warmup, 0.999),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        activation_checkpointing=config.gradient_checkpointing,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=select_best,
        metric_for_best_model="eval_selection",
        greater_is_better=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    if arguments.world_size == 1:
        # Else several visible GPUs become a DataParallel, which cuts a packed row; they are for
        # torchrun and Ray
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _batch_maker(
    data: list[Encoded], trunk: list[torch.Tensor] | None, arm: Arm, rationale_weight: float
) -> Callable[[list[Encoded]], dict[str, torch.Tensor]]:
    """Return the Trainer's collator: `pack_batch`, with the frozen blocks' states where known."""
    # What an empty slice trains on: nothing is learnt from it
    silent = replace(data[0], kinds=(PROMPT,) * len(data[0].kinds))
    states = {}
    if trunk:
        pairs = zip([*data, silent], [*trunk, trunk[0]], strict=True)
        states = {id(e): state for e, state in pairs}

    def collate(batch: list[Encoded]) -> dict[str, torch.Tensor]:
        batch = batch or [silent]
        packed = pack_batch(batch, arm.label_weight, rationale_weight)
        if states:
            joined = torch.cat([states[id(e)] for e in batch])
            missing = packed["input_ids"].shape[1] - len(joined)
            packed["trunk"] = nn.functional.pad(joined, (0, 0, 0, missing))[None]
        return packed

    return collate


def _read_log(checkpoint: str | None) -> list[dict]:
    """Return the log of a checkpoint's trainer; empty without one."""
    if not checkpoint:
        return []
    state = (Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8")
    return json.loads(state)["log_history"]


def _read_history(log: list[dict]) -> pd.DataFrame:
    """Return the rows that `DistilTrainer.evaluate` left in a log, an epoch each."""
    return pd.DataFrame([row["distil"] for row in log if "distil" in row], columns=HISTORY)


def _run_trainer(trainer: DistilTrainer, checkpoint: str | None) -> None:
    """Train, from a checkpoint where there is one.

    Raises DataError for a checkpoint that holds objects beside tensors: torch loads it with
    weights_only, so a pickle that would run code is refused.
    """
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DataError(
            f"{trainer.args.output_dir}: a checkpoint holds objects beside tensors, and was not "
            f"loaded ({str(error).splitlines()[0][:80]}); "
            "expected one that this program wrote: delete that folder and run again"
        ) from None


def fine_tune(
    student: Student,
    passes: list[list[Encoded]],
    arm: Arm,
    config: TrainConfig,
    seed: int,
    folder: Path,
    validate: Callable[[], dict] | None = None,
    **hooks,
) -> tuple[pd.DataFrame, dict]:
    """Train the student in place on the sequences of each epoch.

    Checkpoints in `folder`, resumed from the last complete one. validate: () -> {"accuracy": 0..1,
    "label_nll": nats}, called after each epoch; None compares nothing and keeps the last epoch.
    hooks: the fields of `Hooks`. Under torchrun every process calls this with the same arguments: a
    batch is cut into a slice per process, so that `batch_size` stays what an update sees however
    many there are.

    Returns the history (a row per epoch: loss in nats per token over all, label and rationale
    tokens, validation accuracy and label loss) and a summary (best epoch, tokens trained on).
    """
    hooks, n, copies = Hooks(**hooks), len(passes[0]), len(passes) if arm.fresh else 1
    data = [e for one in passes[:copies] for e in one]
    freeze(student.model, config.frozen_layers)
    select_best = validate is not None and config.select == "best"
    arguments = _training_arguments(student, config, seed, folder, select_best)
    store = {} if hooks.trunks is None else hooks.trunks
    trunk = trunk_states(student, data, config.frozen_layers, store)
    patience, checkpoint = config.patience if select_best else 0, last_good_checkpoint(folder)
    log = _read_log(checkpoint)
    if 0 < patience <= epochs_since_best(log):  # killed after it had stopped early
        arguments.num_train_epochs = sum("distil" in row for row in log)
    trainer = DistilTrainer(
        model=student.model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data[:1],
        patience=patience,
        data_collator=_batch_maker(data, trunk, arm, config.rationale_weight),
        sampler=OrderSampler(n, seed, copies),
        batch_size=config.batch_size,
        validate=_wrap_validation(student, validate),
        hooks=hooks,
        loss=(arm.loss or config.loss, other_weight(arm, config)),
        precision=config.precision,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        with fast_training(student.model, config.compile, config.frozen_layers, config.precision):
            _run_trainer(trainer, checkpoint)
    finally:
        student.model.eval()
        release_memory()
    history = _read_history(trainer.state.log_history)
    best_step = trainer.state.best_global_step if select_best else trainer.state.global_step
    best = history.loc[history["step"] == best_step, "epoch"]
    return history, {
        "best_epoch": int(best.iloc[0]) if len(best) else int(history["epoch"].max()),
        "train_tokens": sum(len(e.ids) for one in passes[: len(history)] for e in one),
    }


def _wrap_validation(student: Student, validate):
    """Wrap `validate` so that it runs without dropout and with sdpa (it pads and caches).

    Training goes on as before.
    """
    if validate is None:
        return None

    def run():
        student.model.eval()
        try:
            # A compiler can't look into `use_prepacked_linears` weights
            with use_attention(student.model, "sdpa"), torch.compiler.set_stance("force_eager"):
                return validate()
        finally:
            student.model.train()

    return run
