"""What notebook 02 says of the study's setting and of how its students learn."""

import pandas as pd

from cotdistill.arms import PROMPTED, Arm, format_target, prompt_text
from cotdistill.examples import Example
from cotdistill.readings.common import list_arms


def setting(arms: list[Arm], seeds: list[int], blocks: int, train) -> str:
    """Say how much is trained: arms, seeds, blocks of the student, epochs and batches.

    blocks: how many the student has; train: a `TrainConfig`.
    """
    frozen = f"{train.frozen_layers} of the student's {blocks} blocks are frozen"
    frozen += ", and so are its embeddings" if train.frozen_layers else ""
    return (
        f"{len(arms)} arms, {len(seeds)} seed(s). {frozen}. {train.epochs} epochs in batches of "
        f"{train.batch_size * train.grad_accum}, at a learning rate of {train.lr:g}."
    )


def targets(example: Example, rationale: str, arms: list[Arm], label_format: str) -> str:
    """Write one question as each arm reads it, as plain text.

    What the arm learns to write follows after `▮`.
    """
    parts = []
    for arm in arms:
        pieces = format_target(example, rationale, arm, label_format)
        target = "".join(text for _, text in pieces) if arm.is_trained else ""
        prompt = prompt_text(example, arm.asked_as, label_format)
        parts.append(f"--- {arm.label}\n{prompt}▮{target}")
    return "\n".join(parts)


def questions(used: int, total: int, left_out: dict[str, int], train: int, test: int) -> str:
    """Say how many training questions every arm can use, and what is left out and why.

    used: questions that fit, of `total`; train, test: questions of one run.
    """
    reasons = ", ".join(f"{n} ({why})" for why, n in left_out.items()) or "none"
    return (
        f"{used} of {total} training questions can be used by every arm; "
        f"left out: {reasons}. Each run trains on {train} and is tested on {test}."
    )


def lengths(table: pd.DataFrame) -> str:
    """Give the mean length and the label's share of the loss, of `summaries.target_lengths`."""
    if table.empty:
        return ""
    share = table.columns[-1]
    arms = ", ".join(
        f"**{arm}** {row['mean']:.0f} and {row[share]:.0f} %" for arm, row in table.iterrows()
    )
    return f"Mean length in tokens, and the label's share of the loss: {arms}."


def label_losses(last: pd.DataFrame) -> str:
    """Give the label's training loss in the first and in the last epoch.

    last: of `summaries.last_epochs`.
    """
    rows = last.dropna(subset=["first", "last"])
    return "; ".join(
        f"**{arm}** {row['first']:.2f} → {row['last']:.2f}" for arm, row in rows.iterrows()
    )


def losses(last: pd.DataFrame) -> str:
    """Say how far the label's loss fell, as a sentence."""
    return (
        "Training loss of the label's tokens in nats per token, mean over the first and over the "
        f"last epoch: {label_losses(last) or 'nothing was trained'}."
    )


def cost(table: pd.DataFrame) -> str:
    """Give seconds of training and of the test set's answers, of `summaries.cost_table`."""
    if table.empty:
        return ""
    seconds = {
        arm: f"{row['train_seconds']:.0f} and {row['evaluate_seconds']:.0f}"
        for arm, row in table.iterrows()
    }
    return (
        "Seconds of an arm's fastest run, for training and for the test set's answers: "
        f"{list_arms(seconds, separator='; ')}."
    )


def findings(results: pd.DataFrame, last: pd.DataFrame, note: str) -> str:
    """Say how many students were trained, for how long, and how far their loss fell.

    results: of `run_grid`; note: the student's name.
    """
    trained = results[~results["arm"].isin(PROMPTED)]
    return (
        f"**Findings.** {len(trained)} students trained: "
        f"{trained['train_seconds'].sum() / 60:.1f} minutes of training, "
        f"{results['evaluate_seconds'].sum() / 60:.1f} of evaluation, some of it perhaps in an "
        "earlier session. Training loss of the label, first to last epoch: "
        f"{label_losses(last) or 'nothing was trained'}. Student: {note}. "
        "Next: [3 · Evaluate](03_evaluate.ipynb)."
    )
