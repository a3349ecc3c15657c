"""From a value of a row to a text or a list of chat messages, the same for every kind of file.

Parquet gives all structs of a column the same fields, null where a row had none, and maps as lists of pairs. Nothing
can tell such padding from a null that was meant, so a field that is null is a field that is not there, at any depth and
in JSON lines alike; nulls inside JSON text (a call's arguments, `tools`) are meant, and stay.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from verl_aiops.data.errors import RowFault
from verl_aiops.data.layouts import message_hint

ROLES = ("system", "developer", "user", "assistant", "tool")
# What JSON text may not hold as it is, but for tab and line breaks; and halves of surrogate pairs, which UTF-8 cannot
# hold and tokenizers refuse.
UNUSABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
# how a list of messages begins as text, in JSON or in Python's spelling
_LIST_OF_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content)["']\s*:""")
# what other layouts call these; refused, in JSON text too, where such a list is no answer
_OTHER_ROLES = ("human", "gpt", "model", "bot", "chatbot", "ai", "function", "observation", "function_call")
# ShareGPT's names of the speakers
SHARE_GPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
_HOLDERS = ("messages", "conversations", "conversation")
_A_ROLE = re.compile(rf"""["']role["']\s*:\s*["'](?:{"|".join(ROLES)})["']""")


class Arguments(dict):
    """Arguments of a call that came as JSON text, as servers send them; `text` is that text."""

    def __init__(self, values: dict, text: str):
        super().__init__(values)
        self.text = text


def text_or_messages(value: Any, key: str, note: Callable[[str], None]) -> str | list[dict]:
    """A text as it is; one message or a list of them, also as JSON text, as a list. Raises RowFault."""
    if isinstance(value, str):
        check_text(value, key)
        parsed = _messages_in(value, key)
        if parsed is None:
            return value
        note("messages_as_text")
        value = parsed
    if isinstance(value, dict) and ("role" in value or {"from", "value"} <= value.keys()):
        value = [value]
    if isinstance(value, list):
        return [_message(message, f"{key}[{place}]", note) for place, message in enumerate(value)]
    hint = message_hint(value) if isinstance(value, dict) else ""
    raise RowFault(
        f"{key} is of type {type(value).__name__}; a text or a list of messages is expected" + (hint and f". {hint}")
    )


def unpadded(value: Any) -> Any:
    """`value` without null fields, at any depth, and with maps (parquet's lists of pairs) as objects."""
    if isinstance(value, dict):
        return {field: unpadded(inner) for field, inner in value.items() if inner is not None}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value):
            return unpadded(dict(value))
        return [unpadded(inner) for inner in value]
    return value


def read_tools(tools: Any, key: str, note: Callable[[str], None]) -> list[dict] | None:
    """Tool descriptions from a list, or from JSON text of the list or of its items; None for none. Raises RowFault."""
    if isinstance(tools, str):
        tools = _json(tools, key) if tools.strip() else None
    elif tools is not None:
        tools = _without_nulls(tools, note)
    if isinstance(tools, list):
        tools = [_or_json(tool) for tool in tools]
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowFault(f"{key} is not a list of tool descriptions")
    return tools or None


def check_text(text: str, key: str) -> None:
    """Raises RowFault for what no file of ours may hold."""
    found = UNUSABLE.search(text)
    if found:
        code = ord(found.group())
        kind = "half of a surrogate pair" if code >= 0xD800 else "control character"
        raise RowFault(f"{key} holds the {kind} U+{code:04X} at character {found.start()}; remove it")


def _messages_in(text, key):
    """The messages that `text` is the JSON of, or None for any other text; RowFault where they cannot be read."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _LIST_OF_MESSAGES.match(text) and _A_ROLE.search(text):
            raise RowFault(
                f"{key} is the text of a list of messages, but not valid JSON ({error}); give the list itself, or what "
                "json.dumps makes of it"
            ) from error
        return None
    inner = [value[name] for name in _HOLDERS if name in value] if isinstance(value, dict) else []
    if inner and _are_messages(inner[0]):
        raise RowFault(f"{key} is the JSON text of an object that holds messages; give the list of messages itself")
    value = [value] if isinstance(value, dict) else value
    return value if _are_messages(value) else None


def _are_messages(value):
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value):
    if isinstance(value, dict) and {"from", "value"} <= value.keys():
        return True
    if not isinstance(value, dict) or str(value.get("role")).lower() not in ROLES + _OTHER_ROLES:
        return False
    return isinstance(value.get("content"), (str, list)) or bool(value.get("tool_calls"))


def _message(message, key, note):
    if not isinstance(message, dict):
        raise RowFault(f"{key} is of type {type(message).__name__}, not a message {{'role', 'content'}}")
    message = {
        field: _calls(value, f"{key}.tool_calls", note) if field == "tool_calls" else unpadded(value)
        for field, value in message.items()
        if value is not None
    }
    if "role" not in message and {"from", "value"} <= message.keys():
        message = _from_value(message, key)
        note("layout: from/value")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        hint = message_hint(message)
        raise RowFault(f"{key} has the role {role!r}; roles are {', '.join(ROLES)}" + (f". {hint}" if hint else ""))
    if content is None and message.get("tool_calls"):
        return message | {"content": ""}
    if not isinstance(content, str):
        kind = "nothing" if content is None else f"a value of type {type(content).__name__}"
        mend = " (join the texts of its parts into one)" if isinstance(content, list) else ""
        raise RowFault(f"{key} has {kind} as its content; a text is expected{mend}")
    check_text(content, f"{key} content")
    return message


def _from_value(message, key):
    speaker = message["from"]
    role = SHARE_GPT.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RowFault(f"{key} is from {speaker!r}; of messages with from and value these are {', '.join(SHARE_GPT)}")
    others = {field: value for field, value in message.items() if field not in ("from", "value")}
    return {"role": role, "content": message["value"], **others}


def _calls(calls, key, note):
    """An assistant's calls with decoded arguments, as servers hand them to templates."""
    if isinstance(calls, str):
        calls = _json(calls, key)
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise RowFault(f"{key} is not a list of calls {{'function': {{'name', 'arguments'}}}}")
    return [_call(call, f"{key}[{place}]", note) for place, call in enumerate(calls)]


def _call(call, key, note):
    """One call, {'function': {'name', 'arguments'}} or the inner object alone; fields keep their order."""
    read = {}
    for field, value in call.items():
        if field == "arguments" and value is not None:
            read[field] = _arguments(value, f"{key}.arguments", note)
        elif field == "function" and isinstance(value, dict):
            read[field] = _call(value, f"{key}.function", note)
        elif field == "function" and value is not None:
            raise RowFault(f"{key}.function is of type {type(value).__name__}; an object is expected")
        elif value is not None:
            read[field] = unpadded(value)
    return read


def _arguments(arguments, key, note):
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        values = _json(arguments, key)
        if not isinstance(values, dict):
            raise RowFault(f"{key}: the JSON text is of type {type(values).__name__}; an object is expected")
        return Arguments(values, arguments)
    arguments = _without_nulls(arguments, note)
    if arguments == []:  # a map without entries
        return {}
    if not isinstance(arguments, dict):
        raise RowFault(f"{key} is of type {type(arguments).__name__}; an object is expected")
    return arguments


def _without_nulls(value, note):
    if _has_null(value):
        note("nulls")
    return unpadded(value)


def _has_null(value):
    if isinstance(value, dict):
        return any(inner is None or _has_null(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_has_null(inner) for inner in value)
    if isinstance(value, tuple):  # an entry of a map
        return any(inner is None or _has_null(inner) for inner in value)
    return False


def _or_json(value):
    """What `value` is the JSON of, where it is a text and JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _json(text, key):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{key} is not valid JSON: {error}") from error
