"""The grid of a study, several runs side by side on one GPU.

    make grid STUDY=openbookqa AT_ONCE=4

It fills the store with the runs of stages train and shuffle, as Ray tasks that share this machine's
GPU (`on_ray`), in the study's own `precision`: a run has one key on every machine. `make reproduce`
finds the runs, and trains what needs a trained student's scores, the arms of stage attribute.
"""

import os

import torch

from cotdistill.arms import Arm
from cotdistill.errors import DataError
from cotdistill.grids import control_arms, shuffled_arms, training_arms
from cotdistill.parameters import all_values, load_study, study_stages
from cotdistill.runs.grid import run_grid
from cotdistill.study import Study


def grid_arms(values: dict) -> dict[str, list[Arm]]:
    """List the arms of a study's stages train and shuffle, as notebooks 02 and 04 do.

    values: all parameters of the study (`parameters.all_values`). Stage -> arms; a stage that the
    study leaves out is left out.
    """
    arms = {
        "train": training_arms(
            values["arms"],
            values["label_weights"],
            values["also_losses"],
            values["also_loss_arms"],
        ),
        "shuffle": shuffled_arms(
            values["shuffle_placements"], values["shuffle_units"], values["fresh_shuffle"]
        )
        + control_arms(values["control_placements"], values["controls"]),
    }
    return {stage: made for stage, made in arms.items() if stage in study_stages(values)}


def gpu_study(name: str) -> Study:
    """Make a study as its YAML has it, on the GPU where this machine has one.

    Its data.json must be there (`make elicit`). Only the device differs from the sequential path's
    study, and no key holds it.
    """
    return Study.from_yaml(name).replace(device="cuda" if torch.cuda.is_available() else "cpu")


def run_side_by_side(name: str, at_once: int, say=print) -> None:
    """Make the runs of a study's stages train and shuffle, `at_once` at a time on one GPU.

    Without a GPU they share the cores, a thread each. name: of a study in params/, or the path of
    its YAML. Raises DataError for at_once below 1, where stage elicit has not run, and as
    `run_grid` does.
    """
    if at_once < 1:
        raise DataError(f"AT_ONCE is {at_once}; expected the number of runs side by side, from 1")
    study, values = gpu_study(name), all_values(load_study(name))
    on_gpu = study.setting.device == "cuda"
    os.environ["COTDISTILL_GPUS_PER_RUN"] = f"{int(1e4 / at_once) / 1e4:.4f}" if on_gpu else "0"
    os.environ.setdefault("COTDISTILL_CPUS_PER_RUN", "1")
    arms = grid_arms(values)
    study.check(arms.get("train"))
    study.save()
    keep = [("pre_cot", study.setting.seeds[0])] if values["keep_weights"] else []
    for stage, made in arms.items():
        wanted = tuple(keep) if stage == "train" else ()
        run_grid(study, made, stage, keep_weights=wanted, backend="ray", say=say)
    say(f"`make reproduce STUDY={name}` finds these runs and goes on with them", flush=True)
