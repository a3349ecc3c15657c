"""One incident's right and wrong answers as rows of preference data: pairs, a ranked group, or yes and no."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from verl_aiops.incidents.build.case import Case, assistant
from verl_aiops.incidents.build.pairs import Pair
from verl_aiops.incidents.io.writers import Columns

__all__ = ["COMMON_COLUMNS", "FORMS", "Form"]

Rows = list[dict[str, Any]]
# what rows of every form have beside their answers
COMMON_COLUMNS: Columns = {
    "id": "string",
    "group": "string",
    "weight": "double",
    "kind": "string",
    "lang": "string",
    "source": "string",
    "part": "string",
    "answerable": "string",
    "wording": "string",
    "ground_truth": "string",
    "incident_text": "string",
}
RIGHT = "right"


class Form(NamedTuple):
    """`what` a file of this form holds; `rows_of` an incident's pairs, all with the same right answer."""

    what: str
    columns: Columns
    rows_of: Callable[[Case, Sequence[Pair]], Rows]


def _pairs(case: Case, pairs: Sequence[Pair]) -> Rows:
    return [
        {
            "chosen": [assistant(pair.chosen)],
            "rejected": [assistant(pair.rejected)],
            "id": f"{case.incident.id}#{number}",
            "kind": pair.kind,
        }
        for number, pair in enumerate(pairs)
    ]


def share_right(answer: str, truth: Mapping[str, Any]) -> float:
    """Of the answer's names, service and incident type and what else is asked for, the share that is right."""
    names = json.loads(answer)
    return sum(names[field] == truth[field] for field in names) / len(names)


def _groups(case: Case, pairs: Sequence[Pair]) -> Rows:
    """The right answer and all near misses, scored by the share of names that are right."""
    if not pairs:
        return []
    right = json.loads(case.answer)
    answers = [case.answer, *(pair.rejected for pair in pairs)]
    completions = [{"messages": [assistant(text)], "score": share_right(text, right)} for text in answers]
    return [{"completions": completions, "id": case.incident.id, "kind": ",".join(pair.kind for pair in pairs)}]


def _labels(case: Case, pairs: Sequence[Pair]) -> Rows:
    """The right answer as a yes, every near miss as a no."""
    answers = [(case.answer, RIGHT), *((pair.rejected, pair.kind) for pair in pairs)] if pairs else []
    return [
        {
            "completion": [assistant(text)],
            "label": kind == RIGHT,
            "id": f"{case.incident.id}#{number}",
            "kind": kind,
        }
        for number, (text, kind) in enumerate(answers)
    ]


# A new form is one function and one line.
FORMS: dict[str, Form] = {
    "pairs": Form(
        "preference pairs",
        {"prompt": "messages", "chosen": "messages", "rejected": "messages", **COMMON_COLUMNS},
        _pairs,
    ),
    "groups": Form("ranked groups", {"prompt": "messages", "completions": "completions", **COMMON_COLUMNS}, _groups),
    "labels": Form(
        "yes/no feedback", {"prompt": "messages", "completion": "messages", "label": "bool", **COMMON_COLUMNS}, _labels
    ),
}
