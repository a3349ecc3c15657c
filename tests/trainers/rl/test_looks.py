"""How soon a trainer sees that a step's answers are there."""

import pytest
from prepared import composed

from verl_aiops.trainers.dpo.online import OnlineDPOTrainer
from verl_aiops.trainers.preflight.prompts import check_looks
from verl_aiops.trainers.rl.scored_trainer import ScoredTrainer

SAMPLER = "from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer\n\nclass Mine(ReplayBuffer):\n    pass\n"
KWARGS = "+trainer.v1.sampler.sampler_kwargs"


def buffer_of(trainer, *overrides):
    """The replay buffer that verl's constructor of such a trainer makes, and the configuration."""
    config = composed(*overrides)
    made = object.__new__(trainer)
    made.config, made.trainer_mode = config, "sync"
    return made._build_replay_buffer(), config


@pytest.mark.parametrize("trainer", [ScoredTrainer, OnlineDPOTrainer])
@pytest.mark.parametrize("settings, every", [((), 0.1), ((f"{KWARGS}.poll_interval=0.5",), 0.5)])
def test_a_step_waits_for_its_answers_no_longer_than_a_look(monkeypatch, trainer, settings, every):
    """verl's own loop of looks, over a queue whose one prompt is answered while it sleeps for the second time."""
    from verl.trainer.ppo.v1 import replay_buffer

    slept = []
    monkeypatch.setattr(replay_buffer.time, "sleep", slept.append)
    monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **_: None)

    def kv_list():
        status = "finished" if len(slept) == 2 else "running"
        rows = {"a": {"is_prompt": True, "status": status, "global_steps": 1}, "a_0_0": {}}
        return {"train": rows, "val": rows}

    monkeypatch.setattr(replay_buffer.tq, "kv_list", kv_list)
    buffer, _ = buffer_of(trainer, *settings)
    for partition in ("train", "val"):
        slept.clear()
        batch, _ = buffer.sample(global_steps=1, partition_id=partition, batch_size=1)
        assert batch.keys == ["a_0_0"] and slept == [every, every]


def test_a_sampler_of_the_users_own_is_left_alone(tmp_path):
    (tmp_path / "mine.py").write_text(SAMPLER)
    own = [f"trainer.v1.sampler.custom_sampler.{key}" for key in ("path", "name")]
    mine, config = buffer_of(ScoredTrainer, f"{own[0]}={tmp_path / 'mine.py'}", f"{own[1]}=Mine", f"{KWARGS}.of_mine=1")
    assert type(mine).__name__ == "Mine" and mine.poll_interval == 2.0 and mine.sampler_kwargs.of_mine == 1
    check_looks(config, None)
