"""Answers of a model behind an OpenAI-compatible server: one chat completion per round, retried up to a deadline."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import NO_TEXT, Done, Generation, Job, SamplingOptions, budgets_of
from verl_aiops.evaluation.run.questions import Question, offered_names
from verl_aiops.http import HttpFault, JsonClient, Patience
from verl_aiops.reasoning import ANY

__all__ = ["EndpointBackend", "EndpointOptions", "completion_tokens"]

LONGEST_REPLY = 4 << 20


@dataclass(frozen=True)
class EndpointOptions:
    """``url`` is the base, up to ``/v1``; ``timeout_s`` bounds a request, ``deadline_s`` a whole conversation with its
    retries; ``schema`` constrains the last round to the answer's JSON schema (``response_format``), whose fields may
    only take the names that the prompt lists, where it lists any.

    Raises:
        EvaluationError: a setting that cannot work.
    """

    url: str
    model: str
    api_key: str | None = None
    concurrency: int = 16
    timeout_s: float = 120.0
    deadline_s: float = 600.0
    attempts: int = 5
    backoff_s: float = 1.0
    schema: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EvaluationError(f"--endpoint {self.url}: expected an address such as http://host:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise EvaluationError(
                "--endpoint: expected no user, password or query in it; the key comes from --api-key-env"
            )
        for name in ("timeout_s", "deadline_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise EvaluationError(f"--{name[:-2]} {value}: expected seconds, more than 0")
        for name in ("concurrency", "attempts"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"--{name} {getattr(self, name)}: expected 1 or more")

    @property
    def chat_url(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


@dataclass(frozen=True)
class _Reply:
    text: str
    cut: bool
    tokens: int | None


class EndpointBackend:
    """Concurrent conversations with a bound, each request as `http.JsonClient` makes it."""

    def __init__(self, endpoint: EndpointOptions, options: SamplingOptions):
        self.endpoint, self.options = endpoint, options
        # which model is served, and by which template, is not known
        self.reasoning = {"reasoning": ANY}
        patience = Patience(endpoint.timeout_s, endpoint.deadline_s, endpoint.attempts, endpoint.backoff_s)
        self._http = JsonClient(
            endpoint.chat_url, patience, longest=LONGEST_REPLY, key=endpoint.api_key, called="a reply"
        )

    def check(self, questions: Sequence[Question]) -> None:
        """Whether the budgets divide; how long prompts are is known to the server alone."""
        for question in questions:
            self._budgets(question)

    def generate(self, jobs: Sequence[Job], done: Done) -> None:
        """As `Backend`.

        Raises:
            EvaluationError: the server takes no JSON schema, though ``schema`` asks for it.
        """
        asyncio.run(self._each(jobs, self._converse, done))

    async def _each(
        self, jobs: Sequence[Any], answered: Callable[[Any], Awaitable[Any]], done: Callable[[Any, Any], None]
    ) -> None:
        """Have all jobs answered, so many at a time; the first that raises ends the others."""
        waiting = iter(jobs)

        async def work() -> None:
            for job in waiting:
                done(job, await answered(job))

        workers = [asyncio.create_task(work()) for _ in range(min(self.endpoint.concurrency, len(jobs)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._http.close()

    async def _converse(self, job: Job) -> Generation:
        deadline = time.monotonic() + self.endpoint.deadline_s
        budgets = self._budgets(job.question)
        messages = [dict(message) for message in job.question.messages]
        turns: list[str] = []
        cut: list[bool] = []
        tokens: list[int | None] = []
        error, of_server = None, False
        for at, budget in enumerate(budgets):
            if at:
                messages.append({"role": "assistant", "content": turns[-1]})
                messages.append({"role": "user", "content": job.question.rounds[at - 1]})
            payload = self._payload(messages, budget, job.seed)
            constraint = self._constraint(job.question) if at + 1 == len(budgets) else {}
            try:
                reply = await self._http.ask(payload | constraint, _read, deadline)
            except HttpFault as fault:
                error = f"{fault} (attempt {fault.attempt} of {fault.attempts})" if fault.attempt else str(fault)
                of_server = fault.of_server
                if constraint and fault.status is not None and not fault.again:
                    await self._blame_constraint(payload, deadline, f"{job.question.id}: {error}")
                break
            turns.append(reply.text)
            cut.append(reply.cut)
            tokens.append(reply.tokens)
        known = None if None in tokens else [count for count in tokens if count is not None]
        return Generation(turns, cut, known if error is None else None, error, of_server)

    def _budgets(self, question: Question) -> list[int]:
        # the server puts the instructions between the rounds into the prompt, where they cost the answers nothing
        return budgets_of(question, self.options, [0] * len(question.rounds))

    def _payload(self, messages: list[dict[str, str]], budget: int, seed: int) -> dict[str, Any]:
        payload: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": messages,
            "max_tokens": budget,
            "temperature": self.options.temperature,
            "top_p": self.options.top_p,
            "seed": seed,
            "stream": False,
        }
        if self.options.chat_template_kwargs:
            payload["chat_template_kwargs"] = dict(self.options.chat_template_kwargs)
        return payload

    def _constraint(self, question: Question) -> dict[str, Any]:
        """What the request for the verdict has besides."""
        if not self.endpoint.schema:
            return {}
        from verl_aiops.rollout.rounds.settings import answer_schema

        schema = {"name": "verdict", "strict": True, "schema": answer_schema(question.fields, offered_names(question))}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    async def _blame_constraint(self, payload: dict[str, Any], deadline: float, fault: str) -> None:
        """Ask once more without the schema after a refusal: whether it was the schema that the server refused.

        Raises:
            EvaluationError: it was. Every other conversation would fail in the same way.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            return
        try:
            await self._http.once(payload, _read, min(self.endpoint.timeout_s, left))
        except HttpFault:
            return
        raise EvaluationError(
            f"--schema: the server refuses response_format json_schema, and answers without it ({fault}). Serve the "
            "model with a grammar backend (docs/12-serving.md), or leave --schema out."
        )


def _read(reply: Any, shown: str) -> _Reply:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content", 0) if isinstance(message, dict) else 0
    if text is not None and not isinstance(text, str):
        raise HttpFault(f"expected choices[0].message.content to be text: {shown}", True)
    tokens = completion_tokens(reply)
    if not (text or "").strip() and (reason := _why_no_text(message, choice.get("finish_reason"))):
        raise HttpFault(f"{NO_TEXT}{reason}: {shown}", False)
    # lone surrogates are no text: they could neither be sent back nor written to a file
    text = (text or "").encode("utf-8", "replace").decode("utf-8")
    return _Reply(text, choice.get("finish_reason") == "length", tokens)


def completion_tokens(reply: Mapping[str, Any]) -> int | None:
    """How many tokens the server says that it wrote; None where it says no such number."""
    usage = reply.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    return tokens if whole and 0 <= tokens < 2**31 else None


def _why_no_text(message: dict[str, Any], finish: Any) -> str:
    """Why a reply without text is no answer: a sort, then how it ended; "" where the model simply wrote nothing."""
    reasoned = any(isinstance(message.get(key), str) and message[key].strip() for key in _REASONING_KEYS)
    if message.get("refusal") or finish == "refusal":
        sort = "refused"
    elif finish == "content_filter":
        sort = "filtered"
    elif any(message.get(key) for key in _CALL_KEYS) or finish in _CALL_KEYS:
        sort = "a call instead of text"
    elif finish == "length":
        sort = "cut while reasoning" if reasoned else "cut before any text"
    elif reasoned:
        sort = "reasoning only"
    elif finish in ("stop", "eos", None):
        return ""
    else:
        sort = "ended otherwise"
    more = {
        "cut while reasoning": "give it more tokens (--round-tokens)",
        "cut before any text": "give it more tokens (--round-tokens)",
        "reasoning only": "serve it without a reasoning parser that takes all for reasoning, or without thinking "
        "(--chat-template-kwargs)",
    }.get(sort)
    return f"{sort}, finish_reason {str(finish)[:40]!r}" + (f"; {more}" if more else "")


_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_CALL_KEYS = ("tool_calls", "function_call")
