"""explore.ipynb: its functions, the notebook without a front end, and a reader who clicks, in
JupyterLab in a real browser.
"""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import Browser, needs_chromium

from cotdistill import explore
from cotdistill.arms import ARMS, Arm, arm_from_name, format_target, prompt_text
from cotdistill.attribution import methods
from cotdistill.attribution.score_files import read_selections
from cotdistill.errors import DataError
from cotdistill.sources import load_dataset

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"


@pytest.fixture(scope="module")
def world():
    data = load_dataset(
        "microworld/everyday", microworld={"n_train": 6, "n_test": 4}, validation_size=0
    )
    return explore.questions_of(data, data.rationales), data.rationales


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


@pytest.mark.parametrize("name", [a for a in ARMS if a != "zero_shot"])
def test_shown_tokens_are_the_training_text_with_its_spans(student, world, name):
    questions, rationales = world
    example = list(questions.values())[0]
    arm, text = arm_from_name(name, amount=0.5), rationales[example.id].text
    tokens = explore.training_tokens(student, example, text, arm)
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
    page = explore.tokens_html(tokens)
    assert page.count("<span") == len(tokens) + 4 and f"= {len(tokens)} tokens" in page


def test_agreement_against_counting_by_hand(llama, world):
    questions, rationales = world
    example = list(questions.values())[1]
    found = explore.scores_of(llama, example, rationales[example.id].text, ["occlusion", "random"])
    selected = sorted(np.argsort(-found["occlusion"].scores)[:3].tolist())
    shown = explore.agreement_with(selected, found)
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
    assert explore.agreement_with([], found)["overlap"].isna().all()


def test_a_click_a_save_and_a_return(llama, world, tmp_path):
    questions, rationales = world
    path = tmp_path / "hand.jsonl"
    box = explore.select_by_hand(llama, questions, rationales, path, ["occlusion"])
    (chooser, _, forth), row, (save, clear), said = (
        box.children[0].children,
        box.children[2],
        box.children[3].children,
        box.children[4],
    )
    for i in (3, 0):
        row.children[i].value = True
    assert said.value.startswith(
        f"2 of {len(row.children)} tokens selected; 0 of 6 questions saved"
    )
    save.click()
    first = chooser.value
    assert read_selections(path) == {first: [0, 3]} and "1 of 6 questions saved" in said.value
    forth.click()
    assert chooser.value != first and not any(b.value for b in row.children)
    row.children[1].value = True
    clear.click()
    save.click()
    again = explore.select_by_hand(llama, questions, rationales, path, ["occlusion"])
    assert [i for i, b in enumerate(again.children[2].children) if b.value] == [0, 3]
    assert read_selections(path) == {first: [0, 3], chooser.value: []}


def test_a_knob_that_does_not_fit_says_so(llama, world):
    box = explore.turn_knobs(llama, *world)
    (_, arm), (_, amount), text = (
        box.children[0].children,
        box.children[1].children,
        box.children[3],
    )
    arm.value, amount.value = "post_cot_masked", 3
    assert "expected the fraction to hide, from 0 to 1" in text.value
    amount.value = 1
    assert "tokens; learnt" in text.value
    arm.value, amount.value = "pre_cot_kept", 2
    assert ">&nbsp;rationale: 2&nbsp;<" in text.value


def test_knobs_rank_tokens_by_the_label_that_is_shown(llama, world, monkeypatch):
    asked, real = [], methods.attribute_rationale
    monkeypatch.setattr(
        methods,
        "attribute_rationale",
        lambda *given, label_format, **more: (
            asked.append(label_format) or real(*given, label_format=label_format, **more)
        ),
    )
    box = explore.turn_knobs(llama, *world, "letter")
    box.children[0].children[1].value = "post_cot_kept"
    assert asked and set(asked) == {"letter"}


def test_without_rationales_or_runs_it_says_what_is_missing(world, store):
    with pytest.raises(DataError, match="none of the .* training questions has a rationale"):
        explore.questions_of(
            load_dataset(
                "microworld/everyday", microworld={"n_train": 2, "n_test": 2}, validation_size=0
            ),
            {},
        )
    assert explore.finished_studies() == [] and "make smoke" in explore.replot().value


def test_a_finished_study_is_replotted(smoke, monkeypatch):
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(smoke[0] / "artifacts"))
    box = explore.replot()
    (study, _), arms = box.children[0].children, box.children[1]
    assert "smoke" in study.options
    study.value = "smoke"
    assert {"zero_shot", "label_only", "pre_cot", "post_cot", "post_cot_swapped"} <= set(
        arms.options
    ) and arms.value == tuple(arms.options)


def wait_for_lab(port: int) -> None:
    """Wait until JupyterLab answers, 30 seconds at most."""
    for _ in range(300):
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
            "--IdentityProvider.token=t",
            f"--ServerApp.root_dir={tmp_path}",
            "--LabApp.expose_app_in_browser=True",
        ],
        env=environment,
        stdout=log,
        stderr=log,
    )
    return lab, port


@pytest.mark.browser
@needs_chromium
def test_a_reader_selects_tokens_in_jupyterlab(tmp_path):
    """Run all cells, click two tokens, save, turn a knob; the file holds what was clicked."""
    shutil.copy(NOTEBOOK, tmp_path / "explore.ipynb")
    path = tmp_path / "selections.jsonl"
    book = json.loads((tmp_path / "explore.ipynb").read_text())
    for cell in book["cells"]:
        cell["source"] = [
            re.sub(r'^selections = "[^"]*"', f"selections = {json.dumps(str(path))}", line)
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
        n = browser.wait(f"({dialog}?.click(), {token}.length)", 90)
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
        assert row["tokens"] == [2, n - 1] and row["id"].startswith("everyday-train-")
        text = "[...document.querySelectorAll('.cotdistill-text')].at(-1)?.innerText"
        before = browser.wait(text)
        browser.run("""(() => {
            const named = o => o.text == 'label_only';
            const arms = [...document.querySelectorAll('select')]
                .find(s => [...s.options].some(named));
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
