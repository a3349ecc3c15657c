"""Batches that are made and sent while the workers compute.

In small steps the trainer's own work, and Ray's, would be as long as the workers'. So the next two steps are at the
workers before a step's result is asked for, and the batch after them is being made. A step's result may come with the
next one's: a GPU that trains alone is asked for its numbers late (`worker/run_ahead.py`).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from omegaconf import OmegaConf

from verl_aiops.seam.engine import BatchData
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.trainer import marked_timer
from verl_aiops.trainers.dpo.shift import RunningShift

__all__ = ["StepsAhead"]


class StepsAhead:
    """A part of `OfflineDPOTrainer`, whose `_step_batch` makes a step's batch from its number, and from ``shift``."""

    shift: RunningShift | None

    def _prepare_ahead(self) -> None:
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-batch")
        # by step: batches that are being made; what the workers have been sent, and its tokens; metrics that have come
        self._prepared: dict[int, Future] = {}
        self._sent: dict[int, tuple[list[ray.ObjectRef], int]] = {}
        self._results: dict[int, dict[str, Any]] = {}

    def _step_parts(self, step: int) -> tuple[list[ray.ObjectRef], int]:
        """As `_step_batch`, cut for the workers and in Ray's store."""
        batch, tokens = self._step_batch(step)
        tu.assign_non_tensor(batch, step=step, follows=step > 1 and self._next_follows_at_once(step - 1))
        return [ray.put(part) for part in BatchData(batch).chunk(self.ranks)], tokens

    def _update(self, timing_raw: dict) -> dict[str, Any]:
        """Train on this step's pairs; returns the workers' metrics."""
        live = self.dpo.uses_reference and self.dpo.reference == "live"
        # with a running mean a step's batch has what the step before it has brought
        if live or self.shift is not None or self.ranks != self.actor_rollout_wg.world_size:
            # the batch needs the workers, or their results, or several of them share a part
            with marked_timer("batch", timing_raw):
                batch, self._tokens = self._step_batch(self.global_steps)
            with marked_timer("update_actor", timing_raw, color="red"):
                return tu.get(self.actor_rollout_wg.update_actor(batch), "metrics")
        step = self.global_steps
        with marked_timer("batch", timing_raw):
            if step not in self._sent:
                self._send(step)
            # they wait at the workers, who begin them without a word from here
            for before in (step, step + 1):
                if not self._next_follows_at_once(before):
                    break
                if before + 1 not in self._sent:
                    self._send(before + 1)
        with marked_timer("update_actor", timing_raw, color="red"):
            return self._result(step)

    def _result(self, step: int) -> dict[str, Any]:
        """The metrics of a step that the workers have been sent. See `PreferenceWorker.update_pairs`."""
        running, self._tokens = self._sent.pop(step)
        # every worker returns the same
        self._results.update(ray.get(running)[0])
        if step not in self._results:
            # they run ahead: its metrics come with the step after it, or on asking where there is none at the workers
            later = self._sent.get(step + 1)
            self._results.update(ray.get(later[0])[0] if later else self.actor_rollout_wg.finish_updates()[0])
        return self._results.pop(step)

    def _send(self, step: int) -> None:
        """Give the workers a step's batch, and have the batch after it made meanwhile."""
        prepared = self._prepared.pop(step, None)
        parts, tokens = prepared.result() if prepared else self._step_parts(step)
        self._sent[step] = self.actor_rollout_wg.update_pairs(parts), tokens
        if step < self.total_training_steps:
            self._prepared[step + 1] = self._ahead.submit(self._step_parts, step + 1)

    def _next_follows_at_once(self, step: int) -> bool:
        """Whether the workers do nothing between a step and the next: save, validate, move the reference, profile."""
        trainer = self.config.trainer
        between = (trainer.save_freq, trainer.test_freq, self.dpo.reference_sync_steps)
        return (
            step < self.total_training_steps
            and not any(every and every > 0 and step % every == 0 for every in between)
            and OmegaConf.select(self.config, "global_profiler.steps") is None
        )
