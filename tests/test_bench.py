"""The benchmark: every peer gives our results, and the measuring itself is right.

The peers are independent checks of our numbers.
"""

import ast
import copy
import functools
import json
import os
import re
import select
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import tiny
from test_evidence import source_of
from transformers import Trainer

from benchmarks import clock as clock_module
from benchmarks import inputs as inputs_module
from benchmarks import profiles as profiles_module
from benchmarks import summary, trainers
from benchmarks import training as training_module
from benchmarks.attribution import time_gradients, time_occlusion
from benchmarks.clock import Clock, interleaved_medians, kernel_share, profile
from benchmarks.compare import Limit, Side, Timing, arrays_agree, compare_sides, lists_agree
from benchmarks.curves import fit_laws
from benchmarks.inference import (
    harness_scores,
    hf_generate,
    load_harness,
    time_answers,
    time_elicitation,
    time_rationales,
    time_scoring,
)
from benchmarks.inputs import (
    PLACEMENTS,
    encode_placements,
    length_table,
    synthetic_questions,
    train_briefly,
)
from benchmarks.limits import layer_rates, product_rates, required_flops, training_rates, weights_of
from benchmarks.profiles import WARM_UP_STEPS, profile_training, training_kernels
from benchmarks.run import execute_benchmark, main
from benchmarks.summary import (
    count_reached,
    limit_rows,
    memory_rows,
    read_findings,
    read_rows,
    read_shares,
    unreachable_rows,
)
from benchmarks.trainers import TRAINERS, Process, train_interleaved, train_side
from benchmarks.training import (
    TrainingPlan,
    compare_rounding,
    limit_share,
    own_side,
    pick_batches,
    time_training,
    training_batches,
    training_rows,
)
from cotdistill.arms import Arm, label_text, prompt_text
from cotdistill.elicit.prompts import demonstrations_path, load_demonstrations
from cotdistill.encode import PROMPT, ROW_MULTIPLE, encode, pack_batch
from cotdistill.errors import DataError
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.blocks import blocks_of
from cotdistill.kernels.linear import onednn_linear
from cotdistill.kernels.loss import token_losses
from cotdistill.parameters import check_value, notebook_parameters

pytestmark = pytest.mark.bench  # `make test-slow`: the benchmark at smoke size
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "benchmarks" / "benchmark.ipynb"
HALF = pd.Series(0.5, list(PLACEMENTS))


@pytest.fixture(scope="module")
def inputs():
    return synthetic_questions(40)


@pytest.fixture(scope="module")
def timed_steps(inputs):
    """Time the steps of a peer and ours once: peer -> (batches, `time_training`'s table)."""

    @functools.cache
    def time_peer(peer):
        student = tiny("tiny-llama")
        batches = training_batches(encode_placements(student, *inputs), 4, 1)
        config = TrainConfig(batch_size=4, lr=1e-2)
        sides = ["ours", "ours, grouped", peer]
        return batches, time_training(student, batches, config, 1, sides, 64)

    return time_peer


@pytest.fixture(scope="module")
def interleaved(inputs):
    """Train ours beside the Trainer for three steps: (batches, events in order, results)."""
    student, order = tiny("tiny-llama"), []
    encoded = [encode(student, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:8]]
    batches = [encoded[:4], encoded[4:], encoded[:4]]

    class RecordedProcess(Process):
        def read(self):
            answer = super().read()
            order.append((self.side, "loss" in answer))
            return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "Process", RecordedProcess)
        results = train_interleaved(
            ["ours", "Trainer as it comes"],
            "tiny-llama",
            batches,
            TrainConfig(batch_size=4),
            between=lambda: order.append("between") or len(order),
        )
    return batches, order, results


def alike(rows: pd.DataFrame, peers: int) -> bool:
    return (
        len(rows) == peers
        and rows["same"].str.startswith("yes").all()
        and (rows["ratio"] > 0).all()
    )


# --- inputs


def test_texts_are_a_function_of_the_seed_and_have_the_asked_lengths(inputs, llama):
    examples, rationales = inputs
    inputs_module.generate_world.cache_clear()
    assert (
        synthetic_questions(40)[0] == examples
        and synthetic_questions(40, 1)[0] != examples
        and len(examples) == 40
    )
    words = [len(rationales[e.id].text.split()) for e in examples]
    assert 34 < np.mean(words) < 50 and np.std(words) > 6  # spread: padding costs depend on it
    assert all(rationales[e.id].text.endswith(f"So it is {e.label}.") for e in examples)
    five, none = synthetic_questions(0, n_options=5, option_words=0, test=6)
    assert len(five) == 6 and none == {} and all(len(e.choices) == 5 for e in five)
    table = length_table(llama, examples, rationales)
    assert table.loc["prompt", "mean"] == np.mean(
        [len(llama.encode(prompt_text(e, "label_only"))) for e in examples]
    )


def test_grouped_batches_need_less_padding_and_no_batch_is_the_epochs_extreme(inputs, llama):
    sequences = encode_placements(llama, *inputs)["post_cot"]

    def padding(grouped):
        batches = pick_batches(sequences, 4, 4, grouped)
        assert all(len(b) == 4 for b in batches) and len({e.id for b in batches for e in b}) == 16
        return sum(max(len(e.ids) for e in b) * 4 - sum(len(e.ids) for e in b) for b in batches)

    assert padding(True) < 0.8 * padding(False)


# --- training


@pytest.mark.parametrize(
    "peer",
    [
        "Trainer at its best",
        pytest.param(
            "TRL as it comes",
            marks=pytest.mark.skipif(
                not find_spec("trl"), reason="the bench extra (trl) is not installed"
            ),
        ),
        pytest.param(
            "TRL at its best",
            marks=pytest.mark.skipif(
                not find_spec("trl"), reason="the bench extra (trl) is not installed"
            ),
        ),
    ],
)
@pytest.mark.xdist_group("bench-trainer")
def test_a_peers_loss_of_every_step_is_ours(timed_steps, peer):
    (batches, steps), student = timed_steps(peer), tiny("tiny-llama")
    rows = training_rows(steps, "tiny", {peer: 0.0}, ["ours", peer], HALF)
    assert (
        alike(rows, 3)
        and (rows["reached"] == "yes").all()
        and (rows["bound"] > rows["ratio"]).all()
        and np.allclose(rows["kernels"], rows["ratio"] * 2)
    )
    losses = steps[steps["side"] == peer].sort_values("step")["loss"].to_numpy()
    # It trained, so equality says something
    assert len(losses) == 7 and abs(losses[-1] - losses[0]) > 1e-3
    with torch.no_grad():  # the first loss, by the definition
        student.model.set_attn_implementation("packed")
        first = (
            token_losses(student.model, pack_batch(batches[TRAINERS[peer][1]][0][1])).mean().item()
        )
        student.model.set_attn_implementation("sdpa")
    assert abs(first - losses[0]) < 1e-5 * first


@pytest.mark.parametrize("worst", [0, 5])
def test_the_loss_furthest_from_ours_is_judged_by_hf_in_float64(inputs, llama, worst):
    """Steps whose losses are said to agree but for one, which is made again with our weights."""
    batches = training_batches(encode_placements(llama, *inputs), 4, 1)
    order, config, losses, weights = (
        [b for _, b in batches[True]],
        TrainConfig(batch_size=4, lr=1e-2),
        [],
        [],
    )
    learner = replace(llama, model=copy.deepcopy(llama.model))
    snapshot = lambda: weights.append({k: v.clone() for k, v in learner.model.state_dict().items()})
    snapshot()
    train_side(
        "ours, grouped",
        learner,
        order,
        config,
        0,
        lambda _, loss: (losses.append(loss), snapshot()),
    )
    peer = "Trainer at its best"
    steps = pd.DataFrame(
        [
            {
                "side": side,
                "beside": peer,
                "repeat": 0,
                "step": i,
                "loss": loss * (1.1 if side == peer and i == worst else 1.0),
            }
            for side in ("ours, grouped", peer)
            for i, loss in enumerate(losses)
        ]
    )
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    table, rounding = compare_rounding(llama, steps, batches, config)
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())

    double, total, count = copy.deepcopy(llama.model).double(), 0.0, 0
    double.load_state_dict(weights[worst])
    for e in order[worst]:  # HF's own loss, a sequence at a time
        labels = [i if k != PROMPT else -100 for i, k in zip(e.ids, e.kinds, strict=True)]
        with torch.no_grad():
            logits = double(torch.tensor([e.ids])).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
        ).item()
        count += sum(x != -100 for x in labels)
    assert list(table["loss"]) == ["ours, grouped", "transformers, with our weights", peer] and set(
        table["step"]
    ) == {worst + 1}
    assert set(table["float64"]) == {f"{total / count:.7f}"}
    assert rounding[llama.name, peer] < 1e-5 and table["difference"].astype(
        float
    ).tolist() == pytest.approx([0, 0, 0.1], abs=1e-3)


@pytest.mark.xdist_group("bench-trainer")
def test_another_loss_would_be_seen(timed_steps):
    peer = "Trainer at its best"
    steps = timed_steps(peer)[1].copy()
    steps.loc[steps["side"] == peer, "loss"] *= 1 + 1e-4
    rows = training_rows(steps, "tiny", {peer: 0.0}, ["ours", peer], HALF)
    assert rows["same"].str.startswith("NO").all() and (rows["reached"] == "no").all()
    assert "3 show different results" in count_reached(rows)


@pytest.mark.parametrize("peer", [peer for peer in TRAINERS if trainers.is_peer(peer)])
def test_a_peer_trains_beside_ours_on_the_batches_of_its_order(inputs, llama, monkeypatch, peer):
    calls = []

    def record(sides, student, batches, config, between):
        calls.append((sides, student, batches))
        result = {"seconds": [1.0] * len(batches), "losses": [2.0] * len(batches)}
        return [result | {"between": [between() for _ in batches]} for _ in sides]

    monkeypatch.setattr(training_module, "train_interleaved", record)
    monkeypatch.setattr(training_module, "find_spec", lambda name: True)
    batches = training_batches(encode_placements(llama, *inputs), 4, 1)
    steps = time_training(llama, batches, TrainConfig(batch_size=4), 2, ["ours", peer], 16)
    grouped = TRAINERS[peer][1]
    pair, order = ["ours, grouped" if grouped else "ours", peer], [b for _, b in batches[grouped]]
    assert calls == [(pair, "tiny-llama", order)] * 2 and own_side(peer) == pair[0]
    assert steps["side"].tolist() == [side for _ in (0, 1) for side in pair for _ in order]
    assert set(steps["beside"]) == {peer} and steps["repeat"].tolist() == [0] * 14 + [1] * 14
    assert batches[True] != batches[False]


@pytest.mark.xdist_group("bench-interleaved")
def test_watching_leaves_the_trainer_as_it_was_and_a_step_alone_is_the_step_beside_another(
    interleaved, llama
):
    (batches, _, sides), own, seen = interleaved, Trainer.training_step, []
    train_side(
        "ours",
        llama,
        batches,
        TrainConfig(batch_size=4),
        after_step=lambda seconds, loss: seen.append((seconds, loss)),
    )
    assert (
        Trainer.training_step is own and len(seen) == 3 and all(seconds > 0 for seconds, _ in seen)
    )
    # In processes of their own
    assert [loss for _, loss in seen] == sides[0]["losses"]
    for side in sides:
        first, *others = side["seconds"]
        assert len(side["losses"]) == 3 and np.isnan(first) and len(others) == 2 and min(others) > 0
        assert 0.1 < side["loaded_gb"] <= side["peak_gb"] < 4


def test_a_process_makes_a_step_when_it_is_told_to_and_what_it_ends_with_is_said(inputs, llama):
    sequences = [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:4]]
    asked = {
        "student": "tiny-llama",
        "threads": 1,
        "config": {"batch_size": 4},
        "seed": 0,
        "side": "ours",
        "batches": [[[e.id, e.ids, e.kinds] for e in sequences]] * 2,
    }
    with Process("ours") as child:
        child.write(json.dumps(asked))
        assert set(child.read()) == {"loaded_gb"}
        assert not select.select([child.child.stdout], [], [], 2)[0]  # it waits
        child.write("go")
        assert set(child.read()) == {"seconds", "loss", "peak_gb"}
        child.child.stdin.close()  # the parent is gone
        assert child.child.wait(60) == 1
        with pytest.raises(DataError, match="ours: its process ended with 1"):
            child.read()
        child.child.stdin = None
    with pytest.raises(
        DataError, match="Trainer as it comes: its process ended with 1: .*tiny-lama"
    ):
        train_interleaved(
            ["Trainer as it comes"], "./tiny-lama", [sequences], TrainConfig(batch_size=4)
        )


@pytest.mark.xdist_group("bench-interleaved")
def test_sides_take_turns(interleaved):
    _, order, sides = interleaved
    pair = ["ours", "Trainer as it comes"]
    assert (
        order
        == [(side, False) for side in pair] + [*[(side, True) for side in pair], "between"] * 3
    )
    assert [side["between"] for side in sides] == [[5, 8, 11]] * 2


def test_calls_take_turns_and_the_first_turn_is_not_counted(monkeypatch):
    order, clock = [], iter([100.0, 200.0, 1.0, 5.0, 3.0, 7.0, 2.0, 6.0])
    monkeypatch.setattr(clock_module, "time_call", lambda call: (next(clock), call()))
    assert interleaved_medians(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3
    ) == {
        "a": 2.0,
        "b": 6.0,
    }
    assert order == ["a", "b"] * 4


def test_a_peers_steps_are_compared_with_ours_by_their_total_times():
    """Four batches of other lengths, of which a peer pads one more than the others.

    The median of the ratios would be 2.0.
    """
    ours, theirs = [1.0, 2.0, 4.0, 8.0], [2.0, 4.0, 8.0, 31.0]
    steps = pd.DataFrame(
        [
            {
                "side": side,
                "beside": "Trainer as it comes",
                "repeat": 0,
                "step": i,
                "placement": "pre_cot",
                "seconds": s,
                "loss": 1.0,
                "least_gflop": 10.0 * own,
                "best": 20.0,
            }
            for side, all_s in (("ours", ours), ("Trainer as it comes", theirs))
            for i, (s, own) in enumerate(zip(all_s, [1, 2, 3, 4], strict=True))
        ]
    )
    (row,) = training_rows(
        steps, "x", {"Trainer as it comes": 3.0}, ["Trainer as it comes"], HALF
    ).itertuples()
    assert (row.ratio, row.ours, row.theirs, row.reached, row.bound, row.kernels) == (
        3.0,
        3.75,
        11.25,
        "yes",
        9.0,
        6.0,
    )


def test_a_side_with_another_number_of_steps_is_an_error(inputs, llama):
    sequences = [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:6]]
    with pytest.raises(DataError, match="1 optimiser steps and 1 losses; expected 2"):
        train_side("ours", llama, [sequences[:4], []], TrainConfig(batch_size=4))


def test_kernels_take_a_part_of_the_time(inputs, llama):
    shares = training_kernels(llama, training_batches(encode_placements(llama, *inputs), 4, 1))
    assert list(shares.index) == list(PLACEMENTS) and shares.between(0.01, 0.99).all()
    assert (
        kernel_share(pd.Series({"head": 1.0, "attention": 2.0, "copies and indexing": 1.0})) == 0.75
    )
    rows = limit_rows(
        pd.DataFrame(
            {
                "placement": ["pre_cot"],
                "square_gflop_s": [1.0],
                "best_gflop_s": [1.2],
                "share_of_square": [0.6],
                "kernels": [0.75],
            }
        ),
        "tiny",
    )
    assert len(unreachable_rows(rows, "kernels")) == 1 and not len(unreachable_rows(rows))


def test_peak_memory_counts_what_a_process_holds_beside_its_weights():
    peaks = pd.DataFrame(
        {"side": ["ours", "Trainer as it comes"], "loaded_gb": [1.5, 1.6], "peak_gb": [6.0, 9.0]}
    )
    (row,) = memory_rows(peaks, "a student", least=4.0).itertuples()
    assert row.ratio == 1.5 and row.bound == 9.0 / (4.0 + 0.5) and row.reached == "no"


def test_needed_operations_are_those_that_torch_counts(inputs, llama):
    from torch.utils.flop_counter import FlopCounterMode

    batch = [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:3]]
    llama.model.set_attn_implementation("packed")
    with FlopCounterMode(display=False) as counter:
        token_losses(llama.model, pack_batch(batch)).mean().backward()
    llama.model.set_attn_implementation("sdpa")
    products = sum(v for k, v in counter.get_flop_counts()["Global"].items() if "mm" in str(k))
    config, linear = llama.model.config, weights_of(llama.model)[0]
    attention = (
        12
        * config.hidden_size
        * config.num_hidden_layers
        * sum(len(e.ids) * (len(e.ids) + 1) / 2 for e in batch)
    )
    tokens, asked = sum(len(e.ids) for e in batch), sum(k != PROMPT for e in batch for k in e.kinds)
    (needed, least), inputs = (
        (required_flops(llama.model, batch, only) for only in (False, True)),
        tokens - len(batch),
    )
    assert (
        needed - attention == products - 6 * linear * (-inputs % ROW_MULTIPLE - len(batch))
        and 0 < asked < inputs
    )
    spared = sum(
        p.numel()
        for name, p in blocks_of(llama.model)[-1].named_parameters()
        if p.dim() == 2 and "k_proj" not in name and "v_proj" not in name
    )
    assert (
        needed - least
        == 6 * spared * (inputs - asked)
        + 6 * linear * len(batch)
        + 12 * config.hidden_size * config.num_hidden_layers * tokens
    )


def test_product_rates_and_shares(llama, inputs):
    rates = product_rates(llama.model, 64, size=128)
    assert set(rates) == {"square", "best", "own"} and min(rates.values()) > 0.01
    steps = pd.DataFrame(
        {
            "side": ["ours"] * 2,
            "step": [0, 1],
            "placement": ["warm-up", "post_cot"],
            "tokens": [10, 100],
            "seconds": [np.nan, 2.0],
            "gflop": [1.0, 80.0],
            "least_gflop": [1.0, 72.0],
            "square": [50.0, 50.0],
            "best": [60.0, 60.0],
            "own": [40.0, 40.0],
        }
    )
    shares = limit_share(steps, pd.Series({"post_cot": 0.8}))
    share = shares.iloc[0]
    assert (
        share["tokens_per_s"],
        share["share_of_square"],
        share["share_of_best"],
        share["share_of_own"],
    ) == (50.0, 0.8, 0.6, 1.0)
    (row,) = limit_rows(shares, "x").itertuples()
    assert row.reached == "yes" and row.bound == 1.2 and row.kernels == share["kernels"] == 1.0
    assert "post_cot **80 %**" in read_shares(shares) and "would reach 100 %" in read_shares(shares)


def test_rates_of_products(llama, inputs):
    rates = layer_rates(llama.model, [1, 5], tries=1)
    assert rates.index.tolist() == [1, 5] and (rates > 0).all(axis=None)
    assert np.allclose(
        rates["prepacked_ratio"], rates["prepacked"] / rates["plain"]
    ) and np.allclose(rates["oneDNN_ratio"], rates["oneDNN"] / rates["plain"])
    rates = training_rates(
        llama.model,
        [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:3]],
        tries=1,
    )
    assert (
        len(rates) == 5
        and (rates > 0).all(axis=None)
        and np.allclose(rates["ratio"], rates["ours"] / rates["plain"])
    )


# --- scoring, generation, attribution


def test_scores_are_those_of_plain_forward_passes(llama):
    examples, _ = synthetic_questions(0, n_options=5, option_words=0, test=4)
    rows, _ = time_scoring(llama, examples, Timing([3], [2], 1, 3.0))
    if find_spec("lm_eval"):
        assert alike(rows, 1) and "4 of 4 options picked alike" in rows["same"][0]
    else:
        assert rows["reached"].tolist() == ["not installed"] and np.isnan(rows["ratio"][0])
        assert "1 wait for a peer that is not installed" in count_reached(rows)


@pytest.mark.skipif(not find_spec("lm_eval"), reason="the bench extra (lm-eval) is not installed")
def test_the_harness_scores_what_a_plain_pass_scores(llama):
    (example, *_), _ = synthetic_questions(0, n_options=5, option_words=0, test=1)
    prompt, label = (
        llama.encode(prompt_text(example, "label_only")),
        llama.encode(label_text(example, 2)),
    )
    with torch.no_grad():
        logps = llama.model(torch.tensor([prompt + label])).logits[0].log_softmax(-1)
    plain = sum(logps[len(prompt) + i - 1, token].item() for i, token in enumerate(label))
    assert abs(harness_scores(load_harness(llama), llama, [example], 4)[0][2] - plain) < 1e-4


def test_answers_and_rationales_are_those_of_hf_generate(inputs, llama):
    asked, _ = synthetic_questions(0, test=5)
    for placement in ("label_only", "post_cot"):
        writer = train_briefly(llama, placement, inputs[0], inputs[1], 0, epochs=2, lr=1e-2)
        assert alike(time_answers(writer, asked, placement, 10, Timing([2, 5], [5], 1, 4.0))[0], 1)
    writer = train_briefly(llama, "pre_cot", inputs[0], inputs[1], 0, epochs=2, lr=1e-2)
    rows, tried = time_rationales(writer, asked, 12, 6, Timing([5], [2], 1, 1.5))
    assert alike(rows, 1) and "5 of 5 texts alike" in rows["same"][0] and tried["chosen"].all()


def test_attributions_are_captums(inputs, llama):
    pairs = [(e, inputs[1][e.id].text) for e in inputs[0][:2]]
    ways = ["as it comes", "frozen", "frozen, head at the label"]
    assert alike(time_gradients(llama, pairs, 6, ways, Timing([3], [4], 1))[0], 3)
    assert alike(time_occlusion(llama, pairs, Timing([7], [5], 1, 5.0))[0], 2)
    assert all(p.requires_grad for p in llama.model.parameters())


def test_elicited_texts_are_those_of_hf_generate(llama):
    asked, _ = synthetic_questions(0, test=3)
    shown = load_demonstrations(demonstrations_path("microworld/everyday"))[:2]
    assert alike(time_elicitation(llama, asked, shown, 8, Timing([2], [3], 1, 4.0))[0], 1)


def test_a_stop_text_ends_hf_generate(llama):
    prompt = [llama.encode(prompt_text(e, "pre_cot")) for e in synthetic_questions(0, test=1)[0]]
    (whole,) = hf_generate(llama, prompt, 12, 1)
    stop = llama.decode(whole[3:4])
    (cut,) = hf_generate(llama, prompt, 12, 1, stop=stop)
    assert len(cut) < len(whole) == 12 and cut == whole[: len(cut)] and stop in llama.decode(cut)


# --- comparing


def test_the_best_batch_size_is_taken_and_a_wrong_result_never_reaches_its_target():
    import time

    calls = []

    def peer(size):
        calls.append(size)
        time.sleep(0.02 if size == 2 else 0.06)
        return [1, 2]

    side, ours = Side(peer, [1, 2], target=1.0), Side(lambda size: [1, 2], [1])
    same = lambda a, b: lists_agree(a, b, "numbers")
    bounded, _ = compare_sides(
        "w", ours, {"p": side}, same, 1, Limit(lambda size: time.sleep(0.01))
    )
    assert 1 < bounded["bound"][0] < 2.5
    calls.clear()
    rows, tried = compare_sides("w", ours, {"p": side}, same, 3)
    assert (
        calls == [1, 2, 2, 2, 2]
        and rows["reached"][0] == "yes"
        and rows["same"][0] == "yes: 2 of 2 numbers"
    )
    assert tried.loc[tried["side"] == "p", "chosen"].tolist() == [False, True]
    rows, _ = compare_sides("w", Side(lambda size: [1, 3], [1]), {"p": side}, same, 1)
    assert rows["reached"][0] == "no" and rows["same"][0] == "NO: 1 of 2 numbers"
    assert (
        arrays_agree([1.0, 2.0], [1.0, 2.1], 1e-2, "x")[0] is False
        and arrays_agree([1.0], [1.0, 2.0], 1.0, "x")[0] is False
    )


def test_laws_are_found_again():
    x = np.array([1.0, 2, 4, 8])
    curves = pd.concat(
        [
            pd.DataFrame(
                {
                    "curve": "training: length",
                    "x": x,
                    "seconds": 0.5 + 2 * x + 0.25 * x**2,
                    "tokens": x,
                }
            ),
            pd.DataFrame({"curve": "training: batch", "x": x, "seconds": 3 * x, "tokens": x}),
        ]
    )
    laws = fit_laws(curves).set_index("curve")
    assert (
        np.allclose(laws.loc["training: length", "coefficients"], [0.5, 2, 0.25])
        and laws["r2"].min() > 0.999999
    )
    assert (
        np.allclose(laws.loc["training: batch", "coefficients"], [0, 3], atol=1e-9)
        and laws["worst_error"].max() < 1e-6
    )
    curves.loc[curves.index[-1], "seconds"] *= 1.5
    bent = fit_laws(curves).set_index("curve").loc["training: batch"]
    assert bent["worst_error"] > 0.1 and min(bent["coefficients"]) >= 0


def test_findings_name_each_row_that_is_not_reached():
    rows = pd.DataFrame(
        {
            "work": list("abcde"),
            "peer": "p",
            "target": [2.0, 2.0, 2.0, 2.0, "–"],
            "ratio": [2.5, 1.0, 1.5, 3.0, 1.0],
            "same": ["yes", "yes", "yes", "NO", "yes"],
            "reached": ["yes", "no", "no", "no", "–"],
            "bound": [3.0, 1.9, 4.0, 4.0, 4.0],
            "kernels": [2.6, 1.2, 1.4, 3.2, 1.0],
        }
    )
    # A loss that is right enough: agreement was possible
    said = read_findings(rows, {("d", "p"): 9e-6}).splitlines()
    assert said[0] == (
        "**Findings.** Targets reached: 1, not reached: 3; 1 without a target; 1 "
        "show different results."
    )
    assert (
        "(1 row: " in said[2]
        and said[2].endswith("b, p (at most 1.90 of 2).")
        and said[3].endswith("c, p (at most 1.40 of 2).")
        and "For 1 of these rows" in said[5]
    )
    assert "(0 rows" in said[4] and said[6].endswith(
        "d, p (3.00, not counted, for the results differ, of 2)."
    )
    # Whose rounding says nothing of this one's
    assert read_findings(rows, {("another student", "p"): 2e-5}).splitlines() == said
    said = read_findings(rows, {("d", "p"): 2e-5}).splitlines()
    assert said[4].endswith("d, p (3.00, its loss off by 2e-05, of 2).") and "(0 rows" in said[6]


def test_findings_name_a_wall_time_beyond_its_limit():
    table = pd.DataFrame(
        {"run": ["first", "second", "third"], "notebooks": [6, 6, 0], "seconds": [60, 100, np.nan]}
    )
    limits = {"first": 90.0, "second": 90.0, "third": 90.0}
    rows = summary.reproduce_rows(table, limits)
    assert rows["reached"].tolist() == ["yes", "no", "not run"]
    assert "second, – (100 s for < 90 s)." in read_findings(rows, {})
    assert summary.read_wall_times(rows) == (
        "Limits: first 1.0 minutes for < 90 s (yes); second 1.7 minutes for < 90 s (no); "
        "third: not run."
    )


ROWS = pd.DataFrame(
    {
        "work": ["w", "w", "w", "w"],
        "peer": ["a", "b", "c", "d"],
        "ours": 2.0,
        "theirs": [6.0, 4.0, 6.0, np.nan],
        "ratio": [3.0, 2.0, 3.0, np.nan],
        "target": [2.5, 2.5, 2.5, np.nan],
        "reached": ["yes", "no", "no", "not installed"],
        "same": ["yes: 3 alike", "yes: 3 alike", "NO: 2 alike", "not installed"],
        "bound": [4.0, 2.2, np.nan, np.nan],
        "kernels": [3.5, np.nan, np.nan, np.nan],
    }
)


def test_rows_are_read_in_a_sentence_each():
    assert read_rows(ROWS).splitlines() == [
        "- w, a: 6.00 s against our 2.00 s, **3.00 times** (target 2.5: reached); at most 4.0 "
        "times is possible, as the work that no side can avoid takes 1.50 s; 3.5 times, if ours "
        "spent time in the libraries' kernels only; same results: yes: 3 alike.",
        "- w, b: 4.00 s against our 2.00 s, **2.00 times** (target 2.5: **not reached**); at most "
        "2.2 times is possible, as the work that no side can avoid takes 1.82 s; same results: "
        "yes: 3 alike.",
        "- w, c: 6.00 s against our 2.00 s, **3.00 times** (target 2.5: fast enough, **not "
        "counted**: results differ); same results: NO: 2 alike.",
        "- d: not installed, so not measured.",
    ]
    bare = ROWS.head(1).drop(columns=["bound", "kernels"]).assign(target=None, reached="–")
    assert read_rows(bare) == (
        "- w, a: 6.00 s against our 2.00 s, **3.00 times**; same results: yes: 3 alike."
    )


def test_tables_are_read_in_sentences(llama):
    said = summary.read_training(ROWS)
    assert "Targets reached: 1, not reached: 2; 1 wait for a peer" in said
    assert "out of reach, in 1 of 4 rows" in said and said.endswith("above that in 0 of 4 rows.")
    said = summary.read_memory(ROWS, 1.234)
    assert "take 1.23 GB" in said and "in 1 of 4 rows, and reached in 1." in said
    lengths = pd.DataFrame({"5 %": [3.6, 1.0], "95 %": [9.4, 2.0]}, ["prompt", "label"])
    assert summary.read_lengths(lengths) == (
        "Nine in ten of the texts have 4 to 9 tokens (prompt), 1 to 2 tokens (label)."
    )
    rates = pd.DataFrame({"oneDNN_ratio": [1.5, 2.0], "prepacked_ratio": [3.0, 1.25]}, [1, 8])
    assert summary.read_products(rates).endswith(
        "are 1.50 and 3.00 times as fast at 1 row; 2.00 and 1.25 times as fast at 8 rows."
    )
    rates = pd.DataFrame({"ratio": [0.9, 1.4]}, ["logits", "forward"])
    assert summary.read_rates(rates).endswith("from 0.90 times (logits) to 1.40 times (forward).")
    losses = pd.DataFrame({"loss": ["ours", "Trainer"], "difference": ["1e-08", "2e-05"]})
    said = summary.read_rounding(losses)
    assert said.startswith("Relative difference from float64: ours 1e-08; Trainer 2e-05.")
    assert "by more than 1e-05 counts as not reached" in said
    shares = pd.DataFrame(
        {"training": ["60.4 %", "20.0 %", "1.50"], "scoring": ["10.0 %", "5.0 %", "2.00"]},
        ["matrix products", "attention", "seconds"],
    )
    assert summary.read_profile(shares).endswith("together: training 80 %, scoring 15 %.")
    seconds = pd.DataFrame({1: [2.0, 1.0], 2: [1.0, 3.0]}, ["training step", "scoring"])
    assert summary.read_threads(seconds) == (
        "Fastest: training step with 2 threads, scoring with 1 thread."
    )
    laws = pd.DataFrame(
        {"curve": ["x", "y", "z"], "r2": [0.99, 0.95, 1.0], "worst_error": [0.3, 0.1, 0.2]}
    )
    assert summary.read_laws(laws) == (
        "The laws explain 99.0 % of the spread of seconds (median R²), and least for y (95.0 %). A "
        "single point is off by up to 30 % (x)."
    )
    assert summary.read_setting(llama).endswith("; 1 thread.")


def test_a_plan_gives_the_hyperparameters_of_all_sides():
    plan = TrainingPlan(4, 1, 1, ["Trainer at its best"], {})
    assert plan.config == TrainConfig(batch_size=4, lr=2e-5)


def test_a_profile_adds_up_and_knows_the_head(llama, inputs, capfd):
    vocabulary = llama.model.config.vocab_size
    batch = [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:2]]
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    found = profile_training("ours", llama, batch, vocabulary, steps=1)
    assert capfd.readouterr().err == ""  # what is said there would end up in the notebook
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())
    assert {
        "matrix products",
        "head",
        "optimiser",
        "attention",
        "loss",
        "Python and the rest",
    } <= set(found.index) and (found >= 0).all()


def test_a_profile_clocks_every_other_step_after_those_that_warm_up(inputs, llama, monkeypatch):
    opened, steps = [], []
    own = train_side
    monkeypatch.setattr(Clock, "__enter__", lambda self: opened.append(len(steps)))
    monkeypatch.setattr(Clock, "__exit__", lambda self, *_: opened.append(-len(steps)))
    monkeypatch.setattr(
        profiles_module,
        "train_side",
        lambda *given, after_step, **more: own(
            *given, after_step=lambda s, loss: (steps.append(s), after_step(s, loss)), **more
        ),
    )
    batch = [encode(llama, e, inputs[1][e.id].text, Arm("post_cot")) for e in inputs[0][:2]]
    found = profile_training("ours", llama, batch, 7, steps=2)
    assert len(steps) == WARM_UP_STEPS + 4 and opened == [4, -5, 6, -7]
    assert found.to_dict() == {"Python and the rest": np.median([steps[3], steps[5]])}


def test_the_clock_times_what_is_called_by_its_kind(llama):
    clock, hidden, weight = (
        Clock(llama.model.config.vocab_size),
        torch.randn(3, 32),
        torch.randn(16, 32),
    )
    with clock:
        hidden @ weight.t()
    assert {"matrix products", "copies and indexing"} == set(clock.spent) and min(
        clock.spent.values()
    ) > 0
    with clock:
        onednn_linear(hidden, llama.model.get_output_embeddings().weight)
        torch.log_softmax(hidden, 1)
    assert {"matrix products", "copies and indexing", "head", "loss"} == set(clock.spent)
    shares = profile(lambda: llama.encode("a plain text"), 7)
    assert shares["tokenisation"] > 0 and shares.sum() < 1


# --- notebook and command


def test_anatomy():
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(
        w in book.cells[0].source for w in ("**Question.**", "| reads |", "| writes |", "| cost |")
    )
    assert all(not c.outputs and c.execution_count is None for c in code)
    for cell in code:
        tree = ast.parse(cell.source)
        assert not [
            n
            for n in ast.walk(tree)
            # No cell defines anything or builds a sentence
            if isinstance(
                n, ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.While | ast.JoinedStr
            )
        ], cell.source
        assert "Markdown(" not in cell.source
        lines = cell.source.splitlines()
        assert max(map(len, lines)) <= 100
        assert "parameters" in cell.metadata.get("tags", []) or len(lines) <= 15
    parameters = next(c for c in code if "parameters" in c.metadata.get("tags", []))
    assert all(re.search(r"  # \w", line) for line in parameters.source.splitlines())


def test_the_full_size_has_known_parameters_of_the_right_type(tmp_path):
    defaults, full = (
        notebook_parameters(NOTEBOOK),
        yaml.safe_load((NOTEBOOK.with_suffix(".yaml")).read_text()),
    )
    for key, value in full.items():
        check_value(key, value, defaults[key], "benchmark.yaml")
    assert set(full["train_sides"]) | set(full["second_sides"]) | set(full["memory_sides"]) <= set(
        TRAINERS
    )
    with pytest.raises(DataError, match="unknown parameter 'studnet'"):
        execute_benchmark({"studnet": "x"}, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- student", "list; expected lines of `parameter: value`"),
        ("student: [", "not YAML: .*; expected `parameter: value`"),
        ("studnet: x", "unknown parameter 'studnet'"),
        ("repeats: two", "repeats"),
    ],
)
def test_wrong_values_end_in_one_line(tmp_path, capsys, text, message):
    (tmp_path / "values.yaml").write_text(text)
    assert main([str(tmp_path / "values.yaml"), "--executed", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{message}", line)
    assert main([str(tmp_path / "missing.yaml")]) == 1
    assert "missing.yaml" in capsys.readouterr().err


def test_the_command_shows_its_options_but_not_that_of_a_child(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--executed" in (text := capsys.readouterr().out) and "--side" not in text


def test_the_benchmark_uses_public_names_and_the_package_does_not_know_it():
    for path in (ROOT / "benchmarks").glob("*.py"):
        names = re.findall(
            r"from (?:cotdistill|benchmarks)[\w.]* import \(?([^)\n]*)", path.read_text()
        )
        assert not [n for n in names if re.search(r"(^|[ ,])_", n)], path.name
    for path in (ROOT / "cotdistill").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) benchmarks", path.read_text(), re.M), path


def test_the_extra_is_pinned_and_make_bench_installs_it():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+", d) for d in project["optional-dependencies"]["bench"]
    )
    steps = subprocess.run(
        ["make", "-n", "VENV=/nowhere", "bench"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "/nowhere/bench.txt" in steps and "benchmarks.run benchmarks/benchmark.yaml" in steps


def test_the_notebook_runs_at_smoke_size(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--executed", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    book = nbformat.read(tmp_path / "out" / "benchmark.ipynb", 4)
    text = json.dumps([c.get("outputs", []) for c in book.cells])
    assert not re.search(
        r"/(home|root|work|tmp|Users)/", re.sub(r'"image/png": "[^"]*"', "", text)
    ), "an absolute path"
    assert book.metadata.cotdistill.seconds > 0 and not list((tmp_path / "out").glob(".*part*"))
    findings = next(
        o.data["text/markdown"]
        for o in book.cells[-1].outputs
        if "text/markdown" in o.get("data", {})
    )
    missing = not find_spec("trl") or not find_spec("lm_eval")
    assert (
        "results are the same everywhere" in findings and ("wait for a peer" in findings) == missing
    ), findings


def test_the_committed_benchmark_is_this_notebook_at_its_full_size():
    import yaml

    path = ROOT / "notebooks" / "executed" / "benchmark" / "benchmark.ipynb"
    book, source = nbformat.read(path, 4), nbformat.reads(source_of(path), 4)
    cells = [c for c in book.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [c.source for c in cells] == [c.source for c in source.cells]
    assert all(
        c.execution_count and not any(o.output_type == "error" for o in c.outputs)
        for c in book.cells
        if c.cell_type == "code"
    )
    assert book.metadata.cotdistill.parameters == yaml.safe_load(
        (ROOT / "benchmarks" / "benchmark.yaml").read_text()
    )
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2**20 and not re.search(
        r"/(home|root|work|tmp|Users)/", re.sub(r'"image/png": "[^"]*"', "", text)
    )
    findings = next(
        o.data["text/markdown"]
        for o in book.cells[-1].outputs
        if "text/markdown" in o.get("data", {})
    )
    assert "wait for a peer" not in findings and "for a run" not in findings
