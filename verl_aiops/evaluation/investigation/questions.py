"""What is asked in an evaluation of investigations: the rows of an RL file, each with its case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.rows import RL_KEYS, rows_read, with_ids_of_their_own
from verl_aiops.investigation.build import REWARD_NAME as SOURCE
from verl_aiops.rewards.investigation.ground_truth import read_investigation_truth
from verl_aiops.rollout.tools.cases import AskedCase, case_of

__all__ = ["CaseQuestion", "fingerprint", "holds_investigations", "read_case_questions"]


@dataclass(frozen=True)
class CaseQuestion:
    """One case as it is asked: ``messages`` stand before the model's first; ``info`` names the case (`asked`)."""

    id: str
    group: str
    source: str | None
    lang: str | None
    part: str | None
    messages: tuple[dict[str, Any], ...]
    info: Mapping[str, Any] = field(repr=False)
    ground_truth: dict[str, Any] = field(repr=False)

    def asked(self) -> AskedCase:
        return case_of(self.info)


def holds_investigations(path: str) -> bool:
    """Whether the first row of an RL file is an investigation; False where the file cannot be read."""
    import numpy as np

    from verl_aiops.data.errors import PreferenceDataError
    from verl_aiops.data.reading import open_files

    try:
        (file,) = open_files(path)
        rows = file.records(["data_source"], np.arange(min(1, file.rows)))
        return any(not row.fault and row.values.get("data_source") == SOURCE for row in rows)
    except (PreferenceDataError, OSError):
        return False


def read_case_questions(path: str) -> list[CaseQuestion]:
    """The rows of a parquet or JSONL file of `verl-aiops build-rl --task investigation`.

    Raises:
        PreferenceDataError: the file cannot be read.
        EvaluationError: a row or its case cannot be used; names file, row and key.
    """
    return with_ids_of_their_own(rows_read(path, RL_KEYS, _question))


def _question(row: Mapping[str, Any], number: int) -> CaseQuestion:
    info, model, prompt = row.get("extra_info"), row.get("reward_model"), row.get("prompt")
    if not isinstance(info, Mapping) or not isinstance(info.get("id"), str):
        raise EvaluationError("extra_info: expected an object with the id of the case")
    if not isinstance(model, Mapping):
        raise EvaluationError("reward_model: expected an object with ground_truth")
    if not isinstance(prompt, list) or not prompt or not all(isinstance(m, Mapping) for m in prompt):
        raise EvaluationError("prompt: expected a list of messages")
    truth = read_investigation_truth(model.get("ground_truth")).given
    question = CaseQuestion(
        info["id"],
        str(info.get("group") or info["id"]),
        info.get("source"),
        info.get("lang"),
        info.get("part"),
        tuple({"role": str(m.get("role")), "content": m.get("content")} for m in prompt),
        dict(info),
        dict(truth),
    )
    question.asked()
    return question


def fingerprint(questions: Sequence[CaseQuestion]) -> str:
    """A hash of everything that is asked and known, but for the cases' telemetry."""
    digest = hashlib.blake2b(digest_size=16)
    for question in questions:
        known = [question.id, question.messages, question.ground_truth, question.info.get("answer_chars")]
        digest.update(json.dumps(known, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
