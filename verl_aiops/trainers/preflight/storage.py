"""Whether what a run will write can be written, and will fit, asked before Ray starts."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_aiops.files import size_text
from verl_aiops.inputs.weights_file import header_of
from verl_aiops.trainers.config import ConfigError

__all__ = ["Needed", "check_storage", "model_bytes", "parameters_in", "space_needed"]

_BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
_MERGED = 2  # bytes a parameter in a plain folder: verl's merger writes bfloat16
_PROBE = b"\0" * 4096


@dataclass(frozen=True)
class Needed:
    """Bytes that a run leaves: of one checkpoint (0 where none is written), and of the plain model at the end."""

    checkpoint: int
    export: int


def check_storage(config: DictConfig, *, preference: bool) -> list[str]:
    """Try the folders that the run writes to, and compare the space that is free with that of a checkpoint.

    Args:
        config: ``~`` at the beginning of a folder is expanded in place.
        preference: a run of our preference trainers, which always save their last step.

    Returns:
        lines for the start of the run.

    Raises:
        ConfigError: folders that cannot be written, or a disk without room for one checkpoint.
    """
    lines, faults = [], []
    saves = preference or config.trainer.save_freq > 0
    keys = ["trainer.default_local_dir"] if saves else []
    keys += ["trainer.rollout_data_dir", "trainer.validation_data_dir"]
    for key in keys:
        folder = OmegaConf.select(config, key)
        if not folder:
            continue
        folder = os.path.expanduser(str(folder))
        with open_dict(config):
            OmegaConf.update(config, key, folder)
        fault = _probe(Path(folder))
        if fault:
            faults.append(f"{key}={folder}: {fault}. Name a folder that can be written.")
    if faults:
        raise ConfigError("\n  ".join(faults))
    if saves:
        lines += _compare_space(config, preference)
    if preference:
        lines += _probe_caches(config)
    return lines


def _probe(folder: Path) -> str | None:
    """Why a folder cannot be written, or made; tried, as permissions alone do not tell of disks that are read-only."""
    folder = folder.absolute()
    place = next(above for above in (folder, *folder.parents) if os.path.lexists(above))
    try:
        if not place.is_dir():
            return f"{place} is no folder"
        with tempfile.TemporaryDirectory(prefix=".verl-aiops-", dir=place) as probe:
            (Path(probe) / "probe").write_bytes(_PROBE)
    except OSError as error:
        return f"{place} cannot be written ({_reason(error)})"
    return None


def _reason(error: OSError) -> str:
    text = (error.strerror or str(error)).lower()
    return f"{text}: free up space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else text


def _probe_caches(config: DictConfig) -> list[str]:
    from verl_aiops.files import default_cache_dir

    lines = []
    asked = OmegaConf.select(config, "algorithm.dpo.reference_cache_dir")
    cached = config.algorithm.adv_estimator == "dpo" and OmegaConf.select(config, "algorithm.dpo.reference") == "cached"
    scores = os.path.expanduser(asked or default_cache_dir("reference"))
    wanted = [(scores, "reference scores are kept for this run only")] if cached else []
    if config.algorithm.adv_estimator in ("dpo", "rm"):
        wanted.append((default_cache_dir("tokens"), "the next run tokenises again"))
    for folder, so in wanted:
        fault = _probe(Path(folder))
        if fault:
            lines.append(f"warning: cache {folder}: {fault}; {so}")
    return lines


def _compare_space(config: DictConfig, preference: bool) -> list[str]:
    needed = space_needed(config, preference)
    if needed is None:
        return []
    folder = Path(config.trainer.default_local_dir).absolute()
    place = next(above for above in (folder, *folder.parents) if above.is_dir())
    free = shutil.disk_usage(place).free
    saves = _saves(config)
    wanted = [(needed.checkpoint, "a checkpoint"), (needed.export, "the model at the end")]
    said = ", ".join(f"{size_text(count)} {what}" for count, what in wanted if count)
    line = f"space in {folder}: {said}; {size_text(free)} are free"
    # on several machines each may hold its own workers' part of a checkpoint; the model is written by one of them
    least = needed.checkpoint // config.trainer.nnodes + needed.export
    if least > free:
        what = "one checkpoint" if needed.checkpoint else "the trained model"
        mode = config.algorithm.adv_estimator
        less = []
        if needed.checkpoint:
            less.append("save less (actor_rollout_ref.actor.checkpoint.save_contents)")
        if needed.export:
            less.append(f"keep no model (algorithm.{mode}.export_model=false)")
        fault = f"no room for {what} ({said}; {size_text(free)} are free)"
        if preference and not OmegaConf.select(config, f"algorithm.{mode}.check_space", default=True):
            return [f"warning: trainer.default_local_dir={folder}: {fault}"]
        raise ConfigError(
            f"trainer.default_local_dir={folder}: {fault}. Free up space, name another folder, or {' or '.join(less)}."
            + f" algorithm.{mode}.check_space=false goes on all the same." * preference
        )
    if not needed.checkpoint:
        return [line]
    if saves is None:
        return [f"{line}; without trainer.max_actor_ckpt_to_keep all of them are kept"]
    whole = needed.checkpoint * saves + needed.export
    if whole // config.trainer.nnodes > free:
        line = f"warning: {line}, too little for {saves} checkpoints: set trainer.max_actor_ckpt_to_keep or save_freq"
    return [line]


def _saves(config: DictConfig) -> int | None:
    """Checkpoints that lie on the disk at once, at most; None where their number follows from the data."""
    trainer = config.trainer
    if trainer.save_freq <= 0:
        return 1
    keep = trainer.get("max_actor_ckpt_to_keep")
    # a single one is removed only when the next is whole
    kept = max(2, keep) if isinstance(keep, int) and keep > 0 else None
    steps = trainer.total_training_steps
    if not isinstance(steps, int):
        return kept
    saves = -(-steps // trainer.save_freq)
    return min(saves, kept) if kept else saves


def space_needed(config: DictConfig, preference: bool) -> Needed | None:
    """What a checkpoint and the exported model take; None where the model lies in no folder of this machine."""
    model = config.actor_rollout_ref.model
    count = parameters_in(model.path)
    if count is None:
        return None
    actor = config.actor_rollout_ref.actor
    lora = (model.get("lora_rank") or 0) > 0 or model.get("lora_adapter_path") is not None
    checkpoint = _checkpoint_bytes(count, actor, trained=0 if lora else count)
    if config.algorithm.adv_estimator == "gae":
        critic = parameters_in(OmegaConf.select(config, "critic.model.path") or "")
        if critic:
            checkpoint += _checkpoint_bytes(critic, config.critic, trained=critic)
    mode = config.algorithm.adv_estimator
    exported = preference and OmegaConf.select(config, f"algorithm.{mode}.export_model", default=True)
    if exported and config.trainer.save_freq <= 0:
        checkpoint = 0
    return Needed(checkpoint, count * _MERGED if exported else 0)


def model_bytes(folder: str | None) -> int | None:
    """What a model in a folder takes when it is exported; None where that cannot be told."""
    count = parameters_in(folder or "")
    return count and count * _MERGED


def _checkpoint_bytes(count: int, part: DictConfig, trained: int) -> int:
    """Weights, and for those that are trained the two moments of Adam."""
    contents = OmegaConf.select(part, "checkpoint.save_contents") or ["model", "optimizer", "extra"]
    engine = OmegaConf.select(part, "fsdp_config")
    size = _BYTES.get(str(OmegaConf.select(engine, "model_dtype") if engine is not None else "fp32"), 4)
    total = 0
    if "model" in contents:
        total += count * size
    if "optimizer" in contents:
        total += 2 * trained * size
    if "hf_model" in contents:
        total += count * _MERGED
    return total


def parameters_in(folder: str) -> int | None:
    """Numbers in a model folder's safetensors files, by their headers alone; None where there are none that tell."""
    total = 0
    try:
        files = sorted(Path(os.path.expanduser(folder)).glob("*.safetensors")) if folder else []
        for file in files:
            header = header_of(file)
            if header is None:
                return None
            total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (OSError, KeyError, TypeError):
        return None  # the loader says what is wrong with it
    return total or None
