"""A model's norms and rotary embeddings in fewer kernels, with the same result to round-off.

As transformers writes them an RMSNorm is 8 kernels forward and 12 backward, a rotary embedding 10 and 22. Models of a
billion parameters and less spend more time on launching those than the GPU does on computing them. Here a norm is
PyTorch's own fused one, a kernel each way, and a rotary embedding 6 each way.

transformers' functions are replaced in its modules and objects, as it has no registry for them. Each is tried on a few
numbers first, forward and backward. If a result is another, or anything is raised, the model's own stays and the log
says so; so does a call with other arguments than were tried.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable

import torch
from torch.nn import functional

__all__ = ["fuse_layers", "layer_kernels"]

logger = logging.getLogger(__name__)

_ROTARY = "apply_rotary_pos_emb"


def layer_kernels(device: str, *, use_liger: bool, use_torch_compile: bool) -> str:
    """Who decides on the kernels of a model's layers: ``liger``, ``compiler``, ``fused`` (`fuse_layers`) or ``plain``.
    In half precision each rounds in its own way."""
    if use_liger:
        return "liger"
    if use_torch_compile:
        return "compiler"
    return "fused" if device == "cuda" else "plain"


def fuse_layers(model: torch.nn.Module) -> dict[str, int]:
    """Replace what can be, in place, and the rotary embedding for all models of its kind in this process.

    Args:
        model: a transformers model, before FSDP wraps it.

    Returns:
        number of modules that compute in fewer kernels, by the names of what they computed before.
    """
    done: dict[str, int] = {}
    for module in model.modules():
        if _is_plain_rms_norm(module):
            module.forward = functools.partial(_rms_norm, module, module.forward)
            done[type(module).__name__] = done.get(type(module).__name__, 0) + 1
    for name in sorted({type(module).__module__ for module in model.modules()}):
        source = sys.modules.get(name)
        rotary = getattr(source, _ROTARY, None)
        if rotary is not None and not isinstance(rotary, _Rotary) and _is_plain_rotary(rotary):
            rotary = _Rotary(rotary)
            setattr(source, _ROTARY, rotary)
        if isinstance(rotary, _Rotary):
            done[f"{name.rsplit('.', 1)[-1]}.{_ROTARY}"] = 1
    return done


def _alike(what: str, theirs: Callable[[], list[torch.Tensor]], ours: Callable[[], list[torch.Tensor]]) -> bool:
    """Whether both give the same tensors to round-off; if not, or if anything is raised, that is logged."""
    try:
        with torch.device("cpu"), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for a, b in zip(theirs(), ours(), strict=True):
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    except Exception as error:  # another model's layer may do anything
        why = " ".join(str(error).split()) or "another result"
        logger.info("%s stays the model's own: %s: %s", what, type(error).__name__, why)
        return False
    return True


def _with_gradients(outputs: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The outputs, and the gradients of the inputs for a sum that weighs each number in its own way."""
    total = sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for x in outputs)
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, inputs)]


# --- norms ------------------------------------------------------------------------------------------------------------


def _is_plain_rms_norm(module: torch.nn.Module) -> bool:
    """Whether it is Zhang and Sennrich's norm (arXiv 1910.07467, equation 4) with `eps` inside of the root: some
    models have others under that name, Gemma's with weights around 0 for example."""
    if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
        return False
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and "forward" not in vars(module) and _norms_alike(type(module), module.variance_epsilon)


@functools.cache
def _norms_alike(kind: type[torch.nn.Module], eps: float) -> bool:
    def tried(fused: bool) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        norm = kind(8, eps=eps).float()
        with torch.no_grad():
            norm.weight.copy_(torch.randn(8, generator=generator))
        # so small that eps counts
        hidden = (torch.randn(4, 8, generator=generator) * eps**0.5).requires_grad_()
        output = _rms_norm(norm, norm, hidden) if fused else norm(hidden)
        # the gradient of what is so small is as large; in the scale of its input it can be compared
        outputs, of_hidden, of_weight = _with_gradients((output,), (hidden, norm.weight))
        return [outputs, of_hidden * eps**0.5, of_weight]

    return _alike(kind.__name__, lambda: tried(False), lambda: tried(True))


def _rms_norm(module: torch.nn.Module, unfused: Callable, hidden: torch.Tensor, *gate, **more) -> torch.Tensor:
    # some norms of this kind also take a gate
    if gate or more or hidden.dtype != module.weight.dtype:
        return unfused(hidden, *gate, **more)
    # autocast would make float32 of the input, and of the output
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


# --- rotary embeddings ------------------------------------------------------------------------------------------------


class _Rotary:
    """transformers' ``apply_rotary_pos_emb``."""

    def __init__(self, unfused: Callable):
        self.unfused = unfused

    def __call__(self, *args, **kwargs):
        if len(args) != 4 or not kwargs.keys() <= {"unsqueeze_dim"} or not self._fits(*args):
            return self.unfused(*args, **kwargs)
        q, k, cos, sin = args
        heads = kwargs.get("unsqueeze_dim", 1)
        return _Rotate.apply(q, k, cos.unsqueeze(heads), sin.unsqueeze(heads))

    @staticmethod
    def _fits(q, k, cos, sin) -> bool:
        same_type = q.dtype == k.dtype == cos.dtype == sin.dtype
        return same_type and not cos.requires_grad and q.shape[-1] == k.shape[-1] == cos.shape[-1] == sin.shape[-1]


def _is_plain_rotary(rotary: Callable) -> bool:
    """Whether it turns the first half of a head's numbers against the second half (RoFormer, arXiv 2104.09864, equation
    34, in GPT-NeoX's order): some models pair neighbours."""

    def tried(turn: Callable, halves_alike: bool, **heads: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (lambda n: (2, n, 3, 8)) if heads.get("unsqueeze_dim", 1) == 1 else (lambda n: (2, 3, n, 8))
        q, k = (torch.randn(shape(n), generator=generator, requires_grad=True) for n in (2, 1))
        angles = torch.rand(2, 3, 4, generator=generator).repeat(1, 1, 2)
        if not halves_alike:
            angles = torch.rand(2, 3, 8, generator=generator)
        return _with_gradients(turn(q, k, angles.cos(), angles.sin(), **heads), (q, k))

    ways = ({"halves_alike": True}, {"halves_alike": False}, {"halves_alike": True, "unsqueeze_dim": 2})
    what = f"{rotary.__module__.rsplit('.', 1)[-1]}.{_ROTARY}"
    return all(
        _alike(what, functools.partial(tried, rotary, **way), functools.partial(tried, _Rotary(rotary), **way))
        for way in ways
    )


class _Rotate(torch.autograd.Function):
    """``x * cos + cat(-x2, x1) * sin`` for the halves x1 and x2 of the last dimension of x, for two x."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor):
        ctx.save_for_backward(cos, sin)
        sin_first, sin_second = sin.chunk(2, dim=-1)
        return tuple(_turned(x, cos, -1, sin_first, 1, sin_second) for x in (q, k))

    @staticmethod
    def backward(ctx, of_q: torch.Tensor, of_k: torch.Tensor):
        cos, sin = ctx.saved_tensors
        sin_first, sin_second = sin.chunk(2, dim=-1)
        return *(_turned(gradient, cos, 1, sin_second, -1, sin_first) for gradient in (of_q, of_k)), None, None


def _turned(x, cos, sign_first: int, sin_first, sign_second: int, sin_second) -> torch.Tensor:
    """x1 * cos1 + sign_first * x2 * sin_first, and x2 * cos2 + sign_second * x1 * sin_second"""
    first, second = x.chunk(2, dim=-1)
    turned = x * cos
    turned_first, turned_second = turned.chunk(2, dim=-1)
    turned_first.addcmul_(second, sin_first, value=sign_first)
    turned_second.addcmul_(first, sin_second, value=sign_second)
    return turned
