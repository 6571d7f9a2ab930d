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

from cotdistill.data import DataError, Example
from cotdistill.elicit import (Demonstration, TeacherError, build_messages, elicit_openai, elicit_transformers, prompt_hash, read_records,
                               rebuild_prompt)
from teachers import group_settings

SHOWN = [Demonstration(Example("d1", "What color is snow?", ("white", "red"), 0), "Snow is frozen water. It is white.")]
KEY = "sk-secret-0123456789"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def questions(n):
    return [Example(f"q{i:03d}", f"What comes after number {i} in a row?", ("more", "less"), i % 2) for i in range(n)]


class Faulty(ThreadingHTTPServer):
    """Answers chat completions; `fault(id, nth request)` names what goes wrong, None for a good answer."""

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
        id = "q" + body["messages"][-1]["content"].split("number ")[1].split()[0].zfill(3)
        with server.lock:
            nth = sum(i == id for i, _ in server.log)
            fault = server.fault(id, nth)
            server.log.append((id, fault))
            server.keys.add(self.headers["Authorization"])
            server.active += 1
            server.peak = max(server.peak, server.active)
        time.sleep(0.01)
        with server.lock:
            server.active -= 1
        message = {"role": "assistant", "content": None if fault == "empty" else server.content}
        whole = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [
            {"index": 0, "finish_reason": "length" if fault == "length" else "stop", "message": message}]}).encode()
        if fault == "timeout":
            time.sleep(server.slow)
        elif fault == "close":
            self.close_connection = True
        elif isinstance(fault, int):
            self.send(fault, json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}}).encode())
        elif fault == "cut":
            self.send(200, whole[:len(whole) // 2])
        elif fault == "torn":
            self.send(200, whole[:len(whole) // 2], len(whole))
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
    usual = dict(model="m", base_url=server.url, demonstrations=SHOWN, timeout=0.5, backoff=0.01, concurrency=4)
    return elicit_openai(questions(count), path, **group_settings(**{**usual, **how}))


CLIENT = """
import sys
from cotdistill.elicit import elicit_openai
sys.path.insert(0, {tests!r})
from test_elicit_server import SHOWN, group_settings, questions
assert "torch" not in sys.modules
elicit_openai(questions(300), {path!r}, **group_settings(model="m", base_url={url!r}, demonstrations=SHOWN, timeout=1.0, backoff=0.02,
              concurrency=8, max_retries=20))
"""


@pytest.mark.slow
def test_a_server_that_fails_at_30_percent_and_two_kills(tmp_path):
    rng, kinds = random.Random(0), ("timeout", 429, 500, 503, "cut", "torn", "close")
    server, path = Faulty(lambda id, nth: rng.choice(kinds) if rng.random() < 0.3 else None, slow=1.5), tmp_path / "r.jsonl"
    code = CLIENT.format(tests=str(ROOT / "tests"), path=str(path), url=server.url)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY}
    recorded, runs = set(), []
    for kill_at in (80, 190, None):
        before = len(server.log)
        client = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while kill_at and client.poll() is None and (not path.is_file() or path.read_bytes().count(b"\n") < kill_at):
            time.sleep(0.005)
        if kill_at:
            client.send_signal(signal.SIGKILL)
        output = client.communicate(timeout=60)[0]
        assert client.returncode == (-signal.SIGKILL if kill_at else 0), output
        assert KEY not in output
        time.sleep(0.1 if kill_at else 0)  # what the dead client had sent still arrives
        asked = {id for id, _ in server.log[before:]}
        assert not asked & recorded, "a recorded question was asked again"
        if kill_at == 80:
            with open(path, "ab") as torn:
                torn.write(b'{"id": "q299", "sample"')
        recorded = {r["id"] for r in read_records(path)}
        runs.append(len(recorded))
    assert runs[0] >= 80 and 190 <= runs[1] < 300 and runs[2] == 300
    assert Counter(r["id"] for r in read_records(path)) == Counter(e.id for e in questions(300))
    assert all(r["raw"] == server.content and r["answer"] == "A" and not r["malformed"] for r in read_records(path))
    served = Counter(id for id, fault in server.log if fault is None)
    assert sum(served.values()) - 300 <= 2 * 8 + 20  # answers in flight at a kill, or read too late on a busy machine
    assert {fault for _, fault in server.log} == {*kinds, None} and server.peak <= 8 + 8
    assert server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir())
    server.shutdown()
    server.server_close()


def test_a_malformed_answer_is_recorded_and_not_asked_again(tmp_path):
    faults = {"q000": "empty", "q001": "length", "q002": 413}
    server = Faulty(lambda id, nth: faults.get(id))
    rows = ask(server, tmp_path / "r.jsonl", 4, concurrency=1)
    assert [r["malformed"].split(":")[0] for r in rows] == ["no text", "", "refused", ""]
    assert [r["cut_off"] for r in rows] == [False, True, False, False] and [r["answer"] for r in rows] == [None, "A", None, "A"]
    assert ask(server, tmp_path / "r.jsonl", 4) == rows and len(server.log) == 4
    assert [rebuild_prompt(r, tmp_path / "r.jsonl") for r in rows] == [build_messages(e, SHOWN, "blind") for e in questions(4)]
    server.shutdown()
    server.server_close()


def test_a_server_that_fails_for_good_ends_in_one_clear_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    state = {"down": 500}
    server = Faulty(lambda id, nth: state["down"] if id >= "q006" else None, content=f" {KEY}.\nAnswer: (A)")
    path = tmp_path / "r.jsonl"
    for down, said in ((500, "it answered 500, 3 times in a row"), (401, "it answered 401")):
        state["down"] = down
        with pytest.raises(TeacherError) as error:
            ask(server, path, 10, max_retries=2)
        assert all(text in str(error.value) for text in (said, "6 of 10 answers are recorded", str(path), "only the other 4"))
        assert error.value.__cause__ is None and KEY not in str(error.value) + repr(error.value.__context__)
    state["down"] = None
    assert len(ask(server, path, 10)) == 10
    server.shutdown()
    server.server_close()
    with pytest.raises(TeacherError, match="no connection"):
        ask(server, tmp_path / "none.jsonl", max_retries=1)
    with pytest.raises(TeacherError, match="refused question q000"):
        ask(Faulty(lambda id, nth: 400), tmp_path / "400.jsonl", 5, concurrency=1)
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir()) and KEY not in "".join(capfd.readouterr())
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
    server = Faulty(lambda id, nth: None)
    greedy, = ask(server, tmp_path / "r.jsonl")
    sampled = ask(server, tmp_path / "r.jsonl", temperature=0.7, top_p=0.95, top_k=50, n=2, concurrency=1, extra_body={"min_p": 0.1})
    assert server.keys == {"Bearer none"} and len(read_records(tmp_path / "r.jsonl")) == 3
    assert sent[0]["temperature"] == 0 and sent[0]["stop"] == ["\nQuestion:"] and not {"seed", "top_k", "top_p"} & set(sent[0])
    assert sent[1]["top_k"] == 50 and sent[1]["min_p"] == 0.1 and sent[1]["seed"] != sent[2]["seed"]
    assert [r["sample"] for r in sampled] == [0, 1] and sampled[0]["decoding"]["extra_body"] == {"min_p": 0.1}
    assert prompt_hash(sent[0]["messages"]) == greedy["prompt_hash"] == sampled[0]["prompt_hash"]
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_real_server(tmp_path):
    """`transformers serve` on loopback: what comes back over the wire is what the same model says in this process."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    from cotdistill.students import load_student

    student, folder = load_student("tiny-llama"), tmp_path / "tiny"
    student.tokenizer.chat_template = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
                                       "{% if add_generation_prompt %}assistant:{% endif %}")
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path / "serve.log").open("wb")
    serve = subprocess.Popen([sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port),
                              "--device", "cpu", "--dtype", "float32"], stdout=log, stderr=log,
                             env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
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
                over = elicit_openai(questions(4), tmp_path / "served.jsonl", model=str(folder), base_url=f"http://127.0.0.1:{port}/v1",
                                     **group_settings(concurrency=2, **how))
                here = elicit_transformers(questions(4), student, tmp_path / "here.jsonl", **group_settings(**how))
                assert [r["raw"] for r in over] == [r["raw"] for r in here] and all(r["cut_off"] for r in over)
                assert len({r["raw"] for r in over}) > 1 or len({r["raw"] for r in here}) == 1
                if not chat:
                    assert [r["prompt_hash"] for r in over] == [r["prompt_hash"] for r in here]
        assert len(read_records(tmp_path / "served.jsonl")) == 16
    finally:
        serve.terminate()
        serve.wait(10)
        log.close()
