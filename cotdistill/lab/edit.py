"""Edit a rationale, and see what a student makes of it: option probabilities and token scores."""

from dataclasses import dataclass

import numpy as np
import torch

from cotdistill import corrupt
from cotdistill.arms import arm_from_name, label_text
from cotdistill.attribution.methods import attribute_rationale
from cotdistill.attribution.score import split_sequence
from cotdistill.decode import Decoding, append_tokens, prefill, select_rows
from cotdistill.encode import example_rng
from cotdistill.evaluate import score_options
from cotdistill.examples import Example
from cotdistill.students import Student

# One backward pass; occlusion and integrated gradients take several seconds on one thread
QUICK_METHOD = "input_x_gradient"


@dataclass(frozen=True)
class Outcome:
    """What a student makes of a question with an edited rationale before the answer.

    probabilities: of the options, a softmax of their log p in nats (`logps`); tokens and scores:
    of the rationale, as the student reads it (scores in nats, for the right option).
    """

    example: Example
    rationale: str
    probabilities: tuple[float, ...]
    logps: tuple[float, ...]
    tokens: tuple[str, ...]
    scores: np.ndarray
    method: str


class Editor:
    """Score edited rationales; the prompt of the question at hand runs once for all edits."""

    def __init__(self, label_format: str = "text"):
        self.label_format, self.known, self.state = label_format, None, None

    def option_logps(self, student: Student, example: Example, rationale: str) -> list[float]:
        """Return log p of each option in nats, after the prompt, the rationale and "Answer:"."""
        parts = split_sequence(student, example, rationale, self.label_format)
        asked = (student.fingerprint, tuple(parts.prefix))
        with torch.no_grad():
            if asked != self.known:
                self.known, self.state = asked, prefill(student, [parts.prefix])
            state: Decoding = select_rows(self.state, [0])
            after = torch.tensor([parts.rationale + parts.frame])
            append_tokens(student, state, after, torch.ones_like(after, dtype=torch.bool))
            options = [
                student.encode(label_text(example, i, self.label_format))
                for i in range(len(example.choices))
            ]
            return score_options(student, state, [options])[0][0]

    def read(
        self,
        student: Student,
        example: Example,
        rationale: str,
        method: str = QUICK_METHOD,
        **options,
    ) -> Outcome:
        """Score the options and every token of one rationale; options: n_steps, baseline."""
        logps = self.option_logps(student, example, rationale)
        found = attribute_rationale(
            student,
            example,
            rationale,
            method,
            label_format=self.label_format,
            rng=example_rng(example.id, 0, 4),
            **options,
        )
        tokens = tuple(student.decode([token]) for token in found.ids)
        shares = tuple(softmax(logps))
        return Outcome(example, rationale, shares, tuple(logps), tokens, found.scores, method)


def softmax(logps: list[float]) -> list[float]:
    """Return the shares of log probabilities: e^x by their sum."""
    odds = np.exp(np.asarray(logps, float) - np.max(logps))
    return (odds / odds.sum()).tolist()


def rationale_ids(student: Student, rationale: str) -> list[int]:
    """Return a rationale's ids, as a student reads it: after a space."""
    return student.encode(f" {rationale}" if rationale else "")


def delete_tokens(student: Student, rationale: str, places: list[int]) -> str:
    """Return the rationale without the tokens at these places."""
    ids, gone = rationale_ids(student, rationale), set(places)
    return student.decode([one for i, one in enumerate(ids) if i not in gone]).strip()


def shuffle_rationale(student: Student, rationale: str, unit: str, seed: int) -> str:
    """Return the rationale with its tokens, words or sentences in an order drawn by the seed."""
    if not rationale.strip():
        return ""
    arm, rng = arm_from_name("post_cot_shuffled", unit=unit), np.random.default_rng(seed)
    ids = rationale_ids(student, rationale)
    return student.decode(corrupt.corrupt_text(student, f" {rationale}", ids, arm, rng)).strip()
