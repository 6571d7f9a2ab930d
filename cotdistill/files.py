"""Files that appear whole or not at all, and locks that say who holds them: what lets processes be killed, and share a store."""

import os
import re
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout


def part_of(path: Path, suffix: str = "") -> Path:
    """Where this process writes what is then moved to `path`: beside it, under a name that no other process on any host uses."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part{suffix}")


@contextmanager
def whole(path: Path):
    """Gives a path to write to. It becomes `path` when the block ends and is deleted when the block raises; a kill leaves it to
    `sweep`. A reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # on a full or read-only disk the error that led here says it
            part.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Delete the parts that killed processes of this host left in a folder and the folders in it. Those of living processes and of
    other hosts stay."""
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
def held(path: Path, what: str, say=print):
    """Hold the lock file `path`; who has to wait longer than a second says once for what and for whom, then waits.

    The lock is flock's: the system frees it when its holder dies, however it dies, so that it can't be stale. Where a file
    system has no flock, filelock falls back to a marker file and takes over one whose owner, by pid, no longer lives on this
    host. The file says who holds it: pid, host and time, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"waiting for {what}: held by {owner(path)}", flush=True)
        lock.acquire()
    ours = not isinstance(lock, SoftFileLock)  # a marker file is filelock's own to write
    try:
        if ours:
            _note(path, f"{os.getpid()}\n{socket.gethostname()}\n{time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        yield
    finally:
        if ours:
            _note(path, "")
        lock.release()


def _note(path: Path, text: str) -> None:
    with suppress(OSError):  # the lock holds without its note, for example on a full disk
        path.write_text(text, encoding="utf-8")


def owner(path: Path) -> str:
    """Who holds a lock file, in words, as far as it says so."""
    try:
        pid, host, since = [*path.read_text(encoding="utf-8").splitlines(), "", "", ""][:3]
    except (OSError, UnicodeDecodeError):
        pid = host = since = ""
    if not pid:
        return "another process"
    return f"pid {pid} on host {host}" + (f" since {since}" if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since) else "")
