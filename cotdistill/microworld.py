"""The embedded dataset: questions about an everyday world of our own making, for a machine with no network.

`everyday` asks one- and two-step commonsense about the concepts in microworld.yaml; `relations` asks strict
logic about chains of signed qualitative relations. Gold rationales state every link, and the character spans
of their key tokens are known, so an attribution can be checked against the truth. A dial (`rationale_only`)
sets how many of the facts that test questions ask about are stated in training rationales only: what a label
cannot teach, a rationale can. `invented` asks the questions of `everyday` about things that do not exist: made-up names, and
every fact drawn anew, so that no student can know one before training. It is the positive control: there a rationale carries what the
answer needs, and a comparison of arms has something to find. `strata` is its stricter form: every test question asks one fact of a
made-up thing, and the facts fall in three strata of equal make (stated in training rationales only, asked in training, stated nowhere),
in which no count of words tells the answer.

Hardly anything can be answered without the facts: in each split every value is the right answer 1/n as often as it is
offered, options never share a word with the question, test templates are not among the training templates, and wrong options
are as little alike among themselves as the right one is like them, where values allow it (tests measure what is left). """

import heapq
import re
from collections import Counter, defaultdict
from functools import cache, lru_cache
from itertools import islice, product
from pathlib import Path

import numpy as np
import yaml

from cotdistill.data import DataError, Example, Rationale

KNOWLEDGE = Path(__file__).with_name("microworld.yaml")
PARTS = ("everyday", "relations", "invented", "strata")
INVENTED = 40  # concepts of an invented world: few enough for a small student to meet each fact several times in a few hundred questions
SPLITS = ("train", "validation", "test")
# What `strata` asks about: relations of one step, each with four training and three test templates.
STRATA_RELATIONS = ("kind", "use", "does", "place", "material", "part", "user", "cause", "effect")
STRATA = ("label", "rationale", "none")  # where training has a fact, as `fact_in` says it
STREAMS = ("world", "train", "validation", "test", "more")  # the generators of a world whose splits are drawn apart
DONOR_SEED = 2**31  # added to the seed of a world that gives its rationales away: no study's own
STOP = set("a an and as at by for from in is it of on or such that the this to with what which "
           "who whose where why how does do be its their your".split())
NAMES = {"train": ["Ana", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo"],
         "test": ["Ivy", "Jack", "Kate", "Leo", "Mia", "Noah"]}
COMPARE = {"train": ["The {c} of {A} is {w} than that of {B}. Whose {e} is {w2}?",   # relations, two people
                     "{A} has the {w} {c}, not {B}. Who has the {w2} {e}?",
                     "Unlike {B}, {A} has the {w} {c}. Who gets the {w2} {e}?"],
           "test": ["{A} and {B} differ: {A} has the {w} {c}. Whose {e} is {w2}?",
                    "It is {A}, not {B}, with the {w} {c}. Who sees the {w2} {e}?"]}
DIRECTION = {"train": ["The {c} gets {w}. What does the {e} get?", "If the {c} is {w}, how will the {e} be?",
                       "What is the {e} like once the {c} is {w}?", "Make the {c} {w}. What about the {e}?"],
             "test": ["Suppose the {c} becomes {w}. How does the {e} change?",
                      "How is the {e} when the {c} turns {w}?",
                      "Today the {c} is {w} than before. And the {e}?"]}


@cache
def knowledge(path: Path = KNOWLEDGE) -> dict:
    """The knowledge base as read from microworld.yaml (its head says what stands where). Values become lists:
    the one asked first, then the others that are also true. Raises DataError for a relation or a link that is
    not declared."""
    world = yaml.load(Path(path).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for section in ("concepts", "links"):
        for name, row in world[section].items():
            unknown = (set(row) if section == "concepts" else {name}) - set(world["relations"])
            if unknown:
                raise DataError(f"{path}: {name} has relation {sorted(unknown)}; "
                                f"expected some of {sorted(world['relations'])}")
            lists = {key: [value] if isinstance(value, str) else value for key, value in row.items()}
            world[section][name] = {key: values for key, values in lists.items() if values}
    return world


def facts_of(world: dict) -> dict[tuple[str, str], list[str]]:
    """(concept, relation) -> values, stated ones and those that follow by one link (concept -> material ->
    origin).

    A linked value follows from the first value of the concept; what follows from its other values is also
    true."""
    facts = {(concept, relation): values for concept, row in world["concepts"].items()
             for relation, values in row.items()}
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
    """Content words cut to five letters, so that "reading" and "read" meet: what an overlap heuristic could
    see."""
    return {word[:5].rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - STOP


@lru_cache(maxsize=20000)
def _heads(text: str) -> set[str]:
    return {word[:n] for word in stems(text) for n in range(min(3, len(word)), len(word) + 1)}


def overlaps(question: str, option: str) -> bool:
    """Whether a content word of the option, or a longer or shorter form of it, stands in the question."""
    return not (stems(option).isdisjoint(_heads(question)) and stems(question).isdisjoint(_heads(option)))


def _plain(concept: str) -> str:
    return re.sub(r"^(an?|the) ", "", concept)


def invented(world: dict, rng: np.random.Generator, size: int = INVENTED) -> dict:
    """The knowledge base of a world that does not exist: `size` concepts of `world` under made-up names ("a mavox"), and the values of each
    relation dealt anew among those that have one. Neither the name nor any other fact about a thing then tells a value, but by the links
    from value to value, which stay (whatever is made of wool comes from sheep).

    A list of values moves as one, so what is also true stays so. Names are consonant-vowel, twice, and a last consonant that English words
    of that shape hardly have; none shares a beginning with a word of the world."""
    names = _made_up_names(world)
    names = [f"a {names[i]}" for i in rng.permutation(len(names))[:size]]
    concepts = [list(world["concepts"].values())[i] for i in rng.permutation(len(world["concepts"]))[:size]]
    rows = {name: {} for name in names}
    for relation in world["relations"]:
        having = [i for i, row in enumerate(concepts) if relation in row]
        for i, j in zip(having, rng.permutation(having)):
            rows[names[i]][relation] = concepts[j][relation]
    return world | {"concepts": rows}


def _made_up_names(world: dict) -> list[str]:
    """Every name that a made-up thing may have, in alphabetical order of its letters; see `invented`."""
    known = {word[:3] for text in _texts(world) for word in re.findall(r"[a-z]+", text.lower())}
    letters = ("bdfgklmnprtvz", "aeiou", "jvxz", "aiou", "bgpx")
    return [name for name in map("".join, product(*letters)) if name[:3] not in known]


def _texts(part) -> list[str]:
    """Every text in a piece of the knowledge base, keys too."""
    if isinstance(part, str):
        return [part]
    return [text for one in ([*part, *part.values()] if isinstance(part, dict) else part) for text in _texts(one)]


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _some(noun: str) -> str:
    """A part with its article, none for a plural or a mass: "a blade", "webbed feet", "bark"."""
    return noun if re.search(r"([^s]s|feet|teeth|bark)$", noun) else f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def state(world: dict, relation: str, concept: str, value: str, middle: str = "") -> str:
    """One fact as one sentence: "A knife is made of steel."; of a linked relation its second link, about
    `middle`: "People get wool from sheep."."""
    v = _some(value) if relation == "part" else value
    return _upper(world["relations"][relation]["state"].format(S=concept, v=v, V=middle))


def _spans(text: str, words: list[str], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Character spans of the words, each found from `start` on at a word border, sorted and without
    overlaps."""
    spans = set()
    for word in words:
        spans |= {m.span() for m in re.finditer(rf"\b{re.escape(word)}\b", text, re.I) if m.start() >= start}
    kept = []
    for a, b in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not kept or a >= kept[-1][1]:
            kept.append((a, b))
    return tuple(kept)


# ---------------------------------------- everyday

def _questions(world: dict, facts: dict, keys: list, side: str) -> list[dict]:
    """Every question that the templates of one side ("train", "test") can ask about the facts `keys`.

    Each is a dict: question, answer, true (values never offered as wrong), pool (whose values are the
    options), relation, fact (its key), steps, said (what the rationale states, (fact, sentence) pairs), keys
    (its key words)."""
    found, clues = [], {"use": "the thing used for {v}", "does": "the one known for {v}"}
    for concept, relation in keys:
        value, row = facts[concept, relation][0], world["relations"][relation]
        base = dict(answer=value, true=facts[concept, relation], pool=relation, relation=relation,
                    fact=(concept, relation), steps=1, keys=[_plain(concept), value],
                    said=[((concept, relation), state(world, relation, concept, value))])
        if "via" in row:   # two steps forward: a sweater, wool, sheep
            middle = facts[concept, row["via"]][0]
            base |= dict(steps=2, keys=[_plain(concept), middle, value],
                         said=[((concept, row["via"]), state(world, row["via"], concept, middle)),
                               ((concept, relation), state(world, relation, concept, value, middle))])
        found += [base | dict(question=template.format(S=concept)) for template in row[side]]
        for template in row.get(f"inverse_{side}", []):   # from the value to the concept
            found.append(base | dict(question=template.format(v=value), pool=f"which {relation}",
                                     answer=_plain(concept), true=[_plain(concept)]))
        for clue, words in clues.items():   # two steps from a use: cutting bread, a knife, steel
            if clue != relation and "via" not in row and (concept, clue) in facts:
                thing = facts[concept, clue][0]
                said = [((concept, clue), state(world, clue, concept, thing)), *base["said"]]
                found += [base | dict(question=template.format(S=words.format(v=thing)), steps=2, said=said)
                          for template in row[side]]
    return [q | dict(question=_upper(q["question"])) for q in found
            if not any(overlaps(q["question"], true) for true in q["true"][:1] + [q["answer"]])]


def _near(world: dict) -> dict[str, set[str]]:
    near = defaultdict(set)
    for group in world["alike"]:
        for value in group:
            near[value] |= set(group)
    return near


def _balance(allowed: list[list], quota: dict, k: int, rng) -> tuple[list[set], dict]:
    """Pick k different allowed values for each question so that value v is picked quota[v] times.

    A random greedy start, then augmenting paths (Berge 1957), so the picks are as many as the constraints
    permit. Returns the picks of each question (fewer than k where it cannot be) and what is left of the
    quota."""
    left, picks, sets = Counter(quota), [set() for _ in allowed], [set(values) for values in allowed]
    for i in sorted(range(len(allowed)), key=lambda i: (len(allowed[i]), rng.random())):
        for v in sorted(allowed[i], key=lambda v: -left[v] * rng.random()):
            if len(picks[i]) < k and left[v] > 0:
                picks[i].add(v)
                left[v] -= 1
    holders = defaultdict(set)
    for i, values in enumerate(picks):
        for v in values:
            holders[v].add(i)
    for i in [i for i, values in enumerate(picks) for _ in range(k - len(values))]:
        came, queue, end = {}, [], None   # value -> (question that takes it, value it gives up)
        for v in sorted(sets[i] - picks[i]):
            came[v] = (i, None)
            queue.append(v)
        for v in queue:
            if left[v] > 0:
                end = v
                break
            for j in sorted(holders[v] - {i}):
                for w in sorted(sets[j] - picks[j] - set(came)):
                    came[w] = (j, v)
                    queue.append(w)
        if end is not None:
            left[end] -= 1
            while end is not None:
                j, given = came[end]
                picks[j].add(end)
                holders[end].add(j)
                if given is not None:
                    picks[j].discard(given)
                    holders[given].discard(j)
                end = given
    return picks, left


def _allowed(q: dict, values, near: dict):
    """The values that may stand as a wrong option: false, not close to a true one, no word shared with the
    question."""
    bad = set(q["true"]).union({q["answer"]}, *(near[v] for v in [*q["true"], q["answer"]]))
    return (v for v in values if v not in bad and not overlaps(q["question"], v))


def _apart(picks: list[set], allowed: list[list], near: dict) -> None:
    """Exchange wrong options between questions, in place, until no two of a question are close to each other, where that can be. The
    right option is close to none of the others (`_allowed`): what has a like one among the options would be known to be wrong.
    An exchange keeps how often each value is offered."""
    sets = [set(values) for values in allowed]
    for i, mine in enumerate(picks):
        for v in sorted(mine):
            if not near[v] & (mine - {v}):
                continue
            for j, other in enumerate(picks):
                if j == i or v in other or v not in sets[j]:
                    continue
                swap = next((w for w in sorted(other - mine) if w in sets[i] and not near[w] & (mine - {v}) and not near[v] & (other - {w})), None)
                if swap is not None:
                    mine ^= {v, swap}
                    other ^= {v, swap}
                    break


def _fill(items: list[dict], size: int, near: dict, rng) -> tuple[list[set], set[int]]:
    """The wrong options of questions that share a pool, from the right answers of the others: a value is
    offered wrongly size - 1 times per time it is right. Second, the questions that stand in the way of
    that."""
    quota = {v: count * (size - 1) for v, count in Counter(item["answer"] for item in items).items()}
    allowed = [list(_allowed(item, quota, near)) for item in items]
    picks, left = _balance(allowed, quota, size - 1, rng)
    _apart(picks, allowed, near)
    bad = set()
    for i, values in enumerate(picks):
        if len(values) < size - 1:
            over = [j for j in range(len(items)) if left[items[j]["answer"]] > 0 and j not in bad]
            bad.add(i if not over else over[rng.integers(len(over))])
    return picks, bad


def _choose(questions: list[dict], size: int, two_step: int, taken: set, uses: Counter, rng) -> list[dict]:
    """Up to `size` questions, so many of them with two steps, no text twice (`taken`), least asked facts
    first (`uses`)."""
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


def _source(parts: list[tuple], two_step: float, taken: set, rng, exact: bool = False):
    """A function count -> questions that draws from several lists. parts: (share, questions), shares of all
    that stand; what one list lacks, the others give. `removed` are questions that were given and are exchanged
    now, the first for the first, as many with two steps for as many. exact: never more than `count`; else there
    may be a few more where one-step questions stood in for two-step ones (worlds drawn so stay as they are)."""
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
            new = _choose(parts[i][1], want, min(two, want) if exact else two, taken, uses, rng)
            given[i], owed = given[i] + len(new), max(0, owed - sum(q["steps"] == 2 for q in new))
            found += [q | dict(part=i) for q in new]
        for q in removed[len(found):]:  # nothing is left to exchange them for
            given[q["part"]] += 1
        return found

    return pick


def _with_options(pick, size: int, n_options, near: dict, spare: dict, rng) -> list[dict]:
    """`size` questions with their wrong options, under the key "wrong". `pick(count)` supplies questions;
    those that would break the balance are exchanged for others, twelve times at most, and an option that is
    still missing in the end is any value of the relation (it happens in splits of a few questions)."""
    groups, done = defaultdict(list), {}

    def add(items):
        for item in items:
            n = int(rng.integers(2, 6)) if n_options == "mix" else n_options
            groups[item["pool"], n].append(item)
            done.pop((item["pool"], n), None)
        for key in sorted(groups.keys() - done.keys()):
            done[key] = _fill(groups[key], key[1], near, rng)

    add(pick(size))
    for _ in range(12):
        removed = [groups[key][i] for key in sorted(groups) for i in sorted(done[key][1])]
        fresh = pick(len(removed), removed)
        room = len(fresh)
        for key in sorted(groups):
            bad = sorted(done[key][1])[:room]
            room -= len(bad)
            if bad:
                groups[key] = [item for i, item in enumerate(groups[key]) if i not in bad]
                del done[key]
        add(fresh)
        if not fresh:
            break
    rows = []
    for pool, n in sorted(groups):
        for item, values in zip(groups[pool, n], done[pool, n][0]):
            others = [v for v in _allowed(item, spare[pool], near) if v not in values]
            more = sorted((others[i] for i in rng.permutation(len(others))), key=lambda v: bool(near[v] & values))  # the unlike ones first
            rows.append(item | dict(wrong=sorted(values) + more[:n - 1 - len(values)]))
    return rows


def _roles(asked: list, rng, rationale_only: float, label_seen: float, unseen_concepts: float) -> dict:
    """What each fact is for: "label" may be asked in training; the others never are: "validation" is asked
    there only, "rationale" in test, while training rationales state it, "none" in test, and training never
    states it.

    45 % of the facts are held out, first all those of the unseen concepts; a fifth of them goes to
    validation."""
    concepts = sorted({concept for concept, _ in asked})
    unseen = {concepts[i] for i in rng.permutation(len(concepts))[:round(unseen_concepts * len(concepts))]}
    facts = [asked[i] for i in rng.permutation(len(asked))]
    facts = [fact for fact in facts if fact[0] in unseen] + [fact for fact in facts if fact[0] not in unseen]
    n_held = max(round(0.45 * len(facts)), sum(fact[0] in unseen for fact in facts))
    held = [facts[i] for i in rng.permutation(n_held)]
    a = round(0.2 * n_held)
    b = a + round((n_held - a) * rationale_only / max(1 - label_seen, 1e-9))
    return {"label": facts[n_held:], "validation": held[:a], "rationale": held[a:b], "none": held[b:]}


def _everyday(world: dict, sizes: dict, rng, rationale_only: float, label_seen: float, unseen_concepts: float,
              two_step: float, n_options, relations, mentions: int, apart: tuple | None = None) -> dict[str, list[dict]]:
    """See `generate`; apart: (n_core, a generator for each name of STREAMS). Returns split -> question dicts with "wrong" options and "support" ((fact, sentence) pairs,
    often none)."""
    facts, near = facts_of(world), _near(world)
    asked = [key for key in facts if relations is None or key[1] in relations]
    roles = _roles(asked, rng, rationale_only, label_seen, unseen_concepts)
    spare = defaultdict(set)
    for concept, relation in asked:
        spare[relation].add(facts[concept, relation][0])
        spare[f"which {relation}"].add(_plain(concept))
    spare = {pool: sorted(values) for pool, values in spare.items()}
    most, taken, rows = 5 if n_options == "mix" else n_options, set(), {}

    def ask(keys, side):
        return [q for q in _questions(world, facts, keys, side)
                if len(list(islice(_allowed(q, spare[q["pool"]], near), most - 1))) == most - 1]

    def fill(split, *parts):
        pick = _source(parts, two_step, taken, rng)
        rows[split] = _with_options(pick, sizes[split], n_options, near, spare, rng)

    def fill_apart(split, size, stream, *parts):
        pick = _source(parts, two_step, taken, stream, exact=True)
        rows[split] = rows.get(split, []) + _with_options(pick, size, n_options, near, spare, stream)

    silent = set(roles["validation"]) | set(roles["none"])   # not even as the first of two steps
    untold = set(roles["rationale"])  # by labels: what covers a cat says what kind of animal it is
    fair = [q for q in ask(roles["label"], "train")
            if not any(fact in silent for fact, _ in q["said"]) and _first_step(world, q["fact"]) not in untold]
    if apart:  # validation has its own tenth of what training could ask, whatever is drawn from either
        n_core, streams = apart
        own = streams["world"].random(len(fair)) < 0.1
        checked, fair = ([q for q, is_own in zip(fair, own) if is_own == side] for side in (True, False))
        fill_apart("validation", sizes["validation"], streams["validation"], (label_seen, checked),
                   (1 - label_seen, ask(roles["validation"], "train")))
        fill_apart("train", n_core, streams["train"], (1, fair))
        rng = streams["train"]
    else:
        fill("validation", (label_seen, fair), (1 - label_seen, ask(roles["validation"], "train")))
        fill("train", (1, fair))
    stated = [key for key in roles["rationale"] if _first_step(world, key) not in silent]
    _add_supports(world, facts, rows["train"], stated, roles["label"], mentions, rng)
    labelled = {q["fact"] for q in rows["train"]}
    told = {q["support"][-1][0] for q in rows["train"] if q["support"]}
    known = _sentences(rows["train"])
    hidden = [key for key in roles["rationale"] if key in told and _first_step(world, key) not in labelled]
    tested = ((rationale_only, [q for q in ask(hidden, "test") if _all_said(q, known)]),
              (label_seen, [q for q in ask([key for key in roles["label"] if key in labelled], "test") if _all_said(q, known)]),
              (1 - rationale_only - label_seen, [q for q in ask(roles["none"], "test") if not _all_said(q, known)
                                                 and (not apart or _never_said(world, q, silent))]))
    if apart:
        most = min((int(len({q["question"] for q in questions}) / share)
                    for share, questions in tested if share > 1e-9), default=0)
        if sizes["test"] > most:
            raise DataError(f"microworld: n_test is {sizes['test']}; with n_core {n_core} and these shares the "
                            f"knowledge base gives at most {most} (a larger n_core teaches more)")
        fill_apart("test", sizes["test"], streams["test"], *tested)
        firsts, core = {_first_step(world, key) for key in hidden}, len(rows["train"])
        fill_apart("train", sizes["train"] - core, streams["more"], (1, [q for q in fair if q["fact"] not in firsts]))
        more = rows["train"][core:]
        _add_supports(world, facts, more, hidden, roles["label"], mentions, streams["more"])
        for split in ("validation", "test"):
            _add_supports(world, facts, rows[split], [], list(facts), 0, streams[split])
        return rows
    fill("test", *tested)
    for split in ("validation", "test"):
        _add_supports(world, facts, rows[split], [], list(facts), 0, rng)
    return rows


def _never_said(world: dict, q: dict, silent: set) -> bool:
    """Whether a question needs a fact of `silent` that names its concept: no training rationale can state it,
    whatever else training asks (where wool comes from may be said of another thing of wool)."""
    return any(fact in silent and not _first_step(world, fact) for fact, _ in q["said"])


def _first_step(world: dict, key: tuple) -> tuple | None:
    """The fact that a linked one starts from (what a sweater is made of, for where that comes from); None of others."""
    via = world["relations"][key[1]].get("via")
    return (key[0], via) if via else None


def _sentences(rows: list[dict]) -> set[str]:
    """Every sentence that the rationales of these questions state."""
    return {sentence for q in rows for _, sentence in q["support"] + q["said"]}


def _all_said(q: dict, known: set[str]) -> bool:
    """Whether each sentence of a question's gold rationale is among the known ones."""
    return known.issuperset(sentence for _, sentence in q["said"])


def _add_supports(world, facts, rows, stated, allowed, mentions: int, rng) -> None:
    """One more fact for each rationale, said before the fact asked: its "support".

    First the facts of `stated`, each in up to `mentions` rationales: of the same concept, or of a wrong
    option ("A pencil is made of wood. A knife is made of steel."). Then, in one-step rationales that are
    still free, any fact of `allowed` about the same concept. A two-step rationale, longer already, is taken
    only where there is no other."""
    first = {key: _first_step(world, key) for key in facts}
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
            places = [*concept_rows[key[0]], *wrong_rows[key[1], facts[key][0]],
                      *wrong_rows[f"which {key[1]}", _plain(key[0])]]
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


# ---------------------------------------- relations

def _paths(world: dict) -> list[dict]:
    """Every chain of one to three links: its quantities [(noun, more, less)] and the signs of its links."""
    paths = []
    for t, theme in enumerate(world["quantities"]):
        for start in range(len(theme) - 1):
            for stop in range(start + 1, min(start + 4, len(theme))):
                nodes = theme[start:stop + 1]
                paths.append(dict(nodes=[tuple(node[:3]) for node in nodes],
                                  signs=[1 if node[3] == "+" else -1 for node in nodes[:-1]],
                                  fact=(t, start, stop), links=_links((t, start, stop))))
    return paths


def _relation_questions(paths: list[dict], side: str, rng) -> list[dict]:
    """Both forms on each chain. direction: options are the two words of the last quantity. comparison: two
    people, of whom the first named has more (or less) of the first quantity; either may be asked for."""
    found, names = [], NAMES[side]
    for path in paths:
        (c, more, less), (e, more2, less2) = path["nodes"][0], path["nodes"][-1]
        if stems(f"{c} {more} {less}") & stems(f"{e} {more2} {less2}"):
            continue
        for sign in (1, -1):
            signs = np.cumprod([sign, *path["signs"]])
            said = [(node[0], node[1] if s > 0 else node[2]) for node, s in zip(path["nodes"], signs)]
            links = [(fact, f"{_upper(w)} {a}, {w2} {b}.")
                     for fact, (a, w), (b, w2) in zip(path["links"], said, said[1:])]
            base = dict(steps=len(links), fact=path["fact"], links=path["links"], relation=f"{c} to {e}",
                        keys=[w for _, w in said])
            word, right = said[0][1], said[-1][1]
            wrong = less2 if right == more2 else more2
            for template in DIRECTION[side]:
                found.append(base | dict(
                    question=template.format(c=c, e=e, w=word), answer=right, wrong=wrong,
                    form="direction", said=links, cells=(right, wrong)))
            for template in COMPARE[side]:
                for ask in (right, wrong) * 3:   # three pairs of people each
                    a, b = (names[x] for x in rng.permutation(len(names))[:2])
                    who, other = (a, b) if ask == right else (b, a)
                    found.append(base | dict(
                        question=template.format(c=c, e=e, w=word, w2=ask, A=a, B=b), answer=who, wrong=other,
                        form="comparison", said=links + [(None, f"So {who} has the {ask} {e}.")],
                        keys=base["keys"] + [who, ask], cells=(who == a, who != a)))
    return [q | dict(question=_upper(q["question"])) for q in found]


def _even(questions: list[dict], size: int, taken: set, rng) -> list[dict]:
    """`size` questions in which each option is right as often as wrong, the first-named person too, and the
    three lengths and two forms are as even as they can be. Greedy: a question that tips a balance waits for
    its counterpart."""
    tilt, picked = Counter(), []
    waiting = defaultdict(list)
    for i in rng.permutation(len(questions)):
        waiting[questions[i]["form"], questions[i]["steps"]].append(questions[i])
    cells = sorted(waiting)
    for slack in (0, 1, 2, 10**9):
        stuck = set()
        while len(picked) < size and len(stuck) < len(cells):
            for cell in cells:
                queue = waiting[cell]
                for at, q in enumerate(queue):
                    keys = [("text", q["answer"]), ("text", q["wrong"])]
                    keys += [("cell", q["form"], cell_) for cell_ in q["cells"]]
                    if q["question"] not in taken and tilt[keys[0]] <= slack and tilt[keys[1]] >= -slack \
                            and tilt[keys[2]] <= slack:
                        break
                else:
                    stuck.add(cell)
                    continue
                stuck.discard(cell)
                if len(picked) == size:
                    break
                picked.append(queue.pop(at))
                taken.add(q["question"])
                for key, step in zip(keys, (1, -1, 1, -1)):
                    tilt[key] += step
    return picked


def _relations(sizes: dict, rng, rationale_only: float, label_seen: float, unseen_concepts: float) -> dict:
    """See `generate`. A fact is a chain (theme, start, stop); "rationale" means all its links are stated in
    training but the chain is never asked there, "none" that it belongs to a theme that training does not
    know. A fifth of the chains that are held out are asked in validation, and not in test."""
    world = knowledge()
    paths = _paths(world)
    themes = [int(t) for t in rng.permutation(len(world["quantities"]))]
    unseen = set(themes[:round(unseen_concepts * len(themes))])
    known = [path for path in paths if path["fact"][0] not in unseen]
    known = [known[i] for i in rng.permutation(len(known))]
    n_held = round(len(known) * min(0.5, rationale_only / max(1e-9, rationale_only + label_seen)))
    n_check = round(0.2 * n_held)
    check, held, label, none = known[:n_check], known[n_check:n_held], known[n_held:], [path for path in paths if path["fact"][0] in unseen]
    taken, out = set(), {}
    rest = 1 - rationale_only - label_seen

    def mixed(size, side, parts):
        rows, total = [], sum(share for share, _ in parts) or 1
        for i, (share, part) in enumerate(parts):
            want = size - len(rows) if i == len(parts) - 1 else round(size * share / total)
            rows += _even(_relation_questions(part, side, rng), want, taken, rng)
        return rows

    out["validation"] = mixed(sizes["validation"], "train", [(rationale_only, check), (label_seen, label)])
    out["train"] = mixed(sizes["train"], "train", [(1, label)])
    told = {link for q in out["train"] for link in q["links"]}
    asked = {q["fact"] for q in out["train"]}
    held = [path for path in held if told.issuperset(path["links"])]
    label = [path for path in label if path["fact"] in asked]
    out["test"] = mixed(sizes["test"], "test", [(rationale_only, held), (rest, none), (label_seen, label)])
    return {split: [q | dict(wrong=[q["wrong"]], support=[]) for q in rows] for split, rows in out.items()}


# ---------------------------------------- strata


def _strata_values(world: dict, relations: list[str], size: int, rng) -> dict[str, list[str]]:
    """`size` values of each relation, no two of which share a content word, within a relation or
    across relations, nor one with the words in which facts are stated: how often a value is
    mentioned is then how often its facts are.

    Values that are alike never stand together, and none shares a word with a template of its
    relation. Raises DataError where the knowledge base has fewer."""
    near, chosen = _near(world), {relation: [] for relation in relations}
    taken = set().union(
        *(stems(world["relations"][relation]["state"]) for relation in STRATA_RELATIONS)
    )
    offered = {}
    for relation in relations:
        row = world["relations"][relation]
        values = {v for facts in world["concepts"].values() for v in facts.get(relation, [])}
        asked = [template.format(S="it") for template in row["train"] + row["test"]]
        offered[relation] = sorted(
            v for v in values if not any(overlaps(text, v) for text in asked)
        )
    for relation in sorted(
        relations, key=lambda relation: len(offered[relation])
    ):  # the scarcest first
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


def _strata_names(world: dict, concepts: int, seed: int) -> list[str]:
    """Made-up names, other ones for every seed as long as they last: all names stand in one fixed
    random order, and a seed takes the next `concepts` of them. Even places are for studies, odd
    ones for donors (`draw_donors`), so a study's world never shares a name with its donors'
    world."""
    names = _made_up_names(world)
    order = np.random.default_rng(0).permutation(len(names))
    blocks = len(names) // concepts // 2
    block = 2 * (seed % DONOR_SEED % blocks) + (seed >= DONOR_SEED)
    return [f"a {names[i]}" for i in order[block * concepts : (block + 1) * concepts]]


def _strata_roles(concepts: list[str], relations: list[str], rng) -> dict[tuple, str]:
    """(concept, relation) -> its stratum. Of each relation a third of the concepts is in each
    stratum, and of each concept a third of its relations: for every three relations the concepts
    are put in threes at random, and each three gets a random Latin square."""
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


def _strata_world(world: dict, concepts: int, relations: list[str], seed: int) -> tuple[dict, dict]:
    """A world of `concepts` made-up things: (concept, relation) -> value, and -> stratum.

    In each stratum each value of a relation belongs to exactly one concept, so that a value is
    asked, stated and tested as often as any other."""
    rng = np.random.default_rng([seed, PARTS.index("strata"), 0])
    names = _strata_names(world, concepts, seed)
    values = _strata_values(world, relations, concepts // 3, rng)
    roles, facts = _strata_roles(names, relations, rng), {}
    for relation in relations:
        for stratum in STRATA:
            having = [name for name in names if roles[name, relation] == stratum]
            for name, i in zip(having, rng.permutation(len(having))):
                facts[name, relation] = values[relation][i]
    return facts, roles


def _strata_block(world: dict, facts: dict, keys: list, template: str, n: int, rng) -> list[dict]:
    """One question on each of the facts `keys`, which share a relation and have different values,
    all in the words of one template, with n options.

    The wrong options are the right ones of others: the values stand in a random circle, and each
    question takes those at n - 1 random distances from its own, so every value is offered wrongly n
    - 1 times for once that it is right. A block of fewer facts than options takes what is missing
    from the other values."""
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
                question=_upper(template.format(S=key[0])),
                answer=facts[key],
                relation=relation,
                wrong=[circle[(at + step) % len(circle)] for step in steps],
                fact=key,
                steps=1,
                said=[(key, sentence)],
                keys=[_plain(key[0]), facts[key]],
                support=[],
            )
        )
    return rows


def _strata_questions(
    world, facts, keys, side: str, size: int, n_options, rng, last: bool = False
) -> list:
    """`size` questions about the facts `keys`, or as many as the templates of one side can ask.
    They come in blocks (a relation, a template): first a block of every relation, then a second
    one, and so on, so each fact is asked equally often, give or take one. last: begin with the
    template that others come to last."""
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
                rows += _strata_block(world, facts, mine, template, n, rng)
                blocks += 1
    return rows


def _state_in_rationales(
    world: dict, facts: dict, rows: list[dict], keys: list, mentions: int, rng
) -> None:
    """State each of the facts `keys` in exactly `mentions` of the rationales `rows` of its own
    concept, before the fact asked (their "support"), the shortest rationales first. Raises
    DataError where a concept is asked about less often than that."""
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


def _strata(
    sizes: dict,
    seed: int,
    rationale_only: float,
    label_seen: float,
    n_options,
    relations,
    mentions: int,
    concepts: int,
) -> dict[str, list[dict]]:
    """See `generate`. Training asks the facts of the stratum "label" and states, in the rationales
    of these questions, those of "rationale"; validation asks facts of "label" in training words
    that training has left over. Training, validation and test each have a generator of their own,
    and what a world is does not depend on the sizes: none of the sizes changes another split's
    questions."""
    world, relations = knowledge(), list(relations or STRATA_RELATIONS)
    most = 5 if n_options == "mix" else n_options
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
    facts, roles = _strata_world(world, concepts, relations, seed)
    keys = {stratum: [key for key in facts if roles[key] == stratum] for stratum in STRATA}
    n_facts, n_forms = len(keys["label"]), len(world["relations"][relations[0]]["train"])
    if not n_facts <= sizes["train"] <= n_facts * n_forms - sizes["validation"]:
        raise DataError(
            f"microworld/strata: n_train is {sizes['train']}, validation_size {sizes['validation']}; "
            f"with {concepts} concepts expected n_train from {n_facts} (each of the {n_facts} label "
            f"facts once) and at most {n_facts * n_forms} for both together"
        )
    streams = {
        split: np.random.default_rng([seed, PARTS.index("strata"), 1 + i])
        for i, split in enumerate(SPLITS)
    }
    rows = {
        split: _strata_questions(
            world,
            facts,
            keys["label"],
            "train",
            sizes[split],
            n_options,
            streams[split],
            last=split == "validation",
        )
        for split in ("train", "validation")
    }
    _state_in_rationales(world, facts, rows["train"], keys["rationale"], mentions, streams["train"])
    wanted = dict(
        rationale=round(rationale_only * sizes["test"]), label=round(label_seen * sizes["test"])
    )
    wanted["none"] = sizes["test"] - sum(wanted.values())
    rows["test"] = []
    for stratum, size in wanted.items():
        found = _strata_questions(
            world, facts, keys[stratum], "test", size, n_options, streams["test"]
        )
        if len(found) < size:
            raise DataError(
                f"microworld/strata: n_test is {sizes['test']}, {size} of them of stratum "
                f"'{stratum}'; with {concepts} concepts there are at most {len(found)} of each stratum"
            )
        rows["test"] += found
    _add_true_facts(world, facts, rows["validation"], streams["validation"])
    _add_true_facts(world, facts, rows["test"], streams["test"])
    return {split: [q | dict(group=roles[q["fact"]]) for q in rows[split]] for split in SPLITS}


def _add_true_facts(world: dict, facts: dict, rows: list[dict], rng) -> None:
    """Before the fact asked, a gold rationale outside training states another fact of the same
    concept, of any stratum: it is about as long as one of training."""
    about = defaultdict(list)
    for key in facts:
        about[key[0]].append(key)
    for q in rows:
        others = [key for key in about[q["fact"][0]] if key != q["fact"]]
        key = others[rng.integers(len(others))]
        q["support"] = [(key, state(world, key[1], key[0], facts[key]))]


def draw_donors(data: dict, part: str, seed: int = 0, **settings) -> dict[str, Rationale]:
    """Rationales for a `swapped` arm that state none of its world's facts: for each training
    question of `data` the gold rationale of another made-up world, of the same form and about the
    same length.

    data: what `generate(part, seed=seed, **settings)` gave; settings must be the same. Both worlds'
    training rationales are sorted by length in characters and paired, the shortest with the
    shortest. The donors' names are others than those of `data` (`strata`: by construction;
    `invented`: the first world without a common name is taken). Returns id -> Rationale (id of the
    question that gets it; `answer` None, for it concludes none of its options). Raises DataError
    for a part whose things are real."""
    if part not in ("invented", "strata"):
        raise DataError(
            f"microworld/{part}: its facts hold in every world; expected donors for invented or strata"
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


# ---------------------------------------- all

def generate(part: str = "everyday", n_train: int | None = None, n_validation: int | None = None,
             n_test: int | None = None, seed: int = 0, rationale_only: float | None = None,
             label_seen: float | None = None, unseen_concepts: float = 0.15, two_step: float = 0.4,
             n_options: int | str = 4, relations: list[str] | None = None, mentions: int | None = None,
             concepts: int = 30, n_core: int | None = None) -> dict:
    """Make the dataset. The same arguments give the same questions; a size given to `train` is a part of the
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

strata: (concept, relation) is a fact, and its stratum `fact_in`: questions of one `fact` are a cluster. A
training rationale states the fact asked and, before it, facts of the stratum "rationale" about the same
concept. Facts of "label" stand in no other rationale, those of "rationale" in no training question or label,
those of "none" nowhere. Questions need one step; two_step and unseen_concepts have no effect. All options of a
question are mentioned equally often in training rationales (where n_train is a multiple of concepts / 3; else
give or take one). Names differ between seeds as long as the names last (65 seeds of 30 concepts).

    Returns {"train", "validation", "test": lists of Example, "rationales": id -> Rationale (gold, all splits,
    key_spans known), "meta": id -> {steps, relation, fact, unseen_concept, unseen_template, fact_in,
    needs, states}}; `fact_in` is where training has the facts of the question, every sentence of its gold rationale: "label", "rationale" or
    "none"; `needs` these facts, `states` those its rationale states (with the support that may stand before). Raises DataError for an unknown part, an impossible setting, or a
    size above what the knowledge base can give."""
    if part not in PARTS:
        raise DataError(f"microworld part '{part}'; expected one of {', '.join(PARTS)}")
    strata = part == "strata"
    n_train, n_validation, n_test = (
        given if given is not None else default for given, default in
        zip((n_train, n_validation, n_test), (240, 32, 600) if strata else (2000, 200, 500)))
    if rationale_only is None:
        rationale_only = 1 / 3 if strata else 0.3
    if label_seen is None:
        label_seen = 1 / 3 if strata else 0.35
    shares = dict(rationale_only=rationale_only, label_seen=label_seen, unseen_concepts=unseen_concepts,
                  two_step=two_step)
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise DataError(f"microworld {name} is {value}; expected a share from 0 to 1")
    if rationale_only + label_seen > 1:
        raise DataError(f"microworld rationale_only + label_seen is {rationale_only + label_seen:g}; "
                        "expected at most 1")
    if n_options not in (2, 3, 4, 5, "mix"):
        raise DataError(f"microworld n_options is {n_options!r}; expected 2, 3, 4, 5 or mix")
    unknown = set(relations or ()) - set(knowledge()["relations"])
    if unknown:
        raise DataError(f"microworld relations {sorted(unknown)}; "
                        f"expected some of {sorted(knowledge()['relations'])}")
    sizes = dict(zip(SPLITS, (n_train, n_validation, n_test)))
    rng = np.random.default_rng([seed, PARTS.index(part)])
    apart = None
    if n_core is not None:
        if part not in ("everyday", "invented") or not 0 < n_core <= n_train:
            raise DataError(f"microworld/{part}: n_core is {n_core}, n_train {n_train}; expected a number from 1 "
                            "to n_train, of everyday or invented")
        apart = n_core, {name: np.random.default_rng([seed, PARTS.index(part), 20 + i])
                         for i, name in enumerate(STREAMS)}
    if strata:
        rows = _strata(sizes, seed, rationale_only, label_seen, n_options, relations,
                       4 if mentions is None else mentions, concepts)
    elif part == "relations":
        rows = _relations(sizes, rng, rationale_only, label_seen, unseen_concepts)
    else:
        world, often = (knowledge(), 3) if part == "everyday" else (invented(knowledge(), rng), 8)
        rows = _everyday(world, sizes, rng, rationale_only, label_seen, unseen_concepts, two_step, n_options,
                         relations, often if mentions is None else mentions, apart)
    for split, size in sizes.items():
        if len(rows[split]) < size:
            raise DataError(f"microworld/{part}: n_{split} is {size}; with these settings the knowledge base "
                            f"gives at most {len(rows[split])}")
    asked = {q["fact"] for q in rows["train"]}
    subjects = {fact[0] for fact in asked}
    stated, known = {fact for q in rows["train"] for fact, _ in q["said"]}, _sentences(rows["train"])
    data = {"train": [], "validation": [], "test": [], "rationales": {}, "meta": {}}
    for split in SPLITS:
        if strata or n_core is not None:  # the order of one split must not depend on another's size
            rng = np.random.default_rng([seed, PARTS.index(part), 10 + SPLITS.index(split)])
        questions = [rows[split][i] for i in rng.permutation(len(rows[split]))]
        spots = _spots([(len(q["wrong"]) + 1, q.get("group", "")) for q in questions], rng)
        for number, (q, spot) in enumerate(zip(questions, spots)):
            id = f"{part}-{split}-{number:05d}"
            options = [q["wrong"][i] for i in rng.permutation(len(q["wrong"]))]
            options.insert(spot, q["answer"])
            lead = q["support"]
            text = " ".join(sentence for _, sentence in lead + q["said"])
            spans = _spans(text, q["keys"], sum(len(sentence) + 1 for _, sentence in lead))
            data[split].append(Example(id, q["question"], tuple(options), spot))
            data["rationales"][id] = Rationale(id, text, spot, spans)
            told = stated.issuperset(q["links"]) if part == "relations" else _all_said(q, known)
            data["meta"][id] = {
                "steps": q["steps"], "relation": q["relation"], "fact": q["fact"],
                "unseen_concept": q["fact"][0] not in subjects, "unseen_template": split == "test",
                "fact_in": "none" if not told else "label" if q["fact"] in asked else "rationale",
                "needs": [fact for fact, _ in q["said"] if fact],
                "states": [fact for fact, _ in lead + q["said"] if fact]}
    return data


def _links(chain: tuple) -> list[tuple]:
    theme, start, stop = chain
    return [(theme, i, i + 1) for i in range(start, stop)]


def _spots(groups: list[tuple[int, str]], rng) -> list[int]:
    """The place of the right option of each question: every place equally often among questions of one
    group. A group is (number of options, stratum), the stratum "" where a world has none."""
    spots = [0] * len(groups)
    for group in sorted(set(groups)):
        members = [i for i, one in enumerate(groups) if one == group]
        for i, spot in zip(members, rng.permutation(np.arange(len(members)) % group[0])):
            spots[i] = int(spot)
    return spots
