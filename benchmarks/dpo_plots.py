"""Plot of bench_dpo.py."""

from __future__ import annotations

from pathlib import Path

__all__ = ["plot_steps"]


def plot_steps(summary: dict[str, dict], path: Path) -> None:
    """Seconds a step of each variant, and what the FLOP law makes of the first one's; written as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(summary)
    seconds = [summary[name]["s_per_step"] for name in names]
    figure, axis = pyplot.subplots(figsize=(7, 1.2 + 0.55 * len(names)))
    colours = ["#0072B2" if name.startswith(("ours", "rows")) else "#D55E00" for name in names]
    axis.barh(names, seconds, 0.6, color=colours)
    laws = [summary[name]["flop_law"] for name in names]
    if None not in laws:
        axis.plot([seconds[0] * law for law in laws], names, "k|", markersize=22, label=f"by the law, from {names[0]}")
        axis.legend(frameon=False, fontsize=8, markerscale=0.4, loc="upper right")
    for name, value, law in zip(names, seconds, laws):
        ratio = summary[name]["ratio"]
        # beside the law's mark, not across it
        right = max(value, seconds[0] * law) if law is not None else value
        axis.annotate(
            f"{value:.3g} s, {ratio:.1f} times" if ratio != 1 else f"{value:.3g} s",
            (right, name),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.invert_yaxis()
    axis.set_xlabel("seconds a step")
    axis.margins(x=0.3)
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=120)
