"""Which incidents of a file are one fault, and what is said of fields that nothing reads."""

from __future__ import annotations

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.incidents import IncidentError, build_sft, file_source
from verl_aiops.incidents.io.faults import Faults

ROW = {"source": "shop", "service": "db", "incident_type": "oom", "symptom": "Slow.", "logs": ["one line"]}


def write(path, rows):
    """Incidents that differ in their symptom: with the very same data they would be one fault."""
    rows = [{**ROW, "symptom": f"Slow, says {row['id']}.", **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def grouped(tmp_path, ids, **more):
    source = file_source(write(tmp_path / "i.jsonl", [{"id": name, **more} for name in ids]))
    return [source.group_of(incident) for incident in source.stream()], source.faults


def numbered(name, count, width=1):
    return [f"{name}-{number:0{width}}" for number in range(1, count + 1)]


def test_ids_equal_up_to_a_last_number_are_one_fault(tmp_path):
    ids = [name for day in range(1, 9) for name in numbered(f"outage-2026-11-{day:02}", 4)]
    random.Random(0).shuffle(ids)
    groups, faults = grouped(tmp_path, [*ids, "lone"])
    assert groups[:-1] == [name.rpartition("-")[0] for name in ids] and groups[-1] == "lone"
    assert faults == Faults(by_id=8, alone=1)


@pytest.mark.parametrize(
    "ids",
    [
        numbered("outage-2026-11-03", 4),  # though it is the whole file
        numbered("outage-checkout", 3),
        numbered("shop-f213", 12),
        numbered("host42", 20),
    ],
)
def test_a_name_that_few_have_is_a_fault(tmp_path, ids):
    others = [] if ids[0].startswith("outage-2026") else [f"other{number}x" for number in range(80)]
    groups, faults = grouped(tmp_path, [*ids, *others])
    assert set(groups[: len(ids)]) == {ids[0].rpartition("-")[0]}
    assert faults == Faults(by_id=1, alone=len(others))


@pytest.mark.parametrize(
    "ids",
    [
        numbered("bgl", 60, width=4),
        numbered("bgl", 60),
        numbered("INC-2024", 6, width=3),
        numbered("INC-2025", 90) + numbered("INC-2026", 90),
        numbered("bgl", 20) + numbered("hpc", 30) + numbered("zoo", 40),
        [f"incident-2026-11-{day:02}" for day in range(1, 9)],
        [f"{n}" for n in range(30)],
    ],
)
def test_a_number_that_counts_a_systems_incidents_makes_no_fault(tmp_path, ids):
    groups, faults = grouped(tmp_path, ids)
    assert groups == ids and faults == Faults(alone=len(ids))


def test_each_source_is_looked_at_by_itself(tmp_path):
    """Four of a hundred would be a fault, were they not all that there is of their system."""
    rows = [{"id": name, "source": "mac"} for name in numbered("mac", 4)]
    rows += [{"id": f"x{n}"} for n in range(96)]
    source = file_source(write(tmp_path / "i.jsonl", rows))
    assert source.faults == Faults(alone=100)


def test_a_field_has_the_last_word(tmp_path):
    rows = [{"id": name, "fault": f"disk {at // 2}"} for at, name in enumerate(numbered("outage-2026-11-03", 4))]
    source = file_source(write(tmp_path / "i.jsonl", rows))
    assert [source.group_of(i) for i in source.stream()] == ["disk 0", "disk 0", "disk 1", "disk 1"]
    assert source.faults == Faults(by_field=2)


@pytest.mark.parametrize(
    ("phrase", "count", "faults"),
    [
        ("OOMKilled", 200, Faults(alone=200)),
        ("OOMKilled", 2, Faults(alone=2)),
        ("Container was killed by the kernel: out of memory, exit code 137", 200, Faults(alone=200)),
        ("2026-11-03T10:00:01.118 Container 7fa1 killed: out of memory, exit 137", 3, Faults(by_evidence=1)),
        ("2026年11月3日10点内存不足，容器7fa1被终止", 3, Faults(by_evidence=1)),
    ],
)
def test_equal_evidence_merges_where_it_is_rare_and_long(tmp_path, phrase, count, faults):
    ids = [f"case{n}x" for n in range(count)]
    assert grouped(tmp_path, ids, logs=["quiet", phrase], evidence=[phrase])[1] == faults


def test_the_very_same_data_are_one_fault_whatever_their_number_and_answers(tmp_path):
    """Else most of validation would have been trained on word for word."""
    rows = [{"id": f"case{n}x", "symptom": "Disk alert.", "service": ["db", "web"][n % 2]} for n in range(30)]
    rows += [{"id": "lone"}, {"id": "there", "symptom": "Disk alert.", "source": "bank"}]
    rows += [{"id": "named", "symptom": "Disk alert.", "fault": "mine"}]
    rows += [{"id": "traced", "symptom": "Disk alert.", "trace": "web -> db 3 s"}]
    source = file_source(write(tmp_path / "i.jsonl", rows))
    groups = [source.group_of(incident) for incident in source.stream()]
    assert len(set(groups[:30])) == 1 and len(set(groups)) == 5
    assert source.faults == Faults(by_field=1, by_text=1, alone=3, contradicting=31)
    assert "5 faults: 1 named by `fault`, 0 by ids equal up to a last number, 0 by equal evidence, 1 of incidents " in (
        str(source.faults)
    )


def test_answers_that_contradict_each_other_are_counted_and_said(tmp_path):
    """Whatever their faults are called; another spelling of a name is no other answer."""
    same = {"symptom": "Disk alert."}
    rows = [{**same, "id": f"a{n}", "fault": f"f{n}", "service": name} for n, name in enumerate(("db", "web", "DB"))]
    rows += [{"id": "b1", "symptom": "Another."}, {"id": "b2", "symptom": "Another."}]
    source = file_source(write(tmp_path / "i.jsonl", rows))
    assert source.faults.contradicting == 3
    said = "3 incidents whose very same data another one has with another answer"
    assert said in str(build_sft(source, tmp_path / "o.jsonl", val_share=0))
    fine = file_source(write(tmp_path / "j.jsonl", rows[3:]))
    assert fine.faults.contradicting == 0 and "very same data another" not in str(
        build_sft(fine, tmp_path / "p.jsonl", val_share=0)
    )


def test_an_empty_validation_side_is_refused_with_how_groups_were_made(tmp_path):
    source = file_source(write(tmp_path / "i.jsonl", [{"id": name} for name in numbered("outage-2026-11-03", 4)]))
    with pytest.raises(IncidentError) as error:
        build_sft(source, tmp_path / "s.parquet", val_share=0.5, seed=1)
    side = "training" if "for training" in str(error.value) else "validation"
    assert (
        f"i.jsonl: nothing to write for {side} from 4 incidents, which are 1 fault: 0 named by `fault`, 1 by ids"
        in str(error.value)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["i.jsonl"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_fields_that_nothing_reads_are_counted_and_named(tmp_path, suffix):
    rows = [{**ROW, "id": f"case{n}x", "symptom": f"Slow {n}.", "team": "payments"} for n in range(20)]
    if suffix == "jsonl":
        rows[3]["runbook\n"] = {"url": "x"}
    path = tmp_path / f"i.{suffix}"
    if suffix == "jsonl":
        write(path, rows)
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "logs": json.dumps(row["logs"])} for row in rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = file_source(path)
    assert source.notes.unknown == {"team": 20} | ({"runbook\n": 1} if suffix == "jsonl" else {})
    said = str(build_sft(source, tmp_path / "s.parquet", val_share=0.2))
    assert "  fields that nothing reads: team 20" + (r", runbook\x0a 1" if suffix == "jsonl" else "") + "\n" in said
    assert "20 incidents, 20 faults: 0 named by `fault`, 0 by ids equal up to a last number, 0 by equal" in said
