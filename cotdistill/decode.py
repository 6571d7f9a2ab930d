"""Write tokens: prefill, append, select and join sequences; greedy and sampled decoding."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from cotdistill.elicit.prompts import STOP
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.blocks import blocks_of, start_from_trunk
from cotdistill.kernels.cache import TRUNK_CACHE_BYTES, GrowingLayer, growing_cache, stored_bytes
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


def next_probabilities(logits, temperature: float, top_p: float, top_k: int):
    """Return the sampling distribution over the next token, [rows, vocabulary] like the logits.

    Temperature, then the top_k most probable (0: all), then the smallest set that reaches top_p.
    """
    probabilities = torch.softmax(logits.double() / temperature, -1)
    if top_k or top_p < 1:
        wanted = min(top_k or logits.shape[-1], logits.shape[-1])
        kept, order = probabilities.topk(wanted, -1)
        kept = kept / kept.sum(-1, keepdim=True)
        kept = kept.masked_fill(kept.cumsum(-1) - kept >= top_p, 0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, kept)
    return probabilities / probabilities.sum(-1, keepdim=True)


def prefix_cache(student, ids: list[int]):
    """Compute the keys and values of the shared prefix in one pass.

    One pair of [1, kv_heads, length, width] per layer.
    """
    return [(layer.keys, layer.values) for layer in keys_and_values(student, ids).layers]


def _make_visibility(mask, positions, length: int):
    """Return a function: sliding window (None: none) -> what each query may look at.

    See `shared_prefix_attention`. mask [rows, own] marks real own tokens (1) and padding (0);
    positions [rows, q] are those of the queries; length is the prefix's.
    """
    own = length + mask.cumsum(-1) - 1
    keys = torch.cat([torch.arange(length, device=mask.device).expand(len(mask), -1), own], 1)[
        :, None, None
    ]
    real = torch.cat([mask.new_ones(len(mask), length), mask], 1).bool()[:, None, None]
    asks, known = positions[:, None, :, None], {}

    def visible(window):
        if window not in known:
            known[window] = real & (keys <= asks) & ((asks - keys < window) if window else True)
        return known[window]

    return visible


@dataclass(frozen=True)
class TokenChoice:
    """Hold how `generate` chooses tokens and where it stops.

    temperature 0 is greedy; top_p and top_k as in `next_probabilities`. seeds: one per row, for a
    generator of its own. stop: a text that ends a row; end_ids: tokens that end it, beside the
    student's own.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    seeds: list[int] | None = None
    stop: str = STOP
    end_ids: set[int] = frozenset()


def _choose_tokens(
    logits: torch.Tensor, sampling: TokenChoice, draws: list[np.random.Generator]
) -> list[int]:
    """Choose the next token of each row, the most probable or one drawn by the row's generator."""
    if not sampling.temperature:
        return logits.argmax(-1).tolist()
    sums = next_probabilities(logits, sampling.temperature, sampling.top_p, sampling.top_k)
    return [
        int(np.searchsorted(row, draw.random() * row[-1], side="right"))
        for row, draw in zip(sums.cumsum(-1).cpu().numpy(), draws, strict=True)
    ]


def generate(student, rows: list[list[int]], shared=None, **sampling):
    """Continue each row of token ids; yield (row, new ids, cut off, seconds) as rows finish.

    `shared` is the `prefix_cache` of ids that stand before every row and are not in it. sampling:
    the fields of `TokenChoice`. A row ends at an end token (not among the new ids), at `stop`, or
    cut off after max_new_tokens; rows that have ended leave the batch. `seconds` is the row's share
    of the steps it took part in: the shares add up to the time of all. While it runs with `shared`,
    the model's attention is `shared_prefix_attention`.
    """
    sampling, model, clock = TokenChoice(**sampling), student.model, time.perf_counter()
    stop, ends = sampling.stop, {student.eos_id, *sampling.end_ids}
    length, known = max(map(len, rows)), shared[0][0].shape[2] if shared else 0
    pads = [length - len(row) for row in rows]
    inputs = [[student.pad_id] * n + row for n, row in zip(pads, rows, strict=True)]
    mask = [[0] * n + [1] * len(row) for n, row in zip(pads, rows, strict=True)]
    inputs, mask = (torch.tensor(x, device=model.device) for x in (inputs, mask))
    positions, cache = known + (mask.cumsum(-1) - 1).clamp(min=0), growing_cache()
    live, new, spent = list(range(len(rows))), [[] for _ in rows], [0.0] * len(rows)
    draws = [np.random.default_rng(seed) for seed in sampling.seeds or [0] * len(rows)]
    with (
        use_attention(model, "shared_prefix") if shared else nullcontext(),
        use_prepacked_linears(model),
    ):
        for step in range(sampling.max_new_tokens):
            seen = dict(attention_mask=mask)
            if shared:
                seen = dict(prefix=shared, visible=_make_visibility(mask, positions, known))
            with torch.no_grad():
                batch = dict(input_ids=inputs, position_ids=positions, past_key_values=cache)
                hidden = model.base_model(**batch, use_cache=True, **seen).last_hidden_state
                logits = next_token_logits(model, hidden[:, -1])
            chosen = _choose_tokens(logits, sampling, [draws[i] for i in live])
            now, keep = time.perf_counter(), []
            for i in live:
                spent[i] += (now - clock) / len(live)
            clock = now
            for slot, (i, token) in enumerate(zip(live, chosen, strict=True)):
                ended = token in ends
                new[i] += [] if ended else [token]
                stopped = not ended and stop and stop in student.decode(new[i][-len(stop) - 2 :])
                if ended or stopped or step + 1 == sampling.max_new_tokens:
                    yield i, new[i], not (ended or stopped), spent[i]
                else:
                    keep.append(slot)
            if not keep:
                return
            if len(keep) < len(live):
                index = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(index)
                mask, positions, live = mask[index], positions[index], [live[slot] for slot in keep]
            inputs = torch.tensor([[new[i][-1]] for i in live], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
            positions = positions[:, -1:] + 1


@dataclass
class Decoding:
    """Hold B sequences that are being decoded.

    The cache of keys and values, which of its L slots are real, the number of real tokens of each
    sequence, and the logits of its next token. Sequences end at different times; slots that a
    sequence does not use are marked unreal, so tokens can be appended to some sequences only, and
    sequences of different lengths can be joined.
    """

    cache: object
    real: torch.Tensor  # [B, L] bool
    lengths: torch.Tensor  # [B]
    logits: torch.Tensor  # [B, V]


def run_blocks(
    student: Student, trunk: tuple[int, dict] | None, key: tuple, **inputs
) -> torch.Tensor:
    """Return the last hidden states of a pass, [B, L, width].

    trunk: (frozen blocks, store). Where the store holds what these blocks made of this batch, the
    pass starts above them (and their part of the cache stays empty); else they run, and the store
    keeps their output. key: what the batch is known by in the store.
    """
    model = student.model
    if not trunk:
        return model.base_model(**inputs).last_hidden_state
    (layers, store), seen = trunk, []
    with start_from_trunk(model, layers):
        if (layers, *key) in store:
            return model.base_model(**inputs, trunk=store[layers, *key]).last_hidden_state
        hook = blocks_of(model)[layers].register_forward_pre_hook(
            lambda module, given: seen.append(given[0])
        )
        try:
            found = model.base_model(**inputs).last_hidden_state
        finally:
            hook.remove()
    if stored_bytes(store) + seen[0].nbytes <= TRUNK_CACHE_BYTES:
        store[layers, *key] = seen[0]
    return found


def prompts_key(prompts: list[list[int]]) -> tuple:
    """Return the key of a batch of prompts in a store of frozen blocks' outputs."""
    return "prompts", tuple(map(tuple, prompts))


@torch.no_grad()
def prefill(
    student: Student, sequences: list[list[int]], trunk: tuple[int, dict] | None = None
) -> Decoding:
    """Run the prompts, padded on the left to one length.

    With `trunk` (see `run_blocks`) no tokens can be appended to the result; only options be scored.
    """
    device, longest = student.model.device, max(map(len, sequences))
    ids = torch.full((len(sequences), longest), student.pad_id)
    real = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        real[row, longest - len(sequence) :] = True
    positions, cache = (real.cumsum(1) - 1).clamp(min=0), growing_cache()
    hidden = run_blocks(
        student,
        trunk,
        prompts_key(sequences),
        input_ids=ids.to(device),
        attention_mask=real.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
    )
    return Decoding(cache, real, real.sum(1), next_token_logits(student.model, hidden[:, -1]).cpu())


@torch.no_grad()
def append_tokens(
    student: Student, state: Decoding, tokens: torch.Tensor, real: torch.Tensor
) -> None:
    """Append tokens [B, k] to every sequence, in place.

    They are left-aligned; `real` [B, k] says which of them count.
    """
    device = student.model.device
    positions = state.lengths[:, None] + (real.cumsum(1) - 1).clamp(min=0)
    state.real = torch.cat([state.real, real], 1)
    hidden = student.model.base_model(
        input_ids=tokens.to(device),
        attention_mask=state.real.to(device),
        position_ids=positions.to(device),
        past_key_values=state.cache,
        use_cache=True,
    ).last_hidden_state
    last = real.sum(1) - 1
    new = next_token_logits(
        student.model, hidden[torch.arange(len(tokens)), last.clamp(min=0)]
    ).cpu()
    state.logits = torch.where((last >= 0)[:, None], new, state.logits)
    state.lengths = state.lengths + real.sum(1)


def select_rows(state: Decoding, rows: list[int]) -> Decoding:
    """Return some of the sequences, with a cache of their own."""
    index, cache = torch.tensor(rows), growing_cache()
    for layer in state.cache.layers:
        mine = GrowingLayer()
        mine.update(layer.keys[index], layer.values[index])
        cache.layers.append(mine)
    return Decoding(cache, state.real[index], state.lengths[index], state.logits[index])


def concat_rows(states: list[Decoding], order: list[int]) -> Decoding:
    """Join sequences of several batches into one.

    Row i is number order[i] of all of them, in the order given. Shorter caches get unreal slots.
    """
    width, index, cache = max(s.real.shape[1] for s in states), torch.tensor(order), growing_cache()
    longer = lambda part: torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[2]))
    for layers in zip(*(s.cache.layers for s in states), strict=False):
        mine = GrowingLayer()
        mine.update(
            torch.cat([longer(layer.keys) for layer in layers])[index],
            torch.cat([longer(layer.values) for layer in layers])[index],
        )
        cache.layers.append(mine)
    real = torch.cat(
        [torch.nn.functional.pad(s.real, (0, width - s.real.shape[1])) for s in states]
    )
    return Decoding(
        cache,
        real[index],
        torch.cat([s.lengths for s in states])[index],
        torch.cat([s.logits for s in states])[index],
    )


def line_ids(student: Student) -> set[int]:
    """Return every token that breaks the line.

    Tokenizers also have ones for two breaks, or for a break after a full stop.
    """
    if not hasattr(student.tokenizer, "_line_ids"):
        vocabulary = student.tokenizer.get_vocab()
        student.tokenizer._line_ids = {
            i for token, i in vocabulary.items() if any(m in token for m in ("\n", "Ċ", "<0x0A>"))
        }
    return student.tokenizer._line_ids


def decode_greedily(
    student: Student, state: Decoding, limit: int, stop: list[int] | set[int]
) -> tuple[list[list[int]], Decoding]:
    """Decode each sequence until its stop, its end, or `limit` tokens.

    A sequence stops where its ids end with the sequence `stop` or with a member of the set `stop`
    (included); the end-of-sequence token is left out. Returns what each sequence wrote and the
    state after it; the state that was passed in must not be used again.

    Sequences that have ended leave the batch, an eighth of it at a time (a selection copies the
    cache).
    """
    live, written = list(range(len(state.lengths))), [[] for _ in state.lengths]
    parked, order = [], []
    going = torch.ones(len(live), dtype=torch.bool)
    with use_prepacked_linears(student.model):
        for _ in range(limit):
            token = state.logits.argmax(1)
            going &= token != student.eos_id
            if not going.any():
                break
            if (~going).sum() >= max(1, len(live) // 8):
                out, stay = (x.nonzero().flatten().tolist() for x in (~going, going))
                parked.append(select_rows(state, out))
                order += [live[slot] for slot in out]
                state, live = select_rows(state, stay), [live[slot] for slot in stay]
                token, going = token[stay], going[stay]
            append_tokens(student, state, token[:, None], going[:, None].clone())
            for slot in going.nonzero().flatten().tolist():
                mine = written[live[slot]]
                mine.append(int(token[slot]))
                if mine[-1] in stop if isinstance(stop, set) else mine[-len(stop) :] == stop:
                    going[slot] = False
    if not parked:
        return written, state
    return written, concat_rows([*parked, state], np.argsort([*order, *live]).tolist())


def next_token_logits(model: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the model's head: hidden states [n, width] -> float32 logits [n, vocabulary].

    The logits are capped where the model caps them.
    """
    logits = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if not cap else torch.tanh(logits / cap) * cap


def keys_and_values(student: Student, ids: list[int]) -> Cache:
    """Compute the keys and values of a text's tokens in one pass.

    Full length in every layer (also where a model's window slides), so that they can be cut.
    """
    text = torch.tensor([ids], device=student.model.device)
    with torch.no_grad():
        return student.model(
            input_ids=text, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
        ).past_key_values
