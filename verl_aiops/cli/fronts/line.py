"""From options to the command line that is run: what it is, and how it is shown."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.cli.fronts.machine import accelerators
from verl_aiops.cli.fronts.tasks import OPTIONS, Task
from verl_aiops.cli.fronts.values import hydra_value, quoted_path
from verl_aiops.inputs.shown import UserError, one_line
from verl_aiops.settings import nearest

__all__ = ["FrontError", "Line", "make_line"]

_PATHS = ("model", "data", "val", "out")
_OVERRIDE = re.compile(r"(?:\+{0,2}|~)[A-Za-z_][\w./@-]*(?:=.*)?", re.DOTALL)


class FrontError(UserError):
    """Options that make no run."""


@dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        arguments: of Python, the program and its settings.
        settings: those of them that are settings, each ``key=value``.
        environment: variables of the run beside this process's.
        out: folder of the run; log: file of what it prints; metrics: its figures, a line a step.
        given: the options that it was made of.
    """

    arguments: tuple[str, ...]
    settings: tuple[str, ...]
    out: Path
    log: Path
    metrics: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def command(self) -> list[str]:
        return [sys.executable, *self.arguments]

    def shown(self, between: str = " ") -> str:
        """For a shell. `between` stands between the program and its settings."""
        program = self.arguments[: len(self.arguments) - len(self.settings)]
        head = [*(f"{name}={_for_shell(value)}" for name, value in self.environment.items()), "python"]
        # an option and its value stay together
        before = ("", *self.settings)
        parts = [
            ("" if at == 0 else " " if before[at].startswith("--") else between) + _for_shell(text)
            for at, text in enumerate(self.settings)
        ]
        return " ".join([*head, *map(_for_shell, program)]) + between + "".join(parts)

    def value(self, key: str) -> str | None:
        """What a setting is on the line; the last one counts, as for Hydra."""
        found = [text.partition("=")[2] for text in self.settings if text.lstrip("+").startswith(f"{key}=")]
        return found[-1] if found else None


def _for_shell(text: str) -> str:
    """As `shlex.quote`, but readable around the quotes that a path may have for Hydra."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)


def make_line(task: Task, options: Mapping[str, Any], overrides: Iterable[str] = ()) -> Line:
    """The line of a run.

    Args:
        options: by their names in `OPTIONS`; None for one that is not given.
        overrides: settings of the user's own, ``key=value``; they come last, and win.

    Raises:
        FrontError: an option is missing or cannot be, or an override is none.
    """
    given = {name: value for name, value in options.items() if value is not None}
    overrides = tuple(overrides)
    _check(task, given, overrides)
    for name in ("data", "val"):
        if name in given:
            paths = [given[name]] if isinstance(given[name], str) else given[name]
            given[name] = [_file_of(path, name) for path in paths]
    found = accelerators()
    # a run that joins a cluster has the cluster's GPUs, of which this machine need not have any
    elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    gpus = given.get("gpus", int(found > 0))
    if gpus and not found and not elsewhere:
        raise FrontError(
            f"--gpus {gpus}: no accelerator found on this machine. --gpus 0 trains on the CPU; where there is one, "
            "`nvidia-smi` and CUDA_VISIBLE_DEVICES tell why it is not seen"
        )
    if gpus > 1 and not task.keys["gpus"]:
        raise FrontError(f"--gpus {gpus}: this task trains on one GPU, or with 0 on the CPU")
    if gpus > found > 0 and not elsewhere:
        raise FrontError(f"--gpus {gpus}: this machine shows {found} (CUDA_VISIBLE_DEVICES limits them)")
    settings = _settings(task, given, gpus)
    written = [_written(task, key, value) for key, value in settings.items()]
    if not task.flags:
        presets = (*task.presets, *([task.cpu_preset] if task.cpu_preset and not gpus else ()))
        if presets:
            written.insert(0, f"+verl_aiops={hydra_value(presets) if len(presets) > 1 else presets[0]}")
        written += overrides
    else:
        written = [part for parts in written for part in parts.split("\0")] + [
            part for text in overrides for part in _as_flag(text)
        ]
    out = Path(os.path.expanduser(given["out"])).absolute()
    metrics = Path(os.environ.get("VERL_FILE_LOGGER_PATH") or out / "metrics.jsonl").absolute()
    environment = {}
    if found and not gpus and task.cpu_preset:
        environment["VERL_PLATFORM"] = "cpu"
    # our trainers write into the run's folder by themselves; verl's SFT trainer does not
    if (task.model_from_checkpoint or "VERL_FILE_LOGGER_ROOT" in os.environ) and not task.flags:
        environment["VERL_FILE_LOGGER_PATH"] = str(metrics)
        environment |= {} if "TENSORBOARD_DIR" in os.environ else {"TENSORBOARD_DIR": str(out / "tensorboard")}
    program = tuple(part.format(workers=max(1, gpus)) for part in task.program)
    log = out.with_name(f"{out.name}.log") if task.log_beside else out / "train.log"
    return Line((*program, *written), tuple(written), out, log, metrics, environment, given)


def _check(task: Task, given: Mapping[str, Any], overrides: Iterable[str]) -> None:
    if missing := [f"--{name}" for name in task.required if name not in given]:
        raise FrontError(f"{', '.join(missing)} missing: give them as options, or in the file of --config")
    for name, least in (("lora_rank", 0), ("gpus", 0), ("batch_size", 1), ("steps", 1)):
        if name in given and given[name] < least:
            raise FrontError(f"--{name.replace('_', '-')} {given[name]}: expected {least} or more")
    # first the options: what stands behind one that there is not is no setting either
    for text in sorted(overrides, key=lambda text: not text.startswith("-")):
        if text.startswith("-") or ("=" not in text and not text.startswith("~")):
            known = [f"--{name.replace('_', '-')}" for name in (*OPTIONS, "config", "print", "verbose")]
            near = nearest(text.partition("=")[0], known) if text.startswith("-") else ""
            raise FrontError(f"{one_line(text, 80)}: no such option{near}, and no setting, which is key=value")
        if not _OVERRIDE.fullmatch(text):
            raise FrontError(f"{one_line(text, 80)}: expected a setting, key=value")
        if text.lstrip("+~").partition("=")[0] in task.keys["out"]:
            raise FrontError(f"{one_line(text, 80)}: --out names the run's folder")
        if text.lstrip("+~").startswith("model.lora.base_format=") and "verl.trainer.sft_trainer" in task.program:
            raise FrontError(f"{one_line(text, 80)}: verl's SFT trainer trains adapters on whole weights. Remove it")
    if "push" in given:
        from verl_aiops.models.push import check_push

        check_push(given["push"])


def _file_of(path: str, option: str) -> str:
    """The file, or, of a name on a hub, the one that its rows were written to."""
    if os.path.isfile(os.path.expanduser(path)):
        return path
    from verl_aiops.hub import fetch_rows, may_be_on_a_hub

    if not may_be_on_a_hub(path):
        raise FrontError(f"--{option} {one_line(path)}: no such file")
    return str(fetch_rows(path, f"--{option}", held_out=option == "val"))


def _columns(columns: str) -> dict[str, str]:
    """Their names by ours."""
    from verl_aiops.data.fields import keys_of_option

    return {key.removesuffix("_key"): name for key, name in keys_of_option(columns).items()}


def _settings(task: Task, given: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """What is set, by key in the order of the line; a later group goes before an earlier one."""
    rank = given.get("lora_rank", 0)
    settings: dict[str, Any] = {}
    for name in _PATHS:
        if name in given and name in task.keys:
            value = given[name]
            # a path is quoted, and not read: 2026 is a folder's name
            several = [value] if isinstance(value, str) else list(value)
            paths = [os.path.expanduser(path) for path in several]
            settings |= dict.fromkeys(task.keys[name], _Paths(paths))
    for rows in (
        task.fixed,
        task.validated if "val" in given else task.unvalidated,
        task.lora if rank else task.full,
        () if gpus else task.cpu,
    ):
        settings |= {
            key: int(value.format(lora_alpha=2 * rank)) if value == "{lora_alpha}" else value for key, value in rows
        }
    for name in (name for name in OPTIONS if name in task.keys):
        if name == "columns" and name in given and not task.flags:
            named = _columns(given[name])
            settings |= {key.format(field): column for key in task.keys[name] for field, column in named.items()}
        elif name in given and name not in _PATHS and not (name == "lora_rank" and not rank and not task.flags):
            settings |= dict.fromkeys(task.keys[name], given[name])
    settings |= dict.fromkeys(task.keys["gpus"], max(1, gpus))
    return settings


class _Paths(list):
    """Paths, which are written as they are."""


def _written(task: Task, key: str, value: Any) -> str:
    if task.flags:
        parts = value if isinstance(value, list) else [value if isinstance(value, str) else hydra_value(value)]
        return "\0".join([f"--{key.replace('_', '-')}", *parts])
    if isinstance(value, _Paths):
        quoted = [quoted_path(path) for path in value]
        return f"{key}={quoted[0] if len(quoted) == 1 else '[' + ','.join(quoted) + ']'}"
    return f"{key}={hydra_value(value)}"


def _as_flag(text: str) -> list[str]:
    key, _, value = text.partition("=")
    return [f"--{key.lstrip('+').replace('_', '-')}", value]
