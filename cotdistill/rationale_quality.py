"""Sets of rationales for the same questions: how good each is, and what p(gold) it leads to.

A set's quality is measured, never told: agreement with the gold answer, how often the label is
named, length, perplexity under the undistilled student, and how many of the facts that test needs
it states. The predictions are written down here, before any number is seen.
"""

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd
import torch

from cotdistill.arms import Arm
from cotdistill.elicit.quality import choose_rationales, names_letter, names_text
from cotdistill.encode import RATIONALE, encode, pack_batch, usable_questions
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.files import read_jsonl
from cotdistill.hypotheses import Prediction, describe
from cotdistill.inference import Effect, arm_table, cluster_labels
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.loss import token_losses
from cotdistill.measures import add_measure
from cotdistill.microworld.damage import damage_rationales, stated_sentences
from cotdistill.parameters import DAMAGEABLE
from cotdistill.sources import load_rationales
from cotdistill.stats import estimate_measure, measure_settings
from cotdistill.study import Study, resolve

OWN = "own"  # the study's own rationales, of stage elicit
MIN_SETS = 4  # a rank correlation of fewer says nothing
MIN_SPREAD = 0.05  # of the mean: sets that differ by less do not differ in a quality
QUALITY_HYPOTHESES = {
    "facts taught": "A student learns what rationales say: wrong facts cost it, and more of them "
    "cost it more",
    "form": "Any fluent text of the right kind will do, before the label or after it",
    "crutch": "A rationale before the label is leant on: wrong facts cost pre_cot more",
}
POST_ALL, PRE_ALL = "post_cot: right − all facts wrong", "pre_cot: right − all facts wrong"
POST_HALF, MORE_PRE = "post_cot: right − half wrong", "pre_cot − post_cot: right − all facts wrong"
QUALITY_PREDICTIONS = (
    Prediction("facts taught", POST_ALL, "+"),
    Prediction("facts taught", PRE_ALL, "+"),
    Prediction("facts taught", POST_HALF, "+"),
    Prediction("form", POST_ALL, "0"),
    Prediction("form", PRE_ALL, "0"),
    Prediction("crutch", MORE_PRE, "+"),
)
# Measured quality -> the name of its column and axis
QUALITIES = {
    "agreement": "agree with gold (%)",
    "names_label": "name the label (%)",
    "tokens": "length (tokens)",
    "perplexity": "perplexity (undistilled)",
    "facts": "facts of test stated (%)",
}


@dataclass(frozen=True)
class RationaleSet:
    """Hold one set of rationales, by question id. wrong: its share of wrong facts, where made."""

    name: str
    rationales: dict[str, Rationale]
    wrong: float | None = None


def collect_sets(study: Study, wrong_facts: list[float], paths: list[str]) -> list[RationaleSet]:
    """Collect the sets that are compared, the study's own first.

    Then those with a share of wrong facts (worlds in DAMAGEABLE only), those of other modes in
    which stage elicit asked a teacher, and recorded files. Raises DataError for fewer than two, for
    a name that returns and for a bad file.
    """
    data, spec = study.data, study.setting.data
    damageable = spec["dataset"] in DAMAGEABLE and bool(wrong_facts)
    sets = [RationaleSet(OWN, data.rationales, 0.0 if damageable else None)]
    for share in wrong_facts if damageable else ():
        damaged = damage_rationales(data.rationales, data.meta, share, spec["data_seed"])
        sets.append(RationaleSet(f"{100 * share:g} % wrong", damaged, share))
    for path in sorted(study.folder.glob("teacher-*.jsonl")):
        records = [row for _, row in read_jsonl(path)]
        asked = choose_rationales(records, data.explained) if records else {}
        if asked and any(data.rationales.get(key) != row for key, row in asked.items()):
            sets.append(RationaleSet(path.stem.removeprefix("teacher-"), asked))
    for path in filter(None, paths):
        name = path.rpartition("/")[2].removesuffix(".jsonl")
        sets.append(RationaleSet(name, load_rationales(resolve(path), data.explained)))
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise DataError(f"rationale_sets: two sets are named '{twice}'; expected different names")
    if len(sets) < 2:
        raise DataError(
            "one set of rationales; expected rationale_sets, or wrong_facts and one of "
            + ", ".join(DAMAGEABLE)
        )
    return sets


def common_questions(study: Study, sets: list[RationaleSet]) -> list[Example]:
    """List the training questions that every set covers and that fit, for all arms alike.

    Raises DataError where there is none.
    """
    form, limit = study.setting.label_format, study.setting.max_length
    common = None
    for one in sets:
        kept, _ = usable_questions(study.student, study.data.train, one.rationales, form, limit)
        ids = {e.id for e in kept}
        common = ids if common is None else common & ids
    if not common:
        raise DataError(
            f"none of {len(study.data.train)} training questions is covered by all of "
            f"{', '.join(one.name for one in sets)}; expected sets that share questions"
        )
    return [e for e in study.data.train if e.id in common]


def measure_sets(
    study: Study, sets: list[RationaleSet], questions: list[Example], sample: int
) -> pd.DataFrame:
    """Measure each set on the questions; the perplexity on the first `sample` of them.

    Columns: set, wrong, questions, and QUALITIES: shares (0 to 1), tokens of the student per
    rationale, perplexity per token behind the prompt of pre_cot. NaN: not known.
    """
    rows = []
    for one in sets:
        pairs = [(e, one.rationales[e.id]) for e in questions]
        answered = one.wrong is not None or any(r.answer is not None for _, r in pairs)
        agree = np.mean([r.answer == e.answer for e, r in pairs]) if answered else np.nan
        named = [names_text(r.text, e.label) or _names_letter(e, r) for e, r in pairs]
        rows.append(
            {
                "set": one.name,
                "wrong": np.nan if one.wrong is None else one.wrong,
                "questions": len(questions),
                "agreement": float(agree),
                "names_label": float(np.mean(named)),
                "tokens": np.mean([len(study.student.encode(f" {r.text}")) for _, r in pairs]),
                "perplexity": measure_perplexity(study, one, questions[:sample]),
                "facts": share_of_facts(study, one, questions),
            }
        )
    return pd.DataFrame(rows)


def _names_letter(example: Example, rationale: Rationale) -> bool:
    return not example.is_free and names_letter(rationale.text, example.answer)


@torch.no_grad()
def measure_perplexity(study: Study, one: RationaleSet, questions: list[Example]) -> float:
    """Measure how well the undistilled student predicts a set's rationales behind their questions.

    exp of the mean loss over all rationale tokens.
    """
    student, size, losses = study.student, study.setting.eval_batch_size, []
    form, arm = study.setting.label_format, Arm("pre_cot")
    sequences = [encode(student, e, one.rationales[e.id].text, arm, form) for e in questions]
    with use_attention(student.model, "packed"):
        for at in range(0, len(sequences), size):
            batch = pack_batch(sequences[at : at + size])
            moved = {name: value.to(student.model.device) for name, value in batch.items()}
            moved["cu_seq_lens_q"] = batch["cu_seq_lens_q"]  # stays on the CPU
            found = token_losses(student.model, moved)
            losses.append(found[moved["kinds"] == RATIONALE].float().cpu())
    return math.exp(float(torch.cat(losses).mean()))


def share_of_facts(study: Study, one: RationaleSet, questions: list[Example]) -> float:
    """Return the share of the facts that test questions need which a set states, word for word.

    NaN where the world does not know its facts' sentences.
    """
    meta, texts = study.data.meta, [one.rationales[e.id].text for e in questions]
    if study.setting.data["dataset"] not in DAMAGEABLE:
        return math.nan
    try:
        true = stated_sentences(study.data.rationales, meta)
    except DataError:  # the study's own rationales are a teacher's, in other words
        return math.nan
    tested = [meta[e.id] for e in study.test_questions()]
    needed = {(row.get("world"), *fact) for row in tested for fact in row["needs"]}
    said = "\n".join(texts)
    return sum(fact in true and true[fact] in said for fact in needed) / len(needed)


def set_arm(arm: str, name: str) -> str:
    """Name an arm that is trained on a set: "post_cot: 50 % wrong"."""
    return f"{arm}: {name}"


def set_levels(predictions: pd.DataFrame, sets: list[RationaleSet], arms: list[str]):
    """Estimate p(gold) of every arm on every set, and its difference to label_only.

    Columns: set, arm, estimate, low, high (a share), seeds, questions, and gain, gain_low,
    gain_high (points to label_only, as fractions).
    """
    wanted = {(arm, one.name): set_arm(arm, one.name) for one in sets for arm in arms}
    known = set(predictions["arm"])
    wanted = {pair: label for pair, label in wanted.items() if label in known}
    own = {label: {label: 1.0} for label in wanted.values()}
    gain = {label: {label: 1.0, "label_only": -1.0} for label in wanted.values()}
    alone = estimate_measure(predictions, own, "p_gold")
    apart = estimate_measure(predictions, gain, "p_gold")
    ends = ["estimate", "low", "high"]
    table = alone[[*ends, "seeds", "questions"]].assign(**alone[ends].clip(0, 1))
    table[["gain", "gain_low", "gain_high"]] = apart[ends].to_numpy()
    table.insert(0, "set", [name for _, name in wanted])
    table.insert(1, "arm", [arm for arm, _ in wanted])
    return table


def quality_numbers(predictions: pd.DataFrame, sets: list[RationaleSet]) -> dict[str, dict]:
    """Estimate the numbers of QUALITY_PREDICTIONS, of the sets that were trained."""
    name = {one.wrong: one.name for one in sets if one.wrong is not None}
    if 0.0 not in name:
        return {}
    apart = lambda arm, share, sign=1.0: {
        set_arm(arm, name[0.0]): sign,
        set_arm(arm, name.get(share, "")): -sign,
    }
    contrasts = {
        POST_ALL: apart("post_cot", 1.0),
        PRE_ALL: apart("pre_cot", 1.0),
        POST_HALF: apart("post_cot", 0.5),
        MORE_PRE: apart("pre_cot", 1.0) | apart("post_cot", 1.0, -1.0),
    }
    known = set(predictions["arm"])
    contrasts = {title: weights for title, weights in contrasts.items() if set(weights) <= known}
    found = estimate_measure(predictions, contrasts, "p_gold") if contrasts else pd.DataFrame()
    return {
        row.contrast: describe(
            Effect(row.estimate, row.se, row.df, row.covers), row.seeds, row.questions
        )
        for row in found.itertuples()
    }


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of x [n] with each of y [..., n]; NaN for constants."""
    ranks = [pd.DataFrame(np.atleast_2d(v)).rank(axis=1).to_numpy() for v in (x, y)]
    a, b = (rows - rows.mean(1, keepdims=True) for rows in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def differ(values: np.ndarray) -> bool:
    """Tell whether sets differ in a quality: from least to most by over MIN_SPREAD of the mean.

    Ranks would make as much of a fifth of a token as of a hundred percent.
    """
    return len(values) > 1 and bool(np.ptp(values) > MIN_SPREAD * abs(values.mean()))


def rank_correlations(
    predictions: pd.DataFrame,
    quality: pd.DataFrame,
    arms: list[str],
    rng: np.random.Generator,
    n_boot: int = 1000,
) -> pd.DataFrame:
    """Correlate each measured quality with p(gold) over sets, by ranks.

    Where MIN_SETS know it and differ in it (`differ`).

    Columns: arm, quality, sets, rho, low, high (95 %: these sets, other seeds and questions, where
    questions about one fact are drawn together), p (two-sided, exact over all orders of the sets:
    what other sets might say; NaN above 8 sets).
    """
    settings = measure_settings(predictions)
    valued = add_measure(predictions, "p_gold", options=settings["options"])
    rows = []
    for arm in arms:
        labels = [set_arm(arm, name) for name in quality["set"]]
        tables = [arm_table(valued, label, worlds=settings["worlds"]) for label in labels]
        values = np.array([table.to_numpy() for table in tables])
        clusters = _question_clusters(valued, tables[0], settings)
        drawn = bootstrap_means(values, clusters, rng, n_boot)
        means = np.nanmean(values, (1, 2))
        for measure in QUALITIES:
            x = quality[measure].to_numpy(float)
            known = np.isfinite(x)
            if known.sum() < MIN_SETS or not differ(x[known]):
                continue
            rho = float(spearman(x[known], means[known])[0])
            low, high = np.nanpercentile(spearman(x[known], drawn[:, known]), [2.5, 97.5])
            about = {"arm": arm, "quality": measure, "sets": int(known.sum()), "rho": rho}
            rows.append(about | {"low": low, "high": high, "p": exact_p(x[known], means[known])})
    return pd.DataFrame(rows, columns=["arm", "quality", "sets", "rho", "low", "high", "p"])


def _question_clusters(valued: pd.DataFrame, table: pd.DataFrame, settings: dict) -> np.ndarray:
    """Return the number of each question's cluster, for the columns of `table`.

    Where each seed has a world of its own, facts of two worlds are two facts.
    """
    if settings["cluster"] is None:
        return np.arange(table.shape[1])
    labels = cluster_labels(valued, table, settings["cluster"], settings["worlds"])
    if labels.ndim > 1:  # a question is of one world alone: its column has one label
        world = pd.DataFrame(labels).notna().to_numpy().argmax(0)
        own = labels[world, np.arange(len(world))]
        labels = np.array([f"{w} {label}" for w, label in zip(world, own, strict=True)])
    return np.unique(labels.astype(str), return_inverse=True)[1]


def bootstrap_means(
    values: np.ndarray, clusters: np.ndarray, rng: np.random.Generator, n_boot: int
) -> np.ndarray:
    """Draw means of sets: [n_boot, sets], over seeds and clusters drawn with replacement.

    values: [sets, seeds, questions], NaN where a seed does not ask a question; clusters: a number
    from 0 for each question.
    """
    seeds, count = values.shape[1], clusters.max() + 1
    known, filled = np.isfinite(values), np.nan_to_num(values)
    drawn = np.empty((n_boot, len(values)))
    for draw in range(n_boot):
        times = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        often = np.bincount(rng.integers(count, size=count), minlength=count)[clusters]
        weights = np.outer(times, often)
        drawn[draw] = (filled * weights).sum((1, 2)) / (known * weights).sum((1, 2))
    return drawn


def exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of all orders of y whose rank correlation with x is as far from 0."""
    if len(x) > 8:
        return math.nan
    orders = np.array(list(permutations(y)))
    return float((np.abs(spearman(x, orders)) >= abs(spearman(x, y)[0]) - 1e-9).mean())


def quality_points(levels: pd.DataFrame, quality: pd.DataFrame) -> pd.DataFrame:
    """Join quality and p(gold) for the figure: measure, x, arm, estimate, low, high, set.

    Shares are in percent. Measures that fewer than two sets have, or in which sets hardly differ
    (`differ`), are left out.
    """
    frames = []
    for measure, axis in QUALITIES.items():
        x = quality.set_index("set")[measure].dropna()
        if differ(x.to_numpy(float)):
            x = 100 * x if "%" in axis else x
            rows = levels[levels["set"].isin(x.index)]
            frames.append(rows.assign(measure=axis, x=rows["set"].map(x)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
