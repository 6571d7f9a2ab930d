"""The embedded dataset: questions about an everyday world of our own making, for a machine with no
network.

`everyday` asks one- and two-step commonsense about the concepts in microworld.yaml; `relations` asks strict
logic about chains of signed qualitative relations. Gold rationales state every link, and the
character spans of their key tokens are known, so an attribution can be checked against the truth. A
dial (`rationale_only`) sets how many of the facts that test questions ask about are stated in
training rationales only: what a label cannot teach, a rationale can. `invent_knowledge` asks the questions
of `everyday` about things that do not exist: made-up names, and every fact drawn anew, so that no
student can know one before training. It is the positive control: there a rationale carries what the
answer needs, and a comparison of arms has something to find. `strata` is its stricter form: every
test question asks one fact of a made-up thing, and the facts fall in three strata of equal make
(stated in training rationales only, asked in training, stated nowhere), in which no count of words
tells the answer.

Hardly anything can be answered without the facts: in each split every value is the right answer 1/n
as often as it is offered, options never share a word with the question, test templates are not
among the training templates, and wrong options are as little alike among themselves as the right
one is like them, where values allow it (tests measure what is left).
"""

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
from cotdistill.microworld.strata import make_strata


def draw_donors(data: dict, part: str, seed: int = 0, **settings) -> dict[str, Rationale]:
    """Rationales for a `swapped` arm that state none of its world's facts.

    For each training question of `data` the gold rationale of another made-up world, of the same
    form and about the same length.

    data: what `generate(part, seed=seed, **settings)` gave; settings must be the same. Both worlds'
    training rationales are sorted by length in characters and paired, the shortest with the
    shortest. The donors' names are others than those of `data` (`strata`: by construction;
    `invent_knowledge`: the first world without a common name is taken). Returns id -> Rationale (id of the
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
    rationale_only: float | None = None,
    label_seen: float | None = None,
    unseen_concepts: float = 0.15,
    two_step: float = 0.4,
    n_options: int | str = 4,
    relations: list[str] | None = None,
    mentions: int | None = None,
    concepts: int = 30,
    n_core: int | None = None,
) -> dict:
    """Make the dataset.

    The same arguments give the same questions; a size given to `train` is a part of the

        design (which facts training states), so ask for the size you train on rather than cutting a larger one.

        part             "everyday", "relations", "invented" (what is said of everyday below holds there too), or "strata" (see there)
        n_train ...      sizes; None: 2,000, 200 and 500 questions, of strata 240, 32 and 600
        rationale_only   share of test questions whose fact stands in training rationales only, never as a label (the first of two steps, "the
                         thing used for cutting bread", may be asked)
        label_seen       share of test questions whose fact is asked in training, in other words (the first of two steps may stand in a
                         rationale); the rest: training states at least one of their facts nowhere. None: 0.3 and 0.35, of strata a third each
        unseen_concepts  share of concepts (everyday) or themes (relations) that no training question is about
        two_step         everyday: share of questions that need two facts
        n_options        everyday: 2 to 5, or "mix". relations always has two
        relations        everyday: the relations asked about, None for all of microworld.yaml
        mentions         everyday: how many training rationales state each rationale-only fact, where there is room; None: 3, invented 8.
                         strata: in exactly so many, None: 4
        concepts         strata: how many made-up things, a multiple of 3
        n_core           everyday, invented: draw the test questions apart from the training questions. A core of
                         `n_core` training questions, the same for every n_train from n_core on, teaches all that test
                         asks, and each split has a generator of its own: then neither n_train nor n_validation nor
                         n_test changes the questions of another split. A core of 160 gives 600 test questions of
                         everyday and more; the error says how many. None: the splits share one generator, as in
                         the studies published first

    strata: (concept, relation) is a fact, and its stratum `fact_in`: questions of one `fact` are a
    cluster. A training rationale states the fact asked and, before it, facts of the stratum
    "rationale" about the same concept. Facts of "label" stand in no other rationale, those of
    "rationale" in no training question or label, those of "none" nowhere. Questions need one step;
    two_step and unseen_concepts have no effect. All options of a question are mentioned equally
    often in training rationales (where n_train is a multiple of concepts / 3; else give or take
    one). Names differ between seeds as long as the names last (65 seeds of 30 concepts).

        Returns {"train", "validation", "test": lists of Example, "rationales": id -> Rationale (gold, all splits,
        key_spans known), "meta": id -> {steps, relation, fact, unseen_concept, unseen_template, fact_in,
        needs, states}}; `fact_in` is where training has the facts of the question, every sentence of its gold rationale: "label", "rationale" or
        "none"; `needs` these facts, `states` those its rationale states (with the support that may stand before). Raises DataError for an unknown part, an impossible setting, or a
        size above what the knowledge base can give.
    """
    if part not in WORLDS:
        raise DataError(f"microworld part '{part}'; expected one of {', '.join(WORLDS)}")
    strata = part == "strata"
    n_train, n_validation, n_test = (
        given if given is not None else default
        for given, default in zip(
            (n_train, n_validation, n_test), (240, 32, 600) if strata else (2000, 200, 500)
        )
    )
    if rationale_only is None:
        rationale_only = 1 / 3 if strata else 0.3
    if label_seen is None:
        label_seen = 1 / 3 if strata else 0.35
    shares = dict(
        rationale_only=rationale_only,
        label_seen=label_seen,
        unseen_concepts=unseen_concepts,
        two_step=two_step,
    )
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise DataError(f"microworld {name} is {value}; expected a share from 0 to 1")
    if rationale_only + label_seen > 1:
        raise DataError(
            f"microworld rationale_only + label_seen is {rationale_only + label_seen:g}; expected "
            "at most 1"
        )
    if n_options not in (2, 3, 4, 5, "mix"):
        raise DataError(f"microworld n_options is {n_options!r}; expected 2, 3, 4, 5 or mix")
    unknown = set(relations or ()) - set(knowledge()["relations"])
    if unknown:
        raise DataError(
            f"microworld relations {sorted(unknown)}; expected some of "
            f"{sorted(knowledge()['relations'])}"
        )
    sizes = dict(zip(SPLITS, (n_train, n_validation, n_test)))
    rng = np.random.default_rng([seed, WORLDS.index(part)])
    apart = None
    if n_core is not None:
        if part not in ("everyday", "invented") or not 0 < n_core <= n_train:
            raise DataError(
                f"microworld/{part}: n_core is {n_core}, n_train {n_train}; expected a number from "
                "1 to n_train, of everyday or invented"
            )
        apart = (
            n_core,
            {
                name: np.random.default_rng([seed, WORLDS.index(part), 20 + i])
                for i, name in enumerate(STREAMS)
            },
        )
    if strata:
        rows = make_strata(
            sizes,
            seed,
            rationale_only,
            label_seen,
            n_options,
            relations,
            4 if mentions is None else mentions,
            concepts,
        )
    elif part == "relations":
        rows = make_relations(sizes, rng, rationale_only, label_seen, unseen_concepts)
    else:
        world, often = (
            (knowledge(), 3) if part == "everyday" else (invent_knowledge(knowledge(), rng), 8)
        )
        rows = make_everyday(
            world,
            sizes,
            rng,
            rationale_only,
            label_seen,
            unseen_concepts,
            two_step,
            n_options,
            relations,
            often if mentions is None else mentions,
            apart,
        )
    for split, size in sizes.items():
        if len(rows[split]) < size:
            raise DataError(
                f"microworld/{part}: n_{split} is {size}; with these settings the knowledge base "
                f"gives at most {len(rows[split])}"
            )
    asked = {q["fact"] for q in rows["train"]}
    subjects = {fact[0] for fact in asked}
    stated, known = (
        {fact for q in rows["train"] for fact, _ in q["said"]},
        list_sentences(rows["train"]),
    )
    data = {"train": [], "validation": [], "test": [], "rationales": {}, "meta": {}}
    for split in SPLITS:
        if strata or n_core is not None:  # the order of one split must not depend on another's size
            rng = np.random.default_rng([seed, WORLDS.index(part), 10 + SPLITS.index(split)])
        questions = [rows[split][i] for i in rng.permutation(len(rows[split]))]
        spots = _draw_spots([(len(q["wrong"]) + 1, q.get("group", "")) for q in questions], rng)
        for number, (q, spot) in enumerate(zip(questions, spots)):
            id = f"{part}-{split}-{number:05d}"
            options = [q["wrong"][i] for i in rng.permutation(len(q["wrong"]))]
            options.insert(spot, q["answer"])
            lead = q["support"]
            text = " ".join(sentence for _, sentence in lead + q["said"])
            spans = find_spans(text, q["keys"], sum(len(sentence) + 1 for _, sentence in lead))
            data[split].append(Example(id, q["question"], tuple(options), spot))
            data["rationales"][id] = Rationale(id, text, spot, spans)
            told = stated.issuperset(q["links"]) if part == "relations" else is_stated(q, known)
            data["meta"][id] = {
                "steps": q["steps"],
                "relation": q["relation"],
                "fact": q["fact"],
                "unseen_concept": q["fact"][0] not in subjects,
                "unseen_template": split == "test",
                "fact_in": "none" if not told else "label" if q["fact"] in asked else "rationale",
                "needs": [fact for fact, _ in q["said"] if fact],
                "states": [fact for fact, _ in lead + q["said"] if fact],
            }
    return data


def _draw_spots(groups: list[tuple[int, str]], rng) -> list[int]:
    """The place of the right option of each question.

    Every place equally often among questions of one group. A group is (number of options, stratum),
    the stratum "" where a world has none.
    """
    spots = [0] * len(groups)
    for group in sorted(set(groups)):
        members = [i for i, one in enumerate(groups) if one == group]
        for i, spot in zip(members, rng.permutation(np.arange(len(members)) % group[0])):
            spots[i] = int(spot)
    return spots
