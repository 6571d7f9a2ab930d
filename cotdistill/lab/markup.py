"""Draw what the lab shows as HTML and SVG: tokens, bars, curves, answers side by side.

A figure here is text, so that it can be written into a page of its own, and hovering shows numbers.
"""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cotdistill.encode import FRAME, LABEL, PROMPT, RATIONALE
from cotdistill.examples import Example

TOKEN_KINDS = {
    PROMPT: ("prompt", "#E8E8E8"),
    LABEL: ("label", "#F6C16B"),
    RATIONALE: ("rationale", "#BFE3D0"),
    FRAME: ("frame", "#D9D2EA"),
}
# White to the full colour, as in `plots.token_heatmap`: orange for the label, blue against it
FOR, AGAINST = ("#FFFFFF", "#F6C16B", "#D55E00"), ("#FFFFFF", "#9CCBE8", "#0072B2")
ARM_COLOURS = ("#0072B2", "#D55E00")  # the first arm, the second
DASHES = ("", "6 3")
STYLE = """<style>
.cotdistill-token button, button.cotdistill-token
  {font-family: monospace; font-size: 14px; padding: 0 7px; border-radius: 5px}
.cotdistill-question, .cotdistill-said
  {font-size: 15px; line-height: 1.5; max-width: 900px; white-space: pre-wrap}
.cotdistill-text, .cotdistill-heat
  {font-family: monospace; font-size: 13px; line-height: 1.9; max-width: 900px;
   white-space: pre-wrap; overflow-wrap: anywhere; color: #000}
.cotdistill-text {line-height: 1.7}
.cotdistill-text span {padding: 2px 0; border-radius: 3px; border-right: 1px solid #fff}
.cotdistill-heat span {padding: 3px 0; border-radius: 2px}
.cotdistill-bars {border-collapse: collapse; font-size: 14px; margin: 8px 0}
.cotdistill-bars td {padding: 2px 8px; border: 0; text-align: left}
.cotdistill-bars td.bar {width: 320px}
.cotdistill-bars div {height: 16px; border-radius: 2px; min-width: 1px}
.cotdistill-pair {display: grid; grid-template-columns: 1fr 1fr; gap: 10px 18px; max-width: 980px;
  font-size: 14px; line-height: 1.45}
.cotdistill-pair > div {padding: 8px 10px; border-radius: 5px; background: #f6f6f6; color: #000}
.cotdistill-pair .right {background: #E3F3EA}
.cotdistill-pair .whole {grid-column: 1 / 3; background: none; color: inherit; padding: 8px 0 0}
.cotdistill-curves {display: flex; flex-wrap: wrap; gap: 12px}
.cotdistill-curves svg {background: #fff; flex: 1 1 300px; max-width: 430px; height: auto}
@media (max-width: 600px) {.cotdistill-pair {grid-template-columns: 1fr}
  .cotdistill-pair .whole {grid-column: 1} .cotdistill-bars td.bar {width: 120px}}
</style>"""


def show_token(text: str) -> str:
    """Return a token as a reader sees it: a line break as ⏎, a lone space as ·."""
    return text.strip() or ("⏎" if "\n" in text else "·")


def mix_colours(stops: Sequence[str], share: float) -> str:
    """Return the colour at a share (0 to 1) of the way along stops such as "#FFFFFF"."""
    rgb = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops], float)
    places = np.linspace(0, 1, len(stops))
    mixed = [round(float(np.interp(share, places, channel))) for channel in rgb.T]
    return "#" + "".join(f"{channel:02X}" for channel in mixed)


def heat_html(tokens: Sequence[str], scores: Sequence[float], unit: str = "nats") -> str:
    """Write tokens on the colour of their scores; hovering shows the number.

    Orange speaks for the right option and blue against it, scaled by the largest score; negative
    ones are underlined too. Raises ValueError where there are not as many scores as tokens.
    """
    top = max((abs(score) for score in scores), default=0) or 1.0
    spans = []
    for text, score in zip(tokens, scores, strict=True):
        share = abs(float(score)) / top
        colour = mix_colours(FOR if score >= 0 else AGAINST, share)
        style = f"background:{colour}" + ";color:#fff" * bool(share > 0.8)
        style += ";text-decoration:underline" * bool(score < -0.02 * top)
        title = html.escape(f"{show_token(text)}: {score:+.3f} {unit}")
        spans.append(f'<span style="{style}" title="{title}">{html.escape(text)}</span>')
    return f'{STYLE}<div class="cotdistill-heat">{"".join(spans) or "(no tokens)"}</div>'


def bars_html(example: Example, shares: Sequence[float], logps: Sequence[float] = ()) -> str:
    """Write the options with a bar of their probability each; the right one is marked ●.

    logps: log p of each option in nats, shown when hovering.
    """
    marks = ["●" if i == example.answer else "○" for i in range(len(shares))]
    return options_html(example.choices, shares, marks, logps)


def options_html(
    choices: Sequence[str], shares: Sequence[float], marks: Sequence[str], logps: Sequence[float]
) -> str:
    """Write options with a mark and a bar each; the longest bar is dark."""
    rows = []
    for i, (choice, share, mark) in enumerate(zip(choices, shares, marks, strict=True)):
        colour = "#0072B2" if share == max(shares) else "#9CCBE8"
        title = f"{100 * share:.2f} %" + (f", log p {logps[i]:.3f} nats" if len(logps) else "")
        rows.append(
            f'<tr title="{title}"><td>{mark} {html.escape(choice)}</td><td class="bar">'
            f'<div style="width:{100 * share:.1f}%;background:{colour}"></div></td>'
            f"<td>{100 * share:.1f} %</td></tr>"
        )
    return f'{STYLE}<table class="cotdistill-bars">{"".join(rows)}</table>'


def question_html(example: Example) -> str:
    """Write the question and its options as HTML, the gold one marked; all text is escaped."""
    options = "\n".join(
        f"{'● ' if i == example.answer else '○ '}{html.escape(choice)}"
        for i, choice in enumerate(example.choices)
    )
    return (
        f"{STYLE}<div "
        f'class="cotdistill-question"><b>{html.escape(example.question)}</b>\n{options}</div>'
    )


def tokens_html(tokens: pd.DataFrame) -> str:
    """Write `training_tokens` as coloured text, one span a token, with a legend and counts."""
    colours = dict(TOKEN_KINDS.values())
    body = "".join(
        f'<span style="background:{colours[t.kind]}" title="{t.kind}, token {t.id}">'
        f"{html.escape(t.text)}</span>"
        for t in tokens.itertuples()
    )
    legend = " ".join(
        f'<span style="background:{colour}">&nbsp;{kind}: '
        f"{(tokens['kind'] == kind).sum()}&nbsp;</span>"
        for kind, colour in colours.items()
    )
    return (
        f'{STYLE}<div class="cotdistill-text">{legend} = {len(tokens)} tokens; learnt: all '
        f"but the prompt\n\n{body}</div>"
    )


def said_html(text: str) -> str:
    """Write a sentence of `readings`: its **bold** words as HTML, all else escaped."""
    parts = html.escape(text).split("**")
    body = "".join(f"<b>{part}</b>" if i % 2 else part for i, part in enumerate(parts))
    return f'{STYLE}<div class="cotdistill-said">{body}</div>'


def round_up(value: float) -> float:
    """Return the smallest of 1, 2 or 5 times a power of ten that is not below a value."""
    power = 10.0 ** np.floor(np.log10(value)) if value > 0 else 1.0
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))


def curve_svg(
    title: str,
    curves: dict[str, list[tuple[float, float]]],
    *,
    unit: str,
    top: float | None = None,
    steps: int = 0,
    chance: float | None = None,
) -> str:
    """Draw curves over optimiser steps as SVG, from 0 up; hovering over a point shows its numbers.

    curves: name -> (step, value) points; two arms at most. top: the highest value of the axis;
    steps: of the whole training; chance: a dotted line.
    """
    width, height, left, bottom, head = 430, 230, 46, 34, 44
    values = [value for points in curves.values() for _, value in points]
    top = top or round_up(max(values, default=1.0))
    last = max([steps, 1, *(step for points in curves.values() for step, _ in points)])
    across = lambda step: left + (width - left - 14) * step / last
    up = lambda value: height - bottom - (height - bottom - head) * min(value, top) / top
    text = 'font-family="sans-serif" font-size="12" fill="#333"'
    parts = [f'<text x="{left}" y="16" {text} font-weight="bold">{html.escape(title)}</text>']
    for tick in (0, top / 2, top):
        parts.append(
            f'<line x1="{left}" x2="{width - 14}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" '
            f'stroke="#ddd"/><text x="{left - 6}" y="{up(tick) + 4:.1f}" {text} '
            f'text-anchor="end">{tick:g}</text>'
        )
    for step, anchor in ((0, "start"), (last, "end")):
        parts.append(f'<text x="{across(step)}" y="{height - 16}" {text} '
                     f'text-anchor="{anchor}">{"step " * (step == 0)}{step}</text>')  # fmt: skip
    if chance is not None:
        parts.append(
            f'<line x1="{left}" x2="{width - 14}" y1="{up(chance):.1f}" y2="{up(chance):.1f}" '
            f'stroke="#767676" stroke-dasharray="2 3"><title>chance: {chance:g}</title></line>'
        )
    for i, (name, points) in enumerate(curves.items()):
        places = [(across(step), up(value)) for step, value in points]
        parts.append(draw_curve(i, name, points, places, unit))
        parts.append(f'<rect x="{left + 180 * i}" y="26" width="14" height="4" '
                     f'fill="{ARM_COLOURS[i]}"/><text x="{left + 180 * i + 18}" y="32" {text}>'
                     f"{html.escape(shorten(name))}</text>")  # fmt: skip
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    )


def shorten(name: str, longest: int = 25) -> str:
    """Cut a name that is too long for a legend."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def draw_curve(
    number: int,
    name: str,
    points: list[tuple[float, float]],
    places: list[tuple[float, float]],
    unit: str,
) -> str:
    """Draw one curve of `curve_svg`: a line, and a point with a title at each value."""
    colour = ARM_COLOURS[number]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if len(points) < 12 else 2.5}" fill="{colour}">'
        f"<title>{html.escape(name)}, step {step:g}: {value:.3f} {unit}</title></circle>"
        for (x, y), (step, value) in zip(places, points, strict=True)
    )
    return (
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8" '
        f'stroke-dasharray="{DASHES[number]}"/>{dots}'
    )


def learning_html(arms: dict, chance: float) -> str:
    """Draw the losses and p(gold) of a job's arms side by side; arms: of `jobs.Job`.

    A curve is shown from its first point on: no empty axes while a job starts.
    """
    steps = max((one.steps for one in arms.values()), default=0)
    label = {
        name: [(b["step"], b["label_loss"]) for b in one.batches if b["label_loss"] is not None]
        for name, one in arms.items()
    }
    loss = {name: [(b["step"], b["loss"]) for b in one.batches] for name, one in arms.items()}
    gold = {name: [(c["step"], c["p_gold"]) for c in one.checks] for name, one in arms.items()}
    nats = dict(unit="nats a token", steps=steps)
    shares = dict(unit="", top=1.0, steps=steps, chance=chance)
    figures = [
        curve_svg(title, curves, **options)
        for title, curves, options in (
            ("loss on the label, nats a token", label, nats),
            ("loss on all that is learnt, nats a token", loss, nats),
            ("p(gold) on validation questions", gold, shares),
        )
        if any(curves.values())
    ]
    return f'{STYLE}<div class="cotdistill-curves">{"".join(figures)}</div>'


def answer_html(name: str, answer: dict, right: bool) -> str:
    """Write what one student wrote on a question; answer: of `compare.describe_answer`."""
    reason = f"<i>{html.escape(answer['rationale'])}</i><br>" if answer["rationale"] else ""
    cut = " (cut off)" if answer["cut_off"] else ""
    return (
        f'<div class="{"right" if right else "wrong"}"><b>{html.escape(name)}</b> '
        f"{'right ✓' if right else 'wrong ✗'}<br>{reason}wrote: "
        f"“{html.escape(answer['text'])}”{cut}<br>takes: {html.escape(answer['choice'])}; p(gold) "
        f"{answer['p_gold']:.3f}</div>"
    )


def disagreements_html(found: list, limit: int = 12) -> str:
    """Write the first disagreements side by side; found: of `compare.list_disagreements`."""
    cells = []
    for one in found[:limit]:
        gold = html.escape(one.example.label)
        question = html.escape(one.example.question)
        cells.append(f'<div class="whole"><b>{question}</b> (right: {gold})</div>')
        cells += [answer_html(n, row, n == one.right) for n, row in one.answers.items()]
    return f'{STYLE}<div class="cotdistill-pair">{"".join(cells)}</div>'


def frame_html(frame: pd.DataFrame) -> str:
    """Write a small table of numbers; missing ones as a dash."""
    return frame.to_html(border=0, float_format=lambda value: f"{value:.2f}", na_rep="–")
