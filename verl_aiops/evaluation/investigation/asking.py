"""Who investigates: a model in a folder, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.questions import CaseQuestion
from verl_aiops.evaluation.run.hf_backend import LocalBackend
from verl_aiops.evaluation.run.openai_backend import EndpointBackend, completion_tokens
from verl_aiops.http import HttpFault
from verl_aiops.investigation.tools import tool_schemas
from verl_aiops.rollout.tools.desk import Asked, Desk
from verl_aiops.rollout.tools.prompt import described
from verl_aiops.rollout.tools.settings import ToolSettings

__all__ = ["CaseJob", "EndpointInvestigator", "Investigated", "LocalInvestigator", "ToolOptions"]

_TEXT_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class ToolOptions:
    """How investigations are held, in the words of the training's settings."""

    settings: ToolSettings
    call_format: str = "hermes"
    max_response_length: int = 4096


@dataclass(frozen=True)
class CaseJob:
    question: CaseQuestion
    sample: int
    seed: int


@dataclass
class Investigated:
    """One investigation as it went, or the reason why there is none, which is ``of_server`` where any other would have
    met it too."""

    turns: list[str] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    tokens: list[int] | None = field(default_factory=list)
    tool_calls: list[Any] = field(default_factory=list)
    turn_calls: list[int] = field(default_factory=list)
    error: str | None = None
    of_server: bool = False


Done = Callable[[CaseJob, Investigated], None]


class LocalInvestigator(LocalBackend):
    """The agent loop's conversations (`rollout.tools.conversation`), sampled by the engine of the rollout ``hf``."""

    tools: ToolOptions

    def prepare(self, tools: ToolOptions, questions: Sequence[CaseQuestion]) -> None:
        """Refuse what cannot work before anything expensive starts.

        Raises:
            EvaluationError: a template that cannot investigate, or a prompt that is too long.
        """
        from verl_aiops.rollout.tools.conversation import ModelTools

        self.tools = tools
        arguments = dict(self.options.chat_template_kwargs)
        try:
            self.model_tools = ModelTools(
                self.tokenizer, self.stops, tools.call_format, tools.settings, tools.max_response_length, arguments
            )
        except ValueError as error:
            raise EvaluationError(f"--model {self.model.path}: {error}") from None
        room = getattr(self.config, "max_position_embeddings", None)
        for question in questions:
            needed = len(self._ids(question)) + tools.max_response_length
            if room is not None and needed > room:
                raise EvaluationError(
                    f"{question.id}: its prompt and {tools.max_response_length} tokens behind it need {needed} "
                    f"positions, and the model has {room}; lower --max-response-length"
                )

    def _ids(self, question: CaseQuestion) -> list[int]:
        try:
            return self.model_tools.prompt_ids([dict(m) for m in question.messages], question.asked())
        except Exception as error:  # templates raise what they like
            raise EvaluationError(f"{question.id}: {' '.join(str(error).split())[:300]}") from error

    def investigate(self, jobs: Sequence[CaseJob], done: Done) -> None:
        """Have every investigation, a batch at a time; samples of a case share its prompt's forward pass."""
        for start in range(0, len(jobs), self.batch):
            self._batch(jobs[start : start + self.batch], done)

    def _batch(self, jobs: Sequence[CaseJob], done: Done) -> None:
        from verl_aiops.rollout.hf.engine import Request, Sampling
        from verl_aiops.rollout.tools.conversation import Conversation

        talks = [Conversation(self.model_tools, job.question.asked(), self._ids(job.question)) for job in jobs]
        while active := [(job, talk) for job, talk in zip(jobs, talks) if not talk.over]:
            requests = [
                Request(
                    tuple(talk.stream.all_ids),
                    Sampling(talk.budget(), self.options.temperature, self.options.top_p, seed=job.seed),
                )
                for job, talk in active
            ]
            sampled = self._engine.generate(requests)

            async def take(active=active, sampled=sampled) -> None:
                for (_, talk), answer in zip(active, sampled):
                    await talk.take(list(answer.token_ids), answer.logps)

            asyncio.run(take())
        for job, talk in zip(jobs, talks):
            kept = talk.desk.fields()
            done(job, Investigated(talk.turns, talk.cut, talk.tokens, kept["tool_calls"], kept["turn_calls"]))


class EndpointInvestigator(EndpointBackend):
    """Investigations over chat completions. Where the prompt lists the tools, calls are text and so are their answers;
    else the server is given the tools and parses the calls itself."""

    tools: ToolOptions

    def prepare(self, tools: ToolOptions, questions: Sequence[CaseQuestion]) -> None:
        self.tools = tools

    def investigate(self, jobs: Sequence[CaseJob], done: Done) -> None:
        asyncio.run(self._each(jobs, self._investigate, done))

    async def _investigate(self, job: CaseJob) -> Investigated:
        deadline = time.monotonic() + self.endpoint.deadline_s
        asked, made = job.question.asked(), Investigated()
        messages: list[dict[str, Any]] = [dict(message) for message in job.question.messages]
        as_text = described(messages) if asked.listed is None else asked.listed
        desk = Desk(asked.case, self.tools.settings, asked.answer_chars)
        more = {} if as_text else {"tools": tool_schemas(asked.case)}
        room = self.tools.max_response_length
        while True:
            if room <= self.tools.settings.verdict_tokens:
                desk.close()
            budget = max(16, min(room, self.tools.settings.turn_tokens or room) if desk.left else room)
            try:
                payload = self._payload(messages, budget, job.seed) | more
                text, cut, tokens, calls, shown = await self._http.ask(payload, _read, deadline)
            except HttpFault as fault:
                made.error, made.of_server = str(fault), fault.of_server
                break
            made.turns.append(text)
            made.cut.append(cut)
            if made.tokens is not None:
                made.tokens = None if tokens is None else [*made.tokens, tokens]
            room -= tokens or len(text) // 3
            calls = _text_calls(text) if as_text else calls
            if not calls or not desk.left:
                desk.end(len(calls))
                break
            messages.append(shown if not as_text else {"role": "assistant", "content": text})
            some = desk.answer(calls)
            for at, kept in enumerate(some):
                room -= len(kept["reply"]) // 3
                if as_text:
                    content = f"<tool_response>\n{kept['reply']}\n</tool_response>"
                    messages.append({"role": "user", "content": content})
                else:
                    called = shown["tool_calls"][at].get("id")
                    messages.append({"role": "tool", "tool_call_id": called, "content": kept["reply"]})
            if not as_text:
                del shown["tool_calls"][len(some) :]
        kept_fields = desk.fields()
        made.tool_calls, made.turn_calls = kept_fields["tool_calls"], kept_fields["turn_calls"]
        return made


def _text_calls(text: str) -> list[Asked]:
    calls = []
    for found in _TEXT_CALL.findall(text)[:64]:
        try:
            call = json.loads(found)
            calls.append(Asked(str(call["name"]), json.dumps(call["arguments"])))
        except (ValueError, TypeError, KeyError, RecursionError):
            calls.append(Asked(None))
    return calls


def _read(reply: Any, shown: str) -> tuple[str, bool, int | None, list[Asked], dict[str, Any]]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    called = (message.get("tool_calls") or []) if isinstance(message, dict) else None
    if (
        not isinstance(message, dict)
        or not isinstance(message.get("content") or "", str)
        or not isinstance(called, list)
    ):
        raise HttpFault(f"expected choices[0].message with text or calls: {shown}", True)
    tokens = completion_tokens(reply)
    # lone surrogates are no text: they could neither be sent back nor written to a file
    text = (message.get("content") or "").encode("utf-8", "replace").decode("utf-8")
    given = [call for call in called if isinstance(call, Mapping)][:64]
    calls = []
    for call in given:
        function = call.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        calls.append(Asked(name if isinstance(name, str) else None, arguments if isinstance(arguments, str) else ""))
    back = {"role": "assistant", "content": text, "tool_calls": [dict(call) for call in given]}
    return text, choice.get("finish_reason") == "length", tokens, calls, back
