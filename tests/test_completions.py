"""How a teacher's text is taken apart.

A table of the forms that today's teachers write, thoughts, closings, scrubbing, and the readings of
the recorded sets.
"""

import re
from pathlib import Path

import pytest

from cotdistill.elicit.completions import cut_closing, parse_completion, read_completion
from cotdistill.elicit.quality import remove_label
from cotdistill.elicit.thoughts import clean_text, split_thought
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, answer_index, first_equal
from cotdistill.files import read_jsonl
from cotdistill.sources import parse_row

TOOL = Example("t", "What cuts bread?", ("glass", "a knife", "copper"), 1)
YES = Example("y", "Does ice float?", ("yes", "no"), 0)
NUMBERS = Example("n", "How many?", ("1", "2", "3", "4"), 1)
SUMS = Example("s", "How much?", ("12", "8", "4", "-4"), 2)
A, B, C, NONE = 0, 1, 2, None
ANY = object()  # the rationale does not matter

FORMS = {
    # the form that was asked for, and small changes of it
    "Steel is hard.\nAnswer: (B)": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: B": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: B.": (B, "Steel is hard."),
    "Steel is hard.\nanswer: b": (B, "Steel is hard."),
    "Steel is hard.\nanswer: (b)": (B, "Steel is hard."),
    "Steel is hard.\nANSWER: B": (B, "Steel is hard."),
    "Steel is hard.\n(b)": (B, "Steel is hard."),
    "Steel is hard.\n(B)": (B, "Steel is hard."),
    "Steel is hard.\nB": (B, "Steel is hard."),
    "Steel is hard.\nB.": (B, "Steel is hard."),
    "Steel is hard.\n**B**": (B, "Steel is hard."),
    "Steel is hard.\n\n**B. a knife**": (B, "Steel is hard."),
    "Steel is hard.\n\nB) a knife": (B, "Steel is hard."),
    "(b)": (B, ""),
    "(B)": (B, ""),
    "b": (B, ""),
    "B": (B, ""),
    "B) a knife": (B, ""),
    "[B]": (B, ""),
    "`B`": (B, ""),
    "Steel is hard.\n**Answer:** (B)": (B, "Steel is hard."),
    "Steel is hard.\n**Answer: (B)**": (B, "Steel is hard."),
    "Steel is hard.\n**Answer:**\n(B)": (B, "Steel is hard."),
    "Steel is hard.\n\n**Answer:**\n\n**(B) a knife**": (B, "Steel is hard."),
    "Steel is hard.\nAnswer:\nB": (B, "Steel is hard."),
    "Steel is hard.\n\n### Final Answer\n(B)": (B, "Steel is hard."),
    "Steel is hard.\n\n### Final Answer\n\n**B**": (B, "Steel is hard."),
    "Steel is hard.\n\n### Final Answer: B": (B, "Steel is hard."),
    "Steel is hard.\n\n## Answer\nB. a knife": (B, "Steel is hard."),
    "Steel is hard.\n\n**Final Answer**\n$\\boxed{B}$": (B, "Steel is hard."),
    "Steel is hard.\n**Final Answer: B**": (B, "Steel is hard."),
    "Steel is hard.\nFinal answer: $B$": (B, "Steel is hard."),
    "Steel is hard.\n$B$": (B, "Steel is hard."),
    "Steel is hard.\n\\boxed{B}": (B, "Steel is hard."),
    "Steel is hard.\n$\\boxed{B}$": (B, "Steel is hard."),
    "Steel is hard.\n\\[\\boxed{B}\\]": (B, ANY),
    "Steel is hard.\n$$\\boxed{\\text{B}}$$": (B, ANY),
    "Steel is hard. So the answer is $\\boxed{B}$.": (B, "Steel is hard."),
    "Steel is hard. The final answer is $\\boxed{\\text{(B) a knife}}$.": (B, "Steel is hard."),
    "Steel is hard. Therefore \\boxed{\\textbf{(B)}}": (B, ANY),
    "Steel is hard.\n#### B": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: `B`": (B, "Steel is hard."),
    'Steel is hard.\nAnswer: "B"': (B, "Steel is hard."),
    "Steel is hard.\nAnswer: [B]": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: [[B]]": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: <B>": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: {B}": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: B - a knife": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: B: a knife": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: b) a knife": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: Option B": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: option b": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: A KNIFE": (B, "Steel is hard."),
    "Steel is hard.\nAnswer: knife": (B, "Steel is hard."),
    "Steel is hard.\nAnswer - B": (B, "Steel is hard."),
    "Steel is hard.\nAnswer (B)": (B, "Steel is hard."),
    "Steel is hard.\nAns: B": (B, "Steel is hard."),
    "Steel is hard.\nAnswer = B": (B, "Steel is hard."),
    "Steel is hard.\nCorrect option: B": (B, "Steel is hard."),
    "Steel is hard.\nFinal choice: (B)": (B, "Steel is hard."),
    "Steel is hard.\nThe correct answer: B": (B, "Steel is hard."),
    "Steel is hard.\n> **Answer:** B": (B, "Steel is hard."),
    "Steel is hard.\n- Answer: B": (B, ANY),
    "Metal. Answer: (B)": (B, "Metal."),
    "Metal. **Answer:** (B)": (B, "Metal."),
    "Metal cuts. Final answer: B": (B, "Metal cuts."),
    "（B）": (B, ""),
    "Steel is hard.\n（Ｂ）": (B, "Steel is hard."),
    "Steel is hard.\nAnswer：（B）": (B, "Steel is hard."),
    # the answer first
    "(B)\n\nSteel is hard.": (B, "Steel is hard."),
    "B. a knife\n\nSteel is hard.": (B, "Steel is hard."),
    "**B) a knife**\n\n**Explanation:** Steel is hard.": (B, "Steel is hard."),
    "**Answer:**\n(B)\n\n**Explanation:** Steel is hard.": (B, "Steel is hard."),
    "Answer: B\n\nRationale: Steel is hard.": (B, "Steel is hard."),
    # sentences
    "(B) is correct because steel is hard.": (B, "(B) is correct because steel is hard."),
    "Option B is correct because steel is hard.": (B, ANY),
    "**(B) a knife** is the correct answer because steel is hard.": (B, ANY),
    "B is the best answer, since steel is hard.": (B, ANY),
    "Steel is hard. (B) is correct.": (B, "Steel is hard."),
    "Steel is hard. So option B is the right answer.": (B, "Steel is hard."),
    "Steel is hard, so (B) must be the correct choice.": (B, ANY),
    "Steel is hard. The answer is B.": (B, "Steel is hard."),
    "Steel is hard. The answer is: **B**": (B, "Steel is hard."),
    "Steel is hard. The answer is **(B) a knife**.": (B, "Steel is hard."),
    'Steel is hard. The answer is "a knife".': (B, "Steel is hard."),
    "Steel is hard. The answer is b.": (B, "Steel is hard."),
    "Steel is hard. The answer is option b.": (B, "Steel is hard."),
    "Steel is hard. The answer is probably B.": (B, "Steel is hard."),
    "Steel is hard. The answer is most likely (B).": (B, "Steel is hard."),
    "Steel is hard. The answer is clearly a knife.": (B, "Steel is hard."),
    "Steel is hard. The answer is a knife rather than glass.": (B, "Steel is hard."),
    "Steel is hard. The answer is a knife, not glass.": (B, "Steel is hard."),
    "Steel is hard. The answer is not (A) but (B).": (B, ANY),
    "Steel is hard. The most logical answer is B.": (B, "Steel is hard."),
    "Steel is hard. My answer is (B).": (B, "Steel is hard."),
    "Steel is hard. The correct choice is (B).": (B, "Steel is hard."),
    "Steel is hard. The best option must be (B).": (B, "Steel is hard."),
    "Steel is hard. The answer choice is B.": (B, "Steel is hard."),
    "Steel is hard. Therefore, (B).": (B, ANY),
    "Steel is hard. So it must be B.": (B, ANY),
    "Steel is hard. Thus, option B.": (B, ANY),
    "Steel is hard. I would choose (B).": (B, ANY),
    "Steel is hard. I'd go with a knife.": (B, ANY),
    "Steel is hard. I choose B.": (B, ANY),
    "There is no doubt: (B)": (B, ANY),
    "The answer is (A). Wait, actually it is (B).": (B, ANY),
    # closings without punctuation before them, and two in a row
    "Steel is hard The answer is (B).": (B, "Steel is hard"),
    "Steel is hard so the answer is B.": (B, "Steel is hard"),
    "Steel is hard. The answer is B. So the answer is (B).": (B, "Steel is hard."),
    "Steel is hard. Thus, the correct answer is B.\nThe answer is (B).\nAnswer: (B)": (
        B,
        "Steel is hard.",
    ),
    "Steel is hard. Therefore, the answer is B: a knife": (B, "Steel is hard."),
    "Steel is hard. The answer is B. A knife.": (B, "Steel is hard."),
    "Steel is hard. The answer is (B) since glass breaks.": (
        B,
        "Steel is hard. The answer is (B) since glass breaks.",
    ),
    # other languages
    "Stahl ist hart.\nAntwort: (B)": (B, "Stahl ist hart."),
    "Stahl ist hart.\n**Richtige Antwort:** B": (B, "Stahl ist hart."),
    "Stahl ist hart. Die richtige Antwort ist (B).": (B, ANY),
    "Stahl ist hart. Die Antwort lautet B.": (B, ANY),
    "L'acier est dur.\nRéponse : B": (B, "L'acier est dur."),
    "L'acier est dur. La bonne réponse est (B).": (B, ANY),
    "El acero es duro.\nRespuesta: (B)": (B, "El acero es duro."),
    "El acero es duro. La respuesta correcta es B.": (B, ANY),
    "L'acciaio è duro.\nRisposta: B": (B, "L'acciaio è duro."),
    "O aço é duro.\nResposta: B": (B, "O aço é duro."),
    "O aço é duro. A resposta correta é (B).": (B, ANY),
    "钢很硬。\n答案：B": (B, "钢很硬。"),
    "钢很硬。\n正确答案：（B）": (B, "钢很硬。"),
    "钢很硬。\n**答案**：B": (B, "钢很硬。"),
    "钢很硬。答案是B。": (B, ANY),
    "钢很硬，所以选B。": (B, ANY),
    "鋼は硬い。\n答え：B": (B, "鋼は硬い。"),
    "鋼は硬い。正解は(B)です。": (B, ANY),
    "강철은 단단하다.\n정답: B": (B, "강철은 단단하다."),
    "강철은 단단하다. 정답은 B입니다.": (B, ANY),
    "Сталь твёрдая.\nОтвет: B": (B, "Сталь твёрдая."),
    "Staal is hard.\nAntwoord: B": (B, "Staal is hard."),
    "Stal jest twarda.\nOdpowiedź: B": (B, "Stal jest twarda."),
    # JSON and tags
    '{"answer": "B", "rationale": "Steel is hard."}': (B, "Steel is hard."),
    '{"reasoning": "Steel is hard.", "answer": "(B)"}': (B, "Steel is hard."),
    '```json\n{"explanation": "Steel is hard.", "final_answer": "B"}\n```': (B, "Steel is hard."),
    '{"Reason": "Steel is hard.", "Answer": "a knife"}': (B, "Steel is hard."),
    '{"steps": ["Steel is hard.", "It cuts."], "choice": "b"}': (B, "Steel is hard. It cuts."),
    'Steel is hard.\n{"answer": "B"}': (B, "Steel is hard."),
    '{"answer": null, "rationale": "Steel is hard."}': (NONE, ANY),
    '{"answer": "not glass", "rationale": "It breaks."}': (NONE, "It breaks."),
    "<reasoning>Steel is hard.</reasoning><answer>B</answer>": (B, "Steel is hard."),
    "<reasoning>Steel is hard.</reasoning>\n<answer>\n(B)\n</answer>": (B, "Steel is hard."),
    "<rationale>Steel is hard.</rationale><answer>a knife</answer>": (B, "Steel is hard."),
    "Steel is hard. <answer>B</answer>": (B, "Steel is hard."),
    "<reasoning>Steel is hard.\nAnswer: (B)</reasoning>": (B, "Steel is hard."),
    # thoughts
    "<think>Maybe (A)? No, steel.</think>Steel is hard.\nAnswer: (B)": (B, "Steel is hard."),
    "<think>Steel is hard.</think>\n(B)": (B, "Steel is hard."),
    "Maybe (A).</think>Steel is hard.\nAnswer: (B)": (B, "Steel is hard."),
    "[THINK]The answer is (A).[/THINK]Steel is hard. The answer is (B).": (B, "Steel is hard."),
    "<thinking>Glass?</thinking>\n\n**Answer:** B": (B, "Glass?"),
    "◁think▷Glass?◁/think▷Steel is hard.\nAnswer: B": (B, "Steel is hard."),
    "<|channel|>analysis<|message|>Glass?<|end|><|start|>assistant<|channel|>final<|message|>Steel "
    "is hard.\nAnswer: B": (B, "Steel is hard."),
    "<think>Okay, maybe the answer is (A). Let me check": (NONE, ""),
    "[THINK]The answer is (A).": (NONE, ""),
    "<reasoning>The answer is (A).": (NONE, ""),
    "<think>Glass?</think>": (NONE, ""),
    # denied, supposed, asked, left open, or no answer at all
    "The answer is probably not copper.": (NONE, ANY),
    "Answer: not glass": (NONE, ""),
    "The answer is not (A).": (NONE, ANY),
    "The answer isn't copper.": (NONE, ANY),
    "The answer is definitely not B.": (NONE, ANY),
    "The answer is neither glass nor copper.": (NONE, ANY),
    "The answer is anything but glass.": (NONE, ANY),
    "The answer is far from glass.": (NONE, ANY),
    "The answer can't be glass.": (NONE, ANY),
    "If the answer is (A), bread would break.": (NONE, ANY),
    "I wonder whether the answer is glass.": (NONE, ANY),
    "You might think the answer is copper.": (NONE, ANY),
    "The wrong answer is (A).": (NONE, ANY),
    "Is the answer glass? I do not know.": (NONE, ANY),
    "So the answer is (A)? Hard to say.": (NONE, ANY),
    "(A) is incorrect.": (NONE, ANY),
    "(A) is not correct because glass breaks.": (NONE, ANY),
    "If (A) is correct, bread breaks.": (NONE, ANY),
    "Is B the correct answer?": (NONE, ANY),
    "Answer: (A) or (B)": (NONE, ""),
    "Answer: A or B": (NONE, ""),
    "Answer: A, B": (NONE, ""),
    "Answer: glass or copper": (NONE, ""),
    "Either A or B.": (NONE, ANY),
    "Answer: (E)": (NONE, ""),
    "Answer: none of these": (NONE, ""),
    "Answer: unknown": (NONE, ""),
    "(A) glass\n(B) a knife\n(C) copper": (NONE, ANY),
    "A knife is sharp.": (NONE, "A knife is sharp."),
    "I can't say.": (NONE, ANY),
    "I need more data.": (NONE, ANY),
    "A good answer is hard to find.": (NONE, ANY),
    "": (NONE, ""),
    "The answer is (A) glass.\nAnswer: B": (B, ANY),
}


@pytest.mark.parametrize("raw", FORMS)
def test_the_forms_that_teachers_write(raw):
    answer, rationale = FORMS[raw]
    found = parse_completion(raw, TOOL)
    assert found.answer == answer
    assert rationale is ANY or found.rationale == rationale


def test_the_table_is_long_enough():
    assert len(FORMS) >= 120


@pytest.mark.parametrize(
    "example, raw, answer",
    [
        (YES, "There is no doubt: (A)", 0),
        (YES, "The answer is no longer certain.", None),
        (YES, "Answer: There is no doubt: (A)", 0),
        (YES, "Ice is light. The answer is yes.", 0),
        (YES, "Stone sinks. Answer: no", 1),
        (YES, "Answer: No.", 1),
        (YES, "Answer: **no**", 1),
        (YES, "Answer: no, because it sinks", 1),
        (YES, "The answer is no because it sinks.", 1),
        (YES, "Answer: No - it sinks", 1),
        (YES, "The answer is no one's guess.", None),
        (YES, "Answer: there is no way to tell", None),
        (YES, "Answer: not yes", None),
        (YES, "(B) is correct because it sinks", 1),
        (YES, '{"answer": "yes"}', 0),
        (YES, "The answer is no doubt yes.", None),
        (YES, "Answer: (B) no", 1),
        (YES, "Answer: B. no", 1),
        (NUMBERS, "Answer: 2.5", None),
        (NUMBERS, "Answer: 2", 1),
        (NUMBERS, "Answer: 2.", 1),
        (NUMBERS, "Answer: 2.0", 1),
        (NUMBERS, "Answer: 2/3", None),
        (NUMBERS, "Answer: 12", None),
        (NUMBERS, "Answer: -2", None),
        (NUMBERS, "Answer: 2 or 3", None),
        (NUMBERS, "The answer is 2.5.", None),
        (NUMBERS, "The answer is 3 apples.", 2),
        (NUMBERS, "Answer: (B) 2", 1),
        (NUMBERS, "Answer: 1 + 2 = 3", 2),
        (NUMBERS, "The answer is \\boxed{4}.", 3),
        (NUMBERS, "Answer: 1,000", None),
        (NUMBERS, "Answer: $3", 2),
        (NUMBERS, '{"answer": 4}', 3),
        (SUMS, "Answer: 12 - 8 = 4", 2),
        (SUMS, "Answer: -4", 3),
        (SUMS, "Answer: 4", 2),
        (SUMS, "Answer: −4", 3),
    ],
)
def test_ordinary_words_and_numbers(example, raw, answer):
    assert parse_completion(raw, example).answer == answer


@pytest.mark.parametrize(
    "raw",
    ["The answer is (A). No, wait, that's not correct.", "The answer is (A), but that is wrong."],
)
def test_a_statement_that_is_taken_back_concludes_nothing(raw):
    assert parse_completion(raw, TOOL).answer is None


@pytest.mark.parametrize(
    "raw",
    [
        "Steel cuts. The answer is A, but by the rules, the answer is (B).",
        "Steel cuts. Therefore, the answer is A The answer is (B).",
    ],
)
def test_of_two_statements_in_a_sentence_the_last_counts(raw):
    found = parse_completion(raw, TOOL)
    assert found.answer == B and found.contradicts


# --- thoughts


@pytest.mark.parametrize(
    "text, field, reason, wanted",
    [
        ("<think>a</think>b", None, "stop", ("a", "b", True)),
        ("a</think>b", None, None, ("a", "b", True)),
        ("<think>a", None, "length", ("a", "", False)),
        ("<think>a", None, None, ("a", "", False)),
        ("b", "a", "stop", ("a", "b", True)),
        ("", "a", "length", ("a", "", False)),
        (None, "a", "stop", ("a", "", True)),
        (None, None, "length", ("", "", True)),
        ("b", "a", "length", ("a", "b", True)),
        ("b", None, "length", ("", "b", True)),
        ("<THINK>a</THINK> b", None, None, ("a", "b", True)),
        ("<think></think>b", None, None, ("", "b", True)),
        ("[THINK]a[/THINK]b", None, None, ("a", "b", True)),
        ("<think>a</think>b <think>c", None, None, ("a\nc", "b", False)),
    ],
)
def test_thoughts_are_set_apart(text, field, reason, wanted):
    assert split_thought(text, field, reason) == wanted


def test_a_thought_is_the_rationale_only_where_the_final_text_has_none():
    assert read_completion("Answer: (B)", TOOL, "Steel is hard. So the answer is (B).", "stop")[
        :2
    ] == ("Steel is hard.", B)
    assert read_completion("Steel cuts.\nAnswer: (B)", TOOL, "Maybe (A).")[:3] == (
        "Steel cuts.",
        B,
        False,
    )
    cut = read_completion(None, TOOL, "The answer is (A)", "length")
    assert (cut.rationale, cut.answer, cut.finished) == ("", None, False)


# --- lone surrogates


def test_half_a_surrogate_pair_can_be_written():
    assert clean_text("a\ud83d b\udc00") == "a\ufffd b\ufffd" and clean_text("é") == "é"
    assert clean_text("\ud83d" + "\ude00") == "\U0001f600"
    found = parse_completion("Steel \ud83d is hard.\nAnswer: (B)", TOOL)
    assert found.rationale.encode("utf-8") and found.answer == B


# --- closings and scrubbing


@pytest.mark.parametrize(
    "text, left",
    [
        ("x = 14 + 12 x = 26 The answer is 26.", "x = 14 + 12 x = 26"),
        ("7 - 5 = 2. The answer is 2.0.", "7 - 5 = 2."),
        ("It melts. So the answer is ice. The answer is (A).", "It melts."),
        ("It melts, so the answer is ice.", "It melts,"),
        ("It is clear why the answer is ice", "It is clear why the answer is ice"),
        ("The answer is ice because it melts.",) * 2,
        ("The answer is not ice.",) * 2,
        ("It melts. (A) is correct.", "It melts."),
        ("It melts.", "It melts."),
    ],
)
def test_closings_are_cut(text, left):
    assert cut_closing(text) == left


@pytest.mark.parametrize(
    "label, text, wanted",
    [
        ("no", "There is no water.", "There is no water."),
        ("no", "No, it sinks. The answer is no.", "This one, it sinks. The answer is this one."),
        ("no", "No one knows.", "No one knows."),
        ("yes", "It floats. Yes.", "It floats. This one."),
        ("yes", 'They say "yes" to it.', 'They say "this one" to it.'),
        ("no", "Answer: no", "Answer: this one"),
        ("it", "It floats since it is light.", "It floats since it is light."),
        ("a", "A knife is a tool.", "A knife is a tool."),
        ("true", "That is true of ice. True.", "That is true of ice. This one."),
        ("ice", "Ice melts.", "This one melts."),
    ],
)
def test_an_ordinary_word_is_scrubbed_only_as_an_answer(label, text, wanted):
    # the case of the neutral phrase inside a text is left open
    assert (
        remove_label(text, Example("x", "q", (label, "another"), 0)).casefold() == wanted.casefold()
    )


# --- the recorded sets

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data"
CLOSINGS = (" {text} The answer is ({letter}).", " {text}\n\n**Answer:** ({letter})")


def recorded_rows(step: int):
    """(example, rationale, concluded option) of every `step`-th recorded rationale whose answer is
    one option.
    """
    for path in sorted(RECORDED.glob("rationales/*/*.jsonl")):
        dataset = path.parent.name
        source = RECORDED / dataset / "train.jsonl"
        if dataset == "svamp":  # answers are numbers, not options
            continue
        questions = {
            e.id: e
            for e in (
                parse_row(dataset, row, f"{source}:{number}") for number, row in read_jsonl(source)
            )
        }
        for _, row in read_jsonl(path)[::step]:
            example, text = questions[row["id"]], " ".join((row["rationale"] or "").split())
            try:
                option = answer_index(row["answer"], len(example.choices), "")
            except DataError:
                continue
            if text:
                yield example, text, first_equal(example.choices, option)


@pytest.mark.skipif(not (RECORDED / "rationales").is_dir(), reason="../shared/data is not here")
def test_recorded_rationales_are_read_as_they_were_recorded():
    """At most 0.01 % are wrong over all rows (minutes of reading).

    Here every 59th row, of which none may be wrong.
    """
    wrong, count = [], 0
    for example, text, option in recorded_rows(59):
        for shape in CLOSINGS:
            found = parse_completion(shape.format(text=text, letter=LETTERS[option]), example)
            count += 1
            if found.answer not in (option, None) or re.search(
                r"The answer is \([A-Z]\)\.$", found.rationale
            ):
                wrong.append(example.id)
        own = parse_completion(text, example).answer
        if own not in (option, None):
            wrong.append(f"{example.id} by itself")
    assert count > 1500 and not wrong, wrong
