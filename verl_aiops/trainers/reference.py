"""Reference log-probs on disk: computed once per model, way of computing, and pair of token sequences."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from verl_aiops.files import write_atomically

__all__ = ["ReferenceCache", "ReferenceIdentity", "default_cache_dir", "weights_digest"]

_SCHEMA = pa.schema([("pair", pa.binary()), ("chosen", pa.list_(pa.float32())), ("rejected", pa.list_(pa.float32()))])
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")


def default_cache_dir(kind: str = "reference") -> str:
    """``$VERL_AIOPS_CACHE/KIND``, or a folder under the user's cache directory."""
    root = os.environ.get("VERL_AIOPS_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "verl-aiops")
    return os.path.join(root, kind)


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
    and runs may share a cache.
    """

    def __init__(self, root: str, identity: ReferenceIdentity):
        self.folder = Path(root) / identity.digest()
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "identity.json"
        if not note.exists():
            write_atomically(note, json.dumps(asdict(identity), indent=1).encode())
        self._rows: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._unsaved: list[bytes] = []

    def load(self, wanted: set[bytes]) -> int:
        """Read what the folder holds of ``wanted``; returns how many pairs were found."""
        for part in sorted(self.folder.glob("part-*.parquet")):
            try:
                table = pq.read_table(part, schema=_SCHEMA)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"reference cache: {part} cannot be read ({error}). Delete the file; its pairs are computed again."
                ) from None
            for key, chosen, rejected in zip(*(table[c] for c in ("pair", "chosen", "rejected")), strict=True):
                if key.as_py() in wanted:
                    self._rows[key.as_py()] = (
                        chosen.values.to_numpy(zero_copy_only=False).copy(),
                        rejected.values.to_numpy(zero_copy_only=False).copy(),
                    )
        return len(self._rows)

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
        name = hashlib.sha256(b"".join(self._unsaved)).hexdigest()[:16]
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(self.folder / f"part-{name}.parquet", sink.getvalue().to_pybytes())
        self._unsaved = []
