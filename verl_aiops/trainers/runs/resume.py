"""Before Ray starts: whether a run may go on from what lies in its folder, and what differs from then."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_aiops.files import feed
from verl_aiops.trainers.config import ConfigError, OnlineDPOConfig, PreferenceConfig
from verl_aiops.trainers.dpo.checkpoints import check_same_reference, export_model, exported_from, resume_folder
from verl_aiops.trainers.reference.cache import adapter_digest, config_content, weights_digest
from verl_aiops.trainers.runs.checkpoint_health import TRACKER, steps_in
from verl_aiops.trainers.runs.note import RL, RL_WITH_CRITIC, Differences, RunNote, compare, read_note, run_settings

__all__ = ["NothingLeft", "files_digest", "online_notes", "rl_note", "settle", "start_folder", "start_model"]


class NothingLeft(Exception):
    """The run is finished already; the message says what lies where."""


def start_folder(trainer: DictConfig) -> str | None:
    """The checkpoint that the run goes on from, or None for a run from the beginning.

    Raises:
        ConfigError: the run would write among the checkpoints of another one.
    """
    root = os.path.abspath(trainer.default_local_dir)
    there, latest = list(steps_in(Path(root))), os.path.isfile(os.path.join(root, TRACKER))
    if trainer.resume_mode == "resume_path":
        folder = _named_folder(trainer)
        others = [step for step in there if step > _step(folder) or os.path.dirname(folder) != root]
        if latest and others:
            raise ConfigError(
                f"trainer.resume_from_path={folder}: trainer.default_local_dir={root} holds {_listed(others)}, which "
                "this run does not come from. Choose another trainer.default_local_dir, or move them away."
            )
        return folder
    if trainer.resume_mode == "disable":
        if latest and there:
            raise ConfigError(
                f"trainer.resume_mode=disable starts anew, but trainer.default_local_dir={root} holds {_listed(there)} "
                "of an earlier run. Choose another trainer.default_local_dir, or move that folder away; to go on with "
                "that run, remove trainer.resume_mode=disable."
            )
        return None
    folder = resume_folder(trainer)
    if folder is None and there and not latest:
        print(
            f"verl-aiops: {root} holds {_listed(there)} that never became complete (there is no {TRACKER}): the run "
            "begins with step 1, and writes over it",
            flush=True,
        )
    return folder


def _named_folder(trainer: DictConfig) -> str:
    path = trainer.resume_from_path
    folder = os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) else None
    if folder is None or not re.fullmatch(r"global_step_\d+", os.path.basename(folder)) or not os.path.isdir(folder):
        raise ConfigError(
            f"trainer.resume_from_path={path}: expected the folder of a checkpoint, .../global_step_N, with "
            "trainer.resume_mode=resume_path."
        )
    return folder


def _step(folder: str) -> int:
    return int(folder.rpartition("global_step_")[2])


def _listed(steps: list[int]) -> str:
    return ", ".join(f"global_step_{step}" for step in steps[:5]) + " and more" * (len(steps) > 5)


def start_model(model: DictConfig, weights: str | None) -> dict[str, str | None]:
    """What `RunNote.model` says of ``actor_rollout_ref.model``; ``weights`` is its digest where it is known."""
    adapter = adapter_digest(model.lora_adapter_path) if model.lora_adapter_path else None
    config = _config_digest(model.path)
    return {"path": str(model.path), "weights": weights, "config": config, "adapter": adapter}


def _config_digest(folder: str) -> str | None:
    config = Path(os.path.expanduser(folder)) / "config.json"
    if not config.is_file():
        return None
    return hashlib.sha256(config_content(config)).hexdigest()


def files_digest(files) -> str:
    """SHA-256 (hex) of the contents of data files, in order."""
    digest = hashlib.sha256()
    for name in [files] if isinstance(files, str) else list(files):
        path = os.path.expanduser(name)
        if not os.path.isfile(path):
            digest.update(name.encode())
            continue
        feed(digest, path)
    return digest.hexdigest()


def _prompts_note(config: DictConfig, trainer: str, settings: dict, weights: str | None) -> RunNote:
    """Of a run whose data are prompts. How many are too long is known later, and with it the number of steps."""
    data = config.data
    return RunNote(
        trainer=trainer,
        total_steps=config.trainer.total_training_steps,
        settings=settings,
        data={"contents of data.train_files": files_digest(data.train_files)},
        model=start_model(config.actor_rollout_ref.model, weights),
        held_out=files_digest(data.val_files) if data.val_files else None,
    )


def online_notes(config: DictConfig, dpo: OnlineDPOConfig) -> tuple[RunNote, dict]:
    """What a checkpoint of online DPO remembers of the run, and of its reference, a copy of the policy at its start."""
    folder = os.path.expanduser(config.actor_rollout_ref.model.path)
    weights = weights_digest(folder) if dpo.uses_reference and os.path.isdir(folder) else None
    settings = run_settings(config, "online_dpo", dpo) | _reward_code(config)
    note = _prompts_note(config, "online_dpo", settings, weights)
    reference = {
        "weights": None,
        "reference": "live" if dpo.uses_reference else None,
        "sync_steps": dpo.reference_sync_steps,
    }
    return note, reference


def rl_note(config: DictConfig) -> RunNote:
    """What a checkpoint of GRPO, PPO and the like remembers of the run."""
    from verl_aiops.seam.trainer import need_critic

    folder = os.path.expanduser(config.actor_rollout_ref.model.path)
    try:
        weights = weights_digest(folder) if os.path.isdir(folder) else None
    except FileNotFoundError:
        weights = None  # verl has its own words for a folder without weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = RL_WITH_CRITIC if need_critic(config) else RL
    note = _prompts_note(config, trainer, run_settings(config, trainer) | _reward_code(config), weights)
    if trainer == RL_WITH_CRITIC:
        note.model["critic"] = _config_digest(config.critic.model.path)
    return note


def _reward_code(config: DictConfig) -> dict[str, str]:
    """A reward function in a file of the user's can be another one under the same name."""
    key = "reward.custom_reward_function.path"
    path = OmegaConf.select(config, key)
    if not path or not os.path.isfile(os.path.expanduser(path)):
        return {}
    return {f"{key} (contents)": files_digest(path)}


def settle(
    folder: str,
    now: RunNote,
    reference: dict | None,
    config: DictConfig,
    knobs: PreferenceConfig | None,
    without_note: Callable[[], None] | None = None,
) -> None:
    """Say what a run that goes on from ``folder`` changes.

    Args:
        folder: the checkpoint.
        now: what this run would note.
        reference: likewise, of its reference; None where verl makes it of the model folder.
        config: verl's configuration.
        knobs: the section ``algorithm.dpo`` or ``algorithm.online_dpo``; None for other runs.
        without_note: compares the data of a checkpoint whose version wrote no notes; raises ValueError.

    Raises:
        ConfigError: something cannot be resumed with.
        NothingLeft: the run is finished, and its model exported.
    """
    try:
        if reference is not None:
            check_same_reference(folder, reference)
        then = read_note(folder)
        if then is None and without_note is not None:
            without_note()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = compare(then, now) if then else Differences([], [])
    if found.refused:
        raise ConfigError(
            f"{folder} cannot be gone on from with other settings than it was made with (then -> now):\n  "
            + "\n  ".join(found.refused)
            + "\nRestore them, or start anew with another trainer.default_local_dir."
        )
    step, total = _step(folder), now.total_steps
    if total is None and then is not None and then.steps_per_epoch is not None:
        total = then.steps_per_epoch * config.trainer.total_epochs  # of the same prompts in the same batches
    if total is not None and step >= total and not config.trainer.get("val_only", False):
        _finished(folder, step, total, found.used, config, knobs)
    lines = [f"verl-aiops: goes on from {folder}"]
    if then is None:
        by = "version" if reference is not None else "version or trainer mode"
        lines.append(f"  the checkpoint is of a {by} that noted no settings: what has changed since is not compared")
    elif total is not None and then.total_steps != total:
        lines.append(f"  steps in all: {then.total_steps} -> {total}")
    lines += [f"  from step {step + 1} on: {line}" for line in found.used]
    print("\n".join(lines), flush=True)


def _finished(folder: str, step: int, total: int, used: list[str], config: DictConfig, knobs: Any) -> None:
    """Raises NothingLeft, or returns where the model is still to be exported by workers, who measure it."""
    more = (
        "To train on, raise trainer.total_training_steps or trainer.total_epochs; to start anew, choose another "
        "trainer.default_local_dir."
    )
    if step > total:
        raise ConfigError(
            f"{folder} has been trained for {step} steps, more than the {total} that this run asks for: there is "
            f"nothing to train, and nothing is written. {more}"
        )
    if used:
        raise ConfigError(
            f"{folder} is of the last step, {step} of {total}: there is nothing left to train, so these settings would "
            "change nothing (then -> now):\n  " + "\n  ".join(used) + f"\n{more}"
        )
    said = f"nothing left to train: {folder} is of the last step, {step} of {total}."
    root = os.path.abspath(config.trainer.default_local_dir)
    if knobs is not None and knobs.export_model and os.path.dirname(folder) == root:
        target = os.path.join(root, "huggingface")
        origin = exported_from(config)
        if origin == os.path.basename(folder) or (origin is None and os.path.isdir(target)):
            said += f" Its model lies in {target}."
        elif knobs.export_is_measured:
            print(f"verl-aiops: {said} Its model was not there yet and is exported now.", flush=True)
            return
        else:
            # the run was cut short between its last checkpoint and the end
            said += f" Its model was not there yet and has been exported: {export_model(folder, config)}"
    raise NothingLeft(f"{said} {more}")
