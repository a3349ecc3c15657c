"""scripts/check_import.py: what agrees is counted as such, and what does not is not."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from import_harness import make_loghub, make_nezha, nezha_fault, petshop_issue, petshop_metrics, rocket_mapping

from verl_aiops.incidents import Incident, read_incidents
from verl_aiops.incidents.importers import import_incidents

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "check_import.py"))
EVENTS = [*["E1"] * 6, "E2", *["E1"] * 6, "E2", "E2", *["E1"] * 6, "E3", "E2", *["E1"] * 6, "E3", "E3", "E1", "E1"]


def made(tmp_path, source):
    """The folder of a made-up data set, its import, and the mapping that it needs."""
    folder, mapping = tmp_path / source, None
    if source == "loghub":
        mapping = rocket_mapping(tmp_path)
        make_loghub(folder, EVENTS)
    elif source == "nezha":
        faults = [nezha_fault("10:00:30", "ts-cart", "return"), nezha_fault("10:00:40", "ts-cart", "cpu_contention")]
        make_nezha(folder, faults)
    else:
        shop = ("Shop", "latency", "Average")
        usual = {shop: [0.1] * 5, ("till_AWS::Lambda", "latency", "p90"): [0.2] * 5}
        petshop_metrics(folder / "dataset" / "high_traffic" / "noissue" / "metrics.csv", usual)
        for number in range(3):
            issue = folder / "dataset" / "high_traffic" / "test" / f"issue_{number}"
            changed = {key: [9.0 + number] * 5 for key in usual}
            petshop_issue(issue, "till_AWS::Lambda", "latency", "set --name searchdelay --value 500", changed)
    import_incidents(source, folder, tmp_path / "made.jsonl", mapping=mapping)
    return folder, list(read_incidents(tmp_path / "made.jsonl")), mapping


def report(folder, incidents, source, mapping):
    lines = SCRIPT["compare"](incidents, source, folder, mapping)
    return dict(line.rpartition(": ")[::2] for line in lines if ": " in line)


def changed(incident: Incident, **fields):
    return Incident.from_dict({**incident.to_dict(), **fields})


@pytest.mark.parametrize("source, kept", [("loghub", "window"), ("nezha", "id"), ("petshop", "id")])
def test_an_import_agrees_with_itself(tmp_path, source, kept):
    folder, incidents, mapping = made(tmp_path, source)
    shown = report(folder, incidents, source, mapping)
    every = f"{len(incidents)} of {len(incidents)}"
    assert len(incidents) > 2 and shown[f"same {kept}"] == every
    assert {shown[f"same {field}"] for field in ("source", "service", "symptom", "evidence")} == {every}
    assert shown.get("log lines of the reference that are not in the data", "0") == "0"
    assert shown.get("windows of one type", "numbers differ by at most 0").endswith("at most 0")
    told = shown["files of terms that stand in the notice"]
    assert told == ("1 of 1" if source == "loghub" else "0 of 0")


def test_what_differs_is_not_counted_as_the_same(tmp_path):
    folder, incidents, _ = made(tmp_path, "nezha")
    first, second, *others = incidents
    other = [
        changed(first, service="ts-gate", logs=[*first.logs, "metric ts-gate made up"]),
        changed(second, id="nezha-train-ticket-f299-1"),
        *others,
    ]
    shown = report(folder, other, "nezha", None)
    count = len(incidents)
    assert shown["same id"] == shown["same evidence"] == f"{count - 1} of {count}"
    assert shown["same service"] == f"{count - 2} of {count}"
    assert shown["log lines of one incident that only the reference has"] == "at most 1"
    assert shown["log lines of the reference that are not in the data"] == "1"


def test_a_window_of_another_label_or_log_is_not_counted_as_the_same(tmp_path):
    folder, incidents, mapping = made(tmp_path, "loghub")
    first, second, *others = incidents
    other_type = {"stuck_part": "supply_low", "supply_low": "stuck_part"}[first.incident_type]
    other = [
        changed(first, incident_type=other_type),
        changed(second, logs=[*second.logs, "one more"]),
        changed(others[0], service="rocket-crew"),
        *others[1:],
    ]
    shown = report(folder, other, "loghub", mapping)
    count = len(incidents)
    assert shown["same window"] == shown["same evidence"] == f"{count - 2} of {count}"
    assert shown["same service"] == f"{count - 3} of {count}"
    assert shown["windows of one type"] == "numbers differ by at most 1"


def test_the_command_reads_the_incidents_of_its_source_alone(tmp_path, capsys):
    folder, incidents, _ = made(tmp_path, "petshop")
    path = tmp_path / "all.jsonl"
    rows = [incident.to_dict() for incident in [*incidents, changed(incidents[0], id="x", source="nezha/x")]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert SCRIPT["main"]([str(path), "petshop", str(folder)]) == 0
    assert "3 incidents imported, 3 in the reference" in capsys.readouterr().out
    assert SCRIPT["main"]([str(path), "loghub", str(folder)]) == 1
    assert "no incident has a source that begins with 'loghub/'" in capsys.readouterr().err
    assert SCRIPT["main"]([str(path), "else", str(folder)]) == 2
