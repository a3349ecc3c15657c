"""OpenRCA: the recorded failures and their queries, with excerpts of metrics and logs where the telemetry is there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import Entry
from verl_aiops.incidents.importers.openrca_telemetry import Change, Log, read_logs, read_metrics
from verl_aiops.incidents.importers.tables import cut, number, read_table
from verl_aiops.incidents.schema import Incident

# What a record shows: the metrics that moved most, the component's own, a sample of the rest; log lines alike.
MOST, MOST_OWN, OTHERS = 8, 3, 5
OWN_LINES, OTHER_LINES = 4, 4
# Minutes after the recorded time that count as the failure.
MINUTES = 5
# The component's line is evidence if it moved by this many of the day's usual deviations.
MOVED = 3.0
QUERY_CHARS = 600
# Seconds since 1970; more are milliseconds.
LATEST = 1e11
_TASK = re.compile(r"task_[1-7]")
_ANSWER = re.compile(r"root cause (?:component|reason) is ([^\n]+)")


@dataclass(frozen=True)
class OpenrcaMapping:
    """The checked mapping: `systems` are (name, folder, place)."""

    zone: timezone
    systems: tuple[tuple[str, str, str], ...]
    type_of: Mapping[str, str]


def check_mapping(entry: Entry) -> OpenrcaMapping:
    """What a mapping file says; raises IncidentError."""
    parts = entry.fields(("utc_offset_hours", "systems", "reasons"))
    hours = parts["utc_offset_hours"]
    if hours.count(-12) > 14:
        raise hours.fail("an offset from -12 to 14", "give the offset of the recorded times")
    systems = []
    for name, system in parts["systems"].items():
        fields = system.fields(("folder", "place"))
        systems.append((Entry(name, entry.file, system.key).label(), fields["folder"].text(), fields["place"].text()))
    type_of: dict[str, str] = {}
    for reason, kind in parts["reasons"].items():
        if _plain(reason) in type_of:
            raise kind.fail("a reason named once", "remove one; case and spaces around it do not matter")
        type_of[_plain(reason)] = kind.label()
    return OpenrcaMapping(timezone(timedelta(hours=hours.value)), tuple(systems), type_of)


def _plain(reason: str) -> str:
    return " ".join(reason.split()).lower()


@dataclass(frozen=True)
class Failure:
    """A row of record.csv with its row of query.csv; `number` counts them from 0, `when` is seconds since 1970."""

    number: int
    component: str
    reason: str
    when: float
    query: str

    @property
    def half_hour(self) -> int:
        """The half hour, counted since 1970, that its query asks about."""
        return int(self.when // 1800)

    @property
    def window(self) -> tuple[float, float]:
        """Start and end of what counts as the failure, in seconds since 1970."""
        return self.when, self.when + 60 * MINUTES


def read_failures(folder: Path) -> list[Failure]:
    """The failures of a system; raises IncidentError where the two files do not fit together."""
    records = list(read_table(folder / "record.csv", ("component", "timestamp", "reason")))
    queries = list(read_table(folder / "query.csv", ("task_index", "instruction", "scoring_points")))
    if len(records) != len(queries):
        raise IncidentError(
            f"{folder / 'query.csv'}: expected {len(records)} rows as in record.csv, found {len(queries)}; "
            "fetch both anew"
        )
    failures = []
    for index, (record, query) in enumerate(zip(records, queries)):
        place = f"{folder / 'query.csv'}, row {index + 1}"
        when = number(record["timestamp"])
        if when is None or not 0 <= when < LATEST:
            raise IncidentError(
                f"{folder / 'record.csv'}, row {index + 1}: expected seconds since 1970 as the timestamp, found "
                f"{record['timestamp'][:40]!r}"
            )
        if not _TASK.fullmatch(query["task_index"]):
            raise IncidentError(f"{place}: expected task_1 to task_7, found {query['task_index'][:40]!r}")
        component, reason = record["component"].strip(), record["reason"].strip()
        answers = [answer.strip() for answer in _ANSWER.findall(query["scoring_points"])]
        if component not in answers and reason not in answers and answers:
            raise IncidentError(
                f"{place}: its answer '{answers[0][:60]}' is not that of the same row of record.csv; the two files are "
                "of different versions"
            )
        failures.append(Failure(index, component, reason, when, query["instruction"].strip()))
    return failures


def read(job: Job) -> Iterator[Incident]:
    """Incidents of all systems that are both in the folder and in the mapping, in the order of their records."""
    mapping: OpenrcaMapping = job.mapping
    base = job.root / "dataset" if (job.root / "dataset").is_dir() else job.root
    found = False
    for name, place, description in job.track(mapping.systems, "system"):
        folder = base / place
        if not (folder / "record.csv").is_file():
            job.leave_out(f"systems: no {place}/record.csv")
            continue
        found = True
        usable = []
        failures = read_failures(folder)
        company = Counter(failure.half_hour for failure in failures)
        for failure in failures:
            if _plain(failure.reason) in mapping.type_of:
                usable.append(failure)
            else:
                job.leave_out(f"failures: the reason '{failure.reason}' is not in the mapping")
        shared = {failure.number for failure in usable if company[failure.half_hour] > 1}
        yield from _read_system(job, Scenery(name, description, frozenset(shared)), folder / "telemetry", usable)
    if not found:
        raise IncidentError(
            f"{base}: expected <system>/record.csv and query.csv, found none; the authors publish them apart from the "
            "repository (see its dataset/README.md)"
        )


@dataclass(frozen=True)
class Scenery:
    """A system's name, what it is, and the failures that are not the only ones of their half hour."""

    name: str
    place: str
    shared: frozenset[int]


def _read_system(job: Job, system: Scenery, telemetry: Path, failures: list[Failure]) -> Iterator[Incident]:
    by_day: dict[str, list[Failure]] = {}
    for failure in failures:
        day = datetime.fromtimestamp(failure.when, job.mapping.zone).strftime("%Y_%m_%d")
        by_day.setdefault(day, []).append(failure)
    incidents = {}
    for day, group in job.track(sorted(by_day.items()), "day"):
        windows = {failure.number: failure.window for failure in group}
        metrics = read_metrics(telemetry / day / "metric", windows)
        logs = read_logs(telemetry / day / "log", windows)
        for failure in group:
            fields = _fields(job, system, failure, metrics[failure.number], logs[failure.number])
            incidents[failure.number] = Incident(**fields)
    for number_ in sorted(incidents):
        yield incidents[number_]


def _fields(job: Job, system: Scenery, failure: Failure, changes: list[Change], logs: list[Log]) -> dict[str, Any]:
    name = f"openrca-{system.name.lower()}-{failure.number + 1:03}"
    choices = job.choices(name)
    own = [change for change in changes if change.belongs_to(failure.component)]
    shown = _most(changes, MOST)
    shown += [change for change in _most(own, MOST_OWN) if change not in shown]
    rest = [change for change in changes if change not in shown]
    shown += choices.sample(rest, min(OTHERS, len(rest)))
    choices.shuffle(shown)
    lines = []
    for group, count in (
        ([log for log in logs if log.belongs_to(failure.component)], OWN_LINES),
        ([log for log in logs if not log.belongs_to(failure.component)], OTHER_LINES),
    ):
        lines += choices.sample(group, min(count, len(group)))
    lines.sort(key=lambda log: log.when)
    if not shown and not lines:
        job.notes["incidents without telemetry: nothing in them tells the answer"] += 1
    when = datetime.fromtimestamp(failure.when, job.mapping.zone)
    alert = f"Failure of {system.place} noticed at {when:%Y-%m-%d %H:%M} ({job.mapping.zone})."
    query = cut(" ".join(failure.query.split()), QUERY_CHARS)
    told = any(label.lower() in query.lower() for label in (failure.component, failure.reason))
    return {
        "id": name,
        "source": f"openrca/{system.name}",
        "service": failure.component,
        "incident_type": job.mapping.type_of[_plain(failure.reason)],
        # A query about two failures does not say which one is meant.
        "symptom": alert if told or not query or failure.number in system.shared else query,
        "logs": (f"alert {alert}", *map(str, lines), *map(str, shown)),
        "evidence": tuple(str(change) for change in shown if change in own and abs(change.deviations) >= MOVED),
        # Failures of one half hour have telemetry in common.
        "fault": f"openrca-{system.name.lower()}-{failure.half_hour}",
    }


def _most(changes: list[Change], count: int) -> list[Change]:
    return sorted(changes, key=lambda change: -abs(change.deviations))[:count]


SOURCE = Source(
    name="openrca",
    title="OpenRCA, failures of three systems with queries (and telemetry where it is there)",
    homepage="https://github.com/microsoft/OpenRCA",
    expects="the data set that its dataset/README.md links to: <system>/record.csv and query.csv, and "
    "<system>/telemetry/<date>/metric and log (tens of gigabytes). Without telemetry an incident holds only the alert, "
    "from which nobody can tell the answer; traces are not read",
    files=("*/record.csv", "*/*/record.csv", "dataset/*/record.csv", "dataset/*/*/record.csv"),
    licence="MIT licence (the repository's); the data set is downloaded apart from it, so look for terms there too.",
    citation="Junjielong Xu, Qinan Zhang, Zhiqing Zhong, Shilin He, Chaoyun Zhang, Qingwei Lin, Dan Pei, Pinjia He, "
    "Dongmei Zhang, Qi Zhang. OpenRCA: Can Large Language Models Locate the Root Cause of Software Failures? "
    "ICLR 2025.",
    changes="telemetry was reduced to the lines shown: means of the five minutes after the recorded time beside "
    "medians of the day.",
    licence_files=("LICENSE",),
    check=check_mapping,
    read=read,
)
