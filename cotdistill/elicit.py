"""Rationales out of a teacher: ask, record every answer once, and know how good they are.

A teacher is a local model (`elicit_transformers`) or any server that speaks the OpenAI protocol (`elicit_openai`: vLLM,
llama.cpp, a hosted Mistral). Recorded sets are read by `data.load_rationales`, gold ones come with the dataset.

Demonstrations are plain text, `demonstrations/<dataset>.txt` or a file of your own. Lines that start with `#` are
skipped, an empty line parts the blocks, and a block is

    Question: one line
    Options:
    (A) first option
    (B) second option
    Reason: one line, the rationale
    Answer: (B)

Two modes. `blind`: question and options, the teacher reasons and then answers. `label_conditioned`: a line
"Correct answer: (B) ..." stands before the cue, the teacher explains it and closes with the answer it has reached.
A completion is the same in both: " <rationale>\\nAnswer: (B)", ended by "\\nQuestion:", by the end token, or cut off.

Answers go to an append-only JSONL, one record a line, never asked again by the same settings. Beside it stands
`<name>.prefixes.json` with the few-shot prefixes by hash, so that `rebuild_prompt(record, path)` gives the exact prompt.
"""

import hashlib
import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from cotdistill.data import (LETTERS, DataError, Example, Rationale, answer_index, disk_error, fingerprint, first_equal, load_rationales,
                             make_example, one_line, read_bytes, read_text)
from cotdistill.files import held, whole
from cotdistill.format import prompt_text

MODES = ("blind", "label_conditioned")
STOP = "\nQuestion:"
INSTRUCTIONS = {
    "blind": "Answer each question. Give the reason first, in two or three sentences, and then the letter of the answer.",
    "label_conditioned": "Each question comes with its correct answer. Explain in two or three sentences why it is "
                         "correct, and then close with the letter of the answer.",
}
FIELDS = ("id", "sample", "prompt_hash", "prefix", "question", "mode", "teacher", "revision", "decoding", "raw",
          "rationale", "answer", "contradicts", "cut_off", "malformed", "seconds")


class TeacherError(RuntimeError):
    """The teacher can't be asked any more: one line says why, how many answers are recorded and how to go on."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


# ---------------------------------------------------------------------------------------------------------------------
# settings

ASK_AGAIN = ("cut_off", "empty", "refused")
LEAVE_OUT = ("stop", "temperature", "top_p", "seed")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")


def _check_items(name: str, items, allowed: tuple[str, ...]) -> None:
    unknown = next((item for item in items if item not in allowed), None)
    if unknown is not None:
        raise DataError(f"{name} holds {unknown!r}; expected only {', '.join(allowed)}")


@dataclass(frozen=True)
class Sampling:
    """How a teacher writes: `n` rationales per question, greedy at temperature 0.

    Else they are sampled with top_p and top_k (0: all), each from its own seed. An answer longer
    than max_new_tokens is cut off."""

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    seed: int = 0


@dataclass(frozen=True)
class TeacherSettings:
    """What any teacher is asked, and what is asked again.

    mode         "blind" or "label_conditioned" (top of this module)
    chat         use a chat template; None: where there is one (a server: yes)
    instruction  the sentence above the first question; None: ours
    ask_again    recorded answers that are asked once more at the same settings: of "cut_off",
                 "empty" (no rationale in it), "refused". The old record stays in the file.

    Raises DataError for an unknown item of ask_again."""

    mode: str = "blind"
    chat: bool | None = None
    instruction: str | None = None
    sampling: Sampling = Sampling()
    ask_again: tuple[str, ...] = ()

    def __post_init__(self):
        _check_items("ask_again", self.ask_again, ASK_AGAIN)


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    concurrency  requests at a time
    timeout      seconds until a request counts as lost
    max_retries  further tries of a request that failed; `backoff` seconds before the first
    max_failed   share of the questions that may fail after all tries: they are skipped
    extra_body   sent as it is, and recorded with the decoding
    leave_out    fields of the request that the model refuses: of stop, temperature, top_p, seed
    token_limit  what the server calls the limit: "max_tokens" or "max_completion_tokens"

    Raises DataError for a value out of range."""

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
            raise DataError(f"token_limit is '{self.token_limit}'; "
                            f"expected one of {', '.join(TOKEN_LIMITS)}")


@dataclass(frozen=True)
class TeacherSource:
    """Where rationales come from: a recorded file, a local model, or a model at a server.

    batch_size is the local model's; connection the server's."""

    recorded: str = ""
    model: str = ""
    base_url: str = ""
    batch_size: int = 16
    connection: Connection = Connection()


def parse_extra_body(items: list[str]) -> dict:
    """["reasoning_effort=low", "min_p=0.1"] -> {"reasoning_effort": "low", "min_p": 0.1}.

    A value is JSON, or plain text where it is not. Raises DataError for an item without a key and
    for a key that stands there twice."""
    found = {}
    for item in items:
        key, sign, value = item.partition("=")
        key = key.strip()
        if not sign or not key:
            raise DataError(f"extra_body holds {item!r}; expected key=value, e.g. min_p=0.1")
        if key in found:
            raise DataError(f"extra_body holds '{key}' twice; expected each key once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value.strip()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# prompts


@dataclass(frozen=True)
class Demonstration:
    """One worked question of a few-shot prompt."""

    example: Example
    reason: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as text. `prefix` is the same for every question, so its key-value cache is computed once; `question` is
    plain text; `tail` is what a chat template puts after it (empty without one)."""

    prefix: str
    question: str
    tail: str = ""

    @property
    def text(self) -> str:
        """The whole prompt, as a teacher without a shared prefix reads it."""
        return self.prefix + self.question + self.tail


def demonstrations_path(dataset: str) -> Path:
    """The demonstrations that belong to a dataset ("microworld/everyday" -> microworld.txt; own data -> generic.txt)."""
    folder = Path(__file__).with_name("demonstrations")
    own = folder / f"{dataset.partition('/')[0]}.txt"
    return own if own.is_file() else folder / "generic.txt"


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """Read a file of demonstrations (format: top of this module). Raises DataError, naming file and line."""
    path, text = Path(path), read_text(path, "few-shot demonstrations as plain text")
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1)]
    blocks, block = [], []
    for number, line in [*((n, text) for n, text in lines if not text.startswith("#")), (len(lines) + 1, "")]:
        if line:
            block.append((number, line))
        elif block:
            blocks.append(block)
            block = []
    if not blocks:
        raise DataError(f"{path}: no demonstration; expected at least one block that starts with 'Question:'")
    return [_demonstration(path, block) for block in blocks]


def _demonstration(path: Path, block: list[tuple[int, str]]) -> Demonstration:
    head, choices, end = block[0][0], [], {}
    wanted = ["Question:", "Options:"]
    for number, line in block:
        where, key = f"{path}:{number}", next((k for k in ("Question:", "Options:", "Reason:", "Answer:") if line.startswith(k)), None)
        option = re.match(r"\(([A-Z])\)\s*(.+)", line)
        if wanted == ["option"] and option and option[1] == LETTERS[len(choices)]:
            choices.append(option[2])
        elif wanted == ["option"] and len(choices) > 1 and key == "Reason:":
            wanted, end["Reason:"] = ["Answer:"], line.removeprefix("Reason:").strip()
        elif key and wanted and key == wanted[0]:
            end[key], wanted = line.removeprefix(key).strip(), wanted[1:]
            wanted = wanted or (["option"] if key == "Options:" else [])
        else:
            expected = f"({LETTERS[len(choices)]}) or Reason:" if wanted == ["option"] else wanted[0] if wanted else "an empty line"
            raise DataError(f"{where}: found {line[:40]!r}; expected {expected}")
    if "Answer:" not in end or not end["Reason:"]:
        raise DataError(f"{path}:{head}: the block has no Reason: or no Answer: line; expected Question, Options, Reason, Answer")
    example = make_example(f"demonstration at line {head}", end["Question:"], choices, end["Answer:"].strip("()"), f"{path}:{head}")
    return Demonstration(example, end["Reason:"])


def _asked(example: Example, mode: str) -> str:
    """The question as it is put to the teacher, up to the cue."""
    text = prompt_text(example, "pre_cot", "letter")
    if mode == "blind":
        return text
    given = f"Correct answer: ({LETTERS[example.answer]}) {example.label}\n"
    return text.removesuffix("Reason:") + given + "Reason:"


def build_messages(example: Example, demonstrations: list[Demonstration], mode: str, instruction: str | None = None) -> list[dict]:
    """The prompt as chat messages: each demonstration a question by the user and an answer by the assistant, the
    instruction at the top of the first user message (several templates know no system role)."""
    if mode not in MODES:
        raise DataError(f"mode '{mode}'; expected one of {', '.join(MODES)}")
    messages = []
    for shown in demonstrations:
        messages += [{"role": "user", "content": _asked(shown.example, mode)},
                     {"role": "assistant", "content": f"{shown.reason}\nAnswer: ({LETTERS[shown.example.answer]})"}]
    messages.append({"role": "user", "content": _asked(example, mode)})
    head = INSTRUCTIONS[mode] if instruction is None else instruction
    messages[0] = {"role": "user", "content": f"{head}\n\n{messages[0]['content']}" if head else messages[0]["content"]}
    return messages


def build_prompt(example: Example, demonstrations: list[Demonstration], mode: str = "blind", tokenizer=None,
                 instruction: str | None = None) -> Prompt:
    """The prompt as text: with the chat template of `tokenizer` where one is given, else plain few-shot text.

    Prompt.prefix does not depend on the example (with at least one demonstration). instruction=None takes ours.
    Raises DataError for an unknown mode and for a tokenizer without a chat template."""
    messages = build_messages(example, demonstrations, mode, instruction)
    if tokenizer is None:
        *shown, last = [m["content"] for m in messages]
        blocks = [f"{asked} {answer}" for asked, answer in zip(shown[::2], shown[1::2])]
        return Prompt("\n\n".join(blocks), "\n\n" * bool(blocks) + last)
    if not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template; expected chat=False for a base model")
    mark = "\x02question\x02"
    shape = tokenizer.apply_chat_template([*messages[:-1], {"role": "user", "content": mark}], tokenize=False,
                                          add_generation_prompt=True)
    prefix, found, tail = shape.partition(mark)
    if not found:
        raise DataError("the tokenizer's chat template changes the user's text; expected one that keeps it, or chat=False")
    return Prompt(prefix, messages[-1]["content"], tail)


def prompt_hash(prompt: str | list[dict]) -> str:
    """16 hex digits of the SHA-256 of a prompt, text or chat messages."""
    return fingerprint(prompt)


def prompt_ids(student, prompt: Prompt) -> tuple[list[int], list[int]]:
    """Token ids of a prompt as (prefix, rest). The pieces are tokenised by themselves; markup is read in the template's
    parts and never in the question, so that a question that quotes a special token stays text."""
    markup = lambda text: student.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not prompt.tail:
        return [*student.bos_ids, *student.encode(prompt.prefix)], student.encode(prompt.question)
    prefix = markup(prompt.prefix)
    if student.bos_ids and prefix[:1] != student.bos_ids:
        prefix = [*student.bos_ids, *prefix]
    return prefix, [*student.encode(prompt.question), *markup(prompt.tail)]


# ---------------------------------------------------------------------------------------------------------------------
# what a completion says

# Words by which teachers name the answer. English ones may be in the middle of a line, the others stand at its start.
_KIND = r"(?:the |my |your |final |correct |right |best )*"
_ABROAD = (r"(?:(?:die |la |le |el |a |o |het |правильный |верный |poprawna |bonne |richtige |korrekte |endgültige |最终|正确|正確|最終|参考)*"
           r"(?:antwort|lösung|réponse|respuesta|risposta|resposta|antwoord|svar|odpowiedź|cevap|jawaban|đáp án|ответ|"
           r"答案|選項|选项|回答|答え|解答|正解|정답|답|उत्तर|الإجابة|الجواب)"
           r"(?: finale?| final| correcta?| correcte| correta| corretta| đúng| benar)*)")
# "Answer: (B)", "**Final answer:** B", "Ans. = B", "réponse : B", "Answer - B", "Answer (B)" at the start of a line.
_ANSWER_LINE = re.compile(rf"(?im)^[ \t*#>_\[-]*(?:(?:so|thus|therefore|hence),? )?(?:{_KIND}(?:answer|ans\.?|answer choice)|"
                          rf"(?:final|correct|right|best) (?:option|choice)|{_ABROAD})[ \t*_\]]*"
                          r"(?:[:=→][ \t*_]*|[-–—][ \t*_]+|(?=\([a-z]\)[\s*.]*$))(?P<said>.*)$")
# "### Final Answer", "**Answer**", "Answer" alone on a line: what follows on the next line is the answer.
_HEADING = re.compile(rf"(?im)^[ \t]*(?:#+[ \t*]*|\*\*[ \t]*)(?:{_KIND}answer|{_ABROAD})[ \t*_:]*$")
# "Metal. Answer: (B)": in the middle of a line, with a capital letter, after the end of a sentence.
_INLINE = re.compile(r"(?<=[.!?;:)])[ \t]+[*_]*(?:The |Final |Correct |Best |So |final |correct )*(?:A|(?<= )a)nswer[*_]*[ \t]*[:=][ \t*_]*"
                     r"(?P<said>[^\n]*)")
# "#### B", the form of GSM8K.
_HASHES = re.compile(r"(?m)^####[ \t]+(?P<said>\S.*)$")
# "the answer is (B)", "the best choice must be ice".
_STATED = re.compile(r"(?i)\b(?:answer(?: choice)?|(?:correct|right|best) (?:option|choice|one))\s+"
                     r"(?:is|must be|should be|has to be|would be)\b\s*:?\s*(?P<said>(?:(?!\s(?:(?:so|thus|therefore) )?the (?:final |correct )?answer is\b)[^\n.!?;]|\.(?=\d))*)")
# "No, wait, that's not correct" right after a statement takes it back.
_WITHDRAWN = re.compile(r"(?i)[\s.!;,]*(?:(?:no|wait|but|actually|hmm)\b[\s,.]*)*(?:that|this|it)(?:'s|’s| is) "
                        r"(?:not (?:correct|right)|wrong|incorrect)\b")
# The same in other languages: "die Antwort ist (C)", "答案是B", "所以选B", "정답은 B".
_STATED_ABROAD = re.compile(rf"(?i){_ABROAD}\s*(?:ist|lautet|est|es|è|é|is|är|to|—|–|是|为|為|は|은|는|:)\s*:?\s*(?P<said>[^\n.!?;。]*)"
                            r"|(?:选择|選擇|应选|應選|故选|故選|所以选|因此选|选)\s*(?P<chosen>\(?[A-Z]\)?(?![A-Za-z]))")
# "I would choose (B)", "I'd go with ice".
_PICK = re.compile(r"(?i)\bI(?:'d|’d|'ll| would| will|) (?:choose|pick|select|go with)\s+(?P<said>[^\n.!?;]+)")
# "Therefore, (B).", "So it must be B." with nothing else in the sentence.
_SO = re.compile(r"(?:^|(?<=[.!?\n]))\s*[*_]*(?i:so|thus|therefore|hence),?\s+(?:(?i:it's|it is|it must be)\s+)?"
                 r"(?P<said>(?:(?i:option|choice)\s+)?(?:\([A-Z]\)|[A-Z]))[*_]*(?=[.!]?[*_]*(?:\s|$))(?!\s+\w)")
# "(B) is correct", "option B must be the best answer", after the start of a sentence or a word that concludes.
_NAMED = re.compile(r"(?:^|[.!?:;,\n*]|\b(?i:so|thus|therefore|hence|clearly))\s*[*_\"]*(?:(?i:the\s+)?(?i:option|choice|answer)\s+)?"
                    r"(?P<said>\([A-Za-z]\)|(?<![\w'’-])[A-Z](?![\w'’-]))[^\S\n]*[*_:\"]*[^\S\n]*(?P<text>[^\n.!?;,:]{0,60}?)[*_\"]*\s+"
                    r"(?i:is|must be|has to be)\s+(?:(?i:clearly|definitely|therefore|thus|indeed|probably|also|most likely)\s+)?"
                    r"(?:(?i:the)\s+)?(?:(?i:only|single)\s+)?(?i:correct|right|best)\b(?!\s*\?)"
                    r"(?=\s*[*_]*(?:[.,;!:)]|$|\s(?i:answer|option|choice|one|because|since|as|here)\b))")
# \boxed{B}, \boxed{\text{(B) a knife}}.
_BOXED = re.compile(r"\\boxed\s*\{(?P<said>(?:[^{}]|\{[^{}]*\})*)\}")
# "There is no doubt: (A)" ends the text.
_END = re.compile(r"[:→⇒]\s*[*_]*(?P<said>\([A-Za-z]\))[\s*_.]*$")
# A line that is only an option by letter: "(b)", "**B**", "B. a knife", "$B$"; whether its text is the option's is looked up.
_LONE = re.compile(r"[\s*_#>\"'`$\[{\\]*(?:boxed\s*\{|text\s*\{|(?i:option|choice|answer)\s+)*\(?[A-Za-z](?![\w'’])")
_TURN = re.compile(r"(?i)(?:\b(?:actually|wait|correction)\b\s*[,:.]?\s*|\bor rather\b\s*[,:.]?\s*|\b(?:no|rather)\b\s*[,:.]\s*)+(?:(?:it|that)(?:'s| is| should be| must be)\s+)?"
                   r"(?P<said>[^\n.!?;]+)")
# What stands before a statement that is only supposed, or denied of the answer: "if the answer is A", "the wrong answer is A".
_SUPPOSED = re.compile(r"(?i)\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|(?:might|may|could|would) "
                       r"(?:think|say|believe|guess|assume))\s+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$|\b(?:wrong|incorrect|worst|no|neither|"
                       r"previous|initial|first)\s+$")
_HEDGE = r"(?i:most likely|almost certainly|of course|probably|definitely|certainly|clearly|likely|surely|simply|therefore|thus|obviously|indeed|" \
         r"perhaps|maybe|possibly|still|really|actually|just|also|either|hence|most probably|in fact)"
# "not glass", "probably not copper", "no longer certain", "neither A nor B".
_DENIED = re.compile(rf"[\s*_:]*(?:{_HEDGE}[,\s]+)*(?i:not|isn['’]t|never|neither|none|nothing|hardly|unlikely|anything but|anything except|"
                     r"other than|far from|no longer|no doubt|no (?=\w))\b")
# "not (A) but (B)", "not A; rather B".
_INSTEAD = re.compile(r"(?i)\b(?:(?<!anything )but(?: rather| instead)?|rather(?! than)|it(?:'s|’s| is))\s+(?P<said>.+)")
# Where a statement stops to speak of its option: "ice rather than wood", "ice and not wood".
_AGAINST = re.compile(r"(?i)\b(?:not|isn['’]t|never|neither|nor|none|without|except|unlike|rather than|instead of|other than|anything but|no longer|"
                      r"hardly|cannot|can['’]t|opposite of|against)\b")
_NEGATIONS = {"not", "no", "never", "neither", "nor", "none", "nothing", "nobody", "without", "except", "cannot", "unlike", "hardly", "t", "against"}
# Labels that a text uses all the time without meaning the option.
_ORDINARY = set("yes no true false a an the it i he she they we you this that these those one none not all both so such as and or if in on at to of "
                "for with by from do does".split())

# How a closing names the answer, up to its end; it gives no reason.
_CONCLUDES = (r"(?:the |my )?(?:most |very )?(?:(?:correct|right|best|final|only|likely|logical|appropriate|suitable|accurate|fitting) ){0,3}"
              r"(?:answer(?: choice)?|option|choice) (?:is|must be)\b:?(?!\s+(?:not|one that|the one that)\b)")
_LINK = r"(?:(?:and |so|thus|therefore|hence|that is why)\b,?\s*)?"
_LAST_WORDS = r"(?![^.!?]*(?:\b(?:because|since)\b|,\s*as\b))(?:[^.!?]|[.](?=\d))*[.!?]?[\s*_>]*$"
# After the end of a sentence or clause (or at the start), as "So the answer is (B)." ...
_CLOSING = re.compile(rf"(?i)(?:^|(?<=[.!?;,:)*\"”]))[\s*_<]*{_LINK}\b(?=the |my ){_CONCLUDES}{_LAST_WORDS}")
# ... or without any punctuation before it: with a capital letter, or after a word that concludes.
_CLOSING_BARE = re.compile(rf"\s(?:(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),?\s+(?=(?:the|my) )(?i:{_CONCLUDES})|(?=(?:The|My) )(?i:{_CONCLUDES}))"
                           rf"(?i:{_LAST_WORDS})")
# "(B) is correct.", "So option B is the right answer."
_CLOSING_LETTER = re.compile(r"(?:^|(?<=[.!?;]))[\s*_]*(?i:(?:so|thus|therefore|hence),?\s+)?(?:(?i:the )?(?i:option|choice|answer)\s+)?(?:\([A-Z]\)|[A-Z])[*_]*\s+"
                             r"(?i:is|must be)\s+(?i:the )?(?i:correct|right|best)(?:\s+(?i:answer|option|choice))?[.!]?[\s*_]*$")
_BECAUSE = re.compile(r"(?i)\b(?:because|since)\b.*")
_REASON_LABEL = re.compile(r"(?i)^[\s#*]*(?:reason(?:ing)?|rationale|explanation|justification|begründung|erklärung|explication|raisonnement|"
                           r"explicación|razonamiento|spiegazione|explicação|解释|解析|理由|解説)\s*\**\s*:\**\s*")

# Marks by which models set their thoughts apart (opening, closing): DeepSeek, Qwen, Magistral, Kimi, Seed, and those that
# were asked for tags. DeepSeek's and others' templates put the opening mark into the prompt: then only the closing one is seen.
_THOUGHTS = ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("[THINK]", "[/THINK]"), \
    ("<reasoning>", "</reasoning>"), ("◁think▷", "◁/think▷"), ("<seed:think>", "</seed:think>"), \
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
_ANSWER_TAG = re.compile(r"(?is)<(?P<tag>answer|final_answer)>\s*(?P<said>.*?)\s*(?:</(?P=tag)>|$)")
_MARKS = re.compile(r"<\|(?:begin|end)_of_solution\|>|<\|(?:start\|>assistant|end\|>|return\|>)|</?(?:rationale|explanation|output|response)>")
# Names under which a JSON answer holds the option and the reason, in the order in which they are looked for.
_JSON_ANSWER = ("answer", "final_answer", "correct_answer", "answer_choice", "choice", "option", "label", "answer_letter")
_JSON_REASON = ("rationale", "reasoning", "reason", "explanation", "justification", "thought", "thoughts", "analysis", "steps")

# Full-width forms ("（Ｂ）：") -> ASCII, character by character, so that positions stay.
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, ord("【"): ord("["), ord("】"): ord("]"),
                                                                   ord("〔"): ord("("), ord("〕"): ord(")")}


class Parsed(NamedTuple):
    """What a completion says: the rationale on one line, the option it concludes (None: none), and whether it names
    different options as the answer."""

    rationale: str
    answer: int | None
    contradicts: bool


class Reading(NamedTuple):
    """What an answer of a teacher says, its thoughts apart.

    `finished` is False where the answer ended inside its thought: then there is no rationale and no conclusion. A record
    counts it as cut off (`cut_off`) and says so in `malformed`; the quality card shows both shares."""

    rationale: str
    answer: int | None
    contradicts: bool
    thought: str
    finished: bool


def clean_text(text: str) -> str:
    """A text that can be written as UTF-8: lone halves of surrogate pairs become U+FFFD, whole pairs the character they mean.

    A server may cut an answer inside an emoji; json.loads then gives half a pair, and any later write fails."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # pairs -> characters
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


def split_thought(text: str | None, reasoning_content: str | None = None, finish_reason: str | None = None) -> tuple[str, str, bool]:
    """An answer -> (thought, final text, finished).

    `reasoning_content` is the thought that a server gives in a field of its own. Marked thoughts ("<think>…</think>",
    "[THINK]…[/THINK]", "<reasoning>…</reasoning>", …) are taken out of the text; a closing mark without an opening one ends
    a thought that began in the prompt. finished is False where a mark is never closed, or where the answer was cut off
    (finish_reason "length") before any final text. `text` None counts as empty."""
    final, thoughts, finished = clean_text(text or ""), [clean_text(reasoning_content or "").strip()], True
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
    return (text[:found.start()], found[0], text[found.end():]) if found else (text, "", "")


def _rpartition(text: str, mark: str) -> tuple[str, str, str]:
    """str.rpartition at the last `mark`, whatever its case; without one, all is the first part."""
    found = None
    for found in re.finditer(re.escape(mark), text, re.I):
        pass
    return (text[:found.start()], found[0], text[found.end():]) if found else (text, "", "")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _bare(text: str) -> list[str]:
    words = _words(text)
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _terms(text: str) -> list[str]:
    """The words of an option or a statement, a number whole ("2.5", "-3", "1/2", "1,000" as 1000) and no article before them."""
    terms = []
    for term in re.findall(r"(?<![\w.)\]])[-−](?=\d)\d+(?:[.,/:]\d+)*|\d+(?:[.,/:]\d+)+(?!\w)|\w+", text.casefold()):
        number = re.sub(r",(?=\d{3}(?:\D|$))", "", term.replace("−", "-"))
        terms.append(re.sub(r"(?<=\d)\.0+$", "", number))
    return terms[1:] if len(terms) > 1 and terms[0] in ("a", "an", "the") else terms


def _contains(words: list[str], part: list[str]) -> bool:
    return bool(part) and any(words[i:i + len(part)] == part for i in range(len(words) - len(part) + 1))


def strip_markup(said: str) -> str:
    """A stated answer without LaTeX and brackets: "$\\boxed{\\text{B}}$", "[B]", "`b`" -> "(B)"-like text."""
    said = said.translate(_WIDE).replace("\\(", " ").replace("\\)", " ").replace("`", "")
    for _ in range(3):  # nested at most so deep
        said = re.sub(r"\\(?:boxed|text|textbf|mathrm|mathbf|textit)\s*\{([^{}]*)\}", r"\1", said)
    said = re.sub(r"\$([^$]*)\$", r"\1", said).replace("\\ ", " ")
    said = re.sub(r"^([\s*_\"']*)[\[{<「『(]+\s*([A-Za-z])\s*[\]}>」』)]+", r"\1(\2)", said)
    said = re.sub(r"^([\s*_\"']*)\(([a-z])\)", lambda m: f"{m[1]}({m[2].upper()})", said)
    return re.sub(r"(?<=[A-Z)])\s*(?:です|だ|입니다|이다)(?:。|\.)?\s*$", "", said)


_ALONE = re.compile(r"[\s*_\"']*\(([A-Z])\)[\s*_\"'.。]*")
_HEAD = re.compile(rf"[\s*_\"'“‘\[]*(?:{_HEDGE}[,\s]+)*(?:(?i:the\s+)?(?i:option|choice|letter)\s+)?[*_\"'“‘]*(\()?([A-Z])(?(1)\)|(?![\w'’]))")
_SMALL = re.compile(r"[\s*_\"'“‘]*(?P<word>(?i:option|choice|letter)\s+)?(?P<letter>[a-z])[*_\"'”’]*(?:[.):]+\s*|\s*$)(?P<rest>.*)")
_SECOND = re.compile(r"\s*(?:/|,?\s*or\b|,?\s*and\b(?=\s*\(?[A-Z]\)?[\s*.]*$)|,(?=\s*\(?[A-Z]\)?[\s*.]*$))\s*(?:option\s+|choice\s+)?"
                     r"(?:\(([A-Z])\)|([A-Z])(?![\w'’]))")


def options_said(said: str, choices: tuple[str, ...], whole: bool = False) -> list[int]:
    """The options that a stated answer names: by text, by letter ("(B)", "B.", "option B"), or both (two options where
    they disagree, or where it leaves them open: "(A) or (B)"). Equal options are one, the first. whole=True asks for nothing
    else beside it. A denied option ("probably not copper") is none; "not (A) but (B)" is (B)."""
    said = strip_markup(said)
    words = _terms(said)
    texts = [_terms(choice.translate(_WIDE)) if first_equal(choices, i) == i else [] for i, choice in enumerate(choices)]
    alone = _ALONE.fullmatch(said)
    if alone and LETTERS.find(alone[1]) < len(choices):  # the form that was asked for, also where an option's text is a letter
        return [first_equal(choices, LETTERS.find(alone[1]))]
    exact = [i for i, text in enumerate(texts) if text and text == words]
    if len(exact) == 1:
        return exact
    first = _first_said(said, words, texts)
    if _DENIED.match(said) and not any(texts[i][0] in _NEGATIONS for i in first):
        instead = _INSTEAD.search(said)
        return options_said(instead["said"], choices, whole) if instead else []
    named = _letters_said(said, choices, texts, whole)
    if named or whole:
        return named
    if "=" in said and len(_terms(said.rpartition("=")[2])) > 0 and not first:  # "12 - 8 = 4"
        return options_said(said.rpartition("=")[2], choices)
    if "=" in said and first and all(term[:1].isdigit() or term[:1] == "-" for text in texts for term in text):
        return options_said(said.rpartition("=")[2], choices)
    return first or _inside_said(said, texts)


def _letters_said(said: str, choices: tuple[str, ...], texts: list[list[str]], whole: bool) -> list[int]:
    """The options that a statement names by letter at its head: one, two, or none where the letter is a word ("A knife")."""
    head = _HEAD.match(said)
    letter = LETTERS.find(head[2]) if head else -1
    if not 0 <= letter < len(choices):
        return _small_letter(said, choices, texts)
    letter, rest = first_equal(choices, letter), said[head.end():]
    two = _SECOND.match(rest)
    second = LETTERS.find(two[1] or two[2]) if two else -1
    if 0 <= second < len(choices):
        return list(dict.fromkeys([letter, first_equal(choices, second)]))
    tail = _terms(rest)
    other = [i for i, text in enumerate(texts) if text and text == tail]
    if other and letter not in other:
        return [letter, other[0]]
    clear = (head[1] or not tail or rest[:1] in ".,:;)*" or other or tail[0] in ("because", "since", "as")
             or re.match(r"\s+[-–—:(]|\s*[\"'”’]|\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best)\b", rest))
    return [letter] if clear and not (whole and tail and not other) else []


def _small_letter(said: str, choices: tuple[str, ...], texts: list[list[str]]) -> list[int]:
    """The option of a small letter ("b", "b. a knife", "option b"): only with nothing else beside it but its own text."""
    small = _SMALL.fullmatch(said.strip())
    letter = LETTERS.find(small["letter"].upper()) if small else -1
    if not 0 <= letter < len(choices):
        return []
    letter, tail = first_equal(choices, letter), _terms(small["rest"])
    return [letter] if not tail or tail == texts[letter] else []


def _first_said(said: str, words: list[str], texts: list[list[str]]) -> list[int]:
    """The options whose text stands at the head of a statement: the longest, or two where it says "ice or wood".

    An ordinary word ("no") must be all of its clause: "no, because" names the option, "no longer certain" does not."""
    first = [i for i, text in enumerate(texts) if text and words[:len(text)] == text]
    if not first:
        return []
    longest = max(len(texts[i]) for i in first)
    first = [i for i in first if len(texts[i]) == longest]
    text = texts[first[0]]
    if len(text) == 1 and text[0] in _ORDINARY:
        ends = re.match(rf"[^\w]*(?:(?i:the|an?)\s+)?{re.escape(text[0])}(?!\w)[*_\"'”’)]*(?:\s*(?:[.,;:!—–(*]|$)|\s+(?i:because|since|as|for|and|but|-)(?!\w))",
                        said, re.I)
        return first if len(first) == 1 and ends else []
    rest = words[longest:]
    if rest[:1] == ["or"]:
        other = _first_said(" ".join(rest[1:]), rest[2:] if rest[1:2] in (["a"], ["an"], ["the"]) else rest[1:], texts)
        return [*first, *(i for i in other if i not in first)]
    return first if len(first) == 1 else []


def _inside_said(said: str, texts: list[list[str]]) -> list[int]:
    """The one option whose text stands anywhere in a statement, before it turns against something ("rather than wood")."""
    words, positive = _terms(said), _terms(_AGAINST.split(said)[0])
    inside = [i for i, text in enumerate(texts) if not (len(text) == 1 and text[0] in _ORDINARY)
              and _contains(words if set(text) & _NEGATIONS else positive, text)]
    longest = [i for i in inside if not any(i != j and _contains(texts[j], texts[i]) for j in inside)]
    return longest if len(inside) == 1 else []


class _Line(NamedTuple):
    """Where an answer stands in a text and what it says."""

    start: int
    end: int
    said: str
    whole: bool
    at: int


def _answer_lines(text: str, choices: tuple[str, ...]) -> list[_Line]:
    """All lines that state the answer, in reading order: "Answer: (B)", a heading with the answer below, "#### B", an inline
    "… Answer: (B)", a first or a last line that is only an option by letter."""
    lines = [_line_below(text, match) for match in _HEADING.finditer(text)]
    headings = {line.start for line in lines}
    for match in _ANSWER_LINE.finditer(text):
        if match.start() in headings:  # "**Answer:**" alone on its line is both
            continue
        lines.append(_line_below(text, match) if not match["said"].strip(" \t*_") else
                     _Line(match.start(), match.end(), match["said"], False, match.start("said")))
    taken = [(line.start, line.end) for line in lines]
    free = lambda at: not any(start <= at < end for start, end in taken)
    lines += [_Line(m.start(), m.end(), m["said"], False, m.start("said")) for m in _HASHES.finditer(text) if free(m.start())]
    lines += [_Line(m.start(), m.end(), m["said"], True, m.start("said")) for m in _INLINE.finditer(text)
              if free(m.start()) and options_said(m["said"], choices, whole=True)]
    return sorted(lines + [line for line in _lone_lines(text, choices) if free(line.at)])


def _line_below(text: str, match) -> _Line:
    """The answer that stands on the next line that is not empty."""
    below = re.compile(r"\s*([^\n]*)").match(text, match.end())
    return _Line(match.start(), below.end(), below[1], True, below.start(1)) if below[1] else _Line(
        match.start(), match.end(), "", True, match.end())


def _lone_lines(text: str, choices: tuple[str, ...]) -> list[_Line]:
    """The first and the last line, where they are an option by letter and nothing else. A first line counts only where no other
    line begins so: else it is the list of options, repeated."""
    spans = [(m.start(), m.end(), m[0]) for m in re.finditer(r"[^\n]*\S[^\n]*", text)]
    lone = [i for i, (_, _, line) in enumerate(spans) if _LONE.match(line)]
    wanted = {i for i in lone if i == len(spans) - 1 and (len(lone) < 2 or i - 1 not in lone) or i == 0 and len(lone) == 1}
    return [_Line(spans[i][0], spans[i][1], spans[i][2], True, spans[i][0]) for i in sorted(wanted)
            if options_said(spans[i][2].lstrip(" #>\t"), choices, whole=True)]


def conclusions(text: str, choices: tuple[str, ...]) -> list[list[int]]:
    """Every statement of an answer in reading order ("Answer: (B)", "the answer is ice", "actually, A"), each as the
    options it names. A statement in which no option can be read is left out, and so is one that is asked ("is B the answer?"),
    supposed ("if the answer is B") or denied."""
    text, found = text.translate(_WIDE), {}
    for pattern, whole in ((_TURN, True), (_PICK, True), (_SO, True), (_END, True), (_BOXED, False), (_STATED_ABROAD, True),
                           (_STATED, False)):
        for match in pattern.finditer(text):
            name = "said" if match["said"] is not None else "chosen"
            comma = match[name].find(",")
            if _WITHDRAWN.match(text, match.end()) or comma >= 0 and _WITHDRAWN.match(match[name], comma):
                continue
            if pattern is _STATED and (text[match.end():match.end() + 1] == "?" or _SUPPOSED.search(text, max(0, match.start() - 60),
                                                                                                    match.start())):
                continue
            found[match.start(name)] = options_said(match[name], choices, whole)
    for match in _NAMED.finditer(text):
        found[match.start("said")] = _named_option(match, choices)
    for line in _answer_lines(text, choices):
        found[line.at] = options_said(line.said.lstrip(" #>\t") if line.whole else line.said, choices, line.whole) or found.get(line.at)
    return [found[start] for start in sorted(found) if found[start]]


def _named_option(match, choices: tuple[str, ...]) -> list[int]:
    """The option of "(B) is correct" and "(B) a knife is the best answer": any text between must be the option's own."""
    named = options_said(match["said"], choices, whole=True)
    return named if not match["text"].strip() else options_said(f"{match['said']} {match['text']}", choices, whole=True)


def cut_closing(text: str, choices: tuple[str, ...] = ()) -> str:
    """A rationale on one line without the closing sentences that name the answer ("So the answer is (B).", "Thus, (B) is correct."),
    however many stand in a row and whether or not there is punctuation before them. `choices` are needed for "… is B. a knife"."""
    for choice in choices:
        shown = re.search(rf"(?<=[ (])([A-Z]\)?)[.:] *{re.escape(choice)}[.!*_ ]*$", text, re.I) if choice.strip() else None
        if shown and re.search(r"(?i)\b(?:is|be):? *\**\(?$", text[:shown.start()]):
            text = f"{text[:shown.end(1)]}."
    for _ in range(8):  # more closings than that in a row are a loop, not a closing
        shorter = text
        for pattern in (_CLOSING, _CLOSING_BARE, _CLOSING_LETTER):
            shorter = pattern.sub("", shorter).rstrip()
        if shorter == text:
            break
        text = shorter
    return text


def _from_tags(text: str) -> str:
    """A final text with its <answer> tag or JSON object written as "rationale\\nAnswer: …"; any other text as it is."""
    tag = _ANSWER_TAG.search(text)
    if tag:
        return f"{text[:tag.start()]}{text[tag.end():]}".strip() + f"\nAnswer: {' '.join(tag['said'].split())}"
    found = re.search(r"(?s)\{.*\}", text)
    try:
        given = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return text
    if not isinstance(given, dict):
        return text
    fields = {str(key).casefold().replace(" ", "_"): value for key, value in given.items()}
    answer = next((fields[name] for name in _JSON_ANSWER if isinstance(fields.get(name), str | int)), None)
    reason = next((fields[name] for name in _JSON_REASON if fields.get(name)), "")
    if answer is None:
        return text
    outside = re.sub(r"(?m)^\s*```\w*\s*$", "", text[:found.start()] + text[found.end():]).strip()
    reason = "\n".join(map(str, reason)) if isinstance(reason, list) else str(reason) or outside
    return f"{reason}\nAnswer: {' '.join(str(answer).split())}"


def _tidy_reason(body: str, choices: tuple[str, ...]) -> str:
    """A reason on one line, without a label before it ("Reason:") and a closing that names the answer."""
    body = " ".join(_REASON_LABEL.sub("", " ".join(body.split())).split())
    return cut_closing(body, choices).strip().strip("*").strip()


def _reason_of(text: str, choices: tuple[str, ...]) -> str:
    """The rationale of a final text: what stands before the line of the answer or, where the answer came first, its
    "because …" and what follows it, up to another one."""
    lines = _answer_lines(text.translate(_WIDE), choices)
    if not lines:
        return _tidy_reason(re.sub(r"(?m)^\s*[$*]*\\boxed\{.*\}[$*.]*\s*$", "", text), choices)
    body = text[:lines[0].start]
    if not body.strip():
        reason = _BECAUSE.search(lines[0].said)
        body = (reason[0] if reason else "") + text[lines[0].end:lines[1].start if len(lines) > 1 else None]
    return _tidy_reason(body, choices)


def parse_completion(raw: str, example: Example) -> Parsed:
    """A raw completion -> rationale, concluded answer, contradiction: `read_completion` of text alone."""
    return Parsed(*read_completion(raw, example)[:3])


def read_completion(raw: str | None, example: Example, reasoning_content: str | None = None,
                    finish_reason: str | None = None) -> Reading:
    """An answer of a teacher -> what it says.

    What comes after the next "Question:" is cut, thoughts are set apart (`split_thought`). The last answer that the final text
    states counts; a thought concludes nothing, for it weighs options. The rationale is the final text's own reasoning (before
    the "Answer:" line, without a closing "So the answer is (B)"); a final text that only answers has the finished thought as
    its rationale. An unfinished thought, or one without a final text, gives no
    rationale and no conclusion."""
    thought, final, finished = split_thought(raw, reasoning_content, finish_reason)
    if not finished:
        return Reading("", None, False, thought, False)
    if thought and not final and re.search(r"(?i)</reasoning>", raw or ""):  # asked-for tags around all of the answer
        thought, final = "", thought
    if not final:  # it thought and never answered
        return Reading("", None, False, thought, True)
    text = ("\n" + _from_tags(final)).split(STOP)[0].strip()
    said = conclusions(text, example.choices)
    body = _reason_of(text, example.choices) or _tidy_reason(thought, example.choices)
    answer = said[-1][0] if said and len(said[-1]) == 1 else None
    return Reading(body, answer, len({i for s in said for i in s}) > 1, thought, True)


# ---------------------------------------------------------------------------------------------------------------------
# the record file


def read_records(path: str | Path) -> list[dict]:
    """All whole records of a file, in the order written. A last line that was torn by a kill is left out.

    Raises DataError for any other line that is not one of our records."""
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
            raise DataError(f"{path}:{number}: malformed JSON; expected one record per line") from None
        missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
        if missing:
            raise DataError(f"{path}:{number}: no field '{missing[0]}'; expected a record written by elicit_*")
        seal = record.pop("seal", None)
        if seal is not None and seal != fingerprint(record):
            raise DataError(f"{path}:{number} (id {record['id']}): changed after it was written; expected the record of its seal: delete the "
                            "line, the question is asked again")
        records.append(record)
        whole += len(line) + 1
    return records, whole


@contextmanager
def _recording(path: Path):
    """(records so far by key, the file opened for appending). A torn last line is dropped. A second writer waits, then finds
    what the first one recorded."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(path.with_name(f"{path.name}.lock"), f"the records {path}"))
            file = stack.enter_context(open(path, "ab", buffering=0))
        except OSError as error:
            raise disk_error(error, path.parent) or DataError(f"{path}: can't be written ({error.strerror}); expected a file of records") from None
        records, length = _read(path)
        if length < path.stat().st_size:
            print(f"{path}: dropped a torn last line of {path.stat().st_size - length} bytes; it is asked again", flush=True)
            file.truncate(length)
        yield {_key(record): record for record in records}, file


def _append(file, record: dict) -> None:
    """One record, sealed, on the disk whole or not at all. Raises DataError where the disk takes no more.

    JSON escapes everything that is not ASCII, so that half a surrogate pair can be written too."""
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
    return tuple(record[f] for f in ("id", "sample", "prompt_hash", "teacher", "revision")) + (json.dumps(record["decoding"], sort_keys=True),)


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
        with whole(side) as part:
            part.write_text(json.dumps({**known, **prefixes}, indent=1, ensure_ascii=False), encoding="utf-8")


def rebuild_prompt(record: dict, path: str | Path) -> str | list[dict]:
    """The exact prompt of a record, text or chat messages, from the record and the prefixes beside its file.

    Raises DataError where the prefix is unknown or the hash does not agree."""
    side = prefixes_path(path)
    shared = json.loads(side.read_text(encoding="utf-8")).get(record["prefix"]) if side.is_file() else None
    if shared is None:
        raise DataError(f"{side}: no prefix {record['prefix']} (id {record['id']}); expected the file written with {path}")
    prompt = (shared["messages"] + [{"role": "user", "content": record["question"]}] if "messages" in shared
              else shared["prefix"] + record["question"] + shared["tail"])
    if prompt_hash(prompt) != record["prompt_hash"]:
        raise DataError(f"{path} (id {record['id']}): the prompt's hash is {prompt_hash(prompt)}; expected {record['prompt_hash']}")
    return prompt


def _decoding(sampling: Sampling, leave_out: tuple[str, ...] = ()) -> dict:
    """The part of a record that says how it was decoded. Raises DataError for a value out of range."""
    temperature, top_p, top_k = sampling.temperature, sampling.top_p, sampling.top_k
    max_new_tokens, n = sampling.max_new_tokens, sampling.n
    if not 0 <= temperature < float("inf") or not 0 < top_p <= 1 or top_k < 0 or max_new_tokens < 1 or n < 1:
        raise DataError(f"temperature {temperature}, top_p {top_p}, top_k {top_k}, max_new_tokens {max_new_tokens}, n {n}; "
                        "expected temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0: all), max_new_tokens >= 1, n >= 1")
    if temperature == 0 and n > 1 and "temperature" not in leave_out:
        raise DataError(f"n is {n} at temperature 0; expected n = 1 (every sample would be the same) or a temperature")
    how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": sampling.seed} if temperature else {"temperature": 0}
    return {**how, "max_new_tokens": max_new_tokens, "stop": STOP}


def sample_seed(seed: int, id: str, sample: int) -> int:
    """The seed of one answer, 31 bits: it depends on the question, never on what else is in the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{sample}|{id}".encode()).digest()[:4], "big") >> 1


class Answer(NamedTuple):
    """What a teacher sent for one question.

    message is the server's own object, whatever its form (None: a local model); finish_reason
    "length" means cut off; problem says why there is no usable text."""

    text: str = ""
    finish_reason: str = "stop"
    seconds: float = 0.0
    message: object = None
    problem: str = ""


CUT_OFF = ("length", "max_tokens", "model_length")  # the finish reasons of several servers


def join_parts(content) -> str:
    """The text of a message's content: a text, or a list of parts whose texts are joined.

    Parts without a text (images, thoughts, null) add nothing."""
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
    return "".join(join_parts(part.get("thinking")) for part in parts
                   if isinstance(part, dict) and part.get("type") == "thinking")


def completion_parts(record: dict) -> tuple[str, str, str]:
    """(text, thoughts sent beside it, finish reason) of a record: what `parse_completion` reads.

    Records of local teachers and older ones hold the text only."""
    message = record.get("message")
    thoughts = join_thoughts(message) if isinstance(message, dict) else ""
    reason = record.get("finish_reason") or ("length" if record["cut_off"] else "stop")
    return record["raw"], clean_text(thoughts), reason


def _finish(job: dict, example: Example, answer: Answer, secret: str | None = None) -> dict:
    """The record of an answer. A key that the server echoed goes out before the text is read."""
    record = {**job, "raw": clean_text(answer.text), "malformed": answer.problem,
              "cut_off": answer.finish_reason in CUT_OFF, "seconds": round(answer.seconds, 4)}
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
    record |= {"rationale": parsed.rationale, "contradicts": parsed.contradicts,
               "answer": None if parsed.answer is None else LETTERS[parsed.answer]}
    missing = "no rationale" if reading.finished else "unfinished thought"
    record["malformed"] = record["malformed"] or ("" if parsed.rationale else missing)
    return {field: record[field] for field in [*FIELDS, *(f for f in record if f not in FIELDS)]}


def answer_kind(record: dict) -> str:
    """"usable" where training has a rationale to learn from, else why not: "refused" (by the model
    or its server), "cut off" (before the rationale was there), "empty" (no rationale in it).

    A rationale that breaks off in mid text is usable; `cut_off` of the record says so."""
    if record["rationale"].strip():
        return "usable"
    if record["malformed"].startswith("refused"):
        return "refused"
    return "cut off" if record["cut_off"] else "empty"


def is_asked_again(record: dict, ask_again: tuple[str, ...]) -> bool:
    """Whether a record is of a kind that is to be asked again. All that was cut off counts as
    "cut_off", also where a usable text came of it."""
    return ("cut_off" in ask_again and record["cut_off"]
            or answer_kind(record).replace(" ", "_") in ask_again)


def count_usable(found: dict[str, Rationale], records: list[dict], questions: list[Example],
                 asked: list[Example]) -> str:
    """"38 of 40 training questions have a usable rationale: 1 refused, 1 cut off".

    found: rationales by id; records: the teacher's (none where nothing was asked); asked: the
    questions that were put to it. Of those that end in mid text the number is said as well."""
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
    broken = sum(any(r["cut_off"] and r["rationale"] == found[id].text for r in rows.get(id, []))
                 for id in usable)
    more = f"; {broken} of them break off at max_teacher_tokens" if broken else ""
    have = f"{len(usable)} of {len(questions)} training questions have a usable rationale"
    return have + (f": {why}" if why else "") + more


def _progress(total: int, before: int, what: str, every: float = 10.0):
    """A function to call with the number of answers so far: prints a line at most every `every` seconds, and the last."""
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
    """All jobs in order. A job is a record without its answer."""
    jobs = [make_job(example, sample) for example in examples for sample in range(n)]
    keys = Counter(map(_key, jobs))
    if keys and max(keys.values()) > 1:
        raise DataError(f"duplicate id '{keys.most_common(1)[0][0][0]}' among the questions; ids must be unique")
    return jobs


def _limitless_key(record: dict) -> tuple:
    decoding = {k: v for k, v in record["decoding"].items() if k != "max_new_tokens"}
    return _key({**record, "decoding": decoding})


def find_answers(jobs: list[dict], records: dict[tuple, dict]) -> dict[tuple, dict]:
    """The recorded answers of jobs, by the job's key.

    An answer that ended by itself under a smaller max_new_tokens is the answer under a larger one
    too: after the limit was raised only what was cut off is asked again."""
    found, ended = {}, {}
    for record in records.values():
        if not record["cut_off"]:
            ended.setdefault(_limitless_key(record), []).append(record)
    for job in jobs:
        limit = job["decoding"]["max_new_tokens"]
        shorter = [r for r in ended.get(_limitless_key(job), [])
                   if r["decoding"].get("max_new_tokens", limit) < limit]
        if _key(job) in records:
            found[_key(job)] = records[_key(job)]
        elif shorter:
            found[_key(job)] = shorter[-1]
    return found


def ask_all(jobs: list[dict], answer, examples: list[Example], path: Path, prefixes: dict, *,
            ask_again: tuple[str, ...] = (), secret: str | None = None) -> list[dict]:
    """Ask for the jobs that have no record yet, and record every answer as it comes.

    answer(todo, found) yields (job, Answer) in any order; found holds what is recorded, by key, and
    grows meanwhile. A job that it leaves out is asked by the next call. ask_again: see
    `TeacherSettings`. secret: a key that may stand nowhere. Returns the records there are, in the
    order of the jobs. Raises what `answer` raises, and DataError where the disk takes no more."""
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


# ---------------------------------------------------------------------------------------------------------------------
# a local teacher


def next_probabilities(logits, temperature: float, top_p: float, top_k: int):
    """Sampling distribution over the next token, [rows, vocabulary] -> the same shape: temperature, then the top_k most
    probable (0: all), then the smallest set that reaches top_p."""
    import torch

    probabilities = torch.softmax(logits.double() / temperature, -1)
    if top_k or top_p < 1:
        wanted = min(top_k or logits.shape[-1], logits.shape[-1])
        kept, order = probabilities.topk(wanted, -1)
        kept = kept / kept.sum(-1, keepdim=True)
        kept = kept.masked_fill(kept.cumsum(-1) - kept >= top_p, 0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, kept)
    return probabilities / probabilities.sum(-1, keepdim=True)


def prefix_cache(student, ids: list[int]):
    """Keys and values of the shared prefix, one pair of [1, kv_heads, length, width] per layer, computed in one pass."""
    from transformers.modeling_utils import AttentionInterface

    from cotdistill.students import keys_and_values

    AttentionInterface.register("shared_prefix", shared_prefix_attention)
    return [(layer.keys, layer.values) for layer in keys_and_values(student, ids).layers]


def shared_prefix_attention(module, query, key, value, attention_mask=None, scaling=None, sliding_window=None, *, prefix,
                            visible, **kwargs):
    """Attention of a batch over one shared prefix and each row's own tokens: the prefix's keys and values are read once
    for the whole batch, not copied to every row (the idea of Hydragen, arXiv 2402.05099, with one softmax over both).

    query [rows, heads, q, d]; key, value [rows, kv_heads, own, d]; prefix: per layer (key, value), [1, kv_heads, length, d];
    visible(window) -> bool [rows, 1, q, length + own], from positions, so sliding windows are those of a plain run."""
    import torch

    rows, heads, q, d = query.shape
    shared_key, shared_value = (part[0] for part in prefix[module.layer_idx])
    kv_heads, length = shared_key.shape[:2]
    query = query.reshape(rows, kv_heads, -1, d) * (d**-0.5 if scaling is None else scaling)
    flat = query.transpose(0, 1).reshape(kv_heads, -1, d)
    first = (flat @ shared_key.mT).reshape(kv_heads, rows, -1, length).transpose(0, 1)
    scores = torch.cat([first, query @ key.mT], -1).reshape(rows, heads, q, -1)
    weights = scores.float().masked_fill(~visible(sliding_window), float("-inf")).softmax(-1).to(value.dtype)
    weights = weights.reshape(rows, kv_heads, -1, weights.shape[-1])
    first = weights[..., :length].transpose(0, 1).reshape(kv_heads, -1, length) @ shared_value
    out = first.reshape(kv_heads, rows, -1, d).transpose(0, 1) + weights[..., length:] @ value
    return out.reshape(rows, heads, q, d).transpose(1, 2).contiguous(), None


def _visible(mask, positions, length: int):
    """What each query may look at, by sliding window (None: none): see `shared_prefix_attention`. mask [rows, own] marks
    real own tokens (1) and padding (0); positions [rows, q] are those of the queries."""
    import torch

    own = length + mask.cumsum(-1) - 1
    keys = torch.cat([torch.arange(length, device=mask.device).expand(len(mask), -1), own], 1)[:, None, None]
    real = torch.cat([mask.new_ones(len(mask), length), mask], 1).bool()[:, None, None]
    asks, known = positions[:, None, :, None], {}

    def visible(window):
        if window not in known:
            known[window] = real & (keys <= asks) & ((asks - keys < window) if window else True)
        return known[window]

    return visible


def generate(student, rows: list[list[int]], shared=None, *, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0,
             max_new_tokens: int = 128, seeds: list[int] | None = None, stop: str = STOP, end_ids: set[int] = frozenset()):
    """Continue each row of token ids; yields (row, new ids, cut off, seconds) as rows finish.

    `shared` is the `prefix_cache` of ids that stand before every row and are not in it. A row ends at an end token (not
    among the new ids), at `stop`, or cut off after max_new_tokens; rows that have ended leave the batch. At a
    temperature each row draws from its own generator (`seeds`). `seconds` is the row's share of the steps it took part
    in: shares add up to the whole. While it runs with `shared`, the model's attention is `shared_prefix_attention`."""
    import torch

    from cotdistill.students import attending, growing_cache, next_token_logits, prepacked

    model, ends, clock = student.model, {student.eos_id, *end_ids}, time.perf_counter()
    length, known = max(map(len, rows)), shared[0][0].shape[2] if shared else 0
    inputs = torch.tensor([[student.pad_id] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    positions, cache = known + (mask.cumsum(-1) - 1).clamp(min=0), growing_cache()
    live, new, spent = list(range(len(rows))), [[] for _ in rows], [0.0] * len(rows)
    draws = [np.random.default_rng(seed) for seed in seeds or [0] * len(rows)]
    with attending(model, "shared_prefix") if shared else nullcontext(), prepacked(model):
        for step in range(max_new_tokens):
            seen = (dict(prefix=shared, visible=_visible(mask, positions, known)) if shared else dict(attention_mask=mask))
            with torch.no_grad():
                hidden = model.base_model(input_ids=inputs, position_ids=positions, past_key_values=cache, use_cache=True, **seen).last_hidden_state
                logits = next_token_logits(model, hidden[:, -1])
            if temperature:
                sums = next_probabilities(logits, temperature, top_p, top_k).cumsum(-1).cpu().numpy()
                chosen = [int(np.searchsorted(row, draws[i].random() * row[-1], side="right")) for row, i in zip(sums, live)]
            else:
                chosen = logits.argmax(-1).tolist()
            now, keep = time.perf_counter(), []
            for i in live:
                spent[i] += (now - clock) / len(live)
            clock = now
            for slot, (i, token) in enumerate(zip(live, chosen)):
                ended = token in ends
                new[i] += [] if ended else [token]
                stopped = not ended and bool(stop) and stop in student.decode(new[i][-len(stop) - 2:])
                if ended or stopped or step + 1 == max_new_tokens:
                    yield i, new[i], not (ended or stopped), spent[i]
                else:
                    keep.append(slot)
            if not keep:
                return
            if len(keep) < len(live):
                index = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(index)
                mask, positions, live = mask[index], positions[index], [live[slot] for slot in keep]
            inputs = torch.tensor([[new[i][-1]] for i in live], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], 1)
            positions = positions[:, -1:] + 1


def _end_ids(student) -> set[int]:
    """Tokens that end a turn in the known chat templates, where the vocabulary has them."""
    vocabulary = student.tokenizer.get_vocab()
    return {vocabulary[t] for t in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "</s>", "<|endoftext|>") if t in vocabulary}


def elicit_transformers(examples: list[Example], student, out_path: str | Path, *,
                        demonstrations: list[Demonstration], settings: TeacherSettings = TeacherSettings(),
                        batch_size: int = 16, share_prefix: bool = True, device: str = "auto") -> list[dict]:
    """Ask a local model for rationales; returns their records, by question and sample.

    student        a Student, or what load_student takes (a bundled name, a directory, a hub id)
    share_prefix   compute the few-shot prefix once and reuse its keys and values (the same tokens, less time)
    device         "auto" takes a GPU where there is one; only used when `student` is a name

    What is in `out_path` by the same settings is not asked again. Questions of about the same length share a batch.
    Raises DataError for settings out of range and for a prompt that does not fit the model."""
    from cotdistill.students import best_device, best_dtype, load_student

    if isinstance(student, str):
        student = load_student(student, best_dtype("auto", best_device(device)), best_device(device))
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected a number from 1 on")
    decoding = _decoding(settings.sampling) | {"dtype": str(student.model.dtype).removeprefix("torch.")}
    chat = bool(student.tokenizer.chat_template) if settings.chat is None else settings.chat
    ids, prefixes = {}, {}

    def make_job(example, sample):
        prompt = build_prompt(example, demonstrations, settings.mode, student.tokenizer if chat else None, settings.instruction)
        prefixes[fingerprint(prompt.prefix, prompt.tail)] = {"prefix": prompt.prefix, "tail": prompt.tail}
        ids.setdefault(example.id, prompt_ids(student, prompt))
        return {"id": example.id, "sample": sample, "prompt_hash": prompt_hash(prompt.text),
                "prefix": fingerprint(prompt.prefix, prompt.tail), "question": prompt.question, "mode": settings.mode,
                "teacher": student.name, "revision": student.fingerprint, "decoding": decoding}

    jobs = _plan(examples, settings.sampling.n, make_job)
    room = getattr(student.model.config, "max_position_embeddings", None) or 10**9
    new_tokens = settings.sampling.max_new_tokens
    for id, (prefix, rest) in ids.items():
        if len(prefix) + len(rest) + new_tokens > room:
            raise DataError(f"id {id}: a prompt of {len(prefix) + len(rest)} tokens plus {new_tokens} new ones; expected at most "
                            f"{room} for {student.name}: give fewer demonstrations")
    shares = share_prefix and len(prefixes) == 1
    answer = lambda todo, found: _generate_answers(student, todo, ids, settings.sampling, batch_size, shares)
    return ask_all(jobs, answer, examples, Path(out_path), prefixes, ask_again=settings.ask_again)


def _generate_answers(student, todo: list[dict], ids: dict, sampling: Sampling, batch_size: int,
                      share_prefix: bool):
    """(job, Answer) of a local model, batch by batch.

    ids: the token ids (prefix, rest) of each question's prompt."""
    from cotdistill.students import prepacked

    todo = sorted(todo, key=lambda job: len(ids[job["id"]][1]))
    prefix = ids[todo[0]["id"]][0] if todo and share_prefix else []
    with prepacked(student.model):
        shared = prefix_cache(student, prefix) if prefix else None
        for start in range(0, len(todo), batch_size):
            batch = todo[start:start + batch_size]
            rows = [ids[job["id"]][1] if shared else sum(ids[job["id"]], []) for job in batch]
            for i, new, cut, seconds in generate(
                    student, rows, shared, temperature=sampling.temperature, top_p=sampling.top_p,
                    top_k=sampling.top_k, max_new_tokens=sampling.max_new_tokens, end_ids=_end_ids(student),
                    seeds=[sample_seed(sampling.seed, job["id"], job["sample"]) for job in batch]):
                yield batch[i], Answer(student.decode(new), "length" if cut else "stop", seconds)


def time_shared_prefix(examples: list[Example], student, demonstrations: list[Demonstration], *, mode: str = "blind",
                       chat: bool | None = None, batch_size: int = 16, max_new_tokens: int = 64, repeats: int = 2) -> dict:
    """Seconds per rationale, greedy, with the prefix computed once and with whole prompts, turn about in one run (the
    computing of the prefix included). `ratio` is whole / shared; `same` counts equal token sequences."""
    chat = bool(student.tokenizer.chat_template) if chat is None else chat
    ids = [prompt_ids(student, build_prompt(e, demonstrations, mode, student.tokenizer if chat else None)) for e in examples]
    ids = sorted(ids, key=lambda pair: len(pair[1]))
    seconds, texts = {True: [], False: []}, {}
    for turn in range(2 * repeats):
        share = turn % 2 == 0
        start, texts[share] = time.perf_counter(), {}
        shared = prefix_cache(student, ids[0][0]) if share else None
        for first in range(0, len(ids), batch_size):
            rows = [b if share else a + b for a, b in ids[first:first + batch_size]]
            for i, new, _, _ in generate(student, rows, shared, max_new_tokens=max_new_tokens, end_ids=_end_ids(student)):
                texts[share][first + i] = new
        seconds[share].append((time.perf_counter() - start) / len(ids))
    shared, whole = float(np.median(seconds[True])), float(np.median(seconds[False]))
    return {"rationales": len(ids), "prefix_tokens": len(ids[0][0]), "question_tokens": float(np.mean([len(b) for _, b in ids])),
            "new_tokens": float(np.mean([len(new) for new in texts[True].values()])), "shared_seconds": shared,
            "whole_seconds": whole, "ratio": whole / shared, "same": sum(texts[True][i] == texts[False][i] for i in texts[True])}


# ---------------------------------------------------------------------------------------------------------------------
# a teacher behind the OpenAI protocol


class _Refused(Exception):
    """The server read the question and will not answer it (400, 413, 422)."""


class _Failed(Exception):
    """A question got no answer, however often it was asked."""


def read_answer(response, chat: bool) -> Answer:
    """A server's JSON object -> Answer. `message` keeps what was sent, whatever its form.

    A refusal is a refusal field without any text, or a text that a content filter broke off. Raises
    ValueError for what is not a completion at all."""
    choices = response.get("choices") if isinstance(response, dict) else None
    if not isinstance(choices, list):
        raise ValueError("the answer is not a completion object")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    message = choice.get("message") if chat else choice or None
    fields = message if isinstance(message, dict) else {}
    text, refusal = join_parts(fields.get("content" if chat else "text")), join_parts(fields.get("refusal"))
    reason = str(choice.get("finish_reason") or "")
    problem = "" if text.strip() else "no text"
    if not text.strip() and refusal:
        problem = f"refused: {refusal}"
    elif reason == "content_filter":
        problem = "refused: content_filter"
    return Answer(text, reason, 0.0, response if message is None else message, problem)


def _ask(client, request: dict, connection: Connection, secret: str | None,
         stop: threading.Event) -> Answer | None:
    """One answer, after up to max_retries further tries; None when stopped.

    Tried again: timeouts, lost connections, 408, 409, 429, 5xx and answers that are not whole. The
    wait doubles from `backoff` seconds up to 30, times a random factor from 0.5 to 1.5, and respects
    Retry-After (up to 60 s). Raises _Refused and _Failed for this question; TeacherError for what
    would happen to any other question too, and sets `stop`."""
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
        except (openai.APIError, ValueError, RecursionError) as error:  # cut or invalid JSON, a web page
            failure = f"its answer was not whole ({type(error).__name__})"
            words = _address_hint(str(client.base_url))
        if attempt < tries - 1:
            stop.wait(max(wait, min(30.0, connection.backoff * 2**attempt) * random.uniform(0.5, 1.5)))
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
    words = words.replace(secret, "***") if secret else words  # before it is cut, so that no half stays
    return words if len(words) <= longest else words[:longest] + " …"


def _stop_or_refuse(error, words: str, base_url: str) -> None:
    """Raise TeacherError or _Refused for a status that another try would not mend."""
    status = error.status_code
    if status in (400, 422) and (hint := study_key_for(words, getattr(error, "param", None))):
        raise TeacherError(f"it answered {status} ({words}); {hint}") from None
    if status in (400, 413, 422):
        raise _Refused(f"{status} {words}") from None
    quota = re.search(r"(?i)insufficient[ _](quota|balance|credit|funds)|exceeded your current quota",
                      f"{words} {getattr(error, 'code', '')} {getattr(error, 'type', '')}")
    if status not in (408, 409, 429) and status < 500 or quota:
        hint = _address_hint(base_url) if status in (404, 405) else ""
        raise TeacherError(f"it answered {status} ({words})" + (f"; {hint}" if hint else "")) from None


def study_key_for(words: str, param: str | None = None) -> str:
    """The study key that mends a request with a field the model does not take; "" for other refusals.

    words: the server's; param: the field that it names beside them (OpenAI's `param`)."""
    refused = r"(?i)unsupported|not support|unknown|unrecogni[sz]ed|not (?:permitted|allowed)|unexpected"
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
    return "" if re.search(r"/v\d", path) else "base_url has no /v1 at its end, where most servers answer"


def _check_address(base_url: str):
    """The parts of base_url. Raises DataError for one that is no plain http address."""
    try:
        url = urlsplit(base_url)
        host, fits = url.hostname, url.port is None or url.port > 0
    except ValueError:  # not shown: what can't be read may hold a key
        host, fits = "that can't be read", False
    if not fits or url.scheme not in ("http", "https") or not host or url.username or url.password or url.query or url.fragment:
        raise DataError(f"base_url with host '{host}'; expected http(s)://host:port/v1 without a user, a key or a query: "
                        "the key belongs in OPENAI_API_KEY")
    return url


def _read_key() -> tuple[str, str | None]:
    """(the key to send, the secret to keep out of everything) from OPENAI_API_KEY. Raises DataError."""
    key = os.environ.get("OPENAI_API_KEY") or None
    if key and not re.fullmatch(r"[!-~]+", key):
        raise DataError("OPENAI_API_KEY holds a blank, a line break or a letter that is not ASCII; expected a key as it was given out")
    return key or "none", key if key and len(key) >= 8 else None  # "x", "null": a placeholder, no secret


def _server_decoding(sampling: Sampling, connection: Connection, chat: bool) -> dict:
    """`_decoding` and what else decides what a server writes. token_limit is only a name."""
    decoding = {**_decoding(sampling, connection.leave_out), "chat": chat}
    decoding |= {"extra_body": connection.extra_body} if connection.extra_body else {}
    return decoding | ({"leave_out": sorted(connection.leave_out)} if connection.leave_out else {})


def _build_request(job: dict, prompt, sampling: Sampling, connection: Connection) -> dict:
    """The arguments of a request.

    `seed` and top_p only at a temperature. top_k is no part of the protocol: it is sent in the extra
    body, only when not 0 (vLLM and llama.cpp know it)."""
    body = {"model": job["teacher"], connection.token_limit: sampling.max_new_tokens,
            "temperature": sampling.temperature, "stop": [STOP],
            "messages" if isinstance(prompt, list) else "prompt": prompt}
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
    """What went wrong while a server was asked: `fatal` ends the run, `skipped` holds (id, reason)
    of the questions that failed after all their tries."""

    def __init__(self, total: int, todo: int, connection: Connection):
        self.fatal, self.skipped, self.row = "", [], 0
        self.allowed = connection.max_failed * total
        self.patience = max(10, 2 * connection.concurrency)
        self.rest_may_fail = todo <= self.allowed

    def too_many(self) -> bool:
        """More than the share that may fail, or so many in a row that the server must be down."""
        return len(self.skipped) > self.allowed or self.row >= self.patience and not self.rest_may_fail

    def describe(self, first: int = 3) -> str:
        """Number, names and reasons of the questions that were skipped, the first ones in full."""
        shown = "; ".join(f"{id}: {reason}" for id, reason in self.skipped[:first])
        more = f"; and {len(self.skipped) - first} more" if len(self.skipped) > first else ""
        count = len(self.skipped)
        return f"{count} question{'s' if count > 1 else ''} failed: {shown}{more}"


def _collect_answers(waiting: dict, answered: bool, failures: _Failures, stop: threading.Event):
    """(job, Answer) of each request as it ends; what fails goes to `failures`.

    Refusals count as answers about one question once the server has answered another; where it
    refuses all, the settings are wrong."""
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


def elicit_openai(examples: list[Example], out_path: str | Path, *, model: str, base_url: str, revision: str = "",
                  demonstrations: list[Demonstration], settings: TeacherSettings = TeacherSettings(),
                  connection: Connection = Connection()) -> list[dict]:
    """Ask a server that speaks the OpenAI protocol for rationales; returns their records.

    The key is read from OPENAI_API_KEY and written nowhere ("none" is sent where it is not set, as
    local servers expect). chat=False asks /completions with text, else /chat/completions with
    messages (the server applies its template).

    What is in `out_path` by the same settings is not asked again (`find_answers`: nor what ended by
    itself under a smaller limit). A refused question (400, 413, 422) is recorded as malformed once
    the server has answered others. One that fails after all its tries is skipped, named, and left to
    the next call, unless more than max_failed do. Raises TeacherError where the server fails for
    good: what was answered until then is recorded, and the same call asks for the rest. DataError
    for settings out of range."""
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
            pieces = build_prompt(example, demonstrations, settings.mode, None, settings.instruction)
            prompt, shared, question = pieces.text, {"prefix": pieces.prefix, "tail": ""}, pieces.question
        prompts[example.id], prefixes[fingerprint(shared)] = prompt, shared
        return {"id": example.id, "sample": sample, "prompt_hash": prompt_hash(prompt), "prefix": fingerprint(shared),
                "question": question, "mode": settings.mode, "teacher": model, "revision": revision, "decoding": decoding}

    key, secret = _read_key()
    jobs = _plan(examples, sampling.n, make_job)
    failures, stop = _Failures(len(jobs), len(jobs), connection), threading.Event()

    def answer(todo, found):
        nonlocal failures
        failures = _Failures(len(jobs), len(todo), connection)
        pool = ThreadPoolExecutor(connection.concurrency)
        with OpenAI(api_key=key, base_url=base_url, timeout=connection.timeout, max_retries=0) as client:
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

    records = ask_all(jobs, answer, examples, path, prefixes, ask_again=settings.ask_again,
                      secret=secret)
    who = f"teacher {model} at {url.scheme}://{url.netloc}"
    recorded = f"{len(records)} of {len(jobs)} answers are recorded in {path}"
    _report_failures(failures, who, recorded, len(jobs) - len(records), secret)
    return records


def _report_failures(failures: _Failures, who: str, recorded: str, missing: int,
                     secret: str | None) -> None:
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


# ---------------------------------------------------------------------------------------------------------------------
# what was got: choose, measure, compare, filter


def _by_question(records: list[dict], examples: list[Example]) -> dict[str, list[dict]]:
    by_id, found = {example.id: example for example in examples}, {}
    # answers of a smaller max_new_tokens stand beside those that were asked again with a larger one
    kinds = {(r["teacher"], r["revision"], r["mode"], r["prefix"],
              json.dumps({**r["decoding"], "max_new_tokens": 0}, sort_keys=True)) for r in records}
    if len(kinds) > 1:
        raise DataError(f"records of {len(kinds)} settings, e.g. {sorted(kinds)[0][:3]} and {sorted(kinds)[1][:3]}; expected those of one "
                        "teacher, mode, prompt and decoding")
    for record in records:
        if record["id"] not in by_id:
            raise DataError(f"record for an unknown id '{record['id']}'; expected the id of one of the {len(by_id)} questions")
        found.setdefault(record["id"], {})[record["sample"]] = record  # asked again: the last one counts
    return {id: [rows[sample] for sample in sorted(rows)] for id, rows in found.items()}


def choose(records: list[dict], examples: list[Example], prefer: str = "agreeing") -> dict[str, Rationale]:
    """One rationale per question, out of n samples.

    prefer="agreeing": the first sample whose concluded answer is the gold one and that has a rationale, else the first
    sample (with one sample per question this is that sample). prefer="first": the first sample, whatever it concludes."""
    if prefer not in ("agreeing", "first"):
        raise DataError(f"prefer is '{prefer}'; expected agreeing or first")
    gold, chosen = {example.id: example for example in examples}, {}
    for id, rows in _by_question(records, examples).items():
        good = [r for r in rows if r["answer"] == LETTERS[gold[id].answer] and r["rationale"]]
        best = (good or rows)[0] if prefer == "agreeing" else rows[0]
        answer = None if best["answer"] is None else answer_index(best["answer"], len(gold[id].choices), f"record {id}")
        chosen[id] = Rationale(id, clean_text(best["rationale"]), answer)
    return {example.id: chosen[example.id] for example in examples if example.id in chosen}


def names_letter(text: str, option: int) -> bool:
    """Whether a rationale names an option by its letter: "(B)", "option B", "answer B", "the answer is B"."""
    letter = LETTERS[option]
    return bool(re.search(rf"\({letter}\)|\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+{letter}\b", text))


def names_text(text: str, choice: str) -> bool:
    """Whether the words of an option stand in a rationale, next to each other; case and a leading article don't count."""
    return _contains(_words(text), _bare(choice))


def loops(text: str) -> bool:
    """Whether a text repeats itself: four words in a row at least three times, or a sentence of four or more words twice."""
    words = _words(text)
    runs = Counter(tuple(words[i:i + 4]) for i in range(len(words) - 3))
    sentences = Counter(tuple(_words(s)) for s in re.split(r"(?<=[.!?])\s+", text))
    return any(count >= 3 for count in runs.values()) or any(count > 1 and len(s) >= 4 for s, count in sentences.items())


def copies(text: str, reasons: list[str], size: int = 5) -> bool:
    """Whether at least half of a text's runs of `size` words stand in one demonstration's reason."""
    runs = lambda s: {tuple(w[i:i + size]) for w in [_words(s)] for i in range(max(1, len(w) - size + 1))}
    own = runs(text)
    return bool(_words(text)) and any(len(own & runs(reason)) >= len(own) / 2 for reason in reasons)


def quality_card(rationales: dict[str, Rationale] | list[dict], examples: list[Example],
                 demonstrations: list[Demonstration] | None = None):
    """What a set of rationales is worth, as a pandas Series (`.to_json()` is the file): counts `n`, `questions` (asked
    about), `covered`, and shares from 0 to 1 of the n rationales.

    rationales: records of `elicit_*` (every sample counts) or a recorded set. Shares that can't be known are NaN: the
    share cut off and malformed and the seconds of a recorded set, copies without demonstrations.

    agrees, abstains   the concluded answer is the gold one; no answer could be read.
                       `agrees_if_answered` of the others.
                       Both NaN where no rationale states an answer: a gold set is not asked
    chance             agreement of a uniform guess
    top_answer         share of the most frequent concluded position: near 1, the teacher says the same letter to everything
    contradicts        different options are stated to be the answer
    names_letter, names_text, leaks   the rationale names the gold option by letter, by text, by either
    words_mean, words_median          length in words, of covered rationales
    loops, copies, duplicates         see `loops` and `copies`; as many texts as are equal to an earlier one
    unfinished         does not end in . ! or ? (a sign of a cut-off that recorded sets also show)
    cut_off, malformed, seconds_mean  from the records"""
    import pandas as pd

    by_id, rows = {example.id: example for example in examples}, []
    for item in rationales.values() if isinstance(rationales, dict) else rationales:
        record = isinstance(item, dict)
        id, text = (item["id"], item["rationale"]) if record else (item.id, item.text)
        if id not in by_id:
            raise DataError(f"rationale for an unknown id '{id}'; expected the id of one of the {len(by_id)} questions")
        example = by_id[id]
        answer = item["answer"] if record else item.answer
        answer = None if answer is None else answer_index(answer, len(example.choices), f"rationale {id}")
        stated = {i for said in conclusions(text, example.choices) for i in said} | ({answer} - {None})
        rows.append({
            "agrees": answer == example.answer, "answer": answer, "abstains": answer is None, "chance": 1 / len(example.choices),
            "contradicts": item["contradicts"] if record else len(stated) > 1,
            "names_letter": names_letter(text, example.answer), "names_text": names_text(text, example.label),
            "loops": loops(text), "copies": copies(text, [d.reason for d in demonstrations]) if demonstrations else np.nan,
            "unfinished": bool(text) and text.rstrip("\"')*")[-1:] not in (".", "!", "?"),
            "cut_off": item["cut_off"] if record else np.nan, "malformed": bool(item["malformed"]) if record else np.nan,
            "seconds": item["seconds"] if record else np.nan, "words": len(text.split()), "text": " ".join(_words(text)), "id": id})
    if not rows:
        raise DataError("no rationale to judge; expected at least one")
    table = pd.DataFrame(rows)
    texts, words = table.text[table.text != ""], table.words[table.words > 0]
    share = {name: float(table[name].astype(float).mean()) for name in
             ("agrees", "abstains", "chance", "contradicts", "names_letter", "names_text", "loops", "copies", "unfinished",
              "cut_off", "malformed")}
    answered = table[~table.abstains]
    if isinstance(rationales, dict) and not len(answered):
        share["agrees"] = share["abstains"] = np.nan
    return pd.Series({
        "n": float(len(table)), "questions": float(table.id.nunique()), "covered": float(table.id[table.text != ""].nunique()),
        "agrees": share["agrees"], "agrees_if_answered": float(answered.agrees.mean()) if len(answered) else np.nan,
        "chance": share["chance"], "top_answer": float(answered.answer.value_counts(normalize=True).iloc[0]) if len(answered) else np.nan,
        "abstains": share["abstains"], "contradicts": share["contradicts"],
        "names_letter": share["names_letter"], "names_text": share["names_text"],
        "leaks": float((table.names_letter | table.names_text).mean()),
        "words_mean": float(words.mean()), "words_median": float(words.median()), "loops": share["loops"],
        "copies": share["copies"], "duplicates": (len(texts) - texts.nunique()) / len(table),
        "unfinished": share["unfinished"], "cut_off": share["cut_off"], "malformed": share["malformed"],
        "seconds_mean": float(table.seconds.astype(float).mean())})


def compare_teachers(cards: dict):
    """{name: quality card} -> DataFrame, a column per teacher, a row per measure."""
    import pandas as pd

    return pd.DataFrame(cards)


def _scrub_ordinary(text: str, word: str, neutral: str) -> str:
    """A text with an ordinary word replaced where it stands as an answer: see `scrub`."""
    word = rf"(?<!\w){re.escape(word)}(?![\w'’])"
    ends = r"(?=\s*(?:[.,;:!?)\"”*—–]|$)|\s+(?:because|since|as)\b)"
    stated = (rf"((?:\b(?:answer|choice|option)\s+(?:is|must be|should be|would be)\s*:?|\banswer\s*[:=]|\([A-Z]\)|{neutral}[,:])\s*)"
              rf"{word}{ends}")
    text = re.sub(stated, rf"\g<1>{neutral}", text, flags=re.I)
    text = re.sub(rf"([\"“‘'])({word})(?=[.,]?[\"”’'])", rf"\g<1>{neutral}", text, flags=re.I)
    return re.sub(rf"((?:^|(?<=[.!?;:])\s+)){word}(?=\s*(?:[.,;:!—–]|$))", rf"\g<1>{neutral}", text, flags=re.I)


def scrub(text: str, example: Example) -> str:
    """The rationale with the gold option, named by text or by letter, replaced by a neutral phrase.

    A label that is an ordinary word (yes, no, true, it, a, …: `_ORDINARY`) is replaced only where it stands as an answer: after
    "the answer is" or "Answer:", after its letter, in quotation marks, or as a clause of its own at the start of a sentence
    ("No, it sinks."). In "There is no water" it stays."""
    label = _bare(example.label)
    ordinary = len(label) == 1 and label[0] in _ORDINARY
    neutral = next(p for p in ("this one", "that", "it", "such") if not set(_words(p)) & set(label))
    letter = LETTERS[example.answer]
    text = re.sub(rf"(?:\b(?i:the)\s+)?(?:\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+)?\({letter}\)"
                  rf"|(?:\b(?i:the)\s+)?\b(?i:option|answer|choice|letter)(?i:\s+is)?\s*:?\s+{letter}\b", neutral, text)
    if label:
        pattern = re.compile(r"(?:\b(?:the|an?)\s+)?(?<!\w)" + r"\W+".join(map(re.escape, label)) + r"(?!\w)", re.I)
        text = _scrub_ordinary(text, label[0], neutral) if ordinary else pattern.sub(neutral, text)
    return text[:1].upper() + text[1:]


def filter_rationales(rationales: dict[str, Rationale], examples: list[Example], *, keep_agreeing: bool = False,
                      scrub_label: bool = False, max_tokens: int | None = None, count=lambda text: len(text.split())):
    """(kept rationales, counts) after the filters asked for, in this order.

    with_text       always: a rationale without text is no rationale
    keep_agreeing   only those that conclude the gold answer (abstentions go)
    scrub_label     `scrub` each: changes texts, removes none that still says something
    max_tokens      only those of at most so many, as `count` counts (words; pass lambda t: len(student.encode(t)))

    counts is a DataFrame by filter: before, removed, changed, after. The caller trains every arm, label_only too, on the
    questions whose rationale is kept. Character spans don't survive scrubbing: key_spans of changed texts are emptied."""
    import pandas as pd

    by_id = {example.id: example for example in examples}
    unknown = next((id for id in rationales if id not in by_id), None)
    if unknown is not None:
        raise DataError(f"rationale for an unknown id '{unknown}'; expected the id of one of the {len(by_id)} questions")
    if max_tokens is not None and max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}; expected None or a number of at least 1")

    def scrubbed(r):
        text = scrub(r.text, by_id[r.id])
        return r if text == r.text else Rationale(r.id, text, r.answer)

    steps = [("with_text", True, lambda r: r if r.text.strip() else None),
             ("keep_agreeing", keep_agreeing, lambda r: r if r.answer == by_id[r.id].answer else None),
             ("scrub_label", scrub_label, scrubbed),
             ("max_tokens", max_tokens is not None, lambda r: r if count(r.text) <= max_tokens else None)]
    kept, rows = dict(rationales), []
    for name, wanted, step in steps:
        if not wanted:
            continue
        after = {id: new for id, old in kept.items() if (new := step(old)) is not None}
        rows.append({"filter": name, "before": len(kept), "removed": len(kept) - len(after),
                     "changed": sum(after[id] != kept[id] for id in after), "after": len(after)})
        kept = after
    return kept, pd.DataFrame(rows).set_index("filter")


# ---------------------------------------------------------------------------------------------------------------------
# what notebook 01 calls


def from_teacher(teacher: str, examples: list[Example], data, out_path: str | Path, *,
                 demonstrations: list[Demonstration], source: TeacherSource = TeacherSource(),
                 settings: TeacherSettings = TeacherSettings()) -> tuple[dict[str, Rationale], list[dict]]:
    """One rationale per question from any teacher: (rationales by id, records; no records where nothing was asked).

    gold: what the data bring along (`data.rationales`). recorded: a JSONL file. transformers: a local
    model, asked; it may be a Student already. openai: a model at the server `base_url`, asked.
    Raises DataError for an unknown teacher and for one that lacks its file, model or address."""
    recorded, model, base_url = source.recorded, source.model, source.base_url
    needs = {"gold": data.rationales, "recorded": recorded, "transformers": model, "openai": model and base_url}
    names = {"gold": "rationales in the data (microworld, or a `rationale` field)", "recorded": "`rationales`, a JSONL file",
             "transformers": "`teacher_model`", "openai": "`teacher_model` and `base_url`"}
    if settings.mode not in MODES:
        raise DataError(f"mode '{settings.mode}'; expected one of {', '.join(MODES)}")
    if teacher not in needs:
        raise DataError(f"teacher '{teacher}'; expected one of {', '.join(needs)}")
    if not needs[teacher]:
        raise DataError(f"teacher '{teacher}' has nothing to go by; expected {names[teacher]}")
    uses = {"gold": (), "recorded": ("rationales",), "transformers": ("teacher_model",), "openai": ("teacher_model", "base_url")}
    for name, value in (("rationales", recorded), ("teacher_model", model), ("base_url", base_url)):
        if value and name not in uses[teacher]:
            raise DataError(f"{name} is '{value}', but teacher is '{teacher}', which does not read it; expected teacher "
                            f"{' or '.join(t for t in uses if name in uses[t])}, or {name} left empty")
    if teacher == "gold":
        return dict(data.rationales), []
    if teacher == "recorded":
        return load_rationales(recorded, data.explained), []
    how = {"demonstrations": demonstrations, "settings": settings}
    if teacher == "transformers":
        records = elicit_transformers(examples, model, out_path, batch_size=source.batch_size, **how)
    else:
        name, _, revision = model.partition("@")
        records = elicit_openai(examples, out_path, model=name, revision=revision, base_url=base_url,
                                connection=source.connection, **how)
    return choose(records, examples), records


def read_card(card) -> str:
    """A quality card in two sentences; what can't be known is said in words, never as nan."""
    if np.isnan(card["abstains"]):
        answers = (
            "they state no answer of their own, so agreement with the gold answer is not applicable"
        )
    elif card["abstains"] == 1:
        answers = "no answer was recorded, none could be read"
    else:
        answers = (
            f"{100 * card['agrees']:.1f} % conclude the gold answer "
            f"(chance {100 * card['chance']:.1f} %), {100 * card['abstains']:.1f} % conclude "
            "nothing that can be read, the commonest letter makes up "
            f"{100 * card['top_answer']:.0f} %"
        )
    words = 0 if np.isnan(card["words_mean"]) else card["words_mean"]
    return (
        f"{card['covered']:.0f} of {card['questions']:.0f} questions are covered; {answers}. "
        f"{100 * card['leaks']:.1f} % name the label, {100 * card['loops']:.1f} % repeat "
        f"themselves, "
        f"{100 * card['duplicates']:.1f} % are duplicates; {words:.0f} words on average."
    )
