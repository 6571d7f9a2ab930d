"""Texts, batches and small students that the benchmarks run on."""

import copy
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cotdistill.arms import Arm, label_text, prompt_text
from cotdistill.encode import LABEL, PROMPT, Encoded, encode
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.sources import load_dataset
from cotdistill.students import Student, load_student
from cotdistill.train import fine_tune

PLACEMENTS = ("label_only", "pre_cot", "post_cot")


def synthetic_questions(
    n: int,
    seed: int = 0,
    *,
    n_options: int = 4,
    option_words: float = 2.2,
    rationale_words: float = 38.0,
    test: int = 0,
) -> tuple[list[Example], dict[str, Rationale]]:
    """`n` questions of the embedded world with the lengths of real ones.

    Options lengthened by `option_words` words on average and some questions by a sentence (0: as
    they are), rationales by general sentences to about `rationale_words` words (0: as they are),
    log-normally spread, with a closing sentence that names the answer. test > 0: that many test
    questions instead, without rationales.

    The words are the embedded world's, so nothing of a dataset is needed; the lengths are what a
    benchmark depends on.
    """
    world = dict(
        n_train=max(n, 48),
        n_test=max(test, 40),
        rationale_only=0.3,
        label_seen=0.35,
        two_step=0.4,
        n_options=n_options,
    )
    data = load_dataset(
        "microworld/everyday", None, validation_size=8, data_seed=seed, microworld=world
    )
    rng = np.random.default_rng([seed, 11])
    sentences = sorted(
        {
            f"{part.strip()}."
            for r in data.rationales.values()
            for part in r.text.split(".")
            if part.strip()
        }
    )
    sentences, places = (
        sentences[:: max(1, len(sentences) // 40)],
        ("in the old shop near the river", "at home on the big table"),
    )
    examples, rationales = [], {}
    for example in data.test[:test] if test else data.train[:n]:
        if option_words:
            tails = [
                places[rng.integers(2)].split()[: rng.poisson(option_words)]
                for _ in example.choices
            ]
            choices = tuple(" ".join([c, *tail]) for c, tail in zip(example.choices, tails))
            lead = f"{sentences[rng.integers(len(sentences))]} " if rng.random() < 0.4 else ""
            example = replace(example, question=lead + example.question, choices=choices)
        examples.append(example)
        if not test:
            words = data.rationales[example.id].text.split()
            closing = f"So it is {example.label}.".split() if rationale_words else []
            wanted = rationale_words * rng.lognormal(0, 0.35) - len(closing)
            while len(words) < wanted:
                words += sentences[rng.integers(len(sentences))].split()
            rationales[example.id] = Rationale(
                example.id, " ".join(words + closing), example.answer
            )
    return examples, rationales


def length_table(
    student: Student, examples: list[Example], rationales: dict[str, Rationale]
) -> pd.DataFrame:
    """Tokens of prompts, labels and rationales: mean and percentiles, by this student's tokenizer."""
    found = {
        "prompt": [len(student.encode(prompt_text(e, "label_only"))) for e in examples],
        "label": [len(student.encode(label_text(e, e.answer))) for e in examples],
    }
    if rationales:
        found["rationale"] = [len(student.encode(f" {rationales[e.id].text}")) for e in examples]
    rows = [
        {
            "part": part,
            "texts": len(v),
            "mean": float(np.mean(v)),
            **{f"{q} %": float(np.percentile(v, q)) for q in (5, 50, 95)},
        }
        for part, v in found.items()
    ]
    return pd.DataFrame(rows).set_index("part")


def machine() -> pd.DataFrame:
    """Versions, processor, cores and threads of this run.

    The peers' versions where they are installed.
    """
    from importlib.metadata import version

    from cotdistill.runs.provenance import provenance

    peers = {
        name: version(name) if find_spec(module) else "not installed"
        for name, module in (("trl", "trl"), ("lm-eval", "lm_eval"))
    }
    return pd.DataFrame({"value": {k: str(v) for k, v in (provenance() | peers).items()}})


def optional_student(name: str) -> Student | None:
    """The student, or None (with a line that says what to install) where it is not there.

    A benchmark goes on without it.
    """
    try:
        return load_student(name) if name else None
    except DataError as error:
        print(f"left out: {error}")
        return None


def encode_placements(
    student: Student, examples: list[Example], rationales: dict[str, Rationale]
) -> dict[str, list[Encoded]]:
    """Training sequences of the three placements."""
    return {
        p: [encode(student, e, rationales[e.id].text, Arm(p)) for e in examples] for p in PLACEMENTS
    }


def briefly_trained(
    student: Student,
    placement: str,
    examples: list[Example],
    rationales: dict[str, Rationale],
    frozen_layers: int,
    epochs: int = 1,
    lr: float = 3e-4,
) -> Student:
    """A copy of the student, briefly trained on one placement, so that its answers end as a trained
    student's do.
    """
    pupil = replace(student, model=copy.deepcopy(student.model))
    sequences = [encode(pupil, e, rationales[e.id].text, Arm(placement)) for e in examples]
    config = TrainConfig(epochs=epochs, batch_size=8, frozen_layers=frozen_layers, lr=lr)
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(pupil, [sequences] * epochs, Arm(placement), config, 0, Path(folder) / "run")
    pupil.model.requires_grad_(False)
    return pupil


def small_student(vocabulary: int = 8192, width: int = 128, layers: int = 4) -> Student:
    """A random Llama of a given vocabulary for the curves, with the tiny student's tokenizer."""
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
    """`size` sequences of `length` random ids, the last `asked` of them supervised."""
    start = int(length * (1 - asked))
    return [
        Encoded(
            f"r{i}",
            tuple(rng.integers(1, 500, length).tolist()),
            (PROMPT,) * start + (LABEL,) * (length - start),
        )
        for i in range(size)
    ]
