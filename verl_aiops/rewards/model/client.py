"""Asks a reward model's server for scores, and takes nothing for a score that is none.

vLLM and the rollout ``hf`` answer at ``/classify``, SGLang at ``/v1/embeddings``.
"""

from __future__ import annotations

import asyncio
import math
import time
from numbers import Real
from typing import Any

from verl_aiops.http import HttpFault, JsonClient, Patience

__all__ = ["ENDPOINTS", "RewardModelClient", "RewardModelError", "longest_input"]

# by the server's name in verl: path, what is asked beside model and input, and the key of the scores
ENDPOINTS = {
    "vllm": ("classify", {"use_activation": False}, "probs"),
    "hf": ("classify", {"use_activation": False}, "probs"),
    "sglang": ("v1/embeddings", {}, "embedding"),
}
LONGEST_ANSWER = 1 << 20


class RewardModelError(RuntimeError):
    """No score after all attempts; the message names the server and the last reason."""


class RewardModelClient:
    """Concurrent requests with a bound, each as `http.JsonClient` makes it.

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
        path, self._asked, self._scores_key = ENDPOINTS[server]
        self.url = f"http://{address}/{path}"
        self.model = model
        self._slots = asyncio.Semaphore(concurrency)
        patience = Patience(timeout_s, deadline_s, attempts, backoff_s)
        self._http = JsonClient(self.url, patience, longest=LONGEST_ANSWER, key=key)

    async def score(self, text: str | list[int]) -> float:
        """The reward model's raw score of one conversation, as a text or as token ids.

        Raises:
            RewardModelError: none to be had.
        """
        async with self._slots:
            started = time.monotonic()
            try:
                return await self._http.ask({"model": self.model, "input": text, **self._asked}, self._read)
            except HttpFault as fault:
                passed = time.monotonic() - started
                raise RewardModelError(
                    f"no score from the reward model at {self.url}: {fault} (attempt {fault.attempt}, {passed:.1f} s)"
                ) from None

    def _read(self, answer: Any, shown: str) -> float:
        """The one number in an answer."""
        rows = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            raise HttpFault(f"expected one row under 'data', got {shown}", True)
        scores: Any = rows[0].get(self._scores_key)
        if not isinstance(scores, list) or len(scores) != 1:
            count = f"{len(scores)} numbers" if isinstance(scores, list) else f"no list under '{self._scores_key}'"
            raise HttpFault(f"expected one score (a model with num_labels=1), got {count}", False)
        score = scores[0]
        if isinstance(score, bool) or not isinstance(score, Real):
            raise HttpFault(f"the score is no number: {str(score)[:40]!r}", False)
        if not math.isfinite(score):
            raise HttpFault(f"the score is {score}", False)
        return float(score)

    async def close(self) -> None:
        await self._http.close()


def longest_input(model_path: str, max_model_len: int | None, trust_remote_code: bool = False) -> int | None:
    """Tokens that a server takes: ``max_model_len``, else the positions of the model; None if neither is known."""
    from transformers import AutoConfig

    if max_model_len is not None:
        return max_model_len
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)
