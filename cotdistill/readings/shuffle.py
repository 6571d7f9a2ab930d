"""What notebook 04 says of corrupted rationales."""

import pandas as pd

from cotdistill.arms import PROMPTED, Arm
from cotdistill.readings.common import by_measures, few_seeds, select_nonzero, weigh
from cotdistill.show import percent


def arms(grid: list[Arm], seeds: list[int]) -> str:
    """Say which corrupted arms are trained, with how many seeds."""
    labels = ", ".join(f"**{arm.label}**" for arm in grid)
    return f"{len(grid)} corrupted arms x {len(seeds)} seed(s): {labels}."


def measures_apart(forced: pd.DataFrame, written: pd.DataFrame) -> str:
    """Name the trained arm whose written answers are furthest below its forced choice."""
    trained = ~forced["arm"].isin(PROMPTED)
    if not trained.any():
        return ""
    apart = (forced["accuracy"] - written["accuracy"])[trained].idxmax()
    return (
        "The figure shows forced choice. Written answers are furthest below it for "
        f"**{forced['arm'][apart]}**: {percent(written.loc[apart])} against "
        f"{percent(forced.loc[apart])}."
    )


def costs(drops: pd.DataFrame, seeds: int) -> str:
    """Say which corruptions change the accuracy of their intact arm.

    drops: of `summaries.paired_table`, the corrupted arm minus the intact one, by each measure.
    """
    if drops.empty:
        return "Nothing to compare: the intact arms are not part of this study (`arms`)."
    clear = select_nonzero(drops)
    found = ", ".join(f"{r.arm_a} by {r.by} ({100 * r.estimate:+.1f})" for r in clear.itertuples())
    text = (
        f"{len(clear)} of {len(drops)} intervals exclude zero{f': {found}' if found else ''}. The "
        "others show no effect, which is not evidence that there is none; "
        "[6 · Figures](06_figures.ipynb) tests for that, for post_cot_shuffled by p(gold)."
    )
    return f"{text} {few_seeds(seeds)}".strip()


def written_rationales(pre: pd.DataFrame, rationale_limit: int, label_limit: int) -> str:
    """Say how often a student that writes its rationale first fails to reach an answer.

    Empty where none was trained. pre: rows of pre_cot arms (written answers) by arm; limits in
    tokens.
    """
    if pre.empty:
        return ""
    texts = [
        f"**{arm}**: {100 * row['cut_off'] / row['answers']:.0f} % of the answers were cut off, in "
        f"the rationale (at {rationale_limit} tokens) or in the label (at {label_limit}), and "
        f"{100 * row['parse_failures'] / row['answers']:.0f} % name no option."
        for arm, row in pre.iterrows()
    ]
    return (
        f"{' '.join(texts)} An answer whose rationale was cut off counts as wrong by forced choice "
        "too: the student never came to an answer. Its p(gold) stays as it was scored."
    )


def findings(drops: pd.DataFrame, forced: pd.DataFrame, controls: list[str], note: str) -> str:
    """Say what each corruption does to its intact arm, in words that follow from the numbers.

    The paper claims that a shuffled rationale after the label does no harm, and one before it does.
    """
    seeds = int(forced["seeds"].max())
    texts = [
        f"{_corruption_words(*pair, rows, seeds)}: {by_measures(rows)}."
        for pair, rows in drops.groupby(["arm_a", "arm_b"], sort=False)
    ]
    asked = (
        ""
        if any(controls)
        else "Not part of this study: another question's rationale, and dots (`controls` is "
        "empty). "
    )
    return (
        f"**Findings.** {' '.join(texts) or 'Nothing to compare.'} "
        f"(n = {forced['n'].iloc[0]} questions, {seeds} seed(s), {note}; "
        f"against the intact arm). {asked}{few_seeds(seeds)} "
        "Next: [5 · Attribute and mask](05_attribute_and_mask.ipynb)."
    ).replace("  ", " ")


def _corruption_words(corrupted: str, intact: str, rows: pd.DataFrame, seeds: int) -> str:
    """Put one corruption's effect into words; rows: one per measure. Few seeds claim nothing.

    A claim is turned round by its own measure, p(gold), where that is there.
    """
    if few_seeds(seeds):
        return f"nothing is claimed of {corrupted} against {intact}"
    shuffled = corrupted.startswith(f"{intact}_shuffled")
    words = {
        1: f"{corrupted} does better than {intact}",
        -1: f"{corrupted} does worse than {intact}",
        0: f"{corrupted} is not told apart from {intact}",
        None: f"the measures disagree on {corrupted} against {intact}",
    }[weigh(rows)]
    claimed = rows[rows["by"] == "p(gold)"]
    sign = weigh(claimed if len(claimed) else rows)
    opposite = shuffled and (sign == 1 or sign == -1 and intact == "post_cot")
    return f"The opposite of the claim: {words}" if opposite else words
