"""A trained LoRA adapter as the policy that training starts from."""

from __future__ import annotations

import json
import os

from omegaconf import DictConfig, open_dict

from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.reference.cache import adapter_digest

__all__ = ["prepare_adapter"]

_PATH = "actor_rollout_ref.model.lora_adapter_path"
# what verl's checkpoints do not keep of an adapter, so that its weights would be merged in another way than trained
_NOT_KEPT = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")


def prepare_adapter(config: DictConfig, given: set[str]) -> list[str]:
    """Check ``actor_rollout_ref.model.lora_adapter_path`` and take rank and alpha from it.

    verl asks ``lora_rank`` alone whether there is an adapter, and without it trains the base and says nothing.

    Returns:
        one line per key that was set.

    Raises:
        ConfigError: no adapter lies there, or none that can be trained here.
    """
    model = config.actor_rollout_ref.model
    path = model.get("lora_adapter_path")
    if not path:
        return []
    folder = os.path.abspath(os.path.expanduser(path))
    try:
        adapter_digest(folder)
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
            settings = json.load(file)
        rank, alpha = settings["r"], settings["lora_alpha"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{_PATH}={path}: no LoRA adapter to start from ({error}). Expected a folder of PEFT's with "
            "adapter_config.json and adapter_model.safetensors."
        ) from None
    wrong = [name for name in _NOT_KEPT if settings.get(name)]
    if settings.get("bias", "none") != "none":
        wrong.append("bias")
    if wrong:
        raise ConfigError(
            f"{_PATH}={path}: the adapter has {', '.join(wrong)}, which verl's checkpoints do not keep. Merge it into "
            "its base (PEFT's merge_and_unload) and give the merged model as actor_rollout_ref.model.path."
        )
    if "actor_rollout_ref.model.lora_rank" in given and model.lora_rank not in (0, rank):
        raise ConfigError(
            f"actor_rollout_ref.model.lora_rank={model.lora_rank}, but the adapter in {_PATH}={path} has rank {rank}, "
            "which is what is trained. Remove lora_rank."
        )
    with open_dict(config):
        model.lora_adapter_path, model.lora_rank, model.lora_alpha = folder, rank, int(alpha)
    return [f"actor_rollout_ref.model.lora_rank={rank}, lora_alpha={alpha}  (of the adapter that training starts from)"]
