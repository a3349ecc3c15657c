"""The knobs of the reward: their ranges, and the relation between the weights that keeps correctness on top."""

import difflib
import math
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from numbers import Integral, Real

from verl_aiops.reasoning import CHOICES, NONE
from verl_aiops.rewards.triage.components import PARTS, RewardPart, check_part

_VERL_KWARGS = frozenset(
    {
        "reward_router_address",
        "reward_model_tokenizer",
        "sandbox_fusion_url",
        "concurrent_semaphore",
        "memory_limit_mb",
    }
)

_EXTRAS = ("format_weight", "evidence_weight", "early_verdict_weight", "invented_weight", "length_weight")


@dataclass(frozen=True)
class RewardSettings:
    """Weights and limits of `aiops_mturn.compute_score`, set through `reward.custom_reward_function.reward_kwargs`.

    Weights are relative to the sum of the four that pay (service, type, format, evidence), so they need not add to one.

    Attributes:
        service_weight: paid for the right service.
        type_weight: paid for the right incident type.
        format_weight: paid for a well-formed answer.
        evidence_weight: paid, times the quality of the quotes, when both fields are right.
        early_verdict_weight: taken when a round before the last gives a verdict or JSON.
        invented_weight: taken in full for four invented or altered quotes, in part for fewer.
        length_weight: taken in full at twice the length budget, in part from the budget on.
        length_budget: characters, all rounds together, that cost nothing.
        min_quote_chars: characters other than white space below which a quotation is ignored.
        allow_fence: accept an answer inside one Markdown fence.
        reasoning: the markers of the model's reasoning blocks, a name of `reasoning.MARKERS` such as `think`, `any`
            or `none`; what stands in blocks at the beginning of a round is neither read nor counted. Runs and
            evaluations take the model's own where nothing is set.
        reasoning_opened: the generation prompt opens such a block.
        parts: those of `parts.PARTS` by name, each with its weight as set by `NAME_weight`.
    """

    service_weight: float = 0.40
    type_weight: float = 0.40
    format_weight: float = 0.05
    evidence_weight: float = 0.15
    early_verdict_weight: float = 0.05
    invented_weight: float = 0.05
    length_weight: float = 0.05
    length_budget: int = 4000
    min_quote_chars: int = 8
    allow_fence: bool = False
    reasoning: str = NONE
    reasoning_opened: bool = False
    parts: tuple[tuple[str, RewardPart], ...] = ()

    @cached_property
    def paid(self) -> float:
        """The sum that a perfect answer earns, by which scores are divided."""
        more = sum(part.weight for _, part in self.parts if not part.costs)
        return self.service_weight + self.type_weight + self.format_weight + self.evidence_weight + more


_DEFAULT = RewardSettings()
_KNOWN = tuple(field.name for field in fields(RewardSettings) if field.name != "parts")
_RANGES = {
    "service_weight": (0.01, 1.0),
    "type_weight": (0.01, 1.0),
    **{name: (0.0, 1.0) for name in _EXTRAS},
    "length_budget": (1, 1_000_000),
    "min_quote_chars": (4, 200),
}
_FLAGS = ("allow_fence", "reasoning_opened")
_PART_RANGE = (0.0, 1.0)


def read_settings(kwargs: dict) -> RewardSettings:
    """Settings from the keyword arguments of one `compute_score` call, with the parts that `PARTS` has by then.

    Arguments that verl's reward managers pass themselves are ignored. Any other unknown name is refused if it could
    have been meant as a setting: it speaks of a weight, resembles a setting, or has a number for its value.

    Raises:
        ValueError: an unknown or out-of-range setting, or weights under which correctness would no longer dominate.
    """
    if not kwargs and not PARTS:
        return _DEFAULT
    given = {name: value for name, value in kwargs.items() if name not in _VERL_KWARGS}
    if not given and not PARTS:
        return _DEFAULT
    # With the types, or True would find what was checked for 1.
    key = tuple((name, type(value), value) for name, value in given.items()), tuple(PARTS.items())
    try:
        return _build(*key)
    except TypeError:  # an unhashable value cannot be looked up; its check says what is wrong with it
        return _build.__wrapped__(*key)


@lru_cache(maxsize=64)
def _build(given: tuple, parts: tuple) -> RewardSettings:
    for name, part in parts:
        check_part(name, part)
    weights = {f"{name}_weight": part.weight for name, part in parts}
    if clash := [name for name in weights if name in _KNOWN]:
        raise ValueError(f"reward part {clash[0].removesuffix('_weight')!r}: {clash[0]} is a setting already")
    known = (*_KNOWN, *weights)
    values = {}
    for name, _, value in given:
        if name in known:
            values[name] = _checked(name, value)
        else:
            _refuse_if_meant(name, value, known)
    weights = {name: _checked(name, values.pop(name, weight)) for name, weight in weights.items()}
    weighed = tuple((name, part._replace(weight=weights[f"{name}_weight"])) for name, part in parts)
    settings = RewardSettings(**values, parts=weighed)
    extras = {name: getattr(settings, name) for name in _EXTRAS} | weights
    smaller = min(settings.service_weight, settings.type_weight)
    if sum(extras.values()) >= smaller * (1 - 1e-6):  # equal but for rounding is not below
        raise ValueError(
            f"reward_kwargs: {' + '.join(extras)} = {sum(extras.values()):g} must stay below the smaller of "
            f"service_weight and type_weight ({smaller:g}), or an answer could earn more by its form than by one right "
            "field"
        )
    return settings


def _checked(name: str, value: object) -> float | int | bool | str:
    if name in _FLAGS:
        if isinstance(value, bool):
            return value
        raise ValueError(f"reward_kwargs: {name}: expected true or false, got {value!r}")
    if name == "reasoning":
        if isinstance(value, str) and value in CHOICES:
            return value
        raise ValueError(f"reward_kwargs: reasoning: expected one of {', '.join(CHOICES)}, got {value!r}")
    low, high = _RANGES.get(name, _PART_RANGE)
    kind = Integral if isinstance(low, int) else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or not low <= value <= high:
        wanted = "an integer" if kind is Integral else "a number"
        raise ValueError(f"reward_kwargs: {name}: expected {wanted} from {low} to {high}, got {value!r}")
    return int(value) if kind is Integral else float(value)


def _refuse_if_meant(name: str, value: object, known: tuple[str, ...]) -> None:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    alike = bool(difflib.get_close_matches(name, known, n=1, cutoff=0.65))
    if alike or "weight" in name or isinstance(value, Real):
        low, high = (False, True) if nearest in _FLAGS else _RANGES.get(nearest, _PART_RANGE)
        takes = f"one of {', '.join(CHOICES)}" if nearest == "reasoning" else f"from {low} to {high}"
        raise ValueError(
            f"reward_kwargs: unknown setting {name!r}; the nearest known one is {nearest!r} ({takes}); "
            f"known: {', '.join(known)}"
        )
