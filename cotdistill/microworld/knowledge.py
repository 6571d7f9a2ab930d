"""Hold the knowledge base and its invented counterpart, and compare their texts."""

import re
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import yaml

from cotdistill.errors import DataError

KNOWLEDGE = Path(__file__).with_name("microworld.yaml")
WORLDS = ("everyday", "relations", "invented", "strata")
# Concepts of an invented world: few enough that a small student meets each fact several times in a
# few hundred questions
INVENTED = 40
SPLITS = ("train", "validation", "test")
# The random generators of a world whose splits are drawn separately
STREAMS = ("world", "train", "validation", "test", "more")
DONOR_SEED = 2**31  # added to the seed of a donor world: no study has such a seed
STOP = set(
    "a an and as at by for from in is it of on or such that the this to with "  # noqa: SIM905 (else 37 lines)
    "what which who whose where why how does do be its their your".split()
)


@cache
def knowledge(path: Path = KNOWLEDGE) -> dict:
    """Read the knowledge base from microworld.yaml, whose head describes its sections.

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
    """Map (concept, relation) to values: stated ones, and those that follow by one link.

    A link leads from concept to material to origin. A linked value follows from the first value of
    the concept; what follows from its other values is also true.
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
    """Return the content words cut to five letters, so that "reading" and "read" meet.

    This is what an overlap heuristic could see.
    """
    return {word[:5].rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - STOP


@lru_cache(maxsize=20000)
def _prefixes(text: str) -> set[str]:
    """Return all beginnings of the stems of a text, of three letters and more."""
    return {word[:n] for word in stems(text) for n in range(min(3, len(word)), len(word) + 1)}


def shares_words(question: str, option: str) -> bool:
    """Tell whether a content word of the option appears in the question.

    A longer or shorter form of the word counts too.
    """
    return not (
        stems(option).isdisjoint(_prefixes(question))
        and stems(question).isdisjoint(_prefixes(option))
    )


def strip_article(concept: str) -> str:
    """Strip the article off a concept."""
    return re.sub(r"^(an?|the) ", "", concept)


def invent_knowledge(world: dict, rng: np.random.Generator, size: int = INVENTED) -> dict:
    """Make the knowledge base of a world that does not exist.

    `size` concepts of `world` get made-up names ("a mavox"), and the values of each relation are
    dealt again among those that have one. Neither the name nor any other fact about a thing then
    tells a value, except by the links from value to value, which stay (whatever is made of wool
    comes from sheep).

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
        for i, j in zip(having, rng.permutation(having), strict=True):
            rows[names[i]][relation] = concepts[j][relation]
    return world | {"concepts": rows}


def list_made_up_names(world: dict) -> list[str]:
    """List every name that a made-up thing may have, in a fixed order.

    `invent_knowledge` says what they look like.
    """
    known = {word[:3] for text in list_texts(world) for word in re.findall(r"[a-z]+", text.lower())}
    letters = ("bdfgklmnprtvz", "aeiou", "jvxz", "aiou", "bgpx")
    return [name for name in map("".join, product(*letters)) if name[:3] not in known]


def list_texts(part) -> list[str]:
    """List every text in a piece of the knowledge base, keys too."""
    if isinstance(part, str):
        return [part]
    return [
        text
        for piece in ([*part, *part.values()] if isinstance(part, dict) else part)
        for text in list_texts(piece)
    ]


def capitalise(text: str) -> str:
    """Put a capital letter first and keep the rest."""
    return text[0].upper() + text[1:]


def _add_article(noun: str) -> str:
    """Give a part its article: "a blade", but none in "webbed feet" and "bark"."""
    return (
        noun
        if re.search(r"([^s]s|feet|teeth|bark)$", noun)
        else f"a{'n' * (noun[0] in 'aeiou')} {noun}"
    )


def state(world: dict, relation: str, concept: str, value: str, middle: str = "") -> str:
    """State one fact as one sentence: "A knife is made of steel.".

    A linked relation states its second link, about `middle`: "People get wool from sheep.".
    """
    v = _add_article(value) if relation == "part" else value
    return capitalise(world["relations"][relation]["state"].format(S=concept, v=v, V=middle))


def find_spans(text: str, words: list[str], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Find the character spans of the words, sorted and without overlaps.

    Each is searched from `start` on, at word borders.
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
