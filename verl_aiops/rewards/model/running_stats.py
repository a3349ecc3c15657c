"""Running mean and standard deviation of the reward model's raw scores: the trainer's to keep, the managers' to read.

The scores of one step are all normalised by what was known before it, so answers to one prompt are shifted and scaled
alike, in every process. The trainer adds a step's scores when the step's answers are in, and keeps them in the
checkpoint, so a resumed run goes on with the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verl_aiops.files import write_atomically
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.rewards.model.transform import Moments

__all__ = ["ACTOR", "MomentsReader", "MomentsStore", "RunningSums"]

ACTOR = "aiops_reward_moments"
FILE = "reward_moments.json"


class RunningSums:
    """Number, sum and sum of squares of all finite scores so far."""

    def __init__(self, count: int = 0, total: float = 0.0, squares: float = 0.0):
        self.count, self.total, self.squares = count, total, squares

    def add(self, scores: Iterable[float]) -> None:
        finite = [float(score) for score in scores if math.isfinite(score)]
        self.count += len(finite)
        self.total += math.fsum(finite)
        self.squares += math.fsum(score * score for score in finite)

    def moments(self) -> Moments | None:
        """None before there are two scores."""
        return Moments.of_sums(self.count, self.total, self.squares) if self.count > 1 else None


class _Board:
    """The Ray actor: holds what the trainer wrote last."""

    def __init__(self):
        self.moments: Moments | None = None

    def write(self, moments: Moments | None) -> None:
        self.moments = moments

    def read(self) -> Moments | None:
        return self.moments


class MomentsStore:
    """The trainer's side. Needs a running Ray; must exist before the first answer is scored."""

    def __init__(self):
        import ray

        self.sums = RunningSums()
        self._board = ray.remote(_Board).options(name=ACTOR, num_cpus=0).remote()
        ray.get(self._board.read.remote())

    def add(self, scores: Iterable[float]) -> Moments | None:
        """Take in a step's raw scores; the next step is normalised with them."""
        self.sums.add(scores)
        return self._publish()

    def _publish(self) -> Moments | None:
        import ray

        moments = self.sums.moments()
        ray.get(self._board.write.remote(moments))
        return moments

    def save(self, folder: str) -> None:
        sums = {"count": self.sums.count, "total": self.sums.total, "squares": self.sums.squares}
        write_atomically(Path(folder) / FILE, json.dumps(sums))

    def load(self, folder: str) -> bool:
        """Whether the checkpoint had any."""
        path = Path(folder) / FILE
        if not path.is_file():
            return False
        try:
            sums = read_object_file(path)
            self.sums = RunningSums(int(sums["count"]), float(sums["total"]), float(sums["squares"]))
        except (JsonFault, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not the sums of scores that were saved with this checkpoint ({error}); go on from another "
                "checkpoint, or remove the file to begin the sums anew"
            ) from None
        self._publish()
        return True


class MomentsReader:
    """A manager's side.

    Args:
        first: used always, or until the first step is over where ``running``.
        running: whether to ask the trainer's store.
    """

    def __init__(self, first: Moments, running: bool):
        self.first, self.running = first, running
        self._step: object = object()
        self._moments = first
        self._board: Any = None

    async def at(self, step) -> Moments:
        """What the scores of ``step`` are normalised by; asked for once per step."""
        if not self.running or step == self._step:
            return self._moments
        import ray

        if self._board is None:
            self._board = ray.get_actor(ACTOR)
        self._moments = await self._board.read.remote() or self.first
        self._step = step
        return self._moments
