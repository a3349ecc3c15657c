"""Micro-batches of rows that share what they begin with, under a budget of the tokens that the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["MicroBatches", "cut"]


@dataclass(frozen=True)
class MicroBatches:
    """``rows``: positions of each micro-batch's rows; ``seen``: tokens that the model sees in all of them together, a
    beginning that rows share once; ``tokens``: tokens of all rows; ``torn``: micro-batches that begin with a prompt of
    the one before."""

    rows: list[list[int]]
    seen: int
    tokens: int
    torn: int


def cut(
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    *,
    most_tokens: int | None = None,
    most_rows: int | None = None,
    at_least: int = 1,
) -> MicroBatches:
    """Cut rows into micro-batches that tear as few prompts as the limits allow.

    In the order of their tokens rows that share most stand side by side, and a stretch of that order costs the model
    its rows' tokens less what each shares with the one before: so stretches are what is cut. A micro-batch ends before
    a prompt whose rows no longer fit, if they fit into one of their own.

    Args:
        prompts, answers: ids of each row.
        most_tokens: that the model sees in a micro-batch; a row longer than that has one of its own.
        most_rows: in a micro-batch.
        at_least: micro-batches, no more than there are rows; workers of one sharded model all need the same number.
    """
    rows = [np.concatenate(row) for row in zip(prompts, answers, strict=True)]
    # big-endian, so that bytes are ordered as the ids are
    order = sorted(range(len(rows)), key=lambda at: rows[at].astype(">i8").tobytes())
    shared = [0] + [_common(rows[a], rows[b]) for a, b in zip(order, order[1:])]
    groups = _stretches([prompts[at].tobytes() for at in order])

    fresh = np.cumsum([0] + [len(rows[at]) - common for at, common in zip(order, shared)])

    def cost(first: int, last: int) -> int:
        """Tokens seen of a stretch of the order, whose first row shares nothing with the one before."""
        return int(fresh[last] - fresh[first]) + shared[first]

    def fits(first: int, last: int) -> bool:
        return (most_rows is None or last - first <= most_rows) and (
            most_tokens is None or cost(first, last) <= most_tokens
        )

    borders = [0]
    for first, last in groups:
        if fits(borders[-1], last):
            continue
        if first > borders[-1]:
            borders.append(first)
        for at in range(max(first, borders[-1]) + 1, last):
            if not fits(borders[-1], at + 1):
                borders.append(at)
    borders.append(len(order))
    while len(borders) - 1 < at_least:
        borders = _one_more(borders, {first for first, _ in groups}, cost)
    stretches = list(zip(borders, borders[1:]))
    starts = {first for first, _ in groups}
    return MicroBatches(
        rows=[[order[at] for at in range(*stretch)] for stretch in stretches],
        seen=sum(cost(*stretch) for stretch in stretches),
        tokens=sum(map(len, rows)),
        torn=sum(first not in starts for first, _ in stretches),
    )


def _one_more(borders: list[int], starts: set[int], cost) -> list[int]:
    """The most expensive stretch that can be is cut in two, between prompts where it holds several."""
    stretches = [(first, last) for first, last in zip(borders, borders[1:]) if last - first > 1]
    first, last = max(stretches, key=lambda stretch: cost(*stretch))
    between = [at for at in range(first + 1, last) if at in starts] or list(range(first + 1, last))
    middle = min(between, key=lambda at: abs(2 * cost(first, at) - cost(first, last)))
    return sorted([*borders, middle])


def _stretches(names: list[bytes]) -> list[tuple[int, int]]:
    """Where runs of equal names begin and end."""
    starts = [at for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
    return list(zip(starts, [*starts[1:], len(names)]))


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
