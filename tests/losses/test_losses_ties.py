"""Which answer leads, where the lead may be rounding."""

import math

import pytest
import torch

from verl_aiops.losses import compute_dpo_loss, rounding, share_in_order, share_right


def test_a_lead_is_right_wrong_or_half_right():
    leads = torch.tensor([2.0, 1e-9, 0.0, -1e-9, -2.0, math.nan, math.inf, -math.inf])
    assert share_right(leads).tolist() == [1, 1, 0.5, 0, 0, 0, 1, 0]
    assert share_right(leads, 1e-8).tolist() == [1, 0.5, 0.5, 0.5, 0, 0, 1, 0]
    assert share_right(leads, torch.full_like(leads, 3.0)).tolist() == [0.5] * 5 + [0, 1, 0]


def test_sums_of_the_same_log_probs_in_another_order_are_ties_and_the_smallest_step_is_none():
    """Sums of 300 tokens' float32 log-probs, as two batches have them, against a shift of 1e-5 nats a token."""
    torch.manual_seed(0)
    tokens = -torch.rand(64, 300) * 2
    policy, reference = tokens.sum(dim=1), tokens.flip(1).cumsum(dim=1)[:, -1]
    assert (policy != reference).any()
    _, chosen, rejected = compute_dpo_loss(policy[:32], policy[32:], reference[:32], reference[32:], beta=0.1)
    noise = 0.1 * rounding(policy[:32], policy[32:], reference[:32], reference[32:])
    assert (share_right(chosen - rejected, noise) == 0.5).all()
    moved = (tokens[:32] + 1e-5).sum(dim=1)
    _, chosen, rejected = compute_dpo_loss(moved, policy[32:], reference[:32], reference[32:], beta=0.1)
    assert (share_right(chosen - rejected, noise) == 1).all()


def test_a_list_counts_each_of_its_comparisons():
    ranks, present = torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[True, True, True, False]])
    values = torch.tensor([[5.0, 5.0, 1.0, 99.0]])
    assert share_in_order(values, ranks, present).tolist() == [pytest.approx(2.5 / 3)]
    # 5 and 1 lie within 2 + 2 of each other
    assert share_in_order(values, ranks, present, torch.full_like(values, 2.0)).tolist() == [0.5]
    assert share_in_order(values, torch.ones(1, 4), present).tolist() == [0]
