"""Parts that are added to the triage reward: paid and taken in the same sum, never more than a right field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_aiops.rewards.aiops_mturn import compute_score
from verl_aiops.rewards.triage.components import PARTS, RESULTS, RewardPart
from verl_aiops.rewards.triage.settings import read_settings

TRUTH = {"service": "cart", "incident_type": "memory_leak", "evidence": ["cart rss 3.9 GiB"]}
RIGHT = json.dumps({"service": "cart", "incident_type": "memory_leak"})
HALF = json.dumps({"service": "cart", "incident_type": "disk_full"})


@pytest.fixture
def added():
    """Function (name, function, weight, costs=False) that adds a part for one test."""
    before = dict(PARTS)

    def add(name, measure, weight, costs=False):
        PARTS[name] = RewardPart(measure, weight, costs)

    yield add
    PARTS.clear()
    PARTS.update(before)


def score(answer, thought='"cart rss 3.9 GiB"', **settings):
    extra_info = {"turns": [thought, answer], "incident_text": "cart rss 3.9 GiB\nother"}
    return compute_score("aiops_mturn", "", TRUTH, extra_info, **settings)


def test_without_parts_the_result_has_the_keys_that_no_part_may_have():
    assert tuple(score(RIGHT)) == RESULTS
    assert read_settings({}) is read_settings({}) and read_settings({}).parts == ()


def test_a_part_that_pays_is_in_the_sum_and_in_what_a_perfect_answer_earns(added):
    added("tidy", lambda reading: 0.5, 0.04)
    result = score(RIGHT)
    assert tuple(result) == (*RESULTS, "tidy")
    assert result["tidy"] == 0.5
    assert result["score"] == pytest.approx((1.0 + 0.04 * 0.5) / 1.04)
    assert score(RIGHT, tidy_weight=0.02)["score"] == pytest.approx((1.0 + 0.02 * 0.5) / 1.02)
    assert score(RIGHT, tidy_weight=0.0)["score"] == score(RIGHT, tidy_weight=0)["score"] == 1.0


def test_a_part_that_costs_is_taken_off_and_a_perfect_answer_still_earns_one(added):
    added("rude", lambda reading: "damn" in reading.early[0], 0.04, costs=True)
    assert score(RIGHT)["score"] == 1.0
    assert score(RIGHT, 'damn "cart rss 3.9 GiB"')["score"] == pytest.approx(0.96)
    assert score("nothing", "damn")["score"] == 0.0


def test_a_part_sees_the_answer_as_it_was_read(added):
    seen = []
    added("looks", lambda reading: seen.append(reading) or 0.0, 0.01)
    score(HALF, "thinking")
    (reading,) = seen
    assert (reading.service_ok, reading.type_ok) == (True, False)
    assert (reading.early, reading.final) == (("thinking",), HALF)
    assert reading.answer.incident_type == "disk_full" and reading.truth.service == {"cart"}
    assert reading.incident_text == "cart rss 3.9 GiB\nother"


@given(weight=st.floats(0, 0.0499), value=st.floats(0, 1), other=st.floats(0, 1), costs=st.booleans())
def test_one_more_right_field_always_earns_more_whatever_the_part_says(weight, value, other, costs):
    try:
        PARTS["any_part"] = RewardPart(lambda reading: value if reading.type_ok else other, weight, costs)
        assert score(RIGHT, "service: x {")["score"] > score(HALF)["score"]
    finally:
        del PARTS["any_part"]


def test_weights_by_which_form_could_outweigh_a_right_field_are_refused(added):
    added("tidy", lambda reading: 1.0, 0.05)
    with pytest.raises(ValueError, match=r"length_weight \+ tidy_weight = 0.4 must stay below"):
        score(RIGHT)
    with pytest.raises(ValueError, match="must stay below"):
        read_settings({})
    assert score(RIGHT, tidy_weight=0.049)["score"] == 1.0


def test_a_weight_that_cannot_be_or_is_misspelled_is_refused(added):
    added("tidy", lambda reading: 1.0, 0.01)
    for wrong in (-0.1, 1.5, float("nan"), True, "0.1"):
        with pytest.raises(ValueError, match="reward_kwargs: tidy_weight: expected a number from 0.0 to 1.0"):
            score(RIGHT, tidy_weight=wrong)
    with pytest.raises(ValueError, match="the nearest known one is 'tidy_weight' \\(from 0.0 to 1.0\\)"):
        score(RIGHT, tidyy_weight=0.01)


@pytest.mark.parametrize("value", [1.01, -0.01, float("nan"), float("inf"), None, "1"])
def test_what_is_no_number_from_0_to_1_is_an_error_that_names_the_part(added, value):
    added("tidy", lambda reading: value, 0.01)
    with pytest.raises(ValueError, match="reward part 'tidy': expected a number from 0 to 1"):
        score(RIGHT)


@pytest.mark.parametrize("name", ["score", "evidence", "rm", "two words", "", "format"])
def test_a_name_that_is_taken_or_is_none_is_refused(added, name):
    added(name, lambda reading: 1.0, 0.01)
    with pytest.raises(ValueError, match=f"reward part {name!r}"):
        score(RIGHT)


def test_a_line_that_is_no_part_is_refused(added):
    PARTS["tidy"] = lambda reading: 1.0
    with pytest.raises(ValueError, match=r"reward part 'tidy': expected RewardPart\(function, weight\)"):
        score(RIGHT)
