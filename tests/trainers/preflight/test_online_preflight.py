"""What online DPO is given and refused before Ray starts."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared import MATHS, TRIAGE, composed, prepare_online

from verl_aiops.trainers.config import ConfigError, OnlineDPOConfig

# of the lines that a run prints, those that depend on the batch or the optimizer
DEPENDS = {"ppo_micro_batch_size_per_gpu", "log_prob_micro_batch_size_per_gpu", "override_optimizer_config"}

TRIAGE = {**TRIAGE, "extra_info": {**TRIAGE["extra_info"], "answers": ["x", "y"]}}


@pytest.fixture
def prepare(tiny_model_dir, tmp_path, monkeypatch):
    from verl.utils import device

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")

    def run(*overrides, row=TRIAGE, preset=None):
        pq.write_table(pa.Table.from_pylist([row] * 4), tmp_path / "rl.parquet")
        everything = [
            *([f"+verl_aiops={preset}"] if preset else ["algorithm.adv_estimator=online_dpo"]),
            f"data.train_files={tmp_path / 'rl.parquet'}",
            f"data.val_files={tmp_path / 'rl.parquet'}",
            "data.train_batch_size=4",
            f"actor_rollout_ref.model.path={tiny_model_dir}",
            *overrides,
        ]
        config = composed(*everything)
        lines = prepare_online(config, {override.split("=")[0].lstrip("+~") for override in everything})
        return config, lines

    return run


def test_data_model_batch_size_and_n_are_enough(prepare):
    from verl.utils.config import validate_config

    config, lines = prepare("actor_rollout_ref.rollout.n=4")
    assert config.trainer.v1.trainer_mode == "online_dpo"
    assert config.actor_rollout_ref.model.model_type == "preference_language_model"
    assert config.actor_rollout_ref.rollout.name == "hf" and config.reward.reward_manager.name == "aiops_mturn"
    shown = {line.split("=")[0] for line in lines}
    assert "actor_rollout_ref.actor.ppo_mini_batch_size" in shown
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size == 4
    validate_config.__wrapped__(config=config, use_reference_policy=False, use_critic=False)


def test_the_preset_leaves_little_to_fill_in(prepare):
    config, lines = prepare(preset="[online_dpo,cpu]")
    keys = {line.split("=")[0].split(".")[-1] for line in lines}
    assert keys <= {*DEPENDS, "logprob_backend"}
    assert OnlineDPOConfig.from_config(config) == OnlineDPOConfig(logprob_backend="shared_prompt")


def test_another_task_keeps_its_reward(prepare):
    config, _ = prepare("actor_rollout_ref.rollout.n=2", row=MATHS)
    assert config.reward.reward_manager.name == "naive"


def test_self_play_needs_one_answer_and_no_reward(prepare):
    unknown = {**MATHS, "data_source": "mine"}
    config, _ = prepare("actor_rollout_ref.rollout.n=1", "+algorithm.online_dpo.rule=self_play", row=unknown)
    assert config.actor_rollout_ref.rollout.n == 1 and config.reward.reward_manager.name == "naive"


def test_everything_that_is_missing_is_said_at_once(prepare):
    with pytest.raises(ConfigError) as error:
        prepare(
            "actor_rollout_ref.rollout.n=1",
            "actor_rollout_ref.actor.use_kl_loss=True",
            "actor_rollout_ref.actor.ppo_mini_batch_size=3",
            "trainer.n_gpus_per_node=2",
            "actor_rollout_ref.actor.shuffle=True",
            "+algorithm.online_dpo.importance_clip=2.0",
            "actor_rollout_ref.rollout.temperature=0.7",
            row={**MATHS, "data_source": "mine"},
        )
    for said in (
        "a preference needs two answers",
        "use_kl_loss",
        "no reward ranks the answers",
        "ppo_mini_batch_size=3",
        "shuffle=True",
        "importance_clip needs",
    ):
        assert said in str(error.value), said


@pytest.mark.parametrize(
    "setting, said",
    [
        ("+algorithm.online_dpo.rule=best_v_worst", "did you mean 'best_vs_worst'"),
        ("+algorithm.online_dpo.rul=x", "did you mean 'rule'"),
        ("+algorithm.online_dpo.min_gap=-0.1", "min_gap=-0.1"),
        ("+algorithm.online_dpo.max_failed_share=2", "at most 1"),
        ("+algorithm.online_dpo.importance_clip=0.5", "importance_clip=0.5"),
        ("+algorithm.online_dpo.loss_type=aot", "Use another loss"),
        ("+algorithm.online_dpo.reference_mixup=0.5", "reference_sync_steps"),
        ("trainer.v1.trainer_mode=separate_async", "set sync"),
        ("actor_rollout_ref.actor.strategy=megatron", "use fsdp2 or fsdp"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=4", "tensor_model_parallel_size=4"),
        ("data.max_response_length=20", "row i-1"),
        ("custom_reward_function.path=x.py", "reward.custom_reward_function.path"),
    ],
)
def test_what_cannot_work_is_refused_naming_the_key(prepare, setting, said):
    with pytest.raises(ConfigError) as error:
        prepare("actor_rollout_ref.rollout.n=4", setting)
    assert said in str(error.value)


def test_the_trainer_is_chosen_by_either_name(prepare):
    from verl_aiops.trainers.preflight.entry import preference_mode

    config, _ = prepare("actor_rollout_ref.rollout.n=4")
    assert preference_mode(config) == "online_dpo"
    config.algorithm.adv_estimator = "gae"
    assert preference_mode(config) == "online_dpo"
    config.trainer.v1.trainer_mode = "sync"
    assert preference_mode(config) is None
