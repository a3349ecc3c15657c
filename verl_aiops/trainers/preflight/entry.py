"""verl's ``validate_config``, before which a run of ours is completed and checked: the driver, before Ray starts."""

from __future__ import annotations

import functools
import importlib
import logging

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from verl_aiops.missing import error_text, require
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.available import check_available
from verl_aiops.trainers.preflight.common import is_triage_run
from verl_aiops.trainers.preflight.defaults import user_keys
from verl_aiops.trainers.rl.config import RLConfig
from verl_aiops.trainers.runs.ending import install as install_ending

__all__ = ["preference_mode", "with_preflight"]

logger = logging.getLogger(__name__)

# with a function `checks`, which gives the list of a run. By name: a run imports its own kind alone
_LISTS = {
    "dpo": "verl_aiops.trainers.preflight.offline",
    "rm": "verl_aiops.trainers.preflight.offline",
    "online_dpo": "verl_aiops.trainers.preflight.online",
    "triage": "verl_aiops.trainers.preflight.rl",
    "rows": "verl_aiops.trainers.preflight.rows",
}


def preference_mode(config: DictConfig) -> str | None:
    """``"dpo"``, ``"rm"`` or ``"online_dpo"`` for runs that the preference trainers serve, else None."""
    asked = (OmegaConf.select(config, "trainer.v1.trainer_mode"), config.algorithm.adv_estimator)
    return next((mode for mode in asked if mode in ("dpo", "rm", "online_dpo")), None)


def with_preflight(validate_config):
    """Wrap verl's ``validate_config``, the one function of ``main_ppo`` that sees the configuration before Ray."""
    # here, not in each call: what cannot be imported must not reach a run that is verl's alone
    from verl.utils import device as verl_device

    from verl_aiops.data import PreferenceDataError
    from verl_aiops.platform.cluster import ClusterError, check_cluster
    from verl_aiops.trainers.preflight.four_bits import refuse_elsewhere
    from verl_aiops.trainers.runs.finite import NotFiniteError
    from verl_aiops.trainers.runs.resume import NothingLeft

    require(verl_device, "get_device_name")

    @functools.wraps(validate_config)
    def checked(config, use_reference_policy, use_critic):
        given = user_keys()
        kind = _kind(config)
        device = verl_device.get_device_name()
        try:
            if kind:
                # first, and alone: without a part of ours the checks that know it cannot be made
                check_available(config, kind, on_cpu=device == "cpu")
                lines = _run_list(config, kind, given)
            else:
                if faults := refuse_elsewhere(config):
                    raise ConfigError("\n  ".join(faults))
                lines = []
            if kind in (None, "rows") and device == "cpu":
                lines += check_cluster(config, given, device)
        except NothingLeft as finished:
            print(f"verl-aiops: {finished}")
            raise SystemExit(0) from None
        except (ConfigError, ClusterError, PreferenceDataError, NotFiniteError) as error:
            # SystemExit passes Hydra without a traceback; the message is all the user needs
            raise SystemExit(f"verl-aiops: error: {error}") from None
        if lines:
            print("verl-aiops: set for this run:\n  " + "\n  ".join(lines))
        if kind:
            install_ending()
        if kind in ("dpo", "rm", "online_dpo"):
            use_reference_policy = use_critic = False
        try:
            return validate_config(config=config, use_reference_policy=use_reference_policy, use_critic=use_critic)
        except (AssertionError, ValueError, HydraException) as error:
            if not kind or not str(error):
                raise
            raise SystemExit(f"verl-aiops: error: verl refuses this run: {' '.join(str(error).split())}") from None

    checked.checks_for_verl_aiops = True
    return checked


def _run_list(config: DictConfig, kind: str, given: set[str]) -> list[str]:
    from verl_aiops.trainers.preflight.basics import FIRST, MACHINE
    from verl_aiops.trainers.preflight.checks import Run, run_checks

    listed = importlib.import_module(_LISTS[kind]).checks(config)
    after = () if kind == "rows" else MACHINE
    return run_checks((*FIRST, *listed, *after), config, Run(kind, given))


def _kind(config: DictConfig) -> str | None:
    """``"dpo"``, ``"rm"``, ``"online_dpo"``, ``"triage"``, ``"rows"`` for a run that wants our engine for a task of its
    own, or None for one that is verl's alone."""
    try:
        if mode := preference_mode(config):
            return mode
        return "triage" if is_triage_run(config) else "rows" if RLConfig.asked(config) else None
    except Exception as error:  # a configuration that is not verl 0.9's: nothing of ours can have been asked for in it
        logger.warning("verl-aiops leaves this configuration to verl, as it cannot be read: %s", error_text(error))
        return None
