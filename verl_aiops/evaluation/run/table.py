"""The tables of an evaluation as text, from its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import east_asian_width

from verl_aiops.evaluation.run.summary import slices_shown
from verl_aiops.evaluation.stats.further_fields import fields_shown
from verl_aiops.evaluation.stats.metrics import FIELDS, In, Metric, metrics
from verl_aiops.inputs.shown import counted

__all__ = ["as_columns", "one_line", "render", "share_text", "without_text_said"]

Cells = Sequence[str]

_CLASSES_SHOWN = 30


def render(summary: Mapping[str, Any]) -> str:
    """All tables: overall, slices, classes, several answers, renaming."""
    parts = [_head(summary), _overall(summary["overall"])]
    parts += [_slices(key, slices) for key, slices in slices_shown(summary["by"]).items()]
    parts += [_classes(name, rows) for name, rows in summary["classes"].items() if rows]
    if len(summary["overall"]["pass_at_k"]) > 1:
        parts.append(_several(summary["overall"]))
    if "renamed" in summary:
        parts.append(_drop(summary))
    return "\n\n".join(parts) + "\n"


def _head(summary: Mapping[str, Any]) -> str:
    overall, counts = summary["overall"], summary["counts"]
    lines = [
        f"{counted(overall['incidents'], 'incident')} of {counted(overall['groups'], 'fault')}, "
        f"{counted(overall['answers'], 'answer')}; "
        "95 % intervals over faults"
    ]
    if counts["failed"]:
        lines.append(f"{counts['failed']:,} of {counted(counts['asked'], 'answer')} failed and count in no figure")
        lines[-1] += without_text_said(counts.get("no_text") or {})
    if not counts["complete"]:
        lines.append(f"UNFINISHED: {counts['missing']:,} of {counted(counts['asked'], 'answer')} are missing")
    return "\n".join(lines)


def without_text_said(counts: Mapping[str, int]) -> str:
    """What follows the number of failed answers; `results.without_text`."""
    if not counts:
        return ""
    sorts = ", ".join(f"{count:,} {one_line(sort)}" for sort, count in counts.items())
    return f"; {sum(counts.values()):,} of them replies without text: {sorts}"


def _overall(section: Mapping[str, Any]) -> str:
    rows = [("", "mean", "answers")]
    for name, metric in metrics(In.EVAL, fields_shown(section["metrics"])).items():
        value = section["metrics"].get(name)
        # shares stand there without a value too, so that every table has the same lines
        if value and (value["value"] if metric.optional else value["n"] or metric.digits is None):
            rows.append((metric.title, _shown(value, metric), f"{value['n']:,}"))
    return as_columns(rows)


def _slices(key: str, slices: Mapping[str, Any]) -> str:
    shown = {name: metric for name, metric in metrics(In.SLICES).items() if metric.digits is None}
    rows = [(key, "incidents", "answers", *(metric.head for metric in shown.values()))]
    for name, section in slices.items():
        cells = [share_text(section["metrics"][metric]) if section["metrics"] else "-" for metric in shown]
        rows.append((one_line(name), f"{section['incidents']:,}", f"{section['answers']:,}", *cells))
    return as_columns(rows)


def _classes(field: str, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [(f"{field} (class)", "answers", "predicted", "precision", "recall", "F1")]
    for row in rows[:_CLASSES_SHOWN]:
        shares = [_percent(row[key]) for key in ("precision", "recall", "f1")]
        shown.append((one_line(row["label"]), f"{row['support']:,}", f"{row['predicted']:,}", *shares))
    more = f"\n... and {len(rows) - _CLASSES_SHOWN} more in summary.json" if len(rows) > _CLASSES_SHOWN else ""
    return as_columns(shown) + more


def _several(section: Mapping[str, Any]) -> str:
    shown = metrics(In.BEST)
    first, *others = (metric.head for metric in shown.values())
    rows = [("answers k", "incidents", "pass@k", f"best of k: {first}", *others)]
    for k, value in section["pass_at_k"].items():
        best = section["best_of_n"][k]
        cells = (_shown(best[name], metric) for name, metric in shown.items())
        rows.append((k, f"{value['n']:,}", share_text(value), *cells))
    return as_columns(rows)


def _drop(summary: Mapping[str, Any]) -> str:
    names = {name: metric.title for name, metric in metrics(In.RENAME).items()}
    names |= {f"{field}_named": f"{field} right, where the data name it" for field in FIELDS}
    names |= {f"{field}_unnamed": f"{field} right, where they do not" for field in FIELDS}
    rows = [("labels swapped", "own names", "swapped", "drop", "answers")]
    for name, value in summary["drop"]["metrics"].items():
        if value is not None:
            cells = (_percent(value["before"]), _percent(value["after"]), share_text(value), f"{value['n']:,}")
            rows.append((names[name], *cells))
    counts = summary["drop"]
    left = "".join(f"; {count:,} left out: {reason}" for reason, count in counts["left_out"].items())
    failed = f"; {counted(counts['failed'], 'answer')} failed" if counts["failed"] else ""
    return f"{counted(counts['incidents'], 'incident')} with swapped labels{left}{failed}\n{as_columns(rows)}"


def as_columns(rows: Sequence[Cells]) -> str:
    """Columns by the widest cell: the first to the left, the others to the right."""
    widths = [max(map(_width, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first + " " * (widths[0] - _width(first))]
        cells += [" " * (width - _width(cell)) + cell for cell, width in zip(others, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns of a terminal; a Chinese character takes two."""
    return sum(1 + (east_asian_width(character) in "WF") for character in text)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def share_text(value: Mapping[str, Any]) -> str:
    """`61.2 % [54, 68]`, the interval where there is one."""
    if value["value"] is None or value["low"] is None:
        return _percent(value["value"])
    return f"{_percent(value['value'])} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _shown(value: Mapping[str, Any], metric: Metric) -> str:
    return share_text(value) if metric.digits is None else _number(value, metric.digits)


def _number(value: Mapping[str, Any], digits: int) -> str:
    if value["value"] is None or value["low"] is None:
        return "-" if value["value"] is None else f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def one_line(text: str) -> str:
    """A label on one line of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:48]
