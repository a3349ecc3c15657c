"""Whether what a run asks for could be put into this verl at all."""

from __future__ import annotations

import importlib
import os

from omegaconf import DictConfig, OmegaConf

from verl_aiops.missing import MISSING, error_text, why_missing
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import TOOLS_LOOP, first_rows

__all__ = ["check_available"]

_PREFLIGHT = "verl_aiops.trainers.preflight"
_ENGINE = ("engine preference_language_model", "verl_aiops.trainers.worker.engine")
# what a run wants, as the doctor names it, and our module behind it: imported here, its registry's hook has run
_NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "dpo": (
        ("trainer mode dpo", "verl_aiops.trainers.dpo.offline"),
        _ENGINE,
        ("check before Ray", f"{_PREFLIGHT}.offline"),
        ("steps that queue nothing", "transfer_queue"),
    ),
    "rm": (
        ("trainer mode rm", "verl_aiops.trainers.rm.trainer"),
        ("engine reward_model", "verl_aiops.trainers.rm.engine"),
        ("check before Ray", f"{_PREFLIGHT}.offline"),
        ("steps that queue nothing", "transfer_queue"),
    ),
    "online_dpo": (
        ("trainer mode online_dpo", "verl_aiops.trainers.dpo.online"),
        _ENGINE,
        ("check before Ray", f"{_PREFLIGHT}.online"),
    ),
    "triage": (
        ("trainer mode aiops_sync", "verl_aiops.trainers.rl.scored_trainer"),
        ("check before Ray", f"{_PREFLIGHT}.rl"),
    ),
    "rows": (("check before Ray", f"{_PREFLIGHT}.rows"),),
}
_MANAGERS = {
    "aiops_mturn": "verl_aiops.rewards.managers.triage",
    "aiops_combined": "verl_aiops.rewards.managers.combined",
}


def check_available(config: DictConfig, kind: str, *, on_cpu: bool) -> None:
    """Raises ConfigError if a part of ours that a run of this kind (`Run.kind`) needs is missing from this verl; names
    the part and the reason."""
    needs = [*_NEEDS[kind]]
    if kind in ("online_dpo", "triage"):
        needs += _rollout_needs(config)
    if on_cpu or os.environ.get("VERL_PLATFORM") == "cpu":
        needs += [("platform cpu", "verl_aiops.platform.cpu"), ("process groups of the platform cpu", "verl.utils")]
    for name, module in needs:
        try:
            importlib.import_module(module)
        except Exception as error:
            MISSING.setdefault(name, error_text(error))
    why = why_missing(*(name for name, _ in needs))
    if why is not None:
        raise ConfigError(why)


def _rollout_needs(config: DictConfig) -> list[tuple[str, str]]:
    needs = [("agent loop aiops_mturn", "verl_aiops.rollout.rounds.agent_loop")]
    default = OmegaConf.select(config, "actor_rollout_ref.rollout.agent.default_agent_loop")
    if TOOLS_LOOP in (default, *(row.get("agent_name") for row in first_rows(config, 1))):
        needs.append((f"agent loop {TOOLS_LOOP}", "verl_aiops.rollout.tools.agent_loop"))
    manager = OmegaConf.select(config, "reward.reward_manager.name")
    if manager in _MANAGERS:
        needs.append((f"reward manager {manager}", _MANAGERS[manager]))
    rollout = OmegaConf.select(config, "actor_rollout_ref.rollout", default={})
    if not OmegaConf.is_missing(rollout, "name") and rollout.get("name") == "hf":
        needs.append(("rollout hf", "verl_aiops.rollout.hf.replica"))
    return needs
