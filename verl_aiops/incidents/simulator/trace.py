"""The spans of an incident: failing requests of each of its faults, and requests that are well."""

from __future__ import annotations

from random import Random

from verl_aiops.incidents.simulator.cast import BORDER, FAULT, NOTHING, Cast, Story, pick
from verl_aiops.incidents.simulator.clock import Clock
from verl_aiops.incidents.simulator.faults import SLOW, STALE
from verl_aiops.incidents.simulator.topology import Flow, Topology

# How often a story's request is among those kept.
_KEPT = 0.85
_SIDE_CALLS = 0.35


def trace_of(rng: Random, topology: Topology, cast: Cast, clock: Clock) -> str:
    """Span lines, request by request; which request belongs to the alert, operation and time tell."""
    writer = _Spans(rng, topology, clock)
    requests = [
        writer.failing(story)
        for story in cast.stories
        if story.role != BORDER and (len(cast.stories) == 1 or rng.random() < _KEPT)
    ]
    if cast.verdict == NOTHING or (len(cast.stories) > 1 and rng.random() < 0.4):
        at = rng.random() * 200 if cast.verdict == NOTHING else -300 - rng.random() * 900
        requests.append(writer.healthy(cast.flow, at))
    if cast.verdict not in (FAULT, NOTHING):
        requests.append(writer.cut(cast.flow, cast.effect))
    rng.shuffle(requests)
    return "\n".join(line for request in requests for line in request)


class _Spans:
    def __init__(self, rng: Random, topology: Topology, clock: Clock):
        self.rng, self.topology, self.clock = rng, topology, clock

    def _head(self, at: float) -> str:
        return f"span {self.clock.of(at)} {self.rng.getrandbits(16):04x}" if self.clock.dated else "span"

    def failing(self, story: Story) -> list[str]:
        """A request from the outermost service that shows the effect down to the fault, healthy calls beside it."""
        rng, chain, slow = self.rng, story.chain, story.effect == SLOW
        head = self._head(story.start + 20 + rng.random() * 150)
        callers = self.topology.routes[story.flow.operation]
        own = 2100 + int(rng.random() * 6000) if slow else 2 + int(rng.random() * 60)
        lines = []
        calls = [*chain[::-1], *((story.flooded,) if story.flooded else ())]
        above = callers[chain[-1]]
        caller = pick(rng, above) if above else "user"
        for number, callee in enumerate(calls):
            depth = len(calls) - number
            usual = 10 + int(rng.random() * 250) + 30 * depth
            status = "ok" if story.effect == STALE else "timeout" if slow and depth > 1 else "ok" if slow else "error"
            lines.append(self._span(head, caller, callee, story.flow, own + 15 * depth, usual, status))
            beside = [
                name for name in self.topology.calls.get(callee, ()) if name in story.flow.through and name not in calls
            ]
            if beside and rng.random() < _SIDE_CALLS:
                usual = 3 + int(rng.random() * 90)
                took = usual + int(rng.random() * 9)
                lines.append(self._span(head, callee, pick(rng, beside), story.flow, took, usual, "ok"))
            caller = callee
        return lines

    def healthy(self, flow: Flow, at: float) -> list[str]:
        """A request of the flow as it usually goes, down one way."""
        head, lines, caller = self._head(at), [], "user"
        callee = self.topology.entries[flow.operation]
        took = 40 + int(self.rng.random() * 400)
        for _ in range(3):
            lines.append(
                self._span(head, caller, callee, flow, took, int(took * (0.8 + 0.4 * self.rng.random())), "ok")
            )
            below = [name for name in self.topology.calls.get(callee, ()) if name in flow.through]
            if not below:
                break
            caller, callee, took = callee, pick(self.rng, below), int(took * 0.6)
        return lines

    def cut(self, flow: Flow, effect: str) -> list[str]:
        """A failing request of which only the first span was kept."""
        status = "timeout" if effect == SLOW else "ok" if effect == STALE else "error"
        head, entry = self._head(self.rng.random() * 150), self.topology.entries[flow.operation]
        usual = 40 + int(self.rng.random() * 300)
        took = 2100 + int(self.rng.random() * 6000) if effect == SLOW else usual + 20
        return [self._span(head, "user", entry, flow, took, usual, status)]

    @staticmethod
    def _span(head: str, caller: str, callee: str, flow: Flow, took: int, usual: int, status: str) -> str:
        return f"{head} {caller} -> {callee} {flow.operation} {took} ms (usual {usual}) {status}"
