"""OpenRCA: records and queries with and without telemetry, and what is left out."""

from __future__ import annotations

import pytest
from import_harness import QUERIES, RECORDS, check_incidents, make_openrca, write_csv

from verl_aiops.incidents import IncidentError, fault_id
from verl_aiops.incidents.importers import import_incidents
from verl_aiops.incidents.importers.openrca_telemetry import names_of, read_logs, read_metrics

FIRST = 1614841020


def imported(tmp_path, records=RECORDS, queries=QUERIES, system="Bank"):
    root = make_openrca(tmp_path / "rca", records, queries, system)
    report = import_incidents("openrca", root, tmp_path / "out.jsonl", overwrite=True)
    return check_incidents(tmp_path / "out.jsonl"), report


def add_telemetry(folder, when=FIRST):
    """A day of three components; Fox01's CPU and what Wolf01 logs change at `when`."""
    day = folder / "telemetry" / "2021_03_04"
    times = range(when - 6000, when + 6000, 60)
    rows = [
        [at, name, "cpu", 90 if name == "Fox01" and when <= at < when + 300 else 10 + at // 60 % 3]
        for at in times
        for name in ("Fox01", "Wolf01")
    ]
    write_csv(day / "metric" / "metric_container.csv", ["timestamp", "cmdb_id", "kpi_name", "value"], rows)
    write_csv(
        day / "metric" / "metric_app.csv", ["timestamp", "rr", "cnt", "tc"], [[at, 100, 5, "front"] for at in times]
    )
    logs = [["id", when + 1, "Wolf01", "gc", "pause\n 3 s"], ["id", when - 1, "Wolf01", "gc", "too early"]]
    write_csv(day / "log" / "log_service.csv", ["log_id", "timestamp", "cmdb_id", "log_name", "value"], logs)
    return day


def test_records_name_component_and_reason_and_the_query_is_the_symptom(tmp_path):
    incidents, report = imported(tmp_path)
    assert [incident.id for incident in incidents] == ["openrca-bank-001", "openrca-bank-002"]
    assert [(incident.service, incident.incident_type) for incident in incidents] == [
        ("Fox01", "cpu_saturation"),
        ("Fox02", "network_delay"),
    ]
    assert incidents[0].symptom == "Which part failed between 14:30 and 15:00?"
    alert = "alert Failure of a banking platform noticed at 2021-03-04 14:57 (UTC+08:00)."
    assert incidents[0].logs == (alert,) and incidents[0].evidence == ()
    assert report.notes["incidents without telemetry: nothing in them tells the answer"] == 2
    assert "nothing in them tells the answer (2)" in str(report)


def test_telemetry_shows_what_moved_and_the_components_own_line_is_evidence(tmp_path):
    add_telemetry(tmp_path / "rca" / "Bank")
    incidents, report = imported(tmp_path)
    line = "metric Fox01 cpu=90 (usual 11)"
    assert incidents[0].evidence == (line,) and line in incidents[0].logs
    assert any(text.startswith("metric Wolf01 cpu=1") for text in incidents[0].logs)
    assert "metric front cnt=5 (usual 5)" in incidents[0].logs
    assert "Wolf01 pause 3 s" in incidents[0].logs
    assert not any("too early" in text for text in incidents[0].logs)
    # Nothing is known of the second failure's five minutes.
    assert len(incidents[1].logs) == 1
    assert report.notes["incidents without telemetry: nothing in them tells the answer"] == 1


def test_a_query_that_gives_the_answer_away_or_is_about_two_failures_is_not_the_symptom(tmp_path):
    queries = [["task_1", "Did fox01 fail?", ""], ["task_1", "Which network latency?", ""]]
    incidents, _ = imported(tmp_path, queries=queries)
    assert [incident.symptom[:30] for incident in incidents] == ["Failure of a banking platform "] * 2
    near = [RECORDS[0], [*RECORDS[1][:2], str(FIRST + 60), *RECORDS[1][3:]]]
    queries = [["task_3", "Two failures: where?", "The 1-th predicted root cause component is Fox01\n"]] * 2
    queries[1] = ["task_3", "Two failures: where?", "The 2-th predicted root cause component is Fox02\n"]
    incidents, _ = imported(tmp_path, near, queries)
    assert not any("Two" in incident.symptom for incident in incidents)
    assert len({fault_id(incident) for incident in incidents}) == 1


def test_reasons_are_compared_without_case_and_unknown_ones_counted(tmp_path):
    records = [[*RECORDS[0][:4], " High  CPU usage"], [*RECORDS[1][:4], "bad karma"]]
    incidents, report = imported(tmp_path, records)
    assert [incident.incident_type for incident in incidents] == ["cpu_saturation"]
    assert report.left_out["failures: the reason 'bad karma' is not in the mapping"] == 1
    assert report.left_out["systems: no Market/cloudbed-1/record.csv"] == 1


def test_systems_may_lie_in_a_folder_of_their_own_or_below_dataset(tmp_path):
    incidents, _ = imported(tmp_path, system="dataset/Market/cloudbed-1")
    assert incidents[0].source == "openrca/Market-cloudbed-1" and incidents[0].id == "openrca-market-cloudbed-1-001"


@pytest.mark.parametrize(
    ("records", "queries", "message"),
    [
        (RECORDS, QUERIES[:1], r"query.csv: expected 2 rows as in record.csv, found 1; fetch both anew"),
        (
            [RECORDS[0][:2] + ["soon", "", "x"]],
            QUERIES[:1],
            r"record.csv, row 1: expected seconds since 1970 .* 'soon'",
        ),
        ([RECORDS[0][:2] + ["1e300", "", "x"]], QUERIES[:1], r"record.csv, row 1: expected seconds since 1970"),
        (RECORDS[:1], [["task_9", "x", ""]], r"query.csv, row 1: expected task_1 to task_7, found 'task_9'"),
        (RECORDS[1:], QUERIES[:1], r"query.csv, row 1: its answer 'Fox01' is not that of the same row of record.csv"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, records, queries, message):
    with pytest.raises(IncidentError, match=message):
        imported(tmp_path, records, queries)


def test_the_repository_without_the_data_set_says_where_it_is(tmp_path):
    (tmp_path / "dataset").mkdir()
    with pytest.raises(IncidentError, match=r"dataset: expected <system>/record.csv .* apart from the repository"):
        import_incidents("openrca", tmp_path, tmp_path / "out.jsonl")


def test_times_in_milliseconds_and_names_of_pods_are_understood(tmp_path):
    day = add_telemetry(tmp_path)
    header = ["itemid", "name", "bomc_id", "timestamp", "value", "cmdb_id"]
    rows = [[1, "disk", "b", 1000 * (FIRST + n), 5 if n < 0 else 50, "node-1.Fox01"] for n in range(-30, 10)]
    write_csv(day / "metric" / "metric_node.csv", header, [*rows, [1, "disk", "b", 1000 * FIRST, "", "node-1.Fox01"]])
    changes = read_metrics(day / "metric", {7: (FIRST, FIRST + 300)})[7]
    disk = next(change for change in changes if change.metric == "disk")
    assert (disk.now, disk.usual) == (50, 5) and disk.deviations > 3
    assert disk.belongs_to("Fox01") and disk.belongs_to("node-1") and not disk.belongs_to("Fox0")


def test_names_of_a_component():
    assert {"node-1", "cart-0"} <= names_of("node-1.cart-0")
    assert "cart" in names_of("cart-grpc") and "cart" in names_of("cart.ts:8088")


def test_a_series_that_hardly_ever_moves_does_not_lead_for_a_blip(tmp_path):
    rows = [[FIRST + 60 * n, "a", "flat", 1 if n == 3 else 0] for n in range(-700, 700)]
    rows += [[FIRST + 60 * n, "b", "busy", 100 if 0 <= n < 5 else n % 2] for n in range(-700, 700)]
    write_csv(tmp_path / "m.csv", ["timestamp", "cmdb_id", "kpi_name", "value"], rows)
    flat, busy = read_metrics(tmp_path, {0: (FIRST, FIRST + 300)})[0]
    assert 0 < flat.deviations < busy.deviations


def test_every_log_line_has_the_same_chance(tmp_path):
    rows = [["i", FIRST, "a", "x", str(n)] for n in range(2000)]
    write_csv(tmp_path / "l.csv", ["log_id", "timestamp", "cmdb_id", "log_name", "value"], rows)
    logs = read_logs(tmp_path, {0: (FIRST, FIRST + 300), 1: (0, 1)})
    assert len(logs[0]) == 400 and logs[1] == []
    kept = sorted(int(log.text) for log in logs[0])
    assert len(set(kept)) == 400 and 800 < sum(kept) / 400 < 1200


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["when", "cmdb_id", "value"], [[1, "a", 2]], r"expected one of the columns timestamp, startTime, found when"),
        (["timestamp", "who", "value"], [[1, "a", 2]], r"expected one of the columns cmdb_id, service"),
        (["timestamp", "cmdb_id", "value"], [[1, "a", 2]], r"expected one of the columns kpi_name, name"),
        (["timestamp", "cmdb_id", "kpi"], [["soon", "a", 2]], r"expected a time as a number, found 'soon'"),
    ],
)
def test_foreign_telemetry_is_refused(tmp_path, header, rows, message):
    write_csv(tmp_path / "m.csv", header, rows)
    with pytest.raises(IncidentError, match=message):
        read_metrics(tmp_path, {0: (0, 300)})
