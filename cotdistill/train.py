"""Fine-tune a student on label and rationale, with the transformers Trainer.

Three decisions that the comparison of arms rests on:
- The order of questions is a function of the seed alone, so every arm of a seed sees the same questions in the same
  batches, and the difference between two arms is never a difference in data order.
- Sequences of a batch are laid end to end in one row (`students.packed_attention`): no padding, whatever the lengths, so
  that no arm pays for another's. The head runs at supervised positions only, and never holds all their logits.
- Two losses (`loss_shares`). "token_mean" is the mean over the batch's supervised tokens, HF's own default and the paper's recipe:
  a longer target leaves the label a smaller share of it, so arms of unequal length differ in that too. "balanced" is the mean over
  label tokens plus lambda times the mean over the others: the label's term is the same in every arm. Label tokens can weigh more.

Where the lower blocks are frozen (`frozen_layers`), what they make of a sequence never changes: it is computed once and every
epoch, and every run of the grid on the same sequences, starts from there.
"""

import hashlib
import json
import math
import re
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from cotdistill import corrupt
from cotdistill.data import DataError, Example, Rationale
from cotdistill.format import CORRUPTIONS, LOSSES, Arm, format_target, label_text, prompt_text
from cotdistill.students import (ROWS, Student, attending, blocks_of, calling, changed, last_block_at_places, learning, prepacked, product,
                                 release_memory, sha256)

PROMPT, LABEL, RATIONALE, FRAME = range(4)  # what a token is: frame = "Reason:", "\nAnswer:" and the end of the sequence
TRUNK_LIMIT = 2 * 1024**3  # bytes of frozen blocks' outputs kept in memory; a data set that needs more is trained without
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
KINDS = {"label": LABEL, "rationale": RATIONALE, "frame": FRAME}


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of one run; every field but `compile`, which changes speed only, is part of its run key.

    `frozen_layers` keeps the embeddings and that many lower blocks as they are (0: full fine-tuning). `select` is "best"
    (the epoch with the highest validation label accuracy, ties to the lower label loss) or "last". `compile` is a backend of
    torch.compile ("inductor"; on a CPU it needs a C++ compiler) for the blocks' MLPs and RMS norms, "" for none. Attention stays out:
    it depends on the lengths of each batch's sequences and would be compiled again and again. `loss` is "token_mean" or "balanced",
    where the other tokens' mean weighs `loss_lambda` (`loss_shares`)."""

    lr: float = 1e-4
    epochs: int = 3
    batch_size: int = 16
    grad_accum: int = 1
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    rationale_weight: float = 1.0
    frozen_layers: int = 0
    gradient_checkpointing: bool = False
    select: str = "best"
    patience: int = 0
    compile: str = ""
    loss: str = "token_mean"
    loss_lambda: float = 1.0

    def __post_init__(self):
        """Raises DataError for a value of the wrong type or out of range."""
        for name, field in self.__dataclass_fields__.items():
            value, wanted = getattr(self, name), type(field.default)
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise DataError(f"{name} is {value!r}; expected {wanted.__name__}, as in {field.default!r}")
        high = {"warmup": 1}
        for name in ("lr", "epochs", "batch_size", "grad_accum", "weight_decay", "warmup", "max_grad_norm", "rationale_weight", "frozen_layers",
                     "patience", "loss_lambda"):
            value, low = getattr(self, name), 1 if name in ("epochs", "batch_size", "grad_accum") else 0
            if not low <= value <= high.get(name, 1e9) or name == "lr" and not value:
                wanted = "above 0" if name == "lr" else f"from {low} to 1" if name in high else f"from {low} on"
                raise DataError(f"{name} is {value}; expected a number {wanted}")
        for name, known in (("schedule", SCHEDULES), ("select", ("best", "last")), ("loss", LOSSES),
                            ("compile", ("", "inductor", "aot_eager", "eager"))):
            if getattr(self, name) not in known:
                raise DataError(f"{name} is '{getattr(self, name)}'; expected one of {', '.join(known)}")


def training_key(train: dict, arm: Arm) -> dict:
    """The hyperparameters as they enter a run's config (and key), from a study's and the arm's own loss, where it has one.

    `compile` changes speed only. token_mean leaves no trace, nor does the lambda that it does not use: a run that was made
    before there were two losses keeps its key, and one training has one key, whichever loss is the study's main one."""
    named = {name: value for name, value in train.items() if name not in ("compile", "loss", "loss_lambda")}
    loss = arm.loss or train.get("loss", "token_mean")
    return named if loss == "token_mean" else named | {"loss": loss, "loss_lambda": float(train.get("loss_lambda", 1.0))}


@dataclass(frozen=True)
class Encoded:
    """One training sequence: token ids, and for each token what it is (PROMPT, LABEL, RATIONALE, FRAME)."""

    id: str
    ids: tuple[int, ...]
    kinds: tuple[int, ...]


def example_rng(id: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on the question's id and the numbers (seed, epoch), never on its place in a list."""
    digest = hashlib.sha256(id.encode()).digest()
    return np.random.default_rng([int.from_bytes(digest[:8], "little"), *numbers])


def encode(student: Student, example: Example, rationale: str, arm: Arm, label_format: str = "text",
           rng: np.random.Generator | None = None, scores=None, corpus: corrupt.Corpus | None = None) -> Encoded:
    """Tokenise prompt and target piece by piece and join the ids; corrupt the rationale's own tokens on the way.

    scores: one importance per rationale token, for arms that keep or mask by a selector; corpus: what the training
    rationales have in common, for arms that need it."""
    prompt = student.bos_ids + student.encode(prompt_text(example, arm.placement, label_format))
    ids, kinds = list(prompt), [PROMPT] * len(prompt)
    for kind, text in format_target(example, rationale, arm, label_format):
        piece = student.encode(text)
        if kind == "rationale" and arm.corruption:
            piece = corrupt.corrupt_text(student, text, piece, arm, rng, scores, label=example.label, corpus=corpus)
        ids += piece
        kinds += [KINDS[kind]] * len(piece)
    return Encoded(example.id, tuple(ids + [student.eos_id]), tuple(kinds + [FRAME]))


def encode_all(student: Student, examples: list[Example], rationales: dict[str, Rationale], arm: Arm, label_format: str,
               seed: int, epochs: int = 1, scores: dict | None = None) -> list[list[Encoded]]:
    """The training sequences of an arm, one list per epoch (the same list again unless the arm is `fresh`).

    Where an arm takes another question's rationale, its function in corrupt.py chooses whose."""
    texts = {e.id: rationales[e.id].text if arm.uses_rationale else "" for e in examples}
    needs = CORRUPTIONS[arm.corruption].needs
    if "partner" in needs:
        lengths = {id: len(student.encode(f" {text}")) for id, text in texts.items()}
        partners = corrupt.choose_partners(arm, examples, lengths, texts, np.random.default_rng([seed, 7]))
        texts = {id: texts[partners[id]] for id in texts}
    corpus = corrupt.collect_corpus(student, list(texts.values())) if "corpus" in needs else None
    if scores is not None:
        missing = [e.id for e in examples if e.id not in scores]
        if missing:
            raise DataError(f"arm {arm.label}: no attribution scores for {len(missing)} questions, first '{missing[0]}'; "
                            "expected a score file of this study's training questions")
    passes = [[encode(student, e, texts[e.id], arm, label_format, example_rng(e.id, seed, epoch),
                      None if scores is None else scores[e.id], corpus) for e in examples]
              for epoch in range(epochs if arm.fresh else 1)]
    return passes if arm.fresh else passes * epochs


def share_as_intact(passes: list[list[Encoded]], student: Student, examples: list[Example], rationales: dict[str, Rationale], arm: Arm,
                    label_format: str, seed: int) -> float:
    """The share (0..1) of an arm's training sequences, of its first epoch, that its corruption leaves as they are: 15 tokens kept of a rationale
    of 12, the sentences of a rationale of one sentence shuffled. Where it is high, the arm can hardly differ from its intact one."""
    plain = encode_all(student, examples, rationales, arm.intact, label_format, seed)[0]
    return float(np.mean([a.ids == b.ids for a, b in zip(passes[0], plain, strict=True)]))


def fitting(student: Student, examples: list[Example], rationales: dict[str, Rationale], label_format: str,
            max_length: int) -> tuple[list[Example], dict[str, int]]:
    """The training questions every arm can use: with a rationale, and at most `max_length` tokens in every placement.

    Returns them and a count of what was left out and why; the same questions go to every arm, label_only too."""
    kept, left = [], {"no rationale": 0, f"over {max_length} tokens": 0}
    for example in examples:
        rationale = rationales.get(example.id)
        if rationale is None or not rationale.text:
            left["no rationale"] += 1
        elif training_length(student, example, rationale.text, label_format) > max_length:
            left[f"over {max_length} tokens"] += 1
        else:
            kept.append(example)
    return kept, left


def training_length(student: Student, example: Example, rationale: str, label_format: str) -> int:
    """Tokens of a question's longest training text, over the placements of its rationale."""
    return max(
        len(encode(student, example, rationale, Arm(p), label_format).ids)
        for p in ("pre_cot", "post_cot")
    )


def length_to_keep(lengths: list[int], share: float = 0.99) -> int:
    """The smallest `max_length` that keeps at least this share of these lengths, in tokens."""
    return sorted(lengths)[max(0, -(-len(lengths) * round(1000 * share) // 1000) - 1)]


def check_labels(student: Student, examples: list[Example], label_format: str, max_label_tokens: int) -> None:
    """Every option must fit into what generation may write for a label. Raises DataError naming the first that doesn't."""
    for example in examples:
        for option in range(len(example.choices)):
            n = len(student.encode(label_text(example, option, label_format)))
            if n > max_label_tokens:
                raise DataError(f"question '{example.id}': option {option + 1} is {n} tokens long; expected at most "
                                f"max_label_tokens = {max_label_tokens}")


def choose_train(examples: list[Example], size: int, seed: int) -> list[Example]:
    """`size` of the questions (all, where 0), drawn without replacement by the seed. Raises DataError if there are fewer."""
    if size > len(examples):
        raise DataError(f"train_size {size} is larger than the data: {len(examples)} training questions have a rationale and fit")
    order = np.random.default_rng([seed, 1]).permutation(len(examples))
    return [examples[i] for i in order[:size or len(examples)]]


def collate(batch: list[Encoded], arm_weight: float = 1.0, rationale_weight: float = 1.0) -> dict[str, torch.Tensor]:
    """Lay sequences end to end. input_ids, position_ids, labels [1, T]; cu_seq_lens [n + 1]; weights, kinds [S] of the S
    supervised tokens. labels[t] is the token that follows input_ids[t] in its sequence, or -100 where nothing is learnt from it: a
    sequence's last token follows, nothing follows it, and so it is no input.

    T is a multiple of ROWS: up to ROWS - 1 tokens that nothing is learnt from end it, a sequence of their own (cu_seq_lens: [n + 2])."""
    lengths = [len(e.ids) - 1 for e in batch]
    fill = -sum(lengths) % ROWS
    ids = torch.tensor([i for e in batch for i in e.ids[:-1]] + [0] * fill)
    next_ids = torch.tensor([i for e in batch for i in e.ids[1:]] + [0] * fill)
    kinds = torch.tensor([k for e in batch for k in e.kinds[1:]] + [PROMPT] * fill)
    lengths += [fill] if fill else []
    supervised = kinds != PROMPT
    weights = torch.where(kinds == LABEL, arm_weight, rationale_weight)[supervised]
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {"input_ids": ids[None], "position_ids": positions[None], "labels": next_ids.where(supervised, -100)[None],
            "cu_seq_lens_q": borders, "weights": weights, "kinds": kinds[supervised]}


def loss_shares(weights: torch.Tensor, is_label: torch.Tensor, counts: torch.Tensor, loss: str, other: float) -> torch.Tensor:
    """What each supervised token's cross-entropy is multiplied with, [S]; the loss is the sum of the products.

    weights [S]: of label tokens the arm's label_weight, of others rationale_weight. counts: (label tokens, other tokens) of
    the whole effective batch: all that an update sees, over gradient accumulation and the processes of a torchrun. So a
    question with a long rationale counts for more tokens, as it does in HF's mean.

    token_mean  weight / (all supervised tokens).
    balanced    weight / (label tokens) for the label, other * weight / (other tokens) for the rest. Others are the rationale
                and the frame ("Reason:", "\nAnswer:", the end of the sequence), whatever an arm makes of the rationale. The
                label's term is then the same in every arm; Hsieh et al. 2023 (arXiv 2305.02301) weigh two tasks so. For
                label_only `other` is 0 (`other_weight`)."""
    if loss == "token_mean":
        return weights / counts.sum()
    label, rest = (weights / count.clamp(min=1) for count in counts)
    return torch.where(is_label, label, other * rest)


def other_weight(arm: Arm, config: TrainConfig) -> float:
    """The weight (lambda) of the mean over other tokens in a balanced loss. 0 for label_only, whose only other token is the
    end of the sequence: alone it would weigh as much as all of a rationale, and nothing that is measured depends on it (an
    answer ends with its line break). So its balanced loss is the mean over label tokens."""
    return config.loss_lambda if arm.uses_rationale else 0.0


def label_share(sequences: list[Encoded], arm: Arm, config: TrainConfig) -> float:
    """The label's share (0..1) of the loss of an arm, as a sum of weights: what it is where every token's cross-entropy is equal."""
    kinds = torch.tensor([kind for e in sequences for kind in e.kinds if kind != PROMPT])
    is_label = kinds == LABEL
    weights = torch.where(is_label, float(arm.label_weight), float(config.rationale_weight)).double()
    counts = torch.stack([is_label.sum(), (~is_label).sum()])
    share = loss_shares(weights, is_label, counts, arm.loss or config.loss, other_weight(arm, config))
    return float(share[is_label].sum() / share.sum())


def _asked(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The S positions that predict a supervised token, those tokens, and what a model is called with."""
    labels = batch["labels"][0]
    places = (labels != -100).nonzero().squeeze(1)
    named = {key: batch[key] for key in ("input_ids", "position_ids", "cu_seq_lens_q", "trunk") if key in batch}
    return places, labels[places], named | {"use_cache": False, "places": places}


def token_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy in nats of every supervised token, [S], in float32 (of a float64 model: in float64). The head is applied at the S
    positions that predict them."""
    places, wanted, named = _asked(batch)
    logits = model(**named, logits_to_keep=places).logits[0]
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="none")


class HeadLoss(torch.autograd.Function):
    """The head and its cross-entropy, a slice of positions at a time, with the gradients made on the way: the logits of a slice become
    their own gradient in place, so that two of them never exist, let alone all positions' (gemma: a megabyte each)."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, share, limit):
        """hidden [S, D], weight [V, D], targets [S], share [S] -> (sum of share * loss, losses [S] in nats)."""
        for_hidden, for_weight = (torch.empty_like(x) if need else None for x, need in zip((hidden, weight), ctx.needs_input_grad))
        size, slices = len(hidden), -(-4 * hidden.shape[0] * weight.shape[0] // limit)
        n = -(-size // min(size, slices))  # positions in a slice: slices of about one length
        losses = hidden.new_empty(size)
        for a in range(0, size, n):
            part = slice(a, a + n)
            x, asked = hidden[part], (torch.arange(len(targets[part])), targets[part])
            logits = product(x, weight)
            top, hit = logits.amax(1), logits[asked]
            total = logits.sub_(top[:, None]).exp_().sum(1)  # log_softmax loses 1e-5 of gemma's loss here, in float32
            losses[part] = total.log() + top - hit
            logits[asked] -= total
            scale = (share[part] / total)[:, None]
            if for_hidden is not None:
                for_hidden[part] = product(logits, weight.t()).mul_(scale)
            if for_weight is not None:
                torch.mm(logits.t(), x * scale, out=for_weight) if not a else for_weight.addmm_(logits.t(), x * scale)
            del logits  # before the next slice's are made
        ctx.gradients, ctx.weight = (for_hidden, for_weight), weight
        ctx.mark_non_differentiable(losses)
        return (losses * share).sum(), losses

    @staticmethod
    def backward(ctx, outer, _):
        (for_hidden, for_weight), weight = (g if g is None or outer == 1 else g.mul_(outer) for g in ctx.gradients), ctx.weight
        del ctx.gradients, ctx.weight
        if for_weight is not None and weight.is_leaf:  # put where it belongs: autograd would copy it to add a tied embedding's rows
            weight.grad, for_weight = for_weight if weight.grad is None else weight.grad.add_(for_weight), None
        return for_hidden, for_weight, None, None, None


def weighted_loss(model: nn.Module, batch: dict[str, torch.Tensor], share: torch.Tensor, limit: int = 2**27) -> tuple[torch.Tensor, torch.Tensor]:
    """What training minimises: (sum over supervised tokens of share [S] times cross-entropy, the cross-entropies [S] in nats).

    On a CPU through `HeadLoss`, with slices of at most `limit` bytes of logits; a GPU, a torchrun and a head with a bias or a cap
    take the plain way. Both are the same function, up to rounding."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if (head is None or head.bias is not None or getattr(model.config, "final_logit_softcapping", None)
            or head.weight.dtype != torch.float32 or head.weight.device.type != "cpu"):
        losses = token_losses(model, batch)
        return (losses * share).sum(), losses.detach()
    places, wanted, named = _asked(batch)
    hidden = model.base_model(**named).last_hidden_state[0]
    return HeadLoss.apply(hidden[places], head.weight, wanted, share, limit)


@contextmanager
def sparse_embedding(model: nn.Module):
    """While open, the embeddings' gradient holds the batch's rows only, where it is added to the dense one of a tied head anyway: for
    gemma a matrix of 671 MB less to fill and add. On a CPU, in one process (processes can't average such gradients)."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    fits = head.weight is embedding.weight and embedding.weight.requires_grad and model.device.type == "cpu" and ranks()[1] == 1
    before, embedding.sparse = embedding.sparse, fits
    try:
        yield
    finally:
        embedding.sparse = before


class OrderSampler(torch.utils.data.Sampler):
    """Question order as a function of (seed, epoch): the same for every arm. Epoch e of a fresh arm has its own
    encodings, kept at e * n in the concatenated data."""

    def __init__(self, n: int, seed: int, copies: int):
        self.n, self.seed, self.copies, self.epoch = n, seed, copies, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        order = np.random.default_rng([self.seed, 2, self.epoch]).permutation(self.n)
        return iter((order + self.n * (self.epoch % self.copies)).tolist())


class SlicedBatches(torch.utils.data.Sampler):
    """The batches of one process, cut into one slice per process of a torchrun: slice r of batch b stands at b * ranks + r,
    where accelerate looks for it. A last batch that is smaller than the number of processes leaves slices empty; nothing is
    repeated to fill it, as accelerate's own sharding would."""

    def __init__(self, order: OrderSampler, batch_size: int, ranks: int):
        self.order, self.size, self.ranks, self.batch_size, self.drop_last = order, batch_size, ranks, None, False

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size) * self.ranks

    def __iter__(self):
        order = list(self.order)
        for at in range(0, len(order), self.size):
            yield from (part.tolist() for part in np.array_split(np.array(order[at:at + self.size]), self.ranks))


def ranks() -> tuple[int, int]:
    """(this process, processes) of a torchrun; (0, 1) without one."""
    on = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if on else (0, 1)


def told(value):
    """The first process's value, on every process of a torchrun."""
    if ranks()[1] > 1:
        box = [value]
        torch.distributed.broadcast_object_list(box, 0)
        return box[0]
    return value


class DistilTrainer(Trainer):
    """The Trainer with our order, our loss, and checkpoints that hold trainable weights only.

    `validate` maps the student to {"accuracy", "label_nll"} on validation questions; epochs are compared by it."""

    def __init__(self, *args, sampler: OrderSampler, batch_size: int, validate, progress, patience: int = 0,
                 loss: tuple[str, float] = ("token_mean", 0.0), **kwargs):
        super().__init__(*args, **kwargs)
        self.loss, self.counts = loss, None  # (name, weight of the other tokens' mean); supervised tokens of an update, by kind
        self.sampler, self.batch_size, self.validate, self.progress, self.patience = sampler, batch_size, validate, progress, patience
        self.model_accepts_loss_kwargs = True  # we divide by the number of supervised tokens of the whole optimiser step
        self._loss_shifts_labels = False  # `collate` has
        self.sums = torch.zeros(2, 2, dtype=torch.float64)  # [label | other][sum of losses, tokens] since the epoch began

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def get_train_dataloader(self):
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        batches = SlicedBatches(self.sampler, self.batch_size, self.args.world_size)
        return self.accelerator.prepare(torch.utils.data.DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator))

    def _get_num_items_in_batch(self, batch_samples, device):
        """The library's count of an update's supervised tokens, and ours by kind, (label, other), over all its batches and processes."""
        if self.loss[0] != "token_mean" and batch_samples:
            labels = sum((batch["kinds"] == LABEL).sum() for batch in batch_samples)
            counts = torch.stack([labels, sum(len(batch["kinds"]) for batch in batch_samples) - labels]).to(device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(counts)
            self.counts = counts
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        is_label = inputs["kinds"] == LABEL
        if self.loss[0] == "token_mean":
            share = inputs["weights"] / (len(inputs["weights"]) if num_items_in_batch is None else num_items_in_batch)
        else:
            share = loss_shares(inputs["weights"], is_label, self.counts, *self.loss)
        if self.args.world_size > 1 and num_items_in_batch is not None:
            share = share * self.args.world_size  # gradients are averaged over processes, items were counted over all
        loss, losses = weighted_loss(model, inputs, share)
        for row, mask in enumerate((is_label, ~is_label)):
            self.sums[row] += torch.tensor([losses[mask].sum().item(), mask.sum().item()])
        self.check_loss(self.sums.sum().item())
        return (loss, None) if return_outputs else loss

    def check_loss(self, loss: float) -> None:
        """A run that diverged ends here and is not stored. Raises DataError where the loss is no finite number."""
        if not math.isfinite(loss):
            raise DataError(f"training diverged: the loss is {loss:g} at step {self.state.global_step + 1}, with lr {self.args.learning_rate:g} and "
                            f"weights in {str(self.model.dtype).removeprefix('torch.')}; expected a finite loss: lower lr, or dtype float32")

    def evaluate(self, *args, **kwargs):
        """One epoch is over: its training losses by kind, and the validation label accuracy. Appended to the log.

        Of a torchrun's processes, which hold equal weights, the first validates and the others take its word."""
        if self.args.world_size > 1:
            total = self.sums.to(self.args.device)
            torch.distributed.all_reduce(total)
            self.sums = total.cpu()
        means = (self.sums[:, 0] / self.sums[:, 1].clamp(min=1)).tolist()
        total = (self.sums[:, 0].sum() / self.sums[:, 1].sum().clamp(min=1)).item()
        found = told(self.validate() if ranks()[0] == 0 else {}) if self.validate else {}
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):  # of the epoch's last update
            self.check_loss(math.nan)
        row = {"epoch": round(self.state.epoch), "step": self.state.global_step, "loss": total, "label_loss": means[0],
               "rationale_loss": means[1] if self.sums[1, 1] > len(self.sampler) else float("nan"),
               "validation_accuracy": found.get("accuracy", float("nan")),
               "validation_label_nll": found.get("label_nll", float("nan"))}
        self.sums.zero_()
        self.state.log_history.append({"distil": row})
        if ranks()[0] == 0:
            self.progress(row)
        metrics = {"eval_selection": selection(row) if found else row["epoch"]}  # without validation the last epoch is the best one
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if found and 0 < self.patience <= epochs_since_best(self.state.log_history):
            self.control.should_training_stop = True
        return metrics

    def _save_checkpoint(self, model, trial):
        """The library's checkpoint, sealed when it is whole; only then the older ones go. Which are older is told by their step (the
        library's own rotation goes by file times, and would delete the newest after the clock was set back)."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            seal_checkpoint(folder / f"checkpoint-{self.state.global_step}")
            best = {self.state.global_step, self.state.best_global_step if self.args.load_best_model_at_end else None}
            for step, old in checkpoints(folder):
                if step not in best:
                    shutil.rmtree(old, ignore_errors=True)

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable(self.model), folder / "trainable.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        restore(self.model, load_file(Path(resume_from_checkpoint) / "trainable.safetensors"))

    def _load_best_model(self):
        self.accelerator.wait_for_everyone()  # the first process may still be writing it
        restore(self.model, load_file(Path(self.state.best_model_checkpoint) / "trainable.safetensors"))


def selection(row: dict) -> float:
    """What epochs are compared by: validation label accuracy; ties go to the lower label loss."""
    return row["validation_accuracy"] - 1e-6 * min(row["validation_label_nll"], 1e5)


def epochs_since_best(log: list[dict]) -> int:
    """How many epochs of a Trainer's log came after the best one (0 where none is logged). It is all that `patience` depends on, so a killed
    run that goes on from its checkpoint stops where one that was left alone does; the library's own callback would count anew."""
    found = [selection(row["distil"]) for row in log if "distil" in row]
    return len(found) - 1 - int(np.argmax(found)) if found else 0


HISTORY = ["epoch", "step", "loss", "label_loss", "rationale_loss", "validation_accuracy", "validation_label_nll"]  # a checkpoint sorts them
CHECKPOINT = ("trainable.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")  # and rng_state.pth, of a single process


def seal_checkpoint(folder: Path) -> None:
    """Write the SHA-256 of a checkpoint's files into its seal.json, last: a checkpoint without one is not whole."""
    names = [*CHECKPOINT, *(["rng_state.pth"] if (folder / "rng_state.pth").is_file() else [])]
    part = folder / "seal.part"
    part.write_text(json.dumps({name: sha256(folder / name) for name in names}), encoding="utf-8")
    part.replace(folder / "seal.json")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each checkpoint, the first step first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def broken(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, or with the best epoch it refers to; empty where both are as they were written."""
    try:
        seal = json.loads((checkpoint / "seal.json").read_text(encoding="utf-8"))
        bad = changed(checkpoint, dict.fromkeys(CHECKPOINT, "") | seal)
        if bad:
            return f"{', '.join(bad)} damaged"
        best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
    except FileNotFoundError:
        return "seal.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "seal.json damaged"
    if not best or Path(best) == checkpoint:
        return ""
    problem = broken(checkpoint.with_name(Path(best).name)) if Path(best).parent == checkpoint.parent else "it is in another folder"
    return f"its best epoch, {Path(best).name}: {problem}" if problem else ""


def last_whole_checkpoint(folder: Path) -> str | None:
    """The checkpoint that a killed run goes on from; those that are not whole are named and deleted. None: it starts anew."""
    for _, path in reversed(checkpoints(folder)):
        problem = broken(path)
        if not problem:
            return str(path)
        print(f"{path.name} of a killed run: {problem}; it is not used, training goes back to the last whole one or the beginning", flush=True)
        shutil.rmtree(path)
    return None


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor of the parameters that training changes (a tied head once)."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def restore(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy weights back in place: no reload between the runs of a grid."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def has_trunk(model: nn.Module, layers: int) -> bool:
    """Whether the lowest `layers` blocks make the same of a sequence every time: they are frozen, and drop nothing at random."""
    dropped = (value for name, value in model.config.to_dict().items() if "dropout" in name or "pdrop" in name)
    return layers > 0 and not any(isinstance(value, float) and value for value in dropped)


def stored(store: dict) -> int:
    """Bytes of what frozen blocks made, in a store of `trunk_states` and `evaluate`."""
    return sum(t.nbytes for group in store.values() for t in group)


@torch.no_grad()
def trunk_states(student: Student, data: list[Encoded], layers: int, store: dict) -> list[torch.Tensor] | None:
    """What the lowest `layers` blocks make of each sequence but its last token (`collate`), [tokens - 1, width] each; None where there is
    nothing to gain (no frozen block), where dropout makes each pass another one, or where it would take more than TRUNK_LIMIT bytes.

    store: (layers, sequences of a group) -> states, for later runs on the same sequences. Groups go by the questions' ids, so the
    same data give the same numbers to the last bit, whatever was computed before, and seeds, which order them anew, share them."""
    model = student.model
    size = sum(len(e.ids) - 1 for e in data) * model.config.hidden_size * next(model.parameters()).element_size()
    if not has_trunk(model, layers) or size > TRUNK_LIMIT:
        return None
    blocks, seen, found = blocks_of(model), [], [None] * len(data)
    order = sorted(range(len(data)), key=lambda i: data[i].id)
    parts = [order[a:a + 16] for a in range(0, len(order), 16)]
    keys = [(layers, tuple(data[i].ids for i in part)) for part in parts]
    if stored(store) + size - stored({key: store[key] for key in keys if key in store}) > TRUNK_LIMIT:
        store.clear()
    hook = blocks[layers].register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    try:
        with attending(model, "packed"), prepacked(model), calling({block: _nothing for block in blocks[layers:]}):
            for part, key in zip(parts, keys):
                if key not in store:
                    group = [data[i] for i in part]
                    batch, lengths = collate(group), [len(e.ids) - 1 for e in group]
                    model.base_model(use_cache=False, **{name: batch[name].to(model.device) if name != "cu_seq_lens_q" else batch[name]
                                                         for name in ("input_ids", "position_ids", "cu_seq_lens_q")})
                    store[key] = [states.clone() for states in seen.pop()[:sum(lengths)].split(lengths)]
                for i, states in zip(part, store[key]):
                    found[i] = states
    finally:
        hook.remove()
    return found


def _nothing(hidden_states, *args, **kwargs):
    return hidden_states


def _unless_trunk(forward, hidden_states, *args, **kwargs):
    return hidden_states if "trunk" in kwargs else forward(hidden_states, *args, **kwargs)


@contextmanager
def starting_from_trunk(model: nn.Module, layers: int):
    """While open, a call with `trunk` [1, T, width] leaves out the lowest `layers` blocks and goes on from those states."""
    blocks = blocks_of(model)

    def enter(module, given, named):
        return ((named["trunk"], *given[1:]), named) if "trunk" in named else None

    hook = blocks[layers].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with calling({block: partial(_unless_trunk, block.forward) for block in blocks[:layers]}):
            yield
    finally:
        hook.remove()


@contextmanager
def compiled(model: nn.Module, backend: str):
    """While open, the blocks' MLPs and RMS norms go through torch.compile, once for all lengths: a few fused loops instead of a dozen
    passes over memory. backend "": nothing is compiled."""
    parts = [m for block in blocks_of(model) for m in block.modules() if m is block.mlp or "RMSNorm" in type(m).__name__] if backend else []
    for part in parts:
        part.compile(backend=backend, dynamic=True)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


@contextmanager
def training(model: nn.Module, compile: str = "", frozen_layers: int = 0):
    """While open, the model takes `collate`'s batches, and a step costs what it must: sequences attend apart from each other, linear layers
    run on the faster products (a compiler can't look into these), and what nothing is learnt from is left out."""
    with (attending(model, "packed"), nullcontext() if compile else learning(model), compiled(model, compile),
          starting_from_trunk(model, frozen_layers), last_block_at_places(model), sparse_embedding(model)):
        yield


def freeze(model: nn.Module, layers: int) -> None:
    """Make everything trainable but, where layers > 0, the embeddings (with a tied head) and the lowest `layers` blocks."""
    model.requires_grad_(True)
    if not layers:
        return
    depth = model.config.num_hidden_layers
    if not 0 < layers < depth:
        raise DataError(f"frozen_layers is {layers}; expected 0 to {depth - 1} for this student of {depth} layers")
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    for module in [*embeddings, *blocks_of(model)[:layers]]:
        module.requires_grad_(False)


def fine_tune(student: Student, passes: list[list[Encoded]], arm: Arm, config: TrainConfig, seed: int, folder: Path,
              validate=None, progress=lambda row: None, trunks: dict | None = None) -> tuple[pd.DataFrame, dict]:
    """Train the student in place on the sequences of each epoch; checkpoints in `folder`, resumed from the last whole one.

    trunks: a `trunk_states` store that runs of one student (with these weights) share; None: this run's own.
    Under torchrun every process calls this with the same arguments: a batch is cut into a slice per process, so that
    `batch_size` stays what an update sees however many there are.

    validate: () -> {"accuracy": 0..1, "label_nll": nats}, called after each epoch; None compares nothing and keeps the
    last. Returns the history (a row per epoch: loss in nats per token over all supervised tokens, label tokens, and
    rationale tokens with their frame; validation accuracy and label loss) and a summary (best epoch, tokens trained on).
    """
    n = len(passes[0])
    copies = len(passes) if arm.fresh else 1
    data = [e for one in passes[:copies] for e in one]
    freeze(student.model, config.frozen_layers)
    on_gpu = student.model.device.type == "cuda"
    select_best = validate is not None and config.select == "best"
    silent = replace(data[0], kinds=(PROMPT,) * len(data[0].kinds))  # what an empty slice trains on: nothing is learnt from it
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=student.model.device.type == "cpu", seed=seed, data_seed=seed,
        num_train_epochs=config.epochs, per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum, learning_rate=config.lr, weight_decay=config.weight_decay,
        warmup_steps=min(config.warmup, 0.999), lr_scheduler_type=config.schedule, max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused", bf16=on_gpu and student.model.dtype == torch.float32 and torch.cuda.is_bf16_supported(),
        activation_checkpointing=config.gradient_checkpointing, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=select_best, metric_for_best_model="eval_selection",
        greater_is_better=True, logging_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        dataloader_num_workers=0, dataloader_pin_memory=False)
    if arguments.world_size == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else several visible GPUs become a DataParallel, which cuts a packed row; they are for torchrun and Ray
    trunk = trunk_states(student, data, config.frozen_layers, {} if trunks is None else trunks)
    states = {id(e): state for e, state in zip([*data, silent], [*trunk, trunk[0]])} if trunk else {}

    def collator(batch):
        batch = batch or [silent]
        found = collate(batch, arm.label_weight, config.rationale_weight)
        if states:
            joined = torch.cat([states[id(e)] for e in batch])
            found["trunk"] = nn.functional.pad(joined, (0, 0, 0, found["input_ids"].shape[1] - len(joined)))[None]
        return found

    patience, checkpoint = config.patience if select_best else 0, last_whole_checkpoint(folder)
    log = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"] if checkpoint else []
    if 0 < patience <= epochs_since_best(log):  # killed after it had stopped early
        arguments.num_train_epochs = sum("distil" in row for row in log)
    trainer = DistilTrainer(
        model=student.model, args=arguments, train_dataset=data, eval_dataset=data[:1], patience=patience,
        data_collator=collator, sampler=OrderSampler(n, seed, copies), batch_size=config.batch_size,
        validate=_in_eval(student, validate), progress=progress,
        loss=(arm.loss or config.loss, other_weight(arm, config)))
    trainer.remove_callback(_printer())
    try:
        with training(student.model, config.compile, config.frozen_layers):
            trainer.train(resume_from_checkpoint=checkpoint)
    except Exception as error:  # torch loads a checkpoint with weights_only: a pickle that would run code is refused, and named here
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DataError(f"{folder}: a checkpoint holds objects beside tensors, and was not loaded ({str(error).splitlines()[0][:80]}); "
                        "expected one that this program wrote: delete that folder and run again") from None
    finally:
        student.model.eval()
        release_memory()
    history = pd.DataFrame([row["distil"] for row in trainer.state.log_history if "distil" in row], columns=HISTORY)
    best_step = trainer.state.best_global_step if select_best else trainer.state.global_step
    best = history.loc[history["step"] == best_step, "epoch"]
    tokens = sum(len(e.ids) for one in passes[:len(history)] for e in one)
    return history, {"best_epoch": int(best.iloc[0]) if len(best) else int(history["epoch"].max()), "train_tokens": tokens}


def _printer():
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _in_eval(student: Student, validate):
    """Validation runs without dropout and with sdpa (it pads and caches), then training goes on as before."""
    if validate is None:
        return None

    def run():
        student.model.eval()
        try:
            with attending(student.model, "sdpa"), torch.compiler.set_stance("force_eager"):  # a compiler can't look into `prepacked` weights
                return validate()
        finally:
            student.model.train()
    return run
