"""Every answer of a teacher is recorded once, whole; what is missing is asked, nothing twice."""

import hashlib
import json
import os
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from cotdistill.elicit.completions import Parsed, read_completion
from cotdistill.elicit.prompts import STOP, prompt_hash
from cotdistill.elicit.settings import Sampling
from cotdistill.elicit.thoughts import clean_text
from cotdistill.errors import DataError, disk_error
from cotdistill.examples import LETTERS, Example, Rationale
from cotdistill.files import atomic_write, file_lock, fingerprint, read_bytes

FIELDS = (
    "id",
    "sample",
    "prompt_hash",
    "prefix",
    "question",
    "mode",
    "teacher",
    "revision",
    "decoding",
    "raw",
    "rationale",
    "answer",
    "contradicts",
    "cut_off",
    "malformed",
    "seconds",
)


# the record file
def read_records(path: str | Path) -> list[dict]:
    """All whole records of a file, in the order written.

    A last line that was torn by a kill is left out.

    Raises DataError for any other line that is not one of our records.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[dict], int]:
    """Records and the length in bytes of the part of the file that is whole."""
    if not path.exists():
        return [], 0
    records, whole, content = [], 0, read_bytes(path, "a file of records")
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) - 1:  # the last line, ended but not whole
                break
            raise DataError(
                f"{path}:{number}: malformed JSON; expected one record per line"
            ) from None
        missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
        if missing:
            raise DataError(
                f"{path}:{number}: no field '{missing[0]}'; expected a record written by elicit_*"
            )
        seal = record.pop("seal", None)
        if seal is not None and seal != fingerprint(record):
            raise DataError(
                f"{path}:{number} (id {record['id']}): changed after it was written; expected the "
                "record of its seal: delete the line, the question is asked again"
            )
        records.append(record)
        whole += len(line) + 1
    return records, whole


@contextmanager
def _recording(path: Path):
    """(records so far by key, the file opened for appending).

    A torn last line is dropped. A second writer waits, then finds what the first one recorded.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(
                file_lock(path.with_name(f"{path.name}.lock"), f"the records {path}")
            )
            file = stack.enter_context(open(path, "ab", buffering=0))
        except OSError as error:
            raise disk_error(error, path.parent) or DataError(
                f"{path}: can't be written ({error.strerror}); expected a file of records"
            ) from None
        records, length = _read(path)
        if length < path.stat().st_size:
            print(
                f"{path}: dropped a torn last line of {path.stat().st_size - length} bytes; it is "
                "asked again",
                flush=True,
            )
            file.truncate(length)
        yield {_key(record): record for record in records}, file


def _append(file, record: dict) -> None:
    """One record, sealed, on the disk whole or not at all.

    Raises DataError where the disk takes no more.

    JSON escapes everything that is not ASCII, so that half a surrogate pair can be written too.
    """
    line = json.dumps({**record, "seal": fingerprint(record)}).encode() + b"\n"
    before = os.fstat(file.fileno()).st_size
    try:
        written = file.write(line)
        if written < len(line):  # the disk took a part: the next write says why it took no more
            file.write(line[written:])
        os.fsync(file.fileno())
    except OSError as error:
        file.truncate(before)
        raise disk_error(error, Path(file.name).parent) or error from None


def _key(record: dict) -> tuple:
    return tuple(record[f] for f in ("id", "sample", "prompt_hash", "teacher", "revision")) + (
        json.dumps(record["decoding"], sort_keys=True),
    )


def prefixes_path(path: str | Path) -> Path:
    """Where the few-shot prefixes of a record file stand."""
    return Path(path).with_suffix(".prefixes.json")


def _keep_prefixes(path: Path, prefixes: dict) -> None:
    side = prefixes_path(path)
    try:
        known = json.loads(side.read_text(encoding="utf-8")) if side.is_file() else {}
        known = known if isinstance(known, dict) else {}
    except ValueError:
        print(f"{side}: damaged; it is written again with the prefixes of this call", flush=True)
        known = {}
    if set(prefixes) - set(known):
        with atomic_write(side) as part:
            part.write_text(
                json.dumps({**known, **prefixes}, indent=1, ensure_ascii=False), encoding="utf-8"
            )


def rebuild_prompt(record: dict, path: str | Path) -> str | list[dict]:
    """The exact prompt of a record, text or chat messages, from the record and the prefixes beside
    its file.

    Raises DataError where the prefix is unknown or the hash does not agree.
    """
    side = prefixes_path(path)
    shared = (
        json.loads(side.read_text(encoding="utf-8")).get(record["prefix"])
        if side.is_file()
        else None
    )
    if shared is None:
        raise DataError(
            f"{side}: no prefix {record['prefix']} (id {record['id']}); expected the file written "
            f"with {path}"
        )
    prompt = (
        shared["messages"] + [{"role": "user", "content": record["question"]}]
        if "messages" in shared
        else shared["prefix"] + record["question"] + shared["tail"]
    )
    if prompt_hash(prompt) != record["prompt_hash"]:
        raise DataError(
            f"{path} (id {record['id']}): the prompt's hash is {prompt_hash(prompt)}; expected "
            f"{record['prompt_hash']}"
        )
    return prompt


def _decoding(sampling: Sampling, leave_out: tuple[str, ...] = ()) -> dict:
    """The part of a record that says how it was decoded.

    Raises DataError for a value out of range.
    """
    temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
    max_new_tokens, n = sampling.max_new_tokens, sampling.n
    if (
        not 0 <= temperature < float("inf")
        or not 0 < top_p <= 1
        or top_k < 0
        or max_new_tokens < 1
        or n < 1
    ):
        raise DataError(
            f"temperature {temperature}, top_p {top_p}, top_k {top_k}, max_new_tokens "
            f"{max_new_tokens}, n {n}; expected temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: "
            "all), max_new_tokens >= 1, n >= 1"
        )
    if temperature == 0 and n > 1 and "temperature" not in leave_out:
        raise DataError(
            f"n is {n} at temperature 0; expected n = 1 (every sample would be the same) or a "
            "temperature"
        )
    how = (
        {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": sampling.seed}
        if temperature
        else {"temperature": 0}
    )
    return {**how, "max_new_tokens": max_new_tokens, "stop": STOP}


def sample_seed(seed: int, id: str, sample: int) -> int:
    """The seed of one answer, 31 bits.

    It depends on the question, never on what else is in the batch.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}|{sample}|{id}".encode()).digest()[:4], "big") >> 1


class Answer(NamedTuple):
    """What a teacher sent for one question.

    message is the server's own object, whatever its form (None: a local model); finish_reason
    "length" means cut off; problem says why there is no usable text.
    """

    text: str = ""
    finish_reason: str = "stop"
    seconds: float = 0.0
    message: object = None
    problem: str = ""


CUT_OFF = ("length", "max_tokens", "model_length")  # the finish reasons of several servers


def join_parts(content) -> str:
    """The text of a message's content: a text, or a list of parts whose texts are joined.

    Parts without a text (images, thoughts, null) add nothing.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(join_parts, content))
    if isinstance(content, dict) and content.get("type", "text") in ("text", "output_text"):
        return join_parts(content.get("text"))
    return ""


def join_thoughts(message: dict) -> str:
    """What a message holds of the teacher's thoughts outside its content, by any known name."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if text := join_parts(message.get(name)):
            return text
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(
        join_parts(part.get("thinking"))
        for part in parts
        if isinstance(part, dict) and part.get("type") == "thinking"
    )


def completion_parts(record: dict) -> tuple[str, str, str]:
    """(text, thoughts sent beside it, finish reason) of a record: what `parse_completion` reads.

    Records of local teachers and older ones hold the text only.
    """
    message = record.get("message")
    thoughts = join_thoughts(message) if isinstance(message, dict) else ""
    reason = record.get("finish_reason") or ("length" if record["cut_off"] else "stop")
    return record["raw"], clean_text(thoughts), reason


def _finish(job: dict, example: Example, answer: Answer, secret: str | None = None) -> dict:
    """The record of an answer.

    A key that the server echoed goes out before the text is read.
    """
    record = {
        **job,
        "raw": clean_text(answer.text),
        "malformed": answer.problem,
        "cut_off": answer.finish_reason in CUT_OFF,
        "seconds": round(answer.seconds, 4),
    }
    if answer.message is not None:
        record |= {"message": answer.message, "finish_reason": answer.finish_reason}
    if secret:
        record = json.loads(json.dumps(record).replace(json.dumps(secret)[1:-1], "***"))
    text, thoughts, finish_reason = completion_parts(record)
    reading = read_completion(text, example, thoughts, finish_reason)
    parsed = Parsed(*reading[:3])
    record["cut_off"] = record["cut_off"] or not reading.finished
    if record["malformed"].startswith("refused"):  # a text that a filter broke off is no rationale
        parsed = Parsed("", None, False)
    record |= {
        "rationale": parsed.rationale,
        "contradicts": parsed.contradicts,
        "answer": None if parsed.answer is None else LETTERS[parsed.answer],
    }
    missing = "no rationale" if reading.finished else "unfinished thought"
    record["malformed"] = record["malformed"] or ("" if parsed.rationale else missing)
    return {field: record[field] for field in [*FIELDS, *(f for f in record if f not in FIELDS)]}


def answer_kind(record: dict) -> str:
    """ "usable" where training has a rationale to learn from, else why not.

    "refused" (by the model or its server), "cut off" (before the rationale was there), "empty" (no
    rationale in it).

    A rationale that breaks off in mid text is usable; `cut_off` of the record says so.
    """
    if record["rationale"].strip():
        return "usable"
    if record["malformed"].startswith("refused"):
        return "refused"
    return "cut off" if record["cut_off"] else "empty"


def is_asked_again(record: dict, ask_again: tuple[str, ...]) -> bool:
    """Whether a record is of a kind that is to be asked again.

    All that was cut off counts as "cut_off", also where a usable text came of it.
    """
    return (
        "cut_off" in ask_again
        and record["cut_off"]
        or answer_kind(record).replace(" ", "_") in ask_again
    )


def count_usable(
    found: dict[str, Rationale], records: list[dict], questions: list[Example], asked: list[Example]
) -> str:
    """ "38 of 40 training questions have a usable rationale: 1 refused, 1 cut off".

    found: rationales by id; records: the teacher's (none where nothing was asked); asked: the
    questions that were put to it. Of those that end in mid text the number is said as well.
    """
    usable = {e.id for e in questions if e.id in found and found[e.id].text.strip()}
    kinds, ids, rows = Counter(), {e.id for e in asked}, {}
    for record in records:
        rows.setdefault(record["id"], []).append(record)
    for id in (e.id for e in questions):
        if id in usable:
            continue
        if id not in ids:
            kinds["not asked"] += 1
        elif id in rows:
            kinds[answer_kind(rows[id][0])] += 1
        else:
            kinds["not answered" if records else "without one"] += 1
    why = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    broken = sum(
        any(r["cut_off"] and r["rationale"] == found[id].text for r in rows.get(id, []))
        for id in usable
    )
    more = f"; {broken} of them break off at max_teacher_tokens" if broken else ""
    have = f"{len(usable)} of {len(questions)} training questions have a usable rationale"
    return have + (f": {why}" if why else "") + more


def _progress(total: int, before: int, what: str, every: float = 10.0):
    """A function to call with the number of answers so far.

    Prints a line at most every `every` seconds, and the last.
    """
    start = last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= every or done == total and done > before:
            last, each = now, (now - start) / max(1, done - before)
            left = each * (total - done)
            left = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            print(f"{what}: {done} of {total} answers, {each:.2f} s each, {left} left", flush=True)

    return show


def _plan(examples, n, make_job):
    """All jobs in order.

    A job is a record without its answer.
    """
    jobs = [make_job(example, sample) for example in examples for sample in range(n)]
    keys = Counter(map(_key, jobs))
    if keys and max(keys.values()) > 1:
        raise DataError(
            f"duplicate id '{keys.most_common(1)[0][0][0]}' among the questions; ids must be unique"
        )
    return jobs


def _limitless_key(record: dict) -> tuple:
    decoding = {k: v for k, v in record["decoding"].items() if k != "max_new_tokens"}
    return _key({**record, "decoding": decoding})


def find_answers(jobs: list[dict], records: dict[tuple, dict]) -> dict[tuple, dict]:
    """The recorded answers of jobs, by the job's key.

    An answer that ended by itself under a smaller max_new_tokens is the answer under a larger one
    too: after the limit was raised only what was cut off is asked again.
    """
    found, ended = {}, {}
    for record in records.values():
        if not record["cut_off"]:
            ended.setdefault(_limitless_key(record), []).append(record)
    for job in jobs:
        limit = job["decoding"]["max_new_tokens"]
        shorter = [
            r
            for r in ended.get(_limitless_key(job), [])
            if r["decoding"].get("max_new_tokens", limit) < limit
        ]
        if _key(job) in records:
            found[_key(job)] = records[_key(job)]
        elif shorter:
            found[_key(job)] = shorter[-1]
    return found


def ask_all(
    jobs: list[dict],
    answer,
    examples: list[Example],
    path: Path,
    prefixes: dict,
    *,
    ask_again: tuple[str, ...] = (),
    secret: str | None = None,
) -> list[dict]:
    """Ask for the jobs that have no record yet, and record every answer as it comes.

    answer(todo, found) yields (job, Answer) in any order; found holds what is recorded, by key, and
    grows meanwhile. A job that it leaves out is asked by the next call. ask_again: see
    `TeacherSettings`. secret: a key that may stand nowhere. Returns the records there are, in the
    order of the jobs. Raises what `answer` raises, and DataError where the disk takes no more.
    """
    by_id = {example.id: example for example in examples}
    with _recording(path) as (records, file):
        _keep_prefixes(path, prefixes)
        found = find_answers(jobs, records)
        old = {key for key, record in found.items() if is_asked_again(record, ask_again)}
        todo = [job for job in jobs if _key(job) not in found or _key(job) in old]
        done = len(jobs) - len(todo)
        what = f"{jobs[0]['teacher']}, {jobs[0]['mode']}" if jobs else ""
        show = _progress(len(jobs), done, what)
        with closing(answer(todo, found)) as answers:  # on an error it stops asking at once
            for job, got in answers:
                record = _finish(job, by_id[job["id"]], got, secret)
                _append(file, record)
                found[_key(job)], done = record, done + 1
                show(done)
    return [found[_key(job)] for job in jobs if _key(job) in found]
