"""Who takes part in an incident: one cause, and rivals that its alert cannot be about."""

from __future__ import annotations

from random import Random

import pytest

from verl_aiops.incidents.simulator import DIFFICULTIES, TOPOLOGIES
from verl_aiops.incidents.simulator.cast import (
    BORDER,
    CAUSE,
    ELSEWHERE,
    FAULT,
    LATE,
    NEIGHBOUR,
    OVER,
    UNTOLD,
    YESTERDAY,
    make_cast,
)


@pytest.fixture(scope="module")
def casts():
    """(system, cast) of hard incidents."""
    systems = list(TOPOLOGIES.values())
    return [(systems[n % 4], make_cast(Random(n), systems[n % 4], DIFFICULTIES["hard"])) for n in range(1500)]


def test_no_service_has_two_faults_on_one_day(casts):
    for _, cast in casts:
        struck = [story.service for story in cast.stories if story.role != YESTERDAY]
        struck += [story.flooded for story in cast.stories if story.flooded and story.role != YESTERDAY]
        assert len(set(struck)) == len(struck)


def test_the_cause_comes_first_and_only_where_a_fault_is_to_be_named(casts):
    for _, cast in casts:
        assert [story.role == CAUSE for story in cast.stories] == [
            cast.verdict == FAULT and number == 0 for number in range(len(cast.stories))
        ]


def test_rivals_are_no_explanation_of_the_alert(casts):
    roles = set()
    for system, cast in casts:
        cause = cast.stories[0] if cast.verdict == FAULT else None
        for story in cast.stories[1 if cause else 0 :]:
            roles.add(story.role)
            assert set(story.chain) <= story.flow.through
            assert all(callee in system.calls[caller] for callee, caller in zip(story.chain, story.chain[1:]))
            if story.role in (ELSEWHERE, NEIGHBOUR):
                assert story.service not in cast.flow.through and story.flow is not cast.flow
            if story.role in (OVER, YESTERDAY):
                assert story.start < story.end < -300
            if story.role == LATE:
                assert story.start >= 150 and (cause or story.service not in cast.flow.through)
            if cause and story.role not in (OVER, YESTERDAY):
                assert cause.service not in story.chain
            if story.role in (ELSEWHERE, NEIGHBOUR, BORDER) and cause:
                assert story.service not in cause.chain
            if cast.verdict == UNTOLD and story.role == BORDER:
                assert story.service not in cast.flow.through
    assert roles == {ELSEWHERE, NEIGHBOUR, OVER, YESTERDAY, LATE, BORDER}
