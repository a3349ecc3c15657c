"""The YAML file of ``--config``: the same options as on the command line, and settings of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_aiops.cli.fronts.line import FrontError
from verl_aiops.cli.fronts.tasks import OPTIONS, Option, Task
from verl_aiops.cli.fronts.values import hydra_value
from verl_aiops.inputs.shown import brief, one_line
from verl_aiops.settings import nearest

__all__ = ["read_options"]


def read_options(path: str, task: Task) -> tuple[dict[str, Any], list[str]]:
    """Options by name, and the other keys as settings (``key=value``); sections below each other make dotted keys.

    Raises `FrontError`, and what reading YAML raises, with file and key.
    """
    from verl_aiops.incidents.io.yaml_file import read_yaml

    content = read_yaml(path).value
    if not isinstance(content, Mapping):
        raise FrontError(f"{one_line(path)}: expected `name: value` lines, found {brief(content)}")
    options: dict[str, Any] = {}
    settings: list[str] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in task.keys:
            options[name] = _option(f"{one_line(path)}, key '{one_line(key, 60)}'", OPTIONS[name], value)
        elif isinstance(value, Mapping) or "." in str(key) or str(key).startswith(("+", "~")) or task.flags:
            settings += _flat(str(key), value)
        else:
            raise FrontError(
                f"{one_line(path)}: {one_line(key, 60)}: no option of this command{nearest(name, task.keys)}, and no "
                f"setting of the trainer, which has sections (data.seed). Options: {', '.join(task.keys)}"
            )
    return options, settings


def _option(where: str, option: Option, value: Any) -> Any:
    values = value if option.many and isinstance(value, list) else [value]
    made = []
    for one in values:
        try:
            if isinstance(one, bool) or one is None or isinstance(one, list | dict):
                raise ValueError
            made.append(option.kind(one))
            if option.kind is int and float(one) != made[-1]:
                raise ValueError
        except ValueError:
            kind = {int: "a whole number", float: "a number", str: "a text"}[option.kind]
            raise FrontError(f"{where}: expected {kind}, found {brief(one)}") from None
    if option.choices and made[0] not in option.choices:
        raise FrontError(f"{where}: expected one of {', '.join(option.choices)}, found {brief(value)}")
    return made if option.many else made[0]


def _flat(key: str, value: Any) -> list[str]:
    # an empty section is a value; so is one below a key with +, which Hydra adds whole
    if isinstance(value, Mapping) and value and not key.startswith("+"):
        return [text for inner, below in value.items() for text in _flat(f"{key}.{inner}", below)]
    return [f"{key}={hydra_value(value)}"]
