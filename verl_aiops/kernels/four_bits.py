"""Linear layers of a frozen base in four bits, for adapters on top (QLoRA, arXiv 2305.14314), by bitsandbytes.

The numbers are those of the paper: NormalFloat (``nf4``) in blocks of 64, whose scales are kept in 8 bits, with a scale
in float32 for each 256 of those. What a layer computes it computes in the run's own dtype, from weights that are made
whole for one product. Embeddings, norms and heads stay as they are.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata

import torch
from torch import nn

__all__ = ["BYTES", "FORMATS", "LEAST", "in_four_bits", "layers_for_four_bits", "why_not"]

FORMATS = ("nf4",)
# of a weight: 4 bits, its part of a block's scale, and of that scale's own
BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# the first with 4-bit products on CPUs whose state is the same as on GPUs
LEAST = "0.50"
# what ends a classifier or a critic; language models name their head themselves
_HEADS = ("score", "classifier", "v_head")


def why_not() -> str | None:
    """Why there are no layers of four bits here, with the command that mends it; None where there are."""
    install = f'pip install "verl-aiops[qlora]", or pip install "bitsandbytes>={LEAST}"'
    if importlib.util.find_spec("bitsandbytes") is None:
        return f"bitsandbytes is not installed here: {install}"
    found = metadata.version("bitsandbytes")
    if tuple(map(int, found.split(".")[:2])) < tuple(map(int, LEAST.split("."))):
        return f"bitsandbytes {found} is older than {LEAST}: {install}"
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # a library of CUDA that is not there
        return f"bitsandbytes {found} cannot be used here ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def layers_for_four_bits(model: nn.Module) -> dict[str, nn.Linear]:
    """By name the linear layers of a transformers model that `in_four_bits` replaces: all but its head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not head and name.rsplit(".", 1)[-1] not in _HEADS
    }


def in_four_bits(model: nn.Module, compute_dtype: torch.dtype, device: torch.device | str) -> list[str]:
    """Replace a model's linear layers in place, one after another: none but one is ever whole on the device.

    States of the model stay those of whole weights: what is saved of a layer is what it computes with, made whole on
    the host, and what is loaded leaves its base alone, which is frozen.

    Args:
        model: on the CPU; its other weights are left there.
        compute_dtype: of the products.

    Returns:
        names of weights that hold a number that is not finite, which no later look would find.

    Raises:
        ImportError: bitsandbytes is not installed (`why_not`).
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    bad = []
    for name, layer in layers_for_four_bits(model).items():
        if not torch.isfinite(layer.weight).all():
            bad.append(f"{name}.weight")
        # its own weights are never made: on "meta"
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        four_bits = Linear4bit(*sizes, compute_dtype, quant_type="nf4", device="meta")
        weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=four_bits)
        four_bits.weight, four_bits.bias = weight.to(device), layer.bias
        # a pass without gradients would compute in bfloat16 on some CPUs, and a reference is scored in such a pass
        four_bits.support_avx512bf16_for_cpu = False
        four_bits.register_state_dict_post_hook(_give_whole)
        four_bits.register_load_state_dict_pre_hook(_keep_own)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, four_bits.train(layer.training))
        # the whole weights go now, not when the list is done
        layer.weight = None
    # by which PEFT knows what to put its adapters on
    model.is_loaded_in_4bit = True
    return bad


def _give_whole(layer: nn.Module, state: dict, prefix: str, _) -> None:
    from bitsandbytes.functional import dequantize_4bit

    name = f"{prefix}weight"
    for beside in [key for key in state if key.startswith(f"{name}.")]:
        del state[beside]
    state[name] = dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu()


def _keep_own(layer: nn.Module, state: dict, prefix: str, *_) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = layer.weight.data
