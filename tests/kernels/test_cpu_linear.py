"""Linear layers by oneDNN compute what PyTorch's do, keep out where they should, and are used where MKL is slow."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_lms import VOCABULARY, tiny_lm
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from worker_harness import run_ranks

from verl_aiops.kernels import cpu_linear
from verl_aiops.kernels.cpu_linear import LEAST_WORK, onednn_is_faster, use_onednn
from verl_aiops.trainers.logprobs.head import head_gives_log_probs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


@pytest.fixture
def products(monkeypatch):
    """The shapes of the products that oneDNN was asked for; it is used whatever the processor is."""
    asked = []
    usual = cpu_linear._times

    def times(left, right):
        asked.append((tuple(left.shape), tuple(right.shape)))
        return usual(left, right)

    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(cpu_linear, "_times", times)
    return asked


def gradients_of(layer, hidden):
    """Output and gradients of a function that treats each number of the output in its own way."""
    layer.zero_grad()
    hidden = hidden.clone().requires_grad_()
    output = layer(hidden)
    # a transposed view: gradients need not be contiguous
    weights = torch.randn(*output.shape[:-2], output.shape[-1], output.shape[-2]).transpose(-1, -2)
    (output * weights).sum().backward()
    return output.detach(), hidden.grad, layer.weight.grad.clone(), None if layer.bias is None else layer.bias.grad


def alike(ours, usual, wide):
    """float32 sums of `wide` products, in another order: errors grow with the root of their number."""
    torch.testing.assert_close(ours, usual, rtol=1e-5, atol=2e-6 * wide**0.5 * float(usual.abs().max()) ** 0.5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(300,), (1, 300), (3, 100)])
def test_output_and_gradients_are_those_of_a_linear_layer(products, bias, shape):
    torch.manual_seed(0)
    layer = nn.Linear(128, 160, bias=bias)
    ours = copy.deepcopy(layer)
    assert use_onednn(ours) == 1
    hidden = torch.randn(*shape, 128)
    torch.manual_seed(1)
    expected = gradients_of(layer, hidden)
    torch.manual_seed(1)
    got = gradients_of(ours, hidden)
    assert len(products) == 3
    for a, b in zip(got, expected):
        assert (a is None) == (b is None)
        if a is not None:
            alike(a, b, 300)


def test_the_same_numbers_each_time(products):
    torch.manual_seed(0)
    layer = nn.Linear(257, 193)
    use_onednn(layer)
    hidden = torch.randn(311, 257)
    runs = []
    for _ in range(5):
        torch.manual_seed(1)
        runs.append(gradients_of(layer, hidden))
    assert products
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


def test_what_needs_no_gradient_gets_none(products):
    layer = nn.Linear(128, 160, bias=False)
    use_onednn(layer)
    hidden = torch.randn(300, 128)
    with torch.no_grad():
        layer(hidden)
    assert len(products) == 1
    layer.weight.requires_grad_(False)
    hidden.requires_grad_()
    layer(hidden).sum().backward()
    assert len(products) == 3 and hidden.grad is not None and layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(hidden.detach()).sum().backward()
    assert len(products) == 5 and layer.weight.grad is not None


def test_small_products_go_the_usual_way(products):
    layer = nn.Linear(64, 64)
    use_onednn(layer)
    rows = LEAST_WORK // 64 // 64
    layer(torch.randn(rows - 1, 64))
    assert products == []
    layer(torch.randn(rows, 64))
    assert len(products) == 1
    assert layer(torch.randn(0, 64)).shape == (0, 64)


def test_other_types_go_the_usual_way(products):
    layer = nn.Linear(128, 160)
    use_onednn(layer)
    hidden = torch.randn(300, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(hidden).dtype == torch.bfloat16
    assert layer.double()(hidden.double()).dtype == torch.float64
    assert layer.bfloat16()(hidden.bfloat16()).dtype == torch.bfloat16
    assert products == []


def test_a_model_keeps_its_weights_and_gets_the_same_gradients(products, monkeypatch):
    monkeypatch.setattr(cpu_linear, "LEAST_WORK", 0)
    # Qwen2 has biases
    model = tiny_lm("qwen2")
    ours = copy.deepcopy(model)
    layers = use_onednn(ours)
    assert layers == sum(isinstance(m, nn.Linear) for m in model.modules()) and use_onednn(ours) == 0
    assert ours.state_dict().keys() == model.state_dict().keys()
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    for m in (model, ours):
        logits = m(input_ids=tokens, use_cache=False).logits
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    assert len(products) >= 3 * layers - 1
    for (name, a), b in zip(ours.named_parameters(), model.parameters()):
        assert (a.grad - b.grad).abs().max() <= 1e-5 * b.grad.abs().max() + 1e-9, name


def test_a_head_that_gave_log_probs_computes_as_before(products):
    head = nn.Linear(128, 400)
    usual = nn.Linear(128, 400)
    use_onednn(head)
    for module in (head, usual):
        model = SimpleNamespace(config=None, get_output_embeddings=lambda module=module: module)
        with head_gives_log_probs(model, torch.arange(100), torch.arange(100)):
            assert module(torch.randn(1, 100, 128)).shape == (100,)
        assert module(torch.randn(1, 100, 128)).shape == (1, 100, 400)
    # twice: inside, and after
    assert len(products) == 2


@pytest.mark.parametrize(
    ("capability", "vendor", "mkl", "expected"),
    [
        ("AVX512", "AuthenticAMD", True, True),
        ("AVX512", "GenuineIntel", True, False),
        ("AVX2", "AuthenticAMD", True, False),
        ("AVX512", "AuthenticAMD", False, False),
    ],
)
def test_used_where_mkl_leaves_avx512_aside(monkeypatch, tmp_path, capability, vendor, mkl, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a processor\n")
    is_intel = cpu_linear._is_intel
    monkeypatch.setattr(cpu_linear, "_is_intel", lambda: is_intel(cpuinfo))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert onednn_is_faster.__wrapped__() is expected


def test_without_cpuinfo_the_platform_names_the_processor(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_linear.platform, "processor", lambda: "Intel64 Family 6 Model 142, GenuineIntel")
    assert cpu_linear._is_intel(tmp_path / "none")
    monkeypatch.setattr(cpu_linear.platform, "processor", lambda: "AMD64 Family 26 Model 2, AuthenticAMD")
    assert not cpu_linear._is_intel(tmp_path / "none")


def test_not_used_if_it_computed_something_else(monkeypatch):
    assert cpu_linear._computes_the_same()
    monkeypatch.setattr(cpu_linear, "_times", lambda left, right: 2 * functional.linear(left, right))
    assert not cpu_linear._computes_the_same()

    def missing(left, right):
        raise AttributeError("_linear_pointwise")

    monkeypatch.setattr(cpu_linear, "_times", missing)
    assert not cpu_linear._computes_the_same()

    def odd(left, right):
        raise NotImplementedError  # or whatever else

    monkeypatch.setattr(cpu_linear, "_times", odd)
    assert not cpu_linear._computes_the_same()


def test_not_used_if_its_gradient_is_another(monkeypatch):
    monkeypatch.setattr(
        cpu_linear, "_times", lambda left, right: functional.linear(left, right) * (1 if right.is_contiguous() else 2)
    )
    assert not cpu_linear._computes_the_same()


def test_one_row_without_a_batch_goes_the_usual_way(products, monkeypatch):
    monkeypatch.setattr(cpu_linear, "LEAST_WORK", 0)
    layer = nn.Linear(8, 9)
    use_onednn(layer)
    layer(torch.randn(8, requires_grad=True)).sum().backward()
    assert products == []


def test_layers_of_other_devices_stay_as_they_are(products):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta"))
    assert use_onednn(model) == 1 and "forward" not in vars(model[1])


def test_not_used_elsewhere(monkeypatch):
    monkeypatch.setattr(cpu_linear, "onednn_is_faster", lambda: False)
    layer = nn.Linear(128, 160)
    assert use_onednn(layer) == 0 and "forward" not in vars(layer)


def _of_two():
    """Gradients of FSDP2's workers, each on its half, with oneDNN."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    cpu_linear.onednn_is_faster = lambda: True
    model = layers_of_128()
    assert use_onednn(model) == 2
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # twice: the second time the weights have been freed and gathered again
    for _ in range(2):
        model.zero_grad()
        model(halves()[torch.distributed.get_rank()]).square().mean().backward()
    return [p.grad.full_tensor().tolist() for p in model.parameters()]


def layers_of_128():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))


def halves():
    return torch.randn(2, 300, 128, generator=torch.Generator().manual_seed(1))


def test_two_workers_with_sharded_weights_get_the_same_gradients():
    assert 300 * 128 * 128 >= LEAST_WORK
    sharded = run_ranks(2, _of_two)[0]
    model = layers_of_128()
    model(halves()).square().mean().backward()
    for got, parameter in zip(sharded, model.parameters(), strict=True):
        alike(torch.tensor(got), parameter.grad, 300)
