"""The embedded dataset: questions about an everyday world of our own making, for a machine with no network.

`everyday` asks one- and two-step commonsense about the concepts in microworld.yaml; `relations` asks strict logic about
chains of signed qualitative relations. Gold rationales state every link, and the character spans of their key tokens
are known, so an attribution can be checked against the truth. A dial (`rationale_only`) sets how many of the facts that
test questions ask about are stated in training rationales only: what a label cannot teach, a rationale can.

Nothing can be answered without the facts: in each split every value is the right answer 1/n as often as it is offered,
options never share a word with the question, and test templates are not among the training templates.
"""

import heapq
import re
from collections import Counter, defaultdict
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import yaml

from cotdistill.data import DataError, Example, Rationale

KNOWLEDGE = Path(__file__).with_name("microworld.yaml")
SPLITS = ("train", "validation", "test")
STOP = set("a an and as at by for from in is it of on or such that the this to with what which who whose where why how "
           "does do be its their your".split())
NAMES = {"train": ("Ana Ben Carl Dora Emma Finn Gina Hugo".split()), "test": ("Ivy Jack Kate Leo Mia Noah".split())}
COMPARE = {"train": ["The {c} of {A} is {w} than that of {B}. Whose {e} is {w2}?",   # relations, two people
                     "{A} has the {w} {c}, not {B}. Who has the {w2} {e}?",
                     "Unlike {B}, {A} has the {w} {c}. Who gets the {w2} {e}?"],
           "test": ["{A} and {B} differ: {A} has the {w} {c}. Whose {e} is {w2}?",
                    "It is {A}, not {B}, with the {w} {c}. Who sees the {w2} {e}?"]}
DIRECTION = {"train": ["The {c} gets {w}. What does the {e} get?", "If the {c} is {w}, how will the {e} be?",
                       "What is the {e} like once the {c} is {w}?", "Make the {c} {w}. What about the {e}?"],
             "test": ["Suppose the {c} becomes {w}. How does the {e} change?", "How is the {e} when the {c} turns {w}?",
                      "Today the {c} is {w} than before. And the {e}?"]}


@cache
def knowledge(path: Path = KNOWLEDGE) -> dict:
    """The knowledge base as read from microworld.yaml (its head says what stands where). Values become lists: the one
    asked first, then the others that are also true. Raises DataError for a relation or a link that is not declared."""
    world = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for section in ("concepts", "links"):
        for name, row in world[section].items():
            unknown = set(row) - set(world["relations"]) if section == "concepts" else {name} - set(world["relations"])
            if unknown:
                raise DataError(f"{path}: {name} has relation {sorted(unknown)}; expected {sorted(world['relations'])}")
            world[section][name] = {key: [value] if isinstance(value, str) else value for key, value in row.items() if value}
    return world


def facts_of(world: dict) -> dict[tuple[str, str], list[str]]:
    """(concept, relation) -> values, stated ones and those that follow by one link (concept -> material -> origin).

    A linked value follows from the first value of the concept; what follows from its other values is also true."""
    facts = {(concept, relation): values for concept, row in world["concepts"].items() for relation, values in row.items()}
    for relation, links in world["links"].items():
        via = world["relations"][relation]["via"]
        for concept, row in world["concepts"].items():
            values = row.get(via, [])
            if values and values[0] in links:
                facts[concept, relation] = list(dict.fromkeys(v for value in values for v in links.get(value, [])))
    return facts


@lru_cache(maxsize=20000)
def stems(text: str) -> set[str]:
    """Content words cut to five letters, so that "reading" and "read" meet: what an overlap heuristic could see."""
    return {word[:5].rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - STOP


@lru_cache(maxsize=20000)
def _heads(text: str) -> set[str]:
    return {word[:n] for word in stems(text) for n in range(min(3, len(word)), len(word) + 1)}


def overlaps(question: str, option: str) -> bool:
    """Whether a content word of the option, or a longer or shorter form of it, stands in the question."""
    return not (stems(option).isdisjoint(_heads(question)) and stems(question).isdisjoint(_heads(option)))


def _plain(concept: str) -> str:
    return re.sub(r"^(an?|the) ", "", concept)


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _some(noun: str) -> str:
    """A part with its article, none for a plural or a mass: "a blade", "webbed feet", "bark"."""
    return noun if re.search(r"([^s]s|feet|teeth|bark)$", noun) else f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def state(world: dict, relation: str, concept: str, value: str, middle: str = "") -> str:
    """One fact as one sentence: "A knife is made of steel."; of a linked relation its second link, about `middle`:
    "People get wool from sheep."."""
    v = _some(value) if relation == "part" else value
    return _upper(world["relations"][relation]["state"].format(S=concept, v=v, V=middle))


def _spans(text: str, words: list[str], start: int = 0) -> tuple[tuple[int, int], ...]:
    """Character spans of the words, each found from `start` on at a word border, sorted and without overlaps."""
    spans = set()
    for word in words:
        spans |= {(m.start(), m.end()) for m in re.finditer(rf"\b{re.escape(word)}\b", text, re.I) if m.start() >= start}
    kept = []
    for a, b in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not kept or a >= kept[-1][1]:
            kept.append((a, b))
    return tuple(kept)


# ---------------------------------------------------------------------------------------------------- everyday

def _questions(world: dict, facts: dict, keys: list, side: str) -> list[dict]:
    """Every question that the templates of one side ("train", "test") can ask about the facts `keys`.

    Each is a dict: question, answer, true (values never offered as wrong), pool (whose values are the options),
    relation, fact (its key), steps, said (what the rationale states, (fact, sentence) pairs), keys (its key words)."""
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
            found.append(base | dict(question=template.format(v=value), pool=f"which {relation}", answer=_plain(concept),
                                     true=[_plain(concept)]))
        for clue, words in clues.items():   # two steps, from what a thing is used for: cutting bread, a knife, steel
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

    A random greedy start, then augmenting paths (Berge 1957), so the picks are as many as the constraints permit.
    Returns the picks of each question (fewer than k where it cannot be) and what is left of the quota."""
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
        came, queue, end = {}, [], None   # value -> (question that would take it, value which that one gives up)
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


def _allowed(item: dict, values, near: dict) -> list[str]:
    bad = set(item["true"]).union({item["answer"]}, *(near[v] for v in [*item["true"], item["answer"]]))
    return [v for v in values if v not in bad and not overlaps(item["question"], v)]


def _fill(items: list[dict], size: int, near: dict, rng) -> tuple[list[set], set[int]]:
    """The wrong options of questions that share a pool, from the right answers of the others: a value is offered wrongly
    size - 1 times per time it is right. Second, the questions that stand in the way of that."""
    quota = {v: count * (size - 1) for v, count in Counter(item["answer"] for item in items).items()}
    picks, left = _balance([_allowed(item, quota, near) for item in items], quota, size - 1, rng)
    bad = set()
    for i, values in enumerate(picks):
        if len(values) < size - 1:
            over = [j for j in range(len(items)) if left[items[j]["answer"]] > 0 and j not in bad]
            bad.add(i if not over else over[rng.integers(len(over))])
    return picks, bad


def _choose(questions: list[dict], size: int, share_two: float, taken: set, rng, uses: Counter) -> list[dict]:
    """`size` questions, a share of them with two steps, each text once, the least asked facts first (`uses` counts)."""
    queues = {1: [], 2: []}
    for q in questions:
        queues[q["steps"]].append(q)
    picked = []
    for steps, wanted in ((2, round(share_two * size)), (1, size)):
        by_fact = defaultdict(list)
        for i in rng.permutation(len(queues[steps])):
            if queues[steps][i]["question"] not in taken:
                by_fact[queues[steps][i]["fact"]].append(queues[steps][i])
        heap = [(uses[fact], rng.random(), fact) for fact in sorted(by_fact)]
        heapq.heapify(heap)
        while heap and len(picked) < (wanted if steps == 2 else size):
            count, _, fact = heapq.heappop(heap)
            q = by_fact[fact].pop()
            if q["question"] in taken:
                continue
            picked.append(q)
            taken.add(q["question"])
            uses[fact] += 1
            if by_fact[fact]:
                heapq.heappush(heap, (count + 1, rng.random(), fact))
    return picked


def _with_options(pick, size: int, n_options, near, spare: dict, rng) -> list[tuple[dict, list[str]]]:
    """`size` questions with their wrong options. `pick(count)` supplies questions; the ones that would break the balance
    are exchanged for others, and what is still short in the end takes any value of its relation (tiny splits)."""
    groups, done = defaultdict(list), {}

    def add(items):
        for item in items:
            n = int(rng.integers(2, 6)) if n_options == "mix" else n_options
            groups[item["pool"], n].append(item)
            done.pop((item["pool"], n), None)

    add(pick(size))
    for _ in range(12):
        for key in groups.keys() - done.keys():
            done[key] = None
        for key in sorted(key for key, value in done.items() if value is None):
            done[key] = _fill(groups[key], key[1], near, rng)
        n_bad = sum(len(bad) for _, bad in done.values())
        fresh = pick(n_bad) if n_bad else []
        if not fresh:
            break
        spared = len(fresh)
        for key in sorted(groups):
            bad = sorted(done[key][1])[:spared]
            spared -= len(bad)
            if bad:
                groups[key] = [item for i, item in enumerate(groups[key]) if i not in bad]
                done.pop(key)
        add(fresh)
    filled = []
    for pool, n in sorted(groups):
        picks, _ = done.get((pool, n)) or _fill(groups[pool, n], n, near, rng)
        for item, values in zip(groups[pool, n], picks):
            others = [v for v in _allowed(item, spare[pool], near) if v not in values]
            more = [others[i] for i in rng.permutation(len(others))[:n - 1 - len(values)]]
            filled.append((item, sorted(values) + more))
    return filled


def _everyday(sizes, rng, rationale_only, label_seen, unseen_concepts, two_step, n_options, relations, mentions):
    """See `generate`. Returns split -> [(question dict, wrong options, support (fact, sentence) or None)]."""
    world = knowledge()
    facts, near = facts_of(world), _near(world)
    asked = [key for key in facts if relations is None or key[1] in relations]
    spare = defaultdict(list)
    for concept, relation in asked:
        spare[relation] += [facts[concept, relation][0]]
        spare[f"which {relation}"] += [_plain(concept)]
    spare = {pool: sorted(set(values)) for pool, values in spare.items()}
    concepts = sorted({concept for concept, _ in asked})
    most = 5 if n_options == "mix" else n_options
    ask = lambda keys, side: [q for q in _questions(world, facts, keys, side)
                              if len(_allowed(q, spare[q["pool"]], near)) >= most - 1]
    unseen = {concepts[i] for i in rng.permutation(len(concepts))[:round(unseen_concepts * len(concepts))]}
    # What each fact is for: asked in training ("label"), or held out: for validation, for test and stated in training
    # rationales ("rationale"), for test and never stated ("none").
    known = [key for key in asked if key[0] not in unseen]
    known = [known[i] for i in rng.permutation(len(known))]
    n_held = max(0, round(len(asked) * 0.45) - (len(asked) - len(known)))
    held = [key for key in asked if key[0] in unseen] + known[:n_held]
    held = [held[i] for i in rng.permutation(len(held))]
    n_val = round(len(held) * 0.2)
    rest = max(1e-9, 1 - label_seen)
    n_rat = round((len(held) - n_val) * min(1, rationale_only / rest))
    val, stated, none = held[:n_val], held[n_val:n_val + n_rat], held[n_val + n_rat:]
    label, silent = known[n_held:], set(val) | set(none)
    taken, out = set(), {}

    def picker(parts):
        """Draw questions in fixed shares: parts are (share, questions); what one cannot give, the next ones do."""
        uses, used = Counter(), [0] * len(parts)

        def pick(count):
            total, found = sum(used) + count, []
            for i, (share, questions) in enumerate(parts):
                want = max(0, min(count - len(found), round(total * share) - used[i]))
                if i == len(parts) - 1:
                    want = count - len(found)
                new = _choose(questions, want, two_step, taken, rng, uses)
                used[i] += len(new)
                found += new
            for i, (_, questions) in enumerate(parts):
                new = _choose(questions, count - len(found), two_step, taken, rng, uses)
                used[i] += len(new)
                found += new
            return found
        return pick

    fair = [q for q in ask(label, "train") if not {fact for fact, _ in q["said"]} & silent]
    lab_val = picker([(label_seen, fair), (1, ask(val, "train"))])
    out["validation"] = _with_options(lab_val, sizes["validation"], n_options, near, spare, rng)
    out["train"] = _with_options(picker([(1, fair)]), sizes["train"], n_options, near, spare, rng)
    supports = _supports(world, facts, out["train"], stated, label, mentions, rng)
    done, told = {item["fact"] for item, _ in out["train"]}, {support[0] for support in supports if support}
    parts = [(rationale_only, ask([key for key in stated if key in told], "test")),
             (label_seen, ask([key for key in label if key in done], "test")),
             (1, ask(none, "test"))]
    out["test"] = _with_options(picker(parts), sizes["test"], n_options, near, spare, rng)
    result = {split: [(item, wrong, None) for item, wrong in rows] for split, rows in out.items()}
    result["train"] = [(item, wrong, support) for (item, wrong), support in zip(out["train"], supports)]
    for split in ("validation", "test"):
        extra = _supports(world, facts, out[split], [], list(facts), 0, rng)
        result[split] = [(item, wrong, support) for (item, wrong), support in zip(out[split], extra)]
    return result


def _supports(world, facts, rows, stated, allowed, mentions, rng):
    """One more fact for each one-step rationale, said before the fact asked. First the facts of `stated`, so that each
    stands in up to `mentions` rationales: about the same concept, or about a wrong option ("A pencil is made of wood. A
    knife is made of steel."). Then any fact of `allowed` about the same concept. A two-step rationale has its own."""
    open_, supports = set(range(len(rows))), [None] * len(rows)
    by_concept, by_wrong = defaultdict(list), defaultdict(list)
    for i, (item, wrong) in enumerate(rows):
        by_concept[item["fact"][0]].append(i)
        for value in wrong:
            by_wrong[item["pool"], value].append(i)

    def sentence(key):
        concept, relation = key
        via = world["relations"][relation].get("via")
        if via is None:
            return state(world, relation, concept, facts[key][0])
        middle = facts[concept, via][0]
        first = state(world, via, concept, middle)
        return f"{first} {state(world, relation, concept, facts[key][0], middle)}"

    for _ in range(mentions):
        for i in rng.permutation(len(stated)):
            key = stated[i]
            places = [j for j in by_concept[key[0]] if j in open_ and rows[j][0]["fact"] != key]
            places += [j for j in by_wrong[key[1], facts[key][0]] if j in open_]
            places += [j for j in by_wrong[f"which {key[1]}", _plain(key[0])] if j in open_]
            places = [j for j in places if key not in dict(rows[j][0]["said"])]
            one = [j for j in places if rows[j][0]["steps"] == 1]
            if not one and "via" not in world["relations"][key[1]]:   # a long rationale only where there is no short one
                one = places
            if one:
                j = one[rng.integers(len(one))]
                supports[j] = (key, sentence(key))
                open_.discard(j)
    own = defaultdict(list)
    for key in allowed:
        if "via" not in world["relations"][key[1]]:
            own[key[0]].append(key)
    for j in sorted(open_):
        item = rows[j][0]
        if item["steps"] == 1:
            keys = [key for key in own[item["fact"][0]] if key not in dict(item["said"])]
            if keys:
                key = keys[rng.integers(len(keys))]
                supports[j] = (key, sentence(key))
    return supports


# --------------------------------------------------------------------------------------------------- relations

def _paths(world) -> list[dict]:
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
    """Both forms on each chain. direction: options are the two words of the last quantity. comparison: two people, of
    whom the first named has more (or less) of the first quantity; either may be asked for."""
    found, names = [], NAMES[side]
    for path in paths:
        (c, more, less), (e, more2, less2) = path["nodes"][0], path["nodes"][-1]
        if stems(f"{c} {more} {less}") & stems(f"{e} {more2} {less2}"):
            continue
        for sign in (1, -1):
            signs = np.cumprod([sign, *path["signs"]])
            said = [(node[0], node[1] if s > 0 else node[2]) for node, s in zip(path["nodes"], signs)]
            links = [(fact, f"{_upper(w)} {a}, {w2} {b}.") for fact, (a, w), (b, w2) in zip(path["links"], said, said[1:])]
            base = dict(steps=len(links), fact=path["fact"], relation=f"{c} to {e}", keys=[w for _, w in said])
            word, right = said[0][1], said[-1][1]
            wrong = less2 if right == more2 else more2
            for template in DIRECTION[side]:
                found.append(base | dict(question=template.format(c=c, e=e, w=word), answer=right, wrong=wrong,
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
    """`size` questions in which each option is right as often as wrong, the first-named person too, and the three lengths
    and two forms are as even as they can be. Greedy: a question that tips a balance waits for its counterpart."""
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
                    keys = [("text", q["answer"]), ("text", q["wrong"])] + [("cell", q["form"], c) for c in q["cells"]]
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


def _relations(sizes, rng, rationale_only, label_seen, unseen_concepts):
    """See `generate`. A fact is a chain (theme, start, stop); "rationale" means all its links are stated in training but
    the chain is never asked there, "none" that it belongs to a theme that training does not know."""
    world = knowledge()
    paths = _paths(world)
    themes = [int(t) for t in rng.permutation(len(world["quantities"]))]
    unseen = set(themes[:round(unseen_concepts * len(themes))])
    known = [path for path in paths if path["fact"][0] not in unseen]
    known = [known[i] for i in rng.permutation(len(known))]
    n_held = round(len(known) * rationale_only / max(1e-9, rationale_only + label_seen))
    held, label, none = known[:n_held], known[n_held:], [path for path in paths if path["fact"][0] in unseen]
    taken, out = set(), {}
    shares = dict(zip(("held", "label", "none"), (rationale_only, label_seen, 1 - rationale_only - label_seen)))

    def mixed(size, side, parts):
        rows, total = [], sum(share for share, _ in parts) or 1
        for i, (share, part) in enumerate(parts):
            want = size - len(rows) if i == len(parts) - 1 else round(size * share / total)
            rows += _even(_relation_questions(part, side, rng), want, taken, rng)
        return rows

    out["validation"] = mixed(sizes["validation"], "train", [(shares["held"], held), (shares["label"], label)])
    out["train"] = mixed(sizes["train"], "train", [(1, label)])
    out["test"] = mixed(sizes["test"], "test", [(shares["held"], held), (shares["none"], none), (shares["label"], label)])
    return {split: [(item, [item["wrong"]], None) for item in rows] for split, rows in out.items()}


# -------------------------------------------------------------------------------------------------------- both

def generate(part: str = "everyday", n_train: int = 2000, n_validation: int = 200, n_test: int = 500, seed: int = 0,
             rationale_only: float = 0.3, label_seen: float = 0.35, unseen_concepts: float = 0.15, two_step: float = 0.4,
             n_options: int | str = 4, relations: list[str] | None = None, mentions: int = 3) -> dict:
    """Make the dataset. The same arguments give the same questions; a size given to `train` is a part of the design
    (which facts training states), so ask for the size you train on rather than cutting a larger one.

    part             "everyday" or "relations"
    rationale_only   share of test questions whose fact stands in training rationales only, never behind a label
    label_seen       share of test questions whose fact is asked in training (with other words); the rest is never stated
    unseen_concepts  share of concepts (everyday) or themes (relations) that no training question is about
    two_step         everyday: share of questions that need two facts
    n_options        everyday: 2 to 5, or "mix". relations always has two
    relations        everyday: the relations asked about, None for all of microworld.yaml
    mentions         everyday: how many training rationales state each rationale-only fact, as far as they have room

    Returns {"train", "validation", "test": lists of Example, "rationales": id -> Rationale (gold, all splits, key_spans
    known), "meta": id -> {steps, relation, fact, unseen_concept, unseen_template, fact_in, states}}; `fact_in` is where
    training has the fact of the question: "label", "rationale" or "none"; `states` the facts its rationale states.
    Raises DataError for an unknown part, an impossible setting, or a size above what the knowledge base can give."""
    if part not in ("everyday", "relations"):
        raise DataError(f"microworld part '{part}'; expected everyday or relations")
    for name, value in dict(rationale_only=rationale_only, label_seen=label_seen, unseen_concepts=unseen_concepts,
                            two_step=two_step).items():
        if not 0 <= value <= 1:
            raise DataError(f"microworld {name} is {value}; expected a share from 0 to 1")
    if rationale_only + label_seen > 1:
        raise DataError(f"microworld rationale_only + label_seen is {rationale_only + label_seen:g}; expected at most 1")
    if n_options not in (2, 3, 4, 5, "mix"):
        raise DataError(f"microworld n_options is {n_options!r}; expected 2, 3, 4, 5 or mix")
    unknown = set(relations or ()) - set(knowledge()["relations"])
    if unknown:
        raise DataError(f"microworld relations {sorted(unknown)}; expected some of {sorted(knowledge()['relations'])}")
    sizes, rng = dict(zip(SPLITS, (n_train, n_validation, n_test))), np.random.default_rng([seed, part == "relations"])
    if part == "everyday":
        rows = _everyday(sizes, rng, rationale_only, label_seen, unseen_concepts, two_step, n_options, relations, mentions)
    else:
        rows = _relations(sizes, rng, rationale_only, label_seen, unseen_concepts)
    for split, size in sizes.items():
        if len(rows[split]) < size:
            raise DataError(f"microworld/{part}: n_{split} is {size}; with these settings the knowledge base gives at "
                            f"most {len(rows[split])}")
    asked = {item["fact"] for item, _, _ in rows["train"]}
    subjects = {fact[0] for fact in asked}
    stated = {fact for item, _, support in rows["train"] for fact, _ in item["said"] + ([support] if support else [])}
    data = {"rationales": {}, "meta": {}}
    for split in SPLITS:
        data[split] = []
        order = rng.permutation(len(rows[split]))
        spots = _spots([len(rows[split][i][1]) + 1 for i in order], rng)
        for number, (i, spot) in enumerate(zip(order, spots)):
            item, wrong, support = rows[split][i]
            id = f"{part}-{split}-{number:05d}"
            options = [wrong[x] for x in rng.permutation(len(wrong))]
            options.insert(spot, item["answer"])
            example = Example(id, item["question"], tuple(options), spot)
            lead = [support] if support else []
            text = " ".join(sentence for _, sentence in lead + item["said"])
            start = len(lead[0][1]) + 1 if lead else 0
            data[split].append(example)
            data["rationales"][id] = Rationale(id, text, spot, _spans(text, item["keys"], start))
            needs = _links(item["fact"]) if part == "relations" else [item["fact"]]
            data["meta"][id] = {
                "steps": item["steps"], "relation": item["relation"], "fact": item["fact"],
                "unseen_concept": item["fact"][0] not in subjects, "unseen_template": split == "test",
                "fact_in": "label" if item["fact"] in asked else "rationale" if stated.issuperset(needs) else "none",
                "states": [fact for fact, _ in lead + item["said"] if fact]}
    return data


def _links(chain: tuple) -> list[tuple]:
    theme, start, stop = chain
    return [(theme, i, i + 1) for i in range(start, stop)]


def _spots(sizes: list[int], rng) -> list[int]:
    """The place of the right option of each question: every place equally often among questions of one size."""
    spots = [0] * len(sizes)
    for n in set(sizes):
        group = [i for i, size in enumerate(sizes) if size == n]
        for i, spot in zip(group, rng.permutation(np.arange(len(group)) % n)):
            spots[i] = int(spot)
    return spots
