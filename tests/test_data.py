"""Reading, carving, and the one clear error of each bad input.

It names the file, the line or id, found and expected.
"""

import csv
import json

import numpy as np
import pytest
from conftest import SHARED, needs_shared

from cotdistill import sources
from cotdistill.errors import DataError
from cotdistill.examples import (
    Dataset,
    Example,
    Rationale,
    answer_index,
    gold_index,
    question_key,
    repeats_note,
)
from cotdistill.files import fingerprint
from cotdistill.sources import (
    carve_validation,
    concluded_option,
    data_card,
    load_dataset,
    load_examples,
    load_rationales,
    parse_row,
    write_rationales,
)

ROW = {"id": "a", "question": "what is cold?", "choices": ["ice", "fire"], "answer": "A"}


def folder(tmp_path, train, test=({**ROW, "id": "t", "question": "what burns?", "answer": "B"},)):
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        )
    return str(tmp_path)


def test_own_data_with_letters_indices_and_rationales(tmp_path):
    rows = [
        ROW,
        {**ROW, "id": "b", "question": "and?", "answer": 1, "rationale": "It  burns.\n"},
        {**ROW, "id": "c", "question": "so?", "answer": "b"},
    ]
    data = load_dataset(folder(tmp_path, rows), validation_size=1, data_seed=0)
    assert {e.id: e.answer for e in [*data.train, *data.validation]} == {"a": 0, "b": 1, "c": 1}
    assert len(data.validation) == 1 and [e.id for e in data.test] == ["t"]
    assert data.rationales == {"b": Rationale("b", "It burns.")}


OFFICIAL = {
    "commonsense_qa": (
        {
            "id": "x",
            "question": "q?",
            "choices": {"label": ["A", "B"], "text": ["ice", "fire"]},
            "answerKey": "B",
        },
        "validation",
    ),
    "openbookqa": (
        {
            "id": "x",
            "question_stem": "q?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        "test",
    ),
    "quarel": ({"id": "x", "question": "q? (A) ice (B) fire", "answer_index": 1}, "test"),
}


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_official_formats(tmp_path, dataset):
    row, test_split = OFFICIAL[dataset]
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / f"{test_split}.jsonl").write_text(json.dumps(row) + "\n")
    assert load_examples(dataset, "test", tmp_path) == [Example("x", "q?", ("ice", "fire"), 1)]


BAD_ROWS = {
    "malformed JSON": (
        '{"id": "a", ',
        r"train.jsonl:2: malformed JSON .*expected one object per "
        r"line",
    ),
    "not an object": ("[1]", r"train.jsonl:2: found list; expected a JSON object"),
    "no field": (
        {"id": "b", "choices": ["x", "y"], "answer": 0},
        r"train.jsonl:2: no field 'question'; "
        r"found",
    ),
    "duplicate id": ({**ROW}, r"train.jsonl:2: duplicate id 'a', first seen at .*train.jsonl:1"),
    "answer letter outside": (
        {**ROW, "id": "b", "answer": "C"},
        r"train.jsonl:2 \(id b\): answer 'C' "
        r"is outside the 2 choices; expected "
        r"an index from 0 to 1 or a letter "
        r"from A to B",
    ),
    "answer index outside": ({**ROW, "id": "b", "answer": 2}, r"answer 2 is outside the 2 choices"),
    "answer negative": ({**ROW, "id": "b", "answer": -1}, r"answer -1 is outside"),
    "answer a truth value": ({**ROW, "id": "b", "answer": True}, r"answer True is outside"),
    "answer a text": ({**ROW, "id": "b", "answer": "ice"}, r"answer 'ice' is outside"),
    "one choice": (
        {**ROW, "id": "b", "choices": ["ice"], "answer": 0},
        r"train.jsonl:2 \(id b\): 1 "
        r"choice\(s\); expected a list of at "
        r"least two",
    ),
    "no list of choices": (
        {**ROW, "id": "b", "choices": "ice"},
        r"str choice\(s\); expected a list",
    ),
    "empty choice": (
        {**ROW, "id": "b", "choices": ["ice", " "]},
        r"choice ' '; expected a text that is "
        r"not empty",
    ),
    "empty question": (
        {**ROW, "id": "b", "question": "  "},
        r"train.jsonl:2 \(id b\): empty "
        r"question; expected a text",
    ),
    "id a number": ({**ROW, "id": 7}, r"train.jsonl:2: id 7; expected a text"),
    "too many choices": (
        {**ROW, "id": "b", "choices": [str(i) for i in range(27)]},
        r"27 choices; expected at most 26",
    ),
}


@pytest.mark.parametrize("row, message", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as error:
        load_examples(folder(tmp_path, [ROW, row]), "train")
    assert "\n" not in str(error.value)


BAD_OFFICIAL = {
    "commonsense_qa": ({"answerKey": "E"}, "answer 'E' is outside the choices; expected one of"),
    "openbookqa": ({"choices": ["a", "b"]}, "expected an object with 'label' and 'text'"),
    "quarel": ({"question": "no options"}, r"no '\(A\) .. \(B\) ..' in the question"),
}


@pytest.mark.parametrize("dataset", BAD_OFFICIAL)
def test_bad_official_rows(tmp_path, dataset):
    change, message = BAD_OFFICIAL[dataset]
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / f"{OFFICIAL[dataset][1]}.jsonl").write_text(
        json.dumps(OFFICIAL[dataset][0] | change) + "\n"
    )
    with pytest.raises(DataError, match=message):
        load_examples(dataset, "test", tmp_path)


def test_missing_folder_file_and_network(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match="no such folder; expected a dataset .*microworld/everyday.* or a folder"
    ):
        load_dataset("no/such/folder")
    (tmp_path / "quarel").mkdir()
    with pytest.raises(DataError, match="quarel/train.jsonl: no such file; expected a JSONL file"):
        load_dataset("quarel", tmp_path)
    with pytest.raises(
        DataError, match="validation_size 5 leaves no training question; the train split has 1"
    ):
        load_dataset(folder(tmp_path, [ROW]), validation_size=5)
    with pytest.raises(DataError, match="duplicate id 't'"):
        load_dataset(
            folder(tmp_path, [{**ROW, "id": "t"}, {**ROW, "question": "why?"}]), validation_size=1
        )


BAD_RATIONALES = {
    "unknown id": ([{"id": "z", "rationale": "x"}], r"r.jsonl:1: rationale for an unknown id 'z'"),
    "duplicate": (
        [{"id": "a", "rationale": "x"}, {"id": "a", "rationale": "y"}],
        r"r.jsonl:2: duplicate rationale for "
        r"id 'a'",
    ),
    "covers nothing": (
        [{"id": "a", "rationale": " "}],
        r"r.jsonl: covers none of the 1 training "
        r"questions",
    ),
    "empty file": ([], r"covers none of the 1 training"),
    "a digit letter": (
        [{"id": "a", "rationale": "x", "answer": "1"}],
        r"r.jsonl:1 \(id a\): answer '1'; "
        r"expected a letter, or an index from "
        r"0 as a number",
    ),
    "spans of a text that is not as it stands": (
        [{"id": "a", "rationale": "Ice  melts.", "key_spans": [[5, 10]]}],
        "expected single spaces",
    ),
    "not a text": ([{"id": "a", "rationale": 3}], r"rationale is int; expected a text"),
    "no rationale": ([{"id": "a"}], r"r.jsonl:1: no field 'rationale'"),
}


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
    (tmp_path / "r.jsonl").write_text(
        '{"id": "a", "rationale": "x", "answer": '
        '"neither"}\n{"id": "b", "rationale": "x", "answer": "D"}\n'
    )
    assert {r.answer for r in load_rationales(tmp_path / "r.jsonl", examples).values()} == {None}


def test_carving_is_deterministic_loses_nothing_and_splits_no_repeated_question():
    train = [Example(f"e{i}", f"Question {i // 2}?", ("x", "y"), 0) for i in range(40)]
    rest, validation = carve_validation(train, 10, 3)
    assert (rest, validation) == carve_validation(train, 10, 3) != carve_validation(train, 10, 4)
    assert (
        sorted(e.id for e in rest + validation) == sorted(e.id for e in train)
        and 10 <= len(validation) <= 11
    )
    assert not {question_key(e) for e in rest} & {question_key(e) for e in validation}


def test_answer_index_and_fingerprint():
    assert [answer_index(a, 3, "") for a in ("A", "c", 2, 0)] == [0, 2, 2, 0]
    a, b = Example("a", "q", ("x", "y"), 0), Example("a", "q", ("x", "y"), 1)
    assert fingerprint([a]) == fingerprint([Example("a", "q", ("x", "y"), 0)]) != fingerprint([b])


def test_equal_options_are_one_answer(tmp_path):
    """Official sets hold a few questions with an option twice.

    Whichever is the gold one, or is named, the first stands for both.
    """
    row = {
        "id": "a",
        "question": {"stem": "q?"},
        "question_stem": "q?",
        "choices": {"label": list("ABC"), "text": ["mortal", "dying", "mortal"]},
        "answerKey": "C",
    }
    example = parse_row("openbookqa", row, "f:1")
    assert (
        example.answer == 0 and parse_row("openbookqa", row | {"answerKey": "B"}, "f:1").answer == 1
    )
    (tmp_path / "r.jsonl").write_text('{"id": "a", "rationale": "x", "answer": "C"}\n')
    assert load_rationales(tmp_path / "r.jsonl", [example])["a"].answer == 0


def test_data_card_counts():
    train = [Example("a", "One two?", ("x", "y"), 0), Example("b", "one TWO", ("Y", "X"), 1)]
    card = data_card(
        Dataset(
            "d",
            train,
            [],
            [Example("c", "one two", ("x", "y"), 0), Example("d", "new?", ("z", "z"), 0)],
            {"a": Rationale("a", "r s")},
        )
    )
    assert card.loc[
        "train", ["questions", "duplicates", "rationales", "rationale_words"]
    ].tolist() == [2, 1, 1, 2.0]
    assert card.loc["test", ["questions", "seen_in_train", "equal_options", "chance"]].tolist() == [
        2,
        1,
        1,
        0.5,
    ]


@needs_shared()
@pytest.mark.parametrize(
    "dataset, train, test, options",
    [
        ("commonsense_qa", 9740, 1221, {5}),
        ("openbookqa", 4952, 500, {4}),
        ("quarel", 500, 298, {2}),
    ],
)
def test_the_real_datasets_read_whole(dataset, train, test, options):
    data = load_dataset(dataset, SHARED, validation_size=50)
    repeated = {"openbookqa": 14}.get(dataset, 0)  # test questions that stand in train
    assert (
        len(data.left_out["train"]) == repeated
        and data_card(data).loc["test", "seen_in_train"] == 0
    )
    assert len(data.train) + len(data.validation) + repeated == train and len(data.test) == test
    assert {len(e.choices) for e in data.test} == options
    for recorded in sorted((SHARED / "rationales" / dataset).glob("*.jsonl")):
        found = load_rationales(recorded, [*data.train, *data.validation, *data.left_out["train"]])
        assert len(found) > 0.99 * train
        assert np.mean([r.answer is not None for r in found.values()]) > 0.99


# ---------------------------------------------------------------- answers

GOLD = {  # choices, answer -> option, or what the error says
    "letter": (("ice", "fire"), "B", 1),
    "small letter": (("ice", "fire"), " b ", 1),
    "index": (("ice", "fire"), 1, 1),
    "both readings agree": (("A", "B"), "B", 1),
    "letter and text of another": (
        ("O", "A", "B", "AB"),
        "A",
        r"answer 'A' is the letter of option 'O' and the text of another; expected the index as a "
        r"number, 0 or 1",
    ),
    "in small letters": (
        ("the", "a"),
        "a",
        "answer 'a' is the letter of option 'the' and the text of another",
    ),
    "index where letters are options": (("O", "A", "B", "AB"), 1, 1),
    "a text beyond the letters": (
        ("O", "A", "B", "AB"),
        "O",
        r"outside the letters, and an option's text; expected an index from 0 to 3 \(here 0\)",
    ),
    "digits that are an option": (("0", "1", "2"), "1", 1),
    "digits that are another index's option": (("1", "2"), "1", 0),
    "digits that are no option": (
        ("ice", "fire"),
        "1",
        "answer '1' is a text; expected a number, an index from 0 to 1, or a letter from A to B",
    ),
    "an option's text": (
        ("ice", "fire"),
        "fire",
        r"answer 'fire' is outside .*expected an index from 0 to 1 \(here 1\) or a letter from A "
        r"to B \(here B\)",
    ),
    "a fraction": (("ice", "fire"), 1.0, "answer 1.0 is outside the 2 choices"),
}


@pytest.mark.parametrize("choices, answer, wanted", GOLD.values(), ids=GOLD)
def test_gold_answers(choices, answer, wanted):
    if isinstance(wanted, int):
        assert gold_index(answer, choices, "f:1") == wanted
    else:
        with pytest.raises(DataError, match="^f:1: .*" + wanted):
            gold_index(answer, choices, "f:1")


CONCLUDED = {  # answer -> option of ("ice", "Fire", "7", "a cup")
    "B": 1,
    "b": 1,
    "(B)": 1,
    "(b)": 1,
    "B.": 1,
    "B)": 1,
    "fire": 1,
    "FIRE.": 1,
    " fire ": 1,
    "B. fire": 1,
    "(B) Fire.": 1,
    "B: fire": 1,
    1: 1,
    7: 2,
    "7": 2,
    "C. 7": 2,
    "a cup": 3,
    "D) a  cup": 3,
    "Ice": 0,
    0: 0,
    "E": None,
    "(Z)": None,
    "neither": None,
    "B. ice": None,
    "B or C": None,
    "A cup of tea": None,
    99: None,
    -1: None,
    "": None,
    None: None,
    2.5: None,
    "C. However, A is right": None,
}


@pytest.mark.parametrize("answer", CONCLUDED, ids=repr)
def test_recorded_answers_in_every_form(tmp_path, answer):
    wanted, example = CONCLUDED[answer], Example("a", "q?", ("ice", "Fire", "7", "a cup"), 0)
    (tmp_path / "r.jsonl").write_text(
        json.dumps({"id": "a", "rationale": "x", "answer": answer}) + "\n"
    )
    assert load_rationales(tmp_path / "r.jsonl", [example])["a"].answer == wanted


def test_recorded_answers_of_lists_and_truth_values_are_abstentions():
    for answer in (True, False, ["A"], {"answer": "A"}, None):
        assert concluded_option(answer, ("ice", "fire"), "r:1") is None


def test_a_recorded_answer_with_two_readings_is_refused(tmp_path):
    example = Example("a", "q?", ("O", "A", "B", "AB"), 0)
    for answer in ("A", "B.", "b"):
        (tmp_path / "r.jsonl").write_text(
            json.dumps({"id": "a", "rationale": "x", "answer": answer}) + "\n"
        )
        with pytest.raises(
            DataError,
            match=r"r.jsonl:1 \(id a\): answer .* is the letter of option .* the text of .* '\(",
        ):
            load_rationales(tmp_path / "r.jsonl", [example])
    assert [
        concluded_option(a, example.choices, "") for a in ("(A)", "(b)", 1, "AB", "O", "D. AB", "D")
    ] == [0, 1, 1, 3, 0, 3, 3]
    for option in range(4):  # what is written is read back
        found = {"a": Rationale("a", "x", option)}
        write_rationales(found, tmp_path / "r.jsonl", [example])
        assert load_rationales(tmp_path / "r.jsonl", [example]) == found


# ---------------------------------------------------------------- forms of a split

NESTED = {
    "id": "x",
    "question": {
        "stem": "q?",
        "question_concept": "heat",
        "choices": [{"label": "A", "text": "ice"}, {"label": "B", "text": "fire"}],
    },
    "answerKey": "B",
}


@pytest.mark.parametrize(
    "dataset, name",
    [
        ("commonsense_qa", "validation"),
        ("commonsense_qa", "dev_rand_split"),
        ("openbookqa", "test"),
    ],
)
def test_the_authors_own_nested_layout(tmp_path, dataset, name):
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / f"{name}.jsonl").write_text(json.dumps(NESTED) + "\n")
    assert load_examples(dataset, "test", tmp_path) == [Example("x", "q?", ("ice", "fire"), 1)]
    broken = NESTED | {"question": {"choices": NESTED["question"]["choices"]}}
    (tmp_path / dataset / f"{name}.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(DataError, match="jsonl:1: no field 'stem'"):
        load_examples(dataset, "test", tmp_path)


def test_the_authors_own_file_names_of_quarel(tmp_path):
    (tmp_path / "quarel").mkdir()
    (tmp_path / "quarel" / "quarel-v1-dev.jsonl").write_text(
        json.dumps(OFFICIAL["quarel"][0]) + "\n"
    )
    assert [e.id for e in load_examples("quarel", "validation", tmp_path)] == ["x"]
    (tmp_path / "quarel" / "validation.jsonl").write_text(json.dumps(OFFICIAL["quarel"][0]) + "\n")
    with pytest.raises(
        DataError,
        match="validation appears twice, as validation.jsonl and quarel-v1-dev.jsonl; exp",
    ):
        load_examples("quarel", "validation", tmp_path)


ROWS = [
    {**ROW, "id": "a", "rationale": "It is frozen."},
    {**ROW, "id": "b", "question": "warm, or not?", "answer": "B", "rationale": "It burns."},
    {**ROW, "id": "c", "question": "größer?", "rationale": ""},
]


def write_jsonl_with_a_mark(folder, rows):
    (folder / "train.jsonl").write_bytes(
        b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\r\n" for row in rows).encode()
    )


def write_array(folder, rows):
    (folder / "train.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(folder, rows, **options):
    with (folder / "train.csv").open("w", newline="", encoding="utf-8-sig") as file:
        out = csv.DictWriter(file, [*rows[0]])
        out.writeheader()
        out.writerows(
            row | ({"choices": json.dumps(row["choices"])} if "choices" in row else {})
            for row in rows
        )


def write_parquet(folder, rows):
    from datasets import Dataset as Table

    Table.from_list(rows).to_parquet(str(folder / "train.parquet"))


def write_shards(folder, rows):
    from datasets import Dataset as Table

    for n, part in enumerate((rows[:1], rows[1:])):
        Table.from_list(part).to_parquet(str(folder / f"train-0000{n}-of-00002.parquet"))


def write_saved(folder, rows):
    from datasets import Dataset as Table

    Table.from_list(rows).with_format("numpy").save_to_disk(str(folder / "train"))


FORMS = {
    f.__name__: f
    for f in (
        write_jsonl_with_a_mark,
        write_array,
        write_csv,
        write_parquet,
        write_shards,
        write_saved,
    )
}


@pytest.mark.parametrize("write", FORMS.values(), ids=FORMS)
def test_every_form_of_a_split_gives_the_same_questions(tmp_path, write):
    path = folder(tmp_path, [])
    (tmp_path / "train.jsonl").unlink()
    write(tmp_path, ROWS)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    data = load_dataset(path, validation_size=0)
    assert data.train == [
        Example("a", "what is cold?", ("ice", "fire"), 0),
        Example("b", "warm, or not?", ("ice", "fire"), 1),
        Example("c", "größer?", ("ice", "fire"), 0),
    ]
    assert data.rationales == {
        "a": Rationale("a", "It is frozen."),
        "b": Rationale("b", "It burns."),
    }
    assert sorted(p.name for p in tmp_path.rglob("*")) == before, "reading writes nothing"


@pytest.mark.parametrize(
    "write", [f for name, f in FORMS.items() if name != "write_jsonl_with_a_mark"]
)
def test_a_bad_row_is_named_in_every_form(tmp_path, write):
    (tmp_path / "own").mkdir()
    write(tmp_path / "own", [ROWS[0], ROWS[1] | {"answer": "C"}])
    with pytest.raises(
        DataError, match=r"own/train\S*, row 2 \(id b\): answer 'C' is outside the 2 choices"
    ):
        load_examples(str(tmp_path / "own"), "train")


def test_csv_with_a_column_per_option_and_digits_as_answers(tmp_path):
    rows = [
        {"id": "1", "question": "q?", "A": "ice", "B": "fire", "C": "", "answer": "1"},
        {"id": "2", "question": "r?", "A": "x", "B": "y", "C": "7", "answer": "7"},
        {"id": "3", "question": "NA", "A": "x", "B": "None", "C": "z", "answer": "c"},
    ]
    write_csv(tmp_path, rows)
    assert load_examples(tmp_path, "train") == [
        Example("1", "q?", ("ice", "fire"), 1),
        Example("2", "r?", ("x", "y", "7"), 2),
        Example("3", "NA", ("x", "None", "z"), 2),
    ]


BAD_FILES = {
    "cells missing": (
        "train.csv",
        "id,question,A,B,answer\na,q?,x,y\n",
        r"train.csv, row 1: 4 cells; expected 5",
    ),
    "an open quote": (
        "train.csv",
        'id,question,A,B,answer\na,"q?,x,y,A\n',
        "train.csv: malformed CSV",
    ),
    "a column twice": ("train.csv", "id,id\na,b\n", "a column appears twice"),
    "choices no list": (
        "train.csv",
        "id,question,choices,answer\na,q?,ice;fire,A\n",
        "train.csv, row 1: choices 'ice;fire'; expected a JSON list, or columns A, B, C",
    ),
    "index and text": (
        "train.csv",
        "id,question,A,B,answer\na,q?,1,2,1\n",
        "train.csv, row 1: answer 1 is an index and the text of another option; expected a "
        "letter, B or A",
    ),
    "no rows": ("train.csv", "id,question,A,B,answer\n", "train.csv: no question in it"),
    "empty": ("train.csv", "", "train.csv: no question in it"),
    "csv of another encoding": ("train.csv", b"id\n\xff\n", "train.csv: not UTF-8"),
    "an object": ("train.json", "{}", "train.json: found dict; expected a JSON array of objects"),
    "an array of texts": (
        "train.json",
        '["x"]',
        "train.json, row 1: found str; expected a JSON array of objects",
    ),
    "half an array": ("train.json", '[{"id": ', "train.json: malformed JSON"),
    "a key twice": ("train.json", '[{"id": "a", "id": "b"}]', "the key 'id' appears twice"),
    "no Parquet": (
        "train.parquet",
        b"PAR1 nonsense",
        r"train.parquet: can't be read \(.*expected a Parquet file",
    ),
    "a shard missing": (
        "train-00000-of-00002.parquet",
        b"",
        "train-00001-of-00002.parquet: no such file; expected all 2 shards",
    ),
    "a folder of datasets without its data": (
        "train/state.json",
        "{}",
        r"train: can't be read .*expected a folder saved by `datasets`",
    ),
    "nothing": (
        "other.txt",
        "",
        r"train.jsonl: no such file; expected a JSONL file, one object per line, or a split as "
        r".json",
    ),
}


@pytest.mark.parametrize("name, content, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_of_every_form(tmp_path, name, content, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        load_examples(tmp_path, "train")
    assert str(error.value).isprintable()


# ---------------------------------------------------------------- questions in two splits


def test_training_questions_of_the_later_splits_are_left_out_and_counted(tmp_path):
    """Validation and test count as later; case and order of options make no other question."""
    ask = lambda key, question, **more: {**ROW, "id": key, "question": question, **more}
    train = [
        ask("a", "one?", rationale="r"),
        ask("b", "TWO!", choices=["fire", "ice"]),
        ask("c", "three?"),
        ask("d", "four?"),
    ]
    path = folder(tmp_path, train, [ask("t", "two?"), ask("u", "five?")])
    (tmp_path / "validation.jsonl").write_text(
        "".join(
            json.dumps(ask(*r)) + "\n" for r in (("v", "three?"), ("w", "five?"), ("x", "six?"))
        )
    )
    data = load_dataset(path, validation_size=0)
    assert [[e.id for e in part] for part in (data.train, data.validation, data.test)] == [
        ["a", "d"],
        ["v", "x"],
        ["t", "u"],
    ]
    assert {split: [e.id for e in rows] for split, rows in data.left_out.items()} == {
        "train": ["b", "c"],
        "validation": ["w"],
    }
    card = data_card(data)
    assert card["left_out"].tolist() == [2, 1, 0] and card["seen_in_train"].tolist() == [0, 0, 0]
    assert repeats_note(data) == (
        "left out of training, as they also stand in the validation or test split: 2; left out of "
        "validation, as they also stand in the test split: 1"
    )
    (tmp_path / "validation.jsonl").unlink()
    data = load_dataset(path, validation_size=1)
    assert (
        len(data.train) == 2
        and len(data.validation) == 1
        and [e.id for e in data.left_out["train"]] == ["b"]
    )
    (tmp_path / "train.jsonl").write_text(json.dumps(ask("a", "two?")) + "\n")
    with pytest.raises(
        DataError,
        match="all 1 training questions also stand in the validation or test split; expected other",
    ):
        load_dataset(path, validation_size=0)


def test_nothing_is_left_out_of_microworld_or_where_nothing_is_repeated(tmp_path):
    assert (
        load_dataset(
            "microworld/everyday", microworld=dict(n_train=12, n_test=8), validation_size=4
        ).left_out
        == {}
    )
    data = load_dataset(folder(tmp_path, ROWS), validation_size=0)
    assert data.left_out == {"train": [], "validation": []} and repeats_note(data) == ""


def test_a_new_dataset_is_one_entry(tmp_path, monkeypatch):
    entry = dict(hub=None, splits={"train": "train", "test": "test"}, files={})
    entry["parse"] = lambda row, where: Example(row["n"], row["stem"], tuple(row["of"]), row["is"])
    monkeypatch.setitem(sources.SOURCES, "riddles", entry)
    rows = [{"n": f"r{i}", "stem": f"Riddle {i}?", "of": ["ice", "fire"], "is": 1} for i in (0, 1)]
    (tmp_path / "riddles").mkdir()
    folder(tmp_path / "riddles", rows[:1], rows[1:])
    data = load_dataset("riddles", tmp_path, validation_size=0)
    assert [e.label for e in [*data.train, *data.test]] == ["fire", "fire"]
    assert "riddles" in sources.expected_data()
