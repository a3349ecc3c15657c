"""What online DPO needs, settled and checked on the driver before Ray starts."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from verl_aiops.trainers.config import PREFERENCE_MODEL_TYPE
from verl_aiops.trainers.preflight.basics import (
    check_adapter,
    check_folder,
    check_keys,
    check_kinds,
    check_model,
    check_numbers,
    check_place,
    check_start,
    check_tokenizer,
    check_widths,
    fill_in,
)
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import first_rows, of_triage, triage_side
from verl_aiops.trainers.preflight.defaults_rl import ONLINE_DEFAULTS, RL_DEFAULTS
from verl_aiops.trainers.preflight.four_bits import refuse_elsewhere
from verl_aiops.trainers.preflight.preference import (
    check_backend,
    check_budget,
    check_mini_batch,
    check_settings,
    check_strategy,
    check_trainer,
    counts,
)
from verl_aiops.trainers.preflight.prompts import PROMPTS, check_looks, check_rollout, check_rounds
from verl_aiops.trainers.preflight.reward_model import REWARD_MODEL, check_code, verl_has_rule

__all__ = ["checks"]


def _check_kl(config: DictConfig, run: Run) -> list[str]:
    with open_dict(config):
        config.algorithm.adv_estimator = "online_dpo"  # the defaults name the run after it
    if not (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward):
        return []
    return [
        "actor_rollout_ref.actor.use_kl_loss, algorithm.use_kl_in_reward: the loss holds the policy to its reference "
        "by algorithm.online_dpo.beta already. Set both to False."
    ]


def _fill_in(config: DictConfig, run: Run) -> None:
    fill_in(config, run, (*ONLINE_DEFAULTS, *RL_DEFAULTS), counts(run))


def _check_answers(config: DictConfig, run: Run) -> list[str]:
    """Whether there will be answers to compare, and the numbers that weights of pairs are made of."""
    faults = []
    rollout, dpo = config.actor_rollout_ref.rollout, run.settings
    if rollout.n < 2 and not dpo.self_play:
        faults.append(
            f"actor_rollout_ref.rollout.n={rollout.n}: a preference needs two answers to a prompt. Set 2 or more, or "
            "algorithm.online_dpo.rule=self_play."
        )
    if dpo.importance_clip is not None and (
        rollout.temperature != 1 or not rollout.calculate_log_probs or dpo.self_play
    ):
        faults.append(
            "algorithm.online_dpo.importance_clip needs the log-probs of sampled answers at temperature 1: set "
            "actor_rollout_ref.rollout.temperature=1, .calculate_log_probs=True, and no self-play."
        )
    return faults


def _check_ranked(config: DictConfig, run: Run) -> list[str]:
    """Whether anything says which answer is better."""
    reward = config.reward
    if (
        run.settings.self_play
        or reward.custom_reward_function.path is not None
        or reward.reward_model.enable
        or reward.reward_manager.name != "naive"
        or _verl_has_reward(config)
    ):
        return []
    return [
        "no reward ranks the answers: set reward.custom_reward_function.path (pkg://verl_aiops.rewards.aiops_mturn for "
        "triage), or reward.reward_model.enable=True."
    ]


def _verl_has_reward(config: DictConfig) -> bool:
    """Whether verl has a built-in reward for the first row's ``data_source``."""
    rows = first_rows(config, 1)
    return not rows or verl_has_rule(rows[0].get("data_source"))  # unreadable files are told by who reads them


def _choose_trainer(config: DictConfig, run: Run) -> None:
    with open_dict(config):
        config.trainer.v1.trainer_mode = "online_dpo"
        config.actor_rollout_ref.model.model_type = PREFERENCE_MODEL_TYPE


def _check_resume(config: DictConfig, run: Run) -> None:
    """A run that goes on from a checkpoint: the same prompts, and what else is not as it was."""
    from verl_aiops.trainers.runs.resume import online_notes, settle

    if run.start is not None:
        note, reference = online_notes(config, run.settings)
        settle(run.start, note, reference, config, run.settings)


def checks(config: DictConfig) -> tuple[Check, ...]:
    """The list of a run, with what triage adds to it where the run is one of triage."""
    triage = triage_side() if of_triage(config) else None
    return (
        Check(check_keys, "keys that verl ignores"),
        Check(check_kinds, "texts and sections"),
        Check(check_folder, "the run's folder"),
        Check(check_trainer, "the trainer"),
        Check(check_strategy, "the engine"),
        Check(_check_kl, "the KL terms"),
        Check(check_numbers, "numbers"),
        Check(check_widths, "numbers"),
        Check(check_model, "the model folder"),
        *(triage.FILL_IN if triage else ()),
        Check(_fill_in, "defaults"),
        Check(check_place, "the checkpoint to go on from", (check_numbers, check_folder)),
        Check(check_adapter, "the adapter"),
        Check(refuse_elsewhere, "the base of the adapters"),
        *REWARD_MODEL,
        *(triage.SCORING if triage else ()),
        Check(check_settings, "algorithm.online_dpo"),
        Check(check_tokenizer, "the tokenizer", (check_model, check_code)),
        Check(check_backend, "the log-prob backend", (check_numbers, check_settings, check_tokenizer)),
        Check(_check_answers, "the answers to a prompt", (check_numbers, check_settings)),
        Check(_check_ranked, "the reward", (check_settings,)),
        Check(check_mini_batch, "the mini-batch", (check_numbers, check_strategy)),
        Check(check_budget, "the token budget", (check_numbers, check_backend)),
        Check(check_rollout, "the rollout", (check_widths,)),
        Check(check_looks, "looks for answers"),
        *(triage.ROWS if triage else PROMPTS),
        Check(check_rounds, "the rounds", (check_numbers, check_tokenizer)),
        Check(_choose_trainer, "the trainer", last=True),
        Check(check_start, "the checkpoint to go on from", (check_place,)),
        Check(_check_resume, "what the checkpoint was made with", last=True),
    )
