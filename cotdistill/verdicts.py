"""From claims and contrasts to verdicts: what the data say about each claim, and why."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from cotdistill.errors import DataError
from cotdistill.files import atomic_write, read_json, write_json
from cotdistill.inference import (
    FAMILIES,
    SHARED_SEED,
    Effect,
    adjust_families,
    detectable_effect,
    equivalence_p,
    estimate_share,
)
from cotdistill.measures import MEASURES
from cotdistill.paths import root, study_dir
from cotdistill.rules import RULES
from cotdistill.runs.provenance import provenance
from cotdistill.stats import (
    FROM_SCORES,
    MEASURED_BY,
    MIN_SEEDS,
    accuracy_tables,
    add_direct_arms,
    direct_label,
    estimate_measure,
    measure_settings,
    measured_arms,
    select_measured,
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
            "student_name": study.setting.student,
            "loss": study.setting.train.loss,
            "provenance": provenance(),
            "verdicts": json.loads(table.to_json(orient="records")),
            "accuracy": json.loads(accuracies.to_json(orient="records")),
            "accuracy_written": json.loads(written.to_json(orient="records")),
        },
    )
    with atomic_write(folder / "verdicts.csv") as part:
        table.to_csv(part, index=False)


def load_verdicts(study: str) -> dict:
    """Load verdicts.json of a study that has run here; raises DataError where it has not."""
    return read_json(study_dir(study) / "verdicts.json", f"`make figures STUDY={study}`")


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


def judge_study(
    study: Study, alpha: float, registered: Mapping[str, object] | None = None
) -> Judgement:
    """Judge the runs of all completed stages; write verdicts.json and verdicts.csv.

    The one maker of verdicts: notebook 06 and `make verdicts` both call it. alpha: the level
    after Holm; registered: what the study's YAML says was fixed before its first run.
    """
    from cotdistill.runs.results import completed_stages, load_predictions, unchanged_shares
    from cotdistill.runs.word_frequency import add_word_frequency

    stages = completed_stages(study)
    predictions = add_word_frequency(study, load_predictions(study, stages))
    forced, written = accuracy_tables(predictions)
    table = verdicts(
        predictions,
        load_claims(root() / "params" / "claims.yaml"),
        alpha=alpha,
        as_intact=unchanged_shares(study, stages),
        registered=registered,
    )
    save_verdicts(study, table, forced, written)
    record = read_json(study.folder / "verdicts.json", "this command")
    return Judgement(forced, written, table, record)


# Above this share of equal training texts, two arms are not shown to be equivalent: they could
# hardly differ
MAX_AS_INTACT = 0.2


REQUIRED = (
    "id",
    "family",
    "words",
    "section",
    "contrast",
    "measure",
    "direction",
    "margin",
    "rule",
)
OPTIONAL = ("requires", "stratum", "negligible")
STRATA = ("label", "rationale", "none")  # where training has the facts of a test question
MIN_QUESTIONS = 20  # a stratum with fewer test questions is not judged
LEAST_P = 0.001  # smaller p values are shown as being below it
DIFFERENCES = ("difference", "interaction")  # the rules by which arms are said to differ
DECIDED = ("supported", "contradicted", "negligible")
NEGLIGIBLE_SINCE = "2026-11-29"  # when the margins of the verdict "negligible" were set


def load_claims(path: str | Path) -> list[dict]:
    """Read params/claims.yaml.

    A claim: id, family (its p is adjusted with those of its family), words, section, contrast,
    measure, direction, margin, rule; perhaps `stratum`, the test questions that it is about;
    perhaps `negligible`, the effect below which a difference is too small to matter; and perhaps
    `requires`, ids of claims of which the first that was measured is this one's gate: where
    the gate is not supported, support says nothing (that shuffling costs nothing means little where
    there was nothing to lose). `contrast` maps a and b (for an interaction also
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
    if not isinstance(claim, dict) or set(claim) - set(OPTIONAL) != set(REQUIRED):
        found = sorted(claim) if isinstance(claim, dict) else claim
        return (
            f"fields are {found!r}; expected {', '.join(REQUIRED)} "
            f"(and perhaps {', '.join(OPTIONAL)})"
        )
    if claim["family"] not in FAMILIES:
        return f"family is {claim['family']!r}; expected one of {', '.join(FAMILIES)}"
    if claim.get("stratum", STRATA[0]) not in STRATA:
        return f"stratum is {claim['stratum']!r}; expected one of {', '.join(STRATA)}"
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
    small = claim.get("negligible", 1.0)
    if bounded and "negligible" in claim:
        return f"negligible with rule {claim['rule']}; expected it with difference or interaction"
    if not isinstance(small, (int, float)) or small <= 0:
        return f"negligible is {small!r}; expected a fraction above 0, such as 0.03"
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
        for gate in _list_gates(claim):
            if gate not in standing:
                raise DataError(
                    f"{path}: claim {claim['id']}: requires {gate!r}; "
                    "expected the id of a claim that requires none"
                )


def _list_gates(claim: dict) -> list[str]:
    """List the ids that a claim `requires`: one or several, the first that was measured counts."""
    gates = claim.get("requires", [])
    return gates if isinstance(gates, list) else [gates]


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


OLD_UNIT = "correct_per_100_tokens"  # a measure of older studies, which is no fraction


def _number(x: float, measure: str) -> str:
    return f"{x:+.2f}" if measure == OLD_UNIT else f"{100 * x:+.1f}"


def estimate_text(row: pd.Series) -> str:
    """Write a verdict's estimate with its 95 % interval, in points: "-0.3 [-8.0, +7.4]"."""
    value, low, high = (_number(row[name], row["measure"]) for name in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}]"


def write_p(p: float) -> str:
    """Write a p value to two digits, or as "<0.001": smaller ones rest on the model alone."""
    return f"{p:.2g}" if p >= LEAST_P else f"<{LEAST_P:g}"


def _equals_p(p: float) -> str:
    return f"p = {p:.2g}" if p >= LEAST_P else f"p < {LEAST_P:g}"


def _at_chance(row: dict) -> str:
    """Say that no arm of a claim is above chance, with its level where one study knows it."""
    level = f" ({100 * row['chance']:.0f} %)" if "chance" in row else ""
    return f"none of these arms is shown to be above chance{level}"


def _reason(claim: dict, row: dict, alpha: float, gate: "_Gate") -> str:
    """Write one sentence for the verdict, with the numbers that it rests on."""
    value, low, high = (_number(row[k], claim["measure"]) for k in ("estimate", "low", "high"))
    number = f"{value} points{MEASURED_BY[claim['measure']]}"
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
    if row["verdict"] == "contradicted" or gate.empty or row["p_holm"] < alpha:
        text = f"{found}: {yes} ({_equals_p(row['p_holm'])} after Holm)"
        opposite = "The opposite of the claim: " if row["verdict"] == "contradicted" else ""
        return opposite + text + (f", but {gate.empty}." if gate.empty else f".{gate.missing}")
    late = " once all claims of its family are counted" if row["p"] < alpha else ""
    if row["verdict"] == "negligible":
        since = f" The margin was set on {NEGLIGIBLE_SINCE}, later than the study was registered."
        return (
            f"{found}: shown to lie within ±{100 * claim['negligible']:g} points (TOST, "
            f"{_equals_p(row['p_negligible'])} after Holm), and not told apart from 0{late} "
            f"({_equals_p(row['p_holm'])} after Holm).{since if row.get('late') else ''}"
        )
    remark = ""
    if row.get("alike"):
        remark = (
            f" Not judged negligible: {100 * row['as_intact']:.0f} % of the training texts of "
            f"{row['arms']['a']} are the intact ones."
        )
    elif row["at_chance"] and row.get("p_negligible", 1.0) < alpha:
        remark = f" Not judged negligible: {_at_chance(row)}."
    return f"{found}: {no}{late} ({_equals_p(row['p_holm'])} after Holm).{remark}"


COLUMNS = [
    "study",
    "claim",
    "family",
    "words",
    "section",
    "contrast",
    "measure",
    "stratum",
    "rule",
    "margin",
    "estimate",
    "se",
    "df",
    "low",
    "high",
    "p",
    "p_holm",
    "p_negligible",
    "detectable",
    "retained",
    "verdict",
    "reason",
    "n",
    "seeds",
    "covers",
    "by_seed",
    "design_effect",
    "flagged",
    "as_intact",
    "at_chance",
    "registered",
]
MEASURED = (
    "estimate",
    "se",
    "df",
    "low",
    "high",
    "seeds",
    "covers",
    "by_seed",
    "design_effect",
    "flagged",
)


def verdicts(
    predictions: pd.DataFrame,
    claims: list[dict],
    *,
    alpha: float = 0.05,
    as_intact: dict[str, float] | None = None,
    registered: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """Judge each claim by what one study's predictions say.

    Columns: study, claim, family, words, section, contrast (the arms compared, and by what, unless
    by forced choice), measure, stratum, rule, margin, estimate, se, df, low, high (95 %, not
    adjusted), p (of the claim's own rule), p_holm (over the measured claims of its family),
    detectable (the smallest true effect that this study would find with 80 % power, at alpha /
    number of the family's measured claims), p_negligible (after Holm, that the effect lies within
    the claim's margin `negligible`, where it has one), retained (the share of the gain that a
    corrupted rationale retains, as text), verdict, reason, n, seeds, covers, design_effect (of
    questions that share a fact), flagged (share of the answers compared that follow a rationale cut
    off), at_chance (no arm compared is shown to be above chance), registered ("registered",
    "exploratory", or "" where the study registered nothing).

    verdict is one of

    - "not measured": an arm, a measure or a stratum is missing, or the arms share no seed.
    - "inconclusive": fewer than MIN_SEEDS seeds, whatever p is, because the interval then hardly
      knows how much seeds vary; or support that would say nothing: the gate that this one
      `requires` is not supported, or no arm is shown to be above chance (at_chance, by its own
      95 % interval) where a claim requires a gate or an effect seems negligible, or
      an equivalence is of two arms of which more than MAX_AS_INTACT of the training texts are the
      same (as_intact: arm -> that share, `results.unchanged_shares`); or p_holm of alpha or more,
      and p_negligible too.
    - "supported" or "contradicted": p_holm < alpha, on the side that the claim's `Rule` says.
    - "negligible": neither of these, and p_negligible < alpha. Within a family the chance of any
      false side is at most alpha, and so is that of any false "negligible".

    Raises DataError on predictions of several studies and on arms that do not share their
    questions.
    """
    study = "; ".join(map(str, predictions["study"].unique())) if "study" in predictions else ""
    for column in ("study", "dataset", "student"):
        if column in predictions and predictions[column].nunique() > 1:
            raise DataError(
                f"predictions hold several values of {column} "
                f"({', '.join(map(str, predictions[column].unique()))}); expected "
                "one study at a time"
            )
    _check_registered(claims, registered or {})
    predictions = add_direct_arms(predictions)
    rows = [{"study": study, "registered": ""} | _find_arms(claim, predictions) for claim in claims]
    _estimate_claims(claims, rows, predictions)
    for row in rows:
        row["as_intact"] = (as_intact or {}).get(row["arms"].get("a"), 0.0)
        if registered:
            row["registered"] = _say_registered(row, registered)
            row["late"] = str(registered.get("date", "")) < NEGLIGIBLE_SINCE
    conclude(claims, rows, alpha)
    for row in rows:
        if row["verdict"] == "negligible" and row.get("late"):
            row["registered"] = "exploratory"
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": "Int64", "seeds": "Int64"})


def conclude(claims: list[dict], rows: list[dict], alpha: float) -> None:
    """Give every row its verdict and reason: adjust p within each family, then look at the gates.

    rows: one per claim, in place; verdict (what a small p would bring, or "not measured"), family,
    effect, p, seeds, estimate, low, high, arms, as_intact (the share of the first arm's training
    texts that are the intact ones), at_chance, and perhaps chance (its level) and late (registered
    before the margins of "negligible" were set). Of one study's claims, and of those pooled over
    studies alike.
    """
    _adjust_claims(claims, rows, alpha)
    by_id = {row["claim"]: row for row in rows}
    for claim, row in zip(claims, rows, strict=True):
        known = row["verdict"] != "not measured"
        gate = _find_gate(claim, row, by_id) if known else _Gate()
        row["final"] = "inconclusive" if gate.empty else row["verdict"]
        if known:
            row["reason"] = _reason(claim, row | {"verdict": row["final"]}, alpha, gate)
    for row in rows:
        row["verdict"] = row.pop("final")


def _find_arms(claim: dict, predictions: pd.DataFrame) -> dict:
    """Find a claim's arms: its row without numbers; "not measured", and why, where one is missing.

    `arms` maps the places of the contrast to labels, `weights` labels to their signs.
    """
    row = dict(claim=claim["id"], words=" ".join(claim["words"].split()), verdict="")
    row |= {k: claim[k] for k in ("family", "section", "measure", "rule", "margin")}
    row |= dict(stratum=claim.get("stratum", ""), arms={}, weights={}, contrast="", retained="")
    row["at_chance"] = False
    rows = predictions
    if row["stratum"]:
        known = rows["stratum"] if "stratum" in rows else pd.Series("", rows.index)
        rows = rows[known == row["stratum"]]
        if rows["id"].nunique() < MIN_QUESTIONS:
            return row | dict(
                verdict="not measured",
                reason=f"{rows['id'].nunique()} test questions are known to be of the stratum "
                f"{row['stratum']}; expected {MIN_QUESTIONS} or more.",
            )
    arms = measured_arms(rows, claim["measure"])
    found = resolve_contrast(claim["contrast"], arms)
    missing = _missing_reason(claim, rows, arms, found)
    if missing:
        return row | dict(verdict="not measured", reason=missing)
    signs = zip("abcd", (1.0, -1.0, -1.0, 1.0), strict=True)
    contrast = (
        " − ".join(found[p] for p in "ab")
        if "c" not in found
        else f"({found['a']} − {found['b']}) − ({found['c']} − {found['d']})"
    )
    where = f", facts: {row['stratum']}" if row["stratum"] else ""
    return row | dict(
        arms=found,
        weights={found[place]: sign for place, sign in signs if place in found},
        contrast=contrast + MEASURED_BY[claim["measure"]] + where,
    )


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
        by = " with scores of its options" if claim["measure"] in FROM_SCORES else ""
        return f"No run of {wanted}{by if not arms else ''}."
    seeds = [set(predictions.loc[predictions["arm"] == arm, "seed"]) for arm in found.values()]
    trained = [s for s in seeds if s != {SHARED_SEED}] or [{SHARED_SEED}]
    if not set.intersection(*trained):
        return f"No seed was run for all of {', '.join(found.values())}."
    return ""


def _select_stratum(predictions: pd.DataFrame, stratum: str) -> pd.DataFrame:
    return predictions[predictions["stratum"] == stratum] if stratum else predictions


def _estimate_claims(claims: list[dict], rows: list[dict], predictions: pd.DataFrame) -> None:
    """Fill in what is measured, and the verdict that a small p would bring.

    Claims of one measure and stratum are estimated together: the seed variance is shrunk to what
    the arms have in common there.
    """
    groups = {}
    for claim, row in zip(claims, rows, strict=True):
        if row["verdict"] != "not measured":
            groups.setdefault((row["measure"], row["stratum"]), []).append((claim, row))
    for (measure, stratum), members in groups.items():
        part = _select_stratum(predictions, stratum)
        weights = {row["claim"]: row["weights"] for _, row in members}
        alone = {f"level of {arm}": {arm: 1.0} for _, row in members for arm in row["weights"]}
        found = estimate_measure(part, weights | alone, measure).set_index("contrast")
        chance = _chance_level(part)
        for claim, row in members:
            one = found.loc[row["claim"]]
            row["chance"] = chance
            lows = [found.loc[f"level of {arm}", "low"] for arm in row["weights"]]
            row["at_chance"] = bool(max(lows) <= chance)
            row |= {name: one[name] for name in MEASURED} | {"n": int(one["questions"])}
            row["effect"] = Effect(one["estimate"], one["se"], one["df"], one["covers"])
            judge = RULES[claim["rule"]].judge
            row["p"], row["verdict"] = judge(row["effect"], claim["margin"], claim["direction"])
            row["retained"] = _share_text(row, part)


def _chance_level(predictions: pd.DataFrame) -> float:
    """Return the mean of 1 / options over the questions; 0 where no arm has scores of options.

    By the scores, for a published study has no texts. A free answer, of one score, counts as 0:
    there is nothing to choose from.
    """
    scored = select_measured(predictions, "p_gold").dropna(subset=["scores"])
    options = scored.drop_duplicates("id")["scores"].map(len)
    return float((1 / options).where(options > 1, 0.0).mean()) if len(options) else 0.0


def _adjust_claims(claims: list[dict], rows: list[dict], alpha: float) -> None:
    """Adjust p within each family, and leave open what is then not below alpha."""
    adjusted = adjust_families(
        [row.get("p", np.nan) for row in rows], [claim["family"] for claim in claims]
    )
    known = [row["verdict"] != "not measured" for row in rows]
    counts = Counter(row["family"] for row, yes in zip(rows, known, strict=True) if yes)
    for row, p_holm, yes in zip(rows, adjusted, known, strict=True):
        row["p_holm"] = p_holm
        if yes:
            row["detectable"] = detectable_effect(row["effect"], alpha / counts[row["family"]])
            if row["seeds"] < MIN_SEEDS or p_holm >= alpha:
                row["verdict"] = "inconclusive"
    _find_negligible(claims, rows, alpha)


def _find_negligible(claims: list[dict], rows: list[dict], alpha: float) -> None:
    """Call open claims negligible where their effect is shown to lie within their margin (TOST).

    Their p values are adjusted within each family on their own: Holm keeps the chance of any false
    "negligible" in a family below alpha, as it keeps that of any false side. Two kinds stay open:
    a corrupted arm that mostly trained on the intact texts can hardly differ from another with a
    rationale; and arms of which none is shown to be above chance are alike in what they lack.
    """
    inside = [
        float(equivalence_p(row["effect"], claim["negligible"]))
        if row["verdict"] != "not measured" and "negligible" in claim
        else np.nan
        for claim, row in zip(claims, rows, strict=True)
    ]
    adjusted = adjust_families(inside, [claim["family"] for claim in claims])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_negligible"] = p
        if row["verdict"] == "inconclusive" and row["seeds"] >= MIN_SEEDS and p < alpha:
            row["alike"] = row["as_intact"] > MAX_AS_INTACT and _has_rationale(row["arms"]["b"])
            open_still = row["alike"] or row["at_chance"]
            row["verdict"] = "inconclusive" if open_still else "negligible"


def _has_rationale(label: str) -> bool:
    return label.startswith(("pre_cot", "post_cot")) and "filler" not in label


CORRUPTED = re.compile(r"(pre_cot|post_cot)_(shuffled|kept|masked)")


def _share_text(row: dict, predictions: pd.DataFrame) -> str:
    """Say which share of the intact rationale's gain a corrupted one retains; else "".

    Of shuffled, kept and masked arms against their intact one. The gain is over as many dots where
    that arm was run, which costs the label no less of the loss, else over label_only.
    """
    arms, match = row["arms"], CORRUPTED.match(row["arms"]["a"])
    if "c" in arms or not match or arms["b"] != match[1]:
        return ""
    known = set(predictions["arm"])
    base = next((arm for arm in (f"{match[1]}_filler", "label_only") if arm in known), None)
    if base is None:
        return "no arm to measure the gain from: label_only was not run"
    part = select_measured(predictions, row["measure"])
    share = estimate_share(
        part, arms["a"], arms["b"], base, row["measure"], **measure_settings(part)
    )
    if share.reason:
        return f"{share.reason}, over {base}"
    low, high = 100 * share.low, 100 * share.high
    return f"{100 * share.estimate:.0f} % [{low:.0f}, {high:.0f}] of the gain over {base}"


@dataclass(frozen=True)
class _Gate:
    """Whether support of a claim says something.

    empty: why it says nothing; missing: a remark where the claim that would open it was not run.
    """

    empty: str = ""
    missing: str = ""


def _find_gate(claim: dict, row: dict, by_id: dict[str, dict]) -> _Gate:
    """Find out whether the support of a claim would say nothing, and why.

    by_id: the rows of all claims, judged. Of the claims that it requires, the first that was
    measured is the gate, so that nobody can choose among them afterwards.
    """
    if row["verdict"] != "supported":
        return _Gate()
    if claim["rule"] == "equivalence" and row["as_intact"] > MAX_AS_INTACT:
        return _Gate(
            f"{100 * row['as_intact']:.0f} % of the training texts of {row['arms']['a']} are the "
            "intact ones, so the two could hardly differ"
        )
    if _list_gates(claim) and row["at_chance"]:
        return _Gate(f"{_at_chance(row)}: what is not there can't be lost")
    names = [name for name in _list_gates(claim) if name in by_id]
    run = [name for name in names if by_id[name]["verdict"] != "not measured"]
    if run and by_id[run[0]]["verdict"] != "supported":
        return _Gate(f"{run[0]} is not supported: no gain is shown that could be lost")
    if _list_gates(claim) and not run:
        wanted = " or ".join(_list_gates(claim))
        return _Gate(missing=f" No gate: {wanted} was not measured, so a gain is not shown.")
    return _Gate()


def _check_registered(claims: list[dict], registered: Mapping[str, object]) -> None:
    unknown = sorted(set(registered.get("claims", [])) - {claim["id"] for claim in claims})
    if unknown:
        raise DataError(f"registered: no claim '{unknown[0]}'; expected ids of params/claims.yaml")


def _say_registered(row: dict, registered: Mapping[str, object]) -> str:
    """Call a claim exploratory where it, or one of its arms, was not registered.

    A pre_cot student that is asked at once is the registered student; word frequency is none.
    """
    arms = registered.get("arms")
    known = {*(arms or []), *map(direct_label, arms or []), "word_frequency"}
    late = arms and not set(row["arms"].values()) <= known
    return "exploratory" if late or row["claim"] not in registered["claims"] else "registered"
