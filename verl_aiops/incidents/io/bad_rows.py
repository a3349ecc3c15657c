"""All that keeps a file from being read, told at once: the first row of every kind of fault, and how many are alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.shown import one_line

__all__ = ["BadRows"]

_KINDS_SHOWN, _PLACES_SHOWN = 20, 3
# what a message says of this row alone: the value found, quoted text, numbers
_FOUND = re.compile(r"found .*; ", re.DOTALL)
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_FIELD = re.compile(r"field '[^']*'")


@dataclass
class _Kind:
    first: str
    count: int = 0
    places: list[str] = field(default_factory=list)


class BadRows:
    """Collects faults of rows. Memory does not grow with their number: of each kind the first is kept."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._last = ""
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, place: str, error: Exception | str, kind: str | None = None, rows: int = 1) -> None:
        """A fault of the row at `place`; those of an equal `kind` (default: told by the message) are shown once.

        `rows`: how many rows have it, of which this is the first.
        """
        if place != self._last or not self.rows:
            self.rows += rows
        self._last = place
        message = str(error)
        entry = self._kinds.setdefault(_kind(message) if kind is None else kind, _Kind(f"{place}: {message}"))
        entry.count += rows
        if rows == 1 and 1 < entry.count <= _PLACES_SHOWN + 1:
            entry.places.append(place)

    def error(self, name: str, of: int) -> IncidentError:
        """One message for all faults of the file `name`, which has `of` rows."""
        kinds = list(self._kinds.values())
        if len(kinds) == 1:
            return IncidentError(f"{name}, {_told(kinds[0])}")
        more = len(kinds) - _KINDS_SHOWN
        lines = [_told(kind) for kind in kinds[:_KINDS_SHOWN]] + [f"... and {more:,} kinds more"] * (more > 0)
        head = (
            f"{name}: {len(kinds):,} kinds of faults in {self.rows:,} of {of:,} rows; mend them all, and read it again:"
        )
        return IncidentError("\n  ".join([head, *lines]))


def _told(kind: _Kind) -> str:
    if kind.count == 1:
        return kind.first
    more = kind.count - 1
    places = ", ".join(one_line(place, 60) for place in kind.places) + ", ..." * (more > len(kind.places) > 0)
    return f"{kind.first} ({more:,} more like it{': ' if places else ''}{places})"


def _kind(message: str) -> str:
    where = _FIELD.match(message)
    return f"{where.group() if where else ''}{_OWN.sub('', _FOUND.sub('', message))}"
