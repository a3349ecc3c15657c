"""A case: an incident with its telemetry, and the truth about it as far as it is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import check_text, fail, found
from verl_aiops.incidents.language import guess_language
from verl_aiops.incidents.schema import LANGUAGES
from verl_aiops.investigation.fields import Fields, label, text, texts, time_of, truth, unique
from verl_aiops.investigation.recorded import Recorded, read_recorded
from verl_aiops.investigation.signals import Signals, read_signals

__all__ = ["Case", "Edge", "RootCause"]


@dataclass(frozen=True)
class RootCause:
    """A component that failed by itself, and what happened to it; `reason` is None where the source does not say.

    `component_aliases` and `reason_aliases` are other right names.
    """

    component: str
    reason: str | None = None
    time: float | None = None
    component_aliases: tuple[str, ...] = ()
    reason_aliases: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"component": self.component}
        if self.reason is not None:
            row["reason"] = self.reason
        if self.time is not None:
            row["time"] = self.time
        if self.component_aliases or self.reason_aliases:
            row["aliases"] = {"component": list(self.component_aliases), "reason": list(self.reason_aliases)}
        return row


class Edge(NamedTuple):
    """In a topology `source` calls `target`; in a propagation the trouble of `source` reached `target`."""

    source: str
    target: str


@dataclass(frozen=True)
class Case:
    """One incident to be investigated. `symptom` is what woke somebody, at the time `alert`.

    The truth: `root_causes` and `propagation`; or `no_fault`, where nothing is wrong; or `cannot_tell`, where the
    telemetry does not show what is. None of them: not known. `reasons` are the names that a reason may have, where the
    source has a fixed list; `group` names the fault whose records stay on one side of a split; `recorded` holds tool
    answers that are served as they are, in place of those computed from `signals`.

    Raises:
        IncidentError: a fault in what was given, with its key.
    """

    id: str
    source: str
    symptom: str
    lang: str = "en"
    alert: float | None = None
    signals: Signals = field(default_factory=Signals)
    topology: tuple[Edge, ...] = ()
    root_causes: tuple[RootCause, ...] = ()
    propagation: tuple[Edge, ...] = ()
    severity: str | None = None
    team: str | None = None
    no_fault: bool = False
    cannot_tell: bool = False
    reasons: tuple[str, ...] = ()
    group: str | None = None
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        for name in ("id", "source"):
            label(name, getattr(self, name))
        check_text("symptom", self.symptom)
        if self.lang not in LANGUAGES:
            raise fail("lang", f"one of {', '.join(LANGUAGES)}, found {found(self.lang)}", 'set "en" for others')
        truths = [name for name in ("root_causes", "no_fault", "cannot_tell") if getattr(self, name)]
        if len(truths) > 1:
            raise fail(truths[1], f"nothing beside {truths[0]}, found both", "keep the one that is true")
        if self.propagation and not self.root_causes:
            raise fail("propagation", "root_causes beside it, found none", "a path begins at a root cause")
        unique("root_causes", (f"{cause.component}: {cause.reason}" for cause in self.root_causes))

    @property
    def truth_known(self) -> bool:
        return bool(self.root_causes) or self.no_fault or self.cannot_tell

    @property
    def split_group(self) -> str:
        """What all records of one fault share; the id where nothing is said."""
        return self.group or self.id

    @cached_property
    def services(self) -> tuple[str, ...]:
        """Every service that topology or signals name, sorted. The truth adds none: it would be given away."""
        names = {name for edge in self.topology for name in edge}
        for rows in (self.signals.logs, self.signals.metrics, self.signals.spans):
            names.update(row.service for row in rows)
        for notes in (self.signals.events, self.signals.changes):
            names.update(note.service for note in notes if note.service)
        return tuple(sorted(names))

    def ground_truth(self) -> dict[str, Any]:
        """What a reward needs to know, as JSON can hold it; only what is known is there.

        Keys: `root_causes`, `propagation`, `no_fault`, `cannot_tell`, `severity`, `team`, `services`, `reasons`.
        """
        row = {
            "root_causes": [cause.to_dict() for cause in self.root_causes],
            "propagation": [{"from": edge.source, "to": edge.target} for edge in self.propagation],
            "no_fault": self.no_fault,
            "cannot_tell": self.cannot_tell,
            "severity": self.severity,
            "team": self.team,
            "services": list(self.services),
            "reasons": list(self.reasons),
        }
        return {name: value for name, value in row.items() if value not in (None, False, [])}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, the id first; what is not known is left out."""
        row = {
            "id": self.id,
            "source": self.source,
            "symptom": self.symptom,
            "lang": self.lang,
            "alert": self.alert,
            "group": self.group,
            "topology": [{"from": edge.source, "to": edge.target} for edge in self.topology],
            **{name: value for name, value in self.ground_truth().items() if name != "services"},
            "signals": self.signals.to_dict(),
            "recorded": self.recorded.to_dict() if self.recorded else None,
        }
        return {name: value for name, value in row.items() if value not in (None, [], {})}

    @classmethod
    def from_dict(cls, row: Any, unknown: Counter[str] | None = None) -> Case:
        """Build a case from its JSON form; fields that nothing reads are counted in `unknown` by their place.

        Raises:
            IncidentError: the first fault, with its key.
        """
        unknown = Counter() if unknown is None else unknown
        if not isinstance(row, Mapping):
            raise IncidentError(f"expected an object with the fields of a case, found {found(row)}")
        fields = Fields("", row, unknown)
        symptom = fields.get("symptom", text, needed=True)
        signals = fields.get("signals", lambda key, value: _whole(Fields(key, value, unknown), read_signals), Signals())
        case = cls(
            id=fields.get("id", label, needed=True),
            source=fields.get("source", label, "user"),
            symptom=symptom,
            lang=fields.get("lang", label) or guess_language(symptom),
            alert=fields.get("alert", time_of),
            signals=signals,
            topology=fields.many("topology", _edge),
            root_causes=fields.many("root_causes", _root_cause),
            propagation=fields.many("propagation", _edge),
            severity=fields.get("severity", label),
            team=fields.get("team", label),
            no_fault=fields.get("no_fault", truth, False),
            cannot_tell=fields.get("cannot_tell", truth, False),
            reasons=fields.get("reasons", texts, ()),
            group=fields.get("group", label),
            recorded=fields.get("recorded", lambda key, value: _whole(Fields(key, value, unknown), read_recorded)),
        )
        fields.close()
        return case


def _whole(fields: Fields, read: Any) -> Any:
    value = read(fields)
    fields.close()
    return value


def _edge(fields: Fields) -> Edge:
    return Edge(fields.get("from", label, needed=True), fields.get("to", label, needed=True))


def _root_cause(fields: Fields) -> RootCause:
    aliases = fields.get("aliases", lambda key, value: _whole(Fields(key, value, fields.unknown), _aliases), ((), ()))
    return RootCause(
        fields.get("component", label, needed=True),
        fields.get("reason", label),
        fields.get("time", time_of),
        *aliases,
    )


def _aliases(fields: Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return fields.get("component", texts, ()), fields.get("reason", texts, ())
