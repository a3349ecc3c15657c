"""PPO's critic where flash-attn is not installed."""

from __future__ import annotations

import functools
import importlib.util


def without_flash_attn(load_valuehead_model):
    """Wrap verl's ``load_valuehead_model``: same call; without flash-attn, with PyTorch's attention.

    Returns:
        what verl's function returns, or an ``AutoModelForTokenClassification`` with one label.
    """

    @functools.wraps(load_valuehead_model)
    def load(local_path, torch_dtype, model_config, trust_remote_code):
        if importlib.util.find_spec("flash_attn") is not None:
            return load_valuehead_model(local_path, torch_dtype, model_config, trust_remote_code)
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    return load
