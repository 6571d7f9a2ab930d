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
    """Wall seconds of call(*given), and what it returned."""
    started = time.perf_counter()
    found = call(*given)
    return time.perf_counter() - started, found


def interleaved_medians(calls: dict, tries: int) -> dict:
    """Median wall seconds of each call, one of each in a turn.

    A first turn, which warms up, is not counted.
    """
    seconds = {name: [] for name in calls}
    for turn in range(tries + 1):
        for name, call in calls.items():
            seconds[name] += [time_call(call)[0]][:turn]
    return {name: float(np.median(spent)) for name, spent in seconds.items()}


def square_rate(size: int = 2048, tries: int = 3, product=torch.mm) -> float:
    """GFLOP/s of the float32 product of two [size, size] matrices, right now.

    The median of some tries.
    """
    a, b = torch.randn(2, size, size)
    return (
        2.0 * size**3 / float(np.median([time_call(product, a, b)[0] for _ in range(tries)])) / 1e9
    )


def best_rate(size: int = 2048, tries: int = 3) -> float:
    """`square_rate` of the faster one of two libraries.

    Plain products and those of `use_prepacked_linears` weights.
    """
    layer = PrepackedLinear(nn.Linear(size, size, bias=False).requires_grad_(False))
    layer(torch.randn(1, size))  # laying the weights out is not counted
    return max(square_rate(size, tries), square_rate(size, tries, lambda a, _: layer(a)))


# Groups of a `Clock` that the libraries' kernels do
KERNELS = ["matrix products", "head", "attention", "optimiser"]


def kernel_share(profiled: pd.Series) -> float:
    """The share of a `profile` that is spent in kernels.

    A ratio divided by it is what our side would reach if nothing but these took time: who is ahead
    of that must have faster products, not less around them.
    """
    return float(profiled.reindex(KERNELS).sum() / profiled.sum())


GROUPS = (  # the first group whose mark stands in an operation's name
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
    """While open, every operation that is called is timed by itself.

    `spent`, wall seconds by kind (GROUPS). Matrix products with the vocabulary among their sizes are the head's. It costs a twentieth of a training step, between the operations; torch's profiler a fifth, and its records lie between the tensors in memory, which slows the products themselves.
    """

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.spent = vocabulary, {}

    def __torch_dispatch__(self, called, types, given=(), named=None):
        seconds, found = time_call(lambda: called(*given, **(named or {})))
        group = next(
            (g for g, marks in GROUPS if any(m in str(called) for m in marks)),
            "norms and activations",
        )
        if group == "matrix products" and any(
            isinstance(x, torch.Tensor) and self.vocabulary in x.shape for x in given
        ):
            group = "head"
        self.add(group, seconds)
        return found

    def add(self, group: str, seconds: float) -> None:
        self.spent[group] = self.spent.get(group, 0.0) + seconds


def _with_rest(spent: dict[str, float], wall: float) -> pd.Series:
    """Seconds by kind of operation.

    What is left of the wall time, measured without the clock, is Python.
    """
    return pd.Series(spent | {"Python and the rest": max(0.0, wall - sum(spent.values()))})


def profile(call, vocabulary: int) -> pd.Series:
    """Wall seconds of one call by kind of operation (`Clock`), tokenisation among them.

    It runs once without the clock, once with it.
    """
    wall, own, clock = time_call(call)[0], Student.encode, Clock(vocabulary)

    def encode_timed(self, text):
        seconds, found = time_call(own, self, text)
        clock.add("tokenisation", seconds)
        return found

    Student.encode = encode_timed
    try:
        with clock:
            call()
    finally:
        Student.encode = own
    return _with_rest(clock.spent, wall)
