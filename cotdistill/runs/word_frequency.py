"""What counting words would answer: the baseline by word frequency, as predictions of an arm."""

import pandas as pd

from cotdistill.evaluate import most_mentioned
from cotdistill.examples import Example
from cotdistill.stats import describe_questions
from cotdistill.study import Study

ARM = "word_frequency"


def training_texts(study: Study, seed: int) -> list[str]:
    """Return the rationales of the training questions of a seed's world, as far as there are."""
    data = study.data
    questions: list[Example] = data.train
    if study.has_own_worlds:
        questions = data.in_world(questions, seed)
    return [data.rationales[e.id].text for e in questions if e.id in data.rationales]


def add_word_frequency(study: Study, predictions: pd.DataFrame) -> pd.DataFrame:
    """Append the rows of `predict_by_frequency` to an embedded study's predictions.

    Other data are returned as they are.
    """
    if not study.data.meta:
        return predictions
    return pd.concat([predictions, predict_by_frequency(study)], ignore_index=True)


def predict_by_frequency(study: Study) -> pd.DataFrame:
    """Answer a study's test questions by the option that training rationales mention most often.

    Returns rows like those of `results.load_predictions`, of an arm "word_frequency" with a row per
    seed and question. No student answers: what only a student has (generated, choice, scores, text)
    is missing. correct_choice is a share from 0 to 1, for several options may be mentioned equally
    often (`evaluate.most_mentioned`); correct_generated is the same, since there is one answer. A
    student that beats it has learnt more from rationales than which words are frequent in them.
    """
    frames = []
    for seed in study.setting.seeds:
        test = study.test_questions(seed)
        if study.is_record:  # which holds no texts, but what was counted in them
            shares = [study.mentioned[str(seed)][e.id] for e in test]
        else:
            shares = most_mentioned(test, training_texts(study, seed))
        frames.append(
            pd.DataFrame(
                {
                    "id": [e.id for e in test],
                    "gold": [e.answer for e in test],
                    "correct_choice": shares,
                    "correct_generated": shares,
                    "seed": seed,
                }
            )
        )
    table, setting = pd.concat(frames, ignore_index=True), study.setting
    table = table.assign(
        study=study.name,
        dataset=setting.data["dataset"],
        student=setting.student,
        arm=ARM,
        scores=None,
        generated=pd.array([pd.NA] * len(table), dtype="Int64"),
        choice=pd.array([pd.NA] * len(table), dtype="Int64"),
        tokens_generated=0,
        cut_off=False,
    )
    return describe_questions(table, study.data.test, study.data.meta, setting.worlds)
