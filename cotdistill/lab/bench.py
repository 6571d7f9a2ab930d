"""Hold what all panels of the lab share: the study, one question, one student, a lock."""

import threading
from collections.abc import Callable
from pathlib import Path

import ipywidgets as w

from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.lab.markup import said_html
from cotdistill.lab.page import write_page
from cotdistill.lab.shelf import UNTRAINED, Shelf
from cotdistill.lab.sources import find_questions, list_questions, list_rationales, open_study
from cotdistill.paths import artifacts
from cotdistill.readings import common
from cotdistill.readings import lab as readings
from cotdistill.students import Student
from cotdistill.study import Study

WIDE = w.Layout(width="580px")


class Chooser:
    """Choose one question for all panels: a search, a list, and the two buttons beside it."""

    def __init__(self, questions: dict[str, Example], rationales: dict):
        self.questions, self.rationales = questions, rationales
        self.functions, self.filling = [], False
        self.search = w.Text(
            placeholder="search: words of the question or its options", description="search",
            continuous_update=True, layout=w.Layout(width="420px"),
        )  # fmt: skip
        self.list = w.Dropdown(
            options=self.entries(list(questions)), description="question", layout=WIDE
        )
        self.count = w.HTML(readings.questions_found(len(questions), len(questions)))
        back, forth = (
            w.Button(description=name, layout=w.Layout(width="auto", flex="0 0 auto"))
            for name in ("◀ previous", "next ▶")
        )
        back.on_click(lambda _: self.move(-1))
        forth.on_click(lambda _: self.move(1))
        self.search.observe(self.filter, "value")
        self.box = w.VBox([w.HBox([self.search, self.count]), w.HBox([self.list, back, forth])])

    def entries(self, ids: list[str]) -> list[tuple[str, str]]:
        """Return the lines of the list, (question's text, id)."""
        return [(f"{self.questions[i].question}  ·  {i}", i) for i in ids]

    def filter(self, *_) -> None:
        """Keep the questions that hold the words; where none does, the list stays as it is."""
        ids = find_questions(self.questions, self.search.value)
        self.count.value = readings.questions_found(len(ids), len(self.questions))
        if not ids:
            return
        kept = self.list.value if self.list.value in ids else ids[0]
        before, self.filling = self.list.value, True
        self.list.options = self.entries(ids)  # which chooses the first of them
        self.list.value, self.filling = kept, False
        if kept != before:
            for function in self.functions:
                function()

    def move(self, step: int) -> None:
        """Go to another question of the list."""
        ids = [one for _, one in self.list.options]
        self.list.value = ids[(ids.index(self.list.value) + step) % len(ids)]

    @property
    def example(self) -> Example:
        """The chosen question."""
        return self.questions[self.list.value]

    @property
    def rationale(self) -> str:
        """The teacher's rationale of the chosen question."""
        return self.rationales[self.list.value].text

    def observe(self, function: Callable) -> None:
        """Call a function whenever another question is chosen."""
        self.functions.append(function)
        self.list.observe(lambda _: self.filling or function(), "value")


class Bench:
    """Hold what panels share; panels register what a page without a kernel shows of them.

    delay: seconds after the last keystroke until an edit is scored; 0: at once, in this thread.
    """

    def __init__(self, study: str | Study, delay: float = 0.3):
        if isinstance(study, str):
            self.study, self.note = open_study(study)
        else:
            self.study, self.note = study, ""
        self.delay, self.lock = delay, threading.RLock()
        rationales = list_rationales(self.study)
        self.chooser = Chooser(list_questions(self.study, rationales), rationales)
        self.shelf = Shelf(self.study.student)
        count, student = len(self.chooser.questions), self.study.student
        sentence = common.questions_to_explore(count, student.name, student.note)
        self.note = f"{self.note} {sentence}".strip()
        self.students = w.Dropdown(options=[UNTRAINED], description="student", layout=WIDE)
        self.sections: dict[str, Callable[[], str]] = {}
        self.refresh_students()
        first = next((n for n in self.students.options if n.startswith("pre_cot,")), UNTRAINED)
        self.students.value = first

    @property
    def label_format(self) -> str:
        """How labels are written in the study."""
        return self.study.setting.label_format

    def refresh_students(self) -> None:
        """List the students in the store again; the chosen one stays."""
        names, chosen = tuple(self.shelf.names), self.students.value
        if names != self.students.options:
            self.students.options = names  # which chooses the first of them
            self.students.value = chosen if chosen in names else UNTRAINED

    def student(self) -> Student:
        """Return the chosen student; hold the lock while it is used."""
        return self.shelf.get(self.students.value)

    def header(self) -> w.Widget:
        """Return the question chooser, the same in every panel."""
        return self.chooser.box

    def save_page(self, path: Path | None = None) -> Path:
        """Write what the panels show now as one HTML file, for who has no kernel."""
        place = path or artifacts() / "lab" / "lab.html"
        sections = {title: draw() for title, draw in self.sections.items()}
        write_page(place, self.note, sections)
        return place


def guard(show: w.HTML, function: Callable) -> None:
    """Call a function; what is wrong with its input is shown as one line."""
    try:
        function()
    except DataError as error:
        show.value = said_html(f"**{error}**")
