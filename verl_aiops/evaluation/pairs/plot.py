"""The picture of `verl-aiops eval-pairs`: how far chosen leads rejected, and where each answer's log-prob has gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from verl_aiops.evaluation.pairs.scoring import PairScores
from verl_aiops.evaluation.report.svg import COLOURS, drawing, save

__all__ = ["plot_pairs"]

_BINS = 40
# the middle share of the margins that is shown; a few pairs of long answers would press all others into one bar
_MIDDLE = (0.5, 99.5)


def plot_pairs(scored: Mapping[str, PairScores], path: str | Path) -> None:
    """Into ``path``, ``.svg`` that follows the reader's colours, or ``.png``. Raises ImportError without matplotlib."""
    with drawing(letters=Path(path).suffix.lower() != ".svg"):
        from matplotlib import pyplot as plt

        moved = len(scored) == 2
        figure, axes = plt.subplots(
            1, 1 + moved, figsize=(5.2 * (1 + moved), 3.8), constrained_layout=True, squeeze=False
        )
        left = axes[0, 0]
        margins = {name: scores.chosen - scores.rejected for name, scores in scored.items()}
        low, high = np.percentile(np.concatenate([*margins.values(), [0.0]]), _MIDDLE)
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        for (name, values), colour in zip(margins.items(), COLOURS):
            ranked = 100 * np.mean(values > 0)
            inside = np.clip(values, edges[0], edges[-1])
            left.hist(inside, edges, histtype="step", lw=1.6, color=colour, label=f"{name}: {ranked:.1f} % above 0")
        left.axvline(0, color=COLOURS[3], lw=1, ls=":")
        left.set_xlabel("log-prob of chosen - rejected (nats)")
        left.set_ylabel("pairs")
        left.set_title("margin", fontsize=11)
        if moved:
            (first, before), (second, after) = scored.items()
            right = axes[0, 1]
            change = after.chosen - before.chosen, after.rejected - before.rejected
            right.scatter(change[1], change[0], s=9, alpha=0.5, color=COLOURS[0], label="a pair")
            ends = [float(min(map(np.min, change))), float(max(map(np.max, change)))]
            right.plot(ends, ends, color=COLOURS[3], lw=1, ls=":", label="both alike")
            right.set_xlabel("change of rejected (nats)")
            right.set_ylabel("change of chosen (nats)")
            right.set_title(f"log-probs, {second} - {first}", fontsize=11)
        for axis in axes.flat:
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, fontsize=9)
        save(figure, path, f"Margins of {len(next(iter(margins.values())))} pairs, {' and '.join(scored)}.")
