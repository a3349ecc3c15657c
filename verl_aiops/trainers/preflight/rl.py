"""What a run on triage data (GRPO, PPO, ...) is checked for and completed with before Ray starts."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from verl_aiops.trainers.config import shares_prompts
from verl_aiops.trainers.preflight.backend import check_backend, check_torn
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
from verl_aiops.trainers.preflight.common import MODE, REWARD, triage_side
from verl_aiops.trainers.preflight.defaults_rl import RL_DEFAULTS
from verl_aiops.trainers.preflight.four_bits import refuse_elsewhere
from verl_aiops.trainers.preflight.prompts import check_looks, check_rollout, check_rounds
from verl_aiops.trainers.preflight.reward_model import REWARD_MODEL, check_code
from verl_aiops.trainers.rl.packing import pad_where_packing_leaks
from verl_aiops.trainers.rl.second_run import check_second_run

__all__ = ["checks"]


def _check_engine(config: DictConfig, run: Run) -> list[str]:
    actor = config.actor_rollout_ref.actor
    if actor.strategy != "megatron" or actor.get("megatron") is not None:
        return []
    return [
        "actor_rollout_ref.actor.strategy=megatron: the settings are those of FSDP. Choose the engine by "
        "model_engine=megatron, which brings its own."
    ]


def _fill_in(config: DictConfig, run: Run) -> None:
    """All but the sizes of batches, which follow from the engine."""
    fill_in(config, run, RL_DEFAULTS, numbers=False)


def _fill_in_sizes(config: DictConfig, run: Run) -> None:
    fill_in(config, run, RL_DEFAULTS, numbers=run.failed.isdisjoint((check_numbers, _check_engine)))


def _check_packing(config: DictConfig, run: Run) -> None:
    if not shares_prompts(config):  # which packs by itself, models that can take it alone
        run.lines += pad_where_packing_leaks(config, run.given)


def _check_reward(config: DictConfig, run: Run) -> list[str]:
    if config.reward.custom_reward_function.path is not None or config.reward.reward_manager.name == REWARD:
        return []
    return [
        "no reward: set reward.custom_reward_function.path=pkg://verl_aiops.rewards.aiops_mturn, or "
        f"reward.reward_manager.name={REWARD}."
    ]


def _check_group(config: DictConfig, run: Run) -> list[str]:
    n, estimator = config.actor_rollout_ref.rollout.n, config.algorithm.adv_estimator
    if not isinstance(estimator, str):
        return [f"algorithm.adv_estimator={estimator}: expected the name of an advantage estimator, such as grpo."]
    if not estimator.startswith("grpo") or run.failed & {check_numbers} or n >= 2:
        return []
    return [f"actor_rollout_ref.rollout.n={n}: GRPO compares the answers to one prompt with each other. Set 2 or more."]


def _choose_trainer(config: DictConfig, run: Run) -> None:
    if config.trainer.use_v1 and config.trainer.v1.trainer_mode == "sync":
        with open_dict(config):
            config.trainer.v1.trainer_mode = MODE


def _check_second_run(config: DictConfig, run: Run) -> None:
    check_second_run(config, MODE, run.start)


def checks(config: DictConfig) -> tuple[Check, ...]:
    """The list of a run on triage data."""
    triage = triage_side()
    return (
        Check(check_keys, "keys that verl ignores"),
        Check(check_kinds, "texts and sections"),
        Check(check_folder, "the run's folder"),
        Check(_check_engine, "the engine"),
        Check(check_numbers, "numbers"),
        Check(check_widths, "numbers"),
        Check(check_model, "the model folder"),
        *triage.FILL_IN,
        Check(_fill_in, "defaults"),
        Check(check_place, "the checkpoint to go on from", (check_numbers, check_folder)),
        Check(check_adapter, "the adapter"),
        Check(refuse_elsewhere, "the base of the adapters"),
        *REWARD_MODEL,
        *triage.SCORING,
        Check(_check_reward, "the reward"),
        Check(_check_group, "the group of a prompt"),
        Check(check_tokenizer, "the tokenizer", (check_model, check_code)),
        Check(check_backend, "the log-prob backend", (check_numbers, _check_engine, check_tokenizer)),
        Check(_check_packing, "packed rows", (check_model,)),
        Check(_fill_in_sizes, "sizes of batches"),
        Check(check_torn, "micro-batches", (check_numbers, check_backend)),
        Check(check_rollout, "the rollout", (check_widths,)),
        Check(check_looks, "looks for answers"),
        *triage.ROWS,
        Check(check_rounds, "the rounds", (check_numbers, check_tokenizer)),
        Check(_choose_trainer, "the trainer", last=True),
        Check(check_start, "the checkpoint to go on from", (check_place,)),
        Check(_check_second_run, "what the checkpoint was made with", last=True),
    )
