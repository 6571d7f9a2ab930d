"""Generate the embedded dataset: questions about a world of our own making, with no network.

`everyday` asks one- and two-step commonsense about the concepts in microworld.yaml; `relations`
asks strict logic about chains of signed qualitative relations. Gold rationales state every link,
and the character spans of their key tokens are known, so an attribution can be checked against the
truth. `rationale_only` sets how many of the facts that test questions ask about are stated in
training rationales only: what a label cannot teach, a rationale can.

`invented` asks the questions of `everyday` about things that do not exist: names are made up, and
every fact is drawn again, so that no student can know one before training. It is the positive
control: there a rationale carries what the answer needs, and a comparison of arms has something to
find. `strata` is its stricter form: every test question asks one fact of a made-up thing, and the
facts fall in three strata of equal make (stated in training rationales only, asked in training,
stated nowhere), in which no count of words tells the answer.

Hardly anything can be answered without the facts: in each split every value is the right answer 1/n
as often as it is offered, options never share a word with the question, test templates are not
among the training templates, and wrong options are as little alike among themselves as the right
one is like them, where values allow it (tests measure what is left).
"""

from typing import NamedTuple

import numpy as np

from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.microworld.everyday import is_stated, list_sentences, make_everyday
from cotdistill.microworld.knowledge import (
    DONOR_SEED,
    SPLITS,
    STREAMS,
    WORLDS,
    find_spans,
    invent_knowledge,
    knowledge,
)
from cotdistill.microworld.relations import make_relations
from cotdistill.microworld.settings import WorldSettings, make_settings
from cotdistill.microworld.strata import make_strata


def draw_donors(data: dict, part: str, seed: int = 0, **settings) -> dict[str, Rationale]:
    """Draw rationales for a `swapped` arm that state none of its world's facts.

    Each training question of `data` gets the gold rationale of another made-up world, of the same
    form and about the same length.

    data: what `generate(part, seed=seed, **settings)` gave; settings must be the same. Both worlds'
    training rationales are sorted by length in characters and paired, the shortest with the
    shortest. The donors' names are others than those of `data` (`strata`: by construction;
    `invented`: the first world without a common name is taken). Returns id -> Rationale (id of the
    question that gets it; `answer` None, for it concludes none of its options). Raises DataError
    for a part whose things are real.
    """
    if part not in ("invented", "strata"):
        raise DataError(
            f"microworld/{part}: its facts hold in every world; expected donors for invented or "
            "strata"
        )
    mine = {data["meta"][e.id]["fact"][0] for e in data["train"] + data["test"]}
    for shift in range(1000):
        donors = generate(part, seed=DONOR_SEED + seed + shift, **settings)
        if mine.isdisjoint(name for row in donors["meta"].values() for name, _ in row["states"]):
            break
    else:
        raise DataError(
            f"microworld/{part}: 1000 worlds share names with this one; expected one that does not"
        )
    by_length = lambda world: sorted(
        (world["rationales"][e.id] for e in world["train"]),
        key=lambda rationale: (len(rationale.text), rationale.id),
    )
    return {
        own.id: Rationale(own.id, other.text)
        for own, other in zip(by_length(data), by_length(donors), strict=True)
    }


def generate(
    part: str = "everyday",
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    **shares,
) -> dict:
    """Generate the questions of a world; the same arguments give the same questions.

    `shares` are the other fields of `settings.WorldSettings`, which describes them all. n_train is
    part of the design (which facts training states), so ask for the size you train on rather than
    cutting a larger one. Sizes left at None are 2,000, 200 and 500 questions; of strata 240, 32 and
    600.

    Returns {"train", "validation", "test": lists of Example, "rationales": id -> Rationale (gold,
    all splits, key_spans known), "meta": id -> {steps, relation, fact, unseen_concept,
    unseen_template, fact_in, needs, states}}. `fact_in` is where training has all facts of the
    question: "label", "rationale" or "none". `needs` lists these facts, `states` those that its
    rationale states (with the support that may come before). Raises DataError for an unknown part,
    an impossible setting, or a size above what the knowledge base can give.
    """
    sizes = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    settings = make_settings(part, sizes, seed, **shares)
    rng = np.random.default_rng([seed, WORLDS.index(part)])
    rows = _make_rows(part, settings, rng)
    for split, size in settings.sizes.items():
        if len(rows[split]) < size:
            raise DataError(
                f"microworld/{part}: n_{split} is {size}; with these settings the knowledge base "
                f"gives at most {len(rows[split])}"
            )
    data = {"train": [], "validation": [], "test": [], "rationales": {}, "meta": {}}
    training = _Training.of(rows["train"])
    for split in SPLITS:
        # Where sizes must not matter to other splits, the order has a generator of its own
        if part == "strata" or settings.n_core is not None:
            rng = np.random.default_rng([seed, WORLDS.index(part), 10 + SPLITS.index(split)])
        questions = [rows[split][i] for i in rng.permutation(len(rows[split]))]
        spots = _draw_spots([(len(q["wrong"]) + 1, q.get("group", "")) for q in questions], rng)
        for number, (q, spot) in enumerate(zip(questions, spots, strict=True)):
            key = f"{part}-{split}-{number:05d}"
            example, rationale = _build_question(key, q, spot, rng)
            data[split].append(example)
            data["rationales"][key] = rationale
            data["meta"][key] = _describe_question(q, split, training)
    return data


class _Training(NamedTuple):
    """Hold what training asks and states.

    `asked` are its facts, `subjects` the concepts or themes asked about, `stated` the facts and
    `sentences` the sentences of its rationales.
    """

    asked: set
    subjects: set
    stated: set
    sentences: set[str]

    @classmethod
    def of(cls, rows: list[dict]) -> "_Training":
        """Collect it from the training questions."""
        asked = {q["fact"] for q in rows}
        stated = {fact for q in rows for fact, _ in q["said"]}
        return cls(asked, {fact[0] for fact in asked}, stated, list_sentences(rows))

    def has_facts(self, q: dict) -> bool:
        """Tell whether training states every fact of a question."""
        if "links" in q:
            return self.stated.issuperset(q["links"])
        return is_stated(q, self.sentences)


def _make_rows(part: str, settings: WorldSettings, rng) -> dict[str, list[dict]]:
    """Make the questions of a world as split -> question dicts."""
    if part == "strata":
        return make_strata(settings)
    if part == "relations":
        return make_relations(settings, rng)
    world = knowledge() if part == "everyday" else invent_knowledge(knowledge(), rng)
    streams = None
    if settings.n_core is not None:
        streams = {
            name: np.random.default_rng([settings.seed, WORLDS.index(part), 20 + i])
            for i, name in enumerate(STREAMS)
        }
    return make_everyday(world, settings, rng, streams)


def _build_question(key: str, q: dict, spot: int, rng) -> tuple[Example, Rationale]:
    """Build the Example and gold Rationale of a question dict, its answer at place `spot`."""
    options = [q["wrong"][i] for i in rng.permutation(len(q["wrong"]))]
    options.insert(spot, q["answer"])
    lead = q["support"]
    text = " ".join(sentence for _, sentence in lead + q["said"])
    spans = find_spans(text, q["keys"], sum(len(sentence) + 1 for _, sentence in lead))
    return Example(key, q["question"], tuple(options), spot), Rationale(key, text, spot, spans)


def _describe_question(q: dict, split: str, training: _Training) -> dict:
    """Describe a question for `meta`; see `generate`."""
    fact_in = "label" if q["fact"] in training.asked else "rationale"
    return {
        "steps": q["steps"],
        "relation": q["relation"],
        "fact": q["fact"],
        "unseen_concept": q["fact"][0] not in training.subjects,
        "unseen_template": split == "test",
        "fact_in": fact_in if training.has_facts(q) else "none",
        "needs": [fact for fact, _ in q["said"] if fact],
        "states": [fact for fact, _ in q["support"] + q["said"] if fact],
    }


def _draw_spots(groups: list[tuple[int, str]], rng) -> list[int]:
    """Draw the place of the right option of each question.

    Every place is equally frequent among questions of one group. A group is (number of options,
    stratum), the stratum "" where a world has none.
    """
    spots = [0] * len(groups)
    for group in sorted(set(groups)):
        members = [i for i, other in enumerate(groups) if other == group]
        for i, spot in zip(
            members, rng.permutation(np.arange(len(members)) % group[0]), strict=True
        ):
            spots[i] = int(spot)
    return spots
