"""Losses of single answers with a yes or a no: equal to TRL's, to hand-worked values, and to themselves however cut."""

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.losses import (
    LOSSES,
    advise_weights,
    compute_answer_loss,
    compute_dpo_loss,
    compute_kto_loss,
    needs_kl,
    needs_shift,
    validate_loss_args,
)

RECORDS = json.loads((Path(__file__).parents[1] / "fixtures" / "kto_losses.json").read_text())["records"]
ANSWER_LOSSES = [name for name, spec in LOSSES.items() if spec.of == "single"]
NEEDS = {"kl": 0.8, "shift": -0.3}
cases = settings(max_examples=8, deadline=None)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random_answers(seed, answers=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    policy, reference = ((-20 * torch.rand(answers, generator=generator).double()).to(dtype) for _ in range(2))
    return policy, reference, torch.rand(answers, generator=generator) < 0.5


def test_the_losses_of_single_answers():
    assert ANSWER_LOSSES == ["kto", "apo_zero_unpaired", "bco"]
    assert [needs_kl(name) for name in ANSWER_LOSSES] == [True, False, False]
    assert [needs_shift(name) for name in ANSWER_LOSSES] == [False, False, True]
    assert needs_kl(["sigmoid", "kto"]) and not needs_kl(["sigmoid", "bco"]) and needs_shift(["sigmoid", "bco"])


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r['loss_type']},{r['beta']},{r['metrics']['kl']:.1f}")
def test_loss_gradient_and_metrics_are_trls(record):
    policy, labels = tensor(record["policy_logps"]).requires_grad_(), torch.tensor(record["labels"])
    estimate = (tensor(record["kl_policy_logps"]) - tensor(record["kl_ref_logps"])).mean()
    given = {name: record[name] for name in ("loss_type", "beta", "desirable_weight", "undesirable_weight")}
    losses, rewards = compute_answer_loss(policy, tensor(record["ref_logps"]), labels, kl=estimate, **given)
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(record["loss"], rel=0, abs=1e-12)
    torch.testing.assert_close(policy.grad, tensor(record["grad"]), rtol=0, atol=1e-12)
    metrics = record["metrics"]
    assert rewards[labels].mean().item() == pytest.approx(metrics["rewards/chosen"], abs=1e-12)
    assert rewards[~labels].mean().item() == pytest.approx(metrics["rewards/rejected"], abs=1e-12)
    if record["loss_type"] == "kto":
        assert max(estimate.item(), 0.0) == pytest.approx(metrics["kl"])
        del given["loss_type"]
        again = compute_kto_loss(policy, tensor(record["ref_logps"]), record["labels"], estimate.item(), **given)
        assert torch.equal(again[0], losses) and torch.equal(again[1], rewards)


def test_the_records_have_estimates_above_and_below_zero():
    zeros = [r["metrics"]["kl"] == 0 for r in RECORDS if r["loss_type"] == "kto"]
    assert any(zeros) and not all(zeros) and {r["loss_type"] for r in RECORDS} == {"kto", "apo_zero_unpaired"}


def test_bco_by_hand():
    """-log S(beta r - delta) of a yes, -log S(delta - beta r) of a no."""
    policy, reference = tensor([-3.0, -3.0]), tensor([-5.0, -5.0])
    losses, rewards = compute_answer_loss(policy, reference, [True, False], shift=0.5, beta=0.4, loss_type="bco")
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.3))])
    assert rewards.tolist() == pytest.approx([0.8, 0.8])


def test_bco_without_a_shift_is_the_pair_loss_taken_apart():
    policy, reference, _ = random_answers(1, 8)
    apart, _ = compute_answer_loss(policy, reference, [True] * 4 + [False] * 4, shift=0.0, loss_type="bco")
    together, _, _ = compute_dpo_loss(policy[:4], policy[4:], reference[:4], reference[4:], loss_type="bco_pair")
    torch.testing.assert_close(apart[:4] + apart[4:], together)
    halves, _ = compute_answer_loss(policy, reference, [True] * 4 + [False] * 4, loss_type="apo_zero_unpaired")
    pairs, _, _ = compute_dpo_loss(policy[:4], policy[4:], reference[:4], reference[4:], loss_type="apo_zero")
    torch.testing.assert_close(halves[:4] + halves[4:], pairs)


@pytest.mark.parametrize("name", ANSWER_LOSSES)
@cases
@given(seed=st.integers(0, 2**31 - 1), micro_batch=st.integers(1, 5))
def test_any_cut_and_order_give_the_same_objective_and_gradient(name, seed, micro_batch):
    policy, reference, labels = random_answers(seed, 7)
    results = []
    for order in (torch.arange(7), torch.randperm(7, generator=torch.Generator().manual_seed(seed))):
        for parts in ([order], order.split(micro_batch)):
            leaf, total = policy.clone().requires_grad_(), 0.0
            for part in parts:
                losses, _ = compute_answer_loss(leaf[part], reference[part], labels[part], loss_type=name, **NEEDS)
                (losses.sum() / 7).backward()
                total += losses.sum().item() / 7
            results.append((total, leaf.grad))
    for total, gradient in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-12)
        torch.testing.assert_close(gradient, results[0][1])


@pytest.mark.parametrize("name", ANSWER_LOSSES)
def test_gradient_is_the_derivative_and_flows_through_the_policy_alone(name):
    policy, reference, labels = random_answers(3)
    policy.requires_grad_(), reference.requires_grad_()
    estimates = {key: tensor(value).requires_grad_() for key, value in NEEDS.items()}

    def losses(policy):
        return compute_answer_loss(policy, reference, labels, loss_type=name, beta=0.4, **estimates)[0]

    assert torch.autograd.gradcheck(losses, policy)
    losses(policy).sum().backward()
    assert policy.grad.abs().min() > 0 and reference.grad is None
    # a likelier good answer costs less, a likelier bad one more
    assert torch.equal(policy.grad < 0, labels)
    assert all(value.grad is None for value in estimates.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ANSWER_LOSSES)
def test_extremes_stay_finite(name, dtype):
    policy = torch.tensor([0.0, -1e4, 0.0, -1e4], dtype=dtype, requires_grad=True)
    reference = torch.tensor([-1e4, 0.0, -1e4, 0.0], dtype=dtype)
    for kl in (0.0, 1e4):
        losses, rewards = compute_answer_loss(
            policy, reference, [True, True, False, False], kl=kl, shift=-kl, loss_type=name
        )
        (gradient,) = torch.autograd.grad(losses.sum(), policy)
        assert losses.dtype == dtype
        assert all(values.isfinite().all() for values in (losses, rewards, gradient))


def test_weights_are_factors_of_the_losses_alone():
    policy, reference, labels = random_answers(5)
    plain = compute_answer_loss(policy, reference, labels, loss_type=["kto", "bco"], **NEEDS)
    weight = torch.tensor([0.0, 1.0, 2.5, 0.5, 1.0, 3.0])
    given = {"loss_type": ["kto", "bco"], "desirable_weight": 1.2, "undesirable_weight": 0.0}
    losses, rewards = compute_answer_loss(policy, reference, labels, weight=weight, **given, **NEEDS)
    torch.testing.assert_close(losses, plain[0] * weight.double() * torch.where(labels, 1.2, 0.0).double())
    assert torch.equal(rewards, plain[1]) and not rewards.requires_grad


def test_estimates_may_be_given_for_each_answer():
    policy, reference, labels = random_answers(6)
    for name in ANSWER_LOSSES:
        once = compute_answer_loss(policy, reference, labels, loss_type=name, **NEEDS)[0]
        each = {key: torch.full((6,), value) for key, value in NEEDS.items()}
        torch.testing.assert_close(compute_answer_loss(policy, reference, labels, loss_type=name, **each)[0], once)


def test_losses_of_single_answers_take_their_part_of_a_mixture():
    policy, reference, labels = random_answers(7)
    mixed = {"loss_type": ["sigmoid", "kto", "bco"], "loss_weights": [1.0, 0.5, 2.0]}
    losses, _ = compute_answer_loss(policy, reference, labels, **mixed, **NEEDS)
    kto, bco = (compute_answer_loss(policy, reference, labels, loss_type=n, **NEEDS)[0] for n in ("kto", "bco"))
    torch.testing.assert_close(losses, 0.5 * kto + 2.0 * bco)
    half = policy[:3], policy[3:], reference[:3], reference[3:]
    assert torch.equal(compute_dpo_loss(*half, **mixed)[0], compute_dpo_loss(*half)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "kto"}, r"loss_type \['kto'\] needs kl"),
        ({"loss_type": "bco", "kl": 1.0}, r"loss_type \['bco'\] needs shift"),
        ({"loss_type": "kto", "kl": torch.zeros(3)}, r"kl must have shape \(2,\), got \(3,\)"),
        ({"loss_type": "sigmoid"}, r"\['sigmoid'\] has no loss of single answers; compute_dpo_loss computes"),
        ({"loss_type": "plackett_luce"}, "has no loss of single answers; compute_list_loss computes"),
        ({"loss_type": "kto", "kl": 0.0, "weight": [1.0]}, r"weight must have shape \(2,\), got \(1,\)"),
        ({"loss_type": "kto", "kl": 0.0, "labels": [True]}, r"labels must have shape \(2,\), got \(1,\)"),
        ({"loss_type": "kto", "kl": 0.0, "reference_logps": None}, "needs reference_logps"),
        ({"loss_type": "kto", "kl": 0.0, "reference_logps": torch.zeros(3)}, r"same shape \(answers,\)"),
        ({"loss_type": "kto", "kl": 0.0, "desirable_weight": -1.0}, "desirable_weight must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments(options, message):
    given = {"policy_logps": torch.zeros(2), "reference_logps": torch.zeros(2), "labels": [True, False], **options}
    with pytest.raises(ValueError, match=message):
        compute_answer_loss(**given)


def test_half_types_and_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="policy_logps is torch.bfloat16; give float32 or float64"):
        compute_answer_loss(torch.zeros(2).bfloat16(), torch.zeros(2), [True, True], loss_type="apo_zero_unpaired")
    with pytest.raises(TypeError, match="did you mean 'desirable_weight'"):
        compute_answer_loss(torch.zeros(2), torch.zeros(2), [True, True], loss_type="kto", kl=0.0, desirable_wait=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"desirable_weight": 1.3}, r"no effect on loss_type \['sigmoid'\]; it is for kto, apo_zero_unpaired, bco"),
        ({"undesirable_weight": 0.5, "loss_type": "plackett_luce"}, "undesirable_weight=0.5 has no effect"),
        ({"loss_type": "kto", "sft_weight": 0.1}, r"adds a loss of pairs' chosen answers, .*\['kto'\] has no loss of"),
        ({"loss_type": "kto", "f_divergence_type": "forward_kl"}, "no form for loss_type 'kto'"),
        ({"loss_type": "kto", "score_margin": 1.0}, "score_margin=1.0 has no effect"),
    ],
)
def test_settings_without_effect(given, message):
    with pytest.raises(ValueError, match=message):
        validate_loss_args(**given)


def test_the_contracts_signature():
    names = list(inspect.signature(compute_kto_loss).parameters)
    assert names == [
        *("policy_logps", "reference_logps", "labels", "kl"),
        *("beta", "desirable_weight", "undesirable_weight"),
    ]


def test_advice_on_weights():
    """lambda_D n_D / (lambda_U n_U) in [1, 4/3]."""
    few_yes = advise_weights(100, 300)
    assert not few_yes.balanced and few_yes.ratio == pytest.approx(1 / 3)
    assert few_yes.desirable == pytest.approx((3.0, 4.0)) and few_yes.undesirable == pytest.approx((0.25, 1 / 3))
    for name in ("desirable", "undesirable"):
        for value in getattr(few_yes, name):
            assert advise_weights(100, 300, **{f"{name}_weight": value}).balanced
    assert advise_weights(100, 100).balanced and advise_weights(4, 3).balanced
    assert not advise_weights(7, 5).balanced and not advise_weights(99, 100).balanced
    # the range of one weight follows the other
    assert advise_weights(100, 300, undesirable_weight=0.5).desirable == pytest.approx((1.5, 2.0))
    with pytest.raises(ValueError, match="there are 5 and 0"):
        advise_weights(5, 0)
    with pytest.raises(ValueError, match="desirable_weight must be > 0"):
        advise_weights(5, 5, desirable_weight=0.0)
