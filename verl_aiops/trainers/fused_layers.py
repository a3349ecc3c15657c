"""A model's norms and rotary embeddings in fewer kernels, with the same result to round-off.

As transformers writes them an RMSNorm is 8 kernels forward and 12 backward, a rotary embedding 10 and 22. Models of a
billion parameters and less spend more time on launching those than the GPU does on computing them. Here a norm is
PyTorch's own fused one, a kernel each way, and a rotary embedding 6 each way.

transformers' functions are replaced in its modules and objects, as it has no registry for them. Each is tried on a few
numbers first and stays as it is if the result is another.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch.nn import functional

__all__ = ["fuse_layers", "layer_kernels"]

_ROTARY = "apply_rotary_pos_emb"


def layer_kernels(device: str, *, use_liger: bool, use_torch_compile: bool) -> str:
    """Who decides on the kernels of a model's layers: ``liger``, ``compiler``, ``fused`` (`fuse_layers`) or ``plain``.
    In half precision each rounds in its own way."""
    if use_liger:
        return "liger"
    if use_torch_compile:
        return "compiler"
    return "fused" if device == "cuda" else "plain"


def fuse_layers(model: torch.nn.Module) -> dict[str, int]:
    """Replace what can be, in place, and the rotary embedding for all models of its kind in this process.

    Args:
        model: a transformers model, before FSDP wraps it.

    Returns:
        number of modules that compute in fewer kernels, by the names of what they computed before.
    """
    done: dict[str, int] = {}
    for module in model.modules():
        if _is_plain_rms_norm(module):
            module.forward = functools.partial(_rms_norm, module, module.forward)
            done[type(module).__name__] = done.get(type(module).__name__, 0) + 1
    for name in sorted({type(module).__module__ for module in model.modules()}):
        source = sys.modules[name]
        rotary = getattr(source, _ROTARY, None)
        if rotary is not None and not isinstance(rotary, _Rotary) and _is_plain_rotary(rotary):
            rotary = _Rotary(rotary)
            setattr(source, _ROTARY, rotary)
        if isinstance(rotary, _Rotary):
            done[f"{name.rsplit('.', 1)[-1]}.{_ROTARY}"] = 1
    return done


# --- norms ------------------------------------------------------------------------------------------------------------


def _is_plain_rms_norm(module: torch.nn.Module) -> bool:
    """Whether it is Zhang and Sennrich's norm (arXiv 1910.07467, equation 4) with `eps` inside of the root: some
    models have others under that name, Gemma's with weights around 0 for example."""
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and "forward" not in vars(module) and _norms_alike(type(module), module.variance_epsilon)


@functools.cache
def _norms_alike(kind: type[torch.nn.Module], eps: float) -> bool:
    with torch.device("cpu"), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        try:
            norm = kind(8, eps=eps)
        except TypeError:
            return False
        norm.weight.copy_(torch.randn(8, generator=generator))
        # so small that eps counts
        hidden = torch.randn(4, 8, generator=generator) * eps**0.5
        return torch.allclose(norm(hidden), functional.rms_norm(hidden, (8,), norm.weight, eps), rtol=1e-5, atol=1e-6)


def _rms_norm(module: torch.nn.Module, unfused: Callable, hidden: torch.Tensor) -> torch.Tensor:
    if hidden.dtype != module.weight.dtype:
        return unfused(hidden)
    # autocast would make float32 of the input, and of the output
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


# --- rotary embeddings ------------------------------------------------------------------------------------------------


class _Rotary:
    """transformers' ``apply_rotary_pos_emb``."""

    def __init__(self, unfused: Callable):
        self.unfused = unfused

    def __call__(self, q, k, cos, sin, unsqueeze_dim: int = 1, **others):
        same_type = q.dtype == k.dtype == cos.dtype == sin.dtype
        if others or not same_type or cos.requires_grad or not q.shape[-1] == k.shape[-1] == cos.shape[-1]:
            return self.unfused(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim, **others)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _Rotate.apply(q, k, cos, sin)


def _is_plain_rotary(rotary: Callable) -> bool:
    """Whether it turns the first half of a head's numbers against the second half (RoFormer, arXiv 2104.09864, equation
    34, in GPT-NeoX's order): some models pair neighbours."""
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(1, heads, 3, 8, generator=generator) for heads in (2, 1))
        angles = torch.rand(1, 3, 4, generator=generator).repeat(1, 1, 2)
        try:
            theirs = rotary(q, k, angles.cos(), angles.sin())
        except TypeError:
            return False
        ours = _Rotary(rotary)(q, k, angles.cos(), angles.sin())
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(theirs, ours, strict=True))


class _Rotate(torch.autograd.Function):
    """``x * cos + cat(-x2, x1) * sin`` for the halves x1 and x2 of the last dimension of x, for two x."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
        ctx.save_for_backward(cos, sin)
        sin_first, sin_second = sin.chunk(2, dim=-1)
        return tuple(_turned(x, cos, -1, sin_first, 1, sin_second) for x in (q, k))

    @staticmethod
    def backward(ctx, of_q: torch.Tensor, of_k: torch.Tensor):
        cos, sin = ctx.saved_tensors
        sin_first, sin_second = sin.chunk(2, dim=-1)
        return *(_turned(gradient, cos, 1, sin_second, -1, sin_first) for gradient in (of_q, of_k)), None, None


def _turned(x, cos, sign_first: int, sin_first, sign_second: int, sin_second) -> torch.Tensor:
    """x1 * cos1 + sign_first * x2 * sin_first, and x2 * cos2 + sign_second * x1 * sin_second"""
    first, second = x.chunk(2, dim=-1)
    turned = x * cos
    turned_first, turned_second = turned.chunk(2, dim=-1)
    turned_first.addcmul_(second, sin_first, value=sign_first)
    turned_second.addcmul_(first, sin_second, value=sign_second)
    return turned
