"""Reads a simulated incident as someone would who knows how its systems fail: text and candidates in, a verdict out.

Never told are the truth fields. What it knows is what an SRE knows of a system: which metrics a fault moves
(`moves`, `after` of the faults), and that a cause comes before its effects, on the path of the request that fails.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from verl_aiops.incidents import Candidates
from verl_aiops.incidents.simulator import FAULTS
from verl_aiops.incidents.taxonomy import ABSTENTIONS

_STAMP = r"(\d\d)-(\d\d) (\d\d):(\d\d)(?::(\d\d))?"
_SERIES = re.compile(rf"metric {_STAMP} \+1m (\S+) (?:([A-Z]+ \S+) )?(\S+) ([\d ]+) \(usual (\d+)-(\d+)\)$")
_CHANGE = re.compile(rf"change {_STAMP} (\S+) (\w+): ")
_SPAN = re.compile(rf"span {_STAMP} \w+ (\S+) -> (\S+) ([A-Z]+ \S+) \d+ ms ")
_LOG = re.compile(rf"(?:time=)?\[?{_STAMP}\]? ")
_OPERATION = re.compile(r"[(（]([A-Z]+ \S+)[)）]")
_MINUTE = 60


class _Series(NamedTuple):
    """`out`: the times at which it was out of its usual range."""

    subject: str
    operation: str | None
    metric: str
    out: list[int]


def _seconds(groups) -> int:
    """Of a stamp, since the month began."""
    _, day, hour, minute, second = (int(part or 0) for part in groups)
    return ((day * 24 + hour) * 60 + minute) * 60 + second


class Reader:
    """An incident taken apart, by the text that a prompt has of it."""

    def __init__(self, text: str, services: list[str]):
        self.services = services
        symptom, _, data = text.partition("\n")
        self.operation = _OPERATION.search(symptom)[1]
        self.alert = _seconds(re.search(_STAMP, symptom).groups())
        self.series: list[_Series] = []
        self.changes: list[tuple[int, str, str]] = []
        # (time, caller or None, callee) of complaints, own lines and bad spans about the alert's request
        self.told: list[tuple[int, str | None, str]] = []
        for line in data.split("\n"):
            self._read(line)

    def _read(self, line: str) -> None:
        if found := _SERIES.match(line):
            first = _seconds(found.groups()[:5])
            subject, operation, metric, values, low, top = found.groups()[5:]
            samples = enumerate(map(int, values.split()))
            out = [first + _MINUTE * n for n, value in samples if not int(low) <= value <= int(top)]
            self.series.append(_Series(subject, operation, metric, out))
        elif found := _CHANGE.match(line):
            self.changes.append((_seconds(found.groups()[:5]), *found.groups()[5:]))
        elif found := _SPAN.match(line):
            caller, callee, operation = found.groups()[5:]
            if operation == self.operation:
                self.told.append((_seconds(found.groups()[:5]), caller, callee))
        elif (found := _LOG.match(line)) and self.operation in line:
            named = [name for name in self.services if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line)]
            named.sort(key=lambda name: re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line).start())
            if named:
                self.told.append((_seconds(found.groups()), named[0] if len(named) > 1 else None, named[-1]))

    def _near(self, at: int) -> bool:
        """Whether a time is that of the alert: from shortly before it to the minutes after."""
        return self.alert - 4 * _MINUTE < at < self.alert + 10 * _MINUTE

    def began(self, service: str) -> int | None:
        """When a service first left normal, if that was shortly before the alert."""
        times = [min(one.out) for one in self.series if one.subject == service and not one.operation and one.out]
        times = [at for at in times if self.alert - 3 * _MINUTE <= at <= self.alert + _MINUTE]
        return min(times) if times else None

    def verdict(self) -> tuple[str, set[str]]:
        """The service, or `none` or `unknown`, and the metrics of it that moved."""
        edges = {(caller, callee) for at, caller, callee in self.told if self._near(at)}
        entries = {one.subject for one in self.series if one.operation == self.operation}
        on_path = {callee for _, callee in edges} | entries
        ill = {name: began for name in on_path if (began := self.began(name)) is not None}
        if not ill:
            flow = [one for one in self.series if one.operation == self.operation]
            bad = any(self._near(at) for one in flow for at in one.out)
            return ("unknown" if bad else "none"), set()
        first = min(ill.values())
        earliest = [name for name in ill if ill[name] == first]
        # Of those that left normal in the same minute, the one whose calls lead to none of the others.
        deepest = [name for name in earliest if not _below(name, edges).intersection(earliest)]
        service = (deepest or earliest)[0]
        return service, {
            one.metric
            for one in self.series
            if one.subject == service and not one.operation and any(map(self._near, one.out))
        }

    def fault(self, service: str, moved: set[str]) -> str | None:
        """The incident type whose metrics these are, by what was changed before."""
        fits = [fault for fault in FAULTS.values() if fault.moves and set(fault.moves) == moved]
        began = self.began(service)
        changed = {kind for at, name, kind in self.changes if name == service and began - 150 <= at <= began}
        right = [fault.name for fault in fits if (fault.after in changed) or not fault.after]
        told = [fault.name for fault in fits if fault.after and fault.after in changed]
        return (told or right or [None])[0]


def _below(service: str, edges: set[tuple[str | None, str]]) -> set[str]:
    """All that a service calls, directly or not."""
    found: set[str] = set()
    new = {service}
    while new:
        new = {callee for caller, callee in edges if caller in new} - found
        found |= new
    return found


def solve(text: str, candidates: Candidates) -> tuple[str, str | None]:
    """Service and incident type, from the text of an incident and the names that its prompt offers."""
    reader = Reader(text, [name for name in candidates.services if name not in ABSTENTIONS])
    service, moved = reader.verdict()
    return service, service if service in ABSTENTIONS else reader.fault(service, moved)
