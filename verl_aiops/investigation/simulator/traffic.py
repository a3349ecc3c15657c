"""The requests of a case: spans of every flow over the whole window, failing where and when a story says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from verl_aiops.incidents.simulator.cast import BORDER, UNTOLD, Cast, Story, pick
from verl_aiops.incidents.simulator.faults import SLOW, STALE
from verl_aiops.incidents.simulator.topology import Flow
from verl_aiops.investigation.signals import Span
from verl_aiops.investigation.simulator.page import CasePage

__all__ = ["Traffic"]

# How many of the requests belong to the alert's flow, and how many of those that a fault could strike it does strike.
_OWN_FLOW, _STRUCK = 0.5, 0.85
# How often a call that nothing asks for happens in a request.
_CALLS = 0.6
# From when to when requests fail of which nothing but the first span arrives, in seconds after the alert.
_CUT = (-60.0, 600.0)


class Traffic:
    """Writes the spans of a cast, `rate` requests a minute."""

    def __init__(self, page: CasePage, cast: Cast, rate: float):
        self.page, self.cast, self.rate, self.rng = page, cast, rate, page.rng
        self.usual = {name: 2 + int(self.rng.random() * 60) for name in page.topology.services}

    def spans(self) -> list[Span]:
        """In order of time. Nothing of them where the rate is 0."""
        count = int((self.page.window[1] - self.page.window[0]) * self.rate)
        spans: list[Span] = []
        for number in range(count):
            at = self.page.window[0] * 60 + (number + self.rng.random()) * 60 / self.rate
            own = self.rng.random() < _OWN_FLOW
            flow = self.cast.flow if own else pick(self.rng, self.page.topology.flows)
            spans += self._request(flow, at, f"{self.rng.getrandbits(32):08x}")
        return [span for span in spans if not self.page.is_lost(span.service, span.time)]

    def _request(self, flow: Flow, at: float, trace: str) -> Iterator[Span]:
        entry = self.page.topology.entries[flow.operation]
        if self.cast.verdict == UNTOLD and flow is self.cast.flow and _CUT[0] <= at <= _CUT[1]:
            slow, stale = self.cast.effect == SLOW, self.cast.effect == STALE
            took = self._late() if slow else self.usual[entry]
            yield self._span(trace, "0", None, entry, flow, at, took, "timeout" if slow else "ok" if stale else "error")
            return
        struck = [story for story in self.cast.stories if story.role != BORDER and story.flow is flow]
        struck = [story for story in struck if story.start <= at <= story.end and self.rng.random() < _STRUCK]
        spans, _ = self._call(flow, struck, entry, None, at, trace, [0])
        yield from spans

    def _call(
        self,
        flow: Flow,
        struck: Sequence[Story],
        service: str,
        parent: str | None,
        at: float,
        trace: str,
        count: list[int],
    ) -> tuple[list[Span], float]:
        """The span of a call and of all below it, and how long it took in milliseconds."""
        name = f"{count[0]:x}"
        count[0] += 1
        here = [story for story in struck if service in story.chain]
        # Who is on the way down to a fault calls on; of the others some do.
        on_the_way = {
            callee for story in here for callee, caller in zip(story.chain, story.chain[1:]) if caller == service
        }
        on_the_way.update(story.flooded for story in here if story.flooded and story.chain[0] == service)
        below = [callee for callee in self.page.topology.calls.get(service, ()) if callee in flow.through]
        spans: list[Span] = []
        took = self.usual[service] * (0.7 + 0.6 * self.rng.random())
        for callee in below:
            if callee in on_the_way or self.rng.random() < _CALLS:
                called, inner = self._call(flow, struck, callee, name, at + took / 1000, trace, count)
                spans += called
                took += inner
        status = "ok"
        for story in here:
            cause = story.chain[0] == service
            if story.effect == SLOW:
                took += self._late() if cause else 0
                status = status if cause else "timeout"
            elif story.effect != STALE:
                status = "error"
        return [self._span(trace, name, parent, service, flow, at, took, status), *spans], took

    def _late(self) -> float:
        return 2100 + self.rng.random() * 6000

    def _span(
        self, trace: str, name: str, parent: str | None, service: str, flow: Flow, at: float, took: float, status: str
    ) -> Span:
        return Span(self.page.epoch(at), trace, name, parent, service, flow.operation, round(took, 1), status)
