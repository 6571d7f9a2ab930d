"""The one kind of error that a user sees: a line that says what was found and what is expected."""

import re


def one_line(message: str, longest: int = 1500) -> str:
    """A message on one line of printable characters.

    Line breaks and control characters out of someone's file are escaped, and of a very long message
    the middle is left out (its end says what is expected).
    """
    message = str(message)
    if len(message) > longest:
        message = f"{message[: longest - 500]} … {message[-490:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


class DataError(ValueError):
    """Bad input: one line that names the file, the line or id, what was found and what is expected."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


# What a failed write says of itself: OSError, safetensors (Rust) and torch's zip writer each in its
# own words
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
    """A failed write as one line: the folder, what is wrong with it and the way out.

    None for any other error (or text of one).
    """
    found = next(
        (wrong for wrong, words in DISK.items() if any(word in str(error) for word in words)), None
    )
    if found is None:
        return None
    way = (
        "free some space"
        if found == "is full"
        else (
            "make it writable, or set COTDISTILL_ARTIFACTS (for weights COTDISTILL_CACHE) to a "
            "folder that is"
        )
    )
    named = re.search(r": '([^']+)'", str(error))
    return DataError(
        f"{named[1] if named else folder}: the folder {found}; expected to write there: {way}, "
        "then run the same command again: what is whole is kept"
    )
