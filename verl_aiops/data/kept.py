"""Whether a rendered text holds what the messages hold: templates leave out thinking, calls, tools, or whole roles."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from verl_aiops.data.errors import RowFault

REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
_END_OF_THINKING = "</think>"
# what belongs to the form of a message, not to what it says
_FORM = ("role", "content", "tool_calls", "function_call", "tool_call_id", "id", "type", "index", *REASONING)


def missing(message: dict, text: str) -> list[str]:
    """What of a message does not occur in `text`: "text", "thinking", "call", or "field" and its name.

    White space does not count, as templates trim it.
    """
    found = _Finder(text)
    content, parts = message["content"], []
    if not found(content):
        rest = content.rpartition(_END_OF_THINKING)[2]
        parts.append("thinking" if _END_OF_THINKING in content and found(rest) else "text")
    if not all(found(leaf) for field in REASONING for leaf in _leaves(message.get(field))):
        parts.append("thinking")
    calls = [*(message.get("tool_calls") or ()), *filter(None, [message.get("function_call")])]
    if not all(found(leaf) for call in calls for leaf in _call_leaves(call)):
        parts.append("call")
    others = [field for field in message if field not in _FORM and not all(map(found, _leaves(message[field])))]
    return parts + [f"field {field}" for field in others]


def check_answer(lost: Sequence[str], message: dict, last: bool, note: Callable[[str], None]) -> None:
    """Note what of an answer's message is `lost` in rendering; RowFault if that is what the last one says."""
    for part in lost:
        if last and not part.startswith("field "):
            what = {"text": "text", "thinking": "thinking", "call": "tool call"}[part]
            raise RowFault(
                f"the chat template leaves out, or changes, the {what} of the answer's last message "
                f"({_shown(message, part)}), so what the row prefers would not be trained; use a chat template that "
                "shows it, or take it out of the data"
            )
        note(f"left_out: {part} of assistant messages in the answer")


def check_others(messages: Sequence[dict], text: str, place: str, note: Callable[[str], None]) -> None:
    """Note what of messages that are not trained, in the prompt or between an answer's, is not in the rendered text."""
    for message in messages:
        for part in missing(message, text):
            note(f"left_out: {part} of {message['role']} messages in the {place}")


def check_tools(tools: list[dict] | None, text: str, note: Callable[[str], None]) -> None:
    """Note tools of which the rendered text does not show name, description and parameters, or all where these are not.

    The name alone may stand in a question too.
    """
    found = _Finder(text)
    for tool in tools or ():
        named = tool.get("function", tool)
        parts = list(_described(named)) if isinstance(named, dict) else []
        if not all(map(found, parts or _leaves(tool))):
            note("left_out: tools")


def _described(tool):
    parameters = tool.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    parts = [tool.get("name"), tool.get("description"), *(properties if isinstance(properties, dict) else ())]
    return (part for part in parts if isinstance(part, str))


class _Finder:
    def __init__(self, text: str):
        self.text = text
        self._squeezed: str | None = None

    def __call__(self, part: str) -> bool:
        """Whether `part` occurs as it is, or as it stands inside JSON, whatever the white space."""
        if part.strip() in self.text:
            return True
        if self._squeezed is None:
            self._squeezed = "".join(self.text.split())
        forms = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
        return any("".join(form.split()) in self._squeezed for form in forms)


def _call_leaves(call):
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        return list(_leaves(function))
    arguments = function.get("arguments")
    keys = list(arguments) if isinstance(arguments, dict) else []
    return [*_leaves(function.get("name")), *map(str, keys), *_leaves(arguments)]


def _leaves(value: Any):
    """The texts in a value, numbers as JSON spells them; templates spell true and false in several ways."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield json.dumps(value)


def _shown(message, part):
    if part == "text":
        return repr(message["content"].strip()[:60])
    if part == "call":
        return repr(json.dumps(message.get("tool_calls") or message.get("function_call"), default=str)[:60])
    thinking = [message[field] for field in REASONING if message.get(field)]
    return repr(str(thinking[0] if thinking else message["content"].partition(_END_OF_THINKING)[0]).strip()[:60])
