"""The predicted cost of the paper's grid.

FLOPs against a counter, packing against brute force, runs against the notebooks, text against data.
"""

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import grid_cost
from benchmarks.grid_cost import (
    A100,
    DATASETS,
    STUDENTS,
    Machine,
    answer_seconds,
    fit,
    grid,
    makespan,
    own_body,
    render,
    run_seconds,
    train_flops,
)
from cotdistill import grids
from cotdistill.arms import Arm
from cotdistill.encode import encode_all, pack_batch
from cotdistill.errors import DataError
from cotdistill.kernels.loss import token_losses
from cotdistill.parameters import all_parameters, load_study
from cotdistill.paths import NOTEBOOKS
from cotdistill.train import freeze

ROOT = Path(__file__).resolve().parents[1]
COSTS = json.loads((ROOT / grid_cost.COSTS).read_text(encoding="utf-8"))
PAPER = [f"{d.replace('_', '')}-{s}" for d in DATASETS for s in STUDENTS]


@pytest.mark.parametrize("kind", ["full", "frozen"])
def test_flops_of_a_training_batch_are_those_a_counter_counts(questions, rationales, kind):
    """Every matrix product of a llama of width 256.

    The counter does not see a CPU's fused attention, which the law leaves out too.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    small = tiny("tiny-llama")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(small.tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=1024,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="packed", dtype=torch.float32
    )
    encoded = encode_all(small, questions, rationales, Arm("post_cot"), "text", 0)[0]
    batch = pack_batch(encoded)
    head = model.get_output_embeddings().weight.numel()
    body = model.num_parameters() - head
    trained = None
    if kind == "frozen":
        freeze(model, 3)
        trained = body / 4
    with FlopCounterMode(display=False) as counter:
        token_losses(model, batch).mean().backward()
    tokens, supervised = batch["input_ids"].numel(), len(batch["kinds"])
    wanted = train_flops(body, head, tokens, supervised, trained=trained)
    assert abs(counter.get_total_flops() / wanted - 1) < 0.002
    assert (
        train_flops(body, head, tokens, supervised, again=True)
        - train_flops(body, head, tokens, supervised)
        == 2 * body * tokens
    )


def test_sizes_are_those_of_the_students():
    """Counted on models without memory, from the configurations of the three students."""
    from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, PhiConfig

    gemma = GemmaConfig(
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=256000,
    )
    for name, config in {"gpt2": GPT2Config(), "phi-1.5": PhiConfig(), "gemma-2b": gemma}.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        outside = {
            id(p): p.numel()
            for n, p in model.named_parameters()
            if "embed_tokens" in n or "wte" in n or "wpe" in n or n == "lm_head.weight"
        }
        body, head = (
            sum(p.numel() for p in model.parameters()) - sum(outside.values()),
            model.get_output_embeddings().weight.numel(),
        )
        assert STUDENTS[name][1] == head and abs(STUDENTS[name][0] / body - 1) < 0.001, (
            name,
            body,
            head,
        )


@pytest.mark.parametrize("seed", range(6))
def test_makespan_against_every_assignment(seed):
    rng = np.random.default_rng(seed)
    seconds, devices = rng.integers(1, 30, 7).tolist(), 2 + seed % 2
    best = min(
        max(
            sum(s for s, d in zip(seconds, assigned, strict=True) if d == k) for k in range(devices)
        )
        for assigned in itertools.product(range(devices), repeat=len(seconds))
    )
    found = makespan(seconds, devices)
    assert best <= found <= (4 / 3 - 1 / (3 * devices)) * best  # Graham's bound for longest first
    assert makespan(seconds, 1) == sum(seconds) and makespan(seconds, 99) == max(seconds)


def is_grid(node):
    """Whether a node of a notebook's code is a call of one of the functions in grids.py."""
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in dir(grids)


@pytest.mark.parametrize("name", PAPER + ["quick", "smoke"])
def test_the_grid_is_the_notebooks(name):
    """`grid` gives the arms that notebooks 02, 04 and 05 build from a study's parameters.

    The calls by which they build them are run here.
    """
    values = {k: v for stage in all_parameters().values() for k, v in stage.items()} | load_study(
        name
    )
    scope, labels = values | {f: getattr(grids, f) for f in dir(grids) if f.endswith("_arms")}, []
    for stage in ("train", "shuffle", "attribute"):
        path = ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                calls = [n for n in ast.walk(ast.parse("".join(cell["source"]))) if is_grid(n)]
                for call in calls:
                    made = eval(compile(ast.Expression(call), "cell", "eval"), scope)
                    labels += [arm.label for arm in made]
    mine = [arm.label for arm in grid(values)]
    assert len(mine) > 5 and sorted(mine) == sorted(set(labels))


def test_a_run_costs_more_with_more_to_do_and_never_less_than_its_floors():
    values = {k: v for stage in all_parameters().values() for k, v in stage.items()} | load_study(
        "openbookqa-gpt2"
    )
    sizes, questions = DATASETS["openbookqa"], COSTS["openbookqa"]
    cost = lambda arm, machine=A100, student="gpt2", **more: run_seconds(
        machine, student, sizes, arm, questions, values | more
    )
    zero, label, pre, post = (
        cost(Arm(p)) for p in ("zero_shot", "label_only", "pre_cot", "post_cot")
    )
    assert zero < label <= post < pre and cost(Arm("post_cot"), student="gemma-2b") > post
    assert label >= values["epochs"] * -(-sizes[0] // values["batch_size"]) * A100.batch
    fast = Machine(1e30, 1e30)
    assert cost(Arm("pre_cot"), fast) < 1e-6
    assert cost(Arm("label_only"), Machine(1e12, 1e12), gradient_checkpointing=True) > cost(
        Arm("label_only"), Machine(1e12, 1e12)
    )


def test_the_law_gives_back_the_runs_it_was_fitted_to():
    """Total time of quick's measured runs against the law.

    The machine's speed varies between them, their sum is met.
    """
    here, training, inference = fit(COSTS)
    measured = sum(r["train_seconds"] + r["evaluate_seconds"] for r in COSTS["runs"])
    s, v = COSTS["student"], COSTS["values"]
    predicted = 0.0
    answer = lambda r, n, labels=True: answer_seconds(
        here,
        own_body(COSTS, r),
        s["head"],
        n,
        COSTS["microworld"],
        v,
        r["arm"].startswith("pre_cot"),
        labels,
    )
    for r in COSTS["runs"]:
        predicted += answer(r, COSTS["test"])
        if r["train_tokens"]:
            predicted += v["epochs"] * answer(r, COSTS["validation"], labels=False)
            predicted += (
                train_flops(
                    s["trained"] if COSTS.get("shared") else s["body"],
                    s["head"],
                    r["train_tokens"],
                    r["supervised"],
                    trained=s["trained"],
                )
                / here.train
            )
    assert 0.7 < predicted / measured < 1.3 and len(COSTS["runs"]) == len(training) + 1 == len(
        inference
    )


def test_the_documented_prediction_is_fresh():
    text = (ROOT / "docs" / "grid-cost.md").read_text(encoding="utf-8")
    assert render(text, COSTS) == text
    defaults = {k: v for stage in all_parameters().values() for k, v in stage.items()}
    count = 0
    for values in (defaults | load_study(name) for name in PAPER):
        count += sum(
            1 if arm.placement == "zero_shot" else len(values["seeds"]) for arm in grid(values)
        )
    assert "no GPU has been used" in text and f"{count:,} runs: nine studies" in text
    with pytest.raises(DataError, match="expected both markers"):
        render("nothing", COSTS)
