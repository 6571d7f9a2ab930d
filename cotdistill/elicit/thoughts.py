"""Set a reasoning teacher's thoughts apart from its final text."""

import json
import re

# Marks (opening, closing) by which models set their thoughts apart: DeepSeek, Qwen, Magistral,
# Kimi, Seed, and those that were asked for tags. Some templates, such as DeepSeek's, put the
# opening mark into the prompt: then the answer holds only the closing one.
THOUGHT_MARKS = (
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
# Other marks, dropped from the final text
_MARKS = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:start\|>assistant|end\|>|return\|>)"
    r"|</?(?:rationale|explanation|output|response)>"
)
# Names under which a JSON answer holds the option and the reason, in the order of the search
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
    """Make a text writable as UTF-8.

    Lone halves of surrogate pairs become U+FFFD, whole pairs the character they mean. A server may
    cut an answer inside an emoji; json.loads then gives half a pair, and any later write would
    fail.
    """
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    # Whole pairs become characters
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


def split_thought(
    text: str | None, reasoning_content: str | None = None, finish_reason: str | None = None
) -> tuple[str, str, bool]:
    """Split an answer into (thought, final text, finished).

    `reasoning_content` is the thought that a server sends in a field of its own. Marked thoughts
    ("<think>…</think>", "[THINK]…[/THINK]", "<reasoning>…</reasoning>", …) are taken out of the
    text; a closing mark without an opening one ends a thought that began in the prompt. finished is
    False where a mark is never closed, or where the answer was cut off (finish_reason "length")
    before any final text. `text` None counts as empty.
    """
    final, finished = clean_text(text or ""), True
    thoughts = [clean_text(reasoning_content or "").strip()]
    for opening, closing in THOUGHT_MARKS:
        before, closed, after = _split_at_last(final, closing)
        if closed:
            lead, opened, inside = _split_at_first(before, opening)
            thoughts.append((inside if opened else lead).strip())
            final = (lead if opened else "") + after
        lead, opened, rest = _split_at_first(final, opening)
        if opened:
            thoughts.append(rest.strip())
            final, finished = lead, False
    thought = "\n".join(filter(None, thoughts))
    final = _MARKS.sub("", final).strip()
    if thought and not final and finish_reason == "length":
        finished = False
    return thought, final, finished


def _split_at_first(text: str, mark: str) -> tuple[str, str, str]:
    """Split a text at the first `mark`, whatever its case, as str.partition does."""
    match = re.search(re.escape(mark), text, re.I)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def _split_at_last(text: str, mark: str) -> tuple[str, str, str]:
    """Split a text at the last `mark`, whatever its case; without one, all is the first part."""
    matches = list(re.finditer(re.escape(mark), text, re.I))
    if not matches:
        return text, "", ""
    return text[: matches[-1].start()], matches[-1][0], text[matches[-1].end() :]


def unwrap_answer(text: str) -> str:
    """Rewrite a final text with an <answer> tag or a JSON object as "rationale\\nAnswer: …".

    Any other text stays as it is.
    """
    tag = _ANSWER_TAG.search(text)
    if tag:
        return f"{text[: tag.start()]}{text[tag.end() :]}".strip() + (
            f"\nAnswer: {' '.join(tag['said'].split())}"
        )
    braces = re.search(r"(?s)\{.*\}", text)
    try:
        given = json.loads(braces[0]) if braces else None
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
    outside = re.sub(
        r"(?m)^\s*```\w*\s*$", "", text[: braces.start()] + text[braces.end() :]
    ).strip()
    reason = "\n".join(map(str, reason)) if isinstance(reason, list) else str(reason) or outside
    return f"{reason}\nAnswer: {' '.join(str(answer).split())}"
