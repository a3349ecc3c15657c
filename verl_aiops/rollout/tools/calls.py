"""Reading the calls of a message, in the format of the model, through verl's tool parsers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from verl.tools.schemas import OpenAIFunctionToolSchema

from verl_aiops.rollout.tools.desk import Asked
from verl_aiops.seam.rollout import ToolParser, tool_parser

__all__ = ["CallReader"]

# how calls begin in formats whose parser of verl's has no `tool_call_start_token`
_BEGINS = {"gpt-oss": r"to=functions\.", "gemma4": r"<\|tool_call>"}
_MOST = 64
"""Calls of one message that are looked at; whoever writes more asks nothing."""


class CallReader:
    """Reads calls by one of verl's parsers, and counts those that the parser could not read.

    Args:
        name: of the format, ``actor_rollout_ref.rollout.multi_turn.format``.

    Raises:
        ValueError: verl has no such parser.
    """

    def __init__(self, name: str, tokenizer: Any):
        # a call that cannot be read is answered, and not a line of the log for each
        tool_parser.logger.setLevel(logging.CRITICAL)
        try:
            self.parser = ToolParser.get_tool_parser(name, tokenizer)
        except ValueError:
            known = ", ".join(sorted(ToolParser._registry))
            raise ValueError(
                f"actor_rollout_ref.rollout.multi_turn.format={name}: expected the name of a tool parser of verl's: "
                f"{known}"
            ) from None
        mark = getattr(self.parser, "tool_call_start_token", None)
        pattern = re.escape(mark) if isinstance(mark, str) and mark else _BEGINS.get(name)
        self._begins = re.compile(pattern) if pattern else None

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end a message with a call, beside those of the model."""
        return frozenset(self.parser.stop_token_ids)

    async def read(self, ids: Sequence[int], text: str, schemas: Sequence[dict[str, Any]]) -> list[Asked]:
        """The calls of a message; an empty list where it calls nothing. Never raises.

        Args:
            ids: the message's tokens.
            text: the same as text, in which calls that could not be read are looked for.
            schemas: the tools in OpenAI's function format.
        """
        begun = len(self._begins.findall(text)) if self._begins else 0
        if self._begins and not begun:
            return []
        try:
            tools = [OpenAIFunctionToolSchema.model_validate(schema) for schema in schemas]
            _, found = await self.parser.extract_tool_calls(list(ids), tools)
            asked = [Asked(call.name, call.arguments) for call in found[:_MOST]]
        except Exception:  # what a model wrote, in a parser that may be anyone's
            asked = []
        return asked + [Asked(None)] * min(_MOST, max(0, begun - len(asked)))
