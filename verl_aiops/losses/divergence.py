"""f-divergences in place of the reverse KL (f-DPO, arXiv 2309.16240).

DPO compares log(policy / reference) of the two answers because the KL's f(t) = t log t has f'(t) = log t + 1. Another f
puts its own f'(t), up to a constant which cancels between the answers, in the log-ratio's place.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

# Beyond these exponents exp() goes on as its tangent. They are far from the type's own limit (88 and 709) so that a
# squared loss of such a score, and the gradient of that, still fit.
_EXPONENT_CAP = {torch.float32: 30.0, torch.float64: 300.0}

# Nearer to alpha = 1 than this, expm1(x) / (alpha - 1) may underflow in float32; its limit is the log-ratio itself.
_ALPHA_IS_ONE = 1e-6


def capped_expm1(exponent: Tensor) -> Tensor:
    """exp(x) - 1, continued by its tangent above 30 (float32) or 300 (float64): finite, increasing, never flat."""
    cap = _EXPONENT_CAP[exponent.dtype]
    return torch.expm1(exponent.clamp(max=cap)) + math.exp(cap) * torch.relu(exponent - cap)


def capped_exp(exponent: Tensor) -> Tensor:
    """exp(x), continued by its tangent above 30 (float32) or 300 (float64)."""
    cap = _EXPONENT_CAP[exponent.dtype]
    return torch.exp(exponent.clamp(max=cap)) + math.exp(cap) * torch.relu(exponent - cap)


def divergence_score(logratios: Tensor, kind: str, alpha: float) -> Tensor:
    """f'(t) of each answer, t = policy / reference, up to a constant that cancels in differences.

    ==================  ================================  ===================================
    kind                f'(t)                             in terms of r = log t
    ==================  ================================  ===================================
    reverse_kl          log t                             r
    forward_kl          1 - 1/t                           1 - exp(-r)
    js_divergence       log(2t / (1 + t))                 log 2 + log sigmoid(r)
    alpha_divergence    (t^(alpha-1) - 1) / (alpha - 1)   (exp((alpha-1) r) - 1) / (alpha - 1)
    ==================  ================================  ===================================

    ``alpha_divergence`` is ``forward_kl`` at alpha 0 and tends to ``reverse_kl`` at alpha 1. Exponentials that would
    leave the type's range go on as straight lines (see ``capped_expm1``), so an answer that has moved very far still
    has a finite score and a gradient that points back.
    """
    if kind == "reverse_kl":
        return logratios
    if kind == "forward_kl":
        return -capped_expm1(-logratios)
    if kind == "js_divergence":
        return math.log(2.0) + F.logsigmoid(logratios)
    if kind == "alpha_divergence":
        power = alpha - 1.0
        return logratios if abs(power) < _ALPHA_IS_ONE else capped_expm1(power * logratios) / power
    raise ValueError(f"unknown f_divergence_type {kind!r}; there are: {', '.join(F_DIVERGENCES)}")
