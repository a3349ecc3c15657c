"""The prototype for verl's branch `neo`: its loop, and where it is put in. The names are those that verl 0.9 has too,
for its legacy trainer; of `neo` itself there is only what was read."""

import json
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_aiops.seam import elsewhere, need
from verl_aiops.seam.neo import legacy, loop, runner
from verl_aiops.verl_patches.overrides import OVERRIDES, fits

BASE = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
# those of ours that run on files alone
ON_FILES = ("trainers.dpo.offline", "trainers.rm.trainer", "trainers.dpo.checkpoints", "trainers.runs.log")


def test_verl_has_what_it_needs():
    assert [said for row in legacy.NEEDS if (said := need.unmet(row))] == []


@pytest.mark.parametrize(
    "override",
    [entry for entry in OVERRIDES if entry.theirs == BASE and entry.ours.startswith(ON_FILES)],
    ids=lambda entry: f"{entry.ours}.{entry.name}",
)
def test_it_has_what_our_trainers_override_as_they_do(override):
    import importlib

    module, _, cls = f"verl_aiops.{override.ours}".partition(":")
    ours = vars(getattr(importlib.import_module(module), cls))[override.name]
    assert fits(ours, getattr(loop.Loop, override.name))


class Data:
    def __init__(self):
        self.loaded = None

    def state_dict(self):
        return {"order": "seeded"}

    def load_state_dict(self, state):
        self.loaded = state


class Steps(loop.Loop):
    """A trainer that trains nothing and remembers what it was asked."""

    def _setup(self):
        self.said, self.train_dataloader = [], Data()
        self.steps_per_epoch, self.total_training_steps = 3, self.config.trainer.total_training_steps

        def save(path, remote, step, max_ckpt_to_keep):
            self.said.append(f"save {step}")

        def load(path, del_local_after_load):
            self.said.append(f"load {path}")

        def profile(what):
            return lambda **more: self.said.append(f"{what} {self.global_steps}")

        self.actor_rollout_wg = SimpleNamespace(
            save_checkpoint=save, load_checkpoint=load, start_profile=profile("start"), stop_profile=profile("stop")
        )
        self._load_checkpoint()

    def step(self, metrics, timing_raw):
        metrics["loss"] = self.global_steps / 10
        self.said.append(f"step {self.global_steps}")
        return loop.NoKeys()

    def on_step_end(self):
        self.said.append("end")

    def _validate(self):
        self.said.append("validate")
        return {"val/loss": 0.5}

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        assert batch.keys == [] and timing_raw["step"] >= 0
        metrics["epoch"] = epoch


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))

    def made(**settings):
        trainer = {"project_name": "p", "experiment_name": "e", "logger": ["file"], "v1": {"trainer_mode": "dpo"}}
        trainer |= {"total_epochs": 9, "total_training_steps": 5, "save_freq": 2, "test_freq": 3}
        trainer |= {"default_local_dir": str(tmp_path / "run"), "resume_mode": "auto", "default_hdfs_dir": None}
        trainer |= {"val_before_train": True, "del_local_ckpt_after_load": False, **settings}
        config = {"trainer": trainer, "global_profiler": {"steps": [2]}}
        config["actor_rollout_ref"] = {"actor": {"checkpoint": {"async_save": False}}}
        steps = Steps(OmegaConf.create(config))
        steps.init()
        return steps

    return made


def test_steps_are_taken_saved_validated_and_logged_in_verls_order(start, tmp_path):
    steps = start()
    steps.fit(None)
    assert steps.said == (
        ["validate", "step 1", "end", "start 2", "step 2", "stop 2", "save 2", "end"]
        + ["step 3", "end", "validate", "step 4", "save 4", "end", "step 5", "save 5", "end", "validate"]
    )
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [0, 1, 2, 3, 4, 5]
    assert logged[3]["data"] == {"loss": 0.3, "val/loss": 0.5, "epoch": 0} and logged[4]["data"]["epoch"] == 1
    # past the last step, where ours looks for it
    assert steps.global_steps == 6


def test_a_run_goes_on_from_its_last_checkpoint(start, tmp_path):
    start(total_training_steps=2).fit(None)
    again = start()
    assert again.said == [f"load {tmp_path / 'run' / 'global_step_2' / 'actor'}"]
    assert again.global_steps == 2 and again.train_dataloader.loaded == {"order": "seeded"}
    again.fit(None)
    assert [word for word in again.said if word.startswith("step")] == ["step 3", "step 4", "step 5"]
    chosen = start(resume_mode="resume_path", resume_from_path=str(tmp_path / "run" / "global_step_4"))
    assert chosen.global_steps == 4
    assert start(resume_mode="disable").global_steps == 0


def test_epochs_end_it_too_and_a_run_may_only_validate(start):
    steps = start(total_epochs=1, val_before_train=False, save_freq=-1, test_freq=-1)
    steps.fit(None)
    assert [word for word in steps.said if word.startswith("step")] == ["step 1", "step 2", "step 3"]
    assert "validate" not in steps.said and not any(word.startswith("save") for word in steps.said)
    only = start(val_only=True)
    only.fit(None)
    assert only.said == ["validate"]


# --- where it is put in ----------------------------------------------------------------------------------------------


@pytest.fixture
def task_runner():
    """As `neo` has it: an actor class of Ray's whose `run` takes the configuration."""
    import ray

    class TaskRunner:
        def run(self, config):
            return "verl's"

    return ray.remote(TaskRunner)


def run_in(actor_class, config):
    return actor_class.__ray_metadata__.modified_class().run(OmegaConf.create(config))


def test_a_run_of_ours_gets_our_trainer_and_another_verls(task_runner):
    said = []

    class Ours:
        def __init__(self, config):
            said.append(config.path)

        def init(self):
            said.append("init")

        def fit(self, manager):
            said.append(manager)

    wrapped = runner.with_our_trainers(task_runner, lambda config: Ours if config.mode == "dpo" else None)
    assert run_in(wrapped, {"mode": "sync"}) == "verl's" and said == []
    assert run_in(wrapped, {"mode": "dpo", "folder": "x", "path": "${folder}/y"}) is None
    assert said == ["x/y", "init", None]


def neo(monkeypatch):
    """This process's verl as if it were a build of the branch."""
    monkeypatch.setattr("verl.__version__", "0.9.0.dev")
    monkeypatch.setattr(elsewhere, "_has_transfer_queue", lambda: False)


def test_with_a_release_nothing_is_put_in(task_runner, monkeypatch):
    from verl_aiops import plugin

    module = SimpleNamespace(TaskRunner=task_runner)
    plugin._neo(module)
    assert module.TaskRunner is task_runner
    monkeypatch.setattr("verl.__version__", "0.10.0.dev")  # main, which has verl 0.9's trainers
    plugin._neo(module)
    assert module.TaskRunner is task_runner


def test_with_the_branch_modes_of_ours_are_ours(task_runner, monkeypatch):
    from verl_aiops import plugin

    neo(monkeypatch)
    module = SimpleNamespace(TaskRunner=task_runner)
    plugin._neo(module)
    assert module.TaskRunner is not task_runner
    monkeypatch.setattr(plugin, "_neos_trainer", None)  # taken when it was put in
    assert run_in(module.TaskRunner, {"trainer": {"v1": {"trainer_mode": "sync"}}}) == "verl's"


def test_the_branchs_own_registry():
    @runner.register_trainer("made_up")
    class Trainer: ...

    try:
        assert runner.get_trainer_cls("made_up") is runner.TRAINERS["made_up"] is Trainer
    finally:
        del runner.TRAINERS["made_up"]


def test_use_v1_is_asked_for_where_verl_has_it(monkeypatch):
    assert not elsewhere.is_neo()
    neo(monkeypatch)
    assert elsewhere.is_neo()


def test_an_empty_batch_is_as_transfer_queues():
    from transfer_queue import KVBatchMeta

    theirs, ours = KVBatchMeta(), loop.NoKeys()
    assert (ours.keys, ours.tags, ours.partition_id) == (theirs.keys, theirs.tags, theirs.partition_id)
