"""Which accelerators this machine has, without the seconds that importing PyTorch takes."""

from __future__ import annotations

import os
import re

__all__ = ["accelerators"]

# the devices that a driver makes: one a GPU of NVIDIA's and an NPU of Ascend's; those of WSL and ROCm are not counted
_EACH = re.compile(r"nvidia\d+|davinci\d+")
_ANY = ("dxg", "kfd")


def accelerators(devices: str = "/dev") -> int:
    """How many there are for this process; where a driver does not say, 1 for any."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return 0 if shown.strip() in ("", "-1") else len(shown.split(","))
    try:
        names = os.listdir(devices)
    except OSError:
        return 0
    return sum(bool(_EACH.fullmatch(name)) for name in names) or int(any(name in _ANY for name in names))
