"""Several reward models as one: the formulas, what a configuration may say, and who has to agree."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.rewards.model.ensemble import joined, read_members, spread

MEMBER = {"path": "rm2", "address": "here:1"}


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 4)), min_size=1, max_size=5), st.floats(0, 3))
def test_a_whole_weight_is_so_many_equal_members(members, k):
    scores, weights = zip(*members)
    repeated = [score for score, weight in members for _ in range(weight)]
    mean = math.fsum(repeated) / len(repeated)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in repeated) / len(repeated))
    assert spread(scores, weights) == pytest.approx(std, abs=1e-9)
    assert joined("mean", scores, weights) == pytest.approx(mean, abs=1e-9)
    assert joined("mean_minus_std", scores, weights, k) == pytest.approx(mean - k * std, abs=1e-9)
    assert joined("minimum", scores, weights) == min(repeated)


@pytest.mark.parametrize("how", ["mean", "minimum", "mean_minus_std"])
@pytest.mark.parametrize("scores", [(math.nan, 1.0), (1.0, math.nan)])
def test_a_member_without_a_score_leaves_the_answer_without_one(how, scores):
    assert math.isnan(joined(how, scores, (1.0, 1.0)))


@pytest.mark.parametrize(
    "members, said",
    [
        ({"path": "a"}, "expected a list of sections"),
        ([{**MEMBER, "weigth": 1}], r"members\[0\].weigth: no such setting"),
        ([{"path": "a"}], r"members\[0\].address=None: expected a text"),
        ([MEMBER, {**MEMBER, "weight": 0}], r"members\[1\].weight=0: expected a number above 0"),
        ([{**MEMBER, "weight": math.nan}], "expected a number above 0"),
    ],
)
def test_members_that_cannot_be_are_refused(members, said):
    with pytest.raises(ValueError, match=said):
        read_members(members, "reward.combined.members")


def test_an_ensemble_of_one_is_refused_and_so_are_running_numbers_of_several():
    with pytest.raises(ValueError, match="has no effect without reward.combined.members"):
        CombinedSettings.from_section({"ensemble": "minimum"})
    with pytest.raises(ValueError, match="normalise=running keeps the numbers of one"):
        CombinedSettings.from_section({"members": [MEMBER], "normalise": "running"})
    (member,) = CombinedSettings.from_section({"members": [MEMBER], "ensemble": "minimum"}).others
    assert (member.name, member.server, member.weight) == ("rm2", "vllm", 1.0)
