"""What may not change a loss: the order of pairs, how a batch is cut, the float type; and what extremes may not do."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.losses import F_DIVERGENCES, LOSSES, compute_dpo_loss, needs_reference, needs_whole_batch

PAIR_LOSSES = [name for name, spec in LOSSES.items() if spec.of == "pair"]
SEPARABLE = [name for name in PAIR_LOSSES if not needs_whole_batch(name)]
ANY_F = {"sigmoid", "robust", "hinge", "ipo", "ipo_sum", "exo_pair", "discopop", "sigmoid_norm"}
cases = settings(max_examples=6, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def random_pairs(seed, pairs, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logps = [(-20 * torch.rand(pairs, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(4)]
    lengths = [torch.randint(1, 30, (pairs,), generator=generator) for _ in range(2)]
    return logps, lengths


def losses_of(name, logps, lengths, **options):
    if name == "exo_pair":
        options.setdefault("label_smoothing", 1e-3)
    chosen, rejected = lengths
    return compute_dpo_loss(*logps, loss_type=name, chosen_lengths=chosen, rejected_lengths=rejected, **options)


def objective_gradient(name, logps, lengths, parts, **options):
    """Objective and policy gradient of a trainer that gives the loss ``parts`` (index lists) one after the other."""
    pairs = len(logps[0])
    policy = torch.stack(logps[:2]).requires_grad_()
    total = 0.0
    for part in parts:
        rows = [policy[0, part], policy[1, part], logps[2][part], logps[3][part]]
        share = losses_of(name, rows, [x[part] for x in lengths], **options)[0].sum() / pairs
        share.backward()
        total += share.item()
    return total, policy.grad


@pytest.mark.parametrize("name", PAIR_LOSSES)
@cases
@given(seed=seeds, pairs=st.integers(2, 9))
def test_order_of_pairs(name, seed, pairs):
    """Reordering the pairs reorders losses and rewards: for the sorting losses too, as a value stays with its pair."""
    logps, lengths = random_pairs(seed, pairs)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    straight = losses_of(name, logps, lengths)
    shuffled = losses_of(name, [x[order] for x in logps], [x[order] for x in lengths])
    for before, after in zip(straight, shuffled):
        torch.testing.assert_close(before[order], after)


@pytest.mark.parametrize("name", SEPARABLE)
@cases
@given(seed=seeds, pairs=st.integers(2, 12), workers=st.integers(1, 4), micro_batch=st.integers(1, 5))
def test_micro_batches_and_workers(name, seed, pairs, workers, micro_batch):
    """Sums over any cut, divided by the global number of pairs, give the objective and gradient of the whole batch."""
    logps, lengths = random_pairs(seed, pairs)
    everything = torch.arange(pairs)
    parts = [part for worker in range(workers) for part in everything[worker::workers].split(micro_batch)]
    options = {"mean_chosen_length": lengths[0].double().mean()}
    whole = objective_gradient(name, logps, lengths, [everything], **options)
    cut = objective_gradient(name, logps, lengths, [part for part in parts if len(part)], **options)
    assert cut[0] == pytest.approx(whole[0], rel=1e-10)
    torch.testing.assert_close(cut[1], whole[1])
    assert whole[0] == pytest.approx(losses_of(name, logps, lengths)[0].mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "sft"])
def test_what_depends_on_the_cut(name):
    """The losses marked as coupled are, and sft is when each part takes its own mean length."""
    logps, lengths = random_pairs(0, 8)
    whole, _ = objective_gradient(name, logps, lengths, [torch.arange(8)], beta=1.0)
    cut, _ = objective_gradient(name, logps, lengths, [torch.arange(8)[::2], torch.arange(8)[1::2]], beta=1.0)
    assert abs(whole - cut) > 1e-3


@pytest.mark.parametrize("name", [name for name in SEPARABLE if needs_reference(name)])
@cases
@given(seed=seeds, shift=st.floats(-50, 50))
def test_only_log_ratios_count(name, seed, shift):
    """Moving policy and reference together changes neither losses nor rewards."""
    logps, lengths = random_pairs(seed, 5)
    for before, after in zip(losses_of(name, logps, lengths), losses_of(name, [x + shift for x in logps], lengths)):
        torch.testing.assert_close(before, after, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", PAIR_LOSSES)
@cases
@given(seed=seeds)
def test_float32_follows_float64(name, seed):
    logps, lengths = random_pairs(seed, 5, torch.float32)
    single = losses_of(name, logps, lengths)
    double = losses_of(name, [x.double() for x in logps], lengths)
    for low, high in zip(single, double):
        assert low.dtype == torch.float32 and high.dtype == torch.float64
        torch.testing.assert_close(low.double(), high, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", SEPARABLE)
@cases
@given(seed=seeds)
def test_weights_scale_losses_and_nothing_else(name, seed):
    logps, lengths = random_pairs(seed, 4)
    policy = [x.requires_grad_() for x in logps[:2]]
    weight = torch.tensor([0.0, 1.0, 2.5, 0.5], requires_grad=True)
    plain = losses_of(name, logps, lengths)
    weighted = losses_of(name, logps, lengths, weight=weight)
    torch.testing.assert_close(weighted[0], plain[0] * weight.detach().double())
    assert torch.equal(weighted[1], plain[1]) and torch.equal(weighted[2], plain[2])
    weighted[0].sum().backward()
    assert weight.grad is None and policy[0].grad[0] == 0.0


def test_gradient_flows_through_the_policy_alone():
    logps, lengths = random_pairs(0, 3)
    for tensor in logps:
        tensor.requires_grad_()
    losses, chosen_rewards, rejected_rewards = losses_of("sigmoid", logps, lengths)
    losses.sum().backward()
    assert logps[0].grad.abs().min() > 0 and logps[1].grad.abs().min() > 0
    assert logps[2].grad is None and logps[3].grad is None
    assert not chosen_rewards.requires_grad and not rejected_rewards.requires_grad
    torch.testing.assert_close(chosen_rewards, 0.1 * (logps[0] - logps[2]).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "divergence"),
    [(name, kind) for name in PAIR_LOSSES for kind in (F_DIVERGENCES if name in ANY_F else ["reverse_kl"])],
)
def test_extremes_stay_finite(name, divergence, dtype):
    """All corners of answers at 0, -1e3 and -1e4 nats under policy and reference, one token long or many."""
    corners = torch.tensor(list(itertools.product([0.0, -1e3, -1e4], repeat=4)), dtype=dtype).T
    policy = corners[:2].clone().requires_grad_()
    for tokens, alpha in itertools.product((1, 4000), (0.5, 3.0) if divergence == "alpha_divergence" else (0.5,)):
        losses, chosen_rewards, rejected_rewards = losses_of(
            name,
            [*policy, *corners[2:]],
            [torch.full((81,), tokens)] * 2,
            f_divergence_type=divergence,
            f_alpha_divergence_coef=alpha,
        )
        (gradient,) = torch.autograd.grad(losses.mean(), policy)
        for values in (losses, gradient, chosen_rewards, rejected_rewards):
            assert values.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sigmoid", "robust", "hinge", "ipo", "ipo_sum", "sigmoid_norm"])
def test_a_lost_answer_is_still_pulled_back(name, dtype):
    """Where forward KL's 1/t would overflow, the slope on a chosen answer that became far too unlikely stays."""
    policy = torch.tensor([-1000.0], dtype=dtype, requires_grad=True)
    other = torch.tensor([-10.0], dtype=dtype)
    logps = [policy, other, other, other]
    losses = losses_of(name, logps, [torch.tensor([10])] * 2, f_divergence_type="forward_kl")[0]
    assert torch.autograd.grad(losses.sum(), policy)[0].item() < -1.0


def test_the_straight_continuation_has_no_step():
    """forward KL's score leaves the exponential at 30 nats in float32: value and slope agree on both sides."""
    below, above = 29.999, 30.001
    values, slopes = [], []
    for ratio in (below, above):
        policy = torch.tensor([-ratio], requires_grad=True)
        zero = torch.zeros(1)
        losses = losses_of("sigmoid", [policy, zero, zero, zero], [zero, zero], f_divergence_type="forward_kl")[0]
        values.append(losses.item())
        slopes.append(torch.autograd.grad(losses.sum(), policy)[0].item())
    assert values[1] / values[0] == pytest.approx(1.002, abs=1e-4)
    assert slopes[1] / slopes[0] == pytest.approx(1.001, abs=1e-3)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_pairs_give_no_losses(name):
    empty = torch.zeros(0)
    for result in losses_of(name, [empty] * 4, [empty, empty]):
        assert result.shape == (0,)
