"""Verdicts that were given before, by content: in memory, and in a folder that workers and runs share.

A verdict's name is a digest of what was asked; neither texts nor answers are written. Each process adds lines to a file
of its own, so that none waits for another, and reads those of all when it starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import OrderedDict
from pathlib import Path

from verl_aiops.inputs.json_text import JsonFault, read_object

__all__ = ["Verdicts"]

_LONGEST = 16  # letters of a verdict: A, B, TIE, 0 to 10


class Verdicts:
    """By digest, what the judge said, or the future that will say it.

    Args:
        size: that are kept in memory.
        folder: None to keep them there alone.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, size: int, folder: str | None = None):
        self.size = size
        self.asked: OrderedDict[str, asyncio.Future] = OrderedDict()
        self._known: dict[str, str] = {}
        self._file: Path | None = None
        if folder is not None:
            place = Path(os.path.expanduser(folder))
            place.mkdir(parents=True, exist_ok=True)
            for file in sorted(place.glob("verdicts-*.jsonl")):
                self._read(file)
            self._file = place / f"verdicts-{secrets.token_hex(8)}.jsonl"

    def _read(self, file: Path) -> None:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    row = read_object(line)
                except JsonFault:
                    continue  # a process was ended while it wrote
                digest, said = row.get("digest"), row.get("said")
                if isinstance(digest, str) and isinstance(said, str) and len(said) <= _LONGEST:
                    self._known[digest] = said

    def find(self, digest: str) -> str | None:
        """What a file has."""
        return self._known.get(digest)

    def remember(self, digest: str, asked: asyncio.Future) -> None:
        """A future, so that whoever asks the same meanwhile waits for this answer; a failure is not kept."""
        self.asked[digest] = asked
        asked.add_done_callback(lambda done: self._done(digest, done))
        while len(self.asked) > self.size:
            self.asked.popitem(last=False)

    def _done(self, digest: str, done: asyncio.Future) -> None:
        if done.cancelled() or done.exception() is not None:
            self.asked.pop(digest, None)
        elif self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"digest": digest, "said": done.result()}) + "\n")
