"""What runs of our two tasks are checked for beside those of any task: reward settings, ground truth, a right answer.

`preflight.rl` and `preflight.online` put these tuples into their lists; nothing else of the preference half knows them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from verl_aiops.rewards.investigation.settings import read_investigation_settings
from verl_aiops.rewards.triage.settings import read_settings
from verl_aiops.rollout.rounds.stops import stop_ids
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.basics import check_numbers, check_tokenizer, fill_in
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import COMBINED, INVESTIGATION, REWARD, SOURCES, investigates, ours
from verl_aiops.trainers.preflight.defaults_rl import TRIAGE_DEFAULTS
from verl_aiops.trainers.preflight.prompts import check_kept_text, look_at_rows, row_checks
from verl_aiops.trainers.preflight.reward_model import check_code
from verl_aiops.trainers.rl.agent_loops import own_loops
from verl_aiops.trainers.rl.prompt_rows import PromptRules
from verl_aiops.trainers.triage.answer_trial import set_reasoning, try_right_answer
from verl_aiops.trainers.triage.combined import check_combined, check_room
from verl_aiops.trainers.triage.judge import check_judge
from verl_aiops.trainers.triage.rows import RowRules

__all__ = ["FILL_IN", "ROWS", "SCORING", "check_judge", "check_reward_settings"]


def _fill_in(config: DictConfig, run: Run) -> None:
    fill_in(config, run, TRIAGE_DEFAULTS, numbers=True)


def _settings(config: DictConfig) -> dict:
    return dict(config.reward.custom_reward_function.get("reward_kwargs") or {})


def check_reward_settings(config: DictConfig, run: Run | None = None) -> None:
    """The settings of the reward of the task, components of a user's own among them.

    Raises:
        ConfigError: one that the reward does not know, or a value that it does not take.
    """
    path = config.reward.custom_reward_function.path
    if path is not None and not ours(path):
        return
    read: Callable[[dict], Any] = read_investigation_settings if _rule(config) == INVESTIGATION else read_settings
    try:
        read(_settings(config))
    except ValueError as error:
        raise ConfigError(f"reward.custom_reward_function.reward_kwargs: {error}") from None


def _check_rows(config: DictConfig, run: Run) -> None:
    manager, rule = config.reward.reward_manager.name, _rule(config)
    more: dict[str, Any] = {
        "truth": rule is not None,
        "rewarded": rule is not None or manager in (REWARD, COMBINED),
        "default_loop": config.actor_rollout_ref.rollout.agent.default_agent_loop,
        "loops": own_loops(config),
        "prompt_key": config.data.get("prompt_key") or "prompt",
    }
    rules: PromptRules
    if rule == INVESTIGATION or rule is None and investigates(config):
        from verl_aiops.trainers.triage.investigations import InvestigationRules

        rules = InvestigationRules(**more)
    else:
        rules = RowRules(**more, **_evidence_weight(config) if rule else {"evidence_weight": 0.0})
    look_at_rows(config, run, rules)


def _evidence_weight(config: DictConfig) -> dict[str, float]:
    try:
        return {"evidence_weight": read_settings(_settings(config)).evidence_weight}
    except ValueError:
        return {}  # told by `check_reward_settings`; rows are held to the default


def _rule(config: DictConfig) -> str | None:
    """Which of our two rewards scores the answers, by its name; None where any other function does."""
    custom = config.reward.custom_reward_function
    if custom.path is None:
        if config.reward.reward_manager.name != REWARD:
            return None
        return INVESTIGATION if investigates(config) else REWARD
    name = os.path.basename(custom.path).split(".")[-1 if "pkg:" in custom.path else 0]
    found = ours(custom.path) and name in SOURCES and custom.get("name", "compute_score") == "compute_score"
    return name if found else None


def _check_tools(config: DictConfig, run: Run) -> list[str]:
    """What model, template and budgets make of an investigation."""
    if not investigates(config):
        return []
    from verl_aiops.trainers.triage.investigations import check_tools

    return check_tools(config, run)


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
    Check(_check_tools, "the tools of a row", (_check_rows, check_tokenizer, check_numbers)),
)
