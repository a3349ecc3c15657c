"""Which tokens end an answer, for the engine that generates and for the loop that reads what was generated."""

from __future__ import annotations

from functools import lru_cache

from transformers import GenerationConfig

__all__ = ["stop_ids"]


@lru_cache(maxsize=8)
def _generation_config_stops(model_path: str) -> frozenset[int]:
    try:
        eos = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the file is optional
        return frozenset()
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def stop_ids(model_path: str, tokenizer) -> frozenset[int]:
    """The tokenizer's end of sequence and those of the folder's generation config, as SGLang and vLLM take them."""
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return _generation_config_stops(str(model_path)) | frozenset(own)
