"""Compute log p(label | question, rationale) and its gradients by the rationale's embeddings."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache

from cotdistill import corrupt
from cotdistill.arms import Arm, format_target, prompt_text
from cotdistill.decode import keys_and_values
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.kernels.attention import Continuations, use_attention
from cotdistill.kernels.blocks import last_block_at_places
from cotdistill.students import Student

BASELINES = ("filler", "mean", "zero")


@dataclass(frozen=True)
class Parts:
    """Hold the token ids of a rationale-first sequence, and each rationale token's word."""

    prefix: list[int]
    rationale: list[int]
    frame: list[int]
    label: list[int]
    words: list[int]


@dataclass(frozen=True)
class Attribution:
    """Hold the scores of one rationale.

    Ids, scores and words have one entry per token; words holds the token's word index.

    logp_full and logp_baseline are log p(label) with the rationale and with every token of it at
    the baseline; delta is sum(scores) - (logp_full - logp_baseline), integrated gradients'
    convergence error. NaN where a method has none.
    """

    id: str
    method: str
    ids: tuple[int, ...]
    scores: np.ndarray
    words: tuple[int, ...]
    delta: float = float("nan")
    logp_full: float = float("nan")
    logp_baseline: float = float("nan")


def split_sequence(
    student: Student, example: Example, rationale: str, label_format: str = "text"
) -> Parts:
    """Split the pre_cot sequence into its pieces, tokenised as in training.

    An empty rationale has no tokens.
    """
    prefix = student.bos_ids + student.encode(prompt_text(example, "pre_cot", label_format))
    pieces = dict(format_target(example, rationale, Arm("pre_cot"), label_format))
    text = pieces.get("rationale", "")
    return Parts(
        prefix,
        student.encode(text),
        student.encode(pieces["frame"]),
        student.encode(pieces["label"]),
        corrupt.word_groups(student, text),
    )


@contextmanager
def freeze_parameters(model: torch.nn.Module):
    """Put the model in evaluation mode, without gradients for its parameters, while open.

    Only inputs need a gradient. Then everything is as it was before.
    """
    training, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in zip(model.parameters(), flags, strict=False):
            parameter.requires_grad_(flag)


def _embed_rest(student: Student, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the label's ids [L] and the embeddings of what stands between, [1, F + L - 1, D].

    These are of the frame and of the label up to its last token.
    """
    device = student.model.device
    with torch.no_grad():
        tail = student.model.get_input_embeddings()(
            torch.tensor([parts.frame + parts.label[:-1]], device=device)
        )
    return torch.tensor(parts.label, device=device), tail


def _label_logp(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return log p(label) [B] in nats, in float32 at least.

    logits [B, L, V] are those at the positions that predict the label's L tokens.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1)[:, torch.arange(len(label)), label].sum(1)


def label_scorer(student: Student, parts: Parts) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function: rationale embeddings [B, R, D] -> log p(label) [B] in nats.

    It sums over the label's tokens and is differentiable in the embeddings. The prompt runs here,
    once; each call repeats its keys and values B times. The head runs at the positions that predict
    the label only, and so do, inside `last_block_at_places`, the last block's queries and MLP.
    """
    model, device = student.model, student.model.device
    (label, tail), cache = _embed_rest(student, parts), keys_and_values(student, parts.prefix)

    def score(embeds: torch.Tensor) -> torch.Tensor:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(embeds))
        rows = torch.cat([embeds, tail.expand(len(embeds), -1, -1)], 1)
        places = torch.arange(rows.shape[1] - len(label), rows.shape[1], device=device)
        # places, not their number: a slice of the last few is not contiguous, and the head would
        # read its weights for every row
        return _label_logp(
            model(
                inputs_embeds=rows,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=places,
                places=places,
            ).logits,
            label,
        )

    return score


@torch.no_grad()
def _score_in_batches(score, embeds: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Apply `score` to the rows in batches."""
    return torch.cat([score(part) for part in embeds.split(batch_size)]).double().cpu()


def embed_rationale(
    student: Student, parts: Parts, baseline: str = "filler"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of the rationale and of its baseline, both [1, R, D].

    baseline: "filler", the student's filler token; "mean", the mean of all embeddings; "zero",
    which is no token's embedding, and far from what a student with normed or scaled embeddings ever
    saw (Gemma: the delta explodes).
    """
    embed, device = student.model.get_input_embeddings(), student.model.device
    with torch.no_grad():
        full = embed(torch.tensor([parts.rationale], dtype=torch.long, device=device))
        if baseline == "filler":
            base = embed(torch.tensor([[student.filler_id]], device=device))
        elif baseline == "mean":
            base = embed.weight.mean(0) * getattr(embed, "embed_scale", 1.0)
        elif baseline == "zero":
            base = torch.zeros(full.shape[-1], device=device, dtype=full.dtype)
        else:
            raise DataError(
                f"attribution baseline '{baseline}'; expected one of {', '.join(BASELINES)}"
            )
    return full, base.expand_as(full).clone()


@torch.no_grad()
def variant_logps(
    student: Student,
    parts: Parts,
    full: torch.Tensor,
    base: torch.Tensor,
    keep: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return log p(label) in nats of N variants of a rationale, [N].

    `keep` [N, R] bool, tokens not kept are at the baseline; full and base [1, R, D] as from
    `embed_rationale`.

    Up to the first token that it replaces, a variant is the rationale as it is, whose keys and
    values are computed once: only the rest of it runs, `batch_size` variants in a pass, end to end
    (`attention_after`). The head runs at the positions that predict the label, and so do, inside
    `last_block_at_places`, the last block's queries and MLP.
    """
    label, tail = _embed_rest(student, parts)
    known = keys_and_values(student, parts.prefix + parts.rationale)
    first = [int(row.argmin()) if not row.all() else len(row) for row in keep]
    found = []
    with use_attention(student.model, "after"):
        for at in range(0, len(keep), batch_size):
            rows = torch.tensor(keep[at : at + batch_size], device=full.device)
            starts = first[at : at + batch_size]
            pieces = [
                torch.cat([torch.where(row[None, a:, None], full[:, a:], base[:, a:]), tail], 1)
                for row, a in zip(rows, starts, strict=True)
            ]
            starts = [len(parts.prefix) + a for a in starts]
            found.append(_continue_text(student, known, pieces, starts, label))
    return torch.cat(found).numpy()


def _continue_text(
    student: Student,
    known: Cache,
    pieces: list[torch.Tensor],
    starts: list[int],
    label: torch.Tensor,
) -> torch.Tensor:
    """Run continuations of one known text end to end and return their log p(label), [N].

    pieces: embeddings [1, n, D] that end before the label's last token; piece i follows the first
    starts[i] tokens of the text.
    """
    lengths, device = [piece.shape[1] for piece in pieces], student.model.device
    places = [p for end in np.cumsum(lengths) for p in range(end - len(label), end)]
    places = torch.tensor(places, device=device)
    positions = [
        torch.arange(a, a + n, device=device) for a, n in zip(starts, lengths, strict=True)
    ]
    logits = student.model(
        inputs_embeds=torch.cat(pieces, 1),
        use_cache=False,
        continuations=Continuations(known, starts, lengths),
        position_ids=torch.cat(positions)[None],
        logits_to_keep=places,
        places=places,
    ).logits
    return _label_logp(logits.view(len(pieces), len(label), -1), label).double().cpu()


def removal_logps(
    student: Student,
    example: Example,
    rationale: str,
    keep: np.ndarray,
    *,
    label_format: str = "text",
    baseline: str = "filler",
    batch_size: int = 32,
) -> np.ndarray:
    """Return log p(label) in nats for N variants of a rationale.

    `keep` [N, R] bool; tokens not kept are at the baseline.
    """
    parts = split_sequence(student, example, rationale, label_format)
    keep, back = np.unique(np.asarray(keep, dtype=bool), axis=0, return_inverse=True)
    with freeze_parameters(student.model), last_block_at_places(student.model):
        return variant_logps(
            student, parts, *embed_rationale(student, parts, baseline), keep, batch_size
        )[back.ravel()]
