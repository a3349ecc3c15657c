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

__all__ = ["Recorded", "RecordedAnswer", "RecordedCall", "argument_key", "read_recorded"]


class RecordedAnswer(NamedTuple):
    """What the tool `name` said to these arguments."""

    name: str
    arguments: Mapping[str, Any]
    text: str


class RecordedCall(NamedTuple):
    """A call that was answered."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Recorded:
    """The answers, the tools by their schemas in OpenAI's function format, and ways to the truth.

    Each of ``paths`` are calls by which somebody who knows the tools finds it, in their order.
    """

    answers: tuple[RecordedAnswer, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    paths: tuple[tuple[RecordedCall, ...], ...] = ()

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
        if self.paths:
            row["paths"] = [
                [{"name": call.name, "arguments": dict(call.arguments)} for call in path] for path in self.paths
            ]
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


def _paths(key: str, value: Any) -> tuple[tuple[RecordedCall, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(path, list) and path for path in value):
        raise fail(key, f"a list of lists of calls, found {found(value)}", "write each way to the truth as its calls")
    paths = []
    for at, path in enumerate(value):
        calls = []
        for number, call in enumerate(path):
            name = call.get("name") if isinstance(call, Mapping) else None
            arguments = call.get("arguments", {}) if isinstance(call, Mapping) else None
            if not isinstance(name, str) or not isinstance(arguments, Mapping):
                expected = f'{{"name": ..., "arguments": {{...}}}}, found {found(call)}'
                raise fail(f"{key}[{at}][{number}]", expected, "write the call as its answer is recorded")
            calls.append(RecordedCall(name, arguments))
        paths.append(tuple(calls))
    return tuple(paths)


def read_recorded(fields: Fields) -> Recorded:
    """The field `recorded` of a record.

    Raises:
        IncidentError: it has no answers.
    """
    answers = fields.many("answers", _answer)
    if not answers:
        raise IncidentError(f"field '{fields.key}.answers': expected at least one answer, found none; leave it out")
    recorded = Recorded(answers, fields.get("tools", _tools, ()), fields.get("paths", _paths, ()))
    for at, path in enumerate(recorded.paths):
        for number, call in enumerate(path):
            if (call.name, argument_key(call.arguments)) not in recorded.by_call:
                where = f"{fields.key}.paths[{at}][{number}]"
                raise fail(where, f"a call that has an answer, found {call.name}", "leave the path out")
    return recorded
