"""The settings of `verl-aiops train-rm`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from verl_aiops.trl.extra import TrainingError

__all__ = ["RewardTraining"]


@dataclass(frozen=True)
class RewardTraining:
    """What decides the result of a run.

    Attributes:
        data, val: preference files; without ``val`` the share ``val_share`` of the groups is held out.
        model: folder or hub name of the model to start from; its tokenizer needs a chat template.
        epochs, lr, batch_size, grad_accum, warmup: of the optimizer; batches count pairs.
        max_length: tokens of a conversation; ``max_too_long_share`` of the pairs may have more and are left out.
        lora_rank, lora_alpha: of all linear layers; rank 0 trains all weights. The score head is trained in any case.
        center: coefficient of the centring term, or None.
        margin: lead that every chosen answer should have, unless the file has a column ``margin``.
        seed: of the score head, the order of pairs, and the split.
        dtype: of the weights that are loaded and written; on a GPU float32 weights are trained under bfloat16 autocast.
        device: ``auto``, ``cpu`` or ``cuda``.
        save_steps: steps between checkpoints, from which a stopped run goes on.
    """

    data: tuple[str, ...]
    model: str
    val: tuple[str, ...] = ()
    val_share: float = 0.1
    epochs: float = 1.0
    lr: float = 1e-4
    batch_size: int = 8
    grad_accum: int = 1
    warmup: float = 0.05
    max_length: int = 2048
    max_too_long_share: float = 0.1
    lora_rank: int = 16
    lora_alpha: int = 32
    center: float | None = 0.01
    margin: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"
    save_steps: int = 50

    def check(self) -> None:
        """Raises TrainingError for a value that cannot work."""
        for name in ("epochs", "lr", "max_length", "lora_alpha", "save_steps", "batch_size", "grad_accum"):
            if not 0 < getattr(self, name) < math.inf:
                raise TrainingError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0")
        for name in ("val_share", "max_too_long_share", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected a share from 0 to 1")
        for name, value in (("lora-rank", self.lora_rank), ("margin", self.margin), ("center-rewards", self.center)):
            if value is not None and not 0 <= value < math.inf:
                raise TrainingError(f"--{name} {value}: expected a number, 0 or more")
