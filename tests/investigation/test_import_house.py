"""One's own house: exports of every kind become cases, and what does not fit is told with file, row and key."""

import json

import pytest
from house_parts import ALERT, MAPPING, make_house, otlp_log, pagerduty, webhook

from verl_aiops.cli.main import main
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation import Edge, answer, read_cases
from verl_aiops.investigation.importers import import_cases
from verl_aiops.investigation.importers.house.alerts import read_alerts
from verl_aiops.investigation.importers.source import (
    CaseJob,
    bounded_logs,
    bounded_spans,
    service_of_pod,
)
from verl_aiops.investigation.importers.texts import when
from verl_aiops.investigation.signals import LogLine, Span


@pytest.fixture
def house(tmp_path):
    return make_house(tmp_path / "house")


def imported(house, **more):
    report = import_cases("house", house, house.parent / "cases.jsonl", overwrite=True, **more)
    return report, list(read_cases(house.parent / "cases.jsonl"))


def test_each_alert_is_a_case_with_what_was_around_it(house):
    report, (first, second) = imported(house)
    assert (first.id, first.source, first.alert) == ("abc123", "acme/shop", ALERT + 0.123456)
    assert (first.symptom, first.severity, first.team) == ("CheckoutErrors: Checkout fails", "page", "shop")
    assert [(line.service, line.level, line.text) for line in first.signals.logs] == [
        ("db", "FATAL", "too many clients already"),
        ("orders", "ERROR", "db: timeout"),
    ]
    assert [(span.service, span.status, span.duration_ms) for span in first.signals.spans] == [
        ("orders", "ok", 90.0),
        ("orders", "error", 900.0),
        ("db", "error", 800.0),
    ]
    (series,) = first.signals.metrics
    assert (series.service, series.name) == ("db", "pg_connections{state=active}") and len(series.points) == 40
    (event,) = first.signals.events
    assert (event.service, event.kind) == ("orders", "Unhealthy") and event.text.endswith("probe failed (x4)")
    assert [(note.service, note.kind, note.text) for note in first.signals.changes] == [
        ("orders", "release", "version 1.2.3")
    ]
    assert first.topology == (Edge("orders", "db"),) and first.propagation == (Edge("db", "orders"),)
    assert (second.id, second.severity, second.team, second.truth_known) == ("PD1", "high", "orders", False)
    # a day of changes, an hour of the rest
    assert second.signals.logs == () and len(second.signals.changes) == 1
    told = str(report)
    assert "2 cases from your own alerts and telemetry, the truth of 1 is known" in told
    for left in (
        "1 series: no label names the service",
        "1 points: no number, or no time",
        "1 logRecords: the resource names no service",
        "1 changes: no time",
        "1 logs: around no alert",
    ):
        assert f"left out: {left}" in told
    assert "connections" in answer(first, "query_metrics", {"service": "db"}).text


def test_the_command_imports_and_lists(house, capsys):
    out = house.parent / "out.jsonl"
    assert main(["import", "house", str(house), "--out", str(out)]) == 0
    assert "2 cases" in capsys.readouterr().out and (house.parent / "out.jsonl.LICENCE.txt").exists()
    assert main(["import", "house", str(house), "--out", str(out)]) == 2
    assert "already there" in capsys.readouterr().err
    assert main(["import", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name}: " in listed for name in ("house", "rcaeval", "cloudopsbench", "openrca2"))


@pytest.mark.parametrize(
    "alert, expected",
    [
        (webhook(), ("abc123", "CheckoutErrors: Checkout fails")),
        (webhook()["alerts"][0], ("abc123", "CheckoutErrors: Checkout fails")),
        ({"status": "success", "data": webhook()["alerts"]}, ("abc123", "CheckoutErrors: Checkout fails")),
        (pagerduty(), ("PD1", "Orders are slow")),
        ({"incident": pagerduty()}, ("PD1", "Orders are slow")),
        ({"incidents": [pagerduty()]}, ("PD1", "Orders are slow")),
        ({"event": {"event_type": "incident.triggered", "data": pagerduty()}}, ("PD1", "Orders are slow")),
    ],
)
def test_alerts_are_read_in_every_form(tmp_path, alert, expected):
    for name, value in (("a.json", alert), ("b.json", [alert])):
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
        (found,) = read_alerts(tmp_path / name)
        assert (found.ids[0], found.symptom) == expected


def test_alerts_that_were_sent_together_are_one_case(tmp_path):
    group = webhook()
    later = {**group["alerts"][0], "startsAt": "2025-11-30T14:05:00Z", "fingerprint": "later"}
    later["annotations"] = {"summary": "Cart fails"}
    group["alerts"].insert(0, later)
    (tmp_path / "a.json").write_text(json.dumps(group), encoding="utf-8")
    (found,) = read_alerts(tmp_path / "a.json")
    assert found.ids[0] == "abc123" and {"later", "CheckoutErrors"} <= set(found.ids)
    assert found.symptom.split("\n") == ["CheckoutErrors: Cart fails", "CheckoutErrors: Checkout fails"]


def test_what_is_sent_again_is_one_case(house):
    """While it lasts, when somebody takes it up, and when it is over; a group may have grown by then."""
    grown = webhook()
    grown["status"] = "resolved"
    grown["alerts"].append({**grown["alerts"][0], "startsAt": "2025-11-30T14:09:00Z", "fingerprint": "later"})
    (house / "alertmanager.json").write_text(json.dumps([webhook(), webhook(), grown]), encoding="utf-8")
    kinds = ("triggered", "acknowledged", "resolved")
    rows = [{"event": {"event_type": f"incident.{kind}", "data": pagerduty()}} for kind in kinds]
    (house / "pagerduty.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (house / "cases.yaml").write_text(MAPPING.replace("abc123:", "later:"), encoding="utf-8")
    report, cases = imported(house)
    assert [(case.id, case.truth_known) for case in cases] == [("abc123", True), ("PD1", False)]
    assert "left out: 4 alerts: sent again, or that the trouble is over" in str(report)


def test_what_lies_around_no_alert_is_counted(house):
    """Of every kind; changes of a day before an alert are near it."""
    times = [ALERT - 3599, ALERT - 3601, ALERT + 901, ALERT - 9000]
    lines = "".join(json.dumps(otlp_log("orders", at - ALERT, "x")) + "\n" for at in times)
    (house / "logs.jsonl").write_text(lines, encoding="utf-8")
    days = ["2025-11-28T10:00:00Z", "2025-11-29T20:00:00Z"]
    (house / "deploys.csv").write_text(
        "deployed_at,app,type,what\n" + "".join(f"{day},orders,release,v1\n" for day in days), encoding="utf-8"
    )
    report, (first, second) = imported(house)
    assert [line.time for line in first.signals.logs] == [times[0]] and not second.signals.logs
    assert len(first.signals.changes) == 1
    told = str(report)
    assert "left out: 3 logs: around no alert" in told and "left out: 1 changes: around no alert" in told


def replaced(old, new):
    return "cases.yaml", MAPPING.replace(old, new)


@pytest.mark.parametrize(
    "name, content, told",
    [
        (*replaced("alerts: [alertmanager.json, pagerduty.jsonl]", "lang: en"), "key 'alerts'"),
        (*replaced("logs.jsonl", "absent.jsonl"), "absent.jsonl: no such file (logs of the mapping)"),
        (*replaced("logs.jsonl", "../logs.jsonl"), "leads out of"),
        (*replaced("abc123:", "other:"), "key 'truth.other': no alert has this id; there are: PD1, abc123"),
        (*replaced('"shop-db.*"', '"shop-(db"'), "a regular expression"),
        (*replaced("component: db, ", "componnent: db, "), "alert 'abc123': field 'root_causes[0].component'"),
        (*replaced("source: acme/shop", "before: -3"), "key 'before': expected minutes"),
        ("alertmanager.json", '{"a": 1}', "expected an alert of Alertmanager or PagerDuty, found an object with a"),
        ("alertmanager.json", json.dumps({"labels": {"alertname": "x"}}), "field 'startsAt': expected a time"),
        ("pagerduty.jsonl", json.dumps({**pagerduty(), "title": ""}), "line 1, field 'title': expected text"),
        ("logs.jsonl", json.dumps(otlp_log("a", 0, "b")) + "\n{", "logs.jsonl, line 2: not valid JSON"),
        ("logs.jsonl", '{"resourceSpans": []}', "logs.jsonl, line 1, field 'resourceLogs': expected a list"),
        ("prom/db.json", '{"data": {"resultType": "vector"}}', "field 'data.resultType': expected matrix"),
        ("events.json", "[]", "field 'items': expected a list"),
        (
            *replaced('"prom/*.json"', '"**x/*.json"'),
            "cases.yaml, key 'metrics': expected a pattern of files, found '**x",
        ),
        (
            "alertmanager.json",
            json.dumps({**webhook(), "alerts": [*webhook()["alerts"], 3]}),
            "line 1, alerts[1]: expected an alert, found int",
        ),
        ("logs.jsonl", '{"resourceLogs": [3]}', "line 1, field 'scopeLogs': expected a list"),
        (
            "logs.jsonl",
            '{"resourceLogs": [{"scopeLogs": [{"logRecords": {}}]}]}',
            "field 'logRecords': expected a list",
        ),
        ("deploys.csv", "deployed_at,app,what\n1,2,3\n", "deploys.csv: expected the column 'type', found deployed_at"),
        ("deploys.csv", "when,app\n1,2\n", "deploys.csv: expected the column 'deployed_at', found when, app"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(house, name, content, told):
    (house / name).write_text(content, encoding="utf-8")
    with pytest.raises((IncidentError, FileNotFoundError)) as fault:
        imported(house)
    assert told in str(fault.value) and not (house.parent / "cases.jsonl").exists()


def test_a_damaged_topology_is_told_by_its_file(house):
    (house / "topology.json").write_text('[{"from": "orders", "to": "db"}, {"from": "orders"}]', encoding="utf-8")
    (house / "cases.yaml").write_text(MAPPING + "topology: topology.json\n", encoding="utf-8")
    with pytest.raises(IncidentError, match=r'topology.json: expected \[\{"from": caller, "to": called\}, ...\]'):
        imported(house)


def test_without_a_mapping_file_one_is_asked_for(house):
    (house / "cases.yaml").rename(house.parent / "elsewhere.yaml")
    with pytest.raises(FileNotFoundError, match="write one that says"):
        imported(house)
    assert len(imported(house, mapping=house.parent / "elsewhere.yaml")[1]) == 2


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("2025-11-30T14:03:00Z", ALERT),
        ("2025-11-30T15:03:00.123456789+01:00", ALERT + 0.123456),
        (ALERT, ALERT),
        (str(ALERT * 1000), ALERT),
        (ALERT * 10**6, ALERT),
        (ALERT * 10**9, ALERT),
        ("", None),
        ("NaN", None),
        ("noon", None),
        (True, None),
        (10**400, None),
    ],
)
def test_times_are_read_in_every_unit(value, seconds):
    assert when(value) == (seconds if seconds is None else pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    "pod, service",
    [
        ("orders-7f9c6d5b8-x2x4z", "orders"),
        ("ts-order-other-service-66d7c9b6c4-9jkkl", "ts-order-other-service"),
        ("redis-cart-0", "redis-cart"),
        ("frontend", "frontend"),
        ("shop-order-api", "shop-order-api"),
        ("web-2024", "web-2024"),
    ],
)
def test_a_pod_belongs_to_its_workload(pod, service):
    assert service_of_pod(pod) == service


def test_of_too_many_lines_those_that_tell_are_kept_and_the_others_evenly(tmp_path):
    lines = [LogLine(float(at), "a", "ERROR" if at % 100 == 7 else "INFO", str(at)) for at in range(1000)]
    job = CaseJob(tmp_path)
    kept = bounded_logs(job, reversed(lines), most=60)
    assert len(kept) == 60 and sum(line.level == "ERROR" for line in kept) == 10
    assert [line.time for line in kept] == sorted(line.time for line in kept)
    quiet = [line.time for line in kept if line.level == "INFO"]
    assert quiet[0] < 50 and quiet[-1] > 950 and max(b - a for a, b in zip(quiet, quiet[1:])) < 40
    assert job.left_out == {"log lines: too many for one case": 940}


def test_of_too_many_spans_whole_traces_are_kept_failed_ones_first(tmp_path):
    spans = [
        Span(10.0 * trace + at, f"t{trace}", str(at), None, "a", None, 1.0, "error" if trace % 10 == 0 else "ok")
        for trace in range(100)
        for at in range(5)
    ]
    job = CaseJob(tmp_path)
    kept = bounded_spans(job, spans, most=100)
    traces = {span.trace for span in kept}
    assert len(kept) == 100 == 5 * len(traces) and sum(int(name[1:]) % 10 == 0 for name in traces) == 10
    assert job.left_out == {"spans: too many for one case": 400}
