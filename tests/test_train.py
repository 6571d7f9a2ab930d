"""Training against Hugging Face's own loss, order, weights, checkpoints and resume."""

import copy
import json
import shutil
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, tiny

from cotdistill import corrupt, train
from cotdistill import train as train_module
from cotdistill.arms import Arm, arm_from_name
from cotdistill.checkpoints import list_checkpoints, trainable_parameters
from cotdistill.encode import (
    LABEL,
    PROMPT,
    RATIONALE,
    ROW_MULTIPLE,
    check_labels,
    choose_train,
    encode_all,
    example_rng,
    label_share,
    loss_shares,
    other_weight,
    pack_batch,
    unchanged_share,
    usable_questions,
)
from cotdistill.errors import DataError
from cotdistill.evaluate import evaluate, validation_scores
from cotdistill.hyperparameters import TrainConfig, training_key
from cotdistill.kernels.blocks import blocks_of, last_block_at_places
from cotdistill.kernels.cache import stored_bytes
from cotdistill.kernels.linear import use_trainable_onednn_linears
from cotdistill.kernels.loss import (
    token_losses,
    weighted_loss,
)
from cotdistill.train import OrderSampler, fine_tune, freeze

ARMS = [Arm("label_only"), Arm("pre_cot"), Arm("post_cot")]
QUICK = TrainConfig(lr=1e-2, epochs=2, batch_size=4, select="last")


def passes_of(student, questions, rationales, arm=ARMS[2], **more):
    return encode_all(student, questions, rationales, arm, "text", 0, **more)


@pytest.mark.parametrize("arm", ARMS, ids=lambda a: a.name)
def test_loss_equals_hugging_face(student, questions, rationales, arm):
    """The mean of our token losses over a packed batch is the model's own loss over the padded
    batch with -100 labels.
    """
    batch = passes_of(student, questions, rationales, arm)[0]
    student.model.set_attn_implementation("packed")
    with torch.no_grad():
        ours = token_losses(student.model, pack_batch(batch)).mean()
    student.model.set_attn_implementation("sdpa")
    width = max(len(e.ids) for e in batch)
    ids, labels = (
        torch.full((len(batch), width), student.pad_id),
        torch.full((len(batch), width), -100),
    )
    for row, e in enumerate(batch):
        ids[row, : len(e.ids)] = torch.tensor(e.ids)
        labels[row, : len(e.ids)] = torch.tensor(
            [i if k else -100 for i, k in zip(e.ids, e.kinds, strict=False)]
        )
    mask = torch.arange(width) < torch.tensor([len(e.ids) for e in batch])[:, None]
    with torch.no_grad():
        theirs = student.model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1])
def test_fast_products_and_a_last_block_at_its_places_train_as_the_plain_model_does(
    student, questions, rationales, frozen
):
    """Losses and all gradients against torch's own products and the whole last block, for all four
    families.
    """
    batch, found = pack_batch(passes_of(student, questions, rationales)[0]), []
    freeze(student.model, frozen)
    student.model.set_attn_implementation("packed")
    forwards = {name for name, m in student.model.named_modules() if "forward" in vars(m)}
    for fast in (False, True):
        student.model.zero_grad(set_to_none=True)
        with ExitStack() as opened:
            if fast:
                opened.enter_context(use_trainable_onednn_linears(student.model))
                opened.enter_context(last_block_at_places(student.model))
            losses = token_losses(student.model, batch)
        losses.mean().backward()
        found.append(
            (
                losses.detach(),
                {
                    n: p.grad.clone()
                    for n, p in student.model.named_parameters()
                    if p.grad is not None
                },
            )
        )
    # A call without places is the whole model's
    with last_block_at_places(student.model), torch.no_grad():
        plain = student.model(
            batch["input_ids"][:, :9], use_cache=False, cu_seq_lens_q=torch.tensor([0, 9])
        ).logits
    torch.testing.assert_close(
        plain,
        student.model(
            batch["input_ids"][:, :9], use_cache=False, cu_seq_lens_q=torch.tensor([0, 9])
        ).logits,
    )
    assert {name for name, m in student.model.named_modules() if "forward" in vars(m)} == forwards
    student.model.set_attn_implementation("sdpa")
    student.model.zero_grad(set_to_none=True)
    freeze(student.model, 0)
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_batch_is_filled_up_with_tokens_that_nothing_is_learnt_from(llama, questions, rationales):
    """To a multiple of ROWS, in a sequence of their own.

    Other losses and gradients than theirs would show.
    """
    sequences = passes_of(llama, questions, rationales)[0]
    for n in range(1, 9):
        batch, tokens = pack_batch(sequences[:n]), sum(len(e.ids) - 1 for e in sequences[:n])
        fill = batch["input_ids"].shape[1] - tokens
        assert batch["input_ids"].shape[1] % ROW_MULTIPLE == 0 <= fill < ROW_MULTIPLE and len(
            batch["cu_seq_lens_q"]
        ) == n + 1 + (fill > 0)
        assert (batch["labels"][0, tokens:] == -100).all() and len(batch["weights"]) == sum(
            k != 0 for e in sequences[:n] for k in e.kinds
        )
        assert batch["position_ids"][0, tokens:].tolist() == list(range(fill))


def test_only_the_target_is_supervised_and_the_end_is(student, questions, rationales):
    for arm in ARMS:
        one = passes_of(student, questions, rationales, arm)[0][0]
        batch = pack_batch([one])
        learnt = batch["labels"][0][batch["labels"][0] != -100].tolist()
        assert (
            learnt == [i for i, k in zip(one.ids, one.kinds, strict=False) if k]
            and learnt[-1] == student.eos_id
        )
        # The end is predicted, nothing is predicted from it
        assert batch["input_ids"][0, : len(one.ids) - 1].tolist() == list(one.ids[:-1])
        assert student.decode(one.ids[: len(one.ids) - len(learnt)]).endswith(
            ("Answer:", "Reason:")
        )


def test_weights_reach_label_and_rationale(llama, questions, rationales):
    batch = pack_batch(
        passes_of(llama, questions, rationales)[0], arm_weight=4.0, rationale_weight=0.5
    )
    assert set(batch["weights"][batch["kinds"] == LABEL].tolist()) == {4.0}
    assert set(batch["weights"][batch["kinds"] != LABEL].tolist()) == {0.5}


def test_every_arm_sees_the_same_questions_in_the_same_order(llama, questions, rationales):
    orders = []
    for arm in ARMS + [arm_from_name("post_cot_shuffled", fresh=True)]:
        passes = passes_of(llama, questions, rationales, arm, epochs=2)
        data = [e for one in (passes if arm.fresh else passes[:1]) for e in one]
        sampler = OrderSampler(len(questions), 5, len(passes) if arm.fresh else 1)
        seen = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            seen.append([data[i].id for i in sampler])
        orders.append(seen)
    assert all(o == orders[0] for o in orders) and orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == sorted(e.id for e in questions)


def test_fresh_shuffles_differ_between_epochs_and_fixed_ones_do_not(llama, questions, rationales):
    fixed = passes_of(llama, questions, rationales, arm_from_name("post_cot_shuffled"), epochs=2)
    fresh = passes_of(
        llama, questions, rationales, arm_from_name("post_cot_shuffled", fresh=True), epochs=2
    )
    assert fixed[0] == fixed[1] and fresh[0] != fresh[1]
    assert (
        [sorted(e.ids) for e in fresh[0]]
        == [sorted(e.ids) for e in fixed[0]]
        == [sorted(e.ids) for e in fresh[1]]
    )


def test_corruptions_leave_prompt_and_label_alone(student, questions, rationales):
    plain = {e.id: e for e in passes_of(student, questions, rationales)[0]}
    for name, settings in (
        ("shuffled", {}),
        ("shuffled", dict(unit="word")),
        ("masked", dict(amount=0.5)),
        ("kept", dict(amount=2)),
        ("swapped", {}),
        ("filler", {}),
    ):
        for one in passes_of(
            student, questions, rationales, arm_from_name(f"post_cot_{name}", **settings)
        )[0]:
            span = lambda e: [
                (i, k) for i, k in zip(e.ids, e.kinds, strict=False) if k in (0, LABEL)
            ]
            assert span(one) == span(plain[one.id])


def test_training_is_the_same_each_time_and_learns(student, questions, rationales, tmp_path):
    results = []
    for run in range(2):
        s = tiny(student.name)
        history, _ = fine_tune(
            s,
            passes_of(s, questions, rationales, epochs=2),
            Arm("post_cot"),
            QUICK,
            3,
            tmp_path / f"{student.name}{run}",
        )
        results.append(
            (history["loss"].tolist(), [p.detach().clone() for p in s.model.parameters()])
        )
    assert results[0][0] == results[1][0] and results[0][0][1] < results[0][0][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=False))


def test_killed_run_resumes_to_the_same_weights(llama, questions, rationales, tmp_path):
    """A run that dies in its second epoch and is started again ends with the weights of one that
    did not.
    """
    config, passes = replace(QUICK, epochs=3), passes_of(llama, questions, rationales, epochs=3)
    whole, _ = fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "whole")
    wanted = {k: v.clone() for k, v in trainable_parameters(llama.model).items()}
    llama = tiny("tiny-llama")

    class Killed(Exception):
        pass

    def dies(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "cut", progress=dies)
    llama = tiny("tiny-llama")
    again, _ = fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "cut")
    assert again["epoch"].tolist() == [1, 2, 3] and again["loss"].tolist() == whole["loss"].tolist()
    assert all(torch.equal(v, wanted[k]) for k, v in trainable_parameters(llama.model).items())


def test_best_epoch_is_kept_by_validation_with_ties_to_the_lower_loss(
    llama, questions, rationales, tmp_path
):
    seen, scores = [], [(0.5, 2.0), (0.75, 3.0), (0.75, 1.0), (0.25, 0.5)]

    def validate():
        seen.append({k: v.clone() for k, v in trainable_parameters(llama.model).items()})
        accuracy, nll = scores[len(seen) - 1]
        return {"accuracy": accuracy, "label_nll": nll}

    _, summary = fine_tune(
        llama,
        passes_of(llama, questions, rationales, epochs=4),
        Arm("post_cot"),
        replace(QUICK, epochs=4, select="best"),
        0,
        tmp_path / "run",
        validate,
    )
    assert summary["best_epoch"] == 3
    assert all(torch.equal(v, seen[2][k]) for k, v in trainable_parameters(llama.model).items())


@pytest.mark.parametrize("killed_after", [3, 4])
def test_patience_stops_a_resumed_run_where_it_stops_one_left_alone(
    questions, rationales, tmp_path, killed_after
):
    """Three epochs without a better one stop the run at its fourth.

    Killed before that, or right after it, it must stop there too.
    """
    scores, config = (
        [0.5, 0.4, 0.4, 0.4, 0.9, 0.9],
        replace(QUICK, epochs=6, select="best", patience=3),
    )

    class Killed(Exception):
        pass

    def train(folder, killed=None):
        s, seen = tiny("tiny-llama"), []

        def progress(row):
            seen.append(row["epoch"])
            if row["epoch"] - 1 == killed:
                raise Killed

        def validate():
            done = [
                json.loads((path / "trainer_state.json").read_text())["epoch"]
                for _, path in list_checkpoints(folder)
            ]
            return {"accuracy": scores[int(max(done, default=0))], "label_nll": 1.0}

        history, summary = fine_tune(
            s,
            passes_of(s, questions, rationales, epochs=6),
            Arm("post_cot"),
            config,
            0,
            folder,
            validate,
            progress=progress,
        )
        return (
            history,
            summary,
            {k: v.clone() for k, v in trainable_parameters(s.model).items()},
            seen,
        )

    wanted, best, weights, _ = train(tmp_path / "whole")
    assert wanted["epoch"].tolist() == [1, 2, 3, 4] and best["best_epoch"] == 1
    if killed_after == 3:
        with pytest.raises(Killed):
            train(tmp_path / "cut", 3)
    else:  # as it is when a run is killed while it answers the test questions
        train(tmp_path / "cut")
    history, summary, again, seen = train(tmp_path / "cut")
    assert seen == ([4] if killed_after == 3 else []) and summary == best
    assert history["loss"].tolist() == wanted["loss"].tolist() and all(
        torch.equal(v, again[k]) for k, v in weights.items()
    )


def test_gradient_accumulation_equals_one_large_batch(llama, questions, rationales, tmp_path):
    weights = []
    for size, steps in ((4, 1), (2, 2)):
        s = tiny("tiny-llama")
        fine_tune(
            s,
            passes_of(s, questions, rationales, epochs=2),
            Arm("post_cot"),
            replace(QUICK, batch_size=size, grad_accum=steps),
            0,
            tmp_path / str(size),
        )
        weights.append({k: v.clone() for k, v in trainable_parameters(s.model).items()})
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_frozen_layers_stay_and_bad_numbers_are_refused(student):
    freeze(student.model, 1)
    names = set(trainable_parameters(student.model))
    assert names and not any("embed" in n or "wte" in n for n in names)
    with pytest.raises(DataError, match="frozen_layers is 2; expected 0 to 1"):
        freeze(student.model, 2)


def test_what_does_not_fit_is_left_out_for_every_arm_and_counted(llama, questions, rationales):
    some = {question: r for question, r in rationales.items() if question != "q3"}
    kept, left = usable_questions(llama, questions, some, "text", 75)
    assert left["no rationale"] == 1 and 0 < left["over 75 tokens"] < 11
    assert len(kept) + sum(left.values()) == len(questions)


def test_the_share_of_texts_that_a_corruption_leaves_as_they_were(llama, questions, rationales):
    lengths = [len(llama.encode(f" {rationales[e.id].text}")) for e in questions]
    for name, settings, alike in (
        ("post_cot_kept", dict(amount=8, selector="random"), [n <= 8 for n in lengths]),
        ("pre_cot_shuffled", dict(unit="sentence"), None),
        ("post_cot_filler", {}, [False] * 12),
    ):
        arm = arm_from_name(name, **settings)
        share = unchanged_share(
            passes_of(llama, questions, rationales, arm),
            llama,
            questions,
            rationales,
            arm,
            "text",
            0,
        )
        if alike is None:  # one sentence stays as it is, two may be drawn in their order
            assert (
                sum(
                    corrupt.sentence_groups(llama, f" {rationales[e.id].text}")[-1] == 0
                    for e in questions
                )
                / 12
                <= share
                <= 1
            )
        else:
            assert share == sum(alike) / 12 and (name != "post_cot_kept" or 0 < share < 1)


def test_sizes_and_labels_are_checked(llama, questions):
    with pytest.raises(DataError, match="train_size 13 is larger than the data: 12"):
        choose_train(questions, 13, 0)
    assert (
        choose_train(questions, 5, 0)
        == choose_train(questions, 5, 0)
        != choose_train(questions, 5, 1)
    )
    with pytest.raises(
        DataError,
        match=r"question 'q0': option \d is \d+ tokens long; expected "
        r"at most max_label_tokens = 2",
    ):
        check_labels(llama, questions, "text", 2)


def test_example_rng_depends_on_the_id_only():
    assert example_rng("a", 1).integers(1e9) == example_rng("a", 1).integers(1e9)
    assert len({int(example_rng(i, s).integers(1e9)) for i in "abc" for s in range(3)}) == 9
    assert np.isfinite(example_rng("日本", 0, 1).random())


@pytest.mark.parametrize("name", TINY)
def test_training_from_the_frozen_blocks_outputs_is_training_on_the_whole(
    name, questions, rationales, tmp_path, monkeypatch
):
    """Same losses and weights with and without.

    A later run that finds the outputs in the store is the same to the last bit.
    """
    config, arm, results = (
        TrainConfig(lr=1e-2, epochs=3, batch_size=4, frozen_layers=1, select="last"),
        Arm("post_cot"),
        {},
    )
    store = {}
    for way in ("whole", "own", "shared", "shared again"):
        student = tiny(name)
        passes = encode_all(student, questions, rationales, arm, "text", 0, config.epochs)
        monkeypatch.setattr(train_module, "TRUNK_CACHE_BYTES", 0 if way == "whole" else 2**30)
        history, _ = fine_tune(
            student, passes, arm, config, 0, tmp_path / way, trunks=None if way == "own" else store
        )
        results[way] = (
            history["loss"].to_numpy(),
            {n: p.detach().clone() for n, p in student.model.named_parameters()},
        )
        assert (
            not any("forward" in vars(block) for block in blocks_of(student.model))
            and student.model.config._attn_implementation == "sdpa"
        )
    # GPT-2 trains with dropout: each pass through its frozen blocks is another one
    assert bool(store) == (name != "tiny-gpt2")
    np.testing.assert_allclose(results["own"][0], results["whole"][0], rtol=1e-5)
    for other, exact in (("own", False), ("shared", True), ("shared again", True)):
        for parameter, value in results["own"][1].items():
            against = results["whole" if other == "own" else other][1][parameter]
            torch.testing.assert_close(
                value, against, **dict(rtol=0, atol=0) if exact else dict(rtol=1e-3, atol=1e-4)
            )


def test_seeds_share_the_frozen_blocks_outputs(llama, questions, rationales, monkeypatch):
    """Another order of the same questions takes every state from the store, bit for bit, also where
    it holds little more than them.
    """
    data, store = passes_of(llama, questions, rationales)[0], {}
    first = train.trunk_states(llama, data, 1, store)
    entries = set(store)
    monkeypatch.setattr(train_module, "TRUNK_CACHE_BYTES", stored_bytes(store))
    again = train.trunk_states(llama, data[::-1], 1, store)
    assert set(store) == entries and len(data) == len(first) > 1
    assert all(
        a is b and len(a) == len(e.ids) - 1
        for a, b, e in zip(first, again[::-1], data, strict=False)
    )


def test_a_compiled_student_learns_the_same(student, questions, rationales, tmp_path):
    from torch._dynamo.utils import counters

    losses, graphs = {}, {}
    for backend in ("", "aot_eager"):
        counters.clear()
        student, config = tiny(student.name), replace(QUICK, compile=backend)
        history, _ = fine_tune(
            student,
            passes_of(student, questions, rationales, epochs=2),
            Arm("post_cot"),
            config,
            0,
            tmp_path / (backend or "plain"),
            lambda student=student: validation_scores(
                evaluate(student, questions[:4], "post_cot", generate=False)
            ),
        )
        losses[backend], graphs[backend] = (
            history[["loss", "validation_label_nll"]].to_numpy(),
            counters["stats"]["unique_graphs"],
        )
    assert graphs[""] == 0 < graphs["aot_eager"]
    np.testing.assert_allclose(losses["aot_eager"], losses[""], rtol=1e-5)
    with pytest.raises(DataError, match="compile is 'fast'; expected one of"):
        TrainConfig(compile="fast")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile's inductor needs a C++ compiler")
def test_inductor_compiles_what_a_study_trains(llama, questions, rationales, tmp_path, monkeypatch):
    """The backend that a user would name: patches of the blocks must not be in its way."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    losses = []
    for backend in ("", "inductor"):
        student = tiny("tiny-llama")
        history, _ = fine_tune(
            student,
            passes_of(student, questions, rationales, epochs=2),
            Arm("post_cot"),
            replace(QUICK, compile=backend),
            0,
            tmp_path / (backend or "plain"),
        )
        losses.append(history["loss"].to_numpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def exact_losses(student, sequences):
    """(loss, kind) of every supervised token in float64, by plain Hugging Face logits, one sequence
    at a time.
    """
    model, found = copy.deepcopy(student.model).double().eval(), []
    for e in sequences:
        logits = model(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0, :-1]
        losses = -logits.log_softmax(-1)[torch.arange(len(e.ids) - 1), torch.tensor(e.ids[1:])]
        found += [(loss, kind) for loss, kind in zip(losses, e.kinds[1:], strict=False) if kind]
    return model, found


@pytest.mark.parametrize(
    "arm",
    [*ARMS, Arm("post_cot", label_weight=3.0), Arm("post_cot", "filler")],
    ids=lambda a: a.label,
)
def test_balanced_loss_equals_its_definition_in_float64(llama, questions, rationales, arm):
    """Over two batches of unequal lengths that one update sees.

    The mean over all their label tokens plus lambda times the mean over all their others, and the
    gradient of it; label_only's is the mean over its label tokens.
    """
    config, sequences = (
        TrainConfig(loss="balanced", loss_lambda=0.7, rationale_weight=0.5),
        passes_of(llama, questions, rationales, arm)[0],
    )
    model, tokens = exact_losses(llama, sequences)
    label, other = (
        torch.stack([x for x, kind in tokens if (kind == LABEL) == is_label]).mean()
        for is_label in (True, False)
    )
    wanted = arm.label_weight * label + (0.7 * 0.5 * other if arm.uses_rationale else 0)
    wanted.backward()
    batches = [
        pack_batch(part, arm.label_weight, config.rationale_weight)
        for part in (sequences[:5], sequences[5:])
    ]
    is_label = [batch["kinds"] == LABEL for batch in batches]
    counts = torch.stack([sum(x.sum() for x in is_label), sum((~x).sum() for x in is_label)])
    llama.model.set_attn_implementation("packed")
    ours = 0
    for batch, mask in zip(batches, is_label, strict=False):
        share = loss_shares(batch["weights"], mask, counts, "balanced", other_weight(arm, config))
        loss, _ = weighted_loss(llama.model, batch, share)
        loss.backward()
        ours += loss.item()
    llama.model.set_attn_implementation("sdpa")
    assert ours == pytest.approx(wanted.item(), rel=1e-5)
    exact = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, p in llama.model.named_parameters():
        if name in exact:
            torch.testing.assert_close(p.grad.double(), exact[name], rtol=1e-3, atol=1e-5)
    llama.model.zero_grad(set_to_none=True)


def test_the_label_has_one_share_in_every_arm_that_has_a_rationale(llama, questions, rationales):
    arms = [
        Arm("pre_cot"),
        Arm("post_cot"),
        Arm("post_cot", "filler"),
        arm_from_name("post_cot_kept", amount=1),
    ]
    share = lambda arm, **more: label_share(
        passes_of(llama, questions, rationales, arm)[0], arm, TrainConfig(**more)
    )
    for arm in arms:
        assert share(arm, loss="balanced") == pytest.approx(0.5) and share(
            arm, loss="balanced", loss_lambda=0.25
        ) == pytest.approx(0.8)
        assert share(replace(arm, label_weight=3.0), loss="balanced") == pytest.approx(0.75)
        # An arm's own loss counts
        assert share(replace(arm, loss="balanced")) == pytest.approx(0.5)
    assert share(Arm("label_only"), loss="balanced") == 1.0
    kinds = [k for e in passes_of(llama, questions, rationales)[0] for k in e.kinds if k]
    assert share(Arm("post_cot")) == pytest.approx(kinds.count(LABEL) / len(kinds))
    assert share(Arm("post_cot")) < share(Arm("label_only")) < 1


def test_accumulation_equals_one_large_batch_under_the_balanced_loss(
    llama, questions, rationales, tmp_path
):
    """The counts are the whole update's.

    Batches of two with other numbers of label and rationale tokens each.
    """
    weights, config = [], replace(QUICK, epochs=1, loss="balanced", loss_lambda=2.0)
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        s = tiny("tiny-llama")
        fine_tune(
            s,
            passes_of(s, questions, rationales),
            Arm("post_cot"),
            replace(config, batch_size=size, grad_accum=steps),
            0,
            tmp_path / str(size),
        )
        weights.append({k: v.clone() for k, v in trainable_parameters(s.model).items()})
    for other in weights[1:]:
        for name in weights[0]:
            torch.testing.assert_close(weights[0][name], other[name], rtol=1e-4, atol=1e-5)
    s = tiny("tiny-llama")  # the arm's own loss is what trains it
    fine_tune(
        s,
        passes_of(s, questions, rationales),
        Arm("post_cot", loss="balanced"),
        replace(config, loss="token_mean"),
        0,
        tmp_path / "own",
    )
    assert all(torch.equal(v, weights[0][k]) for k, v in trainable_parameters(s.model).items())


def test_a_run_key_names_the_loss_only_where_it_is_not_the_token_mean():
    """Runs made before there were two losses keep their keys.

    One training has one key, whichever loss is the study's.
    """
    plain = {
        name: value
        for name, value in vars(TrainConfig()).items()
        if name not in ("compile", "loss", "loss_lambda", "precision")
    }
    balanced = plain | {"loss": "balanced", "loss_lambda": 1.0}
    main, other = vars(TrainConfig()), vars(TrainConfig(loss="balanced"))
    assert (
        training_key(main, Arm("post_cot"))
        == plain
        == training_key(other, Arm("post_cot", loss="token_mean"))
    )
    assert (
        training_key(other, Arm("post_cot"))
        == balanced
        == training_key(main, Arm("post_cot", loss="balanced"))
    )
    assert training_key(plain, Arm("post_cot")) == plain  # of a study written before
    with pytest.raises(DataError, match="loss is 'sum'; expected one of token_mean, balanced"):
        TrainConfig(loss="sum")
    with pytest.raises(DataError, match="loss_lambda is -1.0"):
        TrainConfig(loss_lambda=-1.0)


def test_new_controls_change_the_rationale_only(llama, questions, rationales):
    plain = passes_of(llama, questions, rationales)[0]
    of = lambda e, *kinds: [i for i, k in zip(e.ids, e.kinds, strict=False) if k in kinds]
    lengths = [len(of(e, RATIONALE)) for e in plain]
    vocabulary = {i for e in plain for i in of(e, RATIONALE)}
    made = {
        name: passes_of(llama, questions, rationales, arm_from_name(f"post_cot_{name}"))[0]
        for name in ("bag", "length_matched", "no_label", "other_same")
    }
    for name, sequences in made.items():
        assert [of(e, PROMPT, LABEL) for e in sequences] == [of(e, PROMPT, LABEL) for e in plain], (
            name
        )
        assert (
            sequences
            == passes_of(llama, questions, rationales, arm_from_name(f"post_cot_{name}"))[0]
        ), name
    assert [len(of(e, RATIONALE)) for e in made["bag"]] == lengths and {
        i for e in made["bag"] for i in of(e, RATIONALE)
    } <= vocabulary
    assert {len(of(e, RATIONALE)) for e in made["length_matched"]} == {
        round(float(np.median(lengths)))
    }
    texts, answers = (
        {e.id: rationales[e.id].text for e in questions},
        {e.id: e.label for e in questions},
    )
    donors = {
        own: [o for o in texts if answers[o] == answers[own] and texts[o] != texts[own]]
        for own in texts
    }
    for e in made["other_same"]:
        text = llama.decode(of(e, RATIONALE)).strip()
        assert text in {texts[o] for o in texts if answers[o] == answers[e.id]} and (
            text != texts[e.id] or len(donors[e.id]) == 0
        )
