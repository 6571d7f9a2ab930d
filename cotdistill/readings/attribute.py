"""What notebook 05 says of attributions, key tokens and masking."""

import pandas as pd

from cotdistill.arms import PROMPTED
from cotdistill.readings.common import select_nonzero
from cotdistill.show import points

# Headings and first sentences of sections that not every study has
SECTIONS = {
    "methods": """## Methods side by side

On a sample of training questions. How far does a rationale move log p(label) at all? What it does
not move, no method can share out among tokens. Integrated gradients must add up: their error is
what is missing between the sum of the scores and the change from the baseline to the whole
rationale.""",
    "shaded": """One question of the embedded data, its rationale shaded by the first methods of
`check_methods` (three at most). Orange speaks for the label; blue, underlined, speaks against it.
Each panel has a scale of its own.""",
    "right": """## Is the attribution right?

Removing the tokens that a method ranks high should lower log p(label) more than removing random
ones (*comprehensiveness*), and keeping only them should lower it less (*sufficiency*, low is good);
both in nats, at 10, 20 and 50 % of the tokens. *Area* is the mean height of the deletion curve;
*below random*, how far it lies below that of random orders on the same questions. Beside them, the
share of a method's top tokens that are words of the label. Intervals are over questions.""",
    "agreement": """Agreement between methods: Kendall's τ (*tau*) over the tokens of the same
rationale, with intervals over questions; *overlap* is the share of the top tokens that two methods
have in common, *chance* that of two random choices.""",
    "randomised": """A method that does not depend on what the student learnt cannot explain it: the
rank correlation with the attributions of a student whose weights were redrawn should be near
zero.""",
    "key_tokens": """On microworld the key tokens are known: how many of a method's top tokens are
among them? As many are taken as there are, so that recall equals precision; average precision
counts over all sizes.""",
    "words": """What kind of word is selected, on the sample: shares of the selected words, beside
all words; the three *in …* rows are shares of the content words only. Classes come from a rule (a
list of function words, and suffixes).""",
    "suffice": """## Do key tokens suffice?

Claim 3 expects the bar of the attributed tokens beside the full rationale, and above as many random
tokens.""",
    "masking": """## Masking more and more

Where does the curve reach the label_only band?""",
}
UNTOLD = 0.5  # nats; an interval that reaches above is too wide to rule out much knowledge by heart
LITTLE = 0.1  # nats; a rationale that moves log p(label) by less leaves little to attribute


def section(name: str, shown: bool | pd.DataFrame) -> str:
    """Open a section: its heading and what to expect of it; empty where it has nothing to show.

    shown: whether it has, or its table.
    """
    empty = shown.empty if isinstance(shown, pd.DataFrame) else not shown
    return "" if empty else SECTIONS[name]


def attributor(model: str, fingerprints: list[str], questions: int) -> str:
    """Say which student attributes, and to how many questions.

    model: pre_cot, cross_fitted or undistilled; fingerprints: of its weights, two if cross_fitted.
    """
    names = ", ".join(one[:12] for one in fingerprints)
    if model == "cross_fitted":
        return (
            f"Attribution by two pre_cot students ({names}) on {questions} training questions: "
            "each was trained on one half of them and attributes the other. They never saw the "
            "test set."
        )
    seen = " It was trained on the questions that it attributes." if model == "pre_cot" else ""
    return (
        f"Attribution by {model} ({names}) on {questions} training questions; it never "
        f"saw the test set.{seen}"
    )


def by_heart(known: pd.DataFrame) -> str:
    """Say whether the student knows the questions that it attributes by heart.

    known: of `movement.known_by_heart`; empty text where there are no held-out questions.
    """
    rows = known.set_index("questions")
    untrained = "before" in rows and (rows["before"] == 0).all()
    if untrained:
        return "The undistilled student was trained on none of these questions."
    if "held out" not in rows.index or "attributed" not in rows.index:
        return ""
    row = rows.loc["attributed"]
    by = (
        f"with no rationale at all, training changed log p of their labels by {_difference(row)} "
        "nats relative to held-out questions"
    )
    if row["low"] > 0:
        said = (
            f"The attributing student knows its questions by heart, at least in part: {by}. It "
            "needs their rationales less than it would need those of new questions."
        )
    elif row["high"] > UNTOLD:
        said = (
            "Whether the attributing student knows its questions by heart cannot be told from "
            f"{row['n']:.0f} of them: {by}."
        )
    else:
        said = f"No sign that the attributing student knows its questions by heart: {by}."
    if "trained on" in rows.index:
        own = rows.loc["trained on"]
        avoided = ": what cross-fitting avoids" if own["low"] > 0 else ""
        said += (
            " For the questions that each student was trained on it is "
            f"{_difference(own)} nats{avoided}."
        )
    return said


def _difference(row: pd.Series) -> str:
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def moved(table: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Say how far rationales move log p(label), and how much of it integrated gradients miss.

    table: of `movement.movement`; gaps: of `checks.completeness`, empty without the method.
    """
    if table.empty:
        return ""
    low, middle, high = table["moved"].quantile([0.25, 0.5, 0.75])
    little = (table["moved"].abs() < LITTLE).mean()
    said = (
        f"The whole rationale moves log p(label) by a median of {middle:+.2f} nats (quartiles "
        f"{low:+.2f} and {high:+.2f}), {_percent(table['share'].median())} of what is missing to "
        "certainty."
    )
    if little:
        said += (
            f" {_percent(little)} of the {len(table)} rationales move it by less than {LITTLE:g} "
            "nats, which leaves little to attribute."
        )
    if len(gaps):
        said += (
            f" Integrated gradients miss a median of {gaps['delta'].abs().median():.2f} nats, "
            f"{_percent(gaps['relative'].median())} of the change."
        )
    return said


def _percent(share: float) -> str:
    """Write a share as a whole percentage, never as "-0 %"."""
    return f"{round(100 * share) + 0:d} %"


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
    if means.empty:
        return ""
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


def deletion(means: pd.DataFrame) -> str:
    """Give the mean height of each deletion curve with its interval, lowest first.

    means: of `MethodScores.comparison`, in nats.
    """
    areas = means[means["measure"] == "area"].sort_values("value") if len(means) else means
    if areas.empty:
        return ""
    found = ", ".join(f"{r.method} {_interval(r)}" for r in areas.itertuples())
    return (
        "The lower a curve, the more its first tokens mattered. Mean height from 0 to 100 % of the "
        f"tokens, in nats, lowest first: {found}."
    )


def _interval(row) -> str:
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


def ranking(means: pd.DataFrame) -> str:
    """Say which methods find what matters better than random orders do.

    means: of `MethodScores.comparison`; decided by the area between the two deletion curves of the
    same questions, and its interval.
    """
    rows = means[means["measure"] == "below_random"].dropna(subset="value") if len(means) else means
    if rows.empty:
        return ""
    groups = {
        "Better than random": rows["low"] > 0,
        "no better than random": (rows["low"] <= 0) & (rows["high"] >= 0),
        "worse than random": rows["high"] < 0,
    }
    found = [
        f"{name}: {', '.join(f'{r.method} ({_interval(r)} nats)' for r in rows[test].itertuples())}"
        for name, test in groups.items()
        if test.any()
    ]
    said = "; ".join(found)
    return (
        f"{said[0].upper()}{said[1:]}, by the area between the deletion curves of "
        f"{rows['n'].max()} questions."
    )


def label_words(means: pd.DataFrame, amount: float) -> str:
    """Say which share of each method's top tokens are words of the label.

    means: of `MethodScores.comparison`; amount: the size of the top, a number or a fraction.
    """
    rows = means[means["measure"] == "label_share"] if len(means) else means
    if rows.empty:
        return ""
    everything = means.loc[means["measure"] == "all_share", "value"].iloc[0]
    size = f"{amount:g}" if amount >= 1 else f"{100 * amount:g} % of"
    found = ", ".join(
        f"{r.method} {100 * r.value:.0f} %"
        for r in rows.sort_values("value", ascending=False, kind="stable").itertuples()
    )
    return (
        f"Words of the label are {100 * everything:.0f} % of all tokens; among the top {size} "
        f"tokens they are: {found}."
    )


def agreement(table: pd.DataFrame, questions: int) -> str:
    """Say which two methods agree most, and how often an agreement is clearly not zero.

    table: of `checks.agreement`; questions: how many rationales it is over.
    """
    tau = table[table["measure"] == "tau"].sort_values("value", ascending=False)
    if tau.empty:
        return ""
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
    if table.empty:
        return ""
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
        return ""
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

    shares: property x (methods, "all words"), shares from 0 to 1; empty without methods.
    """
    if shares.empty:
        return ""
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
    trained = forced[~forced["arm"].isin(PROMPTED)].sort_values("accuracy", ascending=False)
    return f"From high to low: {', '.join(trained['arm'])}; chance is {100 * chance:.1f} %."


def rivals(paired: pd.DataFrame) -> str:
    """Compare attributed key tokens with as many random ones, a sentence per pair."""
    if paired.empty:
        return "Not part of this study: no selector was run beside random with as many tokens."
    return " ".join(
        f"{row['arm_a']} against as many random tokens: {points(row)} points."
        for row in paired.to_dict("records")
    )


def without_label(paired: pd.DataFrame) -> str:
    """Say what key tokens lose where the label's own words may not be among them.

    paired: of `summaries.paired_table`, each selector minus its variant without them.
    """
    said = []
    for row in paired.to_dict("records"):
        if row["low"] > 0:
            text = "part of what they do is that the label is among them"
        elif row["high"] < 0:
            text = "they do better without the label's words"
        else:
            text = "no difference to be seen: nothing says that they only repeat the label"
        said.append(f"{row['arm_a']} against {row['arm_b']}: {points(row)} points; {text}.")
    return " ".join(said)


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
    approximate = ""
    if len(gaps):
        gap = gaps["relative"].median()
        exactness = "the key tokens are approximate" if gap > 0.1 else "they account for it"
        approximate = (
            f" The selecting scores miss {_percent(gap)} of the change in log p(label) (median of "
            f"{len(gaps)} rationales): {exactness}."
        )
    asked = "" if masked else " Not part of this study: masking (`mask_amounts` is empty)."
    return (
        f"**Findings.** Points against the full rationale: {arms or 'nothing to compare'} "
        f"(n = {forced['n'].iloc[0]} questions, {int(forced['seeds'].max())} seed(s), {note})."
        f"{approximate}{asked} Next: [6 · Figures](06_figures.ipynb)."
    )


def worth(known: pd.DataFrame, table: pd.DataFrame, gaps: pd.DataFrame, means: pd.DataFrame) -> str:
    """Say what the attributions of this study are worth, in one paragraph; empty without a sample.

    known, table, gaps, means: as for `by_heart`, `moved` and `ranking`.
    """
    parts = [moved(table, gaps), by_heart(known), ranking(means)]
    return f"**What attribution found.** {' '.join(filter(None, parts))}" if len(table) else ""
