"""PetShop: which metrics make a record, what is evidence, and what is left out."""

from __future__ import annotations

import pytest
from import_harness import check_incidents, petshop_issue, petshop_metrics, write_csv, write_json

from verl_aiops.incidents import IncidentError
from verl_aiops.incidents.importers import import_incidents
from verl_aiops.incidents.importers.petshop import Change, read_metrics

SHOP = ("Shop", "latency", "Average")
ROOT = ("till_AWS::Lambda", "latency", "p90")
DELAY = "set --name searchdelay --value 500"


def usual_series(count=12):
    series = {SHOP: [0.1] * 5, ROOT: [0.2] * 5, ("till_AWS::Lambda", "latency", "p50"): [0.2] * 5}
    return series | {(f"node{n}", "latency", "p99"): [0.5, 0.5, "", 0.5, 0.5] for n in range(count)}


def make_petshop(root, issues, scenario="high_traffic", usual=None):
    """Issues are (folder, root cause, metric, command, series that differ from the usual ones)."""
    usual = usual_series() if usual is None else usual
    petshop_metrics(root / "dataset" / scenario / "noissue" / "metrics.csv", usual)
    for folder, cause, metric, command, changed in issues:
        petshop_issue(root / "dataset" / scenario / folder, cause, metric, command, {**usual, **changed})
    return root


def imported(tmp_path, *arguments, **named):
    root = make_petshop(tmp_path / "shop", *arguments, **named)
    report = import_incidents("petshop", root, tmp_path / "out.jsonl", overwrite=True)
    return check_incidents(tmp_path / "out.jsonl"), report


SLOW = {SHOP: [0.2] * 5, ROOT: [0.9, 0.9, "", 0.9, 1.3]}


def test_an_issue_is_its_window_against_the_fault_free_run(tmp_path):
    (incident,), _ = imported(tmp_path, [("test/issue_0", "till_AWS::Lambda", "latency", DELAY, SLOW)])
    line = "metric till_AWS::Lambda latency p90=1 (usual 0.2)"
    assert (incident.id, incident.source, incident.service) == ("petshop-001", "petshop/high_traffic", "till")
    assert incident.incident_type == "slow_code_path"
    assert incident.symptom == "Shop latency (Average) alarm at 2023-04-13 15:19 UTC: 0.2 against a usual 0.1."
    assert incident.evidence == (line,) and line in incident.logs
    assert "metric Shop latency Average=0.2 (usual 0.1)" in incident.logs
    # Medians and 95th percentiles are not shown.
    assert not any(" p50=" in text for text in incident.logs)
    assert len(incident.logs) == len(set(incident.logs)) == 12


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (DELAY, "slow_code_path"),
        ("sed 's/sleep(100/sleep(500/' x.js", "slow_code_path"),
        ("put --name errormode1 --value true", "request_errors"),
        ("sed 's/inject = false/inject = true/' x.js", "request_errors"),
        ("python -m issue_dynamo_db_requests -n 8", "request_overload"),
    ],
)
def test_the_command_tells_the_type(tmp_path, command, kind):
    (incident,), _ = imported(tmp_path, [("test/issue_0", "till_AWS::Lambda", "latency", command, SLOW)])
    assert incident.incident_type == kind


def test_a_root_cause_that_did_not_move_is_shown_but_no_evidence(tmp_path):
    changed = {(f"node{n}", "latency", "p99"): [5.0] * 5 for n in range(12)}
    (incident,), report = imported(tmp_path, [("test/issue_0", "till_AWS::Lambda", "latency", DELAY, changed)])
    assert "metric till_AWS::Lambda latency p90=0.2 (usual 0.2)" in incident.logs
    assert incident.evidence == () and report.without_evidence == 1


def test_issues_are_numbered_by_scenario_and_path(tmp_path):
    issue = ("till_AWS::Lambda", "latency", DELAY, SLOW)
    make_petshop(tmp_path / "shop", [("train/issue_0", *issue)], scenario="low_traffic")
    incidents, _ = imported(tmp_path, [(f"test/issue_{n}", *issue) for n in (0, 1, 10, 2)])
    assert [incident.source for incident in incidents] == ["petshop/high_traffic"] * 4 + ["petshop/low_traffic"]
    assert [incident.id for incident in incidents] == [f"petshop-{n:03}" for n in range(1, 6)]


def test_what_is_left_out_is_counted(tmp_path):
    issues = [
        ("test/issue_0", "till_AWS::Lambda", "latency", DELAY, SLOW),
        ("test/issue_1", "till_AWS::Lambda", "latency", "make tea", SLOW),
        ("test/issue_2", "till_AWS::Lambda", "availability", DELAY, SLOW),
        ("test/issue_3", "till_AWS::Lambda", "warmth", DELAY, SLOW),
    ]
    petshop_issue(tmp_path / "shop/dataset/low_traffic/test/issue_0", "till", "latency", DELAY, SLOW)
    (tmp_path / "shop/dataset/moon_traffic").mkdir()
    incidents, report = imported(tmp_path, issues)
    assert len(incidents) == 1
    assert report.left_out == {
        "issues: no pattern of the mapping fits the command 'make tea'": 1,
        "issues: no values of the alarmed metric Shop availability Average": 1,
        "issues: the alarmed metric 'warmth' is neither latency nor availability": 1,
        "issues: no fault-free run (noissue/metrics.csv) of low_traffic": 1,
        "issues: no fault-free run (noissue/metrics.csv) of temporal_traffic1": 1,
        "issues: no fault-free run (noissue/metrics.csv) of temporal_traffic2": 1,
        "scenarios: 'moon_traffic' is not in the mapping": 1,
    }


def test_worsening_is_a_factor_or_the_points_of_availability_lost():
    assert (
        Change(
            ("a", "availability", "Average"),
            97.5,
            100,
        ).worsening
        == 3.5
    )
    assert Change(("a", "requests", "Sum"), 9, 4).worsening == 2
    assert Change(("a", "requests", "Sum"), 1, 0).worsening == 2
    assert Change(("a", "latency", "p90"), 0.019, 0.009).worsening == pytest.approx(2)
    # Fewer requests are no worsening.
    assert Change(("a", "requests", "Sum"), 0, 9).worsening < 1


def test_series_without_values_are_no_series(tmp_path):
    path = petshop_metrics(tmp_path / "m.csv", {SHOP: ["", "nan", "inf"], ROOT: ["", 2, "x"]})
    assert read_metrics(path) == {ROOT: [2.0]}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, r"target.json: expected target \(node, metric, agg, timestamp\)"),
        ({"target": {"node": "Shop", "metric": "latency", "agg": "Average", "timestamp": "soon"}}, r"expected target"),
        ({"target": {"node": "Shop", "metric": "latency", "agg": "Average", "timestamp": 1e300}}, r"expected target"),
        ("{", r"target.json: not valid JSON"),
    ],
)
def test_damaged_targets_are_refused(tmp_path, target, message):
    root = make_petshop(tmp_path / "shop", [("test/issue_0", "till_AWS::Lambda", "latency", DELAY, SLOW)])
    path = root / "dataset/high_traffic/test/issue_0/target.json"
    if isinstance(target, str):
        path.write_text(target)
    else:
        write_json(path, target)
    with pytest.raises(IncidentError, match=message):
        import_incidents("petshop", root, tmp_path / "out.jsonl")


def test_damaged_tables_are_refused(tmp_path):
    path = write_csv(tmp_path / "m.csv", ["time", "a"], [[1, 2]] * 5)
    with pytest.raises(IncidentError, match=r"m.csv: expected header rows microservice, metric, statistic"):
        read_metrics(path)
    path = petshop_metrics(tmp_path / "m.csv", {SHOP: [1], ROOT: [2]})
    path.write_text(path.read_text() + "7\n")
    with pytest.raises(IncidentError, match=r"m.csv: expected rows of 3 cells throughout"):
        read_metrics(path)
