"""Settle how a teacher is asked: sampling, connection, and what is asked again."""

import json
from dataclasses import dataclass

from cotdistill.errors import DataError

ASK_AGAIN = ("cut_off", "empty", "refused")
LEAVE_OUT = ("stop", "temperature", "top_p", "seed")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")


def _check_items(name: str, items, allowed: tuple[str, ...]) -> None:
    """Raise DataError for an item that is not allowed."""
    unknown = next((item for item in items if item not in allowed), None)
    if unknown is not None:
        raise DataError(f"{name} holds {unknown!r}; expected only {', '.join(allowed)}")


@dataclass(frozen=True)
class Sampling:
    """Settle how a teacher writes: `n` rationales per question, greedy at temperature 0.

    Above 0 they are sampled with top_p and top_k (0: all), each from its own seed. An answer longer
    than max_new_tokens is cut off.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    seed: int = 0


@dataclass(frozen=True)
class TeacherSettings:
    """Settle what any teacher is asked, and what is asked again.

    mode         "blind" or "label_conditioned" (see `elicit.teacher`)
    chat         use a chat template; None: where there is one (a server: yes)
    instruction  the sentence above the first question; None: ours
    ask_again    recorded answers that are asked once more at the same settings: of "cut_off",
                 "empty" (no rationale in it), "refused"; the old record stays in the file

    Raises DataError for an unknown item of ask_again.
    """

    mode: str = "blind"
    chat: bool | None = None
    instruction: str | None = None
    sampling: Sampling = Sampling()
    ask_again: tuple[str, ...] = ()

    def __post_init__(self):
        _check_items("ask_again", self.ask_again, ASK_AGAIN)


@dataclass(frozen=True)
class Connection:
    """Settle how a server is asked.

    concurrency  requests at a time
    timeout      seconds until a request counts as lost
    max_retries  further tries of a request that failed; `backoff` seconds before the first
    max_failed   share of the questions that may fail after all tries: they are skipped
    extra_body   sent as it is, and recorded with the decoding
    leave_out    fields of the request that the model refuses: of stop, temperature, top_p, seed
    token_limit  what the server calls the limit: "max_tokens" or "max_completion_tokens"

    Raises DataError for a value out of range.
    """

    concurrency: int = 8
    timeout: float = 60.0
    max_retries: int = 8
    backoff: float = 1.0
    max_failed: float = 0.05
    extra_body: dict | None = None
    leave_out: tuple[str, ...] = ()
    token_limit: str = "max_tokens"

    def __post_init__(self):
        if self.concurrency < 1:
            raise DataError(f"concurrency is {self.concurrency}; expected a number from 1 on")
        if not 0 < self.timeout < float("inf"):
            raise DataError(f"request_timeout is {self.timeout}; expected seconds above 0")
        if not 0 <= self.max_failed <= 1:
            raise DataError(f"max_failed is {self.max_failed}; expected a share from 0 to 1")
        _check_items("leave_out", self.leave_out, LEAVE_OUT)
        if self.token_limit not in TOKEN_LIMITS:
            raise DataError(
                f"token_limit is '{self.token_limit}'; expected one of {', '.join(TOKEN_LIMITS)}"
            )


@dataclass(frozen=True)
class TeacherSource:
    """Say where rationales come from: a recorded file, a local model, or a server's model.

    batch_size is the local model's; connection is the server's.
    """

    recorded: str = ""
    model: str = ""
    base_url: str = ""
    batch_size: int = 16
    connection: Connection = Connection()


# One instance of each for default arguments: they are frozen
DEFAULT_SETTINGS = TeacherSettings()
DEFAULT_CONNECTION = Connection()
DEFAULT_SOURCE = TeacherSource()


def parse_extra_body(items: list[str]) -> dict:
    """Parse ["reasoning_effort=low", "min_p=0.1"] to {"reasoning_effort": "low", "min_p": 0.1}.

    A value is JSON, or plain text where it is not. Raises DataError for an item without a key and
    for a key that appears twice.
    """
    body = {}
    for item in items:
        key, sign, value = item.partition("=")
        key = key.strip()
        if not sign or not key:
            raise DataError(f"extra_body holds {item!r}; expected key=value, e.g. min_p=0.1")
        if key in body:
            raise DataError(f"extra_body holds '{key}' twice; expected each key once")
        try:
            body[key] = json.loads(value)
        except ValueError:
            body[key] = value.strip()
    return body
