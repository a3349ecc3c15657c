"""Where incidents come from: the simulator or a file, with the taxonomy and the fault groups that go with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.faults import FaultFinder, Faults
from verl_aiops.incidents.io.readers import read_incidents
from verl_aiops.incidents.schema import Incident, fault_id
from verl_aiops.incidents.simulator import Simulator, simulator_taxonomy
from verl_aiops.incidents.taxonomy import System, Taxonomy


@dataclass(frozen=True)
class IncidentSource:
    """Incidents that can be streamed more than once.

    `merged` maps a fault to the one it has to stay together with, and `faults` counts how they were told; `one_each`
    says that every incident is a fault of its own. `unknown` counts the incidents that have a field which nothing
    reads, by its name.
    """

    name: str
    count: int
    stream: Callable[[], Iterator[Incident]]
    taxonomy: Taxonomy
    merged: Mapping[str, str] = field(default_factory=dict)
    one_each: bool = False
    faults: Faults = field(default_factory=Faults)
    unknown: Mapping[str, int] = field(default_factory=dict)

    def group_of(self, incident: Incident) -> str:
        """The split key: incidents with the same one must be on the same side."""
        fault = fault_id(incident)
        return self.merged.get(fault, fault)


def simulator_source(simulator: Simulator, count: int) -> IncidentSource:
    """The first `count` incidents of a simulator, in constant memory."""
    if count < 1:
        raise IncidentError(f"number of incidents: expected at least 1, found {count}")
    faults = Faults(by_field=count)
    return IncidentSource(
        "simulator", count, lambda: simulator.stream(count), simulator_taxonomy(), one_each=True, faults=faults
    )


def file_source(path: str | Path, taxonomy: Taxonomy | None = None) -> IncidentSource:
    """The incidents of a file, read once to check all of it and again for each use.

    Without `taxonomy`, the candidates of a system are the names that occur in the file under its source (and, for the
    simulator's systems, all that it knows). `FaultFinder` says which incidents are records of one fault; one that names
    its `fault` is left as it says.
    """
    finder = FaultFinder()
    unknown: Counter[str] = Counter()
    names: dict[str, tuple[set[str], set[str]]] = {}
    count = 0
    for incident in read_incidents(path, unknown):
        count += 1
        finder.add(incident)
        if taxonomy is not None:
            taxonomy.system_of(incident)
        else:
            services, types = names.setdefault(incident.source, (set(), set()))
            services.add(incident.service)
            types.add(incident.incident_type)
    if taxonomy is None:
        taxonomy = _taxonomy_of(names)
    merged, faults = finder.found()
    return IncidentSource(
        str(path), count, lambda: read_incidents(path), taxonomy, merged, faults=faults, unknown=unknown
    )


def _taxonomy_of(names: Mapping[str, tuple[set[str], set[str]]]) -> Taxonomy:
    simulated = simulator_taxonomy().systems
    systems = {}
    for source, (services, types) in sorted(names.items()):
        known = simulated.get(source, System((), ()))
        systems[source] = System(
            tuple(sorted(services.union(known.services))), tuple(sorted(types.union(known.incident_types)))
        )
    return Taxonomy(systems)
