"""What log-probs of pairs come to: shares and means with intervals over groups, of one model or before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verl_aiops.evaluation.pairs.scoring import PairScores
from verl_aiops.evaluation.run.table import as_columns, share_text
from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.evaluation.stats.shares import Of

__all__ = ["CHANGE", "METRICS", "MOVED", "measures", "summarise", "table_of_pairs"]

CHANGE = "change"
# by name, what the table calls it and what it holds: a share of pairs, or None for nats without bounds
METRICS: dict[str, tuple[str, Of | None]] = {
    "accuracy": ("pairs ranked right", Of(single=True)),
    "accuracy_per_token": ("pairs ranked right, per token", Of(single=True)),
    "margin": ("margin chosen - rejected (nats)", None),
    "logp_chosen": ("log-prob of chosen (nats)", None),
    "logp_rejected": ("log-prob of rejected (nats)", None),
}
MOVED = ("moved the right way (DPO's accuracy)", Of(single=True))


def measures(scores: PairScores, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric's values, (pairs,). A pair is ranked right where the chosen answer has the higher log-prob; equal
    ones are not.

    Args:
        tokens: (pairs, 2) trained tokens of chosen and rejected answer.
    """
    chosen, rejected = scores
    return {
        "accuracy": (chosen > rejected).astype(float),
        "accuracy_per_token": (chosen / tokens[:, 0] > rejected / tokens[:, 1]).astype(float),
        "margin": chosen - rejected,
        "logp_chosen": chosen,
        "logp_rejected": rejected,
    }


def summarise(
    scored: Mapping[str, PairScores], tokens: np.ndarray, groups: Sequence[object], seed: int
) -> dict[str, dict[str, Any]]:
    """By model (``before`` and ``after``, or ``after`` alone) and metric ``value``, ``low``, ``high`` (95 %, None where
    too few groups say), ``pairs`` and ``groups``; of two models also their paired difference, `CHANGE`.

    Args:
        groups: of each pair; pairs of one group are drawn together.
    """
    numbers: dict[object, int] = {}
    places = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    of_model = {name: measures(scores, tokens) for name, scores in scored.items()}
    parts = {name: (values, {metric: of for metric, (_, of) in METRICS.items()}) for name, values in of_model.items()}
    if len(of_model) == 2:
        before, after = of_model.values()
        change = {name: after[name] - before[name] for name in METRICS}
        held = {metric: of and of._replace(difference=True) for metric, (_, of) in METRICS.items()}
        # DPO's reward is beta times the change of the log-prob, so its sign needs no beta
        change["moved"], held["moved"] = (change["margin"] > 0).astype(float), MOVED[1]
        parts[CHANGE] = change, held
    summary: dict[str, dict[str, Any]] = {}
    for name, (values, held) in parts.items():
        means = mean_intervals(np.column_stack(list(values.values())), places, seed, list(held.values()))
        summary[name] = {
            metric: {"value": mean.value, "low": mean.low, "high": mean.high, "pairs": mean.n, "groups": mean.groups}
            for metric, mean in zip(values, means, strict=True)
        }
    return summary


def table_of_pairs(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The summary as a table, a column for each model and the change."""
    rows: list[tuple[str, ...]] = [("", *summary)]
    for metric, (title, of) in {**METRICS, "moved": MOVED}.items():
        found = [values.get(metric) for values in summary.values()]
        if any(found):
            changes = [name == CHANGE and metric != "moved" for name in summary]
            rows.append((title, *(_shown(value, of is not None, change) for value, change in zip(found, changes))))
    return as_columns(rows)


def _shown(value: Mapping[str, Any] | None, share: bool, change: bool) -> str:
    if value is None:
        return ""
    if share and not change:
        return share_text(value)
    scale, digits = (100, 1) if share else (1, 2)
    text, low, high = (
        "" if value[name] is None else f"{scale * value[name]:{'+' * change}.{digits}f}"
        for name in ("value", "low", "high")
    )
    return text + " points" * share + (f" [{low}, {high}]" if low else "")
