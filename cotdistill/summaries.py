"""Small tables that the notebooks show, made from results, histories and accuracies."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cotdistill.arms import Arm
from cotdistill.encode import encode, label_share
from cotdistill.evaluate import most_mentioned
from cotdistill.runs.provenance import provenance
from cotdistill.show import percent, points
from cotdistill.stats import accuracy_table, paired_difference
from cotdistill.students import Student
from cotdistill.study import Study
from cotdistill.verdicts import RULES, estimate_text

MEASURE_NAMES = {"correct_choice": "forced choice", "correct_generated": "written answer"}


def results_table(
    forced: pd.DataFrame, written: pd.DataFrame | None = None, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Show accuracies with their intervals as text, a row per arm.

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
    """Count the answers of each arm, and how many name no option or were cut off."""
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
    """Take `stats.paired_difference` of each pair of arms (a minus b) that were both run.

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
    """Write the table of `paired_table` as text: contrast, measure, points with interval, p."""
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
    """Average the label loss in the first and last epoch and the last validation accuracy, by arm.

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
    """Sum up what an arm's runs cost: tokens, seconds of the fastest run, the mean best epoch.

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
    """List the verdicts of measured claims, with estimates, margins and adjusted p as text."""
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


def interval_table(rows: pd.DataFrame, index: str | list[str], form: str = ".2f") -> pd.DataFrame:
    """Show rows of `checks.mean_intervals` as a table of texts, "0.42 [0.31, 0.55]".

    A row per `index`, a column per measure.
    """
    texts = [f"{r.value:{form}} [{r.low:{form}}, {r.high:{form}}]" for r in rows.itertuples()]
    return rows.assign(text=texts).pivot(index=index, columns="measure", values="text")


def gap_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Give median, mean and extremes of `checks.completeness`, under names that say the unit."""
    names = {
        "sum": "sum of scores (nats)",
        "difference": "change in log p (nats)",
        "delta": "delta (nats)",
        "relative": "gap (share of the change)",
    }
    table = gaps.drop(columns="id").describe().loc[["50%", "mean", "min", "max"]]
    return table.rename({"50%": "median"}).rename(columns=names)


class FactAccuracy(NamedTuple):
    """Hold accuracies by where training states the facts of a test question.

    table: as text, a row per arm; empty where the data do not say. difference: of
    `stats.paired_difference`, post_cot - label_only on facts that only rationales state (None: not
    measured). mentioned: how often the most mentioned option is right there.
    """

    table: pd.DataFrame
    difference: dict | None
    mentioned: float


def accuracy_by_fact(
    study: Study, predictions: pd.DataFrame, rng: np.random.Generator, bootstrap: int
) -> FactAccuracy:
    """Split the test questions by where training states their facts (microworld only)."""
    if not study.data.meta:
        return FactAccuracy(pd.DataFrame(), None, float("nan"))
    fact_of = {name: meta["fact_in"] for name, meta in study.data.meta.items()}
    rows = predictions.assign(fact=predictions["id"].map(fact_of))
    by_fact = {
        fact: accuracy_table(part, rng=rng, n_boot=bootstrap).set_index("arm")
        for fact, part in rows.groupby("fact")
    }
    parts = {fact: by_fact[fact] for fact in ("label", "rationale", "none") if fact in by_fact}
    mentioned = _mentioned_by_fact(study, fact_of)
    columns = {
        f"{fact} (n = {part['n'].iloc[0]}, seeds: {part['seeds'].max()})": percent(part)
        for fact, part in parts.items()
    }
    table = pd.DataFrame(columns).loc[list(predictions["arm"].unique())]
    table.loc["most mentioned option"] = [f"{100 * mentioned[fact]:.1f} %" for fact in parts]
    difference = None
    if "rationale" in parts and {"post_cot", "label_only"} <= set(parts["rationale"].index):
        chosen = rows[rows["fact"] == "rationale"]
        difference = paired_difference(chosen, "post_cot", "label_only", rng=rng, n_boot=bootstrap)
    return FactAccuracy(table.rename_axis("arm"), difference, mentioned.get("rationale", np.nan))


def _mentioned_by_fact(study: Study, fact_of: dict[str, str]) -> pd.Series:
    """Measure how often the option that training rationales mention most is right, by fact."""
    if study.is_record:
        return pd.Series(study.mentioned).groupby(fact_of).mean()
    questions, rationales = study.test_questions(), study.data.rationales
    texts = [rationales[e.id].text for e in study.data.train if e.id in rationales]
    ids = [e.id for e in questions]
    named = pd.Series(most_mentioned(questions, texts), ids)
    return named.groupby([fact_of[name] for name in ids]).mean()


def target_lengths(study: Study, arms: list[Arm], limit: int = 500) -> pd.DataFrame:
    """Count tokens per question (mean, min, max) of each trained arm.

    Beside them: the arm's loss, and the label's share of it. Prompt and target together, over the
    first `limit` questions that every arm can use.
    """
    setting, rationales = study.setting, study.data.rationales
    kept, _ = study.usable_questions()
    rows = {}
    for arm in arms:
        if arm.placement == "zero_shot":
            continue
        encoded = [
            encode(study.student, e, rationales[e.id].text, arm, setting.label_format)
            for e in kept[:limit]
        ]
        lengths = pd.Series([len(e.ids) for e in encoded])
        rows[arm.label] = {
            "mean": lengths.mean(),
            "min": float(lengths.min()),
            "max": float(lengths.max()),
            "loss": arm.loss or setting.train.loss,
            "label's share of the loss (%)": 100 * label_share(encoded, arm, setting.train),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tokens per question")


def rival_pairs(arms: list[Arm]) -> list[tuple[str, str]]:
    """Pair labels: key tokens by a selector, and as many random ones."""
    return [
        (a.label, b.label)
        for a in arms
        for b in arms
        if a.amount == b.amount and a.selector != "random" and b.selector == "random"
    ]


def corrupted_targets(study: Study, arms: list[Arm]) -> pd.DataFrame:
    """Show the first training question's rationale, intact and as each arm's student sees it.

    Empty where the data are not embedded: their texts stay out of executed notebooks; and in a
    study re-read from its published runs, which hold none.
    """
    seed = study.setting.seeds[0]
    if not study.data.meta or study.is_record:
        return pd.DataFrame()
    example = study.train_questions(seed)[0]
    texts = {"intact": study.data.rationales[example.id].text}
    texts |= {arm.label: study.target_text(example, arm, seed) for arm in arms}
    return pd.Series(texts, name="rationale").rename_axis("arm").to_frame()


def run_card(student: Student) -> pd.DataFrame:
    """Describe the student, and the machine and versions that this was run with."""
    count = f"{student.model.num_parameters():,}"
    return pd.Series({"student": student.note, "parameters": count, **provenance()}).to_frame(
        "value"
    )
