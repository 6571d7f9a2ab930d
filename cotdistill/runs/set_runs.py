"""Train arms on several sets of rationales for the same questions, as runs of the store."""

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from cotdistill.arms import Arm, arm_from_name
from cotdistill.examples import Example
from cotdistill.files import write_json
from cotdistill.paths import plan_path
from cotdistill.rationale_quality import RationaleSet, set_arm
from cotdistill.runs.grid import plan_rows
from cotdistill.runs.published import fetch_runs
from cotdistill.runs.results import add_correct, read_row_predictions
from cotdistill.runs.store import load_or_make_run
from cotdistill.stats import describe_questions
from cotdistill.study import Study

LABELS_ALONE = Arm("label_only")


def with_rationales(study: Study, questions: list[Example], one: RationaleSet) -> Study:
    """Return the study with other rationales, and these training questions only.

    It shares the student, and what its frozen blocks make of prompts.
    """
    data = replace(study.data, train=questions, rationales=one.rationales)
    other = Study(study.setting, data)
    other.trunks = study.trunks
    return other


def plan_sets(
    study: Study, sets: list[RationaleSet], questions: list[Example], arms: list[str]
) -> list[dict]:
    """List the runs: label_only, then every arm on every set, with the study that makes each."""
    rows = []
    for one in sets:
        other = with_rationales(study, questions, one)
        chosen = [arm_from_name(name) for name in arms]
        for row in plan_rows(other, [*([] if rows else [LABELS_ALONE]), *chosen]):
            alone = row["arm"] == LABELS_ALONE
            label = row["label"] if alone else set_arm(row["label"], one.name)
            rows.append(row | {"label": label, "study": other})
    return rows


def run_sets(
    study: Study,
    sets: list[RationaleSet],
    questions: list[Example],
    arms: list[str],
    say: Callable = print,
) -> pd.DataFrame:
    """Make every missing run, and return all predictions, as `results.load_predictions` does.

    An arm is named after its set (`set_arm`). The plan goes to rationale-sets.json.
    """
    rows = plan_sets(study, sets, questions, arms)
    plan = [{name: row[name] for name in ("label", "seed", "key")} for row in rows]
    write_json(plan_path(study.name, "quality"), plan)
    study.check_positions([arm_from_name(name) for name in arms])
    fetch_runs([row["key"] for row in rows], say)
    for number, row in enumerate(rows, 1):
        made = (row["study"], row["arm"], row["seed"], row["config"])
        metrics, fresh = load_or_make_run(*made, say=say)
        came = f"{metrics['train_seconds']:.0f} s" if fresh else "from the store"
        say(
            f"[{number}/{len(rows)}] {row['label']}, seed {row['seed']}: forced choice "
            f"{100 * metrics['accuracy']:.1f} % of {metrics['n']}, {came}",
            flush=True,
        )
    table = pd.concat([read_row_predictions(row) for row in rows], ignore_index=True)
    table = add_correct(table).rename(columns={"tokens": "tokens_generated"})
    table = table.assign(study=study.name)
    data = study.data
    return describe_questions(table, data.test, data.meta, study.setting.worlds)
