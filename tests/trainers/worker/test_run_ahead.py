"""Steps that are launched and read later do what steps do that are waited for."""

import math
import os

import numpy as np
import pytest
import torch
from ports import free_port
from preference_parts import PAIRS, SETTINGS, _part
from tiny import make_tiny_model
from worker_harness import build_worker, run_workers

from verl_aiops.trainers.worker.run_ahead import PairTrainingWorker

STEPS = 5
# of a mini-batch in one piece, and of one in two
MICRO_PAIRS = (PAIRS, PAIRS // 2)


def step_batch(worker, model_dir, number, micro_pairs):
    order = np.random.default_rng(number).permutation(PAIRS)
    part = _part(worker, model_dir, micro_pairs=micro_pairs, order=order, backend="shared_prompt")
    return worker.as_one_mini_batch(part)


def of_the_step(metrics):
    """Metrics without what the machine adds to them, which differs between two runs of one thing."""
    return {
        name: float(np.sum(value)) for name, value in metrics.items() if name != "mfu" and not name.startswith("perf/")
    }


def waited_for(output):
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.worker.worker import _merged

    return of_the_step(_merged(tu.get(output, "metrics")))


def weights(worker):
    return {
        name: parameter.detach().cpu().numpy().copy() for name, parameter in worker.engine.module.named_parameters()
    }


def train(worker, model_dir, micro_pairs, *, ahead, spoiled=None):
    """Metrics of each step, and the weights at the end; the gradients of step ``spoiled`` are not finite."""
    from verl_aiops.trainers.worker.objective import PreferenceObjective

    assert worker.engine.can_run_ahead
    worker.set_loss_fn(PreferenceObjective(loss_settings=SETTINGS))
    results, before = [], None
    for number in range(STEPS):
        part = step_batch(worker, model_dir, number, micro_pairs)
        if number == spoiled:
            part["pair_weight"][0] = math.nan
        if not ahead:
            results.append(waited_for(worker.train_batch(part)))
            continue
        launched = worker.launch(part)
        if before is not None:
            results.append(of_the_step(worker.finish(before)))
        before = launched
    if ahead:
        last = worker.finish(before)
        assert 0 < last["perf/device_seconds"] < 60
        results.append(of_the_step(last))
    return results, weights(worker)


def assert_equal_runs(one, other):
    (metrics, at_end), (other_metrics, other_at_end) = one, other
    assert len(metrics) == len(other_metrics) == STEPS
    for step, other_step in zip(metrics, other_metrics, strict=True):
        assert step.keys() == other_step.keys() and {"loss", "grad_norm", "lr", "rewards/margins"} <= step.keys()
        np.testing.assert_equal(other_step, step)
    assert len({step["loss"] for step in metrics if not math.isnan(step["loss"])}) >= STEPS - 1
    for name, values in at_end.items():
        np.testing.assert_array_equal(other_at_end[name], values, err_msg=name)


@pytest.mark.parametrize("micro_pairs", MICRO_PAIRS)
def test_metrics_and_weights_are_the_same_to_the_last_bit(tiny_model_dir, micro_pairs):
    folder = str(tiny_model_dir)
    waited, ahead = (
        run_workers(folder, 1, _train, folder, micro_pairs, ahead, None, clip_grad=1.0)[0] for ahead in (False, True)
    )
    assert_equal_runs(waited, ahead)


def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_the_next_goes_on(tiny_model_dir):
    folder = str(tiny_model_dir)
    waited, ahead = (
        run_workers(folder, 1, _train, folder, PAIRS, ahead, 2, clip_grad=1.0)[0] for ahead in (False, True)
    )
    assert_equal_runs(waited, ahead)
    norms = [step["grad_norm"] for step in ahead[0]]
    assert [math.isfinite(norm) for norm in norms] == [number != 2 for number in range(STEPS)]
    assert all(np.isfinite(values).all() for values in ahead[1].values())


def _train(worker, model_dir, micro_pairs, ahead, spoiled):
    return train(worker, model_dir, micro_pairs, ahead=ahead, spoiled=spoiled)


@pytest.mark.parametrize(
    "change",
    [
        {"world": 2},
        {"scaler": object()},
        {"_qat_enabled": True},
        {"is_param_offload_enabled": True},
        {"is_optimizer_offload_enabled": True},
        {"optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=False)},
    ],
)
def test_some_have_to_wait(monkeypatch, change):
    from types import SimpleNamespace

    from verl_aiops.trainers.worker.engine import FSDPPreferenceEngine

    engine = {
        "scaler": None,
        "_qat_enabled": False,
        "module": torch.nn.Linear(1, 1),
        "is_param_offload_enabled": False,
        "is_optimizer_offload_enabled": False,
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True),
    }

    def can(world=1, **settings):
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
        return FSDPPreferenceEngine.can_run_ahead.fget(SimpleNamespace(**(engine | settings)))

    assert can() and not can(**change)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_is_launched_without_any_wait(tmp_path, monkeypatch):
    model_dir = str(make_tiny_model(tmp_path / "model"))
    port = free_port()
    monkeypatch.setattr(os, "environ", os.environ | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    monkeypatch.setitem(os.environ, "MASTER_PORT", str(port))
    import verl  # noqa: F401  (loads the plug-in)

    try:
        worker = build_worker(model_dir, strategy="fsdp", param_dtype="bf16", clip_grad=1.0, micro_pairs=PAIRS)
        assert isinstance(worker, PairTrainingWorker)
        metrics, at_end = train(worker, model_dir, PAIRS, ahead=True)
        assert all(math.isfinite(step["loss"]) for step in metrics)
        part = step_batch(worker, model_dir, STEPS, PAIRS)
        torch.cuda.set_sync_debug_mode("error")
        try:
            launched = worker.launch(part)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        # work that is still there when the step has been read shows that nothing waited for it
        matrix = torch.randn(8192, 8192, device="cuda")
        for _ in range(50):
            matrix = matrix @ matrix
        end = torch.cuda.Event()
        end.record()
        loss = worker.finish(launched)["loss"]
        assert not end.query()
        assert loss < metrics[0]["loss"]
        assert any((values != at_end[name]).any() for name, values in weights(worker).items())
    finally:
        torch.distributed.destroy_process_group()
