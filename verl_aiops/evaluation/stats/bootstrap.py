"""Confidence intervals by resampling whole groups of incidents: answers to one fault are not independent.

For means of amounts without bounds, and for macro-F1. What is a mean of values from 0 to 1 has those of `shares`.
Where all groups agree, resampling them says nothing: every draw is the same. Macro-F1 then has the bounds of
`of_constant` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["DRAWS", "LEVEL", "NO_WIDTH", "intervals", "of_constant"]

DRAWS = 2000
LEVEL = 0.95
NO_WIDTH = 1e-9
"""Below it an interval of a share is rounding: all groups agree."""
_CHUNK = 100


def intervals(
    statistics: Callable[[np.ndarray], np.ndarray], groups: int, seed: int, draws: int = DRAWS, level: float = LEVEL
) -> np.ndarray:
    """Expanded percentile intervals of the cluster bootstrap (Efron and Tibshirani 1993, chapters 13 and 8.3).

    Each draw takes as many groups as there are, with replacement; a group drawn twice counts twice, with all it holds.
    The percentiles lie further out than the level says by what Student's t and the n - 1 of a variance are to the
    normal distribution (Hesterberg 2015, The American Statistician 69, 371): those of few groups would be too narrow.

    Args:
        statistics: from weights (b, groups), how often each group was drawn, to statistics (b, m), NaN where a draw
            leaves one undefined.
        groups: 1 or more.
        seed: the same seed and number of groups give the same draws, so intervals of differences are paired.

    Returns:
        (m, 2), low and high; NaN where there is but one group, or no draw that defines the statistic.
    """
    made = []
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _CHUNK):
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(_CHUNK, draws - start))
        made.append(statistics(weights.astype(np.float64)))
    drawn = np.concatenate(made)
    bounds = np.full((drawn.shape[1], 2), np.nan)
    if groups < 2:
        return bounds
    tail = 100 * _tail(groups, level)
    for at, column in enumerate(drawn.T):
        defined = column[~np.isnan(column)]
        if len(defined):
            bounds[at] = np.percentile(defined, [tail, 100 - tail])
    return bounds


def _tail(groups: int, level: float) -> float:
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, (1 + level) / 2)))


def of_constant(value: Any, groups: Any, lowest: float, highest: float, level: float = LEVEL) -> tuple[Any, Any]:
    """The interval of a mean whose value is the same in every group; numbers, or arrays of them.

    With n equal groups, at least the share ``(1 - level) / 2`` to the power 1/n of all groups is like them (Clopper and
    Pearson 1934 for n successes in n trials; about 1 - 3.7 / n); the rest may be anything from ``lowest`` to
    ``highest``. For shares of 0 and 1 that is the exact binomial interval, for differences without a discordant pair
    the bound of as many as there may still be.
    """
    other = 1 - ((1 - level) / 2) ** (1 / groups)
    return value - other * (value - lowest), value + other * (highest - value)
