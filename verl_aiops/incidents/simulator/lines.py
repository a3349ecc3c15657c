"""Lines of an incident in the making: how log, metric and change lines look, and which wordings they may use."""

from __future__ import annotations

from collections import defaultdict
from random import Random

from verl_aiops.incidents.simulator.cast import pick
from verl_aiops.incidents.simulator.clock import Clock
from verl_aiops.incidents.simulator.faults import Voice
from verl_aiops.incidents.simulator.noise import noise
from verl_aiops.incidents.simulator.signs import MINUTE, SAMPLES, Sign
from verl_aiops.incidents.simulator.topology import Topology
from verl_aiops.incidents.simulator.values import fill
from verl_aiops.incidents.simulator.wordings import Wordings

# In Chinese systems many programs still log in English.
_ENGLISH_LINES_IN_CHINESE = 0.35
# Causes, those who suffer from them and those who were ill yesterday write at the same levels.
LEVELS = ("ERROR", "ERROR", "ERROR", "WARN", "WARN", "FATAL", "INFO")


class Page:
    """The lines so far; `events` are (seconds after the alert, line). What writes a line returns it."""

    def __init__(self, rng: Random, topology: Topology, clock: Clock, lang: str, wordings: Wordings):
        self.rng, self.topology, self.clock, self.lang, self.wordings = rng, topology, clock, lang, wordings
        self.noise = noise()
        self.events: list[tuple[float, str]] = []
        self.facts: defaultdict[str, dict[str, object]] = defaultdict(dict)
        # A service's metric is written once for a day: two series of it would have to agree.
        self.shown: set[tuple[str, str, bool]] = set()
        self._changed: set[tuple[str, str]] = set()
        self._format = int(rng.random() * len(self.noise.line_formats))

    def words(self, voice: Voice) -> tuple[str, ...]:
        """Those of a voice's wordings that may be used here; empty where all of them are held out, or none is."""
        if self.lang == "zh" and self.rng.random() < _ENGLISH_LINES_IN_CHINESE:
            return self.wordings.allowed(voice.en)
        return self.wordings.allowed(voice.of(self.lang))

    def need(self, voice: Voice) -> tuple[str, ...]:
        """The same for a line that cannot be left out: of a list with one wording, that one."""
        return self.words(voice) or voice.of(self.lang)

    def say(self, service: str, level: str, wording: str, at: float, operation: str = "", **given: object) -> str:
        """A log line; `operation` is the request that it is about, by default one that the service has a part in."""
        if "{op}" in wording:
            given["op"] = operation or pick(self.rng, self.topology.flows_of[service]).operation
        message = fill(wording, self.rng, self.facts[service], **given)
        return self.put_log(at, service, level, message)

    def put_log(self, at: float, service: str, level: str, message: str) -> str:
        """Each program keeps its own format; neighbours differ."""
        forms = self.noise.line_formats
        line = forms[(self._format + len(service)) % len(forms)].format(
            time=self.clock.of(at),
            level=level,
            lower=level.lower(),
            service=service,
            instance=len(message) % 3,
            message=message,
        )
        self.events.append((at, line))
        return line

    def measure(self, service: str, wording: str, at: float) -> str:
        """A metric line of one moment."""
        return self.put(at, f"metric {service} {fill(wording, self.rng, self.facts[service])}")

    def put(self, at: float, line: str) -> str:
        self.events.append((at, line))
        return line

    def series(
        self, subject: str, sign: Sign, around: float, moved: tuple[float, float] | None, *, high: bool = False
    ) -> str | None:
        """A metric line of some minutes from before `around` on, out of its usual range between the times of `moved`.

        None if the metric of this subject (a service, or a service and a request) is there already.
        """
        if not self.is_new(subject, sign, around):
            return None
        first = (around - MINUTE * (1 + self.rng.random())) // MINUTE * MINUTE
        out = None
        if moved is not None:
            begin, end = (max(0, min(SAMPLES, int(-(-(at - first) // MINUTE)))) for at in moved)
            out = range(begin, end)
        values = sign.series(self.rng, out, high=high)
        line = f"metric {self.clock.minute(first)} +1m {subject} {sign.name} {values}"
        self.events.append((first + SAMPLES * MINUTE, line))
        return line

    def is_new(self, subject: str, sign: Sign, around: float) -> bool:
        """Whether the metric of this subject is not there yet for the day of `around`; from now on it is."""
        key = (subject, sign.name, around < -MINUTE * 60 * 12)
        if key in self.shown:
            return False
        self.shown.add(key)
        return True

    def change(self, service: str, kind: str, at: float) -> str | None:
        """A line of the change log."""
        words = self.words(self.noise.changes[kind])
        if not words or (service, kind) in self._changed:
            return None
        self._changed.add((service, kind))
        until = self.clock.minute(at + 600)
        text = fill(pick(self.rng, words), self.rng, self.facts[service], until=until)
        return self.put_change(at, service, kind, text)

    def put_change(self, at: float, service: str, kind: str, text: str) -> str:
        return self.put(at, f"change {self.clock.of(at)} {service} {kind}: {text}")

    def note(self, source: str, voice: Voice, at: float, service: str, **given: object) -> str | None:
        """A line of the platform about services."""
        words = self.words(voice)
        if not words:
            return None
        text = fill(pick(self.rng, words), self.rng, self.facts[service], service=service, **given)
        return self.put_note(at, source, service, text)

    def put_note(self, at: float, source: str, service: str, text: str) -> str:
        return self.put(at, f"{source} {self.clock.of(at)}: {text}")
