"""Attributions against plain captum on whole uncached sequences, finite differences, and brute
force one by one.
"""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import InputXGradient, LayerIntegratedGradients, Saliency
from conftest import sliding_student
from scipy import stats as sps
from sklearn.metrics import average_precision_score
from studies import make_study

from cotdistill.arms import LEFT_OUT, Arm, arm_from_name
from cotdistill.attribution.checks import (
    agreement,
    agreement_square,
    key_token_precision_recall,
    key_tokens,
    label_word_share,
    mean_intervals,
    random_average_precision,
    randomisation_check,
    randomise_weights,
)
from cotdistill.attribution.curves import (
    DRAWS,
    curve_areas,
    curves_on_grid,
    faithfulness,
    faithfulness_all,
    token_counts,
)
from cotdistill.attribution.methods import (
    METHODS,
    WITHOUT_LABEL,
    aggregate_to_words,
    attribute_all,
    attribute_rationale,
    top_k,
)
from cotdistill.attribution.movement import (
    known_by_heart,
    label_logps,
    movement,
    movement_quartiles,
)
from cotdistill.attribution.score import Attribution, removal_logps, split_sequence
from cotdistill.attribution.score_files import (
    read_attributions,
    read_scores,
    read_selections,
    write_scores,
    write_selection,
)
from cotdistill.attribution.words import part_of_speech, selected_words, selection_table
from cotdistill.corrupt import label_tokens
from cotdistill.encode import PROMPT, RATIONALE, encode, example_rng
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.kernels.blocks import blocks_of
from cotdistill.runs.attributors import load_attributors, split_halves
from cotdistill.runs.method_scores import MethodScores
from cotdistill.students import load_student
from cotdistill.tiny import TINY

torch.set_num_threads(1)
# A label of several tokens
EXAMPLE = Example("q1", "What is a sword made of?", ("steel", "cotton wool", "oak"), 1)
TEXT = "A sword is made of steel. Steel is hard, crème 🍮."
EXAMPLES = [
    EXAMPLE,
    Example("q2", "What melts?", ("ice", "iron"), 0),
    Example("q3", "Why?", ("so", "no"), 1),
]
RATIONALES = {
    "q1": Rationale("q1", TEXT),
    "q2": Rationale("q2", "Ice melts when it is warm."),
    "q3": Rationale("q3", "Yes"),
}


@cache
def student(name, dtype=torch.float32):
    return load_student(name, dtype=dtype)


def whole_logp(model, parts, rationale_ids=None):
    """log p(label) of one whole sequence, no cache, all logits: the definition."""
    ids = (
        parts.prefix
        + (parts.rationale if rationale_ids is None else rationale_ids)
        + parts.frame
        + parts.label
    )
    with torch.no_grad():
        logp = (
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
        )
    start = len(ids) - len(parts.label)
    return sum(logp[start + i - 1, token].item() for i, token in enumerate(parts.label))


def forward_from_ids(model, parts):
    n, label = len(parts.label), torch.tensor(parts.label)
    return lambda ids: (
        model(input_ids=ids, use_cache=False)
        .logits[:, -n - 1 : -1]
        .log_softmax(-1)[:, range(n), label]
        .sum(1)
    )


def forward_from_embeds(model, parts):
    """The whole sequence from embeddings [B, T, D], uncached."""
    n, label = len(parts.label), torch.tensor(parts.label)
    return lambda x: (
        model(inputs_embeds=x, use_cache=False)
        .logits[:, -n - 1 : -1]
        .log_softmax(-1)[:, range(n), label]
        .sum(1)
    )


def whole_ids(parts):
    return torch.tensor([parts.prefix + parts.rationale + parts.frame + parts.label])


def place(parts):
    return slice(len(parts.prefix), len(parts.prefix) + len(parts.rationale))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("label_format", ["text", "letter", "both"])
def test_the_sequence_is_the_one_of_training(name, label_format):
    parts = split_sequence(student(name), EXAMPLE, TEXT, label_format)
    trained = encode(student(name), EXAMPLE, TEXT, Arm("pre_cot"), label_format)
    assert tuple(parts.prefix + parts.rationale + parts.frame + parts.label) == trained.ids[:-1]
    assert parts.rationale == [
        i for i, k in zip(trained.ids, trained.kinds, strict=False) if k == RATIONALE
    ]
    assert len(parts.prefix) == trained.kinds.count(PROMPT) and len(parts.words) == len(
        parts.rationale
    )


@pytest.mark.parametrize("name", TINY)
def test_integrated_gradients_equal_plain_captum(name):
    s = student(name)
    parts = split_sequence(s, EXAMPLE, TEXT)
    assert len(parts.label) > 2
    ids = whole_ids(parts)
    base = ids.clone()
    base[:, place(parts)] = s.filler_id
    plain = LayerIntegratedGradients(
        forward_from_ids(s.model, parts), s.model.get_input_embeddings()
    )
    reference, delta = plain.attribute(ids, base, n_steps=12, return_convergence_delta=True)
    reference = reference.sum(-1)[0].detach().numpy()
    found = attribute_rationale(s, EXAMPLE, TEXT, "integrated_gradients", n_steps=12, batch_size=5)
    assert np.abs(found.scores - reference[place(parts)]).max() < 1e-4 * np.abs(reference).max()
    assert found.delta == pytest.approx(delta.item(), abs=2e-4)
    assert found.ids == tuple(parts.rationale) and found.words == tuple(parts.words)


@pytest.mark.parametrize("name", TINY)
def test_gradient_methods_equal_plain_captum(name):
    s = student(name)
    parts = split_sequence(s, EXAMPLE, TEXT)
    embeds = s.model.get_input_embeddings()(whole_ids(parts)).detach().requires_grad_()
    forward = forward_from_embeds(s.model, parts)
    times = InputXGradient(forward).attribute(embeds).sum(-1)[0, place(parts)].detach().numpy()
    found = attribute_rationale(s, EXAMPLE, TEXT, "input_x_gradient")
    assert np.allclose(found.scores, times, atol=1e-4 * np.abs(times).max())
    assert found.logp_full == pytest.approx(whole_logp(s.model, parts), abs=1e-4)
    length = Saliency(forward).attribute(embeds).norm(dim=-1)[0, place(parts)].detach().numpy()
    assert np.allclose(attribute_rationale(s, EXAMPLE, TEXT, "saliency").scores, length, rtol=1e-3)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_gradients_equal_finite_differences(name):
    """d log p / d(scale of one token's embedding) at scale 1 is input x gradient.

    Central differences in float64.
    """
    s = student(name, torch.float64)
    parts = split_sequence(s, EXAMPLE, TEXT)
    embeds, forward = (
        s.model.get_input_embeddings()(whole_ids(parts)).detach(),
        forward_from_embeds(s.model, parts),
    )
    found = attribute_rationale(s, EXAMPLE, TEXT, "input_x_gradient").scores
    # Llama's norms compute in float32 whatever the dtype: a wider step and tolerance there.
    step, tolerance = (1e-5, 1e-6) if name == "tiny-gpt2" else (2e-2, 2e-3)
    for token in range(0, len(found), 5):
        at = len(parts.prefix) + token
        up, down = embeds.clone(), embeds.clone()
        up[0, at] *= 1 + step
        down[0, at] *= 1 - step
        with torch.no_grad():
            slope = (forward(up) - forward(down)).item() / (2 * step)
        assert found[token] == pytest.approx(slope, abs=tolerance * np.abs(found).max())


@pytest.mark.parametrize("name", TINY)
def test_occlusion_equals_brute_force(name):
    s = student(name)
    parts = split_sequence(s, EXAMPLE, TEXT)
    full = whole_logp(s.model, parts)

    def fall(hidden):
        return full - whole_logp(
            s.model,
            parts,
            [s.filler_id if i in hidden else t for i, t in enumerate(parts.rationale)],
        )

    n = len(parts.rationale)
    found = attribute_rationale(s, EXAMPLE, TEXT, "occlusion", batch_size=7)
    assert np.allclose(found.scores, [fall({i}) for i in range(n)], atol=1e-4)
    assert found.logp_baseline == pytest.approx(full - fall(set(range(n))), abs=1e-4)
    words = attribute_rationale(s, EXAMPLE, TEXT, "occlusion_word")
    expected = [
        fall({i for i in range(n) if parts.words[i] == w}) for w in range(len(TEXT.split()))
    ]
    assert np.allclose(aggregate_to_words(words.scores, words.words), expected, atol=1e-4)


@pytest.mark.parametrize("name", [*TINY, "sliding"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_variants_that_start_at_different_places_equal_whole_passes(name, batch_size):
    s = sliding_student() if name == "sliding" else student(name)
    parts, rng = split_sequence(s, EXAMPLE, TEXT), np.random.default_rng(0)
    n, before = len(parts.rationale), s.model.config._attn_implementation
    assert name != "sliding" or len(parts.prefix) > s.model.config.sliding_window
    keep = np.array(
        [[t < a or rng.random() < 0.5 for t in range(n)] for a in rng.integers(n + 1, size=9)]
        + [[True] * n, [False] * n]
    )
    found = removal_logps(s, EXAMPLE, TEXT, keep, batch_size=batch_size)
    exact = [
        whole_logp(
            s.model,
            parts,
            [t if k else s.filler_id for t, k in zip(parts.rationale, row, strict=False)],
        )
        for row in keep
    ]
    assert np.allclose(found, exact, atol=1e-4)
    assert s.model.config._attn_implementation == before


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion_word"])
def test_the_last_blocks_mlp_runs_where_the_label_is_predicted_and_nowhere_else(name, method):
    s, rows = student(name), []
    parts = split_sequence(s, EXAMPLE, TEXT)
    inner = next(
        m
        for m in blocks_of(s.model)[-1].mlp.modules()
        if m.__class__.__name__ in ("Linear", "Conv1D")
    )
    hook = inner.register_forward_pre_hook(
        lambda _, given: rows.append(given[0].shape[:-1].numel())
    )
    attribute_rationale(s, EXAMPLE, TEXT, method, n_steps=8)
    hook.remove()
    prompt = (
        len(parts.prefix)
        if method == "integrated_gradients"
        else len(parts.prefix + parts.rationale)
    )
    variants = 2 + (8 if method == "integrated_gradients" else len(TEXT.split()))
    # The shared text is run through once, whole
    assert sum(rows) == prompt + variants * len(parts.label)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("baseline", ["filler", "mean"])
def test_scores_are_complete_and_the_ends_are_right(name, baseline):
    s = student(name)
    found = attribute_rationale(
        s, EXAMPLE, TEXT, "integrated_gradients", n_steps=64, baseline=baseline
    )
    assert abs(found.delta) < 1e-3 * max(1, abs(found.logp_full - found.logp_baseline))
    parts = split_sequence(s, EXAMPLE, TEXT)
    assert found.logp_full == pytest.approx(whole_logp(s.model, parts), abs=1e-4)
    embed = s.model.get_input_embeddings()
    x = embed(whole_ids(parts)).detach()
    # Gemma's scale comes with the layer
    everything = embed(torch.arange(embed.num_embeddings)).mean(0)
    x[0, place(parts)] = everything if baseline == "mean" else embed(torch.tensor(s.filler_id))
    with torch.no_grad():
        assert found.logp_baseline == pytest.approx(
            forward_from_embeds(s.model, parts)(x).item(), abs=1e-4
        )


@pytest.mark.parametrize("name", TINY)
def test_attention_is_the_models_own(name):
    s = load_student(name)
    parts = split_sequence(s, EXAMPLE, TEXT)
    before = s.model.config._attn_implementation
    last = attribute_rationale(s, EXAMPLE, TEXT, "attention").scores
    rollout = attribute_rationale(s, EXAMPLE, TEXT, "rollout").scores
    assert s.model.config._attn_implementation == before == "sdpa"
    s.model.set_attn_implementation("eager")
    ids = whole_ids(parts)[:, :-1]
    with torch.no_grad():
        layers = [
            a[0].numpy()
            for a in s.model(input_ids=ids, output_attentions=True, use_cache=False).attentions
        ]
    # The positions that predict the label
    rows = range(ids.shape[1] - len(parts.label), ids.shape[1])
    by_hand = np.mean([layers[-1][:, row, place(parts)].mean(0) for row in rows], 0)
    assert np.allclose(last, by_hand, atol=1e-6)
    assert (last >= 0).all() and last.sum() <= 1 + 1e-6
    joined = [0.5 * layer.mean(0) + 0.5 * np.eye(ids.shape[1]) for layer in layers]
    flow = joined[1] @ joined[0]
    assert np.allclose(flow.sum(1), 1, atol=1e-5)
    assert np.allclose(rollout, flow[list(rows)][:, place(parts)].mean(0), atol=1e-6)


def test_similarity_finds_the_labels_own_tokens():
    s = student("tiny-llama")
    example = Example("q", "What?", ("steel", "oak"), 0)
    found = attribute_rationale(s, example, "It is steel", "embedding_similarity")
    weight = s.model.get_input_embeddings().weight.detach().numpy()
    target = weight[s.encode(" steel")].mean(0)
    by_hand = [
        weight[i] @ target / np.linalg.norm(weight[i]) / np.linalg.norm(target) for i in found.ids
    ]
    assert np.allclose(found.scores, by_hand, atol=1e-6)
    assert set(s.encode(" steel")) & {found.ids[i] for i in top_k(found.scores, 1)}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma"])
def test_many_equal_one_by_one_and_the_model_is_left_as_it_was(name):
    s = load_student(name)
    s.model.train()
    s.model.get_input_embeddings().weight.requires_grad_(False)
    flags = [p.requires_grad for p in s.model.parameters()]
    weights = {k: v.clone() for k, v in s.model.state_dict().items()}
    selections, done = {"q1": [0, 3], "q2": [1], "q3": []}, []
    for method in METHODS:
        together = attribute_all(
            s,
            EXAMPLES,
            RATIONALES,
            method,
            n_steps=6,
            batch_size=16,
            selections=selections,
            seed=3,
            progress=done.append,
        )
        backwards = attribute_all(
            s,
            EXAMPLES[::-1],
            RATIONALES,
            method,
            n_steps=6,
            batch_size=1,
            selections=selections,
            seed=3,
        )
        for a, b in zip(together, backwards[::-1], strict=False):
            assert a.id == b.id and len(a.scores) == len(a.ids) and np.isfinite(a.scores).all()
            assert np.allclose(a.scores, b.scores, atol=2e-5), method
    assert done == [1, 2, 3] * len(METHODS)
    assert s.model.training and [p.requires_grad for p in s.model.parameters()] == flags
    assert all(torch.equal(v, weights[k]) for k, v in s.model.state_dict().items())


def test_random_and_human():
    s, selections = student("tiny-llama"), {"q1": [0, 3]}
    a, b = (
        attribute_all(s, [EXAMPLE], RATIONALES, "random", seed=seed)[0].scores for seed in (1, 2)
    )
    assert not np.allclose(a, b) and ((a >= 0) & (a < 1)).all()
    human = attribute_rationale(s, EXAMPLE, TEXT, "human", selections=selections)
    assert top_k(human.scores, 2) == [0, 3] and set(human.scores) == {0, 1}


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_and_a_short_rationale(method):
    s = student("tiny-gpt2")
    options = dict(rng=np.random.default_rng(0), selections={"q1": []}, n_steps=3)
    assert attribute_rationale(s, EXAMPLE, "", method, **options).scores.shape == (0,)
    assert np.isfinite(attribute_rationale(s, EXAMPLE, ".", method, **options).scores).all()


def test_words_and_top_k():
    assert aggregate_to_words([1, 2, 4.0, -1], [0, 0, 1, 2]).tolist() == [3, 4, -1]
    assert aggregate_to_words([1, 2, 4.0, -1], [0, 0, 1, 2], "mean").tolist() == [1.5, 4, -1]
    assert aggregate_to_words([1, 2, 4.0, -1], [0, 0, 1, 2], "max").tolist() == [2, 4, -1]
    assert aggregate_to_words([], []).shape == (0,)
    assert top_k([1, 3, 3, 0], 1) == [1] and top_k([1, 3, 3, 0], 3) == [0, 1, 2]
    assert top_k([1, 3, 3, 0], 0.5) == [1, 2] and top_k([1, 3], 15) == [0, 1] and top_k([], 3) == []


# ------------------------------------------------------------------------------------------------
# files


def test_scores_come_back_as_written(tmp_path):
    s, made = student("tiny-llama"), {"student": "x", "steps": 4}
    found = [
        attribute_rationale(s, e, RATIONALES[e.id].text, "integrated_gradients", n_steps=4)
        for e in EXAMPLES
    ]
    found.append(
        attribute_rationale(
            s, Example("q4", "?", ("a", "b"), 0), "So", "random", rng=np.random.default_rng(0)
        )
    )
    path = tmp_path / "deep" / "scores.jsonl"
    print_of = write_scores(path, found, made)
    back, again = read_attributions(path)
    assert again == print_of and [p.name for p in path.parent.iterdir()] == ["scores.jsonl"]
    for a, b in zip(found, back, strict=True):
        assert (a.id, a.method, a.ids, a.words) == (b.id, b.method, b.ids, b.words) and (
            a.scores == b.scores
        ).all()
        assert a.delta == b.delta or math.isnan(a.delta) and math.isnan(b.delta)
    assert read_scores(path)[0]["q2"].tolist() == found[1].scores.tolist()
    assert write_scores(tmp_path / "b", found, made | {"steps": 5}) != print_of
    lines = path.read_text().splitlines()
    for spoilt, words in (
        (lines[:-1], "3 questions"),
        (lines[1:], "head"),
        ([], "head"),
        ([lines[0].replace('"steps": 4', '"steps": 9'), *lines[1:]], "head"),
        ([lines[0], lines[1].replace('"words": [0', '"words": [0, 0'), *lines[2:]], "scores for"),
        ([lines[0], '{"id": "q1"}', *lines[2:]], ":2"),
    ):
        path.write_text("".join(line + "\n" for line in spoilt))
        with pytest.raises(DataError, match=words):
            read_attributions(path)


def test_selections_are_appended_and_the_last_counts(tmp_path):
    path = tmp_path / "h" / "human.jsonl"
    write_selection(path, "q1", [3, 0, 3])
    write_selection(path, "é", [])
    write_selection(path, "q1", np.array([2]))
    assert read_selections(path) == {"q1": [2], "é": []}
    for line in (
        '{"id": "q1"}',
        '{"id": 3, "tokens": []}',
        '{"id": "q", "tokens": [-1]}',
        '{"id": "q", "tokens": [true]}',
    ):
        path.write_text('{"id": "a", "tokens": [0]}\n' + line + "\n")
        with pytest.raises(DataError, match=":2: found"):
            read_selections(path)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(method="magic"), "expected one of integrated"),
        (dict(method="saliency", baseline="nought"), "baseline 'nought'"),
        (dict(method="random"), "no random generator"),
        (dict(method="human"), "no human selection"),
        (dict(method="human", selections={"q1": [0, 999]}), "selected token 999"),
    ],
)
def test_bad_input_has_one_clear_error(options, words):
    with pytest.raises(DataError, match=words):
        attribute_rationale(student("tiny-gpt2"), EXAMPLE, TEXT, **options)


# ----------------------------------------------------------------------------------------
# faithfulness


def test_faithfulness_equals_erasing_by_hand():
    s = student("tiny-llama")
    parts = split_sequence(s, EXAMPLE, TEXT)
    n = len(parts.rationale)
    scores = {
        "occlusion": attribute_rationale(s, EXAMPLE, TEXT, "occlusion").scores,
        "random": np.random.default_rng(0).random(n),
    }
    shares = (0, 0.01, 0.2, 0.5, 1)
    table = faithfulness(s, EXAMPLE, TEXT, scores, shares, kept=shares, batch_size=3)
    full = whole_logp(s.model, parts)
    assert len(table) == 10
    counts = [0, 1, round(0.2 * n), round(0.5 * n), n]
    for row, k in zip(table.itertuples(), counts * 2, strict=True):
        top = set(sorted(range(n), key=lambda i: -scores[row.method][i])[:k])
        without, only = (
            [s.filler_id if (i in top) == gone else t for i, t in enumerate(parts.rationale)]
            for gone in (True, False)
        )
        assert row.tokens == k and row.share == k / n
        assert row.deletion == pytest.approx(whole_logp(s.model, parts, without), abs=1e-4)
        assert row.insertion == pytest.approx(whole_logp(s.model, parts, only), abs=1e-4)
        assert row.comprehensiveness == pytest.approx(full - row.deletion, abs=1e-4)
        assert row.sufficiency == pytest.approx(full - row.insertion, abs=1e-4)
    assert faithfulness(s, EXAMPLE, "", {"random": []}).empty


def test_a_curve_runs_from_0_to_all_tokens_with_each_number_of_tokens_once():
    s = student("tiny-llama")
    assert token_counts((0, 0.01, 0.05, 0.1, 1), 18) == [0, 1, 2, 18]
    parts = split_sequence(s, EXAMPLES[1], RATIONALES["q2"].text)
    n = len(parts.rationale)
    short = faithfulness(s, EXAMPLES[1], RATIONALES["q2"].text, {"m": np.arange(n)})
    counts = short["tokens"].tolist()
    assert counts == sorted(set(counts)) and counts[0] == 0 and counts[-1] == n
    assert short["share"].tolist() == [k / n for k in counts]
    # Sufficiency is measured at fewer points, and comprehensiveness over the same ones
    assert short["insertion"].isna().any() and short["insertion"].notna().any()
    pd.testing.assert_series_equal(
        short["comprehensiveness"].isna(), short["insertion"].isna(), check_names=False
    )


def test_random_is_the_mean_of_several_orders():
    s, shares = student("tiny-gpt2"), (0, 0.3, 0.6, 1)
    found = {"random": attribute_all(s, EXAMPLES, RATIONALES, "random", seed=3)}
    table = faithfulness_all(s, EXAMPLES, RATIONALES, found, seed=3, deleted=shares, kept=(0.3,))
    assert set(table["id"]) == {"q1", "q2", "q3"} and set(table["method"]) == {"random"}
    parts = split_sequence(s, EXAMPLE, TEXT)
    draws = example_rng("q1", 3, 5).random((DRAWS, len(parts.rationale)))
    for row in table[table["id"] == "q1"].itertuples():
        gone = [set(np.argsort(-draw, kind="stable")[: row.tokens]) for draw in draws]
        logps = [
            whole_logp(
                s.model,
                parts,
                [s.filler_id if i in g else t for i, t in enumerate(parts.rationale)],
            )
            for g in gone
        ]
        assert row.deletion == pytest.approx(np.mean(logps), abs=1e-4)


def made_curves():
    """Two questions of 5 and 10 tokens; a finds what matters at once, random bit by bit."""
    rows = []
    for question, n in (("1", 5), ("2", 10)):
        for k in (0, n // 5, n):
            rows.append((question, "a", k, k / n, -1.0 if k == 0 else -3.0))
            rows.append((question, "random", k, k / n, -1.0 - 2 * k / n))
    return pd.DataFrame(rows, columns=["id", "method", "tokens", "share", "deletion"])


def test_curves_on_a_common_grid_and_their_areas():
    table = made_curves()
    grid = curves_on_grid(table, 11)
    assert len(grid) == 2 * 2 * 11
    one = grid[(grid["id"] == "2") & (grid["method"] == "a")].set_index("fraction")["deletion"]
    assert np.allclose(one.to_numpy(), [-1, -2] + [-3] * 9)
    areas = curve_areas(table).set_index(["id", "method"])
    # By hand: a trapezoid of -1 to -3 over a fifth, then -3; the diagonal's mean is -2
    assert np.allclose(areas.xs("a", level="method")["area"], -0.2 * 2 - 0.8 * 3)
    assert np.allclose(areas.xs("random", level="method")["area"], -2)
    assert np.allclose(areas.xs("a", level="method")["below_random"], 0.8)
    assert areas.xs("random", level="method")["below_random"].isna().all()
    assert curve_areas(table[table["method"] == "a"])["below_random"].isna().all()


# ----------------------------------------------------------------------------------------
# what a rationale moves, and what is known without it


@pytest.mark.parametrize("name", TINY)
def test_log_p_without_a_rationale_is_that_of_the_whole_sequence(name):
    s = student(name)
    exact = [whole_logp(s.model, split_sequence(s, e, "")) for e in EXAMPLES]
    assert np.allclose(label_logps(s, EXAMPLES), exact, atol=1e-4)


def test_what_is_known_by_heart_is_found_and_nothing_else():
    rng = np.random.default_rng(0)
    before = {f"{g}{i}": rng.normal(-20, 5) for g in "ath" for i in range(120)}

    def learnt(group, gain):
        return {i: v + rng.normal(gain, 1) for i, v in before.items() if i[0] == group}

    names = {"attributed": ("a", 2), "trained on": ("t", 0.5), "held out": ("h", 0.5)}
    groups = {name: learnt(*how) for name, how in names.items()}
    table = known_by_heart(groups, before, rng).set_index("questions")
    gain = {n: np.array([v - before[i] for i, v in g.items()]) for n, g in groups.items()}
    row, same = table.loc["attributed"], table.loc["trained on"]
    # Welch's interval, which needs no bootstrap
    welch = sps.ttest_ind(gain["attributed"], gain["held out"], equal_var=False)
    interval = welch.confidence_interval()
    assert row["gain"] == pytest.approx(gain["attributed"].mean())
    assert row["difference"] == pytest.approx(row["gain"] - gain["held out"].mean())
    assert row["low"] == pytest.approx(interval.low, abs=0.05)
    assert row["high"] == pytest.approx(interval.high, abs=0.05)
    assert row["low"] > 0 and same["low"] < 0 < same["high"]
    assert np.isnan(table.loc["held out", "difference"])
    alone = known_by_heart({"attributed": {"a": -1.0}, "held out": {}}, {"a": -2.0}, rng)
    assert alone["questions"].tolist() == ["attributed"] and alone["difference"].isna().all()


def test_what_a_rationale_moves_by_hand():
    table = movement(made_curves(), {"1": -2.0, "2": -4.0}).set_index("id")
    assert table["moved"].tolist() == [2, 2] and np.allclose(table["share"], 2 / 3)
    assert table["moved_from_nothing"].tolist() == [1, 3]
    gaps = pd.DataFrame(dict(delta=[-0.1, 0.3], relative=[0.05, 0.15]))
    shown = movement_quartiles(table.reset_index(), gaps)
    assert shown.loc["error of integrated gradients (nats)", "median"] == pytest.approx(0.2)
    assert shown["median"].iloc[0] == 2 and len(shown) == 5
    assert movement(pd.DataFrame(), {}).empty


@pytest.mark.parametrize("method", [m for m in METHODS if m.endswith(WITHOUT_LABEL)])
def test_a_selector_without_the_labels_words_never_keeps_one(method):
    s, text = student("tiny-llama"), "Cotton wool is soft, and steel is not cotton wool."
    named = label_tokens(s, f" {text}", EXAMPLE.label)
    rationales = {"q1": Rationale("q1", text)}
    base, found = (
        attribute_all(s, [EXAMPLE], rationales, m, n_steps=4, seed=1)[0].scores
        for m in (method.removesuffix(WITHOUT_LABEL), method)
    )
    assert any(named) and not all(named)
    assert [score == LEFT_OUT for score in found] == named
    assert (found[~np.array(named)] == base[~np.array(named)]).all()
    everything = len(found)
    assert top_k(found, everything) == [i for i, one in enumerate(named) if not one]
    for unit in ("token", "word", "sentence"):
        arm = arm_from_name("post_cot_kept", amount=float(everything), selector=method, unit=unit)
        kept = encode(s, EXAMPLE, text, arm, rng=np.random.default_rng(0), scores=found)
        ids = [i for i, kind in zip(kept.ids, kept.kinds, strict=True) if kind == RATIONALE]
        others = [t for t, one in zip(s.encode(f" {text}"), named, strict=True) if not one]
        assert ids == ([] if unit == "sentence" else others)


def test_the_share_of_label_words_among_the_top():
    s, text = student("tiny-llama"), "It is cotton wool or steel."
    named = np.array(label_tokens(s, f" {text}", EXAMPLE.label))
    n, rationales = len(named), {"q1": Rationale("q1", text)}
    best, worst = (
        label_word_share(
            s, [EXAMPLE], rationales, [fake("q1", "m", sign * named)], int(named.sum())
        ).iloc[0]
        for sign in (1, -1)
    )
    assert best["label_share"] == 1 and best["all_share"] == named.sum() / n
    assert worst["label_share"] == max(0, 2 * named.sum() - n) / named.sum()


def test_randomising_changes_what_it_says_and_the_check_sees_it():
    s = student("tiny-llama")
    top = randomise_weights(s, 1, 0)
    for (name, a), (_, b) in zip(
        s.model.named_parameters(), top.model.named_parameters(), strict=False
    ):
        assert torch.equal(a, b) != ("layers.1." in name and a.std() > 0), name
    everything = randomise_weights(s, None, 0)
    assert not torch.equal(
        everything.model.get_input_embeddings().weight, s.model.get_input_embeddings().weight
    )
    assert torch.equal(
        randomise_weights(s, None, 0).model.lm_head.weight, everything.model.lm_head.weight
    )
    table = randomisation_check(s, EXAMPLES[:2], RATIONALES, "occlusion", layers=(0, None))
    assert (
        np.allclose(table.loc[table["layers"] == 0, "rho"], 1)
        and (table.loc[table["layers"] == "all", "rho"] < 0.9).all()
    )
    own = attribute_rationale(s, EXAMPLE, TEXT, "occlusion").scores
    other = attribute_rationale(everything, EXAMPLE, TEXT, "occlusion").scores
    ranks = [pd.Series(x).rank() for x in (own, other)]
    assert table["rho"].iloc[2] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def fake(question, method, scores, words=None):
    return Attribution(
        question,
        method,
        tuple(range(len(scores))),
        np.array(scores, float),
        tuple(words or range(len(scores))),
    )


def test_agreement_by_hand():
    a = [fake("1", "a", [1, 2, 3, 4]), fake("2", "a", [1, 2, 3, 4])]
    b = [fake("1", "b", [1, 2, 3, 4]), fake("2", "b", [4, 3, 2, 1])]
    c = [fake("1", "c", [0, 0, 1, 1])]
    table = agreement({"a": a, "b": b, "c": c}, 2, np.random.default_rng(0))
    tau = agreement_square(table)
    assert tau.loc["a", "b"] == tau.loc["b", "a"] == 0 and tau.loc["a", "a"] == 1
    assert tau.loc["a", "c"] == pytest.approx(sps.kendalltau([1, 2, 3, 4], [0, 0, 1, 1]).statistic)
    overlap = agreement_square(table, "overlap")
    assert overlap.loc["a", "b"] == 0.5 and overlap.loc["a", "c"] == 1
    ab = table[
        (table["method_a"] == "a") & (table["method_b"] == "b") & (table["measure"] == "tau")
    ].iloc[0]
    assert (ab["low"], ab["high"], ab["n"]) == (-1, 1, 2)
    assert set(table.loc[table["measure"] == "chance", "value"]) == {0.5}
    with pytest.raises(DataError, match="different tokens"):
        agreement({"a": a, "b": [fake("1", "b", [1, 2])]}, 2, np.random.default_rng(0))
    flat = agreement({"a": a[:1], "b": [fake("1", "b", [0, 0, 0, 0])]}, 2, np.random.default_rng(0))
    assert flat.loc[flat["measure"] == "tau", "n"].tolist() == [0]
    words = agreement(
        {"a": [fake("1", "a", [0, 5, 1], [0, 0, 1])], "b": [fake("1", "b", [3, 0, 4], [0, 0, 1])]},
        1,
        np.random.default_rng(0),
        level="word",
    )
    assert agreement_square(words).loc["a", "b"] == -1


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(150):
        table = pd.DataFrame({"id": range(40), "method": "m", "x": rng.normal(1, 2, 40)})
        row = mean_intervals(table, ["method"], ["x"], rng, 300).iloc[0]
        hits += row["low"] <= 1 <= row["high"]
        assert row["value"] == pytest.approx(table["x"].mean())
    assert 0.87 <= hits / 150 <= 0.99


@pytest.mark.parametrize("name", TINY)
def test_key_tokens_are_those_of_the_spans(name):
    s = student(name)
    text = "A sword is made of steel."
    spans = tuple((text.index(w), text.index(w) + len(w)) for w in ("sword", "steel"))
    rationale = Rationale("r", text, 0, spans)
    key = key_tokens(s, rationale)
    ids = s.encode(f" {text}")
    assert len(key) == len(ids)
    assert s.decode([i for i, k in zip(ids, key, strict=False) if k]).replace(".", "").split() == [
        "sword",
        "steel",
    ]
    perfect = key_token_precision_recall(s, rationale, key.astype(float))
    assert perfect["precision"] == perfect["recall"] == perfect["average_precision"] == 1
    worst = key_token_precision_recall(s, rationale, -key.astype(float), k=1)
    assert worst["precision"] == worst["recall"] == 0 and worst["chance"] == key.mean()
    assert (
        perfect["chance_average_precision"]
        == random_average_precision(len(key), int(key.sum()))
        > perfect["chance"]
    )
    with pytest.raises(DataError, match="key_spans"):
        key_token_precision_recall(s, Rationale("r", text), key)
    with pytest.raises(DataError, match="1 scores"):
        key_token_precision_recall(s, rationale, [1.0])


@pytest.mark.parametrize("n, relevant", [(1, 1), (4, 1), (5, 2), (6, 3), (5, 5)])
def test_the_average_precision_of_a_random_order_is_that_of_all_orders(n, relevant):
    orders = [
        average_precision_score(np.isin(np.arange(n), key), -np.arange(n))
        for key in itertools.combinations(range(n), relevant)
    ]
    assert random_average_precision(n, relevant) == pytest.approx(np.mean(orders))


@pytest.mark.parametrize(
    "word, kind",
    [
        ("The", "determiner"),
        ("because", "conjunction"),
        ("of", "preposition"),
        ("steel.", "noun"),
        ("(it", "pronoun"),
        ("isn’t", "auxiliary"),
        ("3.5", "number"),
        ("—", "punctuation"),
        ("quickly", "adverb"),
        ("melting", "verb"),
        ("dangerous,", "adjective"),
        ("hardness", "noun"),
    ],
)
def test_word_classes(word, kind):
    assert part_of_speech(word) == kind


def test_what_is_selected():
    text = "A sword is made of cotton steel."
    found = fake("q1", "m", [0, 0, 0, 0, 0, 2, 3, 1], [0, 1, 2, 3, 4, 5, 6, 6])
    words = selected_words(EXAMPLE, text, found, 2)
    assert words.loc[words["selected"], "word"].tolist() == ["cotton", "steel."]
    assert words["in_question"].tolist() == [True, True, True, True, True, False, False]
    assert words.loc[words["in_label"], "word"].tolist() == ["cotton"]
    assert words.loc[words["in_options"], "word"].tolist() == ["cotton", "steel."]
    table = selection_table(words).set_index("property")
    assert table.loc["content", "selected"] == 1 and table.loc["content", "all"] == pytest.approx(
        4 / 7
    )
    assert table.loc["in_label", "selected"] == 0.5 and table.loc["in_label", "all"] == 0.25
    assert table.loc["in_label", "ratio"] == 2 and table.loc["noun", "n"] == 2
    with pytest.raises(DataError, match="words"):
        selected_words(EXAMPLE, "two words", found, 2)


def test_scores_train_the_arms_that_need_them():
    s = student("tiny-llama")
    found = attribute_rationale(s, EXAMPLE, TEXT, "occlusion")
    kept = encode(
        s,
        EXAMPLE,
        TEXT,
        Arm("post_cot", "kept", amount=3, selector="occlusion"),
        rng=np.random.default_rng(0),
        scores=found.scores,
    )
    assert [i for i, k in zip(kept.ids, kept.kinds, strict=False) if k == RATIONALE] == [
        found.ids[t] for t in top_k(found.scores, 3)
    ]
    # Plain numbers: they are written to JSON
    assert all(type(t) is int for t in top_k(found.scores, 3))


def test_selectors_without_a_model_against_counting_by_hand():
    """answer_words marks the words of the answer; tf-idf is scikit-learn's.

    Frequency_matched prefers what is as frequent as the answer.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    s, example = student("tiny-llama"), Example("q1", "What holds tea?", ("a cup", "a net"), 0)
    text, rest = (
        "the cup holds the jar and the net",
        ["the jar holds the net and the net", "the cup", "the net"],
    )
    rationales = {"q1": Rationale("q1", text, 0)} | {
        f"r{i}": Rationale(f"r{i}", t, 0) for i, t in enumerate(rest)
    }
    examples = [example] + [replace(example, id=f"r{i}") for i in range(3)]
    words = np.array(split_sequence(s, example, text).words)
    by_word = {
        m: aggregate_to_words(attribute_all(s, examples, rationales, m)[0].scores, words)
        for m in ("answer_words", "tfidf", "frequency_matched")
    }
    assert [
        w for w, value in zip(text.split(), by_word["answer_words"], strict=False) if value
    ] == ["cup"]
    sk = TfidfVectorizer(norm=None, token_pattern=r"\S+").fit([text, *rest])
    wanted = dict(zip(sk.get_feature_names_out(), sk.transform([text]).toarray()[0], strict=False))
    np.testing.assert_allclose(
        by_word["tfidf"],
        [
            wanted[w.removesuffix("s") if w == "holds" else w] if w != "holds" else wanted["holds"]
            for w in text.split()
        ],
    )
    match = dict(zip(text.split(), by_word["frequency_matched"], strict=False))
    # Cup, jar, holds and "and" twice, net four times, the most often
    assert match["cup"] == -1 < match["the"] < match["net"] < match["jar"] == 1.0
    assert attribute_rationale(s, example, "", "tfidf").scores.shape == (0,)


# ----------------------------------------------------------------------------------------
# who attributes what


def test_halves_are_equal_disjoint_and_keep_equal_questions_together():
    examples = [Example(f"q{i}", f"What is {i // 2}?", ("a", "b"), i % 2) for i in range(20)]
    one, two = split_halves(examples)
    assert [e.id for e in one + two] != [e.id for e in examples] and len(one) == len(two) == 10
    assert {e.id for e in one} | {e.id for e in two} == {e.id for e in examples}
    assert not {e.question for e in one} & {e.question for e in two}
    again = split_halves(examples[::-1])
    assert {e.id for e in again[0]} == {e.id for e in one}
    with pytest.raises(DataError, match="cannot be split into two halves"):
        split_halves(examples[:2])


def test_a_cross_fitted_student_attributes_what_it_was_not_trained_on(store, capsys):
    study = make_study(seeds=[0, 1])
    attributors = load_attributors(study, "cross_fitted", 0)
    questions = study.train_questions(0)
    assert len({one.fingerprint for one in attributors}) == 2
    for one in attributors:
        assert one.trained_on and not one.trained_on & one.covers
        assert {e.id for e in one.choose(questions)} == one.covers
    assert attributors[0].covers | attributors[1].covers == {e.id for e in questions}
    options = dict(n_steps=4, baseline="filler", seed=0)
    methods = ["occlusion", "tfidf", "occlusion_without_label"]
    found = MethodScores(study, attributors, questions, methods, options)
    by_id = {a.id: a.scores for a in found.by_method["occlusion"]}
    # Each score is that of its own student, and words are counted over all questions
    for one in attributors:
        student = one.load()
        for e in one.choose(questions):
            text = study.data.rationales[e.id].text
            alone = attribute_rationale(student, e, text, "occlusion").scores
            assert np.allclose(by_id[e.id], alone, atol=1e-5)
    whole = attribute_all(study.student, questions, study.data.rationales, "tfidf")
    for a, b in zip(found.by_method["tfidf"], whole, strict=True):
        assert np.allclose(a.scores, b.scores)
    scores, print_of = found.scores()["occlusion", 1]
    assert set(scores) == {e.id for e in questions} and len(print_of) == 16
    known = found.known_by_heart().set_index("questions")
    assert known.loc["trained on", "n"] == known.loc["attributed", "n"] == len(questions)
    moved = found.movement()
    assert len(moved) == len(questions) and np.isfinite(moved["moved_from_nothing"]).all()
    capsys.readouterr()
    again = load_attributors(study, "cross_fitted", 0)
    assert [a.fingerprint for a in again] == [a.fingerprint for a in attributors]
    assert capsys.readouterr().out.count("from the store") == 2


def test_a_comparison_without_methods_is_empty(store):
    study = make_study(seeds=[0])
    attributors = load_attributors(study, "undistilled", 0)
    none = MethodScores(study, attributors, study.train_questions(0)[:2], [], dict(seed=0))
    tables = [none.movement(), none.comparison(5), none.deletion(), none.gaps()]
    tables += [none.randomised(2), none.key_tokens(), none.word_classes(5), none.agreement(5)]
    assert all(table.empty for table in [*tables, none.comparison_table(tables[1])])
    assert none.by_method == {} and (none.known_by_heart()["before"] == 0).all()
    with pytest.raises(DataError, match="expected pre_cot, cross_fitted or undistilled"):
        load_attributors(study, "teacher", 0)
