"""Files of others, read row by row: JSON lines or whole JSON, CSV; every fault names file and row."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.files import leads_out
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.safety import neutralise
from verl_aiops.inputs.json_text import JsonFault, read_json, read_json_file
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import refusal
from verl_aiops.investigation.fields import time_of

__all__ = [
    "finite",
    "inside",
    "json_values",
    "name_of",
    "nanoseconds",
    "read_csv",
    "section",
    "text_of",
    "when",
    "whole_json",
]


def inside(root: Path, name: str) -> Path:
    """A path in the folder `root`; raises IncidentError where it leads out of it."""
    path = root / name
    if leads_out(path, root):
        raise IncidentError(f"{one_line(path)}: leads out of {one_line(root)}; copy it in there")
    return path


def whole_json(path: Path) -> Any:
    """The value of a JSON file. Raises IncidentError with the file."""
    try:
        return read_json_file(path)
    except JsonFault as fault:
        raise IncidentError(f"{one_line(path)}: {fault}") from None


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each line of JSON; of a file that is one JSON text that one, of an array its items."""
    name = one_line(path)
    unfit = refusal(path, "object")
    if unfit:
        raise IncidentError(f"{name} {unfit}")
    with path.open("rb") as file:
        first = file.readline()
    try:
        value = read_json(first.removeprefix(b"\xef\xbb\xbf"))
        single = not isinstance(value, dict)
    except JsonFault:
        single = True  # one text over several lines, or damaged, which is told then
    if single:
        value = whole_json(path)
        rows = value if isinstance(value, list) else [value]
        yield from ((f"{name}, item {at}", row) for at, row in enumerate(rows, 1))
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                try:
                    yield f"{name}, line {number}", read_json(raw.removeprefix(b"\xef\xbb\xbf"))
                except JsonFault as fault:
                    raise IncidentError(f"{name}, line {number}: {fault}") from None


def read_csv(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and cells of each row. Raises IncidentError where a column of `needed` is missing, or a row is broken."""
    name = one_line(path)
    unfit = refusal(path, "csv")
    if unfit:
        raise IncidentError(f"{name} {unfit}")
    csv.field_size_limit(1 << 24)
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for column in needed:
                if column not in columns:
                    there = one_line(", ".join(columns[:12]), 200)
                    raise IncidentError(f"{name}: expected the column '{column}', found {there or 'none'}")
            for row in reader:
                yield f"{name}, line {reader.line_num}", row
    except csv.Error as error:
        raise IncidentError(f"{name}: {error}; write it anew as CSV") from None


def finite(value: Any) -> float | None:
    """A number, given as one or as text; None for what is none, and for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def nanoseconds(value: Any) -> float | None:
    """Seconds of a time in nanoseconds, given as a number or as text; None for what is none."""
    number = finite(value)
    return None if not number else number / 1e9


def when(value: Any) -> float | None:
    """Seconds since 1970 of a time in ISO 8601, seconds, milliseconds, microseconds or nanoseconds; None for none."""
    number = finite(value)
    if number is not None:
        while abs(number) > 1e11:
            number /= 1e3
        value = number
    if value is None or value == "":
        return None
    try:
        # fractions of a second in nine digits are more than Python reads
        return time_of("time", _shortened(value) if isinstance(value, str) else value)
    except IncidentError:
        return None


def _shortened(text: str) -> str:
    head, dot, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return f"{head}.{rest[:digits][:6].ljust(6, '0')}{rest[digits:]}" if dot and digits else text


def text_of(value: Any) -> str | None:
    """Text that is not blank, without halves of surrogate pairs; None for anything else."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value.encode("utf-8", "replace").decode("utf-8")


def name_of(value: Any) -> str | None:
    """Text as a name of a case: one line, trimmed, harmless, 200 characters at most; None for anything else."""
    text = text_of(value)
    name = None if text is None else neutralise(one_line(" ".join(text.split()), 200))
    return name[:200].strip() or None if name else None


def section(value: Any, *keys: str) -> Any:
    """What lies under these keys, one inside the other; None where one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
