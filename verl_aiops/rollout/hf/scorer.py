"""The Ray actor that serves a discriminative reward model for the rollout ``hf``: texts in, one number each out."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from verl_aiops.data.scoring import scoring_ids
from verl_aiops.rollout.hf.batcher import Batcher
from verl_aiops.rollout.hf.score_model import ScoreModel
from verl_aiops.rollout.hf.scoring_api import RefusedError, Scored, build_app

__all__ = ["HFScorer"]

# a reward model that shares the trainer's devices is asked only while it is awake; whoever asks for longer than this
# asks a server that nobody wakes
LONGEST_SLEEP_S = 60.0


@dataclass(frozen=True)
class _Input:
    prompt_ids: tuple[int, ...]


class HFScorer:
    """Serves one replica of a reward model over HTTP.

    Args:
        config: verl's rollout configuration of the reward model.
        model_config: verl's model configuration of it, with the tokenizer.
        can_sleep: whether `sleep` gives the device away; not where the server has a device of its own.
        workers: servers and training workers that share this machine's cores.
        key: that clients send: the server listens on the node's address, as verl's router may run on another.

    Raises:
        ValueError: a model that cannot be served, or a ``max_model_len`` beyond its positions.
    """

    def __init__(self, config, model_config, can_sleep: bool = True, workers: int = 1, key: str | None = None):
        from verl.utils.device import get_device_name

        from verl_aiops.seam.engine import PrecisionType, get_device_id
        from verl_aiops.verl_patches.process_group import share_cores

        on_cpu = get_device_name() == "cpu"
        if on_cpu:
            share_cores(workers)
        self.device = "cpu" if on_cpu else get_device_id()
        self.can_sleep = can_sleep and config.free_cache_engine
        self.tokenizer = model_config.tokenizer
        self.model = ScoreModel(
            model_config.local_path,
            PrecisionType.to_dtype(config.dtype),
            self.device,
            trust_remote_code=model_config.trust_remote_code,
        )
        self.max_len = self._longest(config.max_model_len, model_config.local_path)
        self.batcher = Batcher(self._run, config.max_num_seqs, config.max_num_batched_tokens)
        # one thread: a tokenizer is not made for several at once
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokeniser")
        self._key = key
        self.app = build_app(self.score, model_config.path, key)
        self._serving: asyncio.Task | None = None

    def _longest(self, asked: int | None, folder: str) -> int:
        """Tokens of the longest input."""
        positions = self.model.positions
        if asked is None and positions is None:
            raise ValueError(
                f"reward model {folder}: its configuration does not say how long an input may be; set "
                "reward.reward_model.rollout.max_model_len"
            )
        if asked is not None and positions is not None and asked > positions:
            raise ValueError(
                f"reward.reward_model.rollout.max_model_len={asked}, but the reward model has {positions} positions"
            )
        # some encoders have more positions than they can use; their tokenizers know
        return asked or min(positions, self.tokenizer.model_max_length)

    async def launch(self) -> tuple[str, int]:
        """Start to serve on this Ray node; returns address and port."""
        import ray

        from verl_aiops.seam.rollout import run_uvicorn

        address = ray.util.get_node_ip_address().strip("[]")
        port, self._serving = await run_uvicorn(self.app, None, address)
        return address, port

    async def key(self) -> str | None:
        """What clients send as a bearer token."""
        return self._key

    async def score(self, asked: str | tuple[int, ...]) -> Scored:
        """Score one input.

        Args:
            asked: a text, which is tokenised with the tokenizer's own special tokens, or token ids.

        Raises:
            RefusedError: 400, nothing to score, too long, or token ids that the model does not have; 500, a score that
                is no finite number; 503, the server sleeps and nobody wakes it.
        """
        ids = await self._ids(asked)
        try:
            await asyncio.wait_for(self.batcher.open.wait(), LONGEST_SLEEP_S)
        except asyncio.TimeoutError:  # noqa: UP041 (another class in Python 3.10)
            raise RefusedError(
                503,
                f"the reward model sleeps, and has not been woken for {LONGEST_SLEEP_S:.0f} s: set "
                "reward.reward_model.rollout.free_cache_engine=False if others than verl's trainer ask it",
            ) from None
        score = await self.batcher.submit(_Input(ids))
        if not math.isfinite(score):
            raise RefusedError(500, f"the reward model's score of these {len(ids)} tokens is {score}")
        return Scored(score, len(ids))

    async def _ids(self, asked: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(asked, str):
            try:
                asked.encode()
            except UnicodeEncodeError as error:
                raise RefusedError(400, f"the text is no Unicode: half a character at {error.start}") from None
            loop = asyncio.get_running_loop()
            ids = tuple(await loop.run_in_executor(self._tokenising, scoring_ids, self.tokenizer, asked))
        else:
            ids = asked
        if not ids:
            raise RefusedError(400, "no tokens to score")
        if len(ids) > self.max_len:
            raise RefusedError(
                400,
                f"{len(ids)} tokens, but the reward model takes {self.max_len} "
                "(reward.reward_model.rollout.max_model_len, or its positions)",
            )
        if min(ids) < 0 or max(ids) >= self.model.vocabulary:
            raise RefusedError(
                400, f"token ids {min(ids)} to {max(ids)}; the model has 0 to {self.model.vocabulary - 1}"
            )
        return ids

    def _run(self, requests: list[_Input], abort: threading.Event) -> list[float]:
        # the batcher counts equal inputs once
        distinct = list(dict.fromkeys(request.prompt_ids for request in requests))
        scores = dict(zip(distinct, self.model(distinct).tolist()))
        return [scores[request.prompt_ids] for request in requests]

    async def sleep(self) -> None:
        """Finish what runs, hold what comes, and leave the device to the trainer."""
        if not self.can_sleep:
            return
        await self.batcher.pause()
        await asyncio.to_thread(self.model.to, "cpu")
        from verl.utils.device import get_torch_device

        get_torch_device().empty_cache()

    async def wake_up(self) -> None:
        await asyncio.to_thread(self.model.to, self.device)
        self.batcher.resume()
