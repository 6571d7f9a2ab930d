"""Nothing unsafe: no code out of data or weights, no key outside the environment, no name that
leaves its folder, nothing unpinned.
"""

import ast
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_gguf
import yaml
from conftest import tiny
from studies import make_spec, make_study

from cotdistill import students
from cotdistill.arms import Arm
from cotdistill.elicit.local import elicit_transformers
from cotdistill.elicit.prompts import Demonstration
from cotdistill.elicit.records import read_records
from cotdistill.elicit.server import elicit_openai
from cotdistill.elicit.settings import Sampling, TeacherSettings
from cotdistill.errors import DataError
from cotdistill.examples import Rationale
from cotdistill.paths import study_dir
from cotdistill.runs.grid import run_grid
from cotdistill.runs.provenance import provenance
from cotdistill.runs.scores import load_or_make_scores
from cotdistill.sources import SOURCES, load_dataset, write_rationales
from cotdistill.verdicts import load_verdicts

ROOT = Path(__file__).resolve().parents[1]
SOURCE = sorted([*(ROOT / "cotdistill").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "benchmarks").glob("*.ipynb")])

# ---------------------------------------------------------------- the code

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.execv",
    "torch.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.hub.load",
}
SAFE = {"yaml.SafeLoader", "yaml.CSafeLoader", "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"}


def unsafe(code: str) -> list[str]:
    """What in a piece of Python would run or unpickle what it reads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [
                f"import {alias.name}"
                for alias in node.names
                if alias.name.split(".")[0] in MODULES
            ]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"from {node.module} import")
        elif isinstance(node, ast.Call):
            name, given = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            if name in CALLS or name.split(".")[-1] in ("read_pickle", "to_pickle"):
                found.append(name)
            if (
                name == "yaml.load"
                and not {*map(ast.unparse, node.args[1:]), *given.values()} & SAFE
            ):
                found.append("yaml.load without a safe loader")
            if (
                given.get("shell", "False") != "False"
                or given.get("weights_only", "True") != "True"
                or given.get("allow_pickle", "False") != "False"
            ):
                found.append(ast.unparse(node))
            if given.get("trust_remote_code", "False") != "False":
                found.append(ast.unparse(node))
            if (
                name.endswith(".from_pretrained")
                and "trust_remote_code" not in given
                and None not in given
            ):
                found.append(f"{name} without trust_remote_code=False")
            if (
                "ForCausalLM.from_pretrained" in name
                and "use_safetensors" not in given
                and None not in given
            ):
                found.append(f"{name} without use_safetensors=True")
    return found


@pytest.mark.parametrize("path", [*SOURCE, *NOTEBOOKS], ids=lambda p: p.name)
def test_no_code_comes_out_of_data(path):
    code = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        code = "\n".join(
            "".join(c["source"]) for c in json.loads(code)["cells"] if c["cell_type"] == "code"
        )
    assert unsafe(code) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "exec('x')",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(t)",
        "yaml.load(t, yaml.Loader)",
        "yaml.load(t, Loader=yaml.UnsafeLoader)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "np.load(f, allow_pickle=True)",
        "frame.to_pickle(f)",
        "AutoTokenizer.from_pretrained(p)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=flag)",
        "AutoModelForCausalLM.from_pretrained(p, trust_remote_code=False)",
    ],
)
def test_the_scan_sees_what_it_should(code):
    assert unsafe(code)


def test_code_that_comes_with_a_student_is_not_run(tmp_path):
    """auto_map names a module of the folder.

    A known architecture loads by the library's own code, an unknown one not at all.
    """
    student, folder, trap = tiny("tiny-llama"), tmp_path / "s", tmp_path / "trap"
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    (folder / "own.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Own: pass\n")
    names = {
        "AutoConfig": "own.Own",
        "AutoModelForCausalLM": "own.Own",
        "AutoTokenizer": ["own.Own", None],
    }
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_text(
            json.dumps(json.loads((folder / file).read_text()) | {"auto_map": names})
        )
    assert (
        type(students.load_student(str(folder)).model).__name__ == "LlamaForCausalLM"
        and not trap.exists()
    )
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"model_type": "own"})
    )
    with pytest.raises(DataError, match="weights can't be loaded"):
        students.load_student(str(folder))
    assert not trap.exists()


# ---------------------------------------------------------------- weights and pins


@pytest.mark.parametrize("how", ["one byte", "cut", "gone"])
def test_a_changed_wheel_is_refused_before_anything_is_converted(tmp_path, monkeypatch, how):
    path = tiny_gguf.install(tmp_path, monkeypatch)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if how == "one byte" else content[:-9])
    if how == "gone":
        path.unlink()
    with pytest.raises(
        DataError,
        match=r"tiny.gguf: (SHA-256 is \w{12}…; expected|no such "
        r"file).*pip install tiny-wheel",
    ) as error:
        students.load_student("tiny-wheel")
    assert str(error.value).isprintable() and not (tmp_path / "cache" / "students").exists()


def test_what_comes_from_the_hub_is_pinned_to_a_commit():
    commit = "[0-9a-f]{40}"
    from_hub = [source for source in SOURCES.values() if source["hub"]]
    assert len(from_hub) == 3
    assert all(re.fullmatch(commit, source["revision"]) for source in from_hub)
    pinned = []
    for path in sorted((ROOT / "params").glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        for key in ("student", "teacher_model") if isinstance(values, dict) else ():
            if "/" in values.get(key, ""):
                assert re.fullmatch(rf"[\w.-]+/[\w.-]+@{commit}", values[key]), (
                    f"{path.name}: {key}"
                )
                pinned.append(path.name)
    assert len(set(pinned)) == 9


def test_packages_are_pinned_to_one_version():
    import tomllib

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", need) for need in needs)


# ---------------------------------------------------------------- names and ids

ODD = [
    "../../x",
    "/etc/passwd",
    "a/b\\c",
    "..",
    "nul\0byte",
    "~root",
    "con:aux",
    "$(touch x)",
    "x" * 5000,
    "日本 🙂",
]


def test_ids_never_become_paths(tmp_path, monkeypatch):
    """Ids with path characters through every file that a study writes.

    Nothing appears outside of the artifacts, no id in a name.
    """
    deep = tmp_path / "a" / "b" / "c"
    monkeypatch.setenv("COTDISTILL_ARTIFACTS", str(deep / "artifacts"))
    own = tmp_path / "own"
    own.mkdir()
    for split in ("train", "test"):
        rows = [
            {
                "id": f"{split}{name}" if split == "test" else name,
                "question": f"{split} {n}?",
                "choices": ["ice", "tea"],
                "answer": n % 2,
            }
            for n, name in enumerate(ODD)
        ]
        (own / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(own)
    data, folder = load_dataset(str(own), validation_size=2), study_dir("t")
    shown = [Demonstration(data.test[0], "It is so.")]
    elicit_transformers(
        data.train,
        tiny("tiny-llama"),
        folder / "teacher.jsonl",
        demonstrations=shown,
        settings=TeacherSettings(sampling=Sampling(max_new_tokens=3)),
    )
    write_rationales(
        {e.id: Rationale(e.id, "It is cold, so it is ice.", 0) for e in data.train},
        folder / "rationales.jsonl",
    )
    study = make_study(
        data=make_spec(
            dataset=str(own),
            validation_size=2,
            data_seed=0,
            microworld=None,
            rationales="studies/t/rationales.jsonl",
        ),
        max_new_tokens=4,
    )
    study.check()
    table = run_grid(study, [Arm("post_cot")], "train", say=lambda *a, **k: None)
    assert table["n"].tolist() == [len(ODD)]
    load_or_make_scores(study, study.student, "weights", "saliency", study.train_questions(0))
    made = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent != own]
    assert len(made) > 8 and all(deep / "artifacts" in path.parents for path in made)
    allowed = r"[0-9a-f]{64}(\.lock)?|[\w.-]{1,80}"
    assert all(
        re.fullmatch(allowed, part) for path in made for part in path.relative_to(tmp_path).parts
    )
    assert {p.name for p in own.iterdir()} == {"train.jsonl", "test.jsonl"}


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/x", "..", ".x", "x\0", "", "x\n", "$(x)", "x" * 200]
)
def test_a_pooled_study_cannot_lead_out(store, name):
    with pytest.raises(DataError, match="expected a plain name"):
        load_verdicts(name)


# ---------------------------------------------------------------- keys

KEY = "sk-canary-5f2c9d7e41"


class Echo(BaseHTTPRequestHandler):
    """A server that gives the key away wherever it can: in errors, refusals and rationales."""

    seen, lock = [], threading.Lock()

    def log_message(self, *args):
        pass

    def do_POST(self):
        body, key = (
            json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
            self.headers["Authorization"],
        )
        with self.lock:
            self.seen.append(key)
            n = len(self.seen)
        if n == 2:
            return self.send(500, {"error": {"message": f"overloaded, {key}"}})
        if n == 4:
            return self.send(413, {"error": {"message": f"too long, {key}"}})
        text = f" It is so, says {key}.\nAnswer: (A)"
        self.send(
            200,
            {
                "id": key,
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": text},
                    }
                ],
            },
        )

    def send(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(content))),
            ("X-Key", self.headers["Authorization"]),
        ):
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)


def test_the_key_is_in_no_file_and_on_no_screen(tmp_path):
    """Notebook 01 by papermill against a server that echoes the Authorization header."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    (tmp_path / "canary.yaml").write_text(
        "teacher: openai\nteacher_model: m\nbase_url: "
        f"http://127.0.0.1:{server.server_port}/v1\nconcurrency: "
        "1\n"
        "n_train: 8\nn_test: 8\nvalidation_size: 4\n"
    )
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"),
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": KEY,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OPENAI_LOG": "info",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            str(tmp_path / "canary.yaml"),
            "--stages",
            "elicit",
            "--executed",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    # Eight questions, one of them asked twice
    assert set(Echo.seen) == {f"Bearer {KEY}"} and len(Echo.seen) == 9
    records = read_records(tmp_path / "artifacts" / "studies" / "canary" / "teacher-blind.jsonl")
    assert (
        len(records) == 8
        and sum("***" in r["rationale"] for r in records) == 7
        and sum("413" in r["malformed"] for r in records) == 1
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "out" / "canary" / "01_elicit.ipynb") in files and len(files) >= 7
    assert (
        not [path for path in files if KEY.encode() in path.read_bytes()]
        and KEY not in done.stdout + done.stderr
    )


def test_a_key_that_cannot_be_one_is_named_without_being_shown(tmp_path, monkeypatch):
    for key in ("sk with blank", "sk-line\nbreak", "sk-ключ"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(DataError, match="OPENAI_API_KEY holds") as error:
            elicit_openai(
                [],
                tmp_path / "r.jsonl",
                model="m",
                base_url="http://127.0.0.1:9/v1",
                demonstrations=[],
            )
        assert key not in str(error.value) and not list(tmp_path.iterdir())


def test_a_run_card_holds_no_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    card = json.dumps(provenance())
    assert KEY not in card and "hf_canary" not in card and str(Path.home()) not in card
