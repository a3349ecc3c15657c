"""Prompts that a log of verdicts names: as text, as messages, or by the id of a row in another file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.io.readers import read_jsonl_rows
from verl_aiops.inputs.json_text import JsonFault, lone_surrogate, read_json
from verl_aiops.inputs.parquet import ParquetFault, ParquetTable
from verl_aiops.inputs.shown import brief, one_line
from verl_aiops.inputs.sniff import by_content

__all__ = ["KnownPrompts", "Messages", "messages_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")
Messages = list[dict[str, str]]


def messages_of(prompt: Any) -> Messages:
    """A text as one user's message; messages, also as JSON text, as they are."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise IncidentError("field 'prompt': is empty")
        value = None
        if prompt.lstrip().startswith("[{"):
            try:
                value = read_json(prompt)
            except JsonFault:
                value = None
        if not (isinstance(value, list) and value and all(isinstance(one, dict) and "role" in one for one in value)):
            return [{"role": "user", "content": prompt}]
        prompt = value
    if not isinstance(prompt, list) or not prompt:
        raise IncidentError(f"field 'prompt': expected a text or a list of messages, found {brief(prompt)}")
    for place, message in enumerate(prompt):
        role, content = (message.get(part) if isinstance(message, dict) else None for part in ("role", "content"))
        if role not in ROLES or not isinstance(content, str):
            raise IncidentError(
                f"field 'prompt': message {place + 1}: expected a role ({', '.join(ROLES)}) and a text as content, "
                f"found {brief(message)}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


class KnownPrompts:
    """Prompts by id, with their groups, from a file of `build-rl` or `build-prefs`, or any with these columns."""

    def __init__(self, path: str | Path):
        self.file = one_line(path)
        self._known: dict[str, tuple[Messages, str | None]] = {}
        self._in_rounds: set[str] = set()
        self._several: set[str] = set()
        for place, row in self._rows(Path(path)):
            extra = row.get("extra_info")
            extra = extra if isinstance(extra, dict) else {}
            name = row.get("id") if row.get("id") is not None else extra.get("id")
            if name is None or row.get("prompt") is None:
                raise IncidentError(f"{self.file}, {place}: expected a prompt and an id (or extra_info.id)")
            unwritable = lone_surrogate(row)
            if unwritable:
                raise IncidentError(f"{self.file}, {place}: {unwritable}")
            try:
                prompt = messages_of(row["prompt"])
            except IncidentError as error:
                raise IncidentError(f"{self.file}, {place}: {error}") from None
            group = row.get("group") or extra.get("group")
            # pairs of one incident have its id and a number
            for key in dict.fromkeys((str(name), str(name).partition("#")[0])):
                before = self._known.setdefault(key, (prompt, group if isinstance(group, str) else None))
                if before[0] != prompt:
                    self._several.add(key)
            if extra.get("rounds"):
                self._in_rounds.add(str(name))

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        if not path.is_file():
            raise IncidentError(f"{self.file}: no such file")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            try:
                for place, row in read_jsonl_rows(path):
                    yield place, row if isinstance(row, dict) else {}
            except IncidentError as error:
                raise IncidentError(f"{self.file}, {error}") from None
            return
        if path.suffix.lower() not in (".parquet", ".pq"):
            raise IncidentError(f"{self.file}: prompts are read from .parquet or .jsonl files{by_content(path)}")
        try:
            for number, row, fault in ParquetTable(path).records(("id", "prompt", "group", "extra_info")):
                if fault:
                    raise IncidentError(f"{self.file}, row {number}: {fault}")
                yield f"row {number} (counting from 0)", row
        except ParquetFault as error:
            raise IncidentError(f"{self.file}: cannot be read as parquet ({error})") from None

    def of(self, name: str) -> tuple[Messages, str | None]:
        if name not in self._known:
            raise IncidentError(f"field 'id': no prompt of {brief(name)} is in {self.file}")
        if name in self._in_rounds:
            raise IncidentError(
                f"field 'id': {name!r} is asked in several rounds in {self.file}; give the conversation up to the "
                "answer as prompt"
            )
        if name in self._several:
            raise IncidentError(f"field 'id': {name!r} has several prompts in {self.file}; give the one that was asked")
        return self._known[name]
