"""Say what kinds of words a method selects."""

import re

import pandas as pd

from cotdistill.attribution.methods import top_k
from cotdistill.attribution.score import Attribution
from cotdistill.errors import DataError
from cotdistill.examples import Example

# Closed classes of English, complete enough for rationales; a word of two classes is listed under
# its commoner one.
CLOSED = {
    "determiner": "a an the this that these those each every some any no all both either neither "
    "such another",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours "
    "hers ours theirs myself yourself himself herself itself ourselves themselves who whom whose "
    "which what one someone something anyone anything everyone everything nobody nothing there",
    "preposition": "of in to for with on at from by about as into like through after over "
    "between out against during without before under around among above below across behind "
    "beyond near off onto toward towards upon within along inside outside than up down",
    "conjunction": "and or but nor so yet because although though while if unless until since "
    "whether when where why how whereas therefore thus hence",
    "auxiliary": "be am is are was were been being have has had having do does did can could "
    "will would shall should may might must cannot can't won't don't doesn't isn't aren't",
    "adverb": "not very too also only just even still more most less least often always never "
    "here now then again rather quite well much",
}
WORD_CLASS = {word: name for name, words in CLOSED.items() for word in words.split()}
SUFFIXES = [
    ("adverb", r".+ly"),
    ("adjective", r".+(ous|ful|less|able|ible|ive|ical|ish|ary|ent|ant|al|ic)"),
    ("noun", r".+(tion|sion|ment|ness|ity|ance|ence|ship|ism|ist|er|or|age|ure)s?"),
    ("verb", r".+(ing|ed|ize|ise|ify|ate)"),
]


def part_of_speech(word: str) -> str:
    """Guess a word's class by rule: closed-class words, digits, then suffixes, else "noun".

    No tagger and no context ("light" is always a noun): good for the share of function words among
    what is selected, not for fine classes. Punctuation around the word is ignored; a word of
    nothing else is "punctuation".
    """
    plain = _strip_word(word)
    if not plain:
        return "punctuation"
    if plain in WORD_CLASS:
        return WORD_CLASS[plain]
    if plain[0].isdigit():
        return "number"
    return next(
        (name for name, pattern in SUFFIXES if len(plain) > 4 and re.fullmatch(pattern, plain)),
        "noun",
    )


def _strip_word(word: str) -> str:
    """Return a word in lower case, without the punctuation around it."""
    return re.sub(r"^\W+|\W+$", "", word.lower().replace("’", "'"))


def selected_words(
    example: Example, rationale: str, attribution: Attribution, k: float
) -> pd.DataFrame:
    """Return one row per word of a rationale.

    Columns id, method, word, selected (one of its tokens is among the top k tokens), class, content
    (not of a closed class), and whether the same word stands in_question, in_options and in_label.
    Raises DataError for scores of another rationale.
    """
    words, chosen = rationale.split(), {attribution.words[t] for t in top_k(attribution.scores, k)}
    if len(set(attribution.words)) != len(words):
        raise DataError(
            f"question '{example.id}': {len(words)} words, scores for "
            f"{len(set(attribution.words))}; expected the rationale that was attributed"
        )
    places = {
        "in_question": example.question,
        "in_options": "" if example.is_free else " ".join(example.choices),
        "in_label": example.label,
    }
    seen = {name: {_strip_word(word) for word in text.split()} for name, text in places.items()}
    return pd.DataFrame(
        [
            {
                "id": example.id,
                "method": attribution.method,
                "word": word,
                "selected": index in chosen,
                "class": (kind := part_of_speech(word)),
                "content": kind not in (*CLOSED, "punctuation"),
                **{
                    name: bool(_strip_word(word)) and _strip_word(word) in text
                    for name, text in seen.items()
                },
            }
            for index, word in enumerate(words)
        ]
    )


def selection_table(words: pd.DataFrame) -> pd.DataFrame:
    """Compare selected words with all words, by method and property.

    The share of each property among selected words and among all words, and their ratio. words:
    rows of `selected_words`, joined. Properties are the classes, content, in_question, in_options
    and in_label, the last three among content words only. Columns method, property, selected, all,
    ratio, n (selected words).
    """
    rows = []
    for method, group in words.groupby("method", sort=False):
        content = group[group["content"]]
        tests = {kind: (group, group["class"] == kind) for kind in sorted(set(group["class"]))}
        tests |= {"content": (group, group["content"])}
        tests |= {
            name: (content, content[name]) for name in ("in_question", "in_options", "in_label")
        }
        for name, (among, test) in tests.items():
            chosen, everywhere = test[among["selected"]].mean(), test.mean()
            rows.append(
                {
                    "method": method,
                    "property": name,
                    "selected": chosen,
                    "all": everywhere,
                    "ratio": chosen / everywhere if everywhere else float("nan"),
                    "n": int(among["selected"].sum()),
                }
            )
    return pd.DataFrame(rows)
