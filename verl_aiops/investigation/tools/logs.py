"""search_logs: lines by service, level, words and time; equal lines are one, with how often."""

from __future__ import annotations

from collections.abc import Iterable

from verl_aiops.investigation.signals import LogLine
from verl_aiops.investigation.tools.arguments import Arguments, BadCall
from verl_aiops.investigation.tools.index import Index, rank_of
from verl_aiops.investigation.tools.text import Page, ToolAnswer, fact, page_of

__all__ = ["search_logs"]

_LEVELS = "DEBUG, INFO, WARN, ERROR, FATAL"


def search_logs(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    service = arguments.service()
    level, words = arguments.text("level"), arguments.text("contains")
    start, end = arguments.window()
    least = rank_of(level)
    if level is not None and least is None:
        raise BadCall(f"argument level: expected one of {_LEVELS}, found '{fact(level, 40)}'")
    wanted = tuple(word for word in (part.strip() for part in (words or "").lower().split("|")) if word)
    places: Iterable[int] = range(len(index.logs)) if service is None else index.logs_of.get(service, ())
    if least is not None:
        ranks = index.log_ranks
        # a level of another name is one that nobody can rank: better shown than lost
        places = [at for at in places if (rank := ranks[at]) is None or rank >= least]
    if wanted:
        texts = index.log_texts
        places = [at for at in places if any(word in texts[at] for word in wanted)]
    lines = [index.logs[at] for at in places]
    if start is not None or end is not None:
        low, high = float("-inf") if start is None else start, float("inf") if end is None else end
        lines = [line for line in lines if line.time is None or low <= line.time <= high]
    rows = _together(lines)
    return page_of(_head(service, level, words), rows, lambda row: _line(index, *row), page)


def _together(lines: list[LogLine]) -> list[tuple[LogLine, int, LogLine]]:
    """Equal lines of a service as one: the first, how many there are, the last. In order of the first."""
    table: dict[tuple[str, str | None, str], tuple[LogLine, int, LogLine]] = {}
    for line in lines:
        key = (line.service, line.level, line.text)
        first, count, _ = table.get(key, (line, 0, line))
        table[key] = (first, count + 1, line)
    return list(table.values())


def _line(index: Index, first: LogLine, count: int, last: LogLine) -> str:
    often = f" (x{count}, last {index.clock.of(last.time)})" if count > 1 else ""
    # a line without a time of its own that names its service carries all of it in its text
    if first.time is None and first.service in first.text:
        return f"{fact(first.text)}{often}"
    level = f"{fact(first.level, 20)} " if first.level else ""
    return f"{index.clock.of(first.time)} {fact(first.service, 60)} {level}{fact(first.text)}{often}"


def _head(service: str | None, level: str | None, words: str | None) -> str:
    head = f"log lines of {fact(service, 60) if service else 'all services'}"
    if level:
        head += f" level {fact(level, 20).upper()} or worse"
    return head + (f" with '{fact(words, 60)}'" if words else "")
