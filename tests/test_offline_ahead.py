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
    """Runs the updates of a whole training; gives back what the workers were sent and asked for, in order.

    The workers give a step's metrics with its result, or if they run ahead with the next one's.
    """

    def run(*, sync_steps=0, ahead=False, **settings):
        happened, launched = [], []

        def get(sent):
            happened.append(("result", sent))
            return [{sent - ahead: {"loss": sent - ahead}}]

        def update_pairs(parts):
            happened.append(("sent", parts))
            launched.append(parts)
            return parts

        def finish_updates():
            happened.append(("finish", launched[-1]))
            return [{launched[-1]: {"loss": launched[-1]}}]

        monkeypatch.setattr(offline.ray, "get", get)

        trainer = OfflineDPOTrainer.__new__(OfflineDPOTrainer)
        trainer.dpo = SimpleNamespace(uses_reference=True, reference="cached", reference_sync_steps=sync_steps)
        trainer.ranks, trainer.total_training_steps = 1, STEPS
        trainer.actor_rollout_wg = SimpleNamespace(
            world_size=1, update_pairs=update_pairs, finish_updates=finish_updates
        )
        trainer.config = OmegaConf.create(
            {
                "trainer": {"save_freq": -1, "test_freq": -1} | settings.pop("trainer", {}),
                "global_profiler": {"steps": None} | settings,
            }
        )
        trainer._ahead, trainer._prepared, trainer._sent, trainer._results = ThreadPoolExecutor(1), {}, {}, {}
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
    assert sorted(sent) == sorted(results) == list(range(1, STEPS + 1))
    assert list(sent) == sorted(sent) and len(happened) == len(set(happened)) == 2 * STEPS
    return [step for step in range(1, STEPS) if results[step] < sent[step + 1]]


def test_the_next_two_steps_are_sent_before_the_result_is_there(events):
    happened = events()
    assert waits(happened) == []
    assert happened[:4] == [("sent", 1), ("sent", 2), ("sent", 3), ("result", 1)]


BETWEEN = [{"trainer": {"save_freq": 3}}, {"trainer": {"test_freq": 3}}, {"sync_steps": 3}]


@pytest.mark.parametrize("settings", BETWEEN)
def test_a_step_does_not_begin_before_a_save_a_validation_or_a_new_reference(events, settings):
    assert waits(events(**settings)) == [3, 6]


def test_profiled_runs_send_nothing_ahead(events):
    assert waits(events(steps=[2])) == list(range(1, STEPS))


def test_workers_that_run_ahead_are_asked_for_the_step_after_and_finish_the_last(events):
    happened = events(ahead=True)
    assert [event for event in happened if event[0] == "finish"] == [("finish", STEPS)]
    results = {step: at for at, (what, step) in reversed(list(enumerate(happened))) if what == "result"}
    sent = {step: at for at, (what, step) in enumerate(happened) if what == "sent"}
    # when a step is asked for, the one after it is at the workers
    assert all(sent[step + 1] < results[step] for step in range(1, STEPS))


@pytest.mark.parametrize("settings", BETWEEN)
def test_workers_that_run_ahead_finish_what_comes_before_something_else(events, settings):
    happened = events(ahead=True, **settings)
    assert [step for what, step in happened if what == "finish"] == [3, 6, STEPS]
    for step in (3, 6):
        assert happened.index(("finish", step)) < happened.index(("sent", step + 1))
