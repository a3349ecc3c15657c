"""Whether a server is there, and whose a failure is: the server's, which every other question would meet too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.openai_backend import EndpointOptions
from verl_aiops.http import HttpFault, JsonClient, Patience

__all__ = ["FailuresKept", "ServerGone", "require_server"]

Told = TypeVar("Told")
# Failures of the server in a row after which nothing more is asked of it; the first of them was tried again and again.
_GONE = 8
_LOOK_S = 10.0


class ServerGone(Exception):
    """A server gave no answer so often that the rest is not asked. The message is the last failure's."""


def require_server(endpoint: EndpointOptions) -> None:
    """Look once whether anybody listens at an address. What is said there, or how late, does not matter.

    Raises:
        EvaluationError: nobody does.
    """

    async def look() -> None:
        seconds = min(_LOOK_S, endpoint.timeout_s)
        client = JsonClient(models, Patience(seconds, seconds, 1, 0.0), longest=1 << 20, key=endpoint.api_key)
        try:
            await client.reach()
        finally:
            await client.close()

    models = endpoint.chat_url.removesuffix("/chat/completions") + "/models"
    try:
        asyncio.run(look())
    except HttpFault as fault:
        raise EvaluationError(
            f"--endpoint {endpoint.url}: no server answers there (GET {models}: {fault}). Start one and wait until it "
            f"is ready, e.g. `transformers serve {endpoint.model}` or examples/serve_vllm.sh (docs/12-serving.md), or "
            "give the address of one that runs; nothing has been asked"
        ) from None


class FailuresKept(Generic[Told]):
    """Passes on what became of each question, and keeps a failure of the server back until an answer shows that the
    server is there after all: a server that is gone is told once, not once for every question.

    Args:
        tell: gets what is passed on, a failure that was kept before the answer behind it.

    Attributes:
        kept: failures with no answer after them.
    """

    def __init__(self, tell: Callable[[Told], None]):
        self.kept: list[Told] = []
        self._tell = tell

    def add(self, told: Told, error: str | None, of_server: bool) -> None:
        """
        Raises:
            ServerGone: one failure too many.
        """
        if of_server and error is not None:
            self.kept.append(told)
            if len(self.kept) >= _GONE:
                raise ServerGone(error)
            return
        self.end()
        self._tell(told)

    def end(self) -> None:
        """All were asked, so those that were kept stand for themselves: they are passed on too."""
        for told in self.kept:
            self._tell(told)
        self.kept.clear()
