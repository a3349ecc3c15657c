"""Prometheus' range answers, Kubernetes' events, and a deploy log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation.importers.house.mapping import HouseMapping
from verl_aiops.investigation.importers.source import CaseJob
from verl_aiops.investigation.importers.texts import (
    finite,
    json_values,
    name_of,
    read_csv,
    section,
    text_of,
    when,
    whole_json,
)
from verl_aiops.investigation.signals import Note, Series

__all__ = ["read_changes", "read_events", "read_metrics"]

_LABELS_SHOWN = 60


def read_metrics(job: CaseJob, path: Path, mapping: HouseMapping) -> Iterator[Series]:
    """The series of an answer of `/api/v1/query_range`; those that name no service are counted, and values that are no
    number. Raises IncidentError with the file."""
    value = whole_json(path)
    rows = section(value, "data", "result")
    if section(value, "data", "resultType") != "matrix" or not isinstance(rows, list):
        raise IncidentError(f"{path}, field 'data.resultType': expected matrix, an answer of /api/v1/query_range")
    for row in rows:
        labels = section(row, "metric")
        service = mapping.service_by_labels(labels)
        values = section(row, "values")
        if service is None or not isinstance(values, list):
            job.leave_out("series: no label names the service" if service is None else "series: no values")
            continue
        points = [(when(pair[0]), finite(pair[1])) for pair in values if isinstance(pair, list) and len(pair) == 2]
        kept = sorted((time, amount) for time, amount in points if time is not None and amount is not None)
        job.leave_out("points: no number, or no time", len(values) - len(kept))
        yield Series(service, _name(labels, mapping), None, tuple(kept))


def _name(labels: Mapping[str, Any], mapping: HouseMapping) -> str:
    """The metric's name, with the labels that tell its series apart and say nothing of the service."""
    name = name_of(labels.get("__name__")) or "value"
    more = [
        f"{key}={value}"
        for key, value in sorted(labels.items())
        if key not in ("__name__", "instance", "namespace", "endpoint", "prometheus", *mapping.labels)
        and isinstance(value, str)
    ]
    told = ",".join(more)[:_LABELS_SHOWN]
    return name_of(f"{name}{{{told}}}" if told else name) or name


def read_events(job: CaseJob, path: Path, mapping: HouseMapping) -> Iterator[Note]:
    """The answer of `kubectl get events -o json`. Raises IncidentError with the file."""
    items = section(whole_json(path), "items")
    if not isinstance(items, list):
        raise IncidentError(f"{path}, field 'items': expected a list, the answer of kubectl get events -o json")
    for item in items:
        text = text_of(section(item, "message"))
        if text is None:
            job.leave_out("events: no message")
            continue
        subject = section(item, "involvedObject") or section(item, "regarding")
        kind, name = name_of(section(subject, "kind")), name_of(section(subject, "name"))
        service = mapping.service(name) if kind != "Node" else None
        time = next(
            (at for key in ("lastTimestamp", "eventTime", "firstTimestamp") if (at := when(section(item, key)))), None
        )
        time = time or when(section(item, "metadata", "creationTimestamp"))
        count = section(item, "count")
        often = f" (x{count})" if isinstance(count, int) and count > 1 else ""
        where = "" if name is None or service == name else f"{kind} {name}: "
        yield Note(time, service, name_of(section(item, "reason")), f"{where}{text}{often}")


def read_changes(job: CaseJob, path: Path, mapping: HouseMapping) -> Iterator[Note]:
    """A deploy log, JSON lines or CSV, its columns named by the mapping. Raises IncidentError with the file.

    Rows without a time or a text are counted.
    """
    columns = mapping.columns
    named = (columns["time"], *mapping.own_columns)
    rows = read_csv(path, named) if path.suffix.lower() == ".csv" else json_values(path)
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise IncidentError(f"{place}: expected an object, found {type(row).__name__}")
        time, text = when(row.get(columns["time"])), text_of(row.get(columns["text"]))
        kind = name_of(row.get(columns["kind"]))
        if time is None or (text is None and kind is None):
            job.leave_out("changes: no time" if time is None else "changes: no text")
            continue
        yield Note(time, mapping.service(name_of(row.get(columns["service"]))), kind, text or kind or "")
