"""Layers of fewer kernels compute what transformers' layers compute, and layers of another kind stay as they are."""

import copy
import sys

import pytest
import torch
from tiny_lms import VOCABULARY, tiny_lm
from torch.utils._python_dispatch import TorchDispatchMode

from verl_aiops.trainers.fused_layers import _Rotary, fuse_layers, layer_kernels
from verl_aiops.trainers.logprobs.support import SHARED_PROMPT_MODELS

ROTARY = "apply_rotary_pos_emb"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def rotary_embeddings_as_they_were():
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and isinstance(vars(module).get(ROTARY), _Rotary):
            setattr(module, ROTARY, vars(module)[ROTARY].unfused)


class Launches(TorchDispatchMode):
    """Counts the operators that are no mere view."""

    VIEWS = ("view", "transpose", "unsqueeze", "expand", "aten.t.", "slice.", "detach", "alias", "split", "as_strided")

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not any(word in str(function) for word in self.VIEWS)
        return function(*args, **(kwargs or {}))


def run(model, device="cpu", counter=None):
    """Logits and gradients of a function that treats each logit in its own way."""
    model.zero_grad()
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1)).to(device)
    with counter or torch.enable_grad():
        logits = model(input_ids=tokens, use_cache=False).logits
        (logits * torch.linspace(-1, 1, logits.numel(), device=device).view_as(logits)).sum().backward()
    return logits.detach().float(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def spread_weights(model):
    """Weights of norms are ones in a new model."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", SHARED_PROMPT_MODELS)
def test_logits_and_gradients_are_the_same(kind):
    model = spread_weights(tiny_lm(kind))
    fused = copy.deepcopy(model)
    expected, gradients = run(model)
    done = fuse_layers(fused)
    # Starcoder2 has LayerNorms; GLM-4 rotates pairs of neighbours
    norms = [name for name in done if name.endswith("RMSNorm")]
    assert len(norms) == (kind != "starcoder2")
    assert [name for name in done if name not in norms] == ([] if kind == "glm4" else [f"modeling_{kind}.{ROTARY}"])
    logits, fused_gradients = run(fused)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_every_norm_of_a_model_is_fused_and_its_rotary_embedding_once():
    model = tiny_lm("qwen3")
    # two in each of the two layers, one at the end; each layer norms queries and keys too
    assert fuse_layers(model) == {"Qwen3RMSNorm": 9, f"modeling_qwen3.{ROTARY}": 1}
    rotary = sys.modules["transformers.models.qwen3.modeling_qwen3"].apply_rotary_pos_emb
    assert fuse_layers(tiny_lm("qwen3")) == {"Qwen3RMSNorm": 9, f"modeling_qwen3.{ROTARY}": 1}
    assert sys.modules["transformers.models.qwen3.modeling_qwen3"].apply_rotary_pos_emb is rotary


def test_norms_with_weights_around_zero_stay_as_they_are():
    assert fuse_layers(tiny_lm("gemma2")) == {"modeling_gemma2.apply_rotary_pos_emb": 1}


def test_heads_that_are_rotated_in_part_are_left_to_the_model():
    model = tiny_lm("phi3", partial_rotary_factor=0.5)
    expected, _ = run(model)
    assert f"modeling_phi3.{ROTARY}" in fuse_layers(model)
    torch.testing.assert_close(run(model)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_norm_in_another_precision_than_its_input_is_left_to_the_model():
    model = tiny_lm("llama")
    norm = model.model.norm
    hidden = torch.randn(3, 32).bfloat16()
    expected = norm(hidden)
    fuse_layers(model)
    assert expected.dtype == torch.float32 and torch.equal(norm(hidden), expected)


def test_under_autocast_a_norm_stays_in_half_precision():
    model = spread_weights(tiny_lm("llama")).bfloat16()
    norm = model.model.norm
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = copy.deepcopy(norm).float()(hidden.float())
    fuse_layers(model)
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(hidden)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, rtol=2**-8, atol=0)


def test_a_rotary_embedding_takes_six_kernels_each_way():
    from transformers.models.qwen2 import modeling_qwen2

    def launches(rotary):
        q, k = (torch.randn(1, 3, heads, 8).transpose(1, 2).requires_grad_() for heads in (4, 2))
        angles = torch.rand(1, 3, 8)
        with Launches() as counter:
            turned = rotary(q, k, angles.cos(), angles.sin())
            torch.autograd.backward(turned, [x.detach() for x in turned])
        return counter.number - 2

    assert launches(_Rotary(modeling_qwen2.apply_rotary_pos_emb)) == 12
    assert launches(modeling_qwen2.apply_rotary_pos_emb) > 24


def test_who_decides_on_the_kernels():
    assert layer_kernels("cuda", use_liger=False, use_torch_compile=False) == "fused"
    assert layer_kernels("cpu", use_liger=False, use_torch_compile=False) == "plain"
    assert layer_kernels("cuda", use_liger=False, use_torch_compile=True) == "compiler"
    assert layer_kernels("cuda", use_liger=True, use_torch_compile=True) == "liger"


@needs_gpu
def test_on_a_gpu_half_precision_is_no_further_off_and_takes_half_the_kernels():
    exact, exact_gradients = run(spread_weights(tiny_lm("qwen2")).cuda(), "cuda")
    model = spread_weights(tiny_lm("qwen2")).cuda().bfloat16()
    before, after = Launches(), Launches()
    plain, plain_gradients = run(model, "cuda", before)
    fuse_layers(model)
    fused, fused_gradients = run(model, "cuda", after)
    assert (fused - exact).abs().mean() <= 1.2 * (plain - exact).abs().mean()

    def gap(gradients):
        return sum((gradients[name] - gradient).square().sum() for name, gradient in exact_gradients.items()).sqrt()

    assert gap(fused_gradients) <= 1.2 * gap(plain_gradients)
    # 5 norms, 2 rotary embeddings
    assert after.number <= before.number - 5 * 12 - 2 * 15
