"""What a teacher answered: its rationale, and the option that it concludes."""

import re
from typing import NamedTuple

from cotdistill.elicit.prompts import STOP
from cotdistill.elicit.thoughts import _from_tags, split_thought
from cotdistill.examples import LETTERS, Example, first_equal

# what a completion says
# Words by which teachers name the answer. English ones may be in the middle of a line, the others
# stand at its start.
_KIND = r"(?:the |my |your |final |correct |right |best )*"
_ABROAD = (
    r"(?:(?:die |la |le |el |a |o |het |правильный |верный |poprawna |bonne |richtige |korrekte "
    r"|endgültige |最终|正确|正確|最終|参考)*"
    r"(?:antwort|lösung|réponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|cevap|jawaban|đáp "
    r"án|ответ|"
    r"答案|選項|选项|回答|答え|解答|正解|정답|답|उत्तर|الإجابة|الجواب)"
    r"(?: finale?| final| correcta?| correcte| correta| corretta| đúng| benar)*)"
)
# "Answer: (B)", "**Final answer:** B", "Ans. = B", "réponse : B", "Answer - B", "Answer (B)" at the
# start of a line.
_ANSWER_LINE = re.compile(
    rf"(?im)^[ \t*#>_\[-]*(?:(?:so|thus|therefore|hence),? )?(?:{_KIND}(?:answer|ans\.?|answer "
    r"choice)|"
    rf"(?:final|correct|right|best) (?:option|choice)|{_ABROAD})[ \t*_\]]*"
    r"(?:[:=→][ \t*_]*|[-–—][ \t*_]+|(?=\([a-z]\)[\s*.]*$))(?P<said>.*)$"
)
# "### Final Answer", "**Answer**", "Answer" alone on a line: what follows on the next line is the
# answer.
_HEADING = re.compile(rf"(?im)^[ \t]*(?:#+[ \t*]*|\*\*[ \t]*)(?:{_KIND}answer|{_ABROAD})[ \t*_:]*$")
# "Metal. Answer: (B)": in the middle of a line, with a capital letter, after the end of a sentence.
_INLINE = re.compile(
    r"(?<=[.!?;:)])[ \t]+[*_]*(?:The |Final |Correct |Best |So |final |correct )*(?:A|(?<= "
    r")a)nswer[*_]*[ \t]*[:=][ \t*_]*"
    r"(?P<said>[^\n]*)"
)
# "#### B", the form of GSM8K.
_HASHES = re.compile(r"(?m)^####[ \t]+(?P<said>\S.*)$")
# "the answer is (B)", "the best choice must be ice".
_STATED = re.compile(
    r"(?i)\b(?:answer(?: choice)?|(?:correct|right|best) (?:option|choice|one))\s+"
    r"(?:is|must be|should be|has to be|would "
    r"be)\b\s*:?\s*(?P<said>(?:(?!\s(?:(?:so|thus|therefore) )?the (?:final |correct )?answer "
    r"is\b)[^\n.!?;]|\.(?=\d))*)"
)
# "No, wait, that's not correct" right after a statement takes it back.
_WITHDRAWN = re.compile(
    r"(?i)[\s.!;,]*(?:(?:no|wait|but|actually|hmm)\b[\s,.]*)*(?:that|this|it)(?:'s|’s| is) "
    r"(?:not (?:correct|right)|wrong|incorrect)\b"
)
# The same in other languages: "die Antwort ist (C)", "答案是B", "所以选B", "정답은 B".
_STATED_ABROAD = re.compile(
    rf"(?i){_ABROAD}\s*(?:ist|lautet|est|es|è|é|is|är|to|—|–|是|为|為|は|은|는|:)\s*:?\s*(?P<said>[^\n.!?;。]*)"
    r"|(?:选择|選擇|应选|應選|故选|故選|所以选|因此选|选)\s*(?P<chosen>\(?[A-Z]\)?(?![A-Za-z]))"
)
# "I would choose (B)", "I'd go with ice".
_PICK = re.compile(
    r"(?i)\bI(?:'d|’d|'ll| would| will|) (?:choose|pick|select|go with)\s+(?P<said>[^\n.!?;]+)"
)
# "Therefore, (B).", "So it must be B." with nothing else in the sentence.
_SO = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*[*_]*(?i:so|thus|therefore|hence),?\s+(?:(?i:it's|it is|it must be)\s+)?"
    r"(?P<said>(?:(?i:option|choice)\s+)?(?:\([A-Z]\)|[A-Z]))[*_]*(?=[.!]?[*_]*(?:\s|$))(?!\s+\w)"
)
# "(B) is correct", "option B must be the best answer", after the start of a sentence or a word that
# concludes.
_NAMED = re.compile(
    r"(?:^|[.!?:;,\n*]|\b(?i:so|thus|therefore|hence|clearly))\s*[*_\"]*(?:(?i:the\s+)?(?i:option|choice|answer)\s+)?"
    r"(?P<said>\([A-Za-z]\)|(?<![\w'’-])[A-Z](?![\w'’-]))[^\S\n]*[*_:\"]*[^\S\n]*(?P<text>[^\n.!?;,:]{0,60}?)[*_\"]*\s+"
    r"(?i:is|must be|has to "
    r"be)\s+(?:(?i:clearly|definitely|therefore|thus|indeed|probably|also|most likely)\s+)?"
    r"(?:(?i:the)\s+)?(?:(?i:only|single)\s+)?(?i:correct|right|best)\b(?!\s*\?)"
    r"(?=\s*[*_]*(?:[.,;!:)]|$|\s(?i:answer|option|choice|one|because|since|as|here)\b))"
)
# \boxed{B}, \boxed{\text{(B) a knife}}.
_BOXED = re.compile(r"\\boxed\s*\{(?P<said>(?:[^{}]|\{[^{}]*\})*)\}")
# "There is no doubt: (A)" ends the text.
_END = re.compile(r"[:→⇒]\s*[*_]*(?P<said>\([A-Za-z]\))[\s*_.]*$")
# A line that is only an option by letter: "(b)", "**B**", "B. a knife", "$B$"; whether its text is
# the option's is looked up.
_LONE = re.compile(
    r"[\s*_#>\"'`$\[{\\]*(?:boxed\s*\{|text\s*\{|(?i:option|choice|answer)\s+)*\(?[A-Za-z](?![\w'’])"
)
_TURN = re.compile(
    r"(?i)(?:\b(?:actually|wait|correction)\b\s*[,:.]?\s*|\bor "
    r"rather\b\s*[,:.]?\s*|\b(?:no|rather)\b\s*[,:.]\s*)+(?:(?:it|that)(?:'s| is| should be| "
    r"must be)\s+)?"
    r"(?P<said>[^\n.!?;]+)"
)
# What stands before a statement that is only supposed, or denied of the answer: "if the answer is
# A", "the wrong answer is A".
_SUPPOSED = re.compile(
    r"(?i)\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|(?:might|may|could|would) "
    r"(?:think|say|believe|guess|assume))\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$|\b(?:wrong|incorrect|worst|no|neither|"
    r"previous|initial|first)\s+$"
)
_HEDGE = (
    r"(?i:most likely|almost certainly|of "
    r"course|probably|definitely|certainly|clearly|likely|surely|simply|therefore|thus|obviously|indeed|"
    r"perhaps|maybe|possibly|still|really|actually|just|also|either|hence|most probably|in fact)"
)
# "not glass", "probably not copper", "no longer certain", "neither A nor B".
_DENIED = re.compile(
    rf"[\s*_:]*(?:{_HEDGE}[,\s]+)*(?i:not|isn['’]t|never|neither|none|nothing|hardly|unlikely|anything "
    r"but|anything except|"
    r"other than|far from|no longer|no doubt|no (?=\w))\b"
)
# "not (A) but (B)", "not A; rather B".
_INSTEAD = re.compile(
    r"(?i)\b(?:(?<!anything )but(?: rather| instead)?|rather(?! than)|it(?:'s|’s| "
    r"is))\s+(?P<said>.+)"
)
# Where a statement stops to speak of its option: "ice rather than wood", "ice and not wood".
_AGAINST = re.compile(
    r"(?i)\b(?:not|isn['’]t|never|neither|nor|none|without|except|unlike|rather than|instead "
    r"of|other than|anything but|no longer|"
    r"hardly|cannot|can['’]t|opposite of|against)\b"
)
_NEGATIONS = {
    "not",
    "no",
    "never",
    "neither",
    "nor",
    "none",
    "nothing",
    "nobody",
    "without",
    "except",
    "cannot",
    "unlike",
    "hardly",
    "t",
    "against",
}
# Labels that a text uses all the time without meaning the option.
_ORDINARY = set(
    "yes no true false a an the it i he she they we you this that these those one none not all "
    "both so such as and or if in on at to of "
    "for with by from do does".split()
)
# How a closing names the answer, up to its end; it gives no reason.
_CONCLUDES = (
    r"(?:the |my )?(?:most |very "
    r")?(?:(?:correct|right|best|final|only|likely|logical|appropriate|suitable|accurate|fitting) "
    r"){0,3}"
    r"(?:answer(?: choice)?|option|choice) (?:is|must be)\b:?(?!\s+(?:not|one that|the one that)\b)"
)
_LINK = r"(?:(?:and |so|thus|therefore|hence|that is why)\b,?\s*)?"
_LAST_WORDS = r"(?![^.!?]*(?:\b(?:because|since)\b|,\s*as\b))(?:[^.!?]|[.](?=\d))*[.!?]?[\s*_>]*$"
# After the end of a sentence or clause (or at the start), as "So the answer is (B)." ...
_CLOSING = re.compile(
    rf"(?i)(?:^|(?<=[.!?;,:)*\"”]))[\s*_<]*{_LINK}\b(?=the |my ){_CONCLUDES}{_LAST_WORDS}"
)
# ... or without any punctuation before it: with a capital letter, or after a word that concludes.
_CLOSING_BARE = re.compile(
    r"\s(?:(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),?\s+(?=(?:the|my) "
    rf")(?i:{_CONCLUDES})|(?=(?:The|My) )(?i:{_CONCLUDES}))"
    rf"(?i:{_LAST_WORDS})"
)
# "(B) is correct.", "So option B is the right answer."
_CLOSING_LETTER = re.compile(
    r"(?:^|(?<=[.!?;]))[\s*_]*(?i:(?:so|thus|therefore|hence),?\s+)?(?:(?i:the "
    r")?(?i:option|choice|answer)\s+)?(?:\([A-Z]\)|[A-Z])[*_]*\s+"
    r"(?i:is|must be)\s+(?i:the "
    r")?(?i:correct|right|best)(?:\s+(?i:answer|option|choice))?[.!]?[\s*_]*$"
)
_BECAUSE = re.compile(r"(?i)\b(?:because|since)\b.*")
_REASON_LABEL = re.compile(
    r"(?i)^[\s#*]*(?:reason(?:ing)?|rationale|explanation|justification|begründung|erklärung|explication|raisonnement|"
    r"explicación|razonamiento|spiegazione|explicação|解释|解析|理由|解説)\s*\**\s*:\**\s*"
)
# Full-width forms ("（Ｂ）：") -> ASCII, character by character, so that positions stay.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: 0x20,
    ord("【"): ord("["),
    ord("】"): ord("]"),
    ord("〔"): ord("("),
    ord("〕"): ord(")"),
}


class Parsed(NamedTuple):
    """What a completion says: the rationale on one line, the option it concludes (None.

    None), and whether it names different options as the answer.
    """

    rationale: str
    answer: int | None
    contradicts: bool


class Reading(NamedTuple):
    """What an answer of a teacher says, its thoughts apart.

    `finished` is False where the answer ended inside its thought: then there is no rationale and no conclusion. A record
    counts it as cut off (`cut_off`) and says so in `malformed`; the quality card shows both shares.
    """

    rationale: str
    answer: int | None
    contradicts: bool
    thought: str
    finished: bool


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _bare(text: str) -> list[str]:
    words = _words(text)
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _terms(text: str) -> list[str]:
    """The words of an option or a statement, a number whole ("2.5", "-3", "1/2", "1,000" as 1000)
    and no article before them.
    """
    terms = []
    for term in re.findall(
        r"(?<![\w.)\]])[-−](?=\d)\d+(?:[.,/:]\d+)*|\d+(?:[.,/:]\d+)+(?!\w)|\w+", text.casefold()
    ):
        number = re.sub(r",(?=\d{3}(?:\D|$))", "", term.replace("−", "-"))
        terms.append(re.sub(r"(?<=\d)\.0+$", "", number))
    return terms[1:] if len(terms) > 1 and terms[0] in ("a", "an", "the") else terms


def _contains(words: list[str], part: list[str]) -> bool:
    return bool(part) and any(
        words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1)
    )


def strip_markup(said: str) -> str:
    """A stated answer without LaTeX and brackets.

    "$\\boxed{\\text{B}}$", "[B]", "`b`" -> "(B)"-like text.
    """
    said = said.translate(_WIDE).replace("\\(", " ").replace("\\)", " ").replace("`", "")
    for _ in range(3):  # nested at most so deep
        said = re.sub(r"\\(?:boxed|text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r"\1", said)
    said = re.sub(r"\$([^$]*)\$", r"\1", said).replace("\\ ", " ")
    said = re.sub(r"^([\s*_\"']*)[\[{<「『(]+\s*([A-Za-z])\s*[\]}>」』)]+", r"\1(\2)", said)
    said = re.sub(r"^([\s*_\"']*)\(([a-z])\)", lambda m: f"{m[1]}({m[2].upper()})", said)
    return re.sub(r"(?<=[A-Z)])\s*(?:です|だ|입니다|이다)(?:。|\.)?\s*$", "", said)


_ALONE = re.compile(r"[\s*_\"']*\(([A-Z])\)[\s*_\"'.。]*")
_HEAD = re.compile(
    rf"[\s*_\"'“‘\[]*(?:{_HEDGE}[,\s]+)*(?:(?i:the\s+)?(?i:option|choice|letter)\s+)?[*_\"'“‘]*(\()?([A-Z])(?(1)\)|(?![\w'’]))"
)
_SMALL = re.compile(
    r"[\s*_\"'“‘]*(?P<word>(?i:option|choice|letter)\s+)?(?P<letter>[a-z])[*_\"'”’]*(?:[.):]+\s*|\s*$)(?P<rest>.*)"
)
_SECOND = re.compile(
    r"\s*(?:/|,?\s*or\b|,?\s*and\b(?=\s*\(?[A-Z]\)?[\s*.]*$)|,(?=\s*\(?[A-Z]\)?[\s*.]*$))\s*(?:option\s+|choice\s+)?"
    r"(?:\(([A-Z])\)|([A-Z])(?![\w'’]))"
)


def named_options(said: str, choices: tuple[str, ...], whole: bool = False) -> list[int]:
    """The options that a stated answer names.

    By text, by letter ("(B)", "B.", "option B"), or both (two options where they disagree, or where
    it leaves them open: "(A) or (B)"). Equal options are one, the first. whole=True asks for
    nothing else beside it. A denied option ("probably not copper") is none; "not (A) but (B)" is
    (B).
    """
    said = strip_markup(said)
    words = _terms(said)
    texts = [
        _terms(choice.translate(_WIDE)) if first_equal(choices, i) == i else []
        for i, choice in enumerate(choices)
    ]
    alone = _ALONE.fullmatch(said)
    # The form that was asked for, also where an option's text is a letter
    if alone and LETTERS.find(alone[1]) < len(choices):
        return [first_equal(choices, LETTERS.find(alone[1]))]
    exact = [i for i, text in enumerate(texts) if text and text == words]
    if len(exact) == 1:
        return exact
    first = _first_said(said, words, texts)
    if _DENIED.match(said) and not any(texts[i][0] in _NEGATIONS for i in first):
        instead = _INSTEAD.search(said)
        return named_options(instead["said"], choices, whole) if instead else []
    named = _letters_said(said, choices, texts, whole)
    if named or whole:
        return named
    if "=" in said and len(_terms(said.rpartition("=")[2])) > 0 and not first:  # "12 - 8 = 4"
        return named_options(said.rpartition("=")[2], choices)
    if (
        "=" in said
        and first
        and all(term[:1].isdigit() or term[:1] == "-" for text in texts for term in text)
    ):
        return named_options(said.rpartition("=")[2], choices)
    return first or _inside_said(said, texts)


def _letters_said(
    said: str, choices: tuple[str, ...], texts: list[list[str]], whole: bool
) -> list[int]:
    """The options that a statement names by letter at its head.

    One, two, or none where the letter is a word ("A knife").
    """
    head = _HEAD.match(said)
    letter = LETTERS.find(head[2]) if head else -1
    if not 0 <= letter < len(choices):
        return _small_letter(said, choices, texts)
    letter, rest = first_equal(choices, letter), said[head.end() :]
    two = _SECOND.match(rest)
    second = LETTERS.find(two[1] or two[2]) if two else -1
    if 0 <= second < len(choices):
        return list(dict.fromkeys([letter, first_equal(choices, second)]))
    tail = _terms(rest)
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


def _small_letter(said: str, choices: tuple[str, ...], texts: list[list[str]]) -> list[int]:
    """The option of a small letter ("b", "b.

    a knife", "option b"): only with nothing else beside it but its own text.
    """
    small = _SMALL.fullmatch(said.strip())
    letter = LETTERS.find(small["letter"].upper()) if small else -1
    if not 0 <= letter < len(choices):
        return []
    letter, tail = first_equal(choices, letter), _terms(small["rest"])
    return [letter] if not tail or tail == texts[letter] else []


def _first_said(said: str, words: list[str], texts: list[list[str]]) -> list[int]:
    """The options whose text stands at the head of a statement.

    The longest, or two where it says "ice or wood".

    An ordinary word ("no") must be all of its clause: "no, because" names the option, "no longer
    certain" does not.
    """
    first = [i for i, text in enumerate(texts) if text and words[: len(text)] == text]
    if not first:
        return []
    longest = max(len(texts[i]) for i in first)
    first = [i for i in first if len(texts[i]) == longest]
    text = texts[first[0]]
    if len(text) == 1 and text[0] in _ORDINARY:
        ends = re.match(
            rf"[^\w]*(?:(?i:the|an?)\s+)?{re.escape(text[0])}(?!\w)[*_\"'”’)]*(?:\s*(?:[.,;:!—–(*]|$)|\s+(?i:because|since|as|for|and|but|-)(?!\w))",
            said,
            re.I,
        )
        return first if len(first) == 1 and ends else []
    rest = words[longest:]
    if rest[:1] == ["or"]:
        other = _first_said(
            " ".join(rest[1:]),
            rest[2:] if rest[1:2] in (["a"], ["an"], ["the"]) else rest[1:],
            texts,
        )
        return [*first, *(i for i in other if i not in first)]
    return first if len(first) == 1 else []


def _inside_said(said: str, texts: list[list[str]]) -> list[int]:
    """The one option whose text stands anywhere in a statement, before it turns against something
    ("rather than wood").
    """
    words, positive = _terms(said), _terms(_AGAINST.split(said)[0])
    inside = [
        i
        for i, text in enumerate(texts)
        if not (len(text) == 1 and text[0] in _ORDINARY)
        and _contains(words if set(text) & _NEGATIONS else positive, text)
    ]
    longest = [
        i for i in inside if not any(i != j and _contains(texts[j], texts[i]) for j in inside)
    ]
    return longest if len(inside) == 1 else []


class _Line(NamedTuple):
    """Where an answer stands in a text and what it says."""

    start: int
    end: int
    said: str
    whole: bool
    at: int


def _answer_lines(text: str, choices: tuple[str, ...]) -> list[_Line]:
    """All lines that state the answer, in reading order: "Answer.

    (B)", a heading with the answer below, "#### B", an inline "… Answer: (B)", a first or a last
    line that is only an option by letter.
    """
    lines = [_line_below(text, match) for match in _HEADING.finditer(text)]
    headings = {line.start for line in lines}
    for match in _ANSWER_LINE.finditer(text):
        if match.start() in headings:  # "**Answer:**" alone on its line is both
            continue
        lines.append(
            _line_below(text, match)
            if not match["said"].strip(" \t*_")
            else _Line(match.start(), match.end(), match["said"], False, match.start("said"))
        )
    taken = [(line.start, line.end) for line in lines]
    free = lambda at: not any(start <= at < end for start, end in taken)
    lines += [
        _Line(m.start(), m.end(), m["said"], False, m.start("said"))
        for m in _HASHES.finditer(text)
        if free(m.start())
    ]
    lines += [
        _Line(m.start(), m.end(), m["said"], True, m.start("said"))
        for m in _INLINE.finditer(text)
        if free(m.start()) and named_options(m["said"], choices, whole=True)
    ]
    return sorted(lines + [line for line in _lone_lines(text, choices) if free(line.at)])


def _line_below(text: str, match) -> _Line:
    """The answer that stands on the next line that is not empty."""
    below = re.compile(r"\s*([^\n]*)").match(text, match.end())
    return (
        _Line(match.start(), below.end(), below[1], True, below.start(1))
        if below[1]
        else _Line(match.start(), match.end(), "", True, match.end())
    )


def _lone_lines(text: str, choices: tuple[str, ...]) -> list[_Line]:
    """The first and the last line, where they are an option by letter and nothing else.

    A first line counts only where no other line begins so: else it is the list of options,
    repeated.
    """
    spans = [(m.start(), m.end(), m[0]) for m in re.finditer(r"[^\n]*\S[^\n]*", text)]
    lone = [i for i, (_, _, line) in enumerate(spans) if _LONE.match(line)]
    wanted = {
        i
        for i in lone
        if i == len(spans) - 1 and (len(lone) < 2 or i - 1 not in lone) or i == 0 and len(lone) == 1
    }
    return [
        _Line(spans[i][0], spans[i][1], spans[i][2], True, spans[i][0])
        for i in sorted(wanted)
        if named_options(spans[i][2].lstrip(" #>\t"), choices, whole=True)
    ]


def stated_options(text: str, choices: tuple[str, ...]) -> list[list[int]]:
    """Every statement of an answer in reading order ("Answer.

    (B)", "the answer is ice", "actually, A"), each as the options it names. A statement in which no
    option can be read is left out, and so is one that is asked ("is B the answer?"), supposed ("if
    the answer is B") or denied.
    """
    text, found = text.translate(_WIDE), {}
    for pattern, whole in (
        (_TURN, True),
        (_PICK, True),
        (_SO, True),
        (_END, True),
        (_BOXED, False),
        (_STATED_ABROAD, True),
        (_STATED, False),
    ):
        for match in pattern.finditer(text):
            name = "said" if match["said"] is not None else "chosen"
            comma = match[name].find(",")
            if (
                _WITHDRAWN.match(text, match.end())
                or comma >= 0
                and _WITHDRAWN.match(match[name], comma)
            ):
                continue
            if pattern is _STATED and (
                text[match.end() : match.end() + 1] == "?"
                or _SUPPOSED.search(text, max(0, match.start() - 60), match.start())
            ):
                continue
            found[match.start(name)] = named_options(match[name], choices, whole)
    for match in _NAMED.finditer(text):
        found[match.start("said")] = _named_option(match, choices)
    for line in _answer_lines(text, choices):
        found[line.at] = named_options(
            line.said.lstrip(" #>\t") if line.whole else line.said, choices, line.whole
        ) or found.get(line.at)
    return [found[start] for start in sorted(found) if found[start]]


def _named_option(match, choices: tuple[str, ...]) -> list[int]:
    """The option of "(B) is correct" and "(B) a knife is the best answer".

    Any text between must be the option's own.
    """
    named = named_options(match["said"], choices, whole=True)
    return (
        named
        if not match["text"].strip()
        else named_options(f"{match['said']} {match['text']}", choices, whole=True)
    )


def cut_closing(text: str, choices: tuple[str, ...] = ()) -> str:
    """A rationale on one line without the closing sentences that name the answer ("So the answer is
    (B).", "Thus, (B) is correct."), however many stand in a row and whether or not there is
    punctuation before them.

    `choices` are needed for "… is B. a knife".
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
        for pattern in (_CLOSING, _CLOSING_BARE, _CLOSING_LETTER):
            shorter = pattern.sub("", shorter).rstrip()
        if shorter == text:
            break
        text = shorter
    return text


def _tidy_reason(body: str, choices: tuple[str, ...]) -> str:
    """A reason on one line, without a label before it ("Reason:") and a closing that names the
    answer.
    """
    body = " ".join(_REASON_LABEL.sub("", " ".join(body.split())).split())
    return cut_closing(body, choices).strip().strip("*").strip()


def _reason_of(text: str, choices: tuple[str, ...]) -> str:
    """The rationale of a final text.

    What stands before the line of the answer or, where the answer came first, its "because …" and
    what follows it, up to another one.
    """
    lines = _answer_lines(text.translate(_WIDE), choices)
    if not lines:
        return _tidy_reason(re.sub(r"(?m)^\s*[$*]*\\boxed\{.*\}[$*.]*\s*$", "", text), choices)
    body = text[: lines[0].start]
    if not body.strip():
        reason = _BECAUSE.search(lines[0].said)
        body = (reason[0] if reason else "") + text[
            lines[0].end : lines[1].start if len(lines) > 1 else None
        ]
    return _tidy_reason(body, choices)


def parse_completion(raw: str, example: Example) -> Parsed:
    """A raw completion -> rationale, concluded answer, contradiction.

    `read_completion` of text alone.
    """
    return Parsed(*read_completion(raw, example)[:3])


def read_completion(
    raw: str | None,
    example: Example,
    reasoning_content: str | None = None,
    finish_reason: str | None = None,
) -> Reading:
    """An answer of a teacher -> what it says.

    What comes after the next "Question:" is cut, thoughts are set apart (`split_thought`). The last
    answer that the final text states counts; a thought concludes nothing, for it weighs options.
    The rationale is the final text's own reasoning (before the "Answer:" line, without a closing
    "So the answer is (B)"); a final text that only answers has the finished thought as its
    rationale. An unfinished thought, or one without a final text, gives no rationale and no
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
    text = ("\n" + _from_tags(final)).split(STOP)[0].strip()
    said = stated_options(text, example.choices)
    body = _reason_of(text, example.choices) or _tidy_reason(thought, example.choices)
    answer = said[-1][0] if said and len(said[-1]) == 1 else None
    return Reading(body, answer, len({i for s in said for i in s}) > 1, thought, True)
