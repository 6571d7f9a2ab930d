"""The knowledge base, its invented counterpart, and how its texts are compared."""

import re
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import yaml

from cotdistill.errors import DataError

KNOWLEDGE = Path(__file__).with_name("microworld.yaml")
WORLDS = ("everyday", "relations", "invented", "strata")
# Concepts of an invented world: few enough for a small student to meet each fact several times in a
# few hundred questions
INVENTED = 40
SPLITS = ("train", "validation", "test")
# The generators of a world whose splits are drawn apart
STREAMS = ("world", "train", "validation", "test", "more")
DONOR_SEED = 2**31  # added to the seed of a world that gives its rationales away: no study's own
STOP = set(
    "a an and as at by for from in is it of on or such that the this to with what which "
    "who whose where why how does do be its their your".split()
)


@cache
def knowledge(path: Path = KNOWLEDGE) -> dict:
    """The knowledge base as read from microworld.yaml (its head says what stands where).

    Values become lists: the one asked first, then the others that are also true. Raises DataError
    for a relation or a link that is not declared.
    """
    world = yaml.load(
        Path(path).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    for section in ("concepts", "links"):
        for name, row in world[section].items():
            unknown = (set(row) if section == "concepts" else {name}) - set(world["relations"])
            if unknown:
                raise DataError(
                    f"{path}: {name} has relation {sorted(unknown)}; expected some of "
                    f"{sorted(world['relations'])}"
                )
            lists = {
                key: [value] if isinstance(value, str) else value for key, value in row.items()
            }
            world[section][name] = {key: values for key, values in lists.items() if values}
    return world


def facts_of(world: dict) -> dict[tuple[str, str], list[str]]:
    """(concept, relation) -> values, stated ones and those that follow by one link (concept ->
    material -> origin).

    A linked value follows from the first value of the concept; what follows from its other values
    is also true.
    """
    facts = {
        (concept, relation): values
        for concept, row in world["concepts"].items()
        for relation, values in row.items()
    }
    for relation, links in world["links"].items():
        via = world["relations"][relation]["via"]
        for concept, row in world["concepts"].items():
            values = row.get(via, [])
            if values and values[0] in links:
                follow = [v for value in values for v in links.get(value, [])]
                facts[concept, relation] = list(dict.fromkeys(follow))
    return facts


@lru_cache(maxsize=20000)
def stems(text: str) -> set[str]:
    """Content words cut to five letters, so that "reading" and "read" meet.

    What an overlap heuristic could see.
    """
    return {word[:5].rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - STOP


@lru_cache(maxsize=20000)
def _prefixes(text: str) -> set[str]:
    return {word[:n] for word in stems(text) for n in range(min(3, len(word)), len(word) + 1)}


def shares_words(question: str, option: str) -> bool:
    """Whether a content word of the option, or a longer or shorter form of it, stands in the
    question.
    """
    return not (
        stems(option).isdisjoint(_prefixes(question))
        and stems(question).isdisjoint(_prefixes(option))
    )


def strip_article(concept: str) -> str:
    return re.sub(r"^(an?|the) ", "", concept)


def invent_knowledge(world: dict, rng: np.random.Generator, size: int = INVENTED) -> dict:
    """The knowledge base of a world that does not exist.

    `size` concepts of `world` under made-up names ("a mavox"), and the values of each relation dealt anew among those that have one. Neither the name nor any other fact about a thing then tells a value, but by the links from value to value, which stay (whatever is made of wool comes from sheep).

    A list of values moves as one, so what is also true stays so. Names are consonant-vowel, twice,
    and a last consonant that English words of that shape hardly have; none shares a beginning with
    a word of the world.
    """
    names = list_made_up_names(world)
    names = [f"a {names[i]}" for i in rng.permutation(len(names))[:size]]
    concepts = [
        list(world["concepts"].values())[i] for i in rng.permutation(len(world["concepts"]))[:size]
    ]
    rows = {name: {} for name in names}
    for relation in world["relations"]:
        having = [i for i, row in enumerate(concepts) if relation in row]
        for i, j in zip(having, rng.permutation(having)):
            rows[names[i]][relation] = concepts[j][relation]
    return world | {"concepts": rows}


def list_made_up_names(world: dict) -> list[str]:
    """Every name that a made-up thing may have, in alphabetical order of its letters.

    See `invent_knowledge`.
    """
    known = {word[:3] for text in list_texts(world) for word in re.findall(r"[a-z]+", text.lower())}
    letters = ("bdfgklmnprtvz", "aeiou", "jvxz", "aiou", "bgpx")
    return [name for name in map("".join, product(*letters)) if name[:3] not in known]


def list_texts(part) -> list[str]:
    """Every text in a piece of the knowledge base, keys too."""
    if isinstance(part, str):
        return [part]
    return [
        text
        for one in ([*part, *part.values()] if isinstance(part, dict) else part)
        for text in list_texts(one)
    ]


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _add_article(noun: str) -> str:
    """A part with its article, none for a plural or a mass: "a blade", "webbed feet", "bark"."""
    return (
        noun
        if re.search(r"([^s]s|feet|teeth|bark)$", noun)
        else f"a{'n' * (noun[0] in 'aeiou')} {noun}"
    )


def state(world: dict, relation: str, concept: str, value: str, middle: str = "") -> str:
    """One fact as one sentence.

    "A knife is made of steel."; of a linked relation its second link, about `middle`: "People get
    wool from sheep.".
    """
    v = _add_article(value) if relation == "part" else value
    return capitalise(world["relations"][relation]["state"].format(S=concept, v=v, V=middle))


def find_spans(text: str, words: list[str], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Character spans of the words, each found from `prefill` on at a word border, sorted and without
    overlaps.
    """
    spans = set()
    for word in words:
        spans |= {
            m.span()
            for m in re.finditer(rf"\b{re.escape(word)}\b", text, re.I)
            if m.start() >= start
        }
    kept = []
    for a, b in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not kept or a >= kept[-1][1]:
            kept.append((a, b))
    return tuple(kept)
