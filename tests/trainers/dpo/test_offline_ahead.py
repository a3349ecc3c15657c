"""What offline DPO sends to the workers before it has a step's result."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from verl.utils import tensordict_utils as tu

from verl_aiops.trainers.dpo import ahead
from verl_aiops.trainers.dpo.offline import OfflineDPOTrainer
from verl_aiops.trainers.dpo.step_batches import ExampleBatches
from verl_aiops.trainers.worker import worker as worker_module
from verl_aiops.trainers.worker.worker import PreferenceWorker

STEPS = 7


@pytest.fixture
def events(monkeypatch):
    """Runs the updates of a whole training; gives back what the workers were sent and asked for, in order.

    The workers give a step's metrics with its result, or if they run ahead with the next one's.
    """

    def run(*, sync_steps=0, late=False, **settings):
        happened, launched = [], []

        def get(sent):
            happened.append(("result", sent))
            return [{sent - late: {"loss": sent - late}}]

        def update_pairs(parts):
            happened.append(("sent", parts))
            launched.append(parts)
            return parts

        def finish_updates():
            happened.append(("finish", launched[-1]))
            return [{launched[-1]: {"loss": launched[-1]}}]

        monkeypatch.setattr(ahead.ray, "get", get)

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
    happened = events(late=True)
    assert [event for event in happened if event[0] == "finish"] == [("finish", STEPS)]
    results = {step: at for at, (what, step) in reversed(list(enumerate(happened))) if what == "result"}
    sent = {step: at for at, (what, step) in enumerate(happened) if what == "sent"}
    # when a step is asked for, the one after it is at the workers
    assert all(sent[step + 1] < results[step] for step in range(1, STEPS))


@pytest.mark.parametrize("settings", BETWEEN)
def test_workers_that_run_ahead_finish_what_comes_before_something_else(events, settings):
    happened = events(late=True, **settings)
    assert [step for what, step in happened if what == "finish"] == [3, 6, STEPS]
    for step in (3, 6):
        assert happened.index(("finish", step)) < happened.index(("sent", step + 1))


class Clock:
    """A machine on which time passes only where it is said."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clocked_worker(monkeypatch):
    """A worker whose steps take so many seconds by `clock`, in one mini-batch or in several."""
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    worker = PreferenceWorker.__new__(PreferenceWorker)
    worker._step_ended, worker._launched = None, {}

    def train(data):
        clock.now += tu.get_non_tensor_data(data, "takes", None)
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": {"loss": 0.5}})

    worker.actor = SimpleNamespace(
        engine=SimpleNamespace(get_data_parallel_size=lambda: 1, can_run_ahead=False),
        as_one_mini_batch=lambda data: data,
        train_batch=train,
    )
    monkeypatch.setattr(PreferenceWorker, "update_actor", lambda self, data: train(data))

    def step(number, takes, *, follows=True, mini_batches=1):
        settings = {"step": number, "follows": follows, "takes": takes, "mini_batch_size": 2 // mini_batches}
        data = tu.get_tensordict(tensor_dict={"row": torch.zeros(2)}, non_tensor_dict=settings)
        return worker.update_pairs(data)[number]

    return step, clock


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_a_worker_times_its_own_steps_from_one_end_to_the_next(clocked_worker, mini_batches):
    step, clock = clocked_worker
    assert step(1, 3.0, mini_batches=mini_batches) == {"loss": 0.5, "perf/device_seconds": 3.0}
    clock.now += 0.25  # its next batch was not there yet
    assert step(2, 2.0, mini_batches=mini_batches)["perf/device_seconds"] == 2.25


def test_what_a_worker_does_between_two_steps_is_no_part_of_the_next(clocked_worker):
    step, clock = clocked_worker
    step(3, 3.0)
    clock.now += 60.0  # a checkpoint
    assert step(4, 2.0, follows=False)["perf/device_seconds"] == 2.0


def test_the_steps_that_follow_at_once_say_so():
    trainer = OfflineDPOTrainer.__new__(OfflineDPOTrainer)
    trainer.dpo, trainer.ranks = SimpleNamespace(reference_sync_steps=0), 1
    trainer.total_training_steps = 6
    trainer.config = OmegaConf.create(
        {"trainer": {"save_freq": 3, "test_freq": -1}, "global_profiler": {"steps": None}}
    )
    trainer._step_batch = lambda step: (tu.get_tensordict({"row": torch.zeros(1)}), 1)
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead.ray, "put", parts.append)
        for number in range(1, 7):
            trainer._step_parts(number)
    assert [tu.get_non_tensor_data(part, "step", None) for part in parts] == [1, 2, 3, 4, 5, 6]
    assert [tu.get_non_tensor_data(part, "follows", None) for part in parts] == [False, True, True, False, True, True]


def logged(metrics, timing_raw):
    trainer = OfflineDPOTrainer.__new__(OfflineDPOTrainer)
    trainer._tokens = 1200
    trainer.config = OmegaConf.create({"data": {"train_batch_size": 6}})
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 2)
    trainer.train_dataset = SimpleNamespace(report=SimpleNamespace(dropped={}))
    trainer.reference = SimpleNamespace(metrics={})
    trainer._compute_metrics(None, metrics, timing_raw, global_steps=2, epoch=0)
    return metrics


def test_logged_times_and_rates_are_the_workers_where_it_was_sent_steps_ahead():
    """The driver asks for a step that was done long ago, and waits for none or for two."""
    values = logged({"perf/device_seconds": 3.0}, {"step": 0.0006, "update_actor": 0.0005, "save_checkpoint": 7.0})
    assert values["timing_s/step"] == values["timing_s/update_actor"] == values["perf/time_per_step"] == 3.0
    assert values["perf/tokens_per_s"] == 400 and values["perf/pairs_per_s"] == 2
    assert values["perf/throughput"] == 200  # of each GPU
    assert values["timing_s/save_checkpoint"] == 7.0


def test_where_the_driver_waits_for_each_step_its_own_clock_is_logged():
    values = logged({}, {"step": 4.0, "update_actor": 3.0})
    assert values["timing_s/step"] == 4.0 and values["timing_s/update_actor"] == 3.0
    assert values["perf/tokens_per_s"] == 400 and values["perf/throughput"] == 150


def test_the_batches_of_steps_are_the_trainers_own():
    """What sends steps ahead declares the method; the class that has it stands before it."""
    assert OfflineDPOTrainer._step_batch is ExampleBatches._step_batch
