"""Logs and spans in OpenTelemetry's JSON, as a collector's file exporter writes it: one export a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation.importers.house.mapping import HouseMapping
from verl_aiops.investigation.importers.source import CaseJob
from verl_aiops.investigation.importers.texts import json_values, name_of, nanoseconds, section, text_of
from verl_aiops.investigation.signals import LogLine, Span

__all__ = ["read_logs", "read_spans"]

# Of a severity's number in OpenTelemetry, four to a level.
_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")


def read_logs(job: CaseJob, path: Path, mapping: HouseMapping) -> Iterator[LogLine]:
    """Log records; those without text or service are counted. Raises IncidentError with file and row."""
    for service, record in _records(job, path, mapping, "resourceLogs", "scopeLogs", "logRecords"):
        text = _text(record.get("body"))
        if text is None:
            job.leave_out("log records: no text")
            continue
        time = nanoseconds(record.get("timeUnixNano")) or nanoseconds(record.get("observedTimeUnixNano"))
        yield LogLine(time, service, name_of(record.get("severityText")) or _level(record.get("severityNumber")), text)


def read_spans(job: CaseJob, path: Path, mapping: HouseMapping) -> Iterator[Span]:
    """Spans; those without ids or service are counted. Raises IncidentError with file and row."""
    for service, span in _records(job, path, mapping, "resourceSpans", "scopeSpans", "spans"):
        trace, name = name_of(span.get("traceId")), name_of(span.get("spanId"))
        if trace is None or name is None:
            job.leave_out("spans: no traceId or spanId")
            continue
        start, end = nanoseconds(span.get("startTimeUnixNano")), nanoseconds(span.get("endTimeUnixNano"))
        took = round(1000 * (end - start), 3) if start is not None and end is not None and end >= start else None
        code = section(span, "status", "code")
        status = "error" if code in (2, "2", "STATUS_CODE_ERROR") else "ok"
        yield Span(
            start, trace, name, name_of(span.get("parentSpanId")), service, name_of(span.get("name")), took, status
        )


def _records(
    job: CaseJob, path: Path, mapping: HouseMapping, resources: str, scopes: str, records: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, value in json_values(path):
        if not isinstance(value, Mapping) or not isinstance(value.get(resources), list):
            raise IncidentError(f"{place}, field '{resources}': expected a list, as OpenTelemetry's JSON has it")
        for resource in value[resources]:
            service = _service(section(resource, "resource", "attributes"), mapping)
            for scope in _needed(place, resource, scopes):
                rows = _needed(place, scope, records)
                if service is None:
                    job.leave_out(f"{records}: the resource names no service", len(rows))
                    continue
                objects = [row for row in rows if isinstance(row, Mapping)]
                job.leave_out(f"{records}: no object", len(rows) - len(objects))
                yield from ((service, row) for row in objects)


def _needed(place: str, value: Any, key: str) -> list[Any]:
    """The list under the key; none where the key is missing. Raises IncidentError where it is something else."""
    found = value.get(key, []) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise IncidentError(f"{place}, field '{key}': expected a list, as OpenTelemetry's JSON has it")
    return found


def _list(value: Any, key: str) -> list[Any]:
    found = section(value, key)
    return found if isinstance(found, list) else []


def _service(attributes: Any, mapping: HouseMapping) -> str | None:
    found = {}
    for item in attributes if isinstance(attributes, list) else ():
        text = name_of(section(item, "value", "stringValue"))
        if text is not None and isinstance(item.get("key"), str):
            found[item["key"]] = text
    for key in ("service.name", "k8s.deployment.name", "k8s.statefulset.name", "k8s.container.name", "k8s.pod.name"):
        if key in found:
            return mapping.service(found[key])
    return None


def _text(body: Any) -> str | None:
    """The body of a record: text, or what a structured one has as its message."""
    if not isinstance(body, Mapping):
        return text_of(body)
    text = text_of(body.get("stringValue"))
    if text is not None:
        return text
    for item in _list(body.get("kvlistValue"), "values"):
        if section(item, "key") in ("message", "msg", "body", "log"):
            return text_of(section(item, "value", "stringValue"))
    return None


def _level(number: Any) -> str | None:
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 24:
        return _LEVELS[(number - 1) // 4]
    return None
