"""The files of one day of Nezha as the authors publish them: faults, spans, log lines and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.tables import cut, number, read_json, read_table

OPERATION_CHARS = 60
LINE_CHARS = 300
# The columns of a pod's metrics that a record shows: rates in percent, latencies in seconds.
CPU, MEMORY = "CpuUsageRate(%)", "MemoryUsageRate(%)"
LATENCIES = ("PodServerLatencyP90(s)", "PodClientLatencyP90(s)")
SHOWN = (CPU, MEMORY, *LATENCIES)
_FRONT = ("LatencyP90(s)", "LatencyP99(s)")
_REPLICA = re.compile(r"-[0-9a-f]{6,10}-[a-z0-9]{5}")


def service_of(pod: str) -> str:
    """A pod's name without the suffix of its replica."""
    return _REPLICA.split(pod)[0]


@dataclass(frozen=True)
class Injection:
    """An injected fault; `index` is its place in the day's list."""

    index: int
    when: datetime
    service: str
    kind: str

    def minute(self, later: int) -> datetime:
        """The minute that starts `later` minutes after the one of the injection."""
        return self.when.replace(second=0) + timedelta(minutes=later)


@dataclass(frozen=True)
class Span:
    """A span; `start` in nanoseconds since 1970, `duration` and `usual` (its median over the day) in microseconds."""

    trace: str
    name: str
    parent: str
    service: str
    start: int
    duration: int
    usual: float
    operation: str

    @property
    def ratio(self) -> float:
        return self.duration / max(self.usual, 1)

    def __str__(self) -> str:
        operation = self.operation[:OPERATION_CHARS]
        return f"span {self.service} {operation} {self.duration / 1000:.1f}ms (usual {self.usual / 1000:.1f}ms)"


@dataclass(frozen=True)
class Line:
    """A log line; `when` is its timestamp as written, which sorts, and `text` has time and service and is cut."""

    trace: str
    service: str
    when: str
    text: str


@dataclass(frozen=True)
class PodReading:
    """A pod's metrics in one minute and their medians over the day; a missing value counts as 0."""

    service: str
    now: Mapping[str, float]
    usual: Mapping[str, float]

    def __str__(self) -> str:
        return f"metric {self.service} " + " ".join(
            f"{name}={self.now[name]:.4g} (usual {self.usual[name]:.4g})" for name in SHOWN
        )


class Day:
    """One folder `rca_data/<date>`; files are read when they are asked for.

    `damaged` is called for each row of a log file whose cells are broken.
    """

    def __init__(self, folder: Path, damaged: Callable[[], None]):
        self.folder, self.damaged = folder, damaged

    def faults(self) -> list[Injection]:
        """The day's injected faults in the order of the list."""
        path = self.folder / f"{self.folder.name}-fault_list.json"
        hours = read_json(path)
        if not isinstance(hours, dict) or not all(isinstance(hour, list) for hour in hours.values()):
            raise IncidentError(f"{path}: expected an object of lists of faults by hour; fetch the file anew")
        faults = [fault for hour in hours.values() for fault in hour]
        return [_fault(path, index, fault) for index, fault in enumerate(faults)]

    @cached_property
    def _usual_durations(self) -> dict[tuple[str, str], float]:
        durations: dict[tuple[str, str], list[int]] = {}
        for path in sorted((self.folder / "trace").glob("*_trace.csv")):
            for row in _span_rows(path):
                key = service_of(row["PodName"]), row["OperationName"]
                durations.setdefault(key, []).append(int(row["Duration"]))
        return {key: median(values) for key, values in durations.items()}

    def traces(self, minute: datetime) -> dict[str, list[Span]] | None:
        """The spans of each trace of a minute, in file order; None if there is no file."""
        path = self.folder / "trace" / f"{minute:%H_%M}_trace.csv"
        if not path.exists():
            return None
        traces: dict[str, list[Span]] = {}
        for row in _span_rows(path):
            service, operation = service_of(row["PodName"]), row["OperationName"]
            usual = self._usual_durations[service, operation]
            span = Span(
                row["TraceID"],
                row["SpanID"],
                row["ParentID"],
                service,
                int(row["StartTimeUnixNano"]),
                int(row["Duration"]),
                usual,
                operation,
            )
            traces.setdefault(span.trace, []).append(span)
        return traces

    def lines(self, minute: datetime) -> list[Line] | None:
        """The log lines of a minute by time; None if there is no file."""
        path = self.folder / "log" / f"{minute:%H_%M}_log.csv"
        if not path.exists():
            return None
        lines = []
        for row in read_table(path, ("Timestamp", "PodName", "TraceID", "Log"), self.damaged):
            service = service_of(row["PodName"])
            text = cut(f"{row['Timestamp'][:23]} {service} {_message(row['Log'])}", LINE_CHARS)
            lines.append(Line(row["TraceID"], service, row["Timestamp"].rstrip("Z"), text))
        # The files run backwards in time; of lines with one time, the last in the file came first.
        return sorted(reversed(lines), key=lambda line: line.when)

    @cached_property
    def _metrics(self) -> dict[str, tuple[dict[str, dict[str, float]], dict[str, float]]]:
        metrics = {}
        for path in sorted((self.folder / "metric").glob("*_metric.csv")):
            metrics[service_of(path.name.removesuffix("_metric.csv"))] = _series(path, SHOWN)
        return metrics

    def reading(self, service: str, minute: datetime) -> PodReading | None:
        """A service's metrics in a minute; None if there are none."""
        by_minute, usual = self._metrics.get(service, ({}, {}))
        now = by_minute.get(f"{minute:%Y-%m-%d %H:%M}")
        return None if now is None else PodReading(service, now, usual)

    def services(self, minute: datetime) -> list[str]:
        """The services with metrics in a minute, sorted."""
        return [service for service in sorted(self._metrics) if self.reading(service, minute) is not None]

    @cached_property
    def _front(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        return _series(self.folder / "metric" / "front_service.csv", _FRONT)

    def front(self, minute: datetime) -> tuple[float, float, float] | None:
        """The front end's P90, its usual P90 and its P99 in a minute, in seconds; None if there is no row."""
        by_minute, usual = self._front
        now = by_minute.get(f"{minute:%Y-%m-%d %H:%M}")
        return None if now is None else (now[_FRONT[0]], usual[_FRONT[0]], now[_FRONT[1]])


def _fault(path: Path, index: int, fault: Any) -> Injection:
    keys = ("inject_time", "inject_pod", "inject_type")
    if not isinstance(fault, dict) or not all(isinstance(fault.get(key), str) for key in keys):
        raise IncidentError(f"{path}, fault {index}: expected the keys {', '.join(keys)}; fetch the file anew")
    try:
        # Not `inject_timestamp`, which mixes time zones.
        when = datetime.strptime(fault["inject_time"], "%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise IncidentError(
            f"{path}, fault {index}: expected an inject_time like 2022-08-22 03:53:54, found {fault['inject_time']!r}"
        ) from None
    return Injection(index, when, service_of(fault["inject_pod"]), fault["inject_type"])


def _span_rows(path: Path):
    columns = ("TraceID", "SpanID", "ParentID", "PodName", "OperationName", "StartTimeUnixNano", "Duration")
    for row in read_table(path, columns):
        for name in ("StartTimeUnixNano", "Duration"):
            if not row[name].isdecimal():
                _whole(path, row, name)
        yield row


def _whole(path: Path, row: Mapping[str, str], column: str) -> int:
    try:
        return int(row[column])
    except ValueError:
        raise IncidentError(f"{path}, column {column}: expected a whole number, found {row[column][:40]!r}") from None


def _series(path: Path, columns: tuple[str, ...]) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The first row of each minute, and the medians of all rows; by the clock, as some files' timestamps are off."""
    by_minute: dict[str, dict[str, float]] = {}
    values: dict[str, list[float]] = {name: [] for name in columns}
    for row in read_table(path, ("Time", *columns)):
        now = {name: number(row[name]) or 0.0 for name in columns}
        by_minute.setdefault(row["Time"][:16], now)
        for name in columns:
            values[name].append(now[name])
    return by_minute, {name: median(column) if column else 0.0 for name, column in values.items()}


def _message(log: str) -> str:
    """What the program logged: without the container's wrapping, with the severity of structured lines, on one line."""
    text = _json_field(log, "log", log)
    severity = _json_field(text, "severity", None)
    message = _json_field(text, "message", None)
    if message is not None:
        text = f"{severity or ''} {message}"
    return " ".join(text.split())


def _json_field(text: str, name: str, default: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return default
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else default
