"""Small tables that the notebooks show, made from results, histories and accuracies."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from cotdistill.arms import Arm
from cotdistill.encode import encode, label_share
from cotdistill.inference import FAMILIES, SHARED_SEED
from cotdistill.rules import RULES
from cotdistill.runs.provenance import provenance
from cotdistill.runs.word_frequency import predict_by_frequency
from cotdistill.show import percent, points
from cotdistill.stats import MEASURE_NAMES, accuracy_table, estimate_measure, measured_arms
from cotdistill.study import Study
from cotdistill.verdicts import DIFFERENCES, estimate_text, write_p

# The further columns of `results_table` that are intervals: name -> their column
INTERVALS = {
    "p(gold)": "p_gold",
    "forced choice per byte": "acc_norm",
    "forced choice at once": "direct",
}


def results_table(
    forced: pd.DataFrame, written: pd.DataFrame | None = None, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Show accuracies with their intervals as text, a row per arm; p(gold) beside them.

    forced, written: of `stats.accuracy_table`. columns: further ones, of "forced choice per byte"
    (by log p per byte of the option, as lm-evaluation-harness offers it), "forced choice at once"
    (pre_cot's options, scored with no rationale), "interval over", "parse failures (%)", "cut off
    (%)", "counted wrong (%)" (because a limit ended the rationale) and "tokens per question". A
    column of which the study knows nothing is left out.
    """
    table = forced[["arm", "n", "seeds"]].assign(**{"forced choice": percent(forced)})
    if "p_gold" in forced:
        table["p(gold)"] = _interval_texts(forced, "p_gold")
    if written is not None:
        table["written answer"] = percent(written)
    answers = forced if written is None else written
    for name in columns:
        source = forced if name in INTERVALS or name.startswith("counted") else answers
        values = _result_column(source, name)
        if values is not None:
            table[name] = values
    return table.set_index("arm")


def _interval_texts(rows: pd.DataFrame, name: str) -> pd.Series:
    """Write a share and its interval as text; a dash where the arm does not have it."""
    ends = rows[[name, f"{name}_low", f"{name}_high"]].set_axis(["accuracy", "low", "high"], axis=1)
    return percent(ends).where(rows[name].notna(), "–")


def _result_column(rows: pd.DataFrame, name: str) -> pd.Series | None:
    if name in INTERVALS:
        known = INTERVALS[name] in rows
        return _interval_texts(rows, INTERVALS[name]) if known else None
    counts = {
        "parse failures (%)": "parse_failures",
        "cut off (%)": "cut_off",
        "counted wrong (%)": "flagged",
    }
    if name in counts:
        return 100 * rows[counts[name]] / rows["answers"] if counts[name] in rows else None
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
    measures: tuple[str, ...] = ("correct_choice",),
) -> pd.DataFrame:
    """Estimate the difference of each pair of arms (a minus b) that were both run.

    Columns arm_a, arm_b, by (the measure's name), estimate, low, high (95 %), p (two-sided, not
    adjusted), seeds; rows in the order of the pairs, and of the measures of a pair.
    """
    found = {}
    for measure in measures:
        arms = set(measured_arms(predictions, measure))
        known = {(a, b): {a: 1.0, b: -1.0} for a, b in pairs if {a, b} <= arms and a != b}
        if known:
            rows = estimate_measure(predictions, known, measure)
            found |= {(*pair, measure): rows.iloc[i] for i, pair in enumerate(known)}
    keys = [(a, b, measure) for a, b in pairs for measure in measures if (a, b, measure) in found]
    columns = ["estimate", "low", "high", "p", "seeds"]
    rows = [
        dict(arm_a=a, arm_b=b, by=MEASURE_NAMES[measure], **found[a, b, measure][columns])
        for a, b, measure in keys
    ]
    return pd.DataFrame(rows, columns=["arm_a", "arm_b", "by", *columns])


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
    """List the verdicts of measured claims, a family after the other, with their numbers as text.

    smallest effect to find: with 80 % power, at the level that Holm's first step leaves one claim;
    only claims that arms differ have one.
    Whether a claim was registered is shown where the study registered any.
    """
    order = {name: i for i, name in enumerate(FAMILIES)}
    measured = measured.iloc[np.argsort(measured["family"].map(order), kind="stable")]
    margins = [
        f"{RULES[r.rule].sign}{100 * r.margin:g}" if r.margin else "–"
        for r in measured.itertuples()
    ]
    table = pd.DataFrame(
        {
            "claim": measured["words"],
            "family": measured["family"],
            "contrast": measured["contrast"],
            "estimate, 95 % interval": [estimate_text(row) for _, row in measured.iterrows()],
            "margin (points)": margins,
            "smallest effect to find": [
                f"{100 * row.detectable:.1f}" if row.rule in DIFFERENCES else "–"
                for row in measured.itertuples()
            ],
            "p after Holm": [write_p(p) for p in measured["p_holm"]],
            "verdict": measured["verdict"],
        }
    )
    if (measured["registered"] != "").any():
        table["registered"] = measured["registered"]
    return table.set_index("claim")


def share_table(measured: pd.DataFrame) -> pd.DataFrame:
    """List what corrupted rationales retain of the intact one's gain; empty where none was run."""
    rows = measured[measured["retained"].fillna("") != ""]
    return rows[["contrast", "retained"]].set_index("contrast")


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

    table: as text, a row per arm; empty where the data do not say. difference: post_cot -
    label_only on facts that only rationales state, a dict of `paired_table` (None: not measured).
    mentioned: how often the most mentioned option is right there.
    """

    table: pd.DataFrame
    difference: dict | None
    mentioned: float


def accuracy_by_fact(study: Study, predictions: pd.DataFrame) -> FactAccuracy:
    """Split the test questions by where training states their facts (embedded worlds only)."""
    if "stratum" not in predictions:
        return FactAccuracy(pd.DataFrame(), None, float("nan"))
    parts = {
        fact: accuracy_table(part).set_index("arm")
        for fact in ("label", "rationale", "none")
        if (part := predictions[predictions["stratum"] == fact])["id"].nunique() > 1
    }
    columns = {
        f"{fact} (n = {part['n'].iloc[0]}, seeds: {part['seeds'].max()})": percent(part)
        for fact, part in parts.items()
    }
    table = pd.DataFrame(columns).reindex(list(predictions["arm"].unique()))
    rows = predict_by_frequency(study)
    mentioned = rows.groupby("stratum")["correct_choice"].mean()
    table.loc["most mentioned option"] = [f"{100 * mentioned[fact]:.1f} %" for fact in parts]
    difference = None
    if "rationale" in parts and {"post_cot", "label_only"} <= set(parts["rationale"].index):
        chosen = predictions[predictions["stratum"] == "rationale"]
        difference = paired_table(chosen, [("post_cot", "label_only")]).iloc[0].to_dict()
    return FactAccuracy(table.rename_axis("arm"), difference, mentioned.get("rationale", np.nan))


def target_lengths(study: Study, arms: list[Arm], limit: int = 500) -> pd.DataFrame:
    """Count tokens per question (mean, min, max) of each trained arm.

    Beside them: the arm's loss, and the label's share of it. Prompt and target together, over the
    first `limit` questions that every arm can use.
    """
    setting, rationales = study.setting, study.data.rationales
    kept, _ = study.usable_questions()
    rows = {}
    for arm in arms:
        if not arm.is_trained:
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


def label_pairs(arms: list[Arm]) -> list[tuple[str, str]]:
    """Pair labels: key tokens by a selector, and by its variant without the label's words."""
    return [
        (a.label, b.label)
        for a in arms
        for b in arms
        if a.amount == b.amount and b.selector == f"{a.selector}_without_label"
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


def answers_side_by_side(study: Study, predictions: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """Show what the students of one seed wrote for the same questions, right and wrong.

    Up to `count` questions: the one that most arms get right by forced choice, the one that most
    get wrong, then those on which they disagree most. Columns: arm, rationale written, answer
    written, forced choice, right. Empty where the data are not embedded: their texts stay out of
    executed notebooks.
    """
    if not study.data.meta or "question" not in predictions:
        return pd.DataFrame()
    seeds = sorted(seed for seed in set(predictions["seed"]) if seed != SHARED_SEED)
    if not seeds or "text" not in predictions:
        return pd.DataFrame()
    rows = predictions[predictions["seed"].isin([seeds[0], SHARED_SEED])]
    rows = rows[rows["text"].notna() & rows["question"].notna()]
    if rows.empty:  # all runs came from a published file, which holds no texts
        return pd.DataFrame()
    right = rows.groupby("id")["correct_choice"].mean()
    disputed = (right - 0.5).abs().sort_values(kind="stable")
    chosen = list(dict.fromkeys([right.idxmax(), right.idxmin(), *disputed.index]))[:count]
    shown = []
    for name in chosen:
        for row in rows[rows["id"] == name].itertuples():
            options = list(row.options)
            question = f"{row.question} ({' | '.join(options)})"
            shown.append(
                {
                    "question": question if not shown or shown[-1]["id"] != name else "",
                    "id": name,
                    "arm": row.arm,
                    "rationale written": row.rationale or "–",
                    "answer written": row.text or "–",
                    "forced choice": options[row.choice],
                    "right": "yes" if row.correct_choice else f"no: {options[row.gold]}",
                }
            )
    return pd.DataFrame(shown).drop(columns="id").set_index("question")


def run_card(study: Study) -> pd.DataFrame:
    """Describe the student, its training's precision, and the machine and versions."""
    model = study.student.model
    about = {
        "student": study.student.note,
        "parameters": f"{model.num_parameters():,}",
        "weights": str(model.dtype).removeprefix("torch."),
        "matrix products in training": study.setting.train.precision,
    }
    return pd.Series(about | provenance()).to_frame("value")
