"""Before Ray starts: whether a preference run may go on from what lies in its folder, and what differs from then."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from verl_aiops.trainers.checkpoints import check_same_reference, export_model, exported_from, resume_folder
from verl_aiops.trainers.config import ConfigError, OnlineDPOConfig, PreferenceConfig
from verl_aiops.trainers.reference import adapter_digest, weights_digest
from verl_aiops.trainers.run_note import Differences, RunNote, compare, read_note

__all__ = ["NothingLeft", "files_digest", "online_notes", "settle", "start_folder", "start_model"]


class NothingLeft(Exception):
    """The run is finished already; the message says what lies where."""


def start_folder(trainer: DictConfig) -> str | None:
    """The checkpoint that the run goes on from, or None for a run from the beginning.

    Raises:
        ConfigError: the run would write among the checkpoints of another one.
    """
    root = os.path.abspath(trainer.default_local_dir)
    there, latest = _checkpoints(root), os.path.isfile(os.path.join(root, "latest_checkpointed_iteration.txt"))
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
            f"verl-aiops: {root} holds {_listed(there)} that never became complete (there is no "
            "latest_checkpointed_iteration.txt): the run begins with step 1, and writes over it",
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


def _checkpoints(root: str) -> list[int]:
    """Steps of the checkpoints, whole or not, that a folder holds."""
    if not os.path.isdir(root):
        return []
    return sorted(_step(name) for name in os.listdir(root) if re.fullmatch(r"global_step_\d+", name))


def _step(folder: str) -> int:
    return int(folder.rpartition("global_step_")[2])


def _listed(steps: list[int]) -> str:
    return ", ".join(f"global_step_{step}" for step in steps[:5]) + " and more" * (len(steps) > 5)


def start_model(model: DictConfig, weights: str | None) -> dict[str, str | None]:
    """What `RunNote.model` says of ``actor_rollout_ref.model``; ``weights`` is its digest where it is known."""
    config = Path(os.path.expanduser(model.path)) / "config.json"
    digest = None
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        # transformers rewrites its own version into the file
        content.pop("transformers_version", None)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    adapter = adapter_digest(model.lora_adapter_path) if model.lora_adapter_path else None
    return {"path": str(model.path), "weights": weights, "config": digest, "adapter": adapter}


def files_digest(files) -> str:
    """SHA-256 (hex) of the contents of data files, in order."""
    digest = hashlib.sha256()
    for name in [files] if isinstance(files, str) else list(files):
        path = os.path.expanduser(name)
        if not os.path.isfile(path):
            digest.update(name.encode())
            continue
        with open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def online_notes(
    config: DictConfig, dpo: OnlineDPOConfig, settings: dict, total_steps: int | None
) -> tuple[RunNote, dict]:
    """What a checkpoint of online DPO remembers of the run, and of its reference, a copy of the policy at its start."""
    model, data = config.actor_rollout_ref.model, config.data
    folder = os.path.expanduser(model.path)
    weights = weights_digest(folder) if dpo.uses_reference and os.path.isdir(folder) else None
    note = RunNote(
        trainer="online_dpo",
        total_steps=total_steps,
        settings=settings,
        data={"contents of data.train_files": files_digest(data.train_files)},
        model=start_model(model, weights),
        held_out=files_digest(data.val_files) if data.val_files else None,
    )
    reference = {
        "weights": None,
        "reference": "live" if dpo.uses_reference else None,
        "sync_steps": dpo.reference_sync_steps,
    }
    return note, reference


def settle(
    folder: str,
    now: RunNote,
    reference: dict,
    config: DictConfig,
    knobs: PreferenceConfig,
    without_note: Callable[[], None] | None = None,
) -> None:
    """Say what a run that goes on from ``folder`` changes.

    Args:
        folder: the checkpoint.
        now: what this run would note.
        reference: likewise, of its reference.
        config: verl's configuration.
        knobs: the section ``algorithm.dpo`` or ``algorithm.online_dpo``.
        without_note: compares the data of a checkpoint whose version wrote no notes; raises ValueError.

    Raises:
        ConfigError: something cannot be resumed with.
        NothingLeft: the run is finished, and its model exported.
    """
    try:
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
    step = _step(folder)
    if now.total_steps is not None and step >= now.total_steps and not config.trainer.get("val_only", False):
        _finished(folder, step, now.total_steps, found.used, config, knobs)
    lines = [f"verl-aiops: goes on from {folder}"]
    if then is None:
        lines.append("  the checkpoint is of a version that noted no settings: what has changed since is not compared")
    elif then.total_steps != now.total_steps:
        lines.append(f"  steps in all: {then.total_steps} -> {now.total_steps}")
    lines += [f"  from step {step + 1} on: {line}" for line in found.used]
    print("\n".join(lines), flush=True)


def _finished(folder: str, step: int, total: int, used: list[str], config: DictConfig, knobs: PreferenceConfig) -> None:
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
    if knobs.export_model and os.path.dirname(folder) == root:
        target = os.path.join(root, "huggingface")
        origin = exported_from(config)
        if origin == os.path.basename(folder) or (origin is None and os.path.isdir(target)):
            said += f" Its model lies in {target}."
        else:
            # the run was cut short between its last checkpoint and the end
            said += f" Its model was not there yet and has been exported: {export_model(folder, config)}"
    raise NothingLeft(f"{said} {more}")
