"""Which attention a model computes with: its own, or that over rows that share prompts."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from verl_aiops.models.company import unwrapped
from verl_aiops.trainers.logprobs.attention import SHARED_ATTENTION

__all__ = ["with_own_attention", "with_shared_attention"]

# the attention that each model had before it shared prompts
_OWN_ATTENTION: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def with_shared_attention(module: torch.nn.Module) -> torch.nn.Module:
    """The model itself, whose attention understands layouts."""
    model = unwrapped(module)
    if model.config._attn_implementation != SHARED_ATTENTION:
        _OWN_ATTENTION[model] = model.config._attn_implementation
        model.set_attn_implementation(SHARED_ATTENTION)
    return model


def with_own_attention(module: torch.nn.Module) -> None:
    """Set a model back for rows that are padded or packed. Not at the end of each pass that shares: a backward pass
    with gradient checkpointing computes the layers once more."""
    model = unwrapped(module)
    if model in _OWN_ATTENTION:
        model.set_attn_implementation(_OWN_ATTENTION.pop(model))
