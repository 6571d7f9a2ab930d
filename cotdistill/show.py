"""What notebooks display: HTML tables, Markdown, and percentages with their intervals.

Nothing here computes a result.
"""

import html
import re

import pandas as pd
from IPython.display import Markdown, display


def table(frame: pd.DataFrame, digits: int = 2) -> None:
    """Show a table as plain HTML; show nothing where it has no rows.

    Numbers rounded, percentages and texts as they are, no index name row, NaN as a dash.
    """
    if frame.empty:
        return

    def cell(value):
        if isinstance(value, (list, dict)):
            return html.escape(str(value))
        if pd.isna(value):
            return "–"
        if isinstance(value, float):
            return (
                f"{value:.0f}"
                if value == int(value) and abs(value) >= 10
                else f"{value:.{digits}f}"
            )
        return html.escape(str(value))

    flat = (
        frame.reset_index()
        if frame.index.names != [None] or not isinstance(frame.index, pd.RangeIndex)
        else frame
    )
    # Texts, and the heads above them; notebooks set all cells to the right
    left = ' style="text-align: left; vertical-align: top"'
    texts = [any(isinstance(v, str) for v in flat.iloc[:, i]) for i in range(flat.shape[1])]
    head = "".join(
        f"<th{left if text else ''}>{html.escape(_plain(c))}</th>"
        for c, text in zip(flat.columns, texts, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{left if isinstance(v, str) else ''}>{cell(v)}</td>" for v in row)
        + "</tr>"
        for row in flat.itertuples(index=False)
    )
    text = (
        " | ".join(map(_plain, flat.columns))
        + "\n"
        + "\n".join(
            " | ".join(re.sub("<.*?>", "", cell(v)) for v in row)
            for row in flat.itertuples(index=False)
        )
    )
    display(
        _Both(
            f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>',
            text,
        )
    )


def _plain(name) -> str:
    return "" if name is None or name == "index" else str(name).replace("_", " ")


class _Both:
    """An HTML table with a plain-text twin, for readers of the raw notebook and for diffs."""

    def __init__(self, markup: str, text: str):
        self.markup, self.text = markup, text

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.text


def say(text: str) -> None:
    """Show Markdown text, such as a reading; show nothing for an empty one."""
    if text:
        display(Markdown(text))


def percent(rows):
    """Write rows of `stats.accuracy_table` as "43.2 % [40.1, 46.3]".

    A row (or a dict of one) gives a text, a table a series of texts.
    """
    return _texts(
        rows,
        lambda row: (
            f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        ),
    )


def points(rows):
    """Write rows of `summaries.paired_table` in points, "-8.8 [-15.1, -2.4]".

    A row (or a dict of one) gives a text, a table a series of texts.
    """
    return _texts(
        rows,
        lambda row: (
            f"{100 * row['estimate']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        ),
    )


def _texts(rows, one):
    return (
        one(rows)
        if isinstance(rows, (pd.Series, dict))
        else pd.Series([one(row) for row in rows.to_dict("records")], rows.index, dtype=object)
    )
