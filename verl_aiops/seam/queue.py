"""TransferQueue, in which verl's rollouts lie as rows under keys. verl's branch `neo` has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

NEEDS = (
    Need("transfer_queue", "KVBatchMeta", "the keys of a step's rows", takes="keys tags partition_id"),
    Need("transfer_queue", "kv_batch_get", "columns of rows", takes="keys partition_id select_fields"),
    Need("transfer_queue", "kv_batch_put", "columns added to rows", takes="keys partition_id fields"),
    Need("transfer_queue", "kv_clear", "rows that are left out go", takes="keys partition_id"),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
