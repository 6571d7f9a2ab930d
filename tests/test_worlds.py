"""A world per seed: its questions, run keys, runs and predictions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from studies import make_spec, make_study

from cotdistill.arms import Arm
from cotdistill.elicit.stage import Elicitation
from cotdistill.encode import RATIONALE, training_length
from cotdistill.errors import DataError
from cotdistill.examples import Dataset, Example
from cotdistill.files import read_json
from cotdistill.lasting import EVERY, TAUGHT, estimate_gaps, read_answers
from cotdistill.microworld.generate import generate
from cotdistill.microworld.strata import STRATA as STRATA_NAMES
from cotdistill.microworld.worlds import world_seed
from cotdistill.parameters import all_values, check_demands, check_made_with, parameters_path
from cotdistill.paths import study_dir
from cotdistill.runs.continued import continue_students
from cotdistill.runs.grid import plan_rows, run_grid
from cotdistill.runs.one import encode_training, make_config, run_key
from cotdistill.runs.results import check_trained_with, load_predictions
from cotdistill.runs.word_frequency import add_word_frequency, predict_by_frequency
from cotdistill.sources import data_card
from cotdistill.study import Study, read_data

# Worlds of strata are drawn in no time; those of real things take seconds
STRATA = dict(n_train=36, n_test=30, concepts=12, mentions=2)
POST = Arm("post_cot")


def own_worlds(seeds=(0, 1), **changes) -> Study:
    spec = make_spec(
        data_seed=4,
        worlds=list(seeds),
        dataset="microworld/strata",
        microworld=STRATA,
    )
    return make_study(data=spec, seeds=list(seeds), worlds="per_seed", **changes)


def parameters(**changes) -> dict:
    return all_values({"study": "t", "dataset": "microworld/everyday"} | changes)


def key(study, arm, seed):
    return run_key(make_config(study, arm, seed))


@pytest.fixture
def worlds(store):
    return own_worlds()


def test_the_numbers_of_worlds_are_never_those_of_another_study():
    numbers = [world_seed(data_seed, seed) for data_seed in range(20) for seed in range(1000)]
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 10**6
    assert world_seed(2_146_000, 999) < 2**31


def test_each_seed_has_the_world_that_its_number_draws(worlds):
    own = generate("strata", n_validation=8, seed=world_seed(4, 1), **STRATA)
    bare = lambda questions: [replace(e, id=e.id.removeprefix("w1/")) for e in questions]
    assert bare(worlds.test_questions(1)) == own["test"]
    assert bare(worlds.validation_questions(1)) == own["validation"]
    assert {e.id for e in bare(worlds.train_questions(1))} == {e.id for e in own["train"]}
    assert worlds.data.rationales["w1/strata-train-00003"].text == (
        own["rationales"]["strata-train-00003"].text
    )
    assert all(e.id.startswith("w0/") for e in worlds.train_questions(0))
    assert len({e.id for e in worlds.test_questions()}) == len(worlds.test_questions()) == 60


def test_a_further_seed_changes_no_other_seed(worlds, store):
    more = own_worlds((2, 0, 1))
    for arm in (Arm("zero_shot"), Arm("label_only"), POST):
        assert [key(more, arm, seed) for seed in (0, 1)] == [
            key(worlds, arm, seed) for seed in (0, 1)
        ]
        assert len({key(more, arm, seed) for seed in (0, 1, 2)}) == 3


def test_shared_worlds_stay_as_they_were(store):
    study = make_study(seeds=[0, 1])
    assert not study.has_own_worlds and "worlds" not in study.setting.to_json()
    assert study.test_questions(0) is not None
    assert study.test_questions(0) == study.test_questions() == study.test_questions(1)
    assert {row["seed"] for row in plan_rows(study, [Arm("zero_shot")])} == {-1}
    assert study.data.donors == {}


def test_runs_of_each_world_are_answered_and_read_back(worlds, store, capsys):
    arms = [Arm("zero_shot"), Arm("label_only"), POST]
    worlds = worlds.replace(train=dict(select="best"))
    worlds.save()
    table = run_grid(worlds, arms, "train", say=lambda *a, **k: None)
    assert len(table) == 6 and (table["n"] == 30).all()
    assert sorted(table.loc[table["arm"] == "zero_shot", "seed"]) == [0, 1]
    rows = load_predictions("t", ["train"])
    assert (rows["world"] == rows["seed"]).all() and str(rows["world"].dtype) == "Int64"
    assert rows.groupby("seed")["id"].nunique().eq(30).all()
    assert all(
        name.startswith(f"w{seed}/") for name, seed in zip(rows["id"], rows["seed"], strict=True)
    )
    meta = worlds.data.meta[rows["id"].iloc[0]]
    assert rows["fact"].iloc[0] == ": ".join(meta["fact"])
    assert rows["stratum"].iloc[0] == meta["fact_in"]
    both = add_word_frequency(worlds, rows.assign(worlds="per_seed"))
    assert len(both) == len(rows) + 60 and both["worlds"].eq("per_seed").all()
    check_trained_with(worlds, plan_rows(worlds, arms), "shuffle")
    other = worlds.replace(test_size=4)
    with pytest.raises(DataError, match="made with other test than stage shuffle"):
        check_trained_with(other, plan_rows(other, arms), "shuffle")
    capsys.readouterr()
    config = make_config(worlds, Arm("zero_shot"), 1)
    assert config["seed"] == -1


def test_where_a_world_has_fewer_usable_questions_all_are_cut(store):
    study = own_worlds((0, 1, 2))
    texts = study.data.rationales
    lengths = [
        training_length(study.student, e, texts[e.id].text, "text") for e in study.data.train
    ]
    cut = study.replace(max_length=int(np.median(lengths)))
    kept, _ = cut.usable_questions()
    sizes = {seed: len(cut.data.in_world(kept, seed)) for seed in (0, 1, 2)}
    assert len(set(sizes.values())) > 1
    said = []
    cut.say_of_worlds(lambda line, **_: said.append(line))
    fewest = min(sizes.values())
    assert {len(cut.train_questions(seed)) for seed in (0, 1, 2)} == {fewest}
    assert f"{sum(sizes.values()) - 3 * fewest} are left out" in said[0]
    study.say_of_worlds(lambda line, **_: said.append(line))
    assert len(said) == 1
    with pytest.raises(DataError, match="train_size 36 is larger"):
        cut.replace(train_size=36).train_questions(min(sizes, key=sizes.get))


def test_the_card_counts_repeats_within_a_world():
    ask = lambda key: Example(key, "What is a cup used for?", ("tea", "rain"), 0)
    meta = {f"w{seed}/{name}": {"world": seed} for seed in (0, 1) for name in "ab"}
    apart = Dataset("d", [ask("w0/a")], [], [ask("w1/b")], {}, meta)
    assert data_card(apart).loc["test", "seen_in_train"] == 0
    twice = Dataset("d", [ask("w0/a")], [], [ask("w0/b"), ask("w1/b")], {}, meta)
    card = data_card(twice).loc["test"]
    assert card["seen_in_train"] == 1 and card["duplicates"] == 0


@pytest.mark.parametrize("dataset", ["microworld/everyday", "microworld/invented"])
def test_with_a_core_the_number_of_test_questions_changes_no_training(dataset, store):
    def config(n_test):
        world = dict(n_train=60, n_test=n_test, n_core=60)
        spec = make_spec(dataset=dataset, microworld=world, data_seed=3, worlds=[1])
        study = make_study(data=spec, seeds=[1], worlds="per_seed")
        assert len(study.test_questions(1)) == n_test
        return make_config(study, POST, 1)

    a, b = config(12), config(30)
    assert a["train"] == b["train"] and a["rationales"] == b["rationales"]
    assert a["test"] != b["test"]


def test_swapped_in_strata_reads_another_world(store):
    study = own_worlds()
    arm, student = Arm("post_cot", corruption="swapped"), study.student
    names = {seed: set() for seed in (0, 1)}
    for seed in (0, 1):
        for e in study.data.in_world(study.data.test, seed):
            names[seed].add(study.data.meta[e.id]["fact"][0].removeprefix("a "))
        passes, unchanged = encode_training(study, arm, seed, None, print)
        kinds = lambda e: [i for i, k in zip(e.ids, e.kinds, strict=True) if k == RATIONALE]
        text = " ".join(student.decode(kinds(e)) for e in passes[0])
        assert not any(f" {name} " in text for name in names[seed])
        assert unchanged["as_intact"] == 0
        own, _ = encode_training(study, POST, seed, None, print)
        assert all(any(name in student.decode(kinds(e)) for name in names[seed]) for e in own[0])
        config = make_config(study, arm, seed)
        assert "donors" in config and "donors" not in make_config(study, POST, seed)
        example = study.train_questions(seed)[0]
        assert study.target_text(example, arm, seed) in text
    assert not names[0] & names[1]


def test_counting_words_is_an_arm_of_its_own(worlds):
    rows = predict_by_frequency(worlds)
    assert set(rows["arm"]) == {"word_frequency"} and (rows["world"] == rows["seed"]).all()
    assert rows.groupby("seed").size().to_dict() == {0: 30, 1: 30}
    for seed in (0, 1):
        said = " ".join(
            worlds.data.rationales[e.id].text for e in worlds.data.in_world(worlds.data.train, seed)
        ).lower()
        for e in worlds.test_questions(seed)[:10]:
            times = [said.count(f" {option} ") + said.count(f" {option}.") for option in e.choices]
            best = [i for i, n in enumerate(times) if n == max(times)]
            row = rows[(rows["id"] == e.id) & (rows["seed"] == seed)].iloc[0]
            assert row["correct_choice"] == (e.answer in best) / len(best)
            assert row["gold"] == e.answer and row["fact"] and row["stratum"] in STRATA_NAMES
    # Strata are made so that counting tells nothing
    assert abs(rows["correct_choice"].mean() - 0.25) < 0.05
    shared = predict_by_frequency(make_study(worlds.data, data=make_spec(), seeds=[5, 6]))
    assert set(shared["seed"]) == {5, 6}


def test_notebook_1_writes_the_worlds_it_drew(store):
    elicitation = Elicitation.from_parameters(
        parameters(dataset="microworld/strata", worlds="per_seed", seeds=[0, 3], n_train=36)
        | dict(concepts=12, mentions=2, validation_size=4, n_test=30)
    )
    assert elicitation.card.loc["test", "seen_in_train"] == 0
    elicitation.save()
    spec = read_json(study_dir("t") / "data.json", "")
    assert spec["worlds"] == [0, 3] and spec["microworld"]["concepts"] == 12
    data = read_data(spec)
    assert {row["world"] for row in data.meta.values()} == {0, 3}
    assert {e.id[:3] for e in data.train} == {"w0/", "w3/"}
    made = make_study(data=spec, seeds=[0], worlds="per_seed")
    made.check([Arm("zero_shot"), POST])
    made.save()
    assert Study.load("t").setting.worlds == "per_seed"
    for changes in (dict(seeds=[0, 1]), dict(worlds="shared")):
        with pytest.raises(DataError, match=r"drew a world for each of the seeds \[0, 3\]"):
            made.replace(**changes).check()
    with pytest.raises(DataError, match="drew one world for all seeds"):
        make_study(worlds="per_seed").check()


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(dataset="openbookqa"), "worlds is per_seed, dataset 'openbookqa'; expected worlds"),
        (dict(seeds=[1000]), r"seeds \[1000\], data_seed 0; expected seeds below 1,000"),
        (dict(data_seed=3_000_000), "data_seed up to 2,146,000"),
        (dict(worlds="each"), "worlds is 'each'; expected shared or per_seed"),
    ],
)
def test_what_has_no_world_of_its_own_is_one_line(changes, words, store):
    values = parameters(worlds="per_seed") | changes
    with pytest.raises(DataError, match=words):
        check_demands(values, ["elicit", "train"])
    with pytest.raises(DataError, match=words):
        Elicitation.from_parameters(values)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(elicit_size=4, worlds="per_seed"), "elicit_size is 4 and worlds is per_seed"),
        (dict(concepts=12), "microworld/everyday: concepts is 12; it is a setting of strata"),
        (
            dict(dataset="microworld/relations", mentions=2),
            "microworld/relations: mentions is 2; it is a setting of everyday, invented, strata",
        ),
        (dict(n_core=100), "n_core is 100, n_train 48; expected a number from 1 to n_train"),
        (dict(dataset="microworld/strata"), "expected n_train from 90"),
    ],
)
def test_settings_of_a_world_that_do_not_fit_are_one_line(changes, words, store):
    with pytest.raises(DataError, match=words) as error:
        _ = Elicitation.from_parameters(parameters(**changes)).data
    assert "\n" not in str(error.value)


def test_another_seed_asks_for_stage_elicit_only_where_it_draws_a_world(store):
    used = parameters_path("t", "elicit")
    used.parent.mkdir(parents=True)
    used.write_text(json.dumps(parameters(seeds=[0])))
    check_made_with({"study": "t", "seeds": [0, 1]}, ["train"], "t")
    used.write_text(json.dumps(parameters(seeds=[0], worlds="per_seed")))
    with pytest.raises(DataError, match=r"seeds is \[0, 1\], but stage elicit was last run with"):
        check_made_with({"study": "t", "seeds": [0, 1], "worlds": "per_seed"}, ["train"], "t")


def test_a_student_that_goes_on_is_asked_of_its_own_world(worlds):
    worlds.folder.mkdir(parents=True)
    arms, quiet = ["label_only", "post_cot"], lambda *_, **__: None
    found = continue_students(worlds, arms, ["same"], 1, say=quiet)
    for seed, rows in found.groupby("seed"):
        assert set(rows["id"]) == {e.id for e in worlds.test_questions(seed)}
        assert set(rows["id"].str[:3]) == {f"w{seed}/"}
    assert set(found["worlds"]) == {"per_seed"}
    assert set(found["stratum"]) == {"label", "rationale", "none"}
    gaps = estimate_gaps(read_answers(found))
    assert gaps.groupby("part")["questions"].first().to_dict() == {EVERY: 60, TAUGHT: 20}
