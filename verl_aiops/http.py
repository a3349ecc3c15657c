"""JSON asked of a server by POST: bounded in time and size, tried again where that may help, never sent anywhere else.

On aiohttp, whose own client neither retries nor bounds what it reads.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from verl_aiops.inputs.json_text import JsonFault, read_json

if TYPE_CHECKING:
    import aiohttp

__all__ = ["HttpFault", "JsonClient", "Patience"]

T = TypeVar("T")
LONGEST_WAIT_S = 30.0
_AGAIN = (408, 409, 425, 429)  # beside all from 500
_NEVER_AGAIN = 501  # not implemented
_OF_CONTENT = (400, 413, 422)  # too long, or something in it that the server does not take
_SHOWN = 160  # characters of an answer in a message


class HttpFault(Exception):
    """Why there is no answer.

    Attributes:
        again: whether another attempt may do better.
        wait_s: what the server asks for before that.
        status: of the HTTP response, where that was at fault.
        attempt, attempts: the one that failed, of how many; 0 where none was made.
        of_server: whether any other request would have met it too, as far as can be told: not where the server refused
            this one's content.
    """

    def __init__(self, reason: str, again: bool, wait_s: float = 0.0, status: int | None = None):
        super().__init__(reason)
        self.again, self.wait_s, self.status = again, wait_s, status
        self.attempt = self.attempts = 0

    @property
    def of_server(self) -> bool:
        return self.again or (self.status is not None and self.status not in _OF_CONTENT)


@dataclass(frozen=True)
class Patience:
    """``timeout_s`` bounds one request, ``deadline_s`` all attempts together, of which there are ``attempts`` at most;
    ``backoff_s`` are the seconds before the second, doubled for each further one."""

    timeout_s: float
    deadline_s: float
    attempts: int
    backoff_s: float


class JsonClient:
    """Requests to one address, over connections that stay open; as many at a time as the caller makes.

    After a request that failed in all its attempts, the ones that follow are tried once, until one succeeds: a dead
    server is found out once, not once per request.

    Args:
        url: where to; redirects are faults, since what is sent, and the key, is for this server alone.
        longest: bytes of an answer at most.
        key: sent as a bearer token, and in no message.
        called: what an answer is called in messages, with its article.
    """

    def __init__(
        self, url: str, patience: Patience, *, longest: int, key: str | None = None, called: str = "an answer"
    ):
        self.url, self.patience, self.longest, self.called = url, patience, longest, called
        self.down = False
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        payload: Any,
        read: Callable[[Any, str], T],
        deadline: float | None = None,
        *,
        attempts: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> T:
        """What ``read`` makes of the answer.

        Args:
            read: gets the parsed answer and its beginning, to be quoted in the `HttpFault` that it may raise.
            deadline: on the clock of `time.monotonic`, for requests that share one; ``deadline_s`` from now without.
            attempts: fewer than those of the client's patience.
            before: called before each request that is sent; what it raises ends them.

        Raises:
            HttpFault: the last attempt's.
        """
        if deadline is None:
            deadline = time.monotonic() + self.patience.deadline_s
        most = self.patience.attempts if attempts is None else min(attempts, self.patience.attempts)
        try:
            answer = await self._attempts(payload, read, deadline, 1 if self.down else most, before)
        except HttpFault as fault:
            self.down = self.down or fault.again
            raise
        self.down = False
        return answer

    async def _attempts(
        self,
        payload: Any,
        read: Callable[[Any, str], T],
        deadline: float,
        attempts: int,
        before: Callable[[], None] | None,
    ) -> T:
        for attempt in itertools.count(1):
            left = deadline - time.monotonic()
            if left <= 0:
                raise HttpFault(f"no time left before the deadline of {self.patience.deadline_s:g} s", True)
            if before is not None:
                before()
            try:
                return await self.once(payload, read, min(self.patience.timeout_s, left))
            except HttpFault as fault:
                fault.attempt, fault.attempts = attempt, attempts
                # at random, so that requests that failed together do not come back together
                wait = min(self.patience.backoff_s * 2 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1)
                wait = max(wait, fault.wait_s)
                if not fault.again or attempt == attempts or time.monotonic() + wait >= deadline:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def reach(self) -> None:
        """One GET that shows whether anybody listens at the address; whatever is said, and nothing at all, is fine.

        Raises:
            HttpFault: no connection.
        """
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self.patience.timeout_s)
        try:
            async with self._connected().get(self.url, timeout=timeout, allow_redirects=False):
                pass
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError, aiohttp.InvalidURL) as error:
            reason = " ".join(self._safe(str(error)).split())
            raise HttpFault(f"{type(error).__name__}: {reason[:200]}", True) from None
        except (asyncio.TimeoutError, aiohttp.ClientError, OSError, ValueError):  # noqa: UP041 - as below
            return

    def _connected(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
        return self._session

    async def once(self, payload: Any, read: Callable[[Any, str], T], seconds: float) -> T:
        """One attempt of `ask`, which leaves no memory of how it went."""
        import aiohttp

        name = self.called.rpartition(" ")[2]
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._connected().post(
                self.url, json=payload, timeout=timeout, allow_redirects=False
            ) as response:
                shown = self._beginning(body := await self._body(response))
                if response.status != 200:
                    raise self._refusal(response, shown)
        except asyncio.TimeoutError:  # noqa: UP041 - another class than TimeoutError in Python 3.10
            raise HttpFault(f"no {name} within {seconds:.1f} s", True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = " ".join(self._safe(str(error)).split())
            raise HttpFault(f"{type(error).__name__}: {reason[:200]}", True) from None
        try:
            answer = read_json(body)
        except JsonFault:
            raise HttpFault(f"the {name} is no JSON: {shown}", True) from None
        return read(answer, shown)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > self.longest:
                raise HttpFault(f"{self.called} of more than {self.longest} bytes", False)
        return bytes(body)

    def _refusal(self, response: aiohttp.ClientResponse, shown: str) -> HttpFault:
        status = response.status
        if 300 <= status < 400:
            where = ascii(self._safe(response.headers.get("Location", "")))[:80]
            return HttpFault(
                f"HTTP {status}: a redirect to {where}, which is not followed: {shown}", False, 0.0, status
            )
        again = (status >= 500 and status != _NEVER_AGAIN) or status in _AGAIN
        return HttpFault(f"HTTP {status}: {shown}", again, _seconds(response.headers.get("Retry-After")), status)

    def _beginning(self, body: bytes) -> str:
        return repr(self._safe(body.decode("utf-8", "replace"))[:_SHOWN])

    def _safe(self, text: str) -> str:
        """Without the key, which a server may send back."""
        return text.replace(self._key, "***") if self._key else text

    async def close(self) -> None:
        """Close the connections; another request opens new ones, in whatever loop it runs."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _seconds(header: str | None) -> float:
    """What ``Retry-After`` asks for, where it is a number; a date is left to the back-off."""
    with suppress(TypeError, ValueError):
        seconds = float(header)  # type: ignore[arg-type]
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return 0.0
