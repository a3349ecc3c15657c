"""The format of cases: what is read, what is refused and how, what is counted."""

import json
from collections import Counter

import pytest
from case_parts import ALERT, record

from verl_aiops.incidents import Incident, Simulator
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation import Case, Edge, case_of, load_case, read_cases, write_cases


def test_a_case_comes_back_as_it_was_written(tmp_path):
    cases = [Case.from_dict(record()), Case.from_dict({"id": "bare", "symptom": "查询变慢"})]
    assert write_cases(cases, tmp_path / "cases.jsonl") == 2
    assert list(read_cases(tmp_path / "cases.jsonl")) == cases
    assert cases[1].lang == "zh" and not cases[1].truth_known and cases[1].source == "user"


def test_services_are_those_that_the_telemetry_names_and_not_the_truth():
    case = Case.from_dict(record(root_causes=[{"component": "disk-7"}], propagation=None))
    assert case.services == ("db", "edge", "orders")


def test_times_are_seconds_or_iso_8601():
    row = record(alert="2025-11-30T14:03:00Z")
    assert Case.from_dict(row).alert == ALERT
    assert Case.from_dict(record(alert="2025-11-30T15:03:00+01:00")).alert == ALERT
    assert Case.from_dict(record(alert="2025-11-30 14:03:00")).alert == ALERT


def log(**changes):
    return {"logs": [{"service": "db", "text": "x", **changes}]}


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"id": 7}, "field 'id': expected a string, found int '7'"),
        ({"symptom": None}, "field 'symptom': expected this field, found none"),
        ({"signals": [1]}, "field 'signals': expected an object"),
        ({"signals": {"logs": {"a": 1}}}, "field 'signals.logs': expected a list of objects"),
        ({"signals": {"logs": [3]}}, "field 'signals.logs[0]': expected an object, found int"),
        ({"signals": log(service=None)}, "field 'signals.logs[0].service': expected this field, found none"),
        ({"signals": log(time="noon")}, "field 'signals.logs[0].time': expected a time such as"),
        ({"signals": log(time=1.7e12)}, "divide milliseconds by 1e3"),
        ({"signals": log(text="\ud800")}, "lone surrogate"),
        ({"signals": {"metrics": [{"service": "a", "name": "b", "points": [[1e9]]}]}}, "points[0]': expected a pair"),
        (
            {"signals": {"metrics": [{"service": "a", "name": "b", "points": [[1e9, True]]}]}},
            "points[0][1]': expected a finite number, found bool",
        ),
        ({"topology": [{"from": "a"}]}, "field 'topology[0].to': expected this field"),
        ({"no_fault": True}, "field 'no_fault': expected nothing beside root_causes"),
        ({"no_fault": "yes"}, "field 'no_fault': expected true or false"),
        ({"root_causes": None}, "field 'propagation': expected root_causes beside it"),
        ({"root_causes": [{"component": "a"}, {"component": "a"}]}, "field 'root_causes': 'a: None' is there twice"),
        ({"lang": "fr"}, "field 'lang': expected one of en, zh"),
        ({"recorded": {"answers": []}}, "field 'recorded.answers': expected at least one answer"),
        ({"recorded": {"answers": [{"name": "get", "arguments": 3, "text": ""}]}}, "arguments': expected an object"),
        ({"recorded": {"answers": [{"name": "a", "text": "b"}], "tools": [{}]}}, "recorded.tools[0]': expected {"),
    ],
)
def test_a_fault_is_told_with_its_key(changes, told):
    with pytest.raises(IncidentError, match=".*") as fault:
        Case.from_dict(record(**changes))
    assert told in str(fault.value)


def test_a_number_that_no_float_holds_is_refused():
    with pytest.raises(IncidentError, match="alert': expected a finite number"):
        Case.from_dict(record(alert=10**400))


def test_faults_of_a_file_name_file_line_and_key_and_nothing_is_skipped(tmp_path):
    rows = [record(), record(id="two", topology=3), record(id="shop-1"), record(id="four")]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{", encoding="utf-8")
    read = []
    with pytest.raises(IncidentError) as fault:
        read.extend(read_cases(path))
    assert [case.id for case in read] == ["shop-1"]
    for told in (
        f"{path}: 3 kinds of faults",
        "line 2: field 'topology'",
        "line 3: field 'id': 'shop-1' was",
        "line 5",
    ):
        assert told in str(fault.value)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("cases.csv", "id,symptom\n", "let the name end in .jsonl"),
        ("cases.jsonl", "", "expected at least one case"),
        ("cases.jsonl", '{\n "id": 1\n}', "JSON over several lines"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(IncidentError, match=told):
        list(read_cases(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_cases(tmp_path / "absent.jsonl"))


def test_fields_that_nothing_reads_are_counted_by_their_place(tmp_path):
    row = record(pod=1, signals={"logs": [{"service": "a", "text": "b", "pod": 1}] * 3, "profiles": []})
    row["root_causes"][0]["kind"] = "x"
    (tmp_path / "cases.jsonl").write_text(json.dumps(row), encoding="utf-8")
    unknown = Counter()
    list(read_cases(tmp_path / "cases.jsonl", unknown))
    assert unknown == {"pod": 1, "signals.logs.pod": 3, "signals.profiles": 1, "root_causes.kind": 1}


def test_one_case_of_a_file_by_its_id_also_where_the_file_was_moved(tmp_path, monkeypatch):
    cases = [Case.from_dict(record(id=f"case-{number}")) for number in range(5)] + [Case.from_dict(record(id='q"1'))]
    path = tmp_path / "cases.jsonl"
    write_cases(cases, path)
    assert load_case(path, "case-3") == cases[3] and load_case(path, 'q"1') == cases[5]
    assert load_case(path, "case-3") is load_case(path, "case-3")
    with pytest.raises(IncidentError, match="expected a case 'other' among its 6"):
        load_case(path, "other")
    write_cases([Case.from_dict(record(id="case-3", symptom="changed"))], path, overwrite=True)
    assert load_case(path, "case-3").symptom == "changed"
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / path.name)
    with pytest.raises(FileNotFoundError, match="VERL_AIOPS_CASES"):
        load_case(path, "case-3")
    monkeypatch.setenv("VERL_AIOPS_CASES", str(moved))
    assert load_case(path, "case-3").symptom == "changed"


def test_a_file_that_others_wrote_is_looked_up_too(tmp_path):
    rows = [{"symptom": "slow", "id": "b"}, {"source": "x", "symptom": "slow", "id": "c"}]
    path = tmp_path / "cases.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [load_case(path, name).source for name in "bc"] == ["user", "x"]


def test_the_ground_truth_has_what_is_known_alone():
    assert Case.from_dict({"id": "a", "symptom": "b"}).ground_truth() == {}
    truth = Case.from_dict(record()).ground_truth()
    assert set(truth) == {"root_causes", "propagation", "severity", "team", "services", "reasons"}
    assert truth["root_causes"] == [
        {"component": "db", "reason": "connections_exhausted", "time": ALERT - 120.0},
    ]
    assert Case.from_dict(record(no_fault=True, root_causes=None, propagation=None)).ground_truth()["no_fault"] is True


def test_todays_incidents_are_cases_of_one_cause():
    simulator = Simulator(difficulty="hard", lang="mix")
    for incident in simulator.stream(40):
        case = case_of(incident)
        assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case
        assert case.truth_known and case.split_group == incident.fault
        assert {line.text for line in case.signals.logs} >= set(incident.logs)
        if incident.service in ("none", "unknown"):
            assert case.root_causes == () and case.no_fault == (incident.service == "none")
            continue
        assert [(cause.component, cause.reason) for cause in case.root_causes] == [
            (incident.service, incident.incident_type)
        ]
        assert [edge.source for edge in case.propagation[:1]] == [incident.service][: len(incident.upstream)]


def test_lines_of_an_incident_belong_to_the_service_that_they_name_first():
    incident = Incident(
        id="a",
        source="shop",
        service="db",
        incident_type="disk_full",
        symptom="slow",
        logs=("12:00 ERROR order-service: db gave up", "WARN disk of db full", "nothing known"),
        trace="span edge -> order-service GET /x 10 ms (usual 9) ok",
        service_aliases=("mysql",),
    )
    case = case_of(incident, services=("db", "order", "order-service"))
    assert [(line.service, line.level) for line in case.signals.logs] == [
        ("order-service", "ERROR"),
        ("db", "WARN"),
        ("shop", None),
        ("edge", "TRACE"),
    ]
    assert case.topology == (Edge("edge", "order-service"),)
    assert case.root_causes[0].component == "db" and case.root_causes[0].component_aliases == ("mysql",)
