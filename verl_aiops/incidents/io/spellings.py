"""Labels that are equal but for case or spelling, taken as one: `DB deadlock`, `db deadlock` and `db-deadlock`.

People who fill in tickets write one name in several ways. Left alone, both would stand in one prompt to choose from,
and the reward, which compares without case, could not tell them apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from verl_aiops.incidents.names import spelling_key
from verl_aiops.incidents.schema import Incident, normalise_label
from verl_aiops.incidents.simulator import NEW_WORDINGS
from verl_aiops.incidents.taxonomy import ABSTENTIONS, System, Taxonomy
from verl_aiops.inputs.shown import one_line

__all__ = ["SpellingFinder", "Spellings", "spelling_key"]

_SHOWN = 8
_FIELDS = ("service", "incident_type")


@dataclass(frozen=True)
class Spellings:
    """The name that is used for each other spelling of it: of sources, and of services and types by source.

    Sources in `names` are those that are used; labels of further fields stand under no source, since they are the same
    for all.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    counts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sources or self.names)

    def of(self, incident: Incident) -> Incident:
        """The incident under the names that are used; a spelling that the reward would not take for it is an alias."""
        if not self:
            return incident
        source = self.sources.get(incident.source, incident.source)

        def used(what: str, name: str) -> str:
            return self.names.get((source, what, name), name)

        service, incident_type = used("service", incident.service), used("incident_type", incident.incident_type)
        changed = replace(
            incident,
            source=source,
            service=service,
            incident_type=incident_type,
            service_aliases=_with_spelling(incident.service_aliases, service, incident.service),
            type_aliases=_with_spelling(incident.type_aliases, incident_type, incident.incident_type),
            upstream=tuple(dict.fromkeys(used("service", name) for name in incident.upstream)),
            decoys=tuple((used("service", one), used("incident_type", other)) for one, other in incident.decoys),
            **self._labels(incident),
        )
        return incident if changed == incident else changed

    def _labels(self, incident: Incident) -> dict[str, Any]:
        """The further fields under the names that are used."""
        used = {name: self.names.get(("", name, label), label) for name, label in incident.labels}
        aliases = dict(incident.label_aliases)
        for name, label in incident.labels:
            aliases[name] = _with_spelling(aliases.get(name, ()), used[name], label)
        return {
            "labels": tuple(used.items()),
            "label_aliases": tuple((name, names) for name, names in aliases.items() if names),
        }

    def __str__(self) -> str:
        """Which, for a report: `incident_type 'db deadlock' for 'DB deadlock' (3)`."""
        by_name: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for other, name in self.sources.items():
            by_name["source", name][other] += self.counts["", "source", other]
        for (source, what, other), name in self.names.items():
            by_name[what, name][other] += self.counts[source, what, other]
        shown = [
            f"{what} {one_line(repr(name), 60)} for "
            + ", ".join(f"{one_line(repr(other), 60)} ({count:,})" for other, count in sorted(others.items()))
            for (what, name), others in sorted(by_name.items())
        ]
        more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
        return f"spellings taken as one: {'; '.join(shown[:_SHOWN])}{more}"


def _with_spelling(aliases: tuple[str, ...], used: str, written: str) -> tuple[str, ...]:
    return aliases if normalise_label(used) == normalise_label(written) else (*aliases, written)


class SpellingFinder:
    """Sees all labels of a file, then says which are one."""

    def __init__(self) -> None:
        self._labels: Counter[tuple[str, str, str]] = Counter()
        self._first: dict[tuple[str, str, str], str] = {}
        # of further fields: by source, name and label
        self._more: Counter[tuple[str, str, str]] = Counter()
        self._first_more: dict[tuple[str, str, str], str] = {}

    def add(self, incident: Incident) -> None:
        labels = incident.source, incident.service, incident.incident_type
        self._labels[labels] += 1
        self._first.setdefault(labels, incident.id)
        for name, label in incident.labels:
            self._more[incident.source, name, label] += 1
            self._first_more.setdefault((incident.source, name, label), incident.id)

    def after(self, spellings: Spellings) -> Iterator[tuple[tuple[str, str, str], str, int]]:
        """Source, service and type as they are used, with the first incident that has them so and their number."""
        for (source, *names), count in self._labels.items():
            first = self._first[source, names[0], names[1]]
            source = spellings.sources.get(source, source)
            service, incident_type = (
                spellings.names.get((source, what, name), name) for what, name in zip(_FIELDS, names)
            )
            yield (source, service, incident_type), first, count

    def more_after(self, spellings: Spellings) -> Iterator[tuple[tuple[str, str, str], str, int]]:
        """Source, further field and label as they are used, with the first incident that has them and their number."""
        for (source, name, label), count in self._more.items():
            used = spellings.sources.get(source, source), name, spellings.names.get(("", name, label), label)
            yield used, self._first_more[source, name, label], count

    def found(self, taxonomy: Taxonomy | None, simulated: Mapping[str, System]) -> Spellings:
        """What each spelling is taken for.

        A name of the taxonomy (else of the simulated system) stands, and for its other spellings; two names of a
        taxonomy are different for certain. Of other names the most frequent stands, of equals the first in order.
        """
        whole = taxonomy is not None
        known = taxonomy.systems if taxonomy else simulated
        in_sources: Counter[str] = Counter()
        for (source, _, _), count in self._labels.items():
            in_sources[source] += count
        sources = _merged(in_sources, known, prefer=True, only_known=whole)
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for (source, *pair), count in self._labels.items():
            for what, name in zip(_FIELDS, pair):
                counts[sources.get(source, source), what][name] += count
        names = {}
        for (source, what), of_system in counts.items():
            listed = taxonomy.listed_name(source) if taxonomy else source.removesuffix(NEW_WORDINGS)
            system = known.get(listed or source)
            there = ABSTENTIONS if system is None else system.services if what == "service" else system.incident_types
            for other, name in _merged(of_system, there, prefer=system is not None, only_known=whole).items():
                names[source, what, other] = name
        for what, of_field in self._of_fields().items():
            labels = {label for system in known.values() for label in system.labels_of(what)}
            counts["", what] = of_field
            for other, name in _merged(of_field, labels, prefer=bool(labels), only_known=bool(labels)).items():
                names["", what, other] = name
        numbers = {(source, what, name): counts[source, what][name] for source, what, name in names}
        return Spellings(sources, names, numbers | {("", "source", name): in_sources[name] for name in sources})

    def _of_fields(self) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for (_, name, label), count in self._more.items():
            found[name][label] += count
        return found


def _merged(counts: Counter[str], known: Iterable[str], *, prefer: bool, only_known: bool) -> dict[str, str]:
    """The name to use for each that is not used. `prefer`: a known name also where the file itself has it nowhere;
    `only_known`: no name that is not known."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in counts:
        groups[spelling_key(name)].add(name)
    right: dict[str, list[str]] = defaultdict(list)
    for name in known:
        right[spelling_key(name)].append(name)
    merged: dict[str, str] = {}
    for key, names in groups.items():
        best = right[key] if prefer or names.intersection(right[key]) else []
        if len(best) > 1 or (only_known and not best):
            continue
        used = best[0] if best else min(names, key=lambda name: (-counts[name], name))
        merged.update((name, used) for name in names if name != used)
    return merged
