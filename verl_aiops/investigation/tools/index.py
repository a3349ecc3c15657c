"""A case made ready for questions: sorted, by service, with lower-case texts. Made once a case, and kept with it."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property

from verl_aiops.incidents.schema import normalise_label
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.signals import LogLine, Note, Series, Span
from verl_aiops.investigation.tools.text import Clock

__all__ = ["Index", "index_of", "rank_of"]

# What services call their levels, by how bad they are.
_RANKS = {
    **dict.fromkeys(("trace", "debug", "verbose", "fine", "d"), 0),
    **dict.fromkeys(("info", "information", "notice", "normal", "i"), 1),
    **dict.fromkeys(("warn", "warning", "w"), 2),
    **dict.fromkeys(("error", "err", "severe", "e"), 3),
    **dict.fromkeys(("fatal", "critical", "crit", "panic", "emerg", "alert", "f"), 4),
}
# How long before the alert the trouble may have begun: what is earlier is `before`.
LOOK_BACK_S = 300.0


def rank_of(level: str | None) -> int | None:
    """0 (trace, debug) to 4 (fatal); None for a level of another name."""
    return _RANKS.get(level.strip().lower()) if level else None


def index_of(case: Case) -> Index:
    """The index of a case; the same one each time."""
    # Not by hash: that of a case would go through all of its telemetry.
    kept = case.__dict__.get("_index")
    if kept is None:
        kept = case.__dict__["_index"] = Index(case)
    return kept


def _time(row: LogLine | Span | Note) -> float:
    return float("-inf") if row.time is None else row.time


class Index:
    """`since` is where `before` ends and `during` begins; None where the case has no alert."""

    def __init__(self, case: Case):
        self.case = case
        signals = case.signals
        self.logs = sorted(signals.logs, key=_time)
        self.spans = sorted(signals.spans, key=_time)
        self.events = sorted(signals.events, key=_time)
        self.changes = sorted(signals.changes, key=_time)
        self.since = None if case.alert is None else case.alert - LOOK_BACK_S

    @cached_property
    def clock(self) -> Clock:
        times = [row.time for rows in (self.logs, self.spans, self.events, self.changes) for row in rows if row.time]
        times += [series.points[at][0] for series in self.case.signals.metrics if series.points for at in (0, -1)]
        return Clock(self.case.alert, min(times, default=None), max(times, default=None))

    @cached_property
    def services(self) -> dict[str, str]:
        """Names as they are, by themselves, by their normalised form and by that without separators."""
        # themselves first: `Cart` and `cart` may be two services
        table = {name: name for name in self.case.services}
        for name in self.case.services:
            plain = normalise_label(name)
            table.setdefault(plain, name)
            table.setdefault("".join(filter(str.isalnum, plain)), name)
        return table

    @cached_property
    def log_texts(self) -> list[str]:
        return [line.text.lower() for line in self.logs]

    @cached_property
    def log_ranks(self) -> list[int | None]:
        return [rank_of(line.level) for line in self.logs]

    @cached_property
    def logs_of(self) -> dict[str, list[int]]:
        """Places in `logs` by service."""
        table: defaultdict[str, list[int]] = defaultdict(list)
        for at, line in enumerate(self.logs):
            table[line.service].append(at)
        return dict(table)

    @cached_property
    def metrics_of(self) -> dict[str, list[Series]]:
        table: defaultdict[str, list[Series]] = defaultdict(list)
        for series in self.case.signals.metrics:
            table[series.service].append(series)
        return dict(table)

    @cached_property
    def traces(self) -> dict[str, list[Span]]:
        """Spans by trace, in order of the traces' first span."""
        table: defaultdict[str, list[Span]] = defaultdict(list)
        for span in self.spans:
            table[span.trace].append(span)
        return dict(table)

    @cached_property
    def kept(self) -> dict[object, object]:
        """What tools have computed of this case already, by their own keys."""
        return {}
