"""A language model as the judge: its settings and what rows must have for it, checked before Ray starts."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from verl_aiops.rewards.model.client import ENDPOINTS
from verl_aiops.rewards.model.judge_settings import JudgeSettings
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import COMBINED, first_rows

__all__ = ["check_judge", "silent"]

_REACH_S = 3.0
_WRITES = tuple(name for name in ENDPOINTS if name != "hf")


def check_judge(config: DictConfig, run: Run) -> list[str]:
    """Of a run whose reward function is `rewards.model.judge_reward`."""
    try:
        asked = JudgeSettings.of_run(config.reward.custom_reward_function.get("reward_kwargs"))
    except ValueError as error:
        return [f"{error}."]
    faults = [] if asked.url is not None else _own_server(config)
    faults += _rows(config, asked)
    if asked.url is not None and (why := silent(asked.url)):
        run.lines.append(f"warning: the judge at {asked.url} cannot be reached from here ({why}); start it first")
    return faults


def _own_server(config: DictConfig) -> list[str]:
    model, where = config.reward.reward_model, f"{JudgeSettings.section}.url"
    if config.reward.reward_manager.name == COMBINED:
        return [
            f"{where} is not set: with reward.reward_manager.name={COMBINED} the rule does not get the reward model."
        ]
    if not model.enable:
        return [
            f"{where} is not set: give the judge's address, or reward.reward_model.enable=True for one served here."
        ]
    server = OmegaConf.select(config, "reward.reward_model.rollout.name")
    if server not in _WRITES:
        return [
            f"reward.reward_model.rollout.name={server}: a judge has to write; {' and '.join(_WRITES)} can. "
            f"Set one of them, or {where} of a server elsewhere."
        ]
    return []


def _rows(config: DictConfig, asked: JudgeSettings) -> list[str]:
    """Whether the first row has what the judge is shown."""
    keys = ["request_key", *(["reference_key"] if asked.mode == "pairwise" else [])]
    rows = first_rows(config, 1)
    info = rows[0].get("extra_info") if rows else None
    if not rows:
        return []  # told by who reads the files
    info = info if isinstance(info, dict) else {}
    return [
        f"{JudgeSettings.section}.{key}={getattr(asked, key)}: the first row's extra_info has no text there (it has "
        f"{', '.join(sorted(info)) or 'nothing'}). Name the field that the judge is to read."
        for key in keys
        if not _has_text(info.get(getattr(asked, key)))
    ]


def _has_text(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not isinstance(value, dict) and len(value) > 0 and _has_text(list(value)[-1])


def silent(url: str) -> str | None:
    """Why nothing can be asked at an address, None where something listens."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_REACH_S):
            return None
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
