"""Ask one- and two-step commonsense questions about concepts of the knowledge base."""

import heapq
from collections import Counter, defaultdict
from itertools import islice

from cotdistill.errors import DataError
from cotdistill.microworld.knowledge import capitalise, facts_of, shares_words, state, strip_article
from cotdistill.microworld.options import add_wrong_options, allowed_values, group_alike
from cotdistill.microworld.settings import WorldSettings


def _ask_about(world: dict, facts: dict, keys: list, side: str) -> list[dict]:
    """Ask every question that the templates of one side ("train", "test") have about `keys`.

    Each is a dict: question, answer, true (values never offered as wrong), pool (whose values are
    the options), relation, fact (its key), steps, said (what the rationale states, (fact, sentence)
    pairs), keys (its key words).
    """
    questions, clues = [], {"use": "the thing used for {v}", "does": "the one known for {v}"}
    for concept, relation in keys:
        value, row = facts[concept, relation][0], world["relations"][relation]
        base = dict(
            answer=value,
            true=facts[concept, relation],
            pool=relation,
            relation=relation,
            fact=(concept, relation),
            steps=1,
            keys=[strip_article(concept), value],
            said=[((concept, relation), state(world, relation, concept, value))],
        )
        if "via" in row:  # two steps forward: a sweater, wool, sheep
            middle = facts[concept, row["via"]][0]
            base |= dict(
                steps=2,
                keys=[strip_article(concept), middle, value],
                said=[
                    ((concept, row["via"]), state(world, row["via"], concept, middle)),
                    ((concept, relation), state(world, relation, concept, value, middle)),
                ],
            )
        questions += [base | dict(question=template.format(S=concept)) for template in row[side]]
        for template in row.get(f"inverse_{side}", []):  # from the value to the concept
            questions.append(
                base
                | dict(
                    question=template.format(v=value),
                    pool=f"which {relation}",
                    answer=strip_article(concept),
                    true=[strip_article(concept)],
                )
            )
        for clue, words in clues.items():  # two steps from a use: cutting bread, a knife, steel
            if clue != relation and "via" not in row and (concept, clue) in facts:
                thing = facts[concept, clue][0]
                said = [((concept, clue), state(world, clue, concept, thing)), *base["said"]]
                questions += [
                    base
                    | dict(question=template.format(S=words.format(v=thing)), steps=2, said=said)
                    for template in row[side]
                ]
    return [
        q | dict(question=capitalise(q["question"]))
        for q in questions
        if not any(shares_words(q["question"], true) for true in q["true"][:1] + [q["answer"]])
    ]


def _choose_questions(
    questions: list[dict], size: int, two_step: int, taken: set, uses: Counter, rng
) -> list[dict]:
    """Choose up to `size` questions, of the least asked facts first.

    `two_step` of them need two steps. No text is chosen twice (`taken`); `uses` counts how often
    each fact is asked.
    """
    picked = []
    for steps, wanted in ((2, two_step), (1, size), (2, size)):
        by_fact = defaultdict(list)
        for i in rng.permutation(len(questions)):
            if questions[i]["steps"] == steps and questions[i]["question"] not in taken:
                by_fact[questions[i]["fact"]].append(questions[i])
        heap = [(uses[fact], rng.random(), fact) for fact in sorted(by_fact)]
        heapq.heapify(heap)
        while heap and len(picked) < wanted:
            count, _, fact = heapq.heappop(heap)
            q = by_fact[fact].pop()
            if q["question"] not in taken:
                picked.append(q)
                taken.add(q["question"])
                uses[fact] += 1
                count += 1
            if by_fact[fact]:
                heapq.heappush(heap, (count, rng.random(), fact))
    return picked


def _make_drawer(parts: list[tuple], two_step: float, taken: set, rng, exact: bool = False):
    """Make a function count -> questions that draws from several lists.

    parts: (share, questions), shares of all that is drawn; what one list lacks, the others give.
    The function's `removed` are questions that were given and are now exchanged, the first for the
    first, as many with two steps for as many. exact: never more than `count`; else there may be a
    few more where one-step questions replaced two-step ones (published worlds depend on it).
    """
    uses, given = Counter(), [0] * len(parts)

    def pick(count: int, removed: list[dict] = ()) -> list[dict]:
        for q in removed:
            given[q["part"]] -= 1
        total, drawn = sum(given) + count, []
        owed = sum(q["steps"] == 2 for q in removed) if removed else round(two_step * count)
        wanted = [
            max(0, round(total * share) - had) for (share, _), had in zip(parts, given, strict=True)
        ]
        for i, want in [*enumerate(wanted), *((i, count) for i in range(len(parts)))]:
            want = min(want, count - len(drawn))
            two = round(owed * want / max(count - len(drawn), 1))
            new = _choose_questions(
                parts[i][1], want, min(two, want) if exact else two, taken, uses, rng
            )
            given[i], owed = given[i] + len(new), max(0, owed - sum(q["steps"] == 2 for q in new))
            drawn += [q | dict(part=i) for q in new]
        for q in removed[len(drawn) :]:  # nothing is left to exchange them for
            given[q["part"]] += 1
        return drawn

    return pick


def _assign_roles(
    asked: list, rng, rationale_only: float, label_seen: float, unseen_concepts: float
) -> dict:
    """Assign each fact its role: only those of "label" may be asked in training.

    "validation" is asked there only, "rationale" in test, while training rationales state it,
    "none" in test, and training never states it. 45 % of the facts are held out, first all those of
    the unseen concepts; a fifth of them goes to validation.
    """
    concepts = sorted({concept for concept, _ in asked})
    unseen = {
        concepts[i]
        for i in rng.permutation(len(concepts))[: round(unseen_concepts * len(concepts))]
    }
    facts = [asked[i] for i in rng.permutation(len(asked))]
    facts.sort(key=lambda fact: fact[0] not in unseen)  # stable: the order is kept otherwise
    n_held = max(round(0.45 * len(facts)), sum(fact[0] in unseen for fact in facts))
    held = [facts[i] for i in rng.permutation(n_held)]
    a = round(0.2 * n_held)
    b = a + round((n_held - a) * rationale_only / max(1 - label_seen, 1e-9))
    return {
        "label": facts[n_held:],
        "validation": held[:a],
        "rationale": held[a:b],
        "none": held[b:],
    }


class _EverydayDraw:
    """Draw the questions of an everyday or invented world, split by split.

    `rows` holds what is drawn so far; `taken` its texts, so that none is asked twice.
    """

    def __init__(self, world: dict, settings: WorldSettings, rng):
        self.world, self.settings = world, settings
        self.facts, self.near = facts_of(world), group_alike(world)
        wanted = settings.relations
        asked = [key for key in self.facts if wanted is None or key[1] in wanted]
        self.roles = _assign_roles(
            asked, rng, settings.rationale_only, settings.label_seen, settings.unseen_concepts
        )
        # Neither asked nor stated in training, not even as the first of two steps
        self.silent = set(self.roles["validation"]) | set(self.roles["none"])
        self.taken, self.rows, spare = set(), {}, defaultdict(set)
        for concept, relation in asked:
            spare[relation].add(self.facts[concept, relation][0])
            spare[f"which {relation}"].add(strip_article(concept))
        self.spare = {pool: sorted(values) for pool, values in spare.items()}

    def ask(self, keys: list, side: str) -> list[dict]:
        """Ask about the facts `keys` wherever there are enough wrong options."""
        most = 5 if self.settings.n_options == "mix" else self.settings.n_options
        wrong = lambda q: allowed_values(q, self.spare[q["pool"]], self.near)
        return [
            q
            for q in _ask_about(self.world, self.facts, keys, side)
            if len(list(islice(wrong(q), most - 1))) == most - 1
        ]

    def ask_fairly(self) -> list[dict]:
        """Ask what training may ask without telling a fact that it must not know."""
        # By labels: what covers a cat says what kind of animal it is
        untold = set(self.roles["rationale"])
        return [
            q
            for q in self.ask(self.roles["label"], "train")
            if not any(fact in self.silent for fact, _ in q["said"])
            and _find_first_step(self.world, q["fact"]) not in untold
        ]

    def fill(self, split: str, size: int, rng, *parts, exact: bool = False) -> None:
        """Add `size` questions with wrong options to a split, from parts (share, questions)."""
        pick = _make_drawer(parts, self.settings.two_step, self.taken, rng, exact)
        self.rows[split] = self.rows.get(split, []) + add_wrong_options(
            pick, size, self.settings.n_options, self.near, self.spare, rng
        )

    def add_supports(self, rows: list, stated: list, allowed: list, mentions: int, rng) -> None:
        """Give each rationale one more fact; see `_add_supports`."""
        _add_supports(self.world, self.facts, rows, stated, allowed, mentions, rng)

    def state_hidden_facts(self, rng) -> list[tuple]:
        """State the rationale-only facts in training rationales; return those that test may ask."""
        first = lambda key: _find_first_step(self.world, key)
        stated = [key for key in self.roles["rationale"] if first(key) not in self.silent]
        train, mentions = self.rows["train"], self.settings.mentions
        self.add_supports(train, stated, self.roles["label"], mentions, rng)
        labelled = {q["fact"] for q in train}
        told = {q["support"][-1][0] for q in train if q["support"]}
        return [
            key for key in self.roles["rationale"] if key in told and first(key) not in labelled
        ]

    def ask_for_test(self, hidden: list[tuple], separate: bool) -> tuple:
        """Ask test's three parts, as (share, questions).

        Their facts are stated in training rationales only, asked in training, or at least one of
        them is stated nowhere.
        """
        shares, known = self.settings, list_sentences(self.rows["train"])
        asked = {q["fact"] for q in self.rows["train"]}
        labels = [key for key in self.roles["label"] if key in asked]
        unknown = [q for q in self.ask(self.roles["none"], "test") if not is_stated(q, known)]
        if separate:
            unknown = [q for q in unknown if _needs_silent_fact(self.world, q, self.silent)]
        return (
            (
                shares.rationale_only,
                [q for q in self.ask(hidden, "test") if is_stated(q, known)],
            ),
            (shares.label_seen, [q for q in self.ask(labels, "test") if is_stated(q, known)]),
            (1 - shares.rationale_only - shares.label_seen, unknown),
        )


def make_everyday(
    world: dict, settings: WorldSettings, rng, streams: dict | None = None
) -> dict[str, list[dict]]:
    """Make an everyday or invented world; see `generate`.

    streams: a generator for each name of STREAMS, where the splits are drawn separately. Returns
    split -> question dicts with "wrong" options and "support" ((fact, sentence) pairs, often none).
    """
    draw = _EverydayDraw(world, settings, rng)
    if streams:
        return _draw_separately(draw, streams)
    sizes, seen, fair = settings.sizes, settings.label_seen, draw.ask_fairly()
    check = draw.ask(draw.roles["validation"], "train")
    draw.fill("validation", sizes["validation"], rng, (seen, fair), (1 - seen, check))
    draw.fill("train", sizes["train"], rng, (1, fair))
    hidden = draw.state_hidden_facts(rng)
    draw.fill("test", sizes["test"], rng, *draw.ask_for_test(hidden, separate=False))
    for split in ("validation", "test"):
        draw.add_supports(draw.rows[split], [], list(draw.facts), 0, rng)
    return draw.rows


def _draw_separately(draw: _EverydayDraw, streams: dict) -> dict[str, list[dict]]:
    """Draw each split with a generator of its own, around a core of training questions.

    The core teaches all that test asks, so that no size changes another split.
    """
    settings, sizes, roles = draw.settings, draw.settings.sizes, draw.roles
    fair, seen, n_core = draw.ask_fairly(), settings.label_seen, settings.n_core
    # Validation has its own tenth of what training could ask, whatever is drawn from either
    own = streams["world"].random(len(fair)) < 0.1
    checked = [q for q, is_own in zip(fair, own, strict=True) if is_own]
    fair = [q for q, is_own in zip(fair, own, strict=True) if not is_own]
    parts = (seen, checked), (1 - seen, draw.ask(roles["validation"], "train"))
    draw.fill("validation", sizes["validation"], streams["validation"], *parts, exact=True)
    draw.fill("train", n_core, streams["train"], (1, fair), exact=True)
    hidden = draw.state_hidden_facts(streams["train"])
    parts = draw.ask_for_test(hidden, separate=True)
    counts = [(len({q["question"] for q in questions}), share) for share, questions in parts]
    most = min((int(count / share) for count, share in counts if share > 1e-9), default=0)
    if sizes["test"] > most:
        raise DataError(
            f"microworld: n_test is {sizes['test']}; with n_core {n_core} and these shares the "
            f"knowledge base gives at most {most} (a larger n_core teaches more)"
        )
    draw.fill("test", sizes["test"], streams["test"], *parts, exact=True)
    firsts = {_find_first_step(draw.world, key) for key in hidden}
    core, rest = len(draw.rows["train"]), [q for q in fair if q["fact"] not in firsts]
    draw.fill("train", sizes["train"] - core, streams["more"], (1, rest), exact=True)
    more, mentions = draw.rows["train"][core:], settings.mentions
    draw.add_supports(more, hidden, roles["label"], mentions, streams["more"])
    for split in ("validation", "test"):
        draw.add_supports(draw.rows[split], [], list(draw.facts), 0, streams[split])
    return draw.rows


def _needs_silent_fact(world: dict, q: dict, silent: set) -> bool:
    """Tell whether a question needs a fact of `silent` that names its concept.

    No training rationale can state it, whatever else training asks (where wool comes from may be
    said of another thing of wool).
    """
    return any(fact in silent and not _find_first_step(world, fact) for fact, _ in q["said"])


def _find_first_step(world: dict, key: tuple) -> tuple | None:
    """Find the fact that a linked one starts from; None for others.

    What a sweater is made of comes before where that comes from.
    """
    via = world["relations"][key[1]].get("via")
    return (key[0], via) if via else None


def list_sentences(rows: list[dict]) -> set[str]:
    """Collect every sentence that the rationales of these questions state."""
    return {sentence for q in rows for _, sentence in q["support"] + q["said"]}


def is_stated(q: dict, known: set[str]) -> bool:
    """Tell whether each sentence of a question's gold rationale is among the known ones."""
    return known.issuperset(sentence for _, sentence in q["said"])


def _add_supports(world, facts, rows, stated, allowed, mentions: int, rng) -> None:
    """Give each rationale one more fact, said before the fact asked: its "support".

    First come the facts of `stated`, each in up to `mentions` rationales: of the same concept, or
    of a wrong option ("A pencil is made of wood. A knife is made of steel."). Then, in one-step
    rationales that are still free, any fact of `allowed` about the same concept. A two-step
    rationale, longer already, is taken only where there is no other.
    """
    first = {key: _find_first_step(world, key) for key in facts}
    concept_rows, wrong_rows, free = defaultdict(list), defaultdict(list), set(range(len(rows)))
    for i, q in enumerate(rows):
        q["support"] = []
        concept_rows[q["fact"][0]].append(i)
        for value in q["wrong"]:
            wrong_rows[q["pool"], value].append(i)

    def give(i, key):
        concept, relation = key
        middle = facts[first[key]][0] if first[key] else ""
        lead = [(first[key], state(world, first[key][1], concept, middle))] if first[key] else []
        rows[i]["support"] = [*lead, (key, state(world, relation, concept, facts[key][0], middle))]
        free.discard(i)

    def new(i, key):
        return {key, first[key]}.isdisjoint(fact for fact, _ in rows[i]["said"])

    for _ in range(mentions):
        for key in (stated[i] for i in rng.permutation(len(stated))):
            places = [
                *concept_rows[key[0]],
                *wrong_rows[key[1], facts[key][0]],
                *wrong_rows[f"which {key[1]}", strip_article(key[0])],
            ]
            places = [i for i in places if i in free and new(i, key)]
            short = [i for i in places if rows[i]["steps"] == 1]
            places = short or ([] if first[key] else places)
            if places:
                give(places[rng.integers(len(places))], key)
    by_concept = defaultdict(list)
    for key in allowed:
        if not first[key]:
            by_concept[key[0]].append(key)
    for i in sorted(free):
        keys = [key for key in by_concept[rows[i]["fact"][0]] if new(i, key)]
        if keys and rows[i]["steps"] == 1:
            give(i, keys[rng.integers(len(keys))])
