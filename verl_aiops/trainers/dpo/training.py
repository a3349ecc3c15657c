"""What offline and online DPO do alike between a batch of pairs and its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict
from verl.utils.metric import reduce_metrics

from verl_aiops.seam.engine import tensordict_utils as tu
from verl_aiops.seam.trainer import marked_timer
from verl_aiops.trainers.dpo.checkpoints import PreferenceCheckpoints
from verl_aiops.trainers.runs.finite import check_scores
from verl_aiops.trainers.worker.objective import PreferenceObjective

__all__ = ["PreferenceTraining"]

# what is known by these names without the worker's own in front
_PLAIN = ("rewards", "logps", "perf")


class PreferenceTraining(PreferenceCheckpoints):
    """Stands before verl's trainer in the bases. Wants ``dpo`` and, once there are workers, ``actor_rollout_wg``."""

    def _begin_training(self) -> None:
        """Give the workers their loss, and look at the weights that they have loaded."""
        objective = PreferenceObjective(
            loss_settings=self.dpo.loss_settings(),
            ld_alpha=self.dpo.ld_alpha,
            importance_clip=getattr(self.dpo, "importance_clip", None),
            router_aux_loss_coef=self.dpo.router_aux_loss_coef,
        )
        self.actor_rollout_wg.set_loss_fn(objective)
        self.check_weights(f"of {self.config.actor_rollout_ref.model.path}")

    def _keep_reference(self, *, is_lora: bool, live: bool) -> None:
        """Have the workers keep their present weights as the reference, where nothing else they hold is it.

        To be called before a checkpoint is loaded, which replaces the initial policy. Without its adapters a LoRA
        policy is the base: the reference, unless it starts from a trained adapter or the reference is to move.
        """
        starts_from_adapter = self.config.actor_rollout_ref.model.get("lora_adapter_path") is not None
        if starts_from_adapter or (live and (not is_lora or self.dpo.reference_sync_steps)):
            self.actor_rollout_wg.sync_reference(1.0)

    def _add_live_reference(self, batch: TensorDict) -> None:
        """Log-probs under the reference as it is now, in the batch's own micro-batches: equal shapes round equally."""
        # a copy, as verl's workers put settings of their own into what they are sent
        scored = self.actor_rollout_wg.reference_log_probs(batch.copy())["answer_log_probs"]
        check_scores([scored], f"live reference before step {self.global_steps}", "")
        batch["ref_log_probs"] = scored

    def _for_update(self, batch: TensorDict, *, mini_pairs: int, epochs: int) -> None:
        """Say how verl is to train on it: mini-batches in the order of the rows, since pairs lie side by side and each
        rank's share of a mini-batch at its place."""
        tu.assign_non_tensor(
            batch,
            mini_batch_size=tu.get(batch, "force_group_size") * mini_pairs,
            epochs=epochs,
            seed=self.config.actor_rollout_ref.actor.data_loader_seed,
            dataloader_kwargs={"shuffle": False},
        )

    @staticmethod
    def _worker_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
        """The workers' metrics of a step as they are logged, averaged over its mini-batches."""
        values = reduce_metrics(dict(metrics))
        if "mfu" in values:
            # verl counts the work of rows, each with its prompt
            values["mfu"] *= values.get("perf/shared_tokens_ratio", 1.0)
        return {n if n.split("/")[0] in _PLAIN else f"actor/{n}": float(value) for n, value in values.items()}

    def _move_reference(self, timing_raw: dict) -> None:
        """After a step: the reference follows the policy, where that was asked for and is due."""
        if self.dpo.reference_sync_steps and self.global_steps % self.dpo.reference_sync_steps == 0:
            with marked_timer("sync_reference", timing_raw):
                self.actor_rollout_wg.sync_reference(self.dpo.reference_mixup)

    def _loop_metrics(
        self, timing: Mapping[str, float], tokens: int, global_steps: int, epoch: int
    ) -> dict[str, float]:
        """What is logged of any step. verl's own `_compute_metrics` looks for what only PPO leaves behind."""
        seconds = timing["step"]
        return {
            **{f"timing_s/{name}": value for name, value in timing.items()},
            "training/global_step": global_steps,
            "training/epoch": epoch,
            "perf/total_num_tokens": tokens,
            "perf/time_per_step": seconds,
            "perf/throughput": tokens / seconds / self.resource_pool_manager.get_n_gpus(),
        }
