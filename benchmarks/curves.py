"""How cost grows with length, batch and student."""

from dataclasses import replace

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


def measure_curves(
    lengths: list[int],
    batches: list[int],
    options: list[int],
    steps: list[int],
    vocabularies: list[int],
    repeats: int,
    base_length: int = 128,
    base_batch: int = 8,
) -> pd.DataFrame:
    """How cost grows, on small random students.

    Curve, x, tokens (worked on), seconds (median of repeats, the curve's points turn about).
    training by length, batch and vocabulary; scoring by options; integrated gradients by steps.
    """
    rng, one = np.random.default_rng(0), small_student()
    question = Example("q", "What is it that melts in the sun on a warm day?", (), 0)
    rationale = (
        "It is cold and hard and it turns to water when it is warm, and so it melts in "
        "the sun on a warm day."
    )
    by_options = {
        k: [
            replace(
                question, id=f"q{i}", choices=tuple(f"thing number {j} of {i}" for j in range(k))
            )
            for i in range(base_batch)
        ]
        for k in options
    }
    asked = replace(question, choices=("ice", "stone"))
    students = {v: small_student(v, layers=1) for v in vocabularies}
    points = {}
    for n in lengths:
        points["training: length", n] = (
            base_batch * n,
            lambda b=random_batch(n, base_batch, rng): backward_step(one, b),
        )
    for n in batches:
        points["training: batch", n] = (
            n * base_length,
            lambda b=random_batch(base_length, n, rng): backward_step(one, b),
        )
    for v in vocabularies:
        points["training: vocabulary", v] = (
            base_batch * base_length,
            lambda s=students[v], b=random_batch(base_length, base_batch, rng): backward_step(s, b),
        )
    for k in options:
        count = sum(len(one.encode(label_text(e, o))) for e in by_options[k] for o in range(k))
        points["scoring: options", k] = (
            count,
            lambda e=by_options[k]: evaluate(one, e, "label_only", generate=False),
        )
    parts = split_sequence(one, asked, rationale)
    for n in steps:
        points["integrated gradients: steps", n] = (
            n * len(parts.rationale),
            lambda n=n: attribute_rationale(
                one, asked, rationale, "integrated_gradients", n_steps=n
            ),
        )
    seconds = interleaved_medians({point: call for point, (_, call) in points.items()}, repeats)
    table = pd.DataFrame(
        [
            {"curve": c, "x": x, "tokens": points[c, x][0], "seconds": s}
            for (c, x), s in seconds.items()
        ]
    )
    return table.assign(tokens_per_s=table["tokens"] / table["seconds"])


LAWS = {
    "training: length": (0, 1, 2),
    "training: batch": (0, 1),
    "training: vocabulary": (0, 1),
    "scoring: options": (0, 1),
    # The powers of x in seconds = sum of coefficient * x ** power
    "integrated gradients: steps": (0, 1),
}


def fit_laws(curves: pd.DataFrame) -> pd.DataFrame:
    """Each curve's seconds as a sum of the stated powers of x with coefficients from 0 on, by least
    squares of the relative errors (the shortest point counts as much as the longest): curve, law
    (text), r2, worst_error (of a point, as a share of it), coefficients.
    """
    rows = []
    for curve, part in curves.groupby("curve", sort=False):
        powers = LAWS[curve][: max(1, len(part) - 1)]
        x, y = part["x"].to_numpy(float), part["seconds"].to_numpy(float)
        basis = np.stack([x**p for p in powers], 1)
        scale = basis.max(0)
        found = nnls(basis / scale / y[:, None], np.ones(len(y)))[0] / scale
        rest, spread = ((y - basis @ found) ** 2).sum(), ((y - y.mean()) ** 2).sum()
        name = curve.split(": ")[1][0].upper() if "vocabulary" in curve else curve.split(": ")[1][0]
        law = " + ".join(
            f"{c:.2e}{['', f'·{name}', f'·{name}²'][p]}" for c, p in zip(found, powers)
        )
        rows.append(
            {
                "curve": curve,
                "points": len(part),
                "law": f"seconds = {law}",
                "r2": 1 - rest / spread if spread else np.nan,
                "worst_error": float(np.abs(basis @ found / y - 1).max()),
                "coefficients": found.tolist(),
            }
        )
    return pd.DataFrame(rows)


def plot_curves(curves: pd.DataFrame, laws: pd.DataFrame):
    """A small plot per curve: tokens/s measured (points) and by the law (line).

    Returns the figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(laws), figsize=(2.6 * len(laws), 2.4))
    for ax, law in zip(np.atleast_1d(axes), laws.itertuples()):
        part = curves[curves["curve"] == law.curve]
        x = np.linspace(part["x"].min(), part["x"].max(), 60)
        predicted = sum(c * x**p for c, p in zip(law.coefficients, LAWS[law.curve]))
        tokens = np.interp(x, part["x"], part["tokens"])
        ax.plot(part["x"], part["tokens_per_s"], "o", color="#0072B2")
        ax.plot(x, tokens / np.where(predicted > 0, predicted, np.nan), "-", color="#E69F00")
        ax.set(title=law.curve.replace(": ", "\n"), xlabel=law.curve.split(": ")[1], ylim=(0, None))
    np.atleast_1d(axes)[0].set_ylabel("tokens/s")
    return figure
