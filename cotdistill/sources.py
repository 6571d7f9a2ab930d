"""Load questions: official files, the hub, a user's own files and the embedded worlds.

Recorded rationales and the data card are here too.
"""

import json
import re
import reprlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from cotdistill.errors import DataError
from cotdistill.examples import (
    LETTERS,
    Dataset,
    Example,
    Rationale,
    check_rationale,
    first_equal,
    get_field,
    is_embedded,
    question_key,
    without_repeats,
)
from cotdistill.files import atomic_write, read_jsonl
from cotdistill.free_answers import match_answer
from cotdistill.microworld.knowledge import SPLITS, WORLDS
from cotdistill.microworld.worlds import make_world, make_worlds
from cotdistill.parameters import check_worlds
from cotdistill.row_formats import (
    parse_gsm8k_row,
    parse_lettered_row,
    parse_own_row,
    parse_quarel_row,
    row_steps,
    split_gsm8k_answer,
)
from cotdistill.tables import question_rows, split_path

# A new dataset is one entry here: where it lives on the hub (pinned; None: read from files only),
# which of its splits play which role, how the authors' own download names a split's file where it
# is not the split's name, and how a row becomes an Example.
# CommonsenseQA hides its test answers: its validation split is our test split, as in the
# literature.
SOURCES = {
    "commonsense_qa": dict(
        hub="tau/commonsense_qa",
        config=None,
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        splits={"train": "train", "test": "validation"},
        files={"train": "train_rand_split", "validation": "dev_rand_split"},
        parse=parse_lettered_row,
    ),
    "openbookqa": dict(
        hub="allenai/openbookqa",
        config="main",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        splits={"train": "train", "validation": "validation", "test": "test"},
        files={"validation": "dev"},
        parse=partial(parse_lettered_row, name="question_stem"),
    ),
    "quarel": dict(
        hub="community-datasets/quarel",
        config=None,
        revision="52be7f062d2c13d401a9e53b6963d8fbcc4abeb4",
        splits={"train": "train", "validation": "validation", "test": "test"},
        files={"train": "quarel-v1-train", "validation": "quarel-v1-dev", "test": "quarel-v1-test"},
        parse=parse_quarel_row,
    ),
    # Free answers, read from files only. GSM8K's official files are train.jsonl and test.jsonl
    "gsm8k": dict(
        hub=None, splits={"train": "train", "test": "test"}, files={}, parse=parse_gsm8k_row
    ),
    "svamp": dict(
        hub=None, splits={"train": "train", "test": "test"}, files={}, parse=parse_own_row
    ),
}


def parse_row(dataset: str, row: dict, where: str) -> Example:
    """Parse a row of a dataset of SOURCES, or of own data; `where` is "file:line", for errors."""
    parse = SOURCES[dataset]["parse"] if dataset in SOURCES else parse_own_row
    return parse(row, where)


def _check_ids(examples: list[tuple[str, Example]]) -> list[Example]:
    """Return the examples of (where, example) pairs; raise DataError for a repeated id."""
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
    """Load one split of a dataset.

    It comes from `data_dir` (a folder that holds <dataset>/<split>.jsonl or another form of a
    split), from an own folder given as `dataset` itself, or from the hub at a pinned revision.
    Returns None where the dataset has no such split. Raises DataError for a missing folder or a bad
    line.
    """
    source = SOURCES.get(dataset)
    folder = Path(data_dir) / dataset if source and data_dir else None if source else Path(dataset)
    name = source["splits"].get(split) if source else split
    if folder is None:
        if name is None:
            return None
        if source["hub"] is None:
            raise DataError(
                f"{dataset}: data_dir is empty; expected a folder with {dataset}/train.jsonl and "
                "test.jsonl: this dataset is read from files only"
            )
        place = f"{source['hub']}/{name}"
        rows = [(f"{place}:{n}", row) for n, row in enumerate(_load_hub_rows(source, name), 1)]
        return _check_ids([(where, parse_row(dataset, row, where)) for where, row in rows])
    if not folder.is_dir():
        fetch = f", or `make data ONLY={dataset}` to fetch it" if source else ""
        raise DataError(f"{folder}: no such folder; {expected_data()}{fetch}")
    path = split_path(folder, name, source["files"].get(name) if source else None) if name else None
    if path is None and split == "validation":
        return None
    rows = question_rows(path or folder / f"{name}.jsonl")
    if not rows:
        raise DataError(f"{path}: no question in it; expected at least one line")
    return _check_ids([(where, parse_row(dataset, row, where)) for where, row in rows])


def load_steps(dataset: str, data_dir: str | Path | None) -> dict[str, int]:
    """Map the test questions of a dataset in files to their number of steps, where rows say it.

    dataset, data_dir: as in `load_examples`. Empty for a dataset from the hub. Raises DataError for
    a bad line (`row_formats.row_steps`).
    """
    source = SOURCES.get(dataset)
    if source and not data_dir:
        return {}
    name = source["splits"]["test"] if source else "test"
    folder = Path(data_dir) / dataset if source else Path(dataset)
    path = split_path(folder, name, source["files"].get(name) if source else None)
    counts = {
        parse_row(dataset, row, where).id: row_steps(dataset, row, where)
        for where, row in question_rows(path or folder / f"{name}.jsonl")
    }
    return {question: steps for question, steps in counts.items() if steps}


def expected_data() -> str:
    """Say what `dataset` may be, for the end of an error."""
    known = ", ".join([*SOURCES, *(f"microworld/{part}" for part in WORLDS)])
    return f"expected a dataset ({known}) or a folder with train.jsonl and test.jsonl"


def _load_hub_rows(source: dict, split: str):
    """Load the rows of a split from the hub; raise DataError where it cannot be reached."""
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
    """Read recorded rationales, one `{"id", "rationale", "answer"}` a line, by question id.

    `answer` is what the teacher concluded, in any form that `concluded_option` reads, or null; what
    names no option counts as null. Empty rationales are allowed (they count as not covered).

    Raises DataError for an id that is not among `examples`, for a duplicate id, for an answer that
    can be read in two ways, and where not one question is covered.
    """
    by_id, rationales = {example.id: example for example in examples}, {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        question_id = get_field(row, "id", where)
        if not isinstance(question_id, str) or question_id not in by_id:
            raise DataError(
                f"{where}: rationale for an unknown id {question_id!r}; expected the id of a "
                "training question"
            )
        if question_id in rationales:
            raise DataError(
                f"{where}: duplicate rationale for id '{question_id}'; expected one line per "
                "question"
            )
        text, answer = get_field(row, "rationale", where), row.get("answer")
        place = f"{where} (id {question_id})"
        check_rationale(text, place)
        answer = concluded_answer(answer, by_id[question_id], place)
        text, spans = " ".join(text.split()), row.get("key_spans", [])
        if not isinstance(spans, list) or not all(
            isinstance(s, list)
            and len(s) == 2
            and all(type(i) is int for i in s)
            and 0 <= s[0] <= s[1] <= len(text)
            for s in spans
        ):
            raise DataError(
                f"{place}: key_spans {reprlib.repr(spans)}; expected a list of [start, end] within "
                "the rationale"
            )
        if spans and text != row["rationale"]:
            raise DataError(
                f"{place}: key_spans of a rationale with line breaks, double spaces or spaces "
                "around it, which are collapsed here; expected single spaces"
            )
        rationales[question_id] = Rationale(question_id, text, answer, tuple(map(tuple, spans)))
    if not any(rationale.text for rationale in rationales.values()):
        raise DataError(
            f"{path}: covers none of the {len(by_id)} training questions; expected at least one "
            "rationale"
        )
    return rationales


def concluded_answer(answer, example: Example, where: str) -> int | None:
    """Find the option that a recorded answer names (`concluded_option`), or None.

    Of a free answer: 0 where it is the right one; a wrong one and none at all are both None.
    """
    if not example.is_free:
        return concluded_option(answer, example.choices, where)
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    return 0 if answer is not None and match_answer(str(answer), example.label) else None


def concluded_option(answer, choices: tuple[str, ...], where: str) -> int | None:
    """Find the option that a recorded answer names, or None: a teacher may conclude anything.

    Forms: a letter ("B", "b", "(B)", "B."), an option's text ("fire", whatever its case), both ("B.
    fire", "(B) fire"), an index from 0 as a number, or a larger number that is an option's text.
    "(B)" is always the letter, a number within the options always the index. Raises DataError where
    two readings of anything else differ, and for digits in quotes that are no option's text.
    """
    if isinstance(answer, bool) or not isinstance(answer, (int, float, str)):
        return None
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return first_equal(choices, answer)
    texts = [_normalise_answer(choice) for choice in choices]
    text = _normalise_answer(str(answer))
    same = texts.index(text) if text in texts else None
    if not isinstance(answer, str):
        return same
    if answer.strip().isdecimal() and same is None:
        raise DataError(
            f"{where}: answer '{answer}'; expected a letter, or an index from 0 as a number"
        )
    match = re.fullmatch(
        r"(?:(\()([A-Za-z])\)|([A-Za-z])(?:[.:)]|$))[.:]?\s*(.*)", " ".join(answer.split())
    )
    letter = LETTERS.find((match[2] or match[3]).upper()) if match else -1
    if not 0 <= letter < len(choices) or match[4] and _normalise_answer(match[4]) != texts[letter]:
        return same
    if same is not None and texts[letter] != texts[same] and not (match[1] and not match[4]):
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)} is the letter of option "
            f"{reprlib.repr(choices[letter])} and the text of another; expected "
            f"'({LETTERS[letter]})' or '({LETTERS[same]})'"
        )
    return first_equal(choices, letter)


def _normalise_answer(text: str) -> str:
    """Drop from an answer what a comparison ignores: case, extra spaces and a final full stop."""
    return " ".join(text.split()).casefold().rstrip(" .") or text


def write_rationales(
    rationales: dict[str, Rationale], path: Path, examples: list[Example] = ()
) -> None:
    """Write rationales as JSONL, with answers as letters: the inverse of `load_rationales`.

    examples: their questions. Where an option's text is a letter, the answer is written "(B)",
    which is always the letter. A free answer is written as it is.
    """
    free = {example.id: example.label for example in examples if example.is_free}
    choices = {
        example.id: [_normalise_answer(choice) for choice in example.choices]
        for example in examples
    }

    def letter(r: Rationale) -> str:
        if r.id in free:
            return free[r.id]
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
    """Take `size` validation questions out of train; a seed always takes the same ones.

    The order of the rest is kept. A question that is asked twice (same words and options) stays on
    one side, so that selection sees no training question; the validation part may then be larger by
    these repeats. Raises DataError for an impossible size.
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
        [e for e, key in zip(train, keys, strict=True) if key not in chosen],
        [e for e, key in zip(train, keys, strict=True) if key in chosen],
    )


def load_dataset(
    dataset: str,
    data_dir=None,
    *,
    validation_size: int = 100,
    data_seed: int = 0,
    microworld: dict | None = None,
    worlds: list[int] | None = None,
) -> Dataset:
    """Load all splits of a dataset; carve validation out of train where it has none.

    Rationales are filled in only where the data have their own: microworld's gold ones, or a
    `rationale` field in own data, or GSM8K's solutions. microworld: keyword arguments of
    `microworld.generate` (sizes, shares), used for `microworld/<part>` only. worlds: seeds, each of
    which gets a microworld of its own (`worlds.make_worlds`). Raises DataError.
    """
    if data_seed < 0 or validation_size < 0:
        raise DataError(
            f"data_seed is {data_seed}, validation_size is {validation_size}; expected numbers "
            "from 0 on"
        )
    if is_embedded(dataset):
        part = dataset.partition("/")[2] or "everyday"
        settings = dict(n_validation=validation_size) | (microworld or {})
        if worlds:
            return make_worlds(part, data_seed, worlds, **settings)
        return Dataset(dataset, **make_world(part, data_seed, **settings))
    check_worlds("per_seed" if worlds else "shared", dataset, worlds or [], data_seed)
    splits = {name: load_examples(dataset, name, data_dir) for name in SPLITS}
    _check_ids([(f"{dataset}, split {name}", e) for name in SPLITS for e in splits[name] or []])
    train, validation, test = splits.values()
    _check_kinds(dataset, [*train, *(validation or []), *test])
    left_out = {}
    train, left_out["train"] = without_repeats(train, [*test, *(validation or [])])
    if not train:
        raise DataError(
            f"{dataset}: all {len(left_out['train'])} training questions also stand in the "
            "validation or test split; expected other questions there"
        )
    left_out["validation"] = []
    if validation:
        validation, left_out["validation"] = without_repeats(validation, test)
    if validation is None:
        train, validation = carve_validation(train, validation_size, data_seed)
    elif 0 < validation_size < len(validation):
        keep = np.random.default_rng(data_seed).permutation(len(validation))[:validation_size]
        validation = [validation[i] for i in sorted(keep)]
    rationales = {}
    if dataset not in SOURCES:
        ids = {e.id for e in [*train, *validation, *test]}
        rationales = _read_own_rationales(Path(dataset), ids)
    elif dataset == "gsm8k":
        rationales = _read_solutions(Path(data_dir) / dataset, train + validation)
    return Dataset(dataset, train, validation, test, rationales, left_out=left_out)


def _check_kinds(dataset: str, examples: list[Example]) -> None:
    """Raise DataError where some questions have options and others a free answer."""
    free = next((e.id for e in examples if e.is_free), None)
    chosen = next((e.id for e in examples if not e.is_free), None)
    if free is not None and chosen is not None:
        raise DataError(
            f"{dataset}: question '{free}' has no field 'choices', and question '{chosen}' has; "
            "expected options in all questions, or free answers in all"
        )


def _read_own_rationales(folder: Path, ids: set[str]) -> dict[str, Rationale]:
    """Read the `rationale` field of own training rows, for the ids that are still in the data."""
    rows = [
        (where, row)
        for where, row in question_rows(split_path(folder, "train"))
        if row.get("rationale") not in (None, "") and row["id"] in ids
    ]
    for where, row in rows:
        check_rationale(row["rationale"], f"{where} (id {row['id']})")
    return {row["id"]: Rationale(row["id"], " ".join(row["rationale"].split())) for _, row in rows}


def _read_solutions(folder: Path, examples: list[Example]) -> dict[str, Rationale]:
    """Read GSM8K's own solutions of training questions as their rationales, by question id."""
    ids, found = {e.id for e in examples}, {}
    for where, row in question_rows(split_path(folder, "train")):
        example = parse_row("gsm8k", row, where)
        solution, _ = split_gsm8k_answer(row["answer"])
        if example.id in ids and solution:
            found[example.id] = Rationale(example.id, " ".join(solution.split()), 0)
    return found


def data_card(data: Dataset):
    """Tabulate counts, lengths, label balance and duplicates, one row per split.

    A reader checks these before trusting a number. Lengths are in words. `top_position` is the
    share of the most frequent answer position (of the most frequent free answer), `chance` the
    accuracy of a uniform guess (0 for free answers), `seen_in_train` the number of questions that
    are also in train (same words and options), `left_out` the number that was dropped from the
    split because a later one holds them too.
    Returns a pandas DataFrame.
    """
    import pandas as pd

    train_keys = {_key_in_world(data, e) for e in data.train}
    rows = [_describe_split(data, split, train_keys) for split in SPLITS]
    return pd.DataFrame(rows).set_index("split")


def _key_in_world(data: Dataset, example: Example) -> tuple:
    """Return a key that is equal for equal questions of one world.

    Where each seed has its own, a question that two of them ask is no repeat.
    """
    return question_key(example), data.meta.get(example.id, {}).get("world")


def _describe_split(data: Dataset, split: str, train_keys: set) -> dict:
    """Compute a split's row of `data_card`."""
    examples = getattr(data, split)
    mean = lambda values: float(np.mean(values)) if values else float("nan")
    keys = Counter(_key_in_world(data, e) for e in examples)
    positions = Counter(e.label if e.is_free else e.answer for e in examples)
    sizes = sorted({len(e.choices) for e in examples})
    known = [data.rationales[e.id].text for e in examples if e.id in data.rationales]
    texts = [text for text in known if text]
    return {
        "split": split,
        "questions": len(examples),
        "options": "/".join(map(str, sizes)),
        "chance": mean([e.chance for e in examples]),
        "top_position": max(positions.values()) / len(examples) if examples else float("nan"),
        "question_words": mean([len(e.question.split()) for e in examples]),
        "option_words": mean([len(c.split()) for e in examples for c in e.choices]),
        "equal_options": sum(
            len(set(map(str.lower, e.choices))) < len(e.choices) for e in examples
        ),
        "duplicates": sum(n - 1 for n in keys.values()),
        "seen_in_train": 0 if split == "train" else sum(key in train_keys for key in keys),
        "left_out": len(data.left_out.get(split, [])),
        "rationales": len(texts),
        "rationale_words": mean([len(text.split()) for text in texts]),
    }
