"""Keep the students of the lab: stored runs by name, one model in memory for all of a base."""

from dataclasses import dataclass, replace
from pathlib import Path

from cotdistill.arms import PROMPTED
from cotdistill.checkpoints import restore_parameters
from cotdistill.errors import DataError
from cotdistill.files import read_json
from cotdistill.paths import RUN_KEY, artifacts
from cotdistill.students import Student, is_run, read_run_weights

UNTRAINED = "not trained"
KEEP = 4  # weights of so many runs stay in memory (110 MB each for quick's student)


@dataclass(frozen=True)
class StoredRun:
    """Describe a stored run: its key, its arm's name, its seed, and whether it kept its weights."""

    key: str
    arm: str
    seed: int
    questions: int
    has_weights: bool

    @property
    def name(self) -> str:
        """Return the name by which a reader chooses it."""
        return f"{self.arm}, seed {self.seed}, {self.questions} questions ({self.key[:8]})"

    @property
    def folder(self) -> Path:
        """Return where it lies."""
        return artifacts() / "runs" / self.key


def arm_words(arm: dict, training: dict) -> str:
    """Name the arm of a run's config, with what its corruption takes and a loss of its own."""
    name = "_".join(filter(None, (arm["placement"], arm["corruption"])))
    skip = ("placement", "corruption", "label_weight")
    detail = [f"{key} {value}" for key, value in arm.items() if key not in skip and value]
    detail += ["balanced loss"] * (training.get("loss") == "balanced")
    return name + (f" [{', '.join(detail)}]" if detail else "")


def list_runs(student_fingerprint: str | None = None) -> list[StoredRun]:
    """List the complete runs in the store, by arm and seed.

    student_fingerprint: only those of this base student (None: of any).
    """
    found = []
    for folder in (artifacts() / "runs").glob("*"):
        whole = RUN_KEY.fullmatch(folder.name) and (folder / "metrics.json").is_file()
        if not whole or not is_run(folder):
            continue
        config = read_json(folder / "config.json", "`make train`")
        metrics = read_json(folder / "metrics.json", "`make train`")
        if student_fingerprint in (None, config["student"]):
            arm = arm_words(config["arm"], config.get("training", {}))
            size = metrics.get("train_questions", 0)
            kept = "weights.safetensors" in metrics["files"]
            found.append(StoredRun(folder.name, arm, config["seed"], size, kept))
    return sorted(found, key=lambda run: (run.arm, run.seed, run.key))


class Shelf:
    """Hand out one base student with the weights of a stored run, or with its own.

    One model is in memory: `get` copies weights into it, so a student is good until the next `get`.
    """

    def __init__(self, base: Student):
        self.base, self.now = base, UNTRAINED
        self.own = {name: value.detach() for name, value in base.model.named_parameters()}
        self.backup, self.weights = {}, {}

    @property
    def names(self) -> list[str]:
        """Return the names that `get` knows: the untrained student, and runs with weights."""
        return [UNTRAINED, *self.runs]

    @property
    def runs(self) -> dict[str, StoredRun]:
        """Return the runs of this base student whose weights were kept, by name."""
        return {run.name: run for run in list_runs(self.base.fingerprint) if run.has_weights}

    def get(self, name: str) -> Student:
        """Return the student of this name; the one handed out before must no longer be used.

        Raises DataError for an unknown name and for weights that are not as they were written.
        """
        if name != self.now:
            changes = {} if name == UNTRAINED else self._weights_of(name)
            # What a run changed is kept once, and put back before the next one's weights go in
            for one in changes:
                self.backup.setdefault(one, self.own[one].clone())
            restore_parameters(self.base.model, self.backup | changes)
            self.now = name
        if name == UNTRAINED:
            return self.base
        return replace(self.base, name=name, fingerprint=f"{self.base.fingerprint}+{name}")

    def _weights_of(self, name: str) -> dict:
        if name not in self.weights:
            run = self.runs.get(name)
            if run is None:
                raise DataError(
                    f"student '{name}': no stored run of that name; "
                    f"expected one of {', '.join(self.names)}"
                )
            if run.arm in PROMPTED:
                return {}
            self.weights[name] = read_run_weights(run.folder, self.base.model, name)
            while len(self.weights) > KEEP:
                del self.weights[next(iter(self.weights))]
        return self.weights[name]

    def resolve_name(self, wanted: str) -> str:
        """Return the full name of the student that a reader means.

        wanted: a name, a run's key or the beginning of one, a run's folder, or an arm (its first
        run). Raises DataError where no student fits.
        """
        wanted, runs = wanted.strip(), self.runs
        if wanted in ("", UNTRAINED) or wanted in runs:
            return wanted or UNTRAINED
        key = Path(wanted).name
        fits = [n for n, run in runs.items() if len(key) >= 6 and run.key.startswith(key)]
        fits += [name for name, run in runs.items() if run.arm == wanted]
        if not fits:
            raise DataError(
                f"student '{wanted}': none of {len(runs)} stored runs with weights; "
                f"expected {'; '.join(self.names)}"
            )
        return fits[0]
