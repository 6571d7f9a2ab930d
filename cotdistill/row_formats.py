"""Parse rows of questions: the official datasets' formats and our own."""

import hashlib
import re
from collections import Counter

from cotdistill.errors import DataError
from cotdistill.examples import Example, get_field, make_example, make_free_example
from cotdistill.free_answers import gold_kind


def _official_choices(choices, where: str) -> tuple[list, list]:
    """Read the official choices of CommonsenseQA and OpenBookQA as (letters, texts).

    There are two layouts: the hub's {"label": [...], "text": [...]} and the authors' own [{"label":
    "A", "text": ...}, ...]. Raises DataError for anything else.
    """
    if (
        isinstance(choices, (list, tuple))
        and choices
        and all(isinstance(c, dict) and {"label", "text"} <= set(c) for c in choices)
    ):
        return [c["label"] for c in choices], [c["text"] for c in choices]
    fields = choices if isinstance(choices, dict) else {}
    letters, texts = fields.get("label"), fields.get("text")
    if (
        not isinstance(letters, (list, tuple))
        or not isinstance(texts, (list, tuple))
        or len(letters) != len(texts)
    ):
        raise DataError(
            f"{where}: choices {str(choices)[:60]!r}; expected an object with 'label' and 'text' "
            "lists of one length, or a list of objects with 'label' and 'text'"
        )
    return list(letters), list(texts)


def parse_own_row(row: dict, where: str) -> Example:
    """Parse a row in our own format; `where` is "file:line", for the error.

    It has id, question, choices (list), answer (an index from 0 or a letter); or, where the answer
    is free, no choices, and a number, a word, or yes or no as the answer. Raises DataError.
    """
    answer = row.get("answer")
    letter = isinstance(answer, str) and re.fullmatch(r"\(?[A-Z]\)?", answer.strip())
    if "choices" not in row and "answer" in row and not letter:
        return make_free_example(
            get_field(row, "id", where), get_field(row, "question", where), answer, where
        )
    fields = [get_field(row, name, where) for name in ("id", "question", "choices", "answer")]
    example = make_example(*fields, where)
    twice = [choice for choice, times in Counter(example.choices).items() if times > 1]
    # Official sets hold some repeated options, which the data card counts; own data can be mended
    if twice:
        raise DataError(
            f"{where} (id {example.id}): choice '{twice[0]}' appears twice; expected different "
            "options"
        )
    return example


def parse_lettered_row(row: dict, where: str, name: str = "question") -> Example:
    """Parse an official row of CommonsenseQA or OpenBookQA: id, choices{label,text}, answerKey.

    name: the field of the question, "question_stem" in OpenBookQA. The authors' own files nest:
    question{stem, choices[{label,text}]}, answerKey. Raises DataError.
    """
    question_id = get_field(row, "id", where)
    nested = row.get("question") if isinstance(row.get("question"), dict) else {}
    choices = get_field(nested if "choices" in nested else row, "choices", where)
    letters, texts = _official_choices(choices, where)
    key = get_field(row, "answerKey", where)
    if key not in letters:
        raise DataError(
            f"{where} (id {question_id}): answer {key!r} is outside the choices; expected one of "
            f"{letters}"
        )
    if nested and (name == "question" or name not in row):
        question = get_field(nested, "stem", where)
    else:
        question = get_field(row, name, where)
    return make_example(question_id, question, texts, letters.index(key), where)


def split_gsm8k_answer(answer: str) -> tuple[str, str] | None:
    """Split GSM8K's `answer` into its solution and the number after "####"; None where it has none.

    The calculator's annotations ("<<3*4=12>>") are left out of the solution.
    """
    solution, found, number = answer.rpartition("####")
    if not found or gold_kind(number) != "number":
        return None
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), number.strip().replace(",", "")


def parse_gsm8k_row(row: dict, where: str) -> Example:
    """Parse an official row of GSM8K: question, and a solution that ends in "#### 42".

    The official rows have no id: it is made of the question's text. Raises DataError.
    """
    question, answer = get_field(row, "question", where), get_field(row, "answer", where)
    parts = split_gsm8k_answer(answer) if isinstance(answer, str) else None
    if parts is None:
        raise DataError(
            f"{where}: answer {str(answer)[-40:]!r}; expected a solution that ends in '#### ' and "
            "a number"
        )
    digest = hashlib.sha256(str(question).encode("utf-8", "replace")).hexdigest()
    return make_free_example(row.get("id", f"gsm8k-{digest[:12]}"), question, parts[1], where)


def row_steps(dataset: str, row: dict, where: str) -> int | None:
    """Count the steps to a row's answer; None where the row does not say.

    GSM8K marks each calculation ("<<3*4=12>>"); rows of our own format may have a field `steps`, a
    whole number from 1 on. Raises DataError for another value.
    """
    if dataset == "gsm8k":
        return str(row.get("answer")).count("<<") or None
    steps = row.get("steps")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise DataError(f"{where}: steps is {steps!r}; expected a whole number from 1 on")
    return steps


def parse_quarel_row(row: dict, where: str) -> Example:
    """Parse an official row of QuaRel: "(A) .. (B) .." inside the question, and answer_index.

    Raises DataError.
    """
    question_id, question = get_field(row, "id", where), get_field(row, "question", where)
    pattern = r"(.*)\(A\)\s*(.*?)\s*\(B\)\s*(.*)$"
    parts = re.match(pattern, question, re.S) if isinstance(question, str) else None
    if parts is None:
        raise DataError(
            f"{where} (id {question_id}): no '(A) .. (B) ..' in the question; expected the options "
            "inline"
        )
    choices = [parts[2], parts[3].rstrip(" .")]
    answer = get_field(row, "answer_index", where)
    return make_example(question_id, parts[1], choices, answer, where)
