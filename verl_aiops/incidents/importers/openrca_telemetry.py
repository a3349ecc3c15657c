"""OpenRCA's telemetry of one day: which metrics moved in which failure, and the log lines of that time."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean, median, pstdev

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.tables import cut, number, read_table

LINE_CHARS = 300
# Log lines kept for one failure, a fair sample of all.
KEPT_LINES = 400
# The columns that hold the time and the component in the authors' files, and those that hold a metric's name.
_TIMES = ("timestamp", "startTime")
_COMPONENTS = ("cmdb_id", "service", "serviceName", "tc")
_NAMES = ("kpi_name", "name")
# Columns of wide tables that are no metric.
_NO_METRICS = frozenset({*_TIMES, *_COMPONENTS, *_NAMES, "value", "itemid", "bomc_id"})
_PROTOCOL = re.compile(r"-(grpc|http)")
# Start and end of each failure in seconds since 1970, by its number.
Windows = Mapping[int, tuple[float, float]]


def names_of(component: str) -> set[str]:
    """What telemetry's name of a component stands for: `node-1.adservice-0` is also `node-1` and `adservice-0`."""
    parts = {component, *component.split(".")}
    return parts | {_PROTOCOL.sub("", part) for part in parts} | {part.partition(":")[0] for part in parts}


@dataclass(frozen=True)
class Change:
    """A metric's mean in a failure, its median over the day, and the difference in units of the day's usual deviation.

    See `_usual_deviation` for that unit.
    """

    component: str
    metric: str
    now: float
    usual: float
    deviations: float

    def belongs_to(self, component: str) -> bool:
        return component in names_of(self.component)

    def __str__(self) -> str:
        return f"metric {self.component} {self.metric}={self.now:.4g} (usual {self.usual:.4g})"


@dataclass(frozen=True)
class Log:
    """A log line; `when` in seconds since 1970."""

    when: float
    component: str
    text: str

    def belongs_to(self, component: str) -> bool:
        return component in names_of(self.component)

    def __str__(self) -> str:
        return cut(f"{self.component} {self.text}", LINE_CHARS)


def read_metrics(folder: Path, windows: Windows) -> dict[int, list[Change]]:
    """The changes of each series that has values in a failure's window, by failure; the day is read once.

    All values of a day are held in memory, 16 bytes each. Without the folder the lists are empty.
    """
    changes: dict[int, list[Change]] = {failure: [] for failure in windows}
    for path in sorted(folder.glob("*.csv")):
        series: dict[tuple[str, str], tuple[array, array]] = {}
        for when, component, name, value in _metric_values(path):
            times, values = series.setdefault((component, name), (array("d"), array("d")))
            times.append(when)
            values.append(value)
        for (component, name), (times, values) in series.items():
            usual = median(values)
            unit = _usual_deviation(values, usual)
            for failure, (start, end) in windows.items():
                inside = [value for when, value in zip(times, values) if start <= when < end]
                if inside:
                    now = fmean(inside)
                    changes[failure].append(Change(component, name, now, usual, (now - usual) / unit))
    return changes


def _usual_deviation(values: array, usual: float) -> float:
    """The median of the absolute differences from the median (MAD).

    At least a tenth of the standard deviation and 1 % of the median, or a series that hardly ever moves would lead
    every list.
    """
    return max(median(abs(value - usual) for value in values), pstdev(values) / 10, abs(usual) / 100, 1e-9)


def _metric_values(path: Path) -> Iterator[tuple[float, str, str, float]]:
    time = component = ""
    name: str | None = None
    wide: list[str] = []
    for row in read_table(path, ()):
        if not time:
            time, component = _first(path, row, _TIMES), _first(path, row, _COMPONENTS)
            if "value" in row:
                name = _first(path, row, _NAMES)
            else:
                wide = [column for column in row if column not in _NO_METRICS]
        when = _seconds(path, row[time])
        for label, cell in ((column, row[column]) for column in wide) if name is None else ((row[name], row["value"]),):
            value = number(cell)
            if value is not None:
                yield when, row[component], label, value


def read_logs(folder: Path, windows: Windows) -> dict[int, list[Log]]:
    """A sample of the log lines in each failure's window, by failure, in the order of the files."""
    logs: dict[int, list[Log]] = {failure: [] for failure in windows}
    seen = dict.fromkeys(windows, 0)
    choices = Random(0)
    for path in sorted(folder.glob("*.csv")):
        for row in read_table(path, ("timestamp", "cmdb_id", "value")):
            when = _seconds(path, row["timestamp"])
            for failure, (start, end) in windows.items():
                if not start <= when < end:
                    continue
                # Algorithm R (Vitter 1985): every line is kept with the same chance.
                seen[failure] += 1
                place = choices.randrange(seen[failure])
                log = Log(when, row["cmdb_id"], " ".join(row["value"].split()))
                if len(logs[failure]) < KEPT_LINES:
                    logs[failure].append(log)
                elif place < KEPT_LINES:
                    logs[failure][place] = log
    return logs


def _first(path: Path, row: Mapping[str, str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in row:
            return name
    raise IncidentError(f"{path}, line 1: expected one of the columns {', '.join(names)}, found {', '.join(row)[:200]}")


def _seconds(path: Path, text: str) -> float:
    when = number(text)
    if when is None:
        raise IncidentError(f"{path}: expected a time as a number, found {text[:40]!r}; fetch the file anew")
    # Milliseconds in some files.
    return when / 1000 if when > 1e11 else when
