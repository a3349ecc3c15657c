"""The metrics of an investigation, one line each in `METRICS`.

The exact set, any service, and paths after OpenRCA 2.0 (From Outcome Labels to Causal Process Supervision, 2026). An
answer has ``reached`` the symptom where a true root cause's component is named and a chain of named edges leads from it
to an end of the true path, whether these edges are true or not: ``path_reachability`` of the authors' evaluation
(OperationsPAI/rcabench-platform, commit a143390), where an answer without a true root cause counts as one that has not.
It is ``grounded`` where all edges of such a chain are true, which is more. ``node_f1`` and ``service_f1`` are their
``node_f1`` (all components of path and causes) and ``root_cause_f1`` (components without reasons).

Metrics of services count over cases with a fault, those of paths over cases whose path is known. With several answers
to a case all are means over the answers (avg@k).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from verl_aiops.rewards.investigation.ground_truth import InvestigationTruth, read_investigation_truth
from verl_aiops.rewards.investigation.verdict import Verdict

__all__ = ["METRICS", "Metric", "grounded", "node_f1", "reached", "service_f1"]

Line = Mapping[str, Any]
Value = Callable[[Line], float | None]


class Metric(NamedTuple):
    """A title, and a number from a line that has an answer; None where the line does not count. ``digits`` behind the
    point; None for shares, which are shown in percent."""

    title: str
    value: Value
    digits: int | None = None


def grounded(verdict: Verdict, truth: InvestigationTruth) -> bool:
    """Whether a true root cause that is named is joined to an end of the true path by named edges that are true."""
    return _joined(_edges(verdict, truth) & truth.edges, verdict, truth)


def reached(verdict: Verdict, truth: InvestigationTruth) -> bool:
    """Whether a true root cause that is named is joined to an end of the true path by named edges, true or not."""
    return _joined(_edges(verdict, truth), verdict, truth)


def _edges(verdict: Verdict, truth: InvestigationTruth) -> frozenset[tuple[str, str]]:
    return frozenset((truth.label.get(a, a), truth.label.get(b, b)) for a, b in verdict.edges)


def _joined(edges: Iterable[tuple[str, str]], verdict: Verdict, truth: InvestigationTruth) -> bool:
    label, following = truth.label, defaultdict(list)
    for one, other in edges:
        following[one].append(other)
    named = {component for component, _ in verdict.causes}
    roots = [cause.components for cause in truth.causes if not named.isdisjoint(cause.components)]
    starts = {end for end, _ in truth.edges}
    ends = {end for _, end in truth.edges} - starts
    seen = {label.get(name, name) for names in roots for name in names}
    left = list(seen)
    while left:
        for other in following[left.pop()]:
            if other not in seen:
                seen.add(other)
                left.append(other)
    return bool(seen & ends)


def node_f1(verdict: Verdict, truth: InvestigationTruth) -> float:
    """F1 of the components that stand in the path or among the causes."""
    label = truth.label
    named = {label.get(component, component) for component, _ in verdict.causes}
    true = {min(label.get(name, name) for name in cause.components) for cause in truth.causes}
    return _f1(named.union(*_edges(verdict, truth)), true.union(*truth.edges))


def service_f1(verdict: Verdict, truth: InvestigationTruth) -> float:
    """F1 of the causes' components, whatever their reasons."""
    label = truth.label
    named = {label.get(component, component) for component, _ in verdict.causes}
    return _f1(named, {min(label.get(name, name) for name in cause.components) for cause in truth.causes})


def _f1(named: Set[str], true: Set[str]) -> float:
    return 2 * len(named & true) / (len(named) + len(true)) if named or true else 1.0


def _of(name: str) -> Value:
    return lambda line: line["score"].get(name)


def _with_fault(name: str) -> Value:
    return lambda line: line["score"].get(name) if line["ground_truth"].get("root_causes") else None


def _with_path(name: str) -> Value:
    return lambda line: line["score"].get(name) if line["score"].get("path_known") else None


def _by_verdict(measure: Callable[[Verdict, InvestigationTruth], float], *, path: bool = True) -> Value:
    """Of a function of verdict and truth, over cases whose path is known, or else that have a fault."""

    def value(line: Line) -> float | None:
        if not (line["score"].get("path_known") if path else line["ground_truth"].get("root_causes")):
            return None
        said = line["predicted"] or {"causes": [], "edges": []}
        causes, edges = (tuple(map(tuple, said[name])) for name in ("causes", "edges"))
        return float(measure(Verdict(True, causes, edges), read_investigation_truth(line["ground_truth"])))

    return value


def _tokens(line: Line) -> float | None:
    return None if line["tokens"] is None else float(sum(line["tokens"]))


METRICS: dict[str, Metric] = {
    "acc_main": Metric("exact set of root causes", _of("acc_main")),
    "any_service": Metric("any root-cause service", _with_fault("any_service")),
    "all_services": Metric("all root-cause services", _with_fault("all_services")),
    "service_f1": Metric("F1 of root-cause services", _by_verdict(service_f1, path=False)),
    "reached": Metric("a root cause joined to the symptom", _by_verdict(reached)),
    "grounded": Metric("a root cause grounded in its path", _by_verdict(grounded)),
    "precision": Metric("precision", _with_fault("precision")),
    "recall": Metric("recall", _with_fault("recall")),
    "f1": Metric("F1", _with_fault("f1")),
    "path_precision": Metric("precision of edges", _with_path("path_precision")),
    "path_recall": Metric("recall of edges", _with_path("path_recall")),
    "path_f1": Metric("F1 of edges", _with_path("path_f1")),
    "node_f1": Metric("F1 of the path's components", _by_verdict(node_f1)),
    "json_ok": Metric("well-formed verdict", _of("json_ok")),
    "abstained": Metric("abstained", _of("abstained")),
    "evidence": Metric("evidence paid", _of("evidence"), 3),
    "invented": Metric("invented quotes", _of("invented"), 2),
    "score": Metric("reward", _of("score"), 3),
    "calls": Metric("calls a case", _of("calls"), 2),
    "failed_calls": Metric("of them failed", _of("failed_calls"), 2),
    "tokens": Metric("tokens a case", _tokens, 1),
}
