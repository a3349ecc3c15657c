"""``dpo`` as verl's other trainers may meet it: an advantage estimator and a policy loss.

The preference trainers use neither (they compute whole-answer losses); the two registrations exist so that the
names mean the same thing wherever verl looks them up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from verl_aiops.losses import LossSettings, compute_dpo_loss, rounding, share_right, sum_logps

__all__ = ["compute_dpo_advantage", "compute_dpo_policy_loss"]


def compute_dpo_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: np.ndarray, config: Any = None, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage +1 on the best answer of each prompt, -1 on the worst, 0 elsewhere.

    Args:
        token_level_rewards: (rows, response length) rewards; their sum scores the answer.
        response_mask: (rows, response length), 1 on model tokens.
        index: (rows,) prompt ids; rows with equal ids answer the same prompt.

    Returns:
        ``(advantages, returns)``, both (rows, response length). A prompt whose scores are all equal gives zeros:
        it expresses no preference.
    """
    scores = token_level_rewards.sum(dim=-1)
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(index):
        groups[key].append(row)
    sign = torch.zeros_like(scores)
    for rows in groups.values():
        group = scores[rows]
        if group.max() > group.min():
            sign[rows[int(group.argmax())]] = 1.0
            sign[rows[int(group.argmin())]] = -1.0
    advantages = sign.unsqueeze(-1) * response_mask
    return advantages, advantages


def compute_dpo_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sigmoid DPO on rows that come in pairs, chosen before rejected (Rafailov et al. 2023, equation 7).

    ``old_log_prob`` is the reference's; shapes are (2 x pairs, response length). ``advantages`` must say the same
    as the order, positive on chosen rows and negative on rejected ones.

    Raises:
        ValueError: the rows are not pairs in that order.
    """
    sign = (advantages * response_mask).sum(dim=-1)
    if len(sign) % 2 or bool((sign[0::2] <= 0).any()) or bool((sign[1::2] >= 0).any()):
        raise ValueError(
            "policy loss 'dpo' expects rows in pairs, chosen (advantage > 0) before rejected (advantage < 0); "
            f"got {len(sign)} rows with advantage sums {sign.tolist()[:8]}. Preference training runs through "
            "algorithm.adv_estimator=dpo, which keeps pairs together."
        )
    policy = sum_logps(log_prob.float(), response_mask)
    reference = sum_logps(old_log_prob.float(), response_mask)
    losses, chosen, rejected = compute_dpo_loss(policy[0::2], policy[1::2], reference[0::2], reference[1::2])
    noise = LossSettings.beta * rounding(policy[0::2], policy[1::2], reference[0::2], reference[1::2])
    return losses.mean(), {
        "rewards/margins": (chosen - rejected).mean().item(),
        "rewards/accuracies": share_right(chosen - rejected, noise).mean().item(),
    }
