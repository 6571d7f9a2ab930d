"""Turn what a user executed into committed evidence; only `make publish` writes it."""

import json
import os
import reprlib
import shutil
from pathlib import Path

import yaml

from cotdistill.errors import DataError
from cotdistill.files import read_text, remove_stale_parts, temporary_path
from cotdistill.parameters import load_study, notebook_parameters, study_stages
from cotdistill.paths import ALL_NOTEBOOKS, artifacts, evidence_folder, root
from cotdistill.tidy import INJECTED

# Made by stage figures where there is something to show
OPTIONAL = ("costs.json", "answers.json")
FIGURES = ("forest.png", "placement.png")  # made by stage figures, shown beside the notebooks


def notebook_folder(study: str) -> Path:
    """Return where a study's executed notebooks are read: the user's own, else the published."""
    own = artifacts() / "executed" / study
    return own if any(own.glob("[0-9]*.ipynb")) else evidence_folder(study)


def check_copy(path: Path, source: Path, values: dict, again: str) -> None:
    """Check that a notebook was executed to its end, with the present source and values.

    again: the command that would make it so. Raises DataError: one line that says what differs.
    """
    if not path.is_file():
        raise DataError(f"{path}: not executed yet; run {again}")
    try:
        ran, now = (json.loads(read_text(file, "a notebook")) for file in (path, source))
        cells = [cell for cell in ran["cells"] if INJECTED not in cell["metadata"].get("tags", [])]
        texts = [["".join(cell["source"]) for cell in some] for some in (cells, now["cells"])]
        code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
        failed = any(
            output["output_type"] == "error" for cell in code for output in cell["outputs"]
        )
        completed = all(cell["execution_count"] for cell in code) and not failed
        used = ran["metadata"]["cotdistill"]["parameters"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not an executed notebook ({type(error).__name__}: {error}); run {again}"
        ) from None
    if texts[0] != texts[1]:
        raise DataError(
            f"{path}: executed with other cells than {os.path.relpath(source, root())} has now; "
            f"run {again}"
        )
    if not completed:
        raise DataError(f"{path}: it was not executed to its end; run {again}")
    for key in sorted(used.keys() | values.keys()):
        if key not in used or key not in values or used[key] != values[key]:
            was, now = (
                reprlib.repr(some[key]) if key in some else "the default" for some in (used, values)
            )
            raise DataError(f"{path}: executed with {key} {was}, which is {now} now; run {again}")


def find_evidence(study: str, stages: list[str] | None) -> list[Path]:
    """List the files that `publish` copies: executed notebooks of these stages (None: its own).

    Stage figures adds its verdicts and two figures; what is `OPTIONAL` is added where it exists.
    Raises DataError where a stage is missing, failed, or was executed with other values or code
    than now.
    """
    values = load_study(study)
    name = values["study"]
    folder, wanted = artifacts() / "executed" / name, stages or study_stages(values)
    files = []
    for stage in wanted:
        source = root() / "notebooks" / f"{ALL_NOTEBOOKS[stage]}.ipynb"
        again = f"`make {stage} STUDY={study}`"
        failed = artifacts() / "studies" / name / f"{stage}.failed"
        if failed.is_file():
            raise DataError(f"{failed}: stage {stage} failed when it was last run; run {again}")
        known = notebook_parameters(source)
        files.append(folder / source.name)
        if not files[-1].is_file() and not stages:
            again += f', or publish a part: `make publish STUDY="{study} --stages elicit …"`'
        given = {key: value for key, value in values.items() if key in known}
        check_copy(files[-1], source, given, again)
    if "figures" in wanted:
        files += [folder / file for file in ("verdicts.json", *FIGURES)]
        missing = next((file for file in files if not file.is_file()), None)
        if missing:
            raise DataError(f"{missing}: no such file; run `make figures STUDY={study}`")
    return files + [file for file in (folder / name for name in OPTIONAL) if file.is_file()]


def find_benchmark() -> list[Path]:
    """List the executed benchmark, alone.

    Raises DataError where it was executed with other values or code than now.
    """
    source = root() / "benchmarks" / "benchmark.ipynb"
    path = artifacts() / "executed" / "benchmark" / "benchmark.ipynb"
    values = yaml.safe_load(read_text(source.with_suffix(".yaml"), "a YAML file"))
    check_copy(path, source, values, "`make bench`")
    return [path]


def publish(study: str, stages: list[str] | None = None) -> Path:
    """Make a study's executed notebooks its committed evidence, completely or not at all.

    notebooks/executed/<study>/ then holds these files and nothing older, except costs.json, which
    few studies make, and runs.parquet, to which the study's runs are added. study: a name or a
    path, or "benchmark". Raises DataError as `find_evidence` does, and where a published notebook
    would be lost. Returns that folder.
    """
    from cotdistill.runs.published import FILE, write_runs  # which need torch
    from cotdistill.runs.record import RECORD, write_record

    files = find_benchmark() if study == "benchmark" else find_evidence(study, stages)
    target = evidence_folder(files[0].parent.name)
    lost = sorted({path.name for path in target.glob("*.ipynb")} - {path.name for path in files})
    if lost:
        raise DataError(
            f"{target}: {lost[0]} is published too; expected all of its stages at once, so that "
            "they go together"
        )
    part, old = temporary_path(target), temporary_path(target.with_name(f"{target.name}.old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(target.parent)
    try:
        part.mkdir()
        for file in files:
            shutil.copyfile(file, part / file.name)
        if (target / "costs.json").is_file() and not (part / "costs.json").is_file():
            shutil.copyfile(target / "costs.json", part / "costs.json")
        for name in (FILE, RECORD):
            if (target / name).is_file():
                shutil.copyfile(target / name, part / name)
        if study != "benchmark":
            write_runs(target.name, part)
        if (part / FILE).is_file():
            write_record(target.name, part)
        if target.is_dir():
            os.rename(target, old)
        try:
            os.rename(part, target)
        except BaseException:
            if old.is_dir():
                os.rename(old, target)
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target
