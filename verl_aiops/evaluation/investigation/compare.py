"""Evaluations of investigations held to the first of them, case by case, with paired intervals over faults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.evaluation.compare.read_runs import label_and_path
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.evaluate import (
    SLICES,
    Line,
    by_slice,
    held,
    read_investigations,
    shown,
    summarise,
    values,
)
from verl_aiops.evaluation.investigation.metrics import METRICS
from verl_aiops.evaluation.investigation.report import SLICED, html_of_investigations, plots_of_investigations
from verl_aiops.evaluation.report.plots import need_matplotlib
from verl_aiops.evaluation.run.table import as_columns
from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.files import write_atomically
from verl_aiops.inputs.json_text import JsonFault, read_object_file
from verl_aiops.inputs.shown import counted

__all__ = ["compare_investigations", "of_investigations"]

_FILES = ("report.html", "comparison.json", "table.txt", "differences.svg", "slices.svg")


def of_investigations(runs: Sequence[str]) -> bool:
    """Whether the first run is a folder of an evaluation of investigations."""
    if not runs:
        return False
    settings = Path(label_and_path(runs[0])[1]).expanduser() / "settings.json"
    try:
        return settings.is_file() and read_object_file(settings).get("task") == "investigation"
    except JsonFault:
        return False


def compare_investigations(
    runs: Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    plots: bool = True,
    examples: int = 5,
) -> tuple[str, list[str]]:
    """Compare the runs with the first; returns the table and the names of the files in ``out``.

    Args:
        runs: ``FOLDER`` or ``LABEL=FOLDER``, two or more of `verl-aiops eval` on the same cases.
        examples: cases that are shown, in each direction for each run.

    Raises:
        EvaluationError: too few, files that cannot be read, other cases, or files that are there.
    """
    if len(runs) < 2:
        raise EvaluationError(f"expected two runs or more, found {len(runs)}; the first is what others are held to")
    folder = Path(out)
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not overwrite:
        raise EvaluationError(f"--out {folder}: {there[0]} is there already; choose another folder, or add --overwrite")
    if plots:
        need_matplotlib()
    named = [label_and_path(spec) for spec in runs]
    lines = {label: _read(path) for label, path in named}
    if len(lines) < len(named):
        raise EvaluationError("two runs have one label; give each its own: LABEL=FOLDER")
    first, *others = lines
    result = _compared(lines, seed)
    result["slices"] = {key: some for key in SLICES if len(some := _sliced(lines, key, seed)) > 1}
    table = _render(result, first, others)
    drawn = plots_of_investigations(result) if plots else []
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        (folder / name).unlink()
    made = {
        "report.html": html_of_investigations(result, lines, drawn, examples),
        "comparison.json": json.dumps(result, indent=1) + "\n",
        "table.txt": table,
        **{plot.name: plot.svg for plot in drawn},
    }
    for name, text in made.items():
        write_atomically(folder / name, text)
    return table, list(made)


def _compared(lines: Mapping[str, Sequence[Line]], seed: int) -> dict[str, Any]:
    first, *others = lines
    return {
        "runs": {label: summarise(own, seed) for label, own in lines.items()},
        "differences": {label: _differences(first, lines[first], label, lines[label], seed) for label in others},
    }


def _sliced(lines: Mapping[str, Sequence[Line]], key: str, seed: int) -> dict[str, Any]:
    """The comparison of each slice that all runs have cases of."""
    slices = {label: by_slice(some, key) for label, some in lines.items()}
    found = {}
    for name in sorted(set.intersection(*(set(own) for own in slices.values()))):
        own = {label: some[name] for label, some in slices.items()}
        cases = len({line["id"] for line in next(iter(own.values()))})
        found[name] = {"cases": cases, **_compared(own, seed)}
    return found


def _read(path: str) -> list[Line]:
    file = Path(path).expanduser() / "generations.jsonl"
    if not file.is_file():
        raise EvaluationError(f"{path}: expected a folder of `verl-aiops eval`, with generations.jsonl")
    return [line for line in read_investigations(file) if line["error"] is None]


def _differences(first: str, before: Sequence[Line], label: str, after: Sequence[Line], seed: int) -> dict[str, Any]:
    cases = [{line["id"]: (line["group"], line["ground_truth"]) for line in own} for own in (before, after)]
    same = [name for name in cases[0] if cases[1].get(name) == cases[0][name]]
    odd = (cases[0].keys() | cases[1].keys()) - set(same)
    if not same or any(name in cases[0] and name in cases[1] for name in odd):
        raise EvaluationError(
            f"{first} and {label} hold other cases, or other truths of them; evaluate on the same file"
        )
    means = [_by_case(own, same) for own in (before, after)]
    groups = np.unique([cases[0][name][0] for name in same], return_inverse=True)[1]
    several = len(before) > len(cases[0]) or len(after) > len(cases[1])
    changes = mean_intervals(means[1] - means[0], groups, seed, held(several, difference=True), fewest=1)
    found = {
        name: {"value": one.value, "low": one.low, "high": one.high, "n": one.n} for name, one in zip(METRICS, changes)
    }
    return {"cases": len(same), "left_out": len(odd), "metrics": found}


def _by_case(lines: Sequence[Line], names: Sequence[str]) -> np.ndarray:
    """(cases, metrics): the mean over each case's answers; NaN where none of them counts."""
    table, of = values(lines), np.array([line["id"] for line in lines])
    rows = []
    for name in names:
        own = table[of == name]
        there = ~np.isnan(own)
        count = there.sum(0)
        rows.append(np.where(count, np.where(there, own, 0.0).sum(0) / np.maximum(count, 1), np.nan))
    return np.array(rows)


def _render(result: Mapping[str, Any], first: str, others: Sequence[str]) -> str:
    head = [f"{first}: what the others are held to; differences with 95 % intervals over faults, paired by case"]
    for label in others:
        one = result["differences"][label]
        left = f", {one['left_out']:,} that only one of them has left out" if one["left_out"] else ""
        head.append(f"{label} - {first}: {counted(one['cases'], 'case')}{left}")
    columns = [("", first, *(cell for label in others for cell in (label, f"{label} - {first}")))]
    for name, metric in METRICS.items():
        cells = [shown(result["runs"][first].get(name), metric.digits)]
        for label in others:
            cells.append(shown(result["runs"][label].get(name), metric.digits))
            cells.append(shown(result["differences"][label]["metrics"].get(name), metric.digits))
        columns.append((metric.title, *cells))
    parts = ["\n".join(head) + "\n" + as_columns(columns)]
    for key, slices in result["slices"].items():
        titles = [(label, name) for name in SLICED[:2] for label in (first, *others)]
        rows = [(f"by {key}", "cases", *(f"{label}: {METRICS[name].title}" for label, name in titles))]
        for part, one in slices.items():
            cells = [shown(one["runs"][label].get(name), METRICS[name].digits) for label, name in titles]
            rows.append((part, f"{one['cases']:,}", *cells))
        parts.append(as_columns(rows))
    return "\n\n".join(parts) + "\n"
