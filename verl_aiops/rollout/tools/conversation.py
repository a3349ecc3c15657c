"""One investigation as tokens: the model's messages as it wrote them, the tools' answers between them, the budgets."""

from __future__ import annotations

from typing import Any

from verl_aiops.data.control import ControlTokens
from verl_aiops.investigation.tools import LEAST_CHARS, tool_schemas
from verl_aiops.rollout.rounds.turns import Stream, TemplateTurns, answer_text
from verl_aiops.rollout.tools.calls import CallReader
from verl_aiops.rollout.tools.cases import AskedCase
from verl_aiops.rollout.tools.desk import NO_CALLS_LEFT, SHORTEST, Desk, Kept, leave_out, shorten
from verl_aiops.rollout.tools.prompt import NO_TOOLS, described, template_shows_tools
from verl_aiops.rollout.tools.settings import ToolSettings

__all__ = ["Conversation", "ModelTools"]

_LEAST_CALL = 16
"""Tokens of the shortest call; with fewer to go the model is asked for its verdict."""


class ModelTools:
    """What investigations of one model have in common.

    Args:
        tokenizer: with the chat template of the run.
        stops: ids that end generation.
        call_format: a parser of verl's, ``actor_rollout_ref.rollout.multi_turn.format``.
        settings: how much may be asked.
        total: tokens of the whole response, ``data.max_response_length``.
        template_arguments: as the prompts are rendered with.

    Raises:
        ValueError: no such parser, or a template that cannot write what a tool returned.
    """

    def __init__(
        self,
        tokenizer: Any,
        stops: frozenset[int],
        call_format: str,
        settings: ToolSettings,
        total: int,
        template_arguments: dict[str, Any] | None = None,
    ):
        self.tokenizer, self.settings, self.total = tokenizer, settings, total
        self.template_arguments = dict(template_arguments or {})
        self.reader = CallReader(call_format, tokenizer)
        self.stops = stops | self.reader.stops
        self.template = TemplateTurns(tokenizer, chat_template_kwargs=self.template_arguments)
        self.shown = ControlTokens(tokenizer).broken_up
        shortest = self.template.tool_replies([("tool", SHORTEST)], [])
        if NO_CALLS_LEFT not in tokenizer.decode(shortest):
            raise ValueError(
                "the chat template leaves out what a tool returned; take one that writes messages of the role tool"
            )
        self.notice_tokens = len(shortest)
        least = settings.verdict_tokens + self.notice_tokens + _LEAST_CALL
        if total < least:
            raise ValueError(
                f"data.max_response_length={total}: expected {least} or more, for one call with its answer and "
                f"{settings.section}.verdict_tokens={settings.verdict_tokens}"
            )

    def prompt_ids(self, messages: list[dict[str, Any]], asked: AskedCase) -> list[int]:
        """The prompt's tokens, tools included.

        Raises:
            ValueError: neither the prompt nor the template lists the tools.
        """
        if described(messages) if asked.listed is None else asked.listed:
            return self.template.build_initial_tokens(messages)
        schemas = tool_schemas(asked.case)
        if not template_shows_tools(self.tokenizer, schemas, self.template_arguments):
            raise ValueError(NO_TOOLS)
        return self.template.build_initial_tokens(messages, tools=schemas)


class Conversation:
    """One investigation, whoever generates its messages."""

    def __init__(self, model: ModelTools, asked: AskedCase, prompt_ids: list[int]):
        self.model, self.schemas = model, tool_schemas(asked.case)
        self.desk = Desk(asked.case, model.settings, asked.answer_chars, model.shown)
        self.stream = Stream(prompt_ids)
        self.turns: list[str] = []
        self.cut: list[bool] = []
        self.tokens: list[int] = []
        self.over = False

    @property
    def _room(self) -> int:
        return self.model.total - len(self.stream.ids)

    @property
    def _room_to_ask(self) -> int:
        """Tokens of a message that calls, where its answer and the verdict must fit behind it."""
        return self._room - self.model.settings.verdict_tokens - self.model.notice_tokens

    def budget(self) -> int:
        """Tokens that the next message may have, 1 or more."""
        if self.desk.left and self._room_to_ask >= _LEAST_CALL:
            return min(self.model.settings.turn_tokens or self._room_to_ask, self._room_to_ask)
        self.desk.close()
        return self._room

    async def take(self, ids: list[int], logps: list[float] | None) -> None:
        """Read the model's next message, answer its calls, or end the investigation.

        Raises:
            ValueError: as many log-probs as tokens are needed, in every message or in none.
        """
        self.stream.add_answer(ids, logps)
        text, cut = answer_text(self.model.tokenizer, ids, self.model.stops)
        self.turns.append(text)
        self.cut.append(cut)
        self.tokens.append(len(ids))
        asked = await self.model.reader.read(ids, text, self.schemas)
        if not asked or not self.desk.left:
            self.desk.end(len(asked))
            self.over = True
            return
        self.stream.add_context(self._fitting(self.desk.answer(asked)))

    def _fitting(self, some: list[Kept]) -> list[int]:
        """The replies as tokens, cut where the verdict would not fit behind them."""
        room = self._room - self.model.settings.verdict_tokens
        ids = self._rendered(some)
        if room - len(ids) < self.model.notice_tokens + _LEAST_CALL:
            # there will be no room for another call
            self.desk.close(some[-1])
            ids = self._rendered(some)
        chars = self.desk.chars
        while len(ids) > room and chars:
            chars = chars // 2 if chars > LEAST_CHARS // 8 else 0
            shorten(some, chars)
            ids = self._rendered(some)
        while len(ids) > room and len(some) > 1:
            # a message of many calls: each reply is nothing but its end by now, and not all of these fit
            leave_out(some.pop(0))
            ids = self._rendered(some)
        return ids

    def _rendered(self, some: list[Kept]) -> list[int]:
        replies = [(kept["name"], kept["reply"]) for kept in some]
        return self.model.template.tool_replies(replies, self.stream.all_ids)
