"""Preference pairs: the right answer against near misses of the same system, balanced so that only reading helps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from verl_aiops.incidents.build.case import Case
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.names import overlap
from verl_aiops.incidents.prompts import answer_json
from verl_aiops.incidents.taxonomy import Taxonomy

OTHER_SYSTEM = "other_system"
DEFAULT_KINDS: Mapping[str, float] = {
    "wrong_service": 0.25,
    "wrong_type": 0.35,
    "both": 0.1,
    "upstream": 0.2,
    "swapped": 0.1,
}
# Answers compared when a whole taxonomy could be proposed.
_MAX_PROPOSALS = 64
# One character of total length difference weighs this much against one appearance of a class.
_LENGTH_WEIGHT = 0.05


class NearMiss(NamedTuple):
    """A wrong answer; `source` is the system that its wrong names belong to."""

    service: str
    incident_type: str
    source: str


@dataclass(frozen=True)
class Pair:
    """Canonical JSON of the right and of a wrong answer; `kind` is a key of `KINDS` or `other_system`."""

    chosen: str
    rejected: str
    kind: str


@dataclass(frozen=True)
class PairOptions:
    """`kinds`: relative shares; `hard_share`: how often a wrong service must be one that the incident's text names;
    `overlapping`: whether a name may be rejected that contains the right one, or is contained in it (`names.overlap`).
    """

    pairs_per_incident: int = 2
    kinds: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_KINDS))
    hard_share: float = 0.7
    seed: int = 0
    overlapping: bool = False

    def __post_init__(self) -> None:
        if self.pairs_per_incident < 1:
            raise IncidentError(f"pairs per incident: expected at least 1, found {self.pairs_per_incident}")
        if not 0 <= self.hard_share <= 1:
            raise IncidentError(f"hard share: expected a share from 0 to 1, found {self.hard_share}")
        for name, share in self.kinds.items():
            if name not in KINDS:
                raise IncidentError(f"pair kind '{name}': expected one of {', '.join(KINDS)}")
            if not 0 <= share < float("inf"):
                raise IncidentError(f"pair kind '{name}': expected a share of 0 or more, found {share}")
        if not sum(self.kinds.values()) > 0:
            raise IncidentError("pair kinds: expected at least one share above 0")


def parse_kinds(text: str) -> dict[str, float]:
    """`"wrong_type=2,both=1"` as shares; raises IncidentError."""
    kinds = {}
    for part in text.split(","):
        name, equals, share = part.partition("=")
        try:
            kinds[name.strip()] = float(share) if equals else 1.0
        except ValueError:
            raise IncidentError(f"pair kinds: expected name=share,name=share, found '{part}'") from None
    return kinds


def _wrong_services(case: Case) -> list[str]:
    """Wrong names of a service. An answer that names no fault is wrong as a whole (`_both`), not in its service."""
    whole = case.candidates.abstentions
    return [name for name in case.candidates.services if not case.incident.is_service(name) and name not in whole]


def _wrong_types(case: Case) -> list[str]:
    whole = case.candidates.abstentions
    return [name for name in case.candidates.incident_types if not case.incident.is_type(name) and name not in whole]


def _wrong_service(case: Case) -> list[tuple[str, str]]:
    return [(service, case.incident.incident_type) for service in _wrong_services(case)]


def _wrong_type(case: Case) -> list[tuple[str, str]]:
    return [(case.incident.service, incident_type) for incident_type in _wrong_types(case)]


def _both(case: Case) -> list[tuple[str, str]]:
    types = _wrong_types(case)
    whole = [(name, name) for name in sorted(case.candidates.abstentions) if name != case.incident.service]
    return [(service, incident_type) for service in _wrong_services(case) for incident_type in types] + whole


def _upstream(case: Case) -> list[tuple[str, str]]:
    """A service that shows the effect, where the data say which do."""
    services = [name for name in _wrong_services(case) if name in case.incident.upstream]
    return [(service, case.incident.incident_type) for service in services]


def _named(case: Case) -> list[tuple[str, str]]:
    """A service that the text names, whatever its part in the incident."""
    services = [name for name in _wrong_services(case) if name in case.named]
    return [(service, case.incident.incident_type) for service in services]


def _swapped(case: Case) -> list[tuple[str, str]]:
    """A red herring of the text with the type it hints at."""
    services, types = set(_wrong_services(case)), set(_wrong_types(case))
    return [decoy for decoy in case.incident.decoys if decoy[0] in services and decoy[1] in types]


_Alike = tuple[frozenset[str], frozenset[str]]
_Found = tuple[str, NearMiss]


class Kind(NamedTuple):
    """`propose` lists (service, incident type) answers that are wrong in each of `fields`."""

    fields: tuple[str, ...]
    propose: Callable[[Case], list[tuple[str, str]]]


# A new kind is one function and one line.
KINDS: dict[str, Kind] = {
    "wrong_service": Kind(("service",), _wrong_service),
    "wrong_type": Kind(("incident_type",), _wrong_type),
    "both": Kind(("service", "incident_type"), _both),
    "upstream": Kind(("service",), _upstream),
    "swapped": Kind(("service", "incident_type"), _swapped),
}

# What is made in place of a kind, and what that is, in systems whose incidents do not say who calls whom.
_WITHOUT_CALLS = {"upstream": Kind(("service",), _named)}
_IS_THEN = "wrong_service"


@dataclass
class PairMaker:
    """Makes pairs one incident after another and keeps the whole in balance; one for each side of a split.

    Three things would let a model be right without reading: a class that is always the right one, answers of which the
    longer is right, and kinds that are not there. So the kind is the one furthest below its share, unless it would put
    a name on the right side that has been there too often; and among the near misses it proposes, the one is taken
    whose names have been right more often than wrong in their system, and that brings the two total lengths together.
    What is made depends on options and order alone.

    After use: `kinds` counts pairs by what they are; `instead`, by the kind that was asked, those that are a
    `wrong_service` since their system does not know the call graph; `overlapping` counts incidents that offer a name
    which contains the right one or lies in it; `right` and `wrong` count, by (field, name), how often a name was the
    right and the wrong side of a difference; `lengths` sums the characters of chosen and rejected answers.
    """

    taxonomy: Taxonomy
    options: PairOptions = field(default_factory=PairOptions)
    kinds: Counter[str] = field(default_factory=Counter)
    instead: Counter[str] = field(default_factory=Counter)
    overlapping: int = 0
    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    rejected_longer: int = 0
    rejected_shorter: int = 0
    short_incidents: int = 0
    pairs: int = 0
    _owed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _with_calls: set[str] = field(default_factory=set)

    def make(self, case: Case) -> list[Pair]:
        """Up to `pairs_per_incident` pairs with different rejected answers; none if no wrong answer exists at all."""
        rng = random.Random(f"pairs/{self.options.seed}/{case.incident.id}")
        used: set[tuple[str, str]] = set()
        alike = self._alike(case)
        self.overlapping += any(alike)
        if self.options.overlapping:
            alike = frozenset(), frozenset()
        pairs = []
        for _ in range(self.options.pairs_per_incident):
            found = self._next(case, rng, used, alike)
            if found is None:
                self.short_incidents += 1
                break
            kind, answer = found
            used.add(answer[:2])
            pairs.append(self._pair(case, kind, answer))
        return pairs

    def _alike(self, case: Case) -> _Alike:
        """The wrong services and types of an incident that contain a right name, or are contained in one."""
        right = case.incident.right_services, case.incident.right_types
        wrong = _wrong_services(case), _wrong_types(case)
        services, types = (
            frozenset(name for name in names if any(overlap(name, own) for own in accepted))
            for names, accepted in zip(wrong, right)
        )
        return services, types

    def _next(self, case: Case, rng: random.Random, used: set[tuple[str, str]], alike: _Alike) -> _Found | None:
        source = case.incident.source
        total = sum(self.options.kinds.values())

        def excess(kind: str) -> float:
            one_sided = sum(self._owed[source, name, getattr(case.incident, name)] for name in KINDS[kind].fields)
            made = self.kinds[kind] + self.instead[kind] - (sum(self.instead.values()) if kind == _IS_THEN else 0)
            return made - (self.pairs + 1) * self.options.kinds[kind] / total + one_sided

        if case.incident.upstream:
            self._with_calls.add(source)
        for asked in sorted((kind for kind, share in self.options.kinds.items() if share > 0), key=excess):
            other = None if source in self._with_calls else _WITHOUT_CALLS.get(asked)
            proposals = [
                NearMiss(*names, source)
                for names in (other or KINDS[asked]).propose(case)
                if names not in used and names[0] not in alike[0] and names[1] not in alike[1]
            ]
            if proposals:
                self.instead[asked] += other is not None
                return asked if other is None else _IS_THEN, self._best(case, proposals, rng)
        proposals = self._from_other_systems(case, rng, used)
        if not proposals:
            return None
        return OTHER_SYSTEM, self._best(case, proposals, rng)

    def _from_other_systems(self, case: Case, rng: random.Random, used: set[tuple[str, str]]) -> list[NearMiss]:
        """For a system with a single possible answer: the names of all others, both wrong."""
        incident = case.incident

        def differs(name: str, right: frozenset[str]) -> bool:
            return self.options.overlapping or not any(overlap(name, own) for own in right)

        answers = [
            NearMiss(service, incident_type, source)
            for source, system in self.taxonomy.systems.items()
            for service in system.services
            if not incident.is_service(service) and differs(service, incident.right_services)
            for incident_type in system.incident_types
            if not incident.is_type(incident_type) and differs(incident_type, incident.right_types)
        ]
        answers = [answer for answer in answers if answer[:2] not in used]
        return rng.sample(answers, _MAX_PROPOSALS) if len(answers) > _MAX_PROPOSALS else answers

    def _best(self, case: Case, proposals: list[NearMiss], rng: random.Random) -> NearMiss:
        incident = case.incident
        if rng.random() < self.options.hard_share:
            near = case.named | {incident.service} | case.candidates.abstentions
            hard = [answer for answer in proposals if answer.service in near]
            proposals = hard or proposals
        right_length = len(incident.service) + len(incident.incident_type)
        surplus = self.lengths[1] - self.lengths[0]

        def merit(answer: NearMiss) -> float:
            owed = 0
            if answer.service != incident.service:
                owed += self._owed[answer.source, "service", answer.service]
            if answer.incident_type != incident.incident_type:
                owed += self._owed[answer.source, "incident_type", answer.incident_type]
            longer = len(answer.service) + len(answer.incident_type) - right_length
            return owed - _LENGTH_WEIGHT * (abs(surplus + longer) - abs(surplus)) + rng.random()

        return max(proposals, key=merit)

    def _pair(self, case: Case, kind: str, answer: NearMiss) -> Pair:
        rejected = answer_json(answer.service, answer.incident_type, case.incident.labels)
        self.pairs += 1
        self.kinds[kind] += 1
        self.lengths[0] += len(case.answer)
        self.lengths[1] += len(rejected)
        self.rejected_longer += len(rejected) > len(case.answer)
        self.rejected_shorter += len(rejected) < len(case.answer)
        for name in ("service", "incident_type"):
            right, wrong = getattr(case.incident, name), getattr(answer, name)
            if right != wrong:
                self.right[name, right] += 1
                self.wrong[name, wrong] += 1
                self._owed[case.incident.source, name, right] += 1
                self._owed[answer.source, name, wrong] -= 1
        return Pair(case.answer, rejected, kind)
