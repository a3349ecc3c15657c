"""Attention over a `layout.SharedLayout`, as one of transformers' attention implementations.

Each segment attends to the tokens before it in its rows and to its own, causally and aligned at the end. So no mask
over the whole sequence is ever made, and nothing is computed that the mask would throw away. On GPUs in half precision
one call of a variable-length kernel does all segments; elsewhere one call of PyTorch's SDPA each.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch.nn import functional
from transformers import AttentionInterface

from verl_aiops.trainers.logprobs.layout import SharedLayout

__all__ = ["SHARED_ATTENTION", "has_varlen_kernel"]

SHARED_ATTENTION = "verl_aiops_shared_prompt"


# a layout is another one in every batch: traced, each would be compiled for itself
@torch.compiler.disable
def shared_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    shared_layout: SharedLayout | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, size), key and value (1, kv heads, tokens, size).

    Returns:
        (1, tokens, heads, size), and None for the weights.

    Raises:
        NotImplementedError: something is asked for that would change the numbers (dropout, soft caps, sinks, a mask),
            or the layout did not get here.
    """
    odd = [name for name in ("softcap", "s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    odd += ["dropout"] * (dropout > 0) + ["attention_mask"] * (attention_mask is not None)
    if shared_layout is None or odd:
        why = ", ".join(odd) or "its layers do not pass arguments on"
        raise NotImplementedError(
            f"{type(module).__name__} cannot share prompts ({why}). Set "
            "algorithm.dpo.logprob_backend=rows (algorithm.online_dpo.logprob_backend for online DPO, "
            "algorithm.logprob_backend=stock for GRPO and PPO)."
        )
    if torch.is_autocast_enabled(query.device.type):
        # rotary embeddings may have made float32 of what the kernels want in half precision
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and has_varlen_kernel():
        output = _all_segments(query, key, value, scaling, sliding_window, shared_layout)
    else:
        output = _segment_by_segment(query, key, value, scaling, sliding_window, shared_layout)
    return output, None


AttentionInterface.register(SHARED_ATTENTION, shared_attention)


def _segment_by_segment(query, key, value, scaling, window, layout: SharedLayout) -> torch.Tensor:
    # split, not slices: the gradient of a slice is as large as what it was cut from
    queries, keys, values = (t.split(layout.query_lengths, dim=2) for t in (query, key, value))
    outputs = []
    for number, ancestors in enumerate(layout.ancestors):
        own_key, own_value = keys[number], values[number]
        if ancestors:
            own_key = torch.cat([*(keys[at] for at in ancestors), own_key], dim=2)
            own_value = torch.cat([*(values[at] for at in ancestors), own_value], dim=2)
        asking, seen = layout.query_lengths[number], layout.key_lengths[number]
        plain = not ancestors and (window is None or seen <= window)
        outputs.append(
            functional.scaled_dot_product_attention(
                queries[number],
                own_key,
                own_value,
                attn_mask=None if plain else _end_aligned(asking, seen, window, query.device),
                is_causal=plain,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


@functools.lru_cache(maxsize=256)
def _end_aligned(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys): what each of the last `queries` positions of `keys` sees; the same in every layer."""
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    before = at - torch.arange(keys, device=device)
    seen = before >= 0
    return seen if window is None else seen & (before < window)


def _all_segments(query, key, value, scaling, window, layout: SharedLayout) -> torch.Tensor:
    # squeezed, not indexed: the gradient of t[0] is zeros and a copy
    query, key, value = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
    # the number of keys to the left of a token that it sees
    left = -1 if window is None else window - 1
    if _has_flash_attn():
        from flash_attn import flash_attn_varlen_func

        output = flash_attn_varlen_func(
            query,
            _KeysOfSegments.apply(key, layout),
            _KeysOfSegments.apply(value, layout),
            layout.query_ends,
            layout.key_ends,
            max(layout.query_lengths),
            max(layout.key_lengths),
            softmax_scale=scaling,
            causal=True,
            window_size=(left, 0),
        )
    else:
        output = _FlashOverSegments.apply(query, key, value, layout, scaling, left)
    return output.unsqueeze(0)


def _summed_uses(gradient: torch.Tensor, layout: SharedLayout) -> torch.Tensor:
    """The gradient of ``tokens[layout.keys]`` to the tokens. PyTorch's own sorts the indices on GPUs, in every layer;
    here they are sorted once for a layout. A token's gradients are added up in float32, always in the same order."""
    rows = gradient.flatten(1)
    summed = functional.embedding_bag(layout.use_places, rows, layout.use_starts, mode="sum")
    return summed.view(-1, *gradient.shape[1:])


class _KeysOfSegments(torch.autograd.Function):
    """``tokens[layout.keys]``, with the gradient of `_summed_uses`."""

    @staticmethod
    def forward(ctx, tokens: torch.Tensor, layout: SharedLayout) -> torch.Tensor:
        ctx.layout = layout
        return tokens.index_select(0, layout.keys)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _summed_uses(gradient, ctx.layout), None


class _FlashOverSegments(torch.autograd.Function):
    """PyTorch's own variable-length flash attention from each segment to its keys.

    The operators below ``torch.nn.attention.varlen.varlen_attn``: in every layer its dispatch takes longer than the
    kernel where the model is small, and up to PyTorch 2.11 it wants key heads repeated, which the kernel does not.
    """

    @staticmethod
    def forward(ctx, query, key, value, layout: SharedLayout, scaling: float | None, left: int) -> torch.Tensor:
        keys, values = key.index_select(0, layout.keys), value.index_select(0, layout.keys)
        ctx.most = max(layout.query_lengths), max(layout.key_lengths)
        ctx.layout, ctx.scaling, ctx.left = layout, scaling, left
        output, sums, random_state, unused, _ = torch.ops.aten._flash_attention_forward(
            query,
            keys,
            values,
            layout.query_ends,
            layout.key_ends,
            *ctx.most,
            0.0,
            left < 0,
            False,
            scale=scaling,
            window_size_left=left,
            window_size_right=0,
        )
        ctx.save_for_backward(query, keys, values, output, sums, random_state, unused)
        return output

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        query, keys, values, output, sums, random_state, unused = ctx.saved_tensors
        of_query, of_keys, of_values = torch.ops.aten._flash_attention_backward(
            gradient,
            query,
            keys,
            values,
            output,
            sums,
            ctx.layout.query_ends,
            ctx.layout.key_ends,
            *ctx.most,
            0.0,
            ctx.left < 0,
            random_state,
            unused,
            scale=ctx.scaling,
            window_size_left=ctx.left,
            window_size_right=0,
        )
        of_key, of_value = _summed_uses(of_keys, ctx.layout), _summed_uses(of_values, ctx.layout)
        return of_query, of_key, of_value, None, None, None


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@functools.cache
def has_varlen_kernel() -> bool:
    """Whether this Python has a kernel that does all segments at once on a GPU: flash-attn's where it is installed,
    else PyTorch's own (from 2.10 on)."""
    return _has_flash_attn() or importlib.util.find_spec("torch.nn.attention.varlen") is not None
