"""The one door to the tools: `answer`, which no call of a model's can make raise, hang, or say too much."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from verl_aiops.inputs.shown import brief
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.recorded import Recorded, argument_key
from verl_aiops.investigation.tools.arguments import Arguments, BadCall, parsed
from verl_aiops.investigation.tools.index import index_of
from verl_aiops.investigation.tools.table import TOOLS
from verl_aiops.investigation.tools.text import Page, ToolAnswer, fact, harmless, refused

__all__ = ["LEAST_CHARS", "MAX_CHARS", "answer", "tool_names", "tool_schemas"]

MAX_CHARS, LEAST_CHARS = 1500, 200
_LINES, _MOST_LINES = 10, 50


def tool_schemas(case: Case | None = None) -> list[dict[str, Any]]:
    """The tools in OpenAI's function format: those of `TOOLS`, or for a case with recorded answers the ones recorded.

    Without schemas of its own a recorded tool takes whatever was recorded: its parameters are those arguments.
    """
    if case is None or case.recorded is None:
        return [tool.schema() for tool in TOOLS.values()]
    if case.recorded.tools:
        return [dict(tool) for tool in case.recorded.tools]
    return [_recorded_schema(case.recorded, name) for name in case.recorded.names]


def tool_names(case: Case | None = None) -> tuple[str, ...]:
    """The names that a call may have."""
    return tuple(TOOLS) if case is None or case.recorded is None else case.recorded.names


def _recorded_schema(recorded: Recorded, name: str) -> dict[str, Any]:
    arguments = dict.fromkeys(key for row in recorded.answers if row.name == name for key in row.arguments)
    properties = {key: {"type": "string", "description": ""} for key in arguments}
    function = {"name": name, "description": "", "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


def answer(case: Case, name: Any, arguments: Any = None, *, max_chars: int = MAX_CHARS) -> ToolAnswer:
    """What the tool `name` says of a case. The same call has the same answer, whatever was asked before.

    Args:
        name: of a tool, as the model wrote it.
        arguments: an object, or its JSON text, as the model wrote it.
        max_chars: the longest text, in characters, 200 at least; what does not fit is on the next page.

    Never raises: a call that cannot be answered has `ok` false, and a text that tells a model what it may ask.
    """
    max_chars = max(LEAST_CHARS, max_chars)
    try:
        said = _answer(case, name, arguments, max_chars)
    except BadCall as fault:
        said = refused(str(fault))
    if len(said.text) <= max_chars:
        return said
    text = said.text[: max_chars - 1] + "…"
    begin, end = said.facts
    return ToolAnswer(
        text,
        said.ok,
        tuple(quote for quote in said.quotes if quote in text),
        (begin, max(begin, min(end, max_chars - 1))),
    )


def _answer(case: Case, name: Any, arguments: Any, max_chars: int) -> ToolAnswer:
    names = tool_names(case)
    if not isinstance(name, str) or name not in names:
        wrong = fact(name, 60) if isinstance(name, str) else "of another kind than text"
        near = difflib.get_close_matches(name[:60], names, 1, 0.6) if isinstance(name, str) else []
        meant = f"did you mean {near[0]}? " if near else ""
        raise BadCall(f"no tool '{wrong}'; {meant}there are {', '.join(names)}")
    given = parsed(arguments)
    if case.recorded is not None:
        return _recorded(case.recorded, name, given, max_chars)
    tool = TOOLS[name]
    asked = Arguments(name, tuple(tool.parameters), given, index_of(case))
    page = Page(asked.whole("limit", _LINES, 1, _MOST_LINES), asked.whole("offset", 0, 0, 1_000_000), max_chars)
    return tool.run(index_of(case), asked, page)


def _recorded(recorded: Recorded, name: str, given: Mapping[str, Any], max_chars: int) -> ToolAnswer:
    """As recorded; of one that is too long the part from `offset` on, which counts characters here."""
    try:
        wanted = argument_key(given)
    except (RecursionError, ValueError):
        raise BadCall("the arguments are nested too deeply, or hold a number too long to be one") from None
    row = recorded.by_call.get((name, wanted))
    offset = 0
    if row is None and "offset" in given:
        row = recorded.by_call.get((name, argument_key({key: given[key] for key in given if key != "offset"})))
        offset = _offset(given["offset"])
    if row is None:
        calls = [argument_key(other.arguments) for other in recorded.answers if other.name == name]
        near = difflib.get_close_matches(wanted[:200], calls[:200], 3, 0.3) or calls[:3]
        raise BadCall(f"{name} was not recorded with these arguments; it was with {fact(' or '.join(near), 400)}")
    whole = harmless(row.text)
    if offset and offset >= len(whole):
        raise BadCall(f"offset {offset} is behind the last of {len(whole)} characters; give a smaller one")
    text = whole[offset:]
    if len(text) > max_chars:
        end = max_chars - 80
        # at the end of a line, where one ends in the last third
        end = max(text.rfind("\n", end * 2 // 3, end) + 1, 0) or end
        # what matters of a description often stands at its end, as Kubernetes' events do
        last = len(whole) - max_chars + 60
        tail = f", the end with offset={last}" if last > offset + end else ""
        text = f"{text[:end]}\nmore with offset={offset + end} (of {len(whole)}){tail}"
        return ToolAnswer(text, True, tuple(line for line in text.split("\n")[:-1] if line.strip()), (0, end))
    return ToolAnswer(text, True, tuple(line for line in text.split("\n") if line.strip()), (0, len(text)))


def _offset(value: Any) -> int:
    try:
        return max(0, min(int(float(value)), 100_000_000))
    except (TypeError, ValueError, OverflowError):
        raise BadCall(f"argument offset: expected a whole number, found {fact(brief(value, 40), 44)}") from None
