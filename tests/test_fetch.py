"""`make data`: conversion of the released files, and their download from a local server."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared

from cotdistill import cli
from cotdistill.errors import DataError
from cotdistill.fetch import fetch_data, list_sources, load_catalogue
from cotdistill.release import (
    convert_quarel,
    convert_questions,
    convert_rationales,
    quarel_digest,
    quarel_row,
    split_instruction,
    split_output,
    write_lines,
)
from cotdistill.sources import load_dataset, load_rationales

# --- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "rationale", "answer"),
    [
        ("Iron sinks. The answer is B", "Iron sinks.", "B"),
        (" Iron sinks.\n The answer is B.", "Iron sinks.", "B"),
        ("Iron sinks.The answer is B", "Iron sinks.", "B"),
        ("Iron sinks. Hence, the answer is (B)", "Iron sinks.", "B"),
        ("Iron sinks so the answer is B", "Iron sinks", "B"),
        # Two spaces: the word before it belongs to the rationale
        ("Iron sinks. Therefore,  The answer is B", "Iron sinks. Therefore,", "B"),
        ("Iron sinks, so the answer is B. The answer is C", "Iron sinks,", "B. The answer is C"),
        ("Therefore, the answer is B.\nThe answer is B", "Therefore, the answer is B.", "B"),
        ("3 + 4 = 7. The answer is 7.0", "3 + 4 = 7.", "7.0"),
        ("The answer is 3 + 4 = 7.", "The answer is 3 + 4 = 7.", None),
        ("The answer is B: it sinks.", "The answer is B: it sinks.", None),
        ("The answer is C. No, it isn't. The answer is B", "The answer is C. No, it isn't.", "B"),
        ("Iron sinks.", "Iron sinks.", None),
        ("The correct answer is B", "The correct answer is B", None),
    ],
)
def test_a_rationale_is_its_output_without_the_closing_sentence(output, rationale, answer):
    assert split_output(output) == (rationale, answer)


def test_an_instruction_holds_a_question_and_all_its_options_or_is_left_out():
    whole = "Q: What sinks? Answer choices: A: a cork, B: iron, steel, C: oil, D: foam"
    assert split_instruction(whole, "openbookqa") == (
        "What sinks?",
        ("a cork", "iron, steel", "oil", "foam"),
    )
    for wrong in ("Q: What sinks?", whole.partition(", D")[0], whole[:-4]):
        assert split_instruction(wrong, "openbookqa") is None
    assert split_instruction(whole, "commonsense_qa") is None, "five options there"
    assert split_instruction(" How many? ", "svamp") == ("How many?", ())


def test_ids_count_the_released_rows_and_repeats_are_left_out():
    one = "Q: What {}? Answer choices: A: a, B: b, C: c, D: d"
    rows = [{"instruction": one.format(w), "output": "B"} for w in ("x", "y", "x", "z")]
    rows.insert(1, {"instruction": "Q: broken", "output": "A"})
    found = convert_questions(rows, "openbookqa", "train")
    assert [row["id"][-1] for row in found] == ["0", "2", "4"]
    said = [
        {"instruction": one.format(w), "output": f"{w}. The answer is B"}
        for w in ("z", "nobody asked", "x", "x")
    ]
    assert convert_rationales(said, "openbookqa", found) == [
        {"id": "openbookqa-train-00004", "rationale": "z.", "answer": "B"},
        {"id": "openbookqa-train-00000", "rationale": "x.", "answer": "B"},
    ]


def test_quarel_rows_come_in_the_order_of_their_digests():
    instances = [
        {"input": f"Sentence: Iron is {w}. Question: What is? (A) iron (B) foam", "output": ["A"]}
        for w in ("dense", "hard")
    ]
    order = [quarel_digest(quarel_row(i)) for i in reversed(instances)]
    assert convert_quarel({"Instances": instances}, "train", order) == [
        {
            "id": "quarel-train-00000",
            "question": "Iron is hard. What is? (A) iron (B) foam",
            "answer_index": 0,
        },
        {
            "id": "quarel-train-00001",
            "question": "Iron is dense. What is? (A) iron (B) foam",
            "answer_index": 0,
        },
    ]
    with pytest.raises(DataError, match="without 1 of the 2 of split train"):
        convert_quarel({"Instances": instances[:1]}, "train", order)


def invert_question(row: dict, dataset: str) -> dict:
    """Write one of our rows as the release has it."""
    if dataset == "quarel":
        text, answer = row["question"], "AB"[row["answer_index"]]
        return {"input": f"Sentence: {text}", "output": [answer]}
    if dataset == "svamp":
        return {"instruction": row["question"], "output": row["answer"]}
    question = row["question_stem"] if dataset == "openbookqa" else row["question"]
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    options = ", ".join(f"{a}: {b}" for a, b in zip(labels, texts, strict=True))
    return {
        "instruction": f"Q: {question} Answer choices: {options}",
        "output": row["answerKey"],
    }


def invert_rationale(row: dict, question: dict) -> dict:
    """Write one of our rationales as the release has it."""
    end = f"\n The answer is {row['answer']}" if row["answer"] is not None else ""
    return {"instruction": question["instruction"], "output": f"{row['rationale']}{end}"}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@needs_shared()
@pytest.mark.parametrize("dataset", ["commonsense_qa", "openbookqa", "svamp", "quarel"])
def test_the_local_files_come_back_from_their_released_form(dataset):
    """Inverted and converted again, each file is the same, byte by byte."""
    known = load_catalogue()["files"]
    for path in sorted((SHARED / dataset).glob("*.jsonl")):
        rows, content = read(path), path.read_bytes()
        if dataset == "quarel":
            released = {"Instances": [invert_question(row, dataset) for row in rows][::-1]}
            order = [quarel_digest({k: row[k] for k in row if k != "id"}) for row in rows]
            found = convert_quarel(released, path.stem, order)
        else:
            by_index = {int(row["id"][-5:]): invert_question(row, dataset) for row in rows}
            gaps = [by_index.get(i, by_index[0]) for i in range(max(by_index) + 1)]
            found = convert_questions(gaps, dataset, path.stem)
        assert write_lines(found) == content, path
        facts = known.get(f"{dataset}/{path.name}")
        if facts:  # svamp's test split is in no released file
            assert facts["ours_sha256"] == hashlib.sha256(content).hexdigest()
            assert facts["ours_rows"] == len(rows)
    train = read(SHARED / dataset / "train.jsonl")
    inverted = {row["id"]: invert_question(row, dataset) for row in train}
    for path in sorted((SHARED / "rationales" / dataset).glob("*.jsonl")):
        if dataset == "quarel":
            continue
        released = [invert_rationale(row, inverted[row["id"]]) for row in read(path)]
        content = write_lines(convert_rationales(released, dataset, train))
        assert content == path.read_bytes(), path
        facts = known[f"rationales/{dataset}/{path.name}"]
        assert facts["ours_sha256"] == hashlib.sha256(content).hexdigest()


@needs_shared()
def test_the_catalogue_says_what_the_local_data_say_of_their_source():
    said = json.loads((SHARED / "SOURCES.json").read_text(encoding="utf-8"))
    ours = load_catalogue()
    repository = said["repository"].removeprefix("github.com/")
    assert ours["repositories"][repository]["commit"] == said["commit"]
    for name, facts in said["files"].items():
        assert ours["files"][name] == {"repository": repository, **facts}


# --- download -----------------------------------------------------------------------------------


class Server:
    """Serve files by path; what `break_after`, `ranges` and `status` say goes wrong."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked = files, []
        self.break_after, self.ranges, self.status = None, True, 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request):
        start = request.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        self.asked.append((request.path, start))
        content = self.files.get(request.path)
        if content is None or self.status != 200:
            return request.send_error(404 if content is None else self.status)
        start = int(start or 0) if self.ranges else 0
        if start and start >= len(content):
            return request.send_error(416)
        request.send_response(206 if start else 200)
        if start:
            end = f"bytes {start}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", end)
        body = content[start:]
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body if self.break_after is None else body[: self.break_after])


STEM = "What sinks in water, the {}?"
RELEASED = {  # source path -> content, of invented questions
    "train.json": [
        {
            "instruction": f"Q: {STEM.format(w)} Answer choices: A: a cork, B: iron, C: oil, D: x",
            "output": "B",
        }
        for w in ("first", "second", "third", "first")
    ],
    "test.json": [
        {
            "instruction": "Q: What floats? Answer choices: A: a cork, B: iron, C: lead, D: gold",
            "label": "A",
        }
    ],
    "teacher.json": [
        {
            "instruction": f"Q: {STEM.format(w)} Answer choices: A: a cork, B: iron, C: oil, D: x",
            "output": f"Iron is dense, says the {w}.\n The answer is B",
        }
        for w in ("first", "third")
    ],
}
NAMES = {
    "train.json": "openbookqa/train.jsonl",
    "test.json": "openbookqa/test.jsonl",
    "teacher.json": "rationales/openbookqa/teacher.jsonl",
}


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A server with a small release, and a repository whose params/sources.json describes it."""
    train = convert_questions(RELEASED["train.json"], "openbookqa", "train")
    ours = {
        "train.json": train,
        "test.json": convert_questions(RELEASED["test.json"], "openbookqa", "test"),
        "teacher.json": convert_rationales(RELEASED["teacher.json"], "openbookqa", train),
    }
    contents = {name: json.dumps(rows, indent=4).encode() for name, rows in RELEASED.items()}
    files = {
        NAMES[name]: {
            "repository": "some/release",
            "source": f"data/{name}",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": len(RELEASED[name]),
            "ours_sha256": hashlib.sha256(write_lines(ours[name])).hexdigest(),
            "ours_rows": len(ours[name]),
        }
        for name, content in contents.items()
    }
    about = {"commit": "c0ffee00", "licence": "MIT", "paper": "none"}
    catalogue = {
        "repositories": {"some/release": about},
        "licences": {"openbookqa": "Apache-2.0", "svamp": "MIT"},
        "not_public": {"svamp/test.jsonl": "in no release"},
        "files": files,
    }
    path = tmp_path / "params" / "sources.json"
    path.parent.mkdir()
    path.write_text(json.dumps(catalogue))
    monkeypatch.setenv("COTDISTILL_ROOT", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    server = Server({f"/some/release/c0ffee00/data/{n}": c for n, c in contents.items()})
    yield server
    server.http.shutdown()


def run(server, capsys, *more: str) -> tuple[int, str, str]:
    """Return the exit status, the output and the error line of `cli data`."""
    code = cli.main(["data", "--base-url", server.url, *more])
    said = capsys.readouterr()
    assert said.err.count("\n") == (code != 0), "one line"
    return code, said.out, said.err


def fetched(tmp_path: Path) -> set[str]:
    data = tmp_path / "data"
    return {str(p.relative_to(data)) for p in data.rglob("*.jsonl")}


def test_all_files_are_fetched_once_and_make_a_dataset(release, tmp_path, capsys):
    code, out, _ = run(release, capsys)
    assert code == 0 and fetched(tmp_path) == set(NAMES.values())
    assert "openbookqa/train.jsonl: fetched" in out
    assert "openbookqa: Apache-2.0" in out and "some/release at commit c0ffee00: MIT" in out
    notice = (tmp_path / "data" / "LICENCES.txt").read_text()
    assert "openbookqa: Apache-2.0" in notice and "rationales/openbookqa/teacher.jsonl" in notice
    data = load_dataset("openbookqa", tmp_path / "data", validation_size=0)
    recorded = tmp_path / "data/rationales/openbookqa/teacher.jsonl"
    explained = load_rationales(recorded, data.explained)
    assert len(data.train) == 3 and len(data.test) == 1 and len(explained) == 2
    assert explained["openbookqa-train-00002"].text == "Iron is dense, says the third."
    asked = len(release.asked)
    code, out, _ = run(release, capsys)
    assert code == 0 and out.count(": there") == 3 and len(release.asked) == asked


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partial_download_goes_on_or_starts_again(release, tmp_path, capsys, ranges):
    content = release.files["/some/release/c0ffee00/data/train.json"]
    part = tmp_path / "data/downloads/some/release/data/train.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:40])
    release.ranges = ranges
    assert run(release, capsys)[0] == 0
    assert release.asked[0][1] == "40" and not part.exists()


@pytest.mark.parametrize("begun", [b"x" * 40, b"x" * 100_000, None])
def test_a_part_of_something_else_is_fetched_again(release, tmp_path, capsys, begun):
    content = release.files["/some/release/c0ffee00/data/train.json"]
    part = tmp_path / "data/downloads/some/release/data/train.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(begun or b"y" * len(content))
    assert run(release, capsys)[0] == 0 and fetched(tmp_path) == set(NAMES.values())


def test_a_body_that_ends_early_is_continued_then_said(release, tmp_path, capsys):
    release.break_after = 30
    code, _, err = run(release, capsys)
    assert code == 1 and "the answer ended after 90 bytes of" in err and "goes on from" in err
    assert "problem" in err and not fetched(tmp_path)
    release.break_after = 300
    assert run(release, capsys)[0] == 0


def test_a_wrong_checksum_is_one_line_and_nothing_is_kept(release, tmp_path, capsys):
    path = "/some/release/c0ffee00/data/train.json"
    release.files[path] = release.files[path].replace(b"iron", b"lead")
    code, _, err = run(release, capsys)
    assert code == 1 and "SHA-256" in err and "train.json" in err and "changed or damaged" in err
    # The test questions are whole; the rationales need the training questions
    assert fetched(tmp_path) == {"openbookqa/test.jsonl"}
    assert not list(tmp_path.rglob("train.json*"))


def test_a_missing_file_is_one_line(release, tmp_path, capsys):
    del release.files["/some/release/c0ffee00/data/teacher.json"]
    code, _, err = run(release, capsys)
    assert code == 1 and "HTTP 404" in err and "github.com/some/release has at commit" in err
    assert fetched(tmp_path) == {"openbookqa/train.jsonl", "openbookqa/test.jsonl"}
    release.status = 503
    code, _, err = run(release, capsys)
    assert code == 1 and "HTTP 404" in err, "the others are there and not asked for"


def test_without_a_network_one_line_says_what_to_put_where(release, tmp_path, capsys):
    code = cli.main(["data", "--base-url", "http://127.0.0.1:1"])
    err = capsys.readouterr().err
    place = tmp_path / "data/downloads/some/release/data/train.json"
    assert code == 1 and err.count("\n") == 1 and "cannot be reached" in err
    assert "commit c0ffee00" in err and str(place) in err and "test.json" not in err
    for path, content in release.files.items():
        put = place.with_name(Path(path).name)
        put.parent.mkdir(parents=True, exist_ok=True)
        put.write_bytes(content)
    assert cli.main(["data", "--base-url", "http://127.0.0.1:1"]) == 0
    assert fetched(tmp_path) == set(NAMES.values())


def test_a_file_put_there_by_hand_is_checked_too(release, tmp_path, capsys):
    place = tmp_path / "data/downloads/some/release/data/train.json"
    place.parent.mkdir(parents=True)
    place.write_text("[]")
    code, _, err = run(release, capsys)
    assert code == 1 and str(place) in err and "delete it" in err


def test_a_users_own_file_is_never_replaced(release, tmp_path, capsys):
    own = tmp_path / "data/openbookqa/test.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("mine\n")
    code, _, err = run(release, capsys)
    assert code == 1 and str(own) in err and "move it away" in err and own.read_text() == "mine\n"


def test_a_conversion_with_another_result_writes_nothing(release, tmp_path, capsys):
    path = tmp_path / "params/sources.json"
    catalogue = json.loads(path.read_text())
    catalogue["files"]["openbookqa/test.jsonl"]["ours_sha256"] = "0" * 64
    catalogue["files"]["openbookqa/train.jsonl"]["rows"] = 7
    path.write_text(json.dumps(catalogue))
    with pytest.raises(DataError, match="data/train.json: 4 rows; expected 7 .3 of 3 files"):
        fetch_data(tmp_path / "data", base_url=release.url)
    said = capsys.readouterr().out
    assert "openbookqa/test.jsonl: converted to 1 rows with SHA-256" in said
    assert "teacher.jsonl: not fetched: " in said
    assert not fetched(tmp_path)


def test_only_names_a_dataset(release, capsys):
    code, out, _ = run(release, capsys, "--only", "svamp")
    assert code == 0 and "svamp/test.jsonl: not fetched: in no release" in out
    assert not release.asked
    code, _, err = run(release, capsys, "--only", "hotpot")
    assert code == 1 and "--only hotpot: no such dataset; expected one of openbookqa, svamp" in err


def test_questions_come_before_the_rationales_that_need_them():
    names = [source.name for source in list_sources(load_catalogue())]
    first = min(i for i, name in enumerate(names) if name.startswith("rationales/"))
    assert all(name.startswith("rationales/") for name in names[first:])
    assert {"openbookqa/train.jsonl", "quarel/test.jsonl"} <= set(names[:first])
