"""Make the widgets of notebooks/explore.ipynb.

Select tokens by hand, turn the knobs of an arm, look at scores and at finished runs.

Each function takes questions and a student and returns one ipywidgets box; what it computes comes
from the modules that the study itself uses, so that what is shown is what is trained on.
"""

import html
from dataclasses import replace
from pathlib import Path

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display
from sklearn.metrics import average_precision_score

from cotdistill import corrupt, plots, stats
from cotdistill.arms import ARMS, CORRUPTIONS, Arm, arm_from_name, corruption_of
from cotdistill.attribution import methods as methods_module
from cotdistill.attribution.methods import top_k
from cotdistill.attribution.score import Attribution, split_sequence
from cotdistill.attribution.score_files import read_selections, write_selection
from cotdistill.encode import FRAME, LABEL, PROMPT, RATIONALE, encode, example_rng
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.paths import artifacts
from cotdistill.runs.results import completed_stages, load_predictions
from cotdistill.show import table
from cotdistill.sources import load_dataset, load_rationales
from cotdistill.students import Student, load_student
from cotdistill.study import Study, find_data_dir, resolve

KINDS = {
    PROMPT: ("prompt", "#E8E8E8"),
    LABEL: ("label", "#F6C16B"),
    RATIONALE: ("rationale", "#BFE3D0"),
    FRAME: ("frame", "#D9D2EA"),
}
STYLE = """<style>
.cotdistill-token button, button.cotdistill-token
  {font-family: monospace; font-size: 14px; padding: 0 7px; border-radius: 5px}
.cotdistill-question
  {font-size: 15px; line-height: 1.5; max-width: 900px; white-space: pre-wrap}
.cotdistill-text
  {font-family: monospace; font-size: 13px; line-height: 1.7; max-width: 900px;
   white-space: pre-wrap; overflow-wrap: anywhere}
.cotdistill-text span
  {padding: 2px 0; border-radius: 3px; border-right: 1px solid #fff}
</style>"""


def show_token(text: str) -> str:
    """Return a token as a reader sees it: a line break as ⏎, a lone space as ·."""
    return text.strip() or ("⏎" if "\n" in text else "·")


def questions_of(data, rationales: dict[str, Rationale], limit: int = 200) -> dict[str, Example]:
    """Return the first `limit` training questions that have a rationale, by id.

    Raises DataError where there is none.
    """
    found = {e.id: e for e in data.train if e.id in rationales and rationales[e.id].text}
    if not found:
        raise DataError(
            f"none of the {len(data.train)} training questions has a rationale; "
            "expected `rationales`, a JSONL file of them"
        )
    return dict(list(found.items())[:limit])


def load_questions(
    student: str, dataset: str, data_dir: str, data_seed: int, rationales: str
) -> tuple[Student, dict[str, Example], dict[str, Rationale]]:
    """Load the student, the questions to look at (`questions_of`) and their rationales.

    Names and paths are those of the notebook's parameters; empty `rationales`: those that the data
    bring along. Raises DataError for what cannot be found or read.
    """
    data = load_dataset(resolve(dataset), find_data_dir(data_dir, dataset), data_seed=data_seed)
    given = load_rationales(resolve(rationales), data.explained) if rationales else data.rationales
    return load_student(resolve(student)), questions_of(data, given), given


def training_tokens(
    student: Student,
    example: Example,
    rationale: str,
    arm: Arm,
    seed: int = 0,
    label_format: str = "text",
    scores=None,
    corpus: corrupt.Corpus | None = None,
) -> pd.DataFrame:
    """Return one training sequence, token by token as an epoch of the arm sees it.

    Columns id, text, kind (prompt, label, rationale, frame).

    corpus: what the training rationales have in common (None: this one is all there is).
    """
    corpus = corpus or corrupt.collect_corpus(student, [rationale])
    one = encode(
        student,
        example,
        rationale,
        arm,
        label_format,
        example_rng(example.id, seed, 0),
        scores,
        corpus,
    )
    return pd.DataFrame(
        {
            "id": one.ids,
            "text": [student.tokenizer.decode([i]) for i in one.ids],
            "kind": [KINDS[k][0] for k in one.kinds],
        }
    )


def tokens_html(tokens: pd.DataFrame) -> str:
    """Write `training_tokens` as coloured text, one span a token, with a legend and counts."""
    colours = dict(KINDS.values())
    body = "".join(
        f'<span style="background:{colours[t.kind]}" title="{t.id}">{html.escape(t.text)}</span>'
        for t in tokens.itertuples()
    )
    legend = " ".join(
        f'<span style="background:{colour}">&nbsp;{kind}: '
        f"{(tokens['kind'] == kind).sum()}&nbsp;</span>"
        for kind, colour in colours.items()
    )
    return (
        f'{STYLE}<div class="cotdistill-text">{legend} = {len(tokens)} tokens; learnt: all '
        f"but the prompt\n\n{body}</div>"
    )


def agreement_with(selected: list[int], attributions: dict[str, Attribution]) -> pd.DataFrame:
    """Measure how a selection agrees with each method on one rationale.

    `overlap`, the share of the k selected tokens among the method's top k; `chance`, that of k
    random ones; `average_precision` of the method's order for the selected tokens.
    """
    rows = []
    for method, one in attributions.items():
        n, k = len(one.scores), len(selected)
        picked = np.isin(np.arange(n), selected)
        rows.append(
            {
                "method": method,
                "k": k,
                "overlap": len(set(top_k(one.scores, k)) & set(selected)) / k
                if k
                else float("nan"),
                "chance": k / n if n else float("nan"),
                "average_precision": average_precision_score(picked, one.scores)
                if k
                else float("nan"),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def scores_of(
    student: Student, example: Example, rationale: str, methods: list[str], **options
) -> dict[str, Attribution]:
    """Score a rationale by several methods, `random` from the question's own generator."""
    return {
        m: methods_module.attribute_rationale(
            student, example, rationale, m, rng=example_rng(example.id, 0, 4), **options
        )
        for m in methods
    }


def question_html(example: Example) -> str:
    """Write the question and its options as HTML, the gold one marked; all text is escaped."""
    options = "\n".join(
        f"{'● ' if i == example.answer else '○ '}{html.escape(choice)}"
        for i, choice in enumerate(example.choices)
    )
    return (
        f"{STYLE}<div "
        f'class="cotdistill-question"><b>{html.escape(example.question)}</b>\n{options}</div>'
    )


def select_by_hand(
    student: Student,
    questions: dict[str, Example],
    rationales: dict[str, Rationale],
    path: Path,
    methods: list[str],
    **options,
) -> w.Widget:
    """Pick the key tokens of a rationale by clicking, and save them as a line of `path`.

    `selector: human` trains on them. Positions are those of this student's tokens. Earlier
    selections of the file are shown again; after a save, the agreement with each method. options go
    to `methods.attribute_rationale` (n_steps, baseline).
    """
    options = dict(methods=methods, **options)
    return _Selector(student, questions, rationales, Path(path), options).box


class _Selector:
    """Hold the widgets of `select_by_hand`, and what has been saved."""

    def __init__(self, student: Student, questions: dict, rationales: dict, path: Path, options):
        self.student, self.questions, self.rationales = student, questions, rationales
        self.path, self.options = path, options
        self.saved = read_selections(path) if path.is_file() else {}
        self.chooser = w.Dropdown(
            options=list(questions), description="question", layout=w.Layout(width="420px")
        )
        self.row = w.Box(layout=w.Layout(flex_flow="row wrap", max_width="900px"))
        self.head, self.count, self.out = w.HTML(), w.HTML(), w.Output()
        back, forth = w.Button(description="◀ previous"), w.Button(description="next ▶")
        clear = w.Button(description="Clear")
        save = w.Button(description="Save", button_style="primary")
        self.chooser.observe(self.load, "value")
        back.on_click(lambda _: self.move(-1))
        forth.on_click(lambda _: self.move(1))
        clear.on_click(self.clear)
        save.on_click(self.save)
        self.load()
        lines = [w.HBox([self.chooser, back, forth]), self.head, self.row, w.HBox([save, clear])]
        self.box = w.VBox([*lines, self.count, self.out])

    def chosen(self) -> list[int]:
        """Return the positions of the tokens that are switched on."""
        return [i for i, button in enumerate(self.row.children) if button.value]

    def write_count(self) -> None:
        """Say how many tokens are selected, and how many questions are saved."""
        self.count.value = (
            f"{len(self.chosen())} of {len(self.row.children)} tokens selected; {len(self.saved)} "
            f"of {len(self.questions)} questions saved in "
            f"<code>{html.escape(self.path.name)}</code>"
        )

    def colour(self, change) -> None:
        """Colour a token that was switched."""
        change["owner"].button_style = "success" if change["new"] else ""
        self.write_count()

    def load(self, *_) -> None:
        """Show the chosen question, its tokens as buttons, and an earlier selection."""
        example = self.questions[self.chooser.value]
        parts = split_sequence(self.student, example, self.rationales[example.id].text)
        old = self.saved.get(example.id, [])
        self.head.value = question_html(example)
        buttons = [
            w.ToggleButton(
                value=i in old,
                description=show_token(self.student.decode([token])),
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
        self.out.clear_output()
        self.write_count()

    def move(self, step: int) -> None:
        """Go to another question."""
        ids = list(self.questions)
        self.chooser.value = ids[(ids.index(self.chooser.value) + step) % len(ids)]

    def clear(self, *_) -> None:
        """Switch all tokens off."""
        for button in self.row.children:
            button.value = False

    def save(self, *_) -> None:
        """Append the selection to the file, and show how each method agrees with it."""
        example, tokens = self.questions[self.chooser.value], self.chosen()
        write_selection(self.path, example.id, tokens)
        self.saved[example.id] = tokens
        self.write_count()
        self.out.clear_output()
        text = self.rationales[example.id].text
        with self.out:
            found = scores_of(self.student, example, text, **self.options)
            table(agreement_with(tokens, found))


def _arm_knobs(ids: list[str]) -> dict[str, w.Widget]:
    """Make the controls of `turn_knobs`: question, arm, unit, amount, order, fill and seed."""
    return {
        "question": w.Dropdown(options=ids, description="question", layout=w.Layout(width="420px")),
        "arm": w.Dropdown(
            options=[a for a in ARMS if a != "zero_shot"],
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


def turn_knobs(
    student: Student,
    questions: dict[str, Example],
    rationales: dict[str, Rationale],
    label_format: str = "text",
    method: str = "occlusion",
    **options,
) -> w.Widget:
    """Offer arm, unit, amount, order and seed as controls.

    Below them stand the exact training sequence and the spans of its tokens.

    kept and ordered masks rank tokens by `method`, attributed by this student. A swapped rationale
    is the next question's here (in a study its partner is drawn among those of its length).
    """
    ids, knobs = list(questions), _arm_knobs(list(questions))
    text, known = w.HTML(), {}
    corpus = corrupt.collect_corpus(student, [rationales[question].text for question in ids])

    def draw(*_):
        value = {name: knob.value for name, knob in knobs.items()}
        example, name = questions[value["question"]], value["arm"]
        needs = CORRUPTIONS[corruption_of(name)].needs
        giver = ids[(ids.index(example.id) + ("partner" in needs)) % len(ids)]
        rationale = rationales[giver].text
        ranked = replace(arm_from_name(name), selector=method, order=value["order"]).needs_scores
        if ranked and example.id not in known:
            how = dict(label_format=label_format, **options)
            known[example.id] = scores_of(student, example, rationale, [method], **how)[
                method
            ].scores
        fields = {field: value[field] for field in ("unit", "amount", "order", "fill")}
        scores = known[example.id] if ranked else None
        try:
            arm = arm_from_name(name, selector=method if ranked else "random", **fields)
            how = (value["seed"], label_format, scores, corpus)
            text.value = tokens_html(training_tokens(student, example, rationale, arm, *how))
        except DataError as error:
            text.value = f"<b>{html.escape(str(error))}</b>"

    for knob in knobs.values():
        knob.observe(draw, "value")
    draw()
    lines = (("question", "arm"), ("unit", "amount"), ("order", "fill", "seed"))
    return w.VBox([*(w.HBox([knobs[name] for name in line]) for line in lines), text])


def look_at_scores(
    student: Student,
    questions: dict[str, Example],
    rationales: dict[str, Rationale],
    methods: list[str],
    **options,
) -> w.Widget:
    """Show a heat map of one rationale's tokens by one method.

    It also says how far the scores are from adding up.
    """
    chooser = w.Dropdown(
        options=list(questions), description="question", layout=w.Layout(width="420px")
    )
    method, out = w.Dropdown(options=methods, description="method"), w.Output()

    def draw(*_):
        example = questions[chooser.value]
        one = scores_of(student, example, rationales[example.id].text, [method.value], **options)[
            method.value
        ]
        out.clear_output()
        with out:
            ax = plots.token_heatmap(
                [student.decode([i]) for i in one.ids],
                one.scores,
                title=f"{method.value}: {example.question} → {example.label}",
            )
            display(ax.figure)
            plt.close(ax.figure)
            print(
                f"scores from {one.scores.min():+.3f} to {one.scores.max():+.3f}"
                + (
                    ""
                    if np.isnan(one.delta)
                    else f"; sum {one.scores.sum():+.3f}, "
                    f"{one.delta:+.3f} away from the change in log p(label)"
                )
            )

    chooser.observe(draw, "value")
    method.observe(draw, "value")
    draw()
    return w.VBox([w.HBox([chooser, method]), out])


def finished_studies() -> list[str]:
    """List the studies in artifacts/ whose notebook 02 has run."""
    return sorted(path.parent.name for path in (artifacts() / "studies").glob("*/train.json"))


def replot() -> w.Widget:
    """Draw any finished study's accuracies: choose the study, the arms and the measure."""
    names = finished_studies()
    if not names:
        return w.HTML(
            "No study has run here yet: <code>make smoke</code> makes one in two minutes."
        )
    study = w.Dropdown(options=names, description="study")
    measure = w.Dropdown(
        options=[(name, measure) for measure, name in stats.MEASURE_NAMES.items()],
        description="measure",
    )
    arms, out, loaded = (
        w.SelectMultiple(description="arms", rows=8, layout=w.Layout(width="420px")),
        w.Output(),
        {},
    )

    def load(*_):
        try:
            loaded_study = Study.load(study.value)
            loaded["chance"] = loaded_study.chance
            loaded["rows"] = load_predictions(loaded_study, completed_stages(loaded_study))
        except DataError as error:  # runs that are missing or damaged: say which
            loaded.pop("rows", None)
            out.clear_output()
            with out:
                display(HTML(f"<b>{html.escape(str(error))}</b>"))
            return
        arms.options = list(dict.fromkeys(loaded["rows"]["arm"]))
        arms.value = tuple(arms.options)

    def draw(*_):
        if not arms.value or "rows" not in loaded:
            return
        rows = loaded["rows"][loaded["rows"]["arm"].isin(arms.value)]
        accuracies = stats.accuracy_table(rows, measure.value)
        out.clear_output()
        with out:
            ax = plots.placement_bars(accuracies, chance=loaded["chance"], arms=list(arms.value))
            display(ax.figure)
            plt.close(ax.figure)

    study.observe(load, "value")
    arms.observe(draw, "value")
    measure.observe(draw, "value")
    load()
    return w.VBox([w.HBox([study, measure]), arms, out])
