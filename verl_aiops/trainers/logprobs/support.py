"""Which backend a run gets, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import transformers
from omegaconf import DictConfig, OmegaConf, open_dict
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from verl.utils.fs import copy_to_local

from verl_aiops.models.company import COMPARED_MODELS, rotary_limit
from verl_aiops.trainers.config import ConfigError, PreferenceConfig
from verl_aiops.trainers.logprobs.head import changed_after_head
from verl_aiops.trainers.logprobs.sequence_parallel import why_not_split
from verl_aiops.trainers.preflight.defaults import sequence_parallel_size

__all__ = [
    "CRITIC",
    "POLICY",
    "SHARED_PROMPT_MODELS",
    "Place",
    "choose",
    "choose_backend",
    "longest_pair",
    "settle",
    "settle_backend",
    "why_not_shared",
]

# Each decoder that was compared hands attention arguments on, and what it does to the logits after the head `head.py`
# knows; one that does not would stand in `COMPARED_MODELS` alone. tests/models/test_families.py compares log-probs and
# gradients with `rows`.
SHARED_PROMPT_MODELS = COMPARED_MODELS

# Of those, the ones whose windows of attention are in a mask alone, which sharing does without.
_WINDOW_IN_MASK = ("olmoe", "phimoe", "qwen2_moe")
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "residual_dropout")

_TORCH_WITH_VARLEN = Version("2.10")


@dataclass(frozen=True)
class Place:
    """Where verl's configuration has a model, how it is trained, and the FSDP engine that trains it."""

    model: str
    role: str
    engine: str


POLICY = Place("actor_rollout_ref.model", "actor_rollout_ref.actor", "actor_rollout_ref.actor.fsdp_config")
CRITIC = Place("critic.model", "critic", "critic.fsdp")


def why_not_shared(model: PretrainedConfig, config: DictConfig, place: Place = POLICY) -> str | None:
    """What keeps a model from sharing prompts, or None.

    Args:
        model: its transformers configuration.
        config: a whole verl configuration.
        place: of the model in it.
    """
    section, engine = OmegaConf.select(config, place.model), OmegaConf.select(config, place.engine)
    if model.model_type not in SHARED_PROMPT_MODELS:
        return _not_compared(model)
    limit = rotary_limit(model)
    longest = config.data.max_prompt_length + config.data.max_response_length
    if limit is not None and longest > limit[0]:
        return (
            f"the model's rotary embedding is another for rows beyond {limit[0]} tokens, and "
            f"data.max_prompt_length + data.max_response_length={longest}"
        )
    for name in _DROPOUTS:
        if getattr(model, name, 0.0):
            return f"the model trains with {name}={getattr(model, name)}"
    if changed := changed_after_head(model):
        return f"the model changes its logits after the head ({changed})"
    if model.model_type in _WINDOW_IN_MASK and getattr(model, "sliding_window", None):
        if getattr(model, "use_sliding_window", True):
            return f"its attention has a window of {model.sliding_window} tokens, which only the mask knows"
    workers, heads = sequence_parallel_size(config, place.role, place.engine), getattr(model, "num_attention_heads", 1)
    if workers > 1 and (why := why_not_split(heads, getattr(model, "num_key_value_heads", None) or heads, workers)):
        return why
    for key in ("use_liger", "use_fused_kernels"):
        if section.get(key):
            return f"{place.model}.{key}=True replaces the model's forward pass"
    if section.get("trust_remote_code") and getattr(model, "auto_map", None):
        return "the model brings code of its own"
    if config.trainer.device != "cpu":
        value_size = getattr(model, "v_head_dim", None)
        if value_size and value_size != getattr(model, "qk_nope_head_dim", 0) + getattr(model, "qk_rope_head_dim", 0):
            return "on a GPU its attention wants keys and values of one size"
        dtype = str(OmegaConf.select(engine, "mixed_precision.param_dtype") or "bf16")
        if dtype not in ("bf16", "bfloat16", "fp16", "float16"):
            return f"on a GPU its attention wants half precision, and mixed_precision.param_dtype={dtype}"
        torch = Version(importlib.metadata.version("torch"))
        if torch < _TORCH_WITH_VARLEN and importlib.util.find_spec("flash_attn") is None:
            return f"on a GPU it wants flash-attn or PyTorch {_TORCH_WITH_VARLEN} (here {torch})"
    return None


def _not_compared(model: PretrainedConfig) -> str:
    text, name = model.get_text_config(), repr(model.model_type)
    if getattr(model, "vision_config", None) is None or text.model_type not in SHARED_PROMPT_MODELS:
        return f"models of type {name} have not been compared with it"
    alone = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type, text.model_type)
    return (
        f"models of type {name} are vision-language models. The language model alone ({alone}), in a folder of its "
        "own, shares prompts (docs/models.md says how to make it)"
    )


def choose(
    config: DictConfig,
    key: str,
    wanted: str,
    folders: dict[str, str],
    *,
    otherwise: str,
    against: Iterable[str] = (),
    place: Place = POLICY,
) -> tuple[str, str]:
    """The backend that ``auto``, or what a user wants, comes to, and why it is that one.

    Args:
        config: a whole verl configuration.
        key: the setting's, for messages.
        wanted: ``auto``, ``shared_prompt`` or ``otherwise``.
        folders: the models that it has to serve, by the keys that name them; their configurations are read.
        otherwise: the backend of all that cannot share prompts.
        against: what else keeps the run from sharing, looked at first; taken from only as far as is needed.
        place: of the model in the configuration.

    Returns:
        ``shared_prompt`` or ``otherwise``, and the reason.

    Raises:
        ConfigError: ``shared_prompt`` is wanted and cannot be had, or a model's configuration cannot be read.
    """
    if wanted == otherwise:
        return wanted, "as set"
    section = OmegaConf.select(config, place.model)
    models = (why_not_shared(_load(key, path, section), config, place) for key, path in folders.items())
    reason = next(filter(None, chain(against, models)), None)
    if reason is None:
        return "shared_prompt", "each prompt goes through the model once"
    if wanted == "shared_prompt":
        raise ConfigError(f"{key}=shared_prompt: {reason}. Set it to {otherwise} or auto.")
    return otherwise, f"shared_prompt is not possible: {reason}"


def _load(key: str, path: str, section: DictConfig) -> PretrainedConfig:
    folder = copy_to_local(path, use_shm=section.get("use_shm", False))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=section.get("trust_remote_code", False))
    except (OSError, ValueError) as error:
        what = "" if os.path.isdir(folder) else "no such folder, and as a name on the hub "
        said = " ".join(str(error).split())
        raise ConfigError(f"{key}={path}: {what}its configuration cannot be loaded: {said}") from None


def settle(config: DictConfig, key: str, backend: str, why: str) -> list[str]:
    """Write a decision into the configuration; returns a line for the user where it was not there before."""
    if OmegaConf.select(config, key) == backend:
        return []
    with open_dict(config):
        OmegaConf.update(config, key, backend)
    return [f"{key}={backend} ({why})"]


def choose_backend(config: DictConfig, settings: PreferenceConfig) -> tuple[str, str]:
    """The backend of a DPO run, and why it is that one.

    Args:
        config: a whole verl configuration; the model configurations of the policy and of `reference_path` are
            read from their folders.
        settings: the run's DPO settings, whose ``logprob_backend`` may be ``auto``.

    Raises:
        ConfigError: ``shared_prompt`` is wanted and cannot be had, or a model's configuration cannot be read.
    """
    folders = {"actor_rollout_ref.model.path": config.actor_rollout_ref.model.path}
    if getattr(settings, "reference_path", None):
        folders[f"{settings.section}.reference_path"] = settings.reference_path
    key = f"{settings.section}.logprob_backend"
    against = _without_score_head(config) if settings.scored else ()
    return choose(config, key, settings.logprob_backend, folders, otherwise="rows", against=against)


def _without_score_head(config: DictConfig) -> Iterator[str]:
    """Why a reward model of the folder's type would hand nothing on that its attention has to know."""
    section = config.actor_rollout_ref.model
    kind = _load("actor_rollout_ref.model.path", section.path, section).model_type
    name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind)
    if name is None or not issubclass(getattr(transformers, name), GenericForSequenceClassification):
        yield f"the score head of models of type {kind!r} is not transformers' general one"


def settle_backend(config: DictConfig, settings: PreferenceConfig) -> list[str]:
    """Replace ``auto`` in the configuration by the backend that it stands for; returns a line for the user."""
    backend, why = choose_backend(config, settings)
    if settings.logprob_backend == backend:
        return []
    return settle(config, f"{settings.section}.logprob_backend", backend, why)


def longest_pair(config: DictConfig, backend: str, *, scored: bool = False) -> int:
    """Most tokens that one pair of the allowed lengths brings into a micro-batch; of a reward model each answer is
    counted with the one that stands for its score."""
    prompt, answer = config.data.max_prompt_length, config.data.max_response_length + scored
    return prompt + 2 * answer if backend == "shared_prompt" else 2 * (prompt + answer)
