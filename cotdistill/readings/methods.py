"""What notebook 11 says of attribution methods: which one to use."""

import pandas as pd

from cotdistill.method_choice import MEASURES_SHOWN
from cotdistill.readings.common import few_seeds
from cotdistill.show import percent, points

NEXT = "Next: [1 · Elicit](01_elicit.ipynb), with another study."


def choice_table(compared: pd.DataFrame, retrained: pd.DataFrame) -> pd.DataFrame:
    """Join what was measured of each method with its retraining, as one table of texts.

    compared: of `method_choice.compare_methods`; retrained: of `retrained_methods`.
    """
    table = compared.rename(columns=MEASURES_SHOWN)
    for amount, rows in retrained.groupby("amount"):
        own = rows.set_index("method")
        shown = percent(own.rename(columns={"estimate": "accuracy"}))
        ends = own[["gain", "gain_low", "gain_high"]].set_axis(["estimate", "low", "high"], axis=1)
        gap = points(ends).where(own["gain"].notna(), "–")
        name = f"retrained on {amount:g}"
        columns = pd.DataFrame({f"{name}: p(gold)": shown, f"{name}: − random (points)": gap})
        table = table.join(columns, how="outer")
    return table.rename_axis("method").dropna(axis=1, how="all")


def retrained_methods(rows: pd.DataFrame) -> str:
    """Say which methods beat random tokens, retrained. rows: of `method_choice`."""
    known = rows[rows["gain"].notna()]
    if known.empty:
        return "Not part of this study: no method's tokens were retrained beside random ones."
    clear = known[known["gain_low"] > 0]
    listed = "; ".join(f"{r.method} with {r.amount:g} ({_gain(r)})" for r in clear.itertuples())
    return (
        f"In {len(clear)} of {len(known)} cases a method's tokens beat as many random ones"
        f"{': ' + listed if listed else ''}. {few_seeds(int(rows['seeds'].max()))}"
    ).strip()


def _gain(row) -> str:
    ends = {"estimate": row.gain, "low": row.gain_low, "high": row.gain_high}
    return f"{points(ends)} points"


def findings(compared: pd.DataFrame, rows: pd.DataFrame, note: str) -> str:
    """Say which method to use, and by which measure.

    By retraining, where a method beats random tokens with every number that was tried; else by
    faithfulness, and the text says that retraining shows no difference.
    """
    texts = []
    known = rows[rows["gain"].notna()]
    always = known.groupby("method")["gain_low"].min() if len(known) else pd.Series(dtype=float)
    always = list(always.index[always > 0])
    enough = len(rows) and not few_seeds(int(rows["seeds"].max()))
    if always and enough:
        best = known[known["method"].isin(always)].groupby("method")["gain"].mean().idxmax()
        texts.append(f"Use **{best}**: retrained, it beats random tokens with every number tried")
    elif len(known):
        wins = known.assign(won=known["gain_low"] > 0).groupby("method")["won"].agg(["sum", "size"])
        most = wins["sum"].idxmax()
        often = f"; those of **{most}** do in {wins['sum'][most]} of {wins['size'][most]}"
        texts.append(
            "In retraining, no method's tokens beat random ones with every number tried"
            + (often if wins["sum"][most] and enough else "")
        )
    else:
        texts.append("Nothing was retrained, so usefulness to a student is not known")
    own = compared.drop("random", errors="ignore")
    for measure, words in (
        ("below_random", "The most faithful method is"),
        ("average_precision", "Most key tokens are found by"),
    ):
        if own[measure].notna().any():
            texts.append(f"{words} **{own[measure].idxmax()}**")
    return f"**Findings.** {'. '.join(texts)} ({note}). {NEXT}"
