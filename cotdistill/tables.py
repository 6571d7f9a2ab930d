"""Read rows of questions from JSONL, JSON, CSV, Parquet and saved datasets.

Each row comes with its place in the file, for error messages.
"""

import csv
import io
import json
import re
import reprlib
import tempfile
from pathlib import Path

from cotdistill.errors import DataError
from cotdistill.examples import LETTERS
from cotdistill.files import _build_object, read_jsonl, read_text


def split_path(folder: Path, name: str, official: str | None = None) -> Path | None:
    """Find a split: a file, a folder saved by `datasets`, or the first of its Parquet shards.

    official: what the dataset's authors call the file. Returns None where there is nothing. Raises
    DataError where the split is there in two forms.
    """
    paths = [
        folder / f"{n}{suffix}"
        for n in filter(None, (name, official))
        for suffix in READERS
        if (folder / f"{n}{suffix}").is_file()
    ]
    paths += [folder / name] if (folder / name / "state.json").is_file() else []
    paths += sorted(folder.glob(f"{name}-?????-of-?????.parquet"))[:1]
    if len(paths) > 1:
        raise DataError(
            f"{folder}: split {name} appears twice, as {paths[0].name} and {paths[1].name}; "
            "expected one of them"
        )
    return paths[0] if paths else None


def question_rows(path: Path) -> list[tuple[str, dict]]:
    """Read the rows of a split in any form, each with its place ("train.jsonl:3").

    Raises DataError for what is missing, cannot be read, or holds anything but rows.
    """
    if path.is_dir() and path.suffix not in READERS:
        return read_saved(path)
    return READERS.get(path.suffix, _read_lines)(path)


def _read_lines(path: Path) -> list[tuple[str, dict]]:
    """Read a JSONL file.

    Raises DataError.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file; expected a JSONL file, one object per line, or a split as "
            ".json (an array), .csv, .parquet or a folder saved by `datasets`"
        )
    return [(f"{path}:{number}", row) for number, row in read_jsonl(path)]


def read_array(path: Path) -> list[tuple[str, dict]]:
    """Read a JSON file that is one array of objects.

    Raises DataError.
    """
    expected = "expected a JSON array of objects"
    try:
        rows = json.loads(
            read_text(path, "a JSON array of objects"), object_pairs_hook=_build_object
        )
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
    """Read a CSV file with a header line.

    The options are in a column `choices` as a JSON list, or in columns A, B, C, ... Cells are texts
    and a CSV file has no numbers: digits as the answer are an index, unless they are an option's
    text too. Rows are numbered from 1 after the header. Raises DataError.
    """
    try:
        lines = list(
            csv.reader(io.StringIO(read_text(path, "a CSV file in UTF-8"), newline=""), strict=True)
        )
    except csv.Error as error:
        raise DataError(
            f"{path}: malformed CSV ({error}); expected a head line and rows of as many cells"
        ) from None
    lines, rows = [cells for cells in lines if any(map(str.strip, cells))], []
    head = [name.strip() for name in lines[0]] if lines else []
    if len(set(head)) < len(head):
        raise DataError(f"{path}: a column appears twice in {head}; expected each name once")
    for number, cells in enumerate(lines[1:], 1):
        where = f"{path}, row {number}"
        if len(cells) != len(head):
            raise DataError(
                f"{where}: {len(cells)} cells; expected {len(head)}, as in the head line"
            )
        rows.append((where, _parse_cells(dict(zip(head, cells, strict=True)), where)))
    return rows


def _parse_cells(row: dict[str, str], where: str) -> dict:
    """Turn a row of a CSV file into one with a list of options and a number as its index.

    Raises DataError.
    """
    row = dict(row)
    if "choices" in row:
        try:
            row["choices"] = json.loads(row["choices"])
        except (ValueError, RecursionError):
            raise DataError(
                f"{where}: choices {reprlib.repr(row['choices'])}; expected a JSON list, or "
                "columns A, B, C, ... in place of `choices`"
            ) from None
    elif "A" in row and "B" in row:
        texts = [row[letter] for letter in LETTERS if letter in row]
        while texts and not texts[-1].strip():  # a question may have fewer options than columns
            texts.pop()
        row["choices"] = texts
    choices = row.get("choices") if isinstance(row.get("choices"), list) else []
    for name in ("answer", "answer_index"):
        cell = row.get(name, "").strip()
        if not cell.isdecimal():
            continue
        index = int(cell)
        same = [i for i, c in enumerate(choices) if isinstance(c, str) and c.strip() == cell]
        if same and index < len(choices) and index not in same:
            raise DataError(
                f"{where}: answer {cell} is an index and the text of another option; expected a "
                f"letter, {LETTERS[index]} or {LETTERS[same[0]]}"
            )
        row[name] = same[0] if same else index
    return row


def read_parquet(path: Path) -> list[tuple[str, dict]]:
    """Read a Parquet file, or all shards of a split where `path` is the first.

    Shards are named like train-00000-of-00002.parquet. Raises DataError.
    """
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
    return _load_rows(
        path,
        "a Parquet file",
        lambda datasets, cache: datasets.Dataset.from_parquet(
            [str(shard) for shard in shards], cache_dir=cache
        ),
    )


def read_saved(path: Path) -> list[tuple[str, dict]]:
    """Read a split that `datasets` saved by `save_to_disk`.

    Raises DataError.
    """
    return _load_rows(
        path,
        "a folder saved by `datasets`",
        lambda datasets, cache: datasets.load_from_disk(str(path)),
    )


def _load_rows(path: Path, kind: str, load) -> list[tuple[str, dict]]:
    """Load rows through the `datasets` library: no network, no code of the data, no cache left."""
    import datasets  # heavy, and needed for Parquet files and saved datasets only

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # they would end up in an executed notebook
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = list(load(datasets, cache).with_format(None))
    except Exception as error:  # arrow, pandas, json and OS errors by the dozen
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{path}: can't be read ({type(error).__name__}: {reason}); expected {kind}"
        ) from None
    finally:
        if not bars:
            datasets.enable_progress_bars()
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


READERS = {  # looked for in this order
    ".jsonl": _read_lines,
    ".json": read_array,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
