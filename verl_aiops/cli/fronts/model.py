"""OUT/huggingface at the end of a run whose trainer leaves its model in the last checkpoint alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from verl_aiops.cli.fronts.line import Line
from verl_aiops.cli.fronts.tasks import Task
from verl_aiops.files import readable
from verl_aiops.inputs.shown import one_line

if TYPE_CHECKING:
    from verl_aiops.models.card import Card

__all__ = ["push_at_end", "take_model"]


def take_model(task: Task, line: Line, show: Callable[[str], None]) -> None:
    """From the last checkpoint, with a card; written beside its place and moved.

    verl's SFT trainer leaves a folder of transformers in the checkpoint. With LoRA it writes the adapter's layers under
    names that transformers does not read: there, and of the RL trainers, the shards are merged.
    """
    out, target, made = line.out, line.out / "huggingface", line.out / "huggingface.new"
    noted = out / "latest_checkpointed_iteration.txt"
    if not noted.is_file():  # trainer.save_freq=-1
        show(f"verl-aiops: no checkpoint was written, so there is no {one_line(target)}")
        return
    name = f"global_step_{noted.read_text().strip()}"
    checkpoint = out / name / task.policy_in
    shutil.rmtree(made, ignore_errors=True)
    if task.policy_in or (checkpoint / "lora_train_meta.json").is_file():
        from verl_aiops.models.folders import merge_checkpoint

        with line.log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            merge_checkpoint(str(checkpoint), str(made), trust_remote_code=False)
    else:
        shutil.copytree(checkpoint / "huggingface", made, copy_function=_linked)
        readable(made)
    _card(task, line, name).write(made)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    show(f"model for the next stage: {one_line(target)}")


def _linked(source: str, target: str) -> str:
    """Weights are a second name of the same file where the disk has such; whatever may be edited is a copy."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return target
    return shutil.copy2(source, target)


def _card(task: Task, line: Line, checkpoint: str) -> Card:
    """Its settings are those of the line, but for what names places: nobody's business where the model goes."""
    from verl_aiops.models.card import Card

    places = {task.keys[name][0] for name in ("model", "data", "val", "out")} | {task.logger}
    places |= {"trainer.project_name", "trainer.experiment_name"}
    settings = dict(text.lstrip("+").partition("=")[::2] for text in line.settings)
    return Card(
        task.method,
        str(line.given.get("model", "?")),
        f"Made from the checkpoint `{checkpoint}` of a run of verl with verl-aiops.",
        line.given.get("data"),
        line.given.get("val"),
        {key: _placeless(value) for key, value in settings.items() if key not in places},
        line.metrics,
    )


def _placeless(value: str) -> str:
    return Path(value.strip("'")).name if "/" in value else value


def push_at_end(folder: Path, repository: str, show: Callable[[str], None]) -> None:
    """Upload the model. Raises PushError with the command that does it later."""
    from verl_aiops.models.push import PushError, push_model

    try:
        show(f"pushed: {push_model(folder, repository)}")
    except PushError as error:
        raise PushError(
            f"{error} The model is in {one_line(folder)}; later: verl-aiops push {one_line(folder)} {repository}"
        ) from None
