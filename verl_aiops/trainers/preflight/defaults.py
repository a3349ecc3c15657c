"""What a preference run uses where the user said nothing: verl's defaults are PPO's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = [
    "DEFAULTS",
    "ONLINE_DEFAULTS",
    "REWARD_MODEL_DEFAULTS",
    "RL_DEFAULTS",
    "TRIAGE_DEFAULTS",
    "Default",
    "apply_defaults",
    "user_keys",
]


@dataclass(frozen=True)
class Default:
    """``key`` gets ``ours(config)`` if it still holds verl's own default (or one of a tuple of values that nobody chose
    for this run, verl's and a preset's) and the command line does not name it."""

    key: str
    verls: Any
    ours: Callable[[DictConfig], Any]
    why: str
    when: Callable[[DictConfig], bool] = lambda config: True


def _on_cpu(config: DictConfig) -> bool:
    from verl.utils.device import get_device_name

    return get_device_name() == "cpu"


def _no_flash_attn(config: DictConfig) -> bool:
    return _on_cpu(config) or importlib.util.find_spec("flash_attn") is None


def sequence_parallel_size(config: DictConfig) -> int:
    """Ranks that share one sequence (Ulysses), 1 for none."""
    actor = config.actor_rollout_ref.actor
    return max(
        OmegaConf.select(actor, "ulysses_sequence_parallel_size", default=1) or 1,
        OmegaConf.select(actor, "fsdp_config.ulysses_sequence_parallel_size", default=1) or 1,
    )


def data_parallel_size(config: DictConfig) -> int:
    """Number of data-parallel ranks that the trainer's GPUs make."""
    world = config.trainer.n_gpus_per_node * config.trainer.nnodes
    actor = config.actor_rollout_ref.actor
    if actor.strategy == "megatron":
        parts = actor.megatron
        return world // (
            parts.tensor_model_parallel_size * parts.pipeline_model_parallel_size * parts.context_parallel_size
        )
    return world // sequence_parallel_size(config)


def _micro_batch(config: DictConfig) -> int:
    per_rank = config.actor_rollout_ref.actor.ppo_mini_batch_size // max(1, data_parallel_size(config))
    return max((n for n in range(1, 5) if per_rank and per_rank % n == 0), default=1)


_FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
_NO_FLASH = "flash-attn is not installed"
_COMPILE = "compilation takes longer than small models on CPU gain from it"


def _static_batches(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_dynamic_bsz


def _has_critic(config: DictConfig) -> bool:
    from verl.trainer.ppo.utils import need_critic

    return need_critic(config)


def _critic_on_cpu(config: DictConfig) -> bool:
    return _on_cpu(config) and _has_critic(config)


def _critic_no_flash_attn(config: DictConfig) -> bool:
    return _no_flash_attn(config) and _has_critic(config)


def _plain_attention(model: DictConfig) -> str:
    from transformers import AutoConfig
    from verl.utils.model import get_hf_auto_model_class

    from verl_aiops.platform.attention import plain_attention

    try:
        loaded = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        return plain_attention(loaded, get_hf_auto_model_class(hf_config=loaded))
    except Exception:  # what keeps it from being loaded is told by the checks that need it
        return "sdpa"


def _with_hf(config: DictConfig) -> bool:
    return OmegaConf.select(config, "actor_rollout_ref.rollout.name") == "hf"


def _plain_adam(config: DictConfig) -> bool:
    optim = config.actor_rollout_ref.actor.optim
    return (optim.get("optimizer_impl"), optim.get("optimizer")) in (("torch.optim", "AdamW"), ("torch.optim", "Adam"))


_PLATFORM: tuple[Default, ...] = (
    Default("trainer.n_gpus_per_node", 8, lambda c: 1, "one worker unless more are asked for", _on_cpu),
    Default("trainer.device", "cuda", lambda c: "cpu", "the platform found", _on_cpu),
    Default("trainer.logger", ["console", "wandb"], lambda c: ["console", "tensorboard"], "needs no account"),
    Default("trainer.project_name", "verl_examples", lambda c: "verl-aiops", "names the run"),
    Default("trainer.experiment_name", "gsm8k", lambda c: c.algorithm.adv_estimator, "names the run"),
    Default(
        "actor_rollout_ref.model.use_remove_padding",
        True,
        lambda c: False,
        "packed rows need flash-attn, which is not installed",
        _no_flash_attn,
    ),
    Default(
        "actor_rollout_ref.model.override_config.attn_implementation",
        None,
        lambda c: _plain_attention(c.actor_rollout_ref.model),
        _NO_FLASH,
        _no_flash_attn,
    ),
    Default("actor_rollout_ref.actor.strategy", "fsdp", lambda c: "fsdp2", "FSDP1 does not run on CPU", _on_cpu),
    Default(
        "actor_rollout_ref.actor.fsdp_config.mixed_precision", None, lambda c: dict(_FP32), "float32 on CPU", _on_cpu
    ),
    Default(
        "actor_rollout_ref.model.enable_gradient_checkpointing",
        True,
        lambda c: False,
        "memory is not what a CPU lacks; recomputation costs a third of the step",
        _on_cpu,
    ),
    Default(
        "actor_rollout_ref.actor.optim.override_optimizer_config",
        None,
        lambda c: {"fused": True},
        "one kernel per optimizer step, as transformers' trainers use",
        _plain_adam,
    ),
)

_NOT_COMPILED = Default(
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile",
    True,
    lambda c: False,
    "compiling the layers takes longer than a short run gains from it",
)

_PAIRS_MICRO_BATCH = Default(
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    None,
    _micro_batch,
    "largest of 1 to 4 pairs that divides a worker's share",
    _static_batches,
)

DEFAULTS: tuple[Default, ...] = (
    *_PLATFORM,
    Default(
        "transfer_queue.backend.SimpleStorage.num_data_storage_units",
        (8, 1),
        lambda c: 0,
        "pairs stand in files, and a process that stores nothing takes seconds to start",
    ),
    Default("trainer.total_epochs", 30, lambda c: 1, "preference pairs are seldom worth more than one epoch"),
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "one optimizer step per batch of data.train_batch_size pairs",
    ),
    _PAIRS_MICRO_BATCH,
    _NOT_COMPILED,
    Default(
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        None,
        lambda c: c.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu,
        "scoring uses the training micro-batch",
        _static_batches,
    ),
)


def _answers_micro_batch(config: DictConfig) -> int:
    answers = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    per_rank = answers // max(1, data_parallel_size(config))
    return max((n for n in range(1, 9) if per_rank and per_rank % n == 0), default=1)


def _scoring_micro_batch(config: DictConfig) -> int:
    return config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu


RL_DEFAULTS: tuple[Default, ...] = (
    *_PLATFORM,
    Default("actor_rollout_ref.rollout.name", None, lambda c: "hf", "the rollout that needs no GPU", _on_cpu),
    Default(
        "actor_rollout_ref.rollout.tensor_model_parallel_size", 2, lambda c: 1, "a replica is one process", _with_hf
    ),
    Default("actor_rollout_ref.rollout.dtype", "bfloat16", lambda c: "float32", "as the trainer computes", _on_cpu),
    Default("actor_rollout_ref.rollout.agent.num_workers", 8, lambda c: 1, "each is a Python process", _on_cpu),
    Default("reward.num_workers", 8, lambda c: 1, "each is a Python process", _on_cpu),
    Default("data.dataloader_num_workers", 8, lambda c: 0, "each is a Python process", _on_cpu),
    Default("actor_rollout_ref.actor.use_torch_compile", True, lambda c: False, _COMPILE, _on_cpu),
    Default("actor_rollout_ref.actor.fsdp_config.use_torch_compile", True, lambda c: False, _COMPILE, _on_cpu),
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "one optimizer step per batch of data.train_batch_size prompts",
        lambda c: c.data.train_batch_size < 256,
    ),
    Default(
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        None,
        _answers_micro_batch,
        "largest of 1 to 8 answers that divides a worker's share",
        _static_batches,
    ),
    Default(
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "scoring uses the training micro-batch",
        _static_batches,
    ),
    Default(
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "scoring uses the training micro-batch",
        lambda c: _static_batches(c) and c.actor_rollout_ref.actor.use_kl_loss,
    ),
    Default(
        "actor_rollout_ref.ref.fsdp_config.mixed_precision", None, lambda c: dict(_FP32), "float32 on CPU", _on_cpu
    ),
    Default("critic.model.use_remove_padding", True, lambda c: False, _NO_FLASH, _critic_no_flash_attn),
    Default(
        "critic.model.override_config.attn_implementation", None, lambda c: "sdpa", _NO_FLASH, _critic_no_flash_attn
    ),
    Default(
        "critic.model.path",
        "~/models/deepseek-llm-7b-chat",
        lambda c: c.actor_rollout_ref.model.path,
        "starts from the policy's model",
        _has_critic,
    ),
    Default("critic.strategy", "fsdp", lambda c: "fsdp2", "FSDP1 does not run on CPU", _critic_on_cpu),
    Default("critic.fsdp.mixed_precision", None, lambda c: dict(_FP32), "float32 on CPU", _critic_on_cpu),
    Default(
        "critic.ppo_micro_batch_size_per_gpu",
        None,
        _scoring_micro_batch,
        "as the actor's",
        lambda c: _static_batches(c) and _has_critic(c),
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
    _PAIRS_MICRO_BATCH,
    _NOT_COMPILED,
    Default("critic.enable", None, lambda c: False, "preferences need no critic"),
)


def _rm_on_cpu(config: DictConfig) -> bool:
    return config.reward.reward_model.enable and _on_cpu(config)


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


def user_keys() -> set[str]:
    """Dotted keys that the command line sets (prefixes ``+``, ``++``, ``~`` removed); empty outside Hydra."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return set()
    return {override.split("=", 1)[0].lstrip("+~") for override in HydraConfig.get().overrides.task}


def apply_defaults(config: DictConfig, given: set[str], defaults: tuple[Default, ...] = DEFAULTS) -> list[str]:
    """Fill ``config`` in place; returns one line per key that was set, to be shown to the user."""
    lines = []
    with open_dict(config):
        for default in defaults:
            value = OmegaConf.select(config, default.key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            unset = default.verls if isinstance(default.verls, tuple) else (default.verls,)
            if default.key in given or value not in unset or not default.when(config):
                continue
            ours = default.ours(config)
            if ours != value:
                OmegaConf.update(config, default.key, ours, force_add=True)
                lines.append(f"{default.key}={ours}  ({default.why})")
    return lines
