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

import numpy as np
import torch

from cotdistill.arms import label_text, parse_answer, prompt_text
from cotdistill.decode import (
    Decoding,
    _hidden,
    _prompts_key,
    append_tokens,
    decode_greedily,
    line_ids,
    next_token_logits,
    prefill,
    select_rows,
)
from cotdistill.examples import Example, first_equal
from cotdistill.kernels.blocks import has_trunk
from cotdistill.kernels.linear import use_prepacked_linears
from cotdistill.students import Student


def _options_key(prompts: list[list[int]], options: list[list[list[int]]]) -> tuple:
    """Return the key of prompts and their options in a store of frozen blocks' outputs."""
    return "options", tuple(map(tuple, prompts)), tuple(tuple(map(tuple, row)) for row in options)


@torch.no_grad()
def score_options(
    student: Student,
    state: Decoding,
    options: list[list[list[int]]],
    trunk: tuple[int, dict] | None = None,
    prompts: list[list[int]] = (),
) -> tuple[list[list[float]], list[list[int] | None]]:
    """Log p(option | sequence so far) in nats, the sum over its tokens, for each question's
    options; and the greedy continuation where it is one of them or ends at once (None: it is
    neither, decode it).

    All options of a question run in one row after its cached prefix, without their last tokens
    (nothing is asked of these); a mask lets each see the prefix and itself only. The cache is left
    as it was. trunk: as in `prefill`; prompts: what that was given.
    """
    device, prefix = student.model.device, state.real.shape[1]
    width = max(sum(len(option) - 1 for option in row) for row in options)
    ids = torch.full((len(options), width), student.pad_id)
    positions, real = (
        torch.zeros(len(options), width, dtype=torch.long),
        torch.zeros(len(options), width, dtype=torch.bool),
    )
    # The token whose probability is asked at each place
    following = torch.zeros(len(options), width, dtype=torch.long)
    own = torch.eye(width, dtype=torch.bool).repeat(len(options), 1, 1)
    for row, choices in enumerate(options):
        at = 0
        for option in choices:
            n = len(option) - 1
            ids[row, at : at + n], following[row, at : at + n] = (
                torch.tensor(option[:-1]),
                torch.tensor(option[1:]),
            )
            positions[row, at : at + n] = state.lengths[row] + torch.arange(n)
            real[row, at : at + n] = True
            own[row, at : at + n, at : at + n] = torch.ones(n, n, dtype=torch.bool).tril()
            at += n
    logps, best = (
        torch.zeros(len(options), width),
        torch.zeros(len(options), width, dtype=torch.long),
    )
    if width:
        mask = torch.cat([state.real[:, None].expand(-1, width, -1), own], 2)[:, None]
        bias = torch.zeros(mask.shape, dtype=student.model.dtype).masked_fill(
            ~mask, torch.finfo(student.model.dtype).min
        )
        hidden = _hidden(
            student,
            trunk,
            _options_key(prompts, options),
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
        found = [
            _read(next_token_logits(student.model, part), wanted)
            for part, wanted in zip(
                hidden[real.to(device)].split(256),
                following[real].to(device).split(256),
                strict=False,
            )
        ]
        logps[real], best[real] = (torch.cat(parts).cpu() for parts in zip(*found, strict=False))
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


def _read(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Read logits [n, V] at tokens [n]: their log p and the most probable tokens, [n] each."""
    return logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1), logits.argmax(1)


def evaluate(
    student: Student,
    examples: list[Example],
    placement: str,
    label_format: str = "text",
    *,
    max_new_tokens: int = 96,
    max_label_tokens: int = 24,
    batch_size: int = 32,
    generate: bool = True,
    trunk: tuple[int, dict] | None = None,
    progress=lambda done: None,
) -> list[dict]:
    """One prediction per question, in the order given.

    id, gold; rationale (pre_cot: what it wrote first), text (the generated label) and generated
    (the option it names, None: not one); scores (log p of each option with its line break, in nats)
    and choice (the best); tokens (generated until the label was out) and cut_off (a limit ended
    it). With generate=False label-first students are scored only.

    trunk: (blocks that training left as they were, a store shared by the runs of one base student),
    see `_hidden`.
    """
    rationale_stop, line = student.encode("\nAnswer:"), line_ids(student)
    prompts = [
        student.bos_ids + student.encode(prompt_text(e, placement, label_format)) for e in examples
    ]
    order, found = (
        sorted(range(len(examples)), key=lambda i: len(prompts[i])),
        [None] * len(examples),
    )
    trunk = (
        trunk if trunk and placement != "pre_cot" and has_trunk(student.model, trunk[0]) else None
    )
    with use_prepacked_linears(student.model):
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            asked = [prompts[i] for i in rows]
            options = [
                [
                    student.encode(label_text(examples[i], o, label_format))
                    for o in range(len(examples[i].choices))
                ]
                for i in rows
            ]
            known = (
                {
                    (trunk[0], *key) in trunk[1]
                    for key in (_prompts_key(asked), _options_key(asked, options))
                }
                if trunk
                else set()
            )
            # The store may have had room for the prompts only: their caches lack the frozen blocks
            above = trunk if len(known) == 1 else None
            state = prefill(student, asked, above)
            thoughts, cut = [[]] * len(rows), [False] * len(rows)
            if placement == "pre_cot":
                thoughts, state = decode_greedily(student, state, max_new_tokens, rationale_stop)
                missing = [ids[-len(rationale_stop) :] != rationale_stop for ids in thoughts]
                cut = [
                    missed and len(ids) >= max_new_tokens
                    for missed, ids in zip(missing, thoughts, strict=False)
                ]
                # A rationale that never ended is asked for its answer all the same
                add = torch.tensor([rationale_stop] * len(rows))
                if any(missing):
                    append_tokens(
                        student,
                        state,
                        add,
                        torch.tensor(missing)[:, None].expand_as(add).contiguous(),
                    )
            scores, labels = score_options(student, state, options, above, asked)
            left = [
                row
                for row, label in enumerate(labels)
                if label is None or len(label) > max_label_tokens
            ]
            if generate and left:
                open_ended = (
                    prefill(student, [asked[row] for row in left])
                    if above
                    else select_rows(state, left)
                )
                for row, label in zip(
                    left,
                    decode_greedily(student, open_ended, max_label_tokens, line)[0],
                    strict=False,
                ):
                    labels[row] = label
            for row, i in enumerate(rows):
                example, label = examples[i], labels[row] if generate else []
                text = student.decode(label)
                thought = (
                    thoughts[row][: -len(rationale_stop)]
                    if thoughts[row][-len(rationale_stop) :] == rationale_stop
                    else thoughts[row]
                )
                unended = len(label) >= max_label_tokens and label[-1] not in line
                found[i] = {
                    "id": example.id,
                    "gold": example.answer,
                    "rationale": student.decode(thought).strip(),
                    "text": text.strip(),
                    "generated": parse_answer(text, example.choices, label_format)
                    if not unended
                    else None,
                    "scores": [round(s, 6) for s in scores[row]],
                    "choice": first_equal(example.choices, int(np.argmax(scores[row]))),
                    "tokens": len(thoughts[row]) + len(label),
                    "cut_off": bool(cut[row] or unended),
                }
            progress(min(begin + batch_size, len(order)))
    return found


def accuracy(predictions: list[dict], measure: str = "choice") -> float:
    """Return the share of questions whose answer is the gold one.

    measure: "choice" (forced) or "generated". A parse failure counts as wrong.
    """
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
