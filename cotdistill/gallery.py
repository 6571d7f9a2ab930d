"""Choose test questions that show what students wrote, right, wrong or cut off, arm beside arm.

Embedded worlds only: the texts of other datasets stay out of everything that is published.
"""

from pathlib import Path

import pandas as pd

from cotdistill.arms import PROMPTED
from cotdistill.errors import DataError
from cotdistill.files import read_json, write_json
from cotdistill.paths import study_dir

FILE = "answers.json"  # beside the executed notebooks
# What a question of the gallery shows, in order: a kind, its words, and how many of them
KINDS = {
    "post_cot alone": ("post_cot is right, label_only is wrong", 2),
    "label_only alone": ("label_only is right, post_cot is wrong", 1),
    "cut off": ("a limit cut an answer off", 1),
    "all wrong": ("no arm is right", 1),
    "all right": ("every trained arm is right", 1),
}


def collect_gallery(study: str) -> list[dict]:
    """Collect what the students of a study's first seed wrote, for up to six test questions.

    Returns a list of question, choices, gold (the right option's text), kind (of `KINDS`), seed and
    answers: arm, rationale (that pre_cot wrote before its answer), text, mark ("right", "wrong" or
    "no option") and cut_off. Empty where the data are not embedded. Raises DataError where a run is
    missing.
    """
    from cotdistill.runs.results import completed_stages, load_predictions
    from cotdistill.study import Study

    loaded = Study.load(study)
    if not loaded.data.meta:
        return []
    predictions = load_predictions(loaded, completed_stages(loaded))
    seed = int(predictions.loc[predictions["seed"] >= 0, "seed"].min())
    shown = predictions[predictions["seed"].isin([seed, -1])]
    questions = {e.id: e for e in loaded.data.test}
    return [
        {
            "question": questions[name].question,
            "choices": list(questions[name].choices),
            "gold": questions[name].label,
            "kind": KINDS[kind][0],
            "seed": seed,
            "answers": [_label_answer(row) for _, row in rows.iterrows()],
        }
        for name, kind, rows in _choose_shown(shown, set(questions))
    ]


def _choose_shown(shown: pd.DataFrame, known: set[str]) -> list[tuple[str, str, pd.DataFrame]]:
    """Choose questions by kind, the first of each kind in the order of the test set."""
    chosen, taken = [], set()
    groups = [(name, rows) for name, rows in shown.groupby("id", sort=True) if name in known]
    for kind, (_, count) in KINDS.items():
        fitting = [(name, rows) for name, rows in groups if _is_kind(kind, rows)]
        for name, rows in [pair for pair in fitting if pair[0] not in taken][:count]:
            taken.add(name)
            chosen.append((name, kind, rows))
    return chosen


def _is_kind(kind: str, rows: pd.DataFrame) -> bool:
    """Tell whether a question's written answers, a row per arm, are of this kind."""
    trained = rows[~rows["arm"].isin(PROMPTED)]
    right = dict(zip(trained["arm"], trained["correct_generated"], strict=True))
    post, label = right.get("post_cot"), right.get("label_only")
    if kind == "cut off":
        return bool(_was_cut_off(trained).any())
    if kind == "all wrong":
        return not any(right.values())
    if kind == "all right":
        return all(right.values())
    if post is None or label is None:
        return False
    return bool(post and not label) if kind == "post_cot alone" else bool(label and not post)


def _was_cut_off(rows: pd.DataFrame) -> pd.Series:
    """Say per answer whether a limit ended the answer or the rationale before it."""
    cut = rows["cut_off"].astype(bool)
    return cut | rows["rationale_cut_off"].eq(True) if "rationale_cut_off" in rows else cut


def _label_answer(row: pd.Series) -> dict:
    """Describe what one arm wrote."""
    mark = "right" if row["correct_generated"] else "wrong"
    return {
        "arm": row["arm"],
        "rationale": row["rationale"] or "",
        "text": row["text"],
        "mark": "no option" if pd.isna(row["generated"]) else mark,
        "cut_off": bool(row["cut_off"]) or row.get("rationale_cut_off") is True,
    }


def save_gallery(study: str, folder: Path) -> Path:
    """Write a study's gallery into the folder of its executed notebooks; returns the path."""
    write_json(folder / FILE, collect_gallery(study))
    return folder / FILE


def load_gallery(study: str, folder: Path) -> list[dict] | None:
    """Load a gallery from beside the executed notebooks, else collect it from the run store.

    None where neither has it: the study's runs are not here.
    """
    if (folder / FILE).is_file():
        return read_json(folder / FILE, f"`make figures STUDY={study}`")
    if not (study_dir(study) / "base.json").is_file():
        return None
    try:
        return collect_gallery(study)
    except DataError:  # its runs were deleted, or are of another version
        return None
