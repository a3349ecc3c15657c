"""Writing files that are either whole or not there: rows to parquet or JSONL, incidents to JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

from verl_aiops.files import move_into_place, naming, remove, temporary_beside, write_atomically
from verl_aiops.incidents.errors import IncidentError, OutputExistsError
from verl_aiops.incidents.schema import Incident
from verl_aiops.incidents.taxonomy import Taxonomy
from verl_aiops.incidents.wording import Wording

if TYPE_CHECKING:
    import pyarrow as pa

# A column's type by name (see `parquet_schema`), or a mapping of the fields of a struct.
Columns = Mapping[str, Union[str, "Columns"]]

# Rows held in memory before they go to disk as one row group: a few megabytes of prompts.
ROW_GROUP = 1000


class _JsonlSink:
    def __init__(self, path: Path, columns: Columns):
        self.file: IO[str] = path.open("x", encoding="utf-8", newline="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()


class _ParquetSink:
    def __init__(self, path: Path, columns: Columns):
        import pyarrow.parquet as pq

        self.schema = parquet_schema(columns)
        self.rows: list[Mapping[str, Any]] = []
        self.writer = pq.ParquetWriter(
            path, self.schema, compression="zstd", compression_level=1, write_statistics=False
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = [_column([row[field.name] for row in self.rows], field.type) for field in self.schema]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self._flush()
        self.writer.close()


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    # Lists and structs are taken apart here: several times faster than handing lists of dicts to arrow.
    if pa.types.is_struct(kind):
        fields = list(kind)
        parts = [_column([value[field.name] for value in values], field.type) for field in fields]
        return pa.StructArray.from_arrays(parts, fields=fields)
    if pa.types.is_list(kind):
        offsets = pa.array([0, *accumulate(map(len, values))], pa.int32())
        return pa.ListArray.from_arrays(offsets, _column([item for value in values for item in value], kind.value_type))
    return pa.array(values, kind)


# A new format is one class with write(row) and close(), and one line here.
SINKS: dict[str, type[_ParquetSink | _JsonlSink]] = {".parquet": _ParquetSink, ".jsonl": _JsonlSink}


def parquet_schema(columns: Columns) -> pa.Schema:
    """The arrow schema of `columns`, name to type.

    Types: `string`, `double`, `int`, `bool`, `strings` (a list), `messages` (a list of {role, content}), `completions`
    (a list of {messages, score}), or a mapping like `columns` itself, which makes a struct.
    """
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {
        "bool": pa.bool_(),
        "string": pa.string(),
        "double": pa.float64(),
        "int": pa.int64(),
        "strings": pa.list_(pa.string()),
        "messages": messages,
        "completions": pa.list_(pa.struct([("messages", messages), ("score", pa.float64())])),
    }
    return pa.schema(
        [
            (name, types[kind] if isinstance(kind, str) else pa.struct(list(parquet_schema(kind))))
            for name, kind in columns.items()
        ]
    )


class RowWriter:
    """Writes rows to a temporary file beside `path`; `keep` puts it in place, `discard` removes it."""

    def __init__(self, path: Path, columns: Columns, overwrite: bool):
        if path.suffix.lower() not in SINKS:
            raise IncidentError(f"{path}: cannot write '{path.suffix}' files; name it with one of {', '.join(SINKS)}")
        if path.is_dir():
            raise IncidentError(f"{path}: expected a file name, found a folder; name the file in it")
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path}: is already there; pass --overwrite to replace it or choose another name")
        self.path, self.columns = path, columns
        self.temporary = temporary_beside(path)
        self.count = 0
        self._sink: _ParquetSink | _JsonlSink | None = None

    def write(self, row: Mapping[str, Any]) -> None:
        with naming(self.path, self.temporary):
            if self._sink is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._sink = SINKS[self.path.suffix.lower()](self.temporary, self.columns)
            self._sink.write(row)
        self.count += 1

    def finish(self) -> None:
        if self._sink is not None:
            with naming(self.path, self.temporary):
                self._sink.close()

    def keep(self) -> None:
        if self._sink is not None:
            with naming(self.path, self.temporary):
                move_into_place(self.temporary, self.path)
        else:
            # Without rows there is no file: an old one would pass for the other half of what was just written.
            self.path.unlink(missing_ok=True)

    def discard(self) -> None:
        # What could not be written may not close either; the error that led here is the one to show.
        with suppress(Exception):
            self.finish()
        remove(self.temporary)


@contextmanager
def row_writers(paths: Sequence[str | Path], columns: Columns, *, overwrite: bool = False) -> Iterator[list[RowWriter]]:
    """Writers for files that belong together: all appear at the end, or none if anything goes wrong.

    `columns` maps names to types as in `parquet_schema`. Raises `OutputExistsError` at once if a file is there and
    `overwrite` is false.
    """
    files = [Path(path) for path in paths]
    if len({file.absolute() for file in files}) != len(files):
        raise IncidentError(f"{files[0]}: two outputs have the same name; give them different ones")
    writers = [RowWriter(file, columns, overwrite) for file in files]
    try:
        yield writers
        for writer in writers:
            writer.finish()
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    for writer in writers:
        writer.keep()


def write_incidents(incidents: Iterable[Incident], path: str | Path, *, overwrite: bool = False) -> int:
    """Write incidents as JSONL, the form that `read_incidents` reads back unchanged; returns how many."""
    if Path(path).suffix.lower() != ".jsonl":
        raise IncidentError(f"{path}: incidents are written as JSONL; let the name end in .jsonl")
    with row_writers([path], {}, overwrite=overwrite) as (writer,):
        for incident in incidents:
            writer.write(incident.to_dict())
    return writer.count


def refuse_taken(path: str | Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError where a file would be replaced that nobody said may be."""
    if Path(path).exists() and not overwrite:
        raise OutputExistsError(f"{path}: is already there; pass --overwrite to replace it or choose another name")


def write_taxonomy(taxonomy: Taxonomy, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a taxonomy as the JSON that `Taxonomy.load` reads."""
    refuse_taken(path, overwrite=overwrite)
    write_atomically(path, taxonomy.as_json())


def write_wording(wording: Wording, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the words of prompts as the YAML that `read_wording` reads; the built-in ones with their explanations."""
    refuse_taken(path, overwrite=overwrite)
    write_atomically(path, wording.as_yaml())


def sibling(path: str | Path, label: str) -> Path:
    """`pairs.parquet` and `val` give `pairs.val.parquet`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{label}{path.suffix}")
