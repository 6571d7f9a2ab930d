"""The README's picture of the arms: one training question as every arm reads and writes it.

Made from the embedded world by the code that makes training texts, so nothing in it is typed in. It
is SVG by hand: words stay text, and colours follow the reader's light or dark page.
"""

import html
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from cotdistill.arms import Arm, arm_from_name, format_target, prompt_text
from cotdistill.corrupt import corrupt_tokens, word_spans
from cotdistill.encode import example_rng
from cotdistill.examples import Dataset, Example
from cotdistill.sources import load_dataset

WORLD = dict(n_train=200, n_test=40)
SEED = 0
LETTER, LINE, PAD = (
    8.4,
    30.0,
    4.0,
)  # pixels: a monospaced letter of 14 pixels, a line, a chip's edge
# Kinds of chips: their words in the legend
KINDS = {
    "prompt": "prompt, given",
    "label": "label, learnt",
    "rationale": "rationale, learnt",
    "moved": "moved",
    "hidden": "hidden",
    "dropped": "left out",
}
STYLE = """
svg { --ink: #1c2330; --soft: #5b6472; --prompt: #e6eaf0; --label: #ffdf9e; --rationale: #c9e3f5;
  --moved: #f6c4de; --hidden: #5b6472; background: #ffffff; }
@media (prefers-color-scheme: dark) { svg { --ink: #eef1f5; --soft: #aab2be; --prompt: #333b47;
  --label: #7a5600; --rationale: #124a6e; --moved: #7c2c58;
  --hidden: #aab2be; background: #0d1117; } }
text { font: 14px "DejaVu Sans Mono", Menlo, monospace; fill: var(--ink); }
.name { font-weight: bold; } .soft { fill: var(--soft); }
.prompt { fill: var(--prompt); } .label { fill: var(--label); }
.rationale { fill: var(--rationale); }
.moved { fill: var(--moved); } .hidden { fill: var(--hidden); }
.dropped { fill: none; stroke: var(--soft); stroke-dasharray: 3 2; }
.out { fill: var(--soft); text-decoration: line-through; }
"""


@dataclass(frozen=True)
class Chip:
    """Hold one word of the picture and its kind, of `KINDS`."""

    text: str
    kind: str


@cache
def _world() -> Dataset:
    return load_dataset("microworld/everyday", validation_size=24, microworld=WORLD)


def choose_question(data: Dataset) -> Example:
    """Choose the first training question of two steps whose rationale has at most eleven words."""
    return next(
        e
        for e in data.train
        if data.meta[e.id].get("steps") == 2 and len(data.rationales[e.id].text.split()) <= 11
    )


def _rarity(words: list[str], texts: list[str]) -> np.ndarray:
    """Score words by how few rationales hold them: the weight of words in tf-idf."""
    held = Counter(word for text in texts for word in set(text.lower().split()))
    return np.array([np.log(len(texts) / held[word.lower()]) for word in words])


def _shown_arms() -> list[Arm]:
    """List the arms of the picture, rationale after the label where it is changed."""
    changed = [
        arm_from_name("post_cot_shuffled", unit="word"),
        arm_from_name("post_cot_masked", unit="word", amount=0.5),
        arm_from_name("post_cot_kept", unit="word", amount=3, selector="tfidf"),
    ]
    return [*(arm_from_name(name) for name in ("label_only", "pre_cot", "post_cot")), *changed]


def rationale_chips(arm: Arm, question: str, text: str, texts: list[str]) -> list[Chip]:
    """Mark the words of a rationale as an arm changes them, by the function that trains on them.

    texts: all training rationales, by which rare words are found.
    """
    words = [text[start:end] for start, end in word_spans(text)]
    places = list(range(len(words)))
    made = corrupt_tokens(
        places, arm, example_rng(question, SEED), filler_id=-1, scores=_rarity(words, texts)
    )
    if arm.corruption == "kept":
        return [Chip(word, "rationale" if i in made else "dropped") for i, word in enumerate(words)]
    kinds = [
        "hidden" if i < 0 else "rationale" if i == at else "moved" for at, i in enumerate(made)
    ]
    return [
        Chip(words[i] if i >= 0 else "▮" * len(words[at]), kind)
        for at, (i, kind) in enumerate(zip(made, kinds, strict=True))
    ]


def arm_chips(example: Example, rationale: str, arm: Arm, texts: list[str]) -> list[Chip]:
    """List what follows the options in an arm: the cue, then what the student learns to write."""
    cue = prompt_text(example, arm.placement).rsplit("\n", 1)[1]
    chips = [Chip(cue, "prompt")]
    for kind, text in format_target(example, rationale, arm):
        if kind == "rationale":
            chips += rationale_chips(arm, example.id, rationale, texts)
        else:
            shown = "label" if kind == "label" else "rationale"
            chips += [Chip(word, shown) for word in text.split()]
    return chips


def _draw_chips(chips: list[Chip], x: float, y: float, width: float) -> tuple[list[str], float]:
    """Draw chips as running text from (x, y); returns their SVG and the y of the next line."""
    parts, at = [], x
    for chip in chips:
        size = LETTER * len(chip.text) + 2 * PAD
        if at + size > width and at > x:
            at, y = x, y + LINE
        parts.append(
            f'<rect class="{chip.kind}" x="{at:.1f}" y="{y:.1f}" width="{size:.1f}" height="23" '
            'rx="4"/>'
        )
        if chip.kind != "hidden":
            style = ' class="out"' if chip.kind == "dropped" else ""
            parts.append(_text(chip.text, at + PAD, y + 16, style))
        at += size + 3
    return parts, y + LINE


def _text(text: str, x: float, y: float, style: str = "") -> str:
    """Write text at a place; its length is fixed, whatever font the reader has."""
    fixed = f'textLength="{LETTER * len(text):.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {fixed}{style}>{html.escape(text)}</text>'


def draw_arms(narrow: bool = False) -> str:
    """Draw one question of the embedded world in all arms, as SVG.

    narrow: for a phone, 390 pixels wide; else 880.
    """
    data, width = _world(), 390.0 if narrow else 880.0
    example = choose_question(data)
    rationale = data.rationales[example.id].text
    texts = [r.text for r in data.rationales.values()]
    left, inner = (10.0, 10.0) if narrow else (12.0, 200.0)
    prompt = prompt_text(example, "label_only").rsplit("\n", 1)[0]
    words = [Chip(line, "prompt") for line in prompt.split("\n")]
    if narrow:
        words = [Chip(word, "prompt") for word in prompt.split()]
    parts, y = _draw_chips(words, left, 12.0, width - left)
    y += 10
    for arm in _shown_arms():
        name = arm.name
        parts.append(_text(name, left, y + 16, ' class="name"'))
        more, y = _draw_chips(
            arm_chips(example, rationale, arm, texts),
            inner,
            y + (22 if narrow else 0),
            width - left,
        )
        parts += more
        y += 8
    legend = [Chip(text, kind) for kind, text in KINDS.items() if kind != "hidden"]
    more, y = _draw_chips(legend, left, y + 8, width - left)
    parts += more
    parts += _hidden_legend(left, y)
    height = y + LINE + 4
    title = f"One question in every arm: {example.question}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">\n<title>{html.escape(title)}'
        f"</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _hidden_legend(x: float, y: float) -> list[str]:
    """Explain hidden words, which have no letters of their own."""
    block = f'<rect class="hidden" x="{x:.1f}" y="{y:.1f}" width="42" height="23" rx="4"/>'
    return [block, _text("hidden: a filler token instead", x + 50, y + 16, ' class="soft"')]
