"""A comparison of investigations as figures and as one HTML file, by the means of `evaluation.report`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl_aiops.evaluation.investigation.evaluate import Line, shown
from verl_aiops.evaluation.investigation.metrics import METRICS
from verl_aiops.evaluation.report.html import environment, tone
from verl_aiops.evaluation.report.plots import Plot, difference_plot

__all__ = ["SLICED", "html_of_investigations", "plots_of_investigations"]

SLICED = ("acc_main", "any_service", "f1", "path_f1")
_DRAWN = ("acc_main", "any_service", "all_services", "reached", "grounded", "f1", "path_f1", "json_ok", "abstained")
# Of which less is better; of some neither is.
_LOWER, _NEITHER = ("invented", "calls", "failed_calls", "tokens"), ("abstained",)
_MOST_CHARS = 6000


def plots_of_investigations(result: Mapping[str, Any]) -> list[Plot]:
    """Differences to the first run of a comparison (`compare.compare_investigations`), of all cases and by slice."""
    first, *others = result["runs"]

    def changes(one: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {label: one["differences"][label]["metrics"][name] for label in others}

    def drawn(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        return {title: row for title, row in rows.items() if any(one["value"] is not None for one in row.values())}

    rows = drawn({METRICS[name].title: changes(result, name) for name in _DRAWN})
    slices = drawn(
        {
            f"{name} (n = {one['cases']:,})": changes(one, "acc_main")
            for some in result["slices"].values()
            for name, one in some.items()
        }
    )
    said = f"Differences to {first} with 95 % intervals"
    plots = [difference_plot("differences", f"{said}: {', '.join(rows)}.", [first, *others], rows)] if rows else []
    if slices:
        alt = f"{said} in the exact set of root causes, by {', '.join(result['slices'])}."
        plots.append(difference_plot("slices", alt, [first, *others], slices))
    return plots


def html_of_investigations(
    result: Mapping[str, Any], lines: Mapping[str, Sequence[Line]], plots: Sequence[Plot], examples: int
) -> str:
    """The page.

    Args:
        lines: of each run.
        examples: cases in each direction for each comparison.
    """
    from markupsafe import Markup

    first, *others = result["runs"]

    def table(names: Sequence[str]) -> list[tuple[str, str, int | None, str | None]]:
        better = {name: "lower" if name in _LOWER else None if name in _NEITHER else "higher" for name in names}
        return [(name, METRICS[name].title, METRICS[name].digits, better[name]) for name in names]

    return (
        environment()
        .get_template("investigations.html.j2")
        .render(
            result=result,
            first=first,
            others=others,
            metrics=table(list(METRICS)),
            sliced=table(SLICED),
            plots={plot.name.partition(".")[0]: Markup(plot.svg) for plot in plots},
            shown=shown,
            tone=lambda change, better: tone(change, better),
            examples={label: _examples(first, lines[first], label, lines[label], examples) for label in others},
        )
    )


def _examples(first: str, before: Sequence[Line], label: str, after: Sequence[Line], most: int) -> list[dict[str, Any]]:
    """Cases whose first answer is right in one run alone, in the order of the file; those gained first."""
    old, new = ({line["id"]: line for line in reversed(own)} for own in (before, after))
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for name in dict.fromkeys(line["id"] for line in before):
        if name not in new:
            continue
        right = [bool(own[name]["score"]["acc_main"]) for own in (old, new)]
        some = found[right[1]]
        if right[0] != right[1] and len(some) < most:
            truth = {key: old[name]["ground_truth"].get(key) for key in ("root_causes", "propagation", "no_fault")}
            answers = [_answer(run, own[name]) for run, own in ((first, old), (label, new))]
            said = json.dumps({key: value for key, value in truth.items() if value}, ensure_ascii=False)
            some.append({"id": name, "gained": right[1], "truth": said, "answers": answers})
    return found[True] + found[False]


def _answer(run: str, line: Line) -> dict[str, Any]:
    parts = []
    for turn, text in enumerate(line["rounds"]):
        parts.append(("model", *_cut(text)))
        parts += [
            (f"tool {call.get('name')}", *_cut(str(call.get("reply"))))
            for call in line["tool_calls"]
            if isinstance(call, Mapping) and call.get("turn") == turn
        ]
    score = line["score"]
    return {"run": run, "right": bool(score["acc_main"]), "reward": f"{score['score']:.2f}", "parts": parts}


def _cut(text: str) -> tuple[str, int]:
    return text[:_MOST_CHARS], max(0, len(text) - _MOST_CHARS)
