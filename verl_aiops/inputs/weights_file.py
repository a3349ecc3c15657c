"""Files of weights by their headers alone: a download that was cut is told before a model is made of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verl_aiops.inputs.json_text import JsonFault, read_json

__all__ = ["cut_short", "header_of"]

_MOST_HEADER = 100 << 20  # bytes, safetensors' own limit


def cut_short(folder: str | os.PathLike) -> str | None:
    """What is wrong with the first safetensors file of a folder that is not whole; None where all are, and where there
    is no such folder."""
    for path in sorted(Path(folder).expanduser().glob("*.safetensors")):
        size, wanted = path.stat().st_size, _size_by_header(path)
        if wanted is None:
            return f"{path.name} ({size:,} bytes) is no whole safetensors file; copy or download it again"
        if size != wanted:
            return f"{path.name} has {size:,} bytes where its header says {wanted:,}; copy or download it again"
    return None


def header_of(path: str | os.PathLike) -> dict[str, Any] | None:
    """Of a safetensors file what its header says of each tensor, by name; None where it has no whole header.

    8 bytes, little-endian, are the length of the header; the header is JSON.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MOST_HEADER:
            return None
        text = file.read(length)
    try:
        header = read_json(text)
    except JsonFault:
        return None
    if not isinstance(header, dict):
        return None
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def _size_by_header(path: Path) -> int | None:
    if (header := header_of(path)) is None:
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    try:
        return 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except (TypeError, KeyError, IndexError, ValueError):
        return None
