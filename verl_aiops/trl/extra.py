"""The extra ``trl``, and folders that are whole or not there."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

__all__ = ["TrainingError", "last_checkpoint", "move_into", "prepare_folder", "require_trl"]

SETTINGS = "settings.json"
CHECKPOINTS = "checkpoints"


class TrainingError(ValueError):
    """A training run that cannot be started; the message says what to change."""


def require_trl() -> None:
    """Raises TrainingError if TRL or PEFT is not installed."""
    missing = [name for name in ("trl", "peft") if find_spec(name) is None]
    if missing:
        raise TrainingError(f'{" and ".join(missing)} not installed: pip install "verl-aiops[trl]"')


def prepare_folder(out: str, settings: dict, finished: str, overwrite: bool) -> Path:
    """The output folder, with ``settings.json`` in it.

    An unfinished run with the same settings is gone on with; see `last_checkpoint`.

    Args:
        settings: what decides the result; JSON.
        finished: the file that only a finished run leaves.
        overwrite: remove an earlier run's files first.

    Raises:
        TrainingError: another run's folder, finished or not, or a folder with other files.
    """
    import shutil

    folder = Path(out).expanduser()
    note = folder / SETTINGS
    if folder.is_dir() and any(folder.iterdir()):
        if not note.is_file():
            raise TrainingError(f"{out} holds other files: choose another --out")
        if overwrite:
            shutil.rmtree(folder)
        elif (folder / finished).is_file():
            raise TrainingError(f"{out} holds a finished model: choose another --out, or add --overwrite")
        else:
            before = json.loads(note.read_text(encoding="utf-8"))
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                now = "; ".join(f"{key}: {before.get(key)!r} then, {settings[key]!r} now" for key in changed)
                raise TrainingError(
                    f"{out} holds an unfinished run with other settings ({now}): restore them to go on, choose another "
                    "--out, or add --overwrite to start anew"
                )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return folder


def last_checkpoint(folder: Path) -> str | None:
    """The last whole checkpoint of an unfinished run."""
    from transformers.trainer_utils import get_last_checkpoint

    checkpoints = folder / CHECKPOINTS
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def move_into(folder: Path, made: Path, last: str) -> None:
    """Move everything from ``made`` into ``folder``, the file ``last`` at the end: with it the folder is whole."""
    for path in sorted(made.iterdir(), key=lambda path: path.name == last):
        os.replace(path, folder / path.name)
    made.rmdir()
