"""Prompts, decoding with a shared prefix, records, parsing, quality and filters, against HF's own
code and brute force.
"""

import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import sliding_student
from hypothesis import given, settings
from hypothesis import strategies as st
from teachers import group_settings, group_source

from cotdistill import decode
from cotdistill.decode import generate, next_probabilities, prefix_cache
from cotdistill.elicit import local
from cotdistill.elicit.completions import parse_completion
from cotdistill.elicit.local import elicit_transformers, time_shared_prefix
from cotdistill.elicit.prompts import (
    Demonstration,
    build_messages,
    build_prompt,
    demonstrations_path,
    load_demonstrations,
    prompt_hash,
    prompt_ids,
)
from cotdistill.elicit.quality import (
    choose_rationales,
    compare_teachers,
    filter_rationales,
    names_letter,
    names_text,
    quality_card,
    remove_label,
    repeats_itself,
)
from cotdistill.elicit.records import read_records, rebuild_prompt
from cotdistill.elicit.teacher import from_teacher
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Dataset, Example, Rationale
from cotdistill.readings import read_card
from cotdistill.students import load_student
from cotdistill.tiny import TINY

torch.set_num_threads(1)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
EXAMPLES = [
    Example("a", "What melts in the sun?", ("ice", "wood"), 0),
    Example(
        "b",
        "Which of these two things is used for cutting bread in the kitchen?",
        ("a spoon", "a knife"),
        1,
    ),
    Example("c", "Who knows how?", ("the baker", "nobody at all", "the cat"), 2),
]
SHOWN = [
    Demonstration(
        Example("d1", "What color is snow?", ("white", "red"), 0),
        "Snow is frozen water. It is white.",
    ),
    Demonstration(
        Example("d2", "What is a cup used for?", ("sawing", "drinking"), 1),
        "A cup holds tea. Tea is for drinking.",
    ),
]


def record(question_id, sample=0, rationale="Because.", answer="A", **changes):
    return {
        "id": question_id,
        "sample": sample,
        "prompt_hash": "h",
        "prefix": "p",
        "question": "q",
        "mode": "blind",
        "teacher": "t",
        "revision": "r",
        "decoding": {"temperature": 0},
        "raw": "",
        "rationale": rationale,
        "answer": answer,
        "contradicts": False,
        "cut_off": False,
        "malformed": "",
        "seconds": 1.0,
        **changes,
    }


# --- demonstrations and prompts


@pytest.mark.parametrize(
    "dataset", ["commonsense_qa", "openbookqa", "quarel", "microworld/everyday", "/some/own/folder"]
)
def test_the_demonstrations_are_six_worked_questions(dataset):
    shown = load_demonstrations(demonstrations_path(dataset))
    assert len(shown) == 6
    assert (
        len({d.example.question for d in shown}) == 6
        and len({d.example.answer for d in shown}) >= 2
    )
    for d in shown:
        assert not names_letter(d.reason, d.example.answer) and not repeats_itself(d.reason)
        assert parse_completion(
            f" {d.reason}\nAnswer: ({LETTERS[d.example.answer]})", d.example
        ) == (d.reason, d.example.answer, False)


GOOD = "Question: q?\nOptions:\n(A) x\n(B) y\nReason: r.\nAnswer: (B)\n"


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("# nothing\n", "", "no demonstration"),
        (GOOD + "\nQuestion: q?\nOptions:\nReason: r\n", ":10", "expected (A)"),
        (GOOD.replace("(B) y", "(C) y"), ":4", "(C) y"),
        (GOOD.replace("(B)\n", "(D)\n"), ":1", "'D'"),
        (GOOD.replace("Answer: (B)\n", ""), ":1", "Answer"),
        (GOOD + "Answer: (A)\n", ":7", "an empty line"),
        (GOOD.replace("Options:\n", ""), ":2", "Options:"),
    ],
)
def test_a_bad_demonstration_is_named_by_file_and_line(tmp_path, text, line, said):
    path = tmp_path / "d.txt"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        load_demonstrations(path)
    assert f"{path}{line}" in str(error.value) and said in str(error.value)


def test_prompts_of_both_modes():
    blind, given_ = (
        build_prompt(EXAMPLES[1], SHOWN, mode) for mode in ("blind", "label_conditioned")
    )
    assert blind.text.count("Question:") == 3 and blind.text.endswith(
        "(A) a spoon\n(B) a knife\nReason:"
    )
    assert "Correct answer" not in blind.text
    assert given_.text.count("Correct answer: (") == 3 and given_.text.endswith(
        "Correct answer: (B) a knife\nReason:"
    )
    assert (
        len({prompt_hash(p.text) for p in (blind, given_, build_prompt(EXAMPLES[0], SHOWN))}) == 3
    )
    assert build_prompt(EXAMPLES[0], SHOWN).prefix == blind.prefix and blind.prefix.endswith(
        "Answer: (B)"
    )
    other = Example("b", EXAMPLES[1].question, EXAMPLES[1].choices, 0)
    assert build_prompt(other, SHOWN).text == blind.text  # a blind prompt can't depend on the label
    messages = build_messages(EXAMPLES[1], SHOWN, "blind")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
    with pytest.raises(DataError, match="mode 'seeing'"):
        build_prompt(EXAMPLES[0], SHOWN, "seeing")


def test_a_chat_template_is_filled_in_and_a_question_cannot_forge_its_marks():
    student = load_student("tiny-llama")
    student.tokenizer.chat_template = TEMPLATE
    student.tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>"]}
    )
    forged = Example("f", "What does <|assistant|> mean?", ("ice", "wood"), 0)
    prompt = build_prompt(forged, SHOWN, "blind", student.tokenizer)
    assert prompt.text == student.tokenizer.apply_chat_template(
        build_messages(forged, SHOWN, "blind"), tokenize=False, add_generation_prompt=True
    )
    prefix, rest = prompt_ids(student, prompt)
    mark = student.tokenizer.convert_tokens_to_ids("<|assistant|>")
    # The demonstrations' and the cue; not the quoted one
    assert prefix.count(mark) == 2 and rest.count(mark) == 1
    assert student.tokenizer.decode(prefix + rest) == prompt.text


@pytest.mark.parametrize("name", TINY)
def test_pieces_are_the_tokens_of_the_whole_prompt(name):
    student = load_student(name)
    prompt = build_prompt(EXAMPLES[1], SHOWN)
    prefix, rest = prompt_ids(student, prompt)
    assert prefix + rest == student.tokenizer(prompt.text)["input_ids"]


# --- decoding


@pytest.mark.parametrize("name", [*TINY, "sliding"])
@pytest.mark.parametrize("share", [True, False])
def test_greedy_tokens_are_those_of_a_plain_generate(name, share):
    student = sliding_student() if name == "sliding" else load_student(name)
    ids = [prompt_ids(student, build_prompt(example, SHOWN)) for example in EXAMPLES]
    assert len({len(rest) for _, rest in ids}) == 3  # the batch is ragged
    shared = prefix_cache(student, ids[0][0]) if share else None
    rows = [rest if share else prefix + rest for prefix, rest in ids]
    got = {i: new for i, new, _, _ in generate(student, rows, shared, max_new_tokens=20, stop="")}
    for i, (prefix, rest) in enumerate(ids):
        plain = student.model.generate(
            torch.tensor([prefix + rest]),
            attention_mask=torch.ones(1, len(prefix + rest), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
        )[0, len(prefix + rest) :].tolist()
        assert (
            got[i] == plain[: plain.index(student.eos_id)]
            if student.eos_id in plain
            else got[i] == plain
        )
    assert student.model.config._attn_implementation == "sdpa"


def test_logits_over_a_shared_prefix_are_close_to_the_whole(monkeypatch):
    """Greedy tokens could agree by luck: the logits themselves, every step, row by row."""
    from cotdistill import decode
    from cotdistill.decode import next_token_logits

    student, seen, head = sliding_student(), [], next_token_logits
    ids = [prompt_ids(student, build_prompt(example, SHOWN)) for example in EXAMPLES]
    shared = prefix_cache(student, ids[0][0])
    monkeypatch.setattr(
        decode, "next_token_logits", lambda *given: seen.append(head(*given)) or seen[-1]
    )
    new = {
        i: n
        for i, n, _, _ in generate(student, [r for _, r in ids], shared, max_new_tokens=6, stop="")
    }
    assert len(seen) == 6
    for i, (prefix, rest) in enumerate(ids):
        whole = student.model(torch.tensor([prefix + rest + new[i]])).logits[
            0, len(prefix + rest) - 1 : -1
        ]
        assert torch.allclose(
            torch.stack([logits[i] for logits in seen])[: len(whole)], whole, atol=1e-4
        )


@pytest.mark.parametrize(
    "temperature, top_p, top_k",
    [(1.0, 1.0, 0), (0.7, 0.95, 50), (1.3, 0.5, 0), (1.0, 0.9, 3), (0.5, 1.0, 5)],
)
def test_the_sampling_distribution_is_that_of_transformers(temperature, top_p, top_k):
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(1)).double() * 3
    wanted = TemperatureLogitsWarper(temperature)(None, logits)
    wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
    wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
    assert torch.allclose(
        next_probabilities(logits, temperature, top_p, top_k), torch.softmax(wanted, -1)
    )


def test_samples_do_not_depend_on_the_batch(tmp_path):
    student, sampled = (
        load_student("tiny-llama"),
        dict(demonstrations=SHOWN, n=2, temperature=1.0, top_k=20, max_new_tokens=8, seed=3),
    )
    one = elicit_transformers(
        EXAMPLES, student, tmp_path / "1.jsonl", batch_size=1, **group_settings(**sampled)
    )
    all_ = elicit_transformers(
        EXAMPLES[::-1], student, tmp_path / "6.jsonl", batch_size=6, **group_settings(**sampled)
    )
    raws = {(r["id"], r["sample"]): r["raw"] for r in one}
    assert raws == {(r["id"], r["sample"]): r["raw"] for r in all_} and len(set(raws.values())) == 6
    again = elicit_transformers(
        EXAMPLES, student, tmp_path / "s.jsonl", **group_settings(**{**sampled, "seed": 4})
    )
    assert [r["raw"] for r in again] != [r["raw"] for r in one]


def test_stops_and_cut_offs():
    student = load_student("tiny-gpt2")
    row = sum(prompt_ids(student, build_prompt(EXAMPLES[0], SHOWN)), [])
    ((_, full, cut, seconds),) = generate(student, [row], max_new_tokens=12, stop="")
    assert cut and len(full) == 12 and seconds > 0
    stop = student.decode(full[3:5])
    ((_, new, cut, _),) = generate(student, [row], max_new_tokens=12, stop=stop)
    assert (
        not cut
        and student.decode(new).index(stop) + len(stop) >= len(student.decode(new)) - len(stop)
        and len(new) <= 5
    )
    ((_, new, cut, _),) = generate(student, [row], max_new_tokens=12, stop="", end_ids={full[4]})
    assert not cut and new == full[: full.index(full[4])]


def test_the_shared_prefix_is_timed_against_the_whole_prompt():
    times = time_shared_prefix(
        EXAMPLES, load_student("tiny-llama"), SHOWN, max_new_tokens=3, repeats=1
    )
    assert times["same"] == times["rationales"] == 3 and times["ratio"] == pytest.approx(
        times["whole_seconds"] / times["shared_seconds"]
    )


# --- records


def test_records_are_kept_resumed_and_rebuilt(tmp_path, monkeypatch, capsys):
    student, path = load_student("tiny-llama"), tmp_path / "out" / "r.jsonl"
    how = group_settings(demonstrations=SHOWN, max_new_tokens=6)
    first = elicit_transformers(EXAMPLES[:2], student, path, **how)
    assert "2 of 2 answers" in capsys.readouterr().out
    assert [r["id"] for r in first] == ["a", "b"] and all(r["cut_off"] for r in first)
    for r, example in zip(first, EXAMPLES[:2], strict=True):
        assert rebuild_prompt(r, path) == build_prompt(example, SHOWN).text
        ids = student.tokenizer(rebuild_prompt(r, path), return_tensors="pt")
        assert (
            student.decode(
                student.model.generate(**ids, max_new_tokens=6, do_sample=False)[
                    0, ids.input_ids.shape[1] :
                ]
            )
            == r["raw"]
        )
    content = path.read_bytes()
    path.write_bytes(content + b'{"id": "c", "sample": 0, "raw": "torn')
    assert read_records(path) == first
    asked, real = [], decode.generate
    monkeypatch.setattr(
        local,
        "generate",
        lambda student, rows, *a, **k: asked.append(len(rows)) or real(student, rows, *a, **k),
    )
    assert [r["id"] for r in elicit_transformers(EXAMPLES, student, path, **how)] == ["a", "b", "c"]
    assert asked == [1] and path.read_bytes().startswith(content) and len(read_records(path)) == 3
    elicit_transformers(EXAMPLES, student, path, **how)
    assert asked == [1]  # nothing is left to ask
    elicit_transformers(
        EXAMPLES,
        student,
        path,
        **group_settings(demonstrations=SHOWN, max_new_tokens=6, mode="label_conditioned"),
    )
    assert asked == [1, 3] and len(read_records(path)) == 6
    with pytest.raises(DataError, match="no prefix"):
        rebuild_prompt({**first[0], "prefix": "0"}, path)
    with pytest.raises(DataError, match="hash"):
        rebuild_prompt({**first[0], "question": "another"}, path)


def test_a_damaged_or_foreign_file_is_named_by_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record("a")) + "\nnot json\n" + json.dumps(record("b")) + "\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: malformed"):
        read_records(path)
    path.write_text('{"id": "a", "rationale": "x"}\n')
    with pytest.raises(DataError, match=r"r\.jsonl:1: no field 'sample'"):
        read_records(path)


def test_a_second_writer_waits_and_finds_everything_recorded(tmp_path, monkeypatch, capsys):
    """Two `make elicit` at once: each question is asked once, and who waits says for whom."""
    path, student, asked, inside = (
        tmp_path / "r.jsonl",
        load_student("tiny-llama"),
        [],
        threading.Event(),
    )
    generate = decode.generate

    def slow(student, rows, *args, **how):
        asked.append(len(rows))
        inside.set()
        time.sleep(1.5)
        yield from generate(student, rows, *args, **how)

    monkeypatch.setattr(local, "generate", slow)
    ask = lambda: elicit_transformers(
        EXAMPLES, student, path, **group_settings(demonstrations=SHOWN, max_new_tokens=4)
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask)
        assert inside.wait(30)
        second = ask()
        assert second == first.result() and sum(asked) == len(EXAMPLES) == len(read_records(path))
    out = capsys.readouterr().out
    assert f"waiting for the records {path}: held by pid {os.getpid()} on host" in out


@pytest.mark.parametrize(
    "how, said",
    [
        ({"n": 2}, "temperature 0"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 2000}, "expected at most 1024"),
        ({"chat": True}, "no chat template"),
    ],
)
def test_settings_out_of_range(tmp_path, how, said):
    with pytest.raises(DataError, match=said):
        elicit_transformers(
            EXAMPLES,
            load_student("tiny-llama"),
            tmp_path / "r.jsonl",
            **group_settings(demonstrations=SHOWN, **how),
        )
    with pytest.raises(DataError, match="duplicate id 'a'"):
        elicit_transformers(
            [EXAMPLES[0]] * 2,
            load_student("tiny-llama"),
            tmp_path / "r.jsonl",
            demonstrations=SHOWN,
        )


# --- what a completion says

ICE = Example("i", "What melts?", ("ice cream", "a knife", "ice"), 0)


@pytest.mark.parametrize(
    "raw, rationale, answer, contradicts",
    [
        (" It is cold.\nAnswer: (A)\n\nQuestion: next? Answer: (B)", "It is cold.", 0, False),
        (" It is cold. So the answer is (C).", "It is cold.", 2, False),
        (" Steel is hard. The correct answer is a knife.", "Steel is hard.", 1, False),
        (" Cold things melt.\nAnswer: ice cream", "Cold things melt.", 0, False),
        (" Cold things melt.\nAnswer: ice", "Cold things melt.", 2, False),
        (" Cold.\n**Answer:** B. a knife", "Cold.", 1, False),
        ("Answer: (B)\nReason: It is hard.", "It is hard.", 1, False),
        ("<think>Answer: (A)</think> It is hard.\nAnswer: (B)", "It is hard.", 1, False),
        (" The answer is B. Wait, actually A.", "The answer is B. Wait, actually A.", 0, True),
        (
            " The answer is (B) at first sight.\nActually, it is (A).\nAnswer: (A)",
            "The answer is (B) at first sight. Actually, it is (A).",
            0,
            True,
        ),
        (" Hard.\nAnswer: (B)\nAnswer: (C)", "Hard.", 2, True),
        (" Hard.\nAnswer: (B) ice", "Hard.", None, True),
        (" The answer is not B.\nAnswer: (A)", "The answer is not B.", 0, False),
        (
            " A knife is hard, and no knife melts. Actually a knife cuts.\nAnswer: (A)",
            "A knife is hard, and no knife melts. Actually a knife cuts.",
            0,
            False,
        ),
        (" Reasoning: Ice floats.\nAnswer: (A)", "Ice floats.", 0, False),
        ("**Reason:** Cold.\nAnswer: (A)", "Cold.", 0, False),
        (" Reasonable people say so.\nAnswer: (A)", "Reasonable people say so.", 0, False),
        (
            " The answer is (B) because a blade is hard.",
            "The answer is (B) because a blade is hard.",
            1,
            False,
        ),
        ("Answer: (B) because a blade is hard.", "because a blade is hard.", 1, False),
        ("Answer: (B)\nReason: It is hard.\nAnswer: (B)", "It is hard.", 1, False),
        (" The answer is not a knife.\nAnswer: (A)", "The answer is not a knife.", 0, False),
        (" There is no ice.\nAnswer: (B)", "There is no ice.", 1, False),
        (" It would rather be ice.\nAnswer: (B)", "It would rather be ice.", 1, False),
        (" No, it is ice.\nAnswer: (C)", "No, it is ice.", 2, False),
        (" Hard.\nAnswer: (A) or (B)", "Hard.", None, True),
        (" The answer is (A), and (B) is too soft.", "", 0, False),
        (" The answer is A, or rather B.", "", 1, True),
        (" I can't say.", "I can't say.", None, False),
        (" Hard.\nAnswer: (E)", "Hard.", None, False),
        ("", "", None, False),
        (" Two\nlines.\nAnswer:", "Two lines.", None, False),
    ],
)
def test_parse_completion(raw, rationale, answer, contradicts):
    assert parse_completion(raw, ICE) == (rationale, answer, contradicts)


def test_equal_options_are_one_conclusion():
    twice = Example("t", "What are we?", ("mortal", "dying", "mortal"), 0)
    for said in ("mortal", "(C)", "(C) mortal", "(A) mortal", "C"):
        assert parse_completion(f" So.\nAnswer: {said}", twice) == ("So.", 0, False)


# --- choose, card, filters


def test_choose_takes_the_first_that_agrees():
    rows = [
        record("a", 1, "good", "A"),
        record("a", 0, "bad", "B"),
        record("a", 2, "late", "A"),
        record("b", 0, "only", "A"),
        record("c", 0, "", "C"),
        record("c", 1, "none", None),
    ]
    chosen = choose_rationales(rows, EXAMPLES)
    assert {question_id: (r.text, r.answer) for question_id, r in chosen.items()} == {
        "a": ("good", 0),
        "b": ("only", 0),
        "c": ("", 2),
    }
    assert choose_rationales(rows, EXAMPLES, "first")["a"].text == "bad"
    with pytest.raises(DataError, match="2 settings"):
        choose_rationales([record("a"), record("b", mode="label_conditioned")], EXAMPLES)


def test_quality_card_counts_what_it_says():
    copied = SHOWN[0].reason
    rows = [
        record("a", 0, "Option A is ice, which is cold.", "A"),
        record("a", 1, "Wood burns.", "B", contradicts=True),
        record("b", 0, copied, None),
        record("b", 1, copied.upper(), "B", cut_off=True, seconds=3.0),
        record("c", 0, "one two three four five one two three four five one two three four", "C"),
        record("c", 1, "", None, malformed="no text"),
    ]
    card = quality_card(rows, EXAMPLES, SHOWN)
    wanted = {
        "n": 6,
        "questions": 3,
        "covered": 3,
        "agrees": 3 / 6,
        "agrees_if_answered": 3 / 4,
        "abstains": 2 / 6,
        "contradicts": 1 / 6,
        "chance": (1 / 2 + 1 / 2 + 1 / 3) / 3,
        "top_answer": 2 / 4,
        "names_letter": 1 / 6,
        "names_text": 1 / 6,
        "leaks": 1 / 6,
        "loops": 1 / 6,
        "copies": 2 / 6,
        "duplicates": 1 / 6,
        "unfinished": 1 / 6,
        "cut_off": 1 / 6,
        "malformed": 1 / 6,
        "seconds_mean": 8 / 6,
        "words_mean": (7 + 2 + 7 + 7 + 14) / 5,
        "words_median": 7,
    }
    assert card.to_dict() == pytest.approx(wanted)
    assert json.loads(card.to_json())["n"] == 6
    recorded = {
        "a": Rationale("a", "The answer is wood.", 0),
        "b": Rationale("b", "A knife cuts.", 1),
    }
    card2 = quality_card(recorded, EXAMPLES)
    assert (
        card2.agrees == 1
        and card2.contradicts == 0.5
        and card2.names_text == 0.5
        and np.isnan(card2.cut_off)
        and np.isnan(card2.copies)
    )
    both = compare_teachers({"asked": card, "recorded": card2})
    assert list(both.columns) == ["asked", "recorded"] and both.loc["n"].tolist() == [6, 2]
    with pytest.raises(DataError, match="unknown id 'z'"):
        quality_card({"z": Rationale("z", "x")}, EXAMPLES)


def test_filters_count_what_they_remove():
    rationales = {
        "a": Rationale("a", "The ice melts; (A) it is.", 0, ((4, 7),)),
        "b": Rationale("b", "Spoons stir.", 0),
        "c": Rationale("c", "No one knows but cats know a lot of things.", 2),
    }
    kept, counts = filter_rationales(
        rationales, EXAMPLES, keep_agreeing=True, scrub_label=True, max_tokens=8
    )
    assert list(counts.index) == ["with_text", "keep_agreeing", "scrub_label", "max_tokens"]
    assert (
        counts.removed.tolist() == [0, 1, 0, 1]
        and counts.changed.tolist() == [0, 0, 1, 0]
        and counts.after.tolist() == [3, 2, 2, 1]
    )
    assert kept == {"a": Rationale("a", "This one melts; this one it is.", 0)}
    same, counts = filter_rationales({**rationales, "b": Rationale("b", " ")}, EXAMPLES)
    assert (
        set(same) == {"a", "c"} and counts.removed.tolist() == [1] and same["a"] is rationales["a"]
    )
    with pytest.raises(DataError, match="max_tokens"):
        filter_rationales(rationales, EXAMPLES, max_tokens=0)


WORDS = "ice the a option this A (A) answer is knife, sharp; it such Ice-cream cream that one"
WORD = st.sampled_from(WORDS.split())


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(WORD, max_size=12).map(" ".join),
    label=st.lists(WORD, min_size=1, max_size=3).map(" ".join),
)
def test_nothing_names_the_label_after_scrubbing(text, label):
    example = Example("x", "q", (label, "another"), 0)
    scrubbed = remove_label(text, example)
    words = re.findall(r"\w+", label.lower())
    if not set(words) & {"this", "option", "that", "one", "it", "such", "the", "a"}:
        assert not names_text(scrubbed, label)
    assert not names_letter(scrubbed, 0)


# --- what notebook 01 calls


def test_from_teacher_takes_rationales_from_where_it_is_told(tmp_path):
    own = {"a": Rationale("a", "It melts.", 0)}
    data = Dataset("d", EXAMPLES, [], [], own)
    call = lambda teacher, **how: from_teacher(
        teacher,
        EXAMPLES,
        data,
        tmp_path / f"{teacher}.jsonl",
        **group_source(demonstrations=SHOWN, **how),
    )
    gold, asked = call("gold")
    assert gold == own and asked == [] and gold is not own
    (tmp_path / "recorded.json").write_text(
        json.dumps({"id": "b", "rationale": "Knives cut.", "answer": "B"}) + "\n"
    )
    found, asked = call("recorded", recorded=str(tmp_path / "recorded.json"))
    assert {question_id: (r.text, r.answer) for question_id, r in found.items()} == {
        "b": ("Knives cut.", 1)
    } and asked == []
    found, asked = call("transformers", model="tiny-llama", mode="blind", max_new_tokens=8)
    assert [r["id"] for r in asked] == list("abc") and asked == sorted(
        read_records(tmp_path / "transformers.jsonl"), key=lambda r: r["id"]
    )
    assert {question_id: r.text for question_id, r in found.items()} == {
        r["id"]: r["rationale"] for r in asked
    }


@pytest.mark.parametrize(
    "teacher, how, said",
    [
        ("oracle", {}, "expected one of gold, recorded, transformers, openai"),
        ("recorded", {}, "`rationales`, a JSONL file"),
        ("transformers", {}, "`teacher_model`"),
        ("openai", {"model": "m"}, "`teacher_model` and `base_url`"),
        ("gold", {}, "rationales in the data"),
    ],
)
def test_a_teacher_that_lacks_something_says_what(tmp_path, teacher, how, said):
    from types import SimpleNamespace

    with pytest.raises(DataError, match=re.escape(said)):
        from_teacher(
            teacher,
            EXAMPLES,
            SimpleNamespace(rationales={}, train=[], validation=[]),
            tmp_path / "x",
            **group_source(demonstrations=SHOWN, **how),
        )


def test_a_card_is_read_in_its_own_numbers():
    records = [
        record("a", answer="A", rationale="Ice melts in the sun."),
        record("b", answer="A", rationale="A knife cuts."),
        record("c", answer=None, rationale="Ice melts in the sun."),
    ]
    card = quality_card(records, EXAMPLES)
    said = read_card(card)
    chance = 100 * np.mean([1 / 2, 1 / 2, 1 / 3])
    assert (
        "3 of 3 questions are covered; 33.3 % conclude the gold answer" in said
        and f"(chance {chance:.1f} %)" in said
    )
    assert (
        "33.3 % conclude nothing" in said
        and "makes up 100 %" in said
        and "66.7 % name the label" in said
        and "33.3 % are duplicates" in said
    )
    assert "no answer was recorded" in read_card(quality_card([record("a", answer=None)], EXAMPLES))


def test_a_card_of_rationales_without_answers_says_so_and_shows_no_nan():
    """Gold rationales of own data state no answer: neither 0 % nor nan % is true of them."""
    gold = {"a": Rationale("a", "Ice melts in the sun."), "b": Rationale("b", "A knife cuts.")}
    card = quality_card(gold, EXAMPLES)
    assert (
        np.isnan(card["agrees"])
        and np.isnan(card["abstains"])
        and np.isnan(card["agrees_if_answered"])
    )
    said = read_card(card)
    assert "state no answer of their own" in said and "not applicable" in said and "nan" not in said
    for records in ([record("a", answer=None)], [record("a", answer=None, rationale="")]):
        said = read_card(quality_card(records, EXAMPLES))
        assert "no answer was recorded" in said and "nan" not in said
    assert quality_card([record("a", answer=None)], EXAMPLES)["agrees"] == 0, (
        "who was asked and did not answer does not agree"
    )
    assert "nan" not in read_card(
        quality_card({"a": Rationale("a", "Ice.", 0), "b": Rationale("b", "A knife.")}, EXAMPLES)
    )
