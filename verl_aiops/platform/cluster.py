"""What Ray will have to run on, known before Ray is asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.platform.cpu import existing_ray_address
from verl_aiops.platform.nodes import ask_nodes

__all__ = ["ClusterError", "answers", "check_cluster", "check_gpus_are_real", "gpus_needed", "logical_cpus_needed"]

# a node with an accelerator has one of these, whatever Ray hides from the processes that it starts there
_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri", "/dev/davinci_manager")
# what Ray gives every process of a run, wherever it is started, over the environment of the node that it is started on
_PLATFORM = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM"
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
        config: changed in place: logical CPUs, logical GPUs on the CPU platform, storage units, and for workers on the
            CPUs of a cluster that runs already the platform.
        given: keys that the user set on the command line; they are checked, never changed.
        device_name: verl's platform device, ``"cpu"`` for the embedded default.

    Returns:
        one line per key that was set.

    Raises:
        ClusterError: too few CPUs or GPUs for the run, or its workers would have another platform than this process.
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
    if address := _joined(config):
        _check_existing(address, needed, gpus, device_name)
        for key in ("ray_kwargs.ray_init.num_cpus", gpus_key):
            value = OmegaConf.select(config, key)
            if value is not None and key in given:
                raise ClusterError(
                    f"{key}={value} is for a Ray that the run starts itself, but it joins the cluster at {address}, "
                    "whose resources are set already, and Ray refuses that. Remove the setting, or stop the cluster."
                )
            if value is not None:
                put(key, None)
        if device_name == "cpu":
            _hand_on_platform(config, put)
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


def _hand_on_platform(config: DictConfig, put: Callable[[str, str], None]) -> None:
    """Workers on a cluster that runs already have the environment in which Ray was started there, and no process of
    a cluster takes the CPU by itself: where nothing is said there, workers ask for CUDA, and die of it minutes later.
    """
    named = OmegaConf.select(config, _PLATFORM)
    if named is None:
        put(_PLATFORM, "cpu")
    elif named != "cpu":
        raise ClusterError(
            f"{_PLATFORM}={named}, but this process has the CPU as its platform, and the run's workers need the same "
            "one. Remove the setting: a run on CPUs hands its platform on. To train on the cluster's accelerators, run "
            f"this command with VERL_PLATFORM={named} in its environment."
        )


def _joined(config: DictConfig) -> str | None:
    """Address of the cluster that a run joins; None where it starts its own."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address") or existing_ray_address()
    return None if address == "local" else address


def check_gpus_are_real(config: DictConfig, device_name: str) -> None:
    """Refuse a run on GPUs that a cluster only declares: what `check_cluster` looks at beside numbers.

    Args:
        config: read only.
        device_name: verl's platform device.

    Raises:
        ClusterError: nothing answers where the cluster should be, or none of its nodes has an accelerator.
    """
    if _takes_cuda_unseen(device_name) and (address := _joined(config)):
        _check_devices(_resources(address), address)


def _takes_cuda_unseen(device_name: str) -> bool:
    """Whether this process has CUDA as its platform because a cluster is there, whose nodes it does not know."""
    import torch

    return device_name == "cuda" and not torch.cuda.is_available()


def _check_devices(total: Mapping[str, float], address: str) -> None:
    """GPUs that no node has are logical ones, for training on CPUs; a run on CUDA would wait for minutes and die."""
    # Ray names the kind of the accelerators that it finds, declared or not
    if not total.get("GPU") or any(resource.startswith("accelerator_type:") for resource in total):
        return
    try:
        unseen = ask_nodes(_DEVICES, address)
    except TimeoutError:
        return  # who needs the nodes says it
    if all(len(paths) == len(_DEVICES) for paths in unseen.values()):
        raise ClusterError(
            f"the Ray cluster at {address} declares {int(total['GPU'])} GPUs, but none of its nodes has one, and this "
            "process would train on CUDA. To train on the CPUs there, set VERL_PLATFORM=cpu in the environment of this "
            "command (VERL_PLATFORM=cpu python -m ...); the run hands it on to the workers."
        )


def _resources(address: str) -> dict[str, float]:
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
        return ray.cluster_resources()
    finally:
        if started_here:
            ray.shutdown()


def _check_existing(address: str, needed: int, gpus: int, device_name: str) -> None:
    total = _resources(address)
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
    if _takes_cuda_unseen(device_name):
        _check_devices(total, address)
