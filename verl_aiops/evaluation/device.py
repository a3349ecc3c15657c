"""Where a local model is computed, and in which numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["device_and_dtype", "pick_device"]


def pick_device() -> str:
    """The GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_and_dtype(asked: str) -> tuple[str, torch.dtype]:
    """`pick_device`, and the dtype of the weights there: ``auto`` is float32 on CPU and bfloat16 on a GPU."""
    import torch

    device = pick_device()
    return device, getattr(torch, {"auto": "float32" if device == "cpu" else "bfloat16"}.get(asked, asked))
