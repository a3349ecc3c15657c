"""How numbers and hostile texts of a comparison are put into words, on a page and in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from verl_aiops.evaluation.run.table import without_text_said
from verl_aiops.evaluation.stats.metrics import MAIN, METRICS
from verl_aiops.inputs.shown import counted

__all__ = [
    "ALPHA",
    "change_parts",
    "counted",
    "in_one",
    "failed",
    "left_out",
    "listed",
    "new_seeds_text",
    "p_text",
    "value_parts",
    "verdict",
    "visible",
]

ALPHA = 0.05
_NO_VALUE = "–"
_MOST_SENTENCES = 4
_KEPT = frozenset("\n\t")
_HIDDEN = frozenset(["Cc", "Cf", "Cs", "Zl", "Zp"])


def visible(text: str) -> str:
    """A text with every character that is not seen, or that changes what is seen around it, as ``⟨U+202E⟩``.

    These are control characters other than line break and tab, direction and zero-width characters, line separators,
    and lone surrogates, which no file can hold.
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if c not in _KEPT and unicodedata.category(c) in _HIDDEN else c for c in text)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def value_parts(mean: Mapping[str, Any], digits: int | None = None) -> tuple[str, str]:
    """A mean and its interval, the latter empty where there is none: `61.2 %` and `[54.0, 68.1]`.

    ``digits`` behind the point; None for shares, which are shown in percent.
    """
    value, low, high = mean["value"], mean["low"], mean["high"]
    if value is None:
        return _NO_VALUE, ""
    factor, places = (100, 1) if digits is None else (1, digits)
    centre = f"{factor * value:,.{places}f}{' %' if digits is None else ''}"
    return centre, "" if low is None else f"[{factor * low:,.{places}f}, {factor * high:,.{places}f}]"


def change_parts(mean: Mapping[str, Any], digits: int | None = None) -> tuple[str, str]:
    """The same of a difference, for shares in percentage points: `+9.2` and `[+5.1, +13.3]`."""
    value, low, high = mean["value"], mean["low"], mean["high"]
    if value is None:
        return _NO_VALUE, ""
    factor, places = (100, 1) if digits is None else (1, digits)
    centre = _signed(factor * value, places)
    return centre, "" if low is None else f"[{_signed(factor * low, places)}, {_signed(factor * high, places)}]"


def new_seeds_text(mean: Mapping[str, Any], digits: int | None = None) -> str:
    """The interval of a difference that holds for new seeds too: `[−1.0, +19.2]`; "" where runs are not pooled."""
    wide = mean.get("new_seeds")
    return "" if wide is None else change_parts({**mean, **wide}, digits)[1]


def _signed(value: float, digits: int) -> str:
    text = f"{value:+,.{digits}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def in_one(parts: tuple[str, str]) -> str:
    """`61.2 % [54, 68]`"""
    return " ".join(filter(None, parts))


def p_text(p: float | None) -> str:
    if p is None:
        return _NO_VALUE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def verdict(result: Mapping[str, Any], label: str) -> tuple[str, str]:
    """``better``, ``worse`` or ``open``, and a sentence that says what a run's share of right answers is worth."""
    metric, first = result["metrics"][MAIN], result["runs"][0]["label"]
    entry = metric["comparisons"][label]
    before, after = (value_parts(metric["values"][run])[0] for run in (first, label))
    p = p_text(entry["p_holm"])
    figures = (
        f"{METRICS[MAIN].title} in {before} of answers with {first}, {after} with {label}; "
        f"{in_one(change_parts(entry['difference']))} points, p {p if p.startswith('<') else '= ' + p}"
    )
    if wide := new_seeds_text(entry["difference"]):
        figures += f"; {wide} for new seeds too"
    apart = _by_part(result, label)
    if entry["p_holm"] >= ALPHA:
        return "open", f"No difference shown between {label} and {first}: {figures}.{apart}"
    kind = "better" if entry["difference"]["value"] > 0 else "worse"
    return kind, f"{label} is {kind} than {first}: {figures}.{apart}"


def _by_part(result: Mapping[str, Any], label: str) -> str:
    """The same difference on real, simulated and unseen incidents, where there are several: one figure hides two."""
    parts = result["by"]["part"]
    if len(parts) < 2:
        return ""
    said = [f"{name} {in_one(change_parts(part[MAIN]['differences'][label]))}" for name, part in parts.items()]
    return f" Apart, in points: {', '.join(said)}."


def failed(run: Mapping[str, Any]) -> str:
    """How many of a run's answers failed, and why where replies had no text; "" where none did."""
    if not run["failed"]:
        return ""
    said = f"{run['failed']:,} of {run['answers']:,} answers failed and count in no figure"
    return said + without_text_said(run["no_text"])


def left_out(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What is not compared: a sentence, and the ids it speaks of; one for each run where there is much to say."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for run in result["runs"]:
        for reason, ids in run["left_out"].items():
            found.setdefault((reason, tuple(ids)), []).append(run["label"])
    if len(found) > _MOST_SENTENCES:
        return [_left_out_of(run) for run in result["runs"] if run["left_out"]]
    return [
        (f"{counted(len(ids), 'incident')} of {listed(labels)} left out: {reason}", list(ids))
        for (reason, ids), labels in found.items()
    ]


def _left_out_of(run: Mapping[str, Any]) -> tuple[str, list[str]]:
    ids = [name for names in run["left_out"].values() for name in names]
    reasons = "; ".join(f"{len(names):,} {reason}" for reason, names in run["left_out"].items())
    return f"{len(ids):,} of {counted(run['incidents'], 'incident')} of {run['label']} left out: {reasons}", ids
