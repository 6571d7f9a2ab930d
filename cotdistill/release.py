"""Convert released files of questions and rationales into the layout that studies read.

Two public releases are read: the one of arXiv 2502.18001 (a JSON list of "instruction" and
"output" or "label") and task 1380 of Natural Instructions (QuaRel). params/sources.json says which
file comes from where; `fetch.py` downloads it and compares the result with what is expected.
"""

import hashlib
import json
import re

from cotdistill.errors import DataError
from cotdistill.examples import LETTERS

N_OPTIONS = {"commonsense_qa": 5, "openbookqa": 4}
OPTIONS = " Answer choices: A: "
# What a teacher's output ends in. The words before it ("Hence, the answer is D") belong to it only
# on the same line with one space, and an answer is made of words, numbers, commas and hyphens:
# "The answer is D: have fun" concludes nothing that can be read safely, and stays in the rationale.
CLOSING = re.compile(
    r"(?:(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? )?[Tt]he answer is:?\s*"
    r"\(?([-\w., ]*?\w)\)?[. ]*$"
)


def split_instruction(text: str, dataset: str) -> tuple[str, tuple[str, ...]] | None:
    """Split an instruction into its question and its options; None where an option is missing.

    A multiple-choice instruction reads "Q: … Answer choices: A: …, B: …"; the others are the
    question alone, and have no options.
    """
    if dataset not in N_OPTIONS:
        return text.strip(), ()
    question, found, rest = text.removeprefix("Q: ").partition(OPTIONS)
    if not found:
        return None
    options = []
    for letter in LETTERS[1 : N_OPTIONS[dataset]]:
        option, found, rest = rest.partition(f", {letter}: ")
        if not found:
            return None
        options.append(option.strip())
    options.append(rest.strip())
    return (question.strip(), tuple(options)) if all(options) else None


def split_output(output: str) -> tuple[str, str | None]:
    """Split a teacher's output into its rationale and the answer that its last sentence names.

    The answer is None, and the rationale the whole output, where the output does not end in "The
    answer is X".
    """
    output = output.strip()
    closing = CLOSING.search(output)
    return (output[: closing.start()].strip(), closing[1]) if closing else (output, None)


def _question_row(dataset: str, question_id: str, parts: tuple, answer: str) -> dict:
    """Build a row in the dataset's official format, its fields in the official order."""
    question, options = parts
    letters = list(LETTERS[: len(options)])
    if dataset == "openbookqa":
        choices = {"text": list(options), "label": letters}
        return {
            "id": question_id,
            "question_stem": question,
            "choices": choices,
            "answerKey": answer,
        }
    if dataset == "commonsense_qa":
        choices = {"label": letters, "text": list(options)}
        return {"id": question_id, "question": question, "choices": choices, "answerKey": answer}
    return {"id": question_id, "question": question, "answer": answer}


def convert_questions(rows: list[dict], dataset: str, split: str) -> list[dict]:
    """Convert released questions to rows of the dataset's official format.

    An id is <dataset>-<split>-<index in the released file>. Rows whose options are not all there,
    and rows that repeat an earlier instruction, are left out.
    """
    found, seen = [], set()
    for index, row in enumerate(rows):
        parts = split_instruction(row["instruction"], dataset)
        if parts is None or parts in seen:
            continue
        seen.add(parts)
        answer = row["label"] if "label" in row else row["output"]
        question_id = f"{dataset}-{split}-{index:05}"
        found.append(_question_row(dataset, question_id, parts, answer.strip()))
    return found


def question_ids(rows: list[dict]) -> dict[tuple, str]:
    """Map the question and options of converted rows to their ids."""
    return {
        (
            row["question_stem"] if "question_stem" in row else row["question"],
            tuple(row["choices"]["text"]) if "choices" in row else (),
        ): row["id"]
        for row in rows
    }


def convert_rationales(rows: list[dict], dataset: str, questions: list[dict]) -> list[dict]:
    """Convert a teacher's released outputs to rows of id, rationale and answer.

    questions: the converted training questions. A released output belongs to the question with
    exactly its words and options; outputs of other questions, and a question's second output, are
    left out.
    """
    ids, found = question_ids(questions), {}
    for row in rows:
        question_id = ids.get(split_instruction(row["instruction"], dataset))
        if question_id is None or question_id in found:
            continue
        text, answer = split_output(row["output"])
        found[question_id] = {"id": question_id, "rationale": text, "answer": answer}
    return list(found.values())


def quarel_row(instance: dict) -> dict:
    """Convert one instance of Natural Instructions' QuaRel task, with its id still to be given."""
    question = instance["input"].removeprefix("Sentence: ").replace(" Question: ", " ", 1)
    return {"question": question, "answer_index": LETTERS.index(instance["output"][0])}


def quarel_digest(row: dict) -> str:
    """Return the 8 hex digits by which params/quarel-order.txt names a QuaRel row."""
    text = json.dumps([row["question"], row["answer_index"]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def convert_quarel(task: dict, split: str, order: list[str]) -> list[dict]:
    """Convert Natural Instructions' QuaRel task to the rows of one of our splits.

    order: the rows' digests, as our random split has them. Raises DataError where one is missing.
    """
    rows = [quarel_row(instance) for instance in task["Instances"]]
    by_digest = {quarel_digest(row): row for row in rows}
    missing = [digest for digest in order if digest not in by_digest]
    if missing:
        raise DataError(
            f"QuaRel's task holds {len(by_digest)} questions, without {len(missing)} of the "
            f"{len(order)} of split {split}; expected all of them"
        )
    return [
        {"id": f"quarel-{split}-{index:05}", **by_digest[digest]}
        for index, digest in enumerate(order)
    ]


def write_lines(rows: list[dict]) -> bytes:
    """Return rows as the bytes of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
