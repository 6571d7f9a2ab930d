"""Fair timing: interleaved medians, and a profile by groups of operations."""

import time

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cotdistill.kernels.linear import PrepackedLinear
from cotdistill.students import Student


def time_call(call, *given) -> tuple[float, object]:
    """Measure the wall seconds of call(*given); return them with its result."""
    started = time.perf_counter()
    result = call(*given)
    return time.perf_counter() - started, result


def interleaved_medians(calls: dict, tries: int) -> dict:
    """Measure the median wall seconds of each call, with one call of each per round.

    A first round, which warms up, is not counted.
    """
    seconds = {name: [] for name in calls}
    for round_number in range(tries + 1):
        for name, call in calls.items():
            seconds[name] += [time_call(call)[0]][:round_number]
    return {name: float(np.median(spent)) for name, spent in seconds.items()}


def square_rate(size: int = 2048, tries: int = 3, product=torch.mm) -> float:
    """Measure the GFLOP/s of a float32 product of two [size, size] matrices, a median of tries."""
    a, b = torch.randn(2, size, size)
    seconds = np.median([time_call(product, a, b)[0] for _ in range(tries)])
    return 2.0 * size**3 / float(seconds) / 1e9


def best_rate(size: int = 2048, tries: int = 3) -> float:
    """Measure `square_rate` with two libraries; return the faster one's.

    They are torch's own product and oneDNN's with prepacked weights (`use_prepacked_linears`).
    """
    layer = PrepackedLinear(nn.Linear(size, size, bias=False).requires_grad_(False))
    layer(torch.randn(1, size))  # packing the weights is not counted
    return max(square_rate(size, tries), square_rate(size, tries, lambda a, _: layer(a)))


# Groups of a `Clock` whose time is spent inside the libraries' kernels
KERNELS = ["matrix products", "head", "attention", "optimiser"]


def kernel_share(profiled: pd.Series) -> float:
    """Return the share of a `profile` that is spent in kernels.

    A ratio divided by it is what our side would reach if only kernels took time. To be further
    ahead than that, a peer needs faster products, not less work around them.
    """
    return float(profiled.reindex(KERNELS).sum() / profiled.sum())


GROUPS = (  # an operation belongs to the first group with a mark in its name
    ("loss", ("nll_loss", "log_softmax", "logsumexp", "aten.exp_")),
    ("attention", ("scaled_dot_product", "_flash_attention", "softmax")),
    ("optimiser", ("_fused_adam", "_foreach", "linalg_vector_norm")),
    ("matrix products", ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "mkldnn._linear")),
    (
        "copies and indexing",
        (
            "reorder",
            "copy",
            "cat",
            "index",
            "clone",
            "fill",
            "zero",
            "select",
            "slice",
            "gather",
            "scatter",
            "embedding",
            "new_empty",
            "empty",
            "resize",
            "repeat",
            "expand",
            "view",
            "transpose",
            "aten.t.",
            "permute",
            "split",
            "squeeze",
            "detach",
        ),
    ),
)


class Clock(TorchDispatchMode):
    """Times every torch operation on its own while it is open.

    `spent` holds wall seconds by kind of operation (GROUPS). A matrix product with the vocabulary
    among its sizes is the head's. The clock adds a twentieth to a training step, between the
    operations. torch's profiler adds a fifth, and its records lie between the tensors in memory,
    which slows the products themselves.
    """

    def __init__(self, vocabulary: int):
        """Start with nothing measured; `vocabulary` is the number of rows of the head."""
        super().__init__()
        self.vocabulary, self.spent = vocabulary, {}

    def __torch_dispatch__(self, called, types, given=(), named=None):
        """Run one operation and add its wall seconds to its kind."""
        seconds, result = time_call(lambda: called(*given, **(named or {})))
        group = next(
            (g for g, marks in GROUPS if any(m in str(called) for m in marks)),
            "norms and activations",
        )
        if group == "matrix products" and any(
            isinstance(x, torch.Tensor) and self.vocabulary in x.shape for x in given
        ):
            group = "head"
        self.add(group, seconds)
        return result

    def add(self, group: str, seconds: float) -> None:
        """Add seconds to a kind of operation."""
        self.spent[group] = self.spent.get(group, 0.0) + seconds


def add_rest(spent: dict[str, float], wall: float) -> pd.Series:
    """Complete the seconds by kind of operation with what Python took.

    That is what the operations leave of the wall time, which was measured without the clock.
    """
    return pd.Series(spent | {"Python and the rest": max(0.0, wall - sum(spent.values()))})


def profile(call, vocabulary: int) -> pd.Series:
    """Measure the wall seconds of one call by kind of operation (`Clock`) and tokenisation.

    The call runs once without the clock and once with it.
    """
    wall, own, clock = time_call(call)[0], Student.encode, Clock(vocabulary)

    def encode_timed(self, text):
        seconds, ids = time_call(own, self, text)
        clock.add("tokenisation", seconds)
        return ids

    Student.encode = encode_timed
    try:
        with clock:
            call()
    finally:
        Student.encode = own
    return add_rest(clock.spent, wall)
