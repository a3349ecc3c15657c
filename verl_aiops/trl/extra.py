"""The extra ``trl``, tokenizers, and folders that are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verl_aiops.files import move_into_place, write_atomically
from verl_aiops.inputs.json_text import JsonFault, read_object_file

__all__ = [
    "TrainingError",
    "check_folder",
    "in_a_line",
    "last_checkpoint",
    "load_tokenizer",
    "move_into",
    "prepare_folder",
    "require_trl",
]

SETTINGS = "settings.json"
CHECKPOINTS = "checkpoints"
# settings.json is a common name: nothing is removed, or gone on with, where another program wrote it
OURS = {"written_by": "verl-aiops"}


class TrainingError(ValueError):
    """A training run that cannot be started; the message says what to change."""


def require_trl() -> None:
    """Raises TrainingError if TRL or PEFT is not installed."""
    missing = [name for name in ("trl", "peft") if find_spec(name) is None]
    if missing:
        raise TrainingError(f'{" and ".join(missing)} not installed: pip install "verl-aiops[trl]"')


def in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load_tokenizer(model: str) -> Any:
    """Raises TrainingError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except Exception as error:  # whatever a folder or hub name without a tokenizer raises
        found = "" if os.path.isdir(model) else "no such folder, and as a name on the hub "
        mend = "Name a model's folder, as get-model makes, or a name on the hub."
        raise TrainingError(
            f"--model {model}: {found}its tokenizer cannot be loaded: {in_a_line(error).rstrip('.')}. {mend}"
        ) from None


def check_folder(out: str, settings: dict, finished: str, overwrite: bool) -> None:
    """Whether `prepare_folder` would take the folder; changes nothing. Arguments and errors are the same.

    With no ``settings``, whether it would take it with any: to ask before data is read.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{out} is a file: choose another --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    before = _note_of(folder)
    if before is None:
        raise TrainingError(f"{out} holds other files: choose another --out")
    if overwrite:
        return
    if (folder / finished).is_file():
        raise TrainingError(f"{out} holds a finished model: choose another --out, or add --overwrite")
    changed = [key for key in settings if before.get(key) != settings[key]]
    if changed:
        now = "; ".join(f"{key}: {before.get(key)!r} then, {settings[key]!r} now" for key in changed)
        raise TrainingError(
            f"{out} holds an unfinished run with other settings ({now}): restore them to go on, choose another "
            "--out, or add --overwrite to start anew"
        )


def prepare_folder(out: str, settings: dict, finished: str, overwrite: bool) -> Path:
    """The output folder, with ``settings.json`` in it.

    An unfinished run with the same settings is gone on with; see `last_checkpoint`.

    Args:
        settings: what decides the result; JSON.
        finished: the file that only a finished run leaves.
        overwrite: remove an earlier run's folder first.

    Raises:
        TrainingError: another run's folder, finished or not, or a folder with other files.
    """
    check_folder(out, settings, finished, overwrite)
    folder = Path(out).expanduser()
    if overwrite and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SETTINGS, json.dumps(OURS | settings, indent=1) + "\n")
    return folder


def _note_of(folder: Path) -> dict | None:
    """``settings.json`` of an earlier run, or None if no run of ours wrote it."""
    try:
        note = read_object_file(folder / SETTINGS)
    except (OSError, JsonFault):
        return None
    return note if OURS.items() <= note.items() else None


def last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint of an unfinished run.

    transformers writes a checkpoint's ``trainer_state.json`` last, so one without was being written when the run ended.
    """
    found = [(int(path.name.rpartition("-")[2]), path) for path in (folder / CHECKPOINTS).glob("checkpoint-[0-9]*")]
    for _, path in sorted(found, reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        return str(path)
    return None


def move_into(folder: Path, made: Path, last: str) -> None:
    """Move everything from ``made`` into ``folder``: ``config.json``, without which no library loads a model, near the
    end, and the file ``last``, with which the folder is whole, at the end.
    """
    end = ["config.json", last]
    for path in sorted(made.iterdir(), key=lambda path: (end.index(path.name) if path.name in end else -1, path.name)):
        move_into_place(path, folder / path.name)
    made.rmdir()
