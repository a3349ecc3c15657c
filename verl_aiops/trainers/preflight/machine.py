"""Whether this machine has what a run names: accelerators, engines, trackers."""

from __future__ import annotations

import importlib.util

from omegaconf import DictConfig, OmegaConf

from verl_aiops.platform.cpu import existing_ray_address
from verl_aiops.trackers import tracker_faults
from verl_aiops.trainers.preflight.checks import Run

__all__ = ["check_accelerators", "check_engines", "check_trackers"]

_ENGINES = ("sglang", "vllm")
_KINDS = ("online_dpo", "triage", "rows")  # of run that generate answers


def _on_cpu() -> bool:
    from verl.utils import device

    return device.get_device_name() == "cpu"


def check_accelerators(config: DictConfig, run: Run) -> list[str]:
    """Without an accelerator a run gets one worker on the CPU; several are asked for by name. Looked at before the
    device is filled in."""
    workers = config.trainer.n_gpus_per_node
    asked = "trainer.n_gpus_per_node" in run.given and isinstance(workers, int) and workers > 1
    if not asked or config.trainer.device == "cpu" or not _on_cpu():
        return []
    return [
        f"trainer.n_gpus_per_node={workers}, but no accelerator was found (`verl-aiops doctor` says what there is). "
        f"With trainer.device=cpu, {workers} workers train on the CPU."
    ]


def check_engines(config: DictConfig, run: Run) -> list[str]:
    """SGLang and vLLM, of policy and reward model. A run that joins a cluster may have them on the machines there."""
    if run.kind not in _KINDS or existing_ray_address():
        return []
    keys = ["actor_rollout_ref.rollout.name"]
    keys += ["reward.reward_model.rollout.name"] * bool(config.reward.reward_model.enable)
    faults = []
    for key in keys:
        name = OmegaConf.select(config, key)
        if name not in _ENGINES:
            continue
        if _on_cpu():
            faults.append(f"{key}={name} needs a GPU, and no accelerator was found. {key}=hf works on a CPU.")
        elif importlib.util.find_spec(name) is None:
            faults.append(
                f'{key}={name} is not installed here: pip install "verl-aiops[{name}]" in an environment of its own, '
                f"or {key}=hf, which needs nothing more (small models)."
            )
    return faults


def check_trackers(config: DictConfig, run: Run) -> list[str]:
    """What `trainer.logger` names; of a cluster, another machine may be the one that reports."""
    if existing_ray_address():
        return []
    loggers = config.trainer.logger
    return tracker_faults([loggers] if isinstance(loggers, str) else list(loggers or ()))
