"""Questions with free answers, from the file to the measures: loading, training, evaluation."""

import json
import math

import pandas as pd
import pytest
import torch
from conftest import SHARED, needs_shared, tiny
from studies import make_spec, make_study

from cotdistill.arms import Arm, format_target, parse_answer, prompt_text
from cotdistill.elicit.quality import quality_card
from cotdistill.elicit.settings import TeacherSettings, TeacherSource
from cotdistill.elicit.teacher import from_teacher
from cotdistill.encode import encode
from cotdistill.errors import DataError
from cotdistill.evaluate import accuracy, evaluate, validation_scores
from cotdistill.examples import Dataset, Example, Rationale
from cotdistill.measures import add_measure, gold_probability
from cotdistill.runs.grid import run_grid
from cotdistill.runs.results import load_predictions
from cotdistill.sources import data_card, load_dataset, load_rationales, write_rationales
from cotdistill.stats import accuracy_table

QUESTIONS = [
    Example("a", "How many cups are 3 cups and 4 cups?", ("7",), 0),
    Example("b", "Does iron sink?", ("yes",), 0),
    Example("c", "What is frozen water?", ("ice",), 0),
]


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def own_rows(prefix: str, *answers) -> list[dict]:
    return [
        {"id": f"{prefix}{i}", "question": f"Question {prefix} {i}?", "answer": answer}
        for i, answer in enumerate(answers)
    ]


# --- loading ------------------------------------------------------------------------------------


def test_own_data_without_choices_have_free_answers(tmp_path):
    train = own_rows("t", 7, 7.5, "1,000", "ice", True, False, " two  words ")
    folder = write(tmp_path, train=train, test=own_rows("s", "yes", 42))
    data = load_dataset(str(folder), validation_size=0)
    assert [e.label for e in data.train] == ["7", "7.5", "1,000", "ice", "yes", "no", "two words"]
    assert all(e.is_free and e.chance == 0 for e in [*data.train, *data.test])
    card = data_card(data)
    assert card.loc["test", "chance"] == 0 and card.loc["test", "options"] == "1"
    assert card.loc["test", "top_position"] == 0.5, "of the most frequent answer"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "B"}, "no field 'choices'"),
        ({"answer": "(C)"}, "no field 'choices'"),
        ({"answer": None}, r"\(id x\): answer None; expected a number, a word, or yes or no"),
        ({"answer": " "}, "answer ' '; expected a number"),
        ({"answer": ["7"]}, r"answer \['7'\]; expected a number"),
        ({"answer": math.inf}, "answer inf; expected a number"),
        ({}, "no field 'choices'"),
        ({"answer": 1, "choices": ["a", "b"]}, "question 't0' has no field 'choices', and questio"),
    ],
)
def test_bad_rows_are_one_line(tmp_path, row, message):
    rows = [*own_rows("t", 7), {"id": "x", "question": "What?"} | row]
    folder = write(tmp_path, train=rows, test=own_rows("s", "8", "9"))
    with pytest.raises(DataError, match=message):
        load_dataset(str(folder), validation_size=0)


def test_gsm8k_is_read_in_its_official_form(tmp_path):
    def row(n, end):
        return {"question": f"What is {n} and {n}?", "answer": f"{n}+{n}=<<{n}+{n}={end}>>{end}\n"}

    train = [row(n, 2 * n) for n in (600, 2, 3)]
    for r, end in zip(train, ("1,200", "4", "6"), strict=True):
        r["answer"] += f"So it is {end}.\n#### {end}"
    test = [row(n, 2 * n) | {"answer": f"#### {2 * n}"} for n in (7, 8)]
    write(tmp_path / "gsm8k", train=train, test=test)
    data = load_dataset("gsm8k", tmp_path, validation_size=0)
    assert [e.label for e in data.train] == ["1200", "4", "6"]
    assert len({e.id for e in [*data.train, *data.test]}) == 5
    again = load_dataset("gsm8k", tmp_path, validation_size=1)
    assert {e.id for e in [*again.train, *again.validation]} == {e.id for e in data.train}
    first = data.rationales[data.train[0].id]
    assert first == Rationale(data.train[0].id, "600+600=1200 So it is 1,200.", 0)
    write(tmp_path / "gsm8k", train=[train[0], {"question": "What?", "answer": "It is 4."}])
    with pytest.raises(DataError, match="train.jsonl:2: answer 'It is 4.'; expected a solution"):
        load_dataset("gsm8k", tmp_path)
    with pytest.raises(DataError, match="gsm8k: data_dir is empty; expected a folder with gsm8k/"):
        load_dataset("gsm8k")


@needs_shared()
def test_svamp_is_read_with_its_recorded_rationales():
    data = load_dataset("svamp", SHARED, validation_size=50)
    assert len(data.train) == 650 - len(data.left_out["train"]) and len(data.test) == 300
    assert all(e.is_free for e in data.explained)
    for path in (SHARED / "rationales" / "svamp").glob("*.jsonl"):
        found = load_rationales(path, data.explained)
        assert sum(r.answer == 0 for r in found.values()) > 0.97 * len(found)


def test_rationales_keep_whether_the_teacher_was_right(tmp_path):
    rows = [
        {"id": "a", "rationale": "3 + 4.", "answer": "7.0"},
        {"id": "b", "rationale": "Iron floats.", "answer": "no"},
        {"id": "c", "rationale": "It is.", "answer": None},
    ]
    path = write(tmp_path, r=rows) / "r.jsonl"
    found = load_rationales(path, QUESTIONS)
    assert [r.answer for r in found.values()] == [0, None, None]
    write_rationales(found, tmp_path / "again.jsonl", QUESTIONS)
    assert load_rationales(tmp_path / "again.jsonl", QUESTIONS) == found
    card = quality_card(found, QUESTIONS)
    assert card["agrees"] == pytest.approx(1 / 3) and card["chance"] == 0


def test_a_teacher_is_not_asked_about_free_answers(tmp_path):
    data = Dataset("d", QUESTIONS, [], [], {})
    with pytest.raises(DataError, match="'transformers' is asked about options, and question 'a'"):
        from_teacher(
            "transformers",
            QUESTIONS,
            data,
            tmp_path / "out.jsonl",
            demonstrations=[],
            source=TeacherSource(model="tiny-llama"),
            settings=TeacherSettings("blind"),
        )


# --- training and evaluation --------------------------------------------------------------------


def test_the_prompt_shows_no_answer_and_the_target_is_the_answer():
    question = QUESTIONS[0]
    assert prompt_text(question, "post_cot") == f"Question: {question.question}\nAnswer:"
    assert prompt_text(question, "pre_cot") == f"Question: {question.question}\nReason:"
    target = format_target(question, "Add them.", Arm("post_cot"))
    assert target[0] == ("label", " 7\n") and target[2] == ("rationale", " Add them.")
    student = tiny("tiny-llama")
    encoded = encode(student, question, "Add them.", Arm("pre_cot"))
    assert student.decode(list(encoded.ids)).count("7") == 1


def test_written_answers_are_matched():
    said = ["7", " 7.0\nReason: x", "8", "7 or 8", ""]
    assert [parse_answer(text, ("7",)) for text in said] == [0, 0, -1, None, None]
    assert parse_answer("True", ("yes",)) == 0 and parse_answer("water", ("ice",)) == -1


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
@pytest.mark.parametrize("placement", ["post_cot", "pre_cot"])
def test_the_score_is_log_p_of_the_gold_answers_tokens(name, placement):
    """Against one plain pass per question, without caches."""
    student = tiny(name)
    found = evaluate(student, QUESTIONS, placement, max_new_tokens=5, max_label_tokens=6)
    for example, prediction in zip(QUESTIONS, found, strict=True):
        assert prediction["choice"] is None and prediction["gold"] == 0
        assert len(prediction["scores"]) == 1
        assert prediction["generated"] in (0, -1, None)
        if placement == "pre_cot":
            continue
        prompt = student.bos_ids + student.encode(prompt_text(example, placement))
        label = student.encode(f" {example.label}\n")
        with torch.no_grad():
            logits = student.model(torch.tensor([prompt + label])).logits[0].double()
        logs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        expected = sum(row[token].item() for row, token in zip(logs, label, strict=True))
        assert prediction["scores"][0] == pytest.approx(expected, abs=1e-4)
        assert gold_probability(prediction["scores"], 0) == pytest.approx(math.exp(expected), 1e-3)


@pytest.fixture
def free_study(tmp_path, store):
    """A study of a two-layer student on twelve questions whose answer is 7."""
    train = [r | {"rationale": "Three and four."} for r in own_rows("t", *(["7"] * 12))]
    folder = write(tmp_path / "mine", train=train, test=own_rows("s", "7", 7.0, "8", "7 cups"))
    spec = make_spec(dataset=str(folder), validation_size=2, microworld=None)
    hyperparameters = dict(lr=1e-2, epochs=12, batch_size=4, select="best")
    return make_study(data=spec, train=hyperparameters, max_label_tokens=16)


def test_a_study_of_free_answers_is_trained_and_read(free_study):
    """After training on nothing but 7, every arm that ends its answer writes 7."""
    free_study.check()
    free_study.save()
    said = []
    run_grid(
        free_study,
        [Arm("label_only"), Arm("post_cot")],
        "train",
        say=lambda line, **_: said.append(line),
    )
    assert any("written answer 50.0 % of 4" in str(line) for line in said), said
    table = load_predictions(free_study, ["train"])
    assert table["correct_choice"].isna().all() and free_study.chance == 0
    by_arm = table.groupby("arm")
    assert by_arm["correct_generated"].mean().to_dict() == {"label_only": 0.5, "post_cot": 0.5}
    # "7" is right, "7.0" too; 8 is another number, and "7 cups" as gold are words
    assert table[table.arm == "post_cot"].sort_values("id")["generated"].tolist() == [0, 0, -1, -1]
    probability = add_measure(table, "p_gold")["value"]
    assert probability.between(0, 1).all() and probability.max() > 0.5
    with pytest.raises(DataError, match="forced choice needs multiple choice"):
        accuracy_table(table)


def test_letters_as_labels_need_options(free_study):
    for label_format in ("letter", "both"):
        with pytest.raises(DataError, match=f"'{label_format}', and the questions have free answ"):
            free_study.replace(label_format=label_format).check()


# --- measures -----------------------------------------------------------------------------------

PREDICTIONS = [
    {"id": "a", "gold": 0, "generated": 0, "choice": None, "scores": [-0.5]},
    {"id": "b", "gold": 0, "generated": -1, "choice": None, "scores": [-2.0]},
    {"id": "c", "gold": 0, "generated": None, "choice": None, "scores": [-1.0]},
]


def test_accuracy_is_that_of_the_written_answer():
    assert accuracy(PREDICTIONS) == accuracy(PREDICTIONS, "generated") == pytest.approx(1 / 3)
    scores = validation_scores(PREDICTIONS)
    assert scores == {"accuracy": pytest.approx(1 / 3), "label_nll": pytest.approx(3.5 / 3)}


def test_measures_of_free_answers():
    table = pd.DataFrame(PREDICTIONS).assign(
        arm="post_cot",
        seed=0,
        cut_off=[False, False, True],
        tokens_generated=3,
        correct_choice=float("nan"),
        correct_generated=[True, False, False],
    )
    values = add_measure(table, "p_gold")["value"]
    assert values.tolist() == pytest.approx([math.exp(s) for s in (-0.5, -2.0, -1.0)])
    assert add_measure(table, "correct_generated")["value"].tolist() == [1, 0, 0]
    cut = add_measure(table.assign(arm="pre_cot"), "p_gold", cut_off="chance")
    assert cut["value"].tolist()[2] == 0 and cut["flagged"].tolist() == [False, False, True]
    options = {e.id: e.choices for e in QUESTIONS}
    for measure, message in (
        ("correct_choice", "measure correct_choice needs multiple choice"),
        ("acc_norm", "measure acc_norm needs multiple choice"),
    ):
        with pytest.raises(DataError, match=message):
            add_measure(table, measure, options=options)
    written = accuracy_table(table, "correct_generated")
    assert written.loc[0, "accuracy"] == pytest.approx(1 / 3)
    assert written.loc[0, "parse_failures"] == 1
    with pytest.raises(DataError, match="free answers: forced choice needs multiple choice"):
        accuracy_table(table, "correct_choice")
