"""The losses of reward models: pure functions of scores, one number an answer.

A reward model gives an answer the score r, a number without unit. Nothing of it is a log-prob, and nothing is compared
with a reference. ``REWARD_LOSSES`` says of what kind of example each loss is (`table.KINDS`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from verl_aiops.losses.arguments import constant
from verl_aiops.losses.lists import compute_list_loss

__all__ = ["REWARD_LOSSES", "compute_label_loss", "compute_pair_loss", "compute_ranking_loss", "compute_score_loss"]

# What one term of each loss is made of.
REWARD_LOSSES = {"bradley_terry": "pair", "plackett_luce": "list", "regression": "list", "binary": "single"}


def compute_pair_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    center: float = 0.0,
) -> Tensor:
    """The loss of Bradley and Terry (1952) of each pair: ``-log sigmoid(d)``, d = r_chosen - r_rejected - margin.

    That is equation 1 of InstructGPT (arXiv 2203.02155), with the margin equation 2 of Llama 2 (arXiv 2307.09288). With
    ``label_smoothing`` e it is ``-(1 - e) log sigmoid(d) - e log sigmoid(-d)``, which believes a share e of the labels
    wrong (arXiv 2401.06080, section on label smoothing). ``center`` adds ``center * (r_chosen + r_rejected)^2``
    (Eisenstein et al., arXiv 2312.09244, section 2; TRL's ``center_rewards_coefficient``), which keeps scores around 0.

    Args:
        chosen, rejected: (pairs,) scores, float32 or float64.
        margin: (pairs,) by how much the chosen one should lead, taken as a constant; None for 0.
        label_smoothing: in [0, 0.5).
        center: 0 or more.

    Returns:
        (pairs,) losses, not reduced.

    Raises:
        ValueError: shapes that differ, or a number out of its range.
    """
    _check(chosen, "pairs", rejected=rejected)
    _check_smoothing(label_smoothing)
    lead = chosen - rejected
    by = constant("margin", margin, lead)
    if by is not None:
        lead = lead - by
    losses = -(1 - label_smoothing) * logsigmoid(lead)
    if label_smoothing:
        losses = losses - label_smoothing * logsigmoid(-lead)
    return losses + center * (chosen + rejected) ** 2 if center else losses


def compute_ranking_loss(
    scores: Tensor, ranks: Tensor, *, present: Tensor | None = None, center: float = 0.0
) -> Tensor:
    """The loss of Plackett (1975) and Luce (1959) of each list: the negative log-likelihood that who draws answers one
    after another by ``softmax(r)`` draws them in the order of their ranks (arXiv 2305.18290, equation 18, r for the
    reward). Answers of equal rank are not compared with each other. Two answers give `compute_pair_loss`.

    Args:
        scores, ranks: (lists, answers); rank 1 is the best.
        present: (lists, answers) true where an answer stands; None: everywhere.
        center: adds ``4 * center * mean(r)^2``, the centring term of pairs where the list has two answers.

    Returns:
        (lists,) losses, not reduced.

    Raises:
        ValueError: shapes that differ.
    """
    _check(scores, "lists, answers", ranks=ranks)
    there = torch.ones_like(scores, dtype=torch.bool) if present is None else present.bool()
    losses, _ = compute_list_loss(
        scores, torch.zeros_like(scores), ranks, present=there, loss_type="plackett_luce", beta=1.0
    )
    if not center:
        return losses
    mean = scores.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp(min=1)
    return losses + 4 * center * mean**2


def compute_score_loss(scores: Tensor, targets: Tensor, *, present: Tensor | None = None) -> Tensor:
    """The squared error of each list's scores, mean over its answers: regression on ratings, as HelpSteer trains reward
    models (arXiv 2311.09528, section 3.1; 2406.08673, section 3).

    Args:
        scores, targets: (lists, answers); targets are constants, and must be numbers where an answer stands.
        present: as in `compute_ranking_loss`.

    Returns:
        (lists,) losses, not reduced.

    Raises:
        ValueError: shapes that differ.
    """
    _check(scores, "lists, answers", targets=targets)
    there = torch.ones_like(scores, dtype=torch.bool) if present is None else present.bool()
    errors = (scores - targets.detach().to(scores.dtype)).masked_fill(~there, 0.0)
    return (errors**2).sum(dim=1) / there.sum(dim=1).clamp(min=1)


def compute_label_loss(scores: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of single answers: ``-log sigmoid(r)`` of a yes, ``-log sigmoid(-r)`` of a no, as verifiers
    are trained (Cobbe et al., arXiv 2110.14168, section 4). ``sigmoid(r)`` is then how likely a yes is.

    Args:
        scores: (answers,).
        labels: (answers,) true for a yes.
        label_smoothing: in [0, 0.5), the share of labels believed wrong.

    Returns:
        (answers,) losses, not reduced.

    Raises:
        ValueError: shapes that differ, or a number out of its range.
    """
    _check(scores, "answers", labels=labels)
    _check_smoothing(label_smoothing)
    signed = torch.where(labels.bool(), scores, -scores)
    losses = -(1 - label_smoothing) * logsigmoid(signed)
    return losses - label_smoothing * logsigmoid(-signed) if label_smoothing else losses


def _check(scores: Tensor, axes: str, **others: Tensor) -> None:
    if scores.dim() != axes.count(",") + 1 or any(other.shape != scores.shape for other in others.values()):
        shapes = {"scores": tuple(scores.shape), **{name: tuple(other.shape) for name, other in others.items()}}
        raise ValueError(f"scores must all have the same shape ({axes}), got {shapes}")


def _check_smoothing(share: float) -> None:
    if not 0 <= share < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {share!r}")
