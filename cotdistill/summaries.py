"""Small tables that the notebooks show, made from results, histories and accuracies."""

import numpy as np
import pandas as pd

from cotdistill.show import percent, points
from cotdistill.stats import paired_difference
from cotdistill.verdicts import RULES, estimate_text

MEASURE_NAMES = {"correct_choice": "forced choice", "correct_generated": "written answer"}


def results_table(
    forced: pd.DataFrame, written: pd.DataFrame | None = None, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Accuracies with their intervals as text, a row per arm.

    forced, written: of `stats.accuracy_table`. columns: further ones, of "interval over", "parse
    failures (%)", "cut off (%)" and "tokens per question".
    """
    table = forced[["arm", "n", "seeds"]].assign(**{"forced choice": percent(forced)})
    if written is not None:
        table["written answer"] = percent(written)
    answers = forced if written is None else written
    for name in columns:
        table[name] = _result_column(answers, name)
    return table.set_index("arm")


def _result_column(rows: pd.DataFrame, name: str) -> pd.Series:
    if name == "parse failures (%)":
        return 100 * rows["parse_failures"] / rows["answers"]
    if name == "cut off (%)":
        return 100 * rows["cut_off"] / rows["answers"]
    return rows[{"interval over": "covers"}.get(name, name.replace(" ", "_"))]


def failure_table(written: pd.DataFrame) -> pd.DataFrame:
    """Answers of each arm, and how many name no option or were cut off."""
    table = written.set_index("arm")[["answers", "tokens_per_question"]].copy()
    for name in ("parse_failures", "cut_off"):
        shares = 100 * written[name] / written["answers"]
        table[name.replace("_", " ")] = [f"{share:.1f} %" for share in shares]
    return table


def paired_table(
    predictions: pd.DataFrame,
    pairs: list[tuple[str, str]],
    rng: np.random.Generator,
    bootstrap: int,
    measures: tuple[str, ...] = ("correct_choice",),
) -> pd.DataFrame:
    """`stats.paired_difference` of each pair of arms (a minus b) that were both run.

    Columns arm_a, arm_b, by (the measure's name), estimate, low, high, p.
    """
    arms = set(predictions["arm"])
    rows = [
        dict(
            paired_difference(predictions, a, b, measure, rng=rng, n_boot=bootstrap),
            by=MEASURE_NAMES[measure],
        )
        for a, b in pairs
        if {a, b} <= arms
        for measure in measures
    ]
    columns = ["arm_a", "arm_b", "by", "estimate", "low", "high", "p"]
    return pd.DataFrame(rows, columns=columns)


def show_paired(paired: pd.DataFrame) -> pd.DataFrame:
    """The table of `paired_table` as text: contrast, measure, points with interval, p."""
    table = pd.DataFrame(
        {
            "contrast": paired["arm_a"] + " − " + paired["arm_b"],
            "by": paired["by"],
            "points": points(paired),
            "p (two-sided, not adjusted)": [f"{p:.3f}" for p in paired["p"]],
        }
    )
    return table.set_index("contrast")


def last_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """Label loss in the first and last epoch and the last validation accuracy, by arm.

    Means over seeds: columns first, last (nats per token), accuracy (NaN: not measured).
    """
    runs = (
        history.sort_values("epoch", kind="stable")
        .groupby(["arm", "seed"], sort=False)
        .agg(
            first=("label_loss", "first"),
            last=("label_loss", "last"),
            accuracy=("validation_accuracy", "last"),
        )
    )
    return runs.astype(float).groupby("arm", sort=False).mean()


def cost_table(results: pd.DataFrame) -> pd.DataFrame:
    """What an arm's runs cost: tokens, seconds of the fastest run, the mean best epoch.

    results: of `run_grid`; arms that are not trained are left out.
    """
    return (
        results[results["train_tokens"] > 0]
        .groupby("arm", sort=False)
        .agg(
            runs=("seed", "size"),
            train_tokens=("train_tokens", "mean"),
            train_seconds=("train_seconds", "min"),
            evaluate_seconds=("evaluate_seconds", "min"),
            best_epoch=("best_epoch", "mean"),
        )
    )


def verdict_table(measured: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of measured claims, with estimates, margins and adjusted p as text."""
    margins = [
        f"{RULES[r.rule].sign}{100 * r.margin:g}" if r.margin else "–"
        for r in measured.itertuples()
    ]
    table = pd.DataFrame(
        {
            "claim": measured["words"],
            "contrast": measured["contrast"],
            "estimate, 95 % interval": [estimate_text(row) for _, row in measured.iterrows()],
            "margin (points)": margins,
            "p after Holm": [f"{p:.2g}" for p in measured["p_holm"]],
            "verdict": measured["verdict"],
        }
    )
    return table.set_index("claim")


def interval_table(
    rows: pd.DataFrame, index: str | list[str], form: str = ".2f"
) -> pd.DataFrame:
    """Rows of `checks.mean_intervals` as a table of texts, "0.42 [0.31, 0.55]".

    A row per `index`, a column per measure.
    """
    texts = [
        f"{r.value:{form}} [{r.low:{form}}, {r.high:{form}}]" for r in rows.itertuples()
    ]
    return rows.assign(text=texts).pivot(index=index, columns="measure", values="text")


def gap_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Median, mean and extremes of `checks.completeness`, under names that say the unit."""
    names = {
        "sum": "sum of scores (nats)",
        "difference": "change in log p (nats)",
        "delta": "delta (nats)",
        "relative": "gap (share of the change)",
    }
    table = gaps.drop(columns="id").describe().loc[["50%", "mean", "min", "max"]]
    return table.rename({"50%": "median"}).rename(columns=names)


def fact_table(
    parts: dict[str, pd.DataFrame], mentioned: pd.Series, arms: pd.Series
) -> pd.DataFrame:
    """Accuracy by where training states a question's facts, as text, a row per arm.

    parts: "label", "rationale" or "none" -> `stats.accuracy_table` of those questions; mentioned:
    by the same names, how often the most mentioned option is right (the last row).
    """
    columns = {
        f"{fact} (n = {part['n'].iloc[0]}, seeds: {part['seeds'].max()})": percent(
            part.set_index("arm")
        )
        for fact, part in parts.items()
    }
    table = pd.DataFrame(columns).loc[list(arms)]
    table.loc["most mentioned option"] = [f"{100 * mentioned[fact]:.1f} %" for fact in parts]
    return table
