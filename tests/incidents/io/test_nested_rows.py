"""Incidents as alerting tools send them: objects in objects, and one object around a list of them."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.incidents import IncidentError, file_source
from verl_aiops.incidents.io.columns import FieldColumns
from verl_aiops.incidents.io.readers import read_incidents

PATHS = "id=fingerprint,service=labels.service,incident_type=labels.alertname,symptom=annotations.summary"
COLUMNS = FieldColumns.parse(f"{PATHS},logs=annotations.more.log")


def alert(number: int, **labels) -> dict:
    return {
        "fingerprint": f"f{number}x",
        "labels": {"service": "cart", "alertname": "HighLatency", "namespace": "prod", **labels},
        "annotations": {"summary": f"p99 is {number} s", "more": {"log": f"cart: slow\ncart: {number}", "url": "u"}},
    }


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_path_reads_a_field_of_an_object_and_the_others_are_counted(tmp_path, suffix):
    source = file_source(write(tmp_path / f"a.{suffix}", [alert(n) for n in range(3)]), columns=COLUMNS)
    first = next(iter(source.stream()))
    assert (first.id, first.service, first.incident_type) == ("f0x", "cart", "HighLatency")
    assert first.symptom == "p99 is 0 s" and first.logs == ("cart: slow", "cart: 0")
    assert source.notes.unknown == {"labels.namespace": 3, "annotations.more.url": 3}


def test_a_column_of_that_very_name_goes_before_a_path(tmp_path):
    rows = [{**alert(0), "labels.service": "orders"}]
    (incident,) = read_incidents(write(tmp_path / "a.jsonl", rows), columns=COLUMNS)
    assert incident.service == "orders"


def test_a_path_that_leads_nowhere_is_told_with_what_there_is(tmp_path):
    rows = [{**alert(0), "labels": labels} for labels in ([1], None, "text", {"service": "db"}, {})]
    with pytest.raises(IncidentError) as error:
        list(read_incidents(write(tmp_path / "a.jsonl", rows), columns=COLUMNS))
    assert "line 1: field 'service' (column 'labels.service' of --columns), field 'incident_type'" in str(error.value)
    assert "the record has only: fingerprint, annotations.summary, annotations.more.log, labels," in str(error.value)
    assert "line 4: field 'incident_type' (column 'labels.alertname' of --columns): expected" in str(error.value)


def test_what_objects_hold_is_named_where_nothing_fits(tmp_path):
    with pytest.raises(IncidentError, match="has only: fingerprint, labels.service, labels.alertname, labels.namesp"):
        list(read_incidents(write(tmp_path / "a.jsonl", [alert(0)])))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"service": {"id": 1, "name": "db"}}, "give one of its texts, as --columns service=service.id does"),
        ({"logs": [{"msg": "slow"}]}, r"field 'logs\[0\]': .* write each entry as one text"),
        ({"service": {}}, "put the text in quotes"),
        ({"Service": "db"}, "did you mean 'service'\\?; --columns service=Service reads it"),
        ({"Incident Type": "oom"}, "--columns 'incident_type=Incident Type' reads it"),
        ({"serv,ice": "oom"}, "did you mean 'service'\\?$"),
    ],
)
def test_a_message_says_how_the_file_can_be_read_as_it_is(tmp_path, change, said):
    row = {"id": "a", "service": "db", "incident_type": "oom", "symptom": "slow", "logs": ["x"]} | change
    for theirs, ours in (("Service", "service"), ("Incident Type", "incident_type"), ("serv,ice", "service")):
        if theirs in row:
            del row[ours]
    with pytest.raises(IncidentError, match=said):
        list(read_incidents(write(tmp_path / "a.jsonl", [row])))


def test_numbers_that_are_whole_are_names_as_integers_are(tmp_path):
    row = {"nr": 4711.0, "service": 3.0, "incident_type": "oom", "symptom": "slow", "logs": ["x"]}
    columns = FieldColumns.parse("id=nr")
    (incident,) = read_incidents(write(tmp_path / "a.jsonl", [row]), columns=columns)
    assert (incident.id, incident.service) == ("4711", "3")
    for value in (4711.5, float("inf"), float("nan")):
        with pytest.raises(IncidentError, match="field 'id': expected a string, found float"):
            list(read_incidents(write(tmp_path / "b.jsonl", [{**row, "nr": value}]), columns=columns))


@pytest.mark.parametrize(
    ("around", "indent", "query"),
    [
        ({"version": "4"}, None, ".alerts[]"),
        ({"version": "4", "groupLabels": {"a": "b"}}, 2, ".alerts[]"),
        ({"version": "4", "others": [{"a": 1}]}, 2, "."),
        ({"tags": ["a"]}, 2, ".alerts[]"),
    ],
)
def test_a_list_of_alerts_in_one_object_is_told_with_how_to_take_it_apart(tmp_path, around, indent, query):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**around, "alerts": [alert(0), alert(1)]}, indent=indent), encoding="utf-8")
    with pytest.raises(IncidentError) as error:
        list(read_incidents(path))
    assert f"jq -c '{query}' FILE > NEW.jsonl" in str(error.value)
    if indent and query != ".":
        assert "for row in json.load(file)['alerts']: print(json.dumps(row))" in str(error.value)


@pytest.mark.parametrize("name", ["it's", "a b", "", "$(x)", "ä"])
def test_a_name_that_a_shell_would_not_take_as_it_is_stands_in_no_command(tmp_path, name):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({name: [alert(0)]}), encoding="utf-8")
    with pytest.raises(IncidentError) as error:
        list(read_incidents(path))
    assert "jq" not in str(error.value)


def test_the_columns_of_a_table_are_told_where_none_is_a_field(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffNr;Dienst, Team;Art\r\n1;"db;x";voll\r\n', encoding="utf-8", newline="")
    with pytest.raises(IncidentError, match="the record has only: Nr, Dienst, Team, Art; where one") as error:
        list(read_incidents(path))
    assert "more like it" not in str(error.value)
