"""What online DPO needs, settled and checked on the driver before Ray starts, in one message."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE, ConfigError, OnlineDPOConfig
from verl_aiops.trainers.dpo.adapter import prepare_adapter
from verl_aiops.trainers.logprobs.support import longest_pair, settle_backend
from verl_aiops.trainers.preflight.defaults import (
    ONLINE_DEFAULTS,
    RL_DEFAULTS,
    TRIAGE_DEFAULTS,
    apply_defaults,
    data_parallel_size,
)
from verl_aiops.trainers.preflight.reward import prepare_reward_model, verl_has_rule
from verl_aiops.trainers.preflight.rl import (
    check_data,
    check_rollout,
    check_rounds,
    is_triage_run,
    refuse_ignored_keys,
)
from verl_aiops.trainers.runs.checkpoint_health import find_checkpoint

__all__ = ["prepare_online"]

STRATEGIES = ("fsdp", "fsdp2")


def prepare_online(config: DictConfig, given: set[str]) -> list[str]:
    """Turn a verl configuration into one that online DPO can run, or refuse it.

    Returns:
        one line per key that was filled in.

    Raises:
        ConfigError: everything that cannot work, together.
    """
    refuse_ignored_keys(config)
    wrong = _trainer_faults(config)
    if config.actor_rollout_ref.actor.strategy not in STRATEGIES:
        raise ConfigError("\n  ".join(wrong))  # the sizes of other engines cannot be told
    triage = is_triage_run(config)
    with open_dict(config):
        config.algorithm.adv_estimator = "online_dpo"
    defaults = (*(TRIAGE_DEFAULTS if triage else ()), *ONLINE_DEFAULTS, *RL_DEFAULTS)
    lines = apply_defaults(config, given, defaults)
    lines += find_checkpoint(config, preference=True)[1]
    lines += prepare_adapter(config, given)
    more, faults = prepare_reward_model(config, given)
    lines += more
    wrong += faults
    dpo = OnlineDPOConfig.from_config(config)
    try:
        lines += settle_backend(config, dpo)
    except ConfigError as error:
        wrong.append(str(error))
    wrong += [*_data_faults(config, dpo), *_batch_faults(config)]
    for check in (check_rollout, check_data, check_rounds):
        try:
            lines += check(config) or []
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("online DPO cannot run like this:\n  " + "\n  ".join(wrong))
    with open_dict(config):
        config.trainer.v1.trainer_mode = "online_dpo"
        config.actor_rollout_ref.model.model_type = PREFERENCE_MODEL_TYPE
    _check_resume(config, dpo)
    return lines


def _check_resume(config: DictConfig, dpo: OnlineDPOConfig) -> None:
    """A run that goes on from a checkpoint: the same prompts, and what else is not as it was."""
    from verl_aiops.trainers.runs.resume import online_notes, settle, start_folder

    folder = start_folder(config.trainer)
    if folder is not None:
        # the backend is settled by now
        note, reference = online_notes(config, OnlineDPOConfig.from_config(config))
        settle(folder, note, reference, config, dpo)


def _trainer_faults(config: DictConfig) -> list[str]:
    faults = []
    actor = config.actor_rollout_ref.actor
    if not config.trainer.use_v1:
        faults.append("trainer.use_v1=False: verl's legacy trainer has no preference training. Remove it.")
    mode = config.trainer.v1.trainer_mode
    if mode not in ("sync", "online_dpo"):
        faults.append(f"trainer.v1.trainer_mode={mode}: pairs are made of whole steps. Remove it, or set sync.")
    if actor.strategy not in STRATEGIES:
        faults.append(f"actor_rollout_ref.actor.strategy={actor.strategy}: use fsdp2 or fsdp.")
    if actor.use_kl_loss or config.algorithm.use_kl_in_reward:
        faults.append(
            "actor_rollout_ref.actor.use_kl_loss, algorithm.use_kl_in_reward: the loss holds the policy to its "
            "reference by algorithm.online_dpo.beta already. Set both to False."
        )
    if OmegaConf.select(config, "actor_rollout_ref.model.use_fused_kernels"):
        faults.append("actor_rollout_ref.model.use_fused_kernels=True: not with preference training. Set it to False.")
    if actor.shuffle:
        faults.append("actor_rollout_ref.actor.shuffle=True would tear pairs apart; they are shuffled already.")
    return faults


def _data_faults(config: DictConfig, dpo: OnlineDPOConfig) -> list[str]:
    faults = []
    rollout = config.actor_rollout_ref.rollout
    if rollout.n < 2 and not dpo.self_play:
        faults.append(
            f"actor_rollout_ref.rollout.n={rollout.n}: a preference needs two answers to a prompt. Set 2 or more, or "
            "algorithm.online_dpo.rule=self_play."
        )
    reward = config.reward
    if (
        not dpo.self_play
        and reward.custom_reward_function.path is None
        and not reward.reward_model.enable
        and reward.reward_manager.name == "naive"
        and not _verl_has_reward(config)
    ):
        faults.append(
            "no reward ranks the answers: set reward.custom_reward_function.path (pkg://verl_aiops.rewards.aiops_mturn "
            "for triage), or reward.reward_model.enable=True."
        )
    if dpo.importance_clip is not None and (
        rollout.temperature != 1 or not rollout.calculate_log_probs or dpo.self_play
    ):
        faults.append(
            "algorithm.online_dpo.importance_clip needs the log-probs of sampled answers at temperature 1: set "
            "actor_rollout_ref.rollout.temperature=1, .calculate_log_probs=True, and no self-play."
        )
    return faults


def _verl_has_reward(config: DictConfig) -> bool:
    """Whether verl has a built-in reward for the first row's ``data_source``."""
    from verl_aiops.trainers.preflight.rl import first_rows

    rows = first_rows(config, 1)
    return not rows or verl_has_rule(rows[0].get("data_source"))  # unreadable files are verl's to report


def _batch_faults(config: DictConfig) -> list[str]:
    faults = []
    actor, ranks = config.actor_rollout_ref.actor, data_parallel_size(config)
    mini = actor.ppo_mini_batch_size
    if not isinstance(mini, int) or mini < 1 or mini % max(1, ranks):
        faults.append(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}: counts the pairs of an optimizer step, which divide "
            f"among {ranks} data-parallel worker(s). Make it a multiple of {ranks}."
        )
    longest = longest_pair(config, config.algorithm.online_dpo.logprob_backend)
    if actor.use_dynamic_bsz and actor.ppo_max_token_len_per_gpu < longest:
        faults.append(
            f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu} holds no whole pair "
            f"of the lengths that data.max_prompt_length and data.max_response_length allow ({longest} tokens). Raise "
            "it."
        )
    return faults
