"""How good recorded rationales are: choosing one per question, filters, the quality card."""

import json
import re
from collections import Counter

import numpy as np

from cotdistill.elicit.completions import _ORDINARY, _bare, _contains, _words, stated_options
from cotdistill.elicit.prompts import Demonstration
from cotdistill.elicit.thoughts import clean_text
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, Rationale, answer_index


# what was got: choose, measure, compare, filter
def _by_question(records: list[dict], examples: list[Example]) -> dict[str, list[dict]]:
    by_id, found = {example.id: example for example in examples}, {}
    # answers of a smaller max_new_tokens stand beside those that were asked again with a larger one
    kinds = {
        (
            r["teacher"],
            r["revision"],
            r["mode"],
            r["prefix"],
            json.dumps({**r["decoding"], "max_new_tokens": 0}, sort_keys=True),
        )
        for r in records
    }
    if len(kinds) > 1:
        raise DataError(
            f"records of {len(kinds)} settings, e.g. {sorted(kinds)[0][:3]} and "
            f"{sorted(kinds)[1][:3]}; expected those of one teacher, mode, prompt and decoding"
        )
    for record in records:
        if record["id"] not in by_id:
            raise DataError(
                f"record for an unknown id '{record['id']}'; expected the id of one of the "
                f"{len(by_id)} questions"
            )
        # Asked again: the last one counts
        found.setdefault(record["id"], {})[record["sample"]] = record
    return {id: [rows[sample] for sample in sorted(rows)] for id, rows in found.items()}


def choose_rationales(
    records: list[dict], examples: list[Example], prefer: str = "agreeing"
) -> dict[str, Rationale]:
    """One rationale per question, out of n samples.

    prefer="agreeing": the first sample whose concluded answer is the gold one and that has a
    rationale, else the first sample (with one sample per question this is that sample).
    prefer="first": the first sample, whatever it concludes.
    """
    if prefer not in ("agreeing", "first"):
        raise DataError(f"prefer is '{prefer}'; expected agreeing or first")
    gold, chosen = {example.id: example for example in examples}, {}
    for id, rows in _by_question(records, examples).items():
        good = [r for r in rows if r["answer"] == LETTERS[gold[id].answer] and r["rationale"]]
        best = (good or rows)[0] if prefer == "agreeing" else rows[0]
        answer = (
            None
            if best["answer"] is None
            else answer_index(best["answer"], len(gold[id].choices), f"record {id}")
        )
        chosen[id] = Rationale(id, clean_text(best["rationale"]), answer)
    return {example.id: chosen[example.id] for example in examples if example.id in chosen}


def names_letter(text: str, option: int) -> bool:
    """Whether a rationale names an option by its letter.

    "(B)", "option B", "answer B", "the answer is B".
    """
    letter = LETTERS[option]
    return bool(
        re.search(
            rf"\({letter}\)|\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+{letter}\b", text
        )
    )


def names_text(text: str, choice: str) -> bool:
    """Whether the words of an option stand in a rationale, next to each other.

    Case and a leading article don't count.
    """
    return _contains(_words(text), _bare(choice))


def repeats_itself(text: str) -> bool:
    """Whether a text repeats itself.

    Four words in a row at least three times, or a sentence of four or more words twice.
    """
    words = _words(text)
    runs = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    sentences = Counter(tuple(_words(s)) for s in re.split(r"(?<=[.!?])\s+", text))
    return any(count >= 3 for count in runs.values()) or any(
        count > 1 and len(s) >= 4 for s, count in sentences.items()
    )


def copies_demonstration(text: str, reasons: list[str], size: int = 5) -> bool:
    """Whether at least half of a text's runs of `size` words stand in one demonstration's reason."""
    runs = lambda s: {
        tuple(w[i : i + size]) for w in [_words(s)] for i in range(max(1, len(w) - size + 1))
    }
    own = runs(text)
    return bool(_words(text)) and any(len(own & runs(reason)) >= len(own) / 2 for reason in reasons)


def quality_card(
    rationales: dict[str, Rationale] | list[dict],
    examples: list[Example],
    demonstrations: list[Demonstration] | None = None,
):
    """What a set of rationales is worth, as a pandas Series (`.to_json()` is the file).

    Counts `n`, `questions` (asked about), `covered`, and shares from 0 to 1 of the n rationales.

    rationales: records of `elicit_*` (every sample counts) or a recorded set. Shares that can't be
    known are NaN: the share cut off and malformed and the seconds of a recorded set, copies without
    demonstrations.

    agrees, abstains   the concluded answer is the gold one; no answer could be read.
                       `agrees_if_answered` of the others.
                       Both NaN where no rationale states an answer: a gold set is not asked
    chance             agreement of a uniform guess
    top_answer         share of the most frequent concluded position: near 1, the teacher says the same letter to everything
    contradicts        different options are stated to be the answer
    names_letter, names_text, leaks   the rationale names the gold option by letter, by text, by
    either words_mean, words_median          length in words, of covered rationales loops, copies,
    duplicates         see `repeats_itself` and `copies_demonstration`; as many texts as are equal to an earlier one
    unfinished         does not end in . ! or ? (a sign of a cut-off that recorded sets also show)
    cut_off, malformed, seconds_mean  from the records
    """
    import pandas as pd

    by_id, rows = {example.id: example for example in examples}, []
    for item in rationales.values() if isinstance(rationales, dict) else rationales:
        record = isinstance(item, dict)
        id, text = (item["id"], item["rationale"]) if record else (item.id, item.text)
        if id not in by_id:
            raise DataError(
                f"rationale for an unknown id '{id}'; expected the id of one of the {len(by_id)} "
                "questions"
            )
        example = by_id[id]
        answer = item["answer"] if record else item.answer
        answer = (
            None
            if answer is None
            else answer_index(answer, len(example.choices), f"rationale {id}")
        )
        stated = {i for said in stated_options(text, example.choices) for i in said} | (
            {answer} - {None}
        )
        rows.append(
            {
                "agrees": answer == example.answer,
                "answer": answer,
                "abstains": answer is None,
                "chance": 1 / len(example.choices),
                "contradicts": item["contradicts"] if record else len(stated) > 1,
                "names_letter": names_letter(text, example.answer),
                "names_text": names_text(text, example.label),
                "loops": repeats_itself(text),
                "copies": copies_demonstration(text, [d.reason for d in demonstrations])
                if demonstrations
                else np.nan,
                "unfinished": bool(text) and text.rstrip("\"')*")[-1:] not in (".", "!", "?"),
                "cut_off": item["cut_off"] if record else np.nan,
                "malformed": bool(item["malformed"]) if record else np.nan,
                "seconds": item["seconds"] if record else np.nan,
                "words": len(text.split()),
                "text": " ".join(_words(text)),
                "id": id,
            }
        )
    if not rows:
        raise DataError("no rationale to judge; expected at least one")
    table = pd.DataFrame(rows)
    texts, words = table.text[table.text != ""], table.words[table.words > 0]
    share = {
        name: float(table[name].astype(float).mean())
        for name in (
            "agrees",
            "abstains",
            "chance",
            "contradicts",
            "names_letter",
            "names_text",
            "loops",
            "copies",
            "unfinished",
            "cut_off",
            "malformed",
        )
    }
    answered = table[~table.abstains]
    if isinstance(rationales, dict) and not len(answered):
        share["agrees"] = share["abstains"] = np.nan
    return pd.Series(
        {
            "n": float(len(table)),
            "questions": float(table.id.nunique()),
            "covered": float(table.id[table.text != ""].nunique()),
            "agrees": share["agrees"],
            "agrees_if_answered": float(answered.agrees.mean()) if len(answered) else np.nan,
            "chance": share["chance"],
            "top_answer": float(answered.answer.value_counts(normalize=True).iloc[0])
            if len(answered)
            else np.nan,
            "abstains": share["abstains"],
            "contradicts": share["contradicts"],
            "names_letter": share["names_letter"],
            "names_text": share["names_text"],
            "leaks": float((table.names_letter | table.names_text).mean()),
            "words_mean": float(words.mean()),
            "words_median": float(words.median()),
            "loops": share["loops"],
            "copies": share["copies"],
            "duplicates": (len(texts) - texts.nunique()) / len(table),
            "unfinished": share["unfinished"],
            "cut_off": share["cut_off"],
            "malformed": share["malformed"],
            "seconds_mean": float(table.seconds.astype(float).mean()),
        }
    )


def compare_teachers(cards: dict):
    """{name: quality card} -> DataFrame, a column per teacher, a row per measure."""
    import pandas as pd

    return pd.DataFrame(cards)


def _scrub_ordinary(text: str, word: str, neutral: str) -> str:
    """A text with an ordinary word replaced where it stands as an answer: see `remove_label`."""
    word = rf"(?<!\w){re.escape(word)}(?![\w'’])"
    ends = r"(?=\s*(?:[.,;:!?)\"”*—–]|$)|\s+(?:because|since|as)\b)"
    stated = (
        r"((?:\b(?:answer|choice|option)\s+(?:is|must be|should be|would "
        rf"be)\s*:?|\banswer\s*[:=]|\([A-Z]\)|{neutral}[,:])\s*)"
        rf"{word}{ends}"
    )
    text = re.sub(stated, rf"\g<1>{neutral}", text, flags=re.I)
    text = re.sub(rf"([\"“‘'])({word})(?=[.,]?[\"”’'])", rf"\g<1>{neutral}", text, flags=re.I)
    return re.sub(
        rf"((?:^|(?<=[.!?;:])\s+)){word}(?=\s*(?:[.,;:!—–]|$))",
        rf"\g<1>{neutral}",
        text,
        flags=re.I,
    )


def remove_label(text: str, example: Example) -> str:
    """The rationale with the gold option, named by text or by letter, replaced by a neutral phrase.

    A label that is an ordinary word (yes, no, true, it, a, …: `_ORDINARY`) is replaced only where
    it stands as an answer: after "the answer is" or "Answer:", after its letter, in quotation
    marks, or as a clause of its own at the start of a sentence ("No, it sinks."). In "There is no
    water" it stays.
    """
    label = _bare(example.label)
    ordinary = len(label) == 1 and label[0] in _ORDINARY
    neutral = next(p for p in ("this one", "that", "it", "such") if not set(_words(p)) & set(label))
    letter = LETTERS[example.answer]
    text = re.sub(
        rf"(?:\b(?i:the)\s+)?(?:\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+)?\({letter}\)"
        rf"|(?:\b(?i:the)\s+)?\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+{letter}\b",
        neutral,
        text,
    )
    if label:
        pattern = re.compile(
            r"(?:\b(?:the|an?)\s+)?(?<!\w)" + r"\W+".join(map(re.escape, label)) + r"(?!\w)", re.I
        )
        text = _scrub_ordinary(text, label[0], neutral) if ordinary else pattern.sub(neutral, text)
    return text[:1].upper() + text[1:]


def filter_rationales(
    rationales: dict[str, Rationale],
    examples: list[Example],
    *,
    keep_agreeing: bool = False,
    scrub_label: bool = False,
    max_tokens: int | None = None,
    count=lambda text: len(text.split()),
):
    """(kept rationales, counts) after the filters asked for, in this order.

    with_text       always: a rationale without text is no rationale
    keep_agreeing   only those that conclude the gold answer (abstentions go)
    scrub_label     `remove_label` each: changes texts, removes none that still says something
    max_tokens      only those of at most so many, as `count` counts (words; pass lambda t: len(student.encode(t)))

    counts is a DataFrame by filter: before, removed, changed, after. The caller trains every arm,
    label_only too, on the questions whose rationale is kept. Character spans don't survive
    scrubbing: key_spans of changed texts are emptied.
    """
    import pandas as pd

    by_id = {example.id: example for example in examples}
    unknown = next((id for id in rationales if id not in by_id), None)
    if unknown is not None:
        raise DataError(
            f"rationale for an unknown id '{unknown}'; expected the id of one of the {len(by_id)} "
            "questions"
        )
    if max_tokens is not None and max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}; expected None or a number of at least 1")

    def scrubbed(r):
        text = remove_label(r.text, by_id[r.id])
        return r if text == r.text else Rationale(r.id, text, r.answer)

    steps = [
        ("with_text", True, lambda r: r if r.text.strip() else None),
        ("keep_agreeing", keep_agreeing, lambda r: r if r.answer == by_id[r.id].answer else None),
        ("scrub_label", scrub_label, scrubbed),
        (
            "max_tokens",
            max_tokens is not None,
            lambda r: r if count(r.text) <= max_tokens else None,
        ),
    ]
    kept, rows = dict(rationales), []
    for name, wanted, step in steps:
        if not wanted:
            continue
        after = {id: new for id, old in kept.items() if (new := step(old)) is not None}
        rows.append(
            {
                "filter": name,
                "before": len(kept),
                "removed": len(kept) - len(after),
                "changed": sum(after[id] != kept[id] for id in after),
                "after": len(after),
            }
        )
        kept = after
    return kept, pd.DataFrame(rows).set_index("filter")
