"""What Ray will have to run on, known before Ray is asked."""

from __future__ import annotations

import os
import socket

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.platform.cpu import existing_ray_address

__all__ = ["ClusterError", "answers", "check_cluster", "gpus_needed", "logical_cpus_needed"]

_ASKED_BY = "trainer.n_gpus_per_node x trainer.nnodes, and the same of reward.reward_model with a pool of its own"


class ClusterError(ValueError):
    """The cluster cannot hold the run; the message says what is missing and how to provide it."""


def answers(address: str) -> bool:
    """Whether something listens at ``host:port``. Ray itself waits for a dead cluster for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return True  # "auto": for Ray to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return False
    return True


def gpus_needed(config: DictConfig) -> int:
    """GPUs that the run's Ray workers hold: the trainer's, and those of a reward model with a pool of its own."""
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    reward = OmegaConf.select(config, "reward.reward_model")
    # verl sets the pool up whether or not the reward model is enabled
    if reward is not None and reward.enable_resource_pool:
        gpus += reward.n_gpus_per_node * reward.nnodes
    return gpus


def logical_cpus_needed(config: DictConfig) -> int:
    """Logical CPUs that the run's Ray actors hold: one each for the task runner, TransferQueue's controller and
    storage units, and, with headroom, for the workers and the actors that verl starts beside them."""
    units = OmegaConf.select(config, "transfer_queue.backend.SimpleStorage.num_data_storage_units", default=1)
    return 2 + units + 3 * gpus_needed(config)


def check_cluster(config: DictConfig, given: set[str], device_name: str) -> list[str]:
    """Make the run fit the machine where this process will start Ray; refuse what cannot fit.

    verl waits for ever, without a word, for TransferQueue storage units that have no CPU to run on.

    Args:
        config: changed in place: logical CPUs, logical GPUs on the CPU platform, storage units.
        given: keys that the user set on the command line; they are checked, never changed.
        device_name: verl's platform device, ``"cpu"`` for the embedded default.

    Returns:
        one line per key that was set.

    Raises:
        ClusterError: too few CPUs or GPUs for the run.
    """
    lines: list[str] = []
    units_key = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
    gpus_key = "ray_kwargs.ray_init.num_gpus"
    gpus = gpus_needed(config)

    def put(key: str, value) -> None:
        with open_dict(config):
            OmegaConf.update(config, key, value, force_add=True)
        lines.append(f"{key}={value}")

    # one is enough for rollouts of one machine; eight would each hold a CPU
    if units_key not in given and OmegaConf.select(config, units_key) == 8:
        put(units_key, 1)
    needed = logical_cpus_needed(config)
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address") or existing_ray_address()
    if address and address != "local":
        _check_existing(address, needed, gpus)
        for key in ("ray_kwargs.ray_init.num_cpus", gpus_key):
            value = OmegaConf.select(config, key)
            if value is not None and key in given:
                raise ClusterError(
                    f"{key}={value} is for a Ray that the run starts itself, but it joins the cluster at {address}, "
                    "whose resources are set already, and Ray refuses that. Remove the setting, or stop the cluster."
                )
            if value is not None:
                put(key, None)
        return lines
    cpus = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus")
    if cpus is None and (os.cpu_count() or 1) < needed:
        put("ray_kwargs.ray_init.num_cpus", max(16, needed))
    elif cpus is not None and cpus < needed:
        raise ClusterError(
            f"ray_kwargs.ray_init.num_cpus={cpus}, but the run's Ray actors hold {needed} logical CPUs (storage units "
            f"included), and verl would wait for the missing ones for ever. Set ray_kwargs.ray_init.num_cpus={needed} "
            "or more: logical CPUs may exceed the real ones."
        )
    if device_name == "cpu":
        logical = OmegaConf.select(config, gpus_key)
        # the preset counts the trainer's workers only
        if logical is None or (logical < gpus and gpus_key not in given):
            put(gpus_key, gpus)
        elif logical < gpus:
            raise ClusterError(
                f"{gpus_key}={logical}, but {gpus} workers are asked for ({_ASKED_BY}) and each takes one logical GPU "
                "on the CPU platform."
            )
    return lines


def _check_existing(address: str, needed: int, gpus: int) -> None:
    import ray

    if not answers(address):
        raise ClusterError(
            f"nothing answers at {address}, where the environment (RAY_ADDRESS) or a `ray start` on this machine says "
            "a Ray cluster is. Start it, or unset RAY_ADDRESS and run `ray stop` so that the run starts its own."
        )
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        total = ray.cluster_resources()
    finally:
        if started_here:
            ray.shutdown()
    cpus = int(total.get("CPU", 0))
    accelerators = int(total.get("GPU", 0) or total.get("NPU", 0))
    if cpus < needed:
        raise ClusterError(
            f"the running Ray cluster has {cpus} CPUs, but the run's Ray actors hold {needed}, and verl would wait for "
            f"the missing ones for ever. Start it with `ray start --head --num-cpus={max(16, needed)}` (logical CPUs "
            "may exceed the real ones), add nodes, or stop it and let the run start its own."
        )
    if accelerators < gpus:
        raise ClusterError(
            f"the running Ray cluster has {accelerators} GPUs, but {gpus} workers are asked for ({_ASKED_BY}). To "
            "train on CPU there, set VERL_PLATFORM=cpu and start the cluster with `ray start --head --num-cpus=16 "
            f"--num-gpus={gpus}` (logical GPUs)."
        )
