"""The figures of a comparison, as SVG that follows the reader's colours.

Runs differ in colour, marker and line style, so that colour-blind readers and grey prints tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.report.svg import COLOURS, as_svg, drawing
from verl_aiops.evaluation.report.wording import listed, visible
from verl_aiops.evaluation.run.summary import UNKNOWN
from verl_aiops.evaluation.stats.further_fields import fields_shown
from verl_aiops.evaluation.stats.metrics import MAIN, METRICS, In, metrics, over_k_titles
from verl_aiops.evaluation.training_curves import draw_curves
from verl_aiops.incidents.marks import ANSWERABLE, PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "comparison_plots", "difference_plot", "need_matplotlib", "training_plot"]

# Other numbers of them than of colours: no two runs look alike.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (8, 3)))
_SLICES_DRAWN = 40


@dataclass(frozen=True)
class Plot:
    """``name`` is the file's; ``svg`` the picture, which says in words what is seen (`svg.as_svg`)."""

    name: str
    svg: str


def need_matplotlib() -> None:
    """Raises:
    EvaluationError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise EvaluationError(
            'plots need matplotlib: pip install "verl-aiops[plot]", or leave them out with --no-plots'
        ) from None


def comparison_plots(result: Mapping[str, Any]) -> list[Plot]:
    """The figures that a comparison (`numbers.comparison_of`) has data for."""
    plots = [_plot("differences", _alt_differences(result), lambda: _differences(result))]
    if result["over"] is not None:
        name = visible(result["over"]["name"])
        shown = listed([metric.title for metric in metrics(In.HEADLINE).values()])
        alt = f"{_sentence(shown)} against {name}, with 95 % intervals."
        plots.append(_plot("over_setting", alt, lambda: _over_setting(result)))
    if result["over_k"] is not None:
        alt = f"Lines against k, with 95 % bands: {listed(list(over_k_titles().values()))}."
        plots.append(_plot("over_k", alt, lambda: _over_k(result)))
    slices = _slices_drawn(result)
    if slices:
        by = "part of the data, source, language and difficulty"
        alt = f"Differences of {METRICS[MAIN].title}, by {by}, with 95 % intervals."
        plots.append(_plot("slices", alt, lambda: _slices(result, slices)))
    return plots


def difference_plot(name: str, alt: str, labels: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Points with intervals, a line for each row: by label what it differs from the first of ``labels``, as shares."""
    result = {"runs": [{"label": label} for label in labels]}
    return _plot(name, alt, lambda: _forest(result, rows))


def training_plot(
    runs: Mapping[str, list[dict]], keys: Sequence[str], smooth: int, compared: Sequence[str] = ()
) -> Plot:
    """Training curves of verl's file logger, a panel for each key; a label of ``compared`` looks as in the other plots.

    Raises:
        EvaluationError: a key that no run has logged.
    """
    extra = [label for label in runs if label not in compared]
    places = {label: at for at, label in enumerate([*compared, *extra])}
    looks = [_look(places[label]) for label in runs]
    alt = f"Lines of {', '.join(keys)} against the training step, one for each of {', '.join(runs)}."
    try:
        return _plot("training", alt, lambda: draw_curves(runs, {key: key for key in keys}, smooth=smooth, looks=looks))
    except ValueError as error:
        raise EvaluationError(f"--curves {error}") from None


def _plot(name: str, alt: str, draw: Callable[[], Figure]) -> Plot:
    with drawing():
        return Plot(f"{name}.svg", as_svg(draw(), name, alt))


def _look(at: int) -> tuple[str, Any, str]:
    return COLOURS[at % len(COLOURS)], _LINES[at % len(_LINES)], _MARKERS[at % len(_MARKERS)]


def _style(at: int) -> dict[str, Any]:
    colour, _, marker = _look(at)
    return {"color": colour, "marker": marker}


# --- differences ------------------------------------------------------------------------------------------------------


def _differences(result: Mapping[str, Any]) -> Figure:
    rows = {}
    for name in metrics(In.PLOT, fields_shown(result["metrics"])):
        metric = result["metrics"][name]
        changes = {label: entry["difference"] for label, entry in metric["comparisons"].items()}
        if any(change["value"] is not None for change in changes.values()):
            arrow = "\n(less is better)" if metric["better"] == "lower" else ""
            rows[metric["title"] + arrow] = changes
    return _forest(result, rows)


def _alt_differences(result: Mapping[str, Any]) -> str:
    change = result["metrics"][MAIN]["comparisons"]
    said = ", ".join(f"{label} {100 * entry['difference']['value']:+.1f} points" for label, entry in change.items())
    return f"Differences to {result['runs'][0]['label']} with 95 % intervals. {_sentence(METRICS[MAIN].title)}: {said}."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _slices_drawn(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The largest slices of the fields that have more than one."""
    found = [
        (f"{key} {name}" if name == UNKNOWN else name, part)
        for key, slices in result["by"].items()
        if len(slices) > 1
        for name, part in slices.items()
    ]
    kept = sorted(found, key=lambda entry: -entry[1]["incidents"])[:_SLICES_DRAWN]
    return {
        f"{name} (n = {part['incidents']:,})": part[MAIN]["differences"]
        for name, part in found
        if name in (*PARTS, *ANSWERABLE) or any(part is other for _, other in kept)
    }


def _slices(result: Mapping[str, Any], slices: Mapping[str, Any]) -> Figure:
    return _forest(result, {_short(name): changes for name, changes in slices.items()})


def _forest(result: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Points with intervals, in percentage points; one line for each row and run."""
    from matplotlib import pyplot as plt

    first, *others = (run["label"] for run in result["runs"])
    height = 1.1 + len(rows) * max(0.36, 0.15 * len(others) + 0.16)
    figure, axis = plt.subplots(figsize=(7.6, height), constrained_layout=True)
    # the points of one row stand closer than the rows
    step = min(0.24, 0.6 / len(others))
    for row in range(0, len(rows), 2):
        axis.axhspan(row - 0.5, row + 0.5, color=plt.rcParams["grid.color"], alpha=0.07, lw=0)
    for at, label in enumerate(others, 1):
        shift = step * (at - (len(others) + 1) / 2)
        for row, changes in enumerate(rows.values()):
            change = changes[label]
            if change["value"] is None:
                continue
            centre = 100 * change["value"]
            low, high = (100 * change[end] if change[end] is not None else centre for end in ("low", "high"))
            style = _style(at)
            axis.plot([low, high], [row + shift] * 2, color=style["color"], lw=1.8, solid_capstyle="butt")
            # an open marker has no interval
            face = style["color"] if change["low"] is not None else "none"
            axis.plot([centre], [row + shift], ls="", ms=6.5, markerfacecolor=face, **style)
        axis.plot([], [], ls="-", ms=6.5, label=f"{_short(label)} − {_short(first)}", **_style(at))
    axis.axvline(0, color=plt.rcParams["axes.edgecolor"], lw=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(_at_least(axis.get_xlim(), 4.0))
    axis.set_xlabel(f"percentage points more than {_short(first)}")
    axis.grid(axis="x", alpha=0.3)
    _legend_above(axis, len(others))
    return figure


def _at_least(limits: tuple[float, float], span: float) -> tuple[float, float]:
    """An axis no shorter than this, so that next to nothing does not fill it."""
    low, high = limits
    more = max(0.0, span - (high - low)) / 2
    return low - more, high + more


def _share_limits(limits: tuple[float, float]) -> tuple[float, float]:
    """Of an axis of percentages: beyond 0 and 100 there is room for markers only."""
    low, high = _at_least(limits, 4.0)
    room = 0.05 * (high - low)
    shift = max(0.0, -room - low) - max(0.0, high - 100.0 - room)
    return low + shift, high + shift


def _legend_above(axis: Axes, entries: int) -> None:
    # long enough to show a line's pattern on both sides of its marker
    axis.figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=min(entries, 3), handlelength=3.6)


def _short(name: str, most: int = 34) -> str:
    return visible(name if len(name) <= most else name[: most - 1] + "…")


# --- against a setting of the runs -----------------------------------------------------------------------------------


def _over_setting(result: Mapping[str, Any]) -> Figure:
    """A point with its interval for each run, in the order of their numbers."""
    from matplotlib import pyplot as plt

    order = sorted(result["over"]["values"].items(), key=lambda entry: entry[1])
    drawn = [
        name for name in metrics(In.HEADLINE) if result["metrics"][name]["values"][order[0][0]]["value"] is not None
    ]
    figure, axes = plt.subplots(1, len(drawn), figsize=(4.1 * len(drawn), 3.7), constrained_layout=True, squeeze=False)
    numbers = [number for _, number in order]
    for axis, name in zip(axes.flat, drawn, strict=True):
        means = [result["metrics"][name]["values"][label] for label, _ in order]
        centre, low, high = (
            [100 * (mean[end] if mean[end] is not None else mean["value"]) for mean in means]
            for end in ("value", "low", "high")
        )
        axis.plot(numbers, centre, color=COLOURS[0], marker="o", ms=6, lw=1.2)
        axis.vlines(numbers, low, high, color=COLOURS[0], lw=1.8)
        axis.set_title(result["metrics"][name]["title"], fontsize=10.5)
        # numbers such as 2, 4, 8, 16 would crowd on the left
        if numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]:
            axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axis.minorticks_off()
        axis.set_ylim(_share_limits(axis.get_ylim()))
        axis.set_xlabel(_short(result["over"]["name"]))
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("% of answers")
    return figure


# --- several answers --------------------------------------------------------------------------------------------------


def _over_k(result: Mapping[str, Any]) -> Figure:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    labels = [run["label"] for run in result["runs"]]
    titles = over_k_titles()
    drawn = [name for name in titles if any(_points(result, name, label)[0] for label in labels)]
    figure, axes = plt.subplots(1, len(drawn), figsize=(4.1 * len(drawn), 3.7), constrained_layout=True, squeeze=False)
    for axis, name in zip(axes.flat, drawn, strict=True):
        for at, label in enumerate(labels):
            ks, centre, low, high = _points(result, name, label)
            style = _style(at)
            text = _short(label, 26) if axis is axes.flat[0] else None
            axis.plot(ks, centre, lw=1.6, ls=_LINES[at % len(_LINES)], ms=5, label=text, **style)
            axis.fill_between(ks, low, high, color=style["color"], alpha=0.14, lw=0)
        axis.set_title(titles[name], fontsize=10.5)
        axis.set_ylim(_share_limits(axis.get_ylim()))
        axis.set_xlabel("answers k")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel("% of incidents")
    _legend_above(axes.flat[0], len(labels))
    return figure


def _points(result: Mapping[str, Any], name: str, label: str) -> tuple[list[float], ...]:
    """k, value, low and high in percent; without an interval the bounds are the value."""
    points = [point for point in result["over_k"][name]["values"][label] if point["value"] is not None]
    bounds = [[100 * (p[end] if p[end] is not None else p["value"]) for p in points] for end in ("low", "high")]
    return [p["k"] for p in points], [100 * p["value"] for p in points], *bounds
