"""A seeded stream of incidents: for each a cast is drawn, written down, and put into an `Incident`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.simulator.cast import FAULT, UNTOLD, Cast, faults_of, make_cast, pick
from verl_aiops.incidents.simulator.clock import Clock
from verl_aiops.incidents.simulator.difficulty import Difficulty
from verl_aiops.incidents.simulator.lines import Page
from verl_aiops.incidents.simulator.scene import Scene
from verl_aiops.incidents.simulator.stream import Stream
from verl_aiops.incidents.simulator.topology import Topology, topologies
from verl_aiops.incidents.simulator.trace import trace_of
from verl_aiops.incidents.simulator.values import fill
from verl_aiops.incidents.taxonomy import ABSTENTIONS, NO_FAULT, UNKNOWN, System, Taxonomy

# Ends the source of incidents in wordings that were held out; the system is that of the source without it.
NEW_WORDINGS = "/new-wordings"


@dataclass(frozen=True)
class Simulator(Stream):
    """A seeded, endless stream of incidents with known truth.

    Incident `i` depends on the settings and (seed, i) alone, so streams can be cut, continued and shared out. `lang` is
    en, zh or mix (then `zh_share` of them are Chinese); `difficulty` is easy, medium, hard, mix (one of the three for
    each incident) or a `Difficulty`; `wordings` says which wordings it may use. Service and type are `none` where
    nothing is wrong, `unknown` where the data do not tell what is.

    Raises:
        IncidentError: a setting out of its range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.difficulty, Difficulty) and self.difficulty.roots != (1, 1):
            raise IncidentError("difficulty roots: an incident has one cause; expected (1, 1), or write cases instead")

    def stream(self, count: int, start: int = 0) -> Iterator[Incident]:
        """Incidents start .. start + count - 1."""
        return map(self.incident, range(start, start + count))

    def incident(self, index: int) -> Incident:
        rng = Random(f"incident/{self.seed}/{index}")
        lang = self._drawn_lang(rng)
        name, difficulty = self._drawn_difficulty(rng)
        topology = topologies()[pick(rng, self.topologies)]
        cast = make_cast(rng, topology, difficulty)
        clock = Clock.drawn(rng, dated=difficulty.rivals[1] > 0)
        page = Page(rng, topology, clock, lang, self.wordings)
        scene = Scene(page, cast, difficulty)
        scene.write()
        trace = trace_of(rng, topology, cast, clock) if rng.random() < difficulty.trace else None
        page.events.sort(key=_time)
        fault = f"sim-{topology.name}-s{self.seed}-f{index:06d}"
        service, incident_type, aliases = _answer(cast)
        upstream = scene.cause.chain[1:] if scene.cause else ()
        right = (service, *upstream)
        return Incident(
            id=f"{fault}-1",
            source=source_of(topology) + NEW_WORDINGS * self.wordings.held_out,
            service=service,
            incident_type=incident_type,
            symptom=_symptom(page, cast),
            logs=tuple(line for _, line in page.events),
            trace=trace or None,
            lang=lang,
            evidence=tuple(dict.fromkeys(scene.evidence)),
            fault=fault,
            type_aliases=aliases,
            difficulty=name,
            upstream=upstream,
            decoys=tuple(
                decoy for decoy in dict.fromkeys(scene.decoys) if decoy[0] not in right and decoy[1] != incident_type
            ),
        )


def simulator_taxonomy() -> Taxonomy:
    """The services and incident types of every simulated system, under its source name (`simulator/<topology>`)."""
    systems = {}
    for topology in topologies().values():
        types = {fault.name for kind in topology.kinds.values() for fault in faults_of(kind)}
        systems[source_of(topology)] = System(
            tuple(sorted((*topology.services, *ABSTENTIONS))), tuple(sorted((*types, *ABSTENTIONS)))
        )
    return Taxonomy(systems)


def source_of(topology: Topology) -> str:
    return f"simulator/{topology.name}"


def _time(event: tuple[float, str]) -> float:
    return event[0]


def _answer(cast: Cast) -> tuple[str, str, tuple[str, ...]]:
    """Service, incident type, and other names of the type."""
    if cast.verdict != FAULT:
        name = UNKNOWN if cast.verdict == UNTOLD else NO_FAULT
        return name, name, ()
    cause = cast.stories[0]
    return cause.service, cause.fault.name, cause.fault.aliases


def _symptom(page: Page, cast: Cast) -> str:
    """The alert: a flow, its request, since when."""
    flow = cast.flow
    # Alerts are in the language of those they wake, whatever the programs log in.
    wordings = page.noise.symptoms[cast.effect].of(page.lang)
    wording = pick(page.rng, page.wordings.allowed(wordings) or wordings)
    name = flow.zh if page.lang == "zh" else flow.en
    return fill(wording, page.rng, {}, flow=name, op=flow.operation, time=page.clock.minute(0))
