"""Ask whether order and shuffling begin to matter as the steps of a question grow.

A question of one step needs one fact, which a bag of words can name. One of three steps is a chain,
in which the order of the links says what follows from what. If a student learns to reason from
rationales, writing one first should pay more, and shuffling should hurt more, with every step.

The predictions are written down here, before any number is seen; `hypotheses.judge` judges them.
"""

import numpy as np
import pandas as pd

from cotdistill.arms import corruption_of
from cotdistill.hypotheses import Prediction, describe
from cotdistill.inference import (
    cluster_labels,
    contrast_table,
    join_variances,
    split_variance,
)
from cotdistill.measures import BINARY, add_measure
from cotdistill.show import percent, points
from cotdistill.sources import load_steps
from cotdistill.stats import (
    MEASURE_NAMES,
    estimate_measure,
    measure_settings,
    measured_arms,
    select_measured,
)
from cotdistill.study import Study, find_data_dir, resolve

PLACE = "pre_cot − post_cot"
SHUFFLED_PRE = "pre_cot_shuffled[token] − pre_cot"
SHUFFLED_POST = "post_cot_shuffled[token] − post_cot"
PER_STEP, AT_MOST = "change per step", "with the most steps"
TASK_HYPOTHESES = {
    "order matters": "A rationale is a chain; with every step, its place before the label and the "
    "order of its words count for more",
    "words suffice": "A rationale is a bag of facts; neither its place nor its order counts for "
    "more with more steps, and after the label it does not count at all",
}
TASK_PREDICTIONS = (
    Prediction("order matters", f"{PLACE}, {PER_STEP}", "+"),
    Prediction("order matters", f"{SHUFFLED_PRE}, {PER_STEP}", "-"),
    Prediction("order matters", f"{SHUFFLED_POST}, {PER_STEP}", "-"),
    Prediction("words suffice", f"{PLACE}, {PER_STEP}", "0"),
    Prediction("words suffice", f"{SHUFFLED_POST}, {PER_STEP}", "0"),
    Prediction("words suffice", f"{SHUFFLED_POST}, {AT_MOST}", "0"),
)
NUMBERS = ["estimate", "low", "high", "seeds", "questions"]


def question_steps(study: Study) -> dict[str, int]:
    """Map the test questions to their number of steps, where it is known.

    An embedded world knows its links, GSM8K its calculations, and own data may have a field
    `steps`. Raises DataError for a field that is no whole number from 1 on.
    """
    if study.data.meta:
        return {e.id: study.data.meta[e.id]["steps"] for e in study.test_questions()}
    dataset, data_dir = study.setting.data["dataset"], study.setting.data["data_dir"]
    return load_steps(resolve(dataset), find_data_dir(data_dir, dataset))


def add_steps(predictions: pd.DataFrame, steps: dict[str, int]) -> pd.DataFrame:
    """Add the column steps, and keep the questions of which it can be asked.

    Left out are those whose steps are not known, and steps of which a seed was asked fewer than two
    facts: no interval could be given.
    """
    known = predictions.assign(steps=predictions["id"].map(steps)).dropna(subset="steps")
    known = known.astype({"steps": int})
    unit = "fact" if "fact" in known else "id"
    fewest = known.groupby(["steps", "arm", "seed"])[unit].nunique().groupby("steps").min()
    return known[known["steps"].isin(fewest.index[fewest > 1])]


def task_measures(predictions: pd.DataFrame) -> list[str]:
    """List the measures: p(gold), and accuracy by forced choice or, of free answers, as written."""
    chosen = "correct_choice" if measured_arms(predictions, "correct_choice") else ""
    return [chosen or "correct_generated", "p_gold"]


def axis_names(rows: pd.DataFrame) -> dict[str, str]:
    """Name the axis of each measure in `arms_by_steps`, for the figure."""
    names = {
        "correct_choice": "Accuracy (% of test questions)",
        "correct_generated": "Accuracy, as written (% of test questions)",
        "p_gold": "p(gold) (%)",
    }
    return {measure: names[measure] for measure in dict.fromkeys(rows["measure"])}


def arm_pairs(arms: list[str]) -> list[tuple[str, str]]:
    """Pair arms: intact placements with each other, then each corrupted arm with its intact one."""
    intact = [("pre_cot", "post_cot"), ("pre_cot", "label_only"), ("post_cot", "label_only")]
    intact += [("post_cot", "few_shot"), ("pre_cot", "few_shot_cot"), ("few_shot_cot", "few_shot")]
    spoilt = [(arm, arm.partition(f"_{corruption_of(arm)}")[0]) for arm in arms if "_cot_" in arm]
    return [(a, b) for a, b in [*intact, *spoilt] if {a, b} <= set(arms)]


def arms_by_steps(predictions: pd.DataFrame) -> pd.DataFrame:
    """Estimate every arm at each number of steps by each measure.

    predictions: of `add_steps`. Columns: arm, measure, steps, and NUMBERS; fractions with 95 %
    intervals over seeds and facts.
    """
    weights = lambda part, measure: {arm: {arm: 1.0} for arm in measured_arms(part, measure)}
    found = _estimate_by_steps(predictions, weights)
    ends = ["estimate", "low", "high"]
    return found.rename(columns={"contrast": "arm"}).assign(**found[ends].clip(0, 1))


def contrasts_by_steps(predictions: pd.DataFrame) -> pd.DataFrame:
    """Estimate the contrasts of `arm_pairs` at each number of steps; columns contrast, and so on.

    The rows with steps 0 are the change of the contrast per step.
    """
    pairs = arm_pairs(list(predictions["arm"].unique()))
    named = {f"{a} − {b}": {a: 1.0, b: -1.0} for a, b in pairs}
    found = _estimate_by_steps(predictions, lambda part, measure: named)
    if predictions["steps"].nunique() < 2:
        return found
    slopes = [
        {"contrast": name, "measure": measure, "steps": 0}
        | estimate_slope(predictions, weights, measure)
        for name, weights in named.items()
        for measure in task_measures(predictions)
    ]
    slopes = pd.DataFrame(slopes).rename(columns={"units": "questions"})
    return pd.concat([found, slopes], ignore_index=True) if len(slopes) else found


def _estimate_by_steps(predictions: pd.DataFrame, weights) -> pd.DataFrame:
    """Estimate contrasts at each number of steps; weights: (rows, measure) -> name -> weights."""
    frames = [pd.DataFrame(columns=["contrast", "measure", "steps", *NUMBERS])]
    for steps, part in predictions.groupby("steps"):
        for measure in task_measures(predictions):
            named = weights(part, measure)
            if named:
                found = estimate_measure(part, named, measure).assign(steps=steps)
                frames.append(found[frames[0].columns])
    return pd.concat(frames[1:] or frames, ignore_index=True)


def estimate_slope(
    predictions: pd.DataFrame, weights: dict[str, float], measure: str
) -> dict[str, float]:
    """Estimate how much a contrast changes per step: least squares over all test questions.

    weights: arm -> weight. Returns `hypotheses.describe`: a fraction per step, with 95 and 90 %
    intervals over seeds and facts.
    """
    rows = select_measured(predictions, measure)
    settings = measure_settings(rows)
    worlds, cluster = settings["worlds"], settings["cluster"]
    valued = add_measure(rows, measure, options=settings["options"])
    table = contrast_table(valued, weights, worlds=worlds)
    steps = rows.drop_duplicates("id").set_index("id")["steps"].reindex(table.columns)
    values = slope_values(table.to_numpy(), steps.to_numpy(float))
    labels = cluster_labels(rows, table, cluster, worlds) if cluster else None
    # In a slope a question weighs 1 / (spread of steps): so does the guard of `estimate_contrasts`
    guard = np.array([1.0, -1.0]) / steps.std(ddof=0) if measure in BINARY else ()
    parts = split_variance(values, labels, nested=worlds == "per_seed", guard=guard)
    squared = float(sum(weight**2 for weight in weights.values()))
    return describe(join_variances(parts, squared_weights=squared), parts.seeds, parts.questions)


def slope_values(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return for each seed and question a value whose mean over questions is the seed's slope.

    values: a contrast [seeds, questions], NaN where a question is of another seed's world; steps:
    [questions]. A question's value is the slope plus its influence on it, taken from the mean of
    the questions with as many steps. So the variance over questions is that of a weighted sum of
    such means, and no line has to fit.
    """
    found = np.full(values.shape, np.nan)
    for row, given in zip(found, values, strict=True):
        known = ~np.isnan(given)
        own, value = steps[known], given[known]
        away = own - own.mean()
        weight = away / (away**2).sum()
        means = pd.Series(value).groupby(own).transform("mean").to_numpy()
        row[known] = (weight * value).sum() + len(own) * weight * (value - means)
    return found


def task_numbers(contrasts: pd.DataFrame) -> dict[str, dict]:
    """Take the numbers of TASK_PREDICTIONS, in p(gold), from `contrasts_by_steps`."""
    rows = contrasts[contrasts["measure"] == "p_gold"]
    most, numbers = rows["steps"].max(), {}
    for row in rows.to_dict("records"):
        where = {0: PER_STEP, most: AT_MOST}.get(row["steps"])
        if where and rows["steps"].nunique() > 1:
            numbers[f"{row['contrast']}, {where}"] = row | {"units": row["questions"]}
    return numbers


def show_steps(rows: pd.DataFrame, index: str) -> pd.DataFrame:
    """Write estimates as texts: a row per arm (or contrast) and measure, a column per steps.

    index: "arm" (percent) or "contrast" (points).
    """
    if rows.empty:
        return pd.DataFrame()
    write = percent if index == "arm" else points
    texts = write(rows.rename(columns={"estimate": "accuracy"}) if index == "arm" else rows)
    counts = rows.groupby("steps")["questions"].max()
    heads = {n: f"{count_steps(n)} (n = {counts[n]:.0f})" for n in counts.index if n}
    names = rows["measure"].map(MEASURE_NAMES)
    shown = rows.assign(text=texts, by=names).pivot(index=[index, "by"], columns="steps")["text"]
    order = rows[[index]].assign(by=names).drop_duplicates()
    shown = shown.reindex(pd.MultiIndex.from_frame(order))
    return shown[[*heads, *({0} & set(shown))]].rename(columns=heads | {0: PER_STEP})


def count_steps(number: int) -> str:
    """Write a number of steps: "1 step", "3 steps"."""
    return f"{number} step" if number == 1 else f"{number} steps"
