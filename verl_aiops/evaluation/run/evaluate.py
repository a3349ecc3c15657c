"""One evaluation from questions to tables, resumable: `evaluate`.

A run that was killed goes on with the answers that are missing; those that are there are neither generated nor scored
again. Failed ones are tried again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Backend, Generation, Job, seed_of
from verl_aiops.evaluation.run.questions import Question
from verl_aiops.evaluation.run.rename_check import named, rename_questions
from verl_aiops.evaluation.run.results import AnswerFile, Folder, line_of, without_text
from verl_aiops.evaluation.run.summary import drop, section, summarise
from verl_aiops.evaluation.run.table import render
from verl_aiops.files import write_atomically
from verl_aiops.inputs.shown import one_line
from verl_aiops.rewards.triage.answer import FIELDS

__all__ = ["EvaluationPlan", "Report", "evaluate"]

# Failures in a row after which a run ends, to be taken up when the server is back: with no answer yet, and later.
_NEVER_UP, _GONE = 8, 32


@dataclass(frozen=True)
class EvaluationPlan:
    """How much is asked and how it is judged.

    ``samples`` per question; ``seed`` of sampling and intervals; ``reward``: settings of the reward; the run has failed
    when more than ``max_failed_share`` of the answers did; ``rename`` is the seed of the rename check, None for none,
    and ``rename_labels`` what it swaps (`rename_check.LABELS`).
    """

    samples: int = 1
    seed: int = 0
    reward: Mapping[str, Any] = field(default_factory=dict)
    max_failed_share: float = 0.05
    rename: int | None = None
    rename_labels: str = "both"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise EvaluationError(f"--n {self.samples}: expected 1 or more")
        if not 0 <= self.max_failed_share <= 1:
            raise EvaluationError(f"--max-failed-share {self.max_failed_share}: expected a share from 0 to 1")


@dataclass(frozen=True)
class Report:
    """``summary`` as in ``summary.json``; ``table`` as in ``table.txt``; ``fault``: why the run has failed, or ""."""

    summary: dict[str, Any]
    table: str
    fault: str


class _Stop(Exception):
    """The server is dead."""


def evaluate(
    questions: Sequence[Question],
    backend: Backend,
    out: str | Path,
    plan: EvaluationPlan,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Report:
    """Ask, score and summarise; see `results` and `summary` for the files in ``out``.

    Args:
        settings: whatever else the answers depend on, by the names of the options; they must not change between a run
            and the one that takes it up.

    Raises:
        EvaluationError: nothing to ask, a question that the model has no room for, or a folder with other answers.
    """
    if not questions:
        raise EvaluationError("no incidents to evaluate on")
    variants = {"generations.jsonl": list(questions)}
    left_out: dict[str, int] = {}
    if plan.rename is not None:
        variants["renamed.jsonl"], left_out = rename_questions(questions, plan.rename, plan.rename_labels)
        if not variants["renamed.jsonl"]:
            raise EvaluationError(f"--rename: no incident has labels that can be swapped: {left_out}")
    backend.check([question for asked in variants.values() for question in asked])
    with Folder(out, settings, overwrite) as folder:
        files = {name: AnswerFile(folder.path / name) for name in variants}
        try:
            jobs = {name: _jobs(asked, plan) for name, asked in variants.items()}
            try:
                fault = _generate(backend, files, jobs, plan)
            except KeyboardInterrupt:
                total = sum(map(len, jobs.values()))
                there = total - sum(len(files[name].missing(jobs[name])) for name in files)
                kept = f"{there:,} of {total:,} answers are in {one_line(folder.path)}"
                print(f"{kept}; the same command goes on from them", file=sys.stderr)
                raise
            lines = {name: files[name].in_order(jobs[name]) for name in variants}
        finally:
            for file in files.values():
                file.close()
        summary = _summary(lines, jobs, plan, settings, questions, left_out)
        fault = fault or _too_many(summary["counts"], lines, plan)
        table = render(summary)
        write_atomically(folder.path / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
        write_atomically(folder.path / "table.txt", table)
    return Report(summary, table, fault)


def _jobs(questions: Sequence[Question], plan: EvaluationPlan) -> list[Job]:
    return [
        Job(question, sample, seed_of(plan.seed, question.id, sample))
        for question in questions
        for sample in range(plan.samples)
    ]


def _generate(
    backend: Backend, files: Mapping[str, AnswerFile], jobs: Mapping[str, Sequence[Job]], plan: EvaluationPlan
) -> str:
    """Fill the files; returns why the run ended early, or ""."""
    from tqdm import tqdm

    total = sum(map(len, jobs.values()))
    failed = in_a_row = 0
    patience = _NEVER_UP
    missing = {name: files[name].missing(jobs[name]) for name in files}
    bar = tqdm(
        total=total, initial=total - sum(map(len, missing.values())), unit="answer", disable=None, file=sys.stderr
    )
    with bar:
        for name, file in files.items():

            def done(job: Job, made: Generation, file: AnswerFile = file) -> None:
                nonlocal failed, in_a_row, patience
                file.add(line_of(job, made, plan.reward))
                bar.update()
                if made.error is None:
                    in_a_row, patience = 0, _GONE
                    return
                failed += 1
                in_a_row += 1
                bar.set_postfix(failed=failed)
                if in_a_row >= patience and plan.max_failed_share < 1:
                    raise _Stop(f"{in_a_row} answers failed one after another, the last with: {made.error}")

            try:
                backend.generate(missing[name], done)
            except _Stop as stop:
                return f"{stop}. The same command goes on from here."
    return ""


def _too_many(counts: Mapping[str, int], lines: Mapping[str, Sequence[AnswerLine]], plan: EvaluationPlan) -> str:
    if counts["failed"] <= plan.max_failed_share * counts["asked"]:
        return ""
    errors = Counter(line["error"] for own in lines.values() for line in own)
    del errors[None]
    return (
        f"{counts['failed']:,} of {counts['asked']:,} answers failed (--max-failed-share {plan.max_failed_share:g}), "
        f"most often with: {errors.most_common(1)[0][0]}. The same command asks them again."
    )


def _summary(
    lines: Mapping[str, Sequence[AnswerLine]],
    jobs: Mapping[str, Sequence[Job]],
    plan: EvaluationPlan,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    everything = [line for own in lines.values() for line in own]
    asked = sum(map(len, jobs.values()))
    failed = sum(line["error"] is not None for line in everything)
    plain = lines["generations.jsonl"]
    summary: dict[str, Any] = {
        "settings": dict(settings),
        "counts": {
            "asked": asked,
            "answered": len(everything) - failed,
            "failed": failed,
            "failed_share": failed / asked,
            "no_text": without_text(everything),
            "missing": asked - len(everything),
            "complete": asked == len(everything),
        },
        **summarise(plain, plan.seed),
    }
    if plan.rename is not None:
        renamed = lines["renamed.jsonl"]
        names = {key: {question.id for question in questions if named(question, key)} for key in FIELDS}
        summary["renamed"] = section(renamed, plan.seed)
        summary["drop"] = {
            "incidents": summary["renamed"]["incidents"],
            "failed": summary["renamed"]["failed"],
            "left_out": dict(left_out),
            "metrics": drop(plain, renamed, names, plan.seed),
        }
    return summary
