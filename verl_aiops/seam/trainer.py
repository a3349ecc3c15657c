"""What our trainers need of verl's: its loop with checkpoints, its registry, and what a step is counted by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verl_aiops.seam.need import Need, brought

__all__ = ["NEEDS"]

_BASE = "verl.trainer.ppo.v1.trainer_base"
_UTILS = "verl.trainer.ppo.utils"
_BALANCE = "verl.utils.seqlen_balancing"

NEEDS = (
    Need(
        _BASE,
        "PPOTrainer",
        "the loop of all our trainers: steps, saving, resuming, validation, trackers, profiling",
        takes="config",
        has="init fit step _setup _init_tokenizer _init_dataloader _init_dump_executor _init_resource_pool_mgr "
        "_load_checkpoint _save_checkpoint _validate _compute_metrics _log_rollout_data on_step_end on_sample_end",
    ),
    Need(
        "verl.trainer.ppo.v1.trainer_sync",
        "PPOTrainerSync",
        "the loop of GRPO, PPO and online DPO",
        takes="config",
        has="_step_once _balance_batch _compute_reward_colocate _compute_old_log_prob _compute_advantage _update_actor "
        "_val_metrics_update _dump_generations",
    ),
    Need(_BASE, "TRAINER_REGISTRY", "where what stands in place of a trainer that is missing is put", has="update"),
    Need(_BASE, "register_trainer", "our modes", takes="name"),
    Need(_BASE, "get_trainer_cls", "what the doctor asks for a mode", takes="name"),
    Need(_UTILS, "Role", "the worker's role", has="Actor ActorRollout ActorRolloutRef Critic"),
    Need(_UTILS, "need_critic", "whether a run is PPO with a critic", takes="config"),
    Need(
        "verl.single_controller.ray",
        "ResourcePoolManager",
        "the pool of one role",
        takes="resource_pool_spec mapping",
        has="create_resource_pool get_resource_pool get_n_gpus",
    ),
    Need("verl.trainer.ppo.core_algos", "get_adv_estimator_fn", "what the doctor asks", takes="name_or_enum"),
    Need("verl.trainer.ppo.core_algos", "get_policy_loss_fn", "what the doctor asks", takes="name"),
    Need("verl.trainer.distillation", "is_distillation_enabled", "runs that no step of ours knows", takes="config"),
    Need(
        "verl.trainer.ppo.rollout_corr_helper",
        "compute_rollout_correction_and_rejection_mask",
        "the metrics of rollout against training, after the step",
        takes="old_log_prob rollout_log_prob response_mask",
    ),
    Need("verl.utils.debug", "marked_timer", "the parts of a step's time", takes="name timing_raw color"),
    Need("verl.utils.debug.metrics", "calculate_debug_metrics", "rollout against training", takes="data"),
    Need(_BALANCE, "get_seqlen_balanced_partitions", "workers' shares", takes="seqlen_list k_partitions equal_size"),
    Need(_BALANCE, "log_seqlen_unbalance", "how equal they are", takes="seqlen_list partitions prefix"),
)

__getattr__: Callable[[str], Any] = brought(NEEDS)
