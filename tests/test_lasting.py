"""Continued fine-tuning: gaps, half-lives, and continuations as runs of the store."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import curve_fit
from studies import make_study

from cotdistill import lasting
from cotdistill.errors import DataError
from cotdistill.readings import lasting as texts
from cotdistill.runs import continued
from cotdistill.runs.continued import Continuation, continue_students

STEPS = np.array([0.0, 10, 20, 30, 40])


def simulate(rate, start, seed, *, seeds=4, questions=60, noise=0.2):
    """Gaps [T, seeds, questions] that fade at a rate, with luck of seeds and of questions."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, noise, (1, seeds, questions)) + rng.normal(0, 0.02, (1, seeds, 1))
    mean = start * np.exp(-rate * STEPS)[:, None, None]
    return (
        mean
        + luck * np.exp(-rate * STEPS)[:, None, None]
        + rng.normal(0, 0.03, (len(STEPS), seeds, questions))
    )


def table_of(gaps, continuation="same"):
    """Answers whose post_cot - label_only is `gaps`."""
    rows = []
    for (t, s, q), gap in np.ndenumerate(gaps):
        about = dict(continuation=continuation, seed=s, id=f"q{q}", step=int(STEPS[t]))
        about |= dict(worlds="shared")
        rows.append(about | {"arm": "label_only", "p_gold": 0.3, "correct_choice": 0.0})
        rows.append(about | {"arm": "post_cot", "p_gold": 0.3 + gap, "correct_choice": 1.0})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("rate", [0.004, 0.03, 0.1, -0.01])
def test_the_decay_is_that_of_scipys_fit(rate):
    rng = np.random.default_rng(3)
    gaps = 0.2 * np.exp(-rate * STEPS) + rng.normal(0, 0.004, len(STEPS))
    (_, found), _ = curve_fit(lambda t, a, k: a * np.exp(-k * t), STEPS, gaps, (0.2, 0.01))
    assert lasting.fit_decay(STEPS, gaps) == pytest.approx(found, abs=2e-4)
    assert lasting.fit_decay(STEPS, -gaps) == pytest.approx(found, abs=2e-4)
    many = lasting.fit_decay(STEPS, np.stack([gaps, 2 * gaps]))
    assert many == pytest.approx([found, found], abs=2e-4)
    with pytest.raises(DataError, match="expected at least 2"):
        lasting.fit_decay(STEPS[:1], gaps[:1])


def test_the_half_life_of_a_fading_gap_is_covered():
    truth, hits = np.log(2) / 0.03, 0
    for seed in range(40):
        found = lasting.half_life(
            STEPS, simulate(0.03, 0.15, seed), np.random.default_rng(seed), 200
        )
        assert found.state == "fades" and found.low <= found.estimate <= found.high
        hits += found.low <= truth <= found.high
    assert hits >= 34


def test_a_gap_that_stays_has_no_bounded_half_life():
    found = lasting.half_life(STEPS, simulate(-0.01, 0.1, 1), np.random.default_rng(0), 200)
    assert (found.state, found.estimate, found.high) == ("does not fall", np.inf, np.inf)
    level = lasting.half_life(STEPS, simulate(0.0, 0.1, 2), np.random.default_rng(0), 200)
    assert level.high == np.inf and level.low > STEPS[-1]


def test_without_a_gap_nothing_is_estimated():
    found = lasting.half_life(STEPS, simulate(0.03, 0.0, 1), np.random.default_rng(0), 50)
    assert found.state == "no gap" and np.isnan([found.estimate, found.low, found.high]).all()
    assert found.start_low < 0 < found.start_high


def test_a_gap_to_the_other_side_fades_too():
    found = lasting.half_life(STEPS, -simulate(0.03, 0.15, 5), np.random.default_rng(0), 200)
    assert found.state == "fades" and found.start < 0 < found.low < found.high < np.inf


def test_tables_hold_the_gaps_by_step():
    gaps = simulate(0.03, 0.15, 7, seeds=5, questions=40)
    answers = pd.concat([table_of(gaps), table_of(0 * gaps + 0.1, "other")])
    table = lasting.estimate_gaps(answers)
    same = table[table["continuation"] == "same"]
    assert same["estimate"].tolist() == pytest.approx(gaps.mean((1, 2)))
    assert (same["low"] < same["estimate"]).all() and set(table["seeds"]) == {5}
    lives = lasting.half_life_table(answers, "p_gold", np.random.default_rng(0), 100)
    assert lives["state"].tolist() == ["fades", "does not fall"] and set(lives["reach"]) == {40}
    levels = lasting.level_table(answers)
    assert levels.loc[levels["arm"] == "label_only", "p_gold"].tolist() == pytest.approx([0.3] * 10)
    with pytest.raises(DataError, match="asked after steps"):
        lasting.estimate_gaps(answers[(answers["arm"] == "post_cot") | (answers["step"] < 20)])


def in_worlds(answers):
    """The same answers where each seed has a world of its own: no two seeds share a question."""
    own = "w" + answers["seed"].astype(str) + "/" + answers["id"]
    return answers.assign(id=own, worlds="per_seed")


def test_with_a_world_per_seed_the_world_is_the_unit():
    gaps = simulate(0.03, 0.15, 7, seeds=5, questions=40)
    table = lasting.estimate_gaps(in_worlds(table_of(gaps)))
    assert table["estimate"].tolist() == pytest.approx(gaps.mean((1, 2)))
    assert set(table["questions"]) == {200} and set(table["seeds"]) == {5}
    for row, at in zip(table.itertuples(), gaps.mean(2), strict=True):
        narrow, _ = stats.t.interval(0.95, 4, at.mean(), at.std(ddof=1) / np.sqrt(5))
        assert row.low <= narrow + 1e-9 and row.high - row.estimate < 0.2
    found = lasting.half_life_table(
        in_worlds(table_of(gaps)), "p_gold", np.random.default_rng(0), 300
    ).iloc[0]
    assert found["state"] == "fades" and found["low"] < np.log(2) / 0.03 < found["high"]
    shared = lasting.half_life_table(table_of(gaps), "p_gold", np.random.default_rng(0), 300)
    assert found["estimate"] == pytest.approx(shared["estimate"].iloc[0])


def test_facts_that_only_rationales_state_have_gaps_of_their_own():
    gaps = simulate(0.0, 0.1, 3, questions=60)
    gaps[:, :, ::3] += 0.2
    answers = table_of(gaps)
    number = answers["id"].str[1:].astype(int)
    stratum = np.where(number % 3 == 0, "rationale", "label")
    table = lasting.estimate_gaps(answers.assign(stratum=stratum))
    taught = table[table["part"] == lasting.TAUGHT]
    assert taught["estimate"].tolist() == pytest.approx(gaps[:, :, ::3].mean((1, 2)))
    assert set(taught["questions"]) == {20} and len(table) == 2 * len(STEPS)
    lines = lasting.gap_lines(table)["line"].unique().tolist()
    assert lines == ["post_cot → same", "post_cot → same, facts in rationales only"]
    lives = lasting.half_life_table(
        answers.assign(stratum=stratum), "p_gold", np.random.default_rng(0), 50
    )
    said = texts.findings(table, lives, "x")
    ends = r"\+\d+\.\d \[[^]]+\]"
    assert re.match(
        rf"\*\*Findings.\*\* \*\*post_cot\*\* minus label_only: {ends} points of p\(gold\) at "
        rf"the start, {ends} after 40 further steps on the labels of the same questions; of facts "
        rf"in rationales only, {ends} and {ends}\. Half-life: post_cot on same: ",
        said,
    )
    assert "post_cot on same, facts in rationales only" in said
    few = answers.assign(stratum=np.where(number < 19, "rationale", "label"))
    assert set(lasting.estimate_gaps(few)["part"]) == {lasting.EVERY}


@pytest.fixture
def study(store):
    return make_study(study="t", max_length=256)


def test_continuations_are_runs_of_the_store(study):
    study.folder.mkdir(parents=True)
    before = {k: v.clone() for k, v in study.student.model.state_dict().items()}
    said, arms = [], ["label_only", "post_cot"]
    say = lambda text, **_: said.append(text)
    first = continue_students(study, arms, ["same", "microworld/relations"], 2, say=say)
    after = study.student.model.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())
    assert len(first) == 2 * 2 * 3 * 8 and set(first["step"]) == {0, 3, 6}
    answers = lasting.read_answers(first)
    assert answers["p_gold"].between(0, 1).all()
    assert len(lasting.estimate_gaps(answers)) == 2 * 3
    # What a student knew before it went on does not depend on where it goes
    start = answers[answers["step"] == 0].pivot(
        index=["arm", "id"], columns="continuation", values="p_gold"
    )
    assert (start["same"] == start["microworld/relations"]).all()
    trained = [text for text in said if "label loss" in text]
    assert len(trained) == 2, "each first phase is trained once"
    said.clear()
    again = continue_students(study, arms, ["same", "microworld/relations"], 2, say=say)
    assert len(said) == 4 and all("from the store" in text for text in said)
    pd.testing.assert_frame_equal(first, again)
    assert not list((continued.artifacts() / "runs").glob("*.first"))


def test_a_killed_continuation_goes_on_from_its_checkpoint(study, monkeypatch):
    study.folder.mkdir(parents=True)
    quiet = lambda *text, **_: None
    whole = continue_students(study, ["label_only"], ["same"], 3, say=quiet)
    folder = next(p for p in (continued.artifacts() / "runs").iterdir() if p.is_dir())
    for path in sorted(folder.iterdir()):
        path.unlink()
    folder.rmdir()
    write, seen = continued.write_answers, []

    def stop(path, answers, **about):
        write(path, answers, **about)
        seen.append(about["epoch"])
        if about["epoch"] == 2 and seen.count(2) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(continued, "write_answers", stop)
    with pytest.raises(KeyboardInterrupt):
        continue_students(study, ["label_only"], ["same"], 3, say=quiet)
    again = continue_students(study, ["label_only"], ["same"], 3, say=quiet)
    assert seen == [0, 1, 2, 2, 3]
    pd.testing.assert_frame_equal(whole, again)


def test_a_key_holds_the_first_run_and_the_second_phase(study):
    study.folder.mkdir(parents=True)
    rows = lambda **changes: continued.plan_continuations(
        study, [continued.LABELS], [Continuation(**dict(on="same", epochs=2) | changes)]
    )
    keys = {rows()[0]["key"]}
    for changes in ({"epochs": 3}, {"lr": 1e-5}, {"on": "microworld/relations"}):
        keys.add(rows(**changes)[0]["key"])
    assert len(keys) == 4
    assert rows(lr=study.setting.train.lr)[0]["key"] == rows()[0]["key"]


@pytest.mark.parametrize(
    "arms, datasets, text",
    [
        (["post_cot"], ["same"], "lasting_arms has no label_only"),
        (["label_only", "zero_shot"], ["same"], "zero_shot can't go on"),
        (["label_only"], [], "continue_on is empty"),
        (["label_only"], ["no/such"], "no such"),
        (["label_only", "label_only"], ["same"], "named twice"),
    ],
)
def test_bad_settings_end_in_one_line(study, arms, datasets, text):
    study.folder.mkdir(parents=True)
    with pytest.raises(DataError, match=text) as found:
        continue_students(study, arms, datasets, 1, say=lambda *a, **b: None)
    assert "\n" not in str(found.value)


def test_another_dataset_must_not_hold_the_test_questions(study, monkeypatch):
    seen = replace(study.data, train=[*study.data.train, study.data.test[3]])
    monkeypatch.setattr(continued, "load_dataset", lambda *_, **__: seen)
    with pytest.raises(DataError, match=f"training question '{study.data.test[3].id}' is a test"):
        continued.continued_questions(study, Continuation("openbookqa", 1), 0)


def test_another_dataset_lends_as_many_questions_as_the_study_has(study):
    found = continued.continued_questions(study, Continuation("microworld/relations", 1), 0)
    assert len(found) == len(study.train_questions(0)) and found[0].id.startswith("relations")
    short = study.replace(max_length=5)
    short._usable = study.usable_questions()
    with pytest.raises(DataError, match="none of its 12 questions fits into max_length 5"):
        continued.continued_questions(short, Continuation("microworld/relations", 1), 0)


def test_half_lives_are_put_into_words():
    gaps = simulate(0.03, 0.15, 7, seeds=5, questions=40)
    answers = pd.concat(
        [
            table_of(gaps),
            table_of(0 * gaps + 0.1, "stays"),
            table_of(simulate(0.03, 0, 1), "none"),
            table_of(0.1 * np.exp(-0.002 * STEPS)[:, None, None] + 0 * gaps, "slow"),
        ]
    )
    lives = lasting.half_life_table(answers, "p_gold", np.random.default_rng(0), 100)
    shown = texts.show_half_lives(lives).set_index("continuation")["half-life"]
    assert shown["same"].endswith(" steps [" + shown["same"].partition("[")[2])
    assert shown["stays"] == "unbounded: the gap does not fall"
    assert shown["none"].startswith("not estimable: there is no gap to begin with")
    assert shown["slow"] == "347 steps [347, 347] (longer than was observed)"
    table = lasting.estimate_gaps(answers)
    said = texts.half_lives(lives, 5)
    assert said.startswith("Of 4 gaps, by their estimates, 2 fade and 1 do not fall. 1 can't be")
    assert "can't" not in texts.half_lives(lives[lives["state"] != "no gap"], 5)
    assert "fewer than 3 seeds" in texts.half_lives(lives, 2)
    found = texts.findings(table, lives, "x")
    assert "post_cot on stays" in found and "none (x)" not in found
    said = texts.findings(table, lives[lives["state"] == "no gap"], "x")
    assert said.startswith(
        "**Findings.** No arm's gap to label_only was told apart from 0 at the start"
    )
    assert texts.gaps(table[:0]).startswith("Nothing to compare")
