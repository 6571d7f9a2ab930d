"""What re-reading a published study needs beside its runs: study.json, numbers and ids only.

It holds the setting, the stages' plans, and per test question its id, right option, bytes of each
option, the numbers that split questions into strata, and for embedded data the fact that it asks
and its stratum. `make reread` executes notebooks from it and from runs.parquet: no data, no
student, no GPU.
"""

import json
import os
import shutil
from pathlib import Path

from cotdistill.breadth import question_numbers
from cotdistill.errors import DataError
from cotdistill.files import fingerprint, read_json, write_json
from cotdistill.paths import RUN_STAGES, evidence_folder, study_dir
from cotdistill.runs.published import FILE, fetch_study, no_published, read_published
from cotdistill.runs.results import completed_stages, read_plan
from cotdistill.runs.word_frequency import predict_by_frequency
from cotdistill.study import Study

RECORD = "study.json"


def record_questions(study: Study) -> list[dict]:
    """Describe the test questions without their texts: id, answer, bytes of each option.

    Also numbers (`breadth.describe_question`), and where the data are embedded fact, fact_in and
    world: names of the knowledge base.
    """
    known = ("fact", "fact_in", "world")
    rows, meta, numbers = [], study.data.meta, question_numbers(study)
    for e in study.test_questions():
        about = {name: meta[e.id][name] for name in known if name in meta.get(e.id, {})}
        sizes = [len(choice.encode()) for choice in e.choices]
        row = {"id": e.id, "answer": e.answer, "bytes": sizes, "numbers": numbers[e.id]}
        rows.append(row | about)
    return rows


def record_mentions(study: Study) -> dict[str, dict[str, float]]:
    """Record the answers by word frequency: seed -> id -> share, empty for other data."""
    if not study.data.meta:
        return {}
    rows = predict_by_frequency(study)
    return {
        str(seed): dict(zip(part["id"], part["correct_choice"].astype(float), strict=True))
        for seed, part in rows.groupby("seed")
    }


def write_record(name: str, target: Path, say=print) -> None:
    """Write `target`/study.json from the study's folder; stages that only the old one has stay.

    Before notebook 02 has saved the setting there is nothing to write, which is said.
    """
    path = target / RECORD
    try:
        study = Study.load(name)
        questions, mentioned = record_questions(study), record_mentions(study)
    except DataError as error:
        say(f"{name}/{RECORD} is left as it is: {error}", flush=True)
        return
    old = read_json(path, "`make publish`")["stages"] if path.is_file() else {}
    stages = {stage: read_plan(name, stage) for stage in completed_stages(name)}
    base = study.setting.to_json()
    base["data"] = {k: v for k, v in base["data"].items() if k != "content"}
    for part, field in ((base, "student"), (base["data"], "dataset"), (base["data"], "data_dir")):
        if os.path.isabs(part[field]):  # no output names this machine
            part[field] = Path(part[field]).name
    record = {"base": base, "stages": old | stages, "questions": questions}
    record["mentioned"] = mentioned
    record = json.loads(json.dumps(record))
    write_json(path, record | {"seal": fingerprint(record)})


def read_record(name: str) -> dict:
    """Read a study's study.json; raise DataError where it is missing or damaged."""
    folder = evidence_folder(name)
    if not (folder / FILE).is_file():
        raise no_published(name)
    return read_json(folder / RECORD, f"`make publish-runs STUDY={name}`")


def lay_out(name: str, others: list[str] = ()) -> list[str]:
    """Lay a published study out in the present store, as its notebooks expect it.

    Runs that its plans name and that are not published are left out, and counted. others: studies
    to pool with, whose published verdicts come too. Returns the stages whose runs are there.
    """
    record, folder = read_record(name), study_dir(name)
    fetch_study(name)
    known = {row["key"] for row in read_published(evidence_folder(name) / FILE)}
    stages = []
    for stage in (stage for stage in RUN_STAGES if stage in record["stages"]):
        plan = record["stages"][stage]
        whole = [{k: v for k, v in r.items() if k != "plan"} for r in plan if r["key"] in known]
        if len(whole) < len(plan):
            print(f"stage {stage}: {len(plan) - len(whole)} of {len(plan)} runs not published yet")
        if whole:
            write_json(folder / f"{stage}.json", whole)
            stages.append(stage)
    write_json(folder / "published.json", record)
    for other in filter(None, others):
        verdicts = evidence_folder(other) / "verdicts.json"
        if verdicts.is_file():
            study_dir(other).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(verdicts, study_dir(other) / verdicts.name)
    return stages
