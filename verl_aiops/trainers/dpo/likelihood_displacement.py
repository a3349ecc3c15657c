"""A plain warning when a run shows the best-known failure of DPO."""

from __future__ import annotations

import numpy as np

__all__ = ["ChosenWatch"]


class ChosenWatch:
    """Notices chosen answers growing less likely for long while margins rise (Pal et al., arXiv 2402.13228, section 3).

    Batches differ in answer length, so ``rewards/chosen`` is watched: the same log-probs relative to the reference.

    Args:
        has_sft_term: the loss already holds chosen answers up; then nothing is said.
        block: steps that are averaged.
        blocks: so many blocks in a row must fall (and margins rise).
    """

    def __init__(self, *, has_sft_term: bool, block: int = 20, blocks: int = 4):
        self.quiet = has_sft_term
        self.block, self.blocks = block, blocks
        self._chosen: list[float] = []
        self._margins: list[float] = []

    def see(self, chosen_reward: float, margin: float) -> str | None:
        """Take one step's metrics; returns the warning, once."""
        self._chosen.append(chosen_reward)
        self._margins.append(margin)
        if self.quiet or len(self._chosen) % self.block or len(self._chosen) < self.block * self.blocks:
            return None
        recent = slice(-self.block * self.blocks, None)
        chosen = np.mean(np.reshape(self._chosen[recent], (self.blocks, self.block)), axis=1)
        margins = np.mean(np.reshape(self._margins[recent], (self.blocks, self.block)), axis=1)
        if chosen[-1] >= 0 or (np.diff(chosen) >= 0).any() or (np.diff(margins) <= 0).any():
            return None
        self.quiet = True
        return (
            f"chosen answers have grown less likely for {self.block * self.blocks} steps (rewards/chosen "
            f"{chosen[0]:.3f} -> {chosen[-1]:.3f}) while margins rose ({margins[0]:.3f} -> {margins[-1]:.3f}). If the "
            "model's answers get worse, add the SFT term: algorithm.dpo.loss_type=[sigmoid,sft] "
            "algorithm.dpo.loss_weights=[1.0,0.2]."
        )
