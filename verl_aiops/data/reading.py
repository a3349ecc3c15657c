"""Rows of parquet and JSON-lines files, one after another, each with the place it stands at.

Both kinds of file are read as a stream: memory does not grow with the file.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_aiops.data.errors import PreferenceDataError

PARQUET_SUFFIXES = (".parquet", ".pq")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
BATCH_ROWS = 512


@dataclass(slots=True)
class Record:
    """One row: `values` by column name, or, where the row itself cannot be read, `fault` with the reason."""

    where: str
    name: str
    values: dict
    fault: str = ""


def open_files(files) -> list["ParquetFile | JsonLinesFile"]:
    """Open `files` (one path or any sequence of paths), without reading rows yet.

    Raises PreferenceDataError for no files, a missing, empty, unreadable or truncated file, or an unknown suffix.
    """
    if isinstance(files, (str, os.PathLike)):
        files = [files]
    if not files:
        raise PreferenceDataError("no data files given")
    return [_open_file(str(file)) for file in files]


def _open_file(name):
    path = Path(name).expanduser()
    if not path.is_file():
        kind = "is not a file" if path.exists() else f"does not exist (looked from {Path.cwd()})"
        raise PreferenceDataError(f"{name} {kind}")
    if path.stat().st_size == 0:
        raise PreferenceDataError(f"{name} is empty (0 bytes)")
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return ParquetFile(name, path)
    if suffix in JSONL_SUFFIXES:
        return JsonLinesFile(name, path)
    known = ", ".join(PARQUET_SUFFIXES + JSONL_SUFFIXES)
    raise PreferenceDataError(f"{name}: unknown kind of file {suffix!r}; known are {known}")


class ParquetFile:
    """Rows are numbered from 0, as pandas and pyarrow number them."""

    def __init__(self, name, path):
        self.name, self.path = name, path
        try:
            with pq.ParquetFile(path) as file:
                self.rows = file.metadata.num_rows
                self.columns, self.columns_at = list(file.schema_arrow.names), name
        except (pa.ArrowException, OSError) as error:
            raise PreferenceDataError(f"{name} cannot be read as parquet (cut short or damaged?): {error}") from error
        if not self.rows:
            raise PreferenceDataError(f"{name} has no rows")

    def records(self, columns, wanted: np.ndarray) -> Iterator[Record]:
        """The rows whose numbers are in `wanted` (ascending), with those of `columns` that exist."""
        columns = [column for column in self.columns if column in set(columns)]
        keep = np.zeros(self.rows, dtype=bool)
        keep[wanted] = True
        start = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    numbers = start + np.flatnonzero(keep[start : start + len(batch)])
                    for number, values in zip(numbers, batch.take(pa.array(numbers - start)).to_pylist()):
                        yield Record(f"{self.name}, row {number} (counting from 0)", self._row_name(number), values)
                    start += len(batch)
                    if not keep[start:].any():
                        return
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PreferenceDataError(
                f"{self.name} cannot be read after row {start} (damaged, or text that is not UTF-8): {error}"
            ) from error

    def _row_name(self, number):
        return f"{self.path.name}:{number}"


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

    def records(self, columns, wanted: np.ndarray) -> Iterator[Record]:
        """The rows (counted without blank lines, from 0) in `wanted` (ascending), with all their fields."""
        wanted = iter(wanted.tolist())
        next_row = next(wanted, None)
        for row, (number, line) in enumerate(self._lines()):
            if next_row is None:
                return
            if row != next_row:
                continue
            next_row = next(wanted, None)
            yield Record(f"{self.name}, line {number}", f"{self.path.name}:{number}", *_parse(line))

    def _lines(self):
        # Split at b"\n" alone: str.splitlines would also cut at U+2028, which may stand unescaped inside JSON text.
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line

    def _columns_of(self, line):
        """The first object's fields; None where it cannot be parsed, which is then told as the fault of its row."""
        if line.lstrip().startswith(b"["):
            raise PreferenceDataError(
                f"{self.name} begins with '[': it looks like one JSON array; one JSON object per line is expected"
            )
        values, fault = _parse(line)
        return None if fault else list(values)


def _parse(line: bytes) -> tuple[dict, str]:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"is not UTF-8 text (byte {error.start}: 0x{line[error.start]:02x})"
    except json.JSONDecodeError as error:
        return {}, f"is not valid JSON: {error.msg} at character {error.pos}"
    except RecursionError:
        return {}, "is not usable JSON: nested too deeply"
    if not isinstance(values, dict):
        return {}, f"is JSON of type {type(values).__name__}, not an object"
    return values, ""
