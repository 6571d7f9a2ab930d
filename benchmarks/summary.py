"""What the rows of a benchmark say, in tables and sentences."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from benchmarks.compare import LOSS_LIMIT
from benchmarks.trainers import TRAINERS
from cotdistill.paths import root
from cotdistill.students import Student


def show_text(text: str) -> None:
    """Display Markdown in a notebook."""
    display(Markdown(text))


def _plural(n: int, noun: str) -> str:
    """Write a number with its noun, as "1 row" and "2 rows"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def read_lengths(lengths: pd.DataFrame) -> str:
    """Read a `length_table` in a sentence."""
    spans = [
        f"{row['5 %']:.0f} to {row['95 %']:.0f} tokens ({part})" for part, row in lengths.iterrows()
    ]
    return f"Nine in ten of the texts have {', '.join(spans)}."


def read_products(rates: pd.DataFrame) -> str:
    """Read a `layer_rates` table in a sentence."""
    ratios = [
        f"{r.oneDNN_ratio:.2f} and {r.prepacked_ratio:.2f} times as fast at {_plural(n, 'row')}"
        for n, r in rates.iterrows()
    ]
    return (
        "GFLOP/s of the student's own layers. Against torch's own products, oneDNN and prepacked "
        f"are {'; '.join(ratios)}."
    )


def read_rows(rows: pd.DataFrame) -> str:
    """Read result rows as a Markdown list, a sentence per row."""
    return "\n".join(f"- {_read_row(row)}" for row in rows.itertuples())


def _read_row(row) -> str:
    """Read one result row in a sentence."""
    if row.reached == "not installed":
        return f"{row.peer}: not installed, so not measured."
    target, limits = pd.to_numeric(row.target, errors="coerce"), ""
    bound, kernels = getattr(row, "bound", np.nan), getattr(row, "kernels", np.nan)
    if row.reached == "yes":
        outcome = "reached"
    elif row.ratio >= target:
        outcome = "fast enough, **not counted**: results differ"
    else:
        outcome = "**not reached**"
    goal = "" if pd.isna(row.target) else f" (target {row.target:g}: {outcome})"
    if not pd.isna(bound):
        limits += (
            f"; at most {bound:.1f} times is possible, as the work that no side can avoid takes "
            f"{row.theirs / bound:.2f} s"
        )
    if not pd.isna(kernels):
        limits += f"; {kernels:.1f} times, if ours spent time in the libraries' kernels only"
    return (
        f"{row.work}, {row.peer}: {row.theirs:.2f} s against our {row.ours:.2f} s, "
        f"**{row.ratio:.2f} times**{goal}{limits}; same results: {row.same}."
    )


def read_training(rows: pd.DataFrame) -> str:
    """Read the `training_rows` of one student in a paragraph."""
    beyond, slow = len(unreachable_rows(rows)), len(unreachable_rows(rows, "kernels"))
    return (
        "Mean seconds per optimiser step; the ratio is that of the total times. "
        f"{count_reached(rows)}. A step that does only the least operations, at the rate of a big "
        "product, would be `bound` times as fast as the peer; the target is above that, so out of "
        f"reach, in {beyond} of {_plural(len(rows), 'row')}. `kernels` is the ratio if our step "
        "spent time only in matrix products, attention and the optimiser, as oneDNN, MKL and torch "
        f"run them at these shapes; the target is above that in {slow} of "
        f"{_plural(len(rows), 'row')}."
    )


def read_rates(rates: pd.DataFrame) -> str:
    """Read a `training_rates` table in a sentence."""
    ratios = rates["ratio"]
    return (
        "GFLOP/s of a training step's products, torch's own and ours: from "
        f"{ratios.min():.2f} times ({ratios.idxmin()}) "
        f"to {ratios.max():.2f} times ({ratios.idxmax()})."
    )


def read_shares(shares: pd.DataFrame) -> str:
    """Read a `limit_share` table in two sentences."""
    of_square = [f"{r.placement} **{100 * r.share_of_square:.0f} %**" for r in shares.itertuples()]
    kernels = [f"{100 * share:.0f} %" for share in shares["kernels"]]
    return (
        f"Share of the big product's rate: {', '.join(of_square)}. A step of kernels alone would "
        f"reach {', '.join(kernels)}; of the faster library's rate "
        f"{100 * shares['share_of_best'].median():.0f} %, of the products at the model's own "
        f"shapes {100 * shares['share_of_own'].median():.0f} % (medians)."
    )


def read_rounding(table: pd.DataFrame) -> str:
    """Read the table of `compare_rounding` in a paragraph."""
    gaps = "; ".join(f"{r.loss} {r.difference}" for r in table.itertuples())
    return (
        f"Relative difference from float64: {gaps}. The peer's own loss is from the weights of its "
        f"own run. A row whose losses differ by more than {LOSS_LIMIT:g} counts as not reached, "
        "whichever is nearer to float64."
    )


def read_memory(rows: pd.DataFrame, least: float) -> str:
    """Read `memory_rows` in a sentence; least: GB of weights, gradients and the two moments."""
    reached = int((rows["reached"] == "yes").sum())
    return (
        f"Weights, gradients and moments alone take {least:.2f} GB on every side, besides Python "
        f"and its imports. Half of a peer's peak is out of reach in {len(unreachable_rows(rows))} "
        f"of {_plural(len(rows), 'row')}, and reached in {reached}."
    )


def read_wall_times(rows: pd.DataFrame) -> str:
    """Read `reproduce_rows` in a sentence."""
    runs = [
        f"{r.work}: not run"
        if r.reached == "not run"
        else f"{r.work} {r.ours / 60:.1f} minutes for {r.target} ({r.reached})"
        for r in rows.itertuples()
    ]
    return f"Limits: {'; '.join(runs)}."


def read_profile(shares: pd.DataFrame) -> str:
    """Read a table of `profile_stages` in a sentence."""
    groups = [g for g in ("matrix products", "head", "attention") if g in shares.index]
    sums = [
        f"{stage} {shares.loc[groups, stage].str.rstrip(' %').astype(float).sum():.0f} %"
        for stage in shares.columns
    ]
    return f"Matrix products, head and attention together: {', '.join(sums)}."


def read_threads(seconds: pd.DataFrame) -> str:
    """Read a `time_threads` table in a sentence."""
    fastest = [f"{work} with {_plural(n, 'thread')}" for work, n in seconds.idxmin(axis=1).items()]
    return f"Fastest: {', '.join(fastest)}."


def read_laws(laws: pd.DataFrame) -> str:
    """Read a `fit_laws` table in two sentences."""
    worst, furthest = laws.loc[laws["r2"].idxmin()], laws.loc[laws["worst_error"].idxmax()]
    return (
        f"The laws explain {100 * laws['r2'].median():.1f} % of the spread of seconds (median R²), "
        f"and least for {worst['curve']} ({100 * worst['r2']:.1f} %). A single point is off by up "
        f"to {100 * furthest['worst_error']:.0f} % ({furthest['curve']})."
    )


def read_setting(student: Student) -> str:
    """Name the student of all rows and the threads of this process."""
    return f"Student: {student.note}; {_plural(torch.get_num_threads(), 'thread')}."


def reproduce_seconds(folders: dict[str, str]) -> pd.DataFrame:
    """Sum the wall seconds of the executed notebooks in each folder, from their metadata.

    folders: name -> path from the repository's root. A missing folder gives a row without numbers.
    """
    rows = []
    for name, folder in folders.items():
        paths = sorted((root() / folder).glob("[0-9]*.ipynb")) if folder else []
        seconds = [
            json.loads(p.read_text(encoding="utf-8"))["metadata"]
            .get("cotdistill", {})
            .get("seconds", np.nan)
            for p in paths
        ]
        rows.append(
            {
                "run": name,
                "notebooks": len(paths),
                "seconds": float(np.sum(seconds)) if paths else np.nan,
            }
        )
    return pd.DataFrame(rows)


def reproduce_rows(table: pd.DataFrame, limits: dict[str, float]) -> pd.DataFrame:
    """Turn `reproduce_seconds` into result rows; the target is the limit in seconds."""
    rows = []
    for r in table.itertuples():
        reached = "not run"
        if not pd.isna(r.seconds):
            reached = "yes" if r.seconds < limits[r.run] else "no"
        rows.append(
            {
                "work": r.run,
                "peer": "–",
                "settings": f"{r.notebooks} notebooks",
                "ours": r.seconds,
                "theirs": np.nan,
                "ratio": np.nan,
                "target": f"< {limits[r.run]:.0f} s",
                "reached": reached,
                "same": "–",
            }
        )
    return pd.DataFrame(rows)


def limit_rows(shares: pd.DataFrame, work: str, target: float = 0.8) -> pd.DataFrame:
    """Turn `limit_share` into result rows.

    The ratio is the share of the rate of a big square product; the bound is the share that the
    faster library's rate would be.
    """
    return pd.DataFrame(
        [
            {
                "work": f"{work}, {r.placement}: share of the limit",
                "peer": "float32 matrix product",
                "settings": f"{r.square_gflop_s:.0f} GFLOP/s",
                "ours": np.nan,
                "theirs": np.nan,
                "ratio": r.share_of_square,
                "target": target,
                "reached": "yes" if r.share_of_square >= target else "no",
                "same": "–",
                "bound": r.best_gflop_s / r.square_gflop_s,
                "kernels": r.kernels,
            }
            for r in shares.itertuples()
        ]
    )


def memory_rows(peaks: pd.DataFrame, work: str, least: float, target: float = 2.0) -> pd.DataFrame:
    """Turn `peak_memory` into result rows, one per peer and setting of ours.

    They hold GB instead of seconds; the ratio is peer / ours. least: GB of weights, gradients and
    the two moments. Together with what our process holds besides its weights (imports), it gives
    `bound`.
    """
    sides, rows = peaks.set_index("side"), []
    peak, loaded = sides["peak_gb"], sides["loaded_gb"]
    for mine in (side for side in peak.index if side.startswith("ours")):
        for side in (side for side in peak.index if not side.startswith("ours")):
            missing, ratio = pd.isna(peak[side]), peak[side] / peak[mine]
            rows.append(
                {
                    "work": f"{work}: peak memory in GB, {mine}",
                    "peer": side,
                    "settings": TRAINERS[side][2],
                    "ours": peak[mine],
                    "theirs": peak[side],
                    "ratio": ratio,
                    "target": target,
                    "reached": "not installed" if missing else "yes" if ratio >= target else "no",
                    "same": "not installed" if missing else "–",
                    "bound": peak[side] / (least + loaded[mine] - least / 4),
                }
            )
    return pd.DataFrame(rows)


def unreachable_rows(rows: pd.DataFrame, by: str = "bound") -> pd.DataFrame:
    """Select the rows that are not reached and whose target is above a limit.

    by="bound": no float32 implementation can reach the target on this machine. by="kernels": we
    could not if only the libraries' kernels took time.
    """
    numbers = rows.assign(
        target=pd.to_numeric(rows["target"], errors="coerce"), **{by: rows.get(by, np.nan)}
    )
    return numbers[(numbers[by] < numbers["target"]) & (numbers["reached"] != "yes")]


def join_rows(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Put all rows in one table; empty tables are left out."""
    return pd.concat([t for t in tables if len(t)], ignore_index=True)


def count_reached(rows: pd.DataFrame) -> str:
    """Count the targets that are reached, in words.

    Rows without a target, without a peer that is installed and without a run are counted apart.
    """
    counts, other = rows["reached"].value_counts(), int(rows["same"].str.startswith("NO").sum())
    others = {
        "–": "without a target",
        "not installed": "wait for a peer that is not installed",
        "not run": "wait for a run",
    }
    return "; ".join(
        [
            f"Targets reached: {counts.get('yes', 0)}, not reached: {counts.get('no', 0)}",
            *(f"{counts[key]} {text}" for key, text in others.items() if key in counts),
            f"{other} show different results" if other else "results are the same everywhere",
        ]
    )


def read_findings(rows: pd.DataFrame, rounding: dict[tuple[str, str], float]) -> str:
    """Read all rows as Markdown: the targets reached, and what forbids the others.

    The strictest limit comes first. rounding: (student, peer) -> how far the peer's loss is from
    the float64 one with the same weights (`compare_rounding`); it counts for the rows of that
    student only.
    """

    def gap(row):
        return max(
            (
                size
                for (student, peer), size in rounding.items()
                if student in row.work and peer == row.peer
            ),
            default=0.0,
        )

    beyond = unreachable_rows(rows)
    slow = unreachable_rows(rows, "kernels").drop(beyond.index, errors="ignore")
    left = rows[(rows["reached"] == "no") & ~rows.index.isin([*beyond.index, *slow.index])]
    differ = [r.same.startswith("NO") and gap(r) > LOSS_LIMIT for r in left.itertuples()]
    apart = left[np.array(differ, bool)]
    left = left.drop(apart.index)
    near = sum(r.bound > 0.8 * r.target for r in beyond.itertuples())
    near += sum(r.kernels > 0.8 * r.target for r in slow.itertuples())

    def ratio(row):
        if pd.isna(row.ratio):  # a wall time
            return f"{row.ours:.0f} s"
        fast = row.ratio >= float(row.target)
        return f"{row.ratio:.2f}{', not counted, for the results differ,' if fast else ''}"

    lines = [
        _list_rows(
            beyond,
            "Beyond the bound ({}: the work that every float32 implementation must do takes longer "
            "than the target allows)",
            lambda r: f"at most {r.bound:.2f}",
        ),
        _list_rows(
            slow,
            "Beyond the kernels ({}: the same holds for matrix products, attention and the "
            "optimiser alone, as MKL, oneDNN and torch run them in our work)",
            lambda r: f"at most {r.kernels:.2f}",
        ),
        _list_rows(
            apart,
            "Beyond agreement ({}: losses differ, and with the same weights the peer's is further "
            "from the float64 one than the limit of 1e-5)",
            lambda r: f"{r.ratio:.2f}, its loss off by {gap(r):.0e},",
        ),
        f"- A limit is good to about a fifth. For {near} of these rows it is that near to the "
        "target, and another hour may judge otherwise.",
        _list_rows(left, "Left ({}: no limit measured here forbids them)", ratio),
    ]
    return "\n".join([f"**Findings.** {count_reached(rows)}.", "", *lines])


def _goal(target) -> str:
    """Write a target after what is reached of it: a ratio, or a limit of wall time ("< 90 s")."""
    number = pd.to_numeric(target, errors="coerce")
    return f"for {target}" if pd.isna(number) else f"of {number:g}"


def _list_rows(rows: pd.DataFrame, head: str, limit: Callable[[object], str]) -> str:
    """Write a Markdown item that names each row with what it reaches of its target.

    head: what the rows have in common, with {} for their number.
    """
    items = [f"{r.work}, {r.peer} ({limit(r)} {_goal(r.target)})" for r in rows.itertuples()]
    return f"- {head.format(_plural(len(rows), 'row'))}: {'; '.join(items) or 'none'}."
