"""How often a run looks whether the answers of a step are there.

verl's replay buffer sleeps two seconds between looks, and no setting reaches it: a step whose answers take a little
more than two seconds waits for four, and every validation waits for two at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.settings import setting
from verl_aiops.trainers.config import TrainerSettings

__all__ = ["LookSettings", "OftenLooks", "has_own_sampler"]


@dataclass(frozen=True)
class LookSettings(TrainerSettings):
    """Keyword arguments of the sampler, which verl hands to samplers of a user's own and reads none of itself."""

    section = "trainer.v1.sampler.sampler_kwargs"

    poll_interval: float = setting(
        0.1,
        "seconds between two looks whether a step's answers are there; on average a step waits for half of it. A look "
        "lists what TransferQueue holds: 2 ms for 64 prompts with 8 answers, 29 ms for 1,024 with 8.",
        within="(0, 60]",
    )


def has_own_sampler(config: DictConfig) -> bool:
    """Whether a sampler of the user's own stands where verl's replay buffer would."""
    names = (OmegaConf.select(config, f"trainer.v1.sampler.custom_sampler.{key}") for key in ("path", "name"))
    return all(names)


class OftenLooks:
    """A trainer of verl's whose replay buffer looks as often as `LookSettings` says."""

    def _build_replay_buffer(self) -> Any:
        buffer = super()._build_replay_buffer()
        if not has_own_sampler(self.config):  # which has its own pace
            buffer.poll_interval = LookSettings.from_config(self.config).poll_interval
        return buffer
