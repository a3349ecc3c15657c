"""The tools by name: what each takes, what it is for, and the function that answers. A new one is one entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_aiops.investigation.tools.arguments import Arguments
from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.logs import search_logs
from verl_aiops.investigation.tools.metrics import query_metrics
from verl_aiops.investigation.tools.notes import list_changes, list_events
from verl_aiops.investigation.tools.services import get_topology, list_services
from verl_aiops.investigation.tools.text import Page, ToolAnswer
from verl_aiops.investigation.tools.traces import query_traces

__all__ = ["TOOLS", "Tool"]

_SERVICE = {"service": ("string", "a service's name")}
_WINDOW = {
    "start": ("string", "from this time on, as answers show it"),
    "end": ("string", "up to this time"),
}
_PAGE = {
    "limit": ("integer", "lines at most, default 10"),
    "offset": ("integer", "matches to pass over, for the next page"),
}
_LEVELS = ["DEBUG", "INFO", "WARN", "ERROR", "FATAL"]


@dataclass(frozen=True)
class Tool:
    """`parameters`: name to (JSON type, description, allowed values where there are some). None is required."""

    name: str
    description: str
    parameters: Mapping[str, tuple]
    run: Callable[[Index, Arguments, Page], ToolAnswer]

    def schema(self) -> dict[str, Any]:
        """In OpenAI's function format, as chat templates and verl's `OpenAIFunctionToolSchema` take it."""
        properties: dict[str, dict[str, Any]] = {}
        for name, (kind, description, *values) in self.parameters.items():
            properties[name] = {"type": kind, "description": description, **({"enum": values[0]} if values else {})}
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {"type": "object", "properties": properties, "required": []},
            },
        }


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("list_services", "All services and what telemetry each has.", _PAGE, list_services),
        Tool(
            "get_topology",
            "Who calls whom; with a service, its callers and what it calls. Calls, failures and latency where traced.",
            {**_SERVICE, **_PAGE},
            get_topology,
        ),
        Tool(
            "search_logs",
            "Log lines in order of time, equal ones together.",
            {
                **_SERVICE,
                "level": ("string", "this level or worse", _LEVELS),
                "contains": ("string", "text that the line has; a|b for either"),
                **_WINDOW,
                **_PAGE,
            },
            search_logs,
        ),
        Tool(
            "query_metrics",
            "Mean (least-most) of each metric before and during the trouble, and since when it is another; the most "
            "unusual first. Needs a service or a metric.",
            {**_SERVICE, "metric": ("string", "a metric's name or a part of it"), **_WINDOW, **_PAGE},
            query_metrics,
        ),
        Tool(
            "query_traces",
            "Requests, failed and slow ones first; with a trace's id, its spans as a tree.",
            {
                **_SERVICE,
                "operation": ("string", "a part of the request's name"),
                "status": ("string", "only such requests", ["error", "ok", "any"]),
                "min_ms": ("number", "only requests that took so long"),
                "trace": ("string", "a trace's id"),
                **_WINDOW,
                **_PAGE,
            },
            query_traces,
        ),
        Tool("list_events", "What the platform reported.", {**_SERVICE, **_WINDOW, **_PAGE}, list_events),
        Tool(
            "list_changes",
            "Releases, settings and other changes, the latest first.",
            {**_SERVICE, **_WINDOW, **_PAGE},
            list_changes,
        ),
    )
}
