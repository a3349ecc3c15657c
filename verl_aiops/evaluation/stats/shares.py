"""Confidence intervals of shares, and of differences between them, over faults: few of them, and shares near 0 and 1.

Answers to incidents of one fault are not independent, and faults have unequal numbers of them. A share therefore is
taken as one of so many independent trials as would be as sure as it is (Korn and Graubard 1998, Survey Methodology 24,
193; the rule of the US National Center for Health Statistics for proportions, Parker et al. 2017, Vital and Health
Statistics 2(175)), which Clopper and Pearson's exact interval (1934) then bounds. How well the variance over faults is
known is estimated too (`_freedom`): where nearly all answers are right, a handful of faults say how far they vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from verl_aiops.evaluation.stats.bootstrap import LEVEL, NO_WIDTH, of_constant

__all__ = ["Of", "clopper_pearson", "difference_intervals", "share_intervals", "widened"]


class Of(NamedTuple):
    """What a column holds, all of it from 0 to 1.

    ``single``: each entry is right or wrong, of one answer to an incident. ``amount``: no share, but something like the
    reward, which may differ by the same everywhere. ``difference``: of two such things.
    """

    single: bool = False
    amount: bool = False
    difference: bool = False


class _Spread(NamedTuple):
    """Of each column: the mean, each fault's part of its error (groups, m), variance, degrees of freedom, faults."""

    mean: np.ndarray
    errors: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray
    groups: np.ndarray


def share_intervals(sums: np.ndarray, counts: np.ndarray, of: Sequence[Of], level: float = LEVEL) -> np.ndarray:
    """Intervals of ``sums.sum(0) / counts.sum(0)``, means of values from 0 to 1.

    Right and wrong answers cannot be surer than so many independent ones. Of other values many may be nearly alike
    while a rare one is not: no interval is narrower than where all faults agree (`bootstrap.of_constant`).

    Args:
        sums, counts: (groups, m), of the values of each fault, and how many there are. A fault may have none.
        of: m, what the columns hold.

    Returns:
        (m, 2), low and high; NaN where no fault has a value.
    """
    return np.column_stack(_bounds(_spread(sums, counts), counts, of, level))


def difference_intervals(
    gains: np.ndarray, losses: np.ndarray, counts: np.ndarray, of: Sequence[Of], level: float = LEVEL
) -> np.ndarray:
    """Intervals of the mean of paired differences from -1 to 1, of which gains are what is above 0, losses the rest.

    Both are shares with intervals of their own, which Zou and Donner's MOVER (2008, Statistics in Medicine 27, 1693;
    for paired shares Newcombe 1998, Statistics in Medicine 17, 2635) puts together with their correlation over faults.
    So rare flips leave as much room as a rare share does, and none at all the bound of `bootstrap.of_constant`.

    Args:
        gains, losses, counts: (groups, m), sums of ``max(d, 0)`` and of ``max(-d, 0)``, and how many pairs.
        of: m, what the columns hold. Amounts that differ alike everywhere have no width.

    Returns:
        (m, 2), low and high; NaN where no fault has a pair.
    """
    up, down, both = (_spread(part, counts) for part in (gains, losses, gains - losses))
    (up_low, up_high), (down_low, down_high) = (_bounds(part, counts, of, level) for part in (up, down))
    sizes = np.sqrt((up.errors**2).sum(0) * (down.errors**2).sum(0))
    correlation = np.where(sizes > 0, (up.errors * down.errors).sum(0) / np.where(sizes > 0, sizes, 1.0), 0.0)
    low = both.mean - _joined(up.mean - up_low, down_high - down.mean, correlation)
    high = both.mean + _joined(up_high - up.mean, down.mean - down_low, correlation)
    alike = np.array([one.amount for one in of]) & (both.variance < NO_WIDTH**2) & (np.abs(both.mean) > NO_WIDTH)
    low, high = (np.where(alike, both.mean, bound) for bound in (np.maximum(low, -1.0), np.minimum(high, 1.0)))
    return np.column_stack([low, high])


def _joined(above: np.ndarray, below: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(above**2 - 2 * correlation * above * below + below**2, 0.0))


def widened(
    value: float, bounds: tuple[float, float], margin: float, within: tuple[float, float] | None
) -> tuple[float, float]:
    """An interval to which an independent error is added, itself known to plus or minus ``margin`` (by MOVER too)."""
    low = value - float(np.hypot(value - bounds[0], margin))
    high = value + float(np.hypot(bounds[1] - value, margin))
    return (low, high) if within is None else (max(low, within[0]), min(high, within[1]))


def clopper_pearson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share of which only the counts are known, its trials taken as independent."""
    low, high = _exact(np.array([float(successes)]), np.array([float(trials)]), level)
    return float(low[0]), float(high[0])


def _spread(sums: np.ndarray, counts: np.ndarray) -> _Spread:
    """The variance of a ratio of sums over clusters by linearisation, with the usual n / (n - 1)."""
    total, groups = counts.sum(0), (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / total
        errors = np.where(counts > 0, sums - mean * counts, 0.0) / total
        variance = np.where(groups > 1, groups / (groups - 1) * (errors**2).sum(0), 0.0)
    return _Spread(mean, errors, variance, _freedom(errors, counts, groups), groups)


def _freedom(errors: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the variance: by Satterthwaite (1946) twice its square over its own variance.

    The latter comes from the fourth powers of the faults' errors: where few faults hold all of the error, few degrees
    are left, however many faults there are. They are one more than that estimate, which is too small by about one
    where errors are alike, and never more than Kish's number of equally large faults (1965) less one.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        squares, fourths = (errors**2).sum(0), (errors**4).sum(0)
        kish = counts.sum(0) ** 2 / (counts**2).sum(0)
        found = 2 * squares**2 / (fourths - squares**2 / groups)
    found = np.where(np.isfinite(found) & (found > 0), found, np.inf)
    return np.maximum(np.minimum(found + 1, kish - 1), 1.0)


def _bounds(spread: _Spread, counts: np.ndarray, of: Sequence[Of], level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import stdtrit

    mean, variance, groups = np.clip(spread.mean, 0.0, 1.0), spread.variance, np.maximum(spread.groups, 1)
    single, alike = np.array([one.single for one in of]), variance < NO_WIDTH**2
    trials = np.where(single, np.maximum(counts.sum(0), 2.0), np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        equal = np.minimum(mean * (1 - mean) / variance, trials)
        t = [stdtrit(freedom, (1 + level) / 2) for freedom in (trials - 1, spread.freedom)]
        equal = np.where(alike, 1.0, equal * (t[0] / t[1]) ** 2)
    low, high = _exact(mean * equal, equal, level)
    same_low, same_high = of_constant(mean, groups, 0.0, 1.0, level)
    low = np.where(alike, same_low, np.where(single, low, np.minimum(low, same_low)))
    high = np.where(alike, same_high, np.where(single, high, np.maximum(high, same_high)))
    return tuple(np.where(spread.groups > 0, bound, np.nan) for bound in (low, high))


def _exact(successes: np.ndarray, trials: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import betaincinv

    tail, failures = (1 - level) / 2, trials - successes
    with np.errstate(invalid="ignore"):
        low = np.where(successes <= 0, 0.0, betaincinv(np.maximum(successes, 1e-9), failures + 1, tail))
        high = np.where(failures <= 0, 1.0, betaincinv(successes + 1, np.maximum(failures, 1e-9), 1 - tail))
    return low, high
