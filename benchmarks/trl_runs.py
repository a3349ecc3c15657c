"""What the benchmarks' runs of TRL's trainers have in common: order of the file, and what is measured."""

from __future__ import annotations

import os
import tempfile
import time

__all__ = ["clock", "common_settings", "in_file_order", "peak_gib", "prepare"]


def prepare(on_cpu: bool) -> None:
    """All cores, as `main_ppo` has them."""
    import torch

    if on_cpu:
        torch.set_num_threads(os.cpu_count() or 1)


def in_file_order(trainer: type) -> type:
    """The trainer, which takes examples in the order of its data set."""
    from torch.utils.data import SequentialSampler

    class InFileOrder(trainer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    return InFileOrder


def clock(on_cpu: bool, steps: int):
    """A callback whose ``seconds`` are those of every step, from the end of one to the end of the next."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds: list[float] = []

        def on_train_begin(self, *args, **kwargs):
            self.before = time.perf_counter()

        def on_step_end(self, _, state, *args, **kwargs):
            if not on_cpu and state.global_step in (1, steps):
                # the ends of what is timed; in between nothing waits for the device that TRL does not wait for itself
                torch.cuda.synchronize()
            now = time.perf_counter()
            self.seconds.append(now - self.before)
            self.before = now

    return Clock()


def common_settings(on_cpu: bool, steps: int) -> dict:
    """Of a trainer's configuration: a constant rate, nothing saved or reported, bfloat16 on a GPU."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "bf16": not on_cpu,
        "use_cpu": on_cpu,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def peak_gib(on_cpu: bool) -> float:
    """The most memory that this process had: of the GPU's allocator, or resident."""
    import resource

    import torch

    if on_cpu:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30
