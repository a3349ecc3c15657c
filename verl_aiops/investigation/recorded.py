"""Tool answers that a data set brings: served as they are, by their own names and arguments (Cloud-OpsBench's way)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.field_checks import fail, found
from verl_aiops.investigation.fields import Fields, label, text

__all__ = ["Recorded", "RecordedAnswer", "argument_key", "read_recorded"]


class RecordedAnswer(NamedTuple):
    """What the tool `name` said to these arguments."""

    name: str
    arguments: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Recorded:
    """The answers, and the tools by their schemas in OpenAI's function format."""

    answers: tuple[RecordedAnswer, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @cached_property
    def by_call(self) -> dict[tuple[str, str], RecordedAnswer]:
        """Answers by name and `argument_key`; of equal calls the first."""
        table: dict[tuple[str, str], RecordedAnswer] = {}
        for row in self.answers:
            table.setdefault((row.name, argument_key(row.arguments)), row)
        return table

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.name for row in self.answers))

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "answers": [{"name": a.name, "arguments": dict(a.arguments), "text": a.text} for a in self.answers]
        }
        if self.tools:
            row["tools"] = [dict(tool) for tool in self.tools]
        return row


def argument_key(arguments: Mapping[str, Any]) -> str:
    """One text for equal arguments: in any order and case of letters, numbers in quotes or not; what is null, empty or
    false is as good as not given."""
    given = {str(name): _plain(value) for name, value in arguments.items() if value not in (None, "", False, "false")}
    return json.dumps(given, sort_keys=True, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or isinstance(value, int | float | str):
        return str(value).strip().lower()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _object(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise fail(key, f"an object, found {found(value)}", "write the arguments by name")
    return value


def _answer(fields: Fields) -> RecordedAnswer:
    return RecordedAnswer(
        fields.get("name", label, needed=True),
        fields.get("arguments", _object, {}),
        fields.get("text", text, needed=True),
    )


def _tools(key: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list):
        raise fail(key, f"a list of function schemas, found {found(value)}", "write them as OpenAI's API takes them")
    for at, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            expected = f'{{"type": "function", "function": {{"name": ...}}}}, found {found(tool)}'
            raise fail(f"{key}[{at}]", expected, "write it as OpenAI's API takes it")
    return tuple(value)


def read_recorded(fields: Fields) -> Recorded:
    """The field `recorded` of a record.

    Raises:
        IncidentError: it has no answers.
    """
    answers = fields.many("answers", _answer)
    if not answers:
        raise IncidentError(f"field '{fields.key}.answers': expected at least one answer, found none; leave it out")
    return Recorded(answers, fields.get("tools", _tools, ()))
