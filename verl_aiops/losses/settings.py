"""The scalar settings of the losses: one field each, with its range, its meaning, and the losses that it is for.

A new one is a line here and its use in a formula; the trainers' configuration, the presets, the keywords of
``compute_dpo_loss``, the checks and the reference page follow from the field.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from verl_aiops.losses.divergence import F_DIVERGENCES

F = TypeVar("F", bound=Callable[..., Any])


def knob(default: Any, allowed: str, meaning: str, losses: tuple[str, ...] = ()) -> Any:
    """A field of ``LossSettings``.

    Args:
        allowed: the range in the words of ``validate.check_number``; empty where ``validate.py`` has another check.
        losses: those that it is for. With any other, a value that is not the default would have no effect and is
            refused. Empty where that is not settled by the name of a loss.
    """
    return field(default=default, metadata={"help": meaning, "allowed": allowed, "losses": losses})


@dataclass(frozen=True)
class LossSettings:
    """What the losses are given beside log-probs and lengths; ``validate.check_settings`` checks it."""

    beta: float = knob(
        0.1,
        "> 0",
        "strength of the pull to the reference (IPO's tau, the inverse of SPPO's eta). Per-token losses want it on "
        "another scale: `sigmoid_norm` and `simpo` 1 to 10.",
    )
    loss_type: str | list[str] = knob(
        "sigmoid",
        "",
        "the loss (formula and paper of each: `verl_aiops/losses/formulas.py`; which to take: `docs/losses.md`), or a "
        "list of losses to be summed.",
    )
    loss_weights: list[float] | None = knob(None, "", "weights of a list of losses, one each, >= 0; null for 1 each.")
    sft_weight: float = knob(
        0.0, ">= 0", "adds this much of the loss `sft`, the negative log-likelihood of chosen answers, to any loss."
    )
    label_smoothing: float = knob(
        0.0,
        "in [0, 0.5]",
        "share of labels believed wrong, for `sigmoid` (cDPO), `robust`, `aot`, `aot_unpaired` and (positive) "
        "`exo_pair`.",
    )
    score_margin: float = knob(
        0.0,
        ">= 0",
        "the chosen answer's reward must exceed the rejected one's by this times the gap of their scores (margin loss "
        "of Llama 2, arXiv 2307.09288, eq. 2; ODPO, arXiv 2402.10571); for losses of a difference between two answers, "
        "on data with scores.",
    )
    desirable_weight: float = knob(1.0, ">= 0", "factor of the loss of answers with a yes (KTO's lambda_D).")
    undesirable_weight: float = knob(1.0, ">= 0", "factor of the loss of answers with a no (KTO's lambda_U).")
    score_temperature: float = knob(
        1.0, "> 0", "`listwise` aims at softmax(score / this): small for the best answer alone.", ("listwise",)
    )
    simpo_gamma: float = knob(0.5, ">= 0", "target margin of `simpo`, in units of reward.", ("simpo",))
    dpop_lambda: float = knob(50.0, ">= 0", "penalty of `dpop` on chosen answers that grow less likely.", ("dpop",))
    discopop_tau: float = knob(0.05, "> 0", "temperature of `discopop`.", ("discopop",))
    f_divergence_type: str = knob(
        "reverse_kl",
        "",
        "divergence that holds the policy to its reference (f-DPO, arXiv 2309.16240): "
        + ", ".join(f"`{name}`" for name in F_DIVERGENCES)
        + ".",
    )
    f_alpha_divergence_coef: float = knob(0.5, "a finite number", "alpha of `alpha_divergence`.")


def takes_settings(function: F) -> F:
    """Gives a function of ``**settings`` the signature that it has in truth, for ``help()`` and editors."""
    signature = inspect.signature(function)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    knobs = [inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type) for f in fields(LossSettings)]
    function.__signature__ = signature.replace(parameters=[*own, *knobs])  # type: ignore[attr-defined]
    return function
