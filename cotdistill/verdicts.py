"""From claims and contrasts to verdicts: what the data say about each claim, and why."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats as sps
from statsmodels.stats.meta_analysis import combine_effects

from cotdistill.errors import DataError
from cotdistill.files import atomic_write, read_json, write_json
from cotdistill.paths import root, study_dir
from cotdistill.runs.provenance import provenance
from cotdistill.stats import (
    MEASURED_BY,
    MEASURES,
    MIN_SEEDS,
    SHARED_SEED,
    TwoLevel,
    accuracy_tables,
    contrast_table,
    estimate_contrast,
    holm,
    one_sided,
    p_value,
    required_size,
    variance_parts,
)
from cotdistill.study import Study


def save_verdicts(
    study: Study, table: pd.DataFrame, accuracies: pd.DataFrame, written: pd.DataFrame
) -> None:
    """Write verdicts.json and verdicts.csv, for the report, the README and pooling.

    verdicts.json also holds what the verdicts rest on: accuracies by forced choice and by the
    written answer, data, student and provenance.
    """
    folder = study.folder
    write_json(
        folder / "verdicts.json",
        {
            "study": study.name,
            "dataset": study.setting.data["dataset"],
            "student": study.note,
            "provenance": provenance(),
            "verdicts": json.loads(table.to_json(orient="records")),
            "accuracy": json.loads(accuracies.to_json(orient="records")),
            "accuracy_written": json.loads(written.to_json(orient="records")),
        },
    )
    with atomic_write(folder / "verdicts.csv") as part:
        table.to_csv(part, index=False)


def load_verdicts(study: str) -> pd.DataFrame:
    """Load the verdict table of a study that has run."""
    return pd.DataFrame(
        read_json(study_dir(study) / "verdicts.json", f"`make figures STUDY={study}`")["verdicts"]
    )


@dataclass(frozen=True)
class Judgement:
    """What a study's runs say: accuracies by both measures, and a verdict per claim.

    forced, written: `stats.accuracy_table` by forced choice and by the written answer.
    table: of `verdicts`. record: what verdicts.json holds.
    """

    forced: pd.DataFrame
    written: pd.DataFrame
    table: pd.DataFrame
    record: dict

    @property
    def measured(self) -> pd.DataFrame:
        """The claims whose arms were all run."""
        return self.table[self.table["verdict"] != "not measured"]


def judge_study(study: Study, alpha: float, bootstrap: int) -> Judgement:
    """Judge the runs of all completed stages; write verdicts.json and verdicts.csv.

    The one maker of verdicts: notebook 06 and `make verdicts` both call it. alpha: the level
    after Holm; bootstrap: resamples behind an interval.
    """
    from cotdistill.runs.results import completed_stages, load_predictions, unchanged_shares

    rng, stages = np.random.default_rng(0), completed_stages(study)
    predictions = load_predictions(study, stages)
    forced, written = accuracy_tables(predictions, rng, bootstrap)
    table = verdicts(
        predictions,
        load_claims(root() / "params" / "claims.yaml"),
        rng,
        alpha=alpha,
        n_boot=bootstrap,
        as_intact=unchanged_shares(study, stages),
    )
    save_verdicts(study, table, forced, written)
    record = read_json(study.folder / "verdicts.json", "this command")
    return Judgement(forced, written, table, record)


def _judge_side(level: TwoLevel, null: float, direction: str) -> tuple[float, str]:
    """Return the two-sided p at `null`; the side on which the estimate lies decides."""
    above = bool(level.estimate > null)
    agrees = above != (direction == "less")
    return float(p_value(level, null)), "supported" if agrees else "contradicted"


def _judge_equivalence(level: TwoLevel, margin: float, direction: str) -> tuple[float, str]:
    """Judge equivalence by two one-sided tests (TOST, Schuirmann 1987).

    Support has the p of TOST, contradiction twice the one-sided p beyond the nearer margin. The
    smaller of the two counts: at most one of the two null hypotheses is true, so each keeps
    its level.
    """
    inside = max(one_sided(level, -margin, True), one_sided(level, margin, False))
    beyond = min(1.0, 2 * min(one_sided(level, margin, True), one_sided(level, -margin, False)))
    return (inside, "supported") if inside <= beyond else (beyond, "contradicted")


def _side_words(estimate: float, null: float, name: str) -> tuple[str, str]:
    return f"{'above' if estimate > null else 'below'} {name}", f"not told apart from {name}"


def _equivalence_words(estimate: float, margin: float) -> tuple[str, str]:
    name = f"±{100 * margin:g} points"
    return (
        f"shown to lie {'within' if abs(estimate) <= margin else 'beyond'} {name}",
        f"shown to lie neither within nor beyond {name}",
    )


@dataclass(frozen=True)
class Rule:
    """How a claim of one kind is judged, and in which words.

    directions    what `direction` may be in claims.yaml
    judge         (two-level estimate, margin, direction) -> (p, the verdict that a small p brings)
    words         (estimate, margin) -> (what a small p shows, what a large one leaves open)
    needs_margin  whether the claim states a margin above 0; the other rules have margin 0
    arms          the arms of its contrast: "ab" is a - b, "abcd" is (a - b) - (c - d)
    sign          what stands before the margin in a table
    """

    directions: tuple[str, ...]
    judge: Callable[[TwoLevel, float, str], tuple[float, str]]
    words: Callable[[float, float], tuple[str, str]]
    needs_margin: bool = False
    arms: str = "ab"
    sign: str = ""


DIFFERENCE = Rule(
    directions=("greater", "less"),
    judge=lambda level, margin, direction: _judge_side(level, 0.0, direction),
    words=lambda estimate, margin: _side_words(estimate, 0.0, "0"),
)
RULES = {
    "difference": DIFFERENCE,
    "interaction": replace(DIFFERENCE, arms="abcd"),
    "equivalence": Rule(
        directions=("equal",),
        judge=_judge_equivalence,
        words=_equivalence_words,
        needs_margin=True,
        sign="±",
    ),
    "noninferiority": Rule(
        directions=("not_less",),
        judge=lambda level, margin, direction: _judge_side(level, -margin, direction),
        words=lambda estimate, margin: _side_words(estimate, -margin, f"-{100 * margin:g} points"),
        needs_margin=True,
        sign="-",
    ),
}
# Above this share of equal training texts, two arms are not shown to be equivalent: they could
# hardly differ
MAX_AS_INTACT = 0.2


def load_claims(path: str | Path) -> list[dict]:
    """Read params/claims.yaml.

    A claim: id, words, section, contrast, measure, direction, margin, rule, and perhaps `requires`,
    the id of a claim without whose support this one says nothing (that shuffling costs nothing
    means little where there was nothing to lose). `contrast` maps a and b (for an interaction also
    c and d: (a - b) - (c - d)) to lists of arm labels, best first. In a label `*` stands for
    anything but "," and "]"; $1, $2 repeat in a later arm what the first, second `*` (or text in
    parentheses) stood for. Raises DataError naming the file, the claim and what is wrong with it.
    """
    try:
        claims = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(claims, list):
        raise DataError(f"{path}: found a {type(claims).__name__}; expected a list of claims")
    for number, claim in enumerate(claims, 1):
        name = f"number {number}"
        if isinstance(claim, dict):
            name = claim.get("id", name)
        problem = _claim_problem(claim)
        if problem:
            raise DataError(f"{path}: claim {name}: {problem}")
    _check_claim_ids(path, claims)
    return claims


def _claim_problem(claim) -> str:
    """Say what is wrong with one claim by itself, and what is expected; empty for nothing."""
    fields = ("id", "words", "section", "contrast", "measure", "direction", "margin", "rule")
    if not isinstance(claim, dict) or set(claim) - {"requires"} != set(fields):
        found = sorted(claim) if isinstance(claim, dict) else claim
        return f"fields are {found!r}; expected {', '.join(fields)} (and perhaps requires)"
    rule = RULES.get(claim["rule"]) if isinstance(claim["rule"], str) else None
    if rule is None or claim["direction"] not in rule.directions:
        known = ", ".join(f"{r}: {' or '.join(x.directions)}" for r, x in RULES.items())
        return (
            f"rule {claim['rule']!r} with direction {claim['direction']!r}; expected one of {known}"
        )
    if claim["measure"] not in MEASURES:
        return f"measure is {claim['measure']!r}; expected one of {', '.join(MEASURES)}"
    contrast = claim["contrast"]
    if (
        not isinstance(contrast, dict)
        or "".join(sorted(contrast)) != rule.arms
        or not all(isinstance(v, list) and v for v in contrast.values())
    ):
        return (
            f"contrast is {contrast!r}; expected a list of arm labels for each of "
            f"{', '.join(rule.arms)}"
        )
    margin, bounded = claim["margin"], rule.needs_margin
    if not isinstance(margin, (int, float)) or (margin <= 0) == bounded or margin < 0:
        wanted = "a fraction above 0, such as 0.02 for two points"
        wanted = wanted if bounded else f"0 for rule {claim['rule']}"
        return f"margin is {margin!r}; expected {wanted}"
    return ""


def _check_claim_ids(path: str | Path, claims: list[dict]) -> None:
    """Raise DataError for an id that two claims have, and for a `requires` that names none."""
    repeated = [
        name for name, times in Counter(claim["id"] for claim in claims).items() if times > 1
    ]
    if repeated:
        raise DataError(f"{path}: claim {repeated[0]} appears more than once; expected unique ids")
    standing = [claim["id"] for claim in claims if "requires" not in claim]
    for claim in claims:
        if "requires" in claim and claim["requires"] not in standing:
            raise DataError(
                f"{path}: claim {claim['id']}: requires {claim['requires']!r}; "
                "expected the id of a claim that requires none"
            )


def _by_number(label: str) -> list:
    """Make a sort key of arm labels: text as text, numbers by size, those below 1 last."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(part) < 1, float(part)) if i % 2 else part for i, part in enumerate(parts)]


def resolve_contrast(contrast: dict[str, list[str]], arms: list[str]) -> dict[str, str] | None:
    """Find the first combination of measured arms that fits a claim's patterns.

    Returns {"a": label, "b": label, ...} or None. Patterns are tried in their order, the labels
    that fit a pattern by their numbers, counts (1 and above) before fractions; see `load_claims`
    for `*`, `$1`.
    """

    def fill(places, stars):
        if not places:
            return {}
        place, *rest = places
        for pattern in contrast[place]:
            pattern = re.sub(
                r"\$(\d)",
                lambda m: stars[int(m[1]) - 1] if int(m[1]) <= len(stars) else m[0],
                pattern,
            )
            regex = (
                re.escape(pattern)
                .replace(r"\*", r"([^,\]]*)")
                .replace(r"\(", "(")
                .replace(r"\)", ")")
            )
            for arm in sorted(set(arms), key=_by_number):
                match = re.fullmatch(regex, arm)
                below = fill(rest, stars + list(match.groups())) if match else None
                if below is not None and arm not in below.values():
                    return {place: arm} | below
        return None

    return fill(sorted(contrast), [])


def _number(x: float, measure: str) -> str:
    return f"{x:+.2f}" if measure == "correct_per_100_tokens" else f"{100 * x:+.1f}"


def estimate_text(row: pd.Series) -> str:
    """Write a verdict's estimate with its 95 % interval.

    "-0.3 [-8.0, +7.4]", in points or, as its contrast says, right answers per 100 tokens.
    """
    value, low, high = (_number(row[name], row["measure"]) for name in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}]"


def _reason(claim: dict, row: dict, alpha: float, empty: str) -> str:
    """Write one sentence for the verdict, with the numbers that it rests on.

    empty: why support says nothing here, "" where it does say something.
    """
    value, low, high = (_number(row[k], claim["measure"]) for k in ("estimate", "low", "high"))
    number = (
        value
        + ("" if claim["measure"] == "correct_per_100_tokens" else " points")
        + MEASURED_BY[claim["measure"]]
    )
    if row["seeds"] == 1:
        return (
            "One seed: how much seeds vary is unknown, so nothing is claimed. In this one "
            f"run {number} ({low} to {high}, questions only)."
        )
    found = f"{number}, 95 % interval {low} to {high}"
    if row["seeds"] < MIN_SEEDS:
        return (
            f"{row['seeds']} seeds: at least {MIN_SEEDS} are needed to judge how much they "
            f"vary. {found}."
        )
    yes, no = RULES[claim["rule"]].words(row["estimate"], claim["margin"])
    if row["verdict"] != "inconclusive" or row["p_holm"] < alpha:
        return f"{found}: {yes} (p = {row['p_holm']:.2g} after Holm)" + (
            f", but {empty}." if empty else "."
        )
    late = " once all claims are counted" if row["p"] < alpha else ""
    return f"{found}: {no}{late} (p = {row['p_holm']:.2g} after Holm)."


def _needed_text(
    claim: dict, values: np.ndarray, effect: float, alpha: float, rng: np.random.Generator
) -> str:
    """Say how many seeds and questions would decide the claim."""
    if claim["measure"] == "correct_per_100_tokens":
        return (
            f"at least {MIN_SEEDS} seeds" if len(values) < MIN_SEEDS else "more seeds or questions"
        )
    bounded = RULES[claim["rule"]].needs_margin
    seeds, questions = values.shape
    some = MIN_SEEDS if seeds == 1 else max(seeds, 10)
    size = required_size(
        variance_parts(values),
        some,
        questions,
        0.0 if bounded else effect,
        rng=rng,
        rule=claim["rule"],
        margin=claim["margin"],
        alpha=alpha,
    )
    aim = (
        f"to show it within {100 * claim['margin']:g} points if there is no difference"
        if bounded
        else f"to see a {100 * effect:g}-point difference"
    )
    count = f"{size['questions']:,}" if size["questions"] else "over 100,000"
    by_questions = f"{some} seeds of {count} questions"
    if seeds == 1:
        return f"at least {by_questions} {aim}, even if seeds agreed perfectly"
    return (
        f"{size['seeds'] or 'over 100'} seeds of {questions:,} questions, or {by_questions}, "
        f"{aim} (80 % power)"
    )


COLUMNS = [
    "study",
    "claim",
    "words",
    "section",
    "contrast",
    "measure",
    "rule",
    "margin",
    "estimate",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "reason",
    "n",
    "seeds",
    "covers",
    "by_seed",
    "needed",
]


def verdicts(
    predictions: pd.DataFrame,
    claims: list[dict],
    rng: np.random.Generator,
    *,
    alpha: float = 0.05,
    effect: float = 0.02,
    n_boot: int = 2000,
    as_intact: dict[str, float] | None = None,
) -> pd.DataFrame:
    """Judge each claim by what one study's predictions say.

    Columns: study, claim, words, section, contrast (the arms compared, and by what, unless by
    forced choice), measure, rule, margin, estimate, low, high (95 %, not adjusted), p, p_holm (over
    the study's measured claims), verdict, reason, n, seeds, covers, by_seed (each seed's estimate,
    for the dots of figures), needed.

    verdict is one of

    - "not measured": an arm is missing, or the arms share no seed.
    - "inconclusive": fewer than MIN_SEEDS seeds, whatever p is, because the interval then hardly
      knows how much seeds vary; or support that would say nothing: the claim that this one
      `requires` is not supported, or an equivalence is of two arms of which more than
      MAX_AS_INTACT of the training texts are the same (as_intact: arm -> that share,
      `results.unchanged_shares`); or p_holm of alpha or more.
    - "supported" or "contradicted": p_holm < alpha, on the side that the claim's `Rule` says.

    needed is filled where inconclusive: the size for 80 % power of a verdict, at alpha / (number of
    measured claims), so that Holm is paid for. Raises DataError on predictions of several studies
    and on arms that do not share their questions.
    """
    study = "; ".join(map(str, predictions["study"].unique())) if "study" in predictions else ""
    arms, rows, tables = sorted(set(predictions["arm"])), [], []
    for column in ("study", "dataset", "student"):
        if column in predictions and predictions[column].nunique() > 1:
            raise DataError(
                f"predictions hold several values of {column} "
                f"({', '.join(map(str, predictions[column].unique()))}); expected "
                "one study at a time"
            )
    for claim in claims:
        row, table = _measure_claim(claim, predictions, arms, rng, n_boot)
        rows.append({"study": study} | row)
        tables.append(table)
    adjusted = holm(np.array([row.get("p", np.nan) for row in rows]))
    measured = int((~np.isnan(adjusted)).sum())
    for claim, row, table, p_holm in zip(claims, rows, tables, adjusted, strict=True):
        row |= dict(p_holm=p_holm, needed="")
        if table is not None and (row["seeds"] < MIN_SEEDS or p_holm >= alpha):
            row["verdict"] = "inconclusive"
            row["needed"] = _needed_text(claim, table.to_numpy(), effect, alpha / measured, rng)
    supported = {row["claim"] for row in rows if row["verdict"] == "supported"}
    for claim, row, table in zip(claims, rows, tables, strict=True):
        empty = _empty_support(claim, row, supported, (as_intact or {}).get(row.get("arm"), 0.0))
        row["verdict"] = "inconclusive" if empty else row["verdict"]
        if table is not None:
            row["reason"] = _reason(claim, row, alpha, empty)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "seeds": "Int64"})


def _measure_claim(
    claim: dict,
    predictions: pd.DataFrame,
    arms: list[str],
    rng: np.random.Generator,
    n_boot: int,
) -> tuple[dict, pd.DataFrame | None]:
    """Measure one claim: its row, with the verdict that a small p would bring, and its table.

    The table is None, and the verdict "not measured", where an arm or a common seed is missing.
    """
    row = dict(claim=claim["id"], words=" ".join(claim["words"].split()), section=claim["section"])
    row |= {k: claim[k] for k in ("measure", "rule", "margin")}
    found = resolve_contrast(claim["contrast"], arms)
    missing = _missing_reason(claim, predictions, arms, found)
    if missing:
        return row | dict(verdict="not measured", contrast="", reason=missing), None
    signs = zip("abcd", (1.0, -1.0, -1.0, 1.0), strict=True)
    weights = {found[place]: sign for place, sign in signs if place in found}
    contrast = (
        " − ".join(found[p] for p in "ab")
        if "c" not in found
        else f"({found['a']} − {found['b']}) − ({found['c']} − {found['d']})"
    )
    table = contrast_table(predictions, weights, claim["measure"])
    result, level = estimate_contrast(table, claim["measure"], rng, n_boot)
    p, verdict = RULES[claim["rule"]].judge(level, claim["margin"], claim["direction"])
    row["contrast"] = contrast + MEASURED_BY[claim["measure"]]
    row["by_seed"] = table.mean(axis=1).tolist()
    return row | result | dict(p=p, verdict=verdict, arm=found["a"]), table


def _missing_reason(
    claim: dict, predictions: pd.DataFrame, arms: list[str], found: dict[str, str] | None
) -> str:
    """Say why a claim can't be measured: arms not run, or no common seed; else empty."""
    if found is None:
        plain = {
            place: [re.sub(r"\$\d", "*", pattern) for pattern in patterns]
            for place, patterns in claim["contrast"].items()
        }
        missing = [x[0] for x in plain.values() if resolve_contrast({"a": x}, arms) is None]
        wanted = re.sub(r"[()]", "", " and ".join(missing)) or "arms that belong together"
        return f"No run of {wanted}."
    seeds = [set(predictions.loc[predictions["arm"] == arm, "seed"]) for arm in found.values()]
    trained = [s for s in seeds if s != {SHARED_SEED}] or [{SHARED_SEED}]
    if not set.intersection(*trained):
        return f"No seed was run for all of {', '.join(found.values())}."
    return ""


def _empty_support(claim: dict, row: dict, supported: set[str], alike: float) -> str:
    """Say why the support of a claim would say nothing; empty where it says something.

    supported: ids of supported claims. alike: the share of the arm's training texts that equal the
    intact ones.
    """
    if row["verdict"] != "supported":
        return ""
    if claim.get("requires", row["claim"]) not in supported:
        return f"{claim['requires']} is not supported, so there was no gain to keep"
    if claim["rule"] == "equivalence" and alike > MAX_AS_INTACT:
        return (
            f"{100 * alike:.0f} % of the training texts of {row['arm']} are the intact "
            "ones, so the two could hardly differ"
        )
    return ""


def pool_with(
    table: pd.DataFrame, studies: list[str], alpha: float
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Join a study's verdicts with those of other studies that have run, and pool them.

    studies: names, of which empty ones are ignored. The second table is None where there are none.
    """
    tables = [table, *(load_verdicts(name) for name in studies if name)]
    return pd.concat(tables), pool(tables, alpha=alpha) if len(tables) > 1 else None


def pool(tables: list[pd.DataFrame], alpha: float = 0.05) -> pd.DataFrame:
    """Take the random-effects mean of each claim's estimate over studies.

    tables: verdict tables, one a study. One study alone is returned as it is. A study in which
    nothing varied, whose interval has no width, says nothing of its error and is left out
    (`studies` counts the others). Studies on the same test set are not independent. Columns: claim,
    words, measure, studies, one_seed_studies (their intervals ignore seeds), estimate, low, high,
    p, tau2, i2 (share of the spread that is between studies); see `_pool_claim`.
    """
    joined = pd.concat(tables, ignore_index=True)
    joined = joined[joined["estimate"].notna() & (joined["high"] > joined["low"])]
    rows = []
    for (claim, words, measure), group in joined.groupby(["claim", "words", "measure"], sort=False):
        row = dict(
            claim=claim,
            words=words,
            measure=measure,
            studies=len(group),
            one_seed_studies=int((group["seeds"] == 1).sum()),
        )
        rows.append(row | _pool_claim(group, alpha))
    columns = ["claim", "words", "measure", "studies", "one_seed_studies"]
    return pd.DataFrame(rows, columns=[*columns, *POOLED])


POOLED = ("estimate", "low", "high", "p", "tau2", "i2")


def _pool_claim(group: pd.DataFrame, alpha: float) -> dict:
    """Pool the estimates of one claim, after DerSimonian and Laird (1986).

    group: its rows, one a study. A study's variance is that of its interval,
    (high - low)^2 / (2 z)^2, which keeps the few-seeds t quantile. The interval is the wider of
    DerSimonian-Laird's and Hartung-Knapp's (t with k - 1 degrees of freedom). Returns `POOLED`.
    """
    if len(group) == 1:
        one = group.iloc[0]
        values = (one.estimate, one.low, one.high, one.p, np.nan, np.nan)
        return dict(zip(POOLED, values, strict=True))
    estimate = group["estimate"].to_numpy(float)
    z = sps.norm.ppf(0.975)
    variance = ((group["high"] - group["low"]) / (2 * z)).to_numpy(float) ** 2
    with np.errstate(invalid="ignore"):  # statsmodels leaves a negative tau2 as it is
        fit = combine_effects(estimate, variance, method_re="dl", use_t=False, alpha=alpha)
    tau2, freedom = max(float(fit.tau2), 0.0), len(group) - 1
    weights = 1 / (variance + tau2)
    mean, se = float(np.average(estimate, weights=weights)), float(np.sqrt(1 / weights.sum()))
    knapp = float(np.sqrt(np.average((estimate - mean) ** 2, weights=weights) / freedom))
    half = max(sps.norm.ppf(1 - alpha / 2) * se, sps.t.ppf(1 - alpha / 2, freedom) * knapp)
    p = max(
        2 * sps.norm.sf(abs(mean) / se),
        2 * sps.t.sf(abs(mean) / knapp, freedom) if knapp > 0 else 0.0,
    )
    values = (mean, mean - half, mean + half, float(p), tau2, max(float(fit.i2), 0.0))
    return dict(zip(POOLED, values, strict=True))
