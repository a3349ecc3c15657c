"""`verl-aiops compare`: from folders of answers to a report, plots, a table and ``comparison.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.compare.numbers import comparison_of
from verl_aiops.evaluation.compare.pairing import pair
from verl_aiops.evaluation.compare.read_runs import read_runs
from verl_aiops.evaluation.errors import EvaluationError, check_out
from verl_aiops.evaluation.report.html import html_report
from verl_aiops.evaluation.report.plots import comparison_plots, need_matplotlib, training_plot
from verl_aiops.evaluation.report.text import render_comparison
from verl_aiops.evaluation.training_curves import RL_KEYS, default_keys, not_finite, read_metrics
from verl_aiops.files import write_atomically

__all__ = ["CURVES", "Options", "compare"]

CURVES = ("actor/loss", "rewards/accuracies", "rewards/margins", "actor/kl_loss", "critic/vf_loss")
"""Drawn by default, as far as a run has logged them, after the reward and its components (`default_keys`)."""

_FILES = ("report.html", "comparison.json", "table.txt")
_PLOTS = ("differences.svg", "over_setting.svg", "over_k.svg", "slices.svg", "training.svg")
# as earlier comparisons wrote them
_OLD_PLOTS = tuple(name.replace(".svg", ".png") for name in _PLOTS)


@dataclass(frozen=True)
class Options:
    """How a comparison is made and shown.

    ``metrics``: ``LABEL=FILE`` of verl's file logger; ``curves``: which of its metrics are drawn, empty for `CURVES`;
    ``smooth``: over so many steps; ``over``: ``NAME=V,V,V``, a setting of the runs and its number in each of them;
    ``examples``: incidents shown in each direction; ``seed`` of the resampling.
    """

    metrics: Sequence[str] = ()
    curves: Sequence[str] = ()
    smooth: int = 1
    over: str | None = None
    examples: int = 5
    seed: int = 0
    plots: bool = True

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise EvaluationError(f"--examples {self.examples}: expected 0 or more")
        if self.smooth < 1:
            raise EvaluationError(f"--smooth {self.smooth}: expected 1 or more")
        if self.seed < 0:
            raise EvaluationError(f"--seed {self.seed}: expected 0 or more")
        if self.metrics and not self.plots:
            raise EvaluationError("--metrics are only drawn; leave them out with --no-plots")
        if self.curves and not self.metrics:
            raise EvaluationError("--curves names metrics of the files of --metrics; give these too")


def compare(
    runs: Sequence[str], out: str | Path, options: Options | None = None, *, overwrite: bool = False
) -> tuple[str, list[str]]:
    """Compare runs with the first of them; see `numbers` for the figures.

    Args:
        runs: ``FOLDER`` or ``LABEL=FOLDER`` (`read_runs.read_runs`).
        out: the folder to write.

    Returns:
        The table, and the names of the files in ``out``.

    Raises:
        EvaluationError: runs that cannot be read or compared, metrics that cannot be drawn, files that are there.
    """
    options = options or Options()
    folder = Path(out)
    _check_folder(folder, overwrite)
    if options.plots:
        need_matplotlib()
    training = _read_training(options.metrics)
    keys = _curve_keys(training, options.curves) if training else []
    over = None if options.over is None else _numbers_of(options.over, len(runs))
    pairing = pair(read_runs(runs))
    if over is not None:
        over["values"] = dict(zip(pairing.labels, over["values"], strict=True))
    result = comparison_of(pairing, options.seed, over)
    plots = comparison_plots(result) if options.plots else []
    if training:
        plots.append(training_plot(training, keys, options.smooth, pairing.labels))
    table = render_comparison(result)
    lines = [f"--metrics {label}: {line}" for label, rows in training.items() for line in not_finite(rows, keys)]
    if lines:
        table += "\n" + "\n".join(lines) + "\n"
    page = html_report(result, pairing, plots, options.examples)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*_FILES, *_PLOTS, *_OLD_PLOTS):
        (folder / name).unlink(missing_ok=True)
    for plot in plots:
        write_atomically(folder / plot.name, plot.svg)
    write_atomically(folder / "table.txt", table)
    write_atomically(folder / "comparison.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomically(folder / "report.html", page)
    return table, [*_FILES, *(plot.name for plot in plots)]


def _check_folder(folder: Path, overwrite: bool) -> None:
    check_out(folder)
    there = [name for name in (*_FILES, *_PLOTS, *_OLD_PLOTS) if (folder / name).exists()]
    if there and not overwrite:
        raise EvaluationError(f"--out {folder}: {there[0]} is there already; choose another folder, or add --overwrite")


def _numbers_of(spec: str, runs: int) -> dict[str, Any]:
    """``name`` and the ``values`` of the runs in their order."""
    name, _, listed = spec.partition("=")
    try:
        numbers = [float(text) for text in listed.split(",")]
    except ValueError:
        numbers = []
    if not name.strip() or not numbers or not all(map(math.isfinite, numbers)):
        raise EvaluationError(f"--over {spec}: expected NAME=V,V,V with a number for each run, such as rollout.n=2,4,8")
    if len(numbers) != runs:
        raise EvaluationError(f"--over {spec}: expected {runs} numbers, one for each run in their order")
    if len(set(numbers)) < runs:
        raise EvaluationError(f"--over {spec}: expected a number of its own for each run")
    return {"name": name.strip(), "values": numbers}


def _read_training(specs: Sequence[str]) -> dict[str, list[dict]]:
    runs: dict[str, list[dict]] = {}
    for spec in specs:
        label, equals, path = spec.partition("=")
        if not (equals and label and path):
            raise EvaluationError(f"--metrics {spec}: expected LABEL=FILE, the file that trainer.logger=[file] wrote")
        if label in runs:
            raise EvaluationError(f"--metrics {spec}: label {label!r} was given before; each run has one file")
        if not Path(path).is_file():
            raise EvaluationError(f"--metrics {spec}: no such file; expected what trainer.logger=[file] wrote")
        try:
            runs[label] = read_metrics(path)
        except ValueError as error:
            raise EvaluationError(f"--metrics {error}") from None
        if not runs[label]:
            raise EvaluationError(f"--metrics {spec}: the file is empty")
    return runs


def _curve_keys(runs: Mapping[str, list[dict]], asked: Sequence[str]) -> list[str]:
    logged = {key for rows in runs.values() for row in rows for key in row}
    if asked:
        missing = [key for key in asked if key not in logged]
        if missing:
            close = ", ".join(
                sorted(key for key in logged if key.partition("/")[0] == missing[0].partition("/")[0])[:8]
            )
            raise EvaluationError(
                f"--curves {missing[0]}: no run has logged it; there are {close or ', '.join(sorted(logged)[:8])}"
            )
        return list(asked)
    keys = [key for key in (*default_keys(runs)[:-1], *CURVES) if key in logged]
    if not keys:
        raise EvaluationError(
            f"--metrics: none of {', '.join((*RL_KEYS[:-1], *CURVES))} was logged; name what to draw with --curves, "
            f"from {', '.join(sorted(logged)[:8])}, ..."
        )
    return keys
