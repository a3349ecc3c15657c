"""What a reward manager may want of the trainer that its scores come to, beside being asked for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

__all__ = ["REWARD_SIDES", "RewardSide"]


class RewardSide:
    """What a reward manager wants of the trainer beside taking its scores. This one wants nothing."""

    # Share of a step's answers that may be without a score; with more, the run ends.
    failures_allowed = 0.0
    # Whether that share holds for online DPO too, which otherwise has a share of its own.
    decides_on_failures = False
    # Whether a colocated reward model is asked through the manager, which then needs all that verl's agent loop gives
    # it. Else verl asks the model itself, and its score is the reward.
    asks_colocated_model = False

    def start(self) -> None:
        """At the trainer's set-up, before reward workers are started."""

    def see(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """What the reward returned for each answer of a step, its last outputs alone."""

    def save(self, folder: str) -> None:
        """Into a checkpoint's folder."""

    def load(self, folder: str) -> None:
        """From there. Raises ValueError if the folder lacks what this run needs."""

    def advice(self) -> str:
        """How to mend a step in which too many answers have no score."""
        return (
            "Mend the reward: every answer needs a finite score. Answers may be left out with "
            "reward.reward_manager.name=aiops_combined, reward.combined.mode=rule_only and .on_failure=drop."
        )


# By the name of the reward manager, from a whole verl configuration. `plugin.py` puts in those that know what is
# rewarded, so that no trainer has to.
REWARD_SIDES: dict[str, Callable[[DictConfig], RewardSide]] = {}
