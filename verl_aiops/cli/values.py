"""What stands behind an option as one text: read, or refused in the option's words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError

__all__ = ["API_KEY_ENV", "api_key", "json_object", "reward_settings", "round_tokens"]

API_KEY_ENV = "OPENAI_API_KEY"


def round_tokens(text: str | None) -> tuple[int, ...] | None:
    """`320,64` or `[320,64]` as numbers."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.strip("[]").split(","))
    except ValueError:
        raise EvaluationError(f"--round-tokens {text}: expected numbers of tokens such as 320,64") from None


def json_object(name: str, text: str | None) -> dict[str, Any]:
    """An object of JSON; empty without a text."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EvaluationError(f"{name}: expected a JSON object, found {text[:80]!r}")
    return value


def reward_settings(text: str | None, read: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """Settings of a reward from `name=value,name=value`, checked as the reward itself checks them: by ``read``, or as
    the triage reward does."""
    from verl_aiops.rewards.triage.settings import read_settings

    settings = {}
    for part in (text or "").split(",") if text else []:
        name, _, value = part.partition("=")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            if name.strip() != "reasoning":
                raise EvaluationError(f"--reward {part}: expected name=value with a number, true or false") from None
            settings[name.strip()] = value.strip()
    try:
        (read or read_settings)(settings)
    except ValueError as error:
        raise EvaluationError(f"--reward: {error}") from None
    return settings


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable, None where the default one is not set."""
    key = os.environ.get(variable or API_KEY_ENV, "").strip()
    if variable and not key:
        raise EvaluationError(f"--api-key-env {variable}: this environment variable is not set")
    if not key.isprintable() or not key.isascii():
        raise EvaluationError(f"{variable or API_KEY_ENV}: the key holds characters that no header can carry")
    return key or None
