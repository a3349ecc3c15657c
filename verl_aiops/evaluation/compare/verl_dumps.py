"""Generations that verl dumped in validation (``trainer.validation_data_dir``), as lines of an evaluation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_aiops.evaluation.answer_line import AnswerLine
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.json_lines import checked_lines
from verl_aiops.inputs.json_text import JsonFault, read_json
from verl_aiops.reasoning import ANY, visible
from verl_aiops.rewards.triage.answer import parse_answer
from verl_aiops.rewards.triage.ground_truth import fields_of

__all__ = ["dumped_steps", "read_dump"]

_ROUND = "round_{}"
_OUTPUT = re.compile(r"(.+_\d+)_\d+")


def dumped_steps(folder: Path) -> list[int]:
    """The steps of ``STEP.jsonl`` in a folder, ascending."""
    return sorted(int(file.stem) for file in folder.glob("*.jsonl") if re.fullmatch(r"\d+", file.stem))


def read_dump(file: Path) -> list[AnswerLine]:
    """The rows of one ``STEP.jsonl`` with the keys of `answer_line.AnswerLine`.

    A dump names no incidents: an incident is a prompt with its ground truth, and its ``id`` a hash of both. What is not
    in it is null, or empty (``cut``). Of several outputs of one agent loop the last counts, as in verl's reward. The
    score is the rule's (``rule``), also where a reward model had a say in the training's; a row without a finite one
    has an ``error`` instead.

    Raises:
        EvaluationError: a row is not what verl writes with the triage reward; names file, line and key.
    """
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row, _ in checked_lines(file, _fault):
        rows[_loop_of(row, number)] = number, row
    samples: dict[str, int] = {}
    answers = []
    for number, row in rows.values():
        try:
            answer = _answer_line(row)
        except ValueError as error:
            raise EvaluationError(f"{file}, line {number}: gts: {error}") from None
        answer["sample"] = samples[answer["id"]] = samples.get(answer["id"], -1) + 1
        answers.append(answer)
    return answers


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite ones: whatever else a reward logs may be NaN where it does not apply."""
    return {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


def _fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "expected an object"
    for key in ("input", "output"):
        if not isinstance(row.get(key), str):
            return f"{key}: expected text; is this a dump of trainer.validation_data_dir?"
    if not isinstance(row.get("gts"), str | dict):
        return "gts: expected the ground truth as JSON text or object"
    if not isinstance(row.get("acc_main"), int | float):
        return "acc_main: missing; only dumps of the triage reward (aiops_mturn, aiops_combined) can be compared"
    return None


def _loop_of(row: Mapping[str, Any], number: int) -> str:
    """Rows of one agent loop share their ``uid``, PROMPT_ANSWER_OUTPUT, up to its last number."""
    uid = row.get("uid")
    found = _OUTPUT.fullmatch(uid) if isinstance(uid, str) else None
    return found.group(1) if found else str(number)


def _turns(row: Mapping[str, Any]) -> list[str]:
    """The assistant's texts; columns of rounds that a row did not have are empty."""
    turns: list[str] = []
    while isinstance(text := row.get(_ROUND.format(len(turns) + 1)), str):
        turns.append(text)
    count = row.get("rounds")
    if isinstance(count, int | float) and 1 <= count < len(turns):
        return turns[: int(count)]
    if turns and isinstance(count, int | float) and math.isfinite(count) and count > len(turns):
        # several rounds share the last column, the answer stands at its end
        return [*turns, turns[-1].rpartition(f"\n\n[round {int(count)}]\n")[2]]
    while turns and not turns[-1]:
        turns.pop()
    return turns


def _answer_line(row: Mapping[str, Any]) -> AnswerLine:
    truth = row["gts"]
    if isinstance(truth, str):
        try:
            truth = read_json(truth)
        except JsonFault as error:
            raise ValueError(f"not JSON: {error}") from None
    if not isinstance(truth, dict):
        raise ValueError("expected an object")
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([row["input"], truth], sort_keys=True).encode())
    name = f"prompt-{digest.hexdigest()}"
    turns = _turns(row) or [row["output"]]
    # beside a reward model, `score` is what the training made of both; runs with and without one share the rule's
    reward = row.get("rule", row.get("score"))
    finite = isinstance(reward, int | float) and math.isfinite(reward)
    # in which form the training took an answer, the dump does not say but by json_ok
    answer = parse_answer(visible(turns[-1], ANY, None).text, allow_fence=True, fields=fields_of(truth))
    right_form = finite and answer.ok and row.get("json_ok")
    return {
        "id": name,
        "group": name,
        "source": None,
        "lang": None,
        "difficulty": None,
        "part": None,
        "answerable": None,
        "seed": 0,
        "rounds": turns,
        "cut": [],
        "tokens": None,
        "ground_truth": truth,
        "predicted": answer.fields if right_form else None,
        "score": _numbers(row) | {"score": reward} if finite else None,
        "error": None if finite else "no finite score",
    }
