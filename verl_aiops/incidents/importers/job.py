"""What an import source gets and what it is: the job it works on, and its entry in the table of sources."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.incidents.importers.mapping import Entry
from verl_aiops.incidents.schema import Incident

T = TypeVar("T")


@dataclass
class Job:
    """One import: the folder read, the checked mapping, the seed of all random choices, and what was left out so far.

    `left_out` counts by reason; `notes` are remarks for the report that are no losses.
    """

    root: Path
    mapping: Any
    seed: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count something that makes no incident; `reason` says of what it is one and why."""
        self.left_out[reason] += count

    def choices(self, name: str) -> random.Random:
        """A generator for the choices made for `name` alone, so that other records do not change them."""
        return random.Random(f"{self.seed}/{name}")

    def track(self, items: Sequence[T], unit: str) -> Iterable[T]:
        """`items`, with a progress bar on a terminal's stderr."""
        return tqdm(items, unit=unit, disable=None, file=sys.stderr, leave=False)

    def folders(self, pattern: str, expected: str) -> list[Path]:
        """The folders that match `pattern` under the root, sorted; raises IncidentError if there are none."""
        found = sorted(path for path in self.root.glob(pattern) if path.is_dir())
        if not found:
            raise IncidentError(f"{self.root}: expected {expected}, found none; name the folder that holds them")
        return found


@dataclass(frozen=True)
class Source:
    """A public data set that can be imported.

    `files` are glob patterns, any of which tells the data set by its files. `check` turns the entries of a mapping file
    into what `read` takes as `job.mapping`; both raise IncidentError. `licence_files` are the authors' own notices, by
    their names in the data set; they are copied beside what is written.
    """

    name: str
    title: str
    homepage: str
    expects: str
    files: tuple[str, ...]
    licence: str
    citation: str
    changes: str
    licence_files: tuple[str, ...]
    check: Callable[[Entry], Any]
    read: Callable[[Job], Iterator[Incident]]
