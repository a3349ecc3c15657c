"""The numbers of a comparison, as they stand in ``comparison.json``.

Every mean is ``{"value", "low", "high", "n", "groups"}`` (`paired_tests.Mean`) over incidents: an incident with several
answers counts with their mean. Differences are those of a run to the first one.

================  =====================================================================================================
key               value
================  =====================================================================================================
``incidents``     how many are compared, of how many ``groups``; intervals need ``few_groups`` of them
``runs``          per run label, path, how many are ``pooled``, counts, what is ``left_out`` and why, settings, notes
``notes``         what a reader must know of the data
``metrics``       by metric: ``values`` by run; ``comparisons`` by run: ``difference``, ``p``, ``p_holm``, ``test``
                  (`paired_tests.Test`); ``digits`` to show, null for shares. Means and differences of ``metrics``
                  have ``new_seeds`` too: ``{"low", "high"}`` for runs of new seeds (`seeds`), null unless pooled
``mcnemar``       by run ``fixed``, ``broken``, ``p``, ``p_holm``; null unless each incident has one answer
``over_k``        by metric and run the means for k = 1, 2, ... answers, and their differences; null for single answers
                  and pooled runs
``over``          ``name`` and ``values``, the number that each run was given (`--over`); null without
``by``            by `summary.SLICES`: values and differences of the metrics shown `In.SLICES`
``classes``       `flips.class_changes`; ``flips``: `flips.flips`
================  =====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from verl_aiops import __version__
from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.compare.flips import class_changes, flips
from verl_aiops.evaluation.compare.pairing import Pairing, columns_held, values
from verl_aiops.evaluation.compare.seeds import with_new_seeds
from verl_aiops.evaluation.run.results import without_text
from verl_aiops.evaluation.run.summary import SLICES, slice_order
from verl_aiops.evaluation.stats.best_of import best_of_k, pass_at_k
from verl_aiops.evaluation.stats.estimates import macro_changes, table_of, values_of
from verl_aiops.evaluation.stats.further_fields import asked_in
from verl_aiops.evaluation.stats.metrics import MAIN, In, Metric, metrics, over_k_titles
from verl_aiops.evaluation.stats.paired_tests import (
    FEW_GROUPS,
    holm,
    mcnemar_exact,
    mean_intervals,
    sign_flip_test,
)
from verl_aiops.evaluation.stats.shares import Of

__all__ = ["comparison_of"]

_LARGEST_DENOMINATOR = 1_000_000


def comparison_of(pairing: Pairing, seed: int = 0, over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Compare every run with the first; ``seed`` of the resampling, ``over`` as below."""
    fields = _asked(pairing)
    compared = metrics(In.COMPARE, fields)
    grid = {name: _common_values(pairing, name) for name, metric in compared.items() if metric.value}
    found = _metrics(pairing, compared, grid, seed) | _macro_f1(pairing, seed)
    with_new_seeds(pairing, found)
    single = all(len(lines) == 1 for answers in pairing.answers.values() for lines in answers)
    return {
        "verl_aiops": __version__,
        "incidents": len(pairing.ids),
        "groups": int(pairing.groups.max()) + 1,
        "few_groups": FEW_GROUPS,
        "seed": seed,
        "notes": list(pairing.notes),
        "runs": [_run(pairing, at) for at in range(len(pairing.runs))],
        "metrics": {name: found[name] for name in compared},
        "mcnemar": _mcnemar(pairing, grid[MAIN]) if single else None,
        # the k-th answer of pooled runs is another model's
        "over_k": None if any(run.pooled > 1 for run in pairing.runs) else _over_k(pairing, seed),
        "over": None if over is None else dict(over),
        "by": {key: _slices(pairing, grid, key, seed) for key in SLICES},
        "classes": class_changes(pairing, fields, seed),
        "flips": flips(pairing, grid[MAIN], seed),
    }


def _run(pairing: Pairing, at: int) -> dict[str, Any]:
    run = pairing.runs[at]
    samples = [len(lines) for lines in pairing.answers[run.label]]
    lines = [line for lines in run.incidents.values() for line in lines]
    return {
        "label": run.label,
        "path": run.path,
        "pooled": run.pooled,
        "incidents": len(run.incidents),
        "answers": len(lines),
        "failed": sum(line["error"] is not None for line in lines),
        "no_text": without_text(lines),
        "compared": {"incidents": len(samples), "answers": sum(samples), "fewest": min(samples), "most": max(samples)},
        "left_out": pairing.left_out[run.label],
        "settings": dict(run.settings),
        "notes": list(run.notes),
    }


def _common_values(pairing: Pairing, metric: str) -> np.ndarray:
    """(incidents, runs); NaN for all runs where one has no value, so that means and differences fit together."""
    grid = np.column_stack([values(pairing, label, metric) for label in pairing.labels])
    grid[np.isnan(grid).any(1)] = np.nan
    return grid


def _with_differences(grid: np.ndarray) -> np.ndarray:
    """The columns of all runs, then those of their differences to the first."""
    return np.column_stack([grid, grid[:, 1:] - grid[:, :1]])


def _labelled(pairing: Pairing, means: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """``values`` and ``differences`` from the means of the columns of `_with_differences`."""
    labels = pairing.labels
    found = [asdict(mean) for mean in means]
    return {"values": dict(zip(labels, found)), "differences": dict(zip(labels[1:], found[len(labels) :]))}


def _asked(pairing: Pairing) -> tuple[str, ...]:
    """The further fields that are asked for."""
    return asked_in(pairing.info(at) for at in range(len(pairing.ids)))


def _metrics(
    pairing: Pairing, compared: Mapping[str, Metric], grid: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    width = 2 * len(pairing.runs) - 1
    known = {name: metric for name, metric in compared.items() if metric.value}
    held = [of for name in known for of in columns_held(pairing, name)]
    columns = np.column_stack([_with_differences(grid[name]) for name in known])
    means = mean_intervals(columns, pairing.groups, seed, held)
    shown = {}
    for at, (name, metric) in enumerate(known.items()):
        found = _labelled(pairing, means[at * width : (at + 1) * width])
        tests = [
            sign_flip_test(
                grid[name][:, run] - grid[name][:, 0],
                pairing.groups,
                denominator=_denominator(pairing, run) if metric.whole else None,
                seed=seed,
            )
            for run in range(1, len(pairing.runs))
        ]
        shown[name] = _metric(metric, found["values"])
        for label, test, adjusted in zip(pairing.labels[1:], tests, holm([test.p for test in tests]), strict=True):
            difference = found["differences"][label]
            there = difference["n"] > 0
            shown[name]["comparisons"][label] = {
                "difference": difference,
                "p": test.p if there else None,
                "p_holm": adjusted if there else None,
                "test": test.method if there else None,
            }
    return shown


def _metric(metric: Metric, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": metric.title,
        "better": {1: "higher", -1: "lower", 0: None}[metric.better],
        "digits": metric.digits,
        "values": found,
        "comparisons": {},
    }


def _denominator(pairing: Pairing, run: int) -> int | None:
    counts = {len(lines) for at in (0, run) for lines in pairing.answers[pairing.labels[at]]}
    common = math.lcm(*counts)
    return common if common <= _LARGEST_DENOMINATOR else None


def _macro_f1(pairing: Pairing, seed: int) -> dict[str, Any]:
    """Macro-F1 is no mean over incidents, so there is an interval but no sign-flip test."""
    groups = sorted({pairing.info(at)["group"] for at in range(len(pairing.ids))})
    tables = {label: table_of(_answers(pairing, label), groups) for label in pairing.labels}
    first, *others = pairing.labels
    found = {label: values_of(table, seed) for label, table in tables.items()}
    changes = {label: macro_changes(tables[label], tables[first], seed) for label in others}
    shown = {}
    for name, metric in metrics(In.COMPARE).items():
        if not metric.classes:
            continue
        means = {label: _as_mean(found[label][name], len(groups), len(pairing.ids)) for label in pairing.labels}
        shown[name] = _metric(metric, means)
        for label in others:
            difference = _as_mean(changes[label][name], len(groups), len(pairing.ids))
            shown[name]["comparisons"][label] = {"difference": difference, "p": None, "p_holm": None, "test": None}
    return shown


def _as_mean(value: Any, groups: int, incidents: int) -> dict[str, Any]:
    low, high = (None, None) if groups < FEW_GROUPS else (value.low, value.high)
    return {"value": value.value, "low": low, "high": high, "n": incidents, "groups": groups}


def _answers(pairing: Pairing, label: str) -> list[AnswerLine]:
    return [line for lines in pairing.answers[label] for line in lines]


def _mcnemar(pairing: Pairing, right: np.ndarray) -> dict[str, Any]:
    found = {}
    for at, label in enumerate(pairing.labels[1:], 1):
        only_first = int(((right[:, 0] == 1) & (right[:, at] == 0)).sum())
        only_second = int(((right[:, 0] == 0) & (right[:, at] == 1)).sum())
        found[label] = {"fixed": only_second, "broken": only_first, "p": mcnemar_exact(only_first, only_second)}
    for entry, adjusted in zip(found.values(), holm([entry["p"] for entry in found.values()]), strict=True):
        entry["p_holm"] = adjusted
    return found


def _over_k(pairing: Pairing, seed: int) -> dict[str, Any] | None:
    """What `over_k_titles` names, for k answers to each incident; None where no incident has two."""
    most = {label: max(map(len, pairing.answers[label])) for label in pairing.labels}
    if max(most.values()) == 1:
        return None
    grids = {label: _best_values(pairing.answers[label], most[label]) for label in pairing.labels}
    first, *others = pairing.labels
    columns = {("", label): grid for label, grid in grids.items()}
    for label in others:
        common = min(most[first], most[label])
        columns["differences", label] = grids[label][:, :, :common] - grids[first][:, :, :common]
    found: dict[str, Any] = {name: {"values": {}, "differences": {}} for name in over_k_titles()}
    for (kind, label), grid in columns.items():
        held = [Of(difference=bool(kind))] * (grid.shape[1] * grid.shape[2])
        means = mean_intervals(grid.reshape(len(pairing.ids), -1), pairing.groups, seed, held)
        for at, name in enumerate(found):
            part = means[at * grid.shape[2] : (at + 1) * grid.shape[2]]
            found[name][kind or "values"][label] = [{"k": k, **asdict(mean)} for k, mean in enumerate(part, 1)]
    return found


def _best_values(answers: Sequence[Sequence[AnswerLine]], most: int) -> np.ndarray:
    """(incidents, names of `over_k_titles`, k): NaN for incidents with fewer than k answers."""
    shown, known = over_k_titles(), metrics()
    grid = np.full((len(answers), len(shown), most), np.nan)
    for at, lines in enumerate(answers):
        right = sum(line["score"][MAIN] > 0 for line in lines)
        scores = [line["score"]["score"] for line in lines]
        for k in range(1, len(lines) + 1):
            grid[at, 0, k - 1] = pass_at_k(len(lines), right, k)
        for row, name in enumerate(shown):
            found = [] if name == "pass" else [known[name].value(line) for line in lines]
            if found and None not in found:
                grid[at, row, : len(lines)] = [best_of_k(scores, found, k) for k in range(1, len(lines) + 1)]
    return grid


def _slices(pairing: Pairing, grid: Mapping[str, np.ndarray], key: str, seed: int) -> dict[str, Any]:
    of = np.array(pairing.slices(key))
    names = sorted(set(of.tolist()), key=slice_order)
    width = 2 * len(pairing.runs) - 1
    sliced = metrics(In.SLICES)
    columns = [
        _with_differences(np.where((of == name)[:, None], grid[metric], np.nan)) for name in names for metric in sliced
    ]
    held = [of for metric in sliced for of in columns_held(pairing, metric)] * len(names)
    means = mean_intervals(np.column_stack(columns), pairing.groups, seed, held)
    parts = iter(means[start : start + width] for start in range(0, len(means), width))
    return {
        name: {"incidents": int((of == name).sum())} | {metric: _labelled(pairing, next(parts)) for metric in sliced}
        for name in names
    }
