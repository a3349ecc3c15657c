"""What a run with generated answers uses where the user said nothing: any task's, a triage run, a reward model."""

from __future__ import annotations

import warnings

from omegaconf import DictConfig, OmegaConf

from verl_aiops.trainers.config import shares_prompts
from verl_aiops.trainers.preflight.defaults import (
    FP32,
    NO_FLASH,
    NOT_COMPILED,
    PAIRS_MICRO_BATCH,
    PLATFORM,
    Default,
    data_parallel_size,
    no_flash_attn,
    on_cpu,
    static_batches,
)

__all__ = ["ONLINE_DEFAULTS", "REWARD_MODEL_DEFAULTS", "RL_DEFAULTS", "TRIAGE_DEFAULTS", "has_critic"]

_MICRO_BATCHES = (
    "actor_rollout_ref.actor.ppo_micro_batch_size",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
    "critic.ppo_micro_batch_size_per_gpu",
)
_COMPILE = "compilation takes longer than small models on CPU gain from it"


def _with_hf(config: DictConfig) -> bool:
    return OmegaConf.select(config, "actor_rollout_ref.rollout.name") == "hf"


def has_critic(config: DictConfig) -> bool:
    from verl_aiops.seam.trainer import need_critic

    with warnings.catch_warnings():
        # that there is none: told by verl's own call, in main_ppo
        warnings.simplefilter("ignore")
        return need_critic(config)


def _critic_on_cpu(config: DictConfig) -> bool:
    return on_cpu(config) and has_critic(config)


def _critic_no_flash_attn(config: DictConfig) -> bool:
    return no_flash_attn(config) and has_critic(config)


def _answers_micro_batch(config: DictConfig) -> int:
    answers = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    per_rank = answers // max(1, data_parallel_size(config))
    return max((n for n in range(1, 9) if per_rank and per_rank % n == 0), default=1)


def _groups_micro_batch(config: DictConfig) -> int:
    """Whole groups: as many as make 8 answers and divide a worker's share, one at least."""
    n = config.actor_rollout_ref.rollout.n
    answers = config.actor_rollout_ref.actor.ppo_mini_batch_size * n
    per_rank = answers // max(1, data_parallel_size(config))
    return max((rows for rows in range(n, 9, n) if per_rank % rows == 0), default=n)


def _shares(config: DictConfig) -> bool:
    return shares_prompts(config) and static_batches(config)


def _fills_up(config: DictConfig) -> bool:
    """Where the activations of a micro-batch are no more than its tokens' hidden states, and nobody has set a size."""
    return (
        _shares(config)
        and not on_cpu(config)
        and config.actor_rollout_ref.model.enable_gradient_checkpointing
        and not any(OmegaConf.select(config, key) for key in _MICRO_BATCHES)
    )


def _scoring_micro_batch(config: DictConfig) -> int:
    return config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu


RL_DEFAULTS: tuple[Default, ...] = (
    *PLATFORM,
    Default("actor_rollout_ref.rollout.name", None, lambda c: "hf", "the rollout that needs no GPU", on_cpu),
    Default(
        "actor_rollout_ref.rollout.tensor_model_parallel_size", 2, lambda c: 1, "a replica is one process", _with_hf
    ),
    Default("actor_rollout_ref.rollout.dtype", "bfloat16", lambda c: "float32", "as the trainer computes", on_cpu),
    Default("actor_rollout_ref.rollout.agent.num_workers", 8, lambda c: 1, "each is a Python process", on_cpu),
    Default("reward.num_workers", 8, lambda c: 1, "each is a Python process", on_cpu),
    Default("data.dataloader_num_workers", 8, lambda c: 0, "each is a Python process", on_cpu),
    Default("actor_rollout_ref.actor.use_torch_compile", True, lambda c: False, _COMPILE, on_cpu),
    Default("actor_rollout_ref.actor.fsdp_config.use_torch_compile", True, lambda c: False, _COMPILE, on_cpu),
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "one optimizer step per batch of data.train_batch_size prompts",
        lambda c: c.data.train_batch_size < 256,
    ),
    Default(
        "actor_rollout_ref.actor.use_dynamic_bsz",
        False,
        lambda c: True,
        "shared prompts with gradient checkpointing: micro-batches of up to actor.ppo_max_token_len_per_gpu tokens, a "
        "prompt's counted once",
        _fills_up,
    ),
    Default(
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        None,
        _groups_micro_batch,
        "shared prompts: all answers to a prompt, to several if they are 8 or fewer",
        _shares,
    ),
    Default(
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        None,
        _answers_micro_batch,
        "largest of 1 to 8 answers that divides a worker's share",
        static_batches,
    ),
    Default(
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "scoring uses the training micro-batch",
        static_batches,
    ),
    Default(
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "scoring uses the training micro-batch",
        lambda c: static_batches(c) and c.actor_rollout_ref.actor.use_kl_loss,
    ),
    Default("actor_rollout_ref.ref.fsdp_config.mixed_precision", None, lambda c: dict(FP32), "float32 on CPU", on_cpu),
    Default("critic.model.use_remove_padding", True, lambda c: False, NO_FLASH, _critic_no_flash_attn),
    Default(
        "critic.model.override_config.attn_implementation", None, lambda c: "sdpa", NO_FLASH, _critic_no_flash_attn
    ),
    Default(
        "critic.model.path",
        "~/models/deepseek-llm-7b-chat",
        lambda c: c.actor_rollout_ref.model.path,
        "starts from the policy's model",
        has_critic,
    ),
    Default("critic.strategy", "fsdp", lambda c: "fsdp2", "FSDP1 does not run on CPU", _critic_on_cpu),
    Default("critic.fsdp.mixed_precision", None, lambda c: dict(FP32), "float32 on CPU", _critic_on_cpu),
    Default(
        "critic.ppo_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "as the actor's",
        lambda c: static_batches(c) and has_critic(c),
    ),
)


TRIAGE_DEFAULTS: tuple[Default, ...] = (
    Default(
        "reward.reward_manager.name",
        "naive",
        lambda c: "aiops_mturn",
        "the triage reward; keeps the rounds apart in dumped generations",
        lambda c: _triage_reward(c) and c.reward.reward_manager.source == "register",
    ),
)

# before RL_DEFAULTS, whose numbers count answers
ONLINE_DEFAULTS: tuple[Default, ...] = (
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "at most so many pairs per optimizer step",
    ),
    PAIRS_MICRO_BATCH,
    NOT_COMPILED,
    Default("critic.enable", None, lambda c: False, "preferences need no critic"),
)


def _rm_on_cpu(config: DictConfig) -> bool:
    return config.reward.reward_model.enable and on_cpu(config)


def _rm_with_hf(config: DictConfig) -> bool:
    # a missing name ("???") is None here
    return config.reward.reward_model.enable and OmegaConf.select(config, "reward.reward_model.rollout.name") == "hf"


def _rm_own_pool_on_cpu(config: DictConfig) -> bool:
    return _rm_on_cpu(config) and config.reward.reward_model.enable_resource_pool


# in this order: the later ones ask for the server's name
REWARD_MODEL_DEFAULTS: tuple[Default, ...] = (
    Default("reward.reward_model.rollout.name", None, lambda c: "hf", "the server that needs no GPU", _rm_on_cpu),
    Default(
        "reward.reward_model.rollout.tensor_model_parallel_size",
        2,
        lambda c: 1,
        "a replica is one process",
        _rm_with_hf,
    ),
    Default("reward.reward_model.rollout.dtype", "bfloat16", lambda c: "float32", "float32 on CPU", _rm_on_cpu),
    Default(
        "reward.reward_model.rollout.free_cache_engine",
        True,
        lambda c: False,
        "verl puts the server to sleep at start, and wakes none that has a pool of its own",
        lambda c: c.reward.reward_model.enable and c.reward.reward_model.enable_resource_pool,
    ),
    Default(
        "reward.reward_model.n_gpus_per_node",
        8,
        lambda c: 1,
        "one server unless more are asked for",
        _rm_own_pool_on_cpu,
    ),
    Default("reward.reward_model.nnodes", 0, lambda c: 1, "the reward model's own pool", _rm_own_pool_on_cpu),
)


def _triage_reward(config: DictConfig) -> bool:
    path = config.reward.custom_reward_function.path
    return path is None or "verl_aiops" in path or path.endswith("aiops_mturn.py")
