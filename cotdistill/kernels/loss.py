"""Apply the head and its cross-entropy at supervised positions, a slice at a time."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cotdistill.kernels.linear import onednn_linear
from cotdistill.kernels.mixed import product_dtype
from cotdistill.processes import rank_and_world_size


def supervised_inputs(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Return what a loss needs of a batch: S positions, S tokens, and a model's arguments.

    The positions are those that predict a supervised token.
    """
    labels = batch["labels"][0]
    places = (labels != -100).nonzero().squeeze(1)
    named = {
        key: batch[key]
        for key in ("input_ids", "position_ids", "cu_seq_lens_q", "trunk")
        if key in batch
    }
    return places, labels[places], named | {"use_cache": False, "places": places}


def token_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross-entropy in nats of every supervised token, [S].

    In float32, of a float64 model in float64. The head is applied at the S positions that predict
    these tokens.
    """
    places, wanted, named = supervised_inputs(batch)
    logits = model(**named, logits_to_keep=places).logits[0]
    return cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, reduction="none"
    )


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool = False) -> None:
    """Add the product a @ b to a float32 total in place; first: the total holds nothing yet."""
    if a.dtype != total.dtype:
        product = a @ b
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(a, b, out=total)
    else:
        total.addmm_(a, b)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Apply the head and its cross-entropy a slice of positions at a time, with gradients.

    The logits of a slice become their own gradient in place, so that two of them never exist, let
    alone those of all positions (gemma: a megabyte each). Against torch's own
    `linear_cross_entropy`: 1.9 to 2.3 times as fast, at equal results. Under autocast the products
    are its dtype's; logits, softmax, loss and gradients stay float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, share, limit):
        """Return (sum of share * loss, losses [S] in nats).

        hidden [S, D], weight [V, D], targets [S], share [S]; limit: bytes of logits in a slice.
        """
        for_hidden, for_weight = (
            torch.empty_like(x) if need else None
            for x, need in zip((hidden, weight), ctx.needs_input_grad, strict=False)
        )
        low = product_dtype(hidden)
        head, multiply = weight.to(low), lambda a, b: onednn_linear(a.to(low), b).float()
        size, slices = len(hidden), -(-4 * hidden.shape[0] * weight.shape[0] // limit)
        n = -(-size // min(size, slices))  # positions in a slice: slices of about one length
        losses = hidden.new_empty(size)
        for a in range(0, size, n):
            part = slice(a, a + n)
            x, asked = hidden[part], (torch.arange(len(targets[part])), targets[part])
            logits = multiply(x, head)
            top, hit = logits.amax(1), logits[asked]
            # log_softmax loses 1e-5 of gemma's loss here, in float32
            total = logits.sub_(top[:, None]).exp_().sum(1)
            losses[part] = total.log() + top - hit
            logits[asked] -= total
            scale = (share[part] / total)[:, None]
            if for_hidden is not None:
                for_hidden[part] = multiply(logits, head.t()).mul_(scale)
            if for_weight is not None:
                add_product(for_weight, logits.t().to(low), (x * scale).to(low), first=not a)
            del logits  # before the next slice's are made
        ctx.gradients, ctx.weight = (for_hidden, for_weight), weight
        ctx.mark_non_differentiable(losses)
        return (losses * share).sum(), losses

    @staticmethod
    def backward(ctx, outer, _):
        (for_hidden, for_weight), weight = (
            (g if g is None or outer == 1 else g.mul_(outer) for g in ctx.gradients),
            ctx.weight,
        )
        del ctx.gradients, ctx.weight
        # Put where it belongs: autograd would copy it to add a tied embedding's rows
        if for_weight is not None and weight.is_leaf:
            weight.grad, for_weight = (
                for_weight if weight.grad is None else weight.grad.add_(for_weight),
                None,
            )
        return for_hidden, for_weight, None, None, None


def weighted_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], share: torch.Tensor, limit: int = 2**27
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what training minimises, and the cross-entropies [S] in nats.

    Training minimises the sum over supervised tokens of share [S] times cross-entropy. On a CPU it
    goes through `ChunkedLinearCrossEntropy`, with slices of at most `limit` bytes of logits; a GPU,
    a torchrun and a head with a bias or a cap take the plain way. Both are the same function, up to
    rounding.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if (
        head is None
        or head.bias is not None
        or getattr(model.config, "final_logit_softcapping", None)
        or head.weight.dtype != torch.float32
        or head.weight.device.type != "cpu"
    ):
        losses = token_losses(model, batch)
        return (losses * share).sum(), losses.detach()
    places, wanted, named = supervised_inputs(batch)
    hidden = model.base_model(**named).last_hidden_state[0]
    return ChunkedLinearCrossEntropy.apply(hidden[places], head.weight, wanted, share, limit)


@contextmanager
def sparse_embedding(model: nn.Module):
    """Keep only the batch's rows of the embeddings' gradient, while open.

    It is added to the dense gradient of a tied head anyway: for gemma a matrix of 671 MB less to
    fill and add. On a CPU, in one process (processes can't average such gradients).
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    fits = (
        head.weight is embedding.weight
        and embedding.weight.requires_grad
        and model.device.type == "cpu"
        and rank_and_world_size()[1] == 1
    )
    before, embedding.sparse = embedding.sparse, fits
    try:
        yield
    finally:
        embedding.sparse = before
