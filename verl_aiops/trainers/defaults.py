"""What a preference run uses where the user said nothing: verl's defaults are PPO's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = ["DEFAULTS", "Default", "apply_defaults", "user_keys"]


@dataclass(frozen=True)
class Default:
    """``key`` gets ``ours(config)`` if it still holds verl's own default and the command line does not name it."""

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

DEFAULTS: tuple[Default, ...] = (
    Default("trainer.n_gpus_per_node", 8, lambda c: 1, "one worker unless more are asked for", _on_cpu),
    Default("trainer.device", "cuda", lambda c: "cpu", "the platform found", _on_cpu),
    Default("trainer.total_epochs", 30, lambda c: 1, "preference pairs are seldom worth more than one epoch"),
    Default("trainer.logger", ["console", "wandb"], lambda c: ["console", "tensorboard"], "needs no account"),
    Default("trainer.project_name", "verl_examples", lambda c: "verl-aiops", "names the run"),
    Default("trainer.experiment_name", "gsm8k", lambda c: c.algorithm.adv_estimator, "names the run"),
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "one optimizer step per batch of data.train_batch_size pairs",
    ),
    Default(
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        None,
        _micro_batch,
        "largest of 1 to 4 pairs that divides a worker's share",
        lambda c: not c.actor_rollout_ref.actor.use_dynamic_bsz,
    ),
    Default(
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        None,
        lambda c: c.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu,
        "scoring uses the training micro-batch",
        lambda c: not c.actor_rollout_ref.actor.use_dynamic_bsz,
    ),
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
        lambda c: "sdpa",
        "flash-attn is not installed",
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
)


def user_keys() -> set[str]:
    """Dotted keys that the command line sets (prefixes ``+``, ``++``, ``~`` removed); empty outside Hydra."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return set()
    return {override.split("=", 1)[0].lstrip("+~") for override in HydraConfig.get().overrides.task}


def apply_defaults(config: DictConfig, given: set[str]) -> list[str]:
    """Fill ``config`` in place; returns one line per key that was set, to be shown to the user."""
    lines = []
    with open_dict(config):
        for default in DEFAULTS:
            value = OmegaConf.select(config, default.key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            if default.key in given or value != default.verls or not default.when(config):
                continue
            ours = default.ours(config)
            if ours != value:
                OmegaConf.update(config, default.key, ours, force_add=True)
                lines.append(f"{default.key}={ours}  ({default.why})")
    return lines
