"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_aiops.evaluation.report import wording
from verl_aiops.evaluation.run.summary import slices_shown
from verl_aiops.evaluation.run.table import as_columns, one_line
from verl_aiops.evaluation.stats.best_of import sizes
from verl_aiops.evaluation.stats.metrics import MAIN, METRICS, over_k_titles

__all__ = ["render_comparison"]

_SLICES_SHOWN = 30


def render_comparison(result: Mapping[str, Any]) -> str:
    """What was compared and left out, a table for each run against the first, slices, several answers, verdicts."""
    labels = [run["label"] for run in result["runs"]]
    parts = [_head(result)]
    parts += [_against_first(result, label) for label in labels[1:]]
    if result["over_k"] is not None:
        parts.append(_over_k(result))
    parts += [_slices(result, key) for key in slices_shown(result["by"])]
    parts.append("\n".join(wording.verdict(result, label)[1] for label in labels[1:]))
    return "\n\n".join(parts) + "\n"


def _head(result: Mapping[str, Any]) -> str:
    lines = [
        f"{len(result['runs'])} runs, compared over {wording.counted(result['incidents'], 'incident')} of "
        f"{wording.counted(result['groups'], 'fault')} that all of them answered; 95 % intervals"
    ]
    if result["groups"] < result["few_groups"]:
        lines[0] += f" need {result['few_groups']} faults, so none are given"
    else:
        lines[0] += " over faults"
    lines += [f"  {sentence}" for sentence, _ in wording.left_out(result)]
    for run in result["runs"]:
        line = f"  {run['label']}: {wording.counted(run['compared']['answers'], 'answer')} compared"
        if failed := wording.failed(run):
            line += f"; {failed}"
        lines.append(line + "".join(f"; {note}" for note in run["notes"]))
    lines += [f"  {note}" for note in result["notes"]]
    return "\n".join(map(wording.visible, lines))


def _against_first(result: Mapping[str, Any], label: str) -> str:
    first = result["runs"][0]["label"]
    corrected = ", Holm" if len(result["runs"]) > 2 else ""
    pooled = any(run["pooled"] > 1 for run in result["runs"] if run["label"] in (first, label))
    rows = [("", first, label, "difference", *["for new seeds too"] * pooled, f"p{corrected}")]
    for metric in result["metrics"].values():
        entry = metric["comparisons"][label]
        if entry["difference"]["value"] is not None:
            means = [
                wording.in_one(wording.value_parts(metric["values"][run], metric["digits"])) for run in (first, label)
            ]
            shown = wording.in_one(wording.change_parts(entry["difference"], metric["digits"]))
            wide = [wording.new_seeds_text(entry["difference"], metric["digits"]) or "–"] * pooled
            rows.append((metric["title"], *means, shown, *wide, wording.p_text(entry["p_holm"])))
    text = as_columns(rows)
    flips = result["flips"][label]
    text += (
        f"\n{wording.counted(len(flips['better']), 'incident')} right more often, {len(flips['worse']):,} less often"
    )
    if result["mcnemar"] is not None:
        text += f"; McNemar's exact test: p {wording.p_text(result['mcnemar'][label]['p_holm'])}"
    return text


def _over_k(result: Mapping[str, Any]) -> str:
    labels = [run["label"] for run in result["runs"]]
    most = max(len(points) for points in result["over_k"]["pass"]["values"].values())
    tables = []
    for name, title in over_k_titles().items():
        values = result["over_k"][name]["values"]
        rows = [(title, *labels)]
        for k in sizes(most):
            cells = [_share(values[run][k - 1]) if k <= len(values[run]) else "-" for run in labels]
            rows.append((f"k = {k}", *cells))
        tables.append(as_columns(rows))
    return "\n\n".join(tables)


def _slices(result: Mapping[str, Any], key: str) -> str:
    first, *others = (run["label"] for run in result["runs"])
    rows = [(f"{key}: {METRICS[MAIN].head}", "incidents", first, *(f"{label} − {first}" for label in others))]
    slices = sorted(result["by"][key].items(), key=lambda entry: -entry[1]["incidents"])
    for name, part in slices[:_SLICES_SHOWN]:
        changes = [wording.in_one(wording.change_parts(part[MAIN]["differences"][label])) for label in others]
        value = _share(part[MAIN]["values"][first])
        rows.append((one_line(name), f"{part['incidents']:,}", value, *changes))
    more = f"\n... and {len(slices) - _SLICES_SHOWN} more in comparison.json" if len(slices) > _SLICES_SHOWN else ""
    return as_columns(rows) + more


def _share(mean: Mapping[str, Any]) -> str:
    return wording.in_one(wording.value_parts(mean))
