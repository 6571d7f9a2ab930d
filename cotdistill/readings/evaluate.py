"""What notebook 03 says of the students' answers."""

import pandas as pd

from cotdistill.arms import PROMPTED
from cotdistill.readings.common import (
    by_measures,
    few_seeds,
    list_arms,
    section,
    select_nonzero,
    weigh,
)
from cotdistill.show import percent, points


def accuracy(forced: pd.DataFrame, chance: float, note: str) -> str:
    """Give chance, the two baselines and the best arm, by forced choice."""
    names = {"zero_shot": "the undistilled student", "label_only": "label_only"}
    rows = forced.set_index("arm")
    known = [
        f"{text}: {percent(rows.loc[arm])}" for arm, text in names.items() if arm in rows.index
    ]
    best = forced.loc[forced["accuracy"].idxmax()]
    baselines = f"By forced choice, {'; '.join(known)}. " if known else ""
    return (
        f"Chance is {100 * chance:.1f} %. {baselines}The highest is **{best['arm']}** with "
        f"{percent(best)}. Student: {note}."
    )


def failures(written: pd.DataFrame) -> str:
    """Say which trained arm names no option most often, and what a label costs in tokens."""
    rows = written.set_index("arm").drop(list(PROMPTED), errors="ignore")
    if rows.empty:
        return "No arm was trained."
    share = rows["parse_failures"] / rows["answers"]
    text = (
        f"Of the trained arms, **{share.idxmax()}** fails most often to name an option, in "
        f"{100 * share.max():.1f} % of its answers. "
        if share.max() > 0
        else "Every trained arm names an option in each of its answers. "
    )
    shown = [arm for arm in ("label_only", "pre_cot", "post_cot") if arm in rows.index]
    if not shown:
        return text.strip()
    tokens = list_arms(rows.loc[shown, "tokens_per_question"], lambda value: f"{value:.1f}")
    price = " This is the price of reasoning at test time." if "pre_cot" in shown else ""
    return f"{text}Tokens generated until the label is complete: {tokens}.{price}"


def differences(paired: pd.DataFrame, seeds: int) -> str:
    """Read each paired difference, and whether its interval excludes zero.

    paired: of `summaries.paired_table`; seeds: of the study.
    """
    if paired.empty:
        return "Not part of this study: no two of these arms were trained."
    words = {
        True: "the interval excludes zero.",
        False: "the interval includes zero, so no difference is shown.",
    }
    texts = [
        f"{r.arm_a} − {r.arm_b} by {r.by}: {100 * r.estimate:+.1f} points, "
        f"{words[bool(r.low > 0 or r.high < 0)]}"
        for r in paired.itertuples()
    ]
    if few_seeds(seeds):
        texts.append(few_seeds(seeds) + " Verdicts are in [6 · Figures](06_figures.ipynb).")
    return " ".join(texts)


def cost(written: pd.DataFrame) -> str:
    """Give right answers per 100 generated tokens."""
    rows = written[written["tokens_per_question"] > 0].set_index("arm")
    rate = 100 * rows["accuracy"] / rows["tokens_per_question"]
    found = list_arms(rate, lambda value: f"{value:.1f}")
    return f"Right answers per 100 generated tokens: {found or 'nothing was generated'}."


def flagged(forced: pd.DataFrame) -> str:
    """Say how many answers count as wrong because their rationale was cut off; empty for none."""
    rows = forced[forced.get("flagged", pd.Series(0, forced.index)) > 0].set_index("arm")
    if rows.empty:
        return ""
    shares = list_arms(100 * rows["flagged"] / rows["answers"], lambda value: f"{value:.1f} %")
    return (
        f"Answers that a limit ended within the rationale count as wrong: {shares}. Their p(gold) "
        "stays as it was scored."
    )


def facts_head(shown: pd.DataFrame) -> str:
    """Head the accuracies by where training states a question's facts; empty for other data."""
    text = (
        "Only embedded worlds know where training states the facts of a test question: behind a "
        "label (it is asked there), in rationales only, or at least one of them nowhere. If "
        "rationales teach facts, they do so in the column *rationale*. The right option may also "
        "be named more often in training rationales: the last row takes the option that is "
        "mentioned most and knows nothing else."
    )
    return section("Where a rationale can teach what a label cannot", text, shown)


def facts(difference: dict | None, mentioned: float) -> str:
    """Say what rationales teach where labels cannot; empty where the study does not ask.

    difference: post_cot - label_only on the questions whose facts only rationales state (None: not
    measured); mentioned: the share of them in which the most mentioned option is right.
    """
    if difference is None:
        return ""
    return (
        "On facts that only rationales state, post_cot − label_only is "
        f"{points(difference)} points; the most mentioned option is right for "
        f"{100 * mentioned:.1f} % of these questions."
    )


def elsewhere_head(effects: pd.DataFrame) -> str:
    """Head the answers to other datasets; empty where the study asks for none."""
    text = (
        "The same students answer the test questions of other datasets by forced choice, with "
        "nothing further trained. Accuracies first, then differences in points, with 95 % "
        "intervals. Does a gain travel?"
    )
    return section("On other datasets", text, effects)


def elsewhere(effects: pd.DataFrame) -> str:
    """Read the differences of placement on other datasets; empty where there are none.

    effects: of `breadth.elsewhere_effects`.
    """
    if effects.empty:
        return ""
    pairs = effects[effects["contrast"].str.contains(" − ")]
    texts = [
        f"{r.dataset}: {r.contrast} {points(r._asdict())} points, the interval "
        f"{'excludes' if r.low > 0 or r.high < 0 else 'includes'} zero."
        for r in pairs.itertuples()
    ]
    return " ".join([*texts, few_seeds(int(effects["seeds"].max()))]).strip()


# (a, b): what it means that a is above b, below it, and not told apart from it; the paper's claims
# come with a sentence of their own where the opposite is found
HELPS = {
    ("post_cot", "label_only"): (
        "A rationale after the label helps here",
        "The opposite of the claim: a rationale after the label does harm here",
        "No effect of a rationale after the label is shown",
    ),
    ("post_cot", "pre_cot"): (
        "A rationale after the label is better than one before it",
        "The opposite of the claim: a rationale before the label is better than one after it",
        "No difference between a rationale after the label and one before it is shown",
    ),
    ("pre_cot", "label_only"): (
        "A rationale before the label helps here",
        "A rationale before the label does harm here",
        "No effect of a rationale before the label is shown",
    ),
}


def findings(paired: pd.DataFrame, forced: pd.DataFrame, chance: float, note: str) -> str:
    """Say what the placements do, in words that follow from the numbers, then list the arms.

    paired: of `summaries.paired_table`, by one measure or several.
    """
    texts, warning = [], few_seeds(int(forced["seeds"].max()))
    for pair, rows in paired.groupby(["arm_a", "arm_b"], sort=False):
        above, below, neither = HELPS.get(pair, (f"{pair[0]} is above {pair[1]}",) * 3)
        apart = f"The measures disagree on {pair[0]} against {pair[1]}"
        words = {1: above, -1: below, 0: neither, None: apart}[weigh(rows)]
        shown = select_nonzero(rows)["by"]
        if len(shown) < len(rows) and weigh(rows):
            silent = rows.loc[~rows["by"].isin(shown), "by"]
            words += f" (shown by {' and '.join(shown)}, not by {' or '.join(silent)})"
        words = "Nothing is claimed" if warning else words
        texts.append(f"{words}: {pair[0]} − {pair[1]} is {by_measures(rows)}.")
    listed = "; ".join(f"{row['arm']} {percent(row)}" for _, row in forced.iterrows())
    return (
        f"**Findings.** {' '.join(filter(None, [*texts, warning]))} Forced choice: {listed} "
        f"(n = {forced['n'].iloc[0]} questions, chance {100 * chance:.1f} %, {note}). "
        "Next: [4 · Shuffle](04_shuffle.ipynb)."
    )
