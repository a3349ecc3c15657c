"""Reading incidents from files. A new format is one generator of (place, row) and one line in `READERS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.csv_rows import read_csv_rows
from verl_aiops.incidents.schema import OPTIONAL_FIELDS, REQUIRED_FIELDS, Incident, check_names
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.parquet import ParquetFault, ParquetTable
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import by_content, refusal

Rows = Iterator[tuple[str, Any]]
_KNOWN = frozenset(REQUIRED_FIELDS + OPTIONAL_FIELDS)


def _parse_json(text: str) -> Any:
    try:
        return read_json(text)
    except JsonFault as fault:
        if fault.twice is not None:
            raise IncidentError(f"field '{fault.twice}': given twice in one object; keep one") from None
        raise IncidentError(f"expected one JSON object on the line: {fault}") from None


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
                    row = _parse_json(text)
                except IncidentError as error:
                    raise IncidentError(f"{place}: {error}") from None
                yield place, row


def read_parquet_rows(path: Path) -> Rows:
    """One incident a row, columns named like the fields, `logs` and `evidence` as lists of strings."""
    number = -1
    try:
        table = ParquetTable(path)
        if table.rows:
            # told once, before any row, and of columns that are not read too
            check_names(dict.fromkeys(table.columns))
        # nothing reads these, but they are counted
        unread = {name: None for name in table.columns if name not in REQUIRED_FIELDS + OPTIONAL_FIELDS}
        for number, row, fault in table.records(REQUIRED_FIELDS + OPTIONAL_FIELDS):
            if fault:
                raise IncidentError(f"row {number + 1}: field {fault}")
            yield f"row {number + 1}", unread | {name: value for name, value in row.items() if value is not None}
    except ParquetFault as error:
        raise IncidentError(
            f"after row {number + 1}: not a readable parquet file ({error}); write or copy it anew"
        ) from None


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl_rows,
    ".csv": read_csv_rows,
    ".parquet": read_parquet_rows,
    ".ndjson": read_jsonl_rows,
    ".json": read_jsonl_rows,
    ".tsv": read_csv_rows,
    ".pq": read_parquet_rows,
}
_KINDS: dict[Callable[[Path], Rows], str] = {
    read_jsonl_rows: "json",
    read_csv_rows: "csv",
    read_parquet_rows: "parquet",
}


def read_incidents(path: str | Path, unknown: Counter[str] | None = None) -> Iterator[Incident]:
    """Yield the incidents of a JSONL, CSV or parquet file, in order, without holding the file in memory.

    `unknown`, if given, counts the incidents that have a field of a name that nothing reads, by name.

    Raises FileNotFoundError, or `IncidentError` with file, line or row, field, what was expected and how to mend it.
    Nothing is skipped: the first bad record stops the reading. Ids must be unique within the file.
    """
    path = Path(path)
    # a line break in a name would begin a line of its own in a message
    name = one_line(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise IncidentError(
            f"{name}: no reader for {suffix!r}; name the file by its format, one of {known}{by_content(path)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    if path.is_dir():
        raise IncidentError(f"{name}: expected a file, found a folder; name the file in it")
    kind = _KINDS.get(READERS[suffix])  # a reader of a user's own knows its files
    unfit = refusal(path, kind) if kind else None
    if unfit:
        raise IncidentError(f"{name} {unfit}")
    seen: dict[str, str] = {}
    place = ""
    try:
        for place, row in READERS[suffix](path):
            try:
                incident = Incident.from_dict(row)
                if incident.id in seen:
                    raise IncidentError(
                        f"field 'id': '{incident.id}' was used on {seen[incident.id]} already; ids must be unique"
                    )
            except IncidentError as error:
                raise IncidentError(f"{place}: {error}") from None
            seen[incident.id] = place
            if unknown is not None:
                unknown.update(name for name in row if name not in _KNOWN)
            yield incident
    except IncidentError as error:
        raise IncidentError(f"{name}, {error}") from None
    if not seen:
        raise IncidentError(f"{name}: expected at least one incident, found none; is it the right file?")
