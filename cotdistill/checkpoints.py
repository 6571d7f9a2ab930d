"""Seal checkpoints, so that a killed run resumes from a complete one or from none."""

import json
import re
import shutil
from pathlib import Path

import torch
from torch import nn

from cotdistill.files import damaged_files, sha256

# The files of a checkpoint; of a single process also rng_state.pth
CHECKPOINT = ("trainable.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def seal_checkpoint(folder: Path) -> None:
    """Write the SHA-256 of a checkpoint's files into its seal.json, last.

    A checkpoint without a seal is not complete.
    """
    names = [*CHECKPOINT, *(["rng_state.pth"] if (folder / "rng_state.pth").is_file() else [])]
    part = folder / "seal.part"
    part.write_text(json.dumps({name: sha256(folder / name) for name in names}), encoding="utf-8")
    part.replace(folder / "seal.json")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List (step, folder) of each checkpoint, the first step first."""
    found = [
        (re.fullmatch(r"checkpoint-(\d+)", path.name), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir()
    ]
    return sorted((int(match[1]), path) for match, path in found if match)


def checkpoint_problem(checkpoint: Path) -> str:
    """Say what is wrong with a checkpoint, or with the best epoch it refers to.

    Empty where both are as they were written.
    """
    try:
        seal = json.loads((checkpoint / "seal.json").read_text(encoding="utf-8"))
        bad = damaged_files(checkpoint, dict.fromkeys(CHECKPOINT, "") | seal)
        if bad:
            return f"{', '.join(bad)} damaged"
        best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))[
            "best_model_checkpoint"
        ]
    except FileNotFoundError:
        return "seal.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "seal.json damaged"
    if not best or Path(best) == checkpoint:
        return ""
    problem = (
        checkpoint_problem(checkpoint.with_name(Path(best).name))
        if Path(best).parent == checkpoint.parent
        else "it is in another folder"
    )
    return f"its best epoch, {Path(best).name}: {problem}" if problem else ""


def last_good_checkpoint(folder: Path) -> str | None:
    """Return the checkpoint that a killed run goes on from; None: it starts from the beginning.

    Damaged and incomplete checkpoints are named and deleted.
    """
    for _, path in reversed(list_checkpoints(folder)):
        problem = checkpoint_problem(path)
        if not problem:
            return str(path)
        print(
            f"{path.name} of a killed run: {problem}; it is not used, training goes back to "
            "the last complete one or the beginning",
            flush=True,
        )
        shutil.rmtree(path)
    return None


def trainable_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> tensor of the parameters that training changes (a tied head once)."""
    return {
        name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad
    }


def restore_parameters(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy weights back in place: no reload between the runs of a grid."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
