"""Build a positive control with facts in three strata.

They are stated in training rationales only, asked as labels in training, or stated nowhere.
"""

from collections import defaultdict

import numpy as np

from cotdistill.errors import DataError
from cotdistill.microworld.knowledge import (
    DONOR_SEED,
    SPLITS,
    WORLDS,
    capitalise,
    knowledge,
    list_made_up_names,
    shares_words,
    state,
    stems,
    strip_article,
)
from cotdistill.microworld.options import group_alike
from cotdistill.microworld.settings import WorldSettings

# What `strata` asks about: relations of one step, each with four training and three test templates
STRATA_RELATIONS = ("kind", "use", "does", "place", "material", "part", "user", "cause", "effect")
STRATA = ("label", "rationale", "none")  # where training has a fact, as `fact_in` says it


def _choose_values(world: dict, relations: list[str], size: int, rng) -> dict[str, list[str]]:
    """Choose `size` values of each relation, no two of which share a content word.

    Neither do two relations' values, nor a value and the words in which facts are stated: how often
    a value is mentioned is then how often its facts are. Values that are alike are never together,
    and none shares a word with a template of its relation. Raises DataError where the knowledge
    base has fewer.
    """
    near, chosen = group_alike(world), {relation: [] for relation in relations}
    taken = set().union(
        *(stems(world["relations"][relation]["state"]) for relation in STRATA_RELATIONS)
    )
    offered = {}
    for relation in relations:
        row = world["relations"][relation]
        values = {v for facts in world["concepts"].values() for v in facts.get(relation, [])}
        asked = [template.format(S="it") for template in row["train"] + row["test"]]
        offered[relation] = sorted(
            v for v in values if not any(shares_words(text, v) for text in asked)
        )
    for relation in sorted(
        relations, key=lambda relation: len(offered[relation])
    ):  # scarcest first
        mine = chosen[relation]
        for i in rng.permutation(len(offered[relation])):
            value = offered[relation][i]
            if len(mine) < size and not near[value] & set(mine) and stems(value).isdisjoint(taken):
                mine.append(value)
                taken |= stems(value)
        if len(mine) < size:
            raise DataError(
                f"microworld/strata: concepts is {3 * size}, which takes {size} values of each "
                f"relation; '{relation}' has {len(mine)}: expected at most {3 * len(mine)} concepts"
            )
    return chosen


def _choose_names(world: dict, concepts: int, seed: int) -> list[str]:
    """Choose made-up names, different ones for every seed as long as they last.

    All names are in one fixed random order, and a seed takes the next `concepts` of them. Even
    places are for studies, odd ones for donors (`draw_donors`), so a study's world never shares a
    name with its donors' world.
    """
    names = list_made_up_names(world)
    order = np.random.default_rng(0).permutation(len(names))
    blocks = len(names) // concepts // 2
    block = 2 * (seed % DONOR_SEED % blocks) + (seed >= DONOR_SEED)
    return [f"a {names[i]}" for i in order[block * concepts : (block + 1) * concepts]]


def _assign_strata(concepts: list[str], relations: list[str], rng) -> dict[tuple, str]:
    """Assign each (concept, relation) to a stratum.

    Of each relation a third of the concepts is in each stratum, and of each concept a third of its
    relations: for every three relations the concepts are put in threes at random, and each three
    gets a random Latin square.
    """
    roles = {}
    for start in range(0, len(relations), 3):
        order = rng.permutation(len(concepts))
        for first in range(0, len(concepts), 3):
            turn = int(rng.integers(2)) * 2 - 1
            strata = [STRATA[i] for i in rng.permutation(3)]
            for row, i in enumerate(order[first : first + 3]):
                for column, relation in enumerate(relations[start : start + 3]):
                    roles[concepts[i], relation] = strata[(row + turn * column) % 3]
    return roles


def _make_world(world: dict, concepts: int, relations: list[str], seed: int) -> tuple[dict, dict]:
    """Make a world of `concepts` things: (concept, relation) -> value, and -> stratum.

    In each stratum each value of a relation belongs to exactly one concept, so that a value is
    asked, stated and tested as often as any other.
    """
    rng = np.random.default_rng([seed, WORLDS.index("strata"), 0])
    names = _choose_names(world, concepts, seed)
    values = _choose_values(world, relations, concepts // 3, rng)
    roles, facts = _assign_strata(names, relations, rng), {}
    for relation in relations:
        for stratum in STRATA:
            having = [name for name in names if roles[name, relation] == stratum]
            for name, i in zip(having, rng.permutation(len(having)), strict=True):
                facts[name, relation] = values[relation][i]
    return facts, roles


def _ask_block(world: dict, facts: dict, keys: list, template: str, n: int, rng) -> list[dict]:
    """Ask one question with n options about each of the facts `keys`, in one template's words.

    The facts share a relation and have different values. The wrong options are the right ones of
    others: the values are in a random circle, and each question takes those at n - 1 random
    distances from its own, so every value is offered wrongly n - 1 times for once that it is right.
    A block of fewer facts than options takes what is missing from the other values.
    """
    keys = [keys[i] for i in rng.permutation(len(keys))]
    circle, relation = [facts[key] for key in keys], keys[0][1]
    others = sorted({v for (_, about), v in facts.items() if about == relation} - set(circle))
    circle += [others[i] for i in rng.permutation(len(others))[: max(0, n - len(circle))]]
    steps = 1 + rng.permutation(len(circle) - 1)[: n - 1]
    rows = []
    for at, key in enumerate(keys):
        sentence = state(world, relation, key[0], facts[key])
        rows.append(
            dict(
                question=capitalise(template.format(S=key[0])),
                answer=facts[key],
                relation=relation,
                wrong=[circle[(at + step) % len(circle)] for step in steps],
                fact=key,
                steps=1,
                said=[(key, sentence)],
                keys=[strip_article(key[0]), facts[key]],
                support=[],
            )
        )
    return rows


def _ask_in_blocks(
    world, facts, keys, side: str, size: int, n_options, rng, last: bool = False
) -> list:
    """Ask `size` questions about the facts `keys`, or as many as the templates of a side can.

    They come in blocks (a relation, a template): first a block of every relation, then a second
    one, and so on, so each fact is asked equally often, give or take one. last: begin with the
    template that others come to last.
    """
    by_relation = defaultdict(list)
    for key in sorted(keys):
        by_relation[key[1]].append(key)
    most = min(len(world["relations"][relation][side]) for relation in by_relation)
    rows, blocks = [], 0
    for turn in range(most):
        for relation in (sorted(by_relation)[i] for i in rng.permutation(len(by_relation))):
            mine = by_relation[relation]
            mine = [mine[i] for i in sorted(rng.permutation(len(mine))[: size - len(rows)])]
            if mine:
                template = world["relations"][relation][side][most - 1 - turn if last else turn]
                n = 2 + blocks % 4 if n_options == "mix" else n_options
                rows += _ask_block(world, facts, mine, template, n, rng)
                blocks += 1
    return rows


def _state_in_rationales(
    world: dict, facts: dict, rows: list[dict], keys: list, mentions: int, rng
) -> None:
    """State each of the facts `keys` in exactly `mentions` of its concept's rationales.

    It comes before the fact asked (their "support"), in the shortest rationales first. Raises
    DataError where a concept is asked about less often than that.
    """
    about = defaultdict(list)
    for q in rows:
        about[q["fact"][0]].append(q)
    most = min(len(about[concept]) for concept, _ in keys)
    if not 0 <= mentions <= most:
        raise DataError(
            f"microworld/strata: mentions is {mentions}, but some concept has only {most} training "
            f"questions; expected a number from 0 to {most}, or a larger n_train"
        )
    for key in (keys[i] for i in rng.permutation(len(keys))):
        places = [about[key[0]][i] for i in rng.permutation(len(about[key[0]]))]
        for q in sorted(places, key=lambda q: len(q["support"]))[:mentions]:
            q["support"].append((key, state(world, key[1], key[0], facts[key])))
    for q in rows:
        q["support"] = [q["support"][i] for i in rng.permutation(len(q["support"]))]


def make_strata(settings: WorldSettings) -> dict[str, list[dict]]:
    """Make a world of strata; see `generate`.

    Training asks the facts of the stratum "label" and states, in the rationales of these questions,
    those of "rationale"; validation asks facts of "label" in training words that training has left
    over. Training, validation and test each have a generator of their own, and what a world is does
    not depend on the sizes: none of the sizes changes another split's questions. Raises DataError.
    """
    world, sizes, concepts = knowledge(), settings.sizes, settings.concepts
    relations = list(settings.relations or STRATA_RELATIONS)
    _check_strata(settings, relations)
    facts, roles = _make_world(world, concepts, relations, settings.seed)
    keys = {stratum: [key for key in facts if roles[key] == stratum] for stratum in STRATA}
    n_facts, n_forms = len(keys["label"]), len(world["relations"][relations[0]]["train"])
    if not n_facts <= sizes["train"] <= n_facts * n_forms - sizes["validation"]:
        raise DataError(
            f"microworld/strata: n_train is {sizes['train']}, validation_size "
            f"{sizes['validation']}; with {concepts} concepts expected n_train from {n_facts} "
            f"(each of the {n_facts} label facts once) and at most {n_facts * n_forms} for both "
            "together"
        )
    streams = {
        split: np.random.default_rng([settings.seed, WORLDS.index("strata"), 1 + i])
        for i, split in enumerate(SPLITS)
    }
    rows, n_options = {}, settings.n_options
    for split in ("train", "validation"):
        last, rng = split == "validation", streams[split]
        rows[split] = _ask_in_blocks(
            world, facts, keys["label"], "train", sizes[split], n_options, rng, last=last
        )
    _state_in_rationales(
        world, facts, rows["train"], keys["rationale"], settings.mentions, streams["train"]
    )
    rows["test"] = _ask_for_test(world, facts, keys, settings, streams["test"])
    for split in ("validation", "test"):
        _add_other_facts(world, facts, rows[split], streams[split])
    return {split: [q | dict(group=roles[q["fact"]]) for q in rows[split]] for split in SPLITS}


def _check_strata(settings: WorldSettings, relations: list[str]) -> None:
    """Raise DataError for a number of concepts or relations that makes no strata."""
    concepts, most = settings.concepts, 5 if settings.n_options == "mix" else settings.n_options
    if concepts % 3 or concepts < 3 * most:
        raise DataError(
            f"microworld/strata: concepts is {concepts}; expected a multiple of 3, at least "
            f"{3 * most} for {most} options"
        )
    if not set(relations) <= set(STRATA_RELATIONS) or len(relations) < 3:
        raise DataError(
            f"microworld/strata: relations is {relations}; expected three or more of "
            f"{', '.join(STRATA_RELATIONS)}"
        )


def _ask_for_test(world: dict, facts: dict, keys: dict, settings: WorldSettings, rng) -> list[dict]:
    """Ask test's questions about each stratum; raise DataError where there are too few."""
    total, rows = settings.sizes["test"], []
    wanted = dict(
        rationale=round(settings.rationale_only * total), label=round(settings.label_seen * total)
    )
    wanted["none"] = total - sum(wanted.values())
    for stratum, size in wanted.items():
        asked = _ask_in_blocks(world, facts, keys[stratum], "test", size, settings.n_options, rng)
        if len(asked) < size:
            raise DataError(
                f"microworld/strata: n_test is {total}, {size} of them of stratum '{stratum}'; "
                f"with {settings.concepts} concepts there are at most {len(asked)} of each stratum"
            )
        rows += asked
    return rows


def _add_other_facts(world: dict, facts: dict, rows: list[dict], rng) -> None:
    """Give each rationale outside training one more fact about its concept, of any stratum.

    It comes before the fact asked, so that the rationale is about as long as one of training.
    """
    about = defaultdict(list)
    for key in facts:
        about[key[0]].append(key)
    for q in rows:
        others = [key for key in about[q["fact"][0]] if key != q["fact"]]
        key = others[rng.integers(len(others))]
        q["support"] = [(key, state(world, key[1], key[0], facts[key]))]
