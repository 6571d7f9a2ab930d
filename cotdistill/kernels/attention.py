"""Attend over sequences laid end to end, over a shared prefix, or from given positions on."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

from cotdistill.errors import DataError
from cotdistill.kernels.mixed import product_dtype


@dataclass(frozen=True)
class Continuations:
    """Hold several continuations of one known text, for one pass of `attention_after`.

    known: keys and values of the text; continuation i sees its first starts[i] tokens and has
    lengths[i] tokens. masks is filled by the first layer of each sliding window: what a token sees
    is the same in all of them.
    """

    known: Cache
    starts: list[int]
    lengths: list[int]
    masks: dict = field(default_factory=dict)


def attention_after(
    module,
    query,
    key,
    value,
    _mask=None,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    *,
    continuations: Continuations,
    **kwargs,
):
    """Attend from several continuations of one known text, laid end to end in one row.

    Each continues from its own position; there is no padding (`use_attention(model, "after")`).
    query [1, heads, T, d], key and value [1, kv_heads, T, d] with T = sum(lengths): continuation i
    has lengths[i] tokens and sees the first starts[i] tokens of the known text, and its own tokens
    up to the one that asks.
    """
    starts, lengths, masks = continuations.starts, continuations.lengths, continuations.masks
    layer = continuations.known.layers[module.layer_idx]
    groups = query.shape[1] // key.shape[1]
    old, new = (
        (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)) if groups > 1 else (k, v)
        for k, v in ((layer.keys, layer.values), (key, value))
    )
    if sliding_window not in masks:
        places = torch.arange(layer.keys.shape[2] + max(lengths), device=query.device)
        back = places[:, None] - places  # how far back a token looks
        unseen = (back < 0) | (back >= sliding_window) if sliding_window else back < 0
        bias = torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill_(
            unseen, -torch.inf
        )
        masks[sliding_window] = [
            bias[a : a + n, : a + n] for a, n in zip(starts, lengths, strict=False)
        ]
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            q,
            torch.cat([old[0][:, :, :a], k], 2),
            torch.cat([old[1][:, :, :a], v], 2),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
        )
        for q, k, v, a, mask in zip(
            query.split(lengths, 2),
            new[0].split(lengths, 2),
            new[1].split(lengths, 2),
            starts,
            masks[sliding_window],
            strict=False,
        )
    ]
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("after", attention_after)


def shared_prefix_attention(
    module,
    query,
    key,
    value,
    _mask=None,
    scaling=None,
    sliding_window=None,
    *,
    prefix,
    visible,
    **kwargs,
):
    """Attend from a batch of rows to one shared prefix and to each row's own tokens.

    The prefix's keys and values are read once for the whole batch, not copied to every row (the
    idea of Hydragen, arXiv 2402.05099, with one softmax over both).

    query [rows, heads, q, d]; key, value [rows, kv_heads, own, d]; prefix: per layer (key, value),
    [1, kv_heads, length, d]; visible(window) -> bool [rows, 1, q, length + own], from positions, so
    sliding windows are those of a plain run.
    """
    rows, heads, q, d = query.shape
    shared_key, shared_value = (part[0] for part in prefix[module.layer_idx])
    kv_heads, length = shared_key.shape[:2]
    query = query.reshape(rows, kv_heads, -1, d) * (d**-0.5 if scaling is None else scaling)
    flat = query.transpose(0, 1).reshape(kv_heads, -1, d)
    first = (flat @ shared_key.mT).reshape(kv_heads, rows, -1, length).transpose(0, 1)
    scores = torch.cat([first, query @ key.mT], -1).reshape(rows, heads, q, -1)
    weights = (
        scores.float()
        .masked_fill(~visible(sliding_window), float("-inf"))
        .softmax(-1)
        .to(value.dtype)
    )
    weights = weights.reshape(rows, kv_heads, -1, weights.shape[-1])
    first = weights[..., :length].transpose(0, 1).reshape(kv_heads, -1, length) @ shared_value
    out = first.reshape(kv_heads, rows, -1, d).transpose(0, 1) + weights[..., length:] @ value
    return out.reshape(rows, heads, q, d).transpose(1, 2).contiguous(), None


def packed_attention(
    module,
    query,
    key,
    value,
    _mask=None,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    *,
    cu_seq_lens_q,
    **kwargs,
):
    """Attend over sequences laid end to end in one row, without padding and without a mask.

    Training runs on it (`use_attention(model, "packed")`), generation and scoring on torch's sdpa.
    query [1, heads, T, d], key and value [1, kv_heads, T, d]; cu_seq_lens_q holds the T-borders of
    the sequences (int, [n + 1], on the CPU). Each sequence runs through torch's causal attention
    alone, so nothing can leak between them, and linear layers see only real tokens. Raises
    DataError for a sequence longer than the model's sliding window.
    """
    # Under autocast rotary embeddings are float32, and so what they turned
    dtype = product_dtype(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    borders = cu_seq_lens_q.tolist()
    lengths = [b - a for a, b in pairwise(borders)]
    if sliding_window and max(lengths) > sliding_window:
        raise DataError(
            "a sequence is longer than the model's sliding window of "
            f"{sliding_window}; expected max_length below it"
        )
    if query.device.type == "cuda":  # one fused call instead of one per sequence
        return _attend_side_by_side(query, key, value, lengths, dropout, scaling), None
    # split, not slices: the gradient of a split is one cat, that of each slice a full-size tensor
    # of zeros to be added
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=n > 1, dropout_p=dropout, scale=scaling
        )
        for q, k, v, n in zip(
            query.split(lengths, 2),
            key.split(lengths, 2),
            value.split(lengths, 2),
            lengths,
            strict=False,
        )
    ]
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


def _attend_side_by_side(
    query, key, value, lengths: list[int], dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attend as `packed_attention` does, with the sequences as rows padded at their ends.

    Under a causal mask no real token sees the padding, so no other mask is needed and torch can
    take its flash kernel. Returns [1, T, heads, d].
    """
    real = (
        torch.arange(max(lengths), device=query.device)
        < torch.tensor(lengths, device=query.device)[:, None]
    )

    def lay(x):
        padded = x.new_zeros(*real.shape, x.shape[1], x.shape[3])
        padded[real] = x[0].transpose(0, 1)
        return padded.transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(
        lay(query), lay(key), lay(value), is_causal=True, dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2)[real][None]


@contextmanager
def use_attention(model: torch.nn.Module, by: str):
    """Make the model attend by the named implementation while open, then by the one it had.

    by: "packed", "after", "shared_prefix", or one of the library's ("sdpa", "eager", ...).
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(by)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register("packed", packed_attention)
AttentionInterface.register("shared_prefix", shared_prefix_attention)
