"""The order of rows in which those that begin alike stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["by_prefix"]


def by_prefix(rows: Sequence[np.ndarray]) -> tuple[list[int], list[int]]:
    """Rows in the order of their token ids.

    What two rows of that order have in common is the least that any two neighbours from one to the other have; so the
    second list alone says which tree the rows make.

    Args:
        rows: (length,) int64 ids, each row its own length.

    Returns:
        the positions of the rows, in order; and for each how many tokens it has in common with the one before it, 0
        for the first.
    """
    # big-endian, so that bytes are ordered as the ids are
    names = [row.astype(">i8").tobytes() for row in rows]
    order = sorted(range(len(rows)), key=names.__getitem__)
    return order, [0, *(_common(rows[one], rows[other]) for one, other in zip(order, order[1:]))][: len(rows)]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
