"""Write a commented study for a user's own data, and a table of every key.

The notebooks' parameters cells are the only schema; everything here is read from them.
"""

import io
import json
import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

import yaml

from cotdistill.errors import DataError
from cotdistill.examples import Dataset, repeats_note
from cotdistill.parameters import DEFAULT_STUDENT, notebook_parameters
from cotdistill.paths import ALL_NOTEBOOKS, check_name, root
from cotdistill.sources import SOURCES, load_dataset
from cotdistill.tables import split_path

TITLES = {
    "elicit": "1 · Elicit",
    "train": "2 · Train",
    "evaluate": "3 · Evaluate",
    "shuffle": "4 · Shuffle",
    "attribute": "5 · Attribute and mask",
    "figures": "6 · Figures",
    "tasks": "7 · Tasks",
    "lasting": "8 · Does the gain last?",
    "mechanism": "9 · Mechanism",
    "quality": "10 · Quality",
    "methods": "11 · Methods",
}
LINE = 100  # characters of a line of the YAML


@dataclass(frozen=True)
class Key:
    """Hold one key of a study: its default in the notebook, and the comment there."""

    name: str
    default: object
    comment: str


def parameter_comments(source: str) -> dict[str, str]:
    """Map each name in a parameters cell's source to its comment: behind it, or in lines above."""
    comments, above, name = {}, [], None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 0:
            name = token.string
            if above:
                comments[name] = " ".join(above)
            above = []
        elif token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if token.start[1]:
                comments[name] = text
            else:
                above.append(text)
    return comments


def study_keys() -> dict[str, list[Key]]:
    """Map each stage to its keys in the notebook's order.

    A key that several notebooks share is listed under the first. Raises DataError for a notebook
    that is missing or has no parameters.
    """
    keys, seen = {}, {"study"}
    for stage, notebook in ALL_NOTEBOOKS.items():
        path = root() / "notebooks" / f"{notebook}.ipynb"
        defaults = notebook_parameters(path)
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
        comments = parameter_comments("".join(cell["source"]))
        keys[stage] = [
            Key(name, default, comments.get(name, ""))
            for name, default in defaults.items()
            if name not in seen
        ]
        seen |= set(defaults)
    return keys


def write_value(value) -> str:
    """Write a key's value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def write_default(value) -> str:
    """Write a default as the table shows it.

    A notebook writes an empty list of texts as a list of one empty text, which shows the type.
    """
    return "empty" if value in ("", [""]) else f"`{write_value(value)}`"


def escape_markdown(text: str) -> str:
    """Escape a comment for a table's cell: no tags, no bars, no emphasis."""
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def render_keys_table() -> str:
    """Render all keys of a study as Markdown: one table of defaults and meanings per notebook."""
    parts = []
    for stage, keys in study_keys().items():
        rows = [
            f"| `{key.name}` | {write_default(key.default)} | {escape_markdown(key.comment)} |"
            for key in keys
        ]
        if rows:
            head = [
                f"**{TITLES[stage]}**",
                "",
                "| key | default | meaning |",
                "| --- | --- | --- |",
            ]
            parts.append("\n".join([*head, *rows]))
    return "\n\n".join(parts) + "\n"


def render_line(name: str, value, comment: str, active: bool) -> str:
    """Render a key with its comment behind it, or above it where the line would be long."""
    text = f"{'' if active else '# '}{name}: {write_value(value)}"
    if not comment:
        return text
    line = f"{text}  # {comment}"
    return line if len(line) <= LINE else f"#   {comment}\n{text}"


def render_study(head: list[str], chosen: dict[str, tuple]) -> str:
    """Render a study's YAML: `chosen` (key -> value and comment) on top, all others as comments.

    head: lines that describe the data.
    """
    lines = [*(f"# {line}" for line in head), ""]
    lines += [render_line(name, *pair, active=True) for name, pair in chosen.items()]
    for stage, keys in study_keys().items():
        rest = [key for key in keys if key.name not in chosen]
        if rest:
            lines += ["", f"# ---- {TITLES[stage]}: every other key with its default", ""]
            lines += [render_line(k.name, k.default, k.comment, active=False) for k in rest]
    return "\n".join(lines) + "\n"


def portable_path(folder: Path) -> str:
    """Name a folder as a study in params/ does, without naming the machine where possible.

    In the repository the path is relative, unless it also names a dataset or something in params/.
    Under the user's home it starts with ~; elsewhere it is absolute.
    """
    folder = folder.resolve()
    for place, prefix in ((root().resolve(), Path()), (Path.home().resolve(), Path("~"))):
        if folder.is_relative_to(place) and folder != place:
            path = prefix / folder.relative_to(place)
            taken = {*SOURCES, "microworld"} & {path.parts[0]} or (
                root() / "params" / path
            ).exists()
            if not taken:
                return str(path)
    return str(folder)


def choose_sizes(data: Dataset, has_validation: bool) -> dict[str, tuple]:
    """Choose sizes of a first study on these data, small enough for an evening on two cores."""
    n_train, n_test, n_validation = len(data.train), len(data.test), len(data.validation)
    if has_validation:
        validation = (0 if n_validation <= 200 else 200, f"of {n_validation:,}; 0: all")
    else:
        size = min(100, n_train // 10)
        validation = (size, "questions for choosing the epoch, carved out of train; 0: none")
    return {
        "validation_size": validation,
        "train_size": (
            0 if n_train <= 2000 else 2000,
            f"of {n_train:,} training questions; 0: all",
        ),
        "test_size": (0 if n_test <= 500 else 500, f"of {n_test:,} test questions; 0: all"),
    }


def choose_lengths(data: Dataset, student, teacher_tokens: int) -> dict[str, tuple]:
    """Choose a `max_length` that keeps 99 % of the training questions, and two more limits.

    student: a Student. teacher_tokens: room for a rationale where the data hold none yet. The other
    two limit what a student writes: its own rationale and its label. All are in tokens.
    """
    from cotdistill.encode import length_to_keep, training_length

    examples = [e for e in data.train if e.id in data.rationales] or data.train
    texts = [data.rationales[e.id].text if e.id in data.rationales else "" for e in examples]
    expected = 0 if any(texts) else teacher_tokens
    lengths = [
        training_length(student, e, t, "text") + expected
        for e, t in zip(examples, texts, strict=True)
    ]
    everyone = [*data.train, *data.validation, *data.test]
    label = 2 + max(len(student.encode(f" {c}")) for e in everyone for c in e.choices)
    room = getattr(student.model.config, "max_position_embeddings", None) or math.inf
    length = min(room, 16 * math.ceil(length_to_keep(lengths) / 16))
    written = expected or length_to_keep([len(student.encode(f" {t}")) for t in texts])
    return {
        "max_length": (length, "tokens; keeps 99 % of the training questions"),
        "max_new_tokens": (8 * math.ceil(written / 8), "tokens for pre_cot's own rationale"),
        "max_label_tokens": (
            max(24, label),
            f"tokens for the label; the longest option takes {label - 2}",
        ),
    }


def new_study(name: str, folder: str, student: str = DEFAULT_STUDENT) -> Path:
    """Check a user's own data and write params/<name>.yaml for them.

    The keys that matter are on top and set; every other key is a comment. Raises DataError for bad
    data, for a name that is taken, and for a student that cannot be loaded.
    """
    from cotdistill.study import named_student  # torch, which the other commands do without

    path = root() / "params" / f"{check_name(name)}.yaml"
    if path.exists() or (root() / "notebooks" / "executed" / name).exists():
        raise DataError(
            f"params/{name}.yaml: a study of this name is there; expected a new name (STUDY=...)"
        )
    if not folder.strip():
        raise DataError("no data named; expected DATA=folder, with a train and a test split")
    place = Path(folder).expanduser()
    data = load_dataset(str(place.absolute()), validation_size=0)
    has_validation = split_path(place, "validation") is not None
    covered = sum(e.id in data.rationales for e in data.train)
    if covered:
        note = f"the data hold {covered:,} rationales for {len(data.train):,} questions"
        teacher = {"teacher": ("gold", note)}
    else:
        note = "the data hold no rationales; gold, recorded, transformers, openai"
        weak = "a weak teacher that is at hand: name a better one"
        teacher = {"teacher": ("transformers", note), "teacher_model": (DEFAULT_STUDENT, weak)}
    chosen = {
        "dataset": (portable_path(place), "looked for beside this file, then in the repository"),
        **teacher,
        "student": (student, "smollm2-135m (bundled), a folder, or a hub id[@revision]"),
        "seeds": ([0, 1, 2, 3, 4], "one run per arm and seed; fewer than five decide little"),
        **choose_sizes(data, has_validation),
        **choose_lengths(data, named_student(student), teacher_tokens=128),
        "lr": (1e-4, "peak learning rate; the notebook's default is for two-layer students"),
        "batch_size": (8, "questions per step"),
    }
    options = sorted({len(e.choices) for e in [*data.train, *data.test]})
    free = options == [1]
    kind = "free answers" if free else f"{'/'.join(map(str, options))} options"
    head = [
        f"{name}: {len(data.train):,} training, {len(data.validation):,} validation and "
        f"{len(data.test):,} test questions with {kind}.",
        *filter(None, [repeats_note(data)]),
        f"Run it: make {'elicit train' if free else 'reproduce'} STUDY={name}",
        *(["Notebooks 03 to 06 need questions with options."] if free else []),
    ]
    with path.open("x", encoding="utf-8") as file:
        file.write(render_study(head, chosen))
    return path
