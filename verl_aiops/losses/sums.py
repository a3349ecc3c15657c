"""From token log-probs to the sums that the losses take."""

import torch
from torch import Tensor


def require_full_precision(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is float32 or float64."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} is {tensor.dtype}; give float32 or float64. A half type keeps 8 or 11 binary digits, so a sum of "
            "-1000 nats is off by up to 2 (bfloat16) or 0.25 (float16), as much as the differences that a preference "
            "loss looks at. Convert the token log-probs before they are summed, not the sums"
        )


def sum_logps(
    token_logps: Tensor, mask: Tensor, *, ld_alpha: float | None = None, public_lengths: Tensor | None = None
) -> Tensor:
    """Sum each row's token log-probs over its mask, with LD-DPO's weights if asked.

    LD-DPO (arXiv 2409.06411) splits each answer at the pair's public length, the shorter of its two answers' lengths,
    and multiplies the log-probs of the tokens beyond it by alpha: 1 is the plain sum, 0 ignores the surplus of the
    longer answer. Policy and reference are to be summed alike. A likelihood term (``sft``) given such sums is weighted
    too.

    Args:
        token_logps: (rows, length) log-probs in nats, float32 or float64. What stands outside the mask is not looked
            at, so it may be anything (also -inf or nan) and gets gradient 0.
        mask: (rows, length), true where a token of the answer stands; padding and gaps may be anywhere.
        ld_alpha: weight in [0, 1] of the tokens beyond the public length; None for the plain sum.
        public_lengths: (rows,) number of masked tokens per row that count in full; both rows of a pair have the same.
            Needed with ``ld_alpha``, not used without.

    Returns:
        (rows,) sums in the type of ``token_logps``.

    Raises:
        TypeError: ``token_logps`` is not float32 or float64.
        ValueError: shapes that do not fit, ``ld_alpha`` outside [0, 1] or without ``public_lengths``.
    """
    require_full_precision("token_logps", token_logps)
    if token_logps.dim() != 2 or mask.shape != token_logps.shape:
        raise ValueError(
            f"token_logps and mask must both be (rows, length), got {tuple(token_logps.shape)} and {tuple(mask.shape)}"
        )
    mask = mask.bool()
    inside = token_logps.masked_fill(~mask, 0.0)
    if ld_alpha is None:
        return inside.sum(dim=1)
    if not 0.0 <= ld_alpha <= 1.0:
        raise ValueError(f"ld_alpha must be in [0, 1], got {ld_alpha!r}")
    if public_lengths is None or public_lengths.shape != token_logps.shape[:1]:
        got = None if public_lengths is None else tuple(public_lengths.shape)
        raise ValueError(f"ld_alpha needs public_lengths of shape ({token_logps.shape[0]},), got {got}")
    beyond = mask.cumsum(dim=1) > public_lengths.to(mask.device).unsqueeze(1)
    return torch.where(beyond, ld_alpha * inside, inside).sum(dim=1)
