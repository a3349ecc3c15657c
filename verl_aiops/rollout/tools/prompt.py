"""The tools in the prompt: listed by the row itself, or by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["NO_TOOLS", "described", "template_shows_tools"]

# how a prompt that lists its tools shows what a call looks like
_CALL = "<tool_call>"
NO_TOOLS = (
    "the prompt lists no tools, and this model's chat template would not list them either; build the rows with the "
    "tools in the prompt, or take a chat template that knows tools"
)


def described(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a prompt lists its tools itself, so that the chat template is not to do it once more."""
    return any(isinstance(m.get("content"), str) and _CALL in m["content"] for m in messages)


def template_shows_tools(tokenizer: Any, schemas: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> bool:
    """Whether the chat template writes the tools into the prompt."""
    asked = [{"role": "user", "content": "?"}]
    with_tools, without = (
        tokenizer.apply_chat_template(asked, tools=tools, tokenize=False, add_generation_prompt=True, **arguments)
        for tools in (list(schemas), None)
    )
    return with_tools != without
