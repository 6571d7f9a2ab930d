"""How far a rationale moves log p(label) at all, and whether a student needs it to know the label.

An attribution shares out what the rationale moves. Where that is little, because the student knows
its training questions by heart, there is little to share out.
"""

import numpy as np
import pandas as pd
import torch

from cotdistill.attribution.score import freeze_parameters, label_scorer, split_sequence
from cotdistill.examples import Example
from cotdistill.kernels.blocks import last_block_at_places
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


@torch.no_grad()
def label_logps(
    student: Student, examples: list[Example], label_format: str = "text"
) -> np.ndarray:
    """Return log p(label | question, no rationale) in nats, [N].

    In pre_cot's sequence with an empty rationale: the prompt, then "Answer:" at once.
    """
    model, found = student.model, []
    nothing = model.get_input_embeddings().weight.new_zeros(1, 0, model.config.hidden_size)
    with freeze_parameters(model), use_prepacked_linears(model), last_block_at_places(model):
        for example in examples:
            parts = split_sequence(student, example, "", label_format)
            found.append(label_scorer(student, parts)(nothing).item())
    return np.array(found, dtype=float)


def known_by_heart(
    groups: dict[str, dict[str, float]],
    before: dict[str, float],
    rng: np.random.Generator,
    n_boot: int = 2000,
) -> pd.DataFrame:
    """Compare what training did to log p(label) without any rationale, between groups of questions.

    groups: name -> question id -> log p in nats, "held out" among them; before: question id -> that
    of the undistilled student (its own, where it attributes). Labels differ in length and
    commonness, so each question is compared with itself before training. One row per group with a
    question: questions, n, before and value (means, nats), gain = value - before, and difference,
    low, high: its gain minus that of the held-out questions, with a 95 % bootstrap interval over
    the questions of both. Above 0: the student knows these questions by heart, at least in part.
    """
    names = ["questions", "n", "before", "value", "gain", "difference", "low", "high"]
    rows, held = [], None
    for name in sorted(groups, key=lambda name: name != "held out"):
        ids = list(groups[name])
        if not ids:
            continue
        old, new = (np.array([logps[i] for i in ids]) for logps in (before, groups[name]))
        gain = new - old
        draws = gain[rng.integers(len(ids), size=(n_boot, len(ids)))].mean(1)
        row = [name, len(ids), old.mean(), new.mean(), gain.mean()]
        if name == "held out":
            held = gain.mean(), draws
        elif held:
            low, high = np.percentile(draws - held[1], [2.5, 97.5])
            row += [gain.mean() - held[0], low, high]
        rows.append(row + [float("nan")] * (len(names) - len(row)))
    return pd.DataFrame(rows, columns=names)


def movement(curves: pd.DataFrame, without: dict[str, float]) -> pd.DataFrame:
    """Measure how far each rationale moves log p(label), in nats.

    curves: of `curves.faithfulness_all`; without: question id -> log p with no rationale at all.
    Columns id, full (with the whole rationale), baseline (every token replaced), without; moved =
    full - baseline; share = moved / -baseline, the part of what is missing to certainty that the
    rationale supplies (1: all of it; below 0: it misleads); moved_from_nothing = full - without.
    """
    columns = ["id", "full", "baseline", "without", "moved", "share", "moved_from_nothing"]
    if curves.empty:
        return pd.DataFrame(columns=columns)
    ends = curves.groupby("id", sort=False)
    table = pd.DataFrame(
        {
            "full": ends.apply(lambda rows: rows.loc[rows["tokens"].idxmin(), "deletion"]),
            "baseline": ends.apply(lambda rows: rows.loc[rows["tokens"].idxmax(), "deletion"]),
        }
    ).reset_index()
    table["without"] = table["id"].map(without).astype(float)
    table["moved"] = table["full"] - table["baseline"]
    table["share"] = table["moved"] / -table["baseline"]
    table["moved_from_nothing"] = table["full"] - table["without"]
    return table[columns]


def movement_quartiles(moved: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """Show quartiles of what rationales move, and beside them the error of integrated gradients.

    moved: of `movement`; gaps: of `checks.completeness`, empty where they were not compared. One
    row per quantity: 25 %, median, 75 %.
    """
    values = {
        "whole rationale against replaced tokens (nats)": moved["moved"],
        "as a share of -log p with replaced tokens": moved["share"],
        "whole rationale against none (nats)": moved["moved_from_nothing"],
    }
    if len(gaps):
        values["error of integrated gradients (nats)"] = gaps["delta"].abs()
        values["error as a share of the change"] = gaps["relative"]
    table = pd.DataFrame({name: v.quantile([0.25, 0.5, 0.75]) for name, v in values.items()}).T
    return table.set_axis(["25 %", "median", "75 %"], axis=1).rename_axis("log p(label)")
