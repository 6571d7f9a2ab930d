"""Where questions come from.

Official files, the hub, own files, the embedded worlds; recorded rationales; the data card.
"""

import json
import re
import reprlib
from collections import Counter
from pathlib import Path

import numpy as np

from cotdistill.errors import DataError
from cotdistill.examples import (
    LETTERS,
    Dataset,
    Example,
    Rationale,
    _field,
    check_rationale,
    first_equal,
    make_example,
    question_key,
    without_repeats,
)
from cotdistill.files import atomic_write, read_jsonl
from cotdistill.tables import question_rows, split_path

# Where each dataset lives on the hub (pinned), which of its splits play which role, and how the
# authors' own download names a split's file where it is not the split's name. CommonsenseQA hides
# its test answers: its validation split is our test split, as in the literature.
SOURCES = {
    "commonsense_qa": dict(
        hub="tau/commonsense_qa",
        config=None,
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        splits={"train": "train", "test": "validation"},
        files={"train": "train_rand_split", "validation": "dev_rand_split"},
    ),
    "openbookqa": dict(
        hub="allenai/openbookqa",
        config="main",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        splits={"train": "train", "validation": "validation", "test": "test"},
        files={"validation": "dev"},
    ),
    "quarel": dict(
        hub="community-datasets/quarel",
        config=None,
        revision="52be7f062d2c13d401a9e53b6963d8fbcc4abeb4",
        splits={"train": "train", "validation": "validation", "test": "test"},
        files={"train": "quarel-v1-train", "validation": "quarel-v1-dev", "test": "quarel-v1-test"},
    ),
}


def _lettered(choices, where: str) -> tuple[list, list]:
    """The official choices of CommonsenseQA and OpenBookQA as (letters, texts).

    Two layouts: the hub's {"label": [...], "text": [...]} and the authors' own [{"label": "A",
    "text": ...}, ...].
    """
    if (
        isinstance(choices, (list, tuple))
        and choices
        and all(isinstance(c, dict) and {"label", "text"} <= set(c) for c in choices)
    ):
        return [c["label"] for c in choices], [c["text"] for c in choices]
    letters, texts = (
        (choices.get("label"), choices.get("text")) if isinstance(choices, dict) else (None, None)
    )
    if (
        not isinstance(letters, (list, tuple))
        or not isinstance(texts, (list, tuple))
        or len(letters) != len(texts)
    ):
        raise DataError(
            f"{where}: choices {str(choices)[:60]!r}; expected an object with 'label' and 'text' "
            "lists of one length, or a list of objects with 'label' and 'text'"
        )
    return list(letters), list(texts)


def parse_row(dataset: str, row: dict, where: str) -> Example:
    """One official row -> Example.

    `where` is "file:line", for the error.

    commonsense_qa: id, question, choices{label,text}, answerKey. openbookqa: the same with
    question_stem. The authors' own files nest both: question{stem, choices[{label,text}]},
    answerKey. quarel: question with its options inline, "(A) .. (B) ..", and answer_index. Anything
    else is our own format: id, question, choices (list), answer (an index from 0 or a letter).
    """
    id = _field(row, "id", where)
    if dataset in ("commonsense_qa", "openbookqa"):
        nested = row.get("question") if isinstance(row.get("question"), dict) else {}
        letters, texts = _lettered(
            _field(nested if "choices" in nested else row, "choices", where), where
        )
        key = _field(row, "answerKey", where)
        if key not in letters:
            raise DataError(
                f"{where} (id {id}): answer {key!r} is outside the choices; expected one of "
                f"{letters}"
            )
        name = "question_stem" if dataset == "openbookqa" else "question"
        if nested and (name == "question" or name not in row):
            question = _field(nested, "stem", where)
        else:
            question = _field(row, name, where)
        return make_example(id, question, texts, letters.index(key), where)
    if dataset == "quarel":
        question = _field(row, "question", where)
        parts = (
            re.match(r"(.*)\(A\)\s*(.*?)\s*\(B\)\s*(.*)$", question, re.S)
            if isinstance(question, str)
            else None
        )
        if parts is None:
            raise DataError(
                f"{where} (id {id}): no '(A) .. (B) ..' in the question; expected the options "
                "inline"
            )
        return make_example(
            id,
            parts[1],
            [parts[2], parts[3].rstrip(" .")],
            _field(row, "answer_index", where),
            where,
        )
    example = make_example(
        id,
        _field(row, "question", where),
        _field(row, "choices", where),
        _field(row, "answer", where),
        where,
    )
    twice = [choice for choice, times in Counter(example.choices).items() if times > 1]
    if twice:  # the official sets hold some, which the data card counts; own data can be put right
        raise DataError(
            f"{where} (id {id}): choice '{twice[0]}' appears twice; expected different options"
        )
    return example


def _unique(examples: list[tuple[str, Example]]) -> list[Example]:
    seen = {}
    for where, example in examples:
        if example.id in seen:
            raise DataError(
                f"{where}: duplicate id '{example.id}', first seen at {seen[example.id]}; ids must "
                "be unique"
            )
        seen[example.id] = where
    return [example for _, example in examples]


def load_examples(
    dataset: str, split: str, data_dir: str | Path | None = None
) -> list[Example] | None:
    """One split of a dataset.

    From `data_dir` (a folder that holds <dataset>/<split>.jsonl or another form of a split), an own
    folder given as `dataset` itself, or the hub (pinned revision). None where the dataset has no
    such split.

    Raises DataError for a missing folder or a bad line.
    """
    source = SOURCES.get(dataset)
    folder = Path(data_dir) / dataset if source and data_dir else None if source else Path(dataset)
    name = source["splits"].get(split) if source else split
    if folder is None:
        if name is None:
            return None
        rows = _hub_rows(source, name)
        return _unique(
            [
                (
                    f"{source['hub']}/{name}:{n}",
                    parse_row(dataset, row, f"{source['hub']}/{name}:{n}"),
                )
                for n, row in enumerate(rows, 1)
            ]
        )
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {expected_data()}")
    path = split_path(folder, name, source["files"].get(name) if source else None) if name else None
    if path is None and split == "validation":
        return None
    rows = question_rows(path or folder / f"{name}.jsonl")
    if not rows:
        raise DataError(f"{path}: no question in it; expected at least one line")
    return _unique([(where, parse_row(dataset, row, where)) for where, row in rows])


def expected_data() -> str:
    """What may stand in `dataset`, for an error's end."""
    from cotdistill.microworld.knowledge import WORLDS  # which imports this module

    known = ", ".join([*SOURCES, *(f"microworld/{part}" for part in WORLDS)])
    return f"expected a dataset ({known}) or a folder with train.jsonl and test.jsonl"


def _hub_rows(source: dict, split: str):
    from datasets import load_dataset  # heavy import, and only needed with a network

    try:
        return load_dataset(
            source["hub"], source["config"], split=split, revision=source["revision"]
        )
    except Exception as error:  # offline, gated, renamed: the hub raises a dozen types
        raise DataError(
            f"{source['hub']} (split {split}, revision {source['revision'][:8]}): cannot be loaded "
            f"from the hub ({type(error).__name__}); expected a network, or data_dir set to a "
            "folder with a copy"
        ) from None


def load_rationales(path: str | Path, examples: list[Example]) -> dict[str, Rationale]:
    """Recorded rationales, one `{"id", "rationale", "answer"}` a line, keyed by question id.

    `answer` is what the teacher concluded, in any of the forms of `concluded_option`, or null; what
    names no option counts as null. Empty rationales are allowed (they count as not covered).

    Raises DataError for an id that is not among `examples`, for a duplicate id, for an answer that
    can be read in two ways, and where not one question is covered.
    """
    by_id, found = {example.id: example for example in examples}, {}
    for number, row in read_jsonl(path):
        where, id = f"{path}:{number}", _field(row, "id", f"{path}:{number}")
        if not isinstance(id, str) or id not in by_id:
            raise DataError(
                f"{where}: rationale for an unknown id {id!r}; expected the id of a training "
                "question"
            )
        if id in found:
            raise DataError(
                f"{where}: duplicate rationale for id '{id}'; expected one line per question"
            )
        text, answer = _field(row, "rationale", where), row.get("answer")
        check_rationale(text, f"{where} (id {id})")
        answer = concluded_option(answer, by_id[id].choices, f"{where} (id {id})")
        text, spans = " ".join(text.split()), row.get("key_spans", [])
        if not isinstance(spans, list) or not all(
            isinstance(s, list)
            and len(s) == 2
            and all(type(i) is int for i in s)
            and 0 <= s[0] <= s[1] <= len(text)
            for s in spans
        ):
            raise DataError(
                f"{where} (id {id}): key_spans {reprlib.repr(spans)}; expected a list of [start, "
                "end] within the rationale"
            )
        if spans and text != row["rationale"]:
            raise DataError(
                f"{where} (id {id}): key_spans of a rationale with line breaks, double spaces or "
                "spaces around it, which are collapsed here; expected single spaces"
            )
        found[id] = Rationale(id, text, answer, tuple(map(tuple, spans)))
    if not any(rationale.text for rationale in found.values()):
        raise DataError(
            f"{path}: covers none of the {len(by_id)} training questions; expected at least one "
            "rationale"
        )
    return found


def concluded_option(answer, choices: tuple[str, ...], where: str) -> int | None:
    """The option that a recorded answer names, or None: a teacher may conclude anything.

    Forms: a letter ("B", "b", "(B)", "B."), an option's text ("fire", whatever its case), both ("B.
    fire", "(B) fire"), an index from 0 as a number, or a larger number that is an option's text.
    "(B)" is always the letter, a number within the options always the index. Raises DataError where
    two readings of anything else differ, and for digits in quotes that are no option's text.
    """
    if isinstance(answer, bool) or not isinstance(answer, (int, float, str)):
        return None
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return first_equal(choices, answer)
    said, texts = _plain_answer(str(answer)), [_plain_answer(choice) for choice in choices]
    same = texts.index(said) if said in texts else None
    if not isinstance(answer, str):
        return same
    if answer.strip().isdecimal() and same is None:
        raise DataError(
            f"{where}: answer '{answer}'; expected a letter, or an index from 0 as a number"
        )
    found = re.fullmatch(
        r"(?:(\()([A-Za-z])\)|([A-Za-z])(?:[.:)]|$))[.:]?\s*(.*)", " ".join(answer.split())
    )
    letter = LETTERS.find((found[2] or found[3]).upper()) if found else -1
    if not 0 <= letter < len(choices) or found[4] and _plain_answer(found[4]) != texts[letter]:
        return same
    if same is not None and texts[letter] != texts[same] and not (found[1] and not found[4]):
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)} is the letter of option "
            f"{reprlib.repr(choices[letter])} and the text of another; expected "
            f"'({LETTERS[letter]})' or '({LETTERS[same]})'"
        )
    return first_equal(choices, letter)


def _plain_answer(text: str) -> str:
    """A text as answers are compared: case, white space and a full stop at the end do not count."""
    return " ".join(text.split()).casefold().rstrip(" .") or text


def write_rationales(
    rationales: dict[str, Rationale], path: Path, examples: list[Example] = ()
) -> None:
    """The inverse of `load_rationales`: JSONL in id order, answers as letters.

    examples: their questions; where an option's text is a letter, the answer is written "(B)",
    which is always the letter.
    """
    choices = {
        example.id: [_plain_answer(choice) for choice in example.choices] for example in examples
    }

    def letter(r: Rationale) -> str:
        name = LETTERS[r.answer]
        return f"({name})" if name.casefold() in choices.get(r.id, ()) else name

    rows = [
        {
            "id": r.id,
            "rationale": r.text,
            "answer": None if r.answer is None else letter(r),
            **({"key_spans": r.key_spans} if r.key_spans else {}),
        }
        for r in rationales.values()
    ]
    with atomic_write(path) as part:
        part.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )


def carve_validation(
    train: list[Example], size: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Take `size` validation questions out of train, the same ones for a seed.

    Order of the rest is kept.

    A question that is asked twice (same words and options) stays on one side, so that selection
    sees nothing twice; the validation part can then be larger by the repetitions.
    """
    if size < 0:
        raise DataError(f"validation_size is {size}; expected a number from 0 on")
    if size >= len(train):
        raise DataError(
            f"validation_size {size} leaves no training question; the train split has {len(train)}"
        )
    keys = [question_key(e) for e in train]
    times, chosen, count = Counter(keys), set(), 0
    for i in np.random.default_rng(seed).permutation(len(train)):
        if count >= size:
            break
        if keys[i] not in chosen:
            chosen.add(keys[i])
            count += times[keys[i]]
    return (
        [e for e, key in zip(train, keys) if key not in chosen],
        [e for e, key in zip(train, keys) if key in chosen],
    )


def load_dataset(
    dataset: str,
    data_dir=None,
    *,
    validation_size: int = 100,
    data_seed: int = 0,
    microworld: dict | None = None,
) -> Dataset:
    """All splits of a dataset, a validation split carved from train where it has none.

    Rationales are only filled where the data carry their own: microworld's gold ones, or a
    `rationale` field in own data.

    microworld: keyword arguments of `microworld.generate` (sizes, dials), used for
    `microworld/<part>` only.
    """
    if data_seed < 0 or validation_size < 0:
        raise DataError(
            f"data_seed is {data_seed}, validation_size is {validation_size}; expected numbers "
            "from 0 on"
        )
    if dataset.partition("/")[0] == "microworld":
        from cotdistill.microworld.generate import generate

        part = dataset.partition("/")[2] or "everyday"
        world = generate(part, n_validation=validation_size, seed=data_seed, **(microworld or {}))
        return Dataset(
            dataset,
            world["train"],
            world["validation"],
            world["test"],
            world["rationales"],
            world["meta"],
        )
    train, validation, test = (
        load_examples(dataset, split, data_dir) for split in ("train", "validation", "test")
    )
    _unique(
        [
            (f"{dataset}, split {split}", e)
            for split, part in (("train", train), ("validation", validation or []), ("test", test))
            for e in part
        ]
    )
    left_out = {}
    train, left_out["train"] = without_repeats(train, [*test, *(validation or [])])
    if not train:
        raise DataError(
            f"{dataset}: all {len(left_out['train'])} training questions also stand in the "
            "validation or test split; expected other questions there"
        )
    validation, left_out["validation"] = (
        without_repeats(validation, test) if validation else (validation, [])
    )
    if validation is None:
        train, validation = carve_validation(train, validation_size, data_seed)
    elif 0 < validation_size < len(validation):
        keep = np.random.default_rng(data_seed).permutation(len(validation))[:validation_size]
        validation = [validation[i] for i in sorted(keep)]
    own = (
        {}
        if dataset in SOURCES
        else _own_rationales(Path(dataset), {e.id for e in [*train, *validation, *test]})
    )
    return Dataset(dataset, train, validation, test, own, left_out=left_out)


def _own_rationales(folder: Path, ids: set[str]) -> dict[str, Rationale]:
    rows = [
        (where, row)
        for where, row in question_rows(split_path(folder, "train"))
        if row.get("rationale") not in (None, "") and row["id"] in ids
    ]
    for where, row in rows:
        check_rationale(row["rationale"], f"{where} (id {row['id']})")
    return {row["id"]: Rationale(row["id"], " ".join(row["rationale"].split())) for _, row in rows}


def data_card(data: Dataset) -> "pandas.DataFrame":
    """Counts, lengths, label balance and duplicates, one row per split.

    What a reader checks before trusting a number.

    Lengths are in words. `top_position` is the share of the most frequent answer position, `chance`
    the accuracy of a uniform guess, `seen_in_train` the number of questions that also stand in
    train (same words and options), `left_out` the number that was left out of the split because
    they stand in a later one.
    """
    import pandas as pd

    train_keys, rows = {question_key(e) for e in data.train}, []
    for split in ("train", "validation", "test"):
        examples = getattr(data, split)
        keys = Counter(question_key(e) for e in examples)
        positions = Counter(e.answer for e in examples)
        options = Counter(len(e.choices) for e in examples)
        covered = [
            data.rationales[e.id].text
            for e in examples
            if e.id in data.rationales and data.rationales[e.id].text
        ]
        rows.append(
            {
                "split": split,
                "questions": len(examples),
                "options": "/".join(map(str, sorted(options))),
                "chance": float(np.mean([1 / len(e.choices) for e in examples]))
                if examples
                else float("nan"),
                "top_position": max(positions.values()) / len(examples)
                if examples
                else float("nan"),
                "question_words": float(np.mean([len(e.question.split()) for e in examples]))
                if examples
                else float("nan"),
                "option_words": float(
                    np.mean([len(c.split()) for e in examples for c in e.choices])
                )
                if examples
                else float("nan"),
                "equal_options": sum(
                    len(set(map(str.lower, e.choices))) < len(e.choices) for e in examples
                ),
                "duplicates": sum(n - 1 for n in keys.values()),
                "seen_in_train": 0 if split == "train" else sum(key in train_keys for key in keys),
                "left_out": len(data.left_out.get(split, [])),
                "rationales": len(covered),
                "rationale_words": float(np.mean([len(t.split()) for t in covered]))
                if covered
                else float("nan"),
            }
        )
    return pd.DataFrame(rows).set_index("split")
