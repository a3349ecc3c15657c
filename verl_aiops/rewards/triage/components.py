"""Parts of the triage reward beyond those of its formula: each is one function and one line in `PARTS`."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

from verl_aiops.rewards.triage.answer import ParsedAnswer
from verl_aiops.rewards.triage.ground_truth import GroundTruth

RESULTS = (
    "score",
    "acc",
    "acc_main",
    "json_ok",
    "service_ok",
    "type_ok",
    "evidence",
    "evidence_precision",
    "evidence_recall",
    "quotes",
    "invented",
    "early_verdict",
    "overlong",
    "rounds",
    "chars",
    "reasoning",
    "reasoning_cut",
    "acc_all",
    "fields_ok",
    "fields_known",
)
"""What `compute_score` always returns; no part can have one of these names."""

_OF_MANAGERS = (
    "rule",
    "rm",
    "rm_raw",
    "rm_failed",
    "rm_error",
    "rm_spread",
)  # what the manager `aiops_combined` adds to them


class Reading(NamedTuple):
    """One answer as the reward has read it, for a component to measure.

    Attributes:
        answer: the last round's answer.
        service_ok: whether its service is right; so `type_ok`.
        early: texts of the rounds before the last, as the model wrote them but for reasoning blocks, of any length.
        final: text of the last round.
        incident_text: what may be quoted, "" where the row has none.
        truth: the row's ground truth.
    """

    answer: ParsedAnswer
    service_ok: bool
    type_ok: bool
    early: tuple[str, ...]
    final: str
    incident_text: str
    truth: GroundTruth


class RewardPart(NamedTuple):
    """A component of the reward.

    Attributes:
        measure: from a reading (`Reading`, or that of another reward) to a number from 0 to 1. What it reads is the
            model's: it must not raise, and must take time in proportion to the text's length at most.
        weight: default of the setting `NAME_weight`.
        costs: whether the weight is taken; else it is paid, and counts towards what a perfect answer earns.
    """

    measure: Callable[[Any], float]
    weight: float
    costs: bool = False


PARTS: dict[str, RewardPart] = {}
"""By name, under which `compute_score` returns what the part measured."""


def check_part(name: str, part: RewardPart, results: tuple[str, ...] = RESULTS) -> None:
    """Raises ValueError if a part cannot be used under its name; ``results`` are those of the reward it is added to."""
    taken = (*results, *_OF_MANAGERS)
    if not isinstance(name, str) or not name.isidentifier() or name in taken:
        raise ValueError(
            f"reward part {name!r}: expected a name of letters, digits and underscores that is no result of "
            f"the reward already ({', '.join(taken)})"
        )
    if not isinstance(part, RewardPart) or not callable(part.measure):
        raise ValueError(f"reward part {name!r}: expected RewardPart(function, weight), got {part!r}")


def measured(name: str, part: RewardPart, reading: Any) -> float:
    """What a part says of an answer, read as its reward reads answers.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    value = part.measure(reading)
    if not isinstance(value, Real) or not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"reward part {name!r}: expected a number from 0 to 1 from its function, got {value!r}")
    return float(value)
