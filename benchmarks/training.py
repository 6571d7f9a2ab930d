"""Training beside TRL and the transformers Trainer, and beside the machine's own limit.

The rules of all comparisons of speed:

- Both sides alternate (ABAB), on the same tokens, in float32, with the same threads. Results are
  medians over repeats; for training, totals over its steps.
- Training sides have a process each, which waits after every step, because in one process the
  memory of one side slows the other. All else shares one process.
- Our side keeps freed memory (`kernels.memory.keep_memory`), a peer has the C library's own
  thresholds.
- Whether both give the same results is checked first, on the results themselves.
- A peer gets its best settings: the best of the batch sizes that are tried, all of them shown.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.compare import LOSS_LIMIT, Row, arrays_agree, result_row
from benchmarks.inputs import PLACEMENTS, encode_placements
from benchmarks.limits import product_rates, required_flops
from benchmarks.profiles import training_kernels
from benchmarks.trainers import (
    TRAINERS,
    is_peer,
    padding_collator,
    padding_tokenizer,
    peer_features,
    train_interleaved,
    train_side,
)
from cotdistill.encode import Encoded, pack_batch
from cotdistill.examples import Example, Rationale
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.loss import token_losses
from cotdistill.students import Student

# grouped by length? -> the batches of one run, each with its placement
Batches = dict[bool, list[tuple[str, list[Encoded]]]]


@dataclass(frozen=True)
class TrainingPlan:
    """What is measured of one student's training.

    batch_size   questions per optimiser step
    steps        measured steps per placement, run and side
    repeats      runs of each side
    sides        the peers that are compared with ours
    targets      peer -> the ratio (its time / ours) to reach
    square_size  rows of the square matrices of the product rate
    seed         draws the batches
    lr           learning rate, TRL's default
    """

    batch_size: int
    steps: int
    repeats: int
    sides: list[str]
    targets: dict[str, float]
    square_size: int = 2048
    seed: int = 0
    lr: float = 2e-5

    @property
    def config(self) -> TrainConfig:
        """The hyperparameters of all sides."""
        return TrainConfig(batch_size=self.batch_size, lr=self.lr)


@dataclass(frozen=True)
class TrainingResult:
    """What `measure_training` found: the batches, every step, kernel shares and the two tables.

    kernels  placement -> `kernel_share` of our step
    rows     `training_rows`
    shares   `limit_share`
    """

    batches: Batches
    steps: pd.DataFrame
    kernels: pd.Series
    rows: pd.DataFrame
    shares: pd.DataFrame

    @property
    def sample(self) -> list[Encoded]:
        """The longest post_cot batch in random order, for profiles and rates."""
        return self.batches[False][-1][1]


def measure_training(
    student: Student,
    examples: list[Example],
    rationales: dict[str, Rationale],
    plan: TrainingPlan,
) -> TrainingResult:
    """Measure the training of a student on all placements beside the plan's peers."""
    encoded = encode_placements(student, examples, rationales)
    batches = training_batches(encoded, plan.batch_size, plan.steps, plan.seed)
    steps = time_training(student, batches, plan.config, plan.repeats, plan.sides, plan.square_size)
    kernels = training_kernels(student, batches)
    work = f"fine-tuning {student.name}"
    rows = training_rows(steps, work, plan.targets, plan.sides, kernels)
    return TrainingResult(batches, steps, kernels, rows, limit_share(steps, kernels))


def pick_batches(
    sequences: list[Encoded], batch_size: int, n: int, grouped: bool, seed: int = 0
) -> list[list[Encoded]]:
    """Pick `n` batches out of one epoch's.

    The epoch is in random order, or in the order of the library's own grouping by length. The
    batches are those at evenly spaced quantiles of their tokens, so that a few represent the epoch.
    """
    lengths = [len(e.ids) for e in sequences]
    generator = torch.Generator().manual_seed(seed)
    order = (
        get_length_grouped_indices(lengths, batch_size, generator=generator)
        if grouped
        else torch.randperm(len(sequences), generator=generator).tolist()
    )
    batches = [
        [sequences[i] for i in order[a : a + batch_size]]
        for a in range(0, len(order) - batch_size + 1, batch_size)
    ]
    batches.sort(key=lambda batch: sum(len(e.ids) for e in batch))
    return [batches[int((i + 0.5) / n * len(batches))] for i in range(n)]


def training_batches(
    encoded: dict[str, list[Encoded]], batch_size: int, n: int, seed: int = 0
) -> Batches:
    """Make the batches of one run, each with its placement, for both orders of an epoch.

    Keys: whether the order is grouped by length. Every trainer of an order sees the same batches in
    the same order.

    First comes a warm-up, the longest batch twice and the shortest twice, then `n` batches per
    placement. The warm-up touches the memory that a run of hundreds of steps has touched long
    before: a page costs most the first time, and the first steps of another length take a tenth
    longer.
    """
    batches = {}
    for grouped in (False, True):
        parts = {p: pick_batches(encoded[p], batch_size, n, grouped, seed) for p in encoded}
        by_length = sorted(
            (batch for p in parts for batch in parts[p]),
            key=lambda batch: sum(len(e.ids) for e in batch),
        )
        batches[grouped] = [("warm-up", by_length[at]) for at in (-1, -1, 0, 0)] + [
            (p, batch) for p in parts for batch in parts[p]
        ]
    return batches


def own_side(peer: str) -> str:
    """Name our side that trains on the batches of a peer."""
    return "ours, grouped" if TRAINERS[peer][1] else "ours"


def time_training(
    student: Student,
    batches: Batches,
    config: TrainConfig,
    repeats: int,
    sides: list[str],
    square_size: int = 2048,
) -> pd.DataFrame:
    """Time every optimiser step of each peer among `sides`, and of ours on the same batches.

    The student is loaded again by its name (`train_interleaved`). Columns: side, beside (the peer),
    repeat, step, placement, tokens, seconds, loss, gflop and least_gflop (`required_flops` / 1e9),
    and the machine's product rates in GFLOP/s right after that step of the pair (square, best, own;
    `product_rates`).
    """
    peers = [
        side
        for side in sides
        if not side.startswith("ours") and (not TRAINERS[side][0] or find_spec(TRAINERS[side][0]))
    ]
    rows = []
    for repeat in range(repeats):
        for peer in peers:
            pair, work = [own_side(peer), peer], batches[TRAINERS[peer][1]]
            tokens = int(np.mean([sum(len(e.ids) for e in batch) for _, batch in work]))
            results = train_interleaved(
                pair,
                student.name,
                [batch for _, batch in work],
                config,
                between=partial(product_rates, student.model, tokens, square_size),
            )
            for side, result in zip(pair, results, strict=True):
                about = {"side": side, "beside": peer, "repeat": repeat}
                rows += [about | row for row in _step_rows(student, work, result)]
    return pd.DataFrame(rows)


def _step_rows(student: Student, work: list[tuple[str, list[Encoded]]], result: dict) -> list[dict]:
    """Make a row per optimiser step of one side's result of `train_interleaved`."""
    return [
        {
            "step": step,
            "placement": placement,
            "tokens": sum(len(e.ids) for e in batch),
            "seconds": result["seconds"][step],
            "loss": result["losses"][step],
            "gflop": required_flops(student.model, batch) / 1e9,
            "least_gflop": required_flops(student.model, batch, True) / 1e9,
            **result["between"][step],
        }
        for step, (placement, batch) in enumerate(work)
    ]


def training_rows(
    steps: pd.DataFrame, work: str, targets: dict[str, float], sides: list[str], kernels: pd.Series
) -> pd.DataFrame:
    """Turn `time_training`'s steps into result rows: one per peer and placement.

    Times are seconds per optimiser step. A peer's step is compared with ours on the same batch,
    right before it, and its loss of every step with ours. The ratio is that of the total times, as
    in an epoch: batches differ in their padding, and a median of few ratios is one batch's.

    `bound` is the ratio of steps that do only the least operations, at the rate of a big product of
    the faster library: no float32 implementation can be further ahead of this peer. `kernels` is
    the ratio over the share of our step that is spent in kernels (`training_kernels`).
    """
    rows = []
    for peer in (side for side in sides if not side.startswith("ours")):
        mine, theirs, check = _paired_steps(steps, peer)
        for placement in PLACEMENTS:
            ours, other = (x[x["placement"] == placement] for x in (mine, theirs))
            if not len(ours):
                continue
            row = result_row(
                Row(f"{work}, {placement}", peer, TRAINERS[peer][2], targets.get(peer)),
                ours["seconds"].tolist(),
                other["seconds"].tolist() or None,
                check,
                middle=np.mean,
            )
            bound = np.nan
            if len(other):
                least = (ours["least_gflop"] / ours["best"]).sum()
                bound = float(other["seconds"].sum() / least)
            rows.append(row | {"bound": bound, "kernels": row["ratio"] / kernels[placement]})
    return pd.DataFrame(rows)


def _paired_steps(
    steps: pd.DataFrame, peer: str
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[bool, str] | None]:
    """Take our steps beside a peer and its own, in order, and compare all their losses.

    Where the peer is not installed, it has no steps, ours are those on the same batches beside any
    other peer, and there is no comparison.
    """
    steps = steps.sort_values(["repeat", "step"], kind="stable")
    mine = steps[steps["side"].str.startswith("ours") & (steps["beside"] == peer)]
    theirs = steps[steps["side"] == peer]
    if not len(mine):
        mine = steps[steps["side"] == own_side(peer)]
    if not len(theirs):
        return mine, theirs, None
    losses = mine["loss"].to_numpy(), theirs["loss"].to_numpy()
    return mine, theirs, arrays_agree(*losses, LOSS_LIMIT, "losses")


def compare_rounding(
    student: Student,
    steps: pd.DataFrame,
    batches: Batches,
    config: TrainConfig,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Compare, where a peer's loss is furthest from ours, both with the loss in float64.

    Ours trains once more (all steps: the learning rate depends on their number). With the weights
    that it has at that step, the loss of that batch is computed in float64 and, in float32, by
    transformers (padded, what the Trainer calls).

    Returns the losses in nats per supervised token with their relative difference from the float64
    one, and for a Trainer {(student, peer): difference of transformers' loss}. The peer's own loss
    rests on the weights of its run; transformers' has the same weights as the float64 one, so its
    difference is the rounding of the function alone.
    """
    worst = _furthest_step(steps)
    order = [batch for _, batch in batches[TRAINERS[worst["side"]][1]]]
    learner = replace(student, model=copy.deepcopy(student.model))
    own_losses, reference = [], {}

    def look():
        if len(own_losses) == worst["step"]:
            weights = learner.model.state_dict()
            reference.update(_reference_losses(student, weights, order[len(own_losses)]))

    def after_step(_, loss):
        own_losses.append(loss)
        look()

    look()
    train_side(worst["side_ours"], learner, order, config, seed, after_step)
    losses = {
        worst["side_ours"]: own_losses[worst["step"]],
        "transformers, with our weights": reference["transformers"],
        worst["side"]: worst["loss"],
    }
    gaps = {side: abs(loss / reference["float64"] - 1) for side, loss in losses.items()}
    table = pd.DataFrame(
        [
            {
                "loss": side,
                "step": worst["step"] + 1,
                "nats": f"{loss:.7f}",
                "float64": f"{reference['float64']:.7f}",
                "difference": f"{gaps[side]:.0e}",
            }
            for side, loss in losses.items()
        ]
    )
    if not worst["side"].startswith("Trainer"):
        return table, {}
    return table, {(student.name, worst["side"]): gaps["transformers, with our weights"]}


def _furthest_step(steps: pd.DataFrame) -> pd.Series:
    """Find the peer's step whose loss is furthest from ours; our columns end in "_ours"."""
    mine, theirs = (steps[steps["side"].map(is_peer) == peer] for peer in (False, True))
    both = theirs.merge(
        mine,
        left_on=["side", "repeat", "step"],
        right_on=["beside", "repeat", "step"],
        suffixes=("", "_ours"),
    )
    return both.loc[(both["loss"] / both["loss_ours"] - 1).abs().idxmax()]


def _reference_losses(
    student: Student, weights: dict[str, torch.Tensor], batch: list[Encoded]
) -> dict[str, float]:
    """Compute the loss of a batch with these weights, in two ways.

    "transformers": its own in float32, padded; "float64": on our batch layout.
    """
    plain = copy.deepcopy(student.model).eval()
    plain.load_state_dict(weights)
    pad = padding_collator(padding_tokenizer(student))
    with torch.no_grad():
        theirs = float(plain(**pad([peer_features(e) for e in batch])).loss)
        plain.double().set_attn_implementation("packed")
        exact = float(token_losses(plain, pack_batch(batch)).mean())
    return {"transformers": theirs, "float64": exact}


def limit_share(steps: pd.DataFrame, kernels: pd.Series) -> pd.DataFrame:
    """Compare our training with the machine's own limit, by placement.

    Columns, medians over steps: tokens/s; needed GFLOP/s; the product rates measured right after
    each step; and the share of each rate that the step reaches: of a big square product
    (torch's own), of the faster library's (counting only the `least` operations), of the products
    at the model's own shapes. "kernels" is the first of these shares if our step spent time in
    nothing but kernels (`training_kernels`).
    """
    rows = []
    ours = steps[steps["side"].str.startswith("ours") & (steps["placement"] != "warm-up")]
    for placement, part in ours.groupby("placement", sort=False):
        rate, seconds = part["gflop"] / part["seconds"], part["seconds"]
        medians = {
            "tokens_per_s": part["tokens"] / seconds,
            "needed_gflop_s": rate,
            "square_gflop_s": part["square"],
            "best_gflop_s": part["best"],
            "own_gflop_s": part["own"],
            "share_of_square": rate / part["square"],
            "share_of_best": part["least_gflop"] / seconds / part["best"],
            "share_of_own": rate / part["own"],
        }
        row = {name: float(values.median()) for name, values in medians.items()}
        rows.append(
            {"placement": placement, "steps": len(part)}
            | row
            | {"kernels": row["share_of_square"] / kernels[placement]}
        )
    return pd.DataFrame(rows)


def peak_memory(
    student: Student, sides: list[str], sequences: list[Encoded], config: TrainConfig
) -> pd.DataFrame:
    """Measure the memory in GB of training two batches, each side in a fresh process.

    "loaded_gb": with imports and all weights; "peak_gb": at its highest. NaN for a side that is not
    installed.
    """
    rows = []
    for side in sides:
        row = {"side": side, "loaded_gb": np.nan, "peak_gb": np.nan}
        if not TRAINERS[side][0] or find_spec(TRAINERS[side][0]):
            batches = pick_batches(sequences, config.batch_size, 2, TRAINERS[side][1])
            (result,) = train_interleaved([side], student.name, batches, config)
            row |= {name: result[name] for name in ("loaded_gb", "peak_gb")}
        rows.append(row)
    return pd.DataFrame(rows)
