"""Which file an incident goes to: training, validation, test, or the systems that nothing is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.sources import IncidentSource
from verl_aiops.incidents.io.writers import sibling
from verl_aiops.incidents.schema import Incident
from verl_aiops.split import split_side

__all__ = ["SIDES", "Split", "Splitter", "is_of"]

TRAIN, VAL, TEST, UNSEEN_SIDE = SIDES = ("train", "val", "test", "unseen")


@dataclass(frozen=True)
class Split:
    """How a source is divided.

    `val_share` and `test_share` of the faults go to validation and test; the test side is for one look at the end,
    never for choosing. `hold_out` names sources that go as a whole to the side `unseen`: `petshop` holds out
    `petshop/high` too. Raises IncidentError for shares that leave nothing to train on.
    """

    val_share: float = 0.1
    test_share: float = 0.0
    seed: int = 0
    hold_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, share in (("val share", self.val_share), ("test share", self.test_share)):
            if not 0 <= share < 1:
                raise IncidentError(f"{name}: expected a share from 0 to below 1, found {share}")
        if self.val_share + self.test_share >= 1:
            raise IncidentError(
                f"val share {self.val_share} and test share {self.test_share}: nothing is left to train on; expected "
                "less than 1 together"
            )

    def files(self, out: str | Path, val_out: str | Path | None) -> dict[str, str]:
        """The file of each side that there is, by side: `OUT`, and beside it `OUT.val`, `OUT.test`, `OUT.unseen`."""
        if val_out is not None and self.val_share == 0:
            raise IncidentError(
                f"{val_out}: a validation share of 0 leaves nothing for it; raise the share or drop the name"
            )
        files = {TRAIN: str(out)}  # in the order of `SIDES`
        if self.val_share > 0:
            files[VAL] = str(val_out or sibling(out, VAL))
        if self.test_share > 0:
            files[TEST] = str(sibling(out, TEST))
        if self.hold_out:
            files[UNSEEN_SIDE] = str(sibling(out, UNSEEN_SIDE))
        for side in (TEST, UNSEEN_SIDE):
            old = sibling(out, side)
            if side not in files and old.exists():
                raise IncidentError(
                    f"{old}: is of an earlier build, and this one may put its faults into {out}; give the "
                    f"same shares and sources to hold out, remove it, or choose another name"
                )
        return files


class Splitter:
    """A split applied to a source. Reads the source once more where systems are held out: a fault that reaches into
    one of them is held out in all.

    Raises IncidentError for a name that is no source of any incident.
    """

    def __init__(self, split: Split, source: IncidentSource):
        self.split = split
        self._held_out: set[str] = set()
        if split.hold_out:
            self._held_out = self._groups_held_out(source)

    def _groups_held_out(self, source: IncidentSource) -> set[str]:
        groups, sources, left = set(), set(), set(self.split.hold_out)
        for incident in source.stream():
            sources.add(incident.source)
            names = {name for name in self.split.hold_out if is_of(incident.source, (name,))}
            if names:
                left -= names
                groups.add(source.group_of(incident))
        if left:
            raise IncidentError(
                f"hold out source '{min(left)}': no incident of {source.name} is of it; there are: "
                f"{', '.join(sorted(sources))}"
            )
        return groups

    def side_of(self, incident: Incident, group: str) -> str:
        if group in self._held_out:
            return UNSEEN_SIDE
        return split_side(group, self.split.val_share, self.split.seed, self.split.test_share)


def is_of(source: str, names: Iterable[str]) -> bool:
    """Whether a source is one of these, or below one: `petshop/high` of `petshop`."""
    return any(source == name or source.startswith(f"{name}/") for name in names)
