"""Multiply by oneDNN: prepacked weights for inference, trainable linears for training."""

import torch

from cotdistill.kernels.blocks import replace_forward

# Bytes of weights laid out a second time; a larger student goes without: a laptop must hold both
PREPACK_LIMIT = 2 * 1024**3


class PrepackedLinear:
    """Hold a linear layer's weights in the order in which oneDNN's kernels read them.

    This "prepacking", which torch.compile does to a frozen model, is done once: 1.2 times the speed
    of a plain product at 400 rows, twice at 8 to 64 (float32, measured on AVX-512; plain BLAS reads
    all weights again for every few rows).

    For weights that stay as they are: where they are trained, or torch was built without oneDNN,
    the call is the layer's own. Weights that were changed in place since are laid out again.
    """

    def __init__(self, layer: torch.nn.Linear):
        self.layer, self.version, self.packs = layer, None, {}

    def weight(self, transposed: bool = False) -> torch.Tensor:
        """Return the weights as laid out for oneDNN.

        [out, in] for the product itself; transposed, [in, out], for the gradient of its input.
        """
        own = self.layer.weight.detach()
        if self.version != own._version:
            self.version, self.packs = own._version, {}
        if transposed not in self.packs:
            self.packs[transposed] = torch.ops.mkldnn._reorder_linear_weight(
                own.t() if transposed else own, 64
            )
        return self.packs[transposed]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        learns = torch.is_grad_enabled()
        if learns and self.layer.weight.requires_grad or not _can_use_onednn(x, self.layer.weight):
            return torch.nn.functional.linear(x, self.layer.weight, self.layer.bias)
        return (
            _InputGradient.apply(x, self)
            if learns and x.requires_grad
            else onednn_linear(x, self.weight(), self.layer.bias)
        )


def _can_use_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Say whether oneDNN can take a product: float32 on a CPU, in a torch built with it."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
    )


def onednn_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply x [..., in] with weight [out, in] transposed and add bias [out], by oneDNN.

    Torch's `linear` takes the BLAS that torch was built with. Measured in float32 on AVX-512
    against MKL at the students' shapes, 300 to 1100 rows: 1.1 to 1.3 times as fast, for logits over
    a vocabulary 1.2 to 1.9 times (`benchmark`). Above 512 rows oneDNN wants them in fours, hence
    `encode.ROW_MULTIPLE`. Where oneDNN can't run, this is `linear`.
    """
    if not _can_use_onednn(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _InputGradient(torch.autograd.Function):
    """Make a `PrepackedLinear` layer's product differentiable in its input."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return onednn_linear(x, layer.weight(), layer.layer.bias)

    @staticmethod
    def backward(ctx, gradient):
        return onednn_linear(gradient, ctx.layer.weight(transposed=True)), None


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Multiply gradient [n, out] transposed with x [n, in], a sum over the n rows: [out, in].

    Torch's own product (MKL) is the faster one here, except for weights at least twice as wide as
    high: keys and values of grouped heads, and an MLP's way back.
    """
    return (
        onednn_linear(gradient.t(), x.t())
        if x.shape[1] >= 2 * gradient.shape[1]
        else gradient.t() @ x
    )


class LinearFunction(torch.autograd.Function):
    """Make `onednn_linear` differentiable in input, weight and bias: linear layers train on it."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            onednn_linear(gradient, weight.t()) if for_x else None,
            weight_gradient(rows, x.flatten(0, -2)) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _linear_layers(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """List the linear layers of a float32 model on a CPU; elsewhere none."""
    return [
        m
        for m in model.modules()
        if type(m) is torch.nn.Linear
        and m.weight.dtype == torch.float32
        and m.weight.device.type == "cpu"
    ]


def use_trainable_onednn_linears(model: torch.nn.Module):
    """Train the linear layers of a float32 model on a CPU through `LinearFunction`, while open.

    A context manager.
    """

    def through(layer):
        return lambda x: LinearFunction.apply(x, layer.weight, layer.bias)

    return replace_forward({layer: through(layer) for layer in _linear_layers(model)})


def use_prepacked_linears(model: torch.nn.Module):
    """Run the linear layers of a float32 model on a CPU as `PrepackedLinear`, while open.

    For passes that don't train the model: scoring, generation, attribution, the outputs of frozen
    blocks. It takes the memory of the weights once more (twice with gradients) until it closes. A
    context manager.

    On another device, in another dtype, and where the weights take more than PREPACK_LIMIT bytes,
    nothing changes.
    """
    layers = [
        m for m in _linear_layers(model) if not isinstance(vars(m).get("forward"), PrepackedLinear)
    ]
    fits = sum(m.weight.nbytes for m in layers) <= PREPACK_LIMIT
    return replace_forward({layer: PrepackedLinear(layer) for layer in layers if fits})
