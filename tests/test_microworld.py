"""Test microworld: counts, balance, no shortcut, gold spans, determinism, strict logic."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from cotdistill.errors import DataError
from cotdistill.evaluate import most_mentioned
from cotdistill.examples import question_key
from cotdistill.files import fingerprint
from cotdistill.microworld.generate import draw_donors, generate
from cotdistill.microworld.knowledge import (
    INVENTED,
    SPLITS,
    WORLDS,
    facts_of,
    invent_knowledge,
    knowledge,
    list_texts,
    state,
    stems,
)
from cotdistill.microworld.options import group_alike
from cotdistill.microworld.relations import COMPARE, DIRECTION
from cotdistill.microworld.strata import STRATA

BIG = dict(n_train=2000, n_validation=200, n_test=1000)
SIZES = {
    "everyday": BIG,
    "relations": BIG,
    "invented": dict(n_train=240, n_validation=32, n_test=200),
}


@pytest.fixture(scope="module", params=["everyday", "relations"])
def world(request):
    return request.param, generate(request.param, **BIG)


@pytest.fixture(scope="module", params=SIZES)
def any_world(request):
    return request.param, generate(request.param, **SIZES[request.param])


def knowledge_of(part, seed):
    """The knowledge base that `generate` asks about."""
    real = knowledge()
    return (
        real
        if part == "everyday"
        else invent_knowledge(real, np.random.default_rng([seed, WORLDS.index(part)]))
    )


@pytest.fixture(scope="module")
def everyday():
    return generate("everyday", n_train=400, n_validation=100, n_test=300, seed=3)


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


def overlap(example):
    """Three overlap counts of each option with its question.

    Words, five-letter stems, characters of 4-grams.
    """
    grams = lambda t: {t[i : i + 4] for i in range(len(t) - 3)}
    cut = lambda ws: {w[:5] for w in ws}
    q = example.question.lower()
    return np.array(
        [
            [len(words(q) & words(c)), len(cut(words(q)) & cut(words(c))), len(grams(q) & grams(c))]
            for c in map(str.lower, example.choices)
        ],
        float,
    )


def ngram_accuracy(train, test):
    """An independent shortcut.

    Logistic regression on word 1- and 2-grams of "question option" and of the option, overlap
    counts and the option's length and place; the option with the highest score is the answer.
    """
    text = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    alone = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    pairs = lambda es: [(f"{e.question} {c}", c) for e in es for c in e.choices]
    shape = lambda e: np.array([[len(c), i] for i, c in enumerate(e.choices)])
    extra = lambda es: csr_matrix(np.vstack([np.hstack([overlap(e), shape(e)]) for e in es]))
    both, options = zip(*pairs(train), strict=True)
    x = hstack([text.fit_transform(both), alone.fit_transform(options), extra(train)]).tocsr()
    y = np.concatenate([np.arange(len(e.choices)) == e.answer for e in train])
    model = LogisticRegression(C=1.0, max_iter=300).fit(x, y)
    both, options = zip(*pairs(test), strict=True)
    x = hstack([text.transform(both), alone.transform(options), extra(test)]).tocsr()
    scores = model.decision_function(x)
    ends = np.cumsum([len(e.choices) for e in test])[:-1]
    parts = zip(np.split(scores, ends), test, strict=True)
    return np.mean([int(np.argmax(s)) == e.answer for s, e in parts])


def chance(examples):
    return np.mean([1 / len(e.choices) for e in examples])


def test_no_ngram_shortcut(world):
    part, data = world
    accuracy = ngram_accuracy(data["train"], data["test"])
    print(part, "n-gram", accuracy)
    assert abs(accuracy - chance(data["test"])) < 0.05


def test_no_overlap_shortcut(world):
    """Most overlap first, and least overlap first; ties are shared."""
    _, data = world
    for sign in (1, -1):
        for column in range(3):
            hits = []
            for e in data["test"]:
                s = sign * overlap(e)[:, column]
                best = np.flatnonzero(s == s.max())
                hits.append((e.answer in best) / len(best))
            assert abs(np.mean(hits) - chance(data["test"])) < 0.05


@pytest.mark.parametrize("split", ["train", "test"])
def test_option_is_right_one_time_in_n(any_world, split):
    """P(right | option text) is 1/n, for every option that is offered often enough to tell."""
    _, data = any_world
    offered, right, even = Counter(), Counter(), Counter()
    for e in data[split]:
        for i, c in enumerate(e.choices):
            offered[c] += 1
            right[c] += i == e.answer
            even[c] += 1 / len(e.choices)
    off = sum(abs(right[c] - even[c]) for c in offered)
    # Per question; a random draw of the same size gives far more
    assert off / len(data[split]) < 0.05


def test_sizes_places_and_duplicates(any_world):
    part, data = any_world
    every = data["train"] + data["validation"] + data["test"]
    assert [len(data[s]) for s in SPLITS] == list(SIZES[part].values())
    assert len({e.id for e in every}) == len(every) == len({question_key(e) for e in every})
    for split in SPLITS:
        places = Counter(e.answer for e in data[split])
        assert max(places.values()) - min(places.values()) <= 1
        for e in data[split]:
            assert (
                len({c.lower() for c in e.choices})
                == len(e.choices)
                == (2 if part == "relations" else 4)
            )
    assert np.mean([len(e.question.split()) for e in every]) <= 12
    assert max(len(e.question.split()) for e in every) <= 18
    lengths = [len(data["rationales"][e.id].text.split()) for e in every]
    assert 8 <= np.mean(lengths) <= 22


def test_gold_rationales(any_world):
    """Every question has one; its spans are words in order, one of them the answer."""
    _, data = any_world
    for e in data["train"] + data["validation"] + data["test"]:
        r = data["rationales"][e.id]
        assert r.id == e.id and r.answer == e.answer and r.key_spans
        assert all(0 <= a < b <= len(r.text) for a, b in r.key_spans)
        assert all(b <= c for (_, b), (c, _) in zip(r.key_spans[:-1], r.key_spans[1:], strict=True))
        assert e.label.lower() in {r.text[a:b].lower() for a, b in r.key_spans}
        for a, b in r.key_spans:
            assert not (r.text[a - 1 : a] + r.text[a]).isalpha() or a == 0
            assert not r.text[b : b + 1].isalnum()


def test_test_templates_are_unseen():
    rows = knowledge()["relations"].values()
    train = {t for row in rows for key in ("train", "inverse_train") for t in row.get(key, [])}
    test = {t for row in rows for key in ("test", "inverse_test") for t in row.get(key, [])}
    train |= {t for forms in (COMPARE, DIRECTION) for t in forms["train"]}
    test |= {t for forms in (COMPARE, DIRECTION) for t in forms["test"]}
    assert not train & test
    for template in train | test:  # no option can be told by the word before it
        assert not template.rstrip("?.").endswith("}") or "{w2}" in template or "{e}" in template


def test_deterministic_and_seeded(everyday):
    again = generate("everyday", n_train=400, n_validation=100, n_test=300, seed=3)
    assert again == everyday
    other = generate("everyday", n_train=400, n_validation=100, n_test=300, seed=4)
    assert {question_key(e) for e in other["test"]} != {question_key(e) for e in everyday["test"]}


@pytest.mark.parametrize(
    "part, n_train, n_test, share",
    [
        ("everyday", 400, 200, 0.0),
        ("everyday", 400, 200, 0.3),
        ("everyday", 400, 200, 0.6),
        ("invented", 240, 100, 0.3),
        ("invented", 240, 150, 0.5),
    ],
)
def test_rationale_only_dial(part, n_train, n_test, share):
    """Brute force over the texts.

    Of a question that counts as "rationale" or "label" every fact is stated word for word in a
    training rationale, of one that counts as "none" one is not, and only "label" facts are asked
    about in training questions.
    """
    data = generate(
        part,
        n_train=n_train,
        n_validation=32,
        n_test=n_test,
        seed=1,
        rationale_only=share,
        label_seen=0.3,
    )
    world = knowledge_of(part, 1)
    facts, meta = facts_of(world), data["meta"]
    where = Counter(meta[e.id]["fact_in"] for e in data["test"])
    assert (
        abs(where["rationale"] / n_test - share) < 0.03
        and abs(where["label"] / n_test - 0.3) < 0.03
    )
    assert abs(np.mean([meta[e.id]["steps"] == 2 for e in data["test"]]) - 0.4) < 0.1
    texts = [data["rationales"][e.id].text.lower() for e in data["train"]]
    asked = {meta[e.id]["fact"] for e in data["train"]}
    for e in data["test"]:
        m = meta[e.id]
        concept, relation = m["fact"]
        value, told = facts[m["fact"]][0], []
        for thing, about in m["needs"]:
            via = world["relations"][about].get("via")
            sentence = state(
                world, about, thing, facts[thing, about][0], facts[thing, via][0] if via else ""
            )
            told.append(any(sentence.lower() in text for text in texts))
        assert len(told) == m["steps"] and all(told) == (m["fact_in"] != "none"), (e, m)
        assert (m["fact"] in asked) == (m["fact_in"] == "label")
        # Nor is it told by a label about what follows from it, or what it follows from
        if m["fact_in"] == "rationale":
            assert not [
                f
                for f in asked
                if f[0] == concept and relation in (f[1], world["relations"][f[1]].get("via"))
            ]
            assert (concept, world["relations"][relation].get("via")) not in asked
        name = re.sub("^an? ", "", concept)
        for t in data["train"]:
            if m["unseen_concept"]:
                assert meta[t.id]["fact"][0] != concept
            if m["fact_in"] != "label" and meta[t.id]["relation"] == relation and t.label == value:
                assert not re.search(rf"\b(a|an) {name}\b", t.question.lower()), (e, t)


@pytest.mark.parametrize(
    "part, sizes",
    [
        ("everyday", dict(n_train=160, n_test=160, n_validation=32, seed=7)),
        ("everyday", BIG),
        ("invented", SIZES["invented"] | dict(seed=3)),
    ],
)
def test_a_like_option_hardly_gives_the_answer_away(part, sizes):
    """The right option is close to no other one.

    A solver that drops every option with a close one beside it, and guesses among the rest, stays
    near chance.
    """
    data, near = generate(part, **sizes), group_alike(knowledge())
    for split in ("train", "test"):
        hits = []
        for e in data[split]:
            alone = [
                i for i, c in enumerate(e.choices) if not (near[c] - {c}) & set(e.choices)
            ] or list(range(len(e.choices)))
            hits.append((e.answer in alone) / len(alone))
        print(split, np.mean(hits))
        assert chance(data[split]) <= np.mean(hits) < chance(data[split]) + 0.05


def test_an_invented_world_is_one_of_its_own():
    """Its names are no words of the knowledge base.

    Its values are that of real things, but those of one thing come from many: two facts of a real
    thing meet again in one made-up thing about as often as chance has it, over many worlds.
    """
    real = knowledge()
    told = words(" ".join(list_texts(real)))
    owner = {
        (relation, tuple(values)): thing
        for thing, row in real["concepts"].items()
        for relation, values in row.items()
        if relation in ("use", "does")
    }
    kinds = {thing: row.get("kind") for thing, row in real["concepts"].items()}
    together, by_chance = [], []
    for seed in range(200):
        world = invent_knowledge(real, np.random.default_rng(seed))
        assert (
            len(world["concepts"]) == INVENTED
            and not {name[2:] for name in world["concepts"]} & told
        )
        assert all(name.startswith("a ") and row for name, row in world["concepts"].items())
        for relation in real["relations"]:
            dealt = Counter(
                tuple(row[relation]) for row in world["concepts"].values() if relation in row
            )
            assert not dealt - Counter(
                tuple(row[relation]) for row in real["concepts"].values() if relation in row
            )
        every = [row["kind"] for row in world["concepts"].values() if "kind" in row]
        for row in world["concepts"].values():
            thing = next((owner[r, tuple(row[r])] for r in ("use", "does") if r in row), None)
            if thing and kinds[thing] and "kind" in row:
                together.append(row["kind"] == kinds[thing])
                by_chance.append(np.mean([kind == kinds[thing] for kind in every]))
    assert (
        abs(np.mean(together) - np.mean(by_chance))
        < 4 * np.std(together) / len(together) ** 0.5
        < 0.03
    )
    assert {*knowledge_of("invented", 0)["concepts"]} != {*knowledge_of("invented", 1)["concepts"]}
    assert generate("invented", **SIZES["invented"]) == generate("invented", **SIZES["invented"])


def test_nothing_is_known_of_an_invented_world_beforehand():
    """No shortcut in words, over several worlds together (one alone has too few questions to tell):
    neither an n-gram model of the training questions, on facts that they don't ask, nor the real
    world's knowledge of what things are like (two values of one real thing).
    """
    real = knowledge()
    pairs = {
        frozenset(two)
        for row in real["concepts"].values()
        for values in [sum(row.values(), [])]
        for two in product(values, values)
    }
    hits, known, even = [], [], []
    for seed in range(8):
        data = generate("invented", **SIZES["invented"], seed=seed)
        unseen = [e for e in data["test"] if data["meta"][e.id]["fact_in"] != "label"]
        facts = facts_of(knowledge_of("invented", seed))
        hits.append(ngram_accuracy(data["train"], unseen))
        even.append(chance(unseen))
        for e in unseen:
            thing, relation = data["meta"][e.id]["fact"]
            others = [
                value
                for (name, about), values in facts.items()
                if name == thing and about not in (relation, *real["links"])
                for value in values
            ]
            like = np.array(
                [
                    sum(frozenset((value, choice)) in pairs for value in others)
                    for choice in e.choices
                ]
            )
            if relation in real["links"] or e.label == thing[2:] or not like.any():
                # Links from value to value are the real world's; a made-up name is like nothing
                continue
            best = np.flatnonzero(like == like.max())
            known.append((e.answer in best) / len(best))
    print("n-gram", np.mean(hits), "known", np.mean(known), len(known))
    assert (
        abs(np.mean(hits) - np.mean(even)) < 0.04
        and len(known) > 150
        and abs(np.mean(known) - 0.25) < 0.08
    )


def test_a_rationale_states_nothing_twice(everyday):
    for question_id, meta in everyday["meta"].items():
        sentences = [
            sentence.strip()
            for sentence in re.findall(r"[^.]+\.", everyday["rationales"][question_id].text)
        ]
        assert len(set(sentences)) == len(sentences) == len(set(map(tuple, meta["states"])))


def test_validation_asks_other_chains_than_test(world):
    part, data = world
    asked = {split: {data["meta"][e.id]["fact"] for e in data[split]} for split in SPLITS}
    assert not (asked["validation"] & asked["test"]) - asked["train"]


def test_wrong_options_are_wrong(everyday):
    """No wrong option is another true value of the concept asked, by the knowledge base itself."""
    facts = facts_of(knowledge())
    for split in SPLITS:
        for e in everyday[split]:
            fact = everyday["meta"][e.id]["fact"]
            assert (
                sum(c in facts[fact] or c == re.sub("^an? ", "", fact[0]) for c in e.choices) == 1
            )


def test_options_come_in_every_number():
    data = generate("everyday", n_train=300, n_validation=20, n_test=100, n_options="mix")
    assert {len(e.choices) for e in data["train"]} == {2, 3, 4, 5}
    # A smoke study's sizes
    assert len(generate("everyday", n_train=12, n_validation=3, n_test=5)["test"]) == 5


def test_relations_follow_the_signs():
    """Solve every question from its words by walking the signed chain, and compare with the answer
    given.
    """
    data, solved = generate("relations", n_train=300, n_validation=50, n_test=300), 0
    themes = knowledge()["quantities"]
    for e in data["train"] + data["test"]:
        theme, start, stop = data["meta"][e.id]["fact"]
        nodes = themes[theme][start : stop + 1]
        text = e.question.lower()
        has = lambda phrase, text=text: bool(re.search(rf"\b{re.escape(phrase)}\b", text))
        sign = 1 if has(nodes[0][1]) else -1
        assert has(nodes[0][1]) != has(nodes[0][2]), e.question
        for node in nodes[:-1]:
            sign *= 1 if node[3] == "+" else -1
        right = nodes[-1][1] if sign > 0 else nodes[-1][2]
        if set(e.choices) == set(nodes[-1][1:3]):
            assert e.label == right
        else:
            first = min(e.choices, key=lambda name: text.index(name.lower()))
            second = max(e.choices, key=lambda name: text.index(name.lower()))
            owner = second if text.startswith("unlike") else first  # "Unlike B, A has the ..."
            assert e.label == (owner if has(right) else first if owner == second else second)
        solved += 1
    assert solved == 600


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(part="sports"), "expected one of everyday, relations, invented"),
        (dict(n_options=7), "expected 2, 3, 4, 5 or mix"),
        (dict(rationale_only=1.2), "from 0 to 1"),
        (dict(rationale_only=0.7, label_seen=0.7), "at most 1"),
        (dict(relations=["smell"]), "expected some of"),
        (dict(n_train=10**5), "at most"),
        (dict(part="relations", n_train=10**5), "at most"),
        (dict(part="invented", n_train=2000), "at most"),
    ],
)
def test_bad_settings_say_so(settings, words):
    with pytest.raises(DataError, match=words):
        generate(**{"n_validation": 5, "n_test": 5, **settings})


# ---------------------------------------- strata, and test questions drawn apart

STRATA_SEEDS = range(24)


@pytest.fixture(scope="module")
def strata_worlds():
    return {seed: generate("strata", seed=seed) for seed in STRATA_SEEDS}


def asked(data, split):
    """The questions of a split as texts, options and answers, in order."""
    return [(e.question, e.choices, e.answer) for e in data[split]]


def by_stratum(data):
    found = {}
    for e in data["test"]:
        found.setdefault(data["meta"][e.id]["fact_in"], []).append(e)
    return found


def test_questions_of_published_worlds_are_the_same():
    """Fingerprints from before `strata` and `n_core` came.

    Runs of published studies depend on them.
    """
    made = {
        ("everyday", 160, 32, 160, 7): "af2de8b57bb7828e",
        ("invented", 240, 32, 200, 1): "b5490bfa9589b63b",
        ("relations", 300, 50, 300, 0): "ad47e407e170376d",
        ("everyday", 48, 8, 40, 11): "a8f0a486b030ab87",
    }
    for (part, n_train, n_validation, n_test, seed), expected in made.items():
        data = generate(part, n_train, n_validation, n_test, seed)
        found = fingerprint(
            data["train"],
            data["validation"],
            data["test"],
            list(data["rationales"].values()),
            data["meta"],
        )
        assert found == expected, (part, seed)


def test_strata_are_what_they_say(strata_worlds):
    """By brute force over the texts: a fact is a concept and a value in one sentence."""
    for data in strata_worlds.values():
        meta, rationales, strata = data["meta"], data["rationales"], by_stratum(data)
        assert {stratum: len(rows) for stratum, rows in strata.items()} == dict.fromkeys(
            STRATA, 200
        )
        assert [len(data[split]) for split in SPLITS] == [240, 32, 600]
        sentences = Counter(
            s.strip() for e in data["train"] for s in re.findall(r"[^.]+\.", rationales[e.id].text)
        )
        own = Counter(
            re.findall(r"[^.]+\.", rationales[e.id].text)[-1].strip() for e in data["train"]
        )
        labels = {(meta[e.id]["fact"], e.label) for e in data["train"]}
        texts = [e.question.lower() for e in data["train"]]
        for stratum, rows in strata.items():
            for e in rows:
                fact = meta[e.id]["fact"]
                sentence = state(knowledge(), fact[1], fact[0], e.label)
                assert rationales[e.id].text.endswith(sentence)
                assert sentences[sentence] == {"rationale": 4, "none": 0}.get(
                    stratum, own[sentence]
                )
                assert (own[sentence] > 0) == (stratum == "label") == ((fact, e.label) in labels)
                if stratum != "label":  # not in a training question, in any words or direction
                    named = [
                        t for t, text in zip(data["train"], texts, strict=True) if fact[0] in text
                    ]
                    assert not [t for t in named if e.label in t.choices]
        train = {question_key(e) for e in data["train"] + data["validation"]}
        assert len(train) == 272 and not train & {question_key(e) for e in data["test"]}
        assert len({e.question for e in data["test"]}) == 600


def test_strata_are_balanced(strata_worlds):
    """Each place equally often, each value right once in four times that it is offered.

    The three strata ask the relations equally often, give or take a block, and their facts are
    clusters of two or three.
    """
    for data in strata_worlds.values():
        for rows in by_stratum(data).values():
            places = Counter(e.answer for e in rows)
            assert set(places.values()) == {50}
            offered = Counter(c for e in rows for c in e.choices)
            right = Counter(e.label for e in rows)
            assert all(offered[value] == 4 * right[value] for value in offered)
            about = Counter(data["meta"][e.id]["relation"] for e in rows)
            assert len(about) == 9 and max(about.values()) - min(about.values()) <= 10
            assert set(Counter(data["meta"][e.id]["fact"] for e in rows).values()) <= {2, 3}


def test_no_shortcut_in_strata(strata_worlds):
    """The option that training rationales mention most, or least, is right at chance in every
    stratum, for all options are mentioned equally often; so are single words.

    An n-gram model and any one place stay at chance over the worlds together.
    """
    grams, count = {stratum: [] for stratum in STRATA}, Counter()
    for data in (strata_worlds[seed] for seed in range(10)):
        texts = [data["rationales"][e.id].text for e in data["train"]]
        assert set(most_mentioned(data["test"], texts)) == {0.25}
        said = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
        content = lambda choice: [w for w in words(choice) if w[:5].rstrip("s") in stems(choice)]
        for stratum, rows in by_stratum(data).items():
            for e in rows:  # what each option's rarest word weighs: all the same
                count[
                    stratum,
                    len({min(said[w] for w in content(c)) for c in e.choices if content(c)}),
                ] += 1
        for stratum in ("rationale", "none"):
            rows = by_stratum(data)[stratum]
            grams[stratum].append(ngram_accuracy(data["train"], rows))
    assert {n for _, n in count} == {1}, count
    for stratum in ("rationale", "none"):
        clustered = (
            np.mean(grams[stratum]),
            np.std(grams[stratum], ddof=1) / len(grams[stratum]) ** 0.5,
        )
        print(stratum, "n-gram", clustered)
        assert abs(clustered[0] - 0.25) < 4 * np.sqrt(
            0.25 * 0.75 / (90 * 10)
        )  # 90 facts a stratum and world


def test_strata_sizes_change_no_other_split():
    base = generate("strata", seed=5)
    for changed, sizes in (
        ("test", dict(n_test=300)),
        ("train", dict(n_train=180)),
        ("validation", dict(n_validation=8)),
    ):
        other = generate("strata", seed=5, **sizes)
        for split in set(SPLITS) - {changed}:
            assert asked(other, split) == asked(base, split), (changed, split)
    assert generate("strata", seed=5) == base


def test_each_seed_has_a_world_of_its_own(strata_worlds):
    """No name, and so no fact, is in two worlds."""
    names = [
        name
        for data in strata_worlds.values()
        for name in {m["fact"][0] for m in data["meta"].values()}
    ]
    assert len(names) == len(set(names)) == 30 * len(strata_worlds)


@pytest.mark.parametrize(
    "part, settings",
    [
        ("strata", {}),
        ("strata", dict(n_train=360 - 32, mentions=6)),
        ("invented", dict(n_train=240, n_validation=32, n_test=100)),
    ],
)
def test_donors_state_no_fact_of_the_world(part, settings):
    data = generate(part, seed=3, **settings)
    donors = draw_donors(data, part, seed=3, **settings)
    assert set(donors) == {e.id for e in data["train"]} and all(
        question_id == r.id for question_id, r in donors.items()
    )
    names = {name for m in data["meta"].values() for name, _ in m["states"]}
    said = "\n".join(r.text for r in donors.values()).lower()
    assert not [name for name in names if re.search(rf"\b{name[2:]}\b", said)]
    own = np.array([len(data["rationales"][question_id].text) for question_id in donors])
    theirs = np.array([len(r.text) for r in donors.values()])
    assert np.mean(abs(own - theirs)) < 0.1 * np.mean(own)
    with pytest.raises(DataError, match="expected donors for invented or strata"):
        draw_donors(data, "everyday", seed=3)


@pytest.mark.parametrize(
    "settings",
    [
        dict(n_options="mix"),
        dict(n_options=2),
        dict(concepts=12, n_train=36, n_validation=4, n_test=40, mentions=2),
        dict(concepts=45, n_train=270),
        dict(mentions=6),
        dict(relations=["kind", "use", "does"], n_train=120, n_validation=0, n_test=240),
        dict(rationale_only=0.5, label_seen=0.5, n_test=400),
        dict(n_train=243),
    ],
)
def test_strata_in_other_settings(settings):
    data = generate("strata", **settings)
    n_options = settings.get("n_options", 4)
    assert {len(e.choices) for e in data["train"]} == (
        {2, 3, 4, 5} if n_options == "mix" else {n_options}
    )
    for split in SPLITS:
        assert all(len(set(e.choices)) == len(e.choices) for e in data[split])
    stated = Counter(fact for e in data["train"] for fact in data["meta"][e.id]["states"][:-1])
    assert set(stated.values()) == {settings.get("mentions", 4)}


@pytest.mark.parametrize("part, core, n_test", [("everyday", 160, 600), ("invented", 160, 150)])
def test_test_questions_drawn_apart(part, core, n_test):
    """With a core, no size changes the questions of another split, nor where training states a
    fact.
    """
    base = dict(n_train=core, n_validation=32, n_test=n_test, n_core=core)
    for seed in range(1 if part == "everyday" else 3):
        data = generate(part, seed=seed, **base)
        assert [len(data[split]) for split in SPLITS] == [core, 32, n_test]
        more = generate(part, seed=seed, **base | dict(n_train=core + 60))
        assert asked(more, "test") == asked(data, "test") and asked(more, "validation") == asked(
            data, "validation"
        )
        assert [more["meta"][e.id]["fact_in"] for e in data["test"]] == [
            data["meta"][e.id]["fact_in"] for e in data["test"]
        ]
        assert set(asked_texts(data)) <= set(asked_texts(more)) and len(more["train"]) == core + 60
        fewer = generate(part, seed=seed, **base | dict(n_test=50, n_validation=8))
        assert asked(fewer, "train") == asked(data, "train")
        where = Counter(data["meta"][e.id]["fact_in"] for e in data["test"])
        assert (
            abs(where["rationale"] / n_test - 0.3) < 0.03
            and abs(where["label"] / n_test - 0.35) < 0.03
        )


def asked_texts(data):
    return [e.question for e in data["train"]]


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(part="strata", concepts=31), "expected a multiple of 3, at least 12 for 4 options"),
        (dict(part="strata", concepts=300), "expected at most"),
        (dict(part="strata", n_train=48), "expected n_train from 90 .* and at most 360"),
        (dict(part="strata", n_test=900), "at most 270 of each stratum"),
        (dict(part="strata", mentions=50), "expected a number from 0 to [67], or a larger n_train"),
        (
            dict(part="strata", relations=["kind", "color", "use"]),
            "expected three or more of kind, use",
        ),
        (dict(part="everyday", n_core=160, n_train=100), "expected a number from 1 to n_train"),
        (dict(part="relations", n_core=16, n_train=100), "of everyday or invented"),
        (
            dict(part="everyday", n_core=160, n_train=160, n_test=5000),
            "n_core 160 .* gives at most 1190",
        ),
    ],
)
def test_bad_settings_of_strata_and_cores_say_so(settings, words):
    with pytest.raises(DataError, match=words):
        generate(**settings)
