"""The lab as the notebook sees it: one object, one panel per call."""

from pathlib import Path

import ipywidgets as w

from cotdistill.lab.bench import Bench
from cotdistill.lab.finished import replot
from cotdistill.lab.markup import said_html
from cotdistill.lab.token_panels import KnobPanel, SelectPanel
from cotdistill.lab.train_panel import TrainPanel
from cotdistill.lab.try_panels import AskPanel, EditPanel
from cotdistill.readings import lab as readings
from cotdistill.study import Study


class Lab(Bench):
    """The panels of explore.ipynb; each call makes one, all share question and student."""

    def __init__(self, study: str | Study, n_steps: int = 16, delay: float = 0.3):
        super().__init__(study, delay)
        self.options = dict(n_steps=n_steps)

    def train(self) -> w.Widget:
        """Train two arms and compare them."""
        return TrainPanel(self).box

    def edit(self) -> w.Widget:
        """Edit a rationale and see what the student makes of it."""
        panel = EditPanel(self, **self.options)
        panel.draw()
        return panel.box

    def ask(self) -> w.Widget:
        """Ask the student a question of your own."""
        return AskPanel(self).box

    def select(self, path: Path, methods: list[str]) -> w.Widget:
        """Select key tokens by clicking, and save them in a file."""
        return SelectPanel(self, path, methods, **self.options).box

    def read(self) -> w.Widget:
        """See what a student of each arm reads, token by token."""
        return KnobPanel(self, **self.options).box

    def finished(self) -> w.Widget:
        """Draw a finished study's accuracies again."""
        return replot()

    def page(self) -> w.Widget:
        """Save what all panels show as one HTML page."""
        button, out = w.Button(description="Save this page", button_style="primary"), w.HTML()
        button.on_click(lambda _: setattr(out, "value", self.describe_page()))
        return w.HBox([button, out])

    def describe_page(self) -> str:
        """Save the page and say where it lies."""
        return said_html(readings.page_saved(str(self.save_page())))
