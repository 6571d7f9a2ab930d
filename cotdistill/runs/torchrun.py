"""One run on all processes of a torchrun (data parallel)."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch

from cotdistill.arms import arm_from_name
from cotdistill.processes import broadcast_from_first, rank_and_world_size
from cotdistill.runs.one import make_config, train_arm
from cotdistill.runs.store import load_or_make_run
from cotdistill.study import Study


def make_shared_run(name: str, arm_name: str, seed: int, say=print) -> dict | None:
    """Make one run of a study with all processes of this torchrun.

    The first one keeps the store and answers the test questions. Returns its metrics (None on the
    others). Raises DataError for an unknown arm or a study without notebook 01.
    """
    study, arm = Study.from_yaml(name), arm_from_name(arm_name)
    study.replace(seeds=[seed]).check()
    study.check_positions([arm])
    if rank_and_world_size()[0]:
        folder = broadcast_from_first(None)
        if folder:  # the first process found no run in the store and is about to train it
            train_arm(study, arm, seed, Path(folder))
        return None
    setting = study.setting
    keep = setting.keep_weights and (arm.label, seed) == ("pre_cot", setting.seeds[0])
    metrics, fresh = load_or_make_run(
        study, arm, seed, make_config(study, arm, seed), keep_weights=keep, say=say
    )
    if not fresh or not arm.is_trained:
        broadcast_from_first("")
    seconds = metrics["train_seconds"] + metrics["evaluate_seconds"]
    say(
        f"{arm.label} seed {seed}, {rank_and_world_size()[1]} processes: forced choice "
        f"{100 * metrics['accuracy']:.1f} % of {metrics['n']}, "
        + (f"{seconds:.0f} s" if fresh else "from the store"),
        flush=True,
    )
    return metrics


@contextmanager
def use_process_group():
    """Make the processes of a torchrun one group while open; alone, nothing changes."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        torch.distributed.init_process_group()  # gloo between CPUs, nccl between GPUs
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
