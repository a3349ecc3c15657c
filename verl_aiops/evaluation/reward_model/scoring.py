"""Raw scores of conversations by a reward model: one in a folder, computed here, or one that a server has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from verl_aiops.evaluation.device import device_and_dtype
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.rewards.model.client import ENDPOINTS, RewardModelClient, RewardModelError

__all__ = ["LocalModel", "ServedModel", "load_tokenizer"]

_BATCH_TOKENS = 16384


class Scorer(Protocol):
    """Of conversations as token ids, (conversations,) float64, in their order. Raises EvaluationError."""

    def __call__(self, conversations: Sequence[Sequence[int]]) -> np.ndarray: ...


def load_tokenizer(folder: str, option: str) -> Any:
    """The tokenizer of a folder, which has to have a chat template. Raises EvaluationError."""
    from transformers import AutoTokenizer

    if not Path(folder).expanduser().is_dir():
        raise EvaluationError(f"{option} {folder}: no such folder; name the one that `train-rm` or `rm` wrote")
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(folder).expanduser())
    except Exception as error:  # transformers raises what its readers raise
        said = " ".join(str(error).split())[:300]
        raise EvaluationError(f"{option} {folder}: its tokenizer cannot be loaded: {said}") from error
    if not tokenizer.chat_template:
        raise EvaluationError(f"{option} {folder}: its tokenizer has no chat template, by which answers are rendered")
    return tokenizer


@dataclass
class LocalModel:
    """The classifier in a folder, on the GPU where there is one."""

    folder: str
    dtype: str = "auto"

    def __call__(self, conversations: Sequence[Sequence[int]]) -> np.ndarray:
        from verl_aiops.rollout.hf.score_model import ScoreModel

        device, dtype = device_and_dtype(self.dtype)
        try:
            model = ScoreModel(str(Path(self.folder).expanduser()), dtype, device)
        except (ValueError, OSError) as error:
            raise EvaluationError(f"--rm {self.folder}: {error}") from error
        longest = max(map(len, conversations))
        if model.positions is not None and longest > model.positions:
            raise EvaluationError(f"--rm {self.folder}: takes {model.positions} tokens, a conversation has {longest}")
        found = np.zeros(len(conversations))
        with tqdm(total=len(conversations), desc="scoring", unit=" answers", disable=None) as bar:
            for places in batches([len(ids) for ids in conversations]):
                found[places] = model([conversations[at] for at in places]).double().numpy()
                bar.update(len(places))
        if not np.isfinite(found).all():
            wrong = int(np.flatnonzero(~np.isfinite(found))[0])
            raise EvaluationError(f"--rm {self.folder}: the score of conversation {wrong} is {found[wrong]}")
        return found


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of conversations of like length, together no more tokens than `_BATCH_TOKENS` once padded."""
    made: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: lengths[at]):
        if not made or lengths[at] * (len(made[-1]) + 1) > _BATCH_TOKENS:
            made.append([])
        made[-1].append(at)
    return made


@dataclass
class ServedModel:
    """A server of the form that vLLM, SGLang and the rollout ``hf`` have; it gets token ids.

    Args:
        url: ``http://host:port``, with nothing after it.
        server: ``vllm``, ``sglang`` or ``hf``.
        name: that it knows the model by.
        patience: ``timeout_s``, ``deadline_s``, ``attempts``, ``concurrency``; as the reward manager has them.
    """

    url: str
    server: str
    name: str
    patience: dict[str, Any]
    key: str | None = None

    def __post_init__(self) -> None:
        if self.server not in ENDPOINTS:
            raise EvaluationError(f"--rm-server {self.server}: expected one of {', '.join(ENDPOINTS)}")
        scheme, _, address = self.url.rstrip("/").partition("://")
        if scheme != "http" or not address or "/" in address:
            raise EvaluationError(f"--rm {self.url}: expected a folder, or http://HOST:PORT of a server")
        self.address = address

    def __call__(self, conversations: Sequence[Sequence[int]]) -> np.ndarray:
        return np.array(asyncio.run(self._all(conversations)))

    async def _all(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        client = RewardModelClient(self.address, self.server, self.name, backoff_s=1.0, key=self.key, **self.patience)
        bar = tqdm(total=len(conversations), desc="scoring", unit=" answers", disable=None)

        async def one(ids: Sequence[int]) -> float:
            score = await client.score(list(ids))
            bar.update()
            return score

        asked = [asyncio.ensure_future(one(ids)) for ids in conversations]
        try:
            return await asyncio.gather(*asked)
        except RewardModelError as error:
            raise EvaluationError(str(error)) from None
        finally:
            for task in asked:
                task.cancel()
            bar.close()
            await client.close()
