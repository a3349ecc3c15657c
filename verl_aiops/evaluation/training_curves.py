"""Training curves of one or more runs, from what verl's ``file`` logger wrote: `verl-aiops curves`.

Each key is a panel, each run a line. Where a key has a twin in validation (``val-aux/*/json_ok/mean@1`` for
``reward/json_ok``, ``val/loss`` for ``actor/loss``), it is drawn with markers.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_aiops.evaluation.report.svg import COLOURS, drawing, save
from verl_aiops.inputs.json_text import JsonFault, read_object
from verl_aiops.inputs.shown import brief, one_line
from verl_aiops.inputs.sniff import refusal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RL_KEYS",
    "TOGETHER",
    "default_keys",
    "draw_curves",
    "logged_keys",
    "not_finite",
    "over_optimised",
    "plot_curves",
    "read_metrics",
]

RL_KEYS = ("reward/score", "reward/json_ok", "reward/acc_main", "reward/evidence", "timing_s/step")
# of runs that learn from preferences, and of verl's SFT trainer
_PREFERENCE_KEYS = ("actor/loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
# where a reward model counts beside a rule, and how far the policy has gone from its reference
_RM_KEYS = ("reward/rule", "reward/rm", "reward/rm_spread", "actor/kl_loss", "kl/reference")
# the panel that has these together: what the reward model says, what the rule says, and how far the policy has gone
TOGETHER = "reward/rm, reward/rule and KL"
_KL_KEYS = ("kl/reference", "actor/kl_loss", "actor/reward_kl_penalty")
_SFT_KEYS = ("train/loss", "train/grad_norm")
_AT_MOST = 6


def read_metrics(path: str | Path) -> list[dict]:
    """``{"step": n, **metrics}`` for each line of verl's file logger.

    A null, which stands for a number that was not finite, is NaN. What is no number in any line is no metric, and left
    out.

    Raises:
        ValueError: a line is not what the logger writes; names file, line and key.
        OSError: the file cannot be read.
    """
    unfit = refusal(path, "json")
    if unfit:
        raise ValueError(f"{one_line(path)} {unfit}")
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{one_line(path)}, line {number}"
            try:
                entry = read_object(line)
                step, data = entry["step"], entry["data"]
                if not isinstance(data, dict):
                    raise KeyError("data")
            except (JsonFault, KeyError) as error:
                raise ValueError(
                    f"{place}: expected a line of verl's file logger (trainer.logger=[console,file]); "
                    + (str(error) if isinstance(error, JsonFault) else f"no object with step and data: {error}")
                ) from None
            if not _is_number(step) or not abs(step) < 2**53:
                raise ValueError(f"{place}: step: expected a number, found {brief(step, 40)}")
            rows.append({"step": step} | {key: math.nan if value is None else value for key, value in data.items()})
    metrics = {key for row in rows for key, value in row.items() if _is_number(value)}
    for number, row in enumerate(rows, 1):
        for key, value in row.items():
            if key in metrics and not _is_number(value):
                raise ValueError(
                    f"{one_line(path)}, line {number}: {one_line(key, 80)}: expected a number, found {brief(value, 40)}"
                )
    return [{key: value for key, value in row.items() if key in metrics} for row in rows]


def not_finite(rows: list[dict], keys: Collection[str] | None = None) -> list[str]:
    """One line for each metric that was not finite somewhere: how often, and where first."""
    lines = []
    for key in dict.fromkeys(key for row in rows for key in row):
        if key == "step" or (keys is not None and key not in keys):
            continue
        values = [(row["step"], row[key]) for row in rows if key in row]
        bad = [step for step, value in values if not math.isfinite(value)]
        if bad:
            lines.append(
                f"{one_line(key, 80)} was not finite (null in the file) at {len(bad)} of {len(values)} steps, first at "
                f"step {bad[0]}"
            )
    return lines


def over_optimised(rows: list[dict]) -> str | None:
    """A line where a reward model's score rose in training while the rule's fell: the policy learns what the model
    likes and the task does not (Gao et al., arXiv 2210.10760).

    Both trends are Kendall's rank correlations with the step, each with p < 0.01; fewer than 10 steps say nothing.
    """
    from scipy.stats import kendalltau

    found = [
        (row["step"], row["reward/rm"], row["reward/rule"]) for row in rows if {"reward/rm", "reward/rule"} <= {*row}
    ]
    found = [one for one in found if all(map(math.isfinite, one))]
    if len(found) < 10:
        return None
    steps, rm, rule = zip(*found)
    (up, sure), (down, as_sure) = ((t.statistic, t.pvalue) for t in (kendalltau(steps, rm), kendalltau(steps, rule)))
    if not (up > 0 > down and sure < 0.01 and as_sure < 0.01):
        return None
    third = max(1, len(found) // 3)
    ends = [tuple(sum(part) / third for part in (values[:third], values[-third:])) for values in (rm, rule)]
    likes, task = (f"{first:.3f} to {last:.3f}" for first, last in ends)
    return (
        f"the reward model's score rose ({likes}, means of the first and the last third) while the rule's fell "
        f"({task}): the policy is over-optimised. Take an earlier checkpoint, a larger KL coefficient, or gated or "
        "mean_minus_std scores"
    )


def _draw_together(axis: Any, runs: Mapping[str, list[dict]], looks: Sequence[Any], smooth: int, x: str) -> None:
    """Of each run the reward model's score as a line, the rule's dashed, and the KL to the reference, where it is
    logged, dotted on an axis of its own."""
    right = None
    for (label, rows), (colour, _, _) in zip(runs.items(), looks):
        if not any("reward/rm" in row for row in rows):
            continue
        for key, line in (("reward/rm", "-"), ("reward/rule", "--")):
            steps, values = _series(rows, key, x)
            name = key.removeprefix("reward/")
            axis.plot(steps, _smoothed(values, smooth), color=colour, ls=line, lw=1.5, label=f"{label}: {name}")
        kl = next((key for key in _KL_KEYS if any(key in row for row in rows)), None)
        if kl is not None:
            if right is None:
                right = axis.twinx()
                right.set_ylabel("KL (nats)", fontsize=9)
            steps, values = _series(rows, kl, x)
            right.plot(steps, _smoothed(values, smooth), color=colour, ls=":", lw=1.5)
            axis.plot([], [], color=colour, ls=":", lw=1.5, label=f"{label}: {kl}, right axis")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _twin(key: str, names: Sequence[str]) -> str | None:
    """The validation metric that belongs to a training metric, if there is one."""
    last = key.rpartition("/")[2]
    patterns = (f"val/{key}", f"val/{last}", f"val-core/*/{last}/mean@*", f"val-aux/*/{last}/mean@*")
    return next((name for pattern in patterns for name in fnmatch.filter(names, pattern)), None)


def _places(rows: list[dict], x: str) -> list[float]:
    """Where each row stands: its step, or the minutes that the steps up to it took (validation not counted)."""
    if x == "step":
        return [row["step"] for row in rows]
    passed, places = 0.0, []
    for row in rows:
        seconds = row.get("timing_s/step", 0.0)
        passed += seconds if math.isfinite(seconds) else 0.0
        places.append(passed / 60)
    return places


def _series(rows: list[dict], key: str, x: str = "step") -> tuple[list[float], list[float]]:
    points = [(place, row[key]) for place, row in zip(_places(rows, x), rows) if key in row]
    return [place for place, _ in points], [value for _, value in points]


def _smoothed(values: list[float], window: int) -> list[float]:
    return [sum(part) / len(part) for part in (values[max(0, at + 1 - window) : at + 1] for at in range(len(values)))]


def default_keys(runs: Mapping[str, list[dict]]) -> list[str]:
    """`RL_KEYS`, and what was logged of the components that a user adds to the reward (``reward/NAME``)."""
    from verl_aiops.rewards.triage.components import PARTS

    logged = {key for rows in runs.values() for row in rows for key in row}
    return [*RL_KEYS[:-1], *(key for name in PARTS if (key := f"reward/{name}") in logged), RL_KEYS[-1]]


def logged_keys(runs: Mapping[str, list[dict]]) -> list[str]:
    """What to draw of runs of any kind: of the usual metrics those that were logged, else the first ones in the file.

    Raises:
        ValueError: no run has logged a metric.
    """
    logged = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in row if key != "step"))
    if not logged:
        raise ValueError(f"no metric was logged in {', '.join(one_line(label, 80) for label in runs)}")
    *of_rl, seconds = default_keys(runs)
    learns_preferences = any(key.removeprefix("val/").startswith(("rewards/", "logps/")) for key in logged)
    with_rm = any("reward/rm" in row for rows in runs.values() for row in rows)
    usual = [*of_rl, *(_RM_KEYS if with_rm else ()), *(_PREFERENCE_KEYS if learns_preferences else ()), *_SFT_KEYS]
    found = [key for key in usual if key in logged]
    if not found:
        return logged[:_AT_MOST]
    if with_rm and "reward/rule" in logged:
        found.insert(0, TOGETHER)
    return found + [seconds] * (seconds in logged)


def plot_curves(runs: Mapping[str, list[dict]], keys: Mapping[str, str], path: str | Path, **look: Any) -> None:
    """`draw_curves` into the picture ``path``: ``.svg`` that follows the reader's colours, or ``.png``."""
    with drawing(letters=Path(path).suffix.lower() != ".svg"):
        alt = one_line(f"Lines of {', '.join(keys.values())} of {', '.join(runs)}.")
        save(draw_curves(runs, keys, **look), path, alt)


def draw_curves(
    runs: Mapping[str, list[dict]],
    keys: Mapping[str, str],
    *,
    smooth: int = 1,
    columns: int = 3,
    x: str = "step",
    looks: Sequence[tuple[str, Any, str]] | None = None,
) -> Figure:
    """``keys`` (metric to panel title) of ``runs`` (label to rows of `read_metrics`), inside `svg.drawing`.

    ``smooth``: mean over so many last steps; the steps themselves stay visible, pale. ``x``: ``step``, or ``minutes``
    of training without validation. ``looks``: colour, line style and validation's marker of each run; without them runs
    differ in colour alone, and validation is dashed.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a key that no run has.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for rows in runs.values() for row in rows for name in row))
    for key in keys:
        if key not in names and key != TOGETHER:
            raise ValueError(f"{key}: no run has logged it; there are {', '.join(sorted(names)[:200])}")
    dashed = looks is None
    runs = {one_line(label, 80): rows for label, rows in runs.items()}
    if looks is None:
        looks = [(colour, "-", "o") for colour in COLOURS * len(runs)]
    columns = min(columns, len(keys))
    lines = -(-len(keys) // columns)
    size = (4.4 * columns, 3.3 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, constrained_layout=True, squeeze=False)
    for axis, (key, title) in zip(axes.flat, keys.items()):
        if key == TOGETHER:
            _draw_together(axis, runs, looks, smooth, x)
        for (label, rows), (colour, line, marker) in zip(runs.items(), looks):
            if key == TOGETHER:
                continue
            steps, values = _series(rows, key, x)
            if smooth > 1:
                axis.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
            axis.plot(steps, _smoothed(values, smooth), color=colour, ls=line, lw=1.5, label=label)
            twin = _twin(key, names)
            if twin is not None:
                held_out = f"{label}, held out" if len(runs) > 1 else "held out"
                other = colour if len(runs) > 1 else COLOURS[1]
                axis.plot(
                    *_series(rows, twin, x),
                    color=other,
                    ls="--" if dashed else line,
                    marker=marker,
                    ms=5,
                    label=held_out,
                )
        axis.set_title(one_line(title, 80), fontsize=11)
        axis.set_xlabel("step" if x == "step" else "minutes of training")
        if x == "step":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(keys) :]:
        axis.axis("off")
    entries = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    # long enough to show a line's pattern
    look = {"frameon": False, "fontsize": 9, "handlelength": 3.6, "ncols": min(len(entries), 4)}
    figure.legend(entries.values(), entries, loc="outside upper left", **look)
    return figure
