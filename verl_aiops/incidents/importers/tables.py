"""Reading the authors' CSV and JSON files, with file and row in every complaint."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.inputs.json_text import JsonFault, read_json_file
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import refusal

_MAX_CELL = 64 * 1024 * 1024


def _open_error(path: Path, error: UnicodeDecodeError) -> IncidentError:
    return IncidentError(f"{path}: not UTF-8 (byte {error.start} of a block); fetch the file anew")


def read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row of a CSV file; blank lines are passed over."""
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        unfit = refusal(path, "csv")
        if unfit:
            raise IncidentError(f"{path} {unfit}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if row:
                    yield reader.line_num, row
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise _open_error(path, error) from None
    except csv.Error as error:
        raise IncidentError(f"{path}: not valid CSV ({error}); fetch the file anew") from None
    finally:
        csv.field_size_limit(limit)


def read_table(
    path: Path, columns: Sequence[str], damaged: Callable[[], None] | None = None
) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header that has at least `columns`.

    `damaged` is called for each row with more or fewer cells than the header; without it such a row is an error.
    """
    rows = read_cells(path)
    _, header = next(rows, (1, []))
    missing = [name for name in columns if name not in header]
    if missing:
        raise IncidentError(
            f"{path}, line 1: expected the columns {', '.join(columns)}, found no '{missing[0]}' in: "
            f"{one_line(', '.join(header), 200)}"
        )
    for number, row in rows:
        if len(row) != len(header) and damaged is not None:
            damaged()
            continue
        if len(row) != len(header):
            raise IncidentError(
                f"{path}, line {number}: expected {len(header)} cells as in the header, found {len(row)}; fetch the "
                "file anew"
            )
        yield dict(zip(header, row))


def read_json(path: Path) -> Any:
    """The contents of a JSON file."""
    try:
        return read_json_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except JsonFault as fault:
        raise IncidentError(f"{path}: {fault}; fetch the file anew") from None


def number(text: str) -> float | None:
    """The finite number that a cell holds, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def cut(text: str, length: int) -> str:
    """`text`, or its first `length` characters without the spaces at their end."""
    return text if len(text) <= length else text[:length].rstrip()
