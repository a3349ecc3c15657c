"""How often a «95 %» interval holds what it is an interval of, where faults are few or unequal and shares near 1."""

import numpy as np
import pytest
from scipy import stats

from verl_aiops.evaluation.stats.bootstrap import intervals
from verl_aiops.evaluation.stats.shares import Of, clopper_pearson, difference_intervals, share_intervals

REPEATS = 1500
PROMISED = 0.93
"""Of 95 %; a standard error of so many repeats at 95 % is 0.6 points."""


def sizes(rng, faults, kind):
    """Incidents of each fault, (faults, repeats): 1 to 8 alike, or mostly one and now and then eight."""
    shape = faults, REPEATS
    if kind == "even":
        return rng.integers(1, 9, shape)
    return np.where(rng.random(shape) < 0.2, 8, rng.integers(1, 3, shape))


def rates(rng, shares, correlation, shape):
    """Of each fault the chance of each outcome: Dirichlet, with this correlation of two answers to one fault."""
    if not correlation:
        return np.broadcast_to(shares, (*shape, len(shares)))
    drawn = rng.gamma(np.array(shares) * (1 - correlation) / correlation, size=(*shape, len(shares)))
    # a draw of nothing but zeros is one of the rarest outcomes
    drawn[..., -1] += drawn.sum(-1) == 0
    return drawn / drawn.sum(-1, keepdims=True)


def covered(bounds, truth):
    return float(np.mean((bounds[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= bounds[:, 1])))


@pytest.mark.parametrize("kind", ["even", "few large"])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("faults", [5, 10, 20, 50, 150])
def test_intervals_of_shares_hold_the_share(faults, correlation, kind):
    for at, share in enumerate((0.5, 0.7, 0.9, 0.95, 0.98)):
        rng = np.random.default_rng(at)
        counts = sizes(rng, faults, kind)
        right = rng.binomial(counts, rates(rng, (share, 1 - share), correlation, counts.shape)[..., 0])
        for sums, truth in ((right, share), (counts - right, 1 - share)):
            bounds = share_intervals(sums.astype(float), counts.astype(float), [Of(single=True)] * REPEATS)
            assert covered(bounds, truth) >= PROMISED, share


@pytest.mark.parametrize("kind", ["even", "few large"])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("faults", [5, 10, 20, 50, 150])
def test_intervals_of_paired_differences_hold_the_difference(faults, correlation, kind):
    """From no loss at all and a gain in a hundred up to nothing but gains."""
    for gained, lost in ((0.01, 1e-9), (0.02, 0.02), (0.05, 0.01), (0.1, 0.1), (0.2, 0.05), (0.5, 0.1), (0.9, 0.02)):
        rng = np.random.default_rng(0)
        counts = sizes(rng, faults, kind)
        flips = rng.multinomial(counts, rates(rng, (gained, lost, 1 - gained - lost), correlation, counts.shape))
        gains, losses = (flips[..., at].astype(float) for at in (0, 1))
        held = [Of(single=True, difference=True)] * REPEATS
        bounds = difference_intervals(gains, losses, counts.astype(float), held)
        assert covered(bounds, gained - lost) >= PROMISED, (gained, lost)


@pytest.mark.parametrize("faults", [5, 10, 20, 50, 150])
def test_intervals_of_rewards_hold_the_mean(faults):
    """A reward is mostly high, now and then low, and never quite the same; so is its change."""
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 9, (faults, REPEATS)).astype(float)
    worth = np.where(rng.random(counts.shape) < 0.9, 0.95, 0.3) + rng.uniform(-0.05, 0.05, counts.shape)
    bounds = share_intervals(worth * counts, counts, [Of(amount=True)] * REPEATS)
    assert covered(bounds, 0.9 * 0.95 + 0.1 * 0.3) >= PROMISED
    change = np.where(rng.random(counts.shape) < 0.05, 0.6, 0.0) + rng.uniform(-0.02, 0.02, counts.shape)
    gains, losses = (np.maximum(sign * change, 0) * counts for sign in (1, -1))
    bounds = difference_intervals(gains, losses, counts, [Of(amount=True, difference=True)] * REPEATS)
    assert covered(bounds, 0.05 * 0.6) >= PROMISED


@pytest.mark.parametrize("faults", [10, 20, 50])
def test_intervals_of_several_answers_hold_their_mean(faults):
    """Eight answers to each incident, shares of them right; and pass@2 of the same."""
    rng = np.random.default_rng(3)
    counts = sizes(rng, faults, "even").astype(float)
    chance = rng.beta(0.9, 0.1, counts.shape)
    right = rng.binomial((8 * counts).astype(int), chance) / 8
    bounds = share_intervals(right, counts, [Of()] * REPEATS)
    assert covered(bounds, 0.9) >= PROMISED
    bounds = share_intervals((1 - (1 - chance) ** 2) * counts, counts, [Of()] * REPEATS)
    assert covered(bounds, 1 - 0.1 * 1.1 / 2) >= PROMISED


def test_intervals_are_no_wider_than_they_must_be_where_faults_are_many():
    rng = np.random.default_rng(4)
    counts = np.ones((500, 200))
    right = (rng.random(counts.shape) < 0.7).astype(float)
    bounds = share_intervals(right, counts, [Of(single=True)] * 200)
    normal = 2 * 1.96 * np.sqrt(0.21 / 500)
    assert np.mean(bounds[:, 1] - bounds[:, 0]) == pytest.approx(normal, rel=0.04)
    flips = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=counts.shape)
    gains, losses = np.maximum(flips, 0), np.maximum(-flips, 0)
    bounds = difference_intervals(gains, losses, counts, [Of(single=True, difference=True)] * 200)
    normal = 2 * 1.96 * np.sqrt((0.3 - 0.01) / 500)
    assert np.mean(bounds[:, 1] - bounds[:, 0]) == pytest.approx(normal, rel=0.06)


def test_bounds_hold_the_mean_and_stay_within_what_can_be():
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 4, (6, 400)).astype(float)
    counts[0] = np.maximum(counts[0], 1)
    gains, losses = (rng.binomial(counts.astype(int), 0.4).astype(float) for _ in range(2))
    losses = np.minimum(losses, counts - gains)
    level = gains.sum(0) / counts.sum(0)
    bounds = share_intervals(gains, counts, [Of(single=True)] * 400)
    assert (bounds[:, 0] <= level).all() and (level <= bounds[:, 1]).all()
    assert (0 <= bounds).all() and (bounds <= 1).all()
    change = level - losses.sum(0) / counts.sum(0)
    bounds = difference_intervals(gains, losses, counts, [Of(single=True, difference=True)] * 400)
    assert (bounds[:, 0] <= change).all() and (change <= bounds[:, 1]).all()
    assert (-1 <= bounds).all() and (bounds <= 1).all()
    nowhere = share_intervals(np.zeros((3, 1)), np.zeros((3, 1)), [Of()])
    assert np.isnan(nowhere).all()


def plain(right, asked, most):
    """The formulas written out: ratio, linearised variance, degrees of freedom, effective number, exact bounds."""
    n, share = sum(asked), sum(right) / sum(asked)
    errors = [(r - share * a) / n for r, a in zip(right, asked)]
    faults, squares = len(asked), sum(e**2 for e in errors)
    freedom = 1 + 2 * squares**2 / (sum(e**4 for e in errors) - squares**2 / faults)
    freedom = max(1, min(freedom, n**2 / sum(a**2 for a in asked) - 1))
    equal = min(share * (1 - share) / (faults / (faults - 1) * squares), most)
    equal *= (stats.t.ppf(0.975, most - 1) / stats.t.ppf(0.975, freedom)) ** 2
    low, high = share * equal, (1 - share) * equal
    return stats.beta.ppf(0.025, low, high + 1), stats.beta.ppf(0.975, low + 1, high)


@pytest.mark.parametrize(
    "right, asked",
    [((3, 0, 2, 5, 1), (4, 2, 2, 8, 1)), ((8, 7, 8, 8, 8, 2), (8,) * 6), ((4, 4, 4, 5), (8, 8, 8, 8))],
)
def test_a_share_is_as_sure_as_that_of_so_many_independent_answers(right, asked):
    """In the last case faults are more alike than chance would have them: it is no surer than 32 answers for that."""
    sums, counts = (np.array(part, dtype=float)[:, None] for part in (right, asked))
    (found,) = share_intervals(sums, counts, [Of(single=True)])
    assert found == pytest.approx(plain(right, asked, sum(asked)), rel=1e-6)
    # a fault without an answer is none
    more = [np.vstack([part, [[0.0]]]) for part in (sums, counts)]
    assert share_intervals(*more, [Of(single=True)])[0] == pytest.approx(found)


def test_values_that_cannot_be_raise_nothing():
    wild = np.array([[7.0, -3.0, 1e100], [0.0, 0.0, 1.0], [2.0, -1.0, 1e100]])
    bounds = share_intervals(wild, np.ones((3, 3)), [Of(), Of(single=True), Of(amount=True)])
    assert bounds.shape == (3, 2)


def test_swapping_the_runs_turns_the_interval_round():
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 5, (12, 1)).astype(float)
    gains, losses = rng.binomial(counts.astype(int), 0.3).astype(float), np.zeros((12, 1))
    losses[3] = counts[3] - gains[3]
    held = [Of(single=True, difference=True)]
    ((low, high),) = difference_intervals(gains, losses, counts, held)
    assert difference_intervals(losses, gains, counts, held)[0] == pytest.approx((-high, -low))


def test_counts_alone_have_the_exact_interval():
    """Published values, Newcombe 1998, Statistics in Medicine 17, 857, table I, method 5."""
    for right, trials, low, high in ((81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684)):
        assert clopper_pearson(right, trials) == pytest.approx((low, high), abs=5e-5)
    assert clopper_pearson(1, 29) == pytest.approx((0.0009, 0.1776), abs=5e-5)


def test_percentiles_of_amounts_are_widened_for_few_faults():
    """Of means of normal values, 86 % of the plain ones hold 0."""
    values = np.random.default_rng(7).normal(size=(8, REPEATS))
    bounds = intervals(lambda weights: weights @ values / 8, 8, seed=0, draws=1000)
    assert covered(bounds, 0.0) >= 0.92
