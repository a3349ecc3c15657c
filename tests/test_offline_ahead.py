"""What offline DPO sends to the workers before it has a step's result."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from verl_aiops.trainers import offline
from verl_aiops.trainers.offline import OfflineDPOTrainer

STEPS = 7


@pytest.fixture
def events(monkeypatch):
    """Runs the updates of a whole training; gives back what the workers were sent and asked for, in order."""

    def run(*, sync_steps=0, **settings):
        happened = []
        monkeypatch.setattr(offline.ray, "get", lambda sent: happened.append(("result", sent)) or [{"loss": sent}])

        def update_pairs(parts):
            happened.append(("sent", parts))
            return parts

        trainer = OfflineDPOTrainer.__new__(OfflineDPOTrainer)
        trainer.dpo = SimpleNamespace(uses_reference=True, reference="cached", reference_sync_steps=sync_steps)
        trainer.ranks, trainer.total_training_steps = 1, STEPS
        trainer.actor_rollout_wg = SimpleNamespace(world_size=1, update_pairs=update_pairs)
        trainer.config = OmegaConf.create(
            {
                "trainer": {"save_freq": -1, "test_freq": -1} | settings.pop("trainer", {}),
                "global_profiler": {"steps": None} | settings,
            }
        )
        trainer._ahead, trainer._prepared, trainer._sent = ThreadPoolExecutor(1), {}, {}
        trainer._step_parts = lambda step: (step, 100 * step)
        for step in range(1, STEPS + 1):
            trainer.global_steps = step
            assert trainer._update({}) == {"loss": step} and trainer._tokens == 100 * step
        assert not trainer._sent and not trainer._prepared
        return happened

    return run


def waits(happened):
    """The steps whose result was there before the next step was sent."""
    sent = {step: at for at, (what, step) in enumerate(happened) if what == "sent"}
    results = {step: at for at, (what, step) in enumerate(happened) if what == "result"}
    assert sorted(sent) == sorted(results) == list(range(1, STEPS + 1)) and len(happened) == 2 * STEPS
    assert list(sent) == sorted(sent)
    return [step for step in range(1, STEPS) if results[step] < sent[step + 1]]


def test_the_next_step_is_sent_before_the_result_is_there(events):
    assert waits(events()) == []


@pytest.mark.parametrize(
    "settings",
    [{"trainer": {"save_freq": 3}}, {"trainer": {"test_freq": 3}}, {"sync_steps": 3}],
)
def test_a_step_does_not_begin_before_a_save_a_validation_or_a_new_reference(events, settings):
    assert waits(events(**settings)) == [3, 6]


def test_profiled_runs_send_nothing_ahead(events):
    assert waits(events(steps=[2])) == list(range(1, STEPS))
