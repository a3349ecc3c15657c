"""A layout's sequence over several workers (Ulysses, arXiv 2309.14509).

Outside of attention each worker has a stretch of the tokens and all heads; within, all tokens and some of the heads. In
each layer, exchanges of queries, keys and values before and of the result after go from one to the other. verl's own
patch does that below transformers' flash attention; ours does it around `attention.shared_attention`, whose layout
describes the whole sequence on every worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn import functional

from verl_aiops.seam.engine import get_ulysses_sequence_parallel_group

__all__ = ["Split", "why_not_split"]


def why_not_split(heads: int, kv_heads: int, workers: int) -> str | None:
    """What keeps these numbers of heads from being shared out over so many workers, or None."""
    if heads % workers:
        return f"its {heads} heads of attention cannot be shared out over {workers} workers"
    if kv_heads % workers and workers % kv_heads:
        return f"its {kv_heads} heads of keys and values cannot be shared out over {workers} workers"
    return None


@dataclass(frozen=True, eq=False)
class Split:
    """What one worker has of a sequence of ``tokens``, padded at its end to a multiple of the workers.

    ``first``: the token that its stretch begins with; ``width``: tokens of each stretch. Its part of the positions that
    predict a label is the slice ``sources`` of them, and of the labels the slice ``labels``.
    """

    group: distributed.ProcessGroup
    workers: int
    rank: int
    tokens: int
    width: int
    sources: slice
    labels: slice

    @classmethod
    def of(cls, sources, label_sources, tokens: int) -> Split | None:
        """This worker's part under verl's group at hand; None where that is one worker.

        Args:
            sources: (positions,) tokens that predict a label, ascending, on the host.
            label_sources: (labels,) entries of ``sources``, ascending, on the host.
            tokens: of the sequence.
        """
        group = get_ulysses_sequence_parallel_group()
        workers = distributed.get_world_size(group) if group is not None else 1
        if workers == 1:
            return None
        rank = distributed.get_rank(group)
        width = -(-tokens // workers)
        borders = sources.searchsorted([rank * width, (rank + 1) * width]).tolist()
        return cls(
            group,
            workers,
            rank,
            tokens,
            width,
            sources=slice(*borders),
            labels=slice(*label_sources.searchsorted(borders).tolist()),
        )

    @property
    def first(self) -> int:
        return self.rank * self.width

    def stretch(self, column: torch.Tensor) -> torch.Tensor:
        """(width,) of (tokens,), 0 beyond the sequence's end."""
        part = column[self.first : self.first + self.width]
        return functional.pad(part, (0, self.width - len(part)))

    def everywhere(self, values: torch.Tensor, part: slice, number: int) -> torch.Tensor:
        """(number, ...) of all workers from the ``part`` that each has; the same on all of them.

        All of them compute the same loss of it. FSDP takes the mean of their gradients, which belong to different
        tokens: so each is multiplied by their number.
        """
        before, after = part.start, number - part.stop
        padding = (*(0, 0) * (values.dim() - 1), before, after)
        return _SumOverWorkers.apply(functional.pad(values, padding), self.group)

    def some_heads(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, heads of this worker, tokens, size) of (1, heads, width, size) each."""
        return tuple(map(self._some_heads, tensors))

    def _some_heads(self, states: torch.Tensor) -> torch.Tensor:
        if states.shape[1] < self.workers:
            # each of the few heads of keys and values goes to several workers
            states = states.repeat_interleave(self.workers // states.shape[1], dim=1)
        heads = states.shape[1] // self.workers
        parts = states.reshape(self.workers, heads, self.width, -1)
        whole = _Exchange.apply(parts, self.group).transpose(0, 1).reshape(1, heads, self.workers * self.width, -1)
        return whole[:, :, : self.tokens]

    def own_heads(self, of_heads: torch.Tensor) -> torch.Tensor:
        """The entries of (heads,) that belong to this worker's heads."""
        return of_heads.chunk(self.workers)[self.rank]

    def all_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(1, width, heads, size) of this worker's (1, tokens, heads of this worker, size)."""
        _, tokens, heads, size = states.shape
        padded = functional.pad(states, (0, 0, 0, 0, 0, self.workers * self.width - tokens))
        parts = _Exchange.apply(padded.reshape(self.workers, self.width, heads, size), self.group)
        return parts.transpose(0, 1).reshape(1, self.width, self.workers * heads, size)


class _Exchange(torch.autograd.Function):
    """(workers, ...): part i goes to worker i, and what came from it takes its place."""

    @staticmethod
    def forward(ctx, parts: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchanged(gradient, ctx.group), None


def _exchanged(parts: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    distributed.all_to_all_single(received, parts, group=group)
    return received


class _SumOverWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        ctx.workers = distributed.get_world_size(group)
        summed = values.contiguous().clone()
        distributed.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.workers, None
