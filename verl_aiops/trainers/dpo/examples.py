"""The answers of an example as the rows that the model is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["ROWS_PER_PAIR", "Row", "rows_of", "tokens_seen"]

ROWS_PER_PAIR = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """An answer after its prompt, and what a loss is to know of it; `batch.AnswerBatch` describes the columns.

    ``prompt``, ``answer``: int64; ``mask``: float32. ``key``: of the prompt, by which rows are told to belong together.
    ``real``: False where the row only fills up its example.
    """

    prompt: torch.Tensor
    answer: torch.Tensor
    mask: torch.Tensor
    key: bytes
    beats: int = 0
    verdict: float = 0.0
    estimates_kl: float = 0.0
    rank: float = 0.0
    score: float = math.nan
    margin: float = 0.0
    real: bool = True


def rows_of(
    example: Mapping[str, Any], size: int = ROWS_PER_PAIR, *, estimates_kl: bool = False, scored: bool = False
) -> list[Row]:
    """The rows of an item of :class:`~verl_aiops.data.PreferenceDataset`, or of a pair that was made on line.

    Args:
        example: without ``kind`` a pair; instead of ``prompt_ids`` a pair may have ``chosen_prompt_ids`` and
            ``rejected_prompt_ids``, as answers that were sampled each bring the prompt that they were given.
        size: rows that every example of the run has. Examples of fewer answers are filled up.
        estimates_kl: whether a loss wants the answer to another prompt that single examples bring.
        scored: what is wanted of an answer is the score of its last token. Then a token follows it that stands for the
            score as others do for their log-probs: what predicts it is the answer's last token, and it is no input.
    """
    kind = example.get("kind", "pair")
    if kind == "pair":
        rows = [
            _row(
                example.get(f"{side}_prompt_ids", example.get("prompt_ids")),
                example[f"{side}_ids"],
                example[f"{side}_mask"],
                beats=int(side == "chosen"),
                margin=float(example.get("margin", 0.0)),
            )
            for side in ("chosen", "rejected")
        ]
    elif kind == "single":
        verdict = 1.0 if example["label"] else -1.0
        rows = [_row(example["prompt_ids"], example["answer_ids"], example["answer_mask"], verdict=verdict)]
        if estimates_kl:
            rows.append(_row(example["prompt_ids"], example["kl_ids"], example["kl_mask"], estimates_kl=1.0))
    else:
        columns = ("answers_ids", "answers_masks", "ranks", "scores")
        rows = [
            _row(example["prompt_ids"], ids, mask, rank=float(rank), score=float(score))
            for ids, mask, rank, score in zip(*(example[name] for name in columns), strict=True)
        ]
    if scored:
        rows = [_with_score(row) for row in rows]
    if len(rows) > size:
        raise ValueError(f"example {example.get('id')}: {len(rows)} answers, where the run has {size} rows an example")
    return rows + [_filler(rows[0])] * (size - len(rows))


def _row(prompt: Any, answer: Any, mask: Any, **facts: float) -> Row:
    prompt = torch.as_tensor(prompt, dtype=torch.int64)
    return Row(
        prompt=prompt,
        answer=torch.as_tensor(answer, dtype=torch.int64),
        mask=torch.as_tensor(mask, dtype=torch.float32),
        key=prompt.numpy().tobytes(),
        **facts,
    )


def _with_score(row: Row) -> Row:
    mask = torch.zeros(len(row.answer) + 1)
    mask[-1] = 1.0
    return replace(row, answer=torch.cat([row.answer, row.answer[-1:]]), mask=mask)


def _filler(row: Row) -> Row:
    """One token after one, neither of them trained on: with what the row begins with, so that a model that shares
    beginnings has nothing to do for it."""
    start = torch.cat([row.prompt, row.answer])[:2]
    return Row(prompt=start[:1], answer=start[1:], mask=torch.zeros(len(start) - 1), key=row.key, real=False)


def tokens_seen(rows: Sequence[Row], *, shares: bool) -> int:
    """Tokens that the model sees of rows computed together: equal rows once, and with ``shares`` each prompt once."""
    different = {(row.key, row.answer.numpy().tobytes()): row for row in rows}
    prompts = {row.key: len(row.prompt) for row in rows if row.real}
    answers = sum(len(row.answer) for row in different.values())
    return answers + (sum(prompts.values()) if shares else sum(len(row.prompt) for row in different.values()))
