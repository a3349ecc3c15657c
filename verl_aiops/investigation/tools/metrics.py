"""query_metrics: what each series did, before and during the trouble, and where it changed; never the series itself."""

from __future__ import annotations

from typing import NamedTuple

from verl_aiops.investigation.signals import Series
from verl_aiops.investigation.tools.arguments import Arguments, BadCall
from verl_aiops.investigation.tools.index import Index
from verl_aiops.investigation.tools.text import Page, ToolAnswer, amount, fact, page_of

__all__ = ["Summary", "query_metrics", "summary_of"]


class Summary(NamedTuple):
    """Values in the series' own unit; `moved`: the distance of the two means in the usual spread of `before`; 0 where
    one side has no points. `changed`: the time from which on the mean is another; None where there is no such time."""

    before: tuple[float, float, float] | None
    during: tuple[float, float, float] | None
    moved: float
    changed: float | None


def summary_of(series: Series, since: float | None, end: float | None = None) -> Summary:
    """`since` parts before from during; without it the change point does. What lies behind `end` is left out."""
    points = series.points if end is None else [point for point in series.points if point[0] <= end]
    changed = _change_point([value for _, value in points])
    at = None if changed is None else points[changed][0]
    part = since if since is not None else at
    before = [value for time, value in points if part is None or time < part]
    during = [value for time, value in points if part is not None and time >= part]
    moved = 0.0
    if before and during:
        mean = sum(before) / len(before)
        spread = (sum((value - mean) ** 2 for value in before) / len(before)) ** 0.5
        # a flat line has no spread: two in a hundred of its level count as one
        moved = (sum(during) / len(during) - mean) / (spread + 0.02 * abs(mean) + 1e-9)
    return Summary(_three(before), _three(during), moved, at)


def _three(values: list[float]) -> tuple[float, float, float] | None:
    """Least, mean, most."""
    return (min(values), sum(values) / len(values), max(values)) if values else None


def _change_point(values: list[float]) -> int | None:
    """Where the two means beside a cut differ most against the spread within them; None where nothing stands out.

    The cut of least squared error (Hinkley 1970), in one pass over running sums.
    """
    count = len(values)
    if count < 4:
        return None
    # about the mean of all: squares of large numbers would lose the digits that matter
    middle = sum(values) / count
    centred = [value - middle for value in values]
    total = sum(value * value for value in centred)
    running, best, place = 0.0, 0.0, None
    for at in range(1, count):
        running += centred[at - 1]
        gain = running * running * count / (at * (count - at))
        if gain > best:
            best, place = gain, at
    # less than half of the spread explained is no step but noise
    return place if total > 0 and best > 0.5 * total else None


def query_metrics(index: Index, arguments: Arguments, page: Page) -> ToolAnswer:
    service, metric = arguments.service(), arguments.text("metric")
    start, end = arguments.window()
    if service is None and metric is None:
        raise BadCall("give a service, or the name of a metric (or a part of it), or both")
    rows = index.case.signals.metrics if service is None else index.metrics_of.get(service, ())
    if metric is not None:
        part = metric.lower()
        rows = [series for series in rows if part in series.name.lower()]
        if not rows and service is not None:
            names = ", ".join(fact(series.name, 40) for series in index.metrics_of.get(service, ())[:8])
            raise BadCall(f"argument metric: {fact(service, 60)} has no '{fact(metric, 40)}'; it has {names or 'none'}")
    since = start if start is not None else index.since
    found = [(series, _kept(index, series, since, end)) for series in rows]
    found.sort(key=lambda row: -abs(row[1].moved))
    head = f"metrics of {fact(service, 60) if service else 'all services'}"
    head += f" named '{fact(metric, 40)}'" if metric else ""
    head += f" (before | during: from {index.clock.of(since)} on)" if since is not None else ""
    return page_of(head, found, lambda row: _line(index, *row), page)


def _kept(index: Index, series: Series, since: float | None, end: float | None) -> Summary:
    key = (id(series), since, end)
    summary = index.kept.get(key)
    if not isinstance(summary, Summary):
        summary = summary_of(series, since, end)
        # a model that asks for ever new windows is not to fill the memory
        if len(index.kept) < 20_000:
            index.kept[key] = summary
    return summary


def _line(index: Index, series: Series, summary: Summary) -> str:
    unit = f" {fact(series.unit, 20)}" if series.unit else ""
    head = f"{fact(series.service, 60)} {fact(series.name, 80)}{unit}:"
    before, during = summary.before, summary.during
    if not series.points or (before is None and during is None):
        return f"{head} no points"
    if before is None or during is None:
        least, mean, most = during or before or (0.0, 0.0, 0.0)
        when = "during only" if before is None else "no change" if index.since is None else "before only"
        return f"{head} {when}, mean {amount(mean)} ({amount(least)}-{amount(most)})"
    text = (
        f"{head} mean {amount(before[1])} ({amount(before[0])}-{amount(before[2])}) | "
        f"{amount(during[1])} ({amount(during[0])}-{amount(during[2])})"
    )
    if abs(summary.moved) < 3:
        return f"{text} usual"
    way = "up" if summary.moved > 0 else "down"
    return f"{text} {way}{'' if summary.changed is None else f' since {index.clock.of(summary.changed)}'}"
