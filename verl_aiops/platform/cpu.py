"""The ``cpu`` platform: verl's engines on a machine without an accelerator.

verl 0.9 asks its platform object for the device, never ``torch.cuda`` itself, so a platform whose device is
the CPU is all that FSDP2 training over gloo needs. Ray still counts accelerators: a worker takes one *logical*
GPU, which the preflight check declares (see :mod:`verl_aiops.trainers.preflight.entry`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase

__all__ = ["PlatformCPU", "cpu_device_module", "existing_ray_address"]


def existing_ray_address() -> str | None:
    """Address of the Ray cluster that ``ray.init()`` would join, or None where it would start its own."""
    configured = os.environ.get("RAY_ADDRESS")
    if configured:
        return None if configured == "local" else configured
    from ray._private.utils import read_ray_address

    return read_ray_address()


def _inside_ray_worker() -> bool:
    import ray

    return ray.is_initialized() and ray._private.worker.global_worker.mode == ray.WORKER_MODE


class _CPUDeviceModule(ModuleType):
    """What verl calls on ``torch.cuda``, for a device that has no streams and no memory of its own."""

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"

    def set_device(self, device: Any) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...

    def empty_cache(self) -> None: ...

    def ipc_collect(self) -> None: ...

    def reset_peak_memory_stats(self, device: Any = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def _peak_bytes() -> int:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @staticmethod
    def _resident_bytes() -> int:
        import psutil

        return psutil.Process().memory_info().rss

    def memory_allocated(self, device: Any = None) -> int:
        return self._resident_bytes()

    def memory_reserved(self, device: Any = None) -> int:
        return self._resident_bytes()

    def max_memory_allocated(self, device: Any = None) -> int:
        return self._peak_bytes()

    def max_memory_reserved(self, device: Any = None) -> int:
        return self._peak_bytes()

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return memory.available, memory.total


cpu_device_module = _CPUDeviceModule("verl_aiops_cpu_device")


class PlatformCPU(PlatformBase):
    """verl platform whose device is the host CPU and whose collectives are gloo's."""

    def __init__(self) -> None:
        # The engine registry knows FSDP under the device key "cuda" only; the engine itself asks the platform.
        os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return cpu_device_module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Whether auto-detection may choose the CPU (it is asked last, after every accelerator said no).

        A process that sees no accelerator proves nothing when it belongs to a cluster: drivers and task runners
        often sit on a node without one. There verl's own fallback stays, and ``VERL_PLATFORM=cpu`` is the
        explicit way to train on CPU. Chosen here, the choice is handed to child processes the same way.
        """
        if torch.cuda.is_available() or _inside_ray_worker() or existing_ray_address():
            return False
        os.environ["VERL_PLATFORM"] = "cpu"
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None
