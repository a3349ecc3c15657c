"""Log-probs of labelled tokens from hidden states: no logit that no label needs, and never all of them at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["LOGITS_AT_ONCE", "label_log_probs"]

# 256 MiB in float32
LOGITS_AT_ONCE = 1 << 26


def label_log_probs(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    label_sources: torch.Tensor,
    label_ids: torch.Tensor,
    *,
    vocabulary: int,
    sources_on_host: np.ndarray | None = None,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """Log-softmax of the head's logits at the labels, in float32 whatever the model computes in.

    Positions are taken in chunks of at most ``logits_at_once`` logits. With more than one chunk the backward pass
    computes each chunk's logits again, so that memory never holds those of two.

    Args:
        head: hidden states (positions, size) to logits (positions, vocabulary).
        hidden: (positions, size).
        label_sources: (labels,) position that predicts each label, in ascending order.
        label_ids: (labels,) token ids.
        vocabulary: entries of a row of logits.
        sources_on_host: ``label_sources`` where the GPU need not be waited for to read them.
        logits_at_once: most logits in a chunk; a chunk has one position at least.

    Returns:
        (labels,) float32, nats.
    """
    size = max(1, logits_at_once // vocabulary)
    if len(hidden) <= size:
        return _chunk(head, hidden, label_sources, label_ids)
    places = label_sources.cpu().numpy() if sources_on_host is None else sources_on_host
    borders = np.searchsorted(places, np.arange(0, len(hidden) + size, size)).tolist()
    parts = []
    for number, (first, last) in enumerate(zip(borders, borders[1:])):
        start = number * size
        if start >= len(hidden):
            break
        parts.append(
            checkpoint(
                _chunk,
                head,
                hidden[start : start + size],
                label_sources[first:last] - start,
                label_ids[first:last],
                use_reentrant=False,
                # nothing random in it, and keeping the state waits for the GPU
                preserve_rng_state=False,
            )
        )
    return torch.cat(parts)


def _chunk(head, hidden: torch.Tensor, label_sources: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
    logits = head(hidden).float()
    # not log_softmax: over a vocabulary of 49,152 its CPU kernel is off by 1e-5 per token, always to the same side
    return logits[label_sources, label_ids] - logits.logsumexp(dim=-1)[label_sources]
