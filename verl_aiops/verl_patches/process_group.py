"""Process groups on the CPU platform, where verl's own backend string is one that torch refuses."""

from __future__ import annotations

import functools
import os
from datetime import timedelta

import torch

from verl_aiops.missing import require

CPU_BACKEND = "cpu:gloo"


def share_cores(workers: int) -> None:
    """Give this process its part of the machine's cores: Ray allots one thread to every actor."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // max(1, workers)))


def _verl_device():
    """When a function is wrapped, not in each call: what cannot be imported must not reach who runs verl alone."""
    from verl.utils import device

    require(device, "get_device_name")
    return device


def on_cpu_use_gloo(initialize_ray):
    """Wrap verl's ``initialize_global_process_group_ray``: same call, backend ``cpu:gloo`` on the CPU platform."""
    device = _verl_device()

    @functools.wraps(initialize_ray)
    def initialize(timeout_second=None, backend=None):
        if backend is None and device.get_device_name() == "cpu":
            backend = CPU_BACKEND
            share_cores(int(os.environ.get("RAY_LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", 1)))
        return initialize_ray(timeout_second=timeout_second, backend=backend)

    return initialize


def on_cpu_use_gloo_torchrun(initialize_torchrun):
    """Wrap verl's ``initialize_global_process_group`` (torchrun: the SFT trainer) likewise."""
    device = _verl_device()

    @functools.wraps(initialize_torchrun)
    def initialize(timeout_second=36000):
        if device.get_device_name() != "cpu":
            return initialize_torchrun(timeout_second)
        # torchrun sets one thread for each process unless the user says otherwise
        share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        torch.distributed.init_process_group(
            backend=CPU_BACKEND,
            timeout=timedelta(seconds=timeout_second),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )
        return int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    return initialize
