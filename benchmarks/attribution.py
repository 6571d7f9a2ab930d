"""Integrated gradients and occlusion beside captum."""

import numpy as np
import pandas as pd
import torch

from benchmarks.compare import compare, nearly_equal
from benchmarks.limits import _least_weights, vocabulary_of
from cotdistill.attribution.methods import aggregate_to_words, attribute_all
from cotdistill.attribution.score import Attribution, Parts, split_sequence
from cotdistill.examples import Example, Rationale
from cotdistill.students import Student


def _whole(student: Student, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole sequence up to the label's last token, and the same with the rationale at the
    filler token, [1, T] each.
    """
    head, tail = parts.prefix, parts.frame + parts.label[:-1]
    ids, base = (
        [*head, *middle, *tail]
        for middle in (parts.rationale, [student.filler_id] * len(parts.rationale))
    )
    return torch.tensor([ids]), torch.tensor([base])


def _label_logp(student: Student, parts: Parts, keep: bool):
    """A researcher's forward function.

    Ids [B, T] -> log p(label) [B], on the whole sequence; keep=True asks the head for the label's
    positions only.
    """
    label, n = torch.tensor(parts.label), len(parts.label)

    def forward(ids):
        logits = student.model(
            input_ids=ids, use_cache=False, **({"logits_to_keep": n} if keep else {})
        ).logits[:, -n:]
        return logits.float().log_softmax(-1)[:, torch.arange(n), label].sum(1)

    return forward


def captum_gradients(
    student: Student, example: Example, rationale: str, n_steps: int, batch_size: int, how: str
) -> np.ndarray:
    """Integrated gradients of the rationale's tokens by captum on the whole sequence.

    how: "as it comes" (parameters require gradients), "frozen", or "frozen, head at the label".
    """
    from captum.attr import LayerIntegratedGradients

    parts = split_sequence(student, example, rationale)
    ids, base = _whole(student, parts)
    flags = [p.requires_grad for p in student.model.parameters()]
    student.model.requires_grad_(how == "as it comes")
    try:
        method = LayerIntegratedGradients(
            _label_logp(student, parts, "head" in how), student.model.get_input_embeddings()
        )
        found = method.attribute(
            ids, baselines=base, n_steps=n_steps, internal_batch_size=batch_size
        )
    finally:
        for parameter, flag in zip(student.model.parameters(), flags):
            parameter.requires_grad_(flag)
    a = len(parts.prefix)
    return found.sum(-1)[0, a : a + len(parts.rationale)].detach().double().numpy()


def captum_occlusion(
    student: Student, example: Example, rationale: str, batch_size: int, keep: bool = False
) -> np.ndarray:
    """The fall of log p(label) when a rationale word is at the filler, one number per word, by
    captum's FeatureAblation.
    """
    from captum.attr import FeatureAblation

    parts = split_sequence(student, example, rationale)
    ids, base = _whole(student, parts)
    a, words = len(parts.prefix), np.array(parts.words)
    # The words are features 1, 2, ...; what stands around them is feature 0 and never changes
    mask = torch.zeros_like(ids)
    mask[0, a : a + len(words)] = torch.tensor(words - words.min() + 1)
    with torch.no_grad():
        found = FeatureAblation(_label_logp(student, parts, keep)).attribute(
            ids, baselines=base, feature_mask=mask, perturbations_per_eval=batch_size
        )
    tokens = found[0, a : a + len(words)].double().numpy()
    return np.array([tokens[words == w][0] for w in np.unique(words)])


def _attributed(
    student: Student, pairs: list[tuple[Example, str]], method: str, **settings
) -> list[Attribution]:
    """`attribute_all`, as a study calls it."""
    return attribute_all(
        student,
        [e for e, _ in pairs],
        {e.id: Rationale(e.id, r) for e, r in pairs},
        method,
        **settings,
    )


def time_gradients(
    student: Student,
    pairs: list[tuple[Example, str]],
    n_steps: int,
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    ways: list[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Integrated gradients: `attribute_rationale` against captum on the whole sequence, in the `ways` of
    `captum_gradients`.

    Attributions must agree to 1e-4 of the largest.
    """

    def ours(size):
        return np.concatenate(
            [
                a.scores
                for a in _attributed(
                    student, pairs, "integrated_gradients", n_steps=n_steps, batch_size=size
                )
            ]
        )

    def theirs(how):
        return lambda size: np.concatenate(
            [captum_gradients(student, e, r, n_steps, size, how) for e, r in pairs]
        )

    parts, targets = (
        [split_sequence(student, e, r) for e, r in pairs],
        {"as it comes": 5.0, "frozen": 3.0},
    )
    least = sum(
        4e-9
        * n_steps
        * _least_weights(student.model, len(p.rationale + p.frame + p.label) - 1, len(p.label))
        for p in parts
    )
    peers = {
        f"captum, {how}": {
            "run": theirs(how),
            "sizes": sizes,
            "target": targets.get(how),
            "settings": "LayerIntegratedGradients",
        }
        for how in ways
    }
    return compare(
        f"integrated gradients, {n_steps} steps",
        {"run": ours, "sizes": own_sizes},
        peers,
        lambda a, b: nearly_equal(a, b, 1e-4, "attributions"),
        repeats,
        gflop=least,
        vocabulary=vocabulary_of(student),
    )


def time_occlusion(
    student: Student,
    pairs: list[tuple[Example, str]],
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    target: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Occlusion of every rationale word: `attribute_rationale` against captum's FeatureAblation.

    The falls must agree to 1e-5 of the largest log probability's scale.
    """

    def ours(size):
        found = _attributed(student, pairs, "occlusion_word", batch_size=size)
        return np.concatenate([aggregate_to_words(a.scores, a.words) for a in found])

    scale = max(abs(a.logp_full) for a in _attributed(student, pairs, "saliency"))  # one pass each

    # Both sides subtract two log probabilities of this size: its rounding is what can differ
    def same(a, b):
        gap = float(np.abs(a - b).max() / scale)
        return gap <= 1e-5, f"{len(a)} words, largest difference {gap:.0e} of log p (limit 1e-05)"

    peers = {
        f"captum{', head at the label' if keep else ''}": {
            "run": (
                lambda k: (
                    lambda size: np.concatenate(
                        [captum_occlusion(student, e, r, size, k) for e, r in pairs]
                    )
                )
            )(keep),
            "sizes": sizes,
            "target": None if keep else target,
            "settings": "FeatureAblation, a feature per word",
        }
        for keep in (False, True)
    }
    least = 0.0  # for each word: the tokens from it on, and the head at the label
    for p in (split_sequence(student, e, r) for e, r in pairs):
        starts, whole = (
            np.unique(p.words, return_index=True)[1],
            len(p.rationale + p.frame + p.label) - 1,
        )
        least += 2e-9 * sum(
            _least_weights(student.model, whole - int(a), len(p.label)) for a in starts
        )
    return compare(
        "occlusion of every word",
        {"run": ours, "sizes": own_sizes},
        peers,
        same,
        repeats,
        gflop=least,
        vocabulary=vocabulary_of(student),
    )
