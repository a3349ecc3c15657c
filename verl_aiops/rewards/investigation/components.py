"""Parts of the investigation reward beyond those of its formula: each is one function and one line in `PARTS`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from verl_aiops.rewards.investigation.ground_truth import InvestigationTruth
from verl_aiops.rewards.investigation.matching import Matched
from verl_aiops.rewards.investigation.transcript import Transcript
from verl_aiops.rewards.investigation.verdict import Verdict
from verl_aiops.rewards.triage.components import RewardPart

__all__ = ["PARTS", "RESULTS", "Reading"]

RESULTS = (
    "score",
    "acc",
    "acc_main",
    "json_ok",
    "causes",
    "precision",
    "recall",
    "f1",
    "any_service",
    "all_services",
    "components",
    "reasons",
    "path_precision",
    "path_recall",
    "path_f1",
    "path_known",
    "evidence",
    "quotes",
    "invented",
    "unsupported",
    "abstained",
    "no_fault",
    "calls",
    "failed_calls",
    "repeated_calls",
    "rounds",
    "chars",
    "overlong",
    "reasoning",
    "reasoning_cut",
)
"""What `compute_score` always returns; no part can have one of these names."""


class Reading(NamedTuple):
    """One investigation as the reward has read it, for a part to measure.

    Attributes:
        verdict: the last message's verdict; ``verdict.given`` is the object as the model wrote it.
        matched: its causes beside the true ones.
        transcript: all texts of the assistant, as it wrote them, and all calls with what they returned.
        truth: the row's ground truth as the reward reads it.
        ground_truth: the same as it stands in the data, whole.
    """

    verdict: Verdict
    matched: Matched
    transcript: Transcript
    truth: InvestigationTruth
    ground_truth: Mapping[str, Any]


PARTS: dict[str, RewardPart] = {}
"""By name, under which `compute_score` returns what the part measured; ``measure`` gets a `Reading`."""
