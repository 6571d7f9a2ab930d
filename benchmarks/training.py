"""How fast the study's work is beside what a researcher would otherwise pick.

Training, scoring, generation, attribution, elicitation. `benchmarks/benchmark.ipynb` calls these
functions; `python -m benchmarks.run run` executes it.

Rules. Both sides run turn about (ABAB), on the same tokens, in float32, with the same threads;
medians over repeats, of training the totals of its steps. Training sides have a process each, held
after every step, because in one process the memory of one slows the other; the rest shares one
process. Ours keeps freed memory (`students.keep_memory`), a peer has the C library's own
thresholds. Whether they give the same results is checked first, on the results themselves. A peer
gets its best settings: the best of the batch sizes that are tried, all of them shown.
"""

import copy
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.compare import LOSS_LIMIT, nearly_equal, result_row
from benchmarks.inputs import PLACEMENTS
from benchmarks.limits import product_rates, required_flops
from benchmarks.trainers import (
    TRAINERS,
    _features,
    _padding_collator,
    _padding_tokenizer,
    is_peer,
    train_interleaved,
    train_side,
)
from cotdistill.encode import Encoded, pack_batch
from cotdistill.hyperparameters import TrainConfig
from cotdistill.kernels.loss import token_losses
from cotdistill.students import Student


def pick_batches(
    sequences: list[Encoded], batch_size: int, n: int, grouped: bool, seed: int = 0
) -> list[list[Encoded]]:
    """`n` batches out of one epoch's.

    In random order, or in the order of the library's own grouping by length; those at evenly spaced
    quantiles of the batch's tokens, so that a few stand for the epoch.
    """
    lengths = [len(e.ids) for e in sequences]
    generator = torch.Generator().manual_seed(seed)
    order = (
        get_length_grouped_indices(lengths, batch_size, generator=generator)
        if grouped
        else torch.randperm(len(sequences), generator=generator).tolist()
    )
    whole = [
        [sequences[i] for i in order[a : a + batch_size]]
        for a in range(0, len(order) - batch_size + 1, batch_size)
    ]
    whole.sort(key=lambda batch: sum(len(e.ids) for e in batch))
    return [whole[int((i + 0.5) / n * len(whole))] for i in range(n)]


def training_batches(
    encoded: dict[str, list[Encoded]], batch_size: int, n: int, seed: int = 0
) -> dict[bool, list[tuple[str, list[Encoded]]]]:
    """grouped -> the batches of one run, each with its placement.

    As a warm-up twice the longest and twice the shortest, which meet the memory that a run of
    hundreds of steps has long met (a page costs most when it is touched first, and the first steps
    of another length cost a tenth more), then n per placement. The two orders have the sequences of
    different batches, and every trainer of an order sees the same batches one after the other.
    """
    found = {}
    for grouped in (False, True):
        parts = {p: pick_batches(encoded[p], batch_size, n, grouped, seed) for p in encoded}
        by_length = sorted(
            (batch for p in parts for batch in parts[p]),
            key=lambda batch: sum(len(e.ids) for e in batch),
        )
        found[grouped] = [("warm-up", by_length[at]) for at in (-1, -1, 0, 0)] + [
            (p, batch) for p in parts for batch in parts[p]
        ]
    return found


def _ours_beside(peer: str) -> str:
    """Our side on the batches that a peer gets."""
    return "ours, grouped" if TRAINERS[peer][1] else "ours"


def time_training(
    student: Student,
    batches: dict[bool, list[tuple[str, list[Encoded]]]],
    config: TrainConfig,
    repeats: int,
    sides: list[str],
    square: int = 2048,
) -> pd.DataFrame:
    """Every optimiser step of every peer among `sides` and of ours beside it on the same batches
    (`train_interleaved`, of the student as it is loaded by its name): side, beside (the peer),
    repeat, step, placement, tokens, seconds, loss, the machine's product rates right after that
    step of the pair (GFLOP/s: square, best, own shapes) and the step's needed GFLOP.
    """
    there = [
        s
        for s in sides
        if not s.startswith("ours") and (not TRAINERS[s][0] or find_spec(TRAINERS[s][0]))
    ]
    rows = []
    for repeat in range(repeats):
        for peer in there:
            pair, work = [_ours_beside(peer), peer], batches[TRAINERS[peer][1]]
            tokens = int(np.mean([sum(len(e.ids) for e in b) for _, b in work]))
            found = train_interleaved(
                pair,
                student.name,
                [b for _, b in work],
                config,
                between=lambda: product_rates(student.model, tokens, square),
            )
            for side, made in zip(pair, found):
                for step, (placement, batch) in enumerate(work):
                    rows.append(
                        {
                            "side": side,
                            "beside": peer,
                            "repeat": repeat,
                            "step": step,
                            "placement": placement,
                            "tokens": sum(len(e.ids) for e in batch),
                            "seconds": made["seconds"][step],
                            "loss": made["losses"][step],
                            "gflop": required_flops(student.model, batch) / 1e9,
                            "least_gflop": required_flops(student.model, batch, True) / 1e9,
                            **made["between"][step],
                        }
                    )
    return pd.DataFrame(rows)


def training_rows(
    steps: pd.DataFrame, work: str, targets: dict[str, float], sides: list[str], kernels: pd.Series
) -> pd.DataFrame:
    """`time_training`'s steps as result rows.

    One per peer and placement (seconds per optimiser step). A peer's step is compared with ours on
    the same batch, right before it, and its loss of every step with ours. The ratio is that of the
    total times, as in an epoch: batches differ in their padding, and a median of few ratios is one
    batch's. `bound` is the ratio that steps of nothing but the least operations, at the rate of a
    big product of the faster library, would reach: no implementation in float32 can be further
    ahead of this peer. `kernels` is the ratio over the share of our step that is spent in kernels
    (`training_kernels`).
    """
    rows = []
    for side in sides:
        if side.startswith("ours"):
            continue
        mine, theirs, known = (
            steps[steps["side"].str.startswith("ours") & (steps["beside"] == side)],
            steps[steps["side"] == side],
            {},
        )
        if not len(mine):  # the peer is not installed
            mine = steps[steps["side"] == _ours_beside(side)]
        if len(theirs):
            a, b = (x.sort_values(["repeat", "step"])["loss"].to_numpy() for x in (mine, theirs))
            known = {"check": nearly_equal(a, b, LOSS_LIMIT, "losses")}
        for placement in PLACEMENTS:
            ours, their = (
                x[x["placement"] == placement].sort_values(["repeat", "step"])
                for x in (mine, theirs)
            )
            if len(ours):
                found = result_row(
                    f"{work}, {placement}",
                    side,
                    TRAINERS[side][2],
                    ours["seconds"].tolist(),
                    their["seconds"].tolist() or None,
                    targets.get(side),
                    known.get("check"),
                    middle=np.mean,
                )
                bound = (
                    float(their["seconds"].sum() / (ours["least_gflop"] / ours["best"]).sum())
                    if len(their)
                    else np.nan
                )
                rows.append(
                    found | {"bound": bound, "kernels": found["ratio"] / kernels[placement]}
                )
    return pd.DataFrame(rows)


def compare_rounding(
    student: Student,
    steps: pd.DataFrame,
    batches: dict[bool, list[tuple[str, list[Encoded]]]],
    config: TrainConfig,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[tuple[str, str], float]]:
    """Where a peer's loss is furthest from ours, whose rounding that is.

    Ours trains once more (all steps: the learning rate depends on their number); with the weights
    that it has there, the loss of that batch is computed in float64 and, in float32, by
    transformers (padded, what the Trainer calls).

    Returns the losses in nats per supervised token with their relative difference from the float64
    one (the peer's own rests on the weights of its run), and for a Trainer {(student, peer):
    difference of transformers' loss}: with the same weights, so it is the function's.
    """
    mine, theirs = (steps[steps["side"].map(is_peer) == peer] for peer in (False, True))
    both = theirs.merge(
        mine,
        left_on=["side", "repeat", "step"],
        right_on=["beside", "repeat", "step"],
        suffixes=("", "_ours"),
    )
    worst = both.loc[(both["loss"] / both["loss_ours"] - 1).abs().idxmax()]
    order = [batch for _, batch in batches[TRAINERS[worst["side"]][1]]]
    learner, said, found = replace(student, model=copy.deepcopy(student.model)), [], {}

    def look():
        if len(said) == worst["step"]:
            found.update(_losses_with(student, learner.model.state_dict(), order[len(said)]))

    look()
    train_side(
        worst["side_ours"],
        learner,
        order,
        config,
        seed,
        lambda _, loss: (said.append(loss), look()),
    )
    losses = {
        worst["side_ours"]: said[worst["step"]],
        "transformers, with our weights": found["transformers"],
        worst["side"]: worst["loss"],
    }
    off = {side: abs(loss / found["float64"] - 1) for side, loss in losses.items()}
    table = pd.DataFrame(
        [
            {
                "loss": side,
                "step": worst["step"] + 1,
                "nats": f"{loss:.7f}",
                "float64": f"{found['float64']:.7f}",
                "difference": f"{off[side]:.0e}",
            }
            for side, loss in losses.items()
        ]
    )
    return table, {(student.name, worst["side"]): off["transformers, with our weights"]} if worst[
        "side"
    ].startswith("Trainer") else {}


def _losses_with(
    student: Student, weights: dict[str, torch.Tensor], batch: list[Encoded]
) -> dict[str, float]:
    """The loss of a batch with these weights.

    Transformers' own in float32, and in float64 on our batch layout.
    """
    plain = copy.deepcopy(student.model).eval()
    plain.load_state_dict(weights)
    with torch.no_grad():
        theirs = float(
            plain(
                **_padding_collator(_padding_tokenizer(student))([_features(e) for e in batch])
            ).loss
        )
        plain.double().set_attn_implementation("packed")
        return {
            "transformers": theirs,
            "float64": float(token_losses(plain, pack_batch(batch)).mean()),
        }


def limit_share(steps: pd.DataFrame, kernels: pd.Series) -> pd.DataFrame:
    """Our training against the machine's own limit, by placement.

    Tokens/s, needed GFLOP/s, and its share of the rate of a big square product (torch's own), of
    the faster library's (with only the `least` operations counted) and of the products at the
    model's own shapes, all measured right after each step; "kernels", the first of these shares if
    our step took no time but in kernels (`training_kernels`).
    """
    rows = []
    for placement, part in steps[
        steps["side"].str.startswith("ours") & (steps["placement"] != "warm-up")
    ].groupby("placement", sort=False):
        rate = part["gflop"] / part["seconds"]
        of_square = float((rate / part["square"]).median())
        rows.append(
            {
                "placement": placement,
                "steps": len(part),
                "tokens_per_s": float((part["tokens"] / part["seconds"]).median()),
                "needed_gflop_s": float(rate.median()),
                "square_gflop_s": float(part["square"].median()),
                "best_gflop_s": float(part["best"].median()),
                "own_gflop_s": float(part["own"].median()),
                "share_of_square": of_square,
                "share_of_best": float(
                    (part["least_gflop"] / part["seconds"] / part["best"]).median()
                ),
                "share_of_own": float((rate / part["own"]).median()),
                "kernels": of_square / kernels[placement],
            }
        )
    return pd.DataFrame(rows)


def peak_memory(
    student: Student, sides: list[str], sequences: list[Encoded], config: TrainConfig
) -> pd.DataFrame:
    """Memory in GB of training two batches, each side in a fresh process.

    "loaded_gb" with imports and all weights, "peak_gb" ever held.
    """
    rows = []
    for side in sides:
        found = {"loaded_gb": np.nan, "peak_gb": np.nan}
        if not TRAINERS[side][0] or find_spec(TRAINERS[side][0]):
            (found,) = train_interleaved(
                [side],
                student.name,
                pick_batches(sequences, config.batch_size, 2, TRAINERS[side][1]),
                config,
            )
        rows.append({"side": side, **{name: found[name] for name in ("loaded_gb", "peak_gb")}})
    return pd.DataFrame(rows)
