"""Layers of fewer kernels compute what transformers' layers compute, and layers of another kind stay as they are."""

import copy
import sys

import pytest
import torch
from fused_runs import ROTARY, rotary_embeddings_as_they_were, run, spread_weights  # noqa: F401  (a fixture)
from tiny_lms import tiny_lm
from torch.utils._python_dispatch import TorchDispatchMode

from verl_aiops.kernels.fused_layers import _is_plain_rotary, _Rotary, fuse_layers, layer_kernels

# tests/models/test_families.py does so for all others
KINDS = ("glm4", "llama", "mistral", "mixtral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
KINDS += ("starcoder2",)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Launches(TorchDispatchMode):
    """Counts the operators that are no mere view."""

    VIEWS = ("view", "transpose", "unsqueeze", "expand", "aten.t.", "slice.", "detach", "alias", "split", "as_strided")

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += not any(word in str(function) for word in self.VIEWS)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
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


# --- layers that the replacements were not made for ------------------------------------------------------------------


def hybrid(kind):
    """Models with norms that take a gate, or with cosines of half the width."""
    settings = {
        "bamba": {
            **dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8, attn_layer_indices=[1]),
            **dict(mamba_n_groups=1, mamba_expand=2),
        },
        "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "attention": "eager"},
        "granitemoehybrid": {
            **dict(layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8),
            **dict(mamba_chunk_size=8, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16),
        },
        "qwen3_next": {
            **dict(layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, head_dim=8),
            **dict(linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4),
            **dict(num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16),
        },
    }
    return spread_weights(tiny_lm(kind, **settings[kind]))


@pytest.mark.parametrize("kind", ["bamba", "gpt_oss", "granitemoehybrid", "qwen3_next"])
def test_layers_with_other_arguments_are_left_to_the_model(kind):
    model = hybrid(kind)
    fused = copy.deepcopy(model)
    expected, gradients = run(model)
    fuse_layers(fused)
    logits, fused_gradients = run(fused)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name


def rotate_half(x):
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def plain(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def raises(q, k, cos, sin, unsqueeze_dim=1):
    raise KeyError("rope_deltas")


def one(q, k, cos, sin, unsqueeze_dim=1):
    return plain(q, k, cos, sin, unsqueeze_dim)[0]


def no_gradient(q, k, cos, sin, unsqueeze_dim=1):
    return plain(q.detach() + 0 * q, k, cos, sin, unsqueeze_dim)


def other_axis(q, k, cos, sin, unsqueeze_dim=2):
    return plain(q, k, cos, sin, 2)


def half_width(q, k, cos, sin, unsqueeze_dim=1):
    return plain(q, k, torch.cat((cos, cos), -1), torch.cat((sin, sin), -1), unsqueeze_dim)


def not_a_tensor(q, k, cos, sin, unsqueeze_dim=1):
    return "q", "k"


@pytest.mark.parametrize("rotary", [raises, one, no_gradient, other_axis, half_width, not_a_tensor, lambda x: x])
def test_a_rotary_embedding_that_raises_or_computes_otherwise_stays_and_that_is_said(rotary, caplog):
    with caplog.at_level("INFO"):
        assert _is_plain_rotary(plain)
        assert caplog.text == ""
        assert not _is_plain_rotary(rotary)
    assert "apply_rotary_pos_emb stays the model's own" in caplog.text


def test_a_rotary_embedding_called_otherwise_than_tried_is_the_models():
    calls = []
    rotary = _Rotary(lambda *args, **kwargs: calls.append((args, kwargs)))
    q = torch.zeros(1, 2, 3, 8)
    cos = torch.zeros(1, 3, 8)
    for args, kwargs in [
        ((q, q, cos, cos, torch.arange(3)), {}),
        ((q, q, cos, cos), {"position_ids": None}),
        ((q, q, cos[..., :4], cos[..., :4]), {}),
        ((q,), {"k": q, "cos": cos, "sin": cos}),
    ]:
        rotary(*args, **kwargs)
        assert calls.pop() == (args, kwargs)
    assert not calls and rotary(q, q, cos, cos, unsqueeze_dim=1)[0].shape == q.shape


class RaisingRMSNorm(torch.nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = torch.nn.Parameter(torch.ones(size)), eps

    def forward(self, hidden):
        raise KeyError("no")


class DetachedRMSNorm(RaisingRMSNorm):
    def forward(self, hidden):
        scale = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon).detach()
        return hidden * scale * self.weight


class WantsMoreRMSNorm(DetachedRMSNorm):
    def __init__(self, size, eps, groups):
        super().__init__(size, eps)


@pytest.mark.parametrize("norm", [RaisingRMSNorm(8), DetachedRMSNorm(8), WantsMoreRMSNorm(8, 1e-6, 2)])
def test_a_norm_that_raises_or_has_another_gradient_stays_and_that_is_said(norm, caplog):
    with caplog.at_level("INFO"):
        assert fuse_layers(torch.nn.Sequential(norm)) == {}
    assert f"{type(norm).__name__} stays the model's own" in caplog.text


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
