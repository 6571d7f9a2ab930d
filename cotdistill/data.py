"""Questions, rationales and splits: read them, check them, count what is there.

Everything downstream works on two small records, `Example` and `Rationale`. Three datasets are read in their official
formats (a local folder or the hub), own data from a folder, and `microworld/...` is generated. A bad line ends in one
`DataError` that names the file and the line; nothing is repaired silently.

A split is one file of its folder: train.jsonl, train.json (an array), train.csv, train.parquet (or
its shards), or a folder train/ that `datasets` saved. All of them go through the same checks.
"""

import csv
import hashlib
import io
import json
import re
import reprlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cotdistill.files import whole

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with this mark


def one_line(message: str, longest: int = 1500) -> str:
    """A message on one line of printable characters: line breaks and control characters out of someone's file are escaped, and of
    a very long message the middle is left out (its end says what is expected)."""
    message = str(message)
    if len(message) > longest:
        message = f"{message[:longest - 500]} … {message[-490:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


class DataError(ValueError):
    """Bad input: one line that names the file, the line or id, what was found and what is expected."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


DISK = {  # what a failed write says of itself: OSError, safetensors (Rust) and torch's zip writer each in its own words
    "is full": ("No space left", "StorageFull", "Disk quota exceeded", "PytorchStreamWriter", "iostream error", "unexpected pos"),
    "is read-only": ("Read-only file system", "ReadOnlyFilesystem"),
    "may not be written": ("Permission denied", "PermissionDenied", "Operation not permitted"),
}


def disk_error(error, folder) -> "DataError | None":
    """A failed write as one line: the folder, what is wrong with it and the way out. None for any other error (or text of one)."""
    found = next((wrong for wrong, words in DISK.items() if any(word in str(error) for word in words)), None)
    if found is None:
        return None
    way = "free some space" if found == "is full" else "make it writable, or set COTDISTILL_ARTIFACTS (for weights COTDISTILL_CACHE) to a folder that is"
    named = re.search(r": '([^']+)'", str(error))
    return DataError(f"{named[1] if named else folder}: the folder {found}; expected to write there: {way}, then run the same command again: "
                     "what is whole is kept")


@dataclass(frozen=True)
class Example:
    """One multiple-choice question. `answer` is the index of the right option in `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def label(self) -> str:
        """Text of the right option."""
        return self.choices[self.answer]


@dataclass(frozen=True)
class Rationale:
    """A teacher's explanation of one question. `answer` is the option it concluded (None: none could be read);
    `key_spans` are character spans of tokens known to carry the answer (microworld only)."""

    id: str
    text: str
    answer: int | None = None
    key_spans: tuple[tuple[int, int], ...] = ()


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


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """All rows of a JSONL file as (line number from 1, object); blank lines are skipped.

    Raises DataError for a missing file and for a line that is not a JSON object in UTF-8, or has a key twice."""
    path, rows = Path(path), []
    content = read_bytes(path, "a JSONL file, one object per line").removeprefix(BOM)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); expected UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{path}:{number}: malformed JSON ({what}); expected one object per line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found {type(row).__name__}; expected a JSON object")
        rows.append((number, row))
    return rows


def _once(pairs: list) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key '{twice}' stands there twice")
    return row


def read_bytes(path: Path, expected: str) -> bytes:
    """A file's content. Raises DataError where there is none (a folder, nothing, no leave to read it)."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = "is a folder" if isinstance(error, IsADirectoryError) else "no such file" if isinstance(
            error, (FileNotFoundError, NotADirectoryError, ValueError)) else f"can't be read ({getattr(error, 'strerror', error)})"
        raise DataError(f"{path}: {found}; expected {expected}") from None


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 text file, line ends as "\\n". Raises DataError where it is none."""
    try:
        return read_bytes(path, expected).removeprefix(BOM).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1}); expected {expected}") from None


def is_text(value) -> bool:
    """A str that is not blank and can be written as UTF-8 (JSON may hold half a surrogate pair)."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _field(row: dict, name: str, where: str):
    if name not in row:
        raise DataError(f"{where}: no field '{name}'; found {sorted(row)}")
    return row[name]


def answer_index(answer, n_choices: int, where: str) -> int:
    """An answer given as an option letter ("B") or an index from 0 (1)."""
    index = answer
    if isinstance(answer, str):
        text = answer.strip()
        index = LETTERS.find(text.upper()) if len(text) == 1 and text.isalpha() else -1
        if text.isdecimal():
            raise DataError(
                f"{where}: answer '{text}' is a text; expected a number, an index from 0 "
                f"to {n_choices - 1}, or a letter from A to {LETTERS[n_choices - 1]}"
            )
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_choices:
        raise DataError(f"{where}: answer {reprlib.repr(answer)} is outside the {n_choices} choices; expected an index from 0 to "
                        f"{n_choices - 1} or a letter from A to {LETTERS[n_choices - 1]}")
    return index


def gold_index(answer, choices: tuple[str, ...], where: str) -> int:
    """The right option of a question, given as an index from 0 (a number) or as a letter.

    Digits in quotes ("1") are the option with that text, and never an index. Raises DataError where
    a letter is another option's text too (options O, A, B, AB and answer "A"): only the index can
    say which of the two is meant."""
    text = " ".join(answer.split()) if isinstance(answer, str) else ""
    same = [i for i, choice in enumerate(choices) if choice.casefold() == text.casefold()]
    if text.isdecimal() and same:
        return same[0]
    letter = len(text) == 1 and text.isalpha() and LETTERS.find(text.upper()) < len(choices)
    if same and not letter:
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)} is outside the letters, and an option's text; "
            f"expected an "
            f"index from 0 to {len(choices) - 1} (here {same[0]}) or a letter from A to "
            f"{LETTERS[len(choices) - 1]} (here {LETTERS[same[0]]})"
        )
    index = answer_index(answer, len(choices), where)
    if same and choices[index].casefold() != text.casefold():
        raise DataError(
            f"{where}: answer '{text}' is the letter of option {reprlib.repr(choices[index])} and "
            f"the text of "
            f"another; expected the index as a number, {index} or {same[0]}"
        )
    return index


def make_example(id, question, choices, answer, where: str) -> Example:
    """Check one question and build it. White space inside an option is collapsed: a label must stay on one line. Where the right option
    stands there twice (in some official questions), the first of the two is the answer: equal texts are one answer."""
    if not is_text(id):
        raise DataError(f"{where}: id {reprlib.repr(id)}; expected a text that is not empty")
    where = f"{where} (id {id})"
    if not is_text(question):
        found = f"question {reprlib.repr(question)}" if not isinstance(question, str) or question.strip() else "empty question"
        raise DataError(f"{where}: {found}; expected a text")
    if not isinstance(choices, (list, tuple)) or len(choices) < 2:
        found = len(choices) if isinstance(choices, (list, tuple)) else type(choices).__name__
        raise DataError(f"{where}: {found} choice(s); expected a list of at least two")
    if len(choices) > len(LETTERS):
        raise DataError(f"{where}: {len(choices)} choices; expected at most {len(LETTERS)}")
    for choice in choices:
        if not is_text(choice):
            raise DataError(f"{where}: choice {reprlib.repr(choice)}; expected a text that is not empty")
    choices = tuple(" ".join(choice.split()) for choice in choices)
    return Example(
        id, question.strip(), choices, first_equal(choices, gold_index(answer, choices, where))
    )


def first_equal(choices: tuple[str, ...], option: int) -> int:
    """The first option with the same text: where an option stands there twice, both are one answer."""
    return choices.index(choices[option])


def _lettered(choices, where: str) -> tuple[list, list]:
    """The official choices of CommonsenseQA and OpenBookQA as (letters, texts).

    Two layouts: the hub's {"label": [...], "text": [...]} and the authors' own [{"label": "A",
    "text": ...}, ...]."""
    if (
        isinstance(choices, (list, tuple))
        and choices
        and all(isinstance(c, dict) and {"label", "text"} <= set(c) for c in choices)
    ):
        return [c["label"] for c in choices], [c["text"] for c in choices]
    letters, texts = (choices.get("label"), choices.get("text")) if isinstance(choices, dict) else (None, None)
    if not isinstance(letters, (list, tuple)) or not isinstance(texts, (list, tuple)) or len(letters) != len(texts):
        raise DataError(
            f"{where}: choices {str(choices)[:60]!r}; expected an object with 'label' and 'text' "
            f"lists of one "
            "length, or a list of objects with 'label' and 'text'"
        )
    return list(letters), list(texts)


def parse_row(dataset: str, row: dict, where: str) -> Example:
    """One official row -> Example. `where` is "file:line", for the error.

    commonsense_qa: id, question, choices{label,text}, answerKey. openbookqa: the same with
    question_stem. The authors' own files nest both: question{stem, choices[{label,text}]},
    answerKey. quarel: question with its options inline, "(A) .. (B) ..", and answer_index. Anything
    else is our own format: id, question, choices (list), answer (an index from 0 or a letter)."""
    id = _field(row, "id", where)
    if dataset in ("commonsense_qa", "openbookqa"):
        nested = row.get("question") if isinstance(row.get("question"), dict) else {}
        letters, texts = _lettered(
            _field(nested if "choices" in nested else row, "choices", where), where
        )
        key = _field(row, "answerKey", where)
        if key not in letters:
            raise DataError(f"{where} (id {id}): answer {key!r} is outside the choices; expected one of {letters}")
        name = "question_stem" if dataset == "openbookqa" else "question"
        if nested and (name == "question" or name not in row):
            question = _field(nested, "stem", where)
        else:
            question = _field(row, name, where)
        return make_example(id, question, texts, letters.index(key), where)
    if dataset == "quarel":
        question = _field(row, "question", where)
        parts = re.match(r"(.*)\(A\)\s*(.*?)\s*\(B\)\s*(.*)$", question, re.S) if isinstance(question, str) else None
        if parts is None:
            raise DataError(f"{where} (id {id}): no '(A) .. (B) ..' in the question; expected the options inline")
        return make_example(id, parts[1], [parts[2], parts[3].rstrip(" .")], _field(row, "answer_index", where), where)
    example = make_example(id, _field(row, "question", where), _field(row, "choices", where),
                           _field(row, "answer", where), where)
    twice = [choice for choice, times in Counter(example.choices).items() if times > 1]
    if twice:  # the official sets hold some, which the data card counts; own data can be put right
        raise DataError(f"{where} (id {id}): choice '{twice[0]}' stands there twice; expected different options")
    return example


def _unique(examples: list[tuple[str, Example]]) -> list[Example]:
    seen = {}
    for where, example in examples:
        if example.id in seen:
            raise DataError(f"{where}: duplicate id '{example.id}', first seen at {seen[example.id]}; ids must be unique")
        seen[example.id] = where
    return [example for _, example in examples]


def load_examples(dataset: str, split: str, data_dir: str | Path | None = None) -> list[Example] | None:
    """One split of a dataset.

    From `data_dir` (a folder that holds <dataset>/<split>.jsonl or another form of a split), an own
    folder given as `dataset` itself, or the hub (pinned revision). None where the dataset has no
    such split.

    Raises DataError for a missing folder or a bad line."""
    source = SOURCES.get(dataset)
    folder = Path(data_dir) / dataset if source and data_dir else None if source else Path(dataset)
    name = source["splits"].get(split) if source else split
    if folder is None:
        if name is None:
            return None
        rows = _hub_rows(source, name)
        return _unique([(f"{source['hub']}/{name}:{n}", parse_row(dataset, row, f"{source['hub']}/{name}:{n}"))
                        for n, row in enumerate(rows, 1)])
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
    from cotdistill.microworld import PARTS  # which imports this module

    known = ", ".join([*SOURCES, *(f"microworld/{part}" for part in PARTS)])
    return f"expected a dataset ({known}) or a folder with train.jsonl and test.jsonl"


def split_path(folder: Path, name: str, official: str | None = None) -> Path | None:
    """Where a split is: a file, a folder saved by `datasets`, or the first of its Parquet shards.

    official: what the dataset's authors call the file. None where there is nothing. Raises
    DataError where the split stands there twice."""
    found = [
        folder / f"{n}{suffix}"
        for n in filter(None, (name, official))
        for suffix in READERS
        if (folder / f"{n}{suffix}").is_file()
    ]
    found += [folder / name] if (folder / name / "state.json").is_file() else []
    found += sorted(folder.glob(f"{name}-?????-of-?????.parquet"))[:1]
    if len(found) > 1:
        raise DataError(
            f"{folder}: split {name} stands there twice, as {found[0].name} and {found[1].name}; "
            f"expected one of "
            "them"
        )
    return found[0] if found else None


def question_rows(path: Path) -> list[tuple[str, dict]]:
    """The rows of a split in any form, each with where it stands ("train.jsonl:3").

    Raises DataError for what is not there, can't be read, or holds something else than rows."""
    return (
        read_saved(path)
        if path.is_dir() and path.suffix not in READERS
        else READERS.get(path.suffix, _lines)(path)
    )


def _lines(path: Path) -> list[tuple[str, dict]]:
    if not path.exists():
        raise DataError(
            f"{path}: no such file; expected a JSONL file, one object per line, or a split as "
            f".json (an array), "
            ".csv, .parquet or a folder saved by `datasets`"
        )
    return [(f"{path}:{number}", row) for number, row in read_jsonl(path)]


def read_array(path: Path) -> list[tuple[str, dict]]:
    """A JSON file that is one array of objects. Raises DataError."""
    expected = "expected a JSON array of objects"
    try:
        rows = json.loads(read_text(path, "a JSON array of objects"), object_pairs_hook=_once)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error}); {expected}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: found {type(rows).__name__}; {expected}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number}: found {type(row).__name__}; {expected}")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def read_csv(path: Path) -> list[tuple[str, dict]]:
    """A CSV file with a head line.

    The options stand in a column `choices` as a JSON list, or in columns A, B, C, ...

    Cells are texts and a CSV file knows no numbers: digits as the answer are an index, unless they
    are an option's text too. Rows are numbered from 1 after the head. Raises DataError."""
    try:
        lines = list(
            csv.reader(io.StringIO(read_text(path, "a CSV file in UTF-8"), newline=""), strict=True)
        )
    except csv.Error as error:
        raise DataError(
            f"{path}: malformed CSV ({error}); expected a head line and rows of as many cells"
        ) from None
    lines, found = [cells for cells in lines if any(map(str.strip, cells))], []
    head = [name.strip() for name in lines[0]] if lines else []
    if len(set(head)) < len(head):
        raise DataError(f"{path}: a column stands there twice in {head}; expected each name once")
    for number, cells in enumerate(lines[1:], 1):
        where = f"{path}, row {number}"
        if len(cells) != len(head):
            raise DataError(
                f"{where}: {len(cells)} cells; expected {len(head)}, as in the head line"
            )
        found.append((where, _typed(dict(zip(head, cells)), where)))
    return found


def _typed(row: dict[str, str], where: str) -> dict:
    """A row of a CSV file with its options as a list and an index as a number. Raises DataError."""
    row = dict(row)
    if "choices" in row:
        try:
            row["choices"] = json.loads(row["choices"])
        except (ValueError, RecursionError):
            raise DataError(
                f"{where}: choices {reprlib.repr(row['choices'])}; expected a JSON list, or "
                f"columns A, B, C, ... "
                "in place of `choices`"
            ) from None
    elif "A" in row and "B" in row:
        texts = [row[letter] for letter in LETTERS if letter in row]
        while (
            texts and not texts[-1].strip()
        ):  # questions may have fewer options than there are columns
            texts.pop()
        row["choices"] = texts
    choices = row.get("choices") if isinstance(row.get("choices"), list) else []
    for name in ("answer", "answer_index"):
        said = row.get(name, "").strip()
        if not said.isdecimal():
            continue
        index, same = (
            int(said),
            [i for i, c in enumerate(choices) if isinstance(c, str) and c.strip() == said],
        )
        if same and index < len(choices) and index not in same:
            raise DataError(
                f"{where}: answer {said} is an index and the text of another option; expected a "
                f"letter, "
                f"{LETTERS[index]} or {LETTERS[same[0]]}"
            )
        row[name] = same[0] if same else index
    return row


def read_parquet(path: Path) -> list[tuple[str, dict]]:
    """A Parquet file, or all shards of a split where `path` is the first.

    Shards are named as train-00000-of-00002.parquet. Raises DataError."""
    shards = [path]
    if sharded := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", path.stem):
        shards = [
            path.with_name(f"{sharded[1]}-{n:05}-of-{sharded[2]}.parquet")
            for n in range(int(sharded[2]))
        ]
        missing = next((shard for shard in shards if not shard.is_file()), None)
        if missing:
            raise DataError(
                f"{missing}: no such file; expected all {len(shards)} shards of the split"
            )
    return _table(
        path,
        "a Parquet file",
        lambda datasets, cache: datasets.Dataset.from_parquet(
            [str(shard) for shard in shards], cache_dir=cache
        ),
    )


def read_saved(path: Path) -> list[tuple[str, dict]]:
    """A split that `datasets` saved by `save_to_disk`. Raises DataError."""
    return _table(
        path,
        "a folder saved by `datasets`",
        lambda datasets, cache: datasets.load_from_disk(str(path)),
    )


def _table(path: Path, kind: str, load) -> list[tuple[str, dict]]:
    """Rows through the `datasets` library: no network, no code of the data's own, no cache left."""
    import tempfile

    import datasets  # heavy, and needed for two forms of data only

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # they would end up in an executed notebook
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = list(load(datasets, cache).with_format(None))
    except Exception as error:  # arrow, pandas, json and OS errors by the dozen
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{path}: can't be read ({type(error).__name__}: {said}); expected {kind}"
        ) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


READERS = {
    ".jsonl": _lines,
    ".json": read_array,
    ".csv": read_csv,
    ".parquet": read_parquet,
}  # in this order looked for


def _hub_rows(source: dict, split: str):
    from datasets import load_dataset  # heavy import, and only needed with a network

    try:
        return load_dataset(source["hub"], source["config"], split=split, revision=source["revision"])
    except Exception as error:  # offline, gated, renamed: the hub raises a dozen types
        raise DataError(f"{source['hub']} (split {split}, revision {source['revision'][:8]}): cannot be loaded from the "
                        f"hub ({type(error).__name__}); expected a network, or data_dir set to a folder with a copy") from None


def load_rationales(path: str | Path, examples: list[Example]) -> dict[str, Rationale]:
    """Recorded rationales, one `{"id", "rationale", "answer"}` a line, keyed by question id.

    `answer` is what the teacher concluded, in any of the forms of `concluded_option`, or null; what
    names no option counts as null. Empty rationales are allowed (they count as not covered).

    Raises DataError for an id that is not among `examples`, for a duplicate id, for an answer that
    can be read in two ways, and where not one question is covered."""
    by_id, found = {example.id: example for example in examples}, {}
    for number, row in read_jsonl(path):
        where, id = f"{path}:{number}", _field(row, "id", f"{path}:{number}")
        if not isinstance(id, str) or id not in by_id:
            raise DataError(f"{where}: rationale for an unknown id {id!r}; expected the id of a training question")
        if id in found:
            raise DataError(f"{where}: duplicate rationale for id '{id}'; expected one line per question")
        text, answer = _field(row, "rationale", where), row.get("answer")
        check_rationale(text, f"{where} (id {id})")
        answer = concluded_option(answer, by_id[id].choices, f"{where} (id {id})")
        text, spans = " ".join(text.split()), row.get("key_spans", [])
        if not isinstance(spans, list) or not all(isinstance(s, list) and len(s) == 2 and all(type(i) is int for i in s)
                                                  and 0 <= s[0] <= s[1] <= len(text) for s in spans):
            raise DataError(f"{where} (id {id}): key_spans {reprlib.repr(spans)}; expected a list of [start, end] within the rationale")
        if spans and text != row["rationale"]:
            raise DataError(f"{where} (id {id}): key_spans of a rationale with line breaks, double spaces or spaces around it, which are "
                            "collapsed here; expected single spaces")
        found[id] = Rationale(id, text, answer, tuple(map(tuple, spans)))
    if not any(rationale.text for rationale in found.values()):
        raise DataError(f"{path}: covers none of the {len(by_id)} training questions; expected at least one rationale")
    return found


def concluded_option(answer, choices: tuple[str, ...], where: str) -> int | None:
    """The option that a recorded answer names, or None: a teacher may conclude anything.

    Forms: a letter ("B", "b", "(B)", "B."), an option's text ("fire", whatever its case), both ("B.
    fire", "(B) fire"), an index from 0 as a number, or a larger number that is an option's text.
    "(B)" is always the letter, a number within the options always the index. Raises DataError where
    two readings of anything else differ, and for digits in quotes that are no option's text."""
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
            f"{reprlib.repr(choices[letter])} and the "
            f"text of another; expected '({LETTERS[letter]})' or '({LETTERS[same]})'"
        )
    return first_equal(choices, letter)


def _plain_answer(text: str) -> str:
    """A text as answers are compared: case, white space and a full stop at the end do not count."""
    return " ".join(text.split()).casefold().rstrip(" .") or text


def check_rationale(text, where: str) -> None:
    """A rationale must be a text that can be written as UTF-8; it may be empty. Raises DataError."""
    if not isinstance(text, str) or text.strip() and not is_text(text):
        raise DataError(f"{where}: rationale is {type(text).__name__ if not isinstance(text, str) else reprlib.repr(text)}; expected a text")


def write_rationales(
    rationales: dict[str, Rationale], path: Path, examples: list[Example] = ()
) -> None:
    """The inverse of `load_rationales`: JSONL in id order, answers as letters.

    examples: their questions; where an option's text is a letter, the answer is written "(B)",
    which is always the letter."""
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
    with whole(path) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def carve_validation(train: list[Example], size: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Take `size` validation questions out of train, the same ones for a seed. Order of the rest is kept.

    A question that is asked twice (same words and options) stays on one side, so that selection sees nothing twice; the
    validation part can then be larger by the repetitions."""
    if size < 0:
        raise DataError(f"validation_size is {size}; expected a number from 0 on")
    if size >= len(train):
        raise DataError(f"validation_size {size} leaves no training question; the train split has {len(train)}")
    keys = [question_key(e) for e in train]
    times, chosen, count = Counter(keys), set(), 0
    for i in np.random.default_rng(seed).permutation(len(train)):
        if count >= size:
            break
        if keys[i] not in chosen:
            chosen.add(keys[i])
            count += times[keys[i]]
    return ([e for e, key in zip(train, keys) if key not in chosen], [e for e, key in zip(train, keys) if key in chosen])


def question_key(example: Example) -> tuple:
    """What makes two questions the same: their words and the set of their options, whatever the case and order."""
    words = " ".join(re.findall(r"\w+", example.question.lower()))
    return words, tuple(sorted(choice.lower() for choice in example.choices))


def fingerprint(*objects) -> str:
    """16 hex digits of the SHA-256 over a canonical JSON of Examples, Rationales, numbers and texts."""
    plain = json.dumps(objects, default=asdict, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Dataset:
    """Everything a study trains and tests on. `rationales` maps an id to its Rationale; `meta`
    holds what microworld knows about a question (its steps, and where training states its fact),
    and is empty for other data. `left_out` holds, by split, the questions that also stand in a
    later one (`without_repeats`)."""

    name: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    rationales: dict[str, Rationale]
    meta: dict[str, dict] = field(default_factory=dict)
    left_out: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def explained(self) -> list[Example]:
        """Every question that a recorded set may explain, those that were left out too."""
        return [
            *self.train,
            *self.validation,
            *(e for rows in self.left_out.values() for e in rows),
        ]


def without_repeats(
    examples: list[Example], later: list[Example]
) -> tuple[list[Example], list[Example]]:
    """(questions that do not stand among `later`, those that do).

    The same question has the same words and options, whatever their case and order.
    A test question that was trained on measures memory. OpenBookQA's official train split holds 14
    of its test split."""
    keys = {question_key(example) for example in later}
    repeated = [example for example in examples if question_key(example) in keys]
    return [
        example for example in examples if question_key(example) not in keys
    ] if repeated else examples, repeated


def repeats_note(data: Dataset) -> str:
    """One line on the questions left out because they stand in a later split; empty for none."""
    names = {
        "train": "left out of training, as they also stand in the validation or test split",
        "validation": "left out of validation, as they also stand in the test split",
    }
    return "; ".join(
        f"{names[split]}: {len(rows)}" for split, rows in data.left_out.items() if rows
    )


def load_dataset(dataset: str, data_dir=None, *, validation_size: int = 100, data_seed: int = 0,
                 microworld: dict | None = None) -> Dataset:
    """All splits of a dataset, a validation split carved from train where it has none. Rationales are only filled where
    the data carry their own: microworld's gold ones, or a `rationale` field in own data.

    microworld: keyword arguments of `microworld.generate` (sizes, dials), used for `microworld/<part>` only."""
    if data_seed < 0 or validation_size < 0:
        raise DataError(f"data_seed is {data_seed}, validation_size is {validation_size}; expected numbers from 0 on")
    if dataset.partition("/")[0] == "microworld":
        from cotdistill.microworld import generate

        part = dataset.partition("/")[2] or "everyday"
        world = generate(part, n_validation=validation_size, seed=data_seed, **(microworld or {}))
        return Dataset(dataset, world["train"], world["validation"], world["test"], world["rationales"], world["meta"])
    train, validation, test = (load_examples(dataset, split, data_dir) for split in ("train", "validation", "test"))
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
            f"validation or test "
            "split; expected other questions there"
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
    rows = [(where, row) for where, row in question_rows(split_path(folder, "train"))
            if row.get("rationale") not in (None, "") and row["id"] in ids]
    for where, row in rows:
        check_rationale(row["rationale"], f"{where} (id {row['id']})")
    return {row["id"]: Rationale(row["id"], " ".join(row["rationale"].split())) for _, row in rows}


def data_card(data: Dataset) -> "pandas.DataFrame":
    """Counts, lengths, label balance and duplicates, one row per split: what a reader checks before trusting a number.

    Lengths are in words. `top_position` is the share of the most frequent answer position, `chance` the accuracy of a
    uniform guess, `seen_in_train` the number of questions that also stand in train (same words and
    options), `left_out` the number that was left out of the split because they stand in a later
    one."""
    import pandas as pd

    train_keys, rows = {question_key(e) for e in data.train}, []
    for split in ("train", "validation", "test"):
        examples = getattr(data, split)
        keys = Counter(question_key(e) for e in examples)
        positions = Counter(e.answer for e in examples)
        options = Counter(len(e.choices) for e in examples)
        covered = [data.rationales[e.id].text for e in examples if e.id in data.rationales and data.rationales[e.id].text]
        rows.append({
            "split": split, "questions": len(examples), "options": "/".join(map(str, sorted(options))),
            "chance": float(np.mean([1 / len(e.choices) for e in examples])) if examples else float("nan"),
            "top_position": max(positions.values()) / len(examples) if examples else float("nan"),
            "question_words": float(np.mean([len(e.question.split()) for e in examples])) if examples else float("nan"),
            "option_words": float(np.mean([len(c.split()) for e in examples for c in e.choices])) if examples else float("nan"),
            "equal_options": sum(len(set(map(str.lower, e.choices))) < len(e.choices) for e in examples),
            "duplicates": sum(n - 1 for n in keys.values()),
            "seen_in_train": 0 if split == "train" else sum(key in train_keys for key in keys),
            "left_out": len(data.left_out.get(split, [])),
            "rationales": len(covered),
            "rationale_words": float(np.mean([len(t.split()) for t in covered])) if covered else float("nan"),
        })
    return pd.DataFrame(rows).set_index("split")
