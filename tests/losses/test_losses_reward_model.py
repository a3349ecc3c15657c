"""The losses of reward models against formulas written out by hand, in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.losses import compute_label_loss, compute_pair_loss, compute_ranking_loss, compute_score_loss

SCORES = st.floats(-8, 8)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@given(SCORES, SCORES, st.floats(0, 3), st.floats(0, 0.49), st.floats(0, 1))
def test_a_pair_is_bradley_terrys_with_margin_smoothing_and_centring(c, r, margin, smoothing, center):
    wanted = (
        -(1 - smoothing) * math.log(sigmoid(c - r - margin))
        - smoothing * math.log(sigmoid(margin + r - c))
        + center * (c + r) ** 2
    )
    (loss,) = compute_pair_loss(
        doubles(c), doubles(r), margin=doubles(margin), label_smoothing=smoothing, center=center
    )
    assert loss.item() == pytest.approx(wanted, abs=1e-9)


def by_drawing(scores, ranks):
    """-log of the chance that answers drawn by softmax(r) come in the order of their ranks: all orders are counted."""
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        chance = 1.0
        for at, one in enumerate(order):
            chance *= math.exp(scores[one]) / sum(math.exp(scores[other]) for other in order[at:])
        if all(ranks[a] < ranks[b] for a, b in zip(order, order[1:])):
            total += chance
    return -math.log(total)


@settings(max_examples=25)
@given(st.lists(SCORES, min_size=2, max_size=4), st.randoms())
def test_a_list_is_plackett_luces(scores, random):
    ranks = list(range(1, len(scores) + 1))
    random.shuffle(ranks)
    (loss,) = compute_ranking_loss(doubles(scores), doubles(ranks))
    assert loss.item() == pytest.approx(by_drawing(scores, ranks), abs=1e-8)


def test_two_ranked_answers_are_a_pair_also_where_scores_are_centred():
    scores = doubles([0.7, -1.1], [2.0, 2.5])
    for center in (0.0, 0.3):
        of_lists = compute_ranking_loss(scores, doubles([1, 2], [2, 1]), center=center)
        of_pairs = compute_pair_loss(doubles(0.7, 2.5), doubles(-1.1, 2.0), center=center)
        torch.testing.assert_close(of_lists, of_pairs)


def test_what_stands_beside_a_list_is_not_looked_at_and_ties_are_not_compared():
    present = torch.tensor([[True, True, True, False]])
    scores, ranks = doubles([0.4, 1.0, -2.0, 99.0]), doubles([1, 2, 2, 0])
    (loss,) = compute_ranking_loss(scores, ranks, present=present, center=0.5)
    parts = [math.exp(x) for x in (0.4, 1.0, -2.0)]
    assert loss.item() == pytest.approx(-math.log(parts[0] / sum(parts)) + 4 * 0.5 * (-0.6 / 3) ** 2)
    (error,) = compute_score_loss(scores, doubles([1.0, 0.0, -2.0, math.nan]), present=present)
    assert error.item() == pytest.approx((0.6**2 + 1.0) / 3)


@given(SCORES, st.booleans(), st.floats(0, 0.49))
def test_a_label_is_binary_cross_entropy(score, label, smoothing):
    target = (1 - smoothing) if label else smoothing
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(doubles(score), doubles(target))
    (loss,) = compute_label_loss(doubles(score), torch.tensor([label]), label_smoothing=smoothing)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: compute_pair_loss(doubles(1, 2), doubles(1)),
        lambda: compute_pair_loss(doubles(1), doubles(1), margin=[1, 2]),
        lambda: compute_pair_loss(doubles(1), doubles(1), label_smoothing=0.5),
        lambda: compute_ranking_loss(doubles(1, 2), doubles(1, 2)),
        lambda: compute_score_loss(doubles([1, 2]), doubles([1])),
        lambda: compute_label_loss(doubles(1), torch.tensor([True]), label_smoothing=-0.1),
    ],
)
def test_shapes_and_numbers_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match="must"):
        call()


# --- gradients --------------------------------------------------------------------------------------------------------


def differences(formula, scores, width=1e-5):
    """The gradient of a formula of plain floats, by central differences."""
    found = []
    for at in range(len(scores)):
        up, down = ([*scores[:at], scores[at] + by, *scores[at + 1 :]] for by in (width, -width))
        found.append((formula(up) - formula(down)) / (2 * width))
    return found


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# of each loss: ours of a row of four scores, and the same written out with plain floats
PLAIN = {
    "bradley_terry": (
        lambda x: compute_pair_loss(x[:2], x[2:]),
        lambda x: softplus(x[2] - x[0]) + softplus(x[3] - x[1]),
    ),
    "margin": (
        lambda x: compute_pair_loss(x[:2], x[2:], margin=[0.7, 1.9]),
        lambda x: softplus(x[2] + 0.7 - x[0]) + softplus(x[3] + 1.9 - x[1]),
    ),
    "centring": (
        lambda x: compute_pair_loss(x[:2], x[2:], center=0.3),
        lambda x: sum(softplus(x[at + 2] - x[at]) + 0.3 * (x[at] + x[at + 2]) ** 2 for at in range(2)),
    ),
    "smoothing": (
        lambda x: compute_pair_loss(x[:2], x[2:], label_smoothing=0.2, margin=[0.4, 0.4]),
        lambda x: sum(
            0.8 * softplus(x[at + 2] + 0.4 - x[at]) + 0.2 * softplus(x[at] - x[at + 2] - 0.4) for at in (0, 1)
        ),
    ),
    "plackett_luce": (
        lambda x: compute_ranking_loss(x[None], doubles([2, 4, 1, 3]), center=0.1),
        lambda x: by_drawing(x, (2, 4, 1, 3)) + 4 * 0.1 * (sum(x) / 4) ** 2,
    ),
    "plackett_luce of ties": (
        lambda x: compute_ranking_loss(x[None], doubles([1, 2, 2, 0]), present=torch.tensor([[True] * 3 + [False]])),
        lambda x: math.log(sum(map(math.exp, x[:3]))) - x[0],
    ),
    "regression": (
        lambda x: compute_score_loss(x[None], doubles([0.5, -1.0, 2.0, 9.0])),
        lambda x: sum((score - target) ** 2 for score, target in zip(x, (0.5, -1.0, 2.0, 9.0))) / 4,
    ),
    "binary": (
        lambda x: compute_label_loss(x, torch.tensor([True, False, True, False]), label_smoothing=0.1),
        lambda x: sum(0.9 * softplus(-s * y) + 0.1 * softplus(s * y) for s, y in zip(x, (1, -1, 1, -1))),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=20, deadline=None)
@given(scores=st.lists(SCORES, min_size=4, max_size=4))
def test_values_and_gradients_are_those_of_the_formulas_in_plain_floats(name, scores):
    ours, plain = PLAIN[name]
    given_scores = doubles(*scores).requires_grad_()
    total = ours(given_scores).sum()
    total.backward()
    assert total.item() == pytest.approx(plain(scores), abs=1e-9)
    assert given_scores.grad.tolist() == pytest.approx(differences(plain, scores), abs=1e-6)


@pytest.mark.parametrize("far", [40.0, 400.0, 4000.0])
def test_scores_far_apart_keep_a_finite_loss_and_gradient_in_float32(far):
    for name, (ours, _) in PLAIN.items():
        for signs in itertools.product((-1.0, 1.0), repeat=4):
            scores = torch.tensor([far * sign for sign in signs], requires_grad=True)
            total = ours(scores).sum()
            total.backward()
            assert math.isfinite(total.item()) and torch.isfinite(scores.grad).all(), (name, signs)
