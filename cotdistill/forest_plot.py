"""The forest plot: every claim's estimate, coloured by its verdict, with the side that supports it.

On a page, the words stand on the left and the numbers on the right; on a phone, both stand above
the line that they belong to.
"""

import textwrap
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cotdistill.figure_style import VERDICTS, is_narrow, make_axes, place_legend, seed_values
from cotdistill.paths import root
from cotdistill.rules import RULES

FAMILIES = {
    "paper": "What the paper claims",
    "mechanism": "Why it works: claims of our own",
    "cost": "What it costs",
}
INCH = 0.36  # of one unit of y
LINE = 0.40  # height of a line of a claim's words, in units of y
SMALL = 0.33  # height of a line of small print
NUMBER = 0.52  # height of an estimate in figures, on a phone
ROW = 0.62  # height of one estimate
HEAD = 0.75  # height of a family's heading
GAP = 0.42  # between two claims
SIDE = "#DCEBF5"  # what would support a claim
POOLED = "D"  # marker of an estimate over studies


@dataclass(frozen=True)
class Estimate:
    """Hold one line of a forest plot, in points: a study's estimate of a claim, or the pooled one.

    seeds: NA where nothing was measured, 0 for a pooled estimate. by_seed: empty where not known.
    pooled: over studies; it has the verdict's colour, and is a diamond.
    """

    study: str
    value: float
    low: float
    high: float
    verdict: str
    seeds: int
    by_seed: np.ndarray
    pooled: bool = False

    @property
    def spans(self) -> list[float]:
        """List the values that the axis must hold: two seeds' interval is mere arithmetic."""
        ends = [self.value, *self.by_seed]
        return ends if self.seeds == 2 else [*ends, self.low, self.high]

    @property
    def text(self) -> str:
        """Write the estimate with its interval."""
        if pd.isna(self.value):
            return "not measured"
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class ForestClaim:
    """Hold one claim's part of a forest plot; heights in units of y, `INCH` inches each.

    heading: of the family that it opens, else empty. side: from where to where an estimate would
    support the claim, in points; infinite on open sides.
    """

    top: float
    height: float
    heading: str
    words: str
    contrast: str
    rows: list[Estimate]
    side: tuple[float, float]
    margin: float

    @property
    def words_height(self) -> float:
        """Return the height of the claim's words."""
        return LINE * (self.words.count("\n") + 1)

    @property
    def contrast_height(self) -> float:
        """Return the height of the contrast under them."""
        return SMALL * (self.contrast.count("\n") + 1) * bool(self.contrast)

    @property
    def bottom(self) -> float:
        """Return where the claim ends."""
        return self.top + self.height


@cache
def _claimed_directions() -> dict[str, str]:
    """Read the direction of every claim from params/claims.yaml; empty where there is none."""
    path = root() / "params" / "claims.yaml"
    claims = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {claim["id"]: claim["direction"] for claim in claims}


def supporting_side(claim: str, rule: str, margin: float) -> tuple[float, float]:
    """Return from where to where, in points, an estimate would support a claim."""
    low, high = RULES[rule].side(margin, _claimed_directions().get(claim, ""))
    return 100 * low, 100 * high


def _list_estimates(
    group: pd.DataFrame, pooled: pd.DataFrame | None, several: bool
) -> list[Estimate]:
    """List the lines of one claim: a study each, then the pooled one where there is one."""
    rows = [
        Estimate(
            row["study"] if several else "",
            *(100 * row[c] for c in ("estimate", "low", "high")),
            row["verdict"],
            row["seeds"] if pd.notna(row["seeds"]) else -1,
            seed_values(row),
        )
        for _, row in group.iterrows()
    ]
    claim = group["claim"].iloc[0]
    match = (
        pooled[(pooled["claim"] == claim) & (pooled["studies"] > 1)] if pooled is not None else ()
    )
    if len(match):
        m = match.iloc[0]
        ends = (100 * m[c] for c in ("estimate", "low", "high"))
        name = f"pooled ({m['studies']} studies)"
        rows.append(Estimate(name, *ends, m["verdict"], 0, np.array([]), pooled=True))
    return rows


def _lay_out(table: pd.DataFrame, pooled: pd.DataFrame | None, several: bool) -> list[ForestClaim]:
    """Lay the claims of a forest plot out from the top down, family by family."""
    claims, y, family, narrow = [], 0.0, None, is_narrow()
    if "family" in table:
        order = [*FAMILIES, *sorted(set(table["family"].dropna()) - set(FAMILIES))]
        table = table.iloc[np.argsort(table["family"].map(order.index), kind="stable")]
    for _, group in table.groupby("claim", sort=False):
        first = group.iloc[0]
        heading = ""
        if "family" in table and first["family"] != family:
            family = first["family"]
            heading = FAMILIES.get(family, family)
        contrast = next((c for c in group["contrast"] if c), "") or ""
        rows = _list_estimates(group, pooled, several)
        rule, margin = first["rule"], first["margin"]
        claim = ForestClaim(
            y + HEAD * bool(heading),
            0.0,
            heading,
            "\n".join(textwrap.wrap(first["words"], 48 if narrow else 46)),
            "\n".join(textwrap.wrap(contrast, 56 if narrow else 58, break_on_hyphens=False)),
            rows,
            supporting_side(first["claim"], rule, margin),
            margin if RULES[rule].needs_margin else 0.0,
        )
        words = claim.words_height + claim.contrast_height
        lines = (ROW + NUMBER if narrow else ROW) * len(rows)
        claims.append(replace(claim, height=words + lines if narrow else max(lines, words)))
        y = claims[-1].bottom + GAP
    return claims


def _strip(claim: ForestClaim, number: int) -> tuple[float, float]:
    """Return top and bottom of the strip in which a claim's estimate of this number is drawn."""
    if is_narrow():
        top = claim.top + claim.words_height + claim.contrast_height + (ROW + NUMBER) * number
        return top + NUMBER, top + NUMBER + ROW
    each = claim.height / len(claim.rows)
    return claim.top + each * number, claim.top + each * (number + 1)


def _draw_words(ax: Axes, claim: ForestClaim) -> None:
    """Write a claim and its contrast: on the left, or on a phone above its estimates."""
    across = ax.get_yaxis_transform()
    words = claim.words_height + claim.contrast_height
    narrow = is_narrow()
    start = claim.top if narrow else claim.top + (claim.height - words) / 2
    place = dict(transform=across, ha="left" if narrow else "right", va="top")
    x = 0.0 if narrow else -0.02
    ax.text(x, start, claim.words, fontsize=8.5, **place)
    ax.text(x, start + claim.words_height, claim.contrast, fontsize=7, color="#5A5A5A", **place)
    if claim.heading:
        at = claim.top - HEAD / 2 - GAP / 4
        style = dict(fontsize=9.5, fontweight="bold", color="#1c2330", va="center")
        ax.text(x, at, claim.heading, transform=across, ha=place["ha"], **style)


def _draw_side(ax: Axes, claim: ForestClaim, top: float, bottom: float, reach: float) -> None:
    """Shade the side on which an estimate supports the claim, and dash its margin."""
    low, high = max(claim.side[0], -reach), min(claim.side[1], reach)
    ax.fill_between([low, high], top, bottom, color=SIDE, linewidth=0, zorder=0.5)
    ax.vlines(0, top, bottom, color="#222222", linewidth=1, zorder=1)
    bounds = [bound for bound in claim.side if np.isfinite(bound)] if claim.margin else []
    dashes = dict(color="#444444", linestyle=(0, (3, 2)), linewidth=1, zorder=1)
    ax.vlines(bounds, top, bottom, **dashes)


def _draw_estimate(ax: Axes, row: Estimate, at: float, reach: float) -> None:
    """Draw an estimate with its interval, an arrow where that goes on, and a dot per seed.

    Two seeds are two dots: their interval, which has one degree of freedom, is drawn pale.
    """
    if pd.isna(row.value):
        return
    colour, marker = VERDICTS[row.verdict]
    marker = POOLED if row.pooled else marker
    ends = [max(row.low, -reach), min(row.high, reach)]
    dashes = (0, (2, 1.2)) if row.seeds == 1 else "solid"
    wide = 2.4 if row.pooled else 1.5
    pale = 0.35 if row.seeds == 2 else 1.0
    ax.plot(ends, [at, at], color=colour, linewidth=wide, linestyle=dashes, alpha=pale, zorder=2)
    for end, sign, arrow in ((row.low, -1, "<"), (row.high, 1, ">")):
        if sign * end > reach:
            ax.plot(sign * reach, at, arrow, color=colour, markersize=5, alpha=pale, clip_on=False)
    edge = dict(markeredgecolor="white", markeredgewidth=0.6, linestyle="none")
    size = 9 if row.pooled else 7
    ax.plot(row.value, at, marker=marker, color=colour, markersize=size, zorder=3, **edge)
    ax.plot(
        row.by_seed,
        np.full(len(row.by_seed), at + 0.22),
        linestyle="none",
        marker="o",
        markersize=3.2,
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=0.9,
        zorder=3,
    )


def _write_estimate(ax: Axes, row: Estimate, top: float, bottom: float) -> None:
    """Write an estimate: on the right, or on a phone above its line with the verdict."""
    across, grey = ax.get_yaxis_transform(), "#767676" if pd.isna(row.value) else "#222222"
    name = f"{row.study}: " if row.study else ""
    if not is_narrow():
        place = dict(transform=across, va="center", fontsize=8, color=grey)
        ax.text(1.02, (top + bottom) / 2, name + row.text, **place)
        return
    verdict = "" if pd.isna(row.value) else f", {row.verdict}"
    colour = grey if pd.isna(row.value) else VERDICTS[row.verdict][0]
    place = dict(transform=across, va="bottom", fontsize=8, color=colour, fontweight="bold")
    ax.text(0.0, top - 0.06, name + row.text + verdict, **place)


def _explain(ax: Axes, claims: list[ForestClaim]) -> None:
    """Explain the verdicts, dots, dashes and shades that a forest plot shows."""
    every = [row for claim in claims for row in claim.rows]
    used = [v for v in VERDICTS if v in {row.verdict for row in every} and v != "not measured"]
    edge = dict(markeredgecolor="white", markersize=7)
    handles = [
        Line2D([], [], color=VERDICTS[v][0], marker=VERDICTS[v][1], label=v, **edge) for v in used
    ]
    if any(row.pooled for row in every):
        diamond = dict(marker=POOLED, linestyle="none", color="#767676", **edge)
        handles.append(Line2D([], [], label="pooled over studies", **diamond))
    if any(len(row.by_seed) for row in every):
        dot = dict(marker="o", linestyle="none", markersize=3.2, color="#767676")
        handles.append(Line2D([], [], label="one seed", markerfacecolor="white", **dot))
    if any(row.seeds == 1 for row in every):
        dashes = dict(color="#767676", linestyle=(0, (2, 1.2)))
        handles.append(Line2D([], [], label="one seed: questions only", **dashes))
    if any(row.seeds == 2 for row in every):
        pale = dict(color="#767676", alpha=0.35)
        handles.append(Line2D([], [], label="interval of 2 seeds", **pale))
    if any(claim.margin for claim in claims):
        dashes = dict(color="#444444", linestyle=(0, (3, 2)), linewidth=1)
        handles.append(Line2D([], [], label="margin", **dashes))
    handles.append(Patch(color=SIDE, label="supports the claim"))
    place_legend(ax, 4, handles)


def _find_reach(claims: list[ForestClaim]) -> float:
    """Return how far the axis goes on both sides, in points."""
    ends = [end for claim in claims for row in claim.rows for end in row.spans if pd.notna(end)]
    bounds = [bound for claim in claims for bound in claim.side if np.isfinite(bound)]
    return min(max([6.0, *(abs(end) for end in [*ends, *bounds])]) * 1.08, 100.0)


def forest(table: pd.DataFrame, pooled: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Draw every claim's estimate and 95 % interval, in points.

    Colour and marker say the verdict, the shade where an estimate would support the claim, and
    small dots what each seed gave, where the table has `by_seed`. `table`: verdicts of one or
    several studies (then a line each, and `pooled`, a `pooling.Pool`'s table, as a diamond where it
    is over two studies or more), grouped by `family` where it has that column. Claims without an
    estimate are listed as not measured; a claim in other units (per 100 tokens) is left out.
    """
    table = table[table["measure"] != "correct_per_100_tokens"]
    several = table["study"].nunique() > 1 or pooled is not None
    claims = _lay_out(table, pooled, several)
    y = claims[-1].bottom + GAP if claims else 1.0
    ax = make_axes(ax, 8.2 if several else 7.6, INCH * y + 1.5)
    reach = _find_reach(claims)
    for n, claim in enumerate(claims):
        if n % 2 == 0:
            around = (claim.top - GAP / 2, claim.bottom + GAP / 2)
            ax.axhspan(*around, color="#F6F6F6", linewidth=0, zorder=0)
        _draw_words(ax, claim)
        for i, row in enumerate(claim.rows):
            top, bottom = _strip(claim, i)
            if pd.notna(row.value):
                whole = not is_narrow() and len(claim.rows) == 1
                pad = GAP / 2 if whole else 0
                _draw_side(ax, claim, top - pad, bottom + pad, reach)
            _draw_estimate(ax, row, (top + bottom) / 2, reach)
            _write_estimate(ax, row, top, bottom)
    ax.set(ylim=(y - 0.2, -0.25), xlim=(-reach, reach), yticks=[])
    ax.grid(not is_narrow(), axis="x")
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    unit = "Difference of the arms compared (points"
    ax.set_xlabel(
        f"{unit};\nline: 95 % interval)" if is_narrow() else f"{unit}; line: 95 % interval)"
    )
    _explain(ax, claims)
    return ax
