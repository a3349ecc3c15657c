"""A model run forwards and backwards, and rotary embeddings put back after a test."""

import sys

import pytest
import torch
from tiny_lms import VOCABULARY

from verl_aiops.kernels.fused_layers import _Rotary

ROTARY = "apply_rotary_pos_emb"


@pytest.fixture(autouse=True)
def rotary_embeddings_as_they_were():
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and isinstance(vars(module).get(ROTARY), _Rotary):
            setattr(module, ROTARY, vars(module)[ROTARY].unfused)


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
