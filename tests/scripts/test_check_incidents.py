"""What can be told of a file of incidents before the package is installed."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_aiops.incidents import READERS, Simulator, read_incidents, write_incidents
from verl_aiops.incidents.schema import REQUIRED_FIELDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "check_incidents.py"
GOOD = {name: "x" for name in REQUIRED_FIELDS}
HEADER = ",".join(REQUIRED_FIELDS)


def check(path, *columns):
    # isolated, and without what is installed
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), str(path), *columns], capture_output=True, text=True
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    return done.stderr if done.returncode else None


@pytest.mark.parametrize("suffix", READERS)
def test_what_the_package_writes_and_reads_passes(tmp_path, suffix):
    made = tmp_path / "made.jsonl"
    write_incidents(Simulator(seed=1).stream(3), made)
    rows = [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]
    path = tmp_path / f"incidents{suffix}"
    if suffix in (".parquet", ".pq"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: [row[name] for row in rows] for name in REQUIRED_FIELDS}), path)
    elif suffix == ".xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for cells in [list(REQUIRED_FIELDS), *([str(row[n]) for n in REQUIRED_FIELDS] for row in rows)]:
            book.active.append([json.dumps(["x"]) if cell.startswith("[") else cell for cell in cells])
        book.save(path)
    elif suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            file.write("sep=|\n" if suffix == ".csv" else "")
            table = csv.writer(file, delimiter="|" if suffix == ".csv" else "\t")
            table.writerow(REQUIRED_FIELDS)
            table.writerows([[row[n] if n != "logs" else json.dumps(row[n]) for n in REQUIRED_FIELDS] for row in rows])
    else:
        path.write_bytes(b"\n" + made.read_bytes())
    assert len(list(read_incidents(path))) == 3
    assert check(path) is None


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", None, "no such file"),
        ("a.jsonl", b"", "is empty"),
        ("a.xml", b"<x/>", "no reader for '.xml'"),
        ("a.parquet", b"not at all", "not parquet"),
        ("a.xlsx", b"id,service", "no Excel workbook"),
        ("a.jsonl", b"[1,\n2]", "expected one JSON object a line"),
        ("a.jsonl", b"3\n", "found a int"),
        ("a.jsonl", b"[" * 100000, "expected one JSON object a line"),
        ("a.jsonl", "ä".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", json.dumps({**GOOD, "symptom": 1} | {"logs": []}).replace('"id"', '"nr"').encode(), "has no id;"),
        ("a.csv", HEADER.replace("logs", "log").replace(",", "|").encode(), "has no logs; it has 'id', 'service'"),
    ],
)
def test_what_cannot_be_one_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    told = check(tmp_path / name)
    assert told and said in told and name in told and "Nothing was installed" in told


def test_a_folder(tmp_path):
    assert "found a folder" in check(tmp_path)


def test_the_names_are_the_schema_s():
    space = {"__name__": "check_incidents"}
    exec(SCRIPT.read_text(encoding="utf-8"), space)
    assert space["NEEDED"] == REQUIRED_FIELDS and set(space["SUFFIXES"]) == set(READERS)


@pytest.mark.parametrize("where", ["checkout", "elsewhere"])
def test_quickstart_refuses_a_bad_file_before_it_installs(tmp_path, where):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "quickstart.sh")],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "VENV": str(tmp_path / "env")}
        | {"INCIDENTS": "mine.jsonl" if where == "elsewhere" else str(tmp_path / "mine.jsonl")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not (tmp_path / "env").exists()
    assert done.stderr.startswith(f"{tmp_path}/mine.jsonl: its first record has no id, service,")


def test_columns_of_a_ticket_system_are_looked_for_by_their_names(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("ticket;service;category;summary;excerpt\n", encoding="utf-8")
    columns = "id=ticket,incident_type=category,symptom=summary,logs=excerpt"
    assert "has no id, incident_type, symptom, logs" in check(path)
    assert check(path, columns) is None
    assert "its first record has no lines; it has 'ticket'" in check(path, f"{columns[:-7]}lines")


def test_a_separator_is_seen_without_a_name_that_is_known(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("Nr;Dienst, Team;Art\n", encoding="utf-8")
    assert "it has 'Nr', 'Dienst, Team', 'Art'" in check(path)


def test_fields_of_objects_are_looked_for_by_their_paths(tmp_path):
    path = tmp_path / "alerts.jsonl"
    path.write_text(json.dumps({**GOOD, "service": {"name": "db"}, "id": {"a": {"b": 1}}}) + "\n", encoding="utf-8")
    assert check(path, "service=service.name,id=id.a.b") is None
    assert "has no service.nam; it has 'id', 'id.a', 'id.a.b', 'service', 'service.name'" in check(
        path, "service=service.nam,id=id.a.b"
    )
