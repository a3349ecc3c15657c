"""Reading one field of a case strictly: each reader returns the value, or raises with the key and how to mend it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import check_label, check_text, fail, found

__all__ = ["Fields", "label", "number", "points", "text", "texts", "time_of", "truth", "unique"]

# 1900 and 2200 in seconds since 1970: what lies beyond is in milliseconds or nanoseconds, or no time at all
_FIRST, _LAST = -2_208_988_800.0, 7_258_118_400.0


class Fields:
    """The object under one key of a record. Reads each field once; what nobody read is counted by its place."""

    def __init__(self, key: str, value: Any, unknown: Counter[str]):
        if not isinstance(value, Mapping):
            raise fail(key, f"an object, found {found(value)}", 'write it as {"name": value}')
        self.key, self.row, self.unknown = key, value, unknown
        self._read: set[str] = set()

    def get(self, name: str, read: Callable[[str, Any], Any], default: Any = None, *, needed: bool = False) -> Any:
        """The field through `read(key, value)`; `default` where it is missing or null."""
        self._read.add(name)
        value = self.row.get(name)
        key = f"{self.key}.{name}" if self.key else name
        if value is None:
            if needed:
                raise fail(key, "this field, found none", "fill it in or leave the record out")
            return default
        return read(key, value)

    def many(self, name: str, read: Callable[[Fields], Any]) -> tuple:
        """A list of objects, each through `read`."""
        self._read.add(name)
        rows = self.row.get(name)
        key = f"{self.key}.{name}" if self.key else name
        if rows is None:
            return ()
        if not isinstance(rows, list):
            raise fail(key, f"a list of objects, found {found(rows)}", 'write it as [{"name": value}, ...]')
        return tuple(self._each(f"{key}[{at}]", row, read) for at, row in enumerate(rows))

    def _each(self, key: str, row: Any, read: Callable[[Fields], Any]) -> Any:
        fields = Fields(key, row, self.unknown)
        value = read(fields)
        fields.close()
        return value

    def close(self) -> None:
        """Counts the fields that nothing has read, by their place without numbers of rows (`signals.logs.pod`)."""
        for name in self.row:
            if name not in self._read:
                place = "".join(part.partition("]")[2] for part in f"]{self.key}".split("["))
                self.unknown[f"{place}.{name}" if place else str(name)] += 1


def label(key: str, value: Any) -> str:
    """A name: one short clean line."""
    check_label(key, value)
    return value


def text(key: str, value: Any) -> str:
    """Any text; it may be empty."""
    check_text(key, value, empty_ok=True)
    return value


def texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of names."""
    if not isinstance(value, list):
        raise fail(key, f"a list of names, found {found(value)}", 'write it as ["first", "second"]')
    return tuple(label(f"{key}[{at}]", item) for at, item in enumerate(value))


def truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise fail(key, f"true or false, found {found(value)}", "write it without quotes")
    return value


def number(key: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise fail(key, f"a finite number, found {found(value)}", "leave out what was not measured")
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def time_of(key: str, value: Any) -> float:
    """Seconds since 1970 in UTC: given so, or as ISO 8601 (`2026-11-30T14:03:22Z`; without a zone it is UTC)."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip().replace("Z", "+00:00").replace("z", "+00:00"))
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
        except (ValueError, OverflowError):
            raise fail(key, f"a time such as 2026-11-30T14:03:22Z, found {found(value)}", "write it so") from None
    else:
        seconds = number(key, value)
    if not _FIRST < seconds < _LAST:
        mend = "divide milliseconds by 1e3, nanoseconds by 1e9"
        raise fail(key, f"seconds since 1970, found {found(value)}", mend)
    return seconds


def points(key: str, value: Any) -> tuple[tuple[float, float], ...]:
    """`[[time, value], ...]`, sorted by time."""
    if not isinstance(value, list):
        raise fail(key, f"a list of [time, value], found {found(value)}", "write it as [[1764511402, 0.5], ...]")
    if all(map(_is_point, value)):  # no key is spelt out for each of thousands
        return tuple(sorted((float(time), float(amount)) for time, amount in value))
    pairs = []
    for at, point in enumerate(value):
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise fail(f"{key}[{at}]", f"a pair [time, value], found {found(point)}", "write two numbers")
        pairs.append((time_of(f"{key}[{at}][0]", point[0]), number(f"{key}[{at}][1]", point[1])))
    return tuple(sorted(pairs))


def _is_point(point: Any) -> bool:
    if type(point) is not list or len(point) != 2:
        return False
    time, amount = point
    plain = type(time) in (int, float) and type(amount) in (int, float)
    return plain and _FIRST < time < _LAST and _finite(amount)


def unique(key: str, names: Iterable[str]) -> None:
    """Raises where a name is there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise IncidentError(f"field '{key}': '{twice[0]}' is there twice; keep one")
