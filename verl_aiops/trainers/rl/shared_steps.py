"""Steps of GRPO and PPO on an actor that computes each prompt once: rows kept together, no pass that is not needed.

Where ``algorithm.logprob_backend`` is not ``shared_prompt`` every method here is verl's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, open_dict
from verl import DataProto

from verl_aiops.seam import queue as tq
from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.queue import KVBatchMeta
from verl_aiops.seam.trainer import (
    calculate_debug_metrics,
    compute_rollout_correction_and_rejection_mask,
    is_distillation_enabled,
    log_seqlen_unbalance,
)
from verl_aiops.trainers.batch import ENTROPY_IS_LOGGED, ROWS_LOG_PROBS
from verl_aiops.trainers.config import shares_prompts
from verl_aiops.trainers.preflight.defaults import data_parallel_size
from verl_aiops.trainers.rl.reward_rows import session_of
from verl_aiops.trainers.together import times_torn, together

__all__ = ["SharedPromptSteps", "why_old_log_probs"]

# verl 0.9.1's estimators that look at old log-probs (`compute_advantage`)
READ_OLD_LOG_PROBS = ("optimal_token_baseline", "tir_optimal_token_baseline")


def why_old_log_probs(config: DictConfig, rows: int | None = None, padded: bool = False) -> str | None:
    """Who needs the old log-probs before the update: what would have to be otherwise for them to be left out, or None.

    Left out, they are those of the update itself: the policy that is updated is the one that answered, so that every
    ratio is 1 at the only update on these answers.

    Args:
        config: verl's configuration.
        rows: of the batch; None where it is as large as the configuration makes it.
        padded: whether some of them only fill the batch up.
    """
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if rows is None:
        rows = config.data.train_batch_size * rollout.n
    correction = config.algorithm.get("rollout_correction") or {}
    reasons = {
        "algorithm.rollout_correction.bypass_mode=True": correction.get("bypass_mode"),
        # weights and masks of the update itself; mere comparisons with the rollout's log-probs can wait for it
        "algorithm.rollout_correction.rollout_is": correction.get("rollout_is"),
        "algorithm.rollout_correction.rollout_rs": correction.get("rollout_rs"),
        "algorithm.use_kl_in_reward=True": config.algorithm.use_kl_in_reward,
        f"algorithm.adv_estimator={config.algorithm.adv_estimator}": config.algorithm.adv_estimator
        in READ_OLD_LOG_PROBS,
        "actor_rollout_ref.actor.calculate_sum_pi_squared=True": actor.get("calculate_sum_pi_squared"),
        "distillation.enabled=True": is_distillation_enabled(config.get("distillation")),
        f"actor_rollout_ref.actor.ppo_epochs={actor.ppo_epochs}": actor.ppo_epochs != 1,
        f"{rows} rows in mini-batches of actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} x "
        f"actor_rollout_ref.rollout.n={rollout.n}": rows != actor.ppo_mini_batch_size * rollout.n,
        "rows that only fill the batch up": padded,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class SharedPromptSteps:
    """Stands before verl's trainer in the bases of one."""

    # of the step at hand: whether its old log-probs are left to the update, and how many times cuts tear a prompt
    _old_by_update = False
    _torn = 0
    # what the run has said of its old log-probs
    _said: str | None = None

    def _balance_batch(self, batch: KVBatchMeta, metrics, **kwargs):
        # verl's, for the rows that it fills a batch up with; its order is not kept
        batch = super()._balance_batch(batch, metrics, **kwargs)
        if not shares_prompts(self.config):
            return batch
        workers = data_parallel_size(self.config)
        minis = self._mini_batches(len(batch) // workers, workers)
        order = together(
            [_prompt_of(key) for key in batch.keys],
            [tag["prompt_len"] for tag in batch.tags],
            [tag["response_len"] for tag in batch.tags],
            workers=workers,
            mini_batches=minis,
        )
        batch.reorder(order)
        self._torn = times_torn([_prompt_of(key) for key in batch.keys], workers * minis)
        share = len(batch) // workers
        lengths = [tag["seq_len"] for tag in batch.tags]
        balanced = log_seqlen_unbalance(
            lengths, [list(range(at, at + share)) for at in range(0, len(batch), share)], prefix="global_seqlen"
        )
        # the rest is of the order that the rows came in
        metrics.update({name: value for name, value in balanced.items() if "/balanced_" in name})
        return batch

    def _mini_batches(self, share: int, workers: int) -> int:
        """Into how many a worker cuts its share for the actor, or for the critic where that alone is updated."""
        trains = self.config.actor_rollout_ref.actor if self._updates_actor() else self.config.critic
        rows = trains.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n // workers
        return share // rows if rows and share % rows == 0 else 1

    def _updates_actor(self) -> bool:
        return self.config.trainer.critic_warmup <= self.global_steps

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self._old_by_update = False
        if shares_prompts(self.config) and self._updates_actor():
            padded = any(tag.get("is_padding", False) for tag in batch.tags)
            reason = why_old_log_probs(self.config, len(batch), padded)
            self._old_by_update = reason is None
            self._say(
                "old log-probs are those of the update itself: no pass of their own"
                if reason is None
                else f"old log-probs have a pass of their own: {reason}"
            )
        if self._old_by_update:
            return batch
        return super()._compute_old_log_prob(batch, metrics)

    def _say(self, text: str) -> None:
        """Once, and again when it is otherwise."""
        if text != self._said:
            self._said = text
            print(f"verl-aiops: from step {self.global_steps} on: {text}", flush=True)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if not self._old_by_update:
            return super()._compute_advantage(batch, metrics)
        # verl compares old log-probs with the rollout's here, for metrics alone (`why_old_log_probs`)
        with _set(self.config.algorithm, "rollout_correction", None):
            return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if not shares_prompts(self.config):
            return super()._update_actor(batch, metrics)
        actor = self.config.actor_rollout_ref.actor
        if not self._old_by_update:
            batch = super()._update_actor(batch, metrics)
        else:
            compared = self.config.actor_rollout_ref.rollout.calculate_log_probs
            batch.extra_info[ROWS_LOG_PROBS] = compared
            # times a coefficient of 0 its gradient would be computed for nothing
            batch.extra_info[ENTROPY_IS_LOGGED] = actor.entropy_coeff == 0
            # verl logs the entropy of the pass that was left out
            with _set(actor, "calculate_entropy", True), self._rows_taken() as rows:
                batch = super()._update_actor(batch, metrics)
            # aggregated as verl aggregates it there, over one mini-batch that is all rows
            metrics["actor/entropy"] = metrics["actor/entropy_loss"]
            if not actor.calculate_entropy and actor.entropy_coeff == 0:
                del metrics["actor/entropy_loss"]
            if compared:
                metrics.update(self._beside_rollout(batch, rows))
        if "actor/shared_tokens_ratio" in metrics:
            metrics["perf/shared_tokens_ratio"] = metrics.pop("actor/shared_tokens_ratio")
            # verl counts the work of rows, each with its prompt
            metrics["perf/mfu/actor"] *= metrics["perf/shared_tokens_ratio"]
            workers = data_parallel_size(self.config)
            minis = self._mini_batches(len(batch) // workers, workers)
            # the workers count what micro-batches tear, on all of them together, in the mean of mini-batches
            metrics["perf/torn_prompts"] = float(self._torn + metrics.pop("actor/torn_prompts") * minis)
        return batch

    @contextmanager
    def _rows_taken(self) -> Iterator[list[np.ndarray]]:
        """Within, log-probs of rows that an update brings among its metrics end up in the list: verl averages those."""
        workers, rows = self.actor_rollout_wg, []

        def update_actor(batch):
            output = workers.update_actor(batch)
            rows.extend(tu.get(output, "metrics").pop(ROWS_LOG_PROBS, ()))
            return output

        self.actor_rollout_wg = SimpleNamespace(update_actor=update_actor)
        try:
            yield rows
        finally:
            self.actor_rollout_wg = workers

    def _beside_rollout(self, batch: KVBatchMeta, rows: list[np.ndarray]) -> dict[str, Any]:
        """What verl logs of old log-probs and the rollout's, from those of the update."""
        fields = ["responses", "response_mask", "rollout_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        # copied: what Ray brings cannot be written to, of which torch would warn
        data["old_log_probs"] = torch.nested.as_nested_tensor(list(map(torch.tensor, rows)), layout=torch.jagged)
        padded = DataProto(batch=data.to_padded_tensor())
        names = ("old_log_probs", "rollout_log_probs", "response_mask")
        found = calculate_debug_metrics(padded)
        if self.config.algorithm.get("rollout_correction") is not None:
            found |= compute_rollout_correction_and_rejection_mask(*(padded.batch[name] for name in names))[2]
        return found


@contextmanager
def _set(config: DictConfig, key: str, value) -> Iterator[None]:
    """Within, the setting is this."""
    before = config[key]
    with open_dict(config):
        config[key] = value
    try:
        yield
    finally:
        with open_dict(config):
            config[key] = before


def _prompt_of(key: str) -> str:
    """Of verl's key ``{prompt}_{session}_{output}``."""
    return session_of(session_of(key))
