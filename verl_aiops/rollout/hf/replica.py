"""The rollout ``hf`` as verl sees it: a replica that starts a server beside each worker, and the training worker's end
of it, which sends the weights. It serves the policy, or a discriminative reward model.

For development, CI and small models: one process per replica, batches of whole answers, no paged cache. It runs
wherever transformers does, a laptop without a GPU included.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator

import ray
import torch
from verl.workers.rollout.replica import RolloutReplica

from verl_aiops.data.scoring import REWARD_SERVER
from verl_aiops.rollout.hf.limits import unsupported, unsupported_reward_server
from verl_aiops.rollout.hf.scorer import HFScorer
from verl_aiops.rollout.hf.server import HFServer
from verl_aiops.seam.rollout import BaseRollout, RolloutMode, get_platform, is_valid_ipv6_address

__all__ = ["HFReplica", "HFServerAdapter", "server_name"]

# of all replicas of a run, which one process starts: verl's router sends a request to any of them
_REWARD_KEY = os.environ.get("VERL_AIOPS_SCORER_KEY") or secrets.token_urlsafe(32)


def server_name(replica_rank: int) -> str:
    return f"hf_server_{replica_rank}"


class HFReplica(RolloutReplica):
    """One server, on the node and the device of the replica's worker.

    The policy's worker is the training worker of the same rank; a reward model's is one that verl starts for it, on the
    trainer's devices or on others, and does nothing.

    Raises:
        NotImplementedError: a setting or a mode that this rollout does not have, by name.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_teacher_model:
            raise NotImplementedError("rollout hf: serves the policy or a reward model, no teacher model")
        wrong = unsupported_reward_server(self.config) if self.is_reward_model else unsupported(*self._configs)
        if wrong:
            raise NotImplementedError("\n".join(wrong))

    async def launch_servers(self):
        if self.is_reward_model:
            await self._launch_scorer()
        else:
            await self._launch_policy()

    async def _launch_policy(self):
        if self.rollout_mode != RolloutMode.HYBRID:
            raise NotImplementedError(
                f"rollout hf: the mode {self.rollout_mode.value} is not supported; it runs beside the training workers"
            )
        options, _ = await self._beside_the_worker()
        server = (
            ray.remote(HFServer)
            .options(name=server_name(self.replica_rank), max_concurrency=self.max_concurrency, **options)
            .remote(*map(self._loaded, self._configs), False, self.replica_rank, self.gpus_per_node)
        )
        await server.clear_kv_cache.remote()  # answers once the model is built
        self.servers = [server]
        self._server_handle = server
        # the balancer's name for it; nothing listens there
        self._server_address = server_name(self.replica_rank)

    async def _launch_scorer(self):
        options, devices = await self._beside_the_worker()
        name = f"{REWARD_SERVER}{self.replica_rank}{self.name_suffix}"
        # with devices of its own it answers at any time, and as verl's other servers it does not sleep
        can_sleep = self.rollout_mode == RolloutMode.COLOCATED
        server = (
            ray.remote(HFScorer)
            .options(name=name, **options)
            .remote(*map(self._loaded, self._configs), can_sleep, devices, _REWARD_KEY)
        )
        address, port = await server.launch.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"[{address}]:{port}" if is_valid_ipv6_address(address) else f"{address}:{port}"

    async def _beside_the_worker(self) -> tuple[dict, int]:
        """Ray options that put an actor on the worker's node and device, and the node's number of devices: on the CPU
        platform logical ones, one for each worker that computes there."""
        platform = get_platform()
        variable = platform.visible_devices_envvar()
        node, visible = await self.workers[0].__ray_call__.remote(
            lambda self: (ray.get_runtime_context().get_node_id(), os.environ.get(variable, ""))
        )
        (resources,) = [known["Resources"] for known in ray.nodes() if known["NodeID"] == node]
        env = {var: "1" for var in platform.ray_noset_envvars()} | {variable: visible}
        options = {
            "num_cpus": 0,
            "scheduling_strategy": ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            "runtime_env": {"env_vars": env},
        }
        return options, int(resources.get(platform.ray_resource_name(), 1))

    @property
    def _configs(self) -> tuple:
        return self.config, self.model_config

    @staticmethod
    def _loaded(config):
        from verl_aiops.seam.engine import omega_conf_to_dataclass

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
            # the server is another process, and Ray's object store between them is memory of the CPU
            bucket[name] = tensor.detach().to("cpu")
            size += tensor.nbytes
            if size >= most:
                await self.server.load_weights.remote(bucket)
                bucket, size = {}, 0
        if bucket:
            await self.server.load_weights.remote(bucket)
        if global_steps is not None:
            await self.server.set_global_steps.remote(global_steps)
