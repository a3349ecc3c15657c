"""verl beside a TRL that no longer has the value-head model verl patches."""

from __future__ import annotations

import functools
import importlib.util
import os

__all__ = ["only_with_value_head"]


def _has_value_head() -> bool:
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return False
    root = spec.submodule_search_locations[0]
    return os.path.isdir(os.path.join(root, "experimental", "ppo")) or os.path.isfile(
        os.path.join(root, "models", "modeling_value_head.py")
    )


def only_with_value_head(is_trl_available):
    """Wrap verl's ``is_trl_available``: True only where ``AutoModelForCausalLMWithValueHead`` exists too."""

    @functools.cache
    def available() -> bool:
        return is_trl_available() and _has_value_head()

    return functools.wraps(is_trl_available)(available)
