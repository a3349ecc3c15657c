"""From the examples of a step to the batch that goes to the workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from verl_aiops.data import PreferenceDataset
from verl_aiops.trainers.dpo.examples import ROWS_PER_PAIR, Row, rows_of, tokens_seen
from verl_aiops.trainers.dpo.pairs import arrange, pair_batch, pair_tokens
from verl_aiops.trainers.dpo.shift import RunningShift
from verl_aiops.trainers.preflight.defaults import sequence_parallel_size

__all__ = ["ExampleBatches"]


class ExampleBatches:
    """Stands before verl's trainer in the bases. Wants ``config``, ``dpo``, ``ranks``, ``mini_pairs``, the data sets,
    their order as ``train_dataloader``, and ``reference``."""

    # (examples,) number of each one's prompt; None where no prompt is there twice
    train_prompts: np.ndarray | None = None
    val_prompts: np.ndarray | None = None
    rows_per_example = ROWS_PER_PAIR
    estimates_kl = False
    # whether single answers are without one for the KL
    singles_alone = False
    shift: RunningShift | None = None

    def batch_settings(self) -> dict[str, Any]:
        """Micro-batching of every batch, the scoring of references included: equal shapes round equally."""
        actor = self.config.actor_rollout_ref.actor
        return {
            "use_dynamic_bsz": actor.use_dynamic_bsz,
            "micro_batch_size_per_gpu": actor.ppo_micro_batch_size_per_gpu,
            "max_token_len_per_gpu": actor.ppo_max_token_len_per_gpu,
            "sp_size": sequence_parallel_size(self.config),
            "logprob_backend": self.reference.backend,
        }

    def arranged(self, dataset, indices: np.ndarray, mini_pairs: int) -> np.ndarray:
        """``indices`` in the order in which the ranks get them."""
        return np.asarray(indices)[self._arrangement(dataset, indices, mini_pairs)]

    def _arrangement(self, dataset, indices: np.ndarray, mini_pairs: int) -> np.ndarray:
        """Positions in ``indices``, in that order."""
        lengths = self._row_tokens(dataset)[indices].tolist()
        prompts = self.val_prompts if dataset is self.val_dataset else self.train_prompts
        if prompts is None:
            return np.asarray(arrange(lengths, mini_pairs, self.ranks))
        shares = self.reference.backend == "shared_prompt"

        def rows(index: int) -> list[Row]:
            size = self.rows_per_example
            return rows_of(dataset[int(index)], size, estimates_kl=self.estimates_kl, scored=self.dpo.scored)

        def cost(places: list[int]) -> int:
            return tokens_seen([row for at in places for row in rows(indices[at])], shares=shares)

        keys = prompts[indices].tolist()
        return np.asarray(arrange(lengths, mini_pairs, self.ranks, prompts=keys, cost=cost))

    def _row_tokens(self, dataset) -> np.ndarray:
        """(examples,) tokens that each costs as rows."""
        return pair_tokens(dataset, alone=self.singles_alone)

    def build_batch(
        self,
        dataset: PreferenceDataset,
        indices: np.ndarray,
        *,
        mini_pairs: int,
        counted=None,
        with_reference: bool = True,
    ) -> TensorDict:
        """TensorDict of the examples ``indices``, which are arranged for the ranks already."""
        cached = with_reference and self.dpo.uses_reference and self.dpo.reference == "cached"
        batch = pair_batch(
            [dataset[int(i)] for i in indices],
            mini_pairs=mini_pairs,
            reference=self.reference.lookup(dataset, indices) if cached else None,
            counted=counted,
            ranks=self.ranks,
            rows_per_example=self.rows_per_example,
            estimates_kl=self.estimates_kl,
            scored=self.dpo.scored,
            **self.batch_settings(),
        )
        if self.shift is not None:
            batch["shift"] = torch.full((len(batch),), self.shift.mean)
        if with_reference and self.dpo.uses_reference and self.dpo.reference == "live":
            self._add_live_reference(batch)
        return batch

    def _step_batch(self, step: int) -> tuple[TensorDict, int]:
        """The batch of a step, and the tokens that it costs as rows."""
        indices = self.arranged(self.train_dataset, self.train_dataloader.step(step), self.mini_pairs)
        batch = self.build_batch(self.train_dataset, indices, mini_pairs=self.mini_pairs)
        self._for_update(batch, mini_pairs=self.mini_pairs, epochs=1)
        return batch, int(self._row_tokens(self.train_dataset)[indices].sum())
