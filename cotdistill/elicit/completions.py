"""Read what a teacher answered: its rationale, and the option that it concludes."""

import re
from typing import NamedTuple

from cotdistill.elicit import patterns
from cotdistill.elicit.prompts import STOP
from cotdistill.elicit.thoughts import split_thought, unwrap_answer
from cotdistill.examples import LETTERS, Example, first_equal


class Parsed(NamedTuple):
    """Hold what a completion says.

    That is the rationale on one line, the option that it concludes (None: no option), and whether
    it names different options as the answer.
    """

    rationale: str
    answer: int | None
    contradicts: bool


class Reading(NamedTuple):
    """Hold what a teacher's answer says, with its thought apart.

    `finished` is False where the answer ended inside its thought: then there is no rationale and no
    conclusion. A record counts it as cut off (`cut_off`) and says so in `malformed`; the quality
    card shows both shares.
    """

    rationale: str
    answer: int | None
    contradicts: bool
    thought: str
    finished: bool


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words."""
    return re.findall(r"\w+", text.casefold())


def drop_article(text: str) -> list[str]:
    """Split a text into words, without an article at its start."""
    words = split_words(text)
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _split_terms(text: str) -> list[str]:
    """Split an option or a statement into words and numbers, without an article at its start.

    A number stays in one piece: "2.5", "-3", "1/2", and "1,000" as 1000.
    """
    terms = []
    for term in re.findall(
        r"(?<![\w.)\]])[-−](?=\d)\d+(?:[.,/:]\d+)*|\d+(?:[.,/:]\d+)+(?!\w)|\w+", text.casefold()
    ):
        number = re.sub(r",(?=\d{3}(?:\D|$))", "", term.replace("−", "-"))
        terms.append(re.sub(r"(?<=\d)\.0+$", "", number))
    return terms[1:] if len(terms) > 1 and terms[0] in ("a", "an", "the") else terms


def contains_run(words: list[str], part: list[str]) -> bool:
    """Tell whether the words of `part` appear next to each other among `words`."""
    return bool(part) and any(
        words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1)
    )


def strip_markup(text: str) -> str:
    """Strip LaTeX and brackets from a stated answer.

    "$\\boxed{\\text{B}}$", "[B]" and "`b`" become a plain letter or "(B)".
    """
    text = text.translate(patterns.WIDE).replace("\\(", " ").replace("\\)", " ").replace("`", "")
    for _ in range(3):  # LaTeX is rarely nested deeper
        text = re.sub(r"\\(?:boxed|text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\$([^$]*)\$", r"\1", text).replace("\\ ", " ")
    text = re.sub(r"^([\s*_\"']*)[\[{<「『(]+\s*([A-Za-z])\s*[\]}>」』)]+", r"\1(\2)", text)
    text = re.sub(r"^([\s*_\"']*)\(([a-z])\)", lambda m: f"{m[1]}({m[2].upper()})", text)
    return re.sub(r"(?<=[A-Z)])\s*(?:です|だ|입니다|이다)(?:。|\.)?\s*$", "", text)


def named_options(statement: str, choices: tuple[str, ...], whole: bool = False) -> list[int]:
    """List the options that a stated answer names.

    It names them by text, by letter ("(B)", "B.", "option B"), or by both (two options where they
    disagree, or where it leaves them open: "(A) or (B)"). Equal options are one, the first. With
    whole=True nothing else may be in the statement. A denied option ("probably not copper") is
    none; "not (A) but (B)" is (B).
    """
    statement = strip_markup(statement)
    words = _split_terms(statement)
    texts = [
        _split_terms(choice.translate(patterns.WIDE)) if first_equal(choices, i) == i else []
        for i, choice in enumerate(choices)
    ]
    alone = patterns.ALONE.fullmatch(statement)
    # The form that was asked for: it is the letter even where an option's text is a letter
    if alone and LETTERS.find(alone[1]) < len(choices):
        return [first_equal(choices, LETTERS.find(alone[1]))]
    exact = [i for i, text in enumerate(texts) if text and text == words]
    if len(exact) == 1:
        return exact
    first = _find_leading_texts(statement, words, texts)
    if patterns.DENIED.match(statement) and not any(
        texts[i][0] in patterns.NEGATIONS for i in first
    ):
        instead = patterns.INSTEAD.search(statement)
        return named_options(instead["said"], choices, whole) if instead else []
    named = _find_letters(statement, choices, texts, whole)
    if named or whole:
        return named
    if (
        "=" in statement and len(_split_terms(statement.rpartition("=")[2])) > 0 and not first
    ):  # "12 - 8 = 4"
        return named_options(statement.rpartition("=")[2], choices)
    if (
        "=" in statement
        and first
        and all(term[:1].isdigit() or term[:1] == "-" for text in texts for term in text)
    ):
        return named_options(statement.rpartition("=")[2], choices)
    return first or _find_inner_text(statement, texts)


def _find_letters(
    statement: str, choices: tuple[str, ...], texts: list[list[str]], whole: bool
) -> list[int]:
    """List the options that a statement names by letter at its start.

    They are one, two, or none where the letter is a word ("A knife").
    """
    head = patterns.HEAD.match(statement)
    letter = LETTERS.find(head[2]) if head else -1
    if not 0 <= letter < len(choices):
        return _find_small_letter(statement, choices, texts)
    letter, rest = first_equal(choices, letter), statement[head.end() :]
    pair = patterns.SECOND.match(rest)
    second = LETTERS.find(pair[1] or pair[2]) if pair else -1
    if 0 <= second < len(choices):
        return list(dict.fromkeys([letter, first_equal(choices, second)]))
    tail = _split_terms(rest)
    other = [i for i, text in enumerate(texts) if text and text == tail]
    if other and letter not in other:
        return [letter, other[0]]
    clear = (
        head[1]
        or not tail
        or rest[:1] in ".,:;)*"
        or other
        or tail[0] in ("because", "since", "as")
        or re.match(
            r"\s+[-–—:(]|\s*[\"'”’]|\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best)\b", rest
        )
    )
    return [letter] if clear and not (whole and tail and not other) else []


def _find_small_letter(
    statement: str, choices: tuple[str, ...], texts: list[list[str]]
) -> list[int]:
    """Find the option of a small letter: "b", "b. a knife", "option b".

    Nothing else may be beside the letter but the option's own text.
    """
    small = patterns.SMALL.fullmatch(statement.strip())
    letter = LETTERS.find(small["letter"].upper()) if small else -1
    if not 0 <= letter < len(choices):
        return []
    letter, tail = first_equal(choices, letter), _split_terms(small["rest"])
    return [letter] if not tail or tail == texts[letter] else []


def _find_leading_texts(statement: str, words: list[str], texts: list[list[str]]) -> list[int]:
    """List the options whose text starts a statement: the longest, or two in "ice or wood".

    An ordinary word ("no") must be all of its clause: "no, because" names the option, "no longer
    certain" does not.
    """
    first = [i for i, text in enumerate(texts) if text and words[: len(text)] == text]
    if not first:
        return []
    longest = max(len(texts[i]) for i in first)
    first = [i for i in first if len(texts[i]) == longest]
    text = texts[first[0]]
    if len(text) == 1 and text[0] in patterns.ORDINARY_WORDS:
        article, end = r"[^\w]*(?:(?i:the|an?)\s+)?", r"(?!\w)[*_\"'”’)]*"
        stop = r"(?:\s*(?:[.,;:!—–(*]|$)|\s+(?i:because|since|as|for|and|but|-)(?!\w))"
        ends = re.match(
            article + re.escape(text[0]) + end + stop,
            statement,
            re.I,
        )
        return first if len(first) == 1 and ends else []
    rest = words[longest:]
    if rest[:1] == ["or"]:
        other = _find_leading_texts(
            " ".join(rest[1:]),
            rest[2:] if rest[1:2] in (["a"], ["an"], ["the"]) else rest[1:],
            texts,
        )
        return [*first, *(i for i in other if i not in first)]
    return first if len(first) == 1 else []


def _find_inner_text(statement: str, texts: list[list[str]]) -> list[int]:
    """Find the one option whose text appears anywhere in a statement.

    What comes after a turn against something ("rather than wood") does not count.
    """
    words, positive = _split_terms(statement), _split_terms(patterns.AGAINST.split(statement)[0])
    inside = [
        i
        for i, text in enumerate(texts)
        if not (len(text) == 1 and text[0] in patterns.ORDINARY_WORDS)
        and contains_run(words if set(text) & patterns.NEGATIONS else positive, text)
    ]
    longest = [
        i for i in inside if not any(i != j and contains_run(texts[j], texts[i]) for j in inside)
    ]
    return longest if len(inside) == 1 else []


class _AnswerLine(NamedTuple):
    """Hold where an answer is in a text and what it says.

    `start` and `end` enclose the line; `at` is where `said` begins. `whole`: nothing but an option
    may be in `said`.
    """

    start: int
    end: int
    said: str
    whole: bool
    at: int


def _find_answer_lines(text: str, choices: tuple[str, ...]) -> list[_AnswerLine]:
    """List all lines that state the answer, in reading order.

    They are "Answer: (B)", a heading with the answer below, "#### B", an inline "… Answer: (B)",
    and a first or last line that is only an option by letter.
    """
    lines = [_read_line_below(text, match) for match in patterns.HEADING.finditer(text)]
    headings = {line.start for line in lines}
    for match in patterns.ANSWER_LINE.finditer(text):
        if match.start() in headings:  # "**Answer:**" alone on its line is both
            continue
        lines.append(
            _read_line_below(text, match)
            if not match["said"].strip(" \t*_")
            else _AnswerLine(match.start(), match.end(), match["said"], False, match.start("said"))
        )
    taken = [(line.start, line.end) for line in lines]
    free = lambda at: not any(start <= at < end for start, end in taken)
    lines += [
        _AnswerLine(m.start(), m.end(), m["said"], False, m.start("said"))
        for m in patterns.HASHES.finditer(text)
        if free(m.start())
    ]
    lines += [
        _AnswerLine(m.start(), m.end(), m["said"], True, m.start("said"))
        for m in patterns.INLINE.finditer(text)
        if free(m.start()) and named_options(m["said"], choices, whole=True)
    ]
    return sorted(lines + [line for line in _find_lone_lines(text, choices) if free(line.at)])


def _read_line_below(text: str, match) -> _AnswerLine:
    """Read the answer on the next line that is not empty."""
    below = re.compile(r"\s*([^\n]*)").match(text, match.end())
    return (
        _AnswerLine(match.start(), below.end(), below[1], True, below.start(1))
        if below[1]
        else _AnswerLine(match.start(), match.end(), "", True, match.end())
    )


def _find_lone_lines(text: str, choices: tuple[str, ...]) -> list[_AnswerLine]:
    """List the first and the last line where they are an option by letter and nothing else.

    A first line counts only where no other line begins like it; else it is the list of options,
    repeated.
    """
    spans = [(m.start(), m.end(), m[0]) for m in re.finditer(r"[^\n]*\S[^\n]*", text)]
    lone = [i for i, (_, _, line) in enumerate(spans) if patterns.LONE.match(line)]
    wanted = {
        i
        for i in lone
        if i == len(spans) - 1 and (len(lone) < 2 or i - 1 not in lone) or i == 0 and len(lone) == 1
    }
    return [
        _AnswerLine(spans[i][0], spans[i][1], spans[i][2], True, spans[i][0])
        for i in sorted(wanted)
        if named_options(spans[i][2].lstrip(" #>\t"), choices, whole=True)
    ]


def stated_options(text: str, choices: tuple[str, ...]) -> list[list[int]]:
    """List every statement of an answer, in reading order, as the options that it names.

    Statements are "Answer: (B)", "the answer is ice", "actually, A" and the like. One in which no
    option can be read is left out, and so is one that is asked ("is B the answer?"), supposed ("if
    the answer is B") or denied.
    """
    text, statements = text.translate(patterns.WIDE), {}
    for pattern, whole in (
        (patterns.TURN, True),
        (patterns.PICK, True),
        (patterns.SO, True),
        (patterns.END, True),
        (patterns.BOXED, False),
        (patterns.STATED_ABROAD, True),
        (patterns.STATED, False),
    ):
        for match in pattern.finditer(text):
            name = "said" if match["said"] is not None else "chosen"
            comma = match[name].find(",")
            if (
                patterns.WITHDRAWN.match(text, match.end())
                or comma >= 0
                and patterns.WITHDRAWN.match(match[name], comma)
            ):
                continue
            if pattern is patterns.STATED and (
                text[match.end() : match.end() + 1] == "?"
                or patterns.SUPPOSED.search(text, max(0, match.start() - 60), match.start())
            ):
                continue
            statements[match.start(name)] = named_options(match[name], choices, whole)
    for match in patterns.NAMED.finditer(text):
        statements[match.start("said")] = _read_named_option(match, choices)
    for line in _find_answer_lines(text, choices):
        statements[line.at] = named_options(
            line.said.lstrip(" #>\t") if line.whole else line.said, choices, line.whole
        ) or statements.get(line.at)
    return [statements[start] for start in sorted(statements) if statements[start]]


def _read_named_option(match, choices: tuple[str, ...]) -> list[int]:
    """Read the option of "(B) is correct" and "(B) a knife is the best answer".

    Any text in between must be the option's own.
    """
    named = named_options(match["said"], choices, whole=True)
    return (
        named
        if not match["text"].strip()
        else named_options(f"{match['said']} {match['text']}", choices, whole=True)
    )


def cut_closing(text: str, choices: tuple[str, ...] = ()) -> str:
    """Cut the closing sentences that name the answer off a rationale on one line.

    Such are "So the answer is (B)." and "Thus, (B) is correct.", however many follow each other,
    with or without punctuation before them. `choices` are needed for "… is B. a knife".
    """
    for choice in choices:
        shown = (
            re.search(rf"(?<=[ (])([A-Z]\)?)[.:] *{re.escape(choice)}[.!*_ ]*$", text, re.I)
            if choice.strip()
            else None
        )
        if shown and re.search(r"(?i)\b(?:is|be):? *\**\(?$", text[: shown.start()]):
            text = f"{text[: shown.end(1)]}."
    for _ in range(8):  # more closings than that in a row are a loop, not a closing
        shorter = text
        for pattern in (patterns.CLOSING, patterns.CLOSING_BARE, patterns.CLOSING_LETTER):
            shorter = pattern.sub("", shorter).rstrip()
        if shorter == text:
            break
        text = shorter
    return text


def _clean_reason(body: str, choices: tuple[str, ...]) -> str:
    """Put a reason on one line, without a label ("Reason:") and a closing that names the answer."""
    body = " ".join(patterns.REASON_LABEL.sub("", " ".join(body.split())).split())
    return cut_closing(body, choices).strip().strip("*").strip()


def _extract_reason(text: str, choices: tuple[str, ...]) -> str:
    """Extract the rationale from a final text.

    It is what comes before the line of the answer or, where the answer came first, its "because …"
    and what follows, up to another answer.
    """
    lines = _find_answer_lines(text.translate(patterns.WIDE), choices)
    if not lines:
        return _clean_reason(re.sub(r"(?m)^\s*[$*]*\\boxed\{.*\}[$*.]*\s*$", "", text), choices)
    body = text[: lines[0].start]
    if not body.strip():
        reason = patterns.BECAUSE.search(lines[0].said)
        body = (reason[0] if reason else "") + text[
            lines[0].end : lines[1].start if len(lines) > 1 else None
        ]
    return _clean_reason(body, choices)


def parse_completion(raw: str, example: Example) -> Parsed:
    """Read a raw completion of text alone: its rationale, conclusion and contradiction.

    Use `read_completion` where a server sends more.
    """
    return Parsed(*read_completion(raw, example)[:3])


def read_completion(
    raw: str | None,
    example: Example,
    reasoning_content: str | None = None,
    finish_reason: str | None = None,
) -> Reading:
    """Read a teacher's answer.

    What comes after the next "Question:" is cut, and thoughts are set apart (`split_thought`). The
    last answer that the final text states counts; a thought concludes nothing, because it weighs
    options. The rationale is the final text's own reasoning (before the "Answer:" line, without a
    closing "So the answer is (B)"). A final text that only answers takes its finished thought as
    the rationale. An unfinished thought, or one without a final text, gives no rationale and no
    conclusion.
    """
    thought, final, finished = split_thought(raw, reasoning_content, finish_reason)
    if not finished:
        return Reading("", None, False, thought, False)
    # Asked-for tags around all of the answer
    if thought and not final and re.search(r"(?i)</reasoning>", raw or ""):
        thought, final = "", thought
    if not final:  # it thought and never answered
        return Reading("", None, False, thought, True)
    text = ("\n" + unwrap_answer(final)).split(STOP)[0].strip()
    statements = stated_options(text, example.choices)
    body = _extract_reason(text, example.choices) or _clean_reason(thought, example.choices)
    answer = statements[-1][0] if statements and len(statements[-1]) == 1 else None
    return Reading(body, answer, len({i for s in statements for i in s}) > 1, thought, True)
