"""A served model investigates cases: what it concluded, by which path, on what evidence, and what it asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.asking import CaseJob, EndpointInvestigator, Investigated, ToolOptions
from verl_aiops.evaluation.investigation.questions import CaseQuestion
from verl_aiops.evaluation.run.backend import SamplingOptions
from verl_aiops.evaluation.run.openai_backend import EndpointOptions
from verl_aiops.evaluation.run.server_watch import FailuresKept, ServerGone, require_server
from verl_aiops.inputs.shown import counted, one_line, printable
from verl_aiops.investigation import Case, read_cases
from verl_aiops.investigation.importers import cases_in
from verl_aiops.investigation.prompts import AskOptions, opening
from verl_aiops.reasoning import ANY, visible
from verl_aiops.rewards.investigation.verdict import parse_verdict

__all__ = ["Finding", "cases_of", "investigate", "told"]

_SHOWN_CALL = 120


@dataclass(frozen=True)
class Finding:
    """What became of one case. `verdict` is the object as the model gave it, None where it gave none, for `reason`."""

    case: Case
    verdict: Mapping[str, Any] | None
    reason: str
    calls: Sequence[Mapping[str, Any]]

    @property
    def evidence(self) -> list[tuple[str, str | None]]:
        """Each quote, and the tool whose answer it stands in word by word; None where it stands in none."""
        quotes = [quote for quote in (self.verdict or {}).get("evidence") or [] if isinstance(quote, str)]
        return [
            (quote, next((call["name"] for call in self.calls if call["ok"] and quote in call["result"]), None))
            for quote in quotes
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of one line: id, verdict or null, why there is none, unfounded quotes, calls with answers."""
        return {
            "id": self.case.id,
            "verdict": self.verdict,
            "error": self.reason or None,
            "quoted_from_nowhere": [quote for quote, tool in self.evidence if tool is None],
            "calls": [{key: call[key] for key in ("name", "arguments", "ok", "result")} for call in self.calls],
        }


def cases_of(source: str | Path, mapping: str | Path | None = None, case_id: str | None = None) -> list[Case]:
    """The cases of a folder of exports (`investigation.importers.house`), or of a file of cases; all, or one by its id.

    Raises:
        IncidentError, FileNotFoundError: as the readers say.
        EvaluationError: there is no case of this id.
    """
    path = Path(source)
    rows: Iterator[Case] = cases_in("house", path, mapping) if path.is_dir() else read_cases(path)
    cases = list(rows)
    if case_id is None:
        return cases
    found = [case for case in cases if case.id == case_id]
    if not found:
        there = one_line(", ".join(case.id for case in cases), 300)
        raise EvaluationError(f"--id {case_id}: {one_line(path)} has no such case; there are: {there}")
    return found


def investigate(
    cases: Sequence[Case],
    endpoint: EndpointOptions,
    asked: AskOptions,
    tools: ToolOptions,
    done: Callable[[Finding], None],
) -> None:
    """Have a served model investigate; `done` gets each finding when it is there, in whatever order.

    Raises:
        EvaluationError: nobody listens at the address, or the server is gone before all is done; says how many cases
            are left.
    """
    sampling = SamplingOptions(max_response_length=tools.max_response_length)
    backend = EndpointInvestigator(endpoint, sampling)
    by_id = {case.id: case for case in cases}
    questions = [
        CaseQuestion(
            id=case.id,
            group=case.split_group,
            source=case.source,
            lang=case.lang,
            part=None,
            messages=tuple(opening(case, asked)),
            info={
                "case": json.dumps(case.to_dict(), ensure_ascii=False),
                "tools": asked.tools,
                "answer_chars": asked.answer_chars,
            },
            ground_truth={},
        )
        for case in cases
    ]
    backend.prepare(tools, questions)
    require_server(endpoint)
    told = 0

    def tell(finding: Finding) -> None:
        nonlocal told
        told += 1
        done(finding)

    failures = FailuresKept(tell)
    try:
        backend.investigate(
            [CaseJob(question, 0, 0) for question in questions],
            lambda job, made: failures.add(_finding(by_id[job.question.id], made), made.error, made.of_server),
        )
        failures.end()
    except ServerGone as gone:
        raise EvaluationError(
            f"the server at {endpoint.url} gave no answer any more, the last time: {gone}. {told} of "
            f"{counted(len(cases), 'case')} investigated, {len(cases) - told} left (--id asks for one)"
        ) from None


def _finding(case: Case, made: Investigated) -> Finding:
    if made.error is not None:
        return Finding(case, None, made.error, made.tool_calls)
    # what a model thinks first, unless the server has taken it out, is no part of its verdict
    text = visible(made.turns[-1], ANY, None).text if made.turns else ""
    verdict = parse_verdict(text)
    return Finding(case, verdict.given if verdict.ok else None, "" if verdict.ok else verdict.reason, made.tool_calls)


def told(finding: Finding) -> str:
    """A finding for a person to read: cause, path, quotes, calls made."""
    case = finding.case
    lines = [f"{case.id}: {one_line(case.symptom, 200)}"]
    verdict = finding.verdict
    if verdict is None:
        lines.append(f"  no verdict: {finding.reason}")
    elif not verdict["root_causes"]:
        nothing = verdict.get("verdict") == "no_fault"
        lines.append("  no fault found" if nothing else "  not enough evidence")
    else:
        for cause in verdict["root_causes"]:
            reason = cause.get("reason")
            lines.append(f"  cause: {one_line(cause['component'])}{f' ({one_line(reason)})' if reason else ''}")
        path = [f"{one_line(edge['from'])} -> {one_line(edge['to'])}" for edge in verdict.get("propagation") or []]
        if path:
            lines.append(f"  path: {', '.join(path)}")
    for quote, tool in finding.evidence:
        where = f"[{tool}]" if tool else "[stands in no answer of a tool]"
        lines.append(f'  evidence: "{one_line(quote, 300)}" {where}')
    lines.append(f"  calls: {len(finding.calls)}")
    for call in finding.calls:
        arguments = one_line(call["arguments"], _SHOWN_CALL)
        lines.append(f"    {one_line(call['name'], 60)} {arguments}{'' if call['ok'] else ' (not answered)'}")
    return printable("\n".join(lines))
