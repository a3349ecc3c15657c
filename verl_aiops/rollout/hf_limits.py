"""What the rollout ``hf`` does not do, by the name of the setting; asked before Ray starts and again by the replica."""

from __future__ import annotations

from typing import Any

__all__ = ["unsupported"]


def unsupported(rollout: Any, model: Any) -> list[str]:
    """One sentence for each setting that this rollout cannot serve.

    Args:
        rollout: verl's rollout configuration (``actor_rollout_ref.rollout``), as dataclass or as read by Hydra.
        model: verl's model configuration.
    """
    where = "actor_rollout_ref.rollout"
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
    if rollout.prometheus.enable or not rollout.disable_log_stats:
        wrong.append(f"{where}.prometheus, .disable_log_stats: the rollout hf serves no metrics. Remove them.")
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
    custom = (rollout.get("custom", None) or {}).get("aiops_mturn", None) or {}
    if custom.get("json_schema", False):
        wrong.append(f"{where}.custom.aiops_mturn.json_schema=True: the rollout hf has no constrained decoding.")
    return wrong
