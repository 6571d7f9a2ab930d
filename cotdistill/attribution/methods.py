"""Measure how much each token of a rationale moves log p(label | question, rationale).

The order is rationale first, as in pre_cot: a label that comes before its rationale cannot depend
on it. The sequence is prompt + " <rationale>" + "\\nAnswer:" + " <label>\\n", in the pieces a
student is trained on, and only the rationale's embeddings move; question and label stay fixed.
The prompt's keys and values are therefore constant: they are computed once and shared by all
steps, which is exact (tests compare with captum on full, uncached sequences). Occlusion and
deletion share more: up to the first token that they take out, the rationale is the same.

Scores are in nats unless said otherwise, one per rationale token; positive means "speaks for the
label". checks.py asks whether such scores can be trusted.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from captum.attr import IntegratedGradients

from cotdistill import corrupt
from cotdistill.arms import LEFT_OUT, n_kept, rank_units
from cotdistill.attribution.score import (
    BASELINES,
    Attribution,
    Parts,
    _score_in_batches,
    embed_rationale,
    freeze_parameters,
    label_scorer,
    split_sequence,
    variant_logps,
)
from cotdistill.encode import example_rng
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.blocks import last_block_at_places
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


@dataclass(frozen=True)
class Settings:
    """Hold the numbers that methods read.

    n_steps: points of integrated gradients; baseline: one of BASELINES; batch_size: rows in one
    forward pass (it changes speed and memory only). Raises DataError for an unknown baseline.
    """

    n_steps: int = 32
    baseline: str = "filler"
    batch_size: int = 32

    def __post_init__(self):
        """Raise DataError for an unknown baseline."""
        if self.baseline not in BASELINES:
            raise DataError(
                f"attribution baseline '{self.baseline}'; expected one of {', '.join(BASELINES)}"
            )


@dataclass(frozen=True)
class Task:
    """Hold what a method is given: a rationale in pieces, and the settings.

    texts: all rationales of the set that is attributed, for methods that count words in them.
    """

    student: Student
    example: Example
    rationale: str
    parts: Parts
    settings: Settings
    rng: np.random.Generator | None
    selections: dict[str, Sequence[int]] | None
    texts: Sequence[str]


@dataclass(frozen=True)
class Method:
    """Describe an attribution method.

    function: Task -> fields of an `Attribution` ("scores", one per token, and what else it knows).

    reads: "model", the student's weights (it runs with them frozen, on rationales that are not
    empty); "words", nothing but texts and the tokenizer, so that every student with one tokenizer
    has the same scores; or "" (chance, a person).
    """

    function: Callable[[Task], dict]
    reads: str = "model"


def attribute_rationale(
    student: Student,
    example: Example,
    rationale: str,
    method: str,
    *,
    label_format: str = "text",
    rng: np.random.Generator | None = None,
    selections: dict[str, Sequence[int]] | None = None,
    texts: Sequence[str] | None = None,
    **settings,
) -> Attribution:
    """Score every token of one rationale for the right answer's log probability.

    method: a name in METHODS; settings: the fields of `Settings`. texts: the rationales among which
    words are counted (None: this one only). Raises DataError for an unknown method or baseline, a
    missing rng, and a selection that is missing or outside the rationale.
    """
    parts = split_sequence(student, example, rationale, label_format)
    result = Attribution(
        example.id, method, tuple(parts.rationale), np.zeros(0), tuple(parts.words)
    )
    if method not in METHODS:
        raise DataError(f"attribution method '{method}'; expected one of {', '.join(METHODS)}")
    known = (student, example, rationale, parts, Settings(**settings), rng, selections)
    task, entry = Task(*known, texts or [rationale]), METHODS[method]
    if entry.reads != "model":
        return replace(result, **entry.function(task))
    if not parts.rationale:
        return result
    with freeze_parameters(student.model), last_block_at_places(student.model):
        return replace(result, **entry.function(task))


def integrate_gradients(task: Task) -> dict:
    """Integrate the gradient along the path from the baseline, summed over the embedding.

    Gauss-Legendre with n_steps points; the scores sum to logp_full - logp_baseline (Sundararajan et
    al. 2017, arXiv 1703.01365).
    """
    full, base = embed_rationale(task.student, task.parts, task.settings.baseline)
    score = label_scorer(task.student, task.parts)
    ends = _score_in_batches(score, torch.cat([full, base]), task.settings.batch_size).numpy()
    paths = IntegratedGradients(score).attribute(
        full, base, n_steps=task.settings.n_steps, internal_batch_size=task.settings.batch_size
    )
    scores = paths.sum(-1)[0].double().cpu().numpy()
    return {
        "scores": scores,
        "delta": float(scores.sum() - (ends[0] - ends[1])),
        "logp_full": float(ends[0]),
        "logp_baseline": float(ends[1]),
    }


def _embedding_gradient(task: Task) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return embeddings [1, R, D], their gradient of log p(label), and log p(label) in nats."""
    x = embed_rationale(task.student, task.parts, task.settings.baseline)[0].requires_grad_()
    value = label_scorer(task.student, task.parts)(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return x, gradient, value.item()


def multiply_gradient(task: Task) -> dict:
    """Multiply embedding and gradient, and sum (Shrikumar et al. 2016, arXiv 1605.01713)."""
    x, gradient, value = _embedding_gradient(task)
    return {"scores": (gradient * x).sum(-1)[0].detach().double().cpu().numpy(), "logp_full": value}


def measure_saliency(task: Task) -> dict:
    """Measure the gradient's length, in nats per unit of embedding, without a sign.

    Li et al. 2016, arXiv 1506.01066.
    """
    _, gradient, value = _embedding_gradient(task)
    return {"scores": gradient.norm(dim=-1)[0].detach().double().cpu().numpy(), "logp_full": value}


def occlude_units(task: Task, members: np.ndarray) -> dict:
    """Measure how far log p falls when a unit is at the baseline; its tokens share it equally.

    members: each token's unit.
    """
    n, units = len(members), np.unique(members)
    full, base = embed_rationale(task.student, task.parts, task.settings.baseline)
    keep = np.concatenate(
        [np.ones((1, n), bool), np.zeros((1, n), bool), members[None] != units[:, None]]
    )
    intact, nothing, *logps = variant_logps(
        task.student, task.parts, full, base, keep, task.settings.batch_size
    )
    share = (intact - np.array(logps)) / np.bincount(members)
    return {"scores": share[members], "logp_full": intact, "logp_baseline": nothing}


def occlude_tokens(task: Task) -> dict:
    """Put each token alone at the baseline (Zeiler and Fergus 2014, arXiv 1311.2901)."""
    return occlude_units(task, np.arange(len(task.parts.rationale)))


def occlude_words(task: Task) -> dict:
    """Put each whole word at the baseline; its tokens share the fall."""
    return occlude_units(task, np.array(task.parts.words))


def draw_scores(task: Task) -> dict:
    """Draw uniform numbers from rng."""
    if task.rng is None:
        raise DataError(
            "attribution method 'random': no random generator; expected one, seeded by question"
        )
    return {"scores": task.rng.random(len(task.parts.rationale))}


def mark_answer_words(task: Task) -> dict:
    """Give 1 to the tokens of words that the right answer holds too, else 0.

    See `corrupt.label_words`. Does "a few key tokens suffice" only mean that the answer is one?
    """
    return {
        "scores": np.array(
            corrupt.label_tokens(task.student, _leading_space(task), task.example.label),
            dtype=float,
        )
    }


def _leading_space(task: Task) -> str:
    """Return the rationale as the student reads it, with a space before it."""
    return f" {task.rationale}" if task.rationale else ""


def _word_forms(text: str) -> list[str]:
    """Return the forms of a text's words, as they are compared."""
    return [corrupt.word_form(text[a:b]) for a, b in corrupt.word_spans(text)]


def _share_among_tokens(task: Task, scores: Sequence[float]) -> dict:
    """Turn scores of words (of `_word_forms`) into scores of tokens.

    Each has its word's, divided by the number of the word's tokens, so that a word scores the same
    however it is cut. Where words are what is kept, their sums rank them.
    """
    words = np.array(task.parts.words, dtype=int)
    if not len(words):
        return {"scores": np.zeros(0)}
    return {"scores": (np.asarray(scores, dtype=float) / np.bincount(words))[words]}


def weigh_words(task: Task) -> dict:
    """Weigh words by tf-idf over the N texts.

    How often a word stands in this rationale, times log((1 + N) / (1 + rationales that hold it))
    + 1 (scikit-learn's smooth_idf; Jones 1972). A word without letters or digits scores 0.
    """
    forms, held = _word_forms(_leading_space(task)), _count_texts(tuple(task.texts))
    idf = {form: np.log((1 + len(task.texts)) / (1 + held[form])) + 1 for form in set(forms)}
    return _share_among_tokens(
        task, [forms.count(form) * idf[form] if form else 0.0 for form in forms]
    )


def match_frequency(task: Task) -> dict:
    """Prefer words about as frequent in the texts as the answer's words, but not these.

    A word scores exp(-distance) of its log frequency to the mean one of the answer's words; those
    themselves score -1 and come last. As rare as what `answer_words` selects, and not the answer:
    its control.
    """
    forms, counts = _word_forms(_leading_space(task)), _count_words(tuple(task.texts))
    answer = corrupt.label_words(task.example.label)
    wanted = np.mean([np.log1p(counts[form]) for form in sorted(answer)]) if answer else 0.0
    near = {
        form: np.exp(-abs(np.log1p(counts[form]) - wanted)) for form in set(forms) - answer if form
    }
    return _share_among_tokens(
        task, [-1.0 if form in answer else near.get(form, 0.0) for form in forms]
    )


@lru_cache(maxsize=4)
def _count_texts(texts: tuple[str, ...]) -> Counter:
    """Count for each form how many texts hold it."""
    return Counter(form for text in texts for form in set(_word_forms(text)))


@lru_cache(maxsize=4)
def _count_words(texts: tuple[str, ...]) -> Counter:
    """Count for each form how often it stands in all texts."""
    return Counter(form for text in texts for form in _word_forms(text))


def mark_selection(task: Task) -> dict:
    """Give 1 to the tokens that a person selected (`selections`), else 0.

    Raises DataError where there is no selection, or one outside the rationale.
    """
    question, n = task.example.id, len(task.parts.rationale)
    if question not in (task.selections or {}):
        raise DataError(
            f"question '{question}': no human selection; expected a line with its id and "
            '"tokens": [...]'
        )
    chosen = task.selections[question]
    bad = [t for t in chosen if not 0 <= t < n]
    if bad:
        raise DataError(
            f"question '{question}': selected token {bad[0]}; expected 0 to {n - 1}, this "
            "student's tokens of it"
        )
    scores = np.zeros(n)
    scores[list(chosen)] = 1
    return {"scores": scores}


@torch.no_grad()
def _attention_layers(task: Task) -> list[torch.Tensor]:
    """Return each layer's attention weights, the mean over heads: [T, T], rows look at columns.

    They need the eager implementation, for this one uncached pass; then the student's own is back.
    """
    model, parts = task.student.model, task.parts
    ids = parts.prefix + parts.rationale + parts.frame + parts.label[:-1]
    with use_attention(model, "eager"):
        layers = model(
            input_ids=torch.tensor([ids], device=model.device),
            output_attentions=True,
            use_cache=False,
            logits_to_keep=1,
        ).attentions
    return [layer[0].double().mean(0) for layer in layers]


def _attention_scores(task: Task, flow: torch.Tensor) -> dict:
    """Read the rationale's scores off attention [T, T] at the positions that predict the label."""
    start = len(task.parts.prefix)
    columns = slice(start, start + len(task.parts.rationale))
    return {"scores": flow[-len(task.parts.label) :, columns].mean(0).cpu().numpy()}


def read_attention(task: Task) -> dict:
    """Read the last layer's attention, its mean over heads and label positions (no sign)."""
    return _attention_scores(task, _attention_layers(task)[-1])


def follow_attention(task: Task) -> dict:
    """Follow attention through all layers with the residual stream ("rollout", no sign).

    Abnar and Zuidema 2020, arXiv 2005.00928.
    """
    layers = _attention_layers(task)
    own = torch.eye(len(layers[0]), dtype=torch.double, device=layers[0].device)
    flow = own
    for layer in layers:
        flow = (layer + own) / 2 @ flow
    return _attention_scores(task, flow)


@torch.no_grad()
def compare_embeddings(task: Task) -> dict:
    """Compare each token's embedding with the label's mean one, by cosine: the word2vec idea."""
    student, parts = task.student, task.parts
    weight = student.model.get_input_embeddings().weight
    # Without the line break that closes the label
    visible = [i for i in parts.label if student.decode([i]).strip()] or parts.label
    target = weight[visible].double().mean(0, keepdim=True)
    likeness = torch.cosine_similarity(weight[parts.rationale].double(), target)
    return {"scores": likeness.cpu().numpy()}


def leave_out_label(student: Student, example: Example, rationale: str, scores) -> np.ndarray:
    """Give the tokens of the label's own words `LEFT_OUT`: they are never among the top.

    Which words these are, `mark_answer_words` says. What such a selector keeps cannot be the label:
    if a few of its tokens suffice, then not because the label is among them.
    """
    text = f" {rationale}" if rationale else ""
    named = np.array(corrupt.label_tokens(student, text, example.label), dtype=bool)
    return np.where(named, LEFT_OUT, np.asarray(scores, dtype=float))


def _without_label(method: Method) -> Method:
    """Make the variant of a method that never chooses one of the label's words."""

    def score_others(task: Task) -> dict:
        found = method.function(task)["scores"]
        return {"scores": leave_out_label(task.student, task.example, task.rationale, found)}

    return Method(score_others, method.reads)


# name -> method. A new one is one entry here, and its name in arms.SELECTORS (a test keeps the two
# equal): an arm is checked without importing torch.
METHODS = {
    "integrated_gradients": Method(integrate_gradients),
    "input_x_gradient": Method(multiply_gradient),
    "saliency": Method(measure_saliency),
    "occlusion": Method(occlude_tokens),
    "occlusion_word": Method(occlude_words),
    "attention": Method(read_attention),
    "rollout": Method(follow_attention),
    "embedding_similarity": Method(compare_embeddings),
    "random": Method(draw_scores, reads=""),
    "human": Method(mark_selection, reads=""),
    "answer_words": Method(mark_answer_words, reads="words"),
    "tfidf": Method(weigh_words, reads="words"),
    "frequency_matched": Method(match_frequency, reads="words"),
}
WITHOUT_LABEL = "_without_label"
METHODS |= {
    f"{name}{WITHOUT_LABEL}": _without_label(METHODS[name])
    for name in ("integrated_gradients", "occlusion", "tfidf", "random")
}


def attribute_all(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    method: str,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    **settings,
) -> list[Attribution]:
    """Run `attribute_rationale` for many questions, in their order.

    `random` depends on the question's id and `seed`, not on its place; words are counted over the
    rationales of these questions. progress is called with the number of questions done; settings go
    to `attribute_rationale`.
    """
    found, texts = [], tuple(rationales[example.id].text for example in examples)
    with freeze_parameters(student.model), use_prepacked_linears(student.model):
        for example in examples:
            rng = example_rng(example.id, seed, 4)
            found.append(
                attribute_rationale(
                    student,
                    example,
                    rationales[example.id].text,
                    method,
                    rng=rng,
                    texts=texts,
                    **settings,
                )
            )
            progress(len(found))
    return found


def aggregate_to_words(
    scores: Sequence[float], words: Sequence[int], how: str = "sum"
) -> np.ndarray:
    """Return one score per word.

    how: "sum" (right for additive scores), "mean" or "max" of its tokens.
    """
    scores, words = np.asarray(scores, dtype=float), np.asarray(words, dtype=int)
    combine = {"sum": np.sum, "mean": np.mean, "max": np.max}[how]
    return np.array(
        [combine(scores[words == word]) for word in range(max(words, default=-1) + 1)], dtype=float
    )


def top_k(scores: Sequence[float], k: float) -> list[int]:
    """Return the positions of the k highest scores, ascending.

    k >= 1 is a number, below it a fraction. Ties go to the earlier one. What a method leaves out
    (`arms.LEFT_OUT`) is never among them.
    """
    order = rank_units([[i] for i in range(len(scores))], scores, len(scores))
    chosen = order[: n_kept(k, len(scores))].tolist()
    return sorted(i for i in chosen if scores[i] > LEFT_OUT)
