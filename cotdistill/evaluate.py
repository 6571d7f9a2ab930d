"""Read what a student answers: generated and forced choice, question by question.

Both come from the same pass. The prompt runs once; its keys and values then serve the scores of
all options and the greedy answer. label_only and post_cot stop once the label is out (that is
claim 1's point: no reasoning at test time); pre_cot first writes its own rationale, and its
options are scored after that rationale. Scoring the options has already asked the student for its
most probable token after each of their tokens, so a greedy answer that is one of the options
needs no further step: only an answer that leaves them is decoded token by token.

Runs whose lower blocks are frozen share what these make of prompts and options (`trunk`): they
are passed once per study.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from cotdistill.arms import label_text, parse_answer, prompt_text
from cotdistill.decode import (
    Decoding,
    append_tokens,
    decode_greedily,
    line_ids,
    next_token_logits,
    prefill,
    prompts_key,
    run_blocks,
    select_rows,
)
from cotdistill.examples import Example, first_equal
from cotdistill.kernels.blocks import has_trunk
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


def _options_key(prompts: list[list[int]], options: list[list[list[int]]]) -> tuple:
    """Return the key of prompts and their options in a store of frozen blocks' outputs."""
    return "options", tuple(map(tuple, prompts)), tuple(tuple(map(tuple, row)) for row in options)


@dataclass(frozen=True)
class Limits:
    """Hold what bounds an evaluation: tokens written, and questions in a batch.

    max_new_tokens: of a student's own rationale; max_label_tokens: of an answer. batch_size changes
    speed and memory only.
    """

    max_new_tokens: int = 96
    max_label_tokens: int = 24
    batch_size: int = 32


def _lay_out_options(
    student: Student, state: Decoding, options: list[list[list[int]]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay the options of each question end to end, without their last tokens, in rows of W.

    Returns the ids, the token that follows each (its probability is asked), positions and what is
    real, all [B, W]; and [B, W, W]: what each may look at among these.
    """
    width = max(sum(len(option) - 1 for option in row) for row in options)
    shape = (len(options), width)
    ids = torch.full(shape, student.pad_id)
    following, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
    real = torch.zeros(shape, dtype=torch.bool)
    own = torch.eye(width, dtype=torch.bool).repeat(len(options), 1, 1)
    for row, choices in enumerate(options):
        at = 0
        for option in choices:
            n = len(option) - 1
            ids[row, at : at + n] = torch.tensor(option[:-1])
            following[row, at : at + n] = torch.tensor(option[1:])
            positions[row, at : at + n] = state.lengths[row] + torch.arange(n)
            real[row, at : at + n] = True
            own[row, at : at + n, at : at + n] = torch.ones(n, n, dtype=torch.bool).tril()
            at += n
    return ids, following, positions, real, own


def _score_following(
    student: Student,
    state: Decoding,
    options: list[list[list[int]]],
    trunk: tuple[int, dict] | None,
    key: tuple,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log p of each option's tokens but the first, and the most probable tokens.

    Both [B, W], with the options of a question end to end (`_lay_out_options`).
    """
    device, prefix = student.model.device, state.real.shape[1]
    ids, following, positions, real, own = _lay_out_options(student, state, options)
    width = ids.shape[1]
    logps, best = torch.zeros(ids.shape), torch.zeros(ids.shape, dtype=torch.long)
    if not width:
        return logps, best
    mask = torch.cat([state.real[:, None].expand(-1, width, -1), own], 2)[:, None]
    least = torch.finfo(student.model.dtype).min
    bias = torch.zeros(mask.shape, dtype=student.model.dtype).masked_fill(~mask, least)
    hidden = run_blocks(
        student,
        trunk,
        key,
        input_ids=ids.to(device),
        attention_mask=bias.to(device),
        position_ids=positions.to(device),
        past_key_values=state.cache,
        use_cache=True,
    )
    for layer in state.cache.layers:
        if layer.is_initialized:
            layer.crop(-width)
    assert state.cache.layers[-1].get_seq_length() == prefix
    # The head runs where something is asked, a few hundred places at a time: all logits at once
    # would be gigabytes
    asked, wanted = hidden[real.to(device)].split(256), following[real].to(device).split(256)
    found = [
        _read_logits(next_token_logits(student.model, part), tokens)
        for part, tokens in zip(asked, wanted, strict=True)
    ]
    logps[real], best[real] = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return logps, best


@torch.no_grad()
def score_options(
    student: Student,
    state: Decoding,
    options: list[list[list[int]]],
    trunk: tuple[int, dict] | None = None,
    prompts: list[list[int]] = (),
) -> tuple[list[list[float]], list[list[int] | None]]:
    """Score each question's options, and read its greedy answer where that is one of them.

    A score is log p(option | sequence so far) in nats, the sum over the option's tokens. The greedy
    answer is an option's ids, [] where it ends at once, or None: it is neither, decode it.

    All options of a question run in one row after its cached prefix, without their last tokens
    (nothing is asked of these); a mask lets each see the prefix and itself only. The cache is left
    as it was. trunk: as in `prefill`; prompts: what that was given.
    """
    logps, best = _score_following(student, state, options, trunk, _options_key(prompts, options))
    first, top = state.logits.log_softmax(1), state.logits.argmax(1)
    scores, labels = [], []
    for row, choices in enumerate(options):
        at, mine, label = 0, [], [] if top[row] == student.eos_id else None
        for option in choices:
            n = len(option) - 1
            mine.append((first[row, option[0]] + logps[row, at : at + n].sum()).item())
            if [top[row], *best[row, at : at + n]] == option:
                label = option
            at += n
        scores.append(mine)
        labels.append(label)
    return scores, labels


def _read_logits(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Read logits [n, V] at tokens [n]: their log p and the most probable tokens, [n] each."""
    return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1), logits.argmax(1)


def _write_rationales(
    student: Student, state: Decoding, limit: int, stop: list[int]
) -> tuple[list[list[int]], list[bool], Decoding]:
    """Let each sequence write its rationale up to `stop` or the limit.

    Returns the rationales, whether the limit ended them, and the state after the stop, which is
    appended where a rationale never came to it: it is asked for its answer all the same.
    """
    thoughts, state = decode_greedily(student, state, limit, stop)
    missing = [ids[-len(stop) :] != stop for ids in thoughts]
    cut = [missed and len(ids) >= limit for missed, ids in zip(missing, thoughts, strict=True)]
    if any(missing):
        add = torch.tensor([stop] * len(thoughts))
        real = torch.tensor(missing)[:, None].expand_as(add).contiguous()
        append_tokens(student, state, add, real)
    return thoughts, cut, state


@dataclass
class _Answers:
    """Hold a batch's answers: rationales, whether cut off, option scores and written labels.

    direct: option scores after an empty rationale, where the student is one that writes its own.
    """

    thoughts: list[list[int]]
    cut: list[bool]
    scores: list[list[float]]
    labels: list[list[int]]
    direct: list[list[float]] | None = None


def _answer_batch(
    student: Student,
    prompts: list[list[int]],
    options: list[list[list[int]]],
    limits: Limits,
    *,
    stop: list[int] | None,
    generate: bool,
    trunk: tuple[int, dict] | None,
) -> _Answers:
    """Score the options of a batch's prompts and write their answers.

    stop: the ids that end a rationale which is written first; None: none is. generate: as in
    `evaluate`; without it labels are empty.
    """
    keys = (prompts_key(prompts), _options_key(prompts, options))
    known = {(trunk[0], *key) in trunk[1] for key in keys} if trunk else set()
    # The store may have had room for the prompts only: their caches lack the frozen blocks
    above = trunk if len(known) == 1 else None
    state = prefill(student, prompts, above)
    thoughts, cut = [[]] * len(prompts), [False] * len(prompts)
    if stop:
        thoughts, cut, state = _write_rationales(student, state, limits.max_new_tokens, stop)
    scores, labels = score_options(student, state, options, above, prompts)
    if not generate:
        return _Answers(thoughts, cut, scores, [[] for _ in prompts])
    limit = limits.max_label_tokens
    left = [i for i, label in enumerate(labels) if label is None or len(label) > limit]
    if left:
        again = [prompts[i] for i in left]
        open_ended = prefill(student, again) if above else select_rows(state, left)
        written, _ = decode_greedily(student, open_ended, limit, line_ids(student))
        for i, label in zip(left, written, strict=True):
            labels[i] = label
    direct = None
    if stop:
        empty = prefill(student, [prompt + stop for prompt in prompts])
        direct, _ = score_options(student, empty, options)
    return _Answers(thoughts, cut, scores, labels, direct)


def _describe_answer(
    student: Student,
    example: Example,
    batch: _Answers,
    at: int,
    limits: Limits,
    label_format: str,
    stop: list[int],
) -> dict:
    """Return the prediction of one question of a batch, as `evaluate` describes it.

    stop: the ids that end a rationale; they are no part of its text.
    """
    thought, cut, scores, label = (
        part[at] for part in (batch.thoughts, batch.cut, batch.scores, batch.labels)
    )
    text = student.decode(label)
    unended = len(label) >= limits.max_label_tokens and label[-1] not in line_ids(student)
    own = thought[: -len(stop)] if thought[-len(stop) :] == stop else thought
    found = {
        "id": example.id,
        "gold": example.answer,
        "rationale": student.decode(own).strip(),
        "text": text.strip(),
        "generated": None if unended else parse_answer(text, example.choices, label_format),
        "scores": [round(s, 6) for s in scores],
        "choice": _choose_option(example, scores),
        "tokens": len(thought) + len(label),
        "cut_off": bool(cut or unended),
        "rationale_cut_off": cut,
    }
    if batch.direct:
        found["scores_direct"] = [round(s, 6) for s in batch.direct[at]]
    return found


def evaluate(
    student: Student,
    examples: list[Example],
    placement: str,
    label_format: str = "text",
    *,
    generate: bool = True,
    trunk: tuple[int, dict] | None = None,
    shots: str = "",
    progress=lambda done: None,
    **limits,
) -> list[dict]:
    """Return one prediction per question, in the order given.

    id, gold; rationale (pre_cot: what it wrote first), text (the generated label) and generated
    (the option it names, None: not one); scores (log p of each option with its line break, in nats)
    and choice (the best); tokens (generated until the label was out) and cut_off (a limit ended
    it); rationale_cut_off (a limit ended the rationale before it); pre_cot also scores_direct, the
    options' scores after an empty rationale. With generate=False label-first students are scored
    only. limits: the fields of `Limits`.
    Of a free answer, scores holds log p of the right answer alone, generated is 0 where it was
    written and -1 where another was, and choice is None: there is nothing to choose from.

    shots: solved questions that stand above each (`arms.write_shots`), for a prompted student.

    trunk: (blocks that training left as they were, a store shared by the runs of one base student),
    see `run_blocks`.
    """
    limits, stop = Limits(**limits), student.encode("\nAnswer:")
    above = student.bos_ids + (student.encode(shots) if shots else [])
    prompts = [above + student.encode(prompt_text(e, placement, label_format)) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    found = [None] * len(examples)
    if trunk and (placement == "pre_cot" or not has_trunk(student.model, trunk[0])):
        trunk = None

    with use_prepacked_linears(student.model):
        for begin in range(0, len(order), limits.batch_size):
            rows = order[begin : begin + limits.batch_size]
            options = [_option_ids(student, examples[i], label_format) for i in rows]
            first = stop if placement == "pre_cot" else None
            how = dict(stop=first, generate=generate, trunk=trunk)
            batch = _answer_batch(student, [prompts[i] for i in rows], options, limits, **how)
            for at, i in enumerate(rows):
                about = (batch, at, limits, label_format, stop)
                found[i] = _describe_answer(student, examples[i], *about)
            progress(min(begin + limits.batch_size, len(order)))
    return found


def _choose_option(example: Example, scores: list[float]) -> int | None:
    """Return the option with the best score; None for a free answer, which has no options."""
    return None if example.is_free else first_equal(example.choices, int(np.argmax(scores)))


def _option_ids(student: Student, example: Example, label_format: str) -> list[list[int]]:
    """Return the token ids of each option, as the student has to write it."""
    return [
        student.encode(label_text(example, option, label_format))
        for option in range(len(example.choices))
    ]


def accuracy(predictions: list[dict], measure: str = "choice") -> float:
    """Return the share of questions whose answer is the gold one.

    measure: "choice" (forced; for free answers, which have none, the written one) or "generated". A
    parse failure counts as wrong.
    """
    if any(p["choice"] is None for p in predictions):
        measure = "generated"
    return (
        float(np.mean([p[measure] == p["gold"] for p in predictions]))
        if predictions
        else float("nan")
    )


def validation_scores(predictions: list[dict]) -> dict[str, float]:
    """Return forced-choice accuracy and the mean of -log p(gold label) in nats.

    Epochs are compared by them.
    """
    return {
        "accuracy": accuracy(predictions),
        "label_nll": float(-np.mean([p["scores"][p["gold"]] for p in predictions])),
    }


def most_mentioned(examples: list[Example], texts: list[str]) -> np.ndarray:
    """Score the rule "take the option that the training rationales mention most often".

    Per question 1 where that option is the gold one, a share of 1 where it is among several with as
    many mentions, else 0. A control: what word frequency alone would give.
    """
    said = "\n".join(texts).lower()
    times = {
        choice: len(re.findall(rf"\b{re.escape(choice.lower())}\b", said))
        for choice in {c for e in examples for c in e.choices}
    }
    found = []
    for e in examples:
        best = {
            first_equal(e.choices, option)
            for option, choice in enumerate(e.choices)
            if times[choice] == max(times[c] for c in e.choices)
        }
        found.append((e.answer in best) / len(best))
    return np.array(found)
