"""The tables of an evaluation as text, from its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["as_columns", "one_line", "render", "without_text_said"]

Cells = Sequence[str]

_SHARES = {
    "acc_main": "both fields right",
    "service_ok": "service right",
    "type_ok": "incident type right",
    "macro_f1_service": "macro-F1, services",
    "macro_f1_type": "macro-F1, incident types",
    "json_ok": "valid JSON",
    "abstained": "abstained",
    "evidence_precision": "evidence precision",
    "evidence_recall": "evidence recall",
    "evidence_rate": "quotes known evidence",
    "early_verdict": "verdict in an early round",
    "cut": "cut at the budget",
    "reasoning_cut": "reasoning not closed",
    "empty": "answers without any text",
}
_NUMBERS = {
    "score": ("reward", 3),
    "quotes": ("quotations, verbatim", 2),
    "invented": ("quotations, invented", 2),
    "chars": ("characters", 0),
    "reasoning": ("characters of reasoning", 0),
    "tokens": ("tokens", 0),
}
_WHERE_ANY = ("reasoning", "reasoning_cut", "empty")
_SLICE = ("acc_main", "service_ok", "type_ok", "json_ok", "evidence_rate")
_HEADS = ("both right", "service", "type", "JSON", "evidence")
_CLASSES_SHOWN = 30


def render(summary: Mapping[str, Any]) -> str:
    """All tables: overall, slices with more than one value, classes, several answers, renaming."""
    parts = [_head(summary), _overall(summary["overall"])]
    for key, slices in summary["by"].items():
        if len(slices) > 1:
            parts.append(_slices(key, slices))
    parts += [_classes(name, rows) for name, rows in summary["classes"].items() if rows]
    if len(summary["overall"]["pass_at_k"]) > 1:
        parts.append(_several(summary["overall"]))
    if "renamed" in summary:
        parts.append(_drop(summary))
    return "\n\n".join(parts) + "\n"


def _head(summary: Mapping[str, Any]) -> str:
    overall, counts = summary["overall"], summary["counts"]
    lines = [
        f"{overall['incidents']:,} incidents of {overall['groups']:,} faults, {overall['answers']:,} answers; "
        "95 % intervals by bootstrap over faults"
    ]
    if counts["failed"]:
        lines.append(f"{counts['failed']:,} of {counts['asked']:,} answers failed and count in no figure")
        lines[-1] += without_text_said(counts.get("no_text") or {})
    if not counts["complete"]:
        lines.append(f"UNFINISHED: {counts['missing']:,} of {counts['asked']:,} answers are missing")
    return "\n".join(lines)


def without_text_said(counts: Mapping[str, int]) -> str:
    """What follows the number of failed answers; `records.without_text`."""
    if not counts:
        return ""
    sorts = ", ".join(f"{count:,} {one_line(sort)}" for sort, count in counts.items())
    return f"; {sum(counts.values()):,} of them replies without text: {sorts}"


def _overall(section: Mapping[str, Any]) -> str:
    rows = []
    metrics = {name: value for name, value in section["metrics"].items() if value["value"] or name not in _WHERE_ANY}
    for name, value in metrics.items():
        if name in _SHARES:
            rows.append((_SHARES[name], _share(value), f"{value['n']:,}"))
    for name, (label, digits) in _NUMBERS.items():
        if name in metrics and metrics[name]["n"]:
            rows.append((label, _number(metrics[name], digits), f"{metrics[name]['n']:,}"))
    order = {label: at for at, label in enumerate([*_SHARES.values(), *(label for label, _ in _NUMBERS.values())])}
    return as_columns([("", "mean", "answers"), *sorted(rows, key=lambda row: order[row[0]])])


def _slices(key: str, slices: Mapping[str, Any]) -> str:
    rows = [(key, "answers", *_HEADS)]
    for name, section in slices.items():
        cells = [_share(section["metrics"][metric]) if section["metrics"] else "-" for metric in _SLICE]
        rows.append((one_line(name), f"{section['answers']:,}", *cells))
    return as_columns(rows)


def _classes(field: str, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [(f"{field} (class)", "answers", "predicted", "precision", "recall", "F1")]
    for row in rows[:_CLASSES_SHOWN]:
        shares = [_percent(row[key]) for key in ("precision", "recall", "f1")]
        shown.append((one_line(row["label"]), f"{row['support']:,}", f"{row['predicted']:,}", *shares))
    more = f"\n... and {len(rows) - _CLASSES_SHOWN} more in summary.json" if len(rows) > _CLASSES_SHOWN else ""
    return as_columns(shown) + more


def _several(section: Mapping[str, Any]) -> str:
    rows = [("answers k", "incidents", "pass@k", "best of k: both right", "valid JSON", "evidence", "reward")]
    for k, value in section["pass_at_k"].items():
        best = section["best_of_n"][k]
        evidence, reward = _number(best["evidence"], 3), _number(best["score"], 3)
        cells = (_share(value), _share(best["acc_main"]), _share(best["json_ok"]), evidence, reward)
        rows.append((k, f"{value['n']:,}", *cells))
    return as_columns(rows)


def _drop(summary: Mapping[str, Any]) -> str:
    names = {**_SHARES, "score": "reward", "evidence": "evidence paid"}
    names |= {f"{field}_named": f"{field} right, where the data name it" for field in ("service", "type")}
    names |= {f"{field}_unnamed": f"{field} right, where they do not" for field in ("service", "type")}
    rows = [("labels swapped", "own names", "swapped", "drop", "answers")]
    for name, value in summary["drop"]["metrics"].items():
        if value is not None:
            cells = (_percent(value["before"]), _percent(value["after"]), _share(value), f"{value['n']:,}")
            rows.append((names[name], *cells))
    counts = summary["drop"]
    left = "".join(f"; {count:,} left out: {reason}" for reason, count in counts["left_out"].items())
    failed = f"; {counts['failed']:,} answers failed" if counts["failed"] else ""
    return f"{counts['incidents']:,} incidents with swapped labels{left}{failed}\n{as_columns(rows)}"


def as_columns(rows: Sequence[Cells]) -> str:
    """Columns by the longest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _share(value: Mapping[str, Any]) -> str:
    if value["value"] is None or value["low"] is None:
        return _percent(value["value"])
    return f"{_percent(value['value'])} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def _number(value: Mapping[str, Any], digits: int) -> str:
    if value["value"] is None or value["low"] is None:
        return "-" if value["value"] is None else f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def one_line(text: str) -> str:
    """A label on one line of a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:48]
