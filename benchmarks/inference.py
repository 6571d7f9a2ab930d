"""Scoring, answers and elicitation beside lm-evaluation-harness and HF generate."""

import copy

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.compare import compare, equal, nearly_equal
from benchmarks.limits import weights_of
from cotdistill.arms import label_text, parse_answer, prompt_text, split_generation
from cotdistill.decode import generate, prefill, prefix_cache
from cotdistill.elicit import local
from cotdistill.elicit.prompts import STOP, build_prompt, prompt_ids
from cotdistill.evaluate import evaluate
from cotdistill.examples import Example
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


def time_scoring(
    student: Student,
    examples: list[Example],
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    target: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forced choice: `evaluate` without generation against the evaluation harness's HFLM on the
    same tokens.

    The same option must be picked for every question.
    """

    def ours(size):
        return [
            p["scores"]
            for p in evaluate(student, examples, "label_only", generate=False, batch_size=size)
        ]

    def same(a, b):
        picks = equal(
            [int(np.argmax(s)) for s in a], [int(np.argmax(s)) for s in b], "options picked alike"
        )
        logps = nearly_equal(np.concatenate(a), np.concatenate(b), 1e-4, "log probabilities")
        return picks[0] and logps[0], f"{picks[1]}; {logps[1]}"

    peer = {
        "run": lambda size: harness_scores(student, examples, size),
        "sizes": sizes,
        "needs": "lm_eval",
        "target": target,
        "settings": "HFLM.loglikelihood on the same tokens",
    }
    return compare(
        "forced choice",
        {"run": ours, "sizes": own_sizes},
        {"lm-evaluation-harness": peer},
        same,
        repeats,
        floor=lambda size: prompts_only(student, examples, "label_only", size),
    )


def prompts_only(
    student: Student, examples: list[Example], placement: str, batch_size: int
) -> None:
    """One pass over the prompts, in batches of about the same length.

    What scoring and answering can't do without.
    """
    prompts = sorted(
        (student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples), key=len
    )
    with use_prepacked_linears(student.model):
        for begin in range(0, len(prompts), batch_size):
            prefill(student, prompts[begin : begin + batch_size])


def steps_only(student: Student, steps: int) -> None:
    """Reads every weight once per decoding step, as one row's products do.

    What generation can't do without after the prompt.
    """
    layers = [m.weight for m in student.model.modules() if isinstance(m, nn.Linear)]
    rows = {w.shape[1]: torch.randn(1, w.shape[1]) for w in layers}
    with torch.no_grad():
        for _ in range(steps):
            for weight in layers:
                nn.functional.linear(rows[weight.shape[1]], weight)


def harness_scores(student: Student, examples: list[Example], batch_size: int) -> list[list[float]]:
    """log p of each option by lm-evaluation-harness's HFLM, from our token ids, prompt and option
    tokenised as we do.
    """
    from lm_eval.models.huggingface import HFLM

    if not hasattr(student, "_harness"):
        import logging

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        student._harness = HFLM(
            pretrained=student.model,
            tokenizer=copy.deepcopy(student.tokenizer),
            backend="causal",
            dtype="float32",
        )
    lm = student._harness
    lm.batch_size_per_gpu = batch_size
    requests = []
    for e in examples:
        prompt = student.bos_ids + student.encode(prompt_text(e, "label_only"))
        requests += [
            ((e.id, str(o)), prompt, student.encode(label_text(e, o)))
            for o in range(len(e.choices))
        ]
    scores, found, at = lm._loglikelihood_tokens(requests, disable_tqdm=True), [], 0
    for e in examples:
        found.append([s[0] for s in scores[at : at + len(e.choices)]])
        at += len(e.choices)
    return found


class StopAt(StoppingCriteria):
    """Ends a row of HF's generate once a text stands in what it wrote, as our elicitation does."""

    def __init__(self, student: Student, text: str, prompt_length: int):
        self.student, self.text, self.length = student, text, prompt_length

    def __call__(self, input_ids, scores, **kwargs):
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
    """HF's generate, greedy, on prompts sorted by length and padded on the left.

    New ids of each prompt, up to its end token.
    """
    ends, found = {student.eos_id, *ends}, [None] * len(prompts)
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
        for i, new in zip(rows, out[:, length:].tolist()):
            cut = next((k for k, token in enumerate(new) if token in ends), len(new))
            found[i] = new[:cut]
    return found


def time_answers(
    student: Student,
    examples: list[Example],
    placement: str,
    max_new_tokens: int,
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    target: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Generated answers of a label-first student.

    `evaluate` (which scores the options too, and stops at the label) against HF's generate to the same maximum. The answers, as they are parsed, must be the same.
    """
    prompts = [student.bos_ids + student.encode(prompt_text(e, placement)) for e in examples]

    def ours(size):
        return [
            p["generated"]
            for p in evaluate(
                student, examples, placement, batch_size=size, max_label_tokens=max_new_tokens
            )
        ]

    def theirs(size):
        written = [
            student.decode(new) for new in hf_generate(student, prompts, max_new_tokens, size)
        ]
        return [
            parse_answer(split_generation(text, placement)[1], e.choices)
            for text, e in zip(written, examples)
        ]

    peer = {
        "run": theirs,
        "sizes": sizes,
        "target": target,
        "settings": f"model.generate, at most {max_new_tokens} tokens, padded",
    }
    return compare(
        f"generated answers, {placement}",
        {"run": ours, "sizes": own_sizes},
        {"HF generate": peer},
        lambda a, b: equal(a, b, "parsed answers alike"),
        repeats,
        floor=lambda size: prompts_only(student, examples, placement, size),
    )


def time_rationales(
    student: Student,
    examples: list[Example],
    max_new_tokens: int,
    max_label_tokens: int,
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    target: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """pre_cot's rationale and answer.

    `evaluate` (which scores the options too) against HF's generate. The text must be the same; a rationale that did not end within its limit is compared up to the limit.
    """
    prompts = [student.bos_ids + student.encode(prompt_text(e, "pre_cot")) for e in examples]

    def ours(size):
        found = evaluate(
            student,
            examples,
            "pre_cot",
            batch_size=size,
            max_new_tokens=max_new_tokens,
            max_label_tokens=max_label_tokens,
        )
        return [(p["rationale"], p["text"], p["cut_off"]) for p in found]

    def theirs(size):
        written = hf_generate(student, prompts, max_new_tokens + max_label_tokens, size)
        return [(student.decode(new), student.decode(new[:max_new_tokens])) for new in written]

    def same(a, b):
        if isinstance(b[0][-1], bool):
            return True, "itself"
        alike = []
        for (rationale, label, cut), (text, head) in zip(a, b):
            thought, answer = split_generation(text, "pre_cot")
            # Otherwise a limit or an early end came before the label: compare what came before
            whole = not cut and answer is not None
            alike.append(
                (rationale, label) == (thought, answer.strip().split("\n")[0])
                if whole
                else head.strip().startswith(rationale)
            )
        ended = sum(not cut for _, _, cut in a)
        return all(alike), f"{sum(alike)} of {len(a)} texts alike, {ended} ended by themselves"

    peer = {
        "run": theirs,
        "sizes": sizes,
        "target": target,
        "settings": f"model.generate, at most {max_new_tokens + max_label_tokens} tokens, "
        "static batch",
    }

    def floor(size):
        prompts_only(student, examples, "pre_cot", size)
        steps_only(student, max_new_tokens * -(-len(examples) // size))

    return compare(
        f"pre_cot generation, {len(examples)} questions",
        {"run": ours, "sizes": own_sizes},
        {"HF generate": peer},
        same,
        repeats,
        floor,
    )


def time_elicitation(
    student: Student,
    examples: list[Example],
    demonstrations: list,
    max_new_tokens: int,
    sizes: list[int],
    own_sizes: list[int],
    repeats: int,
    target: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Few-shot elicitation, greedy.

    `elicit.generate` on a shared prefix (its computing included) against HF's generate on whole prompts. The text must be the same.
    """
    chat = student.tokenizer if student.tokenizer.chat_template else None
    ids = [prompt_ids(student, build_prompt(e, demonstrations, "blind", chat)) for e in examples]
    ends = local._end_ids(student)

    def ours(size):
        order, texts_ = sorted(range(len(ids)), key=lambda i: len(ids[i][1])), [""] * len(ids)
        with use_prepacked_linears(student.model):
            shared = prefix_cache(student, ids[0][0])
            for begin in range(0, len(order), size):
                rows = order[begin : begin + size]
                for i, new, _, _ in generate(
                    student,
                    [ids[r][1] for r in rows],
                    shared,
                    max_new_tokens=max_new_tokens,
                    end_ids=ends,
                ):
                    texts_[rows[i]] = student.decode(new).split(STOP)[0]
        return texts_

    def theirs(size):
        written = hf_generate(student, [a + b for a, b in ids], max_new_tokens, size, ends, STOP)
        return [student.decode(new).split(STOP)[0] for new in written]

    peer = {
        "run": theirs,
        "sizes": sizes,
        "target": target,
        "settings": f"model.generate on whole prompts ({len(ids[0][0])} tokens shared), at "
        f"most {max_new_tokens} tokens",
    }
    # The prefix once, then the questions
    reading = (
        2e-9 * weights_of(student.model)[0] * (len(ids[0][0]) + sum(len(own) for _, own in ids))
    )
    return compare(
        f"elicitation, {len(demonstrations)} demonstrations, {len(ids)} questions",
        {"run": ours, "sizes": own_sizes},
        {"HF generate": peer},
        lambda a, b: equal(a, b, "texts alike"),
        repeats,
        floor=lambda size: steps_only(student, max_new_tokens * -(-len(ids) // size)),
        gflop=reading,
    )
