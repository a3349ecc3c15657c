"""The losses of ranked lists of answers: Plackett-Luce, and softmax against scores."""

from collections.abc import Hashable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from verl_aiops.losses.arguments import check_logps, constant
from verl_aiops.losses.settings import takes_settings
from verl_aiops.losses.table import LOSSES, needs_reference
from verl_aiops.losses.terms import ListTerms, ranked_below
from verl_aiops.losses.ties import share_right
from verl_aiops.losses.validate import build_settings, terms_of

__all__ = ["compute_list_loss", "compute_plackett_luce_loss", "padded_lists", "share_in_order"]


@takes_settings
def compute_list_loss(
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    ranks: Tensor,
    *,
    scores: Tensor | None = None,
    present: Tensor | None = None,
    weight: Tensor | Sequence[float] | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """The loss of each list of ranked answers, with the answers' implicit rewards.

    The objective is the mean of the losses over the lists of the batch, whatever their lengths; no loss couples lists.

    Args:
        policy_logps, reference_logps: (lists, answers) sums of the answers' token log-probs in nats, float32 or
            float64. Gradients flow through the policy's alone.
        ranks: (lists, answers) 1 for the best, equal for ties.
        scores: (lists, answers) larger for the better, of one scale in all lists, for ``listwise``. A list in which one
            is nan, or all where None is given, has its negative ranks for scores.
        present: (lists, answers) true where an answer stands, for lists of unequal length; None: everywhere. What
            stands elsewhere is not looked at. Each list has at least one answer.
        weight: (lists,) factors of the losses, taken as constants.
        settings: the fields of ``LossSettings``, each by its name. Of losses of several kinds those of lists are taken.

    Returns:
        (losses, rewards): (lists,) losses, not reduced, and (lists, answers) rewards, detached, beta * (policy -
        reference), 0 where no answer stands.

    Raises:
        TypeError: log-probs that are not float32 or float64; a keyword that does not exist.
        ValueError: settings that ``check_settings`` refuses, or without a loss of lists; shapes that differ; a
            reference missing.
    """
    given = build_settings(**settings)
    terms = terms_of("list", given)
    names = [name for name, _ in terms]
    check_logps("lists", "answers", policy_logps=policy_logps, reference_logps=reference_logps)
    if reference_logps is None and needs_reference(names):
        raise ValueError(f"loss_type {names} needs reference_logps")
    there = torch.ones_like(policy_logps, dtype=torch.bool) if present is None else present.bool()
    places = constant("ranks", ranks, policy_logps)
    assert places is not None
    values = -places if scores is None else constant("scores", scores, policy_logps)
    assert values is not None
    unscored = (values.isnan() & there).any(dim=1, keepdim=True)
    lists = ListTerms(
        policy=policy_logps.masked_fill(~there, 0.0),
        reference=None if reference_logps is None else reference_logps.detach().masked_fill(~there, 0.0),
        ranks=places.masked_fill(~there, 0.0),
        scores=torch.where(unscored, -places, values).masked_fill(~there, 0.0),
        present=there,
    )
    losses = reduce(torch.add, (factor * LOSSES[name].formula(lists, given) for name, factor in terms))
    factors = constant("weight", weight, losses)
    if factors is not None:
        losses = losses * factors
    return losses, given.beta * (lists.policy if lists.reference is None else lists.logratios).detach()


def compute_plackett_luce_loss(
    policy_logps: Tensor,
    reference_logps: Tensor,
    group_ids: Sequence[Hashable],
    ranks: Tensor | Sequence[float],
    *,
    beta: float = 0.1,
) -> Tensor:
    """The Plackett-Luce loss of DPO (arXiv 2305.18290, appendix A.3, Eq. 20) of answers in groups.

    Args:
        policy_logps, reference_logps: (answers,) as for ``compute_list_loss``.
        group_ids: (answers,) what makes answers a list; groups may have any size and lie in any order.
        ranks: (answers,) 1 for the best; answers of equal rank are not compared with each other.

    Returns:
        (groups,) losses, not reduced, of the groups with at least two different ranks, in the order of their first
        answers. Two answers give the ``sigmoid`` loss.

    Raises:
        TypeError, ValueError: as ``compute_list_loss``; arguments of different lengths, ranks that are not finite.
    """
    check_logps("answers", policy_logps=policy_logps, reference_logps=reference_logps)
    ranks = torch.as_tensor(ranks, dtype=policy_logps.dtype)
    if len(group_ids) != len(policy_logps) or ranks.shape != policy_logps.shape:
        raise ValueError(
            f"expected a group and a rank for each of {len(policy_logps)} answers, got {len(group_ids)} groups and "
            f"ranks of shape {tuple(ranks.shape)}"
        )
    if not ranks.isfinite().all():
        raise ValueError(f"ranks must be finite numbers, got {ranks[~ranks.isfinite()][0].item()}")
    groups: dict[Hashable, list[int]] = {}
    for row, group in enumerate(group_ids):
        groups.setdefault(group, []).append(row)
    lists = [rows for rows in groups.values() if len(set(ranks[rows].tolist())) > 1]
    if not lists:
        return policy_logps.new_zeros(0) + 0.0 * policy_logps.sum()
    rows, present = padded_lists(lists, policy_logps.device)
    losses, _ = compute_list_loss(
        policy_logps[rows],
        reference_logps[rows],
        ranks.to(policy_logps.device)[rows],
        present=present,
        loss_type="plackett_luce",
        beta=beta,
    )
    return losses


def padded_lists(lists: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(lists, most answers) row indices, 0 where none stands, and whether one stands there."""
    most = max(map(len, lists))
    rows = torch.tensor([[*one, *[0] * (most - len(one))] for one in lists])
    present = torch.arange(most) < torch.tensor([[len(one)] for one in lists])
    return rows.to(device), present.to(device)


def share_in_order(values: Tensor, ranks: Tensor, present: Tensor, noise: Tensor | None = None) -> Tensor:
    """(lists,) of the two answers of different rank in a list, how often the better has the larger value
    (`ties.share_right`).

    A list of equal ranks has 0.

    Args:
        values, ranks, present: (lists, answers) each, as for ``compute_list_loss``.
        noise: (lists, answers) what of each value may be rounding alone; None for nothing.
    """
    worse = ranked_below(ranks, present)
    unsure = 0.0 if noise is None else noise.unsqueeze(2) + noise.unsqueeze(1)
    right = worse * share_right(values.unsqueeze(2) - values.unsqueeze(1), unsure)
    return right.sum(dim=(1, 2)) / worse.sum(dim=(1, 2)).clamp(min=1)
