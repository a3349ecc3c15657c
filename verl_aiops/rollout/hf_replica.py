"""The rollout ``hf`` as verl sees it: a replica that starts a server beside each training worker, and the worker's end
of it, which sends the weights.

For development, CI and small models: one process per replica, batches of whole answers, no paged cache. It runs
wherever transformers does, a laptop without a GPU included.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import ray
import torch
from verl.plugin.platform import get_platform
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutMode, RolloutReplica

from verl_aiops.rollout.hf_limits import unsupported
from verl_aiops.rollout.hf_server import HFServer

__all__ = ["HFReplica", "HFServerAdapter", "server_name"]


def server_name(replica_rank: int) -> str:
    return f"hf_server_{replica_rank}"


class HFReplica(RolloutReplica):
    """One server, on the node and the device of the training worker of the same rank.

    Raises:
        NotImplementedError: a setting or a mode that this rollout does not have, by name.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if wrong := unsupported(self.config, self.model_config):
            raise NotImplementedError("\n".join(wrong))
        if self.is_reward_model or self.is_teacher_model:
            raise NotImplementedError("rollout hf: serves the policy, no reward or teacher model")

    async def launch_servers(self):
        if self.rollout_mode != RolloutMode.HYBRID:
            raise NotImplementedError(
                f"rollout hf: the mode {self.rollout_mode.value} is not supported; it runs beside the training workers"
            )
        devices = get_platform().visible_devices_envvar()
        node, visible = await self.workers[0].__ray_call__.remote(
            lambda self: (ray.get_runtime_context().get_node_id(), os.environ.get(devices, ""))
        )
        env = {var: "1" for var in get_platform().ray_noset_envvars()} | {devices: visible}
        server = (
            ray.remote(HFServer)
            .options(
                name=server_name(self.replica_rank),
                num_cpus=0,
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False),
                runtime_env={"env_vars": env},
                max_concurrency=self.max_concurrency,
            )
            .remote(
                self._loaded(self.config), self._loaded(self.model_config), False, self.replica_rank, self.gpus_per_node
            )
        )
        await server.clear_kv_cache.remote()  # answers once the model is built
        self.servers = [server]
        self._server_handle = server
        # the balancer's name for it; nothing listens there
        self._server_address = server_name(self.replica_rank)

    @staticmethod
    def _loaded(config):
        from verl.utils.config import omega_conf_to_dataclass

        return omega_conf_to_dataclass(config)


class HFServerAdapter(BaseRollout):
    """Lives in the training worker; its replica's server has the worker's rank."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.replica_rank = int(os.environ["RANK"])
        self._server = None

    @property
    def server(self):
        if self._server is None:
            self._server = ray.get_actor(server_name(self.replica_rank))
        return self._server

    async def resume(self, tags: list[str]):
        """Let generation go on once weights and cache are both back; verl asks for the cache last."""
        if "kv_cache" in tags:
            await self.server.wake_up.remote()

    async def release(self):
        await self.server.sleep.remote()

    async def update_weights(
        self,
        weights: Generator[tuple[str, torch.Tensor], None, None],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        peft_config=None,
        **kwargs,
    ):
        """Send all weights in buckets of ``checkpoint_engine.update_weights_bucket_megabytes``.

        Raises:
            NotImplementedError: a LoRA adapter or sparse updates.
        """
        if peft_config is not None or wire_format != "named_tensors":
            raise NotImplementedError("rollout hf: takes whole weights; set actor_rollout_ref.model.lora.merge=True")
        most = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        bucket: dict[str, torch.Tensor] = {}
        size = 0
        # every rank goes through its weights to the end: gathering them is a collective of all ranks
        for name, tensor in weights:
            bucket[name] = tensor.detach().to("cpu")
            size += tensor.nbytes
            if size >= most:
                await self.server.load_weights.remote(bucket)
                bucket, size = {}, 0
        if bucket:
            await self.server.load_weights.remote(bucket)
        if global_steps is not None:
            await self.server.set_global_steps.remote(global_steps)
