"""Match free answers: say whether a text gives the right number, word, or yes or no.

A question without options has one right answer, a text: "42", "Paris", "yes". What a student writes
is read strictly: the first line, and only what can be meant in one way. A number is neither the
first nor the last of several: a line that names two different ones ("42 or 43", "21 x 2") is no
answer, except that what stands after the last "=", "####" or "the answer is" counts alone ("3 + 4 =
7"). Taking the last number, as evaluations of free text often do, would count "not 41 but 42" and
"42 or 43" as right now and then, and differently for arms that write more.
"""

import re
import unicodedata
from fractions import Fraction

YES_NO = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
# What may stand before an answer; what follows the last of them is read
PREFACE = re.compile(r"^.*(?:####|\b(?:the|my|final|correct) answer(?: is|:)|\banswer:)\s*:?", re.I)
# A line with one of these words states no number: "not 42", "42 or 43", "less than 42"
UNSURE = re.compile(
    r"\b(?:not|never|neither|nor|or|either|between|than|least|most|except|without)\b|n't\b|\bto\b",
    re.I,
)
NUMBER = re.compile(
    r"""(?<![\w.,:/])                          # not inside a word, a date, a time, 1.2.3
    (?P<sign>[-+]\s?)?(?:[$€£]\s?(?P<inner>[-+])?)?
    (?:(?P<whole>\d+)\s+)?(?P<above>\d+)/(?P<below>\d+)(?![\d/.,:]*\d)(?P<ratio_unit>\s?%)?
    |(?<![\w.,:/])
    (?P<sign2>[-+]\s?)?(?:[$€£]\s?(?P<inner2>[-+])?)?
    (?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d{1,3})?
    (?![\d]|[.,:/]\d|(?:st|nd|rd|th)\b)        # not the beginning of something longer; no ordinal
    (?P<unit>\s?(?:%|percent\b|per\scent\b))?""",
    re.X,
)
SMALL = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen",
)
TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
NUMBER_WORDS = (
    {word: i for i, word in enumerate(SMALL)}
    | {word: 10 * i for i, word in enumerate(TENS, 2)}
    | {
        f"{ten} {unit}": 10 * i + j
        for i, ten in enumerate(TENS, 2)
        for j, unit in enumerate(SMALL[1:10], 1)
    }
)


def _answer_line(text: str) -> str:
    """Return the line that counts, its signs and fractions as ASCII writes them."""
    line = text.strip().split("\n")[0]
    line = re.sub(r"([¼½¾⅓⅔⅛⅜⅝⅞])", r" \1", line)  # "1½" is 1 1/2 and not 11/2
    line = unicodedata.normalize("NFKC", line).replace("⁄", "/")
    line = re.sub("[−–—]", "-", line).replace("’", "'")
    return PREFACE.sub("", line).strip()


def _words(text: str) -> str:
    """Return a text as words are compared: no case, no articles, no punctuation, single spaces."""
    plain = re.sub(r"[^\w\s]", "", re.sub(r"[-/]", " ", text.casefold()))
    kept = [word for word in plain.split() if word not in ("a", "an", "the")]
    return " ".join(kept) or " ".join(text.casefold().split())


def _numbers(text: str) -> list[tuple[Fraction, bool]]:
    """List the numbers of a text, each with whether it is a percentage."""
    found = []
    for match in NUMBER.finditer(text):
        part = match.groupdict()
        if part["below"] is not None:
            if int(part["below"]) == 0:
                continue
            value = Fraction(int(part["above"]), int(part["below"])) + int(part["whole"] or 0)
        else:
            value = Fraction(part["digits"].replace(",", "") + (part["power"] or ""))
        signs = (part["sign"], part["inner"], part["sign2"], part["inner2"])
        minus = any(sign and sign.strip() == "-" for sign in signs)
        percent = bool(part["unit"] or part["ratio_unit"])
        found.append((-value if minus else value, percent))
    return found


def read_number(text: str) -> tuple[Fraction, bool] | None:
    """Read the number that a text answers, exactly, and whether it is a percentage.

    Digits with thousands separators ("1,000"), decimals, signs, currencies, fractions ("1/2", "1
    1/2"), powers ("1e3"), units after it ("42 apples", "5kg"); in words only alone ("forty-two").
    None where there is no number, where two differ, or where the text takes it back ("not 42").
    "1,5" and "1 000" are written differently in different countries: they are no answer.
    """
    line = _answer_line(text)
    line = line.rpartition("=")[2] if "=" in line else line
    spoken = re.sub(r"^(?:minus|negative)\s+", "-", line.strip(), flags=re.I)
    word = _words(spoken.removeprefix("-"))
    if word in NUMBER_WORDS:
        return Fraction(NUMBER_WORDS[word] * (-1 if spoken.startswith("-") else 1)), False
    if UNSURE.search(spoken):
        return None
    # A digit that is no part of a number read here (a date, "1,5") makes the line unsafe
    if re.search(r"\d", NUMBER.sub(" ", spoken)):
        return None
    found = set(_numbers(spoken))
    return found.pop() if len(found) == 1 else None


def read_yes_no(text: str) -> str | None:
    """Read "yes" or "no" ("true", "false") as the first word of an answer, or None.

    What follows after punctuation explains it ("No, because yes-men abound"). "yes or no", "no
    doubt" and "not true" are no answer.
    """
    line = re.sub(r"^(?:it is|it's|that is|that's|this is)\s+", "", _answer_line(text), flags=re.I)
    match = re.match(r"\W*(yes|no|true|false)\b\s*(.*)", line, re.I)
    if match is None:
        return None
    rest = match[2]
    follows = r"(?:it|he|she|they|there|that|this|you|we|i|the|because|since)\b"
    if rest and not re.match(rf"[^\w\s/]|{follows}", rest, re.I):
        return None
    said = YES_NO[match[1].casefold()]
    if re.match(r"[^\w\s]*\s*(?:yes|no|true|false|or|and|but|maybe)\b", rest, re.I):
        others = {YES_NO[w] for w in re.findall(r"\b(?:yes|no|true|false)\b", rest.casefold())}
        return said if others == {said} else None
    return said


def gold_kind(gold: str) -> str:
    """Say how a right answer is matched: "number", "yes_no" or "word".

    A number is bare, but for a currency or a percent sign: "42 apples" and "Boeing 747" are words.
    """
    bare = gold.strip()
    match = NUMBER.fullmatch(re.sub("[−–]", "-", bare))
    if match and read_number(bare) is not None:
        return "number"
    return "yes_no" if bare.strip(" .!").casefold() in YES_NO else "word"


def _same_number(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> bool:
    """Compare two numbers; a percentage is also its share, and its number without the sign."""
    (a, percent), (b, other_percent) = one, other
    if percent == other_percent:
        return a == b
    a, b = (a, b) if percent else (b, a)
    return b in (a, a / 100)


def match_answer(text: str, gold: str) -> bool | None:
    """Say whether a text gives the right answer; None where no answer can be read from it.

    gold: a number, a yes or no, or words (`gold_kind`). Numbers are compared exactly (0.33 is not
    1/3), "50%" with 50 and with 0.5; words without case, articles and punctuation, and as a whole
    ("ice cream" is not "ice").
    """
    kind = gold_kind(gold)
    if kind == "number":
        found, right = read_number(text), read_number(gold)
        return None if found is None else _same_number(found, right)
    if kind == "yes_no":
        found = read_yes_no(text)
        return None if found is None else found == read_yes_no(gold)
    line = _answer_line(text)
    return _words(line) == _words(gold) if line.strip(" .,;:!?\"'") else None
