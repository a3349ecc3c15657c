"""Cases in files: one JSON object a line; read in order, or one by its id without reading the others."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.bad_rows import BadRows
from verl_aiops.incidents.io.readers import read_jsonl_rows
from verl_aiops.incidents.io.writers import row_writers
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.inputs.shown import one_line
from verl_aiops.inputs.sniff import refusal
from verl_aiops.investigation.case import Case

__all__ = ["CASE_FOLDER_ENV", "load_case", "read_cases", "write_cases"]

# Where case files are looked for by their names when they are no longer where they were.
CASE_FOLDER_ENV = "VERL_AIOPS_CASES"
_ENDINGS = (".jsonl", ".ndjson", ".json")
_ID = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*")')


def read_cases(path: str | Path, unknown: Counter[str] | None = None) -> Iterator[Case]:
    """The cases of a JSONL file in order, without holding the file in memory.

    Args:
        unknown: counts the fields that nothing reads, by their place (`signals.logs.pod`).

    Raises:
        FileNotFoundError: no such file.
        IncidentError: with file, line, key, what was expected and how to mend it. Nothing is skipped: after the first
            bad record no other is yielded, and the error at the end names the first of every kind.
    """
    path = Path(path)
    name = one_line(path)
    _check_file(path, name)
    bad, count = BadRows(), 0
    seen: dict[str, str] = {}
    for place, row in read_jsonl_rows(path):
        count += 1
        try:
            if isinstance(row, IncidentError):
                raise row
            case = Case.from_dict(row, unknown)
            if case.id in seen:
                raise IncidentError(f"field 'id': '{case.id}' was used on {seen[case.id]} already; ids must be unique")
        except IncidentError as error:
            bad.add(place, error)
            continue
        seen[case.id] = place
        if not bad:
            yield case
    if bad:
        raise bad.error(name, count)
    if not count:
        raise IncidentError(f"{name}: expected at least one case, found none; is it the right file?")


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    if path.is_dir():
        raise IncidentError(f"{name}: expected a file of cases, found a folder; name the file in it")
    if path.suffix.lower() not in _ENDINGS:
        raise IncidentError(f"{name}: cases are read from JSON lines; let the name end in .jsonl")
    unfit = refusal(path, "json")
    if unfit:
        raise IncidentError(f"{name} {unfit}")


def write_cases(cases: Iterable[Case], path: str | Path, *, overwrite: bool = False) -> int:
    """Write cases as JSONL, the form that `read_cases` reads back unchanged; returns how many."""
    if Path(path).suffix.lower() != ".jsonl":
        raise IncidentError(f"{path}: cases are written as JSONL; let the name end in .jsonl")
    with row_writers([path], {}, overwrite=overwrite) as (writer,):
        for case in cases:
            writer.write(case.to_dict())
    return writer.count


def load_case(path: str | Path, case_id: str) -> Case:
    """One case of a file by its id; the last 64 are kept.

    A file that has moved is looked for by its name in the folder that `VERL_AIOPS_CASES` names.

    Raises:
        FileNotFoundError: neither here nor there.
        IncidentError: the file has no case of this id, or it is at fault.
    """
    file = _found(Path(path))
    state = file.stat()
    return _load(str(file), state.st_mtime_ns, state.st_size, case_id)


@lru_cache(maxsize=64)
def _load(file: str, changed: int, size: int, case_id: str) -> Case:
    places = _places(file, changed, size)
    name, shown = one_line(file), one_line(case_id, 80)
    if case_id not in places:
        raise IncidentError(
            f"{name}: expected a case '{shown}' among its {len(places):,}, found none; build the file that names it "
            "anew from these cases"
        )
    with open(file, "rb") as stream:
        stream.seek(places[case_id])
        raw = stream.readline()
    try:
        return Case.from_dict(read_json(raw.removeprefix(b"\xef\xbb\xbf")))
    except (IncidentError, JsonFault) as error:
        raise IncidentError(f"{name}, case '{shown}': {error}") from None


def _found(path: Path) -> Path:
    if path.exists():
        return path
    folder = os.environ.get(CASE_FOLDER_ENV)
    moved = Path(folder) / path.name if folder else None
    if moved is not None and moved.exists():
        return moved
    beside = f", nor in {one_line(folder)}" if folder else ""
    raise FileNotFoundError(
        f"{one_line(path)}: no such file of cases{beside}; where it was moved, set {CASE_FOLDER_ENV} to its folder"
    )


@lru_cache(maxsize=8)
def _places(path: str, changed: int, size: int) -> Mapping[str, int]:
    """Where the line of each case begins, by id. `changed` and `size` are there for the cache alone."""
    places: dict[str, int] = {}
    at = 0
    with open(path, "rb") as stream:
        for raw in stream:
            case_id = _id_of(raw)
            if case_id is not None:
                places.setdefault(case_id, at)
            at += len(raw)
    return places


def _id_of(raw: bytes) -> str | None:
    """The id of a line; our own writer puts it first, so that the rest need not be parsed."""
    match = _ID.match(raw)
    if match:
        return json.loads(match.group(1))
    row: Any
    try:
        row = read_json(raw.removeprefix(b"\xef\xbb\xbf"))
    except JsonFault:
        return None  # told when the case is read
    value = row.get("id") if isinstance(row, dict) else None
    return value if isinstance(value, str) else None
