"""Reading incidents from files. A new format is one generator of (place, row) and one line in `READERS`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import IncidentError
from .schema import Incident

Rows = Iterator[tuple[str, Any]]
_LIST_CELLS = ("logs", "evidence", "upstream", "decoys")
_MAX_CELL = 64 * 1024 * 1024


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise IncidentError(f"field '{twice}': given twice in one object; keep one")
    return row


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except IncidentError:
        raise
    except RecursionError:
        raise IncidentError(f"{what}: nested too deeply to be an incident") from None
    except json.JSONDecodeError as error:
        # of one line, so that its own count of lines is left out
        raise IncidentError(f"{what}: not valid JSON ({error.msg} at character {error.pos})") from None
    except ValueError as error:  # a number with thousands of digits
        raise IncidentError(f"{what}: not valid JSON ({error})") from None


def read_jsonl_rows(path: Path) -> Rows:
    """One JSON object a line, UTF-8; blank lines are allowed."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                raise IncidentError(f"{place}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None
            if text.strip():
                try:
                    row = _parse_json(text, "expected one JSON object on the line")
                except IncidentError as error:
                    raise IncidentError(f"{place}: {error}") from None
                yield place, row


def _cell(name: str, text: str) -> Any:
    if name in _LIST_CELLS:
        if text.lstrip().startswith("["):
            return _parse_json(text, f"field '{name}': expected a JSON list or plain lines in the cell")
        return [line for line in text.splitlines() if line.strip()]
    if name == "aliases" and text.strip():
        return _parse_json(text, f"field '{name}': expected a JSON object in the cell")
    return text or None


def read_csv_rows(path: Path) -> Rows:
    """A header line, then one incident a row; `logs` and `evidence` cells hold a JSON list or one entry a line."""
    limit = csv.field_size_limit(_MAX_CELL)
    place = "line 1"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                return
            if len(set(header)) != len(header):
                raise IncidentError(f"line 1: a column name occurs twice in the header: {', '.join(header)}")
            while True:
                place = f"line {reader.line_num + 1}"
                cells = next(reader, None)
                if cells is None:
                    return
                if not cells:
                    continue
                if len(cells) != len(header):
                    mend = "quote cells that hold commas or line breaks"
                    raise IncidentError(
                        f"{place}: expected {len(header)} cells as in the header, found {len(cells)}; {mend}"
                    )
                try:
                    row = {name: _cell(name, text) for name, text in zip(header, cells)}
                except IncidentError as error:
                    raise IncidentError(f"{place}: {error}") from None
                yield place, row
    except csv.Error as error:
        raise IncidentError(f'{place}: not valid CSV ({error}); quote cells with " and double any " inside') from None
    except UnicodeDecodeError as error:
        raise IncidentError(f"after {place}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    finally:
        csv.field_size_limit(limit)


def read_parquet_rows(path: Path) -> Rows:
    """One incident a row, columns named like the fields, `logs` and `evidence` as lists of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", {name: value for name, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        message = str(error).splitlines()[0]
        raise IncidentError(
            f"after row {number}: not a readable parquet file ({message}); write or copy it anew"
        ) from None


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl_rows,
    ".csv": read_csv_rows,
    ".parquet": read_parquet_rows,
}


def read_incidents(path: str | Path) -> Iterator[Incident]:
    """Yield the incidents of a JSONL, CSV or parquet file, in order, without holding the file in memory.

    Raises FileNotFoundError, or `IncidentError` with file, line or row, field, what was expected and how to mend it.
    Nothing is skipped: the first bad record stops the reading. Ids must be unique within the file.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        known = ", ".join(READERS)
        raise IncidentError(f"{path}: no reader for '{path.suffix}'; name the file by its format, one of {known}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IncidentError(f"{path}: expected a file, found a folder; name the file in it")
    seen: dict[str, str] = {}
    place = ""
    try:
        for place, row in READERS[path.suffix.lower()](path):
            try:
                incident = Incident.from_dict(row)
                if incident.id in seen:
                    raise IncidentError(
                        f"field 'id': '{incident.id}' was used on {seen[incident.id]} already; ids must be unique"
                    )
            except IncidentError as error:
                raise IncidentError(f"{place}: {error}") from None
            seen[incident.id] = place
            yield incident
    except IncidentError as error:
        raise IncidentError(f"{path}, {error}") from None
    if not seen:
        raise IncidentError(f"{path}: expected at least one incident, found none; is it the right file?")
