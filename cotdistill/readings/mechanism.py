"""What notebook 09 says of the explanations: which predictions are met, and which survive."""

import pandas as pd

from cotdistill.hypotheses import COSINE, COSINE_SWAPPED, HYPOTHESES, LENS
from cotdistill.readings.common import few_seeds, how_judged, list_arms, select_nonzero
from cotdistill.show import points


def predictions() -> str:
    """Say how a prediction is judged."""
    return how_judged(len(HYPOTHESES))


def contrasts(numbers: pd.DataFrame, seeds: int) -> str:
    """Say which contrasts of p(gold) exclude zero. numbers: of `hypotheses.number_table`."""
    if numbers.empty:
        return "Nothing to compare: the arms of these contrasts were not trained."
    clear = select_nonzero(numbers)
    listed = ", ".join(f"{r.number} ({100 * r.estimate:+.1f})" for r in clear.itertuples())
    found = f": {listed}" if listed else ""
    text = f"{len(clear)} of {len(numbers)} intervals exclude zero{found}, in points of p(gold)."
    return f"{text} {few_seeds(seeds)}".strip()


def show_numbers(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return contrasts as texts in points: contrast, points with interval, seeds, questions."""
    columns = {"contrast": numbers["number"], "points of p(gold)": points(numbers)}
    counts = {"seeds": numbers["seeds"], "questions": numbers["units"]}
    return pd.DataFrame(columns | counts)


def dial(lines: pd.DataFrame) -> str:
    """Give p(gold) at each of the label's shares. lines: of `hypotheses.arm_lines`."""
    ordered = lines.sort_values("x")
    listed = ", ".join(
        f"{row.x:.0f} %: {row.value:.1f} [{row.low:.1f}, {row.high:.1f}]"
        for row in ordered.itertuples()
    )
    best = ordered.loc[ordered["value"].idxmax()]
    return (
        f"p(gold) in percent by the label's share of the loss: {listed}. It is highest at "
        f"{best['x']:.0f} % ({best['arm']})."
    )


def alignment(cosines: pd.DataFrame) -> str:
    """Give each arm's cosine before training and after the last epoch.

    cosines: of `hypotheses.cosine_table`.
    """
    if cosines.empty:
        return "Not measured: no arm with a rationale was watched."
    texts = {arm: f"{row.iloc[0]:+.2f} → {row.iloc[-1]:+.2f}" for arm, row in cosines.iterrows()}
    return (
        "Cosine of the label's and the rationale's gradients, all trained blocks together, before "
        f"training → after the last epoch: {list_arms(texts)}. Above 0, a step on the rationale "
        "lowers the label's loss too."
    )


def updates(by_updates: pd.Series, by_tokens: pd.Series) -> str:
    """Compare arms at equal label updates and at equal tokens. Of `mechanism.at_equal_cost`."""
    texts = []
    for found in (by_updates, by_tokens):
        listed = list_arms(100 * found, lambda value: f"{value:.1f} %")
        texts.append(f"{found.name}: {listed}.")
    return " ".join(texts)


def lens(lines: pd.DataFrame, found: int, asked: int) -> str:
    """Say how much likelier a student finds its own key tokens, at the last block.

    found: questions with key tokens that neither their prompt nor the other rationale holds, of
    `asked`.
    """
    if lines.empty:
        return "Not measured: no question has key tokens that its prompt does not hold."
    top = lines[lines["x"] == lines["x"].max()].set_index("line")
    texts = {
        arm: f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        for arm, row in top.iterrows()
    }
    return (
        "At the last block, before anything is written, log p of the key tokens of a question's "
        f"own rationale minus that of another question's, in nats: {list_arms(texts)}. label_only "
        "was shown no rationale: what it has, the question itself suggests. "
        f"{found} of {asked} questions have such tokens; the others are left out."
    )


def written(table: pd.DataFrame) -> str:
    """Say whether written rationales follow the answer. table: of `hypotheses.written_table`."""
    if table.empty:
        return "Not measured: no post_cot arm was watched."
    texts = {
        arm: f"{row.iloc[0]:.0f} % name the answer given; behind another option "
        f"{row.iloc[2]:.0f} % name that (unasked: {row.iloc[1]:.0f} %)"
        for arm, row in table.iterrows()
    }
    return f"Rationales that students wrote behind an answer: {list_arms(texts, separator='; ')}."


UNITS = {LENS: "nats", COSINE: "(cosine)", COSINE_SWAPPED: "(cosine)"}  # of others: points


def _write_found(row: dict) -> str:
    if pd.isna(row["estimate"]):
        return "–"
    if row["number"] not in UNITS:
        return f"{points(row)} points"
    value, low, high = (f"{row[name]:+.3f}" for name in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}] {UNITS[row['number']]}"


def show_outcomes(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the judged predictions as texts. judged: of `hypotheses.judge_predictions`.

    What was found is in points of p(gold), but for cosines, the logit lens (nats) and forced
    answers (points of the share of rationales).
    """
    words = {"+": "above 0", "-": "below 0", "0": "0"}
    return pd.DataFrame(
        {
            "hypothesis": judged["hypothesis"],
            "number": judged["number"],
            "predicted": judged["sign"].map(words),
            "found": [_write_found(row) for row in judged.to_dict("records")],
            "outcome": judged["outcome"],
        }
    )


def outcomes(left: pd.DataFrame) -> str:
    """Say which explanations survive. left: of `hypotheses.survivors`."""
    parts = []
    for word, verb in (("survives", "survive"), ("falls", "fall"), ("undecided", "are undecided")):
        names = ", ".join(left.loc[left["outcome"] == word, "hypothesis"]) or "none"
        parts.append(f"these {verb}: {names}")
    return f"Of {len(left)} explanations, {'; '.join(parts)}."


def findings(left: pd.DataFrame, judged: pd.DataFrame, note: str) -> str:
    """Say which explanations survive and which predictions were contradicted."""
    against = judged[judged["outcome"] == "contradicted"]
    listed = "; ".join(f"{r.hypothesis}: {r.number}" for r in against.itertuples()) or "none"
    counts = judged["outcome"].value_counts()
    undecided = counts.get("open", 0) + counts.get("too few seeds", 0)
    return (
        f"**Findings.** {outcomes(left)} Predictions contradicted: {listed}. Met: "
        f"{counts.get('met', 0)}; undecided: {undecided}; not measured: "
        f"{counts.get('not measured', 0)} ({note})."
    )
