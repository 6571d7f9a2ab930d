"""Turn predictions into tables: how good each arm is, and how surely that is known.

One formula makes every interval of a study: `inference.estimate_contrasts`, of an arm by itself
here, of arms against each other in `summaries.paired_table` and in `verdicts`. This module says
what that formula has to know of a study: its worlds, which questions share a fact, and the texts of
their options. Effects are fractions (0.02 is two points) of accuracy or of p(gold).
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.inference import estimate_contrasts

# Fewer seeds give no verdict: their spread is unknown (1) or hardly known (2)
MIN_SEEDS = 3
MEASURE_NAMES = {
    "correct_choice": "forced choice",
    "p_gold": "p(gold)",
    "acc_norm": "per byte",
    "correct_generated": "written answer",
}
MEASURED_BY = {
    "correct_choice": "",
    "p_gold": " (p(gold))",
    "acc_norm": " (log p per byte)",
    "correct_generated": " (answers as written)",
}
READ = (
    "study",
    "dataset",
    "student",
    "arm",
    "seed",
    "id",
    "gold",
    "correct_choice",
    "correct_generated",
    "scores",
    "cut_off",
    "rationale_cut_off",
    "fact",
)
FROM_SCORES = ("p_gold", "acc_norm")  # what an arm without scores (word frequency) does not have


def describe_questions(
    predictions: pd.DataFrame, examples: list[Example], meta: Mapping[str, dict], worlds: str
) -> pd.DataFrame:
    """Add what is known of the questions: worlds, world, question, options, fact and stratum.

    question, options: the texts, for measures and tables that read them. world: the seed whose
    world a question is of, NA where all seeds share one. Of embedded worlds only: fact, "concept:
    relation" ("theme: start, stop" of a chain; of two steps, that of the second), the cluster of a
    question, which is the id where none is known; stratum, where training has that fact ("label",
    "rationale", "none"). Columns that are there already stay.
    """
    ids, by_id = predictions["id"], {example.id: example for example in examples}
    column = lambda values: pd.Series(list(values), ids.index, dtype=object)
    rows = [meta.get(name, {}) for name in ids]
    found = {
        "worlds": worlds,
        "world": column(row.get("world") for row in rows).astype("Int64"),
        "options": ids.map({name: example.choices for name, example in by_id.items()}),
        "question": ids.map({name: example.question for name, example in by_id.items()}),
    }
    if meta:
        found["fact"] = column(map(name_fact, rows, ids))
        found["stratum"] = column(row.get("fact_in") for row in rows)
    new = {name: values for name, values in found.items() if name not in predictions}
    return predictions.assign(**new)


def name_fact(row: Mapping, question_id: str) -> str:
    """Name the fact that a question asks, or the question where none is known."""
    if "fact" not in row:
        return question_id
    about, *rest = map(str, row["fact"])
    return f"{about}: {', '.join(rest)}"


def _map_options(predictions: pd.DataFrame) -> dict[str, tuple[str, ...]] | None:
    """Map ids to the texts of their options; None where some are unknown or an id has two lists."""
    if "options" not in predictions or predictions["options"].isna().any():
        return None
    rows = predictions[["id", "options"]].assign(options=predictions["options"].map(tuple))
    rows = rows.drop_duplicates()
    return dict(zip(rows["id"], rows["options"], strict=True)) if rows["id"].is_unique else None


def select_measured(predictions: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Select the rows of arms that have a measure: word frequency, say, writes and scores nothing.

    An arm of which only some answers lack it stays, so that the gap is found and named.
    """
    if measure in FROM_SCORES:
        if "scores" not in predictions:
            return predictions[:0]
        kinds = (list, tuple, np.ndarray)
        known = predictions["scores"].map(lambda scores: isinstance(scores, kinds))
    elif measure in predictions:
        known = predictions[measure].notna()
    else:
        return predictions[:0]
    rows = predictions[predictions["arm"].isin(set(predictions.loc[known, "arm"]))]
    return rows[:0] if measure == "acc_norm" and _map_options(rows) is None else rows


def measured_arms(predictions: pd.DataFrame, measure: str) -> list[str]:
    """List the arms that have a measure, in the order of the input."""
    return list(select_measured(predictions, measure)["arm"].unique())


def measure_settings(predictions: pd.DataFrame) -> dict:
    """Say how the study of these predictions is measured: worlds, cluster and options.

    They are what `inference.estimate_contrasts` and `inference.estimate_share` ask for.
    """
    worlds = predictions["worlds"].iloc[0] if "worlds" in predictions else "shared"
    cluster = "fact" if "fact" in predictions else None
    return dict(worlds=worlds, cluster=cluster, options=_map_options(predictions))


def estimate_measure(
    predictions: pd.DataFrame, contrasts: Mapping[str, Mapping[str, float]], measure: str, **options
) -> pd.DataFrame:
    """Estimate contrasts of one study's arms by one measure; see `inference.estimate_contrasts`.

    The arms that have the measure also say how much seeds vary. options: margin, cut_off.
    """
    rows = select_measured(predictions, measure)
    settings = measure_settings(rows)
    rows = rows[[name for name in READ if name in rows]]  # texts would be copied at every turn
    return estimate_contrasts(rows, contrasts, measure, **settings, **options)


def _bound_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Return estimate, low and high of shares, which lie between 0 and 1, by arm."""
    return rows.set_index("contrast")[["estimate", "low", "high"]].clip(0, 1)


def _measure_arms(predictions: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Estimate each arm by itself: an index of arms; empty where none has the measure."""
    arms = measured_arms(predictions, measure)
    if not arms:
        return pd.DataFrame()
    return estimate_measure(predictions, {arm: {arm: 1.0} for arm in arms}, measure).set_index(
        "contrast", drop=False
    )


def add_direct_arms(predictions: pd.DataFrame) -> pd.DataFrame:
    """Add an arm "pre_cot[direct]" per pre_cot arm whose options were scored with no rationale too.

    The same student and the same questions, answered at once: `scores_direct` in place of `scores`,
    nothing written, nothing cut off.
    """
    if "scores_direct" not in predictions:
        return predictions
    known = predictions["scores_direct"].map(lambda scores: isinstance(scores, (list, tuple)))
    rows = predictions[known]
    if rows.empty:
        return predictions
    choice = [int(np.argmax(scores)) for scores in rows["scores_direct"]]
    rows = rows.assign(
        arm=[direct_label(arm) for arm in rows["arm"]],
        scores=rows["scores_direct"],
        scores_direct=None,
        choice=choice,
        correct_choice=np.array(choice) == rows["gold"].to_numpy(),
        correct_generated=False,
        generated=pd.NA,
        cut_off=False,
        rationale_cut_off=False,
    )
    return pd.concat([predictions, rows.astype({"generated": "Int64"})], ignore_index=True)


def direct_label(arm: str) -> str:
    """Return the label of a pre_cot arm whose options are scored with no rationale."""
    return f"{arm[:-1]},direct]" if arm.endswith("]") else f"{arm}[direct]"


def accuracy_table(predictions: pd.DataFrame, measure: str = "correct_choice") -> pd.DataFrame:
    """Return the accuracy per arm with its 95 % interval, in the order of the input.

    Per study, dataset and student too, where given. Columns: [study, dataset, student,] arm, n
    (questions; over all worlds where each seed has its own), seeds, accuracy, low, high, by_seed
    (each seed's accuracy, for figures), covers ("questions and seeds", or "questions" with a single
    run), parse_failures, cut_off and flagged (numbers of answers over all seeds; flagged: counted
    as wrong because a limit ended the rationale before them), answers, tokens_per_question. By
    forced choice there are also p_gold, acc_norm (log p per byte of the option) and direct
    (pre_cot's options scored with no rationale), each with _low and _high, where predictions say
    them; NaN for arms without.
    """
    keys = [k for k in ("study", "dataset", "student") if k in predictions]
    groups = predictions.groupby(keys, sort=False, dropna=False) if keys else [((), predictions)]
    tables = [
        _one_study(group, measure).assign(**dict(zip(keys, key, strict=True)))
        for key, group in groups
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[[*keys, *(column for column in table if column not in keys)]]


def _one_study(predictions: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Make the `accuracy_table` of one study."""
    found = _measure_arms(predictions, measure)
    if found.empty and measure == "correct_choice":
        raise DataError(
            "these questions have free answers: forced choice needs multiple choice; expected "
            "measure correct_generated"
        )
    if found.empty:
        raise DataError(f"no arm has the measure {measure}; expected predictions that do")
    groups = predictions[predictions["arm"].isin(found.index)].groupby("arm", sort=False)
    counts = pd.DataFrame(
        {
            "parse_failures": groups["generated"].agg(lambda v: int(v.isna().sum())),
            "cut_off": groups["cut_off"].agg(lambda v: int(v.astype(bool).sum())),
            "answers": groups.size(),
            "tokens_per_question": groups["tokens_generated"].agg(lambda v: v.astype(float).mean()),
        }
    ).loc[found.index]
    table = pd.DataFrame({"arm": found.index, "n": found["questions"], "seeds": found["seeds"]})
    table[["accuracy", "low", "high"]] = _bound_shares(found)
    table[["covers", "by_seed"]] = found[["covers", "by_seed"]]
    table = table.join(counts)
    table["flagged"] = (found["flagged"] * table["answers"]).round().astype(int)
    if measure == "correct_choice":
        for name, others in _other_measures(predictions).items():
            table[[name, f"{name}_low", f"{name}_high"]] = _bound_shares(others).reindex(
                table.index
            )
    return table.reset_index(drop=True)


def _other_measures(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Estimate what stands beside forced choice: name -> rows by arm; none where not known."""
    found = {name: _measure_arms(predictions, name) for name in FROM_SCORES}
    with_direct = add_direct_arms(predictions)
    if len(with_direct) > len(predictions):
        arms = {direct_label(arm): arm for arm in predictions["arm"].unique()}
        rows = _measure_arms(with_direct, "correct_choice")
        rows = rows[rows["contrast"].isin(arms)]
        found["direct"] = rows.assign(contrast=rows["contrast"].map(arms))
    return {name: rows for name, rows in found.items() if len(rows)}


def accuracy_tables(predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give accuracies by forced choice and by the written answer, both of `accuracy_table`."""
    return accuracy_table(predictions), accuracy_table(predictions, "correct_generated")
