"""Alerts: Alertmanager's webhook and API, PagerDuty's webhook and REST answers; each becomes one case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation.importers.texts import json_values, name_of, section, text_of, when

__all__ = ["Alert", "read_alerts"]

_SHOWN = 5


class Alert(NamedTuple):
    """`ids`: the names that the mapping's truth may know it by, the case's own first."""

    ids: tuple[str, ...]
    time: float
    symptom: str
    severity: str | None = None
    team: str | None = None


def read_alerts(path: Path) -> Iterator[Alert]:
    """The alerts of a file in any of these forms. Raises IncidentError with file, row and key."""
    for place, value in json_values(path):
        yield from _alerts(place, value)


def _alerts(place: str, value: Any) -> Iterator[Alert]:
    if not isinstance(value, Mapping):
        raise IncidentError(f"{place}: expected an alert or a list of them, found {type(value).__name__}")
    if isinstance(value.get("alerts"), list):
        yield _webhook(place, value)
    elif "labels" in value or "startsAt" in value:
        yield _alertmanager(place, value)
    elif isinstance(section(value, "event", "data"), Mapping):
        yield _pagerduty(place, value["event"]["data"])
    elif isinstance(value.get("incidents"), list):
        for at, item in enumerate(value["incidents"]):
            yield _pagerduty(f"{place}, incidents[{at}]", item)
    elif isinstance(value.get("incident"), Mapping):
        yield _pagerduty(place, value["incident"])
    elif "created_at" in value and ("title" in value or "summary" in value):
        yield _pagerduty(place, value)
    elif isinstance(value.get("data"), list):  # Alertmanager's API v1
        for at, item in enumerate(value["data"]):
            yield from _alerts(f"{place}, data[{at}]", item)
    else:
        keys = ", ".join(map(str, list(value)[:8]))
        raise IncidentError(f"{place}: expected an alert of Alertmanager or PagerDuty, found an object with {keys}")


def _text(alert: Mapping[str, Any]) -> str | None:
    notes = section(alert, "annotations") or {}
    said = [text_of(notes.get(key)) for key in ("summary", "title", "message", "description")]
    name = text_of(section(alert, "labels", "alertname"))
    text = next((part for part in said if part), None)
    return f"{name}: {text}" if name and text else text or name


def _started(place: str, alert: Mapping[str, Any]) -> float:
    time = when(alert.get("startsAt"))
    if time is None:
        raise IncidentError(f"{place}, field 'startsAt': expected a time, found {alert.get('startsAt')!r:.60}")
    return time


def _alertmanager(place: str, alert: Mapping[str, Any]) -> Alert:
    time, text = _started(place, alert), _text(alert)
    if text is None:
        raise IncidentError(f"{place}: expected annotations.summary or labels.alertname, found neither")
    name = name_of(section(alert, "labels", "alertname")) or "alert"
    ids = [name_of(alert.get("fingerprint")), f"{name}-{int(time)}", name]
    return Alert(
        tuple(part for part in ids if part),
        time,
        text,
        name_of(section(alert, "labels", "severity")),
        name_of(section(alert, "labels", "team")),
    )


def _webhook(place: str, group: Mapping[str, Any]) -> Alert:
    """A group of alerts that Alertmanager sent together is one case, which begins with the first of them."""
    alerts = group["alerts"]
    if not alerts:
        raise IncidentError(f"{place}, field 'alerts': expected at least one alert, found none")
    for at, alert in enumerate(alerts):
        if not isinstance(alert, Mapping):
            raise IncidentError(f"{place}, alerts[{at}]: expected an alert, found {type(alert).__name__}")
    each = [_alertmanager(f"{place}, alerts[{at}]", alert) for at, alert in enumerate(alerts)]
    common = {"labels": group.get("commonLabels") or {}, "annotations": group.get("commonAnnotations") or {}}
    texts = list(dict.fromkeys(alert.symptom for alert in each))
    head = text_of(section(common, "annotations", "summary"))
    shown = texts[:_SHOWN] + ([f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else [])
    first = min(each, key=lambda alert: alert.time)
    return Alert(
        (*first.ids, *(name for alert in each for name in alert.ids)),
        first.time,
        "\n".join([head, *shown] if head and head not in texts[0] else shown),
        first.severity,
        first.team,
    )


def _pagerduty(place: str, incident: Any) -> Alert:
    if not isinstance(incident, Mapping):
        raise IncidentError(f"{place}: expected an incident, found {type(incident).__name__}")
    title = text_of(incident.get("title")) or text_of(incident.get("summary"))
    time = when(incident.get("created_at"))
    if title is None or time is None:
        lacks = "title" if title is None else "created_at"
        raise IncidentError(f"{place}, field '{lacks}': expected {'text' if title is None else 'a time'}, found none")
    number = incident.get("incident_number", incident.get("number"))
    ids = [name_of(incident.get("id")), str(number) if number is not None else None, f"incident-{int(time)}"]
    severity = name_of(section(incident, "priority", "summary")) or name_of(incident.get("urgency"))
    teams = incident.get("teams")
    team = name_of(section(teams[0], "summary")) if isinstance(teams, list) and teams else None
    return Alert(tuple(part for part in ids if part), time, title, severity, team)
