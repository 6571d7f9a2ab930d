"""Mechanism: gradients against autograd, the lens against the head, hypotheses against rules."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import generate_plainly, prompt_ids, tiny

from cotdistill import mechanism
from cotdistill.arms import Arm, label_text, prompt_text
from cotdistill.attribution.checks import key_tokens
from cotdistill.encode import LABEL, RATIONALE, encode_all, label_share
from cotdistill.errors import DataError
from cotdistill.examples import Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.blocks import blocks_of
from cotdistill.sources import load_dataset
from cotdistill.train import fast_training


def sequences(student, questions, rationales, arm=None):
    return encode_all(student, questions, rationales, arm or Arm("post_cot"), "text", 0)[0]


def plain_gradients(student, batch, kind):
    """Gradients of a kind's mean loss by backward, a sequence at a time, per block."""
    student.model.zero_grad()
    count = sum(k == kind for e in batch for k in e.kinds)
    for e in batch:
        logits = student.model(torch.tensor([e.ids])).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(e.ids[1:]), reduction="none"
        )
        chosen = torch.tensor([k == kind for k in e.kinds[1:]])
        (losses[chosen].sum() / count).backward()
    return [
        torch.cat([p.grad.flatten() for p in block.parameters()])
        for block in blocks_of(student.model)
    ]


@pytest.mark.parametrize("corruption", ["", "shuffled", "swapped", "filler"])
def test_cosines_are_those_of_autograd(student, questions, rationales, corruption):
    data = sequences(student, questions, rationales, Arm("post_cot", corruption))[:6]
    rows = pd.DataFrame(mechanism.gradient_cosines(student, data, 4))
    assert sorted(set(rows["batch"])) == [0, 1] and sorted(set(rows["block"])) == [-1, 0, 1]
    for number, batch in enumerate((data[:4], data[4:])):
        label, other = (plain_gradients(student, batch, k) for k in (LABEL, RATIONALE))
        label, other = [*label, torch.cat(label)], [*other, torch.cat(other)]
        for block, a, b in zip((0, 1, -1), label, other, strict=True):
            row = rows[(rows["batch"] == number) & (rows["block"] == block)].iloc[0]
            wanted = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)
            assert row["cosine"] == pytest.approx(float(wanted), abs=2e-5)
            assert row["label_norm"] == pytest.approx(float(a.norm()), rel=1e-4)
            assert row["rationale_norm"] == pytest.approx(float(b.norm()), rel=1e-4)


def test_cosines_are_the_same_inside_of_training_and_skip_frozen_blocks(
    llama, questions, rationales
):
    data = sequences(llama, questions, rationales)
    llama.model.zero_grad()
    plain = pd.DataFrame(mechanism.gradient_cosines(llama, data, 4))
    with fast_training(llama.model), torch.no_grad():
        inside = pd.DataFrame(mechanism.gradient_cosines(llama, data, 4))
    np.testing.assert_allclose(plain, inside, atol=1e-4)
    assert all(p.grad is None or not p.grad.any() for p in llama.model.parameters())
    blocks_of(llama.model)[0].requires_grad_(False)
    rows = pd.DataFrame(mechanism.gradient_cosines(llama, data, 12))
    assert set(rows["block"]) == {1, -1} and rows["cosine"].nunique() == 1


def test_a_batch_without_a_rationale_is_named(llama, questions, rationales):
    data = sequences(llama, questions, rationales, Arm("label_only"))
    with pytest.raises(DataError, match="question 'q0' and 3 more: no rationale token"):
        mechanism.gradient_cosines(llama, data, 4)


def test_the_lens_at_the_last_block_is_the_models_prediction(student, questions):
    ids = prompt_ids(student, questions[0], "post_cot")
    with torch.no_grad():
        out = student.model(torch.tensor([ids]), output_hidden_states=True)
    found = mechanism.lens_logprobs(student, ids)
    wanted = out.logits[0, -1].float().log_softmax(-1)
    torch.testing.assert_close(found[-1], wanted, atol=1e-4, rtol=1e-4)
    # The first block's state, by the library's own record of it
    norm, head = mechanism.final_norm(student.model), student.model.get_output_embeddings()
    with torch.no_grad():
        first = head(norm(out.hidden_states[1][0, -1])).float().log_softmax(-1)
    torch.testing.assert_close(found[0], first, atol=1e-4, rtol=1e-4)
    assert found.shape == (2, len(wanted))


def test_the_lens_looks_for_key_tokens_that_the_prompt_does_not_hold(llama):
    data = load_dataset("microworld/everyday", microworld=dict(n_train=12, n_test=4))
    asked, texts = data.train[:12], data.rationales
    prompts = {e.id: prompt_ids(llama, e, "label_only") for e in asked}
    rows = pd.DataFrame(mechanism.lens_rows(llama, asked, texts, "text"))
    assert set(rows["block"]) == {0, 1} and 2 <= rows["id"].nunique() <= 12
    for number, example in enumerate(asked):
        partner, prompt = asked[(number + 6) % 12], set(prompts[example.id])
        own, other = (
            {
                i
                for i, key in zip(
                    llama.encode(f" {texts[e.id].text}"),
                    key_tokens(llama, texts[e.id]),
                    strict=True,
                )
                if key
            }
            - set(prompts[e.id])
            for e in (example, partner)
        )
        other -= prompt
        own, other = own - other, other - own
        found = rows[rows["id"] == example.id].set_index("block")
        assert len(found) == (2 if own and other else 0)
        if len(found):
            known = mechanism.lens_logprobs(llama, prompts[example.id])[-1]
            for name, tokens in (("own", own), ("other", other)):
                wanted = np.mean([float(known[token]) for token in tokens])
                assert found.loc[1, name] == pytest.approx(wanted, abs=1e-5)
    unmarked = Rationale("x", "It is cold.")
    assert mechanism.new_tokens(llama, unmarked, []) == set(llama.encode(" It is cold."))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_rationales_behind_an_answer_are_those_of_generate(name, questions):
    student, options = tiny(name), [0, 1, 0, 1]
    found = mechanism.write_behind(student, questions[:4], options, 7, "text", 3)
    for e, option, text in zip(questions[:4], options, found, strict=True):
        prefix = student.bos_ids + student.encode(prompt_text(e, "post_cot"))
        prefix += student.encode(label_text(e, option)) + student.encode("Reason:")
        assert text == student.decode(generate_plainly(student, prefix, 7)).strip()


def test_forced_answers_are_compared_by_their_words(llama, questions, monkeypatch):
    wrote = lambda student, some, options, *_: [
        f"It is {e.choices[0]}." if option == 0 else f"Well, {e.choices[option]}!"
        for e, option in zip(some, options, strict=True)
    ]
    monkeypatch.setattr(mechanism, "write_behind", wrote)
    rows = mechanism.forced_rows(llama, [questions[5]], [1], 5, "text")
    assert rows == [{"id": "q5", "agrees": 1, "strays": 0, "follows": 1, "sticks": 0, "changed": 1}]
    assert mechanism.names_option("The two cups of it.", "a cup")
    assert not mechanism.names_option("It cuts.", "a cup")


@pytest.mark.parametrize("loss", ["token_mean", "balanced"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_the_dial_gives_the_label_its_share(llama, questions, rationales, loss, share):
    data = sequences(llama, questions, rationales)
    config = TrainConfig(loss=loss, loss_lambda=0.5, rationale_weight=2.0)
    (arm,) = mechanism.dial_arms([share], mechanism.count_kinds(data), config)
    assert label_share(data, arm, config) == pytest.approx(share, abs=0.005)


def test_a_share_out_of_range_is_named():
    with pytest.raises(DataError, match="label_shares holds 1; expected shares between 0 and 1"):
        mechanism.dial_arms([1.0], mechanism.Counts(3, 9), TrainConfig())


def test_learning_curves_at_equal_cost():
    answers = pd.DataFrame(
        [
            dict(arm=arm, seed=0, epoch=e, step=3 * e, p_gold=slope * e)
            for arm, slope in (("label_only", 0.1), ("post_cot", 0.2))
            for e in range(3)
        ]
    )
    curves = mechanism.learning_table(answers, {"label_only": 10.0, "post_cot": 40.0})
    assert curves.loc[curves["arm"] == "post_cot", "tokens"].tolist() == [0, 40, 80]
    equal = mechanism.at_equal_cost(curves, "updates")
    assert equal.to_dict() == pytest.approx({"label_only": 0.2, "post_cot": 0.4})
    cheap = mechanism.at_equal_cost(curves, "tokens")
    assert cheap.to_dict() == pytest.approx({"label_only": 0.2, "post_cot": 0.1})
    assert cheap.name == "p(gold) after 20 tokens"
