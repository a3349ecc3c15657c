"""Where incidents come from: the simulator or a file, with the taxonomy and the fault groups that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.bad_rows import BadRows
from verl_aiops.incidents.io.columns import AS_NAMED, FieldColumns
from verl_aiops.incidents.io.faults import FaultFinder, Faults
from verl_aiops.incidents.io.readers import ReadNotes, read_incidents
from verl_aiops.incidents.io.spellings import SpellingFinder, Spellings
from verl_aiops.incidents.schema import Incident, fault_id
from verl_aiops.incidents.simulator import NEW_WORDINGS, Simulator, simulator_taxonomy
from verl_aiops.incidents.taxonomy import System, Taxonomy
from verl_aiops.inputs.shown import one_line


@dataclass(frozen=True)
class IncidentSource:
    """Incidents that can be streamed more than once.

    `merged` maps a fault to the one it has to stay together with, and `faults` counts how they were told; `one_each`
    says that every incident is a fault of its own. `hold_out` names sources of it that nothing may be trained on
    (`build.sides.Split`), whatever else is held out. `notes` is what was noticed on reading, `spellings` the labels
    that are taken as one.
    """

    name: str
    count: int
    stream: Callable[[], Iterator[Incident]]
    taxonomy: Taxonomy
    merged: Mapping[str, str] = field(default_factory=dict)
    one_each: bool = False
    hold_out: tuple[str, ...] = ()
    faults: Faults = field(default_factory=Faults)
    notes: ReadNotes = field(default_factory=ReadNotes)
    spellings: Spellings = field(default_factory=Spellings)

    def group_of(self, incident: Incident) -> str:
        """The split key: incidents with the same one must be on the same side."""
        fault = fault_id(incident)
        return self.merged.get(fault, fault)


def simulator_source(simulator: Simulator, count: int) -> IncidentSource:
    """The first `count` incidents of a simulator, in constant memory.

    Where it holds out wordings, a tenth as many incidents in these alone follow, which are held out with them.
    """
    if count < 1:
        raise IncidentError(f"number of incidents: expected at least 1, found {count}")
    more = more_in_new_wordings(simulator, count)

    def stream() -> Iterator[Incident]:
        yield from simulator.stream(count)
        if more:
            yield from simulator.held_out().stream(more, start=count)

    held_out = {incident.source for incident in simulator.held_out().stream(more, start=count)} if more else ()
    return IncidentSource(
        *("simulator", count + more, stream, simulator_taxonomy()),
        one_each=True,
        hold_out=tuple(sorted(held_out)),
        faults=Faults(by_field=count + more),
    )


def more_in_new_wordings(simulator: Simulator, count: int) -> int:
    """How many incidents in held-out wordings go with `count` in the others; 0 if none are held out."""
    return max(1, count // 10) if simulator.wordings.held_out_share and not simulator.wordings.held_out else 0


def file_source(path: str | Path, taxonomy: Taxonomy | None = None, columns: FieldColumns = AS_NAMED) -> IncidentSource:
    """The incidents of a file, read once to check all of it and again for each use.

    Without `taxonomy`, the candidates of a system are the names that occur in the file under its source (and, for the
    simulator's systems, all that it knows). Labels of further fields are those of the system in `taxonomy`, or else of
    the whole file, whatever the source: who sets severities does so for all systems. Names that are equal but for case
    or spelling are taken as one (`SpellingFinder`). `FaultFinder` says which incidents are records of one fault; one
    that names its `fault` is left as it says. `columns`: what the file calls the fields.

    Raises what `read_incidents` does, and IncidentError with all that the taxonomy lacks.
    """
    finder, labels, notes = FaultFinder(), SpellingFinder(), ReadNotes()
    simulated = simulator_taxonomy().systems
    count = 0
    for incident in read_incidents(path, notes, columns):
        count += 1
        finder.add(incident)
        labels.add(incident)
    spellings = labels.found(taxonomy, simulated)

    def stream() -> Iterator[Incident]:
        return map(spellings.of, read_incidents(path, columns=columns))

    _check_more_fields(one_line(path), columns.more, notes, count)
    if taxonomy is None:
        taxonomy = _taxonomy_of([used for used, _, _ in labels.after(spellings)], simulated)
    else:
        _check_taxonomy(one_line(path), taxonomy, labels, spellings, count)
    taxonomy = _with_labels(taxonomy, columns.more, [used for used, _, _ in labels.more_after(spellings)])
    merged, faults = finder.found()
    return IncidentSource(str(path), count, stream, taxonomy, merged, faults=faults, notes=notes, spellings=spellings)


def _check_more_fields(name: str, more: tuple[str, ...], notes: ReadNotes, count: int) -> None:
    for field_name in more:
        if notes.without[field_name] == count:
            others = ", ".join(one_line(key, 60) for key in notes.unknown) or "none"
            raise IncidentError(
                f"{name}: answer field '{field_name}': no incident has one; fields that nothing reads: {others}; "
                f"--columns {field_name}=NAME says what it is called"
            )


def _with_labels(taxonomy: Taxonomy, more: tuple[str, ...], used: Iterable[tuple[str, str, str]]) -> Taxonomy:
    """The taxonomy with the labels of all that is asked for, and of nothing else."""
    if not more and not taxonomy.more_fields:
        return taxonomy
    in_file: dict[str, set[str]] = {name: set() for name in more}
    for _, name, label in used:
        in_file[name].add(label)
    systems = {
        source: replace(
            system, more=tuple((name, system.labels_of(name) or tuple(sorted(in_file[name]))) for name in more)
        )
        for source, system in taxonomy.systems.items()
    }
    return replace(taxonomy, systems=systems)


def _check_taxonomy(name: str, taxonomy: Taxonomy, labels: SpellingFinder, spellings: Spellings, count: int) -> None:
    bad = BadRows()
    for used, first, rows in labels.after(spellings):
        for lack in taxonomy.lacks(*used):
            bad.add(f"incident '{first}'", lack, kind=lack, rows=rows)
    for (source, field_name, label), first, rows in labels.more_after(spellings):
        for lack in taxonomy.lacks_label(source, field_name, label):
            bad.add(f"incident '{first}'", lack, kind=lack, rows=rows)
    if bad:
        raise bad.error(name, count)


def _taxonomy_of(labels: Iterable[tuple[str, str, str]], simulated: Mapping[str, System]) -> Taxonomy:
    names: dict[str, tuple[set[str], set[str]]] = {}
    for source, service, incident_type in labels:
        services, types = names.setdefault(source, (set(), set()))
        services.add(service)
        types.add(incident_type)
    systems = {}
    for source, (services, types) in sorted(names.items()):
        known = simulated.get(source.removesuffix(NEW_WORDINGS), System((), ()))
        systems[source] = System(
            tuple(sorted(services.union(known.services))), tuple(sorted(types.union(known.incident_types)))
        )
    return Taxonomy(systems)
