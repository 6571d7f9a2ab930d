"""cotdistill.files."""

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from cotdistill.errors import DataError, disk_error
from cotdistill.paths import artifacts

BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with this mark


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """All rows of a JSONL file as (line number from 1, object); blank lines are skipped.

    Raises DataError for a missing file and for a line that is not a JSON object in UTF-8, or has a
    key twice.
    """
    path, rows = Path(path), []
    content = read_bytes(path, "a JSONL file, one object per line").removeprefix(BOM)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); expected UTF-8 "
                "text"
            ) from None
        except (ValueError, RecursionError) as error:
            what = (
                f"{error.msg} at column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else error
            )
            raise DataError(
                f"{path}:{number}: malformed JSON ({what}); expected one object per line"
            ) from None
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
    """A file's content.

    Raises DataError where there is none (a folder, nothing, no leave to read it).
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = (
            "is a folder"
            if isinstance(error, IsADirectoryError)
            else "no such file"
            if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError))
            else (f"can't be read ({getattr(error, 'strerror', error)})")
        )
        raise DataError(f"{path}: {found}; expected {expected}") from None


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 text file, line ends as "\\n".

    Raises DataError where it is none.
    """
    try:
        return read_bytes(path, expected).removeprefix(BOM).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.start + 1}); expected {expected}"
        ) from None


def fingerprint(*objects) -> str:
    """16 hex digits of the SHA-256 over a canonical JSON of Examples, Rationales, numbers and
    texts.
    """
    plain = json.dumps(objects, default=asdict, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def write_json(path: Path, value) -> None:
    """Write whole or not at all.

    An object under studies/ gets a seal. Raises DataError where the disk takes no more.
    """
    if isinstance(value, dict) and artifacts() / "studies" in path.parents:
        value = value | {"seal": fingerprint(json.loads(json.dumps(value)))}
    try:
        with atomic_write(path) as part:
            part.write_text(
                json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
                encoding="utf-8",
            )
    except OSError as error:
        raise disk_error(error, path.parent) or error from None


def read_json(path: Path, made_by: str):
    """A file that an earlier notebook wrote.

    Raises DataError that says which one to run where it is missing, broken or changed.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; expected it from {made_by}: run that first"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"{path}: not JSON ({error}); expected what {made_by} wrote: delete it and run that "
            "again"
        ) from None
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is not None and seal != fingerprint(value):
        raise DataError(
            f"{path}: changed after it was written; expected what {made_by} wrote: delete it and "
            "run that again"
        )
    return value


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def damaged_files(folder: Path, files: dict[str, str]) -> list[str]:
    """Which of a folder's files (name -> SHA-256) are missing, can't be read or hold something
    else.
    """
    bad = []
    for name, digest in files.items():
        try:
            if sha256(folder / Path(name).name) == digest:
                continue
        except OSError:
            pass
        bad.append(name)
    return bad


def temporary_path(path: Path, suffix: str = "") -> Path:
    """Where this process writes what is then moved to `path`.

    Beside it, under a name that no other process on any host uses.
    """
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part{suffix}")


@contextmanager
def atomic_write(path: Path):
    """Gives a path to write to.

    It becomes `path` when the block ends and is deleted when the block raises; a kill leaves it to
    `remove_stale_parts`. A reader sees the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # on a full or read-only disk the error that led here says it
            part.unlink(missing_ok=True)
        raise


def remove_stale_parts(folder: Path) -> None:
    """Delete the parts that killed processes of this host left in a folder and the folders in it.

    Those of living processes and of other hosts stay.
    """
    for path in [*folder.glob("*.part*"), *folder.glob("*/*.part*")]:
        found = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)\.part(\.\w+)?$", path.name)
        if found and not _lives(int(found[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


@contextmanager
def file_lock(path: Path, what: str, say=print):
    """Hold the lock file `path`.

    Who has to wait longer than a second says once for what and for whom, then waits.

    The lock is flock's: the system frees it when its holder dies, however it dies, so that it can't
    be stale. Where a file system has no flock, filelock falls back to a marker file and takes over
    one whose owner, by pid, no longer lives on this host. The file says who holds it: pid, host and
    time, a line each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for {what}: held by {lock_owner(path)}", flush=True)
        lock.acquire()
    ours = not isinstance(lock, SoftFileLock)  # a marker file is filelock's own to write
    try:
        if ours:
            _note(
                path,
                f"{os.getpid()}\n{socket.gethostname()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n",
            )
        yield
    finally:
        if ours:
            # Not empty: an empty file, copied to a file system without flock, would be a marker
            # without an owner
            _note(path, "free\n")
        lock.release()


def _note(path: Path, text: str) -> None:
    with suppress(OSError):  # the lock holds without its note, for example on a full disk
        path.write_text(text, encoding="utf-8")


def lock_owner(path: Path) -> str:
    """Who holds a lock file, in words, as far as it says so."""
    try:
        pid, host, since = [*path.read_text(encoding="utf-8").splitlines(), "", "", ""][:3]
    except (OSError, UnicodeDecodeError):
        pid = host = since = ""
    if not pid.isdigit():
        return "another process"
    return f"pid {pid} on host {host.partition('?')[0]}" + (
        f" since {since}" if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since) else ""
    )
