"""Multiply in bfloat16 while training, where the hardware is made for it; all else in float32.

Mixed precision as Micikevicius et al. 2018 (arXiv 1710.03740) describe it, with bfloat16, which
needs no scaling of the loss: weights, gradients, moments, norms, softmax and loss are float32.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 faster than float32.

    By its instructions: a CPU with avx512_bf16 or AMX, a GPU that has it. Others emulate it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def choose_precision(wanted: str, device: torch.device, weights: torch.dtype) -> str:
    """Return the precision of a training's products: "float32" or "bfloat16".

    wanted: a study's `precision`; "auto" is bfloat16 where float32 weights meet hardware that
    multiplies it faster (`multiplies_bfloat16`). Another value comes back as it is: it is checked
    where hyperparameters are.
    """
    if wanted != "auto":
        return wanted
    fits = weights == torch.float32 and multiplies_bfloat16(device)
    return "bfloat16" if fits else "float32"


def use_precision(precision: str, device: torch.device) -> AbstractContextManager:
    """Multiply in this precision while open: torch's autocast for bfloat16, else nothing."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a product of x runs here and now: autocast's, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
