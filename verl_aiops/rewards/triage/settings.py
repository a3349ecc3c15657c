"""The knobs of the reward: their ranges, and the relation between the weights that keeps correctness on top."""

import difflib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any

from verl_aiops.reasoning import CHOICES, NONE
from verl_aiops.rewards.triage.components import PARTS, RewardPart, check_part
from verl_aiops.settings import expected, fits, kinds, setting, settings_of

_VERL_KWARGS = frozenset(
    {
        "reward_router_address",
        "reward_model_tokenizer",
        "sandbox_fusion_url",
        "concurrent_semaphore",
        "memory_limit_mb",
    }
)

_PART_RANGE = "[0.0, 1.0]"
_EXTRAS = ("format_weight", "evidence_weight", "early_verdict_weight", "invented_weight", "length_weight")


@dataclass(frozen=True)
class RewardSettings:
    """Weights and limits of `aiops_mturn.compute_score`, set through `reward.custom_reward_function.reward_kwargs`.

    Weights are relative to the sum of the four that pay (service, type, format, evidence), so they need not add to one.
    ``parts`` is no setting: those of `components.PARTS` by name, each with its weight as set by `NAME_weight`.
    """

    service_weight: float = setting(0.40, "paid for the right service.", within="[0.01, 1.0]")
    type_weight: float = setting(0.40, "paid for the right incident type.", within="[0.01, 1.0]")
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

    @cached_property
    def paid(self) -> float:
        """The sum that a perfect answer earns, by which scores are divided."""
        more = sum(part.weight for _, part in self.parts if not part.costs)
        return self.service_weight + self.type_weight + self.format_weight + self.evidence_weight + more


_DEFAULT = RewardSettings()
_FIELDS = {of.name: of for of in settings_of(RewardSettings)}
# the weight of a part that is added is checked like this one
_PART = _FIELDS["format_weight"]


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
    if clash := [name for name in weights if name in _FIELDS]:
        raise ValueError(f"reward part {clash[0].removesuffix('_weight')!r}: {clash[0]} is a setting already")
    known = (*_FIELDS, *weights)
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


def _checked(name: str, value: Any) -> Any:
    of = _FIELDS.get(name, _PART)
    if not fits(of, value):
        raise ValueError(f"reward_kwargs: {name}: expected {expected(of)}, got {value!r}")
    return {"int": int, "float": float}.get(kinds(of)[0], lambda same: same)(value)


def _refuse_if_meant(name: str, value: object, known: tuple[str, ...]) -> None:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    alike = bool(difflib.get_close_matches(name, known, n=1, cutoff=0.65))
    if alike or "weight" in name or isinstance(value, Real):
        takes = expected(_FIELDS.get(nearest, _PART)).replace("true or false", "from False to True")
        takes = takes.removeprefix("a number ").removeprefix("an integer ")
        raise ValueError(
            f"reward_kwargs: unknown setting {name!r}; the nearest known one is {nearest!r} ({takes}); "
            f"known: {', '.join(known)}"
        )
