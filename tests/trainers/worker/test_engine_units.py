"""How the preference engine builds its module: one FSDP unit or one a layer, compiled or not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worker_harness import run_workers

from verl_aiops.trainers.worker import module
from verl_aiops.trainers.worker.module import FastModule, decoder_layers


@pytest.fixture(scope="module")
def small_model():
    return torch.nn.Linear(2, 2)


def wrap_policy(monkeypatch, model, *, world=1, lora=False, policy=None, **config):
    """`wrap_policy` after the engine has looked at it."""
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    settings = {"strategy": "fsdp", "param_offload": False, "forward_only": False}
    settings |= {"wrap_policy": {"min_num_params": 0} if policy is None else policy} | config
    holder = SimpleNamespace(engine_config=SimpleNamespace(**settings), _is_lora=lora)
    FastModule._one_unit_on_one_gpu(holder, model)
    return dict(holder.engine_config.wrap_policy)


def test_one_gpu_and_a_small_model_make_one_unit(monkeypatch, small_model):
    assert wrap_policy(monkeypatch, small_model) == {"min_num_params": 0, "disable": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"world": 2},
        {"lora": True},
        {"strategy": "fsdp2"},
        {"param_offload": True},
        {"forward_only": True},
        {"policy": {"disable": False}},
    ],
)
def test_otherwise_the_policy_stands(monkeypatch, small_model, settings):
    assert wrap_policy(monkeypatch, small_model, **settings).get("disable", False) is False


def test_large_models_keep_a_unit_a_layer(monkeypatch, small_model):
    monkeypatch.setattr(module, "MOST_PARAMETERS_OF_ONE_UNIT", 6)
    assert "disable" not in wrap_policy(monkeypatch, small_model)


def test_decoder_layers_are_found_by_name(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert decoder_layers(model) == list(model.model.layers)


def _two_lengths(worker, model_dir):
    """Loss, gradients and metrics with micro-batches of two lengths, and how many graphs were compiled for them."""
    import torch._dynamo
    from preference_parts import _loss_and_gradients

    results = [_loss_and_gradients(worker, model_dir, micro_pairs=n, backend="shared_prompt") for n in (8, 2)]
    return results, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_layers_change_nothing_and_are_compiled_once(tiny_model_dir):
    folder = str(tiny_model_dir)
    ((plain, none),) = run_workers(folder, 1, _two_lengths, folder)
    ((compiled, graphs),) = run_workers(folder, 1, _two_lengths, folder, compile=True)
    assert none == 0
    # a layer's pieces before and after attention; not one for each length or layer
    assert 0 < graphs <= 8
    for (loss, gradients, _), (compiled_loss, compiled_gradients, _) in zip(plain, compiled, strict=True):
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(compiled_gradients[name], gradient, atol=1e-4 * np.abs(gradient).max())
