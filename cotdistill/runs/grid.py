"""A grid of arms and seeds: plan it, make what is missing, show progress."""

import os
import time
from dataclasses import asdict

import pandas as pd

from cotdistill import corrupt
from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.files import fingerprint, write_json
from cotdistill.paths import study_dir
from cotdistill.runs.one import make_config, run_key
from cotdistill.runs.results import check_trained_with
from cotdistill.runs.store import load_or_make_run, report_old_runs
from cotdistill.study import check_arms, check_positions, study_student


def plan_rows(
    base: dict, arms: list[Arm], seeds: list[int] | None = None, scores: dict | None = None
) -> list[dict]:
    """The grid arms x seeds as rows: arm, label, seed, key, config.

    zero_shot stands there once.

    scores: (selector, seed) -> (scores by id, their fingerprint), for arms that keep or mask by a
    selector.
    """
    rows = []
    for seed in seeds or base["seeds"]:
        for arm in arms:
            if arm.placement == "zero_shot" and any(row["label"] == "zero_shot" for row in rows):
                continue
            print_of = scores[arm.selector, seed][1] if arm.needs_scores else ""
            config = make_config(base, arm, seed, print_of)
            rows.append(
                {
                    "arm": arm,
                    "label": arm.label,
                    "seed": config["seed"],
                    "key": run_key(config),
                    "config": config,
                }
            )
    return rows


def report_equal_arms(base: dict, arms: list[Arm], say=print) -> None:
    """Say in one line which arms repeat another one's training token for token.

    They share its runs.
    """
    for arm in arms:
        other = corrupt.equal_training(study_student(base), arm)
        if other != arm:
            say(
                f"{arm.label} and {other.label} are one training for this student, whose filler "
                "token is the dots: it is made once",
                flush=True,
            )


def run_grid(
    base: dict,
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

    Return a table with one row per run.

    The plan goes to artifacts/studies/<study>/<stage>.json first: `make status` and later notebooks
    read it. keep_weights: (label, seed) pairs whose weights a later notebook needs. backend:
    "local" makes one run after the other here, "ray" one task per run on a cluster
    (`cluster.on_ray`); None takes $COTDISTILL_BACKEND, so that a notebook need not know. Raises
    DataError for an unknown backend.
    """
    check_arms(arms, stage)
    check_positions(base, arms)
    backend = backend or os.environ.get("COTDISTILL_BACKEND") or "local"
    if backend not in ("local", "ray"):
        raise DataError(f"backend '{backend}'; expected local or ray")
    rows = plan_rows(base, arms, seeds, scores)
    check_trained_with(base, rows, stage)
    plan = [
        {"label": r["label"], "seed": r["seed"], "key": r["key"], "arm": asdict(r["arm"])}
        for r in rows
    ]
    plan_print = fingerprint([[row["label"], row["seed"], row["key"]] for row in plan])
    write_json(
        study_dir(base["study"]) / f"{stage}.json", [row | {"plan": plan_print} for row in plan]
    )
    report_old_runs()
    report_equal_arms(base, arms, say)
    for row in rows:
        row["keep"] = (row["label"], row["seed"]) in keep_weights
        row["scores"] = (
            scores[row["arm"].selector, row["seed"]] if row["arm"].needs_scores else (None, "")
        )
    if backend == "ray":
        from cotdistill.runs.on_ray import on_ray as make
    else:
        make = _one_by_one
    spent = []
    for number, (row, metrics, fresh, seconds, at_once) in enumerate(
        make(base, rows, stage, say), 1
    ):
        spent += [seconds] if fresh else []
        rounds = -(-(len(rows) - number) // at_once)
        left = (
            f", about {_minutes(sum(spent) / len(spent) * rounds)} left" if spent and rounds else ""
        )
        who = row["label"] + ("" if row["arm"].placement == "zero_shot" else f" seed {row['seed']}")
        say(
            f"[{number}/{len(rows)}] {who}: forced choice {100 * metrics['accuracy']:.1f} %, "
            f"generated {100 * metrics['accuracy_generated']:.1f} % of {metrics['n']}, "
            + (f"{seconds:.0f} s" if fresh else "from the store")
            + left,
            flush=True,
        )
        row["made"] = {
            "arm": row["label"],
            "seed": row["seed"],
            "key": row["key"][:12],
            **{k: v for k, v in metrics.items() if k not in ("files", "seal")},
        }
    return pd.DataFrame([row["made"] for row in rows])


def _one_by_one(base: dict, rows: list[dict], stage: str, say):
    """The local backend: (row, metrics, whether made now, its seconds, runs at a time), in the
    order of the plan.
    """
    for row in rows:
        started = time.time()
        metrics, fresh = load_or_make_run(
            base,
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
