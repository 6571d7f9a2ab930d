"""Ask a teacher behind the OpenAI protocol."""

import json
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import urlsplit

from cotdistill.elicit.answers import Answer, join_content
from cotdistill.elicit.prompts import STOP, Demonstration, build_messages, build_prompt
from cotdistill.elicit.records import (
    ask_all,
    describe_decoding,
    describe_job,
    plan_jobs,
    sample_seed,
)
from cotdistill.elicit.settings import (
    DEFAULT_CONNECTION,
    DEFAULT_SETTINGS,
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
    """Report that the teacher cannot be asked any more.

    One line says why, how many answers are recorded and how to go on.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


class _RefusedError(Exception):
    """Report that the server read the question and will not answer it (400, 413, 422)."""


class _FailedError(Exception):
    """Report that a question got no answer, however often it was asked."""


def read_answer(response, chat: bool) -> Answer:
    """Read a server's JSON object as an Answer.

    `message` keeps what was sent, whatever its form. A refusal is a refusal field without any text,
    or a text that a content filter broke off. Raises ValueError for what is not a completion at
    all.
    """
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list):
        raise ValueError("the answer is not a completion object")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    message = choice.get("message") if chat else choice or None
    fields = message if isinstance(message, dict) else {}
    text = join_content(fields.get("content" if chat else "text"))
    refusal = join_content(fields.get("refusal"))
    reason = str(choice.get("finish_reason") or "")
    problem = "" if text.strip() else "no text"
    if not text.strip() and refusal:
        problem = f"refused: {refusal}"
    elif reason == "content_filter":
        problem = "refused: content_filter"
    return Answer(text, reason, 0.0, response if message is None else message, problem)


def _ask_server(
    client, request: dict, connection: Connection, secret: str | None, stop: threading.Event
) -> Answer | None:
    """Ask for one answer, with up to max_retries further tries; return None when stopped.

    Timeouts, lost connections, 408, 409, 429, 5xx and incomplete answers are tried again. The wait
    doubles from `backoff` seconds up to 30, times a random factor from 0.5 to 1.5, and respects
    Retry-After (up to 60 s). Raises _RefusedError and _FailedError for this question; sets `stop`
    and raises TeacherError for what would happen to any other question too.
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
                _raise_if_final(error, words, str(client.base_url))
            except TeacherError:
                stop.set()  # here, not where answers are collected: nothing more is asked meanwhile
                raise
            failure = f"it answered {error.status_code}"
            after = error.response.headers.get("retry-after", "")
            wait = min(60.0, float(after)) if re.fullmatch(r"\d+(\.\d+)?", after) else 0.0
        except openai.APITimeoutError:
            failure = "it did not answer in time"
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            failure, unreachable = f"no connection ({cause})", cause == "ConnectError"
        # Torn or invalid JSON, or a web page
        except (openai.APIError, ValueError, RecursionError) as error:
            failure = f"its answer was incomplete ({type(error).__name__})"
            words = _hint_at_address(str(client.base_url))
        if attempt < tries - 1:
            stop.wait(
                max(wait, min(30.0, connection.backoff * 2**attempt) * random.uniform(0.5, 1.5))
            )
    reason = failure + (f", {tries} times in a row" if tries > 1 else "")
    reason += f" ({words})" if words else ""
    if unreachable:
        stop.set()
        raise TeacherError(reason)
    raise _FailedError(reason)


def server_words(error, secret: str | None = None, longest: int = 200) -> str:
    """Return what a server itself says of an error: one short line, without the key."""
    body = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    words = body if isinstance(body, str) and body else json.dumps(body) if body else error.message
    words = " ".join(words.split())
    # The key is masked before the text is cut, so that no half of it stays
    words = words.replace(secret, "***") if secret else words
    return words if len(words) <= longest else words[:longest] + " …"


def _raise_if_final(error, words: str, base_url: str) -> None:
    """Raise TeacherError or _RefusedError for a status that another try would not change."""
    status = error.status_code
    if status in (400, 422) and (hint := study_key_for(words, getattr(error, "param", None))):
        raise TeacherError(f"it answered {status} ({words}); {hint}") from None
    if status in (400, 413, 422):
        raise _RefusedError(f"{status} {words}") from None
    quota = re.search(
        r"(?i)insufficient[ _](quota|balance|credit|funds)|exceeded your current quota",
        f"{words} {getattr(error, 'code', '')} {getattr(error, 'type', '')}",
    )
    if status not in (408, 409, 429) and status < 500 or quota:
        hint = _hint_at_address(base_url) if status in (404, 405) else ""
        raise TeacherError(
            f"it answered {status} ({words})" + (f"; {hint}" if hint else "")
        ) from None


def study_key_for(words: str, param: str | None = None) -> str:
    """Say which study key helps where the model does not take a field of the request.

    Returns "" for other refusals. words: the server's; param: the field that it names beside them
    (OpenAI's `param`).
    """
    refused = (
        r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|not (?:permitted|allowed)|unexpected"
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


def _hint_at_address(base_url: str) -> str:
    """Say that base_url lacks its /v1; "" where it has one."""
    if re.search(r"/v\d", urlsplit(base_url).path):
        return ""
    return "base_url has no /v1 at its end, where most servers answer"


def _parse_address(base_url: str):
    """Return the parts of base_url.

    Raises DataError where it is not a plain http address.
    """
    try:
        url = urlsplit(base_url)
        host, fits = url.hostname, url.port is None or url.port > 0
    except ValueError:  # the address is not shown: it may hold a key
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
    """Read OPENAI_API_KEY as (the key to send, the secret to keep out of everything).

    Raises DataError.
    """
    key = os.environ.get("OPENAI_API_KEY") or None
    if key and not re.fullmatch(r"[!-~]+", key):
        raise DataError(
            "OPENAI_API_KEY holds a blank, a line break or a letter that is not ASCII; expected a "
            "key as it was given out"
        )
    # "x" or "null" is a placeholder, not a secret
    return key or "none", key if key and len(key) >= 8 else None


def _describe_server_decoding(sampling: Sampling, connection: Connection, chat: bool) -> dict:
    """Add to `describe_decoding` what else decides what a server writes.

    token_limit is not recorded: it is only a name.
    """
    decoding = {**describe_decoding(sampling, connection.leave_out), "chat": chat}
    decoding |= {"extra_body": connection.extra_body} if connection.extra_body else {}
    return decoding | ({"leave_out": sorted(connection.leave_out)} if connection.leave_out else {})


def _build_request(job: dict, prompt, sampling: Sampling, connection: Connection) -> dict:
    """Build the arguments of a request.

    `seed` and top_p are sent only at a temperature. top_k is not part of the protocol: it goes into
    the extra body, only when not 0 (vLLM and llama.cpp know it).
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
        # The client's /completions has no argument of this name
        extra[connection.token_limit] = body.pop(connection.token_limit)
    body = {name: value for name, value in body.items() if name not in connection.leave_out}
    return {**body, **({"extra_body": extra} if extra else {})}


class _FailureLog:
    """Collect what goes wrong while a server is asked.

    `fatal` ends the run; `skipped` holds (id, reason) of the questions that failed after all their
    tries; `row` counts failures in a row.
    """

    def __init__(self, total: int, todo: int, connection: Connection):
        self.fatal, self.skipped, self.row = "", [], 0
        self.allowed = connection.max_failed * total
        self.patience = max(10, 2 * connection.concurrency)
        self.rest_may_fail = todo <= self.allowed

    def too_many(self) -> bool:
        """Tell whether too many failed.

        They are more than the share that may fail, or so many in a row that the server must be
        down.
        """
        return (
            len(self.skipped) > self.allowed or self.row >= self.patience and not self.rest_may_fail
        )

    def describe(self, first: int = 3) -> str:
        """Say how many questions were skipped, and name the first ones with their reasons."""
        shown = "; ".join(f"{key}: {reason}" for key, reason in self.skipped[:first])
        more = f"; and {len(self.skipped) - first} more" if len(self.skipped) > first else ""
        count = len(self.skipped)
        return f"{count} question{'s' if count > 1 else ''} failed: {shown}{more}"


def _collect_answers(waiting: dict, answered: bool, failures: _FailureLog, stop: threading.Event):
    """Yield (job, Answer) of each request as it ends; what fails goes to `failures`.

    Refusals count as answers about one question once the server has answered another. Where it
    refuses all, the settings are wrong.
    """
    refused = []
    for future in as_completed(waiting):
        job = waiting[future]
        try:
            answer = future.result()
        except _RefusedError as refusal:
            refused.append((job, Answer(problem=f"refused: {refusal}")))
            if not answered and len(refused) >= failures.patience:
                stop.set()
        except _FailedError as error:
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


def _open_client(key: str, base_url: str, timeout: float):
    """Open a client that never retries by itself: `_ask_server` decides what is tried again."""
    from openai import OpenAI

    return OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)


def _ask_in_parallel(
    client, requests: list, connection: Connection, secret: str | None, failures, answered: bool
):
    """Send (job, request) pairs, `concurrency` at a time, and yield (job, Answer).

    answered: whether the server has answered any question before. Raises nothing: what fails goes
    to `failures`.
    """
    stop, pool = threading.Event(), ThreadPoolExecutor(connection.concurrency)
    ask = lambda request: pool.submit(_ask_server, client, request, connection, secret, stop)
    try:
        waiting = {ask(request): job for job, request in requests}
        yield from _collect_answers(waiting, answered, failures, stop)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _split_prompt(example: Example, demonstrations: list[Demonstration], settings):
    """Build a question's prompt as (prompt, the part shared with others, the question's own).

    The prompt is a list of chat messages, or a text with settings.chat=False.
    """
    if settings.chat is not False:
        prompt = build_messages(example, demonstrations, settings.mode, settings.instruction)
        return prompt, {"messages": prompt[:-1]}, prompt[-1]["content"]
    pieces = build_prompt(example, demonstrations, settings.mode, None, settings.instruction)
    return pieces.text, {"prefix": pieces.prefix, "tail": ""}, pieces.question


def elicit_openai(
    examples: list[Example],
    out_path: str | Path,
    *,
    model: str,
    base_url: str,
    revision: str = "",
    demonstrations: list[Demonstration],
    settings: TeacherSettings = DEFAULT_SETTINGS,
    connection: Connection = DEFAULT_CONNECTION,
) -> list[dict]:
    """Ask a server that speaks the OpenAI protocol for rationales; return their records.

    The key is read from OPENAI_API_KEY and written nowhere ("none" is sent where it is not set, as
    local servers expect). chat=False asks /completions with text, else /chat/completions with
    messages (the server applies its template).

    What is in `out_path` by the same settings is not asked again (see `find_answers`). A refused
    question (400, 413, 422) is recorded as malformed once the server has answered others. One that
    fails after all its tries is skipped, named, and left to the next call, unless more than
    max_failed do. Raises TeacherError where the server fails for good: answers are recorded, and
    the same call asks for the rest. Raises DataError for settings out of range.
    """
    url, path, sampling = _parse_address(base_url), Path(out_path), settings.sampling
    chat = settings.chat is not False
    teacher = {
        "mode": settings.mode,
        "teacher": model,
        "revision": revision,
        "decoding": _describe_server_decoding(sampling, connection, chat),
    }
    prompts, prefixes = {}, {}

    def make_job(example, sample):
        prompt, shared, question = _split_prompt(example, demonstrations, settings)
        prompts[example.id], prefixes[fingerprint(shared)] = prompt, shared
        return describe_job(teacher, example, sample, prompt, fingerprint(shared), question)

    key, secret = _read_key()
    jobs = plan_jobs(examples, sampling.n, make_job)
    failures = _FailureLog(len(jobs), len(jobs), connection)

    def answer(todo, found):
        nonlocal failures
        failures = _FailureLog(len(jobs), len(todo), connection)
        build = lambda job: _build_request(job, prompts[job["id"]], sampling, connection)
        requests = [(job, build(job)) for job in todo]
        answered = any(not record["malformed"] for record in found.values())
        with _open_client(key, base_url, connection.timeout) as client:
            yield from _ask_in_parallel(client, requests, connection, secret, failures, answered)

    records = ask_all(
        jobs, answer, examples, path, prefixes, ask_again=settings.ask_again, secret=secret
    )
    who = f"teacher {model} at {url.scheme}://{url.netloc}"
    recorded = f"{len(records)} of {len(jobs)} answers are recorded in {path}"
    _report_failures(failures, who, recorded, len(jobs) - len(records), secret)
    return records


def _report_failures(
    failures: _FailureLog, who: str, recorded: str, missing: int, secret: str | None
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
