"""Names in texts found and swapped for others, whatever their case.

A name is found as a whole word, longest first: `db` is not found in `dbms`, and in `ledger-db` only where that is no
name itself. Letters of another case start a word (`CartService`), digits at the end number instances (`db01`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from verl_aiops.incidents.schema import normalise_label

__all__ = ["NameSwap", "pattern_of"]

_WORD_START = r"(?:(?<![0-9A-Za-z])|(?<=[a-z0-9])(?=[A-Z]))"
_WORD_END = r"(?:(?![0-9A-Za-z])|(?=[0-9]+(?![0-9A-Za-z]))|(?<=[a-z0-9])(?=[A-Z]))"


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """Finds names as whole words, the longest that fits first."""
    return _compiled(tuple(sorted(names, key=lambda name: (-len(name), name))))


@lru_cache(maxsize=256)
def _compiled(names: tuple[str, ...]) -> re.Pattern[str]:
    words: list[str] = []
    others: list[str] = []
    for name in names:
        end = _WORD_END if re.match("[0-9A-Za-z]", name[-1]) else ""
        (words if re.match("[0-9A-Za-z]", name[0]) else others).append(f"(?i:{re.escape(name)}){end}")
    # the start of a word is looked for once, not once per name
    groups = [f"{_WORD_START}(?:{'|'.join(words)})"] if words else []
    return re.compile("|".join(groups + others))


class NameSwap:
    """Replaces names in texts.

    Args:
        names: the new name of each; the case of what is found is kept where it is not the name's own.
    """

    def __init__(self, names: Mapping[str, str]):
        self._names = {normalise_label(name): (name, new) for name, new in names.items()}
        self._pattern = pattern_of(names)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._new(match.group()), text)

    def _new(self, found: str) -> str:
        name, new = self._names.get(normalise_label(found), (found, found))
        if found == name:
            return new
        if found.isupper() and len(found) > 1:
            return new.upper()
        if found.islower():
            return new.lower()
        return new[:1].upper() + new[1:] if found[:1].isupper() else new

    def label(self, name: str) -> str:
        return self._names.get(normalise_label(name), (name, name))[1]

    def part(self, part: str, whole: str) -> str:
        """What ``part`` reads like in the swapped ``whole``, which it occurs in; widened to whole names at its ends."""
        start = whole.index(part)
        end = start + len(part)
        for match in self._pattern.finditer(whole):
            if match.start() < start < match.end():
                start = match.start()
            if match.start() < end < match.end():
                end = match.end()
        return self(whole)[self._moved(whole, start) : self._moved(whole, end)]

    def _moved(self, whole: str, at: int) -> int:
        """Where a place between names of ``whole`` lies in the swapped text."""
        shift = sum(
            len(self._new(match.group())) - len(match.group())
            for match in self._pattern.finditer(whole)
            if match.end() <= at
        )
        return at + shift
