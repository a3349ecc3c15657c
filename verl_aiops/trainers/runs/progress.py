"""Lines on the screen while a large folder is being written."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from verl_aiops.files import size_text

__all__ = ["told_while_written"]

EVERY_S = 10.0


@contextmanager
def told_while_written(folder: Path, what: str, expected: int | None, every: float | None = None) -> Iterator[None]:
    """Say every so many seconds how much of a folder is there, and at the end what was written in which time.

    Args:
        what: is written, in a word.
        expected: bytes; None where nobody knows.
        every: seconds between two lines. A folder that is there sooner is not spoken of.
    """
    every = EVERY_S if every is None else every
    began, done = time.perf_counter(), threading.Event()
    of = f" of {size_text(expected)}" if expected else ""

    def tell() -> None:
        while not done.wait(every):
            seconds = time.perf_counter() - began
            print(f"verl-aiops: {what}: {size_text(_bytes_in(folder))}{of} written, {seconds:.0f} s", flush=True)

    teller = threading.Thread(target=tell, name="export-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    if (seconds := time.perf_counter() - began) >= every:
        print(f"verl-aiops: {what}: {size_text(_bytes_in(folder))} written in {seconds:.0f} s", flush=True)


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a temporary file that has its name by now
                total += os.lstat(os.path.join(root, name)).st_size
    return total
