"""Rows of files of prompts and pairs, of either task, each made into a question or refused by its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from verl_aiops.evaluation.errors import EvaluationError

__all__ = ["RL_KEYS", "rows_read", "with_ids_of_their_own"]

# verl's columns that say what is asked and what is true
RL_KEYS = ("prompt", "reward_model", "extra_info")


class _Asked(Protocol):
    @property
    def id(self) -> str: ...


Question = TypeVar("Question", bound=_Asked)


def rows_read(
    path: str, columns: Sequence[str], made: Callable[[Mapping[str, Any], int], Question]
) -> Iterator[tuple[str, Question]]:
    """Where each row stands, and what is made of its values and number.

    Raises:
        PreferenceDataError: the file cannot be read.
        EvaluationError: a row cannot be used; names file, row and what ``made`` said in a ValueError or OSError.
    """
    import numpy as np

    from verl_aiops.data.reading import open_files

    (file,) = open_files(path)
    for number, record in enumerate(file.records(list(columns), np.arange(file.rows))):
        try:
            if record.fault:
                raise EvaluationError(record.fault)
            question = made(record.values, number)
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{record.where}: {error}") from None
        yield record.where, question


def with_ids_of_their_own(rows: Iterator[tuple[str, Question]]) -> list[Question]:
    """The questions of `rows_read`.

    Raises:
        EvaluationError: two have one id; names both rows.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for where, question in rows:
        if question.id in seen:
            raise EvaluationError(
                f"{where}: extra_info.id: {question.id!r} was used in {seen[question.id]}; make ids unique"
            )
        seen[question.id] = where
        questions.append(question)
    return questions
