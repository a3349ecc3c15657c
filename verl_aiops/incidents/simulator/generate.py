"""Making one incident: a fault, its way up the calls, what everyone writes about it, and the noise around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.schema import LANGUAGES, Incident
from verl_aiops.incidents.simulator.difficulty import DIFFICULTIES, Difficulty
from verl_aiops.incidents.simulator.faults import SLOW, STALE, Fault, faults
from verl_aiops.incidents.simulator.noise import noise
from verl_aiops.incidents.simulator.topology import Topology, topologies
from verl_aiops.incidents.simulator.values import fill
from verl_aiops.incidents.taxonomy import System, Taxonomy

_TWO_DIGITS = tuple(f"{number:02d}" for number in range(60))
# In Chinese systems many programs still log in English.
_ENGLISH_LINES_IN_CHINESE = 0.35


@dataclass(frozen=True)
class Simulator:
    """A seeded, endless stream of incidents with known truth.

    Incident `i` depends on the settings and (seed, i) alone, so streams can be cut, continued and shared out. `lang` is
    en, zh or mix (then `zh_share` of them are Chinese); `difficulty` is easy, medium, hard, mix (one of the three for
    each incident) or a `Difficulty`.
    """

    seed: int = 0
    lang: str = "en"
    zh_share: float = 0.5
    difficulty: str | Difficulty = "medium"
    topologies: tuple[str, ...] = field(default_factory=lambda: tuple(topologies()))

    def __post_init__(self) -> None:
        if self.lang not in (*LANGUAGES, "mix"):
            raise IncidentError(f"lang '{self.lang}': expected one of {', '.join(LANGUAGES)}, mix")
        if not 0 <= self.zh_share <= 1:
            raise IncidentError(f"zh_share: expected a share from 0 to 1, found {self.zh_share}")
        if isinstance(self.difficulty, str) and self.difficulty not in (*DIFFICULTIES, "mix"):
            raise IncidentError(f"difficulty '{self.difficulty}': expected one of {', '.join(DIFFICULTIES)}, mix")
        known = ", ".join(topologies())
        for name in self.topologies:
            if name not in topologies():
                raise IncidentError(f"topology '{name}': expected one of {known}")
        if not self.topologies:
            raise IncidentError(f"topologies: expected at least one of {known}, found none")

    def stream(self, count: int, start: int = 0) -> Iterator[Incident]:
        """Incidents start .. start + count - 1."""
        return map(self.incident, range(start, start + count))

    def incident(self, index: int) -> Incident:
        rng = Random(f"incident/{self.seed}/{index}")
        lang = self.lang
        if lang == "mix":
            lang = "zh" if rng.random() < self.zh_share else "en"
        name, difficulty = self._difficulty(rng)
        topology = topologies()[_pick(rng, self.topologies)]
        service = _pick(rng, topology.services)
        fault = _pick(rng, _faults_of(topology.kinds[service]))
        return _Scene(rng, topology, service, fault, lang, difficulty).incident(
            f"sim-{topology.name}-s{self.seed}-f{index:06d}", name
        )

    def _difficulty(self, rng: Random) -> tuple[str, Difficulty]:
        if isinstance(self.difficulty, Difficulty):
            return "custom", self.difficulty
        name = _pick(rng, tuple(DIFFICULTIES)) if self.difficulty == "mix" else self.difficulty
        return name, DIFFICULTIES[name]


def simulator_taxonomy() -> Taxonomy:
    """The services and incident types of every simulated system, under its source name (`simulator/<topology>`)."""
    systems = {}
    for topology in topologies().values():
        types = {fault.name for kind in topology.kinds.values() for fault in _faults_of(kind)}
        systems[source_of(topology)] = System(tuple(sorted(topology.services)), tuple(sorted(types)))
    return Taxonomy(systems)


def source_of(topology: Topology) -> str:
    return f"simulator/{topology.name}"


def _faults_of(kind: str) -> tuple[Fault, ...]:
    return tuple(fault for fault in faults().values() if kind in fault.kinds)


def _pick(rng: Random, options: Sequence):
    return options[int(rng.random() * len(options))]


def _between(rng: Random, bounds: tuple[int, int]) -> int:
    return bounds[0] + int(rng.random() * (bounds[1] - bounds[0] + 1))


class _Scene:
    """One incident in the making; events are (seconds after the start, line)."""

    def __init__(self, rng: Random, topology: Topology, service: str, fault: Fault, lang: str, difficulty: Difficulty):
        self.rng, self.topology, self.service, self.fault, self.lang = rng, topology, service, fault, lang
        self.difficulty = difficulty
        self.effect = _pick(rng, fault.effects)
        self.start = 3600 + int(rng.random() * 75_000)
        self.noise = noise()
        self.format = int(rng.random() * len(self.noise.line_formats))
        self.facts: defaultdict[str, dict[str, object]] = defaultdict(dict)
        self.events: list[tuple[float, str]] = []
        self.evidence: list[str] = []
        self.chain = self._chain()

    def _chain(self) -> list[str]:
        """The faulty service, its caller, that one's caller, and so on, as far as the effect is seen."""
        chain = [self.service]
        for _ in range(_between(self.rng, self.difficulty.depth)):
            callers = self.topology.callers[chain[-1]]
            if not callers:
                break
            chain.append(_pick(self.rng, callers))
        return chain

    def incident(self, fault_name: str, difficulty: str) -> Incident:
        rng = self.rng
        self._show_fault()
        self._show_effects()
        decoys = self._show_decoys()
        self._show_noise()
        trace = self._trace() if rng.random() < self.difficulty.trace else None
        self.events.sort(key=lambda event: event[0])
        flow = _pick(rng, self.topology.flows)[1 if self.lang == "zh" else 0]
        time = _clock(self.start + 20 + rng.random() * 40)[:5]
        symptom = fill(_pick(rng, self.noise.symptoms[self.effect].of(self.lang)), rng, {}, flow=flow, time=time)
        return Incident(
            id=f"{fault_name}-1",
            source=source_of(self.topology),
            service=self.service,
            incident_type=self.fault.name,
            symptom=symptom,
            logs=tuple(line for _, line in self.events),
            trace=trace,
            lang=self.lang,
            evidence=tuple(line for _, line in self.events if line in self.evidence),
            fault=fault_name,
            type_aliases=self.fault.aliases,
            difficulty=difficulty,
            upstream=tuple(self.chain[1:]),
            decoys=tuple(decoys),
        )

    def _say(self, service: str, level: str, wording: str, at: float, **given: object) -> str:
        if "{op}" in wording:
            given["op"] = _pick(self.rng, self.topology.operations)
        message = fill(wording, self.rng, self.facts[service], **given)
        # Each program keeps its own format; neighbours differ.
        forms = self.noise.line_formats
        line = forms[(self.format + len(service)) % len(forms)].format(
            time=_clock(self.start + at),
            level=level,
            lower=level.lower(),
            service=service,
            instance=len(message) % 3,
            message=message,
        )
        self.events.append((at, line))
        return line

    def _measure(self, service: str, wording: str, at: float) -> str:
        line = f"metric {service} {fill(wording, self.rng, self.facts[service])}"
        self.events.append((at, line))
        return line

    def _words(self, voice) -> tuple[str, ...]:
        if self.lang == "zh" and self.rng.random() < _ENGLISH_LINES_IN_CHINESE:
            return voice.en
        return voice.of(self.lang)

    def _show_fault(self) -> None:
        """The evidence: lines of the faulty service, or what its caller was told if its own lines are missing."""
        rng, fault = self.rng, self.fault
        count = _between(rng, self.difficulty.evidence)
        at = rng.random() * 20
        if len(self.chain) > 1 and rng.random() < self.difficulty.hidden:
            for _ in range(count):
                at += rng.random() * 15
                wording = _pick(rng, self._words(fault.remote))
                self.evidence.append(
                    self._say(self.chain[1], _pick(rng, ("ERROR", "WARN")), wording, at, callee=self.service)
                )
            return
        wordings = list(self._words(fault.own))
        rng.shuffle(wordings)
        metric = rng.random() < 0.5
        for number in range(count):
            at += rng.random() * 15
            if metric and number == count - 1:
                self.evidence.append(self._measure(self.service, _pick(rng, fault.metrics), at))
            else:
                level = _pick(rng, ("ERROR", "ERROR", "WARN", "FATAL"))
                self.evidence.append(self._say(self.service, level, wordings[number % len(wordings)], at))

    def _show_effects(self) -> None:
        rng = self.rng
        for hop in range(1, len(self.chain)):
            caller, callee = self.chain[hop], self.chain[hop - 1]
            for _ in range(1 + int(rng.random() * 2)):
                wording = _pick(rng, self._words(self.noise.callers[self.effect]))
                self._say(
                    caller, _pick(rng, ("ERROR", "WARN")), wording, 4 + hop * 3 + rng.random() * 45, callee=callee
                )
            if rng.random() < 0.35:
                self._measure(caller, self.noise.caller_metrics[self.effect], 10 + rng.random() * 50)

    def _show_decoys(self) -> list[tuple[str, str]]:
        """Lines of another theme on services off the failing path: near its wording, but normal or long over."""
        rng = self.rng
        others = [name for name in self.topology.services if name not in self.chain]
        decoys = []
        for _ in range(min(_between(rng, self.difficulty.decoys), len(others))):
            service = others.pop(int(rng.random() * len(others)))
            themes = _faults_of(self.topology.kinds[service])
            theme = _pick(rng, themes)
            if theme is self.fault:
                theme = themes[(themes.index(theme) + 1) % len(themes)]
            for _ in range(1 + int(rng.random() * 2)):
                if rng.random() < self.difficulty.echo:
                    wording = _pick(rng, self._words(self.noise.echoes)).replace(
                        "{what}", _pick(rng, self._words(theme.own))
                    )
                else:
                    wording = _pick(rng, self._words(theme.mild))
                self._say(service, _pick(rng, ("WARN", "WARN", "INFO")), wording, rng.random() * 60)
            if theme.mild_metrics and rng.random() < 0.5:
                self._measure(service, _pick(rng, theme.mild_metrics), rng.random() * 60)
            decoys.append((service, theme.name))
        return decoys

    def _show_noise(self) -> None:
        rng = self.rng
        services = self.topology.services
        # Metrics are of the whole window, so those of a service on the failing path cannot be quiet as well.
        healthy = [name for name in services if name not in self.chain]
        for _ in range(_between(rng, self.difficulty.noise)):
            if healthy and rng.random() < 0.2:
                self._measure(_pick(rng, healthy), _pick(rng, self.noise.quiet_metrics), rng.random() * 60)
            else:
                level, voice = _pick(rng, self.noise.background)
                self._say(_pick(rng, services), level, _pick(rng, self._words(voice)), rng.random() * 60)
        for _ in range(_between(rng, self.difficulty.alarms)):
            level, voice = _pick(rng, self.noise.unrelated)
            self._say(_pick(rng, services), level, _pick(rng, self._words(voice)), rng.random() * 60)

    def _trace(self) -> str:
        """Spans of one failing request from the outermost service down, with healthy calls beside the path."""
        rng = self.rng
        slow = self.effect == SLOW
        own = 2100 + int(rng.random() * 6000) if slow else 2 + int(rng.random() * 60)
        spans = []
        for hop, callee in enumerate(self.chain):
            # A span of the outermost service has no caller inside the system.
            caller = self.chain[hop + 1] if hop + 1 < len(self.chain) else "user"
            usual = 10 + int(rng.random() * 250) + 30 * hop
            status = "timeout" if slow and hop else "ok" if slow else "error" if self.effect != STALE else "ok"
            operation = _pick(rng, self.topology.operations)
            spans.append(f"span {caller} -> {callee} {operation} {own + 15 * hop} ms (usual {usual}) {status}")
        spans.reverse()
        for service in self.chain:
            healthy = [name for name in self.topology.calls.get(service, ()) if name not in self.chain]
            if healthy and rng.random() < 0.6:
                usual = 3 + int(rng.random() * 90)
                call = f"{service} -> {_pick(rng, healthy)} {_pick(rng, self.topology.operations)}"
                line = f"span {call} {usual + int(rng.random() * 9)} ms (usual {usual}) ok"
                spans.insert(1 + int(rng.random() * len(spans)), line)
        return "\n".join(spans)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{_TWO_DIGITS[whole // 3600]}:{_TWO_DIGITS[whole // 60 % 60]}:{_TWO_DIGITS[whole % 60]}"
