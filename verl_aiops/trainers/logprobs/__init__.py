"""Log-prob backends: how the token log-probs of the answers in a micro-batch are computed.

A backend decides how a batch of pairs is laid out for the model. All give the same numbers to float32 round-off; the
trainer, the loss and the reference cache see only

    ``answer_log_probs``: nested (rows, answer length), float32, nats, row ``2i`` chosen and ``2i + 1`` rejected.

Each is called as ``backend(module, batch, packed=..., device=...)`` with the (FSDP-wrapped) model and a micro-batch
that may still be on another device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from verl_aiops.trainers.logprobs.rows import rows_answer_log_probs
from verl_aiops.trainers.logprobs.shared_prompt import shared_answer_log_probs

__all__ = ["LOGPROB_BACKENDS"]

LOGPROB_BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    "rows": rows_answer_log_probs,
    "shared_prompt": shared_answer_log_probs,
}
