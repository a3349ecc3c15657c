"""verl's stock main_ppo on CPU: GRPO by verl's own engine and by the one that shares prompts, from the same seed."""

import pytest
from rl_runs import lines_of, run

pytestmark = pytest.mark.e2e

OVERRIDES = [
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0.1",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "trainer.total_training_steps=2",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
]
SHARED = ["+algorithm.logprob_backend=shared_prompt"]
SAME = ("actor/pg_loss", "actor/kl_loss", "actor/loss", "actor/grad_norm", "actor/entropy", "critic/score/mean")


@pytest.fixture(scope="module")
def runs(data, tiny_model_dir, tmp_path_factory):
    found = {}
    for name, overrides in (("verl", []), ("ours", SHARED)):
        out = tmp_path_factory.mktemp(name)
        found[name] = (out, *run(data, tiny_model_dir, out, *OVERRIDES, *overrides))
    return found


def test_the_losses_of_both_are_the_same_step_by_step(runs):
    (stock_out, stock, _), (our_out, ours, _) = runs["verl"], runs["ours"]
    assert sorted(stock) == sorted(ours) == [1, 2]
    for step in (1, 2):
        verls, texts = (
            sorted(row["output"] for row in lines_of(out / "rollouts" / f"{step}.jsonl"))
            for out in (stock_out, our_out)
        )
        assert texts == verls, f"other answers in step {step}"
        for name in SAME:
            assert ours[step][name] == pytest.approx(stock[step][name], rel=1e-4, abs=1e-5), (step, name)
        # and whatever else verl logs of a policy and its rollout
        for name in [name for name in stock[step] if name.startswith(("rollout_corr/", "training/rollout_"))]:
            assert ours[step][name] == pytest.approx(stock[step][name], rel=1e-4, abs=1e-4), (step, name)
        assert "training/rollout_probs_diff_max" in stock[step] and "rollout_corr/kl" in stock[step]
        assert ours[step]["actor/ppo_kl"] == 0.0 == ours[step]["actor/pg_clipfrac"]
    # the reference is the policy that the run began with, and has a term of its own as soon as the weights moved
    assert stock[1]["actor/kl_loss"] < 1e-6 < 1e-4 < stock[2]["actor/kl_loss"]


def test_no_pass_is_made_that_the_update_makes_and_the_run_says_so(runs):
    (_, stock, verls_output), (_, ours, output) = runs["verl"], runs["ours"]
    said = "verl-aiops: from step 1 on: old log-probs are those of the update itself"
    assert output.count(said) == 1 and "old log-probs are those" not in verls_output
    for step in (1, 2):
        assert stock[step]["timing_s/old_log_prob"] > 10 * ours[step]["timing_s/old_log_prob"]
        assert 0 < ours[step]["perf/shared_tokens_ratio"] < 0.5 and ours[step]["perf/torn_prompts"] >= 0
        assert not [name for name in stock[step] if "shared_tokens" in name]


@pytest.fixture(scope="module")
def critic_dir(tiny_model_dir, tmp_path_factory):
    """A critic whose head is kept: verl would draw another one in each run."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("critic") / "model"
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_model_dir, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_ppo_with_a_critic_that_shares_prompts_is_verls_and_goes_on_from_a_checkpoint(
    data, tiny_model_dir, critic_dir, tmp_path
):
    overrides = [*OVERRIDES, f"critic.model.path={critic_dir}", "critic.optim.lr=1e-3", "trainer.save_freq=1"]
    stock, _ = run(data, tiny_model_dir, tmp_path / "verl", *overrides, estimator="gae")
    shared = [*overrides, *SHARED]
    ours, out = {}, tmp_path / "ours"
    for steps in (1, 2):
        found, _ = run(data, tiny_model_dir, out, *shared, f"trainer.total_training_steps={steps}", estimator="gae")
        ours |= found
    for step in (1, 2):
        for name in (*SAME, "critic/vf_loss", "critic/grad_norm", "critic/vpred_mean", "critic/values/mean"):
            assert ours[step][name] == pytest.approx(stock[step][name], rel=1e-4, abs=1e-5), (step, name)
        assert 0 < ours[step]["critic/shared_tokens_ratio"] < 0.5 and stock[step]["critic/vf_loss"] > 0
    # the folders are verl's
    verls, names = (
        sorted(str(path.relative_to(folder)) for path in (folder / "global_step_2").rglob("*"))
        for folder in (tmp_path / "verl", out)
    )
    assert names == verls and any("critic" in name for name in names)
