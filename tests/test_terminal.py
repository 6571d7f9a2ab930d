"""The terminal: tables of 80 columns, and progress as one line where someone looks."""

import io

import pytest

from cotdistill.terminal import UpdatingLine, wrap, write_duration, write_table


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, looked_at):
        super().__init__()
        self.looked_at = looked_at

    def isatty(self):
        return self.looked_at


TEXT = "== 02_train (quick)\n[1/2] label_only seed 0: 40 %, 9 s\n[2/2] post_cot: 41 %\ndone\n"


def test_a_log_gets_plain_lines():
    stream = Terminal(False)
    line = UpdatingLine(stream)
    for part in (TEXT[:30], TEXT[30:]):
        line.write(part)
    line.close_line()
    assert stream.getvalue() == TEXT


@pytest.mark.parametrize("cut", [1, 25, 40, 70])
def test_a_terminal_gets_one_updated_line(cut):
    stream = Terminal(True)
    line = UpdatingLine(stream)
    line.write(TEXT[:cut])
    line.write(TEXT[cut:])
    line.close_line()
    start = "\r\x1b[K"
    assert stream.getvalue() == (
        f"== 02_train (quick)\n{start}[1/2] label_only seed 0: 40 %, 9 s"
        f"{start}[2/2] post_cot: 41 %\ndone\n"
    )


def test_a_progress_line_never_wraps():
    stream = Terminal(True)
    line = UpdatingLine(stream)
    line.write("[1/2] " + "x" * 300)
    line.close_line()
    assert len(stream.getvalue()) < 100 and stream.getvalue().endswith("…\n")


def test_tables_fit_into_80_columns():
    rows = [{"a": "x" * 200, "b": 3}, {"a": "y", "b": "–"}]
    lines = write_table(rows, ["a", "b"]).splitlines()
    assert [len(line) for line in lines[:3]] == [80, 80, 80] and lines[2].endswith("…  3")
    assert lines[0].split() == ["a", "b"] and lines[3].split() == ["y", "–"]
    assert max(map(len, wrap("word " * 60).splitlines())) <= 80


def test_durations_have_a_unit():
    assert [write_duration(s) for s in (None, 40, 720, 12600)] == ["–", "40 s", "12 min", "3.5 h"]
