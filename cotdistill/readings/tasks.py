"""What notebook 07 says of questions of more and fewer steps."""

import pandas as pd

from cotdistill.readings.common import few_seeds, list_arms, section, select_nonzero
from cotdistill.show import percent, points
from cotdistill.stats import MEASURE_NAMES
from cotdistill.tasks import count_steps

NEXT = "Next: [8 · Lasting](08_lasting.ipynb)."


def known(rows: pd.DataFrame, asked: int) -> str:
    """Say how many test questions there are of each number of steps, and how many are left out.

    rows: of `tasks.add_steps`; asked: the number of test questions.
    """
    counts = rows.drop_duplicates("id")["steps"].value_counts().sort_index()
    left = asked - counts.sum()
    if counts.empty:
        return (
            f"The steps are known of none of {asked} test questions, so the sections by steps are "
            "left out. Own data may have a field `steps`."
        )
    listed = ", ".join(f"{count} of {count_steps(steps)}" for steps, count in counts.items())
    out = "none is left out" if not left else f"{left} are left out (not known, or too few)"
    return f"Of {asked} test questions: {listed}; {out}."


def levels_head(shown: pd.DataFrame) -> str:
    """Head the table of arms by steps; empty where no steps are known."""
    text = (
        "If a student learns to reason, pre_cot falls less than the others as steps grow; if it "
        "learns facts and words, all arms fall alike. Intervals are over seeds and facts."
    )
    return section("How far each arm gets", text, shown)


def levels(rows: pd.DataFrame, chance: float) -> str:
    """Give each arm's p(gold) with the fewest and with the most steps, and who is above chance.

    rows: of `tasks.arms_by_steps`; chance: the share of right answers of a uniform guess.
    """
    if rows.empty:
        return ""
    few, most = rows["steps"].min(), rows["steps"].max()
    if few == most:
        return f"All questions take {count_steps(few)}: nothing grows."
    texts = {}
    for arm, part in rows[rows["measure"] == "p_gold"].groupby("arm", sort=False):
        by = part.rename(columns={"estimate": "accuracy"}).set_index("steps")
        if {few, most} <= set(by.index):
            texts[arm] = f"{percent(by.loc[few])} → {percent(by.loc[most])}"
    last = rows[(rows["measure"] == "p_gold") & (rows["steps"] == most)]
    able = ", ".join(last.loc[last["low"] > chance, "arm"]) or "none"
    return (
        f"p(gold) with {count_steps(few)} → with {count_steps(most)}: "
        f"{list_arms(texts, separator='; ')}. With {count_steps(most)}, arms whose interval lies "
        f"above chance ({100 * chance:.0f} %): {able}. Where an arm is at chance, shuffling has "
        "nothing to take away."
    )


def cut_off(rows: pd.DataFrame) -> str:
    """Say by steps how many written rationales a limit ended; empty where none was."""
    flags = rows["rationale_cut_off"] if "rationale_cut_off" in rows else pd.Series(dtype=object)
    shares = flags.eq(True).groupby(rows["steps"]).mean() if len(flags) else flags
    if not shares.max() > 0:
        return ""
    of_arms = rows[flags.eq(True)]["arm"].unique()
    own = rows[rows["arm"].isin(of_arms)]
    shares = own["rationale_cut_off"].eq(True).groupby(own["steps"]).mean()
    listed = ", ".join(f"{count_steps(n)}: {100 * share:.1f} %" for n, share in shares.items())
    return (
        f"Rationales that a limit ended before an answer ({', '.join(of_arms)}), by steps: "
        f"{listed}. They count as wrong; their p(gold) stays as scored."
    )


def contrasts_head(shown: pd.DataFrame) -> str:
    """Head the table of contrasts by steps."""
    text = (
        "What a place or an order is worth, in points, and by how much that changes with each step "
        "(least squares over all questions). A change above 0 in the first row says that writing "
        "the rationale first pays more as steps grow; one below 0 in a row of a shuffled arm, that "
        "shuffling hurts more."
    )
    return section("Does it grow with the steps?", text, shown)


def contrasts(rows: pd.DataFrame, seeds: int) -> str:
    """Say which contrasts change with the steps. rows: of `tasks.contrasts_by_steps`."""
    slopes = rows[rows["steps"] == 0]
    if slopes.empty:
        return ""
    clear = select_nonzero(slopes)
    listed = "; ".join(
        f"{row['contrast']} by {MEASURE_NAMES[row['measure']]}: {points(row)} points per step"
        for row in clear.to_dict("records")
    )
    text = f"{len(clear)} of {len(slopes)} changes per step exclude zero"
    return f"{text}{': ' + listed if listed else ''}. {few_seeds(seeds)}".strip()


def findings(judged: pd.DataFrame, left: pd.DataFrame, note: str) -> str:
    """Say which explanation survives, and what was met, contradicted and left open.

    judged: of `hypotheses.judge_predictions`; left: of `hypotheses.survivors`.
    """
    texts = [f"*{row.hypothesis}* {_outcome(row)}" for row in left.itertuples()]
    parts = []
    for word in ("met", "contradicted"):
        rows = judged[judged["outcome"] == word]
        listed = "; ".join(f"{r['number']} {points(r)}" for r in rows.to_dict("records"))
        parts.append(f"Predictions {word}: {listed or 'none'}.")
    rest = len(judged) - judged["outcome"].isin(["met", "contradicted"]).sum()
    return (
        f"**Findings.** {'; '.join(texts)}. {' '.join(parts)} Left open or not measured: {rest} of "
        f"{len(judged)} ({note}). {NEXT}"
    )


def _outcome(row) -> str:
    counts = f"({row.met} met, {row.contradicted} contradicted of {row.predictions})"
    return f"{'is undecided' if row.outcome == 'undecided' else row.outcome} {counts}"
