"""Nezha: which traces, lines and metrics make a record, what is evidence, and what is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import pytest
from import_harness import NEZHA_DAY, REPLICAS, check_incidents, make_nezha, nezha_fault, wrapped, write_csv, write_json

from verl_aiops.incidents import IncidentError, fault_id
from verl_aiops.incidents.importers import built_in, import_incidents
from verl_aiops.incidents.importers.nezha import Scene, metric_evidence
from verl_aiops.incidents.importers.nezha_files import Day, Injection, Line, PodReading, Span, service_of

CODE, CPU = nezha_fault("10:00:30", "ts-cart", "return"), nezha_fault("10:00:40", "ts-cart", "cpu_contention")


def imported(tmp_path, faults, mapping=None, **kinds):
    root = make_nezha(tmp_path / "nezha", faults, **kinds)
    report = import_incidents("nezha", root, tmp_path / "out.jsonl", mapping=mapping, overwrite=True)
    return check_incidents(tmp_path / "out.jsonl"), report


def test_records_of_a_fault_are_the_traces_of_two_minutes(tmp_path):
    incidents, _ = imported(tmp_path, [CODE, CPU])
    assert [incident.id for incident in incidents] == [
        f"nezha-train-ticket-f2{fault:02}-{record}" for fault in range(2) for record in range(1, 5)
    ]
    assert {fault_id(incident) for incident in incidents} == {"nezha-train-ticket-f200", "nezha-train-ticket-f201"}
    assert [incident.incident_type for incident in incidents] == ["wrong_return"] * 4 + ["cpu_saturation"] * 4
    assert {incident.service for incident in incidents} == {"ts-cart"}
    assert [incident.symptom for incident in incidents[1:3]] == [
        f"Frontend of train-ticket: request latency P90 1.500s (usual 0.250s), P99 2.000s at {NEZHA_DAY} 10:0{n} UTC."
        for n in (1, 2)
    ]


def test_the_most_anomalous_trace_comes_first_but_an_error_counts_more_for_a_fault_in_code(tmp_path):
    incidents, _ = imported(tmp_path, [CODE, CPU])
    code, cpu = incidents[0], incidents[4]
    assert "t-fast" in code.evidence[0] and "span ts-gate GET /cart 20.0ms (usual 20.0ms)" in code.trace
    assert "span ts-gate GET /cart 180.0ms (usual 20.0ms)" in cpu.trace


def test_statements_and_errors_of_the_faulty_service_are_evidence(tmp_path):
    incidents, _ = imported(tmp_path, [CODE])
    assert incidents[0].evidence == (f"{NEZHA_DAY}T10:01:01.000 ts-cart ERROR cart broken t-fast",)
    assert incidents[1].evidence == (f"{NEZHA_DAY}T10:01:01.000 ts-cart INFO cart opened t-slow",)


def test_a_busy_pod_is_evidence_and_every_pod_stands_in_the_lines(tmp_path):
    incidents, _ = imported(tmp_path, [CPU])
    line = (
        "metric ts-cart CpuUsageRate(%)=90 (usual 2) MemoryUsageRate(%)=30 (usual 30) "
        "PodServerLatencyP90(s)=0.01 (usual 0.01) PodClientLatencyP90(s)=0 (usual 0)"
    )
    for incident in incidents:
        assert incident.evidence == (line,)
        metrics = [text.split()[1] for text in incident.logs if text.startswith("metric ")]
        # On the trace, and one off it.
        assert sorted(metrics) == ["ts-cart", "ts-gate", "ts-mail"]
    assert len({incident.logs[-3:] for incident in incidents}) > 1, "the faulty pod always stands at one place"


def test_an_error_of_the_faulty_service_is_shown_but_no_proof_that_its_cpu_is_busy(tmp_path):
    incidents, _ = imported(tmp_path, [CPU])
    (fast,) = {incident for incident in incidents[:2] if "GET /cart 20.0ms" in incident.trace}
    line = f"{NEZHA_DAY}T10:01:01.000 ts-cart ERROR cart broken t-fast"
    assert line in fast.logs and line not in fast.evidence


def test_lines_are_in_order_of_time_and_mix_in_other_traces(tmp_path):
    incidents, _ = imported(tmp_path, [CODE])
    for incident in incidents:
        lines = [text for text in incident.logs if not text.startswith("metric ")]
        assert lines == sorted(lines, key=lambda text: text[:23])
        assert len({text.split()[-1] for text in lines}) > 1


def test_without_logs_a_fault_in_code_is_left_out_and_another_kept(tmp_path):
    incidents, report = imported(tmp_path, [CODE, CPU], logs=False)
    assert {incident.incident_type for incident in incidents} == {"cpu_saturation"}
    assert all(text.startswith("metric ") for incident in incidents for text in incident.logs)
    assert report.left_out["minutes: no log file, which a fault in code needs"] == 2
    assert report.left_out["faults: no record, since no minute after the injection could be used"] == 1
    assert report.notes["minutes without a log file: spans and metrics only"] == 2


def test_what_is_left_out_is_counted(tmp_path):
    faults = [CPU, nezha_fault("10:00:30", "ts-cart", "meteorite"), nezha_fault("10:00:30", "ts-mail", "network_delay")]
    incidents, report = imported(tmp_path, faults, minutes=("10:01",))
    assert len(incidents) == 2
    assert report.left_out == {
        "faults: the kind 'meteorite' is not in the mapping": 1,
        "minutes: no trace file": 2,
        "minutes: no trace touches the faulty service": 1,
        "faults: no record, since no minute after the injection could be used": 1,
        "days: no folder of the mapping's '2022-08-22'": 1,
        "days: no folder of the mapping's '2022-08-23'": 1,
        "days: no folder of the mapping's '2023-01-30'": 1,
    }


def test_days_that_are_not_in_the_mapping_are_counted(tmp_path):
    (tmp_path / "nezha" / "rca_data" / "2031-01-01").mkdir(parents=True)
    _, report = imported(tmp_path, [CPU])
    assert report.left_out["days: '2031-01-01' is not in the mapping"] == 1


def test_a_minute_without_metrics_is_left_out(tmp_path):
    root = make_nezha(tmp_path / "nezha", [CPU])
    path = root / "rca_data" / NEZHA_DAY / "metric" / f"{REPLICAS['ts-cart']}_metric.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    report = import_incidents("nezha", root, tmp_path / "out.jsonl")
    assert report.count == 2
    assert report.left_out["minutes: no metrics of the front end or of the faulty pod"] == 1


def test_the_cap_takes_the_first_records_of_all_faults_before_the_second_of_any(tmp_path):
    mapping = tmp_path / "few.yaml"
    mapping.write_text(built_in("nezha").read_text(encoding="utf-8").replace("per_type: 44", "per_type: 3"))
    incidents, report = imported(tmp_path, [CPU, CPU], mapping=mapping)
    assert [incident.id[-6:] for incident in incidents] == ["f200-1", "f200-2", "f201-1"]
    assert report.left_out["records: beyond 3 of one application and type"] == 5


def test_damaged_log_rows_are_counted_and_damaged_spans_refused(tmp_path):
    root = make_nezha(tmp_path / "nezha", [CODE])
    day = root / "rca_data" / NEZHA_DAY
    with (day / "log" / "10_01_log.csv").open("a") as file:
        file.write("too,few\n")
    report = import_incidents("nezha", root, tmp_path / "out.jsonl")
    assert report.left_out["log lines: damaged row"] == 1 and report.count == 4
    trace = day / "trace" / "10_02_trace.csv"
    trace.write_text(trace.read_text().replace(",9000", ",soon"))
    with pytest.raises(IncidentError, match=r"10_02_trace.csv, column Duration: expected a whole number, found 'soon'"):
        import_incidents("nezha", root, tmp_path / "other.jsonl")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([], r"fault_list.json: expected an object of lists of faults by hour"),
        ({"10": [{"inject_pod": "a"}]}, r"fault 0: expected the keys inject_time, inject_pod, inject_type"),
        ({"10": [{**CPU, "inject_time": "noon"}]}, r"expected an inject_time like .*, found 'noon'"),
    ],
)
def test_damaged_fault_lists_are_refused(tmp_path, faults, message):
    root = make_nezha(tmp_path / "nezha", [CPU])
    write_json(root / "rca_data" / NEZHA_DAY / f"{NEZHA_DAY}-fault_list.json", faults)
    with pytest.raises(IncidentError, match=message):
        import_incidents("nezha", root, tmp_path / "out.jsonl")


def test_log_messages_are_unwrapped(tmp_path):
    root = make_nezha(tmp_path / "nezha", [CPU])
    structured = json.dumps({"severity": "warn", "message": "  two\n words "})
    logs = [wrapped("a\tb"), wrapped(structured), "bare text", "[1]", wrapped("[1]"), wrapped('{"severity": 3}')]
    path = root / "rca_data" / NEZHA_DAY / "log" / "10_01_log.csv"
    header = ["Timestamp", "TimeUnixNano", "Node", "PodName", "Container", "TraceID", "SpanID", "Log"]
    write_csv(path, header, [[f"{n}Z", 0, "", REPLICAS["ts-mail"], "", "t", "", log] for n, log in enumerate(logs)])
    day = Day(path.parents[1], lambda: None)
    lines = day.lines(Injection(0, datetime(2023, 1, 29, 10, 0), "ts-mail", "x").minute(1))
    said = [line.text.split(" ts-mail ")[1] for line in lines]
    assert said == ["a b", "warn two words", "bare text", "[1]", "[1]", '{"severity": 3}']


def test_a_pod_is_named_by_its_service():
    assert service_of("ts-cart-84cbf6c798-7njv6") == "ts-cart"
    assert service_of("redis") == "redis"


def span(name, service, duration, usual=1000.0, parent="", start=0):
    return Span("t", name, parent, service, start, duration, usual, f"op-{name}")


def scene(*spans, rule="latency", lines=(), statements=()):
    return Scene(Injection(0, None, "cart", "x"), rule, statements, None, spans, lines)


def test_a_call_is_evidence_of_a_delay_when_the_wire_took_at_least_half_of_it():
    callee = span("b", "cart", 100_000, 90_000.0, parent="a", start=1)
    assert scene(span("a", "gate", 300_000), callee).span_evidence() == ["span gate op-a 300.0ms (usual 1.0ms)"]
    assert scene(span("a", "gate", 190_000), callee).span_evidence() == []
    # Not one that calls somebody else, nor one that is no longer than usual, nor a short one.
    assert scene(span("c", "gate", 300_000), callee).span_evidence() == []
    assert scene(span("a", "gate", 300_000, 250_000.0), callee).span_evidence() == []
    assert scene(span("a", "gate", 4_000), replace(callee, duration=100)).span_evidence() == []


def test_later_calls_stand_first_in_the_evidence_then_the_services_own_spans():
    spans = [
        span("a", "gate", 50_000, start=0),
        span("b", "cart", 10_000, start=1, parent="a"),
        span("c", "gate", 60_000, start=2),
        span("d", "cart", 20_000, start=3, parent="c"),
    ]
    assert [text.split()[2] for text in scene(*spans).span_evidence()] == ["op-c", "op-a", "op-b"]


def test_the_first_spans_of_the_service_are_shown_however_short():
    spans = [span(f"g{n}", "gate", 1000 * (n + 2), start=n) for n in range(20)]
    spans += [span(f"c{n}", "cart", 1, start=100 + n) for n in range(6)]
    shown = [found.name for found in scene(*spans).shown_spans()]
    assert shown == [f"g{n}" for n in range(6, 20)] + [f"c{n}" for n in range(4)]


def test_what_the_service_logs_counts_only_for_faults_in_code():
    said = [Line("t", "cart", "1", "x ERROR y"), Line("t", "cart", "2", "opened")]
    for rule, score in (("statements", 112.0), ("latency", 2.0), ("cpu", 2.0)):
        assert scene(span("a", "cart", 2000), rule=rule, lines=said, statements=("opened",)).anomaly() == score


def test_an_operation_is_cut_and_an_unknown_usual_duration_does_not_divide():
    long = Span("t", "a", "", "cart", 0, 2500, 0.0, "x" * 70)
    assert str(long) == f"span cart {'x' * 60} 2.5ms (usual 0.0ms)" and long.ratio == 2500


@pytest.mark.parametrize(
    ("rule", "name", "expected"),
    [
        ("cpu", "CpuUsageRate(%)", True),
        ("cpu", "PodServerLatencyP90(s)", False),
        ("latency", "PodClientLatencyP90(s)", True),
        ("latency", "CpuUsageRate(%)", False),
    ],
)
def test_which_metric_makes_the_line_evidence(rule, name, expected):
    usual = dict.fromkeys(
        ("CpuUsageRate(%)", "MemoryUsageRate(%)", "PodServerLatencyP90(s)", "PodClientLatencyP90(s)"), 1.0
    )
    reading = PodReading("cart", {**usual, name: 1.6}, usual)
    assert bool(metric_evidence(reading, rule)) is expected
    assert not metric_evidence(PodReading("cart", {**usual, name: 1.5}, usual), rule)
