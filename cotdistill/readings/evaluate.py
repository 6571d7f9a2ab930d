"""What notebook 03 says of the students' answers."""

import pandas as pd

from cotdistill.readings.common import few_seeds, list_arms
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
    rows = written.set_index("arm").drop("zero_shot", errors="ignore")
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
        f"{r.arm_a} − {r.arm_b}: {100 * r.estimate:+.1f} points, "
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


def facts(difference: dict | None, mentioned: float) -> str:
    """Say what rationales teach where labels cannot.

    difference: of `stats.paired_difference` on the questions whose facts only rationales state
    (None: not measured); mentioned: the share of them in which the most mentioned option is right.
    """
    if difference is None:
        return "Not part of this study: it needs microworld, with post_cot and label_only."
    return (
        "On facts that only rationales state, post_cot − label_only is "
        f"{points(difference)} points; the most mentioned option is right for "
        f"{100 * mentioned:.1f} % of these questions."
    )


def findings(forced: pd.DataFrame, chance: float, note: str) -> str:
    """List every arm by forced choice."""
    listed = "; ".join(f"{row['arm']} {percent(row)}" for _, row in forced.iterrows())
    return (
        f"**Findings.** Forced choice: {listed} (n = {forced['n'].iloc[0]} questions, chance "
        f"{100 * chance:.1f} %, {note}). Next: [4 · Shuffle](04_shuffle.ipynb)."
    )
