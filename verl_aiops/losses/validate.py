"""Checks of the scalar settings: what would be out of range, contradictory or silently without effect is an error."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any

from verl_aiops.losses.divergence import F_DIVERGENCES
from verl_aiops.losses.settings import LossSettings, takes_settings
from verl_aiops.losses.table import LOSSES, LossSpec, kinds_of, loss_names

_PLURAL = {"pair": "pairs", "single": "single answers", "list": "ranked lists"}

_RANGES: dict[str, Callable[[float], bool]] = {
    "a finite number": lambda x: True,
    "> 0": lambda x: x > 0,
    ">= 0": lambda x: x >= 0,
    "in [0, 0.5]": lambda x: 0 <= x <= 0.5,
    "in [0, 0.5)": lambda x: 0 <= x < 0.5,
    "in (0, 0.5]": lambda x: 0 < x <= 0.5,
}


def check_number(name: str, value: float, allowed: str, why: str = "") -> None:
    """Raise ValueError unless ``value`` is a finite number in the range that ``allowed`` says in words."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not _RANGES[allowed](value):
        raise ValueError(f"{name} must be {allowed}{why}, got {value!r}")


def _those(has: Callable[[LossSpec], object]) -> str:
    return ", ".join(name for name, spec in LOSSES.items() if has(spec))


def weighted_losses(
    loss_type: str | Sequence[str], loss_weights: Sequence[float] | None, sft_weight: float
) -> tuple[tuple[str, float], ...]:
    """The terms of the sum: names with their weights, ``sft_weight`` turned into a term of its own.

    Raises:
        ValueError: as ``check_settings`` for these three.
    """
    names = loss_names(loss_type)
    weights = (1.0,) * len(names) if loss_weights is None else tuple(loss_weights)
    if len(weights) != len(names):
        raise ValueError(f"loss_weights has {len(weights)} values for {len(names)} losses {list(names)}")
    for weight in weights:
        check_number("each of loss_weights", weight, ">= 0")
    check_number("sft_weight", sft_weight, ">= 0")
    terms = tuple(zip(names, weights))
    if not sft_weight:
        return terms
    if "sft" in names:
        raise ValueError("sft_weight adds the loss 'sft', which loss_type names already; use one of the two")
    return (*terms, ("sft", sft_weight))


def terms_of(kind: str, settings: LossSettings) -> tuple[tuple[str, float], ...]:
    """The losses of one kind of example among the settings' (``table.KINDS``), each with its weight.

    Raises:
        ValueError: there is none, with the name of the function that computes those that there are.
    """
    terms = weighted_losses(settings.loss_type, settings.loss_weights, settings.sft_weight)
    found = tuple((name, weight) for name, weight in terms if LOSSES[name].of == kind)
    if not found:
        names = [name for name, _ in terms]
        functions = {"pair": "compute_dpo_loss", "single": "compute_answer_loss", "list": "compute_list_loss"}
        others = " and ".join(functions[other] for other in kinds_of(names))
        raise ValueError(f"loss_type {names} has no loss of {_PLURAL[kind]}; {others} computes what it has")
    return found


def build_settings(**given: Any) -> LossSettings:
    """Settings from keyword arguments, checked.

    Raises:
        TypeError: a name that is no setting.
        ValueError: as ``check_settings``.
    """
    known = [field.name for field in fields(LossSettings)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")
    settings = LossSettings(**given)
    check_settings(settings)
    return settings


@takes_settings
def validate_loss_args(**settings: Any) -> None:
    """Check the settings of the losses, which have the same names, defaults and meaning in each function that computes.

    Raises:
        TypeError, ValueError: as ``build_settings``.
    """
    build_settings(**settings)


def check_settings(settings: LossSettings) -> None:
    """Refuse what is out of range, contradictory or silently without effect.

    A trainer calls it once at start-up to fail early; ``compute_dpo_loss`` calls it too (microseconds, no tensors).

    Raises:
        ValueError: an unknown loss or f-divergence (the message lists those that exist); a number out of range (it
            names the range) or not a number; weights that do not match the losses; a setting that differs from its
            default while no chosen loss uses it; an f-divergence together with a loss that has no such form; losses of
            pairs together with losses of ranked lists, as a group of answers gives one or the other.
    """
    names = tuple(name for name, _ in weighted_losses(settings.loss_type, settings.loss_weights, settings.sft_weight))
    specs = [LOSSES[name] for name in names]
    kinds = kinds_of(names)
    if settings.sft_weight and "pair" not in kinds_of(settings.loss_type):
        raise ValueError(
            f"sft_weight={settings.sft_weight!r} adds a loss of pairs' chosen answers, and loss_type "
            f"{list(names[:-1])} has no loss of pairs"
        )
    if "pair" in kinds and "list" in kinds:
        lists = [name for name in names if LOSSES[name].of == "list"]
        raise ValueError(
            f"loss_type {list(names)}: {' and '.join(lists)} take{'s' * (len(lists) == 1)} a group of answers as "
            "one list, the others take it as pairs. Use losses of one kind"
        )

    for field in fields(LossSettings):
        if allowed := field.metadata["allowed"]:
            check_number(field.name, getattr(settings, field.name), allowed)
    divergence = settings.f_divergence_type
    if divergence not in F_DIVERGENCES:
        raise ValueError(f"unknown f_divergence_type {divergence!r}; there are: {', '.join(F_DIVERGENCES)}")

    for name, spec in zip(names, specs):
        if spec.smoothing:
            hint = " (its paper takes 1e-3)" if name == "exo_pair" else ""
            check_number("label_smoothing", settings.label_smoothing, f"in {spec.smoothing}", f" for {name}{hint}")
        if divergence != "reverse_kl" and spec.reference and not spec.any_f:
            raise ValueError(
                f"f_divergence_type={divergence!r} has no form for loss_type {name!r}; "
                f"it has one for {_those(lambda s: s.any_f)}"
            )

    # each setting that not every loss looks at: whether one of these does, and who would
    effect = {
        "label_smoothing": (any(spec.smoothing for spec in specs), _those(lambda s: s.smoothing)),
        "score_margin": (any(spec.has_gap for spec in specs), _those(lambda s: s.has_gap)),
        "desirable_weight": ("single" in kinds, _those(lambda s: s.of == "single")),
        "undesirable_weight": ("single" in kinds, _those(lambda s: s.of == "single")),
        "f_divergence_type": (any(spec.any_f for spec in specs), _those(lambda s: s.any_f)),
        "f_alpha_divergence_coef": (divergence == "alpha_divergence", "f_divergence_type='alpha_divergence'"),
    }
    for field in fields(LossSettings):
        if own := field.metadata["losses"]:
            used = any(name in own or field.name in LOSSES[name].own_knobs for name in names)
            effect[field.name] = used, ", ".join(own)
        used, who = effect.get(field.name, (True, ""))
        value = getattr(settings, field.name)
        if value != field.default and not used:
            raise ValueError(f"{field.name}={value!r} has no effect on loss_type {list(names)}; it is for {who}")
