"""The metrics of an investigation, one line each in `METRICS`.

``exact``, ``any_service``, ``grounded`` after OpenRCA 2.0 (From Outcome Labels to Causal Process Supervision, 2026),
which tells the exact set of root causes, any of their services, and such a service grounded in its propagation path
apart. An answer is ``grounded`` here where a true root cause's component is named and a chain of named edges, all of
them true, leads from it to an end of the true path. Metrics of services count over cases with a fault, those of paths
over cases whose path is known. With several answers to a case all are means over the answers (avg@k).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from verl_aiops.rewards.investigation.ground_truth import InvestigationTruth, read_investigation_truth
from verl_aiops.rewards.investigation.verdict import Verdict

__all__ = ["METRICS", "Metric", "grounded"]

Line = Mapping[str, Any]


class Metric(NamedTuple):
    """A title, and a number from a line that has an answer; None where the line does not count. ``digits`` behind the
    point; None for shares, which are shown in percent."""

    title: str
    value: Callable[[Line], float | None]
    digits: int | None = None


def grounded(verdict: Verdict, truth: InvestigationTruth) -> bool:
    """Whether a true root cause that is named is joined to an end of the true path by named edges that are true."""
    label = truth.label
    right = {(label.get(a, a), label.get(b, b)) for a, b in verdict.edges} & truth.edges
    named = {component for component, _ in verdict.causes}
    roots = [cause.components for cause in truth.causes if not named.isdisjoint(cause.components)]
    starts = {end for end, _ in truth.edges}
    ends = {end for _, end in truth.edges} - starts
    seen = {label.get(name, name) for names in roots for name in names}
    left = list(seen)
    while left:
        at = left.pop()
        for one, other in right:
            if one == at and other not in seen:
                seen.add(other)
                left.append(other)
    return bool(seen & ends)


def _of(name: str) -> Callable[[Line], float | None]:
    return lambda line: line["score"].get(name)


def _with_fault(name: str) -> Callable[[Line], float | None]:
    return lambda line: line["score"].get(name) if line["ground_truth"].get("root_causes") else None


def _with_path(name: str) -> Callable[[Line], float | None]:
    return lambda line: line["score"].get(name) if line["score"].get("path_known") else None


def _grounded(line: Line) -> float | None:
    if not line["score"].get("path_known"):
        return None
    said = line["predicted"] or {"causes": [], "edges": []}
    causes, edges = (tuple(map(tuple, said[name])) for name in ("causes", "edges"))
    return float(grounded(Verdict(True, causes, edges), read_investigation_truth(line["ground_truth"])))


def _tokens(line: Line) -> float | None:
    return None if line["tokens"] is None else float(sum(line["tokens"]))


METRICS: dict[str, Metric] = {
    "acc_main": Metric("exact set of root causes", _of("acc_main")),
    "any_service": Metric("any root-cause service", _with_fault("any_service")),
    "all_services": Metric("all root-cause services", _with_fault("all_services")),
    "grounded": Metric("a root cause grounded in its path", _grounded),
    "precision": Metric("precision", _with_fault("precision")),
    "recall": Metric("recall", _with_fault("recall")),
    "f1": Metric("F1", _with_fault("f1")),
    "path_precision": Metric("precision of edges", _with_path("path_precision")),
    "path_recall": Metric("recall of edges", _with_path("path_recall")),
    "path_f1": Metric("F1 of edges", _with_path("path_f1")),
    "json_ok": Metric("well-formed verdict", _of("json_ok")),
    "abstained": Metric("abstained", _of("abstained")),
    "evidence": Metric("evidence paid", _of("evidence"), 3),
    "invented": Metric("invented quotes", _of("invented"), 2),
    "score": Metric("reward", _of("score"), 3),
    "calls": Metric("calls a case", _of("calls"), 2),
    "failed_calls": Metric("of them failed", _of("failed_calls"), 2),
    "tokens": Metric("tokens a case", _tokens, 1),
}
