"""How hard simulated incidents are."""

from __future__ import annotations

from dataclasses import dataclass

from verl_aiops.incidents.errors import IncidentError

_RANGES = ("noise", "decoys", "rivals", "alarms", "depth", "evidence", "signs", "changes", "roots")
_SHARES = ("echo", "hidden", "trace", "specific", "nothing", "untold", "flood")


@dataclass(frozen=True)
class Difficulty:
    """How hard incidents are; pairs are inclusive ranges.

    What has to be told apart. `rivals`: other faults of the same making that the alert is not about: they struck
    another flow, were over before it, began after it, or never left normal. `echo`: share of them from another time
    (earlier, yesterday). `decoys`: services with lines of another theme that say that all is well. `alarms`: alarming
    lines that mean nothing. `noise`: background lines. `flood`: share of faults that flood a service below with
    requests, which then looks ill too. `nothing`, `untold`: shares of incidents in which nothing is wrong, and in which
    it cannot be told what is (their answers are `none` and `unknown`). `roots`: causes of the alert; an incident has
    one, a case may have several.

    What there is to go by. `depth`: calls between the fault and the outermost service that shows it. `evidence`: log
    lines of the faulty service. `hidden`: share of incidents in which these are missing and a caller has to be
    believed. `signs`: metric series of a service in trouble; those that its fault moves are always there, unless this
    is (0, 0). `specific`: share of faults told by wordings of their type alone, where the others share theirs with
    other types. `changes`: releases, settings and drills at innocent times. `trace`: share with a trace.

    Each rival costs about 800 characters, a line of any kind about 80: `rivals`, `signs` and `noise` set the size.
    """

    noise: tuple[int, int] = (1, 3)
    decoys: tuple[int, int] = (1, 1)
    alarms: tuple[int, int] = (0, 1)
    depth: tuple[int, int] = (1, 3)
    evidence: tuple[int, int] = (1, 2)
    echo: float = 0.4
    hidden: float = 0.15
    trace: float = 0.7
    rivals: tuple[int, int] = (1, 1)
    signs: tuple[int, int] = (2, 3)
    changes: tuple[int, int] = (0, 2)
    specific: float = 0.5
    flood: float = 0.1
    nothing: float = 0.04
    untold: float = 0.04
    roots: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name in _RANGES:
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name in ("evidence", "roots") and low < 1):
                raise IncidentError(
                    f"difficulty {name}: expected a range like (1, 3) with low <= high, found ({low}, {high})"
                )
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise IncidentError(f"difficulty {name}: expected a share from 0 to 1, found {getattr(self, name)}")
        if self.nothing + self.untold > 1:
            raise IncidentError(
                f"difficulty nothing and untold: expected shares of 1 at most together, found {self.nothing} and "
                f"{self.untold}"
            )


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(
        noise=(1, 3),
        decoys=(0, 1),
        alarms=(0, 0),
        depth=(0, 2),
        evidence=(2, 3),
        echo=0.0,
        hidden=0.0,
        trace=0.5,
        rivals=(0, 0),
        signs=(0, 0),
        changes=(0, 0),
        specific=1.0,
        flood=0.0,
        nothing=0.0,
        untold=0.0,
    ),
    "medium": Difficulty(),
    "hard": Difficulty(
        noise=(2, 5),
        decoys=(0, 1),
        alarms=(1, 2),
        depth=(1, 3),
        evidence=(1, 2),
        echo=0.6,
        hidden=0.25,
        trace=0.8,
        rivals=(3, 4),
        signs=(2, 3),
        changes=(2, 4),
        specific=0.0,
        flood=0.2,
        nothing=0.06,
        untold=0.06,
    ),
}
