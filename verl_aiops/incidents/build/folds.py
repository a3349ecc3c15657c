"""In which fold of the training side a fault is."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from verl_aiops.incidents.errors import IncidentError


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
