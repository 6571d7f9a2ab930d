"""Questions by their number of steps: contrasts, their change per step, and what is said of it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from studies import make_study

from cotdistill import hypotheses, tasks
from cotdistill.arms import Arm, arm_from_name, corruption_of, prompt_text
from cotdistill.errors import DataError
from cotdistill.plots import draw_figure
from cotdistill.readings import tasks as texts
from cotdistill.runs.grid import run_grid
from cotdistill.runs.one import make_config
from cotdistill.runs.results import load_predictions
from cotdistill.sources import load_steps
from cotdistill.study import Setting
from cotdistill.summaries import answers_side_by_side

ARMS = ["label_only", "pre_cot", "post_cot", "pre_cot_shuffled[token]", "post_cot_shuffled[token]"]


def simulate(rng, effects, *, seeds=3, questions=60, noise=0.5) -> pd.DataFrame:
    """Make predictions of two options. effects: arm -> log odds of the right one per step."""
    rows = []
    hard = rng.normal(0, 1, questions)
    for arm, slope in effects.items():
        for seed in range(seeds):
            luck = rng.normal(0, 0.1)
            for question in range(questions):
                steps = question % 3 + 1
                odds = 1 + hard[question] + luck + slope * steps + rng.normal(0, noise)
                rows.append(
                    dict(
                        arm=arm,
                        seed=seed,
                        id=f"q{question:03d}",
                        gold=0,
                        scores=[odds, 0.0],
                        correct_choice=odds > 0,
                        correct_generated=odds > 0,
                        cut_off=False,
                        rationale_cut_off=False,
                        fact=f"f{question % 30:02d}",
                        steps=steps,
                    )
                )
    return pd.DataFrame(rows)


def test_the_mean_of_a_seeds_values_is_its_slope():
    rng = np.random.default_rng(0)
    steps = np.array([1, 1, 2, 2, 2, 3, 4.0])
    values = rng.normal(size=(4, 7)) + 0.3 * steps
    values[3, 2] = np.nan  # a question of another seed's world
    found = tasks.slope_values(values, steps)
    for row, given in zip(found, values, strict=True):
        known = ~np.isnan(given)
        expected = np.polyfit(steps[known], given[known], 1)[0]
        assert np.nanmean(row) == pytest.approx(expected)
    assert np.isnan(found[3, 2]) and np.isfinite(found[:3]).all()


def test_a_slopes_standard_error_is_its_spread():
    """Of 400 draws of questions: level means move, and no line has to fit them."""
    rng = np.random.default_rng(1)
    steps = np.repeat([1.0, 2.0, 3.0], 40)
    bend = np.where(steps == 2, 5.0, 0.0)
    slopes, errors = [], []
    for _ in range(400):
        values = tasks.slope_values((bend + rng.normal(0, 1, 120))[None], steps)
        slopes.append(values.mean())
        errors.append(values.std(ddof=1) / np.sqrt(120))
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.1)


def test_contrasts_find_what_grows_with_the_steps():
    effects = dict(zip(ARMS, (0.0, 0.0, 0.0, -0.8, 0.0), strict=True))
    rows = simulate(np.random.default_rng(2), effects)
    found = tasks.contrasts_by_steps(rows)
    names = list(found.loc[found["steps"] == 1, "contrast"].unique())
    assert names == [
        "pre_cot − post_cot",
        "pre_cot − label_only",
        "post_cot − label_only",
        "pre_cot_shuffled[token] − pre_cot",
        "post_cot_shuffled[token] − post_cot",
    ]
    judged = hypotheses.judge_predictions(tasks.task_numbers(found), tasks.TASK_PREDICTIONS)
    outcome = judged.set_index("number")["outcome"]
    assert outcome[f"{tasks.SHUFFLED_PRE}, {tasks.PER_STEP}"] == "met"
    assert "not measured" not in set(judged["outcome"])
    told = texts.contrasts(found, 3)
    assert "pre_cot_shuffled[token] − pre_cot by p(gold): -" in told and "− label_only" not in told
    said = texts.findings(judged, hypotheses.survivors(judged), "x")
    assert said.startswith("**Findings.** *order matters* ") and "nan" not in said


def test_arms_by_steps_and_their_table_and_figure():
    rows = simulate(np.random.default_rng(3), dict.fromkeys(ARMS, -0.5))
    levels = tasks.arms_by_steps(rows)
    mean = rows[(rows["arm"] == "pre_cot") & (rows["steps"] == 2)]["correct_choice"].mean()
    one = levels.query("arm == 'pre_cot' and steps == 2 and measure == 'correct_choice'")
    assert one["estimate"].item() == pytest.approx(mean) and one["questions"].item() == 20
    shown = tasks.show_steps(levels, "arm")
    assert list(shown.columns) == ["1 step (n = 20)", "2 steps (n = 20)", "3 steps (n = 20)"]
    assert list(shown.index.get_level_values(0).unique()) == ARMS
    for narrow in (False, True):
        figure = draw_figure("tasks", levels, tasks.axis_names(levels), narrow=narrow)
        assert [axis.get_ylabel()[:8] for axis in figure.axes] == ["Accuracy", "p(gold) "]
        assert len(figure.axes[0].containers) == len(ARMS)
    assert "above chance (100 %): none" in texts.levels(levels, 1.0)
    assert "above chance (0 %): label_only, pre_cot, " in texts.levels(levels, 0.0)


def test_what_is_not_known_is_left_out_and_counted():
    rows = simulate(np.random.default_rng(4), {"label_only": 0.0, "post_cot": 0.0})
    steps = {f"q{number:03d}": number % 3 + 1 for number in range(50)} | {"q049": 9}
    known = tasks.add_steps(rows.drop(columns="steps"), steps)
    assert set(known["steps"]) == {1, 2, 3}, "one question of nine steps has no interval"
    told = texts.known(known, 60)
    assert told.startswith("Of 60 test questions: 17 of 1 step, 16 of 2 steps, 16 of 3 steps; 11 ")
    none = tasks.add_steps(rows.drop(columns="steps"), {})
    assert "known of none of 60" in texts.known(none, 60)
    levels, contrasts = tasks.arms_by_steps(none), tasks.contrasts_by_steps(none)
    assert texts.levels_head(levels) == texts.contrasts_head(contrasts) == ""
    assert tasks.show_steps(levels, "arm").empty and texts.contrasts(contrasts, 0) == ""
    judged = hypotheses.judge_predictions(tasks.task_numbers(contrasts), tasks.TASK_PREDICTIONS)
    assert set(judged["outcome"]) == {"not measured"}
    one = tasks.contrasts_by_steps(known[known["steps"] == 2])
    assert tasks.task_numbers(one) == {} and texts.contrasts(one, 3) == ""
    assert "nothing grows" in texts.levels(tasks.arms_by_steps(known[known["steps"] == 2]), 0.5)


def test_answers_that_a_limit_ended_are_counted_by_steps():
    rows = simulate(np.random.default_rng(5), {"label_only": 0.0, "pre_cot": 0.0})
    assert texts.cut_off(rows) == ""
    long = (rows["arm"] == "pre_cot") & (rows["steps"] == 3)
    told = texts.cut_off(rows.assign(rationale_cut_off=long))
    assert "(pre_cot), by steps: 1 step: 0.0 %, 2 steps: 0.0 %, 3 steps: 100.0 %." in told


def test_free_answers_are_measured_as_written():
    rows = simulate(np.random.default_rng(6), {"label_only": 0.0, "post_cot": 0.0})
    rows = rows.assign(scores=[[-1.0]] * len(rows), correct_choice=np.nan)
    levels = tasks.arms_by_steps(rows)
    assert set(levels["measure"]) == {"correct_generated", "p_gold"}
    assert next(iter(tasks.axis_names(levels).values())).startswith("Accuracy, as written")


def test_steps_are_read_from_files(tmp_path):
    def write(folder, rows):
        (tmp_path / folder).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "test.jsonl").write_text(text)

    solutions = ["3*4=<<3*4=12>>12 and <<12+1=13>>13\n#### 13", "It is so.\n#### 5"]
    write("gsm8k", [{"question": f"How many {a}?", "answer": a} for a in solutions])
    assert list(load_steps("gsm8k", tmp_path).values()) == [2]
    assert load_steps("openbookqa", None) == {}
    own = [{"id": "a", "question": "?", "answer": "7", "steps": 4}]
    write("own", [*own, {"id": "b", "question": "??", "answer": "8"}])
    assert load_steps(str(tmp_path / "own"), None) == {"a": 4}
    for number, bad in enumerate(("two", 0, True, 1.5)):
        write(f"bad{number}", [own[0] | {"steps": bad}])
        with pytest.raises(DataError, match=r"test.jsonl:1: steps is .*; expected a whole number"):
            load_steps(str(tmp_path / f"bad{number}"), None)


def test_no_text_of_other_data_is_shown():
    rows = simulate(np.random.default_rng(7), {"label_only": 0.0})
    study = type("Stub", (), {"data": type("Data", (), {"meta": {}})()})()
    assert answers_side_by_side(study, rows[rows["steps"] == np.nan]).empty


# --- the student as it is, below solved questions ------------------------------------------------


def test_solved_questions_stand_above_each_question(store):
    study = make_study(shots=2)
    few, cot = Arm("few_shot"), Arm("few_shot_cot")
    shown = study.train_questions(0)[:2]
    text = study.write_shots(few, -1)
    assert text == "".join(
        f"{prompt_text(e, 'label_only')} {e.label}\n\n" for e in shown
    )  # as label_only writes it
    said = [study.data.rationales[e.id].text for e in shown]
    assert study.write_shots(cot, -1) == "".join(
        f"{prompt_text(e, 'pre_cot')} {why}\nAnswer: {e.label}\n\n"
        for e, why in zip(shown, said, strict=True)
    )
    assert study.write_shots(Arm("zero_shot"), 0) == study.write_shots(Arm("post_cot"), 0) == ""
    assert make_config(study, few, 0)["shots"] != make_config(study, cot, 0)["shots"]
    other = study.replace(shots=3)
    assert make_config(study, few, 0) != make_config(other, few, 0)
    assert make_config(study, Arm("post_cot"), 0) == make_config(other, Arm("post_cot"), 0)
    again = Setting.from_json(other.setting.to_json(), "base.json", "t")
    assert again.shots == 3 and "shots" not in make_study().setting.to_json()


def test_a_prompted_student_answers_below_them(store):
    """Its scores are those of one plain pass, and one run serves all seeds."""
    study = make_study(shots=2, seeds=[0, 1])
    arms = [Arm("few_shot"), Arm("few_shot_cot")]
    results = run_grid(study, arms, "tasks", say=lambda *a, **k: None)
    assert list(results["arm"]) == ["few_shot", "few_shot_cot"] and set(results["seed"]) == {-1}
    rows = load_predictions(study, ["tasks"])
    student, example = study.student, study.test_questions()[0]
    above = student.bos_ids + student.encode(study.write_shots(arms[0], 0))
    prompt = above + student.encode(prompt_text(example, "label_only"))
    label = student.encode(f" {example.choices[0]}\n")
    with torch.no_grad():
        logs = student.model(torch.tensor([prompt + label])).logits[0].double().log_softmax(-1)
    expected = sum(logs[len(prompt) - 1 + at, token].item() for at, token in enumerate(label))
    own = rows[(rows["arm"] == "few_shot") & (rows["id"] == example.id)].iloc[0]
    assert own["scores"][0] == pytest.approx(expected, abs=1e-3)
    assert rows.loc[rows["arm"] == "few_shot_cot", "scores_direct"].notna().all()
    with pytest.raises(DataError, match="expected at most 1024|its prompt is"):
        study.replace(shots=12, max_new_tokens=1000).check_positions(arms)


def test_names_of_prompted_arms():
    assert arm_from_name("few_shot_cot").placement == "few_shot_cot"
    assert not arm_from_name("few_shot").is_trained and arm_from_name("post_cot").is_trained
    assert corruption_of("few_shot_cot") == "" and arm_from_name("pre_cot_bag").corruption == "bag"
    with pytest.raises(DataError, match="unknown arm 'few_shot_bag'"):
        arm_from_name("few_shot_bag")
    pairs = tasks.arm_pairs(["few_shot", "few_shot_cot", "post_cot"])
    assert pairs == [("post_cot", "few_shot"), ("few_shot_cot", "few_shot")]
