"""Define the one kind of error that a user sees: a line of what was found and what is expected."""

import re


def one_line(message: str, longest: int = 1500) -> str:
    """Put a message on one line of printable characters.

    Line breaks and control characters from a user's file are escaped. A very long message loses its
    middle; its end, which says what is expected, stays.
    """
    message = str(message)
    if len(message) > longest:
        message = f"{message[: longest - 500]} … {message[-490:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


class DataError(ValueError):
    """Report bad input on one line.

    The line names the file, the line or id, what was found and what is expected.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


# How a failed write reads: OSError, safetensors (Rust) and torch's zip writer word it differently.
DISK = {
    "is full": (
        "No space left",
        "StorageFull",
        "Disk quota exceeded",
        "PytorchStreamWriter",
        "iostream error",
        "unexpected pos",
    ),
    "is read-only": ("Read-only file system", "ReadOnlyFilesystem"),
    "may not be written": ("Permission denied", "PermissionDenied", "Operation not permitted"),
}


def disk_error(error, folder) -> "DataError | None":
    """Turn a failed write into one line: the folder, what is wrong with it and how to go on.

    `error` is an exception or the text of one. Returns None for any other error.
    """
    problem = next(
        (name for name, words in DISK.items() if any(word in str(error) for word in words)), None
    )
    if problem is None:
        return None
    remedy = "free some space"
    if problem != "is full":
        remedy = (
            "make it writable, or set COTDISTILL_ARTIFACTS (for weights COTDISTILL_CACHE) to a "
            "folder that is"
        )
    quoted = re.search(r": '([^']+)'", str(error))
    return DataError(
        f"{quoted[1] if quoted else folder}: the folder {problem}; expected to write there: "
        f"{remedy}, then run the same command again: what is complete is kept"
    )
