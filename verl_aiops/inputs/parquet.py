"""Rows of a parquet file that others wrote, read so that a fault of one value is one of its row.

Arrow hands over what no Python value can hold (nanoseconds of a duration, text that is not UTF-8) without a word and
raises only when it is asked for; so only the columns asked for are read, and each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.inputs.shown import one_line

__all__ = ["ParquetFault", "ParquetTable"]

BATCH_ROWS = 512
_OURS_TO_TELL = (FileNotFoundError, PermissionError, IsADirectoryError)


class ParquetFault(ValueError):
    """A file that cannot be read; ``row`` is the first one that could not, or None where it could not be opened."""

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


class ParquetTable:
    """An open file's ``rows`` (their number) and ``columns`` (their names).

    Raises:
        ParquetFault: damaged, or not as any reader takes it.
        OSError: not there, or not to be read.
    """

    def __init__(self, path: str | Path):
        import pyarrow.parquet as pq

        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                meta = file.metadata
                self.rows = meta.num_rows
                self.columns = list(file.schema_arrow.names)
                in_groups = [meta.row_group(at).num_rows for at in range(meta.num_row_groups)]
        except _OURS_TO_TELL:
            raise
        except Exception as error:  # what pyarrow raises over damaged bytes is not limited to some classes
            raise ParquetFault(_told(error)) from error
        if min([self.rows, *in_groups]) < 0 or sum(in_groups) != self.rows:
            raise ParquetFault(f"it says {self.rows:,} rows, its parts say {sum(in_groups):,}")
        twice = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if twice is not None:
            raise ParquetFault(f"it has two columns {one_line(twice, 60)!r}; rename one")

    def records(
        self, columns: Sequence[str], wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, dict[str, Any], str]]:
        """Number (from 0), values and fault ("" for none) of each row, with those of ``columns`` that there are.

        Args:
            wanted: numbers of the rows, ascending; None for all.

        Raises:
            ParquetFault: the file is damaged.
        """
        import pyarrow.parquet as pq

        names = [name for name in self.columns if name in set(columns)]
        start, taken = 0, 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                    stop = start + len(batch)
                    if wanted is None:
                        numbers = range(start, stop)
                    else:
                        upto = int(np.searchsorted(wanted, stop))
                        numbers, taken = wanted[taken:upto].tolist(), upto
                    yield from _converted(batch, names, start, numbers)
                    start = stop
                    if wanted is not None and taken >= len(wanted):
                        return
        except _OURS_TO_TELL:
            raise
        except Exception as error:  # see above
            raise ParquetFault(_told(error), start) from error
        if start != self.rows:
            raise ParquetFault(f"it ends after {start:,} of {self.rows:,} rows", start)


def _converted(batch, names: list[str], start: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict, str]]:
    if not len(numbers):
        return
    whole = len(numbers) == len(batch)
    faults: dict[int, str] = {}
    table = []
    for name, column in zip(names, batch.columns, strict=True):
        # by name of the values, not of `take`, which views of text have no kernel for
        parts = [column] if whole else [column.slice(number - start, 1) for number in numbers]
        values: list[Any] = []
        for part in parts:
            try:
                values += part.to_pylist()
            except Exception:  # a value's class decides what its conversion raises
                values += _one_by_one(part, name, numbers[len(values) :], faults)
        table.append(values)
    for at, number in enumerate(numbers):
        yield number, {name: values[at] for name, values in zip(names, table)}, faults.get(number, "")


def _one_by_one(part, name: str, numbers: Sequence[int], faults: dict[int, str]) -> list[Any]:
    values = []
    for number, scalar in zip(numbers, part):
        try:
            values.append(scalar.as_py())
        except UnicodeDecodeError as error:
            values.append(None)
            byte = error.object[error.start]
            faults.setdefault(number, f"{name} is not UTF-8 text (byte {error.start}: 0x{byte:02x}); write it as UTF-8")
        except Exception as error:
            values.append(None)
            faults.setdefault(number, f"{name} ({part.type}) cannot be read: {_told(error)}")
    return values


def _told(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return one_line(text, 240)
