"""FSDP2's offloading on the CPU platform, where there is no pinned memory to offload into."""

from __future__ import annotations

import functools


def unpinned_on_cpu(policy):
    """Wrap the `CPUOffloadPolicy` that verl's engine makes: without pinned memory on the CPU platform."""
    from verl.utils import device

    @functools.wraps(policy, updated=())
    def make(pin_memory: bool = True):
        return policy(pin_memory=pin_memory and device.get_device_name() != "cpu")

    return make
