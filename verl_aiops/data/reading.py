"""Rows of parquet and JSON files, one after another, each with the place it stands at.

Parquet and JSON lines are read as a stream: memory does not grow with the file. JSON arrays are held as text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.json_array import JsonArray, begins_array
from verl_aiops.inputs.json_text import JsonFault, lone_surrogate, read_json
from verl_aiops.inputs.parquet import ParquetFault, ParquetTable
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import by_content, refusal

PARQUET_SUFFIXES = (".parquet", ".pq")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(slots=True)
class FileRow:
    """One row as its file has it: `values` by column name, or, where it cannot be read, `fault` with the reason.

    `others` are columns of the file that were not read.
    """

    where: str
    name: str
    values: dict
    fault: str = ""
    others: tuple[str, ...] = ()


def open_files(files: str | os.PathLike | Sequence[str | os.PathLike], *, arrays: bool = False) -> list[OpenedFile]:
    """Open `files` (one path or any sequence of paths), without reading rows yet.

    Args:
        arrays: take a file that is one JSON array too, where nobody else has to read it.

    Raises PreferenceDataError for no files, a missing, empty, unreadable or truncated file, or an unknown suffix.
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    if not files:
        raise PreferenceDataError("no data files given")
    return [_open_file(str(file), arrays) for file in files]


def _open_file(path, arrays):
    # a line break in a name would begin a line of its own in a message
    name, path = one_line(path), Path(path).expanduser()
    if not path.is_file():
        raise PreferenceDataError(f"{name} {_no_file(name, path)}")
    if path.stat().st_size == 0:
        raise PreferenceDataError(f"{name} is empty (0 bytes)")
    suffix = path.suffix.lower()
    if suffix not in PARQUET_SUFFIXES + JSONL_SUFFIXES:
        known = ", ".join(PARQUET_SUFFIXES + JSONL_SUFFIXES)
        raise PreferenceDataError(f"{name}: unknown kind of file {suffix!r}; known are {known}{by_content(path)}")
    is_parquet = suffix in PARQUET_SUFFIXES
    if arrays and not is_parquet and begins_array(path):
        return JsonArrayFile(name, path)
    unfit = refusal(path, "parquet" if is_parquet else "json")
    if unfit:
        raise PreferenceDataError(f"{name} {unfit}")
    return ParquetFile(name, path) if is_parquet else JsonLinesFile(name, path)


def _no_file(name, path):
    if path.is_dir():
        return "is not a file but a folder; name the files in it, several as a list: [a.parquet,b.parquet]"
    if path.exists():
        return "is not a file"
    absent = f"does not exist (looked from {Path.cwd()})"
    if re.match(r"[a-z][a-z0-9+.-]+://", name):
        return f"{absent}: addresses are not read; download the file first"
    if re.search(r"[*?\[]", name):
        return f"{absent}: patterns are not expanded; name the files, several as a list: [a.parquet,b.parquet]"
    return absent


class ParquetFile:
    """Rows are numbered from 0, as pandas and pyarrow number them."""

    def __init__(self, name, path):
        self.name, self.path = name, path
        try:
            self._table = ParquetTable(path)
        except ParquetFault as error:
            raise PreferenceDataError(f"{name} cannot be read as parquet (cut short or damaged?): {error}") from error
        self.rows, self.columns, self.columns_at = self._table.rows, self._table.columns, name
        if not self.rows:
            raise PreferenceDataError(f"{name} has no rows")

    def records(self, columns, wanted: np.ndarray) -> Iterator[FileRow]:
        """The rows whose numbers are in `wanted` (ascending), with those of `columns` that exist; no other is read."""
        others = tuple(name for name in self.columns if name not in columns)
        try:
            for number, values, fault in self._table.records(columns, wanted):
                where = f"{self.name}, row {number} (counting from 0)"
                yield FileRow(where, f"{self.path.name}:{number}", values, fault, others)
        except ParquetFault as error:
            raise PreferenceDataError(
                f"{self.name} cannot be read after row {error.row} (damaged?): {error}"
            ) from error


class JsonLinesFile:
    """One JSON object a line; blank lines are skipped, and lines are numbered from 1, as editors do."""

    def __init__(self, name, path):
        self.name, self.path = name, path
        self.rows, self.columns, self.columns_at = 0, None, ""
        for number, line in self._lines():
            if not self.rows:
                self.columns, self.columns_at = self._columns_of(line), f"{name}, line {number},"
            self.rows += 1
        if not self.rows:
            raise PreferenceDataError(f"{name} has no rows, only blank lines")

    def records(self, columns, wanted: np.ndarray) -> Iterator[FileRow]:
        """The rows (counted without blank lines, from 0) in `wanted` (ascending), with all their fields."""
        numbers = iter(wanted.tolist())
        next_row = next(numbers, None)
        for row, (number, line) in enumerate(self._lines()):
            if next_row is None:
                return
            if row != next_row:
                continue
            next_row = next(numbers, None)
            yield FileRow(f"{self.name}, line {number}", f"{self.path.name}:{number}", *_parse(line, columns))

    def _lines(self):
        # Split at b"\n" alone: str.splitlines would also cut at U+2028, which may stand unescaped inside JSON text.
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line

    def _columns_of(self, line):
        """The first object's fields; None where it cannot be parsed, which is then told as the fault of its row."""
        values, fault = _parse(line, ())
        return None if fault else list(values)


class JsonArrayFile:
    """One JSON array of objects; items are numbered from 1, and told with the line that they begin in."""

    def __init__(self, name, path):
        self.name, self.path = name, path
        try:
            self._array = JsonArray(path)
        except ValueError as error:
            raise PreferenceDataError(f"{name} {error}") from None
        self.rows, self.columns, self.columns_at = self._array.items, None, f"{name}, item 1,"
        if not self.rows:
            raise PreferenceDataError(f"{name} has no rows: the JSON array is empty")
        values, fault = _parse(self._array.item(0)[1], ())
        if not fault:
            self.columns = list(values)

    def records(self, columns, wanted: np.ndarray) -> Iterator[FileRow]:
        """The items (from 0) in `wanted` (ascending), with all their fields."""
        for number in wanted.tolist():
            line, text = self._array.item(number)
            where = f"{self.name}, item {number + 1} (line {line})"
            yield FileRow(where, f"{self.path.name}:{number + 1}", *_parse(text, columns))


OpenedFile = ParquetFile | JsonLinesFile | JsonArrayFile


def _parse(line: bytes, columns) -> tuple[dict, str]:
    """The object on a line, and what is wrong with it: as JSON, or as text in one of `columns`."""
    try:
        values = read_json(line)
    except JsonFault as fault:
        return {}, f"is {fault}" if fault.what == "not UTF-8 text" else f"is {fault.what}: {fault.detail}"
    if not isinstance(values, dict):
        twice = isinstance(values, str) and values.lstrip().startswith("{")
        mend = "; it was encoded twice: write the object itself, without quotes around it" if twice else ""
        return {}, f"is JSON of type {type(values).__name__}, not an object{mend}"
    return values, lone_surrogate({name: values[name] for name in columns if name in values}, line) or ""
