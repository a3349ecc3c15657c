"""Incidents in CSV, as spreadsheets and programs of many countries write it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.columns import AS_NAMED, LIST_FIELDS, FieldColumns, text_entries
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.shown import one_line

SEPARATORS = (",", ";", "\t", "|")
_JSON_CELLS = {"decoys": ('[["service", "incident type"]]', list), "aliases": ('{"service": ["other name"]}', dict)}
_MAX_CELL = 64 * 1024 * 1024
# the first line that Excel takes a separator from
_SEP_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
# how Python and NumPy print a list of texts, which pandas writes into cells
_PYTHON_LIST = re.compile(r"\[\s*(?:'.*'|u'.*'|\".*\"\s*,\s*'.*')\s*\]", re.DOTALL)


def read_csv_rows(
    path: Path, columns: FieldColumns = AS_NAMED, fields: frozenset[str] | None = None
) -> Iterator[tuple[str, dict[str, Any] | IncidentError]]:
    """A header line, then one incident, or what else has `fields`, a row; rows of empty cells are passed over, as
    blank lines are. A row that cannot be read by itself is yielded as its fault.

    Cells of `logs`, `evidence` and `upstream` hold a JSON list of strings or one entry a line. The separator is what
    a first line `sep=;` says, else the one of `SEPARATORS` that the header has most of the fields, or else cells, with.
    """
    fields = columns.read() if fields is None else fields
    limit = csv.field_size_limit(_MAX_CELL)
    place = "line 1"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            said = _SEP_LINE.fullmatch(first)
            skipped = 1 if said else 0
            if said:
                first = file.readline()
            separator = said[1] if said else _separator(first, fields)
            reader = csv.reader(chain([first], file), strict=True, delimiter=separator)
            place = f"line {skipped + 1}"
            header = table_header(next(reader, []), place, fields)
            if not header:
                return
            while True:
                place = f"line {reader.line_num + skipped + 1}"
                cells = next(reader, None)
                if cells is None:
                    return
                if any(cell.strip() for cell in cells):
                    yield place, table_row(header, cells, columns, separator)
    except csv.Error as error:
        raise IncidentError(f'{place}: not valid CSV ({error}); quote cells with " and double any " inside') from None
    except UnicodeDecodeError as error:
        raise IncidentError(f"after {place}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    finally:
        csv.field_size_limit(limit)


def _separator(header: str, fields: frozenset[str]) -> str:
    names = {mark: next(csv.reader([header], delimiter=mark), []) for mark in SEPARATORS}
    known = {mark: len(fields.intersection(name.strip() for name in cells)) for mark, cells in names.items()}
    # without a field the one with the most cells, so that the error says what the columns are; of equals the comma
    return max(SEPARATORS, key=known.__getitem__ if any(known.values()) else lambda mark: len(names[mark]))


def table_header(names: Sequence[str], place: str, fields: frozenset[str]) -> list[str]:
    header = [name.strip() for name in names]
    while header and not header[-1]:  # columns that a spreadsheet once held
        header.pop()
    if len(set(header)) != len(header):
        raise IncidentError(f"{place}: a column name occurs twice in the header: {', '.join(header)}")
    if len(header) == 1 and len(fields.intersection(re.findall(r"\w+", header[0]))) > 1:
        raise IncidentError(
            f"{place}: the header is one cell, {one_line(header[0], 80)!r}; separate cells with one of "
            "comma, semicolon, tab and |, or begin the file with a line such as sep=;"
        )
    return header


def table_row(
    header: Sequence[str], cells: list[str], columns: FieldColumns, separator: str = ","
) -> dict[str, Any] | IncidentError:
    """The values of a row of cells by field, or what is wrong with it."""
    if len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :]):
        cells = cells[: len(header)]
    if len(cells) != len(header):
        what = {",": "commas", "\t": "tabs"}.get(separator, f"'{separator}'")
        return IncidentError(
            f"expected {len(header)} cells as in the header, found {len(cells)}; quote cells that hold "
            f"{what} or line breaks"
        )
    try:
        return {name: _cell(name, text) for name, text in columns.named(dict(zip(header, cells))).items()}
    except IncidentError as error:
        return error


def _cell(name: str, text: str) -> Any:
    if name in LIST_FIELDS:
        return _entries(name, text)
    if name in _JSON_CELLS:
        if not text.strip():
            return None
        form, kind = _JSON_CELLS[name]
        try:
            value = read_json(text)
        except JsonFault as fault:
            raise IncidentError(f"field '{name}': expected JSON like {form} in the cell; {fault}") from None
        if not isinstance(value, kind):
            raise IncidentError(f"field '{name}': expected JSON like {form} in the cell, found {one_line(text, 60)!r}")
        return value
    return text or None


def _entries(name: str, text: str) -> list[str]:
    """A log line may itself begin with a bracket, so a cell is JSON only where it is a list of strings."""
    if text.lstrip().startswith("["):
        try:
            value = read_json(text)
        except JsonFault:
            value = None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        if _PYTHON_LIST.fullmatch(text.strip()):
            raise IncidentError(
                f"field '{name}': the cell is a list as Python prints it, {one_line(text, 60)!r}; write it with "
                "json.dumps, or one entry a line"
            )
    return text_entries(text)
