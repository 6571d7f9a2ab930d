"""The one style of all figures: colours, sizes, seed dots, and how a figure is saved.

The Okabe-Ito palette (colour-blind safe), and hatches, markers and dashes that carry the same
distinction in greyscale. Every figure has two layouts: one for a page, one for a phone, which is
390 CSS pixels wide. `set_style` chooses between them; `is_narrow` tells a figure which one it is.
"""

from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cotdistill.files import atomic_write

# placement -> colour (Okabe and Ito 2008; also apart in lightness), hatch, marker, dashes
LOOKS = {
    "zero_shot": ("#BBBBBB", "", "s", (0, (1, 2))),
    "label_only": ("#56B4E9", "", "D", (0, (4, 2))),
    "pre_cot": ("#E69F00", "///", "^", (0, (6, 2, 1, 2))),
    "post_cot": ("#0072B2", "", "o", "solid"),
}
# Of students that are asked as they are, below solved questions; a name is found by its beginning
SHOT_LOOKS = {
    "few_shot_cot": ("#CC79A7", "", "P", (0, (3, 1, 1, 1))),
    "few_shot": ("#999999", "", "X", (0, (2, 2))),
}
VERDICTS = {
    "supported": ("#0072B2", "o"),
    "contradicted": ("#D55E00", "X"),
    "negligible": ("#CC79A7", "D"),
    "inconclusive": ("#767676", "s"),
    "not measured": ("#BBBBBB", "|"),
}
CYCLE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999933"]
MARKERS = ["o", "^", "s", "X", "D", "v", "P", "*"]
DASHES = [
    "solid",
    (0, (6, 2, 1, 2)),
    (0, (4, 2)),
    (0, (1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
    (0, (10, 2, 2, 2)),
]
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "++", "ooo", "|||"]


# One colour map per quantity, wherever it is drawn: how far a token speaks for the label, and how
# far two rankings agree
SCORE_COLOURS = ("#0072B2", "#9CCBE8", "#FFFFFF", "#F6C16B", "#D55E00")
AGREEMENT_COLOURS = "PuOr"
PHONE = 3.9  # inches: 390 CSS pixels, at 100 an inch


def set_style(narrow: bool = False) -> None:
    """Set the one style: sans serif, light horizontal grid, sizes for a 6-inch wide print.

    narrow: for a phone, 3.9 inches wide. Fonts are embedded in the PDF.
    """
    sns.set_theme(context="paper", style="whitegrid", palette=CYCLE)
    mpl.rcParams.update(
        {
            "figure.figsize": (PHONE, 3.4) if narrow else (6.0, 3.7),
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.labelsize": 9,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid.axis": "y",
            "axes.edgecolor": "#444444",
            "grid.color": "#DDDDDD",
            "hatch.linewidth": 0.7,
            "lines.linewidth": 1.5,
            "lines.markersize": 5,
            "pdf.fonttype": 42,
            "svg.hashsalt": "cotdistill",
            "savefig.pad_inches": 0.04 if narrow else 0.1,
        }
    )


def is_narrow() -> bool:
    """Tell whether figures are drawn for a phone."""
    return mpl.rcParams["figure.figsize"][0] < 5


def make_axes(ax: Axes | None, width: float = 6.0, height: float = 3.7) -> Axes:
    """Return `ax`, or new axes of this size in inches; a phone's are as wide as the phone."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=(PHONE if is_narrow() else width, height))[1]


def save(fig: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.pdf and stem.png; folders are made.

    No dates in them, so that equal figures are equal files.
    """
    stem = Path(stem)
    paths = stem.parent / (stem.name + ".pdf"), stem.parent / (stem.name + ".png")
    for path in paths:
        save_as(fig, path)
    return paths


def save_as(fig: Figure, path: Path) -> None:
    """Write a figure in the format that the file's name says: pdf, png or svg; no date in it."""
    kind = path.suffix[1:]
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
    with atomic_write(path) as part:
        fig.savefig(part, format=kind, metadata=metadata[kind])


def place_legend(ax: Axes, columns: int = 4, handles: list | None = None) -> None:
    """Put the legend above the axes, where it covers nothing; on a phone in two columns at most.

    A title belongs to the figure (fig.suptitle).
    """
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if not handles:
        return
    if is_narrow():
        columns = 2 if max(len(h.get_label()) for h in handles) < 20 else 1
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.01),
        ncols=min(columns, len(handles)),
        handlelength=3.2 if not is_narrow() else 2.2,
    )


def seed_values(row: pd.Series) -> np.ndarray:
    """Return what each seed gave, in percent or points; empty where the table does not say.

    row: of `stats.accuracy_table` or of a verdict table; the column is `by_seed`, fractions. One
    seed is its own mean, so it has no dot of its own.
    """
    values = row.get("by_seed")
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) < 2:
        return np.array([])
    return 100 * np.asarray(values, float)


def spread_dots(count: int, width: float) -> np.ndarray:
    """Return offsets that set this many dots side by side, `width` from the first to the last."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(count)


def draw_seed_dots(ax: Axes, across: Iterable[float], along: Iterable[float], upright: bool = True):
    """Draw one dot per seed: white with a dark edge, so that it shows on any colour.

    across: places on the axis of arms; along: values on the axis of the measure, which is y where
    `upright`.
    """
    x, y = (across, along) if upright else (along, across)
    ax.plot(
        x,
        y,
        linestyle="none",
        marker="o",
        markersize=4 if not is_narrow() else 3.4,
        markerfacecolor="white",
        markeredgecolor="#222222",
        markeredgewidth=0.8,
        zorder=3.5,
        clip_on=False,
    )


def look(arm: str) -> tuple[str, str, str, object]:
    """Colour, hatch, marker and dashes of an arm: those of its placement."""
    looks, other = LOOKS | SHOT_LOOKS, ("#999933", "...", "v", "solid")
    return next((v for name, v in looks.items() if arm.startswith(name)), other)
