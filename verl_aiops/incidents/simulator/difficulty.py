"""How hard simulated incidents are."""

from __future__ import annotations

from dataclasses import dataclass

from verl_aiops.incidents.errors import IncidentError


@dataclass(frozen=True)
class Difficulty:
    """How hard incidents are; pairs are inclusive ranges.

    `noise`: background lines. `decoys`: red-herring services with lines of another theme. `echo`: how
    often such a line is a real fault's wording from a drill or a closed case. `alarms`: alarming lines that
    mean nothing. `depth`: calls between the fault and the outermost service that shows it. `evidence`: lines that show
    the fault. `hidden`: share of incidents in which the faulty service's own lines are missing and a caller has to be
    believed. `trace`: share with a trace.
    """

    noise: tuple[int, int] = (4, 8)
    decoys: tuple[int, int] = (1, 2)
    alarms: tuple[int, int] = (0, 2)
    depth: tuple[int, int] = (1, 3)
    evidence: tuple[int, int] = (2, 3)
    echo: float = 0.4
    hidden: float = 0.15
    trace: float = 0.7

    def __post_init__(self) -> None:
        for name in ("noise", "decoys", "alarms", "depth", "evidence"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "evidence" and low < 1):
                raise IncidentError(
                    f"difficulty {name}: expected a range like (1, 3) with low <= high, found ({low}, {high})"
                )
        for name in ("echo", "hidden", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise IncidentError(f"difficulty {name}: expected a share from 0 to 1, found {getattr(self, name)}")


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(
        noise=(1, 3), decoys=(0, 1), alarms=(0, 0), depth=(0, 2), evidence=(2, 3), echo=0.0, hidden=0.0, trace=0.5
    ),
    "medium": Difficulty(),
    "hard": Difficulty(
        noise=(10, 18), decoys=(2, 4), alarms=(2, 4), depth=(2, 4), evidence=(1, 2), echo=0.6, hidden=0.35, trace=0.8
    ),
}
