"""Texts, batches and small students that the benchmarks run on."""

import copy
import tempfile
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cotdistill.arms import Arm, label_text, prompt_text
from cotdistill.encode import LABEL, PROMPT, Encoded, encode
from cotdistill.errors import DataError
from cotdistill.examples import Dataset, Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.sources import load_dataset
from cotdistill.students import Student, load_student
from cotdistill.train import fine_tune

PLACEMENTS = ("label_only", "pre_cot", "post_cot")


@cache
def generate_world(n_train: int, n_test: int, n_options: int, seed: int) -> Dataset:
    """Generate the embedded world's questions; the same world is generated once per process."""
    world = dict(
        n_train=n_train,
        n_test=n_test,
        rationale_only=0.3,
        label_seen=0.35,
        two_step=0.4,
        n_options=n_options,
    )
    return load_dataset(
        "microworld/everyday", None, validation_size=8, data_seed=seed, microworld=world
    )


def synthetic_questions(
    n: int,
    seed: int = 0,
    *,
    n_options: int = 4,
    option_words: float = 2.2,
    rationale_words: float = 38.0,
    test: int = 0,
) -> tuple[list[Example], dict[str, Rationale]]:
    """Make `n` questions of the embedded world with the lengths of real ones.

    option_words     words added to an option, on average; some questions get a sentence, too
                     (0: both as they are)
    rationale_words  length of a rationale, on average, log-normally spread: general sentences are
                     added and a closing one that names the answer (0: as they are)
    test             > 0: that many test questions instead, without rationales

    The lengths are what a benchmark depends on; the words are the embedded world's, so it needs no
    dataset. Returns (questions, id -> rationale).
    """
    data = generate_world(max(n, 48), max(test, 40), n_options, seed)
    rng = np.random.default_rng([seed, 11])
    sentences = sorted(
        {
            f"{part.strip()}."
            for r in data.rationales.values()
            for part in r.text.split(".")
            if part.strip()
        }
    )
    sentences = sentences[:: max(1, len(sentences) // 40)]
    examples, rationales = [], {}
    for example in data.test[:test] if test else data.train[:n]:
        if option_words:
            example = _lengthen_question(example, option_words, sentences, rng)
        examples.append(example)
        if not test:
            text = data.rationales[example.id].text
            text = _lengthen_rationale(text, example.label, rationale_words, sentences, rng)
            rationales[example.id] = Rationale(example.id, text, example.answer)
    return examples, rationales


def _lengthen_question(
    example: Example, words: float, sentences: list[str], rng: np.random.Generator
) -> Example:
    """Add about `words` words to each option, and a sentence before some of the questions."""
    places = ("in the old shop near the river", "at home on the big table")
    tails = [places[rng.integers(2)].split()[: rng.poisson(words)] for _ in example.choices]
    choices = tuple(
        " ".join([choice, *tail]) for choice, tail in zip(example.choices, tails, strict=True)
    )
    lead = f"{sentences[rng.integers(len(sentences))]} " if rng.random() < 0.4 else ""
    return replace(example, question=lead + example.question, choices=choices)


def _lengthen_rationale(
    text: str, label: str, words: float, sentences: list[str], rng: np.random.Generator
) -> str:
    """Add sentences up to about `words` words, and one that names the label (0: add nothing)."""
    written, closing = text.split(), f"So it is {label}.".split() if words else []
    wanted = words * rng.lognormal(0, 0.35) - len(closing)
    while len(written) < wanted:
        written += sentences[rng.integers(len(sentences))].split()
    return " ".join(written + closing)


def length_table(
    student: Student, examples: list[Example], rationales: dict[str, Rationale]
) -> pd.DataFrame:
    """Count the tokens of prompts, labels and rationales: mean and percentiles."""
    lengths = {
        "prompt": [len(student.encode(prompt_text(e, "label_only"))) for e in examples],
        "label": [len(student.encode(label_text(e, e.answer))) for e in examples],
    }
    if rationales:
        lengths["rationale"] = [len(student.encode(f" {rationales[e.id].text}")) for e in examples]
    rows = [
        {
            "part": part,
            "texts": len(v),
            "mean": float(np.mean(v)),
            **{f"{q} %": float(np.percentile(v, q)) for q in (5, 50, 95)},
        }
        for part, v in lengths.items()
    ]
    return pd.DataFrame(rows).set_index("part")


def machine_table() -> pd.DataFrame:
    """Show versions, processor, cores and threads of this run, and the versions of the peers."""
    from importlib.metadata import version

    from cotdistill.runs.provenance import provenance

    peers = {
        name: version(name) if find_spec(module) else "not installed"
        for name, module in (("trl", "trl"), ("lm-eval", "lm_eval"))
    }
    return pd.DataFrame({"value": {k: str(v) for k, v in (provenance() | peers).items()}})


def optional_student(name: str) -> Student | None:
    """Load a student, or print why it is missing and return None: a benchmark goes on without."""
    try:
        return load_student(name) if name else None
    except DataError as error:
        print(f"left out: {error}")
        return None


def encode_placements(
    student: Student, examples: list[Example], rationales: dict[str, Rationale]
) -> dict[str, list[Encoded]]:
    """Make the training sequences of the three placements."""
    return {
        p: [encode(student, e, rationales[e.id].text, Arm(p)) for e in examples] for p in PLACEMENTS
    }


def train_briefly(
    student: Student,
    placement: str,
    examples: list[Example],
    rationales: dict[str, Rationale],
    frozen_layers: int,
    epochs: int = 1,
    lr: float = 3e-4,
) -> Student:
    """Train a copy of the student for a short time on one placement; return the copy.

    Its answers then end as a trained student's do.
    """
    pupil = replace(student, model=copy.deepcopy(student.model))
    sequences = [encode(pupil, e, rationales[e.id].text, Arm(placement)) for e in examples]
    config = TrainConfig(epochs=epochs, batch_size=8, frozen_layers=frozen_layers, lr=lr)
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(pupil, [sequences] * epochs, Arm(placement), config, 0, Path(folder) / "run")
    pupil.model.requires_grad_(False)
    return pupil


def small_student(vocabulary: int = 8192, width: int = 128, layers: int = 4) -> Student:
    """Make a random Llama of a given vocabulary, with the tiny student's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base = load_student("tiny-llama")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * width,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=base.eos_id,
        eos_token_id=base.eos_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        ).eval()
    return replace(base, name="small random", model=model)


def random_batch(
    length: int, size: int, rng: np.random.Generator, asked: float = 0.5
) -> list[Encoded]:
    """Make `size` sequences of `length` random ids; the last share `asked` is supervised."""
    start = int(length * (1 - asked))
    return [
        Encoded(
            f"r{i}",
            tuple(rng.integers(1, 500, length).tolist()),
            (PROMPT,) * start + (LABEL,) * (length - start),
        )
        for i in range(size)
    ]
