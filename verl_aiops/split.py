"""Which side of a train/validation split a fault is on, and in which fold of the training side."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from verl_aiops.incidents.errors import IncidentError


def split_side(group: str, val_share: float, seed: int = 0) -> str:
    """`"val"` for about `val_share` of all groups, else `"train"`; depends on the three arguments alone.

    So every file built from the same incidents with the same seed and share (pairs, SFT, RL) has the same split, and
    a stream needs no memory of what came before.
    """
    digest = blake2b(f"{seed}\0{group}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_share * 2**64 else "train"


@dataclass(frozen=True)
class Fold:
    """Fold `number` (from 0) of `of` folds of the training side, for cross-fitting: a model that was trained on all
    other folds answers the incidents of this one.

    Membership depends on group, `of` and `seed` alone, so every file built with the same three agrees. Raises
    IncidentError for numbers that make no fold.
    """

    number: int
    of: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of < 2:
            raise IncidentError(f"folds: expected 2 or more, found {self.of}")
        if not 0 <= self.number < self.of:
            raise IncidentError(
                f"fold: expected a number from 0 to {self.of - 1} with {self.of} folds, found {self.number}"
            )

    def holds(self, group: str) -> bool:
        digest = blake2b(f"fold/{self.seed}\0{group}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.of == self.number
