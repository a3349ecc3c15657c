"""What a checkpoint remembers of the run that wrote it, and what another run makes of the difference.

verl resumes weights, optimizer, schedule and random state, and takes everything else from the command line of the day.
Some of that goes on as asked, some is overruled by what was loaded, and some cannot be loaded at all; so every
checkpoint has the run's settings beside it, and a resumed run is told each one that differs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.files import write_atomically

__all__ = ["RL", "RL_WITH_CRITIC", "Differences", "RunNote", "compare", "read_note", "run_settings", "write_note"]

NOTE = "run.json"

# `RunNote.trainer` of GRPO and its kin, and of PPO
RL, RL_WITH_CRITIC = "rl", "rl with a critic"

_ACTOR, _MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"

# sections and keys that decide what a run computes; nothing else is noted
_OFFLINE = (
    *(f"{_ACTOR}.{name}" for name in ("optim", "fsdp_config", "strategy", "ulysses_sequence_parallel_size")),
    *(f"{_ACTOR}.{name}" for name in ("ppo_mini_batch_size", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz")),
    f"{_ACTOR}.ppo_max_token_len_per_gpu",
    _MODEL,
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
    "trainer.device",
)
_ONLINE = (*_OFFLINE, f"{_ACTOR}.ppo_epochs", "actor_rollout_ref.rollout", "reward", "data")
_REF = "actor_rollout_ref.ref.fsdp_config.model_dtype"
_RL = (*_ONLINE, _ACTOR, "algorithm", "trainer.critic_warmup", "trainer.v1.trainer_mode", "trainer.v1.sampler", _REF)
_SECTIONS = {"dpo": _OFFLINE, "rm": _OFFLINE, "online_dpo": _ONLINE, RL: _RL, RL_WITH_CRITIC: (*_RL, "critic")}

# of these: what changes no number, or is compared by its content (data, weights, adapters) or as the run's length
_SILENT = (
    f"{_ACTOR}.optim.total_training_steps",
    f"{_ACTOR}.fsdp_config.turbo_config",
    f"{_ACTOR}.fsdp_config.dtype",
    f"{_ACTOR}.fsdp_config.strategy",
    *(f"{_ACTOR}.{name}" for name in ("profiler", "checkpoint", "rollout_n")),
    *(f"critic.{name}" for name in ("profiler", "checkpoint", "rollout_n", "optim.total_training_steps")),
    *(f"critic.fsdp.{name}" for name in ("turbo_config", "dtype", "strategy")),
    *(f"critic.model.{name}" for name in ("path", "tokenizer_path", "external_lib", "trust_remote_code")),
    f"{_MODEL}.path",
    f"{_MODEL}.model_type",
    f"{_MODEL}.tokenizer_path",
    f"{_MODEL}.hf_config_path",
    f"{_MODEL}.lora_adapter_path",
    f"{_MODEL}.custom_chat_template",
    f"{_MODEL}.use_shm",
    f"{_MODEL}.trust_remote_code",
    f"{_MODEL}.external_lib",
    *("data.train_files", "data.val_files", "data.val_max_samples", "data.val_batch_size", "data.validation_shuffle"),
    *("data.dataloader_num_workers", "data.filter_overlong_prompts_workers", "data.trust_remote_code", "data.use_shm"),
    *(f"actor_rollout_ref.rollout.{name}" for name in ("trace", "profiler", "prometheus", "disable_log_stats")),
    "reward.num_workers",
    *(f"algorithm.dpo.{name}" for name in ("reference", "reference_path", "reference_cache_dir", "export_model")),
    *(f"algorithm.dpo.{name}" for name in ("reference_verify_pairs", "reference_sync_steps", "preflight_rows")),
    *(f"algorithm.online_dpo.{name}" for name in ("reference_sync_steps", "export_model")),
    *(f"algorithm.{mode}.check_space" for mode in ("dpo", "online_dpo", "rm")),
    *(f"algorithm.rm.{name}" for name in ("export_model", "preflight_rows")),
)

# what the checkpoint's files were written for; with another value they cannot be loaded, or mean something else
_FIXED = (
    *("trainer.n_gpus_per_node", "trainer.nnodes", "trainer.device"),
    f"{_ACTOR}.strategy",
    f"{_ACTOR}.fsdp_config.fsdp_size",
    *(f"{_ACTOR}.optim.{name}" for name in ("optimizer", "optimizer_impl", "override_optimizer_config")),
    *(f"{_MODEL}.{name}" for name in ("lora_rank", "lora_alpha", "lora", "target_modules", "target_parameters")),
    f"{_MODEL}.exclude_modules",
    "trainer.v1.trainer_mode",
    *("critic.strategy", "critic.fsdp.fsdp_size"),
    *(f"critic.optim.{name}" for name in ("optimizer", "optimizer_impl", "override_optimizer_config")),
    *(f"critic.model.{name}" for name in ("lora_rank", "lora_alpha", "target_modules")),
    # which prompts make up which step
    *(f"data.{name}" for name in ("train_batch_size", "gen_batch_size", "seed", "shuffle", "train_max_samples")),
    *(f"data.{name}" for name in ("prompt_key", "filter_overlong_prompts", "max_prompt_length", "truncation")),
)

# what comes back with the optimizer's state, and is put right where the engine is FSDP (`optimizer.use_settings`)
_OPTIMIZER = (f"{_ACTOR}.optim", "critic.optim")

# `PairOrder.state_dict` in the words of the command line
_DATA = {
    "pairs": "usable pairs of data.train_files",
    "batch": "data.train_batch_size",
    "seed": "data.seed",
    "shuffle": "data.shuffle",
    "data_digest": "tokens of data.train_files (other rows, template or lengths)",
    "shares": "data.train_shares",
    "prompts": "prompts whose examples are taken together (None where they were taken one by one)",
}


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


@dataclass(frozen=True)
class RunNote:
    """Beside a checkpoint, as JSON.

    Attributes:
        trainer: ``dpo``, ``rm``, ``online_dpo``, `RL` or `RL_WITH_CRITIC`.
        total_steps: steps that the run was to take in all.
        settings: what decides the numbers, by dotted key.
        data: which pairs or prompts make up which step: contents, order, batch.
        model: the model folder that the run started from: its path, and digests of its weights, config and adapter.
        held_out: digest of the validation data, None without.
        versions: of this package and of verl.
        steps_per_epoch: None where it is told by ``data``.
    """

    trainer: str
    total_steps: int | None
    settings: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    held_out: str | None = None
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    steps_per_epoch: int | None = None


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("verl-aiops", "verl")}


def _flat(value: Any, key: str):
    # empty sections are no settings
    if isinstance(value, Mapping):
        for name, part in value.items():
            if name != "_target_":
                yield from _flat(part, f"{key}.{name}")
    else:
        yield key, value


def run_settings(config: DictConfig, trainer: str, knobs: Any = None) -> dict[str, Any]:
    """The settings of a run by dotted key, as JSON gives them back.

    Args:
        config: verl's configuration, defaults filled in.
        trainer: as in `RunNote`.
        knobs: the section ``algorithm.dpo`` or ``algorithm.online_dpo`` as its dataclass, defaults and all.
    """
    found: dict[str, Any] = {}
    for section in _SECTIONS[trainer]:
        value = OmegaConf.select(config, section)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
        found.update(_flat(value, section))
    if knobs is not None:
        found.update(_flat(asdict(knobs), knobs.section))
    kept = {key: value for key, value in found.items() if not _under(key, _SILENT)}
    return json.loads(json.dumps(kept, default=str))


def write_note(folder: str, note: RunNote) -> None:
    write_atomically(os.path.join(folder, NOTE), json.dumps(asdict(note), indent=1))


def read_note(folder: str) -> RunNote | None:
    """The note of a checkpoint; None for those of versions that wrote none.

    Raises:
        ValueError: it cannot be read.
    """
    path = os.path.join(folder, NOTE)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        content = {"steps_per_epoch": None, **content}  # earlier versions did not note it
        return RunNote(**{name: content[name] for name in (f.name for f in fields(RunNote))})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Without it nobody knows what the checkpoint was "
            "trained with: take another checkpoint with trainer.resume_mode=resume_path, or remove the file if you are "
            "sure that this run's settings are that one's."
        ) from None


@dataclass(frozen=True)
class Differences:
    """What is not as it was, each a line ``key: then -> now``.

    Attributes:
        refused: cannot be resumed with.
        used: in force from the next step on.
    """

    refused: list[str]
    used: list[str]


def compare(then: RunNote, now: RunNote) -> Differences:
    if then.trainer != now.trainer:
        return Differences([f"trainer: {then.trainer} -> {now.trainer}"], [])
    refused = [
        f"{_DATA.get(name, name)}: {_said(before)} -> {_said(now.data.get(name))}"
        # what a checkpoint from before says nothing of is refused where the order has become another by it
        for name in dict.fromkeys([*then.data, *(name for name in now.data if name in _DATA)])
        if (before := then.data.get(name)) != now.data.get(name)
    ]
    used = []
    same_verl = then.versions.get("verl") == now.versions.get("verl")
    fixed = _FIXED if now.settings.get(f"{_ACTOR}.strategy", "fsdp") in ("fsdp", "fsdp2") else (*_FIXED, *_OPTIMIZER)
    for key in dict.fromkeys([*then.settings, *now.settings]):
        before, after = then.settings.get(key), now.settings.get(key)
        if (
            before == after
            or _under(key, _SILENT)
            or (not same_verl and (key not in then.settings or key not in now.settings))
        ):
            continue  # what only one version of verl knows was not set by anybody
        (refused if _under(key, fixed) else used).append(f"{key}: {_said(before)} -> {_said(after)}")
    compared = {
        "config": f"{_MODEL}, config.json",
        "adapter": f"{_MODEL}, weights of lora_adapter_path",
        "critic": "critic.model.path, config.json",
    }
    for name, what in compared.items():
        before, after = then.model.get(name), now.model.get(name)
        if before != after:
            refused.append(f"{what}: {_said(before)} -> {_said(after)}")
    before, after = then.model.get("weights"), now.model.get("weights")
    if before and after and before != after:
        refused.append(f"{_MODEL}.path, weights: {_said(before)} -> {_said(after)}")
    if then.held_out != now.held_out:
        used.append(f"data.val_files: other held-out {'pairs' if now.trainer in ('dpo', 'rm') else 'rows'}")
    return Differences(refused, used)


def _said(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) == 64 else text
