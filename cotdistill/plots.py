"""Tables -> figures.

Each function takes a DataFrame (or arrays) and draws on an Axes that it returns; none computes
statistics: intervals come from `stats`. Imports no torch.

The style stands in figure_style.py, the forest plot in forest_plot.py. Accuracies are drawn in
percent, differences in points (1 point = 1 % of the questions). A table that has a column `by_seed`
(fractions) shows a dot per seed. Figures are drawn for a page, or, after `set_style(narrow=True)`,
for a phone: bars then lie down, and panels stand one below the other.
"""

import textwrap
from itertools import zip_longest
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

from cotdistill.arms import CORRUPTIONS, PLACEMENTS, PROMPTED, corruption_of, shown_in
from cotdistill.figure_style import (
    AGREEMENT_COLOURS,
    CYCLE,
    DASHES,
    HATCHES,
    LOOKS,
    MARKERS,
    PHONE,
    SCORE_COLOURS,
    VERDICTS,
    draw_seed_dots,
    is_narrow,
    look,
    make_axes,
    place_legend,
    save,
    save_as,
    seed_values,
    set_style,
    spread_dots,
)
from cotdistill.forest_plot import forest

__all__ = ["FIGURES", "VERDICTS", "forest", "look", "save", "set_style", "show_figure"]


def drawn(accuracy: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Return the rows that a figure shows, as `arms.CORRUPTIONS` says.

    Figures are "placement", "shuffle", "masking" and "key_tokens"; a new arm is there by itself.
    "placement" goes by the order of the placements.
    """
    rows = accuracy[[shown_in(figure, arm) for arm in accuracy["arm"]]]
    if figure == "placement":
        names = (*PROMPTED, *PLACEMENTS)
        order = [names.index(arm.partition("[")[0]) for arm in rows["arm"]]
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


def _draw_line(
    ax: Axes, value: float, text: str, dashes, colour: str = "#444444", upright: bool = True
) -> None:
    """Draw a reference line at a value of the measure, named in the legend."""
    line = ax.axhline if upright else ax.axvline
    line(100 * value, color=colour, linestyle=dashes, linewidth=1.1, zorder=1.5, label=text)


def _references(
    ax: Axes, accuracy: pd.DataFrame | None, chance: float | None, upright: bool = True
) -> None:
    """Chance and label_only (with its interval as a band) behind the data, where known.

    upright: whether the measure is the y axis.
    """
    row = accuracy[accuracy["arm"] == "label_only"] if accuracy is not None else ()
    if len(row):
        row = row.iloc[0]
        band = _intervals(row.to_frame().T)[0]
        if band:
            span = ax.axhspan if upright else ax.axvspan
            span(*band, color=LOOKS["label_only"][0], alpha=0.18, linewidth=0, zorder=0.5)
        dashes = LOOKS["label_only"][3]
        _draw_line(ax, row["accuracy"], "label_only", dashes, "#2B7FB5", upright)
    if chance is not None:
        _draw_line(ax, chance, "chance", (0, (1, 1.5)), upright=upright)


def _intervals(rows: pd.DataFrame) -> list[tuple[float, float] | None]:
    """Return each row's 95 % interval in percent; None for two seeds whose dots are drawn.

    The interval of two seeds has one degree of freedom and says little more than their dots.
    """
    return [
        None
        if row["seeds"] == 2 and len(seed_values(row))
        else (100 * row["low"], 100 * row["high"])
        for _, row in rows.iterrows()
    ]


def _highest(row: pd.Series, interval: tuple[float, float] | None) -> float:
    """Return where the highest mark of a row ends, in percent; labels stand beyond it."""
    return max([100 * row["accuracy"], *seed_values(row), *(interval or ())])


def _draw_interval(
    ax: Axes, at: float, value: float, interval: tuple[float, float], upright: bool, **style
) -> None:
    """Draw one 95 % interval around a value, upright or lying."""
    error = [[value - interval[0]], [interval[1] - value]]
    place, which = ((at, value), "yerr") if upright else ((value, at), "xerr")
    looks = dict(fmt="none", ecolor="#111111", elinewidth=1, capsize=3, zorder=3)
    ax.errorbar(*place, **{which: error}, **looks | style)


def _bars(ax: Axes, rows: pd.DataFrame, colours: list, hatches: list, labels: list) -> None:
    """Bars of accuracy (percent) from 0, with intervals, a dot per seed, and their numbers.

    The numbers stand beyond the interval and the dots, never on them. On a phone the bars lie.
    """
    upright, intervals = not is_narrow(), _intervals(rows)
    value, tops = 100 * rows["accuracy"].to_numpy(float), []
    draw = ax.bar if upright else ax.barh
    width = "width" if upright else "height"
    for i, (_, row) in enumerate(rows.iterrows()):
        edge = dict(edgecolor="#222222", linewidth=0.7, zorder=2)
        draw(i, value[i], **{width: 0.7}, color=colours[i], hatch=hatches[i], **edge)
        dots = seed_values(row)
        draw_seed_dots(ax, i + spread_dots(len(dots), 0.4), dots, upright)
        tops.append(_highest(row, intervals[i]))
        shift, at = ((0, 4), (i, tops[i])) if upright else ((5, 0), (tops[i], i))
        place = dict(ha="center") if upright else dict(va="center")
        back = dict(boxstyle="square,pad=0.15", facecolor="white", edgecolor="none", alpha=0.85)
        ax.annotate(
            f"{value[i]:.1f}",
            at,
            shift,
            textcoords="offset points",
            fontsize=8,
            zorder=4,
            bbox=back,
            **place,
        )
    known = [i for i, interval in enumerate(intervals) if interval]
    if known:
        low, high = (np.array([intervals[i][end] for i in known]) for end in (0, 1))
        error = [value[known] - low, high - value[known]]
        place = (known, value[known]) if upright else (value[known], known)
        looks = dict(fmt="none", ecolor="#111111", elinewidth=1, capsize=3, zorder=3)
        ax.errorbar(*place, **{"yerr" if upright else "xerr": error}, **looks)
    _frame_bars(ax, labels, max(tops), upright)


def _frame_bars(ax: Axes, labels: list[str], top: float, upright: bool) -> None:
    """Set ticks, limits and the measure's name of bars; top: the highest mark, in percent."""
    ends = (-0.6, len(labels) - 0.4)
    reach = min(max(top * (1.12 if upright else 1.25), 10), 112 if upright else 125)
    if upright:
        ax.set_xticks(range(len(labels)), labels)
        ax.set(xlim=ends, ylim=(0, reach), ylabel="Accuracy (% of test questions)")
        ax.set_yticks([t for t in ax.get_yticks() if t <= 100])
        return
    ax.set_yticks(range(len(labels)), [label.replace("- ", "") for label in labels])
    ax.set(ylim=ends[::-1], xlim=(0, reach), xlabel="Accuracy (% of test questions)")
    ax.set_xticks([t for t in ax.get_xticks() if t <= 100])
    ax.grid(True, axis="x")
    ax.grid(False, axis="y")


def _name_arms(ax: Axes, text: str) -> None:
    """Say what the axis of arms holds, and what the numbers rest on.

    On a phone this stands under the measure's name: the arms' axis has no room for it.
    """
    if not is_narrow():
        ax.set_xlabel("\n".join(textwrap.wrap(text, 84)))  # no longer than the axes
        return
    lines = textwrap.wrap(text, 44)
    ax.set_xlabel("\n".join([ax.get_xlabel(), *lines]))


def _count_text(rows: pd.DataFrame) -> str:
    """Return "500 questions, 3 seeds" for an axis label: what the numbers rest on."""
    untrained = rows["arm"].isin(PROMPTED)
    trained = rows if untrained.all() else rows[~untrained]
    span = lambda c: " to ".join(f"{n:,}" for n in sorted({trained[c].min(), trained[c].max()}))
    return (
        f"{span('n')} test questions, {span('seeds')} "
        f"seed{'s' if trained['seeds'].max() > 1 else ''}"
    )


def _mark_text(rows: pd.DataFrame) -> str:
    """Return what the marks of a figure are, for an axis label: intervals, dots, or both."""
    dots = any(len(seed_values(row)) for _, row in rows.iterrows())
    bars = any(_intervals(rows))
    return ("; bars: 95 % interval" if bars else "") + ("; dots: seeds" if dots else "")


def _bars_height(rows: pd.DataFrame) -> float:
    """Return the height in inches of a figure of bars; on a phone it grows with their number."""
    return 0.52 * len(rows) + 1.3 if is_narrow() else 3.7


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
    ax = make_axes(ax, max(4.2, 1.15 * len(rows) + 0.8), _bars_height(rows))
    looks = _arm_looks(arms)
    _bars(ax, rows, [x[0] for x in looks], [x[1] for x in looks], [short(a) for a in arms])
    _references(ax, None, chance, not is_narrow())
    _name_arms(ax, f"Training target ({_count_text(rows)}{_mark_text(rows)})")
    place_legend(ax)
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
    upright = not is_narrow()
    ax = make_axes(
        ax, max(5.0, 1.25 * len(kinds) + 1.5), 3.7 if upright else 0.55 * len(kinds) + 1.5
    )
    for shift, (placement, arms) in zip((-0.15, 0.15), parts.items(), strict=False):
        for arm in arms:
            at = kinds.index(arm.removeprefix(placement).lstrip("_")) + shift
            row = accuracy[accuracy["arm"] == arm].iloc[0]
            _draw_point(ax, at, row, placement, upright)
    _references(ax, accuracy, chance, upright)
    names = [
        "intact" if not k else short(k).replace("[", "\n").replace("shuffled\n", "shuffled\nby ")
        for k in kinds
    ]
    ends, measure = (-0.5, len(kinds) - 0.5), "Accuracy (% of test questions)"
    if upright:
        ax.set_xticks(range(len(kinds)), names)
        ax.set(xlim=ends, ylabel=measure)
    else:
        ax.set_yticks(range(len(kinds)), names)
        ax.set(ylim=ends[::-1], xlabel=measure)
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
    marks = _mark_text(accuracy).replace("bars:", "lines:")
    _name_arms(ax, f"Rationale in training ({_count_text(accuracy)}{marks})")
    drawn_marks = [
        Line2D([], [], label=p, linestyle="none", **_marker(p)) for p, arms in parts.items() if arms
    ]
    place_legend(ax, 4, [*drawn_marks, *ax.get_legend_handles_labels()[0]])
    return ax


def _marker(placement: str) -> dict:
    """Return the mark of a placement in `shuffle_plot`: post_cot is filled, pre_cot is not."""
    colour, _, marker, _ = look(placement)
    return dict(
        marker=marker,
        markersize=7,
        color=colour,
        markeredgecolor="#222222",
        markerfacecolor=colour if placement == "post_cot" else "white",
        markeredgewidth=1,
    )


def _draw_point(ax: Axes, at: float, row: pd.Series, placement: str, upright: bool) -> None:
    """Draw one arm's mean with its interval, and a dot per seed beside it."""
    value, interval = 100 * row["accuracy"], _intervals(row.to_frame().T)[0]
    if interval:
        style = dict(ecolor=look(placement)[0], elinewidth=1.4)
        _draw_interval(ax, at, value, interval, upright, **style)
    place = (at, value) if upright else (value, at)
    ax.plot(*place, linestyle="none", zorder=3, **_marker(placement))
    dots = seed_values(row)
    draw_seed_dots(ax, np.full(len(dots), at + 0.11), dots, upright)


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
    ax = make_axes(ax)
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
        share = rows["share"].to_numpy(float)
        band = np.array([interval is not None for interval in _intervals(rows)])
        ax.fill_between(share, low, high, where=band, color=colour, alpha=0.13, linewidth=0)
        for at, (_, row) in zip(share, rows.iterrows(), strict=True):
            dots = seed_values(row)
            draw_seed_dots(ax, np.full(len(dots), at + 1.2), dots)
    _references(ax, accuracy, chance)
    ax.set_xticks(sorted({0.0, *masked["share"]}))
    ax.set_xlim(-2, max(masked["share"], default=100) + 4)
    ax.set_ylim(bottom=0)
    marks = _mark_text(accuracy).replace("bars: 95 % interval", "bands: 95 % intervals")
    counts = f"{_count_text(accuracy)}{marks}"
    counts = "\n".join(textwrap.wrap(counts, 52)) if is_narrow() else counts
    ax.set_xlabel(f"Rationale tokens masked in training (%)\n{counts}")
    ax.set_ylabel("Accuracy (% of test questions)")
    place_legend(ax, 2)
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
    ax = make_axes(ax, max(4.6, 1.05 * len(rows) + 1.0), _bars_height(rows))
    _bars(ax, rows, colours, hatches, labels)
    _references(ax, accuracy, chance, not is_narrow())
    counts = f"{_count_text(rows)}{_mark_text(rows)}"
    _name_arms(ax, f"Number of tokens kept, and the method ({counts})")
    place_legend(ax)
    return ax


def learning_curves(
    history: pd.DataFrame,
    measure: str = "validation_accuracy",
    arms: list[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a measure of the run history against optimiser steps.

    A line per arm (mean of seeds), and a thin line per seed. `measure`: validation_accuracy (drawn
    in percent), loss, label_loss or rationale_loss (nats per token). Rows where it was not measured
    are skipped. Both axes start at 0.
    """
    rows = history[history[measure].notna()]
    arms = [a for a in (arms or dict.fromkeys(history["arm"])) if a in set(rows["arm"])]
    scale = 100 if measure == "validation_accuracy" else 1
    ax = make_axes(ax)
    for i, arm in enumerate(arms):
        of_arm = rows[rows["arm"] == arm].astype({measure: float})
        by_step = scale * of_arm.groupby("step")[measure].mean()
        colour, _, marker, dashes = (
            look(arm) if arm in LOOKS else (CYCLE[i % 8], "", MARKERS[i % 8], DASHES[i % 8])
        )
        ax.plot(
            by_step.index,
            by_step,
            color=colour,
            marker=marker,
            linestyle=dashes,
            label=arm,
            markevery=max(1, len(by_step) // 10),
            zorder=3,
        )
        seeds = of_arm["seed"].unique() if of_arm["seed"].nunique() > 1 else ()
        for seed in seeds:
            one = of_arm[of_arm["seed"] == seed]
            ax.plot(one["step"], scale * one[measure], color=colour, linewidth=0.6, alpha=0.6)
    seeds = rows["seed"].nunique()
    lines = f"thick: mean of {seeds} seeds; thin: each" if seeds > 1 else "1 seed"
    ax.set_xlabel(f"Optimiser steps ({lines})")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
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
    place_legend(ax, 3 if max(map(len, arms), default=0) < 15 else 2)
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
    cover each other; an arm's seeds stand beside its interval.
    """
    arms = [a for a in (arms or drawn(accuracy, "placement")["arm"]) if a in set(accuracy["arm"])]
    rows = accuracy.set_index("arm", drop=False).loc[arms]
    ax = make_axes(ax, 5.4)
    for n, ((_, row), shown) in enumerate(zip(rows.iterrows(), _arm_looks(arms), strict=True)):
        _draw_cost(ax, row, shown, 13 * (n - (len(arms) - 1) / 2))
    _references(ax, None, chance)
    ax.set_xscale("log")
    _frame_costs(ax, rows, chance)
    text = f"Tokens generated per test question (log scale; {_count_text(rows)}{_mark_text(rows)})"
    ax.set_xlabel("\n".join(textwrap.wrap(text, 52 if is_narrow() else 72)))
    ax.set_ylabel("Accuracy (% of test questions)")
    place_legend(ax, 3)
    return ax


def _draw_cost(ax: Axes, row: pd.Series, shown: tuple, shift: float) -> None:
    """Draw one arm at its cost, `shift` points (1/72 inch) to the right; shown: its look."""
    colour, _, marker, _ = shown
    to_inches = ax.figure.dpi_scale_trans
    aside, more = (
        mpl.transforms.ScaledTranslation(points / 72, 0, to_inches) for points in (shift, 5)
    )
    tokens, value = max(row["tokens_per_question"], 0.5), 100 * row["accuracy"]
    low, high = _intervals(row.to_frame().T)[0] or (value, value)
    ax.errorbar(
        tokens,
        value,
        [[value - low], [high - value]],
        fmt=marker,
        color=colour,
        markersize=8,
        markeredgecolor="#222222",
        ecolor="#444444",
        elinewidth=1,
        capsize=3,
        label=row["arm"],
        zorder=3,
        transform=ax.transData + aside,
    )
    dots = seed_values(row)
    ax.plot(
        np.full(len(dots), tokens),
        dots,
        "o",
        markersize=3.2,
        markerfacecolor="white",
        markeredgecolor=colour,
        transform=ax.transData + aside + more,
    )


def _frame_costs(ax: Axes, rows: pd.DataFrame, chance: float | None) -> None:
    """Set limits and ticks; shifted marks do not count for automatic limits."""
    tokens = rows["tokens_per_question"].clip(lower=0.5)
    sides = tokens.min() / 1.6, tokens.max() * 1.6
    ends = [end for pair in _intervals(rows) if pair for end in pair]
    dots = [dot for _, row in rows.iterrows() for dot in seed_values(row)]
    values = [*ends, *dots, *100 * rows["accuracy"], *([] if chance is None else [100 * chance])]
    ax.set_ylim(min(values) - 2, max(values) + 2)
    ax.set_xlim(*sides)
    steps = (0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500)
    ax.set_xticks([t for t in steps if sides[0] <= t <= sides[1]])
    ax.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda t, _: f"{t:g}"))
    ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())


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
    positive = shades("", SCORE_COLOURS[2:])
    negative = shades("", SCORE_COLOURS[2::-1])
    places = _place_tokens(tokens, width)
    lines = max(place[1] for place in places) + 1 if places else 1
    ax = make_axes(ax, width, 0.27 * lines + 0.75 + 0.25 * bool(title))
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
    bar = ax.figure.colorbar(
        mpl.cm.ScalarMappable(mpl.colors.Normalize(-1, 1), shades("", SCORE_COLOURS)),
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
    """Draw the agreement between attribution methods, from -1 to 1 in every figure.

    A square table (methods x methods), its values written in the cells.
    """
    names = [str(n).replace("_", " ") for n in matrix.index]
    size = 0.72 * len(names) + 1.9
    ax = make_axes(ax, size + 0.9, PHONE if is_narrow() else size)
    sns.heatmap(
        matrix.to_numpy(float),
        vmin=-1,
        vmax=1,
        cmap=AGREEMENT_COLOURS,
        annot=True,
        fmt=".2f" if not is_narrow() else ".1f",
        annot_kws={"fontsize": 8 if not is_narrow() else 6.5},
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
    ax = make_axes(ax)
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
    ax.set_xlim(left=0)
    place_legend(ax, 3)
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
    ax = make_axes(ax, 7.0, 4.0)
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
    place_legend(ax, 3)
    return ax


def strata_intervals(effects: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw each stratum's effect with its 95 % interval, in points, a colour per contrast.

    effects: of `breadth.strata_effects`. A line per stratum, from the top down, split by split.
    """
    strata = list(effects.groupby(["split", "stratum", "n"], sort=False).groups)
    contrasts = list(dict.fromkeys(effects["contrast"]))
    ax = make_axes(ax, 6.4, 0.36 * len(strata) + 1.4)
    for number, contrast in enumerate(contrasts):
        rows = effects[effects["contrast"] == contrast]
        at = np.array([strata.index(key) for key in rows[["split", "stratum", "n"]].itertuples(
            index=False, name=None)]) + 0.26 * (number - (len(contrasts) - 1) / 2)  # fmt: skip
        value, low, high = (100 * rows[c].to_numpy(float) for c in ("estimate", "low", "high"))
        ax.errorbar(
            value,
            at,
            xerr=[value - low, high - value],
            fmt=MARKERS[number],
            color=CYCLE[number],
            linewidth=1.3,
            label=contrast,
        )
    ax.axvline(0, color="#222222", linewidth=1, zorder=1)
    width = 22 if is_narrow() else 60
    names = [textwrap.fill(f"{split}: {part} (n = {n})", width) for split, part, n in strata]
    ax.set_yticks(range(len(strata)), names)
    for number, (split, _, _) in enumerate(strata[1:], 1):
        if split != strata[number - 1][0]:
            ax.axhline(number - 0.5, color="#BBBBBB", linewidth=0.8)
    ax.set(ylim=(len(strata) - 0.4, -0.6), xlabel="Difference (points; line: 95 % interval)")
    ax.grid(True, axis="x")
    ax.grid(False, axis="y")
    place_legend(ax, 2)
    return ax


def step_panels(rows: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Draw each arm with its 95 % interval by the number of steps, a panel per measure.

    rows: columns measure, arm, steps, estimate, low, high (fractions); names: measure -> the name
    of its axis.
    """
    fig, axes = _make_panels(len(names), 10.0, 4.4)
    arms, levels = list(dict.fromkeys(rows["arm"])), sorted(set(rows["steps"]))
    gap = 0.45 * min(np.diff(levels), default=1)
    for (measure, name), axis in zip(names.items(), axes, strict=True):
        for arm, shift in zip(arms, spread_dots(len(arms), gap), strict=True):
            part = rows[(rows["measure"] == measure) & (rows["arm"] == arm)].sort_values("steps")
            value, low, high = (100 * part[c].to_numpy(float) for c in ("estimate", "low", "high"))
            colour, _, marker, dashes = look(arm)
            style = dict(color=colour, marker=marker, linestyle=dashes, linewidth=0.8, capsize=3)
            style |= dict(markeredgecolor="#222222", markersize=6, label=arm)
            style |= dict(markerfacecolor="white" if corruption_of(arm) else colour)
            axis.errorbar(part["steps"] + shift, value, [value - low, high - value], **style)
        axis.set(xlabel="Steps to the answer (lines: 95 % interval)", ylabel=name)
        axis.set_xticks(levels, [str(level) for level in levels])
        place_legend(axis, 2)
    return fig


def quality_panels(rows: pd.DataFrame) -> Figure:
    """Draw p(gold) with its 95 % interval against each measured quality, a panel per quality.

    rows: columns measure (the name of the axis), x, arm, estimate, low, high (fractions).
    """
    measures, arms = list(dict.fromkeys(rows["measure"])), list(dict.fromkeys(rows["arm"]))
    across = 1 if is_narrow() else min(3, len(measures))
    down = -(-len(measures) // across)
    size = (PHONE, 3.0 * down) if is_narrow() else (3.7 * across, 3.3 * down)
    fig, axes = plt.subplots(down, across, figsize=size, squeeze=False, sharey=True)
    for measure, axis in zip_longest(measures, axes.flat):
        if measure is None:
            axis.set_visible(False)
            continue
        apart = 0.03 * np.ptp(rows.loc[rows["measure"] == measure, "x"])  # equal values stay seen
        for arm, shift in zip(arms, spread_dots(len(arms), apart), strict=True):
            part = rows[(rows["measure"] == measure) & (rows["arm"] == arm)]
            value, low, high = (100 * part[c].to_numpy(float) for c in ("estimate", "low", "high"))
            style = _marker(arm) | dict(linestyle="none", ecolor=look(arm)[0], capsize=3, label=arm)
            axis.errorbar(part["x"] + shift, value, [value - low, high - value], **style)
        axis.set(xlabel=measure, ylabel="p(gold) (%)")
    place_legend(axes.flat[0], 2)
    return fig


def _make_panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make panels side by side, or on a phone one below the other; sizes in inches, of all."""
    if is_narrow():
        fig, axes = plt.subplots(count, 1, figsize=(PHONE, 3.4 * count), squeeze=False)
    else:
        size = (max(width * count / 2, 5.0), height)
        fig, axes = plt.subplots(1, count, figsize=size, squeeze=False, sharey=False)
    return fig, list(axes.flat)


def training_curves(history: pd.DataFrame) -> Figure:
    """Loss of the label's tokens on the left, validation accuracy on the right.

    What was not measured has no panel.
    """
    measures = [m for m in ("label_loss", "validation_accuracy") if history[m].notna().any()]
    fig, axes = _make_panels(max(len(measures), 1), 9.2, 3.6)
    for measure, axis in zip(measures, axes, strict=False):
        learning_curves(history, measure, ax=axis)
    return fig


def curves_by_placement(history: pd.DataFrame) -> Figure:
    """Draw the validation accuracy of pre_cot arms on the left and of post_cot arms on the right.

    label_only is in both panels; a placement without runs has no panel.
    """
    known = list(history["arm"].unique())
    places = [p for p in ("pre_cot", "post_cot") if any(a.startswith(p) for a in known)]
    fig, axes = _make_panels(max(len(places), 1), 11, 4.6)
    for axis, place in zip(axes, places, strict=False):
        arms = [a for a in known if a.startswith(place) or a == "label_only"]
        learning_curves(history, "validation_accuracy", arms=arms, ax=axis)
    top = max(axis.get_ylim()[1] for axis in axes)
    for axis in axes:
        axis.set_ylim(0, top)
    return fig


def token_heatmaps(tokens: list[str], scores: dict[str, np.ndarray], title: str) -> Figure:
    """Draw a `token_heatmap` of the same tokens for each method, one below the other.

    scores: method -> one score per token.
    """
    width = PHONE - 0.1 if is_narrow() else 6.5
    lines = max(place[1] for place in _place_tokens(tokens, width)) + 1
    size = (width + (0 if is_narrow() else 1.0), len(scores) * (0.27 * lines + 1.2))
    fig, axes = plt.subplots(len(scores), 1, figsize=size)
    for axis, (method, values) in zip(np.atleast_1d(axes), scores.items(), strict=True):
        name = "\n".join(textwrap.wrap(f"{method}: {title}", 52)) if is_narrow() else ""
        token_heatmap(tokens, values, title=name or f"{method}: {title}", width=width, ax=axis)
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
    "pooled": forest,
    "strata": strata_intervals,
    "tasks": step_panels,
    "quality": quality_panels,
    "methods": interval_lines,
    "lasting": interval_lines,
    "alignment": interval_lines,
    "label_dial": interval_lines,
    "lens": interval_lines,
}


def draw_figure(name: str, *tables, narrow: bool = False, **options) -> Figure:
    """Draw a figure of `FIGURES` for a page, or for a phone; tables, options: what it takes."""
    set_style(narrow)
    drawing = FIGURES[name](*tables, **options)
    return drawing if isinstance(drawing, Figure) else drawing.figure


def show_figure(folder: str | Path, name: str, *tables, **options) -> None:
    """Draw a figure of `FIGURES`, save it in folder/figures, and display it.

    Saved are <name>.pdf, <name>.png and, for a phone, <name>-phone.png. tables, options: what its
    function takes. A table without rows has no figure: nothing is drawn.
    """
    if any(isinstance(table, pd.DataFrame) and table.empty for table in tables):
        return
    stem = Path(folder) / "figures" / name
    phone = draw_figure(name, *tables, narrow=True, **options)
    save_as(phone, stem.with_name(f"{name}-phone.png"))
    plt.close(phone)
    save(draw_figure(name, *tables, **options), stem)
    plt.show()
