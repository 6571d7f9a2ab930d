"""The lab: its logic and its panels without a front end, its training process, and a reader who
clicks, in JupyterLab in a real browser.
"""

import ast
import base64
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from browser import PATIENCE, Browser, needs_chromium
from conftest import tiny
from safetensors.torch import save_file

from cotdistill.arms import ARMS, Arm, arm_from_name, format_target, prompt_text
from cotdistill.attribution import methods
from cotdistill.attribution.score_files import read_selections
from cotdistill.errors import DataError
from cotdistill.evaluate import evaluate
from cotdistill.files import read_json, write_json
from cotdistill.files import sha256 as checksum
from cotdistill.lab import ask, compare, edit, finished, jobs, markup, sources
from cotdistill.lab.bench import Bench
from cotdistill.lab.shelf import UNTRAINED, Shelf, list_runs
from cotdistill.lab.token_panels import KnobPanel, SelectPanel
from cotdistill.lab.train_panel import ArmKnobs, TrainPanel
from cotdistill.lab.training_text import agreement_with, scores_of, training_tokens
from cotdistill.lab.try_panels import AskPanel, EditPanel
from cotdistill.measures import gold_probability
from cotdistill.runs.grid import run_grid
from cotdistill.runs.one import make_config, run_key
from cotdistill.students import load_student

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"
PAIR = (arm_from_name("label_only"), arm_from_name("post_cot"))


@pytest.fixture
def bench(store):
    """The smoke study's student and questions, nothing run; edits are scored at once."""
    tiny("tiny-llama")
    return Bench("smoke", delay=0)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A store with two trained runs of the smoke study, weights kept, and what they report."""
    store = tmp_path_factory.mktemp("trained") / "artifacts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTDISTILL_ARTIFACTS", str(store))
        study, _ = sources.open_study("smoke")
        study = study.replace(train_size=16, test_size=12)
        rows = []
        study.watch = rows.append
        keep = [(arm.label, 0) for arm in PAIR]
        table = run_grid(study, list(PAIR), "train", keep_weights=keep, say=lambda *a, **k: None)
    return study, table, rows, store


@pytest.fixture
def trained(trained_once, monkeypatch):
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(trained_once[3]))
    return trained_once


def test_the_source_keeps_the_rules_of_a_notebook():
    book = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert (
        all(not c.outputs and c.execution_count is None for c in code)
        and "widgets" not in book.metadata
    )
    for cell in code:
        assert not [
            n
            for n in ast.walk(ast.parse(cell.source))
            if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While))
        ]
        assert len(cell.source.splitlines()) <= 25 and not re.search(
            r"^\s*[%!]|[\"']/(home|work|root|Users|tmp)/", cell.source, re.M
        )


# Where student and questions come from


def test_a_study_that_was_not_run_has_the_keys_that_it_would_have(store):
    """Planned from its YAML by the lab, or written by notebooks 01 and 02: the same runs."""
    study, said = sources.open_study("smoke")
    assert "has not been run here" in said and not (study.folder / "base.json").exists()
    planned = [run_key(make_config(study, arm, 0)) for arm in PAIR]
    study.save()
    again, said = sources.open_study("smoke")
    assert "as it was run here" in said
    assert [run_key(make_config(again, arm, 0)) for arm in PAIR] == planned


def test_a_study_that_cannot_be_used_is_replaced_by_smoke_with_a_sentence(store, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("teacher: transformers\nteacher_model: tiny-llama\nstudent: tiny-llama\n")
    with pytest.raises(DataError, match="were not asked for yet; expected `make elicit"):
        sources.open_study(str(path))
    sources.open_study("smoke")[0].save()
    study, said = sources.open_study(str(path))
    assert study.name == "smoke" and "cannot be used here" in said and "**smoke** serves" in said


def test_questions_are_found_by_any_of_their_words(bench):
    questions = bench.chooser.questions
    some = list(questions.values())[5]
    word = max(some.question.split(), key=len).strip("?").upper()
    found = sources.find_questions(questions, f"{some.choices[0]} {word}")
    assert some.id in found
    for one in questions.values():
        text = " ".join((one.question, *one.choices, one.id)).casefold()
        assert (one.id in found) == all(
            part in text for part in f"{some.choices[0]} {word}".casefold().split()
        )
    assert sources.find_questions(questions, "") == list(questions)
    assert list(questions)[0].startswith("everyday-test") and any("train" in q for q in questions)


def test_one_chooser_serves_all_panels(bench, tmp_path):
    select = SelectPanel(bench, tmp_path / "hand.jsonl", ["random"])
    knobs, editing = KnobPanel(bench), EditPanel(bench)
    bench.chooser.search.value = "train-00003"
    assert bench.chooser.list.value == "everyday-train-00003"
    assert bench.chooser.count.value.startswith("1 of ")
    example = bench.chooser.example
    question = html.escape(example.question)
    assert question in select.head.value and question in editing.head.value
    assert editing.text.value == bench.chooser.rationale
    assert bench.chooser.rationale.split()[0] in knobs.text.value
    bench.chooser.search.value = "no such word at all"
    assert bench.chooser.example == example
    bench.chooser.search.value = ""
    ids = list(bench.chooser.questions)
    bench.chooser.move(1)
    assert bench.chooser.list.value == ids[(ids.index(example.id) + 1) % len(ids)]


# What a student of an arm reads


@pytest.mark.parametrize("name", [a for a in ARMS if a != "zero_shot"])
def test_shown_tokens_are_the_training_text_with_its_spans(student, questions, rationales, name):
    example = questions[1]
    arm, text = arm_from_name(name, amount=0.5), rationales[example.id].text
    tokens = training_tokens(student, example, text, arm)
    join = lambda kind: student.decode(tokens["id"][tokens["kind"] == kind].tolist())
    pieces = format_target(example, text, arm)
    assert (
        join("prompt") == prompt_text(example, arm.placement)
        and join("label") == dict(pieces)["label"]
    )
    if arm == Arm(arm.placement):
        assert student.decode(tokens["id"].tolist()) == prompt_text(
            example, arm.placement
        ) + "".join(part for _, part in pieces)
    page = markup.tokens_html(tokens)
    assert page.count("<span") == len(tokens) + 4 and f"= {len(tokens)} tokens" in page


def test_agreement_against_counting_by_hand(llama, questions, rationales):
    example = questions[1]
    found = scores_of(llama, example, rationales[example.id].text, ["occlusion", "random"])
    selected = sorted(np.argsort(-found["occlusion"].scores)[:3].tolist())
    shown = agreement_with(selected, found)
    n = len(found["occlusion"].scores)
    assert shown.loc["occlusion", ["k", "overlap", "average_precision"]].tolist() == [
        3,
        1,
        1,
    ] and shown.loc["occlusion", "chance"] == pytest.approx(3 / n)
    order = np.argsort(-found["random"].scores, kind="stable").tolist()
    ranks = sorted(order.index(i) + 1 for i in selected)
    assert shown.loc["random", "average_precision"] == pytest.approx(
        np.mean([(i + 1) / rank for i, rank in enumerate(ranks)])
    )
    assert shown.loc["random", "overlap"] == pytest.approx(len(set(order[:3]) & set(selected)) / 3)
    assert agreement_with([], found)["overlap"].isna().all()


def test_a_click_a_save_and_a_return(bench, tmp_path):
    path = tmp_path / "hand.jsonl"
    panel = SelectPanel(bench, path, ["occlusion"])
    for i in (3, 0):
        panel.row.children[i].value = True
    total = len(bench.chooser.questions)
    assert panel.count.value.startswith(
        f"2 of {len(panel.row.children)} tokens selected; 0 of {total} questions saved"
    )
    panel.save_button.click()
    first = bench.chooser.list.value
    assert read_selections(path) == {first: [0, 3]} and f"1 of {total} " in panel.count.value
    assert "<th>overlap</th>" in panel.out.value
    bench.chooser.move(1)
    assert bench.chooser.list.value != first and not any(b.value for b in panel.row.children)
    panel.row.children[1].value = True
    panel.clear_button.click()
    panel.save_button.click()
    second = bench.chooser.list.value
    again = SelectPanel(bench, path, ["occlusion"])
    bench.chooser.move(-1)
    assert [i for i, b in enumerate(again.row.children) if b.value] == [0, 3]
    assert read_selections(path) == {first: [0, 3], second: []}


def test_a_knob_that_does_not_fit_says_so(bench):
    panel = KnobPanel(bench)
    arm, amount = panel.knobs["arm"], panel.knobs["amount"]
    arm.value, amount.value = "post_cot_masked", 3
    assert "expected the fraction to hide, from 0 to 1" in panel.text.value
    amount.value = 1
    assert "tokens; learnt" in panel.text.value
    arm.value, amount.value = "pre_cot_kept", 2
    assert ">&nbsp;rationale: 2&nbsp;<" in panel.text.value


def test_knobs_rank_tokens_by_the_label_that_is_shown(bench, monkeypatch):
    asked, real = [], methods.attribute_rationale
    monkeypatch.setattr(
        methods,
        "attribute_rationale",
        lambda *given, label_format, **more: (
            asked.append(label_format) or real(*given, label_format=label_format, **more)
        ),
    )
    bench.study = bench.study.replace(label_format="letter")
    panel = KnobPanel(bench)
    panel.knobs["arm"].value = "post_cot_kept"
    assert asked and set(asked) == {"letter"}


# Edit a rationale


def test_option_probabilities_are_those_of_evaluation_after_the_same_text(student, questions):
    """Through the cached prompt and in pieces, or the whole sequence in one plain pass."""
    editor = edit.Editor()
    for example in questions[:3]:
        for rationale in ("A cup holds tea, and tea is hot.", "tea", ""):
            found = editor.option_logps(student, example, rationale)
            text = prompt_text(example, "pre_cot") + (f" {rationale}" if rationale else "")
            for option, logp in enumerate(found):
                before = student.bos_ids + student.encode(prompt_text(example, "pre_cot"))
                before += student.encode(f" {rationale}") if rationale else []
                before += student.encode("\nAnswer:")
                label = student.encode(f" {example.choices[option]}\n")
                ids = torch.tensor([before + label])
                with torch.no_grad():
                    logits = student.model(input_ids=ids).logits[0].log_softmax(-1)
                plain = sum(
                    logits[len(before) - 1 + i, token].item() for i, token in enumerate(label)
                )
                assert logp == pytest.approx(plain, abs=2e-4), text


def test_an_outcome_has_a_score_for_each_token_and_shares_of_one(llama, questions):
    example, text = questions[1], "A cup holds tea, and tea is hot."
    found = edit.Editor().read(llama, example, text)
    assert sum(found.probabilities) == pytest.approx(1)
    direct = methods.attribute_rationale(llama, example, text, edit.QUICK_METHOD)
    np.testing.assert_allclose(found.scores, direct.scores, rtol=1e-5)
    assert "".join(found.tokens) == f" {text}"
    empty = edit.Editor().read(llama, example, "")
    assert empty.tokens == () and len(empty.probabilities) == len(example.choices)


def test_deleted_and_shuffled_tokens(student):
    text = "A cup holds tea."
    ids = edit.rationale_ids(student, text)
    for place in (0, len(ids) - 1):
        left = [one for i, one in enumerate(ids) if i != place]
        assert edit.delete_tokens(student, text, [place]) == student.decode(left).strip()
    words = edit.shuffle_rationale(student, text, "word", 1)
    assert sorted(words.split()) == sorted(text.split())
    drawn = {edit.shuffle_rationale(student, text, "token", seed) for seed in range(5)}
    assert len(drawn) > 1 and edit.shuffle_rationale(student, " ", "token", 0) == ""


def test_bars_and_heat_map_follow_an_edit(bench):
    panel = EditPanel(bench)
    panel.draw()
    first = (panel.bars.value, panel.heat.value, len(panel.row.children))
    panel.row.children[2].click()
    assert (panel.bars.value, panel.heat.value) != first[:2]
    assert len(panel.row.children) == len(edit.rationale_ids(bench.study.student, panel.text.value))
    panel.text.value = "Tea."
    assert ">Te" in panel.heat.value or "Tea" in re.sub("<.*?>", "", panel.heat.value)
    panel.shuffle("token")
    panel.write("")
    assert "(no tokens)" in panel.heat.value and panel.row.children == ()
    panel.write(bench.chooser.rationale)
    assert (panel.bars.value, panel.heat.value, len(panel.row.children)) == first
    panel.method.value = "occlusion"
    assert "by occlusion" in panel.said.value and panel.heat.value != first[1]


# Ask a student


def test_a_typed_question_is_read_or_refused():
    example = ask.read_question(" Where? ", "a cup; a  shelf\nwater")
    assert example.choices == ("a cup", "a shelf", "water") and example.question == "Where?"
    for question, options, said in (
        (" ", "a;b", "the question is empty"),
        ("Where?", "a", "1 option"),
        ("Where?", "a;b;a", "stands twice"),
    ):
        with pytest.raises(DataError, match=said):
            ask.read_question(question, options)


@pytest.mark.parametrize("order", ask.ORDERS)
def test_an_answer_is_what_evaluation_makes_of_the_question(student, order):
    example = ask.read_question("Where is tea?", "a cup; a shelf")
    found = ask.ask(student, example, order, max_new_tokens=6, max_label_tokens=4)
    limits = dict(max_new_tokens=6, max_label_tokens=4)
    (row,) = evaluate(student, [example], ask.ORDERS[order], **limits)
    assert found.choice == row["choice"] and found.text == row["text"]
    assert found.probabilities[0] == pytest.approx(gold_probability(row["scores"], 0))
    if order == "reason first":
        assert found.reason == row["rationale"]
    with pytest.raises(DataError, match="order 'both'"):
        ask.ask(student, example, "both")


def test_the_reason_after_an_answer_goes_on_from_it(llama):
    example = ask.read_question("Where is tea?", "a cup; a shelf")
    reason, cut = ask.reason_after(llama, example, 1, "text", 5)
    prefix = llama.bos_ids + llama.encode(prompt_text(example, "post_cot"))
    prefix += llama.encode(" a shelf\n") + llama.encode("Reason:")
    with torch.no_grad():
        out = llama.model.generate(
            torch.tensor([prefix]), max_new_tokens=5, do_sample=False, eos_token_id=llama.eos_id,
            attention_mask=torch.ones(1, len(prefix)).long(), pad_token_id=llama.pad_id,
        )  # fmt: skip
    written = [token for token in out[0, len(prefix) :].tolist() if token != llama.eos_id]
    assert reason == llama.decode(written).strip() and cut == (len(written) >= 5)


def test_a_reader_asks_in_the_panel(bench):
    panel = AskPanel(bench)
    panel.take()
    assert panel.question.value == bench.chooser.example.question
    panel.button.click()
    assert panel.out.value.count("<tr") == len(bench.chooser.example.choices)
    assert "After its answer it wrote" in panel.out.value and UNTRAINED in panel.out.value
    panel.options.value = "one"
    panel.button.click()
    assert "1 option(s)" in panel.out.value


# Stored runs as students


def test_a_stored_run_is_a_student(trained, monkeypatch):
    """Its base student of the config and the kept weights: it answers as the run did."""
    study, table, _, store = trained
    by_arm = {run.arm: run for run in list_runs()}
    own = tiny("tiny-llama")
    base = {name: value.clone() for name, value in own.model.state_dict().items()}
    for arm in PAIR:
        run = by_arm[arm.label]
        student = load_student(str(run.folder))
        path = run.folder / "predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        limits = dict(max_label_tokens=study.setting.max_label_tokens)
        now = evaluate(student, study.test_questions(), arm.placement, **limits)
        assert [row["choice"] for row in now] == [row["choice"] for row in rows]
        np.testing.assert_allclose(
            [row["scores"] for row in now], [row["scores"] for row in rows], atol=1e-4
        )
        assert arm.placement in student.note and student.fingerprint != own.fingerprint
        assert any(not torch.equal(v, base[k]) for k, v in student.model.state_dict().items())
    monkeypatch.setenv("COTDISTILL_ROOT", str(store.parent))
    from cotdistill.study import named_student

    relative = f"artifacts/runs/{by_arm['post_cot'].key}"
    again = named_student(relative)
    assert again.name == relative and again.fingerprint == student.fingerprint


def test_a_run_without_its_weights_or_with_others_is_refused(trained, tmp_path):
    study, _, _, _ = trained
    run = next(run for run in list_runs() if run.arm == "post_cot")
    folder = tmp_path / run.key
    shutil.copytree(run.folder, folder)
    with (folder / "weights.safetensors").open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"x")
    with pytest.raises(DataError, match=r"weights.safetensors: not as it was written"):
        load_student(str(folder))
    save_file({"other.weight": torch.zeros(2)}, folder / "weights.safetensors")
    metrics = read_json(folder / "metrics.json", "")
    metrics["files"]["weights.safetensors"] = checksum(folder / "weights.safetensors")
    write_json(folder / "metrics.json", metrics)
    with pytest.raises(DataError, match="other.weight is none of the base student's"):
        load_student(str(folder))
    (folder / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="expected a run whose weights were kept"):
        load_student(str(folder))
    config = read_json(folder / "config.json", "")
    write_json(folder / "config.json", config | {"student": "0123456789abcdef"})
    with pytest.raises(DataError, match="fingerprint 0123456789abcdef, which is none of"):
        load_student(str(folder))


def test_a_run_of_a_student_in_a_folder_finds_it_through_its_study(store, tmp_path):
    student = tiny("tiny-llama")
    student.model.save_pretrained(tmp_path / "mine")
    student.tokenizer.save_pretrained(tmp_path / "mine")
    study, _ = sources.open_study("smoke")
    study = study.replace(student=str(tmp_path / "mine"), train_size=8, test_size=4)
    study.save()
    keep = [("post_cot", 0)]
    run_grid(study, [PAIR[1]], "train", keep_weights=keep, say=lambda *a, **k: None)
    (run,) = list_runs()
    assert str(tmp_path / "mine") in load_student(str(run.folder)).note


def test_the_shelf_swaps_weights_and_puts_the_own_ones_back(trained):
    study, _, _, _ = trained
    shelf = Shelf(study.student)
    before = {k: v.clone() for k, v in study.student.model.named_parameters()}
    label, post = (shelf.resolve_name(arm.label) for arm in PAIR)
    assert set(shelf.names) == {UNTRAINED, label, post}
    prints = set()
    for name in (label, post, UNTRAINED, post):
        student = shelf.get(name)
        prints.add(student.fingerprint)
        expected = (
            before
            if name == UNTRAINED
            else dict(load_student(str(shelf.runs[name].folder)).model.named_parameters())
        )
        for one, value in student.model.named_parameters():
            assert torch.equal(value, expected[one]), (name, one)
    assert len(prints) == 3
    assert shelf.resolve_name(shelf.runs[post].key[:10]) == post
    assert shelf.resolve_name(str(shelf.runs[post].folder)) == post
    with pytest.raises(DataError, match="student 'pre_cot': none of 2 stored runs"):
        shelf.resolve_name("pre_cot")
    with pytest.raises(DataError, match="no stored run of that name"):
        shelf.get("someone")


# Train here


def test_what_a_run_reports_while_it_trains(trained):
    """A row per batch and check; the mean of an epoch's batches is the history's loss."""
    study, table, rows, store = trained
    for arm in PAIR:
        mine = [row for row in rows if row["arm"] == arm.label]
        batches = [row for row in mine if row["kind"] == "batch"]
        epochs = [row for row in mine if row["kind"] == "epoch"]
        assert [row["step"] for row in batches] == list(range(1, batches[-1]["steps"] + 1))
        key = next(run.folder for run in list_runs() if run.arm == arm.label)
        history = pd.read_csv(key / "history.csv")
        np.testing.assert_allclose([e["loss"] for e in epochs], history["loss"])
        per_epoch = len(batches) // len(epochs)
        first = [row["label_loss"] for row in batches[:per_epoch]]
        assert min(first) - 1e-5 <= history["label_loss"][0] <= max(first) + 1e-5
        checks = [row for row in mine if row["kind"] == "validation"]
        assert len(checks) == len(epochs) and all(0 <= row["p_gold"] <= 1 for row in checks)
        assert [c["accuracy"] for c in checks] == history["validation_accuracy"].tolist()


def small_plan(**changes) -> jobs.Plan:
    return replace(jobs.Plan("smoke", PAIR, questions=16), **changes)


def wait(folder, until, seconds=180):
    """Wait for a job to come to a state."""
    end = time.time() + seconds
    while time.time() < end:
        job = jobs.read_job(folder)
        if until(job):
            return job
        time.sleep(0.1)
    raise AssertionError((job.state, job.said, (folder / "log.txt").read_text()[-1000:]))


def test_a_job_is_stopped_resumes_and_lands_under_the_keys_of_the_study(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan = small_plan(epochs=20)
    study = jobs.plan_study(plan)
    folder = jobs.start_job(plan)
    try:
        job = wait(folder, lambda job: len(job.arms["label_only"].epochs) >= 2)
        assert job.state == "running" and jobs.start_job(plan) == folder
        jobs.stop_job(folder)
        stopped = jobs.read_job(folder)
        assert stopped.state == "stopped" and not jobs.is_running(folder)
        done = len(stopped.arms["label_only"].epochs)
        assert 2 <= done < 20 and not stopped.arms["label_only"].key
        assert jobs.list_jobs() == [folder]  # what a kernel that is started again finds
        jobs.start_job(plan)
        job = wait(folder, lambda job: job.state != "running")
    finally:
        jobs.stop_job(folder)
    assert job.state == "done", (folder / "log.txt").read_text()
    begins = [e for e in jobs.read_events(folder) if e["kind"] == "begin"]
    assert begins[0]["from_step"] is None and begins[1]["from_step"] > 0
    for arm in PAIR:
        one = job.arms[arm.label]
        assert one.key == run_key(make_config(study, arm, 0))
        assert (store / "runs" / one.key / "weights.safetensors").is_file()
        assert [e["epoch"] for e in one.epochs] == list(range(1, 21))
        assert [c["step"] for c in one.checks] == list(range(0, 21))
        assert [b["step"] for b in one.batches] == list(range(1, 21))


def test_a_job_that_cannot_be_made_says_why(store):
    folder = jobs.start_job(small_plan(study="no-such-study"))
    job = wait(folder, lambda job: job.state == "failed")
    assert "no-such-study" in job.said and "\n" not in job.said
    write_json(folder / "job.json", {"study": 3})
    with pytest.raises(DataError, match="job.json: damaged"):
        jobs.read_job(folder)
    with pytest.raises(DataError, match="both arms are post_cot"):
        jobs.make_plan("smoke", (PAIR[1], PAIR[1]))


def test_all_questions_named_by_their_number_are_all(store):
    study, _ = sources.open_study("smoke")
    usable = len(study.usable_questions()[0])
    keys = [
        run_key(make_config(jobs.plan_study(small_plan(questions=n)), PAIR[1], 0))
        for n in (0, usable, usable - 1)
    ]
    assert keys[0] == keys[1] == run_key(make_config(study, PAIR[1], 0)) != keys[2]


def test_knobs_make_the_arm_that_they_show(store):
    knobs = ArmKnobs("arm", "post_cot")
    assert knobs.arm() == Arm("post_cot") and knobs.amount.layout.display == "none"
    knobs.corruption.value, knobs.amount.value, knobs.selector.value = "kept", 3, "tfidf"
    assert knobs.arm().label == "post_cot_kept[3,tfidf]" and knobs.amount.layout.display is None
    knobs.corruption.value, knobs.amount.value = "masked", 0.5
    assert knobs.arm().label == "post_cot_masked[50%,most:tfidf]"
    knobs.corruption.value, knobs.unit.value = "shuffled", "word"
    assert knobs.arm().label == "post_cot_shuffled[word]"
    knobs.placement.value = "label_only"
    assert knobs.arm() == Arm("label_only") and knobs.corruption.layout.display == "none"


def test_the_panel_shows_a_finished_job_and_its_disagreements(trained, monkeypatch):
    study, _, rows, store = trained
    bench = Bench(study, delay=0)
    panel = TrainPanel(bench, every=0)
    plan = small_plan(seed=0)
    plan.folder.mkdir(parents=True)
    write_json(plan.folder / "job.json", json.loads(json.dumps(plan.__dict__, default=vars)))
    keys = {run.arm: run.key for run in list_runs()}
    runs = [{"kind": "run", "arm": a.label, "key": keys[a.label], "seconds": 1} for a in PAIR]
    lines = [{"kind": "start"}, *rows, *runs, {"kind": "done"}]
    (plan.folder / "progress.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    panel.watch(plan.folder)
    assert "Done: label_only step" in panel.said.value and panel.go.description == "Train"
    assert panel.curves.value.count("<svg") == 3 and "<title>chance: 0.25" in panel.curves.value
    assert "label_only - post_cot" in panel.result.value and "One seed each" in panel.result.value
    assert TrainPanel(bench, every=0).folder == plan.folder
    assert {"label_only", "post_cot"} <= {run.arm for run in bench.shelf.runs.values()}
    # the page for who has no kernel holds all that, and asks nobody for anything
    page = bench.save_page(store / "page.html").read_text()
    assert panel.curves.value.replace(markup.STYLE, "") in page and "http" not in page


def test_paired_effects_by_hand(trained):
    study, table, _, store = trained
    keys = {run.arm: run.key for run in list_runs()}
    a, b = (compare.read_predictions(keys[arm.label], arm.label, 0) for arm in PAIR)
    effects = compare.paired_effects(a, b).set_index("measure")
    gold = [
        gold_probability(x, g) - gold_probability(y, g)
        for x, y, g in zip(a["scores"], b["scores"], a["gold"], strict=True)
    ]
    assert effects.loc["p_gold", "estimate"] == pytest.approx(np.mean(gold))
    right = a["correct_choice"].mean() - b["correct_choice"].mean()
    assert effects.loc["correct_choice", "estimate"] == pytest.approx(right)
    assert set(effects["covers"]) == {"questions"}
    found = compare.list_disagreements(a, b, study.test_questions())
    apart = a.loc[(a["correct_choice"] != b["correct_choice"]).to_numpy(), "id"]
    assert sorted(one.example.id for one in found) == sorted(apart)
    for one in found:
        right = [n for n, row in one.answers.items() if row["choice"] == one.example.label]
        assert right == [one.right]
    with pytest.raises(DataError, match="no such run"):
        compare.read_predictions("0" * 64, "post_cot", 0)


# Drawing


def test_a_heat_map_has_numbers_and_the_colours_of_the_figures():
    page = markup.heat_html([" tea", "<b>"], [0.5, -0.25])
    assert 'title="tea: +0.500 nats"' in page and "&lt;b&gt;: -0.250 nats" in page
    assert "background:#D55E00" in page and "background:#9CCBE8" in page and "underline" in page
    assert markup.mix_colours(markup.FOR, 0) == "#FFFFFF"
    assert markup.mix_colours(("#000000", "#FFFFFF"), 0.5) == "#808080"
    with pytest.raises(ValueError):
        markup.heat_html(["a"], [1, 2])


@pytest.mark.parametrize("value, top", [(0.9, 1), (1, 1), (1.1, 2), (3, 5), (7, 10), (0.03, 0.05)])
def test_axes_end_at_round_numbers(value, top):
    assert markup.round_up(value) == pytest.approx(top)


def test_curves_start_at_zero_and_name_their_points():
    svg = markup.curve_svg("loss", {"a & b": [(1, 0.5), (2, 3.0)], "c": []}, unit="nats", steps=4)
    assert "a &amp; b, step 2: 3.000 nats" in svg and ">5<" in svg and ">0<" in svg
    points = re.search(r'points="([^"]*)"', svg)[1].split()
    assert float(points[0].split(",")[1]) > float(points[1].split(",")[1])


# Finished studies


def test_without_rationales_or_runs_it_says_what_is_missing(store):
    study, _ = sources.open_study("smoke")
    empty = study.replace(test_size=2)
    empty.data = replace(study.data, rationales={})
    with pytest.raises(DataError, match="none of the .* training questions has a rationale"):
        sources.list_questions(empty, {})
    assert finished.finished_studies() == [] and "make smoke" in finished.replot().value


def test_a_finished_study_is_replotted(smoke, monkeypatch):
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(smoke[0] / "artifacts"))
    box = finished.replot()
    (study, _), arms = box.children[0].children, box.children[1]
    assert "smoke" in study.options
    study.value = "smoke"
    assert {"zero_shot", "label_only", "pre_cot", "post_cot", "post_cot_swapped"} <= set(
        arms.options
    ) and arms.value == tuple(arms.options)


def wait_for_lab(port: int) -> None:
    """Wait until JupyterLab answers, as long as `PATIENCE`."""
    for _ in range(10 * PATIENCE):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t", timeout=1)
            break
        except OSError:
            time.sleep(0.1)


def start_lab(tmp_path: Path) -> tuple[subprocess.Popen, int]:
    """Start JupyterLab on a free port, in a folder and a home of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"),
        **{f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")},
        "HOME": str(tmp_path),
    }
    environment |= {
        "COTDISTILL_CACHE": os.environ.get("COTDISTILL_CACHE")
        or str(Path.home() / ".cache" / "cotdistill")
    }
    log = (tmp_path / "lab.log").open("w")
    lab = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--allow-root",
            "--no-browser",
            f"--port={port}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.news_url=None",
            "--IdentityProvider.token=t",
            f"--ServerApp.root_dir={tmp_path}",
            "--LabApp.expose_app_in_browser=True",
        ],
        env=environment,
        stdout=log,
        stderr=log,
    )
    return lab, port


def press(name: str) -> str:
    """Return JavaScript that clicks the first button of this name."""
    return (
        "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == "
        f"{json.dumps(name)}).click()"
    )


def photograph(browser: Browser, name: str) -> None:
    """Save a screenshot where COTDISTILL_SCREENSHOTS names a folder."""
    folder = os.environ.get("COTDISTILL_SCREENSHOTS")
    if folder:
        found = browser.send("Page.captureScreenshot", format="png")
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


def edit_and_ask(browser: Browser) -> None:
    """Delete a token: the heat map follows. Ask the typed question: an answer comes."""
    heat = "document.querySelector('.cotdistill-heat')?.innerText"
    before = browser.wait(heat)
    # The first token of the tiny student is the space before the text: another one
    browser.run("document.querySelectorAll('button.cotdistill-delete')[3].click()")
    browser.wait(f"({heat}) != {json.dumps(before)}")
    title = "document.querySelector('.cotdistill-heat span')?.title"
    assert "nats" in browser.wait(title)
    browser.run("document.querySelector('.cotdistill-heat').scrollIntoView({block: 'center'})")
    time.sleep(0.5)
    photograph(browser, "edit")
    browser.run(press("Ask"))
    browser.wait("document.body.innerText.includes('After its answer it wrote')")
    photograph(browser, "ask")


def train_and_stop(browser: Browser) -> None:
    """Train the two arms of the panel; curves, the difference and disagreements appear."""
    browser.run(press("Train"))
    browser.wait("document.querySelectorAll('.cotdistill-curves svg').length == 3")
    # Not "95 % interval": the notebook's own text says that
    browser.wait("document.body.innerText.includes('One seed each')")
    browser.run("document.querySelector('.cotdistill-curves').scrollIntoView()")
    time.sleep(0.5)
    photograph(browser, "train")
    browser.run(press("Save this page"))
    browser.wait("document.body.innerText.includes('opens in any browser')")


@pytest.mark.browser
@needs_chromium
def test_a_reader_selects_tokens_in_jupyterlab(tmp_path):
    """Run all cells, click two tokens, save, edit, ask, train, turn a knob; then the saved page."""
    shutil.copy(NOTEBOOK, tmp_path / "explore.ipynb")
    path = tmp_path / "selections.jsonl"
    book = json.loads((tmp_path / "explore.ipynb").read_text())
    for cell in book["cells"]:
        cell["source"] = [
            re.sub(
                r'^study = "quick"',
                'study = "smoke"',
                re.sub(r'^selections = "[^"]*"', f"selections = {json.dumps(str(path))}", line),
            )
            for line in cell["source"]
        ]
    (tmp_path / "explore.ipynb").write_text(json.dumps(book))
    lab, port = start_lab(tmp_path)
    browser = None
    try:
        wait_for_lab(port)
        browser = Browser(tmp_path / "profile", height=1400, online=True)
        browser.send("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=t")
        browser.wait("!!window.jupyterapp && !!document.querySelector('.jp-Notebook .jp-Cell')")
        browser.wait(
            "[...jupyterapp.serviceManager.kernels.running()][0]?.execution_state == 'idle'"
        )
        browser.run("jupyterapp.commands.execute('notebook:run-all-cells'); 1")
        token, dialog = (
            "document.querySelectorAll('button.cotdistill-token')",
            ("document.querySelector('.jp-Dialog .jp-mod-accept')"),
        )
        # A dialog that asks for the kernel is answered with its default
        n = browser.wait(f"({dialog}?.click(), {token}.length)")
        for i in (n - 1, 2):
            browser.run(f"{token}[{i}].click()")
        browser.wait(f"[...{token}].filter(b => b.classList.contains('mod-success')).length == 2")
        browser.wait("document.body.innerText.includes('2 of ')")
        browser.run(
            "[...document.querySelectorAll('button')].find(b => b.innerText.trim() == "
            "'Save').click()"
        )
        browser.wait("[...document.querySelectorAll('th')].some(h => h.innerText == 'overlap')")
        (row,) = [json.loads(line) for line in path.read_text().splitlines()]
        assert row["tokens"] == [2, n - 1] and row["id"].startswith("everyday-test-")
        edit_and_ask(browser)
        train_and_stop(browser)
        # textContent: JupyterLab does not render a cell out of sight, and then innerText is empty
        text = "[...document.querySelectorAll('.cotdistill-text')].at(-1)?.textContent"
        before = browser.wait(text)
        browser.run("""(() => {
            const named = o => o.text == 'label_only';
            const arms = [...document.querySelectorAll('select')]
                .find(s => [...s.options].some(o => o.text == 'post_cot_shuffled'));
            arms.value = [...arms.options].find(named).value;
            arms.dispatchEvent(new Event('change', {bubbles: true}));
        })()""")
        after = browser.wait(f"(({text}) != {json.dumps(before)}) && {text}")
        assert "rationale: 0" in after.replace(
            "\u00a0", " "
        ) and "rationale: 0" not in before.replace("\u00a0", " ")
    finally:
        if browser:
            browser.close()
        lab.terminate()
        try:
            lab.wait(10)
        except subprocess.TimeoutExpired:
            lab.kill()
