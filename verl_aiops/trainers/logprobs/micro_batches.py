"""Micro-batches of rows that share what they begin with, under a budget of the tokens that the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_aiops.trainers.logprobs.prefixes import by_prefix

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
    unit: int = 1,
    shares: bool = True,
) -> MicroBatches:
    """Cut rows into micro-batches that tear as few prompts as the limits allow.

    In the order of their tokens units that share most stand side by side, and stretches of that order are what is cut.
    A micro-batch ends before a prompt whose units no longer fit, if they fit into one of their own.

    Args:
        prompts, answers: ids of each row.
        most_tokens: that the model sees in a micro-batch; a unit longer than that has one of its own.
        most_rows: in a micro-batch.
        at_least: micro-batches, no more than there are units; workers of one sharded model all need the same number.
        unit: rows side by side that never part: 1, or those of an example of preference learning. Its prompt is the
            first row's.
        shares: whether the model sees what rows begin with in common once; else it does so with equal rows alone.
    """
    rows = [np.concatenate(row) for row in zip(prompts, answers, strict=True)]
    seen_of = _Seen(rows, unit, shares)
    names = [prompt.tobytes() for prompt in prompts[::unit]]
    earliest: dict[bytes, int] = {}
    for name, places in zip(names, seen_of.places):
        earliest[name] = min(earliest.get(name, len(rows)), int(places.min()))
    order = sorted(range(len(names)), key=lambda at: (earliest[names[at]], int(seen_of.places[at].min())))
    groups = _stretches([names[at] for at in order])

    def cost(first: int, last: int) -> int:
        """Tokens seen of a stretch of the order."""
        return seen_of.units(order[first:last])

    def fits(first: int, last: int) -> bool:
        return (most_rows is None or (last - first) * unit <= most_rows) and (
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
        rows=[[order[at] * unit + row for at in range(*stretch) for row in range(unit)] for stretch in stretches],
        seen=sum(cost(*stretch) for stretch in stretches),
        tokens=sum(map(len, rows)),
        torn=sum(first not in starts for first, _ in stretches),
    )


class _Seen:
    """How many tokens the model sees of any units together.

    Rows in the order of their tokens are the leaves of a tree from left to right: a row adds what it does not share
    with the one before it, and where others stand between the two, that is the least that neighbours share.
    """

    def __init__(self, rows: list[np.ndarray], unit: int, shares: bool):
        order, common = by_prefix(rows)
        self._lengths = np.array([len(rows[at]) for at in order])
        # of each with the one after it
        self._shared = np.append(common[1:], 0)
        if not shares:
            equal = (self._shared == self._lengths) & (self._shared == np.append(self._lengths[1:], 0))
            self._shared *= equal
        places = np.empty(len(rows), dtype=np.int64)
        places[order] = np.arange(len(rows))
        # (units, unit): where each row stands in that order
        self.places = places.reshape(-1, unit)

    def units(self, units: list[int]) -> int:
        """Tokens seen of these units together."""
        places = np.sort(self.places[units], axis=None)
        return int(self._lengths[places].sum() - np.minimum.reduceat(self._shared, places)[:-1].sum())


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
