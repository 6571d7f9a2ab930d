"""Integrated gradients and occlusion beside captum."""

from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.compare import Limit, Side, Timing, arrays_agree, compare_sides
from benchmarks.limits import least_weights, vocabulary_of
from cotdistill.attribution.methods import aggregate_to_words, attribute_all
from cotdistill.attribution.score import Attribution, Parts, split_sequence
from cotdistill.examples import Example, Rationale
from cotdistill.students import Student


def _sequence_and_baseline(student: Student, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the sequence up to the label's last token but one, and its baseline, [1, T] each.

    In the baseline every rationale token is the filler token.
    """
    head, tail = parts.prefix, parts.frame + parts.label[:-1]
    filler = [student.filler_id] * len(parts.rationale)
    ids, baseline = ([*head, *middle, *tail] for middle in (parts.rationale, filler))
    return torch.tensor([ids]), torch.tensor([baseline])


def _label_scorer(student: Student, parts: Parts, keep: bool):
    """Make a researcher's forward function: ids [B, T] -> log p(label) [B].

    It passes the whole sequence; keep=True asks the head for the label's positions only.
    """
    label, n = torch.tensor(parts.label), len(parts.label)

    def forward(ids):
        kept = {"logits_to_keep": n} if keep else {}
        logits = student.model(input_ids=ids, use_cache=False, **kept).logits[:, -n:]
        return logits.float().log_softmax(-1)[:, torch.arange(n), label].sum(1)

    return forward


def captum_gradients(
    student: Student, example: Example, rationale: str, n_steps: int, batch_size: int, how: str
) -> np.ndarray:
    """Compute integrated gradients of the rationale's tokens by captum on the whole sequence.

    how: "as it comes" (parameters require gradients), "frozen", or "frozen, head at the label".
    """
    from captum.attr import LayerIntegratedGradients

    parts = split_sequence(student, example, rationale)
    ids, baseline = _sequence_and_baseline(student, parts)
    flags = [p.requires_grad for p in student.model.parameters()]
    student.model.requires_grad_(how == "as it comes")
    try:
        method = LayerIntegratedGradients(
            _label_scorer(student, parts, "head" in how), student.model.get_input_embeddings()
        )
        gradients = method.attribute(
            ids, baselines=baseline, n_steps=n_steps, internal_batch_size=batch_size
        )
    finally:
        for parameter, flag in zip(student.model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    begin = len(parts.prefix)
    scores = gradients.sum(-1)[0, begin : begin + len(parts.rationale)]
    return scores.detach().double().numpy()


def captum_occlusion(
    student: Student, example: Example, rationale: str, batch_size: int, keep: bool = False
) -> np.ndarray:
    """Compute the fall of log p(label) when a rationale word becomes filler, by captum.

    Returns one number per word (FeatureAblation). keep=True asks the head for the label's
    positions only.
    """
    from captum.attr import FeatureAblation

    parts = split_sequence(student, example, rationale)
    ids, baseline = _sequence_and_baseline(student, parts)
    begin, words = len(parts.prefix), np.array(parts.words)
    # The words are features 1, 2, ...; the text around them is feature 0 and never changes
    mask = torch.zeros_like(ids)
    mask[0, begin : begin + len(words)] = torch.tensor(words - words.min() + 1)
    with torch.no_grad():
        falls = FeatureAblation(_label_scorer(student, parts, keep)).attribute(
            ids, baselines=baseline, feature_mask=mask, perturbations_per_eval=batch_size
        )
    tokens = falls[0, begin : begin + len(words)].double().numpy()
    return np.array([tokens[words == w][0] for w in np.unique(words)])


def _attribute_pairs(
    student: Student, pairs: list[tuple[Example, str]], method: str, **settings
) -> list[Attribution]:
    """Call `attribute_all` as a study does."""
    rationales = {e.id: Rationale(e.id, r) for e, r in pairs}
    return attribute_all(student, [e for e, _ in pairs], rationales, method, **settings)


def time_gradients(
    student: Student,
    pairs: list[tuple[Example, str]],
    n_steps: int,
    ways: list[str],
    timing: Timing,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time integrated gradients: `attribute_all` against captum on the whole sequence.

    captum runs in each of the `ways` of `captum_gradients`, which have targets of their own.
    Attributions must agree to 1e-4 of the largest.
    """

    def ours(size):
        settings = {"n_steps": n_steps, "batch_size": size}
        attributions = _attribute_pairs(student, pairs, "integrated_gradients", **settings)
        return np.concatenate([a.scores for a in attributions])

    def theirs(how, size):
        return np.concatenate(
            [captum_gradients(student, e, r, n_steps, size, how) for e, r in pairs]
        )

    targets = {"as it comes": 5.0, "frozen": 3.0}
    peers = {
        f"captum, {how}": Side(
            partial(theirs, how), timing.sizes, "LayerIntegratedGradients", targets.get(how)
        )
        for how in ways
    }
    gflop = 0.0  # each step passes the tokens from the rationale on, forward and backward
    for parts in (split_sequence(student, e, r) for e, r in pairs):
        tokens = len(parts.rationale + parts.frame + parts.label) - 1
        gflop += 4e-9 * n_steps * least_weights(student.model, tokens, len(parts.label))
    return compare_sides(
        f"integrated gradients, {n_steps} steps",
        Side(ours, timing.own_sizes),
        peers,
        lambda a, b: arrays_agree(a, b, 1e-4, "attributions"),
        timing.repeats,
        Limit(gflop=gflop, vocabulary=vocabulary_of(student)),
    )


def time_occlusion(
    student: Student, pairs: list[tuple[Example, str]], timing: Timing
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time the occlusion of every rationale word: `attribute_all` against captum.

    The falls must agree to 1e-5 of the largest log probability, because both sides subtract two
    of these and their rounding is what can differ. The target is for captum as it comes.
    """

    def ours(size):
        attributions = _attribute_pairs(student, pairs, "occlusion_word", batch_size=size)
        return np.concatenate([aggregate_to_words(a.scores, a.words) for a in attributions])

    def theirs(keep, size):
        return np.concatenate([captum_occlusion(student, e, r, size, keep) for e, r in pairs])

    # One pass each gives the log probabilities
    scale = max(abs(a.logp_full) for a in _attribute_pairs(student, pairs, "saliency"))

    def same(a, b):
        gap = float(np.abs(a - b).max() / scale)
        return gap <= 1e-5, f"{len(a)} words, largest difference {gap:.0e} of log p (limit 1e-05)"

    settings = "FeatureAblation, a feature per word"
    peers = {
        "captum": Side(partial(theirs, False), timing.sizes, settings, timing.target),
        "captum, head at the label": Side(partial(theirs, True), timing.sizes, settings),
    }
    gflop = 0.0  # for each word: the tokens from it on, and the head at the label
    for parts in (split_sequence(student, e, r) for e, r in pairs):
        tokens = len(parts.rationale + parts.frame + parts.label) - 1
        for start in np.unique(parts.words, return_index=True)[1]:
            left = tokens - int(start)
            gflop += 2e-9 * least_weights(student.model, left, len(parts.label))
    return compare_sides(
        "occlusion of every word",
        Side(ours, timing.own_sizes),
        peers,
        same,
        timing.repeats,
        Limit(gflop=gflop, vocabulary=vocabulary_of(student)),
    )
