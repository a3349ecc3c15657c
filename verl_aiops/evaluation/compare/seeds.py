"""How far pooled runs differ, so that an interval holds for runs of new seeds too.

The mean of an arm is that of its runs, and runs of another seed have another mean. That error is independent of which
faults were asked, and known by t over the runs' means: with three runs there are two degrees of freedom. It is added to
the interval over faults as another part of the error (`shares.widened`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.pairing import Pairing
from verl_aiops.evaluation.stats.bootstrap import LEVEL
from verl_aiops.evaluation.stats.metrics import Metric, is_share, metric_named
from verl_aiops.evaluation.stats.shares import widened

__all__ = ["margin", "run_means", "with_new_seeds"]


def run_means(pairing: Pairing, label: str, metric: Metric) -> list[float]:
    """The mean of each run of an arm, over the incidents of which all of them have a value."""
    starts = next(run for run in pairing.runs if run.label == label).starts
    rows = [[_of_run(metric, lines, at, starts) for at in range(len(starts))] for lines in pairing.answers[label]]
    whole = [row for row in rows if None not in row]
    return [math.fsum(column) / len(whole) for column in zip(*whole)]


def _of_run(metric: Metric, lines: Sequence[AnswerLine], at: int, starts: Sequence[int]) -> float | None:
    end = starts[at + 1] if at + 1 < len(starts) else math.inf
    own = [metric.value(line) for line in lines if starts[at] <= line["sample"] < end] if metric.value else []
    found = [value for value in own if value is not None]
    return math.fsum(found) / len(found) if found else None


def margin(*arms: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean over runs, or of the difference of two such means.

    Of two arms the variances are added, with Welch's degrees of freedom (1947). An arm of one run adds nothing: it is
    taken as it is. None where no arm has two.
    """
    from scipy.special import stdtrit

    several = [arm for arm in arms if len(arm) > 1]
    parts = [(float(np.var(arm, ddof=1)) / len(arm), len(arm) - 1) for arm in several]
    total = sum(variance for variance, _ in parts)
    if not parts:
        return None
    if not total:
        return 0.0
    freedom = total**2 / sum(variance**2 / own for variance, own in parts)
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(total)


def with_new_seeds(pairing: Pairing, found: Mapping[str, dict[str, Any]]) -> None:
    """Add ``new_seeds`` to values and differences of metrics as `numbers` has them: ``{"low", "high"}``, or None."""
    first = pairing.labels[0]
    for name, shown in found.items():
        metric = metric_named(name)
        several = pairing.labels if metric is not None and metric.value else []
        arms = {label: run_means(pairing, label, metric) for label in several if metric is not None}
        for label, mean in shown["values"].items():
            mean["new_seeds"] = _widened(mean, margin(arms.get(label, ())), (0.0, 1.0) if is_share(name) else None)
        for label, entry in shown["comparisons"].items():
            wide = margin(arms.get(first, ()), arms.get(label, ()))
            difference = entry["difference"]
            difference["new_seeds"] = _widened(difference, wide, (-1.0, 1.0) if is_share(name) else None)


def _widened(
    mean: Mapping[str, Any], wide: float | None, within: tuple[float, float] | None
) -> dict[str, float] | None:
    if wide is None or mean["low"] is None:
        return None
    low, high = widened(mean["value"], (mean["low"], mean["high"]), wide, within)
    return {"low": low, "high": high}
