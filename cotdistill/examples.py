"""Define examples, rationales and datasets, and check what they hold."""

import math
import re
import reprlib
from dataclasses import dataclass, field

from cotdistill.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def is_embedded(dataset: str) -> bool:
    """Tell whether a dataset, by its name, is an embedded world: "microworld/everyday"."""
    return dataset.partition("/")[0] == "microworld"


@dataclass(frozen=True)
class Example:
    """Hold one question.

    `answer` is the index of the right option in `choices`. A question with a free answer has one
    choice, the right answer, which is never shown: nothing is chosen from.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def label(self) -> str:
        """Return the text of the right option, or the right free answer."""
        return self.choices[self.answer]

    @property
    def is_free(self) -> bool:
        """Say whether the answer is free: there are no options to choose from."""
        return len(self.choices) == 1

    @property
    def chance(self) -> float:
        """Return how often a uniform guess among the options is right; 0 for a free answer."""
        return 0.0 if self.is_free else 1 / len(self.choices)


@dataclass(frozen=True)
class Rationale:
    """Hold a teacher's explanation of one question.

    `answer` is the option that it concludes (None: none could be read). `key_spans` are the
    character spans of tokens known to carry the answer (microworld only).
    """

    id: str
    text: str
    answer: int | None = None
    key_spans: tuple[tuple[int, int], ...] = ()


def is_plain_text(value) -> bool:
    """Tell whether a value is a str that is not blank and can be written as UTF-8.

    JSON may hold half a surrogate pair, which cannot be written.
    """
    return (
        isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)
    )


def get_field(row: dict, name: str, where: str):
    """Return a field of a row; raise DataError where the row has none of this name."""
    if name not in row:
        raise DataError(f"{where}: no field '{name}'; found {sorted(row)}")
    return row[name]


def answer_index(answer, n_choices: int, where: str) -> int:
    """Convert an answer, an option letter ("B") or an index from 0 (1), to the index.

    Raises DataError for anything outside the choices, and for a number in quotes.
    """
    index = answer
    if isinstance(answer, str):
        text = answer.strip()
        index = LETTERS.find(text.upper()) if len(text) == 1 and text.isalpha() else -1
        if text.isdecimal():
            raise DataError(
                f"{where}: answer '{text}' is a text; expected a number, an index from 0 to "
                f"{n_choices - 1}, or a letter from A to {LETTERS[n_choices - 1]}"
            )
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_choices:
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)} is outside the {n_choices} choices; expected "
            f"an index from 0 to {n_choices - 1} or a letter from A to {LETTERS[n_choices - 1]}"
        )
    return index


def gold_index(answer, choices: tuple[str, ...], where: str) -> int:
    """Find the right option of a question, given as an index from 0 (a number) or as a letter.

    Digits in quotes ("1") are the option with that text, and never an index. Raises DataError where
    a letter is another option's text too (options O, A, B, AB and answer "A"): only the index can
    say which of the two is meant.
    """
    text = " ".join(answer.split()) if isinstance(answer, str) else ""
    same = [i for i, choice in enumerate(choices) if choice.casefold() == text.casefold()]
    if text.isdecimal() and same:
        return same[0]
    letter = len(text) == 1 and text.isalpha() and LETTERS.find(text.upper()) < len(choices)
    if same and not letter:
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)} is outside the letters, and an option's text; "
            f"expected an index from 0 to {len(choices) - 1} (here {same[0]}) or a letter from A "
            f"to {LETTERS[len(choices) - 1]} (here {LETTERS[same[0]]})"
        )
    index = answer_index(answer, len(choices), where)
    if same and choices[index].casefold() != text.casefold():
        raise DataError(
            f"{where}: answer '{text}' is the letter of option {reprlib.repr(choices[index])} and "
            f"the text of another; expected the index as a number, {index} or {same[0]}"
        )
    return index


def make_example(question_id, question, choices, answer, where: str) -> Example:
    """Check one question and build it.

    White space inside an option is collapsed: a label must stay on one line. Where the right option
    appears twice (in some official questions), the first of the two is the answer: equal texts are
    one answer. Raises DataError naming `where` and the id.
    """
    where = _check_texts(question_id, question, where)
    if not isinstance(choices, (list, tuple)) or len(choices) < 2:
        count = len(choices) if isinstance(choices, (list, tuple)) else type(choices).__name__
        raise DataError(f"{where}: {count} choice(s); expected a list of at least two")
    if len(choices) > len(LETTERS):
        raise DataError(f"{where}: {len(choices)} choices; expected at most {len(LETTERS)}")
    for choice in choices:
        if not is_plain_text(choice):
            raise DataError(
                f"{where}: choice {reprlib.repr(choice)}; expected a text that is not empty"
            )
    choices = tuple(" ".join(choice.split()) for choice in choices)
    right = first_equal(choices, gold_index(answer, choices, where))
    return Example(question_id, question.strip(), choices, right)


def make_free_example(question_id, question, answer, where: str) -> Example:
    """Check one question with a free answer and build it.

    answer: a text on one line, a number, or true or false (which become yes and no). Raises
    DataError naming `where` and the id.
    """
    where = _check_texts(question_id, question, where)
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    elif isinstance(answer, (int, float)) and math.isfinite(answer):
        answer = str(answer)
    if not is_plain_text(answer):
        raise DataError(
            f"{where}: answer {reprlib.repr(answer)}; expected a number, a word, or yes or no"
        )
    return Example(question_id, question.strip(), (" ".join(answer.split()),), 0)


def _check_texts(question_id, question, where: str) -> str:
    """Check a question's id and text; return `where` with the id. Raises DataError."""
    if not is_plain_text(question_id):
        raise DataError(
            f"{where}: id {reprlib.repr(question_id)}; expected a text that is not empty"
        )
    where = f"{where} (id {question_id})"
    if not is_plain_text(question):
        blank = isinstance(question, str) and not question.strip()
        problem = "empty question" if blank else f"question {reprlib.repr(question)}"
        raise DataError(f"{where}: {problem}; expected a text")
    return where


def first_equal(choices: tuple[str, ...], option: int) -> int:
    """Return the first option with the same text: equal options are one answer."""
    return choices.index(choices[option])


def check_rationale(text, where: str) -> None:
    """Check that a rationale is a text that can be written as UTF-8; it may be empty.

    Raises DataError.
    """
    if not isinstance(text, str) or text.strip() and not is_plain_text(text):
        raise DataError(
            f"{where}: rationale is "
            f"{type(text).__name__ if not isinstance(text, str) else reprlib.repr(text)}; expected "
            "a text"
        )


def question_key(example: Example) -> tuple:
    """Return a key that is equal for two equal questions.

    They have the same words and the same set of options, whatever their case and order. A free
    answer is no part of it.
    """
    words = " ".join(re.findall(r"\w+", example.question.lower()))
    if example.is_free:
        return words, ()
    return words, tuple(sorted(choice.lower() for choice in example.choices))


@dataclass(frozen=True)
class Dataset:
    """Hold everything that a study trains and tests on.

    `rationales` maps an id to its Rationale. `meta` holds what microworld knows about a question
    (its steps, and where training states its fact); it is empty for other data. `left_out` holds,
    by split, the questions that are also in a later split (`without_repeats`). `donors` holds the
    rationales of another world that a `swapped` arm reads, by the id of the question that gets each
    (microworld/strata only).
    """

    name: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    rationales: dict[str, Rationale]
    meta: dict[str, dict] = field(default_factory=dict)
    left_out: dict[str, list[Example]] = field(default_factory=dict)
    donors: dict[str, Rationale] = field(default_factory=dict)

    def in_world(self, examples: list[Example], seed: int) -> list[Example]:
        """Choose those questions that belong to the world of one seed."""
        return [e for e in examples if self.meta[e.id]["world"] == seed]

    @property
    def explained(self) -> list[Example]:
        """List every question that a recorded set may explain, including those left out."""
        return [
            *self.train,
            *self.validation,
            *(e for rows in self.left_out.values() for e in rows),
        ]


def without_repeats(
    examples: list[Example], later: list[Example]
) -> tuple[list[Example], list[Example]]:
    """Split `examples` into (questions that are not among `later`, questions that are).

    The same question has the same words and options, whatever their case and order. A test question
    that was trained on measures memory. OpenBookQA's official train split holds 14 of its test
    split.
    """
    keys = {question_key(example) for example in later}
    repeated = [example for example in examples if question_key(example) in keys]
    if not repeated:
        return examples, []
    return [example for example in examples if question_key(example) not in keys], repeated


def repeats_note(data: Dataset) -> str:
    """Say in one line which questions are left out as repeats of a later split; "" for none."""
    names = {
        "train": "left out of training, as they also stand in the validation or test split",
        "validation": "left out of validation, as they also stand in the test split",
    }
    return "; ".join(
        f"{names[split]}: {len(rows)}" for split, rows in data.left_out.items() if rows
    )
