"""Writing one incident: what every story of its cast leaves in logs, metrics and changes, and the noise around them."""

from __future__ import annotations

from functools import cache

from verl_aiops.incidents.simulator.cast import (
    BORDER,
    CAUSE,
    LATE,
    NEIGHBOUR,
    NOTHING,
    OVER,
    UNTOLD,
    YESTERDAY,
    Cast,
    Story,
    between,
    faults_of,
    pick,
)
from verl_aiops.incidents.simulator.difficulty import Difficulty
from verl_aiops.incidents.simulator.faults import Fault, looks
from verl_aiops.incidents.simulator.lines import LEVELS, Page
from verl_aiops.incidents.simulator.signs import signs, signs_of
from verl_aiops.incidents.simulator.surroundings import Surroundings
from verl_aiops.incidents.simulator.topology import Flow

# How often a caller that suffers shows it in lines of its own, and in a metric.
_CALLER_SUFFERS = 0.35
_CALLER_MOVES = 0.3
# How often a flow's first service complains without knowing of whom.
_BLIND = 0.3


class Scene:
    """Writes a cast onto a page. Afterwards `evidence` has the lines that together prove the verdict, the most telling
    first, and `decoys` the (service, incident type) pairs that the page hints at though they are wrong."""

    def __init__(self, page: Page, cast: Cast, difficulty: Difficulty):
        self.page, self.cast, self.difficulty, self.rng = page, cast, difficulty, page.rng
        self.evidence: list[str] = []
        self.decoys: list[tuple[str, str]] = []
        self.cause = cast.stories[0] if cast.stories and cast.stories[0].role == CAUSE else None
        self.around = Surroundings(page, cast, difficulty)
        self.entry = page.topology.entries[cast.flow.operation]

    def write(self) -> None:
        """All lines, in no order yet."""
        if self.cause is None:
            self._alert_without_cause()
        for story in self.cast.stories:
            self._tell(story)
        self.decoys += self.around.write_decoys()
        self.around.write_noise()

    @property
    def measured(self) -> bool:
        return self.difficulty.signs != (0, 0)

    # -- a story

    def _tell(self, story: Story) -> None:
        own = self._own_lines(story)
        moved = self._own_metrics(story)
        complaints = self._complaints(story, bool(own))
        self._callers_suffer(story)
        if story.flooded:
            self._flood(story, story.flooded)
        changes = self._changes(story)
        if self.measured and (story.role == CAUSE or self.rng.random() < 0.6):
            self._flow_metric(story)
            if self.rng.random() < _BLIND and story.role != BORDER:
                self._blind(story.flow, story.effect, story.start)
        if story.role == NEIGHBOUR and self.cause:
            both = [self.cause.service, story.service]
            self.rng.shuffle(both)
            at = -3600 * (1 + self.rng.random())
            self.page.note("node", self.page.noise.placements, at, both[0], other=both[1])
        if story.role != CAUSE:
            self.decoys.append((story.service, story.fault.name))
            return
        self.evidence += own or complaints
        self.evidence += moved + changes
        # The link between the alert's request and the faulty service.
        self.evidence += [line for line in complaints[:1] if own and self.measured]

    def _own_lines(self, story: Story) -> list[str]:
        rng, page = self.rng, self.page
        if len(story.chain) > 1 and rng.random() < self.difficulty.hidden:
            return []
        wordings = self._own_wordings(story)
        lines = []
        at = story.start + rng.random() * 15
        for number in range(between(rng, self.difficulty.evidence) + (story.role == BORDER)):
            when = self._long_before(number) if story.role == BORDER else at
            wording = wordings[number % len(wordings)]
            lines.append(page.say(story.service, pick(rng, LEVELS), wording, when, story.flow.operation))
            at = min(at + 5 + rng.random() * 60, story.end)
        return lines

    def _own_wordings(self, story: Story) -> list[str]:
        page = self.page
        if story.specific:
            wordings = list(page.need(story.fault.own))
        else:
            wordings = [wording for name in story.fault.looks for wording in page.need(looks()[name])]
        self.rng.shuffle(wordings)
        # Who is not heard of by a caller has to say itself which request it is about.
        if len(story.chain) == 1:
            wordings.sort(key=lambda wording: "{op}" not in wording)
        return wordings

    def _long_before(self, number: int) -> float:
        """Complaints that never stop: the first of them is old, the last of now."""
        return -600 - self.rng.random() * 3000 if number == 0 else -90 + self.rng.random() * 240

    def _own_metrics(self, story: Story) -> list[str]:
        rng, page, fault = self.rng, self.page, story.fault
        if not (self.measured and fault.moves):
            # Such a line has no time, so that of an earlier fault would speak of now.
            if rng.random() < 0.5 and (story.role == CAUSE or not self.measured):
                return [page.measure(story.service, pick(rng, fault.metrics), story.start + rng.random() * 60)]
            return []
        count = max(between(rng, self.difficulty.signs), len(fault.moves))
        names = [*fault.moves, *self._still(story, count - len(fault.moves))]
        rng.shuffle(names)
        lines = []
        for name in names:
            moved = None if story.role == BORDER or name not in fault.moves else (story.start, story.end)
            line = page.series(story.service, signs()[name], story.start, moved, high=name in fault.moves)
            lines += [line] if line and moved else []
        return lines

    def _still(self, story: Story, count: int) -> list[str]:
        """Metrics that the fault does not move: rather those that would speak for a similar one."""
        near, others = _still_metrics(story.fault, self.page.topology.kinds[story.service])
        names: list[str] = []
        for _ in range(count):
            pool = near if near and self.rng.random() < 0.7 else others
            name = pick(self.rng, pool) if pool else None
            if name and name not in names:
                names.append(name)
        return names

    def _complaints(self, story: Story, heard: bool) -> list[str]:
        """What callers say; those about the faulty service itself are returned."""
        rng, page, chain = self.rng, self.page, story.chain
        passed_on = story.specific and not heard
        about: list[str] = []
        for hop in range(1, len(chain)):
            # The nearest is always heard, so that the request can be followed down to the fault.
            count = 2 if hop == 1 and (passed_on or rng.random() < 0.33) else 1
            for number in range(count):
                at = story.start + 4 + hop * 3 + rng.random() * 40 + number * (60 + rng.random() * 90)
                if story.role == BORDER:
                    at = self._long_before(number)
                words = page.need(page.noise.callers[story.effect])
                # What was passed on need not say which request it is about, the other line does.
                if hop == 1 and passed_on and number == 0:
                    words = page.words(story.fault.remote) or words
                line = page.say(
                    *(chain[hop], pick(rng, LEVELS), pick(rng, words), min(at, story.end)),
                    *(story.flow.operation,),
                    callee=chain[hop - 1],
                )
                about += [line] if hop == 1 else []
        return about

    def _callers_suffer(self, story: Story) -> None:
        rng, page = self.rng, self.page
        suffering = page.noise.suffering[story.effect]
        if story.role == BORDER:
            return
        for hop, caller in enumerate(story.chain[1:], 1):
            # On the alert's own path, who suffers from a rival would look like who suffers from the cause.
            if story.role != CAUSE and caller in self.cast.flow.through:
                continue
            since = story.start + 8 + hop * (8 + rng.random() * 10)
            if rng.random() < _CALLER_SUFFERS and self.measured:
                wording = pick(rng, page.need(pick(rng, suffering.looks)))
                at = since + rng.random() * 60
                page.say(caller, pick(rng, LEVELS), wording, at, story.flow.operation)
            if rng.random() < _CALLER_MOVES:
                sign = pick(rng, suffering.moves)
                if not self.measured:
                    page.measure(caller, page.noise.caller_metrics[story.effect], since + rng.random() * 40)
                elif page.topology.kinds[caller] in sign.kinds:
                    page.series(caller, sign, story.start, (since, story.end))

    def _flood(self, story: Story, below: str) -> None:
        """Retries and repeated calls make the service below look ill, but later."""
        rng, page = self.rng, self.page
        since = story.start + 75 + rng.random() * 30
        flooded = page.noise.flooded
        for _ in range(between(rng, (1, 2))):
            wording = pick(rng, page.need(pick(rng, flooded.looks)))
            page.say(below, pick(rng, LEVELS), wording, since + rng.random() * 60, story.flow.operation)
        words = page.need(page.noise.callers["slow"])
        at = since + 5 + rng.random() * 60
        page.say(story.service, pick(rng, LEVELS), pick(rng, words), at, story.flow.operation, callee=below)
        if self.measured:
            for sign in flooded.moves:
                page.series(below, sign, story.start, (since, max(story.end, since + 180)))
        near = [fault.name for fault in faults_of(page.topology.kinds[below]) if "p99_ms" in fault.moves]
        if near:
            self.decoys.append((below, pick(rng, near)))

    def _changes(self, story: Story) -> list[str]:
        """What brought the fault about, where something did, and a release that may have."""
        rng, page = self.rng, self.page
        if not self.measured:
            return []
        if story.fault.after and story.role != BORDER:
            line = page.change(story.service, story.fault.after, story.start - 12 - rng.random() * 40)
            return [line] if line else []
        if self.difficulty.changes[1] and rng.random() < 0.25:
            page.change(story.service, "release", story.start - 15 - rng.random() * 60)
        return []

    def _flow_metric(self, story: Story) -> str | None:
        """How the flow itself did, measured where its requests come in."""
        present = story.role in (LATE, BORDER) and story.flow is self.cast.flow
        sign = self.page.noise.suffering[story.effect].flow
        if present or sign is None:
            return None
        subject = f"{self.page.topology.entries[story.flow.operation]} {story.flow.operation}"
        moved = None if story.role == BORDER else (story.start + 20, story.end)
        return self.page.series(subject, sign, story.start, moved)

    # -- no story explains the alert

    def _alert_without_cause(self) -> None:
        """Nothing is wrong: the flow's own figures never left normal. It cannot be told: they did, and no service of
        the flow has anything to show, since what they write does not arrive."""
        rng, page, cast = self.rng, self.page, self.cast
        sign = page.noise.suffering[cast.effect].flow
        subject, operation = f"{self.entry} {cast.flow.operation}", cast.flow.operation
        start = -60 - 90 * rng.random()
        if sign is not None:
            moved = (start + 20, start + 700) if cast.verdict == UNTOLD else None
            line = page.series(subject, sign, start, moved, high=True)
            self.evidence += [line] if line else []
        if cast.verdict == NOTHING:
            self.evidence.append(page.say(self.entry, "INFO", f"{operation} 200 in {{ok_ms}} ms rid {{rid}}", 20.0))
            return
        for _ in range(2):
            self.evidence.append(self._blind(cast.flow, cast.effect, start))
        # What still arrives of a service now would belie its silence.
        heard = {name for story in cast.stories if story.role not in (OVER, YESTERDAY) for name in story.chain}
        below = [name for name in page.topology.services if name in cast.flow.through and name != self.entry]
        rng.shuffle(below)
        below.sort(key=heard.__contains__)
        for name in below[: 3 if len(below) > 3 else 2]:
            self.evidence.append(self.around.gap(name, start - 60 - rng.random() * 240))

    def _blind(self, flow: Flow, effect: str, start: float) -> str:
        """The first service of a flow does not see who below it fails."""
        rng, page = self.rng, self.page
        words = page.need(page.noise.blind[effect])
        at = start + 10 + rng.random() * 200
        entry = page.topology.entries[flow.operation]
        return page.say(entry, pick(rng, LEVELS), pick(rng, words), at, flow.operation)


@cache
def _still_metrics(fault: Fault, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the metrics of a kind that a fault does not move: those that similar faults move, and all of them."""
    own = {sign.name for sign in signs_of(kind)} - set(fault.moves)
    similar = [other for other in faults_of(kind) if set(other.moves) & set(fault.moves)]
    near = {name for other in similar for name in other.moves} & own
    return tuple(sorted(near)), tuple(sorted(own))
