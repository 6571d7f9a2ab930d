"""Hold the words and forms by which teachers state an answer, as regular expressions.

A group `said` is the statement itself. `completions` decides in which order they are tried.
"""

import re

# Words by which teachers name the answer: English ones anywhere in a line, the others at its start
_KIND = r"(?:the |my |your |final |correct |right |best )*"
_ABROAD = (
    r"(?:(?:die |la |le |el |a |o |het |правильный |верный |poprawna |bonne |richtige "
    r"|korrekte |endgültige |最终|正确|正確|最終|参考)*"
    r"(?:antwort|lösung|réponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|cevap"
    r"|jawaban|đáp án|ответ|答案|選項|选项|回答|答え|解答|正解|정답|답|उत्तर|الإجابة|الجواب)"
    r"(?: finale?| final| correcta?| correcte| correta| corretta| đúng| benar)*)"
)
# "Answer: (B)", "**Final answer:** B", "Ans. = B", "réponse : B", "Answer - B", "Answer (B)" at the
# start of a line.
ANSWER_LINE = re.compile(
    rf"(?im)^[ \t*#>_\[-]*(?:(?:so|thus|therefore|hence),? )?(?:{_KIND}(?:answer|ans\.?|"
    rf"answer choice)|(?:final|correct|right|best) (?:option|choice)|{_ABROAD})[ \t*_\]]*"
    r"(?:[:=→][ \t*_]*|[-–—][ \t*_]+|(?=\([a-z]\)[\s*.]*$))(?P<said>.*)$"
)
# "### Final Answer", "**Answer**", "Answer" alone on a line: the answer is on the next line.
HEADING = re.compile(rf"(?im)^[ \t]*(?:#+[ \t*]*|\*\*[ \t]*)(?:{_KIND}answer|{_ABROAD})[ \t*_:]*$")
# "Metal. Answer: (B)": in the middle of a line, with a capital letter, after the end of a sentence.
INLINE = re.compile(
    r"(?<=[.!?;:)])[ \t]+[*_]*(?:The |Final |Correct |Best |So |final |correct )*(?:A|"
    r"(?<= )a)nswer[*_]*[ \t]*[:=][ \t*_]*(?P<said>[^\n]*)"
)
# "#### B", the form of GSM8K.
HASHES = re.compile(r"(?m)^####[ \t]+(?P<said>\S.*)$")
# "the answer is (B)", "the best choice must be ice".
STATED = re.compile(
    r"(?i)\b(?:answer(?: choice)?|(?:correct|right|best) (?:option|choice|one))\s+(?:is|must be|"
    r"should be|has to be|would be)\b\s*:?\s*(?P<said>(?:(?!\s(?:(?:so|thus|therefore) )?the "
    r"(?:final |correct )?answer is\b)[^\n.!?;]|\.(?=\d))*)"
)
# "No, wait, that's not correct" right after a statement takes it back.
WITHDRAWN = re.compile(
    r"(?i)[\s.!;,]*(?:(?:no|wait|but|actually|hmm)\b[\s,.]*)*(?:that|this|it)(?:'s|’s| is) (?:not "
    r"(?:correct|right)|wrong|incorrect)\b"
)
# The same in other languages: "die Antwort ist (C)", "答案是B", "所以选B", "정답은 B".
STATED_ABROAD = re.compile(
    rf"(?i){_ABROAD}\s*(?:ist|lautet|est|es|è|é|is|är|to|—|–|是|为|為|は|은|는|:)\s*:?\s*"
    r"(?P<said>[^\n.!?;。]*)|(?:选择|選擇|应选|應選|故选|故選|所以选|因此选|选)\s*(?P<chosen>\(?[A-Z]\)?(?![A-Za-z]))"
)
# "I would choose (B)", "I'd go with ice".
PICK = re.compile(
    r"(?i)\bI(?:'d|’d|'ll| would| will|) (?:choose|pick|select|go with)\s+(?P<said>[^\n.!?;]+)"
)
# "Therefore, (B).", "So it must be B." with nothing else in the sentence.
SO = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*[*_]*(?i:so|thus|therefore|hence),?\s+(?:(?i:it's|it is|"
    r"it must be)\s+)?(?P<said>(?:(?i:option|choice)\s+)?(?:\([A-Z]\)|[A-Z]))[*_]*(?=[.!]?[*_]*"
    r"(?:\s|$))(?!\s+\w)"
)
# "(B) is correct", "option B must be the best answer", after the start of a sentence or a word that
# concludes.
NAMED = re.compile(
    r"(?:^|[.!?:;,\n*]|\b(?i:so|thus|therefore|hence|clearly))\s*[*_\"]*(?:(?i:the\s+)?(?i:option|"
    r"choice|answer)\s+)?(?P<said>\([A-Za-z]\)|(?<![\w'’-])[A-Z]"
    r"(?![\w'’-]))[^\S\n]*[*_:\"]*[^\S\n]*(?P<text>[^\n.!?;,:]{0,60}?)[*_\"]*\s+(?i:is|must be|"
    r"has to be)\s+(?:(?i:clearly|definitely|therefore|thus|indeed|probably|also|most likely)\s+)?"
    r"(?:(?i:the)\s+)?(?:(?i:only|single)\s+)?(?i:correct|right|best)\b(?!\s*\?)(?=\s*[*_]*"
    r"(?:[.,;!:)]|$|\s(?i:answer|option|choice|one|because|since|as|here)\b))"
)
# \boxed{B}, \boxed{\text{(B) a knife}}.
BOXED = re.compile(r"\\boxed\s*\{(?P<said>(?:[^{}]|\{[^{}]*\})*)\}")
# "There is no doubt: (A)" ends the text.
END = re.compile(r"[:→⇒]\s*[*_]*(?P<said>\([A-Za-z]\))[\s*_.]*$")
# A line that holds only an option by letter: "(b)", "**B**", "B. a knife", "$B$". Whether its text
# is that option's is checked later.
LONE = re.compile(
    r"[\s*_#>\"'`$\[{\\]*(?:boxed\s*\{|text\s*\{|(?i:option|choice|answer)\s+)*\(?[A-Za-z]"
    r"(?![\w'’])"
)
# "Actually, A", "no, it is ice": a turn to another answer.
TURN = re.compile(
    r"(?i)(?:\b(?:actually|wait|correction)\b\s*[,:.]?\s*|\bor rather\b\s*[,:.]?\s*|\b(?:no|"
    r"rather)\b\s*[,:.]\s*)+(?:(?:it|that)(?:'s| is| should be| must be)\s+)?(?P<said>[^\n.!?;]+)"
)
# What comes before a statement that only supposes or denies an answer: "if the answer is A", "the
# wrong answer is A".
SUPPOSED = re.compile(
    r"(?i)\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|(?:might|may|could|"
    r"would) (?:think|say|believe|guess|assume))\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$|\b(?:wrong|"
    r"incorrect|worst|no|neither|previous|initial|first)\s+$"
)
_HEDGE = (
    r"(?i:most likely|almost certainly|of course|probably|definitely|certainly|clearly|likely|"
    r"surely|simply|therefore|thus|obviously|indeed|perhaps|maybe|possibly|still|really|actually|"
    r"just|also|either|hence|most probably|in fact)"
)
# "not glass", "probably not copper", "no longer certain", "neither A nor B".
DENIED = re.compile(
    rf"[\s*_:]*(?:{_HEDGE}[,\s]+)*(?i:not|isn['’]t|never|neither|none|nothing|hardly|unlikely|"
    r"anything but|anything except|other than|far from|no longer|no doubt|no (?=\w))\b"
)
# "not (A) but (B)", "not A; rather B".
INSTEAD = re.compile(
    r"(?i)\b(?:(?<!anything )but(?: rather| instead)?|rather(?! than)|it(?:'s|’s| is))\s+"
    r"(?P<said>.+)"
)
# Where a statement turns away from its option: "ice rather than wood", "ice and not wood".
AGAINST = re.compile(
    r"(?i)\b(?:not|isn['’]t|never|neither|nor|none|without|except|unlike|rather than|instead of|"
    r"other than|anything but|no longer|hardly|cannot|can['’]t|opposite of|against)\b"
)
NEGATIONS = {
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
# Labels that a text often uses without meaning the option
ORDINARY_WORDS = set(
    "yes no true false a an the it i he she they we you this that these those one "  # noqa: SIM905 (else 50 lines)
    "none not all both so such as and or if in on at to of for with by from do "
    "does".split()
)
# How a closing names the answer, up to its end; it gives no reason.
_CONCLUDES = (
    r"(?:the |my )?(?:most |very )?(?:(?:correct|right|best|final|only|likely|logical|appropriate|"
    r"suitable|accurate|fitting) ){0,3}(?:answer(?: choice)?|option|choice) (?:is|must be)\b:?"
    r"(?!\s+(?:not|one that|the one that)\b)"
)
_LINK = r"(?:(?:and |so|thus|therefore|hence|that is why)\b,?\s*)?"
_LAST_WORDS = r"(?![^.!?]*(?:\b(?:because|since)\b|,\s*as\b))(?:[^.!?]|[.](?=\d))*[.!?]?[\s*_>]*$"
# "So the answer is (B)." after the end of a sentence or clause, or at the start ...
CLOSING = re.compile(
    rf"(?i)(?:^|(?<=[.!?;,:)*\"”]))[\s*_<]*{_LINK}\b(?=the |my ){_CONCLUDES}{_LAST_WORDS}"
)
# ... or without punctuation before it: with a capital letter, or after a word that concludes.
CLOSING_BARE = re.compile(
    rf"\s(?:(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),?\s+(?=(?:the|my) )(?i:{_CONCLUDES})|(?=(?:The|"
    rf"My) )(?i:{_CONCLUDES}))(?i:{_LAST_WORDS})"
)
# "(B) is correct.", "So option B is the right answer."
CLOSING_LETTER = re.compile(
    r"(?:^|(?<=[.!?;]))[\s*_]*(?i:(?:so|thus|therefore|hence),?\s+)?(?:(?i:the )?(?i:option|"
    r"choice|answer)\s+)?(?:\([A-Z]\)|[A-Z])[*_]*\s+(?i:is|must be)\s+(?i:the )?(?i:correct|right|"
    r"best)(?:\s+(?i:answer|option|choice))?[.!]?[\s*_]*$"
)
# The reason of an answer that came first.
BECAUSE = re.compile(r"(?i)\b(?:because|since)\b.*")
# "Reason:", "**Explanation**:" before a rationale.
REASON_LABEL = re.compile(
    r"(?i)^[\s#*]*(?:reason(?:ing)?|rationale|explanation|justification|begründung|erklärung|"
    r"explication|raisonnement|explicación|razonamiento|spiegazione|explicação|解释|解析|理由|"
    r"解説)\s*\**\s*:\**\s*"
)
# Full-width forms ("（Ｂ）：") -> ASCII, character by character, so that positions stay.
WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: 0x20,
    ord("【"): ord("["),
    ord("】"): ord("]"),
    ord("〔"): ord("("),
    ord("〕"): ord(")"),
}


# "(B)" and nothing else.
ALONE = re.compile(r"[\s*_\"']*\(([A-Z])\)[\s*_\"'.。]*")
# A capital letter at the head of a statement: "(B) a knife", "probably option B".
HEAD = re.compile(
    rf"[\s*_\"'“‘\[]*(?:{_HEDGE}[,\s]+)*(?:(?i:the\s+)?(?i:option|choice|"
    r"letter)\s+)?[*_\"'“‘]*(\()?([A-Z])(?(1)\)|(?![\w'’]))"
)
# The same with a small letter: "b", "option b. a knife".
SMALL = re.compile(
    r"[\s*_\"'“‘]*(?P<word>(?i:option|choice|letter)\s+)?(?P<letter>[a-z])[*_\"'”’]*(?:[.):]+\s*|"
    r"\s*$)(?P<rest>.*)"
)
# A second letter after the first: "(A) or (B)".
SECOND = re.compile(
    r"\s*(?:/|,?\s*or\b|,?\s*and\b(?=\s*\(?[A-Z]\)?[\s*.]*$)|,(?=\s*\(?[A-Z]\)?[\s*.]*$))\s*"
    r"(?:option\s+|choice\s+)?(?:\(([A-Z])\)|([A-Z])(?![\w'’]))"
)
