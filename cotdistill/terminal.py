"""What the terminal shows: tables of 80 columns, and one updated line while work goes on."""

import re
import shutil
import textwrap

WIDTH = 80
# Lines that only say how far the work is; each replaces the one before it on a terminal
_PROGRESS = re.compile(r"^\[\d+/\d+\] |\d+ of \d+ answers, |: epoch \d|, epoch \d")


def write_table(rows: list[dict], columns: list[str]) -> str:
    """Write rows as text with a header, at most 80 columns wide.

    Where they do not fit, the widest column is cut, with an ellipsis.
    """
    cells = [columns, *([str(row[name]) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    over = sum(widths) + 2 * (len(columns) - 1) - WIDTH
    if over > 0:
        widest = widths.index(max(widths))
        widths[widest] -= over
    lines = [
        "  ".join(_fit(text, width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def wrap(text: str, indent: str = "  ") -> str:
    """Break text into lines of 80 columns, the second and later ones indented; paths stay whole."""
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def write_duration(seconds: float | None) -> str:
    """Write seconds as "40 s", "12 min" or "3.5 h"; a dash where unknown."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class UpdatingLine:
    """A stream on which progress is one updated line in a terminal, and plain lines in a log.

    Lines that are no progress stay as they are, and so does the last progress before them.
    """

    def __init__(self, stream):
        self.stream, self.rest, self.is_open = stream, "", False

    def write(self, text: str) -> int:
        """Write text; in a terminal, whole lines at a time."""
        if not self.stream.isatty():
            return self.stream.write(text)
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._show(line)
        return len(text)

    def _show(self, line: str) -> None:
        columns = shutil.get_terminal_size((WIDTH, 24)).columns
        if _PROGRESS.search(line):
            self.stream.write("\r\x1b[K" + _fit(line, columns - 1).rstrip())
            self.is_open = True
        elif line or not self.is_open:
            self.stream.write(("\n" if self.is_open else "") + line + "\n")
            self.is_open = False

    def flush(self) -> None:
        """Show what was written."""
        self.stream.flush()

    def close_line(self) -> None:
        """End the updated line and show an unfinished one, so that the next text starts afresh."""
        if self.rest:
            self._show(self.rest)
            self.rest = ""
        if self.is_open:
            self.stream.write("\n")
            self.is_open = False
        self.stream.flush()
