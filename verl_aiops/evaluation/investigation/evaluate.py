"""One evaluation of investigations from questions to a table, resumable, beside the rule along the call graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.investigation.asking import CaseJob, Investigated
from verl_aiops.evaluation.investigation.metrics import METRICS
from verl_aiops.evaluation.investigation.questions import CaseQuestion
from verl_aiops.evaluation.json_lines import BY_EVAL, checked_lines
from verl_aiops.evaluation.run.backend import seed_of
from verl_aiops.evaluation.run.results import Folder
from verl_aiops.evaluation.run.table import as_columns
from verl_aiops.evaluation.stats.paired_tests import mean_intervals
from verl_aiops.evaluation.stats.shares import Of
from verl_aiops.files import write_atomically
from verl_aiops.inputs.shown import counted
from verl_aiops.investigation.rules import rule_verdict
from verl_aiops.rewards.aiops_investigation import compute_score, read_verdict

__all__ = [
    "SLICES",
    "Line",
    "by_slice",
    "evaluate_investigations",
    "read_investigations",
    "rule_lines",
    "said_lines",
    "shown",
    "summarise",
]

Line = dict[str, Any]
SLICES = ("part", "source", "lang")
"""Keys of a line by which cases are told apart; shown where they have more than one value."""
_OF_SLICES = ("acc_main", "any_service")


def line_of(job: CaseJob, made: Investigated, reward: Mapping[str, Any]) -> Line:
    """The line of one investigation in ``generations.jsonl``.

    Keys as `answer_line.AnswerLine` has them, with ``tool_calls`` and ``turn_calls`` as the agent loop keeps them, and
    ``predicted`` with ``causes`` and ``edges`` as compared; null where the answer is no verdict.
    """
    question = job.question
    line: Line = {
        "id": question.id,
        "group": question.group,
        "source": question.source,
        "lang": question.lang,
        "part": question.part,
        "sample": job.sample,
        "seed": job.seed,
        "rounds": made.turns,
        "cut": made.cut,
        "tokens": made.tokens,
        "tool_calls": made.tool_calls,
        "turn_calls": made.turn_calls,
        "ground_truth": question.ground_truth,
        "predicted": None,
        "score": None,
        "error": made.error,
    }
    if made.error is None:
        extra = {"turns": made.turns, "tool_calls": made.tool_calls, "turn_calls": made.turn_calls}
        line["score"] = compute_score("", made.turns[-1], question.ground_truth, extra, **reward)
        verdict = read_verdict(made.turns[-1], dict(reward))
        if verdict.ok and line["score"]["json_ok"]:
            line["predicted"] = {"causes": list(verdict.causes), "edges": list(verdict.edges)}
    return line


def rule_lines(questions: Sequence[CaseQuestion], reward: Mapping[str, Any]) -> list[Line]:
    """What the rule along the call graph says of the same cases."""
    return said_lines(questions, [rule_verdict(question.asked().case) for question in questions], reward)


def said_lines(
    questions: Sequence[CaseQuestion], verdicts: Sequence[Mapping[str, Any]], reward: Mapping[str, Any]
) -> list[Line]:
    """Lines of verdicts that no model gave: no tool is called, so that no calls are judged."""
    lines = []
    for question, verdict in zip(questions, verdicts):
        text = json.dumps(verdict)
        line = line_of(CaseJob(question, 0, 0), Investigated([text], [False], None, [], [0]), reward)
        line["score"] = compute_score("", text, question.ground_truth, {"turns": [text]}, **reward)
        lines.append(line)
    return lines


def evaluate_investigations(
    questions: Sequence[CaseQuestion],
    backend: Any,
    out: str | Path,
    settings: Mapping[str, Any],
    reward: Mapping[str, Any],
    *,
    samples: int = 1,
    seed: int = 0,
    max_failed_share: float = 0.05,
    overwrite: bool = False,
) -> tuple[str, str]:
    """Ask, score and summarise: ``generations.jsonl``, ``summary.json`` and ``table.txt`` in ``out``.

    Args:
        backend: with ``prepare`` called.
        settings: what the answers depend on; they must not change between a run and the one that takes it up.

    Returns:
        the table, and why the run has failed, or "": more than ``max_failed_share`` of the investigations did.

    Raises:
        EvaluationError: nothing to ask, or a folder with other answers.
    """
    from tqdm import tqdm

    if not questions:
        raise EvaluationError("no cases to evaluate on")
    jobs = [CaseJob(q, sample, seed_of(seed, q.id, sample)) for q in questions for sample in range(samples)]
    with Folder(out, settings, overwrite) as folder:
        path = folder.path / "generations.jsonl"
        kept = {(line["id"], line["sample"]): line for line in _kept(path) if line["error"] is None}
        missing = [job for job in jobs if (job.question.id, job.sample) not in kept]
        _write(path, kept.values())
        with (
            path.open("a", encoding="utf-8") as file,
            tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="case", disable=None, file=sys.stderr) as bar,
        ):

            def done(job: CaseJob, made: Investigated) -> None:
                line = line_of(job, made, reward)
                kept[line["id"], line["sample"]] = line
                file.write(json.dumps(line) + "\n")
                file.flush()
                bar.update()

            backend.investigate(missing, done)
        lines = [kept[job.question.id, job.sample] for job in jobs]
        _write(path, lines)
        failed = sum(line["error"] is not None for line in lines)
        rule = rule_lines(questions, reward)
        summary = {
            "settings": dict(settings),
            "counts": {"asked": len(jobs), "failed": failed},
            "model": summarise(lines, seed),
            "rule": summarise(rule, seed),
            "by": {key: some for key in SLICES if len(some := _by(lines, rule, key, seed)) > 1},
        }
        table = _render(summary, len(questions), samples)
        write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_atomically(folder.path / "table.txt", table)
    errors = [line["error"] for line in lines if line["error"] is not None]
    if len(errors) <= max_failed_share * len(jobs):
        return table, ""
    return (
        table,
        f"{failed} of {len(jobs)} investigations failed, first with: {errors[0]}. The same command goes on.",
    )


def _kept(path: Path) -> list[Line]:
    """Lines of a run that was ended; a last one without its end is left out."""
    return read_investigations(path, unfinished=True) if path.exists() else []


def read_investigations(path: str | Path, unfinished: bool = False) -> list[Line]:
    """The lines of a ``generations.jsonl`` of investigations.

    Raises:
        EvaluationError: a line is not what an evaluation writes; names file and line.
    """
    return [line for _, line, _ in checked_lines(Path(path), _fault, BY_EVAL, unfinished)]


def _fault(line: Any) -> str | None:
    kinds = {
        "id": str,
        "group": str,
        "sample": int,
        "rounds": list,
        "cut": list,
        "tool_calls": list,
        "turn_calls": list,
    }
    if not isinstance(line, dict):
        return "expected an object"
    wrong = [key for key, kind in (kinds | {"ground_truth": dict}).items() if not isinstance(line.get(key), kind)]
    if wrong:
        return f"{wrong[0]}: missing, or of another kind"
    called = {"turn": int, "name": str, "result": str, "reply": str}
    for call in line["tool_calls"]:
        if not isinstance(call, dict) or not all(isinstance(call.get(key), kind) for key, kind in called.items()):
            return "tool_calls: expected objects with turn, name, result and reply"
    if (line.get("score") is None) == (line.get("error") is None):
        return "score, error: expected one of them"
    if line["score"] is not None and not all(isinstance(v, int | float) for v in line["score"].values()):
        return "score: expected numbers"
    return None


def _write(path: Path, lines: Any) -> None:
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))


def values(lines: Sequence[Line]) -> np.ndarray:
    """(lines, metrics): what each line counts for each metric, NaN where it does not."""
    found = [[metric.value(line) for metric in METRICS.values()] for line in lines]
    return np.array([[np.nan if value is None else value for value in row] for row in found], dtype=float)


def held(several: bool, difference: bool = False) -> list[Of | None]:
    """Of each metric what it holds, as intervals need to know it."""
    whole = {"acc_main", "any_service", "all_services", "reached", "grounded", "json_ok", "abstained"}
    return [
        None
        if metric.digits is not None and name not in ("score", "evidence")
        else Of(name in whole and not several, name not in whole, difference)
        for name, metric in METRICS.items()
    ]


def summarise(lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Every metric with its 95 % interval over faults."""
    answered = [line for line in lines if line["error"] is None]
    if not answered:
        return {}
    groups = np.unique([line["group"] for line in answered], return_inverse=True)[1]
    several = len({line["id"] for line in answered}) < len(answered)
    means = mean_intervals(values(answered), groups, seed, held(several))
    return {name: mean._asdict() if hasattr(mean, "_asdict") else asdict(mean) for name, mean in zip(METRICS, means)}


def by_slice(lines: Sequence[Line], key: str) -> dict[str, list[Line]]:
    """Lines by what they say under the key."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(str(line.get(key) or "unknown"), []).append(line)
    return found


def _by(lines: Sequence[Line], rule: Sequence[Line], key: str, seed: int) -> dict[str, Any]:
    of_model, of_rule = by_slice(lines, key), by_slice(rule, key)
    return {
        name: {
            "cases": len(of_rule[name]),
            "model": summarise(of_model[name], seed),
            "rule": summarise(of_rule[name], seed),
        }
        for name in sorted(of_model)
    }


def shown(value: Mapping[str, Any] | None, digits: int | None) -> str:
    """`61.2 % [54, 68]`, or a number with its interval."""
    if not value or value["value"] is None:
        return "-"
    scale, number = (100, "{:.1f} %") if digits is None else (1, f"{{:.{digits}f}}")
    text = number.format(scale * value["value"])
    if value["low"] is None:
        return text
    edge = "{:.0f}" if digits is None else f"{{:.{digits}f}}"
    return f"{text} [{edge.format(scale * value['low'])}, {edge.format(scale * value['high'])}]"


def _render(summary: Mapping[str, Any], cases: int, samples: int) -> str:
    counts = summary["counts"]
    head = (
        f"{counted(cases, 'case')}, {counts['asked'] - counts['failed']:,} investigations; 95 % intervals over faults"
    )
    if samples > 1:
        head += f"; means over {counted(samples, 'investigation')} of each case (avg@{samples})"
    if counts["failed"]:
        head += f"\n{counts['failed']:,} of {counts['asked']:,} failed and count in no figure"
    rows = [("", "model", "rule along the call graph")]
    for name, metric in METRICS.items():
        rule = summary["rule"].get(name) if name not in ("calls", "failed_calls", "tokens", "evidence") else None
        rows.append((metric.title, shown(summary["model"].get(name), metric.digits), shown(rule, metric.digits)))
    tables = [f"{head}\n{as_columns(rows)}"]
    for key, slices in summary["by"].items():
        titles = [f"{who}: {METRICS[name].title}" for name in _OF_SLICES for who in ("model", "rule")]
        lines = [(f"by {key}", "cases", *titles)]
        for name, one in slices.items():
            cells = (shown(one[who].get(key), None) for key in _OF_SLICES for who in ("model", "rule"))
            lines.append((name, f"{one['cases']:,}", *cells))
        tables.append(as_columns(lines))
    return "\n\n".join(tables) + "\n"
