"""The losses of single answers with a yes or a no: KTO and its kin."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from verl_aiops.losses.arguments import check_logps, constant
from verl_aiops.losses.settings import takes_settings
from verl_aiops.losses.table import LOSSES, needs_kl, needs_reference, needs_shift
from verl_aiops.losses.terms import AnswerTerms
from verl_aiops.losses.validate import build_settings, check_number, terms_of

__all__ = ["WeightAdvice", "advise_weights", "compute_answer_loss", "compute_kto_loss"]

# of lambda_D n_D / (lambda_U n_U): arXiv 2402.01306, Eq. 9
_BALANCED = (1.0, 4 / 3)


@takes_settings
def compute_answer_loss(
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    labels: Tensor | Sequence[bool],
    *,
    kl: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    weight: Tensor | Sequence[float] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """The loss of each answer that was found good or bad, with its implicit reward.

    The objective is the mean of the losses over the answers of the batch. None of these losses couples answers, so the
    sum over any micro-batches and workers, divided by the global number, has the same value and gradient, as long as
    every call is given the same ``kl`` and ``shift``.

    Args:
        policy_logps, reference_logps: (answers,) sums of the answers' token log-probs in nats, float32 or float64.
            Gradients flow through the policy's alone.
        labels: (answers,) true for a yes.
        kl: an estimate of KL(policy || reference) in nats, one number or (answers,), for ``needs_kl(loss_type)``; below
            0 it counts as 0.
        shift: a running mean of rewards, in their units, one number or (answers,), for ``needs_shift(loss_type)``.
        weight: (answers,) further factors of the losses, taken as constants.
        settings: the fields of ``LossSettings``, each by its name; ``desirable_weight`` and ``undesirable_weight`` are
            factors of the losses of a yes and a no. Of losses of several kinds those of single answers are taken.

    Returns:
        (losses, rewards), each (answers,): losses not reduced; rewards detached, beta * (policy - reference) whatever
        the loss and not weighted.

    Raises:
        TypeError: log-probs that are not float32 or float64; a keyword that does not exist.
        ValueError: settings that ``check_settings`` refuses, or without a loss of single answers; shapes that differ;
            a reference, ``kl`` or ``shift`` missing.
    """
    given = build_settings(**settings)
    terms = terms_of("single", given)
    names = [name for name, _ in terms]
    check_logps("answers", policy_logps=policy_logps, reference_logps=reference_logps)
    for what, value, needed in (
        ("reference_logps", reference_logps, needs_reference(names)),
        ("kl", kl, needs_kl(names)),
        ("shift", shift, needs_shift(names)),
    ):
        if needed and value is None:
            raise ValueError(f"loss_type {names} needs {what}")
    good = torch.as_tensor(labels, dtype=torch.bool, device=policy_logps.device)
    if good.shape != policy_logps.shape:
        raise ValueError(f"labels must have shape {tuple(policy_logps.shape)}, got {tuple(good.shape)}")
    estimate = constant("kl", kl, policy_logps, single=True)
    answers = AnswerTerms(
        policy=policy_logps,
        reference=None if reference_logps is None else reference_logps.detach(),
        good=good,
        kl=None if estimate is None else estimate.clamp(min=0),
        shift=constant("shift", shift, policy_logps, single=True),
    )
    losses = reduce(torch.add, (factor * LOSSES[name].formula(answers, given) for name, factor in terms))
    if given.desirable_weight != 1 or given.undesirable_weight != 1:
        losses = torch.where(good, given.desirable_weight * losses, given.undesirable_weight * losses)
    factors = constant("weight", weight, losses)
    if factors is not None:
        losses = losses * factors
    return losses, given.beta * (policy_logps if reference_logps is None else answers.logratios).detach()


def compute_kto_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    labels: Tensor | Sequence[bool],
    kl: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """KTO (arXiv 2402.01306, Eq. 8) alone: ``compute_answer_loss`` with ``loss_type="kto"``.

    Args, result and errors are those of ``compute_answer_loss``: (losses, rewards), each (answers,).
    """
    return compute_answer_loss(
        policy_logps,
        reference_logps,
        labels,
        kl=kl,
        loss_type="kto",
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


@dataclass(frozen=True)
class WeightAdvice:
    """How the weights of yes and no fit their numbers.

    Attributes:
        ratio: desirable_weight * yes / (undesirable_weight * no).
        balanced: whether it is in the range that the paper recommends, [1, 4/3].
        desirable: the range of ``desirable_weight`` that would be, with the ``undesirable_weight`` given.
        undesirable: likewise of ``undesirable_weight``; one of the two is to be changed, not both.
    """

    ratio: float
    balanced: bool
    desirable: tuple[float, float]
    undesirable: tuple[float, float]


def advise_weights(
    yes: int, no: int, *, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> WeightAdvice:
    """The weights that KTO's paper recommends for so many answers of each kind (arXiv 2402.01306, Eq. 9).

    Raises:
        ValueError: no answer of one kind, which no weight makes up for; a weight that is not above 0.
    """
    if yes < 1 or no < 1:
        raise ValueError(f"weights balance answers with a yes and a no, and there are {yes} and {no}")
    for name, value in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        check_number(name, value, "> 0")
    low, high = _BALANCED
    ratio = desirable_weight * yes / (undesirable_weight * no)
    unit, other = undesirable_weight * no / yes, desirable_weight * yes / no
    return WeightAdvice(
        ratio=ratio,
        # rounding must not make a weight that was computed from the range's end fall out of it
        balanced=low - 1e-9 <= ratio <= high + 1e-9,
        desirable=(low * unit, high * unit),
        undesirable=(other / high, other / low),
    )
