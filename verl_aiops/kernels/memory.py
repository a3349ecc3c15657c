"""How a training process keeps memory that it will want again in the next layer or step."""

from __future__ import annotations

import ctypes
import logging
import os

from verl.utils.device import get_device_name

from verl_aiops.seam.engine import set_expandable_segments

__all__ = ["keep_memory"]

logger = logging.getLogger(__name__)

# mallopt(3): parameters of glibc's malloc, and what they are set to
_MALLOC = {
    # M_MMAP_MAX: no block has a mapping of its own, which goes when it is freed
    -4: 0,
    # M_TRIM_THRESHOLD: up to 2 GiB at the end of the heap are not handed back
    -1: 2**31 - 1,
    # M_ARENA_MAX: threads share the heap, since those of their own cannot hold large blocks
    -8: 1,
}


def keep_memory() -> None:
    """For a process that does nothing but train. What the user has set of the environment variables stands.

    On a CPU, glibc hands each large block back when it is freed, and the system must give the next one page by page,
    zeroed. `benchmarks/bench_cpu.py` shows what that costs.

    On a GPU, batches of many lengths leave gaps in what PyTorch has reserved, until one that would fit does not;
    segments that can grow have none. verl itself sets that where a GPU also serves rollouts, between those.
    """
    device = get_device_name()
    if device == "cuda" and not (os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF")):
        set_expandable_segments(True)
    if device == "cpu" and not _user_told_malloc():
        _tell_malloc()


def _user_told_malloc() -> bool:
    return bool(
        os.environ.get("GLIBC_TUNABLES")
        or os.environ.get("MALLOC_ARENA_MAX")
        or os.environ.get("MALLOC_MMAP_MAX_")
        or os.environ.get("MALLOC_TRIM_THRESHOLD_")
    )


def _tell_malloc() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        logger.info("no glibc here: freed memory goes back to the system")
        return
    refused = [parameter for parameter, value in _MALLOC.items() if not mallopt(parameter, value)]
    if refused:
        logger.info("glibc did not take mallopt parameters %s", refused)
