"""Checks that offline and online DPO have in common."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig

from verl_aiops.seam.elsewhere import is_neo
from verl_aiops.trainers.config import ConfigError, DPOConfig, OnlineDPOConfig
from verl_aiops.trainers.logprobs.router import ROUTED_MODELS
from verl_aiops.trainers.logprobs.support import longest_pair, settle_backend
from verl_aiops.trainers.preflight.backend import check_not_ours
from verl_aiops.trainers.preflight.basics import check_numbers
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.defaults import data_parallel_size, no_flash_attn, sequence_parallel_size
from verl_aiops.trainers.rm.config import RewardModelConfig

__all__ = [
    "check_backend",
    "check_budget",
    "check_mini_batch",
    "check_settings",
    "check_strategy",
    "check_trainer",
    "counts",
]

_SETTINGS = {"dpo": DPOConfig, "online_dpo": OnlineDPOConfig, "rm": RewardModelConfig}
_MODES = {
    "dpo": "offline DPO has no rollouts to run asynchronously. Remove the setting, or use trainer.v1.trainer_mode=dpo.",
    "rm": "a reward model's training has no rollouts to run asynchronously. Remove it, or set rm.",
    "online_dpo": "pairs are made of whole steps. Remove it, or set sync.",
}


def check_trainer(config: DictConfig, run: Run) -> list[str]:
    faults = check_not_ours(config, run)
    actor = config.actor_rollout_ref.actor
    if not config.trainer.use_v1 and not is_neo():
        faults.append(
            "trainer.use_v1=False: verl's legacy trainer has no preference training. Remove the setting (True is "
            "verl's default)."
        )
    mode = config.trainer.v1.trainer_mode
    if mode not in ("sync", run.kind):
        faults.append(f"trainer.v1.trainer_mode={mode}: {_MODES[run.kind]}")
    if OmegaConf.select(config, "actor_rollout_ref.model.use_fused_kernels"):
        faults.append(
            "actor_rollout_ref.model.use_fused_kernels=True: the preference trainers compute the output head only "
            "where a label is, which verl's fused kernels cannot do. Set it to False."
        )
    if actor.shuffle:
        faults.append(
            "actor_rollout_ref.actor.shuffle=True reorders rows inside a step, which would tear pairs apart. Remove "
            "it: trainer.total_epochs and data.shuffle bring the data in another order."
        )
    return faults


def check_strategy(config: DictConfig, run: Run) -> list[str]:
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy in ("fsdp", "fsdp2"):
        return []
    return [
        f"actor_rollout_ref.actor.strategy={strategy}: preference training runs on verl's FSDP engines; use fsdp2 or "
        "fsdp."
    ]


def counts(run: Run) -> bool:
    """Whether sizes can be computed: the numbers are numbers, and the engine is one whose workers can be counted."""
    return run.failed.isdisjoint((check_numbers, check_strategy))


def check_settings(config: DictConfig, run: Run) -> None:
    run.settings = _SETTINGS[run.kind].from_config(config)


def check_backend(config: DictConfig, run: Run) -> None:
    """Which log-prob backend the run gets; `Run.settings` know it from here on.

    Raises:
        ConfigError: that which is wanted cannot be had, or workers cannot have a sequence together by that which is.
    """
    lines = settle_backend(config, run.settings)
    if lines:
        run.lines += lines
        run.settings = type(run.settings).from_config(config)
    if sequence_parallel_size(config) > 1:
        _check_sequence_parallelism(config, run)
    if getattr(run.settings, "router_aux_loss_coef", 0.0):
        _check_router(config, run)


def _check_router(config: DictConfig, run: Run) -> None:
    section, settings = config.actor_rollout_ref.model, run.settings
    key = f"{settings.section}.router_aux_loss_coef={settings.router_aux_loss_coef}"
    kind = AutoConfig.from_pretrained(section.path, trust_remote_code=section.trust_remote_code).model_type
    if kind not in ROUTED_MODELS:
        raise ConfigError(
            f"{key}: models of type {kind!r} have no routers whose loss was compared with transformers' "
            f"({', '.join(ROUTED_MODELS)} have). Remove it."
        )
    if settings.logprob_backend != "shared_prompt":
        raise ConfigError(
            f"{key}: computed with {settings.section}.logprob_backend=shared_prompt alone, and it is "
            f"{settings.logprob_backend}. Remove one of them."
        )
    if section.get("enable_activation_offload") and section.get("enable_gradient_checkpointing"):
        raise ConfigError(
            f"{key} with actor_rollout_ref.model.enable_activation_offload=True: verl's checkpointing of layers then "
            "keeps no graph of the routers. Remove one of them, or set enable_gradient_checkpointing=False."
        )
    if sequence_parallel_size(config) > 1:
        raise ConfigError(
            f"{key}: not computed where workers have a sequence together. Remove it, or set "
            "ulysses_sequence_parallel_size=1."
        )


def _check_sequence_parallelism(config: DictConfig, run: Run) -> None:
    section, shares = config.actor_rollout_ref.model, run.settings.logprob_backend == "shared_prompt"
    if shares and not section.use_remove_padding:
        # of no account to shared prompts, but verl's engine does not start without
        section.use_remove_padding = True
        run.lines.append("actor_rollout_ref.model.use_remove_padding=True  (verl wants it where workers share a row)")
    if not shares and no_flash_attn(config):
        key = f"{run.settings.section}.logprob_backend"
        raise ConfigError(
            f"ulysses_sequence_parallel_size={sequence_parallel_size(config)} with {key}=rows: verl splits rows over "
            f"workers in flash-attn, which is not installed. Set it to 1, install flash-attn, or set "
            f"{key}=shared_prompt, which does without."
        )


def check_mini_batch(config: DictConfig, run: Run) -> list[str]:
    """Mini-batches count pairs, which divide among the workers."""
    mini, ranks = config.actor_rollout_ref.actor.ppo_mini_batch_size, data_parallel_size(config)
    if ranks < 1:
        return ["trainer.n_gpus_per_node x trainer.nnodes is smaller than one model-parallel group."]
    if mini % ranks:
        return [
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} pairs per optimizer step, {ranks} data-parallel "
            f"worker(s): the mini-batch must divide among the workers, pair by pair. Make it a multiple of {ranks}."
        ]
    return []


def check_budget(config: DictConfig, run: Run) -> None:
    """A micro-batch has room for the longest pair."""
    actor = config.actor_rollout_ref.actor
    longest = longest_pair(config, run.settings.logprob_backend, scored=run.settings.scored)
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu < longest:
        raise ConfigError(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} holds no whole pair "
            f"of the lengths that data.max_prompt_length and data.max_response_length allow ({longest} tokens). Raise "
            "it or lower the lengths."
        )
