"""The authors' repositories, imported, against the incidents that were once made of them by the same rules.

Set VERL_AIOPS_IMPORT_SOURCES to a folder with checkouts named loghub, Nezha and petshop-root-cause-analysis.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from import_harness import check_incidents

from verl_aiops.incidents import read_incidents
from verl_aiops.incidents.importers import built_in, import_incidents, load_mapping
from verl_aiops.incidents.importers.loghub import check_mapping, is_dominant, read_sample, window_fields
from verl_aiops.incidents.importers.nezha_files import Day
from verl_aiops.incidents.importers.petshop import read_metrics

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "incidents" / "incidents.jsonl"
SOURCES = Path(os.environ.get("VERL_AIOPS_IMPORT_SOURCES") or "unset")
FOLDERS = {"loghub": "loghub", "nezha": "Nezha", "petshop": "petshop-root-cause-analysis"}

pytestmark = [
    pytest.mark.skipif(not REAL.is_file(), reason=f"the reference is not at {REAL}"),
    pytest.mark.slow,
]


def folder(name):
    path = SOURCES / FOLDERS[name]
    if not path.is_dir():
        pytest.skip(f"no {path}; VERL_AIOPS_IMPORT_SOURCES names the folder of the checkouts")
    return path


@pytest.fixture(scope="module")
def reference():
    return list(read_incidents(REAL))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            out = tmp_path_factory.mktemp(name) / f"{name}.jsonl"
            report = import_incidents("auto", folder(name), out)
            made[name] = check_incidents(out), report
        return made[name]

    return get


def agreement(mine, theirs):
    """How many incidents of the same id agree, by field."""
    by_id = {incident.id: incident for incident in mine}
    same = Counter()
    for incident in theirs:
        other = by_id.get(incident.id)
        for field in ("id", "source", "service", "incident_type", "symptom", "trace", "evidence"):
            same[field] += other is not None and getattr(incident, field) == getattr(other, field)
        same["evidence lines"] += other is not None and set(incident.evidence) == set(other.evidence)
    return dict(same)


def of(reference, name):
    return [incident for incident in reference if incident.source.startswith(f"{name}/")]


def test_nezha_agrees_but_for_the_sampled_lines(imported, reference):
    mine, report = imported("nezha")
    theirs = of(reference, "nezha")
    assert len(mine) == len(theirs) == 245
    assert set(agreement(mine, theirs).values()) == {245}
    assert [len(incident.logs) for incident in mine] == [len(incident.logs) for incident in theirs]
    assert report.left_out["log lines: damaged row"] == 1


def test_every_sampled_line_of_the_reference_is_a_line_of_ours(reference):
    """But for the ad service's metrics on 2022-08-22: its timestamps are years off, so only the clock finds the row."""
    days = {}
    missing = Counter()
    for incident in of(reference, "nezha"):
        date, clock = incident.symptom.split(" at ")[1].split()[:2]
        day = days.setdefault(date, Day(folder("nezha") / "rca_data" / date, lambda: None))
        minute = next(fault for fault in day.faults()).when.replace(
            hour=int(clock[:2]), minute=int(clock[3:]), second=0
        )
        lines = {line.text for line in day.lines(minute) or ()}
        lines |= {str(day.reading(service, minute)) for service in day.services(minute)}
        for text in set(incident.logs) - lines:
            missing[date, " ".join(text.split()[:2])] += 1
    assert missing == {("2022-08-22", "metric adservice"): 25}


def test_petshop_agrees_but_for_the_sampled_lines(imported, reference):
    mine, report = imported("petshop")
    theirs = of(reference, "petshop")
    assert len(mine) == len(theirs) == 52
    same = agreement(mine, theirs)
    assert {field: same[field] for field in ("id", "source", "service", "incident_type", "symptom", "trace")} == (
        dict.fromkeys(("id", "source", "service", "incident_type", "symptom", "trace"), 52)
    )
    # The sample may draw one more line of the root cause, which is evidence too.
    assert same["evidence lines"] >= 50
    by_id = {incident.id: incident for incident in mine}
    for incident in theirs:
        # All but the four sampled lines are the same: what got worse most, and the root cause's own.
        assert len(set(incident.logs) - set(by_id[incident.id].logs)) <= 4, incident.id
    runs = {scenario: folder("petshop") / "dataset" / scenario / "noissue" / "metrics.csv" for scenario in
            ("high_traffic", "low_traffic", "temporal_traffic1", "temporal_traffic2")}  # fmt: skip
    for scenario, run in runs.items():
        key = f"issues: no fault-free run (noissue/metrics.csv) of {scenario}"
        assert (key in report.left_out) is not run.is_file()
        assert not run.is_file() or read_metrics(run)


def test_every_window_of_the_reference_gets_the_same_labels_texts_and_evidence(reference):
    limits, systems = check_mapping(load_mapping(built_in("loghub")))
    same = Counter()
    for system in systems:
        sample = read_sample(folder("loghub") / system.name, system, limits)
        for incident in (found for found in reference if found.source == f"loghub/{system.name}"):
            size = len(incident.logs)
            starts = range(len(sample.lines) - size + 1)
            start = next(start for start in starts if sample.lines[start : start + size] == incident.logs)
            assert is_dominant(sample, incident.incident_type, start, start + size)
            fields = window_fields(sample, incident.incident_type, start, start + size, limits)
            for field in ("source", "service", "symptom", "logs", "evidence"):
                same[field] += fields[field] == getattr(incident, field)
    assert same == dict.fromkeys(("source", "service", "symptom", "logs", "evidence"), 576)


def test_loghub_gives_the_same_types_in_like_numbers(imported, reference):
    """Which windows are chosen is chance, so the counts differ a little; those at the cap must be the same."""
    mine, _ = imported("loghub")
    counts = [
        Counter((incident.source, incident.incident_type) for incident in incidents)
        for incidents in (mine, of(reference, "loghub"))
    ]
    assert counts[0].keys() == counts[1].keys() and len(counts[0]) == 41
    assert all(abs(counts[0][key] - counts[1][key]) <= 4 for key in counts[1])
    services = {(incident.source, incident.service) for incident in mine}
    assert {(incident.source, incident.service) for incident in of(reference, "loghub")} <= services
    assert abs(len(mine) - 576) <= 20


def test_the_notice_holds_the_authors_terms(imported):
    for name in FOLDERS:
        _, report = imported(name)
        terms = next(folder(name) / file for file in report.source.licence_files)
        assert terms.read_text(encoding="utf-8").strip() in report.licence.read_text(encoding="utf-8")
        assert json.loads(report.out.read_text(encoding="utf-8").partition("\n")[0])["id"].startswith(name)
