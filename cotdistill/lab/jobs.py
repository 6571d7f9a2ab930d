"""Train two arms in a process of its own, which a page can leave, stop, resume and find again.

A job is a folder in artifacts/lab/jobs/: job.json (what to train), progress.jsonl (what was learnt
so far, a line per batch, validation and epoch), log.txt and a lock that its process holds. The
process goes on when the kernel or the page is closed. Its runs land in the store under the keys of
the study, so a stopped job resumes from its run's last complete epoch.

`python -m cotdistill.lab.jobs FOLDER` is that process.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from cotdistill.arms import Arm
from cotdistill.errors import DataError, one_line
from cotdistill.files import read_json, write_json
from cotdistill.paths import artifacts, root

# What a job's folder says of it
STATES = ("new", "running", "stopped", "failed", "done")
_children: list[subprocess.Popen] = []  # kept so that they are reaped


@dataclass(frozen=True)
class Plan:
    """Hold what a job trains: two arms of a study with one seed.

    student: its name; empty: the study's. questions: for training; 0: all. epochs: 0, the study's.
    """

    study: str
    arms: tuple[Arm, ...]
    seed: int = 0
    loss: str = ""
    questions: int = 0
    epochs: int = 0
    student: str = ""

    @property
    def name(self) -> str:
        """Return the job's name: equal plans are one job, which resumes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Return the job's folder."""
        return jobs_folder() / self.name


@dataclass(frozen=True)
class Learning:
    """What one arm's run has learnt so far.

    batches: step, loss, label_loss, rationale_loss (nats per token); checks: step, p_gold and
    accuracy on validation questions, the first before any training; epochs: rows of the history.
    steps: of the whole training, 0 while not known; key: of its run, once it is complete.
    """

    batches: list[dict] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)
    steps: int = 0
    key: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """Hold what a job's folder says: its plan, its state, what was learnt, and its last line."""

    plan: Plan
    state: str
    arms: dict[str, Learning]
    said: str


def make_plan(study: str, arms: tuple[Arm, ...], **chosen) -> Plan:
    """Check two arms and make a plan of them; chosen: fields of `Plan`. Raises DataError."""
    if arms[0].label == arms[1].label:
        raise DataError(f"both arms are {arms[0].label}; expected two that differ")
    return Plan(study, arms, **chosen)


def jobs_folder() -> Path:
    """Return where jobs lie."""
    return artifacts() / "lab" / "jobs"


def read_job_plan(folder: Path) -> Plan:
    """Read the plan of a job.json. Raises DataError for one that is missing or damaged."""
    values = read_json(folder / "job.json", "*Train here* of the lab")
    try:
        return Plan(**values | {"arms": tuple(Arm(**arm) for arm in values["arms"])})
    except (TypeError, KeyError, AttributeError):
        raise DataError(
            f"{folder / 'job.json'}: damaged; expected what *Train here* of the lab wrote: delete "
            "that folder"
        ) from None


def is_running(folder: Path) -> bool:
    """Say whether a job's process is alive: it holds a lock, which ends with it however it ends."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def start_job(plan: Plan) -> Path:
    """Start a job's process, or resume one that was stopped; one that is running goes on.

    It gets a session of its own, so that it outlives this process. Returns the job's folder.
    """
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    if is_running(folder):
        return folder
    write_json(folder / "job.json", asdict(plan))
    (folder / "stopped").unlink(missing_ok=True)
    paths = [str(root()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with (folder / "log.txt").open("a") as log:
        _children.append(
            subprocess.Popen(
                [sys.executable, "-m", "cotdistill.lab.jobs", str(folder)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            )
        )
    until = time.monotonic() + 20
    while not is_running(folder) and _children[-1].poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    return folder


def stop_job(folder: Path) -> None:
    """End a job's process; complete epochs and runs are kept. Nothing happens where none runs."""
    if not is_running(folder):
        return
    pid = int((folder / "pid").read_text())
    (folder / "stopped").touch()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while is_running(folder) and time.monotonic() < until:
        time.sleep(0.05)
    if is_running(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for child in _children:
        child.poll()


def read_events(folder: Path) -> list[dict]:
    """Read progress.jsonl; a line that is still being written is left out."""
    path, found = folder / "progress.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def read_job(folder: Path) -> Job:
    """Read a job's state and all that it has learnt so far."""
    plan, events = read_job_plan(folder), read_events(folder)
    running = is_running(folder)
    last = next((e for e in reversed(events) if e["kind"] in ("start", "failed", "done")), None)
    state = "running" if running else "new" if last is None else last["kind"]
    if state == "start":  # its process ended without a word
        state = "stopped"
    said = next((e["text"] for e in reversed(events) if e["kind"] in ("say", "failed")), "")
    arms = {arm.label: collect_learning(events, arm.label) for arm in plan.arms}
    return Job(plan, state, arms, said)


def collect_learning(events: list[dict], label: str) -> Learning:
    """Sort one arm's events; of a step that was made again after a stop the last one counts."""
    batches, checks, epochs = {}, {}, {}
    step = steps = seconds = 0
    key = ""
    for event in (e for e in events if e.get("arm") == label):
        if event["kind"] == "begin":
            step = 0 if event["from_step"] is None else event["from_step"]
        elif event["kind"] == "batch":
            step, steps = event["step"], event["steps"]
            batches[step] = event
        elif event["kind"] == "validation":
            checks[step] = event | {"step": step}
        elif event["kind"] == "epoch":
            epochs[event["epoch"]] = event
        elif event["kind"] == "run":
            key, seconds = event["key"], event["seconds"]
    return Learning(*map(list, (batches.values(), checks.values(), epochs.values())), steps, key,
                    seconds)  # fmt: skip


def list_jobs() -> list[Path]:
    """List the folders of all jobs, the latest first."""
    found = [path.parent for path in jobs_folder().glob("*/job.json")]
    return sorted(found, key=lambda folder: (folder / "job.json").stat().st_mtime, reverse=True)


def plan_study(plan: Plan):
    """Return the study of a job: the one that the plan names, with the plan's changes."""
    from cotdistill.lab.sources import open_study

    study, _ = open_study(plan.study)
    changes = {"seeds": [plan.seed], "train": {}, "also_answer": []}
    usable = len(study.usable_questions()[0])
    if plan.student:
        changes["student"] = plan.student
    if plan.questions:
        # As many as there are is "all": one training, one key
        changes["train_size"] = 0 if plan.questions >= usable else plan.questions
    if plan.loss:
        changes["train"]["loss"] = plan.loss
    if plan.epochs:
        changes["train"]["epochs"] = plan.epochs
    return study.replace(**changes)


def scores_for(study, arm: Arm, seed: int) -> tuple[dict | None, str]:
    """Return the scores that an arm selects tokens by, as notebook 05 makes them, and their print.

    The study's pre_cot student of this seed attributes; where its weights are missing, the
    untrained student does.
    """
    from cotdistill.parameters import load_study, notebook_parameters
    from cotdistill.runs.attributors import attributing_student
    from cotdistill.runs.scores import load_or_make_scores

    if not arm.needs_scores:
        return None, ""
    try:
        attributor = attributing_student(study, "pre_cot", seed)
    except DataError as error:
        print(f"{error}: the untrained student chooses the tokens", flush=True)
        attributor = attributing_student(study, "undistilled", seed)
    values = notebook_parameters(root() / "notebooks" / "05_attribute_and_mask.ipynb")
    with contextlib.suppress(DataError):
        values |= load_study(study.name)
    options = {name: values[name] for name in ("n_steps", "baseline")} | {"seed": seed}
    options["label_format"] = study.setting.label_format
    questions = study.train_questions(seed)
    return load_or_make_scores(study, *attributor, arm.selector, questions, **options)


def run_job(folder: Path) -> None:
    """Make the runs of a job, one arm after the other, and write down what is learnt."""
    from cotdistill.checkpoints import list_checkpoints
    from cotdistill.runs.one import make_config, make_validation, run_key
    from cotdistill.runs.store import load_metrics, load_or_make_run

    plan, progress = read_job_plan(folder), (folder / "progress.jsonl").open("a", encoding="utf-8")

    def write(row: dict) -> None:
        progress.write(json.dumps(row) + "\n")
        progress.flush()

    def say(*text, **_):
        write({"kind": "say", "text": " ".join(map(str, text)).strip()})

    write({"kind": "start"})
    study = plan_study(plan)
    study.watch = write
    study.check_positions(list(plan.arms))
    for arm in plan.arms:
        scores, scores_print = scores_for(study, arm, plan.seed)
        config, started = make_config(study, arm, plan.seed, scores_print), time.monotonic()
        key = run_key(config)
        work = artifacts() / "runs" / f"{key}.work" / "checkpoints"
        saved = list_checkpoints(work)
        write({"kind": "begin", "arm": arm.label, "from_step": saved[-1][0] if saved else None})
        say(f"{arm.label}: {'resumes' if saved else 'begins'}")
        validate = make_validation(study, arm, plan.seed)
        stored = load_metrics(key) is not None
        if validate and not saved and not stored:
            validate()  # where its curve begins
        keep = not stored and arm.is_trained
        metrics, made = load_or_make_run(
            study, arm, plan.seed, config, scores=scores, keep_weights=keep, say=say
        )
        write({"kind": "run", "arm": arm.label, "key": key, "made": made,
               "accuracy": metrics["accuracy"], "seconds": time.monotonic() - started})  # fmt: skip
    write({"kind": "done"})


def main(folder: Path) -> int:
    """Run the job of a folder, holding its lock; a failure becomes one line of its progress."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=5)  # who asks `is_running` holds it for an instant
    except Timeout:
        return 0
    (folder / "pid").write_text(str(os.getpid()))
    try:
        run_job(folder)
    except Exception as error:
        text = one_line(str(error) or type(error).__name__)
        with (folder / "progress.jsonl").open("a", encoding="utf-8") as out:
            out.write(json.dumps({"kind": "failed", "text": text}) + "\n")
        if not isinstance(error, DataError):
            raise
        return 1
    finally:
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
