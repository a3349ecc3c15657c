"""verl's stock main_ppo with two-round rollouts on CPU: online DPO, on one and two workers."""

import pytest
from rl_runs import ONLINE, STEPS, from_step, run
from written_rows import rows_in

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def online(data, tiny_model_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("online")
    metrics, output = run(data, tiny_model_dir, out, *ONLINE, "trainer.test_freq=3", estimator="online_dpo")
    return out, metrics, output


def test_online_dpo_trains_on_its_own_pairs(online, tiny_model_dir):
    out, metrics, output = online
    assert sorted(metrics) == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        m = metrics[step]
        assert 0 < m["pairs/used"] <= 4 and m["pairs/failed_rows"] == 0
        assert m["pairs/prompts_with_pair"] == m["pairs/used"] / 4
        assert m["score/chosen"] > m["score/rejected"] and m["score/gap"] > 0
        assert m["actor/grad_norm"] > 0 and m["length/chosen"] > 0
        for name in ("rewards/chosen", "rewards/margins", "logps/rejected", "actor/lr", "reward/json_ok"):
            assert name in m, name
    # the first of two mini-batches of the first step is at ln 2, where policy and reference are one
    assert 0.5 < metrics[1]["actor/loss"] < 0.9
    assert metrics[3]["kl/reference"] != 0
    assert "val-core/aiops_mturn/acc/mean@1" in metrics[3]
    # what was sampled at step 3 came from the weights that step 2 left: other answers than the first model's
    first, third = (rows_in(out / "rollouts" / f"{n}.jsonl")[0]["round_1"] for n in (1, 3))
    assert first != third
    assert f"trained model: {out / 'huggingface'}" in output and (out / "huggingface" / "config.json").is_file()


@pytest.mark.slow
def test_resumed_online_dpo_repeats_the_losses(online, data, tiny_model_dir, tmp_path):
    """From the checkpoint of step 2: the samples, the pairs and the loss of step 3 are those of the whole run."""
    first, metrics, _ = online
    out = from_step(2, first, tmp_path / "resumed")
    resumed, _ = run(data, tiny_model_dir, out, *ONLINE, "trainer.val_before_train=False", estimator="online_dpo")
    assert sorted(resumed) == [3]
    for name in ("actor/loss", "rewards/margins", "score/chosen", "score/rejected", "pairs/used", "kl/reference"):
        assert resumed[3][name] == pytest.approx(metrics[3][name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_online_dpo_on_two_workers_is_online_dpo_on_one(online, data, tiny_model_dir, tmp_path):
    """The first step's answers are the same (a sample depends on prompt, seed and step), so its pairs are too."""
    _, one, _ = online
    two, _ = run(
        data,
        tiny_model_dir,
        tmp_path / "two",
        *ONLINE,
        "trainer.n_gpus_per_node=2",
        "trainer.device=cpu",
        "trainer.total_training_steps=1",
        estimator="online_dpo",
    )
    for name in ("score/mean", "score/chosen", "score/rejected", "pairs/used", "response_length/mean"):
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-6), name
    assert two[1]["actor/loss"] == pytest.approx(one[1]["actor/loss"], rel=5e-2)


@pytest.mark.slow
def test_self_play_moves_the_policy_to_the_datas_answers(data, tiny_model_dir, tmp_path):
    metrics, _ = run(
        data,
        tiny_model_dir,
        tmp_path / "spin",
        "+algorithm.online_dpo.rule=self_play",
        "+algorithm.online_dpo.reference_sync_steps=2",
        "actor_rollout_ref.rollout.n=1",
        estimator="online_dpo",
    )
    assert metrics[1]["actor/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert all(metrics[step]["pairs/used"] == 4 for step in range(1, STEPS + 1))
    # the data's answers are likelier than to the reference; those of step 1 answer other prompts, at other lengths
    assert metrics[2]["rewards/margins"] > 0 and metrics[2]["rewards/chosen"] > 0
    # the reference was moved after step 2
    assert metrics[3]["actor/loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.slow
def test_a_moving_reference_and_several_epochs_resume_where_they_were(data, tiny_model_dir, tmp_path):
    """Two mini-batches, two epochs, importance weights, a reference that follows the policy: step 3 after a resume has
    the losses of the run that was never stopped."""
    options = [
        *ONLINE,
        "actor_rollout_ref.actor.ppo_epochs=2",
        "+algorithm.online_dpo.importance_clip=2.0",
        "+algorithm.online_dpo.reference_sync_steps=1",
        "+algorithm.online_dpo.reference_mixup=0.5",
    ]
    whole, _ = run(data, tiny_model_dir, tmp_path / "whole", *options, estimator="online_dpo")
    assert all(whole[step]["actor/grad_norm"] > 0 for step in range(1, STEPS + 1))
    out = from_step(2, tmp_path / "whole", tmp_path / "resumed")
    resumed, _ = run(data, tiny_model_dir, out, *options, "trainer.val_before_train=False", estimator="online_dpo")
    assert sorted(resumed) == [3]
    for name in ("actor/loss", "rewards/margins", "score/gap", "pairs/used", "kl/reference", "actor/grad_norm"):
        assert resumed[3][name] == pytest.approx(whole[3][name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_online_dpo_with_lora_has_its_base_for_reference(data, tiny_model_dir, tmp_path):
    lora = [
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.model.lora.merge=True",
        "actor_rollout_ref.actor.optim.lr=0.03",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    ]
    metrics, output = run(data, tiny_model_dir, tmp_path, *ONLINE, *lora, estimator="online_dpo")
    # adapters start at zero: policy and base are one until the first update, and part then
    assert metrics[1]["actor/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert abs(metrics[3]["kl/reference"]) > 1e-3 and abs(metrics[3]["rewards/margins"]) > 1e-4
    exported = tmp_path / "huggingface"
    assert f"trained model: {exported}" in output and (exported / "config.json").is_file()
