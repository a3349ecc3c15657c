"""Micro-batches that are cut otherwise than by counting each row's tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tensordict import TensorDict

from verl_aiops.seam.engine import tensordict_utils as tu

__all__ = ["PLANNED", "cut_as_planned"]

PLANNED = "planned_micro_batches"


def cut_as_planned(prepare_micro_batches: Callable) -> Callable:
    """verl's ``prepare_micro_batches``, except that a batch which carries the positions of its micro-batches' rows
    (non-tensor entry `PLANNED`, a tuple of lists) is cut so. Its micro-batches carry the entry too."""

    @functools.wraps(prepare_micro_batches)
    def prepare(data: TensorDict, *args, **kwargs):
        planned = tu.get_non_tensor_data(data=data, key=PLANNED, default=None)
        if planned is None:
            return prepare_micro_batches(data, *args, **kwargs)
        rows = [list(part) for part in planned]
        return [tu.index_select_tensor_dict(data, part) for part in rows], rows

    return prepare
