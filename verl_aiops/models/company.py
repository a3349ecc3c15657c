"""How rows are put before a model so that what it computes for one does not depend on those beside it.

Most decoders need no care. Others do:

- Rotary embeddings whose frequencies depend on the longest row (`longrope`, `dynamic`): rows on both sides of the
  length at which they change never share a forward pass.
- State-space, convolution and linear-attention layers: the state of a row packed before another runs into it.
- Whatever else `depends` finds by trying.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

__all__ = [
    "COMPARED_MODELS",
    "PACKED_IF_APART",
    "Company",
    "company_of",
    "depends",
    "forget_lengths",
    "has_recurrent_layers",
    "is_compared",
    "rotary_limit",
    "unwrapped",
]

logger = logging.getLogger(__name__)

# Decoders whose rows are known not to depend on those beside them, but by rotary embeddings of which the configuration
# tells; others are tried when they are first used. tests/models/test_families.py compares them.
COMPARED_MODELS = (
    "apertus",
    "arcee",
    "aria_text",
    "bitnet",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "flex_olmo",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hyperclovax",
    "jais2",
    "llama",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "nanochat",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "starcoder2",
    "vaultgemma",
    "youtu",
)

# Of those, the ones that make their masks without positions, so that packed rows are kept apart by flash attention
# alone: whether they are is tried.
PACKED_IF_APART = ("gpt_oss",)

# Kinds of layers in transformers' configurations that see other positions through attention alone.
_ATTENTION = {
    *("full_attention", "sliding_attention", "chunked_attention", "attention", "dense", "sparse", "moe"),
    *("compressed_sparse_attention", "heavily_compressed_attention"),
}
# parameters of recurrences, by the names that transformers' models give them
_RECURRENT_PARAMETERS = {"A_log", "dt_bias", "time_decay", "slope_rate", "recurrent_param", "conv1d", "conv_1d", "conv"}
# nats a token: between round-off and another result
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3}
_TOLERANCE_HALF = 0.25


def unwrapped(module: nn.Module) -> nn.Module:
    """transformers' model inside of FSDP and PEFT."""
    module = getattr(module, "_fsdp_wrapped_module", module)
    return module.get_base_model() if hasattr(module, "get_base_model") else module


# --- rotary embeddings ------------------------------------------------------------------------------------------------


def _rotary_kinds(parameters: object) -> Iterator[tuple[str, dict]]:
    """(kind, parameters) of a configuration's rotary embeddings: one for all layers, or one for each kind of layer."""
    if not isinstance(parameters, dict):
        return
    kind = parameters.get("rope_type") or parameters.get("type")
    if isinstance(kind, str):
        yield kind, parameters
    for inner in parameters.values():
        yield from _rotary_kinds(inner)


def rotary_limit(config) -> tuple[int, bool] | None:
    """The number of tokens beyond which a model's rotary embedding becomes another for all rows of a batch.

    Args:
        config: a transformers configuration.

    Returns:
        the number, and whether beyond it each length has frequencies of its own; None for other embeddings.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    limits = []
    for kind, given in _rotary_kinds(parameters):
        first = given.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        first = first or getattr(text, "max_position_embeddings", 0)
        if kind == "longrope":
            limits.append((first, False))
        elif "dynamic" in kind:
            limits.append((getattr(text, "max_position_embeddings", first) or first, True))
    if not limits:
        return None
    return min(limit for limit, _ in limits), any(each for _, each in limits)


def forget_lengths(model: nn.Module) -> None:
    """Set rotary embeddings back to how they were made: transformers' `dynamic` ones keep the frequencies of a long row
    for the short ones that follow."""
    for module in model.modules():
        # buffers or attributes, by version
        for name in [n for n in (*vars(module), *module._buffers) if n.endswith("original_inv_freq")]:
            held = name.replace("original_inv_freq", "inv_freq")
            value, now = getattr(module, name), getattr(module, held, None)
            if torch.is_tensor(value) and torch.is_tensor(now):
                setattr(module, held, value.to(now.device))
        for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)


# --- recurrent layers -------------------------------------------------------------------------------------------------


def has_recurrent_layers(model: nn.Module) -> bool:
    """Whether something but attention carries numbers from one position to the next."""
    config = getattr(model, "config", None)
    if config is not None:
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        for name in ("layer_types", "layers_block_type", "block_types"):
            kinds = getattr(text, name, None) or ()
            if any(isinstance(kind, str) and kind not in _ATTENTION for kind in kinds):
                return True
    return any(
        isinstance(module, nn.Conv1d) or name.rpartition(".")[2] in _RECURRENT_PARAMETERS
        for name, module in model.named_modules()
    ) or any(name.rpartition(".")[2] in _RECURRENT_PARAMETERS for name, _ in model.named_parameters())


# --- what a model allows ----------------------------------------------------------------------------------------------


@dataclass
class Company:
    """What one loaded model allows: rows ``packed`` into one, rows ``together`` in a batch (both None until they are
    known), and when generating, several answers to a ``repeated`` prompt."""

    limit: int | None
    each_length: bool
    recurrent: bool
    packed: bool | None = None
    together: bool | None = None
    repeated: bool = True

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of rows that may share a forward pass, group by group."""
        everyone = list(range(len(lengths)))
        if self.together is False:
            return [[row] for row in everyone]
        if self.limit is None or max(lengths) <= self.limit:
            return [everyone]
        short = [row for row in everyone if lengths[row] <= self.limit]
        long: dict[int, list[int]] = {}
        for row in everyone:
            if lengths[row] > self.limit:
                long.setdefault(lengths[row] if self.each_length else 0, []).append(row)
        return [group for group in (short, *long.values()) if group]


_KNOWN: WeakKeyDictionary[nn.Module, Company] = WeakKeyDictionary()


def company_of(module: nn.Module) -> Company:
    """What is known of a model, wrapped or not, without trying."""
    known = _KNOWN.get(module)
    if known is None:
        model = unwrapped(module)
        limit = rotary_limit(model.config) if hasattr(model, "config") else None
        recurrent = has_recurrent_layers(model)
        known = Company(
            limit=None if limit is None else limit[0],
            each_length=limit is not None and limit[1],
            recurrent=recurrent,
            packed=False if recurrent else None,
        )
        _KNOWN[module] = known
    return known


def is_compared(model: nn.Module) -> bool:
    """Whether a model need not be tried."""
    # FSDP2 gives each model that it shards a class of its own, a subclass of transformers'
    kind = next(cls for cls in type(model).__mro__ if not cls.__module__.startswith("torch."))
    return kind.__module__.startswith("transformers.") and model.config.model_type in COMPARED_MODELS


def depends(
    what: str,
    alone: Callable[[], torch.Tensor],
    beside: Callable[[], torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether a row's numbers are others beside another row; if so, or if that raises, it is logged.

    Args:
        what: for the log.
        alone: computes the numbers of the row alone.
        beside: the same in company.
        dtype: in which the model computes.

    Raises:
        RuntimeError: they are others when the row is alone a second time: the model remembers.
    """
    first = alone()
    most = _TOLERANCE.get(dtype, _TOLERANCE_HALF)
    reason = None
    try:
        difference = float((beside().float() - first.float()).abs().max())
        if not difference <= most:
            reason = f"its log-probs differ by up to {difference:.2g} nats"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    again = float((alone().float() - first.float()).abs().max())
    if not again <= most:
        raise RuntimeError(
            f"{what}: the same row gave other log-probs ({again:.2g} nats) after another one had been computed. The "
            "model keeps something from row to row, and no result of it can be relied on; use another model or version"
        )
    if reason is not None:
        logger.warning("verl-aiops: %s: a row beside another is not as it is alone (%s): one at a time", what, reason)
    return reason is not None
