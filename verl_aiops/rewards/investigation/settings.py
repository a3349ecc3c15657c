"""The knobs of the investigation reward, and the relations of its weights: right before abstaining before wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_aiops.reasoning import CHOICES, NONE
from verl_aiops.rewards.investigation.components import PARTS, RESULTS
from verl_aiops.rewards.settings_reader import SettingsReader
from verl_aiops.rewards.triage.components import RewardPart, check_part
from verl_aiops.settings import setting

__all__ = ["InvestigationSettings", "read_investigation_settings"]

_PART_RANGE = "[0.0, 1.0]"
# what can be taken from a right verdict; the first of them never from an abstention, which claims nothing
_COSTS = ("unsupported_weight", "invented_weight", "failed_weight", "calls_weight", "length_weight")


@dataclass(frozen=True)
class InvestigationSettings:
    """Weights and limits of `aiops_investigation.compute_score`, set through `reward_kwargs`.

    Weights are relative to the sum of those that the record can pay (format, causes, evidence, and path where the
    record knows it), so they need not add to one. ``parts`` is no setting: those of `components.PARTS` by name, each
    with its weight as set by `NAME_weight`.
    """

    causes_weight: float = setting(0.60, "paid, times precision and recall, for the root causes.", within="[0.01, 1.0]")
    path_weight: float = setting(
        0.15, "paid, times precision and recall of its edges and of the components, for the path.", within=_PART_RANGE
    )
    evidence_weight: float = setting(
        0.15, "paid, times the quality of the quotes, as far as the causes are right.", within=_PART_RANGE
    )
    format_weight: float = setting(0.05, "paid for a well-formed verdict.", within=_PART_RANGE)
    abstain_weight: float = setting(
        0.20, "paid for saying that the evidence is not enough where there is an answer.", within=_PART_RANGE
    )
    reason_credit: float = setting(
        0.5, "of a root cause's pay, for the right component with the wrong reason.", within=_PART_RANGE
    )
    unsupported_weight: float = setting(
        0.05, "taken, times the share of components that nothing the tools returned points at.", within=_PART_RANGE
    )
    invented_weight: float = setting(
        0.05, "taken in full for four quotes that no tool returned, in part for fewer.", within=_PART_RANGE
    )
    failed_weight: float = setting(
        0.03, "taken in full for four calls that no tool could answer, in part for fewer.", within=_PART_RANGE
    )
    calls_weight: float = setting(0.03, "taken in full for `call_budget` calls, in part for fewer.", within=_PART_RANGE)
    call_budget: int = setting(16, "calls that cost all of `calls_weight`.", within="[1, 1000]")
    length_weight: float = setting(
        0.03, "taken in full at twice the length budget, in part from the budget on.", within=_PART_RANGE
    )
    length_budget: int = setting(
        8000, "characters of the assistant, all turns together, that cost nothing.", within="[1, 1000000]"
    )
    min_quote_chars: int = setting(
        8, "characters other than white space below which a quote is ignored.", within="[4, 200]"
    )
    max_quote_chars: int = setting(
        400, "characters above which a quote is no choice, and ignored.", within="[20, 100000]"
    )
    allow_fence: bool = setting(False, "accept a verdict inside one Markdown fence.")
    reasoning: str = setting(
        NONE,
        "the markers of the model's reasoning blocks, a name of `reasoning.MARKERS` such as `think`, `any` or `none`; "
        "what stands in blocks at the beginning of a turn is neither read nor counted. Runs and evaluations take the "
        "model's own where nothing is set.",
        choices=CHOICES,
    )
    reasoning_opened: bool = setting(False, "the generation prompt opens such a block.")
    parts: tuple[tuple[str, RewardPart], ...] = ()


def _check_part(name: str, part: RewardPart) -> None:
    check_part(name, part, RESULTS)


def _check_together(settings: InvestigationSettings, weights: Mapping[str, float]) -> None:
    paid = sum(part.weight for _, part in settings.parts if not part.costs)
    parts = {name: weights[f"{name}_weight"] for name, part in settings.parts if part.costs}
    costs = {name: getattr(settings, name) for name in _COSTS} | {
        f"{name}_weight": cost for name, cost in parts.items()
    }
    taken, from_all = sum(costs.values()), sum(costs.values()) - settings.unsupported_weight
    abstain, causes, room = settings.abstain_weight, settings.causes_weight, 1e-9
    words = " + ".join(costs)
    more = " and what parts pay" if paid else ""
    if causes - taken - paid <= abstain + room:
        raise ValueError(
            f"reward_kwargs: causes_weight={causes:g} less {words}{more} ({taken + paid:g}) must stay above "
            f"abstain_weight={abstain:g}, or not to answer could earn more than the right answer"
        )
    if abstain <= from_all + paid + room:
        raise ValueError(
            f"reward_kwargs: abstain_weight={abstain:g} must stay above {words.partition(' + ')[2]}{more} "
            f"({from_all + paid:g}), or a wrong answer could earn more than none"
        )


_READER = SettingsReader(InvestigationSettings, PARTS, _check_part, _check_together)


def read_investigation_settings(kwargs: Mapping[str, Any]) -> InvestigationSettings:
    """Settings from the keyword arguments of one `compute_score` call; see `SettingsReader.read`.

    Raises:
        ValueError: an unknown or out-of-range setting, or weights under which a right verdict could earn less than an
            abstention, or an abstention less than a wrong verdict.
    """
    return _READER.read(kwargs)
