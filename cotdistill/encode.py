"""Turn questions and an arm into token ids and kinds, and pack them into batches."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from cotdistill import corrupt
from cotdistill.arms import CORRUPTIONS, Arm, format_target, label_text, prompt_text
from cotdistill.errors import DataError
from cotdistill.examples import Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.students import Student

# A training batch's tokens are filled up to a multiple of this: products of other lengths are up to
# 15 % slower
ROW_MULTIPLE = 8
# What a token is: frame = "Reason:", "\nAnswer:" and the end of the sequence
PROMPT, LABEL, RATIONALE, FRAME = range(4)
KINDS = {"label": LABEL, "rationale": RATIONALE, "frame": FRAME}


@dataclass(frozen=True)
class Encoded:
    """Hold one training sequence.

    Token ids, and for each token what it is (PROMPT, LABEL, RATIONALE, FRAME).
    """

    id: str
    ids: tuple[int, ...]
    kinds: tuple[int, ...]


def example_rng(question: str, *numbers: int) -> np.random.Generator:
    """Return a generator that depends on the question's id and the numbers (seed, epoch).

    It never depends on the question's place in a list.
    """
    digest = hashlib.sha256(question.encode()).digest()
    return np.random.default_rng([int.from_bytes(digest[:8], "little"), *numbers])


def encode(
    student: Student,
    example: Example,
    rationale: str,
    arm: Arm,
    label_format: str = "text",
    rng: np.random.Generator | None = None,
    scores=None,
    corpus: corrupt.Corpus | None = None,
) -> Encoded:
    """Tokenise prompt and target piece by piece and join the ids.

    The rationale's own tokens are corrupted on the way. scores: one importance per rationale token,
    for arms that keep or mask by a selector; corpus: what the training rationales have in common,
    for arms that need it.
    """
    prompt = student.bos_ids + student.encode(prompt_text(example, arm.placement, label_format))
    ids, kinds = list(prompt), [PROMPT] * len(prompt)
    for kind, text in format_target(example, rationale, arm, label_format):
        piece = student.encode(text)
        if kind == "rationale" and arm.corruption:
            piece = corrupt.corrupt_text(
                student, text, piece, arm, rng, scores, label=example.label, corpus=corpus
            )
        ids += piece
        kinds += [KINDS[kind]] * len(piece)
    return Encoded(example.id, tuple(ids + [student.eos_id]), tuple(kinds + [FRAME]))


def encode_all(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    arm: Arm,
    label_format: str,
    seed: int,
    epochs: int = 1,
    scores: dict | None = None,
) -> list[list[Encoded]]:
    """Return the training sequences of an arm, one list per epoch.

    It is the same list again unless the arm is `fresh`. Where an arm takes another question's
    rationale, its function in corrupt.py chooses whose. Raises DataError for a question without
    scores.
    """
    texts = {e.id: rationales[e.id].text if arm.uses_rationale else "" for e in examples}
    needs = CORRUPTIONS[arm.corruption].needs
    if "partner" in needs:
        lengths = {question: len(student.encode(f" {text}")) for question, text in texts.items()}
        partners = corrupt.choose_partners(
            arm, examples, lengths, texts, np.random.default_rng([seed, 7])
        )
        texts = {question: texts[partners[question]] for question in texts}
    corpus = corrupt.collect_corpus(student, list(texts.values())) if "corpus" in needs else None
    if scores is not None:
        missing = [e.id for e in examples if e.id not in scores]
        if missing:
            raise DataError(
                f"arm {arm.label}: no attribution scores for {len(missing)} questions, first "
                f"'{missing[0]}'; expected a score file of this study's training questions"
            )
    passes = [
        [
            encode(
                student,
                e,
                texts[e.id],
                arm,
                label_format,
                example_rng(e.id, seed, epoch),
                None if scores is None else scores[e.id],
                corpus,
            )
            for e in examples
        ]
        for epoch in range(epochs if arm.fresh else 1)
    ]
    return passes if arm.fresh else passes * epochs


def unchanged_share(
    passes: list[list[Encoded]],
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    arm: Arm,
    label_format: str,
    seed: int,
) -> float:
    """Return the share (0..1) of an arm's training sequences that its corruption leaves alone.

    For example 15 tokens kept of a rationale of 12, or the sentences of a rationale of one sentence
    shuffled. The sequences of the first epoch are counted. Where the share is high, the arm can
    hardly differ from its intact one.
    """
    plain = encode_all(student, examples, rationales, arm.intact, label_format, seed)[0]
    return float(np.mean([a.ids == b.ids for a, b in zip(passes[0], plain, strict=True)]))


def usable_questions(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    label_format: str,
    max_length: int,
) -> tuple[list[Example], dict[str, int]]:
    """Choose the training questions that every arm can use.

    They have a rationale, and at most `max_length` tokens in every placement. Returns them and a
    count of what was left out and why; the same questions go to every arm, label_only too.
    """
    kept, left = [], {"no rationale": 0, f"over {max_length} tokens": 0}
    for example in examples:
        rationale = rationales.get(example.id)
        if rationale is None or not rationale.text:
            left["no rationale"] += 1
        elif training_length(student, example, rationale.text, label_format) > max_length:
            left[f"over {max_length} tokens"] += 1
        else:
            kept.append(example)
    return kept, left


def training_length(student: Student, example: Example, rationale: str, label_format: str) -> int:
    """Return the tokens of a question's longest training text, over its rationale's placements."""
    return max(
        len(encode(student, example, rationale, Arm(p), label_format).ids)
        for p in ("pre_cot", "post_cot")
    )


def length_to_keep(lengths: list[int], share: float = 0.99) -> int:
    """Return the smallest `max_length`, in tokens, that keeps at least this share of lengths."""
    return sorted(lengths)[max(0, -(-len(lengths) * round(1000 * share) // 1000) - 1)]


def check_labels(
    student: Student, examples: list[Example], label_format: str, max_label_tokens: int
) -> None:
    """Check that every option fits into what generation may write for a label.

    Raises DataError naming the first that doesn't.
    """
    for example in examples:
        for option in range(len(example.choices)):
            n = len(student.encode(label_text(example, option, label_format)))
            if n > max_label_tokens:
                raise DataError(
                    f"question '{example.id}': option {option + 1} is {n} tokens long; "
                    f"expected at most max_label_tokens = {max_label_tokens}"
                )


def choose_train(examples: list[Example], size: int, seed: int) -> list[Example]:
    """Draw `size` of the questions (all, where 0) without replacement, by the seed.

    Raises DataError if there are fewer.
    """
    if size > len(examples):
        raise DataError(
            f"train_size {size} is larger than the data: {len(examples)} training "
            "questions have a rationale and fit"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(examples))
    return [examples[i] for i in order[: size or len(examples)]]


def pack_batch(
    batch: list[Encoded], arm_weight: float = 1.0, rationale_weight: float = 1.0
) -> dict[str, torch.Tensor]:
    """Lay sequences end to end in one row.

    Returns input_ids, position_ids, labels [1, T]; cu_seq_lens_q [n + 1]; weights, kinds [S] of the
    S supervised tokens. labels[t] is the token that follows input_ids[t] in its sequence, or -100
    where nothing is learnt from it. A sequence's last token is no input, for nothing follows it.

    T is a multiple of ROW_MULTIPLE: up to ROW_MULTIPLE - 1 tokens that nothing is learnt from end
    the row, as a sequence of their own (then cu_seq_lens_q is [n + 2]).
    """
    lengths = [len(e.ids) - 1 for e in batch]
    fill = -sum(lengths) % ROW_MULTIPLE
    ids = torch.tensor([i for e in batch for i in e.ids[:-1]] + [0] * fill)
    next_ids = torch.tensor([i for e in batch for i in e.ids[1:]] + [0] * fill)
    kinds = torch.tensor([k for e in batch for k in e.kinds[1:]] + [PROMPT] * fill)
    lengths += [fill] if fill else []
    supervised = kinds != PROMPT
    weights = torch.where(kinds == LABEL, arm_weight, rationale_weight)[supervised]
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {
        "input_ids": ids[None],
        "position_ids": positions[None],
        "labels": next_ids.where(supervised, -100)[None],
        "cu_seq_lens_q": borders,
        "weights": weights,
        "kinds": kinds[supervised],
    }


def loss_shares(
    weights: torch.Tensor, is_label: torch.Tensor, counts: torch.Tensor, loss: str, other: float
) -> torch.Tensor:
    """Return what each supervised token's cross-entropy is multiplied with, [S].

    The loss is the sum of the products. weights [S]: of label tokens the arm's label_weight, of
    others rationale_weight. counts: (label tokens, other tokens) of the whole effective batch: all
    that an update sees, over gradient accumulation and the processes of a torchrun. So a question
    with a long rationale counts for more tokens, as it does in HF's mean.

    token_mean  weight / (all supervised tokens).
    balanced    weight / (label tokens) for the label, other * weight / (other tokens) for the
                rest. Others are the rationale and the frame ("Reason:", "\\nAnswer:", the end of
                the sequence), whatever an arm makes of the rationale. The label's term is then the
                same in every arm; Hsieh et al. 2023 (arXiv 2305.02301) weigh two tasks so. For
                label_only `other` is 0 (`other_weight`).
    """
    if loss == "token_mean":
        return weights / counts.sum()
    label, rest = (weights / count.clamp(min=1) for count in counts)
    return torch.where(is_label, label, other * rest)


def other_weight(arm: Arm, config: TrainConfig) -> float:
    """Return the weight (lambda) of the mean over other tokens in a balanced loss.

    0 for label_only, whose only other token is the end of the sequence: alone it would weigh as
    much as all of a rationale, and nothing that is measured depends on it (an answer ends with its
    line break). So its balanced loss is the mean over label tokens.
    """
    return config.loss_lambda if arm.uses_rationale else 0.0


def label_share(sequences: list[Encoded], arm: Arm, config: TrainConfig) -> float:
    """Return the label's share (0..1) of an arm's loss, as a sum of weights.

    It is the label's share where every token's cross-entropy is equal.
    """
    kinds = torch.tensor([kind for e in sequences for kind in e.kinds if kind != PROMPT])
    is_label = kinds == LABEL
    weights = torch.where(
        is_label, float(arm.label_weight), float(config.rationale_weight)
    ).double()
    counts = torch.stack([is_label.sum(), (~is_label).sum()])
    share = loss_shares(
        weights, is_label, counts, arm.loss or config.loss, other_weight(arm, config)
    )
    return float(share[is_label].sum() / share.sum())
