"""The fast ways of kernels/ against the plain ones that they replace."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from cotdistill.arms import Arm
from cotdistill.encode import encode_all, pack_batch
from cotdistill.errors import DataError
from cotdistill.kernels import linear
from cotdistill.kernels.linear import LinearFunction, PrepackedLinear, use_prepacked_linears
from cotdistill.kernels.loss import (
    ChunkedLinearCrossEntropy,
    sparse_embedding,
    token_losses,
    weighted_loss,
)
from cotdistill.train import freeze


def test_packed_rows_equal_single_sequences(student):
    texts = ["what is ice?", "a", "a long question about a cup of tea and a table"]
    rows = [student.encode(t) for t in texts]
    flat = torch.tensor([[i for row in rows for i in row]])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    borders = torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0)])
    student.model.set_attn_implementation("packed")
    with torch.no_grad():
        packed = student.model(
            input_ids=flat, position_ids=positions, cu_seq_lens_q=borders, use_cache=False
        ).logits[0]
        student.model.set_attn_implementation("sdpa")
        single = torch.cat([student.model(input_ids=torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(packed, single, rtol=1e-5, atol=2e-6)


def test_packed_refuses_what_a_sliding_window_would_cut():
    from cotdistill.kernels.attention import packed_attention

    x = torch.randn(1, 2, 12, 4)
    with pytest.raises(DataError, match="sliding window of 8"):
        packed_attention(None, x, x, x, sliding_window=8, cu_seq_lens_q=torch.tensor([0, 12]))


def test_the_fused_call_of_a_gpu_is_the_same_attention_with_the_same_gradients():
    from cotdistill.kernels.attention import _attend_side_by_side, packed_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 12, 8, generator=generator, requires_grad=True) for _ in range(3))
    apart, _ = packed_attention(
        None, q, k, v, scaling=0.3, cu_seq_lens_q=torch.tensor([0, 1, 7, 12])
    )
    fused = _attend_side_by_side(q, k, v, [1, 6, 5], 0.0, 0.3)
    torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-6)
    weights = torch.randn(fused.shape, generator=generator)
    for a, b in zip(
        *(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (apart, fused)),
        strict=False,
    ):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 6), (5, 1, 6), (7, 6), (70, 6), (2, 300, 6), (0, 6)])
def test_a_prepacked_product_is_the_linear_layer_with_the_same_gradient(bias, shape):
    layer, x = (
        torch.nn.Linear(6, 9, bias=bias).requires_grad_(False),
        torch.randn(shape, requires_grad=True),
    )
    found, wanted = PrepackedLinear(layer)(x), layer(x)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape)
    (a,), (b,) = (torch.autograd.grad((out * weights).sum(), x) for out in (found, wanted))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("out, into", [(12, 20), (6, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_that_trains_is_the_linear_layer_with_the_same_gradients(bias, out, into):
    """Against torch's own, in float32 and (where oneDNN has no part) in float64.

    By autograd's own numerical check too.
    """
    for dtype in (torch.float32, torch.float64):
        layer, x = (
            torch.nn.Linear(into, out, bias, dtype=dtype),
            torch.randn(2, 5, into, dtype=dtype, requires_grad=True),
        )
        ours = LinearFunction.apply(x, layer.weight, layer.bias)
        given = torch.randn_like(ours)
        leaves = [x, *layer.parameters()]
        torch.testing.assert_close(ours, layer(x))
        torch.testing.assert_close(
            torch.autograd.grad(ours, leaves, given),
            torch.autograd.grad(layer(x), leaves, given),
            rtol=1e-4,
            atol=1e-5,
        )
    assert torch.autograd.gradcheck(
        lambda *leaves: (
            LinearFunction.apply(*leaves) if bias else LinearFunction.apply(*leaves, None)
        ),
        leaves,
    )


def test_prepacked_weights_follow_a_change_and_leave_training_alone():
    layer, x = torch.nn.Linear(6, 9), torch.randn(5, 6)
    fast = PrepackedLinear(layer)
    (gradient,) = torch.autograd.grad(fast(x).sum(), layer.weight)
    torch.testing.assert_close(gradient, x.sum(0).expand(9, 6))
    with torch.no_grad():
        before = fast(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(fast(x), layer(x))
        assert not torch.allclose(fast(x), before)
        again = layer.weight * 3
    layer.load_state_dict({"weight": again, "bias": layer.bias})
    torch.testing.assert_close(fast(x.requires_grad_()), layer(x))


def test_prepacked_leaves_a_student_as_it_was(student):
    """Its logits are the same while open, also when opened twice, and its layers are the plain ones
    afterwards.
    """
    ids = torch.tensor([student.encode("what is ice?")])
    with torch.no_grad():
        before = student.model(input_ids=ids).logits
        with use_prepacked_linears(student.model), use_prepacked_linears(student.model):
            assert (
                any("forward" in vars(m) for m in student.model.modules())
                or student.name == "tiny-gpt2"
            )
            meanwhile = student.model(input_ids=ids).logits
        after = student.model(input_ids=ids).logits
    torch.testing.assert_close(meanwhile, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before) and not any(
        "forward" in vars(m) for m in student.model.modules()
    )


def test_a_student_too_large_to_be_held_twice_is_not_prepacked(llama, monkeypatch):
    monkeypatch.setattr(linear, "PREPACK_LIMIT", 1000)
    with use_prepacked_linears(llama.model):
        assert not any("forward" in vars(m) for m in llama.model.modules())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_and_can_be_handed_back():
    """A tensor of 256 MB, made and freed again and again.

    The kernel gives its pages once, unless they are handed back. What is kept is looked at four
    times and the best counts: small blocks of the interpreter's may still move the top of the heap.
    """
    script = """
import resource, torch
from cotdistill.kernels.memory import keep_memory, release_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def made(n, between=lambda: None):
    before = faults()
    for _ in range(n):
        torch.ones(2**26); between()
    return faults() - before
keep_memory(False)  # first: what is kept later would serve it too
plain = made(16)
keep_memory(); made(8)  # until the heap has grown around what else is in it
print(min(made(16) for _ in range(4)), made(16, release_memory), plain)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, released, plain = map(int, done.stdout.split())
    pages = 16 * 2**28 // resource.getpagesize()
    assert kept < pages / 4 < pages / 2 < min(released, plain), (kept, released, plain, pages)


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("limit", [2**28, 40_000, 1])
def test_sliced_head_equals_autograd(student, questions, rationales, frozen, limit):
    """Loss, losses and every gradient of the sliced head are those of torch's cross-entropy,
    whatever the slices; also where the gradient is scaled from outside, where it is added to one
    that is there, and with the embeddings' gradient kept sparse.
    """
    batch = pack_batch(
        encode_all(student, questions, rationales, Arm("post_cot"), "text", 0)[0], arm_weight=3.0
    )
    share, found = batch["weights"] / 7, []
    freeze(student.model, frozen)
    student.model.set_attn_implementation("packed")
    for ours in (False, True):
        student.model.zero_grad(set_to_none=True)
        for outer in (1.0, 0.5):
            if ours:
                with sparse_embedding(student.model):
                    loss, losses = weighted_loss(student.model, batch, share, limit)
                    (loss * outer).backward()
            else:
                losses = token_losses(student.model, batch)
                loss = (losses * share).sum()
                (loss * outer).backward()
        gradients = {
            name: p.grad.clone()
            for name, p in student.model.named_parameters()
            if p.grad is not None
        }
        assert not losses.requires_grad or not ours
        found.append((loss.detach(), losses.detach(), gradients))
    student.model.set_attn_implementation("sdpa")
    student.model.zero_grad(set_to_none=True)
    freeze(student.model, 0)
    assert (
        found[0][2].keys() == found[1][2].keys() and not student.model.get_input_embeddings().sparse
    )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_the_head_of_a_large_vocabulary_adds_up_as_float64_does():
    """262,144 logits to a position, as gemma has, one of them far above.

    Torch's float32 log_softmax loses what the others add to it.
    """
    rng = torch.Generator().manual_seed(0)
    hidden, weight, targets = (
        torch.eye(6, 16),
        torch.randn(262_144, 16, generator=rng) / 2,
        torch.arange(6),
    )
    weight[targets, targets] = 15.0
    _, losses = ChunkedLinearCrossEntropy.apply(hidden, weight, targets, torch.ones(6), 2**27)
    exact = torch.nn.functional.cross_entropy(
        hidden.double() @ weight.double().t(), targets, reduction="none"
    )
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    ours, theirs = ((x.double() / exact - 1).abs().max() for x in (losses, theirs))
    assert ours < 1e-5 and 10 * ours < theirs
