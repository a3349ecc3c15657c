"""Fields of an answer beyond service and incident type (severity, team), as far as ground truths ask for them.

A line whose ground truth does not know the label of a field counts in no figure of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.rewards.triage.answer import match_label
from verl_aiops.rewards.triage.ground_truth import read_ground_truth

__all__ = ["ALL", "FIELD", "all_right", "asked_in", "field_right", "fields_shown"]

ALL = "acc_all"
"""The metric of all fields that are asked for."""
FIELD = "field/"
"""What stands before a further field's name in the name of its metric."""


def asked_in(lines: Iterable[AnswerLine]) -> tuple[str, ...]:
    """The further fields whose label any of these lines knows, in the order of asking."""
    return tuple(dict.fromkeys(name for line in lines for name, _ in read_ground_truth(line["ground_truth"]).more))


def fields_shown(names: Iterable[str]) -> tuple[str, ...]:
    """Those that names of metrics are of."""
    return tuple(name.removeprefix(FIELD) for name in names if name.startswith(FIELD))


def field_right(line: AnswerLine, field: str) -> float | None:
    """Whether a further field is right; None where its label is not known."""
    accepted = dict(read_ground_truth(line["ground_truth"]).more).get(field)
    if accepted is None:
        return None
    return float(match_label((line["predicted"] or {}).get(field), accepted))


def all_right(line: AnswerLine) -> float | None:
    """Whether all fields are right; None where only service and incident type are asked for."""
    more = read_ground_truth(line["ground_truth"]).more
    if not more:
        return None
    return float(bool(line["score"]["acc_main"]) and all(field_right(line, name) for name, _ in more))
