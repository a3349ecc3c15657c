"""OpenRCA 2.0: a folder a case with telemetry in parquet, `normal_*` before the fault and `abnormal_*` during it.

Columns as published: `time`, `service_name`; logs `level`, `message`; traces `trace_id`, `span_id`, `parent_span_id`,
`span_name`, `duration` (nanoseconds), `attr.status_code`; metrics `metric`, `value`. The truth is `causal_graph.json`:
`root_causes` and `edges` between components, and `component_to_service`; what was injected is in `injection.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.parquet import ParquetFault, ParquetTable
from verl_aiops.inputs.shown import one_line
from verl_aiops.investigation.case import Case, Edge, RootCause
from verl_aiops.investigation.importers.source import (
    CaseJob,
    CaseSource,
    bounded_logs,
    bounded_spans,
    calls_of_spans,
    shortened,
)
from verl_aiops.investigation.importers.texts import finite, name_of, section, text_of, when, whole_json
from verl_aiops.investigation.signals import LogLine, Series, Signals, Span

__all__ = ["OPENRCA2"]

GRAPH = "causal_graph.json"
_SIDES = ("normal", "abnormal")
_SYSTEMS = {"ts": "train-ticket", "hs": "hotel-reservation", "otel-demo": "otel-demo"}


def read(job: CaseJob) -> Iterator[Case]:
    for folder in job.folders(f"**/{GRAPH}", f"folders with {GRAPH} and the parquet files beside it"):
        if not (folder / "abnormal_traces.parquet").exists():
            job.leave_out("folders: no abnormal_traces.parquet")
            continue
        yield _case(job, folder)


def _case(job: CaseJob, folder: Path) -> Case:
    graph, where = whole_json(folder / GRAPH), one_line(folder / GRAPH)
    names = section(graph, "component_to_service") or {}

    def service(component: Any) -> str | None:
        name = name_of(component)
        # a component may be spelt `service|name` or `span|name::operation`
        found = names.get(component) if isinstance(component, str) else None
        return name_of(found) if found else name.rpartition("|")[2] if name else None

    roots = dict.fromkeys(filter(None, (service(section(row, "component")) for row in _rows(graph, "root_causes"))))
    if not roots:
        raise IncidentError(f"{where}, field 'root_causes': expected at least one component, found none")
    pairs = [(service(section(row, "source")), service(section(row, "target"))) for row in _rows(graph, "edges")]
    job.leave_out("edges of the causal graph: an end has no name", sum(not (a and b) for a, b in pairs))
    # what spreads from one span of a service to another of its own is no edge between services
    path = dict.fromkeys(Edge(a, b) for a, b in pairs if a and b and a != b)
    faults = _faults(folder)
    at = _began(folder)
    spans = bounded_spans(job, [row for side in _SIDES for row in _spans(job, folder / f"{side}_traces.parquet")])
    logs = [row for side in _SIDES for row in _logs(job, folder / f"{side}_logs.parquet")]
    causes = (
        RootCause(name, faults.get(name) or (next(iter(faults.values())) if len(faults) == 1 else None), at)
        for name in roots
    )
    return Case(
        id=f"openrca2-{name_of(folder.name)}"[:200],
        source=f"openrca2/{_system(folder)}",
        symptom="Requests take longer or fail; an alert on the service level objective is raised.",
        alert=at,
        signals=Signals(bounded_logs(job, logs), tuple(_metrics(job, folder)), spans),
        topology=tuple(Edge(*pair) for pair in calls_of_spans(spans)),
        root_causes=tuple(causes),
        propagation=tuple(path),
        group=f"openrca2-{name_of(folder.name)}"[:200],
    )


def _rows(graph: Any, key: str) -> list[Any]:
    rows = section(graph, key)
    return rows if isinstance(rows, list) else []


def _faults(folder: Path) -> dict[str, str]:
    """By application, the kind of chaos that was injected; empty where the file is missing."""
    file = folder / "injection.json"
    if not file.exists():
        return {}
    config = section(whole_json(file), "engine_config")
    rows = config if isinstance(config, list) else [config]
    found = {name_of(section(row, "app")): name_of(section(row, "chaos_type")) for row in rows}
    return {app: kind for app, kind in found.items() if app and kind}


def _began(folder: Path) -> float | None:
    file = folder / "env.json"
    return when(section(whole_json(file), "ABNORMAL_START")) if file.exists() else None


def _system(folder: Path) -> str:
    file = folder / "env.json"
    namespace = name_of(section(whole_json(file), "NAMESPACE")) if file.exists() else None
    short = (namespace or "unknown").rstrip("0123456789")
    return _SYSTEMS.get(short, short or "unknown")


def _table(job: CaseJob, path: Path, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        job.leave_out(f"files: no {path.name}")
        return
    try:
        table = ParquetTable(path)
        for _, row, fault in table.records([name for name in columns if name in table.columns]):
            if fault:
                job.leave_out(f"rows of {path.name}: a value that cannot be read")
            else:
                yield row
    except ParquetFault as error:
        raise IncidentError(f"{one_line(path)}: not a readable parquet file ({error}); download it anew") from None


def _time(value: Any) -> float | None:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    return when(value)


def _logs(job: CaseJob, path: Path) -> Iterator[LogLine]:
    for row in _table(job, path, ("time", "service_name", "level", "message")):
        service, text = name_of(row.get("service_name")), text_of(row.get("message"))
        if service is None or text is None:
            job.leave_out("log lines: no service_name or message")
            continue
        yield LogLine(_time(row.get("time")), service, name_of(row.get("level")), shortened(job, text))


def _spans(job: CaseJob, path: Path) -> Iterator[Span]:
    columns = ("time", "trace_id", "span_id", "parent_span_id", "span_name", "service_name", "duration")
    for row in _table(job, path, (*columns, "attr.status_code", "attr.http.response.status_code")):
        trace, span, service = (name_of(row.get(key)) for key in ("trace_id", "span_id", "service_name"))
        if trace is None or span is None or service is None:
            job.leave_out("spans: no trace_id, span_id or service_name")
            continue
        took, code = finite(row.get("duration")), finite(row.get("attr.http.response.status_code"))
        status = name_of(row.get("attr.status_code"))
        if status and status.lower().endswith("error"):
            status = f"error {int(code)}" if code and code >= 400 else "error"
        elif code is not None and code >= 400:
            status = str(int(code))
        else:
            status = "ok"
        parent = name_of(row.get("parent_span_id"))
        duration = None if took is None else took / 1e6
        yield Span(
            _time(row.get("time")), trace, span, parent, service, name_of(row.get("span_name")), duration, status
        )


def _metrics(job: CaseJob, folder: Path) -> Iterator[Series]:
    """One series a service and metric; where several pods report it in the same second, their mean."""
    sums: dict[tuple[str, str], dict[float, tuple[float, int]]] = {}
    for side in _SIDES:
        for row in _table(job, folder / f"{side}_metrics.parquet", ("time", "metric", "value", "service_name")):
            service, metric = name_of(row.get("service_name")), name_of(row.get("metric"))
            time, value = _time(row.get("time")), finite(row.get("value"))
            if service is None or metric is None or time is None or value is None:
                job.leave_out("points: no service_name, metric, time or value")
                continue
            second = float(int(time))
            total, count = sums.setdefault((service, metric), {}).get(second, (0.0, 0))
            sums[service, metric][second] = (total + value, count + 1)
    for (service, metric), points in sums.items():
        yield Series(service, metric, None, tuple(sorted((at, total / count) for at, (total, count) in points.items())))


OPENRCA2 = CaseSource(
    name="openrca2",
    title="OpenRCA 2.0 data packs",
    homepage="https://huggingface.co/datasets/lincyaw/openrca2-v1-500",
    expects="unpacked cases: a folder each with causal_graph.json, env.json, injection.json, normal_*.parquet and "
    "abnormal_*.parquet",
    licence="as the card of the data set says (its re-issue ops-lite: Apache-2.0); the files state none",
    citation="OpenRCA 2.0, the data set's card",
    read=read,
)
