"""The panels that ask a student now: edit a rationale, ask a question of your own."""

import threading
import time

import ipywidgets as w

from cotdistill.attribution.methods import METHODS
from cotdistill.lab import ask as asking
from cotdistill.lab.bench import Bench, guard
from cotdistill.lab.edit import (
    QUICK_METHOD,
    Editor,
    delete_tokens,
    rationale_ids,
    shuffle_rationale,
)
from cotdistill.lab.markup import (
    bars_html,
    heat_html,
    options_html,
    question_html,
    said_html,
    show_token,
)
from cotdistill.readings import lab as readings


class EditPanel:
    """Edit the rationale of the chosen question: bars and heat map follow."""

    def __init__(self, bench: Bench, **options):
        self.bench, self.options, self.editor = bench, options, Editor(bench.label_format)
        self.head, self.bars, self.heat, self.said = (w.HTML() for _ in range(4))
        self.text = w.Textarea(layout=w.Layout(width="900px", height="64px", max_width="99%"))
        self.text.add_class("cotdistill-edit")
        self.row = w.Box(layout=w.Layout(flex_flow="row wrap", max_width="900px"))
        reads = [name for name, method in METHODS.items() if method.reads == "model"]
        self.method = w.Dropdown(options=reads, value=QUICK_METHOD, description="heat by")
        self.draws, self.timer, self.wanted = 0, None, None
        buttons = {
            "shuffle tokens": lambda: self.shuffle("token"),
            "shuffle words": lambda: self.shuffle("word"),
            "empty": lambda: self.write(""),
            "as the teacher wrote it": lambda: self.write(bench.chooser.rationale),
        }
        line = [w.Button(description=name, layout=w.Layout(width="auto")) for name in buttons]
        for button in line:
            button.on_click(lambda one: buttons[one.description]())
        bench.chooser.observe(lambda: self.write(bench.chooser.rationale))
        bench.students.observe(lambda _: self.schedule(), "value")
        self.method.observe(lambda _: self.schedule(), "value")
        self.text.observe(lambda _: self.schedule(), "value")
        self.text.value = bench.chooser.rationale
        bench.sections["Edit a rationale"] = self.still
        shown = [self.head, self.text, self.row, w.HBox(line), self.bars, self.heat, self.said]
        top = [bench.header(), w.HBox([bench.students, self.method])]
        self.box = w.VBox([*top, *shown])

    def write(self, text: str) -> None:
        """Put a text in the place of the rationale; the same text is scored again."""
        if self.text.value == text:
            self.schedule()
        self.text.value = text

    def shuffle(self, unit: str) -> None:
        """Shuffle the tokens or words, in another order each time."""
        self.draws += 1
        student = self.bench.study.student
        self.write(shuffle_rationale(student, self.text.value, unit, self.draws))

    def delete(self, place: int) -> None:
        """Delete one token."""
        self.write(delete_tokens(self.bench.study.student, self.text.value, [place]))

    def schedule(self) -> None:
        """Score the rationale soon: a further edit before that takes its place."""
        if not self.bench.delay:
            self.draw()
            return
        if self.timer:
            self.timer.cancel()
        self.timer = threading.Timer(self.bench.delay, self.draw)
        self.timer.daemon = True
        self.timer.start()

    def draw(self) -> None:
        """Score the rationale, and show bars, heat map and tokens."""
        guard(self.said, self.draw_now)

    def draw_now(self) -> None:
        """Score the rationale; raises DataError where a student or a method can't."""
        with self.bench.lock:
            started, text = time.monotonic(), self.text.value.strip()
            example, student = self.bench.chooser.example, self.bench.student()
            given = (student, example, text, self.method.value)
            found = self.editor.read(*given, **self.options)
            seconds = time.monotonic() - started
            if text != self.text.value.strip():
                return  # edited meanwhile: that edit is scored next
            self.head.value = question_html(example)
            self.bars.value = bars_html(example, found.probabilities, found.logps)
            self.heat.value = heat_html(found.tokens, found.scores)
            self.said.value = said_html(readings.edit_seconds(seconds, found.method))
            self.show_tokens()

    def show_tokens(self) -> None:
        """Show the tokens as buttons that delete; buttons that are there are used again."""
        student = self.bench.study.student
        texts = [show_token(student.decode([i])) for i in rationale_ids(student, self.text.value)]
        buttons = list(self.row.children)[: len(texts)]
        for place in range(len(buttons), len(texts)):
            button = w.Button(layout=w.Layout(width="auto", margin="1px"))
            button.add_class("cotdistill-delete")
            button.on_click(lambda _, place=place: self.delete(place))
            buttons.append(button)
        for button, text in zip(buttons, texts, strict=True):
            button.description, button.tooltip = text, f"delete “{text}”"
        if len(buttons) != len(self.row.children):
            self.row.children = buttons

    def still(self) -> str:
        """Return what a page without a kernel shows."""
        name = said_html(f"student: **{self.bench.students.value}**")
        return self.head.value + name + self.bars.value + self.heat.value + self.said.value


class AskPanel:
    """Ask the chosen student a question of the reader's own."""

    def __init__(self, bench: Bench):
        self.bench = bench
        wide = w.Layout(width="720px")
        self.question = w.Text(
            "Where would you look for a boat?", description="question", layout=wide
        )
        self.options = w.Textarea(
            "a harbour\na bookshelf\na kitchen drawer", description="options", rows=4, layout=wide
        )
        self.order = w.ToggleButtons(options=list(asking.ORDERS), value="answer first")
        go = w.Button(description="Ask", button_style="primary")
        take = w.Button(description="take the question chosen above", layout=w.Layout(width="auto"))
        self.out = w.HTML()
        go.on_click(lambda _: guard(self.out, self.ask))
        take.on_click(lambda _: self.take())
        self.button = go
        bench.sections["Ask a student"] = lambda: self.out.value
        lines = [self.question, self.options, bench.students, w.HBox([self.order, go, take])]
        self.box = w.VBox([*lines, self.out])

    def take(self) -> None:
        """Put the question chosen for all panels into the fields."""
        example = self.bench.chooser.example
        self.question.value, self.options.value = example.question, "\n".join(example.choices)

    def ask(self) -> None:
        """Ask, and show the options' shares and what the student wrote."""
        example = asking.read_question(self.question.value, self.options.value)
        setting = self.bench.study.setting
        with self.bench.lock:
            limits = dict(
                max_new_tokens=setting.max_new_tokens, max_label_tokens=setting.max_label_tokens
            )
            found = asking.ask(
                self.bench.student(), example, self.order.value, self.bench.label_format, **limits
            )
        share, choice = found.probabilities[found.choice], example.choices[found.choice]
        said = readings.answer(choice, share, found.text, found.cut_off)
        reason = readings.reason(found.reason, found.order)
        marks = ["●" if i == found.choice else "○" for i in range(len(example.choices))]
        asked = readings.asked(self.bench.students.value, example.question, found.order)
        self.out.value = (
            said_html(asked)
            + options_html(example.choices, found.probabilities, marks, ())
            + said_html(f"{said}\n{reason}")
        )
