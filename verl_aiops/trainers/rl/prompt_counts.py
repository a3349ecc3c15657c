"""Prompts that no step has, that stand twice, contradict themselves, or are validated on as well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.data.repeats import count_shared

__all__ = ["PromptCounts"]


class PromptCounts:
    """Takes in the usable rows of both files, and keeps a digest of each."""

    def __init__(self, prompt_key: str):
        self.key = prompt_key
        # by "train_files" and "val_files": of what the model sees, and of what its answer is held against
        self.prompts: dict[str, list[bytes]] = {"train_files": [], "val_files": []}
        self.truths: list[bytes] = []
        # False where a file could not be read here
        self.whole = True

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        info = row.get("extra_info")
        rounds = info.get("rounds") if isinstance(info, Mapping) else None
        self.prompts[key].append(_digest([row.get(self.key), rounds]))
        if key == "train_files":
            reward = row.get("reward_model")
            self.truths.append(_digest(reward.get("ground_truth") if isinstance(reward, Mapping) else None))

    def notes(self, config: DictConfig) -> list[str]:
        """What is worth saying of them."""
        train, val = self.prompts["train_files"], self.prompts["val_files"]
        notes = untrained_notes(config, len(train)) if self.whole else []
        repeated = len(train) - len(set(train))
        if repeated:
            differing = len(set(zip(train, self.truths, strict=True))) - len(set(train))
            notes.append(
                f"{repeated:,} of {len(train):,} rows of data.train_files repeat the prompt of another row"
                + f"; for {differing:,} of them the ground truth is another one" * bool(differing)
            )
        if shared := count_shared(val, train):
            notes.append(
                f"warning: {shared:,} of {len(val):,} prompts of data.val_files are trained on (they stand in "
                "data.train_files): for these, what is measured in validation proves nothing"
            )
        return notes


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "replace")).digest()


def untrained_notes(config: DictConfig, rows: int) -> list[str]:
    """Rows of the training files that the run leaves out: verl drops the remainder of an epoch that fills no batch, and
    counts an epoch in whole training batches.
    """
    data, trainer = config.data, config.trainer
    batch, most = data.train_batch_size, data.get("train_max_samples") or -1
    used = min(rows, most) if most > 0 else rows
    notes = []
    if used < rows:
        notes.append(
            f"data.train_max_samples={most}: {rows - used:,} of {rows:,} rows of data.train_files are not used"
        )
    if OmegaConf.select(config, "algorithm.filter_groups.enable"):
        return notes  # how many prompts make up a step is told by their answers
    per_epoch = used // batch
    steps = per_epoch * trainer.total_epochs
    if trainer.total_training_steps is not None:
        if trainer.total_training_steps > steps:
            notes.append(
                f"warning: trainer.total_training_steps={trainer.total_training_steps}, but trainer.total_epochs="
                f"{trainer.total_epochs} end after step {steps:,} at the latest. Raise trainer.total_epochs."
            )
        steps = min(steps, trainer.total_training_steps)
    left = used - per_epoch * batch
    arithmetic = f"data.train_batch_size={batch}, {steps:,} steps"
    if steps <= per_epoch or not data.get("shuffle", True):
        never = used - min(steps, per_epoch) * batch
        if never:
            notes.append(f"{never:,} of {used:,} rows of data.train_files are in no step of this run ({arithmetic})")
    elif left:
        notes.append(
            f"each epoch leaves out {left:,} of {used:,} rows of data.train_files, others each time: what fills no "
            f"batch is dropped ({arithmetic})"
        )
    return notes
