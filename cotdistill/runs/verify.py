"""Train published runs again and compare what they predict."""

import json
import tempfile
from pathlib import Path

import numpy as np

from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.paths import evidence_folder
from cotdistill.runs.one import make_config, run_key, train_and_answer
from cotdistill.runs.provenance import provenance
from cotdistill.runs.published import FILE, MICRO, pack_predictions, read_published
from cotdistill.runs.record import read_record
from cotdistill.study import Study

# What the last bits of a result depend on
PLACE = (
    *("python", "torch", "transformers", "numpy", "system", "machine", "processor", "threads"),
    *("instructions", "blas", "processes", "gpu"),
)
COMPARED = ("id", "gold", "generated", "choice", "tokens", "cut_off", "scores", "scores_direct")
RULE = (
    "rule: of the questions that only one of the two answers right, each is as likely to be gained "
    "as lost, so the difference may be at most 1.96 times the square root of their number"
)


def choose_runs(name: str, count: int, seed: int) -> list[tuple[dict, dict]]:
    """Draw a random sample of published runs: (row of the plan, row of the file).

    Runs that need attribution scores are left out: these depend on trained weights. Raises
    DataError where the study has no published runs, or none that can be trained again.
    """
    record = read_record(name)
    rows = {row["key"]: row for row in read_published(evidence_folder(name) / FILE)}
    plans = [row for plan in record["stages"].values() for row in plan]
    found = {
        row["key"]: (row, rows[row["key"]])
        for row in plans
        if row["key"] in rows and "scores" not in rows[row["key"]]["config"]
    }
    if not found or count < 1:
        raise DataError(
            f"study '{name}': {len(found)} published runs can be trained again, {count} asked for; "
            "expected at least one"
        )
    drawn = np.random.default_rng(seed).permutation(sorted(found))[:count]
    return [found[key] for key in drawn]


def train_again(study: Study, arm: Arm, seed: int) -> list[dict]:
    """Train a run in a fresh temporary folder and return its predictions."""
    with tempfile.TemporaryDirectory() as folder:
        train_and_answer(study, arm, seed, Path(folder))
        lines = (Path(folder) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def compare_run(published: dict, now: dict) -> dict:
    """Compare two packed runs of the same questions; differences in scores are in nats.

    Keys: equal, agreement (share of equal choices), mean and max (absolute difference in scores),
    accuracy (now minus published), limit (the most that rounding would give, see `RULE`).
    """
    if published["id"] != now["id"]:
        raise DataError("the run answered other questions than the published one")
    # A field that the published run's version did not write can't be compared
    known = [n for n in COMPARED if published.get(n) is not None]
    gold, choices = np.array(now["gold"]), [np.array(r["choice"]) for r in (published, now)]
    right = [choice == gold for choice in choices]
    flat = [np.array([s for one in r["scores"] for s in one]) for r in (published, now)]
    gaps = np.abs(flat[1] - flat[0]) / MICRO
    apart = int((right[0] != right[1]).sum())
    return {
        "equal": all(published[name] == now.get(name) for name in known),
        "agreement": float((choices[0] == choices[1]).mean()),
        "mean": float(gaps.mean()),
        "max": float(gaps.max()),
        "accuracy": float(right[1].mean() - right[0].mean()),
        "limit": 1.96 * apart**0.5 / len(gold),
    }


def judge_rounding(found: dict, same_place: bool) -> bool:
    """Say whether a run passes: equal in the same place, else within what rounding would give."""
    return found["equal"] or (not same_place and abs(found["accuracy"]) <= found["limit"])


def verify(study: Study, count: int, seed: int = 0, say=print) -> None:
    """Train a sample of a study's published runs again and compare, a line per run.

    Raises DataError where a run fails, or would be another run with the present setting.
    """
    failed, here, name = 0, provenance(), study.name
    sample = choose_runs(name, count, seed)
    for plan, row in sample:
        arm, what = Arm(**plan["arm"]), f"{plan['label']} seed {plan['seed']}"
        config = make_config(study, arm, plan["seed"])
        if run_key(config) != row["key"]:
            names = sorted(config.keys() | row["config"].keys())
            other = [n for n in names if config.get(n) != row["config"].get(n)]
            raise DataError(
                f"study '{name}', {what}: published with other {', '.join(other)} than here; "
                "expected the same data, student and setting"
            )
        now = pack_predictions(train_again(study, arm, plan["seed"]), Path(what))
        found = compare_run(row, now)
        changed = [n for n in PLACE if row["provenance"].get(n) != here.get(n)]
        passes = judge_rounding(found, not changed)
        failed += not passes
        say(_describe_comparison(what, found, changed, passes), flush=True)
    if failed:
        raise DataError(f"study '{name}': {failed} of {len(sample)} runs are not as published")


def _describe_comparison(what: str, found: dict, changed: list[str], passes: bool) -> str:
    verdict = "passes" if passes else "FAILS"
    if found["equal"]:
        return f"{what}: {verdict}, every answer and score equals the published one"
    place = f"other {', '.join(changed)}" if changed else "same hardware and versions"
    return (
        f"{what}: {verdict} ({place}): {100 * found['agreement']:.1f} % of choices agree; scores "
        f"differ by {found['mean']:.6f} nats on average, {found['max']:.6f} at most; accuracy by "
        f"{100 * found['accuracy']:+.1f} points, of which rounding would give up to "
        f"{100 * found['limit']:.1f} ({RULE})"
    )
