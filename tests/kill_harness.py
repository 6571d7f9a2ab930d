"""SIGKILL a study at many points and compare the result with an undisturbed run: `make kill`.

    python tests/kill_harness.py [--out kill.json] [--points 2] [--writes 20] [--without-ray]
                                 [--seed 0]

1. A small study runs undisturbed, stage by stage: the reference, and the time of each stage.
2. In another store each stage is killed again and again, at fractions of its time and at moments
   that hurt (a checkpoint, the weights, the answers, a score file have just appeared), in turn the
   group of `make`, the process that runs papermill, the kernel; then, on a Ray cluster of this
   machine, a worker. After each kill the same command runs again.
3. In a third store two processes run the whole study at once: a second fresh run, and each run made
   once.
4. One training run is killed before each of its writes, renames and deletions, or as many of them
   as --writes says.

Everything is compared to the byte, but for times and dates.
"""

import argparse
import glob
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cotdistill.paths import NOTEBOOKS

STUDY = """# The smoke study with its arms and stages, as small as they go.
dataset: microworld/everyday
student: tiny-llama
n_train: 24
n_test: 40
validation_size: 8
max_new_tokens: 8
batch_size: 8
lr: 1.0e-2
check_methods: [integrated_gradients, attention]
check_questions: 3
n_steps: 2
bootstrap: 50
"""
# stage -> what has just appeared when it is killed (in the store; {study} and {executed} are filled
# in)
MOMENTS = {
    "elicit": [
        "studies/{study}/rationales.jsonl",
        "studies/{study}/data.json",
        "{executed}/.01_elicit*",
    ],
    "train": [
        "studies/{study}/base.json",
        "runs/*.work/checkpoints/checkpoint-*",
        "runs/*.work/weights.safetensors",
        "runs/*.work/predictions.jsonl",
        "runs/*.work/metrics.json*",
        "runs/*/metrics.json",
    ],
    "evaluate": ["{executed}/.03_evaluate*", "studies/{study}/figures/*.p??*"],
    "shuffle": [
        "studies/{study}/shuffle.json",
        "runs/*.work/checkpoints/checkpoint-*/seal.json",
        "runs/*.work/history.csv",
    ],
    "attribute": [
        "studies/{study}/scores/*.jsonl*",
        "studies/{study}/attribute.json",
        "runs/*.work/checkpoints/checkpoint-*/trainable.safetensors",
    ],
    "figures": [
        "studies/{study}/verdicts.json",
        "studies/{study}/figures/forest.p??*",
        "{executed}/06_figures.ipynb",
    ],
}
PATIENCE = 4 * 3600  # seconds; on a busy machine a stage of ten seconds can take an hour
# Files: compared themselves, but for the date in provenance.json
TIMES = ("train_seconds", "evaluate_seconds", "seal", "files")
LINE = re.compile(
    r"^\[\d+/\d+\] (.+?)(?: seed (\d+))?: .* (?:\d+ s|(from the store))(?:, about "
    r".*)?$",
    re.M,
)


# ---------------------------------------------------------------- processes


def processes() -> dict[int, tuple[int, str, str]]:
    """pid -> (parent, state, command line) of everything that lives here."""
    found = {}
    for path in glob.glob("/proc/[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            state, parent = Path(path, "stat").read_text().rpartition(")")[2].split()[:2]
            found[int(path[6:])] = (
                int(parent),
                state,
                Path(path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
            )
    return found


def descendants(pid: int) -> dict[int, str]:
    """pid -> command line of a process and all that it started, itself included."""
    alive, found = processes(), {}
    todo = [pid]
    while todo:
        one = todo.pop()
        if one in alive:
            found[one] = alive[one][2]
            todo += [child for child, (parent, _, _) in alive.items() if parent == one]
    return found


def kernels_of(pid: int) -> list[int]:
    """The kernels below a process: forked from the one that imports, or started plainly."""
    below = descendants(pid)
    forks = {p for p, command in below.items() if "cotdistill.kernel_parent" in command}
    parents = {p: parent for p, (parent, _, _) in processes().items()}
    return [
        found
        for found, command in below.items()
        if "ipykernel_launcher" in command or (found in forks and parents.get(found) in forks)
    ]


def victims(child: subprocess.Popen, kind: str) -> list[int]:
    """The processes to kill: [] where there is none yet."""
    words = {"papermill": "cotdistill.cli", "worker": "ray::work"}
    if kind == "group":
        return [child.pid]
    if kind == "kernel":
        return kernels_of(child.pid)[-1:]
    # of `make` and the process it starts the last one is the study
    return [
        pid
        for pid, command in descendants(child.pid).items()
        if words[kind] in command and not command.startswith("make ")
    ][-1:]


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody waits for has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_gone(pids: list[int], seconds: float) -> float:
    """Seconds until all have ended.

    Raises TimeoutError.
    """
    started = time.monotonic()
    while not all(map(gone, pids)):
        if time.monotonic() - started > seconds:
            raise TimeoutError(
                f"{[pid for pid in pids if not gone(pid)]} still live after {seconds} s"
            )
        time.sleep(0.05)
    return time.monotonic() - started


def environment(store: Path, **more) -> dict[str, str]:
    return os.environ | {
        "COTDISTILL_ARTIFACTS": str(store),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def by_python(study: str, executed: Path, *stages: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "cotdistill.cli",
        "run",
        study,
        "--executed",
        str(executed),
        *(["--stages", *stages] if stages else []),
    ]


def by_make(study: str, executed: Path, *stages: str) -> list[str]:
    """The Makefile's own targets, in an environment that is this interpreter.

    Its recipe is `run $(STUDY) --stages ...`: the folder of the executed notebooks comes in with
    STUDY, so that none are written into the repository.
    """
    venv = executed.parent / "venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    pins = subprocess.run(
        "cat pyproject.toml environment.yml | cksum | cut -d' ' -f1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (venv / f".ready-{pins.stdout.strip()}").touch()
    return [
        "make",
        "-s",
        "-C",
        str(ROOT),
        *(stages or ["reproduce"]),
        f"VENV={venv}",
        f"STUDY={study} --executed {executed}",
    ]


def start(command: list[str], store: Path, log: Path, **more) -> subprocess.Popen:
    """Start a study in a process group of its own, its output into log.out and log.err."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(store, **more),
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def state(pattern: str) -> dict[str, tuple[int, int]]:
    found = {}
    for path in glob.glob(pattern):
        with suppress(OSError):
            stat = os.stat(path)
            found[path] = stat.st_ino, stat.st_mtime_ns
    return found


def killed(
    child: subprocess.Popen,
    kind: str,
    *,
    seconds: float = 0.0,
    appears: str = "",
    timeout: float = PATIENCE,
) -> dict | None:
    """Kill once `seconds` have passed, or a file that matches `appears` is new or changed.

    What was done; None where the child ended first.
    """
    before, started = state(appears) if appears else {}, time.monotonic()
    while child.poll() is None:
        now = time.monotonic() - started
        if now > timeout:
            raise TimeoutError(f"{child.args} still runs after {timeout} s")
        due = (
            any(before.get(path) != found for path, found in state(appears).items())
            if appears
            else now >= seconds
        )
        if due and (found := victims(child, kind)):
            kernels = kernels_of(child.pid)
            with suppress(ProcessLookupError):
                os.killpg(found[0], signal.SIGKILL) if kind == "group" else os.kill(
                    found[0], signal.SIGKILL
                )
                return {
                    "victim": kind,
                    "moment": re.sub(r"^.*/(studies/[^/]*|runs|executed/[^/]*)/", "", appears)
                    or f"after {now:.1f} s",
                    "seconds": round(now, 1),
                    "kernels": kernels,
                }
        time.sleep(0.003)
    return None


# ---------------------------------------------------------------- what is in a store


def finished(store: Path) -> dict[str, tuple[int, int]]:
    """Run -> inode and time of its metrics.json, which change when it is made again."""
    return {
        Path(path).parent.name: found
        for path, found in state(f"{store}/runs/*/metrics.json").items()
        if not path.endswith(".work/metrics.json")
    }


def half_files(store: Path, executed: Path) -> list[str]:
    """What has the name of a whole thing and is not whole.

    Runs, hand-ons, score files, figures, executed notebooks.
    """
    bad = []
    for folder in map(Path, glob.glob(f"{store}/runs/*/")):
        if folder.suffix in (".work", ".part"):
            continue
        try:
            files = json.loads((folder / "metrics.json").read_text())["files"]
            bad += [
                f"{folder.name[:12]}/{name}"
                for name in files
                if hashlib.sha256((folder / name).read_bytes()).hexdigest() != files[name]
            ]
        except (OSError, ValueError, KeyError) as error:
            bad.append(f"{folder.name[:12]}: {error}")
    for path in map(
        Path, [*glob.glob(f"{store}/studies/*/**", recursive=True), *glob.glob(f"{executed}/*/*")]
    ):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                assert all(
                    json.loads(line) for line in path.read_text().splitlines()
                ) and path.read_bytes().endswith(b"\n")
            elif path.suffix == ".png":
                assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
            elif path.suffix == ".pdf":
                assert path.read_bytes().rstrip().endswith(b"%%EOF")
            elif path.suffix == ".ipynb":
                book = json.loads(path.read_text())
                assert "seconds" in book["metadata"]["cotdistill"]
                assert all(
                    cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code"
                )
        except (ValueError, KeyError, AssertionError) as error:
            bad.append(f"{path.relative_to(store.parent)}: {type(error).__name__} {error}")
    return bad


def left_behind(store: Path, executed: Path) -> list[str]:
    """What a killed process would leave and a later one must clear away."""
    return sorted(
        str(Path(path).relative_to(store.parent))
        for pattern in (
            f"{store}/**/*.part*",
            f"{store}/**/*.work",
            f"{store}/**/*.failed",
            f"{executed}/*/.*.part*",
        )
        for path in glob.glob(pattern, recursive=True)
    )


def contents(store: Path) -> dict[str, object]:
    """Everything in a store that must not depend on how it came about.

    Name -> bytes' checksum, or values without times.
    """
    found = {}
    for path in map(
        Path, glob.glob(f"{store}/runs/*/*") + glob.glob(f"{store}/studies/*/**", recursive=True)
    ):
        name = str(path.relative_to(store))
        if not path.is_file() or path.suffix == ".lock" or path.name == "provenance.json":
            continue
        if path.name == "metrics.json":
            found[name] = {
                key: value
                for key, value in json.loads(path.read_text()).items()
                if key not in TIMES
            }
        elif path.name == "verdicts.json":
            found[name] = {
                key: value
                for key, value in json.loads(path.read_text()).items()
                if key not in ("provenance", "seal")
            }
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(reference: Path, other: Path) -> list[str]:
    """Names of what is missing, too many or not equal."""
    wanted, found = contents(reference), contents(other)
    return sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))


def made(logs: list[Path]) -> dict[tuple[str, str], int]:
    """(arm, seed) -> how often the outputs say that it was made (not taken from the store)."""
    counts = {}
    for log in logs:
        for arm, seed, stored in LINE.findall(log.read_text()):
            counts[arm, seed] = counts.get((arm, seed), 0) + (not stored)
    return counts


# ---------------------------------------------------------------- one run, killed before each of
# its writes

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def make_runs(
    store: str,
    die_at: int = 0,
    epochs: int = 2,
    said=None,
    runs_at_once: tuple = ("label_only", "pre_cot"),
) -> None:
    """In a child process: a grid whose pre_cot keeps its weights.

    SIGKILLs itself before its `die_at`-th change to the store. Sends its lines to the connection
    `said`, and at the end the number of changes.
    """
    import torch
    from studies import make_spec, make_study

    from cotdistill.arms import Arm
    from cotdistill.runs.grid import run_grid

    torch.set_num_threads(1)
    os.environ["COTDISTILL_ARTIFACTS"] = store
    changes = 0

    def watch(event, args):
        nonlocal changes
        writes = (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if (
            writes
            and str(args[0]).startswith(store)
            or event in WRITES
            and (str(args[0]).startswith(store) or "/" not in str(args[0]))
        ):
            changes += 1
            if changes == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def say(line, **_):
        if said is not None:
            said.send(line)

    sys.addaudithook(watch)
    study = make_study(
        data=make_spec(validation_size=4, microworld=dict(n_train=12, n_test=6)),
        max_new_tokens=4,
        train=dict(lr=1e-2, epochs=epochs, batch_size=6, select="best"),
    )
    run_grid(
        study, [Arm(name) for name in runs_at_once], "train", keep_weights=[("pre_cot", 0)], say=say
    )
    if said is not None:
        said.send(changes)
        said.close()


def nursery():
    """Where children are forked from: a clean process that has imported everything once."""
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cotdistill.runs.grid", "cotdistill.runs.on_ray"])
    return context


def child_of(context, *given, **named):
    """(process, connection to its lines) of one `make_runs`."""
    ours, theirs = context.Pipe(False)
    process = context.Process(target=make_runs, args=given, kwargs=named | {"said": theirs})
    process.start()
    theirs.close()
    return process, ours


def lines_of(connection) -> list:
    """All that a child said until it ended."""
    found = []
    with suppress(EOFError):
        while True:
            found.append(connection.recv())
    return found


def check_writes(folder: Path, kills: int = 0) -> dict:
    """Kill a grid of two runs before each change of its store; let it end, compare.

    The store is empty at first. kills: before how many changes, evenly spread (0: each).
    """
    context = nursery()
    process, said = child_of(context, str(folder / "whole"))
    changes = lines_of(said)[-1]
    process.join()
    result = {"changes": changes, "kills": 0, "different": [], "redone": 0, "half": [], "left": []}
    for at in (
        range(1, changes + 1)
        if not kills
        else sorted({1 + round(i * (changes - 1) / max(1, kills - 1)) for i in range(kills)})
    ):
        store = folder / f"killed-{at}"
        process, said = child_of(context, str(store), die_at=at)
        lines_of(said)
        process.join()
        result["kills"] += process.exitcode == -signal.SIGKILL
        before = finished(store)
        result["half"] += half_files(store, folder / "none")
        process, said = child_of(context, str(store))
        lines_of(said)
        process.join()
        after = finished(store)
        result["redone"] += sum(after.get(key) != value for key, value in before.items())
        result["different"] += [f"{at}: {name}" for name in differences(folder / "whole", store)]
        # Those wait for the next stage
        result["left"] += [
            f"{at}: {name}"
            for name in left_behind(store, folder / "none")
            if "/studies/" not in name
        ]
        if process.exitcode:
            result["different"].append(f"{at}: exit {process.exitcode}")
        shutil.rmtree(store)
    return result


def complete(notebook: Path, since: float) -> bool:
    """Whether a notebook was written after `since` with every cell executed and no error in it."""
    if not notebook.is_file() or notebook.stat().st_mtime < since:
        return False
    cells = [
        c
        for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "code" and c["source"]
    ]
    return all(
        c["execution_count"] and not any(o["output_type"] == "error" for o in c["outputs"])
        for c in cells
    )


# ---------------------------------------------------------------- the whole harness


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="artifacts/kill.json", help="where the counts go")
    parser.add_argument(
        "--points",
        type=int,
        default=2,
        help="kills per stage at fractions of its time, besides those at moments",
    )
    parser.add_argument("--without-ray", action="store_true", help="kill no worker of a cluster")
    parser.add_argument(
        "--writes",
        type=int,
        default=20,
        help="kills before a write, spread over a run; 0: before each",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


class Harness:
    """A study in three stores, the kills, and the report of what came of them."""

    def __init__(self, folder: Path, chosen: argparse.Namespace):
        (folder / "tiny.yaml").write_text(STUDY)
        self.folder, self.chosen, self.study = folder, chosen, str(folder / "tiny.yaml")
        self.rng, self.began = random.Random(chosen.seed), time.time()
        self.reference = folder / "reference" / "store"
        self.store, self.executed = folder / "killed" / "store", folder / "killed" / "executed"
        self.done, self.kernels, self.number = {}, set(), 0
        self.problems = []
        self.report = {
            "stages": {},
            "kills": [],
            "ended_first": 0,
            "after_last_cell": 0,
            "problems": self.problems,
        }

    def say(self, text: str) -> None:
        print(f"{time.time() - self.began:5.0f} s  {text}", flush=True)

    def save(self) -> None:
        Path(self.chosen.out).write_text(json.dumps(self.report, indent=1) + "\n")

    def run_to_the_end(self, name: str, command: list[str], store: Path) -> float:
        """Run a command without a kill; its seconds."""
        started = time.time()
        child = start(command, store, self.folder / "logs" / name)
        if child.wait(PATIENCE):
            self.problems.append(
                f"{name}: exit {child.returncode}: "
                + Path(f"{self.folder}/logs/{name}.err").read_text()[-300:]
            )
        return time.time() - started

    def make_reference(self) -> None:
        """Run each stage undisturbed, and note its time."""
        for stage in NOTEBOOKS:
            command = by_python(self.study, self.reference.parent / "executed", stage)
            seconds = self.run_to_the_end(f"reference-{stage}", command, self.reference)
            self.report["stages"][stage] = {"seconds": round(seconds, 1), "kills": 0}

    def plan_kills(self, stage: str) -> list[dict]:
        """What triggers each kill of a stage: a file that appears, or a share of its time."""
        names = {"study": "tiny", "executed": f"{self.executed}/tiny"}
        moments = [moment.format(**names) for moment in MOMENTS[stage]]
        self.rng.shuffle(moments)
        plan = [{"appears": m if m.startswith("/") else f"{self.store}/{m}"} for m in moments]
        # A lost worker does not end the stage: after this kill all its runs exist
        if stage in ("shuffle", "attribute") and not self.chosen.without_ray:
            appears = f"{self.store}/runs/*.work/checkpoints/checkpoint-*"
            plan.append({"appears": appears, "victim": "worker"})
        points = self.chosen.points
        return plan + [{"share": (i + self.rng.random()) / points} for i in range(points)]

    def kill_stage(self, stage: str) -> None:
        """Kill a stage by its plan, again and again, then let it end."""
        about, plan = self.report["stages"][stage], self.plan_kills(stage)
        lasts = about["seconds"]
        for trigger in plan:
            self.number += 1
            seconds = self.kill_once(stage, trigger, lasts)
            if seconds is not None:
                # What is in the store makes a stage shorter, and a machine's speed varies
                lasts = seconds
                if len(plan) < 12:  # another one in its place
                    plan.append({"share": 0.9 * self.rng.random()})
        command = by_python(self.study, self.executed, stage)
        self.run_to_the_end(f"{self.number:02}-{stage}-end", command, self.store)
        now = finished(self.store)
        self.note_repeated_runs(stage, now)
        self.done = now
        self.say(f"{stage}: killed {about['kills']} times; {self.problems or 'no problem'}")
        self.save()  # what is known, should the harness itself be killed

    def kill_once(self, stage: str, trigger: dict, lasts: float) -> float | None:
        """Start a stage and kill it; its seconds where it ended before the kill, else None.

        lasts: the seconds that the stage is expected to take.
        """
        if "share" in trigger:
            trigger = {"seconds": trigger["share"] * lasts}
        kind = trigger.pop("victim", ("group", "kernel", "papermill")[self.number % 3])
        through_make = kind == "group" or kind != "worker" and self.rng.random() < 0.5
        command = (by_make if through_make else by_python)(self.study, self.executed, stage)
        log = self.folder / "logs" / f"{self.number:02}-{stage}-{kind}"
        more = {"COTDISTILL_BACKEND": "ray"} if kind == "worker" else {}
        started, seconds = time.time(), None
        child = start(command, self.store, log, **more)
        kill = killed(child, kind, **trigger)
        code = child.wait(PATIENCE)
        if kill is None:
            seconds = time.time() - started
            self.report["ended_first"] += 1
            if code:
                self.problems.append(
                    f"{log.name}: exit {code} without a kill: "
                    f"{Path(f'{log}.err').read_text()[-300:]}"
                )
        else:
            self.kernels |= set(kill.pop("kernels"))
            self.report["kills"].append(kill | {"stage": stage, "exit": code})
            self.report["stages"][stage]["kills"] += 1
            self.check_end(stage, kind, code, log, started)
        self.problems += [
            f"{log.name}: half: {name}" for name in half_files(self.store, self.executed)
        ]
        now = finished(self.store)
        self.note_repeated_runs(log.name, now)
        self.done |= now
        return seconds

    def check_end(self, stage: str, kind: str, code: int, log: Path, started: float) -> None:
        """Note where a killed stage did not end as it must: with which code, in which words."""
        lines = Path(f"{log}.err").read_text().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        notebook = self.executed / "tiny" / f"{NOTEBOOKS[stage]}.ipynb"
        if kind == "worker" and code:
            self.problems.append(f"{log.name}: a lost worker ended the study: {errors}")
        elif kind == "kernel" and not code and complete(notebook, started):
            self.report["after_last_cell"] += 1  # nothing was left for the kernel to do
        elif kind != "worker" and not code:
            self.problems.append(f"{log.name}: exit 0 after a kill")
        elif kind == "kernel" and (
            len(errors) != 1 or "run the same command again" not in errors[0]
        ):
            self.problems.append(
                f"{log.name}: {errors}; expected one line that says the kernel died"
            )

    def note_repeated_runs(self, where: str, now: dict) -> None:
        """Note runs that were made again although they were complete. now: of `finished`."""
        self.problems += [
            f"{where}: run {key[:12]} was made again"
            for key in self.done
            if now.get(key) != self.done[key]
        ]

    def compare(self) -> None:
        """Compare the killed store with the reference, once no kernel is left."""
        report = self.report
        try:
            report["slowest_orphan_seconds"] = round(wait_gone(list(self.kernels), 60), 1)
        except TimeoutError as error:
            self.problems.append(str(error))
        command = by_python(self.study, self.executed, "figures")
        self.run_to_the_end("after", command, self.store)
        logs = sorted((self.folder / "logs").glob("[0-9]*.out"))
        report["runs"] = {
            "planned": len(finished(self.reference)),
            "made": len(self.done),
            "made_more_than_once": sum(n > 1 for n in made(logs).values()),
        }
        report["different"] = differences(self.reference, self.store)
        report["left_behind"] = left_behind(self.store, self.executed)
        self.say(
            f"killed {len(report['kills'])} times; different from the reference: "
            f"{report['different'] or 'nothing'}"
        )

    def run_two_at_once(self) -> None:
        """Run the whole study in two processes at once, in a third store."""
        store = self.folder / "twice" / "store"
        executed, logs = store.parent / "executed", self.folder / "logs"
        command = by_python(self.study, executed)
        both = [start(command, store, logs / f"twice-{i}") for i in range(2)]
        codes = [child.wait(PATIENCE) for child in both]
        counts = made(sorted(logs.glob("twice-*.out")))
        self.report["two_at_once"] = {
            "exits": codes,
            "runs": len(counts),
            "made_once": sum(n == 1 for n in counts.values()),
            "different": differences(self.reference, store),
            "half": half_files(store, executed),
            "left_behind": left_behind(store, executed),
        }
        self.say(f"two at once: {self.report['two_at_once']}")

    def note_problems(self) -> None:
        """Turn what differs, is half, is left or was made twice into problems."""
        report, runs = self.report, self.report["runs"]
        writes, two = report["before_each_write"], report["two_at_once"]
        different = [*report["different"], *two["different"], *writes["different"]]
        left = [*report["left_behind"], *two["left_behind"], *writes["left"]]
        self.problems += [f"different: {name}" for name in different]
        self.problems += [f"half: {name}" for name in [*two["half"], *writes["half"]]]
        self.problems += [f"left: {name}" for name in left]
        if any(two["exits"]):
            self.problems.append(f"two at once: exits {two['exits']}")
        if two["made_once"] != two["runs"]:
            self.problems.append("two at once: a run was made twice")
        if runs["planned"] != runs["made"]:
            self.problems.append("runs planned and made differ")
        if runs["made_more_than_once"] + writes["redone"]:
            self.problems.append("a run was made twice")

    def summary(self) -> str:
        """The outcome in one line."""
        report, runs = self.report, self.report["runs"]
        if self.problems:
            return (
                f"FAILED with {len(self.problems)} problems, first: {self.problems[0]} "
                f"(logs in {self.folder}, counts in {self.chosen.out})"
            )
        kinds = {
            kind: sum(kill["victim"] == kind for kill in report["kills"])
            for kind in ("group", "papermill", "kernel", "worker")
        }
        return (
            f"killed {len(report['kills'])} times in {len(NOTEBOOKS)} stages ("
            + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
            + f") and {report['before_each_write']['kills']} times before a write: "
            f"{runs['made']} of {runs['planned']} runs, none made twice, "
            f"nothing different, in {report['seconds'] / 60:.0f} min"
        )


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    harness = Harness(folder, chosen)
    Path(chosen.out).parent.mkdir(parents=True, exist_ok=True)
    harness.make_reference()
    if harness.problems:
        print(f"FAILED without a kill: {harness.problems[0]}")
        return 1
    stages = harness.report["stages"].items()
    harness.say("reference: " + ", ".join(f"{name} {about['seconds']} s" for name, about in stages))
    for stage in NOTEBOOKS:
        harness.kill_stage(stage)
    harness.compare()
    harness.run_two_at_once()
    writes = check_writes(folder / "writes", chosen.writes)
    harness.report["before_each_write"] = writes
    harness.say(f"before each write: {writes}")
    harness.note_problems()
    harness.report["seconds"] = round(time.time() - harness.began)
    harness.save()
    print(harness.summary())
    if not harness.problems:
        shutil.rmtree(folder)
    return bool(harness.problems)


if __name__ == "__main__":
    sys.exit(main())
