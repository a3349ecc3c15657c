"""What an evaluation asks of whatever generates: answers in rounds, one conversation per incident and sample."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.questions import Question

__all__ = ["NO_TEXT", "Backend", "Done", "Generation", "Job", "SamplingOptions", "budgets_of", "seed_of"]


NO_TEXT = "no text: "
"""How the error of an answer begins for which a reply came, but none with text; the sort of reply follows."""

# verl's default of data.max_response_length
MAX_RESPONSE_LENGTH = 512


@dataclass(frozen=True)
class Job:
    """One conversation to be had: sample number ``sample`` of a question."""

    question: Question
    sample: int
    seed: int


@dataclass(frozen=True)
class Generation:
    """One conversation as it went, or the reason why there is none.

    ``turns`` are the assistant's texts, ``cut`` says of each whether it used up its budget without ending,
    ``tokens`` how many it has (None where the server does not say). With ``error`` these hold what was before it;
    ``of_server`` says that any other conversation would have met it too (`http.HttpFault`).
    """

    turns: list[str] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    tokens: list[int] | None = None
    error: str | None = None
    of_server: bool = False


@dataclass(frozen=True)
class SamplingOptions:
    """How answers are drawn, in the words of verl's configuration.

    ``max_response_length`` bounds all rounds and, with a local model, what stands between them (None: as much as
    ``round_tokens`` need, or 512 without them); ``round_tokens`` and ``answer_tokens`` divide it as in training
    (`rollout.turns.round_budgets`). Temperature 0 takes the likeliest token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_response_length: int | None = None
    round_tokens: tuple[int, ...] | None = None
    answer_tokens: int = 64
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise EvaluationError(f"--temperature {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise EvaluationError(f"--top-p {self.top_p}: expected a number above 0, at most 1")
        for name in ("max_response_length", "answer_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise EvaluationError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
        if self.round_tokens is not None and (not self.round_tokens or min(self.round_tokens) < 1):
            raise EvaluationError(
                f"--round-tokens: expected numbers of tokens such as 320,64, found {self.round_tokens}"
            )


Done = Callable[[Job, Generation], None]


class Backend(Protocol):
    """Something that generates.

    Attributes:
        reasoning: settings of the reward for the model's reasoning blocks, as far as they can be told.
    """

    reasoning: Mapping[str, Any]

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse what cannot work before anything expensive starts.

        Raises:
            EvaluationError: a model that cannot be used, or a question that it has no room for.
        """

    def generate(self, jobs: Sequence[Job], done: Done) -> None:
        """Have every conversation, in any order, and call ``done`` as each ends; what it raises ends the run."""


def seed_of(seed: int, question_id: str, sample: int) -> int:
    """The seed of one conversation, 0 to 2**31 - 1: the same in every run with the same ``seed``."""
    digest = hashlib.blake2b(f"{seed}/{question_id}/{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def budgets_of(question: Question, options: SamplingOptions, between: Sequence[int]) -> list[int]:
    """Tokens that the model may write in each round; ``between`` are the tokens between rounds.

    Raises:
        EvaluationError: they do not fit.
    """
    from verl_aiops.rollout.rounds.turns import round_budgets

    tokens = None if options.round_tokens is None else list(options.round_tokens)
    total = options.max_response_length
    if total is None:
        rounds = len(between) + 1
        total = MAX_RESPONSE_LENGTH if tokens is None else sum((tokens + tokens[-1:] * rounds)[:rounds]) + sum(between)
    try:
        return round_budgets(total, list(between), tokens, options.answer_tokens)
    except ValueError as error:
        raise EvaluationError(
            f"{question.id}: {error} Here they are --max-response-length, --round-tokens and --answer-tokens."
        ) from None
