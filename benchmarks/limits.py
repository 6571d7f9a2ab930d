"""What the hardware allows: the operations that are needed, and the measured rate of products."""

from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.clock import best_rate, interleaved_medians, square_rate, time_call
from cotdistill.encode import PROMPT, ROW_MULTIPLE, Encoded, pack_batch
from cotdistill.kernels.blocks import blocks_of
from cotdistill.kernels.linear import PrepackedLinear, onednn_linear, weight_gradient
from cotdistill.students import Student


def required_flops(model: nn.Module, batch: list[Encoded], least: bool = False) -> float:
    """Count the floating-point operations that one training step on a batch needs.

    6 per weight of a linear layer and token (forward, and two products backward), the head at
    supervised positions only, causal attention scores and their weighted sum. Norms, activations
    and the optimiser are not counted.

    least: leave out what nothing is learnt from. That is a sequence's last token, which predicts
    nothing (`pack_batch`), and, at positions that predict no supervised token, the last block's
    weights except those of keys and values (`last_block_at_places`).
    """
    config, (linear, head) = model.config, weights_of(model)
    lengths = [len(e.ids) - least for e in batch]
    tokens, asked = sum(lengths), sum(kind != PROMPT for e in batch for kind in e.kinds)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    width = config.num_attention_heads * _head_width(config)
    attention = 3 * 4 * width * pairs * config.num_hidden_layers
    products = least_weights(model, tokens, asked) if least else linear * tokens + head * asked
    return 6.0 * products + attention


def _head_width(config) -> int:
    """Return the width of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def least_weights(model: nn.Module, tokens: int, asked: int) -> float:
    """Count weights times tokens in a pass over `tokens` of which only `asked` predict something.

    All layers run on all tokens, with two exceptions that run only on the `asked`: the head, and
    the last block except for its keys and values (`last_block_at_places`).
    """
    config, (linear, head) = model.config, weights_of(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    keys_and_values = 2 * config.hidden_size * _head_width(config) * heads
    skipped = linear / config.num_hidden_layers - keys_and_values
    return linear * tokens - skipped * (tokens - asked) + head * asked


def weights_of(model: nn.Module) -> tuple[int, int]:
    """Count the weights that a token meets: of the blocks' linear layers, and of the head."""
    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel()
        for m in model.modules()
        if m is not head
        and m is not model.get_input_embeddings()
        and isinstance(getattr(m, "weight", None), torch.Tensor)
        and m.weight.dim() == 2
        and not isinstance(m, nn.Embedding)
    )
    return linear, head.weight.numel()


def training_gb(model: nn.Module) -> float:
    """Count the GB of float32 weights, gradients and the optimiser's two moments."""
    return 16 * sum(p.numel() for p in model.parameters()) / 1e9


def vocabulary_of(student: Student) -> int:
    """Count the rows of the head: the tokens that the student can choose from."""
    return student.model.get_output_embeddings().weight.shape[0]


def layer_rates(model: nn.Module, rows: list[int], tries: int = 5) -> pd.DataFrame:
    """Measure the GFLOP/s of the linear layers of the model's blocks, by the rows of their input.

    The layers run one after the other, so their weights come from memory, as in use. Columns: plain
    (torch's own, MKL), oneDNN (`onednn_linear`) and prepacked (`use_prepacked_linears`), the last
    two also as ratios to plain. Medians of interleaved calls; packing the weights is not counted.
    """
    layers = [m for block in blocks_of(model) for m in block.modules() if isinstance(m, nn.Linear)]
    sides = {
        "plain": layers,
        "oneDNN": [partial(onednn_linear, weight=m.weight, bias=m.bias) for m in layers],
        "prepacked": [PrepackedLinear(m) for m in layers],
    }
    rates = []

    def run_layers(products, inputs):
        for product, layer in zip(products, layers, strict=True):
            product(inputs[layer.in_features])

    with torch.no_grad():
        for n in rows:
            inputs = {m.in_features: torch.randn(n, m.in_features) for m in layers}
            gflop = 2e-9 * n * sum(m.weight.numel() for m in layers)
            calls = {
                side: partial(run_layers, products, inputs) for side, products in sides.items()
            }
            seconds = interleaved_medians(calls, tries)
            rates.append({"rows": n, **{side: gflop / s for side, s in seconds.items()}})
    table = pd.DataFrame(rates).set_index("rows")
    return table.assign(
        oneDNN_ratio=table["oneDNN"] / table["plain"],
        prepacked_ratio=table["prepacked"] / table["plain"],
    )


def training_rates(model: nn.Module, batch: list[Encoded], tries: int = 3) -> pd.DataFrame:
    """Measure the GFLOP/s of the products of a training step on a batch.

    Columns: plain (torch's own), ours, their ratio. Rows: forward, gradient of the input, gradient
    of the weight (of all linear layers of the blocks one after the other), logits and the gradient
    of their input. Medians of interleaved calls.
    """
    packed = pack_batch(batch)
    tokens, asked = packed["input_ids"].shape[1], len(packed["weights"])
    layers = [
        m.weight for block in blocks_of(model) for m in block.modules() if isinstance(m, nn.Linear)
    ]
    head = model.get_output_embeddings().weight
    into = {n: torch.randn(tokens, n) for n in {w.shape[1] for w in layers}}
    out = {n: torch.randn(tokens, n) for n in {w.shape[0] for w in layers}}
    hidden, logits = torch.randn(asked, head.shape[1]), torch.randn(asked, head.shape[0])
    body, top = 2e-9 * tokens * sum(w.numel() for w in layers), 2e-9 * asked * head.numel()
    works = {  # product -> (its GFLOP, torch's own, ours)
        "forward": (
            body,
            lambda: [into[w.shape[1]] @ w.t() for w in layers],
            lambda: [onednn_linear(into[w.shape[1]], w) for w in layers],
        ),
        "gradient of the input": (
            body,
            lambda: [out[w.shape[0]] @ w for w in layers],
            lambda: [onednn_linear(out[w.shape[0]], w.t()) for w in layers],
        ),
        "gradient of the weight": (
            body,
            lambda: [out[w.shape[0]].t() @ into[w.shape[1]] for w in layers],
            lambda: [weight_gradient(out[w.shape[0]], into[w.shape[1]]) for w in layers],
        ),
        "logits": (top, lambda: hidden @ head.t(), lambda: onednn_linear(hidden, head)),
        "gradient of the logits' input": (
            top,
            lambda: logits @ head,
            lambda: onednn_linear(logits, head.t()),
        ),
    }
    rates = []
    with torch.no_grad():
        for name, (gflop, plain, ours) in works.items():
            seconds = interleaved_medians({"plain": plain, "ours": ours}, tries)
            rates.append({"product": name, **{side: gflop / s for side, s in seconds.items()}})
    table = pd.DataFrame(rates).set_index("product")
    return table.assign(ratio=table["ours"] / table["plain"])


def product_rates(
    model: nn.Module, tokens: int, size: int = 2048, tries: int = 3
) -> dict[str, float]:
    """Measure the GFLOP/s of float32 matrix products, right now.

    "square", `square_rate`; "best", `best_rate`; and "own", the three products of every linear
    layer of the model (forward, gradient of the input, gradient of the weight) for `tokens` rows,
    as we train on them.
    """
    shapes = {}
    for m in model.modules():
        if isinstance(m, nn.Linear) and m is not model.get_output_embeddings():
            shapes[tuple(m.weight.shape)] = shapes.get(tuple(m.weight.shape), 0) + 1
    own, flops, tokens = [], 0.0, tokens + -tokens % ROW_MULTIPLE
    for (out, into), count in shapes.items():
        x, w, y = torch.randn(tokens, into), torch.randn(out, into), torch.randn(tokens, out)
        spent = [time_call(_training_products, x, w, y)[0] for _ in range(tries)]
        own.append(float(np.median(spent)) * count)
        flops += 6.0 * tokens * out * into * count
    return {
        "square": square_rate(size, tries),
        "best": best_rate(size, tries),
        "own": flops / sum(own) / 1e9 if own else float("nan"),
    }


def _training_products(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> None:
    """Compute a linear layer's forward product and its two gradients.

    x: inputs [rows, in]; weight [out, in]; y: gradients of the outputs [rows, out].
    """
    onednn_linear(x, weight)
    onednn_linear(y, weight.t())
    weight_gradient(y, x)
