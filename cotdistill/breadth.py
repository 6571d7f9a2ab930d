"""How far an effect reaches: within strata of the test questions, and on other datasets.

Strata are exploratory: they were not written down before a run. They need three numbers of each
question, which are published beside a study's runs (`runs.record`) without any text. Other datasets
are those of `also_answer`: each student answers their test questions too, by forced choice.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cotdistill.corrupt import label_words
from cotdistill.elicit.quality import names_text
from cotdistill.examples import Example, is_embedded
from cotdistill.paths import artifacts
from cotdistill.runs.one import ELSEWHERE, read_elsewhere_answers
from cotdistill.runs.results import completed_stages, load_stage
from cotdistill.show import percent, points
from cotdistill.stats import estimate_measure, measured_arms, name_fact
from cotdistill.students import Student
from cotdistill.study import Study, load_elsewhere_data
from cotdistill.verdicts import MIN_QUESTIONS

CONTRASTS = {
    "post_cot − label_only": {"post_cot": 1.0, "label_only": -1.0},
    "post_cot − pre_cot": {"post_cot": 1.0, "pre_cot": -1.0},
}
SPLITS = {
    "tokens": "question length (tokens)",
    "overlap": "options' words in the question",
    "names_label": "rationale names the label",
    "zero_shot": "undistilled student",
}


def describe_question(student: Student, example: Example, rationale: str = "") -> dict:
    """Return the numbers that split questions into strata.

    tokens: the question's length in the student's tokens, without its options. overlap: the share
    of the options' words, function words left out, that the question uses too, 0 to 1. names_label:
    whether the question's own rationale names its answer; only where there is one.
    """
    words = set().union(*map(label_words, example.choices))
    shared = words & label_words(example.question)
    numbers = {
        "tokens": len(student.encode(example.question)),
        "overlap": round(len(shared) / len(words), 4) if words else 0.0,
    }
    if rationale:
        numbers["names_label"] = names_text(rationale, example.label)
    return numbers


def question_numbers(study: Study) -> dict[str, dict]:
    """Describe a study's test questions: id -> `describe_question`.

    Of a study that is re-read, as they were published; empty where an older version published it.
    """
    if study.is_record:
        return study.numbers
    known = study.data.rationales
    return {
        e.id: describe_question(study.student, e, known[e.id].text if e.id in known else "")
        for e in study.test_questions()
    }


def split_in_thirds(values: Mapping[str, float]) -> dict[str, str]:
    """Name the third in which each value lies by the values that it holds, "5 to 12".

    Equal values stay together, so where many are equal there are fewer parts, of unequal size.
    """
    numbers = np.array(list(values.values()), float)
    edges = np.unique(np.quantile(numbers, [1 / 3, 2 / 3], method="lower"))
    parts = np.searchsorted(edges, numbers, side="left")
    ends = {p: (numbers[parts == p].min(), numbers[parts == p].max()) for p in set(parts)}
    names = {
        p: f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        for p, (low, high) in ends.items()
    }
    return {key: names[part] for key, part in zip(values, parts, strict=True)}


def split_questions(
    numbers: Mapping[str, dict], predictions: pd.DataFrame
) -> dict[str, dict[str, str]]:
    """Split the test questions: split (of `SPLITS`) -> id -> stratum.

    A split of which nothing is known, or that has one stratum alone, is left out.
    """
    splits = {}
    for name in ("tokens", "overlap"):
        values = {key: row[name] for key, row in numbers.items() if name in row}
        order = sorted(values, key=values.get)
        splits[name] = split_in_thirds({key: values[key] for key in order}) if values else {}
    named = {key: row["names_label"] for key, row in numbers.items() if "names_label" in row}
    splits["names_label"] = {key: "yes" if named[key] else "no" for key in sorted(named)}
    base = predictions[predictions["arm"] == "zero_shot"].dropna(subset=["correct_choice"])
    base = base.drop_duplicates("id")
    splits["zero_shot"] = {
        key: "right" if right else "wrong"
        for key, right in zip(base["id"], base["correct_choice"], strict=True)
    }
    return {name: parts for name, parts in splits.items() if len(set(parts.values())) > 1}


def strata_effects(study: Study, predictions: pd.DataFrame) -> pd.DataFrame:
    """Estimate post_cot - label_only and post_cot - pre_cot within strata of the test questions.

    By forced choice, as the paper's claims are judged. A stratum of fewer than `MIN_QUESTIONS`
    questions is left out. Columns: split, stratum, contrast, n, seeds, estimate, low, high (95 %,
    fractions), p; no row where the arms or the numbers are not there.
    """
    known = set(measured_arms(predictions, "correct_choice"))
    contrasts = {name: arms for name, arms in CONTRASTS.items() if set(arms) <= known}
    rows = []
    if not contrasts:
        return pd.DataFrame()
    for split, parts in split_questions(question_numbers(study), predictions).items():
        for stratum in dict.fromkeys(parts.values()):
            chosen = {key for key, name in parts.items() if name == stratum}
            part = predictions[predictions["id"].isin(chosen)]
            if not _is_large_enough(part):
                continue
            found = estimate_measure(part, contrasts, "correct_choice")
            about = dict(split=SPLITS[split], stratum=stratum)
            columns = ["contrast", "estimate", "low", "high", "p", "seeds"]
            rows += [
                about | dict(n=int(row["questions"])) | row[columns].to_dict()
                for _, row in found.iterrows()
            ]
    return pd.DataFrame(rows)


def _is_large_enough(part: pd.DataFrame) -> bool:
    """Tell whether an interval can be had: questions enough, of two facts or more in every seed."""
    unit = "fact" if "fact" in part else "id"
    by_seed = part.groupby("seed")[unit].nunique()
    return part["id"].nunique() >= MIN_QUESTIONS and by_seed.min() >= 2


def strata_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Write `strata_effects` as text: a row per stratum, a column per contrast, in points."""
    if effects.empty:
        return effects
    texts = effects.assign(text=points(effects))
    keys = ["split", "stratum", "n"]
    wide = texts.pivot(index=keys, columns="contrast", values="text")
    order = texts[keys].drop_duplicates()
    return wide.loc[list(order.itertuples(index=False, name=None))].reset_index().set_index("split")


def load_elsewhere(study: Study) -> pd.DataFrame:
    """Load what a study's students answered to the questions of other datasets.

    Columns: dataset, arm, seed, id, gold, choice, scores, cut_off, rationale_cut_off,
    correct_choice, and fact (`describe_elsewhere`). A run that answered none (its weights were not
    kept when the study began to ask) is left out. Of each dataset, the questions that all runs
    answered stay. No row where the study does not ask.
    """
    frames, seen = [], set()
    for stage in completed_stages(study):
        for row in load_stage(study.name, stage):
            name = (row["label"], row["key"])
            if ELSEWHERE in row["metrics"]["files"] and name not in seen:
                seen.add(name)
                frame = pd.DataFrame(read_elsewhere_answers(artifacts() / "runs" / row["key"]))
                frames.append(frame.assign(arm=row["label"], seed=row["seed"]))
    if not frames:
        return pd.DataFrame()
    answers = pd.concat(frames, ignore_index=True)
    # A run of two studies holds what either asked
    answers = answers[answers["dataset"].isin(study.setting.also_answer)]
    answers = answers.assign(correct_choice=answers["choice"] == answers["gold"])
    counts = answers.groupby(["dataset", "id"])["arm"].transform("size")
    runs = answers.groupby("dataset")["arm"].transform(
        lambda arms: len(answers.loc[arms.index, ["arm", "seed"]].drop_duplicates())
    )
    answers = answers[counts == runs].reset_index(drop=True)
    return describe_elsewhere(answers, study)


def describe_elsewhere(answers: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Add the fact that a question of an embedded world asks: one fact, one cluster.

    A question of another dataset is a cluster of its own, so its fact is its id. Without an
    embedded world there is no such column.
    """
    worlds = [name for name in study.setting.also_answer if is_embedded(name)]
    facts = {
        (name, key): name_fact(row, key)
        for name in worlds
        for key, row in load_elsewhere_data(name, study.setting).meta.items()
    }
    asked = zip(answers["dataset"], answers["id"], strict=True)
    return answers.assign(fact=[facts.get(q, q[1]) for q in asked]) if facts else answers


def elsewhere_effects(answers: pd.DataFrame) -> pd.DataFrame:
    """Estimate arms and the two contrasts of placement on other datasets, by forced choice.

    answers: of `load_elsewhere`. Columns: dataset, n, seeds, contrast (an arm, or a difference of
    two), estimate, low, high (95 %, fractions), p.
    """
    rows = []
    for dataset, part in answers.groupby("dataset", sort=False) if len(answers) else []:
        arms = list(dict.fromkeys(part["arm"]))
        wanted = {arm: {arm: 1.0} for arm in arms}
        wanted |= {name: pair for name, pair in CONTRASTS.items() if set(pair) <= set(arms)}
        found = estimate_measure(part.drop(columns="dataset"), wanted, "correct_choice")
        columns = ["contrast", "estimate", "low", "high", "p", "seeds"]
        rows += [
            dict(dataset=dataset, n=int(row["questions"])) | row[columns].to_dict()
            for _, row in found.iterrows()
        ]
    return pd.DataFrame(rows)


def elsewhere_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Write `elsewhere_effects` as text: accuracies and differences, a column per dataset."""
    if effects.empty:
        return effects
    shares = effects.rename(columns={"estimate": "accuracy"})
    pair = effects["contrast"].isin(CONTRASTS)
    head = effects["dataset"] + " (n = " + effects["n"].astype(str) + ")"
    texts = effects.assign(text=percent(shares).where(~pair, points(effects)), head=head)
    wide = texts.pivot(index="contrast", columns="head", values="text")
    return wide.loc[list(dict.fromkeys(texts["contrast"])), list(dict.fromkeys(texts["head"]))]
