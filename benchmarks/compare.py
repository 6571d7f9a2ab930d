"""One comparison: both sides, whether their results agree, the ratio."""

from importlib.util import find_spec

import numpy as np
import pandas as pd

from benchmarks.clock import best_rate, kernel_share, profile, time_call
from cotdistill.kernels.memory import keep_memory

LOSS_LIMIT = 1e-5  # how far the losses of two sides may differ, relatively


def compare(
    work: str,
    ours: dict,
    peers: dict[str, dict],
    same,
    repeats: int,
    floor=None,
    gflop: float = 0.0,
    vocabulary: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time one piece of work on both sides.

    A table with a row per peer, and the search for batch sizes.

    ours and each peer: {"run": size -> result, "sizes": sizes to try, "settings": text, "target":
    ratio to reach, "needs": module}. First every side runs once per size, which warms it up and
    finds its best size; then same(our result, its result) -> (bool, text) is asked; then the sides
    run turn about, `repeats` times. A peer whose module is missing gets a row that says so. What no
    side can do without, measured in the same turns: floor, a call of nothing else, and gflop,
    operations at the rate of a big product; `bound` is peer / their sum, the ratio that nobody can
    exceed. With a vocabulary, `kernels` is the ratio over the share of our work that is spent in
    matrix products and attention (`kernel_share`).
    """
    sides = {
        "ours": ours,
        **{n: p for n, p in peers.items() if not p.get("needs") or find_spec(p["needs"])},
    }
    best, tried, results = {}, [], {}
    for name, side in sides.items():
        spent = {}
        keep_memory(name == "ours")
        for size in side["sizes"]:
            spent[size], results[name] = time_call(side["run"], size)
        best[name] = min(spent, key=spent.get)
        tried += [
            {"work": work, "side": name, "batch": size, "seconds": s, "chosen": size == best[name]}
            for size, s in spent.items()
        ]
    checks = {name: same(results["ours"], results[name]) for name in sides}
    seconds, floors = {name: [] for name in sides}, []
    for _ in range(repeats):
        for name, side in sides.items():
            keep_memory(name == "ours")
            seconds[name].append(time_call(side["run"], best[name])[0])
        keep_memory()
        if floor or gflop:
            floors.append(
                (time_call(floor, best["ours"])[0] if floor else 0.0)
                + (gflop / best_rate() if gflop else 0.0)
            )
    rows = [
        result_row(
            work,
            name,
            peer.get("settings", ""),
            seconds["ours"],
            seconds.get(name),
            peer.get("target"),
            checks.get(name),
            batch=best.get(name),
        )
        for name, peer in peers.items()
    ]
    least = float(np.median(floors)) if floors else np.nan
    share = (
        kernel_share(profile(lambda: ours["run"](best["ours"]), vocabulary))
        if vocabulary
        else np.nan
    )
    return pd.DataFrame(
        [r | {"bound": r["theirs"] / least, "kernels": r["ratio"] / share} for r in rows]
    ), pd.DataFrame(tried)


def result_row(
    work: str,
    peer: str,
    settings: str,
    ours: list[float],
    theirs: list[float] | None,
    target: float | None,
    check: tuple[bool, str] | None,
    batch: int | None = None,
    middle=np.median,
) -> dict:
    """One line of the result.

    Seconds of both sides, their ratio (peer / ours) and whether the target is reached with the same
    results. middle: medians over repeats of one work, np.mean over different works, whose ratio is
    that of the total times. theirs=None: the peer is not installed.
    """
    mine = float(middle(ours))
    if theirs is None:
        return {
            "work": work,
            "peer": peer,
            "settings": settings,
            "ours": mine,
            "theirs": np.nan,
            "ratio": np.nan,
            "target": target,
            "reached": "not installed",
            "same": "not installed",
        }
    other = float(middle(theirs))
    ratio = other / mine
    fine = check[0] and (target is None or ratio >= target)
    return {
        "work": work,
        "peer": peer,
        "settings": settings + (f"; batch {batch}" if batch else ""),
        "ours": mine,
        "theirs": other,
        "ratio": ratio,
        "target": target,
        "reached": "–" if target is None else "yes" if fine else "no",
        "same": ("yes: " if check[0] else "NO: ") + check[1],
    }


def nearly_equal(a, b, tolerance: float, what: str) -> tuple[bool, str]:
    """Whether two arrays agree to `tolerance`, relative to the largest absolute value.

    And the difference in words.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return False, f"{a.shape} and {b.shape} {what}"
    gap = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) if a.size else 0.0
    return gap <= tolerance, (
        f"{a.size} {what}, largest difference {gap:.0e} (limit {tolerance:.0e})"
    )


def equal(a: list, b: list, what: str) -> tuple[bool, str]:
    """Whether two lists are equal; and the count in words."""
    hits = sum(x == y for x, y in zip(a, b))
    return len(a) == len(b) == hits, f"{hits} of {max(len(a), len(b))} {what}"
