"""Spoil a rationale: shuffle, mask, keep or fill its tokens, or swap it for another question's.

Everything works on positions in the list of the student's own tokens of one rationale (" <rationale>",
tokenised by itself), so a corruption cannot reach the question or the label. Tokens are grouped into units
(tokens, words or sentences); what happens, happens to whole units. A word carries the space before it, so
moved groups stay valid tokens: a shuffle keeps the multiset of ids exactly, though its text, tokenised again,
may merge differently. Randomness comes only from the generator that is passed in. A permutation is drawn
whole, whatever the amount: with one generator state, what is hidden at 25 % is also hidden at 50 %.
"""

import re
from collections.abc import Sequence

import numpy as np

from cotdistill.data import DataError
from cotdistill.format import Arm
from cotdistill.students import Student

# A full stop after these does not end a sentence; neither does one after a number or letter that opens it ("1.", "B.").
ABBREVIATIONS = set("e.g. i.e. etc. vs. cf. mr. mrs. ms. dr. st. no. fig. approx.".split())


def offsets(student: Student, text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of each token of `student.encode(text)`; the bytes of one emoji share its
    character."""
    if not student.tokenizer.is_fast:
        raise DataError(f"student '{student.name}': its tokenizer gives no character offsets; expected a fast tokenizer")
    if student.adds_space and text:
        ids, sentinel = student.encode_after_sentinel(text)
        spans = student.tokenizer(sentinel + text, add_special_tokens=False, split_special_tokens=True,
                                  return_offsets_mapping=True)["offset_mapping"]
        return [(max(0, a - len(sentinel)), b - len(sentinel)) for a, b in spans[len(spans) - len(ids):]]
    return list(student.tokenizer(text, add_special_tokens=False, split_special_tokens=True,
                                  return_offsets_mapping=True)["offset_mapping"])


def word_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the words, a word being what stands between white space (punctuation included)."""
    return [match.span() for match in re.finditer(r"\S+", text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences: a word that ends with . ! or ? (quotes and brackets may follow)
    closes one, unless it is an abbreviation, or a number or single letter that opens the sentence."""
    spans, start = [], None
    for a, b in word_spans(text):
        start = a if start is None else start
        word = text[a:b].lower().lstrip("\"'([")
        opens = a == start and re.fullmatch(r"(\d+|[a-z])\.", word)
        if re.search(r"[.!?]+[\"')\]]*$", word) and word not in ABBREVIATIONS and not opens:
            spans.append((start, b))
            start = None
    if start is not None:
        spans.append((start, word_spans(text)[-1][1]))
    return spans


def _groups(student: Student, text: str, spans: list[tuple[int, int]]) -> list[int]:
    """For each token the index of the span that its first visible character lies in; a token of white space
    goes with what follows it (at the end, with what precedes it). Renumbered from 0 without gaps."""
    at = np.zeros(len(text) + 1, dtype=int)
    for index, (a, b) in enumerate(spans):
        at[a:b] = index
        at[b:] = index  # overwritten by the next span; white space is looked through below
    found = []
    for a, b in offsets(student, text):
        while a < len(text) and text[a].isspace():
            a += 1
        found.append(int(at[min(a, len(text))]))
    order = {group: index for index, group in enumerate(dict.fromkeys(found))}
    return [order[group] for group in found]


def word_groups(student: Student, text: str) -> list[int]:
    """For each token of `student.encode(text)` the index of its word, from 0, ascending."""
    return _groups(student, text, word_spans(text))


def sentence_groups(student: Student, text: str) -> list[int]:
    """For each token of `student.encode(text)` the index of its sentence, from 0, ascending."""
    return _groups(student, text, sentence_spans(text))


def unit_groups(student: Student, text: str, unit: str) -> list[int] | None:
    """The groups of an arm's unit: None for "token" (each token is its own)."""
    return {"token": lambda *_: None, "word": word_groups, "sentence": sentence_groups}[unit](student, text)


def rank_units(units: list[list[int]], scores: Sequence[float], n_tokens: int) -> np.ndarray:
    """Units from the highest score to the lowest; a unit scores the sum over its tokens, ties go to the
    earlier one.

    Raises DataError for scores of another length (they belong to another text or tokenizer) or that are not
    finite."""
    scores = np.asarray(scores, dtype=float)
    if scores.shape != (n_tokens,):
        raise DataError(f"{scores.size} scores for a rationale of {n_tokens} tokens; expected one score per token, "
                        "made by this student's tokenizer")
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))[0]
        raise DataError(f"score {scores[bad]} at token {bad}; expected finite scores")
    return np.argsort(-np.array([scores[unit].sum() for unit in units]), kind="stable")


def n_kept(amount: float, n: int) -> int:
    """How many of n units an arm keeps: a number from 1 on, or below 1 a fraction (then at least one); 0
    keeps none."""
    return min(n, int(amount)) if amount >= 1 else max(1, round(amount * n)) if amount > 0 and n else 0


def corrupt(ids: list[int], arm: Arm, rng: np.random.Generator | None, *, filler_id: int,
            scores: Sequence[float] | None = None, groups: Sequence[int] | None = None) -> list[int]:
    """Apply an arm's corruption to the tokens of one rationale and return new ids (`ids` is left alone).

    groups: each token's unit (None: every token is one); scores: one importance per token, for a selector
    other than "random". shuffled: units in random order. masked: exactly round(amount * units) of them
    hidden, their tokens replaced by `filler_id` or deleted. kept: the `n_kept` units with the highest scores,
    in their order, nothing else (selector "human": of those that were selected). filler: every token is `filler_id`. swapped and intact: unchanged (a swap
    happens between questions)."""
    if not ids or arm.corruption in ("", "swapped"):
        return list(ids)
    if arm.corruption == "filler":
        return [filler_id] * len(ids)
    if rng is None:
        raise DataError(f"arm {arm.label}: no random generator; expected one, seeded by question and seed")
    groups = range(len(ids)) if groups is None else groups
    if len(groups) != len(ids):
        raise DataError(f"{len(groups)} groups for a rationale of {len(ids)} tokens; expected one group per token")
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    units = list(members.values())
    if arm.corruption == "shuffled":
        return [ids[position] for unit in rng.permutation(len(units)) for position in units[unit]]

    ranked = arm.corruption == "kept" or arm.order != "random"
    if ranked and arm.selector != "random" and scores is None:
        raise DataError(f"arm {arm.label}: no scores for selector '{arm.selector}'; expected one per rationale token")
    if not ranked or arm.selector == "random":
        order = rng.permutation(len(units))
    else:
        order = rank_units(units, scores, len(ids))
    if arm.corruption == "kept":
        chosen = order[:n_kept(arm.amount, len(units))]
        if arm.selector == "human":  # the others, all 0, would come in from the first on
            chosen = [unit for unit in chosen if any(scores[position] > 0 for position in units[unit])]
        return [ids[position] for position in sorted(p for unit in chosen for p in units[unit])]
    if arm.corruption == "masked":
        if arm.order == "least" and arm.selector != "random":  # ties go to the earlier unit here too
            order = rank_units(units, -np.asarray(scores, dtype=float), len(ids))
        hidden = {p for unit in order[:round(arm.amount * len(units))] for p in units[unit]}
        if arm.fill == "delete":
            return [id for position, id in enumerate(ids) if position not in hidden]
        return [filler_id if position in hidden else id for position, id in enumerate(ids)]
    raise DataError(f"unknown corruption '{arm.corruption}'; expected shuffled, masked, kept, swapped or filler")


def dots_id(student: Student) -> int:
    """The token that the filler arm repeats: the last one of " ..."."""
    return student.encode(" ...")[-1]


def corrupt_text(student: Student, text: str, ids: list[int], arm: Arm, rng: np.random.Generator | None,
                 scores: Sequence[float] | None = None) -> list[int]:
    """`corrupt` for one student: groups from its tokenizer, its filler token for masks, dots for the filler
    arm.

    text: the rationale piece with its leading space; ids: `student.encode(text)`."""
    filler_id = dots_id(student) if arm.corruption == "filler" else student.filler_id
    groups = unit_groups(student, text, arm.unit) if arm.corruption in ("shuffled", "masked", "kept") else None
    return corrupt(ids, arm, rng, filler_id=filler_id, scores=scores, groups=groups)


def _cycle(ids: list[str], rng: np.random.Generator) -> dict[str, str]:
    """Each id's successor in one random cycle through all of them (Sattolo's algorithm)."""
    donors = list(ids)
    for i in range(len(donors) - 1, 0, -1):
        j = int(rng.integers(i))
        donors[i], donors[j] = donors[j], donors[i]
    return dict(zip(ids, donors))


def swap_partners(lengths: dict[str, int], rng: np.random.Generator, bucket: int = 8, texts: dict[str, str] | None = None,
                  tries: int = 1000) -> dict[str, str]:
    """For each id another id whose rationale it gets: never its own, about as long, and each given away
    exactly once. With texts also not one that reads the same, where `tries` draws find such partners.

    Ids are sorted by length (ties in random order) and cut into buckets of `bucket` (the last one takes the
    rest, up to twice as many); within a bucket a random cycle is drawn (Sattolo's algorithm). The dict's
    order does not matter. Raises DataError for fewer than two ids."""
    if len(lengths) < 2:
        raise DataError(f"{len(lengths)} question(s) with a rationale; expected at least two to swap rationales")
    ids = sorted(lengths)
    ids = [ids[i] for i in rng.permutation(len(ids))]
    ids.sort(key=lengths.__getitem__)
    borders = [*range(0, max(1, len(ids) - bucket + 1), bucket), len(ids)]
    partners = {}
    for a, b in zip(borders, borders[1:]):
        fewest = b - a + 1
        for _ in range(tries):
            drawn = _cycle(ids[a:b], rng)
            same = sum(texts[id] == texts[donor] for id, donor in drawn.items()) if texts else 0
            if same < fewest:
                fewest, best = same, drawn
            if not fewest:
                break
        partners |= best
    return {id: partners[id] for id in lengths}
