"""Cloud-OpsBench: a folder a case, `SYSTEM/CATEGORY/N`, with metadata.json and tool_cache.json.

The cache holds what each tool said, under `TOOL:{arguments as JSON}`; it is served as it is. One tool of the authors'
has no answers there, GetRecentLogs: it shows the last lines of raw_data/logs.json. The metadata name the object
(`app/adservice`) and the root cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.prompts import json_text
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.shown import one_line
from verl_aiops.investigation.case import Case, RootCause
from verl_aiops.investigation.importers.source import CaseJob, CaseSource
from verl_aiops.investigation.importers.texts import name_of, section, text_of, when, whole_json
from verl_aiops.investigation.recorded import Recorded, RecordedAnswer, RecordedCall

__all__ = ["CLOUDOPSBENCH"]

_KEY = re.compile(r"(\w+)(?::(.*))?", re.DOTALL)
# Lines that GetRecentLogs shows of each log of a service, and how the file names those beside its own.
_RECENT = 50
_LOGS_OF = {"": "{} logs", ".previous": "previous container logs", ".istio-proxy": "istio-proxy logs"}


def read(job: CaseJob) -> Iterator[Case]:
    folders = job.folders("**/metadata.json", "folders with metadata.json and tool_cache.json, as boutique/admission/1")
    made: list[tuple[Path, Mapping[str, Any]]] = []
    for folder in folders:
        if not (folder / "tool_cache.json").exists():
            job.leave_out("folders: no tool_cache.json")
            continue
        made.append((folder, _metadata(folder / "metadata.json")))
    # all root causes of a system: who answers chooses from these
    reasons: dict[str, set[str]] = {}
    for folder, metadata in made:
        reasons.setdefault(folder.parent.parent.name, set()).add(_reason(folder, metadata))
    for folder, metadata in made:
        yield _case(job, folder, metadata, tuple(sorted(reasons[folder.parent.parent.name])))


def _metadata(path: Path) -> Mapping[str, Any]:
    value = whole_json(path)
    if not isinstance(value, Mapping):
        raise IncidentError(f"{one_line(path)}: expected an object, found {type(value).__name__}")
    return value


def _reason(folder: Path, metadata: Mapping[str, Any]) -> str:
    reason = name_of(section(metadata, "result", "root_cause"))
    if reason is None:
        raise IncidentError(
            f"{one_line(folder / 'metadata.json')}, field 'result.root_cause': expected text, found none"
        )
    return reason


def _case(job: CaseJob, folder: Path, metadata: Mapping[str, Any], reasons: tuple[str, ...]) -> Case:
    where = one_line(folder / "metadata.json")
    subject, query = name_of(section(metadata, "result", "fault_object")), text_of(metadata.get("query"))
    if subject is None or query is None:
        field = "query" if query is None else "result.fault_object"
        raise IncidentError(f"{where}, field '{field}': expected text, found none")
    component, namespace = subject.rpartition("/")[2], name_of(metadata.get("namespace"))
    system, category = folder.parent.parent.name, folder.parent.name
    at, answers = _answers(job, folder / "tool_cache.json")
    logs = folder / "raw_data" / "logs.json"
    if logs.exists():
        answers += _recent_logs(job, logs, namespace)
    else:
        job.leave_out("folders: no raw_data/logs.json, so that GetRecentLogs has no answers")
    recorded = Recorded(answers)
    recorded = Recorded(answers, paths=_paths(job, metadata.get("process"), recorded))
    reason = _reason(folder, metadata)
    return Case(
        id=f"cloudopsbench-{system}-{category}-{folder.name}"[:200],
        source=f"cloudopsbench/{system}",
        symptom=f"{query} Namespace: {namespace}." if namespace else query,
        alert=at,
        root_causes=(RootCause(component, reason, component_aliases=(subject,) if subject != component else ()),),
        reasons=reasons,
        # the same fault on the same object was recorded several times
        group=f"cloudopsbench-{system}-{component}-{reason}"[:200],
        recorded=recorded,
    )


def _answers(job: CaseJob, path: Path) -> tuple[float | None, tuple[RecordedAnswer, ...]]:
    cache = whole_json(path)
    if not isinstance(cache, Mapping):
        raise IncidentError(f"{one_line(path)}: expected an object, found {type(cache).__name__}")
    at, answers = None, []
    for key, text in cache.items():
        if key == "collection_timestamp":
            at = when(text)
            continue
        match = _KEY.fullmatch(key)
        arguments = _arguments(match.group(2) or "{}") if match else None
        if match is None or arguments is None:
            job.leave_out("recorded answers: not under TOOL:{arguments}")
            continue
        # lists of alerts and of grouped errors are kept as values
        said = text_of(text) if isinstance(text, str) else json_text(text)
        answers.append(RecordedAnswer(match.group(1), arguments, said or "(nothing)"))
    if not answers:
        raise IncidentError(f"{one_line(path)}: expected answers under keys such as GetAlerts:{{}}, found none")
    return at, tuple(answers)


def _recent_logs(job: CaseJob, path: Path, namespace: str | None) -> tuple[RecordedAnswer, ...]:
    """What GetRecentLogs says of each service that the file has logs of, in the authors' words."""
    logs = whole_json(path)
    if not isinstance(logs, Mapping):
        raise IncidentError(f"{one_line(path)}: expected an object, found {type(logs).__name__}")
    lines: dict[str, list[str]] = {}
    for key, value in logs.items():
        rows = value.splitlines() if isinstance(value, str) else value if isinstance(value, list) else None
        if rows is None:
            job.leave_out("logs of services: neither text nor lines")
            continue
        lines[key] = [str(row) for row in rows if str(row).strip()][-_RECENT:]
    names = dict.fromkeys(key.removesuffix(".previous").removesuffix(".istio-proxy") for key in lines)
    answers = []
    for name in names:
        parts = [
            "\n".join([f"From {title.format(name)}:", *lines[f"{name}{ending}"]])
            for ending, title in _LOGS_OF.items()
            if lines.get(f"{name}{ending}")
        ]
        said = "\n\n".join(parts) or f"No recent logs found for {name} in {namespace} namespace."
        given = {"namespace": namespace, "service_name": name} if namespace else {"service_name": name}
        answers.append(RecordedAnswer("GetRecentLogs", given, text_of(said) or said))
    return tuple(answers)


def _paths(job: CaseJob, process: Any, recorded: Recorded) -> tuple[tuple[RecordedCall, ...], ...]:
    """The authors' ways to the root cause, `GetAppYAML::adservice`, as calls that have an answer; steps without one
    are left out and counted."""
    if not isinstance(process, Mapping):
        return ()
    paths = []
    for steps in process.values():
        calls: list[RecordedCall] = []
        for step in steps if isinstance(steps, list) else []:
            call = _call_of(step, recorded) if isinstance(step, str) else None
            if call is None:
                job.leave_out("steps of the authors' paths: no recorded answer")
            elif call not in calls:
                calls.append(call)
        if calls:
            paths.append(tuple(calls))
    return tuple(paths)


def _call_of(step: str, recorded: Recorded) -> RecordedCall | None:
    """The recorded call with the values of a step, in their order; pods are named by their workload, and the plainest
    of several is taken."""
    tool, *values = [part for part in step.split("::") if part]
    best: tuple[int, RecordedCall] | None = None
    for row in recorded.answers:
        if row.name != tool:
            continue
        given = [str(value) for key, value in row.arguments.items() if key != "namespace" and value not in ("", None)]
        if len(given) < len(values) or not all(_names(one, other) for one, other in zip(values, given)):
            continue
        found = (len(given) - len(values), RecordedCall(row.name, _plain(row.arguments)))
        if best is None or found[0] < best[0]:
            best = found
    return None if best is None else best[1]


def _names(short: str, name: str) -> bool:
    return name == short or name.startswith(f"{short}-")


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as one would write them, without those that are empty."""
    return {key: value for key, value in arguments.items() if value not in ("", None, False)}


def _arguments(text: str) -> Mapping[str, Any] | None:
    try:
        value = read_json(text)
    except JsonFault:
        return None
    return value if isinstance(value, Mapping) else None


CLOUDOPSBENCH = CaseSource(
    name="cloudopsbench",
    title="Cloud-OpsBench (recorded tool answers)",
    homepage="https://github.com/LLM4Ops/Cloud-OpsBench",
    expects="its folder benchmark, or one below it: SYSTEM/CATEGORY/N with metadata.json, tool_cache.json and "
    "raw_data/logs.json",
    licence="the repository states none: without the authors' leave, for looking at and your own measurements; do not "
    "pass the cases on",
    citation="Cloud-OpsBench, the repository named above",
    read=read,
)
