"""Ask a teacher that transformers loads on this machine."""

import time
from pathlib import Path

import numpy as np

from cotdistill.decode import generate, prefix_cache
from cotdistill.elicit.answers import Answer
from cotdistill.elicit.prompts import Demonstration, build_prompt, prompt_ids
from cotdistill.elicit.records import (
    ask_all,
    describe_decoding,
    describe_job,
    plan_jobs,
    sample_seed,
)
from cotdistill.elicit.settings import DEFAULT_SETTINGS, Sampling, TeacherSettings
from cotdistill.errors import DataError
from cotdistill.examples import Example
from cotdistill.files import fingerprint
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import best_device, best_dtype, load_student


def end_token_ids(student) -> set[int]:
    """Return the tokens that end a turn in known chat templates, if the vocabulary has them."""
    vocabulary = student.tokenizer.get_vocab()
    return {
        vocabulary[t]
        for t in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>", "</s>", "<|endoftext|>")
        if t in vocabulary
    }


def elicit_transformers(
    examples: list[Example],
    student,
    out_path: str | Path,
    *,
    demonstrations: list[Demonstration],
    settings: TeacherSettings = DEFAULT_SETTINGS,
    batch_size: int = 16,
    share_prefix: bool = True,
    device: str = "auto",
) -> list[dict]:
    """Ask a local model for rationales; return their records, by question and sample.

    student        a Student, or what load_student takes (a bundled name, a directory, a hub id)
    share_prefix   compute the few-shot prefix once and reuse its keys and values: the same
                   tokens in less time
    device         "auto" takes a GPU where there is one; only used when `student` is a name

    What is in `out_path` by the same settings is not asked again. Questions of about the same
    length share a batch. Raises DataError for settings out of range and for a prompt that does not
    fit the model.
    """
    if isinstance(student, str):
        device = best_device(device)
        student = load_student(student, best_dtype("auto", device), device)
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected a number from 1 on")
    dtype = {"dtype": str(student.model.dtype).removeprefix("torch.")}
    chat = bool(student.tokenizer.chat_template) if settings.chat is None else settings.chat
    tokenizer = student.tokenizer if chat else None
    teacher = {
        "mode": settings.mode,
        "teacher": student.name,
        "revision": student.fingerprint,
        "decoding": describe_decoding(settings.sampling) | dtype,
    }
    ids, prefixes = {}, {}

    def make_job(example, sample):
        prompt = build_prompt(
            example, demonstrations, settings.mode, tokenizer, settings.instruction
        )
        prefix = fingerprint(prompt.prefix, prompt.tail)
        prefixes[prefix] = {"prefix": prompt.prefix, "tail": prompt.tail}
        ids.setdefault(example.id, prompt_ids(student, prompt))
        return describe_job(teacher, example, sample, prompt.text, prefix, prompt.question)

    jobs = plan_jobs(examples, settings.sampling.n, make_job)
    _check_room(student, ids, settings.sampling.max_new_tokens)
    shares = share_prefix and len(prefixes) == 1
    answer = lambda todo, found: _generate_answers(
        student, todo, ids, settings.sampling, batch_size, shares
    )
    return ask_all(jobs, answer, examples, Path(out_path), prefixes, ask_again=settings.ask_again)


def _check_room(student, ids: dict, new_tokens: int) -> None:
    """Raise DataError for a prompt that leaves no room for `new_tokens` more.

    ids: the token ids (prefix, rest) of each question's prompt.
    """
    room = getattr(student.model.config, "max_position_embeddings", None) or 10**9
    for key, (prefix, rest) in ids.items():
        if len(prefix) + len(rest) + new_tokens > room:
            raise DataError(
                f"id {key}: a prompt of {len(prefix) + len(rest)} tokens plus {new_tokens} new "
                f"ones; expected at most {room} for {student.name}: give fewer demonstrations"
            )


def _generate_answers(
    student, todo: list[dict], ids: dict, sampling: Sampling, batch_size: int, share_prefix: bool
):
    """Yield (job, Answer) of a local model, batch by batch.

    ids: the token ids (prefix, rest) of each question's prompt.
    """
    todo = sorted(todo, key=lambda job: len(ids[job["id"]][1]))
    prefix = ids[todo[0]["id"]][0] if todo and share_prefix else []
    with use_prepacked_linears(student.model):
        shared = prefix_cache(student, prefix) if prefix else None
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            rows = [ids[job["id"]][1] if shared else sum(ids[job["id"]], []) for job in batch]
            for i, new, cut, seconds in generate(
                student,
                rows,
                shared,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                end_ids=end_token_ids(student),
                seeds=[sample_seed(sampling.seed, job["id"], job["sample"]) for job in batch],
            ):
                yield batch[i], Answer(student.decode(new), "length" if cut else "stop", seconds)


def time_shared_prefix(
    examples: list[Example],
    student,
    demonstrations: list[Demonstration],
    *,
    mode: str = "blind",
    chat: bool | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    repeats: int = 2,
) -> dict:
    """Measure seconds per rationale, greedy, with a shared prefix and with full prompts.

    Both sides alternate in one run, and computing the prefix is included. `ratio` is full / shared;
    `same` counts equal token sequences.
    """
    chat = bool(student.tokenizer.chat_template) if chat is None else chat
    ids = [
        prompt_ids(
            student, build_prompt(e, demonstrations, mode, student.tokenizer if chat else None)
        )
        for e in examples
    ]
    ids = sorted(ids, key=lambda pair: len(pair[1]))
    seconds, texts = {True: [], False: []}, {}
    for turn in range(2 * repeats):
        share = turn % 2 == 0
        start, texts[share] = time.perf_counter(), {}
        shared = prefix_cache(student, ids[0][0]) if share else None
        for first in range(0, len(ids), batch_size):
            rows = [b if share else a + b for a, b in ids[first : first + batch_size]]
            for i, new, _, _ in generate(
                student, rows, shared, max_new_tokens=max_new_tokens, end_ids=end_token_ids(student)
            ):
                texts[share][first + i] = new
        seconds[share].append((time.perf_counter() - start) / len(ids))
    shared, full = float(np.median(seconds[True])), float(np.median(seconds[False]))
    return {
        "rationales": len(ids),
        "prefix_tokens": len(ids[0][0]),
        "question_tokens": float(np.mean([len(b) for _, b in ids])),
        "new_tokens": float(np.mean([len(new) for new in texts[True].values()])),
        "shared_seconds": shared,
        "whole_seconds": full,
        "ratio": full / shared,
        "same": sum(texts[True][i] == texts[False][i] for i in texts[True]),
    }
