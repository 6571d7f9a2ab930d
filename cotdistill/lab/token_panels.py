"""The panels that look at tokens: select them by hand, and see what a student of an arm reads."""

import html
from dataclasses import replace
from pathlib import Path

import ipywidgets as w

from cotdistill import corrupt
from cotdistill.arms import ARMS, CORRUPTIONS, PROMPTED, arm_from_name, corruption_of
from cotdistill.attribution.score import split_sequence
from cotdistill.attribution.score_files import read_selections, write_selection
from cotdistill.errors import DataError
from cotdistill.lab.bench import Bench
from cotdistill.lab.markup import frame_html, question_html, show_token, tokens_html
from cotdistill.lab.training_text import agreement_with, scores_of, training_tokens


class SelectPanel:
    """Pick the key tokens of a rationale by clicking, and save them as a line of a file.

    `selector: human` trains on them. Positions are those of this student's tokens. Earlier
    selections of the file are shown again; after a save, the agreement with each method. options go
    to `methods.attribute_rationale` (n_steps, baseline).
    """

    def __init__(self, bench: Bench, path: Path, methods: list[str], **options):
        self.bench, self.path = bench, Path(path)
        self.options = dict(methods=methods, label_format=bench.label_format, **options)
        self.saved = read_selections(self.path) if self.path.is_file() else {}
        self.row = w.Box(layout=w.Layout(flex_flow="row wrap", max_width="900px"))
        self.head, self.count, self.out = w.HTML(), w.HTML(), w.HTML()
        self.clear_button = w.Button(description="Clear")
        self.save_button = w.Button(description="Save", button_style="primary")
        self.clear_button.on_click(self.clear)
        self.save_button.on_click(self.save)
        bench.chooser.observe(self.load)
        self.load()
        bench.sections["Key tokens by hand"] = self.still
        buttons = w.HBox([self.save_button, self.clear_button])
        self.box = w.VBox([bench.header(), self.head, self.row, buttons, self.count, self.out])

    def chosen(self) -> list[int]:
        """Return the positions of the tokens that are switched on."""
        return [i for i, button in enumerate(self.row.children) if button.value]

    def write_count(self) -> None:
        """Say how many tokens are selected, and how many questions are saved."""
        self.count.value = (
            f"{len(self.chosen())} of {len(self.row.children)} tokens selected; {len(self.saved)} "
            f"of {len(self.bench.chooser.questions)} questions saved in "
            f"<code>{html.escape(self.path.name)}</code>"
        )

    def colour(self, change) -> None:
        """Colour a token that was switched."""
        change["owner"].button_style = "success" if change["new"] else ""
        self.write_count()

    def load(self) -> None:
        """Show the chosen question, its tokens as buttons, and an earlier selection."""
        example, student = self.bench.chooser.example, self.bench.study.student
        parts = split_sequence(student, example, self.bench.chooser.rationale)
        old = self.saved.get(example.id, [])
        self.head.value = question_html(example)
        buttons = [
            w.ToggleButton(
                value=i in old,
                description=show_token(student.decode([token])),
                tooltip=f"token {i}",
                button_style="success" if i in old else "",
                layout=w.Layout(width="auto", margin="2px"),
            )
            for i, token in enumerate(parts.rationale)
        ]
        for button in buttons:
            button.add_class("cotdistill-token")
            button.observe(self.colour, "value")
        self.row.children = buttons
        self.out.value = ""
        self.write_count()

    def clear(self, *_) -> None:
        """Switch all tokens off."""
        for button in self.row.children:
            button.value = False

    def save(self, *_) -> None:
        """Append the selection to the file, and show how each method agrees with it."""
        example, tokens = self.bench.chooser.example, self.chosen()
        write_selection(self.path, example.id, tokens)
        self.saved[example.id] = tokens
        self.write_count()
        with self.bench.lock:
            text, student = self.bench.chooser.rationale, self.bench.student()
            found = scores_of(student, example, text, **self.options)
        self.out.value = frame_html(agreement_with(tokens, found))

    def still(self) -> str:
        """Return what a page without a kernel shows: the last agreement."""
        return self.head.value + self.out.value if self.out.value else ""


def make_knobs() -> dict[str, w.Widget]:
    """Make the controls of `KnobPanel`: arm, unit, amount, order, fill and seed."""
    return {
        "arm": w.Dropdown(
            options=[a for a in ARMS if a not in PROMPTED],
            value="post_cot_shuffled",
            description="arm",
        ),
        "unit": w.Dropdown(options=["token", "word", "sentence"], description="unit"),
        "amount": w.BoundedFloatText(
            value=0.5,
            min=0,
            max=200,
            step=0.25,
            description="amount",
            description_tooltip="masked: the fraction hidden; kept: a number, or a share below 1",
        ),
        "order": w.Dropdown(options=["random", "most", "least"], description="order"),
        "fill": w.Dropdown(options=["filler", "delete"], description="fill"),
        "seed": w.BoundedIntText(value=0, min=0, max=10**6, description="seed"),
    }


class KnobPanel:
    """Show the exact training sequence of an arm, and the spans of its tokens, as knobs turn.

    kept and ordered masks rank tokens by `method`, attributed by the untrained student. A swapped
    rationale is the next question's here (in a study its partner is drawn among those of its
    length).
    """

    def __init__(self, bench: Bench, method: str = "occlusion", **options):
        self.bench, self.method, self.options = bench, method, options
        self.knobs, self.text, self.known = make_knobs(), w.HTML(), {}
        texts = [bench.chooser.rationales[one].text for one in bench.chooser.questions]
        self.corpus = corrupt.collect_corpus(bench.study.student, texts)
        for knob in self.knobs.values():
            knob.observe(lambda _: self.draw(), "value")
        bench.chooser.observe(self.draw)
        self.draw()
        bench.sections["What a student reads"] = lambda: self.text.value
        lines = (("arm", "unit"), ("amount", "order"), ("fill", "seed"))
        rows = [w.HBox([self.knobs[name] for name in line]) for line in lines]
        self.box = w.VBox([bench.header(), *rows, self.text])

    def draw(self) -> None:
        """Show the sequence, or the line that says what is wrong with the knobs."""
        value = {name: knob.value for name, knob in self.knobs.items()}
        try:
            self.text.value = tokens_html(self.encode(value))
        except DataError as error:
            self.text.value = f"<b>{html.escape(str(error))}</b>"

    def encode(self, value: dict):
        """Encode the chosen question as the knobs say. Raises DataError for an impossible arm."""
        example, name, ids = (
            self.bench.chooser.example,
            value["arm"],
            [*self.bench.chooser.questions],
        )
        needs = CORRUPTIONS[corruption_of(name)].needs
        giver = ids[(ids.index(example.id) + ("partner" in needs)) % len(ids)]
        rationale = self.bench.chooser.rationales[giver].text
        ranked = replace(
            arm_from_name(name), selector=self.method, order=value["order"]
        ).needs_scores
        scores = self.scores(example, rationale) if ranked else None
        fields = {field: value[field] for field in ("unit", "amount", "order", "fill")}
        arm = arm_from_name(name, selector=self.method if ranked else "random", **fields)
        how = (value["seed"], self.bench.label_format, scores, self.corpus)
        return training_tokens(self.bench.study.student, example, rationale, arm, *how)

    def scores(self, example, rationale: str):
        """Score a rationale by the method, once per question, with the untrained student."""
        if example.id not in self.known:
            with self.bench.lock:
                student = self.bench.shelf.get("not trained")
                how = dict(label_format=self.bench.label_format, **self.options)
                found = scores_of(student, example, rationale, [self.method], **how)
            self.known[example.id] = found[self.method].scores
        return self.known[example.id]
