"""The Ray actor behind the rollout ``hf``: answers the requests for generation and holds the weights."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import torch

from verl_aiops.rollout.hf.batcher import Batcher
from verl_aiops.rollout.hf.engine import Engine, Request, Sampled, Sampling

__all__ = ["HFServer", "Weights"]


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

    Settings:
        dtype: of the weights.
        prompt_length: with `response_length` the longest conversation in tokens, where `max_model_len` is null.
        response_length: tokens of an answer at most.
        max_model_len: tokens of a conversation at most.
        max_num_seqs: answers computed in one batch at most.
        max_num_batched_tokens: prompt tokens in one batch at most, each different prompt counted once.
        seed: of sampling, together with the step, the prompt and the answer's number.
        ignore_eos: sample up to the limit, past the end of the answer.
        free_cache_engine: move the weights off the device while the trainer works.

    Args:
        config: verl's rollout configuration.
        model_config: verl's model configuration.
        weights_from_disk: load them; else the trainer sends them before the first request.
        replica_rank: number of this replica; replicas sample different answers to one prompt.
        workers: servers that share this machine's cores.
    """

    def __init__(self, config, model_config, weights_from_disk: bool, replica_rank: int = 0, workers: int = 1):
        from transformers import AutoConfig, AutoModelForCausalLM
        from verl.utils.device import get_device_name

        from verl_aiops.kernels.cpu_linear import use_onednn
        from verl_aiops.platform.attention import plain_attention
        from verl_aiops.rollout.rounds.stops import stop_ids
        from verl_aiops.seam.engine import PrecisionType, get_device_id
        from verl_aiops.verl_patches.process_group import share_cores

        self.config = config
        on_cpu = get_device_name() == "cpu"
        if on_cpu:
            share_cores(workers)
        self.device = "cpu" if on_cpu else get_device_id()
        settings = AutoConfig.from_pretrained(model_config.local_path, trust_remote_code=model_config.trust_remote_code)
        options = {
            "dtype": PrecisionType.to_dtype(config.dtype),
            "trust_remote_code": model_config.trust_remote_code,
            "attn_implementation": plain_attention(settings),
        }
        if weights_from_disk:
            model = AutoModelForCausalLM.from_pretrained(model_config.local_path, **options)
        else:
            model = AutoModelForCausalLM.from_config(settings, **options)
        if on_cpu:
            use_onednn(model)
        self.weights = Weights(model, complete=weights_from_disk)
        self.engine = Engine(
            model.to(self.device),
            stop_ids(model_config.local_path, model_config.tokenizer),
            seed=f"{config.seed}/{replica_rank}",
        )
        self.global_steps: int | None = None
        self.max_len = config.max_model_len or config.prompt_length + config.response_length
        self.batcher = Batcher(
            self._run,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            aborted=lambda: Sampled([], [], aborted=True),
        )

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
        from verl_aiops.seam.rollout import TokenOutput

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
