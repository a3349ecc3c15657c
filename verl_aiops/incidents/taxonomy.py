"""Which services and incident types exist in which system: the candidates of a prompt and the source of near misses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verl_aiops.incidents.answer_fields import check_more_fields
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.names import names_in
from verl_aiops.incidents.schema import Incident, check_label
from verl_aiops.inputs.json_text import JsonFault, read_json_file
from verl_aiops.inputs.shown import one_line

ASKED_KEY = "_asked"
"""Stands beside the sources of a taxonomy file, and says how the data beside it ask."""

# Service and incident type of two answers: no fault explains the alert; the data do not tell which one does. A system
# has them where such incidents occur, and its prompts then always offer them.
NO_FAULT, UNKNOWN = ABSTENTIONS = ("none", "unknown")


@dataclass(frozen=True)
class System:
    """The names that occur in one system, sorted; `more`: further fields of the answer with their labels."""

    services: tuple[str, ...]
    incident_types: tuple[str, ...]
    more: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def abstentions(self) -> frozenset[str]:
        """The answers of this system that name no fault: those of `ABSTENTIONS` that are both a service and a type."""
        return frozenset(ABSTENTIONS).intersection(self.services, self.incident_types)

    def labels_of(self, field: str) -> tuple[str, ...]:
        """The labels of a further field; none where the system has none."""
        return dict(self.more).get(field, ())

    def services_in(self, text: str) -> set[str]:
        """The services that `text` names (`names.names_in`)."""
        return names_in(text, self.services)


@dataclass(frozen=True)
class Taxonomy:
    """Systems by source.

    A source that is not listed uses the system of its longest listed parent (`petshop` for `petshop/high`). `wording`:
    the name of the prompts (`wording.Wording`) in the data that it was written with, and `most_candidates` how many
    names of each kind these list, 0 for all; None where nothing says it.
    """

    systems: Mapping[str, System] = field(default_factory=dict)
    wording: str | None = field(default=None, compare=False)
    most_candidates: int | None = field(default=None, compare=False)
    # what messages call it
    place: str = field(default="the taxonomy", compare=False)

    @classmethod
    def from_incidents(cls, incidents: Iterable[Incident]) -> Taxonomy:
        names: dict[str, tuple[set[str], set[str]]] = {}
        for incident in incidents:
            services, types = names.setdefault(incident.source, (set(), set()))
            services.add(incident.service)
            types.add(incident.incident_type)
        return cls({source: System(tuple(sorted(s)), tuple(sorted(t))) for source, (s, t) in sorted(names.items())})

    @classmethod
    def from_dict(cls, value: Any) -> Taxonomy:
        form = '{"source": {"services": ["..."], "incident_types": ["..."]}}'
        if not isinstance(value, Mapping) or not value:
            raise IncidentError(f"expected an object like {form}")
        systems = {}
        asked = value.get(ASKED_KEY, {})
        wording, most = (asked.get(key) if isinstance(asked, Mapping) else 0 for key in ("wording", "most_candidates"))
        if not isinstance(wording, str | None) or not isinstance(most, int | None):
            raise IncidentError(
                f'{ASKED_KEY}: expected {{"wording": NAME, "most_candidates": N}}, as build-* writes it'
            )
        for source, entry in value.items():
            if source == ASKED_KEY:
                continue
            keys = ("services", "incident_types")
            lists: list[Any] = [entry.get(key) if isinstance(entry, Mapping) else None for key in keys]
            for key, names in zip(keys, lists):
                if (
                    not isinstance(names, list)
                    or not names
                    or not all(isinstance(name, str) and name for name in names)
                ):
                    raise IncidentError(
                        f"system '{source}': expected lists of names under services and incident_types, as in {form}"
                    )
                for number, name in enumerate(names):
                    check_label(f"{source}.{key}[{number}]", name)
            services, types = (tuple(sorted(set(names))) for names in lists)
            systems[source] = System(services, types, _more_of(source, entry))
        return cls(systems, wording, most)

    @classmethod
    def load(cls, path: str | Path) -> Taxonomy:
        """Read `{"source": {"services": [...], "incident_types": [...]}}` from a JSON file.

        A system may also have `"fields": {"severity": [...]}`, labels of further fields of the answer.
        """
        name = one_line(path)
        try:
            return replace(cls.from_dict(read_json_file(path)), place=f"the taxonomy {name}")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
        except (IncidentError, JsonFault) as error:
            raise IncidentError(f"{name}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return {
            source: {"services": list(system.services), "incident_types": list(system.incident_types)}
            | ({"fields": {name: list(labels) for name, labels in system.more}} if system.more else {})
            for source, system in self.systems.items()
        }

    def as_json(self) -> str:
        """The text that `load` reads."""
        told = self.to_dict()
        if self.wording is not None:
            told[ASKED_KEY] = {"wording": self.wording, "most_candidates": self.most_candidates}
        return json.dumps(told, ensure_ascii=False, indent=1) + "\n"

    def longer_lists(self) -> str | None:
        """What to say where a system has more names than the data that it was written with list at most.

        A model that has seen short lists alone chooses worse from long ones.
        """
        most = self.most_candidates or 0
        longest = {
            source: max(
                len(set(names).difference(ABSTENTIONS))
                for names in (system.services, system.incident_types, *(labels for _, labels in system.more))
            )
            for source, system in self.systems.items()
        }
        long = {source: count for source, count in longest.items() if count > most > 0}
        if not long:
            return None
        source = max(long, key=long.__getitem__)
        return (
            f"prompts list all names of a system, up to {long[source]} of one kind ('{source}'), and the data of "
            f"{self.place} at most {most}; build them with --candidates-range 4-{long[source]} or --max-candidates 0"
        )

    @property
    def more_fields(self) -> tuple[str, ...]:
        """The further fields of an answer that any system lists labels of."""
        return tuple(dict.fromkeys(name for system in self.systems.values() for name, _ in system.more))

    def lacks_label(self, source: str, name: str, label: str) -> list[str]:
        """What to say where the system of a source lists labels of a further field, and not this one."""
        listed = self.listed_name(source)
        labels = () if listed is None else self.systems[listed].labels_of(name)
        if not labels or label in labels:
            return []
        return [f"'{label}' is not in {self.place}'s {name} of '{listed}'; add it there, under fields"]

    def listed_name(self, source: str) -> str | None:
        """The source under which the system of `source` is listed: itself or its longest listed parent, or None."""
        while source not in self.systems:
            if "/" not in source:
                return None
            source = source.rpartition("/")[0]
        return source

    def system_of(self, incident: Incident) -> System:
        """The system an incident belongs to; raises IncidentError if it is unknown or lacks the answer."""
        for lack in self.lacks(incident.source, incident.service, incident.incident_type):
            raise IncidentError(f"incident '{incident.id}': {lack}")
        return self.systems[self.listed_name(incident.source) or incident.source]

    def lacks(self, source: str, service: str, incident_type: str) -> list[str]:
        """What of an incident's labels is not in the taxonomy, one text each: its source, or its service and type."""
        listed = self.listed_name(source)
        if listed is None:
            known = ", ".join(self.systems) or "none"
            return [f"source '{source}' is not in {self.place}, which has: {known}"]
        system = self.systems[listed]
        return [
            f"'{name}' is not in {self.place}'s {what} of '{listed}'; add it there"
            for name, names, what in (
                (service, system.services, "services"),
                (incident_type, system.incident_types, "incident_types"),
            )
            if name not in names
        ]


def _more_of(source: str, entry: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The labels of further fields, as a system of a file has them."""
    fields = entry.get("fields")
    if fields is None:
        return ()
    if not isinstance(fields, Mapping):
        raise IncidentError(f'system \'{source}\': expected fields as in {{"fields": {{"severity": ["high", "low"]}}}}')
    check_more_fields(list(fields))
    found = []
    for name, labels in fields.items():
        if not isinstance(labels, list) or not labels:
            raise IncidentError(f"system '{source}': fields.{name}: expected a list of labels")
        for number, label in enumerate(labels):
            check_label(f"{source}.fields.{name}[{number}]", label)
        found.append((name, tuple(sorted(set(labels)))))
    return tuple(found)
