"""What a student answers: generated and forced-choice accuracy, question by question.

Both are read from the same pass. The prompt runs once; its keys and values then serve the greedy decoding of the answer
and the scores of all options. label_only and post_cot stop once the label is out (that is claim 1's point: no reasoning at
test time); pre_cot first writes its own rationale, and its options are scored after that rationale.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cotdistill.data import Example
from cotdistill.format import label_text, parse_answer, prompt_text
from cotdistill.students import Student


@dataclass
class Decoding:
    """A batch of B sequences in mid-air: the cache of keys and values, which of its L slots are real, where each sequence
    is (its number of real tokens), and the logits of its next token.

    Sequences end at different times; what a finished one was fed afterwards stays in the cache, marked unreal, so the
    rest can go on and later pieces can still be appended to every sequence."""

    cache: object
    real: torch.Tensor       # [B, L] bool
    lengths: torch.Tensor    # [B]
    logits: torch.Tensor     # [B, V]


@torch.no_grad()
def start(student: Student, sequences: list[list[int]]) -> Decoding:
    """Run the prompts, padded on the left to one length."""
    device, longest = student.model.device, max(map(len, sequences))
    ids = torch.full((len(sequences), longest), student.pad_id)
    real = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence):] = torch.tensor(sequence)
        real[row, longest - len(sequence):] = True
    positions = (real.cumsum(1) - 1).clamp(min=0)
    out = student.model(input_ids=ids.to(device), attention_mask=real.to(device), position_ids=positions.to(device),
                        use_cache=True, logits_to_keep=1)
    return Decoding(out.past_key_values, real, real.sum(1), out.logits[:, -1].float().cpu())


@torch.no_grad()
def feed(student: Student, state: Decoding, tokens: torch.Tensor, real: torch.Tensor) -> None:
    """Append tokens [B, k] (left-aligned; `real` [B, k] says which count) to every sequence, in place."""
    device = student.model.device
    positions = state.lengths[:, None] + (real.cumsum(1) - 1).clamp(min=0)
    state.real = torch.cat([state.real, real], 1)
    out = student.model(input_ids=tokens.to(device), attention_mask=state.real.to(device), position_ids=positions.to(device),
                        past_key_values=state.cache, use_cache=True)
    last = real.sum(1) - 1
    new = out.logits[torch.arange(len(tokens)), last.clamp(min=0)].float().cpu()
    state.logits = torch.where((last >= 0)[:, None], new, state.logits)
    state.lengths = state.lengths + real.sum(1)


def line_ids(student: Student) -> set[int]:
    """Every token that breaks the line: tokenizers also have ones for two breaks, or for a break after a full stop."""
    if not hasattr(student.tokenizer, "_line_ids"):
        vocabulary = student.tokenizer.get_vocab()
        student.tokenizer._line_ids = {i for token, i in vocabulary.items() if any(m in token for m in ("\n", "Ċ", "<0x0A>"))}
    return student.tokenizer._line_ids


def greedy(student: Student, state: Decoding, limit: int, stop: list[int] | set[int]) -> list[list[int]]:
    """Decode until the ids end with the sequence `stop` or a member of the set `stop` (included), the end of the sequence
    (left out), or `limit` tokens."""
    written, going = [[] for _ in state.lengths], torch.ones(len(state.lengths), dtype=torch.bool)
    for _ in range(limit):
        token = state.logits.argmax(1)
        going &= token != student.eos_id
        if not going.any():
            break
        feed(student, state, token[:, None], going[:, None].clone())
        for row in going.nonzero().flatten().tolist():
            written[row].append(int(token[row]))
            if written[row][-1] in stop if isinstance(stop, set) else written[row][-len(stop):] == stop:
                going[row] = False
    return written


@torch.no_grad()
def score_options(student: Student, state: Decoding, options: list[list[list[int]]]) -> list[list[float]]:
    """log p(option | sequence so far) in nats, the sum over its tokens, for each question's options.

    All options of a question run in one row after its cached prefix; a mask lets each see the prefix and itself only. The
    cache is left as it was."""
    device, prefix = student.model.device, state.real.shape[1]
    width = max(sum(map(len, row)) for row in options)
    ids = torch.full((len(options), width), student.pad_id)
    positions = torch.zeros(len(options), width, dtype=torch.long)
    own = torch.eye(width, dtype=torch.bool).repeat(len(options), 1, 1)
    for row, choices in enumerate(options):
        at = 0
        for option in choices:
            n = len(option)
            ids[row, at:at + n] = torch.tensor(option)
            positions[row, at:at + n] = state.lengths[row] + torch.arange(n)
            own[row, at:at + n, at:at + n] = torch.ones(n, n, dtype=torch.bool).tril()
            at += n
    mask = torch.cat([state.real[:, None].expand(-1, width, -1), own], 2)[:, None]
    bias = torch.zeros(mask.shape, dtype=student.model.dtype).masked_fill(~mask, torch.finfo(student.model.dtype).min)
    logits = student.model(input_ids=ids.to(device), attention_mask=bias.to(device), position_ids=positions.to(device),
                           past_key_values=state.cache, use_cache=True).logits.float().cpu()
    state.cache.crop(-width)
    assert state.cache.get_seq_length() == prefix
    first, later, scores = state.logits.log_softmax(1), logits.log_softmax(2), []
    for row, choices in enumerate(options):
        at, mine = 0, []
        for option in choices:
            total = first[row, option[0]]
            if len(option) > 1:
                steps = torch.arange(at, at + len(option) - 1)
                total = total + later[row, steps, torch.tensor(option[1:])].sum()
            mine.append(total.item())
            at += len(option)
        scores.append(mine)
    return scores


def evaluate(student: Student, examples: list[Example], placement: str, label_format: str = "text", *,
             max_new_tokens: int = 96, max_label_tokens: int = 24, batch_size: int = 32, generate: bool = True,
             progress=lambda done: None) -> list[dict]:
    """One prediction per question, in the order given.

    id, gold; rationale (pre_cot: what it wrote first), text (the generated label) and generated (the option it names, None: not
    one); scores (log p of each option with its line break, in nats) and choice (the best); tokens (generated until the
    label was out) and cut_off (a limit ended it). With generate=False label-first students are scored only."""
    rationale_stop, line = student.encode("\nAnswer:"), line_ids(student)
    prompts = [student.bos_ids + student.encode(prompt_text(e, placement, label_format)) for e in examples]
    order, found = sorted(range(len(examples)), key=lambda i: len(prompts[i])), [None] * len(examples)
    for begin in range(0, len(order), batch_size):
        rows = order[begin:begin + batch_size]
        state = start(student, [prompts[i] for i in rows])
        thoughts, cut = [[]] * len(rows), [False] * len(rows)
        if placement == "pre_cot":
            thoughts = greedy(student, state, max_new_tokens, rationale_stop)
            missing = [not ids[-len(rationale_stop):] == rationale_stop for ids in thoughts]
            cut = [missed and len(ids) >= max_new_tokens for missed, ids in zip(missing, thoughts)]
            add = torch.tensor([rationale_stop] * len(rows))  # a rationale that never ended is asked for its answer all the same
            if any(missing):
                feed(student, state, add, torch.tensor(missing)[:, None].expand_as(add).contiguous())
        options = [[student.encode(label_text(examples[i], o, label_format)) for o in range(len(examples[i].choices))]
                   for i in rows]
        scores = score_options(student, state, options)
        labels = greedy(student, state, max_label_tokens, line) if generate else [[]] * len(rows)
        for row, i in enumerate(rows):
            example, text = examples[i], student.decode(labels[row])
            thought = thoughts[row][:-len(rationale_stop)] if thoughts[row][-len(rationale_stop):] == rationale_stop else thoughts[row]
            unended = len(labels[row]) >= max_label_tokens and labels[row][-1] not in line
            found[i] = {"id": example.id, "gold": example.answer, "rationale": student.decode(thought).strip(), "text": text.strip(),
                        "generated": parse_answer(text, example.choices, label_format) if not unended else None,
                        "scores": [round(s, 6) for s in scores[row]], "choice": int(np.argmax(scores[row])),
                        "tokens": len(thoughts[row]) + len(labels[row]), "cut_off": bool(cut[row] or unended)}
        progress(min(begin + batch_size, len(order)))
    return found


def accuracy(predictions: list[dict], measure: str = "choice") -> float:
    """Share of questions whose "choice" (forced) or "generated" answer is the gold one; a parse failure counts as wrong."""
    return float(np.mean([p[measure] == p["gold"] for p in predictions])) if predictions else float("nan")


def validation_scores(predictions: list[dict]) -> dict[str, float]:
    """Forced-choice accuracy and the mean of -log p(gold label) in nats: what epochs are compared by."""
    return {"accuracy": accuracy(predictions), "label_nll": float(-np.mean([p["scores"][p["gold"]] for p in predictions]))}
