"""What a line of an evaluation must hold beyond its keys and their types, so that nothing computed of it fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verl_aiops.evaluation.stats.metrics import METRICS
from verl_aiops.inputs.json_text import lone_surrogate
from verl_aiops.inputs.shown import brief
from verl_aiops.rewards.triage.answer import FIELDS
from verl_aiops.rewards.triage.components import RESULTS
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = ["SCORES", "content_fault"]

SCORES = tuple(name for name in RESULTS if name in METRICS and not METRICS[name].optional)
"""What the metrics need of the reward's results."""

_YES_OR_NO = frozenset(name for name in RESULTS if name in METRICS and METRICS[name].whole)
# of means and their differences, which must stay finite; an answer has not so many characters
_LARGEST = 1e12
# keys whose text a model wrote: such an answer may spell half of a surrogate pair
_ANSWERS = ("rounds", "predicted", "score", "error")


def content_fault(line: Mapping[str, Any]) -> str | None:
    """What is wrong with a line that has all keys of `answer_line.AnswerLine`, or None; `SCORES` must be there."""
    if not all(isinstance(text, str) for text in line["rounds"]):
        return "rounds: expected texts"
    if not all(isinstance(cut, bool) for cut in line["cut"]):
        return "cut: expected true or false for each round"
    if not all(_is_count(count) for count in line["tokens"] or ()):
        return "tokens: expected whole numbers"
    for key in ("sample", "seed"):
        if not _is_count(abs(line[key])):
            return f"{key}: expected a number of 64 bits, found {brief(line[key], 40)}"
    predicted = line["predicted"]
    if predicted is not None and not all(isinstance(predicted.get(key), str) for key in (*FIELDS, *predicted)):
        return "predicted: expected service and incident_type as text, and nothing that is none"
    try:
        read_ground_truth(line["ground_truth"])
    except ValueError as error:
        return str(error)
    half = lone_surrogate({key: value for key, value in line.items() if key not in _ANSWERS})
    if half:
        return half
    if line["score"] is not None:
        # those that only some evaluations have are metrics too
        for key in dict.fromkeys((*SCORES, *line["score"])):
            value = line["score"].get(key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                return f"score.{key}: expected a finite number, found {brief(value, 40)!r}"
            if key in _YES_OR_NO and value not in (0, 1):
                return f"score.{key}: expected 0 or 1, found {brief(value, 40)}"
            if abs(value) > _LARGEST:
                return f"score.{key}: expected a number of at most {_LARGEST:g}, found {brief(value, 40)}"
        if not line["rounds"]:
            return "rounds: expected the answer's text"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
