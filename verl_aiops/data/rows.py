"""From a raw record to a preference row in one of two shapes: plain text, or lists of chat messages.

Every rule about what a row may hold lives here; nothing here knows of tokens.
"""

import difflib
import json
import math
import re
from dataclasses import dataclass

from verl_aiops.data.errors import PreferenceDataError, RowFault
from verl_aiops.data.layouts import column_hint, dialogue_hint, message_hint

ROLES = ("system", "developer", "user", "assistant", "tool")
# What JSON text may not hold as it is, but for tab and line breaks; and halves of surrogate pairs, which UTF-8 cannot
# hold and tokenizers refuse.
UNUSABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(slots=True)
class PreferenceRow:
    """`prompt`, `chosen`, `rejected` are all texts, or all lists of messages whose answers start with the assistant."""

    prompt: str | list[dict]
    chosen: str | list[dict]
    rejected: str | list[dict]
    id: str | None = None
    group: str | None = None
    weight: float = 1.0
    tools: list | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    id: str = "id"
    group: str = "group"
    weight: str = "weight"
    tools: str = "tools"

    def names(self):
        return [getattr(self, field) for field in self.__slots__]

    def check(self, place: str, found: list[str]):
        """Raise PreferenceDataError if columns `found` at `place` lack an answer, or a prompt asked for by name.

        Without a prompt column the prompt is what both conversations begin with, so its absence alone is no fault.
        """
        required = ["chosen", "rejected"] + (["prompt"] if self.prompt != "prompt" else [])
        missing = [field for field in required if getattr(self, field) not in found]
        if not missing:
            return
        hints = []
        for field in missing:
            near = difflib.get_close_matches(getattr(self, field), found, n=1, cutoff=0.5)
            hints += [f"did you mean data.{field}_key={name}?" for name in near]
        if not hints:
            hints = [column_hint(missing, found)]
        lacking = ", ".join(repr(getattr(self, field)) for field in missing)
        message = f"{place} lacks the column(s) {lacking}; found: {_listed(found)}."
        raise PreferenceDataError(" ".join([message, *hints]).rstrip())


def parse_row(values: dict, columns: Columns) -> PreferenceRow:
    """Check one record and bring it to one of the two shapes; raises RowFault saying what is wrong.

    Besides rows of texts only and rows of messages only, it takes text answers to a prompt of messages (one assistant
    message each), a text prompt to answers of messages (one user message), and rows without a prompt, or with the
    last user message repeated as a text, whose answers are whole conversations with a common beginning.
    """
    prompt = values.get(columns.prompt)
    answers = []
    for key in (columns.chosen, columns.rejected):
        if values.get(key) is None:
            raise RowFault(f"{key} is null" if key in values else f"{key} is missing; found: {_listed(values)}")
        answers.append(_text_or_messages(values[key], key))
    chosen, rejected = answers
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowFault(f"{columns.chosen} and {columns.rejected} must be of one kind, both texts or both messages")
    if prompt is not None:
        prompt = _text_or_messages(prompt, columns.prompt)
        if not (prompt.strip() if isinstance(prompt, str) else prompt):
            raise RowFault(f"{columns.prompt} is empty")

    if isinstance(chosen, str):
        for answer, key in ((chosen, columns.chosen), (rejected, columns.rejected)):
            if not answer.strip():
                raise RowFault(f"{key} is empty")
        if prompt is None:
            filled = [name for name, value in values.items() if value is not None]
            hint = dialogue_hint(chosen) or column_hint(["prompt"], filled)
            raise RowFault(
                f"{columns.prompt} is missing; only conversations may carry their prompt inside the answers"
                + (f". {hint}" if hint else "")
            )
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": answer}] for answer in (chosen, rejected))
    else:
        if not isinstance(prompt, list):
            prompt, chosen, rejected = _with_prompt_messages(prompt, chosen, rejected, columns)
        _check_answer(chosen, columns.chosen)
        _check_answer(rejected, columns.rejected)
    if chosen == rejected:
        raise RowFault(f"{columns.chosen} and {columns.rejected} are equal")
    return PreferenceRow(
        prompt,
        chosen,
        rejected,
        id=_label(values, columns.id),
        group=_label(values, columns.group),
        weight=_weight(values, columns.weight),
        tools=_tools(values, columns.tools),
    )


def _with_prompt_messages(prompt, chosen, rejected, columns):
    """Answers of messages beside a prompt that is a text or is not there."""
    if prompt is not None and all(answer and answer[0]["role"] == "assistant" for answer in (chosen, rejected)):
        return [{"role": "user", "content": prompt}], chosen, rejected
    if chosen == rejected:
        raise RowFault(f"{columns.chosen} and {columns.rejected} are equal")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise RowFault(
            f"{columns.chosen} and {columns.rejected} begin with different messages, so they share no prompt"
            + ("" if prompt is not None else f"; the row has no {columns.prompt} either")
        )
    messages = chosen[:shared]
    if prompt is not None and prompt.strip() not in [message["content"].strip() for message in messages]:
        raise RowFault(
            f"{columns.prompt} is a text that is none of the messages {columns.chosen} and {columns.rejected} share"
        )
    return messages, chosen[shared:], rejected[shared:]


def _check_answer(messages, key):
    if not messages:
        raise RowFault(f"{key} is empty (no message after the prompt)")
    for place in (0, -1):
        if messages[place]["role"] != "assistant":
            raise RowFault(
                f"{key} {'begins' if place == 0 else 'ends'} with a {messages[place]['role']} message where an answer, "
                "an assistant message, belongs; the prompt's messages must be the same for both answers"
            )
    for message in messages:
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise RowFault(f"{key} is empty (an assistant message without text)")


def _text_or_messages(value, key):
    if isinstance(value, str):
        _check_text(value, key)
        return value
    if isinstance(value, list):
        return [_message(message, f"{key}[{place}]") for place, message in enumerate(value)]
    raise RowFault(f"{key} is of type {type(value).__name__}; a text or a list of messages is expected")


def _message(message, key):
    if not isinstance(message, dict):
        raise RowFault(f"{key} is of type {type(message).__name__}, not a message {{'role', 'content'}}")
    # Parquet gives every message of a column the same fields, null where a message had none.
    message = {field: value for field, value in message.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        hint = message_hint(message)
        raise RowFault(f"{key} has the role {role!r}; roles are {', '.join(ROLES)}" + (f". {hint}" if hint else ""))
    if content is None and message.get("tool_calls"):
        return message | {"content": ""}
    if not isinstance(content, str):
        kind = "nothing" if content is None else f"a value of type {type(content).__name__}"
        raise RowFault(f"{key} has {kind} as its content; a text is expected")
    _check_text(content, f"{key} content")
    return message


def _check_text(text, key):
    found = UNUSABLE.search(text)
    if found:
        code = ord(found.group())
        kind = "half of a surrogate pair" if code >= 0xD800 else "control character"
        raise RowFault(f"{key} holds the {kind} U+{code:04X} at character {found.start()}; remove it")


def _label(values, key):
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowFault(f"{key} is of type {type(value).__name__}; a text or a whole number is expected")
    return str(value)


def _weight(values, key):
    value = values.get(key)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault(f"{key} is of type {type(value).__name__}; a number is expected")
    if not math.isfinite(value) or value < 0:
        raise RowFault(f"{key} is {value}; a finite number of at least 0 is expected")
    return float(value)


def _tools(values, key):
    tools = values.get(key)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise RowFault(f"{key} is not valid JSON: {error}") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise RowFault(f"{key} is not a list of tool descriptions")
    return tools or None


def _listed(names):
    return ", ".join(map(repr, names)) or "nothing"
