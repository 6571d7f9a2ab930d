"""One comparison: both sides, whether their results agree, the ratio of their times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pandas as pd

from benchmarks.clock import best_rate, kernel_share, profile, time_call
from cotdistill.kernels.memory import keep_memory

LOSS_LIMIT = 1e-5  # how far the losses of two sides may differ, relatively


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    run        batch size -> result
    sizes      batch sizes to try
    settings   what a reader must know about the side
    target     the ratio (its time / ours) to reach; None: no target
    needs      the module that must be installed; "": none
    """

    run: Callable[[int], object]
    sizes: Sequence[int]
    settings: str = ""
    target: float | None = None
    needs: str = ""


@dataclass(frozen=True)
class Timing:
    """How a comparison is timed.

    sizes      batch sizes tried for each peer
    own_sizes  batch sizes tried for our side
    repeats    measured rounds
    target     the ratio (a peer's time / ours) to reach; None: no target
    """

    sizes: Sequence[int]
    own_sizes: Sequence[int]
    repeats: int
    target: float | None = None


@dataclass(frozen=True)
class Limit:
    """The work that no side can avoid.

    floor       batch size -> nothing: a call that does only this work; None: no such call
    gflop       operations, counted at the rate of a big product
    vocabulary  rows of the head, to tell its products from others in a profile of our side; 0: no
                profile is made
    """

    floor: Callable[[int], None] | None = None
    gflop: float = 0.0
    vocabulary: int = 0

    def measure(self, size: int) -> float:
        """Measure the wall seconds of this work at a batch size, right now."""
        seconds = time_call(self.floor, size)[0] if self.floor else 0.0
        return seconds + (self.gflop / best_rate() if self.gflop else 0.0)


NO_LIMIT = Limit()


def compare_sides(
    work: str,
    ours: Side,
    peers: dict[str, Side],
    same: Callable[[object, object], tuple[bool, str]],
    repeats: int,
    limit: Limit = NO_LIMIT,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time one piece of work on both sides; return a row per peer and the batch sizes tried.

    First every side runs once per batch size: this warms it up and finds its best size. Then
    same(our result, its result) -> (bool, text) is asked. Then the sides alternate for `repeats`
    rounds. A peer whose module is missing gets a row that says so.

    `bound` is the peer's time over the limit's, measured in the same rounds: nobody can exceed this
    ratio. `kernels` is the ratio over the share of our time that is spent in matrix products and
    attention (`kernel_share`); it needs limit.vocabulary.
    """
    present = {n: p for n, p in peers.items() if not p.needs or find_spec(p.needs)}
    sides = {"ours": ours} | present
    best, tried, results = _search_sizes(work, sides)
    checks = {name: same(results["ours"], results[name]) for name in sides}
    seconds, floors = _time_rounds(sides, best, repeats, limit)
    rows = [
        result_row(
            Row(work, name, peer.settings, peer.target),
            seconds["ours"],
            seconds.get(name),
            checks.get(name),
            batch=best.get(name),
        )
        for name, peer in peers.items()
    ]
    least = float(np.median(floors)) if floors else np.nan
    share = np.nan
    if limit.vocabulary:
        share = kernel_share(profile(lambda: ours.run(best["ours"]), limit.vocabulary))
    table = pd.DataFrame(
        [r | {"bound": r["theirs"] / least, "kernels": r["ratio"] / share} for r in rows]
    )
    return table, pd.DataFrame(tried)


def _search_sizes(
    work: str, sides: dict[str, Side]
) -> tuple[dict[str, int], list[dict], dict[str, object]]:
    """Run every side once per batch size.

    Returns each side's fastest size, a row per run, and each side's last result.
    """
    best, tried, results = {}, [], {}
    for name, side in sides.items():
        spent = {}
        keep_memory(name == "ours")
        for size in side.sizes:
            spent[size], results[name] = time_call(side.run, size)
        best[name] = min(spent, key=spent.get)
        tried += [
            {"work": work, "side": name, "batch": size, "seconds": s, "chosen": size == best[name]}
            for size, s in spent.items()
        ]
    return best, tried, results


def _time_rounds(
    sides: dict[str, Side], best: dict[str, int], repeats: int, limit: Limit
) -> tuple[dict[str, list[float]], list[float]]:
    """Measure every side, and the limit, once per round; return their wall seconds."""
    seconds, floors = {name: [] for name in sides}, []
    for _ in range(repeats):
        for name, side in sides.items():
            keep_memory(name == "ours")
            seconds[name].append(time_call(side.run, best[name])[0])
        keep_memory()
        if limit.floor or limit.gflop:
            floors.append(limit.measure(best["ours"]))
    return seconds, floors


@dataclass(frozen=True)
class Row:
    """What a line of the result is about: the work, the peer, its settings, the target ratio."""

    work: str
    peer: str
    settings: str
    target: float | None = None


def result_row(
    about: Row,
    ours: list[float],
    theirs: list[float] | None,
    check: tuple[bool, str] | None,
    batch: int | None = None,
    middle=np.median,
) -> dict:
    """Make one line of the result.

    It holds the seconds of both sides, their ratio (peer / ours), and whether the target is reached
    with the same results. theirs=None: the peer is not installed.

    middle: np.median over repeats of one work; np.mean over different works, whose ratio is then
    that of the total times.
    """
    mine, other = float(middle(ours)), np.nan if theirs is None else float(middle(theirs))
    ratio = other / mine
    if theirs is None:
        reached = agreed = "not installed"
    else:
        fine = check[0] and (about.target is None or ratio >= about.target)
        reached = "–" if about.target is None else "yes" if fine else "no"
        agreed = ("yes: " if check[0] else "NO: ") + check[1]
    shown_batch = f"; batch {batch}" if batch and theirs is not None else ""
    return {
        "work": about.work,
        "peer": about.peer,
        "settings": about.settings + shown_batch,
        "ours": mine,
        "theirs": other,
        "ratio": ratio,
        "target": about.target,
        "reached": reached,
        "same": agreed,
    }


def arrays_agree(a, b, tolerance: float, what: str) -> tuple[bool, str]:
    """Say whether two arrays agree to `tolerance`, relative to the largest absolute value.

    Returns (agree, the difference in words).
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        return False, f"{a.shape} and {b.shape} {what}"
    gap = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) if a.size else 0.0
    return gap <= tolerance, (
        f"{a.size} {what}, largest difference {gap:.0e} (limit {tolerance:.0e})"
    )


def lists_agree(a: list, b: list, what: str) -> tuple[bool, str]:
    """Say whether two lists are equal; return (equal, the count in words)."""
    hits = sum(x == y for x, y in zip(a, b, strict=False))
    return len(a) == len(b) == hits, f"{hits} of {max(len(a), len(b))} {what}"
