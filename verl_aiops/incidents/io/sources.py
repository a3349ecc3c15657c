"""Where incidents come from: the simulator or a file, with the taxonomy and the fault groups that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.readers import read_incidents
from verl_aiops.incidents.schema import Incident, fault_id
from verl_aiops.incidents.simulator import Simulator, simulator_taxonomy
from verl_aiops.incidents.taxonomy import System, Taxonomy


@dataclass(frozen=True)
class IncidentSource:
    """Incidents that can be streamed more than once.

    `merged` maps a fault to the one it has to stay together with; `one_each` says that every incident is a fault of its
    own.
    """

    name: str
    count: int
    stream: Callable[[], Iterator[Incident]]
    taxonomy: Taxonomy
    merged: Mapping[str, str] = field(default_factory=dict)
    one_each: bool = False

    def group_of(self, incident: Incident) -> str:
        """The split key: incidents with the same one must be on the same side."""
        fault = fault_id(incident)
        return self.merged.get(fault, fault)


def simulator_source(simulator: Simulator, count: int) -> IncidentSource:
    """The first `count` incidents of a simulator, in constant memory."""
    if count < 1:
        raise IncidentError(f"number of incidents: expected at least 1, found {count}")
    return IncidentSource("simulator", count, lambda: simulator.stream(count), simulator_taxonomy(), one_each=True)


def file_source(path: str | Path, taxonomy: Taxonomy | None = None) -> IncidentSource:
    """The incidents of a file, read once to check all of it and again for each use.

    Without `taxonomy`, the candidates of a system are the names that occur in the file under its source (and, for the
    simulator's systems, all that it knows). Faults that share a whole evidence string are merged: records cut from
    overlapping windows of one log are near copies, and a split between them would flatter the validation figures. A
    record that names its `fault` is left as it says.
    """
    merger = _Merger()
    names: dict[str, tuple[set[str], set[str]]] = {}
    count = 0
    for incident in read_incidents(path):
        count += 1
        merger.add(incident)
        if taxonomy is not None:
            taxonomy.system_of(incident)
        else:
            services, types = names.setdefault(incident.source, (set(), set()))
            services.add(incident.service)
            types.add(incident.incident_type)
    if taxonomy is None:
        taxonomy = _taxonomy_of(names)
    return IncidentSource(str(path), count, lambda: read_incidents(path), taxonomy, merger.merged())


def _taxonomy_of(names: Mapping[str, tuple[set[str], set[str]]]) -> Taxonomy:
    simulated = simulator_taxonomy().systems
    systems = {}
    for source, (services, types) in sorted(names.items()):
        known = simulated.get(source, System((), ()))
        systems[source] = System(
            tuple(sorted(services.union(known.services))), tuple(sorted(types.union(known.incident_types)))
        )
    return Taxonomy(systems)


class _Merger:
    """Union-find over faults; evidence strings are kept as hashes, so memory stays small beside the file."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.first: dict[int, str] = {}

    def _root(self, fault: str) -> str:
        while self.parent.get(fault, fault) != fault:
            self.parent[fault] = self.parent.get(self.parent[fault], self.parent[fault])
            fault = self.parent[fault]
        return fault

    def add(self, incident: Incident) -> None:
        if incident.fault is not None:
            return
        fault = fault_id(incident)
        for text in incident.evidence:
            other = self.first.setdefault(hash((incident.source, text)), fault)
            roots = self._root(fault), self._root(other)
            if roots[0] != roots[1]:
                self.parent[roots[0]] = roots[1]

    def merged(self) -> dict[str, str]:
        return {fault: self._root(fault) for fault in self.parent}
