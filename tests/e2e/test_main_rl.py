"""verl's stock main_ppo with two-round rollouts on CPU: GRPO and PPO, by verl's own engine and by the one that shares
prompts, from the same seed; one and two workers."""

import pytest
from rl_runs import STEPS, from_step, run
from written_rows import rows_in

pytestmark = pytest.mark.e2e


# a KL term, so that there is a reference to be asked
GRPO = [
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0.1",
]
FEWER = ["trainer.total_training_steps=2", "trainer.val_before_train=False", "trainer.test_freq=-1"]
SAME = ("actor/pg_loss", "actor/kl_loss", "actor/loss", "actor/grad_norm", "actor/entropy", "critic/score/mean")


@pytest.fixture(scope="module")
def grpo(data, tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("grpo")
    settings = ["+algorithm.logprob_backend=auto", *GRPO, "trainer.test_freq=3", "trainer.save_freq=3"]
    metrics, output = run(data, tiny_model_dir, out, *settings)
    return out, metrics, output


@pytest.fixture(scope="module")
def stock(data, tiny_model_dir, tmp_path_factory):
    """The same by verl's engine, as far as the two are compared."""
    out = tmp_path_factory.mktemp("verl")
    metrics, output = run(data, tiny_model_dir, out, *GRPO, *FEWER)
    return out, metrics, output


def test_rollout_and_trainer_agree_before_and_after_the_weights_move(grpo):
    """The trainer's log-probs of what was sampled are the rollout's: at step 1, and after each update of the weights,
    which would show at a learning rate of 3e-3 if they had not been sent."""
    _, metrics, output = grpo
    assert sorted(metrics) == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        assert metrics[step]["training/rollout_probs_diff_max"] < 1e-4, step
        assert abs(metrics[step]["rollout_corr/log_ppl_diff"]) < 1e-4, step
        assert metrics[step]["actor/grad_norm"] > 0
    assert metrics[3]["actor/entropy"] != pytest.approx(metrics[1]["actor/entropy"], rel=1e-3)
    assert "verl-aiops: set for this run:" in output and "actor_rollout_ref.rollout.name=hf" in output


def test_each_prompt_goes_through_the_model_once(grpo):
    _, metrics, output = grpo
    said = "algorithm.logprob_backend=shared_prompt (each prompt goes through the model once)"
    assert output.count(said) == 1
    # 4 answers to a prompt that is longer than they are
    assert all(0.25 < metrics[step]["perf/shared_tokens_ratio"] < 0.6 for step in range(1, STEPS + 1))
    assert all(metrics[step]["perf/torn_prompts"] == 0 for step in range(1, STEPS + 1))


def test_parts_of_the_reward_are_logged_apart(grpo):
    _, metrics, _ = grpo
    for name in ("score", "acc", "acc_main", "json_ok", "service_ok", "type_ok", "evidence", "invented", "rounds"):
        assert f"reward/{name}" in metrics[1], name
    assert metrics[1]["reward/rounds"] == 2.0
    assert metrics[1]["reward/score"] == pytest.approx(metrics[1]["critic/score/mean"], abs=1e-6)
    assert 0 <= metrics[1]["rounds/cut_1"] <= 1
    assert metrics[0]["val-core/aiops_mturn/acc/mean@1"] == 0.0
    assert "val-aux/aiops_mturn/json_ok/mean@1" in metrics[3] and "val-aux/aiops_mturn/evidence/mean@1" in metrics[3]


def test_generations_are_dumped_with_their_rounds_apart(grpo):
    out, _, _ = grpo
    rows = rows_in(out / "rollouts" / "1.jsonl")
    assert len(rows) == 4 * 4 and len({row["input"] for row in rows}) == 4
    for row in rows:
        assert row["round_1"] in row["output"] or "�" in row["output"] or "<|" in row["round_1"]
        assert isinstance(row["json_ok"], float) and "round_2" in row and "incident_type" in row["gts"]
    # the answers to one prompt differ, and stand side by side
    assert len({row["round_1"] for row in rows[:4]}) > 1 and len({row["input"] for row in rows[:4]}) == 1
    assert {"round_1", "round_2", "evidence"} <= rows_in(out / "validation" / "3.jsonl")[0].keys()


@pytest.mark.slow
def test_the_losses_of_both_are_the_same_step_by_step(grpo, stock):
    (stock_out, stock, _), (our_out, ours, _) = stock, grpo
    assert sorted(stock) == [1, 2]
    for step in (1, 2):
        verls, texts = (
            sorted(row["output"] for row in rows_in(out / "rollouts" / f"{step}.jsonl")) for out in (stock_out, our_out)
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


@pytest.mark.slow
def test_no_pass_is_made_that_the_update_makes_and_the_run_says_so(grpo, stock):
    (_, stock, verls_output), (_, ours, output) = stock, grpo
    said = "verl-aiops: from step 1 on: old log-probs are those of the update itself"
    assert output.count(said) == 1 and "old log-probs are those" not in verls_output
    for step in (1, 2):
        assert stock[step]["timing_s/old_log_prob"] > 10 * ours[step]["timing_s/old_log_prob"]
        assert 0 < ours[step]["perf/shared_tokens_ratio"] < 0.5 and ours[step]["perf/torn_prompts"] >= 0
        assert not [name for name in stock[step] if "shared_tokens" in name]


@pytest.mark.slow
def test_resumed_run_goes_on(grpo, data, tiny_model_dir, tmp_path):
    """From the checkpoint of step 3 with the same rollout seed; the weights that generate are the checkpoint's. By
    verl's engine, from what ours has written."""
    first, _, _ = grpo
    out = from_step(3, first, tmp_path / "resumed")
    metrics, output = run(
        data,
        tiny_model_dir,
        out,
        *GRPO,
        "trainer.total_training_steps=5",
        "trainer.val_before_train=False",
    )
    assert sorted(metrics) == [4, 5] and "algorithm.logprob_backend: shared_prompt -> None" in output
    assert "perf/shared_tokens_ratio" not in metrics[4]
    assert metrics[4]["training/rollout_probs_diff_max"] < 1e-4


@pytest.mark.slow
def test_two_workers_have_a_server_each(grpo, data, tiny_model_dir, tmp_path):
    _, one, _ = grpo
    metrics, _ = run(
        data,
        tiny_model_dir,
        tmp_path / "two",
        "actor_rollout_ref.rollout.n=4",
        "trainer.n_gpus_per_node=2",
        "trainer.device=cpu",
    )
    for step in range(1, STEPS + 1):
        assert metrics[step]["training/rollout_probs_diff_max"] < 1e-4, step
    assert metrics[1]["response_length/mean"] > 0


@pytest.mark.slow
def test_lora_is_merged_for_the_rollout(data, tiny_model_dir, tmp_path):
    """The rollout has whole weights, which verl merges and rounds to bfloat16: probabilities agree to about 1e-3,
    before the adapters have moved and after, when the base alone would give others."""
    import torch

    metrics, _ = run(
        data,
        tiny_model_dir,
        tmp_path / "lora",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.actor.optim.lr=0.1",
        "trainer.save_freq=3",
    )
    for step in range(1, STEPS + 1):
        assert metrics[step]["training/rollout_probs_diff_max"] < 2e-3, step
        assert abs(metrics[step]["rollout_corr/log_ppl_diff"]) < 1e-3, step
    # B starts at 0: the adapters have moved, and the base alone would give other probabilities
    (saved,) = (tmp_path / "lora").rglob("model_world_size_1_rank_0.pt")
    weights = torch.load(saved, weights_only=False)
    moved = [weight.to_local().abs().max().item() for name, weight in weights.items() if "lora_B" in name]
    assert moved and min(moved) > 0.05


@pytest.mark.slow
def test_ppo_with_a_critic(data, tiny_model_dir, tmp_path):
    metrics, _ = run(data, tiny_model_dir, tmp_path / "ppo", estimator="gae")
    assert all(metrics[step]["critic/vf_loss"] > 0 for step in range(1, STEPS + 1))
    assert all(metrics[step]["training/rollout_probs_diff_max"] < 1e-4 for step in range(1, STEPS + 1))


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
    overrides = [
        *GRPO,
        "actor_rollout_ref.actor.optim.lr=1e-3",
        *FEWER,
        f"critic.model.path={critic_dir}",
        "critic.optim.lr=1e-3",
        "trainer.save_freq=1",
    ]
    stock, _ = run(data, tiny_model_dir, tmp_path / "verl", *overrides, estimator="gae")
    shared = [*overrides, "+algorithm.logprob_backend=shared_prompt"]
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
