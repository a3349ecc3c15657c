"""Asks a reward model's server for scores, and takes nothing for a score that is none.

vLLM and the rollout ``hf`` answer at ``/classify``, SGLang at ``/v1/embeddings``.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from numbers import Real
from typing import Any

import aiohttp

from verl_aiops.inputs.json_text import JsonFault, read_json

__all__ = ["ENDPOINTS", "RewardModelClient", "RewardModelError", "longest_input"]

# by the server's name in verl: path, what is asked beside model and input, and the key of the scores
ENDPOINTS = {
    "vllm": ("classify", {"use_activation": False}, "probs"),
    "hf": ("classify", {"use_activation": False}, "probs"),
    "sglang": ("v1/embeddings", {}, "embedding"),
}
LONGEST_WAIT_S = 30.0
LONGEST_ANSWER = 1 << 20
_AGAIN = (408, 425, 429)


class RewardModelError(RuntimeError):
    """No score after all attempts; the message names the server and the last reason."""


class _Fault(Exception):
    """One attempt's reason; ``again``: whether another attempt may do better."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.again = again


class RewardModelClient:
    """Concurrent requests with a bound, retried with exponential back-off up to a deadline.

    After an answer that got no score in all its attempts, the ones that follow are asked for once, until one
    succeeds: a dead server is found out once, not once per answer.

    Args:
        address: ``host:port``.
        server: ``vllm``, ``sglang`` or ``hf``.
        model: the name that the server knows the model by.
        timeout_s, deadline_s, attempts, backoff_s, concurrency: see `combined.CombinedSettings`.
        key: sent as a bearer token, where the server wants one.

    Raises:
        ValueError: a server without a known endpoint.
    """

    def __init__(
        self,
        address: str,
        server: str,
        model: str,
        *,
        timeout_s: float,
        deadline_s: float,
        attempts: int,
        backoff_s: float,
        concurrency: int,
        key: str | None = None,
    ):
        if server not in ENDPOINTS:
            raise ValueError(
                f"reward.reward_model.rollout.name={server}: no known endpoint for scores; use {', '.join(ENDPOINTS)}"
            )
        path, self._asked, self._key = ENDPOINTS[server]
        self.url = f"http://{address}/{path}"
        self.model = model
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.attempts, self.backoff_s = attempts, backoff_s
        self.down = False
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._slots = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def score(self, text: str) -> float:
        """The reward model's raw score of one conversation.

        Raises:
            RewardModelError: none to be had.
        """
        async with self._slots:
            started = time.monotonic()
            attempts = 1 if self.down else self.attempts
            for attempt in range(1, attempts + 1):
                left = self.deadline_s - (time.monotonic() - started)
                try:
                    score = await self._ask(text, min(self.timeout_s, left))
                    self.down = False
                    return score
                except _Fault as fault:
                    reason, again = str(fault), fault.again
                wait = min(self.backoff_s * 2 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1)
                passed = time.monotonic() - started
                if not again or attempt == attempts or passed + wait >= self.deadline_s:
                    break
                await asyncio.sleep(wait)
            self.down = self.down or again
            raise RewardModelError(
                f"no score from the reward model at {self.url}: {reason} (attempt {attempt}, {passed:.1f} s)"
            )

    async def _ask(self, text: str, seconds: float) -> float:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        payload = {"model": self.model, "input": text, **self._asked}
        try:
            async with self._session.post(
                self.url,
                json=payload,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,  # conversations, and the key, are for this server alone
            ) as response:
                if 300 <= response.status < 400:
                    where = ascii(response.headers.get("Location", ""))[:80]
                    raise _Fault(f"HTTP {response.status}: a redirect to {where}, which is not followed", False)
                body = await self._body(response)
                if response.status != 200:
                    again = response.status >= 500 or response.status in _AGAIN
                    raise _Fault(f"HTTP {response.status}: {_beginning(body)}", again)
        except asyncio.TimeoutError:  # noqa: UP041 - another class than TimeoutError in Python 3.10
            raise _Fault(f"no answer within {seconds:.1f} s", True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Fault(f"{type(error).__name__}: {error}", True) from None
        return self._read(body)

    @staticmethod
    async def _body(response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > LONGEST_ANSWER:
                raise _Fault(f"an answer of more than {LONGEST_ANSWER} bytes", False)
        return bytes(body)

    def _read(self, body: bytes) -> float:
        """The one number in an answer."""
        try:
            # also refuses numbers that no float can hold, over which math.isfinite would raise
            answer = read_json(bytes(body))
        except JsonFault:
            raise _Fault(f"the answer is no JSON: {_beginning(body)}", True) from None
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            raise _Fault(f"expected one row under 'data', got {_beginning(body)}", True)
        scores: Any = rows[0].get(self._key)
        if not isinstance(scores, list) or len(scores) != 1:
            count = f"{len(scores)} numbers" if isinstance(scores, list) else f"no list under '{self._key}'"
            raise _Fault(f"expected one score (a model with num_labels=1), got {count}", False)
        score = scores[0]
        if isinstance(score, bool) or not isinstance(score, Real):
            raise _Fault(f"the score is no number: {str(score)[:40]!r}", False)
        if not math.isfinite(score):
            raise _Fault(f"the score is {score}", False)
        return float(score)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _beginning(body: bytes) -> str:
    return repr(body[:120].decode("utf-8", "replace"))


def longest_input(model_path: str, max_model_len: int | None, trust_remote_code: bool = False) -> int | None:
    """Tokens that a server takes: ``max_model_len``, else the positions of the model; None if neither is known."""
    from transformers import AutoConfig

    if max_model_len is not None:
        return max_model_len
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)
