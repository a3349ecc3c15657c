"""What several answers to one incident are worth: pass@k, and the best of k by reward. Exact, no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import comb

__all__ = ["best_of_k", "pass_at_k", "sizes"]


def sizes(n: int) -> list[int]:
    """The k that are reported for n answers: 1, 2, 4, ... and n itself."""
    return [2**power for power in range(n.bit_length()) if 2**power < n] + [n]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that k of n answers, drawn without replacement, hold a right one: 1 - C(n - right, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: not 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {right} right answers in {n}: expected 0 <= right <= n and 1 <= k <= n")
    return 1.0 - comb(n - right, k) / comb(n, k)


def best_of_k(scores: Sequence[float], values: Sequence[float], k: int) -> float:
    """Expected value of the answer with the best score among k, drawn without replacement.

    Among equal best scores each is taken equally often. With the answers sorted by score, the best of k is among those
    of one score with probability (C(b, k) - C(a, k)) / C(n, k), where a answers score less and b as much or less.

    Raises:
        ValueError: not as many values as scores, or not 1 <= k <= n.
    """
    n = len(scores)
    if len(values) != n or not 1 <= k <= n:
        raise ValueError(f"best of {k} of {n} scores and {len(values)} values: expected 1 <= k <= n, and a value each")
    expected, below = 0.0, 0
    order = sorted(range(n), key=lambda at: scores[at])
    for _, tied in groupby(order, key=lambda at: scores[at]):
        equal = [values[at] for at in tied]
        upto = below + len(equal)
        expected += (comb(upto, k) - comb(below, k)) / comb(n, k) * (sum(equal) / len(equal))
        below = upto
    return expected
