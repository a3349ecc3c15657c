"""TransferQueue for steps that queue nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable

__all__ = ["clear_some"]


def clear_some(kv_clear: Callable) -> Callable:
    """`transfer_queue.kv_clear` that does nothing for an empty list of keys."""

    @functools.wraps(kv_clear)
    def clear(keys: list[str] | str, partition_id: str | None) -> None:
        if keys:
            kv_clear(keys=keys, partition_id=partition_id)

    return clear
