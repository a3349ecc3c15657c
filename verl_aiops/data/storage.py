"""Many short integer sequences in one flat array: a few bytes a token instead of a Python object each."""

from array import array

import numpy as np


class Ragged:
    """Append sequences, then `freeze`; afterwards `ragged[i]` is the i-th as a view on one read-only numpy array."""

    def __init__(self, typecode):
        self._values = array(typecode)
        self._ends = array("q", [0])

    def append(self, values):
        self._values.extend(values)
        self._ends.append(len(self._values))

    def freeze(self):
        self._values, self._ends = np.array(self._values), np.array(self._ends)
        self._values.flags.writeable = False

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Once frozen: all values, and the ends of the sequences after a leading 0."""
        return self._values, self._ends

    @classmethod
    def of(cls, values: np.ndarray, ends: np.ndarray):
        """What `arrays` gave, as a frozen object again."""
        ragged = cls(values.dtype.char)
        ragged._values, ragged._ends = values, ends
        ragged._values.flags.writeable = False
        return ragged

    def __getitem__(self, index):
        return self._values[self._ends[index] : self._ends[index + 1]]

    def lengths(self) -> np.ndarray:
        return np.diff(self._ends)
