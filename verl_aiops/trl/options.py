"""What the settings of both trainings share, and TRL's own options, which TRL's parser reads."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any, NoReturn

from verl_aiops.settings import Settings, nearest, option, setting, settings_of
from verl_aiops.trl.extra import TrainingError

__all__ = ["DATA", "DEVICE", "DTYPE", "LORA_ALPHA", "SAVE_STEPS", "TrainingSettings", "trl_options"]

# Settings that both trainings have; a call makes the field of one.
DATA = partial(
    setting,
    MISSING,
    "preference pairs, parquet or JSONL",
    group="files",
    metavar="FILE",
    trl=("dataset_num_proc",),
)
_training = partial(partial, setting, group="training")
LORA_ALPHA = _training(32, "scale of LoRA", within="(0, inf)", metavar="A")
DTYPE = _training(
    "float32",
    "of the weights that are loaded and written; on a GPU float32 is trained under bfloat16 autocast",
    choices=("float32", "bfloat16"),
    trl=("bf16", "fp16"),
)
DEVICE = _training("auto", "where to train", choices=("auto", "cpu", "cuda"), trl=("use_cpu",))
SAVE_STEPS = _training(
    50,
    "between checkpoints, from which a stopped run goes on",
    within="(0, inf)",
    trl=("save_steps", "save_strategy"),
)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """A setting's ``trl`` names the fields of TRL's configuration that it decides, so that they are not set twice."""

    trl: tuple[str, ...] = field(default=(), kw_only=True)

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        of = next(of for of in settings_of(cls) if of.name == name)
        return TrainingError(f"{option(of)} {value}: expected {wanted.removesuffix(', or null')}")


def trl_options(settings: TrainingSettings, config: str, settled: Collection[str]) -> dict[str, Any]:
    """The fields of TRL's configuration that ``settings.trl`` gives, as ``("--weight_decay", "0.01")``.

    Only those that are given: what TRL would take by default is not what a run of ours starts from.

    Args:
        config: the name of its class, ``DPOConfig`` or ``RewardConfig``.
        settled: further fields that a run decides by itself.

    Raises:
        TrainingError: no such option, a value that it cannot have, or one that is decided by an option of ours.
    """
    if not settings.trl:
        return {}
    import trl

    def refuse(message: str) -> NoReturn:
        raise TrainingError(f"TRL's options: {message}")

    parser = trl.TrlParser((getattr(trl, config),), allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]  # argparse would print all of TRL's options and exit
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given, left = parser.parse_known_args(list(settings.trl))
    if left:
        ours = [option(of) for of in settings_of(type(settings))]
        near = nearest(left[0], ours) or nearest(left[0], parser._option_string_actions)
        raise TrainingError(
            f"unrecognized arguments: {' '.join(left)}: no option of this command, nor of TRL's {config}{near}"
        )
    decided_by = {name: option(of) for of in settings_of(type(settings)) for name in of.metadata.get("trl", ())}
    for name in vars(given):
        if name in decided_by:
            raise TrainingError(f"--{name}: set it by {decided_by[name]}, which decides TRL's {name} here")
        if name in settled:
            raise TrainingError(f"--{name}: this command decides it by itself")
    return vars(given)
