"""The knobs of the reward: their ranges, and the relation between the weights that keeps correctness on top."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from verl_aiops.reasoning import CHOICES, NONE
from verl_aiops.rewards.settings_reader import SettingsReader
from verl_aiops.rewards.triage.components import PARTS, RewardPart, check_part
from verl_aiops.settings import setting

_PART_RANGE = "[0.0, 1.0]"
_EXTRAS = ("format_weight", "evidence_weight", "early_verdict_weight", "invented_weight", "length_weight")


@dataclass(frozen=True)
class RewardSettings:
    """Weights and limits of `aiops_mturn.compute_score`, set through `reward.custom_reward_function.reward_kwargs`.

    Weights are relative to the sum of those that pay (service, type, further fields, format, evidence), so they need
    not add to one.
    ``parts`` is no setting: those of `components.PARTS` by name, each with its weight as set by `NAME_weight`.
    """

    service_weight: float = setting(0.40, "paid for the right service.", within="[0.01, 1.0]")
    type_weight: float = setting(0.40, "paid for the right incident type.", within="[0.01, 1.0]")
    field_weight: float | None = setting(
        None,
        "paid for each further field that is asked for and right (severity, team); null: as much as the smaller of "
        "the two.",
        within="[0.01, 1.0]",
    )
    format_weight: float = setting(0.05, "paid for a well-formed answer.", within=_PART_RANGE)
    evidence_weight: float = setting(
        0.15, "paid, times the quality of the quotes, when both fields are right.", within=_PART_RANGE
    )
    early_verdict_weight: float = setting(
        0.05, "taken when a round before the last gives a verdict or JSON.", within=_PART_RANGE
    )
    invented_weight: float = setting(
        0.05, "taken in full for four invented or altered quotes, in part for fewer.", within=_PART_RANGE
    )
    length_weight: float = setting(
        0.05, "taken in full at twice the length budget, in part from the budget on.", within=_PART_RANGE
    )
    length_budget: int = setting(4000, "characters, all rounds together, that cost nothing.", within="[1, 1000000]")
    min_quote_chars: int = setting(
        8, "characters other than white space below which a quotation is ignored.", within="[4, 200]"
    )
    allow_fence: bool = setting(False, "accept an answer inside one Markdown fence.")
    reasoning: str = setting(
        NONE,
        "the markers of the model's reasoning blocks, a name of `reasoning.MARKERS` such as `think`, `any` or `none`; "
        "what stands in blocks at the beginning of a round is neither read nor counted. Runs and evaluations take the "
        "model's own where nothing is set.",
        choices=CHOICES,
    )
    reasoning_opened: bool = setting(False, "the generation prompt opens such a block.")
    parts: tuple[tuple[str, RewardPart], ...] = ()

    @property
    def of_field(self) -> float:
        """What a further field earns."""
        return min(self.service_weight, self.type_weight) if self.field_weight is None else self.field_weight

    @cached_property
    def paid(self) -> float:
        """The sum that a perfect answer to what every row asks for earns; further fields of a row join it."""
        more = sum(part.weight for _, part in self.parts if not part.costs)
        return self.service_weight + self.type_weight + self.format_weight + self.evidence_weight + more


def _check_together(settings: RewardSettings, weights: Mapping[str, float]) -> None:
    extras = {name: getattr(settings, name) for name in _EXTRAS} | dict(weights)
    smaller, of_what = min(settings.service_weight, settings.type_weight), "smaller of service_weight and type_weight"
    if settings.field_weight is not None and settings.field_weight < smaller:
        smaller, of_what = settings.field_weight, "smallest of service_weight, type_weight and field_weight"
    if sum(extras.values()) >= smaller * (1 - 1e-6):  # equal but for rounding is not below
        raise ValueError(
            f"reward_kwargs: {' + '.join(extras)} = {sum(extras.values()):g} must stay below the "
            f"{of_what} ({smaller:g}), or an answer could earn more by its form than by one right "
            "field"
        )


_READER = SettingsReader(RewardSettings, PARTS, check_part, _check_together)


def read_settings(kwargs: Mapping[str, Any]) -> RewardSettings:
    """Settings from the keyword arguments of one `compute_score` call; see `SettingsReader.read`.

    Raises:
        ValueError: an unknown or out-of-range setting, or weights under which correctness would no longer dominate.
    """
    return _READER.read(kwargs)
