"""How cost grows with length, batch size and student."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from benchmarks.clock import interleaved_medians
from benchmarks.inputs import random_batch, small_student
from benchmarks.profiles import backward_step
from cotdistill.arms import label_text
from cotdistill.attribution.methods import attribute_rationale
from cotdistill.attribution.score import split_sequence
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example
from cotdistill.students import Student

LENGTH, BATCH = 128, 8  # of a training step's sequences, where the other one varies
QUESTION = Example("q", "What is it that melts in the sun on a warm day?", (), 0)
RATIONALE = (
    "It is cold and hard and it turns to water when it is warm, and so it melts in the sun on a "
    "warm day."
)
# (curve, x) -> (tokens worked on, the call that is timed)
Points = dict[tuple[str, int], tuple[int, Callable[[], object]]]


@dataclass(frozen=True)
class CurveSizes:
    """The x of each curve.

    lengths       tokens per sequence of a training step
    batches       sequences of a training step
    options       options per question of a forced choice
    steps         integration steps
    vocabularies  rows of the head
    """

    lengths: list[int]
    batches: list[int]
    options: list[int]
    steps: list[int]
    vocabularies: list[int]


def measure_curves(sizes: CurveSizes, repeats: int) -> pd.DataFrame:
    """Measure how cost grows, on small random students.

    Curves: training by length, batch and vocabulary; scoring by options; integrated gradients by
    steps. All points take turns. Columns: curve, x, tokens (worked on), seconds (median of
    repeats), tokens_per_s.
    """
    student = small_student()
    points = (
        _training_points(student, sizes)
        | _scoring_points(student, sizes.options)
        | _gradient_points(student, sizes.steps)
    )
    seconds = interleaved_medians({point: call for point, (_, call) in points.items()}, repeats)
    table = pd.DataFrame(
        [
            {"curve": curve, "x": x, "tokens": points[curve, x][0], "seconds": spent}
            for (curve, x), spent in seconds.items()
        ]
    )
    return table.assign(tokens_per_s=table["tokens"] / table["seconds"])


def _training_points(student: Student, sizes: CurveSizes) -> Points:
    """Make the training steps of three curves: by length, by batch size, by vocabulary."""
    rng, points = np.random.default_rng(0), {}
    students = {v: small_student(v, layers=1) for v in sizes.vocabularies}
    for n in sizes.lengths:
        step = partial(backward_step, student, random_batch(n, BATCH, rng))
        points["training: length", n] = BATCH * n, step
    for n in sizes.batches:
        step = partial(backward_step, student, random_batch(LENGTH, n, rng))
        points["training: batch", n] = n * LENGTH, step
    for v in sizes.vocabularies:
        step = partial(backward_step, students[v], random_batch(LENGTH, BATCH, rng))
        points["training: vocabulary", v] = BATCH * LENGTH, step
    return points


def _scoring_points(student: Student, options: list[int]) -> Points:
    """Make the forced choices among each number of options, a batch of questions each."""
    points = {}
    for k in options:
        examples = [
            replace(
                QUESTION, id=f"q{i}", choices=tuple(f"thing number {j} of {i}" for j in range(k))
            )
            for i in range(BATCH)
        ]
        tokens = sum(len(student.encode(label_text(e, o))) for e in examples for o in range(k))
        call = partial(evaluate, student, examples, "label_only", generate=False)
        points["scoring: options", k] = tokens, call
    return points


def _gradient_points(student: Student, steps: list[int]) -> Points:
    """Make the integrated gradients of one rationale with each number of steps."""
    question = replace(QUESTION, choices=("ice", "stone"))
    tokens = len(split_sequence(student, question, RATIONALE).rationale)
    attribute = partial(attribute_rationale, student, question, RATIONALE, "integrated_gradients")
    return {
        ("integrated gradients: steps", n): (n * tokens, partial(attribute, n_steps=n))
        for n in steps
    }


# The powers of x in seconds = sum of coefficient * x ** power
LAWS = {
    "training: length": (0, 1, 2),
    "training: batch": (0, 1),
    "training: vocabulary": (0, 1),
    "scoring: options": (0, 1),
    "integrated gradients: steps": (0, 1),
}


def fit_laws(curves: pd.DataFrame) -> pd.DataFrame:
    """Fit each curve's seconds by a sum of the stated powers of x (LAWS).

    Coefficients are not negative. Least squares of the relative errors, so the shortest point
    counts as much as the longest. Columns: curve, points, law (text), r2, worst_error (of a point,
    as a share of it), coefficients.
    """
    rows = []
    for curve, part in curves.groupby("curve", sort=False):
        powers = LAWS[curve][: max(1, len(part) - 1)]
        x, y = part["x"].to_numpy(float), part["seconds"].to_numpy(float)
        basis = np.stack([x**p for p in powers], 1)
        scale = basis.max(0)
        fitted = nnls(basis / scale / y[:, None], np.ones(len(y)))[0] / scale
        rest, spread = ((y - basis @ fitted) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        name = curve.split(": ")[1][0].upper() if "vocabulary" in curve else curve.split(": ")[1][0]
        law = " + ".join(
            f"{c:.2e}{['', f'·{name}', f'·{name}²'][p]}"
            for c, p in zip(fitted, powers, strict=True)
        )
        rows.append(
            {
                "curve": curve,
                "points": len(part),
                "law": f"seconds = {law}",
                "r2": 1 - rest / spread if spread else np.nan,
                "worst_error": float(np.abs(basis @ fitted / y - 1).max()),
                "coefficients": fitted.tolist(),
            }
        )
    return pd.DataFrame(rows)


def plot_curves(curves: pd.DataFrame, laws: pd.DataFrame):
    """Draw a small plot per curve: tokens/s measured (points) and by the law (line).

    Returns the figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(laws), figsize=(2.6 * len(laws), 2.4))
    for ax, law in zip(np.atleast_1d(axes), laws.itertuples(), strict=True):
        part = curves[curves["curve"] == law.curve]
        x = np.linspace(part["x"].min(), part["x"].max(), 60)
        powers = LAWS[law.curve][: len(law.coefficients)]
        predicted = sum(c * x**p for c, p in zip(law.coefficients, powers, strict=True))
        tokens = np.interp(x, part["x"], part["tokens"])
        ax.plot(part["x"], part["tokens_per_s"], "o", color="#0072B2")
        ax.plot(x, tokens / np.where(predicted > 0, predicted, np.nan), "-", color="#E69F00")
        ax.set(title=law.curve.replace(": ", "\n"), xlabel=law.curve.split(": ")[1], ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel("tokens/s")
    return figure
