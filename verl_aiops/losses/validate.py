"""Checks of the scalar settings: what would be out of range, contradictory or silently without effect is an error."""

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real

from verl_aiops.losses.divergence import F_DIVERGENCES
from verl_aiops.losses.table import LOSSES, LossSpec, loss_names

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


def _check_effect(name: str, value: object, used: bool, names: tuple[str, ...], who: str) -> None:
    if value != _DEFAULTS[name] and not used:
        raise ValueError(f"{name}={value!r} has no effect on loss_type {list(names)}; it is for {who}")


def _those(has: Callable[[LossSpec], object]) -> str:
    return ", ".join(name for name, spec in LOSSES.items() if has(spec))


def weighted_losses(
    loss_type: str | Sequence[str], loss_weights: Sequence[float] | None, sft_weight: float
) -> tuple[tuple[str, float], ...]:
    """The terms of the sum: names with their weights, ``sft_weight`` turned into a term of its own.

    Raises:
        ValueError: as ``validate_loss_args`` for these three arguments.
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


def validate_loss_args(
    *,
    beta: float = 0.1,
    loss_type: str | Sequence[str] = "sigmoid",
    label_smoothing: float = 0.0,
    loss_weights: Sequence[float] | None = None,
    sft_weight: float = 0.0,
    simpo_gamma: float = 0.5,
    dpop_lambda: float = 50.0,
    discopop_tau: float = 0.05,
    f_divergence_type: str = "reverse_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> None:
    """Check the scalar arguments of ``compute_dpo_loss``, which have the same names, defaults and meaning there.

    A trainer calls it once at start-up to fail early; ``compute_dpo_loss`` calls it too (microseconds, no tensors).

    Raises:
        ValueError: an unknown loss or f-divergence (the message lists those that exist); a number out of range (it
            names the range) or not a number; weights that do not match the losses; a setting that differs from its
            default while no chosen loss uses it; an f-divergence together with a loss that has no such form.
    """
    names = tuple(name for name, _ in weighted_losses(loss_type, loss_weights, sft_weight))
    specs = [LOSSES[name] for name in names]

    check_number("beta", beta, "> 0")
    check_number("label_smoothing", label_smoothing, "in [0, 0.5]")
    check_number("simpo_gamma", simpo_gamma, ">= 0")
    check_number("dpop_lambda", dpop_lambda, ">= 0")
    check_number("discopop_tau", discopop_tau, "> 0")
    check_number("f_alpha_divergence_coef", f_alpha_divergence_coef, "a finite number")
    if f_divergence_type not in F_DIVERGENCES:
        raise ValueError(f"unknown f_divergence_type {f_divergence_type!r}; there are: {', '.join(F_DIVERGENCES)}")

    for name, spec in zip(names, specs):
        if spec.smoothing:
            hint = " (its paper takes 1e-3)" if name == "exo_pair" else ""
            check_number("label_smoothing", label_smoothing, f"in {spec.smoothing}", f" for {name}{hint}")
        if f_divergence_type != "reverse_kl" and spec.reference and not spec.any_f:
            raise ValueError(
                f"f_divergence_type={f_divergence_type!r} has no form for loss_type {name!r}; "
                f"it has one for {_those(lambda s: s.any_f)}"
            )

    smoothed = any(spec.smoothing for spec in specs)
    _check_effect("label_smoothing", label_smoothing, smoothed, names, _those(lambda s: s.smoothing))
    any_f = any(spec.any_f for spec in specs)
    _check_effect("f_divergence_type", f_divergence_type, any_f, names, _those(lambda s: s.any_f))
    alpha_used = f_divergence_type == "alpha_divergence"
    _check_effect(
        "f_alpha_divergence_coef", f_alpha_divergence_coef, alpha_used, names, "f_divergence_type='alpha_divergence'"
    )
    own = {"simpo_gamma": simpo_gamma, "dpop_lambda": dpop_lambda, "discopop_tau": discopop_tau}
    for knob, value in own.items():
        used = any(knob in spec.own_knobs for spec in specs)
        _check_effect(knob, value, used, names, _those(lambda s, knob=knob: knob in s.own_knobs))


_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(validate_loss_args).parameters.items()}
