"""What notebook 06 says of a study's verdicts."""

import pandas as pd

from cotdistill.readings.common import select_nonzero
from cotdistill.show import percent
from cotdistill.stats import MIN_SEEDS


def accuracy(forced: pd.DataFrame, chance: float) -> str:
    """Name the best arm by forced choice, and the widest interval."""
    best = forced.loc[forced["accuracy"].idxmax()]
    wide = forced.loc[(forced["high"] - forced["low"]).idxmax()]
    return (
        f"Highest by forced choice: **{best['arm']}**, {percent(best)}; chance is "
        f"{100 * chance:.1f} %. Widest interval: **{wide['arm']}**, {percent(wide)}."
    )


def verdicts(table: pd.DataFrame, forced: pd.DataFrame, note: str) -> str:
    """Count the claims by verdict, and what was not measured and why.

    table: of `verdicts.verdicts`; forced: accuracies by forced choice; note: the student's name.
    """
    counts = table["verdict"].value_counts()
    measured = table["verdict"] != "not measured"
    few = int((table.loc[measured, "seeds"] < MIN_SEEDS).sum())
    texts = [
        f"Of {len(table)} claims: "
        + ", ".join(f"**{n} {verdict}**" for verdict, n in counts.items())
        + f". The study has {int(forced['n'].iloc[0])} test questions and "
        f"{int(forced['seeds'].max())} seed(s); student: {note}."
    ]
    if few:
        texts.append(
            f"{few} of them rest on fewer than {MIN_SEEDS} seeds, which cannot show how much "
            "seeds vary: inconclusive by rule, whatever p is."
        )
    if not measured.all():
        missing = ", ".join(
            f"{r.claim} ({r.reason.rstrip('.')})" for r in table[~measured].itertuples()
        )
        texts.append(f"Not measured: {missing}.")
    return " ".join(texts)


def in_spite_of_p(table: pd.DataFrame, alpha: float) -> str:
    """List claims that stay inconclusive although their p is small, and why; empty for none."""
    rows = table[
        (table["verdict"] == "inconclusive")
        & (table["p_holm"] < alpha)
        & (table["seeds"] >= MIN_SEEDS).fillna(False).astype(bool)
    ]
    if rows.empty:
        return ""
    return "Inconclusive in spite of a small p:\n\n" + _list_claims(rows)


def needed(table: pd.DataFrame, seeds: int) -> str:
    """Say what the sizes mean that would decide the open claims; empty where none is open.

    seeds: of the study.
    """
    rows = table[table["needed"].fillna("") != ""]
    if rows.empty:
        return ""
    texts = [
        "The table shows what would decide the open claims, if seeds and questions vary as here."
    ]
    if (rows["seeds"] < MIN_SEEDS).any():
        texts.append(
            f"With fewer than {MIN_SEEDS} seeds that variance is itself a guess: read the sizes as "
            "orders of magnitude."
        )
    over = int(rows["needed"].str.startswith("over 100 seeds").sum())
    texts.append(
        f"{over} of these {len(rows)} contrasts would need over 100 seeds with the questions of "
        "this study."
        if seeds > 1
        else "One seed says nothing about how much seeds vary: these sizes are lower bounds."
    )
    return " ".join(texts)


def forest(table: pd.DataFrame) -> str:
    """Say which intervals of the forest plot exclude zero."""
    drawn = table[table["estimate"].notna() & (table["measure"] != "correct_per_100_tokens")]
    clear = select_nonzero(drawn)
    found = ", ".join(f"{r.contrast} ({100 * r.estimate:+.1f})" for r in clear.itertuples())
    return (
        f"{len(clear)} of {len(drawn)} intervals of this study exclude zero"
        f"{f': {found}' if found else ''}. Each is the 95 % interval of one contrast, not adjusted "
        "for their number."
    )


def pooled(studies: int) -> str:
    """Say how to read the table of pooled estimates; empty for one study."""
    if studies < 2:
        return ""
    return (
        f"Pooled over {studies} studies (random effects), as fractions: 0.02 is two points; right "
        "answers per 100 tokens are not fractions. *i2* is the share of the spread that lies "
        "between studies."
    )


def findings(table: pd.DataFrame) -> str:
    """List supported and contradicted claims with their reasons, and count the rest."""
    parts = []
    for verdict in ("supported", "contradicted"):
        rows = table[table["verdict"] == verdict]
        head = f"**Findings: {verdict}, {len(rows)} of {len(table)} claims.**"
        parts += [head, _list_claims(rows)] if len(rows) else [head]
    counts = table["verdict"].value_counts()
    parts.append(
        f"Inconclusive: {counts.get('inconclusive', 0)}; not measured: "
        f"{counts.get('not measured', 0)}. Next: the same with more seeds, other data or another "
        "student, one file in `params/` each, or key tokens chosen by hand in `explore.ipynb`."
    )
    return "\n\n".join(parts)


def _list_claims(rows: pd.DataFrame) -> str:
    return "\n".join(f"- *{r.words}* {r.reason}" for r in rows.itertuples())
