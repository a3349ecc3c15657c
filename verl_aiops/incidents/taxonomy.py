"""Which services and incident types exist in which system: the candidates of a prompt and the source of near misses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.names import names_in
from verl_aiops.incidents.schema import Incident, check_label
from verl_aiops.inputs.json_text import JsonFault, read_json_file
from verl_aiops.inputs.shown import one_line

# Service and incident type of two answers: no fault explains the alert; the data do not tell which one does. A system
# has them where such incidents occur, and its prompts then always offer them.
NO_FAULT, UNKNOWN = ABSTENTIONS = ("none", "unknown")


@dataclass(frozen=True)
class System:
    """The names that occur in one system, sorted."""

    services: tuple[str, ...]
    incident_types: tuple[str, ...]

    @property
    def abstentions(self) -> frozenset[str]:
        """The answers of this system that name no fault: those of `ABSTENTIONS` that are both a service and a type."""
        return frozenset(ABSTENTIONS).intersection(self.services, self.incident_types)

    def services_in(self, text: str) -> set[str]:
        """The services that `text` names (`names.names_in`)."""
        return names_in(text, self.services)


@dataclass(frozen=True)
class Taxonomy:
    """Systems by source.

    A source that is not listed uses the system of its longest listed parent (`petshop` for `petshop/high`).
    """

    systems: Mapping[str, System] = field(default_factory=dict)
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
        for source, entry in value.items():
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
            systems[source] = System(*(tuple(sorted(set(names))) for names in lists))
        return cls(systems)

    @classmethod
    def load(cls, path: str | Path) -> Taxonomy:
        """Read `{"source": {"services": [...], "incident_types": [...]}}` from a JSON file."""
        name = one_line(path)
        try:
            return replace(cls.from_dict(read_json_file(path)), place=f"the taxonomy {name}")
        except FileNotFoundError:
            raise FileNotFoundError(f"{name}: no such file") from None
        except (IncidentError, JsonFault) as error:
            raise IncidentError(f"{name}: {error}") from None

    def to_dict(self) -> dict[str, dict[str, list[str]]]:
        return {
            source: {"services": list(system.services), "incident_types": list(system.incident_types)}
            for source, system in self.systems.items()
        }

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
