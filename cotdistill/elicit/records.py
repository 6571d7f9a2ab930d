"""Record every answer of a teacher once; ask only what is missing, and nothing twice."""

import hashlib
import json
import os
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from cotdistill.elicit.answers import FIELDS, make_record
from cotdistill.elicit.prompts import STOP, prompt_hash
from cotdistill.elicit.settings import Sampling
from cotdistill.errors import DataError, disk_error
from cotdistill.examples import Example, Rationale
from cotdistill.files import atomic_write, file_lock, fingerprint, read_bytes


def read_records(path: str | Path) -> list[dict]:
    """Read all complete records of a file, in the order written.

    A last line that a kill has torn is skipped. Raises DataError for any other line that is not one
    of our records.
    """
    return _read_complete_part(Path(path))[0]


def _read_complete_part(path: Path) -> tuple[list[dict], int]:
    """Read the records, and the length in bytes of the part of the file that is complete.

    Raises DataError, as `read_records` does.
    """
    if not path.exists():
        return [], 0
    records, length = [], 0
    lines = read_bytes(path, "a file of records").split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) - 1:  # the last line, with its line end but torn
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
        length += len(line) + 1
    return records, length


@contextmanager
def _open_records(path: Path):
    """Yield (records so far by key, the file opened for appending), under a lock.

    A torn last line is dropped. A second writer waits, then finds what the first one recorded.
    Raises DataError where the file cannot be written.
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
        records, length = _read_complete_part(path)
        if length < path.stat().st_size:
            print(
                f"{path}: dropped a torn last line of {path.stat().st_size - length} bytes; it is "
                "asked again",
                flush=True,
            )
            file.truncate(length)
        yield {_record_key(record): record for record in records}, file


def _append_record(file, record: dict) -> None:
    """Append one record with its seal, completely or not at all.

    JSON escapes everything that is not ASCII, so that half a surrogate pair can be written too.
    Raises DataError where the disk is full or read-only.
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


def _record_key(record: dict) -> tuple:
    """Return what identifies a record: the question, the sample, the prompt and the settings."""
    names = ("id", "sample", "prompt_hash", "teacher", "revision")
    return *(record[name] for name in names), json.dumps(record["decoding"], sort_keys=True)


def prefixes_path(path: str | Path) -> Path:
    """Return the path of a record file's few-shot prefixes."""
    return Path(path).with_suffix(".prefixes.json")


def _save_prefixes(path: Path, prefixes: dict) -> None:
    """Add these prefixes, by hash, to the file beside the records."""
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
    """Rebuild the exact prompt of a record, text or chat messages.

    It is put together from the record and the prefixes beside its file. Raises DataError where the
    prefix is unknown or the hash does not agree.
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


def describe_decoding(sampling: Sampling, leave_out: tuple[str, ...] = ()) -> dict:
    """Return the part of a record that says how it was decoded.

    leave_out: fields that the request does not send. Raises DataError for a value out of range.
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


def sample_seed(seed: int, question_id: str, sample: int) -> int:
    """Return the seed of one answer, 31 bits.

    It depends on the question, never on what else is in the batch.
    """
    digest = hashlib.sha256(f"{seed}|{sample}|{question_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def answer_kind(record: dict) -> str:
    """Return "usable" where training has a rationale to learn from, else why not.

    The reasons are "refused" (by the model or its server), "cut off" (before the rationale was
    there) and "empty" (no rationale in it). A rationale that breaks off in mid text is usable;
    `cut_off` of the record says so.
    """
    if record["rationale"].strip():
        return "usable"
    if record["malformed"].startswith("refused"):
        return "refused"
    return "cut off" if record["cut_off"] else "empty"


def is_asked_again(record: dict, ask_again: tuple[str, ...]) -> bool:
    """Tell whether a record is of a kind that is to be asked again.

    All that was cut off counts as "cut_off", even where a usable text came of it.
    """
    return (
        "cut_off" in ask_again
        and record["cut_off"]
        or answer_kind(record).replace(" ", "_") in ask_again
    )


def count_usable(
    found: dict[str, Rationale], records: list[dict], questions: list[Example], asked: list[Example]
) -> str:
    """Say how many questions have a usable rationale, and why the others have none.

    For example "38 of 40 training questions have a usable rationale: 1 refused, 1 cut off". found:
    rationales by id. records: the teacher's (none where nothing was asked). asked: the questions
    that were put to it. The line also counts usable ones that end in mid text.
    """
    usable = {e.id for e in questions if e.id in found and found[e.id].text.strip()}
    kinds, ids, rows = Counter(), {e.id for e in asked}, {}
    for record in records:
        rows.setdefault(record["id"], []).append(record)
    for question in questions:
        if question.id in usable:
            continue
        if question.id not in ids:
            kinds["not asked"] += 1
        elif question.id in rows:
            kinds[answer_kind(rows[question.id][0])] += 1
        else:
            kinds["not answered" if records else "without one"] += 1
    why = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    broken = sum(
        any(r["cut_off"] and r["rationale"] == found[key].text for r in rows.get(key, []))
        for key in usable
    )
    more = f"; {broken} of them break off at max_teacher_tokens" if broken else ""
    count = f"{len(usable)} of {len(questions)} training questions have a usable rationale"
    return count + (f": {why}" if why else "") + more


def _make_progress(total: int, before: int, what: str, every: float = 10.0):
    """Make a function to call with the number of answers so far.

    It prints a line at most every `every` seconds, and after the last answer.
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


def describe_job(
    teacher: dict, example: Example, sample: int, prompt, prefix: str, question: str
) -> dict:
    """Make a job: the part of a record that is known before the answer.

    teacher: the fields mode, teacher, revision and decoding. prompt: text or chat messages, of
    which only the hash is kept. prefix: the hash of what questions share.
    """
    return teacher | {
        "id": example.id,
        "sample": sample,
        "prompt_hash": prompt_hash(prompt),
        "prefix": prefix,
        "question": question,
    }


def plan_jobs(examples, n, make_job):
    """List all jobs in order; `describe_job` says what a job is.

    make_job(example, sample) makes one. Raises DataError for a repeated id.
    """
    jobs = [make_job(example, sample) for example in examples for sample in range(n)]
    keys = Counter(map(_record_key, jobs))
    if keys and max(keys.values()) > 1:
        raise DataError(
            f"duplicate id '{keys.most_common(1)[0][0][0]}' among the questions; ids must be unique"
        )
    return jobs


def _key_without_limit(record: dict) -> tuple:
    """Return a record's key without max_new_tokens."""
    decoding = {k: v for k, v in record["decoding"].items() if k != "max_new_tokens"}
    return _record_key({**record, "decoding": decoding})


def find_answers(jobs: list[dict], records: dict[tuple, dict]) -> dict[tuple, dict]:
    """Find the recorded answers of jobs, by the job's key.

    An answer that ended by itself under a smaller max_new_tokens is the answer under a larger one
    too: after the limit was raised, only what was cut off is asked again.
    """
    answers, ended = {}, {}
    for record in records.values():
        if not record["cut_off"]:
            ended.setdefault(_key_without_limit(record), []).append(record)
    for job in jobs:
        limit = job["decoding"]["max_new_tokens"]
        shorter = [
            r
            for r in ended.get(_key_without_limit(job), [])
            if r["decoding"].get("max_new_tokens", limit) < limit
        ]
        if _record_key(job) in records:
            answers[_record_key(job)] = records[_record_key(job)]
        elif shorter:
            answers[_record_key(job)] = shorter[-1]
    return answers


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
    grows meanwhile. A job that it skips is asked by the next call. ask_again: see
    `TeacherSettings`. secret: a key that must not be written anywhere. Returns the records there
    are, in the order of the jobs. Raises what `answer` raises, and DataError where the disk is full
    or read-only.
    """
    by_id = {example.id: example for example in examples}
    with _open_records(path) as (records, file):
        _save_prefixes(path, prefixes)
        found = find_answers(jobs, records)
        old = {key for key, record in found.items() if is_asked_again(record, ask_again)}
        todo = [job for job in jobs if _record_key(job) not in found or _record_key(job) in old]
        done = len(jobs) - len(todo)
        what = f"{jobs[0]['teacher']}, {jobs[0]['mode']}" if jobs else ""
        show = _make_progress(len(jobs), done, what)
        with closing(answer(todo, found)) as answers:  # an error stops the asking at once
            for job, sent in answers:
                record = make_record(job, by_id[job["id"]], sent, secret)
                _append_record(file, record)
                found[_record_key(job)], done = record, done + 1
                show(done)
    return [found[_record_key(job)] for job in jobs if _record_key(job) in found]
