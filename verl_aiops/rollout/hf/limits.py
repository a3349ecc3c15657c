"""What the rollout ``hf`` does not do, by the name of the setting; asked before Ray starts and again by the replica."""

from __future__ import annotations

import os
from typing import Any

from verl_aiops.inputs.json_text import read_object_file

__all__ = ["check_reward_server", "unsupported", "unsupported_reward_server"]

_REWARD = "reward.reward_model"


def unsupported(rollout: Any, model: Any) -> list[str]:
    """One sentence for each setting that this rollout cannot serve.

    Args:
        rollout: verl's rollout configuration (``actor_rollout_ref.rollout``), as dataclass or as read by Hydra.
        model: verl's model configuration.
    """
    where = "actor_rollout_ref.rollout"
    wrong = _unsupported_by_any(rollout, where)
    backend = rollout.checkpoint_engine.backend
    if backend != "naive" or (rollout.get("nnodes", 0) or 0) > 0:
        wrong.append(
            f"{where}.checkpoint_engine.backend={backend}, {where}.nnodes={rollout.get('nnodes', 0)}: the rollout hf "
            "takes its weights from the worker beside it. Leave both at their defaults (naive, 0)."
        )
    lora = model.get("lora", None) or {}
    if (model.get("lora_rank", 0) or lora.get("rank", 0) or model.get("lora_adapter_path", None)) and not lora.get(
        "merge", False
    ):
        wrong.append(
            "actor_rollout_ref.model.lora_rank > 0: the rollout hf serves merged weights. Set "
            "actor_rollout_ref.model.lora.merge=True."
        )
    if kind := _not_a_language_model(model):
        wrong.append(
            f"actor_rollout_ref.model.path={model.get('path')}: transformers has no causal language model of type "
            f"{kind} (a vision-language model?), which is what the rollout hf generates with. Use sglang or vllm."
        )
    custom = (rollout.get("custom", None) or {}).get("aiops_mturn", None) or {}
    if custom.get("json_schema", False):
        wrong.append(f"{where}.custom.aiops_mturn.json_schema=True: the rollout hf has no constrained decoding.")
    return wrong


def _not_a_language_model(model: Any) -> str | None:
    """The type of a model that `AutoModelForCausalLM` does not take; None too where that cannot be told."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model.get("path"), trust_remote_code=bool(model.get("trust_remote_code")))
    except Exception:  # told by those who load it
        return None
    known = type(config) in AutoModelForCausalLM._model_mapping or getattr(config, "auto_map", None)
    return None if known else config.model_type


def unsupported_reward_server(rollout: Any) -> list[str]:
    """One sentence for each setting that this rollout cannot serve a reward model with.

    Args:
        rollout: verl's rollout configuration (``reward.reward_model.rollout``), as dataclass or as read by Hydra.
    """
    where = f"{_REWARD}.rollout"
    wrong = _unsupported_by_any(rollout, where)
    if rollout.skip_tokenizer_init:
        wrong.append(f"{where}.skip_tokenizer_init=True: a reward model reads text. Set it to False.")
    return wrong


def check_reward_server(config: Any) -> list[str]:
    """One sentence for each thing that keeps the rollout ``hf`` from serving the reward model of a run.

    Args:
        config: verl's whole configuration, as read by Hydra. Its model's folder is read, but for the weights; nothing
            is known of a model that is not on this machine.

    Returns:
        nothing, too, for a run without a reward model or with another server.
    """
    from omegaconf import OmegaConf

    reward = config.reward.reward_model
    if not reward.enable or OmegaConf.select(config, f"{_REWARD}.rollout.name") != "hf":
        return []
    wrong = unsupported_reward_server(reward.rollout)
    if reward.enable_resource_pool:
        for name in ("n_gpus_per_node", "nnodes"):
            if reward[name] < 1:
                wrong.append(f"{_REWARD}.{name}={reward[name]}: the reward model's own pool needs 1 or more.")
    if not reward.model_path:
        return [*wrong, f"{_REWARD}.model_path is not set. Give the folder of a reward model."]
    return wrong + _folder_faults(reward.model_path, reward.rollout.get("max_model_len", None))


def _unsupported_by_any(rollout: Any, where: str) -> list[str]:
    """What neither of its servers does."""
    wrong = []
    for name in (
        "tensor_model_parallel_size",
        "data_parallel_size",
        "pipeline_model_parallel_size",
        "expert_parallel_size",
    ):
        size = rollout.get(name, 1) or 1
        if size > 1:
            wrong.append(f"{where}.{name}={size}: each replica of the rollout hf is one process. Set it to 1.")
    if rollout.disaggregation.enabled:
        wrong.append(f"{where}.disaggregation.enabled=True: prefill and decoding are one process in the rollout hf.")
    for name in ("quantization", "enable_rollout_routing_replay"):
        if rollout.get(name, None):
            wrong.append(f"{where}.{name}={rollout.get(name)}: the rollout hf does not do this. Remove it.")
    prometheus = rollout.get("prometheus", None)
    if (prometheus and prometheus.enable) or not rollout.disable_log_stats:
        wrong.append(f"{where}.prometheus, .disable_log_stats: the rollout hf serves no metrics. Remove them.")
    return wrong


def _folder_faults(path: str, max_model_len: int | None) -> list[str]:
    """What the configuration in a reward model's folder says against serving it."""
    folder = os.path.expanduser(path)
    where = f"{_REWARD}.model_path={path}"
    if not os.path.isdir(folder):
        # a name on the hub is an owner and a name; others are addresses, which verl fetches
        if "://" in path or not (os.path.isabs(folder) or path.startswith(".") or path.count("/") > 1):
            return []
        return [f"{where}: no such folder."]
    try:
        model = read_object_file(os.path.join(folder, "config.json"))
    except FileNotFoundError:
        if os.path.isfile(os.path.join(folder, "adapter_config.json")):
            return [f"{where}: the folder holds an adapter alone. Merge it with its base model and save the result."]
        return [f"{where}: the folder has no config.json, so it is no model."]
    except (OSError, ValueError) as error:
        return [f"{where}: its config.json cannot be read: {error}"]
    wrong = []
    architectures = [str(name) for name in model.get("architectures") or ["none"]]
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        wrong.append(
            f"{where}: its architecture is {architectures[0]}, which has no score head. Give a model that was trained "
            "as AutoModelForSequenceClassification with num_labels=1."
        )
    else:
        # transformers writes the labels down unless they are its default, two
        labels = model.get("num_labels") or len(model.get("id2label") or (0, 1))
        if labels != 1:
            wrong.append(f"{where}: it has {labels} labels. A reward model has one (num_labels=1).")
    if model.get("quantization_config"):
        wrong.append(f"{where}: its weights are quantised, which the rollout hf does not read. Give the whole weights.")
    positions = model.get("max_position_embeddings")
    if max_model_len and positions and max_model_len > positions:
        wrong.append(
            f"{_REWARD}.rollout.max_model_len={max_model_len}, but the model has {positions} positions. Lower it."
        )
    return wrong
