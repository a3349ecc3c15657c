"""What verl 0.9.1 has and builds of verl that split off before it have not."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["detach_tree"]


def detach_tree(reported: Any) -> Any:
    """What a micro-batch reports, without the autograd graph, which would live as long as the report.

    Args:
        reported: tensors in dicts, lists and tuples of any depth; whatever else there is stays as it is.
    """
    if isinstance(reported, torch.Tensor):
        return reported.detach()
    if isinstance(reported, dict):
        return {name: detach_tree(value) for name, value in reported.items()}
    if isinstance(reported, list | tuple):
        return type(reported)(map(detach_tree, reported))
    return reported
