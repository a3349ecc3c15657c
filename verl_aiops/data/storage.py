"""Tokenised pairs in flat arrays: a few bytes a token instead of a Python object each."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_aiops.data.tokens import EncodedPair

__all__ = ["PairStore", "Ragged", "as_array", "from_array"]


class Ragged:
    """Append sequences, then `freeze`; afterwards `ragged[i]` is the i-th as a view on one read-only numpy array."""

    def __init__(self, typecode: str):
        self._growing, self._growing_ends = array(typecode), array("q", [0])
        self.values = self.ends = np.empty(0)

    def append(self, values: Sequence[int]) -> None:
        self._growing.extend(values)
        self._growing_ends.append(len(self._growing))

    def freeze(self) -> None:
        self._set(np.array(self._growing), np.array(self._growing_ends))
        self._growing, self._growing_ends = self._growing[:0], self._growing_ends[:0]

    @classmethod
    def of(cls, values: np.ndarray, ends: np.ndarray) -> Ragged:
        """A frozen object of all values, and the ends of the sequences after a leading 0."""
        ragged = cls(values.dtype.char)
        ragged._set(values, ends)
        return ragged

    def _set(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, ends
        self.values.flags.writeable = False

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.ends[index] : self.ends[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self.ends)


class PairStore:
    """What `PreferenceDataset` has of its pairs. Append, then `freeze`; only then read."""

    def __init__(self) -> None:
        self._ids = {part: Ragged("i") for part in ("prompt", "chosen", "rejected")}
        self._masks = {part: Ragged("B") for part in ("chosen", "rejected")}
        self._growing_weights: list[float] = []
        self._weights = np.empty(0)
        self._names: list[str] = []
        self._groups: list[str | None] = []
        self._digests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._names)

    def append(self, pair: EncodedPair, weight: float, name: str, group: str | None) -> None:
        for part, ids in self._ids.items():
            ids.append(getattr(pair, f"{part}_ids"))
        for part, mask in self._masks.items():
            mask.append(getattr(pair, f"{part}_mask"))
        self._growing_weights.append(weight)
        self._names.append(name)
        self._groups.append(group)

    def freeze(self) -> None:
        for ragged in (*self._ids.values(), *self._masks.values()):
            ragged.freeze()
        self._weights = np.array(self._growing_weights, dtype=np.float64)

    def item(self, index: int) -> dict[str, Any]:
        """As `PreferenceDataset` describes it."""
        item: dict[str, Any] = {
            f"{part}_{kind}": torch.from_numpy(ragged[index].astype(np.int64))
            for kind, parts in (("ids", self._ids), ("mask", self._masks))
            for part, ragged in parts.items()
        }
        item |= {"weight": float(self._weights[index]), "index": index}
        return item | {"id": self._names[index], "group": self._groups[index]}

    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected answer: int64 (pairs, 3)."""
        return np.stack([self._ids[part].lengths() for part in ("prompt", "chosen", "rejected")], axis=1)

    def digests(self) -> np.ndarray:
        """SHA-256 of each pair's token ids and masks: uint8 (pairs, 32).

        A digest depends on what the model sees of the pair and on nothing else: not on position, id, group or weight.
        """
        if self._digests is None:
            lengths = self.lengths().astype("<i8")
            digests = bytearray()
            for index in range(len(self)):
                row = hashlib.sha256(lengths[index].tobytes())
                for ids in self._ids.values():
                    row.update(ids[index].astype("<i4").tobytes())
                for mask in self._masks.values():
                    row.update(mask[index].tobytes())
                digests += row.digest()
            self._digests = np.frombuffer(bytes(digests), dtype=np.uint8).reshape(-1, 32)
        return self._digests

    def answers(self) -> Iterator[tuple[bytes, bytes]]:
        """Each pair's preferred and other answer after its prompt, as digests."""
        for index in range(len(self)):
            prompt = self._ids["prompt"][index].astype("<i4").tobytes()
            before = len(prompt).to_bytes(8, "little") + prompt
            chosen, rejected = (
                hashlib.sha256(before + self._ids[part][index].astype("<i4").tobytes()).digest()
                for part in ("chosen", "rejected")
            )
            yield chosen, rejected

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for the cache."""
        arrays = {"weights": self._weights, "labels": as_array([self._names, self._groups])}
        for kind, parts in (("ids", self._ids), ("masks", self._masks)):
            for part, ragged in parts.items():
                arrays[f"{part}_{kind}"], arrays[f"{part}_{kind}_ends"] = ragged.values, ragged.ends
        return arrays

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> PairStore:
        """What `arrays` gave, as a frozen object again."""
        store = cls()
        for kind, parts in (("ids", store._ids), ("masks", store._masks)):
            for part in parts:
                parts[part] = Ragged.of(arrays[f"{part}_{kind}"], arrays[f"{part}_{kind}_ends"])
        store._weights = arrays["weights"]
        store._names, store._groups = from_array(arrays["labels"])
        return store


def as_array(value: Any) -> np.ndarray:
    """What JSON can hold, as bytes in an array."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def from_array(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())
