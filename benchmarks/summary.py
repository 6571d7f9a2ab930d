"""What the rows of a benchmark say, in tables and sentences."""

import json

import numpy as np
import pandas as pd

from benchmarks.compare import LOSS_LIMIT
from benchmarks.trainers import TRAINERS
from cotdistill.paths import root


def read_rows(rows: pd.DataFrame) -> str:
    """The rows in words."""
    said = []
    for r in rows.itertuples():
        if r.reached == "not installed":
            said.append(f"{r.peer}: not installed, so not measured.")
            continue
        missed = (
            "fast enough, **not counted**: results differ"
            if r.ratio >= pd.to_numeric(r.target, errors="coerce")
            else "**not reached**"
        )
        goal = (
            ""
            if pd.isna(r.target)
            else (f" (target {r.target:g}: {'reached' if r.reached == 'yes' else missed})")
        )
        bound, kernels = getattr(r, "bound", np.nan), getattr(r, "kernels", np.nan)
        most = (
            ""
            if pd.isna(bound)
            else (
                f"; at most {bound:.1f} times is possible, what no side "
                f"can do without being {r.theirs / bound:.2f} s"
            )
        )
        most += (
            ""
            if pd.isna(kernels)
            else (f"; {kernels:.1f} times, if ours took no time but in the libraries' kernels")
        )
        said.append(
            f"{r.work}, {r.peer}: {r.theirs:.2f} s against our {r.ours:.2f} s, "
            f"**{r.ratio:.2f} times**{goal}{most}; same results: {r.same}."
        )
    return "\n".join(f"- {line}" for line in said)


def read_rates(rates: pd.DataFrame) -> str:
    """A sentence that reads a `training_rates` table."""
    ratios = rates["ratio"]
    return (
        "GFLOP/s of a training step's products, torch's own and ours: from "
        f"{ratios.min():.2f} times ({ratios.idxmin()}) "
        f"to {ratios.max():.2f} times ({ratios.idxmax()})."
    )


def read_shares(shares: pd.DataFrame) -> str:
    """A sentence that reads a `limit_share` table."""
    return (
        "Share of the big product's rate: "
        f"{', '.join(f'{r.placement} **{100 * r.share_of_square:.0f} %**' for r in shares.itertuples())}. "
        "Nothing but kernels "
        f"would reach {', '.join(f'{100 * share:.0f} %' for share in shares['kernels'])}; of "
        f"the faster library's rate {100 * shares['share_of_best'].median():.0f} %, "
        "of the products at the model's own shapes "
        f"{100 * shares['share_of_own'].median():.0f} % (medians)."
    )


def reproduce_seconds(folders: dict[str, str]) -> pd.DataFrame:
    """Wall seconds of the executed notebooks in each folder (name -> path from the repository's
    root), from their metadata; a folder that is not there gives a row without numbers.
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
    """`reproduce_seconds` as result rows: the limit in seconds is the target."""
    rows = []
    for r in table.itertuples():
        there = not pd.isna(r.seconds)
        rows.append(
            {
                "work": r.run,
                "peer": "–",
                "settings": f"{r.notebooks} notebooks",
                "ours": r.seconds,
                "theirs": np.nan,
                "ratio": np.nan,
                "target": f"< {limits[r.run]:.0f} s",
                "reached": ("yes" if r.seconds < limits[r.run] else "no") if there else "not run",
                "same": "–",
            }
        )
    return pd.DataFrame(rows)


def limit_rows(shares: pd.DataFrame, work: str, target: float = 0.8) -> pd.DataFrame:
    """`limit_share` as result rows.

    The ratio is the share of the rate of a big square product (the bound: of the faster library's).
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
    """`peak_memory` as result rows, one per peer and setting of ours.

    GB instead of seconds, the ratio is peer / ours. least: GB of weights, gradients and the two
    moments; with what our process holds beside its weights (imports), it gives `bound`.
    """
    peak, loaded, rows = *(peaks.set_index("side")[name] for name in ("peak_gb", "loaded_gb")), []
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


def out_of_reach(rows: pd.DataFrame, by: str = "bound") -> pd.DataFrame:
    """The rows not reached whose target is above their `bound` (no implementation can reach it in
    float32 on this machine) or, by="kernels", above what is left where nothing but the
    libraries' kernels takes time.
    """
    numbers = rows.assign(
        target=pd.to_numeric(rows["target"], errors="coerce"), **{by: rows.get(by, np.nan)}
    )
    return numbers[(numbers[by] < numbers["target"]) & (numbers["reached"] != "yes")]


def summary(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """All result rows in one table."""
    return pd.concat([t for t in tables if len(t)], ignore_index=True)


def count_reached(rows: pd.DataFrame) -> str:
    """How many targets are reached, in words; rows whose peer is not installed are counted apart."""
    counts, other = rows["reached"].value_counts(), int(rows["same"].str.startswith("NO").sum())
    said = {
        "–": "without a target",
        "not installed": "wait for a peer that is not installed",
        "not run": "for a run",
    }
    return "; ".join(
        [
            f"Targets reached: {counts.get('yes', 0)}, not reached: {counts.get('no', 0)}",
            *(f"{counts[key]} {text}" for key, text in said.items() if key in counts),
            f"{other} show different results" if other else "results are the same everywhere",
        ]
    )


def findings(rows: pd.DataFrame, rounding: dict[tuple[str, str], float]) -> str:
    """What the rows say, as Markdown.

    How many targets are reached, and for those that are not, what forbids them, the strictest
    first. rounding: (student, peer) -> how far the peer's loss is from the float64 one with the
    same weights (`compare_rounding`); it speaks for the rows of that student only.
    """

    def off(r):
        return max(
            (
                gap
                for (student, peer), gap in rounding.items()
                if student in r.work and peer == r.peer
            ),
            default=0.0,
        )

    beyond = out_of_reach(rows)
    slow = out_of_reach(rows, "kernels").drop(beyond.index, errors="ignore")
    left = rows[(rows["reached"] == "no") & ~rows.index.isin([*beyond.index, *slow.index])]
    apart = left[
        np.array([r.same.startswith("NO") and off(r) > LOSS_LIMIT for r in left.itertuples()], bool)
    ]
    left = left.drop(apart.index)
    near = sum(r.bound > 0.8 * r.target for r in beyond.itertuples()) + sum(
        r.kernels > 0.8 * r.target for r in slow.itertuples()
    )

    def named(part, limit):
        return (
            "; ".join(
                f"{r.work}, {r.peer} ({limit(r)} of {float(r.target):g})" for r in part.itertuples()
            )
            or "none"
        )

    return "\n".join(
        [
            f"**Findings.** {count_reached(rows)}.",
            "",
            f"- Beyond the bound ({len(beyond)} rows: what every float32 implementation must do "
            "takes longer than the target leaves): "
            + named(beyond, lambda r: f"at most {r.bound:.2f}")
            + ".",
            f"- Beyond the kernels ({len(slow)} rows: matrix products, attention and the optimiser "
            "alone, as MKL, oneDNN and torch run them in our work, do): "
            + named(slow, lambda r: f"at most {r.kernels:.2f}")
            + ".",
            f"- Beyond agreement ({len(apart)} rows whose losses differ: with the same weights the "
            "peer's is further from the float64 one than the limit of 1e-5): "
            + named(apart, lambda r: f"{r.ratio:.2f}, its loss off by {off(r):.0e},")
            + ".",
            f"- A limit is good to about a fifth; for {near} of these rows it is that near to the "
            "target, and another hour may judge otherwise.",
            f"- Left ({len(left)} rows that nothing measured here forbids): "
            + named(
                left,
                lambda r: (
                    f"{r.ratio:.2f}"
                    + (
                        ", not counted, for the results differ,"
                        if r.ratio >= float(r.target)
                        else ""
                    )
                ),
            )
            + ".",
        ]
    )
