"""One run on all processes of a torchrun (data parallel)."""

import argparse
import os
import sys
from pathlib import Path

import torch

from cotdistill.arms import arm_from_name
from cotdistill.errors import DataError
from cotdistill.processes import broadcast_from_first, rank_and_world_size
from cotdistill.runs.one import make_config, train_arm
from cotdistill.runs.store import load_or_make_run
from cotdistill.study import check_base, check_positions, study_base


def make_shared_run(study: str, arm_name: str, seed: int, say=print) -> dict | None:
    """Make one run of a study with all processes of this torchrun.

    The first one keeps the store and answers the test questions. Returns its metrics (None on the
    others). Raises DataError for an unknown arm or a study without notebook 01.
    """
    base, arm = study_base(study), arm_from_name(arm_name)
    check_base(base | {"seeds": [seed]})
    check_positions(base, [arm])
    if rank_and_world_size()[0]:
        folder = broadcast_from_first(None)
        if folder:  # the first process found no run in the store and is about to train it
            train_arm(base, arm, seed, Path(folder))
        return None
    keep = base["keep_weights"] and (arm.label, seed) == ("pre_cot", base["seeds"][0])
    metrics, fresh = load_or_make_run(
        base, arm, seed, make_config(base, arm, seed), keep_weights=keep, say=say
    )
    if not fresh or arm.placement == "zero_shot":
        broadcast_from_first("")
    say(
        f"{arm.label} seed {seed}, {rank_and_world_size()[1]} processes: forced choice "
        f"{100 * metrics['accuracy']:.1f} % of {metrics['n']}, "
        + (
            f"{metrics['train_seconds'] + metrics['evaluate_seconds']:.0f} s"
            if fresh
            else "from the store"
        ),
        flush=True,
    )
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """Make one run; 0, or 1 after one line that says what went wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cotdistill.runs.torchrun",
        description="Make one run of a study; under torchrun, with all its processes.",
    )
    run = parser.add_subparsers(dest="command", required=True).add_parser("run")
    run.add_argument("study")
    run.add_argument("--arm", required=True)
    run.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        torch.distributed.init_process_group()  # gloo between CPUs, nccl between GPUs
    try:
        make_shared_run(chosen.study, chosen.arm, chosen.seed)
        return 0
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
