"""Reading and matching free answers, case by case."""

import json
from fractions import Fraction

import pytest
from conftest import SHARED, needs_shared

from cotdistill.free_answers import gold_kind, match_answer, read_number

RIGHT = [  # (written, gold)
    ("42", "42"),
    (" 42\n", "42"),
    ("42\nReason: 6 x 7 = 41", "42"),
    ("42.0", "42"),
    ("42.00", "42"),
    ("42.", "42"),
    ("042", "42"),
    ("42", "42.0"),
    ("1,000", "1000"),
    ("1000", "1,000"),
    ("1,234,567.5", "1234567.5"),
    ("$42", "42"),
    ("$ 42", "42"),
    ("42 dollars", "$42"),
    ("€42.50", "42.5"),
    ("42 apples", "42"),
    ("42 apples.", "42"),
    ("42kg", "42"),
    ("42-year-old", "42"),
    ("about 42", "42"),
    ("(42)", "42"),
    ("**42**", "42"),
    ('"42"', "42"),
    ("42!", "42"),
    ("42, 42", "42"),
    ("-5", "-5"),
    ("−5", "-5"),
    ("- 5", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("minus 5", "-5"),
    ("negative five", "-5"),
    ("+5", "5"),
    ("1/2", "0.5"),
    ("0.5", "1/2"),
    (".5", "0.5"),
    ("½", "0.5"),
    ("1 1/2", "1.5"),
    ("1½ cups", "1.5"),
    ("2/4", "1/2"),
    ("-1/2", "-0.5"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("50 percent", "50%"),
    ("50", "50%"),
    ("0.5", "50%"),
    ("12.5 %", "12.5%"),
    ("1e3", "1000"),
    ("seven", "7"),
    ("Forty-two.", "42"),
    ("zero", "0"),
    ("3 + 4 = 7", "7"),
    ("x = 7", "7"),
    ("3 + 4 = 7 apples", "7"),
    ("The answer is 42", "42"),
    ("The answer is: 42.", "42"),
    ("21 x 2, so the answer is 42", "42"),
    ("#### 42", "42"),
    ("6 x 7 #### 42", "42"),
    ("Paris", "Paris"),
    ("paris.", "Paris"),
    ("The Eiffel Tower", "eiffel tower"),
    ("an  ice-cream", "ice cream"),
    ("The answer is Paris", "Paris"),
    ("don't know", "dont know"),
    ("Boeing 747", "the Boeing 747"),
    ("42 apples", "42 Apples"),
    ("The", "the"),
    ("yes", "yes"),
    ("Yes.", "yes"),
    ("YES", "Yes"),
    ("true", "yes"),
    ("No", "false"),
    ("no, because yes-men abound", "no"),
    ("No: it sinks", "no"),
    ("Yes it does", "yes"),
    ("It is true", "true"),
    ("The answer is no", "no"),
    ("yes, yes", "yes"),
]
OTHER = [  # another answer than the right one
    ("43", "42"),
    ("42", "-42"),
    ("-42", "42"),
    ("420", "42"),
    ("4.2", "42"),
    ("1.000", "1000"),
    ("0.33", "1/3"),
    ("5%", "50"),
    ("1/3", "0.3"),
    ("7 = 7 x 1 = 8", "7"),
    ("The answer is 41", "42"),
    ("eight", "7"),
    ("ice cream", "ice"),
    ("not ice", "ice"),
    ("ice or water", "ice"),
    ("Pari", "Paris"),
    ("cups", "cup"),
    ("no", "yes"),
    ("False.", "yes"),
    ("Boeing 737", "Boeing 747"),
]
NONE = [  # wrong readings: nothing that can be meant in one way
    ("", "42"),
    ("not 42", "42"),
    ("isn't 42", "42"),
    ("42 or 43", "42"),
    ("42 or 43", "43"),
    ("either 42", "42"),
    ("41, no, 42", "42"),
    ("42 (21 x 2)", "42"),
    ("7 = 3 + 4", "7"),
    ("3 + 4", "7"),
    ("40-42", "42"),
    ("40 to 42", "42"),
    ("between 40 and 42", "42"),
    ("less than 42", "42"),
    ("at least 42", "42"),
    ("42nd", "42"),
    ("3:42", "42"),
    ("1/2/2020", "0.5"),
    ("1.2.3", "1.2"),
    ("1/0", "1"),
    ("1,5", "1.5"),
    ("1,00", "100"),
    ("1 000", "1000"),
    ("12,34,567", "1234567"),
    ("B2", "2"),
    ("apples", "42"),
    ("some forty-two", "42"),
    ("yes or no", "yes"),
    ("yes and no", "no"),
    ("yes/no", "yes"),
    ("Yes, no", "yes"),
    ("no doubt", "no"),
    ("not true", "no"),
    ("maybe", "yes"),
    ("", "yes"),
    ("...", "Paris"),
]


@pytest.mark.parametrize(("text", "gold"), RIGHT)
def test_right_answers(text, gold):
    assert match_answer(text, gold) is True


@pytest.mark.parametrize(("text", "gold"), OTHER)
def test_other_answers(text, gold):
    assert match_answer(text, gold) is False


@pytest.mark.parametrize(("text", "gold"), NONE)
def test_texts_that_are_no_answer(text, gold):
    assert match_answer(text, gold) is None


def test_kinds_of_gold_answers():
    kinds = {
        "number": ("42", "-1.5", "1,000", "$42", "50%", "1/2", "1 1/2", ".5", "−3"),
        "yes_no": ("yes", "No", "True", "false."),
        "word": ("Paris", "42 apples", "Boeing 747", "seven", "1,5", "yes sir", "3:30", "2-3"),
    }
    assert {gold: gold_kind(gold) for golds in kinds.values() for gold in golds} == {
        gold: kind for kind, golds in kinds.items() for gold in golds
    }


def test_numbers_are_exact_and_every_gold_matches_itself():
    assert read_number("0.1") == (Fraction(1, 10), False)
    assert read_number("2/3 %") == (Fraction(2, 3), True)
    assert read_number("  \n 42 \n") == (Fraction(42), False), "blank lines before it are skipped"
    for _, gold in [*RIGHT, *OTHER]:
        assert match_answer(gold, gold) is True, gold


@needs_shared()
def test_the_recorded_answers_of_svamp_agree_with_gold_as_often_as_is_known():
    def read(path):
        lines = path.read_text(encoding="utf-8").split("\n")
        return {row["id"]: row["answer"] for row in map(json.loads, filter(None, lines))}

    gold = read(SHARED / "svamp" / "train.jsonl")
    assert {gold_kind(answer) for answer in gold.values()} == {"number"}
    shares = {}
    for path in (SHARED / "rationales" / "svamp").glob("*.jsonl"):
        said = {key: answer for key, answer in read(path).items() if answer is not None}
        right = [match_answer(answer, gold[key]) for key, answer in said.items()]
        shares[path.stem] = sum(map(bool, right)) / len(gold)
    assert shares["human"] == 1
    assert min(shares.values()) > 0.97, shares
