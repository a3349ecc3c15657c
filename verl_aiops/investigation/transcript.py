"""An investigation as messages: the calls in a field of their own, or as text that every chat template can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.incidents.prompts import json_text
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.prompts import AskOptions, opening
from verl_aiops.investigation.tools import ToolAnswer, answer

__all__ = ["Call", "Transcript", "as_text", "call_text"]


@dataclass(frozen=True)
class Call:
    """A call of a tool and what it said; `note` is what was said before it."""

    name: str
    arguments: Mapping[str, Any]
    answer: ToolAnswer
    note: str = ""


@dataclass
class Transcript:
    """Asks the tools of a case and keeps what was said. `verdict` is the text of the last answer."""

    case: Case
    options: AskOptions = field(default_factory=AskOptions)
    calls: list[Call] = field(default_factory=list)
    verdict: str = ""

    def ask(self, name: str, note: str = "", /, **arguments: Any) -> ToolAnswer:
        """A call; arguments that are None are left out."""
        given = {key: value for key, value in arguments.items() if value is not None}
        said = answer(self.case, name, given, max_chars=self.options.answer_chars)
        self.calls.append(Call(name, given, said, note))
        return said

    def messages(self) -> list[dict[str, Any]]:
        """In OpenAI's form: an assistant's `tool_calls`, their results as role `tool`, the verdict last."""
        messages: list[dict[str, Any]] = list(opening(self.case, self.options))
        for number, call in enumerate(self.calls):
            function = {"name": call.name, "arguments": dict(call.arguments)}
            asked = {"type": "function", "id": f"call_{number}", "function": function}
            messages.append({"role": "assistant", "content": call.note, "tool_calls": [asked]})
            messages.append(
                {"role": "tool", "tool_call_id": f"call_{number}", "name": call.name, "content": call.answer.text}
            )
        messages.append({"role": "assistant", "content": self.verdict})
        return messages


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Hermes' and Qwen's templates write it, and verl's parser `hermes` reads it."""
    return f"<tool_call>\n{json_text({'name': name, 'arguments': dict(arguments)})}\n</tool_call>"


def as_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages of role and content alone: calls become text (`call_text`) behind what was said before them.

    Templates that know `tool_calls` in Hermes' spelling make the same text of both.
    """
    plain = []
    for message in messages:
        content = str(message.get("content") or "")
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            text = call_text(call["function"]["name"], arguments)
            content = f"{content}\n{text}" if content else text
        plain.append({"role": str(message["role"]), "content": content})
    return plain
