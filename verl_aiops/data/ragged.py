"""Sequences of different lengths in one flat array: a few bytes a number instead of a Python object each."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Ragged", "as_array", "from_array", "numbers", "ragged_arrays", "set_ragged"]


class Ragged:
    """Append sequences, then `freeze`; afterwards `ragged[i]` is the i-th as a view on one read-only numpy array."""

    def __init__(self, typecode: str):
        self._growing: array = array(typecode)
        self._growing_ends = array("q", [0])
        self.values = self.ends = np.empty(0)

    def append(self, values: Sequence[float]) -> None:
        self._growing.extend(values)
        self._growing_ends.append(len(self._growing))

    def freeze(self) -> None:
        self._set(numbers(self._growing), numbers(self._growing_ends))
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

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.ends[index] : self.ends[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self.ends)

    def padded(self, width: int, filler: float) -> np.ndarray:
        """All sequences as rows of one array, (sequences, width), `filler` after their ends."""
        rows = np.full((len(self), width), filler, dtype=self.values.dtype)
        rows[np.arange(width) < self.lengths()[:, None]] = self.values
        return rows


def ragged_arrays(owner: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The frozen ones that an object has under `names`, for the cache."""
    arrays = {}
    for name in names:
        ragged = getattr(owner, name)
        arrays[name], arrays[f"{name}_ends"] = ragged.values, ragged.ends
    return arrays


def set_ragged(owner: Any, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Give an object what `ragged_arrays` gave."""
    for name in names:
        setattr(owner, name, Ragged.of(arrays[name], arrays[f"{name}_ends"]))


def numbers(growing: array) -> np.ndarray:
    """Its numbers, without a copy; nothing can be appended afterwards."""
    return np.frombuffer(growing, dtype=growing.typecode) if len(growing) else np.array(growing, growing.typecode)


def as_array(value: Any) -> np.ndarray:
    """What JSON can hold, as bytes in an array."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def from_array(array: np.ndarray) -> Any:
    return json.loads(array.tobytes())
