"""Properties that hold for any text.

Labels are read back, tokens come back as text, corruptions keep what they promise, loaders refuse
in one line. Hypothesis looks for the text that breaks them.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cotdistill import corrupt
from cotdistill.arms import (
    CORRUPTIONS,
    LABEL_FORMATS,
    Arm,
    arm_from_name,
    format_target,
    label_text,
    n_kept,
    parse_answer,
    prompt_text,
    split_generation,
)
from cotdistill.elicit.completions import parse_completion
from cotdistill.elicit.prompts import load_demonstrations
from cotdistill.encode import FRAME, LABEL, PROMPT, RATIONALE, encode, example_rng
from cotdistill.errors import DataError, one_line
from cotdistill.examples import LETTERS, Example, Rationale, make_example
from cotdistill.parameters import all_parameters, load_study
from cotdistill.sources import load_examples, load_rationales, write_rationales
from cotdistill.tiny import TINY

few = settings(
    deadline=None,
    max_examples=60,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

# Any text that UTF-8 can hold, and pieces that are likely to break a format: cues, prefixes, other
# scripts, combined emoji, odd blanks.
PIECES = [
    "Answer:",
    "Reason:",
    "\nAnswer:",
    "\nQuestion:",
    "Question:",
    "Options:",
    "(A)",
    "B.",
    "the answer is",
    "<|endoftext|>",
    "<eos>",
    "<bos>",
    "<0x0A>",
    "▁",
    "</think>",
    "ice",
    "ice cream",
    "-",
    "...",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u2028",
    "\x85",
    "\u00a0",
    "\u200b",
    "\0",
    "\x1b[31m",
    "🙂",
    "👩‍👩‍👧",
    "e\u0301",
    "é",
    "日本",
    "שלום",
    "ß",
    "İ",
    '"',
    "\\",
    "{}",
]
character = st.characters(exclude_categories=["Cs"])
text = st.one_of(
    st.text(character, max_size=30),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(character, max_size=4)), max_size=8).map(
        "".join
    ),
)
words = text.filter(lambda t: t.strip())


@st.composite
def questions(draw):
    """A question as `make_example` lets it in, its options different ones.

    Often prefixes of each other.
    """
    choices = draw(st.lists(words, min_size=2, max_size=5))
    if draw(st.booleans()):
        choices += [choices[0] + " " + draw(words)]
    choices = list(dict.fromkeys(" ".join(c.split()) for c in choices))
    assume(len(choices) > 1)
    return make_example("q", draw(words), choices, draw(st.integers(0, len(choices) - 1)), "")


rationale_texts = st.one_of(
    text, st.just(""), st.builds(lambda t, n: " ".join([t] * n), text, st.integers(50, 200))
).map(lambda t: " ".join(t.split()))


# ---------------------------------------------------------------- labels


@few
@given(questions(), st.sampled_from(LABEL_FORMATS))
@example(make_example("q", "?", ["ice", "ice cream", "Ice"], 0, ""), "text")
@example(make_example("q", "?", ["Answer: ice", "Answer:", "Reason:"], 1, ""), "both")
@example(make_example("q", "?", ["...", "!"], 1, ""), "text")
def test_every_label_is_read_back(question, label_format):
    """Written as a student has to write it, a label names its option and no other."""
    for option in range(len(question.choices)):
        written = label_text(question, option, label_format)
        assert written.startswith(" ") and written.endswith("\n") and written.count("\n") == 1
        assert parse_answer(written, question.choices, label_format) == option
        assert (
            parse_answer(written + "Answer: something else", question.choices, label_format)
            == option
        )


@few
@given(questions(), text, st.sampled_from(LABEL_FORMATS))
def test_any_answer_is_an_option_or_a_parse_failure(question, said, label_format):
    found = parse_answer(said, question.choices, label_format)
    assert found is None or 0 <= found < len(question.choices)
    if found is not None and label_format == "text":
        assert (
            said.strip().split("\n")[0].strip(" .!\"'").casefold().split()
            == question.choices[found].strip(" .!\"'").casefold().split()
        )


@few
@given(st.lists(text, min_size=2, max_size=5), words)
def test_a_loaded_option_stays_on_its_line(choices, question):
    """Whatever line breaks an option holds, as it is loaded it has none; blank ones are refused."""
    try:
        loaded = make_example("q", question, choices, 0, "f:1")
    except DataError as error:
        assert any(not c.strip() for c in choices) and str(error).isprintable()
        return
    assert all(len(c.splitlines()) == 1 and c == " ".join(c.split()) for c in loaded.choices)
    options = prompt_text(loaded, "label_only").split("\nOptions:\n")[-1].split("\n")[:-1]
    assert options[-len(choices) :] == [f"- {c}" for c in loaded.choices]


@few
@given(questions(), rationale_texts)
def test_what_a_perfect_student_writes_is_split_right(question, rationale):
    """Each placement's target, read as a generation, gives back its rationale and its label."""
    for placement in ("label_only", "post_cot", "pre_cot"):
        target = "".join(t for _, t in format_target(question, rationale, Arm(placement)))
        reason, label = split_generation(target, placement)
        assert parse_answer(label, question.choices) == question.answer
        assert reason == (rationale if placement != "label_only" else "")


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("name", TINY)
@settings(few, max_examples=40)
@given(
    question=questions(),
    rationale=rationale_texts,
    label_format=st.sampled_from(LABEL_FORMATS),
    placement=st.sampled_from(["label_only", "pre_cot", "post_cot"]),
)
def test_pieces_decode_to_the_text_and_spans_are_exact(
    name, question, rationale, label_format, placement
):
    student, arm = tiny(name), Arm(placement)
    one = encode(student, question, rationale, arm, label_format)
    at = lambda kind: [i for i, k in zip(one.ids, one.kinds, strict=False) if k == kind]
    pieces = format_target(question, rationale, arm, label_format)
    assert (
        len(one.ids) == len(one.kinds) and one.ids[-1] == student.eos_id and one.kinds[-1] == FRAME
    )
    assert at(PROMPT) == student.bos_ids + student.encode(
        prompt_text(question, placement, label_format)
    )
    assert at(LABEL) == student.encode(label_text(question, question.answer, label_format))
    assert at(RATIONALE) == (
        student.encode(f" {rationale}") if rationale and placement != "label_only" else []
    )
    assert not set(one.ids[len(student.bos_ids) : -1]) & set(student.tokenizer.all_special_ids) - {
        student.tokenizer.unk_token_id
    }, "a special token came out of a user's text"
    # Gemma's own mark for a blank cannot be told from one
    as_read = lambda t: t.replace("▁", " ") if name == "tiny-gemma" else t
    assert student.decode(one.ids) == as_read(
        prompt_text(question, placement, label_format) + "".join(t for _, t in pieces)
    )
    assert student.decode(at(LABEL)) == as_read(label_text(question, question.answer, label_format))


@st.composite
def corrupted(draw):
    corruption = draw(
        st.sampled_from(
            [
                c
                for c, entry in CORRUPTIONS.items()
                if c and not {"partner", "corpus"} & set(entry.needs)
            ]
        )
    )
    unit = draw(st.sampled_from(["token", "word", "sentence"]))
    amount = (
        draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        if corruption == "masked"
        else draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 500.0]))
    )
    order = draw(st.sampled_from(["random", "most", "least"]))
    return arm_from_name(
        f"post_cot_{corruption}",
        unit=unit,
        amount=amount,
        order=order,
        fill=draw(st.sampled_from(["filler", "delete"])),
        selector=draw(st.sampled_from(["random", "occlusion"])),
    )


@settings(few, max_examples=100)
@given(question=questions(), rationale=rationale_texts, arm=corrupted(), seed=st.integers(0, 9))
def test_corruptions_keep_what_they_promise(question, rationale, arm, seed):
    student = tiny("tiny-llama")
    intact = encode(student, question, rationale, Arm("post_cot"))
    at = lambda one, kind: [i for i, k in zip(one.ids, one.kinds, strict=False) if k == kind]
    before = at(intact, RATIONALE)
    scores = np.random.default_rng(seed).normal(size=len(before))
    make = lambda s: encode(
        student, question, rationale, arm, rng=example_rng("q", s), scores=scores
    )
    spoilt, after = make(seed), at(make(seed), RATIONALE)
    assert make(seed) == spoilt, "the seed alone decides"
    for kind in (PROMPT, LABEL, FRAME):
        assert at(spoilt, kind) == at(intact, kind)
    piece = f" {rationale}" if rationale else ""
    groups = (
        (corrupt.unit_groups(student, piece, arm.unit) or list(range(len(before))))
        if before
        else []
    )
    sizes, n = Counter(groups), len(set(groups))
    if arm.corruption == "shuffled":
        assert Counter(after) == Counter(before)
    elif arm.corruption == "filler":
        assert after == [corrupt.dots_id(student)] * len(before)
    elif arm.corruption == "kept":
        assert is_subsequence(after, before) and len(after) <= len(before)
        assert len(after) in sums(list(sizes.values()), n_kept(arm.amount, n))
    elif arm.corruption == "no_label":
        assert after == [
            i
            for i, named in zip(
                before, corrupt.label_tokens(student, piece, question.label), strict=False
            )
            if not named
        ]
    elif arm.fill == "delete":
        assert is_subsequence(after, before) and len(before) - len(after) in sums(
            list(sizes.values()), round(arm.amount * n)
        )
    else:
        assert len(after) == len(before) and all(
            a in (b, student.filler_id) for a, b in zip(after, before, strict=False)
        )
        if arm.unit == "token" and student.filler_id not in before:
            assert after.count(student.filler_id) == round(arm.amount * n)


def is_subsequence(part, whole) -> bool:
    rest = iter(whole)
    return all(x in rest for x in part)


def sums(sizes: list[int], k: int) -> set[int]:
    """All sums of k of the sizes (each used once)."""
    reach = [{0}] + [set() for _ in range(k)]
    for size in sizes:
        for used in range(k, 0, -1):
            reach[used] |= {total + size for total in reach[used - 1]}
    return reach[k]


# ---------------------------------------------------------------- files

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=6,
)
GOOD = {
    "id": "b",
    "question": "q?",
    "choices": ["x", "y"],
    "answer": "A",
    "rationale": "r",
    "key_spans": [[0, 1]],
}
rows = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda v: json.dumps(v).encode()),
    st.text(max_size=30).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.tuples(st.sampled_from(sorted(GOOD)), json_values).map(
        lambda change: json.dumps({**GOOD, change[0]: change[1]}).encode()
    ),
    st.integers(0, 200).map(lambda n: json.dumps(GOOD).encode()[:n]),
    st.sampled_from([b"[" * 5000, b'{"id": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"NaN"]),
)


@settings(few, max_examples=200)
@given(rows)
def test_any_line_is_a_question_or_one_line_of_error(line):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_bytes(json.dumps(GOOD | {"id": "a"}).encode() + b"\n" + line + b"\n")
        try:
            found = load_examples(folder, "train")
        except DataError as error:
            assert (
                str(error).isprintable() and "train.jsonl:" in str(error) and len(str(error)) < 1600
            )
        else:
            assert all(
                isinstance(e.id, str)
                and 0 <= e.answer < len(e.choices)
                and len(set(e.choices)) == len(e.choices)
                for e in found
            )
            json.dumps([e.question for e in found], ensure_ascii=False).encode()


@settings(few, max_examples=200)
@given(rows)
def test_any_line_is_a_rationale_or_one_line_of_error(line):
    examples = [Example(i, "q?", ("x", "y"), 0) for i in "ab"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        path.write_bytes(json.dumps(GOOD | {"id": "a"}).encode() + b"\n" + line + b"\n")
        try:
            found = load_rationales(path, examples)
        except DataError as error:
            assert str(error).isprintable() and "r.jsonl:" in str(error) and len(str(error)) < 1600
        else:
            write_rationales(found, path)
            assert load_rationales(path, examples) == found


@few
@given(st.binary(max_size=200))
def test_any_demonstrations_are_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "d.txt").write_bytes(content)
        with pytest.raises(DataError, match="d.txt"):
            load_demonstrations(Path(folder) / "d.txt")


@few
@given(questions(), rationale_texts)
@example(make_example("q", "?", ["B", "A"], 0, ""), "It melts.")
def test_rationales_of_any_text_survive_their_file(question, rationale):
    assume(rationale)
    with tempfile.TemporaryDirectory() as folder:
        found = {"q": Rationale("q", rationale, question.answer, ((0, len(rationale)),))}
        write_rationales(found, Path(folder) / "r.jsonl", [question])
        assert load_rationales(Path(folder) / "r.jsonl", [question]) == found


# ---------------------------------------------------------------- completions


@settings(few, max_examples=200)
@given(text, questions())
@example("Answer:" * 500, make_example("q", "?", ["Answer:", "Answer: A"], 0, ""))
@example("the answer is " * 300 + "not", make_example("q", "?", ["(A)", "B"], 0, ""))
def test_any_completion_is_parsed(raw, question):
    found = parse_completion(raw, question)
    assert isinstance(found.rationale, str) and found.rationale == " ".join(found.rationale.split())
    assert found.answer is None or 0 <= found.answer < len(question.choices)
    assert isinstance(found.contradicts, bool)


@few
@given(questions(), st.sampled_from(["It melts.", "Snow is cold; so be it", "日本 🙂."]))
@example(make_example("q", "?", ["B", "A"], 0, ""), "It melts.")
def test_a_plain_answer_line_is_always_understood(question, reason):
    letter = LETTERS[question.answer]
    assert parse_completion(f" {reason}\nAnswer: ({letter})\n\nQuestion: next?", question)[:2] == (
        reason,
        question.answer,
    )


# ---------------------------------------------------------------- studies and messages

DEFAULTS = {
    key: value
    for stage in all_parameters().values()
    for key, value in stage.items()
    if key != "study"
}
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 3),
    st.floats(),
    st.floats(0, 1),
    text,
    st.dates(),
    st.binary(max_size=5),
    st.lists(st.integers(-2, 9) | st.floats(0, 2) | text, max_size=3),
    st.dictionaries(text, st.integers(), max_size=2),
)


@settings(few, max_examples=120)
@given(st.sampled_from(sorted(DEFAULTS)), scalars)
def test_any_value_of_any_key_has_the_right_type_or_is_refused(key, value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.yaml"
        path.write_text(yaml.safe_dump({key: value}, allow_unicode=True), encoding="utf-8")
        wanted = DEFAULTS[key]
        try:
            found = load_study(str(path))[key]
        except DataError as error:
            assert str(error).isprintable() and key in str(error) and "expected" in str(error)
            fits = type(value) is type(wanted) or type(wanted) is float and type(value) is int
            assert not fits or isinstance(value, (int, float, list)), (
                "a text or a truth value has no limits"
            )
        else:
            assert type(found) is type(wanted) or type(wanted) is float and type(found) is int
            if isinstance(found, list):
                assert all(
                    type(i) is type(item) or type(item) is float and type(i) is int
                    for item in (wanted or [""])[:1]
                    for i in found
                )
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                assert 0 <= found < float("inf")


@few
@given(
    st.text(st.characters(), max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=80)
)
@example(b"? [a]\n: 1\n")
@example(b"<<: {}\n")
@example(b"<<: {lr: 1}\nlr: 2\n")
@example(b"!!set {lr, epochs}")
@example(b"lr: !!float x")
@example(b"lr: !!timestamp x")
@example(b"lr: &a [*a]")
def test_any_file_is_a_study_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "own.yaml").write_bytes(content)
        try:
            found = load_study(str(Path(folder) / "own.yaml"))
        except DataError as error:
            assert str(error).isprintable() and "own.yaml" in str(error)
        else:
            assert set(found) <= {"study", *DEFAULTS}


@few
@given(st.text(st.characters(), max_size=50), st.integers(0, 3000))
def test_messages_are_one_printable_line(message, times):
    made = one_line(message * times)
    assert made.isprintable() and made.encode() is not None
    if message.isprintable() and len(message * times) <= 1500:
        assert made == message * times
    if message.isprintable():
        assert len(made) <= 1500
