"""From a reward model's raw score to a number that can stand beside a rule's: normalise, shift and scale, squash, clip.

    z = (raw - mean) / std          mean and std: none, stored beside the model, or running over the training's scores
    x = (z - threshold) / temperature
    shaped = clip(squash(x))        squash: raw (x itself), sigmoid, tanh

``threshold`` is thus the normalised score that becomes 0.5 under ``sigmoid`` and 0 under ``tanh``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from verl_aiops.inputs.json_text import read_object_file

__all__ = ["NORMALISATIONS", "SQUASHES", "STATS_FILE", "Moments", "Shaping", "read_stats"]

STATS_FILE = "reward_stats.json"
NORMALISATIONS = ("none", "stored", "running")


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    small = math.exp(max(x, -700.0))
    return small / (1 + small)


# name: the function and the range of its values
SQUASHES: dict[str, tuple[Callable[[float], float], tuple[float, float]]] = {
    "raw": (lambda x: x, (-math.inf, math.inf)),
    "sigmoid": (_sigmoid, (0.0, 1.0)),
    "tanh": (math.tanh, (-1.0, 1.0)),
}


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of ``count`` raw scores."""

    mean: float = 0.0
    std: float = 1.0
    count: int = 0

    @classmethod
    def of_sums(cls, count: int, total: float, squares: float) -> Moments:
        """From the number of scores, their sum, and the sum of their squares.

        Fewer than two scores, or equal ones, have no scale: the standard deviation is then 1.
        """
        if count < 1:
            return cls()
        mean = total / count
        variance = max(0.0, squares / count - mean * mean)
        # below this, the difference of two squares is rounding
        std = math.sqrt(variance) if variance > 1e-12 * max(1.0, mean * mean) else 1.0
        return cls(mean, std, count)


@dataclass(frozen=True)
class Shaping:
    """The steps after normalisation; see the module's text."""

    squash: str = "sigmoid"
    temperature: float = 1.0
    threshold: float = 0.0
    clip: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that `shape` can give; infinite for an unclipped raw score."""
        low, high = SQUASHES[self.squash][1]
        if self.clip is None:
            return low, high
        return min(max(low, self.clip[0]), self.clip[1]), max(min(high, self.clip[1]), self.clip[0])

    def shape(self, raw: float, moments: Moments) -> float:
        """The shaped score; NaN stays NaN."""
        if math.isnan(raw):
            return raw
        x = ((raw - moments.mean) / moments.std - self.threshold) / self.temperature
        shaped = SQUASHES[self.squash][0](x)
        if self.clip is not None:
            shaped = min(max(shaped, self.clip[0]), self.clip[1])
        return shaped


def read_stats(model_path: str) -> Moments:
    """Mean and standard deviation that `verl-aiops train-rm` measured on held-out data.

    Raises:
        ValueError: no such file beside the model, or no usable numbers in it; the message says how to mend it.
    """
    path = Path(model_path) / STATS_FILE
    mend = "train the model with verl-aiops train-rm, or set reward.combined.rm_mean and .rm_std"
    try:
        stats = read_object_file(path)
        mean, std = (float(stats[key]) for key in ("reward_mean", "reward_std"))
        pairs = int(stats.get("pairs") or 0)
    except FileNotFoundError:
        raise ValueError(f"reward.combined.normalise=stored: no {path}; {mend}") from None
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError(
            f"reward.combined.normalise=stored: {path} holds no reward_mean and reward_std ({error}); {mend}"
        ) from None
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"reward.combined.normalise=stored: {path}: reward_mean={mean}, reward_std={std}; {mend}")
    return Moments(mean, std, pairs * 2)
