"""Reference log-probs on disk: computed once per model, way of computing, and pair of token sequences."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from verl_aiops.files import write_atomically

__all__ = ["ReferenceCache", "ReferenceIdentity", "adapter_digest", "default_cache_dir", "weights_digest"]

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema([("pair", pa.binary()), ("chosen", pa.list_(pa.float32())), ("rejected", pa.list_(pa.float32()))])
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")


def default_cache_dir(kind: str = "reference") -> str:
    """``$VERL_AIOPS_CACHE/KIND``, or a folder under the user's cache directory."""
    root = os.environ.get("VERL_AIOPS_CACHE") or os.path.join("~", ".cache", "verl-aiops")
    return os.path.join(os.path.expanduser(root), kind)


def weights_digest(folder: str) -> str:
    """sha256 over the weight files of a model folder and its ``config.json``, in order of their names.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in _WEIGHT_FILES)
    if not files:
        raise FileNotFoundError(f"{folder}: no weight files ({', '.join(_WEIGHT_FILES)}) to identify the reference by")
    digest = hashlib.sha256()
    config = Path(folder) / "config.json"
    total = sum(p.stat().st_size for p in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Hashing reference weights", disable=total < 1 << 30) as bar:
        for path in [*files, config]:
            if path == config:
                # only what changes the numbers: transformers rewrites its own version into the file
                content = json.loads(path.read_text())
                content.pop("transformers_version", None)
                digest.update(json.dumps(content, sort_keys=True).encode())
                continue
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
                    bar.update(len(chunk))
    return digest.hexdigest()


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
    """What reference log-probs depend on besides the tokens of a pair.

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
    """Token log-probs of chosen and rejected answers, looked up by the digest of the pair's tokens and masks.

    Parts are parquet files, each written whole and renamed into place, so that a killed pass loses one part at most
    and runs may share a cache. A part's name is the digest of its content: parquet's own checksums, which are written
    too for other readers, leave the headers out. What does not fit its name is set aside and its pairs are computed
    again; so is, but for the setting aside, what cannot be read. A folder that cannot be written is a warning: the
    scores are then kept for this run alone.
    """

    def __init__(self, root: str, identity: ReferenceIdentity):
        self.folder = Path(root) / identity.digest()
        self._rows: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._unsaved: list[bytes] = []
        self._writable = True
        note = self.folder / "identity.json"
        if not os.path.exists(note):  # unlike Path's, says no where it may not look
            self._write(note, json.dumps(asdict(identity), indent=1).encode())

    def load(self, wanted: set[bytes]) -> int:
        """Read what the folder holds of ``wanted``; returns how many pairs were found."""
        old = 0
        for part in sorted(self.folder.glob("part-*.parquet")):
            if len(part.stem) != len(_part_name(b"")):
                old += 1
                continue
            table = self._read(part)
            if table is None:
                continue
            for key, chosen, rejected in zip(*(table[c] for c in ("pair", "chosen", "rejected")), strict=True):
                if key.as_py() in wanted:
                    self._rows[key.as_py()] = (
                        chosen.values.to_numpy(zero_copy_only=False).copy(),
                        rejected.values.to_numpy(zero_copy_only=False).copy(),
                    )
        if old:
            logger.warning(
                "reference cache %s: %d part(s) of an earlier version have no checksum and are left alone; their pairs "
                "are computed again, and the files can be deleted",
                self.folder,
                old,
            )
        return len(self._rows)

    def _read(self, part: Path) -> pa.Table | None:
        try:
            content = part.read_bytes()
            if part.stem == _part_name(content):
                return pq.read_table(pa.BufferReader(content), schema=_SCHEMA, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            logger.warning("reference cache: %s cannot be read (%s); its pairs are computed again", part, error)
            return None
        aside = part.with_name(f"{part.name}.damaged")
        where = f"It is kept as {aside.name}"
        try:
            os.rename(part, aside)
        except OSError as error:
            where = f"It cannot be renamed ({error.strerror}); delete it"
        logger.warning(
            "reference cache: %s is damaged, its content is not what was written (a bad disk or copy?); its pairs are "
            "computed again. %s.",
            part,
            where,
        )
        return None

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        return self._rows[key]

    def put(self, key: bytes, chosen: np.ndarray, rejected: np.ndarray) -> None:
        if key not in self._rows:
            self._rows[key] = (chosen, rejected)
            self._unsaved.append(key)

    def save(self) -> None:
        """Write what was put since the last call as one more part."""
        if not self._unsaved:
            return
        table = pa.table(
            {
                "pair": self._unsaved,
                "chosen": [self._rows[k][0] for k in self._unsaved],
                "rejected": [self._rows[k][1] for k in self._unsaved],
            },
            schema=_SCHEMA,
        )
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
