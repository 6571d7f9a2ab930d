"""Where things are: the repository, the artifacts, the cache, a study's folder.

Names that cannot lead out.
"""

import os
import re
import reprlib
from pathlib import Path

from cotdistill.errors import DataError


def study_dir(study: str) -> Path:
    """What the notebooks of a study hand to each other.

    A study's name can't lead out of the artifacts.
    """
    return artifacts() / "studies" / check_name(study)


def cache_dir() -> Path:
    """Where converted weights are kept: $COTDISTILL_CACHE, else ~/.cache/cotdistill."""
    return Path(os.environ.get("COTDISTILL_CACHE") or Path.home() / ".cache" / "cotdistill")


NOTEBOOKS = {
    "elicit": "01_elicit",
    "train": "02_train",
    "evaluate": "03_evaluate",
    "shuffle": "04_shuffle",
    "attribute": "05_attribute_and_mask",
    "figures": "06_figures",
}
# The folder of the study's YAML, for the kernels: paths are looked for there first.
FOLDER = "COTDISTILL_STUDY_FOLDER"
RUN_STAGES = ("train", "shuffle", "attribute")  # the stages that make runs
RUN_KEY = re.compile("[0-9a-f]{64}")  # a run's folder is named by a SHA-256 and nothing else


def root() -> Path:
    """The repository, wherever a notebook or command was started from.

    $COTDISTILL_ROOT overrides it.
    """
    return Path(os.environ.get("COTDISTILL_ROOT") or Path(__file__).resolve().parents[1])


def places() -> list[Path]:
    """Where a relative path of a study is looked for: beside its YAML, then in the repository."""
    return [*map(Path, filter(None, [os.environ.get(FOLDER)])), root()]


def study_path(study: str) -> Path:
    """The YAML of a study given by name or by path."""
    return Path(study) if study.endswith((".yaml", ".yml")) else root() / "params" / f"{study}.yaml"


def enter_study(study: str, again: bool = True) -> None:
    """Look for relative paths beside this study's YAML first, in this process and its kernels.

    The folder is kept in the artifacts, so that what is asked later by the study's name alone finds
    its data. again=False: only where no study was entered before.
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
    """A study's name is part of file names: letters, digits, and .

    _ + - within; it can't lead out of the artifacts. Raises DataError.
    """
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name) or name in ("claims", "benchmark"):
        raise DataError(
            f"study name {reprlib.repr(name)}; expected a plain name, as in params/<name>.yaml: "
            "letters, digits, . _ + -"
        )
    return name


def artifacts() -> Path:
    """Where everything computed goes: $COTDISTILL_ARTIFACTS, else artifacts/ in the repository."""
    return Path(os.environ.get("COTDISTILL_ARTIFACTS") or root() / "artifacts")
