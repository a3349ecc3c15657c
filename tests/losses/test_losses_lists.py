"""Losses of ranked lists against all rankings counted one by one, against losses of pairs, and against the formulas."""

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.losses import (
    LOSSES,
    compute_dpo_loss,
    compute_list_loss,
    compute_plackett_luce_loss,
    kinds_of,
    validate_loss_args,
)

LIST_LOSSES = [name for name, spec in LOSSES.items() if spec.of == "list"]
cases = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def random_lists(seed, lists=3, answers=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [(-20 * torch.rand(lists, answers, generator=generator).double()).to(dtype) for _ in range(2)]


def rewards_of(policy, reference, beta):
    return (beta * (policy - reference)).tolist()


def by_hand(rewards, ranks):
    """The Plackett-Luce loss of one list, term by term."""
    total = 0.0
    for reward, rank in zip(rewards, ranks):
        below = [other for other, place in zip(rewards, ranks) if place > rank]
        total -= math.log(math.exp(reward) / (math.exp(reward) + sum(map(math.exp, below))))
    return total


def test_the_losses_of_lists():
    assert LIST_LOSSES == ["plackett_luce", "listwise"]
    assert kinds_of("listwise") == ("list",) and kinds_of(["kto", "sigmoid"]) == ("pair", "single")
    with pytest.raises(ValueError, match="unknown loss_type 'pl' .did you mean 'plackett_luce'"):
        kinds_of("pl")


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_the_probabilities_of_all_rankings_add_up_to_one(answers):
    policy, reference = random_lists(0, 1, answers)
    orders = list(itertools.permutations(range(1, answers + 1)))
    losses, _ = compute_list_loss(
        policy.expand(len(orders), answers),
        reference.expand(len(orders), answers),
        torch.tensor(orders),
        loss_type="plackett_luce",
        beta=0.3,
    )
    assert torch.exp(-losses).sum().item() == pytest.approx(1.0, rel=1e-12)
    # and the likeliest ranking is that of the rewards
    best = orders[losses.argmin()]
    rewards = rewards_of(policy, reference, 0.3)[0]
    assert sorted(range(answers), key=lambda i: -rewards[i]) == sorted(range(answers), key=lambda i: best[i])


@pytest.mark.parametrize("ranks", [(1, 2, 3, 4), (3, 1, 4, 2), (1, 1, 2, 3), (2, 1, 2, 2), (1, 3, 3, 1), (5, 5, 5, 5)])
def test_plackett_luce_by_hand_with_and_without_ties(ranks):
    policy, reference = random_lists(1, 1)
    losses, rewards = compute_list_loss(policy, reference, torch.tensor([ranks]), loss_type="plackett_luce", beta=0.2)
    expected = rewards_of(policy, reference, 0.2)
    assert rewards.tolist() == expected
    assert losses.item() == pytest.approx(by_hand(expected[0], ranks), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_two_answers_are_the_loss_of_a_pair(name):
    """Where listwise aims at one answer alone; else it is the pair's smoothed loss, cDPO."""
    policy, reference = random_lists(2, 5, 2)
    losses, _ = compute_list_loss(
        policy,
        reference,
        torch.tensor([[1.0, 2.0]] * 5),
        loss_type=name,
        **({"score_temperature": 1e-3} if name == "listwise" else {}),
    )
    pair = compute_dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])[0]
    torch.testing.assert_close(losses, pair)
    if name == "listwise":
        aim = torch.tensor([[0.7, 0.3]]).double().log().expand(5, 2)
        smoothed = compute_list_loss(policy, reference, torch.tensor([[1, 2]] * 5), scores=aim, loss_type=name)[0]
        cdpo = compute_dpo_loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], label_smoothing=0.3)[0]
        torch.testing.assert_close(smoothed, cdpo)


def test_one_best_answer_against_the_others_is_the_softmax_loss():
    """S-DPO, as Plackett-Luce with ties, and as listwise aiming at the best alone."""
    policy, reference = random_lists(3)
    ranks = torch.tensor([[2.0, 1.0, 2.0, 2.0]] * 3)
    rewards = 0.1 * (policy - reference)
    margins = rewards - rewards[:, 1:2]
    others = margins[:, [0, 2, 3]]
    s_dpo = -torch.nn.functional.logsigmoid(-torch.logsumexp(others, dim=1))
    torch.testing.assert_close(compute_list_loss(policy, reference, ranks, loss_type="plackett_luce")[0], s_dpo)
    scores = torch.tensor([[0.0, 1e6, 0.0, 0.0]] * 3)
    losses, _ = compute_list_loss(policy, reference, ranks, scores=scores, loss_type="listwise")
    torch.testing.assert_close(losses, s_dpo)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_listwise_by_hand(tau):
    policy, reference = random_lists(4, 1, 3)
    scores = [3.0, -1.0, 2.5]
    losses, _ = compute_list_loss(
        policy,
        reference,
        torch.tensor([[1, 3, 2]]),
        scores=torch.tensor([scores]),
        loss_type="listwise",
        score_temperature=tau,
    )
    rewards = rewards_of(policy, reference, 0.1)[0]
    weights = [math.exp(s / tau) for s in scores]
    logs = [r - math.log(sum(map(math.exp, rewards))) for r in rewards]
    assert losses.item() == pytest.approx(-sum(w / sum(weights) * log for w, log in zip(weights, logs)), rel=1e-12)


def test_listwise_is_least_where_the_policy_is_the_target():
    """Rewards equal to score / tau, up to a constant, are its minimum: no gradient is left."""
    scores = torch.tensor([[3.0, -1.0, 2.5]]).double()
    policy = (scores / 2 / 0.1 + 7).requires_grad_()
    losses, _ = compute_list_loss(
        policy, 0 * scores, torch.tensor([[1, 3, 2]]), scores=scores, loss_type="listwise", score_temperature=2.0
    )
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_lists_without_scores_have_their_ranks():
    policy, reference = random_lists(5)
    ranks = torch.tensor([[1.0, 2, 3, 4], [2, 1, 1, 3], [4, 3, 2, 1]])
    scores = torch.tensor([[9.0, 4, 1, 0], [1, 3, 3, float("nan")], [0, 1, 2, 3]])
    some, _ = compute_list_loss(policy, reference, ranks, scores=scores, loss_type="listwise")
    none, _ = compute_list_loss(policy, reference, ranks, loss_type="listwise")
    torch.testing.assert_close(some[1], none[1])
    negative, _ = compute_list_loss(policy, reference, ranks, scores=-ranks, loss_type="listwise")
    torch.testing.assert_close(none, negative)
    assert abs(some[0] - none[0]) > 1e-3


@pytest.mark.parametrize("name", LIST_LOSSES)
@cases
@given(seed=seeds, fill=st.sampled_from([0.0, float("nan"), float("-inf"), 1e30]))
def test_what_stands_where_no_answer_is_changes_nothing(name, seed, fill):
    policy, reference = random_lists(seed, 2, 3)
    ranks, scores = torch.tensor([[1.0, 3, 2], [1, 1, 2]]), torch.tensor([[5.0, 1, 2], [3, 3, 1]])
    bare = policy.clone().requires_grad_()
    losses, rewards = compute_list_loss(bare, reference, ranks, scores=scores, loss_type=name)
    losses.sum().backward()
    places = [0, 2, 4]  # of the answers in wider lists
    wide = [
        torch.full((2, 5), fill, dtype=x.dtype).index_copy(1, torch.tensor(places), x)
        for x in (policy, reference, ranks, scores)
    ]
    present = torch.zeros(2, 5, dtype=torch.bool)
    present[:, places] = True
    leaf = wide[0].clone().requires_grad_()
    filled, more = compute_list_loss(leaf, wide[1], wide[2], scores=wide[3], present=present, loss_type=name)
    filled.sum().backward()
    torch.testing.assert_close(filled, losses)
    torch.testing.assert_close(more[:, places], rewards)
    torch.testing.assert_close(leaf.grad[:, places], bare.grad)
    assert not leaf.grad[~present].any() and not more[~present].any()


@pytest.mark.parametrize("name", LIST_LOSSES)
@cases
@given(seed=seeds)
def test_order_within_a_list_and_of_lists(name, seed):
    policy, reference = random_lists(seed)
    ranks = torch.tensor([[1.0, 2, 2, 3]] * 3)
    columns = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    plain = compute_list_loss(policy, reference, ranks, loss_type=name, weight=[1.0, 0.5, 0.0])[0]
    shuffled = [x[[2, 0, 1]][:, columns] for x in (policy, reference, ranks)]
    torch.testing.assert_close(
        compute_list_loss(*shuffled, loss_type=name, weight=[0.0, 1.0, 0.5])[0], plain[[2, 0, 1]]
    )
    unweighted = compute_list_loss(policy, reference, ranks, loss_type=name)[0]
    torch.testing.assert_close(plain, unweighted * torch.tensor([1.0, 0.5, 0.0]).double())


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_gradient_is_the_derivative_and_flows_through_the_policy_alone(name):
    policy, reference = random_lists(6)
    policy.requires_grad_(), reference.requires_grad_()
    ranks = torch.tensor([[1.0, 2, 2, 3], [4, 3, 2, 1], [1, 1, 1, 2]])

    def losses(policy):
        return compute_list_loss(policy, reference, ranks, loss_type=name, beta=0.3)[0]

    assert torch.autograd.gradcheck(losses, policy)
    losses(policy).sum().backward()
    assert policy.grad.abs().max() > 0 and reference.grad is None
    # only differences count, so that a list's slopes cancel
    torch.testing.assert_close(policy.grad.sum(dim=1), torch.zeros(3).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LIST_LOSSES)
def test_extremes_stay_finite(name, dtype):
    corners = torch.tensor(list(itertools.product([0.0, -1e3, -1e4], repeat=3)), dtype=dtype)
    policy = corners.clone().requires_grad_()
    losses, _ = compute_list_loss(policy, corners.flip(0), torch.tensor([[1, 2, 3]] * 27), loss_type=name)
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    assert losses.dtype == dtype and losses.isfinite().all() and gradient.isfinite().all()


# --- answers in groups, as in the contract ----------------------------------------------------------------------------


def test_groups_in_any_order_ties_and_groups_of_one():
    policy, reference = (x.flatten() for x in random_lists(7, 2, 4))
    groups = ["b", "a", "b", "lone", "a", "a", "tied", "tied"]
    ranks = [2, 1, 1, 1, 3, 2, 1, 1]
    losses = compute_plackett_luce_loss(policy, reference, groups, ranks, beta=0.4)
    rewards = (0.4 * (policy - reference)).tolist()
    expected = [by_hand([rewards[i] for i in rows], [ranks[i] for i in rows]) for rows in ([0, 2], [1, 4, 5])]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    pair = compute_dpo_loss(policy[2:3], policy[0:1], reference[2:3], reference[0:1], beta=0.4)[0]
    torch.testing.assert_close(losses[:1], pair)


def test_no_group_with_a_preference_gives_no_loss_but_a_graph():
    policy = torch.zeros(3, requires_grad=True)
    losses = compute_plackett_luce_loss(policy, torch.zeros(3), [1, 1, 2], [1, 1, 1])
    assert losses.shape == (0,)
    losses.sum().backward()
    assert policy.grad.tolist() == [0.0] * 3


def test_the_contracts_signature():
    names = list(inspect.signature(compute_plackett_luce_loss).parameters)
    assert names == ["policy_logps", "reference_logps", "group_ids", "ranks", "beta"]


def test_bad_groups():
    with pytest.raises(ValueError, match="a group and a rank for each of 2 answers, got 3 groups"):
        compute_plackett_luce_loss(torch.zeros(2), torch.zeros(2), [1, 1, 1], [1, 2])
    with pytest.raises(ValueError, match="ranks must be finite numbers, got nan"):
        compute_plackett_luce_loss(torch.zeros(2), torch.zeros(2), [1, 1], [1, float("nan")])
    with pytest.raises(ValueError, match="same shape"):
        compute_plackett_luce_loss(torch.zeros(2), torch.zeros(3), [1, 1], [1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "kto"}, "has no loss of ranked lists; compute_answer_loss computes"),
        ({"loss_type": ["sigmoid", "kto"]}, "compute_dpo_loss and compute_answer_loss computes"),
        ({"reference_logps": None}, r"\['plackett_luce'\] needs reference_logps"),
        ({"ranks": torch.zeros(2, 2)}, r"ranks must have shape \(2, 3\), got \(2, 2\)"),
        ({"scores": torch.zeros(2)}, r"scores must have shape \(2, 3\)"),
        ({"weight": [1.0]}, r"weight must have shape \(2,\), got \(1,\)"),
        ({"policy_logps": torch.zeros(3)}, r"same shape \(lists, answers\)"),
    ],
)
def test_bad_lists(options, message):
    zeros = torch.zeros(2, 3)
    given = {"policy_logps": zeros, "reference_logps": zeros, "ranks": zeros, "loss_type": "plackett_luce", **options}
    with pytest.raises(ValueError, match=message):
        compute_list_loss(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_type": ["sigmoid", "plackett_luce"]}, "plackett_luce takes a group of answers as one list, the others"),
        ({"loss_type": ["listwise", "sft", "plackett_luce"]}, "listwise and plackett_luce take a group"),
        ({"loss_type": "plackett_luce", "sft_weight": 0.1}, r"\['plackett_luce'\] has no loss of pairs"),
        (
            {"loss_type": "plackett_luce", "score_temperature": 2.0},
            "score_temperature=2.0 has no .* it is for listwise",
        ),
        ({"loss_type": "listwise", "score_temperature": 0.0}, "score_temperature must be > 0"),
        ({"loss_type": "listwise", "f_divergence_type": "js_divergence"}, "no form for loss_type 'listwise'"),
    ],
)
def test_settings_that_do_not_go_together(given, message):
    with pytest.raises(ValueError, match=message):
        validate_loss_args(**given)


# --- margins from scores, on pairs ------------------------------------------------------------------------------------

WITH_GAP = ["sigmoid", "robust", "hinge", "ipo", "ipo_sum", "exo_pair", "discopop", "sigmoid_norm", "simpo"]
LENGTHS = {"chosen_lengths": [2, 5, 3], "rejected_lengths": [4, 1, 6]}


def test_losses_with_a_difference_take_score_margins():
    assert [name for name, spec in LOSSES.items() if spec.has_gap] == WITH_GAP
    for name in set(LOSSES) - set(WITH_GAP):
        smoothing = {"label_smoothing": 1e-3} if name == "exo_pair" else {}
        with pytest.raises(ValueError, match="score_margin=0.5 has no effect on loss_type"):
            validate_loss_args(loss_type=name, score_margin=0.5, **smoothing)
    with pytest.raises(ValueError, match="score_margin=0.5 needs score_gap"):
        compute_dpo_loss(*[torch.zeros(2)] * 4, score_margin=0.5)


@pytest.mark.parametrize("name", WITH_GAP)
def test_a_score_margin_lowers_the_chosen_reward_by_the_gap(name):
    """beta d - m g is the loss of a pair whose chosen log-ratio is less by m g / beta (per token, times its length)."""
    (policy, reference), gaps = random_lists(8, 4, 3), torch.tensor([0.0, 2.0, 0.7])
    chosen, rejected, *references = policy[0], policy[1], reference[0], reference[1]
    given = {"loss_type": name, "beta": 0.3, **({"label_smoothing": 1e-3} if name == "exo_pair" else {}), **LENGTHS}
    losses, *rewards = compute_dpo_loss(chosen, rejected, *references, score_margin=0.5, score_gap=gaps, **given)
    per = torch.tensor(LENGTHS["chosen_lengths"]) if LOSSES[name].lengths else 1
    lowered = chosen - 0.5 * gaps * per / 0.3
    torch.testing.assert_close(losses, compute_dpo_loss(lowered, rejected, *references, **given)[0])
    plain, *plain_rewards = compute_dpo_loss(chosen, rejected, *references, score_gap=gaps, **given)
    assert losses[0] == plain[0] and losses[1] != plain[1]
    assert all(torch.equal(*both) for both in zip(rewards, plain_rewards))


def test_llama_2s_margin_by_hand():
    """-log S(r_w - r_l - m(r)), with rewards of beta times log-ratios."""
    zero = torch.zeros(1).double()
    losses, _, _ = compute_dpo_loss(zero + 3, zero - 2, zero, zero, beta=0.2, score_margin=0.25, score_gap=[2.0])
    assert losses.item() == pytest.approx(math.log1p(math.exp(-0.5)))
