"""Reading and writing incident files: three formats, one clear error each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.incidents import (
    IncidentError,
    OutputExistsError,
    Simulator,
    Taxonomy,
    fault_id,
    file_source,
    read_incidents,
    simulator_taxonomy,
    write_incidents,
    write_taxonomy,
)
from verl_aiops.incidents.io.faults import Faults

ROW = {"id": "a-1", "service": "db", "incident_type": "disk_full", "symptom": "Slow.", "logs": ["db: disk at 100%"]}


@pytest.fixture
def incidents():
    return list(Simulator(lang="mix", difficulty="mix", seed=3).stream(20))


def jsonl(path: Path, *rows) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_round_trip(tmp_path, incidents):
    assert write_incidents(incidents, tmp_path / "a.jsonl") == 20
    assert list(read_incidents(tmp_path / "a.jsonl")) == incidents


def test_parquet_round_trip(tmp_path, incidents):
    rows = [incident.to_dict() for incident in incidents]
    names = dict.fromkeys(name for row in rows for name in row)
    # a table has the columns of its first row
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(read_incidents(tmp_path / "a.parquet")) == incidents


def test_csv_round_trip(tmp_path, incidents):
    names = list(dict.fromkeys(name for incident in incidents for name in incident.to_dict()))
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for incident in incidents:
            cells = incident.to_dict()
            for name in ("logs", "evidence", "upstream", "decoys", "aliases"):
                if name in cells:
                    cells[name] = json.dumps(cells[name], ensure_ascii=False)
            writer.writerow(cells)
    assert list(read_incidents(tmp_path / "a.csv")) == incidents


def test_csv_cells_may_hold_plain_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,service,incident_type,symptom,logs\na,db,oom,Slow.,"one, two\nthree"\n')
    assert next(read_incidents(path)).logs == ("one, two", "three")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, "{oops\n"], r"bad\.jsonl, line 2: expected one JSON object on the line: not valid JSON"),
        (['{"id": \n'], r"line 1: [^:]*: not valid JSON \(Expecting value at character 8\)"),
        ([ROW, "\n", "[1]\n"], r"line 3: expected an object with the fields"),
        (
            [ROW, {**ROW, "id": "b", "logs": "x"}],
            r"line 2: field 'logs': expected a list of strings, found str 'x'; write",
        ),
        ([ROW, ROW], r"line 2: field 'id': 'a-1' was used on line 1 already; ids must be unique"),
        (['{"id": "a", "id": "b"}\n'], r"line 1: field 'id': given twice in one object; keep one"),
        (["[" * 100_000 + "\n"], r"line 1: .*(nested too deeply|not valid JSON)"),
        ([{**ROW, "evidence": ["gone"]}], r"line 1: field 'evidence\[0\]': .*'gone'"),
        ([], r"expected at least one incident, found none"),
    ],
)
def test_bad_jsonl(tmp_path, rows, message):
    with pytest.raises(IncidentError, match=message):
        list(read_incidents(jsonl(tmp_path / "bad.jsonl", *rows)))


def test_not_utf8(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n\xff\n")
    with pytest.raises(IncidentError, match=r"line 2: not UTF-8 \(byte 0xff\); save the file as UTF-8"):
        list(read_incidents(tmp_path / "a.jsonl"))
    (tmp_path / "a.csv").write_bytes(b"id,service\na,\xff\n")
    with pytest.raises(IncidentError, match="not UTF-8"):
        list(read_incidents(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,id\n", r"line 1: a column name occurs twice in the header: id, id"),
        ("id,service\na\n", r"line 2: expected 2 cells as in the header, found 1; quote cells"),
        ('id,service\na,"b\n', r"line 2: not valid CSV"),
        (
            "id,service,incident_type,symptom,logs\na,b,c,d,\"['x', 'y']\"\n",
            r"line 2: field 'logs': the cell is a list as Python prints it, .* write it with json\.dumps",
        ),
        (
            'id,service,incident_type,symptom,logs,decoys\na,b,c,d,e,"[1"\n',
            r"line 2: field 'decoys': expected JSON like",
        ),
        (
            "id,service,incident_type,symptom,logs\na,,c,d,e\n",
            r"line 2: field 'service': expected a string, found null",
        ),
        ("id,service\n", r"expected at least one incident, found none"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(IncidentError, match=message):
        list(read_incidents(tmp_path / "a.csv"))


def test_bad_parquet(tmp_path, incidents):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([ROW, {**ROW, "id": "b", "symptom": None}]), path)
    with pytest.raises(IncidentError, match=r"a\.parquet, row 2: field 'symptom': expected this field, found none"):
        list(read_incidents(path))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IncidentError, match="after row 0: not a readable parquet file"):
        list(read_incidents(path))


def test_wrong_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        next(read_incidents(tmp_path / "none.jsonl"))
    with pytest.raises(IncidentError, match=r"no reader for '\.txt'; .* one of \.jsonl, \.csv, \.parquet"):
        next(read_incidents(tmp_path / "a.txt"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(IncidentError, match="expected a file, found a folder"):
        next(read_incidents(tmp_path / "folder.jsonl"))
    with pytest.raises(IncidentError, match=r"let the name end in \.jsonl"):
        write_incidents([], tmp_path / "a.csv")


def test_writing_is_whole_or_not_at_all(tmp_path, incidents):
    path = tmp_path / "a.jsonl"

    def breaks():
        yield incidents[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_incidents(breaks(), path)
    assert list(tmp_path.iterdir()) == []
    write_incidents(incidents[:2], path)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_incidents(incidents, path)
    with pytest.raises(RuntimeError):
        write_incidents(breaks(), path, overwrite=True)
    assert len(list(read_incidents(path))) == 2


def test_taxonomy_file_round_trip_and_errors(tmp_path, incidents):
    path = tmp_path / "t.json"
    write_taxonomy(simulator_taxonomy(), path)
    assert Taxonomy.load(path) == simulator_taxonomy()
    with pytest.raises(OutputExistsError):
        write_taxonomy(simulator_taxonomy(), path)
    path.write_text('{"shop": {"services": []}}')
    with pytest.raises(IncidentError, match=r"t\.json: system 'shop': expected lists of names"):
        Taxonomy.load(path)
    path.write_text("{")
    with pytest.raises(IncidentError, match="not valid JSON"):
        Taxonomy.load(path)
    with pytest.raises(IncidentError, match="source 'simulator/.*' is not in the taxonomy, which has: none"):
        Taxonomy().system_of(incidents[0])
    with pytest.raises(
        IncidentError, match="'disk_full' is not in the taxonomy's incident_types of 'user'; add it there"
    ):
        taxonomy = Taxonomy.from_dict({"user": {"services": ["db"], "incident_types": ["oom"]}})
        list(file_source(jsonl(tmp_path / "b.jsonl", ROW), taxonomy).stream())


def test_records_that_share_evidence_stay_together(tmp_path):
    x1, x2, y1 = (f"2031-06-14 09:33:{n} RAS KERNEL FATAL data storage interrupt" for n in (11, 12, 21))
    rows = [
        {**ROW, "id": "w-1", "logs": [x1, y1], "evidence": [x1]},
        {**ROW, "id": "w-2", "logs": [x2], "evidence": [x2]},
        {**ROW, "id": "w-3", "logs": [x1, x2], "evidence": [x1, x2]},
        {**ROW, "id": "w-4", "logs": [y1], "evidence": [y1]},
        {**ROW, "id": "w-5", "logs": [x1], "evidence": [x1], "fault": "its own"},
    ]
    source = file_source(jsonl(tmp_path / "a.jsonl", *rows))
    groups = [source.group_of(incident) for incident in source.stream()]
    assert len(set(groups[:3])) == 1
    assert groups[3:] == ["w-4", "its own"]
    assert source.count == 5
    assert source.faults == Faults(by_field=1, by_evidence=1, alone=1)


def test_a_collection_of_many_systems(collected):
    source = file_source(collected.path, Taxonomy.load(collected.taxonomy))
    incidents = list(source.stream())
    assert len(incidents) == source.count == collected.count
    assert len({fault_id(incident) for incident in incidents}) == collected.faults < collected.count
    assert len({source.group_of(incident) for incident in incidents}) == collected.groups < collected.faults
    assert Taxonomy.from_incidents(incidents).systems.keys() == {incident.source for incident in incidents}
