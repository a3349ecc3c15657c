"""PyTorch's attention for models that are loaded without flash-attn."""

from __future__ import annotations

__all__ = ["plain_attention"]


def plain_attention(config, auto_class=None) -> str:
    """``attn_implementation`` for a model without flash-attn: ``sdpa``, or ``eager`` for those that do without it and
    for those that cap their scores (Gemma 2), which transformers' ``sdpa`` leaves out without a word.

    Args:
        config: a transformers configuration.
        auto_class: of the model; default `AutoModelForCausalLM`.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        return "eager"
    try:
        model = (auto_class or AutoModelForCausalLM)._model_mapping[type(config)]
    except (AttributeError, KeyError):
        return "sdpa"
    model = model[0] if isinstance(model, tuple) else model
    return "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"
