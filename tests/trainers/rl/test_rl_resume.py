"""GRPO, PPO and online DPO runs that go on from a checkpoint: what differs is used, refused or named before Ray."""

import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from prepared import composed, prepare_online, prepare_triage
from tiny import make_tiny_model

from verl_aiops.trainers.config import ConfigError, OnlineDPOConfig
from verl_aiops.trainers.dpo.checkpoints import write_reference_note
from verl_aiops.trainers.rl import scored_trainer
from verl_aiops.trainers.rl.prompt_counts import untrained_notes
from verl_aiops.trainers.rl.reward_side import RewardSide
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer
from verl_aiops.trainers.runs.note import read_note, write_note
from verl_aiops.trainers.runs.resume import NothingLeft, online_notes, rl_note

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
KWARGS = "+reward.custom_reward_function.reward_kwargs"
STEPS = 5


def _row(at, truth="b", prompt=None):
    return {
        "data_source": "aiops_mturn",
        "agent_name": "aiops_mturn",
        "prompt": [{"role": "user", "content": prompt or f"logs {at}"}],
        "reward_model": {"style": "rule", "ground_truth": json.dumps({"service": "a", "incident_type": truth})},
        "extra_info": {"id": f"i-{at}", "rounds": ["Now JSON."], "incident_text": "logs"},
    }


@pytest.fixture
def write(tmp_path):
    def make(rows, name="rl.parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def prepare(tiny_model_dir, write, tmp_path, monkeypatch):
    """prepare(*overrides, preset) -> the configuration of a run of 10 prompts, 2 a step, before Ray."""
    from verl.utils import device

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")
    files = write([_row(at) for at in range(10)]), write([_row(at) for at in range(90, 94)], "val.parquet")

    def run(*overrides, preset="grpo_mturn"):
        everything = [
            f"+verl_aiops=[{preset},cpu]",
            f"data.train_files={files[0]}",
            f"data.val_files={files[1]}",
            "data.train_batch_size=2",
            f"actor_rollout_ref.model.path={tiny_model_dir}",
            f"trainer.default_local_dir={tmp_path / 'run'}",
            "trainer.save_freq=1",
            *overrides,
        ]
        config = composed(*everything)
        given = {override.split("=")[0].lstrip("+~") for override in everything}
        (prepare_online if preset == "online_dpo" else prepare_triage)(config, given)
        return config

    return run


class _Saving:
    """verl's trainer, as far as a save goes: the last thing is to declare the checkpoint complete."""

    def _save_checkpoint(self):
        root = self.config.trainer.default_local_dir
        assert os.path.isfile(os.path.join(root, f"global_step_{self.global_steps}", "run.json"))
        with open(os.path.join(root, "latest_checkpointed_iteration.txt"), "w") as file:
            file.write(str(self.global_steps))


@pytest.fixture
def saved(prepare, monkeypatch):
    """saved(step, *overrides) -> the folder of that checkpoint, with what the trainer writes of the run."""

    def make(step, *overrides, preset="grpo_mturn"):
        config = prepare(*overrides, preset=preset)
        folder = os.path.join(config.trainer.default_local_dir, f"global_step_{step}")
        note = rl_note(config)
        if preset == "online_dpo":
            note, reference = online_notes(config, OnlineDPOConfig.from_config(config))
            write_reference_note(folder, reference)
        monkeypatch.setattr(scored_trainer.PPOTrainerSync, "_save_checkpoint", _Saving._save_checkpoint)
        trainer = object.__new__(ScoredTrainer)
        trainer.config, trainer.global_steps, trainer._note = config, step, note
        trainer.reward_side = RewardSide()
        trainer.total_training_steps = trainer.steps_per_epoch = STEPS
        trainer._save_checkpoint()
        return folder

    return make


def test_the_same_command_goes_on_and_names_no_change(prepare, saved, capsys):
    folder = saved(2)
    capsys.readouterr()
    prepare()
    assert capsys.readouterr().out.strip().endswith(f"goes on from {folder}")


@pytest.mark.parametrize("preset", ["ppo_mturn", "online_dpo"])
def test_likewise_with_a_critic_and_in_online_dpo(prepare, saved, capsys, preset):
    folder = saved(2, preset=preset)
    capsys.readouterr()
    prepare(preset=preset)
    assert capsys.readouterr().out.strip().endswith(f"goes on from {folder}")


@pytest.mark.parametrize(
    "override, said",
    [
        (f"{ACTOR}.optim.lr=1e-4", f"{ACTOR}.optim.lr: 1e-06 -> 0.0001"),
        (f"{ACTOR}.optim.weight_decay=0.3", f"{ACTOR}.optim.weight_decay: 0.01 -> 0.3"),
        (f"{ACTOR}.optim.lr_scheduler_type=cosine", "constant -> cosine"),
        (f"{ACTOR}.clip_ratio=0.1", f"{ACTOR}.clip_ratio: 0.2 -> 0.1"),
        (f"{ACTOR}.kl_loss_coef=0.1", f"{ACTOR}.kl_loss_coef: 0.001 -> 0.1"),
        (f"{ACTOR}.use_kl_loss=False", f"{ACTOR}.use_kl_loss: True -> False"),
        (f"{ACTOR}.entropy_coeff=0.1", f"{ACTOR}.entropy_coeff: 0 -> 0.1"),
        (f"{ACTOR}.loss_agg_mode=seq-mean-token-mean", "token-mean -> seq-mean-token-mean"),
        (f"{ACTOR}.ppo_mini_batch_size=1", f"{ACTOR}.ppo_mini_batch_size: 2 -> 1"),
        (f"{ROLLOUT}.n=4", f"{ROLLOUT}.n: 8 -> 4"),
        (f"{ROLLOUT}.temperature=0.5", f"{ROLLOUT}.temperature: 1.0 -> 0.5"),
        (f"{ROLLOUT}.seed=7", f"{ROLLOUT}.seed: 42 -> 7"),
        ("algorithm.norm_adv_by_std_in_grpo=False", "algorithm.norm_adv_by_std_in_grpo: True -> False"),
        ("algorithm.adv_estimator=grpo_passk", "algorithm.adv_estimator: grpo -> grpo_passk"),
        (f"{KWARGS}.evidence_weight=0.1", "reward_kwargs.evidence_weight: None -> 0.1"),
    ],
)
def test_what_is_used_anew_is_named_with_its_step(prepare, saved, capsys, override, said):
    saved(2)
    capsys.readouterr()
    prepare(override)
    line = next(line for line in capsys.readouterr().out.splitlines() if said in line)
    assert line.startswith("  from step 3 on: ")


@pytest.mark.parametrize(
    "override, said",
    [
        ("data.train_batch_size=5", "data.train_batch_size: 2 -> 5"),
        ("data.seed=9", "data.seed: None -> 9"),
        ("data.shuffle=False", "data.shuffle: True -> False"),
        ("data.train_max_samples=6", "data.train_max_samples: -1 -> 6"),
        ("trainer.n_gpus_per_node=2", "trainer.n_gpus_per_node: 1 -> 2"),
        (f"{ACTOR}.optim.optimizer=SGD", f"{ACTOR}.optim.optimizer: AdamW -> SGD"),
        ("algorithm.adv_estimator=gae", "trainer: rl -> rl with a critic"),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_refused_with_then_and_now(prepare, saved, override, said):
    folder = saved(2)
    with pytest.raises(ConfigError) as error:
        prepare(override)
    assert said in str(error.value) and folder in str(error.value)


def test_another_rank_is_refused(prepare, saved):
    lora = ("actor_rollout_ref.model.lora.merge=True", "actor_rollout_ref.model.lora_rank=")
    saved(2, lora[0], f"{lora[1]}2")
    with pytest.raises(ConfigError, match="model.lora_rank: 2 -> 4"):
        prepare(lora[0], f"{lora[1]}4")


def test_other_data_and_another_model_are_refused(prepare, saved, write, tmp_path):
    saved(2)
    other = write([_row(at) for at in range(20, 30)], "other.parquet")
    with pytest.raises(ConfigError, match="contents of data.train_files: [0-9a-f]{12}"):
        prepare(f"data.train_files={other}")
    model = make_tiny_model(tmp_path / "other_model", seed=7)
    with pytest.raises(ConfigError, match="actor_rollout_ref.model.path, weights: "):
        prepare(f"actor_rollout_ref.model.path={model}")


def test_data_and_model_that_only_moved_are_the_same(prepare, saved, write, tiny_model_dir, tmp_path, capsys):
    import shutil

    folder = saved(2)
    shutil.copytree(tiny_model_dir, tmp_path / "moved")
    moved = write([_row(at) for at in range(10)], "moved.parquet")
    capsys.readouterr()
    prepare(f"actor_rollout_ref.model.path={tmp_path / 'moved'}", f"data.train_files={moved}")
    assert capsys.readouterr().out.strip().endswith(f"goes on from {folder}")


def test_other_validation_rows_and_another_reward_of_the_same_name_are_named(prepare, saved, write, tmp_path, capsys):
    reward = tmp_path / "reward.py"
    named = (f"reward.custom_reward_function.path={reward}", "reward.custom_reward_function.name=f")
    reward.write_text("def f(**_): return 0.0")
    saved(2, *named)
    reward.write_text("def f(**_): return 1.0")
    capsys.readouterr()
    prepare(*named, f"data.val_files={write([_row(70)], 'other_val.parquet')}")
    said = capsys.readouterr().out
    assert "from step 3 on: reward.custom_reward_function.path (contents): " in said
    assert "from step 3 on: data.val_files: other held-out rows" in said


@pytest.mark.parametrize(
    "override, said", [("critic.optim.lr=1e-3", "1e-05 -> 0.001"), ("critic.cliprange_value=0.2", "0.5 -> 0.2")]
)
def test_the_critics_settings_are_compared_too(prepare, saved, capsys, override, said):
    saved(2, preset="ppo_mturn")
    capsys.readouterr()
    prepare(override, preset="ppo_mturn")
    assert f"from step 3 on: {override.split('=')[0]}: {said}" in capsys.readouterr().out


def test_engines_that_keep_the_optimizers_settings_refuse_others(prepare):
    from dataclasses import replace

    from verl_aiops.trainers.runs.note import compare

    then = rl_note(prepare())
    changed = {f"{ACTOR}.strategy": "megatron", f"{ACTOR}.optim.lr": 1.0}
    megatron = replace(then, settings=then.settings | {f"{ACTOR}.strategy": "megatron"})
    assert compare(megatron, replace(then, settings=then.settings | changed)).refused == [
        f"{ACTOR}.optim.lr: 1e-06 -> 1.0"
    ]


def test_a_checkpoint_without_a_note_goes_on_and_says_so(prepare, saved, capsys):
    folder = saved(2)
    os.remove(os.path.join(folder, "run.json"))
    capsys.readouterr()
    prepare(f"{ACTOR}.optim.lr=1e-4")
    assert "noted no settings" in capsys.readouterr().out


def test_a_grpo_checkpoint_is_none_of_a_preference_run(prepare, saved):
    saved(2)
    with pytest.raises(ConfigError, match="no checkpoint of a preference run"):
        prepare(preset="online_dpo")


def test_an_online_dpo_checkpoint_is_none_of_grpo(prepare, saved):
    saved(2, preset="online_dpo")
    with pytest.raises(ConfigError, match="trainer: online_dpo -> rl"):
        prepare()


def test_a_finished_run_has_nothing_left_and_fewer_steps_are_refused(prepare, saved):
    folder = saved(STEPS)
    before = sorted(os.listdir(os.path.dirname(folder)))
    with pytest.raises(NothingLeft, match=f"of the last step, {STEPS} of {STEPS}"):
        prepare()
    with pytest.raises(NothingLeft):
        prepare(f"trainer.total_training_steps={STEPS}")
    with pytest.raises(ConfigError, match=f"trained for {STEPS} steps, more than the 3"):
        prepare("trainer.total_training_steps=3")
    with pytest.raises(ConfigError, match="change nothing") as error:
        prepare(f"{ACTOR}.optim.lr=1e-4")
    assert f"{ACTOR}.optim.lr: 1e-06 -> 0.0001" in str(error.value)
    assert sorted(os.listdir(os.path.dirname(folder))) == before


def test_more_epochs_are_the_ordinary_way_of_going_on(prepare, saved, capsys):
    saved(STEPS)
    capsys.readouterr()
    prepare("trainer.total_epochs=2")
    assert f"steps in all: {STEPS} -> {2 * STEPS}" in capsys.readouterr().out


def test_a_used_folder_is_not_written_into(prepare, saved):
    saved(2)
    with pytest.raises(ConfigError, match="resume_mode=disable starts anew.*global_step_2 of an earlier run"):
        prepare("trainer.resume_mode=disable")


@pytest.mark.parametrize(
    "override, said",
    [
        (f"{ACTOR}.optim.lr=1e-4", f"{ACTOR}.optim.lr: 1e-06 -> 0.0001"),
        ("algorithm.online_dpo.beta=0.7", "algorithm.online_dpo.beta: 0.1 -> 0.7"),
        (f"{ROLLOUT}.n=3", f"{ROLLOUT}.n: "),
        (f"{ROLLOUT}.temperature=0.7", f"{ROLLOUT}.temperature: 1.0 -> 0.7"),
        (f"{KWARGS}.evidence_weight=0.1", "reward_kwargs.evidence_weight: None -> 0.1"),
    ],
)
def test_what_online_dpo_uses_anew_is_named(prepare, saved, capsys, override, said):
    saved(2, preset="online_dpo")
    capsys.readouterr()
    prepare(override, preset="online_dpo")
    assert f"from step 3 on: {said}" in capsys.readouterr().out.replace("reward.custom_reward_function.", "")


@pytest.mark.parametrize("override", ["data.train_batch_size=5", "data.seed=3", "trainer.n_gpus_per_node=2"])
def test_what_online_dpo_cannot_go_on_with_is_refused(prepare, saved, override):
    saved(2, preset="online_dpo")
    with pytest.raises(ConfigError, match=f"{override.split('=')[0]}: .* -> {override.split('=')[1]}"):
        prepare(override, preset="online_dpo")


def test_a_finished_online_run_has_nothing_left_before_ray(prepare, saved, monkeypatch):
    from verl_aiops.trainers.runs import resume

    folder = saved(STEPS, preset="online_dpo")
    monkeypatch.setattr(resume, "export_model", lambda made_from, config: f"exported {made_from}")
    with pytest.raises(NothingLeft, match=f"has been exported: exported {folder}"):
        prepare(preset="online_dpo")


# --- the optimizer ---------------------------------------------------------------------------------------------------


def test_the_workers_optimizer_has_the_settings_of_the_run_that_goes_on(monkeypatch):
    from verl.workers.config import FSDPOptimizerConfig
    from verl.workers.engine_workers import TrainingWorker

    from verl_aiops.trainers.rl.resumed_workers import ResumedActor, ResumedCritic

    def made(lr, decay):
        config = FSDPOptimizerConfig(lr=lr, weight_decay=decay)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule, optimizer_config=config)

    then, now = made(1e-6, 0.01), made(1e-4, 0.3)

    def load(self, *_):
        now.optimizer.load_state_dict(then.optimizer.state_dict())
        now.lr_scheduler.load_state_dict(then.lr_scheduler.state_dict())

    monkeypatch.setattr(TrainingWorker, "load_checkpoint", load)
    worker = object.__new__(ResumedCritic)
    worker.engine = now
    worker.load_checkpoint("folder")
    group = now.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1e-4, 0.3)
    assert ResumedActor.actor_worker_cls is ResumedCritic


def test_an_optimizer_of_other_fsdp_units_is_told_as_that(monkeypatch):
    """FSDP1's has one parameter for each unit; PyTorch says no more than that a group has another size."""
    from verl.workers.engine_workers import TrainingWorker

    from verl_aiops.trainers.rl.resumed_workers import ResumedCritic

    def optimizer(units):
        return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2)) for _ in range(units)])

    worker = object.__new__(ResumedCritic)
    monkeypatch.setattr(
        TrainingWorker, "load_checkpoint", lambda *_: optimizer(29).load_state_dict(optimizer(1).state_dict())
    )
    with pytest.raises(ConfigError, match=r"^folder: .* other units .*Go on with the algorithm\.logprob_backend"):
        worker.load_checkpoint("folder")

    def broken(*_):
        raise ValueError("something else")

    monkeypatch.setattr(TrainingWorker, "load_checkpoint", broken)
    with pytest.raises(ValueError, match="^something else"):
        worker.load_checkpoint("folder")


def test_verls_workers_are_made_as_ours_expect():
    import inspect

    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker
    expected = ["self", "local_path", "hdfs_path", "del_local_after_load"]
    assert list(inspect.signature(TrainingWorker.load_checkpoint).parameters) == expected
    assert "self.role_worker_mapping" in inspect.getsource(PPOTrainer._init_resource_pool_mgr)


def test_the_trainer_has_these_workers(monkeypatch):
    import ray
    from verl.trainer.ppo.utils import Role

    from verl_aiops.trainers.rl.resumed_workers import ResumedActor, ResumedCritic

    def mapped(strategy):
        def fill(self):
            self.role_worker_mapping = {Role.ActorRollout: "verl's", Role.Critic: "verl's"}

        monkeypatch.setattr(scored_trainer.PPOTrainerSync, "_init_resource_pool_mgr", fill)
        monkeypatch.setattr(ray, "remote", lambda cls: cls)
        trainer = object.__new__(ScoredTrainer)
        trainer.config = OmegaConf.create({"actor_rollout_ref": {"actor": {"strategy": strategy}}})
        trainer._init_resource_pool_mgr()
        return trainer.role_worker_mapping

    assert mapped("fsdp2") == {Role.ActorRollout: ResumedActor, Role.Critic: ResumedCritic}
    assert set(mapped("megatron").values()) == {"verl's"}


def test_notes_of_earlier_versions_are_read(prepare, saved):
    folder = saved(2)
    path = os.path.join(folder, "run.json")
    with open(path) as file:
        content = json.load(file)
    assert content.pop("steps_per_epoch") == STEPS
    with open(path, "w") as file:
        json.dump(content, file)
    assert read_note(folder).steps_per_epoch is None
    write_note(folder, read_note(folder))


# --- what is said of the rows, of checkpoints and of the reference ---------------------------------------------------


def test_prompts_that_repeat_contradict_or_are_validated_on_are_counted(prepare, write, capsys):
    rows = [*(_row(at) for at in range(8)), _row(8, prompt="logs 0"), _row(9, truth="c", prompt="logs 1")]
    train = write(rows, "repeats.parquet")
    val = write([_row(0), _row(1), _row(95)], "shared.parquet")
    for preset in ("grpo_mturn", "online_dpo"):
        prepare(f"data.train_files={train}", f"data.val_files={val}", preset=preset)
        said = capsys.readouterr().out
        assert "2 of 10 rows of data.train_files repeat the prompt of another row; for 1 of them the ground" in said
        assert "2 of 3 prompts of data.val_files are trained on" in said
    prepare()
    assert "repeat the prompt" not in (said := capsys.readouterr().out) and "are trained on" not in said


def _untrained(rows, batch, epochs=1, steps=None, **data):
    trainer = {"total_epochs": epochs, "total_training_steps": steps}
    return untrained_notes(OmegaConf.create({"data": {"train_batch_size": batch, **data}, "trainer": trainer}), rows)


@pytest.mark.parametrize(
    "run, said",
    [
        (_untrained(10, 4), "2 of 10 rows of data.train_files are in no step of this run"),
        (_untrained(10, 4, epochs=3, shuffle=False), "2 of 10 rows"),
        (_untrained(10, 4, epochs=3), "each epoch leaves out 2 of 10 rows"),
        (_untrained(12, 4, steps=1), "8 of 12 rows"),
        (_untrained(12, 4, train_max_samples=8), "train_max_samples=8: 4 of 12 rows"),
        (_untrained(12, 4, steps=9), "total_epochs=1 end after step 3"),
    ],
)
def test_rows_that_are_not_trained_on_are_counted(run, said):
    assert len(run) == 1 and said in run[0]


def test_where_all_rows_are_trained_on_nothing_is_said():
    assert not _untrained(12, 4) and not _untrained(12, 4, epochs=2, steps=6)


def test_rows_without_a_step_are_said_before_ray(prepare, capsys):
    for preset in ("grpo_mturn", "online_dpo"):
        prepare("data.train_batch_size=4", preset=preset)
        assert "2 of 10 rows of data.train_files are in no step" in capsys.readouterr().out


def test_a_run_that_saves_nothing_says_so(prepare, capsys):
    prepare("trainer.save_freq=-1")
    assert "no checkpoint is written" in capsys.readouterr().out
    prepare()
    assert "no checkpoint is written" not in capsys.readouterr().out


@pytest.mark.parametrize("kl", [f"{ACTOR}.use_kl_loss", "algorithm.use_kl_in_reward"])
def test_the_kl_term_beside_an_adapter_is_said_to_be_against_the_base(prepare, tiny_model_dir, tmp_path, capsys, kl):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), lora).save_pretrained(tmp_path / "sft")
    adapter = (
        f"actor_rollout_ref.model.lora_adapter_path={tmp_path / 'sft'}",
        "actor_rollout_ref.model.lora.merge=True",
        f"{ACTOR}.use_kl_loss=False",
    )
    prepare(*adapter)
    assert "verl's reference is the bare model" not in capsys.readouterr().out
    prepare(*adapter[:2], *(() if "reward" not in kl else (adapter[2], f"{kl}=True")))
    assert f"{kl}=True" in (said := capsys.readouterr().out) and "verl's reference is the bare model" in said
