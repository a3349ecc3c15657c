"""The metrics of services as series, one value a minute: data/signs.yaml, and how a series is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from verl_aiops.incidents.io.yaml_file import Entry, read_yaml
from verl_aiops.incidents.simulator.topology import KINDS
from verl_aiops.incidents.simulator.values import DATA, bounds

# Values of a series, a minute apart.
SAMPLES = 8
MINUTE = 60
# Stands among the kinds of services for metrics of a whole flow.
FLOW = "flow"


@dataclass(frozen=True)
class Sign:
    """A metric: where its usual range lies, and where a value lies that has moved out of it: so many times its end, or
    between the two of `full`."""

    name: str
    kinds: tuple[str, ...]
    low: tuple[float, float]
    width: tuple[float, float]
    moved: tuple[float, float] = (1, 1)
    full: tuple[float, float] | None = None
    falls: bool = False

    def series(self, rng: Random, moved: range | None, *, high: bool = False) -> str:
        """`v v v ... (usual low-high)`: the samples in `moved` outside the usual range, the others in it.

        With `high` the others keep to the end of the range from which the fault would move them.
        """
        values, low, top = self.values(rng, SAMPLES, moved, high=high)
        return f"{' '.join(map(str, values))} (usual {low}-{top})"

    def values(self, rng: Random, count: int, moved: range | None, *, high: bool = False) -> tuple[list[int], int, int]:
        """`count` samples as in `series`, and the two ends of the usual range."""
        draw = rng.random
        low = int(self.low[0] + draw() * (self.low[1] - self.low[0]))
        top = low + max(1, int(self.width[0] + draw() * (self.width[1] - self.width[0])))
        span = top - low + 1
        first = low
        if high:
            span = max(2, (span + 2) // 3)
            first = low if self.falls else top - span + 1
        values = [first + int(draw() * span) for _ in range(count)]
        if moved:
            if self.full is not None:
                least, most = self.full
            else:
                # Samples of one fault lie near each other; where the usual range ends at 0 or 1, a multiple of it would
                # say nothing.
                end = low if self.falls else max(top, 2)
                factor = self.moved[0] + draw() * 0.7 * (self.moved[1] - self.moved[0])
                least, most = end * factor, end * (factor + 0.3 * (self.moved[1] - self.moved[0]))
            for index in moved:
                values[index] = int(least + draw() * (most - least + 1))
        return values, low, top


@cache
def signs() -> dict[str, Sign]:
    """All metrics by name, as data/signs.yaml has them."""
    return {name: _sign(name, entry) for name, entry in read_yaml(DATA / "signs.yaml").items()}


@cache
def signs_of(kind: str) -> tuple[Sign, ...]:
    """The metrics that services of a kind have."""
    return tuple(sign for sign in signs().values() if kind in sign.kinds)


def _sign(name: str, entry: Entry) -> Sign:
    fields = entry.fields(("kinds", "low", "width"), ("moved", "full", "falls"))
    if fields["moved"].absent() == fields["full"].absent():
        raise entry.fail("moved or full, one of the two", "say where values lie under a fault")
    return Sign(
        Entry(name, entry.file, entry.key).label(),
        tuple(kind.choice(*KINDS, FLOW) for kind in fields["kinds"].list()),
        low=bounds(fields["low"]),
        width=bounds(fields["width"]),
        moved=(1, 1) if fields["moved"].absent() else bounds(fields["moved"]),
        full=None if fields["full"].absent() else bounds(fields["full"]),
        falls=not fields["falls"].absent() and fields["falls"].flag(),
    )
