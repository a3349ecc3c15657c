"""Reference log-probs on disk: computed once per model, way of computing, and answer to a prompt."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from verl_aiops.files import feed, write_atomically

__all__ = ["ReferenceCache", "ReferenceIdentity", "adapter_digest", "config_content", "weights_digest"]

logger = logging.getLogger(__name__)

_NUMBERS = pa.list_(pa.float32())
_SCHEMA = pa.schema([("answer", pa.binary()), ("log_probs", _NUMBERS)])
# as parts were written when answers were scored pair by pair
_PAIRS = pa.schema([("pair", pa.binary()), ("chosen", _NUMBERS), ("rejected", _NUMBERS)])
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")


def weights_digest(folder: str) -> str:
    """sha256 over the weight files of a model folder and its ``config.json``, in order of their names.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in _WEIGHT_FILES)
    if not files:
        raise FileNotFoundError(f"{folder}: no weight files ({', '.join(_WEIGHT_FILES)}) to identify the reference by")
    digest = hashlib.sha256()
    total = sum(p.stat().st_size for p in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Hashing reference weights", disable=total < 1 << 30) as bar:
        for path in files:
            digest.update(path.name.encode())
            feed(digest, path, bar.update)
    digest.update(config_content(Path(folder) / "config.json"))
    return digest.hexdigest()


def config_content(path: Path) -> bytes:
    """What of a model's ``config.json`` changes its numbers: transformers rewrites its own version into the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("transformers_version", None)
    return json.dumps(content, sort_keys=True).encode()


def adapter_digest(folder: str) -> str:
    """sha256 over the weights of a PEFT adapter's folder and its configuration.

    Raises:
        FileNotFoundError: the folder holds no adapter.
    """
    path = Path(os.path.expanduser(folder))
    weights = [p for p in (path / f"adapter_model{suffix}" for suffix in (".safetensors", ".bin")) if p.is_file()]
    config = path / "adapter_config.json"
    if not weights or not config.is_file():
        raise FileNotFoundError(f"{folder}: no adapter (adapter_config.json with adapter_model.safetensors)")
    content = json.loads(config.read_text(encoding="utf-8"))
    # where the adapter came from, and whether it was to be trained, are no part of it
    for name in ("base_model_name_or_path", "inference_mode", "peft_version", "revision"):
        content.pop(name, None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    # PEFT takes the first
    digest.update(weights[0].read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReferenceIdentity:
    """What reference log-probs depend on besides the tokens of prompt and answer.

    bfloat16 rounds differently in each way of computing, so a reference cached in one way and a policy run in
    another would not agree even on equal weights.
    """

    weights: str
    model_dtype: str
    compute_dtype: str
    backend: str
    attention: str
    layers: str
    packed: bool
    sequence_parallel: int
    model_overrides: str
    device: str

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


class ReferenceCache:
    """Token log-probs of answers, looked up by the digest of prompt, answer and mask, whatever examples they are in.

    Parts are parquet files, each written whole and renamed into place, so that a killed pass loses one part at most
    and runs may share a cache. A part's name is the digest of its content: parquet's own checksums, which are written
    too for other readers, leave the headers out. What does not fit its name is set aside and its answers are computed
    again; so is, but for the setting aside, what cannot be read. A folder that cannot be written is a warning: the
    scores are then kept for this run alone.
    """

    def __init__(self, root: str, identity: ReferenceIdentity):
        self.folder = Path(root) / identity.digest()
        self._rows: dict[bytes, np.ndarray] = {}
        self._unsaved: list[bytes] = []
        self._writable = True
        note = self.folder / "identity.json"
        if not os.path.exists(note):  # unlike Path's, says no where it may not look
            self._write(note, json.dumps(asdict(identity), indent=1).encode())

    def load(self, wanted: set[bytes], pairs: Callable[[], Mapping[bytes, tuple[bytes, bytes]]] | None = None) -> int:
        """Read what the folder holds of ``wanted``; returns how many answers were found.

        Args:
            pairs: gives the digests of chosen and rejected answers by the digest of their pair, by which parts of
                earlier versions know them. Asked for where there is such a part.
        """
        old, of_pairs = 0, None
        for part in sorted(self.folder.glob("part-*.parquet")):
            if len(part.stem) != len(_part_name(b"")):
                old += 1
                continue
            table = self._read(part)
            if table is None:
                continue
            if "pair" not in table.column_names:
                self._take(wanted, table["answer"], table["log_probs"])
            elif pairs is not None:
                of_pairs = pairs() if of_pairs is None else of_pairs
                for key, *sides in zip(table["pair"], table["chosen"], table["rejected"], strict=True):
                    self._take(wanted, of_pairs.get(key.as_py(), ()), sides)
        if old:
            logger.warning(
                "reference cache %s: %d part(s) of an earlier version have no checksum and are left alone; their "
                "answers are computed again, and the files can be deleted",
                self.folder,
                old,
            )
        return len(self._rows)

    def _take(self, wanted: set[bytes], keys: Iterable[Any], values: Iterable[Any]) -> None:
        for key, log_probs in zip(keys, values):
            key = key if isinstance(key, bytes) else key.as_py()
            if key in wanted:
                self._rows[key] = log_probs.values.to_numpy(zero_copy_only=False).copy()

    def _read(self, part: Path) -> pa.Table | None:
        try:
            content = part.read_bytes()
            if part.stem == _part_name(content):
                known = _PAIRS if "pair" in pq.read_schema(pa.BufferReader(content)).names else _SCHEMA
                return pq.read_table(pa.BufferReader(content), schema=known, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            logger.warning("reference cache: %s cannot be read (%s); its answers are computed again", part, error)
            return None
        aside = part.with_name(f"{part.name}.damaged")
        where = f"It is kept as {aside.name}"
        try:
            os.rename(part, aside)
        except OSError as error:
            where = f"It cannot be renamed ({error.strerror}); delete it"
        logger.warning(
            "reference cache: %s is damaged, its content is not what was written (a bad disk or copy?); its answers "
            "are computed again. %s.",
            part,
            where,
        )
        return None

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> np.ndarray:
        return self._rows[key]

    def put(self, key: bytes, log_probs: np.ndarray) -> None:
        if key not in self._rows:
            self._rows[key] = log_probs
            self._unsaved.append(key)

    def save(self) -> None:
        """Write what was put since the last call as one more part."""
        if not self._unsaved:
            return
        columns = {"answer": self._unsaved, "log_probs": [self._rows[key] for key in self._unsaved]}
        table = pa.table(columns, schema=_SCHEMA)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        content = sink.getvalue().to_pybytes()
        self._write(self.folder / f"{_part_name(content)}.parquet", content)
        self._unsaved = []

    def _write(self, path: Path, content: bytes) -> None:
        if not self._writable:
            return
        try:
            write_atomically(path, content)
        except OSError as error:
            # the scores themselves are there: no reason to end a run that may have taken hours for them
            self._writable = False
            logger.warning("reference cache: %s; scores are kept for this run only, the next computes them anew", error)


def _part_name(content: bytes) -> str:
    return f"part-{hashlib.sha256(content).hexdigest()[:32]}"
