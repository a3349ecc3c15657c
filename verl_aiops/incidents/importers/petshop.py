"""PetShop: metrics of an issue's window against the fault-free run of its scenario."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, median
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.job import Job, Source
from verl_aiops.incidents.importers.mapping import Entry
from verl_aiops.incidents.importers.tables import number, read_cells, read_json
from verl_aiops.incidents.schema import Incident

# What a record shows: the metrics that got worse most, the worst others of the root cause, and a sample of the rest.
WORST, WORST_OWN, OTHERS = 8, 2, 4
STATISTICS = frozenset({"Average", "p90", "p99", "Sum"})
# The root cause's line is evidence if it got worse by this factor.
MOVED = 1.3
# Added before two values are divided, so that a change from nothing to next to nothing is no large one.
FLOORS = {"requests": 1.0, "latency": 0.001}

# Node, metric, statistic.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class PetshopMapping:
    """The checked mapping."""

    service: re.Pattern[str]
    commands: tuple[tuple[re.Pattern[str], str], ...]
    scenarios: tuple[str, ...]


def check_mapping(entry: Entry) -> PetshopMapping:
    """What a mapping file says; raises IncidentError."""
    parts = entry.fields(("service", "commands", "scenarios"))
    service = parts["service"].pattern()
    if service.groups < 1:
        raise parts["service"].fail("a regular expression with a group", "put the service in (brackets)")
    commands = []
    for item in parts["commands"].list():
        fields = item.fields(("find", "type"))
        commands.append((fields["find"].pattern(), fields["type"].label()))
    return PetshopMapping(service, tuple(commands), tuple(item.label() for item in parts["scenarios"].list()))


@dataclass(frozen=True)
class Change:
    """A metric's mean over the issue's window and its median over the fault-free run."""

    key: Key
    now: float
    usual: float

    @property
    def worsening(self) -> float:
        """How much worse it got; 1 is no change. A factor, but for availability 1 plus the percentage points lost."""
        if self.key[1] == "availability":
            return 1 + self.usual - self.now
        floor = FLOORS[self.key[1]]
        return (self.now + floor) / (self.usual + floor)

    def __str__(self) -> str:
        node, metric, statistic = self.key
        return f"metric {node} {metric} {statistic}={self.now:.4g} (usual {self.usual:.4g})"


def read(job: Job) -> Iterator[Incident]:
    """Incidents of all issues whose scenario has its fault-free run, by scenario and path."""
    mapping: PetshopMapping = job.mapping
    folders = {
        path.name: path for path in job.folders("dataset/*", "a folder dataset with one folder for each scenario")
    }
    for name in folders:
        if name not in mapping.scenarios:
            job.leave_out(f"scenarios: '{name}' is not in the mapping")
    count = 0
    for name in job.track(mapping.scenarios, "scenario"):
        issues = sorted(folders[name].glob("*/issue_*")) if name in folders else []
        reference = folders[name] / "noissue" / "metrics.csv" if name in folders else None
        if not issues or reference is None or not reference.is_file():
            job.leave_out(f"issues: no fault-free run (noissue/metrics.csv) of {name}", len(issues) or 1)
            continue
        usual = {key: median(values) for key, values in read_metrics(reference).items()}
        for folder in issues:
            fields = _fields(job, folder, usual, f"petshop-{count + 1:03}")
            if fields is not None:
                count += 1
                yield Incident(source=f"petshop/{name}", **fields)


def read_metrics(path: Path) -> dict[Key, list[float]]:
    """The values of each series that has any; the file has three header rows, for node, metric and statistic."""
    rows = [row for _, row in read_cells(path)]
    # The fourth row only names the index.
    if len(rows) < 5 or [row[0] for row in rows[:3]] != ["microservice", "metric", "statistic"]:
        raise IncidentError(
            f"{path}: expected header rows microservice, metric, statistic and data below them; fetch the file anew"
        )
    if len({len(row) for row in rows}) != 1:
        raise IncidentError(f"{path}: expected rows of {len(rows[0])} cells throughout; fetch the file anew")
    series = {}
    for column in range(1, len(rows[0])):
        values = [value for row in rows[4:] if (value := number(row[column])) is not None]
        if values:
            series[rows[0][column], rows[1][column], rows[2][column]] = values
    return series


def _fields(job: Job, folder: Path, usual: dict[Key, float], name: str) -> dict[str, Any] | None:
    """An incident's fields, or None after counting why there are none."""
    mapping: PetshopMapping = job.mapping
    issue = read_json(folder / "target.json")
    try:
        node, metric, statistic = (issue["target"][key] for key in ("node", "metric", "agg"))
        when = datetime.fromtimestamp(int(issue["target"]["timestamp"]), timezone.utc)  # noqa: UP017 (not in Python 3.10)
        root = issue["root_cause"]["node"]
        command = issue["metadata"]["reproducibility"]["command"]
        if not all(isinstance(text, str) for text in (node, metric, statistic, root, command)):
            raise TypeError
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        raise IncidentError(
            f"{folder / 'target.json'}: expected target (node, metric, agg, timestamp), root_cause.node and "
            "metadata.reproducibility.command; fetch the file anew"
        ) from None
    if metric not in ("latency", "availability"):
        job.leave_out(f"issues: the alarmed metric '{metric}' is neither latency nor availability")
        return None
    kind = next((kind for pattern, kind in mapping.commands if pattern.search(command)), None)
    service = mapping.service.fullmatch(root)
    if kind is None or service is None:
        what = f"the command '{command[:60]}'" if kind is None else f"the node '{root}'"
        job.leave_out(f"issues: no pattern of the mapping fits {what}")
        return None
    now = read_metrics(folder / "metrics.csv")
    changes = [
        Change(key, fmean(values), usual[key])
        for key, values in now.items()
        if key in usual and key[1] in (metric, "requests") and key[2] in STATISTICS
    ]
    target = (node, metric, statistic)
    if target not in now or target not in usual:
        job.leave_out(f"issues: no values of the alarmed metric {' '.join(target)}")
        return None
    own = [change for change in changes if change.key[0] == root]
    shown = _worst(changes, WORST)
    shown += _worst([change for change in own if change not in shown], WORST_OWN)
    choices = job.choices(name)
    rest = [change for change in changes if change not in shown]
    shown += choices.sample(rest, min(OTHERS, len(rest)))
    choices.shuffle(shown)
    return {
        "id": name,
        "service": service[1],
        "incident_type": kind,
        "symptom": f"{node} {metric} ({statistic}) alarm at {when:%Y-%m-%d %H:%M} UTC: "
        f"{fmean(now[target]):.4g} against a usual {usual[target]:.4g}.",
        "logs": tuple(map(str, shown)),
        "evidence": tuple(str(change) for change in shown if change in own and change.worsening >= MOVED),
    }


def _worst(changes: list[Change], count: int) -> list[Change]:
    return sorted(changes, key=lambda change: -change.worsening)[:count]


SOURCE = Source(
    name="petshop",
    title="PetShop, performance issues injected into an AWS demo shop (metrics)",
    homepage="https://github.com/amazon-science/petshop-root-cause-analysis",
    expects="the repository: dataset/<scenario>/ with noissue/metrics.csv and <split>/issue_<n>/ with metrics.csv and "
    "target.json",
    files=("dataset/*/*/issue_*/target.json",),
    licence="CC BY 4.0 (the data), Copyright Amazon.com, Inc. or its affiliates.",
    citation="Michaela Hardt, William R. Orchard, Patrick Blöbaum, Shiva Kasiviswanathan, Elke Kirschbaum. The PetShop "
    "Dataset: Finding Causes of Performance Issues across Microservices. CLeaR 2024 (arXiv 2311.04806).",
    changes="the metric tables were reduced to the lines shown: means of the issue's window beside medians of the "
    "fault-free run.",
    licence_files=("LICENSE_DATASET", "NOTICE"),
    check=check_mapping,
    read=read,
)
