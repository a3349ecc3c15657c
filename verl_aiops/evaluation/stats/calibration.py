"""How often a reward model ranks a held-out pair right, and whether it knows: accuracy, log-loss, calibration."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.evaluation.stats.shares import Of
from verl_aiops.files import write_atomically

__all__ = ["STATS", "Calibration", "calibrate", "numbered", "plot_calibration", "right", "stats_of", "write_stats"]

# the file beside a reward model's weights that rewards and reports read
STATS = "reward_stats.json"
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Under Bradley and Terry (1952) a model says that the better-scored answer is preferred with the probability
    ``sigmoid(|margin|)``, its confidence, from 0.5 to 1.

    ``accuracy`` and its 95 % interval over ``groups``: comparisons of one are not independent. None where too few
    groups say (`paired_tests.FEW_GROUPS`).
    ``bins``: dicts with ``low``, ``high``, ``pairs``, ``confidence`` (mean), ``accuracy`` and its interval likewise;
    ``error``: the expected calibration error, the mean of |confidence - accuracy| over pairs; ``log_loss`` in nats.
    """

    pairs: int
    groups: int
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    log_loss: float
    error: float
    bins: list[dict]

    @property
    def ranked(self) -> str:
        """`71.4 % [60.1, 80.3] ranked right`, the interval where there is one."""
        interval = ""
        if self.accuracy_low is not None and self.accuracy_high is not None:
            interval = f" [{100 * self.accuracy_low:.1f}, {100 * self.accuracy_high:.1f}]"
        return f"{100 * self.accuracy:.1f} %{interval} ranked right"


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the better answer leads, 1/2 where both are equal, else 0."""
    return np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))


def numbered(groups: Sequence[Hashable]) -> np.ndarray:
    """The groups as numbers from 0, in the order of their first places."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])


def calibrate(margins: Sequence[float], groups: Sequence[Hashable] | None = None) -> Calibration:
    """From each held-out pair's reward of chosen minus reward of rejected. A margin of 0 is half right.

    Args:
        groups: of each pair the fault, or the prompt, that it belongs to; None where each is by itself.

    Raises:
        ValueError: no margins, or one that is not finite.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("expected finite margins, one or more")
    places = np.arange(len(values)) if groups is None else numbered(groups)
    are_right = right(values)
    confidence = 1 / (1 + np.exp(-np.abs(values)))
    place = np.clip(np.searchsorted(EDGES, confidence, side="right") - 1, 0, len(EDGES) - 2)
    inside_of = [place == at for at in range(len(EDGES) - 1)]
    columns = np.column_stack([are_right, *(np.where(inside, are_right, np.nan) for inside in inside_of)])
    # shares alone, which are not drawn: any seed does
    whole, *of_bins = mean_intervals(columns, places, 0, [Of(single=True)] * columns.shape[1])
    bins, error = [], 0.0
    for inside, mean, low, high in zip(inside_of, of_bins, EDGES, EDGES[1:]):
        count = int(inside.sum())
        if not count:
            continue
        accuracy, said = float(are_right[inside].mean()), float(confidence[inside].mean())
        bins.append(
            {
                "low": low,
                "high": high,
                "pairs": count,
                "confidence": said,
                "accuracy": accuracy,
                "accuracy_low": mean.low,
                "accuracy_high": mean.high,
            }
        )
        error += count / len(values) * abs(said - accuracy)
    log_loss = float(np.logaddexp(0, -values).mean())
    accuracy = float(are_right.mean())
    return Calibration(len(values), whole.groups, accuracy, whole.low, whole.high, log_loss, error, bins)


def stats_of(scores: Sequence[float], calibration: Calibration | None) -> dict[str, Any]:
    """What `STATS` begins with: mean and standard deviation of all scores, and how pairs of them are ranked.

    Args:
        scores: as the model gives them.
        calibration: None where there are no two answers to compare.
    """
    values = np.asarray(scores, dtype=np.float64)
    stats: dict[str, Any] = {"reward_mean": float(values.mean()), "reward_std": float(values.std())}
    return stats | (asdict(calibration) if calibration else {})


def write_stats(folder: str | Path, stats: Mapping[str, Any], calibration: Calibration | None, title: str) -> None:
    """Put `STATS` into a reward model's folder, and ``calibration.png`` where matplotlib can draw it.

    Args:
        stats: `stats_of`, and whatever else is known of the run.
        title: of the plot.
    """
    if calibration is not None:
        try:
            plot_calibration(calibration, Path(folder) / "calibration.png", title)
        except ImportError:
            print('calibration.png not drawn: pip install "verl-aiops[plot]"')
    write_atomically(Path(folder) / STATS, json.dumps(stats, indent=1) + "\n")


def plot_calibration(calibration: Calibration, path: str | Path, title: str) -> None:
    """Accuracy against confidence with 95 % intervals, and the number of pairs in each bin.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bins = calibration.bins
    x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    # an interval's end can fall short of a share of 0 or 1 by rounding, and a bin of few groups has none
    below = [max(0.0, y - b["accuracy_low"]) if b["accuracy_low"] is not None else 0.0 for y, b in zip(y, bins)]
    above = [max(0.0, b["accuracy_high"] - y) if b["accuracy_high"] is not None else 0.0 for y, b in zip(y, bins)]
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(5, 5.4), sharex=True, height_ratios=[3, 1], constrained_layout=True
    )
    upper.plot([0.5, 1], [0.5, 1], color="#888888", ls="--", lw=1, label="perfectly calibrated")
    upper.errorbar(x, y, yerr=[below, above], color="#0072B2", marker="o", ms=6, lw=1.5, capsize=3, label="this model")
    upper.set_ylabel("share ranked right")
    upper.set_ylim(0, 1.03)
    upper.set_title(
        f"{title}\n{100 * calibration.accuracy:.1f} % of {calibration.pairs} pairs, "
        f"calibration error {calibration.error:.3f}",
        fontsize=10,
    )
    upper.legend(frameon=False, loc="lower right")
    upper.grid(alpha=0.3)
    widths = [b["high"] - b["low"] for b in bins]
    lower.bar([b["low"] for b in bins], [b["pairs"] for b in bins], widths, align="edge", color="#56B4E9", ec="#333333")
    lower.set_ylabel("pairs")
    lower.set_xlabel("confidence: sigmoid(|reward difference|)")
    lower.set_xlim(0.49, 1.01)
    figure.savefig(path, dpi=140)
    plt.close(figure)
