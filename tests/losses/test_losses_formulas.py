"""Each loss against values worked out by hand, numerical derivatives, and identities of its formula."""

import inspect
import math

import pytest
import torch

from verl_aiops.losses import F_DIVERGENCES, LOSSES, compute_dpo_loss, compute_online_dpo_loss

PAIR_LOSSES = [name for name, spec in LOSSES.items() if spec.of == "pair"]
LN2 = math.log(2.0)
ANY_F = ["sigmoid", "robust", "hinge", "ipo", "ipo_sum", "exo_pair", "discopop", "sigmoid_norm"]
CHOSEN_LENGTHS, REJECTED_LENGTHS = torch.tensor([5, 3, 7, 2]), torch.tensor([4, 6, 2, 7])


def options_for(name, **more):
    lengths = {"chosen_lengths": CHOSEN_LENGTHS, "rejected_lengths": REJECTED_LENGTHS}
    return {"loss_type": name, **({"label_smoothing": 1e-3} if name == "exo_pair" else {}), **lengths, **more}


def four_logps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [-3.0 - 4.0 * torch.rand(4, generator=generator, dtype=torch.float64) for _ in range(4)]


def gradients(losses, *inputs):
    return torch.autograd.grad(losses.sum(), inputs)


# Values and slopes (d loss / d chosen, d loss / d rejected) where policy and reference agree; b = beta, e = smoothing.
AT_INIT = {
    "sigmoid": lambda b, w, n: (LN2, -b / 2, b / 2),
    "robust": lambda b, w, n: (LN2, -b / 2, b / 2),
    "hinge": lambda b, w, n: (1.0, -b, b),
    "ipo": lambda b, w, n: (1 / (4 * b * b), -1 / (b * w), 1 / (b * n)),
    "ipo_sum": lambda b, w, n: (1 / (4 * b * b), -1 / b, 1 / b),
    "exo_pair": lambda b, w, n: (
        -LN2 - math.log(1e-3 * 0.999) / 2,
        b / 4 * math.log(1e-3 / 0.999),
        -b / 4 * math.log(1e-3 / 0.999),
    ),
    "nca_pair": lambda b, w, n: (2 * LN2, -b / 4, b / 4),
    "bco_pair": lambda b, w, n: (2 * LN2, -b / 2, b / 2),
    "sppo_hard": lambda b, w, n: (1 / (2 * b * b), -1 / b, 1 / b),
    "aot": lambda b, w, n: (LN2, -b / 2, b / 2),
    "aot_unpaired": lambda b, w, n: (LN2, -b / 2, b / 2),
    "apo_zero": lambda b, w, n: (1.0, -b / 4, b / 4),
    "apo_down": lambda b, w, n: (1.0, 0.0, b / 4),
    "discopop": lambda b, w, n: ((LN2 + 1) / 2, b * (5 * (1 - LN2) - 0.75), -b * (5 * (1 - LN2) - 0.75)),
    "sigmoid_norm": lambda b, w, n: (LN2, -b / (2 * w), b / (2 * n)),
    "dpop": lambda b, w, n: (LN2, -b / 2, b / 2),
}


def test_every_loss_with_a_reference_has_a_value_at_init():
    assert set(AT_INIT) == set(PAIR_LOSSES) - {"simpo", "sft", "sft_seq"}


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", AT_INIT)
def test_value_and_slopes_at_init(name, beta):
    chosen, rejected, _, _ = four_logps()
    policy = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    losses, chosen_rewards, rejected_rewards = compute_dpo_loss(
        *policy, chosen, rejected, **options_for(name, beta=beta)
    )
    slopes = gradients(losses, *policy)
    for i in range(4):
        want = AT_INIT[name](beta, CHOSEN_LENGTHS[i].item(), REJECTED_LENGTHS[i].item())
        assert (losses[i].item(), slopes[0][i].item(), slopes[1][i].item()) == pytest.approx(want, rel=1e-12, abs=1e-15)
    assert chosen_rewards.tolist() == rejected_rewards.tolist() == [0.0] * 4


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("name", ["sigmoid", "aot", "aot_unpaired"])
def test_smoothing_shrinks_the_slope_at_init(name, smoothing):
    chosen, rejected, _, _ = four_logps()
    policy = chosen.clone().requires_grad_()
    losses, _, _ = compute_dpo_loss(policy, rejected, chosen, rejected, loss_type=name, label_smoothing=smoothing)
    torch.testing.assert_close(gradients(losses, policy)[0], torch.full((4,), -0.05 * (1 - 2 * smoothing)).double())


@pytest.mark.parametrize(
    ("name", "divergence"),
    [(name, kind) for name in PAIR_LOSSES for kind in (F_DIVERGENCES if name in ANY_F else ["reverse_kl"])],
)
def test_gradient_is_the_derivative(name, divergence):
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = four_logps(3)
    options = options_for(name, beta=0.4, f_divergence_type=divergence)
    if name in ("sigmoid", "robust", "aot", "aot_unpaired"):
        options["label_smoothing"] = 0.15

    def losses(chosen, rejected):
        return compute_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, **options)[0]

    inputs = policy_chosen.requires_grad_(), policy_rejected.requires_grad_()
    assert torch.autograd.gradcheck(losses, inputs)
    assert gradients(losses(*inputs), inputs[0])[0].abs().max() > 1e-4


def margins(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return chosen, rejected, chosen - rejected, chosen / CHOSEN_LENGTHS - rejected / REJECTED_LENGTHS


# Loss minus the loss of the swapped pair, in log-ratios a (chosen), b (rejected), d = a - b, m = the per-token d.
ON_SWAP = {
    "sigmoid": lambda k, a, b, d, m: -k * d,
    "robust": lambda k, a, b, d, m: -k * d,
    "bco_pair": lambda k, a, b, d, m: -k * d,
    "ipo": lambda k, a, b, d, m: -2 * m / k,
    "ipo_sum": lambda k, a, b, d, m: -2 * d / k,
    "sppo_hard": lambda k, a, b, d, m: -2 * d / k,
    "sigmoid_norm": lambda k, a, b, d, m: -k * m,
    "exo_pair": lambda k, a, b, d, m: torch.tanh(k * d / 2) * math.log(1e-3 / 0.999),
    "apo_down": lambda k, a, b, d, m: torch.sigmoid(k * a) - torch.sigmoid(k * b) - torch.tanh(k * d / 2),
}


@pytest.mark.parametrize("name", ON_SWAP)
def test_swapping_the_answers(name):
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logps = four_logps(1)
    options = options_for(name, beta=0.3)
    straight = compute_dpo_loss(*logps, **options)
    options |= {"chosen_lengths": REJECTED_LENGTHS, "rejected_lengths": CHOSEN_LENGTHS}
    swapped = compute_dpo_loss(policy_rejected, policy_chosen, reference_rejected, reference_chosen, **options)
    torch.testing.assert_close(straight[0] - swapped[0], ON_SWAP[name](0.3, *margins(*logps)))
    assert torch.equal(straight[1], swapped[2]) and torch.equal(straight[2], swapped[1])


def test_half_smoothing_makes_the_answers_equal():
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = four_logps(1)
    straight = compute_dpo_loss(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, label_smoothing=0.5
    )[0]
    swapped = compute_dpo_loss(
        policy_rejected, policy_chosen, reference_rejected, reference_chosen, label_smoothing=0.5
    )[0]
    torch.testing.assert_close(straight, swapped)
    assert not torch.allclose(straight, compute_dpo_loss(*four_logps(1))[0])


def test_robust_is_unbiased_under_label_flips():
    """Flipping a label with probability e and taking the robust loss gives the clean DPO loss on average."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logps = four_logps(2)
    kept = compute_dpo_loss(*logps, loss_type="robust", label_smoothing=0.3)[0]
    flipped = compute_dpo_loss(
        policy_rejected, policy_chosen, reference_rejected, reference_chosen, loss_type="robust", label_smoothing=0.3
    )[0]
    torch.testing.assert_close(0.7 * kept + 0.3 * flipped, compute_dpo_loss(*logps)[0])


def test_simpo_by_hand():
    chosen, rejected = torch.tensor([-6.0, -2.0]).double(), torch.tensor([-8.0, -9.0]).double()
    losses, chosen_rewards, rejected_rewards = compute_dpo_loss(
        chosen, rejected, beta=2.0, loss_type="simpo", simpo_gamma=1.5, chosen_lengths=[3, 4], rejected_lengths=[2, 3]
    )
    # 2 * (-2 + 4) - 1.5 = 2.5 and 2 * (-0.5 + 3) - 1.5 = 3.5
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-2.5)), math.log1p(math.exp(-3.5))])
    assert chosen_rewards.tolist() == [-4.0, -1.0] and rejected_rewards.tolist() == [-8.0, -6.0]


def test_dpop_by_hand_and_as_dpo():
    reference = torch.tensor([-5.0, -5.0]).double(), torch.tensor([-6.0, -6.0]).double()
    chosen, rejected = torch.tensor([-4.0, -5.5]).double(), torch.tensor([-7.0, -8.0]).double()
    losses, _, _ = compute_dpo_loss(chosen, rejected, *reference, beta=0.3, loss_type="dpop", dpop_lambda=10.0)
    plain, _, _ = compute_dpo_loss(chosen, rejected, *reference, beta=0.3)
    assert losses[0] == plain[0]  # the chosen answer is likelier than under the reference
    # log-ratios -0.5 and -2: 0.3 * (1.5 - 10 * 0.5) = -1.05
    assert losses[1].item() == pytest.approx(math.log1p(math.exp(1.05)))


def test_sft_and_sft_seq_by_hand():
    chosen = torch.tensor([-6.0, -2.0]).double()
    lengths = {"chosen_lengths": torch.tensor([2, 8])}
    by_token, chosen_rewards, _ = compute_dpo_loss(chosen, chosen - 1, loss_type="sft", **lengths)
    by_sequence, _, _ = compute_dpo_loss(chosen, chosen - 1, loss_type="sft_seq", **lengths)
    assert by_token.mean().item() == pytest.approx(8 / 10)
    assert by_sequence.tolist() == pytest.approx([3.0, 0.25])
    assert chosen_rewards.tolist() == pytest.approx([-0.6, -0.2])


def test_aot_compares_rank_by_rank():
    """Worked example: policy margins 3, 1, 2; reference margins 0, 5, 1, so the ranks meet as 1-0, 2-1, 3-5."""
    zero = torch.zeros(3).double()
    policy, reference = torch.tensor([3.0, 1.0, 2.0]).double(), torch.tensor([0.0, 5.0, 1.0]).double()
    losses, _, _ = compute_dpo_loss(policy, zero, reference, zero, beta=1.0, loss_type="aot")
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-x)) for x in (-2.0, 1.0, 1.0)])
    # Unpaired: chosen log-ratios 3, -4, 1, rejected -1, 2, 0: the ranks meet as -4 - -1, 1 - 0, 3 - 2.
    rejected = torch.tensor([-1.0, 2.0, 0.0]).double()
    losses, _, _ = compute_dpo_loss(policy, rejected, reference, zero, beta=1.0, loss_type="aot_unpaired")
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-x)) for x in (1.0, -3.0, 1.0)])


@pytest.mark.parametrize("name", ANY_F)
def test_f_divergences_replace_the_log_ratio(name):
    """A loss under another f is the plain loss of log-ratios that were put through f' beforehand."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = four_logps(4)
    chosen, rejected, _, _ = margins(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    derivatives = {
        "forward_kl": ({}, lambda t: 1 - 1 / t),
        "js_divergence": ({}, lambda t: torch.log(2 * t / (1 + t))),
        "alpha_divergence": ({"f_alpha_divergence_coef": 1.7}, lambda t: (t**0.7 - 1) / 0.7),
    }
    for kind, (more, derivative) in derivatives.items():
        options = options_for(name, f_divergence_type=kind, **more)
        losses, chosen_rewards, _ = compute_dpo_loss(
            policy_chosen, policy_rejected, reference_chosen, reference_rejected, **options
        )
        scores = derivative(chosen.exp()), derivative(rejected.exp())
        plain = compute_dpo_loss(*scores, 0 * chosen, 0 * chosen, **options_for(name))[0]
        torch.testing.assert_close(losses, plain)
        reverse_kl = compute_dpo_loss(chosen, rejected, 0 * chosen, 0 * chosen, **options_for(name))[0]
        assert not torch.allclose(losses, reverse_kl)
        torch.testing.assert_close(chosen_rewards, 0.1 * chosen)  # rewards stay log-ratios


def test_alpha_divergence_joins_forward_and_reverse_kl():
    logps = four_logps(5)
    alpha = {"f_divergence_type": "alpha_divergence"}
    forward = compute_dpo_loss(*logps, f_divergence_type="forward_kl")[0]
    torch.testing.assert_close(compute_dpo_loss(*logps, **alpha, f_alpha_divergence_coef=0.0)[0], forward)
    reverse = compute_dpo_loss(*logps)[0]
    assert torch.equal(compute_dpo_loss(*logps, **alpha, f_alpha_divergence_coef=1.0)[0], reverse)
    for near in (1 - 1e-5, 1 + 1e-5):
        close = compute_dpo_loss(*logps, **alpha, f_alpha_divergence_coef=near)[0]
        torch.testing.assert_close(close, reverse, rtol=1e-4, atol=0)
        single = compute_dpo_loss(*(x.float() for x in logps), **alpha, f_alpha_divergence_coef=near)[0]
        torch.testing.assert_close(single, reverse.float(), rtol=1e-4, atol=0)


def test_several_losses_add_up():
    logps = four_logps(6)
    lengths = {"chosen_lengths": CHOSEN_LENGTHS}
    parts = [compute_dpo_loss(*logps, loss_type=name, **lengths)[0] for name in ("sigmoid", "bco_pair", "sft")]
    mixed = compute_dpo_loss(*logps, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.5], **lengths)
    torch.testing.assert_close(mixed[0], 0.8 * parts[0] + 0.2 * parts[1] + 1.5 * parts[2])
    unweighted = compute_dpo_loss(*logps, loss_type=("sigmoid", "bco_pair"))[0]
    torch.testing.assert_close(unweighted, parts[0] + parts[1])
    with_sft = compute_dpo_loss(*logps, sft_weight=0.3, **lengths)[0]
    torch.testing.assert_close(with_sft, parts[0] + 0.3 * parts[2])


def test_online_is_the_same_function_of_the_same_arguments():
    assert inspect.signature(compute_online_dpo_loss) == inspect.signature(compute_dpo_loss)
    logps, options = four_logps(7), options_for("ipo", beta=0.2, sft_weight=0.5, weight=[1.0, 2.0, 0.0, 3.0])
    for online, offline in zip(compute_online_dpo_loss(*logps, **options), compute_dpo_loss(*logps, **options)):
        assert torch.equal(online, offline)
