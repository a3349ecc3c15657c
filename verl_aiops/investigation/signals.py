"""What a case's telemetry is made of: log lines, metric series, spans, events and changes.

All times are seconds since 1970 in UTC; None where the source has none. Every part may be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from verl_aiops.investigation.fields import Fields, label, number, points, text, time_of

__all__ = ["LogLine", "Note", "Series", "Signals", "Span", "read_signals"]


class LogLine(NamedTuple):
    """One line (or a stack trace) of a service; `level` as the service wrote it."""

    time: float | None
    service: str
    level: str | None
    text: str


class Series(NamedTuple):
    """A metric of a service; `points` are (time, value), sorted by time."""

    service: str
    name: str
    unit: str | None
    points: tuple[tuple[float, float], ...]


class Span(NamedTuple):
    """One span; `parent` is the id of the span that called it, in the same trace.

    `status` is `ok` or what it failed with.
    """

    time: float | None
    trace: str
    span: str
    parent: str | None
    service: str
    operation: str | None
    duration_ms: float | None
    status: str | None


class Note(NamedTuple):
    """An event of the platform (`kind`: OOMKilled, Scheduled, alert) or a change (`kind`: release, config, flag)."""

    time: float | None
    service: str | None
    kind: str | None
    text: str


@dataclass(frozen=True)
class Signals:
    """The telemetry of one case."""

    logs: tuple[LogLine, ...] = ()
    metrics: tuple[Series, ...] = ()
    spans: tuple[Span, ...] = ()
    events: tuple[Note, ...] = ()
    changes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; parts that are empty, and fields that are unknown, are left out."""
        parts: dict[str, Any] = {}
        for name in ("logs", "metrics", "spans", "events", "changes"):
            rows = [_known(row) for row in getattr(self, name)]
            if rows:
                parts[name] = rows
        return parts


def _known(row: Any) -> dict[str, Any]:
    known = {name: _short(value) for name, value in row._asdict().items() if value is not None}
    if "points" in known:
        known["points"] = [[_short(time), _short(value)] for time, value in row.points]
    return known


def _short(value: Any) -> Any:
    """Whole numbers without `.0`: half of a file are times."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _log(fields: Fields) -> LogLine:
    return LogLine(
        fields.get("time", time_of),
        fields.get("service", label, needed=True),
        fields.get("level", label),
        fields.get("text", text, needed=True),
    )


def _series(fields: Fields) -> Series:
    return Series(
        fields.get("service", label, needed=True),
        fields.get("name", label, needed=True),
        fields.get("unit", label),
        fields.get("points", points, needed=True),
    )


def _span(fields: Fields) -> Span:
    return Span(
        fields.get("time", time_of),
        fields.get("trace", label, needed=True),
        fields.get("span", label, needed=True),
        fields.get("parent", label),
        fields.get("service", label, needed=True),
        fields.get("operation", label),
        fields.get("duration_ms", number),
        fields.get("status", label),
    )


def _note(fields: Fields) -> Note:
    return Note(
        fields.get("time", time_of),
        fields.get("service", label),
        fields.get("kind", label),
        fields.get("text", text, needed=True),
    )


def read_signals(fields: Fields) -> Signals:
    """The field `signals` of a record."""
    return Signals(
        fields.many("logs", _log),
        fields.many("metrics", _series),
        fields.many("spans", _span),
        fields.many("events", _note),
        fields.many("changes", _note),
    )
