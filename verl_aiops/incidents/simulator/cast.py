"""What happens in one incident, before a line of it is written: the fault that the alert is about, and its rivals.

All of them are stories of one making: a fault strikes a service, its callers on a flow suffer. They differ in nothing
but when, on which flow, and whether anything left its usual range. So no wording, level or metric tells the cause; its
place and its time do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from verl_aiops.incidents.simulator.clock import DAY
from verl_aiops.incidents.simulator.difficulty import Difficulty
from verl_aiops.incidents.simulator.faults import Fault, faults
from verl_aiops.incidents.simulator.topology import Flow, Topology

FAULT, NOTHING, UNTOLD = "fault", "nothing", "untold"
# What a story is to the alert. `CAUSE`: what it is about. Of the rivals, `ELSEWHERE` struck another flow at the same
# time, `NEIGHBOUR` so too, with the cause's own fault on the same machine; `OVER` and `YESTERDAY` were over before the
# alert, `LATE` began well after it; in `BORDER` every metric keeps to its usual range, and the complaints are old.
CAUSE, ELSEWHERE, NEIGHBOUR, OVER, YESTERDAY, LATE, BORDER = (
    *("cause", "elsewhere", "neighbour", "over", "yesterday", "late", "border"),
)
_ECHOES = (OVER, YESTERDAY)
_PRESENT = (ELSEWHERE, LATE, BORDER, LATE, NEIGHBOUR)
# How often a rival of another time strikes the alert's own flow, where nothing but the time tells it apart.
_SAME_FLOW = 0.85
# Draws of a rival that fits before it is left out: in a small system none may fit.
_ATTEMPTS = 12
# Faults of the machine rather than of the process, which neighbours on it share.
_OF_MACHINES = ("cpu_saturation", "packet_loss", "clock_skew", "disk_full")


class Story(NamedTuple):
    """A fault and its way up the calls. Times are in seconds after the alert.

    `chain`: the faulty service, its caller, that one's caller and so on, as far as the effect is seen. `flooded`: a
    service below that it floods with requests, or None. `specific`: told by wordings of its type alone.
    """

    role: str
    service: str
    fault: Fault
    effect: str
    flow: Flow
    chain: tuple[str, ...]
    start: float
    end: float
    flooded: str | None
    specific: bool


@dataclass(frozen=True)
class Cast:
    """The stories of an incident, the causes first where the verdict is `FAULT`, and the alert's flow and effect."""

    verdict: str
    flow: Flow
    effect: str
    stories: tuple[Story, ...]


def pick(rng: Random, options: Sequence):
    return options[int(rng.random() * len(options))]


def between(rng: Random, bounds: tuple[int, int]) -> int:
    return bounds[0] + int(rng.random() * (bounds[1] - bounds[0] + 1))


def faults_of(kind: str) -> tuple[Fault, ...]:
    """The faults that strike services of a kind."""
    return tuple(fault for fault in faults().values() if kind in fault.kinds)


def make_cast(rng: Random, topology: Topology, difficulty: Difficulty) -> Cast:
    """Deterministic for a state of `rng`."""
    return _Casting(rng, topology, difficulty).cast()


class _Casting:
    def __init__(self, rng: Random, topology: Topology, difficulty: Difficulty):
        self.rng, self.topology, self.difficulty = rng, topology, difficulty
        self.cause: Story | None = None
        self.roots: list[Story] = []
        self.taken: set[str] = set()

    def cast(self) -> Cast:
        rng = self.rng
        service = pick(rng, self.topology.services)
        self.flow: Flow = pick(rng, self.topology.flows_of[service])
        draw = rng.random()
        self.verdict = NOTHING if draw < self.difficulty.nothing else FAULT
        if self.verdict == FAULT and draw < self.difficulty.nothing + self.difficulty.untold:
            self.verdict = UNTOLD
        fault = self._fault(service)
        stories = []
        if self.verdict == FAULT:
            self.cause = self._story(CAUSE, service, fault, self.flow)
            stories.append(self.cause)
            self._take(self.cause)
            self.roots = [self.cause]
            # no draw where there is nothing to choose: seeds keep what they give
            more = 0 if self.difficulty.roots == (1, 1) else between(rng, self.difficulty.roots) - 1
            for _ in range(more):
                self._add_root()
            stories += self.roots[1:]
        for _ in range(between(rng, self.difficulty.rivals)):
            rival = self._rival(pick(rng, _ECHOES if rng.random() < self.difficulty.echo else _PRESENT))
            if rival is not None:
                stories.append(rival)
                self._take(rival)
        effect = self.cause.effect if self.cause else pick(rng, fault.effects)
        return Cast(self.verdict, self.flow, effect, tuple(stories))

    def _add_root(self) -> None:
        """Another cause of the same alert, on its flow and with its effect, that explains none of the others."""
        effect = self.roots[0].effect
        reached = {name for root in self.roots for name in root.chain}
        services = [name for name in self.topology.services if name in self.flow.through - reached - self.taken]
        for _ in range(_ATTEMPTS if services else 0):
            service = pick(self.rng, services)
            options = [fault for fault in faults_of(self.topology.kinds[service]) if effect in fault.effects]
            if not options:
                continue
            story = self._story(CAUSE, service, pick(self.rng, options), self.flow)._replace(effect=effect)
            if not any(root.service in story.chain for root in self.roots):
                self.roots.append(story)
                self._take(story)
                return

    def _take(self, story: Story) -> None:
        self.taken.add(story.service)
        if story.flooded:
            self.taken.add(story.flooded)

    def _fault(self, service: str) -> Fault:
        return pick(self.rng, faults_of(self.topology.kinds[service]))

    def _rival(self, role: str) -> Story | None:
        cause = self.cause
        if role == NEIGHBOUR and (cause is None or cause.fault.name not in _OF_MACHINES):
            role = ELSEWHERE
        # Where no fault is to be named, none may begin or show itself on the alert's flow, be it late.
        apart = role in (ELSEWHERE, NEIGHBOUR) or (cause is None and role == LATE)
        apart = apart or (self.verdict == UNTOLD and role == BORDER)
        same = not apart and self.rng.random() < _SAME_FLOW
        services = [
            name for name in self.topology.services if not (apart or same) or (name in self.flow.through) == same
        ]
        services = [name for name in services if self._may_strike(role, name)]
        for _ in range(_ATTEMPTS if services else 0):
            service = pick(self.rng, services)
            fault = cause.fault if role == NEIGHBOUR and cause else self._fault(service)
            flow = self.flow if same else pick(self.rng, self.topology.flows_of[service])
            if (apart and flow is self.flow) or self.topology.kinds[service] not in fault.kinds:
                continue
            if (role == BORDER and not fault.moves) or (cause and fault is cause.fault and service == cause.service):
                continue
            story = self._story(role, service, fault, flow)
            # What the cause's own service complains about at that time would be another explanation of the alert.
            if role not in _ECHOES and any(root.service in story.chain for root in self.roots):
                continue
            return story
        return None

    def _may_strike(self, role: str, service: str) -> bool:
        """Whether a rival of this role at this service leaves no doubt about the cause."""
        if any(service == root.service for root in self.roots):
            return role == YESTERDAY
        # Who suffers from the cause may have had, or may get later, a fault of its own, at another time.
        if any(service in root.chain for root in self.roots) and role not in (*_ECHOES, LATE):
            return False
        return service not in self.taken

    def _story(self, role: str, service: str, fault: Fault, flow: Flow) -> Story:
        rng = self.rng
        chain = [service]
        callers = self.topology.routes[flow.operation]
        for _ in range(between(rng, self.difficulty.depth)):
            if not callers[chain[-1]]:
                break
            chain.append(pick(rng, callers[chain[-1]]))
        start = -60 - 90 * rng.random()
        end = start + 240 + 600 * rng.random()
        if role == OVER:
            end = -330 - 600 * rng.random()
            start = end - 150 - 50 * rng.random()
        elif role == YESTERDAY:
            moved = DAY + 1200 * (rng.random() - 0.5)
            start, end = start - moved, end - moved
        elif role == LATE:
            start, end = start + 300, end + 300
        flooded = self._flooded(role, chain, flow) if rng.random() < self.difficulty.flood else None
        specific = role != BORDER and (not fault.moves or rng.random() < self.difficulty.specific)
        return Story(
            *(role, service, fault, pick(rng, fault.effects), flow, tuple(chain), start, end, flooded, specific)
        )

    def _flooded(self, role: str, chain: list[str], flow: Flow) -> str | None:
        off = () if role in (CAUSE, *_ECHOES) else self.flow.through
        below = [
            name
            for name in self.topology.calls.get(chain[0], ())
            if name in flow.through and name not in off and name not in self.taken and name not in chain
        ]
        return pick(self.rng, below) if below and role != BORDER else None
