"""What scores of held-out answers come to: pairs ranked right, calibration, and the best of n by the reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from verl_aiops.evaluation.run.table import as_columns, share_text
from verl_aiops.evaluation.stats.best_of import best_of_k, sizes
from verl_aiops.evaluation.stats.calibration import calibrate, numbered, right, stats_of
from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.evaluation.stats.shares import Of

__all__ = ["CHOICES", "best_of_n", "margins_of", "rank_table", "ranking"]

# who chooses among n answers; what is measured is the rule's score of the one that is chosen
CHOICES = {"rm": "by the reward model", "rule": "by the rule itself", "chance": "at random"}


def margins_of(ranks: Sequence[float], scores: Sequence[float]) -> list[float]:
    """By how much the better answer's score is higher, of every two answers of different ranks (1 is the best)."""
    order = sorted(range(len(ranks)), key=lambda at: ranks[at])
    return [float(scores[one] - scores[two]) for one, two in combinations(order, 2) if ranks[one] < ranks[two]]


def ranking(examples: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """How answers are ranked.

    Args:
        examples: ``ranks`` and ``scores`` of the answers to one prompt, and its ``group``.

    Returns:
        ``accuracy`` (equal scores are half right) and, of groups of more than two, ``best`` (how often a best answer
        has the highest score): ``value``, ``low``, ``high`` (95 %, over groups), ``n``, ``groups``; and what
        `calibration.stats_of` says.
    """
    margins = [margins_of(one["ranks"], one["scores"]) for one in examples]
    groups = numbered([one["group"] for one in examples])
    flat = np.array([margin for of_one in margins for margin in of_one])
    places = np.repeat(groups, [len(of_one) for of_one in margins])
    several = [at for at, one in enumerate(examples) if len(one["ranks"]) > 2]
    found = {"accuracy": _mean(right(flat), places, seed, Of(single=True))}
    if several:
        best = np.array([_best(examples[at]["ranks"], examples[at]["scores"]) for at in several])
        found["best"] = _mean(best, groups[several], seed, Of(single=True))
    scores = [score for one in examples for score in one["scores"]]
    calibration = calibrate(flat, places.tolist())
    told = stats_of(scores, calibration)
    return {**found, "calibration": {key: value for key, value in told.items() if key != "accuracy"}}


def best_of_n(questions: Sequence[Mapping[str, Any]], seed: int) -> dict[int, dict[str, Any]]:
    """The rule's score of the best of k answers, for k of 1, 2, 4, ... n, exact over all draws.

    Args:
        questions: ``rm`` and ``rule``, the scores of as many answers to each, and ``group``.

    Returns:
        by k and `CHOICES` value and interval over groups, and ``gain``, the reward model's choice less one at random.
    """
    groups = numbered([one["group"] for one in questions])
    found: dict[int, dict[str, Any]] = {}
    for k in sizes(len(questions[0]["rm"])):
        columns = np.array(
            [
                [best_of_k(one["rm"], one["rule"], k), best_of_k(one["rule"], one["rule"], k), np.mean(one["rule"])]
                for one in questions
            ]
        )
        columns = np.column_stack([columns, columns[:, 0] - columns[:, 2]])
        of = [Of(amount=True)] * 3 + [Of(amount=True, difference=True)]
        means = mean_intervals(columns, groups, seed, of)
        found[k] = {name: _told(mean) for name, mean in zip([*CHOICES, "gain"], means, strict=True)}
    return found


def rank_table(ranked: Mapping[str, Any] | None, best: Mapping[int, Mapping[str, Any]] | None) -> str:
    """Both as text."""
    parts = []
    if ranked:
        told = ranked["calibration"]
        rows: list[tuple[str, ...]] = [("pairs ranked right", share_text(ranked["accuracy"]))]
        if "best" in ranked:
            rows.append(("the best of a group has the highest score", share_text(ranked["best"])))
        rows.append(("log-loss (nats)", f"{told['log_loss']:.3f}"))
        rows.append(("calibration error", f"{told['error']:.3f}"))
        rows.append(("scores, mean and standard deviation", f"{told['reward_mean']:.3f}, {told['reward_std']:.3f}"))
        parts.append(as_columns(rows))
    if best:
        head = ("rule's score of the best of", *CHOICES.values(), "gain over chance")
        rows = [head] + [
            (str(k), *(_amount(values[name]) for name in (*CHOICES, "gain"))) for k, values in best.items()
        ]
        parts.append(as_columns(rows))
    return "\n\n".join(parts)


def _amount(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _best(ranks: Sequence[float], scores: Sequence[float]) -> float:
    """Whether the highest score is a best answer's; of several highest the share that are."""
    highest = [rank for rank, score in zip(ranks, scores, strict=True) if score == max(scores)]
    return sum(rank == min(ranks) for rank in highest) / len(highest)


def _mean(values: np.ndarray, places: np.ndarray, seed: int, of: Of) -> dict[str, Any]:
    return _told(mean_intervals(values[:, None], numbered(places.tolist()), seed, [of])[0])


def _told(mean: Any) -> dict[str, Any]:
    return asdict(mean)
