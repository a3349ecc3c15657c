"""What a line of an evaluation must hold beyond its keys and their types, so that nothing computed of it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verl_aiops.inputs.json_text import lone_surrogate
from verl_aiops.inputs.shown import brief
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = ["content_fault"]

_YES_OR_NO = ("acc_main", "json_ok", "service_ok", "type_ok", "early_verdict")
# of means and their differences, which must stay finite; an answer has not so many characters
_LARGEST = 1e12
# keys whose text a model wrote: such an answer may spell half of a surrogate pair
_ANSWERS = ("rounds", "predicted", "score", "error")


def content_fault(record: Mapping[str, Any], scores: tuple[str, ...]) -> str | None:
    """What is wrong with a line that has all keys of `records`, or None; ``scores`` must be there."""
    if not all(isinstance(text, str) for text in record["rounds"]):
        return "rounds: expected texts"
    if not all(isinstance(cut, bool) for cut in record["cut"]):
        return "cut: expected true or false for each round"
    if not all(_is_count(count) for count in record["tokens"] or ()):
        return "tokens: expected whole numbers"
    for key in ("sample", "seed"):
        if not _is_count(abs(record[key])):
            return f"{key}: expected a number of 64 bits, found {brief(record[key], 40)}"
    predicted = record["predicted"]
    if predicted is not None and not all(isinstance(predicted.get(key), str) for key in ("service", "incident_type")):
        return "predicted: expected service and incident_type as text"
    try:
        read_ground_truth(record["ground_truth"])
    except ValueError as error:
        return str(error)
    half = lone_surrogate({key: value for key, value in record.items() if key not in _ANSWERS})
    if half:
        return half
    if record["score"] is not None:
        # those that only some evaluations have are metrics too
        for key in dict.fromkeys((*scores, *record["score"])):
            value = record["score"].get(key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return f"score.{key}: expected a finite number, found {brief(value, 40)!r}"
            if key in _YES_OR_NO and value not in (0, 1):
                return f"score.{key}: expected 0 or 1, found {brief(value, 40)}"
            if abs(value) > _LARGEST:
                return f"score.{key}: expected a number of at most {_LARGEST:g}, found {brief(value, 40)}"
        if not record["rounds"]:
            return "rounds: expected the answer's text"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
