"""Make facts of gold rationales wrong: fluent texts of a teacher that believes false things.

A fact that is wrong is wrong wherever it is stated, and has the value of another thing: "A knife is
used for sleeping.". One random order of all facts says which go first, so what is wrong at 25 % is
also wrong at 50 %, with the same wrong value. Order and values depend on the seed alone.
"""

import re
from dataclasses import replace

import numpy as np

from cotdistill.errors import DataError
from cotdistill.examples import Rationale
from cotdistill.microworld.knowledge import capitalise, facts_of, knowledge, strip_article


def fact_sentences(text: str, facts: list[tuple]) -> list[tuple[tuple, str]]:
    """Pair the facts that a gold rationale states with its sentences.

    facts: `states` of the question's meta. Raises DataError where the text is not a sentence each.
    """
    sentences = re.split(r"(?<=\.) ", text)
    if len(sentences) != len(facts):
        raise DataError(
            f"rationale '{text[:40]}…' has {len(sentences)} sentences and states {len(facts)} "
            "facts; expected the gold rationales of microworld/everyday, invented or strata"
        )
    return list(zip(facts, sentences, strict=True))


def stated_sentences(rationales: dict[str, Rationale], meta: dict[str, dict]) -> dict[tuple, str]:
    """Map each fact that gold rationales state to its sentence; raises as `fact_sentences`.

    A fact is (world, concept, relation), world None where all seeds share one.
    """
    found = {}
    for key, rationale in rationales.items():
        pairs = fact_sentences(rationale.text, meta[key]["states"])
        found |= {(meta[key].get("world"), *fact): sentence for fact, sentence in pairs}
    return found


def _split_value(fact: tuple, sentence: str) -> tuple[str, str, str]:
    """Split a sentence by its relation's template into (before the value, value, after it)."""
    template = knowledge()["relations"][fact[-1]]["state"]
    pattern = re.escape(template).replace(r"\{v\}", "(?P<v>.+)")
    pattern = pattern.replace(r"\{S\}", ".+").replace(r"\{V\}", ".+")
    match = re.fullmatch(pattern, sentence, re.I)
    if match is None:
        raise DataError(
            f"'{sentence[:40]}' does not state {fact[-1]} in the world's words; expected gold "
            "rationales"
        )
    return sentence[: match.start("v")], match["v"], sentence[match.end("v") :]


def true_values() -> tuple[dict[tuple[str, str], set[str]], dict[tuple[str, str], set[str]]]:
    """Return what may be true of a thing, without articles: of real things, and of made-up ones.

    The first maps (concept, relation) to its values. A made-up thing has the whole list of values
    of some real one (`invent_knowledge`), so the second maps (relation, value) to all values that
    any list holds beside that one.
    """
    real, together = {}, {}
    for (concept, relation), values in facts_of(knowledge()).items():
        real[concept, relation] = plain = {strip_article(value) for value in values}
        for value in plain:
            together.setdefault((relation, value), set()).update(plain)
    return real, together


def wrong_sentences(sentences: dict[tuple, str], seed: int) -> dict[tuple, str]:
    """Give every fact a false sentence, in the random order in which facts become wrong.

    A fact of whose relation no other value is known is left out.
    """
    parts = {fact: _split_value(fact, sentence) for fact, sentence in sentences.items()}
    values, (real, together) = {}, true_values()
    for fact, (_, value, _) in parts.items():
        values.setdefault(fact[-1], set()).add(value)
    facts = sorted(parts, key=str)
    rng, found = np.random.default_rng([seed, 4]), {}
    for i in rng.permutation(len(facts)):
        fact, (before, own, after) = facts[i], parts[facts[i]]
        own = strip_article(own)
        also = real.get(fact[1:], together.get((fact[-1], own), set())) | {own}
        others = [v for v in sorted(values[fact[-1]]) if strip_article(v) not in also]
        if others:
            wrong = others[int(rng.integers(len(others)))]
            found[fact] = capitalise(before + wrong + after)
    return found


def damage_rationales(
    rationales: dict[str, Rationale], meta: dict[str, dict], share: float, seed: int
) -> dict[str, Rationale]:
    """Make a share (0 to 1) of all facts wrong, wherever gold rationales state them.

    `answer` becomes None where the fact that the question asks is wrong: the text then concludes
    another value, or none of the options. Key spans are dropped. Raises as `fact_sentences`.
    """
    wrong = wrong_sentences(stated_sentences(rationales, meta), seed)
    chosen = dict(list(wrong.items())[: round(share * len(wrong))])
    found = {}
    for key, rationale in rationales.items():
        world, asked = meta[key].get("world"), meta[key]["fact"]
        pairs = fact_sentences(rationale.text, meta[key]["states"])
        text = " ".join(chosen.get((world, *fact), sentence) for fact, sentence in pairs)
        answer = None if (world, *asked) in chosen else rationale.answer
        found[key] = replace(rationale, text=text, answer=answer, key_spans=())
    return found
