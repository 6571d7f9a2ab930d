"""What several notebooks say."""

from collections.abc import Callable

import pandas as pd

from cotdistill.hypotheses import MARGIN
from cotdistill.show import percent, points
from cotdistill.stats import MIN_SEEDS
from cotdistill.verdicts import MAX_AS_INTACT


def list_arms(values, text: Callable = str, separator: str = ", ") -> str:
    """List values by arm, such as "**pre_cot** 40 %, **post_cot** 50 %".

    values: a mapping or Series, arm -> value; text: a value -> its words.
    """
    return separator.join(f"**{arm}** {text(value)}" for arm, value in values.items())


def select_nonzero(rows: pd.DataFrame) -> pd.DataFrame:
    """Select rows whose interval (low, high) excludes zero."""
    return rows[(rows["low"] > 0) | (rows["high"] < 0)]


def section(title: str, text: str, shown: pd.DataFrame) -> str:
    """Head a section that only some studies have; empty where it has nothing to show."""
    return "" if shown.empty else f"## {title}\n\n{text}"


def answers_head(shown: pd.DataFrame) -> str:
    """Head the table of `summaries.answers_side_by_side`."""
    text = (
        "The same questions in all arms, with the first seed: the one that most arms get right, "
        "the one that most get wrong, then those on which they disagree most."
    )
    return section("What the students wrote", text, shown)


def weigh(rows: pd.DataFrame) -> int | None:
    """Weigh one difference by its measures: 1 or -1 where the intervals that exclude 0 agree.

    rows: of `summaries.paired_table`, one pair of arms. 0: no interval excludes 0; None: two that
    do are on different sides.
    """
    signs = {1 if low > 0 else -1 for low in select_nonzero(rows)["low"]}
    return None if len(signs) > 1 else next(iter(signs), 0)


def by_measures(rows: pd.DataFrame) -> str:
    """Write one difference by each measure: "-6.2 [-12.7, +0.2] points by forced choice, …"."""
    return ", ".join(f"{points(row)} points by {row['by']}" for row in rows.to_dict("records"))


def how_judged(count: int) -> str:
    """Say how predictions are judged. count: of the explanations that make them."""
    return (
        f"{count} explanations. A sign is met where the 95 % interval lies on that side "
        "of 0 and contradicted where it lies on the other; 0 is met where the 90 % interval lies "
        f"within {100 * MARGIN:g} points and contradicted where the 95 % interval lies outside. "
        "One contradiction fells an explanation. They do not exclude each other."
    )


def few_seeds(seeds: int) -> str:
    """Warn where there are too few seeds for a verdict; empty where there are enough."""
    if seeds >= MIN_SEEDS:
        return ""
    return (
        f"With fewer than {MIN_SEEDS} seeds, an interval cannot show how much seeds vary: "
        "no verdict is drawn from it."
    )


def bars(rows: pd.DataFrame) -> str:
    """List the bars of a figure with their intervals, highest first.

    rows: of `stats.accuracy_table`, those that the figure shows.
    """
    order = rows.sort_values("accuracy", ascending=False, kind="stable")
    texts = [f"**{row['arm']}** {percent(row)}" for _, row in order.iterrows()]
    return f"From high to low: {', '.join(texts)}." if texts else ""


def unchanged(shares: dict[str, float], intact: str) -> str:
    """Say how many training texts a corruption leaves unchanged.

    shares: arm -> share, of `unchanged_shares`; intact: what the arms are compared with.
    """
    found = list_arms(shares, lambda share: f"{100 * share:.0f} %") or "not recorded"
    return (
        f"Training texts that an arm leaves unchanged: {found}. Above "
        f"{100 * MAX_AS_INTACT:.0f} % an arm can hardly differ from {intact}, so equivalence is "
        "not claimed."
    )


def last_accuracies(last: pd.DataFrame) -> str:
    """Give the validation accuracy after the last epoch, of `summaries.last_epochs`."""
    reached = list_arms(last["accuracy"].dropna(), lambda value: f"{100 * value:.0f} %")
    missing = "not measured (there are no validation questions, or `select` is last)"
    return f"Validation accuracy after the last epoch, mean over seeds: {reached or missing}."


def questions_to_explore(count: int, student: str, note: str) -> str:
    """Say how many questions `explore.ipynb` offers, and whose tokens they are cut into."""
    return (
        f"{count} questions with a rationale to look at; tokens are those of **{student}** "
        f"({note})."
    )
