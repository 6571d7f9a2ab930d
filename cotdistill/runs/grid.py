"""A grid of arms and seeds: plan it, make what is missing, show progress."""

import os
import time
from dataclasses import asdict

import pandas as pd

from cotdistill import corrupt
from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.files import fingerprint, write_json
from cotdistill.runs.one import make_config, run_key
from cotdistill.runs.published import fetch_runs
from cotdistill.runs.results import check_trained_with, load_stage
from cotdistill.runs.store import load_or_make_run, report_old_runs
from cotdistill.study import Study, check_arms


def plan_rows(
    study: Study, arms: list[Arm], seeds: list[int] | None = None, scores: dict | None = None
) -> list[dict]:
    """List the grid arms x seeds as rows: arm, label, seed, key, config.

    There is one row of a student that is not trained, with seed -1; one per seed where each has a
    world of its own.
    scores: (selector, seed) -> (scores by id, their fingerprint), for arms that keep or mask by a
    selector.
    """
    rows = []
    for seed in seeds or study.setting.seeds:
        for arm in arms:
            own = study.has_own_worlds or arm.is_trained
            if not own and any(row["label"] == arm.label for row in rows):
                continue
            scores_fingerprint = scores[arm.selector, seed][1] if arm.needs_scores else ""
            config = make_config(study, arm, seed, scores_fingerprint)
            rows.append(
                {
                    "arm": arm,
                    "label": arm.label,
                    "seed": seed if own else config["seed"],
                    "key": run_key(config),
                    "config": config,
                }
            )
    return rows


def write_plan(study: Study, rows: list[dict], stage: str) -> None:
    """Write the plan of a stage, artifacts/studies/<study>/<stage>.json.

    `make status` and later notebooks read it. Each row has a fingerprint of the whole plan.
    """
    plan_fingerprint = fingerprint([[row["label"], row["seed"], row["key"]] for row in rows])
    plan = [
        {name: row[name] for name in ("label", "seed", "key")}
        | {"arm": asdict(row["arm"]), "plan": plan_fingerprint}
        for row in rows
    ]
    write_json(study.folder / f"{stage}.json", plan)


def report_equal_arms(study: Study, arms: list[Arm], say=print) -> None:
    """Say in one line which arms repeat another one's training token for token.

    They share its runs.
    """
    for arm in arms:
        other = corrupt.equal_training(study.student, arm)
        if other != arm:
            say(
                f"{arm.label} and {other.label} are one training for this student, whose filler "
                "token is the dots: it is made once",
                flush=True,
            )


def choose_backend(name: str | None):
    """Return the function that makes the runs of a plan: `make_in_turn`, or `on_ray.on_ray`.

    name: "local" or "ray"; None takes $COTDISTILL_BACKEND. Raises DataError for another one.
    """
    name = name or os.environ.get("COTDISTILL_BACKEND") or "local"
    if name not in ("local", "ray"):
        raise DataError(f"backend '{name}'; expected local or ray")
    if name == "local":
        return make_in_turn
    from cotdistill.runs.on_ray import on_ray  # which needs the package ray

    return on_ray


def run_grid(
    study: Study,
    arms: list[Arm],
    stage: str,
    *,
    seeds: list[int] | None = None,
    scores: dict | None = None,
    keep_weights: tuple = (),
    backend: str | None = None,
    say=print,
) -> pd.DataFrame:
    """Make every missing run of arms x seeds, show progress and the time left.

    Returns a table with one row per run. The plan is written first (`write_plan`). keep_weights:
    (label, seed) pairs whose weights a later notebook needs; others are taken from the published
    files where these hold them (`published.fetch_runs`). backend: "local" makes one run after
    the other here, "ray" one task per run on a cluster (`on_ray`); None takes $COTDISTILL_BACKEND,
    so that a notebook need not know. Raises DataError for an unknown backend.
    """
    check_arms(arms, stage)
    if study.is_record:
        return _read_grid(study, stage, say)
    study.check_positions(arms)
    make_runs = choose_backend(backend)
    rows = plan_rows(study, arms, seeds, scores)
    check_trained_with(study, rows, stage)
    write_plan(study, rows, stage)
    report_old_runs()
    report_equal_arms(study, arms, say)
    for row in rows:
        row["keep"] = (row["label"], row["seed"]) in keep_weights
        row["scores"] = (
            scores[row["arm"].selector, row["seed"]] if row["arm"].needs_scores else (None, "")
        )
    fetch_runs([row["key"] for row in rows if not row["keep"]], say)
    spent = []
    for number, (row, metrics, fresh, seconds, at_once) in enumerate(
        make_runs(study, rows, stage, say), 1
    ):
        spent += [seconds] if fresh else []
        rounds = -(-(len(rows) - number) // at_once)
        left = f", about {_minutes(sum(spent) / len(spent) * rounds)} left" if spent else ""
        spent_here = f"{seconds:.0f} s" if fresh else "from the store"
        say(
            f"[{number}/{len(rows)}] {_describe_run(row, metrics)}, {spent_here}"
            + (left if rounds else ""),
            flush=True,
        )
        row["made"] = _result(row, metrics)
    return pd.DataFrame([row["made"] for row in rows])


def _result(row: dict, metrics: dict) -> dict:
    """Make a run's row of the table that `run_grid` returns."""
    named = {"arm": row["label"], "seed": row["seed"], "key": row["key"][:12]}
    return named | {k: v for k, v in metrics.items() if k not in ("files", "seal", "elsewhere")}


def _read_grid(study: Study, stage: str, say) -> pd.DataFrame:
    """Read the runs of a stage of a published study, where nothing can be trained."""
    rows = load_stage(study.name, stage)
    say(f"{len(rows)} runs of stage {stage} are read from the published file", flush=True)
    return pd.DataFrame([_result(row, row["metrics"]) for row in rows])


def _describe_run(row: dict, metrics: dict) -> str:
    name = row["label"] + (f" seed {row['seed']}" if row["arm"].is_trained else "")
    forced = f"forced choice {100 * metrics['accuracy']:.1f} %, generated"
    answered = "written answer" if metrics.get("free_answers") else forced
    return f"{name}: {answered} {100 * metrics['accuracy_generated']:.1f} % of {metrics['n']}"


def make_in_turn(study: Study, rows: list[dict], stage: str, say):
    """Make the runs here, one after the other, in the order of the plan: the local backend.

    Yields (row, metrics, whether made now, its seconds, runs at a time).
    """
    for row in rows:
        started = time.time()
        metrics, fresh = load_or_make_run(
            study,
            row["arm"],
            row["seed"],
            row["config"],
            scores=row["scores"][0],
            keep_weights=row["keep"],
            say=say,
        )
        yield row, metrics, fresh, time.time() - started, 1


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
