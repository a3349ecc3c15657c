"""Refused before Ray, by name: workers without accelerators, engines that are not there, trackers without a key."""

import pytest
from omegaconf import OmegaConf
from prepared import composed

from verl_aiops import trackers
from verl_aiops.trackers import tracker_faults
from verl_aiops.trainers.preflight import basics, machine
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.defaults import DEFAULTS, apply_defaults

pytestmark = pytest.mark.usefixtures("platform")

WORKERS = "trainer.n_gpus_per_node"
ROLLOUT = "actor_rollout_ref.rollout.name"
REWARD = "reward.reward_model.rollout.name"


def run(kind, *overrides):
    return composed(*overrides), Run(kind, {override.split("=")[0] for override in overrides})


def test_several_workers_without_an_accelerator_are_asked_for_by_name(platform):
    (fault,) = machine.check_accelerators(*run("dpo", f"{WORKERS}=8"))
    assert fault.startswith(f"{WORKERS}=8, but no accelerator was found") and "trainer.device=cpu" in fault
    assert machine.check_accelerators(*run("dpo", f"{WORKERS}=8", "trainer.device=cpu")) == []
    assert machine.check_accelerators(*run("dpo", f"{WORKERS}=1")) == []
    assert machine.check_accelerators(*run("dpo")) == []  # verl's own 8, which become one
    platform("cuda")
    assert machine.check_accelerators(*run("dpo", f"{WORKERS}=8")) == []


@pytest.mark.parametrize("kind", ["online_dpo", "triage", "rows"])
@pytest.mark.parametrize("name", ["sglang", "vllm"])
def test_an_engine_needs_a_gpu_and_its_package(platform, monkeypatch, kind, name):
    (fault,) = machine.check_engines(*run(kind, f"{ROLLOUT}={name}"))
    assert fault == f"{ROLLOUT}={name} needs a GPU, and no accelerator was found. {ROLLOUT}=hf works on a CPU."
    platform("cuda")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda package: None)
    (fault,) = machine.check_engines(*run(kind, f"{ROLLOUT}={name}"))
    assert f'{ROLLOUT}={name} is not installed here: pip install "verl-aiops[{name}]"' in fault
    assert machine.check_engines(*run(kind, f"{ROLLOUT}=hf")) == []
    assert machine.check_engines(*run("dpo", f"{ROLLOUT}={name}")) == []  # which generates nothing
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda package: object())
    assert machine.check_engines(*run(kind, f"{ROLLOUT}={name}")) == []


def test_a_reward_models_engine_is_one_too():
    overrides = [f"{ROLLOUT}=hf", f"{REWARD}=vllm", "reward.reward_model.enable=True"]
    (fault,) = machine.check_engines(*run("triage", *overrides))
    assert fault.startswith(f"{REWARD}=vllm needs a GPU")
    assert machine.check_engines(*run("triage", *overrides[:2])) == []


def test_of_a_cluster_nothing_is_known_here(monkeypatch):
    monkeypatch.setattr(machine, "existing_ray_address", lambda: "10.0.0.1:6379")
    assert machine.check_engines(*run("triage", f"{ROLLOUT}=vllm")) == []
    assert machine.check_trackers(*run("dpo", "trainer.logger=[clearml]")) == []


def test_the_checks_stand_in_the_lists():
    assert [check.look for check in basics.FIRST] == [machine.check_accelerators]
    assert {machine.check_engines, machine.check_trackers} <= {check.look for check in basics.MACHINE}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without keys, as the working directory too; every package is there."""
    for name in ("API_KEY", "MODE", "BASE_URL", "CONFIG_DIR", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: object())
    return tmp_path


def test_wandb_without_a_key_is_refused(home):
    (fault,) = tracker_faults(["console", "wandb"])
    assert "there is no key" in fault and "WANDB_MODE=offline" in fault
    assert machine.check_trackers(*run("dpo", "trainer.logger=[console,wandb]")) == [fault]
    assert machine.check_trackers(*run("dpo", "trainer.logger=wandb")) == [fault]
    assert tracker_faults(["console", "file"]) == []


@pytest.mark.parametrize(
    "name, value", [("API_KEY", "k"), ("MODE", "offline"), ("MODE", "dryrun"), ("IDENTITY_TOKEN_FILE", "/f")]
)
def test_wandb_by_the_environment(home, monkeypatch, name, value):
    monkeypatch.setenv(f"WANDB_{name}", value)
    assert tracker_faults(["wandb"]) == []


def test_wandb_by_netrc_and_settings(home, monkeypatch):
    netrc = home / ".netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password k\n")
    netrc.chmod(0o600)
    assert tracker_faults(["wandb"]) == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert len(tracker_faults(["wandb"])) == 1
    netrc.write_text("machine wandb.example.org\n  login user\n  password k\n")
    assert tracker_faults(["wandb"]) == []
    netrc.write_text("no such thing\n")
    assert len(tracker_faults(["wandb"])) == 1
    (home / "wandb").mkdir()
    (home / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert tracker_faults(["wandb"]) == []


def test_wandb_by_whichever_file_it_would_read_itself(home, monkeypatch):
    key = "machine api.wandb.ai\n  login user\n  password k\n"
    (home / "_netrc").write_text(key)
    assert tracker_faults(["wandb"]) == []
    # a file that NETRC names stands in place of both
    monkeypatch.setenv("NETRC", str(home / "none"))
    assert len(tracker_faults(["wandb"])) == 1
    monkeypatch.delenv("NETRC")
    (home / "wandb").mkdir()
    (home / ".config" / "wandb").mkdir(parents=True)
    here, there = home / "wandb" / "settings", home / ".config" / "wandb" / "settings"
    here.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert len(tracker_faults(["wandb"])) == 1, "the key is for another host"
    (home / "_netrc").write_text(key.replace("api.wandb.ai", "wandb.example.org"))
    assert tracker_faults(["wandb"]) == []
    (home / "_netrc").unlink()
    here.write_text("[default]\nmode = offline\n")
    there.write_text("[default]\nmode = online\n")
    assert tracker_faults(["wandb"]) == [], "the working directory's goes before"
    here.write_bytes(b"\xff\xfe\x00")
    assert len(tracker_faults(["wandb"])) == 1


def test_a_tracker_that_is_not_installed_is_named(home, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    assert tracker_faults(["wandb"]) == [
        "trainer.logger has wandb, which is not installed here: pip install wandb, or leave it away."
    ]


def filled_in(*overrides):
    config = composed("algorithm.adv_estimator=dpo", "data.train_batch_size=8", *overrides)
    apply_defaults(config, {override.split("=")[0].lstrip("+") for override in overrides}, DEFAULTS)
    return config


def test_what_a_first_run_needs_is_filled_in():
    trainer = filled_in("data.val_files=v.parquet").trainer
    assert (trainer.save_freq, trainer.test_freq, trainer.max_actor_ckpt_to_keep) == (50, 50, 2)
    assert OmegaConf.to_object(trainer.logger) == ["console", "file", "tensorboard"]
    trainer = filled_in("data.val_files=null", "trainer.save_freq=9").trainer
    assert (trainer.save_freq, trainer.test_freq, trainer.max_actor_ckpt_to_keep) == (9, -1, None)
    trainer = filled_in("data.val_files=v.parquet", "trainer.test_freq=-1", "trainer.save_freq=-1").trainer
    assert (trainer.save_freq, trainer.test_freq) == (-1, -1)


@pytest.mark.parametrize(
    "overrides, lr",
    [
        ([], 1e-6),
        (["actor_rollout_ref.model.lora_rank=8"], 1e-5),
        (["actor_rollout_ref.model.lora_adapter_path=a"], 1e-5),
        (["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=1e-6"], 1e-6),
        (["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.optim.lr=3e-4"], 3e-4),
    ],
)
def test_lora_gets_a_rate_of_its_own(overrides, lr):
    assert filled_in("data.val_files=null", *overrides).actor_rollout_ref.actor.optim.lr == lr
