"""What a preference run's checkpoint remembers of its reference, and which checkpoint is resumed."""

import json
import os

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers.dpo.checkpoints import check_same_reference, resume_folder, write_reference_note

NOTE = {"weights": "aa" * 32, "reference": "cached", "sync_steps": 0}


@pytest.fixture
def folder(tmp_path):
    path = str(tmp_path / "run" / "global_step_8")
    write_reference_note(path, NOTE)
    return path


def test_the_same_reference_goes_on(folder):
    check_same_reference(folder, dict(NOTE))


@pytest.mark.parametrize(
    "key, now",
    [("weights", "bb" * 32), ("weights", None), ("reference", "live"), ("sync_steps", 16)],
)
def test_another_reference_is_refused_and_the_difference_named(folder, key, now):
    with pytest.raises(ValueError) as error:
        check_same_reference(folder, {**NOTE, key: now})
    message = str(error.value)
    assert f"{key}: {NOTE[key]!r} then, {now!r} now" in message
    assert "trainer.resume_mode=disable" in message and folder in message
    assert all(other not in message for other in NOTE if other != key and f"{other}:" in message)


def test_a_note_that_lacks_a_setting_is_another_reference(folder):
    with open(os.path.join(folder, "reference.json"), "w") as file:
        json.dump({"weights": NOTE["weights"], "reference": "cached"}, file)
    with pytest.raises(ValueError, match="sync_steps: None then, 0 now"):
        check_same_reference(folder, NOTE)


def test_a_run_without_a_reference_goes_on_as_one(tmp_path):
    note = {"weights": None, "reference": None, "sync_steps": 0}
    write_reference_note(str(tmp_path), note)
    check_same_reference(str(tmp_path), note)
    with pytest.raises(ValueError, match="weights: None then"):
        check_same_reference(str(tmp_path), NOTE)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    actor = tmp_path / "global_step_3" / "actor"
    actor.mkdir(parents=True)
    with pytest.raises(ValueError, match="is no checkpoint of a preference run.*trainer.resume_mode=disable"):
        check_same_reference(str(actor.parent), NOTE)


def _trainer(tmp_path, **settings):
    defaults = {"resume_mode": "auto", "resume_from_path": None, "default_local_dir": str(tmp_path / "run")}
    return OmegaConf.create({**defaults, **settings})


def _saved(tmp_path, *steps, latest):
    for step in steps:
        (tmp_path / "run" / f"global_step_{step}").mkdir(parents=True)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text(str(latest))


def test_auto_resumes_from_the_last_complete_checkpoint(tmp_path):
    _saved(tmp_path, 4, 8, 12, latest=8)  # 12 was cut short: its number was never written
    assert resume_folder(_trainer(tmp_path)) == str(tmp_path / "run" / "global_step_8")


def test_a_relative_folder_is_taken_from_the_working_directory(tmp_path, monkeypatch):
    _saved(tmp_path, 4, latest=4)
    monkeypatch.chdir(tmp_path)
    assert resume_folder(_trainer(tmp_path, default_local_dir="run")) == str(tmp_path / "run" / "global_step_4")
    named = _trainer(tmp_path, resume_mode="resume_path", resume_from_path="run/global_step_4")
    assert resume_folder(named) == str(tmp_path / "run" / "global_step_4")


def test_nothing_to_resume_from(tmp_path):
    assert resume_folder(_trainer(tmp_path)) is None
    _saved(tmp_path, 4, latest=4)
    assert resume_folder(_trainer(tmp_path, resume_mode="disable")) is None


@pytest.mark.parametrize(
    "settings",
    [{}, {"default_local_dir": "run"}, {"resume_mode": "disable"}]
    + [{"resume_mode": "resume_path", "resume_from_path": "run/global_step_4"}],
)
def test_it_is_the_folder_that_verl_itself_loads(tmp_path, monkeypatch, settings):
    """The reference is checked in this folder before verl loads from its own idea of it."""
    from types import SimpleNamespace

    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    _saved(tmp_path, 4, 8, latest=8)
    monkeypatch.chdir(tmp_path)
    trainer = _trainer(tmp_path, del_local_ckpt_after_load=False, **settings)
    loaded = []
    workers = SimpleNamespace(load_checkpoint=lambda local_path, **_: loaded.append(os.path.dirname(local_path)))
    fake = SimpleNamespace(
        config=OmegaConf.create({"trainer": trainer}),
        actor_rollout_wg=workers,
        use_critic=False,
        trainer_mode="sync",
        train_dataloader=None,
    )
    PPOTrainer._load_checkpoint(fake)
    assert loaded == [folder for folder in [resume_folder(trainer)] if folder]
