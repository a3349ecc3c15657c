"""The doctor's look at what of verl is touched."""

import inspect

import pytest

from verl_aiops.doctor import FAULT, OK
from verl_aiops.doctor.touch_points import check_touch_points
from verl_aiops.verl_patches.overrides import OVERRIDES
from verl_aiops.verl_patches.private import PRIVATE

pytest.importorskip("verl")


def test_an_installation_as_it_should_be_is_one_line():
    (found,) = check_touch_points()
    assert found.level == OK and found.label.startswith("verl 0.9")
    assert "verl" in found.value and "<0.10" in found.value and ">=0.9.1" in found.value
    number = int(found.value.split()[1])
    theirs = [entry for entry in OVERRIDES if entry.theirs.startswith("verl.")]
    private = [entry for entry in PRIVATE if entry.owner.startswith("verl.")]
    assert number > 90 + len(theirs) + len(private)


@pytest.fixture
def faults():
    """{touch point: what is said of it}"""

    def look():
        found = list(check_touch_points())
        assert all(f.level == FAULT and "verl<0.10" in f.advice and "verl_versions" in f.advice for f in found)
        return {f.label: f.value for f in found}

    return look


def test_each_kind_of_touch_point_that_is_otherwise_is_named(monkeypatch, faults):
    from verl.single_controller import ray as single_controller
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.workers.engine import utils
    from verl.workers.engine.fsdp import transformer_impl

    def step(self, metrics): ...

    monkeypatch.delattr(utils, "detach_tree")
    monkeypatch.delattr(single_controller, "create_colocated_worker_cls")
    monkeypatch.setattr(PPOTrainer, "step", step)
    monkeypatch.setattr(transformer_impl, "prepare_micro_batches", lambda data, plan: None)
    monkeypatch.delattr(PPOTrainer, "_dump_generations")
    found = faults()
    trainer = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
    assert found["verl.workers.engine.utils:detach_tree"].endswith(
        "cannot import name 'detach_tree' from 'verl.workers.engine.utils'"
    )
    assert "create_colocated_worker_cls" in found["verl.single_controller.ray:create_colocated_worker_cls"]
    assert found[f"{trainer}.step"].startswith("TypeError: PPOTrainer.step takes (self, metrics), not ")
    assert "also asks for plan" in found["verl.workers.engine.fsdp.transformer_impl:prepare_micro_batches"] or (
        "takes no" in found["verl.workers.engine.fsdp.transformer_impl:prepare_micro_batches"]
    )
    assert found[f"{trainer}._dump_generations"].endswith("has no _dump_generations")
    sync = "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync"
    assert found[sync] == f"{sync} has no _dump_generations"
    assert len(found) == 6


def test_it_calls_nothing_of_verls(monkeypatch):
    """Cheap: it imports and compares."""
    from verl.trainer.ppo.v1 import trainer_base

    def called(*args, **kwargs):
        raise AssertionError

    called.__signature__ = inspect.signature(trainer_base.get_trainer_cls)
    monkeypatch.setattr(trainer_base, "get_trainer_cls", called)
    (found,) = check_touch_points()
    assert found.level == OK
