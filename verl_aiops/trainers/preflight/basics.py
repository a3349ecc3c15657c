"""Checks that runs of every kind have: numbers, model folder, tokenizer, checkpoint, disk, cluster."""

from __future__ import annotations

import json
import os
from numbers import Real

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.platform.cluster import check_cluster, check_gpus_are_real
from verl_aiops.trainers.dpo.adapter import prepare_adapter
from verl_aiops.trainers.preflight.checks import Check, Run
from verl_aiops.trainers.preflight.common import load_tokenizer, refuse_ignored_keys
from verl_aiops.trainers.preflight.defaults import Default, apply_defaults
from verl_aiops.trainers.preflight.machine import check_accelerators, check_engines, check_trackers
from verl_aiops.trainers.preflight.nodes import check_nodes
from verl_aiops.trainers.preflight.storage import check_storage
from verl_aiops.trainers.runs.checkpoint_health import check_checkpoint, find_checkpoint
from verl_aiops.trainers.runs.resume import start_folder

__all__ = [
    "FIRST",
    "MACHINE",
    "check_adapter",
    "check_folder",
    "check_keys",
    "check_kinds",
    "check_model",
    "check_numbers",
    "check_place",
    "check_start",
    "check_tokenizer",
    "check_widths",
    "fill_in",
]

_ACTOR, _MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"
# whole numbers: the least, and whether null will do. Defaults and other checks are computed from them
_WHOLE = {
    **dict.fromkeys(("data.train_batch_size", "data.max_prompt_length", "data.max_response_length"), (1, False)),
    **dict.fromkeys(("trainer.n_gpus_per_node", "trainer.nnodes", "actor_rollout_ref.rollout.n"), (1, False)),
    **dict.fromkeys((f"{_ACTOR}.ppo_mini_batch_size", f"{_ACTOR}.ppo_epochs"), (1, False)),
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": (1, True),
    **{f"{_ACTOR}.{of}ulysses_sequence_parallel_size": (1, True) for of in ("", "fsdp_config.")},
}
# of these the rollout is made
_WIDTHS = {f"{_MODEL}.lora_rank": (0, True), "actor_rollout_ref.rollout.tensor_model_parallel_size": (1, True)}
# and of these what Ray is asked for
_CLUSTER = {
    **dict.fromkeys(("ray_kwargs.ray_init.num_cpus", "ray_kwargs.ray_init.num_gpus"), (0, True)),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": (0, True),
}
_QUANTISED = ("bitsandbytes", "gptq", "awq")
_TEXTS = (
    *(f"{_MODEL}.{name}" for name in ("lora_adapter_path", "tokenizer_path", "custom_chat_template")),
    *("data.prompt_key", "reward.custom_reward_function.path", "trainer.default_local_dir"),
)
_SECTIONS = ("data.apply_chat_template_kwargs", "reward.custom_reward_function.reward_kwargs")
_NUMBERS = (
    *("trainer.total_epochs", "trainer.total_training_steps", "trainer.save_freq", "trainer.test_freq"),
    *("data.seed", "data.train_max_samples", "data.val_max_samples"),
    *("actor_rollout_ref.rollout.temperature", f"{_ACTOR}.optim.lr"),
)


def check_keys(config: DictConfig, run: Run) -> None:
    refuse_ignored_keys(config)


def check_kinds(config: DictConfig, run: Run) -> list[str]:
    """Texts are texts also where Hydra reads a number, and sections are sections. What is none is told and taken out of
    the way of the checks that would stumble over it."""
    faults = []
    with open_dict(config):
        for key in _TEXTS:
            value = OmegaConf.select(config, key)
            if value is not None and not isinstance(value, str):
                OmegaConf.update(config, key, str(value))
        for key in _SECTIONS:
            value = OmegaConf.select(config, key)
            if value is not None and not OmegaConf.is_dict(value):
                faults.append(f"{key}={value}: expected settings by name, as in +{key}.NAME=VALUE.")
                OmegaConf.update(config, key, None)
    return faults


def check_numbers(config: DictConfig, run: Run) -> list[str]:
    whole = dict(_WHOLE)
    if config.actor_rollout_ref.actor.use_dynamic_bsz:
        whole[f"{_ACTOR}.ppo_max_token_len_per_gpu"] = (1, False)
    faults = _whole_number_faults(config, whole)
    for key in _NUMBERS:
        value = OmegaConf.select(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            faults.append(f"{key}={value}: expected a number.")
    return faults


def check_widths(config: DictConfig, run: Run) -> list[str]:
    return _whole_number_faults(config, _WIDTHS)


def _whole_number_faults(config: DictConfig, keys: dict[str, tuple[int, bool]]) -> list[str]:
    faults = []
    for key, (least, null) in keys.items():
        value = OmegaConf.select(config, key)
        if value is None and null:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            faults.append(f"{key}={value}: expected a whole number, {least} or more.")
    return faults


def fill_in(config: DictConfig, run: Run, defaults: tuple[Default, ...], numbers: bool) -> None:
    """Defaults of a kind of run; ``numbers``: those that are computed from sizes too, which have to be sound for it."""
    run.lines += apply_defaults(config, run.given, tuple(d for d in defaults if numbers or "batch_size" not in d.key))


def check_model(config: DictConfig, run: Run) -> list[str]:
    """The model folder, made absolute: the trainer may run in another working directory."""
    path = config.actor_rollout_ref.model.path
    if not isinstance(path, str) or not path:
        return [f"{_MODEL}.path={path}: expected the folder of a model, or its name on the hub."]
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            return [f"{_MODEL}.path={path}: the folder has no config.json, so it is no model."]
        if fault := _quantised(path):
            return [fault]
        if cut := cut_short(path):
            return [f"{_MODEL}.path={path}: {cut}."]
        with open_dict(config):
            config.actor_rollout_ref.model.path = os.path.abspath(path)
    elif "://" in path and run.kind not in ("dpo", "rm"):
        pass  # elsewhere: verl fetches it
    elif os.path.isabs(path) or path.startswith(".") or path.count("/") > 1:
        return [f"{_MODEL}.path={path}: no such folder."]
    return []


def _quantised(path: str) -> str | None:
    """What is wrong with training on a folder's weights where they are quantised in a way that verl's engines do not
    load: they cast a model to one dtype. mxfp4, as gpt-oss has it, transformers makes whole by itself."""
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            method = json.load(file)["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whole weights, or told by who reads the configuration
    if method not in _QUANTISED:
        return None
    return (
        f"{_MODEL}.path={path}: its weights are quantised ({method}), which verl's engines do not load. Give the model "
        f"that it was made from; with {_MODEL}.lora_rank=16 and +{_MODEL}.lora.base_format=nf4 it is kept in four bits "
        "while adapters are trained (QLoRA)."
    )


def check_tokenizer(config: DictConfig, run: Run) -> None:
    if "://" in config.actor_rollout_ref.model.path and OmegaConf.select(config, "data.custom_cls.path") is not None:
        return  # neither the model nor what is made of the data can be known here
    run.tokenizer = load_tokenizer(config.actor_rollout_ref.model)


def check_adapter(config: DictConfig, run: Run) -> None:
    run.lines += prepare_adapter(config, run.given)


def check_folder(config: DictConfig, run: Run) -> list[str]:
    folder = config.trainer.default_local_dir
    return [] if folder else [f"trainer.default_local_dir={folder}: expected the folder that the run writes to."]


def check_place(config: DictConfig, run: Run) -> None:
    run.lines += find_checkpoint(config, preference=run.preference)[1]


def check_start(config: DictConfig, run: Run) -> None:
    run.start = start_folder(config.trainer)


def _check_health(config: DictConfig, run: Run) -> None:
    check_checkpoint(config, preference=run.preference)


def _check_storage(config: DictConfig, run: Run) -> None:
    run.lines += check_storage(config, preference=run.preference)


def _check_cluster(config: DictConfig, run: Run) -> list[str]:
    from verl.utils import device

    name, reward = device.get_device_name(), config.reward.reward_model
    if not run.preference and name != "cpu":
        check_gpus_are_real(config, name)
        return []
    pool = ("n_gpus_per_node", "nnodes") if reward.enable_resource_pool else ()
    wanted = _CLUSTER | dict.fromkeys((f"reward.reward_model.{size}" for size in pool), (0, False))
    if faults := _whole_number_faults(config, wanted):
        return faults
    run.lines += check_cluster(config, run.given, name)
    return []


# before the list of a kind of run, which fills in the device
FIRST = (Check(check_accelerators, "the accelerators"),)

# after the list of a kind of run: what it meets on this machine
MACHINE = (
    Check(_check_health, "the files of the checkpoint", (check_numbers, check_place)),
    Check(_check_storage, "the space on the disk", (check_numbers, check_widths, check_folder)),
    Check(check_engines, "the engines"),
    Check(check_trackers, "trainer.logger"),
    Check(_check_cluster, "the cluster", (check_numbers,)),
    Check(check_nodes, "what each node sees", (check_numbers, check_place, _check_cluster)),
)
