"""Checks of the tensors that the losses are given, alike for pairs, single answers and lists."""

from collections.abc import Sequence

import torch
from torch import Tensor

from verl_aiops.losses.sums import require_full_precision

__all__ = ["check_logps", "constant"]


def check_logps(*axes: str, **logps: Tensor | None) -> None:
    """Refuse log-probs of half types (TypeError), or of other than one shape with these axes (ValueError)."""
    given = {name: tensor for name, tensor in logps.items() if tensor is not None}
    for name, tensor in given.items():
        require_full_precision(name, tensor)
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != len(axes) for shape in shapes.values()):
        wanted = ", ".join(axes) + "," * (len(axes) == 1)
        raise ValueError(f"log-probs must all have the same shape ({wanted}), got {shapes}")


def constant(
    name: str, values: Tensor | Sequence[float] | float | None, like: Tensor, *, single: bool = False
) -> Tensor | None:
    """``values`` as a tensor without gradient of the type, device and shape of ``like``; ``single``: or one number."""
    if values is None:
        return None
    tensor = torch.as_tensor(values, dtype=like.dtype, device=like.device).detach()
    if tensor.shape != like.shape and not (single and not tensor.dim()):
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
    return tensor
