"""list_services and get_topology: what there is, and who calls whom, with what the spans say of each call."""

from __future__ import annotations

from collections import Counter, defaultdict

from verl_aiops.investigation.case import Edge
from verl_aiops.investigation.signals import Span
from verl_aiops.investigation.tools.arguments import Arguments
from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.text import Page, ToolAnswer, amount, fact, page_of
from verl_aiops.investigation.tools.traces import failed

__all__ = ["calls_of", "get_topology", "list_services"]


def list_services(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    kept = index.kept.get("services")
    if not isinstance(kept, list):
        kept = index.kept["services"] = _services(index)
    return page_of("services", kept, str, page)


def _services(index: Index) -> list[str]:
    spans = Counter(span.service for span in index.spans)
    lines = []
    for name in index.case.services:
        places = index.logs_of.get(name, ())
        bad = sum((index.log_ranks[at] or 0) >= 3 for at in places)
        parts = [
            f"{len(places)} log lines" + (f" ({bad} ERROR)" if bad else "") if places else "",
            f"{len(index.metrics_of.get(name, ()))} metrics" if name in index.metrics_of else "",
            f"{spans[name]} spans" if spans[name] else "",
        ]
        told = ", ".join(filter(None, parts))
        lines.append(f"{fact(name, 60)}: {told or 'no telemetry'}")
    return lines


def calls_of(index: Index) -> dict[Edge, list[Span]]:
    """Spans by the call that they are: the service of the span above, and their own. In order of appearance.

    Calls of the topology that no span shows have none.
    """
    kept = index.kept.get("calls")
    if not isinstance(kept, dict):
        table: defaultdict[Edge, list[Span]] = defaultdict(list)
        for edge in index.case.topology:
            table[edge] = []
        for spans in index.traces.values():
            by_id = {span.span: span for span in spans}
            for span in spans:
                above = by_id.get(span.parent) if span.parent is not None else None
                if above is not None and above.service != span.service:
                    table[Edge(above.service, span.service)].append(span)
        kept = index.kept["calls"] = dict(table)
    return kept


def get_topology(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    service = arguments.service()
    kept = index.kept.get("topology")
    if not isinstance(kept, list):
        kept = index.kept["topology"] = [(edge, _call(index, edge, spans)) for edge, spans in calls_of(index).items()]
    rows = [text for edge, text in kept if service is None or service in edge]
    return page_of(f"calls{f' of {fact(service, 60)}' if service else ''} (caller -> called)", rows, str, page)


def _call(index: Index, edge: Edge, spans: list[Span]) -> str:
    text = f"{fact(edge.source, 60)} -> {fact(edge.target, 60)}"
    if not spans:
        return text
    since = index.since
    during = [span for span in spans if since is None or span.time is None or span.time >= since]
    before = [span for span in spans if since is not None and span.time is not None and span.time < since]
    parts = [f"{name} {_side(side)}" for name, side in (("before", before), ("during", during)) if side]
    return f"{text}: {'; '.join(parts)}"


def _side(spans: list[Span]) -> str:
    took = sorted(span.duration_ms for span in spans if span.duration_ms is not None)
    high = f", p95 {amount(took[min(len(took) - 1, int(0.95 * len(took)))])} ms" if took else ""
    bad = sum(map(failed, spans))
    return f"{len(spans)} calls, {bad} failed{high}"
