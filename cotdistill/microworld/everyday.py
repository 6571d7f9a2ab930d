"""One- and two-step commonsense questions about concepts of the knowledge base."""

import heapq
from collections import Counter, defaultdict
from itertools import islice

from cotdistill.errors import DataError
from cotdistill.microworld.knowledge import capitalise, facts_of, shares_words, state, strip_article
from cotdistill.microworld.options import add_wrong_options, allowed_values, group_alike


def _ask_about(world: dict, facts: dict, keys: list, side: str) -> list[dict]:
    """Every question that the templates of one side ("train", "test") can ask about the facts
    `keys`.

    Each is a dict: question, answer, true (values never offered as wrong), pool (whose values are
    the options), relation, fact (its key), steps, said (what the rationale states, (fact, sentence)
    pairs), keys (its key words).
    """
    found, clues = [], {"use": "the thing used for {v}", "does": "the one known for {v}"}
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
        found += [base | dict(question=template.format(S=concept)) for template in row[side]]
        for template in row.get(f"inverse_{side}", []):  # from the value to the concept
            found.append(
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
                found += [
                    base
                    | dict(question=template.format(S=words.format(v=thing)), steps=2, said=said)
                    for template in row[side]
                ]
    return [
        q | dict(question=capitalise(q["question"]))
        for q in found
        if not any(shares_words(q["question"], true) for true in q["true"][:1] + [q["answer"]])
    ]


def _choose_questions(
    questions: list[dict], size: int, two_step: int, taken: set, uses: Counter, rng
) -> list[dict]:
    """Up to `size` questions, so many of them with two steps, no text twice (`taken`), least asked
    facts first (`uses`).
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
    """A function count -> questions that draws from several lists.

    parts: (share, questions), shares of all that stand; what one list lacks, the others give.
    `removed` are questions that were given and are exchanged now, the first for the first, as many
    with two steps for as many. exact: never more than `count`; else there may be a few more where
    one-step questions stood in for two-step ones (worlds drawn so stay as they are).
    """
    uses, given = Counter(), [0] * len(parts)

    def pick(count: int, removed: list[dict] = ()) -> list[dict]:
        for q in removed:
            given[q["part"]] -= 1
        total, found = sum(given) + count, []
        owed = sum(q["steps"] == 2 for q in removed) if removed else round(two_step * count)
        wanted = [max(0, round(total * share) - had) for (share, _), had in zip(parts, given)]
        for i, want in [*enumerate(wanted), *((i, count) for i in range(len(parts)))]:
            want = min(want, count - len(found))
            two = round(owed * want / max(count - len(found), 1))
            new = _choose_questions(
                parts[i][1], want, min(two, want) if exact else two, taken, uses, rng
            )
            given[i], owed = given[i] + len(new), max(0, owed - sum(q["steps"] == 2 for q in new))
            found += [q | dict(part=i) for q in new]
        for q in removed[len(found) :]:  # nothing is left to exchange them for
            given[q["part"]] += 1
        return found

    return pick


def _assign_roles(
    asked: list, rng, rationale_only: float, label_seen: float, unseen_concepts: float
) -> dict:
    """What each fact is for: "label" may be asked in training; the others never are.

    "validation" is asked there only, "rationale" in test, while training rationales state it,
    "none" in test, and training never states it.

    45 % of the facts are held out, first all those of the unseen concepts; a fifth of them goes to
    validation.
    """
    concepts = sorted({concept for concept, _ in asked})
    unseen = {
        concepts[i]
        for i in rng.permutation(len(concepts))[: round(unseen_concepts * len(concepts))]
    }
    facts = [asked[i] for i in rng.permutation(len(asked))]
    facts = [fact for fact in facts if fact[0] in unseen] + [
        fact for fact in facts if fact[0] not in unseen
    ]
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


def make_everyday(
    world: dict,
    sizes: dict,
    rng,
    rationale_only: float,
    label_seen: float,
    unseen_concepts: float,
    two_step: float,
    n_options,
    relations,
    mentions: int,
    apart: tuple | None = None,
) -> dict[str, list[dict]]:
    """See `generate`; apart: (n_core, a generator for each name of STREAMS).

    Returns split -> question dicts with "wrong" options and "support" ((fact, sentence) pairs,
    often none).
    """
    facts, near = facts_of(world), group_alike(world)
    asked = [key for key in facts if relations is None or key[1] in relations]
    roles = _assign_roles(asked, rng, rationale_only, label_seen, unseen_concepts)
    spare = defaultdict(set)
    for concept, relation in asked:
        spare[relation].add(facts[concept, relation][0])
        spare[f"which {relation}"].add(strip_article(concept))
    spare = {pool: sorted(values) for pool, values in spare.items()}
    most, taken, rows = 5 if n_options == "mix" else n_options, set(), {}

    def ask(keys, side):
        return [
            q
            for q in _ask_about(world, facts, keys, side)
            if len(list(islice(allowed_values(q, spare[q["pool"]], near), most - 1))) == most - 1
        ]

    def fill(split, *parts):
        pick = _make_drawer(parts, two_step, taken, rng)
        rows[split] = add_wrong_options(pick, sizes[split], n_options, near, spare, rng)

    def fill_apart(split, size, stream, *parts):
        pick = _make_drawer(parts, two_step, taken, stream, exact=True)
        rows[split] = rows.get(split, []) + add_wrong_options(
            pick, size, n_options, near, spare, stream
        )

    silent = set(roles["validation"]) | set(roles["none"])  # not even as the first of two steps
    untold = set(roles["rationale"])  # by labels: what covers a cat says what kind of animal it is
    fair = [
        q
        for q in ask(roles["label"], "train")
        if not any(fact in silent for fact, _ in q["said"])
        and _find_first_step(world, q["fact"]) not in untold
    ]
    # Validation has its own tenth of what training could ask, whatever is drawn from either
    if apart:
        n_core, streams = apart
        own = streams["world"].random(len(fair)) < 0.1
        checked, fair = (
            [q for q, is_own in zip(fair, own) if is_own == side] for side in (True, False)
        )
        fill_apart(
            "validation",
            sizes["validation"],
            streams["validation"],
            (label_seen, checked),
            (1 - label_seen, ask(roles["validation"], "train")),
        )
        fill_apart("train", n_core, streams["train"], (1, fair))
        rng = streams["train"]
    else:
        fill("validation", (label_seen, fair), (1 - label_seen, ask(roles["validation"], "train")))
        fill("train", (1, fair))
    stated = [key for key in roles["rationale"] if _find_first_step(world, key) not in silent]
    _add_supports(world, facts, rows["train"], stated, roles["label"], mentions, rng)
    labelled = {q["fact"] for q in rows["train"]}
    told = {q["support"][-1][0] for q in rows["train"] if q["support"]}
    known = list_sentences(rows["train"])
    hidden = [
        key
        for key in roles["rationale"]
        if key in told and _find_first_step(world, key) not in labelled
    ]
    tested = (
        (rationale_only, [q for q in ask(hidden, "test") if is_stated(q, known)]),
        (
            label_seen,
            [
                q
                for q in ask([key for key in roles["label"] if key in labelled], "test")
                if is_stated(q, known)
            ],
        ),
        (
            1 - rationale_only - label_seen,
            [
                q
                for q in ask(roles["none"], "test")
                if not is_stated(q, known) and (not apart or _needs_silent_fact(world, q, silent))
            ],
        ),
    )
    if apart:
        most = min(
            (
                int(len({q["question"] for q in questions}) / share)
                for share, questions in tested
                if share > 1e-9
            ),
            default=0,
        )
        if sizes["test"] > most:
            raise DataError(
                f"microworld: n_test is {sizes['test']}; with n_core {n_core} and these shares the "
                f"knowledge base gives at most {most} (a larger n_core teaches more)"
            )
        fill_apart("test", sizes["test"], streams["test"], *tested)
        firsts, core = {_find_first_step(world, key) for key in hidden}, len(rows["train"])
        fill_apart(
            "train",
            sizes["train"] - core,
            streams["more"],
            (1, [q for q in fair if q["fact"] not in firsts]),
        )
        more = rows["train"][core:]
        _add_supports(world, facts, more, hidden, roles["label"], mentions, streams["more"])
        for split in ("validation", "test"):
            _add_supports(world, facts, rows[split], [], list(facts), 0, streams[split])
        return rows
    fill("test", *tested)
    for split in ("validation", "test"):
        _add_supports(world, facts, rows[split], [], list(facts), 0, rng)
    return rows


def _needs_silent_fact(world: dict, q: dict, silent: set) -> bool:
    """Whether a question needs a fact of `silent` that names its concept.

    No training rationale can state it, whatever else training asks (where wool comes from may be
    said of another thing of wool).
    """
    return any(fact in silent and not _find_first_step(world, fact) for fact, _ in q["said"])


def _find_first_step(world: dict, key: tuple) -> tuple | None:
    """The fact that a linked one starts from (what a sweater is made of, for where that comes
    from); None of others.
    """
    via = world["relations"][key[1]].get("via")
    return (key[0], via) if via else None


def list_sentences(rows: list[dict]) -> set[str]:
    """Every sentence that the rationales of these questions state."""
    return {sentence for q in rows for _, sentence in q["support"] + q["said"]}


def is_stated(q: dict, known: set[str]) -> bool:
    """Whether each sentence of a question's gold rationale is among the known ones."""
    return known.issuperset(sentence for _, sentence in q["said"])


def _add_supports(world, facts, rows, stated, allowed, mentions: int, rng) -> None:
    """One more fact for each rationale, said before the fact asked: its "support".

    First the facts of `stated`, each in up to `mentions` rationales: of the same concept, or of a
    wrong option ("A pencil is made of wood. A knife is made of steel."). Then, in one-step
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
