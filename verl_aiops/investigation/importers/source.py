"""What an import of cases is: its entry in the table, and the job that it works on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.signals import LogLine, Span
from verl_aiops.investigation.tools.index import rank_of
from verl_aiops.investigation.tools.traces import failed

__all__ = ["CaseJob", "CaseSource", "bounded_logs", "bounded_spans", "calls_of_spans", "service_of_pod", "shortened"]

T = TypeVar("T")
# What a case keeps at most: a data set may have a gigabyte of log lines in ten minutes.
MOST_LOGS, MOST_SPANS, MOST_CHARS = 20_000, 20_000, 4_000


@dataclass
class CaseJob:
    """One import: the folder read, the user's mapping file if there is one, and what was left out, by reason."""

    root: Path
    mapping: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] += count

    def folders(self, pattern: str, expected: str) -> list[Path]:
        """Folders under the root that match, sorted; raises IncidentError where there are none."""
        found = sorted(path.parent for path in self.root.glob(pattern) if path.is_file())
        if not found:
            raise IncidentError(f"{self.root}: expected {expected}, found none; name the folder that holds them")
        return found


@dataclass(frozen=True)
class CaseSource:
    """A kind of data that cases can be made of. `licence` says what it allows, as its authors do."""

    name: str
    title: str
    homepage: str
    expects: str
    licence: str
    citation: str
    read: Callable[[CaseJob], Iterator[Case]]


def service_of_pod(name: str) -> str:
    """The workload of a pod by its name: without the hashes of a Deployment, or the number of a StatefulSet."""
    parts = name.split("-")
    if len(parts) > 2 and _is_hash(parts[-1]) and len(parts[-1]) == 5 and _is_hash(parts[-2]):
        return "-".join(parts[:-2])
    if len(parts) > 1 and parts[-1].isdecimal() and len(parts[-1]) < 4:
        return "-".join(parts[:-1])
    return name


def _is_hash(part: str) -> bool:
    # Kubernetes draws from letters without vowels, and digits without those that look like one
    return 5 <= len(part) <= 10 and all(letter in "bcdfghjklmnpqrstvwxz0123456789" for letter in part)


def bounded_logs(job: CaseJob, lines: Iterable[LogLine], most: int = MOST_LOGS) -> tuple[LogLine, ...]:
    """The lines in order of time; of too many all that warn or worse are kept first, and others evenly."""
    rows = sorted(lines, key=lambda line: (line.time or 0.0, line.service, line.text))
    return _bounded(job, rows, lambda line: (rank_of(line.level) or 0) >= 2, most, "log lines: too many for one case")


def bounded_spans(job: CaseJob, spans: Iterable[Span], most: int = MOST_SPANS) -> tuple[Span, ...]:
    """The spans in order of time, whole traces; of too many those that failed are kept first, and others evenly."""
    rows = sorted(spans, key=lambda span: (span.time or 0.0, span.trace, span.span))
    if len(rows) <= most:
        return tuple(rows)
    sizes = Counter(span.trace for span in rows)
    bad = {span.trace for span in rows if failed(span)}
    kept: set[str] = set()
    room = most
    for names in ([name for name in sizes if name in bad], [name for name in sizes if name not in bad]):
        # as many of them, evenly over time, as there would be room for if all had the same number of spans
        share = room * len(names) // max(1, sum(sizes[name] for name in names))
        for name in _evenly(names, share):
            if sizes[name] <= room:
                room -= sizes[name]
                kept.add(name)
    job.leave_out("spans: too many for one case", len(rows) - sum(sizes[name] for name in kept))
    return tuple(span for span in rows if span.trace in kept)


def shortened(job: CaseJob, text: str) -> str:
    """A log line's text, of a long one its beginning, which is counted."""
    if len(text) > MOST_CHARS:
        job.leave_out(f"ends of log lines: more than {MOST_CHARS:,} characters")
    return text[:MOST_CHARS]


def calls_of_spans(spans: Iterable[Span]) -> list[tuple[str, str]]:
    """(caller, called) of every call that the spans show, in order of appearance."""
    rows = list(spans)
    of = {(span.trace, span.span): span.service for span in rows}
    found: dict[tuple[str, str], None] = {}
    for span in rows:
        caller = of.get((span.trace, span.parent)) if span.parent else None
        if caller is not None and caller != span.service:
            found[caller, span.service] = None
    return list(found)


def _bounded(job: CaseJob, rows: list[T], first: Callable[[T], bool], most: int, reason: str) -> tuple[T, ...]:
    if len(rows) <= most:
        return tuple(rows)
    telling = _evenly([at for at, row in enumerate(rows) if first(row)], most)
    known = set(telling)
    rest = _evenly([at for at in range(len(rows)) if at not in known], most - len(telling))
    job.leave_out(reason, len(rows) - most)
    return tuple(rows[at] for at in sorted((*telling, *rest)))


def _evenly(items: list[T], most: int) -> list[T]:
    if most <= 0:
        return []
    return items if len(items) <= most else [items[at * len(items) // most] for at in range(most)]
