"""The running mean of rewards that BCO's loss is shifted by, from step to step and from checkpoint to checkpoint."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass

from verl_aiops.files import write_atomically

__all__ = ["RunningShift"]

_FILE = "shift.json"


@dataclass
class RunningShift:
    """delta of BCO (arXiv 2404.04656, section 4): the mean of beta * log(policy / reference) over the single answers of
    all steps so far, those with a yes and those with a no alike, each weighing as much as another (as TRL's
    ``RunningMoments``). A step's loss is shifted by the mean of the steps before it; at the first, where policy and
    reference are the same, by 0.

    Attributes:
        mean: in units of reward.
        answers: that have gone into it.
    """

    mean: float = 0.0
    answers: int = 0

    def add(self, mean: float, answers: int) -> None:
        """A step's mean reward over so many single answers; without any, nothing changes."""
        if not answers or not math.isfinite(mean):
            return
        self.answers += answers
        self.mean += (mean - self.mean) * answers / self.answers

    def save(self, folder: str) -> None:
        write_atomically(os.path.join(folder, _FILE), json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: str) -> RunningShift:
        """Of a checkpoint.

        Raises:
            ValueError: the checkpoint has none.
        """
        path = os.path.join(folder, _FILE)
        try:
            with open(path, encoding="utf-8") as file:
                return cls(**json.load(file))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: the running mean of rewards that algorithm.dpo.loss_type=bco goes on from cannot be read "
                f"({error}). The checkpoint was made with another loss, or is damaged; start anew with "
                "trainer.resume_mode=disable and another trainer.default_local_dir."
            ) from None
