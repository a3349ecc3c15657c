"""What an evaluation comes to: ``summary.json``.

Shares are from 0 to 1; every metric is ``{"value", "low", "high", "n"}`` (`estimates.Value`), the interval 95 %. Keys:
``settings``; ``counts``, where ``no_text`` has the failed answers whose reply had no text, by its sort; ``overall`` and
``by`` (`SLICES`; "unknown" where the data do not say), each with ``incidents``, ``groups``,
``answers``, ``failed``, ``metrics``, ``pass_at_k`` and ``best_of_n``; ``classes``; and with `--rename` also ``renamed``
(as ``overall``) and ``drop``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.stats.estimates import Value, class_table, table_of, values_of
from verl_aiops.evaluation.stats.further_fields import asked_in
from verl_aiops.evaluation.stats.metrics import FIELDS, In, Metric, held_by, metrics
from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.incidents.marks import ANSWERABLE, PARTS

__all__ = ["SLICES", "UNKNOWN", "drop", "section", "slice_order", "slices_shown", "summarise"]

UNKNOWN = "unknown"
SLICES = ("part", "answerable", "source", "lang", "difficulty")
# Real, simulated and unseen are never one figure, and nor are answers that need no reading.
_ALWAYS_SHOWN = ("part", "answerable")
_IN_ORDER = (*PARTS, *ANSWERABLE, "easy", "medium", "hard")


def slices_shown(by: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What tables show of ``by``: slices of more than one value, and always those by part and by how the answer can be
    found, where the data say it."""
    told = {key: key in _ALWAYS_SHOWN and set(slices) != {UNKNOWN} for key, slices in by.items()}
    return {key: slices for key, slices in by.items() if told[key] or len(slices) > 1}


def summarise(lines: Sequence[AnswerLine], seed: int) -> dict[str, Any]:
    """Overall, by slice and by class."""
    by: dict[str, dict[str, Any]] = {}
    for key in SLICES:
        names = sorted({line.get(key) or UNKNOWN for line in lines}, key=slice_order)
        by[key] = {name: section([r for r in lines if (r.get(key) or UNKNOWN) == name], seed) for name in names}
    return {
        "overall": section(lines, seed),
        "by": by,
        "classes": {field: class_table(lines, field) for field in (*FIELDS, *asked_in(lines))},
    }


def slice_order(name: str) -> tuple[int, str]:
    """Sorts the values of a slice: those that have an order of their own by it, all others by name."""
    return _IN_ORDER.index(name) if name in _IN_ORDER else len(_IN_ORDER), name


def section(lines: Sequence[AnswerLine], seed: int) -> dict[str, Any]:
    """Counts and metrics of some of the lines."""
    found: dict[str, Any] = {}
    pass_at_k: dict[str, Any] = {}
    best_of_n: dict[str, dict[str, Any]] = {}
    for name, value in values_of(table_of(lines), seed).items():
        if name.startswith("pass@"):
            pass_at_k[name.partition("@")[2]] = asdict(value)
        elif name.startswith("best@"):
            k, _, metric = name.partition("@")[2].partition("/")
            best_of_n.setdefault(k, {})[metric] = asdict(value)
        else:
            found[name] = asdict(value)
    failed = sum(line["error"] is not None for line in lines)
    return {
        "incidents": len({line["id"] for line in lines}),
        "groups": len({line["group"] for line in lines}),
        "answers": len(lines) - failed,
        "failed": failed,
        "metrics": found,
        "pass_at_k": pass_at_k,
        "best_of_n": best_of_n,
    }


def drop(
    plain: Sequence[AnswerLine], renamed: Sequence[AnswerLine], named: Mapping[str, Collection[str]], seed: int
) -> dict[str, Any]:
    """What renaming costs, over the answers that both have, paired by incident and sample.

    Args:
        plain, renamed: lines of the same incidents under their own names and under swapped ones.
        named: per field of the truth, the ids of the incidents whose data name the true label.

    Returns:
        for each metric that is shown `In.RENAME`, with ``before``, ``after`` and the interval of ``before - after``;
        and, for each field, ``service_named``/``service_unnamed`` (``type_...``): the same of ``service_ok`` over the
        incidents whose true service was swapped, apart by whether their data name it.
    """
    after = {(r["id"], r["sample"]): r for r in renamed if r["error"] is None}
    pairs = [(r, after[r["id"], r["sample"]]) for r in plain if r["error"] is None and (r["id"], r["sample"]) in after]
    found = _differences(pairs, list(metrics(In.RENAME)), seed)
    for field, (key, right) in FIELDS.items():
        swapped = [pair for pair in pairs if pair[0]["ground_truth"][key] != pair[1]["ground_truth"][key]]
        for name, wanted in ((f"{field}_named", True), (f"{field}_unnamed", False)):
            some = [pair for pair in swapped if (pair[0]["id"] in named[key]) == wanted]
            found[name] = _differences(some, (right,), seed).get(right)
    return found


def _differences(pairs: Sequence[tuple[AnswerLine, AnswerLine]], names: Sequence[str], seed: int) -> dict[str, Any]:
    if not pairs:
        return {}
    known = metrics()
    sides = [[[_value(known[name], line) for name in names] for line in side] for side in zip(*pairs)]
    before, after = (np.array(side, dtype=float) for side in sides)
    neither = np.isnan(before - after)
    groups = np.unique([line["group"] for line, _ in pairs], return_inverse=True)[1]
    several = len({line["id"] for line, _ in pairs}) < len(pairs)
    of = [held_by(name, several, difference=True) for name in names]
    found = {}
    for at, (name, change) in enumerate(zip(names, mean_intervals(before - after, groups, seed, of, fewest=1))):
        own = [None if change.value is None else float(side[~neither[:, at], at].mean()) for side in (before, after)]
        shown = Value(change.value, change.low, change.high, change.n)
        found[name] = {**asdict(shown), "before": own[0], "after": own[1]}
    return found


def _value(metric: Metric, line: AnswerLine) -> float:
    value = None if metric.value is None else metric.value(line)
    return math.nan if value is None else value
