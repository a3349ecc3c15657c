"""A verl configuration completed and checked for each kind of run, without what is asked of the machine."""

from omegaconf import DictConfig

from verl_aiops.trainers.preflight import offline, online, rl
from verl_aiops.trainers.preflight.checks import Run, run_checks


def prepare_offline(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(offline.checks(config), config, Run("dpo", given))


def prepare_online(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(online.checks(config), config, Run("online_dpo", given))


def prepare_triage(config: DictConfig, given: set[str]) -> list[str]:
    return run_checks(rl.checks(config), config, Run("triage", given))
