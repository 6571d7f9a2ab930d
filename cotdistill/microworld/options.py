"""Choose wrong options, so that every value is right as often as its share of the options."""

from collections import Counter, defaultdict

from cotdistill.microworld.knowledge import shares_words


def group_alike(world: dict) -> dict[str, set[str]]:
    """Map each value to the values that are close to it, itself among them."""
    near = defaultdict(set)
    for group in world["alike"]:
        for value in group:
            near[value] |= set(group)
    return near


def allowed_values(q: dict, values, near: dict):
    """Yield the values that may be a wrong option.

    They are false, not close to a true one, and share no word with the question.
    """
    bad = set(q["true"]).union({q["answer"]}, *(near[v] for v in [*q["true"], q["answer"]]))
    return (v for v in values if v not in bad and not shares_words(q["question"], v))


def _balance_picks(allowed: list[list], quota: dict, k: int, rng) -> tuple[list[set], dict]:
    """Pick k different allowed values for each question so that value v is picked quota[v] times.

    A random greedy start is followed by augmenting paths (Berge 1957), so the picks are as many as
    the constraints permit. Returns the picks of each question (fewer than k where it cannot be) and
    what is left of the quota.
    """
    left, picks, sets = (
        Counter(quota),
        [set() for _ in allowed],
        [set(values) for values in allowed],
    )
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
        came, queue, end = {}, [], None  # value -> (question that takes it, value it gives up)
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


def _separate_alike(picks: list[set], allowed: list[list], near: dict) -> None:
    """Exchange wrong options between questions, in place, until no question has two close ones.

    Some may stay where no exchange is possible. The right option is close to none of the others
    (`allowed_values`): an option with a similar one beside it would be known to be wrong. An
    exchange keeps how often each value is offered.
    """
    sets = [set(values) for values in allowed]
    for i, mine in enumerate(picks):
        for v in sorted(mine):
            if not near[v] & (mine - {v}):
                continue
            for j, other in enumerate(picks):
                if j == i or v in other or v not in sets[j]:
                    continue
                swap = next(
                    (
                        w
                        for w in sorted(other - mine)
                        if w in sets[i]
                        and not near[w] & (mine - {v})
                        and not near[v] & (other - {w})
                    ),
                    None,
                )
                if swap is not None:
                    mine ^= {v, swap}
                    other ^= {v, swap}
                    break


def _pick_wrong_options(
    items: list[dict], size: int, near: dict, rng
) -> tuple[list[set], set[int]]:
    """Pick the wrong options of questions that share a pool, from the right answers of others.

    A value is offered wrongly size - 1 times for each time it is right. Returns the picks, and the
    places of questions that stand in the way of that.
    """
    quota = {
        v: count * (size - 1) for v, count in Counter(item["answer"] for item in items).items()
    }
    allowed = [list(allowed_values(item, quota, near)) for item in items]
    picks, left = _balance_picks(allowed, quota, size - 1, rng)
    _separate_alike(picks, allowed, near)
    bad = set()
    for i, values in enumerate(picks):
        if len(values) < size - 1:
            over = [j for j in range(len(items)) if left[items[j]["answer"]] > 0 and j not in bad]
            bad.add(i if not over else over[rng.integers(len(over))])
    return picks, bad


def add_wrong_options(pick, size: int, n_options, near: dict, spare: dict, rng) -> list[dict]:
    """Draw `size` questions and give each its wrong options, under the key "wrong".

    `pick(count)` supplies questions. Those that would break the balance are exchanged for others,
    twelve times at most. An option that is still missing in the end is any value of the relation
    (it happens in splits of a few questions).
    """
    groups, done = defaultdict(list), {}

    def add(items):
        for item in items:
            n = int(rng.integers(2, 6)) if n_options == "mix" else n_options
            groups[item["pool"], n].append(item)
            done.pop((item["pool"], n), None)
        for key in sorted(groups.keys() - done.keys()):
            done[key] = _pick_wrong_options(groups[key], key[1], near, rng)

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
        for item, values in zip(groups[pool, n], done[pool, n][0], strict=True):
            others = [v for v in allowed_values(item, spare[pool], near) if v not in values]
            # Values unlike the others come first
            more = sorted(
                (others[i] for i in rng.permutation(len(others))),
                key=lambda v: bool(near[v] & values),
            )
            rows.append(item | dict(wrong=sorted(values) + more[: n - 1 - len(values)]))
    return rows
