"""The Ray actor behind the rollout ``hf``: gathers concurrent requests into batches and holds the weights."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from verl_aiops.rollout.hf_engine import Engine, Request, Sampled, Sampling

logger = logging.getLogger(__name__)

__all__ = ["Batcher", "HFServer", "Weights"]

# requests of one step come within milliseconds of each other; a batch that starts without them costs much more
QUIET_S, LONGEST_WAIT_S = 0.05, 1.0


@dataclass
class _Waiting:
    request: Request
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """One batch at a time, of the requests that wait when the last one ends.

    Args:
        run: computes a batch; called in a thread, with an event that asks it to end early.
        max_seqs: requests in a batch.
        max_tokens: prompt tokens in a batch, each different prompt counted once at the longest's length.
    """

    def __init__(self, run: Callable[[list[Request], threading.Event], list[Sampled]], max_seqs: int, max_tokens: int):
        self.run = run
        self.abort_batch = threading.Event()
        self.max_seqs, self.max_tokens = max_seqs, max_tokens
        self.queue: list[_Waiting] = []
        self.idle = asyncio.Event()
        self.idle.set()
        self.open = asyncio.Event()
        self.open.set()
        self.reject = False
        self._task: asyncio.Task | None = None
        self._last = 0.0

    async def submit(self, request: Request) -> Sampled:
        """Wait for the answer. While generation is held, requests wait, or fail where they were told to."""
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
        """End what runs with the tokens it has, what waits with none, and hold what comes until `resume`."""
        self.open.clear()
        self.reject = reject
        for waiting in self._taken(len(self.queue)):
            waiting.answer.set_result(Sampled([], [], aborted=True))
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

    def _taken(self, count: int) -> list[_Waiting]:
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def _batch(self) -> list[_Waiting]:
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
            if not batch:
                continue
            self.idle.clear()
            self.abort_batch = threading.Event()
            try:
                requests = [waiting.request for waiting in batch]
                answers: Sequence[Any] = await asyncio.to_thread(self.run, requests, self.abort_batch)
            except Exception as error:
                # the requests fail, not the server: verl counts failed prompts and says so
                logger.exception("rollout hf: a batch of %d requests failed", len(batch))
                answers = [error] * len(batch)
            finally:
                self.idle.set()
            for waiting, answer in zip(batch, answers):
                if waiting.answer.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)


class Weights:
    """Named tensors of a model, replaced bucket by bucket; knows which have never been given.

    Args:
        model: its parameters are overwritten in place.
        complete: whether they already hold a trained model's values.
    """

    def __init__(self, model: torch.nn.Module, complete: bool):
        self.model = model
        self.missing: set[int] = set()
        if not complete:
            self.missing = {id(p) for p in model.parameters()}

    def _named(self) -> dict[str, torch.Tensor]:
        # tied weights have several names, and the trainer may send any of them; buffers are new after each `.to`
        named: dict[str, torch.Tensor] = dict(self.model.named_parameters(remove_duplicate=False))
        return named | dict(self.model.named_buffers(remove_duplicate=False))

    @torch.no_grad()
    def load(self, named: dict[str, torch.Tensor]) -> None:
        """Copy tensors in.

        Raises:
            KeyError: a name that the model does not have.
            ValueError: another shape than the model's.
        """
        known = self._named()
        for name, tensor in named.items():
            if name not in known:
                raise KeyError(f"rollout hf: the trainer sends {name}, which the model of the rollout does not have")
            own = known[name]
            if own.shape != tensor.shape:
                raise ValueError(f"rollout hf: {name} has shape {tuple(tensor.shape)}, not {tuple(own.shape)}")
            own.copy_(tensor)
            self.missing.discard(id(own))

    def names_missing(self) -> list[str]:
        return sorted(name for name, tensor in self.model.named_parameters() if id(tensor) in self.missing)


class HFServer:
    """Serves one replica. Its methods are those that verl calls on a rollout server.

    Args:
        config: verl's rollout configuration.
        model_config: verl's model configuration.
        weights_from_disk: load them; else the trainer sends them before the first request.
        replica_rank: number of this replica; replicas sample different answers to one prompt.
        workers: servers that share this machine's cores.
    """

    def __init__(self, config, model_config, weights_from_disk: bool, replica_rank: int = 0, workers: int = 1):
        from transformers import AutoConfig, AutoModelForCausalLM
        from verl.utils.device import get_device_id, get_device_name
        from verl.utils.torch_dtypes import PrecisionType

        from verl_aiops.platform.process_group import share_cores
        from verl_aiops.rollout.stops import stop_ids

        self.config = config
        on_cpu = get_device_name() == "cpu"
        if on_cpu:
            share_cores(workers)
        self.device = "cpu" if on_cpu else get_device_id()
        options = {
            "dtype": PrecisionType.to_dtype(config.dtype),
            "trust_remote_code": model_config.trust_remote_code,
            "attn_implementation": "sdpa",
        }
        if weights_from_disk:
            model = AutoModelForCausalLM.from_pretrained(model_config.local_path, **options)
        else:
            settings = AutoConfig.from_pretrained(
                model_config.local_path, trust_remote_code=model_config.trust_remote_code
            )
            model = AutoModelForCausalLM.from_config(settings, **options)
        self.weights = Weights(model, complete=weights_from_disk)
        self.engine = Engine(
            model.to(self.device),
            stop_ids(model_config.local_path, model_config.tokenizer),
            seed=f"{config.seed}/{replica_rank}",
        )
        self.global_steps: int | None = None
        self.max_len = config.max_model_len or config.prompt_length + config.response_length
        self.batcher = Batcher(self._run, config.max_num_seqs, config.max_num_batched_tokens)

    def _run(self, requests: list[Request], abort: threading.Event) -> list[Sampled]:
        if missing := self.weights.names_missing():
            raise RuntimeError(f"rollout hf: the trainer has not sent {len(missing)} weights, {missing[0]} among them")
        return self.engine.generate(requests, self.global_steps or 0, abort)

    async def generate(
        self,
        prompt_ids,
        sampling_params: dict[str, Any],
        request_id: str,
        image_data=None,
        video_data=None,
        **other,
    ):
        """Tokens in, tokens out, as verl's `LLMServerClient` asks for them.

        Returns:
            verl's TokenOutput: sampled ids (with the stop token), their log-probs, and the weights' step.

        Raises:
            ValueError: images or another thing that this rollout does not do, or a prompt longer than the model takes.
        """
        from verl.workers.rollout.replica import TokenOutput

        named = {"image_data": image_data, "video_data": video_data, **other}
        if asked := [name for name, value in named.items() if value]:
            raise ValueError(f"rollout hf: {asked[0]} is not supported")
        prompt = tuple(int(token) for token in prompt_ids)
        room = self.max_len - len(prompt)
        if not prompt or room < 1:
            raise ValueError(
                f"rollout hf: a prompt of {len(prompt)} tokens, with actor_rollout_ref.rollout.max_model_len "
                f"(data.max_prompt_length + data.max_response_length) at {self.max_len}"
            )
        sampling = Sampling.from_params(
            {"ignore_eos": self.config.ignore_eos, **sampling_params}, min(self.config.response_length, room)
        )
        sampled = await self.batcher.submit(Request(prompt, sampling))
        return TokenOutput(
            token_ids=sampled.token_ids,
            log_probs=sampled.logps if sampling_params.get("logprobs", False) else None,
            stop_reason="aborted" if sampled.aborted else "completed",
            extra_fields={"global_steps": self.global_steps},
        )

    # --- weights, sleep ----------------------------------------------------------------------------------------------

    async def load_weights(self, named: dict[str, torch.Tensor]) -> None:
        await asyncio.to_thread(self.weights.load, named)

    async def set_global_steps(self, global_steps: int) -> None:
        self.global_steps = global_steps

    async def sleep(self) -> None:
        """Finish what runs, hold what comes, and leave the device to the trainer."""
        if not self.config.free_cache_engine:
            return
        await self.batcher.pause()
        self.engine.model.to("cpu")
        from verl.utils.device import get_torch_device

        get_torch_device().empty_cache()

    async def wake_up(self) -> None:
        self.engine.model.to(self.device)
        self.batcher.resume()

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        await self.batcher.abort(reject_request)

    async def resume_generation(self) -> None:
        self.batcher.resume()

    async def clear_kv_cache(self) -> None:
        """Nothing to do: the cache of a batch ends with it."""

    release_kv_cache = resume_kv_cache = stop_profile = clear_kv_cache

    async def start_profile(self, **kwargs) -> None:
        """Nothing to do: verl's profilers are for CUDA and NPU engines."""
