"""Runs on several nodes: what each of them has to see."""

from __future__ import annotations

import os
from functools import partial

from omegaconf import DictConfig, OmegaConf

from verl_aiops.platform.cpu import existing_ray_address
from verl_aiops.platform.nodes import ask_nodes, check_paths
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.common import data_files

__all__ = ["check_nodes", "paths_read", "paths_written"]

_MODEL = "actor_rollout_ref.model"
_READ = (
    *(f"{_MODEL}.{name}" for name in ("path", "tokenizer_path", "lora_adapter_path")),
    *(
        "critic.model.path",
        "reward.reward_model.model_path",
        "algorithm.dpo.reference_path",
        "trainer.resume_from_path",
    ),
    *("reward.custom_reward_function.path", "actor_rollout_ref.rollout.agent.agent_loop_config_path"),
)


def paths_read(config: DictConfig) -> dict[str, str]:
    """Setting -> absolute path, of what is there for this process; names on a hub are fetched by each node."""
    named = {key: OmegaConf.select(config, key) for key in _READ}
    named |= {f"data.{kind}[{at}]": path for kind in ("train_files", "val_files") for at, path in _files(config, kind)}
    found = {key: os.path.abspath(os.path.expanduser(path)) for key, path in named.items() if isinstance(path, str)}
    return {key: path for key, path in found.items() if os.path.exists(path)}


def _files(config: DictConfig, kind: str):
    return enumerate(data_files(config, kind))


def paths_written(config: DictConfig) -> dict[str, str]:
    folder = OmegaConf.select(config, "trainer.default_local_dir")
    return {"trainer.default_local_dir": os.path.expanduser(folder)} if folder else {}


def check_nodes(config: DictConfig, run: Run) -> list[str]:
    """Refuse a run on several nodes of which one does not see what the run names."""
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address") or existing_ray_address()
    if config.trainer.nnodes < 2 or not address or address == "local":
        return []
    try:
        return check_paths(paths_read(config), paths_written(config), partial(ask_nodes, address=address))
    except TimeoutError as error:
        return [f"trainer.nnodes={config.trainer.nnodes}: {error}. Look at `ray status`, and restart what is down."]
