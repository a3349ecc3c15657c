"""Where `neo` starts a trainer: it knows one, `RayPPOTrainer`, and names no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

__all__ = ["TRAINERS", "register_trainer", "get_trainer_cls", "with_our_trainers"]

# trainer.v1.trainer_mode -> class, for verl 0.9's registry of the same name
TRAINERS: dict[str, Any] = {}


def register_trainer(name: str) -> Callable[[type], type]:
    """As verl 0.9's."""

    def keep(cls: type) -> type:
        TRAINERS[name] = cls
        return cls

    return keep


def get_trainer_cls(name: str) -> Any:
    """As verl 0.9's."""
    return TRAINERS[name]


def with_our_trainers(runner: Any, trainer_of: Callable[[Any], Any]) -> Any:
    """verl's ``main_ppo_v0.TaskRunner``, an actor class of Ray's, that runs a trainer of ours where one is meant.

    Args:
        runner: as `neo` has it; ``run(config)`` is all that ``main_ppo`` calls.
        trainer_of: a class for a configuration, or None for a run that is verl's.
    """
    import ray

    verls = runner.__ray_metadata__.modified_class

    class TaskRunner(verls):
        def run(self, config):
            trainer_cls = trainer_of(config)
            if trainer_cls is None:
                return super().run(config)
            OmegaConf.resolve(config)
            trainer = trainer_cls(config=config)
            trainer.init()
            trainer.fit(None)

    return ray.remote(TaskRunner)
