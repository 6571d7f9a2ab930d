"""Tables -> figures.

Each function takes a DataFrame (or arrays) and draws on an Axes that it returns; none computes
statistics: intervals come from `stats`. Imports no torch.

One style for all: the Okabe-Ito palette (colour-blind safe), and hatches, markers and dashes that
carry the same distinction in greyscale. Accuracies are drawn in percent, differences in points (1
point = 1 % of the questions).
"""

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cotdistill.arms import CORRUPTIONS, PLACEMENTS, corruption_of, shown_in
from cotdistill.files import atomic_write

# placement -> colour (Okabe and Ito 2008; also apart in lightness), hatch, marker, dashes
LOOKS = {
    "zero_shot": ("#BBBBBB", "", "s", (0, (1, 2))),
    "label_only": ("#56B4E9", "", "D", (0, (4, 2))),
    "pre_cot": ("#E69F00", "///", "^", (0, (6, 2, 1, 2))),
    "post_cot": ("#0072B2", "", "o", "solid"),
}
VERDICTS = {
    "supported": ("#0072B2", "o"),
    "contradicted": ("#D55E00", "X"),
    "inconclusive": ("#767676", "s"),
    "not measured": ("#BBBBBB", "|"),
    "pooled": ("#000000", "D"),
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


def set_style() -> None:
    """Set the one style: sans serif, light horizontal grid, sizes for a 6-inch wide print.

    Fonts are embedded in the PDF.
    """
    sns.set_theme(context="paper", style="whitegrid", palette=CYCLE)
    mpl.rcParams.update(
        {
            "figure.figsize": (6.0, 3.7),
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
        }
    )


def save(fig: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write stem.pdf and stem.png (folders are made.

    No dates in them, so that equal figures are equal files).
    """
    stem = Path(stem)
    pdf, png = stem.parent / (stem.name + ".pdf"), stem.parent / (stem.name + ".png")
    for path, kind, metadata in (
        (pdf, "pdf", {"CreationDate": None}),
        (png, "png", {"Software": None}),
    ):
        with atomic_write(path) as part:
            fig.savefig(part, format=kind, metadata=metadata)
    return pdf, png


def look(arm: str) -> tuple[str, str, str, object]:
    """Colour, hatch, marker and dashes of an arm: those of its placement."""
    return next(
        (v for k, v in LOOKS.items() if arm.startswith(k)), ("#999933", "...", "v", "solid")
    )


def drawn(accuracy: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Return the rows that a figure shows, as `arms.CORRUPTIONS` says.

    Figures are "placement", "shuffle", "masking" and "key_tokens"; a new arm is there by itself.
    "placement" goes by the order of the placements.
    """
    rows = accuracy[[shown_in(figure, arm) for arm in accuracy["arm"]]]
    if figure == "placement":
        order = [
            next(i for i, name in enumerate(PLACEMENTS) if arm.partition("[")[0] == name)
            for arm in rows["arm"]
        ]
        rows = rows.iloc[np.argsort(order, kind="stable")]
    return rows


def _arm_looks(arms: list[str]) -> list[tuple[str, str, str, object]]:
    """Return the look of each arm: that of its placement.

    An arm that differs from it (another loss, a label weight) keeps the colour, and gets a hatch,
    marker and dashes that no other of these arms has.
    """
    plain = {look(arm)[2] for arm in arms if arm in LOOKS}
    markers = [m for m in MARKERS if m not in plain]
    others = [arm for arm in arms if arm not in LOOKS]
    found = []
    for arm in arms:
        i = others.index(arm) if arm in others else None
        found.append(
            look(arm)
            if i is None
            else (look(arm)[0], HATCHES[2 + i % 6], markers[i % len(markers)], DASHES[(4 + i) % 8])
        )
    return found


def _axes(ax: Axes | None, width: float = 6.0, height: float = 3.7) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]


def short(arm: str) -> str:
    """Break an arm's label into at most a few lines.

    "post_cot_kept[15,random]" -> "post_cot / kept / 15, random".
    """
    name, _, detail = arm.rstrip("]").partition("[")
    for placement in ("pre_cot", "post_cot"):
        name = name.replace(f"{placement}_", f"{placement}\n")
    name = (
        name.replace("other_same", "other,\nsame answer")
        .replace("length_matched", "length\nmatched")
        .replace("no_label", "no label\nwords")
    )
    detail = (
        detail.replace(",", ", ")
        .replace("integrated_gradients", "integrated gradients")
        .replace("_", " ")
    )
    return name + ("\n" + "\n".join(textwrap.wrap(detail, 13)) if detail else "")


def _draw_line(ax: Axes, value: float, text: str, dashes, colour: str = "#444444") -> None:
    """Draw a horizontal reference line, named in the legend."""
    ax.axhline(100 * value, color=colour, linestyle=dashes, linewidth=1.1, zorder=1.5, label=text)


def _references(
    ax: Axes, accuracy: pd.DataFrame | None, chance: float | None, label_only: bool = True
) -> None:
    """Chance and label_only (with its interval as a band) behind the data, where known."""
    row = accuracy[accuracy["arm"] == "label_only"] if accuracy is not None and label_only else ()
    if len(row):
        row = row.iloc[0]
        ax.axhspan(
            100 * row["low"],
            100 * row["high"],
            color=LOOKS["label_only"][0],
            alpha=0.18,
            linewidth=0,
            zorder=0.5,
        )
        _draw_line(ax, row["accuracy"], "label_only", LOOKS["label_only"][3], "#2B7FB5")
    if chance is not None:
        _draw_line(ax, chance, "chance", (0, (1, 1.5)))


def _place_legend(ax: Axes, columns: int = 4, handles: list | None = None) -> None:
    """Put the legend above the axes, where it covers nothing.

    A title belongs to the figure (fig.suptitle).
    """
    handles = ax.get_legend_handles_labels()[0] if handles is None else handles
    if handles:
        ax.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.01),
            ncols=min(columns, len(handles)),
            handlelength=3.2,
        )


def _bars(ax: Axes, rows: pd.DataFrame, colours: list, hatches: list, labels: list) -> None:
    """Bars of accuracy (percent) with intervals and their numbers, the y axis from 0."""
    x = np.arange(len(rows))
    value, low, high = (100 * rows[c].to_numpy(float) for c in ("accuracy", "low", "high"))
    for i in x:
        ax.bar(
            i,
            value[i],
            width=0.7,
            color=colours[i],
            hatch=hatches[i],
            edgecolor="#222222",
            linewidth=0.7,
            zorder=2,
        )
    ax.errorbar(
        x,
        value,
        [value - low, high - value],
        fmt="none",
        ecolor="#111111",
        elinewidth=1,
        capsize=3,
        zorder=3,
    )
    for i in x:
        ax.annotate(
            f"{value[i]:.1f}",
            (i, high[i]),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            zorder=4,
            bbox=dict(boxstyle="square,pad=0.15", facecolor="white", edgecolor="none", alpha=0.85),
        )
    ax.set_xticks(x, labels)
    ax.set_xlim(-0.6, len(rows) - 0.4)
    ax.set_ylim(0, min(max(high.max() * 1.12, 10), 112))
    ax.set_yticks([t for t in ax.get_yticks() if t <= 100])
    ax.set_ylabel("Accuracy (% of test questions)")


def _count_text(rows: pd.DataFrame) -> str:
    """Return "500 questions, 3 seeds" for an axis label: what the numbers rest on."""
    trained = rows[rows["arm"] != "zero_shot"] if (rows["arm"] != "zero_shot").any() else rows
    span = lambda c: " to ".join(f"{n:,}" for n in sorted({trained[c].min(), trained[c].max()}))
    return (
        f"{span('n')} test questions, {span('seeds')} "
        f"seed{'s' if trained['seeds'].max() > 1 else ''}"
    )


def placement_bars(
    accuracy: pd.DataFrame,
    chance: float | None = None,
    arms: list[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the accuracy of the arms without a corruption (or `arms`) with 95 % intervals.

    The rows come from accuracy_table.
    """
    arms = [a for a in (arms or drawn(accuracy, "placement")["arm"]) if a in set(accuracy["arm"])]
    rows = accuracy.set_index("arm", drop=False).loc[arms]
    ax = _axes(ax, max(4.2, 1.15 * len(rows) + 0.8))
    looks = _arm_looks(arms)
    _bars(ax, rows, [x[0] for x in looks], [x[1] for x in looks], [short(a) for a in arms])
    _references(ax, None, chance)
    ax.set_xlabel(f"Training target ({_count_text(rows)}; bars: 95 % interval)")
    _place_legend(ax)
    return ax


def shuffle_plot(
    accuracy: pd.DataFrame, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw pre_cot and post_cot, intact and corrupted, beside the label_only band.

    Corrupted are shuffled, swapped, filler and the other kinds that `arms.CORRUPTIONS` puts into
    this figure.
    """
    corrupted = set(drawn(accuracy, "shuffle")["arm"])
    parts = {
        p: [a for a in accuracy["arm"] if a == p or a in corrupted and a.startswith(p)]
        for p in ("pre_cot", "post_cot")
    }
    kinds = list(
        dict.fromkeys(a.removeprefix(p).lstrip("_") for p, arms in parts.items() for a in arms)
    )
    ax = _axes(ax, max(5.0, 1.25 * len(kinds) + 1.5))
    for shift, (placement, arms) in zip((-0.13, 0.13), parts.items(), strict=False):
        rows = accuracy.set_index("arm").loc[arms]
        x = np.array([kinds.index(a.removeprefix(placement).lstrip("_")) for a in arms]) + shift
        value, low, high = (100 * rows[c].to_numpy(float) for c in ("accuracy", "low", "high"))
        colour, _, marker, _ = look(placement)
        ax.errorbar(
            x,
            value,
            [value - low, high - value],
            fmt=marker,
            color=colour,
            ecolor=colour,
            markersize=7,
            markeredgecolor="#222222",
            markerfacecolor=colour if placement == "post_cot" else "white",
            markeredgewidth=1,
            elinewidth=1.4,
            capsize=3,
            label=placement,
            zorder=3,
        )
    _references(ax, accuracy, chance)
    names = [
        "intact" if not k else short(k).replace("[", "\n").replace("shuffled\n", "shuffled\nby ")
        for k in kinds
    ]
    ax.set_xticks(range(len(kinds)), names)
    ax.set_xlim(-0.5, len(kinds) - 0.5)
    ax.set_ylabel("Accuracy (% of test questions)")
    ax.set_xlabel(f"Rationale in training ({_count_text(accuracy)}; 95 % intervals)")
    _place_legend(ax)
    return ax


def masking_curves(
    accuracy: pd.DataFrame, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw accuracy against the share of rationale tokens masked, with interval bands.

    A line per placement and order. The intact arm is the point at 0 %; label_only is the band that
    full masking should reach.
    """
    kinds = "|".join(kind for kind, entry in CORRUPTIONS.items() if entry.figure == "masking")
    detail = r"\[(?P<share>[\d.]+)%,?(?P<order>[^\]]*)\]"
    pattern = rf"^(?P<placement>pre_cot|post_cot)_(?P<kind>{kinds}){detail}$"
    found = pd.concat([accuracy, accuracy["arm"].str.extract(pattern)], axis=1)
    masked = found[found["share"].notna()].assign(share=lambda t: t["share"].astype(float))
    ax = _axes(ax)
    for i, ((placement, kind, order), rows) in enumerate(
        masked.groupby(["placement", "kind", "order"], sort=False)
    ):
        intact = accuracy[accuracy["arm"] == placement].assign(share=0.0)
        rows = pd.concat([rows, intact] if not (rows["share"] == 0).any() else [rows]).sort_values(
            "share"
        )
        value, low, high = (100 * rows[c].to_numpy(float) for c in ("accuracy", "low", "high"))
        colour, marker = CYCLE[i % 8], MARKERS[i % 8]
        name = ", ".join(
            filter(
                None,
                (
                    placement,
                    kind.removeprefix("masked").replace("_", " "),
                    order.replace("_", " ").replace(":", " first: "),
                ),
            )
        )
        ax.plot(
            rows["share"],
            value,
            color=colour,
            marker=marker,
            linestyle=DASHES[i % 8],
            label=name,
            zorder=3,
        )
        ax.fill_between(
            rows["share"].to_numpy(float), low, high, color=colour, alpha=0.13, linewidth=0
        )
    _references(ax, accuracy, chance)
    ax.set_xticks(sorted({0.0, *masked["share"]}))
    ax.set_xlabel(
        f"Rationale tokens masked in training (%)\n{_count_text(accuracy)}; bands: 95 % intervals"
    )
    ax.set_ylabel("Accuracy (% of test questions)")
    _place_legend(ax, 2)
    return ax


def key_tokens_bars(
    accuracy: pd.DataFrame, chance: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw each placement on its k key tokens by each selector.

    They stand between the full rationale and label_only (band).
    """
    kept = list(drawn(accuracy, "key_tokens")["arm"])
    placements = [
        p
        for p in ("pre_cot", "post_cot")
        if p in set(accuracy["arm"]) and any(a.startswith(p) for a in kept)
    ]
    arms = placements + kept
    rows = accuracy.set_index("arm", drop=False).loc[arms]
    # "post_cot_kept[15,random]" -> "kept, random": one colour and hatch whatever the number
    method = {
        a: ",".join([corruption_of(a), *a.partition("[")[2].rstrip("]").split(",")[1:2]])
        for a in kept
    }
    where = {a: list(dict.fromkeys(method.values())).index(method[a]) + 1 for a in kept}
    colours = [look(a)[0] if a not in where else CYCLE[where[a] % 8] for a in arms]
    hatches = ["" if a not in where else HATCHES[where[a] % 8] for a in arms]
    several = len({a.partition("_cot")[0] for a in kept}) > 1
    labels = [
        ("full\nrationale" if not several else f"{a}\nfull")
        if a not in where
        else short(a)
        if several
        else short(a).split("\n", 1)[1].removeprefix("kept\n")
        for a in arms
    ]
    ax = _axes(ax, max(4.6, 1.05 * len(rows) + 1.0))
    _bars(ax, rows, colours, hatches, labels)
    _references(ax, accuracy, chance)
    ax.set_xlabel(
        f"Number of tokens kept, and the method ({_count_text(rows)}; bars: 95 % interval)"
    )
    _place_legend(ax)
    return ax


def learning_curves(
    history: pd.DataFrame,
    measure: str = "validation_accuracy",
    arms: list[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a measure of the run history against optimiser steps.

    A line per arm (mean of seeds), the seeds' range as a band. `measure`: validation_accuracy
    (drawn in percent), loss, label_loss or rationale_loss (nats per token). Rows where it was not
    measured are skipped.
    """
    rows = history[history[measure].notna()]
    arms = [a for a in (arms or dict.fromkeys(history["arm"])) if a in set(rows["arm"])]
    scale = 100 if measure == "validation_accuracy" else 1
    ax = _axes(ax)
    for i, arm in enumerate(arms):
        of_arm = rows[rows["arm"] == arm].astype({measure: float})
        by_step = scale * of_arm.groupby("step")[measure].agg(["mean", "min", "max"])
        colour, _, marker, dashes = (
            look(arm) if arm in LOOKS else (CYCLE[i % 8], "", MARKERS[i % 8], DASHES[i % 8])
        )
        ax.plot(
            by_step.index,
            by_step["mean"],
            color=colour,
            marker=marker,
            linestyle=dashes,
            label=arm,
            markevery=max(1, len(by_step) // 10),
            zorder=3,
        )
        ax.fill_between(
            by_step.index.to_numpy(float),
            by_step["min"],
            by_step["max"],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    seeds = rows["seed"].nunique()
    ax.set_xlabel(
        "Optimiser steps "
        f"({f'line: mean of {seeds} seeds; band: their range' if seeds > 1 else '1 seed'})"
    )
    ax.set_ylabel(
        "Validation accuracy (%)"
        if scale == 100
        else {
            "loss": "Training loss",
            "label_loss": "Loss of label tokens",
            "rationale_loss": "Loss of rationale tokens",
        }.get(measure, measure)
        + " (nats per token)"
    )
    _place_legend(ax, 3 if max(map(len, arms), default=0) < 15 else 2)
    return ax


@dataclass(frozen=True)
class _ForestClaim:
    """Hold one claim's part of a forest plot; heights in units of y, 0.36 inch each.

    rows: (study, estimate, low, high, verdict, seeds), fractions.
    """

    top: float
    height: float
    words: str
    contrast: str
    rows: list[tuple]
    margin: float
    rule: str

    @property
    def words_height(self) -> float:
        """Return the height of the claim's words."""
        return 0.40 * (self.words.count("\n") + 1)

    @property
    def contrast_height(self) -> float:
        """Return the height of the contrast under them."""
        return 0.33 * (self.contrast.count("\n") + 1) * bool(self.contrast)


def _forest_claims(
    table: pd.DataFrame, pooled: pd.DataFrame | None, several: bool
) -> list[_ForestClaim]:
    """Lay the claims of a forest plot out, from the top down."""
    claims, y = [], 0.0
    for claim, group in table.groupby("claim", sort=False):
        words = "\n".join(textwrap.wrap(group["words"].iloc[0], 46))
        rows = [
            (r.study if several else "", r.estimate, r.low, r.high, r.verdict, r.seeds)
            for r in group.itertuples()
        ]
        match = pooled[pooled["claim"] == claim] if pooled is not None else ()
        if len(match):
            m = match.iloc[0]
            name = f"pooled ({m['studies']} studies)"
            rows.append((name, m["estimate"], m["low"], m["high"], "pooled", 0))
        contrast = next((c for c in group["contrast"] if c), "")
        contrast = "\n".join(textwrap.wrap(contrast or "", 58, break_on_hyphens=False))
        rule = group["rule"].iloc[0]
        margin = group["margin"].iloc[0] if rule in ("equivalence", "noninferiority") else 0
        one = _ForestClaim(y, 0.62 * len(rows), words, contrast, rows, margin, rule)
        one = replace(one, height=max(one.height, one.words_height + one.contrast_height))
        claims.append(one)
        y += one.height + 0.42
    return claims


def _draw_claim_words(ax: Axes, claim: _ForestClaim) -> None:
    """Write a claim and its contrast on the left, and draw its margin as a tick pair."""
    start = claim.top + (claim.height - claim.words_height - claim.contrast_height) / 2
    left = dict(transform=ax.get_yaxis_transform(), ha="right", va="top")
    ax.text(-0.02, start, claim.words, fontsize=8.5, **left)
    at = start + claim.words_height
    ax.text(-0.02, at, claim.contrast, fontsize=7, color="#5A5A5A", **left)
    if claim.margin:
        bounds = (-100 * claim.margin, 100 * claim.margin)
        ax.vlines(
            bounds[:1] if claim.rule == "noninferiority" else bounds,
            claim.top - 0.21,
            claim.top + claim.height + 0.21,
            color="#444444",
            linestyle=(0, (3, 2)),
            linewidth=1,
            zorder=1,
        )


def _draw_estimate(ax: Axes, at: float, row: tuple, reach: float) -> None:
    """Draw one estimate with its interval (cut at `reach` points), and write it on the right."""
    study, estimate, low, high, verdict, seeds = row
    colour, marker = VERDICTS[verdict]
    if pd.isna(estimate):
        text = "not measured"
    else:
        ax.plot(
            [max(100 * low, -reach), min(100 * high, reach)],
            [at, at],
            color=colour,
            zorder=2,
            linewidth=2 if verdict == "pooled" else 1.5,
            linestyle=(0, (2, 1.2)) if pd.notna(seeds) and seeds == 1 else "solid",
        )
        ax.plot(
            100 * estimate,
            at,
            marker=marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markerfacecolor=colour,
            markeredgewidth=0.6,
            zorder=3,
        )
        text = f"{100 * estimate:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    ax.text(
        1.02,
        at,
        (f"{study}: " if study else "") + text,
        transform=ax.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color="#222222" if pd.notna(estimate) else "#767676",
    )


def _forest_legend(ax: Axes, claims: list[_ForestClaim]) -> None:
    """Explain the verdicts, dashes and margins that a forest plot shows."""
    every = [row for claim in claims for row in claim.rows]
    used = [v for v in VERDICTS if v in {row[4] for row in every} and v != "not measured"]
    edge = dict(markeredgecolor="white", markersize=7)
    handles = [
        Line2D([], [], color=VERDICTS[v][0], marker=VERDICTS[v][1], label=v, **edge) for v in used
    ]
    if any(pd.notna(row[5]) and row[5] == 1 for row in every):
        dashes = dict(color="#767676", linestyle=(0, (2, 1.2)))
        handles.append(Line2D([], [], label="one seed: questions only", **dashes))
    if any(claim.margin for claim in claims):
        dashes = dict(color="#444444", linestyle=(0, (3, 2)), linewidth=1)
        handles.append(Line2D([], [], label="margin", **dashes))
    _place_legend(ax, 3, handles)


def forest(table: pd.DataFrame, pooled: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Draw every claim's estimate and 95 % interval, in points.

    Colour and marker say the verdict, a tick pair the margin. `table`: verdicts of one or several
    studies (then a row each, and `pooled` from verdicts.pool as a diamond). Claims without an
    estimate are listed as not measured; a claim in other units (per 100 tokens) is left out.
    """
    table = table[table["measure"] != "correct_per_100_tokens"]
    several = table["study"].nunique() > 1 or pooled is not None
    claims = _forest_claims(table, pooled, several)
    y = sum(claim.height + 0.42 for claim in claims)
    ax = _axes(ax, 8.2 if several else 7.6, 0.36 * y + 1.5)
    ends = [end for claim in claims for row in claim.rows for end in row[2:4] if pd.notna(end)]
    reach = min(max([6.0] + [abs(100 * end) for end in ends]) * 1.08, 100.0)
    for n, claim in enumerate(claims):
        if n % 2 == 0:
            around = (claim.top - 0.21, claim.top + claim.height + 0.21)
            ax.axhspan(*around, color="#F4F4F4", linewidth=0, zorder=0)
        _draw_claim_words(ax, claim)
        for i, row in enumerate(claim.rows):
            _draw_estimate(ax, claim.top + claim.height * (i + 0.5) / len(claim.rows), row, reach)
    ax.axvline(0, color="#222222", linewidth=1, zorder=1)
    ax.set(ylim=(y - 0.2, -0.25), xlim=(-reach, reach), yticks=[])
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Difference in accuracy of the arms compared (points; line: 95 % interval)")
    _forest_legend(ax, claims)
    return ax


def cost_against_accuracy(
    accuracy: pd.DataFrame,
    chance: float | None = None,
    arms: list[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against tokens generated per test question (log scale).

    What reasoning at test time costs and brings.

    Marks are moved a few points sideways, so that the intervals of arms with equal costs do not
    cover each other.
    """
    arms = [a for a in (arms or drawn(accuracy, "placement")["arm"]) if a in set(accuracy["arm"])]
    rows = accuracy.set_index("arm", drop=False).loc[arms]
    ax = _axes(ax, 5.4)
    for (arm, row), (colour, _, marker, _) in zip(rows.iterrows(), _arm_looks(arms), strict=True):
        value, low, high = (100 * row[c] for c in ("accuracy", "low", "high"))
        shift = mpl.transforms.ScaledTranslation(
            6 / 72 * (arms.index(arm) - (len(arms) - 1) / 2),
            0,
            # Intervals of equal costs stay apart
            ax.figure.dpi_scale_trans,
        )
        ax.errorbar(
            max(row["tokens_per_question"], 0.5),
            value,
            [[value - low], [high - value]],
            fmt=marker,
            color=colour,
            markersize=8,
            markeredgecolor="#222222",
            ecolor="#444444",
            elinewidth=1,
            capsize=3,
            label=arm,
            zorder=3,
            transform=ax.transData + shift,
        )
    _references(ax, None, chance)
    ax.set_xscale("log")
    tokens = rows["tokens_per_question"].clip(lower=0.5)
    ends = tokens.min() / 1.6, tokens.max() * 1.6
    values = [100 * v for v in [*rows["low"], *rows["high"], *([] if chance is None else [chance])]]
    # Shifted marks do not count for automatic limits
    ax.set_ylim(min(values) - 2, max(values) + 2)
    ax.set_xlim(*ends)
    ax.set_xticks(
        [
            t
            for t in (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500)
            if ends[0] <= t <= ends[1]
        ]
    )
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda t, _: f"{t:g}"))
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set_xlabel(f"Tokens generated per test question (log scale; {_count_text(rows)})")
    ax.set_ylabel("Accuracy (% of test questions)")
    _place_legend(ax, 3)
    return ax


LETTER_WIDTH = 0.078  # inches, of the 9-point monospaced font of `token_heatmap`


def _place_tokens(tokens: list[str], width: float) -> list[tuple[float, int, str]]:
    """Set tokens as running text of this width: (inches from the left, line, text) of each."""
    places, x, line = [], 0.0, 0
    for token in tokens:
        text = token.replace("\n", "⏎")
        if x + LETTER_WIDTH * len(text) > width - 0.2 and x > 0:
            x, line, text = 0.0, line + 1, text.lstrip(" ") or " "
        places.append((x, line, text))
        x += LETTER_WIDTH * len(text)
        if token.endswith("\n"):
            x, line = 0.0, line + 1
    return places


def _draw_token(ax: Axes, place: tuple[float, int, str], colour: tuple, strength: float) -> None:
    """Draw one token on its colour; strength (-1 to 1) is its score by the largest one."""
    (x, line, text), end = place, place[0] + LETTER_WIDTH * len(place[2])
    dark = mpl.colors.rgb_to_hsv(colour[:3])[2] < 0.8 or abs(strength) > 0.8
    corner = (x, -0.27 * line - 0.11)
    ax.add_patch(mpl.patches.Rectangle(corner, end - x, 0.23, color=colour, linewidth=0))
    for i, letter in enumerate(text):
        ax.text(
            x + LETTER_WIDTH * (i + 0.5),
            -0.27 * line,
            letter,
            ha="center",
            va="center",
            fontsize=9,
            family="DejaVu Sans Mono",
            color="white" if dark else "black",
        )
    if strength < -0.02:
        under = [-0.27 * line - 0.1] * 2
        ax.plot([x + 0.01, end - 0.01], under, color="black", linewidth=0.9)


def token_heatmap(
    tokens: list[str],
    scores: np.ndarray,
    title: str = "",
    width: float = 6.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw a rationale's tokens as running text, shaded by score.

    Orange for, blue against, white for none. `scores` (one a token, any unit) are scaled by the
    largest absolute one. In greyscale, negative scores are also underlined. Spaces inside a token
    are kept; a line break starts a new line.
    """
    scores = np.asarray(scores, float)
    if len(tokens) != len(scores):
        raise ValueError(f"{len(tokens)} tokens and {len(scores)} scores; expected as many")
    top = np.abs(scores).max() or 1.0
    shades = mpl.colors.LinearSegmentedColormap.from_list
    positive = shades("", ["#FFFFFF", "#F6C16B", "#D55E00"])
    negative = shades("", ["#FFFFFF", "#9CCBE8", "#0072B2"])
    places = _place_tokens(tokens, width)
    lines = max(place[1] for place in places) + 1 if places else 1
    ax = _axes(ax, width, 0.27 * lines + 0.75 + 0.25 * bool(title))
    for place, score in zip(places, scores, strict=True):
        colour = (positive if score >= 0 else negative)(abs(score) / top)
        _draw_token(ax, place, colour, score / top)
    y = (-0.27 * (lines - 1) - 0.16, 0.16)
    ax.set(xlim=(0, width - 0.1), ylim=y, xticks=[], yticks=[], aspect="equal")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, loc="left")
    ends = [negative(1.0), negative(0.5), "#FFFFFF", positive(0.5), positive(1.0)]
    bar = ax.figure.colorbar(
        mpl.cm.ScalarMappable(mpl.colors.Normalize(-1, 1), shades("", ends)),
        ax=ax,
        orientation="horizontal",
        aspect=40,
        shrink=0.55,
        pad=0.04,
        ticks=[-1, 0, 1],
    )
    bar.ax.set_xticklabels(["against the label", "0", "for the label"])
    bar.outline.set_linewidth(0.5)
    return ax


def agreement_matrix(
    matrix: pd.DataFrame, label: str = "Kendall's τ", ax: Axes | None = None
) -> Axes:
    """Agreement between attribution methods.

    A square table (methods x methods), its values written in the cells.
    """
    names = [str(n).replace("_", " ") for n in matrix.index]
    size = 0.72 * len(names) + 1.9
    ax = _axes(ax, size + 0.9, size)
    low = 0 if np.nanmin(matrix.to_numpy(float)) >= 0 else -1
    sns.heatmap(
        matrix.to_numpy(float),
        vmin=low,
        vmax=1,
        cmap="cividis" if low == 0 else "PuOr",
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 8},
        square=True,
        linewidths=0.6,
        linecolor="white",
        ax=ax,
        cbar_kws={"label": label, "shrink": 0.75},
    )
    ax.set_xticks(
        np.arange(len(names)) + 0.5, names, rotation=40, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(np.arange(len(names)) + 0.5, names, rotation=0)
    ax.set(xlabel="", ylabel="")
    return ax


def deletion_curves(
    curves: pd.DataFrame,
    ylabel: str = "log p(label | question, rationale) (nats)",
    xlabel: str = "Rationale tokens deleted, most important first (%)",
    ax: Axes | None = None,
) -> Axes:
    """Draw deletion (or insertion) curves.

    A line per attribution method, random always last and in grey. `curves`: columns method,
    fraction (0 to 1), value, and low, high where known (drawn as a band).
    """
    methods = sorted(dict.fromkeys(curves["method"]), key=lambda m: m == "random")
    ax = _axes(ax)
    for i, method in enumerate(methods):
        rows = curves[curves["method"] == method].sort_values("fraction")
        colour = "#767676" if method == "random" else CYCLE[i % 8]
        share = 100 * rows["fraction"].to_numpy(float)
        ax.plot(
            share,
            rows["value"],
            color=colour,
            marker=MARKERS[i % 8],
            linestyle=DASHES[i % 8],
            label=method.replace("_", " "),
            markevery=max(1, len(rows) // 10),
            zorder=3,
        )
        if {"low", "high"} <= set(rows):
            ax.fill_between(
                share,
                rows["low"].astype(float),
                rows["high"].astype(float),
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _place_legend(ax, 3)
    return ax


def interval_lines(
    rows: pd.DataFrame,
    xlabel: str,
    ylabel: str,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a value with its 95 % interval along something, a line per group.

    rows: columns line (the group's name), x (whole numbers are marked), value, low, high.
    reference: a value to look for, such as 0, drawn as a thin line.
    """
    ax = _axes(ax, 7.0, 4.0)
    names = list(dict.fromkeys(rows["line"]))
    for number, name in enumerate(names):
        part = rows[rows["line"] == name].sort_values("x")
        colour = CYCLE[number % len(CYCLE)]
        x = part["x"].to_numpy(float)
        low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
        ax.plot(x, part["value"], color=colour, marker="o", markersize=4, label=name, zorder=3)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if reference is not None:
        ax.axhline(reference, color="#444444", linewidth=0.8, zorder=1)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _place_legend(ax, 3)
    return ax


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss of the label's tokens on the left, validation accuracy on the right."""
    fig, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
    learning_curves(history, "label_loss", ax=axes[0])
    learning_curves(history, "validation_accuracy", ax=axes[1])
    return fig


def curves_by_placement(history: pd.DataFrame) -> Figure:
    """Draw the validation accuracy of pre_cot arms on the left and of post_cot arms on the right.

    label_only is in both panels.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, place in zip(axes, ("pre_cot", "post_cot"), strict=True):
        arms = [a for a in history["arm"].unique() if a.startswith(place) or a == "label_only"]
        learning_curves(history, "validation_accuracy", arms=arms, ax=axis)
    return fig


def token_heatmaps(tokens: list[str], scores: dict[str, np.ndarray], title: str) -> Figure:
    """Draw a `token_heatmap` of the same tokens for each method, one below the other.

    scores: method -> one score per token.
    """
    fig, axes = plt.subplots(len(scores), 1, figsize=(7.5, 6.2))
    for axis, (method, values) in zip(np.atleast_1d(axes), scores.items(), strict=True):
        token_heatmap(tokens, values, title=f"{method}: {title}", ax=axis)
    return fig


# What `show_figure` can draw; a figure's file has the same name
FIGURES = {
    "learning_curves": training_curves,
    "placement": placement_bars,
    "cost": cost_against_accuracy,
    "shuffle": shuffle_plot,
    "shuffle_learning_curves": curves_by_placement,
    "heatmap": token_heatmaps,
    "deletion": deletion_curves,
    "agreement": agreement_matrix,
    "key_tokens": key_tokens_bars,
    "masking": masking_curves,
    "forest": forest,
    "lasting": interval_lines,
    "alignment": interval_lines,
    "label_dial": interval_lines,
    "lens": interval_lines,
}


def show_figure(folder: str | Path, name: str, *tables, **options) -> None:
    """Draw a figure of `FIGURES`, save it as PDF and PNG in folder/figures, and display it.

    tables, options: what its function takes.
    """
    set_style()
    drawing = FIGURES[name](*tables, **options)
    save(
        drawing if isinstance(drawing, Figure) else drawing.figure, Path(folder) / "figures" / name
    )
    plt.show()
