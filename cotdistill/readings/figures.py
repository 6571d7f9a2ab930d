"""What notebook 06 says of a study's verdicts."""

import pandas as pd

from cotdistill.breadth import SPLITS
from cotdistill.pooling import KINDS, Pool
from cotdistill.readings.common import section, select_nonzero
from cotdistill.show import percent, points
from cotdistill.stats import MIN_SEEDS
from cotdistill.verdicts import DECIDED, DIFFERENCES, NEGLIGIBLE_SINCE


def accuracy(forced: pd.DataFrame, chance: float) -> str:
    """Name the best arm by forced choice, and the widest interval."""
    best = forced.loc[forced["accuracy"].idxmax()]
    wide = forced.loc[(forced["high"] - forced["low"]).idxmax()]
    return (
        f"Highest by forced choice: **{best['arm']}**, {percent(best)}; chance is "
        f"{100 * chance:.1f} %. Widest interval: **{wide['arm']}**, {percent(wide)}."
    )


def verdicts(table: pd.DataFrame, forced: pd.DataFrame, note: str) -> str:
    """Count the claims by verdict, and what was not measured and why.

    table: of `verdicts.verdicts`; forced: accuracies by forced choice; note: the student's name.
    """
    counts = table["verdict"].value_counts()
    measured = table["verdict"] != "not measured"
    few = int((table.loc[measured, "seeds"] < MIN_SEEDS).sum())
    texts = [
        f"Of {len(table)} claims: "
        + ", ".join(f"**{n} {verdict}**" for verdict, n in counts.items())
        + f". The study has {int(forced['n'].iloc[0])} test questions and "
        f"{int(forced['seeds'].max())} seed(s); student: {note}."
    ]
    if few:
        texts.append(
            f"{few} of them rest on fewer than {MIN_SEEDS} seeds, which cannot show how much "
            "seeds vary: inconclusive by rule, whatever p is."
        )
    if not measured.all():
        missing = ", ".join(
            f"{r.claim} ({r.reason.rstrip('.')})" for r in table[~measured].itertuples()
        ).replace("*", r"\*")  # of an arm's pattern, and no emphasis
        texts.append(f"Not measured: {missing}.")
    return " ".join(texts)


def in_spite_of_p(table: pd.DataFrame, alpha: float) -> str:
    """List claims that stay inconclusive although their p is small, and why; empty for none."""
    rows = table[
        (table["verdict"] == "inconclusive")
        & (table["p_holm"] < alpha)
        & (table["seeds"] >= MIN_SEEDS).fillna(False).astype(bool)
    ]
    if rows.empty:
        return ""
    return "Inconclusive in spite of a small p:\n\n" + _list_claims(rows)


def detectable(table: pd.DataFrame) -> str:
    """Say how large an effect this study could find, for its open claims; empty where none is.

    table: of `verdicts.verdicts`, the measured claims. Only claims that arms differ have such a
    size.
    """
    rows = table[(table["verdict"] == "inconclusive") & table["detectable"].notna()]
    rows = rows[rows["rule"].isin(DIFFERENCES)]
    if rows.empty:
        return ""
    sizes = 100 * rows["detectable"]
    several = len(rows) > 1
    reach = f"{sizes.min():.1f} to {sizes.max():.1f}" if several else f"{sizes.min():.1f}"
    return (
        f"{len(rows)} claim{'s' if several else ''} that arms differ {'are' if several else 'is'} "
        f"open. The study finds a true effect of {reach} points in four of five repetitions; "
        "smaller ones may well exist. Halving that takes about four times as many seeds and "
        "questions."
    )


def shares(shown: pd.DataFrame) -> str:
    """Say how to read the shares of a gain that corrupted rationales retain; empty for none."""
    if shown.empty:
        return ""
    return (
        "What a corrupted rationale retains of the intact one's gain, by the claim's measure, with "
        "its 95 % interval (Fieller): 100 % is all of it. Where nothing was gained, there is no "
        "share to retain."
    )


def control(table: pd.DataFrame) -> str:
    """Say whether the positive control passed; empty for a study that is none.

    A study that registered other claims than these is none, whatever its world could measure.
    It passes where facts that only rationales state are learnt: post_cot beats label_only and word
    frequency there, each with p below .01 (not adjusted).
    """
    wanted = ("rationale_teaches", "rationale_beats_word_frequency")
    rows = table[table["claim"].isin(wanted) & table["estimate"].notna()]
    if "registered" in rows:
        rows = rows[rows["registered"] != "exploratory"]
    if len(rows) < len(wanted):
        return ""
    passed = ((rows["estimate"] > 0) & (rows["p"] < 0.01)).all()
    numbers = "; ".join(f"{r.contrast}: {points(r._asdict())} points" for r in rows.itertuples())
    head = "passed" if passed else "**failed**"
    return f"The positive control {head}. On facts that only rationales state, {numbers}."


def registered(table: pd.DataFrame, block: dict) -> str:
    """Say what was written down before the first run, and which measured claims were not."""
    if not block:
        return ""
    after = table[(table["registered"] == "exploratory") & table["estimate"].notna()]
    by_margin = (after["verdict"] == "negligible") & after["claim"].isin(block["claims"])
    by_margin &= str(block["date"]) < NEGLIGIBLE_SINCE
    late, small = list(after.loc[~by_margin, "claim"]), list(after.loc[by_margin, "claim"])
    arms = f" and the arms {', '.join(block['arms'])}" if block.get("arms") else ""
    added = f" Not registered, and so exploratory: {', '.join(late)}." if late else ""
    if small:
        added += (
            " Registered as claims, but called negligible by a margin that was set later, and so "
            f"exploratory: {', '.join(small)}."
        )
    return (
        f"Registered before the first run, on {block['date']} in commit {block['commit']}: the "
        f"claims {', '.join(block['claims'])}{arms}.{added}"
    )


def forest(table: pd.DataFrame) -> str:
    """Say which intervals of the forest plot exclude zero."""
    drawn = table[table["estimate"].notna() & (table["measure"] != "correct_per_100_tokens")]
    clear = select_nonzero(drawn)
    found = ", ".join(f"{r.contrast} ({100 * r.estimate:+.1f})" for r in clear.itertuples())
    return (
        f"{len(clear)} of {len(drawn)} intervals of this study exclude zero"
        f"{f': {found}' if found else ''}. Each is the 95 % interval of one contrast, not adjusted "
        "for their number."
    )


def pooled_head(pool: Pool | None) -> str:
    """Head the section over several studies; empty where there is one alone."""
    if pool is None:
        return ""
    text = (
        f"What {len(pool.studies)} studies of {KINDS[pool.kind]}, all trained with the "
        f"{pool.loss.replace('_', ' ')} loss, say together: a random-effects mean of each claim's "
        "effect (Paule and Mandel) with the interval of Hartung and Knapp. Verdicts follow the "
        "same rules as those of one study."
    )
    return f"## Over all studies\n\n{text}"


def pooled(pool: Pool) -> str:
    """Say which studies are pooled and which are missing, and how the claims stand."""
    cells = "; ".join(f"{name} ({d}, {s})" for name, (d, s) in pool.studies.items())
    counts = pool.table["verdict"].value_counts()
    texts = [
        f"Pooled: {cells}. Of {len(pool.table)} claims, "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        + ".",
        missing_cells(pool),
    ]
    alone = pool.table[pool.table["studies"] == 1]
    if len(alone):
        texts.append(
            f"Measured by one study alone, so not pooled: {', '.join(alone['claim'])}; the "
            "interval is that study's own."
        )
    sets = [cell[0] for cell in pool.studies.values()]
    if len(set(sets)) < len(sets):
        texts.append(
            "Studies of one dataset share its test questions, so they are not independent, and "
            "the intervals are somewhat too narrow."
        )
    return " ".join(filter(None, texts))


def missing_cells(pool: Pool) -> str:
    """Say which cells of dataset and student are not published yet; empty where none is missing."""
    if not pool.missing:
        return ""
    cells = "; ".join(f"{dataset}, {student}" for dataset, student in pool.missing)
    return f"Not there yet: {cells}."


def strata_head(effects: pd.DataFrame) -> str:
    """Head the section on strata; empty where nothing is known of the questions."""
    text = (
        "Exploratory: none of this was written down before a run. The paper's two contrasts of "
        "placement, by forced choice, within parts of the test questions: by length, by how many "
        "of the options' words the question uses, by whether its own rationale names the answer, "
        "and by whether the undistilled student is right."
    )
    return section("For which questions?", text, effects)


def strata(effects: pd.DataFrame) -> str:
    """Say which intervals within strata exclude zero, and what chance would bring."""
    if effects.empty:
        return ""
    clear = select_nonzero(effects)
    found = "; ".join(
        f"{r.contrast}, {r.split}: {r.stratum} ({100 * r.estimate:+.1f}, n = {r.n})"
        for r in clear.itertuples()
    )
    missing = [name for name in SPLITS.values() if name not in set(effects["split"])]
    left_out = (
        f" Not split by, as it is not known or hardly differs: {'; '.join(missing)}."
        if missing
        else ""
    )
    return (
        f"{len(clear)} of {len(effects)} intervals exclude zero{f': {found}' if found else ''}. "
        f"They are not adjusted for their number; by chance alone about "
        f"{0.05 * len(effects):.1f} would.{left_out}"
    )


def findings(table: pd.DataFrame) -> str:
    """List decided and open claims with their reasons, and count the rest."""
    parts = []
    for verdict in DECIDED:
        rows = table[table["verdict"] == verdict]
        head = f"**Findings: {verdict}, {len(rows)} of {len(table)} claims.**"
        parts += [head, _list_claims(rows)] if len(rows) else [head]
    open_claims = table[table["verdict"] == "inconclusive"]
    if len(open_claims):
        parts += [f"**Left open: {len(open_claims)}.**", _list_claims(open_claims)]
    missing = int((table["verdict"] == "not measured").sum())
    parts.append(
        f"Not measured: {missing}. Next: the same with more seeds, other data or another "
        "student, one file in `params/` each, or key tokens chosen by hand in `explore.ipynb`."
    )
    return "\n\n".join(parts)


def _list_claims(rows: pd.DataFrame) -> str:
    return "\n".join(f"- *{r.words}* {r.reason}" for r in rows.itertuples())
