"""Statistics of paired comparisons: intervals of means, sign-flip test, McNemar's exact test, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_aiops.evaluation.stats.bootstrap import intervals
from verl_aiops.evaluation.stats.shares import Of, difference_intervals, share_intervals

__all__ = ["FEW_GROUPS", "Mean", "Test", "holm", "mcnemar_exact", "mean_intervals", "sign_flip_test"]

FEW_GROUPS = 5
"""Below so many groups an interval says next to nothing, and none is given."""

FLIPS = 20_000
_ENUMERATED = 18
_MOST_STEPS = 300_000_000
_CHUNK = 500


@dataclass(frozen=True)
class Mean:
    """A mean over ``n`` incidents of ``groups`` groups with its interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int


def mean_intervals(
    columns: np.ndarray, groups: np.ndarray, seed: int, of: Sequence[Of | None] = (), fewest: int = FEW_GROUPS
) -> list[Mean]:
    """The mean of each column with its 95 % interval over groups: `shares.share_intervals` and `difference_intervals`,
    or, of amounts without bounds, the cluster bootstrap (`bootstrap.intervals`).

    The column ``b - a`` gives the paired interval of a difference; all bootstrapped ones share their draws.

    Args:
        columns: (incidents, m); NaN where an incident has no value.
        groups: (incidents,) numbers of the groups, from 0.
        of: of each column what it holds; None, or nothing at all, for amounts without bounds.
        fewest: groups that a column must have values in for an interval to be given.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    width = columns.shape[1]
    if not count or not width:
        return [Mean(None, None, None, 0, 0)] * width
    there = ~np.isnan(columns)
    filled = np.where(there, columns, 0.0)
    sums, counts = (_by_group(part, groups, count) for part in (filled, there))
    with np.errstate(invalid="ignore", divide="ignore"):
        point = sums.sum(0) / counts.sum(0)
    bounds = np.full((width, 2), np.nan)
    held = dict(enumerate(of or [None] * width))
    free = [at for at, one in held.items() if one is None]
    levels = [at for at, one in held.items() if one is not None and not one.difference]
    changes = [at for at, one in held.items() if one is not None and one.difference]
    if free:
        bounds[free] = intervals(lambda weights: _ratio(weights, sums[:, free], counts[:, free]), count, seed)
    if levels:
        bounds[levels] = share_intervals(sums[:, levels], counts[:, levels], [of[at] for at in levels])
    if changes:
        gains, losses = (_by_group(np.maximum(sign * filled[:, changes], 0.0), groups, count) for sign in (1, -1))
        bounds[changes] = difference_intervals(gains, losses, counts[:, changes], [of[at] for at in changes])
    means = []
    for value, (low, high), n, held in zip(point, bounds, there.sum(0), (counts > 0).sum(0), strict=True):
        given = held >= fewest and not np.isnan(low)
        shown = (float(low), float(high)) if given else (None, None)
        means.append(Mean(float(value) if n else None, *shown, int(n), int(held)))
    return means


def _by_group(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def _ratio(weights: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ sums) / (weights @ counts)


@dataclass(frozen=True)
class Test:
    """A two-sided p-value. ``method``: ``exact``, or ``sampled`` where it comes from `FLIPS` random flips."""

    __test__ = False  # pytest: not a class of tests

    p: float
    method: str


def sign_flip_test(
    differences: np.ndarray, groups: np.ndarray, *, denominator: int | None = None, flips: int = FLIPS, seed: int = 0
) -> Test:
    """Permutation test of a mean difference of 0 in which the two runs change places in whole groups.

    Under the null hypothesis the runs are exchangeable, so the sum of each group's differences is as likely with the
    other sign; p is the share of sign patterns whose total is as far from 0 as the observed one (Fisher 1935, chapter
    3; for clusters Gail et al. 1996, Statistics in Medicine 15, 1069).
    The distribution is computed exactly where the sums are multiples of a common fraction, or where few groups differ;
    else flips are drawn, and p is (1 + hits) / (1 + flips) (Phipson and Smyth 2010, arXiv 1603.05766).

    Args:
        differences: (incidents,), NaN where there is none.
        groups: (incidents,) numbers of the groups, from 0.
        denominator: makes every difference a whole number, e.g. 8 for shares of 8 answers; None for differences of
            any size.

    Raises:
        ValueError: the denominator does not do that.
    """
    there = ~np.isnan(differences)
    sums = np.bincount(groups[there], weights=differences[there], minlength=1)
    if denominator is not None:
        whole = np.rint(sums * denominator)
        if not np.allclose(whole, sums * denominator, atol=1e-6):
            raise ValueError(f"denominator {denominator} does not make the differences whole numbers")
        steps = whole[whole != 0].astype(np.int64)
        if len(steps) * int(np.abs(steps).sum()) <= _MOST_STEPS:
            return Test(_exact_on_lattice(steps), "exact")
    sums = sums[sums != 0]
    if len(sums) <= _ENUMERATED:
        return Test(_exact_by_enumeration(sums), "exact")
    return Test(_sampled(sums, flips, seed), "sampled")


def _exact_on_lattice(steps: np.ndarray) -> float:
    """With random signs ``steps`` add up to 2 X - T: T is the sum of their sizes, X that of a random half of them."""
    if not len(steps):
        return 1.0
    observed = abs(int(steps.sum()))
    sizes = np.abs(steps) // np.gcd.reduce(steps)
    observed //= int(np.gcd.reduce(steps))
    total = int(sizes.sum())
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    reached = 0
    for size in np.sort(sizes):
        chance[size : reached + size + 1] += chance[: reached + 1].copy()
        reached += int(size)
        chance[: reached + 1] /= 2
    far = np.abs(2 * np.arange(total + 1) - total) >= observed
    return min(1.0, float(chance[far].sum()))


def _exact_by_enumeration(sums: np.ndarray) -> float:
    totals = np.zeros(1)
    for value in sums:
        totals = np.concatenate([totals + value, totals - value])
    return float(np.mean(_as_far(totals, sums)))


def _sampled(sums: np.ndarray, flips: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, flips, _CHUNK):
        signs = rng.integers(0, 2, size=(min(_CHUNK, flips - start), len(sums)), dtype=np.int8) * 2.0 - 1.0
        hits += int(_as_far(signs @ sums, sums).sum())
    return (1 + hits) / (1 + flips)


def _as_far(totals: np.ndarray, sums: np.ndarray) -> np.ndarray:
    # round-off must not turn an equal total into a smaller one
    return np.abs(totals) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's test by the binomial distribution (McNemar 1947): the incidents that one run alone got
    right are as likely to be either's. Takes incidents as independent.
    """
    discordant = only_first + only_second
    tail = ways = 1
    for few in range(min(only_first, only_second)):
        ways = ways * (discordant - few) // (few + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**discordant)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order: the step-down procedure of Holm 1979."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[at]))
        adjusted[at] = highest
    return adjusted
