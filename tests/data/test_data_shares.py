"""Files in shares: exact in every epoch, nothing twice before all of it, the same when a run goes on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.shares import _part, draw_epoch, quotas, read_shares

# 12 examples of 6 prompts in file 0, 6 of 6 in file 1, prompts of several examples apart in the file
FILES = np.array([0] * 12 + [1] * 6)
PROMPTS = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, *range(6, 12)])


def epochs(number, shares=(2 / 3, 1 / 3), **options):
    return [draw_epoch(PROMPTS, FILES, shares, **({"seed": 3, "epoch": at} | options)) for at in range(number)]


@pytest.mark.parametrize("shares", [(2 / 3, 1 / 3), (0.5, 0.5), (0.9, 0.1), (0.01, 0.99)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_its_shares(shares, shuffle):
    for drawn in epochs(5, shares, shuffle=shuffle):
        assert len(drawn) == 18
        assert np.bincount(FILES[drawn], minlength=2).tolist() == quotas(shares, 18)


@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_comes_twice_before_all_of_its_file_has_come(shuffle):
    drawn = np.concatenate([part[FILES[part] == 1] for part in epochs(6, (0.75, 0.25), shuffle=shuffle)])
    assert len(drawn) == 6 * quotas((0.75, 0.25), 18)[1] and len(drawn) % 6 == 0
    counts = np.bincount(drawn, minlength=18)[12:]
    assert set(counts.tolist()) == {len(drawn) // 6}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_prompts_examples_stand_together(shuffle):
    for drawn in epochs(3, shuffle=shuffle):
        changes = np.count_nonzero(np.diff(PROMPTS[drawn])) + 1
        assert changes == len(set(PROMPTS[drawn].tolist())) == 12


def test_epochs_follow_from_seed_and_number_alone():
    assert (epochs(3)[2] == draw_epoch(PROMPTS, FILES, (2 / 3, 1 / 3), seed=3, epoch=2)).all()
    first, second = epochs(2)
    assert sorted(first.tolist()) == sorted(second.tolist()) and (first != second).any()
    assert (first != epochs(1, seed=4)[0]).any()
    still = epochs(2, shuffle=False)
    assert (still[0] == still[1]).all() and still[0].tolist() == [
        0,
        3,
        12,
        1,
        4,
        13,
        2,
        5,
        14,
        6,
        9,
        15,
        7,
        10,
        16,
        8,
        11,
        17,
    ]


def test_a_file_that_begins_again_comes_in_another_order():
    passes = _part(PROMPTS, FILES, 1, 0, 18, seed=3).reshape(3, 6).tolist()
    assert all(sorted(one) == list(range(12, 18)) for one in passes) and len(set(map(tuple, passes))) == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_any_shares_sum_up(sizes, data):
    shares = np.array([data.draw(st.floats(0.01, 1.0)) for _ in sizes])
    files = np.repeat(np.arange(len(sizes)), sizes)
    counts = quotas((shares / shares.sum()).tolist(), len(files))
    assert sum(counts) == len(files) and min(counts) >= 0
    drawn = draw_epoch(np.arange(len(files)) // 2, files, (shares / shares.sum()).tolist(), seed=0, epoch=7)
    assert np.bincount(files[drawn], minlength=len(sizes)).tolist() == counts


def test_shares_as_they_are_given():
    files = np.array([0, 0, 1])
    assert read_shares(None, ["a", "b"], files) is None
    assert read_shares([7, 3], ["a", "b"], files) == [0.7, 0.3]
    for shares, said in (
        ([1], "one share for each of the 2"),
        ([1, 0], "numbers above 0"),
        ([1, -1], "numbers above 0"),
        ([1, float("nan")], "numbers above 0"),
        ([1, "2"], "numbers above 0"),
        ([True, 1], "numbers above 0"),
    ):
        with pytest.raises(PreferenceDataError, match=said):
            read_shares(shares, ["a", "b"], files)
    with pytest.raises(PreferenceDataError, match="c should have the share 1, but gives no example"):
        read_shares([1, 1, 1], ["a", "b", "c"], files)
