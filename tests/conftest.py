"""Shared by all tests: one thread (tiny models gain nothing from two), a store of their own, tiny
students and questions.
"""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test needs the hub; without this a missing student is retried for a minute
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch

torch.set_num_threads(1)

from cotdistill import sources
from cotdistill.arms import prompt_text
from cotdistill.examples import Example, Rationale
from cotdistill.students import Student, load_student
from cotdistill.tiny import TINY


def remember_worlds(make):
    """Return `make_world` that makes each world once: half a second, for every study of a test.

    What it hands out are copies down to questions and rationales, which are frozen. The tests of
    `generate` itself do not pass here.
    """
    worlds = {}

    def make_or_copy(part, seed, **settings):
        key = json.dumps([part, seed, settings], sort_keys=True, default=str)
        if key not in worlds:
            worlds[key] = make(part, seed, **settings)
        return {name: copy_rows(rows) for name, rows in worlds[key].items()}

    return make_or_copy


def copy_rows(rows):
    """Copy a list, or a dict whose values may be dicts."""
    if isinstance(rows, list):
        return list(rows)
    return {key: dict(row) if isinstance(row, dict) else row for key, row in rows.items()}


sources.make_world = remember_worlds(sources.make_world)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_students = {}


def tiny(name: str):
    """A fresh-weight tiny student: the cached one, its original weights put back."""
    if name not in _students:
        student = load_student(name)
        _students[name] = (student, {k: v.clone() for k, v in student.model.state_dict().items()})
    student, weights = _students[name]
    student.model.load_state_dict(weights)
    student.model.requires_grad_(True).eval()
    student.model.zero_grad()  # another test may have left some
    return student


def sliding_student() -> Student:
    """A two-layer Gemma 3 whose first layer sees 16 tokens only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = load_student("tiny-gemma")
    config = AutoConfig.for_model(
        "gemma3_text",
        vocab_size=len(base.tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=64,
        sliding_window=16,
        max_position_embeddings=1024,
        initializer_range=0.3,
        pad_token_id=base.pad_id,
        eos_token_id=base.eos_id,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        base.eos_id,
        base.pad_id,
    )
    return Student(
        "tiny-gemma3",
        model,
        base.tokenizer,
        "x",
        "",
        base.eos_id,
        base.pad_id,
        base.filler_id,
        base.bos_ids,
    )


@pytest.fixture(params=TINY)
def student(request):
    return tiny(request.param)


@pytest.fixture
def llama():
    return tiny("tiny-llama")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An artifacts folder of this test's own."""
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


@pytest.fixture(scope="session")
def questions():
    """Twelve questions whose options are prefixes of each other, quote the cues, or hold other
    scripts.
    """
    choices = [
        ("ice", "ice cream", "iced tea"),
        ("a cup", "a cup of tea", "tea"),
        ("Answer: ice", "Reason:", "no"),
        ("café", "naïve 🙂", "日本"),
        ("1", "12", "123"),
        ("up", "down"),
    ]
    return [
        Example(
            f"q{i}",
            f"What is number {i}, and why {'so ' * (i % 4)}?",
            choices[i % 6],
            i % len(choices[i % 6]),
        )
        for i in range(12)
    ]


@pytest.fixture(scope="session")
def rationales(questions):
    texts = [
        "Ice is cold. It melts.",
        "A cup holds tea, and tea is hot.",
        "It says Answer: ice and goes on.",
        "Ünïcode 🙂 words.",
        "One two three four five six seven.",
        "Up.",
    ]
    return {e.id: Rationale(e.id, texts[i % 6], e.answer) for i, e in enumerate(questions)}


# Executed once in a whole session, not once in each worker: fixture -> the group of its tests
EXECUTED_ONCE = {"smoke": "smoke", "executed": "open"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """All tests of a study that is executed for them run in one worker."""
    for item in items:
        for fixture in set(EXECUTED_ONCE) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(EXECUTED_ONCE[fixture]))


def pytest_collection_finish(session):
    """Take what the imports made out of the garbage collector's sight.

    Training collects after each run, which takes a third of a second with all of torch in sight.
    """
    gc.collect()
    gc.freeze()


def needs_shared():
    return pytest.mark.skipif(
        not SHARED.is_dir(),
        reason="no ../shared/data here: the embedded dataset carries the default",
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """`make smoke` in a store of its own: the first run makes everything, the second reads it."""
    root = Path(__file__).resolve().parents[1]
    store, seconds = tmp_path_factory.mktemp("smoke"), []
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(store / "artifacts"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(root),
    }
    for folder in ("first", "second"):
        started = time.time()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "cotdistill.cli",
                "run",
                "smoke",
                "--executed",
                str(store / folder),
            ],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        seconds.append((time.time() - started, done.stdout))
    return store, seconds


def prompt_ids(student, example, placement):
    """Return the ids of a question's prompt."""
    return student.bos_ids + student.encode(prompt_text(example, placement))


def generate_plainly(student, prefix, limit):
    """Let transformers' own generate continue a prefix greedily; without the end token."""
    with torch.no_grad():
        out = student.model.generate(
            torch.tensor([prefix]),
            max_new_tokens=limit,
            do_sample=False,
            attention_mask=torch.ones(1, len(prefix)).long(),
            eos_token_id=student.eos_id,
            pad_token_id=student.pad_id,
        )
    return [t for t in out[0, len(prefix) :].tolist() if t != student.eos_id]


def cut(ids, stop):
    """Cut ids after their first stop: a sequence, or a member of a set."""
    n = next(
        (
            i
            for i in range(1, len(ids) + 1)
            if (ids[i - 1] in stop if isinstance(stop, set) else ids[:i][-len(stop) :] == stop)
        ),
        len(ids),
    )
    return ids[:n]
