"""The candidate-line logistic regression (`evaluation.baseline.linear`) over what a fixed script of calls returns.

Every case is asked the same calls, whatever they say: failing requests, warnings, the metrics of every service, changes
and events. Of recorded answers, which have tools of their own: the lists that need no name, and what was recorded of
each thing by its name. The lines that name a service, its own name masked, decide whether it is the root cause; all
lines together the reason among those that the prompt lists. That nothing is wrong, or that it cannot be told, are
candidates too. One cause is named, without a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from verl_aiops.evaluation.baseline.asked import Asked
from verl_aiops.evaluation.baseline.linear import Linear, need_scikit_learn
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.questions import CaseQuestion
from verl_aiops.investigation.case import Case
from verl_aiops.investigation.recorded import Recorded, RecordedAnswer
from verl_aiops.investigation.tools import answer
from verl_aiops.investigation.tools.index import index_of
from verl_aiops.investigation.verdict import NO_FAULT, NOT_ENOUGH

__all__ = ["LinearInvestigator", "asked_of_case"]

_NOTHING = (NO_FAULT, NOT_ENOUGH)
_CHARS, _LINES = 1500, 20
# Arguments that name what a call is about, as `service_name`; those that only change how the answer is written.
_SUBJECT, _FORM = "_name", ("show_labels", "output_wide", "output_yaml", "label_selector")


class LinearInvestigator:
    """Learns from cases of one root cause, or of none.

    Raises:
        EvaluationError: scikit-learn is not installed, or there is no case to learn from.
    """

    def __init__(self) -> None:
        need_scikit_learn()
        self._linear = Linear(values=True)

    @property
    def size(self) -> int:
        """How many weights there are, after `fit`."""
        return self._linear.size

    def fit(self, questions: Sequence[CaseQuestion]) -> None:
        rows = [(question, _truth(question)) for question in questions]
        known = [(asked_of_case(question), truth) for question, truth in rows if truth is not None]
        if not known:
            raise EvaluationError("no case of one root cause, or of none, to learn from")
        self._linear.fit([asked for asked, _ in known], [truth for _, truth in known])

    def verdicts(self, questions: Sequence[CaseQuestion]) -> list[dict[str, Any]]:
        """A verdict for each case, in the form that a model gives it."""
        asked = [asked_of_case(question) for question in questions]
        return [_verdict(*found, row.types) for row, found in zip(asked, self._linear.answer(asked))]


def _truth(question: CaseQuestion) -> tuple[str, str] | None:
    truth = question.ground_truth
    causes = truth.get("root_causes") or []
    if not causes:
        return (NO_FAULT if truth.get("no_fault") else NOT_ENOUGH), ""
    return (causes[0]["component"], causes[0].get("reason") or "") if len(causes) == 1 else None


def _verdict(component: str, reason: str, reasons: Sequence[str]) -> dict[str, Any]:
    if component in _NOTHING:
        return {"root_causes": [], "verdict": component}
    cause = {"component": component} | ({"reason": reason} if reason in reasons and reason else {})
    return {"root_causes": [cause], "propagation": [], "evidence": []}


def asked_of_case(question: CaseQuestion) -> Asked:
    """A case as the regression reads it: what the script's calls return, and the names to choose from."""
    case = question.asked().case
    texts = _recorded(case.recorded) if case.recorded is not None else _scripted(case)
    lines = [line for text in (case.symptom, *texts) for line in text.split("\n")]
    names = _subjects(case.recorded) if case.recorded is not None else case.services
    reasons = tuple(question.ground_truth.get("reasons") or case.reasons) or ("",)
    return Asked(case.source, tuple(lines), (*names, *_NOTHING), reasons)


def _scripted(case: Case) -> Iterator[str]:
    index = index_of(case)
    start = None if index.since is None else index.clock.of(index.since)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("query_traces", {"status": "error", "start": start}),
        ("search_logs", {"level": "WARN", "start": start}),
        ("list_changes", {}),
        ("list_events", {"start": start}),
        *(("query_metrics", {"service": name}) for name in case.services if name in index.metrics_of),
    ]
    for name, arguments in calls:
        given = {key: value for key, value in arguments.items() if value is not None}
        yield answer(case, name, {**given, "limit": _LINES}, max_chars=_CHARS).text


def _recorded(recorded: Recorded) -> Iterator[str]:
    for row in recorded.answers:
        subject = _subject(row)
        if any(row.arguments.get(key) for key in _FORM) or subject is None and row.arguments.get("name"):
            continue
        text = row.text[:_CHARS]
        # whose answer it is stands in the call alone
        yield text if subject is None else "\n".join(f"{subject} {line}" for line in text.split("\n")[:_LINES])


def _subject(row: RecordedAnswer) -> str | None:
    found = (value for key, value in row.arguments.items() if key.endswith(_SUBJECT) and isinstance(value, str))
    return next((value for value in found if value), None)


def _subjects(recorded: Recorded) -> list[str]:
    return list(dict.fromkeys(name for row in recorded.answers if (name := _subject(row)) is not None))
