"""Attention by its formula, for scores that no kernel of PyTorch's makes: capped ones (Gemma 2), and such that share
their weights with a sink (gpt-oss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["SCORES_AT_ONCE", "Scores", "attention_of_scores"]

# 256 MiB in float32
SCORES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Scores:
    """What a layer makes of the products of queries and keys.

    ``scaling`` multiplies them; a token sees the last ``window`` up to itself, all where it is None; ``softcap`` c
    makes ``c * tanh(score / c)`` of each (arXiv 2408.00118, section 2.2); ``sinks`` (heads,) are the scores of one key
    more, whose value is 0 (arXiv 2508.10925, section 2.1).
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None

    @property
    def keys_to_the_left(self) -> int:
        """Of a token that it sees, -1 for all: flash attention's words for the window."""
        return -1 if self.window is None else self.window - 1


def attention_of_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    scores_at_once: int = SCORES_AT_ONCE,
) -> torch.Tensor:
    """Causal attention, aligned at the end.

    Queries are taken in chunks of at most ``scores_at_once`` scores, one query at least, each with no more keys than
    its tokens see. With more than one chunk the backward pass computes each chunk's scores again.

    Args:
        query: (1, heads, queries, size).
        key, value: (1, kv heads, keys, size); the queries are those of the last keys.
        scores: of the layer.
        scores_at_once: most scores in a chunk, of all heads together.

    Returns:
        (1, heads, queries, size)
    """
    asking, seen = query.shape[2], key.shape[2]
    size = max(1, scores_at_once // (seen * query.shape[1]))
    if asking <= size:
        return _chunk(query, key, value, scores, seen - asking, 0)
    outputs = []
    for start in range(0, asking, size):
        stop = min(start + size, asking)
        at = seen - asking + start
        first = 0 if scores.window is None else max(0, at - scores.window + 1)
        last = seen - asking + stop
        parts = query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last]
        # nothing random in it, and keeping the state waits for the GPU
        outputs.append(checkpoint(_chunk, *parts, scores, at, first, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(outputs, dim=2)


def _chunk(query, key, value, scores: Scores, at: int, first: int) -> torch.Tensor:
    """Of queries from the position ``at`` on, to keys from the position ``first`` on."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    found = (query @ key.transpose(2, 3)).float() * scores.scaling
    if scores.softcap is not None:
        found = torch.tanh(found / scores.softcap) * scores.softcap
    places = torch.arange(at, at + query.shape[2], device=query.device).unsqueeze(1)
    before = places - torch.arange(first, first + key.shape[2], device=query.device)
    hidden = before < 0 if scores.window is None else (before < 0) | (before >= scores.window)
    found = found.masked_fill(hidden, float("-inf"))
    if scores.sinks is not None:
        sinks = scores.sinks.float().view(1, -1, 1, 1).expand(1, -1, query.shape[2], 1)
        found = torch.cat([found, sinks], dim=-1)
    weights = torch.softmax(found, dim=-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value
