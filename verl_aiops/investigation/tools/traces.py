"""query_traces: requests that failed or took long, or all spans of one of them as a tree."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from verl_aiops.investigation.signals import Span
from verl_aiops.investigation.tools.arguments import Arguments, BadCall
from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.text import Page, ToolAnswer, amount, fact, page_of

__all__ = ["failed", "query_traces"]

# What a span says that is well; the status of HTTP and gRPC included.
_WELL = frozenset({"", "ok", "unset", "0", "success", "true", "none", "status_code_ok", "status_code_unset"})
_DEEP = 30


def failed(span: Span) -> bool:
    """Whether a span says that it failed."""
    status = (span.status or "").strip().lower()
    return status not in _WELL and not (len(status) == 3 and status.isdecimal() and status[0] in "123")


class _Trace(NamedTuple):
    """A request in short: its first span, how long it took in all, the services whose spans failed."""

    trace: str
    first: Span
    took: float | None
    spans: int
    failing: tuple[str, ...]
    services: frozenset[str]


def _traces(index: Index) -> list[_Trace]:
    kept = index.kept.get("traces")
    if not isinstance(kept, list):
        kept = index.kept["traces"] = [_short(name, spans) for name, spans in index.traces.items()]
    return kept


def _short(trace: str, spans: list[Span]) -> _Trace:
    ids = {span.span for span in spans}
    first = next((span for span in spans if span.parent is None or span.parent not in ids), spans[0])
    took = max((span.duration_ms for span in spans if span.duration_ms is not None), default=None)
    failing = dict.fromkeys(f"{span.service} {span.status}" for span in spans if failed(span))
    return _Trace(trace, first, took, len(spans), tuple(failing), frozenset(span.service for span in spans))


def query_traces(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    trace = arguments.text("trace")
    if trace is not None:
        return _tree(index, trace, page)
    service, operation = arguments.service(), arguments.text("operation")
    status, least = arguments.text("status"), arguments.amount("min_ms")
    start, end = arguments.window()
    if status is not None and status.lower() not in ("error", "ok", "any"):
        raise BadCall(f"argument status: expected error, ok or any, found '{fact(status, 40)}'")
    rows = _traces(index)
    if service is not None:
        rows = [row for row in rows if service in row.services]
    if operation is not None:
        part = operation.lower()
        rows = [row for row in rows if part in (row.first.operation or "").lower()]
    if status is not None and status.lower() != "any":
        rows = [row for row in rows if bool(row.failing) == (status.lower() == "error")]
    if least is not None:
        rows = [row for row in rows if row.took is not None and row.took >= least]
    if start is not None or end is not None:
        low, high = float("-inf") if start is None else start, float("inf") if end is None else end
        rows = [row for row in rows if row.first.time is None or low <= row.first.time <= high]
    # those that failed first, then the slowest: what is looked for stands on the first page
    rows = sorted(rows, key=lambda row: (not row.failing, -(row.took or 0.0)))
    head = f"traces{f' through {fact(service, 60)}' if service else ''}"
    return page_of(head, rows, lambda row: _line(index, row), page)


def _line(index: Index, row: _Trace) -> str:
    took = "" if row.took is None else f" {amount(row.took)} ms"
    failing = f", failed: {', '.join(fact(name, 80) for name in row.failing[:5])}" if row.failing else ", ok"
    more = f" and {len(row.failing) - 5} more" if len(row.failing) > 5 else ""
    return (
        f"trace {fact(row.trace, 40)} {index.clock.of(row.first.time)} {fact(row.first.service, 60)} "
        f"{fact(row.first.operation or '', 80)}{took}, {row.spans} spans{failing}{more}"
    )


def _tree(index: Index, trace: str, page: Page) -> ToolAnswer:
    spans = index.traces.get(trace)
    if spans is None:
        near = ", ".join(fact(name, 40) for name in list(index.traces)[:3])
        raise BadCall(f"argument trace: no trace '{fact(trace, 60)}' here" + (f"; there are {near}" if near else ""))
    below: defaultdict[str | None, list[Span]] = defaultdict(list)
    ids = {span.span for span in spans}
    for span in spans:
        below[span.parent if span.parent in ids and span.parent != span.span else None].append(span)
    rows: list[tuple[int, Span]] = []
    seen: set[int] = set()
    # spans that call each other in a circle hang below none: they follow at the end
    left = [(0, span) for span in reversed(spans)] + [(0, span) for span in reversed(below[None])]
    while left:
        depth, span = left.pop()
        if id(span) not in seen:
            seen.add(id(span))
            rows.append((depth, span))
            left += [(depth + 1, child) for child in reversed(below.get(span.span, ()))]
    return page_of(f"spans of trace {fact(trace, 40)}", rows, lambda row: _span(index, *row), page)


def _span(index: Index, depth: int, span: Span) -> str:
    took = "" if span.duration_ms is None else f" {amount(span.duration_ms)} ms"
    status = fact(span.status or "ok", 60)
    indent = "> " * min(depth, _DEEP)
    when = index.clock.of(span.time)
    return f"{indent}{when} {fact(span.service, 60)} {fact(span.operation or '', 80)}{took} {status}"
