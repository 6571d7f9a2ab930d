"""What notebook 05 says of attributions, key tokens and masking."""

import pandas as pd

from cotdistill.readings.common import select_nonzero
from cotdistill.show import points


def attributor(model: str, fingerprint: str, questions: int) -> str:
    """Say which student attributes, and to how many questions.

    model: pre_cot or undistilled.
    """
    return (
        f"Attribution by {model} ({fingerprint[:12]}) on {questions} training questions; it never "
        "saw the test set."
    )


def completeness(gaps: pd.DataFrame, n_steps: int) -> str:
    """Say whether integrated gradients add up.

    gaps: of `checks.completeness`; empty where the method was not compared.
    """
    if gaps.empty:
        return ""
    gap = 100 * gaps["relative"].median()
    advice = (
        "Below 10 %: the scores account for the change."
        if gap < 10
        else "That is more than 10 %: read single scores with care, or raise `n_steps`."
    )
    return f"The median gap is {gap:.1f} % of the change, with {n_steps} steps. {advice}"


def top_tokens(top: dict[str, str]) -> str:
    """Name the token that speaks most for the label, by each method but random."""
    named = ", ".join(f"{method} “{word}”" for method, word in top.items() if method != "random")
    return f"The token that speaks most for the label, by each method: {named}." if named else ""


def faithfulness(means: pd.DataFrame, questions: int) -> str:
    """Say which methods order tokens better than chance.

    means: of `checks.mean_intervals`, a row per method and measure (comprehensiveness,
    sufficiency: value, low, high in nats); questions: how many they are means over.
    """
    value, low, high = (
        means.pivot(index="method", columns="measure", values=name)
        for name in ("value", "low", "high")
    )
    if "random" not in value.index:
        return "No comparison with random: it is not one of `check_methods`."
    chance, others = value.loc["random"], [m for m in value.index if m != "random"]
    better = [
        m
        for m in others
        if value["comprehensiveness"][m] > chance["comprehensiveness"]
        and value["sufficiency"][m] < chance["sufficiency"]
    ]
    clearly = [
        m
        for m in better
        if low["comprehensiveness"][m] > chance["comprehensiveness"]
        and high["sufficiency"][m] < chance["sufficiency"]
    ]
    return (
        f"Better than random on both, by their means over {questions} questions: "
        f"{', '.join(better) or 'none'}; with intervals that exclude random's means: "
        f"{', '.join(clearly) or 'none'}."
    )


def deletion(curves: pd.DataFrame) -> str:
    """Give the mean height of each deletion curve, lowest first."""
    height = curves.groupby("method", sort=False)["value"].mean().sort_values()
    found = ", ".join(f"{method} {value:.2f}" for method, value in height.items())
    return (
        "The lower a curve, the more its first tokens mattered. Mean log p(label) over the "
        f"fractions, lowest first: {found}."
    )


def agreement(table: pd.DataFrame, questions: int) -> str:
    """Say which two methods agree most, and how often an agreement is clearly not zero.

    table: of `checks.agreement`; questions: how many rationales it is over.
    """
    tau = table[table["measure"] == "tau"].sort_values("value", ascending=False)
    if tau.empty:
        return "There are no two methods to compare."
    first, clear = tau.iloc[0], select_nonzero(tau)
    with_random = (clear[["method_a", "method_b"]] == "random").any(axis=1).sum()
    return (
        f"{first['method_a']} and {first['method_b']} agree most (τ {first['value']:.2f}); "
        f"{len(clear)} of {len(tau)} pairs have an interval that excludes zero, {int(with_random)} "
        f"of them with random, where there is nothing to find: over {questions} rationales a "
        "bootstrap interval is too narrow."
    )


def randomised(table: pd.DataFrame) -> str:
    """Give the rank correlation with a student whose weights were redrawn."""
    rho = table["rho"]
    return (
        f"Mean ρ {rho.mean():.2f} over {len(table)} rationales, from {rho.min():.2f} to "
        f"{rho.max():.2f}. With so few, the check can expose a method that ignores the student (ρ "
        "near 1); it cannot prove that a method does not."
    )


def key_tokens(hits: pd.DataFrame, questions: int) -> str:
    """Name the method that ranks the known key tokens best, beside a random order.

    hits: a row per method and question, of `checks.key_token_precision_recall`.
    """
    if hits.empty:
        return "Not part of this study: only microworld knows its key tokens."
    mean = hits.groupby("method")["average_precision"].mean()
    columns = ["tokens", "key_tokens", "chance", "chance_average_precision"]
    chance = hits.groupby("id")[columns].first().mean()
    return (
        f"On average {chance['key_tokens']:.1f} of {chance['tokens']:.1f} tokens are key tokens. "
        f"Highest mean average precision: {mean.idxmax()}, {mean.max():.2f}; a random order is "
        f"expected to reach {chance['chance_average_precision']:.2f}, and a precision of "
        f"{chance['chance']:.2f}. {questions} rationales cannot rank methods whose intervals "
        "overlap."
    )


def selecting_gaps(gaps: pd.DataFrame) -> str:
    """Say how far the integrated gradients that select tokens are from adding up."""
    if gaps.empty:
        return ""
    gap = gaps["relative"]
    return (
        f"Integrated gradients of all {len(gap)} rationales: the median gap is "
        f"{100 * gap.median():.0f} % of the change in log p(label), and "
        f"{100 * (gap > 0.1).mean():.0f} % of them miss more than 10 % of it."
    )


def words(shares: pd.DataFrame, method: str) -> str:
    """Say what kind of word a method selects, beside all words and random choices.

    shares: property x (methods, "all words"), shares from 0 to 1.
    """
    everything, mine = shares["all words"], shares[method]
    random = shares.get("random")
    content = f" and {100 * random['content']:.0f} % of random's" if random is not None else ""
    label = f", {100 * random['in_label']:.0f} % of random's" if random is not None else ""
    return (
        f"Content words are {100 * everything['content']:.0f} % of all words, "
        f"{100 * mine['content']:.0f} % of those that {method} selects{content}. Of its content "
        f"words, {100 * mine['in_label']:.0f} % appear in the label "
        f"({100 * everything['in_label']:.0f} % of all content words do{label})."
    )


def order(forced: pd.DataFrame, chance: float) -> str:
    """List the trained arms from high to low."""
    trained = forced[forced["arm"] != "zero_shot"].sort_values("accuracy", ascending=False)
    return f"From high to low: {', '.join(trained['arm'])}; chance is {100 * chance:.1f} %."


def rivals(paired: pd.DataFrame) -> str:
    """Compare attributed key tokens with as many random ones, a sentence per pair."""
    if paired.empty:
        return "Not part of this study: no selector was run beside random with as many tokens."
    return " ".join(
        f"{row['arm_a']} against as many random tokens: {points(row)} points."
        for row in paired.to_dict("records")
    )


def against_full(paired: pd.DataFrame) -> str:
    """Say which arms differ from the full rationale.

    paired: of `summaries.paired_table`, each arm against post_cot and label_only.
    """
    rows = select_nonzero(paired[paired["arm_b"] == "post_cot"])
    found = ", ".join(f"{row['arm_a']} ({points(row)})" for row in rows.to_dict("records"))
    return (
        "Against the full rationale the interval excludes zero for "
        f"{found or 'none of these arms'}."
    )


def findings(
    paired: pd.DataFrame,
    forced: pd.DataFrame,
    gaps: pd.DataFrame,
    masked: bool,
    note: str,
) -> str:
    """Give points against the full rationale, and how exact the selecting scores are.

    paired: as for `against_full`; gaps: of the selecting scores; masked: whether the study masks.
    """
    rows = paired[paired["arm_b"] == "post_cot"].to_dict("records")
    arms = "; ".join(f"{row['arm_a']} {points(row)}" for row in rows)
    approximate = (
        f" The selecting scores miss {100 * gaps['relative'].median():.0f} % of the change in log "
        f"p(label) (median of {len(gaps)} rationales): the key tokens are approximate."
        if len(gaps)
        else ""
    )
    asked = "" if masked else " Not part of this study: masking (`mask_amounts` is empty)."
    return (
        f"**Findings.** Points against the full rationale: {arms or 'nothing to compare'} "
        f"(n = {forced['n'].iloc[0]} questions, {int(forced['seeds'].max())} seed(s), {note})."
        f"{approximate}{asked} Next: [6 · Figures](06_figures.ipynb)."
    )
