"""The panel that trains: choose two arms, press, watch them learn, see where they differ."""

import threading
import time
from pathlib import Path

import ipywidgets as w

from cotdistill.arms import CORRUPTIONS, LOSSES, PLACEMENTS, SELECTORS, UNITS, Arm, arm_from_name
from cotdistill.lab import jobs
from cotdistill.lab.bench import Bench, guard
from cotdistill.lab.compare import (
    MEASURES,
    list_disagreements,
    paired_effects,
    read_predictions,
)
from cotdistill.lab.markup import disagreements_html, learning_html, said_html
from cotdistill.readings import lab as readings

INTACT = "intact"
NARROW = w.Layout(width="210px")


class ArmKnobs:
    """Choose one arm: where the rationale stands, what is done to it, how much of it."""

    def __init__(self, name: str, placement: str):
        self.placement = w.Dropdown(
            options=PLACEMENTS, value=placement, description=name, layout=NARROW
        )
        corruptions = [INTACT, *filter(None, CORRUPTIONS)]
        self.corruption = w.Dropdown(options=corruptions, layout=w.Layout(width="150px"))
        self.unit = w.Dropdown(options=UNITS, layout=w.Layout(width="100px"))
        self.amount = w.BoundedFloatText(
            value=5, min=0, max=200, step=1, description="k",
            description_tooltip="kept: how many units stay; masked: the fraction hidden, 0 to 1",
            layout=w.Layout(width="150px"),
        )  # fmt: skip
        selectors = ["random", *(one for one in SELECTORS if one not in ("random", "human"))]
        self.selector = w.Dropdown(options=selectors, description="chosen by", layout=NARROW)
        self.box = w.HBox([self.placement, self.corruption, self.unit, self.amount, self.selector])
        for knob in (self.placement, self.corruption):
            knob.observe(self.hide, "value")
        self.hide()

    def hide(self, *_) -> None:
        """Show the knobs that the arm reads, and no other."""
        takes = self.placement.value in ("pre_cot", "post_cot")
        fields = CORRUPTIONS[self.name_of_corruption].fields if takes else ()
        self.corruption.layout.display = None if takes else "none"
        for field in ("unit", "amount", "selector"):
            getattr(self, field).layout.display = None if field in fields else "none"

    @property
    def name_of_corruption(self) -> str:
        """The corruption as `CORRUPTIONS` names it."""
        return "" if self.corruption.value == INTACT else self.corruption.value

    def arm(self) -> Arm:
        """Make the arm. Raises DataError for a setting that is out of range."""
        if self.placement.value not in ("pre_cot", "post_cot"):
            return arm_from_name(self.placement.value)
        name = "_".join(filter(None, (self.placement.value, self.name_of_corruption)))
        fields = CORRUPTIONS[self.name_of_corruption].fields
        chosen = {f: getattr(self, f).value for f in ("unit", "amount", "selector") if f in fields}
        if "order" in fields and chosen["selector"] != "random":
            chosen["order"] = "most"
        return arm_from_name(name, **chosen)


class TrainPanel:
    """Train two arms in a process of their own; the panel only reads what that writes."""

    def __init__(self, bench: Bench, every: float = 1.0):
        self.bench, self.every, self.folder, self.follower = bench, every, None, None
        self.arms = [ArmKnobs("arm", "label_only"), ArmKnobs("against", "post_cot")]
        usable, train = len(bench.study.usable_questions()[0]), bench.study.setting.train
        self.loss = w.Dropdown(options=LOSSES, value=train.loss, description="loss", layout=NARROW)
        self.seed = w.BoundedIntText(0, min=0, max=10**6, description="seed", layout=NARROW)
        size = bench.study.setting.train_size or usable
        count = dict(min=1, max=usable, description="questions", layout=NARROW)
        self.size = w.BoundedIntText(size, **count)
        limits = dict(min=1, max=50, description="epochs", layout=NARROW)
        self.epochs = w.BoundedIntText(train.epochs, **limits)
        self.go = w.Button(description="Train", button_style="primary")
        self.halt = w.Button(description="Stop", disabled=True)
        self.said, self.curves, self.result = w.HTML(), w.HTML(), w.HTML()
        self.go.on_click(lambda _: guard(self.said, self.start))
        self.halt.on_click(lambda _: self.stop())
        bench.sections["Train here"] = lambda: (
            self.said.value + self.curves.value + self.result.value
        )
        knobs = w.HBox([self.loss, self.seed, self.size, self.epochs])
        lines = [*(one.box for one in self.arms), knobs, w.HBox([self.go, self.halt])]
        self.box = w.VBox([*lines, self.said, self.curves, self.result])
        mine = [f for f in jobs.list_jobs() if jobs.read_job_plan(f).study == bench.study.name]
        if mine:  # also after a restart of the kernel: its job went on
            self.watch(mine[0])

    def plan(self) -> jobs.Plan:
        """Return what the knobs say. Raises DataError for settings that make no pair of arms."""
        pair = tuple(one.arm() for one in self.arms)
        setting = self.bench.study.setting
        return jobs.make_plan(
            setting.study,
            pair,
            seed=self.seed.value,
            loss=self.loss.value,
            questions=self.size.value,
            epochs=self.epochs.value,
            student=setting.student,
        )

    def start(self) -> None:
        """Start the job of these knobs, or resume it."""
        self.result.value = ""
        self.watch(jobs.start_job(self.plan()))

    def stop(self) -> None:
        """Stop the job; what is complete is kept."""
        if self.folder:
            jobs.stop_job(self.folder)
            self.draw()

    def watch(self, folder: Path) -> None:
        """Show a job, and follow it in a thread while it runs."""
        self.folder = folder
        self.draw()
        if jobs.is_running(folder) and self.every:
            self.follower = threading.Thread(target=self.follow, args=(folder,), daemon=True)
            self.follower.start()

    def follow(self, folder: Path) -> None:
        """Draw a job again and again until it ends, or another one is watched."""
        while self.folder == folder and jobs.is_running(folder):
            self.draw()
            time.sleep(self.every)
        if self.folder == folder:
            self.draw()

    def draw(self) -> None:
        """Show the state, the curves and, once both runs are there, how they differ."""
        guard(self.said, self.draw_now)

    def draw_now(self) -> None:
        """Read the job's folder and show it. Raises DataError where it can't be read."""
        job = jobs.read_job(self.folder)
        running = job.state == "running"
        self.go.disabled, self.halt.disabled = running, not running
        self.go.description = "Resume" if job.state == "stopped" else "Train"
        made = {
            name: (max((b["step"] for b in one.batches), default=0), one.steps)
            for name, one in job.arms.items()
        }
        self.said.value = said_html(readings.job_state(job.state, made, job.said))
        if any(one.batches or one.checks for one in job.arms.values()):
            self.curves.value = learning_html(job.arms, self.bench.study.chance)
        else:
            self.curves.value = ""
        if all(one.key for one in job.arms.values()) and not running:
            self.result.value = self.describe(job)
            self.bench.refresh_students()

    def describe(self, job: jobs.Job) -> str:
        """Write the paired difference of a job's runs, and where the two disagree."""
        runs = [read_predictions(one.key, name, job.plan.seed) for name, one in job.arms.items()]
        effects = paired_effects(*runs)
        test = self.bench.study.test_questions()
        found = list_disagreements(*runs, test)
        right = {name: sum(one.right == name for one in found) for name in job.arms}
        lines = [
            readings.difference(row, MEASURES[row["measure"]]) for _, row in effects.iterrows()
        ]
        lines += [readings.one_seed(), readings.disagreements(len(found), len(test), right)]
        return said_html("\n".join(lines)) + disagreements_html(found)
