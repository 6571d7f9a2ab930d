"""Spoil a rationale: shuffle, mask, keep or fill its tokens, or swap it for another question's.

Everything works on positions in the list of the student's own tokens of one rationale
(" <rationale>", tokenised by itself), so a corruption cannot reach the question or the label.
Tokens are grouped into units (tokens, words or sentences); what happens, happens to whole units.
A word carries the space before it, so moved groups stay valid tokens: a shuffle keeps the
multiset of ids exactly, though its text, tokenised again, may merge differently. Randomness comes
only from the generator that is passed in. A permutation is drawn whole, whatever the amount: with
one generator state, what is hidden at 25 % is also hidden at 50 %.

What each corruption does stands in arms.py; here is what it needs: the units, the answer's words,
the training rationales.
"""

import re
from collections.abc import Sequence

import numpy as np

from cotdistill.arms import CORRUPTIONS, Arm, Corpus, Given
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.students import Student

# fmt: off
# A full stop after these does not end a sentence; neither does one after a number or letter that
# opens it ("1.", "B.").
ABBREVIATIONS = {
    "e.g.", "i.e.", "etc.", "vs.", "cf.", "mr.", "mrs.", "ms.", "dr.", "st.", "no.", "fig.",
    "approx.",
}
# Words of an answer that say nothing by themselves: "a cup of tea" is about "cup" and "tea".
FUNCTION_WORDS = {
    "a", "an", "the", "of", "to", "in", "on", "at", "for", "from", "by", "with", "and", "or", "is",
    "are", "was", "were", "be", "it", "its",
}
# fmt: on


def offsets(student: Student, text: str) -> list[tuple[int, int]]:
    """Return the characters [start, end) of each token of `student.encode(text)`.

    The bytes of one emoji share its character. Raises DataError for a slow tokenizer.
    """
    if not student.tokenizer.is_fast:
        raise DataError(
            f"student '{student.name}': its tokenizer gives no character offsets; "
            "expected a fast tokenizer"
        )
    if student.adds_space and text:
        ids, sentinel = student.encode_after_sentinel(text)
        spans = student.tokenizer(
            sentinel + text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return [
            (max(0, a - len(sentinel)), b - len(sentinel))
            for a, b in spans[len(spans) - len(ids) :]
        ]
    return list(
        student.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )["offset_mapping"]
    )


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the character spans of the words.

    A word is what stands between white space (punctuation included).
    """
    return [match.span() for match in re.finditer(r"\S+", text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the character spans of the sentences.

    A word that ends with ".", "!" or "?" (quotes and brackets may follow) closes one, unless it is
    an abbreviation, or a number or single letter that opens the sentence.
    """
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


def _group_tokens(student: Student, text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Return for each token the index of the span that its first visible character lies in.

    A token of white space goes with what follows it (at the end, with what precedes it). Renumbered
    from 0 without gaps.
    """
    at = np.zeros(len(text) + 1, dtype=int)
    for index, (a, b) in enumerate(spans):
        at[a:b] = index
        at[b:] = index  # overwritten by the next span; white space is looked through below
    found = []
    for a, _ in offsets(student, text):
        while a < len(text) and text[a].isspace():
            a += 1
        found.append(int(at[min(a, len(text))]))
    order = {group: index for index, group in enumerate(dict.fromkeys(found))}
    return [order[group] for group in found]


def word_groups(student: Student, text: str) -> list[int]:
    """Return for each token of `student.encode(text)` the index of its word, from 0, ascending."""
    return _group_tokens(student, text, word_spans(text))


def sentence_groups(student: Student, text: str) -> list[int]:
    """Return for each token of `student.encode(text)` the index of its sentence, from 0."""
    return _group_tokens(student, text, sentence_spans(text))


def unit_groups(student: Student, text: str, unit: str) -> list[int] | None:
    """Return the groups of an arm's unit: None for "token" (each token is its own)."""
    return {"token": lambda *_: None, "word": word_groups, "sentence": sentence_groups}[unit](
        student, text
    )


def corrupt_tokens(
    ids: list[int],
    arm: Arm,
    rng: np.random.Generator | None,
    *,
    filler_id: int,
    scores: Sequence[float] | None = None,
    groups: Sequence[int] | None = None,
    corpus: Corpus | None = None,
    on_label: Sequence[bool] | None = None,
) -> list[int]:
    """Apply an arm's corruption to the tokens of one rationale and return new ids.

    `ids` is left alone. groups: each token's unit (None: every token is one); scores: one
    importance per token, for a selector other than "random"; corpus: of the training rationales;
    on_label: for each token whether its word is one of the answer's. What a corruption does not
    need is not looked at. Intact rationales stay, and those of arms that take another question's:
    that happens between questions (`choose_partners`). Raises DataError for what is missing or of
    another length.
    """
    if arm.corruption not in CORRUPTIONS:
        raise DataError(
            f"unknown corruption '{arm.corruption}'; expected one of "
            f"{', '.join(filter(None, CORRUPTIONS))}"
        )
    needs = CORRUPTIONS[arm.corruption].needs
    if not ids or not arm.corruption or "partner" in needs:
        return list(ids)
    if "rng" in needs and rng is None:
        raise DataError(
            f"arm {arm.label}: no random generator; expected one, seeded by question and seed"
        )
    groups = range(len(ids)) if groups is None else groups
    if len(groups) != len(ids):
        raise DataError(
            f"{len(groups)} groups for a rationale of {len(ids)} tokens; expected "
            "one group per token"
        )
    if arm.needs_scores and scores is None:
        raise DataError(
            f"arm {arm.label}: no scores for selector '{arm.selector}'; expected one "
            "per rationale token"
        )
    if "label" in needs and (on_label is None or len(on_label) != len(ids)):
        raise DataError(
            f"arm {arm.label}: {'no' if on_label is None else len(on_label)} marks of the answer's "
            f"words for a rationale of {len(ids)} tokens; expected one mark per token"
        )
    if "corpus" in needs and (corpus is None or not len(corpus.tokens)):
        raise DataError(
            f"arm {arm.label}: no training rationales; expected those of the run, as "
            "`encode_all` gives them"
        )
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    given = Given(list(members.values()), filler_id, rng, scores, corpus, on_label)
    return CORRUPTIONS[arm.corruption].function(ids, arm, given)


def word_form(word: str) -> str:
    """Return a word as it is compared.

    Lower case, no punctuation around it, no "'s" or plural "s" at its end.
    """
    plain = re.sub(r"^\W+|\W+$", "", word.lower().replace("’", "'")).removesuffix("'s")
    return (
        plain[:-1] if len(plain) > 3 and plain.endswith("s") and not plain.endswith("ss") else plain
    )


def label_words(label: str) -> set[str]:
    """Return the forms of the words of an answer that say something.

    All of them, where there are only function words.
    """
    forms = {form for form in map(word_form, label.split()) if form}
    return forms - FUNCTION_WORDS or forms


def label_tokens(student: Student, text: str, label: str) -> list[bool]:
    """Mark each token of `student.encode(text)` whose word is among the answer's `label_words`."""
    words, wanted = [text[a:b] for a, b in word_spans(text)], label_words(label)
    return [
        bool(words) and word_form(words[group]) in wanted for group in word_groups(student, text)
    ]


def dots_id(student: Student) -> int:
    """Return the token that the filler arm repeats: the last one of " ..."."""
    return student.encode(" ...")[-1]


def full_mask_as_filler(arm: Arm) -> Arm:
    """Return an arm that hides everything behind filler tokens as the filler arm.

    Every other arm is returned as it is.
    """
    if (arm.corruption, arm.amount, arm.fill) != ("masked", 1, "filler"):
        return arm
    return Arm(arm.placement, "filler", label_weight=arm.label_weight, loss=arm.loss)


def equal_training(student: Student, arm: Arm) -> Arm:
    """Return the arm whose training this one repeats token for token; itself, where there is none.

    A full mask writes the student's filler token in each place, the filler arm dots: one training,
    where the student's filler token is the dots.
    """
    return full_mask_as_filler(arm) if dots_id(student) == student.filler_id else arm


def collect_corpus(student: Student, texts: Sequence[str]) -> Corpus:
    """Collect what these rationales share, each as a student reads it: with a space before it."""
    rows = [student.encode(f" {text}") for text in texts if text]
    tokens = np.array([token for row in rows for token in row], dtype=np.int64)
    return Corpus(tokens, round(float(np.median([len(row) for row in rows]))) if rows else 0)


def corrupt_text(
    student: Student,
    text: str,
    ids: list[int],
    arm: Arm,
    rng: np.random.Generator | None,
    scores: Sequence[float] | None = None,
    *,
    label: str = "",
    corpus: Corpus | None = None,
) -> list[int]:
    """Apply `corrupt_tokens` with one student's groups and filler token (dots for the filler arm).

    text: the rationale piece with its leading space; ids: `student.encode(text)`; label: the text
    of the right answer.
    """
    entry = CORRUPTIONS[arm.corruption]
    filler_id = dots_id(student) if arm.corruption == "filler" else student.filler_id
    groups = unit_groups(student, text, arm.unit) if "unit" in entry.fields else None
    on_label = label_tokens(student, text, label) if "label" in entry.needs else None
    return corrupt_tokens(
        ids,
        arm,
        rng,
        filler_id=filler_id,
        scores=scores,
        groups=groups,
        corpus=corpus,
        on_label=on_label,
    )


def choose_partners(
    arm: Arm,
    examples: Sequence[Example],
    lengths: dict[str, int],
    texts: dict[str, str],
    rng: np.random.Generator,
) -> dict[str, str]:
    """Return for each question the one whose rationale an arm gives it (itself: it keeps its own).

    lengths: in tokens.
    """
    return CORRUPTIONS[arm.corruption].function(examples, lengths, texts, rng)
