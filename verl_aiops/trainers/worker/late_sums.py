"""Metrics of a micro-batch that are read off the device when somebody asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from verl_aiops.seam.engine import AggregationType, Metric

__all__ = ["partial_sums"]


class _Read:
    """Numbers on a device, fetched once and when they are asked for: the device's queue runs dry at each fetch."""

    def __init__(self, values: torch.Tensor):
        self._values: torch.Tensor | list[float] = values

    def __getitem__(self, at: int) -> float:
        if isinstance(self._values, torch.Tensor):
            self._values = self._values.tolist()
        return self._values[at]


class _LateSum(Metric):
    """A summed `Metric` whose values are some of `_Read`s, one for each micro-batch."""

    def __init__(self, sources: list[tuple[_Read, int]]):
        self.aggregation, self._sources = AggregationType.SUM, list(sources)

    @property
    def values(self) -> list[float]:
        return [numbers[at] for numbers, at in self._sources]

    def init_list(self) -> _LateSum:
        return _LateSum([])

    def append(self, value: _LateSum) -> None:
        self._sources += value._sources

    def __reduce__(self):
        return _plain_metric, (self.aggregation, self.values)


def _plain_metric(aggregation: AggregationType, values: list[float]) -> Metric:
    metric = Metric(aggregation)
    metric.extend(values)
    return metric


def partial_sums(
    parts: Sequence[Mapping[str, torch.Tensor]], scales: Mapping[str, float], like: torch.Tensor
) -> dict[str, Metric]:
    """A metric for each of ``scales``, also where this micro-batch has nothing of it: all workers must have the same.

    Args:
        parts: values by name, in one part all of one length; what stands in several parts is added up.
        scales: the factor of each metric's sum.
        like: a tensor of the device.
    """
    totals = [torch.stack([value.float() for value in part.values()]).sum(dim=1) for part in parts]
    if len(parts) == 1 and list(parts[0]) == list(scales) and len(set(scales.values())) == 1:
        sums = totals[0] * next(iter(scales.values()))  # as of plain pairs: all at once
    else:
        nothing = like.new_zeros((), dtype=torch.float32)
        named = [dict(zip(part, total.unbind(), strict=True)) for part, total in zip(parts, totals, strict=True)]
        sums = torch.stack(
            [scale * sum((one[name] for one in named if name in one), nothing) for name, scale in scales.items()]
        )
    read = _Read(sums)
    return {name: _LateSum([(read, at)]) for at, name in enumerate(scales)}
