"""Reading incidents from files. A new format is one generator of (place, row) and one line in `READERS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.bad_rows import BadRows
from verl_aiops.incidents.io.columns import AS_NAMED, FieldColumns
from verl_aiops.incidents.io.csv_rows import read_csv_rows
from verl_aiops.incidents.io.xlsx_rows import read_xlsx_rows
from verl_aiops.incidents.schema import OPTIONAL_FIELDS, REQUIRED_FIELDS, Incident
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.parquet import ParquetFault, ParquetTable
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import by_content, refusal

# a row, or the fault that keeps it from being one
Rows = Iterator[tuple[str, Any]]
_KNOWN = frozenset(REQUIRED_FIELDS + OPTIONAL_FIELDS)


@dataclass
class ReadNotes:
    """What is to be said of a file that was read: how many incidents have a field that nothing reads, by its name, how
    many name no language, by the one that was guessed, and how many lack the label of a further field, by its name."""

    unknown: Counter[str] = field(default_factory=Counter)
    guessed: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)


def _parse_json(text: str) -> Any:
    try:
        return read_json(text)
    except JsonFault as fault:
        if fault.twice is not None:
            return IncidentError(f"field '{fault.twice}': given twice in one object; keep one")
        return IncidentError(f"expected one JSON object on the line: {fault}")


def read_jsonl_rows(path: Path, columns: FieldColumns = AS_NAMED) -> Rows:
    """One JSON object a line, UTF-8; blank lines are allowed."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                yield place, IncidentError(f"not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")
                continue
            if text.strip():
                yield place, columns.named(_parse_json(text))


def read_parquet_rows(path: Path, columns: FieldColumns = AS_NAMED) -> Rows:
    """One incident a row, columns named like the fields, `logs` and `evidence` as lists of strings."""
    number = -1
    try:
        table = ParquetTable(path)
        wanted = columns.read()
        # nothing reads these, but they are counted
        unread = {name: None for name in table.columns if name not in wanted}
        for number, row, fault in table.records([name for name in table.columns if name in wanted]):
            if fault:
                yield f"row {number + 1}", IncidentError(f"field {fault}")
            else:
                given = {name: value for name, value in columns.named(unread | row).items()}
                yield (
                    f"row {number + 1}",
                    {name: value for name, value in given.items() if value is not None or name not in REQUIRED_FIELDS},
                )
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
    ".xlsx": read_xlsx_rows,
}
# ours, which read a row by the user's names of columns, and what their files are
_KINDS: dict[Callable[..., Rows], str] = {
    read_jsonl_rows: "json",
    read_csv_rows: "csv",
    read_parquet_rows: "parquet",
    read_xlsx_rows: "xlsx",
}


def incident_rows(path: Path, columns: FieldColumns = AS_NAMED) -> Rows:
    """Place and fields of each row of an incident file, with what `columns` names; a row's fault in place of the row.

    Raises FileNotFoundError, or `IncidentError` where the file is none of incidents or damaged.
    """
    # a line break in a name would begin a line of its own in a message
    name = one_line(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise IncidentError(f"{name}: expected a file, found a folder; name the file in it")
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise IncidentError(
            f"{name}: no reader for {suffix!r}; name the file by its format, one of {known}{by_content(path)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    reader: Callable[..., Rows] = READERS[suffix]
    kind = _KINDS.get(reader)  # a reader of a user's own knows its files
    unfit = refusal(path, kind) if kind else None
    if unfit:
        raise IncidentError(f"{name} {unfit}")
    rows = reader(path, columns) if kind else ((place, columns.named(row)) for place, row in reader(path))
    try:
        for place, row in rows:
            yield place, columns.converted(row)
    except IncidentError as error:  # a file that ends early, say
        raise _of_file(name, error) from None


def read_incidents(
    path: str | Path, notes: ReadNotes | None = None, columns: FieldColumns = AS_NAMED
) -> Iterator[Incident]:
    """Yield the incidents of a JSONL, CSV, XLSX or parquet file, in order, without holding the file in memory.

    `notes`, if given, counts what is to be said of the file. `columns`: what the file calls the fields.

    Raises FileNotFoundError, or `IncidentError` with file, line or row, field, what was expected and how to mend it.
    Nothing is skipped: after the first bad record no other is yielded, and the error at the end of the file names the
    first of every kind. Ids must be unique within the file.
    """
    path = Path(path)
    name = one_line(path)
    seen: dict[str, str] = {}
    bad = BadRows()
    unfound = dict(columns.theirs)
    there: list[str] = []
    count = 0
    try:
        for place, row in incident_rows(path, columns):
            count += 1
            if isinstance(row, IncidentError):
                bad.add(place, row)
                continue
            if unfound and isinstance(row, dict):
                there = there or [columns.theirs.get(key, key) for key in row]
                unfound = {ours: theirs for ours, theirs in unfound.items() if ours not in row}
            try:
                incident = Incident.from_dict(row, columns.more)
                if incident.id in seen:
                    raise IncidentError(
                        f"field 'id': '{incident.id}' was used on {seen[incident.id]} already; ids must be unique"
                    )
            except IncidentError as error:
                for fault in Incident.faults_in(row, columns.theirs, columns.more) or [error]:
                    bad.add(place, fault)
                continue
            seen[incident.id] = place
            if notes is not None:
                notes.unknown.update(key for key in row if key not in _KNOWN and key not in columns.more)
                notes.without.update(name for name in columns.more if name not in dict(incident.labels))
                if row.get("lang") is None:
                    notes.guessed[incident.lang] += 1
            if not bad:
                yield incident
    except IncidentError as error:
        if not bad:
            raise _of_file(name, error) from None
        bad.add("the file", error)
    for ours, theirs in unfound.items():
        if count and ours not in REQUIRED_FIELDS:  # which each row misses by itself
            shown = one_line(", ".join(there), 300)
            bad.add("--columns", f"{ours}={one_line(theirs, 80)}: the file has no such column, but {shown}")
    if bad:
        raise bad.error(name, count)
    if not seen:
        raise IncidentError(f"{name}: expected at least one incident, found none; is it the right file?")


def _of_file(name: str, error: IncidentError) -> IncidentError:
    return error if str(error).startswith(name) else IncidentError(f"{name}, {error}")
