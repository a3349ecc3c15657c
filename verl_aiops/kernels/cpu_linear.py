"""Linear layers in float32 by oneDNN on CPUs where PyTorch's MKL leaves half of the processor unused.

PyTorch multiplies float32 matrices with MKL, which keeps off AVX-512 on processors that are not Intel's; oneDNN, which
PyTorch brings along too, does not. Both compute in IEEE float32 and differ by round-off. What it is worth:
`benchmarks/bench_cpu.py`.
"""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

__all__ = ["LEAST_WORK", "onednn_is_faster", "use_onednn"]

logger = logging.getLogger(__name__)

# multiply-adds of a product from which on oneDNN is faster: its call takes longer
LEAST_WORK = 1 << 22


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this processor is one on which MKL leaves AVX-512 unused, and PyTorch has both libraries."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not _is_intel()
        and _computes_the_same()
    )


def _is_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        with cpuinfo.open() as lines:
            named = next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        named = platform.processor()
    return "GenuineIntel" in named


def _computes_the_same() -> bool:
    """A few numbers through both, forward and backward: the operator is PyTorch's own but not documented."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 12, generator=generator, requires_grad=True) for rows in (5, 7))
    results = []
    try:
        for product in (functional.linear, _Linear.apply):
            output = product(hidden, weight)
            results.append([output, *torch.autograd.grad(output.square().sum(), (hidden, weight))])
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results))
    except Exception as error:
        logger.info("linear layers stay PyTorch's: %s: %s", type(error).__name__, error)
        return False


def use_onednn(model: nn.Module) -> int:
    """Let a model's linear layers on the CPU compute with oneDNN, in place; weights and their names stay as they are.

    What is not float32, has left the CPU, runs under autocast or is too small to gain goes the usual way, call by call.

    Returns:
        number of layers that do so; 0 where `onednn_is_faster` says no.
    """
    if not onednn_is_faster():
        return 0
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.is_cpu and "forward" not in vars(m)]
    for layer in layers:
        layer.forward = functools.partial(_forward, layer, layer.forward)
    return len(layers)


def _forward(layer: nn.Linear, usual: Callable, hidden: torch.Tensor) -> torch.Tensor:
    weight = layer.weight
    if (
        hidden.device.type == weight.device.type == "cpu"
        and hidden.dim() > 1
        and hidden.dtype == weight.dtype == torch.float32
        and hidden.numel() * weight.shape[0] >= LEAST_WORK
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        output = _Linear.apply(hidden, weight)
        return output if layer.bias is None else output + layer.bias
    return usual(hidden)


def _times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right.T; either may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


class _Linear(torch.autograd.Function):
    """hidden (..., in) times weight (out, in), transposed."""

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        of_hidden, of_weight = ctx.needs_input_grad
        ctx.save_for_backward(hidden if of_weight else None, weight if of_hidden else None)
        return _times(hidden, weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        hidden, weight = ctx.saved_tensors
        of_hidden = None if weight is None else _times(gradient, weight.t())
        of_weight = None if hidden is None else _times(gradient.flatten(0, -2).t(), hidden.flatten(0, -2).t())
        return of_hidden, of_weight
