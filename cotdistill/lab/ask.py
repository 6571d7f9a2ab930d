"""Ask a student a free question, with its answer first or a reason first."""

from dataclasses import dataclass

import torch

from cotdistill.arms import label_text, prompt_text
from cotdistill.decode import append_tokens, decode_greedily, prefill
from cotdistill.errors import DataError
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example, make_example
from cotdistill.lab.edit import softmax
from cotdistill.students import Student

ORDERS = {"answer first": "post_cot", "reason first": "pre_cot"}


@dataclass(frozen=True)
class StudentAnswer:
    """A student's answer: each option's share, what it wrote, and its reason.

    choice: the most probable option; text: the label that it wrote by itself (it may be no option);
    cut_off: whether the limit of tokens ended its reason or its label.
    """

    example: Example
    order: str
    probabilities: tuple[float, ...]
    choice: int
    text: str
    reason: str
    cut_off: bool


def read_question(question: str, options: str) -> Example:
    """Make an example of a typed question; options: one a line, or separated by ";".

    The first option stands as the right one, which nobody looks at. Raises DataError for an empty
    question, or fewer than two options.
    """
    lines = [part.strip() for part in options.replace(";", "\n").splitlines() if part.strip()]
    if not question.strip():
        raise DataError("the question is empty; expected a text, such as: Where do fish live?")
    if len(lines) < 2:
        raise DataError(f"{len(lines)} option(s) in {options!r}; expected two or more, one a line")
    if len(set(lines)) < len(lines):
        raise DataError(f"an option stands twice in {lines}; expected different texts")
    return make_example("asked", question, lines, 0, "the question")


def ask(
    student: Student,
    example: Example,
    order: str,
    label_format: str = "text",
    *,
    max_new_tokens: int = 48,
    max_label_tokens: int = 24,
) -> StudentAnswer:
    """Ask a student; order: "answer first" (then it is let go on to its reason) or "reason first".

    Raises DataError for another order.
    """
    if order not in ORDERS:
        raise DataError(f"order '{order}'; expected one of {', '.join(ORDERS)}")
    limits = dict(max_new_tokens=max_new_tokens, max_label_tokens=max_label_tokens, batch_size=1)
    (found,) = evaluate(student, [example], ORDERS[order], label_format, **limits)
    reason, cut = found["rationale"], found["cut_off"]
    if order == "answer first":
        choice = found["choice"]
        reason, missing = reason_after(student, example, choice, label_format, max_new_tokens)
        cut = cut or missing
    shares = tuple(softmax(found["scores"]))
    return StudentAnswer(example, order, shares, found["choice"], found["text"], reason, cut)


def reason_after(
    student: Student, example: Example, option: int, label_format: str, limit: int
) -> tuple[str, bool]:
    """Let a student give the reason of an answer: it goes on after the option and "Reason:".

    Returns the text, and whether the limit of tokens ended it. The sequence is that of post_cot.
    """
    prompt = student.bos_ids + student.encode(prompt_text(example, "post_cot", label_format))
    state = prefill(student, [prompt])
    after = student.encode(label_text(example, option, label_format)) + student.encode("Reason:")
    ids = torch.tensor([after])
    append_tokens(student, state, ids, torch.ones_like(ids, dtype=torch.bool))
    (written,), _ = decode_greedily(student, state, limit, set())
    return student.decode(written).strip(), len(written) >= limit
