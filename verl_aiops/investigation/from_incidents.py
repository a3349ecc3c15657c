"""Incidents of the triage task as cases: one cause, no metrics as numbers, log lines that carry their own times."""

from __future__ import annotations

import re

from verl_aiops.incidents.schema import Incident, fault_id
from verl_aiops.incidents.taxonomy import ABSTENTIONS, NO_FAULT
from verl_aiops.investigation.case import Case, Edge, RootCause
from verl_aiops.investigation.signals import LogLine, Signals

__all__ = ["case_of"]

_CALL = re.compile(r"(?<!\S)(\S+) -> (\S+)(?!\S)")
_LEVEL = re.compile(r"\b(FATAL|CRITICAL|ERROR|WARN(?:ING)?|INFO|DEBUG|TRACE)\b", re.IGNORECASE)


def case_of(incident: Incident, services: tuple[str, ...] = (), reasons: tuple[str, ...] = ()) -> Case:
    """The case of an incident. `services` are those of its system, by which lines are told apart; `reasons` its types.

    A line that names no known service belongs to the incident's `source`. Trace lines become log lines of level
    `TRACE`; the calls that they name (`a -> b`) are the topology. `none` and `unknown` as the service are no fault, and
    one that cannot be told.
    """
    names = sorted({*services, *_called(incident.trace_lines)} - set(ABSTENTIONS), key=len, reverse=True)
    place = re.compile("|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in names)) if names else None
    lines = [_line(text, place, incident.source) for text in incident.logs if text]
    lines += [_line(text, place, incident.source, "TRACE") for text in incident.trace_lines if text]
    fault = incident.service not in ABSTENTIONS
    causes = (
        (
            RootCause(
                incident.service,
                incident.incident_type,
                component_aliases=incident.service_aliases,
                reason_aliases=incident.type_aliases,
            ),
        )
        if fault
        else ()
    )
    chain = (incident.service, *incident.upstream)
    calls = (match.groups() for text in incident.trace_lines for match in _CALL.finditer(text))
    return Case(
        id=incident.id,
        source=incident.source,
        symptom=incident.symptom,
        lang=incident.lang,
        signals=Signals(logs=tuple(lines)),
        topology=tuple(Edge(*pair) for pair in dict.fromkeys(calls) if pair[0] != "user"),
        root_causes=causes,
        propagation=tuple(map(Edge, chain, chain[1:])) if fault else (),
        no_fault=incident.service == NO_FAULT,
        cannot_tell=not fault and incident.service != NO_FAULT,
        reasons=reasons,
        group=fault_id(incident),
    )


def _called(lines: tuple[str, ...]) -> set[str]:
    return {name for text in lines for match in _CALL.finditer(text) for name in match.groups() if name != "user"}


def _line(text: str, place: re.Pattern[str] | None, source: str, level: str | None = None) -> LogLine:
    named = place.search(text) if place else None
    said = _LEVEL.search(text)
    return LogLine(None, named.group() if named else source, level or (said.group() if said else None), text)
