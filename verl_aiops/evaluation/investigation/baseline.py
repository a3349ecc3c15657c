"""Baselines without a language model on investigations, each as a folder of `verl-aiops eval`, and a table of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.baseline.run import check_apart, check_methods, settings_of
from verl_aiops.evaluation.investigation.evaluate import rule_lines, said_lines, shown, summarise
from verl_aiops.evaluation.investigation.linear import LinearInvestigator
from verl_aiops.evaluation.investigation.metrics import METRICS
from verl_aiops.evaluation.investigation.questions import fingerprint, read_case_questions
from verl_aiops.evaluation.run.results import Folder
from verl_aiops.evaluation.run.table import as_columns
from verl_aiops.files import write_atomically
from verl_aiops.inputs.shown import counted

__all__ = ["METHODS", "baseline_investigations"]

RULE, LINEAR = METHODS = ("rule", "linear")
_SHOWN = ("acc_main", "any_service", "all_services", "f1", "score")


def baseline_investigations(
    data: str,
    val: str,
    out: str | Path,
    methods: Sequence[str] = METHODS,
    *,
    reward: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> str:
    """Have the rule along the call graph and the regression, fitted on ``data``, answer the cases of ``val``.

    Writes ``out/METHOD`` as `verl-aiops eval` would, ``out/baseline.json`` and ``out/table.txt``; returns the table.

    Args:
        data, val: RL files of `verl-aiops build-rl --task investigation`.
        reward: settings of the reward. ``seed`` is that of the intervals.

    Raises:
        EvaluationError: no such method, scikit-learn missing, nothing in a file, or a fault that is in both.
        PreferenceDataError: a file cannot be read.
    """
    check_methods(methods, METHODS)
    model = LinearInvestigator() if LINEAR in methods else None
    train, asked = read_case_questions(data), read_case_questions(val)
    check_apart(train, asked, data, val)
    both = settings_of(data, fingerprint(train), val, fingerprint(asked), seed, reward)
    settings: dict[str, Any] = {"task": "investigation", **both}
    found: dict[str, Any] = {}
    for name in methods:
        started = time.perf_counter()
        if name == LINEAR and model is not None:
            model.fit(train)
            lines = said_lines(asked, model.verdicts(asked), settings["reward"])
        else:
            lines = rule_lines(asked, settings["reward"])
        found[name] = {
            "size": model.size if name == LINEAR and model is not None else 0,
            "seconds": round(time.perf_counter() - started, 3),
            "metrics": summarise(lines, seed),
        }
        with Folder(Path(out) / name, {"baseline": name, **settings}, overwrite) as folder:
            write_atomically(folder.path / "generations.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            summary = {"settings": settings, "model": found[name]["metrics"]}
            write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    rows = [("", *(METRICS[key].title for key in _SHOWN), "weights", "seconds")]
    for name, one in found.items():
        cells = (shown(one["metrics"].get(key), METRICS[key].digits) for key in _SHOWN)
        rows.append((name, *cells, f"{one['size']:,}", f"{one['seconds']:.1f}"))
    head = f"{counted(len(train), 'case')} to learn from, {len(asked):,} asked; 95 % intervals over faults"
    table = f"{head}\n{as_columns(rows)}\n"
    summary = {"settings": settings, "rows": {"train": len(train), "val": len(asked)}, "methods": found}
    write_atomically(Path(out) / "baseline.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    write_atomically(Path(out) / "table.txt", table)
    return table
