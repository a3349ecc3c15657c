"""Reading back a file written for RL: is every row what trainer, agent loop and reward will look for?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_aiops.incidents.build.files import RL_COLUMNS, RL_NAME
from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.writers import Columns, parquet_schema
from verl_aiops.inputs.shown import counted

_BATCH_ROWS = 512
_MEND = "build the file again; nothing else may write to it meanwhile"


def check_rl_file(path: str | Path) -> str:
    """Read `path` from disk and check every row; returns what was done, in words.

    Parquet types must be those of `RL_COLUMNS`; in each row the evidence must stand in the incident's text and that in
    the prompt. Raises IncidentError with file, row and key.
    """
    path = Path(path)
    is_parquet = path.suffix.lower() == ".parquet"
    count = 0
    for count, row in enumerate(_parquet_rows(path) if is_parquet else _json_rows(path), 1):
        fault = _shape_fault(row, RL_COLUMNS, "") or _content_fault(row, count - 1)
        if fault:
            raise IncidentError(f"{path}, row {count - 1} (counting from 0): {fault}; {_MEND}")
    by = "by pyarrow" if is_parquet else "as JSON"
    return f"{counted(count, 'row')} read back {by}, structure and evidence are right"


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            expected = parquet_schema(RL_COLUMNS)
            if not file.schema_arrow.equals(expected):
                found = "; ".join(f"{field.name}: {field.type}" for field in file.schema_arrow)
                raise IncidentError(f"{path}: the columns are not those that were written, found {found}; {_MEND}")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise IncidentError(f"{path}: cannot be read back: {' '.join(str(error).split())}; {_MEND}") from None


def _json_rows(path: Path) -> Iterator[Any]:
    # Split at "\n" alone: U+2028 and its like may stand unescaped in JSON text.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise IncidentError(f"{path}, row {number} (counting from 0): not JSON ({error}); {_MEND}") from None


def _shape_fault(value: Any, kind: str | Columns, key: str) -> str | None:
    """What keeps `value` from being of `kind` (see `parquet_schema`), or None."""
    if not isinstance(kind, str):
        if not isinstance(value, dict) or list(value) != list(kind):
            return _expected(key or "the row", f"the keys {', '.join(kind)}", value)
        faults = (_shape_fault(value[name], part, f"{key}.{name}" if key else name) for name, part in kind.items())
        return next(filter(None, faults), None)
    if kind == "messages":
        message = {"role": "string", "content": "string"}
        faults = (_shape_fault(item, message, f"{key}[{number}]") for number, item in enumerate(value or ()))
        return next(filter(None, faults), None) or (None if value else _expected(key, "at least one message", value))
    right = {
        "string": isinstance(value, str) and value != "",
        "int": isinstance(value, int),
        "strings": isinstance(value, list) and all(isinstance(item, str) and item for item in value),
    }
    return None if right[kind] else _expected(key, f"{kind}, not empty", value)


def _content_fault(row: dict[str, Any], number: int) -> str | None:
    info = row["extra_info"]
    for key, found, expected in (
        ("data_source", row["data_source"], RL_NAME),
        ("agent_name", row["agent_name"], RL_NAME),
        ("reward_model.style", row["reward_model"]["style"], "rule"),
        ("prompt", row["prompt"][-1]["role"], "user"),
        ("extra_info.index", info["index"], number),
    ):
        if found != expected:
            return _expected(key, repr(expected), found)
    text = info["incident_text"]
    if not any(text in message["content"] for message in row["prompt"]):
        return _expected("extra_info.incident_text", "a part of the prompt", text)
    try:
        truth = json.loads(row["reward_model"]["ground_truth"])
        answer, evidence = [truth["service"], truth["incident_type"]], list(truth["evidence"])
    except (ValueError, KeyError, TypeError):
        answer, evidence = [], []
    if not answer or not all(isinstance(name, str) and name for name in answer):
        expected = "JSON text with service, incident_type and evidence"
        return _expected("reward_model.ground_truth", expected, row["reward_model"]["ground_truth"])
    lost = next((item for item in evidence if item not in text), None)
    if lost is not None:
        return _expected("reward_model.ground_truth", "evidence that occurs in extra_info.incident_text", lost)
    return None


def _expected(key: str, expected: str, found: Any) -> str:
    return f"{key}: expected {expected}, found {str(found)[:120]!r}"
