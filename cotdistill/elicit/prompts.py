"""Build what a teacher is asked: instructions, demonstrations, chat messages or plain text."""

import re
from dataclasses import dataclass
from pathlib import Path

from cotdistill.arms import prompt_text
from cotdistill.errors import DataError
from cotdistill.examples import LETTERS, Example, make_example
from cotdistill.files import fingerprint, read_text

MODES = ("blind", "label_conditioned")
STOP = "\nQuestion:"
INSTRUCTIONS = {
    "blind": "Answer each question. Give the reason first, in two or three sentences, and then "
    "the letter of the answer.",
    "label_conditioned": "Each question comes with its correct answer. Explain in two or three "
    "sentences why it is correct, and then close with the letter of the answer.",
}


@dataclass(frozen=True)
class Demonstration:
    """Hold one worked question of a few-shot prompt."""

    example: Example
    reason: str


@dataclass(frozen=True)
class Prompt:
    """Hold a prompt as text, in three parts.

    `prefix` is the same for every question, so its key-value cache is computed once. `question` is
    plain text. `tail` is what a chat template puts after it (empty without one).
    """

    prefix: str
    question: str
    tail: str = ""

    @property
    def text(self) -> str:
        """Return the complete prompt, as a teacher without a shared prefix reads it."""
        return self.prefix + self.question + self.tail


def demonstrations_path(dataset: str) -> Path:
    """Return the file of demonstrations that belongs to a dataset.

    "microworld/everyday" has microworld.txt; own data have generic.txt.
    """
    folder = Path(__file__).with_name("demonstrations")
    own = folder / f"{dataset.partition('/')[0]}.txt"
    return own if own.is_file() else folder / "generic.txt"


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read a file of demonstrations; `elicit.teacher` describes its format.

    Raises DataError naming file and line.
    """
    path, text = Path(path), read_text(path, "few-shot demonstrations as plain text")
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1)]
    blocks, block = [], []
    kept = [(number, line) for number, line in lines if not line.startswith("#")]
    for number, line in [*kept, (len(lines) + 1, "")]:  # an empty line ends the last block
        if line:
            block.append((number, line))
        elif block:
            blocks.append(block)
            block = []
    if not blocks:
        raise DataError(
            f"{path}: no demonstration; expected at least one block that starts with 'Question:'"
        )
    return [_parse_demonstration(path, block) for block in blocks]


def _parse_demonstration(path: Path, block: list[tuple[int, str]]) -> Demonstration:
    """Parse one block of (line number, line) pairs; raise DataError where a line is wrong."""
    head, choices, fields = block[0][0], [], {}
    wanted = ["Question:", "Options:"]
    for number, line in block:
        names = ("Question:", "Options:", "Reason:", "Answer:")
        key = next((name for name in names if line.startswith(name)), None)
        option = re.match(r"\(([A-Z])\)\s*(.+)", line)
        if wanted == ["option"] and option and option[1] == LETTERS[len(choices)]:
            choices.append(option[2])
        elif wanted == ["option"] and len(choices) > 1 and key == "Reason:":
            wanted, fields["Reason:"] = ["Answer:"], line.removeprefix("Reason:").strip()
        elif key and wanted and key == wanted[0]:
            fields[key], wanted = line.removeprefix(key).strip(), wanted[1:]
            wanted = wanted or (["option"] if key == "Options:" else [])
        else:
            expected = wanted[0] if wanted else "an empty line"
            if wanted == ["option"]:
                expected = f"({LETTERS[len(choices)]}) or Reason:"
            raise DataError(f"{path}:{number}: found {line[:40]!r}; expected {expected}")
    if "Answer:" not in fields or not fields["Reason:"]:
        raise DataError(
            f"{path}:{head}: the block has no Reason: or no Answer: line; expected Question, "
            "Options, Reason, Answer"
        )
    name, letter = f"demonstration at line {head}", fields["Answer:"].strip("()")
    example = make_example(name, fields["Question:"], choices, letter, f"{path}:{head}")
    return Demonstration(example, fields["Reason:"])


def teacher_question(example: Example, mode: str) -> str:
    """Write the question as a teacher reads it, up to the cue."""
    text = prompt_text(example, "pre_cot", "letter")
    if mode == "blind":
        return text
    given = f"Correct answer: ({LETTERS[example.answer]}) {example.label}\n"
    return text.removesuffix("Reason:") + given + "Reason:"


def build_messages(
    example: Example, demonstrations: list[Demonstration], mode: str, instruction: str | None = None
) -> list[dict]:
    """Build the prompt as chat messages.

    Each demonstration is a question by the user and an answer by the assistant. The instruction is
    at the top of the first user message, because several templates know no system role.
    instruction=None takes ours. Raises DataError for an unknown mode.
    """
    if mode not in MODES:
        raise DataError(f"mode '{mode}'; expected one of {', '.join(MODES)}")
    messages = []
    for shown in demonstrations:
        messages += [
            {"role": "user", "content": teacher_question(shown.example, mode)},
            {
                "role": "assistant",
                "content": f"{shown.reason}\nAnswer: ({LETTERS[shown.example.answer]})",
            },
        ]
    messages.append({"role": "user", "content": teacher_question(example, mode)})
    head = INSTRUCTIONS[mode] if instruction is None else instruction
    messages[0] = {
        "role": "user",
        "content": f"{head}\n\n{messages[0]['content']}" if head else messages[0]["content"],
    }
    return messages


def build_prompt(
    example: Example,
    demonstrations: list[Demonstration],
    mode: str = "blind",
    tokenizer=None,
    instruction: str | None = None,
) -> Prompt:
    """Build the prompt as text: with the chat template of `tokenizer`, or plain without one.

    Prompt.prefix does not depend on the example (with at least one demonstration). instruction=None
    takes ours. Raises DataError for an unknown mode, and for a tokenizer whose chat template is
    missing or changes the user's text.
    """
    messages = build_messages(example, demonstrations, mode, instruction)
    if tokenizer is None:
        *shown, last = [m["content"] for m in messages]
        pairs = zip(shown[::2], shown[1::2], strict=True)
        blocks = [f"{question} {answer}" for question, answer in pairs]
        return Prompt("\n\n".join(blocks), "\n\n" * bool(blocks) + last)
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; expected chat=False for a base model")
    mark = "\x02question\x02"
    shape = tokenizer.apply_chat_template(
        [*messages[:-1], {"role": "user", "content": mark}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prefix, kept, tail = shape.partition(mark)
    if not kept:
        raise DataError(
            "the tokenizer's chat template changes the user's text; expected one that keeps it, "
            "or chat=False"
        )
    return Prompt(prefix, messages[-1]["content"], tail)


def prompt_hash(prompt: str | list[dict]) -> str:
    """Hash a prompt, text or chat messages, to 16 hex digits of its SHA-256."""
    return fingerprint(prompt)


def prompt_ids(student, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Encode a prompt as token ids (prefix, rest).

    Each part is tokenised by itself. Markup is read in the template's parts and never in the
    question, so that a question that quotes a special token stays text.
    """
    encode_markup = lambda text: student.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not prompt.tail:
        return [*student.bos_ids, *student.encode(prompt.prefix)], student.encode(prompt.question)
    prefix = encode_markup(prompt.prefix)
    if student.bos_ids and prefix[:1] != student.bos_ids:
        prefix = [*student.bos_ids, *prefix]
    return prefix, [*student.encode(prompt.question), *encode_markup(prompt.tail)]
