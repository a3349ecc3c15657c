"""Plots of bench_rl.py and bench_rl_steps.py."""

from __future__ import annotations

from pathlib import Path

__all__ = ["plot_law", "plot_parts"]

COLOURS = {
    "gen": "#999999",
    "old_log_prob": "#0072B2",
    "ref": "#009E73",
    "update_actor": "#D55E00",
    "update_weights": "#CC79A7",
    "other": "#DDDDDD",
}


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_parts(points: dict, path: Path) -> None:
    """Seconds of a step as stacked bars, a group of runs a point; written as PNG and SVG."""
    pyplot = _pyplot()
    bars = [(name, run, found) for name, point in points.items() for run, found in point["runs"].items()]
    figure, axis = pyplot.subplots(figsize=(2.5 + 1.1 * len(bars), 4))
    at, ticks, before, labelled = 0.0, [], None, set()
    for name, run, found in bars:
        at += 1.0 if name == before else 1.5
        before = name
        bottom = 0.0
        for part, value in found["seconds"].items():
            label = None if part in labelled else part
            labelled.add(part)
            axis.bar(at, value, 0.8, bottom=bottom, color=COLOURS[part], label=label)
            bottom += value
        peak = f"\n{found['peak_gib']:.0f} GiB" if found.get("peak_gib") else ""
        axis.annotate(f"{bottom:.2f} s{peak}", (at, bottom), ha="center", va="bottom", fontsize=8)
        ticks.append((at, f"{run.replace(', ', chr(10)).replace(' at ', chr(10))}\n{'' if name == 'base' else name}"))
    axis.set_xticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=7)
    axis.set_ylabel("seconds a step")
    axis.margins(y=0.18)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120)


def plot_law(points: dict, path: Path) -> None:
    """verl's time over ours against answers to a prompt and tokens of a prompt, measured and by the law."""
    pyplot = _pyplot()
    dimensions = {"n": "answers to a prompt", "prompt": "tokens of a prompt"}
    figure, axes = pyplot.subplots(1, len(dimensions), figsize=(9, 3.8))
    styles = {"ours": ("#0072B2", "o"), "ours, as trained": ("#D55E00", "s")}
    for axis, (dimension, label) in zip(axes, dimensions.items()):
        names = [name for name in points if name == "base" or name.startswith(f"{dimension} ")]
        chosen = {points[name]["point"][dimension]: points[name]["runs"] for name in names}
        values = sorted(chosen)
        for run, (colour, marker) in styles.items():
            there = [v for v in values if "ratio" in chosen[v].get(run, {})]
            for key, line, text in (("ratio", "-", "measured"), ("ratio_law", ":", "law")):
                ratios = [chosen[v][run][key] for v in there]
                mark = marker if key == "ratio" else None
                axis.plot(there, ratios, color=colour, marker=mark, linestyle=line, label=f"{run}: {text}")
        axis.set_xscale("log", base=2)
        # the base point may stand so near to another that their labels would cover each other
        ticks = [
            v
            for v in values
            if v != points["base"]["point"][dimension] or all(v == o or max(v, o) / min(v, o) > 1.5 for o in values)
        ]
        axis.set_xticks(ticks, [f"{value:,}" for value in ticks])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.set_xlabel(label)
    axes[0].set_ylabel("verl's seconds / ours")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120)
