"""Rows of a step whose reward is missing, and the rows that a colocated reward model is asked about: plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto

__all__ = ["RewardFailures", "final_outputs", "reward_failures", "rows_of", "score_row", "scoring_batch", "session_of"]


def rows_of(column) -> list:
    """A column of TransferQueue by rows: nested tensors, numpy arrays and lists of several kinds come out of it."""
    if isinstance(column, torch.Tensor):
        return list(column.unbind())
    return column.tolist() if hasattr(column, "tolist") else list(column)


def session_of(key: str) -> str:
    """``{prompt}_{session}`` of verl's key ``{prompt}_{session}_{output}``."""
    return key.rpartition("_")[0]


def final_outputs(keys: Sequence[str]) -> list[str]:
    """The keys of the last output of each session."""
    last: dict[str, tuple[int, str]] = {}
    for key in keys:
        session, _, output = key.rpartition("_")
        number = int(output)
        if session not in last or number > last[session][0]:
            last[session] = number, key
    return [key for _, key in last.values()]


@dataclass(frozen=True)
class RewardFailures:
    """What a step lacks.

    ``failed``: sessions whose score is not finite; ``alone``: sessions that are left without another answer to compare
    with; ``kept``: the keys of all other rows, in order; ``reason``: what the first failed session's reward said.
    """

    failed: tuple[str, ...]
    alone: tuple[str, ...]
    kept: tuple[str, ...]
    reason: str


def reward_failures(
    keys: Sequence[str],
    scores: Sequence[float],
    infos: Sequence[Mapping[str, Any]],
    compared: bool,
    group_size: int = 1,
) -> RewardFailures:
    """Sort the rows of a step by whether they can be trained on.

    Args:
        keys: verl's, one per row.
        scores: one per row; sums of the row's ``rm_scores``.
        infos: what the reward returned beside the score, one per row.
        compared: whether the advantage of an answer is taken against the other answers to its prompt; one that is left
            alone by failures would get its plain score for an advantage.
        group_size: answers that each prompt was asked for; those that are not among the rows never came.
    """
    sessions = {session_of(key) for key in keys}
    failed, reason = {}, ""
    for key, score, info in zip(keys, scores, infos):
        if not math.isfinite(score):
            failed[session_of(key)] = None
            reason = reason or str(info.get("rm_error") or "") or f"its score is {score}"
    left = Counter(session_of(session) for session in sessions - failed.keys())
    came = Counter(session_of(session) for session in sessions)
    torn = {session_of(session) for session in failed} | {uid for uid, count in came.items() if count < group_size}
    alone = {
        session: None
        for session in dict.fromkeys(session_of(key) for key in keys)
        if compared and session not in failed and session_of(session) in torn and left[session_of(session)] == 1
    }
    kept = tuple(key for key in keys if session_of(key) not in failed and session_of(key) not in alone)
    return RewardFailures(tuple(failed), tuple(alone), kept, reason)


def scoring_batch(rows: Sequence[Mapping[str, Any]], global_steps: int) -> DataProto:
    """Rows of TransferQueue as a reward manager wants them, like those that verl's agent loop makes.

    Args:
        rows: with ``prompts`` and ``responses`` (1-D int64), ``extra_fields`` and any of `SCORED_FIELDS`.
    """
    columns = {name: [row[name] for row in rows] for name in ("prompts", "responses")}
    masks = [[torch.ones_like(ids) for ids in column] for column in columns.values()]

    def padded(sequences):
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=0)

    tensors = {name: padded(column) for name, column in columns.items()}
    tensors["attention_mask"] = torch.cat([padded(column) for column in masks], dim=1)
    other = {name: _objects([row[name] for row in rows]) for name in SCORED_FIELDS if name in rows[0]}
    other |= {
        "tool_extra_fields": _objects([row["extra_fields"] for row in rows]),
        "global_steps": np.array([global_steps] * len(rows)),
    }
    if "num_turns" in other:
        other["__num_turns__"] = other.pop("num_turns")
    return DataProto(batch=TensorDict(tensors, batch_size=len(rows)), non_tensor_batch=other)


SCORED_FIELDS = ("raw_prompt", "data_source", "reward_model", "extra_info", "num_turns")


def _objects(values: list) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def score_row(mask: torch.Tensor, score: float) -> torch.Tensor:
    """float32 rewards per response token: ``score`` on the last token that the model wrote, 0 elsewhere.

    Args:
        mask: (response tokens,), 1 where the model wrote. Without such a token the score has no place and is lost.
    """
    scores = torch.zeros(len(mask), dtype=torch.float32)
    written = mask.nonzero()
    if len(written):
        scores[written[-1, 0]] = score
    return scores
