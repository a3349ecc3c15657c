"""The data part of a prompt: how an incident reads as text, and what evidence may be quoted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verl_aiops.incidents.safety import neutralise, neutralise_part
from verl_aiops.incidents.schema import Incident

_HEADINGS = {"en": ("Symptom: ", "Logs:", "Trace:"), "zh": ("现象：", "日志：", "调用链：")}


def layout(lang: str, symptom: str, logs: Sequence[str], trace: Sequence[str]) -> str:
    """Symptom, log lines and trace lines under the headings of `lang`; an empty section is left out."""
    symptom_heading, logs_heading, trace_heading = _HEADINGS[lang]
    parts = [symptom_heading + symptom]
    if logs:
        parts += [logs_heading, *logs]
    if trace:
        parts += [trace_heading, *trace]
    return "\n".join(parts)


def incident_text(incident: Incident) -> str:
    """The data part of the prompt, neutralised (see `safety`); evidence in `ground_truth` occurs in it verbatim."""
    return neutralise(layout(incident.lang, incident.symptom, incident.logs, incident.trace_lines))


def neutralise_incident(incident: Incident) -> Incident:
    """The incident with symptom, logs, trace and evidence neutralised; the evidence still occurs in them verbatim."""
    whole = layout(incident.lang, incident.symptom, incident.logs, incident.trace_lines)
    if neutralise(whole) == whole:
        return incident
    sections = (incident.symptom, "\n".join(incident.logs), incident.trace or "")
    evidence = tuple(
        neutralise_part(text, next(section for section in sections if text in section)) for text in incident.evidence
    )
    # Joined first: a token that starts in one entry and ends in the next must read the same as in the whole text.
    logs = neutralise(sections[1]).split("\n") if incident.logs else []
    trace = neutralise(incident.trace) if incident.trace else incident.trace
    return replace(incident, symptom=neutralise(incident.symptom), logs=tuple(logs), trace=trace, evidence=evidence)
