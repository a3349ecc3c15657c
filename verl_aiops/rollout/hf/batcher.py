"""Gathers the concurrent requests of one server into batches."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)

__all__ = ["Batcher"]

# requests of one step come within milliseconds of each other; a batch that starts without them costs much more
QUIET_S, LONGEST_WAIT_S = 0.05, 1.0


class _HasPrompt(Protocol):
    @property
    def prompt_ids(self) -> tuple[int, ...]: ...


Asked = TypeVar("Asked", bound=_HasPrompt)
Answer = TypeVar("Answer")


@dataclass
class _Waiting(Generic[Asked]):
    request: Asked
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher(Generic[Asked, Answer]):
    """One batch at a time, of the requests that wait when the last one ends.

    Args:
        run: computes a batch; called in a thread, with an event that asks it to end early. Returns an answer for each
            request, or an exception for those that have none.
        max_seqs: requests in a batch.
        max_tokens: prompt tokens in a batch, each different prompt counted once at the longest's length.
        aborted: makes the answer of a request that is aborted before it has run; without it requests cannot be aborted.
    """

    def __init__(
        self,
        run: Callable[[list[Asked], threading.Event], Sequence[Answer | Exception]],
        max_seqs: int,
        max_tokens: int,
        aborted: Callable[[], Answer] | None = None,
    ):
        self.run = run
        self.abort_batch = threading.Event()
        self.max_seqs, self.max_tokens = max_seqs, max_tokens
        self.aborted = aborted
        self.queue: list[_Waiting[Asked]] = []
        self.idle = asyncio.Event()
        self.idle.set()
        self.open = asyncio.Event()
        self.open.set()
        self.reject = False
        self._task: asyncio.Task | None = None
        self._last = 0.0

    async def submit(self, request: Asked) -> Answer:
        """Wait for the answer. While the server is held, requests wait, or fail where they were told to."""
        while not self.open.is_set():
            if self.reject:
                raise RuntimeError("rollout hf: generation is stopped and takes no requests")
            await self.open.wait()
        waiting = _Waiting(request)
        self.queue.append(waiting)
        self._last = time.monotonic()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await waiting.answer

    async def abort(self, reject: bool = False) -> None:
        """End what runs with what it has, what waits with `aborted()`, and hold what comes until `resume`."""
        self.open.clear()
        self.reject = reject
        for waiting in self._taken(len(self.queue)):
            waiting.answer.set_result(self.aborted())
        self.abort_batch.set()
        await self.idle.wait()

    async def pause(self) -> None:
        """Hold what comes until `resume`, and wait for what runs or waits."""
        self.open.clear()
        self.reject = False
        if self._task is not None:
            await asyncio.wait([self._task])

    def resume(self) -> None:
        self.reject = False
        self.open.set()

    def _taken(self, count: int) -> list[_Waiting[Asked]]:
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def _batch(self) -> list[_Waiting[Asked]]:
        """As many from the front of the queue as fit; always one."""
        prompts: set[tuple[int, ...]] = set()
        width = count = 0
        for waiting in self.queue[: self.max_seqs]:
            prompts.add(waiting.request.prompt_ids)
            width = max(width, len(waiting.request.prompt_ids))
            if count and len(prompts) * width > self.max_tokens:
                break
            count += 1
        return self._taken(count)

    async def _work(self) -> None:
        while self.queue:
            started = time.monotonic()
            while time.monotonic() - self._last < QUIET_S and time.monotonic() - started < LONGEST_WAIT_S:
                await asyncio.sleep(QUIET_S / 5)
            batch = self._batch()
            if not batch:  # an abort has emptied the queue while this slept
                continue
            self.idle.clear()
            self.abort_batch = threading.Event()  # a new one: what ended the last batch must not end this one
            try:
                requests = [waiting.request for waiting in batch]
                # in a thread, so that requests, aborts and the weights' step are heard while the model computes
                answers: Sequence[Any] = await asyncio.to_thread(self.run, requests, self.abort_batch)
            except Exception as error:
                # the requests fail, not the server: who asked counts failures and says so
                logger.exception("rollout hf: a batch of %d requests failed", len(batch))
                answers = [error] * len(batch)
            finally:
                self.idle.set()
            for waiting, answer in zip(batch, answers):
                if waiting.answer.done():  # whoever asked has gone
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)
