"""Simulated cases: what is told of them is true of their telemetry, and a seed gives what it gives."""

from collections import Counter

import pytest

from verl_aiops.incidents import Difficulty, Simulator, Wordings
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation import Case
from verl_aiops.investigation.rules import rule_verdict
from verl_aiops.investigation.simulator import CASE_DIFFICULTIES, CaseSimulator
from verl_aiops.investigation.tools.metrics import summary_of
from verl_aiops.investigation.tools.traces import failed


def mixed(seed=0):
    return CaseSimulator(seed, difficulty="mix", lang="mix", several=0.3, no_fault=0.1, cannot_tell=0.1)


@pytest.fixture(scope="module")
def cases():
    return list(mixed().stream(120))


def test_a_case_depends_on_settings_seed_and_number_alone(cases):
    simulator = mixed()
    assert simulator.case(7) == cases[7] and list(simulator.stream(2, start=7)) == cases[7:9]
    assert mixed(seed=1).case(7) != cases[7]
    assert Case.from_dict(cases[7].to_dict()) == cases[7]


def test_shares_of_kinds_are_what_was_asked_for():
    simulator = CaseSimulator(several=0.5, no_fault=0.2, cannot_tell=0.3, before=10, after=1, metrics=0, log_rate=0)
    kinds = Counter(
        "none" if c.no_fault else "untold" if c.cannot_tell else len(c.root_causes) for c in simulator.stream(200)
    )
    assert 25 <= kinds["none"] <= 60 and 40 <= kinds["untold"] <= 80
    # in a small system there may be no room for a second one
    assert kinds[2] + kinds[3] > 20 and kinds[1] > 20 and set(kinds) <= {"none", "untold", 1, 2, 3}


def test_several_causes_are_on_one_flow_and_none_is_an_effect_of_another(cases):
    several = [case for case in cases if len(case.root_causes) > 1]
    assert several
    for case in several:
        roots = {cause.component for cause in case.root_causes}
        assert not roots & {edge.target for edge in case.propagation}
        assert len(roots) == len(case.root_causes)


def test_a_path_leads_from_the_root_cause_up_the_calls(cases):
    for case in cases:
        calls = set(case.topology)
        sources = {cause.component for cause in case.root_causes}
        for edge in case.propagation:
            assert (edge.target, edge.source) in calls and edge.source in sources
            sources.add(edge.target)
        assert all(cause.reason in case.reasons for cause in case.root_causes)


def test_telemetry_lies_before_during_and_after_the_alert(cases):
    for case in cases:
        for series in case.signals.metrics:
            today = [time for time, _ in series.points if time > case.alert - 43_200]
            assert all(case.alert - 1800 <= time <= case.alert + 600 for time in today)
        spans = [span.time for span in case.signals.spans]
        assert min(spans) < case.alert - 1200 and max(spans) > case.alert + 300


def test_what_a_fault_moves_moves_at_its_time_and_requests_fail_where_it_reaches(cases):
    moved = failing = looked = 0
    for case in cases:
        if len(case.root_causes) != 1 or case.root_causes[0].time is None:
            continue
        cause = case.root_causes[0]
        looked += 1
        series = [row for row in case.signals.metrics if row.service == cause.component]
        moved += any(abs(summary_of(row, cause.time).moved) > 6 for row in series)
        failing += any(
            failed(span) or (span.duration_ms or 0) > 2000
            for span in case.signals.spans
            if span.service == cause.component and cause.time <= span.time
        )
    assert looked > 60 and moved > 0.9 * looked
    assert failing > 0.6 * looked  # faults that make data stale show in no request


def test_of_a_silent_service_nothing_arrives(cases):
    told = [case for case in cases if case.cannot_tell]
    assert told
    for case in told:
        silent = {note.service: note.time for note in case.signals.events if note.kind == "collector"}
        assert silent
        for rows in (case.signals.logs, case.signals.spans):
            assert not [row for row in rows if row.service in silent and row.time > silent[row.service]]


def test_wordings_and_topologies_are_held_out():
    simulator = CaseSimulator(wordings=Wordings(0.4), topologies=("shop", "bank"))
    used = [
        {line.text for case in part.stream(30) for line in case.signals.logs}
        for part in (simulator, simulator.held_out())
    ]
    assert {case.source for case in simulator.stream(30)} == {"simulator/shop", "simulator/bank"}
    assert {case.source for case in simulator.held_out().stream(30)} == {
        "simulator/shop/new-wordings",
        "simulator/bank/new-wordings",
    }
    # a request that is well is written in one way
    assert all(used) and not {line for line in used[0] & used[1] if " 200 in " not in line}


def test_size_is_what_was_asked_for():
    small = CaseSimulator(before=10, after=0, log_rate=0, request_rate=0, metrics=0).case(1)
    large = CaseSimulator(before=120, after=30, log_rate=1, request_rate=5, metrics=8).case(1)
    assert small.signals.spans == () and len(large.signals.spans) > 1000
    assert len(large.signals.logs) > 50 * len(small.signals.logs) / 10
    assert max(len(series.points) for series in large.signals.metrics) == 151


@pytest.mark.parametrize(
    "setting, told",
    [
        ({"several": 2}, "several: expected a share"),
        ({"before": 3}, "before: expected 10 to 1440"),
        ({"difficulty": "x"}, "difficulty 'x': expected one of easy"),
        ({"topologies": ("x",)}, "topology 'x': expected one of shop"),
        ({"topologies": ()}, "topologies: expected at least one"),
        ({"no_fault": 0.6, "cannot_tell": 0.6}, "expected shares of 1 at most together"),
        ({"lang": "fr"}, "lang 'fr'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, told):
    with pytest.raises(IncidentError, match=told):
        CaseSimulator(**setting)


def test_an_incident_has_one_cause():
    with pytest.raises(IncidentError, match="an incident has one cause"):
        Simulator(difficulty=Difficulty(roots=(1, 2)))


def test_the_rule_along_the_call_graph_is_better_on_easy_cases_and_never_reads_the_truth():
    right = {}
    for name in CASE_DIFFICULTIES:
        cases = list(CaseSimulator(difficulty=name, several=0).stream(80))
        right[name] = sum(
            {cause["component"] for cause in rule_verdict(case)["root_causes"]}
            == {cause.component for cause in case.root_causes}
            for case in cases
        )
    assert right["easy"] > 60 and right["easy"] > right["hard"] > 20
    row = cases[0].to_dict()
    blind = Case.from_dict({name: row[name] for name in row if name not in ("root_causes", "propagation", "group")})
    assert rule_verdict(blind) == rule_verdict(cases[0])
    assert rule_verdict(Case(id="a", source="b", symptom="c")) == {"root_causes": [], "verdict": "no_fault"}
