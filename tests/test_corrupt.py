"""Corruptions against brute force and their own definition, over random rationales, students and
settings.
"""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotdistill import corrupt
from cotdistill.arms import Arm, swap_partners
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.students import load_student
from cotdistill.tiny import TINY

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")
student = cache(load_student)
FILLER = -1
RATIONALES = [
    "",
    "Ice",
    "Ice melts. Water is wet!",
    "Dr. Ann says: use no. 1. Then stop. (Really?) Yes.",
    "Crème brûlée 🍮🔥 is hot. 日本語 の 文。 Ok",
    "  two  spaces\ttab\nline . ",
    "👩‍👩‍👧",
    "e.g. this, i.e. that",
]
ids_lists = st.lists(st.integers(0, 50), max_size=30)


def arm(corruption, **settings):
    return Arm("pre_cot", corruption, **settings)


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def grouped(draw):
    """ids with ascending groups, and a score per token."""
    ids = draw(ids_lists)
    steps = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    groups = np.cumsum([0, *steps[1:]]).tolist() if ids else []
    scores = draw(
        st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0]), min_size=len(ids), max_size=len(ids))
    )
    return ids, groups, scores


def as_units(ids, groups):
    return [
        tuple(i for i, g in zip(ids, groups, strict=False) if g == unit)
        for unit in dict.fromkeys(groups)
    ]


def is_subsequence(short, long):
    rest = iter(long)
    return all(item in rest for item in short)


@given(grouped(), st.integers(0, 9))
def test_a_shuffle_moves_whole_units_and_keeps_every_token(data, seed):
    ids, groups, _ = data
    before = list(ids)
    out = corrupt.corrupt_tokens(
        ids, arm("shuffled", unit="word"), rng(seed), filler_id=FILLER, groups=groups
    )
    assert Counter(out) == Counter(ids) and ids == before
    # The order of the units is the generator's permutation, each unit unbroken.
    units = as_units(ids, groups)
    expected = [i for unit in rng(seed).permutation(len(units)) for i in units[unit]] if ids else []
    assert out == expected
    assert out == corrupt.corrupt_tokens(
        ids, arm("shuffled", unit="word"), rng(seed), filler_id=FILLER, groups=groups
    )


@given(
    grouped(),
    st.floats(0, 1),
    st.sampled_from(["random", "most", "least"]),
    st.sampled_from(["filler", "delete"]),
    st.sampled_from(["random", "occlusion"]),
)
def test_a_mask_hides_exactly_k_units(data, amount, order, fill, selector):
    ids, groups, scores = data
    setting = arm("masked", unit="word", amount=amount, order=order, fill=fill, selector=selector)
    out = corrupt.corrupt_tokens(
        ids, setting, rng(), filler_id=FILLER, scores=scores, groups=groups
    )
    n = len(set(groups))
    k = round(amount * n)
    if fill == "delete":
        assert is_subsequence(out, ids)
        kept = corrupt.corrupt_tokens(
            ids,
            arm("masked", unit="word", amount=amount, order=order, selector=selector),
            rng(),
            filler_id=FILLER,
            scores=scores,
            groups=groups,
        )
        assert out == [i for i in kept if i != FILLER]
        return
    assert len(out) == len(ids)
    assert all(a in (b, FILLER) for a, b in zip(out, ids, strict=False))
    hidden = {g for g, i in zip(groups, out, strict=False) if i == FILLER}
    assert len(hidden) == k and all(
        i == FILLER for g, i in zip(groups, out, strict=False) if g in hidden
    )
    if order != "random" and selector != "random":
        sign = -1 if order == "most" else 1
        totals = [
            sum(s for s, g in zip(scores, groups, strict=False) if g == unit) for unit in range(n)
        ]
        assert hidden == set(sorted(range(n), key=lambda unit: (sign * totals[unit], unit))[:k])


@given(
    grouped(),
    st.one_of(st.integers(1, 40).map(float), st.floats(0, 0.999)),
    st.sampled_from(["random", "occlusion"]),
)
def test_keeping_keeps_the_best_k_in_their_order(data, amount, selector):
    ids, groups, scores = data
    out = corrupt.corrupt_tokens(
        ids,
        arm("kept", unit="word", amount=amount, selector=selector),
        rng(),
        filler_id=FILLER,
        scores=scores,
        groups=groups,
    )
    n = len(set(groups))
    k = min(n, int(amount)) if amount >= 1 else max(round(amount * n), int(amount > 0 and n > 0))
    assert is_subsequence(out, ids)
    units = as_units(ids, groups)
    if selector == "occlusion":
        totals = [
            sum(s for s, g in zip(scores, groups, strict=False) if g == unit) for unit in range(n)
        ]
        best = sorted(sorted(range(n), key=lambda unit: (-totals[unit], unit))[:k])
        assert out == [i for unit in best for i in units[unit]]
    else:
        assert len(out) <= len(ids) and (k < n or out == ids) and (k > 0 or out == [])


# From 1 on an amount is a number where units are kept
@given(ids_lists, st.floats(0, 0.999), st.floats(0, 0.999))
def test_random_masks_and_keeps_are_nested(ids, a, b):
    places, amounts = list(range(len(ids))), sorted((a, b))
    for kind in ("masked", "kept"):
        small, large = (
            set(
                corrupt.corrupt_tokens(
                    places, arm(kind, amount=amount, fill="delete"), rng(), filler_id=FILLER
                )
            )
            for amount in amounts
        )
        assert small >= large if kind == "masked" else small <= large


def test_ties_go_to_the_earlier_unit_in_long_rationales_too():
    ids, scores = list(range(100)), [1.0] * 50 + [2.0] * 50
    keep = corrupt.corrupt_tokens(
        ids, arm("kept", amount=60, selector="occlusion"), rng(), filler_id=FILLER, scores=scores
    )
    assert keep == [*range(10), *range(50, 100)]


def test_what_a_human_did_not_select_is_not_kept():
    selected = [float(i in (2, 5)) for i in range(8)]
    for amount, kept in ((1, [2]), (2, [2, 5]), (6, [2, 5])):
        assert (
            corrupt.corrupt_tokens(
                list(range(8)),
                arm("kept", amount=amount, selector="human"),
                rng(),
                filler_id=FILLER,
                scores=selected,
            )
            == kept
        )


def test_filler_matches_the_length_and_the_rest_is_untouched():
    assert corrupt.corrupt_tokens([5, 6, 7], arm("filler"), None, filler_id=9) == [9, 9, 9]
    assert corrupt.corrupt_tokens([5, 6, 7], arm(""), None, filler_id=9) == [5, 6, 7]
    assert corrupt.corrupt_tokens([5, 6, 7], arm("swapped"), None, filler_id=9) == [5, 6, 7]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("text", RATIONALES)
def test_groups_follow_the_text(name, text):
    piece = f" {text}"
    ids = student(name).encode(piece)
    words, sentences = (
        corrupt.word_groups(student(name), piece),
        corrupt.sentence_groups(student(name), piece),
    )
    assert len(words) == len(sentences) == len(ids) == len(corrupt.offsets(student(name), piece))
    for groups in (words, sentences):
        assert groups == sorted(groups) and sorted(set(groups)) == list(range(len(set(groups))))
    assert len(set(words)) == max(len(text.split()), 1)
    # A sentence is made of whole words, and each group decodes to its word.
    assert len(set(zip(words, sentences, strict=False))) == len(set(words))
    for word, unit in zip(text.split(), as_units(ids, words), strict=False):
        if "<0x" not in word:
            assert student(name).decode(list(unit)).strip() == word


@pytest.mark.parametrize(
    "text, n",
    [
        ("Ice melts. Water is wet!", 2),
        ("One. two? three", 3),
        ("", 0),
        ("no stop", 1),
        ("See e.g. ice. 1. Water. B. Go. So B. Or 4. End", 6),
        ('He said "go." Then left.', 2),
        ("Pi is 3.14 today.", 1),
        ("Is it (really?) so?", 2),
    ],
)
def test_sentences(text, n):
    spans = corrupt.sentence_spans(text)
    assert len(spans) == n
    assert " ".join(text[a:b] for a, b in spans) == " ".join(text.split())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("unit", ["token", "word", "sentence"])
@pytest.mark.parametrize("text", RATIONALES)
def test_every_setting_on_every_student(name, unit, text):
    piece = f" {text}" if text else ""
    model = student(name)
    ids = model.encode(piece)
    scores = rng(1).normal(size=len(ids))
    mix = corrupt.corrupt_text(model, piece, ids, arm("shuffled", unit=unit), rng())
    assert Counter(mix) == Counter(ids)
    n = len(set(corrupt.unit_groups(model, piece, unit) or range(len(ids)))) if ids else 0
    for order in ("random", "most", "least"):
        for fill in ("filler", "delete"):
            for amount in (0.0, 0.5, 1.0):
                setting = arm(
                    "masked", unit=unit, amount=amount, order=order, fill=fill, selector="occlusion"
                )
                out = corrupt.corrupt_text(model, piece, ids, setting, rng(), scores)
                changed = (
                    len(ids) - len(out)
                    if fill == "delete"
                    else sum(a != b for a, b in zip(out, ids, strict=False))
                )
                assert (changed > 0) == (round(amount * n) > 0) or fill == "filler"
                if amount == 1:
                    assert out == ([] if fill == "delete" else [model.filler_id] * len(ids))
                if amount == 0:
                    assert out == ids
    assert (
        corrupt.corrupt_text(model, piece, ids, arm("kept", unit=unit, amount=1000), rng(), scores)
        == ids
    )
    dots = corrupt.corrupt_text(model, piece, ids, arm("filler"), None)
    assert len(dots) == len(ids) and set(model.decode(dots)) <= {".", " "}


def test_a_corruption_reaches_neither_question_nor_label():
    from cotdistill.encode import RATIONALE, encode

    example = Example("q", "What melts?", ("ice", "iron bar"), 1)
    for placement in ("pre_cot", "post_cot"):
        intact = encode(student("tiny-llama"), example, "Ice melts. Iron does not.", Arm(placement))
        rest = [(i, k) for i, k in zip(intact.ids, intact.kinds, strict=False) if k != RATIONALE]
        for kind, amount in (("shuffled", 0), ("masked", 0.5), ("kept", 3), ("filler", 0)):
            bad = encode(
                student("tiny-llama"),
                example,
                "Ice melts. Iron does not.",
                Arm(placement, kind, amount=amount),
                rng=rng(),
            )
            assert bad.ids != intact.ids
            assert [
                (i, k) for i, k in zip(bad.ids, bad.kinds, strict=False) if k != RATIONALE
            ] == rest


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=4), st.integers(0, 60), min_size=2, max_size=60
    ),
    st.integers(0, 5),
)
def test_swaps_are_derangements_among_the_like(lengths, seed):
    partners = swap_partners(lengths, rng(seed))
    assert list(partners) == list(lengths) and sorted(partners.values()) == sorted(lengths)
    assert all(a != b for a, b in partners.items())
    backwards = dict(reversed(lengths.items()))
    assert swap_partners(backwards, rng(seed)) == partners
    # No more than a bucket's worth of questions lies between a question and its donor in length.
    for a, b in partners.items():
        low, high = sorted((lengths[a], lengths[b]))
        assert sum(low < n < high for n in lengths.values()) <= 14


def test_no_question_is_given_a_text_that_reads_like_its_own():
    """Four texts among sixteen questions of one length, as templates make them.

    A donor's text differs wherever it can.
    """
    lengths, texts = {f"q{i}": 9 for i in range(16)}, {f"q{i}": f"text {i % 4}" for i in range(16)}
    for seed in range(20):
        plain, partners = (
            swap_partners(lengths, rng(seed), texts=given) for given in (None, texts)
        )
        assert sorted(partners.values()) == sorted(lengths) and all(
            texts[a] != texts[b] for a, b in partners.items()
        )
        # Drawn anew only where it must be
        assert partners == plain or any(texts[a] == texts[b] for a, b in plain.items())
    # Where it can't
    assert swap_partners({"a": 1, "b": 1}, rng(), texts={"a": "x", "b": "x"}) == {
        "a": "b",
        "b": "a",
    }


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: swap_partners({"a": 1}, rng()), "1 question"),
        (
            lambda: corrupt.corrupt_tokens(
                [1, 2], arm("kept", amount=1, selector="human"), rng(), filler_id=0
            ),
            "no scores",
        ),
        (
            lambda: corrupt.corrupt_tokens(
                [1, 2], arm("kept", amount=1, selector="human"), rng(), filler_id=0, scores=[1]
            ),
            "1 scores",
        ),
        (
            lambda: corrupt.corrupt_tokens(
                [1], arm("kept", amount=1, selector="human"), rng(), filler_id=0, scores=[np.nan]
            ),
            "nan",
        ),
        (
            lambda: corrupt.corrupt_tokens([1, 2], arm("shuffled"), rng(), filler_id=0, groups=[0]),
            "1 groups",
        ),
        (lambda: corrupt.corrupt_tokens([1, 2], arm("shuffled"), None, filler_id=0), "generator"),
    ],
)
def test_bad_input_has_one_clear_error(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.mark.parametrize(
    "text, label, left",
    [
        ("A cup holds tea, and Teas are hot.", "a cup of tea", "A holds and are hot."),
        ("Ice's cold.", "ice", "cold."),
        ("The glass of grasses", "glass", "The of grasses"),
        ("It is of the", "of the", "It is"),
        ("Nothing here", "ice", "Nothing here"),
        ("ice ice", "ice", ""),
    ],
)
def test_words_of_the_answer_are_removed_and_no_others(text, label, left):
    for name in ("tiny-llama", "tiny-gpt2"):
        s, piece = student(name), f" {text}"
        out = corrupt.corrupt_text(s, piece, s.encode(piece), arm("no_label"), None, label=label)
        assert " ".join(s.decode(out).split()) == left


def test_a_bag_draws_by_frequency_and_a_length_is_matched():
    corpus = corrupt.Corpus(np.array([7] * 90 + [8] * 10), 5)
    drawn = corrupt.corrupt_tokens(
        list(range(2000)), arm("bag"), rng(), filler_id=FILLER, corpus=corpus
    )
    assert len(drawn) == 2000 and set(drawn) == {7, 8} and 0.85 < drawn.count(7) / 2000 < 0.95
    for ids, matched in (
        ([1, 2], [1, 2, 1, 2, 1]),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5]),
        ([], []),
    ):
        assert (
            corrupt.corrupt_tokens(
                ids, arm("length_matched"), None, filler_id=FILLER, corpus=corpus
            )
            == matched
        )
    s = student("tiny-llama")
    corpus = corrupt.collect_corpus(s, ["Ice melts.", "", "Ice."])
    assert corpus.tokens.tolist() == s.encode(" Ice melts.") + s.encode(" Ice.")
    assert corpus.length == round((len(s.encode(" Ice melts.")) + len(s.encode(" Ice."))) / 2)


def test_partners_share_the_answer_and_who_has_none_keeps_its_own():
    examples = [
        Example(f"q{i}", "?", ("ice", "tea", f"only {i}"), 0 if i < 4 else 1 if i < 7 else 2)
        for i in range(9)
    ]
    texts, lengths = {e.id: f"text {e.id}" for e in examples}, {e.id: 3 for e in examples}
    for seed in range(5):
        partners = corrupt.choose_partners(arm("other_same"), examples, lengths, texts, rng(seed))
        assert sorted(partners.values()) == sorted(texts) and [
            one for one in partners if partners[one] == one
        ] == ["q7", "q8"]
        label = {e.id: e.label for e in examples}
        assert all(label[a] == label[b] for a, b in partners.items())
    assert (
        corrupt.choose_partners(arm("other_same"), examples[::-1], lengths, texts, rng(4))
        == partners
    )
    with pytest.raises(
        DataError, match="none of 2 training questions has the answer of another one"
    ):
        corrupt.choose_partners(arm("other_same"), examples[7:], lengths, texts, rng())


def test_a_full_mask_is_the_filler_arm_where_the_filler_token_is_dots():
    full = arm("masked", amount=1.0, order="most", selector="occlusion", label_weight=2.0)
    for name in TINY:
        s = student(name)
        same = corrupt.equal_training(s, full)
        dots = corrupt.dots_id(s) == s.filler_id
        assert same == (arm("filler", label_weight=2.0) if dots else full)
        if dots:
            ids = s.encode(" Ice melts.")
            assert corrupt.corrupt_text(
                s, " Ice melts.", ids, full, rng(), [1.0] * len(ids)
            ) == corrupt.corrupt_text(s, " Ice melts.", ids, same, None)
        for other in (
            arm("masked", amount=0.5),
            arm("masked", amount=1.0, fill="delete"),
            arm("filler"),
            arm("kept", amount=1.0),
            arm(""),
        ):
            assert corrupt.equal_training(s, other) == other


@pytest.mark.parametrize(
    "kind, words",
    [
        ("bag", "no training rationales"),
        ("length_matched", "no training rationales"),
        ("no_label", "no marks"),
        ("scrambled", "unknown corruption 'scrambled'"),
    ],
)
def test_a_control_that_lacks_what_it_needs_is_one_line(kind, words):
    with pytest.raises(DataError, match=words):
        corrupt.corrupt_tokens([1, 2], arm(kind), rng(), filler_id=FILLER)


@pytest.mark.parametrize("placement", ["pre_cot", "post_cot"])
@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_shuffles_stand_in_both_places(placement, unit):
    from cotdistill.encode import RATIONALE, encode

    example, text = (
        Example("q", "What melts?", ("ice", "iron bar"), 1),
        ("Ice melts. Iron does not. So it is. One. Two. Six."),
    )
    one = encode(
        student("tiny-llama"), example, text, Arm(placement, "shuffled", unit=unit), rng=rng(1)
    )
    mixed = [i for i, k in zip(one.ids, one.kinds, strict=False) if k == RATIONALE]
    assert Counter(mixed) == Counter(student("tiny-llama").encode(f" {text}")) and mixed != student(
        "tiny-llama"
    ).encode(f" {text}")
