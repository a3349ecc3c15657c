"""A verl configuration made, completed and checked for each kind of run, without what is asked of the machine."""

import json

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from verl_aiops.trainers.preflight import offline, online, rl
from verl_aiops.trainers.preflight.checks import Run, run_checks

# rows of a triage run, and of another task
TRIAGE = {
    "data_source": "aiops_mturn",
    "agent_name": "aiops_mturn",
    "prompt": [{"role": "user", "content": "logs"}],
    "reward_model": {"style": "rule", "ground_truth": json.dumps({"service": "a", "incident_type": "b"})},
    "extra_info": {"id": "i-1", "rounds": ["Now JSON."], "incident_text": "logs"},
}
MATHS = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
}


def composed(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


def given(overrides):
    return {override.split("=")[0].lstrip("+~") for override in overrides}


def prepare_offline(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(offline.checks(config), config, Run("dpo", given))


def prepare_online(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(online.checks(config), config, Run("online_dpo", given))


def prepare_triage(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(rl.checks(config), config, Run("triage", given))
