"""How much each token of a rationale moves log p(label | question, rationale), and whether such scores can be
trusted.

The order is rationale first, as in pre_cot: a label that comes before its rationale cannot depend on it. The
sequence is prompt + " <rationale>" + "\\nAnswer:" + " <label>\\n", in the pieces a student is trained on, and
only the rationale's embeddings move; question and label stay fixed. The prompt's keys and values are
therefore constant: they are computed once and shared by all steps, which is exact (tests compare with captum
on whole, uncached sequences). Occlusion and deletion share more: up to the first token that they take out, the rationale is the same.

Scores are in nats unless said otherwise, one per rationale token; positive means "speaks for the label".
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from scipy import stats as sps
from sklearn.metrics import average_precision_score
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

from cotdistill import corrupt
from cotdistill.data import DataError, Example, Rationale, fingerprint, read_jsonl
from cotdistill.files import whole
from cotdistill.format import Arm, format_target, prompt_text
from cotdistill.students import Student, attending, blocks_of, keys_and_values, last_block_at_places, prepacked
from cotdistill.train import example_rng

BASELINES = ("filler", "mean", "zero")
FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)  # of tokens, as in ERASER


@dataclass(frozen=True)
class Parts:
    """Token ids of the four pieces of a rationale-first sequence, and each rationale token's word."""

    prefix: list[int]
    rationale: list[int]
    frame: list[int]
    label: list[int]
    words: list[int]


@dataclass(frozen=True)
class Attribution:
    """Scores of one rationale: ids, scores and words have one entry per token; words holds the token's word
    index.

    logp_full and logp_baseline are log p(label) with the rationale and with every token of it at the
    baseline; delta is sum(scores) - (logp_full - logp_baseline), integrated gradients' convergence error. NaN
    where a method has none."""

    id: str
    method: str
    ids: tuple[int, ...]
    scores: np.ndarray
    words: tuple[int, ...]
    delta: float = float("nan")
    logp_full: float = float("nan")
    logp_baseline: float = float("nan")


def split_sequence(student: Student, example: Example, rationale: str, label_format: str = "text") -> Parts:
    """The pieces of the pre_cot sequence, tokenised as in training. An empty rationale has no tokens."""
    prefix = student.bos_ids + student.encode(prompt_text(example, "pre_cot", label_format))
    pieces = dict(format_target(example, rationale, Arm("pre_cot"), label_format))
    text = pieces.get("rationale", "")
    return Parts(prefix, student.encode(text), student.encode(pieces["frame"]), student.encode(pieces["label"]),
                 corrupt.word_groups(student, text))


@contextmanager
def frozen(model: torch.nn.Module):
    """Evaluation mode and no gradient for any parameter (only inputs need one), then everything as it was
    before."""
    training, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, flag in zip(model.parameters(), flags):
            parameter.requires_grad_(flag)


# -------------------------------------------------------------------------------------------- the score

def _after_rationale(student: Student, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The label's ids [L], and the embeddings of the frame and of the label up to its last token, [1, F + L - 1, D]."""
    device = student.model.device
    with torch.no_grad():
        tail = student.model.get_input_embeddings()(torch.tensor([parts.frame + parts.label[:-1]], device=device))
    return torch.tensor(parts.label, device=device), tail


def _label_logp(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """log p(label) [B] in nats from the logits [B, L, V] at the positions that predict the label's L tokens, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1)[:, torch.arange(len(label)), label].sum(1)


def label_scorer(student: Student, parts: Parts) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from rationale embeddings [B, R, D] to log p(label) [B] in nats, summed over the label's
    tokens.

    Differentiable in the embeddings. The prompt runs here, once; each call repeats its keys and values B times.
    The head runs at the positions that predict the label only, and so do, inside `last_block_at_places`, the last
    block's queries and MLP."""
    model, device = student.model, student.model.device
    (label, tail), cache = _after_rationale(student, parts), keys_and_values(student, parts.prefix)

    def score(embeds: torch.Tensor) -> torch.Tensor:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(embeds))
        rows = torch.cat([embeds, tail.expand(len(embeds), -1, -1)], 1)
        places = torch.arange(rows.shape[1] - len(label), rows.shape[1], device=device)
        # places, not their number: a slice of the last few is not contiguous, and the head would read its weights for every row
        return _label_logp(model(inputs_embeds=rows, past_key_values=past, use_cache=True, logits_to_keep=places, places=places).logits, label)

    return score


@torch.no_grad()
def _in_batches(score, embeds: torch.Tensor, batch_size: int) -> torch.Tensor:
    return torch.cat([score(part) for part in embeds.split(batch_size)]).double().cpu()


def embed_rationale(student: Student, parts: Parts, baseline: str = "filler") -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the rationale and of its baseline, both [1, R, D].

    baseline: "filler", the student's filler token; "mean", the mean of all embeddings; "zero", which is no
    token's embedding, and far from what a student with normed or scaled embeddings ever saw (Gemma: the delta
    explodes)."""
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
            raise DataError(f"attribution baseline '{baseline}'; expected one of {', '.join(BASELINES)}")
    return full, base.expand_as(full).clone()


def attention_after(module, query, key, value, attention_mask=None, dropout=0.0, scaling=None, sliding_window=None, *,
                    known: Cache, starts: list[int], lengths: list[int], masks: dict, **kwargs):
    """Attention of several continuations of one known text, each from its own place, laid end to end in one row without
    padding (`attending(model, "after")`).

    query [1, heads, T, d], key and value [1, kv_heads, T, d] with T = sum(lengths): continuation i has lengths[i] tokens and sees the
    first starts[i] tokens of `known`, and itself up to each token. masks: an empty dict that the layers of one pass share: what each
    token sees is the same in all layers of one sliding window."""
    layer, groups = known.layers[module.layer_idx], query.shape[1] // key.shape[1]
    old, new = ((k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)) if groups > 1 else (k, v)
                for k, v in ((layer.keys, layer.values), (key, value)))
    if sliding_window not in masks:
        places = torch.arange(layer.keys.shape[2] + max(lengths), device=query.device)
        back = places[:, None] - places  # how far back a token looks
        unseen = (back < 0) | (back >= sliding_window) if sliding_window else back < 0
        bias = torch.zeros(unseen.shape, dtype=query.dtype, device=query.device).masked_fill_(unseen, -torch.inf)
        masks[sliding_window] = [bias[a:a + n, :a + n] for a, n in zip(starts, lengths)]
    outs = [torch.nn.functional.scaled_dot_product_attention(
        q, torch.cat([old[0][:, :, :a], k], 2), torch.cat([old[1][:, :, :a], v], 2), attn_mask=mask, dropout_p=dropout, scale=scaling)
        for q, k, v, a, mask in zip(query.split(lengths, 2), new[0].split(lengths, 2), new[1].split(lengths, 2), starts, masks[sliding_window])]
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register("after", attention_after)


@torch.no_grad()
def variant_logps(student: Student, parts: Parts, full: torch.Tensor, base: torch.Tensor, keep: np.ndarray,
                  batch_size: int) -> np.ndarray:
    """log p(label) in nats of N variants of a rationale, [N]: `keep` [N, R] bool, tokens not kept are at the baseline; full and base
    [1, R, D] as from `embed_rationale`.

    Up to the first token that it replaces, a variant is the rationale as it is, whose keys and values are computed once: only the rest
    of it runs, `batch_size` variants in a pass, end to end (`attention_after`). The head runs at the positions that predict the
    label, and so do, inside `last_block_at_places`, the last block's queries and MLP."""
    model, device, found = student.model, full.device, []
    (label, tail), known = _after_rationale(student, parts), keys_and_values(student, parts.prefix + parts.rationale)
    first = [int(row.argmin()) if not row.all() else len(row) for row in keep]
    with attending(model, "after"):
        for at in range(0, len(keep), batch_size):
            chosen = list(zip(torch.tensor(keep[at:at + batch_size], device=device), first[at:at + batch_size]))
            pieces = [torch.cat([torch.where(row[None, a:, None], full[:, a:], base[:, a:]), tail], 1) for row, a in chosen]
            starts, lengths = [len(parts.prefix) + a for _, a in chosen], [piece.shape[1] for piece in pieces]
            ends = np.cumsum(lengths)
            places = torch.tensor([p for end in ends for p in range(end - len(label), end)], device=device)
            logits = model(
                inputs_embeds=torch.cat(pieces, 1), use_cache=False, known=known, starts=starts, lengths=lengths, masks={},
                position_ids=torch.cat([torch.arange(a, a + n, device=device) for a, n in zip(starts, lengths)])[None],
                logits_to_keep=places, places=places).logits
            found.append(_label_logp(logits.view(len(chosen), len(label), -1), label).double().cpu())
    return torch.cat(found).numpy()


def removal_logps(student: Student, example: Example, rationale: str, keep: np.ndarray, *, label_format: str = "text",
                  baseline: str = "filler", batch_size: int = 32) -> np.ndarray:
    """log p(label) in nats for N variants of a rationale: `keep` [N, R] bool; tokens not kept are at the
    baseline."""
    parts = split_sequence(student, example, rationale, label_format)
    keep, back = np.unique(np.asarray(keep, dtype=bool), axis=0, return_inverse=True)
    with frozen(student.model), last_block_at_places(student.model):
        return variant_logps(student, parts, *embed_rationale(student, parts, baseline), keep, batch_size)[back.ravel()]


# -------------------------------------------------------------------------------------------- the methods

@dataclass(frozen=True)
class Task:
    """What a method is given: a rationale in pieces, and the settings. texts: all rationales of the set that is attributed,
    for methods that count words in them."""

    student: Student
    example: Example
    rationale: str
    parts: Parts
    n_steps: int
    baseline: str
    batch_size: int
    rng: np.random.Generator | None
    selections: dict[str, Sequence[int]] | None
    texts: Sequence[str]


@dataclass(frozen=True)
class Method:
    """An attribution method: task -> fields of an `Attribution` ("scores", one per token, and what else it knows).

    reads: "model", the student's weights (it runs with them frozen, on rationales that are not empty); "words", nothing but
    texts and the tokenizer, so that every student with one tokenizer has the same scores; or "" (chance, a person)."""

    function: Callable[[Task], dict]
    reads: str = "model"


def attribute(student: Student, example: Example, rationale: str, method: str, *, label_format: str = "text",
              n_steps: int = 32, baseline: str = "filler", batch_size: int = 32,
              rng: np.random.Generator | None = None,
              selections: dict[str, Sequence[int]] | None = None, texts: Sequence[str] | None = None) -> Attribution:
    """Score every token of one rationale for the right answer's log probability, by a method of METHODS.

    batch_size: rows in one forward pass (it changes speed and memory only). texts: the rationales among which words are
    counted (None: this one only). Raises DataError for an unknown method or baseline, a missing rng, and a selection that
    is missing or outside the rationale."""
    parts = split_sequence(student, example, rationale, label_format)
    result = Attribution(example.id, method, tuple(parts.rationale), np.zeros(0), tuple(parts.words))
    if method not in METHODS:
        raise DataError(f"attribution method '{method}'; expected one of {', '.join(METHODS)}")
    if baseline not in BASELINES:
        raise DataError(f"attribution baseline '{baseline}'; expected one of {', '.join(BASELINES)}")
    task = Task(student, example, rationale, parts, n_steps, baseline, batch_size, rng, selections, texts or [rationale])
    if METHODS[method].reads != "model":
        return replace(result, **METHODS[method].function(task))
    if not parts.rationale:
        return result
    with frozen(student.model), last_block_at_places(student.model):
        return replace(result, **METHODS[method].function(task))


def integrate_gradients(task: Task) -> dict:
    """Path integral of the gradient from the baseline, Gauss-Legendre with n_steps points, summed over the embedding; the
    scores sum to logp_full - logp_baseline (Sundararajan et al. 2017, arXiv 1703.01365)."""
    full, base = embed_rationale(task.student, task.parts, task.baseline)
    score = label_scorer(task.student, task.parts)
    ends = _in_batches(score, torch.cat([full, base]), task.batch_size).numpy()
    paths = IntegratedGradients(score).attribute(full, base, n_steps=task.n_steps, internal_batch_size=task.batch_size)
    scores = paths.sum(-1)[0].double().cpu().numpy()
    return {"scores": scores, "delta": float(scores.sum() - (ends[0] - ends[1])),
            "logp_full": float(ends[0]), "logp_baseline": float(ends[1])}


def _embedding_gradient(task: Task) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Embeddings [1, R, D], the gradient of log p(label) with respect to them, and log p(label) in nats."""
    x = embed_rationale(task.student, task.parts, task.baseline)[0].requires_grad_()
    value = label_scorer(task.student, task.parts)(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return x, gradient, value.item()


def multiply_gradient(task: Task) -> dict:
    """Embedding times gradient, summed (Shrikumar et al. 2016, arXiv 1605.01713)."""
    x, gradient, value = _embedding_gradient(task)
    return {"scores": (gradient * x).sum(-1)[0].detach().double().cpu().numpy(), "logp_full": value}


def measure_saliency(task: Task) -> dict:
    """Length of the gradient, in nats per unit of embedding, no sign (Li et al. 2016, arXiv 1506.01066)."""
    _, gradient, value = _embedding_gradient(task)
    return {"scores": gradient.norm(dim=-1)[0].detach().double().cpu().numpy(), "logp_full": value}


def occlude_units(task: Task, members: np.ndarray) -> dict:
    """Fall of log p when a unit is at the baseline, shared equally among its tokens; members: each token's unit."""
    n, units = len(members), np.unique(members)
    full, base = embed_rationale(task.student, task.parts, task.baseline)
    keep = np.concatenate([np.ones((1, n), bool), np.zeros((1, n), bool), members[None] != units[:, None]])
    intact, nothing, *logps = variant_logps(task.student, task.parts, full, base, keep, task.batch_size)
    share = (intact - np.array(logps)) / np.bincount(members)
    return {"scores": share[members], "logp_full": intact, "logp_baseline": nothing}


def occlude_tokens(task: Task) -> dict:
    """Each token alone at the baseline (Zeiler and Fergus 2014, arXiv 1311.2901)."""
    return occlude_units(task, np.arange(len(task.parts.rationale)))


def occlude_words(task: Task) -> dict:
    """Each whole word at the baseline, its fall shared among its tokens."""
    return occlude_units(task, np.array(task.parts.words))


def draw_scores(task: Task) -> dict:
    """Uniform numbers from rng."""
    if task.rng is None:
        raise DataError("attribution method 'random': no random generator; expected one, seeded by question")
    return {"scores": task.rng.random(len(task.parts.rationale))}


def mark_answer_words(task: Task) -> dict:
    """1 for the tokens of words that the right answer holds too, else 0 (`corrupt.label_words`): does "a few key tokens
    suffice" only mean that the answer is among them?"""
    return {"scores": np.array(corrupt.label_tokens(task.student, _piece(task), task.example.label), dtype=float)}


def _piece(task: Task) -> str:
    return f" {task.rationale}" if task.rationale else ""


def _forms(text: str) -> list[str]:
    return [corrupt.word_form(text[a:b]) for a, b in corrupt.word_spans(text)]


def _share_of_word(task: Task, scores: Sequence[float]) -> dict:
    """Scores of words (of `_forms`) -> of tokens: each has its word's, divided by the number of the word's tokens, so that
    a word scores the same however it is cut. Where words are what is kept, their sums rank them."""
    words = np.array(task.parts.words, dtype=int)
    if not len(words):
        return {"scores": np.zeros(0)}
    return {"scores": (np.asarray(scores, dtype=float) / np.bincount(words))[words]}


def weigh_words(task: Task) -> dict:
    """tf-idf: how often a word stands in this rationale, times log((1 + N) / (1 + rationales that hold it)) + 1 over the
    N texts (scikit-learn's smooth_idf; Jones 1972). A word without letters or digits scores 0."""
    forms, held = _forms(_piece(task)), _count_texts(tuple(task.texts))
    idf = {form: np.log((1 + len(task.texts)) / (1 + held[form])) + 1 for form in set(forms)}
    return _share_of_word(task, [forms.count(form) * idf[form] if form else 0.0 for form in forms])


def match_frequency(task: Task) -> dict:
    """exp(-distance) of a word's log frequency in the texts to the mean one of the answer's words; -1 for those words
    themselves, which come last. As rare as what `answer_words` selects, and not the answer: its control."""
    forms, counts = _forms(_piece(task)), _count_words(tuple(task.texts))
    answer = corrupt.label_words(task.example.label)
    wanted = np.mean([np.log1p(counts[form]) for form in sorted(answer)]) if answer else 0.0
    near = {form: np.exp(-abs(np.log1p(counts[form]) - wanted)) for form in set(forms) - answer if form}
    return _share_of_word(task, [-1.0 if form in answer else near.get(form, 0.0) for form in forms])


@lru_cache(maxsize=4)
def _count_texts(texts: tuple[str, ...]) -> Counter:
    """Form -> how many texts hold it."""
    return Counter(form for text in texts for form in set(_forms(text)))


@lru_cache(maxsize=4)
def _count_words(texts: tuple[str, ...]) -> Counter:
    """Form -> how often it stands in all texts."""
    return Counter(form for text in texts for form in _forms(text))


def _human(id: str, n: int, selections: dict | None) -> np.ndarray:
    if id not in (selections or {}):
        raise DataError(f"question '{id}': no human selection; expected a line with its id and \"tokens\": [...]")
    bad = [t for t in selections[id] if not 0 <= t < n]
    if bad:
        raise DataError(f"question '{id}': selected token {bad[0]}; expected 0 to {n - 1}, this student's tokens of it")
    scores = np.zeros(n)
    scores[list(selections[id])] = 1
    return scores


@torch.no_grad()
def _attention(student: Student, parts: Parts, method: str) -> np.ndarray:
    """Attention weights need the eager implementation, for this one uncached pass; the student's own is put
    back."""
    model = student.model
    ids = torch.tensor([parts.prefix + parts.rationale + parts.frame + parts.label[:-1]], device=model.device)
    with attending(model, "eager"):
        layers = model(input_ids=ids, output_attentions=True, use_cache=False, logits_to_keep=1).attentions
    layers = [layer[0].double().mean(0) for layer in layers]  # [T, T], rows look at columns
    if method == "attention":
        flow = layers[-1]
    else:
        flow = torch.eye(ids.shape[1], dtype=torch.double, device=model.device)
        for layer in layers:
            flow = (layer + torch.eye(len(layer), dtype=torch.double, device=model.device)) / 2 @ flow
    a = len(parts.prefix)
    return flow[-len(parts.label):, a:a + len(parts.rationale)].mean(0).cpu().numpy()


@torch.no_grad()
def _similarity(student: Student, parts: Parts) -> np.ndarray:
    weight = student.model.get_input_embeddings().weight
    visible = [i for i in parts.label if student.decode([i]).strip()] or parts.label  # not the closing line break
    target = weight[visible].double().mean(0, keepdim=True)
    return torch.cosine_similarity(weight[parts.rationale].double(), target).cpu().numpy()


# name -> method. A new one is one entry here; format.SELECTORS lists the names (a test keeps them equal), because an arm is
# checked without torch.
METHODS = {
    "integrated_gradients": Method(integrate_gradients),
    "input_x_gradient": Method(multiply_gradient),
    "saliency": Method(measure_saliency),
    "occlusion": Method(occlude_tokens),
    "occlusion_word": Method(occlude_words),
    # last layer, mean over heads and over the positions that predict the label (no sign)
    "attention": Method(lambda task: {"scores": _attention(task.student, task.parts, "attention")}),
    # attention through all layers with the residual stream (Abnar and Zuidema 2020, arXiv 2005.00928)
    "rollout": Method(lambda task: {"scores": _attention(task.student, task.parts, "rollout")}),
    # cosine of the token's embedding with the label's mean one: the word2vec idea
    "embedding_similarity": Method(lambda task: {"scores": _similarity(task.student, task.parts)}),
    "random": Method(draw_scores, reads=""),
    # 1 for the token positions in selections[id], else 0
    "human": Method(lambda task: {"scores": _human(task.example.id, len(task.parts.rationale), task.selections)}, reads=""),
    "answer_words": Method(mark_answer_words, reads="words"),
    "tfidf": Method(weigh_words, reads="words"),
    "frequency_matched": Method(match_frequency, reads="words"),
}


def attribute_all(student: Student, examples: list[Example], rationales: dict[str, Rationale], method: str, *,
                  seed: int = 0, progress: Callable[[int], None] = lambda done: None,
                  **settings) -> list[Attribution]:
    """`attribute` for many questions, in their order. `random` depends on the question's id and `seed`, not
    on its place; words are counted over the rationales of these questions.

    progress is called with the number of questions done; settings go to `attribute`."""
    found, texts = [], tuple(rationales[example.id].text for example in examples)
    with frozen(student.model), prepacked(student.model):
        for example in examples:
            rng = example_rng(example.id, seed, 4)
            found.append(attribute(student, example, rationales[example.id].text, method, rng=rng, texts=texts, **settings))
            progress(len(found))
    return found


# -------------------------------------------------------------------------------------------- using scores

def aggregate_to_words(scores: Sequence[float], words: Sequence[int], how: str = "sum") -> np.ndarray:
    """One score per word. how: "sum" (right for additive scores), "mean" or "max" of its tokens."""
    scores, words = np.asarray(scores, dtype=float), np.asarray(words, dtype=int)
    combine = {"sum": np.sum, "mean": np.mean, "max": np.max}[how]
    return np.array([combine(scores[words == word]) for word in range(max(words, default=-1) + 1)], dtype=float)


def top_k(scores: Sequence[float], k: float) -> list[int]:
    """Positions of the k highest scores, ascending; k >= 1 is a number, below it a fraction; ties go to the
    earlier one."""
    order = corrupt.rank_units([[i] for i in range(len(scores))], scores, len(scores))
    return sorted(order[:corrupt.n_kept(k, len(scores))].tolist())


def write_scores(path: str | Path, attributions: list[Attribution], made_from: dict) -> str:
    """JSONL: a head line with what the scores were made from, then {"id", "method", "scores", ...} per
    question.

    made_from: JSON values that settle the scores (student's fingerprint or run key, method, steps, data).
    Returns its fingerprint, which is part of a training run's key. The file appears whole or not at all."""
    path, print_of, rows = Path(path), fingerprint(made_from), []
    for a in attributions:
        row = {"id": a.id, "method": a.method, "scores": a.scores.tolist(), "ids": a.ids, "words": a.words}
        numbers = {"delta": a.delta, "logp_full": a.logp_full, "logp_baseline": a.logp_baseline}
        rows.append(row | {name: None if np.isnan(value) else float(value) for name, value in numbers.items()})
    rows.insert(0, {"fingerprint": print_of, "made_from": made_from, "n": len(attributions), "seal": fingerprint(rows)})
    with whole(path) as part:
        part.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")
    return print_of


def read_attributions(path: str | Path) -> tuple[list[Attribution], str]:
    """The inverse of `write_scores`: attributions and their fingerprint. Raises DataError for a file that is
    not one, is cut short, was edited, or whose head does not belong to its fingerprint."""
    (line, head), *rows = read_jsonl(path) or [(1, {})]
    seal = head.pop("seal", None)
    if set(head) != {"fingerprint", "made_from", "n"} or fingerprint(head["made_from"]) != head["fingerprint"]:
        raise DataError(f"{path}:{line}: not the head of a score file; expected a fingerprint that fits made_from")
    if len(rows) != head["n"]:
        raise DataError(f"{path}: {len(rows)} questions; expected {head['n']}: delete it and attribute again")
    found = []
    for line, row in rows:
        try:
            a = Attribution(**{k: float("nan") if v is None else v for k, v in row.items()})
            a = replace(a, scores=np.array(a.scores, dtype=float), ids=tuple(a.ids), words=tuple(a.words))
            if not isinstance(a.id, str) or a.scores.ndim != 1 or not np.isfinite(a.scores).all():
                raise ValueError("id is no text, or scores are no list of finite numbers")
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}:{line}: {error}; expected the fields of an Attribution") from None
        if not len(a.ids) == len(a.scores) == len(a.words):
            raise DataError(f"{path}:{line} (id {a.id}): {len(a.scores)} scores for {len(a.ids)} tokens; "
                            "expected as many")
        found.append(a)
    if seal is not None and seal != fingerprint([row for _, row in rows]):
        raise DataError(f"{path}: a score was changed after it was written; expected the rows of its seal: delete it and attribute again")
    return found, head["fingerprint"]


def read_scores(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """id -> scores, and the file's fingerprint: what kept and masked arms train on."""
    attributions, print_of = read_attributions(path)
    return {a.id: a.scores for a in attributions}, print_of


def write_selection(path: str | Path, id: str, tokens: Sequence[int]) -> None:
    """Append one human selection to a JSONL file; the last line of an id counts."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"id": id, "tokens": sorted({int(t) for t in tokens})}, ensure_ascii=False) + "\n")


def read_selections(path: str | Path) -> dict[str, list[int]]:
    """id -> selected token positions, from lines {"id": ..., "tokens": [0, 3]}; later lines replace earlier
    ones.

    Raises DataError for a line without them."""
    found = {}
    for line, row in read_jsonl(path):
        id, tokens = row.get("id"), row.get("tokens")
        fits = isinstance(id, str) and isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)
        if not fits:
            raise DataError(f"{path}:{line}: found {json.dumps(row)[:80]}; expected \"id\" (a text) and \"tokens\" "
                            "(a list of positions from 0)")
        found[id] = tokens
    return found


# -------------------------------------------------------------------------------------------- are they right?

def completeness(attributions: list[Attribution]) -> pd.DataFrame:
    """Per question: the sum of the scores, the difference they should add up to, delta, and |delta| /
    |difference|."""
    table = pd.DataFrame({"id": [a.id for a in attributions], "sum": [a.scores.sum() for a in attributions],
                          "difference": [a.logp_full - a.logp_baseline for a in attributions]})
    table["delta"] = table["sum"] - table["difference"]
    table["relative"] = (table["delta"] / table["difference"]).abs()
    return table


def faithfulness(student: Student, example: Example, rationale: str, scores: dict[str, Sequence[float]],
                 fractions: Sequence[float] = FRACTIONS, *, label_format: str = "text", baseline: str = "filler",
                 batch_size: int = 32) -> pd.DataFrame:
    """Erase tokens from the most important on: one row per method (a key of `scores`) and fraction of tokens.

    deletion is log p(label) without the top tokens, insertion with nothing but them (the rest at the
    baseline); these are the curves of Petsiuk et al. 2018 (arXiv 1806.07421). comprehensiveness = full -
    deletion (high: they were needed) and sufficiency = full - insertion (low: they suffice) are ERASER's
    (DeYoung et al. 2020, arXiv 1911.03429), with two differences: in nats instead of probabilities, and with
    replaced instead of removed tokens, so that positions stay."""
    rows, keep = [], []
    for method, values in scores.items():
        n = len(values)
        order = corrupt.rank_units([[i] for i in range(n)], values, n)
        for fraction in fractions:
            k = n if fraction >= 1 else corrupt.n_kept(fraction, n)
            chosen = np.isin(np.arange(n), order[:k])
            rows.append({"id": example.id, "method": method, "fraction": fraction, "tokens": k})
            keep += [~chosen, chosen]
    if not rows or not len(keep[0]):
        return pd.DataFrame(columns=["id", "method", "fraction", "tokens", "deletion", "insertion",
                                     "comprehensiveness", "sufficiency"])
    keep.append(np.ones(len(keep[0]), dtype=bool))
    logps = removal_logps(student, example, rationale, np.array(keep), label_format=label_format, baseline=baseline,
                          batch_size=batch_size)
    table = pd.DataFrame(rows).assign(deletion=logps[:-1:2], insertion=logps[1::2])
    return table.assign(comprehensiveness=logps[-1] - table["deletion"], sufficiency=logps[-1] - table["insertion"])


def faithfulness_all(student: Student, examples: list[Example], rationales: dict[str, Rationale],
                     by_method: dict[str, list[Attribution]], **settings) -> pd.DataFrame:
    """`faithfulness` of each question under each method's scores (attributions in the order of `examples`), as one table."""
    with frozen(student.model), prepacked(student.model):
        return pd.concat([faithfulness(student, e, rationales[e.id].text, {m: found[i].scores for m, found in by_method.items()}, **settings)
                          for i, e in enumerate(examples)], ignore_index=True)


def randomise(student: Student, layers: int | None, seed: int) -> Student:
    """A copy of the student whose `layers` highest blocks are re-drawn (None: every parameter, embeddings
    too).

    Each parameter becomes normal numbers with its own mean and standard deviation, so activations keep their
    scale. A head that is tied to the embeddings changes only with None."""
    model = copy.deepcopy(student.model)
    blocks = list(blocks_of(model))
    chosen = [model] if layers is None else blocks[len(blocks) - layers:]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for module in chosen for p in module.parameters()):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(parameter.mean() + noise * (parameter.std() if parameter.numel() > 1 else 0))
    note = f"{'everything' if layers is None else f'the top {layers} blocks'} re-drawn with seed {seed}"
    return replace(student, model=model, name=f"{student.name} (randomised)", fingerprint="", note=note)


def randomisation_check(student: Student, examples: list[Example], rationales: dict[str, Rationale], method: str, *,
                        layers: Sequence[int | None] = (None,), seed: int = 0, **settings) -> pd.DataFrame:
    """Does an attribution depend on what the student learnt (Adebayo et al. 2018, arXiv 1810.03292)?

    Spearman's rank correlation of each question's scores with those of a student whose highest blocks are
    re-drawn, one row per question and entry of `layers` (several: a cascade). Near 0 is right; near 1: it
    shows the text, not the student. Columns id, method, layers ("all" for None), rho."""
    own, rows = attribute_all(student, examples, rationales, method, seed=seed, **settings), []
    for n in layers:
        other = attribute_all(randomise(student, n, seed), examples, rationales, method, seed=seed, **settings)
        rows += [{"id": a.id, "method": method, "layers": "all" if n is None else n,
                  "rho": _correlation(sps.spearmanr, a.scores, b.scores)} for a, b in zip(own, other)]
    return pd.DataFrame(rows)


def _correlation(function, a: np.ndarray, b: np.ndarray) -> float:
    """NaN where one side is constant: there is no order to compare."""
    return float("nan") if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0 else float(function(a, b).statistic)


def mean_intervals(table: pd.DataFrame, by: list[str], measures: list[str], rng: np.random.Generator,
                   n_boot: int = 1000) -> pd.DataFrame:
    """Means over questions with 95 % percentile bootstrap intervals: a row per group of `by` and measure.

    Columns *by, measure, value, low, high, n (questions with a value; the bootstrap draws those). Several
    rows of a question in a group are averaged first."""
    rows = []
    for key, group in table.groupby(by, sort=False, dropna=False):
        for measure in measures:
            values = group.groupby("id")[measure].mean().dropna().to_numpy(float)
            value = low = high = float("nan")
            if len(values):
                draws = values[rng.integers(len(values), size=(n_boot, len(values)))].mean(1)
                value, (low, high) = values.mean(), np.percentile(draws, [2.5, 97.5])
            rows.append({**dict(zip(by, key)), "measure": measure, "value": value, "low": low, "high": high,
                         "n": len(values)})
    return pd.DataFrame(rows)


def agreement(by_method: dict[str, list[Attribution]], k: float, rng: np.random.Generator, *, level: str = "token",
              n_boot: int = 1000) -> pd.DataFrame:
    """How alike methods rank the tokens (or, level="word", the summed words) of the same rationales, for
    every pair.

    tau is Kendall's tau-b over all tokens; overlap the share of the top k they have in common; chance the
    overlap that two random choices have. Means over questions with bootstrap intervals, in the columns of
    `mean_intervals` with method_a and method_b. Raises DataError where methods scored different tokens."""
    rows = []
    for a, b in combinations(by_method, 2):
        others = {x.id: x for x in by_method[b]}
        for x in by_method[a]:
            if x.id not in others:
                continue
            y = others[x.id]
            if x.ids != y.ids:
                raise DataError(f"question '{x.id}': {a} and {b} scored different tokens; expected one "
                                "rationale and one student's tokens")
            s, t = (z.scores if level == "token" else aggregate_to_words(z.scores, z.words) for z in (x, y))
            if not len(s):
                continue
            size = corrupt.n_kept(k, len(s))
            common = len(set(top_k(s, k)) & set(top_k(t, k)))
            rows.append({"id": x.id, "method_a": a, "method_b": b, "tau": _correlation(sps.kendalltau, s, t),
                         "overlap": common / size if size else float("nan"), "chance": size / len(s)})
    if not rows:
        return pd.DataFrame(columns=["method_a", "method_b", "measure", "value", "low", "high", "n"])
    return mean_intervals(pd.DataFrame(rows), ["method_a", "method_b"], ["tau", "overlap", "chance"], rng, n_boot)


def agreement_square(table: pd.DataFrame, measure: str = "tau") -> pd.DataFrame:
    """One measure of `agreement` as a symmetric methods x methods table with 1 on the diagonal, for plots."""
    rows = table[table["measure"] == measure]
    names = list(dict.fromkeys([*rows["method_a"], *rows["method_b"]]))
    square = pd.DataFrame(np.eye(len(names)), names, names)
    for row in rows.itertuples():
        square.loc[row.method_a, row.method_b] = square.loc[row.method_b, row.method_a] = row.value
    return square


def key_tokens(student: Student, rationale: Rationale) -> np.ndarray:
    """[R] bool: the tokens of " <rationale>" that reach into one of the rationale's key spans."""
    text = f" {rationale.text}" if rationale.text else ""
    spans = [(start + 1, end + 1) for start, end in rationale.key_spans]
    return np.array([any(a < end and start < b for start, end in spans)
                     for a, b in corrupt.offsets(student, text)], dtype=bool)


def key_token_precision_recall(student: Student, rationale: Rationale, scores: Sequence[float], k: float = 0) -> dict:
    """How well the top k tokens are the known key tokens (k = 0: as many as there are of these).

    precision, recall, average_precision (over all k), and what a random order is expected to reach: chance, the share of
    tokens that are key, for the precision, and chance_average_precision (`random_average_precision`), which is higher. NaN where
    there is no key token. Raises DataError without key spans."""
    if not rationale.key_spans:
        raise DataError(f"rationale '{rationale.id}': no key_spans; expected a microworld rationale")
    key = key_tokens(student, rationale)
    if len(scores) != len(key):
        raise DataError(f"rationale '{rationale.id}': {len(scores)} scores for {len(key)} tokens; expected as many")
    chosen = top_k(scores, k or max(1, key.sum()))
    hits = int(key[chosen].sum())
    return {"id": rationale.id, "tokens": len(key), "key_tokens": int(key.sum()), "k": len(chosen),
            "precision": hits / len(chosen), "recall": hits / key.sum() if key.any() else float("nan"),
            "average_precision": float(average_precision_score(key, scores)) if key.any() else float("nan"),
            "chance": float(key.mean()), "chance_average_precision": random_average_precision(len(key), int(key.sum()))}


def random_average_precision(n: int, relevant: int) -> float:
    """The expected average precision of a random order of n items, of which so many are relevant (NaN where none is). In closed form:
    item i of the order is relevant with probability relevant / n, and then so are (i - 1)(relevant - 1) / (n - 1) of those before it
    (Bestgen 2015, Prague Bulletin of Mathematical Linguistics 103)."""
    if not relevant:
        return float("nan")
    rank = np.arange(1, n + 1)
    return float(((1 + (rank - 1) * (relevant - 1) / max(n - 1, 1)) / rank).mean())


# -------------------------------------------------------------------------------------------- what is selected

# Closed classes of English, complete enough for rationales; a word of two classes is listed under its commoner one.
CLOSED = {
    "determiner": "a an the this that these those each every some any no all both either neither such another",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs myself "
               "yourself himself herself itself ourselves themselves who whom whose which what one someone something anyone "
               "anything everyone everything nobody nothing there",
    "preposition": "of in to for with on at from by about as into like through after over between out against during "
                   "without before under around among above below across behind beyond near off onto toward towards upon "
                   "within along inside outside than up down",
    "conjunction": "and or but nor so yet because although though while if unless until since whether when where why how "
                   "whereas therefore thus hence",
    "auxiliary": "be am is are was were been being have has had having do does did can could will would shall should may "
                 "might must cannot can't won't don't doesn't isn't aren't",
    "adverb": "not very too also only just even still more most less least often always never here now then again rather "
              "quite well much",
}
WORD_CLASS = {word: name for name, words in CLOSED.items() for word in words.split()}
SUFFIXES = [("adverb", r".+ly"), ("adjective", r".+(ous|ful|less|able|ible|ive|ical|ish|ary|ent|ant|al|ic)"),
            ("noun", r".+(tion|sion|ment|ness|ity|ance|ence|ship|ism|ist|er|or|age|ure)s?"),
            ("verb", r".+(ing|ed|ize|ise|ify|ate)")]


def part_of_speech(word: str) -> str:
    """A rough class by rule: a list of closed-class words, digits, then suffixes, else "noun".

    No tagger and no context ("light" is always a noun): good for the share of function words among what is
    selected, not for fine classes. Punctuation around the word is ignored; a word of nothing else is
    "punctuation"."""
    plain = _plain(word)
    if not plain:
        return "punctuation"
    if plain in WORD_CLASS:
        return WORD_CLASS[plain]
    if plain[0].isdigit():
        return "number"
    return next((name for name, pattern in SUFFIXES if len(plain) > 4 and re.fullmatch(pattern, plain)), "noun")


def _plain(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word.lower().replace("’", "'"))


def selected_words(example: Example, rationale: str, attribution: Attribution, k: float) -> pd.DataFrame:
    """One row per word of a rationale: id, method, word, selected (one of its tokens is among the top k
    tokens), class, content (not of a closed class), and whether the same word stands in_question, in_options
    and in_label."""
    words, chosen = rationale.split(), {attribution.words[t] for t in top_k(attribution.scores, k)}
    if len(set(attribution.words)) != len(words):
        raise DataError(f"question '{example.id}': {len(words)} words, scores for {len(set(attribution.words))}; "
                        "expected the rationale that was attributed")
    places = {"in_question": example.question, "in_options": " ".join(example.choices), "in_label": example.label}
    seen = {name: {_plain(word) for word in text.split()} for name, text in places.items()}
    return pd.DataFrame([{"id": example.id, "method": attribution.method, "word": word, "selected": index in chosen,
                          "class": (kind := part_of_speech(word)), "content": kind not in (*CLOSED, "punctuation"),
                          **{name: bool(_plain(word)) and _plain(word) in text for name, text in seen.items()}}
                         for index, word in enumerate(words)])


def selection_table(words: pd.DataFrame) -> pd.DataFrame:
    """What is selected, by method: the share of each property among selected words and among all words, and
    their ratio.

    words: rows of `selected_words`, joined. Properties are the classes, content, in_question, in_options and
    in_label, the last three among content words only. Columns method, property, selected, all, ratio, n
    (selected words)."""
    rows = []
    for method, group in words.groupby("method", sort=False):
        content = group[group["content"]]
        tests = {kind: (group, group["class"] == kind) for kind in sorted(set(group["class"]))}
        tests |= {"content": (group, group["content"])}
        tests |= {name: (content, content[name]) for name in ("in_question", "in_options", "in_label")}
        for name, (among, test) in tests.items():
            chosen, everywhere = test[among["selected"]].mean(), test.mean()
            rows.append({"method": method, "property": name, "selected": chosen, "all": everywhere,
                         "ratio": chosen / everywhere if everywhere else float("nan"),
                         "n": int(among["selected"].sum())})
    return pd.DataFrame(rows)
