"""RCAEval: a folder a case, `SERVICE_FAULT/N`, with metrics.csv, logs.csv, traces.csv and inject_time.txt.

The columns are those of RE2 and RE3 as published: `time` and `SERVICE_METRIC` (simple_metrics.csv, seconds);
`timestamp` (nanoseconds), `container_name`, `level`, `message`; `traceID`, `spanID`, `parentSpanID`, `serviceName`,
`operationName`, `startTime` and `duration` (microseconds), `statusCode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.shown import one_line
from verl_aiops.investigation.case import Case, Edge, RootCause
from verl_aiops.investigation.importers.source import (
    CaseJob,
    CaseSource,
    bounded_logs,
    bounded_spans,
    calls_of_spans,
    service_of_pod,
    shortened,
)
from verl_aiops.investigation.importers.texts import finite, name_of, read_csv, text_of, when
from verl_aiops.investigation.signals import LogLine, Series, Signals, Span

__all__ = ["RCAEVAL"]

INJECTED = "inject_time.txt"
# How much around the injection a case keeps, in seconds: the authors record 720 before and after.
_BEFORE, _AFTER = 720.0, 720.0
# What the folders call the faults of RE1 and RE2, and those in the code of RE3 (f1 to f5).
_FAULTS = {
    "cpu": "cpu_hog",
    "mem": "memory_leak",
    "disk": "disk_stress",
    "socket": "socket_stress",
    "delay": "network_delay",
    "loss": "packet_loss",
    **{f"f{number}": f"code_fault_f{number}" for number in range(1, 6)},
}
_FOLDER = re.compile(rf"(?:re\d[a-z]*_)?(.+)_({'|'.join(_FAULTS)})(?:_(\d+))?")
_SYSTEMS = {"OB": "online-boutique", "SS": "sock-shop", "TT": "train-ticket"}
# A point of this many seconds is enough for a summary: the authors record each second.
_STEP = 5
_FAR = f"{{}}: no time, or more than {_BEFORE / 60:.0f} minutes from the injection"


def read(job: CaseJob) -> Iterator[Case]:
    for folder in job.folders(f"**/{INJECTED}", f"folders with {INJECTED}, as RE2-OB/SERVICE_FAULT/1"):
        if not any((folder / name).exists() for name in ("simple_metrics.csv", "metrics.csv")):
            job.leave_out("folders: no metrics.csv or simple_metrics.csv")
            continue
        yield _case(job, folder)


def _case(job: CaseJob, folder: Path) -> Case:
    parts = folder.relative_to(job.root.parent if folder == job.root else job.root).parts
    number = parts[-1] if parts[-1].isdecimal() else ""
    name = folder.parent.name if number else folder.name
    match = _FOLDER.fullmatch(name)
    if match is None:
        raise IncidentError(
            f"{one_line(folder)}: expected a folder called SERVICE_FAULT with one of the faults "
            f"{', '.join(_FAULTS)}, found '{one_line(name, 60)}'"
        )
    service, fault = match.group(1), match.group(2)
    text = (folder / INJECTED).read_text(encoding="utf-8", errors="replace").strip().split("\n")[0]
    at = when(text)
    if at is None:
        raise IncidentError(f"{one_line(folder / INJECTED)}: expected seconds since 1970, found {one_line(text, 40)!r}")
    run = number or match.group(3) or "1"
    system = _system(folder)
    spans = _spans(job, folder, at)
    return Case(
        id=f"rcaeval-{system.replace('/', '-')}-{name}-{run}"[:200],
        source=f"rcaeval/{system}",
        symptom="Requests take longer or fail; an alert on the service level objective is raised.",
        alert=at,
        signals=Signals(_logs(job, folder, at), _metrics(job, folder, at), spans),
        topology=tuple(Edge(*pair) for pair in calls_of_spans(spans)),
        root_causes=(RootCause(service, _FAULTS[fault], at, reason_aliases=(fault,)),),
        reasons=tuple(sorted(set(_FAULTS.values()) if fault[0] == "f" and fault[1:].isdecimal() else _injected())),
        group=f"rcaeval-{system}-{name}"[:200],
    )


def _injected() -> list[str]:
    return [name for key, name in _FAULTS.items() if not key[1:].isdecimal()]


def _system(folder: Path) -> str:
    """The part of the data set and its system, from a folder such as RE2-OB above, or one called re2ob_..."""
    for part in reversed(folder.parts):
        found = re.match(r"(RE\d)[-_]?(OB|SS|TT)(?:$|[-_])", part, re.IGNORECASE)
        if found:
            return f"{found.group(1).lower()}/{_SYSTEMS[found.group(2).upper()]}"
    return "unknown"


def _near(time: float | None, at: float) -> TypeGuard[float]:
    return time is not None and at - _BEFORE <= time <= at + _AFTER


def _metrics(job: CaseJob, folder: Path, at: float) -> tuple[Series, ...]:
    file = folder / "simple_metrics.csv"
    file = file if file.exists() else folder / "metrics.csv"
    table: dict[str, list[tuple[float, float]]] = {}
    for _, row in read_csv(file, ("time",)):
        time = when(row["time"])
        if not _near(time, at):
            job.leave_out(_FAR.format("rows of metrics"))
            continue
        if int(time) % _STEP:
            job.leave_out(f"rows of metrics: one of {_STEP} seconds is kept")
            continue
        for column, cell in row.items():
            value = finite(cell) if column != "time" and column else None
            if value is not None:
                table.setdefault(column, []).append((time, value))
            elif column != "time" and cell:
                job.leave_out("points: no number")
    found = []
    for column, points in table.items():
        service, _, metric = column.rpartition("_")
        if not service or not metric:
            job.leave_out("metrics: the column names no service")
            continue
        found.append(Series(name_of(service) or service, name_of(metric) or metric, None, tuple(sorted(points))))
    return tuple(found)


def _logs(job: CaseJob, folder: Path, at: float) -> tuple[LogLine, ...]:
    file = folder / "logs.csv"
    if not file.exists():
        job.leave_out("cases: no logs.csv", 1)
        return ()
    lines = []
    for _, row in read_csv(file, ("container_name", "message")):
        time = when(row.get("timestamp")) or when(row.get("time"))
        service, text = name_of(row["container_name"]), text_of(row["message"])
        if service is None or text is None:
            job.leave_out("log lines: no container_name or message")
        elif _near(time, at):
            level = name_of(row.get("level")) or name_of(row.get("error"))
            lines.append(LogLine(time, service_of_pod(service), level, shortened(job, text)))
        else:
            job.leave_out(_FAR.format("log lines"))
    return bounded_logs(job, lines)


def _spans(job: CaseJob, folder: Path, at: float) -> tuple[Span, ...]:
    file = folder / "traces.csv"
    if not file.exists():
        job.leave_out("cases: no traces.csv", 1)
        return ()
    spans = []
    for _, row in read_csv(file, ("traceID", "spanID", "serviceName", "startTime")):
        time, trace, span = when(row["startTime"]), name_of(row["traceID"]), name_of(row["spanID"])
        service = name_of(row["serviceName"])
        if trace is None or span is None or service is None:
            job.leave_out("spans: no traceID, spanID or serviceName")
        elif _near(time, at):
            took = finite(row.get("duration"))
            spans.append(
                Span(
                    *(time, trace, span, name_of(row.get("parentSpanID")), service_of_pod(service)),
                    name_of(row.get("operationName")) or name_of(row.get("methodName")),
                    None if took is None else took / 1000,
                    _status(row.get("statusCode")),
                )
            )
        else:
            job.leave_out(_FAR.format("spans"))
    return bounded_spans(job, spans)


def _status(code: str | None) -> str | None:
    """HTTP's codes as they are; gRPC's 0 is well, its others are errors."""
    number = finite(code)
    if number is None:
        return name_of(code)
    whole = int(number)
    return str(whole) if whole >= 100 else "ok" if whole == 0 else f"grpc {whole}"


RCAEVAL = CaseSource(
    name="rcaeval",
    title="RCAEval (RE2, RE3; RE1 as far as it has the same files)",
    homepage="https://github.com/phamquiluan/RCAEval",
    expects="the unpacked RE2-OB, RE2-SS, RE2-TT, RE3-OB, ... folders, or one above them: SERVICE_FAULT/N with "
    "simple_metrics.csv or metrics.csv, logs.csv, traces.csv, inject_time.txt",
    licence="MIT, data included, as the authors' repository states: free use with the notice kept",
    citation="Pham et al., RCAEval: A Benchmark for Root Cause Analysis of Microservice Systems, WWW 2025",
    read=read,
)
