"""Take a reasoning teacher's thoughts apart from its final text."""

import json
import re

# Marks by which models set their thoughts apart (opening, closing): DeepSeek, Qwen, Magistral,
# Kimi, Seed, and those that
# were asked for tags. DeepSeek's and others' templates put the opening mark into the prompt: then
# only the closing one is seen.
_THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<reasoning>", "</reasoning>"),
    ("◁think▷", "◁/think▷"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
_ANSWER_TAG = re.compile(r"(?is)<(?P<tag>answer|final_answer)>\s*(?P<said>.*?)\s*(?:</(?P=tag)>|$)")
_MARKS = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:start\|>assistant|end\|>|return\|>)|</?(?:rationale|explanation|output|response)>"
)
# Names under which a JSON answer holds the option and the reason, in the order in which they are
# looked for.
_JSON_ANSWER = (
    "answer",
    "final_answer",
    "correct_answer",
    "answer_choice",
    "choice",
    "option",
    "label",
    "answer_letter",
)
_JSON_REASON = (
    "rationale",
    "reasoning",
    "reason",
    "explanation",
    "justification",
    "thought",
    "thoughts",
    "analysis",
    "steps",
)


def clean_text(text: str) -> str:
    """A text that can be written as UTF-8.

    Lone halves of surrogate pairs become U+FFFD, whole pairs the character they mean.

    A server may cut an answer inside an emoji; json.loads then gives half a pair, and any later
    write fails.
    """
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    # Pairs -> characters
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


def split_thought(
    text: str | None, reasoning_content: str | None = None, finish_reason: str | None = None
) -> tuple[str, str, bool]:
    """An answer -> (thought, final text, finished).

    `reasoning_content` is the thought that a server gives in a field of its own. Marked thoughts ("<think>…</think>",
    "[THINK]…[/THINK]", "<reasoning>…</reasoning>", …) are taken out of the text; a closing mark
    without an opening one ends a thought that began in the prompt. finished is False where a mark
    is never closed, or where the answer was cut off (finish_reason "length") before any final text.
    `text` None counts as empty.
    """
    final, thoughts, finished = (
        clean_text(text or ""),
        [clean_text(reasoning_content or "").strip()],
        True,
    )
    for opening, closing in _THOUGHTS:
        before, found, after = _rpartition(final, closing)
        if found:
            lead, opened, inside = _partition(before, opening)
            thoughts.append((inside if opened else lead).strip())
            final = (lead if opened else "") + after
        lead, opened, rest = _partition(final, opening)
        if opened:
            thoughts.append(rest.strip())
            final, finished = lead, False
    thought = "\n".join(filter(None, thoughts))
    final = _MARKS.sub("", final).strip()
    if thought and not final and finish_reason == "length":
        finished = False
    return thought, final, finished


def _partition(text: str, mark: str) -> tuple[str, str, str]:
    """str.partition at the first `mark`, whatever its case."""
    found = re.search(re.escape(mark), text, re.I)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _rpartition(text: str, mark: str) -> tuple[str, str, str]:
    """str.rpartition at the last `mark`, whatever its case; without one, all is the first part."""
    found = None
    for found in re.finditer(re.escape(mark), text, re.I):
        pass
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def _from_tags(text: str) -> str:
    """A final text with its <answer> tag or JSON object written as "rationale\\nAnswer.

    …"; any other text as it is.
    """
    tag = _ANSWER_TAG.search(text)
    if tag:
        return f"{text[: tag.start()]}{text[tag.end() :]}".strip() + (
            f"\nAnswer: {' '.join(tag['said'].split())}"
        )
    found = re.search(r"(?s)\{.*\}", text)
    try:
        given = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return text
    if not isinstance(given, dict):
        return text
    fields = {str(key).casefold().replace(" ", "_"): value for key, value in given.items()}
    answer = next(
        (fields[name] for name in _JSON_ANSWER if isinstance(fields.get(name), str | int)), None
    )
    reason = next((fields[name] for name in _JSON_REASON if fields.get(name)), "")
    if answer is None:
        return text
    outside = re.sub(r"(?m)^\s*```\w*\s*$", "", text[: found.start()] + text[found.end() :]).strip()
    reason = "\n".join(map(str, reason)) if isinstance(reason, list) else str(reason) or outside
    return f"{reason}\nAnswer: {' '.join(str(answer).split())}"
