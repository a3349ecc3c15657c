"""The verdict: the one JSON object that ends an investigation, as the truth of a case would have it written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl_aiops.incidents.prompts import json_text
from verl_aiops.investigation.case import Case

__all__ = ["NOT_ENOUGH", "NO_FAULT", "right_verdict", "verdict_text"]

NO_FAULT, NOT_ENOUGH = "no_fault", "not_enough_evidence"


def right_verdict(case: Case, quotes: Sequence[str] = ()) -> dict[str, Any]:
    """What a model that knows the truth answers; `quotes` are its evidence, out of what tools said.

    Raises:
        ValueError: the truth about the case is not known.
    """
    if not case.truth_known:
        raise ValueError(f"case {case.id}: nobody knows its truth")
    if not case.root_causes:
        return {"root_causes": [], "verdict": NO_FAULT if case.no_fault else NOT_ENOUGH}
    causes = [
        {"component": cause.component} | ({"reason": cause.reason} if cause.reason else {})
        for cause in case.root_causes
    ]
    path = [{"from": edge.source, "to": edge.target} for edge in case.propagation]
    return {"root_causes": causes, "propagation": path, "evidence": list(quotes)}


def verdict_text(verdict: dict[str, Any]) -> str:
    """The spelling of a verdict: one line of JSON."""
    return json_text(verdict)
