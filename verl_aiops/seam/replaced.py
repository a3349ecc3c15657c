"""What of verl `plugin.py` waits for, and what it puts in its place: registries without a function, and functions that
are wrapped. `plugin.py` says beside each what for and for which versions."""

from __future__ import annotations

from verl_aiops.seam.need import Need

__all__ = ["NEEDS"]

_FSDP = "verl.workers.engine.fsdp.transformer_impl"
_GROUPS = "verl.utils.distributed"

NEEDS = (
    Need("verl.plugin.platform", "PlatformRegistry", "the platform `cpu`", has="register get"),
    Need("verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY", "where what stands for one of ours is put"),
    Need("verl.trainer.ppo.core_algos", "POLICY_LOSS_REGISTRY", "likewise"),
    Need("verl.trainer.ppo.core_algos", "register_adv_est", "our estimators", takes="name_or_enum"),
    Need("verl.trainer.ppo.core_algos", "register_policy_loss", "our policy losses", takes="name"),
    Need("verl.experimental.agent_loop.agent_loop", "_agent_loop_registry", "our agent loops, by name"),
    Need("verl.workers.rollout.replica", "RolloutReplicaRegistry", "the rollout `hf`", has="register"),
    Need("verl.workers.rollout.base", "_ROLLOUT_REGISTRY", "the rollout `hf`, at the workers"),
    Need(
        "verl.utils.config",
        "validate_config",
        "wrapped: the only call that sees the configuration before Ray starts",
        takes="config use_reference_policy use_critic",
    ),
    Need(
        _FSDP,
        "prepare_micro_batches",
        "wrapped: rows that share a prompt stay together",
        takes="data dp_group num_batches_divided_by same_micro_num_in_dp min_num_micro_batch use_dynamic_bsz_balance",
    ),
    Need(_FSDP, "CPUOffloadPolicy", "wrapped: no pinned memory on the CPU", takes="pin_memory"),
    Need(_GROUPS, "initialize_global_process_group_ray", "wrapped: gloo on the CPU", takes="timeout_second backend"),
    Need(_GROUPS, "initialize_global_process_group", "likewise, under torchrun", takes="timeout_second"),
    Need("verl.utils.import_utils", "is_trl_available", "wrapped: TRL 1 lacks a class that verl patches", takes=""),
    Need(
        "verl.utils.model",
        "load_valuehead_model",
        "wrapped: critics without flash-attn",
        takes="local_path torch_dtype model_config trust_remote_code",
    ),
    Need("verl.models.transformers.qwen2_vl", "_get_input_embeds", "wrapped: steps of text leave the vision tower out"),
    Need("verl.models.transformers.glm4v", "_get_input_embeds", "likewise"),
    Need("transfer_queue", "kv_clear", "wrapped: to clear no keys is to do nothing", takes="keys partition_id"),
    Need(
        "verl.trainer.main_ppo_v0", "TaskRunner", "wrapped in builds of the branch `neo`, which has no trainers' names"
    ),
    # waited for, since ours are derived from what stands there
    Need("verl.trainer.ppo.v1.trainer_base", "PPOTrainer", "see `trainer.py`"),
    Need("verl.trainer.ppo.v1.trainer_sync", "PPOTrainerSync", "likewise"),
    Need("verl.experimental.reward_loop.reward_manager.naive", "NaiveRewardManager", "see `reward_loop.py`"),
)
