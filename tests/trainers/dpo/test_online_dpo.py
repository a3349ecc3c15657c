"""Online DPO in the small: where its gradient points, and that it is offline DPO on the pairs it makes."""

import pytest
import torch

from verl_aiops.losses import compute_dpo_loss, compute_online_dpo_loss, label_preferences
from verl_aiops.trainers.dpo.online_pairs import Answer, pair_example
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.worker.objective import PreferenceObjective


def test_the_expected_gradient_on_a_bandit_is_the_closed_form():
    """Policy softmax(theta), reference equal to it, two draws per prompt, the better is chosen.

    A pair (w, l) has the gradient -beta/2 (e_w - e_l), so its expectation is -beta pi_i sum_j pi_j sign(r_i - r_j) in
    coordinate i: towards actions that beat what the policy draws, and 0 in total. 40,000 pairs; four standard errors.
    """
    torch.manual_seed(0)
    theta = torch.tensor([0.3, -0.5, 1.0, 0.0, 0.2], dtype=torch.float64)
    reward = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.0], dtype=torch.float64)
    beta, prompts = 0.3, 40_000
    policy = theta.softmax(0)
    draws = torch.multinomial(policy, 2 * prompts, replacement=True)
    groups = [at // 2 for at in range(2 * prompts)]
    chosen, rejected = label_preferences(reward[draws], groups)
    parameter = theta.clone().requires_grad_()
    logps = parameter.log_softmax(0)
    w, l = draws[chosen], draws[rejected]  # noqa: E741
    losses, _, _ = compute_online_dpo_loss(
        logps[w], logps[l], theta.log_softmax(0)[w], theta.log_softmax(0)[l], beta=beta
    )
    (losses.sum() / prompts).backward()
    expected = -beta * policy * (policy * torch.sign(reward[:, None] - reward[None, :])).sum(1)
    assert torch.allclose(parameter.grad, expected, atol=4 * beta / 2 / prompts**0.5)
    assert abs(parameter.grad.sum()) < 1e-10
    # gradient descent raises the best action and lowers the worst
    assert parameter.grad[1] < 0 < parameter.grad[4]


def test_the_online_loss_is_the_offline_loss():
    import inspect

    assert inspect.signature(compute_online_dpo_loss) == inspect.signature(compute_dpo_loss)
    logps = [torch.randn(6, dtype=torch.float64) for _ in range(4)]
    for a, b in zip(compute_online_dpo_loss(*logps, beta=0.2), compute_dpo_loss(*logps, beta=0.2)):
        assert torch.equal(a, b)


# --- the objective on batches of both kinds ---------------------------------------------------------------------------


def sampled(prompt, ids, behaviour):
    return Answer("p", torch.tensor(prompt), torch.tensor(ids), torch.ones(len(ids)), rollout_logps=behaviour)


@pytest.fixture
def pairs():
    """(chosen, rejected) answers to one prompt each, with the log-probs of the policy that sampled them."""
    torch.manual_seed(1)
    made = []
    for n in range(3):
        chosen, rejected = list(range(5, 8 + n)), list(range(20, 22 + n))
        made.append([sampled([1, 2, n], ids, -torch.rand(len(ids))) for ids in (chosen, rejected)])
    return made


def loss_and_gradient(batch, token_logps, **settings):
    values = [row.clone().requires_grad_() for row in token_logps]
    batch["ref_log_probs"] = torch.nested.as_nested_tensor([row * 0.9 for row in token_logps], layout=torch.jagged)
    from verl.utils import tensordict_utils as tu

    tu.assign_non_tensor(batch, dp_size=1)
    output = {"answer_log_probs": torch.nested.as_nested_tensor(values, layout=torch.jagged)}
    loss, _ = PreferenceObjective(loss_settings={"beta": 0.4}, **settings)(output, batch)
    loss.backward()
    return loss.detach(), [v.grad for v in values]


def test_online_pairs_give_the_offline_loss_and_gradient(pairs):
    token_logps = [-torch.rand(len(a.response_ids)) for pair in pairs for a in pair]
    online = pair_batch([pair_example(*pair) for pair in pairs], mini_pairs=3)
    offline = pair_batch(
        [
            {
                "prompt_ids": chosen.prompt_ids,
                "chosen_ids": chosen.response_ids,
                "rejected_ids": rejected.response_ids,
                "chosen_mask": chosen.mask,
                "rejected_mask": rejected.mask,
                "weight": 1.0,
            }
            for chosen, rejected in pairs
        ],
        mini_pairs=3,
    )
    for name in ("input_ids", "position_ids", "responses", "response_mask", "prompt_lengths", "mean_chosen_length"):
        a, b = online[name], offline[name]
        assert torch.equal(a.values(), b.values()) if a.is_nested else torch.equal(a, b), name
    (loss, gradient), (other, expected) = (loss_and_gradient(batch, token_logps) for batch in (online, offline))
    assert torch.equal(loss, other) and all(torch.equal(a, b) for a, b in zip(gradient, expected))


def test_importance_weights(pairs):
    """1 while the policy is the one that sampled; the ratio of both answers' probabilities otherwise, clipped."""
    behaviour = [(c.rollout_logps, r.rollout_logps) for c, r in pairs]
    flat = [logps for pair in behaviour for logps in pair]

    def batch():
        return pair_batch([pair_example(*pair) for pair in pairs], mini_pairs=3, behaviour=behaviour)

    plain, _ = loss_and_gradient(batch(), flat)
    weighted, _ = loss_and_gradient(batch(), flat, importance_clip=2.0)
    assert weighted == pytest.approx(plain.item(), rel=1e-6)

    moved = [logps + shift for logps, shift in zip(flat, (0.3, 0.2, -0.4, 0.1, 0.0, -0.1))]
    sums = torch.stack([m.sum() for m in moved])
    ratios = (sums - torch.stack([b.sum() for b in flat])).view(3, 2).sum(1).exp()
    weights = ratios.clamp(max=1.5)
    assert weights[0] == 1.5 and weights[1] < 1, "both kinds are in the test"
    references = torch.stack([(m * 0.9).sum() for m in moved])
    losses, _, _ = compute_dpo_loss(sums[0::2], sums[1::2], references[0::2], references[1::2], beta=0.4)
    loss, gradient = loss_and_gradient(batch(), moved, importance_clip=1.5)
    assert loss.item() == pytest.approx((losses * weights).mean().item(), rel=1e-5)
    _, plain_gradient = loss_and_gradient(batch(), moved)
    for at, (a, b) in enumerate(zip(gradient, plain_gradient)):
        assert torch.allclose(a, b * weights[at // 2], rtol=1e-5), "weights are constants"


# --- a step of the trainer, without workers ---------------------------------------------------------------------------


@pytest.fixture
def trainer():
    """An OnlineDPOTrainer whose rollouts are given and whose training is only counted."""
    from types import SimpleNamespace

    from omegaconf import OmegaConf

    from verl_aiops.trainers.config import OnlineDPOConfig
    from verl_aiops.trainers.dpo.online import OnlineDPOTrainer

    made = object.__new__(OnlineDPOTrainer)
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 2}}})
    made.dpo = OnlineDPOConfig.from_config({"eos_penalty": 0.5, "max_failed_share": 0.1})
    made.global_steps, made.stops = 7, frozenset({2})
    made.replay_buffer = SimpleNamespace(sample=lambda **kwargs: (SimpleNamespace(keys=["p_0_0"]), {}))
    made.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    made._take_in = lambda batch: None
    made.on_sample_begin = made.on_sample_end = lambda: None
    made.trained = []

    def train(pairs):
        made.trained.append(pairs)
        return {"actor/loss": 0.5}

    made._train = train

    def step(answers, prompts):
        made._answers = lambda batch: answers
        metrics = {}
        made._step_once(metrics, {}, prompts)
        return metrics

    return made, step


def scored(uid, ids, score):
    return Answer(uid, torch.tensor([1]), torch.tensor(ids), torch.ones(len(ids)), score)


def test_a_step_without_a_preference_trains_nothing_and_says_so(trainer, capsys):
    made, step = trainer
    metrics = step([scored("a", (5, 2), 0.3), scored("a", (6, 2), 0.3)], 1)
    assert made.trained == [] and metrics["pairs/used"] == 0 and metrics["pairs/ties"] == 1
    assert "actor/loss" not in metrics and "step 7: no prompt has a preference" in capsys.readouterr().out


def test_an_answer_that_did_not_end_is_worth_less(trainer):
    made, step = trainer
    ended, cut = scored("a", (5, 2), 0.4), scored("a", (6, 7), 0.6)
    metrics = step([cut, ended], 1)
    assert made.trained == [[(ended, cut)]]
    # what is logged are the reward's own scores
    assert metrics["score/chosen"] == pytest.approx(0.4) and metrics["score/rejected"] == pytest.approx(0.6)


def test_failed_answers_are_counted_and_end_the_run_when_there_are_many(trainer):
    """NaN scores, and sessions that are missing since their reward raised: verl says nothing of those."""
    made, step = trainer
    good = [scored(str(n), (ids, 2), score) for n in range(10) for ids, score in ((5, 0.1), (6, 0.9))]
    metrics = step(good[:-1], 10)
    assert metrics["pairs/failed_rows"] == 1 and metrics["pairs/used"] == 9 and metrics["pairs/single"] == 1
    with pytest.raises(RuntimeError, match="3 of 20 answers of step 7 have no score"):
        step([*good[:-3], scored("9", (7, 2), float("nan"))], 10)
    with pytest.raises(RuntimeError, match="2 of 2 answers"):
        step([], 1)


# --- what training returns --------------------------------------------------------------------------------------------


def trained(beta=0.4, **dpo):
    """Metrics of `_train` on two pairs, from workers whose rewards are known."""
    from types import SimpleNamespace

    from omegaconf import OmegaConf
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.config import OnlineDPOConfig
    from verl_aiops.trainers.dpo.online import OnlineDPOTrainer

    made = object.__new__(OnlineDPOTrainer)
    actor = {"ppo_mini_batch_size": 2, "ppo_micro_batch_size_per_gpu": 1, "use_dynamic_bsz": False, "ppo_epochs": 1}
    actor |= {"ppo_max_token_len_per_gpu": 0, "data_loader_seed": 1}
    made.config = OmegaConf.create({"actor_rollout_ref": {"actor": actor}})
    made.dpo = OnlineDPOConfig.from_config({"beta": beta, **dpo})
    made.global_steps, made.ranks, made.backend = 7, 1, "rows"
    # log-ratios of policy to reference, in nats an answer: 0.9 and -0.5
    metrics = {"loss": [0.5], "rewards/chosen": [beta * 0.9], "rewards/rejected": [beta * -0.5], "mfu": [0.1]}
    # of the tokens of rows the model has seen so many: verl's count of the work is of rows
    metrics["perf/shared_tokens_ratio"] = [0.6]

    def update(batch):
        assert ("ref_log_probs" in batch.keys()) == made.dpo.uses_reference
        return tu.get_tensordict({}, {"metrics": metrics})

    made.actor_rollout_wg = SimpleNamespace(
        update_actor=update,
        reference_log_probs=lambda batch: {"answer_log_probs": batch["response_mask"] * -1.0},
    )
    pairs = [(scored("a", (5, 2), 0.9), scored("a", (6, 2), 0.1)), (scored("b", (7, 2), 0.9), scored("b", (8, 2), 0.1))]
    return made._train(pairs)


@pytest.mark.parametrize("beta", [0.1, 0.4])
def test_the_divergence_from_the_reference_is_the_mean_log_ratio_of_what_was_sampled(beta):
    """In nats an answer whatever beta is: E_policy[log policy - log reference] over both answers of each pair."""
    values = trained(beta=beta)
    assert values["kl/reference"] == pytest.approx((0.9 - 0.5) / 2)
    assert values["actor/loss"] == 0.5 and "actor/rewards/chosen" not in values
    assert values["perf/shared_tokens_ratio"] == 0.6 and values["actor/mfu"] == pytest.approx(0.06)


def test_it_is_not_told_where_an_answer_is_not_the_policys_or_nothing_is_the_reference():
    assert "kl/reference" not in trained(rule="self_play")
    assert "kl/reference" not in trained(loss_type="simpo")
