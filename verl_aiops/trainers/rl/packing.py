"""verl's own forward pass packs the rows of a micro-batch into one sequence, which not every model can take."""

from __future__ import annotations

import os

from omegaconf import DictConfig, open_dict

from verl_aiops.trainers.config import ConfigError

__all__ = ["pad_where_packing_leaks"]

KEY = "actor_rollout_ref.model.use_remove_padding"


def pad_where_packing_leaks(config: DictConfig, given: set[str]) -> list[str]:
    """Pad rows instead of packing them where a state would run from one row into the next.

    For GRPO and PPO on verl's FSDP engines; the preference engine sees to it by itself, row by row.

    Returns:
        the line to be shown, if anything was set.

    Raises:
        ConfigError: packing was asked for by name.
    """
    model = config.actor_rollout_ref.model
    if not model.use_remove_padding or config.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2"):
        return []
    kind = _recurrent_type(os.path.expanduser(model.path), model.trust_remote_code)
    if kind is None:
        return []
    why = f"models of type {kind} carry a state from one row into the next where rows are packed"
    if KEY in given:
        raise ConfigError(f"{KEY}=True: {why}. Set it to False, which pads them.")
    with open_dict(config):
        model.use_remove_padding = False
    return [f"{KEY}=False  ({why})"]


def _recurrent_type(folder: str, trust_remote_code: bool) -> str | None:
    """The type of the model in ``folder`` if it has recurrent layers. Its weights are not loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from verl_aiops.models.company import COMPARED_MODELS, has_recurrent_layers

    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if settings.model_type in COMPARED_MODELS:
            return None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError):
        return None  # what verl cannot load either is its to say
    return settings.model_type if has_recurrent_layers(model) else None
