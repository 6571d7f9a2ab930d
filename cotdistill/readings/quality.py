"""What notebook 10 says of sets of rationales: how good they are, and what they lead to."""

import numpy as np
import pandas as pd

from cotdistill.rationale_quality import MIN_SETS, MIN_SPREAD, OWN, POST_ALL, PRE_ALL, QUALITIES
from cotdistill.readings.common import few_seeds, section, select_nonzero
from cotdistill.show import percent, points

NEXT = "Next: [11 · Methods](11_methods.ipynb)."


def sets(quality: pd.DataFrame, asked: int) -> str:
    """Say which sets there are, and on how many questions all arms are trained.

    quality: of `rationale_quality.measure_sets`; asked: training questions of the study.
    """
    count = quality["questions"].iloc[0]
    return (
        f"{len(quality)} sets: {', '.join(quality['set'])}. *{OWN}* are the rationales of stage "
        f"elicit. All arms train on the {count} of {asked} training questions that every set "
        "covers and that fit."
    )


def show_quality(quality: pd.DataFrame) -> pd.DataFrame:
    """Return the measured quality as a table, shares in percent, without what no set knows."""
    shown = quality.set_index("set")
    table = pd.DataFrame({"facts made wrong (%)": 100 * shown["wrong"]})
    for measure, name in QUALITIES.items():
        table[name] = shown[measure] * (100 if "%" in name else 1)
    return table.dropna(axis=1, how="all")


def quality_of_sets(quality: pd.DataFrame) -> str:
    """Say between what each measured quality ranges over the sets."""
    texts = []
    for measure, name in QUALITIES.items():
        values = quality[measure].dropna() * (100 if "%" in name else 1)
        if len(values):
            texts.append(f"{name}: {values.min():.1f} to {values.max():.1f}")
    return f"Over the sets, {'; '.join(texts)}."


def show_levels(rows: pd.DataFrame) -> pd.DataFrame:
    """Return p(gold) of every set and arm as texts, with its gap to label_only in points."""
    own = rows.rename(columns={"estimate": "accuracy"})
    gap = rows[["gain", "gain_low", "gain_high"]].set_axis(["estimate", "low", "high"], axis=1)
    columns = {"set": rows["set"], "arm": rows["arm"], "p(gold)": percent(own)}
    columns |= {"− label_only (points)": points(gap)}
    counts = {"seeds": rows["seeds"], "questions": rows["questions"]}
    return pd.DataFrame(columns | counts).set_index("set")


def levels(table: pd.DataFrame) -> str:
    """Give each arm's best and worst set by p(gold). table: of `rationale_quality.set_levels`."""
    texts = []
    for arm, rows in table.groupby("arm", sort=False):
        best, worst = (rows.loc[rows["estimate"].agg(end)] for end in ("idxmax", "idxmin"))
        texts.append(
            f"**{arm}** is highest on *{best['set']}* ({100 * best['estimate']:.1f} %) and lowest "
            f"on *{worst['set']}* ({100 * worst['estimate']:.1f} %)"
        )
    above, below = (
        ", ".join(f"{row.arm} on {row.set}" for row in table[chosen].itertuples()) or "none"
        for chosen in (table["gain_low"] > 0, table["gain_high"] < 0)
    )
    return (
        f"p(gold): {'; '.join(texts)}. By intervals not adjusted for their number, above "
        f"label_only: {above}; below it: {below}."
    )


def correlations_head(shown: pd.DataFrame, quality: pd.DataFrame) -> str:
    """Head the rank correlations; empty where too few sets are known.

    quality: of `rationale_quality.measure_sets`; what its sets hardly differ in is named.
    """
    alike = [
        name
        for measure, name in QUALITIES.items()
        if quality[measure].notna().sum() >= MIN_SETS and measure not in set(shown["quality"])
    ]
    left_out = (
        f" Left out, as the sets differ by less than {100 * MIN_SPREAD:g} % of the mean: "
        f"{', '.join(alike)}."
        if alike
        else ""
    )
    text = (
        "Spearman's rank correlation of a measured quality with p(gold), over sets. The interval "
        "is for these sets, under other seeds and questions; p counts in how many orders of the "
        "sets the correlation would be as far from 0, which with few sets is never small."
        f"{left_out}"
    )
    return section("Which quality goes with p(gold)?", text, shown)


def show_correlations(found: pd.DataFrame) -> pd.DataFrame:
    """Return rank correlations as texts: arm, quality, rho with interval, p, sets."""
    rho = [f"{r.rho:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in found.itertuples()]
    p = ["–" if np.isnan(value) else f"{value:.3f}" for value in found["p"]]
    names = found["quality"].map(QUALITIES)
    columns = {"arm": found["arm"], "quality": names, "rank correlation": rho}
    return pd.DataFrame(columns | {"p over orders of sets": p, "sets": found["sets"]})


def correlations(found: pd.DataFrame, count: int) -> str:
    """Say which rank correlations exclude zero, or that there are too few sets.

    count: of sets.
    """
    if found.empty:
        return f"{count} sets: a rank correlation is given from {MIN_SETS} sets on."
    clear = select_nonzero(found)
    listed = "; ".join(
        f"{r.arm} and {QUALITIES[r.quality]} ({r.rho:+.2f}, {r.sets} sets)"
        for r in clear.itertuples()
    )
    alike = (found.groupby("arm").size() > 1).all() and np.isclose(found["rho"].abs(), 1).all()
    matters = (
        "All qualities order the sets alike or the other way round, so this is one comparison per "
        "arm, and it cannot say which quality matters."
        if alike
        else "Sets differ in several qualities at once: a correlation does not say which one "
        "matters."
    )
    return (
        f"{len(clear)} of {len(found)} intervals exclude zero{': ' + listed if listed else ''}. "
        f"{matters}"
    )


def findings(table: pd.DataFrame, left: pd.DataFrame, judged: pd.DataFrame, note: str) -> str:
    """Say which explanation survives, and what the sets lead to.

    table: of `rationale_quality.set_levels`; left: of `hypotheses.survivors`; judged: of
    `hypotheses.judge_predictions`.
    """
    measured = judged[judged["outcome"] != "not measured"]
    if measured.empty:
        said = "No set with wrong facts was made, so no prediction is judged."
    else:
        costs = [
            f"{row['number'].partition(':')[0]} {points(row)}"
            for row in measured.drop_duplicates("number").to_dict("records")
            if row["number"] in (POST_ALL, PRE_ALL)
        ]
        listed = " and ".join(costs)
        said = f"Right facts minus all facts wrong: {listed} points of p(gold); " if costs else ""
        said += ", ".join(f"*{r.hypothesis}* {_verb(r.outcome)}" for r in left.itertuples())
        said += f" ({(judged['outcome'] == 'met').sum()} predictions met, "
        said += f"{(judged['outcome'] == 'contradicted').sum()} contradicted of {len(judged)})."
    texts = [said, levels(table), few_seeds(int(table["seeds"].max()))]
    return f"**Findings.** {' '.join(filter(None, texts))} Student: {note}. {NEXT}"


def _verb(outcome: str) -> str:
    return "is undecided" if outcome == "undecided" else outcome
