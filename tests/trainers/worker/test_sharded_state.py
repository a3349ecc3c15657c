"""A checkpoint of one CPU worker is gone on from by verl's engine and by ours, whichever of them has written it."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_parts import actor_config, batch_of, engine_of, rows_of, train
from worker_harness import run_ranks

ROWS = rows_of(prompts=2)
MODELS = ("language_model", "shared_prompt_language_model")


def _gone_on_from(model_dir, folder):
    """What the second step changes, by who has taken the first and who takes it; the first step's own run goes on."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from verl.workers.utils.losses import ppo_loss

    def step(worker, seed):
        data = batch_of(ROWS, seed=seed, micro_batch_size_per_gpu=len(ROWS))
        return train(worker, data, functools.partial(ppo_loss, actor_config()), mini_batch_size=len(ROWS), epochs=1)[0]

    found = {}
    for writer in MODELS:
        worker = engine_of(model_dir, writer, optimizer="AdamW")
        assert isinstance(worker.engine.module, FSDPModule) == (writer == MODELS[0])
        step(worker, 1)
        worker.engine.save_checkpoint(f"{folder}/{writer}", global_step=1)
        # what is saved is changed for the checkpoint alone
        assert isinstance(next(iter(worker.engine.module.state_dict().values())), DTensor) == (writer == MODELS[0])
        found[writer, None] = step(worker, 2)
    for writer, reader in itertools.product(MODELS, MODELS):
        worker = engine_of(model_dir, reader, optimizer="AdamW")
        worker.engine.load_checkpoint(f"{folder}/{writer}")
        found[writer, reader] = step(worker, 2)
    return found


@pytest.mark.slow
def test_either_engine_goes_on_from_a_checkpoint_of_either(tiny_model_dir, tmp_path):
    (found,) = run_ranks(1, _gone_on_from, tiny_model_dir, str(tmp_path))
    for (writer, reader), changes in found.items():
        for name, held in found[MODELS[0], None].items():
            # without the moments of the first step the second would be as long as the rate in all places
            np.testing.assert_allclose(changes[name], held, rtol=0, atol=2e-4, err_msg=f"{writer}, {reader}: {name}")
    files = [sorted(path.name for path in (Path(tmp_path) / model).rglob("*")) for model in MODELS]
    assert files[0] == files[1]


def test_states_are_plain_outside_of_a_checkpoint(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    from verl_aiops.trainers.worker.sharded_state import as_one_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        weights, moments = module.state_dict(), optimizer.state_dict()
        with as_one_shard(module, optimizer, mesh):
            given, of_optimizer = module.state_dict(), optimizer.state_dict()
            # as under FSDP2: what is trained, and neither buffers nor the count of steps
            assert {name for name, value in given.items() if isinstance(value, DTensor)} == {
                name for name, _ in module.named_parameters()
            }
            of_first = of_optimizer["state"][0]
            assert [isinstance(of_first[name], DTensor) for name in ("exp_avg", "exp_avg_sq", "step")] == [1, 1, 0]
            module.load_state_dict(given)
            optimizer.load_state_dict(of_optimizer)
        after, moments_after = module.state_dict(), optimizer.state_dict()
        for name, value in after.items():
            assert not isinstance(value, DTensor) and torch.equal(value, weights[name])
        for number, of in moments_after["state"].items():
            for name, value in of.items():
                assert not isinstance(value, DTensor) and torch.equal(value, moments["state"][number][name])
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match="as it came"), as_one_shard(module, None, mesh):
        raise ValueError("as it came")
    assert not isinstance(module.state_dict()["0.weight"], DTensor)
