"""Targets, spans and parsing, over every arm, label format and tiny student."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotdistill.arms import (
    CORRUPTIONS,
    LABEL_FORMATS,
    SELECTING,
    SELECTORS,
    Arm,
    arm_from_name,
    corruption_of,
    format_target,
    label_text,
    parse_answer,
    prompt_text,
    shown_in,
    split_generation,
)
from cotdistill.encode import FRAME, LABEL, PROMPT, RATIONALE, encode
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example

ARMS = [Arm("label_only"), Arm("pre_cot"), Arm("post_cot")]
words = (
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)
    .map(lambda t: " ".join(t.split()))
    .filter(bool)
)


@pytest.mark.parametrize("label_format", LABEL_FORMATS)
@pytest.mark.parametrize("arm", ARMS, ids=lambda a: a.name)
def test_pieces_join_to_the_text_and_spans_are_exact(
    student, questions, rationales, arm, label_format
):
    for example in questions:
        one = encode(student, example, rationales[example.id].text, arm, label_format)
        prompt = prompt_text(example, arm.placement, label_format)
        pieces = format_target(example, rationales[example.id].text, arm, label_format)
        assert student.decode(one.ids) == prompt + "".join(text for _, text in pieces)
        assert one.ids[-1] == student.eos_id and one.kinds[-1] == FRAME
        span = lambda kind, one=one: student.decode(
            [i for i, k in zip(one.ids, one.kinds, strict=False) if k == kind]
        )
        assert span(LABEL) == label_text(example, example.answer, label_format)
        assert span(PROMPT) == prompt
        assert span(RATIONALE) == (f" {rationales[example.id].text}" if arm.uses_rationale else "")


@pytest.mark.parametrize("arm", ARMS, ids=lambda a: a.name)
def test_border_between_prompt_and_target_does_not_merge(student, arm):
    example = Example("a", "what is cold?", ("ice", "fire"), 0)
    one = encode(student, example, "it melts in the sun.", arm)
    text = prompt_text(example, arm.placement) + "".join(
        t for _, t in format_target(example, "it melts in the sun.", arm)
    )
    assert list(one.ids[len(student.bos_ids) : -1]) == student.encode(text)


def test_bos_stands_once_and_only_where_the_tokenizer_adds_it(student, questions):
    one = encode(student, questions[0], "x", Arm("post_cot"))
    assert list(one.ids[: len(student.bos_ids)]) == student.bos_ids
    assert len(student.bos_ids) == (1 if student.name == "tiny-gemma" else 0)
    if student.bos_ids:
        assert one.ids.count(student.bos_ids[0]) == 1


def test_label_is_the_same_tokens_in_every_arm(student, questions, rationales):
    for example in questions:
        labels = {
            tuple(i for i, k in zip(e.ids, e.kinds, strict=False) if k == LABEL)
            for e in (encode(student, example, rationales[example.id].text, arm) for arm in ARMS)
        }
        assert len(labels) == 1


def test_special_tokens_in_a_text_stay_text(student):
    example = Example("a", "what <|endoftext|> is <eos> it?", ("<bos>", "ice"), 0)
    one = encode(student, example, "<|endoftext|> because <eos>", Arm("post_cot"))
    assert one.ids.count(student.eos_id) == 1


@settings(max_examples=200, deadline=None)
@given(choices=st.lists(words, min_size=2, max_size=6), data=st.data())
def test_what_is_written_is_read_back(choices, data):
    """Under every label format; equal options are one answer, the first of them."""
    option = data.draw(st.integers(0, len(choices) - 1))
    example = Example("a", "q?", tuple(choices), option)
    for label_format in LABEL_FORMATS:
        assert parse_answer(
            label_text(example, option, label_format), example.choices, label_format
        ) == choices.index(choices[option])


@pytest.mark.parametrize(
    "text, label_format, expected",
    [
        (" ice cream\nReason: it is ice", "text", 1),
        ("Ice.", "text", 0),
        (" ICE", "text", 0),
        ("icy", "text", None),
        ("", "text", None),
        (" B\n", "letter", 1),
        ("(B)", "letter", 1),
        ("B.", "letter", 1),
        ("b", "letter", None),
        ("D", "letter", None),
        ("Because", "letter", None),
        ("(B) ice cream", "both", 1),
        ("(A) ice cream", "both", None),
        ("B ice cream", "both", 1),
        ("ice cream", "both", None),
    ],
)
def test_parse_answer(text, label_format, expected):
    assert parse_answer(text, ("ice", "ice cream", "tea"), label_format) == expected


def test_split_generation_of_a_rationale_that_quotes_the_cue():
    assert split_generation(" it says Answer: B here.\nAnswer: ice\n", "pre_cot") == (
        "it says Answer: B here.",
        " ice\n",
    )
    assert split_generation(" no end", "pre_cot") == ("no end", None)
    assert split_generation(" ice\nReason: cold", "post_cot") == ("cold", " ice")


def test_arm_names_round_trip_and_impossible_ones_are_refused():
    for placement in ("pre_cot", "post_cot"):
        for corruption in CORRUPTIONS:
            name = f"{placement}_{corruption}".rstrip("_")
            assert arm_from_name(name).name == name
    for bad in (
        "post",
        "label_only_shuffled",
        "zero_shot_kept",
        "post_cot_scrambled",
        "pre_cot_",
        "",
    ):
        with pytest.raises(DataError, match="unknown arm"):
            arm_from_name(bad)
    for bad in (
        dict(unit="letter"),
        dict(order="best"),
        dict(fill="nothing"),
        dict(amount=1.5),
        dict(label_weight=0),
    ):
        with pytest.raises(DataError):
            arm_from_name("post_cot_masked", **bad)


def test_arm_label_tells_apart_what_the_config_tells_apart():
    arms = [
        arm_from_name("post_cot_masked", amount=a, order=o, selector=s, fill=f)
        for a in (0.25, 0.5)
        for o, s in (("random", "random"), ("most", "occlusion"), ("least", "occlusion"))
        for f in ("filler", "delete")
    ]
    arms += [
        arm_from_name("post_cot_kept", amount=a, selector=s, unit=u)
        for a in (15, 0.2)
        for s in ("random", "saliency")
        for u in ("token", "word")
    ]
    arms += [
        arm_from_name(f"{p}_shuffled", unit=u, fresh=f)
        for p in ("pre_cot", "post_cot")
        for u in ("token", "word", "sentence")
        for f in (True, False)
    ] + [Arm("post_cot"), Arm("post_cot", label_weight=4.0)]
    assert (
        len({a.label for a in arms})
        == len({str(sorted(a.config.items())) for a in arms})
        == len(arms)
    )
    assert arms[0].intact.label == "post_cot"


def test_options_carry_letters_only_where_the_label_is_one(questions):
    assert "(A)" not in prompt_text(questions[0], "post_cot", "text")
    assert prompt_text(questions[0], "pre_cot", "letter").endswith("Reason:")
    assert all(
        f"({LETTERS[i]}) {c}" in prompt_text(questions[0], "label_only", "both")
        for i, c in enumerate(questions[0].choices)
    )


def test_one_table_of_corruptions_has_a_function_each():
    """A new arm is one function with its entry.

    An entry without one would be an intact arm under another name.
    """
    assert list(CORRUPTIONS)[0] == "" and all(e.function for n, e in CORRUPTIONS.items() if n)
    for name, entry in CORRUPTIONS.items():
        assert set(entry.needs) <= {
            "rng",
            "scores",
            "label",
            "corpus",
            "partner",
        } and entry.figure in ("shuffle", "masking", "key_tokens")
        assert set(entry.fields) < {f.name for f in fields(Arm)}
        assert ("unit" in entry.fields or "amount" in entry.fields) == (
            "[" in Arm("post_cot", name, unit="word").label
        )


@pytest.mark.parametrize(
    "name, config, label",
    [
        ("post_cot", {}, "post_cot"),
        ("pre_cot_swapped", {}, "pre_cot_swapped"),
        ("post_cot_filler", {}, "post_cot_filler"),
        ("post_cot_shuffled", dict(unit="word", fresh=False), "post_cot_shuffled[word]"),
        (
            "post_cot_kept",
            dict(unit="token", amount=5.0, selector="saliency"),
            "post_cot_kept[5,saliency]",
        ),
        (
            "pre_cot_masked",
            dict(unit="sentence", amount=0.5, order="most", selector="occlusion", fill="delete"),
            "pre_cot_masked[50%,most:occlusion,delete,sentence]",
        ),
    ],
)
def test_configs_and_labels_are_those_of_earlier_runs(name, config, label):
    """Word for word: they are in run keys and published tables.

    A loss of its own is in the label and not in this part.
    """
    arm, (placement, _, corruption) = (
        arm_from_name(name, **config),
        name.replace("_cot", "_cot|", 1).partition("|"),
    )
    wanted = dict(placement=placement, corruption=corruption.strip("_"), label_weight=1.0, **config)
    assert arm.config == wanted and arm.label == label and arm.intact == Arm(placement)
    other = replace(arm, loss="balanced")
    assert other.config == wanted and other.intact.label == f"{placement}[loss=balanced]"
    assert other.label == (
        f"{label[:-1]},loss=balanced]" if "[" in label else f"{label}[loss=balanced]"
    )


def test_a_label_says_which_figure_shows_it():
    for label, kind, figure in (
        ("zero_shot", "", "placement"),
        ("post_cot[loss=token_mean]", "", "placement"),
        ("pre_cot_other_same", "other_same", "shuffle"),
        ("post_cot_kept[5,random]", "kept", "key_tokens"),
        ("post_cot_masked[50%,random]", "masked", "masking"),
        ("post_cot_length_matched", "length_matched", "shuffle"),
    ):
        assert corruption_of(label) == kind
        assert [
            f for f in ("placement", "shuffle", "masking", "key_tokens") if shown_in(f, label)
        ] == [figure]
    assert corruption_of("word frequency") is None and not shown_in(
        "placement", "post_cot_scrambled"
    )


def test_a_wrong_loss_is_one_line():
    with pytest.raises(
        DataError, match="arm post_cot: loss is 'sum'; expected one of , token_mean, balanced"
    ):
        arm_from_name("post_cot", loss="sum")


def test_scores_are_needed_where_something_is_ranked():
    for name, options, needed in (
        ("post_cot_kept", dict(selector="tfidf"), True),
        ("post_cot_kept", {}, False),
        ("post_cot_bag", {}, False),
        ("post_cot_masked", dict(selector="tfidf"), False),
        ("post_cot_shuffled", dict(selector="tfidf"), False),
        ("post_cot_masked", dict(selector="tfidf", order="most"), True),
    ):
        assert arm_from_name(name, **options).needs_scores == needed


def test_the_names_of_selectors_are_those_of_the_methods():
    from cotdistill.attribution.methods import METHODS

    assert set(SELECTORS) == set(METHODS) and set(SELECTING) < set(SELECTORS)
