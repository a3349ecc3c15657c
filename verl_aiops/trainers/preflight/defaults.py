"""What a preference run uses where the user said nothing: verl's defaults are PPO's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = [
    "DEFAULTS",
    "Default",
    "apply_defaults",
    "data_parallel_size",
    "sequence_parallel_size",
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


def on_cpu(config: DictConfig) -> bool:
    from verl.utils.device import get_device_name

    return get_device_name() == "cpu"


def no_flash_attn(config: DictConfig) -> bool:
    return on_cpu(config) or importlib.util.find_spec("flash_attn") is None


def sequence_parallel_size(
    config: DictConfig,
    role: str = "actor_rollout_ref.actor",
    engine: str = "actor_rollout_ref.actor.fsdp_config",
) -> int:
    """Ranks that share one sequence (Ulysses), 1 for none."""
    keys = (f"{section}.ulysses_sequence_parallel_size" for section in (role, engine))
    return max(OmegaConf.select(config, key, default=1) or 1 for key in keys)


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


FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
NO_FLASH = "flash-attn is not installed"


def static_batches(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_dynamic_bsz


def _plain_attention(model: DictConfig) -> str:
    from transformers import AutoConfig

    from verl_aiops.platform.attention import plain_attention
    from verl_aiops.seam.engine import get_hf_auto_model_class

    try:
        loaded = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        return plain_attention(loaded, get_hf_auto_model_class(hf_config=loaded))
    except Exception:  # what keeps it from being loaded is told by the checks that need it
        return "sdpa"


def _with_lora(config: DictConfig) -> bool:
    model = config.actor_rollout_ref.model
    return bool(model.get("lora_adapter_path")) or isinstance(rank := model.get("lora_rank"), int) and rank > 0


def _four_bits_on_gpu(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "actor_rollout_ref.model.lora.base_format")) and not on_cpu(config)


def _plain_adam(config: DictConfig) -> bool:
    optim = config.actor_rollout_ref.actor.optim
    return (optim.get("optimizer_impl"), optim.get("optimizer")) in (("torch.optim", "AdamW"), ("torch.optim", "Adam"))


NO_FLASH_ATTN: tuple[Default, ...] = (
    Default(
        "actor_rollout_ref.model.use_remove_padding",
        True,
        lambda c: False,
        "packed rows need flash-attn, which is not installed",
        no_flash_attn,
    ),
    Default(
        "actor_rollout_ref.model.override_config.attn_implementation",
        None,
        lambda c: _plain_attention(c.actor_rollout_ref.model),
        NO_FLASH,
        no_flash_attn,
    ),
)

PLATFORM: tuple[Default, ...] = (
    Default("trainer.n_gpus_per_node", 8, lambda c: 1, "one worker unless more are asked for", on_cpu),
    Default("trainer.device", "cuda", lambda c: "cpu", "the platform found", on_cpu),
    Default("trainer.logger", ["console", "wandb"], lambda c: ["console", "file", "tensorboard"], "needs no account"),
    Default("trainer.project_name", "verl_examples", lambda c: "verl-aiops", "names the run"),
    Default("trainer.experiment_name", "gsm8k", lambda c: c.algorithm.adv_estimator, "names the run"),
    *NO_FLASH_ATTN,
    Default("actor_rollout_ref.actor.strategy", "fsdp", lambda c: "fsdp2", "FSDP1 does not run on CPU", on_cpu),
    Default(
        "actor_rollout_ref.actor.fsdp_config.mixed_precision", None, lambda c: dict(FP32), "float32 on CPU", on_cpu
    ),
    Default(
        "actor_rollout_ref.model.enable_gradient_checkpointing",
        True,
        lambda c: False,
        "memory is not what a CPU lacks; recomputation costs a third of the step",
        on_cpu,
    ),
    Default(
        "actor_rollout_ref.actor.optim.lr",
        1e-6,
        lambda c: 1e-5,
        "LoRA learns well at about ten times the rate of all weights",
        _with_lora,
    ),
    Default(
        "actor_rollout_ref.actor.fsdp_config.model_dtype",
        "fp32",
        lambda c: "bf16",
        "what of a base in four bits stays whole, on GPUs; its adapters are float32",
        _four_bits_on_gpu,
    ),
    Default(
        "actor_rollout_ref.actor.optim.override_optimizer_config",
        None,
        lambda c: {"fused": True},
        "one kernel per optimizer step, as transformers' trainers use",
        _plain_adam,
    ),
)

NOT_COMPILED = Default(
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile",
    True,
    lambda c: False,
    "compiling the layers takes longer than a short run gains from it",
)

PAIRS_MICRO_BATCH = Default(
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    None,
    _micro_batch,
    "largest of 1 to 4 pairs that divides a worker's share",
    static_batches,
)

DEFAULTS: tuple[Default, ...] = (
    *PLATFORM,
    Default(
        "transfer_queue.backend.SimpleStorage.num_data_storage_units",
        (8, 1),
        lambda c: 0,
        "pairs stand in files, and a process that stores nothing takes seconds to start",
    ),
    Default(
        "trainer.max_actor_ckpt_to_keep",
        None,
        lambda c: 2,
        "the older ones are removed",
        lambda c: c.trainer.save_freq == -1,
    ),
    Default("trainer.save_freq", -1, lambda c: 50, "a killed run goes on from the last checkpoint"),
    Default(
        "trainer.test_freq",
        -1,
        lambda c: 50,
        "held-out pairs on the way and at the end",
        lambda c: bool(c.data.val_files),
    ),
    Default("trainer.total_epochs", 30, lambda c: 1, "preference pairs are seldom worth more than one epoch"),
    Default(
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        256,
        lambda c: c.data.train_batch_size,
        "one optimizer step per batch of data.train_batch_size pairs",
    ),
    PAIRS_MICRO_BATCH,
    NOT_COMPILED,
    Default(
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        None,
        lambda c: c.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu,
        "scoring uses the training micro-batch",
        static_batches,
    ),
)


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
