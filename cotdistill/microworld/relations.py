"""Ask strict chains of one to three steps about made-up names."""

from collections import Counter, defaultdict

import numpy as np

from cotdistill.microworld.knowledge import capitalise, knowledge, stems
from cotdistill.microworld.settings import WorldSettings

NAMES = {
    "train": ["Ana", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo"],
    "test": ["Ivy", "Jack", "Kate", "Leo", "Mia", "Noah"],
}
# Templates about two people; DIRECTION has those about one quantity
COMPARE = {
    "train": [
        "The {c} of {A} is {w} than that of {B}. Whose {e} is {w2}?",
        "{A} has the {w} {c}, not {B}. Who has the {w2} {e}?",
        "Unlike {B}, {A} has the {w} {c}. Who gets the {w2} {e}?",
    ],
    "test": [
        "{A} and {B} differ: {A} has the {w} {c}. Whose {e} is {w2}?",
        "It is {A}, not {B}, with the {w} {c}. Who sees the {w2} {e}?",
    ],
}
DIRECTION = {
    "train": [
        "The {c} gets {w}. What does the {e} get?",
        "If the {c} is {w}, how will the {e} be?",
        "What is the {e} like once the {c} is {w}?",
        "Make the {c} {w}. What about the {e}?",
    ],
    "test": [
        "Suppose the {c} becomes {w}. How does the {e} change?",
        "How is the {e} when the {c} turns {w}?",
        "Today the {c} is {w} than before. And the {e}?",
    ],
}


def _list_paths(world: dict) -> list[dict]:
    """List every chain of one to three links.

    Each is a dict of its quantities [(noun, more, less)], the signs of its links, its fact (theme,
    start, stop) and its links.
    """
    paths = []
    for t, theme in enumerate(world["quantities"]):
        for start in range(len(theme) - 1):
            for stop in range(start + 1, min(start + 4, len(theme))):
                nodes = theme[start : stop + 1]
                paths.append(
                    dict(
                        nodes=[tuple(node[:3]) for node in nodes],
                        signs=[1 if node[3] == "+" else -1 for node in nodes[:-1]],
                        fact=(t, start, stop),
                        links=_list_links((t, start, stop)),
                    )
                )
    return paths


def _ask_about_chains(paths: list[dict], side: str, rng) -> list[dict]:
    """Ask both forms of question about each chain.

    direction: the options are the two words of the last quantity. comparison: two people, of whom
    the first named has more (or less) of the first quantity; either may be asked for.
    """
    questions, names = [], NAMES[side]
    for path in paths:
        (c, more, less), (e, more2, less2) = path["nodes"][0], path["nodes"][-1]
        if stems(f"{c} {more} {less}") & stems(f"{e} {more2} {less2}"):
            continue
        for sign in (1, -1):
            signs = np.cumprod([sign, *path["signs"]])
            said = [
                (node[0], node[1] if s > 0 else node[2])
                for node, s in zip(path["nodes"], signs, strict=True)
            ]
            links = [
                (fact, f"{capitalise(w)} {a}, {w2} {b}.")
                for fact, (a, w), (b, w2) in zip(path["links"], said[:-1], said[1:], strict=True)
            ]
            base = dict(
                steps=len(links),
                fact=path["fact"],
                links=path["links"],
                relation=f"{c} to {e}",
                keys=[w for _, w in said],
            )
            word, right = said[0][1], said[-1][1]
            wrong = less2 if right == more2 else more2
            for template in DIRECTION[side]:
                questions.append(
                    base
                    | dict(
                        question=template.format(c=c, e=e, w=word),
                        answer=right,
                        wrong=wrong,
                        form="direction",
                        said=links,
                        cells=(right, wrong),
                    )
                )
            for template in COMPARE[side]:
                for ask in (right, wrong) * 3:  # three pairs of people each
                    a, b = (names[x] for x in rng.permutation(len(names))[:2])
                    who, other = (a, b) if ask == right else (b, a)
                    questions.append(
                        base
                        | dict(
                            question=template.format(c=c, e=e, w=word, w2=ask, A=a, B=b),
                            answer=who,
                            wrong=other,
                            form="comparison",
                            said=links + [(None, f"So {who} has the {ask} {e}.")],
                            keys=base["keys"] + [who, ask],
                            cells=(who == a, who != a),
                        )
                    )
    return [q | dict(question=capitalise(q["question"])) for q in questions]


def _balance_questions(questions: list[dict], size: int, taken: set, rng) -> list[dict]:
    """Choose `size` questions in which each option is right as often as wrong.

    The first-named person is too, and the three lengths and two forms are as even as they can be.
    Greedy: a question that tips a balance waits for its counterpart.
    """
    tilt, picked = Counter(), []
    waiting = defaultdict(list)
    for i in rng.permutation(len(questions)):
        waiting[questions[i]["form"], questions[i]["steps"]].append(questions[i])
    cells = sorted(waiting)

    def fits(q: dict, slack: float) -> bool:
        if q["question"] in taken:
            return False
        right, wrong, first, *_ = (tilt[key] for key in _balance_keys(q))
        return right <= slack and wrong >= -slack and first <= slack

    for slack in (0, 1, 2, 10**9):
        stuck = set()
        while len(picked) < size and len(stuck) < len(cells):
            for cell in cells:
                queue = waiting[cell]
                place = next((i for i, q in enumerate(queue) if fits(q, slack)), None)
                if place is None:
                    stuck.add(cell)
                    continue
                stuck.discard(cell)
                if len(picked) == size:
                    break
                picked.append(queue.pop(place))
                taken.add(picked[-1]["question"])
                for key, step in zip(_balance_keys(picked[-1]), (1, -1, 1, -1), strict=True):
                    tilt[key] += step
    return picked


def _balance_keys(q: dict) -> list[tuple]:
    """List what a question tips: its right and wrong text, and its right and wrong cell."""
    return [("text", q["answer"]), ("text", q["wrong"])] + [
        ("cell", q["form"], cell) for cell in q["cells"]
    ]


def make_relations(settings: WorldSettings, rng) -> dict:
    """Make the world of relations; see `generate`.

    A fact is a chain (theme, start, stop). "rationale" means that all its links are stated in
    training but the chain is never asked there, "none" that it belongs to a theme that training
    does not know. A fifth of the chains that are held out are asked in validation, and not in test.
    """
    world, sizes = knowledge(), settings.sizes
    rationale_only, label_seen = settings.rationale_only, settings.label_seen
    paths = _list_paths(world)
    themes = [int(t) for t in rng.permutation(len(world["quantities"]))]
    unseen = set(themes[: round(settings.unseen_concepts * len(themes))])
    known = [path for path in paths if path["fact"][0] not in unseen]
    known = [known[i] for i in rng.permutation(len(known))]
    n_held = round(len(known) * min(0.5, rationale_only / max(1e-9, rationale_only + label_seen)))
    n_check = round(0.2 * n_held)
    check, held, label, none = (
        known[:n_check],
        known[n_check:n_held],
        known[n_held:],
        [path for path in paths if path["fact"][0] in unseen],
    )
    taken, out = set(), {}
    rest = 1 - rationale_only - label_seen

    def mixed(size, side, parts):
        rows, total = [], sum(share for share, _ in parts) or 1
        for i, (share, part) in enumerate(parts):
            want = size - len(rows) if i == len(parts) - 1 else round(size * share / total)
            rows += _balance_questions(_ask_about_chains(part, side, rng), want, taken, rng)
        return rows

    out["validation"] = mixed(
        sizes["validation"], "train", [(rationale_only, check), (label_seen, label)]
    )
    out["train"] = mixed(sizes["train"], "train", [(1, label)])
    told = {link for q in out["train"] for link in q["links"]}
    asked = {q["fact"] for q in out["train"]}
    held = [path for path in held if told.issuperset(path["links"])]
    label = [path for path in label if path["fact"] in asked]
    out["test"] = mixed(
        sizes["test"], "test", [(rationale_only, held), (rest, none), (label_seen, label)]
    )
    return {
        split: [q | dict(wrong=[q["wrong"]], support=[]) for q in rows]
        for split, rows in out.items()
    }


def _list_links(chain: tuple) -> list[tuple]:
    """List the links of a chain, each as a chain of one link."""
    theme, start, stop = chain
    return [(theme, i, i + 1) for i in range(start, stop)]
