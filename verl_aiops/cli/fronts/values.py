"""Values as Hydra reads them on its command line."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["hydra_value", "quoted_path"]

# what Hydra takes for a text as it stands; the slash keeps it from being a number, true or null
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]*/[A-Za-z0-9_./-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def quoted_path(text: str) -> str:
    """A path or name, whatever it has in it, as ``text`` of examples/hydra_values.sh does it."""
    return text if _PLAIN_PATH.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    # a backslash counts only before a quote or the end, and ${ would be one of OmegaConf's interpolations
    inner = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    inner = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", inner)
    return f"'{inner}'"


def hydra_value(value: Any) -> str:
    """A value out of Python or YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    text = str(value)
    # 5e-7 is a text to YAML, and a number to Hydra
    return text if _PLAIN.fullmatch(text) else _quoted(text)
