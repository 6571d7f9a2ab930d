"""Scores and generations against transformers' own generate, one question at a time, uncached."""

import pytest
import torch
from conftest import cut, generate_plainly, prompt_ids

from cotdistill import decode
from cotdistill.arms import Arm, label_text, parse_answer
from cotdistill.decode import (
    line_ids,
    prefill,
)
from cotdistill.encode import encode_all
from cotdistill.evaluate import accuracy, evaluate, most_mentioned, score_options, validation_scores
from cotdistill.examples import Example
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.blocks import blocks_of, has_trunk
from cotdistill.train import fine_tune

LIMITS = dict(max_new_tokens=12, max_label_tokens=6)


def brute_score(student, prefix, option):
    ids = torch.tensor([prefix + option])
    with torch.no_grad():
        logp = student.model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(logp[len(prefix) - 1 + i, t].item() for i, t in enumerate(option))


def test_option_scores_equal_brute_force_and_leave_the_cache(student, questions):
    state = prefill(student, [prompt_ids(student, e, "label_only") for e in questions])
    before = state.cache.get_seq_length()
    options = [[student.encode(label_text(e, o)) for o in range(len(e.choices))] for e in questions]
    first, again = (score_options(student, state, options)[0] for _ in range(2))
    assert state.cache.get_seq_length() == before
    for e, row, row2, encoded in zip(questions, first, again, options, strict=False):
        wanted = [brute_score(student, prompt_ids(student, e, "label_only"), o) for o in encoded]
        assert row == pytest.approx(wanted, abs=2e-4) and row2 == pytest.approx(row, abs=1e-5)


def test_the_most_mentioned_option_needs_no_student():
    cup = Example("q", "What is it made of?", ("glass", "clay", "wood"), 1)
    assert most_mentioned([cup], ["Clay is clay.", "A wooden cup. Glass."]).tolist() == [1.0]
    assert most_mentioned([cup], ["wood", "clay"]).tolist() == [0.5] and most_mentioned(
        [cup], ["glass"]
    ).tolist() == [0.0]
    assert most_mentioned([cup], []).tolist() == [pytest.approx(1 / 3)]
    assert most_mentioned(
        [Example("t", "What are we?", ("mortal", "dying", "mortal"), 0)], ["mortal"]
    ).tolist() == [1.0]


def test_equal_options_are_one_choice(llama):
    found = evaluate(
        llama,
        [Example("t", "What are we?", ("mortal", "mortal", "mortal"), 0)],
        "label_only",
        **LIMITS,
    )[0]
    assert found["choice"] == found["gold"] == 0 and found["scores"] == pytest.approx(
        [found["scores"][0]] * 3, abs=1e-4
    )


def test_scores_after_the_own_rationale(student, questions):
    """pre_cot: the options are scored after exactly what the student wrote, the cue added where it
    never came.
    """
    found = evaluate(student, questions, "pre_cot", **LIMITS)
    cue = student.encode("\nAnswer:")
    for example, one in zip(questions, found, strict=False):
        prefix = prompt_ids(student, example, "pre_cot")
        thought = cut(generate_plainly(student, prefix, LIMITS["max_new_tokens"]), cue)
        prefix += thought if thought[-len(cue) :] == cue else thought + cue
        wanted = [
            brute_score(student, prefix, student.encode(label_text(example, o)))
            for o in range(len(example.choices))
        ]
        assert one["scores"] == pytest.approx(wanted, abs=3e-4)
        label = cut(
            generate_plainly(student, prefix, LIMITS["max_label_tokens"]), line_ids(student)
        )
        assert one["tokens"] == len(thought) + len(label)


def test_scores_without_a_rationale(student, questions):
    """pre_cot also scores its options after an empty rationale; the other placements have none."""
    cue = student.encode("\nAnswer:")
    for example, one in zip(
        questions, evaluate(student, questions, "pre_cot", **LIMITS), strict=True
    ):
        prefix = prompt_ids(student, example, "pre_cot") + cue
        wanted = [
            brute_score(student, prefix, student.encode(label_text(example, o)))
            for o in range(len(example.choices))
        ]
        assert one["scores_direct"] == pytest.approx(wanted, abs=3e-4)
    assert "scores_direct" not in evaluate(student, questions[:1], "post_cot", **LIMITS)[0]


@pytest.mark.parametrize("placement", ["label_only", "pre_cot", "post_cot"])
def test_batch_equals_single(student, questions, placement):
    together = evaluate(student, questions, placement, batch_size=12, **LIMITS)
    alone = evaluate(student, questions, placement, batch_size=1, **LIMITS)
    for a, b in zip(together, alone, strict=False):
        numbers = [name for name in a if name.startswith("scores")]
        assert {k: v for k, v in a.items() if k not in numbers} == {
            k: v for k, v in b.items() if k not in numbers
        }
        for name in numbers:
            assert a[name] == pytest.approx(b[name], abs=3e-4)


def test_a_label_that_never_ends_is_a_counted_failure(llama, questions):
    found = evaluate(llama, questions, "label_only", max_label_tokens=1)
    unended = [p for p in found if p["tokens"] == 1 and p["text"]]
    assert unended and all(p["cut_off"] and p["generated"] is None for p in unended)


def test_accuracy_and_validation_scores():
    rows = [
        dict(gold=0, choice=0, generated=None, scores=[-1.0, -2.0]),
        dict(gold=1, choice=0, generated=1, scores=[-1.0, -3.0]),
    ]
    assert accuracy(rows) == 0.5 and accuracy(rows, "generated") == 0.5
    assert validation_scores(rows) == {"accuracy": 0.5, "label_nll": 2.0}
    assert parse_answer("x", ("x", "y")) == 0


@pytest.mark.parametrize("placement", ["label_only", "pre_cot", "post_cot"])
def test_a_trained_student_writes_what_transformers_generate_writes(
    llama, questions, rationales, tmp_path, placement
):
    """Once it knows the format, most labels are read off the option scores and rationales end at
    different steps.
    """
    config = TrainConfig(lr=2e-2, epochs=25, batch_size=6, select="last", weight_decay=0.0)
    passes = encode_all(llama, questions, rationales, Arm(placement), "text", 0, config.epochs)
    fine_tune(llama, passes, Arm(placement), config, 0, tmp_path / "checkpoints")
    limits, cue = dict(max_new_tokens=30, max_label_tokens=10), llama.encode("\nAnswer:")
    found = evaluate(llama, questions, placement, batch_size=12, **limits)
    assert (
        sum(p["generated"] is not None for p in found) >= 9
        and len({p["tokens"] for p in found}) > 1
    )
    for example, one in zip(questions, found, strict=False):
        prefix, thought = prompt_ids(llama, example, placement), []
        if placement == "pre_cot":
            thought = cut(generate_plainly(llama, prefix, limits["max_new_tokens"]), cue)
            prefix += thought if thought[-len(cue) :] == cue else thought + cue
        label = cut(generate_plainly(llama, prefix, limits["max_label_tokens"]), line_ids(llama))
        assert (one["text"], one["tokens"]) == (
            llama.decode(label).strip(),
            len(thought) + len(label),
        )
    state = prefill(llama, [prompt_ids(llama, e, placement) for e in questions])
    _, labels = score_options(
        llama,
        state,
        [[llama.encode(label_text(e, o)) for o in range(len(e.choices))] for e in questions],
    )
    assert placement == "pre_cot" or sum(label is not None for label in labels) >= 9


@pytest.mark.parametrize("placement", ["label_only", "post_cot", "pre_cot"])
def test_frozen_blocks_run_once_for_all_runs(student, questions, placement):
    """With what the frozen block made of prompts and options kept, another run's predictions are
    those of the whole student, to the last bit, and the block runs for open-ended answers only.
    """
    store, calls = {}, []
    for run in range(2):
        with torch.no_grad():  # what training a run changes: everything above the first block
            for parameter in blocks_of(student.model)[1].parameters():
                parameter.mul_(1.5)
        plain = evaluate(student, questions, placement, batch_size=4, **LIMITS)
        hook = blocks_of(student.model)[0].mlp.register_forward_hook(
            lambda *_, run=run: calls.append(run)
        )
        scored = [
            evaluate(
                student,
                questions,
                placement,
                batch_size=4,
                generate=False,
                trunk=(1, store),
                **LIMITS,
            )
            for _ in range(2)
        ][1]
        hook.remove()
        assert (
            evaluate(student, questions, placement, batch_size=4, trunk=(1, store), **LIMITS)
            == plain
        )
        assert [p["scores"] for p in scored] == [p["scores"] for p in plain]
    # Not GPT-2, which trains with dropout
    shared = placement != "pre_cot" and has_trunk(student.model, 1)
    assert len(store) == shared * 2 * -(-len(questions) // 4)  # prompts and options of each batch
    assert not shared or calls.count(0) and not calls.count(1)
    assert not any("forward" in vars(block) for block in blocks_of(student.model))


@pytest.mark.parametrize("generate", [False, True])
def test_a_store_that_is_full_after_the_prompts_changes_nothing(
    llama, questions, monkeypatch, generate
):
    """The prompts' part of the cache then lacks the frozen block, and the options can't go on from
    it: both run whole.
    """
    plain, store = (
        evaluate(llama, questions, "post_cot", batch_size=4, generate=generate, **LIMITS),
        {},
    )
    evaluate(
        llama, questions, "post_cot", batch_size=4, generate=generate, trunk=(1, store), **LIMITS
    )
    prompts = {key: value for key, value in store.items() if key[1] == "prompts"}
    assert len(store) == 2 * len(prompts) > 0
    monkeypatch.setattr(decode, "TRUNK_CACHE_BYTES", 0)
    assert (
        evaluate(
            llama,
            questions,
            "post_cot",
            batch_size=4,
            generate=generate,
            trunk=(1, prompts),
            **LIMITS,
        )
        == plain
    )
