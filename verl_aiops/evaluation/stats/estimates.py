"""What the metrics of many answers come to, with intervals: sums by group, from which every reweighting follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.stats.best_of import best_of_k, pass_at_k, sizes
from verl_aiops.evaluation.stats.bootstrap import NO_WIDTH, intervals, of_constant
from verl_aiops.evaluation.stats.further_fields import asked_in
from verl_aiops.evaluation.stats.metrics import (
    MAIN,
    In,
    held_by,
    knows,
    metrics,
    predicted_class,
    true_class,
    truth_key,
)
from verl_aiops.evaluation.stats.shares import share_intervals

__all__ = ["Value", "class_table", "macro_changes", "table_of", "values_of"]


@dataclass(frozen=True)
class Value:
    """A metric with its interval (None where it is not defined) and how many answers or incidents it is the mean of."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class _Classes:
    """Per group (rows) and class (columns): answers that are rightly, wrongly and not put into the class."""

    labels: list[str]
    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray


@dataclass(frozen=True)
class Table:
    """Sums by group, from which every metric of any reweighted set of groups follows.

    ``sums`` and ``counts`` are (groups, means): of values, and of the answers or incidents that have one; ``classes``
    by the name of the macro-F1 that is made of them; ``several``: an incident may have more than one answer.
    """

    groups: list[str]
    means: list[str]
    sums: np.ndarray
    counts: np.ndarray
    classes: dict[str, _Classes]
    several: bool

    @property
    def names(self) -> list[str]:
        return [*self.means, *self.classes]

    def n(self) -> np.ndarray:
        answers = [classes.right.sum() + classes.missed.sum() for classes in self.classes.values()]
        return np.concatenate([self.counts.sum(0), answers])

    def held(self) -> dict[str, int]:
        """How many groups have a value of each metric."""
        answers = [(classes.right + classes.missed).any(1).sum() for classes in self.classes.values()]
        return dict(zip(self.names, map(int, [*(self.counts > 0).sum(0), *answers])))

    def statistics(self, weights: np.ndarray) -> np.ndarray:
        """From weights (b, groups) to metrics (b, names), NaN where nothing counts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ self.sums) / (weights @ self.counts)
        return np.column_stack([means, *(_macro_f1(weights, classes) for classes in self.classes.values())])


def _macro_f1(weights: np.ndarray, classes: _Classes) -> np.ndarray:
    right, wrong, missed = (weights @ part for part in (classes.right, classes.wrong, classes.missed))
    there = right + missed > 0
    f1 = np.where(there, 2 * right / np.maximum(2 * right + wrong + missed, 1e-300), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return f1.sum(1) / there.sum(1)


def table_of(lines: Sequence[AnswerLine], groups: Sequence[str] | None = None) -> Table:
    """The sums of the lines that have an answer; ``groups`` (default: those of the lines) sets the rows' order."""
    answered = [line for line in lines if line["error"] is None]
    names = sorted({line["group"] for line in answered}) if groups is None else list(groups)
    place = {group: at for at, group in enumerate(names)}
    known = metrics(fields=asked_in(answered))
    columns: dict[str, list[tuple[int, float]]] = {name: [] for name, metric in known.items() if metric.value}
    for line in answered:
        for name, column in columns.items():
            value = known[name].value(line)
            if value is not None:
                column.append((place[line["group"]], value))
    columns |= _several(answered, place)
    sums, counts = np.zeros((len(names), len(columns))), np.zeros((len(names), len(columns)))
    for at, pairs in enumerate(columns.values()):
        for group, value in pairs:
            sums[group, at] += value
            counts[group, at] += 1
    fields = {name: metric.classes for name, metric in known.items() if metric.classes}
    classes = {name: _classes(answered, field, place) for name, field in fields.items()}
    several = len({line["id"] for line in answered}) < len(answered)
    return Table(names, list(columns), sums, counts, classes, several)


def _several(answered: Sequence[AnswerLine], place: Mapping[str, int]) -> dict[str, list[tuple[int, float]]]:
    """pass@k and best@k of each incident."""
    incidents: dict[str, list[AnswerLine]] = {}
    for line in answered:
        incidents.setdefault(line["id"], []).append(line)
    columns: dict[str, list[tuple[int, float]]] = {}
    shown = metrics(In.BEST)
    for k in sizes(max(map(len, incidents.values()), default=1)):
        columns |= {name: [] for name in (f"pass@{k}", *(f"best@{k}/{metric}" for metric in shown))}
        for own in incidents.values():
            if len(own) < k:
                continue
            group = place[own[0]["group"]]
            right = sum(line["score"][MAIN] > 0 for line in own)
            columns[f"pass@{k}"].append((group, pass_at_k(len(own), right, k)))
            scores = [line["score"]["score"] for line in own]
            for name, metric in shown.items():
                found = [metric.value(line) for line in own]
                if None not in found:
                    columns[f"best@{k}/{name}"].append((group, best_of_k(scores, found, k)))
    return columns


def _classes(answered: Sequence[AnswerLine], field: str, place: Mapping[str, int]) -> _Classes:
    labels = sorted({true_class(line, field) for line in answered})
    column = {label: at for at, label in enumerate(labels)}
    right, wrong, missed = (np.zeros((len(place), len(labels))) for _ in range(3))
    for line in answered:
        group, truth, said = place[line["group"]], true_class(line, field), predicted_class(line, field)
        if said == truth:
            right[group, column[truth]] += 1
            continue
        missed[group, column[truth]] += 1
        if said in column:
            wrong[group, column[said]] += 1
    return _Classes(labels, right, wrong, missed)


def values_of(table: Table, seed: int) -> dict[str, Value]:
    """Every metric with its interval over groups: `shares.share_intervals`, or the bootstrap where it is no share, or
    no mean."""
    if not table.groups:
        return {}
    held = [held_by(name, table.several) for name in table.means]
    shares = np.array([of is not None for of in held])
    bounds = np.full((len(table.names), 2), np.nan)
    bounds[: len(held)][shares] = share_intervals(
        table.sums[:, shares], table.counts[:, shares], [of for of in held if of is not None]
    )
    drawn = np.concatenate([~shares, np.ones(len(table.classes), bool)])
    bounds[drawn] = intervals(lambda weights: table.statistics(weights)[:, drawn], len(table.groups), seed)
    point = table.statistics(np.ones((1, len(table.groups))))[0]
    for name in table.classes:
        _widen_constant(bounds[table.names.index(name)], point[table.names.index(name)], table.held()[name], 0.0)
    return _values(table.names, point, bounds, table.n())


def macro_changes(table: Table, less: Table, seed: int) -> dict[str, Value]:
    """The differences of macro-F1 to another table of the same groups, by a paired bootstrap."""

    def statistics(weights: np.ndarray) -> np.ndarray:
        of = len(table.means), len(less.means)
        return table.statistics(weights)[:, of[0] :] - less.statistics(weights)[:, of[1] :]

    names = list(table.classes)
    bounds = intervals(statistics, len(table.groups), seed)
    point = statistics(np.ones((1, len(table.groups))))[0]
    for at, name in enumerate(names):
        _widen_constant(bounds[at], point[at], min(table.held()[name], less.held()[name]), -1.0)
    return _values(names, point, bounds, table.n()[len(table.means) :])


def _widen_constant(bounds: np.ndarray, value: float, groups: int, lowest: float) -> None:
    if groups and bounds[1] - bounds[0] < NO_WIDTH:
        bounds[:] = of_constant(value, groups, lowest, 1.0)


def _values(names: Sequence[str], point: np.ndarray, bounds: np.ndarray, n: np.ndarray) -> dict[str, Value]:
    return {
        name: Value(_number(value), _number(low), _number(high), int(count))
        for name, value, (low, high), count in zip(names, point, bounds, n)
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def class_table(lines: Sequence[AnswerLine], field: str) -> list[dict[str, Any]]:
    """Per class, most frequent first: ``label`` as the data spell it, ``support`` (answers whose truth it is),
    ``predicted``, ``precision`` (None where it was never predicted), ``recall``, ``f1``."""
    answered = [line for line in lines if line["error"] is None and knows(line, field)]
    classes = _classes(answered, field, {line["group"]: 0 for line in answered})
    spelling: dict[str, str] = {}
    for line in answered:
        spelling.setdefault(true_class(line, field), line["ground_truth"][truth_key(field)])
    rows = []
    for at, label in enumerate(classes.labels):
        right, wrong, missed = (float(part[:, at].sum()) for part in (classes.right, classes.wrong, classes.missed))
        rows.append(
            {
                "label": spelling[label],
                "support": int(right + missed),
                "predicted": int(right + wrong),
                "precision": right / (right + wrong) if right + wrong else None,
                "recall": right / (right + missed),
                "f1": 2 * right / (2 * right + wrong + missed),
            }
        )
    return sorted(rows, key=lambda row: (-row["support"], row["label"]))
