"""Measure how a rationale could help: gradients, what is known beforehand, answers forced.

- Do the label's and the rationale's gradients point the same way? Cosine per block, of the mean
  loss of a batch's label tokens and that of its rationale tokens. An update follows their sum, so a
  cosine above 0 means that a step on the rationale lowers the label's loss too.
- What does the student know of a rationale before it writes it? The logit lens (nostalgebraist
  2020): each block's state at the last token of the prompt goes through the final norm and the
  head. Key tokens of the question's own rationale are compared with another question's.
- Does the rationale that it writes follow the answer that it gave? The student writes one behind
  its own answer, and one behind another option that is put in its mouth.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from cotdistill.arms import Arm, arm_from_name, label_text, prompt_text
from cotdistill.attribution.checks import key_tokens
from cotdistill.corrupt import label_words, word_form
from cotdistill.decode import generate, next_token_logits
from cotdistill.encode import LABEL, RATIONALE, Encoded, pack_batch
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.attention import use_attention
from cotdistill.kernels.blocks import blocks_of
from cotdistill.kernels.loss import token_losses
from cotdistill.students import Student

ALL_BLOCKS = -1  # the row of all trained blocks together
FINAL_NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")


def gradient_cosines(
    student: Student, sequences: list[Encoded], batch_size: int
) -> list[dict[str, float]]:
    """Compare the label's and the rationale's gradients, batch by batch and block by block.

    Returns rows of batch, block (ALL_BLOCKS: together), cosine (NaN: a gradient is 0) and the
    norms label_norm and rationale_norm. Blocks whose parameters are frozen are left out. Raises
    DataError for a batch without a label or a rationale token.
    """
    blocks = {
        number: [p for p in block.parameters() if p.requires_grad]
        for number, block in enumerate(blocks_of(student.model))
    }
    blocks = {number: parameters for number, parameters in blocks.items() if parameters}
    flat = [p for parameters in blocks.values() for p in parameters]
    owner = [number for number, parameters in blocks.items() for _ in parameters]
    rows = []
    for at in range(0, len(sequences), batch_size):
        part = sequences[at : at + batch_size]
        with torch.enable_grad(), use_attention(student.model, "packed"):
            label, rationale = _kind_gradients(student, part, flat)
        sums = {number: np.zeros(3) for number in [*blocks, ALL_BLOCKS]}
        for number, a, b in zip(owner, label, rationale, strict=True):
            products = np.array([float((x * y).sum()) for x, y in ((a, b), (a, a), (b, b))])
            sums[number] += products
            sums[ALL_BLOCKS] += products
        for number, (both, own, other) in sums.items():
            norms = {"label_norm": own**0.5, "rationale_norm": other**0.5}
            cosine = both / (own * other) ** 0.5 if own > 0 and other > 0 else float("nan")
            rows.append({"batch": at // batch_size, "block": number, "cosine": cosine, **norms})
    return rows


def _kind_gradients(
    student: Student, part: list[Encoded], parameters: list[torch.Tensor]
) -> tuple[tuple, tuple]:
    """Return the gradients of the label's and of the rationale's mean loss over a batch."""
    batch = pack_batch(part)
    moved = {name: value.to(student.model.device) for name, value in batch.items()}
    moved["cu_seq_lens_q"] = batch["cu_seq_lens_q"]  # stays on the CPU
    losses = token_losses(student.model, moved)
    found = []
    for kind, name in ((LABEL, "label"), (RATIONALE, "rationale")):
        chosen = losses[moved["kinds"] == kind]
        if not len(chosen):
            raise DataError(
                f"question '{part[0].id}' and {len(part) - 1} more: no {name} token; expected "
                "sequences of an arm with a label and a rationale"
            )
        found.append(torch.autograd.grad(chosen.mean(), parameters, retain_graph=kind == LABEL))
    return found[0], found[1]


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """Return the norm between the last block and the head.

    Raises DataError for a model that names it in no known way.
    """
    for name in FINAL_NORMS:
        if hasattr(model.base_model, name):
            return getattr(model.base_model, name)
    raise DataError(
        f"{type(model).__name__}: no final norm found; expected one of {', '.join(FINAL_NORMS)}"
    )


@torch.no_grad()
def lens_logprobs(student: Student, ids: list[int]) -> torch.Tensor:
    """Read log p of every token after `ids` at each block, by the logit lens: [blocks, V], nats.

    The last row is the model's own prediction.
    """
    model, states = student.model, []
    hooks = [
        block.register_forward_hook(
            lambda module, given, out: states.append((out if torch.is_tensor(out) else out[0])[0])
        )
        for block in blocks_of(model)
    ]
    try:
        text = torch.tensor([ids], device=model.device)
        model.base_model(input_ids=text, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    last = torch.stack([state[-1] for state in states])
    return next_token_logits(model, final_norm(model)(last)).log_softmax(-1).cpu()


def new_tokens(student: Student, rationale: Rationale, prompt: list[int]) -> set[int]:
    """Return a rationale's key tokens (all, where none are known) that its prompt does not hold.

    A token of the prompt would be likely there whatever the student knows.
    """
    ids = student.encode(f" {rationale.text}")
    marks = key_tokens(student, rationale) if rationale.key_spans else np.ones(len(ids), bool)
    return {i for i, key in zip(ids, marks, strict=True) if key} - set(prompt)


def lens_rows(
    student: Student,
    questions: list[Example],
    rationales: dict[str, Rationale],
    label_format: str,
) -> list[dict]:
    """Compare log p of a question's own key tokens and of another's, before anything is written.

    Returns rows of id, block, own and other (mean log p in nats). The other question is the one
    half a list away. A question without a token of its own is left out, as the rows show.
    """
    prompts = [
        student.bos_ids + student.encode(prompt_text(e, "label_only", label_format))
        for e in questions
    ]
    tokens = [
        new_tokens(student, rationales[e.id], prompt)
        for e, prompt in zip(questions, prompts, strict=True)
    ]
    rows = []
    for number, example in enumerate(questions):
        prompt, partner = prompts[number], (number + len(questions) // 2) % len(questions)
        own, other = tokens[number], tokens[partner] - set(prompt)
        own, other = sorted(own - other), sorted(other - own)
        if not own or not other:
            continue
        known = lens_logprobs(student, prompt)
        pairs = zip(known[:, own].mean(1).tolist(), known[:, other].mean(1).tolist(), strict=True)
        rows += [
            {"id": example.id, "block": block, "own": a, "other": b}
            for block, (a, b) in enumerate(pairs)
        ]
    return rows


def names_option(text: str, option: str) -> bool:
    """Say whether a text holds all words of an option (function words aside)."""
    return label_words(option) <= {word_form(word) for word in text.split()}


def write_behind(
    student: Student,
    questions: list[Example],
    options: list[int],
    limit: int,
    label_format: str,
    batch_size: int = 32,
) -> list[str]:
    """Let a post_cot student write the rationale behind a given answer to each question.

    options: the answers; limit: in tokens. Greedy.
    """
    texts = [""] * len(questions)
    prompts = [
        student.bos_ids
        + student.encode(prompt_text(e, "post_cot", label_format))
        + student.encode(label_text(e, option, label_format))
        + student.encode("Reason:")
        for e, option in zip(questions, options, strict=True)
    ]
    for at in range(0, len(prompts), batch_size):
        batch = prompts[at : at + batch_size]
        for row, ids, _, _ in generate(student, batch, max_new_tokens=limit, stop=""):
            texts[at + row] = student.decode(ids).strip()
    return texts


def forced_rows(
    student: Student,
    questions: list[Example],
    choices: list[int],
    limit: int,
    label_format: str,
) -> list[dict]:
    """Compare the rationale behind a student's own answer with that behind another option.

    choices: its own answers. The other option is the next one. Returns a row per question, 0 or 1
    each: agrees (the rationale behind its answer names it), strays (it names the other option),
    follows (behind the other option it names that), sticks (there it names its own answer still)
    and changed (the two texts differ).
    """
    others = [(c + 1) % len(e.choices) for e, c in zip(questions, choices, strict=True)]
    own = write_behind(student, questions, choices, limit, label_format)
    forced = write_behind(student, questions, others, limit, label_format)
    rows = []
    for e, c, o, text, other in zip(questions, choices, others, own, forced, strict=True):
        rows.append(
            {
                "id": e.id,
                "agrees": int(names_option(text, e.choices[c])),
                "strays": int(names_option(text, e.choices[o])),
                "follows": int(names_option(other, e.choices[o])),
                "sticks": int(names_option(other, e.choices[c])),
                "changed": int(text != other),
            }
        )
    return rows


@dataclass(frozen=True)
class Counts:
    """Hold how many label tokens and other supervised tokens an arm's sequences have."""

    label: int
    other: int


def count_kinds(sequences: list[Encoded]) -> Counts:
    """Count supervised tokens by kind."""
    kinds = [kind for e in sequences for kind in e.kinds if kind]
    return Counts(kinds.count(LABEL), len(kinds) - kinds.count(LABEL))


def weight_for_share(share: float, counts: Counts, train: TrainConfig) -> float:
    """Return the label weight with which the label is this share of a loss (`encode.label_share`).

    Rounded to three digits, for the arm's name. Raises DataError for a share that is not between 0
    and 1.
    """
    if not 0 < share < 1:
        raise DataError(
            f"label_shares holds {share:g}; expected shares between 0 and 1 (label_only is 1)"
        )
    if train.loss == "balanced":
        rest = train.loss_lambda * train.rationale_weight
    else:
        rest = train.rationale_weight * counts.other / max(counts.label, 1)
    return float(f"{share / (1 - share) * rest:.3g}")


def dial_arms(shares: list[float], counts: Counts, train: TrainConfig) -> list[Arm]:
    """List post_cot with the label weights that give the label these shares of the loss."""
    weights = [weight_for_share(share, counts, train) for share in sorted(shares)]
    return [Arm("post_cot", label_weight=weight) for weight in dict.fromkeys(weights)]


def share_of_weight(weight: float, counts: Counts, train: TrainConfig) -> float:
    """Return the label's share (0..1) of post_cot's loss under a label weight."""
    rest = weight_for_share(0.5, counts, train)  # where the label weighs as much as all others
    return weight / (weight + rest)


def compared_arms(controls: list[str], dial: list[Arm]) -> list[Arm]:
    """List notebook 09's arms: label_only, post_cot, its controls, and the dial."""
    arms = [Arm("label_only"), Arm("post_cot"), *(arm_from_name(f"post_cot_{c}") for c in controls)]
    return list(dict.fromkeys([*arms, *dial]))


def dial_shares(dial: list[Arm], counts: Counts, train: TrainConfig) -> dict[str, float]:
    """Map the dial's arms, post_cot and label_only to the label's share, from low to high."""
    arms = dict.fromkeys([*dial, Arm("post_cot")])
    shares = {arm.label: share_of_weight(arm.label_weight, counts, train) for arm in arms}
    return dict(sorted(shares.items(), key=lambda item: item[1])) | {"label_only": 1.0}


def learning_table(answers: pd.DataFrame, tokens: dict[str, float]) -> pd.DataFrame:
    """Average p(gold) after each epoch, by arm, beside the updates and tokens that it took.

    answers: rows of arm, seed, epoch, step, p_gold; tokens: arm -> tokens of one pass. Columns:
    arm, epoch, updates, tokens, p_gold.
    """
    by = answers.groupby(["arm", "epoch", "step"], sort=False)["p_gold"].mean().reset_index()
    passed = [tokens[arm] * epoch for arm, epoch in zip(by["arm"], by["epoch"], strict=True)]
    return by.rename(columns={"step": "updates"}).assign(tokens=passed)


def at_equal_cost(curves: pd.DataFrame, cost: str) -> pd.Series:
    """Return each arm's p(gold) at the largest cost that all reached, interpolated linearly.

    cost: "updates" or "tokens".
    """
    limit = curves.groupby("arm")[cost].max().min()
    found = {
        arm: float(np.interp(limit, rows.sort_values(cost)[cost], rows.sort_values(cost)["p_gold"]))
        for arm, rows in curves.groupby("arm", sort=False)
    }
    return pd.Series(found, name=f"p(gold) after {limit:,.0f} {cost}")
