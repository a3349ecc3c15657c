"""The statistics of comparisons against brute force, known values and what they promise."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.evaluation.stats import paired_tests as paired
from verl_aiops.evaluation.stats.paired_tests import FEW_GROUPS, holm, mcnemar_exact, mean_intervals, sign_flip_test

# --- sign-flip test ---------------------------------------------------------------------------------------------------


def brute_force(differences, groups):
    """The share of all sign patterns of groups whose total is as far from 0."""
    sums = [math.fsum(d for d, g in zip(differences, groups) if g == group) for group in sorted(set(groups))]
    patterns = list(itertools.product((-1, 1), repeat=len(sums)))
    observed = abs(math.fsum(sums))
    hits = sum(abs(math.fsum(s * x for s, x in zip(signs, sums))) >= observed - 1e-9 for signs in patterns)
    return hits / len(patterns)


cases = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 7)), min_size=1, max_size=24)


@settings(deadline=None, max_examples=150)
@given(cases)
def test_exact_on_whole_numbers_is_the_share_of_all_sign_patterns(pairs):
    differences = np.array([d for d, _ in pairs]) / 3
    groups = np.array([g for _, g in pairs])
    test = sign_flip_test(differences, groups, denominator=3)
    assert test.method == "exact"
    assert test.p == pytest.approx(brute_force(differences, groups))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(-1, 1, width=16), st.integers(0, 7)), min_size=1, max_size=20))
def test_exact_on_any_numbers_is_the_share_of_all_sign_patterns(pairs):
    differences, groups = np.array([d for d, _ in pairs]), np.array([g for _, g in pairs])
    test = sign_flip_test(differences, groups)
    assert test.method == "exact"
    assert test.p == pytest.approx(brute_force(differences, groups))


def test_sampled_flips_come_near_the_exact_p():
    rng = np.random.default_rng(0)
    differences = rng.integers(-4, 6, size=60) / 4
    groups = np.arange(60) // 2
    exact = sign_flip_test(differences, groups, denominator=4)
    sampled = sign_flip_test(differences, groups, flips=20_000)
    assert (exact.method, sampled.method) == ("exact", "sampled")
    error = math.sqrt(exact.p * (1 - exact.p) / 20_000)
    assert abs(sampled.p - exact.p) < 4 * error + 1 / 20_000


def test_five_groups_that_all_gain_have_two_patterns_in_32():
    assert sign_flip_test(np.ones(5), np.arange(5), denominator=1).p == 2 / 32
    # ten incidents of these five faults are no better evidence
    assert sign_flip_test(np.ones(10), np.arange(10) // 2, denominator=1).p == 2 / 32


def test_without_any_difference_p_is_one():
    for differences in (np.zeros(9), np.full(9, np.nan), np.zeros(0)):
        groups = np.arange(len(differences))
        assert sign_flip_test(differences, groups, denominator=1).p == 1
        assert sign_flip_test(differences, groups).p == 1


def test_missing_differences_count_for_nothing_and_the_sign_does_not_matter():
    differences, groups = np.array([0.5, np.nan, 1.0, -0.5, 1.0, 1.0]), np.array([0, 0, 1, 2, 3, 4])
    p = sign_flip_test(differences, groups, denominator=2).p
    assert p == sign_flip_test(differences[[0, 2, 3, 4, 5]], groups[[0, 2, 3, 4, 5]], denominator=2).p
    assert p == sign_flip_test(-differences, groups, denominator=2).p


def test_a_denominator_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip_test(np.array([1 / 3, 0.5]), np.arange(2), denominator=2)


def test_many_groups_neither_overflow_nor_take_long():
    p = sign_flip_test(np.ones(4000), np.arange(4000), denominator=16).p
    assert 0 <= p < 1e-300


def test_true_null_hypotheses_are_rejected_no_more_often_than_promised():
    """Incidents of a fault move together, which a test that takes them as independent would mistake for evidence."""
    rng = np.random.default_rng(1)
    groups = np.arange(60) // 4
    clustered = independent = 0
    for _ in range(1000):
        differences = (rng.choice([-1, 0, 1], size=15)[groups] * (rng.random(60) < 0.8)).astype(float)
        clustered += sign_flip_test(differences, groups, denominator=1).p <= 0.05
        independent += sign_flip_test(differences, np.arange(60), denominator=1).p <= 0.05
    assert clustered <= 1000 * 0.05 + 3 * math.sqrt(1000 * 0.05 * 0.95)
    assert independent > 2 * clustered


# --- McNemar, Holm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "only_first, only_second, p", [(3, 10, 0.09228515625), (9, 1, 22 / 1024), (0, 0, 1.0), (4, 4, 1.0), (0, 6, 2 / 64)]
)
def test_mcnemar_by_the_binomial_distribution(only_first, only_second, p):
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p)
    assert mcnemar_exact(only_second, only_first) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_sign_flip_test_of_single_answers(only_first, only_second, same):
    differences = np.array([-1.0] * only_first + [1.0] * only_second + [0.0] * same)
    test = sign_flip_test(differences, np.arange(len(differences)), denominator=1)
    assert test.p == pytest.approx(mcnemar_exact(only_first, only_second))


def test_mcnemar_of_many_incidents():
    assert mcnemar_exact(30_000, 30_000) == 1.0
    assert mcnemar_exact(29_000, 31_000) == pytest.approx(math.erfc(1999 / math.sqrt(60_000) / math.sqrt(2)), rel=0.02)


def test_holm_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_no_correction_and_bonferroni_in_any_order(ps, random):
    adjusted = holm(ps)
    assert all(p <= a <= min(1.0, len(ps) * p) + 1e-12 for p, a in zip(ps, adjusted))
    assert adjusted[ps.index(min(ps))] == pytest.approx(min(1.0, len(ps) * min(ps)))
    order = list(range(len(ps)))
    random.shuffle(order)
    assert holm([ps[at] for at in order]) == pytest.approx([adjusted[at] for at in order])


# --- intervals of means -----------------------------------------------------------------------------------------------


def test_intervals_of_amounts_are_percentiles_of_means_over_drawn_groups():
    """Further out than 2.5 and 97.5 %, by t with 11 degrees of freedom and the n - 1 of a variance."""
    rng = np.random.default_rng(2)
    values, groups = rng.normal(size=40), rng.integers(0, 12, size=40)
    groups = np.unique(groups, return_inverse=True)[1]
    values[3] = np.nan
    (mean,) = mean_intervals(values[:, None], groups, seed=5)
    draws, again = [], np.random.default_rng(5)
    count = groups.max() + 1
    for _ in range(20):  # as `bootstrap.intervals` draws them
        for weights in again.multinomial(count, np.full(count, 1 / count), size=100):
            drawn = [v for v, g in zip(values, groups) for _ in range(weights[g]) if not math.isnan(v)]
            draws.append(math.fsum(drawn) / len(drawn))
    assert (mean.value, mean.n) == (pytest.approx(np.nanmean(values)), 39)
    outer = 100 * NormalDist().cdf(-2.20098516 * math.sqrt(count / (count - 1)))
    assert count == 12 and outer < 1.1
    assert (mean.low, mean.high) == pytest.approx(tuple(np.percentile(draws, [outer, 100 - outer])))


def test_intervals_have_the_width_of_the_normal_theory():
    values = np.random.default_rng(3).normal(size=(400, 1))
    (mean,) = mean_intervals(values, np.arange(400), seed=0)
    assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_asking_the_same_faults_again_narrows_no_interval():
    values = np.random.default_rng(4).normal(size=(30, 1))
    (once,) = mean_intervals(values, np.arange(30), seed=0)
    (thrice,) = mean_intervals(np.repeat(values, 3, axis=0), np.repeat(np.arange(30), 3), seed=0)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (once.n, thrice.n, once.groups, thrice.groups) == (30, 90, 30, 30)


def test_the_interval_of_a_difference_is_paired():
    """Two runs that differ by a constant have a difference without any spread, however much incidents vary."""
    first = np.random.default_rng(6).normal(size=50)
    *_, difference = mean_intervals(np.column_stack([first, first + 0.25, np.full(50, 0.25)]), np.arange(50), seed=0)
    (own, _, _) = mean_intervals(np.column_stack([first, first + 0.25, first * 0]), np.arange(50), seed=0)
    assert (difference.low, difference.high) == pytest.approx((0.25, 0.25))
    assert own.high - own.low > 0.3


def test_few_groups_have_a_mean_but_no_interval():
    for count in (1, FEW_GROUPS - 1, FEW_GROUPS):
        (mean,) = mean_intervals(np.arange(float(count))[:, None], np.arange(count), seed=0)
        assert mean.value == (count - 1) / 2
        assert (mean.low is None) == (count < FEW_GROUPS) == (mean.high is None)
    # groups without a value do not help
    values = np.array([1.0, 2.0, *[np.nan] * 10])[:, None]
    (mean,) = mean_intervals(values, np.arange(12), seed=0)
    assert (mean.value, mean.low, mean.groups) == (1.5, None, 2)
    (nothing,) = mean_intervals(np.full((12, 1), np.nan), np.arange(12), seed=0)
    assert (nothing.value, nothing.low, nothing.n) == (None, None, 0)


def test_the_work_of_the_exact_test_is_bounded(monkeypatch):
    monkeypatch.setattr(paired, "_MOST_STEPS", 100)
    differences = np.random.default_rng(7).integers(-9, 10, size=40) / 9
    assert sign_flip_test(differences, np.arange(40), denominator=9).method == "sampled"
