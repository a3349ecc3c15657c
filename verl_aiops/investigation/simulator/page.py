"""What a scene of the simulator writes, kept as telemetry in place of lines: the same stories, noise and wordings."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from verl_aiops.incidents.simulator.clock import DAY, Clock
from verl_aiops.incidents.simulator.lines import Page
from verl_aiops.incidents.simulator.signs import MINUTE, SAMPLES, Sign
from verl_aiops.incidents.simulator.topology import Topology
from verl_aiops.incidents.simulator.wordings import Wordings
from verl_aiops.investigation.signals import LogLine, Note, Series

__all__ = ["CasePage", "Window"]

Window = tuple[int, int]


class CasePage(Page):
    """Takes what a `Scene` writes. `window`: first and last minute of the telemetry, from the alert on.

    Times are kept in seconds after the alert; `epoch` turns them into those of a case. What a scene gets back for a
    line, and keeps as evidence, is the text that an answer of a tool has of it.
    """

    def __init__(
        self, rng: Random, topology: Topology, clock: Clock, lang: str, wordings: Wordings, window: Window, alert: float
    ):
        super().__init__(rng, topology, clock, lang, wordings)
        self.window, self.alert = window, alert
        self.logs: list[LogLine] = []
        self.changes: list[Note] = []
        self.notes: list[Note] = []
        self.points: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        # Of whom nothing arrives any more, since when.
        self.silent: dict[str, float] = {}

    def epoch(self, at: float) -> float:
        """To the millisecond: what a program writes of a time."""
        return round(self.alert + at, 3)

    def put_log(self, at: float, service: str, level: str, message: str) -> str:
        self.logs.append(LogLine(self.epoch(at), service, level, message))
        return message

    def put(self, at: float, line: str) -> str:
        """A metric of one moment, which a program has written into its log."""
        _, service, text = line.split(" ", 2)
        self.logs.append(LogLine(self.epoch(at), service, "INFO", text))
        return text

    def put_change(self, at: float, service: str, kind: str, text: str) -> str:
        self.changes.append(Note(self.epoch(at), service, kind, text))
        return text

    def put_note(self, at: float, source: str, service: str, text: str) -> str:
        self.notes.append(Note(self.epoch(at), service, source, text))
        if source == "collector":  # which speaks up one to three minutes later
            self.silent[service] = min(at - 3 * MINUTE, self.silent.get(service, at))
        return text

    def series(
        self, subject: str, sign: Sign, around: float, moved: tuple[float, float] | None, *, high: bool = False
    ) -> str | None:
        """A series over the whole window, or some minutes of the day before; out of its usual range while `moved`."""
        if not self.is_new(subject, sign, around):
            return None
        service, _, operation = subject.partition(" ")
        name = f"{sign.name} {operation}".strip()
        first, last = self.window[0] * MINUTE, self.window[1] * MINUTE
        if around < first - DAY / 2:
            first = int(around // MINUTE - 2) * MINUTE
            last = first + SAMPLES * MINUTE
        times = range(first, last + 1, MINUTE)
        out = None
        if moved is not None:
            begin, end = (max(0, min(len(times), int(-(-(at - first) // MINUTE)))) for at in moved)
            out = range(begin, end)
        values, _, _ = sign.values(self.rng, len(times), out, high=high)
        self.points[service, name] += [(self.epoch(at), float(value)) for at, value in zip(times, values)]
        return f"{service} {name}"

    def all_series(self) -> list[Series]:
        """Every series, sorted by time; what a silent service would have sent is not there."""
        found = []
        for (service, name), points in self.points.items():
            kept = sorted(point for point in points if not self.is_lost(service, point[0]))
            if kept:
                found.append(Series(service, name, None, tuple(kept)))
        return found

    def is_lost(self, service: str, time: float | None) -> bool:
        """Whether what `service` sent at `time` (since 1970) never arrived."""
        since = self.silent.get(service)
        return since is not None and time is not None and time >= self.epoch(since)
