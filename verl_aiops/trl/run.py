"""What runs of `train-rm` and `trl-dpo` have in common: device, arguments of TRL, LoRA, the folder of the result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.trl.extra import CHECKPOINTS, TrainingError

if TYPE_CHECKING:
    from verl_aiops.models.card import Card
    from verl_aiops.trl.dpo_settings import DPOTraining
    from verl_aiops.trl.reward_settings import RewardTraining

__all__ = ["card_of", "empty_folder", "lora_of", "pick_device", "usual_arguments", "without_adapter"]


def pick_device(asked: str) -> str:
    """``cpu`` or ``cuda``; raises TrainingError where a run on it could not work."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("started by a distributed launcher: one process trains, on one device")
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no GPU here")
    if torch.cuda.device_count() > 1:
        raise TrainingError(
            f"torch sees {torch.cuda.device_count()} GPUs, and one is used: set CUDA_VISIBLE_DEVICES=0, say"
        )
    return "cuda"


def usual_arguments(
    settings: DPOTraining | RewardTraining, folder: Path, open_options: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """TRL's arguments that follow from the settings of both commands.

    Args:
        open_options: those that a run decides unless ``more`` gives them.
        more: those that the user gave beside the settings.
    """
    on_gpu = pick_device(settings.device) == "cuda"
    return {
        **({"dataloader_pin_memory": on_gpu} | open_options | more),
        "output_dir": str(folder / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.lr,
        "bf16": on_gpu and settings.dtype == "float32",
        "use_cpu": not on_gpu,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "save_steps": settings.save_steps,
    }


def lora_of(settings: DPOTraining | RewardTraining, task: str, **more: Any) -> Any:
    """PEFT's configuration of the adapter, or None where all weights are trained."""
    from peft import LoraConfig

    if not settings.lora_rank:
        return None
    return LoraConfig(
        task_type=task, r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", **more
    )


def empty_folder(folder: Path) -> Path:
    """An empty folder for what becomes the result; what an interrupted end has left is removed."""
    made = folder / ".partial"
    for left in (made, folder / "adapter"):
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir()
    return made


def without_adapter(model: Any, settings: DPOTraining | RewardTraining, made: Path) -> Any:
    """The model that is measured and written: LoRA is merged, and kept in ``adapter/``."""
    if not settings.lora_rank:
        return model
    model.save_pretrained(made / "adapter")
    return model.merge_and_unload()


def card_of(
    settings: DPOTraining | RewardTraining,
    method: str,
    *,
    metrics: Path | None = None,
    figures: Mapping[str, float] | None = None,
    use: tuple[str, ...] = (),
) -> Card:
    """The card of the result: what the run was given, and its figures of held-out data (`models.card.Card`)."""
    from verl_aiops.models.card import Card

    files = ("model", "reference_model", "data", "val", "device", "trl")
    shown = {name: value for name, value in asdict(settings).items() if name not in files and value is not None}
    more = {} if not settings.trl else {"TRL's options": " ".join(settings.trl)}
    made = f"Made by TRL's {method.upper() if method == 'dpo' else method.title()}Trainer with verl-aiops."
    packages = ("verl-aiops", "trl", "torch", "transformers")
    return Card(
        *(method, settings.model, made, settings.data, settings.val, shown | more),
        metrics=metrics,
        figures=figures or {},
        tags=("trl",),
        packages=packages,
        use=use,
    )
