"""The picture of best-of-n: the rule's score of the answer that the reward model, the rule, or chance picks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.report.svg import COLOURS, drawing, save
from verl_aiops.evaluation.reward_model.measures import CHOICES

__all__ = ["plot_best_of_n"]


def plot_best_of_n(best: Mapping[int, Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Into ``path``, ``.svg`` that follows the reader's colours, or ``.png``; bands are 95 % intervals over groups.

    Args:
        best: of `measures.best_of_n`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with drawing(letters=Path(path).suffix.lower() != ".svg"):
        from matplotlib import pyplot as plt

        figure, axis = plt.subplots(figsize=(5.2, 3.8), constrained_layout=True)
        places = list(best)
        for (name, label), colour in zip(CHOICES.items(), COLOURS):
            values = [best[k][name] for k in places]
            axis.plot(places, [value["value"] for value in values], color=colour, marker="o", ms=4, lw=1.6, label=label)
            if all(value["low"] is not None for value in values):
                low, high = ([value[end] for value in values] for end in ("low", "high"))
                axis.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [str(k) for k in places])
        axis.set_xlabel("answers to choose from")
        axis.set_ylabel("rule's score of the chosen one")
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
        save(figure, path, f"Rule's score of the best of {', '.join(map(str, places))} answers, {title}.")
