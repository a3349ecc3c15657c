"""Attention over a `layout.SharedLayout`, as one of transformers' attention implementations.

Each segment attends to the tokens before it in its rows and to its own, causally and aligned at the end. So no mask
over the whole sequence is ever made, and nothing is computed that the mask would throw away. On GPUs in half precision
one call of a variable-length kernel does all segments; elsewhere one call of PyTorch's SDPA each. Scores that a model
caps and sinks, which SDPA knows nothing of, are computed by `scores`, segment by segment, where no kernel does them.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import AttentionInterface

from verl_aiops.trainers.logprobs.layout import SharedLayout
from verl_aiops.trainers.logprobs.scores import Scores, attention_of_scores

__all__ = ["SHARED_ATTENTION", "has_varlen_kernel"]

SHARED_ATTENTION = "verl_aiops_shared_prompt"

_HALF = (torch.float16, torch.bfloat16)


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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    shared_layout: SharedLayout | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query (1, heads, tokens, size), key and value (1, kv heads, tokens, size);
    ``softcap`` and ``s_aux`` (heads,) as `scores.Scores` has them.

    Where workers have a sequence together, ``tokens`` are this worker's.

    Returns:
        (1, tokens, heads, size), and None for the weights.

    Raises:
        NotImplementedError: something is asked for that would change the numbers (dropout, a mask), or the layout did
            not get here.
    """
    odd = [name for name in ("position_bias", "head_mask") if others.get(name) is not None]
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
    split = shared_layout.split
    if split is not None:
        query, key, value = split.some_heads(query, key, value)
        s_aux = None if s_aux is None else split.own_heads(s_aux)
    scores = Scores(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    kernel = _kernel_of_all_segments(scores) if query.is_cuda and query.dtype in _HALF else None
    output = (kernel or _segment_by_segment)(query, key, value, scores, shared_layout)
    return output if split is None else split.all_heads(output), None


AttentionInterface.register(SHARED_ATTENTION, shared_attention)


def _segment_by_segment(query, key, value, scores: Scores, layout: SharedLayout) -> torch.Tensor:
    # split, not slices: the gradient of a slice is as large as what it was cut from
    queries, keys, values = (t.split(layout.query_lengths, dim=2) for t in (query, key, value))
    outputs = []
    for number, ancestors in enumerate(layout.ancestors):
        own_key, own_value = keys[number], values[number]
        if ancestors:
            own_key = torch.cat([*(keys[at] for at in ancestors), own_key], dim=2)
            own_value = torch.cat([*(values[at] for at in ancestors), own_value], dim=2)
        if scores.plain:
            outputs.append(_sdpa(queries[number], own_key, own_value, scores, whole=not ancestors))
        else:
            outputs.append(attention_of_scores(queries[number], own_key, own_value, scores))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _sdpa(query, key, value, scores: Scores, *, whole: bool) -> torch.Tensor:
    asking, seen = query.shape[2], key.shape[2]
    causal = whole and (scores.window is None or seen <= scores.window)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if causal else _end_aligned(asking, seen, scores.window, query.device),
        is_causal=causal,
        scale=scores.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@functools.lru_cache(maxsize=256)
def _end_aligned(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(queries, keys): what each of the last `queries` positions of `keys` sees; the same in every layer."""
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    before = at - torch.arange(keys, device=device)
    seen = before >= 0
    return seen if window is None else seen & (before < window)


def _kernel_of_all_segments(scores: Scores) -> Callable[..., torch.Tensor] | None:
    """Which kernel, if any: flash-attn's can cap scores but has no gradient for sinks, PyTorch's cannot cap them."""
    if scores.sinks is None and _has_flash_attn():
        return _flash_attn_over_segments
    if scores.softcap is None and _has_pytorch_varlen():
        return _pytorch_over_segments
    return None


def _in_a_row(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(tokens, heads, size) of (1, heads, tokens, size)."""
    # squeezed, not indexed: the gradient of t[0] is zeros and a copy
    return tuple(t.squeeze(0).transpose(0, 1) for t in tensors)


def _flash_attn_over_segments(query, key, value, scores: Scores, layout: SharedLayout) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    query, key, value = _in_a_row(query, key, value)
    output = flash_attn_varlen_func(
        query,
        _KeysOfSegments.apply(key, layout),
        _KeysOfSegments.apply(value, layout),
        layout.query_ends,
        layout.key_ends,
        max(layout.query_lengths),
        max(layout.key_lengths),
        softmax_scale=scores.scaling,
        causal=True,
        window_size=(scores.keys_to_the_left, 0),
        **({} if scores.softcap is None else {"softcap": scores.softcap}),
    )
    return output.unsqueeze(0)


def _pytorch_over_segments(query, key, value, scores: Scores, layout: SharedLayout) -> torch.Tensor:
    output = _FlashOverSegments.apply(
        *_in_a_row(query, key, value), layout, scores.scaling, scores.keys_to_the_left, scores.sinks
    )
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

    A sink is one key more for each head, with a score of its own and a value of 0. So the kernel's output and log-sums
    without it say what they are with it; and from those with it, its backward pass makes the gradients with it.
    """

    @staticmethod
    def forward(ctx, query, key, value, layout: SharedLayout, scaling: float, left: int, sinks) -> torch.Tensor:
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
        if sinks is not None:
            # (heads, tokens) float32
            without, sums = sums, torch.logaddexp(sums, sinks.float().unsqueeze(1))
            output = (output * (without - sums).exp().T.unsqueeze(-1)).to(output.dtype)
        ctx.save_for_backward(query, keys, values, output, sums, random_state, unused, sinks)
        return output

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        query, keys, values, output, sums, random_state, unused, sinks = ctx.saved_tensors
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
        of_sinks = None
        if sinks is not None:
            weights = (sinks.float().unsqueeze(1) - sums).exp()
            of_sinks = -(weights.T * (gradient.float() * output.float()).sum(-1)).sum(0).to(sinks.dtype)
        return of_query, of_key, of_value, None, None, None, of_sinks


@functools.cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@functools.cache
def has_varlen_kernel() -> bool:
    """Whether this Python has a kernel that does all segments at once on a GPU: flash-attn's where it is installed,
    else PyTorch's own (from 2.10 on)."""
    return _has_flash_attn() or _has_pytorch_varlen()


@functools.cache
def _has_pytorch_varlen() -> bool:
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None
