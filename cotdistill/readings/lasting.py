"""What notebook 08 says of gains that last or fade."""

import numpy as np
import pandas as pd

from cotdistill.lasting import EVERY
from cotdistill.readings.common import few_seeds, select_nonzero
from cotdistill.show import points


def setting(arms: list[str], datasets: list[str], epochs: int, steps: int) -> str:
    """Say who goes on, on what, and for how long."""
    places = ["the study's own questions" if one == "same" else one for one in datasets]
    return (
        f"{len(arms)} arms ({', '.join(arms)}) go on with labels alone, on {', '.join(places)}, "
        f"for {epochs} epochs, up to {steps} steps. Every student is asked for the answer at once."
    )


def name_gap(row) -> str:
    """Name a gap: its arm, on what its student went on and, but for all questions, its part."""
    part = "" if row.part == EVERY else f", {row.part}"
    return f"{row.arm} on {row.continuation}{part}"


def gaps(table: pd.DataFrame) -> str:
    """Say in a sentence per arm and continuation how its gap began and ended, part by part.

    table: of `lasting.estimate_gaps`.
    """
    if table.empty:
        return "Nothing to compare: label_only alone went on."
    texts = []
    for (continuation, arm), rows in table.groupby(["continuation", "arm"], sort=False):
        where = "the labels of the same questions" if continuation == "same" else continuation
        ends = {
            part: [points(line.iloc[at]) for at in (0, -1)]
            for part, line in rows.sort_values("step").groupby("part", sort=False)
        }
        first, last = ends.pop(EVERY)
        text = (
            f"**{arm}** minus label_only: {first} points of p(gold) at the start, {last} after "
            f"{rows['step'].max()} further steps on {where}"
        )
        for part, (first, last) in ends.items():
            text += f"; of {part}, {first} and {last}"
        texts.append(f"{text}.")
    return " ".join(texts)


def describe_life(row) -> str:
    """Write one half-life with its interval, or why there is none."""
    if row.state == "no gap":
        return "not estimable: there is no gap to begin with (its interval holds 0)"
    ends = [
        "unbounded" if np.isinf(value) else f"{value:.0f}"
        for value in (row.estimate, row.low, row.high)
    ]
    if row.state == "does not fall":
        least = "" if np.isinf(row.low) else f" (at least {ends[1]} steps)"
        return f"unbounded{least}: the gap does not fall"
    beyond = " (longer than was observed)" if row.estimate > row.reach else ""
    return f"{ends[0]} steps [{ends[1]}, {ends[2]}]{beyond}"


def show_half_lives(lives: pd.DataFrame) -> pd.DataFrame:
    """Return the table of half-lives as texts: what the gap is of, how it began, how long."""
    rows = [
        {
            "continuation": row.continuation,
            "arm": row.arm,
            "asked": row.part,
            "gap at the start (points)": points(
                {"estimate": row.start, "low": row.start_low, "high": row.start_high}
            ),
            "half-life": describe_life(row),
            "interval over": row.covers,
        }
        for row in lives.itertuples()
    ]
    return pd.DataFrame(rows)


def half_lives(lives: pd.DataFrame, seeds: int) -> str:
    """Count the gaps that fade, that do not fall, and that were not there."""
    if lives.empty:
        return ""
    counts = lives["state"].value_counts()
    text = (
        f"Of {len(lives)} gaps, by their estimates, {counts.get('fades', 0)} fade and "
        f"{counts.get('does not fall', 0)} do not fall."
    )
    if none := counts.get("no gap", 0):
        text += (
            f" {none} can't be told from 0 at the start: nothing can be said of how long such a "
            "gap lasts."
        )
    return f"{text} {few_seeds(seeds)}".strip()


def findings(table: pd.DataFrame, lives: pd.DataFrame, note: str) -> str:
    """List each half-life, and which gaps are still there at the end."""
    if table.empty:
        return "**Findings.** Nothing was compared. Next: [9 · Mechanism](09_mechanism.ipynb)."
    listed = "; ".join(f"{name_gap(row)}: {describe_life(row)}" for row in lives.itertuples())
    lasted = f"{gaps(table)} Half-life: {listed}"
    if (lives["state"] == "no gap").all():
        lasted = (
            "No arm's gap to label_only was told apart from 0 at the start, so nothing can be said "
            "of how long one lasts"
        )
    last = table[table["step"] == table.groupby("continuation")["step"].transform("max")]
    left = select_nonzero(last)
    names = "; ".join(name_gap(row) for row in left.itertuples()) or "none"
    return (
        f"**Findings.** {lasted}. Gaps that exclude zero after the last step: {names} ({note}). "
        "Next: [9 · Mechanism](09_mechanism.ipynb)."
    )
