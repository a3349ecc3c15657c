"""PyTorch's attention for models that are loaded without flash-attn."""

from __future__ import annotations

__all__ = ["plain_attention"]


def plain_attention(config, auto_class=None) -> str:
    """``attn_implementation`` for a model without flash-attn: ``sdpa``, or ``eager`` for those that do without it.

    Args:
        config: a transformers configuration.
        auto_class: of the model; default `AutoModelForCausalLM`.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = (auto_class or AutoModelForCausalLM)._model_mapping[type(config)]
    except (AttributeError, KeyError):
        return "sdpa"
    model = model[0] if isinstance(model, tuple) else model
    return "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"
