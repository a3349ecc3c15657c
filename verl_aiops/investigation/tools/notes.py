"""list_events and list_changes: what the platform said, and what people changed."""

from __future__ import annotations

from verl_aiops.investigation.signals import Note
from verl_aiops.investigation.tools.arguments import Arguments
from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.text import Page, ToolAnswer, fact, page_of

__all__ = ["list_changes", "list_events"]


def list_events(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    return _notes("events", index.events, index, arguments, page)


def list_changes(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    """The latest first: what brought the trouble about is rarely the oldest."""
    return _notes("changes, the latest first", index.changes[::-1], index, arguments, page)


def _notes(what: str, notes: list[Note], index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    service = arguments.service()
    start, end = arguments.window()
    low, high = float("-inf") if start is None else start, float("inf") if end is None else end
    rows = [
        note
        for note in notes
        if (service is None or note.service == service) and (note.time is None or low <= note.time <= high)
    ]
    head = f"{what}{f' of {fact(service, 60)}' if service else ''}"
    return page_of(head, rows, lambda note: _line(index, note), page)


def _line(index: Index, note: Note) -> str:
    parts = [index.clock.of(note.time), fact(note.service or "", 60), f"{fact(note.kind, 40)}:" if note.kind else ""]
    return " ".join([*filter(None, parts), fact(note.text)])
