"""Training with bfloat16 products: what stays float32, what it costs, keys and choices."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import tiny
from studies import make_study
from test_train import passes_of

from cotdistill.arms import Arm
from cotdistill.checkpoints import trainable_parameters
from cotdistill.encode import pack_batch
from cotdistill.errors import DataError
from cotdistill.files import read_json, write_json
from cotdistill.hyperparameters import TrainConfig, training_key
from cotdistill.kernels import mixed
from cotdistill.kernels.loss import weighted_loss
from cotdistill.paths import study_dir
from cotdistill.runs.one import make_config, run_key
from cotdistill.study import Study
from cotdistill.train import fast_training, fine_tune

LOW = TrainConfig(lr=3e-3, epochs=2, batch_size=4, select="last", precision="bfloat16")
HIGH = replace(LOW, precision="float32")
CPU = torch.device("cpu")


def loss_and_gradients(student, batch, precision, **more):
    """Our training's loss of one batch, and the gradients of all weights as one vector."""
    student.model.zero_grad()
    share = torch.full((len(batch["weights"]),), 1 / len(batch["weights"]))
    with fast_training(student.model, precision=precision):
        with mixed.use_precision(precision, CPU):
            loss, losses = weighted_loss(student.model, batch, share, **more)
        loss.backward()
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in student.model.parameters()]
    assert all(g.dtype == torch.float32 for g in dense) and losses.dtype == torch.float32
    return loss.item(), torch.cat([g.flatten() for g in dense])


def hugging_face(student, sequences, context):
    """HF's own loss and gradients, a sequence at a time; the mean over all supervised tokens."""
    student.model.zero_grad()
    total, count = 0.0, sum(sum(k > 0 for k in e.kinds) for e in sequences)
    for one in sequences:
        ids = torch.tensor([one.ids])
        wanted = torch.tensor([[i if k else -100 for i, k in zip(one.ids, one.kinds, strict=True)]])
        with context():
            loss = student.model(ids, labels=wanted).loss
        share = sum(k > 0 for k in one.kinds) / count
        (loss * share).backward()
        total += loss.item() * share
    return total, torch.cat([p.grad.flatten() for p in student.model.parameters()])


def test_loss_and_gradients_are_those_of_autocast(student, questions, rationales):
    """As near to the float32 ones of transformers as its own model under torch's autocast is."""
    sequences = passes_of(student, questions, rationales)[0][:6]
    plain, exact = hugging_face(student, sequences, nullcontext)
    theirs, near = hugging_face(
        student, sequences, lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    )
    far = lambda gradient: ((gradient - exact).norm() / exact.norm()).item()
    for more in ({}, {"limit": 4096}):  # in one slice, in many
        ours, mine = loss_and_gradients(student, pack_batch(sequences), "bfloat16", **more)
        assert ours == pytest.approx(plain, abs=0.02) and ours != plain
        assert 0 < far(mine) < max(1.5 * far(near), 0.02)
    assert abs(theirs - plain) < 0.02


def test_products_are_bfloat16_and_all_else_is_not(student, questions, rationales):
    batch, seen = pack_batch(passes_of(student, questions, rationales)[0][:4]), {}
    name = lambda module: type(module).__name__
    watch = lambda module, _, out: seen.setdefault(name(module), set()).add(out.dtype)
    hooks = [
        m.register_forward_hook(watch)
        for m in student.model.modules()
        if name(m) in ("Linear", "Conv1D", "LayerNorm") or "RMSNorm" in name(m)
    ]
    try:
        loss_and_gradients(student, batch, "bfloat16")
    finally:
        for hook in hooks:
            hook.remove()
    products = {kind for kind in seen if kind in ("Linear", "Conv1D")}
    assert products and all(seen[kind] == {torch.bfloat16} for kind in products)
    assert all(torch.float32 in seen[kind] for kind in set(seen) - products)
    assert all(p.dtype == torch.float32 for p in student.model.parameters())


def test_training_repeats_itself_and_is_near_to_float32(student, questions, rationales, tmp_path):
    found = []
    for run, config in enumerate((LOW, LOW, HIGH)):
        one = tiny(student.name)
        passes = passes_of(one, questions, rationales, epochs=2)
        history, _ = fine_tune(one, passes, Arm("post_cot"), config, 3, tmp_path / f"{run}")
        weights = [p.detach().clone() for p in one.model.parameters()]
        assert all(w.dtype == torch.float32 for w in weights)
        found.append((history["loss"].to_numpy(), weights))
    (first, mine), (again, same), (exact, other) = found
    assert (first == again).all() and all(map(torch.equal, mine, same))
    assert not all(map(torch.equal, mine, other)) and first == pytest.approx(exact, abs=0.02)


def test_a_killed_run_resumes_to_the_same_weights(llama, questions, rationales, tmp_path):
    passes = passes_of(llama, questions, rationales, epochs=3)
    config = replace(LOW, epochs=3, frozen_layers=1)
    fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "whole")
    wanted = {k: v.clone() for k, v in trainable_parameters(llama.model).items()}

    def dies(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    llama = tiny("tiny-llama")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "cut", progress=dies)
    llama = tiny("tiny-llama")
    fine_tune(llama, passes, Arm("post_cot"), config, 1, tmp_path / "cut")
    assert all(torch.equal(v, wanted[k]) for k, v in trainable_parameters(llama.model).items())


def test_float32_leaves_no_trace_in_a_key_and_bfloat16_does(store):
    assert training_key(vars(HIGH), Arm("post_cot")) == {
        k: v for k, v in training_key(vars(LOW), Arm("post_cot")).items() if k != "precision"
    }
    keys = [
        run_key(make_config(make_study(train=vars(config)), Arm("post_cot"), 0))
        for config in (HIGH, LOW)
    ]
    prompted = [
        run_key(make_config(make_study(train=vars(config)), Arm("zero_shot"), -1))
        for config in (HIGH, LOW)
    ]
    assert keys[0] != keys[1] and prompted[0] == prompted[1], "nothing is trained there"
    with pytest.raises(DataError, match="is 'half'; expected float32 or bfloat16 .* also auto"):
        TrainConfig(precision="half")


@pytest.mark.parametrize(
    ("flags", "weights", "chosen"),
    [
        ({"avx512_bf16": True}, torch.float32, "bfloat16"),
        ({"amx_bf16": True}, torch.float32, "bfloat16"),
        ({"avx512_bf16": True}, torch.bfloat16, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32, "float32"),
        ({}, torch.float32, "float32"),
    ],
)
def test_auto_goes_by_the_processor(monkeypatch, flags, weights, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert mixed.choose_precision("auto", CPU, weights) == chosen
    for wanted in ("float32", "bfloat16"):
        assert mixed.choose_precision(wanted, CPU, weights) == wanted


def test_what_was_chosen_is_kept_with_the_study(store, tmp_path, monkeypatch):
    """The study of another machine reads what this one chose; tables and run card say it."""
    path = tmp_path / "own.yaml"
    path.write_text("student: tiny-llama\nepochs: 1\n")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    write_json(study_dir("own") / "data.json", make_study().setting.data)
    study = Study.from_yaml(str(path))
    assert study.setting.train.precision == "bfloat16"
    assert study.note == "tiny-llama, trained with bfloat16 matrix products"
    study.save()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert read_json(study.folder / "base.json", "")["train"]["precision"] == "bfloat16"
    assert Study.load("own").setting.train.precision == "bfloat16"
    assert Study.from_yaml(str(path)).setting.train.precision == "float32"
