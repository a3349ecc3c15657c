"""A verl configuration made, completed and checked for each kind of run, without what is asked of the machine."""

import functools
import json
import pickle

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
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


@functools.cache
def _from_files(presets):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return pickle.dumps(compose("ppo_trainer", overrides=list(presets)))


def composed(*overrides):
    """verl's configuration with these overrides, a copy of its own each time.

    Hydra reads 30 files for it, which takes longer than most checks of it. So files are read once for each choice of
    presets, and the overrides of single keys are applied as Hydra applies them, by its own function.
    """
    presets = tuple(override for override in overrides if "." not in override.partition("=")[0])
    config = pickle.loads(_from_files(presets))
    keys = OverridesParser.create().parse_overrides([override for override in overrides if override not in presets])
    ConfigLoaderImpl._apply_overrides_to_config(keys, config)
    return config


def given(overrides):
    return {override.split("=")[0].lstrip("+~") for override in overrides}


def prepare_offline(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(offline.checks(config), config, Run("dpo", given))


def prepare_online(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(online.checks(config), config, Run("online_dpo", given))


def prepare_triage(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(rl.checks(config), config, Run("triage", given))
