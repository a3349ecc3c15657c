"""The items of a file that is one JSON array: where each stands, so that rows are read like those of JSON lines.

The text is held in memory, the objects are made one at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["JsonArray", "begins_array"]

_SPACE = re.compile(r"[ \t\r\n]*")
# numbers are not kept here, and Python refuses to read very long ones
_DECODER = json.JSONDecoder(parse_int=bool, parse_float=bool)


def begins_array(path: Path) -> bool:
    """Whether a text file begins as an array of objects, or an empty one."""
    with open(path, "rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return re.match(rb"\[\s*(?:[\{\]]|$)", head) is not None


class JsonArray:
    """`items`: how many; each is known by its number, from 0.

    Raises ValueError for text that is no JSON array; the message says where.
    """

    def __init__(self, path: Path):
        try:
            self._text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 text (byte {error.start})") from None
        self._bounds = np.array(list(self._found()), np.int64).reshape(-1, 3)

    @property
    def items(self) -> int:
        return len(self._bounds)

    def item(self, number: int) -> tuple[int, bytes]:
        """The line that the item begins in, from 1, and its text."""
        start, end, line = self._bounds[number].tolist()
        return line, self._text[start:end].encode("utf-8")

    def _found(self) -> Iterator[tuple[int, int, int]]:
        """(begin, end, line) of each item."""
        at = self._after_space(self._after_space(0) + 1)
        counted, line, number = 0, 1, 0
        while self._text[at : at + 1] != "]" or number:
            line, counted = line + self._text.count("\n", counted, at), at
            try:
                _, end = _DECODER.raw_decode(self._text, at)
            except json.JSONDecodeError as error:
                lost = self._text.count("\n", 0, error.pos) + 1
                cut = "; was it cut short?" if not self._text[error.pos :].strip() else ""
                raise ValueError(
                    f"is no valid JSON array: {error.msg} at line {lost} (item {number + 1}){cut}"
                ) from None
            except RecursionError:
                raise ValueError(f"is no usable JSON array: item {number + 1}, line {line}, is too deep") from None
            yield at, end, line
            number += 1
            at = self._after_space(end)
            mark = self._text[at : at + 1]
            if mark == "]":
                break
            if mark != ",":
                lost = self._text.count("\n", 0, at) + 1
                what = "a comma is missing" if mark else "it ends, was it cut short?"
                raise ValueError(f"is no valid JSON array: behind item {number}, line {lost}, {what}")
            at = self._after_space(at + 1)
        if self._after_space(at + 1) < len(self._text):
            raise ValueError("is no valid JSON array: text follows behind its end")

    def _after_space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at
