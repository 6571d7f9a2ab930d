"""Bad input, one table: every case ends in one line that names the offending thing and says what is
expected.

Cases that need more than a line to set up (official formats, servers, damage to the store) stand in
the tests of their modules.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from studies import make_study
from teachers import group_source

from cotdistill import cli
from cotdistill.arms import Arm, arm_from_name
from cotdistill.attribution.score import Attribution
from cotdistill.attribution.score_files import read_scores, read_selections, write_scores
from cotdistill.elicit.local import elicit_transformers
from cotdistill.elicit.prompts import Demonstration, load_demonstrations
from cotdistill.elicit.server import TeacherError, elicit_openai
from cotdistill.elicit.settings import Connection
from cotdistill.elicit.teacher import from_teacher
from cotdistill.errors import DataError
from cotdistill.examples import Dataset, Example, Rationale
from cotdistill.files import read_json
from cotdistill.hyperparameters import TrainConfig
from cotdistill.microworld.generate import generate
from cotdistill.parameters import check_demands, load_study, notebook_parameters
from cotdistill.paths import NOTEBOOKS, study_dir
from cotdistill.runs.results import load_predictions, load_stage
from cotdistill.sources import load_dataset, load_rationales
from cotdistill.students import best_device, load_student
from cotdistill.study import Setting, Study
from cotdistill.verdicts import load_verdicts

ROOT = Path(__file__).resolve().parents[1]
ROW = {"id": "a", "question": "what is cold?", "choices": ["ice", "fire"], "answer": "A"}
ASKED = [
    Example("a", "what is cold?", ("ice", "fire"), 0),
    Example("b", "what is hot?", ("ice", "fire"), 1),
]
SHOWN = [Demonstration(Example("d", "what is wet?", ("sand", "rain"), 1), "Rain is water.")]
NO_FILE = "no such file"


def put(path: Path, content) -> Path:
    """Write bytes, text, or rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(
            (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content
        )
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Each maker takes what is bad and returns what a user does with it, given an empty folder.


def params(text, name="own.yaml"):
    return lambda tmp: load_study(str(put(tmp / name, text)))


def named(name):
    return lambda tmp: load_study(name)


def stored(name):
    return lambda tmp: study_dir(name)


def data(train, test=({**ROW, "id": "t", "question": "what burns?", "answer": "B"},), **how):
    def run(tmp):
        put(tmp / "own" / "train.jsonl", train if isinstance(train, bytes) else list(train))
        put(tmp / "own" / "test.jsonl", test if isinstance(test, bytes) else list(test))
        load_dataset(str(tmp / "own"), **{"validation_size": 1, **how})

    return run


def line(**change):
    """A good first line of train.jsonl, and a second with a change."""
    return data([ROW, {**ROW, "id": "b", **change}])


def rationales(content):
    return lambda tmp: load_rationales(put(tmp / "r.jsonl", content), ASKED)


def shown(content):
    return lambda tmp: load_demonstrations(put(tmp / "shown.txt", content))


def selections(content):
    return lambda tmp: read_selections(put(tmp / "s.jsonl", content))


def scores(spoil):
    """A good score file, spoilt: `spoil` maps its lines to others."""

    def run(tmp):
        one = Attribution("a", "saliency", (5, 6), np.array([1.0, 2.0]), (0, 1))
        write_scores(tmp / "s.jsonl", [one, replace(one, id="b")], {"student": "x"})
        read_scores(put(tmp / "s.jsonl", spoil((tmp / "s.jsonl").read_text().splitlines())))

    return run


def saved(spoil):
    """A good student in a folder, spoilt."""

    def run(tmp):
        student = tiny("tiny-llama")
        student.model.save_pretrained(tmp / "s")
        student.tokenizer.save_pretrained(tmp / "s")
        spoil(tmp / "s")
        load_student(str(tmp / "s"))

    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def lose_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def to_pickle(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def larger_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [
        {
            "id": 600 + i,
            "content": f"<extra{i}>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for i in range(9)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def teacher(name="transformers", **how):
    empty = Dataset("own", ASKED, [], ASKED, {})
    return lambda tmp: from_teacher(
        name,
        ASKED,
        empty,
        tmp / "t.jsonl",
        **group_source(
            demonstrations=SHOWN,
            **{
                "model": "tiny-llama" if name != "gold" else "",
                "base_url": "http://127.0.0.1:9/v1" if name == "openai" else "",
                **how,
            },
        ),
    )


def hyper(**change):
    return lambda tmp: TrainConfig(**change)


def arm(name, **how):
    return lambda tmp: arm_from_name(name, **how)


def cells(*sources, **more):
    """A notebook whose cells are all tagged `parameters`."""
    book = {
        "cells": [
            {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": s}
            for s in sources
        ],
        **more,
    }
    return lambda tmp: notebook_parameters(put(tmp / "n.ipynb", json.dumps(book)))


def setting(**change):
    return lambda tmp: make_study().replace(**change).check()


def demands(**change):
    return lambda tmp: check_demands({"study": "own", **change}, list(NOTEBOOKS))


def handed_on(name, content, use):
    """A file of studies/t that the last notebook left, and the next one's use of it."""

    def run(tmp):
        put(study_dir("t") / name, content)
        use()

    return run


PLAN = [{"label": "label_only", "seed": 0, "key": "0" * 64, "arm": vars(Arm("label_only"))}]

CASES = {
    # studies: what is in the file
    "unknown key": (params("epoch: 3"), "'epoch'", "did you mean 'epochs'"),
    "key with a line break": (
        params('"a\\nb": 3'),
        "own.yaml: unknown key 'a\\nb'",
        "expected a parameter of one of the notebooks",
    ),
    "a key twice": (
        params("lr: 0.1\nlr: 0.2"),
        "'lr' appears twice",
        "expected each key once",
    ),
    "number as text": (params("lr: 1e-4"), "lr is '1e-4'", "write 1.0e-4"),
    "not a number": (params("lr: .nan"), "lr is nan", "expected a number from 0 on"),
    "endless": (params("warmup: .inf"), "warmup is inf", "expected a number from 0 to 1"),
    "negative": (params("epochs: -1"), "epochs is -1", "expected a number from 1 on"),
    "share above one": (
        params("mask_amounts: [0.5, 1.5]"),
        "mask_amounts: an item is 1.5",
        "expected a number from 0 to 1",
    ),
    "seed out of range": (
        params("seeds: [-1]"),
        "seeds: an item is -1",
        "expected a number from 0 to",
    ),
    "fraction for a whole number": (
        params("epochs: 2.5"),
        "epochs is 2.5",
        "expected a whole number",
    ),
    "a date": (params("student: 2024-01-01"), "student is datetime.date", "expected a text"),
    "an impossible date": (
        params("student: 2024-13-45"),
        "own.yaml",
        "expected `key: value` lines",
    ),
    "nested": (params("train: {lr: 1}"), "unknown key 'train'", "did you mean 'n_train'?"),
    "nested value": (
        params("arms: [[label_only]]"),
        "arms: an item is ['label_only']",
        "expected a text",
    ),
    "nested too deep": (params("seeds: " + "[" * 1100), "own.yaml", "expected `key: value` lines"),
    "references that explode": (
        params(
            "".join(
                f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9)
            )
        ),
        "unknown key 'a0'",
        "expected a parameter",
    ),
    "a list that explodes": (
        params(
            "arms: ["
            + "".join(f"&a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}], " for i in range(9))
            + "]"
        ),
        "arms: an item is ['x']",
        "expected a text",
    ),
    "a truth value that is none": (params("keep_weights: !!bool maybe"), "own.yaml", "not YAML"),
    "an object": (
        params("student: !!python/object/apply:os.system [ls]"),
        "own.yaml:1",
        "not YAML",
    ),
    "broken YAML": (params("a: [1,\nb: 2"), "own.yaml:2", "not YAML"),
    "two documents": (params("lr: 1\n---\nlr: 2"), "own.yaml:2", "not YAML"),
    "a NUL in the file": (params("lr: 1\0"), "own.yaml", "not YAML"),
    "not UTF-8": (
        params(b"student: caf\xe9"),
        "own.yaml: not UTF-8 (byte 13)",
        "expected a YAML file",
    ),
    "no mapping": (params("just words"), "found str", "expected `key: value` lines"),
    "a folder as study": (
        lambda tmp: ((tmp / "x.yaml").mkdir(), load_study(str(tmp / "x.yaml"))),
        "x.yaml: no such study",
        "expected a path",
    ),
    # studies: names
    "unknown study": (
        named("nothing"),
        "nothing.yaml: no such study",
        "expected a path to a YAML file or one of",
    ),
    "a name that climbs": (named("../params/quick"), "'../params/quick'", "expected a plain name"),
    "a name with a NUL": (named("qu\0ick"), "'qu\\x00ick'", "expected a plain name"),
    "an empty name": (named(""), "''", "expected a plain name"),
    "a hidden file": (params("lr: 1", ".own.yaml"), "'.own'", "expected a plain name"),
    "a name with a line break": (
        params("lr: 1", "o\nwn.yaml"),
        "'o\\nwn'",
        "expected a plain name",
    ),
    "the claims as a study": (params("lr: 1", "claims.yaml"), "'claims'", "expected a plain name"),
    "stored above": (stored("../x"), "'../x'", "expected a plain name"),
    "stored elsewhere": (stored("/etc"), "'/etc'", "expected a plain name"),
    "stored hidden": (stored(".x"), "'.x'", "expected a plain name"),
    "stored with a NUL": (stored("x\0"), "'x\\x00'", "expected a plain name"),
    "stored in too long a name": (stored("x" * 300), "'xxx", "expected a plain name"),
    # questions
    "not JSON": (
        data([ROW, '{"id": ']),
        "train.jsonl:2: malformed JSON",
        "expected one object per line",
    ),
    "torn line": (
        data([ROW, json.dumps(ROW)[:40]]),
        "train.jsonl:2: malformed JSON",
        "expected one object per line",
    ),
    "a number too long": (
        data([ROW, '{"id": ' + "9" * 5000 + "}"]),
        "train.jsonl:2: malformed JSON",
        "expected one object per line",
    ),
    "JSON nested too deep": (
        data([ROW, "[" * 100_000]),
        "train.jsonl:2: malformed JSON",
        "expected one object per line",
    ),
    "a field twice": (
        data([ROW, '{"id": "b", "id": "c"}']),
        "the key 'id' appears twice",
        "expected one object per line",
    ),
    "data not UTF-8": (
        data(json.dumps(ROW).encode() + b'\n"\xff"\n'),
        "train.jsonl:2: not UTF-8 (byte 2 of the line)",
        "expected UTF-8",
    ),
    "half a character": (
        line(question="\ud800?"),
        "train.jsonl:2 (id b): question '\\ud800?'",
        "expected a text",
    ),
    "missing field": (
        data([ROW, {"id": "b", "choices": ["x", "y"], "answer": 0}]),
        "train.jsonl:2: no field 'question'",
        "found",
    ),
    "duplicate id": (line(id="a"), "train.jsonl:2: duplicate id 'a'", "ids must be unique"),
    "id a list": (line(id=["b"]), "train.jsonl:2: id ['b']", "expected a text"),
    "answer out of range": (line(answer=2), "(id b): answer 2 is outside", "from A to B"),
    "answer the text": (
        line(answer="ice"),
        "(id b): answer 'ice'",
        "expected an index from 0 to 1",
    ),
    "answer a list": (line(answer=["A"]), "(id b): answer ['A']", "expected an index from 0 to 1"),
    "one option": (
        line(choices=["ice"], answer=0),
        "(id b): 1 choice(s)",
        "expected a list of at least two",
    ),
    "the same option twice": (
        line(choices=["ice", " ice "]),
        "(id b): choice 'ice' appears twice",
        "expected different options",
    ),
    "an option that is no text": (
        line(choices=["ice", None]),
        "(id b): choice None",
        "expected a text",
    ),
    "27 options": (line(choices=[str(i) for i in range(27)]), "27 choices", "expected at most 26"),
    "empty question": (line(question=" "), "(id b): empty question", "expected a text"),
    "rationale a number": (
        line(rationale=7),
        "train.jsonl:2 (id b): rationale is int",
        "expected a text",
    ),
    "no test question": (
        data([ROW], [""]),
        "test.jsonl: no question",
        "expected at least one line",
    ),
    "one id in two splits": (
        data([ROW, {**ROW, "id": "c"}], [ROW]),
        "duplicate id 'a'",
        "ids must be unique",
    ),
    "a folder for a file": (
        lambda tmp: (
            (tmp / "own" / "train.jsonl").mkdir(parents=True),
            load_dataset(str(tmp / "own")),
        ),
        "train.jsonl: is a folder",
        "expected a JSONL file",
    ),
    "unknown dataset": (
        lambda tmp: load_dataset("comonsenseqa"),
        "comonsenseqa: no such folder",
        "commonsense_qa",
    ),
    "almost microworld": (
        lambda tmp: load_dataset("microworlds"),
        "microworlds: no such folder",
        "microworld/everyday",
    ),
    "unknown part of microworld": (
        lambda tmp: load_dataset("microworld/space"),
        "'space'",
        "expected one of everyday, relations, invented",
    ),
    "share out of range": (
        lambda tmp: generate(label_seen=1.5),
        "label_seen is 1.5",
        "expected a share from 0 to 1",
    ),
    "more than microworld has": (
        lambda tmp: generate("relations", n_train=90_000),
        "n_train is 90000",
        "at most",
    ),
    "no hub": (
        lambda tmp: load_dataset("openbookqa"),
        "allenai/openbookqa",
        "expected a network, or data_dir",
    ),
    "validation takes all": (
        data([ROW], validation_size=3),
        "validation_size 3",
        "the train split has 1",
    ),
    "negative validation": (data([ROW], validation_size=-1), "validation_size is -1", "from 0 on"),
    "negative data seed": (data([ROW], data_seed=-1), "data_seed is -1", "from 0 on"),
    "choices without texts": (
        lambda tmp: (
            put(
                tmp / "commonsense_qa" / "train.jsonl",
                [{**ROW, "choices": {"label": ["A"], "words": []}, "answerKey": "A"}],
            ),
            load_dataset("commonsense_qa", tmp),
        ),
        "train.jsonl:1: choices",
        "expected an object with 'label' and 'text'",
    ),
    # rationales
    "rationale of no question": (
        rationales([{"id": "z", "rationale": "x"}]),
        "r.jsonl:1: rationale for an unknown id 'z'",
        "expected the id",
    ),
    "rationale id a list": (
        rationales([{"id": ["a"], "rationale": "x"}]),
        "r.jsonl:1: rationale for an unknown id ['a']",
        "expected the id",
    ),
    "rationale without text": (
        rationales([{"id": "a"}]),
        "r.jsonl:1: no field 'rationale'",
        "found",
    ),
    "rationale of another type": (
        rationales([{"id": "a", "rationale": ["x"]}]),
        "r.jsonl:1 (id a): rationale is list",
        "expected a text",
    ),
    "rationale that is half a character": (
        rationales(['{"id": "a", "rationale": "\\ud83d"}']),
        "r.jsonl:1 (id a): rationale",
        "expected a text",
    ),
    "two rationales": (
        rationales([{"id": "a", "rationale": "x"}] * 2),
        "r.jsonl:2: duplicate rationale for id 'a'",
        "expected one line",
    ),
    "key spans outside": (
        rationales([{"id": "a", "rationale": "xy", "key_spans": [[0, 3]]}]),
        "(id a): key_spans [[0, 3]]",
        "expected a list of [start, end]",
    ),
    "key spans a number": (
        rationales([{"id": "a", "rationale": "xy", "key_spans": 5}]),
        "(id a): key_spans 5",
        "expected a list",
    ),
    "empty rationale file": (
        rationales(""),
        "r.jsonl: covers none of the 2",
        "expected at least one rationale",
    ),
    "covers none": (
        rationales([{"id": "a", "rationale": "  "}]),
        "r.jsonl: covers none",
        "expected at least one rationale",
    ),
    "no rationale file": (
        lambda tmp: load_rationales(tmp / "none.jsonl", ASKED),
        f"none.jsonl: {NO_FILE}",
        "expected a JSONL file",
    ),
    # demonstrations, selections, scores
    "no demonstration": (
        shown("# a comment\n"),
        "shown.txt: no demonstration",
        "expected at least one block",
    ),
    "demonstration out of order": (
        shown("Question: x\nReason: y"),
        "shown.txt:2: found 'Reason: y'",
        "expected Options:",
    ),
    "demonstration unfinished": (
        shown("Question: x\nOptions:\n(A) a\n(B) b\nReason: y\n"),
        "shown.txt:1",
        "expected Question, Options, Reason, Answer",
    ),
    "demonstration with a wrong answer": (
        shown("Question: x\nOptions:\n(A) a\n(B) b\nReason: y\nAnswer: (C)\n"),
        "answer 'C'",
        "from A to B",
    ),
    "demonstrations not UTF-8": (
        shown(b"Question: \xff"),
        "shown.txt: not UTF-8",
        "expected few-shot demonstrations",
    ),
    "demonstrations a folder": (
        lambda tmp: load_demonstrations(tmp),
        "is a folder",
        "expected few-shot demonstrations",
    ),
    "selection without tokens": (
        selections([{"id": "a"}]),
        "s.jsonl:1",
        "(a list of positions from 0)",
    ),
    "selection of a negative token": (
        selections([{"id": "a", "tokens": [-1]}]),
        "s.jsonl:1",
        "(a list of positions from 0)",
    ),
    "selection id a number": (selections([{"id": 1, "tokens": [1]}]), "s.jsonl:1", '"id" (a text)'),
    "empty score file": (
        scores(lambda lines: ""),
        "s.jsonl:1: not the head",
        "expected a fingerprint",
    ),
    "scores cut": (
        scores(lambda lines: lines[:-1]),
        "s.jsonl: 1 questions",
        "expected 2: delete it",
    ),
    "scores edited": (
        scores(lambda lines: [lines[0], lines[1].replace("1.0", "9.0"), lines[2]]),
        "s.jsonl: a score was changed",
        "delete it and attribute again",
    ),
    "scores of another setting": (
        scores(lambda lines: [lines[0].replace('"x"', '"y"'), *lines[1:]]),
        "s.jsonl:1: not the head",
        "expected a fingerprint",
    ),
    "scores not finite": (
        scores(lambda lines: [lines[0], lines[1].replace("1.0", "NaN"), lines[2]]),
        "s.jsonl:2",
        "finite",
    ),
    "a score too few": (
        scores(lambda lines: [lines[0], lines[1].replace("[1.0, 2.0]", "[1.0]"), lines[2]]),
        "s.jsonl:2 (id a): 1 scores for 2",
        "expected as many",
    ),
    # students
    "unknown student": (
        lambda tmp: load_student("no-such-student"),
        "student 'no-such-student'",
        "expected one of smollm2-135m",
    ),
    "missing folder": (
        lambda tmp: load_student(str(tmp / "none")),
        "none': no config.json",
        "expected a model saved by save_pretrained",
    ),
    "folder without config": (
        saved(lambda folder: (folder / "config.json").unlink()),
        "no config.json",
        "expected a model saved",
    ),
    "config without weights": (
        saved(lambda folder: (folder / "model.safetensors").unlink()),
        "weights can't be loaded",
        "a local directory with safetensors",
    ),
    "weights cut": (
        saved(lambda folder: cut(folder / "model.safetensors")),
        "weights can't be loaded",
        "a local directory with safetensors",
    ),
    "weights in a pickle": (
        saved(to_pickle),
        "weights can't be loaded",
        "a local directory with safetensors",
    ),
    "a weight missing": (
        saved(lose_a_weight),
        "1 weights are missing",
        "model.norm.weight; expected all of them",
    ),
    "config cut": (
        saved(lambda folder: cut(folder / "config.json")),
        "weights can't be loaded",
        "expected one of",
    ),
    "config a list": (
        saved(lambda folder: put(folder / "config.json", "[1]")),
        "weights can't be loaded",
        "expected one of",
    ),
    "config of another shape": (
        saved(
            lambda folder: put(
                folder / "config.json",
                (folder / "config.json")
                .read_text()
                .replace('"hidden_size": 32', '"hidden_size": 64'),
            )
        ),
        "student '",
        "expected",
    ),
    "code of its own": (
        saved(
            lambda folder: put(
                folder / "config.json",
                json.dumps(
                    {
                        **json.loads((folder / "config.json").read_text()),
                        "model_type": "own",
                        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
                    }
                ),
            )
        ),
        "weights can't be loaded",
        "expected one of",
    ),
    "tokenizer missing": (
        saved(lambda folder: [p.unlink() for p in folder.glob("tokenizer*")]),
        "student '",
        "expected",
    ),
    "tokenizer of another model": (
        saved(larger_vocabulary),
        "a tokenizer of 609 tokens for 600",
        "expected the model's own tokenizer",
    ),
    "unknown device": (
        lambda tmp: best_device("gpu"),
        "device 'gpu'",
        "expected auto, cpu, cuda or mps",
    ),
    # teachers
    "unknown teacher": (
        teacher("oracle"),
        "teacher 'oracle'",
        "expected one of gold, recorded, transformers, openai",
    ),
    "gold without rationales": (
        teacher("gold"),
        "teacher 'gold'",
        "expected rationales in the data",
    ),
    "recorded without a file": (
        teacher("recorded"),
        "teacher 'recorded'",
        "expected `rationales`, a JSONL file",
    ),
    "a file that is not read": (
        teacher(recorded="r.jsonl"),
        "rationales is 'r.jsonl', but teacher is 'transformers'",
        "expected teacher recorded, or rationales left empty",
    ),
    "an address that is not read": (
        teacher(base_url="http://x/v1"),
        "base_url is 'http://x/v1', but teacher is 'transformers'",
        "expected teacher openai",
    ),
    "no model": (teacher(model=""), "teacher 'transformers'", "expected `teacher_model`"),
    "no address": (
        teacher("openai", base_url=""),
        "teacher 'openai'",
        "expected `teacher_model` and `base_url`",
    ),
    "address without a scheme": (
        teacher("openai", base_url="localhost:8000"),
        "base_url",
        "expected http(s)://host:port/v1",
    ),
    "address that can't be read": (
        teacher("openai", base_url="http://[::1/v1"),
        "base_url",
        "expected http(s)://host:port/v1",
    ),
    "port out of range": (
        teacher("openai", base_url="http://h:99999/v1"),
        "base_url",
        "expected http(s)://host:port/v1",
    ),
    "key in the address": (
        teacher("openai", base_url="http://h/v1?key=x"),
        "base_url with host 'h'",
        "the key belongs in OPENAI_API_KEY",
    ),
    "key after a hash": (
        teacher("openai", base_url="http://h/v1#x"),
        "base_url with host 'h'",
        "the key belongs in OPENAI_API_KEY",
    ),
    "nobody there": (
        lambda tmp: elicit_openai(
            ASKED,
            tmp / "t.jsonl",
            model="m",
            base_url="http://127.0.0.1:9/v1",
            demonstrations=SHOWN,
            connection=Connection(max_retries=1, backoff=0.01),
        ),
        "teacher m at http://127.0.0.1:9: no connection",
        "See that the server runs",
    ),
    "unknown mode": (
        teacher(mode="dreaming"),
        "mode 'dreaming'",
        "expected one of blind, label_conditioned",
    ),
    "mode of a gold teacher": (
        teacher("gold", mode="../x"),
        "mode '../x'",
        "expected one of blind",
    ),
    "samples at temperature 0": (teacher(n=2), "n is 2 at temperature 0", "expected n = 1"),
    "negative temperature": (
        teacher(temperature=-1.0),
        "temperature -1.0",
        "expected temperature >= 0",
    ),
    "temperature not a number": (
        teacher(temperature=float("nan")),
        "temperature nan",
        "expected temperature >= 0",
    ),
    "top_p of 0": (teacher(temperature=1.0, top_p=0.0), "top_p 0.0", "0 < top_p <= 1"),
    "no batch": (teacher(batch_size=0), "batch_size is 0", "from 1 on"),
    "no request": (teacher("openai", concurrency=0), "concurrency is 0", "from 1 on"),
    "prompt too long": (
        teacher(max_new_tokens=2000),
        "plus 2000 new ones",
        "expected at most 1024",
    ),
    "the same question twice": (
        lambda tmp: elicit_transformers(
            [ASKED[0]] * 2, "tiny-llama", tmp / "t.jsonl", demonstrations=SHOWN
        ),
        "duplicate id 'a'",
        "ids must be unique",
    ),
    # training
    **{
        f"{key} {value!r}": (
            hyper(**{key: value}),
            f"{key} is {value!r}" if not isinstance(value, str) else f"{key} is '{value}'",
            "expected",
        )
        for key, value in (
            ("lr", 0.0),
            ("lr", -1.0),
            ("lr", float("nan")),
            ("lr", float("inf")),
            ("lr", "1e-4"),
            ("epochs", 0),
            ("batch_size", 0),
            ("grad_accum", 0),
            ("weight_decay", -0.1),
            ("warmup", 1.5),
            ("max_grad_norm", -1.0),
            ("rationale_weight", -1.0),
            ("frozen_layers", -1),
            ("patience", -1),
            ("schedule", "cubic"),
            ("select", "first"),
            ("gradient_checkpointing", 1),
        )
    },
    "all layers frozen": (
        setting(train=dict(frozen_layers=2)),
        "frozen_layers is 2",
        "expected 0 to 1",
    ),
    "no seed": (setting(seeds=[]), "seeds is empty", "expected at least one number"),
    "a seed twice": (setting(seeds=[1, 1]), "seeds [1, 1]", "expected different numbers"),
    "a negative seed": (setting(seeds=[-3]), "seeds [-3]", "expected whole numbers from 0"),
    "a negative size": (setting(test_size=-1), "test_size is -1", "from 0 on"),
    "more than there is": (setting(train_size=13), "train_size 13", "12 training questions"),
    "longer than the student reads": (
        setting(max_length=2000),
        "max_length is 2000",
        "expected at most 1024",
    ),
    "unknown label format": (
        setting(label_format="word"),
        "label_format 'word'",
        "expected one of text, letter, both",
    ),
    "unknown dtype": (setting(dtype="int4"), "dtype 'int4'", "expected auto"),
    "float16 in training": (
        setting(dtype="float16"),
        "dtype is 'float16'",
        "expected auto (float32 weights), float32 or bfloat16",
    ),
    "one test question": (setting(test_size=1), "test_size is 1", "expected at least 2"),
    # what later stages demand, before the first one runs
    "float16 from the start": (demands(dtype="float16"), "dtype is 'float16'", "expected auto"),
    "one test question from the start": (
        demands(test_size=1),
        "test_size is 1",
        "expected at least 2",
    ),
    "no such precision": (demands(precision="half"), "precision is 'half'", "also auto"),
    "no such schedule": (demands(schedule="flat"), "schedule is 'flat'", "expected one of linear"),
    "one generated test question": (demands(n_test=1), "n_test is 1", "expected at least 2"),
    "nothing to shuffle": (
        demands(shuffle_units=[], controls=[]),
        "shuffle_units and controls are empty",
        "--stages without shuffle",
    ),
    "nowhere to shuffle": (
        demands(shuffle_placements=[], controls=[""]),
        "shuffle_units and controls are empty",
        "expected one of them",
    ),
    "no weights kept": (
        demands(keep_weights=False),
        "keep_weights is false, but attribution_model is pre_cot",
        "or attribution_model: undistilled",
    ),
    "no pre_cot arm": (
        demands(arms=["zero_shot", "post_cot"]),
        "arms has no pre_cot",
        "or attribution_model: undistilled",
    ),
    "unknown attribution model": (
        demands(attribution_model="teacher"),
        "attribution_model 'teacher'",
        "expected pre_cot, cross_fitted or undistilled",
    ),
    "nothing to keep or mask": (
        demands(keep_amounts=[], mask_amounts=[]),
        "keep_amounts and mask_amounts are empty",
        "--stages without attribute",
    ),
    # arms
    "unknown arm": (arm("mid_cot"), "unknown arm 'mid_cot'", "expected one of zero_shot"),
    "amount above one": (arm("post_cot_masked", amount=1.5), "amount is 1.5", "from 0 to 1"),
    "amount negative": (
        arm("post_cot_kept", amount=-1),
        "amount is -1",
        "expected a number of units",
    ),
    "amount not a number": (
        arm("post_cot_kept", amount=float("nan")),
        "amount is nan",
        "expected a number",
    ),
    "amount a text": (
        arm("post_cot_masked", amount="half"),
        "amount is 'half'",
        "expected a number",
    ),
    "amount endless": (
        arm("post_cot_kept", amount=float("inf")),
        "amount is inf",
        "expected a number",
    ),
    "unknown order": (
        arm("post_cot_masked", order="last"),
        "order is 'last'",
        "expected one of random, most, least",
    ),
    "unknown fill": (
        arm("post_cot_masked", fill="dots"),
        "fill is 'dots'",
        "expected one of filler, delete",
    ),
    "unknown unit": (
        arm("post_cot_shuffled", unit="letter"),
        "unit is 'letter'",
        "expected one of token, word, sentence",
    ),
    "unknown selector": (
        arm("post_cot_kept", amount=3, selector="magic"),
        "selector is 'magic'",
        "expected one of integrated_gradients",
    ),
    "label weight of 0": (
        arm("post_cot", label_weight=0),
        "label_weight is 0",
        "expected a number above 0",
    ),
    # notebooks
    "no parameters": (cells(), "n.ipynb: 0 cells tagged 'parameters'", "expected exactly one"),
    "two parameters cells": (
        cells("a = 1", "a = 1"),
        "n.ipynb: 2 cells tagged",
        "expected exactly one",
    ),
    "a parameter that is no literal": (
        cells("a = 1\nb = open('x')"),
        "line 2: the value of 'b'",
        "expected only `name = value`",
    ),
    "a parameter twice": (
        cells("a = 1\na = 2"),
        "line 2: 'a' appears twice",
        "expected each name once",
    ),
    "a statement": (cells("import os"), "line 1", "expected only `name = value`"),
    "broken Python": (cells("a = "), "line 1: not Python", "expected only `name = value`"),
    "no notebook": (
        lambda tmp: notebook_parameters(tmp / "n.ipynb"),
        f"n.ipynb: {NO_FILE}",
        "expected a notebook",
    ),
    "not a notebook": (
        lambda tmp: notebook_parameters(put(tmp / "n.ipynb", "{}")),
        "n.ipynb: not a notebook",
        "expected JSON with cells",
    ),
    "cells of another kind": (
        lambda tmp: notebook_parameters(put(tmp / "n.ipynb", '{"cells": [1]}')),
        "n.ipynb: not a notebook",
        "expected JSON with cells",
    ),
    # the store
    "not elicited yet": (
        lambda tmp: read_json(study_dir("t") / "data.json", "`make elicit STUDY=t`"),
        f"data.json: {NO_FILE}",
        "expected it from `make elicit",
    ),
    "not trained yet": (
        lambda tmp: Study.load("t"),
        f"base.json: {NO_FILE}",
        "expected it from `make train STUDY=t`",
    ),
    "stage not run": (
        lambda tmp: load_predictions("t", ["shuffle"]),
        f"shuffle.json: {NO_FILE}",
        "expected it from `make shuffle STUDY=t`",
    ),
    "run not complete": (
        handed_on("train.json", json.dumps(PLAN), lambda: load_stage("t", "train")),
        "run 000000000000 (label_only, seed 0) is not complete",
        "run `make train STUDY=t`",
    ),
    "plan that leads elsewhere": (
        handed_on(
            "train.json",
            json.dumps([PLAN[0] | {"key": "../../x"}]),
            lambda: load_stage("t", "train"),
        ),
        "train.json: damaged",
        "expected the plan of stage train",
    ),
    "plan of another kind": (
        handed_on("train.json", "{}", lambda: load_stage("t", "train")),
        "train.json: damaged",
        "expected the plan",
    ),
    "base cut": (
        handed_on("base.json", '{"study": ', lambda: Study.load("t")),
        "base.json: not JSON",
        "delete it and run that again",
    ),
    "base without its keys": (
        handed_on("base.json", '{"study": "t"}', lambda: Study.load("t")),
        "base.json: found no data, device, dtype, eval_batch_size, label_format",
        "run that again",
    ),
    "base with training of another version": (
        lambda tmp: Setting.from_json(
            make_study().setting.to_json() | {"train": {"lr": 1e-4, "momentum": 0.9}},
            "base.json",
            "t",
        ),
        "base.json: found train's momentum",
        "expected what `make train STUDY=t` wrote",
    ),
    "base with training of another kind": (
        lambda tmp: Setting.from_json(
            make_study().setting.to_json() | {"train": 3}, "base.json", "t"
        ),
        "base.json: found a int as train",
        "run that again",
    ),
    "verdicts missing": (
        lambda tmp: load_verdicts("t"),
        f"verdicts.json: {NO_FILE}",
        "`make figures STUDY=t`",
    ),
}


@pytest.mark.parametrize("action, offending, expected", CASES.values(), ids=CASES)
def test_bad_input_is_one_line_that_names_it(tmp_path, store, action, offending, expected):
    with pytest.raises((DataError, TeacherError)) as error:
        action(tmp_path)
    message = str(error.value)
    assert message.isprintable() and len(message) < 1600
    assert offending in message and expected in message, message
    assert not list(store.glob("runs/*"))


def test_the_table_is_as_large_as_promised():
    assert len(CASES) >= 70 and len({id(action) for action, _, _ in CASES.values()}) == len(CASES)


COMMANDS = {
    "unknown study": (["nothing"], "no such study"),
    "a climbing name": (["../../etc/passwd"], "expected a plain name"),
    "unknown key": (["{bad}/key.yaml"], "did you mean 'epochs'?"),
    "bad range": (["{bad}/range.yaml"], "batch_size is 0; expected a number from 1 on"),
    "not UTF-8": (["{bad}/latin.yaml"], "latin.yaml: not UTF-8"),
}


@pytest.mark.parametrize("words, message", COMMANDS.values(), ids=COMMANDS)
def test_on_the_command_line(tmp_path, words, message):
    """Status 1, one `error:` line, and nothing left behind.

    (What only a notebook can find: test_notebooks.)
    """
    put(tmp_path / "key.yaml", "epoch: 3\n")
    put(tmp_path / "range.yaml", "batch_size: 0\n")
    put(tmp_path / "latin.yaml", "student: caf\xe9\n".encode("latin-1"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            *(w.format(bad=tmp_path) for w in words),
            "--executed",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    "change, stages",
    [
        (dict(test_size=1), ["elicit"]),
        (dict(shuffle_units=[], controls=[]), ["elicit", "train", "evaluate", "attribute"]),
        (dict(keep_weights=False), ["train", "shuffle"]),
        (dict(keep_weights=False, attribution_model="undistilled"), ["attribute"]),
        (dict(keep_weights=False, attribution_model="cross_fitted"), ["attribute"]),
        (dict(check_methods=[]), ["attribute"]),
        (dict(shuffle_units=[], controls=["filler"]), ["shuffle"]),
        (dict(mask_amounts=[]), ["attribute"]),
        (dict(arms=["label_only"]), ["elicit", "train", "evaluate"]),
    ],
)
def test_what_the_chosen_stages_do_not_need_is_not_demanded(change, stages):
    check_demands({"study": "own", **change}, stages)


def test_a_student_is_tried_on_the_command_line_before_the_first_stage(tmp_path):
    """A BERT, and what only notebook 4 would have found.

    Status 1 and one line, before a question is read.
    """
    from test_demands import save_student

    put(tmp_path / "own.yaml", f"student: {save_student(tmp_path / 's', 'bert')}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            str(tmp_path / "own.yaml"),
            "--executed",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {"COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout.count("\n") == 1, (
        done.stderr
    )
    assert done.stderr.startswith("error: student '") and "no causal language model" in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "artifacts").exists()


def test_a_missing_notebook_is_named_before_the_first_one_runs(tmp_path, monkeypatch, capsys):
    for name in ("01_elicit", "02_train"):
        put(
            tmp_path / "notebooks" / f"{name}.ipynb",
            (ROOT / "notebooks" / f"{name}.ipynb").read_text(),
        )
    put(tmp_path / "params" / "own.yaml", "")
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path))
    assert cli.main(["run", "own", "--stages", "elicit", "figures"]) == 1
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.count("\n") == 1
        and ("06_figures.ipynb: no such file; expected a notebook") in err
    )


def test_what_microworld_and_gold_rationales_accept_is_not_refused(tmp_path):
    """The checks refuse no good input.

    The embedded data written as own data are read back as they were.
    """
    world = generate(n_train=12, n_validation=0, n_test=8)
    for split in ("train", "test"):
        put(
            tmp_path / f"{split}.jsonl",
            [
                {
                    "id": e.id,
                    "question": e.question,
                    "choices": e.choices,
                    "answer": e.answer,
                    "rationale": world["rationales"][e.id].text,
                }
                for e in world[split]
            ],
        )
    found = load_dataset(str(tmp_path), validation_size=0)
    assert found.train == world["train"] and found.test == world["test"]
    assert found.rationales == {
        e.id: Rationale(e.id, world["rationales"][e.id].text) for e in world["train"]
    }
