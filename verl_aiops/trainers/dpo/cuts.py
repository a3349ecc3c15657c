"""How the rows of a batch of examples are cut into micro-batches, planned where the batch is made.

The trainer makes a batch while the workers compute the one before, so that planning costs them nothing; and it sees all
workers' parts, which must have equally many micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from verl_aiops.trainers.dpo.examples import Row
from verl_aiops.trainers.logprobs.micro_batches import MicroBatches, cut

__all__ = ["Cuts", "cut_rows", "parts_of"]


@dataclass(frozen=True)
class Cuts:
    """Micro-batches of all ranks and mini-batches.

    Attributes:
        number: (rows,) that of the row's micro-batch within its rank's part of its mini-batch.
        together: (rows,) the same for rows of one micro-batch and for no others.
        planned: whether the workers must be told; where they need not, verl's cut in the order of the rows is this one.
        seen_ratio: tokens that the model sees, over the tokens of all rows.
        torn: how often a prompt is in one micro-batch more.
    """

    number: np.ndarray
    together: np.ndarray
    planned: bool
    seen_ratio: float
    torn: int


def parts_of(examples: int, mini_examples: int, ranks: int) -> np.ndarray:
    """(mini-batches, ranks, examples of a part): positions of examples that are arranged for the ranks."""
    share = mini_examples // ranks
    return np.arange(examples).reshape(ranks, -1, share).transpose(1, 0, 2)


def cut_rows(
    rows: Sequence[Row],
    *,
    size: int,
    mini_examples: int,
    ranks: int,
    shares: bool,
    settings: Mapping[str, Any],
    idle: bool,
) -> Cuts:
    """Plan the micro-batches of rows that are arranged for the ranks.

    Under a budget of tokens a prompt's examples are together as far as it holds them, and tokens are those that the
    model sees. With a number of examples as the size, prompts are torn where more micro-batches would be needed not to.

    Args:
        rows: ``size`` of them for each example.
        mini_examples: examples of a mini-batch, all ranks together.
        shares: whether the backend computes what rows begin with in common once; else equal rows alone.
        settings: as `batch.AnswerBatch.to_tensordict` takes them. Without any, each example is counted by itself.
        idle: whether the engine leaves some rows out of its updates, for which it wants a plan in any case.
    """
    dynamic = settings.get("use_dynamic_bsz")
    micro = settings.get("micro_batch_size_per_gpu")
    repeat = len({row.key for row in rows}) < len({(row.key, at // size) for at, row in enumerate(rows)})
    number = np.empty(len(rows), dtype=np.int64)
    together = np.empty(len(rows), dtype=np.int64)
    tokens, seen, torn = sum(len(row.prompt) + len(row.answer) for row in rows), 0, 0
    numbers = count()
    for parts in parts_of(len(rows) // size, mini_examples, ranks):
        of_parts = [(part[:, None] * size + np.arange(size)).reshape(-1) for part in parts]
        chosen = [[rows[at] for at in places] for places in of_parts]
        if dynamic:
            cuts = _under_budget(chosen, size, shares, settings["max_token_len_per_gpu"] * settings.get("sp_size", 1))
        elif micro and repeat:
            cuts = _by_number(chosen, size, shares, micro)
        else:
            cuts = [list(_in_order(len(places), (micro or 1) * size)) for places in of_parts]
        for places, part, found in zip(of_parts, chosen, cuts, strict=True):
            for which, micro_batch in enumerate(found):
                number[places[micro_batch]], together[places[micro_batch]] = which, next(numbers)
                seen += _cut([part[at] for at in micro_batch], size, shares).seen
    keys = [row.key for row in rows]
    torn = len(set(zip(together.tolist(), keys))) - len(set(keys))
    several = micro is not None and micro != mini_examples // ranks
    return Cuts(number, together, bool(dynamic or (repeat and several) or idle), seen / tokens, torn)


def _cut(rows: Sequence[Row], size: int, shares: bool, **limits: int) -> MicroBatches:
    prompts, answers = [row.prompt.numpy() for row in rows], [row.answer.numpy() for row in rows]
    return cut(prompts, answers, unit=size, shares=shares, **limits)


def _under_budget(parts: list[list[Row]], size: int, shares: bool, most_tokens: int) -> list[list[list[int]]]:
    found = [_cut(part, size, shares, most_tokens=most_tokens) for part in parts]
    # workers of one sharded model go through it equally often
    most = max(len(plan.rows) for plan in found)
    return [
        plan.rows if len(plan.rows) == most else _cut(part, size, shares, most_tokens=most_tokens, at_least=most).rows
        for part, plan in zip(parts, found, strict=True)
    ]


def _by_number(parts: list[list[Row]], size: int, shares: bool, micro: int) -> list[list[list[int]]]:
    found = [_cut(part, size, shares, most_rows=micro * size).rows for part in parts]
    least = -(-len(parts[0]) // (micro * size))
    if all(len(plan) == least for plan in found):
        return found
    # side by side all the same, so that a prompt is torn at a border and nowhere else
    orders = [[at for micro_batch in plan for at in micro_batch] for plan in found]
    return [[[order[at] for at in places] for places in _in_order(len(order), micro * size)] for order in orders]


def _in_order(rows: int, size: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + size, rows))) for start in range(0, rows, size))
