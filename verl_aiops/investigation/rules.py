"""A baseline without a model: the deepest anomalous callee along the call graph.

A service is anomalous where more of its calls fail during the trouble than before, where they take much longer, where a
metric has left its usual range, or where errors are logged that were not. Of those that the requests of the alert reach
and that call nothing anomalous, the most anomalous is the root cause. The reason is the listed one that most of the
words around it name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from verl_aiops.investigation.case import Case, Edge
from verl_aiops.investigation.signals import Span
from verl_aiops.investigation.tools.index import Index, index_of
from verl_aiops.investigation.tools.metrics import summary_of
from verl_aiops.investigation.tools.services import calls_of
from verl_aiops.investigation.tools.traces import failed
from verl_aiops.investigation.verdict import NO_FAULT, NOT_ENOUGH

__all__ = ["rule_verdict"]

# From where on a sign counts: share of calls that fail beyond what is usual, 95th percentile in multiples of the usual,
# means in spreads of before, error lines beyond those of an equal time before.
_FAILING, _SLOWER, _MOVED, _ERRORS = 0.15, 3.0, 6.0, 1
_OPERATION = re.compile(r"[(（]([A-Z]+ \S+?)[)）]")
_WORD = re.compile(r"[a-z]{2,}")


class _Sign(NamedTuple):
    """Why a service is anomalous, how much by (1: just so), and the words that it says it in."""

    strength: float
    words: str


def rule_verdict(case: Case) -> dict[str, Any]:
    """The verdict of the rule, in the form that a model gives it. Deterministic; reads the signals, never the truth."""
    index = index_of(case)
    signs = _signs(index)
    calls = defaultdict(set)
    for edge in calls_of(index):
        calls[edge.source].add(edge.target)
    reached = _reached(index)
    ill = {name for name in signs if name in reached} or set(signs)
    if not ill:
        silent = any("silent" in note.text or "no metrics" in note.text for note in index.events)
        return {"root_causes": [], "verdict": NOT_ENOUGH if silent else NO_FAULT}
    deepest = [name for name in ill if not calls[name] & ill] or sorted(ill)
    root = max(sorted(deepest), key=lambda name: sum(sign.strength for sign in signs[name]))
    cause = {"component": root}
    reason = _reason(case, signs[root])
    if reason:
        cause["reason"] = reason
    path = [{"from": edge.source, "to": edge.target} for edge in _path(root, ill, calls)]
    return {"root_causes": [cause], "propagation": path, "evidence": []}


def _signs(index: Index) -> dict[str, list[_Sign]]:
    signs: defaultdict[str, list[_Sign]] = defaultdict(list)
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    for span in index.spans:
        spans[span.service].append(span)
    for service, rows in spans.items():
        signs[service] += _requests(rows, index.since)
    for series in index.case.signals.metrics:
        moved = abs(summary_of(series, index.since).moved)
        if moved >= _MOVED:
            signs[series.service].append(_Sign(min(5.0, moved / _MOVED), series.name))
    for service, places in index.logs_of.items():
        signs[service] += _errors(index, places)
    return {name: rows for name, rows in signs.items() if rows}


def _parted(rows: list[Span], since: float | None) -> tuple[list[Span], list[Span]]:
    if since is None:
        return [], rows
    return [s for s in rows if (s.time or 0.0) < since], [s for s in rows if (s.time or 0.0) >= since]


def _requests(rows: list[Span], since: float | None) -> list[_Sign]:
    before, during = _parted(rows, since)
    if not during:
        return []
    found = []
    usual = sum(map(failed, before)) / len(before) if before else 0.0
    share = sum(map(failed, during)) / len(during) - usual
    if share >= _FAILING:
        words = " ".join(dict.fromkeys(span.status or "" for span in during if failed(span)))
        found.append(_Sign(share / _FAILING, words))
    slow, quick = _high(during), _high(before)
    if quick and slow and slow > _SLOWER * quick:
        found.append(_Sign(min(5.0, slow / quick / _SLOWER), "latency slow"))
    return found


def _high(spans: list[Span]) -> float | None:
    took = sorted(span.duration_ms for span in spans if span.duration_ms is not None)
    return took[min(len(took) - 1, int(0.95 * len(took)))] if took else None


def _errors(index: Index, places: list[int]) -> list[_Sign]:
    bad = [index.logs[at] for at in places if (index.log_ranks[at] or 0) >= 3]
    since = index.since
    during = [line for line in bad if since is None or line.time is None or line.time >= since]
    if len(during) - (len(bad) - len(during)) < _ERRORS:
        return []
    return [_Sign(1.0, " ".join(line.text for line in during[:5]))]


def _reached(index: Index) -> set[str]:
    """The services of requests like the alert's; all of them where the alert names no request that was traced."""
    operation = _OPERATION.search(index.case.symptom)
    on_it = {span.service for span in index.spans if operation and span.operation == operation[1]}
    return on_it or set(index.case.services)


def _path(root: str, ill: set[str], calls: dict[str, set[str]]) -> list[Edge]:
    """From the root up to who calls it, as far as they are anomalous too."""
    path: list[Edge] = []
    seen = {root}
    while True:
        above = sorted(name for name in ill - seen if root in calls[name])
        if not above:
            return path
        path.append(Edge(root, above[0]))
        root = above[0]
        seen.add(root)


def _reason(case: Case, signs: list[_Sign]) -> str | None:
    """The listed reason that shares most words with what was seen; the first of them in alphabet where none does."""
    if not case.reasons:
        return None
    said = Counter(word for sign in signs for word in _WORD.findall(sign.words.lower()))
    return max(sorted(case.reasons), key=lambda name: sum(said[word] for word in _WORD.findall(name.lower())))
