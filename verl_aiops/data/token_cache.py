"""Tokenised data on disk: read again instead of rendered again when nothing that decides about it has changed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.files import feed, replacing

logger = logging.getLogger(__name__)

_CHECKSUM = "checksum"


class TokenCache:
    """Named arrays of one data set under a digest of everything that they follow from.

    Args:
        folder: where the files lie; made if needed. Files are written whole and renamed into place, so runs may share
            it.
        files: paths of the data; their contents count, not their names.
        tokenizer: a fast transformers tokenizer. Slow ones cannot be told apart, and nothing is cached for them.
        settings: everything else that decides, as plain values.
    """

    def __init__(self, folder: str, files: Sequence[Path], tokenizer: Any, settings: Mapping[str, object]):
        key = _key(files, tokenizer, settings)
        self.path = None if key is None else Path(folder) / f"{key}.npz"

    def load(self) -> dict[str, np.ndarray] | None:
        """The arrays as they were saved, to the last bit, or None if there are none such."""
        try:
            if self.path is None or not self.path.exists():
                return None
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            if arrays.pop(_CHECKSUM).tobytes() != _checksum(arrays):
                raise ValueError("its content is not what was written: a damaged disk or copy?")
            return arrays
        except Exception as error:  # zipfile, zlib and numpy have a dozen kinds for damaged files
            logger.warning(
                "%s cannot be read (%s); the data is tokenised again and the file replaced",
                self.path,
                str(error) or type(error).__name__,
            )
            return None

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        if self.path is None:
            return
        try:
            named: dict[str, Any] = {**arrays, _CHECKSUM: np.frombuffer(_checksum(arrays), dtype=np.uint8)}
            with replacing(self.path) as temporary, temporary.open("xb") as file:
                np.savez(file, **named)
        except OSError as error:  # a full or read-only disk is no reason to end a run that has its data
            logger.warning("%s; the next run tokenises again", error)


def _checksum(arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 of names, types, shapes and contents. The zip's own sums say nothing of the first two, and of a content
    only where numpy reads as far as it goes.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.digest()


def _key(files: Sequence[Path], tokenizer: Any, settings: Mapping[str, object]) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    digest = hashlib.sha256()
    parts = {
        "settings": settings,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")},
    }
    digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
    digest.update(backend.to_str().encode())
    # the rules of this package: files that read, check and render rows
    package = Path(__file__).parents[1]
    rules = (source for pattern in ("data/*.py", "inputs/*.py", "reasoning.py") for source in package.glob(pattern))
    for source in sorted(rules):
        digest.update(source.read_bytes())
    for path in files:
        feed(digest, path)
        digest.update(path.name.encode())  # rows without an id are named after their file
    return digest.hexdigest()[:32]
