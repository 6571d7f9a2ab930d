"""A real server, and a faulty one: nothing lost, nothing asked twice, the key nowhere."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from teachers import group_settings

from cotdistill.elicit.answers import completion_parts
from cotdistill.elicit.prompts import Demonstration, build_messages, prompt_hash
from cotdistill.elicit.quality import choose_rationales
from cotdistill.elicit.records import (
    answer_kind,
    count_usable,
    read_records,
    rebuild_prompt,
)
from cotdistill.elicit.server import TeacherError, elicit_openai, study_key_for
from cotdistill.elicit.settings import Connection, parse_extra_body
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.sources import load_rationales, write_rationales

SHOWN = [
    Demonstration(
        Example("d1", "What color is snow?", ("white", "red"), 0),
        "Snow is frozen water. It is white.",
    )
]
KEY = "sk-secret-0123456789"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def questions(n):
    return [
        Example(f"q{i:03d}", f"What comes after number {i} in a row?", ("more", "less"), i % 2)
        for i in range(n)
    ]


class Faulty(ThreadingHTTPServer):
    """Answers chat completions.

    `fault(id, nth request)` names what goes wrong, None for a good answer.
    """

    daemon_threads, request_queue_size = True, 128

    def __init__(self, fault, content=" It is so.\nAnswer: (A)", slow=2.0):
        super().__init__(("127.0.0.1", 0), Reply)
        self.fault, self.content, self.slow, self.lock = fault, content, slow, threading.Lock()
        self.log, self.keys, self.active, self.peak = [], set(), 0, 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    url = property(lambda self: f"http://127.0.0.1:{self.server_port}/v1")

    def handle_error(self, request, client_address):
        pass  # the client was killed or gave up


class Reply(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question_id = "q" + body["messages"][-1]["content"].split("number ")[1].split()[0].zfill(3)
        with server.lock:
            nth = sum(i == question_id for i, _ in server.log)
            fault = server.fault(question_id, nth)
            server.log.append((question_id, fault))
            server.keys.add(self.headers["Authorization"])
            server.active += 1
            server.peak = max(server.peak, server.active)
        time.sleep(0.01)
        with server.lock:
            server.active -= 1
        message = {"role": "assistant", "content": None if fault == "empty" else server.content}
        whole = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "length" if fault == "length" else "stop",
                        "message": message,
                    }
                ],
            }
        ).encode()
        if fault == "timeout":
            time.sleep(server.slow)
        elif fault == "close":
            self.close_connection = True
        elif isinstance(fault, int):
            self.send(
                fault,
                json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}}).encode(),
            )
        elif fault == "cut":
            self.send(200, whole[: len(whole) // 2])
        elif fault == "torn":
            self.send(200, whole[: len(whole) // 2], len(whole))
            self.close_connection = True
        else:
            self.send(200, whole)

    def send(self, status, body, length=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)


def ask(server, path, count=1, **how):
    usual = dict(
        model="m",
        base_url=server.url,
        demonstrations=SHOWN,
        timeout=0.5,
        backoff=0.01,
        concurrency=4,
    )
    return elicit_openai(questions(count), path, **group_settings(**{**usual, **how}))


CLIENT = """
import sys
from cotdistill.elicit.server import elicit_openai
sys.path.insert(0, {tests!r})
from test_elicit_server import SHOWN, group_settings, questions
assert "torch" not in sys.modules
how = group_settings(model="m", base_url={url!r}, demonstrations=SHOWN, timeout=1.0, backoff=0.02,
                     concurrency=8, max_retries=20)
elicit_openai(questions(300), {path!r}, **how)
"""


@pytest.mark.slow
def test_a_server_that_fails_at_30_percent_and_two_kills(tmp_path):
    rng, kinds = random.Random(0), ("timeout", 429, 500, 503, "cut", "torn", "close")
    server, path = (
        Faulty(
            lambda question_id, nth: rng.choice(kinds) if rng.random() < 0.3 else None, slow=1.5
        ),
        tmp_path / "r.jsonl",
    )
    code = CLIENT.format(tests=str(ROOT / "tests"), path=str(path), url=server.url)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY}
    recorded, runs = set(), []
    for kill_at in (80, 190, None):
        before = len(server.log)
        client = subprocess.Popen(
            [sys.executable, "-c", code],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while (
            kill_at
            and client.poll() is None
            and (not path.is_file() or path.read_bytes().count(b"\n") < kill_at)
        ):
            time.sleep(0.005)
        if kill_at:
            client.send_signal(signal.SIGKILL)
        output = client.communicate(timeout=60)[0]
        assert client.returncode == (-signal.SIGKILL if kill_at else 0), output
        assert KEY not in output
        time.sleep(0.1 if kill_at else 0)  # what the dead client had sent still arrives
        asked = {question_id for question_id, _ in server.log[before:]}
        assert not asked & recorded, "a recorded question was asked again"
        if kill_at == 80:
            with open(path, "ab") as torn:
                torn.write(b'{"id": "q299", "sample"')
        recorded = {r["id"] for r in read_records(path)}
        runs.append(len(recorded))
    assert runs[0] >= 80 and 190 <= runs[1] < 300 and runs[2] == 300
    assert Counter(r["id"] for r in read_records(path)) == Counter(e.id for e in questions(300))
    assert all(
        r["raw"] == server.content and r["answer"] == "A" and not r["malformed"]
        for r in read_records(path)
    )
    served = Counter(question_id for question_id, fault in server.log if fault is None)
    # Answers in flight at a kill, or read too late on a busy machine
    assert sum(served.values()) - 300 <= 2 * 8 + 20
    assert {fault for _, fault in server.log} == {*kinds, None} and server.peak <= 8 + 8
    assert server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir())
    server.shutdown()
    server.server_close()


def test_a_malformed_answer_is_recorded_and_not_asked_again(tmp_path):
    faults = {"q000": "empty", "q001": "length", "q002": 413}
    server = Faulty(lambda question_id, nth: faults.get(question_id))
    rows = ask(server, tmp_path / "r.jsonl", 4, concurrency=1)
    assert [r["malformed"].split(":")[0] for r in rows] == ["no text", "", "refused", ""]
    assert [r["cut_off"] for r in rows] == [False, True, False, False] and [
        r["answer"] for r in rows
    ] == [None, "A", None, "A"]
    assert ask(server, tmp_path / "r.jsonl", 4) == rows and len(server.log) == 4
    assert [rebuild_prompt(r, tmp_path / "r.jsonl") for r in rows] == [
        build_messages(e, SHOWN, "blind") for e in questions(4)
    ]
    server.shutdown()
    server.server_close()


def test_a_server_that_fails_for_good_ends_in_one_clear_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    state = {"down": 500}
    server = Faulty(
        lambda question_id, nth: state["down"] if question_id >= "q006" else None,
        content=f" {KEY}.\nAnswer: (A)",
    )
    path = tmp_path / "r.jsonl"
    for down, said in ((500, "it answered 500, 3 times in a row"), (401, "it answered 401")):
        state["down"] = down
        with pytest.raises(TeacherError) as error:
            ask(server, path, 10, max_retries=2)
        assert all(
            text in str(error.value)
            for text in (said, "6 of 10 answers are recorded", str(path), "only the other 4")
        )
        assert error.value.__cause__ is None and KEY not in str(error.value) + repr(
            error.value.__context__
        )
    state["down"] = None
    assert len(ask(server, path, 10)) == 10
    server.shutdown()
    server.server_close()
    with pytest.raises(TeacherError, match="no connection"):
        ask(server, tmp_path / "none.jsonl", max_retries=1)
    with pytest.raises(TeacherError, match="refused question q000"):
        ask(Faulty(lambda question_id, nth: 400), tmp_path / "400.jsonl", 5, concurrency=1)
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir()) and KEY not in "".join(
        capfd.readouterr()
    )
    for url in (f"http://me:{KEY}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={KEY}"):
        with pytest.raises(DataError, match="OPENAI_API_KEY") as error:
            elicit_openai(questions(1), path, model="m", base_url=url, demonstrations=SHOWN)
        assert KEY not in str(error.value)


def test_what_is_sent(tmp_path, monkeypatch):
    sent, real = [], Reply.do_POST

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.peek(length)[:length]
        sent.append(json.loads(body))
        real(self)

    monkeypatch.setattr(Reply, "do_POST", do_POST)
    server = Faulty(lambda question_id, nth: None)
    (greedy,) = ask(server, tmp_path / "r.jsonl")
    sampled = ask(
        server,
        tmp_path / "r.jsonl",
        temperature=0.7,
        top_p=0.95,
        top_k=50,
        n=2,
        concurrency=1,
        extra_body={"min_p": 0.1},
    )
    assert server.keys == {"Bearer none"} and len(read_records(tmp_path / "r.jsonl")) == 3
    assert (
        sent[0]["temperature"] == 0
        and sent[0]["stop"] == ["\nQuestion:"]
        and not {"seed", "top_k", "top_p"} & set(sent[0])
    )
    assert sent[1]["top_k"] == 50 and sent[1]["min_p"] == 0.1 and sent[1]["seed"] != sent[2]["seed"]
    assert [r["sample"] for r in sampled] == [0, 1] and sampled[0]["decoding"]["extra_body"] == {
        "min_p": 0.1
    }
    assert prompt_hash(sent[0]["messages"]) == greedy["prompt_hash"] == sampled[0]["prompt_hash"]
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_real_server(tmp_path):
    """`transformers serve` on loopback.

    What comes back over the wire is what the same model says in this process.
    """
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    from cotdistill.elicit.local import elicit_transformers
    from cotdistill.students import load_student

    student, folder = load_student("tiny-llama"), tmp_path / "tiny"
    student.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] "
        "}}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "serve.log").open("wb")
    serve = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "transformers.cli.transformers",
            "serve",
            str(folder),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ],
        stdout=log,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        for _ in range(1500):
            assert serve.poll() is None, (tmp_path / "serve.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        for chat in (True, False):
            for mode in ("blind", "label_conditioned"):
                how = dict(demonstrations=SHOWN, mode=mode, chat=chat, max_new_tokens=12)
                over = elicit_openai(
                    questions(4),
                    tmp_path / "served.jsonl",
                    model=str(folder),
                    base_url=f"http://127.0.0.1:{port}/v1",
                    **group_settings(concurrency=2, **how),
                )
                here = elicit_transformers(
                    questions(4), student, tmp_path / "here.jsonl", **group_settings(**how)
                )
                assert [r["raw"] for r in over] == [r["raw"] for r in here] and all(
                    r["cut_off"] for r in over
                )
                assert len({r["raw"] for r in over}) > 1 or len({r["raw"] for r in here}) == 1
                if not chat:
                    assert [r["prompt_hash"] for r in over] == [r["prompt_hash"] for r in here]
        assert len(read_records(tmp_path / "served.jsonl")) == 16
    finally:
        serve.terminate()
        serve.wait(10)
        log.close()


# --- what servers of today send


class Scripted(Faulty):
    """Answers with what `reply(id, nth request, body)` gives: (status, JSON), or a message."""

    def __init__(self, reply):
        super().__init__(lambda question_id, nth: None)
        self.reply, self.bodies = reply, []

    def finish_request(self, request, client_address):
        Scripting(request, client_address, self)


class Scripting(Reply):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        question_id = (
            "q" + asked.split("number ")[1].split()[0].zfill(3) if "number " in asked else asked
        )
        with server.lock:
            nth = sum(i == question_id for i, _ in server.log)
            server.log.append((question_id, None))
            server.bodies.append(body)
        said = server.reply(question_id, nth, body)
        if isinstance(said, tuple):
            status, content = said
        else:
            reason = said.pop("finish_reason", "stop")
            status, content = (
                200,
                {"choices": [{"index": 0, "finish_reason": reason, "message": said}]},
            )
        self.send(status, content if isinstance(content, bytes) else json.dumps(content).encode())


GOOD = {"role": "assistant", "content": " It is so.\nAnswer: (A)"}


@pytest.fixture
def scripted():
    servers = []

    def start(reply):
        servers.append(Scripted(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def error_of(message, **more):
    return {"error": {"message": message, "type": "invalid_request_error", **more}}


FORMS = {  # message -> raw text, kind, the start of `malformed`, thoughts
    "parts": (
        {
            "content": [
                {"type": "text", "text": " It is "},
                {"type": "image_url"},
                "so.",
                {"type": "text", "text": "\nAnswer: (A)"},
            ]
        },
        " It is so.\nAnswer: (A)",
        "usable",
        "",
        "",
    ),
    "thinking parts": (
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm (B)?"}]},
                {"type": "text", "text": "So.\nAnswer: (A)"},
            ]
        },
        "So.\nAnswer: (A)",
        "usable",
        "",
        "Hm (B)?",
    ),
    "thoughts beside it": (
        {**GOOD, "reasoning_content": "Hm."},
        GOOD["content"],
        "usable",
        "",
        "Hm.",
    ),
    "thoughts only": (
        {"content": None, "reasoning_content": "Maybe (B)?", "finish_reason": "length"},
        "",
        "cut off",
        "no text",
        "Maybe (B)?",
    ),
    "reasoning, ended": (
        {"content": None, "reasoning": "Maybe (B)?"},
        "",
        "empty",
        "no text",
        "Maybe (B)?",
    ),
    "refusal": (
        {"content": None, "refusal": "I can't help."},
        "",
        "refused",
        "refused: I can't help.",
        "",
    ),
    "filter": (
        {"content": "It is", "finish_reason": "content_filter"},
        "It is",
        "refused",
        "refused: content_filter",
        "",
    ),
    "empty": ({"content": ""}, "", "empty", "no text", ""),
    "blank": ({"content": " \n"}, " \n", "empty", "no text", ""),
    "no parts": ({"content": []}, "", "empty", "no text", ""),
    "a number": ({"content": 7}, "", "empty", "no text", ""),
    "cut off": ({"content": " It is", "finish_reason": "length"}, " It is", "usable", "", ""),
    "half a pair": (
        {"content": " It is \ud83d so.\nAnswer: (A)"},
        " It is \ufffd so.\nAnswer: (A)",
        "usable",
        "",
        "",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_kept_whatever_its_form(scripted, tmp_path, form):
    message, raw, kind, malformed, thoughts = FORMS[form]
    server, path = scripted(lambda question_id, nth, body: dict(message)), tmp_path / "r.jsonl"
    (row,) = ask(server, path)
    assert (row["raw"], answer_kind(row)) == (raw, kind) and row["malformed"].startswith(malformed)
    assert row["message"] == {k: v for k, v in message.items() if k != "finish_reason"}
    reason = message.get("finish_reason", "stop")
    assert completion_parts(row) == (raw, thoughts, reason) and row["cut_off"] == (
        reason == "length"
    )
    assert read_records(path) == [row] == ask(server, path) and len(server.log) == 1
    assert "(B)" not in row["rationale"] and row["answer"] != "B"
    path.read_bytes().decode("ascii")


def test_a_response_without_a_message_is_kept_too(scripted, tmp_path):
    for number, content in enumerate(
        ({"choices": []}, {"choices": [{"message": None}]}, {"choices": ["x"]})
    ):
        (row,) = ask(scripted(lambda *_, sent=content: (200, sent)), tmp_path / f"{number}.jsonl")
        assert row["message"] == content and answer_kind(row) == "empty"


def test_half_a_surrogate_pair_goes_through_to_the_rationales_file(scripted, tmp_path):
    half = {"content": " It is \ud83d so.\nAnswer: (A)"}
    rows = ask(scripted(lambda *_: dict(half)), tmp_path / "r.jsonl", 2)
    found = choose_rationales(rows, questions(2))
    write_rationales(found, tmp_path / "rationales.jsonl")
    assert load_rationales(tmp_path / "rationales.jsonl", questions(2)) == found
    # As earlier versions recorded it
    old = [{**row, "rationale": " It is \ud83d so."} for row in rows]
    write_rationales(choose_rationales(old, questions(2)), tmp_path / "rationales.jsonl")


def test_the_count_says_what_is_usable(scripted, tmp_path):
    odd = {
        "q000": {"content": None, "refusal": "No."},
        "q001": {"content": None, "finish_reason": "length"},
        "q002": {"content": " It is", "finish_reason": "length"},
    }
    reply = lambda question_id, nth, body: (
        (500, error_of("no")) if question_id == "q003" else dict(odd.get(question_id, GOOD))
    )
    rows = ask(scripted(reply), tmp_path / "r.jsonl", 40, max_retries=1)
    said = count_usable(choose_rationales(rows, questions(40)), rows, questions(42), questions(40))
    assert said.startswith("37 of 42 training questions have a usable rationale: ")
    assert all(part in said for part in ("1 refused", "1 cut off", "1 not answered", "2 not asked"))
    assert said.endswith("; 1 of them break off at max_teacher_tokens")
    gold = {"q000": Rationale("q000", "So.", 0)}
    assert count_usable(gold, [], questions(2), questions(2)).endswith(
        "1 of 2 training questions have a usable rationale: 1 without one"
    )
    assert count_usable(gold, [], questions(1), questions(1)).endswith("have a usable rationale")


def test_only_what_was_cut_off_is_asked_again_with_more_tokens(scripted, tmp_path):
    reply = lambda question_id, nth, body: {
        **GOOD,
        "finish_reason": "length" if question_id == "q001" and body["max_tokens"] < 64 else "stop",
    }
    server, path = scripted(reply), tmp_path / "r.jsonl"
    short = ask(server, path, 3, max_new_tokens=16)
    assert [r["cut_off"] for r in short] == [False, True, False]
    longer = ask(server, path, 3, max_new_tokens=64)
    assert [question_id for question_id, _ in server.log[3:]] == ["q001"] and not longer[1][
        "cut_off"
    ]
    assert (
        longer[::2] == short[::2]
        and len(read_records(path)) == 4
        and short[1] in read_records(path)
    )
    assert set(choose_rationales(longer, questions(3))) == {"q000", "q001", "q002"}
    assert ask(server, path, 3, max_new_tokens=64) == longer and len(server.log) == 4
    ask(server, path, 3, max_new_tokens=8)  # a smaller limit is another question
    assert len(server.log) == 7


def test_kinds_that_are_asked_again(scripted, tmp_path):
    state = {
        "q000": {"content": None, "refusal": "No."},
        "q001": {"content": ""},
        "q002": {**GOOD, "finish_reason": "length"},
    }
    server, path = (
        scripted(lambda question_id, nth, body: dict(state.get(question_id, GOOD))),
        tmp_path / "r.jsonl",
    )
    first = ask(server, path, 4)
    state.clear()
    for number, (kind, question_id) in enumerate(
        (("refused", "q000"), ("empty", "q001"), ("cut_off", "q002")), 1
    ):
        rows = ask(server, path, 4, ask_again=(kind,))
        assert [question_id for question_id, _ in server.log[3 + number :]] == [
            question_id
        ] and len(rows) == 4
    assert (
        all(answer_kind(r) == "usable" and not r["cut_off"] for r in rows)
        and len(read_records(path)) == 7
    )
    assert read_records(path)[:4] == sorted(first, key=read_records(path).index)
    assert ask(server, path, 4) == rows and len(server.log) == 7
    # The last answer counts
    assert choose_rationales(read_records(path), questions(4))["q001"].text == "It is so."
    with pytest.raises(
        DataError, match="ask_again holds 'all'; expected only cut_off, empty, refused"
    ):
        ask(server, path, 4, ask_again=("all",))


def test_one_question_that_always_fails_is_skipped_and_named(scripted, tmp_path, capfd):
    state = {"q007"}
    reply = lambda question_id, nth, body: (
        (500, error_of("out of memory")) if question_id in state else dict(GOOD)
    )
    server, path = scripted(reply), tmp_path / "r.jsonl"
    rows = ask(server, path, 40, max_retries=2)
    assert len(rows) == 39 and "q007" not in {r["id"] for r in rows} and len(server.log) == 42
    said = capfd.readouterr().out
    assert "1 question failed: q007: it answered 500, 3 times in a row (out of memory)" in said
    assert "39 of 40 answers are recorded" in said and "only the other 1" in said
    # Asks the missing one, and ends
    assert len(ask(server, path, 40, max_retries=0)) == 39 and len(server.log) == 43
    state |= {"q037", "q038", "q039"}
    with pytest.raises(TeacherError) as error:
        ask(server, tmp_path / "more.jsonl", 40, max_retries=0)
    assert all(
        text in str(error.value)
        for text in (" questions failed: q0", "out of memory", "max_failed allows 2")
    )
    assert len(ask(server, tmp_path / "more.jsonl", 40, max_retries=0, max_failed=0.1)) == 36
    state.clear()
    assert len(ask(server, path, 40)) == 40


def test_a_server_that_died_is_not_asked_thousands_of_questions(scripted, tmp_path):
    server = scripted(lambda *_: (503, error_of("starting")))
    with pytest.raises(
        TeacherError,
        match=r"1\d questions failed: q0\d\d: it answered 503 "
        r"\(starting\); ",
    ):
        ask(server, tmp_path / "r.jsonl", 400, max_retries=0)
    assert len(server.log) <= 20


REFUSED_FIELDS = [
    (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead.",
        {"param": "max_tokens"},
        "`token_limit: max_completion_tokens`",
    ),
    (
        "Unrecognized request argument supplied: max_completion_tokens",
        {},
        "`token_limit: max_tokens`",
    ),
    ("Unsupported parameter: 'stop' is not supported with this model.", {}, "`leave_out: [stop]`"),
    (
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default "
        "(1) value is supported.",
        {"param": "temperature"},
        "`leave_out: [temperature]`",
    ),
]


@pytest.mark.parametrize("words, more, key", REFUSED_FIELDS)
def test_a_refused_field_names_the_study_key(scripted, tmp_path, words, more, key):
    reply = lambda question_id, nth, body: (
        (400, error_of(words, **more)) if question_id == "q003" else dict(GOOD)
    )
    with pytest.raises(TeacherError) as error:  # also after it has answered others
        ask(scripted(reply), tmp_path / "r.jsonl", 4, concurrency=1)
    assert words[:60] in str(error.value) and f"set {key} in the study" in str(error.value)


def test_a_long_prompt_is_no_refused_field():
    assert (
        study_key_for("This model's maximum context length is 512 tokens; max_tokens is too large")
        == ""
    )
    assert study_key_for("Unknown model 'stop-me'") == ""


SAID = [
    (
        429,
        error_of("You exceeded your current quota", code="insufficient_quota"),
        "You exceeded your current quota",
    ),
    (402, error_of("Insufficient Balance"), "Insufficient Balance"),
    (
        404,
        error_of("The model `m` does not exist", code="model_not_found"),
        "The model `m` does not exist",
    ),
    (404, {"detail": "Not Found"}, "Not Found"),
    (403, b"<html>Forbidden</html>", "<html>Forbidden</html>"),
]


@pytest.mark.parametrize("status, content, words", SAID)
def test_the_servers_own_words_end_the_run_at_once(scripted, tmp_path, status, content, words):
    server = scripted(lambda *_: (status, content))
    with pytest.raises(TeacherError) as error:
        ask(server, tmp_path / "r.jsonl", 40, concurrency=1)
    assert f"it answered {status} ({words}" in str(error.value) and len(server.log) == 1
    assert "/v1" not in str(error.value)


def test_an_address_without_v1_is_hinted_at(scripted, tmp_path):
    for content, status in ((error_of("Invalid URL"), 404), (b"<html>Welcome</html>", 200)):
        server = scripted(lambda *_, sent=(status, content): sent)
        with pytest.raises(TeacherError, match="base_url has no /v1 at its end"):
            ask(
                server, tmp_path / "r.jsonl", base_url=server.url.removesuffix("/v1"), max_retries=0
            )


def test_a_key_is_not_shown_in_part(scripted, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    words = "x" * (200 - len(KEY) // 2) + KEY
    with pytest.raises(TeacherError) as error:
        ask(scripted(lambda *_: (401, error_of(words))), tmp_path / "r.jsonl")
    assert KEY[:5] not in str(error.value)
    message = {
        "content": [{"type": "text", "text": f"So {KEY[:9]}"}, {"type": "text", "text": KEY[9:]}],
        "reasoning_content": KEY,
    }
    (row,) = ask(scripted(lambda *_: dict(message)), tmp_path / "r.jsonl")
    assert row["raw"] == "So ***" and row["message"]["reasoning_content"] == "***"


def test_fields_are_left_out_renamed_and_added(scripted, tmp_path):
    server = scripted(lambda *_: dict(GOOD))
    (row,) = ask(
        server,
        tmp_path / "r.jsonl",
        leave_out=("stop", "temperature"),
        token_limit="max_completion_tokens",
        extra_body=parse_extra_body(
            [
                "reasoning_effort=low",
                "min_p = 0.1",
                'chat_template_kwargs={"enable_thinking": false}',
            ]
        ),
    )
    (sent,) = server.bodies
    assert (
        not {"stop", "temperature", "max_tokens"} & set(sent)
        and sent["max_completion_tokens"] == 128
    )
    assert (
        sent["reasoning_effort"] == "low"
        and sent["min_p"] == 0.1
        and sent["chat_template_kwargs"] == {"enable_thinking": False}
    )
    assert row["decoding"]["leave_out"] == ["stop", "temperature"]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: parse_extra_body(["low"]), "extra_body holds 'low'; expected key=value"),
        (lambda: parse_extra_body(["a=1", "a=2"]), "extra_body holds 'a' twice"),
        (
            lambda: Connection(leave_out=("model",)),
            "leave_out holds 'model'; expected only stop, temperature",
        ),
        (
            lambda: Connection(token_limit="tokens"),
            "token_limit is 'tokens'; expected one of max_tokens",
        ),
        (lambda: Connection(timeout=0), "request_timeout is 0; expected seconds above 0"),
        (lambda: Connection(max_failed=2), "max_failed is 2; expected a share from 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_named(make, said):
    with pytest.raises(DataError) as error:
        make()
    assert said in str(error.value)


STUDY = """teacher: openai
teacher_model: m
base_url: {url}
n_train: 40
n_test: 8
validation_size: 4
request_timeout: 20
max_failed: {max_failed}
leave_out: [stop]
token_limit: max_completion_tokens
extra_body: [reasoning_effort=low]
"""


def test_a_study_with_such_a_teacher(scripted, tmp_path):
    """Notebook 01: half a surrogate pair, a refusal, and a thought that was cut off."""
    kinds = [
        {"content": " It is \ud83d so.\nAnswer: (A)"},
        {"content": None, "refusal": "No."},
        {"content": None, "reasoning_content": "Maybe (B)", "finish_reason": "length"},
    ]
    order = []

    def reply(question_id, nth, body):
        assert (
            "stop" not in body
            and body["max_completion_tokens"] == 128
            and body["reasoning_effort"] == "low"
        )
        if question_id not in order:
            order.append(question_id)
        return dict(
            kinds[order.index(question_id)] if order.index(question_id) < len(kinds) else GOOD
        )

    server = scripted(reply)
    (tmp_path / "odd.yaml").write_text(STUDY.format(url=server.url, max_failed=0.1))
    environment = os.environ | {
        "COTDISTILL_ARTIFACTS": str(tmp_path / "artifacts"),
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cotdistill.cli",
            "run",
            str(tmp_path / "odd.yaml"),
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
    assert done.returncode == 0, done.stderr[-2000:]
    said = "38 of 40 training questions have a usable rationale: 1 refused, 1 cut off"
    assert (
        said in done.stdout
        or said.replace("1 refused, 1 cut off", "1 cut off, 1 refused") in done.stdout
    )
    written = (tmp_path / "artifacts" / "studies" / "odd" / "rationales.jsonl").read_text(
        encoding="utf-8"
    )
    assert "It is \ufffd so." in written and "Maybe" not in written


def test_the_new_study_keys_are_checked(tmp_path):
    from cotdistill.parameters import load_study

    text = STUDY.format(url="http://h/v1", max_failed=0.1)
    (tmp_path / "s.yaml").write_text(text + "ask_again: [cut_off]\n")
    assert load_study(str(tmp_path / "s.yaml"))["ask_again"] == ["cut_off"]
    for old, new, said in (
        ("max_failed: 0.1", "max_failed: 2", "max_failed is 2; expected a number from 0 to 1"),
        (
            "request_timeout: 20",
            "request_timeout: 0",
            "request_timeout is 0; expected a number from 1 on",
        ),
        (
            "extra_body: [reasoning_effort=low]",
            "extra_body: {a: 1}",
            "extra_body is {'a': 1} (dict); expected a list",
        ),
        ("leave_out: [stop]", "leave_out: stop", "leave_out is 'stop' (str); expected a list"),
    ):
        (tmp_path / "s.yaml").write_text(text.replace(old, new))
        with pytest.raises(DataError) as error:
            load_study(str(tmp_path / "s.yaml"))
        assert said in str(error.value)
