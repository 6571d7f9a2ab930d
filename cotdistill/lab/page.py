"""Write what the lab shows as one HTML file that needs no kernel, no server and no network."""

import html
from pathlib import Path

from cotdistill.files import atomic_write
from cotdistill.lab.markup import STYLE, said_html

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The lab, as it was left</title>
<style>body {{font-family: sans-serif; max-width: 1000px; margin: 0 auto; padding: 12px 16px;
color: #000; background: #fff}} h2 {{margin: 28px 0 8px; font-size: 20px}}
table.dataframe {{border-collapse: collapse}} table.dataframe td, table.dataframe th
{{padding: 2px 10px; text-align: right}}</style>
{style}</head><body><h1>The lab, as it was left</h1>
<p>A still of <code>explore.ipynb</code>: with a kernel (<code>make lab</code>) every number here
follows what you change. Hovering shows numbers.</p>
{note}{body}</body></html>
"""


def write_page(path: Path, note: str, sections: dict[str, str]) -> None:
    """Write sections (title -> HTML) as a page; empty ones are left out.

    note: a sentence about the study.
    """
    body = "".join(
        f"<section><h2>{html.escape(title)}</h2>{part.replace(STYLE, '')}</section>"
        for title, part in sections.items()
        if part
    )
    with atomic_write(path) as part:
        text = FRAME.format(style=STYLE, note=said_html(note).replace(STYLE, ""), body=body)
        part.write_text(text, encoding="utf-8")
