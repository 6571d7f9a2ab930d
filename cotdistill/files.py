"""Read and write files so that no reader ever sees half of one: atomic writes, locks, checksums."""

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
    """Read all rows of a JSONL file as (line number from 1, object), without its blank lines.

    Raises DataError for a missing file, and for a line that is not a JSON object in UTF-8 or holds
    a key twice.
    """
    path, rows = Path(path), []
    content = read_bytes(path, "a JSONL file, one object per line").removeprefix(BOM)
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=_build_object)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); expected UTF-8 "
                "text"
            ) from None
        except (ValueError, RecursionError) as error:
            problem = str(error)
            if isinstance(error, json.JSONDecodeError):
                problem = f"{error.msg} at column {error.colno}"
            raise DataError(
                f"{path}:{number}: malformed JSON ({problem}); expected one object per line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: found {type(row).__name__}; expected a JSON object")
        rows.append((number, row))
    return rows


def _build_object(pairs: list) -> dict:
    """Build a JSON object from its (key, value) pairs; raise ValueError for a repeated key."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key '{twice}' appears twice")
    return row


def read_bytes(path: Path, expected: str) -> bytes:
    """Read a file.

    Raises DataError, ending in "expected `expected`", for a folder, a missing file, or one without
    read permission.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, IsADirectoryError):
            problem = "is a folder"
        elif isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
            problem = "no such file"
        else:
            problem = f"can't be read ({getattr(error, 'strerror', error)})"
        raise DataError(f"{path}: {problem}; expected {expected}") from None


def read_text(path: Path, expected: str) -> str:
    """Read a UTF-8 text file with line ends as "\\n".

    Raises DataError where it is not one, as `read_bytes` does.
    """
    try:
        return read_bytes(path, expected).removeprefix(BOM).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.start + 1}); expected {expected}"
        ) from None


def fingerprint(*objects) -> str:
    """Hash Examples, Rationales, numbers and texts to 16 hex digits.

    They are the first digits of the SHA-256 of the objects' canonical JSON.
    """
    text = json.dumps(objects, default=asdict, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value) -> None:
    """Write a JSON file completely or not at all.

    An object under studies/ gets a seal: the fingerprint of its content. Raises DataError where the
    disk is full or read-only.
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
    """Read a JSON file that an earlier notebook wrote, and check its seal.

    Raises DataError naming the notebook to run (`made_by`) where the file is missing, broken or
    changed.
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
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def damaged_files(folder: Path, files: dict[str, str]) -> list[str]:
    """List a folder's files that are missing, unreadable or changed.

    `files` maps each name to the SHA-256 that its content should have.
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
    """Return where this process writes what is then moved to `path`.

    It lies beside `path`, under a name that no other process on any host uses.
    """
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part{suffix}")


@contextmanager
def atomic_write(path: Path):
    """Yield a temporary path that becomes `path` when the block ends.

    If the block raises, the temporary file is deleted; if the process is killed,
    `remove_stale_parts` deletes it later. A reader sees the old file or the new one, never a
    mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = temporary_path(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # a full or read-only disk: the error that led here says so
            part.unlink(missing_ok=True)
        raise


def remove_stale_parts(folder: Path) -> None:
    """Delete what killed processes of this host left in a folder and the folders in it.

    Temporary files of running processes and of other hosts stay.
    """
    for path in [*folder.glob("*.part*"), *folder.glob("*/*.part*")]:
        match = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)\.part(\.\w+)?$", path.name)
        if match and not _is_running(int(match[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(pid: int) -> bool:
    """Tell whether a process of this host is still running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        pass
    return True


@contextmanager
def file_lock(path: Path, what: str, say=print):
    """Hold the lock file `path`; wait for it where another process holds it.

    After one second of waiting, `say` prints once what is locked and by whom.

    The lock is flock's. The system frees it when its holder dies, however it dies, so that it
    cannot be stale. Where a file system has no flock, filelock falls back to a marker file and
    takes over one whose owner, by pid, no longer runs on this host. The file says who holds it:
    pid, host and time, one per line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for {what}: held by {lock_owner(path)}", flush=True)
        lock.acquire()
    has_note = not isinstance(lock, SoftFileLock)  # filelock writes its marker files itself
    try:
        if has_note:
            _write_lock_note(
                path,
                f"{os.getpid()}\n{socket.gethostname()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n",
            )
        yield
    finally:
        if has_note:
            # An empty file, copied to a file system without flock, would be a marker without an
            # owner
            _write_lock_note(path, "free\n")
        lock.release()


def _write_lock_note(path: Path, text: str) -> None:
    """Write into a lock file who holds it."""
    with suppress(OSError):  # the lock holds without its note, for example on a full disk
        path.write_text(text, encoding="utf-8")


def lock_owner(path: Path) -> str:
    """Say in words who holds a lock file, as far as the file tells."""
    try:
        pid, host, since = [*path.read_text(encoding="utf-8").splitlines(), "", "", ""][:3]
    except (OSError, UnicodeDecodeError):
        pid = host = since = ""
    if not pid.isdigit():
        return "another process"
    return f"pid {pid} on host {host.partition('?')[0]}" + (
        f" since {since}" if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since) else ""
    )
