"""Rows as verl's RL trainers read them, of any task: its columns, and what each task says in `extra_info`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_aiops.incidents.io.writers import Columns
from verl_aiops.incidents.prompts import Message, json_text

__all__ = ["rl_columns", "rl_row"]


def rl_columns(extra_info: Columns) -> Columns:
    """Columns of a file whose rows are `rl_row`s."""
    return {
        "data_source": "string",
        "prompt": "messages",
        "agent_name": "string",
        "ability": "string",
        "reward_model": {"style": "string", "ground_truth": "string"},
        "extra_info": extra_info,
    }


def rl_row(
    data_source: str,
    prompt: Sequence[Message],
    agent_name: str,
    ability: str,
    ground_truth: Mapping[str, Any],
    extra_info: Mapping[str, Any],
) -> dict[str, Any]:
    """verl finds a row's reward by `data_source` and its agent loop by `agent_name`; the truth becomes JSON text."""
    return {
        "data_source": data_source,
        "prompt": prompt,
        "agent_name": agent_name,
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": json_text(ground_truth)},
        "extra_info": extra_info,
    }
