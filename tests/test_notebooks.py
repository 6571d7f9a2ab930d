"""The notebooks: their anatomy in the source, and all of them executed by papermill on the smoke
study, twice.
"""

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from cotdistill import paths
from cotdistill.parameters import all_parameters, notebook_parameters
from cotdistill.tidy import INJECTED

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in paths.NOTEBOOKS.values()]
OPEN = [ROOT / "notebooks" / f"{name}.ipynb" for name in paths.OPEN_NOTEBOOKS.values()]
EXPLORE = ROOT / "notebooks" / "explore.ipynb"
EXECUTED = sorted((ROOT / "notebooks" / "executed").glob("*/[0-9]*.ipynb"))


def code_cells(path):
    """List the code cells of a notebook, without its parameters, and its parameters cell."""
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    return [c for c in code if c is not parameters[0]], parameters[0]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OPEN], ids=lambda p: p.stem)
def test_anatomy(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert (
        book.metadata.kernelspec
        == {"display_name": "Python 3", "language": "python", "name": "python3"}
        and book.nbformat_minor == 5
    )
    head = book.cells[0].source
    assert head.startswith(f"# {int(path.stem[:2])} · ") and all(
        w in head for w in ("**Question.**", "| reads |", "| writes |", "| cost |", "| next |")
    )
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(c.source and not c.outputs and c.execution_count is None for c in code)
    for before, after in pairwise(book.cells):
        sections = [
            c.cell_type == "markdown" and c.source.startswith("## ") for c in (before, after)
        ]
        assert not all(sections), f"an empty section: {before.source}"
    assert notebook_parameters(path)["study"] == "smoke"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OPEN, EXPLORE], ids=lambda p: p.stem)
def test_cells_are_short_and_only_call(path):
    """At most 15 lines of 100 characters; no definition, magic, path or old code in them."""
    cells, parameters = code_cells(path)
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While)
    for cell in (*cells, parameters):
        tree = ast.parse(cell.source)
        assert not [n for n in ast.walk(tree) if isinstance(n, forbidden)], cell.source
        assert max(map(len, cell.source.splitlines())) <= 100, cell.source
        assert not re.search(
            r"^\s*[%!]|[\"']/(home|work|root|Users|tmp)/|^\s*#.*\w =", cell.source, re.M
        ), cell.source
    for cell in cells:
        statements = ast.parse(cell.source).body
        if not all(isinstance(n, ast.Import | ast.ImportFrom) for n in statements):
            assert len(cell.source.splitlines()) <= 15, cell.source
    lines = parameters.source.splitlines()
    for node in ast.parse(parameters.source).body:
        above = lines[node.lineno - 2] if node.lineno > 1 else ""
        comment = re.search(r"  # \w", lines[node.end_lineno - 1]) or above.startswith("# ")
        assert comment, f"no comment on {node.targets[0].id}"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OPEN, EXPLORE], ids=lambda p: p.stem)
def test_no_cell_builds_a_sentence(path):
    """Texts are made by `readings`; an f-string here is a title at most, of a question's texts."""
    for cell in code_cells(path)[0]:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.JoinedStr):
                words = "".join(p.value for p in node.values if isinstance(p, ast.Constant))
                assert not re.search(r"[a-z]{2}", words), cell.source
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Markdown")


def package_names(path):
    """Names of the package that a notebook uses, and one import cell that brings them all."""
    names, modules, importing = set(), {}, []
    for cell in code_cells(path)[0]:
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cotdistill":
                assert node.module == "cotdistill", f"{path.name}: import from cotdistill alone"
                importing.append(cell.id)
                names |= {alias.name for alias in node.names}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                modules.setdefault(node.value.id, set()).add(node.attr)
    assert len(set(importing)) == 1, f"{path.name}: expected one import cell"
    for module in names & {"plots", "readings", "summaries"}:
        names |= {f"{module}.{name}" for name in modules.get(module, ())}
        names -= {module}
    return names


def test_the_notebooks_use_at_most_50_names_of_the_package():
    """Readings count by module: one a notebook, and what several of them say."""
    names = set().union(*map(package_names, NOTEBOOKS))
    assert len(names) <= 50, sorted(names)


def test_so_do_those_of_the_open_questions():
    names = set().union(*map(package_names, OPEN))
    assert len(names) <= 50, sorted(names)


def test_a_parameter_has_one_type_in_all_notebooks():
    types = {}
    for parameters in all_parameters().values():
        for key, value in parameters.items():
            assert types.setdefault(key, type(value)) is type(value), key


def test_all_notebooks_execute_and_a_second_run_trains_nothing(smoke):
    store, seconds = smoke
    assert all((store / "first" / "smoke" / path.name).is_file() for path in NOTEBOOKS)
    assert "from the store" not in seconds[0][1].split("05_")[0] and "epoch 1/" in seconds[0][1]
    assert "epoch 1/" not in seconds[1][1] and seconds[1][1].count("from the store") == seconds[0][
        1
    ].count("generated")


def test_both_runs_say_the_same(smoke):
    store, _ = smoke

    def tables(folder, name):
        book = nbformat.read(store / folder / "smoke" / name, 4)
        return [
            o.data["text/html"]
            for c in book.cells
            for o in c.get("outputs", [])
            if o.output_type == "display_data" and "text/html" in o.data
        ]

    for name in ("03_evaluate.ipynb", "04_shuffle.ipynb", "06_figures.ipynb"):
        assert tables("first", name) == tables("second", name) != []


def check_executed(path):
    book = nbformat.read(path, 4)
    text = path.read_text()
    assert "widgets" not in book.metadata and len(text) < 2_500_000
    assert not re.search(
        r"/(home|root|work|tmp|Users)/", re.sub(r'"image/png": "[^"]*"', "", text)
    ), "an absolute path"
    assert all(c.execution_count for c in book.cells if c.cell_type == "code" and c.source)
    assert not [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "error"]
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert not [kind for output in shown for kind in output.get("data", {}) if "widget" in kind]


def test_executed_smoke_notebooks_are_fit_to_commit(smoke):
    for path in NOTEBOOKS:
        check_executed(smoke[0] / "first" / "smoke" / path.name)


def test_executed_cells_keep_the_ids_of_the_source(smoke):
    for path in NOTEBOOKS:
        copies = [smoke[0] / folder / "smoke" / path.name for folder in ("first", "second")]
        ids, first, second = ([c.id for c in nbformat.read(p, 4).cells] for p in (path, *copies))
        assert ids == [i for i in first if i != INJECTED]
        assert first == second and len(first) == len(set(first))


def intervals(folder):
    """arm -> what the tables of a study's notebooks say of its forced choice.

    "54.4 % [29.6, 79.1]".
    """
    found = {}
    for path in sorted(folder.glob("0[3-6]_*.ipynb")):
        for output in (
            o
            for c in nbformat.read(path, 4).cells
            for o in c.get("outputs", [])
            if o.output_type == "display_data"
        ):
            head, *rows = output.data.get("text/plain", "").splitlines() or [""]
            if head.startswith("arm | n | seeds | forced choice"):
                for row in rows:
                    found.setdefault(row.split(" | ")[0], []).append(row.split(" | ")[3])
    return found


def test_an_arm_has_one_interval_in_all_notebooks(smoke):
    for folder in [
        smoke[0] / "first" / "smoke",
        *{path.parent for path in EXECUTED if path.stem == "06_figures"},
    ]:
        found = intervals(folder)
        # A study may lack stages: these lack one, or two
        lacking = {"strata": 1, "relations-tasks": 1, "everyday-quality": 2, "everyday-methods": 2}
        books = 4 - lacking.get(folder.name, 0)
        assert min(len(found[arm]) for arm in ("label_only", "post_cot")) == books
        assert not {arm: texts for arm, texts in found.items() if len(set(texts)) > 1}


def test_status_knows_the_stages(smoke):
    done = subprocess.run(
        [sys.executable, "-m", "cotdistill.cli", "status", "smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COTDISTILL_ARTIFACTS": str(smoke[0] / "artifacts")},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("study smoke: 0 of 6 notebooks done, 16 of 16") and len(lines) == 9
    assert lines[1].split() == ["stage", "notebook", "runs", "running", "time", "left"]
    assert re.search(r"^train +not yet +4/4 +0 ", done.stdout, re.M), done.stdout
    assert [line.split()[0] for line in lines[3:]] == list(paths.NOTEBOOKS)
    assert max(map(len, lines)) <= 80


def test_a_failing_notebook_leaves_no_half_file_and_says_why(tmp_path):
    (tmp_path / "own.yaml").write_text("dataset: no/such/folder\n")
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            str(tmp_path / "own.yaml"),
            "--executed",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and "01_elicit: DataError: no/such/folder: no such folder" in done.stderr
    )
    assert [
        line for line in done.stderr.splitlines() if line.startswith("error: ")
    ] == done.stderr.strip().splitlines()[-1:]
    assert not list((tmp_path / "out").rglob("[0-9]*.ipynb"))
    after = subprocess.run(
        [sys.executable, "-m", "cotdistill.cli", "status", str(tmp_path / "own.yaml")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert re.search(r"^elicit +failed", after.stdout, re.M), after.stdout
    assert "elicit: failed: DataError: no/such/folder" in after.stdout, after.stdout


def test_a_second_study_is_pooled_with_the_first(smoke, tmp_path):
    """06 takes a list of studies.

    One that makes no corrupted arm still gets its verdicts and its forest plot.
    """
    (tmp_path / "twin.yaml").write_text(
        "student: tiny-llama\ndata_seed: 3\nepochs: 1\npooled_studies: [smoke]\n"
    )
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(smoke[0] / "artifacts"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            str(tmp_path / "twin.yaml"),
            "--stages",
            "elicit",
            "train",
            "figures",
            "--executed",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    text = (tmp_path / "out" / "twin" / "06_figures.ipynb").read_text()
    assert (
        "Over all studies" in text
        and "Pooled: twin (microworld/everyday, tiny-llama); smoke" in text
        and "where a further study would lie" in text
        and (tmp_path / "out" / "twin" / "forest.png").stat().st_size > 10_000
    )
