"""Erase tokens in a method's order and watch log p(label): faithfulness and deletion curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cotdistill.arms import n_kept, rank_units
from cotdistill.attribution.score import Attribution, freeze_parameters, removal_logps
from cotdistill.encode import example_rng
from cotdistill.examples import Example, Rationale
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student

DELETED = (0, 0.1, 0.2, 0.35, 0.5, 0.75, 1)  # points of a deletion curve, as shares of the tokens
# Where sufficiency is measured too: ERASER's shares without 1 and 5 %, which in a rationale of 18
# tokens are one token, as 10 % nearly is
KEPT = (0.1, 0.2, 0.5)
DRAWS = 3  # random orders per question; one alone makes chance look like a method
COLUMNS = ["id", "method", "tokens", "share", "deletion", "insertion"]
MEASURES = ["comprehensiveness", "sufficiency"]


def token_counts(shares: Sequence[float], n: int) -> list[int]:
    """Turn shares of n tokens into numbers of tokens, each once, ascending.

    Two shares that are the same number of tokens are one point of a curve.
    """
    return sorted({n if share >= 1 else n_kept(share, n) for share in shares})


def faithfulness(
    student: Student,
    example: Example,
    rationale: str,
    scores: dict[str, Sequence],
    deleted: Sequence[float] = DELETED,
    *,
    kept: Sequence[float] = KEPT,
    **settings,
) -> pd.DataFrame:
    """Erase tokens from the most important on.

    One row per method (a key of `scores`) and number of tokens, from the shares in `deleted` and
    `kept`; share = tokens / all tokens. scores: one per token, or several lists of them [orders, R]
    (random ones), whose log probabilities are averaged. settings: of `score.removal_logps`.

    deletion is log p(label) without the top tokens, insertion with nothing but them (the rest at
    the baseline; measured at `kept` only, else NaN); these are the curves of Petsiuk et al. 2018
    (arXiv 1806.07421). comprehensiveness = full - deletion (high: they were needed) and sufficiency
    = full - insertion (low: they suffice) are ERASER's (DeYoung et al. 2020, arXiv 1911.03429),
    with two differences: in nats instead of probabilities, and with replaced instead of removed
    tokens, so that positions stay. Both are NaN where insertion is.
    """
    n = len(np.atleast_2d(next(iter(scores.values()), []))[0])
    if not n:
        return pd.DataFrame(columns=COLUMNS + MEASURES)
    inserted = set(token_counts(kept, n))
    counts = sorted({*token_counts(deleted, n), *inserted})
    keep, rows = [np.ones(n, dtype=bool)], []
    for method, values in scores.items():
        orders = [rank_units([[i] for i in range(n)], v, n) for v in np.atleast_2d(values)]
        for k, order in ((k, order) for k in counts for order in orders):
            chosen = np.isin(np.arange(n), order[:k])
            keep.append(~chosen)
            rows.append([example.id, method, k, k / n, len(keep) - 1, -1])
            if k in inserted:
                keep.append(chosen)
                rows[-1][-1] = len(keep) - 1
    logps = removal_logps(student, example, rationale, np.array(keep), **settings)
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["deletion"] = logps[table["deletion"]]
    table["insertion"] = np.where(
        table["insertion"] < 0, np.nan, logps[table["insertion"].clip(lower=0)]
    )
    table = table.groupby(COLUMNS[:4], sort=False, as_index=False).mean()
    both = table["insertion"].notna()
    return table.assign(
        comprehensiveness=(logps[0] - table["deletion"]).where(both),
        sufficiency=logps[0] - table["insertion"],
    )


def faithfulness_all(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    by_method: dict[str, list[Attribution]],
    *,
    seed: int = 0,
    **settings,
) -> pd.DataFrame:
    """Apply `faithfulness` to each question under each method's scores, as one table.

    by_method: attributions in the order of `examples`. The method "random" is `DRAWS` orders, drawn
    by the question's id and `seed`, whatever its scores say.
    """
    tables = []
    with freeze_parameters(student.model), use_prepacked_linears(student.model):
        for i, example in enumerate(examples):
            scores = {method: found[i].scores for method, found in by_method.items()}
            if "random" in scores:
                size = (DRAWS, len(scores["random"]))
                scores["random"] = example_rng(example.id, seed, 5).random(size)
            text = rationales[example.id].text
            tables.append(faithfulness(student, example, text, scores, **settings))
    found = [table for table in tables if len(table)]
    return pd.concat(found, ignore_index=True) if found else tables[0]


def curves_on_grid(table: pd.DataFrame, points: int = 21) -> pd.DataFrame:
    """Read each question's deletion curves at common shares, so that they can be averaged.

    table: of `faithfulness_all`. Linear between the measured numbers of tokens: a rationale of five
    tokens has no point at 10 %. Columns id, method, fraction (0 to 1, `points` of them), deletion.
    """
    grid, rows = np.linspace(0, 1, points), []
    for (question, method), curve in table.groupby(["id", "method"], sort=False):
        values = np.interp(grid, curve["share"], curve["deletion"])
        rows.append(pd.DataFrame(dict(id=question, method=method, fraction=grid, deletion=values)))
    empty = pd.DataFrame(columns=["id", "method", "fraction", "deletion"])
    return pd.concat(rows, ignore_index=True) if rows else empty


def curve_areas(table: pd.DataFrame) -> pd.DataFrame:
    """Measure the area under each question's deletion curve, in nats: its mean height.

    table: of `faithfulness_all`; the trapezoid rule over shares from 0 to 1. Low: the first tokens
    mattered. below_random is the random orders' area minus the method's on the same question, above
    0 where the method finds what matters (NaN for random itself, and without it).
    """
    rows = [
        (question, method, np.trapezoid(curve["deletion"], curve["share"]))
        for (question, method), curve in table.groupby(["id", "method"], sort=False)
    ]
    areas = pd.DataFrame(rows, columns=["id", "method", "area"])
    chance = areas[areas["method"] == "random"].set_index("id")["area"]
    below = areas["id"].map(chance).astype(float) - areas["area"].astype(float)
    return areas.assign(below_random=below.where(areas["method"] != "random"))
