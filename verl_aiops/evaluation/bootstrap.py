"""Confidence intervals by resampling whole groups of incidents: answers to one fault are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["DRAWS", "LEVEL", "intervals"]

DRAWS = 2000
LEVEL = 0.95
_CHUNK = 100


def intervals(
    statistics: Callable[[np.ndarray], np.ndarray], groups: int, seed: int, draws: int = DRAWS, level: float = LEVEL
) -> np.ndarray:
    """Percentile intervals of the cluster bootstrap (Efron and Tibshirani 1993, chapters 13 and 8.3).

    Each draw takes as many groups as there are, with replacement; a group drawn twice counts twice, with all it holds.

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
    tail = 100 * (1 - level) / 2
    for at, column in enumerate(drawn.T):
        defined = column[~np.isnan(column)]
        if len(defined):
            bounds[at] = np.percentile(defined, [tail, 100 - tail])
    return bounds
