"""What stands in an incident beside its stories: lines that say that all is well, background, changes, silence."""

from __future__ import annotations

from verl_aiops.incidents.simulator.cast import Cast, between, faults_of, pick
from verl_aiops.incidents.simulator.difficulty import Difficulty
from verl_aiops.incidents.simulator.faults import CHANGES
from verl_aiops.incidents.simulator.lines import Page
from verl_aiops.incidents.simulator.signs import signs_of


class Surroundings:
    """Writes onto the page of an incident's stories. `silent` are the services of which nothing arrives."""

    def __init__(self, page: Page, cast: Cast, difficulty: Difficulty):
        self.page, self.cast, self.difficulty, self.rng = page, cast, difficulty, page.rng
        self.busy = {name for story in cast.stories for name in (*story.chain, story.flooded) if name}
        self.silent: set[str] = set()
        self.measured = difficulty.signs != (0, 0)

    def gap(self, service: str, since: float) -> str:
        """The platform's word that nothing arrives from a service."""
        page = self.page
        self.silent.add(service)
        line = page.note(
            "collector", page.noise.gaps, since + 60 + self.rng.random() * 120, service, since=page.clock.minute(since)
        )
        return line or ""

    def write_decoys(self) -> list[tuple[str, str]]:
        """Lines of another theme that say that all is well, on services off every path; they are returned with it."""
        rng, page = self.rng, self.page
        decoys: list[tuple[str, str]] = []
        others = [name for name in page.topology.services if name not in self.busy | self.silent]
        for _ in range(min(between(rng, self.difficulty.decoys), len(others))):
            service = others.pop(int(rng.random() * len(others)))
            theme = pick(rng, faults_of(page.topology.kinds[service]))
            for _ in range(1 + int(rng.random() * 2)):
                words = page.words(theme.mild)
                if words:
                    page.say(service, pick(rng, ("WARN", "WARN", "INFO")), pick(rng, words), rng.random() * 60)
            if theme.mild_metrics and not self.measured and rng.random() < 0.5:
                page.measure(service, pick(rng, theme.mild_metrics), rng.random() * 60)
            decoys.append((service, theme.name))
        return decoys

    def write_noise(self) -> None:
        rng, page = self.rng, self.page
        # What is measured of a service on a failing path cannot be quiet as well.
        healthy = [name for name in page.topology.services if name not in self.busy | self.silent]
        off = [name for name in healthy if name not in self.cast.flow.through]
        if off and self.difficulty.changes[1] and rng.random() < 0.2:
            healthy.remove(off[-1])
            self.gap(off.pop(), -60 - rng.random() * 400)
        services = [name for name in page.topology.services if name not in self.silent]
        for _ in range(between(rng, self.difficulty.noise)):
            if healthy and rng.random() < 0.2:
                self._quiet(pick(rng, healthy))
            else:
                self._chatter(page.noise.background, services)
        for _ in range(between(rng, self.difficulty.alarms)):
            self._chatter(page.noise.unrelated, services)
        for _ in range(between(rng, self.difficulty.changes)):
            service = pick(rng, [*(story.service for story in self.cast.stories), pick(rng, services)])
            at = -1500 - rng.random() * 6000 if rng.random() < 0.6 else 30 + rng.random() * 90
            page.change(service, pick(rng, CHANGES), at)
        if len(off) > 1 and self.difficulty.changes[1] and rng.random() < 0.15:
            page.note("node", page.noise.placements, -3600 * (1 + rng.random()), off[0], other=off[-1])

    def _quiet(self, service: str) -> None:
        rng, page = self.rng, self.page
        if not self.measured:
            page.measure(service, pick(rng, page.noise.quiet_metrics), rng.random() * 60)
        else:
            page.series(service, pick(rng, signs_of(page.topology.kinds[service])), -90.0, None, high=True)

    def _chatter(self, lines, services) -> None:
        rng, page = self.rng, self.page
        level, voice = pick(rng, lines)
        words = page.words(voice)
        if words:
            at = rng.random() * 60 if not self.measured else -200 + rng.random() * 400
            page.say(pick(rng, services), level, pick(rng, words), at)
