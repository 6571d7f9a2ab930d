"""Reading, carving, and the one clear error of each bad input: it names the file, the line or id, found and expected."""

import json

import pytest

from conftest import SHARED, needs_shared
from cotdistill.data import (DataError, Dataset, Example, Rationale, answer_index, carve_validation, data_card, fingerprint, load_dataset,
                             load_examples, load_rationales, parse_row, question_key, write_rationales)

ROW = {"id": "a", "question": "what is cold?", "choices": ["ice", "fire"], "answer": "A"}


def folder(tmp_path, train, test=({**ROW, "id": "t"},)):
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(tmp_path)


def test_own_data_with_letters_indices_and_rationales(tmp_path):
    rows = [ROW, {**ROW, "id": "b", "question": "and?", "answer": 1, "rationale": "It  burns.\n"}, {**ROW, "id": "c", "question": "so?", "answer": "b"}]
    data = load_dataset(folder(tmp_path, rows), validation_size=1, data_seed=0)
    assert {e.id: e.answer for e in [*data.train, *data.validation]} == {"a": 0, "b": 1, "c": 1}
    assert len(data.validation) == 1 and [e.id for e in data.test] == ["t"]
    assert data.rationales == {"b": Rationale("b", "It burns.")}


OFFICIAL = {
    "commonsense_qa": ({"id": "x", "question": "q?", "choices": {"label": ["A", "B"], "text": ["ice", "fire"]}, "answerKey": "B"}, "validation"),
    "openbookqa": ({"id": "x", "question_stem": "q?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}, "test"),
    "quarel": ({"id": "x", "question": "q? (A) ice (B) fire", "answer_index": 1}, "test")}


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_official_formats(tmp_path, dataset):
    row, test_split = OFFICIAL[dataset]
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / f"{test_split}.jsonl").write_text(json.dumps(row) + "\n")
    assert load_examples(dataset, "test", tmp_path) == [Example("x", "q?", ("ice", "fire"), 1)]


BAD_ROWS = {
    "malformed JSON": ('{"id": "a", ', r"train.jsonl:2: malformed JSON .*expected one object per line"),
    "not an object": ("[1]", r"train.jsonl:2: found list; expected a JSON object"),
    "no field": ({"id": "b", "choices": ["x", "y"], "answer": 0}, r"train.jsonl:2: no field 'question'; found"),
    "duplicate id": ({**ROW}, r"train.jsonl:2: duplicate id 'a', first seen at .*train.jsonl:1"),
    "answer letter outside": ({**ROW, "id": "b", "answer": "C"}, r"train.jsonl:2 \(id b\): answer 'C' is outside the 2 choices; expected an index from 0 to 1 or a letter from A to B"),
    "answer index outside": ({**ROW, "id": "b", "answer": 2}, r"answer 2 is outside the 2 choices"),
    "answer negative": ({**ROW, "id": "b", "answer": -1}, r"answer -1 is outside"),
    "answer a truth value": ({**ROW, "id": "b", "answer": True}, r"answer True is outside"),
    "answer a text": ({**ROW, "id": "b", "answer": "ice"}, r"answer 'ice' is outside"),
    "one choice": ({**ROW, "id": "b", "choices": ["ice"], "answer": 0}, r"train.jsonl:2 \(id b\): 1 choice\(s\); expected a list of at least two"),
    "no list of choices": ({**ROW, "id": "b", "choices": "ice"}, r"str choice\(s\); expected a list"),
    "empty choice": ({**ROW, "id": "b", "choices": ["ice", " "]}, r"choice ' '; expected a text that is not empty"),
    "empty question": ({**ROW, "id": "b", "question": "  "}, r"train.jsonl:2 \(id b\): empty question; expected a text"),
    "id a number": ({**ROW, "id": 7}, r"train.jsonl:2: id 7; expected a text"),
    "too many choices": ({**ROW, "id": "b", "choices": [str(i) for i in range(27)]}, r"27 choices; expected at most 26"),
}


@pytest.mark.parametrize("row, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as error:
        load_examples(folder(tmp_path, [ROW, row]), "train")
    assert "\n" not in str(error.value)


BAD_OFFICIAL = {"commonsense_qa": ({"answerKey": "E"}, "answer 'E' is outside the choices; expected one of"),
                "openbookqa": ({"choices": ["a", "b"]}, "expected an object with 'label' and 'text'"),
                "quarel": ({"question": "no options"}, r"no '\(A\) .. \(B\) ..' in the question")}


@pytest.mark.parametrize("dataset", BAD_OFFICIAL)
def test_bad_official_rows(tmp_path, dataset):
    change, message = BAD_OFFICIAL[dataset]
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / f"{OFFICIAL[dataset][1]}.jsonl").write_text(json.dumps(OFFICIAL[dataset][0] | change) + "\n")
    with pytest.raises(DataError, match=message):
        load_examples(dataset, "test", tmp_path)


def test_missing_folder_file_and_network(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such folder; expected a dataset .*microworld/everyday.* or a folder"):
        load_dataset("no/such/folder")
    (tmp_path / "quarel").mkdir()
    with pytest.raises(DataError, match="quarel/train.jsonl: no such file; expected a JSONL file"):
        load_dataset("quarel", tmp_path)
    with pytest.raises(DataError, match="validation_size 5 leaves no training question; the train split has 1"):
        load_dataset(folder(tmp_path, [ROW]), validation_size=5)
    with pytest.raises(DataError, match="duplicate id 't'"):
        load_dataset(folder(tmp_path, [{**ROW, "id": "t"}, {**ROW, "question": "why?"}]), validation_size=1)


BAD_RATIONALES = {
    "unknown id": ([{"id": "z", "rationale": "x"}], r"r.jsonl:1: rationale for an unknown id 'z'"),
    "duplicate": ([{"id": "a", "rationale": "x"}, {"id": "a", "rationale": "y"}], r"r.jsonl:2: duplicate rationale for id 'a'"),
    "covers nothing": ([{"id": "a", "rationale": " "}], r"r.jsonl: covers none of the 1 training questions"),
    "empty file": ([], r"covers none of the 1 training"),
    "a digit letter": ([{"id": "a", "rationale": "x", "answer": "1"}], r"r.jsonl:1 \(id a\): answer '1'; expected a letter, or an index from 0 as a number"),
    "spans of a text that is not as it stands": ([{"id": "a", "rationale": "Ice  melts.", "key_spans": [[5, 10]]}], "expected single spaces"),
    "not a text": ([{"id": "a", "rationale": 3}], r"rationale is int; expected a text"),
    "no rationale": ([{"id": "a"}], r"r.jsonl:1: no field 'rationale'")}


@pytest.mark.parametrize("rows, message", BAD_RATIONALES.values(), ids=BAD_RATIONALES)
def test_bad_rationale_files(tmp_path, rows, message):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match=message):
        load_rationales(tmp_path / "r.jsonl", [Example("a", "q?", ("x", "y"), 0)])


def test_rationales_round_trip_and_odd_conclusions_are_abstentions(tmp_path):
    examples = [Example(i, "q?", ("x", "y"), 0) for i in "abc"]
    found = {"a": Rationale("a", "Ünï 🙂.", 1, ((0, 3),)), "b": Rationale("b", "y", None)}
    write_rationales(found, tmp_path / "r.jsonl")
    assert load_rationales(tmp_path / "r.jsonl", examples) == found
    (tmp_path / "r.jsonl").write_text('{"id": "a", "rationale": "x", "answer": "neither"}\n{"id": "b", "rationale": "x", "answer": "D"}\n')
    assert {r.answer for r in load_rationales(tmp_path / "r.jsonl", examples).values()} == {None}


def test_carving_is_deterministic_loses_nothing_and_splits_no_repeated_question():
    train = [Example(f"e{i}", f"Question {i // 2}?", ("x", "y"), 0) for i in range(40)]
    rest, validation = carve_validation(train, 10, 3)
    assert (rest, validation) == carve_validation(train, 10, 3) != carve_validation(train, 10, 4)
    assert sorted(e.id for e in rest + validation) == sorted(e.id for e in train) and 10 <= len(validation) <= 11
    assert not {question_key(e) for e in rest} & {question_key(e) for e in validation}


def test_answer_index_and_fingerprint():
    assert [answer_index(a, 3, "") for a in ("A", "c", 2, 0)] == [0, 2, 2, 0]
    a, b = Example("a", "q", ("x", "y"), 0), Example("a", "q", ("x", "y"), 1)
    assert fingerprint([a]) == fingerprint([Example("a", "q", ("x", "y"), 0)]) != fingerprint([b])


def test_equal_options_are_one_answer(tmp_path):
    """Official sets hold a few questions with an option twice: whichever is the gold one, or is named, the first stands for both."""
    row = {"id": "a", "question": {"stem": "q?"}, "question_stem": "q?", "choices": {"label": list("ABC"), "text": ["mortal", "dying", "mortal"]}, "answerKey": "C"}
    example = parse_row("openbookqa", row, "f:1")
    assert example.answer == 0 and parse_row("openbookqa", row | {"answerKey": "B"}, "f:1").answer == 1
    (tmp_path / "r.jsonl").write_text('{"id": "a", "rationale": "x", "answer": "C"}\n')
    assert load_rationales(tmp_path / "r.jsonl", [example])["a"].answer == 0


def test_data_card_counts():
    train = [Example("a", "One two?", ("x", "y"), 0), Example("b", "one TWO", ("Y", "X"), 1)]
    card = data_card(Dataset("d", train, [], [Example("c", "one two", ("x", "y"), 0), Example("d", "new?", ("z", "z"), 0)], {"a": Rationale("a", "r s")}))
    assert card.loc["train", ["questions", "duplicates", "rationales", "rationale_words"]].tolist() == [2, 1, 1, 2.0]
    assert card.loc["test", ["questions", "seen_in_train", "equal_options", "chance"]].tolist() == [2, 1, 1, 0.5]


@needs_shared()
@pytest.mark.parametrize("dataset, train, test, options", [("commonsense_qa", 9740, 1221, {5}), ("openbookqa", 4952, 500, {4}), ("quarel", 500, 298, {2})])
def test_the_real_datasets_read_whole(dataset, train, test, options):
    data = load_dataset(dataset, SHARED, validation_size=50)
    assert len(data.train) + len(data.validation) == train and len(data.test) == test
    assert {len(e.choices) for e in data.test} == options
    recorded = sorted((SHARED / "rationales" / dataset).glob("*.jsonl"))[0]
    assert len(load_rationales(recorded, [*data.train, *data.validation])) > 0.99 * train
