"""Locate the repository, the artifacts, the cache and a study's folder.

A study's name is checked, so that no path leads outside these folders.
"""

import os
import re
import reprlib
from pathlib import Path

from cotdistill.errors import DataError


def study_dir(study: str) -> Path:
    """Return the folder through which a study's notebooks pass results to each other.

    Raises DataError for a name that would lead outside the artifacts.
    """
    return artifacts() / "studies" / check_name(study)


def cache_dir() -> Path:
    """Return the folder of converted weights: $COTDISTILL_CACHE, else ~/.cache/cotdistill."""
    return Path(os.environ.get("COTDISTILL_CACHE") or Path.home() / ".cache" / "cotdistill")


NOTEBOOKS = {
    "elicit": "01_elicit",
    "train": "02_train",
    "evaluate": "03_evaluate",
    "shuffle": "04_shuffle",
    "attribute": "05_attribute_and_mask",
    "figures": "06_figures",
}
# What the paper leaves open: run where a study's `stages` lists them, or by name
OPEN_NOTEBOOKS = {
    "tasks": "07_tasks",
    "lasting": "08_lasting",
    "mechanism": "09_mechanism",
    "quality": "10_quality",
    "methods": "11_methods",
}
ALL_NOTEBOOKS = NOTEBOOKS | OPEN_NOTEBOOKS
# The variable that tells kernels the folder of the study's YAML; paths are looked for there first.
FOLDER = "COTDISTILL_STUDY_FOLDER"
RUN_STAGES = ("train", "shuffle", "attribute")  # the paper's stages that make runs
# A stage's plan of runs is <stage>.json, but for these: quality.json is notebook 01's
PLAN_NAMES = {"quality": "rationale-sets"}
PLANNING_STAGES = (*RUN_STAGES, *OPEN_NOTEBOOKS)  # all that write a plan of runs
RUN_KEY = re.compile("[0-9a-f]{64}")  # a run's folder is named by a SHA-256 and nothing else


def root() -> Path:
    """Return the repository, wherever a notebook or command was started.

    $COTDISTILL_ROOT overrides it.
    """
    return Path(os.environ.get("COTDISTILL_ROOT") or Path(__file__).resolve().parents[1])


def evidence_folder(study: str) -> Path:
    """Return the folder of a study's committed evidence; only `make publish` writes there."""
    return root() / "notebooks" / "executed" / study


def places() -> list[Path]:
    """List where a study's relative path is looked for: beside its YAML, then in the repository."""
    return [*map(Path, filter(None, [os.environ.get(FOLDER)])), root()]


def data_places(path: str) -> list[str]:
    """List the names under which a path of a study is looked for: itself, then its other place.

    `make data` fetches into data/, and a developer's copy of the same files lies in
    ../shared/data. A study that names one of them also finds the other.
    """
    homes = ("data", "../shared/data")
    home = next((h for h in homes if path == h or path.startswith(f"{h}/")), None)
    if home is None:
        return [path]
    return [path, *(other + path[len(home) :] for other in homes if other != home)]


def candidate_paths(path: str) -> list[Path]:
    """List where a study's relative path may be, in the order in which it is looked for."""
    return [place / name for name in data_places(path) for place in places()]


def plan_path(study: str, stage: str) -> Path:
    """Return the file that holds a stage's plan of runs."""
    return study_dir(study) / f"{PLAN_NAMES.get(stage, stage)}.json"


def study_path(study: str) -> Path:
    """Return the YAML file of a study given by name or by path."""
    return Path(study) if study.endswith((".yaml", ".yml")) else root() / "params" / f"{study}.yaml"


def enter_study(study: str, again: bool = True) -> None:
    """Look for relative paths beside this study's YAML first, in this process and its kernels.

    The folder is also stored in the artifacts, so that a later command that knows only the study's
    name finds its data. With `again=False` nothing changes if a study was entered before.
    """
    path = study_path(study)
    note = artifacts() / "studies" / path.stem / "folder.txt"
    if not again and os.environ.get(FOLDER):
        return
    if not path.is_file() and note.is_file():
        os.environ[FOLDER] = note.read_text(encoding="utf-8").strip()
    elif path.is_file():
        os.environ[FOLDER] = str(path.resolve().parent)


def check_name(name: str) -> str:
    """Return a study's name if it is safe as part of a file name; raise DataError if not.

    Letters, digits and . _ + - are allowed, and the first character is a letter, a digit or _. Such
    a name cannot lead outside the artifacts.
    """
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name) or name in ("claims", "benchmark"):
        raise DataError(
            f"study name {reprlib.repr(name)}; expected a plain name, as in params/<name>.yaml: "
            "letters, digits, . _ + -"
        )
    return name


def artifacts() -> Path:
    """Return the folder of everything computed: $COTDISTILL_ARTIFACTS, else artifacts/ here."""
    return Path(os.environ.get("COTDISTILL_ARTIFACTS") or root() / "artifacts")
