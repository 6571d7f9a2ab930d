"""Scoring, answers and elicitation beside lm-evaluation-harness and HF generate."""

import copy
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.compare import Limit, Side, Timing, arrays_agree, compare_sides, lists_agree
from benchmarks.limits import weights_of
from cotdistill.arms import label_text, parse_answer, prompt_text, split_generation
from cotdistill.decode import generate, prefill, prefix_cache
from cotdistill.elicit.local import end_token_ids
from cotdistill.elicit.prompts import STOP, build_prompt, prompt_ids
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


def time_scoring(
    student: Student, examples: list[Example], timing: Timing
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time forced choice: `evaluate` without generation against lm-evaluation-harness's HFLM.

    Both sides score the same tokens. The same option must be picked for every question.
    """
    harness = load_harness(student) if find_spec("lm_eval") else None

    def ours(size):
        predictions = evaluate(student, examples, "label_only", generate=False, batch_size=size)
        return [p["scores"] for p in predictions]

    def same(a, b):
        picks = lists_agree(
            [int(np.argmax(s)) for s in a], [int(np.argmax(s)) for s in b], "options picked alike"
        )
        logps = arrays_agree(np.concatenate(a), np.concatenate(b), 1e-4, "log probabilities")
        return picks[0] and logps[0], f"{picks[1]}; {logps[1]}"

    peer = Side(
        lambda size: harness_scores(harness, student, examples, size),
        timing.sizes,
        "HFLM.loglikelihood on the same tokens",
        timing.target,
        needs="lm_eval",
    )
    return compare_sides(
        "forced choice",
        Side(ours, timing.own_sizes),
        {"lm-evaluation-harness": peer},
        same,
        timing.repeats,
        Limit(lambda size: pass_prompts(student, examples, "label_only", size)),
    )


def pass_prompts(
    student: Student, examples: list[Example], placement: str, batch_size: int
) -> None:
    """Pass the prompts once, in batches of about the same length.

    No side can score or answer without this.
    """
    prompts = sorted(
        (student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples), key=len
    )
    with use_prepacked_linears(student.model):
        for begin in range(0, len(prompts), batch_size):
            prefill(student, prompts[begin : begin + batch_size])


def read_weights(student: Student, steps: int) -> None:
    """Read every weight once per decoding step, as one row's products do.

    No side can generate text without this, once the prompt is passed.
    """
    layers = [m.weight for m in student.model.modules() if isinstance(m, nn.Linear)]
    rows = {w.shape[1]: torch.randn(1, w.shape[1]) for w in layers}
    with torch.no_grad():
        for _ in range(steps):
            for weight in layers:
                nn.functional.linear(rows[weight.shape[1]], weight)


def load_harness(student: Student):
    """Wrap the student in lm-evaluation-harness's HFLM, in float32."""
    import logging

    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(
        pretrained=student.model,
        tokenizer=copy.deepcopy(student.tokenizer),
        backend="causal",
        dtype="float32",
    )


def harness_scores(
    harness, student: Student, examples: list[Example], batch_size: int
) -> list[list[float]]:
    """Compute log p of each option by HFLM (`load_harness`), from our own token ids."""
    harness.batch_size_per_gpu = batch_size
    requests = []
    for e in examples:
        prompt = student.bos_ids + student.encode(prompt_text(e, "label_only"))
        requests += [
            ((e.id, str(o)), prompt, student.encode(label_text(e, o)))
            for o in range(len(e.choices))
        ]
    # HFLM.loglikelihood would tokenise the texts again; this is what it calls afterwards
    scores = iter(harness._loglikelihood_tokens(requests, disable_tqdm=True))
    return [[next(scores)[0] for _ in e.choices] for e in examples]


class StopAt(StoppingCriteria):
    """Ends a row of HF's generate once it has written a certain text, as our elicitation does."""

    def __init__(self, student: Student, text: str, prompt_length: int):
        """Look for `text` in the tokens after the first `prompt_length`."""
        self.student, self.text, self.length = student, text, prompt_length

    def __call__(self, input_ids, scores, **kwargs):
        """Return for each row, [B], whether the text is among its latest tokens."""
        recent = input_ids[:, self.length :][:, -len(self.text) - 2 :]
        return torch.tensor(
            [self.text in self.student.decode(r) for r in recent.tolist()], device=input_ids.device
        )


def hf_generate(
    student: Student,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    ends: set[int] = frozenset(),
    stop: str = "",
) -> list[list[int]]:
    """Generate greedily with HF's generate; return each prompt's new ids up to its end token.

    Prompts are sorted by length and padded on the left. ends: end tokens besides the student's
    own. stop: a text that ends a row, too.
    """
    ends, written = {student.eos_id, *ends}, [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        length = max(len(prompts[i]) for i in rows)
        ids = torch.tensor(
            [[student.pad_id] * (length - len(prompts[i])) + prompts[i] for i in rows],
            device=student.model.device,
        )
        mask = torch.tensor(
            [[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in rows],
            device=student.model.device,
        )
        criteria = StoppingCriteriaList([StopAt(student, stop, length)]) if stop else None
        with torch.no_grad():
            out = student.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=sorted(ends),
                pad_token_id=student.pad_id,
                stopping_criteria=criteria,
            )
        for i, new in zip(rows, out[:, length:].tolist(), strict=True):
            cut = next((k for k, token in enumerate(new) if token in ends), len(new))
            written[i] = new[:cut]
    return written


def time_answers(
    student: Student,
    examples: list[Example],
    placement: str,
    max_new_tokens: int,
    timing: Timing,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time the generated answers of a student that writes its label first.

    `evaluate`, which also scores the options and stops at the label, against HF's generate with the
    same maximum. The parsed answers must be the same.
    """
    prompts = [student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples]

    def ours(size):
        predictions = evaluate(
            student, examples, placement, batch_size=size, max_label_tokens=max_new_tokens
        )
        return [p["generated"] for p in predictions]

    def theirs(size):
        written = hf_generate(student, prompts, max_new_tokens, size)
        texts = [student.decode(new) for new in written]
        return [
            parse_answer(split_generation(text, placement)[1], e.choices)
            for text, e in zip(texts, examples, strict=True)
        ]

    settings = f"model.generate, at most {max_new_tokens} tokens, padded"
    return compare_sides(
        f"generated answers, {placement}",
        Side(ours, timing.own_sizes),
        {"HF generate": Side(theirs, timing.sizes, settings, timing.target)},
        lambda a, b: lists_agree(a, b, "parsed answers alike"),
        timing.repeats,
        Limit(lambda size: pass_prompts(student, examples, placement, size)),
    )


def time_rationales(
    student: Student,
    examples: list[Example],
    max_new_tokens: int,
    max_label_tokens: int,
    timing: Timing,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time pre_cot's rationales and answers.

    `evaluate`, which also scores the options, against HF's generate. The text must be the same; a
    rationale that did not end within its limit is compared up to the limit.
    """
    prompts = [student.bos_ids + student.encode(prompt_text(e, "pre_cot")) for e in examples]
    limit = max_new_tokens + max_label_tokens

    def ours(size):
        predictions = evaluate(
            student,
            examples,
            "pre_cot",
            batch_size=size,
            max_new_tokens=max_new_tokens,
            max_label_tokens=max_label_tokens,
        )
        return [(p["rationale"], p["text"], p["cut_off"]) for p in predictions]

    def theirs(size):
        written = hf_generate(student, prompts, limit, size)
        return [(student.decode(new), student.decode(new[:max_new_tokens])) for new in written]

    def floor(size):
        pass_prompts(student, examples, "pre_cot", size)
        read_weights(student, max_new_tokens * -(-len(examples) // size))

    settings = f"model.generate, at most {limit} tokens, static batch"
    return compare_sides(
        f"pre_cot generation, {len(examples)} questions",
        Side(ours, timing.own_sizes),
        {"HF generate": Side(theirs, timing.sizes, settings, timing.target)},
        _rationales_agree,
        timing.repeats,
        Limit(floor),
    )


def _rationales_agree(ours: list[tuple], theirs: list[tuple]) -> tuple[bool, str]:
    """Say whether HF's texts are our rationales and labels; return (agree, the count in words).

    ours: (rationale, label, whether it was cut off). theirs: (whole text, its head up to the
    rationale's limit); our own result there is compared with itself.
    """
    if isinstance(theirs[0][-1], bool):
        return True, "itself"
    alike = []
    for (rationale, label, cut_off), (text, head) in zip(ours, theirs, strict=True):
        thought, answer = split_generation(text, "pre_cot")
        if cut_off or answer is None:  # no label within the limit: compare what came before it
            alike.append(head.strip().startswith(rationale))
        else:
            alike.append((rationale, label) == (thought, answer.strip().split("\n")[0]))
    ended = sum(not cut_off for _, _, cut_off in ours)
    return all(alike), f"{sum(alike)} of {len(ours)} texts alike, {ended} ended by themselves"


def time_elicitation(
    student: Student,
    examples: list[Example],
    demonstrations: list,
    max_new_tokens: int,
    timing: Timing,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time few-shot elicitation, greedy.

    `decode.generate` on a shared prefix, computed within the measured time, against HF's generate
    on whole prompts. The text must be the same.
    """
    chat = student.tokenizer if student.tokenizer.chat_template else None
    ids = [prompt_ids(student, build_prompt(e, demonstrations, "blind", chat)) for e in examples]
    ends, prefix = end_token_ids(student), ids[0][0]

    def ours(size):
        order, texts = sorted(range(len(ids)), key=lambda i: len(ids[i][1])), [""] * len(ids)
        with use_prepacked_linears(student.model):
            shared = prefix_cache(student, prefix)
            for begin in range(0, len(order), size):
                rows = order[begin : begin + size]
                questions = [ids[r][1] for r in rows]
                for i, new, _, _ in generate(
                    student, questions, shared, max_new_tokens=max_new_tokens, end_ids=ends
                ):
                    texts[rows[i]] = student.decode(new).split(STOP)[0]
        return texts

    def theirs(size):
        written = hf_generate(student, [a + b for a, b in ids], max_new_tokens, size, ends, STOP)
        return [student.decode(new).split(STOP)[0] for new in written]

    settings = (
        f"model.generate on whole prompts ({len(prefix)} tokens shared), at most {max_new_tokens} "
        "tokens"
    )
    # The limit passes the prefix once, then the questions, and reads the weights at each step
    tokens = len(prefix) + sum(len(question) for _, question in ids)
    limit = Limit(
        lambda size: read_weights(student, max_new_tokens * -(-len(ids) // size)),
        gflop=2e-9 * weights_of(student.model)[0] * tokens,
    )
    return compare_sides(
        f"elicitation, {len(demonstrations)} demonstrations, {len(ids)} questions",
        Side(ours, timing.own_sizes),
        {"HF generate": Side(theirs, timing.sizes, settings, timing.target)},
        lambda a, b: lists_agree(a, b, "texts alike"),
        timing.repeats,
        limit,
    )
