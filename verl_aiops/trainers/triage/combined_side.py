"""The trainer's side of the reward manager ``aiops_combined``: how many failures it allows, and the running mean of the
reward model's scores, which belongs to a run and its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from verl_aiops.rewards.model.combined import CombinedSettings
from verl_aiops.rewards.model.running_stats import MomentsStore
from verl_aiops.trainers.rl.reward_side import RewardSide

__all__ = ["CombinedSide"]


class CombinedSide(RewardSide):
    """Of a run with ``reward.reward_manager.name=aiops_combined``."""

    decides_on_failures = asks_colocated_model = True

    def __init__(self, settings: CombinedSettings):
        self.settings = settings
        self.moments: MomentsStore | None = None

    @classmethod
    def of(cls, config: DictConfig) -> CombinedSide:
        """By ``reward.combined`` of a whole verl configuration."""
        return cls(CombinedSettings.from_config(config))

    @property
    def failures_allowed(self) -> float:
        return 0.0 if self.settings.on_failure == "fail" else self.settings.max_failed_share

    def start(self) -> None:
        # the reward workers look for the store by its name, so it has to be there before them
        if self.settings.uses_rm and self.settings.normalise == "running":
            self.moments = MomentsStore()

    def see(self, infos: Sequence[Mapping[str, Any]]) -> None:
        if self.moments is not None:
            self.moments.add(info["rm_raw"] for info in infos)

    def save(self, folder: str) -> None:
        if self.moments is not None:
            os.makedirs(folder, exist_ok=True)
            self.moments.save(folder)

    def load(self, folder: str) -> None:
        if self.moments is not None and not self.moments.load(folder):
            raise ValueError(
                f"{folder} holds no running mean of the reward model's scores: it was trained without "
                "reward.combined.normalise=running. Restore the setting, or set trainer.resume_mode=disable."
            )

    def advice(self) -> str:
        if self.settings.on_failure == "fail":
            return "reward.combined.on_failure=drop leaves such answers out, up to max_failed_share."
        return f"That is more than reward.combined.max_failed_share={self.settings.max_failed_share} allows."
