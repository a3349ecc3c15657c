"""What the prototype needs of `neo`: names that verl 0.9 has too, for its legacy trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

NEEDS = (
    Need(
        "verl.trainer.ppo.ray_trainer",
        "RayPPOTrainer",
        "how a checkpoint is written; called with a trainer that is none of its own",
        has="_save_checkpoint",
    ),
    Need(
        "verl.utils.tracking",
        "Tracking",
        "where metrics go",
        takes="project_name experiment_name default_backend config",
        has="log",
    ),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
