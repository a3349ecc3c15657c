"""A seeded stream of cases: the simulator's casts and scenes, with telemetry before, during and after."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from random import Random

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.simulator.cast import CAUSE, FAULT, NOTHING, UNTOLD, Cast, between, faults_of, make_cast, pick
from verl_aiops.incidents.simulator.clock import Clock
from verl_aiops.incidents.simulator.difficulty import DIFFICULTIES, Difficulty
from verl_aiops.incidents.simulator.generate import NEW_WORDINGS, source_of
from verl_aiops.incidents.simulator.scene import Scene
from verl_aiops.incidents.simulator.signs import signs_of
from verl_aiops.incidents.simulator.stream import Stream
from verl_aiops.incidents.simulator.topology import Topology, topologies
from verl_aiops.incidents.simulator.values import fill
from verl_aiops.investigation.case import Case, Edge, RootCause
from verl_aiops.investigation.signals import Signals
from verl_aiops.investigation.simulator.page import CasePage
from verl_aiops.investigation.simulator.traffic import Traffic

__all__ = ["CASE_DIFFICULTIES", "CaseSimulator"]

# Those of incidents, with metrics in every one of them: a case without has nothing to ask for.
CASE_DIFFICULTIES: dict[str, Difficulty] = {
    name: replace(difficulty, signs=max(difficulty.signs, (2, 3))) for name, difficulty in DIFFICULTIES.items()
}
_YEAR = 2026


@dataclass(frozen=True)
class CaseSimulator(Stream):
    """A seeded, endless stream of cases with known truth.

    Case `i` depends on the settings and (seed, i) alone. `lang`, `difficulty`, `topologies` and `wordings` as for
    incidents (`Simulator`). `several`: share of cases with two or three root causes of one alert. `no_fault`,
    `cannot_tell`: shares of such cases, None for those of the difficulty. `before`, `after`: minutes of telemetry
    before and after the alert. The size is set by `log_rate` (background lines a minute and service), `request_rate`
    (requests traced a minute) and `metrics` (series a service, beside those of the scene).

    Raises:
        IncidentError: a setting out of its range.
    """

    difficulties = CASE_DIFFICULTIES

    several: float = 0.15
    no_fault: float | None = None
    cannot_tell: float | None = None
    before: int = 30
    after: int = 10
    log_rate: float = 0.2
    request_rate: float = 1.0
    metrics: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("several", "no_fault", "cannot_tell"):
            self._check_share(name)
        for name, most in (
            ("before", 1440),
            ("after", 1440),
            ("log_rate", 1000),
            ("request_rate", 1000),
            ("metrics", 50),
        ):
            if not (name == "before") * 10 <= getattr(self, name) <= most:
                least = 10 if name == "before" else 0
                raise IncidentError(f"{name}: expected {least} to {most}, found {getattr(self, name)}")
        if (self.no_fault or 0) + (self.cannot_tell or 0) > 1:
            raise IncidentError("no_fault and cannot_tell: expected shares of 1 at most together")

    def stream(self, count: int, start: int = 0) -> Iterator[Case]:
        """Cases start .. start + count - 1."""
        return map(self.case, range(start, start + count))

    def case(self, index: int) -> Case:
        rng = Random(f"case/{self.seed}/{index}")
        lang, difficulty = self._drawn_lang(rng), self._difficulty(rng)
        topology = topologies()[pick(rng, self.topologies)]
        cast = make_cast(rng, topology, difficulty)
        clock = Clock.drawn(rng, dated=False)
        alert = datetime(_YEAR, clock.month, clock.day, tzinfo=timezone.utc).timestamp() + clock.alert
        page = CasePage(rng, topology, clock, lang, self.wordings, (-self.before, self.after), alert)
        Scene(page, cast, difficulty).write()
        # `page.silent` is settled by now: what is written from here on knows of whom nothing arrives
        self._measure(page, topology)
        self._chatter(page, topology)
        signals = Signals(
            logs=tuple(sorted(line for line in page.logs if not page.is_lost(line.service, line.time))),
            metrics=tuple(page.all_series()),
            spans=tuple(Traffic(page, cast, self.request_rate).spans()),
            events=tuple(sorted(page.notes)),
            changes=tuple(sorted(page.changes)),
        )
        causes, path = _truth(cast, alert)
        name = f"case-{topology.name}-s{self.seed}-f{index:06d}"
        return Case(
            id=name,
            source=source_of(topology) + NEW_WORDINGS * self.wordings.held_out,
            symptom=_symptom(page, cast),
            lang=lang,
            alert=alert,
            signals=signals,
            topology=tuple(Edge(caller, called) for caller, below in topology.calls.items() for called in below),
            root_causes=causes,
            propagation=path,
            no_fault=cast.verdict == NOTHING,
            cannot_tell=cast.verdict == UNTOLD,
            reasons=_reasons(topology),
            group=name,
        )

    def _difficulty(self, rng: Random) -> Difficulty:
        _, difficulty = self._drawn_difficulty(rng)
        nothing = difficulty.nothing if self.no_fault is None else self.no_fault
        untold = difficulty.untold if self.cannot_tell is None else self.cannot_tell
        roots = (2, 3) if rng.random() < self.several else difficulty.roots
        return replace(difficulty, roots=roots, nothing=nothing, untold=untold)

    def _measure(self, page: CasePage, topology: Topology) -> None:
        """Metrics of every service that are as they always are."""
        for service, kind in topology.kinds.items():
            options = list(signs_of(kind))
            page.rng.shuffle(options)
            for sign in options[: self.metrics]:
                page.series(service, sign, 0.0, None)

    def _chatter(self, page: CasePage, topology: Topology) -> None:
        """What every service writes in any quiet minute."""
        rng, minutes = page.rng, self.before + self.after
        each = int(self.log_rate * minutes)
        for service in topology.services:
            for _ in range(between(rng, (each - each // 3, each + each // 3))):
                level, voice = pick(rng, page.noise.background)
                words = page.words(voice)
                if words:
                    page.say(service, level, pick(rng, words), 60 * (rng.random() * minutes - self.before))


def _truth(cast: Cast, alert: float) -> tuple[tuple[RootCause, ...], tuple[Edge, ...]]:
    if cast.verdict != FAULT:
        return (), ()
    roots = [story for story in cast.stories if story.role == CAUSE]
    edges = dict.fromkeys(Edge(*pair) for story in roots for pair in zip(story.chain, story.chain[1:]))
    causes = (
        RootCause(story.service, story.fault.name, round(alert + story.start, 3), reason_aliases=story.fault.aliases)
        for story in roots
    )
    return tuple(causes), tuple(edges)


def _reasons(topology: Topology) -> tuple[str, ...]:
    return tuple(sorted({fault.name for kind in topology.kinds.values() for fault in faults_of(kind)}))


def _symptom(page: CasePage, cast: Cast) -> str:
    """The alert: a flow, its request, since when; in the language of those it wakes."""
    flow = cast.flow
    wordings = page.noise.symptoms[cast.effect].of(page.lang)
    wording = pick(page.rng, page.wordings.allowed(wordings) or wordings)
    name = flow.zh if page.lang == "zh" else flow.en
    return fill(wording, page.rng, {}, flow=name, op=flow.operation, time=page.clock.minute(0))
