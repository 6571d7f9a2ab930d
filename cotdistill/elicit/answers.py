"""Turn what a teacher sent for one question into the record of it."""

import json
from typing import NamedTuple

from cotdistill.elicit.completions import Parsed, read_completion
from cotdistill.elicit.thoughts import clean_text
from cotdistill.examples import LETTERS, Example

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


class Answer(NamedTuple):
    """Hold what a teacher sent for one question.

    message is the server's own object, whatever its form (None: a local model). finish_reason
    "length" means cut off. problem says why there is no usable text.
    """

    text: str = ""
    finish_reason: str = "stop"
    seconds: float = 0.0
    message: object = None
    problem: str = ""


CUT_OFF = ("length", "max_tokens", "model_length")  # how several servers name this finish reason


def join_content(content) -> str:
    """Return the text of a message's content: a text, or a list of parts to join.

    Parts without a text (images, thoughts, null) add nothing.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(join_content, content))
    if isinstance(content, dict) and content.get("type", "text") in ("text", "output_text"):
        return join_content(content.get("text"))
    return ""


def join_thoughts(message: dict) -> str:
    """Return a message's thoughts outside its content, under any known name."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if text := join_content(message.get(name)):
            return text
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(
        join_content(part.get("thinking"))
        for part in parts
        if isinstance(part, dict) and part.get("type") == "thinking"
    )


def completion_parts(record: dict) -> tuple[str, str, str]:
    """Return what `parse_completion` reads of a record: (text, thoughts, finish reason).

    The thoughts are those sent beside the text. Records of local teachers and older ones hold the
    text only.
    """
    message = record.get("message")
    thoughts = join_thoughts(message) if isinstance(message, dict) else ""
    reason = record.get("finish_reason") or ("length" if record["cut_off"] else "stop")
    return record["raw"], clean_text(thoughts), reason


def make_record(job: dict, example: Example, answer: Answer, secret: str | None = None) -> dict:
    """Make the record of an answer.

    A key that the server echoed (`secret`) is masked before the text is read.
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
    if record["malformed"].startswith("refused"):  # a filter broke the text off: it is no rationale
        parsed = Parsed("", None, False)
    record |= {
        "rationale": parsed.rationale,
        "contradicts": parsed.contradicts,
        "answer": None if parsed.answer is None else LETTERS[parsed.answer],
    }
    missing = "no rationale" if reading.finished else "unfinished thought"
    record["malformed"] = record["malformed"] or ("" if parsed.rationale else missing)
    return {field: record[field] for field in [*FIELDS, *(f for f in record if f not in FIELDS)]}
