"""A teacher behind the OpenAI protocol."""

import json
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import urlsplit

from cotdistill.elicit.prompts import STOP, Demonstration, build_messages, build_prompt, prompt_hash
from cotdistill.elicit.records import Answer, _decoding, _plan, ask_all, join_parts, sample_seed
from cotdistill.elicit.settings import (
    LEAVE_OUT,
    TOKEN_LIMITS,
    Connection,
    Sampling,
    TeacherSettings,
)
from cotdistill.errors import DataError, one_line
from cotdistill.examples import Example
from cotdistill.files import fingerprint


class TeacherError(RuntimeError):
    """The teacher can't be asked any more.

    One line says why, how many answers are recorded and how to go on.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


# a teacher behind the OpenAI protocol
class _Refused(Exception):
    """The server read the question and will not answer it (400, 413, 422)."""


class _Failed(Exception):
    """A question got no answer, however often it was asked."""


def read_answer(response, chat: bool) -> Answer:
    """A server's JSON object -> Answer.

    `message` keeps what was sent, whatever its form.

    A refusal is a refusal field without any text, or a text that a content filter broke off. Raises
    ValueError for what is not a completion at all.
    """
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list):
        raise ValueError("the answer is not a completion object")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    message = choice.get("message") if chat else choice or None
    fields = message if isinstance(message, dict) else {}
    text, refusal = (
        join_parts(fields.get("content" if chat else "text")),
        join_parts(fields.get("refusal")),
    )
    reason = str(choice.get("finish_reason") or "")
    problem = "" if text.strip() else "no text"
    if not text.strip() and refusal:
        problem = f"refused: {refusal}"
    elif reason == "content_filter":
        problem = "refused: content_filter"
    return Answer(text, reason, 0.0, response if message is None else message, problem)


def _ask(
    client, request: dict, connection: Connection, secret: str | None, stop: threading.Event
) -> Answer | None:
    """One answer, after up to max_retries further tries; None when stopped.

    Tried again: timeouts, lost connections, 408, 409, 429, 5xx and answers that are not whole. The
    wait doubles from `backoff` seconds up to 30, times a random factor from 0.5 to 1.5, and
    respects Retry-After (up to 60 s). Raises _Refused and _Failed for this question; TeacherError
    for what would happen to any other question too, and sets `stop`.
    """
    import openai

    chat, tries, words = "messages" in request, connection.max_retries + 1, ""
    endpoint = (client.chat.completions if chat else client.completions).with_raw_response
    for attempt in range(tries):
        if stop.is_set():
            return None
        start, wait, words, unreachable = time.monotonic(), 0.0, "", False
        try:
            response = endpoint.create(**request).http_response.json()
            return read_answer(response, chat)._replace(seconds=time.monotonic() - start)
        except openai.APIStatusError as error:
            words = server_words(error, secret)
            try:
                _stop_or_refuse(error, words, str(client.base_url))
            except TeacherError:
                stop.set()  # here and not by who collects: nothing more is asked meanwhile
                raise
            failure = f"it answered {error.status_code}"
            after = error.response.headers.get("retry-after", "")
            wait = min(60.0, float(after)) if re.fullmatch(r"\d+(\.\d+)?", after) else 0.0
        except openai.APITimeoutError:
            failure = "it did not answer in time"
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            failure, unreachable = f"no connection ({cause})", cause == "ConnectError"
        # Cut or invalid JSON, a web page
        except (openai.APIError, ValueError, RecursionError) as error:
            failure = f"its answer was not whole ({type(error).__name__})"
            words = _address_hint(str(client.base_url))
        if attempt < tries - 1:
            stop.wait(
                max(wait, min(30.0, connection.backoff * 2**attempt) * random.uniform(0.5, 1.5))
            )
    reason = failure + (f", {tries} times in a row" if tries > 1 else "")
    reason += f" ({words})" if words else ""
    if unreachable:
        stop.set()
        raise TeacherError(reason)
    raise _Failed(reason)


def server_words(error, secret: str | None = None, longest: int = 200) -> str:
    """What a server itself says of an error, on one line, shortened, without the key."""
    body = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    words = body if isinstance(body, str) and body else json.dumps(body) if body else error.message
    words = " ".join(words.split())
    # Before it is cut, so that no half stays
    words = words.replace(secret, "***") if secret else words
    return words if len(words) <= longest else words[:longest] + " …"


def _stop_or_refuse(error, words: str, base_url: str) -> None:
    """Raise TeacherError or _Refused for a status that another try would not mend."""
    status = error.status_code
    if status in (400, 422) and (hint := study_key_for(words, getattr(error, "param", None))):
        raise TeacherError(f"it answered {status} ({words}); {hint}") from None
    if status in (400, 413, 422):
        raise _Refused(f"{status} {words}") from None
    quota = re.search(
        r"(?i)insufficient[ _](quota|balance|credit|funds)|exceeded your current "
        r"quota",
        f"{words} {getattr(error, 'code', '')} {getattr(error, 'type', '')}",
    )
    if status not in (408, 409, 429) and status < 500 or quota:
        hint = _address_hint(base_url) if status in (404, 405) else ""
        raise TeacherError(
            f"it answered {status} ({words})" + (f"; {hint}" if hint else "")
        ) from None


def study_key_for(words: str, param: str | None = None) -> str:
    """The study key that mends a request with a field the model does not take.

    "" for other refusals.

    words: the server's; param: the field that it names beside them (OpenAI's `param`).
    """
    refused = (
        r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|not "
        r"(?:permitted|allowed)|unexpected"
    )
    about = r"(?i)parameter|argument|field|input|value"
    if not re.search(refused, words) or not re.search(about, words):
        return ""
    quoted = re.findall(r"['\"`](\w+)['\"`]", words)
    named = [param] if param else quoted or re.findall(r"\b\w+\b", words)
    field = next((name for name in named if name in (*TOKEN_LIMITS, *LEAVE_OUT, "top_k")), None)
    if field in TOKEN_LIMITS:
        other = next(name for name in TOKEN_LIMITS if name != field)
        return f"set `token_limit: {other}` in the study"
    if field == "top_k":
        return "set `top_k: 0` in the study"
    return f"set `leave_out: [{field}]` in the study" if field else ""


def _address_hint(base_url: str) -> str:
    path = urlsplit(base_url).path.rstrip("/")
    return (
        ""
        if re.search(r"/v\d", path)
        else ("base_url has no /v1 at its end, where most servers answer")
    )


def _check_address(base_url: str):
    """The parts of base_url.

    Raises DataError for one that is no plain http address.
    """
    try:
        url = urlsplit(base_url)
        host, fits = url.hostname, url.port is None or url.port > 0
    except ValueError:  # not shown: what can't be read may hold a key
        host, fits = "that can't be read", False
    if (
        not fits
        or url.scheme not in ("http", "https")
        or not host
        or url.username
        or url.password
        or url.query
        or url.fragment
    ):
        raise DataError(
            f"base_url with host '{host}'; expected http(s)://host:port/v1 without a user, a key "
            "or a query: the key belongs in OPENAI_API_KEY"
        )
    return url


def _read_key() -> tuple[str, str | None]:
    """(the key to send, the secret to keep out of everything) from OPENAI_API_KEY.

    Raises DataError.
    """
    key = os.environ.get("OPENAI_API_KEY") or None
    if key and not re.fullmatch(r"[!-~]+", key):
        raise DataError(
            "OPENAI_API_KEY holds a blank, a line break or a letter that is not ASCII; expected a "
            "key as it was given out"
        )
    # "x", "null": a placeholder, no secret
    return key or "none", key if key and len(key) >= 8 else None


def _server_decoding(sampling: Sampling, connection: Connection, chat: bool) -> dict:
    """`_decoding` and what else decides what a server writes.

    token_limit is only a name.
    """
    decoding = {**_decoding(sampling, connection.leave_out), "chat": chat}
    decoding |= {"extra_body": connection.extra_body} if connection.extra_body else {}
    return decoding | ({"leave_out": sorted(connection.leave_out)} if connection.leave_out else {})


def _build_request(job: dict, prompt, sampling: Sampling, connection: Connection) -> dict:
    """The arguments of a request.

    `seed` and top_p only at a temperature. top_k is no part of the protocol: it is sent in the extra
    body, only when not 0 (vLLM and llama.cpp know it).
    """
    body = {
        "model": job["teacher"],
        connection.token_limit: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "stop": [STOP],
        "messages" if isinstance(prompt, list) else "prompt": prompt,
    }
    extra = dict(connection.extra_body or {})
    if sampling.temperature:
        seed = sample_seed(sampling.seed, job["id"], job["sample"])
        body |= {"top_p": sampling.top_p, "seed": seed}
        extra = {**({"top_k": sampling.top_k} if sampling.top_k else {}), **extra}
    if not isinstance(prompt, list) and connection.token_limit != "max_tokens":
        # the client's /completions has no argument of this name
        extra[connection.token_limit] = body.pop(connection.token_limit)
    body = {name: value for name, value in body.items() if name not in connection.leave_out}
    return {**body, **({"extra_body": extra} if extra else {})}


class _Failures:
    """What went wrong while a server was asked.

    `fatal` ends the run, `skipped` holds (id, reason) of the questions that failed after all their tries.
    """

    def __init__(self, total: int, todo: int, connection: Connection):
        self.fatal, self.skipped, self.row = "", [], 0
        self.allowed = connection.max_failed * total
        self.patience = max(10, 2 * connection.concurrency)
        self.rest_may_fail = todo <= self.allowed

    def too_many(self) -> bool:
        """More than the share that may fail, or so many in a row that the server must be down."""
        return (
            len(self.skipped) > self.allowed or self.row >= self.patience and not self.rest_may_fail
        )

    def describe(self, first: int = 3) -> str:
        """Number, names and reasons of the questions that were skipped, the first ones in full."""
        shown = "; ".join(f"{id}: {reason}" for id, reason in self.skipped[:first])
        more = f"; and {len(self.skipped) - first} more" if len(self.skipped) > first else ""
        count = len(self.skipped)
        return f"{count} question{'s' if count > 1 else ''} failed: {shown}{more}"


def _collect_answers(waiting: dict, answered: bool, failures: _Failures, stop: threading.Event):
    """(job, Answer) of each request as it ends; what fails goes to `failures`.

    Refusals count as answers about one question once the server has answered another; where it
    refuses all, the settings are wrong.
    """
    refused = []
    for future in as_completed(waiting):
        job = waiting[future]
        try:
            answer = future.result()
        except _Refused as refusal:
            refused.append((job, Answer(problem=f"refused: {refusal}")))
            if not answered and len(refused) >= failures.patience:
                stop.set()
        except _Failed as error:
            failures.skipped.append((job["id"], str(error)))
            failures.row += 1
            if failures.too_many():
                stop.set()
        except TeacherError as error:
            failures.fatal = failures.fatal or str(error)
            stop.set()
        else:
            if answer is not None:
                answered, failures.row = True, 0
                yield job, answer
        if answered:
            yield from refused
            refused = []
    if refused and not failures.fatal:
        job, answer = refused[0]
        reason = answer.problem.removeprefix("refused: ")
        failures.fatal = f"it refused question {job['id']} ({reason})"


def elicit_openai(
    examples: list[Example],
    out_path: str | Path,
    *,
    model: str,
    base_url: str,
    revision: str = "",
    demonstrations: list[Demonstration],
    settings: TeacherSettings = TeacherSettings(),
    connection: Connection = Connection(),
) -> list[dict]:
    """Ask a server that speaks the OpenAI protocol for rationales; returns their records.

    The key is read from OPENAI_API_KEY and written nowhere ("none" is sent where it is not set, as
    local servers expect). chat=False asks /completions with text, else /chat/completions with
    messages (the server applies its template).

    What is in `out_path` by the same settings is not asked again (`find_answers`: nor what ended by
    itself under a smaller limit). A refused question (400, 413, 422) is recorded as malformed once
    the server has answered others. One that fails after all its tries is skipped, named, and left
    to the next call, unless more than max_failed do. Raises TeacherError where the server fails for
    good: what was answered until then is recorded, and the same call asks for the rest. DataError
    for settings out of range.
    """
    from openai import OpenAI

    url, path, sampling = _check_address(base_url), Path(out_path), settings.sampling
    chat = settings.chat is not False
    decoding = _server_decoding(sampling, connection, chat)
    prompts, prefixes = {}, {}

    def make_job(example, sample):
        if chat:
            prompt = build_messages(example, demonstrations, settings.mode, settings.instruction)
            shared, question = {"messages": prompt[:-1]}, prompt[-1]["content"]
        else:
            pieces = build_prompt(
                example, demonstrations, settings.mode, None, settings.instruction
            )
            prompt, shared, question = (
                pieces.text,
                {"prefix": pieces.prefix, "tail": ""},
                pieces.question,
            )
        prompts[example.id], prefixes[fingerprint(shared)] = prompt, shared
        return {
            "id": example.id,
            "sample": sample,
            "prompt_hash": prompt_hash(prompt),
            "prefix": fingerprint(shared),
            "question": question,
            "mode": settings.mode,
            "teacher": model,
            "revision": revision,
            "decoding": decoding,
        }

    key, secret = _read_key()
    jobs = _plan(examples, sampling.n, make_job)
    failures, stop = _Failures(len(jobs), len(jobs), connection), threading.Event()

    def answer(todo, found):
        nonlocal failures
        failures = _Failures(len(jobs), len(todo), connection)
        pool = ThreadPoolExecutor(connection.concurrency)
        with OpenAI(
            api_key=key, base_url=base_url, timeout=connection.timeout, max_retries=0
        ) as client:
            try:
                waiting = {}
                for job in todo:
                    request = _build_request(job, prompts[job["id"]], sampling, connection)
                    waiting[pool.submit(_ask, client, request, connection, secret, stop)] = job
                answered = any(not record["malformed"] for record in found.values())
                yield from _collect_answers(waiting, answered, failures, stop)
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    records = ask_all(
        jobs, answer, examples, path, prefixes, ask_again=settings.ask_again, secret=secret
    )
    who = f"teacher {model} at {url.scheme}://{url.netloc}"
    recorded = f"{len(records)} of {len(jobs)} answers are recorded in {path}"
    _report_failures(failures, who, recorded, len(jobs) - len(records), secret)
    return records


def _report_failures(
    failures: _Failures, who: str, recorded: str, missing: int, secret: str | None
) -> None:
    """Print which questions were skipped, or raise TeacherError where there were too many."""
    hide = lambda text: text.replace(secret, "***") if secret else text
    again = f"call again with the same settings: only the other {missing} are asked"
    if failures.fatal or failures.too_many():
        reasons = [failures.fatal] if failures.fatal else []
        if failures.skipped:
            reasons.append(f"{failures.describe()} (max_failed allows {failures.allowed:.0f})")
        message = f"{who}: {'; '.join(reasons)}. {recorded}. See that the server runs and {again}."
        raise TeacherError(hide(message))
    if failures.skipped:
        message = f"{who}: {failures.describe()}, and left out. {recorded}; {again}."
        print(one_line(hide(message)), flush=True)
