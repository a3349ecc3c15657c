"""Which agent loops a run has: verl's, ours, those of modules that were imported, and those of the run's own file."""

from __future__ import annotations

import importlib
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.preflight.common import LOOPS

__all__ = ["known_loop", "own_loops"]

_KEY = "actor_rollout_ref.rollout.agent.agent_loop_config_path"
# asked first, as looking into verl's registry imports it
_VERLS_LOOPS = frozenset([*LOOPS, "single_turn_agent", "tool_agent"])


def known_loop(name: str) -> bool:
    """Whether a loop is registered in this process."""
    if name in _VERLS_LOOPS:
        return True
    from verl_aiops.seam.rollout import agent_loop

    return name in agent_loop._agent_loop_registry


def own_loops(config: DictConfig) -> frozenset[str]:
    """The names in the file of ``agent_loop_config_path``, which verl reads in its workers only.

    Raises:
        ConfigError: there is no such file, it is not what verl reads, or a class of it cannot be imported.
    """
    path = OmegaConf.select(config, _KEY, default=None)
    if not path:
        return frozenset()
    from verl_aiops.seam.rollout import resolve_config_path

    try:
        entries = OmegaConf.to_container(OmegaConf.load(resolve_config_path(path)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_KEY}={path}: cannot be read: {_short(error)}") from None
    except Exception as error:  # of the YAML reader
        raise ConfigError(f"{_KEY}={path}: not valid YAML: {_short(error)}") from None
    if not isinstance(entries, list):
        raise ConfigError(f"{_KEY}={path}: expected a list of {{name, _target_}}, found {type(entries).__name__}")
    return frozenset(_name(entry, f"{_KEY}={path}, entry {at}") for at, entry in enumerate(entries, 1))


def _name(entry: Any, where: str) -> str:
    fields = [entry.get(key) if isinstance(entry, dict) else None for key in ("name", "_target_")]
    name, target = fields
    if not isinstance(name, str) or not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{where}: expected name: NAME and _target_: MODULE.CLASS, found {str(entry)[:80]}")
    module, _, cls = target.rpartition(".")
    try:
        getattr(importlib.import_module(module), cls)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"{where}: {target} cannot be imported: {type(error).__name__}: {_short(error)}. Its folder must be on "
            f"PYTHONPATH, here and in the workers (export PYTHONPATH={os.getcwd()}:$PYTHONPATH)"
        ) from None
    return name


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
