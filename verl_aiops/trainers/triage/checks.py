"""What runs on triage data are checked for beside those of any task: reward settings, ground truth, a right answer.

`preflight.rl` and `preflight.online` put these tuples into their lists; nothing else of the preference half knows them.
"""

from __future__ import annotations

import os

from omegaconf import DictConfig

from verl_aiops.rewards.triage.settings import read_settings
from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.basics import check_numbers, check_tokenizer, fill_in
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import COMBINED, REWARD, ours
from verl_aiops.trainers.preflight.defaults_rl import TRIAGE_DEFAULTS
from verl_aiops.trainers.preflight.prompts import check_kept_text, look_at_rows, row_checks
from verl_aiops.trainers.preflight.reward_model import check_code
from verl_aiops.trainers.rl.agent_loops import own_loops
from verl_aiops.trainers.triage.answer_trial import set_reasoning, try_right_answer
from verl_aiops.trainers.triage.combined import check_combined, check_room
from verl_aiops.trainers.triage.rows import RowRules

__all__ = ["FILL_IN", "ROWS", "SCORING", "check_reward_settings"]


def _fill_in(config: DictConfig, run: Run) -> None:
    fill_in(config, run, TRIAGE_DEFAULTS, numbers=True)


def _settings(config: DictConfig) -> dict:
    return dict(config.reward.custom_reward_function.get("reward_kwargs") or {})


def check_reward_settings(config: DictConfig, run: Run | None = None) -> None:
    """The settings of the triage reward, components of a user's own among them.

    Raises:
        ConfigError: one that the reward does not know, or a value that it does not take.
    """
    path = config.reward.custom_reward_function.path
    if path is not None and not ours(path):
        return
    try:
        read_settings(_settings(config))
    except ValueError as error:
        raise ConfigError(f"reward.custom_reward_function.reward_kwargs: {error}") from None


def _check_rows(config: DictConfig, run: Run) -> None:
    manager, truth = config.reward.reward_manager.name, _scores_triage(config)
    rules = RowRules(
        truth=truth,
        rewarded=truth or manager in (REWARD, COMBINED),
        default_loop=config.actor_rollout_ref.rollout.agent.default_agent_loop,
        loops=own_loops(config),
        prompt_key=config.data.get("prompt_key") or "prompt",
        **_evidence_weight(config) if truth else {"evidence_weight": 0.0},
    )
    look_at_rows(config, run, rules)


def _evidence_weight(config: DictConfig) -> dict[str, float]:
    try:
        return {"evidence_weight": read_settings(_settings(config)).evidence_weight}
    except ValueError:
        return {}  # told by `check_reward_settings`; rows are held to the default


def _scores_triage(config: DictConfig) -> bool:
    """Whether `rewards.aiops_mturn.compute_score` scores the answers, not another function, ours or the user's."""
    custom = config.reward.custom_reward_function
    if custom.path is None:
        return config.reward.reward_manager.name == REWARD
    name = os.path.basename(custom.path).split(".")[-1 if "pkg:" in custom.path else 0]
    return ours(custom.path) and name == REWARD and custom.get("name", "compute_score") == "compute_score"


def _check_right_answer(config: DictConfig, run: Run) -> None:
    """What model and reward make of the right answer to the first row."""
    if run.rows is None or not run.rules.truth:
        return
    run.lines += set_reasoning(config, run.tokenizer)
    if run.rows:
        try_right_answer(
            config, run.tokenizer, stop_ids(config.actor_rollout_ref.model.path, run.tokenizer), run.rows[0]
        )


FILL_IN = (Check(_fill_in, "defaults of triage runs"),)
SCORING = (
    Check(check_combined, "the reward model", (check_code,)),
    Check(check_room, "the reward model's room", (check_combined, check_numbers)),
    Check(check_reward_settings, "the reward's settings"),
)
ROWS = (
    *row_checks(_check_rows),
    Check(
        _check_right_answer,
        "the right answer to a row",
        (_check_rows, check_kept_text, check_tokenizer, check_reward_settings),
    ),
)
